"""User sessions in Redis: whether they can be read, and whether Redis keeps them."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

from flask import Flask

from ... import _diagnosis as diagnosis
from ..._app import Registry
from ..._compat import clients
from . import overdue
from .findings import Finding, error, error_of, warning


def examine(app: Flask, registry: Registry) -> Iterator[Finding]:
    try:
        diagnosis.read_redis(registry)
        findings = [*_examine_server(registry)]
    except Exception as failure:
        yield error_of(diagnosis.redis_unreachable(failure.__context__ or failure))
        return
    yield from findings
    try:
        yield from list(overdue.examine(app, registry))
    except Exception as failure:
        yield error(
            f"Could not check for overdue maintenance ({type(failure).__name__}).",
            "See the log of the server for the cause.",
        )


def _examine_server(registry: Registry) -> Iterator[Finding]:
    client = t.cast(t.Any, registry.redis).client
    nodes = clients.primaries_of(client)
    if any(_setting(node, "maxmemory-policy") not in (None, "noeviction") for node in nodes):
        yield warning(
            "Redis may drop user sessions when its memory is full, which signs users out.",
            "Set 'maxmemory-policy' to 'noeviction', on a Redis dedicated to them.",
        )
    if any(_setting(node, "appendonly") == "no" for node in nodes):
        yield warning(
            "Redis writes no append-only file: a restart signs users out, or restores sessions that"
            " were revoked since the last snapshot, except those revoked by a password change.",
            "Set 'appendonly' to 'yes'.",
        )
    if clients.waits_forever(client):
        yield warning(
            "The client of the user sessions would wait forever for a Redis that hangs, and every"
            " request with it.",
            "Give it a 'socket_timeout'.",
        )


def _setting(node: t.Any, name: str) -> str | None:
    """Return a setting of a Redis; ``None`` if it is not disclosed, as by hosted ones."""
    try:
        found = node.config_get(name)
    except Exception:
        return None
    texts = [value.decode() if isinstance(value, bytes) else value for value in found.values()]
    return texts[0] if texts else None
