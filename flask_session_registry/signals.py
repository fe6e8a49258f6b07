"""Signals that the registry sends, each with the app as the sender.

An exception in a receiver is logged and goes no further: by then the login or the revocation
stands, and no receiver may undo it.
"""

from __future__ import annotations

import logging
from typing import Any

from blinker import NamedSignal, Namespace
from flask import Flask

_namespace = Namespace()
_log = logging.getLogger("flask_session_registry")

#: A login has been recorded: ``user_session_id``, ``user_id``.
session_registered = _namespace.signal("session-registered")

#: User sessions have ended by a revocation, and that is committed: ``ids`` (a tuple, at most a
#: thousand; a larger revocation sends several), ``user_id``, ``reason``.
session_revoked = _namespace.signal("session-revoked")

#: A request came with a session that no longer stands: ``user_session_id`` (``None`` if it named
#: none), ``reason``.
session_rejected = _namespace.signal("session-rejected")

#: Store entries of ended user sessions could not be deleted: ``ids``, ``error``. They stay
#: pending; the sessions are over all the same.
purge_failed = _namespace.signal("purge-failed")


def send(signal: NamedSignal, app: Flask, **arguments: Any) -> None:
    for receiver in signal.receivers_for(app):
        try:
            receiver(app, **arguments)
        except Exception:
            _log.exception("A receiver of the signal '%s' failed.", signal.name)
