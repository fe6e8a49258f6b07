"""Count the CPU instructions that the check costs.

Counted by callgrind, for requests like those of :mod:`benchmarks.request`. The number hardly
depends on the machine's speed or on its other load. Each app runs twice in a process of its own,
which is counted from its first request after the warm-up, the second time with more requests; the
difference is the cost of these requests alone, of which each signed-in user makes one.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import click

from .common import KINDS, PLAIN, Ratio, UnavailableError
from .request import BY_HAND, BY_HAND_SEEN, SETUPS, WITH, WITHOUT, as_worst, variants

VARIANTS = (WITHOUT, WITH, BY_HAND, BY_HAND_SEEN)
#: For a second kind of user.
FEWER = (WITHOUT, WITH)
#: Requests in an app's two runs, and how often the pair is repeated.
FEW, MANY = 100, 300
REPEATS = 2


def count(key: str, name: str, requests: int, kind: str = PLAIN) -> int:
    """Return the instructions of a process from its first request to its end.

    :param requests: how many it makes. Only a difference between two numbers means anything.

    :raises UnavailableError: callgrind is missing.
    """
    if shutil.which("valgrind") is None:
        raise UnavailableError("valgrind is not installed.")
    run = (key, name, str(requests), kind)
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *("--instr-atstart=no", "--vgdb-poll=500"),
            *(sys.executable, "-m", "benchmarks.instructions", "--run", *run),
        ],
        # Fix the hashes, and with them the speed of dictionaries.
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise AssertionError(f"'{name}' could not be counted:\n{done.stderr}")
    return int(found[1])


def report(key: str, kinds: Sequence[str] = tuple(KINDS)) -> dict[str, dict[str, Ratio]]:
    """Count and print the instructions of a request in each app, and what they add.

    :param kinds: of users, the first one with all variants, the others with and without.
    :returns: the ratios by kind and variant.
    """
    apps = [(kind, name) for kind in kinds for name in (VARIANTS if kind == kinds[0] else FEWER)]
    runs = [
        (key, name, requests, kind)
        for kind, name in apps
        for _ in range(REPEATS)
        for requests in (FEW, MANY)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = iter(list(pool.map(lambda run: count(*run), runs)))
    per_request = {
        app: [-(next(counts) - next(counts)) / (MANY - FEW) for _ in range(REPEATS)] for app in apps
    }
    found: dict[str, dict[str, Ratio]] = {}
    for kind in kinds:
        without = per_request[kind, WITHOUT]
        click.echo(f"{KINDS[kind][0]:30}{'thousand instructions':>24}{'added':>8}{'ratio':>8}")
        found[kind] = {}
        for name in (name for of, name in apps if of == kind):
            mean = statistics.mean(per_request[kind, name]) / 1000
            line = f"{name:30}{mean:24.0f}"
            if name != WITHOUT:
                ratio = found[kind][name] = Ratio.of(per_request[kind, name], without)
                line += f"{mean - statistics.mean(without) / 1000:8.0f}{ratio.paired:8.3f}"
            click.echo(line)
        click.echo()
    click.echo(as_worst("instructions", found, max))
    return found


def _run(key: str, name: str, requests: int, kind: str) -> None:
    _, setup = SETUPS[key]
    with setup() as config, variants(config, (name,), kind) as apps:
        # Otherwise a collection that walks over all that start-up has left behind would fall into
        # one run, and not into the other: as much as a quarter of what the check costs.
        gc.collect()
        gc.freeze()
        _begin_counting()
        apps[0].run(requests)


def _begin_counting() -> None:
    """Tell the valgrind that this process runs in. Counting takes ten times as long."""
    control = subprocess.Popen(
        # Without ``ptrace``, which may be forbidden. Then valgrind looks while instructions run.
        ["vgdb", f"--pid={os.getpid()}", "--max-invoke-ms=0", "instrumentation", "on"],
        stderr=subprocess.DEVNULL,
    )
    while control.poll() is None:
        # Counted, once it counts, for as long as another process takes to end.
        time.sleep(0.01)
    if control.returncode:
        raise AssertionError("valgrind does not count.")


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(list(SETUPS)), help="Run only this one.")
@click.option(
    "--user", type=click.Choice(list(KINDS)), help="Only this kind of user, with all variants."
)
@click.option("--run", nargs=4, type=(str, str, int, str), hidden=True)
def main(only: str | None, user: str | None, run: tuple[str, str, int, str] | None) -> None:
    if run is not None:
        _run(*run)
        return
    for key, (title, _) in SETUPS.items():
        if only in (None, key):
            click.echo(f"\n{title}\n")
            try:
                report(key, tuple(KINDS) if user is None else (user,))
            except UnavailableError as error:
                click.echo(f"Left out. {error}")


if __name__ == "__main__":
    main()
