"""Flask-Security-Too's own pages, with the registry's default settings (SCENARIO 59)."""

from __future__ import annotations

import typing as t
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask, request
from flask_login import current_user, login_required
from flask_security import (
    Security,
    SQLAlchemyUserDatastore,
    auth_required,
    auth_token_required,
    hash_password,
    http_auth_required,
    logout_user,
    password_reset,
    reset_password_instructions_sent,
    roles_required,
)
from flask_security.changeable import admin_change_password
from flask_security.models import fsqla_v3
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from passlib.hash import pbkdf2_sha256, pbkdf2_sha512
from site_under_test import DATABASES, STORES, Browser, Site
from stores import KINDS
from test_readme import blocks

from flask_session_registry import SessionRegistry
from flask_session_registry.testing import SessionRegistryClient

#: Flask-Security's own settings: its pages are on, no mail is sent, hashing is fast.
SETTINGS = {
    "SECURITY_CHANGEABLE": True,
    "SECURITY_RECOVERABLE": True,
    "SECURITY_PASSWORD_SALT": "only for tests",
    "SECURITY_PASSWORD_HASH": "pbkdf2_sha512",
    "SECURITY_PASSWORD_SCHEMES": ["pbkdf2_sha512", "pbkdf2_sha256"],
    "SECURITY_DEPRECATED_PASSWORD_SCHEMES": ["auto"],
    "SECURITY_PASSWORD_HASH_PASSLIB_OPTIONS": {
        "pbkdf2_sha512__rounds": 1,
        "pbkdf2_sha256__rounds": 1,
    },
    "SECURITY_EMAIL_VALIDATOR_ARGS": {"check_deliverability": False},
    "SECURITY_SEND_PASSWORD_CHANGE_EMAIL": False,
    "SECURITY_SEND_PASSWORD_RESET_EMAIL": False,
    "SECURITY_SEND_PASSWORD_RESET_NOTICE_EMAIL": False,
    "SECURITY_PASSWORD_SINGLE_HASH": True,
    "SECURITY_TOTP_SECRETS": {"1": "only for tests"},
    "SECURITY_TOTP_ISSUER": "tests",
    "WTF_CSRF_ENABLED": False,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The auto-login after:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'get_token_status' is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Passing SelectField choices:DeprecationWarning"),
]

OLD, NEW = "old password", "new password"


class SecuritySite(Site):
    """An app with the users, login manager and pages of Flask-Security."""

    def __init__(
        self,
        folder: Path,
        *,
        store: str = "files",
        database: str | None = None,
        keeps_rehash: bool = False,
        **config: t.Any,
    ) -> None:
        self.store = store
        self.records = "sql"
        self.folder = folder
        self.app = app = Flask(f"site_{uuid.uuid4().hex[:8]}")
        self.prefix = f"s{uuid.uuid4().hex[:8]}:"
        app.config.update(
            SECRET_KEY="only for tests",
            SQLALCHEMY_DATABASE_URI=database or f"sqlite:///{folder}/site.db",
            SESSION_KEY_PREFIX=self.prefix,
            SESSION_REGISTRY_AUTO_PRUNE=None,
            **SETTINGS,
        )
        self.backend = KINDS[store](app, folder, self.prefix)
        app.config.update(self.backend.configure())
        app.config.update(config)
        self.db = SQLAlchemy(app)
        self.backend.set_up(self.db)
        self.sessions = SessionRegistry()
        self.User = self._define_users(keeps_rehash)
        self.security = Security(app, self.datastore)
        self.sessions.init_app(app)
        self._add_views()
        with app.app_context():
            self.db.create_all()
            for name in ("ann", "bob"):
                self.datastore.create_user(email=f"{name}@example.com", password=hash_password(OLD))
            self.datastore.add_role_to_user(
                self.user("ann"), self.datastore.create_role(name="reader")
            )
            self.db.session.commit()

    def _define_users(self, keeps_rehash: bool) -> type[t.Any]:
        db = self.db
        fsqla_v3.FsModels.set_db_info(db)

        class Role(db.Model, fsqla_v3.FsRoleMixin):  # type: ignore[name-defined]
            pass

        # As the README shows.
        (block,) = (block for block in blocks("python") if "class SamePassword" in block)
        shown: dict[str, t.Any] = {"sessions": self.sessions}
        exec(compile(block, "README.rst", "exec"), shown)
        bases = (shown["SamePassword"],) if keeps_rehash else ()

        class User(*bases, db.Model, fsqla_v3.FsUserMixin):  # type: ignore[misc, name-defined]
            @property
            def name(self) -> str:
                return str(self.email).partition("@")[0]

        self.datastore = SQLAlchemyUserDatastore(db, User, Role)
        return User

    def user(self, name: str) -> t.Any:
        return self.db.session.scalar(sa.select(self.User).filter_by(email=f"{name}@example.com"))

    def _add_views(self) -> None:
        app = self.app

        @app.get("/me")
        def me() -> dict[str, t.Any]:
            name = current_user.name if current_user.is_authenticated else None
            return {"name": name, "rejected": self.sessions.rejected}

        for path, protect in {
            "any": auth_required(),
            "session": auth_required("session"),
            "token": auth_token_required,
            "basic": http_auth_required,
            "login": login_required,
            "role": roles_required("reader"),
        }.items():
            app.add_url_rule(f"/only/{path}", path, protect(lambda: {"name": current_user.name}))

    def browser(self, name: str = "Firefox", **cookies: str) -> SecurityBrowser:
        return SecurityBrowser(self, name, cookies)


class SecurityBrowser(Browser):
    site: SecuritySite

    def login(self, name: str = "ann", password: str | None = None, **form: t.Any) -> t.Any:
        email = f"{name}@example.com"
        answer = self.post("/login", email=email, password=password or OLD, **form)
        assert answer.status_code == 302, answer.text
        return answer

    def ask_for_json(self, path: str, **content: t.Any) -> t.Any:
        return self.open("POST", path, json=content, headers={"Accept": "application/json"})

    def change_password(self, old: str = OLD, new: str = NEW) -> t.Any:
        return self.post("/change", password=old, new_password=new, new_password_confirm=new)

    def copy(self, *names: str) -> SecurityBrowser:
        cookies = self.cookies
        return SecurityBrowser(self.site, "Copy", {n: cookies[n] for n in names or cookies})


Make = Callable[..., SecuritySite]


@pytest.fixture
def make(tmp_path: Path, databases: Callable[[str], str | None]) -> Iterator[Make]:
    sites: list[SecuritySite] = []

    def make(database: str = "sqlite", **options: t.Any) -> SecuritySite:
        folder = tmp_path / str(len(sites))
        folder.mkdir()
        sites.append(SecuritySite(folder, database=databases(database), **options))
        return sites[-1]

    yield make
    for site in sites:
        if site.app.config["SQLALCHEMY_DATABASE_URI"].startswith("sqlite") is False:
            with site.context():
                site.db.session.remove()
                site.db.drop_all()
        site.close()


def check_change(site: SecuritySite) -> None:
    """Sign in and remember two browsers. If Chrome changes the password, only Chrome stays."""
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login(remember="y")
        assert browser.name_shown == "ann"
    assert [row.user_agent for row in site.rows()] == ["Firefox", "Chrome"]
    copies = [firefox.copy(), chrome.copy(), chrome.copy("remember_token")]
    remembered = firefox.copy("remember_token", "remember_token_session")
    assert chrome.change_password().status_code == 302
    assert chrome.name_shown == "ann"
    assert firefox.rejected == "password_changed"
    assert [browser.name_shown for browser in (*copies, remembered)] == [None] * 4
    assert site.rows(user_agent="Firefox")[0].revoked_reason == "password_changed"
    assert site.active() == 1
    chrome.lose("session")
    assert chrome.name_shown == "ann"


@pytest.mark.parametrize("store", STORES)
def test_change_on_every_store(make: Make, store: str) -> None:
    """59: on the page that changes the password, Chrome stays, and is remembered."""
    check_change(make(store=store))


@pytest.mark.parametrize("trackable", [False, True])
@pytest.mark.parametrize("database", DATABASES)
def test_change_on_every_database(make: Make, database: str, trackable: bool) -> None:
    """59: the same on every database, also if the user's row records each login."""
    check_change(make(database, SECURITY_TRACKABLE=trackable))


def test_dead_on_every_route(make: Make) -> None:
    """59: no decorator or role check of Flask-Security's admits an ended session."""
    site = make()
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login(remember="y")
    chrome.login()
    paths = [f"/only/{path}" for path in ("any", "session", "login", "role")]
    copy = firefox.copy()
    assert all(copy.get(path).json == {"name": "ann"} for path in paths)
    chrome.change_password()
    for path in paths:
        for dead in (firefox.copy(), firefox.copy("session")):
            assert dead.get(path).status_code == (403 if path == "/only/role" else 302)
            assert dead.ask_for_json("/change").status_code == 401
    assert all(chrome.get(path).json == {"name": "ann"} for path in paths)


def test_change_that_is_rejected(make: Make) -> None:
    """10, 59: a wrong password, two that differ, or a short one: no one is signed out."""
    site = make()
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    before = chrome.cookies
    for new, again, old in [(NEW, NEW, "x"), (NEW, "other", OLD), ("short", "short", OLD)]:
        form = {"password": old, "new_password": new, "new_password_confirm": again}
        assert chrome.post("/change", **form).status_code == 200
    assert (firefox.name_shown, chrome.name_shown) == ("ann", "ann")
    assert chrome.cookies == before


def test_page_that_fails(make: Make) -> None:
    """4, 59: Flask-Security commits after a page that has failed, too, so it counts as a change."""

    def fail(*_: t.Any, **__: t.Any) -> None:
        raise OSError("no mail today")

    site = make(SECURITY_SEND_PASSWORD_CHANGE_EMAIL=True, PROPAGATE_EXCEPTIONS=False)
    site.security._mail_util.send_mail = fail
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    assert chrome.change_password().status_code == 500
    assert (chrome.name_shown, firefox.name_shown) == ("ann", None)
    firefox.login(password=NEW)
    assert firefox.name_shown == "ann"


def test_change_by_json(make: Make) -> None:
    """59: the same for a single-page app."""
    site = make()
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        answer = browser.ask_for_json("/login", email="ann@example.com", password=OLD)
        assert answer.status_code == 200
    copy = chrome.copy()
    answer = chrome.ask_for_json(
        "/change", password=OLD, new_password=NEW, new_password_confirm=NEW
    )
    assert answer.status_code == 200
    assert [browser.name_shown for browser in (chrome, firefox, copy)] == ["ann", None, None]


def test_form_with_a_token(make: Make) -> None:
    """59: with CSRF protection, a user can sign in again over a session that has ended."""
    site = make(WTF_CSRF_ENABLED=True)
    CSRFProtect(site.app)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")

    def token(browser: Browser, page: str) -> str:
        text = browser.get(page).text
        return str(text.partition('name="csrf_token"')[2].partition('value="')[2].partition('"')[0])

    for browser in (firefox, chrome):
        browser.login(csrf_token=token(browser, "/login"))
    new = {"new_password": NEW, "new_password_confirm": NEW}
    chrome.post("/change", password=OLD, csrf_token=token(chrome, "/change"), **new)
    assert (chrome.name_shown, firefox.name_shown) == ("ann", None)
    firefox.login(password=NEW, csrf_token=token(firefox, "/login"))
    assert firefox.name_shown == "ann"
    assert chrome.post("/logout", csrf_token=token(chrome, "/change")).status_code == 302
    assert chrome.name_shown is None


# -- the page that resets a forgotten password ---------------------------------------------------


def ask_for_reset(site: SecuritySite, browser: Browser) -> str:
    """Return the path of the page that the mail links to."""
    tokens: list[str] = []

    def note(_: t.Any, token: str, **__: t.Any) -> None:
        tokens.append(token)

    with reset_password_instructions_sent.connected_to(note, site.app):
        browser.post("/reset", email="ann@example.com")
    return f"/reset/{tokens[0]}"


@pytest.mark.parametrize("signs_in", [False, True])
@pytest.mark.parametrize("trackable", [False, True])
@pytest.mark.parametrize("database", DATABASES)
def test_reset(make: Make, database: str, signs_in: bool, trackable: bool) -> None:
    """6, 59: every session ends, except the one that the page opens. Asking for it ends none."""
    site = make(database, SECURITY_AUTO_LOGIN_AFTER_RESET=signs_in, SECURITY_TRACKABLE=trackable)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login(remember="y")
    copy = firefox.copy()
    page = ask_for_reset(site, chrome)
    assert firefox.name_shown == "ann"
    assert chrome.post(page, password=NEW, password_confirm=NEW).status_code == 302
    assert chrome.name_shown == ("ann" if signs_in else None)
    assert (firefox.rejected, copy.name_shown) == ("password_changed", None)
    assert site.active() == signs_in
    firefox.login(password=NEW)
    assert firefox.name_shown == "ann"


@pytest.mark.parametrize("signs_in", [False, True])
def test_reset_over_the_own_session(make: Make, signs_in: bool) -> None:
    """6, 59: a signed-in user who resets their own password stays signed in here."""
    site = make(SECURITY_AUTO_LOGIN_AFTER_RESET=signs_in)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login(remember="y")
    page = ask_for_reset(site, site.browser("Mail"))
    copy = chrome.copy()
    chrome.post(page, password=NEW, password_confirm=NEW)
    assert [browser.name_shown for browser in (chrome, firefox, copy)] == ["ann", None, None]
    assert site.active() == 1


def test_reset_that_ends_the_own_session(make: Make) -> None:
    """6, 59: an app can do it like Flask-Security, and end that session too."""
    site = make()

    @password_reset.connect_via(site.app)
    def sign_out(app: Flask, user: t.Any, **_: t.Any) -> None:
        if current_user == user:
            logout_user()

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login(remember="y")
    page = ask_for_reset(site, site.browser("Mail"))
    copy = chrome.copy()
    chrome.post(page, password=NEW, password_confirm=NEW)
    assert [browser.name_shown for browser in (chrome, firefox, copy)] == [None, None, None]
    assert site.active() == 0


@pytest.mark.parametrize("signs_in", [False, True])
def test_reset_over_the_session_of_another(make: Make, signs_in: bool) -> None:
    """6, 59: a signed-in user follows the reset link of another user."""
    site = make(SECURITY_AUTO_LOGIN_AFTER_RESET=signs_in)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login("ann")
    chrome.login("bob")
    copy = chrome.copy()
    page = ask_for_reset(site, site.browser("Mail"))
    chrome.post(page, password=NEW, password_confirm=NEW)
    assert (chrome.name_shown, firefox.name_shown) == ("ann" if signs_in else "bob", None)
    assert copy.name_shown == (None if signs_in else "bob")


# -- logins and logouts of other kinds -----------------------------------------------------------


def test_logout(make: Make) -> None:
    """19, 47, 59: copies of the cookies, "remember me" included, are invalid. Firefox goes on."""
    site = make()
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login(remember="y")
    chrome.login(remember="y")
    copies = [chrome.copy(), chrome.copy("remember_token", "remember_token_session")]
    assert chrome.post("/logout").status_code == 302
    assert [browser.name_shown for browser in (chrome, *copies)] == [None, None, None]
    firefox.lose("session")
    assert firefox.name_shown == "ann"
    assert site.active() == 1


def test_unified_sign_in(make: Make) -> None:
    """59: a sign-in on another page is a sign-in."""
    site = make(SECURITY_UNIFIED_SIGNIN=True, SECURITY_US_ENABLED_METHODS=["password"])
    chrome, firefox = site.browser("Chrome"), site.browser("Firefox")
    firefox.login()
    form = {"identity": "ann@example.com", "passcode": OLD, "remember": "y"}
    assert chrome.post("/us-signin", **form).status_code == 302
    assert chrome.name_shown == "ann"
    assert site.active() == 2
    chrome.change_password()
    assert (chrome.name_shown, firefox.name_shown) == ("ann", None)


def take_token(browser: SecurityBrowser, password: str = OLD) -> str:
    answer = browser.ask_for_json(
        "/login?include_auth_token", email="ann@example.com", password=password
    )
    return str(answer.json["response"]["user"]["authentication_token"])


def test_users_by_token(make: Make) -> None:
    """23, 59: a user with a token is neither checked nor registered, with cookies or without."""
    site = make()
    chrome = site.browser("Chrome")
    headers = {"Authentication-Token": take_token(chrome)}
    chrome.post("/logout")
    rows = [row.id for row in site.rows()]
    api, dead = site.browser("API"), site.browser("Dead")
    dead.login()
    dead_too = dead.copy()
    dead_too.post("/logout")
    for browser in (api, dead):
        for path in ("any", "token"):
            assert browser.get(f"/only/{path}", headers=headers).json == {"name": "ann"}
        assert browser.get("/me", headers=headers).json["name"] == "ann"
        assert browser.name_shown is None
    assert [row.id for row in site.rows()][: len(rows)] == rows
    assert len(site.rows()) == len(rows) + 1
    with site.count_statements() as statements:
        api.get("/only/token", headers=headers)
    assert not any("user_sessions" in statement for statement in statements.texts)


@pytest.mark.parametrize("how", ["change", "revoke"])
def test_end_of_a_token(make: Make, how: str) -> None:
    """59: Flask-Security's token ends with the password, but not with a revocation."""
    site = make()
    chrome = site.browser("Chrome")
    headers = {"Authentication-Token": take_token(chrome)}
    api = site.browser("API")
    if how == "change":
        chrome.change_password()
    else:
        with site.context():
            site.sessions.revoke_all(site.user("ann"))
            site.db.session.commit()
        assert chrome.name_shown is None
    answer = api.get("/only/token", headers=headers)
    assert answer.status_code == (302 if how == "change" else 200)


def test_change_by_token(make: Make) -> None:
    """59: changing the password with a token ends the session of every browser."""
    site = make(SECURITY_API_ENABLED_METHODS=["token"])
    firefox, api = site.browser("Firefox"), site.browser("API")
    firefox.login()
    token = take_token(site.browser("Elsewhere"))
    form = {"password": OLD, "new_password": NEW, "new_password_confirm": NEW}
    answer = api.open(
        "POST",
        "/change",
        json=form,
        headers={"Authentication-Token": token, "Accept": "application/json"},
    )
    assert answer.status_code == 200
    assert firefox.rejected == "password_changed"
    # Flask-Security signs in the user who changes the password.
    assert [row.user_agent for row in site.rows() if row.revoked_at is None] == ["API"]


def test_basic_authentication(make: Make) -> None:
    """23, 59: nor is a user who sends the password with each request."""
    site = make()
    api = site.browser("API")
    answer = api.get("/only/basic", auth=("ann@example.com", OLD))
    assert answer.json == {"name": "ann"}
    assert site.rows() == []


# -- rehashing the password at a login -----------------------------------------------------------


def sign_in_with_old_hash(site: SecuritySite) -> tuple[SecurityBrowser, SecurityBrowser]:
    """Sign in two browsers while ann's password is hashed by another algorithm."""
    with site.context():
        site.user("ann").password = pbkdf2_sha256.using(rounds=1).hash(OLD)
        site.db.session.commit()
    site.app.test_client_class = SessionRegistryClient
    browsers = site.browser("Firefox"), site.browser("Chrome")
    for browser in browsers:
        with site.context():
            browser.client = site.app.test_client(user=site.user("ann"))
        assert browser.name_shown == "ann"
    site.app.test_client_class = None
    return browsers


@pytest.mark.parametrize("keeps_rehash", [False, True])
@pytest.mark.parametrize("how", ["login", "json", "basic", "unified"])
def test_rehash_at_login(
    make: Make, how: str, keeps_rehash: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """11, 59: it signs out the others, unless the app says that the password is the same."""
    site = make(
        keeps_rehash=keeps_rehash,
        SECURITY_UNIFIED_SIGNIN=True,
        SECURITY_US_ENABLED_METHODS=["password"],
    )
    firefox, chrome = sign_in_with_old_hash(site)
    phone = site.browser("Phone")
    if how == "login":
        phone.login()
    elif how == "json":
        take_token(phone)
    elif how == "basic":
        assert phone.get("/only/basic", auth=("ann@example.com", OLD)).status_code == 200
    else:
        phone.post("/us-signin", identity="ann@example.com", passcode=OLD)
    with site.context():
        assert pbkdf2_sha512.identify(site.user("ann").password)
    assert phone.name_shown == (None if how == "basic" else "ann")
    expected = "ann" if keeps_rehash else None
    assert [browser.name_shown for browser in (firefox, chrome)] == [expected, expected]
    assert not caplog.records


@pytest.mark.parametrize("keeps_rehash", [False, True])
def test_rehash_at_a_change(make: Make, keeps_rehash: bool) -> None:
    """11, 59: a page that verifies an old hash and then sets a new password ends the others."""
    site = make(keeps_rehash=keeps_rehash)
    firefox, chrome = sign_in_with_old_hash(site)
    chrome.change_password()
    assert (chrome.name_shown, firefox.name_shown) == ("ann", None)


# -- administrators, and Flask-Security's own ways to end sessions -------------------------------


def test_administrator_changes_the_password(make: Make) -> None:
    """7, 59: 'admin_change_password' ends that user's sessions, not the administrator's."""
    site = make()

    @site.app.post("/admin")
    @auth_required()
    def admin() -> str:
        admin_change_password(site.user(request.form["name"]), NEW)
        site.datastore.commit()
        return "changed"

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login("ann", remember="y")
    chrome.login("bob")
    assert chrome.post("/admin", name="ann").text == "changed"
    assert (chrome.name_shown, firefox.name_shown) == ("bob", None)


@pytest.mark.parametrize("how", ["deactivate_user", "delete_user"])
def test_user_who_leaves(make: Make, how: str) -> None:
    """51, 59: the datastore's own methods end the sessions and purge the entries."""
    site = make()
    firefox = site.browser("Firefox")
    firefox.login(remember="y")
    with site.context():
        getattr(site.datastore, how)(site.user("ann"))
        site.datastore.commit()
    assert site.signed_in_entries() == []
    assert [bool(row.revoked_at) for row in site.rows()] == [True]
    assert firefox.name_shown is None


@pytest.mark.parametrize("is_watched", [False, True])
def test_new_uniquifier(make: Make, is_watched: bool) -> None:
    """59: 'set_uniquifier' ends every session.

    If it is named as a credential, this is a change like that of the password: this browser stays.
    """
    attributes = ("password", "fs_uniquifier") if is_watched else "password"
    site = make(SESSION_REGISTRY_PASSWORD_ATTRIBUTE=attributes)

    @site.app.post("/everywhere")
    @auth_required()
    def everywhere() -> str:
        site.datastore.set_uniquifier(current_user)
        site.datastore.commit()
        return "ended"

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login(remember="y")
    copy = chrome.copy()
    assert chrome.post("/everywhere").text == "ended"
    chrome_shows = chrome.name_shown
    assert [browser.name_shown for browser in (firefox, copy)] == [None, None]
    assert chrome_shows == ("ann" if is_watched else None)
    assert site.active() == (1 if is_watched else 0)


def test_uniquifier_as_a_credential(make: Make) -> None:
    """59: with both named, the page that changes the password works as before."""
    check_change(make(SESSION_REGISTRY_PASSWORD_ATTRIBUTE=("password", "fs_uniquifier")))


def test_test_client(make: Make) -> None:
    """59: a client that is signed in from the start passes Flask-Security's decorators."""
    site = make()
    site.app.test_client_class = SessionRegistryClient
    with site.context():
        client = site.app.test_client(user=site.user("ann"))
    assert client.get("/only/session").json == {"name": "ann"}
    assert client.get("/only/role").json == {"name": "ann"}
