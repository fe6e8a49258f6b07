"""Logins in the Redis records: the new session, dead if superseded, and what ends for it."""

from __future__ import annotations

import contextlib
import typing as t
import uuid
from collections.abc import Sequence

from ..._revocation.fingerprint import SUPERSEDED, CheckedCredential
from ...errors import RecordsError
from .. import base
from ..base import Limit, LimitReachedError, Replaced, StoreEntry, SupersededError
from ..expiry import Expiry
from ..protocols import LoginRecords
from .own_session import RedisOwnSessionRecords
from .session import RedisUserSession


class RedisLoginRecords(RedisOwnSessionRecords, LoginRecords):
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
            if session.id in ids[limit.maximum :]:
                raise LimitReachedError
            return []
        return self._end(ids[: -limit.maximum], {"revoked_reason": "max_sessions"})

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
