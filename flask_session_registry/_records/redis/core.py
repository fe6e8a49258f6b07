"""What all parts of the Redis records share: reading, changing and ending user sessions."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence

from ... import _clock as clock
from .. import base
from ..base import StoreEntry, batches_of
from ..expiry import Expiry
from ..users import Users
from .client import RedisClient
from .session import RedisUserSession, Tombstone

#: How often a session that others keep changing is read again.
ATTEMPTS = 20

ACTIVE: t.Mapping[str, t.Any] = {"revoked_at": None}


class RedisCore:
    """User sessions in Redis, and the users in the app's database.

    :param expiry: returns the rule by which sessions have expired by now.
    :param retention: how long an ended session is kept; at least :data:`base.IN_FLIGHT_GRACE`.
    :param loads_beginning: whether the check needs to know when a session began.
    """

    def __init__(
        self,
        users: Users,
        redis: RedisClient,
        *,
        expiry: Callable[[], Expiry],
        retention: dt.timedelta,
        loads_beginning: bool = True,
    ) -> None:
        self.users = users
        self.redis = redis
        self._expiry = expiry
        self._retention = max(retention, base.IN_FLIGHT_GRACE)
        self._loads_beginning = loads_beginning

    def get(self, id: uuid.UUID) -> RedisUserSession | None:
        return self.redis.get([id]).get(id)

    def find_end(self, id: uuid.UUID) -> base.End | None:
        session = self.get(id)
        return None if session is None else session.end

    def _get_active(self, id: uuid.UUID) -> RedisUserSession | None:
        session = self.get(id)
        return None if session is None or session.revoked_at is not None else session

    def _of_user(self, user_id: t.Any, *, ended: bool = False) -> Iterator[RedisUserSession]:
        for batch in self.redis.of_users([user_id], ended=ended):
            yield from batch

    def _update(
        self,
        ids: Sequence[uuid.UUID | str],
        values: t.Mapping[str, t.Any],
        *,
        where: t.Mapping[str, t.Any],
        unless: t.Mapping[str, t.Any] | None = None,
    ) -> list[StoreEntry]:
        return [
            entry
            for batch in batches_of(ids)
            for entry in self.redis.update(batch, values, where=where, unless=unless)
        ]

    def _change(
        self,
        session: RedisUserSession,
        values: t.Mapping[str, t.Any],
        *,
        where: t.Mapping[str, t.Any],
        leaves: Tombstone | None = None,
    ) -> bool:
        """Give an active session new values, and the moment at which they make it due.

        :param leaves: the tombstone of the key that it leaves behind.
        """
        values = {**values, "due_at": self._due_at(dataclasses.replace(session, **values))}
        return bool(self.redis.update([session.id], values, where=where, leaves=leaves))

    def _end(
        self,
        ids: Sequence[uuid.UUID | str],
        values: t.Mapping[str, t.Any],
        *,
        where: t.Mapping[str, t.Any] = ACTIVE,
        unless: t.Mapping[str, t.Any] | None = None,
    ) -> list[StoreEntry]:
        moment = clock.now()
        values = {**values, "revoked_at": moment, "due_at": moment}
        return self._update(ids, values, where={**ACTIVE, **where}, unless=unless)

    def mark_purged(self, ids: Sequence[uuid.UUID], *, keys: Collection[str] | None = None) -> int:
        moment = clock.now()
        values = {"purged_at": moment, "due_at": moment + self._retention}
        pending: dict[str, t.Any] = {"purged_at": None}
        if keys is not None:
            pending["store_id"] = frozenset(keys)
        return sum(self.redis.mark(batch, values, where=pending) for batch in batches_of(ids))

    def _due_at(self, session: RedisUserSession) -> dt.datetime:
        """Return when an active session is due for maintenance."""
        return self._expiry().expires_at(
            session.last_seen_at, session.created_at, session.remember_until
        )


def stale_key_of(session: RedisUserSession) -> Tombstone | None:
    """Return the tombstone of the key that a session leaves for good, if it has one."""
    if session.store_id is None:
        return None
    return Tombstone(beside(session, base.new_id()), session.id, session.store_id, clock.now())


def beside(session: RedisUserSession, id: uuid.UUID) -> uuid.UUID:
    """Return an id in the shard of a session."""
    return uuid.UUID(hex=session.id.hex[:2] + id.hex[2:])


def as_it_was(session: RedisUserSession) -> dict[str, t.Any]:
    """Return what must still be true of an active session when it moves to another key.

    Its key might be the same again after two moves, but not the time of the last one.
    """
    names = ("generation", "store_id", "rotated_at")
    return {**ACTIVE, **{name: getattr(session, name) for name in names}}
