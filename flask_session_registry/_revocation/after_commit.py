"""What follows the commit of a revocation: it is completed, purged from the store and signalled.

Where the session store is down, the entries stay pending: :class:`~.._store.purge.Purge` logs it
and sends ``purge_failed``, and a prune deletes them later. The sessions are revoked regardless.
"""

from __future__ import annotations

import contextlib
import typing as t
import uuid
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from flask import Flask, current_app, has_app_context

from .. import signals
from .._app import Registry
from .._diagnosis import report
from .._log import log
from .._records.base import (
    UNAVAILABLE,
    RevocationOrder,
    RevocationResult,
    StoreEntry,
    SurvivingSession,
)
from .._request.sync import sync_current
from .._store.purge import Purge
from ..errors import RecordsError


class AfterCommit:
    """What follows the commit of one revocation, and how far it has come."""

    def __init__(self, registry: Registry, app: Flask, order: RevocationOrder) -> None:
        self._registry = registry
        self._app = app
        self._order = order
        #: How many sessions have ended by now. Each is counted by one revocation only.
        self.ended = 0
        #: How many store entries were deleted, and how many could not be.
        self.purged = 0
        self.unpurged = 0

    def run(self, result: RevocationResult) -> None:
        """Complete the revocation.

        :param result: what its transaction has done.
        :raises RecordsError: the records in Redis could not be written, so some sessions have not
            ended. Never for a password change: the new fingerprint keeps them out anyway.
        """
        if not (result.count or result.has_survivor):
            return
        try:
            with app_context(self._app):
                self._run(result)
        except sa.exc.SQLAlchemyError as error:
            report("What had to follow a committed revocation failed.", error)

    def _run(self, result: RevocationResult) -> None:
        registry, order = self._registry, self._order
        self.ended = result.ended_by_commit
        if not registry.records.updates_after_commit:
            sync_current(registry, order.user_ids, committed=self._survivor(result))
        purge, purged_ids = Purge(registry, self._app), list[uuid.UUID]()
        try:
            for batch in registry.records.complete(order, result):
                if not result.ended_by_commit:
                    self.ended += len(batch)
                if self._purge(purge, batch):
                    self._mark_purged(result, purged_ids, is_last=False)
                    purged_ids = [row.id for row in batch]
                self._notify(batch)
        except RecordsError as error:
            if order.change is None:
                raise
            log.warning(
                "The work after a password change could not be done (%s). The sessions are revoked"
                " regardless; the one it was changed in may have to sign in again.",
                type(error.__context__).__name__,
            )
        finally:
            self._mark_purged(result, purged_ids, is_last=True)
            if registry.records.updates_after_commit:
                sync_current(registry, order.user_ids)

    def _survivor(self, result: RevocationResult) -> SurvivingSession | None:
        """Return the session that stays active, if the commit is known to have kept its row."""
        change = self._order.change
        return change.survivor if change and result.has_survivor and result.is_kept() else None

    def _purge(self, purge: Purge, batch: Sequence[StoreEntry]) -> bool:
        """Delete store entries; return whether there were any, and all are gone."""
        stored = sum(bool(row.keys) for row in batch)
        is_purged = purge.delete_entries_of(batch)
        if is_purged:
            self.purged += stored
        else:
            self.unpurged += stored
        return is_purged and stored > 0

    def _mark_purged(
        self, result: RevocationResult, ids: Sequence[uuid.UUID], *, is_last: bool
    ) -> None:
        if not ids:
            return
        try:
            self._registry.records.mark_revocation_purged(
                self._order, ids, is_last=is_last, is_only=result.count == 1
            )
        except UNAVAILABLE as error:
            report("Could not mark store entries as purged.", error)

    def _notify(self, batch: Sequence[StoreEntry]) -> None:
        """Send the signal, once for each user."""
        owned: dict[t.Any, list[uuid.UUID]] = {}
        for row in batch:
            # The row of a deleted user might no longer name the user.
            is_deleted = self._order.users_are_deleted
            owner = self._order.user_ids[0] if is_deleted else row.user_id
            owned.setdefault(owner, []).append(row.id)
        for user_id, ids in owned.items():
            signals.send(
                signals.session_revoked,
                self._app,
                ids=tuple(ids),
                user_id=user_id,
                reason=self._order.reason,
            )


@contextlib.contextmanager
def app_context(app: Flask) -> Iterator[None]:
    """Push the app's context, where a transaction is committed outside of it."""
    if has_app_context() and current_app == app:
        yield
    else:
        with app.app_context():
            yield
