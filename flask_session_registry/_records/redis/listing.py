"""What shows the sessions of one user, from the Redis records."""

from __future__ import annotations

import heapq
import typing as t
from collections.abc import Iterator

import sqlalchemy.orm as sa_orm

from ... import _clock as clock
from ...models import UserSessionRecord
from ..base import PageEnd
from ..expiry import Expiry
from ..protocols import ListingRecords
from .core import RedisCore
from .session import RedisUserSession


class RedisListingRecords(RedisCore, ListingRecords):
    """Every method reads all sessions of the user, in batches."""

    def active(
        self, session: sa_orm.Session, user_id: t.Any, *, expiry: Expiry
    ) -> list[UserSessionRecord]:
        row = session.execute(self.users.stored.where(self.users.key == user_id)).first()
        if row is None:
            return []
        fingerprint = self.users.credentials.read(row[1:]).fingerprint
        return sorted(self._active(user_id, fingerprint, expiry), key=_last_seen_first)

    def list_all(self, session: sa_orm.Session, user_id: t.Any) -> list[UserSessionRecord]:
        found = (*self._of_user(user_id), *self._of_user(user_id, ended=True))
        return sorted(found, key=_last_seen_first)

    def list_others(
        self,
        current: UserSessionRecord,
        *,
        expiry: Expiry,
        after: PageEnd | None,
        limit: int,
    ) -> list[UserSessionRecord]:
        start = None if after is None else _last_seen_first(after)
        found = (
            session
            # The check has accepted the current session, so it has the current fingerprint.
            for session in self._active(current.user_id, current.fingerprint, expiry)
            if session.id != current.id and (start is None or _last_seen_first(session) > start)
        )
        return heapq.nsmallest(limit, found, key=_last_seen_first)

    def recently_ended(self, user_id: t.Any, *, limit: int) -> list[UserSessionRecord]:
        ended = self._of_user(user_id, ended=True)
        return heapq.nsmallest(limit, ended, key=_last_ended_first)

    def _active(
        self, user_id: t.Any, fingerprint: str | None, expiry: Expiry
    ) -> Iterator[RedisUserSession]:
        return (
            session
            for session in self._of_user(user_id)
            if session.fingerprint == fingerprint and not session.has_expired(expiry)
        )


def _last_seen_first(session: UserSessionRecord | PageEnd) -> tuple[float, str]:
    return -session.last_seen_at.timestamp(), session.id.hex


def _last_ended_first(session: UserSessionRecord) -> tuple[float, str]:
    return -(session.revoked_at or clock.EPOCH).timestamp(), session.id.hex
