"""User sessions in SQL: the database, and their table."""

from __future__ import annotations

import typing as t
from collections.abc import Iterable, Iterator

import sqlalchemy as sa
from flask import Flask

from ... import _diagnosis as diagnosis
from ..._app import Registry
from ..._records.sql.transactions import logs_statements
from . import overdue
from .findings import Finding, error, error_of, warning


def examine(app: Flask, registry: Registry) -> Iterator[Finding]:
    records = registry.sql_records
    try:
        with records.connection() as connection:
            findings = [
                *_examine_server(connection),
                *_examine_tables(records.tables, connection),
                *_examine_foreign_keys(connection),
            ]
        if not any(finding.level == "error" for finding in findings):
            findings += overdue.examine(app, registry)
            if (problem := registry.adoption.find_overdue(app)) is not None:
                findings.append(warning(*problem))
    except Exception as failure:
        yield error_of(diagnosis.database_unreachable(failure))
    else:
        yield from findings


def _examine_server(connection: sa.Connection) -> Iterator[Finding]:
    dialect: t.Any = connection.dialect
    if not getattr(dialect, "is_mariadb", False):
        return
    if _isolates_snapshots(connection):
        yield warning(
            "'innodb_snapshot_isolation' is on: a password change fails if a session of that user"
            " was seen since the transaction began.",
            "Turn it off, or use the isolation level READ COMMITTED.",
        )
    if logs_statements(connection):
        yield warning(
            "'binlog_format' is STATEMENT, so the registry's own transactions can't run at READ"
            " COMMITTED.",
            "Set it to MIXED or ROW.",
        )
    if dialect.server_version_info < (10, 6):
        yield error(
            "This MariaDB is too old to skip locked rows: no session is touched, so the last-seen"
            " times stay as they are, and nothing is pruned.",
            "Use MariaDB 10.6 or newer.",
        )


def _isolates_snapshots(connection: sa.Connection) -> bool:
    # Older servers don't have this variable.
    found = connection.scalar(
        sa.text(
            "SELECT VARIABLE_VALUE FROM information_schema.SESSION_VARIABLES"
            " WHERE VARIABLE_NAME = 'INNODB_SNAPSHOT_ISOLATION'"
        )
    )
    return found == "ON" and connection.get_isolation_level() == "REPEATABLE READ"


def _examine_tables(tables: Iterable[sa.Table], connection: sa.Connection) -> Iterator[Finding]:
    for table in tables:
        if not sa.inspect(connection).has_table(table.name, schema=table.schema):
            yield error_of(diagnosis.table_missing(table.name))
            # The same migration creates the other.
            return
        yield from _examine_table(table, connection)


def _examine_table(table: sa.Table, connection: sa.Connection) -> Iterator[Finding]:
    for kind, difference in _differences(table, connection):
        if kind == "remove_index":
            yield warning(
                f"The table '{table.name}' has more than its model: {difference}.",
                "Drop it, unless you know what it is for. On a column that is written when a"
                " session ends, it costs time, and causes deadlocks on MariaDB.",
            )
        else:
            yield error_of(diagnosis.table_differs(table.name, difference))


def _differences(table: sa.Table, connection: sa.Connection) -> Iterator[tuple[str, str]]:
    """Yield what Alembic would change in the table: the kind of change, and the current state."""
    # Only this command needs it, and importing it takes time.
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    schema = None if table.schema == connection.dialect.default_schema_name else table.schema

    def include_name(name: str | None, kind: str, _: object) -> bool:
        return name == {"schema": schema, "table": table.name}.get(kind, name)

    def include_object(_: object, name: str | None, kind: str, *__: object) -> bool:
        return kind != "table" or name == table.name

    context = MigrationContext.configure(
        connection,
        opts={
            "include_schemas": schema is not None,
            "include_name": include_name,
            "include_object": include_object,
        },
    )
    for found in compare_metadata(context, table.metadata):
        # Several changes to one column come as a list.
        for kind, *details in found if isinstance(found, list) else [found]:
            yield kind, _describe(kind, details)


def _describe(kind: str, details: list[t.Any]) -> str:
    """Return a clause that begins with "it", or with the name of a column."""
    verb = "it lacks" if kind.startswith("add_") else "it has"
    if kind in ("add_column", "remove_column"):
        return f"{verb} the column '{details[-1].name}'"
    if kind in ("add_index", "remove_index"):
        columns = ", ".join(f"'{column.name}'" for column in details[0].columns)
        return f"{verb} an index on {columns}"
    if kind == "modify_nullable":
        return f"'{details[2]}' {'must' if details[-1] else 'must not'} be nullable"
    if kind == "modify_type":
        return f"'{details[2]}' is {details[-2]!r} and should be {details[-1]!r}"
    return f"a migration would {kind.replace('_', ' ')}"


def _examine_foreign_keys(connection: sa.Connection) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite" and not connection.scalar(
        sa.text("PRAGMA foreign_keys")
    ):
        yield warning(
            "SQLite does not enforce foreign keys here: if a user is deleted by SQL, their sessions"
            " keep that user's key, and SQLite may give it to the next user.",
            "Run 'PRAGMA foreign_keys = ON' on each connection, or delete users through the ORM.",
        )
