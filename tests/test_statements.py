"""The registry's cost in SQL statements."""

from __future__ import annotations

import re
import typing as t

import pymysql
import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask_login import current_user, login_required
from site_under_test import Browser, Site, days_ago
from test_users import changing_ids, make_class


@pytest.fixture
def counted(make_site: SiteFactory, database: str) -> Site:
    return make_site("cookie", database)


def test_request_that_asks_for_the_user(counted: Site) -> None:
    """It runs exactly as many statements as without the registry: the one that loads the user."""
    firefox = counted.browser()
    firefox.login()
    with counted.count_statements() as statements:
        assert firefox.is_signed_in
    assert len(statements) == 1


@pytest.mark.table
def test_current_session(counted: Site) -> None:
    """It costs one more for the row, however often it is read in one transaction."""
    seen: list[t.Any] = []

    @counted.app.get("/current")
    def current() -> str:
        with counted.count_statements() as statements:
            seen.append(counted.sessions.current.id)
            seen.append(counted.sessions.current.user_agent)
            is_listed = counted.sessions.current in counted.sessions.active(current_user)
        seen.append(len(statements))
        return str(is_listed)

    firefox = counted.browser()
    firefox.login()
    assert firefox.get("/current").text == "True"
    assert seen == [counted.rows()[0].id, "Firefox", 3]


@pytest.mark.table
@pytest.mark.parametrize("expires", [True, False])
def test_current_session_is_reloaded(make_site: SiteFactory, database: str, expires: bool) -> None:
    """It is reloaded in another transaction or app context, and after a revocation in this one."""
    site = make_site("cookie", database)

    @site.app.get("/current")
    def current() -> dict[str, t.Any]:
        site.db.session().expire_on_commit = expires
        shown = [site.sessions.current.ip_address]
        site.change(ip_address="203.0.113.9")
        site.db.session.rollback()
        shown.append(site.sessions.current.ip_address)
        site.change(ip_address="203.0.113.10")
        site.db.session.commit()
        shown.append(site.sessions.current.ip_address)
        with site.context():
            shown.append(site.sessions.current.ip_address)
        assert site.sessions.current.revoked_reason is None
        site.sessions.revoke_all(current_user)
        shown.append(site.sessions.current.revoked_reason)
        with site.db.session.begin_nested() as savepoint:
            assert site.sessions.current.ip_address
            savepoint.rollback()
        shown.append(site.sessions.current.revoked_reason)
        site.db.session.commit()
        shown.append(site.sessions.current)
        return {"shown": shown}

    firefox = site.browser()
    firefox.login()
    assert firefox.get("/current").json == {
        "shown": [
            "127.0.0.1",
            "203.0.113.9",
            "203.0.113.10",
            "203.0.113.10",
            "revoked",
            "revoked",
            None,
        ]
    }


def test_request_that_does_not_ask(counted: Site) -> None:
    """It runs no statement and touches no row, however long ago the session was last seen."""
    firefox = counted.browser()
    firefox.login()
    counted.change(last_seen_at=days_ago(1))
    with counted.count_statements() as statements:
        firefox.get("/cart")
        firefox.post("/cart", item="book")
    assert len(statements) == 0


def test_anonymous_request(counted: Site) -> None:
    """It runs no statement."""
    with counted.count_statements() as statements:
        assert not counted.browser().is_signed_in
    assert len(statements) == 0


def test_user_loader_that_asks_otherwise(make_site: SiteFactory) -> None:
    """A loader that doesn't query by primary key costs the one statement that it runs."""
    site = make_site("cookie")

    @site.login_manager.user_loader
    def load(id: str) -> t.Any:
        return site.db.session.scalar(sa.select(site.User).filter_by(id=int(id)))

    firefox = site.browser()
    firefox.login()
    with site.count_statements() as statements:
        assert firefox.is_signed_in
    assert len(statements) == 2


@pytest.mark.table
@pytest.mark.parametrize("sessions", [1, 7])
def test_statements_of_a_revocation(counted: Site, sessions: int) -> None:
    """It locks the user's row and runs one UPDATE, whatever the number of sessions."""
    for _ in range(sessions):
        counted.browser().login()
    with counted.context():
        user = counted.user("ann")
        with counted.count_statements() as statements:
            counted.sessions.revoke_all(user)
        assert [text.split()[0] for text in statements.texts] == ["SELECT", "UPDATE"]
        assert "FOR" in statements.texts[0] or counted.db.engine.name == "sqlite"
        counted.db.session.commit()


@pytest.mark.table
@pytest.mark.parametrize("sessions", [1, 7])
def test_statements_of_a_password_change(counted: Site, sessions: int) -> None:
    """The user's own UPDATE holds the lock. Then one updates the current row, one the others."""
    seen: list[str] = []

    @counted.app.post("/change")
    @login_required
    def change() -> str:
        current_user.password_hash = "new"
        with counted.count_statements() as statements:
            counted.db.session.flush()
        seen.extend(statements.texts)
        counted.db.session.commit()
        return "changed"

    browsers = [counted.browser() for _ in range(sessions)]
    for browser in browsers:
        browser.login()
    browsers[0].post("/change")
    assert [text.split()[:2] for text in seen] == [
        ["UPDATE", "account"],
        ["UPDATE", "user_sessions"],
        ["UPDATE", "user_sessions"],
    ]
    assert [browser.is_signed_in for browser in browsers] == [True] + [False] * (sessions - 1)


@pytest.mark.table
def test_statements_of_rotations(make_site: SiteFactory, database: str) -> None:
    """A rotation keeps the key it leaves by one INSERT; each costs the same, and none a request."""
    site = make_site("files", database)
    site.app.post("/rotate")(lambda: (site.sessions.rotate() and "rotated") or "")
    firefox = site.browser()
    firefox.login()
    late = firefox.copy()
    rotation = ["SELECT account", "SELECT user_sessions", "UPDATE user_sessions"]
    for _ in range(3):
        assert statements_of(site, firefox.post, "/rotate") == [*rotation, KEEPS_KEY]
        assert statements_of(site, firefox.get, "/me") == ["SELECT account"]
    assert len(statements_of(site, late.get, "/me")) == 1
    assert late.rejected == "rotated"


@pytest.mark.table
def test_statements_after_a_rotation(make_site: SiteFactory, database: str) -> None:
    """A login over a rotated session, and its logout, cost what they cost before."""
    site = make_site("files", database)
    site.app.post("/rotate")(lambda: (site.sessions.rotate() and "rotated") or "")
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    chrome.post("/rotate")
    logins = [statements_of(site, one.login) for one in (firefox, chrome)]
    assert logins[0] == logins[1]
    chrome.post("/rotate")
    logouts = [statements_of(site, one.post, "/logout") for one in (firefox, chrome)]
    assert logouts[0] == logouts[1]
    assert not any("tombstones" in text for text in logins[0] + logouts[0])


@pytest.mark.table
def test_statements_of_a_password_change_with_an_entry(
    make_site: SiteFactory, database: str
) -> None:
    """The key of the entry costs one INSERT; with a signed cookie there is no entry."""
    site = make_site("files", database)
    firefox = site.browser()
    firefox.login()
    flush = ["UPDATE account", "UPDATE user_sessions", KEEPS_KEY, "UPDATE user_sessions"]
    for password in ("one", "two", "three"):
        change = statements_of(site, firefox.post, "/password", password=password)
        # No other session has ended, and the end of the request has nothing left to do.
        assert change == ["SELECT account", *flush]


#: What follows the commit where the UPDATE doesn't return the sessions that it has ended.
READS_ENDED: dict[str, list[str]] = {
    "sqlite": ["SELECT user_sessions"],
    "postgresql": [],
    "mariadb": ["SELECT user_sessions"],
}


@pytest.mark.table
@pytest.mark.parametrize("others", [1, 3])
@pytest.mark.parametrize("store", ["files", "cookie"])
def test_statements_of_a_view_that_changes_the_password(
    make_site: SiteFactory, database: str, store: str, others: int
) -> None:
    """The change, what has ended if it isn't known, and the mark of its entries: no more."""
    site = make_site(store, database)
    firefox = site.browser()
    for browser in (firefox, *(site.browser() for _ in range(others))):
        browser.login()
    found = statements_of(site, firefox.post, "/password", password="new")
    keeps = [KEEPS_KEY] if store == "files" else []
    expected = ["SELECT account", "UPDATE account", "UPDATE user_sessions", *keeps]
    expected += ["UPDATE user_sessions", *READS_ENDED[database]]
    if store == "files":
        expected += marks_purged(database, others)
    assert found == expected
    assert firefox.is_signed_in
    assert site.active() == 1


@pytest.mark.table
@pytest.mark.parametrize("sessions", [1, 3])
def test_statements_of_a_password_change_without_a_request(
    make_site: SiteFactory, database: str, sessions: int
) -> None:
    """In the app's own session, nothing but the row of the ended session is locked."""
    site = make_site("files", database)
    for _ in range(sessions):
        site.browser().login()
    with site.context():
        site.user("ann").password_hash = "new"
        found = statements_of(site, site.db.session.commit)
    assert found == [
        "UPDATE account",
        "UPDATE user_sessions",
        *READS_ENDED[database],
        *marks_purged(database, sessions),
    ]
    assert site.entries() == {}


def marks_purged(database: str, ended: int) -> list[str]:
    """Return the statements that record a purge. For several rows, the user is locked first."""
    is_locked = ended > 1 and database != "sqlite"
    return ["SELECT account"] * is_locked + ["UPDATE user_sessions"]


@pytest.mark.table
def test_statements_of_a_password_change_with_another_id(
    make_site: SiteFactory, database: str
) -> None:
    """Where 'get_id()' isn't the key, one statement more loads what it returns now."""
    site = make_site("cookie", database, model=changing_ids)

    @site.login_manager.user_loader
    def load(id: str) -> t.Any:
        return site.db.session.scalar(sa.select(site.User).filter_by(uniquifier=id))

    firefox = site.browser()
    firefox.login()
    found = statements_of(site, firefox.post, "/password", password="new")
    assert found[-3:] == ["UPDATE user_sessions", "UPDATE user_sessions", "SELECT account"]
    assert firefox.is_signed_in


@pytest.mark.table
def test_transactions_of_a_password_change(make_site: SiteFactory, database: str) -> None:
    """After that of the app, one marks what is purged; where needed, one reads what has ended."""
    site = make_site("files", database)
    firefox, chrome = site.browser(), site.browser()
    for browser in (firefox, chrome):
        browser.login()
    begun: list[object] = []
    with site.context():
        sa.event.listen(site.db.engine, "begin", begun.append)
    firefox.post("/password", password="new")
    assert len(begun) == 2 + len(READS_ENDED[database])
    assert not chrome.is_signed_in


KEEPS_KEY = "INSERT user_session_tombstones"


def statements_of(
    site: Site, do: t.Callable[..., object], *arguments: t.Any, **options: t.Any
) -> list[str]:
    """Return the statements that this runs: each verb, with the first table that it names."""
    with site.count_statements() as statements:
        do(*arguments, **options)
    found = []
    for text in statements.texts:
        words = re.findall(r"\w+", text)
        # How long a transaction waits on PostgreSQL, and the lock of SQLite.
        if words[0] != "SET" and not text.endswith("WHERE 0 = 1"):
            found.append(f"{words[0]} {next(word for word in words if word in TABLES)}")
    return found


TABLES = ("account", "user_sessions", "user_session_tombstones")


@pytest.mark.table
@pytest.mark.parametrize("is_full", [False, True])
def test_name_of_the_index(make_site: SiteFactory, is_full: bool) -> None:
    """MariaDB is asked outside the pool, which might have only one connection; otherwise in it."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 3}
    site = make_site("cookie", "mariadb", SQLALCHEMY_ENGINE_OPTIONS=options)
    firefox = site.browser()
    firefox.login()
    with site.context():
        engine = site.db.engine
        user = site.user("ann")

        @sa.event.listens_for(engine, "do_connect")
        def connect(*_: t.Any) -> None:
            if is_full:
                raise pymysql.OperationalError(1040, "Too many connections")

        with site.count_statements() as statements:
            assert site.sessions.revoke_all(user) == 1
        site.db.session.commit()
        sa.event.remove(engine, "do_connect", connect)
        asked = [text for text in statements.texts if "information_schema" in text]
        assert len(asked) == is_full
        (update,) = (text for text in statements.texts if text.startswith("UPDATE"))
        assert "FORCE INDEX (`ix_user_sessions_user_id`)" in update
    assert not firefox.is_signed_in


def test_profile_edit_costs_nothing(counted: Site) -> None:
    """An UPDATE of the user without a new password runs no statement of ours."""
    with counted.context():
        counted.user("ann").note = "new"
        with counted.count_statements() as statements:
            counted.db.session.flush()
        assert len(statements) == 1
        counted.db.session.commit()
        user = counted.user("ann")
        counted.db.session.expire(user, ["password_hash"])
        user.note = "newer"
        with counted.count_statements() as statements:
            counted.db.session.flush()
        assert [text.split()[0] for text in statements.texts] == ["UPDATE"]


def test_deferred_password(make_site: SiteFactory) -> None:
    """A deferred password column is compared, too."""
    site = make_site(
        model=lambda db: make_class(
            db,
            id=sa_orm.mapped_column(sa.Integer, primary_key=True),
            password_hash=sa_orm.mapped_column(sa.String(100), deferred=True),
        )
    )
    firefox, chrome = site.browser(), site.browser()
    firefox.login()
    chrome.login()
    assert firefox.is_signed_in
    chrome.post("/password", password="new")
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


def test_pending_changes_are_not_flushed_by_the_check(site: Site, firefox: Browser) -> None:
    """The check never flushes the app's unfinished changes."""

    @site.app.get("/half-done")
    def half_done() -> str:
        site.db.session.add(site.User(name=None, password_hash=None))
        name = str(current_user.name)
        site.db.session.rollback()
        return name

    firefox.login()
    assert firefox.get("/half-done").text == "ann"


def test_pending_changes_are_not_flushed_by_a_refusal(make_site: SiteFactory) -> None:
    """The same holds if the session has ended and the check asks why."""
    site = make_site("cookie")
    firefox = site.browser("Firefox")

    @site.app.get("/half-done")
    def half_done() -> str:
        site.db.session.add(site.User(name=None, password_hash=None))
        name = str(current_user.is_authenticated)
        site.db.session.rollback()
        return name

    firefox.login()
    with site.context():
        site.sessions.revoke_all(site.user("ann"))
        site.db.session.commit()
    assert firefox.get("/half-done").text == "False"


@pytest.mark.table
def test_lock_of_a_revocation(make_site: SiteFactory) -> None:
    """It locks in the order of the keys, but not against rows that only refer to the user."""
    site = make_site("cookie", "postgresql")
    with site.context(), site.count_statements() as statements:
        site.sessions.revoke_all(site.user("ann"))
        site.db.session.rollback()
    lock = next(text for text in statements.texts if "FOR" in text)
    assert "ORDER BY account.id FOR NO KEY UPDATE" in lock


@pytest.mark.table
def test_room_in_the_pages(make_site: SiteFactory) -> None:
    """PostgreSQL can update rows in place, if this SQLAlchemy can set the fill factor."""
    site = make_site("cookie", "postgresql")
    with site.context():
        options = site.db.session.scalar(
            sa.text("SELECT reloptions FROM pg_class WHERE oid = CAST('user_sessions' AS regclass)")
        )
    assert options == (None if sa.__version__.startswith("2.0.") else ["fillfactor=50"])
