"""What a request does to its own session in the Redis records."""

from __future__ import annotations

import contextlib
import typing as t
import uuid
from collections.abc import Sequence

from ... import _clock as clock
from ..._revocation.fingerprint import SUPERSEDED, CheckedCredential
from ...errors import RecordsError
from .. import base, linked_keys
from ..base import (
    NOT_IN_THE_FUTURE,
    Limit,
    LimitReachedError,
    Replaced,
    StoreEntry,
    SupersededError,
)
from ..expiry import Expiry
from ..linked_keys import LinkedKey
from ..protocols import OwnSessionRecords
from .core import ACTIVE, ATTEMPTS, RedisCore, as_it_was, beside, stale_key_of
from .session import RedisUserSession, Tombstone


class RedisOwnSessionRecords(RedisCore, OwnSessionRecords):
    def assign_id(self, id: uuid.UUID, user_id: t.Any) -> uuid.UUID:
        return self.redis.assign_id(id, user_id)

    def add(
        self,
        values: dict[str, t.Any],
        *,
        evidence: CheckedCredential,
        replaces: Sequence[Replaced],
        limit: Limit | None,
        expiry: Expiry,
    ) -> list[StoreEntry] | None:
        user_id = values["user_id"]
        stored = self.users.credentials_of([user_id])
        if not stored:
            return None
        current = stored[user_id]
        is_current = evidence.covers(current) or any(
            self._vouches(replaced, current.fingerprint) for replaced in replaces
        )
        fingerprint = current.fingerprint if is_current else SUPERSEDED
        session = RedisUserSession(**values, fingerprint=fingerprint)
        session.due_at = self._due_at(session)
        evicted: list[StoreEntry] = []
        try:
            self.redis.add(session)
            if limit is not None and is_current:
                before = [replaced.id for replaced in replaces]
                evicted = self._evict(session, limit, expiry, but=before)
            for replaced in replaces:
                self._replace(replaced)
        except (RecordsError, LimitReachedError, SupersededError):
            # No browser has it: it must neither count as active nor as ended.
            with contextlib.suppress(RecordsError):
                self.end(session.id, "not_saved")
                self.redis.remove([session.id])
            raise
        return evicted

    def _vouches(self, replaced: Replaced, fingerprint: str | None) -> bool:
        """Return whether a session whose place a login takes has the current credential."""
        state = self.current_state(replaced.id) if replaced.vouches else None
        return state == (replaced.generation, fingerprint)

    def _replace(self, replaced: Replaced) -> None:
        """End a session whose place a login takes, unless another request has taken it over."""
        where = {} if replaced.generation is None else {"generation": replaced.generation}
        ended = self._end([replaced.id], {"revoked_reason": "replaced"}, where=where)
        if replaced.generation is not None and not ended:
            raise SupersededError

    def _evict(
        self,
        session: RedisUserSession,
        limit: Limit,
        expiry: Expiry,
        *,
        but: Sequence[uuid.UUID],
    ) -> list[StoreEntry]:
        """End the oldest sessions of a user beyond a limit; return them.

        Of several sessions added at once, each counts those added before it, so that never more
        than the limit are let in.
        """
        ids = [
            other.id
            for other in self._of_user(session.user_id)
            if other.fingerprint == session.fingerprint
            and other.id not in but
            and not other.has_expired(expiry)
        ]
        if limit.rejects:
            if session.id in ids[limit.most :]:
                raise LimitReachedError
            return []
        return self._end(ids[: -limit.most], {"revoked_reason": "max_sessions"})

    def rotate(
        self,
        id: uuid.UUID,
        *,
        user_id: t.Any,
        generation: int,
        becomes: int,
        store_id: str | None,
        is_confirmed: bool = False,
    ) -> list[str] | None:
        for _ in range(ATTEMPTS):
            session = self._get_active(id)
            if session is None or session.generation != generation:
                return None
            moment = clock.now()
            values = {"generation": becomes, "rotated_at": moment, "store_id": store_id}
            if is_confirmed:
                values["authenticated_at"] = moment
            leaves, displaced = self._leave(session, store_id, for_good=becomes != generation)
            # Unless it has another key by now, which would get no tombstone.
            if self._change(session, values, where=as_it_was(session), leaves=leaves):
                return displaced
        raise RecordsError("Other requests kept changing the user session. Retry the operation.")

    def _leave(
        self, session: RedisUserSession, used: str | None, *, for_good: bool
    ) -> tuple[Tombstone | None, list[str]]:
        """Return the tombstone of the key that a session leaves; and a key that is given up for it.

        :param used: the key that takes its place.
        :param for_good: whether a new generation begins. In the same one the old key stays good:
            the browser may come back to it.
        """
        left = session.store_id
        if left is None or left == used:
            return None, []
        if for_good:
            return stale_key_of(session), []
        if used is None:
            return None, []
        ids = [beside(session, id) for id in linked_keys.ids_for(session.id)]
        kept = [
            LinkedKey(tombstone.id, tombstone.store_id, tombstone.left_at)
            for tombstone in self.redis.get_tombstones(ids).values()
        ]
        id, displaced = linked_keys.choose(ids, kept, left=left, used=used)
        tombstone = Tombstone(id, session.id, left, clock.now(), is_linked=True)
        return tombstone, [] if displaced is None else [displaced]

    def touch(self, id: uuid.UUID, values: dict[str, t.Any]) -> None:
        session = self.get(id)
        if session is not None:
            moment = values["last_seen_at"]
            late = [name for name in NOT_IN_THE_FUTURE if getattr(session, name) > moment]
            self._change(session, {**values, **dict.fromkeys(late, moment)}, where=ACTIVE)

    def end(self, id: uuid.UUID, reason: str) -> bool:
        return bool(self._end([id], {"revoked_reason": reason}))

    def current_state(self, id: uuid.UUID) -> tuple[int, str | None] | None:
        session = self._get_active(id)
        return None if session is None else (session.generation, session.fingerprint)

    def current_generation(self, id: uuid.UUID, *, skip_locked: bool = False) -> int | None:
        session = self._get_active(id)
        return None if session is None else session.generation

    def find_end_after_commit(self, id: uuid.UUID) -> base.End | None:
        session = self.get(id)
        return None if session is None else session.end

    def find_by_store_key(self, store_id: str, user_id: t.Any) -> list[StoreEntry]:
        holder = self.redis.with_key(store_id)
        session = None if holder is None else self._get_active(holder.user_session_id)
        return [] if session is None or session.user_id != user_id else [session.entry]

    def find_never_resumed(
        self, user_id: t.Any, *, ip_address: str | None, user_agent: str | None, skip: int
    ) -> list[StoreEntry]:
        found = [
            session
            for session in self._of_user(user_id)
            if session.last_seen_at == session.created_at
            and (session.ip_address, session.user_agent) == (ip_address, user_agent)
        ]
        found.sort(key=lambda session: session.created_at, reverse=True)
        return [session.entry for session in found[skip : skip + base.BATCH]]

    def was_seen(self, user_id: t.Any, *, ip_address: str | None, user_agent: str | None) -> bool:
        return None not in (ip_address, user_agent) and any(
            (session.ip_address, session.user_agent, session.revocation)
            == (ip_address, user_agent, None)
            for ended in (False, True)
            for session in self._of_user(user_id, ended=ended)
        )
