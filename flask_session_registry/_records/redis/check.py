"""What the session check asks of the Redis records."""

from __future__ import annotations

import datetime as dt
import uuid

from ... import _clock as clock
from .. import base
from ..base import LoadedSession
from ..protocols import CheckRecords
from .core import RedisCore

#: The attributes that :class:`LoadedSession` has of a user session; 'created_at' comes last.
_LOADED = LoadedSession._fields[1:-1]


class RedisCheckRecords(RedisCore, CheckRecords):
    updates_after_commit = True

    def load(
        self, id: str, user_key: object = None, *, refresh: bool = False
    ) -> LoadedSession | None:
        row, is_right, own_id = None, False, uuid.UUID(hex=id)
        if self.users.may_be_key(user_key):
            # Redis and the database are asked at once.
            with self.redis.loading(own_id, self._loaded) as loaded:
                row = self.users.load(user_key, refresh=refresh)
                session = loaded()
            is_right = session is not None and session[0] == user_key
        else:
            session = self.redis.load(own_id, self._loaded)
        if session is not None and not is_right:
            row = self.users.load(session[0], refresh=refresh)
        if session is None or row is None:
            return None
        user, *password = row
        beginning = () if self._loads_beginning else (None,)
        return LoadedSession._make((user, *session, *beginning, tuple(password)))

    @property
    def _loaded(self) -> tuple[str, ...]:
        return _LOADED if self._loads_beginning else _LOADED[:-1]

    def find_end_by_store_key(self, store_id: str) -> tuple[base.End | None, uuid.UUID | None]:
        holder = self.redis.with_key(store_id)
        if holder is None:
            return None, None
        session, left_at = self.get(holder.user_session_id), holder.left_at
        if session is not None:
            if session.revoked_at is not None or session.store_id == store_id:
                return session.end, session.id
            # Otherwise, the session has left this key, and the note of when may be lost.
            left_at = left_at or session.rotated_at or clock.EPOCH
        if left_at is None:
            return None, None
        return base.End(base.ROTATED, left_at), holder.user_session_id

    def can_be_restored(self, id: uuid.UUID, now: dt.datetime) -> bool:
        session = self.get(id)
        until = session.remember_until if session else None
        return until is not None and until > now

    def was_rotated_within(self, id: uuid.UUID, duration: dt.timedelta) -> bool:
        session = self.get(id)
        rotated_at = session.rotated_at if session else None
        return rotated_at is not None and clock.is_within(duration, of=rotated_at)
