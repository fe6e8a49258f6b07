"""Refuses a password change that would overwrite another one it hasn't seen: a lost update."""

from __future__ import annotations

import typing as t
import weakref
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.sql import visitors

from ..errors import StaleRequestError
from .fingerprint import StoredCredential, is_passwordless
from .password_columns import State, identity_of, is_stored_verbatim

if t.TYPE_CHECKING:
    from .password_history import Credentials

#: Codes by which a database says that another transaction was first: a serialization failure or a
#: deadlock of PostgreSQL, a deadlock or a changed record of MariaDB, a stale snapshot of SQLite.
_OVERTAKEN = frozenset({"40001", "40P01", 1213, 1020, 517})


def watch(credentials: Credentials, connection: sa.Connection, state: State) -> None:
    """Guard the update of a user that a flush is about to write."""
    guards = _guards.setdefault(connection, {})
    guard = guards.get(credentials.scope)
    if guard is None:
        guard = guards[credentials.scope] = LostUpdateGuard(credentials)
        sa.event.listen(connection, "before_execute", guard.before_execute, retval=True)
        sa.event.listen(connection, "after_execute", guard.after_execute)
        if not sa.event.contains(connection.engine, "handle_error", _explain):
            sa.event.listen(connection.engine, "handle_error", _explain)
    guard.updates[identity_of(state)] = _Update(state)


def pop_before(
    credentials: Credentials, connection: sa.Connection, state: State
) -> StoredCredential | None:
    """Return the credential before an update, once; ``None`` if the update doesn't change it."""
    guard = _guards.get(connection, {}).get(credentials.scope)
    update = guard.updates.pop(identity_of(state), None) if guard else None
    return update.before if update else None


def _explain(context: sa.engine.ExceptionContext) -> Exception | None:
    """Replace the error of a password change that another transaction has overtaken."""
    connection = context.connection
    if connection is None or not _was_overtaken(context.original_exception):
        return None
    guards = _guards.get(connection, {}).values()
    has_changed = any(guard.has_changed_in(connection.get_transaction()) for guard in guards)
    return StaleRequestError() if has_changed else None


def _was_overtaken(error: BaseException) -> bool:
    codes = [getattr(error, name, None) for name in ("sqlstate", "pgcode", "sqlite_errorcode")]
    return not _OVERTAKEN.isdisjoint([*codes, *error.args[:1]])


class _Update:
    """A user whom a flush writes."""

    def __init__(self, state: State) -> None:
        self.state = state
        #: The credential before the change; ``None`` if it doesn't change.
        self.before: StoredCredential | None = None

    def changes(self, names: Sequence[str]) -> bool:
        return any(self.state.attrs[name].history.has_changes() for name in names)


class LostUpdateGuard:
    """Compares the password that a change started from with the stored one, on one connection.

    Otherwise a request that has loaded a user before another one changes the password would
    overwrite it. Where it can, the ``UPDATE`` itself carries the comparison; elsewhere the row is
    locked and read first.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        #: The users that a flush writes, by primary key.
        self.updates: dict[object, _Update] = {}
        #: The transaction that has changed a credential. Weak: it holds the connection, which would
        #: otherwise never leave the dictionary of guards.
        self._changed_in: weakref.ref[object] | None = None
        #: The statement that carries a comparison, until it is executed.
        self._compared: tuple[object, _Update] | None = None

    def has_changed_in(self, transaction: object) -> bool:
        """Return whether a transaction has changed a credential."""
        changed_in = self._changed_in() if self._changed_in else None
        return changed_in is not None and changed_in is transaction

    def before_execute(
        self,
        connection: sa.Connection,
        statement: t.Any,
        multiparams: t.Any,
        params: t.Any,
        _: object,
    ) -> tuple[t.Any, t.Any, t.Any]:
        if isinstance(statement, sa.Update) and statement.table in self._credentials.tables:
            parameter = _key_parameter(statement)
            updates = [self.updates.get(row.get(parameter)) for row in multiparams or [params]]
            changed = [
                update
                for update in updates
                if update is not None and self._begin(connection, update, is_alone=not multiparams)
            ]
            if changed and not multiparams:
                statement = self._compare(statement, changed[0], connection.dialect)
        return statement, multiparams, params

    def after_execute(
        self, _: object, statement: object, __: object, ___: object, ____: object, result: t.Any
    ) -> None:
        if self._compared is None or self._compared[0] is not statement:
            return
        update, self._compared = self._compared[1], None
        # Where the app counts the versions of its users, SQLAlchemy raises an error by itself.
        is_versioned = sa.inspect(self._credentials.user_model).version_id_col is not None
        if result.rowcount == 0 and not is_versioned:
            self._refuse(update)

    def _begin(self, connection: sa.Connection, update: _Update, *, is_alone: bool) -> bool:
        """Record the credential before an update; return whether the update changes it.

        :param is_alone: whether the statement updates this user only, so that it can compare.
        """
        if update.before is None:
            if not self._changes_credential(update):
                return False
            update.before = self._find_before(connection, update, is_alone=is_alone)
            self._changed_in = weakref.ref(connection.get_transaction())
        return True

    def _changes_credential(self, update: _Update) -> bool:
        credentials = self._credentials
        if update.changes(credentials.names):
            return True
        if not update.changes(credentials.identifying):
            return False
        # What identifies a user without a password doesn't matter for one who has a password.
        bases = credentials.bases(update.state)
        return not bases or any(map(is_passwordless, bases))

    def _find_before(
        self, connection: sa.Connection, update: _Update, *, is_alone: bool
    ) -> StoredCredential:
        """Return the credential that the ``UPDATE`` will compare, or the stored one, locked.

        :raises StaleRequestError: the stored one isn't a password that the change started from.
        """
        credentials, state = self._credentials, update.state
        bases = credentials.bases(state)
        if is_alone and len(credentials.tables) == 1 and bases is not None and len(bases) == 1:
            predicted = credentials.predict(bases[0], connection.dialect)
            if predicted is not None:
                return predicted
        before = credentials.current(connection.execute, identity_of(state), lock=True)
        if before is None or (bases is not None and before.attributes not in bases):
            self._refuse(update)
        return before

    def _compare(self, statement: sa.Update, update: _Update, dialect: sa.Dialect) -> sa.Update:
        """Let a statement update nothing if the stored password isn't the one before the change."""
        credentials = self._credentials
        if update.before is None or not update.changes(credentials.names):
            return statement
        columns = sa.inspect(credentials.user_model).columns
        statement = statement.where(
            *(
                _equals(columns[name], value, dialect)
                for name, value in zip(credentials.names, update.before.raw, strict=False)
                if columns[name].table is statement.table
            )
        )
        self._compared = statement, update
        return statement

    def _refuse(self, update: _Update) -> t.NoReturn:
        # Otherwise, the next try would be refused as well, although it has loaded what is stored.
        self._credentials.forget(update.state)
        raise StaleRequestError


#: The guards of each connection, by model and password attributes. The apps of one process may
#: share a user model, and only the first of them listens to it.
_guards: weakref.WeakKeyDictionary[
    sa.Connection, dict[tuple[type[t.Any], tuple[str, ...]], LostUpdateGuard]
] = weakref.WeakKeyDictionary()


def _key_parameter(statement: sa.Update) -> str | None:
    """Return the name of the parameter by which an ``UPDATE`` of the ORM finds its row."""
    (key,) = statement.table.primary_key
    for element in visitors.iterate(statement.whereclause):
        if isinstance(element, sa.BinaryExpression) and element.left is key:
            parameter: str | None = getattr(element.right, "key", None)
            return parameter
    return None


def _equals(column: sa.Column[t.Any], value: object, dialect: sa.Dialect) -> sa.ColumnElement[bool]:
    """Return the condition that a column holds a raw value."""
    if is_stored_verbatim(column, dialect):
        return column.is_not_distinct_from(sa.literal(value, column.type))
    raw = sa.types.NullType()
    return sa.type_coerce(column, raw).is_not_distinct_from(sa.literal(value, raw))
