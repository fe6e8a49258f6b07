"""Recognizing whether a login comes from a device that the user has used before."""

from __future__ import annotations

import typing as t

import pytest
from conftest import SiteFactory
from flask import Flask
from site_under_test import Browser, Site

from flask_session_registry import session_registered
from flask_session_registry._request import device_cookie as devices


@pytest.fixture
def told(site: Site) -> t.Iterator[list[bool]]:
    """Yield the list of 'new_device' values that 'session_registered' sends."""
    answers: list[bool] = []

    def receiver(app: t.Any, *, new_device: bool, **_: t.Any) -> None:
        answers.append(new_device)

    with session_registered.connected_to(receiver, site.app):
        yield answers


def at(browser: Browser, address: str) -> Browser:
    """Move the browser to another address and return it."""
    browser.client.environ_base["REMOTE_ADDR"] = address
    return browser


def test_first_login(site: Site, told: list[bool]) -> None:
    """The first login is new; later logins of the same browser aren't, from any address."""
    firefox = site.browser("Firefox 140")
    firefox.login()
    firefox.post("/logout")
    firefox.name = "Firefox 141"
    at(firefox, "192.0.2.7").login()
    assert told == [True, False]


def test_same_address_and_user_agent(site: Site, told: list[bool]) -> None:
    """Without the cookie, address and user agent must match those of one row."""
    at(site.browser("Firefox"), "192.0.2.7").login()
    at(site.browser("Chrome"), "192.0.2.8").login()
    at(site.browser("Firefox"), "192.0.2.7").login()
    at(site.browser("Firefox"), "192.0.2.8").login()
    at(site.browser("Safari"), "192.0.2.7").login()
    at(site.browser("Firefox"), "192.0.2.7").login("bob")
    assert told == [True, True, False, True, True, True]


@pytest.mark.parametrize(("ends_by", "is_new"), [("logout", False), ("revocation", True)])
def test_ended_rows(site: Site, told: list[bool], ends_by: str, is_new: bool) -> None:
    """A session that was revoked may have been a thief's, so it doesn't count as known."""
    firefox = site.browser()
    firefox.login()
    if ends_by == "logout":
        firefox.post("/logout")
    else:
        with site.context():
            site.sessions.revoke_all(site.user("ann"))
            site.db.session.commit()
    site.browser().login()
    assert told == [True, is_new]


def test_unknown_values_never_match(site: Site, told: list[bool]) -> None:
    """Logins without an address, or without a user agent, never match each other."""
    for _ in range(2):
        at(site.browser("Firefox"), "a socket").login()
    for _ in range(2):
        site.browser("").login()
    assert told == [True] * 4


def test_cookie_outlives_the_rows(site: Site, told: list[bool]) -> None:
    """The browser is still known after its rows are deleted."""
    firefox = site.browser()
    firefox.login()
    site.forget_all()
    firefox.login()
    site.browser().login("bob")
    assert told == [True, False, True]


def test_several_users_of_one_browser(
    site: Site, told: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser knows a limited number of users, and drops the one who signed in longest ago."""
    monkeypatch.setattr(devices, "_USERS", 2)
    with site.context():
        site.db.session.add(site.User(name="eve", password_hash="hash of eve"))
        site.db.session.commit()
    firefox = site.browser("")
    for name in ("ann", "bob", "ann", "bob", "ann", "eve", "ann", "bob"):
        firefox.login(name)
    assert told == [True, True, False, False, False, True, False, True]


@pytest.mark.parametrize("value", ["", "x", "WyIxIl0", "WyIxIl0.AAAA", "\0", "é" * 40])
def test_forged_cookie(site: Site, told: list[bool], value: str) -> None:
    """A forged cookie is ignored, without an error."""
    firefox = site.browser(session_device=value)
    assert firefox.login().status_code == 200
    assert told == [True]


def test_cookie_signed_for_another_purpose(site: Site, told: list[bool]) -> None:
    """The binding cookie of "remember me" doesn't work as a device cookie."""
    firefox = site.browser()
    firefox.login(remember="1")
    stolen = firefox.cookies["remember_token_session"]
    at(site.browser(session_device=stolen), "192.0.2.7").login()
    assert told == [True, True]


def test_cookie_signs_in_nobody(site: Site, told: list[bool]) -> None:
    firefox = site.browser()
    firefox.login()
    cookie = firefox.client.get_cookie("session_device")
    assert cookie is not None
    assert not site.browser(session_device=cookie.value).is_signed_in


def test_cookie_after_the_key_was_rotated(site: Site, told: list[bool]) -> None:
    """With the old key as a fallback, the browser is still known."""
    firefox = site.browser("")
    firefox.login()
    site.app.config.update(SECRET_KEY="another", SECRET_KEY_FALLBACKS=["only for tests"])
    firefox.login()
    site.app.config.update(SECRET_KEY="a third", SECRET_KEY_FALLBACKS=[])
    firefox.login()
    assert told == [True, False, True]


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({}, "Expires=; HttpOnly; Max-Age=34560000; Path=/; SameSite=Lax"),
        (
            {
                "SESSION_COOKIE_SECURE": True,
                "SESSION_COOKIE_SAMESITE": "Strict",
                "SESSION_COOKIE_PATH": "/",
                "SESSION_COOKIE_DOMAIN": "localhost",
                "SESSION_COOKIE_HTTPONLY": False,
            },
            "Domain=localhost; Expires=; HttpOnly; Max-Age=34560000; Path=/; SameSite=Strict;"
            " Secure",
        ),
        pytest.param(
            {"SESSION_COOKIE_SECURE": True, "SESSION_COOKIE_PARTITIONED": True},
            "Expires=; HttpOnly; Max-Age=34560000; Partitioned; Path=/; SameSite=Lax; Secure",
            marks=pytest.mark.skipif(
                "SESSION_COOKIE_PARTITIONED" not in Flask.default_config,
                reason="it came with Flask 3.1",
            ),
        ),
    ],
)
def test_cookie_flags(make_site: SiteFactory, settings: dict[str, t.Any], flags: str) -> None:
    """The device cookie has the session cookie's flags, and is always HTTP-only."""
    site = make_site(SESSION_COOKIE_NAME="sid", **settings)
    with session_registered.connected_to(lambda *_, **__: None, site.app):
        answer = site.browser().login()
    (header,) = (
        header for header in answer.headers.getlist("Set-Cookie") if header.startswith("sid_device")
    )
    parts = sorted(part.strip() for part in header.split(";")[1:])
    shown = ["Expires=" if part.startswith("Expires=") else part for part in parts]
    assert "; ".join(shown) == flags


@pytest.mark.table
def test_without_a_receiver(site: Site, firefox: Browser) -> None:
    """Without a receiver, no cookie is set and no statement runs."""
    with site.count_statements() as silent:
        answer = firefox.login()
    assert not any("device" in header for header in answer.headers.getlist("Set-Cookie"))
    with (
        session_registered.connected_to(lambda *_, **__: None, site.app),
        site.count_statements() as told,
    ):
        site.browser().login()
    assert len(told) == len(silent) + 1
