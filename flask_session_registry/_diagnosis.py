"""What is wrong when user sessions can't be read or written, in a sentence, and what to do, in one.

It is read from the error alone: by its class, its code and what it names. So a failure costs no
question to a server that has just failed. Of an error that is not ours no text is shown, because it
might hold a secret: only names that the model has, too.
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

from ._app import Registry, find_registry, unwrap
from ._log import code_of, log
from ._records.base import UNAVAILABLE
from ._records.redis.client import RedisHome
from .errors import RecordsError, SessionRegistryError

#: By which codes PostgreSQL and MariaDB say it, and SQLite by which words.
_NO_TABLE = ({"42P01", "1146"}, "no such table: ")
_NO_COLUMN = ({"42703", "1054"}, "no such column: ", "has no column named ")
_HELD = ({"55P03", "1205"}, "database is locked", "database table is locked")


class Diagnosis(t.NamedTuple):
    """A sentence on what is wrong, and one on what to do."""

    problem: str
    remedy: str
    #: Whether the table of the user sessions is missing, or not as its model says.
    is_about_table: bool = False

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


def diagnose(error: BaseException) -> Diagnosis:
    """What is wrong, given one of the errors that say so."""
    if isinstance(error, RecordsError) and error.__cause__ is not None:
        # Of 'explaining_table': it has been said already.
        return Diagnosis(str(error), "", is_about_table=True)
    if isinstance(error, RecordsError) and error.__context__ is not None:
        return home_unreachable(error.__context__)
    if isinstance(error, SessionRegistryError):
        return Diagnosis(str(error), "")
    try:
        return _of_sql(error)
    except Exception:
        # One of its attributes raises.
        return _unknown(type(error).__name__)


def _of_sql(error: BaseException) -> Diagnosis:
    if isinstance(error, sa.exc.TimeoutError):
        return Diagnosis(
            "All connections to the database are in use.",
            "Find out what holds them for so long, or allow more of them in"
            " 'SQLALCHEMY_ENGINE_OPTIONS'.",
        )
    if isinstance(error, sa.exc.DBAPIError):
        if _says(error, *_NO_TABLE):
            return _no_table(error)
        if _says(error, *_NO_COLUMN):
            return _no_column(error)
        if _says(error, *_HELD):
            return Diagnosis(
                f"Another transaction holds rows, or the table, for too long ({_name_of(error)}).",
                "Commit earlier where that is done. A backup or a migration may do it, too.",
            )
        if error.connection_invalidated or _is_of_connecting(error):
            return database_unreachable(error)
    return _unknown(_name_of(error))


def _unknown(name: str) -> Diagnosis:
    return Diagnosis(
        f"A statement on the user sessions has failed ({name}).",
        "Run 'flask sessions doctor', which looks for the cause. At the level DEBUG, the logger"
        " 'flask_session_registry' says where it happened.",
    )


def _says(error: sa.exc.DBAPIError, codes: set[str], *words: str) -> bool:
    return code_of(error.orig or error) in codes or any(one in _first_line(error) for one in words)


def _is_of_connecting(error: sa.exc.DBAPIError) -> bool:
    # A commit has no statement either, and may be refused for the sake of another transaction.
    is_commit = str(code_of(error.orig or error)).startswith("40")
    kinds = (sa.exc.OperationalError, sa.exc.InterfaceError)
    return error.statement is None and isinstance(error, kinds) and not is_commit


def _first_line(error: sa.exc.DBAPIError) -> str:
    # What follows may be the statement.
    return str(error.orig).partition("\n")[0]


def _name_of(error: BaseException) -> str:
    """The class of an error, and its code if it has one."""
    code = code_of(getattr(error, "orig", None) or error)
    name = type(error).__name__
    return name if code is None else f"{name}, {code}"


def _no_table(error: sa.exc.DBAPIError) -> Diagnosis:
    table = _table()
    if table is not None and table.name in re.findall(r"\w+", _first_line(error)):
        return table_missing(table.name)
    return Diagnosis(f"A table of the app is missing ({_name_of(error)}).", _remedy_of_no_table())


def _no_column(error: sa.exc.DBAPIError) -> Diagnosis:
    table, named = _table(), re.findall(r"\w+", _first_line(error))
    registry = find_registry()
    if table is not None and registry is not None:
        others = {t.cast(sa.Table, each).name for each in registry.users.tables}
        lacking = [name for name in named if name in table.columns]
        if lacking and others.isdisjoint(named):
            return table_differs(table.name, f"it lacks the column '{lacking[-1]}'")
    return Diagnosis(
        f"A table of the app lacks a column ({_name_of(error)}).", _remedy_of_other_table()
    )


def _table() -> sa.Table | None:
    """The table of the current app's user sessions; ``None``: there is none, or no app."""
    registry = find_registry()
    if registry is None or registry.session_model is None:
        return None
    return t.cast(sa.Table, registry.session_model.__table__)


# -- sentences that 'flask sessions doctor' says, too ------------------------------------------


def table_missing(name: str) -> Diagnosis:
    return Diagnosis(f"The table '{name}' is missing.", _remedy_of_no_table(), is_about_table=True)


def table_differs(name: str, how: str) -> Diagnosis:
    """
    :param how: a clause that begins with "it".
    """
    return Diagnosis(
        f"The table '{name}' is not as its model says: {how}.",
        _remedy_of_other_table(),
        is_about_table=True,
    )


def database_unreachable(error: BaseException) -> Diagnosis:
    return Diagnosis(
        f"The database can't be asked ({type(error).__name__}).",
        "See that it runs, that 'SQLALCHEMY_DATABASE_URI' (or the bind of the users) is right,"
        " and that this user may read the tables.",
    )


def home_unreachable(error: BaseException) -> Diagnosis:
    registry = find_registry()
    is_redis = registry is not None and isinstance(registry.home, RedisHome)
    return Diagnosis(
        f"The user sessions can't be asked ({type(error).__name__}).",
        "See that Redis runs, and that 'SESSION_REGISTRY_REDIS' is right."
        if is_redis
        else "See that the server runs on which they are kept.",
    )


def _remedy_of_no_table() -> str:
    commands = _migration_commands()
    if commands is None:
        return (
            "Call 'db.create_all()' in the context of the app, or set up Flask-Migrate and run"
            " 'flask db upgrade', after 'flask db migrate'."
        )
    upgrade, revise = commands
    return f"Run {upgrade}, after {revise} if no migration makes it yet."


def _remedy_of_other_table() -> str:
    commands = _migration_commands()
    if commands is None:
        return (
            "Alter it by hand, as 'db.create_all()' makes only tables that are missing, or set up"
            " Flask-Migrate and run 'flask db upgrade', after 'flask db migrate'."
        )
    upgrade, revise = commands
    return f"Run {upgrade}, after {revise} if no migration says so yet."


def _migration_commands() -> tuple[str, str] | None:
    """What applies migrations, and what makes one; ``None``: the app has neither extension."""
    app = unwrap(current_app) if has_app_context() else None
    if app is None or "migrate" in app.extensions:
        group = _group_of("flask_migrate", app)
        return f"'flask {group} upgrade'", f"'flask {group} migrate'"
    if "alembic" in app.extensions:
        group = _group_of("flask_alembic", app)
        return f"'upgrade' of Flask-Alembic's commands, 'flask {group} …'", "its 'revision'"
    return None


def _group_of(package: str, app: Flask | None) -> str:
    """How an app calls the commands of an extension."""
    for name, command in app.cli.commands.items() if app is not None else ():
        if str(getattr(command.callback, "__module__", "")).partition(".")[0] == package:
            return name
    return "db"


# -- who is told -------------------------------------------------------------------------------


def shows_tracebacks() -> bool:
    """Whether an operator wants more than a sentence: in debug mode, or at the level DEBUG."""
    return log.isEnabledFor(logging.DEBUG) or (has_app_context() and current_app.debug)


def report(problem: str, error: BaseException) -> None:
    """Log that something has failed, and why.

    :param problem: what could not be done, in a sentence.
    """
    if isinstance(error, UNAVAILABLE):
        trace = error if shows_tracebacks() else None
        log.error("%s %s", problem, diagnose(error), exc_info=trace)
    else:
        log.error(problem, exc_info=error)


@contextlib.contextmanager
def explaining_table() -> Iterator[None]:
    """Within it, a statement that fails because of the table says so.

    :raises RecordsError: the table is missing, or not as its model says. Any other error stays as
        it is, for whoever handles those of SQLAlchemy.
    """
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        diagnosis = diagnose(error)
        if diagnosis.is_about_table:
            raise RecordsError(str(diagnosis)) from error
        raise


def look(registry: Registry) -> Diagnosis | None:
    """Look whether user sessions can be read at all; what is wrong if not."""
    try:
        if registry.home is not None:
            # Never given to anybody: there is no such session.
            registry.records.get(uuid.uuid4())
            return None
        table = registry.table
        with table.connection() as connection:
            connection.execute(sa.select(table.table).where(sa.false()))
    except Exception as error:
        return diagnose(error)
    return None
