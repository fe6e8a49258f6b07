"""The signed cookie that records which users have signed in with a browser before.

It outlives every session. It doesn't sign in or name any user: it holds keyed digests of the users'
keys, so that reading it on a shared computer reveals none of them.
"""

from __future__ import annotations

import datetime as dt
import typing as t

from flask import Flask, Response, request

from . import signing

_PURPOSE = "devices"

#: The maximum lifetime of a cookie in a browser (RFC 6265bis).
_LIFETIME = dt.timedelta(days=400)

#: The number of users one browser remembers; a cookie holds no more than 4096 bytes.
_USERS = 10


def cookie_name(app: Flask) -> str:
    return f"{app.config['SESSION_COOKIE_NAME']}_device"


def has_user(app: Flask, user_id: t.Any) -> bool:
    """Return whether a valid cookie says that this user has signed in with this browser."""
    return not set(_digests(app, user_id)).isdisjoint(_kept(app))


def add_user(app: Flask, response: Response, user_id: t.Any) -> None:
    """Record in the cookie that this user has signed in with this browser."""
    digests = _digests(app, user_id)
    others = [digest for digest in _kept(app) if digest not in digests]
    interface = app.session_interface
    # Older releases of Flask and Werkzeug don't support it.
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
    return t.cast("list[str]", signing.unsign(app, value, purpose=_PURPOSE) or [])
