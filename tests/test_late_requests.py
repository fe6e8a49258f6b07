"""Requests sent before the browser's session changed, and answered after it."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from conftest import SiteFactory
from flask import Flask, Response, session
from flask.sessions import SecureCookieSessionInterface, SessionMixin
from flask_login import current_user, login_required, logout_user
from site_under_test import Browser, Site, days_ago
from test_races import Held

from flask_session_registry._request import persistence

#: So long ago that a browser's earlier requests can no longer be in flight.
LONG_AGO = days_ago(1 / 144)


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
    """16: this also holds if only the key of the lost entry leads to the session."""
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
    """16, 46: seconds later no request is in flight, so the old cookies are refused and cleared."""
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
    """16, 46: a session ended by its user or by time has no newer cookies; they are cleared."""
    site = make_site("cookie", database)
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    session_cookie = firefox.cookies["session"]
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
        site.change(last_seen_at=days_ago(40), remember_until=None)
        firefox.carry({"session": session_cookie})
    assert firefox.get("/me").json["name"] is None
    kept = {"remember_token", "remember_token_session"} & set(firefox.cookies)
    # In Redis, the session that changed the password has an earlier fingerprint for a moment.
    assert bool(kept) == (way == "password_changed" and site.records != "sql")


# -- in flight during the change -------------------------------------------------------------------


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.may_go_on.set()
    held.pool.shutdown()


def add_poll(site: Site, held: Held) -> None:
    @site.app.get("/poll")
    @login_required
    def poll() -> str:
        name = str(current_user.name)
        site.db.session.rollback()
        held.wait()
        return name


def make_permanent(site: Site) -> None:
    """Make sessions permanent. Flask refreshes a signed cookie on each request only if it is."""

    login = site.app.view_functions["login"]

    def permanent_login() -> t.Any:
        session.permanent = True
        return login()

    site.app.view_functions["login"] = permanent_login


def test_poll_during_the_own_password_change(store_site: Site, held: Held) -> None:
    """12, 33: a request that only reads, however short, answers last and undoes nothing."""
    make_permanent(store_site)
    add_poll(store_site, held)
    chrome = store_site.browser("Chrome")
    chrome.login(remember="1")
    late = store_site.browser("Chrome", **chrome.cookies)
    entries = len(store_site.entries())
    answer = held.start(lambda: late.get("/poll"))
    chrome.post("/password", password="new")
    response = held.finish(answer)
    assert response.text == "ann"
    assert not response.headers.getlist("Set-Cookie")
    assert "Cookie" in response.headers["Vary"]
    assert len(store_site.entries()) == entries
    assert chrome.is_signed_in


def test_poll_that_is_due_to_prolong_the_session(database_site: Site, held: Held) -> None:
    """12: a touch writes the session, unless the session has a new id in the meantime."""
    site = database_site
    make_permanent(site)
    add_poll(site, held)
    chrome = site.browser("Chrome")
    chrome.login()
    site.change(last_seen_at=LONG_AGO)
    late = site.browser("Chrome", **chrome.cookies)
    answer = held.start(lambda: late.get("/poll"))
    chrome.post("/password", password="new")
    assert not held.finish(answer).headers.getlist("Set-Cookie")
    assert len(site.entries()) == 1
    assert chrome.is_signed_in


@pytest.mark.parametrize(
    ("config", "prolongs"),
    [
        ({}, False),
        ({"PERMANENT_SESSION_LIFETIME": 3000}, False),
        ({"PERMANENT_SESSION_LIFETIME": 2999}, True),
        ({"SESSION_REGISTRY_TOUCH_INTERVAL": None}, True),
    ],
)
@pytest.mark.parametrize("store", ["cookie", "redis"])
def test_session_of_a_browser_in_use_is_prolonged(
    make_site: SiteFactory, store: str, config: dict[str, t.Any], prolongs: bool
) -> None:
    """12: on each request, or at each touch if its lifetime spans ten touches or more."""
    site = make_site(store, **config)
    make_permanent(site)
    firefox = site.browser("Firefox")
    firefox.login()

    def visit() -> bool:
        """Visit, and return whether the session was prolonged."""
        entries = list(site.entries())
        for key in entries:
            site.redis.expire(key, 100)
        is_given = bool(firefox.get("/me").headers.getlist("Set-Cookie"))
        for key in entries:
            assert is_given == (site.redis.ttl(key) > 100)
        return is_given

    assert visit() == prolongs
    # A request that never asks for the user doesn't prolong it either.
    assert bool(firefox.get("/cart").headers.getlist("Set-Cookie")) == prolongs
    site.change(last_seen_at=LONG_AGO)
    assert visit()
    assert visit() == prolongs


def test_session_that_is_written_by_hand_or_in_place(make_site: SiteFactory) -> None:
    """12: what a view appends to a list in the session is stored, as without the registry."""
    site = make_site("redis")

    @site.app.post("/add")
    def add() -> dict[str, int]:
        assert current_user.is_authenticated
        session.setdefault("cart", []).append("book")
        return {"count": len(session["cart"])}

    firefox = site.browser("Firefox")
    firefox.login()
    assert [firefox.post("/add").json["count"] for _ in range(3)] == [1, 2, 3]


def test_anonymous_session_is_prolonged_as_before(make_site: SiteFactory) -> None:
    """12: a cart lives for as long as its visitor keeps coming back."""
    site = make_site("redis")
    visitor = site.browser("Visitor")
    visitor.post("/cart", item="book")
    (key,) = site.entries()
    site.redis.expire(key, 100)
    assert visitor.get("/me").status_code == 200
    assert site.redis.ttl(key) > 100


@pytest.mark.table
def test_app_without_the_registry_in_the_same_process(make_site: SiteFactory) -> None:
    """12: all apps share Flask's session interface class, but other apps' sessions aren't ours."""
    make_site("cookie")
    other = Flask("other")
    other.secret_key = "only for tests"

    @other.get("/")
    def index() -> str:
        return str(session["_user_session"])

    client = other.test_client()
    with client.session_transaction() as stored:
        stored.update(_user_session="mine", _permanent=True)
    assert client.get("/").headers.getlist("Set-Cookie")


class OwnInterface(SecureCookieSessionInterface):
    """A session interface that sets the cookie on each request, unconditionally."""

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        session.modified = bool(session)
        super().save_session(app, session, response)


def test_session_interface_that_saves_in_its_own_way(
    make_site: SiteFactory, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12: it still saves on each request. A slow request checks the session before it saves."""
    monkeypatch.setattr(persistence, "SLOW_AFTER", 0)
    site = make_site("cookie", init=False)
    site.app.session_interface = OwnInterface()
    site.sessions.init_app(site.app)
    with site.context():
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="hash of ann"))
        site.db.session.commit()
    add_poll(site, held)
    chrome = site.browser("Chrome")
    chrome.login()
    assert chrome.get("/me").headers.getlist("Set-Cookie")
    late = chrome.copy()
    answer = held.start(lambda: late.get("/poll"))
    chrome.post("/password", password="new")
    assert not held.finish(answer).headers.getlist("Set-Cookie")
    assert chrome.is_signed_in


@pytest.mark.table
@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
def test_prolonging_never_blocks(make_site: SiteFactory, database_kind: str) -> None:
    """12: while another transaction locks its row, a session is prolonged by a later request."""
    site = make_site("redis", database_kind)

    @site.app.get("/reading")
    def reading() -> str:
        # This transaction stays open until the end of the request.
        return str(current_user.name)

    firefox = site.browser("Firefox")
    firefox.login()
    site.change(last_seen_at=LONG_AGO)
    (key,) = site.entries()
    site.redis.expire(key, 100)
    with site.context():
        engine = site.db.engine
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT id FROM user_sessions FOR UPDATE"))
        assert firefox.get("/reading").text == "ann"
    assert site.redis.ttl(key) <= 100
    assert firefox.get("/reading").text == "ann"
    assert site.redis.ttl(key) > 100


# -- with "remember me" cookies that are refreshed on each request ---------------------------------


def test_late_answer_with_refreshed_remember_cookies(
    make_site: SiteFactory, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14: with REMEMBER_COOKIE_REFRESH_EACH_REQUEST, a response without its session sets none."""
    monkeypatch.setattr(persistence, "SLOW_AFTER", 0)
    site = make_site("redis", REMEMBER_COOKIE_REFRESH_EACH_REQUEST=True)
    add_poll(site, held)
    chrome = site.browser("Chrome")
    chrome.login()
    late = site.browser("Chrome", **chrome.cookies)
    answer = held.start(lambda: late.get("/poll"))
    chrome.post("/password", password="new")
    assert not held.finish(answer).headers.getlist("Set-Cookie")
    assert is_signed_in_and_remembered(chrome, "ann")


def test_late_logout_takes_refreshed_remember_cookies(make_site: SiteFactory, held: Held) -> None:
    """14: a logout clears both, however late its response is."""
    site = make_site("redis", REMEMBER_COOKIE_REFRESH_EACH_REQUEST=True)

    @site.app.post("/slow-logout")
    @login_required
    def slow_logout() -> str:
        site.db.session.rollback()
        held.wait()
        logout_user()
        return "signed out"

    chrome = site.browser("Chrome")
    chrome.login()
    late = site.browser("Chrome", **chrome.cookies)
    answer = held.start(lambda: late.post("/slow-logout"))
    chrome.post("/password", password="new")
    held.finish(answer)
    assert late.cookies == {}
    assert not chrome.is_signed_in
