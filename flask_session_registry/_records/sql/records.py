"""All SQL about user sessions, where they are rows of a table in the app's own database.

Two kinds of verbs. What belongs to a transaction of the app takes ``execute``, and neither commits
nor rolls back. Everything else runs in a short transaction of its own.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import random
import typing as t
import uuid
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask_login import UserMixin
from sqlalchemy.dialects import postgresql

from ... import _clock as clock
from ..._ops.filters import Filter
from ..._revocation.fingerprint import SUPERSEDED, CheckedCredential, StoredCredential
from ..._revocation.fingerprint_history import Credentials
from ...models import is_session
from .. import base as records
from ..base import (
    NOT_IN_THE_FUTURE,
    STALE_KEY,
    Execute,
    Left,
    Limit,
    LimitReachedError,
    LoadedSession,
    PageEnd,
    PasswordChange,
    Replaced,
    RevocationOrder,
    RevocationResult,
    SessionSummary,
    StoreEntry,
    SupersededError,
    as_id,
    choose_link,
    link_ids,
    new_id,
)
from ..expiry import Expiry
from ..users import Users

#: How many batches are read at once.
_BATCHES = 10

#: How many users are signed out in one transaction, where many are.
_USERS = 500

#: The row that bars everybody from adoption. The one that bars a user has an id that is made of
#: this one and the user's key. Such rows belong to nobody, and have ended.
_BAR_OF_ALL = uuid.UUID("4c1f3b52-93f5-4d2e-8a53-7b7a1d1a6f0e")

_INNODB = ("mysql", "mariadb")

#: Before the first id that begins with the time, in milliseconds since the epoch: 2026 began.
_FIRST_MOMENT = 1_767_225_600_000

#: Rows that housekeeping looks at, of all that there are.
ScanWindow = sa.ColumnElement[bool]

#: The name of an index that begins with this column.
_FIRST_INDEX = sa.text(
    "SELECT INDEX_NAME FROM information_schema.STATISTICS WHERE SEQ_IN_INDEX = 1"
    " AND TABLE_SCHEMA = COALESCE(:schema, DATABASE())"
    " AND TABLE_NAME = :table AND COLUMN_NAME = :column LIMIT 1"
)


@contextlib.contextmanager
def _hiding_parameters() -> Iterator[None]:
    """Within it the transaction is the app's, and so is the error, if a statement fails.

    Among its parameters are keys of entries and fingerprints, which the app would log.
    """
    try:
        yield
    except sa.exc.StatementError as error:
        error.hide_parameters = True
        raise


class SQLRecords:
    """The rows of one app's user sessions.

    :param loads_beginning: whether the check on each request needs to know when a session began.
    """

    def __init__(
        self,
        users: Users,
        session_model: type[t.Any],
        credentials: Credentials,
        *,
        loads_beginning: bool = False,
    ) -> None:
        self.users = users
        self.database = users.database
        self.model = session_model
        self.table: sa.Table = session_model.__table__
        self.columns = sa.inspect(session_model).columns
        self.user_key = users.key
        self.credentials = credentials
        user_model = credentials.user_model
        passwords = credentials.columns
        joined = session_model.user_id == self.user_key
        has_id = session_model.id == sa.bindparam("id")
        if isinstance(sa.inspect(user_model).selectable, sa.Join):
            # On MariaDB SQLAlchemy would not see that the two are joined, and warn.
            has_id = sa.and_(has_id, joined)
        # Built once: building it in each request costs more than running it.
        loading = (
            sa.select(
                user_model,
                session_model.generation,
                session_model.fingerprint,
                session_model.last_seen_at,
                session_model.store_id,
                session_model.created_at if loads_beginning else sa.null(),
                *passwords,
                session_model.user_id,
            )
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
        #: How far this process has looked at the rows, for housekeeping.
        self._scanned_to: uuid.UUID | None = None
        #: Empty: there is none. ``None``: nobody has asked yet.
        self._user_index: str | None = None
        self._stored = sa.select(
            session_model.id,
            session_model.user_id,
            session_model.store_id,
            session_model.previous_store_id,
        )
        self._of_user = sa.select(session_model, *passwords).join(user_model, joined)

    # -- in the app's transaction ------------------------------------------------------------

    updates_after_commit = False

    def load(
        self, id: uuid.UUID, user: object = None, *, refresh: bool = False
    ) -> LoadedSession | None:
        """The user of a user session, and what the check on each request compares.

        One statement in the app's session, which thereby knows the user: a user loader that asks
        for the primary key runs none. ``None``: no such row, it has ended, or its user is gone.

        :param user: what ``get_id()`` says of the user whose session it should be, if known.
        :param refresh: whether a user that the session knows already is overwritten.
        :returns: user, generation, fingerprint, last_seen_at, store_id, created_at (``None`` where
            it is not needed), and the values of the password attributes.
        """
        key = None if user is None or self._read_key is None else self._read_key(user)
        if key is not None:
            values = {"id": id, "user_id": key}
            row = self.database.session.execute(self._load_both, values).first()
            # A guess: whose session it is, the row says.
            if row is not None and row[-1] == key:
                return _loaded(row)
        statement = self._load.execution_options(populate_existing=True) if refresh else self._load
        row = self.database.session.execute(statement, {"id": id}).first()
        return None if row is None else _loaded(row)

    def get(self, id: uuid.UUID) -> t.Any:
        """The row, in the app's session; ``None``: there is none."""
        return self.database.session.get(self.model, id)

    def can_be_restored(self, id: uuid.UUID, now: dt.datetime) -> bool:
        """Whether a "remember me" cookie could still renew this session."""
        statement = sa.select(self.model.remember_until).where(self.model.id == id)
        with self.database.session.no_autoflush:
            until = self.database.session.scalar(statement)
        return until is not None and clock.as_utc(until) > now

    def find_end(self, id: uuid.UUID) -> records.End | None:
        """Why and when a session ended; ``None`` if it has not, or there is none."""
        with self.database.session.no_autoflush:
            return self._end_of(self.database.session.execute, id)

    def find_end_after_commit(self, id: uuid.UUID) -> records.End | None:
        """The same, where the app's session can't be asked: its transaction is just ending."""
        with self.users.reading() as session:
            return self._end_of(session.execute, id)

    def _end_of(self, execute: Execute, id: uuid.UUID) -> records.End | None:
        model = self.model
        statement = sa.select(model.revoked_reason, model.revoked_at, model.revocation)
        row = execute(statement.where(model.id == id)).first()
        return None if row is None else _end_of(row)

    def find_end_by_store_key(self, store_id: str) -> tuple[records.End | None, uuid.UUID | None]:
        """How the session ended that has, or had, this key in the store; which it is.

        ``"rotated"``: it goes on under another one. ``None``: it stands, or there is none.
        """
        model = self.model
        statement = (
            sa.select(
                model.id,
                model.store_id,
                model.rotated_at,
                model.revoked_at,
                model.revoked_reason,
                model.revocation,
            )
            .where(sa.or_(model.store_id == store_id, model.previous_store_id == store_id))
            .order_by(model.created_at.desc())
            .limit(1)
        )
        with self.database.session.no_autoflush:
            row = self.database.session.execute(statement).first()
        if row is None:
            return None, None
        if row.revoked_reason == STALE_KEY and row.revocation is not None:
            # One that its session could have come back to: what became of that?
            return self.find_end(row.revocation) or _end_of(row), row.id
        end = _end_of(row)
        if end is None and row.store_id != store_id:
            end = records.End(STALE_KEY, clock.as_utc(row.rotated_at or clock.EPOCH))
        return end, row.id

    def was_rotated_within(self, id: uuid.UUID, duration: dt.timedelta) -> bool:
        """Whether the id of a session was last changed that recently."""
        statement = sa.select(self.model.rotated_at).where(self.model.id == id)
        with self.database.session.no_autoflush:
            rotated_at = self.database.session.scalar(statement)
        return rotated_at is not None and clock.is_within(duration, of=clock.as_utc(rotated_at))

    def owner_of(self, execute: Execute, id: uuid.UUID) -> list[t.Any]:
        """Whose session this is that has not ended, in a list; empty if there is none."""
        model = self.model
        stands = (model.id == id, model.revoked_at.is_(None))
        return list(execute(sa.select(model.user_id).where(*stands)).scalars())

    def lock_users(
        self, execute: Execute, user_ids: Sequence[t.Any], *, waits: bool = True
    ) -> set[t.Any]:
        """Lock the rows of users, for the rest of the transaction; of which users that was done.

        Every transaction that adds a session, or writes several, holds the user's row first;
        otherwise logins and password changes of one user deadlock.

        :param waits: whether to wait for rows that somebody else holds, or to leave them out.
        """
        rows = execute(
            sa.select(self.user_key)
            .where(self.user_key.in_(user_ids))
            .order_by(self.user_key)
            .with_for_update(key_share=True, skip_locked=not waits, of=self.users.tables)
        )
        return set(rows.scalars())

    @_hiding_parameters()
    def revoke(
        self,
        execute: Execute,
        order: RevocationOrder,
        *,
        already: Sequence[RevocationOrder] | None = None,
    ) -> RevocationResult:
        """See :meth:`RevocationRecords.revoke`; the database knows what was ended before."""
        column, change, except_id = self.columns, order.change, order.except_id
        has_survivor = change is not None and self._update_credentials(execute, change)
        if change is not None and change.survivor is not None and has_survivor:
            except_id = change.survivor.id
        statement = self._update_of_users(execute, order.user_ids).where(
            column.revoked_at.is_(None)
        )
        if except_id is not None:
            statement = statement.where(_of_what_is_found(column.id != except_id))
        if order.only_id is not None:
            statement = statement.where(column.id == order.only_id)
        if order.where is not None:
            statement = statement.where(order.where)
        values = self._ending(order.reason) | {column.revocation: order.id}
        count = execute(statement.values(values)).rowcount
        return RevocationResult(count, has_survivor, ended_by_commit=count)

    def _update_credentials(self, execute: Execute, change: PasswordChange) -> bool:
        """Give one standing session a new fingerprint and the next generation.

        Only in a generation that its request knows it by: in another one, somebody else has it.
        """
        column, current = self.columns, change.survivor
        if current is None:
            return False
        if current.store_id is not None:
            self._leave_behind(execute, current.id, self.model.previous_store_id)
        for generation, fingerprint in reversed(current.held):
            result = execute(
                self._standing(current.id, generation)
                .where(column.fingerprint.is_not_distinct_from(fingerprint))
                .ordered_values(
                    (column.fingerprint, change.fingerprint),
                    (column.generation, generation + 1),
                    (column.rotated_at, clock.now()),
                    # Its entry is dead from here on; the next one is written by the answer, if
                    # the process lives to give it.
                    *self._moving_to(None),
                )
            )
            if result.rowcount:
                current.held.append((generation + 1, change.fingerprint))
                return True
        return False

    @_hiding_parameters()
    def sync_fingerprints(
        self, execute: Execute, user_id: t.Any, *, before: str | None, after: str | None
    ) -> Callable[[], None]:
        """Move the fingerprints of a user's sessions along with a new hash of the password.

        Only of those that had the old one: a session that was dead by its fingerprint stays dead.

        :returns: what is left to do after the commit.
        """
        column = self.columns
        execute(
            self._update_of_users(execute, [user_id])
            .where(column.revoked_at.is_(None), column.fingerprint == before)
            .values({column.fingerprint: after})
        )
        return lambda: None

    def active(self, session: sa_orm.Session, user_id: t.Any, *, expiry: Expiry) -> list[t.Any]:
        """The active sessions of a user, most recently seen first."""
        model = self.model
        rows = session.execute(
            self._of_user.where(
                model.user_id == user_id,
                model.revoked_at.is_(None),
                sa.not_(expiry.condition(self.columns)),
            ).order_by(model.last_seen_at.desc(), model.id)
        )
        current = self.credentials.fingerprint
        return [row for row, *passwords in rows if row.fingerprint == current((*passwords,))]

    def list_all(self, session: sa_orm.Session, user_id: t.Any) -> list[t.Any]:
        """All rows of a user, ended ones too, most recently seen first."""
        model = self.model
        statement = sa.select(model).where(model.user_id == user_id, is_session(model))
        return list(session.scalars(statement.order_by(model.last_seen_at.desc(), model.id)))

    def list_others(
        self, current: t.Any, *, expiry: Expiry, after: PageEnd | None, limit: int
    ) -> list[t.Any]:
        """Active sessions of the user of this one, but for it, most recently seen first.

        :param current: one that the check has just accepted: its fingerprint is the current one.
        :param after: the last one of the page before.
        """
        model = self.model
        statement = sa.select(model).where(
            model.user_id == current.user_id,
            model.id != current.id,
            model.revoked_at.is_(None),
            model.fingerprint.is_not_distinct_from(current.fingerprint),
            sa.not_(expiry.condition(self.columns)),
        )
        if after is not None:
            seen = model.last_seen_at
            is_next = sa.and_(seen == after.last_seen_at, model.id > after.id)
            statement = statement.where(sa.or_(seen < after.last_seen_at, is_next))
        statement = statement.order_by(model.last_seen_at.desc(), model.id).limit(limit)
        return list(self.database.session.scalars(statement))

    def recently_ended(self, user_id: t.Any, *, limit: int) -> list[t.Any]:
        """The sessions of a user that have ended last, the last one first."""
        model = self.model
        has_ended = model.revoked_at.is_not(None)
        statement = sa.select(model).where(model.user_id == user_id, has_ended, is_session(model))
        statement = statement.order_by(model.revoked_at.desc(), model.id).limit(limit)
        return list(self.database.session.scalars(statement))

    # -- in a transaction of our own ---------------------------------------------------------

    @contextlib.contextmanager
    def _transaction_without_waiting(self) -> Iterator[Execute]:
        """A short transaction that is given up where SQLite would wait for another one."""
        engine = self._bind
        if self._dialect != "sqlite" or isinstance(engine, sa.Connection):
            with self.users.transaction() as session:
                yield session.execute
            return
        with engine.connect() as connection:
            if connection.in_transaction():
                # A test suite has made it the only one there is.
                with connection.begin_nested():
                    yield connection.execute
                return
            # Asked behind SQLAlchemy's back, which would begin a transaction for it.
            sqlite: t.Any = connection.connection.driver_connection
            (timeout,) = sqlite.execute("PRAGMA busy_timeout").fetchone()
            sqlite.execute("PRAGMA busy_timeout = 0")
            try:
                yield connection.execute
                connection.commit()
            except sa.exc.OperationalError as error:
                if "locked" not in str(error.orig):
                    raise
            finally:
                connection.rollback()
                sqlite.execute(f"PRAGMA busy_timeout = {timeout:d}")

    def add(
        self,
        values: dict[str, t.Any],
        *,
        evidence: CheckedCredential,
        replaces: Sequence[Replaced],
        limit: Limit | None,
        expiry: Expiry,
    ) -> list[StoreEntry] | None:
        """Add a row and end those it replaces; ``None`` if there is no such user.

        :param evidence: of the credential that was checked. If that is not the current one, the
            row is dead on arrival.
        :returns: the sessions that had to end because of the limit.
        :raises LimitReachedError: the new one had to be refused because of it.
        :raises SupersededError: the one that it replaces, and depends on, stands no more.
        """
        with self.users.transaction() as session:
            current = self._lock_user(session, values["user_id"])
            if current is None:
                return None
            is_current = evidence.covers(current)
            for one in replaces:
                is_current |= self._replace(session, one, current.fingerprint)
            evicted: list[StoreEntry] = []
            if limit is not None and is_current:
                evicted = self._evict(
                    session, values["user_id"], current.fingerprint, limit, expiry
                )
            row = values | {"fingerprint": current.fingerprint if is_current else SUPERSEDED}
            session.execute(self._insertion_of(row))
        return evicted

    def assign_id(self, id: uuid.UUID, user_id: t.Any) -> uuid.UUID:
        """The id of a new session of this user: any will do, but on InnoDB a random one.

        Whoever ends the sessions of a user holds, in the index on ``user_id``, also the gap between
        the last one of the user before and the first one of this. Within a user the index goes by
        the id, so that the newest would always fall into that gap, and the login wait.
        """
        return uuid.uuid4() if self._dialect in _INNODB else id

    def _evict(
        self,
        session: sa_orm.Session,
        user_id: t.Any,
        current: str | None,
        limit: Limit,
        expiry: Expiry,
    ) -> list[StoreEntry]:
        """End the oldest sessions of a user, so that there is room for one more; which they are.

        :param current: the fingerprint of the user's current credential.
        :raises LimitReachedError: none may end for it.
        """
        column = self.columns
        active = self._stored.where(
            column.user_id == user_id,
            column.revoked_at.is_(None),
            column.fingerprint == current if current else column.fingerprint.is_(None),
            sa.not_(expiry.condition(column)),
        ).order_by(column.created_at, column.id)
        rows = [StoreEntry(*row) for row in session.execute(active)]
        evicted = rows[: max(0, len(rows) + 1 - limit.most)]
        if evicted and limit.rejects:
            raise LimitReachedError
        if evicted:
            session.execute(
                self._update_of([row.id for row in evicted]).values(self._ending("max_sessions"))
            )
        return evicted

    def find_by_store_key(self, store_id: str, user_id: t.Any) -> list[StoreEntry]:
        """The sessions of a user that stand, and have or had this key in the store."""
        model = self.model
        # A row of nobody names the session that left the key behind.
        ids = sa.select(sa.func.coalesce(model.revocation, model.id)).where(
            sa.or_(model.store_id == store_id, model.previous_store_id == store_id)
        )
        with self.users.reading() as session:
            found = session.scalars(ids).all()
            if not found:
                return []
            statement = self._stored.where(
                model.id.in_(found), model.user_id == user_id, model.revoked_at.is_(None)
            )
            return [StoreEntry(*row) for row in session.execute(statement)]

    def find_never_resumed(
        self, user_id: t.Any, *, ip_address: str | None, user_agent: str | None, skip: int
    ) -> list[StoreEntry]:
        """The sessions of a user that stand, but were never seen after they began; the last first.

        :param ip_address: only those from there, with this user agent.
        :param skip: how many of the last ones to leave out.
        """
        model = self.model
        statement = self._stored.where(
            model.user_id == user_id,
            model.revoked_at.is_(None),
            model.last_seen_at == model.created_at,
            model.ip_address.is_not_distinct_from(sa.literal(ip_address, model.ip_address.type)),
            model.user_agent.is_not_distinct_from(sa.literal(user_agent, model.user_agent.type)),
        )
        statement = statement.order_by(model.created_at.desc(), model.id)
        with self.users.reading() as session:
            return [
                StoreEntry(*row)
                for row in session.execute(statement.offset(skip).limit(records.BATCH))
            ]

    def was_seen(self, user_id: t.Any, *, ip_address: str | None, user_agent: str | None) -> bool:
        """Whether a session of this user is kept that was seen at this address, with this agent.

        One that a revocation has ended says nothing: it may have been somebody else's.
        """
        model = self.model
        statement = sa.select(model.id).where(
            model.user_id == user_id,
            # What isn't known is equal to nothing.
            model.ip_address == sa.literal(ip_address, model.ip_address.type),
            model.user_agent == sa.literal(user_agent, model.user_agent.type),
            model.revocation.is_(None),
        )
        with self.users.reading() as session:
            return session.scalar(statement.limit(1)) is not None

    def current_state(self, id: uuid.UUID) -> tuple[int, str | None] | None:
        """Generation and fingerprint of a session as it stands now; ``None`` if it has ended."""
        model = self.model
        statement = sa.select(model.generation, model.fingerprint)
        statement = statement.where(model.id == id, model.revoked_at.is_(None))
        with self.users.reading() as session:
            row = session.execute(statement).first()
        return None if row is None else tuple(row)

    def current_generation(self, id: uuid.UUID, *, skip_locked: bool = False) -> int | None:
        """Its generation, when the app's session may hold the only connection.

        Inside the app's transaction it is a locking read, because InnoDB would show the state at
        the beginning of the transaction otherwise. It waits for nothing: where the row is locked,
        the app's transaction is rolled back, and what is committed counts.

        :param skip_locked: whether to return ``None`` then.
        """
        session = self.database.session
        if self.users.is_in_transaction:
            try:
                return self._generation(session, id, skip_locked=skip_locked)
            except sa.exc.SQLAlchemyError:
                self.users.roll_back()
        standing = self.current_state(id)
        return None if standing is None else standing[0]

    def rotate(
        self,
        id: uuid.UUID,
        *,
        user_id: t.Any,
        generation: int,
        becomes: int,
        store_id: str | None,
        is_confirmed: bool = False,
    ) -> list[str] | None:
        """Let a session go on under another key or generation; ``None``: it no longer stands.

        :param user_id: whose it is.
        :param is_confirmed: whether the user has just given the password once more.
        :returns: keys that the browser can't come back to any more, because there were too many.
        """
        column, moment = self.columns, clock.now()
        confirmed = [(column.authenticated_at, moment)] if is_confirmed else []
        with self.users.transaction() as session:
            # In the same generation the old key is as good: the browser may come back to it.
            rotates = becomes != generation
            displaced: list[str] = []
            if store_id is not None:
                self._lock_user(session, user_id)
                if rotates:
                    self._leave_behind(session.execute, id, self.model.previous_store_id)
                else:
                    displaced = self._link(session.execute, id, store_id)
            moves = self._moving_to(store_id) if rotates else [(column.store_id, store_id)]
            result = session.execute(
                self._standing(id, generation).ordered_values(
                    (column.generation, becomes),
                    (column.rotated_at, moment),
                    *confirmed,
                    *moves,
                )
            )
            stands = t.cast("sa.CursorResult[t.Any]", result).rowcount
        return displaced if stands else None

    def touch(self, id: uuid.UUID, values: dict[str, t.Any]) -> None:
        """Write when, whence and with what a session was last seen. Revives nothing.

        Times in the future, from a clock that was ahead, become that moment.
        It waits for nobody: where another transaction holds the row, the next request tries again.
        """
        column, moment = self.columns, values["last_seen_at"]
        corrected = {
            column[name]: sa.case((column[name] > moment, moment), else_=column[name])
            for name in NOT_IN_THE_FUTURE
        }
        standing = (column.id == id, column.revoked_at.is_(None))
        free = (
            sa.select(self.model.id)
            .where(*standing)
            .with_for_update(skip_locked=True, of=self.table)
        )
        with self._transaction_without_waiting() as execute:
            if execute(free).first() is not None:
                execute(
                    self.table.update()
                    .where(*standing)
                    .values(corrected | {column[name]: values[name] for name in values})
                )

    def end(self, id: uuid.UUID, reason: str) -> bool:
        """End one session; ``False`` if it had ended already."""
        with self.users.transaction() as session:
            return self._end(session.execute, id, reason)

    def complete(self, order: RevocationOrder) -> Iterator[list[StoreEntry]]:
        """See :meth:`RevocationRecords.complete`.

        What ended is asked of the database, by the id that all rows of a revocation carry: what a
        savepoint took back, or a transaction that was never committed, is not found.
        """
        owner = self._belongs_to(order.user_ids)
        if order.users_are_deleted:
            # Most databases have then taken the user out of the rows.
            owner = sa.or_(owner, self.columns.user_id.is_(None))
        return self._batches(owner, self.columns.revocation == order.id)

    def mark_purged(self, ids: Sequence[uuid.UUID], *, but_previous: bool = False) -> int:
        """Take down that the entries of ended sessions are gone from the session store.

        :param but_previous: whether one from before a rotation may still be there.
        :returns: of how many that was not known yet.
        """
        column = self.columns
        with self._holding_users_of(ids) as (session, held):
            statement = self._update_of(held).where(
                column.purged_at.is_(None), column.revoked_at.is_not(None)
            )
            if but_previous:
                statement = statement.where(column.previous_store_id.is_(None))
            result = session.execute(statement.values({column.purged_at: clock.now()}))
            return t.cast("sa.CursorResult[t.Any]", result).rowcount

    def mark_revocation_purged(self, order: RevocationOrder, ids: Sequence[uuid.UUID]) -> None:
        """See :meth:`RevocationRecords.mark_revocation_purged`; all at once, up to the last id."""
        if order.users_are_deleted:
            for batch in _batches_of(list(ids)):
                self.mark_purged(batch)
            return
        column = self.columns
        with self.users.transaction() as session:
            self.lock_users(session.execute, order.user_ids)
            statement = self._update_of_users(session.execute, order.user_ids).where(
                column.revocation == order.id,
                _of_what_is_found(column.id <= ids[-1]),
                column.purged_at.is_(None),
            )
            session.execute(statement.values({column.purged_at: clock.now()}))

    # -- housekeeping, each in batches of short transactions -----------------------------------

    def next_scan_window(self, size: int) -> ScanWindow:
        """The next so many rows, by their ids; after the last one comes the first one.

        The first time it is anywhere: each process goes round by itself. The verbs of housekeeping
        that are given a part look at no other row, however large the table is.
        """
        id = self.model.id
        ids = sa.select(id).order_by(id).limit(1)
        with self.users.reading() as session:
            start = self._scanned_to or self._anywhere(session)
            end = session.scalar(ids.where(id > start).offset(size - 1))
            if end is not None:
                part = sa.and_(id > start, id <= end)
            else:
                rest = session.scalar(sa.select(sa.func.count()).where(id > start)) or 0
                # Compared by the database alone, which orders them as it likes.
                # A login may have come in between.
                end = session.scalar(ids.where(id <= start).offset(max(0, size - rest - 1)))
                part = sa.true() if end is None else sa.or_(id > start, id <= end)
        self._scanned_to = start if end is None else end
        return part

    def _anywhere(self, session: sa_orm.Session) -> uuid.UUID:
        """An id at random, among those that begin with the time as likely as among the others.

        The others are those of InnoDB, and of sessions that were adopted.
        """
        id, now = self.model.id, new_id()
        ids = sa.select(id).where(id > new_id(_FIRST_MOMENT)).order_by(id).limit(1)
        first = session.scalar(ids) or now
        moment = random.randint(*sorted((first.int >> 80, now.int >> 80)))  # noqa: S311
        return random.choice((new_id(moment), uuid.uuid4()))  # noqa: S311

    def find_expired(
        self, expiry: Expiry, *, everywhere: bool = True, window: ScanWindow | None = None
    ) -> Iterator[list[StoreEntry]]:
        """Sessions that have expired and not ended yet; those of deleted users, too.

        :param everywhere: all rows are looked at in any case, or all of the part.
        """
        return self._batches(self._has_expired(expiry), window=window)

    def expire(self, ids: Sequence[uuid.UUID], expiry: Expiry) -> int:
        """End those of these sessions that have expired still; how many."""
        with self._holding_users_of(ids) as (session, held):
            result = session.execute(
                self._update_of(held)
                .where(self._has_expired(expiry))
                .values(self._ending("expired"))
            )
            return t.cast("sa.CursorResult[t.Any]", result).rowcount

    def find_unpurged(self, *, window: ScanWindow | None = None) -> Iterator[list[StoreEntry]]:
        """Ended sessions whose entries may still be in the session store."""
        return self._batches(self._is_unpurged(), window=window)

    def find_stale_keys(
        self, *, before: dt.datetime, lost_before: dt.datetime, window: ScanWindow | None = None
    ) -> Iterator[list[StoreEntry]]:
        """Rows of nobody, each with the key of an entry that a session has left behind.

        :param before: only what was left before this moment.
        :param lost_before: of entries that the browser may come back to, only those that were left
            before this one, or whose session has ended.
        """
        column, other = self.columns, sa_orm.aliased(self.model)
        stands = other.revoked_at.is_(None)
        return self._batches(
            column.revoked_reason == STALE_KEY,
            column.revoked_at <= before,
            ~sa.exists().where(other.store_id == column.store_id, stands),
            sa.or_(
                column.revoked_at <= lost_before,
                column.revocation.is_(None),
                ~sa.exists().where(other.id == column.revocation, stands),
            ),
            window=window,
        )

    def find_rotated(self, *, window: ScanWindow | None = None) -> Iterator[list[StoreEntry]]:
        """Sessions that go on, and may have left an entry under an earlier key."""
        column = self.columns
        return self._batches(
            column.revoked_at.is_(None), column.previous_store_id.is_not(None), window=window
        )

    def forget_previous_keys(self, ids: Sequence[uuid.UUID], *, before: dt.datetime) -> None:
        """Forget the earlier keys of sessions that were last rotated before this moment."""
        column = self.columns
        with self._holding_users_of(ids) as (session, held):
            session.execute(
                self._update_of(held)
                .where(column.rotated_at <= before, column.revoked_at.is_(None))
                .values({column.previous_store_id: None})
            )

    def find_outdated(
        self, *, before: dt.datetime, window: ScanWindow | None = None
    ) -> Iterator[list[StoreEntry]]:
        """Sessions that ended before this moment, and have been purged."""
        column = self.columns
        return self._batches(
            column.revoked_at <= before,
            column.revoked_reason.is_distinct_from(STALE_KEY),
            sa.not_(self._is_unpurged()),
            window=window,
        )

    def forget(self, ids: Sequence[uuid.UUID]) -> int:
        """Delete the rows of ended sessions; how many there were."""
        column = self.columns
        # One by one: for several InnoDB may read the whole table, and lock the rows of everybody.
        statement = self.table.delete().where(
            column.id == sa.bindparam("forgotten"), column.revoked_at.is_not(None)
        )
        with self._holding_users_of(ids) as (session, held):
            if not held:
                return 0
            result = session.execute(statement, [{"forgotten": id} for id in held])
            return t.cast("sa.CursorResult[t.Any]", result).rowcount

    # -- sessions from before the installation -------------------------------------------------

    def exists(self, id: uuid.UUID) -> bool:
        """Whether there is, or was, a session with this id."""
        with self.database.session.no_autoflush:
            return self._has(self.database.session.execute, [id])

    def is_adoption_blocked(self, user_id: t.Any) -> bool:
        """Whether no session of this user may be adopted any more."""
        with self.database.session.no_autoflush:
            return self._has(self.database.session.execute, _block_ids(user_id))

    def block_adoption(
        self, execute: Execute, user_ids: Sequence[t.Any], *, dialect: str | None = None
    ) -> None:
        """Let no session of these users be adopted from now on.

        The transaction holds the rows of the users. At the app's level it may be too old to see a
        bar that is there: PostgreSQL then refuses it as overtaken, with all that it has done.

        :param dialect: the name of the database's, where there is no app to ask.
        """
        self._bar(execute, [_bar(user_id) for user_id in user_ids], dialect or self._dialect)

    def block_everybody(self) -> None:
        """Let no session of anybody be adopted from now on."""
        with contextlib.suppress(sa.exc.IntegrityError), self.users.transaction() as session:
            self._bar(session.execute, [_BAR_OF_ALL], self._dialect)

    def _bar(self, execute: Execute, bars: Sequence[uuid.UUID], dialect: str) -> None:
        model = self.model
        there = set(execute(sa.select(model.id).where(model.id.in_(bars))).scalars())
        for id in bars:
            if id not in there:
                # The transaction may see the table as it was before another has barred the user.
                insertion = self._row_of_nobody(
                    "barred",
                    allows_conflict=dialect == "postgresql",
                    id=id,
                    purged_at=clock.now(),
                )
                for innodb in _INNODB:
                    insertion = insertion.prefix_with("IGNORE", dialect=innodb)
                execute(insertion)

    @_hiding_parameters()
    def adopt(
        self, execute: Execute, values: dict[str, t.Any], *, is_fresh: bool = False
    ) -> int | None:
        """Add a row unless there is one; in which generation it stands.

        ``None``: it has ended, or there must be none, because its user is barred. The transaction
        holds the user's row.

        :param is_fresh: whether the transaction has read nothing before it held that. Else InnoDB
            would show the table as it was then, unless it locks what it reads. PostgreSQL may do so
            in any case; it refuses the row, or the bar that follows, where that is there by now.
        """
        model = self.model

        def first(statement: sa.Select[t.Any]) -> t.Any:
            locking = statement.with_for_update(read=True, of=self.table)
            return execute(statement if is_fresh else locking).first()

        row = first(sa.select(model.generation, model.revoked_at).where(model.id == values["id"]))
        if row is not None:
            return t.cast(int, row.generation) if row.revoked_at is None else None
        if (
            first(sa.select(model.id).where(model.id.in_(_block_ids(values["user_id"]))))
            is not None
        ):
            return None
        is_postgresql = self._dialect == "postgresql"
        execute(self._insertion_of(values, allows_conflict=is_postgresql))
        return t.cast(int, values["generation"])

    def adopt_late(self, values: dict[str, t.Any]) -> int | None:
        """The same in a transaction of its own; ``None``, too, if the user is gone."""
        with self.users.transaction() as session:
            if self._lock_user(session, values["user_id"]) is None:
                return None
            generation = self.adopt(session.execute, values, is_fresh=True)
        # Who bars everybody holds nobody's row: it may have been done meanwhile.
        with self.users.transaction() as session:
            if self._has(session.execute, [_BAR_OF_ALL]):
                self._end(session.execute, values["id"], "revoked")
                return None
        return generation

    # -- for an operator, each in short transactions -------------------------------------------

    def count(self, user_ids: Sequence[t.Any] | None, filter: Filter) -> int:
        """How many sessions have not ended and are meant, of these users or of everybody."""
        if filter.network is not None:
            return sum(len(batch) for batch in self.matching(user_ids, filter))
        return self._count(self._are_meant(user_ids, filter))

    def matching(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> Iterator[list[SessionSummary]]:
        """The sessions that :meth:`count` counts, in batches, in the order of their ids."""
        model = self.model
        statement = sa.select(*(getattr(model, name) for name in SessionSummary._fields))
        for rows in self._pages(statement.where(self._are_meant(user_ids, filter))):
            found = [
                SessionSummary._make(row) for row in rows if filter.meets_address(row.ip_address)
            ]
            yield from _batches_of(found)

    def select_for_revocation(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> Iterator[tuple[Sequence[t.Any], t.Any]]:
        """The sessions that :meth:`count` counts: users, and what :meth:`end_all` takes as among.

        Whoever goes on has ended those of before.
        """
        if not filter.is_met_by_all():
            for summaries in self.matching(user_ids, filter):
                owners = list(dict.fromkeys(row.user_id for row in summaries))
                yield owners, self._still_meant(summaries, filter)
        elif user_ids is not None:
            yield from ((user_ids[n : n + _USERS], None) for n in range(0, len(user_ids), _USERS))
        else:
            batch = self._holders(None)
            while batch:
                yield batch, None
                batch = self._holders(batch[-1])

    @contextlib.contextmanager
    def connection(self) -> Iterator[sa.Connection]:
        """A connection to the database that the rows are in, to look at it."""
        with self.users.reading() as session:
            yield session.connection(bind_arguments={"mapper": sa.inspect(self.model)})

    def count_unpurged(self, *, ended_by: dt.datetime) -> int:
        """How many sessions ended by this moment, and may still have entries in the store."""
        return self._count(self._is_unpurged(), self.columns.revoked_at <= ended_by)

    def count_expired(self, expiry: Expiry) -> int:
        """How many sessions have expired, and are not ended yet."""
        return self._count(self.columns.revoked_at.is_(None), expiry.condition(self.columns))

    def has_begun(self, *, by: dt.datetime) -> bool:
        """Whether the registry was in use at this moment, as far back as rows are kept."""
        return self._count(self.columns.created_at <= by) > 0

    def _still_meant(
        self, summaries: Sequence[SessionSummary], filter: Filter
    ) -> sa.ColumnElement[bool]:
        """Whether a row is one of these, and meant as it is by now."""
        column = self.columns
        condition = sa.and_(column.id.in_([row.id for row in summaries]), filter.condition(column))
        if filter.network is None:
            return condition
        # No database can tell whether another address would be in the network.
        addresses = list({row.ip_address for row in summaries})
        return sa.and_(condition, column.ip_address.in_(addresses))

    def _holders(self, after: t.Any) -> list[t.Any]:
        """The next users who have sessions that have not ended, in the order of their keys."""
        model = self.model
        statement = sa.select(model.user_id).distinct().where(model.revoked_at.is_(None))
        statement = statement.where(
            model.user_id.is_not(None) if after is None else model.user_id > after
        )
        rows = self.database.session.execute(statement.order_by(model.user_id).limit(_USERS))
        return list(rows.scalars())

    def _count(self, *conditions: sa.ColumnElement[bool]) -> int:
        statement = sa.select(sa.func.count()).select_from(self.model).where(*conditions)
        with self.users.reading() as session:
            return t.cast(int, session.scalar(statement))

    def _are_meant(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> sa.ColumnElement[bool]:
        column = self.columns
        owner = column.user_id.is_not(None) if user_ids is None else self._belongs_to(user_ids)
        return sa.and_(owner, column.revoked_at.is_(None), filter.condition(column))

    # -- pieces -------------------------------------------------------------------------------

    def _lock_user(self, session: sa_orm.Session, user_id: t.Any) -> StoredCredential | None:
        """Lock a user's row; the credential in it, or ``None``: there is no such user."""
        if self._dialect == "sqlite":
            # The whole database, before anything is read.
            session.execute(self.table.delete().where(sa.false()))
        stored = session.execute(
            self.users.stored.where(self.user_key == user_id).with_for_update(
                key_share=True, of=self.users.tables
            )
        ).first()
        return None if stored is None else self.credentials.read(stored[1:])

    def _insertion_of(
        self, values: dict[str, t.Any], *, allows_conflict: bool = False
    ) -> sa.Insert:
        """An ``INSERT`` of a row.

        :param allows_conflict: whether PostgreSQL is to go on where there is one with this id; it
            can't if the transaction is too old to see that one, and says so as of any other write.
        """
        column = self.columns
        named = {column[name]: values[name] for name in values}
        if allows_conflict:
            return postgresql.insert(self.table).values(named).on_conflict_do_nothing()
        return self.table.insert().values(named)

    def _has(self, execute: Execute, ids: Sequence[uuid.UUID]) -> bool:
        statement = sa.select(self.model.id).where(self.model.id.in_(ids)).limit(1)
        return execute(statement).first() is not None

    def _batches(
        self, *conditions: sa.ColumnElement[bool], window: ScanWindow | None = None
    ) -> Iterator[list[StoreEntry]]:
        """The rows with these conditions, in the order of their ids, with no transaction open."""
        if window is not None:
            conditions = (window, *conditions)
        for rows in self._pages(self._stored.where(*conditions)):
            yield from _batches_of([StoreEntry._make(row) for row in rows])

    def _pages(self, statement: sa.Select[t.Any]) -> Iterator[Sequence[sa.Row[t.Any]]]:
        """What a statement selects, in the order of the ids, with no transaction open."""
        id = self.model.id
        # The database sorts all that is left for each read: so several batches are read at once.
        size = records.BATCH * _BATCHES
        statement = statement.order_by(id).limit(size)
        read = statement
        while True:
            with self.users.reading() as session:
                rows = session.execute(read).all()
            yield rows
            if len(rows) < size:
                return
            read = statement.where(id > rows[-1].id)

    @contextlib.contextmanager
    def _holding_users_of(
        self, ids: Sequence[uuid.UUID]
    ) -> Iterator[tuple[sa_orm.Session, list[uuid.UUID]]]:
        """A short transaction that may write several rows: which of these it may.

        It holds the rows of their users, but for those that somebody else is holding: for them it
        neither waits, nor lets others wait.
        """
        model = self.model
        with self.users.transaction() as session:
            if self._dialect == "sqlite":
                yield session, list(ids)
                return
            owners = session.execute(
                sa.select(model.id, model.user_id).where(model.id.in_(ids))
            ).all()
            users = {owner for _, owner in owners} - {None}
            held = self.lock_users(session.execute, list(users), waits=False)
            yield session, [id for id, owner in owners if owner is None or owner in held]

    def _update_of(self, ids: Sequence[uuid.UUID]) -> sa.Update:
        """An ``UPDATE`` of these rows."""
        statement = self.table.update().where(self.columns.id.in_(ids))
        return _forcing("PRIMARY", statement)

    def _update_of_users(self, execute: Execute, user_ids: Sequence[t.Any]) -> sa.Update:
        """An ``UPDATE`` of the rows of these users.

        Where one has many, InnoDB would rather read the whole table, and lock the rows of
        everybody: then changes of two users deadlock.
        """
        statement = self.table.update().where(self._belongs_to(user_ids))
        if self._dialect not in _INNODB:
            return statement
        if self._user_index is None:
            self._user_index = self._find_user_index(execute)
        return _forcing(self._user_index, statement) if self._user_index else statement

    def _find_user_index(self, execute: Execute) -> str:
        """The name of the index on the users' keys; empty if there is none.

        Asked once in a process, on a connection outside of the pool. ``execute`` belongs to a
        transaction that holds the user's row, and perhaps the only connection of the pool.
        """
        parameters = {
            "schema": self.table.schema,
            "table": self.table.name,
            "column": self.columns.user_id.name,
        }
        own = self.database.session.get_bind(self.model).engine
        beside = sa.Engine(own.pool.recreate(), own.dialect, own.url)
        try:
            with beside.connect() as connection:
                found = connection.execute(_FIRST_INDEX, parameters).scalar()
        except sa.exc.DBAPIError:
            # The server allows no further connection, say.
            found = execute(_FIRST_INDEX, parameters).scalar()
        finally:
            beside.dispose()
        return t.cast("str | None", found) or ""

    def _has_expired(self, expiry: Expiry) -> sa.ColumnElement[bool]:
        column = self.columns
        return sa.and_(
            column.revoked_at.is_(None),
            sa.or_(column.user_id.is_(None), expiry.condition(column)),
        )

    def _is_unpurged(self) -> sa.ColumnElement[bool]:
        column = self.columns
        return sa.and_(
            column.revoked_at.is_not(None),
            column.purged_at.is_(None),
            column.revoked_reason.is_distinct_from(STALE_KEY),
            sa.or_(column.store_id.is_not(None), column.previous_store_id.is_not(None)),
        )

    def _moving_to(self, store_id: str | None) -> list[tuple[t.Any, t.Any]]:
        """The assignments that give a session another key, in this order.

        MariaDB assigns from left to right, and each assignment sees those before it.
        """
        column = self.columns
        before = sa.func.coalesce(column.store_id, column.previous_store_id)
        return [(column.previous_store_id, before), (column.store_id, store_id)]

    def _leave_behind(self, execute: Execute, id: uuid.UUID, key: t.Any) -> None:
        """Keep a key of a session, before another takes its place, in a row of nobody.

        That has ended, so that its entry is deleted some day. The transaction holds the user's row.
        """
        found = self._about_to_leave(execute, id, key)
        if found is not None:
            self._keep_left(execute, *found, id=self.assign_id(new_id(), None))

    def _link(self, execute: Execute, id: uuid.UUID, used: str) -> list[str]:
        """The same of the key that a session has, to which the browser may come back.

        :param used: the key that takes its place.
        :returns: the key that loses its row for it, in a list; empty: none does.
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
        """Whose session this is, and one of its keys; ``None``: it has no such key, or no entry."""
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
        """An ``INSERT`` of a row that has ended, and is no session."""
        moments = ("created_at", "last_seen_at", "authenticated_at", "revoked_at")
        return self._insertion_of(
            {**dict.fromkeys(moments, clock.now()), "generation": 0, "revoked_reason": reason}
            | values,
            allows_conflict=allows_conflict,
        )

    @functools.cached_property
    def _dialect(self) -> str:
        """On SQLite no rows can be locked, and a transaction that has read can't always write."""
        return self._bind.dialect.name

    @property
    def _bind(self) -> sa.Engine | sa.Connection:
        # Not of the app's session, which may be gone: it would be opened anew, and never closed.
        with self.database.factory() as session:
            return session.get_bind(self.model)

    @functools.cached_property
    def _read_key(self) -> Callable[[object], t.Any] | None:
        """What makes a user's key of what ``get_id()`` says; ``None``: that may be no key."""
        classes = [mapper.class_ for mapper in sa.inspect(self.users.model).self_and_descendants]
        has_usual_id = all(getattr(cls, "get_id", None) is UserMixin.get_id for cls in classes)
        if not has_usual_id or self.user_key.key != "id":
            return None
        dialect = self._bind.dialect
        readers = {_reader_of(key, dialect) for key in (self.user_key, self.model.user_id)}
        return readers.pop() if len(readers) == 1 else None

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

    def _replace(self, session: sa_orm.Session, one: Replaced, fingerprint: str | None) -> bool:
        """End a session whose place a login takes; whether it vouches for the login.

        :param fingerprint: of the user's current credential.
        :raises SupersededError: it stands no more, and the login depends on it.
        """
        column = self.columns
        ending = self.table.update().values(self._ending("replaced"))
        ending = ending.where(column.id == one.id, column.revoked_at.is_(None))
        if one.generation is not None:
            ending = ending.where(column.generation == one.generation)
        has_it = column.fingerprint.is_not_distinct_from(fingerprint)
        if one.vouches and self._changed(session, ending.where(has_it)):
            return True
        if not self._changed(session, ending) and one.generation is not None:
            raise SupersededError
        return False

    def _changed(self, session: sa_orm.Session, statement: sa.Update) -> int:
        return t.cast("sa.CursorResult[t.Any]", session.execute(statement)).rowcount

    def _end(self, execute: Execute, id: uuid.UUID, reason: str) -> bool:
        column = self.columns
        statement = self.table.update().where(column.id == id, column.revoked_at.is_(None))
        return bool(execute(statement.values(self._ending(reason))).rowcount)

    def _generation(
        self, session: sa_orm.Session, id: uuid.UUID, *, skip_locked: bool
    ) -> int | None:
        model = self.model
        statement = sa.select(model.generation).where(model.id == id, model.revoked_at.is_(None))
        statement = statement.with_for_update(
            read=True, nowait=not skip_locked, skip_locked=skip_locked, of=self.table
        )
        return session.scalar(statement.execution_options(autoflush=False))


def _loaded(row: t.Any) -> LoadedSession:
    user, generation, fingerprint, last_seen_at, store_id, created_at, *rest = row
    return LoadedSession(
        user, generation, fingerprint, last_seen_at, store_id, created_at, tuple(rest[:-1])
    )


def _end_of(row: t.Any) -> records.End | None:
    if row.revoked_reason is None:
        return None
    return records.End(row.revoked_reason, clock.as_utc(row.revoked_at), row.revocation)


def _block_ids(user_id: t.Any) -> list[uuid.UUID]:
    """The rows of which one is there if this user is barred, or everybody is."""
    return [_bar(user_id), _BAR_OF_ALL]


def _bar(user_id: t.Any) -> uuid.UUID:
    return uuid.uuid5(_BAR_OF_ALL, str(user_id))


def _reader_of(key: t.Any, dialect: sa.Dialect) -> Callable[[object], t.Any] | None:
    """What reads a value of a column from text, or ``None``; ``None``: nothing can be sure to."""
    kind = key.type.dialect_impl(dialect)
    # Not for a type of the app's own, of which nobody knows what it makes of a value.
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


def _of_what_is_found(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """A condition that no row is searched by.

    Each index of InnoDB ends with the primary key. If it went by a range of that, it would lock the
    first row of the next user too, and wait for whoever holds it.
    """
    return sa.case((condition, 1)) == 1


def _forcing(index: str, statement: sa.Update) -> sa.Update:
    """The statement, which MariaDB is to run by this index."""
    for dialect in _INNODB:
        statement = statement.with_hint(f"FORCE INDEX (`{index}`)", dialect_name=dialect)
    return statement


_Row = t.TypeVar("_Row")


def _batches_of(rows: list[_Row]) -> Iterator[list[_Row]]:
    size = records.BATCH
    return (rows[n : n + size] for n in range(0, len(rows), size))
