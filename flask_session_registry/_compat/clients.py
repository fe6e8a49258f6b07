"""cachelib, and the clients of memcached and Redis that session stores use."""

from __future__ import annotations

import copy
import inspect
import typing as t
from collections.abc import Sequence


def library_of(client: object) -> str:
    """Return the top-level package of the class of a client."""
    return type(client).__module__.partition(".")[0]


# -- Redis ---------------------------------------------------------------------------------------


def is_cluster(client: t.Any) -> bool:
    """Return whether this is a client of a Redis Cluster."""
    return hasattr(client, "get_nodes")


def is_blocking_redis(client: t.Any) -> bool:
    """Return whether this is a client of redis-py, or like it: neither asyncio nor a pipeline."""
    return (
        hasattr(client, "zscan")
        and not inspect.iscoroutinefunction(client.get)
        and not hasattr(client, "command_stack")
        and "asyncio" not in type(client).__module__
    )


def reads_from_replicas(client: t.Any) -> bool:
    """Return whether a client of Redis may read what a replica hasn't been sent yet."""
    return bool(
        getattr(client, "read_from_replicas", False)
        or getattr(client, "load_balancing_strategy", None)
        # Of a pool that Sentinel fills.
        or not getattr(getattr(client, "connection_pool", None), "is_master", True)
    )


def primaries_of(client: t.Any) -> list[t.Any]:
    """Return a client for each server that a client of Redis writes to."""
    if not hasattr(client, "get_primaries"):
        return [client]
    return [node.redis_connection for node in client.get_primaries()]


def _nodes_of(client: t.Any) -> list[t.Any]:
    return [one.redis_connection for one in client.get_nodes()] if is_cluster(client) else [client]


# -- memcached -----------------------------------------------------------------------------------


def delete_from_memcached(client: t.Any, keys: Sequence[str]) -> bool:
    """Delete keys; return ``False`` if the library of this client is unknown.

    Over connections of our own: two threads must not use one of these clients at once, and a
    deletion that hangs is left to its thread.
    """
    library = library_of(client)
    if library == "pymemcache":
        twin = _pymemcache_twin(client)
        # Without a reply it would report success whatever has happened.
        twin.delete_many(keys, noreply=False)
        twin.close()
    elif library == "memcache":
        # This client is a different one in each thread. It hides servers that are down.
        try:
            is_done = client.delete_multi(keys)
            if not all(server.connect() for server in client.servers) or not is_done:
                raise ConnectionError("A memcached server did not answer.")
        finally:
            client.disconnect_all()
    elif library == "pylibmc":
        client.clone().delete_multi(keys)
    else:
        return False
    return True


def _pymemcache_twin(client: t.Any) -> t.Any:
    """Return a pymemcache client of the same servers that shares no connection with this one."""
    client = _without_retries(client)
    twin = copy.copy(client)
    # Failures must be raised.
    twin.ignore_exc = False
    if hasattr(client, "clients"):
        twin.clients = {name: _pymemcache_twin(one) for name, one in client.clients.items()}
        twin._failed_clients = {}
    elif hasattr(client, "client_pool"):
        pool = type(client.client_pool)
        twin.client_pool = pool(twin._create_client, after_remove=lambda one: one.close())
    else:
        twin.sock = None
    return twin


def _without_retries(client: t.Any) -> t.Any:
    """Return the pymemcache client within a ``RetryingClient``."""
    return getattr(client, "_client", client)


# -- timeouts ------------------------------------------------------------------------------------


def waits_forever(client: t.Any) -> bool:
    """Return whether a client of Redis or memcached has no timeout; false for other libraries."""
    library = library_of(client)
    if library == "redis":
        pools = [node.connection_pool for node in _nodes_of(client)]
        # As the pool makes a connection, but without opening it: the default is the library's own.
        connections = [pool.connection_class(**pool.connection_kwargs) for pool in pools]
        return any(connection.socket_timeout is None for connection in connections)
    if library == "pymemcache":
        client = _without_retries(client)
        options = getattr(client, "default_kwargs", None) or vars(client)
        return options["timeout"] is None or options["connect_timeout"] is None
    return False


# -- cachelib ------------------------------------------------------------------------------------


def client_of_cache(cache: t.Any) -> t.Any:
    """Return the client that a cachelib cache of Redis writes with; ``None`` for other caches."""
    return getattr(cache, "_write_client", None)


def folder_of_cache(cache: t.Any) -> str:
    """Return the folder of a ``FileSystemCache``."""
    return t.cast(str, cache._path)


def size_limit_of_cache(cache: t.Any) -> int:
    """Return the number of entries a ``FileSystemCache`` keeps at most; 0 if it keeps all."""
    return t.cast(int, cache._threshold)
