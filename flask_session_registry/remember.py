"""The "remember me" cookie, bound to its user session.

Flask-Login's cookie says who the user is, the same on every device, and can't be revoked. So a
second cookie goes beside it, signed, with the marker of the user session. Without it, the first is
worth nothing.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import time
import typing as t
import uuid

from flask import Flask, Response, request, session
from flask_login import COOKIE_DURATION, COOKIE_HTTPONLY, COOKIE_NAME, COOKIE_SECURE
from flask_login.utils import decode_cookie, encode_cookie
from itsdangerous import BadSignature, URLSafeSerializer
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.http import dump_cookie, parse_date

from . import clock
from .state import Current, read_marker


class Companion(t.NamedTuple):
    """What the second cookie says."""

    id: uuid.UUID
    generation: int
    #: When it expires, in seconds since the epoch.
    until: int


class Offer(t.NamedTuple):
    """A "remember me" cookie that an answer is about to give, or to take away."""

    #: The header behind the cookie's value: expiry, domain, path, flags.
    attributes: str
    #: Empty: the cookie is taken away.
    value: str
    until: dt.datetime


def cookie_name(app: Flask) -> str:
    return t.cast(str, app.config.get("REMEMBER_COOKIE_NAME", COOKIE_NAME))


def companion_name(app: Flask) -> str:
    return f"{cookie_name(app)}_session"


def id_of(app: Flask, user: t.Any) -> str:
    """What Flask-Login calls this user, in its cookie and in the session."""
    return str(getattr(user, app.login_manager.id_attribute)())  # type: ignore[attr-defined]


def is_offered(app: Flask) -> bool:
    """Whether the browser has sent a "remember me" cookie (and nobody has refused it yet)."""
    return cookie_name(app) in request.cookies


def is_of_another(app: Flask, user: str) -> bool:
    """Whether the browser has sent a "remember me" cookie that names somebody else."""
    cookie = request.cookies.get(cookie_name(app))
    return cookie is not None and cookie.rpartition("|")[0] != user


def claimed_user(app: Flask) -> str | None:
    """The user that Flask-Login's cookie names; ``None`` if it is forged."""
    try:
        return t.cast("str | None", decode_cookie(request.cookies[cookie_name(app)]))
    except (TypeError, ValueError):
        return None


def companion(app: Flask) -> Companion | None:
    """What the browser's second cookie says; ``None`` if it is missing, forged or expired."""
    value = request.cookies.get(companion_name(app))
    if not value:
        return None
    try:
        carried, until = _serializer(app).loads(value)
    except (BadSignature, TypeError, ValueError):
        return None
    known = read_marker(carried)
    if known is None or not isinstance(until, int) or until <= time.time():
        return None
    return Companion(*known, until)


def block(app: Flask) -> None:
    """Let nothing that comes later in this request see the two cookies."""
    refused = (cookie_name(app), companion_name(app))
    kept = [item for item in request.cookies.items(multi=True) if item[0] not in refused]
    request.cookies = ImmutableMultiDict(kept)


def offer(app: Flask, response: Response) -> Offer | None:
    """What this answer does to the "remember me" cookie; ``None``: it leaves it alone."""
    start = f"{cookie_name(app)}="
    for header in reversed(response.headers.getlist("Set-Cookie")):
        if header.startswith(start):
            value, _, attributes = header.partition(";")
            value = value.removeprefix(start).strip('"')
            fields = {
                name.strip().lower(): content
                for name, _, content in (part.partition("=") for part in attributes.split(";"))
            }
            until = parse_date(fields.get("expires")) or clock.now() + COOKIE_DURATION
            return Offer(attributes, value, until)
    return None


def accompany(app: Flask, response: Response, offer: Offer, current: Current | None) -> None:
    """Treat the second cookie as this answer treats the first, with the same attributes."""
    value = ""
    if offer.value and current is not None:
        value = _serializer(app).dumps([current.marker, int(offer.until.timestamp())])
    response.headers.add("Set-Cookie", f"{companion_name(app)}={value};{offer.attributes}")


def renew(app: Flask, response: Response, current: Current) -> None:
    """Give a browser that has both cookies new ones after a rotation, until the same day."""
    held = companion(app)
    if held is None:
        return
    until = dt.datetime.fromtimestamp(held.until, dt.timezone.utc)
    carried = _serializer(app).dumps([current.marker, held.until])
    _set(app, response, cookie_name(app), encode_cookie(str(session["_user_id"])), until)
    _set(app, response, companion_name(app), carried, until)


def forget(app: Flask, response: Response) -> None:
    """Take both cookies away from the browser."""
    epoch = dt.datetime.fromtimestamp(0, dt.timezone.utc)
    for name in (cookie_name(app), companion_name(app)):
        _set(app, response, name, "", epoch)


def _set(app: Flask, response: Response, name: str, value: str, until: dt.datetime) -> None:
    config = app.config
    response.headers.add(
        "Set-Cookie",
        dump_cookie(
            name,
            value,
            expires=until,
            domain=config.get("REMEMBER_COOKIE_DOMAIN"),
            path=config.get("REMEMBER_COOKIE_PATH", "/"),
            secure=config.get("REMEMBER_COOKIE_SECURE", COOKIE_SECURE),
            httponly=config.get("REMEMBER_COOKIE_HTTPONLY", COOKIE_HTTPONLY),
            samesite=config.get("REMEMBER_COOKIE_SAMESITE"),
        ),
    )


def _serializer(app: Flask) -> URLSafeSerializer:
    keys = [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.secret_key]
    return URLSafeSerializer(
        keys,
        salt="flask-session-registry.remember",
        signer_kwargs={"digest_method": hashlib.sha256},
    )
