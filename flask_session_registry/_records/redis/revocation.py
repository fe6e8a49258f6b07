"""What ends the sessions of users in the Redis records.

A transaction can't include Redis, so a revocation only counts before the commit, and ends the
sessions after it. Until then, and if the process dies in between, the fingerprint keeps out every
session that was opened with an earlier password.
"""

from __future__ import annotations

import typing as t
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import sqlalchemy as sa

from ... import _clock as clock
from ..base import Execute, PasswordChange, RevocationOrder, RevocationResult, StoreEntry
from ..protocols import RevocationRecords
from .core import ACTIVE, ATTEMPTS, RedisCore, as_it_was, stale_key_of
from .session import RedisUserSession


class RedisRevocationRecords(RedisCore, RevocationRecords):
    def owner_of(self, execute: Execute, id: uuid.UUID) -> list[t.Any]:
        session = self._get_active(id)
        return [] if session is None else [session.user_id]

    def lock_users(self, execute: Execute, user_ids: Sequence[t.Any]) -> set[t.Any]:
        # Nothing to lock: what follows the commit changes one session at a time.
        return set(user_ids)

    def revoke(
        self,
        execute: Execute,
        order: RevocationOrder,
        *,
        already: Sequence[RevocationOrder] | None = None,
    ) -> RevocationResult:
        has_survivor = order.change is not None and order.change.survivor is not None
        if already is None:
            return RevocationResult(1, has_survivor, ended_by_commit=0)
        count = sum(
            not any(_covers(earlier, session, is_open=True) for earlier in already)
            for batch in self._covered_by(order, is_open=True)
            for session in batch
        )
        return RevocationResult(count, has_survivor, ended_by_commit=0)

    def complete(
        self, order: RevocationOrder, result: RevocationResult
    ) -> Iterator[list[StoreEntry]]:
        if order.change is not None:
            # If this fails, the session lacks the new fingerprint, and ends with the others.
            self.update_credentials(order.change)
        for ids in self._ids_covered_by(order):
            ended = self._end_by(order, ids)
            if ended:
                yield ended

    def _ids_covered_by(self, order: RevocationOrder) -> Iterator[list[str]]:
        """Yield the ids of what an order ends after the commit, in batches.

        The password of the sessions is yet to be compared.
        """
        if order.only_id is not None or order.where is not None:
            for batch in self._covered_by(order, is_open=False):
                yield [session.id.hex for session in batch]
            return
        # Nothing of these sessions but their users has to be known.
        spared = None if order.except_id is None else order.except_id.hex
        for user_id in order.user_ids:
            for ids in self.redis.ids_of(user_id):
                yield [id for id in ids if id != spared]

    def _covered_by(
        self, order: RevocationOrder, *, is_open: bool
    ) -> Iterator[list[RedisUserSession]]:
        """Yield the active sessions that an order names, in batches."""
        wanted = [order.only_id] if order.only_id is not None else order.where and order.where.ids
        batches: Iterable[Iterable[RedisUserSession]]
        if wanted is None:
            batches = self.redis.of_users(order.user_ids)
        else:
            batches = [self.redis.get([*wanted]).values()]
        for batch in batches:
            yield [
                session
                for session in batch
                if session.revoked_at is None and _covers(order, session, is_open=is_open)
            ]

    def _end_by(self, order: RevocationOrder, ids: list[str]) -> list[StoreEntry]:
        unless: dict[str, t.Any] = {}
        if order.change is not None:
            # If the password has changed again since, that change decides which sessions stay
            # active.
            newest = self._newest_fingerprints(order.user_ids)
            unless = {"fingerprint": frozenset([order.change.fingerprint, *newest])}
        values = {"revocation": order.id, "revoked_reason": order.reason}
        return self._end(ids, values, unless=unless)

    def _newest_fingerprints(self, user_ids: Sequence[t.Any]) -> list[str | None]:
        try:
            known = self.users.credentials_of(user_ids)
        except sa.exc.SQLAlchemyError:
            return []
        return [stored.fingerprint for stored in known.values()]

    def mark_revocation_purged(
        self, order: RevocationOrder, ids: Sequence[uuid.UUID], *, is_last: bool, is_only: bool
    ) -> None:
        self.mark_purged(ids)

    def sync_fingerprints(
        self, execute: Execute, user_id: t.Any, *, before: str | None, after: str | None
    ) -> Callable[[], None]:
        # Not a 'partial', whose repr shows the fingerprints.
        def sync() -> None:
            where = {**ACTIVE, "fingerprint": before}
            for ids in self.redis.ids_of(user_id):
                self._update(ids, {"fingerprint": after}, where=where)

        return sync

    def update_credentials(self, change: PasswordChange) -> None:
        """Give the survivor of a password change the new fingerprint and the next generation."""
        if change.survivor is None:
            return
        held, next_key = change.survivor.held, change.survivor.next_store_id
        for _ in range(ATTEMPTS):
            session = self.get(change.survivor.id)
            # In any generation that its request doesn't hold, it belongs to another request.
            if session is None or (session.generation, session.fingerprint) not in held:
                return
            values = {
                "fingerprint": change.fingerprint,
                "generation": session.generation + 1,
                "rotated_at": clock.now(),
                # Its entry is dead from here on; the response writes the next one.
                "store_id": next_key,
            }
            leaves = None if session.store_id == next_key else stale_key_of(session)
            # Only as it was: another key that it has by now would get no tombstone.
            if self._change(session, values, where=as_it_was(session), leaves=leaves):
                held.append((session.generation + 1, change.fingerprint))
                return


def _covers(order: RevocationOrder, session: RedisUserSession, *, is_open: bool) -> bool:
    """Return whether a revocation ends an active session.

    :param is_open: whether the transaction of the revocation has not committed yet.
    """
    return (
        session.user_id in order.user_ids
        and session.id != order.except_id
        and (order.only_id is None or session.id == order.only_id)
        and (order.where is None or order.where.covers(session))
        and (order.change is None or _is_ended_by(order.change, session, is_open=is_open))
    )


def _is_ended_by(change: PasswordChange, session: RedisUserSession, *, is_open: bool) -> bool:
    survives = change.survivor is not None and session.id == change.survivor.id
    return session.fingerprint != change.fingerprint and not (is_open and survives)
