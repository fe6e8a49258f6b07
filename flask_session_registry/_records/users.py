"""All SQL about users, and the app's database session that it runs in."""

from __future__ import annotations

import contextlib
import re
import typing as t
import uuid
from collections.abc import Collection

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from .._compat.databases import Database
from .._compat.sqlalchemy import reaches_beyond
from .._revocation.fingerprint import SUPERSEDED, Credentials, StoredCredential
from .sql.transactions import limit_waiting, own_transaction


class Users:
    """The users of one app."""

    def __init__(self, database: Database, credentials: Credentials) -> None:
        self.database = database
        self.model = credentials.user_model
        self.key = credentials.key
        self.columns = sa.inspect(credentials.user_model).columns
        self.credentials = credentials
        #: What holds a user: with joined inheritance several. Those of subclasses may be outer
        #: joined, by which PostgreSQL can't lock a row.
        self.tables = sa.inspect(credentials.user_model).tables
        #: The keys of users, and the values of their credentials.
        self.stored = sa.select(self.key, *credentials.stored)
        # Built once: building it in each request costs more than running it.
        self._load = (
            sa.select(self.model, *credentials.columns)
            .where(self.key == sa.bindparam("key"))
            .execution_options(autoflush=False)
        )

    def load(self, user_id: t.Any, *, refresh: bool = False) -> tuple[t.Any, ...] | None:
        """A user, and the values of the password attributes; ``None``: there is no such user.

        One statement in the app's session, which thereby knows the user: a user loader that asks
        for the primary key runs none.

        :param refresh: whether a user that the session knows already is overwritten.
        """
        statement = self._load.execution_options(populate_existing=True) if refresh else self._load
        return self.database.session.execute(statement, {"key": user_id}).first()

    def credentials_of(self, user_ids: Collection[t.Any]) -> dict[t.Any, StoredCredential]:
        """The credentials of users by their keys, as they are stored now."""
        with self.reading() as session:
            rows = session.execute(self.stored.where(self.key.in_(user_ids)))
            return {user_id: self.credentials.read(values) for user_id, *values in rows}

    def fingerprint_of(self, user_id: t.Any) -> str | None:
        """The fingerprint of a user's credential, as the app's session sees it now.

        If this request has seen another one, it equals none.
        """
        session = self.database.session
        with session.no_autoflush:
            current = self.credentials.current(session.execute, user_id)
        if current is None:
            return None
        known = self.credentials.fingerprint_history(user_id, {})
        return SUPERSEDED if known and current.shown not in known else current.fingerprint

    def is_made_by_hand(self, user: object) -> bool:
        """Whether this is an instance that belongs to no row yet, and has a key."""
        state = sa.inspect(user, raiseerr=True)
        return state.transient and state.mapper.primary_key_from_instance(user)[0] is not None

    def with_key_of(self, user: object) -> t.Any:
        """The user whose key an instance has been given by hand; ``None``: there is none.

        The key may be text where the column holds something else: Flask-Login's ids are.
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
            # What the database has refused, but for such a value, is no answer.
            if isinstance(error, sa.exc.DBAPIError) and not isinstance(error, sa.exc.DataError):
                raise
            self.roll_back()
            return None
        return None if row is None else row[0]

    def find(self, attribute: str, value: str) -> list[t.Any]:
        """The keys of the users with this value; empty if it can't be a value of the column.

        :raises TypeError: the column holds neither text nor whole numbers nor UUIDs.
        """
        column = getattr(self.model, attribute)
        kind = kind_of(column)
        if not self.can_be_named_by(attribute):
            raise TypeError(attribute)
        statement = sa.select(self.key).where(column == sa.bindparam("value", type_=column.type))
        if kind is int and not re.fullmatch("-?[0-9]+", value):
            # Python would take '0_1', and digits of other scripts, too.
            return []
        try:
            return list(self.database.session.scalars(statement, {"value": kind(value)}))
        except (OverflowError, ValueError):
            return []
        except sa.exc.DataError:
            self.roll_back()
            return []

    def can_be_named_by(self, attribute: str) -> bool:
        """Whether :meth:`find` takes this attribute."""
        return kind_of(getattr(self.model, attribute)) in (str, int, uuid.UUID)

    def transaction(self) -> contextlib.AbstractContextManager[sa_orm.Session]:
        """A short transaction on another connection than the app's session."""
        return own_transaction(self.database.factory, self.model)

    def reading(self) -> contextlib.AbstractContextManager[sa_orm.Session]:
        """The same, in which nothing is written."""
        return own_transaction(self.database.factory, self.model, writes=False)

    def limit_waiting(self) -> None:
        """Let the open transaction of the app's session wait no longer for each lock than ours."""
        limit_waiting(self.database.session, self.model)

    @property
    def is_in_transaction(self) -> bool:
        """Whether the app's session has an open transaction."""
        return self.database.is_session_open and self.database.session.in_transaction()

    def release(self) -> None:
        """End the open transaction of the app's session, if there is one.

        At the end of a request what is not committed is lost in any case; held any longer, it
        would block a transaction of our own: on SQLite by its lock, elsewhere by its connection.
        """
        if self.is_in_transaction:
            self.roll_back()

    def roll_back(self, session: sa_orm.Session | None = None) -> bool:
        """Roll back a session, by default the app's; whether that was done.

        Not if it would undo what somebody else has done, within the transaction that a test suite
        holds around each test, say. What the session has written there is theirs to roll back.
        """
        session = session or self.database.session
        if session.is_active and reaches_beyond(session, self.model):
            return False
        session.rollback()
        return True


def kind_of(column: t.Any) -> t.Any:
    """The class of a column's values; ``None``, or ``object``: it is not known."""
    kind = None
    # What SQLAlchemy 2.0 raises.
    with contextlib.suppress(NotImplementedError):
        kind = column.type.python_type
    return kind
