"""How much of an app's throughput is left with the registry?

The same app is built several times in one process: without the registry, with it, and with the
check that apps write by hand. Requests go straight into the WSGI callable, and the view does
nothing but read ``current_user``, so that nothing hides what the check costs: in a real view it is
a smaller part of the whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import gc
import io
import os
import random
import sqlite3
import statistics
import tempfile
import time
import typing as t
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, session
from flask.sessions import SecureCookieSessionInterface
from flask_login import LoginManager, UserMixin, current_user, login_user, user_accessed
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from werkzeug.security import generate_password_hash
from werkzeug.test import create_environ

from flask_session_registry import SessionRegistry, gate

Config = dict[str, t.Any]
_Function = t.TypeVar("_Function", bound=Callable[..., t.Any])

NAME = b"Ada Lovelace"
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
NOBODY = b"nobody"
WITHOUT, AGAIN, WITH, BY_HAND = VARIANTS = ("without", "without, again", "with", "by hand")
#: How many statements a variant may run in a request, compared with ``WITHOUT``.
MORE_STATEMENTS = {WITHOUT: 0, AGAIN: 0, WITH: 0, BY_HAND: 1}
#: Requests before anything is measured: caches of statements, connections.
WARM_UP = 200
#: How many users there are, all with a session: a database plans a query on a table of one row
#: faster than on one that it has statistics of.
USERS = 2000
#: Which of them is signed in.
USER_ID = 1000


class UnavailableError(Exception):
    """A part of the benchmark can't run here. The message is a sentence for the reader."""


# -- the app -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Variant:
    """One of the apps, with a browser that is signed in."""

    name: str
    app: Flask
    db: SQLAlchemy
    login_manager: LoginManager
    environ: dict[str, t.Any]

    def answer(self) -> bytes:
        """One request; the body of the answer."""
        body = self.app(self.environ.copy(), _start_response)
        try:
            return b"".join(body)
        finally:
            body.close()  # type: ignore[attr-defined]

    def run(self, requests: int) -> float:
        """Many requests; nanoseconds for each.

        :raises AssertionError: an answer does not show the signed-in user.
        """
        answer = self.answer
        begin = time.perf_counter_ns()
        for _ in range(requests):
            if answer() != NAME:
                raise AssertionError(f"'{self.name}' does not show the signed-in user.")
        return (time.perf_counter_ns() - begin) / requests

    def count_statements(self) -> int:
        """How many SQL statements one request runs."""
        statements: list[str] = []

        def count(*arguments: t.Any) -> None:
            statements.append(arguments[2])

        with self.app.app_context():
            engine = self.db.engine
        sa.event.listen(engine, "before_cursor_execute", count)
        try:
            self.run(1)
        finally:
            sa.event.remove(engine, "before_cursor_execute", count)
        return len(statements)

    def close(self) -> None:
        with self.app.app_context():
            self.db.engine.dispose()


def _start_response(*_: object) -> t.Any:
    return None


def build(name: str, config: Config) -> Variant:
    """An app with models of its own, on tables that all variants share."""
    app = Flask(__name__)
    app.config.update(SECRET_KEY="benchmark", **config)
    db = SQLAlchemy()

    class User(UserMixin, db.Model):  # type: ignore[misc, name-defined]
        __tablename__ = "users"
        id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
        email: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(255), unique=True)
        name: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(255))
        password_hash: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(255))

    class SignIn(db.Model):  # type: ignore[misc, name-defined]
        """What ``by hand`` keeps of a signed-in browser."""

        __tablename__ = "sign_ins"
        id: sa_orm.Mapped[uuid.UUID] = sa_orm.mapped_column(primary_key=True)
        user_id: sa_orm.Mapped[int] = sa_orm.mapped_column(sa.ForeignKey(User.id), index=True)
        is_revoked: sa_orm.Mapped[bool]

    db.init_app(app)
    login_manager = LoginManager(app)
    if config.get("SESSION_TYPE"):
        Session(app)
    else:
        # Flask's own is shared by all apps, and so would be a stopwatch on it.
        app.session_interface = SecureCookieSessionInterface()
    registry = SessionRegistry(app) if name == WITH else None

    @login_manager.user_loader  # type: ignore[untyped-decorator]
    def load_user(user_id: str) -> User | None:
        return db.session.get(User, int(user_id))

    if name == BY_HAND:

        @app.before_request
        def check_sign_in() -> None:
            if "_user_id" in session:
                sign_in = db.session.get(SignIn, uuid.UUID(session["sign_in"]))
                if sign_in is None or sign_in.is_revoked:
                    session.clear()

    @app.get("/")
    def show() -> bytes:
        return current_user.name.encode() if current_user.is_authenticated else NOBODY

    @app.post("/login")
    def login() -> str:
        login_user(db.session.get(User, USER_ID))
        if name == BY_HAND:
            sign_in = SignIn(id=uuid.uuid4(), user_id=USER_ID, is_revoked=False)
            db.session.add(sign_in)
            db.session.commit()
            session["sign_in"] = sign_in.id.hex
        return ""

    @app.post("/revoke")
    def revoke() -> str:
        if registry is not None:
            registry.revoke_all(db.session.get(User, USER_ID))
        db.session.execute(
            sa.update(SignIn).where(SignIn.user_id == USER_ID).values(is_revoked=True)
        )
        db.session.commit()
        return ""

    with app.app_context():
        db.create_all()
        if db.session.get(User, USER_ID) is None:
            db.session.execute(sa.insert(User), _users())
        if registry is not None:
            db.session.execute(sa.insert(registry.UserSession), _user_sessions())
        if name == BY_HAND:
            db.session.execute(sa.insert(SignIn), _sign_ins())
        for table in db.metadata.tables:
            db.session.execute(sa.text(f"ANALYZE {table}"))
        db.session.commit()
    return Variant(name, app, db, login_manager, _sign_in(app))


def _users() -> list[dict[str, t.Any]]:
    password_hash = generate_password_hash("benchmark")
    return [
        {
            "id": id,
            "email": f"user-{id}@example.org",
            "name": NAME.decode(),
            "password_hash": password_hash,
        }
        for id in range(1, USERS + 1)
    ]


def _user_sessions() -> list[dict[str, t.Any]]:
    now = dt.datetime.now(dt.timezone.utc)
    return [
        {
            "id": uuid.uuid4(),
            "generation": 0,
            "user_id": id,
            "ip_address": f"198.51.100.{id % 256}",
            "user_agent": USER_AGENT,
            "created_at": now,
            "last_seen_at": now,
            "authenticated_at": now,
            "fingerprint": uuid.uuid4().hex * 2,
        }
        for id in range(1, USERS + 1)
    ]


def _sign_ins() -> list[dict[str, t.Any]]:
    return [{"id": uuid.uuid4(), "user_id": id, "is_revoked": False} for id in range(1, USERS + 1)]


def _sign_in(app: Flask) -> dict[str, t.Any]:
    """Sign in; the environ of the requests that follow."""
    # The same browser in all of them: Flask-Login compares address and user agent.
    headers = {"User-Agent": USER_AGENT}
    overrides = {"REMOTE_ADDR": "192.0.2.1"}
    client = app.test_client()
    client.post("/login", headers=headers, environ_overrides=overrides)
    cookie = client.get_cookie("session")
    if cookie is None:
        raise AssertionError("The login has given no cookie.")
    return create_environ(
        "/",
        headers={**headers, "Cookie": f"session={cookie.value}"},
        environ_overrides=overrides,
        input_stream=io.BytesIO(),
    )


# -- where its sessions and its tables are -----------------------------------------------------


@contextlib.contextmanager
def sqlite() -> Iterator[Config]:
    """Signed cookies, and a SQLite file in WAL mode."""
    with tempfile.TemporaryDirectory(prefix="session-registry-benchmark-") as folder:
        file = Path(folder, "benchmark.sqlite")
        connection = sqlite3.connect(file)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
        yield {"SQLALCHEMY_DATABASE_URI": f"sqlite:///{file}"}


@contextlib.contextmanager
def postgresql() -> Iterator[Config]:
    """Flask-Session's Redis store, and a schema of our own on PostgreSQL.

    :raises UnavailableError: a server or its client is missing.
    """
    scratch = f"session_registry_benchmark_{uuid.uuid4().hex[:12]}"
    with _redis(f"{scratch}:") as store, _schema(scratch) as database:
        yield {**store, **database}


@contextlib.contextmanager
def _redis(prefix: str) -> Iterator[Config]:
    try:
        from redis import Redis, RedisError
    except ImportError:
        raise UnavailableError("The package 'redis' is not installed.") from None
    client = Redis.from_url(
        os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), socket_connect_timeout=5
    )
    try:
        client.ping()
    except RedisError as error:
        raise UnavailableError(f"Redis can't be reached (REDIS_URL): {error}") from None
    try:
        yield {"SESSION_TYPE": "redis", "SESSION_REDIS": client, "SESSION_KEY_PREFIX": prefix}
    finally:
        for key in client.scan_iter(f"{prefix}*"):
            client.delete(key)
        client.close()


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


SETUPS = {
    "sqlite": ("Signed cookies, SQLite (file, WAL)", sqlite),
    "postgresql": ("Redis session store, PostgreSQL (psycopg 3)", postgresql),
}


@contextlib.contextmanager
def variants(config: Config, names: Sequence[str]) -> Iterator[list[Variant]]:
    """The apps, signed in and warm."""
    with contextlib.ExitStack() as stack:
        built = []
        for name in names:
            variant = build(name, config)
            stack.callback(variant.close)
            built.append(variant)
        for variant in built:
            variant.run(WARM_UP)
        yield built


# -- throughput --------------------------------------------------------------------------------


def measure(
    apps: Sequence[Variant], rounds: int, requests: int, after: Callable[[Variant], object]
) -> list[list[float]]:
    """Nanoseconds per request, for each app and each round.

    A round goes through the apps there and back (ABBA), so that a machine that gets slower, or
    faster, favours none. Each round begins with another app.

    :param after: called after each turn of an app.
    """
    turn = max(1, requests // 2)
    times: list[list[float]] = [[] for _ in apps]
    # What was built so far stays; a collection in a turn looks only at what requests leave behind.
    gc.collect()
    gc.freeze()
    try:
        for number in range(rounds):
            order = [(number + place) % len(apps) for place in range(len(apps))]
            spent = [0.0] * len(apps)
            for index in (*order, *reversed(order)):
                gc.collect()
                spent[index] += apps[index].run(turn)
                after(apps[index])
            for of_app, nanoseconds in zip(times, spent, strict=True):
                of_app.append(nanoseconds / 2)
    finally:
        gc.unfreeze()
    return times


@dataclasses.dataclass
class Ratio:
    """The throughput of an app as a part of that of another."""

    of_medians: float
    #: The median over the rounds, of the ratio within each.
    paired: float
    #: The interval in which that lies, with 95 %.
    low: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float], base: Sequence[float]) -> Ratio:
        """Throughput is the inverse of the time, so the base comes first."""
        ratios = [one / other for one, other in zip(base, times, strict=True)]
        chance = random.Random(0)
        medians = sorted(
            statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000)
        )
        return cls(
            of_medians=statistics.median(base) / statistics.median(times),
            paired=statistics.median(ratios),
            low=medians[49],
            high=medians[-50],
        )


def check_statements(apps: Sequence[Variant]) -> dict[str, int]:
    """How many statements each app runs in a request.

    :raises AssertionError: more, or fewer, than it should.
    """
    counts = {variant.name: variant.count_statements() for variant in apps}
    for name, count in counts.items():
        if count != counts[WITHOUT] + MORE_STATEMENTS[name]:
            raise AssertionError(f"'{name}' runs {count} statements, not as many as it should.")
    return counts


def check_revocation(apps: Sequence[Variant]) -> None:
    """See that what was measured is a check.

    :raises AssertionError: an app still shows the user after a revocation, or one that checks
        nothing does not.
    """
    for variant in apps:
        variant.app.test_client().post("/revoke")
        checks = variant.name in (WITH, BY_HAND)
        if variant.answer() != (NOBODY if checks else NAME):
            raise AssertionError(f"'{variant.name}' has not heard of the revocation, or too much.")


def report_throughput(config: Config, rounds: int, requests: int) -> None:
    with variants(config, VARIANTS) as apps:
        counts = check_statements(apps)
        times = measure(apps, rounds, requests, after=lambda _: None)
        check_revocation(apps)
    click.echo(f"{'throughput':16}{'SQL':>5}{'µs':>8}{'medians':>10}{'paired':>8}{'95 %':>10}")
    for variant, of_variant in zip(apps, times, strict=True):
        microseconds = statistics.median(of_variant) / 1000
        line = f"{variant.name:16}{counts[variant.name]:5}{microseconds:8.1f}"
        if variant.name != WITHOUT:
            ratio = Ratio.of(of_variant, times[0])
            line += f"{ratio.of_medians:10.3f}{ratio.paired:8.3f}"
            line += f"   {ratio.low:.3f} to {ratio.high:.3f}"
        click.echo(line)


# -- where the time goes -----------------------------------------------------------------------

#: The pieces that are timed, and within which other one they run.
PIECES: dict[str, str | None] = {
    "open_session": None,
    "before_request": None,
    "user_loader": None,
    "gate.check": None,
    "records.load": "gate.check",
    "after_request": None,
    "save_session": None,
    "teardown": None,
}


class Stopwatch:
    """Adds up what the pieces of one app take. It costs some time itself, in every piece alike."""

    def __init__(self, variant: Variant) -> None:
        self.spent: Counter[str] = Counter()
        #: Nanoseconds per request of each turn, by piece.
        self.turns: dict[str, list[float]] = {piece: [] for piece in PIECES}
        app, interface = variant.app, variant.app.session_interface
        for name in ("open_session", "save_session"):
            vars(interface)[name] = self._timed(name, getattr(interface, name))
        self._time_all("before_request", app.before_request_funcs.get(None, []))
        self._time_all("after_request", app.after_request_funcs.get(None, []))
        self._time_all("teardown", app.teardown_appcontext_funcs)
        manager = variant.login_manager
        manager.user_loader(self._timed("user_loader", manager._user_callback))
        if variant.name == WITH:
            user_accessed.disconnect(gate.check, app)
            # Signals hold their receivers weakly.
            self._check = self._timed("gate.check", gate.check)
            user_accessed.connect(self._check, app)
            records = app.extensions["session_registry.installation"].records
            vars(records)["load"] = self._timed("records.load", records.load)

    def _timed(self, piece: str, function: _Function) -> _Function:
        @functools.wraps(function)
        def timed(*arguments: t.Any, **keywords: t.Any) -> t.Any:
            begin = time.perf_counter_ns()
            try:
                return function(*arguments, **keywords)
            finally:
                self.spent[piece] += time.perf_counter_ns() - begin

        return t.cast(_Function, timed)

    def _time_all(self, piece: str, functions: list[t.Any]) -> None:
        functions[:] = [self._timed(piece, function) for function in functions]

    def end_turn(self, requests: int) -> None:
        for piece, of_piece in self.turns.items():
            of_piece.append(self.spent[piece] / requests)
        self.spent.clear()


def report_pieces(config: Config, rounds: int, requests: int) -> None:
    """Time the pieces of a request, apart from the throughput, which this makes worse."""
    names = (WITHOUT, WITH, BY_HAND)
    turn = max(1, requests // 2)
    with variants(config, names) as apps:
        watches = {variant.name: Stopwatch(variant) for variant in apps}
        times = measure(apps, rounds, turn * 2, lambda app: watches[app.name].end_turn(turn))
    click.echo(f"{'where it goes, µs':24}" + "".join(f"{name:>10}" for name in names))
    medians = {
        name: {piece: statistics.median(turns) / 1000 for piece, turns in watch.turns.items()}
        for name, watch in watches.items()
    }
    for piece, outer in PIECES.items():
        indent = "    " if outer else ""
        _echo_line(indent + piece, [medians[name][piece] for name in names])
    whole = [statistics.median(of_app) / 1000 for of_app in times]
    rest = [
        of_app - sum(medians[name][piece] for piece, outer in PIECES.items() if outer is None)
        for name, of_app in zip(names, whole, strict=True)
    ]
    _echo_line("everything else", rest)
    _echo_line("the whole request", whole)


def _echo_line(title: str, values: Sequence[float]) -> None:
    click.echo(f"{title:24}" + "".join(f"{value:10.1f}" if value else " " * 10 for value in values))


# -- the command -------------------------------------------------------------------------------


@click.command(help=__doc__)
@click.option("--rounds", default=200, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--requests",
    default=60,
    show_default=True,
    type=click.IntRange(min=2),
    help="Of each app in each round.",
)
@click.option("--only", type=click.Choice(list(SETUPS)), help="Leave the other one out.")
def main(rounds: int, requests: int, only: str | None) -> None:
    for key, (title, setup) in SETUPS.items():
        if only not in (None, key):
            continue
        click.echo(f"\n{title}: {rounds} rounds of {requests} requests\n")
        try:
            with setup() as config:
                report_throughput(config, rounds, requests)
                click.echo()
                report_pieces(config, max(1, rounds // 3), requests)
        except UnavailableError as error:
            click.echo(f"Left out. {error}")


if __name__ == "__main__":
    main()
