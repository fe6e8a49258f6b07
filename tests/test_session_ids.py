"""Sessions, their ids, and what a cookie can do (SCENARIOS 17 to 23, 25)."""

from __future__ import annotations

import base64
import datetime as dt
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from conftest import SiteFactory
from flask import Response, g, render_template_string, request, session
from flask_login import confirm_login, current_user, login_required, login_user, logout_user
from site_under_test import HAS_FALLBACKS, Browser, Site, days_ago, is_signed_cookie

from flask_session_registry import _clock as clock
from flask_session_registry import session_registered, session_rejected
from flask_session_registry._request import store_keys
from flask_session_registry._request.marker import MARKER


def anonymous_session(browser: Browser) -> None:
    browser.post("/cart", item="book")


def test_id_from_before_the_login_is_dead(store_site: Site) -> None:
    """17: an id that an attacker has set beforehand is worthless after the login."""
    firefox = store_site.browser("Firefox")
    anonymous_session(firefox)
    attacker = firefox.copy()
    firefox.login()
    assert firefox.is_signed_in
    assert firefox.get("/cart").json == {"cart": "book"}
    assert not attacker.is_signed_in
    if store_site.store != "cookie":
        assert attacker.get("/cart").json == {"cart": None}
        assert len(store_site.entries()) == 1


def test_signing_in_again_replaces_the_session(store_site: Site) -> None:
    """18: there is still one active session, with its data. The old one has ended."""
    firefox = store_site.browser("Firefox")
    firefox.login()
    firefox.post("/cart", item="book")
    copy = firefox.copy()
    firefox.login()
    assert store_site.active() == 1
    assert [row.revoked_reason for row in store_site.rows()] == ["replaced", None]
    assert firefox.get("/cart").json == {"cart": "book"}
    assert not copy.is_signed_in
    assert len(store_site.signed_in_entries()) == (store_site.store != "cookie")


def test_another_user_signs_in_over_it(store_site: Site) -> None:
    """18: the first user's session ends, and none of its data remains."""
    firefox = store_site.browser("Firefox")
    firefox.login("ann", remember="1")
    firefox.post("/cart", item="secret")
    copy = firefox.copy()
    firefox.login("bob")
    assert firefox.name_shown == "bob"
    assert firefox.get("/cart").json == {"cart": None}
    assert store_site.active("ann") == 0
    assert not copy.is_signed_in
    assert "remember_token" not in firefox.cookies


@pytest.mark.parametrize("asks_first", [True, False])
def test_switching_users_in_one_request(site: Site, firefox: Browser, asks_first: bool) -> None:
    """18: after logout, login and another login, the last one counts and leaves one row."""

    @site.app.post("/switch")
    def switch() -> str:
        if asks_first:
            logout_user()
        session["note"] = "ann's"
        login_user(site.user("ann"))
        login_user(site.user("bob"))
        return "switched"

    firefox.login("ann")
    firefox.post("/switch")
    assert firefox.name_shown == "bob"
    assert [row.revoked_reason for row in site.rows()] == ["replaced", None]
    with firefox.client.session_transaction() as stored:
        assert "note" not in stored


def test_login_over_a_dead_session_keeps_none_of_its_data(site: Site, firefox: Browser) -> None:
    """18: the data of a revoked session doesn't pass to the next user."""
    firefox.login("ann")
    firefox.post("/cart", item="secret")
    with site.context():
        site.db.session.execute(sa.text("UPDATE account SET password_hash = 'by hand'"))
        site.db.session.commit()
    firefox.login("bob")
    assert firefox.name_shown == "bob"
    assert firefox.get("/cart").json == {"cart": None}


def test_logout_kills_copies(store_site: Site) -> None:
    """19: a copy of the cookie is invalid, even after a new login. Remaining data is anonymous."""
    firefox = store_site.browser("Firefox")
    firefox.login()
    firefox.post("/cart", item="book")
    copy = firefox.copy()
    firefox.post("/logout")
    assert not firefox.is_signed_in
    assert firefox.get("/cart").json == {"cart": "book"}
    assert not copy.is_signed_in
    firefox.login()
    assert firefox.is_signed_in
    assert not copy.is_signed_in
    assert [row.revoked_reason for row in store_site.rows()] == ["logged_out", None]
    assert len(store_site.signed_in_entries()) == (store_site.store != "cookie")


def test_logout_of_an_empty_session_takes_the_cookie(store_site: Site) -> None:
    """19: if the session is otherwise empty, cookie and entry go, as without the registry."""
    firefox = store_site.browser("Firefox")
    firefox.login()
    firefox.post("/logout")
    assert "session" not in firefox.cookies
    assert not store_site.entries()


def test_session_that_is_cleared_is_over(site: Site, firefox: Browser) -> None:
    """19: a view that clears the session instead of logging out ends it too."""

    @site.app.post("/clear")
    def clear() -> str:
        assert current_user.is_authenticated
        session.clear()
        return "cleared"

    firefox.login()
    copy = firefox.copy()
    firefox.post("/clear")
    assert not copy.is_signed_in
    assert site.active() == 0


def forge(browser: Browser, **values: t.Any) -> None:
    with browser.client.session_transaction() as stored:
        for key, value in values.items():
            if value is None:
                stored.pop(key)
            else:
                stored[key] = value


MARKERS = {
    "no marker": None,
    "unknown": f"{uuid.uuid4().hex}.0",
    "no text": 17,
    "no uuid": "xyz.0",
    "no generation": uuid.uuid4().hex,
    "long": "a" * 5000,
}


@pytest.mark.parametrize("marker", MARKERS.values(), ids=list(MARKERS))
def test_session_without_a_row(store_site: Site, marker: t.Any) -> None:
    """20: the browser is signed out, without a traceback and without a new row."""
    firefox = store_site.browser("Firefox")
    firefox.login()
    forge(firefox, **{MARKER: marker})
    assert firefox.rejected == ("unregistered" if marker is None else "unknown")
    assert len(store_site.rows()) == 1


def test_marker_of_another_user(store_site: Site) -> None:
    """20: the row must belong to the user whom the session names."""
    firefox, chrome = store_site.browser("Firefox"), store_site.browser("Chrome")
    firefox.login("ann")
    chrome.login("bob")
    with chrome.client.session_transaction() as stored:
        bobs = stored[MARKER]
    forge(firefox, **{MARKER: bobs})
    assert not firefox.is_signed_in
    assert chrome.name_shown == "bob"


def test_marker_of_another_user_without_a_password(make_site: SiteFactory) -> None:
    """20: the row alone says whose session it is, where no fingerprint tells two users apart."""
    site = make_site("cookie", SESSION_REGISTRY_PASSWORD_ATTRIBUTE=None)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login("ann")
    chrome.login("bob")
    with chrome.client.session_transaction() as stored:
        bobs = stored[MARKER]
    forge(firefox, **{MARKER: bobs})
    assert not firefox.is_signed_in
    assert chrome.name_shown == "bob"


def test_ended_row(store_site: Site) -> None:
    """20: an ended row is not a session, even if its entry has been written back."""
    firefox = store_site.browser("Firefox")
    firefox.login()
    with firefox.client.session_transaction() as stored:
        data = dict(stored)
    with store_site.context():
        (row,) = store_site.sessions.active(store_site.user("ann"))
        assert store_site.sessions.revoke(row, reason="by an administrator")
        store_site.db.session.commit()
    forge(firefox, **data)
    assert firefox.rejected == "by an administrator"


def test_rejection_is_signaled_once_per_request(site: Site, firefox: Browser) -> None:
    """'session_rejected' reports the user session and the reason."""
    told: list[tuple[t.Any, str]] = []

    def receiver(app: t.Any, user_session_id: t.Any, reason: str) -> None:
        told.append((user_session_id, reason))

    firefox.login()
    (row,) = site.rows()
    with site.context():
        site.db.session.execute(sa.text("UPDATE account SET password_hash = 'by hand'"))
        site.db.session.commit()
    with session_rejected.connected_to(receiver, site.app):
        firefox.get("/me")
    assert told == [(row.id, "password_changed")]


def test_login_is_signaled(site: Site, firefox: Browser) -> None:
    """'session_registered' reports the row, which exists by then."""
    told: list[dict[str, t.Any]] = []

    def receiver(app: t.Any, **arguments: t.Any) -> None:
        told.append(arguments)

    with session_registered.connected_to(receiver, site.app):
        firefox.login()
    (row,) = site.rows()
    assert told == [{"user_session_id": row.id, "user_id": row.user_id, "new_device": True}]


MALFORMED = {
    "empty": "",
    "NUL": "a\0b",
    "a megabyte": "x" * 1_000_000,
    "not UTF-8": "\udcff\udcfe",
    "prefix": "session:abc",
    "path": "../../../../etc/passwd",
    "quotes": "';DROP TABLE account;--",
    "non-ASCII": "é" * 40,
}


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("value", MALFORMED.values(), ids=list(MALFORMED))
@pytest.mark.parametrize("name", ["session", "remember_token", "remember_token_session"])
@pytest.mark.parametrize("store", ["cookie", "redis", "files", "memory", "sqlalchemy"])
def test_malformed_cookies(
    make_site: SiteFactory, store: str, name: str, value: str, hashed: bool
) -> None:
    """21: the request is anonymous, without an error and without a row."""
    site = make_site(store, SESSION_REGISTRY_HASH_SESSION_IDS=hashed)
    raw = f"{name}={value}".encode("utf-8", "surrogateescape").decode("latin-1")
    others = "; remember_token=1|abc" if name == "remember_token_session" else ""
    response = site.app.test_client(use_cookies=False).get(
        "/me", environ_overrides={"HTTP_COOKIE": raw + others}
    )
    assert response.status_code == 200
    assert response.json["name"] is None
    assert site.rows() == []


@pytest.mark.parametrize("store", ["redis", "sqlalchemy"])
def test_dump_contains_no_cookie(make_site: SiteFactory, store: str) -> None:
    """22: no string in the table or the store works as a cookie."""
    site = make_site(store)
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    dump = [str(value) for row in site.rows() for value in vars(row).values()]
    for key, data in site.entries().items():
        dump += [key, key.removeprefix(site.prefix), data]
    cookies = firefox.cookies
    assert not any(value in text for value in cookies.values() for text in dump)
    for text in dump:
        if text.isprintable() and text.isascii():
            assert not site.browser("Thief", session=text.replace(";", "")).is_signed_in
    assert firefox.is_signed_in


def test_ids_without_hashing(make_site: SiteFactory) -> None:
    """With HASH_SESSION_IDS = False, the store's keys are Flask-Session's own."""
    site = make_site("redis", SESSION_REGISTRY_HASH_SESSION_IDS=False)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    assert site.prefix + firefox.cookies["session"] in site.entries()
    chrome.post("/password", password="new")
    assert list(site.entries()) == [site.prefix + chrome.cookies["session"]]


def test_visitors_and_failed_logins_make_no_rows(store_site: Site) -> None:
    """23: only a login creates a row."""
    firefox = store_site.browser("Firefox")
    anonymous_session(firefox)
    assert firefox.login("ann", "wrong").status_code == 403
    assert firefox.login("nobody").status_code == 403
    assert firefox.get("/nowhere").status_code == 404
    assert not firefox.is_signed_in
    assert store_site.rows() == []


def test_login_that_the_view_takes_back(site: Site, firefox: Browser) -> None:
    """23: a login and a logout in one request leave no row."""

    @site.app.post("/in-and-out")
    def in_and_out() -> str:
        login_user(site.user("ann"))
        logout_user()
        return "out"

    firefox.post("/in-and-out")
    assert not firefox.is_signed_in
    assert site.rows() == []


def test_users_of_a_request_loader(site: Site, firefox: Browser) -> None:
    """23: a user with an API token has no session, and is neither checked nor registered."""

    @site.login_manager.request_loader
    def by_token(request: t.Any) -> t.Any:
        return site.user("ann") if request.headers.get("X-Token") == "ann" else None

    headers = {"X-Token": "ann"}
    assert firefox.get("/me", headers=headers).json == {"name": "ann", "rejected": None}
    assert site.rows() == []
    firefox.login("bob")
    with site.context():
        site.sessions.revoke_all(site.user("bob"))
        site.db.session.commit()
    assert firefox.get("/me", headers=headers).json["name"] == "ann"


@pytest.mark.skipif(not HAS_FALLBACKS, reason="SECRET_KEY_FALLBACKS came with Flask 3.1")
@pytest.mark.parametrize("store", ["cookie", "redis"])
def test_secret_key_rotated(make_site: SiteFactory, store: str) -> None:
    """25: with the old key as a fallback all stay signed in; without it, none, without errors."""
    site = make_site(store)
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    site.app.config.update(SECRET_KEY="another", SECRET_KEY_FALLBACKS=["only for tests"])
    assert firefox.is_signed_in
    site.app.config["SECRET_KEY_FALLBACKS"] = []
    lost = firefox.copy("remember_token", "remember_token_session")
    assert not lost.is_signed_in
    assert firefox.is_signed_in is not is_signed_cookie(site)


def test_rotate(store_site: Site) -> None:
    """'rotate()' gives this browser a new id. The old one is invalid; data and row are the same."""

    @store_site.app.post("/sudo")
    def sudo() -> str:
        store_site.sessions.rotate()
        store_site.sessions.rotate()
        return "ok"

    firefox = store_site.browser("Firefox")
    firefox.login(remember="1")
    firefox.post("/cart", item="book")
    copy = firefox.copy()
    firefox.post("/sudo")
    assert firefox.get("/cart").json == {"cart": "book"}
    assert firefox.is_signed_in
    assert len(store_site.signed_in_entries()) == (store_site.store != "cookie")
    assert firefox.copy("remember_token", "remember_token_session").is_signed_in
    assert not copy.is_signed_in
    assert store_site.active() == 1


def test_password_given_once_more(store_site: Site) -> None:
    """'confirm_login()' gives a new id, too, and the row has the time (OWASP ASVS 5.0, 7.2.4)."""

    @store_site.app.post("/confirm")
    def confirm() -> str:
        confirm_login()
        return "ok"

    firefox = store_site.browser("Firefox")
    assert firefox.post("/confirm").status_code == 200
    firefox = store_site.browser("Firefox")
    firefox.login(remember="1")
    firefox.lose("session")
    assert firefox.is_signed_in
    copy = firefox.copy()
    (before,) = store_site.rows()
    firefox.post("/confirm")
    (after,) = store_site.rows()
    assert firefox.is_signed_in
    assert not copy.is_signed_in
    assert before.authenticated_at == before.created_at < after.authenticated_at


def test_id_is_long_enough(make_site: SiteFactory) -> None:
    """A session id has 128 random bits or more (OWASP ASVS 5.0, 7.2.3)."""
    site = make_site("redis")
    ids = []
    for _ in range(20):
        firefox = site.browser()
        firefox.login()
        ids.append(firefox.cookies["session"])
    assert len(set(ids)) == 20
    assert all(len(base64.urlsafe_b64decode(id + "==")) >= 16 for id in ids)


def test_rotate_without_a_user(site: Site, firefox: Browser) -> None:
    """Without a user there is nothing to rotate. Without a request, 'rotate()' raises."""

    @site.app.post("/sudo")
    def sudo() -> str:
        site.sessions.rotate()
        return "ok"

    assert firefox.post("/sudo").status_code == 200
    assert "session" not in firefox.cookies
    with site.context(), pytest.raises(RuntimeError, match="needs a request"):
        site.sessions.rotate()


def test_id_that_the_app_changes(make_site: SiteFactory) -> None:
    """Flask-Session's own 'regenerate' counts as a rotation: a late response revives nothing."""
    site = make_site("redis")

    @site.app.post("/regenerate")
    def regenerate() -> str:
        assert current_user.is_authenticated
        site.app.session_interface.regenerate(session)
        return "ok"

    firefox = site.browser("Firefox")
    firefox.login()
    ((key, data),) = ((key, site.redis.get(key)) for key in site.entries())
    copy = firefox.copy()
    firefox.post("/regenerate")
    site.redis.set(key, data)
    assert not copy.is_signed_in
    assert firefox.is_signed_in
    assert site.rows()[0].generation == 1


def test_current(site: Site, firefox: Browser) -> None:
    """'current' is the row of this request, or None if no session has signed in the user."""

    @site.app.get("/current")
    def current() -> dict[str, t.Any]:
        row = site.sessions.current
        return {"agent": row and row.user_agent}

    assert firefox.get("/current").json == {"agent": None}
    firefox.login()
    assert firefox.get("/current").json == {"agent": "Firefox"}
    with site.context():
        assert site.sessions.current is None
        assert site.sessions.rejected is None


def test_active_is_ordered_by_last_seen_at(site: Site) -> None:
    """'active' returns the most recently seen session first, without expired ones."""
    for name in ("Firefox", "Chrome", "Phone"):
        site.browser(name).login()
    site.browser("Remembered").login(remember="1")
    for days, name in ((10, "Firefox"), (1, "Chrome"), (32, "Phone"), (40, "Remembered")):
        site.change({"user_agent": name}, last_seen_at=days_ago(days))
    with site.context():
        rows = site.sessions.active(site.user("ann"))
    assert [row.user_agent for row in rows] == ["Chrome", "Firefox", "Remembered"]


def test_touch_is_written_once_per_interval(
    database_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TOUCH_INTERVAL: a touch is written after five minutes, with IP address and user agent."""
    site = database_site
    browser = site.browser("Old version")
    browser.login()
    site.change(last_seen_at=days_ago(1))
    browser.name = "New version"
    browser.get("/me")
    (row,) = site.rows()
    assert row.user_agent == "New version"
    assert row.last_seen_at > days_ago(0.1)
    browser.name = "Newer version"
    browser.get("/me")
    assert site.rows()[0].user_agent == "New version"


def test_asking_again_in_one_request(site: Site, firefox: Browser) -> None:
    """A session that was accepted or opened in this request isn't refused later in it."""

    @site.app.route("/again", methods=["GET", "POST"])
    def again() -> list[bool]:
        if request.method == "POST":
            login_user(site.user("ann"))
        answers = []
        for _ in range(2):
            answers.append(bool(current_user.is_authenticated))
            g.pop("_login_user")
        return answers

    assert firefox.post("/again").json == [True, True]
    assert firefox.get("/again").json == [True, True]
    assert firefox.is_signed_in


def test_user_loader_that_refuses(site: Site, firefox: Browser) -> None:
    """A remember cookie of another user isn't used for a user whom the app refuses."""
    chrome = site.browser("Chrome")
    chrome.login("bob", remember="1")
    firefox.login("ann")
    firefox.carry({"remember_token": chrome.cookies["remember_token"]})
    load = site.load_user

    @site.login_manager.user_loader
    def load_all_but_ann(id: str) -> t.Any:
        user = load(id)
        return None if user.name == "ann" else user

    assert not firefox.is_signed_in
    assert chrome.name_shown == "bob"


def test_other_cookies_of_an_answer(site: Site, firefox: Browser) -> None:
    """The registry leaves a cookie of the app alone."""

    @site.app.get("/theme")
    def theme() -> Response:
        response = Response(current_user.name)
        response.set_cookie("theme", "dark")
        return response

    firefox.login()
    assert "theme=dark" in firefox.get("/theme").headers["Set-Cookie"]
    assert firefox.is_signed_in


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.filterwarnings("ignore:The 'use_signer' option:DeprecationWarning")
def test_reason_when_the_entry_is_gone(make_site: SiteFactory, signed: bool) -> None:
    """'rejected' has the reason, although the purge has deleted all data of the session."""
    site = make_site("redis", SESSION_USE_SIGNER=signed)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    chrome.post("/password", password="new")
    assert firefox.rejected == "password_changed"
    assert firefox.rejected == "password_changed"
    assert chrome.rejected is None
    firefox.carry({"remember_token": "1|of no use"})
    assert firefox.rejected == "password_changed"
    nobody = site.browser("Nobody", session="never.given")
    assert nobody.rejected is None
    nobody.post("/cart", item="book")
    assert nobody.rejected is None


def test_own_session_ended_without_asking(store_site: Site) -> None:
    """14: a view that never asks for the user doesn't write back the entry that it ended."""
    site = store_site

    @site.app.post("/reset")
    def reset() -> str:
        site.user("ann").password_hash = uuid.uuid4().hex
        site.db.session.commit()
        session["cart"] = "after"
        return "reset"

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login("ann", remember="1")
    chrome.login("bob")
    chrome.post("/reset")
    assert chrome.name_shown == "bob"
    firefox.login("ann", remember="1")
    firefox.post("/reset")
    assert not firefox.is_signed_in
    assert "remember_token" not in firefox.cookies
    assert firefox.get("/cart").json == {"cart": "after"}
    assert len(site.signed_in_entries()) == (site.store != "cookie")


def test_commit_for_one_app_in_a_request_of_another(make_site: SiteFactory) -> None:
    """57: a request of one app, in which another app ends sessions, keeps its own."""
    one, other = make_site(), make_site()

    @one.app.post("/other")
    def end_in_the_other() -> str:
        with other.context():
            other.user("ann").password_hash = "new"
            other.db.session.commit()
            assert other.sessions.current is None
            assert other.sessions.rejected is None
        return "ended"

    firefox, chrome = one.browser(), other.browser()
    firefox.login("ann")
    chrome.login("ann")
    firefox.post("/other")
    assert firefox.is_signed_in
    assert not chrome.is_signed_in


@pytest.mark.parametrize("name", ["ann", "bob"])
def test_login_view_that_clears_the_session(store_site: Site, name: str) -> None:
    """18: with the common 'session.clear()' before 'login_user', the old session ends."""

    @store_site.app.post("/clear-and-sign-in")
    def clear_and_sign_in() -> str:
        session.clear()
        login_user(store_site.user(name))
        return "signed in"

    firefox = store_site.browser()
    firefox.login("ann")
    firefox.post("/cart", item="secret")
    copy = firefox.copy()
    firefox.post("/clear-and-sign-in")
    assert firefox.name_shown == name
    assert firefox.get("/cart").json == {"cart": None}
    assert not copy.is_signed_in
    assert [row.revoked_reason for row in store_site.rows()] == ["replaced", None]
    assert len(store_site.signed_in_entries()) == (store_site.store != "cookie")


@pytest.mark.parametrize("name", ["ann", "bob"])
def test_login_where_only_the_remember_cookie_is_left(site: Site, name: str) -> None:
    """18: the session that it would restore ends with the new login."""
    firefox = site.browser()
    firefox.login("ann", remember="1")
    copy = firefox.copy("remember_token", "remember_token_session")
    firefox.lose("session")
    firefox.login(name)
    assert firefox.name_shown == name
    assert not copy.is_signed_in
    assert [row.revoked_reason for row in site.rows()] == ["replaced", None]


def test_refused_remember_cookie_goes_with_a_login(site: Site, firefox: Browser) -> None:
    """46: the cookie is read and refused, then replaced by a login in the same request."""

    @site.app.post("/ask-and-sign-in")
    def ask_and_sign_in() -> str:
        assert not current_user.is_authenticated
        login_user(site.user("ann"))
        return "signed in"

    firefox.login(remember="1")
    firefox.lose("session", "remember_token_session")
    firefox.post("/ask-and-sign-in")
    assert set(firefox.cookies) == {"session"}
    assert firefox.is_signed_in


def test_logout_in_an_app_context_that_a_test_holds(site: Site, firefox: Browser) -> None:
    """19: the user then comes from 'g', and the row ends regardless."""
    firefox.login()
    copy = firefox.copy()
    with site.context():
        firefox.get("/me")
        firefox.post("/logout")
    assert site.active() == 0
    assert not copy.is_signed_in


def test_user_asked_for_in_the_context_of_another_app(make_site: SiteFactory) -> None:
    """57: a template of another app, rendered within a request, signs no one out."""
    one, other = make_site(), make_site()

    @one.app.get("/mail")
    def mail() -> str:
        assert current_user.is_authenticated
        with other.context():
            render_template_string("{{ current_user }}")
            with pytest.raises(RuntimeError):
                other.sessions.rotate()
        return "rendered"

    firefox = one.browser()
    firefox.login("ann")
    firefox.get("/mail")
    assert firefox.is_signed_in


def test_hash_from_an_old_dump(make_site: SiteFactory) -> None:
    """22: if hashing is later disabled, an old dump still contains no valid cookie."""
    site = make_site("redis")
    firefox = site.browser()
    firefox.login()
    (key,) = site.entries()
    store_keys.configure_store_keys(site.app.session_interface, hashed=False)
    assert not site.browser("Thief", session=key.removeprefix(site.prefix)).is_signed_in


def late_after_a_change(site: Site) -> tuple[Browser, Browser]:
    """Return Chrome after its password change, and a copy from before it."""
    chrome = site.browser("Chrome")
    chrome.login(remember="1")
    late = chrome.copy()
    chrome.post("/password", password="new")
    return chrome, late


def test_late_request_that_writes(store_site: Site) -> None:
    """2: even a view that redirects to the login page and flashes gives Chrome no other session."""
    site = store_site
    site.login_manager.login_view = "login"

    @site.app.get("/private")
    @login_required
    def private() -> str:
        return "private"

    chrome, late = late_after_a_change(site)
    answer = late.get("/private")
    assert answer.status_code == 302
    assert not answer.headers.getlist("Set-Cookie")
    chrome.post("/cart", item="book")
    assert chrome.is_signed_in
    late.login("ann")
    assert late.is_signed_in


def test_late_request_of_an_app_that_makes_sessions_permanent(store_site: Site) -> None:
    """2: making the session permanent is no reason to write it or to clear a cookie."""
    site = store_site

    @site.app.before_request
    def make_permanent() -> None:
        assert current_user is not None
        current_user.is_authenticated  # noqa: B018
        session.permanent = True

    chrome, late = late_after_a_change(site)
    answer = late.get("/me")
    assert not answer.headers.getlist("Set-Cookie")
    assert chrome.is_signed_in


def test_visitor_with_an_expired_session(store_site: Site) -> None:
    """A visitor's expired session isn't a late request. A new one begins."""
    forgotten = store_site.browser("Visitor", session="expired-long-ago")

    @store_site.app.post("/visit")
    def visit() -> str:
        assert not current_user.is_authenticated
        session["cart"] = "new"
        return "ok"

    forgotten.post("/visit")
    assert forgotten.get("/cart").json == {"cart": "new"}


def test_visitor_whose_session_is_emptied(store_site: Site) -> None:
    """A visitor's session that a view empties is deleted, as without the registry."""

    @store_site.app.post("/empty")
    def empty() -> str:
        assert not current_user.is_authenticated
        session.clear()
        return "ok"

    firefox = store_site.browser()
    firefox.post("/cart", item="book")
    firefox.post("/empty")
    assert firefox.cookies == {}
    assert not store_site.entries()


def test_rotation_of_a_user_who_is_detached(site: Site, firefox: Browser) -> None:
    """The remember cookie is renewed without an instance that can no longer be loaded."""

    @site.app.post("/sudo")
    def sudo() -> str:
        site.sessions.rotate()
        site.db.session.commit()
        site.db.session.remove()
        return "ok"

    firefox.login(remember="1")
    assert firefox.post("/sudo").status_code == 200
    assert firefox.is_signed_in
    firefox.lose("session")
    assert firefox.is_signed_in


@pytest.mark.parametrize("store", ["redis", "files", "memory", "sqlalchemy"])
def test_refused_session_goes_on_under_a_new_id(make_site: SiteFactory, store: str) -> None:
    """20: data written after a refusal isn't visible to a holder of the refused id."""
    site = make_site(store)

    @site.app.post("/note")
    def note() -> str:
        assert not current_user.is_authenticated
        session["cart"] = "of the next visitor"
        return "ok"

    firefox = site.browser("Firefox")
    firefox.login()
    copy = firefox.copy()
    with site.context():
        site.db.session.execute(sa.text("UPDATE account SET password_hash = 'by hand'"))
        site.db.session.commit()
    firefox.post("/note")
    assert firefox.get("/cart").json == {"cart": "of the next visitor"}
    assert copy.get("/cart").json == {"cart": None}


def test_marker_that_changes_within_a_request(site: Site, firefox: Browser) -> None:
    """20: the check accepts one marker, not whatever the session contains later."""

    @site.app.post("/tamper")
    def tamper() -> list[bool]:
        answers = [bool(current_user.is_authenticated)]
        session[MARKER] = "0" * 32 + ".0"
        g.pop("_login_user")
        return [*answers, bool(current_user.is_authenticated)]

    firefox.login()
    assert firefox.post("/tamper").json == [True, False]


def test_login_that_the_view_takes_back_leaves_nothing(store_site: Site) -> None:
    """23: a login and a logout in one request leave neither a cookie nor an entry."""

    @store_site.app.post("/in-and-out")
    def in_and_out() -> str:
        login_user(store_site.user("ann"))
        logout_user()
        return "out"

    firefox = store_site.browser("Firefox")
    firefox.post("/in-and-out")
    assert firefox.cookies == {}
    assert not store_site.entries()


def test_session_that_is_cleared_takes_the_remember_cookie(site: Site, firefox: Browser) -> None:
    """19, 47: cookies that become invalid are cleared in the same response."""

    @site.app.post("/clear")
    def clear() -> str:
        assert current_user.is_authenticated
        session.clear()
        return "cleared"

    firefox.login(remember="1")
    firefox.post("/clear")
    assert firefox.cookies == {}


def test_another_user_signs_in_over_it_and_is_remembered(site: Site, firefox: Browser) -> None:
    """18: Flask-Login's data of the new login stays: fresh, and remembered."""
    firefox.login("ann")
    firefox.login("bob", remember="1")
    with firefox.client.session_transaction() as stored:
        assert stored["_fresh"] is True
        assert "_id" in stored
    firefox.lose("session")
    assert firefox.name_shown == "bob"


@pytest.mark.parametrize("store", ["redis", "files", "memory", "sqlalchemy"])
def test_replaced_session_is_purged(make_site: SiteFactory, store: str) -> None:
    """18: the row of a replaced or logged-out session records that its entry is gone."""
    site = make_site(store)
    firefox = site.browser("Firefox")
    firefox.login()
    firefox.login()
    firefox.post("/logout")
    assert all(row.purged_at is not None for row in site.rows())


@pytest.mark.parametrize("value", ["a\0b", "x" * 3000, "a b"])
def test_ids_that_were_never_issued(make_site: SiteFactory, value: str) -> None:
    """21: even without hashing, they don't reach a store that can't use them as a key."""
    site = make_site("sqlalchemy", "postgresql", SESSION_REGISTRY_HASH_SESSION_IDS=False)
    client = site.app.test_client(use_cookies=False)
    response = client.get("/me", environ_overrides={"HTTP_COOKIE": f"session={value}"})
    assert response.status_code == 200
    assert response.json["name"] is None


@pytest.mark.skipif(not HAS_FALLBACKS, reason="SECRET_KEY_FALLBACKS came with Flask 3.1")
@pytest.mark.parametrize("store", ["cookie", "redis"])
def test_secret_key_rotated_and_remembered(make_site: SiteFactory, store: str) -> None:
    """25: a password change while the old key is a fallback renews both with the new key."""
    site = make_site(store)
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    site.app.config.update(SECRET_KEY="another", SECRET_KEY_FALLBACKS=["only for tests"])
    firefox.post("/password", password="new")
    site.app.config["SECRET_KEY_FALLBACKS"] = []
    firefox.lose("session")
    assert firefox.is_signed_in


def test_times_of_a_row_that_is_loaded_again(site: Site, firefox: Browser) -> None:
    """Times are aware UTC, even after a commit has expired the row."""
    firefox.login()
    with site.context():
        (row,) = site.sessions.active(site.user("ann"))
        site.db.session.commit()
        assert row.created_at.utcoffset() is not None


def test_times_in_another_time_zone(make_site: SiteFactory) -> None:
    """Times are UTC, whatever the connection's time zone."""
    site = make_site(
        "files",
        "postgresql",
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"options": "-c timezone=Asia/Tokyo"}},
    )
    site.browser("Firefox").login()
    (row,) = site.rows()
    assert row.created_at.utcoffset() == dt.timedelta(0)
    assert row.created_at > days_ago(0.1)


def test_user_who_is_changed_right_after_the_sign_up(site: Site, firefox: Browser) -> None:
    """28: for a user created in this request, the password that was stored then counts."""

    @site.app.post("/sign-up")
    def sign_up() -> str:
        user = site.User(name="eve", password_hash="x")
        site.db.session.add(user)
        site.db.session.commit()
        with site.db.engine.begin() as connection:
            connection.execute(sa.text("UPDATE account SET password_hash = 'by hand'"))
        login_user(user)
        return "welcome"

    firefox.post("/sign-up")
    assert firefox.rejected == "password_changed"


@pytest.mark.parametrize("wait", [0, 60])
def test_browser_that_has_only_the_old_id(
    store_site: Site, monkeypatch: pytest.MonkeyPatch, wait: int
) -> None:
    """2: a moment later it can sign in, with a form that keeps its token in the session."""
    site = store_site

    @site.app.route("/form", methods=["GET", "POST"])
    def form() -> str:
        assert not current_user.is_authenticated
        if request.method == "GET":
            session["token"] = "abc"
            return "form"
        if session.get("token") != "abc":
            return "missing token"
        login_user(site.user("ann"))
        return "signed in"

    _, late = late_after_a_change(site)
    late.lose("remember_token", "remember_token_session")
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now + dt.timedelta(seconds=wait))
    late.get("/form")
    assert late.post("/form").text == ("signed in" if wait else "missing token")
    assert late.is_signed_in is bool(wait)


@pytest.mark.parametrize("marker", ["dead", None])
def test_form_that_writes_before_it_asks(store_site: Site, marker: str | None) -> None:
    """20: from a refused session, only what this request itself has written remains."""
    site = store_site

    @site.app.route("/form", methods=["GET", "POST"])
    def form() -> str:
        token = session.setdefault("token", uuid.uuid4().hex)
        asked_late = current_user.is_authenticated
        assert not asked_late
        if request.method == "GET":
            return str(token)
        if session.get("token") != request.form["token"]:
            return "wrong token"
        login_user(site.user("ann"))
        return "signed in"

    firefox = site.browser()
    firefox.login()
    firefox.post("/cart", item="secret")
    forge(firefox, **{MARKER: marker})
    token = firefox.get("/form").text
    assert firefox.get("/cart").json == {"cart": None}
    assert firefox.post("/form", token=token).text == "signed in"
    assert firefox.name_shown == "ann"


def test_impersonation(store_site: Site) -> None:
    """18: what the view has put into the session for the next user stays, and nothing else."""

    @store_site.app.post("/impersonate")
    def impersonate() -> str:
        session["impersonator"] = current_user.name
        session["cart"] = "changed"
        login_user(store_site.user("bob"))
        return "ok"

    @store_site.app.get("/session")
    def contents() -> list[t.Any]:
        return [session.get(key) for key in ("impersonator", "cart", "note")]

    firefox = store_site.browser()
    firefox.login("ann")
    firefox.post("/cart", item="book")
    firefox.post("/impersonate")
    assert firefox.name_shown == "bob"
    assert firefox.get("/session").json == ["ann", None, None]


@pytest.mark.parametrize("store", ["redis", "files"])
def test_switch_of_users_while_the_entry_is_lost(make_site: SiteFactory, store: str) -> None:
    """18: the previous data is unknown, so none of the first user's data is kept."""
    site = make_site(store)

    @site.app.post("/switch")
    def switch() -> str:
        assert session["cart"] == "book"
        site.app.session_interface._delete_session(site.rows()[0].store_id)
        login_user(site.user("bob"))
        return "ok"

    firefox = site.browser()
    firefox.login("ann")
    firefox.post("/cart", item="book")
    firefox.post("/switch")
    assert firefox.name_shown == "bob"
    assert firefox.get("/cart").json == {"cart": None}
