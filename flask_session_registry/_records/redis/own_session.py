"""What a request does to its own session in the Redis records."""

from __future__ import annotations

import typing as t
import uuid

from ... import _clock as clock
from ...errors import RecordsError
from .. import base, linked_keys
from ..base import NOT_IN_THE_FUTURE
from ..linked_keys import LinkedKey
from ..protocols import OwnSessionRecords
from .core import ACTIVE, ATTEMPTS, RedisCore, as_it_was, beside, stale_key_of
from .session import RedisUserSession, Tombstone


class RedisOwnSessionRecords(RedisCore, OwnSessionRecords):
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
            # Only as it was: another key that it has by now would get no tombstone.
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
        if left is None or left == used or not (for_good or used):
            return None, []
        if for_good:
            return stale_key_of(session), []
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
        return self.find_end(id)
