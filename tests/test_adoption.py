"""Adopting sessions from before the installation (SCENARIO 24)."""

from __future__ import annotations

import hashlib
import re
import threading
import tokenize
import typing as t
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask import Flask, session
from flask_login import (
    LoginManager,
    UserMixin,
    current_user,
    login_required,
    login_user,
    logout_user,
)
from site_under_test import STORES, Browser, Site, is_signed_cookie, user_class

import flask_session_registry
from flask_session_registry import (
    SessionRegistry,
    StaleRequestError,
    _adoption,
    session_registered,
)
from flask_session_registry._adoption.hooks import NoAdoption
from flask_session_registry._adoption.records import AdoptionRecords
from flask_session_registry._records.base import RevocationOrder
from flask_session_registry._revocation.rehash import same_password

Before = t.Callable[..., Site]

#: Only the commit can tell for certain which users must not be adopted.
pytestmark = pytest.mark.table


@pytest.fixture
def before(make_site: SiteFactory) -> Before:
    """Return a factory of sites without a registry."""

    def make(store: str = "files", database: str = "sqlite", **config: t.Any) -> Site:
        site = make_site(store, database, init=False, **config)
        with site.context():
            site.db.create_all()
            for name in ("ann", "bob"):
                site.db.session.add(site.User(name=name, password_hash=f"hash of {name}"))
            site.db.session.commit()
        return site

    return make


def install(site: Site, unregistered: str = "adopt", **settings: t.Any) -> None:
    site.app.config["SESSION_REGISTRY_UNREGISTERED"] = unregistered
    site.app.config.update(settings)
    site.app._got_first_request = False  # as after a restart
    site.sessions.init_app(site.app)
    with site.context():
        site.db.create_all()


def change(site: Site, **values: t.Any) -> None:
    """Change Ann, as a job or another browser would."""
    with site.context():
        for name, value in values.items():
            setattr(site.user("ann"), name, value)
        site.db.session.commit()


@pytest.fixture
def old(before: Before) -> tuple[Site, Browser, Browser]:
    """Return a site where Ann signed in on two browsers, with files, before the installation."""
    site = before()
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    install(site)
    return site, firefox, chrome


# -- existing sessions continue ------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_nobody_is_signed_out(before: Before, store: str) -> None:
    """24: each session gets a row and continues with its data, under a hashed key."""
    site = before(store)
    firefox, chrome, visitor = (site.browser(name) for name in ("Firefox", "Chrome", "Edge"))
    firefox.login()
    firefox.post("/cart", item="book")
    chrome.login("bob", remember="1")
    visitor.post("/cart", item="pen")
    install(site)
    for _ in range(2):
        assert firefox.name_shown == "ann"
        assert chrome.name_shown == "bob"
        assert firefox.get("/cart").json == {"cart": "book"}
        assert visitor.get("/cart").json == {"cart": "pen"}
    assert [(row.user_id, row.user_agent) for row in site.rows()] == [(1, "Firefox"), (2, "Chrome")]
    assert (site.active("ann"), site.active("bob")) == (1, 1)
    if not is_signed_cookie(site):
        ids = [browser.cookies["session"] for browser in (firefox, chrome, visitor)]
        assert len(site.entries()) == 3
        assert not any(id in key for id in ids for key in site.entries())
        keys = [f"{site.prefix}{hashlib.sha256(id.encode()).hexdigest()}" for id in ids]
        assert [row.store_id for row in site.rows()] == keys[:2]


def test_page_is_the_first_request(before: Before) -> None:
    """If the first request is for the page, the adopted session is redirected to it again."""
    site = before()
    firefox = site.browser()
    firefox.login()
    site.app._got_first_request = False
    site.app.register_blueprint(site.sessions.blueprint, url_prefix="/sessions")
    install(site)
    answer = firefox.get("/sessions/")
    assert (answer.status_code, answer.location) == (303, "/sessions/")
    assert "This device" in firefox.get("/sessions/").text


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_on_every_database(before: Before, database: str) -> None:
    """24: an adopted session ends for good when the password changes."""
    site = before("files", database)
    firefox, chrome, phone = (site.browser(name) for name in ("Firefox", "Chrome", "Phone"))
    for browser in (firefox, chrome, phone):
        browser.login()
    install(site)
    assert firefox.is_signed_in
    assert chrome.is_signed_in
    chrome.post("/password", password="new")
    assert chrome.is_signed_in
    assert not firefox.is_signed_in
    assert not phone.is_signed_in
    assert site.active() == 1


def test_rejected_by_default(before: Before) -> None:
    """24: with "reject", old sessions are signed out and their entries aren't even read."""
    site = before()
    firefox = site.browser()
    firefox.login()
    install(site, "reject")
    assert not firefox.is_signed_in
    assert site.rows() == []


def test_rejected_signed_cookie(before: Before) -> None:
    site = before("cookie")
    firefox = site.browser()
    firefox.login()
    install(site, "reject")
    assert firefox.get("/me").json == {"name": None, "rejected": "unregistered"}


def test_unhashed_ids(before: Before) -> None:
    """With HASH_SESSION_IDS off, the entries keep their keys."""
    site = before()
    firefox = site.browser()
    firefox.login()
    keys = set(site.entries())
    install(site, SESSION_REGISTRY_HASH_SESSION_IDS=False)
    assert firefox.is_signed_in
    assert site.active() == 1
    assert set(site.entries()) == keys


def test_hashing_turned_on_later(before: Before) -> None:
    """Registered sessions move to hashed keys too.

    Their rows follow, so that a revocation purges their entries.
    """
    site = before()
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    install(site, SESSION_REGISTRY_HASH_SESSION_IDS=False)
    assert firefox.is_signed_in
    assert chrome.is_signed_in
    raw = set(site.entries())
    del site.app.extensions["session_registry"]
    site.app.session_interface.__dict__.pop("_get_store_id")
    again = SessionRegistry()
    site.app.config["SESSION_REGISTRY_HASH_SESSION_IDS"] = True
    again.init_app(site.app)
    assert firefox.is_signed_in
    assert chrome.is_signed_in
    assert site.active() == 2
    assert not raw & set(site.entries())
    change(site, password_hash="new")
    assert not site.signed_in_entries()


def test_adoption_sends_no_signal(old: tuple[Site, Browser, Browser]) -> None:
    """An adoption is not a login: no signal is sent, and the time of authentication is unknown."""
    site, firefox, _ = old
    told: list[t.Any] = []
    with session_registered.connected_to(lambda *_, **kwargs: told.append(kwargs), site.app):
        assert firefox.is_signed_in
    assert told == []
    assert site.rows()[0].authenticated_at.year == 1970


@pytest.mark.parametrize("store", ["cookie", "redis", "files"])
def test_requests_in_parallel(before: Before, store: str) -> None:
    """A page and its resources, requested in parallel, get one row and are all signed in."""
    site = before(store)
    firefox = site.browser()
    firefox.login()
    install(site)
    barrier = threading.Barrier(4)

    @site.app.get("/together")
    def together() -> str:
        name = str(current_user.is_authenticated)
        barrier.wait(20)
        return name

    copies = [firefox.copy() for _ in range(4)]
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda browser: browser.get("/together").text, copies))
    assert answers == ["True"] * 4
    assert all(browser.is_signed_in for browser in copies)
    assert len(site.rows()) == 1


def test_later_copy(before: Before) -> None:
    """A copy of the cookie of an adopted session continues in the same row."""
    site = before("cookie")
    firefox = site.browser()
    firefox.login()
    copy = firefox.copy()
    install(site)
    assert firefox.is_signed_in
    for _ in range(2):
        assert copy.is_signed_in
    assert len(site.rows()) == 1
    with site.context():
        site.sessions.revoke(site.rows()[0].id)
        site.db.session.commit()
    assert not copy.is_signed_in


def test_database_down(old: tuple[Site, Browser, Browser]) -> None:
    """37: with the table gone, the request gets a 503. It is signed in once the table is back."""
    site, firefox, _ = old
    with site.context():
        site.sessions.UserSession.__table__.drop(site.db.engine)
    assert firefox.get("/me").status_code == 503
    with site.context():
        site.db.create_all()
    assert firefox.is_signed_in


def test_row_cannot_be_written(old: tuple[Site, Browser, Browser]) -> None:
    """38: if the row can't be written, the request gets a 503, and the session isn't lost."""
    site, firefox, _ = old

    @site.app.get("/drop")
    def drop() -> str:
        assert current_user.is_authenticated
        site.sessions.UserSession.__table__.drop(site.db.engine)
        return "ok"

    assert firefox.get("/drop").status_code == 503
    with site.context():
        site.db.create_all()
    assert firefox.is_signed_in


# -- what the first request may do ---------------------------------------------------------------


@pytest.mark.parametrize("store", ["cookie", "redis", "files", "sqlalchemy"])
@pytest.mark.parametrize("comes_back", [False, True])
def test_password_changed_in_the_first_request(
    before: Before, store: str, comes_back: bool
) -> None:
    """1, 2: this browser stays, under a new id; older copies and other browsers are signed out."""
    site = before(store)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login(remember="1")
    copy = chrome.copy()
    install(site)
    if comes_back:
        assert chrome.is_signed_in
    chrome.post("/password", password="new")
    assert chrome.is_signed_in
    assert not firefox.is_signed_in
    assert not copy.is_signed_in
    assert len(site.signed_in_entries()) == (not is_signed_cookie(site))
    chrome.lose("session")
    assert chrome.is_signed_in
    assert [row.revoked_reason for row in site.rows()] == [None]


@pytest.mark.parametrize("store", ["cookie", "redis"])
@pytest.mark.parametrize("asks", [False, True])
def test_logout_in_the_first_request(before: Before, store: str, asks: bool) -> None:
    """19: after a logout, a copy is dead and another browser is not."""
    site = before(store)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    copy = firefox.copy()
    install(site)
    if asks:
        assert firefox.is_signed_in
    firefox.post("/logout")
    assert not firefox.is_signed_in
    assert not copy.is_signed_in
    assert chrome.is_signed_in
    assert len(site.signed_in_entries()) == (not is_signed_cookie(site))


@pytest.mark.parametrize("store", ["cookie", "redis"])
@pytest.mark.parametrize("name", ["ann", "bob"])
def test_login_in_the_first_request(before: Before, store: str, name: str) -> None:
    """17, 18: a login replaces the old session, and nothing of another user's remains."""
    site = before(store)
    firefox = site.browser()
    firefox.login()
    firefox.post("/cart", item="book")
    copy = firefox.copy()
    install(site)
    firefox.login(name)
    assert firefox.name_shown == name
    assert firefox.get("/cart").json == {"cart": "book" if name == "ann" else None}
    assert not copy.is_signed_in
    assert [row.revoked_reason for row in site.rows()] == ["replaced", None]
    assert len(site.signed_in_entries()) == (not is_signed_cookie(site))


def add_rotating_view(site: Site) -> None:
    @site.app.post("/sudo")
    def sudo() -> str:
        site.sessions.rotate()
        return "ok"


@pytest.mark.parametrize("store", ["cookie", "redis"])
def test_rotate_in_the_first_request(before: Before, store: str) -> None:
    """After a rotation, the old id is dead."""
    site = before(store)
    firefox = site.browser()
    firefox.login()
    copy = firefox.copy()
    install(site)
    add_rotating_view(site)
    firefox.post("/sudo")
    assert firefox.is_signed_in
    assert not copy.is_signed_in


@pytest.mark.parametrize("spares", [True, False])
def test_revoke_all_in_the_first_request(old: tuple[Site, Browser, Browser], spares: bool) -> None:
    """13, 14: 'revoke_all' keeps this browser signed in only if it excepts the current session."""
    site, firefox, chrome = old

    @site.app.post("/revoke")
    @login_required
    def revoke() -> str:
        count = site.sessions.revoke_all(current_user, except_current=spares)
        site.db.session.commit()
        return str(count)

    assert firefox.post("/revoke").text == ("0" if spares else "1")
    assert firefox.is_signed_in is spares
    assert not chrome.is_signed_in


def test_revoke_one_in_the_first_request(old: tuple[Site, Browser, Browser]) -> None:
    """Revoking one of one's own sessions signs out that one.

    It also signs out the sessions not seen since the installation.
    """
    site, firefox, chrome = old

    @site.app.post("/revoke/<id>")
    @login_required
    def revoke(id: str) -> str:
        ended = site.sessions.revoke(id, user=current_user)
        site.db.session.commit()
        return str(ended)

    assert chrome.is_signed_in
    (row,) = site.rows()
    assert firefox.post(f"/revoke/{row.id}").text == "True"
    assert firefox.is_signed_in
    assert not chrome.is_signed_in


def test_change_rolled_back(old: tuple[Site, Browser, Browser]) -> None:
    """4: a change that is rolled back signs out nobody and blocks no adoption."""
    site, firefox, chrome = old

    @site.app.post("/fail")
    @login_required
    def fail() -> str:
        current_user.password_hash = "new"
        site.db.session.flush()
        site.db.session.rollback()
        return "no"

    firefox.post("/fail")
    assert firefox.is_signed_in
    assert chrome.is_signed_in
    assert site.active() == 2


def test_rehash(old: tuple[Site, Browser, Browser]) -> None:
    """11: a new hash of the same password blocks no adoption."""
    site, firefox, chrome = old
    assert firefox.is_signed_in
    with site.context():
        user = site.user("ann")
        with site.sessions.same_credentials(user):
            user.password_hash = "new hash of the same"
        site.db.session.commit()
    assert firefox.is_signed_in
    assert chrome.is_signed_in


# -- revoked sessions stay dead ------------------------------------------------------------------


def command(*arguments: str) -> t.Callable[[Site], None]:
    def run(site: Site) -> None:
        result = site.app.test_cli_runner().invoke(args=["revoke-sessions", *arguments])
        assert result.exit_code == 0, result.output

    return run


def revoke_all(site: Site) -> None:
    with site.context():
        site.sessions.revoke_all(site.user("ann"))
        site.db.session.commit()


def delete(site: Site) -> None:
    """Delete Ann, and give her key to another user."""
    with site.context():
        site.db.session.delete(site.user("ann"))
        site.db.session.commit()
        site.db.session.add(site.User(id=1, name="eve", password_hash="x"))
        site.db.session.commit()


def deactivate(site: Site) -> None:
    change(site, is_active=False)
    change(site, is_active=True)


REVOCATIONS: dict[str, t.Callable[[Site], None]] = {
    "password": lambda site: change(site, password_hash="new"),
    "revoke_all": revoke_all,
    "command": command("1"),
    "command for all": command("--all", "--yes"),
    "deleted": delete,
}


@pytest.mark.parametrize("has_rows", [False, True])
@pytest.mark.parametrize("revocation", REVOCATIONS)
@pytest.mark.parametrize("store", ["cookie", "redis"])
def test_nobody_comes_back(before: Before, store: str, revocation: str, has_rows: bool) -> None:
    """24: after a revocation, a user's old sessions are never adopted, with or without rows."""
    site = before(store)
    firefox, chrome, other = (site.browser(name) for name in ("Firefox", "Chrome", "Edge"))
    firefox.login(remember="1")
    chrome.login()
    other.login("bob")
    copy = firefox.copy()
    install(site, SESSION_REGISTRY_RETENTION=0)
    if has_rows:
        assert firefox.is_signed_in
    for _ in range(2):
        # Revoking twice is not an error.
        REVOCATIONS[revocation](site)
        if revocation == "deleted":
            break
    with site.context():
        site.sessions.prune()
    lone = copy.copy("remember_token")
    for browser in (firefox, copy, chrome, lone):
        assert not browser.is_signed_in
    assert other.is_signed_in is (revocation != "command for all")


def test_change_that_revokes_nothing(before: Before) -> None:
    """With REVOKE_ON_PASSWORD_CHANGE off, a password change still blocks the adoption."""
    site = before()
    firefox = site.browser()
    firefox.login()
    install(site, SESSION_REGISTRY_REVOKE_ON_PASSWORD_CHANGE=False)
    change(site, password_hash="new")
    assert not firefox.is_signed_in


def test_inactive(before: Before) -> None:
    """51: after a deactivation, reactivating the user doesn't revive old sessions."""

    def model(db: t.Any) -> type[t.Any]:
        from site_under_test import user_class

        return user_class(db, is_active=sa.orm.mapped_column(sa.Boolean, default=True))

    site = before(model=model)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    install(site)
    change(site, is_active=False)
    assert not firefox.is_signed_in
    change(site, is_active=True)
    assert not firefox.is_signed_in
    assert not chrome.is_signed_in


def test_inactive_and_unseen(before: Before) -> None:
    """An inactive user is not adopted, even if no revocation was recorded."""

    def model(db: t.Any) -> type[t.Any]:
        from site_under_test import user_class

        return user_class(db, is_active=property(lambda user: user.note is None))

    site = before(model=model)
    firefox = site.browser()
    firefox.login()
    install(site)
    with site.context():
        site.db.session.execute(sa.update(site.User).values(note="locked"))
        site.db.session.commit()
    assert not firefox.is_signed_in


def meanwhile(site: Site, what: t.Callable[[Site], object]) -> None:
    """Run something in another thread while this request continues."""
    site.db.session.rollback()
    with ThreadPoolExecutor() as pool:
        pool.submit(what, site).result(20)


def add_slow_view(site: Site, what: t.Callable[[Site], object]) -> None:
    """Add a view that has accessed the user when something else happens."""

    @site.app.get("/slow")
    def slow() -> str:
        assert current_user.is_authenticated
        meanwhile(site, what)
        return "ok"


def by_hand(statement: str) -> t.Callable[[Site], None]:
    def run(site: Site) -> None:
        with site.context():
            site.db.session.execute(sa.text(statement))
            site.db.session.commit()

    return run


def test_revoked_while_it_is_adopted(old: tuple[Site, Browser, Browser]) -> None:
    """A revocation between the check and the end of the request ends the adopted session too."""
    site, firefox, _ = old
    add_slow_view(site, revoke_all)
    assert firefox.get("/slow").text == "ok"
    assert not firefox.is_signed_in
    assert site.active() == 0


def test_password_changed_while_it_is_adopted(old: tuple[Site, Browser, Browser]) -> None:
    site, firefox, _ = old
    add_slow_view(site, by_hand("UPDATE account SET password_hash = 'by hand'"))
    assert firefox.get("/slow").text == "ok"
    assert not firefox.is_signed_in


def test_user_deleted_while_it_is_adopted(old: tuple[Site, Browser, Browser]) -> None:
    site, firefox, _ = old
    add_slow_view(site, by_hand("DELETE FROM account"))
    assert firefox.get("/slow").text == "ok"
    assert not firefox.is_signed_in
    assert site.rows() == []


def test_rotated_while_it_is_adopted(before: Before) -> None:
    """If a parallel request rotates the session, a late request of its copy is signed out."""
    site = before("cookie")
    firefox = site.browser()
    firefox.login()
    copy = firefox.copy()
    install(site)
    add_rotating_view(site)
    add_slow_view(site, lambda _: firefox.post("/sudo"))
    assert copy.get("/slow").text == "ok"
    assert not copy.is_signed_in
    assert firefox.is_signed_in


@pytest.mark.parametrize("store", ["cookie", "redis", "files", "memcached", "sqlalchemy"])
def test_dump_of_the_store(before: Before, store: str) -> None:
    """22: a key from a store dump doesn't work as a cookie, before or after the move."""
    site = before(store)
    firefox = site.browser()
    firefox.login()
    install(site)
    assert firefox.is_signed_in
    (row,) = site.rows()
    for key in [*site.entries(), str(row.store_id)]:
        assert not site.browser(session=key).is_signed_in
        assert not site.browser(session=key.removeprefix(site.prefix)).is_signed_in
    assert len(site.rows()) == 1


def test_ended_rows_are_kept(old: tuple[Site, Browser, Browser]) -> None:
    """Ended rows keep blocking adoption, so a prune keeps them as long as sessions are adopted."""
    site, firefox, _ = old
    copy = firefox.copy()
    assert firefox.is_signed_in
    change(site, password_hash="new")
    long_ago = sa.func.datetime("now", "-90 days")
    with site.context():
        site.db.session.execute(sa.update(site.sessions.UserSession).values(revoked_at=long_ago))
        site.db.session.commit()
        assert site.sessions.prune().forgotten == 0
    assert not copy.is_signed_in
    assert len(site.rows()) == 1


# -- "remember me" -------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["cookie", "redis"])
def test_remembered_only(before: Before, store: str) -> None:
    """A browser with only a "remember me" cookie continues and gets its binding cookie."""
    site = before(store)
    firefox = site.browser()
    firefox.login(remember="1")
    firefox.lose("session")
    install(site)
    assert firefox.is_signed_in
    assert set(firefox.cookies) == {"session", "remember_token", "remember_token_session"}
    firefox.lose("session")
    assert firefox.is_signed_in
    (row,) = site.rows()
    assert row.remember_until is not None
    copy = firefox.copy("remember_token", "remember_token_session")
    firefox.post("/logout")
    assert not copy.is_signed_in


def bare(site: Site, agent: str = "Firefox") -> Browser:
    """Return a browser that has only a "remember me" cookie, from before the installation."""
    browser = site.browser(agent)
    browser.login(remember="1")
    return site.browser(agent, remember_token=browser.cookies["remember_token"])


@pytest.mark.parametrize("store", ["cookie", "files"])
def test_remember_cookie_always_alone(before: Before, store: str) -> None:
    """15, 24: a "remember me" cookie that always comes alone makes one session, not one a request.

    Varying the user agent makes only a few more.
    """
    site = before(store)
    firefox = bare(site)
    install(site)
    token = firefox.cookies["remember_token"]
    for _ in range(3):
        again = site.browser("Firefox", remember_token=token)
        assert again.is_signed_in
        assert set(again.cookies) == {"session", "remember_token", "remember_token_session"}
        again.lose("session")
        assert again.is_signed_in
    assert site.active() == 1
    for number in range(60):
        assert site.browser(f"Agent {number}", remember_token=token).is_signed_in
    assert 8 <= site.active() <= 16


def test_lone_remember_cookies_in_parallel(before: Before, database: str) -> None:
    """24, 33: parallel requests with a lone "remember me" cookie make one session."""
    site = before("files", database)
    firefox = bare(site)
    install(site)
    tabs = [firefox.copy() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda tab: tab.is_signed_in, tabs))
    assert site.active() == 1


def test_lone_remember_cookie_of_an_ended_session(before: Before) -> None:
    """15, 24: a lone "remember me" cookie is worthless once the session it made has ended."""
    site = before()
    firefox = bare(site)
    install(site)
    copy = site.browser("Firefox", **firefox.cookies)
    assert firefox.is_signed_in
    firefox.post("/logout")
    assert copy.rejected == "logged_out"
    assert not copy.is_signed_in
    assert site.active() == 0


def test_lone_remember_cookie_after_a_rotation(before: Before) -> None:
    """15, 24: after a rotation, a copy of a lone "remember me" cookie is rejected."""
    site = before()

    @site.app.post("/rotate")
    def rotate() -> str:
        site.sessions.rotate()
        return "rotated"

    firefox = bare(site)
    install(site)
    copy = site.browser("Firefox", **firefox.cookies)
    assert firefox.is_signed_in
    firefox.post("/rotate")
    assert copy.rejected == "rotated"
    assert firefox.is_signed_in
    assert site.active() == 1


@pytest.mark.parametrize("duration", [3600, None])
def test_binding_cookie_is_added(before: Before, duration: int | None) -> None:
    """An adopted session with a "remember me" cookie gets a binding cookie too.

    When its session cookie is lost, the browser returns to its row.
    """
    settings = {} if duration is None else {"REMEMBER_COOKIE_DURATION": duration}
    site = before(**settings)
    firefox = site.browser()
    firefox.login(remember="1")
    install(site)
    assert firefox.is_signed_in
    firefox.lose("session")
    assert firefox.is_signed_in
    (row,) = site.rows()
    days = (row.remember_until - row.created_at).days
    assert days == (365 if duration is None else 0)


def test_binding_cookie_of_another(before: Before) -> None:
    """46: a "remember me" cookie with a forged binding cookie is rejected."""
    site = before()
    firefox = site.browser()
    firefox.login(remember="1")
    firefox.lose("session")
    install(site)
    firefox.carry({"remember_token_session": "forged"})
    assert not firefox.is_signed_in
    assert firefox.cookies == {}


def test_forged_remember_cookie(before: Before) -> None:
    """A forged "remember me" cookie is rejected, but kept: another app on this host may own it."""
    site = before()
    install(site)
    firefox = site.browser(remember_token="1|" + "0" * 128)
    assert not firefox.is_signed_in
    assert "remember_token" in firefox.cookies
    assert site.rows() == []


def test_remember_cookie_of_a_blocked_user(before: Before) -> None:
    """A blocked user's "remember me" cookie is rejected and cleared."""
    site = before()
    firefox = site.browser()
    firefox.login(remember="1")
    firefox.lose("session")
    install(site)
    change(site, password_hash="new")
    assert firefox.get("/me").json == {"name": None, "rejected": "unregistered"}
    assert firefox.cookies == {}


# -- users who can't be adopted ------------------------------------------------------------------


def test_deleted_user(old: tuple[Site, Browser, Browser]) -> None:
    site, firefox, _ = old
    with site.context():
        site.db.session.execute(sa.text("DELETE FROM account"))
        site.db.session.commit()
    assert firefox.get("/me").json == {"name": None, "rejected": "unregistered"}
    assert site.rows() == []


def test_app_without_a_user_loader(before: Before) -> None:
    """With only a 'request_loader', users have no session to adopt."""
    site = before("cookie")
    firefox = site.browser()
    firefox.login()
    install(site)
    site.login_manager._user_callback = None
    site.login_manager.request_loader(lambda _: None)
    assert firefox.get("/me").json == {"name": None, "rejected": "unregistered"}


@pytest.mark.parametrize("value", ["", "x", "a" * 64, "a" * 181, "../x", "\0", "é"])
def test_malformed_cookies(before: Before, value: str) -> None:
    """21: a malformed cookie is anonymous: no error and no row."""
    site = before()
    install(site)
    firefox = site.browser(session=value)
    assert not firefox.is_signed_in
    assert site.rows() == []


def test_signed_session_ids(before: Before) -> None:
    """Sessions with Flask-Session's old signer are adopted; forged signatures are rejected."""
    site = before("redis", SESSION_USE_SIGNER=True)
    firefox = site.browser()
    firefox.login()
    id = firefox.cookies["session"].rpartition(".")[0]
    install(site)
    assert not site.browser(session=f"{id}.forged").is_signed_in
    assert firefox.is_signed_in
    assert site.active() == 1


# -- found by an attack --------------------------------------------------------------------------

BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def test_signature_in_another_spelling(before: Before) -> None:
    """19: a dead cookie is dead in every spelling of its signature."""
    site = before("cookie")
    firefox = site.browser()
    firefox.login()
    value = firefox.cookies["session"]
    install(site)
    assert firefox.is_signed_in
    firefox.post("/logout")
    same = value[:-1] + BASE64[BASE64.index(value[-1]) ^ 1]
    for spelling in (value, same):
        assert not site.browser(session=spelling).is_signed_in
    assert len(site.rows()) == 1


@pytest.mark.parametrize("database", ["sqlite", "mariadb"])
def test_dump_in_capital_letters(before: Before, database: str) -> None:
    """22: a key from a dump doesn't work in capitals, which MariaDB's collation treats as equal."""
    site = before("sqlalchemy", database)
    firefox = site.browser()
    firefox.login()
    install(site)
    assert firefox.is_signed_in
    hash = site.rows()[0].store_id.removeprefix(site.prefix)
    for spelling in (hash, hash.upper(), hash[:32] + hash[32:].upper()):
        assert not site.browser(session=spelling).is_signed_in


@pytest.mark.parametrize("store", ["files", "cookie"])
@pytest.mark.parametrize("what", ["password", "revoke the others", "rehash"])
def test_revoked_while_it_revokes(before: Before, database: str, store: str, what: str) -> None:
    """A revocation during the session's first request stands, whatever the request does later."""
    site = before(store, database)
    thief = site.browser()
    thief.login()
    install(site)

    @site.app.post("/slow")
    @login_required
    def slow() -> str:
        meanwhile(site, revoke_all)
        if what == "password":
            current_user.password_hash = "new"
        elif what == "rehash":
            with site.sessions.same_credentials(current_user):
                current_user.password_hash = "new"
        else:
            site.sessions.revoke_all(current_user, except_current=True)
        site.db.session.commit()
        return "ok"

    thief.post("/slow")
    assert not thief.is_signed_in
    assert site.active() == 0


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_everybody_is_revoked_while_one_is_adopted(
    before: Before, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    """Blocking everyone locks no single user's row, so an adoption checks again."""
    site = before("files", database)
    thief = site.browser()
    thief.login()
    install(site)
    adopt = AdoptionRecords.adopt

    def late(self: t.Any, execute: t.Any, values: t.Any, **options: t.Any) -> t.Any:
        with ThreadPoolExecutor() as pool:
            pool.submit(command("--all", "--yes"), site).result(20)
        return adopt(self, execute, values, **options)

    with monkeypatch.context() as context:
        context.setattr(AdoptionRecords, "adopt", late)
        thief.get("/me")
    assert not thief.is_signed_in


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_many_at_once(before: Before, database: str) -> None:
    """29: when all users arrive at once, as after the installation, all are adopted.

    A locking read of the missing row made MariaDB detect a deadlock in most runs.
    """
    site = before("cookie", database)
    with site.context():
        for number in range(40):
            site.db.session.add(site.User(name=f"user {number}", password_hash="x"))
        site.db.session.commit()
    browsers = [site.browser() for _ in range(40)]
    for number, browser in enumerate(browsers):
        browser.login(f"user {number}")
    install(site)
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda browser: browser.get("/me").status_code, browsers))
    assert set(codes) == {200}
    assert len(site.rows()) == 40


def test_several_changes_at_once(before: Before, database: str) -> None:
    """29: of several password changes at once, the first is stored and the others are refused."""
    site = before("files", database)
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    browsers = [site.browser() for _ in range(4)]
    for browser in browsers:
        browser.login()
    install(site)
    barrier = threading.Barrier(4)

    @site.app.post("/change")
    @login_required
    def change_it() -> str:
        barrier.wait(20)
        current_user.password_hash = uuid.uuid4().hex
        site.db.session.commit()
        return "ok"

    if database == "sqlite":
        # On SQLite one waits for the other, or fails at once.
        barrier = threading.Barrier(1)
        codes = [browser.post("/change").status_code for browser in browsers]
        assert codes == [200, 401, 401, 401]
        return
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda browser: browser.post("/change").status_code, browsers))
    assert sorted(codes) == [200, 409, 409, 409]
    assert sum(browser.is_signed_in for browser in browsers) <= 1


def test_uncommitted_adoption_block(before: Before, caplog: pytest.LogCaptureFixture) -> None:
    """15: an uncommitted adoption block isn't committed by a session store in SQL."""
    site = before("sqlalchemy")
    ann, bob = site.browser(), site.browser()
    ann.login()
    bob.login("bob")
    install(site)

    @site.app.post("/revoke")
    @login_required
    def revoke() -> str:
        site.sessions.revoke_all(site.user("ann"))
        session["x"] = 1
        return "forgot to commit"

    bob.post("/revoke")
    assert "has been rolled back" in caplog.text
    assert ann.is_signed_in


def test_revoking_an_ended_session(old: tuple[Site, Browser, Browser]) -> None:
    """Revoking an ended session returns False and ends nothing."""
    site, firefox, chrome = old
    assert chrome.is_signed_in
    chrome.post("/logout")
    (row,) = site.rows()
    with site.context():
        assert not site.sessions.revoke(row.id, user=site.user("ann"))
        site.db.session.commit()
    assert firefox.is_signed_in


def test_another_signs_in_while_the_first_is_revoked(old: tuple[Site, Browser, Browser]) -> None:
    """18: a login of another user stands, although the session it replaces was just revoked."""
    site, firefox, _ = old

    @site.app.post("/over")
    def over() -> str:
        assert current_user.is_authenticated
        meanwhile(site, revoke_all)
        login_user(site.user("bob"))
        return "signed in"

    firefox.post("/over")
    assert firefox.name_shown == "bob"
    assert site.active() == 0


def test_signs_out_while_revoked(old: tuple[Site, Browser, Browser]) -> None:
    """A logout during a revocation leaves the session ended."""
    site, firefox, _ = old

    @site.app.post("/leave")
    def leave() -> str:
        assert current_user.is_authenticated
        meanwhile(site, revoke_all)
        logout_user()
        session.clear()
        return "signed out"

    assert firefox.post("/leave").text == "signed out"
    assert not firefox.is_signed_in
    assert site.active() == 0


def test_user_put_into_the_session_by_the_app(before: Before) -> None:
    """Each user that the app puts into a session, without a cookie, gets an own user session."""
    site = before()
    install(site)

    @site.app.post("/sso/<id>")
    def sso(id: str) -> str:
        session["_user_id"] = id
        return str(getattr(current_user, "name", "nobody"))

    for _ in range(2):
        assert site.browser().post("/sso/1").text == "ann"
        assert site.browser().post("/sso/2").text == "bob"
    assert (site.active("ann"), site.active("bob")) == (2, 2)


# -- the row of an adopted session ---------------------------------------------------------------


def test_user_of_another_class(before: Before) -> None:
    """A session whose user the registry can't record is not adopted."""
    site = before("cookie")
    firefox = site.browser()
    firefox.login()
    install(site)

    class Guest(UserMixin):
        id = 1
        name = "guest"

    site.login_manager.user_loader(lambda _: Guest())
    assert firefox.get("/me").json == {"name": None, "rejected": "unregistered"}
    assert site.rows() == []


def test_remember_cookie_of_another(before: Before) -> None:
    """Another user's "remember me" cookie doesn't affect the session it comes with."""
    site = before()
    firefox, bob = site.browser(), site.browser()
    firefox.login()
    bob.login("bob", remember="1")
    firefox.carry({"remember_token": bob.cookies["remember_token"]})
    install(site)
    assert firefox.name_shown == "ann"
    (row,) = site.rows()
    assert row.remember_until is None


def test_row_is_not_written_while_ending_others(old: tuple[Site, Browser, Browser]) -> None:
    """A transaction that ends Bob's sessions writes no row of Ann's."""
    site, firefox, _ = old

    @site.app.post("/revoke")
    @login_required
    def revoke() -> str:
        site.sessions.revoke_all(site.user("bob"))
        model = site.sessions.UserSession
        count = sa.select(sa.func.count()).where(model.user_id == current_user.id)
        written = site.db.session.scalar(count)
        site.db.session.commit()
        return str(written)

    assert firefox.post("/revoke").text == "0"
    assert firefox.is_signed_in
    assert site.active() == 1


def test_change_that_ends_the_current_session_too(before: Before) -> None:
    """With REVOKE_ON_PASSWORD_CHANGE off, a password change ends the current session too.

    Its row has the old password's fingerprint.
    """
    site = before()
    firefox = site.browser()
    firefox.login()
    install(site, SESSION_REGISTRY_REVOKE_ON_PASSWORD_CHANGE=False)
    assert firefox.post("/password", password="new").status_code == 200
    assert not firefox.is_signed_in


def test_password_loaded_late(before: Before) -> None:
    """The hash at the time of the check counts, even if the password is loaded lazily."""

    def model(db: t.Any) -> type[t.Any]:
        class User(UserMixin, db.Model):
            __tablename__ = "account"
            id = sa.orm.mapped_column(sa.Integer, primary_key=True)
            name = sa.orm.mapped_column(sa.String(50))
            password_hash = sa.orm.mapped_column(sa.String(100), deferred=True)

        return User

    site = before(model=model)
    firefox = site.browser()
    firefox.login()
    install(site)
    add_slow_view(site, by_hand("UPDATE account SET password_hash = 'by hand'"))
    assert firefox.get("/slow").text == "ok"
    assert not firefox.is_signed_in


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_change_after_another_request_adopted(before: Before, database: str) -> None:
    """29: a transaction that began before the adoption can still change the password."""
    site = before("cookie", database)
    firefox = site.browser()
    firefox.login()
    copy = firefox.copy()
    install(site)

    @site.app.post("/slow-password")
    @login_required
    def slow_password() -> str:
        site.db.session.execute(sa.select(site.sessions.UserSession.id)).all()
        with ThreadPoolExecutor() as pool:
            assert pool.submit(copy.get, "/me").result(20).json["name"] == "ann"
        current_user.password_hash = "new"
        site.db.session.commit()
        return "changed"

    assert firefox.post("/slow-password").status_code == 200
    assert firefox.is_signed_in
    assert not copy.is_signed_in
    assert len(site.rows()) == 1


# -- snapshots older than a revocation -----------------------------------------------------------

LEVELS = [
    ("postgresql", "REPEATABLE READ"),
    ("postgresql", "SERIALIZABLE"),
    ("mariadb", "REPEATABLE READ"),
]


@pytest.mark.parametrize(("database", "level"), LEVELS)
@pytest.mark.parametrize(
    ("what", "bar"),
    [
        ("nothing", "user"),
        ("the others", "user"),
        ("one that has ended", "user"),
        ("password", "user"),
        ("the others", "everybody"),
    ],
)
def test_revoked_behind_an_old_snapshot(
    before: Before, database: str, level: str, what: str, bar: str
) -> None:
    """A transaction too old to see the adoption block neither adopts a session nor keeps it.

    It fails as PostgreSQL fails any change that was overtaken.
    """
    options = {"isolation_level": level}
    site = before("cookie", database, SQLALCHEMY_ENGINE_OPTIONS=options)
    thief = site.browser()
    thief.login()
    install(site)
    errors: list[Exception] = []
    ended: list[uuid.UUID] = []
    revoke = revoke_all if bar == "user" else command("--all", "--yes")

    @site.app.post("/slow")
    @login_required
    def slow() -> str:
        with ThreadPoolExecutor() as pool:
            pool.submit(revoke, site).result(20)
        try:
            if what == "the others":
                site.sessions.revoke_all(current_user, except_current=True)
            elif what == "one that has ended":
                assert not site.sessions.revoke(ended[0])
            elif what == "password":
                current_user.password_hash = "new"
            site.db.session.commit()
        except Exception as error:
            site.db.session.rollback()
            errors.append(error)
        return "ok"

    site.browser("Chrome").login()
    ended.append(site.rows()[0].id)
    with site.context():
        site.sessions.revoke(ended[0])
        # Delete the adoption block: only what the thief's transaction sees is left of it.
        site.db.session.execute(sa.delete(site.tombstone))
        site.db.session.commit()
    thief.post("/slow")
    assert not thief.is_signed_in
    assert site.active() == 0
    for error in errors:
        if what == "password":
            assert isinstance(error, StaleRequestError)
            continue
        assert isinstance(error, sa.exc.OperationalError)
        assert t.cast(t.Any, error.orig).sqlstate == "40001"


# -- where it is called ------------------------------------------------------------------------

PACKAGE = Path(flask_session_registry.__file__).parent

#: A hook that is called, or else the whole line.
CALL = re.compile(r"(?<=\.)adoption\.\w+")


def mentions_in(path: Path) -> t.Iterator[str]:
    """Yield what the code of a module says of adoption; comments don't count."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type != tokenize.COMMENT and "adopt" in token.string.lower():
                found = CALL.search(token.line)
                yield found.group() if found else token.line.strip()


@pytest.mark.once
def test_every_call_is_listed() -> None:
    """The package can be freed of adoption by deleting what the docstring of '_adoption' lists."""
    found = {
        (path.relative_to(PACKAGE).as_posix(), mention)
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "_adoption" and path.name != "_config.py"
        for mention in mentions_in(path)
    }
    listed = re.findall(r"^- ``(.+?)``: ``(.+)``$", str(_adoption.__doc__), flags=re.MULTILINE)
    assert found == set(listed)
    assert len(found) == len(listed)
    hooks = {name for name in vars(NoAdoption) if not name.startswith("_")}
    assert hooks == {
        call.removeprefix("adoption.") for _, call in listed if re.fullmatch(r"adoption\.\w+", call)
    }


# -- changes outside the app ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "has_other_app"),
    [
        ("password", False),
        ("password", True),
        ("inactive", False),
        ("deletion", False),
        ("note", False),
        ("rehash", False),
    ],
)
def test_change_outside_the_app(
    before: Before, make_site: SiteFactory, database: str, what: str, has_other_app: bool
) -> None:
    """A database session in a thread, a script or another app blocks the adoption just as well."""
    site = before("cookie", database, model=with_active)
    firefox, edge = site.browser("Firefox"), site.browser("Edge")
    firefox.login()
    edge.login("bob")
    install(site)
    with site.context():
        engine = site.db.engine

    def change_it() -> None:
        with sa_orm.Session(engine) as own, own.begin():
            user = own.scalars(sa.select(site.User).filter_by(name="ann")).one()
            if what == "deletion":
                own.delete(user)
            elif what == "rehash":
                with same_password(user):
                    user.password_hash = "new"
                    own.flush()
            elif what == "inactive":
                user.active = False
            else:
                setattr(user, {"password": "password_hash"}.get(what, what), "new")
        with engine.begin() as connection:
            connection.execute(sa.update(site.User).values(active=True))

    if has_other_app:
        with make_site("cookie").context():
            change_it()
    else:
        change_it()
    with site.context():
        assert site.registry.adoption.records.is_adoption_blocked(1) == (
            what not in ("note", "rehash")
        )
        assert not site.registry.adoption.records.is_adoption_blocked(2)
    assert firefox.is_signed_in == (what in ("note", "rehash"))
    assert edge.is_signed_in


def test_change_outside_two_apps(before: Before) -> None:
    """Two apps that share users and table block a user once."""
    site = before("cookie")
    firefox = site.browser()
    firefox.login()
    install(site)
    other = Flask("other")
    other.config.update(site.app.config)
    site.db.init_app(other)
    LoginManager(other)
    SessionRegistry(other)
    with site.context():
        engine = site.db.engine
    with sa_orm.Session(engine) as own, own.begin():
        own.scalars(sa.select(site.User).filter_by(name="ann")).one().password_hash = "new"
    assert not firefox.is_signed_in
    assert site.rows() == []


def test_change_outside_an_app_that_does_not_adopt(before: Before) -> None:
    """Without adoption, a change outside the app costs no extra statement."""
    site = before()
    install(site, "reject")
    with site.context():
        engine = site.db.engine
    with site.count_statements() as statements, sa_orm.Session(engine) as own, own.begin():
        own.scalars(sa.select(site.User).filter_by(name="ann")).one().password_hash = "new"
    assert [text.split()[0] for text in statements.texts] == ["SELECT", "UPDATE"]


def with_active(db: t.Any) -> type[t.Any]:
    return user_class(
        db, active=sa_orm.mapped_column(sa.Boolean, default=True), is_active=property(_is_active)
    )


def _is_active(user: t.Any) -> bool:
    return bool(user.active)


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
def test_change_in_the_first_request_holds_up_nobody_else(before: Before, database: str) -> None:
    """29: while a session from before changes its password, another user's session is rotated."""
    site = before("files", database)
    flushed, rotated = threading.Event(), threading.Event()

    @site.app.post("/slowly")
    @login_required
    def slowly() -> str:
        current_user.password_hash = "new"
        site.db.session.flush()
        flushed.set()
        # SQLite has one writer at a time.
        assert database == "sqlite" or rotated.wait(30)
        site.db.session.commit()
        return "changed"

    @site.app.post("/rotate")
    def rotate() -> str:
        site.sessions.rotate()
        return "rotated"

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    install(site)
    chrome.login("bob")
    answers: list[int] = []
    changing = threading.Thread(target=lambda: answers.append(firefox.post("/slowly").status_code))
    changing.start()
    assert flushed.wait(30)
    if database == "sqlite":
        changing.join()
    assert chrome.post("/rotate").status_code == 200
    rotated.set()
    changing.join()
    assert answers == [200]


def test_revocation_that_ends_nothing_blocks_nothing(before: Before) -> None:
    """A user stays free to be adopted if a revocation of one session finds that it has ended."""
    site = before()
    install(site)
    with site.context():
        ann = site.user("ann").id
        order = RevocationOrder("revoked", [ann], only_id=uuid.uuid4())
        execute = site.db.session.execute
        assert not site.registry.adoption.after_revocation(execute, order, 0)
        assert not site.registry.adoption.records.is_adoption_blocked(ann)
