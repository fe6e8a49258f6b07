"""The session as it was at the beginning of the request."""

from __future__ import annotations

import typing as t

from flask import Flask, request, session

from .._app import Registry
from .._compat.flask import unwrap


def session_at_the_beginning(registry: Registry, app: Flask) -> dict[str, t.Any]:
    """Open the session of the browser's cookie again, whatever this request has done to it since.

    Empty if that can't be known: a session that another library manages, for a web socket, has
    gone through other requests since.
    """
    # A store in SQL uses the app's session, which may hold unfinished work.
    with registry.db_session.no_autoflush:
        opened = app.session_interface.open_session(app, unwrap(request))
    return dict(opened) if opened is not None and type(opened) is type(unwrap(session)) else {}
