"""What becomes of user sessions that are over?

Nothing here decides whether a session stands. All of it may fail, and is tried again.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
import typing as t
import uuid
from collections.abc import Iterable, Iterator, Sequence

from flask import Flask

from . import clock, signals
from .diagnosis import report
from .entries import PATIENCE
from .errors import PurgeError
from .installation import Installation
from .log import log
from .records import Stored

#: For how long a request under way may still come with a key from before a rotation.
_MEMORY = dt.timedelta(minutes=1)

#: For how many seconds a command waits for the store: longer than an answer may be held up.
LONG_PATIENCE = 60.0


class PruneResult(t.NamedTuple):
    """What :meth:`SessionRegistry.prune` did, in numbers of user sessions."""

    #: Ended, because they had expired.
    ended: int
    #: Had ended, and their entries are now deleted from the session store.
    purged: int
    #: Had ended longer ago than ``RETENTION``: their rows are deleted.
    forgotten: int


class Purge:
    """Deleting the entries of ended sessions, batch after batch, until the store fails once.

    :param patience: for how many seconds a batch may take. By default all of them together may
        take as long as an answer may be held up.
    :param is_logged: whether the log is told what fails, or the caller says it.
    """

    def __init__(
        self,
        installation: Installation,
        app: Flask,
        *,
        patience: float | None = None,
        is_logged: bool = True,
    ) -> None:
        self._installation = installation
        self._app = app
        self._patience = patience
        self._level = logging.WARNING if is_logged else logging.DEBUG
        self._spent = 0.0
        #: What went wrong; ``None``: nothing yet.
        self.error: PurgeError | None = None

    def delete(self, keys: Iterable[str]) -> bool:
        """Delete entries; whether that is done. If not, it is logged."""
        if self.error is None:
            began = time.monotonic()
            try:
                self._installation.entries.delete(list(keys), patience=self._patience_left)
            except Exception as error:
                name = type(error).__name__
                self.error = PurgeError(f"Store entries could not be deleted ({name}).")
                log.log(
                    self._level,
                    "Store entries could not be deleted (%s). The sessions that they belong to are"
                    " over all the same.",
                    name,
                )
            self._spent += time.monotonic() - began
        return self.error is None

    @property
    def _patience_left(self) -> float:
        if self._patience is not None:
            return self._patience
        return max(0.0, PATIENCE - self._spent)

    def delete_of(self, ended: Sequence[tuple[uuid.UUID, Sequence[str]]]) -> bool:
        """Delete the entries of ended sessions; whether that is done. If not, it is told.

        :param ended: the ids of user sessions, with the keys of their entries.
        """
        if self.delete(key for _, keys in ended for key in keys):
            return True
        ids = tuple(id for id, keys in ended if keys)
        signals.send(signals.purge_failed, self._app, ids=ids, error=self.error)
        return False

    def purge(self, ended: Sequence[tuple[uuid.UUID, Sequence[str]]]) -> None:
        """Delete the entries that sessions had when they ended, and take that down.

        :param ended: the ids of user sessions, with the keys of their entries.
        """
        ids = [id for id, keys in ended if keys]
        if not ids or not self.delete_of(ended):
            return
        try:
            # Of a key from before a rotation the request knows nothing.
            self._installation.records.purged(ids, but_previous=True)
        except Exception as error:
            # They will be deleted once more.
            report("It could not be taken down that store entries were deleted.", error)


def prune(
    installation: Installation,
    app: Flask,
    *,
    limit: int | None = None,
    looks_at: int | None = None,
    purge: Purge | None = None,
) -> PruneResult:
    """End what has expired, purge what is pending, forget what is old.

    :param purge: deletes the entries, and knows afterwards whether that has failed. By default it
        may take as long as an answer may be held up.
    :param limit: how many user sessions at most, of each kind.
    :param looks_at: how many of them it looks at, where that takes longer the more there are; each
        time at others, until all have had their turn. By default at all.
    """
    records, retention = installation.records, installation.retention
    part: t.Any = None if looks_at is None else records.next_part(looks_at)
    purge = purge or Purge(installation, app)
    ended = purged = forgotten = 0
    expiry = installation.expiry(app)
    # For so long a request under way may still come with an old key.
    before = clock.ago(_MEMORY)
    for batch in _up_to(limit, records.expired(expiry, everywhere=limit is None, part=part)):
        ended += records.expire([row.id for row in batch], expiry)
    for batch in _up_to(limit, records.unpurged(part=part)):
        if not purge.delete_of([(row.id, row.keys) for row in batch]):
            break
        purged += records.purged([row.id for row in batch])
    left = records.left_behind(before=before, lost_before=expiry.unseen_since, part=part)
    for batch in _up_to(limit, left):
        if not purge.delete(key for row in batch for key in row.keys):
            break
        records.forget([row.id for row in batch])
    for batch in _up_to(limit, records.rotated(part=part)):
        if not purge.delete(row.previous_store_id for row in batch if row.previous_store_id):
            break
        records.forget_previous_keys([row.id for row in batch], before=before)
    if retention is None:
        return PruneResult(ended, purged, 0)
    old = clock.ago(max(retention, _MEMORY))
    for batch in _up_to(limit, records.outdated(before=old, part=part)):
        # Once more: a request that was in flight may have written its entry back.
        if not purge.delete_of([(row.id, row.keys) for row in batch]):
            break
        forgotten += records.forget([row.id for row in batch])
    return PruneResult(ended, purged, forgotten)


def _up_to(limit: int | None, batches: Iterator[list[Stored]]) -> Iterator[list[Stored]]:
    for batch in batches:
        if limit is None:
            yield batch
            continue
        yield batch[:limit]
        limit -= len(batch)
        if limit <= 0:
            return
