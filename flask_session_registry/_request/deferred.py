"""The work of a request that can wait until the app's database session is gone."""

from __future__ import annotations

import dataclasses
import typing as t
import uuid
from collections.abc import Sequence

from flask import Flask

from .. import _clock as clock
from .._app import Registry
from .._compat.flask import app_globals
from .._diagnosis import report
from .._ops.maintenance import prune
from .._records.base import BATCH
from .._store.purge import EndedSession, Purge
from .client_info import client_info
from .context import RequestContext
from .remember_cookies import RememberCookieChange
from .values import ScheduledEnd

_DEFERRED = "_session_registry_deferred"


@dataclasses.dataclass(frozen=True, slots=True)
class DeferredWork:
    """What is to be done after one request. None of it decides whether a session is active."""

    registry: Registry
    ended: Sequence[EndedSession] = dataclasses.field(default=(), repr=False)
    #: Further ended sessions, whose rows are to be deleted.
    forgotten: Sequence[EndedSession] = dataclasses.field(default=(), repr=False)
    left_behind: Sequence[str] = dataclasses.field(default=(), repr=False)
    to_end: ScheduledEnd | None = None
    #: The session to touch, and the values to record.
    touched: tuple[uuid.UUID, dict[str, t.Any]] | None = dataclasses.field(default=None, repr=False)
    prunes: bool = False

    def run(self, app: Flask) -> None:
        records = self.registry.records
        purge = Purge(self.registry, app)
        ended = [*self.ended]
        if self.to_end is not None and records.end(self.to_end.id, self.to_end.reason):
            ended.append(self.to_end)
        purge.delete_and_mark(ended)
        if self.forgotten and purge.delete_entries_of(self.forgotten):
            records.forget([row.id for row in self.forgotten])
        purge.delete_keys(self.left_behind)
        if self.touched is not None:
            records.touch(*self.touched)
        if self.prunes:
            prune(self.registry, app, limit=BATCH, scan_limit=BATCH)


def schedule(
    registry: Registry, context: RequestContext, change: RememberCookieChange | None
) -> None:
    """Schedule what the request leaves to be done, if anything.

    :param change: what the response does to the "remember me" cookie.
    """
    current, touched = context.current, None
    if current is not None and current.is_touch_due:
        current.touch_done()
        values = client_info(clock.now())
        if change is not None and change.value:
            values["remember_until"] = change.until
        touched = (current.id, values)
    prunes = registry.prune_schedule.take_turn()
    if touched or prunes or context.has_deferred_work:
        work = DeferredWork(
            registry,
            context.ended,
            context.forgotten,
            context.left_behind,
            context.to_end,
            touched,
            prunes,
        )
        _add(work)


def schedule_purge(store_key: str, *, registry: Registry) -> None:
    """Schedule the deletion of a store entry."""
    _add(DeferredWork(registry, left_behind=(store_key,)))


def _add(work: DeferredWork) -> None:
    app_globals().setdefault(_DEFERRED, []).append(work)


def run(app: Flask, kept: dict[str, t.Any]) -> None:
    """Do what was scheduled in this app context. A failure is logged.

    :param kept: the attributes of its ``g``.
    """
    for work in kept.pop(_DEFERRED, ()):
        try:
            work.run(app)
        except Exception as error:
            report("Could not finish the deferred work of a request.", error)
