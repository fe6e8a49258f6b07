"""Settings of the registry that weaken it."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask

from ..._app import Registry
from ..._request import store_keys
from .findings import Finding, warning


def examine(app: Flask, registry: Registry) -> Iterator[Finding]:
    settings = registry.settings
    if not settings.hash_session_ids and store_keys.is_server_side(app.session_interface):
        yield warning(
            "'SESSION_REGISTRY_HASH_SESSION_IDS' is off: anyone with a dump of the session store"
            " can hijack its sessions.",
            "Turn it on. This ends every session in the store.",
        )
    if not settings.password_attribute:
        yield warning(
            "'SESSION_REGISTRY_PASSWORD_ATTRIBUTE' is None: a password change ends no session.",
            "Name the attribute that holds the password hash, or whatever else users sign in with.",
        )
    elif not settings.revoke_on_password_change:
        yield warning(
            "'SESSION_REGISTRY_REVOKE_ON_PASSWORD_CHANGE' is off: a password change outside a"
            " decorated view ends the current session too.",
            "Turn it on, or decorate every such view with '@sessions.revoke_on_password_change'.",
        )
