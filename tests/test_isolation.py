"""Our own transactions have their own isolation level, whatever the app or its server uses."""

from __future__ import annotations

import typing as t
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from crowd import at_once
from own_servers import own_mariadb
from servers import wait_for
from site_under_test import Site
from test_waiting import holding

from flask_session_registry._records.sql import transactions as own_transaction

NAMES = tuple(f"user {number}" for number in range(8))
ABOVE = [
    ("postgresql", "REPEATABLE READ"),
    ("postgresql", "SERIALIZABLE"),
    ("mariadb", "SERIALIZABLE"),
]


def at_level(level: str, **options: t.Any) -> dict[str, t.Any]:
    return {"SQLALCHEMY_ENGINE_OPTIONS": {"isolation_level": level, **options}}


@pytest.mark.table
def test_read_of_a_locked_session(make_site: SiteFactory) -> None:
    """A read doesn't block, even where MariaDB would lock the rows that the app reads."""
    site = make_site("cookie", "mariadb", **at_level("SERIALIZABLE"))
    site.browser().login()
    (row,) = site.rows()

    def look() -> int | None:
        with site.context():
            return t.cast("int | None", site.registry.records.current_state(row.id))

    with ThreadPoolExecutor(1) as pool, holding(site, "ann", "sessions"):
        assert pool.submit(look).result(20)[0] == 0


@pytest.mark.table
@pytest.mark.parametrize(("database", "level"), ABOVE)
def test_logins_at_once(make_site: SiteFactory, database: str, level: str) -> None:
    """Concurrent logins of one user or several are all recorded, and 'MAX_SESSIONS' holds.

    PostgreSQL used to refuse 26 of 32 concurrent logins of one user, and 22 of 40 of different
    users.
    """
    site = make_site(
        "files",
        database,
        users=NAMES,
        SESSION_REGISTRY_MAX_SESSIONS=3,
        **at_level(level, pool_size=20),
    )
    visits = [partial(site.browser().login, name) for name in NAMES for _ in range(2)]
    assert {answer.status_code for answer in at_once(visits)} == {200}
    visits = [partial(site.browser().login, NAMES[0]) for _ in range(16)]
    assert {answer.status_code for answer in at_once(visits)} == {200}
    assert site.active(NAMES[0]) == 3


@pytest.mark.table
@pytest.mark.parametrize(
    ("database", "level"), [("postgresql", "REPEATABLE READ"), ("mariadb", "REPEATABLE READ")]
)
def test_app_keeps_its_level(make_site: SiteFactory, database: str, level: str) -> None:
    """The app keeps its snapshot, even on a connection that our transaction has used."""
    site = make_site("cookie", database, **at_level(level, pool_size=1, max_overflow=0))
    firefox = site.browser()
    firefox.login()
    with site.context():
        other = sa.create_engine(site.db.engine.url, poolclass=sa.NullPool)
        note = sa.select(site.User.note).where(site.User.name == "ann")
        assert site.db.session.scalar(note) is None
        with other.begin() as connection:
            connection.execute(sa.update(site.User).values(note="new"))
        assert site.db.session.scalar(note) is None
        site.db.session.rollback()
        assert site.db.session.scalar(note) == "new"


@pytest.mark.table
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_app_that_commits_each_statement(make_site: SiteFactory, database: str) -> None:
    """Our transaction is a real one even here, and the app's writes still commit at once."""
    site = make_site("cookie", database, **at_level("AUTOCOMMIT", pool_size=1, max_overflow=0))
    note = sa.select(site.User.note).where(site.User.name == "ann")

    def write_and_fail() -> None:
        with site.registry.users.transaction() as session:
            session.execute(sa.update(site.User).values(note="half done"))
            raise ZeroDivisionError

    with site.context():
        with pytest.raises(ZeroDivisionError):
            write_and_fail()
        assert site.db.session.scalar(note) is None
        site.db.session.execute(sa.update(site.User).values(note="new"))
        site.db.session.remove()
        assert site.db.session.scalar(note) == "new"
    assert site.browser().login().status_code == 200


@pytest.mark.table
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_app_that_begins_each_transaction_with_a_query(
    make_site: SiteFactory, database: str
) -> None:
    """The level can't be set after that query. It stays, and people can still sign in."""
    site = make_site("cookie", database, **at_level("REPEATABLE READ"))
    with site.context():
        ask = sa.text("SELECT count(*) FROM account")
        sa.event.listen(site.db.engine, "begin", lambda connection: connection.execute(ask))
        # Forget what was learned before the listener was added.
        own_transaction._habits.pop(site.db.engine, None)
    firefox = site.browser()
    firefox.login()
    firefox.post("/password", password="new")
    assert firefox.is_signed_in


@pytest.mark.table
def test_connection_that_is_lost_says_nothing_about_the_level(make_site: SiteFactory) -> None:
    """The login fails, and the next one is recorded at READ COMMITTED."""
    site = make_site("cookie", "postgresql", **at_level("SERIALIZABLE"))
    begun: list[int] = []

    def lose_the_third(connection: sa.Connection) -> None:
        begun.append(1)
        if len(begun) == 3:
            pid = t.cast(t.Any, connection.connection.driver_connection).info.backend_pid
            with server.connect() as other:
                other.execute(sa.select(sa.func.pg_terminate_backend(pid, 5000)))

    with site.context():
        engine = site.db.engine
        server = sa.create_engine(engine.url, poolclass=sa.NullPool)
        own_transaction._habits.pop(engine, None)
    site.browser().get("/cart")
    with site.context():
        password = site.user("ann").password_hash
    sa.event.listen(engine, "begin", lose_the_third)
    firefox = site.browser()
    # The view's transaction, the one that reads the level, and the one that tries another level.
    assert firefox.post("/login", name="ann", password=password).status_code == 503
    assert engine not in own_transaction._habits
    assert firefox.post("/login", name="ann", password=password).status_code == 200
    assert own_transaction._habits[engine] == own_transaction.IsolationHabit("SERIALIZABLE")


@pytest.mark.table
def test_binary_log_of_statements(tmp_path: Path) -> None:
    """MariaDB then refuses to write at READ COMMITTED. The level stays; the doctor reports it."""
    with own_mariadb("--log-bin", "--binlog-format=STATEMENT") as server:
        site = Site(tmp_path, store="cookie", database=server.url)
        firefox = site.browser()
        assert firefox.login().status_code == 200
        assert firefox.is_signed_in
        found = site.app.test_cli_runner().invoke(args=["sessions", "doctor"]).output
        site.close()
    assert "'binlog_format' is STATEMENT" in found


@pytest.mark.table
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_entry_that_is_just_written(make_site: SiteFactory, level: str) -> None:
    """The SQL store waits until the entry is written, then deletes it."""
    site = make_site("sqlalchemy", "postgresql", **at_level(level))
    site.browser().post("/cart", item="book")
    with site.context(), ThreadPoolExecutor(1) as pool:
        table = site.app.session_interface.sql_session_model.__table__
        key = site.db.session.scalar(sa.select(table.c.session_id))
        site.db.session.rollback()
        with site.db.engine.connect() as slow, site.db.engine.connect() as looking:
            slow.execute(sa.update(table).values(data=b"newer"))

            def delete() -> None:
                with site.context():
                    site.registry.entries.delete([key], timeout=30)

            deletion = pool.submit(delete)
            waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            assert wait_for(lambda: bool(looking.scalar(waiting)))
            slow.commit()
            deletion.result(30)
        assert site.db.session.scalar(sa.select(sa.func.count()).select_from(table)) == 0


@pytest.mark.table
def test_app_that_is_bound_to_a_connection(make_site: SiteFactory) -> None:
    """If its transaction might have begun, ours joins it; level and lock timeout don't change."""
    site = make_site("cookie", "postgresql", **at_level("REPEATABLE READ"))
    note = sa.select(site.User.note).where(site.User.name == "ann")
    with site.context(), site.db.engine.connect() as connection:
        connection.execute(note)
        factory = sa_orm.sessionmaker(connection, join_transaction_mode="create_savepoint")
        with own_transaction.own_transaction(factory, site.User) as session:
            session.execute(sa.update(site.User).values(note="new"))
            own_transaction.set_lock_timeout(session, site.User)
        assert connection.scalar(note) == "new"
        assert connection.scalar(sa.text("SHOW lock_timeout")) == "0"
        connection.rollback()
        assert connection.scalar(note) is None
