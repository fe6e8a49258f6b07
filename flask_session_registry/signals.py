"""Signals that the registry sends, each with the app as the sender.

An exception in a receiver is logged and doesn't propagate: by then the login or the revocation is
committed, and a receiver must not undo it.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from blinker import NamedSignal, Namespace
from flask import Flask

from ._log import log

_namespace = Namespace()

#: A login was recorded: ``user_session_id``, ``user_id``, ``new_device`` (whether this user was
#: never seen with such a device before; the README has the rule).
session_registered = _namespace.signal("session-registered")

#: A revocation that ended user sessions was committed: ``ids`` (a tuple of at most a thousand; a
#: larger revocation sends several signals), ``user_id``, ``reason``.
session_revoked = _namespace.signal("session-revoked")

#: A request came with a session that isn't active: ``user_session_id`` (``None`` if the session has
#: none), ``reason``.
session_rejected = _namespace.signal("session-rejected")

#: Store entries of ended user sessions could not be deleted: ``ids``, ``error`` (a
#: :exc:`PurgeError`). They stay pending; the sessions have ended regardless.
purge_failed = _namespace.signal("purge-failed")


def send(signal: NamedSignal, app: Flask, **arguments: Any) -> None:
    """Send a signal; log the exceptions of its receivers."""
    for receiver in signal.receivers_for(app):
        try:
            _call(app, receiver, arguments)
        except Exception:
            log.exception("A receiver of the signal '%s' failed.", signal.name)


def _call(app: Flask, receiver: Callable[..., Any], arguments: dict[str, Any]) -> None:
    call = functools.partial(app.ensure_sync(receiver), app, **arguments)
    if not inspect.iscoroutinefunction(receiver):
        call()
        return
    # This thread may run an event loop already, and can't run another.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(contextvars.copy_context().run, call).result()
