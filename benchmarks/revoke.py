"""Measure the cost of a password change that ends k sessions.

The floor is measured in the same turns: the unavoidable minimum. It is the UPDATE of the password
and one bare UPDATE of the user's rows, in one transaction, and after its commit a pipelined UNLINK
of the same keys, which it doesn't have to look up. The registry is measured with its records in
SQL, and with the same records in Redis.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
import typing as t
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import click
import sqlalchemy as sa
from flask import Flask, request
from flask_login import LoginManager, current_user, login_required, login_user
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from werkzeug.test import create_environ

from flask_session_registry import SessionRegistry
from flask_session_registry._records.redis import RedisClient, scripts
from flask_session_registry._records.redis.session import FIELDS

from .common import (
    Config,
    Ratio,
    Section,
    UnavailableError,
    define_user,
    keep_in_redis,
    listening,
    measure,
    postgresql,
    user_sessions,
    users,
)
from .everybody import report

#: Sessions of each of the first users. Each turn ends those of one user.
SIZES = (1, 100, 10_000)
#: The other users, and the sessions of each of them.
OTHERS, EACH = 20_000, 5
FLOOR, AGAIN = "floor", "floor, again"
WITH, IN_A_VIEW = "with", "with, in a view"
REDIS, REDIS_IN_A_VIEW = "with, in Redis", "with, in Redis, in a view"
#: Multiples of the rounds: short operations are measured less precisely.
MORE_ROUNDS = {1: 3, 100: 3, 10_000: 1}
CHANGED = b"changed"


# -- the table and the store -------------------------------------------------------------------


@dataclasses.dataclass
class Field:
    """The rows and entries that all variants use. Each turn's user is restored afterwards.

    The rows are in Redis too. Some variants end the rows, and others the copies in Redis.
    """

    engine: sa.Engine
    table: sa.Table
    config: Config

    def __post_init__(self) -> None:
        self.client = self.config["SESSION_REDIS"]
        self.prefix = self.config["SESSION_KEY_PREFIX"]
        self.records = self.config["SESSION_REGISTRY_REDIS_PREFIX"]
        self.home = RedisClient(self.client, self.records)
        #: The initial rows of the users whose sessions are ended.
        self.kept = sa.Table("kept", sa.MetaData(), *(sa.Column(c.name) for c in self.table.c))
        #: An initial store entry, as long as one that a login leaves.
        self.entry = b"\0" * 216
        # The server's background work must not fall into some of the turns only.
        self._execute(sa.text(f"ALTER TABLE {self.table} SET (autovacuum_enabled = off)"))
        self._insert(OTHERS * EACH, lambda number: len(SIZES) + 1 + number % OTHERS)
        for user_id, size in enumerate(SIZES, 1):
            self._insert(size, lambda _, user_id=user_id: user_id)
        self._execute(
            sa.text(f"CREATE TABLE kept AS SELECT * FROM {self.table} WHERE user_id <= :last"),
            {"last": len(SIZES)},
        )
        self._execute(sa.text(f"VACUUM ANALYZE {self.table}, users"))
        column = self.table.c
        statement = sa.select(column.user_id, column.store_id)
        self.keys: dict[int, list[str]] = {}
        with self.engine.connect() as connection:
            for user_id, key in connection.execute(statement):
                self.keys.setdefault(user_id, []).append(key)
        for keys in self.keys.values():
            self._store(keys)
        #: The users, by shard, for the Redis shards in which sessions are ended. Other shards share
        #: nothing with these.
        self.users: dict[str, list[int]] = {
            self._shard_of(user_id): [] for user_id in range(1, len(SIZES) + 1)
        }
        for user_id in self.keys:
            self.users.get(self._shard_of(user_id), []).append(user_id)
        #: The dump of each key of a shard, in its initial state.
        self.dumps: dict[str, dict[str, bytes]] = {}
        for shard, user_ids in self.users.items():
            keep_in_redis(self.config, self._rows(user_ids))
            keys = self._keys_of(shard)
            pipeline = self.client.pipeline(transaction=False)
            for key in keys:
                pipeline.dump(key)
            found = zip(keys, pipeline.execute(), strict=True)
            self.dumps[shard] = {key: dump for key, dump in found if dump is not None}

    def _rows(self, user_ids: Sequence[int]) -> list[dict[str, t.Any]]:
        """Return the users' rows."""
        columns = [column for column in self.table.c if column.name in FIELDS]
        rows = sa.select(*columns).where(self.table.c.user_id.in_(user_ids))
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(rows).mappings()]

    def _insert(self, count: int, user_id: Callable[..., t.Any]) -> None:
        """Add rows; the function maps each number to a user."""
        series = sa.func.generate_series(0, count - 1).table_valued("number").render_derived()

        def digest(of: sa.ColumnElement[t.Any]) -> sa.ColumnElement[str]:
            text = sa.cast(sa.cast(of, sa.Text), sa.LargeBinary)
            return sa.func.encode(sa.func.sha256(text), "hex")

        owner = user_id(series.c.number)
        values = user_sessions([0])[0] | {
            "id": sa.func.gen_random_uuid(),
            "user_id": owner,
            # All sessions of a user were opened with one password.
            "fingerprint": digest(sa.literal(owner) if isinstance(owner, int) else owner),
            "store_id": sa.literal(self.prefix) + digest(sa.func.gen_random_uuid()),
        }
        columns = [
            value if isinstance(value, sa.ClauseElement) else sa.literal(value)
            for value in values.values()
        ]
        self._execute(
            self.table.insert().from_select(list(values), sa.select(*columns).select_from(series))
        )

    def _store(self, keys: Sequence[str]) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for key in keys:
            pipeline.set(key, self.entry, ex=31 * 24 * 3600)
        pipeline.execute()

    def _execute(self, *arguments: t.Any) -> None:
        with self.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(*arguments)

    def describe(self) -> str:
        """Return the servers' versions, and whether a commit waits for the disk."""
        names = ("server_version", "fsync", "synchronous_commit")
        with self.engine.connect() as connection:
            version, *others = (connection.scalar(sa.text(f"SHOW {name}")) for name in names)
        waits = " and ".join(
            f"{name} {value}" for name, value in zip(names[1:], others, strict=True)
        )
        redis = self.client.info()
        waits_too = "on" if redis["aof_enabled"] else "off"
        return (
            f"PostgreSQL {version.split()[0]} ({waits}),"
            f" Redis {redis['redis_version']} (appendonly {waits_too})"
        )

    def restore(self, user_id: int, *, in_redis: bool) -> None:
        """Restore what a turn ended, with identical rows after all variants.

        The rows are new, in place of the old ones: whatever a variant left behind is gone from the
        table and its indexes before the next one begins.
        """
        column = self.table.c
        self._execute(self.table.delete().where(column.user_id == user_id))
        # With few dead rows, VACUUM would leave their entries in the indexes.
        self._execute(sa.text(f"VACUUM (INDEX_CLEANUP ON) {self.table}, users"))
        names = [name.name for name in self.kept.c]
        rows = sa.select(self.kept).where(self.kept.c.user_id == user_id)
        self._execute(self.table.insert().from_select(names, rows))
        self._store(self.keys[user_id])
        self._check_restored(user_id, in_redis=False)
        if in_redis:
            self._restore_in_redis(self._shard_of(user_id))
            self._check_restored(user_id, in_redis=True)

    def _check_restored(self, user_id: int, *, in_redis: bool) -> None:
        size = len(self.keys[user_id])
        self.check(user_id, revoked=0, standing=size, entries=True, in_redis=in_redis)

    def _restore_in_redis(self, shard: str) -> None:
        """Restore everything that shares an index with what a turn ended."""
        self.client.unlink(*self._keys_of(shard))
        pipeline = self.client.pipeline(transaction=False)
        for key, dump in self.dumps[shard].items():
            pipeline.restore(key, 61 * 24 * 3600 * 1000, dump)
        pipeline.execute()

    def _keys_of(self, shard: str) -> list[str]:
        """Return the keys of a shard's sessions and indexes."""
        base = f"{self.records}{{{shard}}}:"
        ids = self.client.zrange(f"{base}due", 0, -1)
        users = [f"{index}:int:{user_id}" for index in ("u", "e") for user_id in self.users[shard]]
        return [f"{base}due", *(f"{base}s:{id.decode()}" for id in ids), *map(base.__add__, users)]

    def _shard_of(self, user_id: int) -> str:
        return self.home.assign_id(uuid.UUID(int=0), user_id).hex[:2]

    def check(
        self, user_id: int, *, revoked: int, standing: int, entries: bool, in_redis: bool
    ) -> None:
        """Check the state of the rows, or of the records in Redis, and of the store entries.

        :raises AssertionError: it is wrong.
        """
        keys = self.keys[user_id]
        found = self._count_in_redis(user_id) if in_redis else self._count(user_id)
        if found != (revoked, revoked + standing):
            raise AssertionError(f"{found[0]} of {found[1]} are revoked, not {revoked}.")
        left = self.client.exists(*keys)
        if left != len(keys) * entries:
            raise AssertionError(f"The store has {left} of {len(keys)} entries.")

    def _count(self, user_id: int) -> tuple[int, int]:
        """Return how many rows of a user have ended, and how many there are."""
        column = self.table.c
        counts = sa.select(sa.func.count(column.revoked_at), sa.func.count())
        with self.engine.connect() as connection:
            ended, all = connection.execute(counts.where(column.user_id == user_id)).one()
        return ended, all

    def _count_in_redis(self, user_id: int) -> tuple[int, int]:
        standing, ended = (
            sum(map(len, self.home.of_users([user_id], ended=is_ended)))
            for is_ended in (False, True)
        )
        return ended, ended + standing


# -- variants ----------------------------------------------------------------------------------


class Variant:
    """One way to change a password."""

    #: How many sessions continue.
    spared = 0

    def __init__(self, name: str, app: Flask, db: SQLAlchemy, user_model: type[t.Any]) -> None:
        self.name = name
        self.app = app
        self.db = db
        self.user_model = user_model
        #: Whether it ends sessions in Redis instead of rows.
        self.in_redis = app.config.get("SESSION_REGISTRY_RECORDS") == "redis"

    def run(self, field: Field, user_id: int) -> float:
        """Change the password once and return the nanoseconds. The user has been loaded before.

        :raises AssertionError: not all sessions have ended, or not all entries are gone.
        """
        with self.app.app_context():
            user = self.db.session.get(self.user_model, user_id)
            begin = time.perf_counter_ns()
            self.change(field, user)
            spent = time.perf_counter_ns() - begin
        self.check(field, user_id)
        return spent

    def change(self, field: Field, user: t.Any) -> None:
        raise NotImplementedError

    def check(self, field: Field, user_id: int) -> None:
        size = len(field.keys[user_id])
        field.check(
            user_id, revoked=size, standing=self.spared, entries=False, in_redis=self.in_redis
        )


class Floor(Variant):
    """Without the registry: the necessary work, with the keys already known."""

    def change(self, field: Field, user: t.Any) -> None:
        column = field.table.c
        keys = field.keys[user.id]
        user.password_hash = new_password()
        self.db.session.execute(
            field.table.update()
            .where(column.user_id == user.id, column.revoked_at.is_(None))
            .values(
                revoked_at=sa.func.now(), revoked_reason="password_changed", revocation=uuid.uuid4()
            )
        )
        self.db.session.commit()
        pipeline = field.client.pipeline(transaction=False)
        for key in keys:
            pipeline.unlink(key)
        pipeline.execute()


class Registry(Variant):
    """The registry, which notices the password change."""

    def change(self, _: Field, user: t.Any) -> None:
        user.password_hash = new_password()
        self.db.session.commit()


class View(Variant):
    """The registry in a request of a browser that stays signed in: the whole WSGI call."""

    spared = 1

    def run(self, field: Field, user_id: int) -> float:
        client = self.app.test_client()
        client.post("/login", data={"user": user_id})
        cookie = client.get_cookie("session")
        if cookie is None:
            raise AssertionError("The login set no cookie.")
        environ = create_environ(
            "/password",
            method="POST",
            headers={"Cookie": f"session={cookie.value}", "User-Agent": "werkzeug"},
        )
        begin = time.perf_counter_ns()
        body = self.app(environ, lambda *_: lambda _: None)
        answer = b"".join(body)
        body.close()  # type: ignore[attr-defined]
        spent = time.perf_counter_ns() - begin
        if answer != CHANGED:
            raise AssertionError("The view did not change the password.")
        self.check(field, user_id)
        return spent


def new_password() -> str:
    """Return another hash each time."""
    return f"scrypt:{uuid.uuid4().hex * 4}"


def make_app(config: Config) -> tuple[Flask, SQLAlchemy, type[t.Any]]:
    """Return an app without the registry, with models of its own on the shared tables."""
    app = Flask(__name__)
    app.config.update(SECRET_KEY="benchmark", **config)
    db = SQLAlchemy(app)
    user_model = define_user(db)
    login_manager = LoginManager(app)
    Session(app)

    @login_manager.user_loader  # type: ignore[untyped-decorator]
    def load_user(user_id: str) -> t.Any:
        return db.session.get(user_model, int(user_id))

    return app, db, user_model


def add_views(app: Flask, db: SQLAlchemy, user_model: type[t.Any]) -> None:
    @app.post("/login")
    def login() -> str:
        login_user(db.session.get(user_model, int(request.form["user"])))
        return ""

    @app.post("/password")
    @login_required
    def change_password() -> bytes:
        current_user.password_hash = new_password()
        db.session.commit()
        return CHANGED


@contextlib.contextmanager
def built(config: Config) -> Iterator[tuple[Field, list[Variant]]]:
    """Yield the variants, on a filled table."""
    bare = make_app(config)
    # A process prunes once an hour, which must not fall into one of the turns.
    config = {**config, "SESSION_REGISTRY_AUTO_PRUNE": None}
    app, db, user_model = full = make_app(config)
    add_views(*full)
    registry = SessionRegistry(app)
    in_redis = make_app({**config, "SESSION_REGISTRY_RECORDS": "redis"})
    add_views(*in_redis)
    SessionRegistry(in_redis[0])
    engines = []
    for one in (bare, full, in_redis):
        with one[0].app_context():
            engines.append(one[1].engine)
    with app.app_context():
        db.create_all()
        db.session.execute(sa.insert(user_model), users(len(SIZES) + OTHERS))
        db.session.commit()
        table = registry.UserSession.__table__
    try:
        field = Field(engines[0], table, config)
        variants = [
            Floor(FLOOR, *bare),
            Floor(AGAIN, *bare),
            Registry(WITH, *full),
            Registry(REDIS, *in_redis),
            View(IN_A_VIEW, *full),
            View(REDIS_IN_A_VIEW, *in_redis),
        ]
        yield field, variants
    finally:
        for engine in engines:
            engine.dispose()


# -- cost --------------------------------------------------------------------------------------


def report_cost(
    field: Field, variants: Sequence[Variant], user_id: int, rounds: int
) -> dict[str, Ratio]:
    """Measure and print the cost of each variant, as a multiple of the floor."""
    times = measure(
        variants,
        rounds,
        lambda variant: variant.run(field, user_id),
        after=lambda variant: field.restore(user_id, in_redis=variant.in_redis),
    )
    click.echo(f"{'cost':26}{'ms':>8}{'medians':>10}{'paired':>8}{'95 %':>10}")
    ratios: dict[str, Ratio] = {}
    for variant, of_variant in zip(variants, times, strict=True):
        line = f"{variant.name:26}{statistics.median(of_variant) / 1e6:8.2f}"
        if variant is not variants[0]:
            ratios[variant.name] = Ratio.of(of_variant, times[0])
            line += str(ratios[variant.name])
        click.echo(line)
    return ratios


# -- where the time goes -----------------------------------------------------------------------

PASSWORD = "the password's UPDATE"
COMMIT = "COMMIT"
LOCKING = "locking the user"
READING = "reading what ends"
ENDING = "ending it"
POINTING = "noting the keys"
UNLINKING = "UNLINK"
MARKING = "marking as purged"
OTHER = "other SQL or Redis"
REST = "everything else"
PIECES = (
    PASSWORD,
    LOCKING,
    ENDING,
    COMMIT,
    READING,
    POINTING,
    UNLINKING,
    MARKING,
    OTHER,
    REST,
)
#: Pieces without work in Python: they end with their response.
WRITTEN = (POINTING, UNLINKING)


def piece_of(statement: str) -> str:
    """Return the piece that an SQL statement belongs to."""
    verb, _, rest = statement.partition(" ")
    if verb == "UPDATE":
        if rest.startswith("users "):
            return PASSWORD
        return ENDING if "revoked_at=" in rest.partition("WHERE")[0] else MARKING
    if "FOR NO KEY UPDATE" in rest or "DISTINCT" in rest:
        return LOCKING
    return READING if "revocation" in rest else OTHER


def piece_of_command(arguments: Sequence[t.Any]) -> str:
    """Return the piece that a Redis command belongs to."""
    if arguments[0] not in ("EVAL", "EVALSHA"):
        return {"UNLINK": UNLINKING, "SET": POINTING}.get(arguments[0], OTHER)
    if arguments[1] not in (scripts.UPDATE.digest, scripts.UPDATE.text):
        return READING
    # After the ids and the grace period come the new values.
    return ENDING if '"revoked_at"' in arguments[6] else MARKING


class Stopwatch:
    """Divide the time of a turn into pieces. Each moment counts for the piece that began last.

    A piece begins with its statement or pipeline, and ends with the next one, or when the
    connection is returned. It is identified by what is sent to the servers, not by function.
    """

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.statements: Counter[str] = Counter()
        self.round_trips: Counter[str] = Counter()
        self._piece = REST
        self._since = time.perf_counter_ns()

    def begin(self, piece: str) -> None:
        now = time.perf_counter_ns()
        self.spent[self._piece] += now - self._since
        self._piece, self._since = piece, now

    def _on_statement(self, *arguments: t.Any) -> None:
        piece = piece_of(arguments[2])
        self.statements[piece] += 1
        self.begin(piece)

    def _on_command(self, function: Callable[..., t.Any]) -> Callable[..., t.Any]:
        def watched(*arguments: t.Any, **keywords: t.Any) -> t.Any:
            self.begin(piece_of_command(arguments))
            return self._send(function, arguments, keywords)

        return watched

    def _send(self, function: Callable[..., t.Any], arguments: t.Any, keywords: t.Any) -> t.Any:
        piece = self._piece
        self.round_trips[piece] += 1
        try:
            return function(*arguments, **keywords)
        finally:
            if piece in WRITTEN:
                self.begin(REST)

    @contextlib.contextmanager
    def on(self, engine: sa.Engine, client: t.Any) -> Iterator[None]:
        make_pipeline = client.pipeline

        def pipeline(*arguments: t.Any, **keywords: t.Any) -> t.Any:
            made = make_pipeline(*arguments, **keywords)
            queue, execute = made.execute_command, made.execute

            def queued(*command: t.Any, **options: t.Any) -> t.Any:
                if not made.command_stack:
                    self.begin(piece_of_command(command))
                return queue(*command, **options)

            def executed() -> t.Any:
                # Without commands, nothing is sent.
                return self._send(execute, (), {}) if made.command_stack else execute()

            made.execute_command, made.execute = queued, executed
            return made

        client.execute_command = self._on_command(client.execute_command)
        client.pipeline = pipeline
        try:
            with listening(
                engine,
                before_cursor_execute=self._on_statement,
                commit=lambda *_: self.begin(COMMIT),
                checkin=lambda *_: self.begin(REST),
            ):
                yield
        finally:
            del client.execute_command, client.pipeline


def report_pieces(field: Field, variants: Sequence[Variant], user_id: int, rounds: int) -> None:
    """Time the pieces, separately from the cost, which this increases."""
    watches: dict[str, list[Stopwatch]] = {variant.name: [] for variant in variants}

    def run(variant: Variant) -> float:
        watch = Stopwatch()
        with variant.app.app_context():
            engine = variant.db.engine
        change = variant.change

        def watched(field: Field, user: t.Any) -> None:
            with watch.on(engine, field.client):
                watch.begin(REST)
                watch.spent.clear()
                change(field, user)
                watch.begin(REST)

        variant.change = watched  # type: ignore[method-assign]
        try:
            spent = variant.run(field, user_id)
        finally:
            del variant.change
        watches[variant.name].append(watch)
        return spent

    measure(
        variants,
        rounds,
        run,
        after=lambda variant: field.restore(user_id, in_redis=variant.in_redis),
    )
    click.echo(
        f"{'where it goes':24}"
        + "".join(f"{name + ', ms':>19}{'SQL':>5}{'Redis':>7}" for name in watches)
    )
    for piece in PIECES:
        line = f"{piece:24}"
        for of_variant in watches.values():
            spent = statistics.median(watch.spent[piece] for watch in of_variant) / 1e6
            trips = of_variant[0].round_trips[piece]
            line += f"{spent:19.2f}" if spent else " " * 19
            line += f"{of_variant[0].statements[piece] or '':>5}{trips or '':>7}"
        click.echo(line.rstrip())


def report_sizes(rounds: int, only: str | None = None) -> dict[int, dict[str, Ratio]]:
    """Measure and print the cost for each number of sessions."""
    ratios: dict[int, dict[str, Ratio]] = {}
    with postgresql() as config, built(config) as (field, variants):
        click.echo(field.describe())
        click.echo(f"Amid {OTHERS * EACH} sessions of {OTHERS} others")
        for user_id, size in enumerate(SIZES, 1):
            if only not in (None, str(size)):
                continue
            rounds_of_size = rounds * MORE_ROUNDS[size]
            click.echo(f"\nk = {size}: {rounds_of_size} rounds\n")
            for variant in variants:  # Fill statement caches and open connections.
                variant.run(field, user_id)
                field.restore(user_id, in_redis=variant.in_redis)
            ratios[size] = report_cost(field, variants, user_id, rounds_of_size)
            click.echo()
            pieces = [one for one in variants if one.name in (FLOOR, WITH, REDIS)]
            report_pieces(field, pieces, user_id, max(1, rounds_of_size // 3))
    return ratios


def report_everybody(sessions: int) -> Section:
    """Measure and print the cost of revoking everyone's sessions, and whether memory stays flat."""
    with postgresql() as config:
        return report(config, make_app, sessions)


# -- the command -------------------------------------------------------------------------------


@click.command(help=__doc__)
@click.option(
    "--rounds",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rounds with 10 000 sessions; three times as many with fewer.",
)
@click.option(
    "--only", type=click.Choice([str(size) for size in SIZES]), help="Run only this size."
)
@click.option(
    "--everybody",
    is_flag=True,
    help="Instead, measure 'flask revoke-sessions --all': cost, and whether memory stays flat.",
)
@click.option(
    "--sessions", default=1_000_000, show_default=True, help="How many sessions '--everybody' ends."
)
def main(rounds: int, only: str | None, everybody: bool, sessions: int) -> None:
    try:
        if everybody:
            report_everybody(sessions)
            return
        report_sizes(rounds, only)
    except UnavailableError as error:
        click.echo(f"Left out. {error}")


if __name__ == "__main__":
    main()
