"""The SQL of the session check."""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid
from collections.abc import Callable, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from ... import _clock as clock
from ..base import ROTATED, End, LoadedSession
from ..protocols import CheckRecords
from .table import SessionTable, end_of

if t.TYPE_CHECKING:
    from ..._revocation.password_history import Credentials
    from ...models import UserSessionMixin
    from ..users import Users


class _Columns(sa_orm.Bundle[t.Any]):
    """The columns of a :class:`LoadedSession`, except the user, as one entity.

    SQLAlchemy prepares each entity of a result again in each request.
    """

    def create_row_processor(
        self, _: object, procs: Sequence[Callable[..., t.Any]], __: object
    ) -> Callable[[t.Any], t.Any]:
        return lambda row: [read(row) for read in procs]


class SQLCheckRecords(SessionTable, CheckRecords):
    updates_after_commit = False

    def __init__(
        self,
        users: Users,
        session_model: type[UserSessionMixin],
        credentials: Credentials,
        *,
        loads_beginning: bool = False,
    ) -> None:
        """
        :param loads_beginning: whether the check needs to know when a session began.
        """
        super().__init__(users, session_model, credentials)
        user_model = credentials.user_model
        column = self.columns
        # As text, which is what the marker has.
        id = sa.bindparam("id", type_=sa.Uuid(as_uuid=False))
        has_id = column.id == id
        if isinstance(sa.inspect(user_model).selectable, sa.Join):
            # On MariaDB SQLAlchemy would not see that the two are joined, and warn.
            has_id = sa.and_(has_id, column.user_id == self.user_key)
        loaded = [
            column.user_id,
            column.generation,
            column.fingerprint,
            column.last_seen_at,
            column.store_id,
        ]
        if loads_beginning:
            loaded.append(column.created_at)
        self._loads_beginning = loads_beginning
        self._compares_keys = users.has_same_keys(column.user_id)
        # Built once: building it in each request costs more than running it. With the columns of
        # the table: SQLAlchemy hashes all parts of a statement each time, and a mapped attribute
        # has many.
        loading = (
            sa.select(user_model, _Columns("columns", *loaded, *credentials.columns))
            .join(self.table, has_id)
            .where(column.revoked_at.is_(None))
            .execution_options(autoflush=False)
        )
        # A join by the foreign key would mean the same, and take PostgreSQL longer to plan: in each
        # request, because psycopg forgets what it has prepared at every rollback. It takes the
        # least where both keys are known.
        owner = sa.select(column.user_id).where(column.id == id).correlate(None).scalar_subquery()
        self._load = loading.where(self.user_key == owner)
        self._load_both = loading.where(self.user_key == sa.bindparam("user_id"))

    def load(
        self, id: str, user_key: object = None, *, refresh: bool = False
    ) -> LoadedSession | None:
        execute = self.database.session.execute
        if self._compares_keys and self.users.may_be_key(user_key) and not refresh:
            try:
                row = execute(self._load_both, {"id": id, "user_id": user_key}).first()
            except sa.exc.DBAPIError:
                raise
            except sa.exc.StatementError:
                # A type of the app's own refuses such a value.
                row = None
            # The row says whose session it is.
            if row is not None and row[1][0] == user_key:
                return self._read(row)
        statement = self._load.execution_options(populate_existing=True) if refresh else self._load
        row = execute(statement, {"id": id}).first()
        if row is None:
            return None
        loaded = self._read(row)
        self.users.note_key(loaded.user_id)
        return loaded

    def _read(self, row: Sequence[t.Any]) -> LoadedSession:
        user, (user_id, generation, fingerprint, last_seen_at, store_id, *rest) = row
        created_at = rest.pop(0) if self._loads_beginning else None
        return LoadedSession(
            user, user_id, generation, fingerprint, last_seen_at, store_id, created_at, tuple(rest)
        )

    def find_end(self, id: uuid.UUID) -> End | None:
        with self.database.session.no_autoflush:
            return self._end_of(self.database.session.execute, id)

    def find_end_by_store_key(self, store_id: str) -> tuple[End | None, uuid.UUID | None]:
        model, holders = self.model, self._holders_of(store_id)
        left_at = holders.c.left_at
        statement = (
            sa.select(
                holders.c.id, left_at, model.revoked_at, model.revoked_reason, model.revocation
            )
            .select_from(holders)
            .outerjoin(model, model.id == holders.c.id)
            # One that has the key comes before those that left it behind.
            .order_by(left_at.is_not(None), left_at.desc(), model.created_at.desc())
            .limit(1)
        )
        with self.database.session.no_autoflush:
            row = self.database.session.execute(statement).first()
        if row is None:
            return None, None
        end = end_of(row)
        if end is None and row.left_at is not None:
            end = End(ROTATED, clock.as_utc(row.left_at))
        return end, row.id

    def can_be_restored(self, id: uuid.UUID, now: dt.datetime) -> bool:
        statement = sa.select(self.model.remember_until).where(self.model.id == id)
        with self.database.session.no_autoflush:
            until = self.database.session.scalar(statement)
        return until is not None and clock.as_utc(until) > now

    def was_rotated_within(self, id: uuid.UUID, duration: dt.timedelta) -> bool:
        statement = sa.select(self.model.rotated_at).where(self.model.id == id)
        with self.database.session.no_autoflush:
            rotated_at = self.database.session.scalar(statement)
        return rotated_at is not None and clock.is_within(duration, of=clock.as_utc(rotated_at))
