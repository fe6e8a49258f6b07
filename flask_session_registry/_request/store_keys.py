"""Under which id does a browser's session live, and when is it written?

Flask-Session gives the browser a session id and keeps the entry under a store id. A signed cookie
has neither: its session is in the browser alone.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import typing as t
from collections.abc import Callable

from flask import Flask, Request, Response, request
from flask.sessions import SecureCookieSessionInterface, SessionInterface, SessionMixin
from flask_session.base import ServerSideSessionInterface
from itsdangerous import BadSignature

from .._store.backends import store_of
from .context import MARKER, OTHER

# What Flask-Session itself hands out. Anything else that a cookie may say is no session id, and
# must not reach a store as a key; nor must a hash, which may be from a dump of hashed keys.
_ISSUED = re.compile(r"(?![0-9a-fA-F]{64}$)[A-Za-z0-9_-]{1,180}")

#: What Flask-Login and Flask itself keep in a session that a login has just been written to.
_OF_THE_LOGIN = ("_user_id", "_fresh", "_id", "_remember", "_remember_seconds", "_permanent")

#: Types of values that can't be changed in place. With any other, a session that looks as if it had
#: only been read may have been written to.
_IMMUTABLE = frozenset((str, bytes, int, float, bool, type(None)))

#: Says of a session that it is prolonged.
_REFRESHED = "_session_registry_refreshed"

#: Says of a function that it holds back refreshes.
_HOLDS_BACK = "_session_registry_holds_back"

#: The ways to save a session that ask first whether it should be.
_ASKING_FIRST = (SecureCookieSessionInterface.save_session, ServerSideSessionInterface.save_session)


def choose_store_ids(interface: SessionInterface, *, hashed: bool) -> None:
    """Decide how this interface makes a store id of a session id.

    Hashed, neither a dump of the store nor one of the registry contains a usable cookie.
    """
    if not isinstance(interface, ServerSideSessionInterface):
        return
    prefix: str = interface.key_prefix

    def store_id_of(session_id: str) -> str:
        if hashed or not _ISSUED.fullmatch(session_id):
            raw = session_id.encode("utf-8", "surrogatepass")
            return prefix + hashlib.sha256(raw).hexdigest()
        return prefix + session_id

    interface._get_store_id = store_id_of
    if any(cls.__name__ == "PostgreSqlSessionInterface" for cls in type(interface).__mro__):
        _accept_keys(interface)


def _accept_keys(interface: t.Any) -> None:
    """Save under the keys that are chosen here, where Flask-Session insists on the session id."""
    upsert = interface._upsert_session

    def upsert_session(lifetime: t.Any, session: t.Any, store_id: str) -> None:
        sid, session.sid = session.sid, None
        try:
            upsert(lifetime, session, store_id)
        finally:
            session.sid = sid

    interface._upsert_session = upsert_session


def hold_back_refreshes(
    interface: SessionInterface, *, may_wait: Callable[[Flask], bool]
) -> Callable[[Flask, SessionMixin], bool]:
    """Write a signed-in session that was only read no more on each request, to prolong it.

    A request that overlaps a change of the session id, and answers last, would give the browser its
    old id back. Interfaces that save in another way do so as before.

    :param may_wait: whether sessions of an app last as long as they should if only :func:`refresh`
        prolongs them. An interface may serve several apps: Flask's own serves all of a process.
    :returns: says whether a session will be written at the end of the request, or could be.
    """
    if type(interface).save_session not in _ASKING_FIRST:
        return lambda _, __: True
    is_on_server = isinstance(interface, ServerSideSessionInterface)
    name = "should_set_storage" if is_on_server else "should_set_cookie"
    decide: Callable[[Flask, SessionMixin], bool] = getattr(interface, name)
    if hasattr(decide, _HOLDS_BACK):
        return decide

    def is_written(app: Flask, session: SessionMixin) -> bool:
        if not decide(app, session):
            return False
        return (
            session.modified
            or session.get(MARKER, OTHER) == OTHER
            or hasattr(session, _REFRESHED)
            or not may_wait(app)
            or not _IMMUTABLE.issuperset(map(type, session.values()))
        )

    setattr(is_written, _HOLDS_BACK, True)
    setattr(interface, name, is_written)
    return is_written


def refresh(session: SessionMixin) -> None:
    """Let the session be prolonged at the end of this request."""
    setattr(session, _REFRESHED, True)


def read_unhashed_too(interface: SessionInterface, *, moved: Callable[[str], None]) -> None:
    """Find entries from before session ids were hashed, too, and move them to their hashed key.

    :param moved: called with the key that an entry had, when it has been saved under its new one.
    """
    if not isinstance(interface, ServerSideSessionInterface):
        return
    opened, saved, prefix = interface.open_session, interface.save_session, interface.key_prefix

    def open_session(app: Flask, request: Request) -> t.Any:
        found: t.Any = opened(app, request)
        sent = sent_id(app, request)
        # Never by what looks like a hash: it may be from a dump of the store.
        if sent is None or sent == found.sid or not _ISSUED.fullmatch(sent):
            return found
        data = interface._retrieve_session_data(prefix + sent)
        if data is None:
            return found
        found = interface.session_class(data, sid=sent)
        found.modified = True
        found.moved_from = prefix + sent
        return found

    def save_session(app: Flask, session: t.Any, response: Response) -> None:
        saved(app, session, response)
        before = getattr(session, "moved_from", None)
        if before is not None and session.modified:
            moved(before)

    interface.open_session = open_session
    interface.save_session = save_session


def session_id(session: SessionMixin) -> str | None:
    return getattr(session, "sid", None)


def are_on_server(interface: SessionInterface) -> bool:
    """Whether sessions are entries in a store on a server, and not all in the browser."""
    store = store_of(interface)
    return store is not None and store.delete is not None


def store_id(interface: SessionInterface, session_id: str | None) -> str | None:
    """The key of the entry of a session id; ``None`` where there is no entry."""
    store = None if session_id is None else store_of(interface)
    if session_id is None or store is None or store.delete is None:
        return None
    return store.key(interface, session_id)


def missing_store_key(app: Flask, session: SessionMixin) -> str | None:
    """The key of the entry that the browser's cookie names, if it is not the session's.

    Flask-Session opens a new session, under a new id, when it finds no entry.
    """
    sent = sent_id(app, request)
    if sent is None or sent == session_id(session):
        return None
    return store_id(app.session_interface, sent)


def sent_id(app: Flask, request: Request) -> str | None:
    """The session id that the browser has sent, if sessions are kept on a server."""
    interface: t.Any = app.session_interface
    sent = request.cookies.get(app.config["SESSION_COOKIE_NAME"])
    if not sent or not are_on_server(interface):
        return None
    if getattr(interface, "use_signer", False):
        try:
            return t.cast(str, interface._unsign(app, sent))
        except BadSignature:
            return None
    return sent


def change(interface: SessionInterface, session: SessionMixin) -> None:
    """Give the session another id, in memory. Whoever wants it saved writes something to it.

    Flask-Session's own ``regenerate`` deletes the old entry at once, before anything is committed,
    and with its SQLAlchemy store commits the app's transaction.
    """
    if isinstance(interface, ServerSideSessionInterface):
        t.cast(t.Any, session).sid = interface._generate_sid(interface.sid_length)
    elif are_on_server(interface):
        t.cast(t.Any, session).sid = secrets.token_urlsafe(32)


def forget(interface: SessionInterface, session: SessionMixin) -> None:
    """Empty the session under a new id, so that nothing is written unless somebody writes.

    What the browser holds stays as it is: a late answer can't take away a cookie that another
    answer has just given.
    """
    session.clear()
    change(interface, session)
    session.modified = False


def written_since(opened: dict[str, t.Any] | None, session: SessionMixin) -> dict[str, t.Any]:
    """What a request has put into its session that was not there at the beginning.

    Without what belongs to a login.
    """
    known = {*(opened or ()), *_OF_THE_LOGIN, MARKER}
    return {key: session[key] for key in session if key not in known}


def keep_login_only(session: SessionMixin, written: dict[str, t.Any]) -> None:
    """Drop everything that somebody else left in the session before this login.

    :param written: what this request has put there, for the new user.
    """
    kept = written | {key: session[key] for key in _OF_THE_LOGIN if key in session}
    session.clear()
    session.update(kept)
