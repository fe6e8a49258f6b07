"""Count the CPU instructions that the check costs.

Counted by callgrind, for requests like those of :mod:`benchmarks.request`. The number hardly
depends on the machine's speed or on its other load. Each app runs twice in a process of its own,
the second time with more requests; the difference is the cost of these requests alone.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import click

from .common import Ratio, UnavailableError
from .request import BY_HAND, BY_HAND_SEEN, SETUPS, WITH, WITHOUT, variants

VARIANTS = (WITHOUT, WITH, BY_HAND, BY_HAND_SEEN)
#: Requests in an app's two runs, and how often the pair is repeated.
FEW, MANY = 100, 300
REPEATS = 2


def count(key: str, name: str, requests: int) -> int:
    """Return the instructions of a whole process that makes this many requests.

    :raises UnavailableError: callgrind is missing.
    """
    if shutil.which("valgrind") is None:
        raise UnavailableError("valgrind is not installed.")
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *(sys.executable, "-m", "benchmarks.instructions", "--run", key, name, str(requests)),
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


def report(key: str) -> dict[str, Ratio]:
    """Count and print the instructions of a request in each app, and what they add."""
    runs = [
        (key, name, requests)
        for name in VARIANTS
        for _ in range(REPEATS)
        for requests in (FEW, MANY)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = iter(list(pool.map(lambda run: count(*run), runs)))
    per_request = {
        name: [-(next(counts) - next(counts)) / (MANY - FEW) for _ in range(REPEATS)]
        for name in VARIANTS
    }
    base = sum(per_request[WITHOUT]) / REPEATS
    click.echo(f"{'thousand instructions':24}{'of a request':>14}{'added':>8}")
    for name, found in per_request.items():
        mean = sum(found) / REPEATS / 1000
        added = "" if name == WITHOUT else f"{mean - base / 1000:8.0f}"
        click.echo(f"{name:24}{mean:14.0f}{added}")
    return {
        name: Ratio.of(found, per_request[WITHOUT])
        for name, found in per_request.items()
        if name != WITHOUT
    }


def _run(key: str, name: str, requests: int) -> None:
    _, setup = SETUPS[key]
    with setup() as config, variants(config, (name,)) as apps:
        # Otherwise a collection that walks over all that start-up has left behind would fall into
        # one run, and not into the other: as much as a quarter of what the check costs.
        gc.collect()
        gc.freeze()
        apps[0].run(requests)


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(list(SETUPS)), help="Run only this one.")
@click.option("--run", nargs=3, type=(str, str, int), hidden=True)
def main(only: str | None, run: tuple[str, str, int] | None) -> None:
    if run is not None:
        _run(*run)
        return
    for key, (title, _) in SETUPS.items():
        if only in (None, key):
            click.echo(f"\n{title}\n")
            try:
                report(key)
            except UnavailableError as error:
                click.echo(f"Left out. {error}")


if __name__ == "__main__":
    main()
