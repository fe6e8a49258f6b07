"""Has this user signed in with this browser before?

A signed cookie names the users who have, and outlives every session. It signs in nobody.
"""

from __future__ import annotations

import datetime as dt
import typing as t

from flask import Flask, Response, request

from . import signing

_PURPOSE = "device"

#: The longest that a browser keeps a cookie (RFC 6265bis).
_LIFETIME = dt.timedelta(days=400)

#: How many users one browser remembers; a cookie holds no more than 4096 bytes.
_USERS = 10


def cookie_name(app: Flask) -> str:
    return f"{app.config['SESSION_COOKIE_NAME']}_device"


def is_known_to(app: Flask, user_id: t.Any) -> bool:
    """Whether the browser says, and we have signed, that this user has signed in with it."""
    return str(user_id) in _users(app)


def make_known_to(app: Flask, response: Response, user_id: t.Any) -> None:
    """Let the browser say so from now on, for as long as it keeps a cookie."""
    others = [user for user in _users(app) if user != str(user_id)]
    interface = app.session_interface
    # Older releases of Flask and Werkzeug don't know it.
    partitioned = {"partitioned": True} if app.config.get("SESSION_COOKIE_PARTITIONED") else {}
    response.set_cookie(
        cookie_name(app),
        signing.sign(app, [*others, str(user_id)][-_USERS:], purpose=_PURPOSE),
        max_age=_LIFETIME,
        domain=interface.get_cookie_domain(app),
        path=interface.get_cookie_path(app),
        secure=interface.get_cookie_secure(app),
        httponly=True,
        samesite=interface.get_cookie_samesite(app) or "Lax",
        **partitioned,
    )


def _users(app: Flask) -> list[str]:
    value = request.cookies.get(cookie_name(app), "")
    return t.cast("list[str]", signing.read(app, value, purpose=_PURPOSE) or [])
