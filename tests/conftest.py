from __future__ import annotations

import contextlib
import logging
import sqlite3
import sys
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent))

import servers
from site_under_test import DATABASES, RECORDS, STORES, Browser, Site

from flask_session_registry import (
    purge_failed,
    session_registered,
    session_rejected,
    session_revoked,
)


@pytest.fixture
def synchronous() -> str:
    """Return how SQLite waits for the disk: not, as what tests write need not survive a crash."""
    return "OFF"


@pytest.fixture(autouse=True)
def no_connection_is_left(synchronous: str) -> Iterator[None]:
    """Close the SQLite connections that a test opened: each test creates its own engines."""
    opened: list[sqlite3.Connection] = []

    def note(connection: t.Any, _: t.Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            opened.append(connection)

    sa.event.listen(sa.Pool, "connect", note)
    yield
    sa.event.remove(sa.Pool, "connect", note)
    for connection in opened:
        connection.close()


SiteFactory = Callable[..., Site]


@pytest.fixture(autouse=True)
def no_receiver_is_left() -> Iterator[None]:
    """Disconnect the receivers that a test connected: signals are shared by all apps."""
    yield
    for signal in (purge_failed, session_registered, session_rejected, session_revoked):
        signal._clear_state()


@pytest.fixture(autouse=True)
def logger_is_enabled() -> None:
    """Enable the package's logger: Flask-Migrate's logging configuration disables existing ones."""
    logging.getLogger("flask_session_registry").disabled = False


@pytest.fixture(scope="session")
def databases() -> Iterator[Callable[[str], str | None]]:
    """Yield a function that returns a database URL for each kind.

    Each database is created on first use and shared by the whole run.
    """
    with contextlib.ExitStack() as stack:
        made: dict[str, str | None] = {"sqlite": None}

        def find(kind: str) -> str | None:
            if kind not in made:
                made[kind] = stack.enter_context(servers.scratch_database(kind))
            return made[kind]

        yield find


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of a site with SQL records and with Redis records.

    Tests marked "table" run with SQL records only.
    """
    if "records" in metafunc.fixturenames:
        is_about_table = metafunc.definition.get_closest_marker("table")
        kinds = RECORDS[:1] if is_about_table else RECORDS
        metafunc.parametrize("records", kinds, scope="module")


@pytest.fixture
def make_site(
    tmp_path: Path, databases: Callable[[str], str | None], records: str
) -> Iterator[SiteFactory]:
    """Yield a factory of sites, each on an empty database and an empty session store."""
    sites: list[Site] = []

    def make(store: str = "files", database: str = "sqlite", **options: t.Any) -> Site:
        folder = tmp_path / str(len(sites))
        folder.mkdir()
        site = Site(
            folder,
            store=store,
            database=databases(database),
            **{"records": records, **options},
        )
        sites.append(site)
        return site

    yield make
    for site in sites:
        if site.app.config["SQLALCHEMY_DATABASE_URI"].startswith("sqlite") is False:
            with site.context():
                site.db.session.remove()
                site.db.drop_all()
        site.close()


@pytest.fixture
def site(make_site: SiteFactory) -> Site:
    """Return a site on files and SQLite."""
    return make_site()


@pytest.fixture(params=STORES)
def store_site(request: pytest.FixtureRequest, make_site: SiteFactory) -> Site:
    """Return a site on each session store."""
    return make_site(request.param)


@pytest.fixture(params=DATABASES)
def database_site(request: pytest.FixtureRequest, make_site: SiteFactory) -> Site:
    """Return a site on each database."""
    return make_site("files", request.param)


@pytest.fixture
def firefox(site: Site) -> Browser:
    return site.browser("Firefox")


@pytest.fixture
def chrome(site: Site) -> Browser:
    return site.browser("Chrome")


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    """Return the name of each kind of database."""
    return str(request.param)
