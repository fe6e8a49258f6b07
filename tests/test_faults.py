"""Servers that are down, and apps that behave unusually (SCENARIOS 16, 36 to 38, 41)."""

from __future__ import annotations

import gc
import logging
import typing as t
import weakref

import pytest
import sqlalchemy as sa
from conftest import SiteFactory
from flask import Blueprint, abort, flash, g, render_template_string, request, session
from flask_login import current_user, login_user, logout_user
from site_under_test import Browser, Site, days_ago

from flask_session_registry import SessionRegistryError, StaleRequestError, purge_failed
from flask_session_registry._records.redis.reporting import reporting
from flask_session_registry._request import persistence
from flask_session_registry._request.context import find_context
from flask_session_registry._revocation import lost_updates
from flask_session_registry._store import backends as entries

BLOCKED = "the database is down"


#: The storage methods that correspond to statements with this beginning.
VERBS = {
    "INSERT": ("add",),
    "UPDATE": ("mark", "update"),
    "SELECT": ("get", "ids_of", "load", "loading", "of_users"),
    "": (
        *("add", "all", "due", "get", "ids_of", "load", "loading", "mark", "of_users"),
        *("remove", "update", "with_key"),
        *("get_tombstones", "postpone_tombstones", "remove_tombstones", "tombstones"),
    ),
}


class Broken:
    """Make statements that contain a text fail, as if the database were down.

    If user sessions are in Redis, the corresponding methods of its client fail.
    """

    def __init__(self, site: Site, text: str) -> None:
        with site.context():
            self.engine = site.db.engine
        self.text = text
        self.redis = site.registry.redis
        self.verbs = VERBS[text.partition("user_sessions")[0].partition(" ")[0]]

    def _fail(self, _: t.Any, __: t.Any, statement: str, *___: t.Any) -> None:
        if self.text in statement:
            raise sa.exc.OperationalError(statement, {}, Exception(BLOCKED))

    @reporting
    def _fail_in_redis(self, *_: t.Any, **__: t.Any) -> t.Any:
        raise ConnectionError(BLOCKED)

    def __enter__(self) -> None:
        if self.redis is not None:
            vars(self.redis).update(dict.fromkeys(self.verbs, self._fail_in_redis))
        sa.event.listen(self.engine, "before_cursor_execute", self._fail)

    def __exit__(self, *_: t.Any) -> None:
        if self.redis is not None:
            for verb in self.verbs:
                del vars(self.redis)[verb]
        sa.event.remove(self.engine, "before_cursor_execute", self._fail)


@pytest.mark.parametrize("carries", ["session", "remember_token"])
def test_database_down_at_the_check(store_site: Site, carries: str) -> None:
    """37: with the database down, a request gets a 503 and keeps its cookies.

    It is signed in again afterwards.
    """
    firefox = store_site.browser("Firefox")
    firefox.login(remember="1")
    if carries == "remember_token":
        firefox.lose("session")
    before = firefox.cookies
    with Broken(store_site, "user_sessions"):
        response = firefox.get("/me")
        assert response.status_code == 503
    assert firefox.cookies == before
    assert firefox.is_signed_in


def test_database_down_and_an_error_page(site: Site, firefox: Browser) -> None:
    """37: the 503 page may access the user and flash a message: the user is anonymous."""

    @site.app.errorhandler(503)
    def unavailable(error: t.Any) -> t.Any:
        flash("please wait")
        return render_template_string("{{ current_user.is_authenticated }}"), 503

    firefox.login()
    before = firefox.cookies
    with Broken(site, "user_sessions"):
        response = firefox.get("/me")
    assert (response.status_code, response.text) == (503, "False")
    assert firefox.cookies == before
    assert firefox.is_signed_in


@pytest.mark.parametrize("has_page", [False, True], ids=["plain", "own-page"])
@pytest.mark.parametrize("debug", [False, True], ids=["production", "debug"])
@pytest.mark.parametrize(
    "place", ["404", "abort", "blueprint", "500", "after_request", "stale", "before_request"]
)
def test_database_down_while_an_error_is_handled(
    site: Site, firefox: Browser, place: str, debug: bool, has_page: bool
) -> None:
    """37: the response is a 503 wherever the user is accessed first, even on an error page."""
    app = site.app
    app.config["PROPAGATE_EXCEPTIONS"] = debug
    blueprint = Blueprint("shop", __name__)

    def page(error: t.Any) -> t.Any:
        return render_template_string("{{ current_user.is_authenticated }}"), error.code

    @blueprint.get("/shop")
    @app.get("/abort")
    def abort_it() -> str:
        abort(403 if request.path == "/shop" else 410)

    @app.get("/stale")
    def stale() -> str:
        raise StaleRequestError

    @app.get("/fails")
    def fails() -> str:
        raise ZeroDivisionError

    @app.get("/fine")
    def fine() -> str:
        return "fine"

    @app.after_request
    def after(response: t.Any) -> t.Any:
        if request.path == "/fine" and place == "after_request":
            response.headers["X-User"] = str(current_user.is_authenticated)
        return response

    @app.before_request
    def before() -> None:
        if request.path == "/fine" and place == "before_request":
            assert current_user.is_authenticated

    blueprint.register_error_handler(403, page)
    app.register_blueprint(blueprint)
    for code in (404, 410, 500):
        app.register_error_handler(code, page)
    if has_page:

        @app.errorhandler(503)
        def unavailable(error: t.Any) -> t.Any:
            flash("please wait")
            return render_template_string("{{ current_user.is_authenticated }}"), 503

    path = {
        "404": "/nowhere",
        "abort": "/abort",
        "blueprint": "/shop",
        "500": "/fails",
        "stale": "/stale",
    }.get(place, "/fine")
    firefox.login(remember="1")
    before_it = firefox.cookies
    with Broken(site, "user_sessions"):
        if place == "500" and debug:
            # The developer sees the original error.
            with pytest.raises(ZeroDivisionError):
                firefox.get(path)
            return
        response = firefox.get(path)
    assert response.status_code == 503
    if has_page:
        assert response.text == "False"
    else:
        assert response.headers["Retry-After"]
    assert not response.headers.getlist("Set-Cookie")
    assert firefox.cookies == before_it
    assert firefox.is_signed_in


def test_database_down_and_an_error_page_that_fails(site: Site, firefox: Browser) -> None:
    """37: an app's 503 page that fails is an error like any other."""
    site.app.config["PROPAGATE_EXCEPTIONS"] = False

    @site.app.errorhandler(404)
    def missing(error: t.Any) -> t.Any:
        return render_template_string("{{ current_user.is_authenticated }}"), 404

    @site.app.errorhandler(503)
    def unavailable(error: t.Any) -> t.Any:
        raise ZeroDivisionError

    firefox.login()
    with Broken(site, "user_sessions"):
        assert firefox.get("/nowhere").status_code == 500
    assert firefox.is_signed_in


def test_database_down_after_the_response(site: Site, firefox: Browser) -> None:
    """37: accessing the user after the response doesn't affect the response."""
    asked: list[bool] = []

    @site.app.teardown_request
    def teardown(_: object) -> None:
        asked.append(current_user.is_authenticated)

    firefox.login()
    before = firefox.cookies
    with Broken(site, "user_sessions"):
        response = firefox.get("/cart")
    assert (response.status_code, response.json) == (200, {"cart": None})
    assert asked[-1] is False
    assert firefox.cookies == before
    assert firefox.is_signed_in


@pytest.mark.table
def test_missing_table_says_what_to_do(
    site: Site, firefox: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """37: without the table, the log names the command to run."""
    firefox.login()
    with site.context():
        site.db.session.execute(sa.text("DROP TABLE user_sessions"))
        site.db.session.commit()
    assert firefox.get("/me").status_code == 503
    assert "flask db upgrade" in caplog.text


@pytest.mark.parametrize("over", ["nothing", "cart", "session"])
def test_database_down_at_the_login(store_site: Site, over: str) -> None:
    """38: if the row can't be written, the login fails with a 503 and the old session is kept."""
    firefox = store_site.browser("Firefox")
    if over == "cart":
        firefox.post("/cart", item="book")
    if over == "session":
        firefox.login("bob")
    before = firefox.cookies
    with Broken(store_site, "INSERT INTO user_sessions"):
        response = firefox.login("ann", remember="1")
    assert response.status_code == 503
    assert firefox.cookies == before
    assert firefox.name_shown == ("bob" if over == "session" else None)
    assert firefox.get("/cart").json == {"cart": "book" if over == "cart" else None}
    assert store_site.active("ann") == 0
    assert firefox.login("ann").status_code == 200
    assert firefox.name_shown == "ann"


def test_database_down_before_the_login(site: Site, firefox: Browser) -> None:
    """38: if the replaced session can't be looked up, the login fails too."""
    firefox.login("ann")
    with Broken(site, "user_sessions"):
        response = firefox.login("bob")
        assert response.status_code == 503
    assert firefox.name_shown == "ann"


def test_login_error_page(site: Site, firefox: Browser) -> None:
    """38: the error page of a failed login sees an anonymous user."""

    @site.app.errorhandler(503)
    def unavailable(error: t.Any) -> t.Any:
        session["written"] = "by the error page"
        return render_template_string("{{ current_user.is_authenticated }}"), 503

    with Broken(site, "INSERT INTO user_sessions"):
        response = firefox.login("ann")
    assert (response.status_code, response.text) == (503, "False")
    assert firefox.cookies == {}


def test_database_down_at_the_logout(site: Site, firefox: Browser) -> None:
    """If the session can't be ended, the logout fails with a 503 and can be retried."""
    firefox.login()
    with Broken(site, "UPDATE user_sessions"):
        response = firefox.post("/logout")
        assert response.status_code == 503
    assert firefox.is_signed_in


def test_database_down_at_a_rotation(site: Site, firefox: Browser) -> None:
    """If the row can't be updated, the rotation fails with a 503."""

    @site.app.post("/sudo")
    def sudo() -> str:
        site.sessions.rotate()
        return "ok"

    firefox.login()
    with Broken(site, "UPDATE user_sessions"):
        response = firefox.post("/sudo")
        assert response.status_code == 503
    assert firefox.is_signed_in
    assert site.rows()[0].generation == 0


def test_deferred_work_fails(
    site: Site, firefox: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure in deferred work doesn't affect the response, and is logged."""
    firefox.login()
    site.change(last_seen_at=days_ago(1))
    with Broken(site, "UPDATE user_sessions"):
        assert firefox.is_signed_in
    assert "Could not finish the deferred work of a request" in caplog.text
    assert ("OperationalError" if site.records == "sql" else "ConnectionError") in caplog.text


@pytest.mark.parametrize("store", ["redis", "files", "memory", "sqlalchemy"])
def test_store_fails_at_the_purge(
    make_site: SiteFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    store: str,
) -> None:
    """36: if the purge fails, other sessions still end, and the request succeeds.

    The entries stay pending.
    """
    site = make_site(store)
    told: list[dict[str, t.Any]] = []

    def receiver(app: t.Any, **arguments: t.Any) -> None:
        told.append(arguments)

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()

    def fail(*_: t.Any, **__: t.Any) -> None:
        raise OSError("no store")

    monkeypatch.setattr(entries.Entries, "delete", fail)
    with purge_failed.connected_to(receiver, site.app):
        assert chrome.post("/password", password="new").status_code == 200
    assert not firefox.is_signed_in
    assert chrome.is_signed_in
    ended = [row for row in site.rows() if row.revoked_at]
    assert [row.purged_at for row in ended] == [None]
    assert told[0]["ids"] == (ended[0].id,)
    assert "(OSError)" in str(told[0]["error"])
    assert "could not be deleted (OSError)" in caplog.text
    assert not any(value in caplog.text for value in firefox.cookies.values())


@pytest.mark.table
def test_follow_up_fails(site: Site, firefox: Browser, caplog: pytest.LogCaptureFixture) -> None:
    """36: if the database fails right after the commit, the commit stands, and a line is logged."""
    firefox.login()
    with site.context():
        site.sessions.revoke_all(site.user("ann"))
        with Broken(site, "SELECT user_sessions"):
            site.db.session.commit()
        assert site.user("ann").name == "ann"
    assert "What had to follow a committed revocation failed" in caplog.text
    assert not firefox.is_signed_in


def test_pool_of_one_connection(make_site: SiteFactory, database: str) -> None:
    """41: with pool_size=1 and max_overflow=0, everything works."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 3}
    if database == "sqlite":
        options["poolclass"] = sa.QueuePool  # type: ignore[assignment]
    site = make_site("sqlalchemy", database, SQLALCHEMY_ENGINE_OPTIONS=options)

    @site.app.post("/sudo")
    def sudo() -> str:
        assert current_user.name == "ann"
        site.sessions.rotate()
        return "ok"

    @site.app.post("/everywhere")
    def everywhere() -> str:
        site.sessions.revoke_all(current_user)
        site.db.session.commit()
        return "done"

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        assert browser.login(remember="1").status_code == 200
    assert chrome.post("/sudo").status_code == 200
    assert chrome.post("/password", password="new").status_code == 200
    assert chrome.is_signed_in
    assert not firefox.is_signed_in
    chrome.lose("session")
    assert chrome.is_signed_in
    assert firefox.login().status_code == 200
    assert firefox.post("/everywhere").status_code == 200
    assert not chrome.is_signed_in
    assert chrome.login().status_code == 200
    assert chrome.post("/logout").status_code == 200
    assert not chrome.is_signed_in


def test_database_in_memory(make_site: SiteFactory) -> None:
    """41: with 'sqlite://', where all share one connection, everything works."""
    site = make_site(SQLALCHEMY_DATABASE_URI="sqlite://")
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    chrome.post("/password", password="new")
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


def test_login_of_a_user_who_is_never_committed(
    database_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """38: a sign-up that forgets to commit doesn't sign in, and the log says why."""
    site = database_site
    firefox = site.browser()

    @site.app.post("/sign-up")
    def sign_up() -> str:
        user = site.User(name="eve", password_hash="x")
        site.db.session.add(user)
        site.db.session.flush()
        login_user(user)
        return "welcome"

    assert firefox.post("/sign-up").status_code == 503
    assert "UserError: The user who signed in is not in the database. Commit" in caplog.text
    assert not firefox.is_signed_in
    assert site.rows() == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_login_in_the_sign_up(site: Site, firefox: Browser, when: str) -> None:
    """A user created in this request can sign in before or after the commit."""

    @site.app.post("/sign-up")
    def sign_up() -> str:
        user = site.User(name="eve", password_hash="x")
        site.db.session.add(user)
        if when == "after":
            site.db.session.commit()
        login_user(user, remember=False) if when == "after" else site.db.session.flush()
        if when == "before":
            login_user(user)
            site.db.session.commit()
        return "welcome"

    assert firefox.post("/sign-up").status_code == 200
    assert firefox.name_shown == "eve"


def test_login_of_something_else(site: Site, firefox: Browser) -> None:
    """Logging in an object of another class raises an error and signs in nobody."""

    class Robot:
        is_active = True

        def get_id(self) -> str:
            return "1"

    @site.app.post("/robot")
    def robot() -> str:
        login_user(Robot())
        return "beep"

    site.app.config["PROPAGATE_EXCEPTIONS"] = True
    with pytest.raises(SessionRegistryError, match="was given a 'Robot'"):
        firefox.post("/robot")
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    assert firefox.post("/robot").status_code == 500
    assert not firefox.is_signed_in


def test_inactive_user_is_refused(make_site: SiteFactory) -> None:
    """A user who becomes inactive is signed out, and the row is ended."""
    site = make_site()
    site.User.is_active = property(lambda self: self.note != "inactive")
    firefox = site.browser("Firefox")
    firefox.login()
    with site.context():
        site.user("ann").note = "inactive"
        site.db.session.commit()
    assert firefox.rejected == "inactive"
    assert site.rows()[0].revoked_reason == "inactive"
    with site.context():
        site.user("ann").note = None
        site.db.session.commit()
    assert not firefox.is_signed_in


def test_deleted_user(database_site: Site) -> None:
    """51: a deleted user is signed out, and the row stays for its retention, without a user."""
    firefox = database_site.browser("Firefox")
    firefox.login("ann", remember="1")
    with database_site.context():
        database_site.db.session.delete(database_site.user("ann"))
        database_site.db.session.commit()
    assert database_site.signed_in_entries() == []
    assert firefox.rejected == "deleted"
    firefox.lose("session")
    assert not firefox.is_signed_in
    assert [row.revoked_reason for row in database_site.rows()] == ["deleted"]


def test_saving_the_session_fails(make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """If saving the session fails, the end of the request runs twice but adds one row."""
    site = make_site("redis")
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    interface = t.cast(t.Any, site.app.session_interface)
    save, failures = interface.save_session, [1]

    def fail_once(*arguments: t.Any) -> None:
        if failures:
            failures.pop()
            raise OSError("no store")
        save(*arguments)

    monkeypatch.setattr(interface, "save_session", fail_once)
    firefox = site.browser("Firefox")
    assert firefox.login().status_code == 500
    assert len(site.rows()) == 1


def test_log_level_of_rejections(
    site: Site, firefox: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """A stale cookie is normal, so nothing is logged."""
    firefox.login()
    with site.context():
        site.sessions.revoke_all(site.user("ann"))
        site.db.session.commit()
    with caplog.at_level(logging.INFO, "flask_session_registry"):
        assert not firefox.is_signed_in
    assert not [r for r in caplog.records if r.name == "flask_session_registry"]


def test_database_down_at_a_logout_without_a_check(site: Site, firefox: Browser) -> None:
    """With the user already in 'g', a logout gets a 503 if its session can't be looked up."""

    @site.app.post("/logout-of-ann")
    def logout_of_ann() -> str:
        g._login_user = site.user("ann")
        logout_user()
        return "done"

    firefox.login()
    with Broken(site, "user_sessions"):
        assert firefox.post("/logout-of-ann").status_code == 503
    assert firefox.is_signed_in


def test_database_down_at_a_logout_in_a_shared_context(site: Site, firefox: Browser) -> None:
    """A user that an earlier request left in 'g' doesn't save such a logout."""
    firefox.login()
    with site.context():
        firefox.get("/me")
        with Broken(site, "user_sessions"):
            assert firefox.post("/logout").status_code == 503
    assert firefox.is_signed_in


def test_request_leaves_no_cyclic_garbage(site: Site, firefox: Browser) -> None:
    """Objects of a request are freed when it ends, without garbage collection."""
    states: list[weakref.ref[t.Any]] = []

    @site.app.get("/watched")
    def watched() -> str:
        assert current_user.is_authenticated
        user = current_user._get_current_object()
        states.append(weakref.ref(user))
        return "ok"

    firefox.login()
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            firefox.get("/watched").close()
        assert [state() for state in states[:-1]] == [None] * 4
    finally:
        gc.enable()


def test_request_drops_its_state(site: Site, firefox: Browser) -> None:
    """State is dropped even if the request is kept, as in Flask 3.2, which leaves it in a cycle."""
    kept: list[t.Any] = []

    @site.app.get("/kept")
    def keep() -> str:
        assert current_user.is_authenticated
        kept.append(request._get_current_object())
        assert find_context(site.registry, kept[0]) is not None
        return "ok"

    firefox.login()
    assert firefox.get("/kept").text == "ok"
    assert find_context(site.registry, kept[0]) is None


def test_password_change_lets_go_of_its_connection(make_site: SiteFactory) -> None:
    """What compares the passwords on a connection doesn't keep it from being garbage."""
    chrome = make_site("cookie", "postgresql").browser("Chrome")
    chrome.login()
    for password in ("second", "third"):
        assert chrome.post("/password", password=password).text == "changed"
    gc.collect()
    assert not lost_updates._guards


@pytest.mark.table
def test_database_is_usable_after_a_failed_check(make_site: SiteFactory) -> None:
    """37: an error page can use 'db.session' after the check's statement failed."""
    site = make_site("files", "postgresql")

    @site.app.errorhandler(503)
    def unavailable(error: t.Any) -> t.Any:
        return str(len(site.db.session.scalars(sa.select(site.User)).all())), 503

    firefox = site.browser("Firefox")
    firefox.login()
    with site.context():
        site.db.session.execute(sa.text("DROP TABLE user_sessions"))
        site.db.session.commit()
    response = firefox.get("/me")
    assert (response.status_code, response.text) == (503, "2")


def test_late_response_with_one_connection(
    make_site: SiteFactory, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """33, 41: the second check of a late response needs no further connection."""
    monkeypatch.setattr(persistence, "SLOW_AFTER", 0)
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 2}
    if database == "sqlite":
        options["poolclass"] = sa.QueuePool  # type: ignore[assignment]
    site = make_site("files", database, SQLALCHEMY_ENGINE_OPTIONS=options)
    firefox = site.browser("Firefox")
    firefox.login()
    assert firefox.is_signed_in


def test_touch_with_one_connection(make_site: SiteFactory, database: str) -> None:
    """41: deferred work waits until the app's only connection is free."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 2}
    if database == "sqlite":
        options["poolclass"] = sa.QueuePool  # type: ignore[assignment]
    site = make_site("files", database, SQLALCHEMY_ENGINE_OPTIONS=options)
    firefox = site.browser("Firefox")
    firefox.login()
    site.change(last_seen_at=days_ago(1))
    assert firefox.is_signed_in
    assert site.rows()[0].last_seen_at > days_ago(0.5)


def test_visitor_while_the_table_is_unreadable(make_site: SiteFactory) -> None:
    """37: a visitor whose session expired is served even if the table can't be read."""
    site = make_site("redis")

    @site.app.post("/visit")
    def visit() -> str:
        assert not current_user.is_authenticated
        session["cart"] = "new"
        return "ok"

    visitor = site.browser("Visitor", session="expired-long-ago")
    with Broken(site, "user_sessions"):
        assert visitor.post("/visit").status_code == 200
    assert visitor.get("/cart").json == {"cart": "new"}


def test_reason_cannot_be_read(make_site: SiteFactory) -> None:
    """37: with the database down, a visitor whose entry is gone is served without a reason."""
    site = make_site("redis")
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    visitor = site.browser(session="expired-long-ago")
    with Broken(site, "user_sessions"):
        answer = visitor.get("/me")
    assert (answer.status_code, answer.json) == (200, {"name": None, "rejected": None})


@pytest.mark.parametrize("store", ["redis", "files", "cookie"])
def test_login_whose_session_is_not_saved(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """38: a login whose session can't be saved fails, and doesn't count against the limit."""
    site = make_site(
        store, SESSION_REGISTRY_MAX_SESSIONS=2, SESSION_REGISTRY_MAX_SESSIONS_ACTION="reject"
    )
    site.app.config["PROPAGATE_EXCEPTIONS"] = False

    def fail(*_: t.Any) -> None:
        raise OSError("the store is down")

    with monkeypatch.context() as broken:
        broken.setattr(site.app.session_interface, "save_session", fail)
        for _ in range(3):
            assert site.browser().login().status_code == 500
    assert site.active() == 0
    assert {row.revoked_reason for row in site.rows()} == {"not_saved"}
    firefox = site.browser()
    assert firefox.login().status_code == 200
    assert firefox.is_signed_in


def test_login_whose_session_is_not_saved_at_first(
    site: Site, firefox: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """38: if the store recovers in time for the error page, the failed login stays failed."""
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    interface = t.cast(t.Any, site.app.session_interface)
    save = interface.save_session
    failures = [OSError("the store is down")]

    def fail_once(*arguments: t.Any) -> None:
        if failures:
            raise failures.pop()
        save(*arguments)

    monkeypatch.setattr(interface, "save_session", fail_once)
    assert firefox.login(remember="1").status_code == 500
    assert not firefox.is_signed_in
    assert site.active() == 0


@pytest.mark.table
def test_no_session_id_in_the_log(make_site: SiteFactory, caplog: pytest.LogCaptureFixture) -> None:
    """54: without hashing, no session id is logged, even as a failed statement's parameter."""
    site = make_site("redis", SESSION_REGISTRY_HASH_SESSION_IDS=False)
    firefox = site.browser()
    firefox.login()
    id = firefox.cookies["session"]
    site.redis.delete(f"{site.prefix}{id}")
    with Broken(site, "user_sessions"):
        assert firefox.get("/me").status_code == 200
    with site.context():
        site.sessions.UserSession.__table__.drop(site.db.engine)
    with caplog.at_level(logging.DEBUG, "flask_session_registry"):
        assert firefox.get("/me").status_code == 200
    assert "Could not find out why a session is gone" in caplog.text
    assert "sqlalchemy.exc.OperationalError" in caplog.text
    assert id not in caplog.text
