"""Deleting the entries of ended sessions from the session store."""

from __future__ import annotations

import contextvars
import copy
import threading
import time
import typing as t
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import sqlalchemy as sa
from flask.sessions import SessionInterface
from sqlalchemy.dialects import postgresql

from .._records.sql.transactions import own_transaction

#: For how many seconds the deletion of a batch may hold up whoever waits for it.
TIMEOUT = 3.0

#: For how many seconds a store that hangs is not asked again.
_PAUSE = 60.0

#: How many threads may hang at once.
_MOST_HANGING = 10

Delete = Callable[[t.Any, Sequence[str]], None]
Key = Callable[[t.Any, str], str]


class SessionStore(t.NamedTuple):
    """A kind of session store."""

    #: Deletes entries, given the interface and their keys; ``None``: nothing is stored.
    delete: Delete | None
    #: Makes the key of an entry, given the interface and a session id.
    key: Key


def _key_of_flask_session(interface: t.Any, session_id: str) -> str:
    return t.cast(str, interface._get_store_id(session_id))


# By name, so that no client library is imported that the app does not use.
_known: dict[str, SessionStore] = {
    "SecureCookieSessionInterface": SessionStore(None, _key_of_flask_session),
}
_registered: dict[type, SessionStore] = {}


def register_session_store(
    interface: type[SessionInterface],
    delete: Delete | None,
    *,
    key: Key = _key_of_flask_session,
) -> None:
    """Tell the registry about a session interface that is neither Flask's nor Flask-Session's.

    Call it before ``init_app``. A subclass of one of theirs is known already, and registered only
    to be deleted from in another way. The sessions of a store on a server have a ``sid`` that can
    be set: the registry gives them new ones.

    :param delete: called with the interface and up to a thousand keys, to delete these entries. It
        deletes all of them or raises; an entry that is gone already is no error. It is called in a
        thread of its own, with the context of the app, after the commit that ended the sessions.
        ``None``: sessions of this kind are all in the browser, and nothing is stored.
    :param key: called with the interface and a session id, for the key of its entry. What it
        returns is kept in the table, and must be no usable cookie: a hash of the session id, say.
        By default the way of Flask-Session, for subclasses of ``ServerSideSessionInterface``.
    """
    _registered[interface] = SessionStore(delete, key)


def store_of(interface: SessionInterface) -> SessionStore | None:
    """What kind of store an interface keeps its sessions in; ``None``: an unknown one."""
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
        """Delete entries; one that is gone already is no error.

        Never within a transaction of the app: it asks a server. A server that hangs, with a client
        that would wait for ever, is given up after a while; and asked again when it has answered,
        or a minute later, because it may be one connection that never will.

        :param patience: for how many seconds to wait at most; by default :data:`PATIENCE`.
        :raises TimeoutError: the store did not answer in time.
        :raises Exception: whatever the client of the store raises.
        """
        if self._delete is None or not keys:
            return
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        is_too_early = self._hanging and time.monotonic() < self._asks_again_at
        if is_too_early or len(self._hanging) >= _MOST_HANGING:
            raise TimeoutError("The session store has not answered yet.")
        outcome: Future[None] = Future()
        # In the context of the app, which a store in SQL asks for its engine.
        run = contextvars.copy_context().run
        thread = threading.Thread(
            target=run, args=(self._try, list(dict.fromkeys(keys)), outcome), daemon=True
        )
        thread.start()
        thread.join(TIMEOUT if timeout is None else timeout)
        if not outcome.done():
            self._hanging.append(thread)
            self._asks_again_at = time.monotonic() + _PAUSE
            raise TimeoutError("The session store did not answer.")
        outcome.result()

    def _try(self, keys: list[str], outcome: Future[None]) -> None:
        try:
            t.cast(Delete, self._delete)(self._interface, keys)
        except Exception as error:
            outcome.set_exception(error)
        except BaseException as error:
            # A timeout of gevent's, say. Whoever waits has committed, and must not end by it.
            outcome.set_exception(RuntimeError(type(error).__name__))
        else:
            outcome.set_result(None)


# -- the stores of Flask-Session ---------------------------------------------------------------


def _deletes(kind: str) -> Callable[[Delete], Delete]:
    def register(delete: Delete) -> Delete:
        _known[kind] = SessionStore(delete, _key_of_flask_session)
        return delete

    return register


@_deletes("ServerSideSessionInterface")
def _one_by_one(interface: t.Any, keys: Sequence[str]) -> None:
    for key in keys:
        interface._delete_session(key)


@_deletes("RedisSessionInterface")
def _redis(interface: t.Any, keys: Sequence[str]) -> None:
    if hasattr(interface.client, "get_nodes"):
        # A cluster: its keys are spread over the nodes, and each node is asked once.
        pipeline = interface.client.pipeline(transaction=False)
        for key in keys:
            pipeline.unlink(key)
        pipeline.execute()
    else:
        interface.client.unlink(*keys)


@_deletes("MemcachedSessionInterface")
def _memcached(interface: t.Any, keys: Sequence[str]) -> None:
    # Over connections of our own: these clients must not be used by two threads at once, and a
    # deletion that hangs is left to its thread.
    library = type(interface.client).__module__.partition(".")[0]
    if library == "pymemcache":
        client = _twin(interface.client)
        # Without a reply it would say that all is well, whatever has happened.
        client.delete_many(keys, noreply=False)
        client.close()
    elif library == "memcache":
        # This client is another one in each thread. It is silent about servers that are down.
        client = interface.client
        try:
            is_done = client.delete_multi(keys)
            if not all(server.connect() for server in client.servers) or not is_done:
                raise ConnectionError("A memcached server did not answer.")
        finally:
            client.disconnect_all()
    elif library == "pylibmc":
        interface.client.clone().delete_multi(keys)
    else:
        _one_by_one(interface, keys)


def _twin(client: t.Any) -> t.Any:
    """A pymemcache client of the same servers, without the connections of this one."""
    client = getattr(client, "_client", client)  # What retries is around another one.
    twin = copy.copy(client)
    # It is to tell what fails.
    twin.ignore_exc = False
    if hasattr(client, "clients"):
        twin.clients = {name: _twin(one) for name, one in client.clients.items()}
        twin._failed_clients = {}
    elif hasattr(client, "client_pool"):
        pool = type(client.client_pool)
        twin.client_pool = pool(twin._create_client, after_remove=lambda one: one.close())
    else:
        twin.sock = None
    return twin


@_deletes("CacheLibSessionInterface")
@_deletes("FileSystemSessionInterface")
def _cachelib(interface: t.Any, keys: Sequence[str]) -> None:
    deleted = interface.cache.delete_many(*keys)
    left = set(keys).difference(deleted)
    if any(interface.cache.has(key) for key in left):
        raise OSError("The cache did not delete every entry.")


@_deletes("SqlAlchemySessionInterface")
def _sqlalchemy(interface: t.Any, keys: Sequence[str]) -> None:
    # On a connection of our own: Flask-Session's way commits whatever the app has open.
    model = interface.sql_session_model
    table = model.__table__
    try:
        with own_transaction(interface.client.session.session_factory, model) as session:
            session.execute(table.delete().where(table.c.session_id.in_(keys)))
    except sa.exc.StatementError as error:
        # The keys are nobody's business; with HASH_SESSION_IDS off they are session ids.
        error.hide_parameters = True
        raise


@_deletes("PostgreSqlSessionInterface")
def _postgresql(interface: t.Any, keys: Sequence[str]) -> None:
    dialect: t.Any = postgresql.dialect
    name = dialect().identifier_preparer.format_table(
        sa.table(interface._table, schema=interface._schema)
    )
    deletion = f"DELETE FROM {name} WHERE session_id = ANY(%s)"  # noqa: S608 -- it is quoted
    with interface._get_cursor() as cursor:
        cursor.execute(deletion, (list(keys),))


@_deletes("MongoDBSessionInterface")
def _mongodb(interface: t.Any, keys: Sequence[str]) -> None:
    interface.store.delete_many({"id": {"$in": list(keys)}})


@_deletes("DynamoDBSessionInterface")
def _dynamodb(interface: t.Any, keys: Sequence[str]) -> None:
    # Twenty-five to a request, and what was not processed once more.
    with interface.store.batch_writer() as batch:
        for key in keys:
            batch.delete_item(Key={"id": key})
