"""What the session check asks of the Redis records."""

from __future__ import annotations

import datetime as dt
import uuid

from ... import _clock as clock
from .. import base
from ..base import CheckRecords, LoadedSession
from .core import RedisCore


class RedisCheckRecords(RedisCore, CheckRecords):
    updates_after_commit = True

    def load(
        self, id: uuid.UUID, user: object = None, *, refresh: bool = False
    ) -> LoadedSession | None:
        session = self._get_active(id)
        if session is None:
            return None
        row = self.users.load(session.user_id, refresh=refresh)
        if row is None:
            return None
        user, *passwords = row
        return LoadedSession(
            user,
            session.generation,
            session.fingerprint,
            session.last_seen_at,
            session.store_id,
            session.created_at,
            tuple(passwords),
        )

    def find_end(self, id: uuid.UUID) -> base.End | None:
        session = self.get(id)
        return None if session is None else session.end

    def find_end_by_store_key(self, store_id: str) -> tuple[base.End | None, uuid.UUID | None]:
        id = self.redis.with_key(store_id)
        session = None if id is None else self.get(id)
        if session is None:
            return None, None
        if session.revoked_reason == base.ROTATED and session.revocation is not None:
            # The session could have come back to this key: what matters is how that ended.
            return self.find_end(session.revocation) or session.end, id
        end = session.end
        if end is None and session.store_id != store_id:
            end = base.End(base.ROTATED, session.rotated_at or clock.EPOCH)
        return end, id

    def can_be_restored(self, id: uuid.UUID, now: dt.datetime) -> bool:
        session = self.get(id)
        until = session.remember_until if session else None
        return until is not None and until > now

    def was_rotated_within(self, id: uuid.UUID, duration: dt.timedelta) -> bool:
        session = self.get(id)
        rotated_at = session.rotated_at if session else None
        return rotated_at is not None and clock.is_within(duration, of=rotated_at)
