"""The client that keeps user sessions in Redis, on each kind of Redis."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import traceback
import typing as t
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import servers

from flask_session_registry import RecordsError
from flask_session_registry._records.base import StoreEntry
from flask_session_registry._records.redis import RedisClient, RedisUserSession, scripts
from flask_session_registry._records.redis.reporting import reporting
from flask_session_registry._records.redis.scripts import Script
from flask_session_registry._records.redis.session import FIELDS, KeyHolder, Tombstone

NOW = dt.datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=dt.timezone.utc)
NOBODY = uuid.UUID(int=7)
STANDS = {"revoked_at": None}


def plain_client(prefix: str) -> RedisClient:
    return RedisClient(redis.Redis.from_url(servers.redis_url()), prefix)


def decoding_client(prefix: str) -> RedisClient:
    return RedisClient(redis.Redis.from_url(servers.redis_url(), decode_responses=True), prefix)


def cluster_client(prefix: str) -> RedisClient:
    return RedisClient(servers.redis_cluster(), prefix)


def sentinel_client(prefix: str) -> RedisClient:
    return RedisClient(servers.redis_sentinel().master_for("sessions"), prefix)


KINDS: dict[str, Callable[[str], RedisClient]] = {
    "redis": plain_client,
    "redis, decoded": decoding_client,
    "redis cluster": cluster_client,
    "redis sentinel": sentinel_client,
}


@contextlib.contextmanager
def client_of(kind: str) -> Iterator[RedisClient]:
    """Yield a client of one of the kinds, and delete what it has written."""
    prefix = f"house{uuid.uuid4().hex}:"
    made = KINDS[kind](prefix)
    yield made
    for key in made.client.scan_iter(f"{prefix}*", count=10_000):
        made.client.delete(key)
    made.client.close()


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest) -> Iterator[RedisClient]:
    with client_of(request.param) as made:
        yield made


def moment(days: float) -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc).replace(microsecond=123456) + dt.timedelta(days=days)


def session_of(client: RedisClient, user_id: t.Any = 17, **values: t.Any) -> RedisUserSession:
    """Store a session, due in a day."""
    id = client.assign_id(uuid.uuid4(), user_id)
    values = {"user_id": user_id, "due_at": moment(1)} | values
    times = dict.fromkeys(("created_at", "last_seen_at", "authenticated_at"), moment(0))
    session = RedisUserSession(id=id, **(times | values))
    client.add(session)
    return session


def ids(batches: Iterator[list[RedisUserSession]]) -> list[uuid.UUID]:
    return [one.id for batch in batches for one in batch]


@pytest.mark.parametrize("user_id", [17, -1, "ann:1", "", "{a}é \n", uuid.UUID(int=5)])
def test_all_attributes_are_stored(client: RedisClient, user_id: t.Any) -> None:
    """All attributes come back, to the microsecond, also when the optional ones are missing."""
    full = session_of(
        client,
        user_id,
        generation=3,
        store_id="session:a",
        ip_address="2001:db8::1",
        user_agent='Fire"fox/1.0 \\ {} \U0001f98a é',
        rotated_at=NOW,
        remember_until=moment(365),
        fingerprint="f" * 64,
        revoked_at=moment(0),
        revoked_reason="a / reason",
        revocation=uuid.uuid4(),
        purged_at=moment(0),
    )
    assert all(getattr(full, name) is not None for name in FIELDS)
    sparse = session_of(client, user_id)
    assert client.get([full.id]) == {full.id: full}
    assert client.get([sparse.id, full.id, uuid.uuid4()]) == {sparse.id: sparse, full.id: full}
    assert client.get([uuid.uuid4()]) == {}
    assert client.get([]) == {}


@pytest.mark.parametrize("length", [64, 65, 128, 129, 512, 700])
def test_long_user_agent(client: RedisClient, length: int) -> None:
    """A user agent of any length comes back, and nothing of it remains after another one."""
    agent = "".join(chr(ord("a") + number % 26) for number in range(length))
    session = session_of(client, user_agent=agent)
    assert client.get([session.id])[session.id].user_agent == agent
    for other in ("x" * 70, "short", None):
        client.update([session.id], {"user_agent": other}, where={})
        assert client.get([session.id])[session.id].user_agent == other


def test_compact(client: RedisClient) -> None:
    """Redis stores a session in the form that needs the least memory."""
    session = session_of(
        client,
        # As the registry makes Flask-Session form it.
        store_id=f"session:{'0f' * 32}",
        ip_address="2001:db8::1",
        user_agent="Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 "
        "(KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
        fingerprint="f" * 64,
    )
    values = {"revoked_at": NOW, "revoked_reason": "password_changed", "revocation": NOBODY}
    client.update([session.id], values, where={})
    form = client.client.object("encoding", client._key(session.id))
    assert form in (b"listpack", b"ziplist", "listpack", "ziplist")


def test_returned_session_is_a_copy(client: RedisClient) -> None:
    """A returned session is a copy: changing it doesn't change what is stored."""
    session = session_of(client)
    client.get([session.id])[session.id].generation = 5
    session.generation = 7
    assert client.get([session.id])[session.id].generation == 0


def test_update(client: RedisClient) -> None:
    """An update sets only the named values, and only where the condition holds."""
    one, other = session_of(client, generation=1, fingerprint="a"), session_of(client)
    ended = session_of(client, revoked_at=NOW)
    values = {"generation": 2, "fingerprint": None, "store_id": "key", "last_seen_at": NOW}
    where = STANDS | {"generation": 1}
    changed = client.update([one.id, other.id, ended.id, uuid.uuid4()], values, where=where)
    expected = dataclasses.replace(one, **values)
    assert changed == [StoreEntry(one.id, 17, "key")]
    assert client.get([one.id, other.id, ended.id]) == {
        one.id: expected,
        other.id: other,
        ended.id: ended,
    }
    assert client.update([], values, where={}) == []
    assert client.update([ended.id], {"generation": 9}, where={})
    assert client.get([ended.id])[ended.id].generation == 9


def test_choices(client: RedisClient) -> None:
    """A condition may allow any of several values, and refuse others, missing ones included."""
    none, a, b, c = (session_of(client, fingerprint=value) for value in (None, "a", "b", "c"))
    every = [none.id, a.id, b.id, c.id]

    def meant(where: dict[str, t.Any], unless: dict[str, t.Any]) -> list[uuid.UUID]:
        changed = client.update(every, {"ip_address": "::1"}, where=where, unless=unless)
        return [one.id for one in changed]

    assert meant({"fingerprint": frozenset([None, "a", "x"])}, {}) == [none.id, a.id]
    assert meant({"fingerprint": frozenset()}, {}) == []
    assert meant({}, {"fingerprint": "b"}) == [none.id, a.id, c.id]
    assert meant({}, {"fingerprint": frozenset([None, "b"])}) == [a.id, c.id]
    assert meant({"fingerprint": frozenset("ab")}, {"fingerprint": "b"}) == [a.id]


def test_load(client: RedisClient) -> None:
    """Only the named attributes of an active session are read."""
    session = session_of(client, "ann", generation=3)
    names = ["generation", "user_id", "store_id", "created_at"]
    assert client.load(session.id, names) == [3, "ann", None, session.created_at]
    assert client.load(uuid.uuid4(), names) is None
    client.update([session.id], {"revoked_at": NOW}, where={})
    assert client.load(session.id, names) is None


def test_unknown_script(client: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that doesn't know a script, as after a restart, is sent it."""
    session = session_of(client)
    for name in ("LOAD", "UPDATE"):
        known: Script = getattr(scripts, name)
        # Another text, and not 'SCRIPT FLUSH': other tests use the same server.
        script = Script.of(known.text, f"-- {uuid.uuid4().hex}")
        monkeypatch.setattr(scripts, name, script)
    for _ in range(2):
        assert client.load(session.id, ["user_id"]) == [17]
    assert client.update([session.id], {"revoked_at": NOW}, where=STANDS)


def test_update_is_atomic(client: RedisClient) -> None:
    """Comparison and update are atomic: of several concurrent updates, one succeeds."""
    session = session_of(client)

    def change(_: int) -> int:
        return len(client.update([session.id], {"generation": 1}, where={"generation": 0}))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(change, range(40))) == 1


@pytest.mark.parametrize("user_id", [17, "ann", uuid.UUID(int=5)])
def test_of_users(client: RedisClient, user_id: t.Any) -> None:
    """Active or ended sessions of one or several users come back in order."""
    sessions = [session_of(client, user_id) for _ in range(4)]
    other, ended = session_of(client, "other"), session_of(client, "other", revoked_at=NOW)
    mine = [one.id for one in sessions]
    assert ids(client.of_users([user_id])) == mine
    assert ids(client.of_users([user_id], ended=True)) == []
    client.update([mine[1]], {"revoked_at": NOW}, where=STANDS)
    assert ids(client.of_users([user_id])) == [mine[0], *mine[2:]]
    assert ids(client.of_users([user_id], ended=True)) == [mine[1]]
    assert sorted(ids(client.of_users([user_id, "other"]))) == sorted(
        [mine[0], *mine[2:], other.id]
    )
    assert ids(client.of_users(["nobody"])) == []
    assert ids(client.of_users([])) == []
    assert ids(client.of_users(["other"], ended=True)) == [ended.id]


def test_users_with_like_keys(client: RedisClient) -> None:
    """The number 17 is not the text "17"."""
    number, text = session_of(client, 17), session_of(client, "17")
    assert ids(client.of_users([17])) == [number.id]
    assert ids(client.of_users(["17"])) == [text.id]


def test_many_of_one_user(client: RedisClient) -> None:
    """Many sessions of a user come in batches, and may end during the iteration."""
    mine = [session_of(client).id for _ in range(2100)]
    seen = []
    for batch in client.of_users([17]):
        assert len(batch) <= 1000
        seen += [one.id for one in batch]
        client.update([one.id for one in batch], {"revoked_at": NOW}, where=STANDS)
    assert seen == mine
    assert ids(client.of_users([17])) == []
    assert len(ids(client.of_users([17], ended=True))) == 2100


def test_all(client: RedisClient) -> None:
    mine = [session_of(client, number).id for number in range(20)]
    mine.append(session_of(client, 20, revoked_at=NOW).id)
    client.update(mine[:3], {"revoked_at": NOW}, where={})
    assert sorted(ids(client.all())) == sorted(mine)


def test_due(client: RedisClient) -> None:
    """Sessions are due by their latest 'due_at', and may be removed during the iteration."""
    late, now, never = (session_of(client, n, due_at=moment(n)) for n in (-2, 0, 9))
    assert ids(client.due(moment(-1))) == [late.id]
    assert set(ids(client.due(moment(1)))) == {late.id, now.id}
    assert set(ids(client.due(now.due_at or NOW))) == {late.id, now.id}
    client.update([late.id], {"due_at": moment(5)}, where={})
    client.update([never.id], {"due_at": moment(-5), "revoked_at": NOW}, where={})
    for batch in client.due(moment(1)):
        client.remove([one.id for one in batch])
    assert ids(client.due(moment(1))) == [now.id]


def test_with_key(client: RedisClient) -> None:
    """A store key leads to the last session that had it, even if that has another one now."""
    key, other = f"key {uuid.uuid4().hex}", f"key {uuid.uuid4().hex}"
    one = session_of(client, store_id=key)
    assert client.with_key(key) == KeyHolder(one.id)
    assert client.with_key(other) is None
    client.update([one.id], {"store_id": other, "due_at": moment(2)}, where={})
    assert client.with_key(key) == client.with_key(other) == KeyHolder(one.id)
    next = session_of(client, store_id=key)
    assert client.with_key(key) == KeyHolder(next.id)


def leave(client: RedisClient, session: RedisUserSession, **values: t.Any) -> Tombstone:
    """Let a session leave its key for another one."""
    assert session.store_id is not None
    id = uuid.UUID(hex=session.id.hex[:2] + uuid.uuid4().hex[2:])
    values = {"id": id, "left_at": moment(0)} | values
    tombstone = Tombstone(user_session_id=session.id, store_id=session.store_id, **values)
    changes = {"store_id": f"key {uuid.uuid4().hex}", "due_at": moment(1)}
    client.update([session.id], changes, where={"store_id": session.store_id}, leaves=tombstone)
    return tombstone


def tombstones(client: RedisClient, by: dt.datetime) -> list[Tombstone]:
    return [one for batch in client.tombstones(by) for one in batch]


def test_key_left_behind(client: RedisClient) -> None:
    """The key leads to the session by its tombstone, as long as that is there."""
    session = session_of(client, store_id=f"key {uuid.uuid4().hex}")
    left = leave(client, session, is_linked=True)
    assert client.get_tombstones([left.id, uuid.uuid4()]) == {left.id: left}
    assert client.with_key(left.store_id) == KeyHolder(session.id, left.left_at)
    client.remove_tombstones([left.id], left_by=left.left_at)
    assert client.with_key(left.store_id) is None
    # The session comes back to it.
    client.update([session.id], {"store_id": left.store_id, "due_at": moment(2)}, where={})
    assert client.with_key(left.store_id) == KeyHolder(session.id)


def test_tombstone_that_is_used_again(client: RedisClient) -> None:
    """The key that it kept before is unknown from then on."""
    first = leave(client, session_of(client, store_id="a"))
    second = leave(client, session_of(client, store_id="b"), id=first.id)
    assert client.with_key(first.store_id) is None
    assert client.with_key("b") == KeyHolder(second.user_session_id, second.left_at)


def test_session_that_is_not_changed_leaves_no_key(client: RedisClient) -> None:
    """The tombstone is added together with the change, or not at all."""
    session = session_of(client, store_id="a")
    leave(client, dataclasses.replace(session, store_id="b"))
    assert tombstones(client, moment(1)) == []
    assert client.with_key("b") is None


def test_tombstones(client: RedisClient) -> None:
    """They come up when they were left or later, and go if they were left long enough ago."""
    first, second, third = (
        leave(client, session_of(client, n, store_id=f"{n}"), left_at=moment(-n)) for n in (3, 2, 1)
    )
    found = tombstones(client, moment(-1.5))
    assert {one.id: one for one in found} == {first.id: first, second.id: second}
    client.postpone_tombstones([first.id, second.id, uuid.uuid4()], moment(5))
    assert tombstones(client, moment(0)) == [third]
    every = [first.id, second.id, third.id, uuid.uuid4()]
    client.remove_tombstones(every, left_by=moment(-1.5))
    assert tombstones(client, moment(9)) == [third]
    client.postpone_tombstones([], moment(0))
    client.remove_tombstones([], left_by=moment(0))


def test_unreadable_tombstone_is_lost(client: RedisClient) -> None:
    """An unreadable tombstone counts as missing and leaves its index."""
    left = leave(client, session_of(client, store_id="a"))
    client.client.set(client._key(left.id, "t"), "{broken")
    assert tombstones(client, moment(1)) == []
    assert client.with_key("a") is None
    assert client.client.zcard(f"{client._base(left.id.hex[:2])}stale") == 0


def test_remove(client: RedisClient) -> None:
    """Only ended sessions are removed, and nothing of them is left."""
    standing, ended = session_of(client), session_of(client, revoked_at=NOW)
    other = session_of(client, "other", revoked_at=NOW)
    assert client.remove([standing.id, ended.id, other.id, uuid.uuid4()]) == 2
    assert client.remove([ended.id]) == 0
    assert client.remove([]) == 0
    assert ids(client.all()) == [standing.id]
    assert ids(client.of_users([17], ended=True)) == []


# -- its keys --------------------------------------------------------------------------------------


def keys_of(client: RedisClient) -> list[t.Any]:
    return list(client.client.scan_iter(f"{client._prefix}*", count=10_000))


def test_every_key_expires(client: RedisClient) -> None:
    """Every key expires, indexes included."""
    one = session_of(client, store_id="a", due_at=moment(1))
    leave(client, one, left_at=moment(1))
    client.update([one.id], {"revoked_at": NOW, "due_at": moment(3)}, where=STANDS)
    session_of(client, due_at=moment(0.5))
    keys = keys_of(client)
    assert len(keys) == 9  # Two sessions, a tombstone, four indexes, two store keys.
    for key in keys:
        days = client.client.pttl(key) / 1000 / 3600 / 24
        assert 30 < days < 34 if ":k:" in str(key) else 400 < days < 404


def test_index_lives_as_long_as_what_is_in_it(client: RedisClient) -> None:
    """An index lives as long as its last session, whatever is added or ends later."""
    late = session_of(client, due_at=moment(300))
    session_of(client, due_at=moment(1))
    base = f"{client._prefix}{{{late.id.hex[:2]}}}:"
    for index in ("due", "u:int:17"):
        assert client.client.pttl(base + index) / 1000 / 3600 / 24 > 699


@pytest.mark.parametrize(("days", "lives"), [(30, 400), (199, 400), (201, 601)])
@pytest.mark.parametrize("due", [-300, 0])
def test_marked_session_lives_until_it_is_due(
    client: RedisClient, due: float, days: float, lives: float
) -> None:
    """Marking a session writes its expiry only if it would expire within 200 days of being due."""
    one = session_of(client, due_at=moment(due))
    client.update([one.id], {"revoked_at": NOW, "due_at": moment(0)}, where=STANDS)
    marked = {"purged_at": moment(0), "due_at": moment(days)}
    assert client.mark([one.id], marked, where={"purged_at": None}) == 1
    left = client.client.pttl(client._key(one.id)) / 1000 / 3600 / 24
    assert lives - 0.1 < left < lives + 0.1


def test_index_cleans_itself(client: RedisClient) -> None:
    """Reading an index removes sessions that Redis has dropped."""
    gone, stays = session_of(client, due_at=moment(-1)), session_of(client)
    client.client.delete(client._key(gone.id))
    assert ids(client.of_users([17])) == [stays.id]
    assert ids(client.due(moment(0))) == []
    base = f"{client._prefix}{{{gone.id.hex[:2]}}}:"
    for index in ("due", "u:int:17"):
        assert client.client.zcard(base + index) == 1


def test_keys_of_one_user_share_a_slot(client: RedisClient) -> None:
    """All keys of one user share a slot, except those that map store keys."""
    for store_id in "abc":
        session_of(client, "ann", store_id=store_id)
    leave(client, session_of(client, "ann", store_id="d"))
    session_of(client, "ann", revoked_at=NOW)
    tags = {str(key).partition("{")[2][:3] for key in keys_of(client) if ":k:" not in str(key)}
    assert len(tags) == 1


def test_one_round_trip(client: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check on each request takes one round trip."""
    session = session_of(client)
    sent: list[t.Any] = []
    send = redis.connection.AbstractConnection.send_packed_command

    def note(connection: t.Any, command: t.Any, *arguments: t.Any, **options: t.Any) -> None:
        sent.append(command)
        send(connection, command, *arguments, **options)

    client.load(session.id, ["user_id"])
    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", note)
    assert client.load(session.id, ["user_id"])
    assert len(sent) == 1


def test_store_key_cannot_be_recorded(
    client: RedisClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the store key can't be recorded, the session is still added and can end.

    That key only explains later why a session is gone.
    """

    def fail(*_: t.Any, **__: t.Any) -> t.Any:
        raise redis.ConnectionError("secret")

    monkeypatch.setattr(type(client.client.pipeline()), "execute", fail)
    session = session_of(client, store_id="secret")
    assert client.update([session.id], {"due_at": moment(2)}, where=STANDS)
    assert "Could not note the store key of a session (ConnectionError)" in caplog.text
    assert "secret" not in caplog.text


def test_errors(client: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Redis is down, every method raises an error without the text of its client."""

    def fail(*_: t.Any, **__: t.Any) -> t.Any:
        raise redis.ConnectionError("secret")

    session = session_of(client)
    commands = ("eval", "evalsha", "get", "mget", "zscan", "zrangebyscore")
    for command in commands:
        monkeypatch.setattr(client.client, command, fail)
    calls: list[Callable[[], t.Any]] = [
        lambda: client.add(session),
        lambda: client.get([session.id]),
        lambda: client.get([session.id, uuid.uuid4()]),
        lambda: client.load(session.id, ["user_id"]),
        lambda: client.update([session.id], {"generation": 1}, where={}),
        lambda: client.remove([session.id]),
        lambda: client.with_key("key"),
        lambda: client.get_tombstones([session.id]),
        lambda: client.postpone_tombstones([session.id], moment(1)),
        lambda: client.remove_tombstones([session.id], left_by=moment(1)),
        lambda: ids(client.of_users([17])),
        lambda: list(client.ids_of(17)),
        lambda: ids(client.all()),
        lambda: ids(client.due(moment(2))),
    ]
    for call in calls:
        with pytest.raises(RecordsError, match=r"\(ConnectionError\)") as error:
            call()
        assert "secret" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    "written",
    [
        "text",
        {"nickname": "x"},
        {"user_id": "int:17"},
        {"due_at": "1"},
        {"user_id": "int:17", "due_at": "soon"},
        {"user_id": "17", "due_at": "1"},
        {"user_id": "int:17", "due_at": "1", "created_at": "today"},
    ],
)
def test_unreadable_record_is_lost(client: RedisClient, written: str | dict[str, str]) -> None:
    """An unreadable record counts as missing and doesn't affect others."""
    broken, whole = session_of(client), session_of(client)
    key = client._key(broken.id)
    client.client.delete(key)
    if isinstance(written, str):
        client.client.set(key, written)
    else:
        client.client.hset(key, mapping=written)
    assert client.get([broken.id]) == {}
    assert client.load(broken.id, ["user_id", "created_at"]) is None
    assert client.get([broken.id, whole.id]) == {whole.id: whole}
    assert ids(client.of_users([17])) == ids(client.all()) == [whole.id]
    assert client.remove([broken.id]) == 0


@pytest.mark.parametrize("written", ["text", {"user_id": "int:17"}, {"due_at": "1"}])
def test_unreadable_record_is_not_changed(
    client: RedisClient, written: str | dict[str, str]
) -> None:
    broken, whole = session_of(client), session_of(client)
    key = client._key(broken.id)
    client.client.delete(key)
    if isinstance(written, str):
        client.client.set(key, written)
    else:
        client.client.hset(key, mapping=written)
    changed = client.update([broken.id, whole.id], {"revoked_at": NOW}, where={})
    assert [one.id for one in changed] == [whole.id]
    assert ids(client.of_users([17], ended=True)) == [whole.id]


@pytest.mark.parametrize(
    "written",
    [
        {"user_id": "17"},
        {"store_id": "x"},
        {"store_id": "\x01*"},
        # As development versions wrote it.
        {"store_id": f"prod:{'0f' * 32}"},
        {"store_id": f"blog{'0f' * 32}"},
    ],
)
def test_unreadable_field_does_not_affect_others(
    client: RedisClient, written: dict[str, str]
) -> None:
    """A session with an unreadable key, or user, ends with the others."""
    broken, whole = session_of(client, store_id="a"), session_of(client, store_id="b")
    client.client.hset(client._key(broken.id), mapping=written)
    assert client.load(broken.id, ["user_id", "store_id"]) is None
    changed = client.update([broken.id, whole.id], {"revoked_at": NOW}, where=STANDS)
    assert changed == [StoreEntry(whole.id, 17, "b")]
    assert client.load(broken.id, ["generation"]) is None
    assert ids(client.of_users([17], ended=True)) == [whole.id]


KEYS = [
    *("", "a", "\x01", "\x02", "=", "é\n", "x" * 300, "session:", "session:AbC_-9"),
    *(prefix + "0f" * 32 for prefix in ("", "session:", "\x01", "é\n{}")),
    *("0f" * 31 + "0", "0F" * 32, "0f" * 33, "session:" + "0f" * 32 + "\n", "0f" * 32 + "x"),
]


@pytest.mark.parametrize("key", KEYS)
def test_store_key_comes_back(client: RedisClient, key: str) -> None:
    """Whatever the session store uses as a key can be read, compared and deleted."""
    session = session_of(client, store_id=key)
    assert client.load(session.id, ["store_id"]) == [key]
    assert client.get([session.id]) == {session.id: session}
    assert client.update([session.id], {"generation": 1}, where={"store_id": f"{key}-"}) == []
    ended = {"revoked_at": NOW, "due_at": moment(0)}
    where = {"store_id": frozenset([key])}
    assert client.update([session.id], ended, where=where) == [StoreEntry(session.id, 17, key)]


def test_fields_of_another_release(client: RedisClient) -> None:
    """Fields that another release added are kept."""
    session = session_of(client)
    key = client._key(session.id)
    client.client.hset(key, "nickname", "x")
    assert client.get([session.id]) == {session.id: session}
    client.update([session.id], {"generation": 1}, where={})
    assert client.client.hget(key, "nickname") in ("x", b"x")


def test_lost_index(client: RedisClient) -> None:
    """A session whose user's index is lost counts as lost too.

    A revocation of all of the user's sessions would not find it.
    """
    session, ended = session_of(client), session_of(client, revoked_at=NOW)
    client.client.delete(f"{client._base(session.id.hex[:2])}u:int:17")
    assert client.get([session.id]) == {}
    assert client.load(session.id, ["user_id"]) is None
    assert client.get([ended.id]) == {ended.id: ended}


def test_lost_response(client: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retried command returns what it did the first time."""

    def twice(ask: Callable[..., t.Any]) -> Callable[..., t.Any]:
        def ask_twice(*arguments: t.Any) -> t.Any:
            ask(*arguments)
            return ask(*arguments)

        return ask_twice

    for name in ("eval", "evalsha"):
        monkeypatch.setattr(client.client, name, twice(getattr(client.client, name)))
    session = session_of(client, generation=1)
    where = STANDS | {"generation": 1}
    assert len(client.update([session.id], {"generation": 2}, where=where)) == 1
    assert client.update([session.id], {"generation": 2}, where=where) == []
    assert len(client.update([session.id], {"revoked_at": NOW}, where=STANDS)) == 1
    assert client.update([session.id], {"revoked_at": NOW}, where=STANDS) == []
    assert ids(client.of_users([17], ended=True)) == [session.id]


def test_many_due_at_once(client: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sessions than a batch, due at the same moment, all come up, even if some leave."""
    monkeypatch.setattr("flask_session_registry._records.base.BATCH", 3)
    moments = [*[moment(-3)] * 2, *[moment(-2).replace(second=0)] * 10, *[moment(-1)] * 2]
    mine = [session_of(client, due_at=due_at).id for due_at in moments]
    seen = []
    for batch in client.due(moment(0)):
        assert len(batch) <= 3
        seen += [one.id for one in batch]
        client.update([one.id for one in batch[:2]], {"due_at": moment(5)}, where={})
    assert sorted(seen) == sorted(mine)


def test_changed_during_the_iteration(client: RedisClient) -> None:
    """Iterating over all sessions misses none that move meanwhile."""
    mine = [session_of(client).id for _ in range(1500)]
    seen: set[uuid.UUID] = set()
    for batch in client.all():
        seen.update(one.id for one in batch)
        left = [id for id in mine if id not in seen]
        client.update(left, {"due_at": moment(-9)}, where={})
    assert seen == set(mine)


def test_failure_is_reported_once() -> None:
    """A method that fails within another one is reported with its own cause."""

    @reporting
    def read() -> None:
        raise ConnectionError("redis://:secret@host")

    @reporting
    def list_all() -> None:
        read()

    with pytest.raises(RecordsError, match=r"\(ConnectionError\)") as raised:
        list_all()
    assert isinstance(raised.value.__context__, ConnectionError)
    assert "secret" not in str(raised.value)
