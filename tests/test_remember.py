"""The "remember me" cookie (SCENARIOS 33, 44 to 48)."""

from __future__ import annotations

import hashlib
import typing as t
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import SiteFactory
from flask import request
from flask_login import confirm_login, current_user, encode_cookie, login_fresh
from itsdangerous import URLSafeSerializer
from site_under_test import Browser, Site, days_ago
from werkzeug.http import parse_cookie

from flask_session_registry._request import signing

PAIR = ("remember_token", "remember_token_session")


def test_return_without_the_session_cookie(store_site: Site) -> None:
    """44: signed in again with the same row and a new id. The old id's entry is gone."""
    firefox = store_site.browser("Firefox")
    firefox.login(remember="1")
    for _ in range(3):
        old = firefox.cookies["session"]
        firefox.lose("session")
        assert firefox.is_signed_in
        assert (firefox.cookies["session"] != old) or store_site.store == "cookie"
        assert firefox.is_signed_in
    assert len(store_site.rows()) == 1
    assert store_site.active() == 1
    assert len(store_site.entries()) == (store_site.store != "cookie")
    firefox.post("/password", password="new")
    assert firefox.is_signed_in
    assert len(store_site.entries()) == (store_site.store != "cookie")


@pytest.mark.parametrize("protection", ["basic", "strong", None])
def test_return_over_an_anonymous_session(make_site: SiteFactory, protection: str | None) -> None:
    """44: the data of the anonymous session stays, under a new id."""
    site = make_site()
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    firefox.lose("session")
    site.app.config["SESSION_PROTECTION"] = protection

    firefox.post("/cart", item="book")
    anonymous = firefox.cookies["session"]
    assert firefox.is_signed_in
    assert firefox.cookies["session"] != anonymous
    assert firefox.get("/cart").json == {"cart": "book"}
    assert not site.browser("Thief", session=anonymous).is_signed_in


def test_password_change_kills_only_the_others(store_site: Site) -> None:
    """45: Firefox's remember cookie is invalid, Chrome's works."""
    firefox, chrome = store_site.browser("Firefox"), store_site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login(remember="1")
    copy = firefox.copy(*PAIR)
    chrome.post("/password", password="new")
    for browser in (firefox, chrome):
        browser.lose("session")
    assert not firefox.is_signed_in
    assert not copy.is_signed_in
    assert PAIR[0] not in firefox.cookies
    assert chrome.is_signed_in


def test_old_binding_cookie_of_the_same_browser(site: Site, firefox: Browser) -> None:
    """45: a copy of both from before the own password change is refused. Nothing is cleared."""
    firefox.login(remember="1")
    before = firefox.cookies
    firefox.post("/password", password="new")
    late = site.browser("Firefox", **{name: before[name] for name in PAIR})
    answer = late.get("/me")
    assert answer.json["rejected"] == "rotated"
    assert not answer.headers.getlist("Set-Cookie")
    firefox.lose("session")
    assert firefox.is_signed_in


def forged(site: Site) -> str:
    site.app.secret_key, key = "not the key", site.app.secret_key
    try:
        with site.app.test_request_context():
            return signing.sign(site.app, ["x.0", 9999999999], purpose="remember")
    finally:
        site.app.secret_key = key


def signed(site: Site, *content: t.Any) -> str:
    return signing.sign(site.app, content, purpose="remember")


@pytest.mark.parametrize(
    "what",
    ["none", "somebody else's", "forged", "expired", "no marker", "no pair", "no time", "ended"],
)
def test_without_its_binding_cookie(site: Site, firefox: Browser, what: str) -> None:
    """46: the cookie is refused before Flask-Login reads it, and cleared."""
    chrome = site.browser("Chrome")
    firefox.login("ann", remember="1")
    chrome.login("bob", remember="1")
    marker = f"{site.rows()[0].id.hex}.0"
    firefox.lose("session")
    companions = {
        "none": None,
        "somebody else's": chrome.cookies["remember_token_session"],
        "forged": forged(site),
        "expired": signed(site, marker, 1),
        "no marker": signed(site, 5, 9999999999),
        "no pair": signed(site, 1, 2, 3),
        "no time": signed(site, marker, "later"),
        "ended": firefox.cookies["remember_token_session"],
    }
    if what == "ended":
        with site.context():
            site.sessions.revoke_all(site.user("ann"))
            site.db.session.commit()
    firefox.lose("remember_token_session")
    if companions[what] is not None:
        firefox.carry({"remember_token_session": str(companions[what])})
    assert not firefox.is_signed_in
    assert firefox.cookies == {}


@pytest.mark.parametrize("token", ["1|é", "1|ff", "nothing", ""])
def test_forged_remember_cookie(site: Site, firefox: Browser, token: str) -> None:
    """46: a valid binding cookie beside a forged cookie of Flask-Login is refused; no error."""
    firefox.login(remember="1")
    header = (
        f"remember_token={token}; remember_token_session="
        + (firefox.cookies["remember_token_session"])
    )
    anonymous = site.app.test_client(use_cookies=False)
    response = anonymous.get("/me", environ_overrides={"HTTP_COOKIE": header})
    assert response.status_code == 200
    assert response.json["name"] is None


def test_logout_kills_this_device_only(store_site: Site) -> None:
    """47: this device's cookie and its copies are invalid. Other devices' cookies work."""
    firefox, chrome = store_site.browser("Firefox"), store_site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login(remember="1")
    copy = firefox.copy(*PAIR)
    firefox.post("/logout")
    assert not set(PAIR) & set(firefox.cookies)
    assert not copy.is_signed_in
    chrome.lose("session")
    assert chrome.is_signed_in


def cookie_attributes(response: t.Any) -> dict[str, str]:
    found = {}
    for header in response.headers.getlist("Set-Cookie"):
        pair, _, attributes = header.partition("; ")
        found[pair.partition("=")[0]] = attributes
    return found


ATTRIBUTES = {
    "REMEMBER_COOKIE_NAME": "kept",
    "REMEMBER_COOKIE_DOMAIN": "example.org",
    "REMEMBER_COOKIE_PATH": "/app",
    "REMEMBER_COOKIE_SECURE": True,
    "REMEMBER_COOKIE_HTTPONLY": False,
    "REMEMBER_COOKIE_SAMESITE": "Strict",
    "REMEMBER_COOKIE_DURATION": 3600,
}


@pytest.mark.parametrize("config", [{}, ATTRIBUTES, *({k: v} for k, v in ATTRIBUTES.items())])
def test_binding_cookie_has_the_same_attributes(
    make_site: SiteFactory, config: dict[str, t.Any]
) -> None:
    """48: this holds at the login, after a rotation, and when it is cleared."""
    site = make_site("cookie", **config)
    name = config.get("REMEMBER_COOKIE_NAME", "remember_token")

    @site.app.post("/sudo")
    def sudo() -> str:
        site.sessions.rotate()
        return "ok"

    client = site.app.test_client(use_cookies=False)

    def visit(path: str, cookies: dict[str, str], **form: str) -> tuple[dict[str, str], t.Any]:
        header = "; ".join(f"{key}={value}" for key, value in cookies.items())
        response = client.post(path, data=form, environ_overrides={"HTTP_COOKIE": header})
        given = dict(
            next(iter(parse_cookie(h.partition(";")[0]).items()))
            for h in response.headers.getlist("Set-Cookie")
        )
        return given, response

    jar, login = visit("/login", {}, name="ann", password="hash of ann", remember="1")
    at_login = cookie_attributes(login)
    assert at_login[name] == at_login[f"{name}_session"]
    rotated, answer = visit("/sudo", jar)
    after = cookie_attributes(answer)
    assert after[name] == after[f"{name}_session"]
    assert set(after[name].split("; ")) == set(at_login[name].split("; "))
    _, logout = visit("/logout", jar | rotated)
    gone = cookie_attributes(logout)
    assert gone[name] == gone[f"{name}_session"]
    assert "1970" in gone[name]


def test_refresh_on_each_request(make_site: SiteFactory) -> None:
    """48: with REMEMBER_COOKIE_REFRESH_EACH_REQUEST both are renewed, and the row is updated."""
    site = make_site(REMEMBER_COOKIE_REFRESH_EACH_REQUEST=True)
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    assert site.rows()[0].remember_until is not None
    before = days_ago(1)
    site.change(last_seen_at=before, remember_until=before)
    answer = firefox.get("/me")
    attributes = cookie_attributes(answer)
    assert attributes["remember_token"] == attributes["remember_token_session"]
    assert site.rows()[0].remember_until > days_ago(-300)
    firefox.lose("session")
    assert firefox.is_signed_in


def test_refresh_on_each_request_leaves_refused_browsers_alone(make_site: SiteFactory) -> None:
    """2, 48: although Flask-Login touches the session, the browser's cookie stays."""
    site = make_site(REMEMBER_COOKIE_REFRESH_EACH_REQUEST=True)
    chrome = site.browser("Chrome")
    chrome.login()
    late = chrome.copy()
    chrome.post("/password", password="new")
    answer = late.get("/me")
    assert answer.json["name"] is None
    assert not answer.headers.getlist("Set-Cookie")


def test_session_remember_cookie(make_site: SiteFactory, monkeypatch: t.Any) -> None:
    """48: a remember cookie without an expiry, set by a custom LoginManager, works too."""
    site = make_site()

    def set_cookie(response: t.Any) -> None:
        response.set_cookie("remember_token", encode_cookie("1"))

    monkeypatch.setattr(site.login_manager, "_set_cookie", set_cookie)
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    firefox.lose("session")
    assert firefox.is_signed_in


def test_new_login_without_remember_me(site: Site, firefox: Browser) -> None:
    """The old cookie, which is invalid by then, is cleared."""
    firefox.login(remember="1")
    firefox.login()
    assert set(firefox.cookies) == {"session"}


@pytest.mark.parametrize("store", ["cookie", "redis"])
def test_parallel_returns(make_site: SiteFactory, store: str) -> None:
    """33: requests that return at the same time share one row, and all are signed in."""
    site = make_site(store, "postgresql")
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    copies = [firefox.copy(*PAIR) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda copy: copy.is_signed_in, copies))
    assert all(copy.is_signed_in for copy in copies)
    assert len(site.rows()) == 1
    copies[0].post("/password", password="new")
    assert [copy.is_signed_in for copy in copies] == [True] + [False] * 7


def test_refused_cookie_is_hidden_from_the_view(site: Site, firefox: Browser) -> None:
    """46: later code in the request doesn't see it."""

    @site.app.get("/cookies")
    def cookies() -> list[str]:
        assert current_user is not None
        current_user.is_authenticated  # noqa: B018
        return sorted(request.cookies)

    firefox.login(remember="1")
    assert firefox.get("/cookies").json == ["remember_token", "remember_token_session", "session"]
    firefox.lose("remember_token_session", "session")
    assert firefox.get("/cookies").json == []


def test_binding_cookie_of_another_purpose(site: Site, firefox: Browser) -> None:
    """46: another value signed with the app's key isn't a valid binding cookie."""
    firefox.login(remember="1")
    serializer = URLSafeSerializer(
        "only for tests", signer_kwargs={"digest_method": hashlib.sha256}
    )
    other = serializer.dumps([f"{site.rows()[0].id.hex}.0", 9999999999])
    firefox.lose("session", "remember_token_session")
    firefox.carry({"remember_token_session": str(other)})
    assert not firefox.is_signed_in


def test_rotation_does_not_prolong(site: Site, firefox: Browser) -> None:
    """45: the new binding cookie expires when the old one would have, also by its signature."""
    firefox.login(remember="1")

    def until() -> int:
        cookie = firefox.cookies["remember_token_session"]
        return int(signing.unsign(site.app, cookie, purpose="remember")[1])

    before = until()
    firefox.post("/password", password="new")
    assert until() == before


def test_both_refused_cookies_are_hidden(site: Site, firefox: Browser) -> None:
    """46: both the binding cookie and Flask-Login's are hidden."""

    @site.app.get("/cookies")
    def cookies() -> list[str]:
        assert not current_user.is_authenticated
        return sorted(request.cookies)

    firefox.login(remember="1")
    with site.context():
        site.sessions.revoke_all(site.user("ann"))
        site.db.session.commit()
    firefox.lose("session")
    assert firefox.get("/cookies").json == []


def test_return_over_an_anonymous_session_leaves_nothing_under_its_id(site: Site) -> None:
    """17, 44: the anonymous session's id becomes invalid, along with its data."""
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    firefox.lose("session")
    firefox.post("/cart", item="book")
    thief = firefox.copy("session")
    assert firefox.is_signed_in
    assert thief.get("/cart").json == {"cart": None}
    assert firefox.get("/cart").json == {"cart": "book"}
    assert len(site.entries()) == 1


def test_password_given_again_before_the_user_is_asked_for(site: Site, firefox: Browser) -> None:
    """A session restored by cookie isn't fresh, but 'confirm_login()' makes it fresh any time."""

    @site.app.post("/confirm")
    def confirm() -> str:
        confirm_login()
        return "confirmed"

    @site.app.get("/fresh")
    def fresh() -> dict[str, bool]:
        return {"fresh": current_user.is_authenticated and login_fresh()}

    firefox.login(remember="1")
    firefox.lose("session")
    assert firefox.copy().get("/fresh").json == {"fresh": False}
    assert firefox.post("/confirm").text == "confirmed"
    assert firefox.get("/fresh").json == {"fresh": True}
