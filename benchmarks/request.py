"""Measure how much of an app's throughput is left with the registry.

The same app is built several times in one process: without the registry, with it, with its records
in Redis, and with the check that apps write by hand. All that for several kinds of user, each
compared with its own app without the registry. Requests go straight into the WSGI callable, each
from another user than the one before, and the view only reads ``current_user``, so that nothing
hides the cost of the check. In a real view it is a smaller part of the whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import io
import itertools
import sqlite3
import statistics
import tempfile
import time
import typing as t
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, request, session
from flask.sessions import SecureCookieSessionInterface
from flask_login import LoginManager, current_user, login_user, user_accessed
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from werkzeug.test import create_environ

from flask_session_registry import SessionRegistry

from .common import (
    ALTERNATIVE_ID,
    KINDS,
    NOBODY,
    PLAIN,
    USER_AGENT,
    Config,
    Ratio,
    UnavailableError,
    define_user,
    keep_in_redis,
    listening,
    measure,
    name_of,
    postgresql,
    redis,
    user_sessions,
    users,
)

_Function = t.TypeVar("_Function", bound=Callable[..., t.Any])
#: Yields the settings of an app, for a database of its own.
Setup = Callable[[], contextlib.AbstractContextManager[Config]]

WITHOUT, AGAIN, WITH, IN_REDIS, BY_HAND, BY_HAND_SEEN = VARIANTS = (
    "without",
    "without, again",
    "with",
    "with, in Redis",
    "by hand",
    "by hand, last seen",
)
#: The variants with the registry.
REGISTERED = (WITH, IN_REDIS)
#: The variants with a hand-written check; the second one also records when it was last seen.
HAND_WRITTEN = (BY_HAND, BY_HAND_SEEN)
#: The variants for a second kind of user: a row that is written is the same work for all kinds.
FEWER = tuple(name for name in VARIANTS if name != BY_HAND_SEEN)
#: How many more SQL statements and Redis commands a variant may need per request than ``WITHOUT``.
MORE = {
    WITHOUT: (0, 0),
    AGAIN: (0, 0),
    WITH: (0, 0),
    IN_REDIS: (0, 1),
    BY_HAND: (1, 0),
    BY_HAND_SEEN: (2, 0),
}
#: Where users have an alternative id, by which the user loader selects them: the registry, which
#: goes by the row of the session, can't load them for it.
MORE_BY_ALTERNATIVE_ID = MORE | {WITH: (1, 0), IN_REDIS: (1, 1)}
#: Requests before the measurement, to fill statement caches and open connections.
WARM_UP = 200
#: Number of users, each with a session: a database plans a query on a table of one row faster than
#: on one with statistics.
USERS = 2000
#: The users who are signed in, and make one request after another.
USER_IDS = range(1, USERS + 1, 10)


# -- the app -----------------------------------------------------------------------------------


class Browser(t.NamedTuple):
    """A browser in which a user is signed in."""

    user_name: bytes
    environ: dict[str, t.Any]


@dataclasses.dataclass
class Variant:
    """One of the apps, with its signed-in browsers."""

    name: str
    #: A key of :data:`KINDS`.
    kind: str
    app: Flask
    db: SQLAlchemy
    login_manager: LoginManager
    browsers: Sequence[Browser]
    #: The Redis client; ``None`` without Redis.
    client: t.Any

    def __post_init__(self) -> None:
        self._in_turn = itertools.cycle(self.browsers)

    def __str__(self) -> str:
        return f"'{self.name}' ({KINDS[self.kind][0]})"

    def answer(self, browser: Browser) -> bytes:
        """Make one request and return the body of the response."""
        body = self.app(browser.environ.copy(), _start_response)
        try:
            return b"".join(body)
        finally:
            body.close()  # type: ignore[attr-defined]

    def run(self, requests: int) -> float:
        """Make many requests, each by the next browser, and return the nanoseconds for each.

        :raises AssertionError: a response does not show the signed-in user.
        """
        answer = self.answer
        begin = time.perf_counter_ns()
        for browser in itertools.islice(self._in_turn, requests):
            if answer(browser) != browser.user_name:
                raise AssertionError(f"{self} does not show the signed-in user.")
        return (time.perf_counter_ns() - begin) / requests

    def count(self) -> tuple[int, int]:
        """Return how many SQL statements and Redis commands one request needs."""
        statements: list[str] = []
        commands: list[str] = []

        def note(*arguments: t.Any) -> None:
            statements.append(arguments[2])

        with self.app.app_context():
            engine = self.db.engine
        with listening(engine, before_cursor_execute=note), _noting(self.client, commands):
            self.run(1)
        return len(statements), len(commands)

    def close(self) -> None:
        with self.app.app_context():
            self.db.engine.dispose()


def _start_response(*_: object) -> t.Any:
    return None


@contextlib.contextmanager
def _noting(client: t.Any, commands: list[str]) -> Iterator[None]:
    """Record the commands that a client sends within the block."""
    if client is None:
        yield
        return
    send = client.execute_command

    def noted(*arguments: t.Any, **keywords: t.Any) -> t.Any:
        commands.append(arguments[0])
        return send(*arguments, **keywords)

    client.execute_command = noted
    try:
        yield
    finally:
        del client.execute_command


def build(name: str, config: Config, kind: str = PLAIN) -> Variant:
    """Build an app with its own models, on tables that all variants of this kind share."""
    app = Flask(__name__)
    # The registry prolongs a session once in a while, and not on each request. What an app without
    # it spends on that would hide a part of the check.
    app.config.update(SECRET_KEY="benchmark", SESSION_REFRESH_EACH_REQUEST=False, **config)
    if name == IN_REDIS:
        app.config["SESSION_REGISTRY_RECORDS"] = "redis"
    db = SQLAlchemy()
    User = define_user(db, kind)  # noqa: N806

    class SignIn(db.Model):  # type: ignore[misc, name-defined]
        """The hand-written checks' row for a signed-in browser."""

        __tablename__ = "sign_ins"
        id: sa_orm.Mapped[uuid.UUID] = sa_orm.mapped_column(primary_key=True)
        user_id: sa_orm.Mapped[int] = sa_orm.mapped_column(sa.ForeignKey(User.id), index=True)
        is_revoked: sa_orm.Mapped[bool]
        last_seen_at: sa_orm.Mapped[dt.datetime]

    db.init_app(app)
    login_manager = LoginManager(app)
    if config.get("SESSION_TYPE"):
        Session(app)
    else:
        # Flask's default is shared by all apps, and a stopwatch on it would be too.
        app.session_interface = SecureCookieSessionInterface()
    registry = SessionRegistry(app) if name in REGISTERED else None

    @login_manager.user_loader  # type: ignore[untyped-decorator]
    def load_user(user_id: str) -> t.Any:
        return User.load(db.session, user_id)

    if name in HAND_WRITTEN:

        @app.before_request
        def check_sign_in() -> None:
            if "_user_id" in session:
                sign_in = db.session.get(SignIn, uuid.UUID(session["sign_in"]))
                if sign_in is None or sign_in.is_revoked:
                    session.clear()
                elif name == BY_HAND_SEEN:
                    sign_in.last_seen_at = _now()
                    db.session.commit()

    @app.get("/")
    def show() -> bytes:
        return current_user.name.encode() if current_user.is_authenticated else NOBODY

    @app.post("/login")
    def login() -> str:
        user = db.session.get(User, int(request.form["id"]))
        login_user(user)
        if name in HAND_WRITTEN:
            sign_in = SignIn(
                id=uuid.uuid4(), user_id=user.id, is_revoked=False, last_seen_at=_now()
            )
            db.session.add(sign_in)
            db.session.commit()
            session["sign_in"] = sign_in.id.hex
        return ""

    @app.post("/revoke")
    def revoke() -> str:
        user = db.session.get(User, int(request.form["id"]))
        if registry is not None:
            registry.revoke_all(user)
        db.session.execute(
            sa.update(SignIn).where(SignIn.user_id == user.id).values(is_revoked=True)
        )
        db.session.commit()
        return ""

    with app.app_context():
        db.create_all()
        if db.session.get(User, USERS) is None:
            db.session.execute(sa.insert(User), users(USERS))
        if registry is not None and name == WITH:
            db.session.execute(sa.insert(registry.UserSession), user_sessions(range(1, USERS + 1)))
        if name == IN_REDIS:
            keep_in_redis(config, user_sessions(range(1, USERS + 1)))
        if name in HAND_WRITTEN:
            db.session.execute(sa.insert(SignIn), _sign_ins())
        for table in db.metadata.tables:
            db.session.execute(sa.text(f"ANALYZE {table}"))
        db.session.commit()
    client = config.get("SESSION_REGISTRY_REDIS")
    browsers = [_sign_in(app, user_id) for user_id in USER_IDS]
    return Variant(name, kind, app, db, login_manager, browsers, client)


def _sign_ins() -> list[dict[str, t.Any]]:
    values = {"is_revoked": False, "last_seen_at": _now()}
    return [values | {"id": uuid.uuid4(), "user_id": id} for id in range(1, USERS + 1)]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc).replace(tzinfo=None)


def _sign_in(app: Flask, user_id: int) -> Browser:
    # The same as in all requests: Flask-Login compares address and user agent.
    headers = {"User-Agent": USER_AGENT}
    overrides = {"REMOTE_ADDR": "192.0.2.1"}
    client = app.test_client()
    client.post("/login", data={"id": user_id}, headers=headers, environ_overrides=overrides)
    cookie = client.get_cookie("session")
    if cookie is None:
        raise AssertionError("The login set no cookie.")
    environ = create_environ(
        "/",
        headers={**headers, "Cookie": f"session={cookie.value}"},
        environ_overrides=overrides,
        input_stream=io.BytesIO(),
    )
    return Browser(name_of(user_id), environ)


# -- session stores and tables -----------------------------------------------------------------


@contextlib.contextmanager
def sqlite() -> Iterator[Config]:
    """Yield settings for signed cookies and a SQLite file in WAL mode."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="session-registry-benchmark-")
        )
        file = Path(folder, "benchmark.sqlite")
        connection = sqlite3.connect(file)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
        records: Config = {}
        try:
            records = stack.enter_context(redis())
        except UnavailableError as error:
            _say_once(f"Without '{IN_REDIS}'. {error}\n")
        yield {"SQLALCHEMY_DATABASE_URI": f"sqlite:///{file}", **records}


_say_once = functools.cache(click.echo)

SETUPS: dict[str, tuple[str, Setup]] = {
    "sqlite": ("Signed cookies, SQLite (file, WAL)", sqlite),
    "postgresql": ("Redis session store, PostgreSQL (psycopg 3)", postgresql),
}


@contextlib.contextmanager
def variants(config: Config, names: Sequence[str], kind: str = PLAIN) -> Iterator[list[Variant]]:
    """Yield the apps, signed in and warmed up."""
    if "SESSION_REGISTRY_REDIS" not in config:
        names = [name for name in names if name != IN_REDIS]
    with contextlib.ExitStack() as stack:
        built = []
        for name in names:
            variant = build(name, config, kind)
            stack.callback(variant.close)
            built.append(variant)
        for variant in built:
            variant.run(WARM_UP)
        yield built


# -- throughput --------------------------------------------------------------------------------


def check_counts(apps: Sequence[Variant]) -> dict[str, tuple[int, int]]:
    """Check how many SQL statements and Redis commands each app of a kind needs per request.

    :raises AssertionError: more or fewer than expected.
    """
    counts = {variant.name: variant.count() for variant in apps}
    for variant in apps:
        statements, commands = counts[variant.name]
        more = statements - counts[WITHOUT][0], commands - counts[WITHOUT][1]
        expected = MORE_BY_ALTERNATIVE_ID if variant.kind == ALTERNATIVE_ID else MORE
        if more != expected[variant.name]:
            raise AssertionError(
                f"{variant} runs {statements} statements and {commands} Redis commands, not the"
                " expected number."
            )
    return counts


def check_revocation(apps: Sequence[Variant]) -> None:
    """Check that a real check was measured, by revoking the session of one of the browsers.

    :raises AssertionError: an app still shows the user after the revocation, or an app without a
        check doesn't, or another user isn't shown any more.
    """
    for variant in apps:
        variant.app.test_client().post("/revoke", data={"id": USER_IDS[0]})
        checks = variant.name in (*REGISTERED, *HAND_WRITTEN)
        names = [browser.user_name for browser in variant.browsers]
        if checks:
            names[0] = NOBODY
        if [variant.answer(browser) for browser in variant.browsers] != names:
            raise AssertionError(f"{variant} did not react to the revocation as it should.")


def report_throughput(
    setup: Setup, rounds: int, requests: int, kinds: Sequence[str] = tuple(KINDS)
) -> dict[str, dict[str, Ratio]]:
    """Measure and print each variant's throughput, as a fraction of that without the registry.

    :param kinds: of users, the first one with all variants.
    :returns: the ratios by kind and variant.
    """
    turn = max(1, requests // 2)
    found: dict[str, dict[str, Ratio]] = {}
    with contextlib.ExitStack() as stack:
        apps: list[Variant] = []
        counts: dict[str, dict[str, tuple[int, int]]] = {}
        for kind in kinds:
            names = VARIANTS if kind == kinds[0] else FEWER
            of_kind = stack.enter_context(variants(stack.enter_context(setup()), names, kind))
            counts[kind] = check_counts(of_kind)
            apps += of_kind
        times = measure(apps, rounds, lambda app: app.run(turn))
        check_revocation(apps)
    for kind in kinds:
        times_of_kind = {
            variant.name: of_variant
            for variant, of_variant in zip(apps, times, strict=True)
            if variant.kind == kind
        }
        found[kind] = _report_kind(kind, counts[kind], times_of_kind)
    click.echo(as_worst("throughput", found, min))
    return found


def _report_kind(
    kind: str, counts: Mapping[str, tuple[int, int]], times: Mapping[str, Sequence[float]]
) -> dict[str, Ratio]:
    head = f"{KINDS[kind][0]:30}{'SQL':>5}{'Redis':>7}{'µs':>8}"
    click.echo(f"{head}{'medians':>10}{'paired':>8}{'95 %':>10}")
    ratios: dict[str, Ratio] = {}
    medians: dict[str, float] = {}
    for name, of_variant in times.items():
        medians[name] = microseconds = statistics.median(of_variant) / 1000
        statements, commands = counts[name]
        line = f"{name:30}{statements:5}{commands:7}{microseconds:8.1f}"
        if name != WITHOUT:
            # Throughput is the inverse of time.
            ratios[name] = Ratio.of(times[WITHOUT], of_variant)
            line += str(ratios[name])
        click.echo(line)
    added = {name: median - medians[WITHOUT] for name, median in medians.items()}
    for name in HAND_WRITTEN:
        if name in added:
            click.echo(
                f"What '{name}' adds is {added[name] / added[WITH]:.1f} times what '{WITH}' adds."
            )
    click.echo()
    return ratios


def as_worst(unit: str, found: Mapping[str, Mapping[str, Ratio]], worst: Callable[..., str]) -> str:
    """Say for which kind of user the registry costs most, and how much.

    :param worst: ``min`` or ``max``.
    """
    kind = worst(found, key=lambda kind: found[kind][WITH].paired)
    ratio = found[kind][WITH]
    return (
        f"The worst of '{WITH}' is that of {KINDS[kind][0]}: {unit} {ratio.paired:.3f}"
        f" ({ratio.low:.3f} to {ratio.high:.3f}), without the registry = 1."
    )


# -- where the time goes -----------------------------------------------------------------------

#: The timed pieces, and the piece that each one runs within.
PIECES: dict[str, str | None] = {
    "open_session": None,
    "before_request": None,
    "user_loader": None,
    "gate.check": None,
    "records.load": "gate.check",
    "home.load": "records.load",
    "after_request": None,
    "save_session": None,
    "teardown": None,
}


class Stopwatch:
    """Add up the time of an app's pieces. It costs some time itself, equally in every piece."""

    def __init__(self, variant: Variant) -> None:
        self.spent: Counter[str] = Counter()
        #: Nanoseconds per request in each turn, by piece.
        self.turns: dict[str, list[float]] = {piece: [] for piece in PIECES}
        app, interface = variant.app, variant.app.session_interface
        for name in ("open_session", "save_session"):
            vars(interface)[name] = self._timed(name, getattr(interface, name))
        for functions in (app.url_value_preprocessors, app.before_request_funcs):
            self._time_all("before_request", functions.get(None, []))
        self._time_all("after_request", app.after_request_funcs.get(None, []))
        self._time_all("teardown", app.teardown_appcontext_funcs)
        manager = variant.login_manager
        manager.user_loader(self._timed("user_loader", manager._user_callback))
        if variant.name in REGISTERED:
            (check,) = user_accessed.receivers_for(app)
            user_accessed.disconnect(check, app)
            user_accessed.connect(self._timed("gate.check", check), app, weak=False)
            registry = app.extensions["session_registry.app"]
            records, home = registry.records, registry.redis
            vars(records)["load"] = self._timed("records.load", records.load)
            if home is not None:
                vars(home)["load"] = self._timed("home.load", home.load)

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


def report_pieces(setup: Setup, rounds: int, requests: int, kind: str = PLAIN) -> None:
    """Time the pieces of a request, separately from the throughput, which this reduces."""
    turn = max(1, requests // 2)
    timed = (WITHOUT, *REGISTERED, BY_HAND)
    with setup() as config, variants(config, timed, kind) as apps:
        watches = {variant.name: Stopwatch(variant) for variant in apps}
        times = measure(
            apps,
            rounds,
            lambda app: app.run(turn),
            after=lambda app: watches[app.name].end_turn(turn),
        )
    names = list(watches)
    click.echo(f"{'where it goes, µs':24}" + "".join(f"{name:>16}" for name in names))
    medians = {
        name: {piece: statistics.median(turns) / 1000 for piece, turns in watch.turns.items()}
        for name, watch in watches.items()
    }
    for piece, outer in PIECES.items():
        indent = ""
        while outer is not None:
            indent, outer = indent + "    ", PIECES[outer]
        _echo_line(indent + piece, [medians[name][piece] for name in names])
    whole = [statistics.median(of_app) / 1000 for of_app in times]
    rest = [
        of_app - sum(medians[name][piece] for piece, outer in PIECES.items() if outer is None)
        for name, of_app in zip(names, whole, strict=True)
    ]
    _echo_line("everything else", rest)
    _echo_line("the whole request", whole)


def _echo_line(title: str, values: Sequence[float]) -> None:
    line = "".join(f"{value:16.1f}" if value else " " * 16 for value in values)
    click.echo(f"{title:24}{line}".rstrip())


# -- the command -------------------------------------------------------------------------------


@click.command(help=__doc__)
@click.option("--rounds", default=200, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--requests",
    default=60,
    show_default=True,
    type=click.IntRange(min=2),
    help="Requests of each app in each round.",
)
@click.option("--only", type=click.Choice(list(SETUPS)), help="Run only this one.")
@click.option("--user", type=click.Choice(list(KINDS)), help="Only this kind of user.")
def main(rounds: int, requests: int, only: str | None, user: str | None) -> None:
    kinds = tuple(KINDS) if user is None else (user,)
    for key, (title, setup) in SETUPS.items():
        if only not in (None, key):
            continue
        click.echo(f"\n{title}: {rounds} rounds of {requests} requests\n")
        try:
            report_throughput(setup, rounds, requests, kinds)
            click.echo()
            report_pieces(setup, max(1, rounds // 3), requests, kinds[0])
        except UnavailableError as error:
            click.echo(f"Left out. {error}")


if __name__ == "__main__":
    main()
