"""Measure the cost of revoking everyone's sessions, relative to the unavoidable minimum."""

from __future__ import annotations

import contextlib
import time
import typing as t
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_session_registry import SessionRegistry
from flask_session_registry._app import get_registry
from flask_session_registry._ops.filters import Filter
from flask_session_registry._revocation.bulk import Tally, revoke_many

from .common import Config, Ratio, Section, add_sessions, add_users

#: Sessions per user.
EACH = 5
#: Keys per command, as in the registry.
KEYS = 1000
ENTRY = b"\0" * 216


def report(
    config: Config, make_app: Callable[[Config], tuple[Flask, SQLAlchemy, t.Any]], count: int
) -> Section:
    """End ``count`` sessions in each way, in turns, forward and back."""
    app, db, user_model = make_app({**config, "SESSION_REGISTRY_AUTO_PRUNE": None})
    registry = SessionRegistry(app)
    client, prefix = config["SESSION_REDIS"], config["SESSION_KEY_PREFIX"]
    with app.app_context():
        db.create_all()
        table = registry.UserSession.__table__
        with db.engine.begin() as connection:
            add_users(connection, user_model.__table__, count // EACH)
        click.echo(f"{count} sessions of {count // EACH} users")
        times: dict[str, list[float]] = {"floor": [], "with": []}
        notes: list[str] = []
        for name in ("floor", "with", "with", "floor"):
            _fill(db.engine, table, client, prefix, count)
            begin = time.perf_counter()
            if name == "floor":
                _floor(db.engine, table, client)
            else:
                notes.append(_command(app, count))
            times[name].append(time.perf_counter() - begin)
            db.session.remove()
            _check(db.engine, table, client, prefix, count)
        db.engine.dispose()
    for name, seconds in times.items():
        click.echo(f"{name:8}{sum(seconds) / 2:8.1f} s  ({', '.join(f'{s:.1f}' for s in seconds)})")
    ratio = Ratio.of(times["with"], times["floor"])
    click.echo(f"ratio   {ratio.paired:8.2f}")
    title = f"Ending {count:,} sessions from the command line"
    return Section(title, "cost, floor = 1", {"with": ratio}, notes)


def _floor(engine: sa.Engine, table: sa.Table, client: t.Any) -> None:
    """One bare UPDATE, and an UNLINK per thousand keys, which are read as needed."""
    column = table.c
    with engine.begin() as connection:
        connection.execute(
            table.update()
            .where(column.revoked_at.is_(None))
            .values(revoked_at=sa.func.now(), revoked_reason="revoked", revocation=uuid.uuid4())
        )
    with engine.connect() as connection:
        rows = connection.execution_options(yield_per=KEYS).execute(sa.select(column.store_id))
        for keys in rows.scalars().partitions():
            client.unlink(*keys)


def _command(app: Flask, count: int) -> str:
    """Run the command. Return how much more memory it held at the end than after a tenth."""
    tally = Tally()
    sizes: list[tuple[int, int]] = []
    for _ in revoke_many(get_registry(), app, None, Filter(), reason="revoked", tally=tally):
        sizes.append((tally.ended, _memory()))
    if tally.ended != count or tally.purged != count:
        raise AssertionError(f"Not all of {count} sessions ended: {tally}.")
    early = next(size for ended, size in sizes if ended >= count / 10)
    most = max(size for _, size in sizes)
    told = f"The process held {early} MiB after a tenth, and {most} MiB at most."
    click.echo(told)
    return told


def _memory() -> int:
    """Return this process's memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 // 2**20


def _fill(engine: sa.Engine, table: sa.Table, client: t.Any, prefix: str, count: int) -> None:
    """Create the same rows and entries before each turn, in a fresh table."""
    with _autocommit(engine) as connection:
        connection.execute(sa.text(f"TRUNCATE {table}"))
        add_sessions(connection, table, count, each=EACH, prefix=prefix)
        connection.execute(sa.text(f"VACUUM ANALYZE {table}"))
    with engine.connect() as connection:
        rows = connection.execution_options(yield_per=KEYS).execute(sa.select(table.c.store_id))
        for keys in rows.scalars().partitions():
            client.mset(dict.fromkeys(keys, ENTRY))


def _check(engine: sa.Engine, table: sa.Table, client: t.Any, prefix: str, count: int) -> None:
    with engine.connect() as connection:
        ended = connection.scalar(sa.select(sa.func.count(table.c.revoked_at)))
    left = next(client.scan_iter(f"{prefix}*", count=10_000), None)
    if ended != count or left is not None:
        raise AssertionError(f"{ended} of {count} sessions ended; entries left: {left and 'some'}.")


@contextlib.contextmanager
def _autocommit(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")
