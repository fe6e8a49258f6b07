"""Check every response under the load of many clients, and measure what the registry adds.

The same app runs under gunicorn twice, without the registry and with it, each with two workers of
eight threads, on the Redis session store and PostgreSQL. In alternating slices, 64 clients of 24
users load one of them as fast as it responds. Most ask who they are; some sign in, sign out, change
the password, revoke the others, or revoke one.

An oracle knows when each of these requests was sent and answered, and judges each response of the
app with the registry. A session that had certainly ended before a request was sent must be signed
out. A session that nothing can have ended must be signed in. Overlapping cases stay undecided.
There must be no 5xx, and nothing in the log. Otherwise the exit code is 1.

Verified to fail within 20 seconds: without the check (``--unchecked``); without comparing the
fingerprint, by logins with a password that is being changed; with a check that each worker caches
for 0.2 seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import random
import signal
import statistics
import sys
import time
import typing as t
import urllib.parse
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping

import click
from werkzeug.security import generate_password_hash

from .common import PASSWORD, Config, Ratio, Section, UnavailableError, postgresql, users
from .request import WITH, WITHOUT
from .served import METHOD, environ, fill
from .workers import COOKIE, HOST, WORKERS, Server, serving

CLIENTS = 64
USERS = 24
THREADS = 8
#: Slices per server.
SLICES = 4
#: Before the first slice, in seconds, to fill caches and open connections. Judged, but not
#: measured.
WARM_UP = 2.0
#: After this fraction of its time, a server's memory is read for the first time.
EARLY = 0.1
PERCENTILES = (50, 95, 99)
#: How many wrong responses are described.
MOST_TOLD = 10
#: In seconds.
LONGEST_ANSWER = 60
#: The app's own statuses, including "signed out" and "password no longer valid".
EXPECTED = (200, 401, 403)
#: More than one user's clients can set at once.
MOST_PASSWORDS = 8


# -- the oracle --------------------------------------------------------------------------------


class Password(t.NamedTuple):
    text: str
    #: When the response to the change that set it had arrived, so that it was certainly committed.
    since: float


@dataclasses.dataclass(eq=False)
class User:
    id: int
    name: bytes
    #: Possibly current passwords, the most likely first: of two overlapping changes, it is unknown
    #: which was the last.
    passwords: deque[Password]
    #: Sessions that clients have or had last, and logins in progress.
    sessions: set[Session] = dataclasses.field(default_factory=set)
    #: Requests that were sent and not answered yet.
    events: set[Event] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(eq=False)
class Session:
    """What a client got from one login."""

    user: User
    #: The user agent, which identifies it among its user's sessions.
    device: str
    cookie: str
    password: Password
    #: The cookie that it was last signed in with.
    copy: str = ""
    #: When its login had been answered.
    known_at: float = math.inf
    #: When the request that ended it had been answered.
    over_at: float = math.inf
    over_by: str = ""
    #: Whether something that overlapped its login may have ended it.
    is_doubtful: bool = False


@dataclasses.dataclass(eq=False)
class Event:
    """A request that ends sessions of a user."""

    what: str
    #: The only session that it ends; ``None`` for all.
    target: Session | None = None
    #: The only session that it doesn't end.
    spared: Session | None = None
    is_password_change: bool = False
    begun_at: float = math.inf

    def ends(self, session: Session) -> bool:
        if self.target is not None:
            return session is self.target
        return session is not self.spared


class Oracle:
    """Decide which responses must be signed in and which signed out.

    All times come from one clock in one thread, which runs all clients: a request begins before its
    first byte is sent, and is answered after the last byte was read.
    """

    def __init__(self) -> None:
        #: Counts by the expected outcome.
        self.right: Counter[str] = Counter()
        self.undecided = 0
        self.wrong: Counter[str] = Counter()
        self.told: list[str] = []

    def begin(self, user: User, event: Event) -> None:
        event.begun_at = time.monotonic()
        user.events.add(event)

    def finish(self, user: User, event: Event, *, happened: bool) -> None:
        """Record that it was answered. What is never answered stays in doubt."""
        now = time.monotonic()
        user.events.discard(event)
        if not happened:
            return
        for session in user.sessions:
            if not event.ends(session):
                continue
            # A login with a replaced password is dead, whenever it was answered.
            since = session.password.since if event.is_password_change else session.known_at
            if event.begun_at <= since:
                session.is_doubtful = True
            elif now < session.over_at:
                session.over_at, session.over_by = now, event.what

    def judge(
        self, session: Session, path: str, sent_at: float, is_signed_in: bool, own: Event | None
    ) -> None:
        """Judge a response, before the effect of the request itself, ``own``, is finished."""
        if session.over_at < sent_at:
            expected, is_right = session.over_by, not is_signed_in
        elif (
            session.is_doubtful
            or session.over_at < math.inf
            or any(event is not own and event.ends(session) for event in session.user.events)
        ):
            self.undecided += 1
            return
        else:
            expected, is_right = "", is_signed_in
        (self.right if is_right else self.wrong)[expected] += 1
        if not is_right and len(self.told) < MOST_TOLD:
            self.told.append(
                f"{path} was answered to '{session.device}' as if signed in, "
                f"{1000 * (sent_at - session.over_at):.1f} ms after: {expected}."
                if expected
                else f"{path} was answered to '{session.device}' as if signed out, and nothing has"
                " ended it."
            )


# -- the clients -------------------------------------------------------------------------------


class FailedError(Exception):
    """There was no response, or a 5xx. It has been counted."""


class Answer(t.NamedTuple):
    status: int
    body: bytes
    #: ``None``: the browser keeps its cookie.
    cookie: str | None


class Connection:
    """A keep-alive connection that speaks only as much HTTP as this server needs.

    The clients share the processors with what they load: a full HTTP client would be most of the
    load.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port)
        reader, writer = self._streams
        writer.write(request)
        status, *headers = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        length, cookie = 0, None
        closes = False
        for header in headers:
            name, _, value = header.partition(b": ")
            name = name.lower()
            if name == b"content-length":
                length = int(value)
            elif name == b"set-cookie" and value.startswith(f"{COOKIE}=".encode()):
                cookie = value.partition(b";")[0].partition(b"=")[2].decode()
            elif name == b"connection":
                closes = value.lower() == b"close"
        body = await reader.readexactly(length)
        if closes:
            self.close()
        return Answer(int(status[9:12]), body, cookie)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Client:
    """A browser of one user, which does one thing after another."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd = crowd
        self.number = number
        self.user = crowd.users[number % len(crowd.users)]
        self.logins = 0
        self.chance = random.Random(number)
        self.deck: list[Callable[[Client], t.Awaitable[None]]] = []
        self.session = self._new_session("")
        self.is_signed_in = False

    async def run(self, until: float) -> None:
        self.connection = Connection(self.crowd.server.port)
        try:
            while time.monotonic() < until:
                try:
                    await self._step()
                except FailedError:
                    self.is_signed_in = False
        finally:
            self.connection.close()

    async def _step(self) -> None:
        if not self.is_signed_in:
            await self.sign_in()
            return
        if not self.deck:
            # Shuffled rather than drawn at random, so that the proportions are the same in each
            # run.
            cards = [does for does, count in MIX.items() for _ in range(count)]
            self.deck = self.chance.sample(cards, len(cards))
        await self.deck.pop()(self)

    # -- actions -------------------------------------------------------------------------------

    async def ask_who(self) -> None:
        session, sent_at = self.session, time.monotonic()
        await self._ask("/")
        # Only signed-in requests count: others are answered sooner.
        if self.is_signed_in and session.over_at == math.inf:
            self.crowd.latencies.append(time.monotonic() - sent_at)

    async def sign_in(self) -> None:
        """Sign in. If already signed in, the login replaces and ends that session."""
        before, user = self.session, self.user
        self.logins += 1
        session = self._new_session(before.cookie)
        # From the beginning: what ends the session may be faster than its login.
        user.sessions.add(session)
        event = Event("a login over it", target=before)
        self.crowd.oracle.begin(user, event)
        form = {"id": user.id, "password": session.password.text}
        answer = await self._send(session, "/login", form)
        self.crowd.oracle.finish(user, event, happened=answer.status == 200)
        if answer.status != 200:
            self.crowd.refused += 1
            user.sessions.discard(session)
            await self._try_another(session.password)
            return
        session.known_at, session.copy = time.monotonic(), session.cookie
        self.session, self.is_signed_in = session, True
        # So that the other worker can answer the next requests.
        self.connection.close()
        # If something else ended the earlier session, that request was usually still in progress
        # when the client noticed. By now it is certain.
        await self._replay(before)
        user.sessions.discard(before)

    async def sign_out(self) -> None:
        session, copy = self.session, self.session.copy
        await self._ask("/logout", {}, Event("a logout", target=session))
        # The response cleared the cookie.
        self.is_signed_in, session.copy = False, copy
        await self._replay(session)

    async def change_password(self) -> None:
        session, current = self.session, self.user.passwords[0]
        # The session continues under another id, so the browser's present cookie is dead
        # afterwards.
        earlier = dataclasses.replace(session, over_by="its own change of it")
        new = uuid.uuid4().hex
        event = Event("a change of the password", spared=session, is_password_change=True)
        answer = await self._ask("/password", {"current": current.text, "new": new}, event)
        if answer.status == 200:
            earlier.over_at = time.monotonic()
            self.user.passwords.appendleft(Password(new, earlier.over_at))
            await self._replay(earlier)
        elif answer.status == 403:
            await self._try_another(current)

    async def end_others(self) -> None:
        await self._ask("/end-others", {}, Event("ending all others", spared=self.session))

    async def end_one(self) -> None:
        answer = await self._ask("/sessions")
        others = [session for session in self.user.sessions if session is not self.session]
        if not self.is_signed_in or not others:
            return
        target = self.chance.choice(others)
        # A session that has ended is not listed; then use an id that belongs to nobody.
        id = json.loads(answer.body).get(target.device, uuid.uuid4())
        await self._ask(f"/end/{id}", {}, Event("ending this one", target=target))

    # -- requests ------------------------------------------------------------------------------

    async def _ask(
        self, path: str, form: Mapping[str, t.Any] | None = None, event: Event | None = None
    ) -> Answer:
        """Send a request with its session, and let the oracle judge the response.

        :param event: what the request does if it succeeds.
        """
        crowd, session = self.crowd, self.session
        if event is not None:
            crowd.oracle.begin(self.user, event)
        sent_at = time.monotonic()
        answer = await self._send(session, path, form)
        if crowd.is_registered:
            self.is_signed_in = answer.status != 401
            crowd.oracle.judge(session, path, sent_at, self.is_signed_in, event)
        else:
            # Nothing ends on that server. Sign in again anyway, so that the load is the same.
            self.is_signed_in = session.over_at > sent_at
        if self.is_signed_in:
            session.copy = session.cookie
        if event is not None:
            happened = answer.status == 200 and answer.body != b"unknown" and self.is_signed_in
            crowd.oracle.finish(self.user, event, happened=happened)
        return answer

    async def _replay(self, session: Session) -> None:
        """Replay a copy of a cookie that is probably dead."""
        if not session.copy:
            return
        sent_at, copy = time.monotonic(), dataclasses.replace(session, cookie=session.copy)
        answer = await self._send(copy, "/")
        if self.crowd.is_registered:
            self.crowd.oracle.judge(session, "/", sent_at, answer.status != 401, None)

    async def _send(
        self, session: Session, path: str, form: Mapping[str, t.Any] | None = None
    ) -> Answer:
        """Send a request and count errors.

        :raises FailedError: there is no response, or it is an error.
        """
        lines = [
            f"{'GET' if form is None else 'POST'} {path} HTTP/1.1",
            f"Host: {HOST}",
            f"User-Agent: {session.device}",
            f"Cookie: {COOKIE}={session.cookie}",
        ]
        body = ""
        if form is not None:
            body = urllib.parse.urlencode(form)
            lines.append("Content-Type: application/x-www-form-urlencoded")
            lines.append(f"Content-Length: {len(body)}")
        request = "\r\n".join((*lines, "", body)).encode()
        crowd, view = self.crowd, "/" + path.split("/")[1]
        crowd.requests[view] += 1
        try:
            answer = await self.connection.ask(request)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.connection.close()
            crowd.errors[f"{view}: {type(error).__name__}"] += 1
            raise FailedError from None
        if answer.status not in EXPECTED:
            crowd.errors[f"{view}: {answer.status}"] += 1
            raise FailedError
        if view == "/" and answer.status == 200 and answer.body != self.user.name:
            crowd.errors[f"{view}: somebody else"] += 1
        if answer.cookie is not None:
            session.cookie = answer.cookie
        return answer

    async def _try_another(self, password: Password) -> None:
        """Use another of the possible passwords next time, because this one was refused."""
        while any(event.is_password_change for event in self.user.events):
            # The outcome is still unknown.
            await asyncio.sleep(0.01)
        if self.user.passwords[0] is password:
            self.user.passwords.rotate(-1)

    def _new_session(self, cookie: str) -> Session:
        device = f"client {self.number}, login {self.logins}"
        return Session(self.user, device, cookie, self.user.passwords[0])


#: How often a signed-in client does each of these, out of the total.
MIX: dict[Callable[[Client], t.Awaitable[None]], int] = {
    Client.ask_who: 184,
    Client.sign_in: 2,
    Client.sign_out: 4,
    Client.change_password: 4,
    Client.end_others: 3,
    Client.end_one: 3,
}


class Crowd:
    """All clients of one server, and their results."""

    def __init__(self, server: Server, names: Mapping[int, str], *, is_registered: bool) -> None:
        self.server = server
        self.is_registered = is_registered
        self.users = [
            User(id, name.encode(), deque([Password(PASSWORD, -math.inf)], maxlen=MOST_PASSWORDS))
            for id, name in names.items()
        ]
        self.clients = [Client(self, number) for number in range(CLIENTS)]
        self.oracle = Oracle()
        self.requests: Counter[str] = Counter()
        #: Logins with a password that was replaced a moment ago.
        self.refused = 0
        self.errors: Counter[str] = Counter()
        #: In seconds, for the current slice.
        self.latencies: list[float] = []
        #: For each slice, by percentile.
        self.percentiles: dict[int, list[float]] = {percentile: [] for percentile in PERCENTILES}
        self._memory: list[dict[int, float]] = []

    def load(self, seconds: float, *, looks_after: float | None = None) -> None:
        """Run a slice.

        :param looks_after: read the memory after this many seconds.
        """
        self.latencies.clear()
        asyncio.run(self._load(seconds, looks_after))

    async def _load(self, seconds: float, looks_after: float | None) -> None:
        if looks_after is not None:
            asyncio.get_running_loop().call_later(looks_after, self.look_at_memory)
        until = time.monotonic() + seconds
        runs = asyncio.gather(*(client.run(until) for client in self.clients))
        try:
            await asyncio.wait_for(runs, seconds + LONGEST_ANSWER)
        except asyncio.TimeoutError:
            self.errors[f"no answer within {LONGEST_ANSWER} s"] += 1

    def take_down(self) -> None:
        """Record the percentiles of the finished slice."""
        latencies = sorted(self.latencies)
        for percentile, of_slices in self.percentiles.items():
            place = len(latencies) * percentile // 100
            of_slices.append(latencies[place] if latencies else math.nan)

    def look_at_memory(self) -> None:
        self._memory.append(self.server.memory())

    def memory(self) -> list[tuple[float, float]]:
        """Return the memory of each surviving worker in MiB: early, and at the end."""
        early, late = self._memory
        if early.keys() != late.keys():
            self.errors["a worker has died"] += 1
        return [(early[worker], late[worker]) for worker in early.keys() & late.keys()]


# -- the report --------------------------------------------------------------------------------


@dataclasses.dataclass
class Report:
    """The findings of one run."""

    oracle: Oracle
    #: By server, with counts of each kind.
    errors: dict[str, Counter[str]]
    #: The latency with the registry as a multiple of that without it, by percentile.
    ratios: dict[int, Ratio]
    #: By server, for each worker in MiB: early, and at the end.
    memory: dict[str, list[tuple[float, float]]]

    @property
    def is_good(self) -> bool:
        """Whether no response was wrong and nothing failed."""
        return not self.oracle.wrong and not any(self.errors.values())


@contextlib.contextmanager
def crowds(*, is_checked: bool) -> Iterator[dict[str, Crowd]]:
    """Yield both servers with their clients, each on a database schema of its own."""
    names = {id: f"user {id}" for id in range(1, USERS + 1)}
    password_hash = generate_password_hash(PASSWORD, method=METHOD)
    rows = [
        {**row, "name": names[row["id"]], "password_hash": password_hash} for row in users(USERS)
    ]
    made: dict[str, Crowd] = {}
    with contextlib.ExitStack() as stack:
        for name in (WITHOUT, WITH):
            config: Config = stack.enter_context(postgresql())
            # A connection for each thread, as in an app that is deployed like this.
            config["SQLALCHEMY_ENGINE_OPTIONS"]["pool_size"] = THREADS
            is_registered = name == WITH
            fill({**config, "REGISTERED": is_registered}, rows)
            switches = {"REGISTERED": is_registered, "CHECKED": is_checked or not is_registered}
            server = stack.enter_context(
                serving(
                    environ(config, **switches),
                    *("--worker-class", "gthread", "--threads", str(THREADS)),
                    # Longer than a client ever pauses, so that no connection is found closed.
                    *("--keep-alive", str(LONGEST_ANSWER)),
                )
            )
            made[name] = Crowd(server, names, is_registered=is_registered)
        yield made


def report(minutes: float, *, is_checked: bool = True) -> Report:
    """Load both servers for this long in total, and print the findings.

    :param is_checked: if ``False``, the app's check is removed, and the oracle must notice.
    :raises UnavailableError: something that is needed is missing.
    """
    seconds = minutes * 60 / (2 * SLICES)
    with crowds(is_checked=is_checked) as both:
        for crowd in both.values():
            crowd.load(WARM_UP)
        for number in range(SLICES):
            # Forward and back, so that a machine that slows down or speeds up favors none.
            for crowd in (both.values(), reversed(both.values()))[number % 2]:
                crowd.load(seconds, looks_after=None if number else EARLY * SLICES * seconds)
                crowd.take_down()
        for crowd in both.values():
            crowd.look_at_memory()
        found = Report(
            both[WITH].oracle,
            {name: crowd.errors for name, crowd in both.items()},
            {
                percentile: Ratio.of(of_slices, both[WITHOUT].percentiles[percentile])
                for percentile, of_slices in both[WITH].percentiles.items()
            },
            {name: crowd.memory() for name, crowd in both.items()},
        )
        for name, crowd in both.items():
            if log := crowd.server.logged():
                crowd.errors["something was logged"] += 1
                click.echo(f"The log of '{name}' begins:\n{log[:2000]}\n", err=True)
        _echo_requests(both)
        _echo_latencies(both, found.ratios)
    _echo_memory(found.memory)
    _echo_verdicts(found)
    return found


def as_section(found: Report, minutes: float) -> Section:
    """Return the findings as a section."""
    oracle = found.oracle
    right, wrong = sum(oracle.right.values()), sum(oracle.wrong.values())
    errors = sum(sum(errors.values()) for errors in found.errors.values())
    notes = [
        f"{right} answers right, {wrong} wrong, {oracle.undecided} undecided; {errors} errors."
    ]
    notes += [
        f"A worker ({name}) held {before:.1f} MiB early, and {after:.1f} MiB at the end."
        for name, workers in found.memory.items()
        for before, after in workers
    ]
    ratios = {f"p{percentile}": ratio for percentile, ratio in found.ratios.items()}
    title = f"{CLIENTS} clients, {minutes:.0f} minutes for both"
    return Section(title, "latency, without the registry = 1", ratios, notes)


def _echo_requests(both: Mapping[str, Crowd]) -> None:
    click.echo(f"\n{'requests':24}" + "".join(f"{name:>12}" for name in both))
    for view in sorted({view for crowd in both.values() for view in crowd.requests}):
        counts = "".join(f"{crowd.requests[view]:12}" for crowd in both.values())
        click.echo(f"{view:24}{counts}")
    refused = "".join(f"{crowd.refused:12}" for crowd in both.values())
    click.echo(f"{'logins refused':24}{refused}")


def _echo_latencies(both: Mapping[str, Crowd], ratios: Mapping[int, Ratio]) -> None:
    head = "".join(f"{name:>12}" for name in both)
    click.echo(f"\n{'latency of /, ms':24}{head}{'medians':>10}{'paired':>8}{'95 %':>10}")
    for percentile, ratio in ratios.items():
        medians = [statistics.median(crowd.percentiles[percentile]) for crowd in both.values()]
        line = "".join(f"{1000 * median:12.1f}" for median in medians)
        click.echo(f"p{percentile:<23}{line}{ratio}")


def _echo_memory(memory: Mapping[str, list[tuple[float, float]]]) -> None:
    early = f"after {EARLY:.0%}"
    click.echo(f"\n{'memory, MiB':24}{early:>12}{'at the end':>12}{'growth':>10}")
    for name, workers in memory.items():
        for number, (before, after) in enumerate(workers, 1):
            title = f"{name}, worker {number}"
            click.echo(f"{title:24}{before:12.1f}{after:12.1f}{after / before - 1:10.1%}")


def _echo_verdicts(found: Report) -> None:
    oracle = found.oracle
    click.echo(f"\n{'answers':48}{'right':>10}{'wrong':>10}")
    for reason in sorted({*oracle.right, *oracle.wrong}):
        title = f"signed out after {reason}" if reason else "signed in"
        click.echo(f"{title:48}{oracle.right[reason]:10}{oracle.wrong[reason]:10}")
    click.echo(f"{'undecided':48}{oracle.undecided:10}")
    for sentence in oracle.told:
        click.echo(f"Wrong: {sentence}")
    for name, errors in found.errors.items():
        for error, count in errors.items():
            click.echo(f"Error ({name}): {error}, {count} times")


@click.command(help=__doc__)
@click.option(
    "--minutes",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Minutes under load, for both servers together.",
)
@click.option(
    "--unchecked",
    is_flag=True,
    help="Serve the app without its check, to see that the oracle notices.",
)
def main(minutes: float, unchecked: bool) -> None:
    # On SIGTERM, stop the servers first, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    click.echo(
        f"Redis session store, PostgreSQL (psycopg 3); gunicorn, {WORKERS} workers of {THREADS}"
        f" threads; {CLIENTS} clients of {USERS} users: {SLICES} slices of each server, of"
        f" {minutes * 60 / (2 * SLICES):.1f} s"
    )
    try:
        found = report(minutes, is_checked=not unchecked)
    except UnavailableError as error:
        click.echo(f"Left out. {error}")
        return
    sys.exit(0 if found.is_good else 1)


if __name__ == "__main__":
    main()
