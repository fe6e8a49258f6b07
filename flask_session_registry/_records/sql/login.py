"""The SQL of logins: the new row, dead on arrival if superseded, and what ends for it."""

from __future__ import annotations

import typing as t
import uuid
from collections.abc import Sequence

import sqlalchemy as sa

from ..._revocation.fingerprint import SUPERSEDED, CheckedCredential
from .. import base
from ..base import Execute, Limit, LimitReachedError, Replaced, StoreEntry, SupersededError
from ..expiry import Expiry
from ..protocols import LoginRecords
from . import innodb
from .tombstones import TombstoneTable


class SQLLoginRecords(TombstoneTable, LoginRecords):
    def assign_id(self, id: uuid.UUID, user_id: t.Any) -> uuid.UUID:
        """Return the id; on InnoDB, a random one.

        The statement that ends a user's sessions also locks, in the index on ``user_id``, the gap
        between the last session of the previous user and the first of this one. Within a user, the
        index is ordered by id. So a new session of the previous user, whose id begins with the
        time, would always fall into that gap, and its login would wait.
        """
        return uuid.uuid4() if self.dialect in innodb.DIALECTS else id

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
            for replaced in replaces:
                is_current |= self._replace(session.execute, replaced, fingerprint)
            evicted: list[StoreEntry] = []
            if limit is not None and is_current:
                evicted = self._evict(session.execute, user_id, fingerprint, limit, expiry)
            row = values | {"fingerprint": fingerprint if is_current else SUPERSEDED}
            session.execute(self._insertion_of(row))
        return evicted

    def _replace(self, execute: Execute, replaced: Replaced, fingerprint: str | None) -> bool:
        """End a session whose place a login takes; return whether it vouches for the login.

        :param fingerprint: of the user's current credential.
        :raises SupersededError: it is no longer active, and the login depends on it.
        """
        column = self.columns
        ending = self.table.update().values(self._ending("replaced"))
        ending = ending.where(self._is_active(replaced.id))
        if replaced.generation is not None:
            ending = ending.where(column.generation == replaced.generation)
        has_it = column.fingerprint.is_not_distinct_from(fingerprint)
        if replaced.vouches and self._changed(execute, ending.where(has_it)):
            return True
        if not self._changed(execute, ending) and replaced.generation is not None:
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
        evicted = rows[: max(0, len(rows) + 1 - limit.maximum)]
        if evicted and limit.rejects:
            raise LimitReachedError
        if evicted:
            ending = self._update_of([row.id for row in evicted])
            execute(ending.values(self._ending("max_sessions")))
        return evicted

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
            rows = session.execute(statement.offset(skip).limit(base.BATCH))
            return [StoreEntry(*row) for row in rows]

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
