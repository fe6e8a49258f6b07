"""Deleting entries from session stores."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Sequence

from flask.sessions import SessionInterface
from flask_session.base import ServerSideSessionInterface

Deleter = Callable[[t.Any, Sequence[str]], None]

_deleters: dict[str, Deleter] = {}


def _deletes(kind: str) -> Callable[[Deleter], Deleter]:
    """Register how a kind of store is emptied, by the name of Flask-Session's interface.

    By name, so that no client library is imported that the app does not use.
    """

    def register(deleter: Deleter) -> Deleter:
        _deleters[kind] = deleter
        return deleter

    return register


def delete(interface: SessionInterface, store_ids: Sequence[str]) -> None:
    """Delete entries; an entry that is gone already is no error.

    Never within a transaction of the app: it asks a server.

    :raises Exception: whatever the client of the store raises.
    """
    for cls in type(interface).__mro__:
        if cls.__name__ in _deleters:
            _deleters[cls.__name__](interface, store_ids)
            return
    if isinstance(interface, ServerSideSessionInterface):
        for store_id in store_ids:
            interface._delete_session(store_id)


@_deletes("RedisSessionInterface")
def _redis(interface: t.Any, store_ids: Sequence[str]) -> None:
    # One key a command, so that it works where keys are spread over a cluster; one round trip.
    pipeline = interface.client.pipeline(transaction=False)
    for store_id in store_ids:
        pipeline.unlink(store_id)
    pipeline.execute()


@_deletes("CacheLibSessionInterface")
def _cachelib(interface: t.Any, store_ids: Sequence[str]) -> None:
    deleted = interface.cache.delete_many(*store_ids)
    left = set(store_ids).difference(deleted)
    if any(interface.cache.has(store_id) for store_id in left):
        raise OSError("The cache did not delete every entry.")


@_deletes("SqlAlchemySessionInterface")
def _sqlalchemy(interface: t.Any, store_ids: Sequence[str]) -> None:
    # On a connection of our own: Flask-Session's way commits whatever the app has open.
    table = interface.sql_session_model.__table__
    with interface.client.session.session_factory() as session, session.begin():
        session.execute(table.delete().where(table.c.session_id.in_(store_ids)))
