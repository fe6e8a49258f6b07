"""Measure how much HTTP throughput is left with the registry.

The same app runs under gunicorn twice, without the registry and with it, each with two workers, on
the Redis session store and PostgreSQL. wrk loads one at a time, in turns: a view that only reads
``current_user.name``, and a page rendered from a template. The measure includes the work of the
server and of wrk for any request, so the check is a smaller part of it than in
``benchmarks.request``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import signal
import statistics
import subprocess
from collections.abc import Iterator, Sequence

import click

from .common import (
    NAME,
    NOBODY,
    PASSWORD,
    USER_AGENT,
    Config,
    Ratio,
    UnavailableError,
    measure,
    postgresql,
    user_sessions,
    users,
)
from .request import AGAIN, USER_ID, USERS, WITH, WITHOUT
from .served import environ, fill
from .workers import COOKIE, WORKERS, Server, serving

VIEWS = {"/": "a view that reads 'current_user.name'", "/page": "a rendered page"}
#: Twice the workers: one that has responded never waits for the next request.
CONNECTIONS = 2 * WORKERS
#: The lines in which wrk counts bad responses.
BAD = re.compile(r"^\s*(Non-2xx.*|Socket errors.*)$", re.MULTILINE)
RATE = re.compile(r"^Requests/sec:\s+([0-9.]+)$", re.MULTILINE)


@dataclasses.dataclass
class Load:
    """One of the servers, and a signed-in browser that requests one view."""

    name: str
    server: Server
    path: str
    cookie: str
    seconds: int

    def run(self) -> float:
        """Run one turn and return the nanoseconds per request.

        :raises AssertionError: wrk saw a failed connection or an error response, which includes
            anonymous responses.
        """
        text = subprocess.run(
            [
                *("wrk", "--threads", "1", "--connections", str(CONNECTIONS)),
                *("--duration", f"{self.seconds}s", "--timeout", "10s"),
                *("--header", f"Cookie: {COOKIE}={self.cookie}"),
                # The user agent that signed in: Flask-Login compares it.
                *("--header", f"User-Agent: {USER_AGENT}", self.server.url(self.path)),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found = RATE.search(text)
        if (bad := BAD.search(text)) or found is None:
            raise AssertionError(f"'{self.name}', {self.path}: {bad[1] if bad else text}")
        return 1e9 / float(found[1])

    def is_signed_in(self) -> bool:
        """Return whether the response shows the signed-in user."""
        answer = self.server.ask(self.path, cookie=self.cookie)
        shows = answer.body == NAME if self.path == "/" else NAME in answer.body
        return answer.status == 200 and shows


def sign_in(server: Server) -> str:
    """Sign in a browser and return its cookie.

    :raises AssertionError: the login failed.
    """
    answer = server.ask("/login", form={"id": USER_ID, "password": PASSWORD})
    if answer.status != 200 or not answer.cookie:
        raise AssertionError(f"The login got a {answer.status}.")
    return answer.cookie


def check(loads: Sequence[Load]) -> None:
    """Check that the measured response is the right one.

    :raises AssertionError: a response does not show the signed-in user.
    """
    for load in loads:
        if not load.is_signed_in():
            raise AssertionError(f"'{load.name}', {load.path}, does not show the signed-in user.")


def check_revocation(loads: Sequence[Load]) -> None:
    """Check that a real check was measured: a second browser revokes the first one's session.

    :raises AssertionError: a server still shows the user, or the one without the registry doesn't.
    """
    for load in loads:
        load.server.ask("/end-others", cookie=sign_in(load.server), form={})
        if load.is_signed_in() != (load.name != WITH):
            raise AssertionError(f"'{load.name}' did not react to the revocation as it should.")
        if load.name == WITH and load.server.ask("/", cookie=load.cookie).body != NOBODY:
            raise AssertionError(f"'{load.name}' does not respond after the revocation.")


@contextlib.contextmanager
def servers(config: Config) -> Iterator[dict[str, Server]]:
    """Yield both servers, on the same tables."""
    fill(config, users(USERS), user_sessions(range(1, USERS + 1)))
    # See 'build' in 'benchmarks.request'.
    switches = {"SESSION_REFRESH_EACH_REQUEST": False}
    with (
        serving(environ(config, REGISTERED=False, **switches)) as without,
        serving(environ(config, REGISTERED=True, **switches)) as registered,
    ):
        yield {WITHOUT: without, WITH: registered}


def report(rounds: int, seconds: int = 2) -> dict[str, Ratio]:
    """Measure and print the throughput of each variant as a multiple of that without the registry.

    :returns: what is printed, by view and variant: ``"a rendered page, with"``.
    :raises UnavailableError: something that is needed is missing.
    :raises AssertionError: a response was wrong.
    """
    if shutil.which("wrk") is None:
        raise UnavailableError("wrk is not installed. Install it: Debian's package has that name.")
    found: dict[str, Ratio] = {}
    with postgresql() as config, servers(config) as both:
        cookies = {name: sign_in(server) for name, server in both.items()}
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
def main(rounds: int, seconds: int) -> None:
    # On SIGTERM, stop the servers first, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    click.echo(
        f"Redis session store, PostgreSQL (psycopg 3); gunicorn, {WORKERS} sync workers; wrk,"
        f" {CONNECTIONS} connections: {rounds} rounds of 2 turns of {seconds} s"
    )
    try:
        report(rounds, seconds)
    except UnavailableError as error:
        click.echo(f"Left out. {error}")


if __name__ == "__main__":
    main()
