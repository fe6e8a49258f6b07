"""A test suite's own transaction, joined by the app's sessions and rolled back at the end."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask_login import current_user, login_required, logout_user
from site_under_test import Browser, Site, days_ago

from flask_session_registry import _clock as clock
from flask_session_registry._compat.sqlalchemy import reaches_beyond

# Records outside the database aren't part of its transaction.
pytestmark = pytest.mark.table

MODES = ("conditional_savepoint", "rollback_only", "control_fully", "create_savepoint")


@contextmanager
def joined(site: Site, mode: t.Any, *, saves: bool = False) -> Iterator[sa.Connection]:
    """Bind all of the site's sessions to one connection, in a transaction that is rolled back.

    :param saves: whether the transaction has a savepoint.
    """
    with site.context(), site.db.engine.connect() as connection:
        transaction = connection.begin()
        if connection.dialect.name == "sqlite":
            # See "Serializable isolation / Savepoints" in the documentation of SQLAlchemy's
            # dialect.
            connection.exec_driver_sql("BEGIN")
        savepoint = connection.begin_nested() if saves else None
        engine = site.db.engines[None]
        site.db.engines[None] = t.cast(t.Any, connection)
        site.db.session.remove()
        site.db.session.configure(join_transaction_mode=mode)
        try:
            yield connection
        finally:
            site.db.session.remove()
            site.db.engines[None] = engine
            if savepoint is not None and savepoint.is_active:
                savepoint.rollback()
            if transaction.is_active:
                transaction.rollback()


def add_user(site: Site, connection: sa.Connection) -> None:
    """Add a user in the outer transaction, which is never committed, as a fixture does."""
    users = site.User.__table__
    connection.execute(sa.insert(users).values(name="eve", password_hash="hash of eve"))


def sign_in(browser: Browser) -> t.Any:
    return browser.post("/login", name="eve", password="hash of eve")


@pytest.mark.parametrize("saves", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_outer_transaction_stays(
    make_site: Callable[..., Site], database: str, mode: str, saves: bool
) -> None:
    """A test's data survives a login, a logout and a refusal, and is gone after the rollback."""
    site = make_site("cookie", database)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    with joined(site, mode, saves=saves) as connection:
        add_user(site, connection)
        for browser in (firefox, chrome):
            assert sign_in(browser).status_code == 200
            assert browser.name_shown == "eve"
        assert connection.in_transaction()
        firefox.post("/logout")
        assert not firefox.is_signed_in
        assert chrome.name_shown == "eve"
        assert connection.scalar(
            sa.select(sa.func.count()).select_from(site.User.__table__).filter_by(name="eve")
        )
    with site.context():
        assert site.user("eve") is None
        assert site.user("ann") is not None
    assert site.rows() == []


@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "create_savepoint"])
def test_password_change(make_site: Callable[..., Site], database: str, mode: str) -> None:
    """The other browsers are signed out, within the transaction that is rolled back at the end."""
    site = make_site("cookie", database)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    with joined(site, mode) as connection:
        add_user(site, connection)
        sign_in(firefox)
        sign_in(chrome)
        assert firefox.post("/password", password="another").text == "changed"
        assert firefox.name_shown == "eve"
        assert not chrome.is_signed_in
        assert connection.in_transaction()
    with site.context():
        assert site.user("eve") is None


@pytest.mark.parametrize("mode", MODES)
def test_refused_login(make_site: Callable[..., Site], mode: str) -> None:
    """A login beyond the limit rolls back its own work and nothing else."""
    limits = {"SESSION_REGISTRY_MAX_SESSIONS": 1, "SESSION_REGISTRY_MAX_SESSIONS_ACTION": "reject"}
    site = make_site("cookie", "postgresql", **limits)
    with joined(site, mode) as connection:
        add_user(site, connection)
        assert sign_in(site.browser("Firefox")).status_code == 200
        assert sign_in(site.browser("Chrome")).status_code == 403
        assert connection.in_transaction()
        assert site.user("eve") is not None


@pytest.mark.parametrize("mode", MODES)
def test_view_that_raises(site: Site, mode: str) -> None:
    """A decorated view that fails, or forgets to commit, doesn't end the outer transaction."""

    @site.app.post("/fail")
    @login_required
    @site.sessions.revoke_on_password_change
    def fail() -> str:
        raise KeyError

    @site.app.post("/forget")
    @login_required
    def forget() -> str:
        site.sessions.revoke_all(current_user, except_current=True)
        return "forgot"

    @site.app.post("/leave")
    def leave() -> str:
        logout_user()
        site.user("ann").note = "not committed"
        return "left"

    firefox = site.browser("Firefox")
    with joined(site, mode) as connection:
        add_user(site, connection)
        sign_in(firefox)
        assert firefox.post("/forget").text == "forgot"
        assert firefox.post("/fail").status_code == 500
        assert firefox.name_shown == "eve"
        assert firefox.post("/leave").text == "left"
        assert connection.in_transaction()
        assert site.user("eve") is not None


def test_touch(site: Site, firefox: Browser) -> None:
    """The time of the last visit is written in the same transaction, too."""
    with joined(site, "conditional_savepoint") as connection:
        add_user(site, connection)
        sign_in(firefox)
        model = site.sessions.UserSession
        id = connection.scalar(sa.select(model.id))
        site.registry.records.touch(id, {"last_seen_at": days_ago(-1)})
        seen = connection.scalar(sa.select(model.last_seen_at))
        assert clock.as_utc(seen) > days_ago(-0.5)


def test_touch_where_there_is_one_connection(
    site: Site, firefox: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A touch doesn't end the transaction of a connection that is handed out to all callers."""
    firefox.login()
    (row,) = site.rows()
    with site.context(), site.db.engine.connect() as connection:
        connection.begin()
        add_user(site, connection)
        monkeypatch.setattr(connection, "close", lambda: None)
        with monkeypatch.context() as patch:
            patch.setattr(site.db.engine, "connect", lambda: connection)
            site.registry.records.touch(row.id, {"last_seen_at": days_ago(-1)})
        assert connection.in_transaction()


def test_sqlite_that_has_begun_nothing(site: Site, firefox: Browser) -> None:
    """Python's driver begins a transaction at the first write, not when SQLAlchemy does."""
    with site.context(), site.db.engine.connect() as connection:
        connection.begin()
        engine = site.db.engines[None]
        site.db.engines[None] = t.cast(t.Any, connection)
        site.db.session.remove()
        assert firefox.login().status_code == 200
        assert firefox.is_signed_in
        site.db.session.remove()
        site.db.engines[None] = engine
        connection.get_transaction().rollback()
    assert site.rows() == []
    assert not firefox.is_signed_in


def test_connection_without_a_transaction(site: Site, firefox: Browser) -> None:
    """Bound to a connection without a transaction, sessions work as if they weren't bound."""
    with site.context(), site.db.engine.connect() as connection:
        engine = site.db.engines[None]
        site.db.engines[None] = t.cast(t.Any, connection)
        site.db.session.remove()
        firefox.login()
        assert firefox.is_signed_in
        site.db.session.remove()
        site.db.engines[None] = engine
        assert not connection.in_transaction()
    assert firefox.is_signed_in


def test_unused_session() -> None:
    """An unused session can't have done anything on a connection of the app."""
    base = sa_orm.declarative_base()
    model = type(
        "M", (base,), {"__tablename__": "m", "id": sa.Column(sa.Integer, primary_key=True)}
    )
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection, sa_orm.Session(connection) as session:
        assert not reaches_beyond(session, model)
        session.begin()
        assert not reaches_beyond(session, model)
    engine.dispose()
