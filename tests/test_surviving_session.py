"""The session in which a password is changed: its next id is chosen with the change.

The row names the next store key from the commit on. The browser hears of the id by the response.
"""

from __future__ import annotations

import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from conftest import SiteFactory
from flask import request, session
from flask_login import current_user, login_required, login_user, logout_user
from site_under_test import Browser, Site, days_ago
from test_statements import statements_of

from flask_session_registry._request import persistence, store_keys


def key_of(site: Site, browser: Browser) -> str | None:
    """Return the store key of the id in a browser's cookie."""
    with site.context():
        return store_keys.store_key(site.app.session_interface, browser.cookies["session"])


@pytest.fixture
def changing(make_site: SiteFactory) -> Site:
    """A site with ``/change``: a password change, and what ``then`` names before or after it."""
    site = make_site()

    def then(what: str) -> None:
        if what == "rotate":
            site.sessions.rotate()
        elif what == "new id":
            store_keys.regenerate_id(site.app.session_interface, session)
            session["cart"] = "written"
        elif what == "log out":
            logout_user()
        elif what == "log in":
            login_user(site.user("bob"))
        elif what == "change":
            current_user.password_hash += ", again"
            site.db.session.commit()
        elif what == "roll back":
            current_user.password_hash += ", again"
            site.db.session.flush()
            site.db.session.rollback()
        elif what == "leave open":
            current_user.password_hash += ", again"
            site.db.session.flush()

    @site.app.post("/change")
    @login_required
    def change() -> str:
        then(request.form.get("before", ""))
        current_user.password_hash = "new"
        site.db.session.flush()
        then(request.form.get("flushed", ""))
        site.db.session.commit()
        then(request.form.get("after", ""))
        return "changed"

    return site


@pytest.mark.parametrize(
    ("when", "what"),
    [
        *(
            (when, what)
            for when in ("before", "flushed", "after")
            for what in ("", "change", "rotate", "new id")
        ),
        *((when, "roll back") for when in ("before", "after")),
        ("after", "leave open"),
    ],
)
def test_goes_on_under_the_next_id(changing: Site, what: str, when: str) -> None:
    """2: whatever else the request does, one entry is left, and the row names it."""
    chrome = changing.browser("Chrome")
    chrome.login(remember="1")
    copy = chrome.copy()
    (before,) = changing.rows()
    assert chrome.post("/change", **{when: what}).status_code == 200
    (row,) = changing.rows()
    assert row.store_id == key_of(changing, chrome) != before.store_id
    assert len(changing.signed_in_entries()) == len(changing.entries()) == 1
    assert before.store_id in changing.stale_keys()
    # An id that the app itself chooses after the change begins one more generation.
    assert row.generation >= 1 + ((when, what) == ("after", "new id"))
    assert chrome.is_signed_in
    assert chrome.copy("remember_token", "remember_token_session").is_signed_in
    assert not copy.is_signed_in


def test_several_changes_choose_one_id(changing: Site) -> None:
    """Nobody has heard of it before the response, so only the key from before is left behind."""
    chrome = changing.browser("Chrome")
    chrome.login()
    before = changing.rows()[0].store_id
    chrome.post("/change", before="change", flushed="change", after="change")
    assert changing.stale_keys() == [before]
    assert changing.rows()[0].generation == 4
    assert chrome.is_signed_in


@pytest.mark.parametrize("when", ["flushed", "after"])
@pytest.mark.parametrize("what", ["log out", "log in"])
def test_ends_in_the_same_request(changing: Site, what: str, when: str) -> None:
    """17, 18: its entries are deleted, and its row is marked as purged."""
    chrome = changing.browser("Chrome")
    chrome.login()
    copy = chrome.copy()
    assert chrome.post("/change", **{when: what}).status_code == 200
    ended, *others = changing.rows()
    assert ended.revoked_reason == {"log out": "logged_out", "log in": "replaced"}[what]
    assert ended.purged_at is not None
    assert len(changing.signed_in_entries()) == len(others)
    assert chrome.name_shown == (None if what == "log out" else "bob")
    assert not copy.is_signed_in


@pytest.mark.table
def test_row_names_the_next_key_before_the_response(make_site: SiteFactory, database: str) -> None:
    """The transaction of the change writes it, and a rollback leaves the one from before."""
    site = make_site("files", database)
    keys: list[t.Any] = []

    def key() -> t.Any:
        return site.db.session.scalar(sa.select(site.sessions.UserSession.store_id))

    @site.app.post("/change")
    @login_required
    def change() -> str:
        current_user.password_hash = "undone"
        site.db.session.flush()
        keys.append(key())
        site.db.session.rollback()
        keys.append(key())
        current_user.password_hash = "new"
        site.db.session.commit()
        keys.append(key())
        return "changed"

    chrome = site.browser("Chrome")
    chrome.login()
    before = key_of(site, chrome)
    chrome.post("/change")
    after = key_of(site, chrome)
    assert keys == [after, before, after]


@pytest.mark.table
@pytest.mark.parametrize("when", ["before", "after"])
def test_time_counts_from_the_commit(make_site: SiteFactory, database: str, when: str) -> None:
    """A slow hash costs no further look at the row. What takes long after the commit does."""
    site = make_site("cookie", database)

    @site.app.post("/change")
    @login_required
    def change() -> str:
        current_user.password_hash = request.form["password"]
        time.sleep(2 * persistence.SLOW_AFTER if when == "before" else 0)
        site.db.session.commit()
        time.sleep(2 * persistence.SLOW_AFTER if when == "after" else 0)
        return "changed"

    chrome = site.browser("Chrome")
    chrome.login()
    found = statements_of(site, chrome.post, "/change", password="new")
    assert found.count("SELECT user_sessions") == (when == "after")
    assert chrome.is_signed_in


def test_ended_before_a_slow_response(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """29: ended from elsewhere after the change, it is not written."""
    monkeypatch.setattr(persistence, "SLOW_AFTER", 0)

    def revoke() -> None:
        with site.context():
            site.sessions.revoke_all(site.user("ann"))
            site.db.session.commit()

    @site.app.post("/change")
    @login_required
    def change() -> str:
        current_user.password_hash = "new"
        site.db.session.commit()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(revoke).result(30)
        return "changed"

    chrome = site.browser("Chrome")
    chrome.login()
    chrome.post("/change")
    assert site.signed_in_entries() == []
    assert not chrome.is_signed_in


def test_entry_that_cannot_be_saved(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser keeps a dead cookie, and can sign in again. The entries are deleted."""
    chrome = site.browser("Chrome")
    chrome.login()
    site.app.config["PROPAGATE_EXCEPTIONS"] = False

    def fail(*_: t.Any) -> t.NoReturn:
        raise OSError("The disk is full.")

    with monkeypatch.context() as context:
        context.setattr(site.app.session_interface, "save_session", fail)
        assert chrome.post("/password", password="new").status_code == 500
    assert site.entries() == {}
    assert not chrome.is_signed_in
    assert chrome.login().status_code == 200
    assert chrome.is_signed_in


def test_committed_after_the_response(site: Site) -> None:
    """76: its browser can't learn the next id, so it ends. Its row is marked as purged."""

    @site.app.teardown_request
    def teardown(_: object) -> None:
        if request.path == "/change":
            site.db.session.commit()

    @site.app.post("/change")
    @login_required
    def change() -> str:
        current_user.password_hash = "new"
        return "changed"

    chrome = site.browser("Chrome")
    chrome.login()
    chrome.post("/change")
    assert site.entries() == {}
    assert site.rows()[0].purged_at is not None
    assert not chrome.is_signed_in


@pytest.mark.table
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_user_whose_key_changes_elsewhere(make_site: SiteFactory, database: str) -> None:
    """26: with the password, in a database session that this request doesn't use."""
    site = make_site("files", database)

    @site.app.post("/change")
    @login_required
    def change() -> str:
        assert current_user.id == 1
        site.db.session.rollback()
        with site.context():
            user = site.user("ann")
            user.id, user.password_hash = 7, "new"
            site.db.session.commit()
        return "changed"

    chrome = site.browser("Chrome")
    chrome.login()
    chrome.post("/change")
    assert chrome.is_signed_in


def test_row_without_a_key(changing: Site) -> None:
    """A row that names no entry gets the next key all the same, and leaves none behind."""
    firefox = changing.browser()
    firefox.login()
    changing.change(store_id=None)
    firefox.post("/change")
    assert firefox.is_signed_in
    (row,) = changing.rows()
    assert row.store_id == key_of(changing, firefox)


def test_session_that_ends_right_after_its_change(make_site: SiteFactory) -> None:
    """What ends it between the commit and the answer counts, where the user is loaded again."""
    site = make_site()
    site.User.get_id = lambda self: str(self.id)

    @site.app.post("/change")
    @login_required
    def change() -> str:
        current_user.password_hash = "new"
        site.db.session.commit()
        site.change(revoked_at=days_ago(0), revoked_reason="revoked")
        return "changed"

    firefox = site.browser()
    firefox.login()
    firefox.post("/change")
    assert not firefox.is_signed_in
