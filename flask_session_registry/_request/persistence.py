"""The end of a request: what became of its session is recorded."""

from __future__ import annotations

import datetime as dt
import uuid

from flask import Flask, Response, request, session
from flask.sessions import SessionMixin
from werkzeug.exceptions import Forbidden, HTTPException

from .._app import Registry
from .._compat import flask_login
from .._compat.flask import PERMANENT, response_to, unwrap
from .._diagnosis import report
from .._log import log
from .._records.base import ROTATED, UNAVAILABLE, LimitReachedError, SupersededError
from ..errors import UserError
from . import deferred, refusal, remember_cookies, store_keys
from .auth_events import undo_login
from .context import RequestContext
from .current_session import CurrentSession
from .marker import MARKER, OTHER
from .record_login import record_login
from .record_logout import record_logout
from .remember_cookies import RememberCookieChange
from .sync import sync_current

#: A request whose last comparison is longer ago than this, in seconds, compares its session once
#: more before that is written.
SLOW_AFTER = 0.1

_TOO_MANY = "You are signed in on too many devices. Sign out on one of them first."


def finish(
    app: Flask,
    registry: Registry,
    context: RequestContext,
    browser: SessionMixin,
    response: Response,
) -> Response:
    """Compare what the check accepted with what the session says now, and record it.

    Runs last before Flask saves the session, and again for the error page if that fails.

    :param browser: ``flask.session``.
    """
    if _has_only_read(app, registry, context, browser, response):
        return response
    response = _record(app, registry, context, browser, response)
    if context.is_unavailable or _must_not_be_written(registry, context, browser):
        store_keys.discard(app.session_interface, browser)
    return response


def _has_only_read(
    app: Flask,
    registry: Registry,
    context: RequestContext,
    browser: SessionMixin,
    response: Response,
) -> bool:
    """Return whether a signed-in request leaves nothing to record: most of them.

    It may have written to its session, if it was not slow.
    """
    current = context.current
    return (
        current is not None
        and context.is_as_checked
        and current.is_as_checked
        and browser.get(MARKER) == current.marker
        and flask_login.USER_ID in browser
        and store_keys.session_id(browser) == current.session_id
        and store_keys.store_key(app.session_interface, current.session_id) == current.store_id
        and context.age <= SLOW_AFTER
        and not response.headers.getlist("Set-Cookie")
        and not registry.prune_schedule.is_due()
    )


def _record(
    app: Flask,
    registry: Registry,
    context: RequestContext,
    browser: SessionMixin,
    response: Response,
) -> Response:
    """Record what became of the session; return the response, another one if that fails."""
    if context.pending:
        _roll_back_uncommitted(registry, context)
    try:
        recorded = context.take_recorded_login()
        if recorded is not None:
            _undo_recorded_login(app, registry, context, recorded)
        elif not context.is_unavailable:
            _persist(app, registry, context, browser, response)
    except (*UNAVAILABLE, UserError) as error:
        report("Could not save the session changes of this request.", error)
        return _respond_signed_out(
            app, context, refusal.unavailable("Your session could not be recorded.", error)
        )
    except LimitReachedError:
        return _respond_signed_out(app, context, Forbidden(_TOO_MANY))
    except SupersededError:
        context.drop_login()
        remember_cookies.drop_change(app, response)
        drop(app, context)
    return response


def _roll_back_uncommitted(registry: Registry, context: RequestContext) -> None:
    db_session = registry.db_session
    for pending in context.pending:
        if pending.is_open and pending.is_ours(db_session):
            is_done = registry.users.roll_back(pending.session)
            log.warning(
                "A revocation, or a password change, was not committed by the end of the request"
                " '%s' and %s: no session has ended. Commit the transaction in the view.",
                request.endpoint,
                "has been rolled back" if is_done else "is left to the owner of its connection",
            )


def _undo_recorded_login(
    app: Flask, registry: Registry, context: RequestContext, id: uuid.UUID
) -> None:
    """End the session of a login: it could not be saved, so no browser has it."""
    registry.users.release()
    registry.records.end(id, "not_saved")
    context.drop_current()
    undo_login(app)


def _respond_signed_out(app: Flask, context: RequestContext, error: HTTPException) -> Response:
    """Return the response of a request whose session wasn't recorded: nothing is changed."""
    context.mark_unavailable()
    undo_login(app)
    return response_to(app, error)


# -- what must not be written --------------------------------------------------------------------


def _must_not_be_written(
    registry: Registry, context: RequestContext, browser: SessionMixin
) -> bool:
    """Return whether writing the session would take from the browser what it has been given."""
    if not browser.modified or context.current is not None or context.ended:
        return False
    if browser.get(MARKER) == OTHER:
        return False
    is_replaced = context.discards_session or context.missing_store_key is not None
    if is_replaced and not set(browser) - {PERMANENT}:
        # Only Flask-Login has written to it, or an app that makes all sessions permanent.
        return True
    try:
        return _is_late(registry, context)
    except UNAVAILABLE as error:
        report("Could not find out whether a request is late.", error)
        registry.users.roll_back()
        # A visitor who wasn't refused doesn't depend on the records.
        return context.rejected is not None


def _is_late(registry: Registry, context: RequestContext) -> bool:
    """Return whether the browser has been given another session since it sent this request."""
    reason = refusal.complete_reason(registry, context)
    if reason != ROTATED or context.rejected_id is None:
        return reason in refusal.BY_THE_BROWSER and context.is_superseded
    # With the id from before a recent rotation, the browser is signed in by now. Later, it has only
    # the old id, and must be able to sign in.
    return registry.records.was_rotated_within(context.rejected_id, refusal.SUPERSEDED_FOR)


# -- what became of the session ------------------------------------------------------------------


def _persist(
    app: Flask,
    registry: Registry,
    context: RequestContext,
    browser: SessionMixin,
    response: Response,
) -> None:
    change = remember_cookies.find_change(app, response)
    remember_until = registry.adoption.finish(app, context)
    carried = browser.get(MARKER) if flask_login.USER_ID in browser else None
    login, current = context.login, context.current
    is_renewed = False
    if login is not None and login.marker == carried:
        record_login(app, registry, context, login, change, response)
    elif current is None:
        _drop_marker(browser, carried)
    elif current.marker == carried:
        is_renewed = _continue_session(app, registry, context, current, browser)
    else:
        record_logout(app, registry, context, current)
    change = change and _complete_change(app, context, response, change, carried)
    if change is None:
        _update_remember_cookie(app, context, response, remember_until, is_renewed=is_renewed)
    deferred.schedule(registry, context, change)


def _drop_marker(browser: SessionMixin, carried: object) -> None:
    """Remove a marker without a user, which a view has signed out by hand."""
    if carried is None and MARKER in browser:
        browser.pop(MARKER)


def _continue_session(
    app: Flask,
    registry: Registry,
    context: RequestContext,
    current: CurrentSession,
    browser: SessionMixin,
) -> bool:
    """Record a session that continues; return whether its remember cookies must be set again."""
    if current.awaits_commit:
        registry.users.release()
        sync_current(registry, [current.user_id])
        if context.current is None:
            return False
    session_id = store_keys.session_id(browser)
    rotates = current.needs_rotation(session_id)
    if current.credentials_updated:
        _update_user_id(app, registry, current)
    # The session id may have another key than the row: parallel requests that a "remember me"
    # cookie has restored had an id each, and the browser has kept this one.
    if rotates or store_keys.store_key(app.session_interface, session_id) != current.store_id:
        is_kept = _move(app, registry, context, current, rotates=rotates)
    else:
        is_kept = _may_be_written(app, registry, context, current, browser)
    if not is_kept:
        drop(app, context)
        return False
    return rotates or current.credentials_updated


def _move(
    app: Flask,
    registry: Registry,
    context: RequestContext,
    current: CurrentSession,
    *,
    rotates: bool,
) -> bool:
    """Move a session to another store key, generation, or both.

    :returns: ``False`` if the session has ended, or been rotated by another request.
    """
    interface, session_id = app.session_interface, store_keys.session_id(unwrap(session))
    key, becomes = store_keys.store_key(interface, session_id), current.generation + rotates
    registry.users.release()
    given_up = registry.records.rotate(
        current.id,
        user_id=current.user_id,
        generation=current.generation,
        becomes=becomes,
        store_id=key,
        is_confirmed=current.is_confirmed,
    )
    if given_up is None:
        return False
    previous = store_keys.store_key(interface, current.session_id)
    for one in (*given_up, previous, current.store_id):
        context.leave_behind(one, except_key=key)
    current.rotate(becomes, session_id=session_id, store_id=key)
    session[MARKER] = current.marker
    return True


def _may_be_written(
    app: Flask,
    registry: Registry,
    context: RequestContext,
    current: CurrentSession,
    browser: SessionMixin,
) -> bool:
    """Return whether the session still belongs to this request. A slow one compares it again."""
    is_slow = context.age > SLOW_AFTER
    if not is_slow and not current.is_touch_due:
        return True
    is_changed = registry.is_written(app, browser)
    if not is_changed and current.is_touch_due:
        store_keys.refresh(browser)
    if not (is_slow if is_changed else registry.is_written(app, browser)):
        return True
    # Prolonging a session can wait: it never blocks on a row that another transaction holds.
    generation = registry.records.current_generation(current.id, skip_locked=not is_changed)
    return generation == current.generation


def _update_user_id(app: Flask, registry: Registry, current: CurrentSession) -> None:
    """Update what ``get_id()`` returned: it may have changed with the password."""
    is_key = registry.users.key.key == "id" and flask_login.has_plain_id(app, current.user)
    if is_key and current.knows_user:
        session[flask_login.USER_ID] = str(current.user_id)
        return
    # The commit may have been another session's, so that this one knows an outdated user.
    registry.users.release()
    loaded = registry.records.load(current.id.hex, refresh=True)
    if loaded is not None:
        session[flask_login.USER_ID] = flask_login.get_id(app, loaded.user)


def drop(app: Flask, context: RequestContext) -> None:
    """Discard a session that has ended, or been rotated by another request, in the meantime."""
    context.drop_current()
    context.discard_session()
    store_keys.discard(app.session_interface, session)


# -- the remember cookies ------------------------------------------------------------------------


def _complete_change(
    app: Flask,
    context: RequestContext,
    response: Response,
    change: RememberCookieChange,
    carried: object,
) -> RememberCookieChange | None:
    """Let the binding cookie follow the "remember me" cookie; return ``None`` if neither changes.

    :param carried: the marker in the session, before it was persisted.
    """
    if carried == OTHER:
        # The cookie of a user whom the registry leaves alone: no binding cookie belongs to it.
        remember_cookies.leave_unbound(app, response, change)
        context.clear_remember_cookie(False)
        return None
    if change.value and context.current is None:
        # The browser holds one that is as good, or better.
        remember_cookies.drop_change(app, response)
        return None
    remember_cookies.bind(app, response, change, context.current)
    return change


def _update_remember_cookie(
    app: Flask,
    context: RequestContext,
    response: Response,
    until: dt.datetime | None,
    *,
    is_renewed: bool,
) -> None:
    """Clear the remember cookies, or set them again, in a response that doesn't change them.

    :param until: when new ones expire; ``None`` sets none, unless the session is renewed.
    """
    if context.clears_remember_cookie:
        remember_cookies.clear(app, response)
    elif context.current is not None and (is_renewed or until is not None):
        remember_cookies.reissue(app, response, context.current, until=until)
