"""The Flask-Admin page that lists everyone's sessions and signs people out."""

from __future__ import annotations

import datetime as dt
import importlib
import re
import sys
import typing as t
import uuid
from collections.abc import Callable
from html import unescape

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask import Flask
from flask_admin import Admin
from flask_babel import Babel
from flask_login import LoginManager, UserMixin, current_user
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect, FlaskForm
from site_under_test import Browser, Site, days_ago

from flask_session_registry import (
    ConfigurationError,
    NotInstalledError,
    SessionRegistry,
    UserSessionMixin,
    session_revoked,
)
from flask_session_registry.admin import UserSessionView

pytestmark = pytest.mark.table

PAGE = "/admin/sessions/"
USERS = ("ann", "bob", "root")


def is_root() -> bool:
    return bool(current_user.is_authenticated and current_user.name == "root")


def add_page(site: Site, view: type[t.Any] = UserSessionView) -> Site:
    """Add the page, open to 'root' only."""
    Babel(site.app)  # Flask-Admin requires it if Flask-Babel is installed.
    admin = Admin(site.app)
    with site.context():
        page = view(
            site.sessions,
            site.db,
            is_accessible=is_root,
            name="Sessions",
            endpoint="sessions",
            url=PAGE.rstrip("/"),
        )
        admin.add_view(page)
    return site


@pytest.fixture
def admin_site(make_site: SiteFactory) -> Site:
    return add_page(make_site(users=USERS))


def sign_in(site: Site, *names: str) -> list[Browser]:
    """Sign in each user in a browser of their own, and then root in Chrome, the last one."""
    browsers = []
    for name in names:
        browsers.append(site.browser(f"Browser of {name}"))
        browsers[-1].login(name)
    chrome = site.browser("Chrome")
    chrome.login("root")
    return [*browsers, chrome]


def ids_of(site: Site, *names: str) -> list[str]:
    with site.context():
        keys = [sa.inspect(site.user(name)).identity[0] for name in names]
    return [str(row.id) for key in keys for row in site.rows(user_id=key)]


def token_in(page: str) -> str:
    field = t.cast("re.Match[str]", re.search(r"<input[^>]*csrf_token[^>]*>", page))[0]
    return t.cast("re.Match[str]", re.search('value="([^"]+)"', field))[1]


def end(chrome: Browser, *ids: str, **form: t.Any) -> str:
    """Revoke these sessions and return the next page that root sees."""
    form = {"csrf_token": token_in(chrome.get(PAGE).text)} | form
    answer = chrome.post(f"{PAGE}action/", action="revoke", rowid=list(ids), **form)
    assert answer.status_code == 302
    return str(chrome.get(PAGE).text)


def listed(page: str) -> list[str]:
    """Return the ids of the sessions on a page."""
    return re.findall('name="rowid" class="action-checkbox" value="([^"]+)"', page)


def cells(page: str, name: str) -> list[str]:
    found = re.findall(rf'<td class="col-{name}">(.*?)</td>', page, flags=re.DOTALL)
    return [unescape(cell).strip() for cell in found]


def details(chrome: Browser, id: object) -> dict[str, str]:
    page = chrome.get(f"{PAGE}details/?id={id}").text
    found = re.findall(r"<b>(.*?)</b>\s*</td>\s*<td>(.*?)</td>", page, flags=re.DOTALL)
    return {name: unescape(value).strip() for name, value in found}


def add_rows(site: Site, *rows: dict[str, t.Any]) -> list[str]:
    moment = days_ago(0)
    moments = dict.fromkeys(("created_at", "last_seen_at", "authenticated_at"), moment)
    nobodys = {"user_id": None, "revoked_at": None, "revoked_reason": None}
    added = [{"id": uuid.uuid4(), "generation": 0} | nobodys | moments | row for row in rows]
    site.add_rows(added)
    return [str(row["id"]) for row in added]


# -- what is shown -----------------------------------------------------------------------------


def test_sessions_of_everybody(admin_site: Site) -> None:
    """The page lists all users' sessions with browser, address, UTC times and revocation reason."""
    firefox, bob, chrome = sign_in(admin_site, "ann", "bob")
    bob.post("/logout")
    began = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)
    admin_site.change({"user_agent": firefox.name}, created_at=began)
    page = chrome.get(PAGE).text
    agents = [chrome.name, "Browser of bob", "Browser of ann"]
    assert cells(page, "user_agent") == agents
    assert cells(page, "user_id") == ["3", "2", "1"]
    assert cells(page, "ip_address") == ["127.0.0.1"] * 3
    assert cells(page, "revoked_reason") == ["", "logged_out", ""]
    assert cells(page, "created_at")[-1] == "2026-01-02 03:04:05"
    assert "Began (UTC)" in page
    assert cells(page, "remember_until") == ["", "", ""]
    (id,) = ids_of(admin_site, "ann")
    shown = details(chrome, id)
    assert list(shown) == [
        *("Id", "User", "Address", "User agent", "Began (UTC)", "Last seen (UTC)"),
        *("Remembered until (UTC)", "Ended (UTC)", "Reason"),
    ]
    assert (shown["Id"], shown["Began (UTC)"]) == (id, "2026-01-02 03:04:05")


def test_no_secret_is_shown(admin_site: Site) -> None:
    """Neither the list nor the details show a session id, a store key or a fingerprint."""
    firefox, bob, chrome = sign_in(admin_site, "ann", "bob")
    firefox.post("/password", password="new")
    assert firefox.is_signed_in
    bob.post("/logout")
    end(chrome, *ids_of(admin_site, "bob"))
    names = ("store_id", "fingerprint", "revocation")
    end(chrome, *ids_of(admin_site, "ann"))
    rows = admin_site.rows()
    secrets = {str(value) for row in rows for name in names if (value := getattr(row, name))}
    for name in names:
        assert any(getattr(row, name) for row in rows), name
    secrets |= {browser.cookies["session"] for browser in (firefox, chrome)}
    pages = [chrome.get(PAGE), *(chrome.get(f"{PAGE}details/?id={row.id}") for row in rows)]
    for page in pages:
        assert page.status_code == 200
        assert not [secret for secret in secrets if secret in page.text]


def test_secrets_cannot_be_searched(admin_site: Site) -> None:
    """Search, filters and sort order don't reveal secret columns."""
    (chrome,) = sign_in(admin_site)
    (row,) = admin_site.rows()
    page = chrome.get(PAGE).text
    assert "store" not in page.lower()
    for value in (row.store_id, row.fingerprint):
        assert listed(chrome.get(f"{PAGE}?search={value}").text) == []
    assert listed(chrome.get(f"{PAGE}?search=Chrome").text) == [str(row.id)]
    assert listed(chrome.get(f"{PAGE}?search=127.0.0.1").text) == [str(row.id)]
    groups = t.cast("re.Match[str]", re.search('id="filter-groups-data"[^>]*>(.*?)</div>', page))
    named = re.findall(r'"([^"]+)": \[\{"arg"', unescape(groups[1]))
    assert sorted(named) == ["Began (UTC)", "Ended (UTC)", "Last seen (UTC)", "User"]


def test_user_agent_is_escaped(admin_site: Site) -> None:
    """A user agent is escaped: it is text, never markup."""
    hostile = "<script>alert('1')</script>"
    admin_site.browser(hostile).login()
    (chrome,) = sign_in(admin_site)
    (id,) = ids_of(admin_site, "ann")
    page = chrome.get(PAGE).text
    assert hostile in cells(page, "user_agent")
    assert details(chrome, id)["User agent"] == hostile
    for text in (page, chrome.get(f"{PAGE}details/?id={id}").text):
        assert "<script>alert" not in text


def test_tombstones_are_not_listed(admin_site: Site) -> None:
    """Tombstones and adoption blocks aren't listed, counted or found.

    A session whose user was deleted is.
    """
    firefox, _, chrome = sign_in(admin_site, "ann", "bob")
    for password in ("one", "two"):
        firefox.post("/password", password=password)
    with admin_site.context():
        left = admin_site.db.session.scalars(sa.select(admin_site.tombstone.id)).all()
        admin_site.db.session.delete(admin_site.user("bob"))
        admin_site.db.session.commit()
    assert left
    ended = days_ago(1)
    unended, locked_out = add_rows(
        admin_site,
        {},
        {"user_id": 1, "revoked_at": ended, "revoked_reason": "barred"},
    )
    (deleted,) = [str(row.id) for row in admin_site.rows(revoked_reason="deleted")]
    page = chrome.get(PAGE).text
    assert sorted(listed(page)) == sorted(
        {*ids_of(admin_site, "ann", "root"), unended, locked_out, deleted}
    )
    assert "List (5)" in page
    for id in (*left, uuid.uuid4(), "nonsense", f"{unended}&id={unended}"):
        answer = chrome.get(f"{PAGE}details/?id={id}")
        assert answer.status_code == 302, id
    assert details(chrome, unended)["User"] == ""
    assert "0 sessions ended" in end(chrome, *map(str, left))
    assert "1 session ended" in end(chrome, unended, deleted)


def test_many_sessions(admin_site: Site) -> None:
    """A page has at most fifty sessions, and costs as many statements as a page with few."""
    (chrome,) = sign_in(admin_site)
    chrome.get(PAGE)
    with admin_site.count_statements() as few:
        chrome.get(PAGE)
    ids = add_rows(admin_site, *({"user_id": 1, "user_agent": "x" * 100} for _ in range(10_000)))
    with admin_site.count_statements() as many:
        page = chrome.get(f"{PAGE}?page_size=10000").text
    assert len(many) == len(few)
    assert "List (10001)" in page
    pages = [listed(chrome.get(f"{PAGE}?page={number}").text) for number in range(3)]
    assert pages[0] == listed(page)
    assert [id for page in pages for id in page] == sorted(ids)[:150]
    assert len(listed(chrome.get(f"{PAGE}?page=200").text)) == 1


def test_order(admin_site: Site) -> None:
    """The most recently seen sessions come first, unless another order is requested."""
    (chrome,) = sign_in(admin_site)
    rows = [{"user_id": 1, "last_seen_at": days_ago(n), "created_at": days_ago(3)} for n in (2, 1)]
    older, newer = add_rows(admin_site, *rows)
    (current,) = ids_of(admin_site, "root")
    assert listed(chrome.get(PAGE).text) == [current, newer, older]
    by_last_sight = 4
    assert listed(chrome.get(f"{PAGE}?sort={by_last_sight}").text) == [older, newer, current]


@pytest.fixture
def tokyo_site(make_site: SiteFactory, database: str) -> Site:
    """Return a site whose database would read naive times as those of another time zone."""
    options = {"connect_args": {"options": "-c timezone=Asia/Tokyo"}}
    is_aware = database == "postgresql"
    config = {"SQLALCHEMY_ENGINE_OPTIONS": options} if is_aware else {}
    return add_page(make_site("files", database, users=USERS, **config))


def test_filters(tokyo_site: Site) -> None:
    """Sessions can be filtered by user, by UTC time, and by whether they ended."""
    (chrome,) = sign_in(tokyo_site)
    seen = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)
    (ann,) = add_rows(tokyo_site, {"user_id": 1, "last_seen_at": seen, "revoked_at": seen})
    (root,) = ids_of(tokyo_site, "root")
    page = chrome.get(PAGE).text
    assert cells(page, "last_seen_at")[-1] == "2026-01-02 03:04:05"
    user, after, before, is_active = 0, 4, 5, 9

    def filtered(*filters: tuple[int, str]) -> list[str]:
        asked = {f"flt{n}_{arg}": value for n, (arg, value) in enumerate(filters)}
        return listed(chrome.get(PAGE, query_string=asked).text)

    assert filtered((user, "1")) == [ann]
    assert filtered((user, "2")) == []
    assert filtered((before, "2026-01-02 03:04:06")) == [ann]
    assert filtered((before, "2026-01-02 03:04:05")) == []
    assert filtered((after, "2026-01-02 03:04:04"), (user, "1")) == [ann]
    assert filtered((after, "2026-01-02 03:04:05")) == [root]
    assert (filtered((is_active, "1")), filtered((is_active, "0"))) == ([root], [ann])
    nonsense = chrome.get(PAGE, query_string={f"flt0_{user}": "x", f"flt1_{after}": "y"})
    assert nonsense.text.count("Invalid") == 2


# -- signing people out ------------------------------------------------------------------------


def test_selected_sessions_end(make_site: SiteFactory, database: str) -> None:
    """Selected sessions and their copies are signed out at the next request.

    Their store entries are deleted.
    """
    site = add_page(make_site("files", database, users=USERS))
    phone, firefox, bob, chrome = sign_in(site, "ann", "ann", "bob")
    elsewhere = site.browser("Elsewhere")
    elsewhere.login("bob")
    copy = phone.copy()
    told: list[tuple[t.Any, ...]] = []

    @session_revoked.connect
    def note(app: Flask, ids: tuple[uuid.UUID, ...], user_id: int, reason: str) -> None:
        told.append((*map(str, ids), user_id, reason))

    chosen = [ids_of(site, "ann")[0], ids_of(site, "bob")[0]]
    assert "2 sessions ended." in end(chrome, *chosen)
    assert told == [(chosen[0], 1, "revoked"), (chosen[1], 2, "revoked")]
    assert len(site.signed_in_entries()) == 3
    assert (phone.rejected, bob.rejected) == ("revoked", "revoked")
    names = [browser.name_shown for browser in (phone, copy, bob, firefox, elsewhere, chrome)]
    assert names == [None, None, None, "ann", "bob", "root"]


def test_only_active_sessions_count(admin_site: Site) -> None:
    """Invalid, unknown and already ended ids aren't counted; the other sessions still end."""
    firefox, bob, chrome = sign_in(admin_site, "ann", "bob")
    firefox.post("/logout")
    ids = ["nonsense", "", str(uuid.uuid4()), *ids_of(admin_site, "ann")]
    assert "0 sessions ended." in end(chrome)
    assert "0 sessions ended." in end(chrome, *ids)
    assert [row.revoked_reason for row in admin_site.rows()] == ["logged_out", None, None]
    assert "1 session ended." in end(chrome, *ids, *ids_of(admin_site, "bob") * 2)
    assert (bob.rejected, chrome.name_shown) == ("revoked", "root")


def test_own_session(admin_site: Site) -> None:
    """Administrators can revoke their own session: it signs them out."""
    (chrome,) = sign_in(admin_site)
    copy = chrome.copy()
    end(chrome, *ids_of(admin_site, "root"))
    assert chrome.get(PAGE).status_code == 401
    assert (chrome.name_shown, copy.name_shown) == (None, None)
    assert admin_site.signed_in_entries() == []


def test_all_or_nothing(admin_site: Site) -> None:
    """If the database fails halfway, everyone stays signed in."""
    firefox, bob, chrome = sign_in(admin_site, "ann", "bob")
    token = token_in(chrome.get(PAGE).text)
    ids = ids_of(admin_site, "ann", "bob")
    ending: list[str] = []

    def fail(_: t.Any, __: t.Any, statement: str, *___: t.Any) -> None:
        ending.extend([statement] if statement.startswith("UPDATE user_sessions") else [])
        if len(ending) == 2:
            raise RuntimeError("disk full")

    with admin_site.context():
        engine = admin_site.db.engine
    sa.event.listen(engine, "before_cursor_execute", fail)
    answer = chrome.post(f"{PAGE}action/", action="revoke", rowid=ids, csrf_token=token)
    sa.event.remove(engine, "before_cursor_execute", fail)
    assert (answer.status_code, len(ending)) == (500, 2)
    names = [browser.name_shown for browser in (firefox, bob, chrome)]
    assert names == ["ann", "bob", "root"]
    assert len(admin_site.signed_in_entries()) == 3


def test_users_are_locked_in_order(admin_site: Site) -> None:
    """Two administrators who revoke sessions of the same users at once don't deadlock."""
    (chrome,) = sign_in(admin_site)
    owners = (3, 2, 1)
    rows = ({"id": uuid.UUID(int=n), "user_id": owner} for n, owner in enumerate(owners))
    ids = add_rows(admin_site, *rows)
    told: list[int] = []

    @session_revoked.connect
    def note(app: Flask, user_id: int, **_: t.Any) -> None:
        told.append(user_id)

    assert "3 sessions ended." in end(chrome, *ids)
    assert told == [1, 2, 3]


# -- permission and protection -----------------------------------------------------------------


def requests_for_all(site: Site, browser: Browser, id: str) -> set[int]:
    """Return the status codes of the responses to everything that the page serves."""
    rules = [r for r in site.app.url_map.iter_rules() if r.endpoint.startswith("sessions.")]
    paths = [(r.rule, r.methods or set()) for r in rules if not r.endpoint.endswith("static")]
    assert {"/", "/details/", "/action/"} < {path.removeprefix(PAGE[:-1]) for path, _ in paths}
    form = {"action": "revoke", "rowid": id, "id": id}
    answers = [
        browser.open(method, path.replace("<export_type>", "csv"), data=form)
        for path, methods in paths
        for method in methods & {"GET", "POST"}
    ]
    answers.append(browser.get(f"{PAGE}details/?id={id}"))
    return {answer.status_code for answer in answers}


def test_access_is_restricted(admin_site: Site) -> None:
    """Other users get a 403, anonymous visitors are sent to the login, and no session ends."""
    firefox, bob, chrome = sign_in(admin_site, "ann", "bob")
    (id,) = ids_of(admin_site, "ann")
    anonymous = admin_site.browser()
    assert requests_for_all(admin_site, bob, id) == {403}
    assert requests_for_all(admin_site, anonymous, id) == {401}
    admin_site.login_manager.login_view = "login"
    assert requests_for_all(admin_site, anonymous, id) == {302}
    assert anonymous.get(PAGE).location.startswith("/login?next=")
    names = [browser.name_shown for browser in (firefox, bob, chrome)]
    assert names == ["ann", "bob", "root"]
    assert "Sessions" not in bob.get("/admin/").text
    assert "Sessions" in chrome.get("/admin/").text


def test_action_after_losing_access(admin_site: Site) -> None:
    """Permission is checked again for the action, not only when the page was loaded."""
    firefox, chrome = sign_in(admin_site, "ann")
    token = token_in(chrome.get(PAGE).text)
    with admin_site.context():
        admin_site.user("root").name = "guest"
        admin_site.db.session.commit()
    form = {"action": "revoke", "rowid": ids_of(admin_site, "ann"), "csrf_token": token}
    assert chrome.post(f"{PAGE}action/", **form).status_code == 403
    assert firefox.is_signed_in


def test_is_accessible_is_required(site: Site) -> None:
    """'is_accessible' is required, because Flask-Admin's default admits everyone."""
    view: t.Any = UserSessionView
    with site.context(), pytest.raises(TypeError, match="is_accessible"):
        view(site.sessions, site.db)


@pytest.mark.parametrize("forge", [lambda _: "", lambda _: "x", lambda _: "9##x", token_in])
def test_forged_action(admin_site: Site, forge: Callable[[str], str]) -> None:
    """Without a token, or with another session's token, no session ends."""
    firefox, chrome = sign_in(admin_site, "ann")
    attacker = admin_site.browser("Attacker")
    attacker.login("root")
    forged = forge(attacker.get(PAGE).text)
    chrome.get(PAGE)
    page = end(chrome, *ids_of(admin_site, "ann"), csrf_token=forged)
    assert "Failed to perform action" in page
    assert firefox.is_signed_in
    assert "1 session ended." in end(chrome, *ids_of(admin_site, "ann"))


class ProtectedView(UserSessionView):
    form_base_class = FlaskForm


def test_with_csrf_protect(make_site: SiteFactory) -> None:
    """Flask-WTF's CSRF protection requires its own token, which a subclass can provide."""
    site = make_site(users=USERS)
    protect = CSRFProtect(site.app)
    add_page(site, ProtectedView)
    protect.exempt(site.app.view_functions["login"])
    firefox, chrome = sign_in(site, "ann")
    form = {"action": "revoke", "rowid": ids_of(site, "ann")}
    assert chrome.post(f"{PAGE}action/", **form).status_code == 400
    assert firefox.is_signed_in
    assert "1 session ended." in end(chrome, *ids_of(site, "ann"))
    assert not firefox.is_signed_in


def test_nothing_can_be_changed(admin_site: Site) -> None:
    """Even with a token, sessions can't be created, edited, deleted or exported."""
    firefox, chrome = sign_in(admin_site, "ann")
    (id,) = ids_of(admin_site, "ann")

    def contents() -> list[dict[str, t.Any]]:
        columns = sa.inspect(admin_site.sessions.UserSession).columns.keys()
        return [{name: getattr(row, name) for name in columns} for row in admin_site.rows()]

    with admin_site.context():
        before = contents()
        form = {"csrf_token": token_in(chrome.get(PAGE).text), "user_agent": "forged", "id": id}
        for path in ("new/", f"edit/?id={id}", "delete/"):
            assert chrome.post(PAGE + path, **form).location == PAGE, path
        for path in ("new/", f"edit/?id={id}", "export/csv/"):
            assert chrome.get(PAGE + path).location == PAGE, path
        chrome.post(f"{PAGE}action/", action="delete", rowid=id, **form)
        assert chrome.post(f"{PAGE}ajax/update/", list_form_pk=id, **form).status_code == 404
        assert contents() == before
    assert firefox.is_signed_in


# -- kinds of apps -----------------------------------------------------------------------------


def user_class_with(key: t.Any) -> Callable[[SQLAlchemy], type[t.Any]]:
    """Return a factory of user models with this primary key."""

    def make(db: SQLAlchemy) -> type[t.Any]:
        return type(
            "User",
            (UserMixin, db.Model),
            {
                "__tablename__": "account",
                "id": sa_orm.mapped_column(key[0], primary_key=True, default=key[1]),
                "name": sa_orm.mapped_column(sa.String(50)),
                "password_hash": sa_orm.mapped_column(sa.String(100)),
            },
        )

    return make


@pytest.mark.parametrize(
    "key", [(sa.Uuid, uuid.uuid4), (sa.String(40), lambda: f"u {uuid.uuid4()}")]
)
def test_kinds_of_keys(make_site: SiteFactory, database: str, key: t.Any) -> None:
    """Users with a UUID or text key are listed, found and signed out like others."""
    site = add_page(make_site("files", database, users=USERS, model=user_class_with(key)))
    firefox, bob, chrome = sign_in(site, "ann", "bob")
    with site.context():
        ann = str(site.user("ann").id)
    ids = ids_of(site, "ann")
    assert ann in cells(chrome.get(PAGE).text, "user_id")
    assert listed(chrome.get(PAGE, query_string={"flt0_0": ann}).text) == ids
    assert "1 session ended." in end(chrome, *ids)
    names = [browser.name_shown for browser in (firefox, bob, chrome)]
    assert names == [None, "bob", "root"]


def test_custom_session_model(make_site: SiteFactory) -> None:
    """With a custom session model that requires a user, tombstones aren't listed either."""
    site = make_site(init=False)

    class Visit(UserSessionMixin, site.db.Model):  # type: ignore[name-defined]
        __tablename__ = "visits"
        user_id: sa_orm.Mapped[int] = sa_orm.mapped_column("who", sa.ForeignKey("account.id"))

    site.sessions = SessionRegistry(site.app, session_model=Visit)
    with site.context():
        site.db.create_all()
        users = [site.User(name=name, password_hash=f"hash of {name}") for name in USERS]
        site.db.session.add_all(users)
        site.db.session.commit()
    add_page(site)
    firefox, chrome = sign_in(site, "ann")
    for password in ("one", "two"):
        firefox.post("/password", password=password)
    rows = site.rows()
    assert len(site.stale_keys()) == 2
    ids = [str(row.id) for row in rows if row.revoked_reason is None]
    page = chrome.get(PAGE).text
    assert sorted(listed(page)) == sorted(ids)
    assert sorted(cells(page, "user_id")) == ["1", "3"]
    anns = [str(row.id) for row in site.rows(user_id=1, revoked_at=None)]
    assert listed(chrome.get(f"{PAGE}?flt0_0=1").text) == anns
    assert "1 session ended." in end(chrome, *anns)
    assert not firefox.is_signed_in


def test_records_outside_a_table(make_site: SiteFactory) -> None:
    """If the records are not in a table, the view raises an error that names the setting."""
    site = make_site(records="redis")
    with site.context(), pytest.raises(ConfigurationError, match="SESSION_REGISTRY_RECORDS"):
        UserSessionView(site.sessions, site.db, is_accessible=is_root)


def test_outside_an_app_context(site: Site) -> None:
    """Outside an app context, the error says what to write."""
    with pytest.raises(ConfigurationError, match=r"with app\.app_context\(\)"):
        UserSessionView(site.sessions, site.db, is_accessible=is_root)


def test_too_early() -> None:
    """Before 'init_app', or without a user model, the error says what to do."""
    app, db, sessions = Flask("early"), SQLAlchemy(), SessionRegistry()
    app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI="sqlite://")
    db.init_app(app)
    LoginManager(app)
    with app.app_context():
        with pytest.raises(NotInstalledError, match="Call 'init_app"):
            UserSessionView(sessions, db, is_accessible=is_root)
        sessions.init_app(app)
        with pytest.raises(ConfigurationError, match="Import your user model"):
            UserSessionView(sessions, db, is_accessible=is_root)


def test_without_flask_admin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Flask-Admin, the error says what to install."""
    monkeypatch.delitem(sys.modules, "flask_session_registry.admin")
    for name in [name for name in sys.modules if name.startswith("flask_admin")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'Flask-Session-Registry\[admin\]'"):
        importlib.import_module("flask_session_registry.admin")
