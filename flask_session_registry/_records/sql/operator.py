"""The SQL of the commands and of the doctor."""

from __future__ import annotations

import datetime as dt
import typing as t
from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from ..._ops.filters import Filter
from ..base import SessionSummary, batches_of
from ..expiry import Expiry
from ..protocols import OperatorRecords
from .table import SessionTable

#: The number of users who are signed out in one transaction, where many are.
_USERS = 500


class SQLOperatorRecords(SessionTable, OperatorRecords):
    def count(self, user_ids: Sequence[t.Any] | None, filter: Filter) -> int:
        if filter.network is not None:
            return sum(len(batch) for batch in self.matching(user_ids, filter))
        return self._count(self._matches(user_ids, filter))

    def matching(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> Iterator[list[SessionSummary]]:
        model = self.model
        statement = sa.select(*(getattr(model, name) for name in SessionSummary._fields))
        for rows in self._pages(statement.where(self._matches(user_ids, filter)), model.id):
            found = [
                SessionSummary._make(row) for row in rows if filter.meets_address(row.ip_address)
            ]
            yield from batches_of(found)

    def select_for_revocation(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> Iterator[tuple[Sequence[t.Any], t.Any]]:
        if not filter.is_met_by_all():
            for summaries in self.matching(user_ids, filter):
                owners = list(dict.fromkeys(row.user_id for row in summaries))
                yield owners, self._still_matches(summaries, filter)
        elif user_ids is not None:
            yield from ((user_ids[n : n + _USERS], None) for n in range(0, len(user_ids), _USERS))
        else:
            batch = self._owners(None)
            while batch:
                yield batch, None
                batch = self._owners(batch[-1])

    def count_unpurged(self, *, ended_by: dt.datetime) -> int:
        return self._count(self._is_unpurged(), self.columns.revoked_at <= ended_by)

    def count_expired(self, expiry: Expiry) -> int:
        return self._count(self.columns.revoked_at.is_(None), expiry.condition(self.columns))

    def _matches(self, user_ids: Sequence[t.Any] | None, filter: Filter) -> sa.ColumnElement[bool]:
        column = self.columns
        owner = column.user_id.is_not(None) if user_ids is None else self._belongs_to(user_ids)
        return sa.and_(owner, column.revoked_at.is_(None), filter.condition(column))

    def _still_matches(
        self, summaries: Sequence[SessionSummary], filter: Filter
    ) -> sa.ColumnElement[bool]:
        """Return the condition that a row is one of these, and still matches."""
        column = self.columns
        condition = sa.and_(column.id.in_([row.id for row in summaries]), filter.condition(column))
        if filter.network is None:
            return condition
        # No database can tell whether another address would be in the network.
        addresses = list({row.ip_address for row in summaries})
        return sa.and_(condition, column.ip_address.in_(addresses))

    def _owners(self, after: t.Any) -> list[t.Any]:
        """Return the next users with sessions that have not ended, in the order of their keys."""
        model = self.model
        statement = sa.select(model.user_id).distinct().where(model.revoked_at.is_(None))
        statement = statement.where(
            model.user_id.is_not(None) if after is None else model.user_id > after
        )
        rows = self.database.session.execute(statement.order_by(model.user_id).limit(_USERS))
        return list(rows.scalars())
