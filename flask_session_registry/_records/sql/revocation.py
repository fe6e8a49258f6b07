"""The SQL of revocations: what ends the sessions of users in a transaction of the app.

A password change runs these statements in the app's transaction, in this order:

1. The flush updates the user, which locks the row. ``_revocation/lost_updates.py`` adds the old
   password to the ``WHERE``; if it can't, it runs ``SELECT … FOR UPDATE`` first and compares then.
2. ``Credentials.pop_change`` selects the new credential, if it can't be predicted.
3. ``_move_on`` updates the surviving session, which gets the key that the response will save it
   under, and ``_leave_behind`` inserts the tombstone of the key from before. If the session has
   another key by now, ``_lock_key`` selects it and they run again.
4. ``revoke`` updates the user's other sessions, which ends them. PostgreSQL returns them.

``_revocation/password_watch.py`` starts 2 to 4 in the ``after_update`` event of 1.

After the commit, in transactions of their own, ``current_state`` (in ``own_session.py``, beside
this file) selects the surviving session and ``complete`` the ended ones, where ``written.py`` can't
tell that what 3 and 4 have written is what was committed. ``mark_revocation_purged`` updates those
whose store entries are deleted; if there are several, it first locks the user.
"""

from __future__ import annotations

import typing as t
import uuid
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa

from ... import _clock as clock
from ..base import (
    Execute,
    PasswordChange,
    RevocationOrder,
    RevocationResult,
    StoreEntry,
    SurvivingSession,
    batches_of,
)
from ..protocols import RevocationRecords
from . import innodb
from .table import hiding_parameters
from .tombstones import TombstoneTable
from .written import follow


class SQLRevocationRecords(TombstoneTable, RevocationRecords):
    def owner_of(self, execute: Execute, id: uuid.UUID) -> list[t.Any]:
        return list(execute(sa.select(self.model.user_id).where(self._is_active(id))).scalars())

    @hiding_parameters()
    def revoke(
        self,
        execute: Execute,
        order: RevocationOrder,
        *,
        already: Sequence[RevocationOrder] | None = None,
    ) -> RevocationResult:
        # 'already' isn't needed: what earlier orders have ended is no longer active.
        column, change, except_id = self.columns, order.change, order.except_id
        has_survivor = change is not None and self._update_credentials(execute, change)
        if change is not None and change.survivor is not None and has_survivor:
            except_id = change.survivor.id
        statement = self._update_of_users(execute, order.user_ids).where(
            column.revoked_at.is_(None)
        )
        if except_id is not None:
            statement = statement.where(innodb.not_searched_by(column.id != except_id))
        if order.only_id is not None:
            statement = statement.where(column.id == order.only_id)
        if order.where is not None:
            statement = statement.where(order.where)
        values = self._ending(order.reason) | {column.revocation: order.id}
        return self._end_all(execute, statement.values(values), has_survivor=has_survivor)

    def _end_all(
        self, execute: Execute, statement: sa.Update, *, has_survivor: bool
    ) -> RevocationResult:
        entries: list[StoreEntry] | None = None
        # On SQLite a further statement is no round trip, and MariaDB can't return what is updated.
        if self.dialect == "postgresql":
            column = self.columns
            result = execute(statement.returning(column.id, column.user_id, column.store_id))
            found = result.fetchmany(self._page + 1)
            count = len(found) + sum(1 for _ in result)
            if count <= self._page:
                # In the order in which 'mark_revocation_purged' compares them.
                entries = sorted(map(StoreEntry._make, found), key=lambda entry: entry.id)
        else:
            result = execute(statement)
            count = result.rowcount
            entries = None if count else []
        is_kept = follow(result, self.table).are_committed
        return RevocationResult(count, has_survivor, count, entries, is_kept)

    def _update_credentials(self, execute: Execute, change: PasswordChange) -> bool:
        """Give the surviving session the new credential; return whether it stays active."""
        survivor = change.survivor
        if survivor is None:
            return False
        if self._move_on(execute, survivor, change.fingerprint, survivor.store_id):
            return True
        # Another request of the same generation may have moved it to another key, or this one has,
        # earlier in the transaction. The key isn't selected up front: every password change would
        # cost one more statement.
        key = self._lock_key(execute, survivor.id)
        return key != survivor.store_id and self._move_on(
            execute, survivor, change.fingerprint, key
        )

    def _move_on(
        self,
        execute: Execute,
        survivor: SurvivingSession,
        credential: str | None,
        key: str | None,
    ) -> bool:
        """Give the surviving session a new fingerprint and the next generation.

        Only if it has this store key, and a generation that its request knows it by: in any other,
        it belongs to another request.
        """
        column = self.columns
        for generation, fingerprint in reversed(survivor.held):
            is_updated = self._changed(
                execute,
                # Otherwise, MariaDB might search by the store key, too, and lock in another order.
                innodb.forcing("PRIMARY", self._update_of_active(survivor.id, generation))
                .where(
                    column.fingerprint.is_not_distinct_from(fingerprint),
                    column.store_id.is_(None) if key is None else column.store_id == key,
                )
                .values(
                    {
                        column.fingerprint: credential,
                        column.generation: generation + 1,
                        column.rotated_at: clock.now(),
                        # Its entry is dead from here on. The response writes the next one, if the
                        # process lives to send it.
                        column.store_id: survivor.next_store_id,
                    }
                ),
            )
            if is_updated:
                if key not in (None, survivor.next_store_id):
                    self._leave_behind(execute, survivor.id, key)
                survivor.held.append((generation + 1, credential))
                return True
        return False

    def complete(
        self, order: RevocationOrder, result: RevocationResult
    ) -> Iterator[list[StoreEntry]]:
        if result.is_kept() and result.entries is not None:
            return batches_of(result.entries)
        # What ended is read from the database, by the id that all rows of a revocation carry: what
        # a savepoint took back, or a transaction that was never committed, is not found.
        owner = self._belongs_to(order.user_ids)
        if order.users_are_deleted:
            # Most databases have then taken the user out of the rows.
            owner = sa.or_(owner, self.columns.user_id.is_(None))
        return self._batches(owner, self.columns.revocation == order.id)

    def mark_revocation_purged(
        self, order: RevocationOrder, ids: Sequence[uuid.UUID], *, is_last: bool, is_only: bool
    ) -> None:
        if order.users_are_deleted and not is_only:
            self.mark_purged(ids)
            return
        if not is_last:
            return
        column = self.columns
        with self.users.transaction() as session:
            if is_only:
                # Without the lock: it waits for one row while it holds none, which is no deadlock.
                statement = self._update_of(ids)
            else:
                if self.dialect != "sqlite":
                    self.lock_users(session.execute, order.user_ids)
                # All at once, up to the last id.
                statement = self._update_of_users(session.execute, order.user_ids).where(
                    innodb.not_searched_by(column.id <= ids[-1])
                )
            statement = statement.where(column.revocation == order.id, column.purged_at.is_(None))
            session.execute(statement.values({column.purged_at: clock.now()}))

    @hiding_parameters()
    def sync_fingerprints(
        self, execute: Execute, user_id: t.Any, *, before: str | None, after: str | None
    ) -> Callable[[], None]:
        # Only of sessions that had the old one: one that was dead by its fingerprint stays dead.
        column = self.columns
        execute(
            self._update_of_users(execute, [user_id])
            .where(column.revoked_at.is_(None), column.fingerprint == before)
            .values({column.fingerprint: after})
        )
        return lambda: None
