"""Servers that are really killed (SIGKILL) or hung (SIGSTOP) (SCENARIOS 34, 36 to 39)."""

from __future__ import annotations

import datetime as dt
import shutil
import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
import redis
import servers
import sqlalchemy as sa
from conftest import SiteFactory
from flask import request
from flask_login import current_user, login_required, login_user
from own_servers import (
    OwnServer,
    own_mariadb,
    own_memcached,
    own_postgresql,
    own_redis,
    redis_client,
)
from site_under_test import Browser, Site
from test_races import Held

from flask_session_registry import session_revoked
from flask_session_registry._records import base as records
from flask_session_registry._store import backends as entries

#: How long the app's client waits for a store, in seconds.
TIMEOUT = 1.0
#: Extra time for a response, since other tests run at the same time.
SLACK = 5.0


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.may_go_on.set()
    held.pool.shutdown()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnServer]:
    with own_redis() as server:
        yield server


@pytest.fixture(scope="module")
def memcached_server() -> Iterator[OwnServer]:
    with own_memcached() as server:
        yield server


@pytest.fixture(scope="module")
def postgresql_server() -> Iterator[OwnServer]:
    with own_postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def mariadb_server() -> Iterator[OwnServer]:
    with own_mariadb() as server:
        yield server


# These request 'make_site' and 'held', so that the server runs again before the sites are torn down
# and the held visit is awaited.


@pytest.fixture
def own(redis_server: OwnServer, make_site: SiteFactory, held: Held) -> Iterator[OwnServer]:
    """A Redis that a test may kill and hang."""
    yield redis_server
    redis_server.restore()


@pytest.fixture
def memcached(
    memcached_server: OwnServer, make_site: SiteFactory, held: Held
) -> Iterator[OwnServer]:
    yield memcached_server
    memcached_server.restore()


@pytest.fixture(params=["postgresql", "mariadb"])
def own_database(
    request: pytest.FixtureRequest, make_site: SiteFactory, held: Held
) -> Iterator[OwnServer]:
    """A database server that a test may kill and hang."""
    server: OwnServer = request.getfixturevalue(f"{request.param}_server")
    yield server
    server.restore()


@pytest.fixture
def own_mariadb_server(
    mariadb_server: OwnServer, make_site: SiteFactory, held: Held
) -> Iterator[OwnServer]:
    yield mariadb_server
    mariadb_server.restore()


def redis_site(
    make_site: SiteFactory,
    server: OwnServer,
    database: str = "sqlite",
    *,
    timeout: float | None = TIMEOUT,
    **options: t.Any,
) -> Site:
    """Return a site whose sessions are on this server. Records in Redis are on another server."""
    client = redis_client(server.url, timeout=timeout)
    options = {"SESSION_REGISTRY_REDIS": redis.Redis.from_url(servers.redis_url()), **options}
    site = make_site("redis", database, SESSION_REDIS=client, **options)
    # The tests' own client always has a timeout.
    site.redis = redis_client(server.url, timeout=30)
    return site


def add_slow_password(site: Site, held: Held) -> None:
    """Add a password change that is held when all is written and nothing is committed."""

    @site.app.post("/slow-password")
    @login_required
    def slow_password() -> str:
        current_user.password_hash = request.form["password"]
        site.db.session.flush()
        held.wait()
        site.db.session.commit()
        # The database is usable after the commit, whatever happened to the store.
        return str(site.user("bob").name)


def sign_in(site: Site) -> tuple[Browser, Browser, Browser]:
    firefox, chrome, phone = (site.browser(name) for name in ("Firefox", "Chrome", "Phone"))
    for browser in (firefox, chrome, phone):
        assert browser.login(remember="1").status_code == 200
    return firefox, chrome, phone


def password_of(site: Site, name: str = "ann") -> str:
    with site.context():
        return str(site.user(name).password_hash)


def ended(site: Site) -> list[t.Any]:
    return [row for row in site.rows() if row.revoked_at is not None]


def pending(site: Site) -> int:
    return sum(row.purged_at is None for row in ended(site))


def prune(site: Site) -> t.Any:
    with site.context():
        return site.sessions.prune()


def prune_until_all_is_purged(site: Site) -> bool:
    """Prune until done: a deletion that hung might still run, and a client might avoid a server."""

    def is_purged() -> bool:
        prune(site)
        return pending(site) == 0

    return servers.wait_for(is_purged)


def assert_dead(*browsers: Browser) -> None:
    """Check all of the cookies, then the "remember me" pair alone."""
    for browser in browsers:
        assert not browser.is_signed_in
        copy = browser.copy()
        copy.lose("session")
        assert not copy.is_signed_in


class Stopwatch:
    def __enter__(self) -> Stopwatch:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began


# -- the session store ---------------------------------------------------------------------------


@pytest.mark.parametrize("comes_back", ["restored", "empty"])
def test_redis_is_killed_while_the_password_changes(
    make_site: SiteFactory, own: OwnServer, held: Held, database: str, comes_back: str
) -> None:
    """34: the change is committed, the others are signed out, and the next prune purges the
    entries.

    Fails if rows are marked as purged before their entries are deleted.
    """
    site = redis_site(make_site, own, database)
    add_slow_password(site, held)
    firefox, chrome, phone = sign_in(site)
    copies = [browser.copy() for browser in (firefox, chrome, phone)]
    answer = held.start(lambda: chrome.post("/slow-password", password="new"))
    own.kill()
    held.finish(answer)
    assert password_of(site) == "new"
    assert [row.revoked_reason for row in ended(site)] == ["password_changed"] * 2
    assert pending(site) == 2
    own.start()
    if comes_back == "empty":
        site.redis.flushall()
    assert len(site.signed_in_entries()) == (3 if comes_back == "restored" else 0)
    assert_dead(firefox, phone, *copies)
    assert prune(site).purged == 2
    assert pending(site) == 0
    # Chrome's old entry is gone as well. Its new one never reached the store.
    assert site.signed_in_entries() == []
    assert chrome.login().status_code == 200
    assert chrome.is_signed_in


def test_redis_is_down_all_the_time(make_site: SiteFactory, own: OwnServer, database: str) -> None:
    """34: a password changed outside a request is changed, and the sessions end."""
    site = redis_site(make_site, own, database)
    firefox, chrome, phone = sign_in(site)
    own.kill()
    with site.context():
        site.user("ann").password_hash = "new"
        site.db.session.commit()
        assert site.user("bob").name == "bob"
    assert password_of(site) == "new"
    assert pending(site) == 3
    assert prune(site).purged == 0
    assert pending(site) == 3
    own.start()
    assert_dead(firefox, chrome, phone)
    assert prune(site).purged == 3
    assert site.signed_in_entries() == []


def test_redis_hangs_while_the_password_changes(
    make_site: SiteFactory, own: OwnServer, held: Held, database: str
) -> None:
    """34: the response arrives within the promised time, plus Flask-Session's own waiting."""
    site = redis_site(make_site, own, database)
    add_slow_password(site, held)
    firefox, chrome, phone = sign_in(site)
    answer = held.start(lambda: chrome.post("/slow-password", password="new"))
    own.hang()
    with Stopwatch() as watch:
        held.finish(answer)
    # Flask-Session tries twice to save the session, and the old entry must be deleted.
    assert watch.seconds < entries.TIMEOUT + 3 * TIMEOUT + SLACK
    assert password_of(site) == "new"
    assert pending(site) == 2
    own.go_on()
    assert_dead(firefox, phone)
    assert prune_until_all_is_purged(site)
    assert site.signed_in_entries() == []


def test_client_that_would_wait_forever(
    make_site: SiteFactory, own: OwnServer, held: Held, database: str
) -> None:
    """34: in a shell or a job, the commit returns although the client has no timeout.

    The next commit returns at once while the first deletion hangs. Fails if the committing thread
    calls the store.
    """
    site = redis_site(make_site, own, database, timeout=None)
    browsers = sign_in(site)
    bobs = site.browser("Bob's")
    bobs.login("bob")
    own.hang()

    def revoke_all(name: str) -> float:
        with site.context():
            site.sessions.revoke_all(site.user(name))
            with Stopwatch() as watch:
                site.db.session.commit()
            assert site.user(name).name == name
        return watch.seconds

    for name, longest in (("ann", entries.TIMEOUT + SLACK), ("bob", entries.TIMEOUT)):
        seconds = held.pool.submit(revoke_all, name).result(entries.TIMEOUT + 3 * SLACK)
        assert seconds < longest
    assert pending(site) == 4
    own.go_on()
    assert_dead(*browsers, bobs)
    assert prune_until_all_is_purged(site)
    assert site.signed_in_entries() == []


#: Fail instead of waiting for a lock.
IMPATIENT = {
    "sqlite": {"timeout": 0.5},
    "postgresql": {"options": "-c lock_timeout=500"},
    "mariadb": {"init_command": "SET innodb_lock_wait_timeout=1"},
}


def test_nothing_is_locked_while_redis_hangs(
    make_site: SiteFactory,
    own: OwnServer,
    held: Held,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """34: on another server, the same user is edited, signs in and changes the password.

    Meanwhile, the first response waits for the store. Fails if the entries are deleted within the
    transaction that marks them as purged.
    """
    monkeypatch.setattr(entries, "TIMEOUT", 60.0)
    site = redis_site(make_site, own, database, timeout=None)
    add_slow_password(site, held)
    firefox, chrome, _ = sign_in(site)
    # The same database, with another session store that works.
    other = make_site(
        "files",
        database,
        users=(),
        SQLALCHEMY_DATABASE_URI=site.app.config["SQLALCHEMY_DATABASE_URI"],
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": IMPATIENT[database]},
    )
    answer = held.start(lambda: chrome.post("/slow-password", password="new"))
    own.hang()
    held.may_go_on.set()
    assert servers.wait_for(lambda: password_of(other) == "new")
    with other.context():
        other.user("ann").note = "changed"
        other.db.session.commit()
    safari, edge = other.browser("Safari"), other.browser("Edge")
    for browser in (safari, edge):
        assert browser.login("ann", "new").status_code == 200
    assert edge.post("/password", password="newer").status_code == 200
    assert edge.is_signed_in
    assert not safari.is_signed_in
    assert not answer.done()
    own.go_on()
    response = answer.result(30)
    assert (response.status_code, response.text) == (200, "bob")
    assert not firefox.is_signed_in
    assert not chrome.is_signed_in


def test_store_that_refuses_half_way(
    make_site: SiteFactory, own: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36: the remaining entries stay pending, and the request succeeds.

    The Redis really refuses to delete from the second batch on.
    """
    monkeypatch.setattr(records, "BATCH", 10)
    site = redis_site(make_site, own)
    chrome = site.browser("Chrome")
    chrome.login()
    others = [site.browser("Other") for _ in range(25)]
    for browser in others:
        browser.login()

    told: list[int] = []

    def refuse(_: t.Any, *, ids: tuple[t.Any, ...], **__: t.Any) -> None:
        site.redis.execute_command("ACL", "SETUSER", "default", "-unlink", "-del")
        told.append(len(ids))

    try:
        with session_revoked.connected_to(refuse, site.app):
            assert chrome.post("/password", password="new").status_code == 200
        assert len(ended(site)) == sum(told) == 25
        # The first batch might contain Chrome's session, which goes on.
        assert told[0] in (9, 10)
        assert pending(site) == 25 - told[0]
        assert not any(browser.is_signed_in for browser in others)
        assert chrome.is_signed_in
    finally:
        site.redis.execute_command("ACL", "SETUSER", "default", "+@all")
    assert prune(site).purged == 25 - told[0]
    assert len(site.signed_in_entries()) == 1
    assert chrome.is_signed_in


def test_redis_is_killed_half_way(
    make_site: SiteFactory, own: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36: the first batch is purged, the rest is pending, and 'db.session' is usable."""
    monkeypatch.setattr(records, "BATCH", 10)
    site = redis_site(make_site, own)
    browsers = [site.browser("Firefox") for _ in range(25)]
    for browser in browsers:
        browser.login()
    told: list[int] = []

    def kill(_: t.Any, *, ids: tuple[t.Any, ...], **__: t.Any) -> None:
        if not told:
            own.kill()
        told.append(len(ids))

    with session_revoked.connected_to(kill, site.app), site.context():
        assert site.sessions.revoke_all(site.user("ann")) == 25
        site.db.session.commit()
        assert site.user("ann").name == "ann"
    # All have ended, and the signal reports them, whether or not their entries are gone.
    assert told == [10, 10, 5]
    assert pending(site) == 15
    own.start()
    assert not any(browser.is_signed_in for browser in browsers)
    assert prune(site).purged == 15
    assert site.signed_in_entries() == []


class _Clients:
    """Clients of memcached that retry a server that was gone."""

    @staticmethod
    def pymemcache(address: str) -> t.Any:
        import pymemcache

        host, _, port = address.partition(":")
        return pymemcache.Client((host, int(port)), connect_timeout=TIMEOUT, timeout=TIMEOUT)

    @staticmethod
    def pylibmc(address: str) -> t.Any:
        pylibmc = pytest.importorskip("pylibmc", reason="pylibmc has no wheel for this Python")
        microseconds, milliseconds = int(TIMEOUT * 10**6), int(TIMEOUT * 1000)
        behaviors = {
            "connect_timeout": milliseconds,
            "receive_timeout": microseconds,
            "send_timeout": microseconds,
            "_poll_timeout": milliseconds,
            "retry_timeout": 1,
        }
        return pylibmc.Client([address], behaviors=behaviors)

    @staticmethod
    def memcache(address: str) -> t.Any:
        import memcache

        return memcache.Client([address], socket_timeout=TIMEOUT, dead_retry=0)


# python-memcached raises where the error can't be caught.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", ["kill", "hang"])
@pytest.mark.parametrize("library", ["pymemcache", "pylibmc", "memcache"])
def test_memcached_while_the_password_changes(
    make_site: SiteFactory, memcached: OwnServer, held: Held, library: str, fault: str
) -> None:
    """34: the same for memcached with any client, one of which never reports failures."""
    site = make_site("memcached", SESSION_MEMCACHED=getattr(_Clients, library)(memcached.url))
    site.backend.host, site.backend.port = "127.0.0.1", int(memcached.url.rpartition(":")[2])
    add_slow_password(site, held)
    firefox, chrome, phone = sign_in(site)
    assert chrome.is_signed_in
    answer = held.start(lambda: chrome.post("/slow-password", password="new"))
    getattr(memcached, fault)()
    with Stopwatch() as watch:
        held.finish(answer)
    assert watch.seconds < entries.TIMEOUT + 3 * 3 * TIMEOUT + SLACK
    assert password_of(site) == "new"
    assert pending(site) == 2
    memcached.restore()

    def answers() -> bool:
        return bool(firefox.get("/me").status_code == 200)

    assert servers.wait_for(answers)
    assert_dead(firefox, phone)
    assert prune_until_all_is_purged(site)
    assert chrome.login().status_code == 200
    assert chrome.is_signed_in


# -- the database --------------------------------------------------------------------------------


def database_site(make_site: SiteFactory, server: OwnServer, **engine: t.Any) -> Site:
    """Return a site on this database server, with a pool that detects lost connections."""
    return make_site(
        "files",
        SQLALCHEMY_DATABASE_URI=server.url,
        SQLALCHEMY_ENGINE_OPTIONS={"pool_pre_ping": True} | engine,
    )


@pytest.mark.parametrize("carries", ["session", "remember_token"])
def test_database_is_killed_before_a_check(
    make_site: SiteFactory, own_database: OwnServer, carries: str
) -> None:
    """37: the response is 503, cookies are unchanged, and the session works again afterwards."""
    site = database_site(make_site, own_database)
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    if carries == "remember_token":
        firefox.lose("session")
    before = firefox.cookies
    own_database.kill()
    for _ in range(2):
        assert firefox.get("/me").status_code == 503
    assert firefox.get("/cart").status_code == 200
    assert firefox.cookies == before
    own_database.start()
    assert firefox.is_signed_in


def test_database_is_killed_before_a_check_without_ping(
    make_site: SiteFactory, own_database: OwnServer
) -> None:
    """37: if the pool doesn't ping, the first response is 503, and cookies are unchanged."""
    site = database_site(make_site, own_database, pool_pre_ping=False)
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    before = firefox.cookies
    own_database.kill()
    own_database.start()
    answers = [firefox.get("/me") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 200]
    assert answers[1].json["name"] == "ann"
    assert firefox.cookies == before


def test_database_hangs_at_a_check(
    make_site: SiteFactory, own_database: OwnServer, held: Held
) -> None:
    """37: the request waits as long as the driver does, and is answered once it continues."""
    site = database_site(make_site, own_database)
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    before = firefox.cookies
    own_database.hang()
    answer = held.pool.submit(lambda: firefox.get("/me"))
    threading.Event().wait(0.5)
    assert not answer.done()
    own_database.go_on()
    assert answer.result(30).json["name"] == "ann"
    assert firefox.cookies == before


@pytest.mark.parametrize("what", ["check", "login"])
def test_database_hangs_longer_than_the_driver_waits(
    make_site: SiteFactory, own_mariadb_server: OwnServer, held: Held, what: str
) -> None:
    """37, 38: if the driver gives up, as PyMySQL can, it is 503, and cookies are unchanged."""
    waits = {"read_timeout": 1, "connect_timeout": 1}
    site = database_site(make_site, own_mariadb_server, connect_args=waits)
    add_slow_login(site, held)
    firefox = site.browser("Firefox")
    if what == "check":
        firefox.login(remember="1")
        before = firefox.cookies
        own_mariadb_server.hang()
        response = firefox.get("/me")
    else:
        before = firefox.cookies
        answer = held.start(lambda: firefox.post("/slow-login"))
        own_mariadb_server.hang()
        response = held.finish(answer)
    assert response.status_code == 503
    assert firefox.cookies == before
    own_mariadb_server.go_on()
    assert firefox.is_signed_in == (what == "check")


def add_slow_login(site: Site, held: Held) -> None:
    """Add a login that is held when the user is signed in, before the row is written."""

    @site.app.post("/slow-login")
    def slow_login() -> str:
        user = site.user("ann")
        login_user(user, remember=True)
        held.wait()
        return "signed in"


def test_database_is_killed_before_a_login_is_recorded(
    make_site: SiteFactory, own_database: OwnServer, held: Held
) -> None:
    """38: the login fails with an error message."""
    site = database_site(make_site, own_database)
    add_slow_login(site, held)
    firefox = site.browser("Firefox")
    firefox.post("/cart", item="book")
    before = firefox.cookies
    answer = held.start(lambda: firefox.post("/slow-login"))
    own_database.kill()
    response = held.finish(answer)
    assert response.status_code == 503
    assert "could not be recorded" in response.text
    assert firefox.cookies == before
    own_database.start()
    assert not firefox.is_signed_in
    assert firefox.get("/cart").json == {"cart": "book"}
    assert site.active() == 0
    assert firefox.login().status_code == 200
    assert firefox.is_signed_in


def test_database_is_killed_before_the_commit(
    make_site: SiteFactory, own_database: OwnServer, held: Held
) -> None:
    """4, 38: the password is unchanged, no session has ended, and no entry was touched.

    Fails if the entries are deleted before the commit.
    """
    site = database_site(make_site, own_database)
    add_slow_password(site, held)
    browsers = sign_in(site)
    stored = site.signed_in_entries()
    answer = held.start(lambda: browsers[1].post("/slow-password", password="new"))
    own_database.kill()
    assert held.finish(answer).status_code == 500
    own_database.start()
    assert site.signed_in_entries() == stored
    assert password_of(site) == "hash of ann"
    assert all(browser.is_signed_in for browser in browsers)
    assert pending(site) == 0


def test_database_is_killed_right_after_the_commit(
    make_site: SiteFactory, own_database: OwnServer
) -> None:
    """36: the change is stored, the others are signed out, and the next prune does the purge."""
    site = database_site(make_site, own_database)

    @site.app.post("/doomed-password")
    @login_required
    def doomed_password() -> str:
        current_user.password_hash = "new"
        sa.event.listen(site.db.session(), "after_commit", lambda _: own_database.kill())
        site.db.session.commit()
        return "changed"

    firefox, chrome, phone = sign_in(site)
    copy = chrome.copy()
    chrome.post("/doomed-password")
    own_database.start()
    assert password_of(site) == "new"
    assert_dead(firefox, phone, copy)
    # With records in Redis, they have been purged already.
    left = 2 if site.records == "sql" else 0
    assert pending(site) == left
    assert prune(site).purged == left
    assert chrome.login().status_code == 200
    assert chrome.is_signed_in


# -- a store that comes back from an old snapshot -------------------------------------------------


def test_redis_from_an_old_snapshot(
    make_site: SiteFactory, own: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """39: sessions revoked since then are refused, and their entries are deleted again at last.

    Fails if a row is deleted without deleting its entry once more.
    """
    name = "flask_session_registry._records.base.IN_FLIGHT_GRACE"
    monkeypatch.setattr(name, dt.timedelta(seconds=1))
    site = redis_site(make_site, own, SESSION_REGISTRY_RETENTION=1)
    firefox, chrome, phone = sign_in(site)
    stolen = chrome.copy()
    keys = list(site.redis.scan_iter(f"{site.prefix}*"))
    snapshot = {key: (site.redis.dump(key), site.redis.pttl(key)) for key in keys}
    chrome.post("/password", password="new")
    phone.login()
    phone.post("/logout")
    for key in site.redis.scan_iter(f"{site.prefix}*"):
        site.redis.delete(key)
    for key, (dumped, ttl) in snapshot.items():
        site.redis.restore(key, ttl, dumped)
    assert len(site.signed_in_entries()) == 3
    # Chrome's session isn't in the snapshot, but its remember cookie works.
    assert chrome.is_signed_in
    assert_dead(firefox, phone, stolen)
    over = {row.store_id for row in ended(site)}
    assert len(over) == 3
    assert len(over & set(site.entries())) == 2
    # One second after they have ended.
    assert servers.wait_for(lambda: prune(site) is not None and not ended(site))
    assert not over & set(site.entries())
    assert chrome.is_signed_in


def test_files_from_an_old_snapshot(make_site: SiteFactory) -> None:
    """39: the same for a folder of files."""
    site = make_site("files")
    firefox, chrome, phone = sign_in(site)
    stolen = chrome.copy()
    shutil.copytree(site.folder / "sessions", site.folder / "snapshot")
    chrome.post("/password", password="new")
    shutil.rmtree(site.folder / "sessions")
    shutil.copytree(site.folder / "snapshot", site.folder / "sessions")
    assert len(site.signed_in_entries()) == 3
    assert chrome.is_signed_in
    assert_dead(firefox, phone, stolen)


# -- entries that can't be read ------------------------------------------------------------------


SPOILT = b"\xc1 neither msgpack nor JSON nor a pickle"


def spoil_entries(site: Site) -> None:
    """Overwrite all entries of the store with invalid data."""
    interface = t.cast(t.Any, site.app.session_interface)
    if site.store == "redis":
        for key in site.entries():
            site.redis.set(key, SPOILT)
    elif site.store in ("files", "filesystem"):
        for name in site.entries():
            (site.folder / "sessions" / name).write_bytes(SPOILT)
    elif site.store == "memory":
        for key in site.entries():
            interface.cache._cache[key] = (0, SPOILT)
    elif site.store == "memcached":
        for key in site.entries():
            interface.client.set(key, SPOILT, noreply=False)
    elif site.store == "sqlalchemy":
        with site.context(), site.db.engine.begin() as connection:
            table = interface.sql_session_model.__table__
            connection.execute(table.update().values(data=SPOILT))
    elif site.store == "mongodb":
        interface.store.update_many({}, {"$set": {"val": SPOILT}})
    elif site.store == "dynamodb":
        for key in site.entries():
            interface.store.put_item(Item={"id": key, "val": SPOILT})
    else:
        assert site.store == "cookie"


def test_entries_that_cannot_be_decoded(store_site: Site) -> None:
    """40: they don't prevent a revocation, and are deleted like the others."""
    site = store_site
    browsers = sign_in(site)
    spoil_entries(site)
    assert site.signed_in_entries() == []
    with site.context():
        assert site.sessions.revoke_all(site.user("ann")) == 3
        site.db.session.commit()
    assert site.entries() == {}
    if site.store != "cookie":
        assert pending(site) == 0
    assert_dead(*browsers)


def test_entry_of_another_browser_that_cannot_be_decoded(
    make_site: SiteFactory, own: OwnServer
) -> None:
    """40: nor does one prevent another browser from changing the password."""
    site = redis_site(make_site, own)
    firefox, chrome, phone = sign_in(site)
    key = next(row.store_id for row in site.rows() if row.user_agent == "Firefox")
    site.redis.set(key, b"\xc1")
    assert chrome.post("/password", password="new").status_code == 200
    assert len(site.signed_in_entries()) == 1
    assert key not in site.entries()
    assert chrome.is_signed_in
    assert_dead(firefox, phone)


def test_key_of_another_type(make_site: SiteFactory, own: OwnServer) -> None:
    """40: nor does a key that holds a list instead of a string."""
    site = redis_site(make_site, own)
    firefox, chrome, _ = sign_in(site)
    key = next(row.store_id for row in site.rows() if row.user_agent == "Firefox")
    site.redis.delete(key)
    site.redis.rpush(key, "something")
    assert chrome.post("/password", password="new").status_code == 200
    assert not site.redis.exists(key)
    assert chrome.is_signed_in
    assert_dead(firefox)


def test_error_of_the_store_is_not_an_error_of_the_registry(
    make_site: SiteFactory, own: OwnServer
) -> None:
    """34: with Redis stopped, Flask-Session responds 500, with or without the registry."""
    site = redis_site(make_site, own)
    firefox = site.browser("Firefox")
    firefox.login()
    own.kill()
    assert firefox.get("/me").status_code == 500
    site.app.config["PROPAGATE_EXCEPTIONS"] = True
    with pytest.raises(redis.ConnectionError):
        firefox.get("/me")
    own.start()
    assert firefox.is_signed_in
