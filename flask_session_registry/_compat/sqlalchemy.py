"""SQLAlchemy: sessions that join a transaction already begun on a connection.

Test suites bind an app's sessions to a connection, and roll back everything a test has done. The
``join_transaction_mode`` of such a session says how much its rollback undoes.
"""

from __future__ import annotations

import typing as t

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm


def join_by_savepoint(session: sa_orm.Session, connection: sa.Connection) -> None:
    """Make a rollback of a new session on this connection undo only what the session does."""
    session.join_transaction_mode = "create_savepoint"
    if connection.dialect.name != "sqlite" or not connection.in_transaction():
        return
    driver: t.Any = connection.connection.driver_connection
    if not driver.in_transaction:
        # Python's driver begins a transaction at the first write only, and a transaction that
        # SQLite begins by a savepoint is committed when that is released.
        connection.exec_driver_sql("BEGIN")


def reaches_beyond(session: sa_orm.Session, model: type[t.Any]) -> bool:
    """Return whether a rollback of a session would undo what others have done."""
    transaction = session.get_transaction()
    if transaction is None:
        return False
    connection = session.get_bind(sa.inspect(model))
    if not isinstance(connection, sa.Connection):
        return False
    joined = transaction._connections.get(connection)
    if joined is None:
        return False
    _, _, should_commit, _ = joined
    return not should_commit or session.join_transaction_mode == "control_fully"


def is_autocommit(connection: sa.Connection) -> bool:
    """Return whether each statement of a connection commits by itself.

    Only levels set through SQLAlchemy count, for the engine or for this connection. A level that
    the app has set in another way would be lost when ours is reset.
    """
    return "AUTOCOMMIT" in (
        connection.dialect._on_connect_isolation_level,
        connection.get_execution_options().get("isolation_level"),
    )
