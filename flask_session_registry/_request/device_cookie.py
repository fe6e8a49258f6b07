"""Has this user signed in with this browser before?

A signed cookie says so, and outlives every session. It signs in nobody, and names nobody: it keeps
keyed digests of the users' keys, so that who reads it on a shared computer learns no user.
"""

from __future__ import annotations

import datetime as dt
import typing as t

from flask import Flask, Response, request

from . import signing

_PURPOSE = "devices"

#: The longest that a browser keeps a cookie (RFC 6265bis).
_LIFETIME = dt.timedelta(days=400)

#: How many users one browser remembers; a cookie holds no more than 4096 bytes.
_USERS = 10


def cookie_name(app: Flask) -> str:
    return f"{app.config['SESSION_COOKIE_NAME']}_device"


def is_known_to(app: Flask, user_id: t.Any) -> bool:
    """Whether the browser says, and we have signed, that this user has signed in with it."""
    return not set(_digests(app, user_id)).isdisjoint(_kept(app))


def make_known_to(app: Flask, response: Response, user_id: t.Any) -> None:
    """Let the browser say so from now on, for as long as it keeps a cookie."""
    digests = _digests(app, user_id)
    others = [digest for digest in _kept(app) if digest not in digests]
    interface = app.session_interface
    # Older releases of Flask and Werkzeug don't know it.
    partitioned = {"partitioned": True} if app.config.get("SESSION_COOKIE_PARTITIONED") else {}
    response.set_cookie(
        cookie_name(app),
        signing.sign(app, [*others, digests[0]][-_USERS:], purpose=_PURPOSE),
        max_age=_LIFETIME,
        domain=interface.get_cookie_domain(app),
        path=interface.get_cookie_path(app),
        secure=interface.get_cookie_secure(app),
        httponly=True,
        samesite=interface.get_cookie_samesite(app) or "Lax",
        **partitioned,
    )


def _digests(app: Flask, user_id: t.Any) -> list[str]:
    return signing.digests(app, str(user_id), purpose=_PURPOSE)


def _kept(app: Flask) -> list[str]:
    value = request.cookies.get(cookie_name(app), "")
    return t.cast("list[str]", signing.read(app, value, purpose=_PURPOSE) or [])
