"""Clients of servers that have no timeout."""

from __future__ import annotations

import typing as t


def lacks_timeout(client: t.Any) -> bool:
    """Return whether a client of Redis or memcached has no timeout.

    Clients of other libraries are not examined.
    """
    library = type(client).__module__.partition(".")[0]
    if library == "redis":
        return _redis_lacks_timeout(client)
    return library == "pymemcache" and _memcached_lacks_timeout(client)


def _redis_lacks_timeout(client: t.Any) -> bool:
    is_cluster = hasattr(client, "get_nodes")
    nodes = [node.redis_connection for node in client.get_nodes()] if is_cluster else [client]
    pools = [node.connection_pool for node in nodes]
    # Made as the pool makes them, but not opened: only the library knows its default.
    connections = [pool.connection_class(**pool.connection_kwargs) for pool in pools]
    return any(connection.socket_timeout is None for connection in connections)


def _memcached_lacks_timeout(client: t.Any) -> bool:
    client = getattr(client, "_client", client)  # 'RetryingClient' wraps another client.
    options = getattr(client, "default_kwargs", None) or vars(client)
    return options["timeout"] is None or options["connect_timeout"] is None
