"""Diagnoses of failures to read or write user sessions: what is wrong, and what to do.

A diagnosis uses only the class of an error, its code and the names in it: a server that has just
failed gets no further query. The text of another library's error is never shown, as it may contain
a secret; only names that also appear in the model are.
"""

from __future__ import annotations

import contextlib
import logging
import re
import typing as t
import uuid
from collections.abc import Iterator

import sqlalchemy as sa
from flask import Flask, current_app, has_app_context

from ._app import Registry, find_registry
from ._compat.flask import unwrap
from ._log import error_code, log
from ._records.base import UNAVAILABLE
from .errors import RecordsError, SessionRegistryError

#: Codes of PostgreSQL and MariaDB, and messages of SQLite.
_NO_TABLE = ({"42P01", "1146"}, "no such table: ")
_NO_COLUMN = ({"42703", "1054"}, "no such column: ", "has no column named ")
_LOCKED = ({"55P03", "1205"}, "database is locked", "database table is locked")


class Diagnosis(t.NamedTuple):
    """One sentence on what is wrong, and one on what to do."""

    problem: str
    remedy: str
    #: Whether the table of the user sessions is missing, or differs from its model.
    is_about_table: bool = False

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


def diagnose(error: BaseException) -> Diagnosis:
    """Return what is wrong, given one of the errors in :data:`UNAVAILABLE`, or one of ours."""
    if isinstance(error, RecordsError) and error.__cause__ is not None:
        # Raised by 'explaining_table': its message is a diagnosis already.
        return Diagnosis(str(error), "", is_about_table=True)
    if isinstance(error, RecordsError) and error.__context__ is not None:
        return redis_unreachable(error.__context__)
    if isinstance(error, SessionRegistryError):
        return Diagnosis(str(error), "")
    try:
        return _diagnose_sql(error)
    except Exception:
        # One of the error's attributes raises.
        return _unknown(type(error).__name__)


def check_records(registry: Registry) -> Diagnosis | None:
    """Try to read user sessions; return what is wrong if that fails."""
    read = _read_sql if registry.settings.records == "sql" else read_redis
    try:
        read(registry)
    except Exception as error:
        return diagnose(error)
    return None


def _unknown(name: str) -> Diagnosis:
    return Diagnosis(
        f"A statement on the user sessions failed ({name}).",
        "Run 'flask sessions doctor' to look for the cause. At the level DEBUG, the logger"
        " 'flask_session_registry' shows where it happened.",
    )


# -- Redis -------------------------------------------------------------------------------------


def redis_unreachable(error: BaseException) -> Diagnosis:
    return Diagnosis(
        f"The user sessions can't be read ({type(error).__name__}).",
        "Check that Redis is running and that 'SESSION_REGISTRY_REDIS' is correct.",
    )


def read_redis(registry: Registry) -> None:
    """Raise the error, if the user sessions in Redis can't be read."""
    # A random id: no such session exists.
    registry.records.get(uuid.uuid4())


# -- SQL ---------------------------------------------------------------------------------------


def table_missing(name: str) -> Diagnosis:
    return Diagnosis(f"The table '{name}' is missing.", _remedy("creates"), is_about_table=True)


def table_differs(name: str, difference: str) -> Diagnosis:
    """
    :param difference: a clause that begins with "it", or with the name of a column.
    """
    return Diagnosis(
        f"The table '{name}' does not match its model: {difference}.",
        _remedy("changes"),
        is_about_table=True,
    )


def database_unreachable(error: BaseException) -> Diagnosis:
    return Diagnosis(
        f"The database can't be queried ({type(error).__name__}).",
        "Check that it is running, that 'SQLALCHEMY_DATABASE_URI' (or the bind of the users) is"
        " correct, and that its user may read the tables.",
    )


def _read_sql(registry: Registry) -> None:
    records = registry.sql_records
    with records.connection() as connection:
        for table in records.tables:
            connection.execute(sa.select(table).where(sa.false()))


def _diagnose_sql(error: BaseException) -> Diagnosis:
    if isinstance(error, sa.exc.TimeoutError):
        return Diagnosis(
            "All connections to the database are in use.",
            "Find out what holds them for so long, or allow more in 'SQLALCHEMY_ENGINE_OPTIONS'.",
        )
    if isinstance(error, sa.exc.DBAPIError):
        if _matches(error, *_NO_TABLE):
            return _missing_table(error)
        if _matches(error, *_NO_COLUMN):
            return _missing_column(error)
        if _matches(error, *_LOCKED):
            return Diagnosis(
                "Another transaction has held a lock on rows or the table for too long"
                f" ({_name_of(error)}).",
                "Commit earlier in that transaction. It may also be a backup or a migration.",
            )
        if error.connection_invalidated or _is_connection_failure(error):
            return database_unreachable(error)
    return _unknown(_name_of(error))


def _matches(error: sa.exc.DBAPIError, codes: set[str], *messages: str) -> bool:
    line = _first_line(error)
    return error_code(error.orig or error) in codes or any(text in line for text in messages)


def _is_connection_failure(error: sa.exc.DBAPIError) -> bool:
    # A commit has no statement either, and may be refused in favor of another transaction.
    is_commit = str(error_code(error.orig or error)).startswith("40")
    kinds = (sa.exc.OperationalError, sa.exc.InterfaceError)
    return error.statement is None and isinstance(error, kinds) and not is_commit


def _first_line(error: sa.exc.DBAPIError) -> str:
    # The lines after it may contain the statement.
    return str(error.orig).partition("\n")[0]


def _name_of(error: BaseException) -> str:
    """Return the class of an error, and its code if it has one."""
    code = error_code(getattr(error, "orig", None) or error)
    name = type(error).__name__
    return name if code is None else f"{name}, {code}"


def _missing_table(error: sa.exc.DBAPIError) -> Diagnosis:
    names = re.findall(r"\w+", _first_line(error))
    for table in _tables():
        if table.name in names:
            return table_missing(table.name)
    return Diagnosis(f"A table of the app is missing ({_name_of(error)}).", _remedy("creates"))


def _missing_column(error: sa.exc.DBAPIError) -> Diagnosis:
    registry, names = find_registry(), re.findall(r"\w+", _first_line(error))
    missing: list[tuple[str, str]] = []
    if registry is not None and {table.name for table in registry.users.tables}.isdisjoint(names):
        # First the table that the error names, if it names any.
        tables = sorted(_tables(), key=lambda table: table.name not in names)
        missing = [
            (table.name, name) for table in tables for name in names if name in table.columns
        ]
    if missing:
        table_name, _ = missing[0]
        *_, column = [name for owner, name in missing if owner == table_name]
        return table_differs(table_name, f"it lacks the column '{column}'")
    return Diagnosis(f"A table of the app lacks a column ({_name_of(error)}).", _remedy("changes"))


def _tables() -> tuple[sa.Table, ...]:
    """Return the tables of the current app's user sessions; none without them, or an app."""
    registry = find_registry()
    if registry is None or registry.session_model is None:
        return ()
    return registry.sql_records.tables


def _remedy(does: t.Literal["creates", "changes"]) -> str:
    """
    :param does: what a migration must do to the table.
    """
    commands = _migration_commands()
    if commands is not None:
        upgrade, revise = commands
        return f"Run {upgrade}, after {revise} if no migration {does} it yet."
    by_hand = {
        "creates": "Call 'db.create_all()' in an app context",
        "changes": "Alter it by hand, as 'db.create_all()' creates only missing tables",
    }
    return (
        f"{by_hand[does]}, or set up Flask-Migrate and run 'flask db upgrade', after"
        " 'flask db migrate'."
    )


def _migration_commands() -> tuple[str, str] | None:
    """Return what applies migrations and what creates one; ``None`` without such an extension."""
    app = unwrap(current_app) if has_app_context() else None
    if app is None or "migrate" in app.extensions:
        group = _command_group("flask_migrate", app)
        return f"'flask {group} upgrade'", f"'flask {group} migrate'"
    if "alembic" in app.extensions:
        group = _command_group("flask_alembic", app)
        return f"'upgrade' of Flask-Alembic's commands, 'flask {group} …'", "its 'revision'"
    return None


def _command_group(package: str, app: Flask | None) -> str:
    """Return the name under which an app has the commands of an extension."""
    for name, command in app.cli.commands.items() if app is not None else ():
        if str(getattr(command.callback, "__module__", "")).partition(".")[0] == package:
            return name
    return "db"


# -- reports -----------------------------------------------------------------------------------


def shows_tracebacks() -> bool:
    """Return whether an operator wants tracebacks: in debug mode, or at the level DEBUG."""
    return log.isEnabledFor(logging.DEBUG) or (has_app_context() and current_app.debug)


def report(problem: str, error: BaseException) -> None:
    """Log that something failed, and why.

    :param problem: a sentence on what failed.
    """
    if isinstance(error, UNAVAILABLE):
        trace = error if shows_tracebacks() else None
        log.error("%s %s", problem, diagnose(error), exc_info=trace)
    else:
        log.error(problem, exc_info=error)


@contextlib.contextmanager
def explaining_table() -> Iterator[None]:
    """Explain errors of statements that fail because of the table.

    :raises RecordsError: the table is missing, or differs from its model. Any other error stays
        as it is, for code that handles SQLAlchemy's errors.
    """
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        diagnosis = diagnose(error)
        if diagnosis.is_about_table:
            raise RecordsError(str(diagnosis)) from error
        raise
