"""Storage of user sessions in Redis. It compares and writes, and decides nothing.

A session is a hash. All keys of one user share a hash tag of two hexadecimal digits, the shard, and
the ids of the user's sessions begin with it. So an id leads to its session, a script touches one
node of a cluster, and maintenance goes through 256 shards. Each shard contains

- ``s:<id>``, a session;
- ``u:<user>`` and ``e:<user>``, sorted sets of the ids of a user's active and ended sessions, in
  the order in which they were added;
- ``due``, a sorted set of all ids by the moment at which maintenance looks at them;
- ``t:<id>``, a tombstone: a store key that a session has left behind;
- ``stale``, a sorted set of the ids of tombstones, like ``due``.

Outside the shards, ``k:<store key>`` is the id of the session that has this key, or that of the
tombstone that keeps it. Every key expires.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import secrets
import typing as t
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from ... import _clock as clock
from ..._log import log
from .. import base, user_keys
from ..base import StoreEntry, batches_of
from . import scripts
from .early import EarlyReply, send
from .encoding import (
    as_text,
    decode,
    decode_entry,
    decode_some,
    decode_tombstone,
    encode,
    encode_choices,
)
from .reporting import reporting, reporting_batches
from .scripts import Script
from .session import KeyHolder, RedisUserSession, Tombstone
from .shards import Shards, by_shard, shard_of

#: How many milliseconds after its last write, or after it was due, Redis drops a session.
_GRACE = dt.timedelta(days=400) // dt.timedelta(milliseconds=1)

#: The same for store keys, which only tell why a session is gone.
_KEY_GRACE = dt.timedelta(days=30)

#: Before the id of a tombstone, where store keys lead to it.
_TOMBSTONE = "t:"

_Found = t.TypeVar("_Found")

#: Reads what an index names.
_Get = Callable[[Sequence[uuid.UUID]], dict[uuid.UUID, _Found]]


class RedisClient(Shards):
    """The user sessions of one app, in Redis 5 or newer: alone, a cluster, or behind Sentinel.

    Other processes see at once what a method has written. Unknown ids are left out.

    :param client: of redis-py, or with the same methods. It must read from where it writes.
    :param prefix: of all keys, without braces. Two apps on one Redis need two.
    :raises RecordsError: Redis can't be read or written; from every method.
    """

    def assign_id(self, id: uuid.UUID, user_id: t.Any) -> uuid.UUID:
        """Return the id for a new session of this user: a fresh one, with the user's shard."""
        return uuid.UUID(hex=shard_of(user_id) + id.hex[2:])

    @reporting
    def add(self, session: RedisUserSession) -> None:
        values = encode(dataclasses.asdict(session))
        known = {
            name: value for name, value in values.items() if value is not None and name != "id"
        }
        self._run(scripts.ADD, [session.id.hex], _GRACE, json.dumps(known))
        self._point_to([session], session.due_at or clock.now())

    @reporting
    def get(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, RedisUserSession]:
        """Return the sessions with these ids, in any order."""
        sessions: dict[uuid.UUID, RedisUserSession] = {}
        for part in by_shard(ids):
            # Without sessions, Lua returns an empty object instead of an empty list.
            found = iter(json.loads(self._run(scripts.GET, part)))
            for place, written in zip(found, found, strict=True):
                session = decode(uuid.UUID(hex=part[place - 1]), written)
                if session is not None:
                    sessions[session.id] = session
        return sessions

    @reporting
    def load(self, id: uuid.UUID, names: Sequence[str]) -> list[t.Any] | None:
        """Return attributes of an active session; ``None`` if there is none."""
        return _attributes(names, self._run(scripts.LOAD, [id.hex], *names))

    @contextlib.contextmanager
    def loading(
        self, id: uuid.UUID, names: Sequence[str]
    ) -> Iterator[Callable[[], list[t.Any] | None]]:
        """Begin to :meth:`load`; within the block, call what this yields to have the result.

        Until then, something else may be waited for.
        """
        reply = self._ask(scripts.LOAD, id.hex, *names)
        try:
            yield lambda: self._loaded(id, names, reply)
        finally:
            if reply is not None:
                reply.close()

    @reporting
    def _ask(self, script: Script, id: str, *arguments: t.Any) -> EarlyReply | None:
        key = self._base(id[:2])
        return send(self.client, "EVALSHA", script.digest, 1, key, id, *arguments)

    @reporting
    def _loaded(
        self, id: uuid.UUID, names: Sequence[str], reply: EarlyReply | None
    ) -> list[t.Any] | None:
        if reply is None:
            return self.load(id, names)
        try:
            found = reply.read()
        except Exception as error:
            if not reply.may_be_retried(error):
                raise
            # Redis doesn't know the script, for example, or has closed the connection.
            return self.load(id, names)
        return _attributes(names, found)

    @reporting
    def update(
        self,
        ids: Sequence[uuid.UUID | str],
        values: Mapping[str, t.Any],
        *,
        where: Mapping[str, t.Any],
        unless: Mapping[str, t.Any] | None = None,
        leaves: Tombstone | None = None,
    ) -> list[StoreEntry]:
        """Give new values to those of these sessions that have all the values of ``where``.

        Comparing and writing a session is atomic.

        :param ids: UUIDs, or their hexadecimal digits.
        :param where: a frozen set stands for any of its values.
        :param unless: leave those sessions alone that have any of these values.
        :param leaves: the tombstone of the key that the session leaves behind, if it changes.
        :returns: the changed sessions.
        """
        changed: list[StoreEntry] = []
        for part, found in self._update(ids, values, where, unless, leaves):
            for place, user_id, store_id in zip(*[iter(found)] * 3, strict=True):
                entry = decode_entry(part[place - 1], user_id, store_id)
                if entry is not None:
                    changed.append(entry)
        due_at = values.get("due_at")
        # The key of an ended session lives long enough by what was written while it was active.
        if due_at is not None and not {"revoked_at", "purged_at"} & values.keys():
            self._point_to(changed, due_at, leaves if changed else None)
        return changed

    @reporting
    def mark(
        self,
        ids: Sequence[uuid.UUID],
        values: Mapping[str, t.Any],
        *,
        where: Mapping[str, t.Any],
    ) -> int:
        """Like :meth:`update`, of ended sessions; return how many were changed."""
        return sum(len(found) // 3 for _, found in self._update(ids, values, where))

    def _update(
        self,
        ids: Sequence[uuid.UUID | str],
        values: Mapping[str, t.Any],
        where: Mapping[str, t.Any],
        unless: Mapping[str, t.Any] | None = None,
        leaves: Tombstone | None = None,
    ) -> Iterator[tuple[list[str], list[t.Any]]]:
        """Update sessions; yield their ids by shard, with what the script returns."""
        arguments = (
            json.dumps(encode(values)),
            json.dumps(encode_choices(where)),
            json.dumps(encode_choices(unless or {})),
            secrets.token_hex(8),
            "" if leaves is None else json.dumps(encode(dataclasses.asdict(leaves))),
        )
        for part in by_shard(ids):
            yield part, json.loads(self._run(scripts.UPDATE, part, _GRACE, *arguments))

    @reporting_batches
    def ids_of(self, user_id: t.Any, *, ended: bool = False) -> Iterator[list[str]]:
        """Yield the ids of a user's active or ended sessions, in the order of logins.

        As hexadecimal digits: to end them, nothing else is needed. They may end meanwhile, or
        name a session that is gone.
        """
        shard, index = self._base(shard_of(user_id)), _index_of(user_id, ended)
        score = "-inf"
        while page := self._run_in(shard, scripts.PAGE, index, f"({score}", base.BATCH):
            members, score = map(as_text, page)
            yield [members[n : n + 32] for n in range(0, len(members), 32)]

    @reporting_batches
    def of_users(
        self, user_ids: Collection[t.Any], *, ended: bool = False
    ) -> Iterator[list[RedisUserSession]]:
        """Yield the active or the ended sessions of users, each user's in the order of logins.

        They may end meanwhile.
        """
        for user_id in user_ids:
            index = self._base(shard_of(user_id)) + _index_of(user_id, ended)
            for ids in self.ids_of(user_id, ended=ended):
                yield self._found(index, [uuid.UUID(hex=id) for id in ids], self.get)

    @reporting_batches
    def all(self) -> Iterator[list[RedisUserSession]]:
        """Yield all sessions, ended ones too, in any order."""
        for index in self._occupied("due"):
            cursor = None
            # Not by score: meanwhile a session may move to a score that has been passed already.
            while cursor != 0:
                cursor, found = self.client.zscan(index, cursor or 0, count=base.BATCH)
                members = [uuid.UUID(hex=as_text(member)) for member, _ in found]
                for ids in batches_of(members):
                    yield self._found(index, ids, self.get)

    @reporting_batches
    def due(self, by: dt.datetime) -> Iterator[list[RedisUserSession]]:
        """Yield the sessions that are due by a moment. They may change meanwhile, or be removed."""
        highest = clock.microseconds(by)
        for index in self._occupied("due", highest):
            yield from self._in_order(index, self.get, highest)

    @reporting
    def with_key(self, store_id: str) -> KeyHolder | None:
        """Return the session that had this store key last; ``None`` if unknown.

        Nothing may depend on it: it may be forgotten, or come a moment late.
        """
        found = self.client.get(self._pointer(store_id))
        if found is None:
            return None
        text = as_text(found)
        id = uuid.UUID(hex=text.removeprefix(_TOMBSTONE))
        if not text.startswith(_TOMBSTONE):
            return KeyHolder(id)
        left = self.get_tombstones([id]).get(id)
        # A tombstone of a linked key is used again for another one.
        if left is None or left.store_id != store_id:
            return None
        return KeyHolder(left.user_session_id, left.left_at)

    @reporting
    def remove(self, ids: Sequence[uuid.UUID]) -> int:
        """Delete those of these sessions that have ended; return how many."""
        return sum(self._run(scripts.REMOVE, part) for part in by_shard(ids))

    # -- tombstones ------------------------------------------------------------------------------

    @reporting
    def get_tombstones(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Tombstone]:
        found = (
            decode_tombstone(text)
            for part in by_shard(ids)
            for text in self.client.mget([f"{self._base(id[:2])}t:{id}" for id in part])
            if text is not None
        )
        return {tombstone.id: tombstone for tombstone in found if tombstone is not None}

    @reporting_batches
    def tombstones(self, by: dt.datetime) -> Iterator[list[Tombstone]]:
        """Yield the tombstones to look at by a moment. They may be postponed, or removed."""
        highest = clock.microseconds(by)
        for index in self._occupied("stale", highest):
            yield from self._in_order(index, self.get_tombstones, highest)

    @reporting
    def postpone_tombstones(self, ids: Sequence[uuid.UUID], moment: dt.datetime) -> None:
        """Look at tombstones again at another moment."""
        self._run_on_tombstones(scripts.POSTPONE_TOMBSTONES, ids, moment)

    @reporting
    def remove_tombstones(self, ids: Sequence[uuid.UUID], *, left_by: dt.datetime) -> None:
        """Delete those of these tombstones whose keys were left by a moment."""
        self._run_on_tombstones(scripts.REMOVE_TOMBSTONES, ids, left_by)

    def _run_on_tombstones(
        self, script: Script, ids: Sequence[uuid.UUID], moment: dt.datetime
    ) -> None:
        for part in by_shard(ids):
            self._run(script, part, _GRACE, clock.microseconds(moment))

    # -- store keys ------------------------------------------------------------------------------

    def _point_to(
        self,
        sessions: Iterable[RedisUserSession | StoreEntry],
        due_at: dt.datetime,
        tombstone: Tombstone | None = None,
    ) -> None:
        """Make store keys lead to their sessions, or a tombstone, for as long as those are kept."""
        pipeline = self.client.pipeline(transaction=False)
        now = clock.now()
        lifetime = max(due_at, now) + _KEY_GRACE - now
        for session in sessions:
            if session.store_id is not None:
                pipeline.set(self._pointer(session.store_id), session.id.hex, px=lifetime)
        if tombstone is not None:
            value = f"{_TOMBSTONE}{tombstone.id.hex}"
            pipeline.set(self._pointer(tombstone.store_id), value, px=lifetime)
        try:
            pipeline.execute()
        except Exception as error:
            # All that is lost is why a session is gone.
            log.warning("Could not note the store key of a session (%s).", type(error).__name__)

    # -- indexes ---------------------------------------------------------------------------------

    def _occupied(self, name: str, highest: float = float("inf")) -> list[str]:
        """Return the indexes of this name, in all shards, that name something up to a score."""
        indexes = [f"{base}{name}" for base in self._bases()]
        pipeline = self.client.pipeline(transaction=False)
        for index in indexes:
            pipeline.zcount(index, "-inf", highest)
        return [index for index, count in zip(indexes, pipeline.execute(), strict=True) if count]

    def _in_order(
        self, index: str, get: _Get[_Found], highest: float = float("inf")
    ) -> Iterator[list[_Found]]:
        """Yield what an index names up to a score, in the order of the scores."""
        score, member, ties = float("-inf"), "", 0
        while True:
            size = base.BATCH + ties
            found = self.client.zrangebyscore(
                index, score, highest, start=0, num=size, withscores=True
            )
            pairs = [(at, as_text(name)) for name, at in found]
            new = [pair for pair in pairs if pair > (score, member)][: base.BATCH]
            if not new:
                return
            yield self._found(index, [uuid.UUID(hex=name) for _, name in new], get)
            score, member = new[-1]
            # The next page begins with these again, if they are still there.
            ties = sum(at == score for at, _ in pairs)

    def _found(self, index: str, ids: Sequence[uuid.UUID], get: _Get[_Found]) -> list[_Found]:
        """Return what some ids of an index name; remove from it what is gone."""
        found = get(ids)
        gone = [id.hex for id in ids if id not in found]
        if gone:
            self.client.zrem(index, *gone)
        return [found[id] for id in ids if id in found]


def _attributes(names: Sequence[str], found: str | bytes | None) -> list[t.Any] | None:
    # Before them, the script returns those that it needs itself.
    return None if found is None else decode_some(names, json.loads(found)[3:])


def _index_of(user_id: t.Any, ended: bool) -> str:
    return f"{'e' if ended else 'u'}:{user_keys.as_text(user_id)}"
