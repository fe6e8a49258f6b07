"""Prunes the records: ends what has expired, purges what is pending, deletes what is old.

Nothing here decides whether a session is active. All of it may fail, and is tried again.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterator, Sequence

from flask import Flask

from .. import _clock as clock
from .._records import base
from .._store.purge import Purge

if t.TYPE_CHECKING:
    from .._app import Registry

_Row = t.TypeVar("_Row")


class PruneResult(t.NamedTuple):
    """What :meth:`SessionRegistry.prune` did, in numbers of user sessions."""

    #: Ended because they had expired.
    ended: int
    #: Had ended before, or ended in this run; their store entries are now deleted.
    purged: int
    #: Had ended longer ago than ``RETENTION``; their rows are deleted.
    forgotten: int


def prune(
    registry: Registry,
    app: Flask,
    *,
    limit: int | None = None,
    scan_limit: int | None = None,
    purge: Purge | None = None,
) -> PruneResult:
    """End what has expired, purge what is pending, purge stale keys, delete what is old; in this
    order.

    :param limit: the maximum number of user sessions, of each kind.
    :param scan_limit: the number of rows to scan, where finding what is due takes a scan. Each run
        scans others, until all have had their turn. By default all.
    :param purge: deletes the entries, and keeps the error if that fails. By default it may take as
        long as a response may be delayed.
    """
    run = _Prune(registry, app, purge or Purge(registry, app), limit, scan_limit)
    ended = run.expire()
    purged = run.purge_pending()
    run.purge_stale_keys()
    return PruneResult(ended, purged, run.forget_outdated())


class _Prune:
    """One run of :func:`prune`, whose steps are its methods.

    Each works in batches, and stops at the first entries that can't be deleted.
    """

    def __init__(
        self,
        registry: Registry,
        app: Flask,
        purge: Purge,
        limit: int | None,
        scan_limit: int | None,
    ) -> None:
        self._records = registry.records
        self._retention = registry.retention
        self._expiry = registry.expiry(app)
        self._purge = purge
        self._limit = limit
        self._window: t.Any = None
        if scan_limit is not None:
            self._window = self._records.next_scan_window(scan_limit)

    def expire(self) -> int:
        expired = self._records.find_expired(
            self._expiry, everywhere=self._limit is None, window=self._window
        )
        return sum(
            self._records.expire([row.id for row in batch], self._expiry)
            for batch in self._limited(expired)
        )

    def purge_pending(self) -> int:
        purged = 0
        for batch in self._limited(self._records.find_unpurged(window=self._window)):
            if not self._purge.delete_entries_of(batch):
                break
            purged += self._records.mark_purged([row.id for row in batch])
        return purged

    def purge_stale_keys(self) -> None:
        before = clock.ago(base.IN_FLIGHT_GRACE)
        stale = self._records.find_stale_keys(
            lost_before=self._expiry.unseen_since, window=self._window
        )
        for batch in self._limited(stale):
            if not self._purge.delete_keys(key.store_id for key in batch):
                break
            self._records.forget_stale_keys([key.id for key in batch], before=before)

    def forget_outdated(self) -> int:
        if self._retention is None:
            return 0
        forgotten = 0
        before = clock.ago(max(self._retention, base.IN_FLIGHT_GRACE))
        for batch in self._limited(self._records.find_outdated(before=before, window=self._window)):
            # Again: a request that was in flight may have written its entry back.
            if not self._purge.delete_entries_of(batch):
                break
            forgotten += self._records.forget([row.id for row in batch])
        return forgotten

    def _limited(self, batches: Iterator[Sequence[_Row]]) -> Iterator[Sequence[_Row]]:
        """Yield batches until the limit is reached."""
        left = self._limit
        for batch in batches:
            if left is None:
                yield batch
                continue
            yield batch[:left]
            left -= len(batch)
            if left <= 0:
                return
