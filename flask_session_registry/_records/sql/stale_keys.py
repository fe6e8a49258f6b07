"""How the store keys that sessions leave behind are kept."""

from __future__ import annotations

import typing as t
import uuid

import sqlalchemy as sa

from ... import _clock as clock
from ..base import STALE_KEY, Execute, Left, choose_link, link_ids, new_id
from . import innodb
from .table import SessionTable


class StaleKeys(SessionTable):
    """What moves a session to another store key."""

    def assign_id(self, id: uuid.UUID, user_id: t.Any) -> uuid.UUID:
        """Return the id: any will do, but on InnoDB a random one.

        What ends the sessions of a user holds, in the index on ``user_id``, also the gap between
        the last one of the user before and the first one of this. Within a user the index goes by
        the id, so that the newest would always fall into that gap, and the login wait.
        """
        return uuid.uuid4() if self.dialect in innodb.DIALECTS else id

    def _moving_to(self, store_id: str | None) -> list[tuple[t.Any, t.Any]]:
        """Return the assignments that give a session another key, in this order.

        MariaDB assigns from left to right, and each assignment sees those before it.
        """
        column = self.columns
        before = sa.func.coalesce(column.store_id, column.previous_store_id)
        return [(column.previous_store_id, before), (column.store_id, store_id)]

    def _leave_behind(self, execute: Execute, id: uuid.UUID, key: t.Any) -> None:
        """Keep a key of a session, before another takes its place, in a row of its own.

        The row has ended, so that its entry is deleted some day. The transaction holds the user's
        row.
        """
        found = self._about_to_leave(execute, id, key)
        if found is not None:
            self._keep_left(execute, *found, id=self.assign_id(new_id(), None))

    def _link(self, execute: Execute, id: uuid.UUID, used: str) -> list[str]:
        """Keep the key that a session has, to which the browser may come back.

        :param used: the key that takes its place.
        :returns: the key that loses its row for it, in a list; empty if none does.
        """
        found = self._about_to_leave(execute, id, self.model.store_id)
        if found is None:
            return []
        model, ids = self.model, link_ids(id)
        rows = execute(
            sa.select(model.id, model.store_id, model.revoked_at).where(model.id.in_(ids))
        )
        kept = [Left(*row) for row in rows]
        link, displaced = choose_link(ids, kept, left=found[1], used=used)
        if link in {one.id for one in kept}:
            execute(self.table.delete().where(self.columns.id == link))
        self._keep_left(execute, *found, id=link, revocation=id)
        return [] if displaced is None else [displaced]

    def _about_to_leave(
        self, execute: Execute, id: uuid.UUID, key: t.Any
    ) -> tuple[t.Any, str] | None:
        """Return whose session this is, and one of its keys; ``None`` if it has no such key."""
        # Of the class, not of its table, by which no bind would be found. Not in one statement with
        # the 'INSERT': InnoDB would lock the gap, and rotations of two users deadlock.
        model = self.model
        found = execute(
            sa.select(model.user_id, key)
            .where(model.id == id, model.store_id.is_not(None), key.is_not(None))
            .with_for_update(of=self.table)
        ).first()
        return None if found is None else tuple(found)

    def _keep_left(self, execute: Execute, owner: t.Any, left: str, **values: t.Any) -> None:
        # An app's own class may insist on a user.
        user = {} if self.columns.user_id.nullable else {"user_id": owner}
        execute(
            self._row_of_nobody(STALE_KEY, store_id=left, rotated_at=clock.now(), **user, **values)
        )

    def _row_of_nobody(
        self, reason: str, *, allows_conflict: bool = False, **values: t.Any
    ) -> sa.Insert:
        """Return an ``INSERT`` of a row that has ended, and isn't a session."""
        moments = ("created_at", "last_seen_at", "authenticated_at", "revoked_at")
        return self._insertion_of(
            {**dict.fromkeys(moments, clock.now()), "generation": 0, "revoked_reason": reason}
            | values,
            allows_conflict=allows_conflict,
        )
