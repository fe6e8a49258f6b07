"""What the commands and the doctor ask of the Redis records."""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid
from collections.abc import Iterator, Sequence

from ... import _clock as clock
from ..._ops.filters import Filter
from ..base import SessionSummary
from ..expiry import Expiry
from ..protocols import OperatorRecords
from .core import RedisCore
from .session import RedisUserSession


class Selection(t.NamedTuple):
    """Sessions that an operator has selected, for as long as they match the filter."""

    ids: frozenset[uuid.UUID]
    filter: Filter

    def covers(self, session: RedisUserSession) -> bool:
        return session.id in self.ids and self.filter.meets(session)


class RedisOperatorRecords(RedisCore, OperatorRecords):
    def count(self, user_ids: Sequence[t.Any] | None, filter: Filter) -> int:
        return sum(map(len, self.matching(user_ids, filter)))

    def matching(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> Iterator[list[SessionSummary]]:
        for batch in self.redis.all() if user_ids is None else self.redis.of_users(user_ids):
            yield [
                session.summary
                for session in batch
                if session.revoked_at is None and filter.meets(session)
            ]

    def select_for_revocation(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> Iterator[tuple[Sequence[t.Any], Selection]]:
        for batch in self.matching(user_ids, filter):
            if batch:
                users = list(dict.fromkeys(summary.user_id for summary in batch))
                yield users, Selection(frozenset(summary.id for summary in batch), filter)

    def count_unpurged(self, *, ended_by: dt.datetime) -> int:
        due = self._due_sessions()
        return sum(session.is_unpurged and session.has_ended_by(ended_by) for session in due)

    def count_expired(self, expiry: Expiry) -> int:
        return sum(
            session.revoked_at is None and session.has_expired(expiry)
            for session in self._due_sessions()
        )

    def _due_sessions(self) -> Iterator[RedisUserSession]:
        for batch in self.redis.due(clock.now()):
            yield from batch
