"""Makes a request anonymous: its session is refused, or the records can't be used.

It also notes when the response is complete, because from then on no error can replace it.
"""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid

from flask import Flask, current_app, session
from werkzeug.exceptions import ServiceUnavailable

from .. import _clock as clock
from .. import signals
from .._app import Registry
from .._compat import flask_login
from .._compat.flask import request_context, unwrap
from .._diagnosis import diagnose
from .._records.base import End
from .._records.sql.transactions import LOCK_TIMEOUT
from . import remember_cookies, store_keys
from .context import RequestContext
from .opened import session_at_the_beginning

if t.TYPE_CHECKING:
    from werkzeug.wrappers import Request

#: How long, after a rotation or another login, an in-flight request of the browser may still carry
#: the previous session.
SUPERSEDED_FOR = dt.timedelta(seconds=10)

#: The reasons for which the browser itself has ended a session. It may be signed in again by now.
BY_THE_BROWSER = ("replaced", "logged_out")

#: Marks a request whose response is complete.
_ANSWERED = "_session_registry_answered"


class Unavailable(ServiceUnavailable):
    """The response if the records can't be used, so that it is unknown who is signed in."""


def unavailable(problem: str, error: BaseException) -> Unavailable:
    """Return the response if the records can't be used. It suggests when to retry.

    In debug mode and in tests, it tells the developer what to do about a missing table.
    """
    advice = "Please try again in a moment."
    if current_app.debug or current_app.testing:
        diagnosis = diagnose(error)
        if diagnosis.is_about_table:
            advice = str(diagnosis)
    # By then, a transaction that holds a row has let go of it.
    return Unavailable(f"{problem} {advice}", retry_after=LOCK_TIMEOUT)


def note_answer(request: Request) -> None:
    """Note that the response to this request is complete."""
    vars(request)[_ANSWERED] = True


def is_answered() -> bool:
    """Return whether there is a current request, and its response is complete."""
    found = request_context()
    return found is not None and _ANSWERED in vars(found.request)


def make_anonymous(app: Flask, context: RequestContext | None) -> None:
    """Hide session and "remember me" cookie from the rest of this request.

    In memory: the browser keeps what it holds until a response says otherwise.
    """
    store_keys.discard(app.session_interface, session)
    remember_cookies.hide(app)
    if context is not None:
        context.discard_session()


def refuse(
    app: Flask, registry: Registry, context: RequestContext, reason: str, id: uuid.UUID | None
) -> None:
    """Refuse the session that the browser came with, and make the request anonymous."""
    clears_remember_cookie = not context.is_superseded and remember_cookies.is_ours(app)
    context.refuse(reason, id, clears_remember_cookie=clears_remember_cookie)
    browser = unwrap(session)
    written: dict[str, t.Any] = {}
    if browser.modified:
        # For example, the CSRF token of a form: without it, no login over a dead session works.
        opened = session_at_the_beginning(registry, app)
        # If the entry is missing, nothing says what was there before: a web socket keeps its
        # session.
        if flask_login.USER_ID in opened or flask_login.USER_ID not in browser:
            written = store_keys.written_since(opened, browser)
    make_anonymous(app, context)
    if written:
        browser.update(written)
    signals.send(signals.session_rejected, app, user_session_id=id, reason=reason)


def complete_reason(registry: Registry, context: RequestContext) -> str | None:
    """Return why the session was refused, once it has been checked; ``None`` if it wasn't.

    If its store entry is missing, nothing in the session says which one it was; but the records
    know the key.
    """
    if context.missing_store_key is not None and context.rejected in (None, "unknown"):
        end, id = registry.records.find_end_by_store_key(context.missing_store_key)
        if end is not None:
            context.explain_refusal(end, id, is_superseded=is_superseded(end))
    return context.rejected


def is_superseded(end: End) -> bool:
    """Return whether a request may date from before the browser itself ended its session."""
    return end.reason in BY_THE_BROWSER and clock.is_within(SUPERSEDED_FOR, of=end.at)
