"""Requests that a browser sent before its session changed, and that are answered after it."""

from __future__ import annotations

import typing as t

import pytest
from conftest import SiteFactory
from flask import session
from flask_login import current_user
from site_under_test import Browser, Site, days_ago

#: Longer ago than a browser's requests from before can still be under way.
LONG_AGO = days_ago(1 / 24)


def replace_login(browser: Browser) -> None:
    browser.login(remember="1")


def become_bob(browser: Browser) -> None:
    browser.post("/logout")
    browser.login("bob", remember="1")


def is_signed_in_and_remembered(browser: Browser, name: str) -> bool:
    if browser.name_shown != name:
        return False
    browser.lose("session")
    return browser.name_shown == name


def add_late_view(site: Site) -> None:
    @site.app.get("/late")
    def late() -> str:
        name = current_user.name if current_user.is_authenticated else "nobody"
        session["cart"] = "late"
        return name


@pytest.mark.parametrize(
    ("change", "name"), [(replace_login, "ann"), (become_bob, "bob")], ids=["again", "as bob"]
)
def test_request_from_before_a_login(
    store_site: Site, change: t.Callable[[Browser], None], name: str
) -> None:
    """16: it carries the old cookies, and neither clears nor overwrites the new ones."""
    add_late_view(store_site)
    firefox = store_site.browser("Firefox")
    firefox.login(remember="1")
    late = firefox.copy()
    change(firefox)
    for path in ("/me", "/late"):
        answer = late.get(path)
        assert answer.status_code == 200
        assert not answer.headers.getlist("Set-Cookie")
    assert is_signed_in_and_remembered(firefox, name)


def test_request_from_before_a_login_without_remember_me(store_site: Site) -> None:
    """16: where only the key of the lost entry leads to the session, too."""
    add_late_view(store_site)
    firefox = store_site.browser("Firefox")
    firefox.login()
    late = firefox.copy()
    firefox.login()
    assert not late.get("/late").headers.getlist("Set-Cookie")
    assert firefox.is_signed_in


@pytest.mark.parametrize(
    ("change", "reason"), [(replace_login, "replaced"), (become_bob, "logged_out")]
)
def test_browser_with_old_cookies_only(
    store_site: Site, change: t.Callable[[Browser], None], reason: str
) -> None:
    """16, 46: seconds later no request is under way: the cookies are dead, and cleared."""
    add_late_view(store_site)
    firefox = store_site.browser("Firefox")
    firefox.login(remember="1")
    old = firefox.copy()
    change(firefox)
    store_site.change({"revoked_reason": reason}, revoked_at=LONG_AGO)
    assert old.rejected == reason
    assert not {"remember_token", "remember_token_session"} & set(old.cookies)
    old.get("/late")
    assert old.get("/cart").json == {"cart": "late"}


@pytest.mark.parametrize("way", ["revoked", "password_changed", "expired"])
def test_browser_that_was_signed_out_a_moment_ago(
    make_site: SiteFactory, way: str, database: str
) -> None:
    """16, 46: what its user or time has ended has no newer cookies: they are cleared at once."""
    site = make_site("cookie", database)
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    firefox.lose("session")
    if way == "revoked":
        with site.context():
            site.sessions.revoke_all(site.user("ann"))
            site.db.session.commit()
    elif way == "password_changed":
        with site.context():
            site.db.session.execute(site.db.update(site.User).values(password_hash="new"))
            site.db.session.commit()
    else:
        site.app.config["SESSION_REGISTRY_IDLE_TIMEOUT"] = 60
        site.change(last_seen_at=days_ago(1))
        site.installation.settings.idle_timeout = LONG_AGO - days_ago(1)
    assert firefox.get("/me").json["name"] is None
    kept = {"remember_token", "remember_token_session"} & set(firefox.cookies)
    # Elsewhere the browser that changed the password has an earlier fingerprint for a moment.
    assert bool(kept) == (way == "password_changed" and site.home != "table")
