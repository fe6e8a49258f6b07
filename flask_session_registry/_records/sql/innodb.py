"""How statements are kept from locking other users' rows on InnoDB (MariaDB, MySQL)."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from ..base import Execute

DIALECTS = ("mysql", "mariadb")

#: The name of an index that begins with this column.
_FIRST_INDEX = sa.text(
    "SELECT INDEX_NAME FROM information_schema.STATISTICS WHERE SEQ_IN_INDEX = 1"
    " AND TABLE_SCHEMA = COALESCE(:schema, DATABASE())"
    " AND TABLE_NAME = :table AND COLUMN_NAME = :column LIMIT 1"
)


def forcing(index: str, statement: sa.Update) -> sa.Update:
    """Return the statement, to be run using this index."""
    for dialect in DIALECTS:
        statement = statement.with_hint(f"FORCE INDEX (`{index}`)", dialect_name=dialect)
    return statement


def not_searched_by(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Return a condition on the id that isn't used to search for rows.

    Each index ends with the primary key. A search using a range of it would also lock the first row
    of the next user, and wait for the transaction that holds it.
    """
    return sa.case((condition, 1)) == 1


def find_index(column: sa.Column[t.Any], engine: sa.Engine, execute: Execute) -> str:
    """Return the name of an index that begins with this column; empty if there is none.

    Asked once in a process, on a connection outside of the pool. ``execute`` belongs to a
    transaction that holds a user's row, and perhaps the only connection of the pool.
    """
    parameters = {
        "schema": column.table.schema,
        "table": column.table.name,
        "column": column.name,
    }
    beside = sa.Engine(engine.pool.recreate(), engine.dialect, engine.url)
    try:
        with beside.connect() as connection:
            found: str | None = connection.execute(_FIRST_INDEX, parameters).scalar()
    except sa.exc.DBAPIError:
        # The server allows no further connection, for example.
        found = execute(_FIRST_INDEX, parameters).scalar()
    finally:
        beside.dispose()
    return found or ""
