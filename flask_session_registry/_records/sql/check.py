"""The SQL of the session check."""

from __future__ import annotations

import datetime as dt
import functools
import typing as t
import uuid
from collections.abc import Callable, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask_login import UserMixin

from ... import _clock as clock
from ..base import ROTATED, End, LoadedSession, as_id
from ..protocols import CheckRecords
from .table import SessionTable, end_of

if t.TYPE_CHECKING:
    from ..._revocation.password_history import Credentials
    from ...models import UserSessionMixin
    from ..users import Users


#: The columns before those of the password: all fields but the user and the password itself.
_BEFORE_PASSWORD = len(LoadedSession._fields) - 2


class _Columns(sa_orm.Bundle[t.Any]):
    """The columns of a :class:`LoadedSession`, except the user, as one entity.

    SQLAlchemy prepares each entity of a result again in each request. The password columns come
    last.
    """

    def create_row_processor(
        self, _: object, procs: Sequence[Callable[..., t.Any]], __: object
    ) -> Callable[[t.Any], t.Any]:
        columns, passwords = procs[:_BEFORE_PASSWORD], procs[_BEFORE_PASSWORD:]

        def process(row: t.Any) -> list[t.Any]:
            return [*[read(row) for read in columns], tuple([read(row) for read in passwords])]

        return process


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
        has_id = session_model.id == sa.bindparam("id")
        if isinstance(sa.inspect(user_model).selectable, sa.Join):
            # On MariaDB SQLAlchemy would not see that the two are joined, and warn.
            has_id = sa.and_(has_id, session_model.user_id == self.user_key)
        # Built once: building it in each request costs more than running it.
        columns = _Columns(
            "columns",
            session_model.user_id,
            session_model.generation,
            session_model.fingerprint,
            session_model.last_seen_at,
            session_model.store_id,
            session_model.created_at if loads_beginning else sa.null(),
            *credentials.columns,
        )
        loading = (
            sa.select(user_model, columns)
            .join(session_model, has_id)
            .where(session_model.revoked_at.is_(None))
            .execution_options(autoflush=False)
        )
        # A join by the foreign key would mean the same, and take PostgreSQL longer to plan: in each
        # request, because psycopg forgets what it has prepared at every rollback. It takes the
        # least where both keys are known.
        owner = (
            sa.select(session_model.user_id)
            .where(session_model.id == sa.bindparam("id"))
            .correlate(None)
            .scalar_subquery()
        )
        self._load = loading.where(self.user_key == owner)
        self._load_both = loading.where(self.user_key == sa.bindparam("user_id"))

    def load(
        self, id: uuid.UUID, user: object = None, *, refresh: bool = False
    ) -> LoadedSession | None:
        key = None if user is None or self._read_key is None else self._read_key(user)
        if key is not None:
            values = {"id": id, "user_id": key}
            row = self.database.session.execute(self._load_both, values).first()
            loaded = None if row is None else LoadedSession(row[0], *row[1])
            # A guess: the row says whose session it is.
            if loaded is not None and loaded.user_id == key:
                return loaded
        statement = self._load.execution_options(populate_existing=True) if refresh else self._load
        row = self.database.session.execute(statement, {"id": id}).first()
        return None if row is None else LoadedSession(row[0], *row[1])

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

    @functools.cached_property
    def _read_key(self) -> Callable[[object], t.Any] | None:
        """Converts what ``get_id()`` returns to a user's key; ``None`` if that may be no key."""
        classes = [mapper.class_ for mapper in sa.inspect(self.users.model).self_and_descendants]
        has_usual_id = all(getattr(cls, "get_id", None) is UserMixin.get_id for cls in classes)
        if not has_usual_id or self.user_key.key != "id":
            return None
        dialect = self.bind.dialect
        readers = {_reader_of(key, dialect) for key in (self.user_key, self.model.user_id)}
        return readers.pop() if len(readers) == 1 else None


def _reader_of(key: t.Any, dialect: sa.Dialect) -> Callable[[object], t.Any] | None:
    """Return what reads a value of a column from text, or ``None`` if nothing can be sure to."""
    kind = key.type.dialect_impl(dialect)
    # Not for a type of the app's own, which may make anything of a value.
    if isinstance(kind, sa.Uuid) and kind.as_uuid:
        return as_id
    if isinstance(kind, sa.Integer) and not isinstance(kind, sa.SmallInteger):
        return _as_integer
    return None


def _as_integer(text: object) -> int | None:
    try:
        number = int(str(text))
    except ValueError:
        return None
    # PostgreSQL refuses to compare its integers with a larger number.
    return number if abs(number) < 2**31 else None
