"""The SQL of sessions from before the installation, and of who must not be adopted."""

from __future__ import annotations

import contextlib
import datetime as dt
import typing as t
import uuid
from collections.abc import Sequence

import sqlalchemy as sa

from .. import _clock as clock
from .._records.base import Execute
from .._records.sql import innodb
from .._records.sql.table import SessionTable, hiding_parameters, insertion_into

#: The kind of a tombstone that blocks adoption.
_BLOCK = "adoption_block"

#: The tombstone that blocks the adoption of everybody's sessions. The id of the one that blocks a
#: user is derived from this one and the user's key.
_BLOCK_OF_ALL = uuid.UUID("4c1f3b52-93f5-4d2e-8a53-7b7a1d1a6f0e")


class AdoptionRecords(SessionTable):
    """What ``"adopt"`` asks the table."""

    def exists(self, id: uuid.UUID) -> bool:
        """Return whether there is, or was, a session with this id."""
        with self.database.session.no_autoflush:
            return self._has(self.database.session.execute, self.model, [id])

    def is_adoption_blocked(self, user_id: t.Any) -> bool:
        """Return whether no session of this user may be adopted any more."""
        with self.database.session.no_autoflush:
            execute = self.database.session.execute
            return self._has(execute, self.tombstones, _block_ids(user_id))

    def block_adoption(
        self, execute: Execute, user_ids: Sequence[t.Any], *, dialect: str | None = None
    ) -> None:
        """Block the adoption of sessions of these users.

        The transaction has locked the rows of the users. At the app's isolation level, its snapshot
        may be too old to show an existing block. PostgreSQL then raises a serialization error, and
        the whole transaction fails.

        :param dialect: the name of the database's dialect, where there is no app to ask.
        """
        blocks = [_block_id(user_id) for user_id in user_ids]
        self._block(execute, blocks, dialect or self.dialect)

    def block_everybody(self) -> None:
        """Block the adoption of everybody's sessions."""
        with contextlib.suppress(sa.exc.IntegrityError), self.users.transaction() as session:
            self._block(session.execute, [_BLOCK_OF_ALL], self.dialect)

    def _block(self, execute: Execute, blocks: Sequence[uuid.UUID], dialect: str) -> None:
        model = self.tombstones
        there = set(execute(sa.select(model.id).where(model.id.in_(blocks))).scalars())
        for id in blocks:
            if id not in there:
                # The transaction may see the table as it was before another has blocked the user.
                execute(self._insertion_of_block(id, dialect))

    def _insertion_of_block(self, id: uuid.UUID, dialect: str) -> sa.Insert:
        """Return an ``INSERT`` of a block that does nothing if the block exists."""
        insertion = insertion_into(
            self.tombstone_table,
            {"id": id, "kind": _BLOCK, "created_at": clock.now()},
            allows_conflict=dialect == "postgresql",
        )
        for name in innodb.DIALECTS:
            insertion = insertion.prefix_with("IGNORE", dialect=name)
        return insertion

    def _is_blocked_now(self, execute: Execute, blocks: Sequence[uuid.UUID]) -> bool:
        """Return whether a block exists by now, on InnoDB, whose plain reads may be outdated.

        A locking read of a row that doesn't exist would lock the gap between its neighbors. In a
        small table, that is most of it: other users' rotations would wait, and two such
        transactions deadlock. An insertion sees what is there, and locks only its own row.
        """
        inserted = [
            id
            for id in blocks
            if self._changed(execute, self._insertion_of_block(id, self.dialect))
        ]
        table = self.tombstone_table
        for id in inserted:
            execute(table.delete().where(table.c.id == id))
        return len(inserted) < len(blocks)

    @hiding_parameters()
    def adopt(
        self, execute: Execute, values: dict[str, t.Any], *, is_fresh: bool = False
    ) -> int | None:
        """Add a row unless there is one; return the generation of the session.

        ``None`` if it has ended, or must not be added, because its user is blocked. The transaction
        has locked the user's row.

        :param is_fresh: whether the transaction had read nothing before that lock. If it had,
            InnoDB shows the table as of that first read, except to a locking read. PostgreSQL may
            show an old snapshot in any case; it then raises an error on the insertion of a row, or
            of the block that follows, that exists by now.
        """
        model, tombstone = self.model, self.tombstones

        def first(*columns: t.Any, where: sa.ColumnElement[bool]) -> t.Any:
            statement = sa.select(*columns).where(where)
            locking = statement.with_for_update(read=True)
            return execute(statement if is_fresh else locking).first()

        row = first(model.generation, model.revoked_at, where=model.id == values["id"])
        if row is not None:
            return row.generation if row.revoked_at is None else None
        blocks = _block_ids(values["user_id"])
        if not is_fresh and self.dialect in innodb.DIALECTS:
            is_blocked = self._is_blocked_now(execute, blocks)
        else:
            is_blocked = first(tombstone.id, where=tombstone.id.in_(blocks)) is not None
        if is_blocked:
            return None
        execute(self._insertion_of(values, allows_conflict=self.dialect == "postgresql"))
        return t.cast(int, values["generation"])

    def adopt_late(self, values: dict[str, t.Any]) -> int | None:
        """Call :meth:`adopt` in a transaction of its own; ``None``, too, if the user is gone."""
        with self.users.transaction() as session:
            if self._lock_user(session.execute, values["user_id"]) is None:
                return None
            generation = self.adopt(session.execute, values, is_fresh=True)
        # Blocking everybody locks no user's row: it may have happened meanwhile.
        with self.users.transaction() as session:
            if self._has(session.execute, self.tombstones, [_BLOCK_OF_ALL]):
                self._end(session.execute, values["id"], "revoked")
                return None
        return generation

    def has_begun(self, *, by: dt.datetime) -> bool:
        """Return whether the registry was in use at this moment, judging by the rows kept."""
        return self._count(self.columns.created_at <= by) > 0

    def _has(self, execute: Execute, model: type[t.Any], ids: Sequence[uuid.UUID]) -> bool:
        statement = sa.select(model.id).where(model.id.in_(ids)).limit(1)
        return execute(statement).first() is not None


def _block_ids(user_id: t.Any) -> list[uuid.UUID]:
    """Return the ids of the rows that block this user."""
    return [_block_id(user_id), _BLOCK_OF_ALL]


def _block_id(user_id: t.Any) -> uuid.UUID:
    return uuid.uuid5(_BLOCK_OF_ALL, str(user_id))
