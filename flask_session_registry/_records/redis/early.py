"""Commands that are sent before anything else is waited for, and whose replies are read later."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import typing as t
import weakref

_places: weakref.WeakKeyDictionary[t.Any, threading.Semaphore] = weakref.WeakKeyDictionary()


class EarlyReply:
    """The reply to a command that has been sent. It is on its own connection until it is read."""

    def __init__(self, pool: t.Any, connection: t.Any, places: threading.Semaphore) -> None:
        self._pool = pool
        self._places = places
        self._connection = connection
        self._is_read = False

    def read(self) -> t.Any:
        """Wait for the reply. Call it once."""
        try:
            reply = self._connection.read_response()
            self._is_read = True
        finally:
            self.close()
        return reply

    def close(self) -> None:
        """Give the connection back; first close it if it has an unread reply."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        try:
            if not self._is_read or _is_moving(self._connection):
                self._connection.disconnect()
        finally:
            pool.release(self._connection)
            self._places.release()

    def may_be_retried(self, error: Exception) -> bool:
        """Return whether the client itself would send the command again after this error.

        Without retries, a Redis that hangs must not be waited for twice.
        """
        if type(error).__name__ != "TimeoutError":
            return True
        count = getattr(getattr(self._connection, "retry", None), "get_retries", lambda: 0)
        return bool(count() or getattr(self._connection, "retry_on_timeout", False))


def send(client: t.Any, *command: t.Any) -> EarlyReply | None:
    """Send a command, and don't wait for its reply.

    ``None``: this client sends commands only one after the other, or it could not be sent.
    """
    pool = _pool_of(client)
    if pool is None:
        return None
    # The others must find a connection while these are held until the database has answered.
    places = _places_in(pool)
    if not places.acquire(blocking=False):
        return None
    kind: t.Any = type(pool)
    try:
        connection = pool.get_connection(*command[: _takes_command(kind)])
    except BaseException:
        # So would any other command fail: the client doesn't try it again, either.
        places.release()
        raise
    reply = EarlyReply(pool, connection, places)
    is_sent = False
    try:
        with contextlib.suppress(Exception):
            connection.send_command(*command)
            is_sent = True
    finally:
        if not is_sent:
            reply.close()
    return reply if is_sent else None


def _places_in(pool: t.Any) -> threading.Semaphore:
    """Return what counts how many more connections of a pool may be held: half of all."""
    places = _places.get(pool)
    if places is None:
        places = _places.setdefault(pool, threading.Semaphore(pool.max_connections // 2))
    return places


def _pool_of(client: t.Any) -> t.Any:
    """Return the pool of a client of redis-py for one server; ``None`` for any other client."""
    execute = getattr(client, "execute_command", None)
    # Neither of a cluster, nor of a subclass or a tracer that wants to see each command.
    if getattr(execute, "__module__", None) != "redis.client":
        return None
    if getattr(client, "connection", None) is not None:
        return None
    pool = client.connection_pool
    # Whoever holds a connection of a blocking pool must not wait for the database: its connections
    # may be held by others, who wait for this pool.
    return None if hasattr(pool, "timeout") else pool


@functools.cache
def _takes_command(pool_type: type[t.Any]) -> bool:
    """Return whether a pool must be told the command, as before redis-py 5.3."""
    parameters = inspect.signature(pool_type.get_connection).parameters
    name = parameters.get("command_name")
    return name is not None and name.default is name.empty


def _is_moving(connection: t.Any) -> bool:
    """Return whether the server wants its clients to connect again."""
    should_reconnect = getattr(connection, "should_reconnect", None)
    return should_reconnect is not None and bool(should_reconnect())
