"""Timeouts, session limits and the end of an account (SCENARIOS 31, 49 to 51)."""

from __future__ import annotations

import datetime as dt
import typing as t
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask import request, session
from flask_login import current_user, login_user
from site_under_test import STORES, Browser, Site, days_ago, user_class

from flask_session_registry import ConfigurationError, session_revoked
from flask_session_registry import _clock as clock
from flask_session_registry._request import cookieless_logins
from flask_session_registry._store import backends as entries

HOUR = 3600


def age(site: Site, **hours: float) -> None:
    """Move timestamps of all rows into the past."""
    now = dt.datetime.now(dt.timezone.utc)
    values = {name: now - dt.timedelta(hours=ago) for name, ago in hours.items()}
    site.change(**values)


@pytest.mark.parametrize(
    ("idle", "absolute", "ages", "ends"),
    [
        (1, None, {"last_seen_at": 0.98}, False),
        (1, None, {"last_seen_at": 1.02}, True),
        (1, None, {"created_at": 5}, False),
        (None, 1, {"created_at": 0.98}, False),
        (None, 1, {"created_at": 1.02}, True),
        (None, 1, {"created_at": 0.5, "last_seen_at": 0.5}, False),
        (1, 2, {"created_at": 1.5, "last_seen_at": 0.5}, False),
        (1, 2, {"created_at": 2.1, "last_seen_at": 0}, True),
        (1, 2, {"created_at": 1.5, "last_seen_at": 1.1}, True),
        (None, None, {"created_at": 24 * 300, "last_seen_at": 24 * 30}, False),
        (None, None, {"last_seen_at": 24 * 32}, True),
    ],
)
def test_timeouts(
    make_site: SiteFactory,
    database: str,
    idle: float | None,
    absolute: float | None,
    ages: dict[str, float],
    ends: bool,
) -> None:
    """49: each timeout alone, both, or neither; just inside and just outside."""
    site = make_site(
        "files",
        database,
        SESSION_REGISTRY_IDLE_TIMEOUT=idle and idle * HOUR,
        SESSION_REGISTRY_ABSOLUTE_TIMEOUT=absolute and absolute * HOUR,
    )
    firefox = site.browser()
    firefox.login()
    age(site, **ages)
    assert site.active() == (not ends)
    assert firefox.get("/me").json == (
        {"name": None, "rejected": "expired"} if ends else {"name": "ann", "rejected": None}
    )
    assert site.rows()[0].revoked_reason == ("expired" if ends else None)
    assert len(site.signed_in_entries()) == (not ends)


def test_timeouts_of_a_remembered_session(make_site: SiteFactory) -> None:
    """49: a timeout of the registry ends it. The session lifetime alone doesn't."""
    site = make_site(SESSION_REGISTRY_ABSOLUTE_TIMEOUT=24 * HOUR * 60)
    firefox = site.browser()
    firefox.login(remember="1")
    age(site, last_seen_at=24 * 40)
    assert firefox.is_signed_in
    age(site, last_seen_at=24 * 40)
    firefox.lose("session")
    assert firefox.is_signed_in
    age(site, created_at=24 * 61)
    firefox.lose("session")
    assert firefox.rejected == "expired"
    assert firefox.cookies == {}


def test_idle_timeout_without_touching() -> None:
    """58: an idle timeout needs touches."""
    from flask_session_registry._config import Settings

    values = {"SESSION_REGISTRY_IDLE_TIMEOUT": 60, "SESSION_REGISTRY_TOUCH_INTERVAL": None}
    with pytest.raises(ConfigurationError, match="TOUCH_INTERVAL"):
        Settings(values)
    settings = Settings({"SESSION_REGISTRY_IDLE_TIMEOUT": 60})
    assert settings.touch_interval == dt.timedelta(seconds=6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_SESSIONS", 0),
        ("MAX_SESSIONS", True),
        ("MAX_SESSIONS", "5"),
        ("MAX_SESSIONS_ACTION", "explode"),
        ("RETENTION", -1),
        ("RETENTION", None),
        ("RETENTION", False),
        ("IDLE_TIMEOUT", 0),
    ],
)
def test_wrong_settings(name: str, value: t.Any) -> None:
    """58: a wrong value stops the app at start-up, naming the setting."""
    from flask_session_registry._config import Settings

    with pytest.raises(ConfigurationError, match=f"'SESSION_REGISTRY_{name}' is"):
        Settings({f"SESSION_REGISTRY_{name}": value})


def test_oldest_session_ends(make_site: SiteFactory, database: str) -> None:
    """50: the session that began first ends, with its entry, and a signal reports it."""
    site = make_site("files", database, SESSION_REGISTRY_MAX_SESSIONS=2)
    told: list[dict[str, t.Any]] = []

    def receiver(app: t.Any, **arguments: t.Any) -> None:
        told.append(arguments)

    first, second, third, bob = (site.browser(name) for name in ("1", "2", "3", "Bob"))
    bob.login("bob")
    with session_revoked.connected_to(receiver, site.app):
        first.login()
        second.login()
        assert told == []
        third.login()
    (row,) = site.rows(user_agent="1")
    assert told == [{"ids": (row.id,), "user_id": row.user_id, "reason": "max_sessions"}]
    assert first.rejected == "max_sessions"
    assert [browser.is_signed_in for browser in (second, third, bob)] == [True] * 3
    assert len(site.signed_in_entries()) == 3
    # Signing in again in the same browser replaces its session and ends no other.
    third.login()
    assert second.is_signed_in


def test_login_beyond_the_limit_is_refused(make_site: SiteFactory, database: str) -> None:
    """50: or the new login is refused with 403. The others stay, and an ended one makes room."""
    site = make_site(
        "files",
        database,
        SESSION_REGISTRY_MAX_SESSIONS=1,
        SESSION_REGISTRY_MAX_SESSIONS_ACTION="reject",
    )
    first, second = site.browser("1"), site.browser("2")
    first.login()
    answer = second.login()
    assert answer.status_code == 403
    assert "too many devices" in answer.text
    assert second.cookies == {}
    assert not second.is_signed_in
    assert first.is_signed_in
    assert first.login().status_code == 200
    first.post("/logout")
    assert second.login().status_code == 200


def lose_entry(browser: Browser) -> None:
    """Delete a browser's entry, as a session store does when its memory is full."""
    site = browser.site
    with site.context():
        key = site.app.session_interface._get_store_id(browser.cookies["session"])
        site.registry.entries.delete([key])


ON_SERVERS = [store for store in STORES if store != "cookie"]


@pytest.mark.parametrize("store", ON_SERVERS)
def test_login_replaces_what_the_store_has_lost(make_site: SiteFactory, store: str) -> None:
    """50: a browser whose entry is gone replaces its own session at its next login."""
    site = make_site(
        store, SESSION_REGISTRY_MAX_SESSIONS=2, SESSION_REGISTRY_MAX_SESSIONS_ACTION="reject"
    )
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    for _ in range(2):
        lose_entry(firefox)
        assert firefox.login().status_code == 200
    assert firefox.is_signed_in
    assert chrome.is_signed_in
    assert site.active() == 2
    assert {row.revoked_reason for row in site.rows(user_agent="Firefox")} == {None, "replaced"}
    assert site.browser("Phone").login().status_code == 403


def test_lost_session_is_the_one_that_goes(make_site: SiteFactory, database: str) -> None:
    """50: the lost session ends, not the oldest one."""
    site = make_site("files", database, SESSION_REGISTRY_MAX_SESSIONS=2)
    chrome, firefox = site.browser("Chrome"), site.browser("Firefox")
    chrome.login()
    firefox.login()
    lose_entry(firefox)
    firefox.login()
    assert chrome.is_signed_in
    assert [row.revoked_reason for row in site.rows(user_agent="Firefox")] == ["replaced", None]


def test_session_that_was_rotated_and_lost(site: Site, firefox: Browser) -> None:
    """50: also if the response with the new id got lost, so the cookie names the previous key."""

    @site.app.post("/rotate")
    def rotate() -> str:
        site.sessions.rotate()
        return "rotated"

    firefox.login()
    held = firefox.cookies
    firefox.post("/rotate")
    firefox.carry(held)
    firefox.login()
    assert firefox.is_signed_in
    assert site.active() == 1


def test_remembered_session_that_was_lost(site: Site, firefox: Browser) -> None:
    """50: also if its row names the key of another tab, and the remember cookies are gone."""
    firefox.login(remember="1")
    firefox.lose("session")
    tab = firefox.copy()
    assert firefox.is_signed_in
    assert tab.is_signed_in
    lose_entry(firefox)
    firefox.lose("remember_token", "remember_token_session")
    firefox.login()
    assert firefox.is_signed_in
    assert site.active() == 1


def test_lost_session_of_another_user(site: Site, firefox: Browser) -> None:
    """50: a login replaces only the user's own session, and a lost cart belongs to no user."""
    firefox.post("/cart", item="book")
    lose_entry(firefox)
    firefox.login("ann")
    lose_entry(firefox)
    firefox.login("bob")
    assert (site.active("ann"), site.active("bob")) == (1, 1)


@pytest.mark.table
def test_what_a_lost_session_costs(make_site: SiteFactory) -> None:
    """50: a login that has lost no session runs no statement for one, with or without a cookie."""
    site = make_site()
    site.browser("Other").login("bob")
    firefox = site.browser()
    with site.count_statements() as first:
        firefox.login()
    lose_entry(firefox)
    with site.count_statements() as again:
        firefox.login()
    # One statement each: find the session that has or had the key, end it, record its purge.
    assert len(again) == len(first) + 3


def test_fifty_logins_at_once(make_site: SiteFactory, database: str) -> None:
    """31: with a limit of five, five are active."""
    site = make_site("files", database, SESSION_REGISTRY_MAX_SESSIONS=5)

    def sign_in(_: int) -> Browser:
        browser = site.browser()
        assert browser.post("/login", name="ann", password="hash of ann").status_code == 200
        return browser

    with ThreadPoolExecutor(4 if database == "sqlite" else 8) as pool:
        browsers = list(pool.map(sign_in, range(50)))
    assert site.active() == 5
    assert sum(browser.is_signed_in for browser in browsers) == 5


def test_login_that_is_dead_on_arrival_ends_no_other(make_site: SiteFactory) -> None:
    """28, 50: a login with the old password doesn't evict the user who changed it."""
    from flask_login import login_user

    site = make_site(SESSION_REGISTRY_MAX_SESSIONS=1)

    firefox, thief = site.browser("Firefox"), site.browser("Thief")

    @site.app.post("/late-login")
    def late_login() -> str:
        user = site.user("ann")
        assert user.password_hash == "hash of ann"
        site.db.session.rollback()
        with site.db.engine.begin() as connection:
            connection.execute(sa.update(site.User).values(password_hash="newest"))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(firefox.post, "/login", name="ann", password="newest").result()
        login_user(user)
        return "ok"

    assert thief.post("/late-login").status_code == 200
    assert not thief.is_signed_in
    assert firefox.is_signed_in


@pytest.fixture
def account_site(make_site: SiteFactory, database: str) -> Site:
    """Return a site whose users can be deactivated."""

    def model(db: t.Any) -> t.Any:
        return user_class(
            db,
            enabled=sa_orm.mapped_column(sa.Boolean, default=True),
            is_active=property(lambda self: self.enabled),
        )

    return make_site("files", database, model=model)


def test_user_who_is_made_inactive(account_site: Site) -> None:
    """51: it ends their sessions in the same transaction. Reactivation doesn't revive them."""
    site = account_site
    firefox, bob = site.browser("Firefox"), site.browser("Bob")
    firefox.login()
    bob.login("bob")
    with site.context():
        site.user("ann").enabled = False
        site.db.session.rollback()
    assert firefox.is_signed_in
    for enabled in (False, True):
        with site.context():
            site.user("ann").enabled = enabled
            site.db.session.commit()
    assert firefox.rejected == "inactive"
    assert not firefox.is_signed_in
    assert bob.is_signed_in
    assert len(site.signed_in_entries()) == 1


def test_user_who_is_deleted(database_site: Site) -> None:
    """51: their sessions end, and a signal reports it. A new user with this key inherits none."""
    site = database_site
    told: list[t.Any] = []

    def receiver(app: t.Any, **arguments: t.Any) -> None:
        told.append(arguments)

    firefox, bob = site.browser("Firefox"), site.browser("Bob")
    firefox.login(remember="1")
    bob.login("bob")
    with site.context(), session_revoked.connected_to(receiver, site.app):
        user = site.user("ann")
        key = user.id
        site.db.session.delete(user)
        site.db.session.rollback()
        site.db.session.delete(site.user("ann"))
        site.db.session.commit()
        site.db.session.add(site.User(id=key, name="ann", password_hash="hash of ann"))
        site.db.session.commit()
    assert [(one["user_id"], one["reason"], len(one["ids"])) for one in told] == [
        (key, "deleted", 1)
    ]
    assert len(site.signed_in_entries()) == 1
    assert not firefox.is_signed_in
    firefox.lose("session")
    assert not firefox.is_signed_in
    assert bob.is_signed_in
    assert site.active("ann") == 0


def test_user_who_is_inactive_by_sql_alone(account_site: Site) -> None:
    """51: the registry wasn't notified. The check sees it, refuses, and ends the session."""
    site = account_site
    firefox = site.browser("Firefox")
    firefox.login()
    with site.context():
        site.db.session.execute(sa.update(site.User).values(enabled=False))
        site.db.session.commit()
    assert firefox.rejected == "inactive"
    assert site.rows()[0].revoked_reason == "inactive"
    assert site.signed_in_entries() == []


def test_refused_twice_at_once(site: Site) -> None:
    """A session that another request has ended in the meantime is ended only once."""
    copies: list[Browser] = []

    @site.app.get("/slow")
    def slow() -> dict[str, t.Any]:
        before = site.sessions.rejected
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copies[0].get, "/me").result()
        return {"rejected": before}

    firefox = site.browser("Firefox")
    firefox.login()
    copies.append(firefox.copy())
    age(site, last_seen_at=24 * 40)
    assert firefox.get("/slow").json == {"rejected": "expired"}
    assert site.rows()[0].revoked_reason == "expired"


def test_user_without_sessions_is_deleted(site: Site) -> None:
    """No session ends, and no signal is sent."""
    told: list[t.Any] = []

    def receiver(app: t.Any, **arguments: t.Any) -> None:
        told.append(arguments)

    with site.context(), session_revoked.connected_to(receiver, site.app):
        site.db.session.delete(site.user("ann"))
        site.db.session.commit()
    assert told == []


def test_user_is_deleted_outside_of_the_app(site: Site) -> None:
    """A script that only knows the models can delete a user."""
    with site.context():
        engine = site.db.engine
    with sa_orm.Session(engine) as session:
        session.delete(session.scalars(sa.select(site.User).filter_by(name="ann")).one())
        session.commit()
    with site.context():
        assert site.user("ann") is None


@pytest.mark.table
def test_touch_never_blocks(make_site: SiteFactory, database: str) -> None:
    """A browser is answered while another transaction locks its row. The touch happens later."""
    timeout = {"connect_args": {"timeout": 60}} if database == "sqlite" else {}
    site = make_site("files", database, SQLALCHEMY_ENGINE_OPTIONS=timeout)
    firefox = site.browser()
    firefox.login()
    age(site, last_seen_at=1)
    with site.context():
        engine, model = site.db.engine, site.sessions.UserSession
    with engine.connect() as other, ThreadPoolExecutor() as pool:
        other.execute(sa.update(model).values(revoked_reason=None))
        answer = pool.submit(firefox.get, "/me")
        try:
            assert answer.result(timeout=20).json["name"] == "ann"
        finally:
            other.rollback()
    assert site.rows()[0].last_seen_at < dt.datetime.now(dt.timezone.utc) - dt.timedelta(hours=0.9)
    assert firefox.is_signed_in
    assert site.rows()[0].last_seen_at > dt.datetime.now(dt.timezone.utc) - dt.timedelta(hours=0.1)


def test_busy_timeout_of_sqlite_is_restored(site: Site, firefox: Browser) -> None:
    """After a touch, the connection has its previous busy timeout."""
    firefox.login()
    age(site, last_seen_at=1)
    assert firefox.is_signed_in
    with site.context():
        connection = site.db.session.connection().connection.driver_connection
        assert connection is not None
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (5000,)


@pytest.mark.parametrize(
    "name",
    [
        "SESSION_REGISTRY_IDLE_TIMEOUT",
        "SESSION_REGISTRY_ABSOLUTE_TIMEOUT",
        "SESSION_REGISTRY_TOUCH_INTERVAL",
        "SESSION_REGISTRY_RETENTION",
        "PERMANENT_SESSION_LIFETIME",
    ],
)
@pytest.mark.parametrize("duration", [10**11, dt.timedelta.max])
def test_endless_duration(
    make_site: SiteFactory, database: str, name: str, duration: t.Any
) -> None:
    """A duration that reaches back before all time is the same as none."""
    site = make_site("cookie", database, **{name: duration})
    firefox = site.browser()
    assert firefox.login().status_code == 200
    age(site, last_seen_at=1)
    assert firefox.is_signed_in
    assert site.active() == 1
    with site.context():
        assert site.sessions.prune() == (0, 0, 0)


def test_limit_ignores_expired_sessions(make_site: SiteFactory, database: str) -> None:
    """50: the session that began first ends, not the one seen first. Expired ones don't count."""
    site = make_site("files", database, SESSION_REGISTRY_MAX_SESSIONS=2)
    firefox, chrome, phone = (site.browser(name) for name in ("Firefox", "Chrome", "Phone"))
    firefox.login()
    chrome.login()
    site.change({"user_agent": "Chrome"}, last_seen_at=days_ago(1))
    phone.login()
    assert not firefox.is_signed_in
    assert chrome.is_signed_in
    age(site, last_seen_at=24 * 40)
    edge = site.browser("Edge")
    edge.login()
    assert {row.revoked_reason for row in site.rows()} == {"max_sessions", None}
    assert sum(row.revoked_reason == "max_sessions" for row in site.rows()) == 1


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_store_that_fails_while_a_user_is_deleted(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    """36, 51: entries deleted before the failure are recorded as purged. The rest stay pending."""
    monkeypatch.setattr("flask_session_registry._records.base.BATCH", 1)
    site = make_site("files", database)
    for _ in range(3):
        site.browser().login()
    delete, asked = entries.Entries.delete, []

    def fail_after_one(self: t.Any, keys: t.Any, **options: t.Any) -> None:
        asked.append(keys)
        if len(asked) > 1:
            raise OSError("no store")
        delete(self, keys, **options)

    with monkeypatch.context() as broken, site.context():
        broken.setattr(entries.Entries, "delete", fail_after_one)
        site.db.session.delete(site.user("ann"))
        site.db.session.commit()
    assert len(site.signed_in_entries()) == 2
    assert sum(row.purged_at is None for row in site.rows()) == 2
    with site.context():
        assert site.sessions.prune().purged == 2
    assert site.entries() == {}


# -- a clock that was ahead ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "interval"), [("IDLE_TIMEOUT", 300), ("ABSOLUTE_TIMEOUT", 300), (None, None)]
)
def test_login_while_the_clock_was_ahead(
    make_site: SiteFactory,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    timeout: str | None,
    interval: int | None,
) -> None:
    """19, 49: once the clock is right, the next request resets the times; timeouts work again."""
    config = {f"SESSION_REGISTRY_{timeout}": 3600} if timeout else {}
    site = make_site(
        "files",
        database,
        SESSION_REGISTRY_TOUCH_INTERVAL=interval,
        PERMANENT_SESSION_LIFETIME=3600,
        **config,
    )
    firefox = site.browser()
    right, ahead = clock.now, dt.timedelta(days=1)
    monkeypatch.setattr(clock, "now", lambda: right() + ahead)
    firefox.login()
    monkeypatch.setattr(clock, "now", right)
    assert firefox.is_signed_in
    (row,) = site.rows()
    for moment in (row.created_at, row.last_seen_at, row.authenticated_at):
        assert abs(right() - moment) < dt.timedelta(minutes=1)
    monkeypatch.setattr(clock, "now", lambda: right() + dt.timedelta(hours=1.1))
    assert not firefox.is_signed_in


def test_touch_of_a_session_that_has_just_ended(database_site: Site) -> None:
    """Nothing is written to a session that has ended since its check."""
    database_site.browser().login()
    with database_site.context():
        database_site.sessions.revoke_all(database_site.user("ann"))
        database_site.db.session.commit()
    (row,) = database_site.rows()
    seen = {"last_seen_at": clock.now(), "ip_address": "203.0.113.9", "user_agent": "Another"}
    with database_site.context():
        database_site.registry.records.touch(row.id, seen)
    (after,) = database_site.rows()
    names = (*seen, "revoked_at")
    assert [getattr(after, name) for name in names] == [getattr(row, name) for name in names]


def test_touch_leaves_what_is_not_ahead(site: Site, firefox: Browser) -> None:
    """19: the beginning of a session, and the time of its password, stay as they are."""
    firefox.login()
    before = days_ago(0.5)
    site.change(created_at=before, authenticated_at=before, last_seen_at=days_ago(0.25))
    assert firefox.is_signed_in
    (row,) = site.rows()
    assert (row.created_at, row.authenticated_at) == (before, before)
    assert row.last_seen_at > days_ago(0.1)


def test_rotation_while_the_clock_was_ahead(
    site: Site, firefox: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """19: a browser with the previous id can sign in at once, not a day later."""

    @site.app.get("/form")
    def form() -> str:
        assert not current_user.is_authenticated
        session["csrf_token"] = "secret"
        return "form"

    firefox.login()
    old = firefox.copy("session")
    right = clock.now
    monkeypatch.setattr(clock, "now", lambda: right() + dt.timedelta(days=1))
    firefox.post("/password", password="new")
    monkeypatch.setattr(clock, "now", right)
    assert old.get("/form").headers.getlist("Set-Cookie")


def sign_in_at_each_request(site: Site) -> None:
    """Sign in at each request, as an app does that trusts a proxy's header."""

    @site.app.before_request
    def sign_in() -> None:
        name = request.headers.get("X-User")
        if name is not None and not current_user.is_authenticated:
            login_user(site.user(name))


def visit(browser: Browser, name: str = "ann") -> None:
    assert browser.get("/me", headers={"X-User": name}).json["name"] == name


@pytest.mark.parametrize("store", ["cookie", "files"])
def test_login_at_each_request(
    make_site: SiteFactory,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client that keeps no cookies, signed in by a proxy's header, doesn't fill the table."""
    monkeypatch.setattr(cookieless_logins, "NEVER_RESUMED", 3)
    site = make_site(store)
    sign_in_at_each_request(site)
    firefox = site.browser("Firefox")
    firefox.login()
    for _ in range(8):
        robot = site.browser("Robot")
        visit(robot)
    rows = [row for row in site.rows() if row.user_agent == "Robot"]
    # Each process checks every third login.
    assert len(rows) == 5
    assert all(row.revoked_at is None for row in rows)
    assert firefox.is_signed_in
    assert robot.is_signed_in
    assert len(site.signed_in_entries()) in (0, 6)
    told = [record.getMessage() for record in caplog.records]
    assert len([one for one in told if "'request_loader'" in one]) == 1


def test_logins_of_many_browsers(make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions opened on a login page all stay, such as a class that shares one account."""
    monkeypatch.setattr(cookieless_logins, "NEVER_RESUMED", 3)
    site = make_site("cookie")
    browsers = [site.browser("Firefox") for _ in range(7)]
    for browser in browsers:
        browser.login()
    assert all(browser.is_signed_in for browser in browsers)


def test_login_at_each_request_while_the_store_is_down(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that can't be purged is kept for the next prune."""
    monkeypatch.setattr(cookieless_logins, "NEVER_RESUMED", 1)
    site = make_site()
    sign_in_at_each_request(site)
    visit(site.browser("Robot"))
    with monkeypatch.context() as broken:
        broken.setattr(site.cache, "delete_many", lambda *_: 1 / 0)
        visit(site.browser("Robot"))
    assert [row.revoked_reason for row in site.rows()] == ["replaced", None]
    with site.context():
        assert site.sessions.prune().purged == 1
    assert len(site.signed_in_entries()) == 1


def test_logins_of_many_without_cookies(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process remembers about them doesn't grow without bound."""
    monkeypatch.setattr(cookieless_logins, "NEVER_RESUMED", 2)
    monkeypatch.setattr(cookieless_logins, "_MOST_CLIENTS", 1)
    site = make_site()
    sign_in_at_each_request(site)
    for name in ("ann", "bob") * 2:
        visit(site.browser("Robot"), name)
    assert all(row.revoked_at is None for row in site.rows())
