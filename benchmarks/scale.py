"""Measure whether the cost grows with the number of sessions.

The same table is built several times, with a thousand rows and with many more. The registry's verbs
take turns on all of them, on randomly chosen sessions and users. Beside each cost, the report shows
how rows were found (the query plans), and on PostgreSQL whether an update of the last visit stayed
in its page (heap-only updates).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import random
import statistics
import time
import typing as t
import uuid
from collections.abc import Callable, Iterator

import click
import sqlalchemy as sa
from flask import Flask
from flask_login import LoginManager
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy

from flask_session_registry import SessionRegistry
from flask_session_registry import _clock as clock
from flask_session_registry._app import get_registry
from flask_session_registry._ops import maintenance as housekeeping
from flask_session_registry._records.base import BATCH, new_id
from flask_session_registry._revocation.fingerprint import CheckedCredential, fingerprint

from .common import (
    Config,
    Ratio,
    Section,
    UnavailableError,
    add_sessions,
    add_users,
    define_user,
    listening,
    mariadb,
    measure,
    postgresql,
    user_sessions,
)

#: Sessions per user.
EACH = 5
#: The number of sessions from which one is chosen at random.
SAMPLE = 5000
SMALL = 1000


@dataclasses.dataclass
class Rows:
    """The registry on a table of this many rows."""

    count: int
    app: Flask
    db: SQLAlchemy
    sessions: SessionRegistry

    def __post_init__(self) -> None:
        self.chance = random.Random(self.count)
        self.statements: list[tuple[str, t.Any]] = []
        self.table: sa.Table = self.sessions.UserSession.__table__
        self.users: sa.Table = self.db.metadata.tables["users"]
        registry = get_registry()
        self.registry, self.records = registry, registry.records
        self.credential = fingerprint(("a hash",))
        with self.db.engine.connect() as connection:
            autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
            self._prepare(autocommit)
            add_users(autocommit, self.users, self.count // EACH)
            add_sessions(autocommit, self.table, self.count, each=EACH, fingerprint=self.credential)
            self._settle(autocommit)
            # By the keys of random users: sampled pages would contain neighbors.
            user_ids = [self.user_id() for _ in range(SAMPLE)]
            column = self.table.c
            rows = sa.select(column.id, column.user_id).where(column.user_id.in_(user_ids))
            #: The ids of sessions, in hexadecimal, and of their users.
            self.known = [(id.hex, user_id) for id, user_id in autocommit.execute(rows)]
        self.chance.shuffle(self.known)

    def user_id(self) -> int:
        return self.chance.randint(1, self.count // EACH)

    def user(self) -> t.Any:
        return self.db.session.get(self.registry.credentials.user_model, self.user_id())

    # -- what is measured: each times its own part, and restores everything --------------------

    def check(self, number: int = 50) -> float:
        """Run the check of each request."""
        chosen = self.chance.choices(self.known, k=number)
        begin = time.perf_counter_ns()
        for id, user_id in chosen:
            if self.records.load(id, user_id) is None:
                raise AssertionError("An existing session was not found.")
            self.db.session.rollback()
        return (time.perf_counter_ns() - begin) / number

    def listing(self, number: int = 20) -> float:
        """List a user's sessions."""
        users = [self.user() for _ in range(number)]
        begin = time.perf_counter_ns()
        for user in users:
            if len(self.sessions.active(user)) != EACH:
                raise AssertionError("Not all sessions of a user were found.")
        return (time.perf_counter_ns() - begin) / number

    def sign_in(self, number: int = 10) -> float:
        """Record a login."""
        expiry = self.registry.expiry(self.app)
        evidence = CheckedCredential(seen=("a hash",))
        row = user_sessions([0])[0]
        del row["fingerprint"]
        logins = [
            row
            | {"id": self.records.assign_id(new_id(), user_id), "user_id": user_id, "store_id": key}
            for user_id, key in ((self.user_id(), uuid.uuid4().hex * 2) for _ in range(number))
        ]
        begin = time.perf_counter_ns()
        for values in logins:
            self.records.add(values, evidence=evidence, replaces=(), limit=None, expiry=expiry)
        spent = time.perf_counter_ns() - begin
        gone = self.table.c.id.in_([values["id"] for values in logins])
        self._execute(self.table.delete().where(gone))
        return spent / number

    def touch(self, number: int = 20) -> float:
        """Record when a session was last seen."""
        values = {"last_seen_at": clock.now(), "ip_address": "203.0.113.9", "user_agent": "Firefox"}
        chosen = [uuid.UUID(hex=id) for id, _ in self.chance.choices(self.known, k=number)]
        begin = time.perf_counter_ns()
        for id in chosen:
            self.records.touch(id, dict(values))
        return (time.perf_counter_ns() - begin) / number

    def revoke(self, number: int = 5) -> float:
        """Revoke all sessions of a user, including the work after the commit."""
        user_ids = [self.user_id() for _ in range(number)]
        spent = 0
        for user_id in user_ids:
            user = self.db.session.get(self.registry.credentials.user_model, user_id)
            begin = time.perf_counter_ns()
            ended = self.sessions.revoke_all(user)
            self.db.session.commit()
            spent += time.perf_counter_ns() - begin
            if ended != EACH:
                raise AssertionError(f"{ended} sessions of a user ended, not {EACH}.")
            self._revive(self.table.c.user_id == user_id)
        return spent / number

    def prune(self, _: int = 1) -> float:
        """Prune as a process does by itself: of a thousand rows scanned, a hundred are due."""
        self.db.session.commit()
        # Move the scan window off its start.
        self.records.next_scan_window(1)
        start = self.records._scanned_to
        id, window = self.table.c.id, self.records.next_scan_window(BATCH)
        rows = sa.select(id).where(window.covers(id)).limit(BATCH)
        with self.db.engine.connect() as connection:
            ids = list(connection.scalars(rows))[: BATCH // 10]
        self._execute(
            self.table.update()
            .where(self.table.c.id.in_(ids))
            .values(last_seen_at=clock.ago(dt.timedelta(days=90)))
        )
        # Scan the same window again.
        self.records._scanned_to = start
        begin = time.perf_counter_ns()
        done = housekeeping.prune(self.registry, self.app, limit=BATCH, scan_limit=BATCH)
        spent = time.perf_counter_ns() - begin
        if done.ended != len(ids):
            raise AssertionError(f"The prune returned {done}, not the expired sessions.")
        self._revive(self.table.c.id.in_(ids))
        return spent

    # -- specific to a database ----------------------------------------------------------------

    def _prepare(self, connection: sa.Connection) -> None:
        """Prepare the empty table."""

    def _settle(self, connection: sa.Connection) -> None:
        """Prepare the filled table."""
        raise NotImplementedError

    def _plan(self, statement: str, parameters: t.Any) -> list[str]:
        """Return how a statement finds its rows."""
        raise NotImplementedError

    def summary(self) -> str:
        """Return further facts about the table."""
        raise NotImplementedError

    # -- pieces --------------------------------------------------------------------------------

    def _revive(self, which: sa.ColumnElement[bool]) -> None:
        values = dict.fromkeys(("revoked_at", "revoked_reason", "revocation", "purged_at"))
        self._execute(
            self.table.update().where(which).values(values | {"last_seen_at": sa.func.now()})
        )

    def _execute(self, statement: sa.Executable) -> None:
        with self.db.engine.begin() as connection:
            connection.execute(statement)

    def plans(self, verb: Callable[[int], float]) -> list[str]:
        """Return how a verb's statements find their rows: the scans and the indexes used."""
        asked: dict[str, t.Any] = {}

        def note(_: t.Any, __: t.Any, statement: str, parameters: t.Any, *___: t.Any) -> None:
            if statement.startswith(("SELECT", "UPDATE")) and "user_sessions" in statement:
                asked.setdefault(statement, parameters)

        with listening(self.db.engine, before_cursor_execute=note):
            verb(1)
        self.db.session.commit()
        return sorted(
            {
                f"{statement.split()[0]}: {'; '.join(self._plan(statement, parameters))}"
                for statement, parameters in asked.items()
            }
        )

    def _rows(self, statement: str, parameters: t.Any = None) -> list[t.Any]:
        with self.db.engine.connect() as connection:
            cursor = connection.connection.cursor()
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())


class PostgreSQL(Rows):
    def _prepare(self, connection: sa.Connection) -> None:
        # The server's background work must not fall into some of the turns only.
        connection.execute(sa.text(f"ALTER TABLE {self.table} SET (autovacuum_enabled = off)"))

    def _settle(self, connection: sa.Connection) -> None:
        connection.execute(sa.text(f"VACUUM ANALYZE {self.table}, {self.users}"))
        connection.execute(sa.text("CHECKPOINT"))

    def _plan(self, statement: str, parameters: t.Any) -> list[str]:
        rows = self._rows(f"EXPLAIN {statement}", parameters)
        lines = [line.split("(cost")[0].strip(" ->") for (line,) in rows]
        return [line for line in lines if " Scan" in line]

    def summary(self) -> str:
        ((in_table, in_indexes),) = self._rows(
            f"SELECT pg_table_size('{self.table}'), pg_indexes_size('{self.table}')"
        )
        return (
            f"{self._heap_only():.1%} heap-only updates; {in_table / self.count:.0f} bytes for each"
            f" in the table, {in_indexes / self.count:.0f} in its indexes"
        )

    def _heap_only(self) -> float:
        """Return what fraction of the updates of 'last_seen_at' stayed in their page."""

        def counted() -> tuple[int, int]:
            # A connection's statistics are reported when it is idle or closed.
            self.db.session.remove()
            self.db.engine.dispose()
            ((updated, heap_only),) = self._rows(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
                " WHERE schemaname = current_schema() AND relname = 'user_sessions'"
            )
            return updated, heap_only

        before = counted()
        self.touch(2000)
        time.sleep(1.5)
        after = counted()
        return (after[1] - before[1]) / (after[0] - before[0])


class MariaDB(Rows):
    def _settle(self, connection: sa.Connection) -> None:
        connection.execute(sa.text(f"ANALYZE TABLE {self.table}, {self.users}"))

    def _plan(self, statement: str, parameters: t.Any) -> list[str]:
        rows = self._rows(f"EXPLAIN {statement}", parameters)
        return [f"{kind} on {name} by {key}" for _, _, name, kind, _, key, *_ in rows if name]

    def summary(self) -> str:
        ((in_table, in_indexes),) = self._rows(
            "SELECT data_length, index_length FROM information_schema.tables"
            f" WHERE table_schema = database() AND table_name = '{self.table}'"
        )
        return (
            f"{in_table / self.count:.0f} bytes for each in the table,"
            f" {in_indexes / self.count:.0f} in its indexes"
        )


VERBS: dict[str, str] = {
    "check": "the check on each request",
    "listing": "where a user is signed in",
    "sign_in": "a login",
    "touch": "last seen",
    "revoke": "revoke_all of 5 sessions",
    "prune": "a prune by itself",
}


#: The servers to build the table on, and how to query each.
DATABASES: dict[str, tuple[t.Any, type[Rows]]] = {
    "PostgreSQL": (postgresql, PostgreSQL),
    "MariaDB": (mariadb, MariaDB),
}


@contextlib.contextmanager
def tables(database: str, counts: t.Sequence[int]) -> Iterator[list[Rows]]:
    server, kind = DATABASES[database]
    with contextlib.ExitStack() as stack:
        made: list[Rows] = []
        for count in counts:
            config = stack.enter_context(server())
            app, db, sessions = build(config)
            stack.enter_context(app.app_context())
            db.create_all()
            begin = time.perf_counter()
            made.append(kind(count, app, db, sessions))
            click.echo(f"{count:>12,} rows made in {time.perf_counter() - begin:.0f} s", err=True)
            stack.callback(db.engine.dispose)
            stack.callback(db.session.remove)
        yield made


def build(config: Config) -> tuple[Flask, SQLAlchemy, SessionRegistry]:
    app = Flask(__name__)
    if "SQLALCHEMY_ENGINE_OPTIONS" in config:
        # Measure work, not how long a disk takes to confirm a write. On MariaDB this can only be
        # set for the whole server.
        options = config["SQLALCHEMY_ENGINE_OPTIONS"]["connect_args"]["options"]
        config["SQLALCHEMY_ENGINE_OPTIONS"] = {
            "connect_args": {"options": f"{options} -csynchronous_commit=off"}
        }
    app.config.update(SECRET_KEY="benchmark", SESSION_REGISTRY_AUTO_PRUNE=None, **config)
    db = SQLAlchemy()
    define_user(db)
    db.init_app(app)
    LoginManager(app)
    Session(app)
    return app, db, SessionRegistry(app)


def report(database: str, counts: t.Sequence[int], rounds: int) -> list[Section]:
    """Measure and print each verb on each table, as a multiple of its cost on the first."""
    found: dict[str, list[Ratio]] = {}
    notes: list[str] = []
    with tables(database, counts) as made:
        for name, title in VERBS.items():
            times = measure(made, rounds, lambda table, name=name: _within(table, name))
            click.echo(f"\n{title:28}{'µs':>10}   medians  paired      95 %")
            found[title] = []
            for table, of_table in zip(made, times, strict=True):
                line = f"{table.count:>16,} rows{statistics.median(of_table) / 1000:17.1f}"
                if table is not made[0]:
                    ratio = Ratio.of(of_table, times[0])
                    found[title].append(ratio)
                    line += str(ratio)
                click.echo(line)
            for plan in made[-1].plans(getattr(made[-1], name)):
                click.echo(f"    {plan}")
                notes.append(f"{title}: {plan}")
        click.echo()
        for table in made:
            with table.app.app_context():
                summary = f"{table.count:,} rows: {table.summary()}"
                click.echo(f"    {summary}")
                notes.append(summary)
    return [
        Section(
            f"{table.count:,} sessions on {database}",
            f"cost, with {made[0].count:,} = 1",
            {verb: ratios[place] for verb, ratios in found.items()},
            notes if table is made[-1] else (),
        )
        for place, table in enumerate(made[1:])
    ]


def _within(table: Rows, name: str) -> float:
    with table.app.app_context():
        return t.cast(float, getattr(table, name)())


@click.command(help=__doc__)
@click.option("--rounds", default=30, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--rows",
    multiple=True,
    default=[1_000_000],
    show_default=True,
    type=click.IntRange(min=SMALL),
    help="Rows of a table to compare with one of a thousand. May be given several times.",
)
@click.option(
    "--database", type=click.Choice(list(DATABASES)), default="PostgreSQL", show_default=True
)
def main(rounds: int, rows: tuple[int, ...], database: str) -> None:
    try:
        report(database, [SMALL, *rows], rounds)
    except UnavailableError as error:
        click.echo(f"Left out. {error}")


if __name__ == "__main__":
    main()
