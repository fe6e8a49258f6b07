"""The session that Flask opens: its id, its store key, when it is written, what a login keeps.

Flask-Session gives the browser a session id and keeps the entry under a store key. A signed cookie
has neither: it holds the whole session.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import typing as t
from collections.abc import Callable

from flask import Flask, Request, request
from flask.sessions import SessionInterface, SessionMixin

from .._compat import flask_session
from .._compat.flask import PERMANENT
from .._compat.flask_login import LOGIN_KEYS
from .._store.backends import store_of
from .marker import MARKER, OTHER

# The ids that Flask-Session issues. Anything else in a cookie is not a session id, and must not
# reach a store as a key. Nor must a hash, which may come from a dump of hashed keys.
ISSUED = re.compile(r"(?![0-9a-fA-F]{64}$)[A-Za-z0-9_-]{1,180}")

#: What Flask-Login and Flask keep in a session right after a login.
_OF_THE_LOGIN = (*LOGIN_KEYS, PERMANENT)

#: Types of values that can't be changed in place. With a value of any other type, a session that
#: seems to have been read only may have been changed.
_IMMUTABLE = frozenset((str, bytes, int, float, bool, type(None)))

#: The attribute of a session to be prolonged.
_REFRESHED = "_session_registry_refreshed"

#: The attribute of a function that defers refreshes.
_DEFERS = "_session_registry_defers"


def configure_store_keys(interface: SessionInterface, *, hashed: bool) -> None:
    """Set how this interface derives a store key from a session id.

    If hashed, neither a dump of the store nor one of the registry contains a usable cookie.
    """
    if not flask_session.owns(interface):
        return
    prefix = flask_session.key_prefix(interface)

    def store_key_of(session_id: str) -> str:
        if hashed or not ISSUED.fullmatch(session_id):
            raw = session_id.encode("utf-8", "surrogatepass")
            return prefix + hashlib.sha256(raw).hexdigest()
        return prefix + session_id

    flask_session.set_store_key_function(interface, store_key_of)


def defer_refreshes(
    interface: SessionInterface, *, may_defer: Callable[[Flask], bool]
) -> flask_session.WriteDecision:
    """Stop writing a signed-in session on each request that only reads it, to prolong it.

    A request that overlaps a change of the session id, and answers last, would give the browser
    its old id back. Interfaces with their own ``save_session`` go on as before.

    :param may_defer: whether sessions of an app last long enough if only :func:`refresh` prolongs
        them. An interface may serve several apps: Flask's own serves all apps of a process.
    :returns: a function that returns whether a session will, or might, be written at the end of
        the request.
    """
    if not flask_session.asks_before_writing(interface):
        return lambda _, __: True
    name, decide = flask_session.write_decision_of(interface)
    if hasattr(decide, _DEFERS):
        return decide

    def is_written(app: Flask, session: SessionMixin) -> bool:
        if not decide(app, session):
            return False
        return (
            session.modified
            or session.get(MARKER, OTHER) == OTHER
            or hasattr(session, _REFRESHED)
            or not may_defer(app)
            or not _IMMUTABLE.issuperset(map(type, session.values()))
        )

    setattr(is_written, _DEFERS, True)
    setattr(interface, name, is_written)
    return is_written


def refresh(session: SessionMixin) -> None:
    """Prolong the session at the end of this request."""
    setattr(session, _REFRESHED, True)


def session_id(session: SessionMixin) -> str | None:
    """Return the id of a session; ``None`` for a signed cookie."""
    return getattr(session, "sid", None)


def is_server_side(interface: SessionInterface) -> bool:
    """Return whether sessions are entries in a store, rather than kept in the browser."""
    store = store_of(interface)
    return store is not None and store.delete is not None


def store_key(interface: SessionInterface, session_id: str | None) -> str | None:
    """Return the key of the store entry for a session id; ``None`` if there are no entries."""
    store = None if session_id is None else store_of(interface)
    if session_id is None or store is None or store.delete is None:
        return None
    return store.key(interface, session_id)


def missing_store_key(app: Flask, session: SessionMixin) -> str | None:
    """Return the store key for the browser's cookie if it isn't the key of this session.

    Flask-Session opens a new session, under a new id, when it finds no entry.
    """
    sent = sent_session_id(app, request)
    if sent is None or sent == session_id(session):
        return None
    return store_key(app.session_interface, sent)


def sent_session_id(app: Flask, request: Request) -> str | None:
    """Return the session id that the browser has sent, if sessions are kept on a server."""
    sent = request.cookies.get(app.config["SESSION_COOKIE_NAME"])
    if not sent or not is_server_side(app.session_interface):
        return None
    return flask_session.verified_session_id(app.session_interface, app, sent)


def regenerate_id(interface: SessionInterface, session: SessionMixin) -> None:
    """Give the session a new id, in memory. To save it, the caller writes something to it.

    Flask-Session's own ``regenerate`` deletes the old entry at once, before anything is committed,
    and with its SQLAlchemy store commits the app's transaction.
    """
    set_session_id(session, new_session_id(interface))


def new_session_id(interface: SessionInterface) -> str | None:
    """Return a fresh session id; ``None`` for signed cookies."""
    if flask_session.owns(interface):
        return flask_session.new_session_id(interface)
    return secrets.token_urlsafe(32) if is_server_side(interface) else None


def set_session_id(session: SessionMixin, id: str | None) -> None:
    """Give the session this id, in memory."""
    if id is not None:
        t.cast(t.Any, session).sid = id


def discard(interface: SessionInterface, session: SessionMixin) -> None:
    """Empty the session under a new id, so that it is written only if the view writes to it.

    What the browser holds stays: a late response can't remove a cookie that another response has
    just set.
    """
    session.clear()
    regenerate_id(interface, session)
    session.modified = False


def written_since(opened: dict[str, t.Any] | None, session: SessionMixin) -> dict[str, t.Any]:
    """Return what a request has added to its session, except what belongs to a login.

    :param opened: the session at the beginning of the request.
    """
    known = {*(opened or ()), *_OF_THE_LOGIN, MARKER}
    return {key: session[key] for key in session if key not in known}


def keep_login_only(session: SessionMixin, written: dict[str, t.Any]) -> None:
    """Drop everything that was in the session before this login.

    :param written: what this request has added, for the new user.
    """
    kept = written | {key: session[key] for key in _OF_THE_LOGIN if key in session}
    session.clear()
    session.update(kept)
