"""Measure how much load a database carries.

pgbench sends one PostgreSQL, over as many connections as there are processors, what a request sends
without the registry (the user), with it (the check, which replaces the user), and when it records
the last visit. Server and load share the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import typing as t
from collections.abc import Sequence
from pathlib import Path

import click
import sqlalchemy as sa

from flask_session_registry import _clock as clock

from .common import Ratio, Section, UnavailableError
from .scale import Rows, tables

#: Statements in a turn of pgbench, each for another user or session.
STATEMENTS = 500
USER, CHECK, SEEN = KINDS = ("the user", "the check", "last seen")


def binary() -> str:
    """Return the path of pgbench.

    :raises UnavailableError: it is not installed.
    """
    installed = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/pgbench")))
    found = shutil.which("pgbench") or (installed[-1] if installed else None)
    if found is None:
        raise UnavailableError("pgbench is not installed.")
    return found


def scripts(table: Rows) -> dict[str, str]:
    """Return the scripts for pgbench, by title: transactions as an app makes them."""
    users, sessions, known = table.users.c, table.table, table.known[:STATEMENTS]
    load = table.records._load_both
    seen = {"last_seen_at": clock.now(), "ip_address": "203.0.113.9", "user_agent": "Firefox"}
    statements: dict[str, Sequence[sa.Executable]] = {
        USER: [sa.select(*users).where(users.id == user_id) for _, user_id in known],
        CHECK: [load.params(id=id, user_id=user_id) for id, user_id in known],
        SEEN: [sessions.update().where(sessions.c.id == id).values(seen) for id, _ in known],
    }
    return {
        kind: "".join(
            f"BEGIN;\n{_text(table, one)};\n{'COMMIT' if kind == SEEN else 'ROLLBACK'};\n"
            for one in of_kind
        )
        for kind, of_kind in statements.items()
    }


def _text(table: Rows, statement: t.Any) -> str:
    compiled = statement.compile(table.db.engine, compile_kwargs={"literal_binds": True})
    # One line each: pgbench ends a statement only at a semicolon.
    return " ".join(str(compiled).replace("%%", "%").split())


def per_second(table: Rows, script: Path, seconds: int) -> float:
    """Return how many of these statements one PostgreSQL runs per second."""
    url = table.db.engine.url
    clients = str(os.cpu_count())
    done = subprocess.run(
        [
            *(binary(), "--no-vacuum", "--client", clients, "--jobs", clients),
            *("--time", str(seconds), "--file", str(script)),
            *("--host", url.host or "", "--port", str(url.port or 5432)),
            *("--username", url.username or "", url.database or ""),
        ],
        env={
            **os.environ,
            "PGPASSWORD": url.password or "",
            "PGOPTIONS": table.app.config["SQLALCHEMY_ENGINE_OPTIONS"]["connect_args"]["options"],
        },
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if done.returncode or found is None or "number of failed transactions: 0 " not in done.stdout:
        raise AssertionError(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return float(found[1]) * STATEMENTS


def report(rows: int, rounds: int, seconds: int = 5) -> Section:
    """Measure and print the statements per second, also relative to loading only the user."""
    binary()
    with (
        tables("PostgreSQL", [rows]) as (table,),
        tempfile.TemporaryDirectory(prefix="session-registry-benchmark-") as folder,
    ):
        files = {}
        for number, (kind, text) in enumerate(scripts(table).items()):
            files[kind] = Path(folder, f"{number}.sql")
            files[kind].write_text(text)
        table.db.session.rollback()
        counts: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(rounds):
            for kind in (KINDS, KINDS[::-1])[number % 2]:
                counts[kind].append(per_second(table, files[kind], seconds))
    ratios: dict[str, Ratio] = {}
    click.echo(f"{'with ' + format(rows, ',') + ' sessions':28}{'a second':>10}")
    for kind, of_kind in counts.items():
        line = f"{kind:28}{sum(of_kind) / rounds:10.0f}"
        if kind != USER:
            ratios[kind] = Ratio.of(of_kind, counts[USER])
            line += str(ratios[kind])
        click.echo(line)
    title = f"What one PostgreSQL carries, with {rows:,} sessions"
    return Section(title, f"statements a second, {USER} alone = 1", ratios)


@click.command(help=__doc__)
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(min=1000))
def main(rounds: int, rows: int) -> None:
    try:
        report(rows, rounds)
    except UnavailableError as error:
        click.echo(f"Left out. {error}")


if __name__ == "__main__":
    main()
