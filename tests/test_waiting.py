"""The registry never waits long for a row that a transaction of the app has locked."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from conftest import SiteFactory
from flask import session
from flask_login import current_user, login_required
from site_under_test import Site
from test_page import end, with_page

from flask_session_registry._records.sql import transactions as own_transaction
from flask_session_registry._request import persistence

pytestmark = [pytest.mark.table, pytest.mark.parametrize("database", ["postgresql", "mariadb"])]


@contextmanager
def holding(site: Site, name: str, what: str = "user") -> Iterator[None]:
    """Hold another open transaction that has written this user, or their sessions."""
    with site.context():
        engine = sa.create_engine(site.db.engine.url, poolclass=sa.NullPool)
        user_id = site.user(name).id
        rows = site.sessions.UserSession
    with engine.connect() as slow:
        if what == "user":
            slow.execute(sa.update(site.User).where(site.User.id == user_id).values(note="busy"))
        else:
            slow.execute(sa.update(rows).where(rows.user_id == user_id).values(ip_address=None))
        try:
            yield
        finally:
            slow.rollback()


def assert_unavailable(answer: t.Any) -> None:
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == str(own_transaction.LOCK_TIMEOUT)
    assert not answer.headers.getlist("Set-Cookie")


def test_login_of_a_user_whose_row_is_locked(make_site: SiteFactory, database: str) -> None:
    """It is 503 while the row is locked. Others can sign in and browse, with few connections."""
    options = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 20}
    site = make_site("cookie", database, SQLALCHEMY_ENGINE_OPTIONS=options)
    edge = site.browser("Edge")
    edge.login("bob")
    browsers = [site.browser(f"Browser {number}") for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        with holding(site, "ann"):
            logins = [pool.submit(browser.login) for browser in browsers]
            for _ in range(3):
                assert edge.is_signed_in
                assert site.browser().login("bob").status_code == 200
            for login in logins:
                assert_unavailable(login.result(25))
            assert not any(browser.is_signed_in for browser in browsers)
        assert browsers[0].login().status_code == 200
    assert browsers[0].is_signed_in
    assert site.active() == 1


def test_session_whose_row_is_locked(make_site: SiteFactory, database: str) -> None:
    """Its logout and its rotation are 503, and it stays signed in. Then it can sign out.

    Afterwards, the app's own statements on the same connection wait as long as the app wants.
    """
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 20}
    site = make_site("cookie", database, SQLALCHEMY_ENGINE_OPTIONS=options)

    @site.app.post("/sudo")
    def sudo() -> str:
        site.sessions.rotate()
        return "ok"

    firefox = site.browser("Firefox")
    firefox.login()
    with ThreadPoolExecutor(1) as pool:
        for path in ("/sudo", "/logout"):
            with holding(site, "ann", "sessions"):
                assert_unavailable(pool.submit(firefox.post, path).result(20))
                assert firefox.is_signed_in
    with site.context():
        timeout = "SHOW lock_timeout" if database == "postgresql" else "SELECT @@lock_wait_timeout"
        assert site.db.session.scalar(sa.text(timeout)) in ("0", 86400)
    assert firefox.post("/logout").status_code == 200
    assert not firefox.is_signed_in


@pytest.mark.parametrize("what", ["user", "sessions"])
def test_late_request_of_a_session_whose_row_is_locked(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, database: str, what: str
) -> None:
    """It checks the committed state, and writes its session."""
    monkeypatch.setattr(persistence, "SLOW_AFTER", 0)
    site = make_site("files", database)

    @site.app.post("/late")
    @login_required
    def late() -> str:
        session["cart"] = "book"
        return str(current_user.name)

    firefox = site.browser("Firefox")
    firefox.login()
    with ThreadPoolExecutor(1) as pool, holding(site, "ann", what):
        assert pool.submit(firefox.post, "/late").result(20).text == "ann"
    assert firefox.get("/cart").json == {"cart": "book"}


def test_page_of_a_user_whose_row_is_locked(make_site: SiteFactory, database: str) -> None:
    """Signing out the other devices there is 503, and works afterwards."""
    site = make_site("cookie", database)
    with_page(site)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()

    with ThreadPoolExecutor(1) as pool, holding(site, "ann"):
        answer = pool.submit(end, firefox, "revoke-others").result(20)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3")
        assert chrome.is_signed_in
    assert end(firefox, "revoke-others").json == {"ended": 1}
    assert firefox.is_signed_in
    assert not chrome.is_signed_in
