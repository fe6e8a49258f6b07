"""What the rest of the package asks of the records: one protocol for each kind of caller.

:class:`~flask_session_registry._records.sql.SQLRecords` implements them on a table of the app's own
database, :class:`~flask_session_registry._records.redis.RedisRecords` on Redis. Callers use the
protocols; only set-up, the diagnosis and the doctor know which one an app uses.

Methods that take ``execute`` belong to a transaction of the app: they neither commit nor roll back.
All others use short transactions of their own, or none. Where the records can't be read or
written, every method raises one of :data:`~flask_session_registry._records.base.UNAVAILABLE`.
"""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence

import sqlalchemy.orm as sa_orm

from .._ops.filters import Filter
from .._revocation.fingerprint import CheckedCredential
from ..models import UserSessionRecord
from .base import (
    End,
    Execute,
    Limit,
    LoadedSession,
    PageEnd,
    Replaced,
    RevocationOrder,
    RevocationResult,
    SessionSummary,
    StaleKey,
    StoreEntry,
)
from .expiry import Expiry


class CheckRecords(t.Protocol):
    """What the session check asks on each request."""

    #: Whether a password change reaches the surviving session a moment after its commit, so that
    #: an outdated fingerprint may belong to a browser that stays signed in.
    updates_after_commit: bool

    def load(
        self, id: str, user_key: object = None, *, refresh: bool = False
    ) -> LoadedSession | None:
        """Load a user session together with its user, in one statement of the app's session.

        The app's session knows the user from then on: a user loader that asks for the primary key
        runs no statement. ``None`` if the session is unknown or has ended, or its user is gone.

        :param id: in hexadecimal.
        :param user_key: the primary key of the expected user, if known. It is only a guess.
        :param refresh: overwrite a user that the app's session has loaded before.
        """

    def find_end(self, id: uuid.UUID) -> End | None:
        """Return why and when a session ended; ``None`` if it hasn't, or is unknown."""

    def find_end_by_store_key(self, store_id: str) -> tuple[End | None, uuid.UUID | None]:
        """Return how the session ended that has, or had, this store key; and its id.

        The reason is :data:`ROTATED` if the session continues under another key. The end is
        ``None`` if it is active under this one; both are ``None`` if the key is unknown.
        """

    def can_be_restored(self, id: uuid.UUID, now: dt.datetime) -> bool:
        """Return whether a "remember me" cookie could still restore this session."""

    def was_rotated_within(self, id: uuid.UUID, duration: dt.timedelta) -> bool:
        """Return whether the session's id was changed within this time."""


class LoginRecords(t.Protocol):
    """What a login asks: its row, the sessions that end for it, whether the device is known."""

    def assign_id(self, id: uuid.UUID, user_id: t.Any) -> uuid.UUID:
        """Return the id for a new session of this user, derived from a fresh one."""

    def add(
        self,
        values: dict[str, t.Any],
        *,
        evidence: CheckedCredential,
        replaces: Sequence[Replaced],
        limit: Limit | None,
        expiry: Expiry,
    ) -> list[StoreEntry] | None:
        """Add a session and end those it replaces.

        If the credential that was checked is no longer the stored one, the session is dead on
        arrival.

        :returns: the sessions evicted because of the limit; ``None`` if there is no such user.
        :raises LimitReachedError: the limit refuses the new session.
        :raises SupersededError: a session that the login depends on has ended or been rotated.
        """

    def find_by_store_key(self, store_id: str, user_id: t.Any) -> list[StoreEntry]:
        """Return the user's active sessions that have, or had, this store key."""

    def find_never_resumed(
        self, user_id: t.Any, *, ip_address: str | None, user_agent: str | None, skip: int
    ) -> list[StoreEntry]:
        """Return active sessions that were never seen after their login, newest first.

        :param ip_address: only those from this address, with this user agent.
        :param skip: the number of the newest to leave out.
        """

    def was_seen(self, user_id: t.Any, *, ip_address: str | None, user_agent: str | None) -> bool:
        """Return whether a kept session of this user has this address and user agent.

        Sessions ended by a revocation don't count: they may have been a stranger's. Unknown
        values match nothing.
        """


class OwnSessionRecords(t.Protocol):
    """What a request does to its own session: rotation, touch, logout."""

    def rotate(
        self,
        id: uuid.UUID,
        *,
        user_id: t.Any,
        generation: int,
        becomes: int,
        store_id: str | None,
        is_confirmed: bool = False,
    ) -> list[str] | None:
        """Move an active session to another store key, another generation, or both.

        :param generation: the expected generation.
        :param is_confirmed: whether the user has just given the password again.
        :returns: stale keys that had to be given up; ``None`` if the session isn't active in that
            generation.
        """

    def touch(self, id: uuid.UUID, values: dict[str, t.Any]) -> None:
        """Record when, where and with what an active session was last seen.

        It never waits for a lock: the next request tries again. Times in the future, written by a
        clock that was ahead, are corrected.
        """

    def end(self, id: uuid.UUID, reason: str) -> bool:
        """End one session; return ``False`` if it had ended before."""

    def current_state(self, id: uuid.UUID) -> tuple[int, str | None] | None:
        """Return generation and fingerprint as committed now; ``None`` if it has ended."""

    def current_generation(self, id: uuid.UUID, *, skip_locked: bool = False) -> int | None:
        """Return the generation as committed now, also where only one connection is available.

        :param skip_locked: return ``None`` for a locked row instead of rolling the app's
            transaction back to read what is committed.
        """

    def find_end_after_commit(self, id: uuid.UUID) -> End | None:
        """Like :meth:`CheckRecords.find_end`, while the app's transaction is just ending."""


class RevocationRecords(t.Protocol):
    """What ends the sessions of users within a transaction of the app, and after its commit."""

    def owner_of(self, execute: Execute, id: uuid.UUID) -> list[t.Any]:
        """Return the user id of an active session, in a list; empty if there is none."""

    def lock_users(self, execute: Execute, user_ids: Sequence[t.Any]) -> set[t.Any]:
        """Lock the rows of users for the rest of the transaction; return which were locked.

        Every transaction that adds a session, or writes several, locks the user first; otherwise
        logins and password changes of one user deadlock.
        """

    def revoke(
        self,
        execute: Execute,
        order: RevocationOrder,
        *,
        already: Sequence[RevocationOrder] | None = None,
    ) -> RevocationResult:
        """End what an order names, when the transaction commits.

        :param already: what the transaction ends by earlier orders, not to be counted again;
            ``None`` if the count doesn't matter.
        """

    def complete(
        self, order: RevocationOrder, result: RevocationResult
    ) -> Iterator[list[StoreEntry]]:
        """After the commit: finish the revocation; yield the sessions it has ended, in batches.

        :param result: what :meth:`revoke` has returned.
        """

    def mark_revocation_purged(
        self, order: RevocationOrder, ids: Sequence[uuid.UUID], *, is_last: bool, is_only: bool
    ) -> None:
        """Record that the store entries of these sessions are deleted.

        :param ids: one batch that :meth:`complete` has yielded. No batch before it is left out.
        :param is_last: whether it is the last one. Then all can be marked at once.
        :param is_only: whether the revocation has ended only one session.
        """

    def sync_fingerprints(
        self, execute: Execute, user_id: t.Any, *, before: str | None, after: str | None
    ) -> Callable[[], None]:
        """Give sessions with one fingerprint another, for a new hash of the same password.

        :returns: what remains to be done after the commit.
        """


class ListingRecords(t.Protocol):
    """What shows the sessions of one user."""

    def get(self, id: uuid.UUID) -> UserSessionRecord | None:
        """Return a session, ended or not; ``None`` if it is unknown."""

    def active(
        self, session: sa_orm.Session, user_id: t.Any, *, expiry: Expiry
    ) -> list[UserSessionRecord]:
        """Return the active sessions of a user, most recently seen first."""

    def list_all(self, session: sa_orm.Session, user_id: t.Any) -> list[UserSessionRecord]:
        """Return all kept sessions of a user, ended ones too, most recently seen first."""

    def list_others(
        self,
        current: UserSessionRecord,
        *,
        expiry: Expiry,
        after: PageEnd | None,
        limit: int,
    ) -> list[UserSessionRecord]:
        """Return a page of the other active sessions of the user, most recently seen first.

        :param current: a session that the check has just accepted.
        :param after: the last session of the page before.
        """

    def recently_ended(self, user_id: t.Any, *, limit: int) -> list[UserSessionRecord]:
        """Return the sessions of a user that ended last, the latest first."""


class MaintenanceRecords(t.Protocol):
    """What a prune does, in batches of short transactions."""

    def next_scan_window(self, size: int) -> t.Any:
        """Return the next rows to look at, for the ``window`` of the methods below.

        Each process goes round all rows, beginning at a random one. ``None`` where finding what is
        due doesn't depend on the number of rows.
        """

    def find_expired(
        self, expiry: Expiry, *, everywhere: bool = True, window: t.Any = None
    ) -> Iterator[list[StoreEntry]]:
        """Yield sessions that have expired or lost their user, and haven't ended yet.

        :param everywhere: look at all sessions, where that takes longer.
        """

    def expire(self, ids: Sequence[uuid.UUID], expiry: Expiry) -> int:
        """End those of these sessions that are still expired; return how many."""

    def find_unpurged(self, *, window: t.Any = None) -> Iterator[list[StoreEntry]]:
        """Yield ended sessions whose entries may still be in the session store."""

    def mark_purged(self, ids: Sequence[uuid.UUID], *, keys: Collection[str] | None = None) -> int:
        """Record that the entries of ended sessions are deleted; return how many were pending.

        :param keys: the deleted keys, if they were read before the sessions ended. A session that
            another request has moved to another key meanwhile stays pending.
        """

    def find_stale_keys(
        self, *, lost_before: dt.datetime, window: t.Any = None
    ) -> Iterator[list[StaleKey]]:
        """Yield store keys that sessions have left behind.

        :param lost_before: of keys that a browser may come back to, only those left before this
            moment, or whose session has ended.
        """

    def forget_stale_keys(self, ids: Sequence[uuid.UUID], *, before: dt.datetime) -> None:
        """Delete the tombstones of stale keys whose entries are deleted.

        :param before: only of those left before this moment: an in-flight request may still carry
            the others.
        """

    def find_outdated(
        self, *, before: dt.datetime, window: t.Any = None
    ) -> Iterator[list[StoreEntry]]:
        """Yield sessions that ended before this moment and have been purged."""

    def forget(self, ids: Sequence[uuid.UUID]) -> int:
        """Delete ended sessions; return how many."""


class OperatorRecords(t.Protocol):
    """What the commands and the doctor ask."""

    def count(self, user_ids: Sequence[t.Any] | None, filter: Filter) -> int:
        """Count the sessions that haven't ended and match, of these users or of everybody."""

    def matching(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> Iterator[list[SessionSummary]]:
        """Yield the sessions that :meth:`count` counts, in batches."""

    def select_for_revocation(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> Iterator[tuple[Sequence[t.Any], t.Any]]:
        """Yield pairs of user ids and a condition, which together name the matching sessions.

        The caller revokes each pair, by :attr:`RevocationOrder.where`, before it asks for the next.
        """

    def count_unpurged(self, *, ended_by: dt.datetime) -> int:
        """Count sessions ended by this moment whose entries may still be in the session store."""

    def count_expired(self, expiry: Expiry) -> int:
        """Count sessions that have expired and haven't ended yet."""


class Records(
    CheckRecords,
    OwnSessionRecords,
    LoginRecords,
    RevocationRecords,
    ListingRecords,
    MaintenanceRecords,
    OperatorRecords,
    t.Protocol,
):
    """The records of one app: everything that any caller asks."""
