"""Access to the users in the app's database, and the database sessions to read them in."""

from __future__ import annotations

import contextlib
import functools
import re
import typing as t
import uuid
from collections.abc import Collection

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from .._compat.databases import Database
from .._compat.sqlalchemy import reaches_beyond
from .._revocation.fingerprint import SUPERSEDED, StoredCredential
from .._revocation.password_history import Credentials
from .sql.transactions import own_transaction, set_lock_timeout


class Users:
    """The users of one app."""

    def __init__(self, database: Database, credentials: Credentials) -> None:
        self.database = database
        self.model = credentials.user_model
        self.key = credentials.key
        self.columns = sa.inspect(credentials.user_model).columns
        self.credentials = credentials
        #: The Python type of the keys. What a type of the app's own makes of them, the first shows.
        self._key_type = None if _is_of_the_app(self.key.type) else kind_of(self.key)
        #: The tables that hold a user, several with joined inheritance. Not those of subclasses:
        #: they may be outer joined, and PostgreSQL can't lock rows of an outer join.
        self.tables = sa.inspect(credentials.user_model).tables
        #: Selects the keys of users with their credentials.
        self.stored = sa.select(self.key, *credentials.selected)
        # Built once: building it for each request costs more than running it.
        self._load = (
            sa.select(self.model, *credentials.columns)
            .where(self.key == sa.bindparam("key"))
            .execution_options(autoflush=False)
        )

    def load(self, user_id: t.Any, *, refresh: bool = False) -> tuple[t.Any, ...] | None:
        """Return a user with the raw values of the credential; ``None`` if there is no such user.

        It runs one statement in the app's session, as :meth:`CheckRecords.load` does.

        :param refresh: overwrite a user that the session has loaded before.
        """
        statement = self._load.execution_options(populate_existing=True) if refresh else self._load
        return self.database.session.execute(statement, {"key": user_id}).first()

    def may_be_key(self, value: object) -> bool:
        """Return whether the database compares this value with the keys of users, and doesn't fail.

        It was a key once, but the column may have been of another type then.
        """
        if type(value) is not self._key_type:
            return False
        # PostgreSQL fails if a number is too large for the column.
        return not isinstance(value, int) or abs(value) <= self._max_key

    def has_same_keys(self, column: sa.ColumnElement[t.Any]) -> bool:
        """Return whether a column that refers to users has their keys as the users have them."""
        # PostgreSQL pads CHAR.
        return kind_of(column) is kind_of(self.key) and not isinstance(self.key.type, sa.CHAR)

    def note_key(self, key: object) -> None:
        """Take note of the key of a user, as instances have it."""
        if self._key_type is None:
            self._key_type = type(key)

    @functools.cached_property
    def _max_key(self) -> int:
        with self.database.factory() as session:
            dialect = session.get_bind(self.model).dialect
        return _max_of(self.key.type.dialect_impl(dialect))

    def credentials_of(self, user_ids: Collection[t.Any]) -> dict[t.Any, StoredCredential]:
        """Return the credentials of users as stored now, by the users' keys."""
        with self.reading() as session:
            rows = session.execute(self.stored.where(self.key.in_(user_ids)))
            return {user_id: self.credentials.read(values) for user_id, *values in rows}

    def fingerprint_of(self, user_id: t.Any) -> str | None:
        """Return the fingerprint of a user's credential as the app's session sees it now.

        If this request has seen another credential, return one that equals no other.
        """
        session = self.database.session
        with session.no_autoflush:
            current = self.credentials.current(session.execute, user_id)
        if current is None:
            return None
        history = self.credentials.password_history(user_id)
        is_other = history and current.attributes not in history
        return SUPERSEDED if is_other else current.fingerprint

    def is_transient(self, user: object) -> bool:
        """Return whether an instance that belongs to no database session has a key."""
        state = sa.inspect(user, raiseerr=True)
        return state.transient and state.mapper.primary_key_from_instance(user)[0] is not None

    def with_key_of(self, user: object) -> t.Any:
        """Return the user in the database who has the key of a transient one; ``None`` if none.

        The key may be text where the column holds another type: Flask-Login's ids are text.
        """
        (key,) = sa.inspect(user, raiseerr=True).mapper.primary_key_from_instance(user)
        kind = kind_of(self.key)
        try:
            if kind in (int, str, uuid.UUID) and not isinstance(key, kind):
                key = kind(key)
            row = self.load(key)
        except (ArithmeticError, TypeError, ValueError):
            return None
        except sa.exc.StatementError as error:
            # If the database has failed for any reason but the value, nothing is known.
            if isinstance(error, sa.exc.DBAPIError) and not isinstance(error, sa.exc.DataError):
                raise
            self.roll_back()
            return None
        return None if row is None else row[0]

    def find(self, attribute: str, value: str) -> list[t.Any]:
        """Return the keys of the users with this value; empty if the column can't hold it.

        :raises TypeError: the column holds neither text, whole numbers nor UUIDs.
        """
        column = getattr(self.model, attribute)
        kind = kind_of(column)
        if not self.can_be_named_by(attribute):
            raise TypeError(attribute)
        statement = sa.select(self.key).where(column == sa.bindparam("value", type_=column.type))
        if kind is int and not re.fullmatch("-?[0-9]+", value):
            # Python also accepts '0_1' and the digits of other scripts.
            return []
        try:
            return list(self.database.session.scalars(statement, {"value": kind(value)}))
        except (OverflowError, ValueError):
            return []
        except sa.exc.DataError:
            self.roll_back()
            return []

    def can_be_named_by(self, attribute: str) -> bool:
        """Return whether :meth:`find` accepts this attribute."""
        return kind_of(getattr(self.model, attribute)) in (str, int, uuid.UUID)

    def transaction(self) -> contextlib.AbstractContextManager[sa_orm.Session]:
        """Begin a short transaction on a connection other than that of the app's session."""
        return own_transaction(self.database.factory, self.model)

    def reading(self) -> contextlib.AbstractContextManager[sa_orm.Session]:
        """Begin a short read-only transaction on a connection of its own."""
        return own_transaction(self.database.factory, self.model, writes=False)

    def set_lock_timeout(self) -> None:
        """Limit how long the open transaction of the app's session waits for each lock."""
        set_lock_timeout(self.database.session, self.model)

    @property
    def is_in_transaction(self) -> bool:
        """Return whether the app's session has an open transaction."""
        return self.database.is_session_open and self.database.session.in_transaction()

    def release(self) -> None:
        """Roll back the open transaction of the app's session, if there is one.

        At the end of a request, uncommitted changes are lost in any case. Kept open, the
        transaction would block one of our own: on SQLite by its lock, elsewhere by its connection.
        """
        if self.is_in_transaction:
            self.roll_back()

    def roll_back(self, session: sa_orm.Session | None = None) -> bool:
        """Roll back a session, by default the app's; return whether it was done.

        It isn't if that would undo other work, for example in the transaction that a test suite
        holds around each test. Its owner must roll back what the session has written there.
        """
        session = session or self.database.session
        if session.is_active and reaches_beyond(session, self.model):
            return False
        session.rollback()
        return True


def _is_of_the_app(kind: object) -> bool:
    """Return whether a type of columns may make anything of a value."""
    return isinstance(kind, sa.types.UserDefinedType | sa.TypeDecorator)


def _max_of(kind: object) -> int:
    """Return the largest integer of a type of columns."""
    if isinstance(kind, sa.SmallInteger):
        return (1 << 15) - 1
    return (1 << (63 if isinstance(kind, sa.BigInteger) else 31)) - 1


def kind_of(column: t.Any) -> t.Any:
    """Return the class of a column's values; ``None`` or ``object`` if unknown."""
    kind = None
    # SQLAlchemy 2.0 raises it for some types.
    with contextlib.suppress(NotImplementedError):
        kind = column.type.python_type
    return kind
