"""Revokes user sessions within a transaction of the app: all of a user's, one, or all but one."""

from __future__ import annotations

import functools
import typing as t
import uuid
from collections.abc import Sequence

import sqlalchemy.orm as sa_orm
from flask import Flask

from .._app import Registry
from .._diagnosis import explaining_table
from .._records.base import Execute, RevocationOrder, RevocationResult
from .._request.context import ensure_context, find_context, is_in_request
from .after_commit import AfterCommit
from .commit_hooks import on_commit, pending_subjects


class Revocation:
    """One revocation, within its transaction. :attr:`after_commit` finishes it.

    :raises ValueError: the reason isn't text of 1 to 64 characters.
    """

    def __init__(self, registry: Registry, app: Flask, order: RevocationOrder) -> None:
        check_reason(order.reason)
        self.order = order
        self.after_commit = AfterCommit(registry, app, order)
        self._registry = registry
        #: What :meth:`execute` has done.
        self.result = RevocationResult(0, has_survivor=False, ended_by_commit=0)
        self._has_blocked = False

    @property
    def has_written(self) -> bool:
        """Whether it has written anything, so that the transaction must be committed."""
        return self.result.count > 0 or self._has_blocked

    def execute(
        self, execute: Execute, *, already: Sequence[RevocationOrder] | None = None
    ) -> None:
        """End the sessions within the transaction. The users are locked.

        :param already: see :meth:`RevocationRecords.revoke`.
        """
        registry, order = self._registry, self.order
        self.result = registry.records.revoke(execute, order, already=already)
        context = find_context(registry)
        if context is not None and context.current is not None:
            context.current.forget_row()
        count = self.result.count
        self._has_blocked = registry.adoption.after_revocation(execute, order, count)

    def run_after_commit_of(self, session: sa_orm.Session) -> None:
        """Finish once the transaction of ``session`` has committed."""
        finish = functools.partial(self.after_commit.run, self.result)
        pending = on_commit(session, finish, subject=self)
        if is_in_request(self._registry):
            ensure_context(self._registry).await_commit(pending)


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
    order = RevocationOrder(reason, user_ids, except_id=except_id, where=where)
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
    revocation = Revocation(registry, app, RevocationOrder(reason, owner, only_id=id))
    revocation.execute(session.execute, already=_orders_of(session))
    if not revocation.result.count:
        return None
    revocation.run_after_commit_of(session)
    return revocation


def _orders_of(session: sa_orm.Session) -> list[RevocationOrder]:
    """Return what the transaction of ``session`` ends already."""
    return [one.order for one in pending_subjects(session) if isinstance(one, Revocation)]
