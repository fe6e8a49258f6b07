"""Short transactions of our own, beside the app's.

They run at READ COMMITTED, whatever level the app or the server has set. Each locks the user's row
first and reads what it decides by afterwards, so it needs no more; above that level, PostgreSQL
answers a lock that had to be waited for with an error, and MariaDB locks what is only read.

None waits long for a lock: what holds it may be a long transaction of the app, and each login that
waits occupies a connection that other requests need.
"""

from __future__ import annotations

import contextlib
import typing as t
import weakref
from collections.abc import Callable, Iterator

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from ..._compat.sqlalchemy import join_by_savepoint

#: For how many seconds a transaction of ours that writes waits for each lock. On SQLite its busy
#: timeout counts, five seconds unless the app has set another.
LOCK_TIMEOUT = 3

_LEVEL = "READ COMMITTED"

#: Of one transaction: the level of the connection, which the app uses afterwards, stays.
_SET_LEVEL = f"SET TRANSACTION ISOLATION LEVEL {_LEVEL}"

_LIMIT_WAITING = f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'"

#: Of one statement: MariaDB has no timeout for a transaction, and the connection keeps the app's.
_WITH_LIMIT = (
    f"SET STATEMENT innodb_lock_wait_timeout = {LOCK_TIMEOUT}, lock_wait_timeout = {LOCK_TIMEOUT}"
    " FOR "
)

#: On others there is no such level, or nobody has tried.
_DIALECTS = ("postgresql", "mysql", "mariadb")

_Factory = Callable[[], sa_orm.Session]


class IsolationHabit(t.NamedTuple):
    """How the transactions of an engine run unless told otherwise."""

    level: str
    #: Whether SQLAlchemy lets each statement commit by itself.
    is_autocommit: bool = False
    #: Whether a transaction can't be given another level.
    is_fixed: bool = False


#: Connections to MariaDB whose statements wait no longer than ours may.
_limited: weakref.WeakSet[sa.Connection] = weakref.WeakSet()

_habits: weakref.WeakKeyDictionary[sa.Engine, IsolationHabit] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def own_transaction(
    factory: _Factory, model: type[t.Any], *, writes: bool = True
) -> Iterator[sa_orm.Session]:
    """A short transaction on the database of a model, in a session of its own.

    On a connection that the app has bound its sessions to, it is a savepoint: what it is part of is
    somebody else's transaction.

    :param factory: makes the session, as the app's own are made.
    :param writes: whether anything is written, or only read.
    """
    with factory() as session:
        bind = session.get_bind(sa.inspect(model))
        if isinstance(bind, sa.Connection):
            join_by_savepoint(session, bind)
        with session.begin():
            if isinstance(bind, sa.Engine) and bind.dialect.name in _DIALECTS:
                habit = _habits.get(bind)
                if habit is None:
                    habit = _habits[bind] = habit_of(factory, model)
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
        # By the driver, as what listens to the app's statements need not see it.
        with contextlib.closing(connection.connection.cursor()) as cursor:
            cursor.execute(_SET_LEVEL)
    if writes:
        _limit_waiting(connection)


def limit_waiting(session: sa_orm.Session, model: type[t.Any]) -> None:
    """Let the open transaction of another session wait no longer for each lock than ours do."""
    mapper = sa.inspect(model)
    # On one that the app has bound its sessions to, it would outlive the transaction.
    if isinstance(session.get_bind(mapper), sa.Engine):
        _limit_waiting(session.connection({"mapper": mapper}))


def _limit_waiting(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_LIMIT_WAITING)
    elif getattr(connection.dialect, "is_mariadb", False):
        # It goes with this object, when the connection is given back.
        _limited.add(connection)
        if not sa.event.contains(connection.engine, "do_execute", _execute):
            sa.event.listen(connection.engine, "do_execute", _execute)
            sa.event.listen(connection.engine, "do_executemany", _execute_many)


def _execute(cursor: t.Any, statement: str, parameters: t.Any, context: t.Any) -> bool:
    """Execute a statement of a connection that waits no longer; whether it is one.

    As late as this, so that what listens to statements sees those that were meant.
    """
    is_limited = context.root_connection in _limited
    if is_limited:
        cursor.execute(_WITH_LIMIT + statement, parameters)
    return is_limited


def _execute_many(cursor: t.Any, statement: str, parameters: t.Any, context: t.Any) -> bool:
    is_limited = context.root_connection in _limited
    if is_limited:
        cursor.executemany(_WITH_LIMIT + statement, parameters)
    return is_limited


def habit_of(factory: _Factory, model: type[t.Any]) -> IsolationHabit:
    """How the transactions of the engine of a model run, asked of the database."""
    bind: t.Any = {"mapper": sa.inspect(model)}
    with factory() as session:
        connection = session.connection(bind)
        # One that the app has set behind SQLAlchemy's back would be lost when ours is taken back.
        is_autocommit = "AUTOCOMMIT" in (
            connection.dialect._on_connect_isolation_level,
            connection.get_execution_options().get("isolation_level"),
        )
        level = t.cast(str, connection.get_isolation_level())
        if is_autocommit or level == _LEVEL:
            return IsolationHabit(level, is_autocommit=is_autocommit)
        session.rollback()
        return IsolationHabit(level, is_fixed=not _can_set_level(session.connection(bind)))


def _can_set_level(connection: sa.Connection) -> bool:
    """Whether a transaction that has just begun can be given another level."""
    try:
        connection.exec_driver_sql(_SET_LEVEL)
        return connection.dialect.name == "postgresql" or not logs_statements(connection)
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        # Something that the app does at the beginning of each transaction has come first.
        return False


def logs_statements(connection: sa.Connection) -> bool:
    """Whether MariaDB refuses to write at READ COMMITTED, as its binary log can't repeat it."""
    with contextlib.closing(connection.connection.cursor()) as cursor:
        cursor.execute("SELECT @@log_bin AND @@binlog_format = 'STATEMENT'")
        return bool(t.cast("tuple[int]", cursor.fetchone())[0])
