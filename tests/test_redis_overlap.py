"""The check with the records in Redis: the waits for Redis and for the database overlap."""

from __future__ import annotations

import dataclasses
import threading
import time
import typing as t
import uuid
from collections.abc import Iterator

import pytest
import redis
import servers
import sqlalchemy as sa
from conftest import SiteFactory
from own_servers import OwnServer, own_redis, redis_client
from redis.backoff import NoBackoff
from redis.retry import Retry
from site_under_test import Site, days_ago
from test_redis_client import KINDS, client_of, session_of

from flask_session_registry import RecordsError
from flask_session_registry._records.redis import RedisClient, RedisRecords, early, scripts
from flask_session_registry._records.redis.scripts import Script

pytestmark = pytest.mark.table

NAMES = ("user_id", "generation")
#: In seconds.
TIMEOUT = 0.5


@pytest.fixture
def away(make_site: SiteFactory) -> Site:
    """Return a site whose user sessions are in Redis, with one session of its first user."""
    site = make_site(records="redis")
    site.browser().login()
    return site


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of what is sent to Redis and read from it, in order."""
    noted: list[str] = []
    kind = redis.connection.AbstractConnection

    def note(name: str, event: str) -> None:
        method = getattr(kind, name)

        def noting(*arguments: t.Any, **options: t.Any) -> t.Any:
            noted.append(event)
            return method(*arguments, **options)

        monkeypatch.setattr(kind, name, noting)

    note("send_packed_command", "sent")
    note("read_response", "read")
    return noted


def records_of(site: Site) -> RedisRecords:
    return t.cast(RedisRecords, site.registry.records)


def noting_select(site: Site, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    users = site.registry.users
    load = users.load

    def noting(key: t.Any, **options: t.Any) -> t.Any:
        events.append(f"user {key}")
        return load(key, **options)

    monkeypatch.setattr(users, "load", noting)


def test_waits_overlap(away: Site, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis works while the database is asked for the user."""
    (row,) = away.rows()
    noting_select(away, events, monkeypatch)
    with away.context():
        records_of(away).load(row.id.hex)
        events.clear()
        loaded = records_of(away).load(row.id.hex, 1)
    assert events == ["sent", "user 1", "read"]
    assert loaded is not None
    assert (loaded.user.name, loaded.user_id, loaded.generation) == ("ann", 1, row.generation)


@pytest.mark.parametrize("guess", ["1", True, None, 1.0])
def test_other_values_are_no_guess(
    away: Site, events: list[str], monkeypatch: pytest.MonkeyPatch, guess: t.Any
) -> None:
    """Only a value of the type of the user's key is taken for one."""
    (row,) = away.rows()
    noting_select(away, events, monkeypatch)
    with away.context():
        records_of(away).load(row.id.hex)
        events.clear()
        loaded = records_of(away).load(row.id.hex, guess)
    assert events == ["sent", "read", "user 1"]
    assert loaded is not None
    assert loaded.user.name == "ann"


@pytest.mark.parametrize("guess", [2, 99])
def test_wrong_guess(away: Site, guess: int) -> None:
    """The record says whose session it is, whether the guessed user exists or not."""
    (row,) = away.rows()
    with away.context():
        loaded = records_of(away).load(row.id.hex, guess)
        assert loaded is not None
        assert (loaded.user.name, loaded.user_id) == ("ann", 1)


def test_refused(away: Site) -> None:
    """A session that is unknown or has ended is refused, and so is that of a deleted user."""
    (row,) = away.rows()
    records = records_of(away)
    with away.context():
        assert records.load(uuid.uuid4().hex, 1) is None
        away.db.session.execute(sa.delete(away.User).filter_by(name="ann"))
        assert records.load(row.id.hex, 1) is None
        away.db.session.rollback()
        assert records.load(row.id.hex, 1) is not None
        away.change(revoked_at=days_ago(0))
        assert records.load(row.id.hex, 1) is None


def test_refresh(away: Site) -> None:
    """A guessed user is overwritten, too."""
    (row,) = away.rows()
    with away.context():
        user = away.user("ann")
        away.db.session.execute(
            sa.update(away.User).values(note="new"),
            execution_options={"synchronize_session": False},
        )
        records_of(away).load(row.id.hex, 1)
        assert user.note != "new"
        records_of(away).load(row.id.hex, 1, refresh=True)
        assert user.note == "new"


class Interrupted(BaseException):
    """Such as a worker's timeout."""


@pytest.mark.parametrize("error", [sa.exc.OperationalError("", {}, Exception()), Interrupted()])
def test_no_reply_is_left_unread(
    away: Site, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """If the database fails meanwhile, the next command doesn't read this one's reply."""
    (row,) = away.rows()
    records = records_of(away)
    pool = records.redis.client.connection_pool

    def fail(*_: t.Any, **__: t.Any) -> t.Any:
        raise error

    with away.context():
        with monkeypatch.context() as context:
            context.setattr(away.registry.users, "load", fail)
            with pytest.raises(type(error)):
                records.load(row.id.hex, 1)
        connection = pool.get_connection()
        assert not connection.can_read()
        connection.send_command("ECHO", "mine")
        assert connection.read_response() == b"mine"
        pool.release(connection)
        assert records.load(row.id.hex, 1) is not None
    assert not pool._in_use_connections


# -- each kind of client ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_client(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of client loads the same, also where the script is unknown."""
    with client_of(kind) as client:
        session = session_of(client, generation=3)
        for _ in range(2):
            with client.loading(session.id, NAMES) as loaded:
                assert loaded() == [17, 3]
            with client.loading(uuid.uuid4(), NAMES) as loaded:
                assert loaded() is None
            script = Script.of(scripts.LOAD.text, f"-- {uuid.uuid4().hex}")
            monkeypatch.setattr(scripts, "LOAD", script)
        with client.loading(session.id, NAMES):
            """Without asking for the result."""
        assert client.load(session.id, NAMES) == [17, 3]


class Traced(redis.Redis):
    """A client that sees each command."""

    def execute_command(self, *arguments: t.Any, **options: t.Any) -> t.Any:
        return super().execute_command(*arguments, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda url: Traced.from_url(url),
        lambda url: redis.Redis.from_url(url, single_connection_client=True),
        lambda url: redis.Redis.from_pool(redis.BlockingConnectionPool.from_url(url)),
    ],
    ids=["traced", "one connection", "blocking pool"],
)
def test_clients_that_send_one_after_the_other(make: t.Any) -> None:
    """Others are used in the ordinary way."""
    client = RedisClient(make(servers.redis_url()), f"house{uuid.uuid4().hex}:")
    session = session_of(client)
    assert early.send(client.client, "PING") is None
    with client.loading(session.id, NAMES) as loaded:
        assert loaded() == [17, 0]
    for key in client.client.scan_iter(f"{client._prefix}*", count=10_000):
        client.client.delete(key)
    client.client.close()


def test_pool_that_needs_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before redis-py 5.3, a pool had to be told the command."""
    client = redis.Redis.from_url(servers.redis_url())
    pool = client.connection_pool
    told: list[str] = []

    class OldPool:
        max_connections = 2

        def get_connection(self, command_name: str, *_: t.Any, **__: t.Any) -> t.Any:
            told.append(command_name)
            return pool.get_connection()

        def release(self, connection: t.Any) -> None:
            pool.release(connection)

    monkeypatch.setattr(client, "connection_pool", OldPool())
    reply = early.send(client, "ECHO", "text")
    assert reply is not None
    assert reply.read() == b"text"
    reply.close()
    assert told == ["ECHO"]
    pool.disconnect()


def test_server_that_is_moved() -> None:
    """A connection that its server wants to be closed is closed."""

    @dataclasses.dataclass
    class Connection:
        log: list[str]

        def read_response(self) -> str:
            return "reply"

        def should_reconnect(self) -> bool:
            return True

        def disconnect(self) -> None:
            self.log.append("disconnect")

    class Pool:
        def release(self, connection: Connection) -> None:
            connection.log.append("release")

    connection = Connection([])
    assert early.EarlyReply(Pool(), connection, threading.Semaphore()).read() == "reply"
    assert connection.log == ["disconnect", "release"]


@pytest.fixture
def small() -> Iterator[RedisClient]:
    """Return a client whose pool has two connections."""
    pool = redis.ConnectionPool.from_url(servers.redis_url(), max_connections=2)
    yield RedisClient(redis.Redis(connection_pool=pool), f"house{uuid.uuid4().hex}:")
    pool.disconnect()


def free_places(client: RedisClient) -> int:
    return t.cast(int, vars(early._places_in(client.client.connection_pool))["_value"])


def test_half_of_a_pool_is_left_to_others(small: RedisClient) -> None:
    """Connections that are held until the database has answered don't use the pool up."""
    session = session_of(small)
    try:
        with small.loading(session.id, NAMES) as one, small.loading(session.id, NAMES) as other:
            assert free_places(small) == 0
            assert other() == one() == [17, 0]
        for _ in range(3):
            with small.loading(session.id, NAMES):
                pass
    finally:
        small.client.delete(*small.client.keys(f"{small._prefix}*"))
    assert free_places(small) == 1


def test_no_connection_takes_no_place(small: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that has none gives its error, as to any other command, and the place is free."""

    def fail(*_: object) -> t.NoReturn:
        raise redis.ConnectionError

    with monkeypatch.context() as context:
        context.setattr(small.client.connection_pool, "get_connection", fail)
        with pytest.raises(RecordsError), small.loading(uuid.uuid4(), NAMES):
            pass
    assert free_places(small) == 1


# -- a Redis that is really stopped or hung --------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with own_redis() as started:
        yield started


def test_restarted_between_requests(server: OwnServer) -> None:
    """A Redis that was restarted is asked again, over another connection."""
    client = RedisClient(redis.Redis.from_url(server.url), "house:")
    session = session_of(client)
    with client.loading(session.id, NAMES) as loaded:
        assert loaded() == [17, 0]
    server.kill()
    server.start()
    with client.loading(session.id, NAMES) as loaded:
        assert loaded() == [17, 0]
    with client.loading(session.id, NAMES) as loaded:
        server.kill()
        server.start()
        assert loaded() == [17, 0]
    client.client.close()


def test_broken_at_the_first_byte(server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the command can't be sent, the client sends it again in the ordinary way."""
    client = RedisClient(redis.Redis.from_url(server.url), "house:")
    session = session_of(client)
    kind = redis.connection.AbstractConnection

    def fail(*_: t.Any) -> None:
        raise redis.ConnectionError("Broken pipe")

    with monkeypatch.context() as context:
        context.setattr(kind, "send_command", fail)
        assert early.send(client.client, "PING") is None
        context.undo()
        with client.loading(session.id, NAMES) as loaded:
            assert loaded() == [17, 0]
    assert not client.client.connection_pool._in_use_connections
    client.client.close()


def test_hangs(server: OwnServer) -> None:
    """A Redis that hangs is waited for once, if the client doesn't try it again."""
    client = RedisClient(redis_client(server.url, timeout=TIMEOUT), "house:")
    session = session_of(client)
    server.hang()
    begin = time.monotonic()
    try:
        with (
            client.loading(session.id, NAMES) as loaded,
            pytest.raises(RecordsError, match=r"\(TimeoutError\)"),
        ):
            loaded()
    finally:
        server.go_on()
    assert TIMEOUT <= time.monotonic() - begin < 2 * TIMEOUT
    assert client.load(session.id, NAMES) == [17, 0]
    client.client.close()


def test_hangs_for_a_moment(server: OwnServer) -> None:
    """The client tries again as often as it would otherwise."""
    made = redis.Redis.from_url(server.url, socket_timeout=TIMEOUT, retry=Retry(NoBackoff(), 3))
    client = RedisClient(made, "house:")
    session = session_of(client)
    server.hang()
    later = threading.Timer(1.5 * TIMEOUT, server.go_on)
    later.start()
    with client.loading(session.id, NAMES) as loaded:
        assert loaded() == [17, 0]
    later.join()
    client.client.close()


def test_down(server: OwnServer) -> None:
    """A Redis that is down is an error before the database is asked."""
    client = RedisClient(redis_client(server.url, timeout=TIMEOUT), "house:")
    server.kill()
    try:
        with (
            pytest.raises(RecordsError, match=r"\(ConnectionError\)"),
            client.loading(uuid.uuid4(), NAMES),
        ):
            pytest.fail("The block began.")
    finally:
        server.start()
    client.client.close()
