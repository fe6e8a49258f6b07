"""Measure how much HTTP throughput is left with the registry.

The same app runs under gunicorn twice, without the registry and with it, each with two workers, on
the Redis session store and PostgreSQL. wrk loads one at a time, in turns: a view that only reads
``current_user.name``, and a page rendered from a template. Each request is from another user than
the one before. The measure includes the work of the server and of wrk for any request, so the check
is a smaller part of it than in ``benchmarks.request``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from .common import (
    KINDS,
    NOBODY,
    PASSWORD,
    PLAIN,
    USER_AGENT,
    Config,
    Ratio,
    UnavailableError,
    measure,
    name_of,
    postgresql,
    user_sessions,
    users,
)
from .request import AGAIN, USER_IDS, USERS, WITH, WITHOUT
from .served import METHOD, environ, fill
from .workers import COOKIE, WORKERS, Server, serving

VIEWS = {"/": "a view that reads 'current_user.name'", "/page": "a rendered page"}
#: Twice the workers: one that has responded never waits for the next request.
CONNECTIONS = 2 * WORKERS
SCRIPT = Path(__file__).with_name("browsers.lua")
#: The lines in which wrk counts bad responses.
BAD = re.compile(r"^\s*(Non-2xx.*|Socket errors.*)$", re.MULTILINE)
RATE = re.compile(r"^Requests/sec:\s+([0-9.]+)$", re.MULTILINE)


@dataclasses.dataclass
class Load:
    """One of the servers, and signed-in browsers that request one view in turn."""

    name: str
    server: Server
    path: str
    #: By user.
    cookies: Mapping[int, str]
    seconds: int

    def run(self) -> float:
        """Run one turn and return the nanoseconds per request.

        :raises AssertionError: wrk saw a failed connection or an error response, which includes
            anonymous responses.
        """
        with tempfile.NamedTemporaryFile("w", prefix="session-registry-benchmark-") as file:
            file.writelines(f"{COOKIE}={cookie}\n" for cookie in self.cookies.values())
            file.flush()
            text = subprocess.run(
                [
                    *("wrk", "--threads", "1", "--connections", str(CONNECTIONS)),
                    *("--duration", f"{self.seconds}s", "--timeout", "10s"),
                    # The user agent that signed in: Flask-Login compares it.
                    *("--header", f"User-Agent: {USER_AGENT}", "--script", str(SCRIPT)),
                    *(self.server.url(self.path), "--", file.name),
                ],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        found = RATE.search(text)
        if (bad := BAD.search(text)) or found is None:
            raise AssertionError(f"'{self.name}', {self.path}: {bad[1] if bad else text}")
        return 1e9 / float(found[1])

    def signed_in(self) -> list[int]:
        """Return the users whom the response to their browser shows."""
        shown = []
        for user_id, cookie in self.cookies.items():
            answer, name = self.server.ask(self.path, cookie=cookie), name_of(user_id)
            shows = answer.body == name if self.path == "/" else name in answer.body
            if answer.status == 200 and shows:
                shown.append(user_id)
        return shown


def sign_in(server: Server, user_id: int) -> str:
    """Sign in a browser and return its cookie.

    :raises AssertionError: the login failed.
    """
    answer = server.ask("/login", form={"id": user_id, "password": PASSWORD})
    if answer.status != 200 or not answer.cookie:
        raise AssertionError(f"The login got a {answer.status}.")
    return answer.cookie


def check(loads: Sequence[Load]) -> None:
    """Check that the measured response is the right one.

    :raises AssertionError: a response does not show the signed-in user.
    """
    for load in loads:
        if load.signed_in() != list(USER_IDS):
            raise AssertionError(f"'{load.name}', {load.path}, does not show the signed-in user.")


def check_revocation(loads: Sequence[Load]) -> None:
    """Check that a real check was measured: a user's second browser revokes that of the first one.

    :raises AssertionError: a server still shows the user, or the one without the registry doesn't,
        or another user isn't shown any more.
    """
    revoked, *others = USER_IDS
    for load in loads:
        load.server.ask("/end-others", cookie=sign_in(load.server, revoked), form={})
        if load.signed_in() != (others if load.name == WITH else [revoked, *others]):
            raise AssertionError(f"'{load.name}' did not react to the revocation as it should.")
        if load.name == WITH and load.server.ask("/", cookie=load.cookies[revoked]).body != NOBODY:
            raise AssertionError(f"'{load.name}' does not respond after the revocation.")


@contextlib.contextmanager
def servers(config: Config, kind: str) -> Iterator[dict[str, Server]]:
    """Yield both servers, on the same tables."""
    fill({**config, "KIND": kind}, users(USERS, METHOD), user_sessions(range(1, USERS + 1)))
    # See 'build' in 'benchmarks.request'.
    switches = {"KIND": kind, "SESSION_REFRESH_EACH_REQUEST": False}
    with (
        serving(environ(config, REGISTERED=False, **switches)) as without,
        serving(environ(config, REGISTERED=True, **switches)) as registered,
    ):
        yield {WITHOUT: without, WITH: registered}


def report(rounds: int, seconds: int = 2, kind: str = PLAIN) -> dict[str, Ratio]:
    """Measure and print the throughput of each variant as a multiple of that without the registry.

    :returns: what is printed, by view and variant: ``"a rendered page, with"``.
    :raises UnavailableError: something that is needed is missing.
    :raises AssertionError: a response was wrong.
    """
    if shutil.which("wrk") is None:
        raise UnavailableError("wrk is not installed. Install it: Debian's package has that name.")
    found: dict[str, Ratio] = {}
    with postgresql() as config, servers(config, kind) as both:
        cookies = {
            name: {user_id: sign_in(server, user_id) for user_id in USER_IDS}
            for name, server in both.items()
        }
        for path, title in VIEWS.items():
            loads = [
                Load(name, both[of], path, cookies[of], seconds)
                for name, of in ((WITHOUT, WITHOUT), (AGAIN, WITHOUT), (WITH, WITH))
            ]
            check(loads)
            for load in loads:
                # Fill each worker's caches of statements and templates, and open its connections.
                load.run()
            times = measure(loads, rounds, Load.run)
            check(loads)
            click.echo(
                f"\n{title}\n{'':16}{'requests/s':>12}{'medians':>10}{'paired':>8}{'95 %':>10}"
            )
            for load, of_load in zip(loads, times, strict=True):
                line = f"{load.name:16}{1e9 / statistics.median(of_load):12.0f}"
                if load.name != WITHOUT:
                    # Throughput is the inverse of time.
                    ratio = found[f"{title}, {load.name}"] = Ratio.of(times[0], of_load)
                    line += str(ratio)
                click.echo(line)
        check_revocation(loads)
    return found


@click.command(help=__doc__)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--seconds",
    default=2,
    show_default=True,
    type=click.IntRange(min=1),
    help="Length of a turn; each variant has two in a round.",
)
@click.option("--user", type=click.Choice(list(KINDS)), default=PLAIN, show_default=True)
def main(rounds: int, seconds: int, user: str) -> None:
    # On SIGTERM, stop the servers first, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    click.echo(
        f"Redis session store, PostgreSQL (psycopg 3); gunicorn, {WORKERS} sync workers; wrk,"
        f" {CONNECTIONS} connections; {KINDS[user][0]}: {rounds} rounds of 2 turns of {seconds} s"
    )
    try:
        report(rounds, seconds, user)
    except UnavailableError as error:
        click.echo(f"Left out. {error}")


if __name__ == "__main__":
    main()
