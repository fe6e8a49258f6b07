"""All SQL about user sessions.

Two kinds of verbs. What belongs to a transaction of the app takes ``execute``, and neither commits
nor rolls back. Everything else runs in a short transaction of its own.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import typing as t
import uuid
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask_sqlalchemy import SQLAlchemy

from . import clock
from .credentials import Credentials, fingerprint

#: How many rows are read, purged and told of at a time.
BATCH = 1000

Execute = Callable[[sa.Executable], t.Any]


class Ended(t.NamedTuple):
    """A user session that a revocation has ended."""

    id: uuid.UUID
    user_id: t.Any
    store_id: str | None


class Records:
    """The rows of one app's user sessions."""

    def __init__(
        self, db: SQLAlchemy, session_model: type[t.Any], credentials: Credentials
    ) -> None:
        self.db = db
        self.model = session_model
        self.table: sa.Table = session_model.__table__
        self.columns = sa.inspect(session_model).columns
        self.credentials = credentials
        self.user_key = credentials.key
        self.user_columns = sa.inspect(credentials.user_model).columns
        user_model = credentials.user_model
        passwords = credentials.columns
        joined = session_model.user_id == self.user_key
        # A join by the foreign key would mean the same, and take PostgreSQL longer to plan: in each
        # request, because psycopg forgets what it has prepared at every rollback.
        owner = (
            sa.select(session_model.user_id)
            .where(session_model.id == sa.bindparam("id"))
            .correlate(None)
            .scalar_subquery()
        )
        # Built once: building it in each request costs more than running it.
        self._load = (
            sa.select(
                user_model,
                session_model.generation,
                session_model.fingerprint,
                session_model.last_seen_at,
                session_model.store_id,
                *passwords,
            )
            .join(session_model, session_model.id == sa.bindparam("id"))
            .where(self.user_key == owner, session_model.revoked_at.is_(None))
            .execution_options(autoflush=False)
        )
        self._of_user = sa.select(session_model, *passwords).join(user_model, joined)

    # -- in the app's transaction ------------------------------------------------------------

    def load(self, id: uuid.UUID, *, anew: bool = False) -> tuple[t.Any, ...] | None:
        """The user of a user session, and what the check on each request compares.

        One statement in the app's session, which thereby knows the user: a user loader that asks
        for the primary key runs none. ``None``: no such row, it has ended, or its user is gone.

        :param anew: whether a user that the session knows already is overwritten.
        :returns: user, generation, fingerprint, last_seen_at, store_id, and the values
            of the password attributes.
        """
        options = {"populate_existing": True} if anew else {}
        return self.db.session.execute(self._load, {"id": id}, execution_options=options).first()

    def reason(self, id: uuid.UUID) -> str | None:
        """Why a session ended; ``None`` if it has not, or there is none."""
        statement = sa.select(self.model.revoked_reason).where(self.model.id == id)
        with self.db.session.no_autoflush:
            return self.db.session.scalar(statement)

    def reason_of_entry(self, store_id: str) -> tuple[str | None, uuid.UUID | None]:
        """Why the session does not stand that has, or had, this key in the store; which it is.

        ``"rotated"``: it goes on under another one. ``None``: it stands, or there is none.
        """
        model = self.model
        statement = (
            sa.select(model.id, model.store_id, model.revoked_reason)
            .where(sa.or_(model.store_id == store_id, model.previous_store_id == store_id))
            .order_by(model.created_at.desc())
            .limit(1)
        )
        with self.db.session.no_autoflush:
            row = self.db.session.execute(statement).first()
        if row is None:
            return None, None
        return row.revoked_reason or (None if row.store_id == store_id else "rotated"), row.id

    def was_rotated_since(self, id: uuid.UUID, moment: dt.datetime) -> bool:
        """Whether the id of a session was last changed after this moment."""
        statement = sa.select(self.model.rotated_at).where(self.model.id == id)
        with self.db.session.no_autoflush:
            rotated_at = self.db.session.scalar(statement)
        return rotated_at is not None and clock.as_utc(rotated_at) > moment

    def owner(self, execute: Execute, id: uuid.UUID) -> list[t.Any]:
        """Whose session this is, in a list; empty if there is none."""
        model = self.model
        return list(execute(sa.select(model.user_id).where(model.id == id)).scalars())

    def holders(self, after: t.Any, limit: int) -> list[t.Any]:
        """The users who have sessions that have not ended, in the order of their keys."""
        model = self.model
        statement = sa.select(model.user_id).distinct().where(model.revoked_at.is_(None))
        statement = statement.where(
            model.user_id.is_not(None) if after is None else model.user_id > after
        )
        rows = self.db.session.execute(statement.order_by(model.user_id).limit(limit))
        return list(rows.scalars())

    def count(self, user_ids: Sequence[t.Any] | None) -> int:
        """How many sessions have not ended, of these users or of everybody."""
        model = self.model
        statement = (
            sa.select(sa.func.count())
            .select_from(model)
            .where(model.revoked_at.is_(None), model.user_id.is_not(None))
        )
        if user_ids is not None:
            statement = statement.where(self._belongs_to(user_ids))
        return t.cast(int, self.db.session.scalar(statement))

    def find_users(self, attribute: str, value: str) -> list[t.Any]:
        """The keys of the users with this value; empty if it can't be a value of the column.

        :raises TypeError: the column holds neither text nor whole numbers nor UUIDs.
        """
        column = getattr(self.credentials.user_model, attribute)
        kind = None
        with contextlib.suppress(NotImplementedError):
            kind = column.type.python_type
        if kind not in (str, int, uuid.UUID):
            raise TypeError(attribute)
        statement = sa.select(self.user_key).where(
            column == sa.bindparam("value", type_=column.type)
        )
        try:
            return list(self.db.session.scalars(statement, {"value": kind(value)}))
        except (OverflowError, ValueError):
            return []
        except sa.exc.DataError:
            self.db.session.rollback()
            return []

    def lock_users(self, execute: Execute, user_ids: Sequence[t.Any]) -> None:
        """Lock the rows of users, for the rest of the transaction.

        Every transaction that adds a session, or writes several, holds the user's row first;
        otherwise logins and password changes of one user deadlock.
        """
        execute(
            sa.select(self.user_key)
            .where(self.user_key.in_(user_ids))
            .order_by(self.user_key)
            .with_for_update(key_share=True)
        )

    def end_all(
        self,
        execute: Execute,
        user_ids: Sequence[t.Any],
        *,
        revocation: uuid.UUID,
        reason: str,
        spare: uuid.UUID | None = None,
        only: uuid.UUID | None = None,
    ) -> int:
        """End the sessions of users; how many there were."""
        column = self.columns
        statement = self.table.update().where(
            self._belongs_to(user_ids), column.revoked_at.is_(None)
        )
        if spare is not None:
            statement = statement.where(column.id != spare)
        if only is not None:
            statement = statement.where(column.id == only)
        values = self._ending(reason) | {column.revocation: revocation}
        return t.cast(int, execute(statement.values(values)).rowcount)

    def recredit(
        self,
        execute: Execute,
        id: uuid.UUID,
        *,
        generations: tuple[int, int],
        fingerprint: str | None,
    ) -> bool:
        """Give one standing session a new fingerprint and the next generation.

        :param generations: the lowest and the highest that it may have.
        """
        column = self.columns
        result = execute(
            self.table.update()
            .where(
                column.id == id,
                column.generation.between(*generations),
                column.revoked_at.is_(None),
            )
            .values(
                {
                    column.fingerprint: fingerprint,
                    column.generation: column.generation + 1,
                    column.rotated_at: clock.now(),
                }
            )
        )
        return bool(result.rowcount)

    def follow_rehash(
        self, execute: Execute, user_id: t.Any, *, before: str | None, after: str | None
    ) -> None:
        """Move the fingerprints of a user's sessions along with a new hash of the password.

        Only of those that had the old one: a session that was dead by its fingerprint stays dead.
        """
        column = self.columns
        execute(
            self.table.update()
            .where(
                column.user_id == user_id,
                column.revoked_at.is_(None),
                column.fingerprint == before,
            )
            .values({column.fingerprint: after})
        )

    def active(self, session: sa_orm.Session, user_id: t.Any, *, since: dt.datetime) -> list[t.Any]:
        """The active sessions of a user, most recently seen first.

        :param since: an earlier last sight is an expired session, unless it is remembered.
        """
        model = self.model
        rows = session.execute(
            self._of_user.where(
                model.user_id == user_id,
                model.revoked_at.is_(None),
                sa.or_(model.last_seen_at > since, model.remember_until > clock.now()),
            ).order_by(model.last_seen_at.desc(), model.id)
        )
        return [row for row, *passwords in rows if row.fingerprint == fingerprint((*passwords,))]

    # -- in a transaction of our own ---------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa_orm.Session]:
        """A short transaction on another connection than the app's session.

        Made like the app's session, so that it follows what the app set for its sessions.
        """
        with self.db.session.session_factory() as session, session.begin():
            yield session

    def release(self) -> None:
        """End the open transaction of the app's session, if there is one.

        At the end of a request what is not committed is lost in any case; held any longer, it
        would block a transaction of our own: on SQLite by its lock, elsewhere by its connection.
        """
        if self.db.session.registry.has() and self.db.session().in_transaction():
            self.db.session.rollback()

    def add(
        self,
        values: dict[str, t.Any],
        *,
        fingerprints: Sequence[str | None],
        replaces: uuid.UUID | None = None,
    ) -> bool:
        """Add a row and end the one it replaces; ``False`` if there is no such user.

        :param fingerprints: of the credential that was checked, and of those stored since. The row
            gets the one that is current; if none is, the first: it is dead on arrival.
        """
        column = self.columns
        with self.transaction() as session:
            if self._is_sqlite(session):
                session.execute(self.table.delete().where(column.id == values["id"]))
            stored = session.execute(
                sa.select(self.user_key, *self.credentials.columns)
                .where(self.user_key == values["user_id"])
                .with_for_update(key_share=True)
            ).first()
            if stored is None:
                return False
            if replaces is not None:
                self._end(session.execute, replaces, "replaced")
            now = fingerprint(tuple(stored[1:]))
            values = {**values, "fingerprint": now if now in fingerprints else fingerprints[0]}
            session.execute(
                self.table.insert().values({column[name]: values[name] for name in values})
            )
        return True

    def standing(self, id: uuid.UUID) -> int | None:
        """The generation of a session as it stands now; ``None`` if it has ended."""
        with self.transaction() as session:
            return self._generation(session, id)

    def standing_now(self, id: uuid.UUID) -> int | None:
        """The same, when the app's session may hold the only connection.

        Inside the app's transaction it is a locking read, because InnoDB would show the state at
        the beginning of the transaction otherwise.
        """
        session = self.db.session
        if session.registry.has() and session().in_transaction():
            try:
                return self._generation(session(), id, lock=True)
            except sa.exc.SQLAlchemyError:
                session.rollback()
        return self.standing(id)

    def renew(self, id: uuid.UUID, *, generation: int, becomes: int, store_id: str | None) -> bool:
        """Let a session go on under another key or generation; ``False``: it no longer stands."""
        column = self.columns
        with self.transaction() as session:
            result = session.execute(
                self._standing(id, generation).values(
                    {
                        column.generation: becomes,
                        column.previous_store_id: column.store_id,
                        column.store_id: store_id,
                        column.rotated_at: clock.now(),
                    }
                )
            )
            return bool(t.cast("sa.CursorResult[t.Any]", result).rowcount)

    def touch(self, id: uuid.UUID, values: dict[str, t.Any]) -> None:
        """Write when, whence and with what a session was last seen. Revives nothing."""
        column = self.columns
        with self.transaction() as session:
            session.execute(
                self.table.update()
                .where(column.id == id, column.revoked_at.is_(None))
                .values({column[name]: values[name] for name in values})
            )

    def end(self, id: uuid.UUID, reason: str) -> bool:
        """End one session; ``False`` if it had ended already."""
        with self.transaction() as session:
            return self._end(session.execute, id, reason)

    def ended_by(self, revocation: uuid.UUID, user_ids: Sequence[t.Any]) -> Iterator[list[Ended]]:
        """What a revocation has ended, in batches."""
        model = self.model
        statement = (
            sa.select(model.id, model.user_id, model.store_id)
            .where(self._belongs_to(user_ids), model.revocation == revocation)
            .order_by(model.id)
            .limit(BATCH)
        )
        batch = statement
        while True:
            with self.transaction() as session:
                rows = [Ended(*row) for row in session.execute(batch)]
            if rows:
                yield rows
            if len(rows) < BATCH:
                return
            batch = statement.where(model.id > rows[-1].id)

    def purged(self, ids: Sequence[uuid.UUID]) -> None:
        """Take down that the entries of ended sessions are gone from the session store."""
        column = self.columns
        with self.transaction() as session:
            if not self._is_sqlite(session):
                owners = sa.select(self.model.user_id).where(self.model.id.in_(ids)).distinct()
                self.lock_users(session.execute, list(session.scalars(owners)))
            session.execute(
                self.table.update()
                .where(column.id.in_(ids))
                .values({column.purged_at: clock.now()})
            )

    # -- pieces -------------------------------------------------------------------------------

    def _is_sqlite(self, session: sa_orm.Session) -> bool:
        """Whether no rows can be locked, and a transaction that has read can't always write."""
        return session.get_bind(self.model).dialect.name == "sqlite"

    def _ending(self, reason: str) -> dict[t.Any, t.Any]:
        return {
            self.columns.revoked_at: clock.now(),
            self.columns.revoked_reason: reason,
        }

    def _belongs_to(self, user_ids: Sequence[t.Any]) -> sa.ColumnElement[bool]:
        user_id: sa.ColumnElement[t.Any] = self.columns.user_id
        return user_id == user_ids[0] if len(user_ids) == 1 else user_id.in_(user_ids)

    def _standing(self, id: uuid.UUID, generation: int) -> sa.Update:
        column = self.columns
        return self.table.update().where(
            column.id == id, column.generation == generation, column.revoked_at.is_(None)
        )

    def _end(self, execute: Execute, id: uuid.UUID, reason: str) -> bool:
        column = self.columns
        statement = self.table.update().where(column.id == id, column.revoked_at.is_(None))
        return bool(execute(statement.values(self._ending(reason))).rowcount)

    def _generation(
        self, session: sa_orm.Session, id: uuid.UUID, *, lock: bool = False
    ) -> int | None:
        model = self.model
        statement = sa.select(model.generation).where(model.id == id, model.revoked_at.is_(None))
        if lock:
            statement = statement.with_for_update(read=True)
        return session.scalar(statement.execution_options(autoflush=False))
