"""The SQL of a prune, in batches of short transactions."""

from __future__ import annotations

import datetime as dt
import random
import typing as t
import uuid
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from ...models import STALE_KEY
from ..base import StaleKey, StoreEntry, batches_of, new_id
from ..expiry import Expiry
from ..protocols import MaintenanceRecords
from .table import SessionTable

#: The beginning of 2026, in milliseconds since the epoch: no id that begins with the time is older.
_FIRST_MOMENT = 1_767_225_600_000


class ScanWindow(t.NamedTuple):
    """The sessions that a prune looks at, of all that there are."""

    #: Those after this one …
    after: uuid.UUID | None
    #: … up to this one; if that comes before, those before it too. ``None``: all.
    up_to: uuid.UUID | None
    wraps: bool = False

    def covers(self, id: t.Any) -> sa.ColumnElement[bool]:
        """Return the condition that a column names one of these sessions."""
        # Compared by the database alone, which orders ids as it likes.
        if self.after is None or self.up_to is None:
            return sa.true()
        combine = sa.or_ if self.wraps else sa.and_
        return combine(id > self.after, id <= self.up_to)


class SQLMaintenanceRecords(SessionTable, MaintenanceRecords):
    #: How far this process has looked at the rows.
    _scanned_to: uuid.UUID | None = None

    def next_scan_window(self, size: int) -> ScanWindow:
        id = self.model.id
        ids = sa.select(id).order_by(id).limit(1)
        with self.users.reading() as session:
            start = self._scanned_to or self._anywhere(session)
            end = session.scalar(ids.where(id > start).offset(size - 1))
            window = ScanWindow(start, end)
            if end is None:
                rest = session.scalar(sa.select(sa.func.count()).where(id > start)) or 0
                # A login may have come in between.
                end = session.scalar(ids.where(id <= start).offset(max(0, size - rest - 1)))
                window = ScanWindow(start, end, wraps=True)
        self._scanned_to = start if end is None else end
        return window

    def _anywhere(self, session: sa_orm.Session) -> uuid.UUID:
        """Return a random id: in half of the cases one that begins with the time.

        The ids on InnoDB, and of sessions that did not begin with a login, are random throughout.
        """
        id, now = self.model.id, new_id()
        ids = sa.select(id).where(id > new_id(_FIRST_MOMENT)).order_by(id).limit(1)
        first = session.scalar(ids) or now
        moment = random.randint(*sorted((first.int >> 80, now.int >> 80)))  # noqa: S311
        return random.choice((new_id(moment), uuid.uuid4()))  # noqa: S311

    def find_expired(
        self, expiry: Expiry, *, everywhere: bool = True, window: ScanWindow | None = None
    ) -> Iterator[list[StoreEntry]]:
        # All rows, or all of the window, are looked at in any case.
        return self._within(window, self._has_expired(expiry))

    def expire(self, ids: Sequence[uuid.UUID], expiry: Expiry) -> int:
        with self._holding_users_of(ids) as (execute, held):
            statement = self._update_of(held).where(self._has_expired(expiry))
            return self._changed(execute, statement.values(self._ending("expired")))

    def find_unpurged(self, *, window: ScanWindow | None = None) -> Iterator[list[StoreEntry]]:
        return self._within(window, self._is_unpurged())

    def find_stale_keys(
        self, *, lost_before: dt.datetime, window: ScanWindow | None = None
    ) -> Iterator[list[StaleKey]]:
        tombstone, session = self.tombstones, self.model
        is_active = session.revoked_at.is_(None)
        columns = [getattr(tombstone, name) for name in StaleKey._fields]
        statement = sa.select(*columns).where(
            tombstone.store_id.is_not(None),
            ~sa.exists().where(session.store_id == tombstone.store_id, is_active),
            sa.or_(
                tombstone.kind == STALE_KEY,
                tombstone.created_at <= lost_before,
                ~sa.exists().where(session.id == tombstone.user_session_id, is_active),
            ),
        )
        if window is not None:
            statement = statement.where(window.covers(tombstone.user_session_id))
        for rows in self._pages(statement, tombstone.id):
            yield from batches_of([StaleKey._make(row) for row in rows])

    def forget_stale_keys(self, ids: Sequence[uuid.UUID], *, before: dt.datetime) -> None:
        # One by one, in the order of their ids, as in 'forget'. No other table is locked.
        column = self.tombstone_table.c
        statement = self.tombstone_table.delete().where(
            column.id == sa.bindparam("forgotten"), column.created_at <= before
        )
        with self.users.transaction() as session:
            session.execute(statement, [{"forgotten": id} for id in ids])

    def find_outdated(
        self, *, before: dt.datetime, window: ScanWindow | None = None
    ) -> Iterator[list[StoreEntry]]:
        column = self.columns
        return self._within(
            window,
            column.revoked_at <= before,
            sa.not_(self._is_unpurged()),
        )

    def forget(self, ids: Sequence[uuid.UUID]) -> int:
        column = self.columns
        # One by one: for several, InnoDB may read the whole table, and lock everybody's rows.
        statement = self.table.delete().where(
            column.id == sa.bindparam("forgotten"), column.revoked_at.is_not(None)
        )
        with self._holding_users_of(ids) as (execute, held):
            if not held:
                return 0
            count: int = execute(statement, [{"forgotten": id} for id in held]).rowcount
            return count

    def _within(
        self, window: ScanWindow | None, *conditions: sa.ColumnElement[bool]
    ) -> Iterator[list[StoreEntry]]:
        if window is not None:
            conditions = (window.covers(self.model.id), *conditions)
        return self._batches(*conditions)

    def _has_expired(self, expiry: Expiry) -> sa.ColumnElement[bool]:
        column = self.columns
        return sa.and_(
            column.revoked_at.is_(None),
            sa.or_(column.user_id.is_(None), expiry.condition(column)),
        )
