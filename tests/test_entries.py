"""Deleting entries from each kind of session store."""

from __future__ import annotations

import functools
import hashlib
import secrets
import threading
import typing as t
import urllib.parse
from pathlib import Path

import pytest
import redis
import servers
import sqlalchemy as sa
from cachelib import SimpleCache
from conftest import SiteFactory
from crowd import all_the_while
from flask import Flask, Response
from flask.sessions import SecureCookieSessionInterface, SessionInterface, SessionMixin
from flask_session import Session
from flask_session.cachelib import CacheLibSessionInterface
from proxy import Proxy
from site_under_test import Browser, Site
from stores import KINDS
from werkzeug.datastructures import CallbackDict

from flask_session_registry import ConfigurationError, register_session_store
from flask_session_registry._store import backends as entries
from flask_session_registry._store.backends import Entries, store_of


class Stubborn(SimpleCache):
    """A cache that never deletes anything."""

    def delete(self, key: str) -> bool:
        return False


def entries_of(interface: t.Any) -> Entries:
    store = store_of(interface)
    assert store is not None
    return Entries(interface, store)


def test_cache_deletes_nothing() -> None:
    """If a cache deletes nothing, an error is raised, so that the purge stays pending."""
    cache = Stubborn()
    cache.set("a", 1)
    interface = CacheLibSessionInterface(client=cache)
    with pytest.raises(OSError, match="did not delete every entry"):
        entries_of(interface).delete(["a", "b"])


# Some clients leave their connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STORED = [kind for kind in KINDS if kind != "cookie"]


@pytest.mark.parametrize("store", STORED)
def test_main_job_on_every_kind(make_site: SiteFactory, store: str) -> None:
    """1, 3: other sessions end and their entries are deleted; other users' entries stay."""
    site = make_site(store)
    firefox, chrome, bob = (site.browser(name) for name in ("Firefox", "Chrome", "Bob"))
    firefox.login()
    chrome.login()
    bob.login("bob")
    assert len(site.signed_in_entries()) == 3
    chrome.post("/password", password="new")
    assert len(site.signed_in_entries()) == 2
    assert all(row.purged_at for row in site.rows() if row.revoked_at)
    assert not firefox.is_signed_in
    assert chrome.name_shown == "ann"
    assert bob.name_shown == "bob"


@pytest.mark.parametrize("store", STORED)
def test_missing_entry(make_site: SiteFactory, store: str) -> None:
    """A missing entry is no error, and the others are deleted."""
    site = make_site(store)
    site.browser().login()
    (row,) = site.rows()
    with site.context():
        entries_of(site.app.session_interface).delete(
            ["gone", row.store_id, "gone-too", row.store_id]
        )
    assert not site.entries()


@pytest.mark.parametrize("store", STORED)
def test_many_entries(make_site: SiteFactory, store: str) -> None:
    """A full batch of a thousand entries is deleted from every store."""
    site = make_site(store)
    site.browser().login()
    (row,) = site.rows()
    with site.context():
        entries_of(site.app.session_interface).delete(
            [*(f"{site.prefix}{n:064}" for n in range(999)), row.store_id], timeout=120
        )
    assert not site.entries()


def through(proxy: Proxy) -> dict[str, t.Callable[[], t.Any]]:
    """Return the clients, connected to their server through the proxy."""
    host, port = proxy.address

    def pymemcache_client() -> t.Any:
        return __import__("pymemcache").Client((host, port))

    def pylibmc_client() -> t.Any:
        return __import__("pylibmc").Client([f"{host}:{port}"], behaviors={"tcp_nodelay": True})

    def python_memcached_client() -> t.Any:
        return __import__("memcache").Client([f"{host}:{port}"])

    return {
        "redis": lambda: redis.Redis(host=host, port=port, socket_timeout=30),
        "memcached": pymemcache_client,
        "pylibmc": pylibmc_client,
        "python-memcached": python_memcached_client,
    }


@pytest.mark.parametrize(
    ("store", "one_for_each"),
    [("redis", False), ("memcached", False), ("python-memcached", False), ("pylibmc", True)],
)
def test_round_trips(make_site: SiteFactory, store: str, one_for_each: bool) -> None:
    """Deleting two hundred entries takes as many round trips as the README says."""
    site = make_site(store)
    if store == "redis":
        parts = urllib.parse.urlsplit(servers.redis_url())
        address = (str(parts.hostname), int(parts.port or 6379))
    else:
        address = servers.memcached_address()
    keys = [f"{site.prefix}{n}" for n in range(200)]
    with Proxy(address) as proxy:
        interface = t.cast(t.Any, site.app.session_interface)
        real = interface.client
        interface.client = through(proxy)[store]()
        entries_of(interface).delete(keys[:1])
        before = proxy.round_trips
        entries_of(interface).delete(keys)
        count = proxy.round_trips - before
        getattr(interface.client, "close", lambda: None)()
        getattr(interface.client, "disconnect_all", lambda: None)()
        interface.client = real
    if one_for_each:
        assert count >= 200
    else:
        # One, and for some clients the connection; more only if the network splits it.
        assert 1 <= count < 10


def test_round_trips_to_a_cluster(make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster, each of the three nodes gets a single command."""
    site = make_site("cluster")
    assert len(site.redis.get_primaries()) == 3
    commands: list[str] = []
    send = redis.Connection.send_packed_command

    def note(connection: redis.Connection, *arguments: t.Any, **options: t.Any) -> None:
        commands.append(str(connection.port))
        send(connection, *arguments, **options)

    entries_of(site.app.session_interface).delete([f"{site.prefix}{n}" for n in range(200)])
    monkeypatch.setattr(redis.Connection, "send_packed_command", note)
    entries_of(site.app.session_interface).delete([f"{site.prefix}{n}" for n in range(200)])
    assert len(commands) == len(set(commands)) == 3


def test_round_trips_to_dynamodb(make_site: SiteFactory) -> None:
    """On DynamoDB, one request deletes twenty-five entries."""
    site = make_site("dynamodb")
    requests: list[t.Any] = []

    def note(**arguments: t.Any) -> None:
        requests.append(arguments)

    events = t.cast(t.Any, site.app.session_interface).store.meta.client.meta.events
    events.register("before-call.dynamodb.BatchWriteItem", note)
    try:
        entries_of(site.app.session_interface).delete([f"{n}" for n in range(101)], timeout=60)
    finally:
        events.unregister("before-call.dynamodb.BatchWriteItem", note)
    assert len(requests) == 5


def test_round_trips_to_mongodb(make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """On MongoDB, one request deletes all entries."""
    site = make_site("mongodb")
    store = t.cast(t.Any, site.app.session_interface).store
    requests: list[t.Any] = []
    delete = store.delete_many
    monkeypatch.setattr(
        store, "delete_many", lambda *filters: (requests.append(filters), delete(*filters))[1]
    )
    entries_of(site.app.session_interface).delete([f"{n}" for n in range(1000)])
    assert len(requests) == 1


def test_round_trips_to_sql(make_site: SiteFactory) -> None:
    """In SQL, one statement deletes all entries."""
    site = make_site("sqlalchemy")
    with site.count_statements() as statements, site.context():
        entries_of(site.app.session_interface).delete([f"{n}" for n in range(1000)])
    assert len(statements) == 1


def test_sql_store_with_its_own_bind(make_site: SiteFactory, tmp_path: Path) -> None:
    """A SQL store with its own bind has its entries deleted there."""
    site = make_site(
        "sqlalchemy",
        SQLALCHEMY_BINDS={"sessions": f"sqlite:///{tmp_path}/sessions.db"},
        SESSION_SQLALCHEMY_BIND_KEY="sessions",
        SESSION_SQLALCHEMY_TABLE="web_sessions",
    )
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    assert len(site.signed_in_entries()) == 2
    chrome.post("/password", password="new")
    assert len(site.signed_in_entries()) == 1
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


@pytest.fixture
def schema(databases: t.Callable[[str], str | None]) -> t.Iterator[str]:
    """Yield a schema on PostgreSQL, dropped after the site that uses it."""
    engine = sa.create_engine(str(databases("postgresql")), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("web"))
    yield "web"
    with engine.begin() as connection:
        connection.execute(sa.schema.DropSchema("web", cascade=True))


def test_sql_store_in_its_own_schema(schema: str, make_site: SiteFactory) -> None:
    """A SQL store with its own schema on PostgreSQL has its entries deleted there."""
    site = make_site("sqlalchemy", "postgresql", SESSION_SQLALCHEMY_SCHEMA=schema)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    chrome.post("/password", password="new")
    assert len(site.signed_in_entries()) == 1
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "client", ["memcached", "pylibmc", "python-memcached", "pymemcache-hashed"]
)
def test_memcached_is_down(make_site: SiteFactory, client: str) -> None:
    """With memcached down, every client's deletion raises, although some fail silently."""
    site = make_site(client)
    interface = t.cast(t.Any, site.app.session_interface)
    real = interface.client
    address = ("127.0.0.1", servers.free_port())
    kinds = {
        "memcached": lambda: __import__("pymemcache").Client(address),
        "pymemcache-hashed": lambda: __import__("pymemcache").HashClient([address]),
        "pylibmc": lambda: __import__("pylibmc").Client(
            [f"{address[0]}:{address[1]}"], behaviors={"tcp_nodelay": True}
        ),
        "python-memcached": lambda: __import__("memcache").Client([f"{address[0]}:{address[1]}"]),
    }
    interface.client = kinds[client]()
    with pytest.raises(Exception, match=r".") as error:
        entries_of(interface).delete(["a", "b"])
    assert not isinstance(error.value, (AttributeError, TypeError, TimeoutError))
    interface.client = real


def test_memcached_client_of_another_library(make_site: SiteFactory) -> None:
    """A memcached client of another library deletes entries one by one."""
    site = make_site("memcached")
    deleted: list[str] = []

    class Client:
        def delete(self, key: str) -> None:
            deleted.append(key)

    interface = t.cast(t.Any, site.app.session_interface)
    real, interface.client = interface.client, Client()
    entries_of(interface).delete(["a", "b"])
    interface.client = real
    assert deleted == ["a", "b"]


def test_pylibmc_is_cloned(make_site: SiteFactory) -> None:
    """pylibmc's client is cloned, because threads can't share it.

    The real one is tested on Pythons that have a wheel.
    """
    site = make_site("memcached")
    deleted: list[str] = []

    class Clone:
        def delete_multi(self, keys: list[str]) -> None:
            deleted.extend(keys)

    class Client:
        __module__ = "pylibmc.client"

        def clone(self) -> Clone:
            return Clone()

    interface = t.cast(t.Any, site.app.session_interface)
    real, interface.client = interface.client, Client()
    entries_of(interface).delete(["a", "b"])
    interface.client = real
    assert deleted == ["a", "b"]


# -- a store that hangs ------------------------------------------------------------------------


class Hanging(SimpleCache):
    """A cache whose deletions block until released."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.asked = 0

    def delete(self, key: str) -> bool:
        self.asked += 1
        self.goes_on.wait(30)
        return super().delete(key)


def test_store_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """34: a hanging store is abandoned after a timeout, and not called again until it answers."""
    monkeypatch.setattr(entries, "TIMEOUT", 0.1)
    cache = Hanging()
    deletion = entries_of(CacheLibSessionInterface(client=cache))
    with pytest.raises(TimeoutError, match="did not answer"):
        deletion.delete(["a"])
    with pytest.raises(TimeoutError, match="has not answered yet"):
        deletion.delete(["b"])
    assert cache.asked == 1
    cache.goes_on.set()
    for thread in deletion._hanging:
        thread.join(30)
    deletion.delete(["c"])
    assert cache.asked == 2


def test_connection_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """34: after a pause, a hanging store is called again on another connection, up to a limit."""
    monkeypatch.setattr(entries, "TIMEOUT", 0.1)
    monkeypatch.setattr(entries, "_PAUSE", 0.0)
    monkeypatch.setattr(entries, "_MOST_HANGING", 3)
    cache = Hanging()
    deletion = entries_of(CacheLibSessionInterface(client=cache))
    for _ in range(3):
        with pytest.raises(TimeoutError, match="did not answer"):
            deletion.delete(["a"])
    with pytest.raises(TimeoutError, match="has not answered yet"):
        deletion.delete(["a"])
    assert cache.asked == 3
    cache.goes_on.set()
    for thread in deletion._hanging:
        thread.join(30)
    deletion.delete(["b"])
    assert cache.asked == 4


# -- custom session interfaces -----------------------------------------------------------------


class OwnSession(CallbackDict[str, t.Any], SessionMixin):
    sid: str
    modified = False

    def __init__(self, initial: t.Any, sid: str) -> None:
        def changed(_: t.Any) -> None:
            self.modified = True

        super().__init__(initial, changed)
        self.sid = sid


class OwnInterface(SessionInterface):
    """A custom session interface that stores sessions in memory."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, t.Any]] = {}

    def open_session(self, app: Flask, request: t.Any) -> OwnSession:
        sid = request.cookies.get("session", "")
        data = self.entries.get(own_key(self, sid))
        return OwnSession(data, sid if data is not None else secrets.token_hex())

    def save_session(self, app: Flask, session: t.Any, response: Response) -> None:
        if session:
            self.entries[own_key(self, session.sid)] = dict(session)
            response.set_cookie("session", session.sid)
        elif session.modified:
            response.delete_cookie("session")


def own_key(_: object, session_id: str) -> str:
    return hashlib.sha256(session_id.encode()).hexdigest()


def own_delete(interface: OwnInterface, keys: t.Sequence[str]) -> None:
    for key in keys:
        interface.entries.pop(key, None)


@pytest.fixture
def own_site(make_site: SiteFactory) -> t.Iterator[Site]:
    site = make_site("cookie", init=False)
    site.app.session_interface = OwnInterface()
    yield site
    entries._registered.clear()


def set_up(site: Site) -> None:
    site.sessions.init_app(site.app)
    with site.context():
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="x"))
        site.db.session.commit()


def test_interface_of_an_unknown_kind(own_site: Site) -> None:
    """58: an unknown session interface raises an error at start-up that says what to do."""
    with pytest.raises(ConfigurationError, match=r"'OwnInterface'.*'register_session_store'"):
        own_site.sessions.init_app(own_site.app)


def test_registered_interface(own_site: Site) -> None:
    """With a registered interface, ids rotate, copies die and entries are deleted."""
    register_session_store(OwnInterface, own_delete, key=own_key)
    set_up(own_site)
    interface = t.cast(OwnInterface, own_site.app.session_interface)
    firefox, chrome = own_site.browser("Firefox"), own_site.browser("Chrome")
    firefox.post("/cart", item="book")
    fixed = firefox.cookies["session"]
    firefox.login()
    chrome.login()
    assert firefox.cookies["session"] != fixed
    assert len(interface.entries) == 2
    copy = chrome.copy()
    chrome.post("/password", password="new")
    assert len(interface.entries) == 1
    assert chrome.is_signed_in
    assert not firefox.is_signed_in
    assert not copy.is_signed_in
    assert {row.store_id for row in own_site.rows()}.isdisjoint(
        browser.cookies.get("session") for browser in (firefox, chrome, copy)
    )
    assert chrome.post("/logout").status_code == 200
    assert not chrome.is_signed_in


def test_interface_that_stores_nothing(own_site: Site) -> None:
    """An interface registered without a function is treated like signed cookies."""

    class Cookies(SessionInterface):
        def __init__(self) -> None:
            self._real = SecureCookieSessionInterface()

        def open_session(self, app: Flask, request: t.Any) -> t.Any:
            return self._real.open_session(app, request)

        def save_session(self, app: Flask, session: t.Any, response: Response) -> None:
            self._real.save_session(app, session, response)

    own_site.app.session_interface = Cookies()
    register_session_store(Cookies, None)
    set_up(own_site)
    firefox, chrome = own_site.browser("Firefox"), own_site.browser("Chrome")
    firefox.login()
    chrome.login()
    chrome.post("/password", password="new")
    assert [row.store_id for row in own_site.rows()] == [None, None]
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


def test_registered_subclass_of_a_known_interface(make_site: SiteFactory) -> None:
    """A function registered for a subclass takes precedence over the built-in one."""
    site = make_site("files", init=False)

    class Files(CacheLibSessionInterface):
        pass

    deleted: list[str] = []
    site.app.session_interface = Files(client=site.cache)
    register_session_store(Files, lambda _, keys: deleted.extend(keys))
    try:
        set_up(site)
        firefox = site.browser()
        firefox.login()
        key = site.rows()[0].store_id
        firefox.post("/logout")
    finally:
        entries._registered.clear()
    assert key in deleted


def test_client_replaced_by_flask_session(make_site: SiteFactory) -> None:
    """58: a client that Flask-Session silently replaces raises an error at start-up."""
    site = make_site("cookie", init=False)
    cluster = servers.redis_cluster()
    site.app.config.update(SESSION_TYPE="redis", SESSION_REDIS=cluster)
    with pytest.warns(RuntimeWarning, match="No valid Redis instance"):
        Session(site.app)
    with pytest.raises(
        ConfigurationError, match=r"'SESSION_REDIS'.*'app.session_interface.client'"
    ):
        site.sessions.init_app(site.app)


def test_signed_cookies_have_no_entries(make_site: SiteFactory) -> None:
    """Signed cookies have no entries to delete."""
    site: Site = make_site("cookie")
    entries_of(site.app.session_interface).delete(["anything"])
    site.browser().login()
    assert site.rows()[0].store_id is None


def test_purge_leaves_the_session_of_the_app_alone(make_site: SiteFactory) -> None:
    """A purge doesn't commit the app's own open changes."""
    site = make_site("sqlalchemy")
    site.browser("Firefox").login()
    with site.context():
        site.user("bob").note = "not committed"
        with site.db.session.session_factory() as other:
            site.sessions.revoke_all(other.get(site.User, 1), session=other)
            other.commit()
        site.db.session.rollback()
        assert site.user("bob").note is None
    assert not site.entries()


# -- behavior of clients -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pooled", "hashed and pooled"])
def test_purge_leaves_the_connections_of_others_alone(make_site: SiteFactory, kind: str) -> None:
    """Requests on a connection pool continue while a purge uses connections of its own."""
    from pymemcache import HashClient, PooledClient

    address = servers.memcached_address()
    client = (
        PooledClient(address, timeout=10)
        if kind == "pooled"
        else HashClient([address], use_pooling=True, timeout=10)
    )
    site = make_site("memcached", SESSION_MEMCACHED=client)
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    readers = [site.browser(str(number)) for number in range(3)]
    for reader in readers:
        reader.login("bob")
    codes: list[int] = []

    def read(reader: Browser) -> None:
        codes.append(reader.get("/cart").status_code)

    def come_and_go() -> None:
        ann = site.browser()
        ann.login()
        ann.post("/logout")

    with all_the_while([functools.partial(read, reader) for reader in readers]):
        for _ in range(40):
            come_and_go()
    assert set(codes) == {200}


def test_hash_client_ignores_errors(make_site: SiteFactory) -> None:
    """A client that ignores errors for the app still reports them to a purge."""
    from pymemcache import HashClient

    site = make_site("memcached")
    interface = t.cast(t.Any, site.app.session_interface)
    real = interface.client
    interface.client = HashClient([("127.0.0.1", servers.free_port())], ignore_exc=True)
    for _ in range(2):
        with pytest.raises(OSError, match=r"."):
            entries_of(interface).delete(["a", "b"])
    interface.client = real


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_of_two_memcached_servers_is_down(make_site: SiteFactory) -> None:
    """With one of two memcached servers down, the deletion raises, and clears the other."""
    import memcache

    site = make_site("python-memcached")
    interface = t.cast(t.Any, site.app.session_interface)
    real = interface.client
    host, port = servers.memcached_address()
    client = memcache.Client([f"{host}:{port}", f"127.0.0.1:{servers.free_port()}"])
    interface.client = client
    keys = [f"{site.prefix}{number}" for number in range(20)]
    for key in keys:
        client.set(key, "x")
    assert any(client.get(key) for key in keys)
    with pytest.raises(ConnectionError, match="did not answer"):
        entries_of(interface).delete(keys)
    assert not any(client.get(key) for key in keys)
    client.disconnect_all()
    interface.client = real


def test_timeout_that_is_not_an_exception(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36: a timeout that isn't an 'Exception', such as gevent's, doesn't escape the commit."""

    class Timeout(BaseException):
        pass

    def fail(*_: str) -> None:
        raise Timeout

    site = make_site("memory")
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    monkeypatch.setattr(site.cache, "delete_many", fail)
    assert chrome.post("/password", password="new").status_code == 200
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


def test_interface_with_a_known_name(make_site: SiteFactory) -> None:
    """A custom interface stops the app even if it has the name of a known one."""

    class RedisSessionInterface(OwnInterface):
        pass

    site = make_site("cookie", init=False)
    site.app.session_interface = RedisSessionInterface()
    with pytest.raises(ConfigurationError, match="register_session_store"):
        site.sessions.init_app(site.app)


def test_error_of_a_sql_store_shows_no_key(make_site: SiteFactory) -> None:
    """54: a SQL store's error shows no key, which without hashing contains the session id."""
    site = make_site("sqlalchemy", SESSION_REGISTRY_HASH_SESSION_IDS=False)
    firefox = site.browser()
    firefox.login()
    id = firefox.cookies["session"]
    with site.context():
        site.db.session.execute(sa.text("DROP TABLE sessions"))
        site.db.session.commit()
        with pytest.raises(sa.exc.StatementError) as error:
            entries_of(site.app.session_interface).delete([f"{site.prefix}{id}"])
    assert "sessions" in str(error.value)
    assert id not in str(error.value)
