"""The flags of the cookies that sign a browser in."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask
from flask_login import COOKIE_HTTPONLY, COOKIE_SECURE

from .findings import Finding, error, warning


def examine(app: Flask) -> Iterator[Finding]:
    interface, config = app.session_interface, app.config
    yield from _examine_cookie(
        "SESSION_COOKIE",
        "session cookie",
        secure=interface.get_cookie_secure(app),
        httponly=interface.get_cookie_httponly(app),
        samesite=interface.get_cookie_samesite(app),
    )
    yield from _examine_cookie(
        "REMEMBER_COOKIE",
        '"remember me" cookie',
        secure=config.get("REMEMBER_COOKIE_SECURE", COOKIE_SECURE),
        httponly=config.get("REMEMBER_COOKIE_HTTPONLY", COOKIE_HTTPONLY),
        samesite=config.get("REMEMBER_COOKIE_SAMESITE"),
    )
    if config.get("REMEMBER_COOKIE_REFRESH_EACH_REQUEST"):
        yield warning(
            "'REMEMBER_COOKIE_REFRESH_EACH_REQUEST' makes Flask-Login remember every user who signs"
            " in, requested or not.",
            "Set it to False.",
        )


def _examine_cookie(
    prefix: str, name: str, *, secure: bool | None, httponly: bool, samesite: str | None
) -> Iterator[Finding]:
    if not secure:
        yield warning(
            f"The {name} is also sent over plain HTTP, where it can be intercepted.",
            f"Set '{prefix}_SECURE' to True.",
        )
    if not httponly:
        yield error(
            f"The {name} can be read by JavaScript, so any script injected into a page can steal"
            " it.",
            f"Set '{prefix}_HTTPONLY' to True.",
        )
    if samesite in (None, "None"):
        yield warning(
            f"The {name} may be sent with requests that other sites make.",
            f"Set '{prefix}_SAMESITE' to 'Lax'.",
        )
