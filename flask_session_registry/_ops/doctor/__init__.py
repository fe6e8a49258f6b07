"""``flask sessions doctor``: what is wrong with an installation, as seen from inside the app.

No finding shows a secret, a session id or the address of a server, which may contain its password.
Of an error that a library raises, only the class is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask

from ..._app import get_registry
from ...errors import ConfigurationError
from . import cookies, page, redis, secret_keys, settings, sql, store
from .findings import Finding, error

__all__ = ["Finding", "examine"]


def examine(app: Flask) -> Iterator[Finding]:
    """Yield everything that is wrong with the registry on the current app."""
    yield from secret_keys.examine(app)
    yield from cookies.examine(app)
    try:
        registry = get_registry()
    except ConfigurationError as misconfiguration:
        # Its message is two sentences: the problem, and the remedy.
        problem, _, remedy = str(misconfiguration).partition(". ")
        yield error(f"{problem}.", remedy)
        return
    yield from settings.examine(app, registry)
    yield from page.examine(app)
    records = sql if registry.settings.records == "sql" else redis
    yield from records.examine(app, registry)
    yield from store.examine(app, registry)
