"""The hooks of ``"adopt"`` that the rest of the package calls."""

# ruff: noqa: ARG002 -- hooks that do nothing don't use their arguments.

from __future__ import annotations

import datetime as dt
import typing as t
from collections.abc import Sequence

from flask import Flask

from .._request.values import UNREGISTERED, CheckResult

if t.TYPE_CHECKING:
    from .._records.base import Execute, RevocationOrder
    from .._request.context import RequestContext


class NoAdoption:
    """Sessions from before the installation are refused: every hook does nothing.

    :class:`~flask_session_registry._adoption.adoption.Adoption` overrides them.
    """

    #: Whether the rows of ended sessions are kept, whatever ``RETENTION`` says.
    keeps_ended_rows = False
    #: Ends the warning about a session that was written by hand.
    advice = (
        " Sessions from before the installation stay valid if 'SESSION_REGISTRY_UNREGISTERED' is"
        " 'adopt'."
    )

    # -- at start-up ---------------------------------------------------------------------------

    def prepare(self, app: Flask) -> None:
        """Prepare an app whose session interface the registry has just taken over."""

    def listen(self) -> None:
        """Listen to the user model, which is known by now."""

    # -- in a request --------------------------------------------------------------------------

    def check_unregistered(self, app: Flask, claimed: str) -> CheckResult:
        """Check a session without a marker.

        :param claimed: the user that Flask-Login is about to load.
        """
        return UNREGISTERED

    def check_remembered(self, app: Flask, claimed: str) -> CheckResult | None:
        """Check a request without a session; return ``None`` to check it as any other.

        :param claimed: the user that the "remember me" cookie names.
        """
        return None

    def finish(self, app: Flask, context: RequestContext) -> dt.datetime | None:
        """End a request, before anything else is recorded.

        :returns: until when the browser is to be given new "remember me" cookies, if at all.
        """
        return None

    @property
    def is_pending(self) -> bool:
        """Whether the row of this request's session is written only when the request ends."""
        return False

    # -- in a transaction of the app, whose users are locked -----------------------------------

    def before_change(self, execute: Execute, user_ids: Sequence[t.Any]) -> None:
        """Prepare a transaction that is about to end, or to update, all sessions of users."""

    def after_revocation(self, execute: Execute, order: RevocationOrder, count: int) -> bool:
        """Complete a revocation; return whether that has written anything.

        :param count: how many sessions it ends.
        """
        return False

    def after_unwatched_change(self, execute: Execute, user_id: t.Any) -> None:
        """Complete a password change that ends no sessions."""

    # -- for an operator -----------------------------------------------------------------------

    def before_revoking_everybody(self) -> None:
        """Prepare a revocation of all sessions of all users."""

    def find_overdue(self, app: Flask) -> tuple[str, str] | None:
        """Return a problem with the setting, and what to do; ``None`` if it is in order."""
        return None
