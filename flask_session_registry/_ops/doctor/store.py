"""The session store of the app: whether it answers, keeps its entries and has a timeout."""

from __future__ import annotations

import secrets
import typing as t
from collections.abc import Iterator
from pathlib import Path

from flask import Flask

from ..._app import Registry
from ..._request import store_keys
from .findings import Finding, error, warning
from .timeouts import lacks_timeout


def examine(app: Flask, registry: Registry) -> Iterator[Finding]:
    interface: t.Any = app.session_interface
    if not store_keys.are_on_server(interface):
        return
    # A random key: no such entry exists.
    key = t.cast(str, store_keys.store_id(interface, secrets.token_urlsafe(32)))
    try:
        registry.entries.delete([key])
    except Exception as failure:
        yield error(
            f"The session store can't be reached ({type(failure).__name__}).",
            "Check that it is running and that its settings ('SESSION_…') are correct.",
        )
    else:
        yield from _examine_mongodb(interface)
    cache: t.Any = getattr(interface, "cache", None)
    if _is_a(cache, "SimpleCache"):
        yield warning(
            "Sessions are in the memory of one process: other processes and commands can't find"
            " them.",
            "Use files or a server, except in tests.",
        )
    if _is_a(cache, "FileSystemCache"):
        yield from _examine_files(app, interface, cache)
    if lacks_timeout(getattr(interface, "client", getattr(cache, "_write_client", None))):
        yield warning(
            "The client of the session store would wait forever for a server that hangs, and every"
            " request with it.",
            "Set a timeout: redis-py's 'socket_timeout'; pymemcache's 'timeout' and"
            " 'connect_timeout'.",
        )


def _is_a(instance: object, name: str) -> bool:
    """Like ``isinstance``, by name: don't import a client library that the app doesn't use."""
    return any(cls.__name__ == name for cls in type(instance).__mro__)


def _examine_mongodb(interface: t.Any) -> Iterator[Finding]:
    if not _is_a(interface, "MongoDBSessionInterface"):
        return
    indexes = interface.store.index_information().values()
    if not any(index["key"][0][0] == "id" for index in indexes):
        yield warning(
            "The MongoDB collection of the sessions has no index on 'id', so each request scans all"
            " of it.",
            "Create one: 'create_index(\"id\")'.",
        )


def _examine_files(app: Flask, interface: t.Any, cache: t.Any) -> Iterator[Finding]:
    is_deprecated = _is_a(interface, "FileSystemSessionInterface")
    if not Path(cache._path).is_absolute() or (
        # Its default is relative to the working directory.
        is_deprecated and not app.config.get("SESSION_FILE_DIR")
    ):
        yield error(
            "The location of the session files depends on the folder that a process is started in:"
            " a command started in another one deletes nothing.",
            "Set an absolute path: "
            + ("'SESSION_FILE_DIR'." if is_deprecated else "'FileSystemCache(\"/…\")'."),
        )
    if cache._threshold != 0:
        yield error(
            f"The number of session files is limited to {cache._threshold}: beyond that, users are"
            " signed out at random.",
            "Set " + ("'SESSION_FILE_THRESHOLD'" if is_deprecated else "'threshold'") + " to 0.",
        )
