"""Ends user sessions within a transaction of the app, and finishes after its commit."""

from __future__ import annotations

import contextlib
import typing as t
import uuid
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, current_app, has_app_context

from .. import signals
from .._app import Registry
from .._diagnosis import explaining_table, report
from .._log import log
from .._records.base import (
    UNAVAILABLE,
    Execute,
    RevocationOrder,
    RevocationResult,
    StoreEntry,
)
from .._request.context import find_context, get_context, is_in_request
from .._request.sync import sync_current
from .._store.purge import Purge
from ..errors import RecordsError
from .after_commit import on_commit, pending_subjects


class Revocation:
    """One revocation: within its transaction, then after the commit.

    :raises ValueError: the reason isn't text of 1 to 64 characters.
    """

    def __init__(self, registry: Registry, app: Flask, order: RevocationOrder) -> None:
        check_reason(order.reason)
        self.order = order
        #: How many sessions have ended by now. Each is counted by one revocation only.
        self.ended = 0
        #: How many store entries were deleted after the commit, and how many could not be.
        self.purged = 0
        self.unpurged = 0
        self._registry = registry
        self._app = app
        self._result = RevocationResult(0, has_survivor=False, ended_by_commit=0)
        self._has_blocked = False

    @property
    def count(self) -> int:
        """How many sessions it ends, as known before the commit."""
        return self._result.count

    @property
    def has_survivor(self) -> bool:
        """Whether the session that a password was changed in goes on."""
        return self._result.has_survivor

    @property
    def has_written(self) -> bool:
        """Whether the transaction must not be committed by mistake: it ends something."""
        return self.count > 0 or self._has_blocked

    def execute(
        self, execute: Execute, *, already: Sequence[RevocationOrder] | None = None
    ) -> None:
        """End the sessions within the transaction. The users are locked.

        :param already: see :meth:`RevocationRecords.revoke`.
        """
        registry, order = self._registry, self.order
        self._result = registry.records.revoke(execute, order, already=already)
        context = find_context(registry)
        if context is not None and context.current is not None:
            context.current.forget_row()
        self._has_blocked = registry.adoption.after_revocation(execute, order, self.count)

    def run_after_commit_of(self, session: sa_orm.Session) -> None:
        """Finish once the transaction of ``session`` has committed."""
        pending = on_commit(session, self._after_commit, subject=self)
        if is_in_request(self._registry):
            get_context(self._registry).await_commit(pending)

    def _after_commit(self) -> None:
        if not (self.count or self.has_survivor):
            return
        try:
            with app_context(self._app):
                self._complete()
        except sa.exc.SQLAlchemyError as error:
            report("What had to follow a committed revocation failed.", error)

    def _complete(self) -> None:
        registry, order = self._registry, self.order
        self.ended = self._result.ended_by_commit
        if not registry.records.updates_after_commit:
            sync_current(registry, order.user_ids)
        purge, purged_ids = Purge(registry, self._app), list[uuid.UUID]()
        try:
            for batch in registry.records.complete(order):
                if not self._result.ended_by_commit:
                    self.ended += len(batch)
                if self._purge(purge, batch):
                    purged_ids += [row.id for row in batch]
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
            self._mark_purged(purged_ids)
            if registry.records.updates_after_commit:
                sync_current(registry, order.user_ids)

    def _purge(self, purge: Purge, batch: Sequence[StoreEntry]) -> bool:
        """Delete store entries; return whether there were any, and all are gone."""
        stored = sum(bool(row.keys) for row in batch)
        is_purged = purge.delete_of([(row.id, row.keys) for row in batch])
        if is_purged:
            self.purged += stored
        else:
            self.unpurged += stored
        return is_purged and stored > 0

    def _mark_purged(self, ids: Sequence[uuid.UUID]) -> None:
        if not ids:
            return
        try:
            self._registry.records.mark_revocation_purged(self.order, ids)
        except UNAVAILABLE as error:
            report("Could not mark store entries as purged.", error)

    def _notify(self, batch: Sequence[StoreEntry]) -> None:
        """Send the signal, once for each user."""
        owned: dict[t.Any, list[uuid.UUID]] = {}
        for row in batch:
            # The row of a deleted user might no longer name the user.
            is_deleted = self.order.users_are_deleted
            owner = self.order.user_ids[0] if is_deleted else row.user_id
            owned.setdefault(owner, []).append(row.id)
        for user_id, ids in owned.items():
            signals.send(
                signals.session_revoked,
                self._app,
                ids=tuple(ids),
                user_id=user_id,
                reason=self.order.reason,
            )


def check_reason(reason: str) -> str:
    """Return the reason, if it fits into the row.

    :raises ValueError: it isn't text of 1 to 64 characters.
    """
    if not isinstance(reason, str) or not 1 <= len(reason) <= 64:
        raise ValueError(f"'reason' is {reason!r}. It must be text of 1 to 64 characters.")
    return reason


@explaining_table()
def revoke_users(
    registry: Registry,
    app: Flask,
    user_ids: Sequence[t.Any],
    *,
    reason: str,
    session: sa_orm.Session,
    except_id: uuid.UUID | None = None,
    where: t.Any = None,
) -> Revocation:
    """End the sessions of users, within the transaction of ``session``.

    :param where: a condition made by :meth:`OperatorRecords.select_for_revocation`.
    """
    order = RevocationOrder(uuid.uuid4(), reason, user_ids, except_id=except_id, where=where)
    revocation = Revocation(registry, app, order)
    registry.records.lock_users(session.execute, user_ids)
    registry.adoption.before_change(session.execute, user_ids)
    revocation.execute(session.execute, already=_orders_of(session))
    if revocation.has_written:
        revocation.run_after_commit_of(session)
    return revocation


@explaining_table()
def revoke_one(
    registry: Registry,
    app: Flask,
    id: uuid.UUID,
    *,
    user_id: t.Any,
    reason: str,
    session: sa_orm.Session,
) -> Revocation | None:
    """End one session, within the transaction of ``session``; return ``None`` if none ends.

    :param user_id: the owner it must have; ``None`` for any.
    """
    owner = registry.records.owner_of(session.execute, id)
    if not owner or (user_id is not None and owner[0] != user_id):
        return None
    registry.records.lock_users(session.execute, owner)
    registry.adoption.before_change(session.execute, owner)
    revocation = Revocation(registry, app, RevocationOrder(uuid.uuid4(), reason, owner, only_id=id))
    revocation.execute(session.execute, already=_orders_of(session))
    if not revocation.count:
        return None
    revocation.run_after_commit_of(session)
    return revocation


def _orders_of(session: sa_orm.Session) -> list[RevocationOrder]:
    """Return what the transaction of ``session`` ends already."""
    return [one.order for one in pending_subjects(session) if isinstance(one, Revocation)]


@contextlib.contextmanager
def app_context(app: Flask) -> Iterator[None]:
    """Push the app's context, where a transaction is committed outside of it."""
    if has_app_context() and current_app == app:
        yield
    else:
        with app.app_context():
            yield
