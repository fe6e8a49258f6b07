"""Tombstones in SQL: rows that keep the store keys that sessions leave behind.

There are two kinds. A session leaves a stale key for good, with a new generation. It leaves a
linked key within a generation, so its browser may come back to it. ``find_stale_keys`` in
``maintenance.py``, beside this file, finds those whose entries can be deleted.
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from ... import _clock as clock
from ...models import LINKED_KEY, STALE_KEY
from .. import linked_keys
from ..base import Execute, new_id
from ..linked_keys import LinkedKey
from .table import SessionTable, insertion_into


class TombstoneTable(SessionTable):
    """Keeps the key that a session leaves when it moves to another one.

    The transaction locks the row of the session before it reads the key. It needs no lock on the
    user's row: it writes no other session, and tombstones refer to no table.
    """

    def _lock_key(self, execute: Execute, id: uuid.UUID) -> str | None:
        """Lock the row of an active session; return its store key, if any."""
        # Select from the class: for its table, no bind would be found. Not in one statement with
        # the 'INSERT' of a tombstone: InnoDB would lock the gap, and rotations of two users would
        # deadlock.
        key: str | None = execute(
            sa.select(self.model.store_id).where(self._is_active(id)).with_for_update(of=self.table)
        ).scalar()
        return key

    def _leave_behind(self, execute: Execute, id: uuid.UUID, key: str) -> None:
        """Keep the key that a session has left for good."""
        execute(self._tombstone(new_id(), id, key, STALE_KEY))

    def _link(self, execute: Execute, id: uuid.UUID, key: str, used: str) -> list[str]:
        """Keep the key that a session leaves, and its browser may come back to.

        :param used: the key that takes its place.
        :returns: a list of the one key whose tombstone had to make room; empty if there was room.
        """
        model, ids = self.tombstones, linked_keys.ids_for(id)
        rows = execute(
            sa.select(model.id, model.store_id, model.created_at).where(model.id.in_(ids))
        )
        kept = [LinkedKey(*row) for row in rows]
        link, displaced = linked_keys.choose(ids, kept, left=key, used=used)
        if link in {tombstone.id for tombstone in kept}:
            table = self.tombstone_table
            execute(table.delete().where(table.c.id == link))
        execute(self._tombstone(link, id, key, LINKED_KEY))
        return [] if displaced is None else [displaced]

    def _tombstone(self, id: uuid.UUID, session_id: uuid.UUID, key: str, kind: str) -> sa.Insert:
        return insertion_into(
            self.tombstone_table,
            {
                "id": id,
                "kind": kind,
                "user_session_id": session_id,
                "store_id": key,
                "created_at": clock.now(),
            },
        )
