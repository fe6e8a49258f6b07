"""The SQL of what a request does to its own session."""

from __future__ import annotations

import typing as t
import uuid
from collections.abc import Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from ... import _clock as clock
from ..._revocation.fingerprint import SUPERSEDED
from .. import base
from ..base import (
    NOT_IN_THE_FUTURE,
    End,
    Execute,
    Limit,
    LimitReachedError,
    Replaced,
    StoreEntry,
    SupersededError,
)
from ..protocols import OwnSessionRecords
from .tombstones import TombstoneTable
from .transactions import transaction_without_waiting

if t.TYPE_CHECKING:
    from ..._revocation.fingerprint import CheckedCredential
    from ..expiry import Expiry


class SQLOwnSessionRecords(TombstoneTable, OwnSessionRecords):
    """See :class:`OwnSessionRecords`."""

    def add(
        self,
        values: dict[str, t.Any],
        *,
        evidence: CheckedCredential,
        replaces: Sequence[Replaced],
        limit: Limit | None,
        expiry: Expiry,
    ) -> list[StoreEntry] | None:
        user_id = values["user_id"]
        with self.users.transaction() as session:
            current = self._lock_user(session.execute, user_id)
            if current is None:
                return None
            fingerprint = current.fingerprint
            is_current = evidence.covers(current)
            for one in replaces:
                is_current |= self._replace(session.execute, one, fingerprint)
            evicted: list[StoreEntry] = []
            if limit is not None and is_current:
                evicted = self._evict(session.execute, user_id, fingerprint, limit, expiry)
            row = values | {"fingerprint": fingerprint if is_current else SUPERSEDED}
            session.execute(self._insertion_of(row))
        return evicted

    def _replace(self, execute: Execute, one: Replaced, fingerprint: str | None) -> bool:
        """End a session whose place a login takes; return whether it vouches for the login.

        :param fingerprint: of the user's current credential.
        :raises SupersededError: it is no longer active, and the login depends on it.
        """
        column = self.columns
        ending = self.table.update().values(self._ending("replaced"))
        ending = ending.where(column.id == one.id, column.revoked_at.is_(None))
        if one.generation is not None:
            ending = ending.where(column.generation == one.generation)
        has_it = column.fingerprint.is_not_distinct_from(fingerprint)
        if one.vouches and self._changed(execute, ending.where(has_it)):
            return True
        if not self._changed(execute, ending) and one.generation is not None:
            raise SupersededError
        return False

    def _evict(
        self,
        execute: Execute,
        user_id: t.Any,
        current: str | None,
        limit: Limit,
        expiry: Expiry,
    ) -> list[StoreEntry]:
        """End and return the oldest sessions of a user, to make room for one more.

        :param current: the fingerprint of the user's current credential.
        :raises LimitReachedError: none may end for it.
        """
        column = self.columns
        active = self._stored.where(
            column.user_id == user_id,
            column.revoked_at.is_(None),
            column.fingerprint == current if current else column.fingerprint.is_(None),
            sa.not_(expiry.condition(column)),
        ).order_by(column.created_at, column.id)
        rows = [StoreEntry(*row) for row in execute(active)]
        evicted = rows[: max(0, len(rows) + 1 - limit.most)]
        if evicted and limit.rejects:
            raise LimitReachedError
        if evicted:
            ending = self._update_of([row.id for row in evicted])
            execute(ending.values(self._ending("max_sessions")))
        return evicted

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
        is_active = (column.id == id, column.revoked_at.is_(None))
        free = (
            sa.select(self.model.id)
            .where(*is_active)
            .with_for_update(skip_locked=True, of=self.table)
        )
        with transaction_without_waiting(self.users, self.bind) as execute:
            if execute(free).first() is not None:
                execute(
                    self.table.update()
                    .where(*is_active)
                    .values(corrected | {column[name]: values[name] for name in values})
                )

    def end(self, id: uuid.UUID, reason: str) -> bool:
        with self.users.transaction() as session:
            return self._end(session.execute, id, reason)

    def current_state(self, id: uuid.UUID) -> tuple[int, str | None] | None:
        model = self.model
        statement = sa.select(model.generation, model.fingerprint)
        statement = statement.where(model.id == id, model.revoked_at.is_(None))
        with self.users.reading() as session:
            row = session.execute(statement).first()
        return None if row is None else (row.generation, row.fingerprint)

    def current_generation(self, id: uuid.UUID, *, skip_locked: bool = False) -> int | None:
        # Within the app's transaction it is a locking read, because InnoDB would show the state at
        # the beginning of the transaction otherwise. It waits for nothing: where the row is locked,
        # the app's transaction is rolled back, and what is committed counts.
        session = self.database.session
        if self.users.is_in_transaction:
            try:
                return self._generation(session, id, skip_locked=skip_locked)
            except sa.exc.SQLAlchemyError:
                self.users.roll_back()
        state = self.current_state(id)
        return None if state is None else state[0]

    def _generation(
        self, session: sa_orm.Session, id: uuid.UUID, *, skip_locked: bool
    ) -> int | None:
        model = self.model
        statement = sa.select(model.generation).where(model.id == id, model.revoked_at.is_(None))
        statement = statement.with_for_update(
            read=True, nowait=not skip_locked, skip_locked=skip_locked, of=self.table
        )
        return session.scalar(statement.execution_options(autoflush=False))

    def find_end_after_commit(self, id: uuid.UUID) -> End | None:
        # The app's session can't be asked: its transaction is just ending.
        with self.users.reading() as session:
            return self._end_of(session.execute, id)

    def find_by_store_key(self, store_id: str, user_id: t.Any) -> list[StoreEntry]:
        model, holders = self.model, self._holders_of(store_id)
        statement = (
            self._stored.join(holders, holders.c.id == model.id)
            .where(model.user_id == user_id, model.revoked_at.is_(None))
            .distinct()
        )
        with self.users.reading() as session:
            return [StoreEntry(*row) for row in session.execute(statement)]

    def find_never_resumed(
        self, user_id: t.Any, *, ip_address: str | None, user_agent: str | None, skip: int
    ) -> list[StoreEntry]:
        model = self.model
        statement = self._stored.where(
            model.user_id == user_id,
            model.revoked_at.is_(None),
            model.last_seen_at == model.created_at,
            model.ip_address.is_not_distinct_from(sa.literal(ip_address, model.ip_address.type)),
            model.user_agent.is_not_distinct_from(sa.literal(user_agent, model.user_agent.type)),
        )
        statement = statement.order_by(model.created_at.desc(), model.id)
        with self.users.reading() as session:
            return [
                StoreEntry(*row)
                for row in session.execute(statement.offset(skip).limit(base.BATCH))
            ]

    def was_seen(self, user_id: t.Any, *, ip_address: str | None, user_agent: str | None) -> bool:
        model = self.model
        statement = sa.select(model.id).where(
            model.user_id == user_id,
            # NULL equals nothing.
            model.ip_address == sa.literal(ip_address, model.ip_address.type),
            model.user_agent == sa.literal(user_agent, model.user_agent.type),
            model.revocation.is_(None),
        )
        with self.users.reading() as session:
            return session.scalar(statement.limit(1)) is not None
