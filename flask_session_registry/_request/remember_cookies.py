"""The "remember me" cookie, bound to its user session.

Flask-Login's cookie says who the user is, the same on every device, and can't be revoked. So a
second cookie goes beside it, signed, with the marker of the user session. Without it, the first is
worth nothing.
"""

from __future__ import annotations

import datetime as dt
import time
import typing as t
import uuid

from flask import Flask, Response, request, session
from flask_login import COOKIE_DURATION, COOKIE_HTTPONLY, COOKIE_NAME, COOKIE_SECURE
from flask_login.utils import decode_cookie, encode_cookie
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.http import dump_cookie, parse_date

from .. import _clock as clock
from . import signing
from .context import Current, read_marker

_PURPOSE = "remember"


class BindingCookie(t.NamedTuple):
    """What the second cookie says."""

    id: uuid.UUID
    generation: int
    #: When it expires, in seconds since the epoch.
    until: int


class RememberCookieChange(t.NamedTuple):
    """A "remember me" cookie that an answer is about to give, or to take away."""

    #: The header behind the cookie's value: expiry, domain, path, flags.
    attributes: str
    #: Empty: the cookie is taken away.
    value: str
    until: dt.datetime

    def __repr__(self) -> str:
        return f"Offer(until={self.until!r})"


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


def is_ours(app: Flask) -> bool:
    """Whether the browser has sent a "remember me" cookie that this app has signed.

    Another app on the same host may have given it one of the same name, which is not ours to clear.
    With an earlier key it is ours, though Flask-Login refuses it.
    """
    value = request.cookies.get(cookie_name(app), "")
    keys = (None, *(app.config.get("SECRET_KEY_FALLBACKS") or ()))
    return any(_decoded(value, key) is not None for key in keys)


def is_alone(app: Flask) -> bool:
    """Whether the browser has sent a "remember me" cookie and nothing beside it."""
    return is_offered(app) and companion_name(app) not in request.cookies


def is_of_another(app: Flask, user: str) -> bool:
    """Whether the browser has sent a "remember me" cookie that names somebody else."""
    cookies, name = request.cookies, cookie_name(app)
    return name in cookies and cookies[name].rpartition("|")[0] != user


def claimed_user(app: Flask) -> str | None:
    """The user that Flask-Login's cookie names; ``None`` if it is forged, or there is none."""
    return _decoded(request.cookies.get(cookie_name(app), ""))


def binding_cookie(app: Flask) -> BindingCookie | None:
    """What the browser's second cookie says; ``None`` if it is missing, forged or expired."""
    value = request.cookies.get(companion_name(app), "")
    try:
        carried, until = signing.read(app, value, purpose=_PURPOSE)
    except (TypeError, ValueError):
        return None
    known = read_marker(carried)
    if known is None or not isinstance(until, int) or until <= time.time():
        return None
    return BindingCookie(*known, until)


def block(app: Flask) -> None:
    """Let nothing that comes later in this request see the two cookies."""
    refused = (cookie_name(app), companion_name(app))
    kept = [item for item in request.cookies.items(multi=True) if item[0] not in refused]
    request.cookies = ImmutableMultiDict(kept)


def offer(app: Flask, response: Response) -> RememberCookieChange | None:
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
            return RememberCookieChange(attributes, value, until)
    return None


def withdraw(app: Flask, response: Response) -> None:
    """Let this answer leave the "remember me" cookie alone."""
    start = f"{cookie_name(app)}="
    kept = [one for one in response.headers.getlist("Set-Cookie") if not one.startswith(start)]
    response.headers.setlist("Set-Cookie", kept)


def accompany(
    app: Flask, response: Response, offer: RememberCookieChange, current: Current | None
) -> None:
    """Treat the second cookie as this answer treats the first, with the same attributes."""
    value = ""
    if offer.value and current is not None:
        value = _companion(app, current, int(offer.until.timestamp()))
    response.headers.add("Set-Cookie", f"{companion_name(app)}={value};{offer.attributes}")


def leave_alone(app: Flask, response: Response, offer: RememberCookieChange) -> None:
    """Let this answer give the first cookie only, and take the second one away, if there is one."""
    if companion_name(app) in request.cookies:
        accompany(app, response, offer, None)


def renew(
    app: Flask, response: Response, current: Current, *, until: dt.datetime | None = None
) -> None:
    """Give a browser new ones of both cookies.

    :param until: by default as long as those that it has; if it hasn't both of ours, it is given
        none.
    """
    if until is None:
        held = binding_cookie(app)
        if held is None or not is_ours(app):
            return
        until = dt.datetime.fromtimestamp(held.until, dt.timezone.utc)
    carried = _companion(app, current, int(until.timestamp()))
    _set(app, response, cookie_name(app), encode_cookie(str(session["_user_id"])), until)
    _set(app, response, companion_name(app), carried, until)


def duration(app: Flask) -> dt.timedelta:
    """For how long a browser is remembered."""
    found = app.config.get("REMEMBER_COOKIE_DURATION", COOKIE_DURATION)
    return found if isinstance(found, dt.timedelta) else dt.timedelta(seconds=found)


def forget(app: Flask, response: Response) -> None:
    """Take both cookies away from the browser."""
    for name in (cookie_name(app), companion_name(app)):
        _set(app, response, name, "", clock.EPOCH)


def _decoded(value: str, key: str | bytes | None = None) -> str | None:
    """What a cookie of Flask-Login's says; ``None``: it was not signed with this key.

    :param key: by default the app's own.
    """
    try:
        return t.cast("str | None", decode_cookie(value, key))
    except (TypeError, ValueError):
        return None


def _companion(app: Flask, current: Current, until: int) -> str:
    return signing.sign(app, [current.marker, until], purpose=_PURPOSE)


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
