"""The contract of record storage, verified on each kind.

To test another kind with these tests, add it to ``KINDS``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import typing as t
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import servers
from memory_home import MemoryHome

from flask_session_registry import Home, UserSession
from flask_session_registry._records.base import StoreEntry
from flask_session_registry._records.redis.client import RedisHome
from flask_session_registry._records.redis.home import FIELDS

NOW = dt.datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=dt.timezone.utc)
NOBODY = uuid.UUID(int=7)
STANDS = {"revoked_at": None}


def redis_home(prefix: str) -> RedisHome:
    return RedisHome(redis.Redis.from_url(servers.redis_url()), prefix)


def redis_home_of_text(prefix: str) -> RedisHome:
    return RedisHome(redis.Redis.from_url(servers.redis_url(), decode_responses=True), prefix)


def cluster_home(prefix: str) -> RedisHome:
    return RedisHome(servers.redis_cluster(), prefix)


def sentinel_home(prefix: str) -> RedisHome:
    return RedisHome(servers.redis_sentinel().master_for("sessions"), prefix)


KINDS: dict[str, Callable[[str], t.Any]] = {
    "memory": lambda _: MemoryHome(),
    "redis": redis_home,
    "redis, decoded": redis_home_of_text,
    "redis cluster": cluster_home,
    "redis sentinel": sentinel_home,
}


@pytest.fixture(params=KINDS)
def house(request: pytest.FixtureRequest) -> Iterator[Home]:
    prefix = f"house{uuid.uuid4().hex}:"
    made = KINDS[request.param](prefix)
    yield made
    if isinstance(made, RedisHome):
        for key in made.client.scan_iter(f"{prefix}*", count=10_000):
            made.client.delete(key)
        made.client.close()


def moment(days: float) -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc).replace(microsecond=123456) + dt.timedelta(days=days)


def session_of(home: Home, user_id: t.Any = 17, **values: t.Any) -> UserSession:
    """Store a session, due in a day."""
    id = home.assign_id(uuid.uuid4(), user_id)
    values = {"user_id": user_id, "due_at": moment(1)} | values
    times = dict.fromkeys(("created_at", "last_seen_at", "authenticated_at"), moment(0))
    session = UserSession(id=id, **(times | values))
    home.add(session)
    return session


def ids(batches: Iterator[list[UserSession]]) -> list[uuid.UUID]:
    return [one.id for batch in batches for one in batch]


def test_implements_the_interface(house: Home) -> None:
    assert isinstance(house, Home)


@pytest.mark.parametrize("user_id", [17, -1, "ann:1", "", "{a}é \n", uuid.UUID(int=5)])
def test_all_attributes_are_stored(house: Home, user_id: t.Any) -> None:
    """All attributes come back, to the microsecond, also when the optional ones are missing."""
    full = session_of(
        house,
        user_id,
        generation=3,
        store_id="session:a",
        previous_store_id="session:b",
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
    sparse = session_of(house, user_id)
    assert house.get([full.id]) == {full.id: full}
    assert house.get([sparse.id, full.id, uuid.uuid4()]) == {sparse.id: sparse, full.id: full}
    assert house.get([uuid.uuid4()]) == {}
    assert house.get([]) == {}


def test_returned_session_is_a_copy(house: Home) -> None:
    """A returned session is a copy: changing it doesn't change what is stored."""
    session = session_of(house)
    house.get([session.id])[session.id].generation = 5
    session.generation = 7
    assert house.get([session.id])[session.id].generation == 0


def test_update(house: Home) -> None:
    """An update sets only the named values, and only where the condition holds."""
    one, other = session_of(house, generation=1, fingerprint="a"), session_of(house)
    ended = session_of(house, revoked_at=NOW)
    values = {"generation": 2, "fingerprint": None, "store_id": "key", "last_seen_at": NOW}
    where = STANDS | {"generation": 1}
    changed = house.update([one.id, other.id, ended.id, uuid.uuid4()], values, where=where)
    expected = dataclasses.replace(one, **values)
    assert changed == [StoreEntry(one.id, 17, "key")]
    assert house.get([one.id, other.id, ended.id]) == {
        one.id: expected,
        other.id: other,
        ended.id: ended,
    }
    assert house.update([], values, where={}) == []
    assert house.update([ended.id], {"generation": 9}, where={})
    assert house.get([ended.id])[ended.id].generation == 9


def test_update_is_atomic(house: Home) -> None:
    """Comparison and update are atomic: of several concurrent updates, one succeeds."""
    session = session_of(house)

    def change(_: int) -> int:
        return len(house.update([session.id], {"generation": 1}, where={"generation": 0}))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(change, range(40))) == 1


@pytest.mark.parametrize("user_id", [17, "ann", uuid.UUID(int=5)])
def test_of_users(house: Home, user_id: t.Any) -> None:
    """Active or ended sessions of one or several users come back in order."""
    sessions = [session_of(house, user_id) for _ in range(4)]
    other, nobodys = session_of(house, "other"), session_of(house, None, revoked_at=NOW)
    mine = [one.id for one in sessions]
    assert ids(house.of_users([user_id])) == mine
    assert ids(house.of_users([user_id], ended=True)) == []
    house.update([mine[1]], {"revoked_at": NOW}, where=STANDS)
    assert ids(house.of_users([user_id])) == [mine[0], *mine[2:]]
    assert ids(house.of_users([user_id], ended=True)) == [mine[1]]
    assert sorted(ids(house.of_users([user_id, "other"]))) == sorted([mine[0], *mine[2:], other.id])
    assert ids(house.of_users(["nobody"])) == []
    assert ids(house.of_users([])) == []
    assert nobodys.id not in ids(house.of_users([user_id], ended=True))


def test_users_with_like_keys(house: Home) -> None:
    """The number 17 is not the text "17"."""
    number, text = session_of(house, 17), session_of(house, "17")
    assert ids(house.of_users([17])) == [number.id]
    assert ids(house.of_users(["17"])) == [text.id]


def test_many_of_one_user(house: Home) -> None:
    """Many sessions of a user come in batches, and may end during the iteration."""
    mine = [session_of(house).id for _ in range(2100)]
    seen = []
    for batch in house.of_users([17]):
        assert len(batch) <= 1000
        seen += [one.id for one in batch]
        house.update([one.id for one in batch], {"revoked_at": NOW}, where=STANDS)
    assert seen == mine
    assert ids(house.of_users([17])) == []
    assert len(ids(house.of_users([17], ended=True))) == 2100


def test_all(house: Home) -> None:
    mine = [session_of(house, number).id for number in range(20)]
    mine.append(session_of(house, None, revoked_at=NOW).id)
    house.update(mine[:3], {"revoked_at": NOW}, where={})
    assert sorted(ids(house.all())) == sorted(mine)


def test_due(house: Home) -> None:
    """Sessions are due by their latest 'due_at', and may be removed during the iteration."""
    late, now, never = (session_of(house, n, due_at=moment(n)) for n in (-2, 0, 9))
    assert ids(house.due(moment(-1))) == [late.id]
    assert set(ids(house.due(moment(1)))) == {late.id, now.id}
    assert set(ids(house.due(now.due_at or NOW))) == {late.id, now.id}
    house.update([late.id], {"due_at": moment(5)}, where={})
    house.update([never.id], {"due_at": moment(-5), "revoked_at": NOW}, where={})
    for batch in house.due(moment(1)):
        house.remove([one.id for one in batch])
    assert ids(house.due(moment(1))) == [now.id]


def test_with_key(house: Home) -> None:
    """A store key leads to the last session that had it, even if that has another one now."""
    key, other = f"key {uuid.uuid4().hex}", f"key {uuid.uuid4().hex}"
    one = session_of(house, store_id=key)
    assert house.with_key(key) == one.id
    assert house.with_key(other) is None
    house.update([one.id], {"store_id": other, "due_at": moment(2)}, where={})
    assert (house.with_key(key), house.with_key(other)) == (one.id, one.id)
    left = session_of(house, None, store_id=key, revoked_at=NOW)
    assert house.with_key(key) == left.id


def test_remove(house: Home) -> None:
    """Only ended sessions are removed, and nothing of them is left."""
    standing, ended = session_of(house), session_of(house, revoked_at=NOW)
    nobodys = session_of(house, None, revoked_at=NOW)
    assert house.remove([standing.id, ended.id, nobodys.id, uuid.uuid4()]) == 2
    assert house.remove([ended.id]) == 0
    assert house.remove([]) == 0
    assert ids(house.all()) == [standing.id]
    assert ids(house.of_users([17], ended=True)) == []


# -- Redis only ----------------------------------------------------------------------------------

REDIS = pytest.mark.parametrize("house", [kind for kind in KINDS if "redis" in kind], indirect=True)


def keys_of(home: RedisHome) -> list[t.Any]:
    return list(home.client.scan_iter(f"{home._prefix}*", count=10_000))


@REDIS
def test_every_key_expires(house: RedisHome) -> None:
    """Every key expires, indexes included."""
    one = session_of(house, store_id="a", due_at=moment(1))
    session_of(house, None, store_id="b", revoked_at=NOW, due_at=moment(2))
    house.update([one.id], {"revoked_at": NOW, "due_at": moment(3)}, where=STANDS)
    session_of(house, due_at=moment(0.5))
    keys = keys_of(house)
    assert len(keys) == 9
    for key in keys:
        days = house.client.pttl(key) / 1000 / 3600 / 24
        assert 30 < days < 34 if ":k:" in str(key) else 400 < days < 404


@REDIS
def test_index_lives_as_long_as_what_is_in_it(house: RedisHome) -> None:
    """An index lives as long as its last session, whatever is added or ends later."""
    late = session_of(house, due_at=moment(300))
    session_of(house, due_at=moment(1))
    base = f"{house._prefix}{{{late.id.hex[:2]}}}:"
    for index in ("due", "u:int:17"):
        assert house.client.pttl(base + index) / 1000 / 3600 / 24 > 699


@REDIS
def test_index_cleans_itself(house: RedisHome) -> None:
    """Reading an index removes sessions that Redis has dropped."""
    gone, stays = session_of(house, due_at=moment(-1)), session_of(house)
    house.client.delete(house._key(gone.id))
    assert ids(house.of_users([17])) == [stays.id]
    assert ids(house.due(moment(0))) == []
    base = f"{house._prefix}{{{gone.id.hex[:2]}}}:"
    for index in ("due", "u:int:17"):
        assert house.client.zcard(base + index) == 1


@REDIS
def test_keys_of_one_user_share_a_slot(house: RedisHome) -> None:
    """All keys of one user share a slot, except those that map store keys."""
    for store_id in "abc":
        session_of(house, "ann", store_id=store_id)
    session_of(house, "ann", revoked_at=NOW)
    tags = {str(key).partition("{")[2][:3] for key in keys_of(house) if ":k:" not in str(key)}
    assert len(tags) == 1


@REDIS
def test_one_round_trip(house: RedisHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check on each request takes one round trip."""
    session = session_of(house)
    sent: list[t.Any] = []
    send = redis.connection.AbstractConnection.send_packed_command

    def note(connection: t.Any, command: t.Any, *arguments: t.Any, **options: t.Any) -> None:
        sent.append(command)
        send(connection, command, *arguments, **options)

    house.get([session.id])
    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", note)
    assert house.get([session.id])
    assert len(sent) == 1


@REDIS
def test_store_key_cannot_be_recorded(
    house: RedisHome, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the store key can't be recorded, the session is still added and can end.

    That key only explains later why a session is gone.
    """

    def fail(*_: t.Any, **__: t.Any) -> t.Any:
        raise redis.ConnectionError("secret")

    monkeypatch.setattr(type(house.client.pipeline()), "execute", fail)
    session = session_of(house, store_id="secret")
    assert house.update([session.id], {"due_at": moment(2)}, where=STANDS)
    assert "could not be noted (ConnectionError)" in caplog.text
    assert "secret" not in caplog.text


@REDIS
@pytest.mark.parametrize("text", ["", "{broken", "[]", '"text"', '{"id": "none"}', "{}"])
def test_unreadable_record_is_lost(house: RedisHome, text: str) -> None:
    """An unreadable record counts as missing and doesn't affect others."""
    broken, whole = session_of(house), session_of(house)
    house.client.set(house._key(broken.id), text)
    assert house.get([broken.id]) == {}
    assert house.get([broken.id, whole.id]) == {whole.id: whole}
    assert [one.id for one in house.update([broken.id, whole.id], {"generation": 1}, where={})] == [
        whole.id
    ]
    assert ids(house.of_users([17])) == ids(house.all()) == [whole.id]
    assert house.remove([broken.id]) == 0


@REDIS
def test_fields_of_another_release(house: RedisHome) -> None:
    """Fields that another release added are kept."""
    session = session_of(house)
    key = house._key(session.id)
    house.client.set(key, json.dumps(json.loads(house.client.get(key)) | {"nickname": "x"}))
    assert house.get([session.id]) == {session.id: session}
    house.update([session.id], {"generation": 1}, where={})
    assert json.loads(house.client.get(key))["nickname"] == "x"


@REDIS
def test_lost_index(house: RedisHome) -> None:
    """A session whose user's index is lost counts as lost too.

    A revocation of all of the user's sessions would not find it.
    """
    session, ended = session_of(house), session_of(house, revoked_at=NOW)
    house.client.delete(f"{house._base(session.id.hex[:2])}u:int:17")
    assert house.get([session.id]) == {}
    assert house.get([ended.id]) == {ended.id: ended}


@REDIS
def test_lost_response(house: RedisHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retried command returns what it did the first time."""
    evaluate = house.client.eval

    def ask_twice(*arguments: t.Any) -> t.Any:
        evaluate(*arguments)
        return evaluate(*arguments)

    monkeypatch.setattr(house.client, "eval", ask_twice)
    session = session_of(house, generation=1)
    where = STANDS | {"generation": 1}
    assert len(house.update([session.id], {"generation": 2}, where=where)) == 1
    assert house.update([session.id], {"generation": 2}, where=where) == []
    assert len(house.update([session.id], {"revoked_at": NOW}, where=STANDS)) == 1
    assert house.update([session.id], {"revoked_at": NOW}, where=STANDS) == []
    assert ids(house.of_users([17], ended=True)) == [session.id]


@REDIS
def test_many_due_at_once(house: RedisHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sessions than a batch, due at the same moment, all come up, even if some leave."""
    monkeypatch.setattr("flask_session_registry._records.base.BATCH", 3)
    moments = [*[moment(-3)] * 2, *[moment(-2).replace(second=0)] * 10, *[moment(-1)] * 2]
    mine = [session_of(house, due_at=due_at).id for due_at in moments]
    seen = []
    for batch in house.due(moment(0)):
        assert len(batch) <= 3
        seen += [one.id for one in batch]
        house.update([one.id for one in batch[:2]], {"due_at": moment(5)}, where={})
    assert sorted(seen) == sorted(mine)


@REDIS
def test_changed_during_the_iteration(house: RedisHome) -> None:
    """Iterating over all sessions misses none that move meanwhile."""
    mine = [session_of(house).id for _ in range(1500)]
    seen: set[uuid.UUID] = set()
    for batch in house.all():
        seen.update(one.id for one in batch)
        left = [id for id in mine if id not in seen]
        house.update(left, {"due_at": moment(-9)}, where={})
    assert seen == set(mine)
