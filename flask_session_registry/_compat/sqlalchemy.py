"""Sessions of SQLAlchemy that join a transaction which somebody else has begun on a connection.

Test suites bind an app's sessions to a connection, and roll back all that a test has done. How far
a rollback of such a session reaches, says its ``join_transaction_mode``.
"""

from __future__ import annotations

import typing as t

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm


def join_by_savepoint(session: sa_orm.Session, connection: sa.Connection) -> None:
    """Let a new session on this connection undo nothing but what it does itself."""
    session.join_transaction_mode = "create_savepoint"
    if connection.dialect.name != "sqlite" or not connection.in_transaction():
        return
    driver: t.Any = connection.connection.driver_connection
    if not driver.in_transaction:
        # Python's driver begins nothing before something is written; and what SQLite begins with a
        # savepoint, it commits with its release.
        connection.exec_driver_sql("BEGIN")


def reaches_beyond(session: sa_orm.Session, model: type[t.Any]) -> bool:
    """Whether a rollback of a session would undo what somebody else has done."""
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
