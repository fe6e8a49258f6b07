"""What all parts of the Redis records share: reading, changing and ending user sessions."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t
import uuid
from collections.abc import Callable, Iterator, Sequence

from ... import _clock as clock
from .. import base, linked_keys
from ..base import StoreEntry
from ..expiry import Expiry
from ..linked_keys import LinkedKey
from ..users import Users
from .client import RedisClient
from .session import RedisUserSession

#: How long a stale key is kept at least: a request under way may still come with it.
OVERLAP = dt.timedelta(minutes=1)

#: How often a session that others keep changing is read again.
ATTEMPTS = 20

ACTIVE: t.Mapping[str, t.Any] = {"revoked_at": None}


class RedisCore:
    """User sessions in Redis, and the users in the app's database.

    :param expiry: returns the rule by which sessions have expired by now.
    :param retention: how long an ended session is kept.
    """

    def __init__(
        self,
        users: Users,
        redis: RedisClient,
        *,
        expiry: Callable[[], Expiry],
        retention: dt.timedelta,
    ) -> None:
        self.users = users
        self.redis = redis
        self._expiry = expiry
        self._retention = max(retention, OVERLAP)

    def get(self, id: uuid.UUID) -> RedisUserSession | None:
        return self.redis.get([id]).get(id)

    def _get_active(self, id: uuid.UUID) -> RedisUserSession | None:
        session = self.get(id)
        return None if session is None or session.revoked_at is not None else session

    def _of_user(self, user_id: t.Any, *, ended: bool = False) -> Iterator[RedisUserSession]:
        for batch in self.redis.of_users([user_id], ended=ended):
            yield from batch

    def _update(
        self,
        ids: Sequence[uuid.UUID],
        values: t.Mapping[str, t.Any],
        *,
        where: t.Mapping[str, t.Any],
    ) -> list[StoreEntry]:
        return [
            entry
            for n in range(0, len(ids), base.BATCH)
            for entry in self.redis.update(ids[n : n + base.BATCH], values, where=where)
        ]

    def _change(
        self,
        session: RedisUserSession,
        values: t.Mapping[str, t.Any],
        *,
        where: t.Mapping[str, t.Any],
    ) -> bool:
        """Give an active session new values, and the moment at which they make it due."""
        due_at = self._due_at(dataclasses.replace(session, **values))
        return bool(self._update([session.id], {**values, "due_at": due_at}, where=where))

    def _end(
        self,
        ids: Sequence[uuid.UUID],
        values: t.Mapping[str, t.Any],
        *,
        where: t.Mapping[str, t.Any] = ACTIVE,
    ) -> list[StoreEntry]:
        moment = clock.now()
        values = {**values, "revoked_at": moment, "due_at": moment}
        return self._update(ids, values, where={**ACTIVE, **where})

    def mark_purged(self, ids: Sequence[uuid.UUID]) -> int:
        moment = clock.now()
        values = {"purged_at": moment, "due_at": moment + self._retention}
        return len(self._update(ids, values, where={"purged_at": None}))

    def _due_at(self, session: RedisUserSession) -> dt.datetime:
        """Return when an active session is due for maintenance."""
        if session.previous_store_id is not None and session.rotated_at is not None:
            return session.rotated_at
        return self._expiry().expires_at(
            session.last_seen_at, session.created_at, session.remember_until
        )

    # -- stale keys ------------------------------------------------------------------------------

    def _leave_behind(self, session: RedisUserSession, key: str | None) -> None:
        """Keep a key of a session, before another takes its place, in a session of nobody."""
        if key is not None and session.store_id is not None and session.revoked_at is None:
            self._keep_left(self.redis.assign_id(base.new_id(), session.user_id), key)

    def _link(self, session: RedisUserSession, used: str) -> list[str]:
        """The same of the key that a session has, to which the browser may come back.

        :param used: the key that takes its place.
        :returns: the key that loses its record for it, in a list; empty: none does.
        """
        left = session.store_id
        if left is None:
            return []
        ids = [self.redis.assign_id(id, session.user_id) for id in linked_keys.ids_for(session.id)]
        found = self.redis.get(ids)
        kept = [
            LinkedKey(one.id, one.store_id, t.cast(dt.datetime, one.revoked_at))
            for one in found.values()
        ]
        link, displaced = linked_keys.choose(ids, kept, left=left, used=used)
        if link in found:
            self.redis.remove([link])
        self._keep_left(link, left, link=session.id)
        return [] if displaced is None else [displaced]

    def _keep_left(self, id: uuid.UUID, key: str, *, link: uuid.UUID | None = None) -> None:
        moment = clock.now()
        self.redis.add(
            RedisUserSession(
                id=id,
                user_id=None,
                created_at=moment,
                last_seen_at=moment,
                authenticated_at=moment,
                rotated_at=moment,
                store_id=key,
                revoked_at=moment,
                revoked_reason=base.ROTATED,
                revocation=link,
                due_at=moment + OVERLAP,
            )
        )


def as_it_was(session: RedisUserSession) -> dict[str, t.Any]:
    """Return what must still be true of an active session when it moves to another key."""
    return {**ACTIVE, "generation": session.generation, "store_id": session.store_id}
