"""Shared parts of the benchmarks: servers, initial rows, alternating turns, ratios."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import gc
import hashlib
import itertools
import os
import random
import statistics
import typing as t
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask_login import UserMixin
from flask_sqlalchemy import SQLAlchemy
from werkzeug.security import generate_password_hash

from flask_session_registry._records.base import new_id
from flask_session_registry._records.redis import RedisClient, RedisUserSession, scripts

Config = dict[str, t.Any]
#: One of the things being compared.
Subject = t.TypeVar("Subject")

#: The app's response to an anonymous visitor.
NOBODY = b"nobody"
PASSWORD = "benchmark"
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


class Section(t.NamedTuple):
    """A part of the results: ratios, and other observations."""

    title: str
    #: What is compared, and with what.
    unit: str
    ratios: Mapping[str, Ratio]
    notes: Sequence[str] = ()


class UnavailableError(Exception):
    """A part of the benchmark can't run here. The message is a sentence for the reader."""


# -- initial state -----------------------------------------------------------------------------


class _Kind:
    @classmethod
    def load(cls, session: t.Any, user_id: str) -> t.Any:
        """Do what the app's user loader does with what ``get_id()`` has returned."""
        return session.get(cls, int(user_id))


class _Plain(UserMixin, _Kind):
    """As Flask-Login's documentation has it."""


class _OwnInterface(_Kind):
    is_authenticated = is_active = True
    is_anonymous = False
    id: t.Any

    def get_id(self) -> str:
        return str(self.id)


class _AlternativeId(UserMixin, _Kind):
    """As Flask-Security has it."""

    fs_uniquifier: sa_orm.Mapped[str] = sa_orm.mapped_column(
        sa.String(64), unique=True, default=lambda: uuid.uuid4().hex
    )

    def get_id(self) -> str:
        return self.fs_uniquifier

    @classmethod
    def load(cls, session: t.Any, user_id: str) -> t.Any:
        return session.scalar(sa.select(cls).where(cls.fs_uniquifier == user_id))


#: The kinds of user: a title, and what the model inherits from.
KINDS: dict[str, tuple[str, type[t.Any]]] = {
    "plain": ("users with UserMixin", _Plain),
    "own-interface": ("users without UserMixin", _OwnInterface),
    "alternative-id": ("users with an alternative id", _AlternativeId),
}
PLAIN, OWN_INTERFACE, ALTERNATIVE_ID = KINDS


def define_user(db: SQLAlchemy, kind: str = PLAIN) -> type[t.Any]:
    """Return the user model for a ``db`` of its own, on tables that all variants share."""
    _, base = KINDS[kind]

    class User(base, db.Model):  # type: ignore[misc, name-defined, valid-type]
        __tablename__ = "users"
        id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
        email: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(255), unique=True)
        name: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(255))
        password_hash: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(255))

    return User


def name_of(user_id: int) -> bytes:
    """Return a user's name, which is part of no other's."""
    return f"Ada Lovelace {user_id:06}".encode()


def users(count: int, method: str = "scrypt") -> list[dict[str, t.Any]]:
    """Return the rows of users 1 to ``count``."""
    password_hash = generate_password_hash(PASSWORD, method)
    return [
        {
            "id": id,
            "email": f"user-{id}@example.org",
            "name": name_of(id).decode(),
            "password_hash": password_hash,
        }
        for id in range(1, count + 1)
    ]


def user_sessions(user_ids: Iterable[int]) -> list[dict[str, t.Any]]:
    """Return the row of one user session for each of these."""
    now = dt.datetime.now(dt.timezone.utc)
    return [
        {
            "id": new_id(),
            "generation": 0,
            "user_id": user_id,
            "ip_address": f"198.51.100.{user_id % 256}",
            "user_agent": USER_AGENT,
            "created_at": now,
            "last_seen_at": now,
            "authenticated_at": now,
            # All sessions of a user were opened with one password.
            "fingerprint": hashlib.sha256(str(user_id).encode()).hexdigest(),
        }
        for user_id in user_ids
    ]


def add_users(connection: sa.Connection, table: sa.Table, count: int) -> None:
    """Add users 1 to ``count`` inside the database, without sending rows from this process."""
    number = _numbers(connection, 1, count)
    text = sa.cast(number, sa.String(20))
    connection.execute(
        table.insert().from_select(
            ["id", "email", "name", "password_hash"],
            sa.select(number, text, text, sa.literal("a hash")),
        )
    )


def add_sessions(
    connection: sa.Connection,
    table: sa.Table,
    count: int,
    *,
    each: int,
    prefix: str = "",
    **values: t.Any,
) -> None:
    """Add this many user sessions inside the database, ``each`` of them per user.

    They are in the order of their logins, so that the rows of one user lie far apart.

    :param prefix: of their store keys.
    """
    number, digits = _numbers(connection, 0, count - 1), _random_digits(connection)
    some, more = sa.func.substr(digits, 1, 3), sa.func.substr(digits, 4, 15)
    # Ids as the registry makes them (RFC 9562, 5.4 and 5.7): random on MariaDB, elsewhere beginning
    # with the time. Each row is one millisecond later than the one before; the last is now.
    id = sa.func.concat(sa.func.substr(digits, 19, 12), "4", some, "a", more)
    if connection.dialect.name == "postgresql":
        moment = sa.func.to_hex((new_id().int >> 80) - count + number)
        id = sa.func.concat(sa.func.lpad(moment, 12, "0"), "7", some, "a", more)
    row = user_sessions([0])[0] | {
        "id": sa.cast(id, sa.Uuid) if connection.dialect.name == "postgresql" else id,
        "user_id": 1 + number % (count // each),
        "store_id": sa.func.concat(prefix, digits, digits),
        **values,
    }
    columns = [
        value if isinstance(value, sa.ClauseElement) else sa.literal(value)
        for value in row.values()
    ]
    connection.execute(table.insert().from_select(list(row), sa.select(*columns)))


def _numbers(connection: sa.Connection, first: int, last: int) -> sa.ColumnElement[int]:
    """Return the numbers from ``first`` to ``last``, each in a row of its own."""
    if connection.dialect.name == "postgresql":
        series = sa.func.generate_series(first, last).table_valued("number").render_derived()
        return series.c.number
    return sa.table(f"seq_{first}_to_{last}", sa.column("seq", sa.BigInteger)).c.seq


def _random_digits(connection: sa.Connection) -> sa.ColumnElement[str]:
    """Return 32 hexadecimal digits, different in each row and at each use."""
    chance = sa.func.random() if connection.dialect.name == "postgresql" else sa.func.rand()
    return sa.func.md5(sa.cast(chance, sa.CHAR(40)))


class _Later:
    """A stand-in for a Redis client that queues the records' commands and sends them together."""

    def __init__(self, client: t.Any) -> None:
        self._commands = client.pipeline(transaction=False)
        client.script_load(scripts.ADD.text)

    def evalsha(self, *arguments: t.Any) -> None:
        self._commands.evalsha(*arguments)

    def set(self, *arguments: t.Any, **keywords: t.Any) -> None:
        self._commands.set(*arguments, **keywords)

    def pipeline(self, **_: t.Any) -> _Later:
        return self

    def execute(self) -> None:
        """Queue what the records would send themselves."""

    def send(self) -> None:
        self._commands.execute()


def keep_in_redis(config: Config, rows: Iterable[Mapping[str, t.Any]]) -> None:
    """Store these rows' user sessions in Redis too, a thousand per round trip.

    Existing ones are reset.
    """
    client, prefix = config["SESSION_REGISTRY_REDIS"], config["SESSION_REGISTRY_REDIS_PREFIX"]
    due_at = dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=31)
    left = iter(rows)
    while part := list(itertools.islice(left, 1000)):
        later = _Later(client)
        home = RedisClient(later, prefix)
        for row in part:
            session = RedisUserSession(**row, due_at=due_at)
            session.id = home.assign_id(session.id, session.user_id)
            home.add(session)
        later.send()


# -- servers -----------------------------------------------------------------------------------


def _scratch() -> str:
    return f"session_registry_benchmark_{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def postgresql() -> Iterator[Config]:
    """Yield settings for Flask-Session's Redis store and a scratch schema on PostgreSQL.

    The registry may keep its records in the same Redis: see :func:`redis`.

    :raises UnavailableError: a server or its client is missing.
    """
    with _with_redis(_schema) as config:
        yield config


@contextlib.contextmanager
def mariadb() -> Iterator[Config]:
    """Yield settings for Flask-Session's Redis store and a scratch database on MariaDB.

    :raises UnavailableError: a server or its client is missing.
    """
    with _with_redis(_database) as config:
        yield config


@contextlib.contextmanager
def _with_redis(
    make: Callable[[str], contextlib.AbstractContextManager[Config]],
) -> Iterator[Config]:
    scratch = _scratch()
    with redis(scratch) as records, make(scratch) as database:
        yield {
            "SESSION_TYPE": "redis",
            "SESSION_REDIS": records["SESSION_REGISTRY_REDIS"],
            "SESSION_KEY_PREFIX": f"{scratch}:",
            **records,
            **database,
        }


@contextlib.contextmanager
def redis(scratch: str | None = None) -> Iterator[Config]:
    """Yield settings for records in Redis.

    :param scratch: the prefix of all temporary keys.
    :raises UnavailableError: the server or its client is missing.
    """
    scratch = scratch or _scratch()
    try:
        from redis import Redis, RedisError
    except ImportError:
        raise UnavailableError("The package 'redis' is not installed.") from None
    client = Redis.from_url(redis_url(), socket_connect_timeout=5)
    try:
        client.ping()
    except RedisError as error:
        raise UnavailableError(f"Redis can't be reached (REDIS_URL): {error}") from None
    try:
        yield {
            "SESSION_REGISTRY_REDIS": client,
            "SESSION_REGISTRY_REDIS_PREFIX": f"{scratch}:records:",
        }
    finally:
        pipeline = client.pipeline(transaction=False)
        for key in client.scan_iter(f"{scratch}:*", count=1000):
            pipeline.unlink(key)
        pipeline.execute()
        client.close()


def redis_url() -> str:
    """Return the URL of the Redis server."""
    return os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")


@contextlib.contextmanager
def _schema(name: str) -> Iterator[Config]:
    default = "postgresql://postgres@127.0.0.1:5432/test"
    url = sa.make_url(os.environ.get("DATABASE_URL", default))
    if url.get_backend_name() != "postgresql":
        raise UnavailableError(f"DATABASE_URL names '{url.get_backend_name()}', not PostgreSQL.")
    url = url.set(drivername="postgresql+psycopg")
    try:
        engine = sa.create_engine(
            url, poolclass=sa.pool.NullPool, connect_args={"connect_timeout": 5}
        )
        with engine.begin() as connection:
            connection.execute(sa.schema.CreateSchema(name))
    except ImportError:
        raise UnavailableError("The package 'psycopg' is not installed.") from None
    except sa.exc.DBAPIError as error:
        reason = str(error.orig).partition("\n")[0]
        raise UnavailableError(f"PostgreSQL can't be used (DATABASE_URL): {reason}") from None
    try:
        yield {
            "SQLALCHEMY_DATABASE_URI": url,
            "SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": {"options": f"-csearch_path={name}"}},
        }
    finally:
        with engine.begin() as connection:
            connection.execute(sa.schema.DropSchema(name, cascade=True))


@contextlib.contextmanager
def _database(name: str) -> Iterator[Config]:
    default = "mysql+pymysql://root@127.0.0.1:3306/"
    url = sa.make_url(os.environ.get("MARIADB_URL", default)).set(drivername="mysql+pymysql")
    try:
        engine = sa.create_engine(
            url, poolclass=sa.pool.NullPool, connect_args={"connect_timeout": 5}
        )
        with engine.begin() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
    except ImportError:
        raise UnavailableError("The package 'PyMySQL' is not installed.") from None
    except sa.exc.DBAPIError as error:
        raise UnavailableError(f"MariaDB can't be used (MARIADB_URL): {error.orig}") from None
    try:
        yield {"SQLALCHEMY_DATABASE_URI": url.set(database=name)}
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name}"))


# -- turns and ratios --------------------------------------------------------------------------


def measure(
    subjects: Sequence[Subject],
    rounds: int,
    run: Callable[[Subject], float],
    *,
    after: Callable[[Subject], object] = lambda _: None,
) -> list[list[float]]:
    """Return the nanoseconds that ``run`` returns, for each subject and each round.

    A round goes through the subjects forward and back (ABBA), so that a machine that slows down or
    speeds up favors none. Each round begins with another subject.

    :param after: called after each turn of a subject.
    """
    times: list[list[float]] = [[] for _ in subjects]
    # Freeze existing objects, so that a collection during a turn sees only the turn's own garbage.
    gc.collect()
    gc.freeze()
    try:
        for number in range(rounds):
            order = [(number + place) % len(subjects) for place in range(len(subjects))]
            spent = [0.0] * len(subjects)
            for index in (*order, *reversed(order)):
                gc.collect()
                spent[index] += run(subjects[index])
                after(subjects[index])
            for of_subject, nanoseconds in zip(times, spent, strict=True):
                of_subject.append(nanoseconds / 2)
    finally:
        gc.unfreeze()
    return times


@dataclasses.dataclass
class Ratio:
    """One subject's measurements as a multiple of another's."""

    of_medians: float
    #: The median of the ratios within each round.
    paired: float
    #: Its 95 % confidence interval.
    low: float
    high: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Compute ``above`` / ``below``, round by round."""
        ratios = [one / other for one, other in zip(above, below, strict=True)]
        chance = random.Random(0)
        medians = sorted(
            statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000)
        )
        return cls(
            of_medians=statistics.median(above) / statistics.median(below),
            paired=statistics.median(ratios),
            low=medians[49],
            high=medians[-50],
        )

    def __str__(self) -> str:
        interval = f"{self.low:.3f} to {self.high:.3f}"
        return f"{self.of_medians:10.3f}{self.paired:8.3f}   {interval}"


@contextlib.contextmanager
def listening(engine: sa.Engine, **receivers: Callable[..., None]) -> Iterator[None]:
    """Listen to an engine's events, by name, within the block."""
    for event, receiver in receivers.items():
        sa.event.listen(engine, event, receiver)
    try:
        yield
    finally:
        for event, receiver in receivers.items():
            sa.event.remove(engine, event, receiver)
