"""What becomes of user sessions that are over?

Nothing here decides whether a session stands. All of it may fail, and is tried again.
"""

from __future__ import annotations

import datetime as dt
import typing as t
from collections.abc import Iterator

from flask import Flask

from .. import _clock as clock
from .._app import Registry
from .._records.base import StoreEntry
from .._store.purge import Purge

#: For how long a request under way may still come with a key from before a rotation.
_MEMORY = dt.timedelta(minutes=1)


class PruneResult(t.NamedTuple):
    """What :meth:`SessionRegistry.prune` did, in numbers of user sessions."""

    #: Ended, because they had expired.
    ended: int
    #: Had ended, and their entries are now deleted from the session store.
    purged: int
    #: Had ended longer ago than ``RETENTION``: their rows are deleted.
    forgotten: int


def prune(
    registry: Registry,
    app: Flask,
    *,
    limit: int | None = None,
    scan_limit: int | None = None,
    purge: Purge | None = None,
) -> PruneResult:
    """End what has expired, purge what is pending, forget what is old.

    :param purge: deletes the entries, and knows afterwards whether that has failed. By default it
        may take as long as an answer may be held up.
    :param limit: how many user sessions at most, of each kind.
    :param looks_at: how many of them it looks at, where that takes longer the more there are; each
        time at others, until all have had their turn. By default at all.
    """
    records, retention = registry.records, registry.retention
    window: t.Any = None if scan_limit is None else records.next_scan_window(scan_limit)
    purge = purge or Purge(registry, app)
    ended = purged = forgotten = 0
    expiry = registry.expiry(app)
    # For so long a request under way may still come with an old key.
    before = clock.ago(_MEMORY)
    for batch in _up_to(
        limit, records.find_expired(expiry, everywhere=limit is None, window=window)
    ):
        ended += records.expire([row.id for row in batch], expiry)
    for batch in _up_to(limit, records.find_unpurged(window=window)):
        if not purge.delete_of([(row.id, row.keys) for row in batch]):
            break
        purged += records.mark_purged([row.id for row in batch])
    left = records.find_stale_keys(before=before, lost_before=expiry.unseen_since, window=window)
    for batch in _up_to(limit, left):
        if not purge.delete(key for row in batch for key in row.keys):
            break
        records.forget([row.id for row in batch])
    for batch in _up_to(limit, records.find_rotated(window=window)):
        if not purge.delete(row.previous_store_id for row in batch if row.previous_store_id):
            break
        records.forget_previous_keys([row.id for row in batch], before=before)
    if retention is None:
        return PruneResult(ended, purged, 0)
    old = clock.ago(max(retention, _MEMORY))
    for batch in _up_to(limit, records.find_outdated(before=old, window=window)):
        # Once more: a request that was in flight may have written its entry back.
        if not purge.delete_of([(row.id, row.keys) for row in batch]):
            break
        forgotten += records.forget([row.id for row in batch])
    return PruneResult(ended, purged, forgotten)


def _up_to(limit: int | None, batches: Iterator[list[StoreEntry]]) -> Iterator[list[StoreEntry]]:
    for batch in batches:
        if limit is None:
            yield batch
            continue
        yield batch[:limit]
        limit -= len(batch)
        if limit <= 0:
            return
