"""Is this request's session still good?

Asked before Flask-Login looks at the session or at the "remember me" cookie, in each request that
asks who the user is. When unsure: no.
"""

from __future__ import annotations

import logging
import typing as t
import uuid

import sqlalchemy as sa
from flask import Flask, request, session
from flask_login import current_user
from werkzeug.exceptions import ServiceUnavailable

from . import clock, remember, session_ids, signals
from .credentials import fingerprint
from .installation import Installation, get_installation, unwrap
from .state import MARKER, Current, RequestState, read_marker

_log = logging.getLogger("flask_session_registry")


def check(app: Flask) -> None:
    """Let the session of this request pass, or turn the request into an anonymous one.

    :raises ServiceUnavailable: the database can't be asked. The browser keeps its cookies.
    """
    installation = get_installation()
    if not installation.is_in_request:
        # Within the context of another app than the request's: the session is not this app's.
        return
    browser = unwrap(session)
    claimed = browser.get("_user_id")
    state = installation.state
    if claimed is None:
        state.lost_store_id = session_ids.lost_store_id(app, browser)
        if not remember.is_offered(app):
            return
    carried = browser.get(MARKER)
    if claimed is not None and state.is_known(carried):
        return
    try:
        if claimed is not None:
            reason, id = _check_session(app, installation, state, carried, claimed)
        else:
            reason, id = _check_remembered(app, installation, state)
    except sa.exc.SQLAlchemyError:
        _log.exception(
            "The table of user sessions could not be read. Is the database up, and has"
            " 'flask db upgrade' been run?"
        )
        installation.records.db.session.rollback()
        state.is_unavailable = True
        make_anonymous(app, state)
        raise ServiceUnavailable(
            "Your session could not be checked. Please try again in a moment."
        ) from None
    if reason is not None:
        _refuse(app, installation, state, reason, id)
    elif claimed is not None and remember.is_of_another(app, str(claimed)):
        # Flask-Login would turn to it if the app's user loader finds nobody for the session.
        remember.block(app)


def current(installation: Installation) -> Current | None:
    """The user session of this request, after asking for it if nobody has yet."""
    if not installation.is_in_request:
        return None
    current_user._get_current_object()
    state = installation.known_state
    return state.current if state else None


def reason_of_refusal(installation: Installation) -> str | None:
    """Why the session that this browser came with does not stand; ``None`` if it came with none.

    Where the entry is gone from the store, nothing in the session says which one it was; the row
    still knows the key that it had.
    """
    if not installation.is_in_request:
        return None
    current_user._get_current_object()
    return complete_reason(installation, installation.state)


def complete_reason(installation: Installation, state: RequestState) -> str | None:
    """The same, where it is known that somebody has asked for the user."""
    if state.lost_store_id is not None and state.rejected in (None, "unknown"):
        found, id = installation.records.reason_of_entry(state.lost_store_id)
        if found is not None:
            state.rejected, state.rejected_id = found, id
    return state.rejected


def current_before(installation: Installation, app: Flask) -> Current | None:
    """The user session of this request, when Flask-Login has written over it already.

    If nobody has asked for it yet: by the marker in the session; if a view has cleared that, in
    the session as it was at the beginning; else by the "remember me" cookie.
    """
    state = installation.state
    if state.current is not None or state.login is not None or state.rejected:
        return state.current
    carried = unwrap(session).get(MARKER)
    if carried is None and app.config["SESSION_COOKIE_NAME"] in request.cookies:
        carried = (_session_at_the_beginning(installation, app) or {}).get(MARKER)
    if carried is not None:
        _check_session(app, installation, state, carried, None)
    elif remember.is_offered(app):
        _check_remembered(app, installation, state)
    return state.current


def _session_at_the_beginning(installation: Installation, app: Flask) -> dict[str, t.Any] | None:
    """What the browser's cookie stands for, whatever this request has done to it since."""
    # A store in SQL asks the app's session, which may hold what is not finished.
    with installation.records.db.session.no_autoflush:
        opened = app.session_interface.open_session(app, unwrap(request))
    return None if opened is None else dict(opened)


def make_anonymous(app: Flask, state: RequestState | None) -> None:
    """Let the rest of this request see no session and no "remember me" cookie.

    In memory: what the browser holds stays until an answer says otherwise.
    """
    session_ids.forget(app.session_interface, session)
    remember.block(app)
    if state is not None:
        state.is_forgotten = True


_Verdict = tuple["str | None", "uuid.UUID | None"]


def _check_session(
    app: Flask,
    installation: Installation,
    state: RequestState,
    carried: object,
    claimed: str | None,
) -> _Verdict:
    marker = read_marker(carried)
    if marker is None:
        return "unregistered" if carried is None else "unknown", None
    return _check_row(app, installation, state, marker, claimed), marker[0]


def _check_remembered(app: Flask, installation: Installation, state: RequestState) -> _Verdict:
    companion = remember.companion(app)
    claimed = remember.claimed_user(app)
    if companion is None or claimed is None:
        return "unknown", None
    reason = _check_row(app, installation, state, (companion.id, companion.generation), claimed)
    return reason, companion.id


def _check_row(
    app: Flask,
    installation: Installation,
    state: RequestState,
    marker: tuple[uuid.UUID, int],
    claimed: str | None,
) -> str | None:
    """Compare what the browser carries with the row; why not, or ``None`` if it stands."""
    id, generation = marker
    row = installation.records.load(id)
    if row is None:
        return installation.records.reason(id) or "unknown"
    user, row_generation, credential, last_seen_at, store_id, *passwords = row
    if credential != fingerprint((*passwords,)):
        return "password_changed"
    if row_generation != generation:
        return "rotated"
    if claimed is not None and remember.id_of(app, user) != str(claimed):
        return "unknown"
    if not user.is_active:
        state.inactive = id
        return "inactive"
    interval = installation.settings.touch_interval
    state.current = Current(
        id=id,
        generation=generation,
        user=user,
        session_id=session_ids.session_id(unwrap(session)),
        store_id=store_id,
        is_touch_due=interval is not None and clock.now() - clock.as_utc(last_seen_at) >= interval,
    )
    return None


def _refuse(
    app: Flask,
    installation: Installation,
    state: RequestState,
    reason: str,
    id: uuid.UUID | None,
) -> None:
    state.rejected, state.rejected_id = reason, id
    # A late request with the id from before a rotation comes from a browser that is signed in.
    state.forgets_remember = reason != "rotated" and remember.is_offered(app)
    browser = unwrap(session)
    written: dict[str, t.Any] = {}
    if browser.modified:
        # The token of a form, say: without it nobody could sign in over a dead session.
        opened = _session_at_the_beginning(installation, app)
        written = session_ids.written_since(opened, browser)
    make_anonymous(app, state)
    if written:
        browser.update(written)
    signals.send(signals.session_rejected, app, user_session_id=id, reason=reason)
