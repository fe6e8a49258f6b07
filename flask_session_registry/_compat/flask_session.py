"""Flask-Session: how its interfaces name, read, write and delete store entries."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from flask import Flask
from flask.sessions import SecureCookieSessionInterface, SessionInterface, SessionMixin
from flask_session.base import ServerSideSessionInterface
from itsdangerous import BadSignature
from sqlalchemy.dialects import postgresql

#: Whether a session will be written at the end of the request.
WriteDecision = Callable[[Flask, SessionMixin], bool]

#: Implementations of ``save_session`` that first ask whether the session should be written.
_ASKING_FIRST = (SecureCookieSessionInterface.save_session, ServerSideSessionInterface.save_session)


def owns(interface: SessionInterface) -> bool:
    """Return whether this is an interface of Flask-Session, or derived from one."""
    return isinstance(interface, ServerSideSessionInterface)


def is_kind(thing: object, name: str) -> bool:
    """Return whether a class of this name is among those of an object.

    By name, so that no client library is imported that the app doesn't use.
    """
    return any(cls.__name__ == name for cls in type(thing).__mro__)


def client_of(interface: SessionInterface) -> t.Any:
    """Return the client of the session store, or its Flask-SQLAlchemy; ``None`` if it has none."""
    return getattr(interface, "client", None)


def cache_of(interface: SessionInterface) -> t.Any:
    """Return the cachelib cache of the session store; ``None`` if it has none."""
    return getattr(interface, "cache", None)


def collection_of(interface: t.Any) -> t.Any:
    """Return the collection in MongoDB, or the table in DynamoDB, of the session store."""
    return interface.store


def model_of(interface: t.Any) -> type[t.Any]:
    """Return the mapped class of the entries of an SQL store."""
    return t.cast("type[t.Any]", interface.sql_session_model)


# -- session ids and store keys ------------------------------------------------------------------


def new_session_id(interface: t.Any) -> str:
    """Return a session id as Flask-Session makes them."""
    return t.cast(str, interface._generate_sid(interface.sid_length))


def verified_session_id(interface: t.Any, app: Flask, value: str) -> str | None:
    """Return the session id in the value of a session cookie; ``None`` if forged."""
    if not getattr(interface, "use_signer", False):
        return value
    try:
        return t.cast(str, interface._unsign(app, value))
    except BadSignature:
        return None


def key_prefix(interface: t.Any) -> str:
    """Return what the store keys of this interface begin with."""
    return t.cast(str, interface.key_prefix)


def store_key(interface: t.Any, session_id: str) -> str:
    """Return the key under which the entry of a session is kept."""
    return t.cast(str, interface._get_store_id(session_id))


def set_store_key_function(interface: t.Any, function: Callable[[str], str]) -> None:
    """Make all entries be kept under keys that this function returns for their session ids."""
    interface._get_store_id = function
    if is_kind(interface, "PostgreSqlSessionInterface"):
        _accept_any_key(interface)


def _accept_any_key(interface: t.Any) -> None:
    """Let the store "postgresql" use keys that it otherwise rejects as not made of session ids."""
    upsert = interface._upsert_session

    def upsert_session(lifetime: t.Any, session: t.Any, store_id: str) -> None:
        sid, session.sid = session.sid, None
        try:
            upsert(lifetime, session, store_id)
        finally:
            session.sid = sid

    interface._upsert_session = upsert_session


# -- entries -------------------------------------------------------------------------------------


def load_session(interface: t.Any, key: str, session_id: str) -> t.Any:
    """Return a session with the data of this entry and this id; ``None`` if there is no entry."""
    data = interface._retrieve_session_data(key)
    return None if data is None else interface.session_class(data, sid=session_id)


def delete_entry(interface: t.Any, key: str) -> None:
    """Delete one entry as Flask-Session does."""
    interface._delete_session(key)


def delete_from_postgresql(interface: t.Any, keys: Sequence[str]) -> None:
    """Delete entries of the store "postgresql", in one statement."""
    dialect: t.Any = postgresql.dialect
    name = dialect().identifier_preparer.format_table(
        sa.table(interface._table, schema=interface._schema)
    )
    deletion = f"DELETE FROM {name} WHERE session_id = ANY(%s)"  # noqa: S608 -- it is quoted
    with interface._get_cursor() as cursor:
        cursor.execute(deletion, (list(keys),))


# -- when a session is written -------------------------------------------------------------------


def asks_before_writing(interface: SessionInterface) -> bool:
    """Return whether the method :func:`write_decision_of` names decides if sessions are written."""
    return type(interface).save_session in _ASKING_FIRST


def write_decision_of(interface: SessionInterface) -> tuple[str, WriteDecision]:
    """Return the method that decides whether a session is written: its name, and itself."""
    name = "should_set_storage" if owns(interface) else "should_set_cookie"
    return name, getattr(interface, name)
