"""Deletes entries of any kind of session store, without waiting for a store that hangs."""

from __future__ import annotations

import contextvars
import threading
import time
import typing as t
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from flask.sessions import SessionInterface

from .._compat import clients, flask_session
from .._records.sql.table import hiding_parameters
from .._records.sql.transactions import own_transaction

#: How many seconds the deletion of a batch may delay a response.
TIMEOUT = 3.0

#: How many seconds to leave a hanging store alone.
_PAUSE = 60.0

#: The maximum number of threads that hang at once.
_MOST_HANGING = 10

Delete = Callable[[t.Any, Sequence[str]], None]
Key = Callable[[t.Any, str], str]


class SessionStore(t.NamedTuple):
    """A kind of session store."""

    #: Deletes entries, given the interface and their keys; ``None`` if nothing is stored.
    delete: Delete | None
    #: Returns the key of an entry, given the interface and a session id.
    key: Key


# By name, so that no client library is imported that the app doesn't use.
_known: dict[str, SessionStore] = {
    "SecureCookieSessionInterface": SessionStore(None, flask_session.store_key),
}
_registered: dict[type, SessionStore] = {}


def register_session_store(
    interface: type[SessionInterface],
    delete: Delete | None,
    *,
    key: Key = flask_session.store_key,
) -> None:
    """Register a session interface that comes neither from Flask nor from Flask-Session.

    Call this before ``init_app``. Subclasses of their interfaces are known already; register one
    only to delete its entries differently. Sessions of a store on a server need a ``sid`` that can
    be set: the registry gives them new ids.

    :param delete: called with the interface and up to a thousand keys, to delete these entries. It
        deletes all of them or raises; a missing entry is not an error. It runs in a thread of its
        own, with the app context, after the commit that ended the sessions. ``None`` if sessions
        of this kind are kept in the browser, and nothing is stored.
    :param key: called with the interface and a session id, to return the key of its entry. This is
        kept in the table and must not be a usable cookie: use a hash of the session id, for
        example. By default that of Flask-Session, for subclasses of ``ServerSideSessionInterface``.
    """
    _registered[interface] = SessionStore(delete, key)


def store_of(interface: SessionInterface) -> SessionStore | None:
    """Return the kind of store an interface keeps its sessions in; ``None`` if unknown."""
    for cls in type(interface).__mro__:
        store = _registered.get(cls)
        if store is None and cls.__module__.partition(".")[0] in ("flask", "flask_session"):
            store = _known.get(cls.__name__)
        if store is not None:
            return store
    return None


class Entries:
    """The entries of one app's session store."""

    def __init__(self, interface: SessionInterface, store: SessionStore) -> None:
        self._interface = interface
        self._delete = store.delete
        self._hanging: list[threading.Thread] = []
        self._asks_again_at = 0.0

    def delete(self, keys: Sequence[str], *, timeout: float | None = None) -> None:
        """Delete entries; a missing one is not an error.

        Never call this within a transaction of the app: it may wait for a server. If the server
        hangs and the client has no timeout, this gives up. It tries again once the server has
        answered, or a minute later, because a single connection may be stuck.

        :param timeout: in seconds; by default :data:`TIMEOUT`.
        :raises TimeoutError: the store didn't answer in time.
        :raises Exception: what the client of the store raises.
        """
        delete = self._delete
        if delete is None or not keys:
            return
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        is_too_early = self._hanging and time.monotonic() < self._asks_again_at
        if is_too_early or len(self._hanging) >= _MOST_HANGING:
            raise TimeoutError("The session store has not answered yet.")
        outcome: Future[None] = Future()
        # In the app context, from which an SQL store gets its engine.
        run = contextvars.copy_context().run
        arguments = (self._try, delete, list(dict.fromkeys(keys)), outcome)
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        thread.start()
        thread.join(TIMEOUT if timeout is None else timeout)
        if not outcome.done():
            self._hanging.append(thread)
            self._asks_again_at = time.monotonic() + _PAUSE
            raise TimeoutError("The session store did not answer.")
        outcome.result()

    def _try(self, delete: Delete, keys: list[str], outcome: Future[None]) -> None:
        try:
            delete(self._interface, keys)
        except Exception as error:
            outcome.set_exception(error)
        except BaseException as error:
            # A timeout of gevent, for example. The caller has committed and must not be stopped.
            outcome.set_exception(RuntimeError(type(error).__name__))
        else:
            outcome.set_result(None)


# -- the stores of Flask-Session ---------------------------------------------------------------


def _deletes(kind: str) -> Callable[[Delete], Delete]:
    def register(delete: Delete) -> Delete:
        _known[kind] = SessionStore(delete, flask_session.store_key)
        return delete

    return register


@_deletes("ServerSideSessionInterface")
def _one_by_one(interface: t.Any, keys: Sequence[str]) -> None:
    for key in keys:
        flask_session.delete_entry(interface, key)


@_deletes("RedisSessionInterface")
def _redis(interface: t.Any, keys: Sequence[str]) -> None:
    client = flask_session.client_of(interface)
    if clients.is_cluster(client):
        # The keys are spread over the nodes; the pipeline sends one request to each node.
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.unlink(key)
        pipeline.execute()
    else:
        client.unlink(*keys)


@_deletes("MemcachedSessionInterface")
def _memcached(interface: t.Any, keys: Sequence[str]) -> None:
    if not clients.delete_from_memcached(flask_session.client_of(interface), keys):
        _one_by_one(interface, keys)


@_deletes("CacheLibSessionInterface")
@_deletes("FileSystemSessionInterface")
def _cachelib(interface: t.Any, keys: Sequence[str]) -> None:
    cache = flask_session.cache_of(interface)
    deleted = cache.delete_many(*keys)
    left = set(keys).difference(deleted)
    if any(cache.has(key) for key in left):
        raise OSError("The cache did not delete every entry.")


@_deletes("SqlAlchemySessionInterface")
def _sqlalchemy(interface: t.Any, keys: Sequence[str]) -> None:
    # On a connection of our own: Flask-Session's method commits the app's open transaction.
    model = flask_session.model_of(interface)
    table = model.__table__
    factory = flask_session.client_of(interface).session.session_factory
    # Keys are confidential: with HASH_SESSION_IDS off, they contain session ids.
    with hiding_parameters(), own_transaction(factory, model) as session:
        session.execute(table.delete().where(table.c.session_id.in_(keys)))


@_deletes("PostgreSqlSessionInterface")
def _postgresql(interface: t.Any, keys: Sequence[str]) -> None:
    flask_session.delete_from_postgresql(interface, keys)


@_deletes("MongoDBSessionInterface")
def _mongodb(interface: t.Any, keys: Sequence[str]) -> None:
    flask_session.collection_of(interface).delete_many({"id": {"$in": list(keys)}})


@_deletes("DynamoDBSessionInterface")
def _dynamodb(interface: t.Any, keys: Sequence[str]) -> None:
    # It sends 25 at a time, and repeats what was not processed.
    with flask_session.collection_of(interface).batch_writer() as batch:
        for key in keys:
            batch.delete_item(Key={"id": key})
