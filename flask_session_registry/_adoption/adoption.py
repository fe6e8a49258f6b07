"""Adopts sessions from before the installation, unless one of their user's was revoked since."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import hashlib
import typing as t
import uuid
from collections.abc import Sequence

from flask import Flask, request, session

from .. import _clock as clock
from .._app import Registry
from .._compat import flask_login
from .._compat.flask import unwrap
from .._records.base import Execute, RevocationOrder
from .._request import check as session_check
from .._request import deferred, persistence, remember_cookies, store_keys
from .._request.client_info import client_info
from .._request.context import RequestContext, find_context
from .._request.current_session import CurrentSession
from .._request.marker import MARKER, OTHER, Marker
from .._request.values import UNREGISTERED, CheckResult
from ..errors import ConfigurationError
from . import without_app
from .hooks import NoAdoption
from .records import AdoptionRecords
from .unhashed import migrate_unhashed_entries

#: The maximum number of user sessions adopted from one "remember me" cookie.
_AGENTS = 16


@dataclasses.dataclass(slots=True)
class AdoptionState:
    """What is known of the adopted session of one request."""

    #: What its row will say; ``None`` once it is written.
    values: dict[str, t.Any] | None = dataclasses.field(default=None, repr=False)
    #: The "remember me" cookie came alone, and its browser is to get the second one.
    lacks_binding_cookie: bool = False


def adoption_for(registry: Registry) -> NoAdoption:
    """Return the hooks that ``UNREGISTERED`` asks for.

    :raises ConfigurationError: the records are not in SQL.
    """
    settings = registry.settings
    if settings.unregistered != "adopt":
        return NoAdoption()
    if settings.records != "sql":
        raise ConfigurationError(
            "'SESSION_REGISTRY_UNREGISTERED' is 'adopt', so the user sessions must be kept in SQL:"
            " only a transaction can reliably block adoption. Remove 'SESSION_REGISTRY_RECORDS'"
            " during the rollout, or remove 'SESSION_REGISTRY_UNREGISTERED' to sign everybody out."
        )
    return Adoption(registry)


class Adoption(NoAdoption):
    """Adopts sessions from before the installation of one app's registry.

    A session is adopted in two steps: the check accepts it, and :meth:`finish` writes its row.
    """

    keeps_ended_rows = True
    advice = ""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    @functools.cached_property
    def records(self) -> AdoptionRecords:
        registry = self.registry
        return AdoptionRecords(registry.users, registry.sql_records.model, registry.credentials)

    # -- at start-up ---------------------------------------------------------------------------

    def prepare(self, app: Flask) -> None:
        if self.registry.settings.hash_session_ids:
            migrate_unhashed_entries(
                app.session_interface,
                on_moved=functools.partial(deferred.schedule_purge, registry=self.registry),
            )

    def listen(self) -> None:
        without_app.listen(self)

    # -- in a request --------------------------------------------------------------------------

    def check_unregistered(self, app: Flask, claimed: str) -> CheckResult:
        if session_check.is_left_alone(app, self.registry, claimed):
            return CheckResult(marker=OTHER)
        return self._check(app, claimed, id=_id_of_cookie(app))

    def check_remembered(self, app: Flask, claimed: str) -> CheckResult | None:
        if remember_cookies.binding_cookie_name(app) in request.cookies:
            return None
        # The same each time, or one account could fill the table.
        id = _id_of_remember_cookie(app)
        result = self._check(app, claimed, id=id, is_remembered=True)
        adoption = result.adoption or AdoptionState()
        adoption.lacks_binding_cookie = True
        return result._replace(adoption=adoption)

    def _check(
        self, app: Flask, claimed: str, *, id: uuid.UUID, is_remembered: bool = False
    ) -> CheckResult:
        """Accept a session under this id, unless it was adopted before and has ended since."""
        if self.records.exists(id):
            result = session_check.check_record(
                app,
                self.registry,
                unwrap(session),
                Marker.of(id, 0),
                claimed,
                is_remembered=is_remembered,
            )
        else:
            result = self._begin(app, claimed, id=id)
        if result.session is None:
            return result
        result.session.name_user()
        return result._replace(marker=result.session.marker)

    def _begin(self, app: Flask, claimed: str, *, id: uuid.UUID) -> CheckResult:
        """Accept a session that has no row yet, or refuse it."""
        registry = self.registry
        user = flask_login.load_user(app, claimed)
        if not isinstance(user, registry.credentials.user_model) or not user.is_active:
            return UNREGISTERED
        if registry.users.is_transient(user):
            user = registry.users.with_key_of(user)
            if user is None:
                return UNREGISTERED
        user_id = registry.user_id_of(user)
        if self.records.is_adoption_blocked(user_id):
            return UNREGISTERED
        moment, session_id = clock.now(), store_keys.session_id(unwrap(session))
        key = store_keys.store_key(app.session_interface, session_id)
        fingerprint = registry.users.fingerprint_of(user_id)
        current = CurrentSession(
            Marker.of(id, 0), user, session_id=session_id, store_id=key, held=[(0, fingerprint)]
        )
        is_remembered = remember_cookies.claimed_user(app) == flask_login.get_id(app, user)
        values = {
            "id": id,
            "generation": 0,
            "user_id": user_id,
            "store_id": key,
            "created_at": moment,
            "authenticated_at": clock.EPOCH,
            "remember_until": moment + remember_cookies.duration(app) if is_remembered else None,
            "fingerprint": fingerprint,
            **client_info(moment),
        }
        return CheckResult(current, adoption=AdoptionState(values))

    def finish(self, app: Flask, context: RequestContext) -> dt.datetime | None:
        adoption = context.adoption
        if adoption is None:
            return None
        values, adoption.values = adoption.values, None
        if values is not None:
            self._write_row(app, context, values)
            remember_until: dt.datetime | None = values["remember_until"]
            if remember_until is not None:
                return remember_until
        if adoption.lacks_binding_cookie:
            return clock.now() + remember_cookies.duration(app)
        return None

    def _write_row(self, app: Flask, context: RequestContext, values: dict[str, t.Any]) -> None:
        self.registry.users.release()
        generation = self.records.adopt_late(values)
        current = context.current
        if current is None or generation == current.generation:
            return
        # Its user has had a revocation since the check, or a request in parallel has rotated it.
        if session.get(MARKER) == current.marker:
            persistence.drop(app, context)
            return
        # Another login has replaced it since.
        context.drop_current()
        context.detach_login()

    @property
    def is_pending(self) -> bool:
        return self._pending_values is not None

    @property
    def _pending_values(self) -> dict[str, t.Any] | None:
        context = find_context(self.registry)
        adoption = context.adoption if context is not None else None
        return adoption.values if adoption is not None else None

    # -- in a transaction of the app, whose users are locked -----------------------------------

    def before_change(self, execute: Execute, user_ids: Sequence[t.Any]) -> None:
        """Write the row of this request's session, so that there is one to end, or to spare."""
        values = self._pending_values
        if values is not None and values["user_id"] in user_ids:
            self.records.adopt(execute, values)

    def after_revocation(self, execute: Execute, order: RevocationOrder, count: int) -> bool:
        """Block the users, unless only some of their sessions were to end, and none did."""
        if not count and (order.only_id is not None or order.where is not None):
            return False
        self.records.block_adoption(execute, order.user_ids)
        return True

    def after_unwatched_change(self, execute: Execute, user_id: t.Any) -> None:
        """Block what would be adopted with the new fingerprint."""
        self.records.block_adoption(execute, [user_id])

    # -- for an operator -----------------------------------------------------------------------

    def before_revoking_everybody(self) -> None:
        """Block also those who were not seen since the installation."""
        self.records.block_everybody()

    def find_overdue(self, app: Flask) -> tuple[str, str] | None:
        if not self.records.has_begun(by=clock.ago(app.permanent_session_lifetime)):
            return None
        return (
            "'SESSION_REGISTRY_UNREGISTERED' is 'adopt', although every session from before the"
            " installation has expired by now.",
            'Remove the setting, unless you wait for users who have only a "remember me" cookie.',
        )


# -- ids of adopted sessions -----------------------------------------------------------------------


def _id_of_cookie(app: Flask) -> uuid.UUID:
    """Return the id of the user session adopted from this request's session cookie.

    The same each time: requests in parallel get one row, and a copy that comes later finds it.
    """
    cookie = request.cookies.get(app.config["SESSION_COOKIE_NAME"], "")
    # Not the signature: that can be written in several ways.
    cookie = store_keys.sent_session_id(app, request) or cookie.rpartition(".")[0] or cookie
    if not cookie:
        # A session that the app itself has filled in, in this request.
        return uuid.uuid4()
    return _id_of(f"adopted:{cookie}")


def _id_of_remember_cookie(app: Flask) -> uuid.UUID:
    """Return the id of the user session adopted from a "remember me" cookie that came alone.

    The cookie is the same on every device. So user agents share a few ids: one browser always gets
    the same, and there are never more than a few, however often the cookie comes.
    """
    cookie = request.cookies.get(remember_cookies.cookie_name(app), "")
    agent = hashlib.sha256(request.user_agent.string.encode("utf-8", "surrogatepass")).digest()
    return _id_of(f"remembered:{agent[0] % _AGENTS}:{cookie}")


def _id_of(text: str) -> uuid.UUID:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return uuid.UUID(bytes=digest[:16], version=4)
