"""The session store of the app: whether it answers, keeps its entries and has a timeout."""

from __future__ import annotations

import secrets
import typing as t
from collections.abc import Iterator
from pathlib import Path

from flask import Flask

from ..._app import Registry
from ..._compat import clients, flask_session
from ..._request import store_keys
from .findings import Finding, error, warning


def examine(app: Flask, registry: Registry) -> Iterator[Finding]:
    interface: t.Any = app.session_interface
    # A random key: no such entry exists.
    key = store_keys.store_key(interface, secrets.token_urlsafe(32))
    if key is None:
        # Sessions are kept in the browser.
        return
    try:
        registry.entries.delete([key])
    except Exception as failure:
        yield error(
            f"The session store can't be reached ({type(failure).__name__}).",
            "Check that it is running and that its settings ('SESSION_…') are correct.",
        )
    else:
        yield from _examine_mongodb(interface)
    cache = flask_session.cache_of(interface)
    if flask_session.is_kind(cache, "SimpleCache"):
        yield warning(
            "Sessions are in the memory of one process: other processes and commands can't find"
            " them.",
            "Use files or a server, except in tests.",
        )
    if flask_session.is_kind(cache, "FileSystemCache"):
        yield from _examine_files(app, interface, cache)
    client = flask_session.client_of(interface)
    if client is None:
        client = clients.client_of_cache(cache)
    if clients.waits_forever(client):
        yield warning(
            "The client of the session store would wait forever for a server that hangs, and every"
            " request with it.",
            "Set a timeout: redis-py's 'socket_timeout'; pymemcache's 'timeout' and"
            " 'connect_timeout'.",
        )


def _examine_mongodb(interface: t.Any) -> Iterator[Finding]:
    if not flask_session.is_kind(interface, "MongoDBSessionInterface"):
        return
    indexes = flask_session.collection_of(interface).index_information().values()
    if not any(index["key"][0][0] == "id" for index in indexes):
        yield warning(
            "The MongoDB collection of the sessions has no index on 'id', so each request scans all"
            " of it.",
            "Create one: 'create_index(\"id\")'.",
        )


def _examine_files(app: Flask, interface: t.Any, cache: t.Any) -> Iterator[Finding]:
    is_deprecated = flask_session.is_kind(interface, "FileSystemSessionInterface")
    if not Path(clients.folder_of_cache(cache)).is_absolute() or (
        # Its default is relative to the working directory.
        is_deprecated and not app.config.get("SESSION_FILE_DIR")
    ):
        yield error(
            "The location of the session files depends on the folder that a process is started in:"
            " a command started in another one deletes nothing.",
            "Set an absolute path: "
            + ("'SESSION_FILE_DIR'." if is_deprecated else "'FileSystemCache(\"/…\")'."),
        )
    limit = clients.size_limit_of_cache(cache)
    if limit != 0:
        yield error(
            f"The number of session files is limited to {limit}: beyond that, users are"
            " signed out at random.",
            "Set " + ("'SESSION_FILE_THRESHOLD'" if is_deprecated else "'threshold'") + " to 0.",
        )
