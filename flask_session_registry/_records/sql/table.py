"""What the SQL records share: the table, its locks, and pieces of statements."""

from __future__ import annotations

import contextlib
import functools
import typing as t
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from sqlalchemy.dialects import postgresql

from ... import _clock as clock
from ...models import UserSessionMixin, table_of
from .. import base
from ..base import End, Execute, StoreEntry, batches_of
from . import innodb

if t.TYPE_CHECKING:
    from ..._revocation.fingerprint import StoredCredential
    from ..._revocation.password_history import Credentials
    from ..users import Users

#: The number of batches that are read at once.
_BATCHES = 10


class SessionTable:
    """The table of one app's user sessions."""

    def __init__(
        self, users: Users, session_model: type[UserSessionMixin], credentials: Credentials
    ) -> None:
        self.users = users
        self.database = users.database
        self.model: type[UserSessionMixin] = session_model
        self.table = table_of(session_model)
        self.columns = sa.inspect(session_model).columns
        self.tombstones = session_model.__tombstones__
        self.tombstone_table = table_of(self.tombstones)
        self.user_key = users.key
        self.credentials = credentials
        self.tables = (self.table, self.tombstone_table)
        self._stored = sa.select(session_model.id, session_model.user_id, session_model.store_id)
        #: The name of the index on the users' keys; empty if there is none, ``None`` if unknown.
        self._user_index: str | None = None

    # -- the database --------------------------------------------------------------------------

    @functools.cached_property
    def dialect(self) -> str:
        """The name of the database's dialect."""
        return self.bind.dialect.name

    @property
    def bind(self) -> sa.Engine | sa.Connection:
        # Not of the app's session, which may be gone: it would be opened again, and never closed.
        with self.database.factory() as session:
            return session.get_bind(self.model)

    @contextlib.contextmanager
    def connection(self) -> Iterator[sa.Connection]:
        """Connect to the database that holds the table, to inspect it."""
        with self.users.reading() as session:
            yield session.connection(bind_arguments={"mapper": sa.inspect(self.model)})

    # -- locks ---------------------------------------------------------------------------------

    def _lock_user(self, execute: Execute, user_id: t.Any) -> StoredCredential | None:
        """Lock a user's row; return the credential in it, or ``None`` if there is no such user."""
        self._lock_sqlite(execute)
        stored = execute(
            self.users.stored.where(self.user_key == user_id).with_for_update(
                key_share=True, of=self.users.tables
            )
        ).first()
        if stored is None:
            return None
        key, *values = stored
        self.users.note_key(key)
        return self.credentials.read(values)

    def _lock_sqlite(self, execute: Execute) -> None:
        """On SQLite, lock the whole database before anything is read.

        It can't lock rows, and a transaction that has read can't always write.
        """
        if self.dialect == "sqlite":
            execute(self.table.delete().where(sa.false()))

    def lock_users(
        self, execute: Execute, user_ids: Sequence[t.Any], *, waits: bool = True
    ) -> set[t.Any]:
        """Lock the rows of users; see :meth:`RevocationRecords.lock_users`.

        :param waits: wait for rows that others hold; otherwise leave them out.
        """
        rows = execute(
            sa.select(self.user_key)
            .where(self.user_key.in_(user_ids))
            .order_by(self.user_key)
            .with_for_update(key_share=True, skip_locked=not waits, of=self.users.tables)
        )
        return set(rows.scalars())

    @contextlib.contextmanager
    def _holding_users_of(
        self, ids: Sequence[uuid.UUID]
    ) -> Iterator[tuple[Execute, list[uuid.UUID]]]:
        """Begin a short transaction that may write several rows; yield which of these it may.

        It holds the rows of their users, except those held by others: for them it neither waits,
        nor makes others wait.
        """
        model = self.model
        with self.users.transaction() as session:
            if self.dialect == "sqlite":
                yield session.execute, list(ids)
                return
            owners = session.execute(
                sa.select(model.id, model.user_id).where(model.id.in_(ids))
            ).all()
            users = {owner for _, owner in owners} - {None}
            held = self.lock_users(session.execute, list(users), waits=False)
            yield session.execute, [id for id, owner in owners if owner is None or owner in held]

    # -- writing -------------------------------------------------------------------------------

    def _changed(self, execute: Execute, statement: sa.Insert | sa.Update | sa.Delete) -> int:
        """Return how many rows a statement has changed."""
        count: int = execute(statement).rowcount
        return count

    def _insertion_of(
        self, values: dict[str, t.Any], *, allows_conflict: bool = False
    ) -> sa.Insert:
        """Return an ``INSERT`` of a session; see :func:`insertion_into`."""
        named = {self.columns[name]: values[name] for name in values}
        return insertion_into(self.table, named, allows_conflict=allows_conflict)

    def _update_of(self, ids: Sequence[uuid.UUID]) -> sa.Update:
        """Return an ``UPDATE`` of these rows."""
        return innodb.forcing("PRIMARY", self.table.update().where(self.columns.id.in_(ids)))

    def _update_of_users(self, execute: Execute, user_ids: Sequence[t.Any]) -> sa.Update:
        """Return an ``UPDATE`` of the rows of these users.

        Where one has many, InnoDB would rather read the whole table, and lock everybody's rows:
        then changes of two users deadlock.
        """
        statement = self.table.update().where(self._belongs_to(user_ids))
        if self.dialect not in innodb.DIALECTS:
            return statement
        if self._user_index is None:
            engine = self.database.session.get_bind(self.model).engine
            self._user_index = innodb.find_index(self.columns.user_id, engine, execute)
        return innodb.forcing(self._user_index, statement) if self._user_index else statement

    def _update_of_active(self, id: uuid.UUID, generation: int) -> sa.Update:
        """Return an ``UPDATE`` of an active session, if it has this generation."""
        statement = self.table.update().where(self._is_active(id))
        return statement.where(self.columns.generation == generation)

    def _ending(self, reason: str) -> dict[t.Any, t.Any]:
        return {self.columns.revoked_at: clock.now(), self.columns.revoked_reason: reason}

    def _end(self, execute: Execute, id: uuid.UUID, reason: str) -> bool:
        statement = self.table.update().where(self._is_active(id))
        return bool(self._changed(execute, statement.values(self._ending(reason))))

    def mark_purged(self, ids: Sequence[uuid.UUID], *, keys: Collection[str] | None = None) -> int:
        """See :meth:`MaintenanceRecords.mark_purged`."""
        column = self.columns
        with self._holding_users_of(ids) as (execute, held):
            statement = self._update_of(held).where(
                column.purged_at.is_(None), column.revoked_at.is_not(None)
            )
            if keys is not None:
                is_deleted = sa.or_(column.store_id.is_(None), column.store_id.in_(keys))
                statement = statement.where(innodb.not_searched_by(is_deleted))
            return self._changed(execute, statement.values({column.purged_at: clock.now()}))

    # -- reading -------------------------------------------------------------------------------

    def _end_of(self, execute: Execute, id: uuid.UUID) -> End | None:
        model = self.model
        statement = sa.select(model.revoked_reason, model.revoked_at, model.revocation)
        row = execute(statement.where(model.id == id)).first()
        return None if row is None else end_of(row)

    def _belongs_to(self, user_ids: Sequence[t.Any]) -> sa.ColumnElement[bool]:
        user_id: sa.ColumnElement[t.Any] = self.columns.user_id
        return user_id == user_ids[0] if len(user_ids) == 1 else user_id.in_(user_ids)

    def _is_active(self, id: uuid.UUID) -> sa.ColumnElement[bool]:
        """Return the condition that a row is that of this session, which hasn't ended."""
        return sa.and_(self.columns.id == id, self.columns.revoked_at.is_(None))

    def _is_unpurged(self) -> sa.ColumnElement[bool]:
        column, left = self.columns, self.tombstone_table.c
        # Without a key, there may be an entry under the one that a password change has left.
        has_left = sa.exists().where(left.user_session_id == column.id)
        return sa.and_(
            column.revoked_at.is_not(None),
            column.purged_at.is_(None),
            sa.or_(column.store_id.is_not(None), has_left),
        )

    def _count(self, *conditions: sa.ColumnElement[bool]) -> int:
        statement = sa.select(sa.func.count()).select_from(self.model).where(*conditions)
        with self.users.reading() as session:
            return session.scalar(statement) or 0

    def _holders_of(self, store_id: str) -> sa.Subquery:
        """Select the sessions that have this key, or left it behind: their ``id`` and ``left_at``.

        Two searches, each using its index; for one with "or", MariaDB would use neither.
        """
        model, tombstones = self.model, self.tombstones
        # In this order: the first one determines the types.
        left = sa.select(
            tombstones.user_session_id.label("id"), tombstones.created_at.label("left_at")
        ).where(tombstones.store_id == store_id)
        have = sa.select(model.id, sa.null()).where(model.store_id == store_id)
        return sa.union_all(left, have).subquery("holders")

    @property
    def _page(self) -> int:
        """The number of rows that are read at once.

        Several batches, because the database sorts all that is left for each read.
        """
        return base.BATCH * _BATCHES

    def _batches(self, *conditions: sa.ColumnElement[bool]) -> Iterator[list[StoreEntry]]:
        """Yield the rows with these conditions, in the order of their ids."""
        for rows in self._pages(self._stored.where(*conditions), self.model.id):
            yield from batches_of([StoreEntry._make(row) for row in rows])

    def _pages(
        self, statement: sa.Select[t.Any], id: sa_orm.InstrumentedAttribute[uuid.UUID]
    ) -> Iterator[Sequence[sa.Row[t.Any]]]:
        """Yield what a statement selects, in the order of the ids, with no transaction open.

        :param id: the primary key, which the statement selects as ``id``.
        """
        size = self._page
        statement = statement.order_by(id).limit(size)
        read = statement
        while True:
            with self.users.reading() as session:
                rows = session.execute(read).all()
            yield rows
            if len(rows) < size:
                return
            read = statement.where(id > rows[-1].id)


def insertion_into(
    table: sa.Table, values: Mapping[t.Any, t.Any], *, allows_conflict: bool = False
) -> sa.Insert:
    """Return an ``INSERT`` of a row.

    :param allows_conflict: let PostgreSQL ignore that a row has this id. If the snapshot of the
        transaction is too old to show that row, it still raises an error.
    """
    if allows_conflict:
        return postgresql.insert(table).values(values).on_conflict_do_nothing()
    return table.insert().values(values)


def end_of(row: t.Any) -> End | None:
    """Return how a session ended, given its row; ``None`` if it hasn't."""
    if row.revoked_reason is None:
        return None
    return End(row.revoked_reason, clock.as_utc(row.revoked_at), row.revocation)


@contextlib.contextmanager
def hiding_parameters() -> Iterator[None]:
    """Hide parameters in the error of a statement that fails.

    The transaction is the app's, and so is the error. Among the parameters are store keys and
    fingerprints, which the app would log.
    """
    try:
        yield
    except sa.exc.StatementError as error:
        error.hide_parameters = True
        raise
