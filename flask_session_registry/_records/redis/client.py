"""User sessions in Redis.

Each is one string, in JSON. All keys of one user share a hash tag of two hexadecimal digits, with
which the ids of the user's sessions begin: so a session is found by its id, a script touches one
node of a cluster only, and housekeeping goes through 256 shards. In each shard there are

- ``s:<id>``, a session;
- ``u:<user>`` and ``e:<user>``, sorted sets of the ids of those that stand and of those that have
  ended, in the order in which they were added;
- ``due``, a sorted set of all ids by the moment at which housekeeping is to look at them;

and outside of them ``k:<key of an entry>``, the id of the session that had it. Every key expires.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import secrets
import typing as t
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from ... import _clock as clock
from ..._log import log
from .. import base as records
from ..base import StoreEntry
from .home import FIELDS, UserSession

#: What nobody has looked at so long after it was due, or written, Redis drops by itself.
_GRACE = dt.timedelta(days=400)

#: The same of the keys of entries, which only say why a session is gone.
_GRACE_OF_KEYS = dt.timedelta(days=30)

_MICROSECOND = dt.timedelta(microseconds=1)

#: What each script begins with.
_FIND = """
local base = ARGV[1]

-- What can't be read is as good as lost.
local function read(text)
    local is_text, session = pcall(cjson.decode, text or '')
    return is_text and type(session) == 'table' and session.id and session.due_at and session or nil
end
"""

#: How a session is kept, with all that leads to it.
_KEEP = (
    _FIND
    + """
local grace = tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local lives, last = {}, {}

-- Let an index know a session; 'was' is the one that knew it before.
local function move(id, is_in, was_in)
    redis.call('ZREM', was_in, id)
    local found = last[is_in] or redis.call('ZREVRANGE', is_in, 0, 0, 'WITHSCORES')[2] or 0
    last[is_in] = math.max(now, tonumber(found) + 1)
    redis.call('ZADD', is_in, last[is_in], id)
end

local function keep(session, is_new, had_ended)
    local id, due, ended = session.id, base .. 'due', session.revoked_at ~= nil
    local ends = math.floor(math.max(tonumber(session.due_at), now) / 1000) + grace
    redis.call('SET', base .. 's:' .. id, cjson.encode(session))
    redis.call('PEXPIREAT', base .. 's:' .. id, ends)
    redis.call('ZADD', due, session.due_at, id)
    lives[due] = math.max(lives[due] or 0, ends)
    if session.user_id then
        local stands_in, ended_in = base .. 'u:' .. session.user_id, base .. 'e:' .. session.user_id
        local is_in, was_in = stands_in, ended_in
        if ended then
            is_in, was_in = ended_in, stands_in
        end
        if is_new or ended ~= had_ended then
            move(id, is_in, was_in)
        end
        lives[is_in] = math.max(lives[is_in] or 0, ends)
    end
end

-- An index lives as long as what is in it.
local function let_indexes_live()
    for key, ends in pairs(lives) do
        if redis.call('PTTL', key) < ends - now / 1000 then
            redis.call('PEXPIREAT', key, ends)
        end
    end
end
"""
)

_ADD = (
    _KEEP
    + """
keep(cjson.decode(ARGV[3]), true)
let_indexes_live()
"""
)

_UPDATE = (
    _KEEP
    + """
local values, where = cjson.decode(ARGV[3]), cjson.decode(ARGV[4])
local changed = {}
for _, key in ipairs(KEYS) do
    local session = read(redis.call('GET', key))
    -- Asked once more, because the answer has got lost: this was done.
    local is_done = session and session.token == ARGV[5]
    for name, value in pairs(session and not is_done and where or {}) do
        if (session[name] or cjson.null) ~= value then
            session = nil
            break
        end
    end
    if session then
        local had_ended = session.revoked_at ~= nil
        for name, value in pairs(is_done and {} or values) do
            session[name] = value ~= cjson.null and value or nil
        end
        session.token = ARGV[5]
        keep(session, false, had_ended)
        changed[#changed + 1] = {
            session.id,
            session.user_id or false,
            session.store_id or false,
            session.previous_store_id or false,
        }
    end
end
let_indexes_live()
return changed
"""
)

#: One that its user's index has lost is lost: nobody would find it who ends the user's sessions.
_GET = (
    _FIND
    + """
local text = redis.call('GET', KEYS[1])
local session = read(text)
if session and session.user_id and not session.revoked_at then
    if not redis.call('ZSCORE', base .. 'u:' .. session.user_id, session.id) then
        return nil
    end
end
return text
"""
)

_REMOVE = (
    _FIND
    + """
local removed = 0
for _, key in ipairs(KEYS) do
    local session = read(redis.call('GET', key))
    if session and session.revoked_at then
        redis.call('DEL', key)
        redis.call('ZREM', base .. 'due', session.id)
        if session.user_id then
            redis.call('ZREM', base .. 'e:' .. session.user_id, session.id)
        end
        removed = removed + 1
    end
end
return removed
"""
)

_SHARDS = [f"{number:02x}" for number in range(256)]


class RedisHome:
    """Keeps user sessions in Redis 5 or newer, one of its clusters, or what Sentinel watches.

    :param client: of redis-py, or with the same methods. It must read from where it writes.
    :param prefix: of all keys. Two apps on one Redis have two; it has no braces.
    """

    def __init__(self, client: t.Any, prefix: str) -> None:
        self.client = client
        self._prefix = prefix

    def assign_id(self, id: uuid.UUID, user_id: t.Any) -> uuid.UUID:
        return uuid.UUID(hex=_shard_of(user_id) + id.hex[2:])

    def add(self, session: UserSession) -> None:
        written = _encoded(dataclasses.asdict(session))
        known = {name: value for name, value in written.items() if value is not None}
        self._run(_ADD, session.id, [], json.dumps(known))
        self._point_to([session], session.due_at or clock.now())

    def get(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, UserSession]:
        if len(ids) == 1:
            texts = [self._run(_GET, ids[0], [])]
        else:
            texts = [
                text
                for part in _by_shard(ids)
                for text in self.client.mget([self._key(id) for id in part])
            ]
        found = (_decoded(text) for text in texts if text is not None)
        return {session.id: session for session in found if session is not None}

    def update(
        self,
        ids: Sequence[uuid.UUID],
        values: Mapping[str, t.Any],
        *,
        where: Mapping[str, t.Any],
    ) -> list[StoreEntry]:
        written = json.dumps(_encoded(values)), json.dumps(_encoded(where)), secrets.token_hex(8)
        changed = [
            _stored(*texts)
            for part in _by_shard(ids)
            for texts in self._run(_UPDATE, part[0], part, *written)
        ]
        due_at = values.get("due_at")
        # One that has ended is led to for long enough by what was noted when it stood.
        if due_at is not None and not {"revoked_at", "purged_at"} & values.keys():
            self._point_to(changed, due_at)
        return changed

    def of_users(
        self, user_ids: Collection[t.Any], *, ended: bool = False
    ) -> Iterator[list[UserSession]]:
        for user_id in user_ids:
            base = self._base(_shard_of(user_id))
            yield from self._in_order(f"{base}{'e' if ended else 'u'}:{_user_text(user_id)}")

    def all(self) -> Iterator[list[UserSession]]:
        for index in self._occupied():
            cursor = None
            # Not by score: while this goes on, one may be moved to where it has been already.
            while cursor != 0:
                cursor, found = self.client.zscan(index, cursor or 0, count=records.BATCH)
                yield from self._through(index, [member for member, _ in found])

    def due(self, by: dt.datetime) -> Iterator[list[UserSession]]:
        highest = _microseconds(by)
        for index in self._occupied(highest):
            yield from self._in_order(index, highest)

    def with_key(self, store_id: str) -> uuid.UUID | None:
        found = self.client.get(self._pointer(store_id))
        return None if found is None else uuid.UUID(hex=_text(found))

    def remove(self, ids: Sequence[uuid.UUID]) -> int:
        return sum(self._run(_REMOVE, part[0], part) for part in _by_shard(ids))

    # -- pieces ------------------------------------------------------------------------------------

    def _base(self, shard: str) -> str:
        return f"{self._prefix}{{{shard}}}:"

    def _key(self, id: uuid.UUID) -> str:
        return f"{self._base(id.hex[:2])}s:{id.hex}"

    def _pointer(self, store_id: str) -> str:
        return f"{self._prefix}k:{store_id}"

    def _run(self, script: str, id: uuid.UUID, ids: Sequence[uuid.UUID], *arguments: str) -> t.Any:
        """Run a script on sessions of one shard, of which this is one."""
        keys = [self._key(one) for one in ids] or [self._key(id)]
        grace = _GRACE // dt.timedelta(milliseconds=1)
        return self.client.eval(script, len(keys), *keys, self._base(id.hex[:2]), grace, *arguments)

    def _occupied(self, highest: float = float("inf")) -> list[str]:
        """The indexes of those shards in which something is due up to a moment."""
        indexes = [f"{self._base(shard)}due" for shard in _SHARDS]
        pipeline = self.client.pipeline(transaction=False)
        for index in indexes:
            pipeline.zcount(index, "-inf", highest)
        return [index for index, count in zip(indexes, pipeline.execute(), strict=True) if count]

    def _in_order(self, index: str, highest: float = float("inf")) -> Iterator[list[UserSession]]:
        """The sessions that an index of a shard names up to a score, by their scores."""
        score, member, ties = float("-inf"), "", 0
        while True:
            size = records.BATCH + ties
            found = self.client.zrangebyscore(
                index, score, highest, start=0, num=size, withscores=True
            )
            pairs = [(at, _text(one)) for one, at in found]
            new = [pair for pair in pairs if pair > (score, member)][: records.BATCH]
            if not new:
                return
            yield from self._through(index, [one for _, one in new])
            score, member = new[-1]
            # With these, as far as they are still there, the next page begins once more.
            ties = sum(at == score for at, _ in pairs)

    def _through(self, index: str, members: Sequence[t.Any]) -> Iterator[list[UserSession]]:
        """The sessions that an index of a shard names; those that are gone leave the index."""
        size = records.BATCH
        for n in range(0, len(members), size):
            part = [uuid.UUID(hex=_text(member)) for member in members[n : n + size]]
            found = self.get(part)
            gone = [id.hex for id in part if id not in found]
            if gone:
                self.client.zrem(index, *gone)
            yield [found[id] for id in part if id in found]

    def _point_to(self, sessions: Iterable[UserSession | StoreEntry], due_at: dt.datetime) -> None:
        """Let the keys of their entries lead to these sessions, as long as those are kept."""
        pipeline = self.client.pipeline(transaction=False)
        now = clock.now()
        lives = max(due_at, now) + _GRACE_OF_KEYS - now
        for one in sessions:
            if one.store_id is not None:
                pipeline.set(self._pointer(one.store_id), one.id.hex, px=lives)
        try:
            pipeline.execute()
        except Exception as error:
            # All that is lost is why a session is gone.
            log.warning("The key of an entry could not be noted (%s).", type(error).__name__)


# -- how it is written ---------------------------------------------------------------------------


def _encoded(values: Mapping[str, t.Any]) -> dict[str, str | None]:
    return {name: _write(name, value) for name, value in values.items()}


def _write(name: str, value: t.Any) -> str | None:
    """A value as text: Lua would round a number."""
    if value is None:
        return None
    if name == "user_id":
        return _user_text(value)
    if isinstance(value, dt.datetime):
        return str(_microseconds(value))
    return value.hex if isinstance(value, uuid.UUID) else str(value)


def _decoded(text: str | bytes) -> UserSession | None:
    """What is written there; ``None``: it can't be read. What another release has added is not."""
    try:
        written: dict[str, str] = json.loads(text)
        return UserSession(
            **{name: _READ[name](value) for name, value in written.items() if name in _READ}
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None


def _stored(id: t.Any, user_id: t.Any, store_id: t.Any, *_: t.Any) -> StoreEntry:
    return StoreEntry(
        uuid.UUID(hex=_text(id)),
        None if user_id is None else _user_id(_text(user_id)),
        None if store_id is None else _text(store_id),
    )


def _microseconds(moment: dt.datetime) -> int:
    return (moment - clock.EPOCH) // _MICROSECOND


def _moment(text: str) -> dt.datetime:
    return clock.EPOCH + dt.timedelta(microseconds=int(text))


def _user_text(user_id: t.Any) -> str:
    text = user_id.hex if isinstance(user_id, uuid.UUID) else user_id
    return f"{type(user_id).__name__}:{text}"


def _user_id(text: str) -> t.Any:
    kind, _, value = text.partition(":")
    return {"int": int, "str": str, "UUID": uuid.UUID}[kind](value)


_READ: dict[str, Callable[[str], t.Any]] = {
    **dict.fromkeys(FIELDS, str),
    **dict.fromkeys((name for name in FIELDS if name.endswith(("_at", "_until"))), _moment),
    "id": uuid.UUID,
    "revocation": uuid.UUID,
    "generation": int,
    "user_id": _user_id,
}


def _shard_of(user_id: t.Any) -> str:
    return hashlib.sha256(_user_text(user_id).encode()).hexdigest()[:2]


def _by_shard(ids: Iterable[uuid.UUID]) -> Iterator[list[uuid.UUID]]:
    shards: dict[str, list[uuid.UUID]] = {}
    for id in ids:
        shards.setdefault(id.hex[:2], []).append(id)
    yield from shards.values()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
