"""What a prune does to the Redis records."""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid
from collections.abc import Iterable, Iterator, Sequence

from ... import _clock as clock
from ..base import StaleKey, StoreEntry
from ..expiry import Expiry
from ..protocols import MaintenanceRecords
from .core import ACTIVE, RedisCore
from .session import RedisUserSession, Tombstone

#: How often maintenance looks at a stale key that a browser may come back to.
_RECHECK = dt.timedelta(hours=1)


class RedisMaintenanceRecords(RedisCore, MaintenanceRecords):
    def next_scan_window(self, size: int) -> None:
        """Return ``None``: an index names what is due."""

    def find_expired(
        self, expiry: Expiry, *, everywhere: bool = True, window: t.Any = None
    ) -> Iterator[list[StoreEntry]]:
        """See :meth:`MaintenanceRecords.find_expired`.

        Only with ``everywhere``, it finds sessions of deleted users, and those with an outdated
        fingerprint, which remain if a process died before it could end them.
        """
        for batch in self.redis.all() if everywhere else self.redis.due(expiry.now):
            active = [session for session in batch if session.revoked_at is None]
            expired = self._expired(active, expiry)
            ids = {session.id for session in expired}
            self._postpone([each for each in active if each.id not in ids], expiry.now)
            yield [session.entry for session in expired]

    def _postpone(self, sessions: Iterable[RedisUserSession], moment: dt.datetime) -> None:
        """Correct when sessions are due: the timeouts were others when they were last seen."""
        for session in sessions:
            if session.due_at is not None and session.due_at <= moment:
                self._change(session, {}, where=ACTIVE)

    def expire(self, ids: Sequence[uuid.UUID], expiry: Expiry) -> int:
        found = self.redis.get(ids).values()
        active = [session for session in found if session.revoked_at is None]
        return sum(
            len(
                self._end(
                    [session.id],
                    {"revoked_reason": "expired"},
                    where={
                        "last_seen_at": session.last_seen_at,
                        "fingerprint": session.fingerprint,
                    },
                )
            )
            for session in self._expired(active, expiry)
        )

    def _expired(
        self, sessions: Sequence[RedisUserSession], expiry: Expiry
    ) -> list[RedisUserSession]:
        """Return those that have expired, lost their user, or have an outdated fingerprint."""
        if not sessions:
            return []
        known = self.users.credentials_of({session.user_id for session in sessions})
        current = {user_id: stored.fingerprint for user_id, stored in known.items()}
        return [
            session
            for session in sessions
            if session.user_id not in current
            or session.fingerprint != current[session.user_id]
            or session.has_expired(expiry)
        ]

    def find_unpurged(self, *, window: t.Any = None) -> Iterator[list[StoreEntry]]:
        for batch in self.redis.due(clock.now()):
            moment = clock.now()
            # Without an entry there is nothing to do until their retention is over.
            rest = [each.id for each in batch if self._has_nothing_to_purge(each, moment)]
            purged = {"purged_at": moment, "due_at": moment + self._retention}
            self._update(rest, purged, where={"purged_at": None})
            unpurged = [session.entry for session in batch if session.is_unpurged]
            if unpurged:
                yield unpurged

    def _has_nothing_to_purge(self, session: RedisUserSession, moment: dt.datetime) -> bool:
        return (
            session.revoked_at is not None
            and session.revoked_at + self._retention > moment
            and not session.entry.keys
        )

    def find_stale_keys(
        self, *, lost_before: dt.datetime, window: t.Any = None
    ) -> Iterator[list[StaleKey]]:
        for batch in self.redis.tombstones(clock.now()):
            sessions = self.redis.get(list({tombstone.user_session_id for tombstone in batch}))
            wanted = {
                tombstone.id
                for tombstone in batch
                if _is_wanted(tombstone, sessions.get(tombstone.user_session_id), lost_before)
            }
            self.redis.postpone_tombstones([*wanted], clock.now() + _RECHECK)
            stale = [StaleKey(each.id, each.store_id) for each in batch if each.id not in wanted]
            if stale:
                yield stale

    def forget_stale_keys(self, ids: Sequence[uuid.UUID], *, before: dt.datetime) -> None:
        self.redis.remove_tombstones(ids, left_by=before)

    def find_outdated(
        self, *, before: dt.datetime, window: t.Any = None
    ) -> Iterator[list[StoreEntry]]:
        for batch in self.redis.due(clock.now()):
            outdated = [
                session.entry
                for session in batch
                if session.has_ended_by(before) and not session.is_unpurged
            ]
            if outdated:
                yield outdated

    def forget(self, ids: Sequence[uuid.UUID]) -> int:
        return self.redis.remove(ids)


def _is_wanted(
    tombstone: Tombstone, session: RedisUserSession | None, lost_before: dt.datetime
) -> bool:
    """Return whether a session has the key again, or its browser may come back to it."""
    if session is None or session.revoked_at is not None:
        return False
    may_return = tombstone.is_linked and tombstone.left_at > lost_before
    return may_return or session.store_id == tombstone.store_id
