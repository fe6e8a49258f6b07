"""Records a logout at the end of its request."""

from __future__ import annotations

from flask import Flask, session

from .._app import Registry
from . import remember_cookies, store_keys
from .context import RequestContext
from .current_session import CurrentSession
from .marker import MARKER, OTHER


def record_logout(
    app: Flask, registry: Registry, context: RequestContext, current: CurrentSession
) -> None:
    """End the user session that the request has left, and keep the anonymous rest of its data."""
    registry.users.release()
    registry.records.end(current.id, "logged_out")
    context.end_current()
    context.clear_remember_cookie(remember_cookies.is_ours(app))
    if session.get(MARKER) == OTHER:
        return
    session.pop(MARKER, None)
    if session:
        # The rest is an anonymous session: the previous entry is purged with the ended row.
        store_keys.regenerate_id(app.session_interface, session)
