"""Short transactions of our own, separate from the app's.

They run at READ COMMITTED, whatever level the app or the server has set. Each locks what it decides
by before it reads it (the user's row if it adds a session or writes several, otherwise the
session's own), so it needs no higher level. At a higher one, PostgreSQL raises an error after
waiting for a lock, and MariaDB locks rows that are only read.

Waits for locks are short: the lock may belong to a long transaction of the app, and each waiting
login occupies a connection that other requests need.
"""

from __future__ import annotations

import contextlib
import typing as t
import weakref
from collections.abc import Callable, Iterator

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from ..._compat.sqlalchemy import is_autocommit, join_by_savepoint

if t.TYPE_CHECKING:
    from ..base import Execute
    from ..users import Users

#: How many seconds a writing transaction of ours waits for each lock. SQLite uses its busy timeout
#: instead: five seconds unless the app has set another.
LOCK_TIMEOUT = 3

_LEVEL = "READ COMMITTED"

#: For one transaction: the connection, which the app uses afterwards, keeps its level.
_SET_LEVEL = f"SET TRANSACTION ISOLATION LEVEL {_LEVEL}"

_SET_LOCK_TIMEOUT = f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'"

#: For one statement: MariaDB has no timeout per transaction, and the connection keeps the app's.
_WITH_LOCK_TIMEOUT = (
    f"SET STATEMENT innodb_lock_wait_timeout = {LOCK_TIMEOUT}, lock_wait_timeout = {LOCK_TIMEOUT}"
    " FOR "
)

#: Other databases have no such level, or are untested.
_DIALECTS = ("postgresql", "mysql", "mariadb")

_Factory = Callable[[], sa_orm.Session]


class IsolationHabit(t.NamedTuple):
    """The isolation of an engine's transactions by default."""

    level: str
    #: Whether each statement commits by itself.
    is_autocommit: bool = False
    #: Whether the level of a transaction can't be changed.
    is_fixed: bool = False


#: Connections to MariaDB whose statements have our lock timeout.
_limited: weakref.WeakSet[sa.Connection] = weakref.WeakSet()

_habits: weakref.WeakKeyDictionary[sa.Engine, IsolationHabit] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def own_transaction(
    factory: _Factory, model: type[t.Any], *, writes: bool = True
) -> Iterator[sa_orm.Session]:
    """Begin a short transaction on the database of a model, in a session of its own.

    If the app has bound its sessions to a connection, it is a savepoint: the transaction around it
    isn't ours.

    :param factory: makes a session like the app's own.
    :param writes: whether the transaction writes, or only reads.
    """
    with factory() as session:
        bind = session.get_bind(sa.inspect(model))
        if isinstance(bind, sa.Connection):
            join_by_savepoint(session, bind)
        with session.begin():
            if isinstance(bind, sa.Engine) and bind.dialect.name in _DIALECTS:
                habit = _habits.get(bind)
                if habit is None:
                    habit = _habits[bind] = find_isolation_habit(factory, model)
                _set_up(session, model, habit, writes=writes)
            yield session


def _set_up(
    session: sa_orm.Session, model: type[t.Any], habit: IsolationHabit, *, writes: bool
) -> None:
    is_isolated = habit.is_autocommit or habit.is_fixed
    sets_level = not is_isolated and habit.level not in (
        (_LEVEL,) if writes else (_LEVEL, "REPEATABLE READ")
    )
    if not (writes or sets_level or habit.is_autocommit):
        return
    options: t.Any = {"isolation_level": _LEVEL} if habit.is_autocommit else None
    connection = session.connection({"mapper": sa.inspect(model)}, execution_options=options)
    if sets_level:
        # By the driver: listeners to the app's statements need not see it.
        with contextlib.closing(connection.connection.cursor()) as cursor:
            cursor.execute(_SET_LEVEL)
    if writes:
        _set_lock_timeout(connection)


def set_lock_timeout(session: sa_orm.Session, model: type[t.Any]) -> None:
    """Give the open transaction of another session the lock timeout of ours."""
    mapper = sa.inspect(model)
    # On a connection that the app has bound its sessions to, it would outlive the transaction.
    if isinstance(session.get_bind(mapper), sa.Engine):
        _set_lock_timeout(session.connection({"mapper": mapper}))


def _set_lock_timeout(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_SET_LOCK_TIMEOUT)
    elif getattr(connection.dialect, "is_mariadb", False):
        # Ends with this object, when the connection is returned to the pool.
        _limited.add(connection)
        if not sa.event.contains(connection.engine, "do_execute", _execute):
            sa.event.listen(connection.engine, "do_execute", _execute)
            sa.event.listen(connection.engine, "do_executemany", _execute_many)


def _execute(cursor: t.Any, statement: str, parameters: t.Any, context: t.Any) -> bool:
    return _execute_by(cursor.execute, statement, parameters, context)


def _execute_many(cursor: t.Any, statement: str, parameters: t.Any, context: t.Any) -> bool:
    return _execute_by(cursor.executemany, statement, parameters, context)


def _execute_by(execute: Execute, statement: str, parameters: t.Any, context: t.Any) -> bool:
    """Execute a statement with our lock timeout; return whether its connection has that.

    As late as this, so that listeners see the statement without the prefix.
    """
    is_limited = context.root_connection in _limited
    if is_limited:
        execute(_WITH_LOCK_TIMEOUT + statement, parameters)
    return is_limited


@contextlib.contextmanager
def transaction_without_waiting(
    users: Users, engine: sa.Engine | sa.Connection
) -> Iterator[Execute]:
    """Begin a short transaction that is given up where SQLite would wait for another one."""
    if engine.dialect.name != "sqlite" or isinstance(engine, sa.Connection):
        with users.transaction() as session:
            yield session.execute
        return
    with engine.connect() as connection:
        if connection.in_transaction():
            # A test suite has made it the only one there is.
            with connection.begin_nested():
                yield connection.execute
            return
        # Behind SQLAlchemy's back, which would begin a transaction for it.
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


def find_isolation_habit(factory: _Factory, model: type[t.Any]) -> IsolationHabit:
    """Query how the transactions of a model's engine run."""
    bind: t.Any = {"mapper": sa.inspect(model)}
    with factory() as session:
        connection = session.connection(bind)
        commits = is_autocommit(connection)
        level: str = connection.get_isolation_level()
        if commits or level == _LEVEL:
            return IsolationHabit(level, is_autocommit=commits)
        session.rollback()
        return IsolationHabit(level, is_fixed=not _can_set_level(session.connection(bind)))


def _can_set_level(connection: sa.Connection) -> bool:
    """Return whether the level of a transaction that has just begun can be changed."""
    try:
        connection.exec_driver_sql(_SET_LEVEL)
        return connection.dialect.name == "postgresql" or not logs_statements(connection)
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        # The app runs a statement of its own at the beginning of each transaction.
        return False


def logs_statements(connection: sa.Connection) -> bool:
    """Return whether MariaDB refuses writes at READ COMMITTED, because it logs statements."""
    with contextlib.closing(connection.connection.cursor()) as cursor:
        cursor.execute("SELECT @@log_bin AND @@binlog_format = 'STATEMENT'")
        row: t.Any = cursor.fetchone()
        return bool(row[0])
