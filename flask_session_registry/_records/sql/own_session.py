"""The SQL of what a request does to its own session."""

from __future__ import annotations

import typing as t
import uuid

import sqlalchemy as sa

from ... import _clock as clock
from ..base import NOT_IN_THE_FUTURE, End
from ..protocols import OwnSessionRecords
from .tombstones import TombstoneTable
from .transactions import transaction_without_waiting


class SQLOwnSessionRecords(TombstoneTable, OwnSessionRecords):
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
        column, moment = self.columns, clock.now()
        values = {
            column.generation: becomes,
            column.rotated_at: moment,
            column.store_id: store_id,
        }
        if is_confirmed:
            values[column.authenticated_at] = moment
        displaced: list[str] = []
        with self.users.transaction() as session:
            execute = session.execute
            key = None
            if store_id is not None:
                self._lock_sqlite(execute)
                key = self._lock_key(execute, id)
            statement = self._update_of_active(id, generation).values(values)
            if not self._changed(execute, statement):
                return None
            if store_id is not None and key is not None and key != store_id:
                if becomes != generation:
                    self._leave_behind(execute, id, key)
                else:
                    # In the same generation the old key is as good: the browser may come back.
                    displaced = self._link(execute, id, key, store_id)
        return displaced

    def touch(self, id: uuid.UUID, values: dict[str, t.Any]) -> None:
        column, moment = self.columns, values["last_seen_at"]
        corrected = {
            column[name]: sa.case((column[name] > moment, moment), else_=column[name])
            for name in NOT_IN_THE_FUTURE
        }
        is_active = self._is_active(id)
        free = sa.select(self.model.id).where(is_active)
        free = free.with_for_update(skip_locked=True, of=self.table)
        with transaction_without_waiting(self.users, self.bind) as execute:
            if execute(free).first() is not None:
                execute(
                    self.table.update()
                    .where(is_active)
                    .values(corrected | {column[name]: values[name] for name in values})
                )

    def end(self, id: uuid.UUID, reason: str) -> bool:
        with self.users.transaction() as session:
            return self._end(session.execute, id, reason)

    def current_state(self, id: uuid.UUID) -> tuple[int, str | None] | None:
        model = self.model
        statement = sa.select(model.generation, model.fingerprint).where(self._is_active(id))
        with self.users.reading() as session:
            row = session.execute(statement).first()
        return None if row is None else (row.generation, row.fingerprint)

    def current_generation(self, id: uuid.UUID, *, skip_locked: bool = False) -> int | None:
        # Within the app's transaction it is a locking read, because InnoDB would show the state at
        # the beginning of the transaction otherwise. It waits for nothing: where the row is locked,
        # the app's transaction is rolled back, and what is committed counts.
        if self.users.is_in_transaction:
            statement = (
                sa.select(self.model.generation)
                .where(self._is_active(id))
                .with_for_update(
                    read=True, nowait=not skip_locked, skip_locked=skip_locked, of=self.table
                )
                .execution_options(autoflush=False)
            )
            try:
                return self.database.session.scalar(statement)
            except sa.exc.SQLAlchemyError:
                self.users.roll_back()
        state = self.current_state(id)
        return None if state is None else state[0]

    def find_end_after_commit(self, id: uuid.UUID) -> End | None:
        # The app's session can't be asked: its transaction is just ending.
        with self.users.reading() as session:
            return self._end_of(session.execute, id)
