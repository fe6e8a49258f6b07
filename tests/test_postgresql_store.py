"""The store "postgresql" of Flask-Session's development version."""

from __future__ import annotations

import contextlib
import datetime as dt
import typing as t
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
import sqlalchemy as sa
from flask_session.base import ServerSideSession, ServerSideSessionInterface
from site_under_test import Site

SiteFactory = Callable[..., Site]


class Imitation(ServerSideSessionInterface):
    """Imitates what the registry relies on, and what gets in its way."""

    session_class = ServerSideSession
    ttl = False

    def __init__(self, app: t.Any, address: str, table: str) -> None:
        self._connection = psycopg.connect(address, autocommit=True)
        self._schema, self._table = "public", table
        with self._get_cursor() as cursor:
            cursor.execute(f'CREATE TABLE "{table}" (session_id text PRIMARY KEY, data bytea)')
        super().__init__(app, key_prefix="session:", cleanup_n_requests=None)

    @contextlib.contextmanager
    def _get_cursor(self) -> Iterator[t.Any]:
        with self._connection.cursor() as cursor:
            yield cursor

    def _delete_expired_sessions(self) -> None:
        """Do nothing."""

    def _delete_session(self, store_id: str) -> None:
        with self._get_cursor() as cursor:
            cursor.execute(f'DELETE FROM "{self._table}" WHERE session_id = %s', (store_id,))

    def _retrieve_session_data(self, store_id: str) -> dict[str, t.Any] | None:
        with self._get_cursor() as cursor:
            query = f'SELECT data FROM "{self._table}" WHERE session_id = %s'
            found = cursor.execute(query, (store_id,)).fetchone()
        return None if found is None else self.serializer.decode(found[0])

    def _upsert_session(self, lifetime: dt.timedelta, session: t.Any, store_id: str) -> None:
        data = self.serializer.encode(session)
        if session.sid is not None:
            assert session.sid == store_id.removeprefix(self.key_prefix)
        with self._get_cursor() as cursor:
            cursor.execute(
                f'INSERT INTO "{self._table}" VALUES (%(id)s, %(data)s)'
                " ON CONFLICT (session_id) DO UPDATE SET data = %(data)s",
                {"id": store_id, "data": data},
            )


Imitation.__name__ = "PostgreSqlSessionInterface"
Imitation.__module__ = "flask_session.postgresql.postgresql"


@pytest.fixture(params=["imitation", "real"])
def site(
    request: pytest.FixtureRequest, make_site: SiteFactory, databases: t.Any
) -> Iterator[Site]:
    url = sa.make_url(databases("postgresql")).set(drivername="postgresql")
    address, table = url.render_as_string(hide_password=False), f'sessions "{uuid.uuid4().hex}'
    if request.param == "real":
        module = pytest.importorskip(
            "flask_session.postgresql", reason="This Flask-Session has no store 'postgresql'."
        )
        from psycopg2.pool import ThreadedConnectionPool  # type: ignore[import-untyped]

        pool = ThreadedConnectionPool(1, 20, address)
        site = make_site("cookie", init=False)
        interface = module.PostgreSqlSessionInterface(site.app, pool, table=table[-20:])
    else:
        site = make_site("cookie", init=False)
        interface = Imitation(site.app, address, table.replace('"', "'"))
    site.app.session_interface = interface
    site.sessions.init_app(site.app)
    with site.context():
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="hash of ann"))
        site.db.session.commit()
    yield site
    with interface._get_cursor() as cursor:
        cursor.execute(f'DROP TABLE "{interface._table}"')
    if request.param == "real":
        pool.closeall()
    else:
        interface._connection.close()


def keys(site: Site) -> list[str]:
    interface: t.Any = site.app.session_interface
    with interface._get_cursor() as cursor:
        cursor.execute(f'SELECT session_id FROM "{interface._table}"')
        return [key for (key,) in cursor.fetchall()]


def test_password_change(site: Site) -> None:
    """The other browser is signed out, its entry is gone, and no key is a session id."""
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    assert len(keys(site)) == 2
    assert not {f"session:{one.cookies['session']}" for one in (firefox, chrome)} & {*keys(site)}
    firefox.post("/password", password="new")
    assert firefox.is_signed_in
    assert not chrome.is_signed_in
    assert len(keys(site)) == 1
