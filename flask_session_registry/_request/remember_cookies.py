"""The "remember me" cookie, bound to its user session.

Flask-Login's cookie names the user. It is the same on every device, and can't be revoked. So it is
accompanied by a second, signed cookie with the marker of the user session: the binding cookie.
Without that, the first is worthless.
"""

from __future__ import annotations

import datetime as dt
import time
import typing as t

from flask import Flask, Response, request, session
from flask_login import COOKIE_DURATION, COOKIE_HTTPONLY, COOKIE_NAME, COOKIE_SECURE
from flask_login.utils import decode_cookie, encode_cookie
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.http import dump_cookie, parse_date
from werkzeug.wrappers import Request

from .. import _clock as clock
from .._compat.flask_login import USER_ID
from . import signing
from .current_session import CurrentSession
from .marker import Marker, parse_marker

_PURPOSE = "remember"


class BindingCookie(t.NamedTuple):
    """The content of a binding cookie."""

    #: The session that the browser comes back to.
    known: Marker
    #: When it expires, in seconds since the epoch.
    until: int


class RememberCookieChange(t.NamedTuple):
    """What a response does to the "remember me" cookie: set it or delete it."""

    #: The rest of the header after the value: expiry, domain, path, flags.
    attributes: str
    #: Empty if the cookie is deleted.
    value: str
    until: dt.datetime

    def __repr__(self) -> str:
        return f"RememberCookieChange(until={self.until!r})"


def cookie_name(app: Flask) -> str:
    name: str = app.config.get("REMEMBER_COOKIE_NAME", COOKIE_NAME)
    return name


def binding_cookie_name(app: Flask) -> str:
    return f"{cookie_name(app)}_session"


def is_sent(app: Flask) -> bool:
    """Return whether the browser has sent a "remember me" cookie, and it hasn't been hidden."""
    return cookie_name(app) in request.cookies


def is_ours(app: Flask) -> bool:
    """Return whether the browser has sent a "remember me" cookie that this app has signed.

    Another app on the same host may have set one of the same name, which we must not clear. One
    signed with an earlier key is ours, although Flask-Login refuses it.
    """
    value = request.cookies.get(cookie_name(app), "")
    keys = (None, *(app.config.get("SECRET_KEY_FALLBACKS") or ()))
    return any(_decoded(value, key) is not None for key in keys)


def names_another_user(app: Flask, request: Request, user: str) -> bool:
    """Return whether the browser has sent a "remember me" cookie that names another user."""
    cookies, name = request.cookies, cookie_name(app)
    return name in cookies and cookies[name].rpartition("|")[0] != user


def claimed_user(app: Flask) -> str | None:
    """Return the user that Flask-Login's cookie names; ``None`` if it is forged or missing."""
    return _decoded(request.cookies.get(cookie_name(app), ""))


def binding_cookie(app: Flask) -> BindingCookie | None:
    """Return the browser's binding cookie; ``None`` if it is missing, forged or expired."""
    value = request.cookies.get(binding_cookie_name(app), "")
    try:
        carried, until = signing.unsign(app, value, purpose=_PURPOSE)
    except (TypeError, ValueError):
        return None
    known = parse_marker(carried)
    if known is None or not isinstance(until, int) or until <= time.time():
        return None
    return BindingCookie(known, until)


def hide(app: Flask) -> None:
    """Hide both cookies from everything that follows in this request."""
    hidden = (cookie_name(app), binding_cookie_name(app))
    kept = [item for item in request.cookies.items(multi=True) if item[0] not in hidden]
    request.cookies = ImmutableMultiDict(kept)


def find_change(app: Flask, response: Response) -> RememberCookieChange | None:
    """Return what this response does to the "remember me" cookie; ``None`` if nothing."""
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


def drop_change(app: Flask, response: Response) -> None:
    """Make this response leave the "remember me" cookie unchanged."""
    start = f"{cookie_name(app)}="
    kept = [one for one in response.headers.getlist("Set-Cookie") if not one.startswith(start)]
    response.headers.setlist("Set-Cookie", kept)


def bind(
    app: Flask, response: Response, change: RememberCookieChange, current: CurrentSession | None
) -> None:
    """Set or delete the binding cookie as this response does the first, with its attributes.

    :param current: the user session to bind to; ``None`` deletes the binding cookie.
    """
    value = ""
    if change.value and current is not None:
        value = _signed(app, current, int(change.until.timestamp()))
    response.headers.add("Set-Cookie", f"{binding_cookie_name(app)}={value};{change.attributes}")


def leave_unbound(app: Flask, response: Response, change: RememberCookieChange) -> None:
    """Set the first cookie only; delete the binding cookie if the browser has one."""
    if binding_cookie_name(app) in request.cookies:
        bind(app, response, change, None)


def reissue(
    app: Flask, response: Response, current: CurrentSession, *, until: dt.datetime | None = None
) -> None:
    """Set both cookies again.

    :param until: when they expire. By default when the browser's present ones do; if it doesn't
        have valid ones of both, nothing is set.
    """
    if until is None:
        held = binding_cookie(app)
        if held is None or not is_ours(app):
            return
        until = dt.datetime.fromtimestamp(held.until, dt.timezone.utc)
    signed = _signed(app, current, int(until.timestamp()))
    _set(app, response, cookie_name(app), encode_cookie(str(session[USER_ID])), until)
    _set(app, response, binding_cookie_name(app), signed, until)


def duration(app: Flask) -> dt.timedelta:
    """Return for how long a browser is remembered."""
    found = app.config.get("REMEMBER_COOKIE_DURATION", COOKIE_DURATION)
    return found if isinstance(found, dt.timedelta) else dt.timedelta(seconds=found)


def clear(app: Flask, response: Response) -> None:
    """Delete both cookies in the browser."""
    for name in (cookie_name(app), binding_cookie_name(app)):
        _set(app, response, name, "", clock.EPOCH)


def _decoded(value: str, key: str | bytes | None = None) -> str | None:
    """Return the content of a cookie of Flask-Login; ``None`` if not signed with this key.

    :param key: by default the app's secret key.
    """
    try:
        return t.cast("str | None", decode_cookie(value, key))
    except (TypeError, ValueError):
        return None


def _signed(app: Flask, current: CurrentSession, until: int) -> str:
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
