"""The interface to the records of user sessions: its values, and one protocol per kind of caller.

:class:`~flask_session_registry._records.sql.SQLRecords` implements it on a table of the app's own
database, :class:`~flask_session_registry._records.redis.RedisRecords` on Redis. Nothing outside
this package knows which of the two an app uses.

Methods that take ``execute`` belong to a transaction of the app: they neither commit nor roll back.
All others use short transactions of their own, or none. Where the records can't be read or
written, every method raises one of :data:`UNAVAILABLE`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import secrets
import typing as t
import uuid
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from .. import _clock as clock
from ..errors import RecordsError

if t.TYPE_CHECKING:
    from .._ops.filters import Filter
    from .._revocation.fingerprint import CheckedCredential
    from ..models import UserSessionRecord
    from .expiry import Expiry

#: The number of user sessions that are purged, and named by one signal, at a time.
BATCH = 1000

#: The reason of a request that comes with a session id from before a rotation.
ROTATED = "rotated"

#: The maximum number of stale keys kept for one session whose browser may come back to them.
MAX_LINKED_KEYS = 8

#: Times of a session that a touch corrects if they are in the future.
NOT_IN_THE_FUTURE = ("created_at", "authenticated_at")

#: Raised where the records can't be read or written.
UNAVAILABLE = (sa.exc.SQLAlchemyError, RecordsError)

#: ``Session.execute`` or ``Connection.execute``, of a transaction of the app.
Execute = Callable[..., t.Any]


# -- values --------------------------------------------------------------------------------------


class StoreEntry(t.NamedTuple):
    """A user session, with the key of its entry in the session store."""

    id: uuid.UUID
    user_id: t.Any
    #: ``None`` for a signed cookie.
    store_id: str | None

    def __repr__(self) -> str:
        return f"StoreEntry(id={self.id!r}, user_id={self.user_id!r})"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys to delete from the session store: one, or none."""
        return () if self.store_id is None else (self.store_id,)


class StaleKey(t.NamedTuple):
    """The key of a store entry that its session has left behind."""

    #: Of the tombstone that keeps it.
    id: uuid.UUID
    store_id: str

    def __repr__(self) -> str:
        return f"StaleKey(id={self.id!r})"


class LoadedSession(t.NamedTuple):
    """What the session check compares: columns of an active user session, and its user."""

    user: t.Any
    generation: int
    fingerprint: str | None
    last_seen_at: dt.datetime
    store_id: str | None
    #: ``None`` where no timeout needs it.
    created_at: dt.datetime | None
    #: The values of the password attributes.
    password: tuple[t.Any, ...]

    def __repr__(self) -> str:
        return f"LoadedSession(user={self.user!r}, generation={self.generation})"


class SessionSummary(t.NamedTuple):
    """What an operator may see of a user session."""

    id: uuid.UUID
    user_id: t.Any
    ip_address: str | None
    user_agent: str | None
    created_at: dt.datetime
    last_seen_at: dt.datetime


class End(t.NamedTuple):
    """How a user session ended."""

    reason: str
    at: dt.datetime
    #: The revocation that ended it, if any.
    revocation: uuid.UUID | None = None


class PageEnd(t.NamedTuple):
    """The last session of one page of a list, after which the next page begins."""

    last_seen_at: dt.datetime
    id: uuid.UUID


class Limit(t.NamedTuple):
    """The number of active sessions a user may have."""

    most: int
    #: Whether a login beyond the limit is refused; otherwise the oldest session ends for it.
    rejects: bool


class LimitReachedError(Exception):
    """The user has as many active sessions as allowed."""


class SupersededError(Exception):
    """The session that a login replaces has ended or been rotated by another request."""


class Replaced(t.NamedTuple):
    """A session whose place a login takes."""

    id: uuid.UUID
    #: The generation that the login depends on; in any other, the session belongs to another
    #: request by now. ``None`` if the login doesn't depend on the session.
    generation: int | None
    #: Whether the session belongs to the user who signs in, so that it proves their credential.
    vouches: bool


class SurvivingSession(t.NamedTuple):
    """The session in which a password is changed: it goes on where the user's others end."""

    id: uuid.UUID
    #: The generations in which its request knows the session, oldest first, each with its
    #: fingerprint. Updating the credentials appends the new one.
    held: list[tuple[int, str | None]]
    #: The key of its store entry, as far as its request knows.
    store_id: str | None

    def __repr__(self) -> str:
        return f"SurvivingSession(id={self.id!r})"


class PasswordChange(t.NamedTuple):
    """What a transaction has done to a user's password."""

    #: The fingerprint of the new password.
    fingerprint: str | None
    #: The session it was changed in, if any.
    survivor: SurvivingSession | None

    def __repr__(self) -> str:
        return f"PasswordChange(survivor={self.survivor!r})"


@dataclasses.dataclass(frozen=True)
class RevocationOrder:
    """Which user sessions a revocation ends, and why."""

    #: Kept in each row that it ends.
    id: uuid.UUID
    reason: str
    user_ids: Sequence[t.Any]
    #: The one session to spare.
    except_id: uuid.UUID | None = None
    #: The one session to end.
    only_id: uuid.UUID | None = None
    #: A condition made by :meth:`OperatorRecords.select_for_revocation`.
    where: t.Any = None
    #: The password was changed: its survivor gets the new fingerprint and the next generation.
    change: PasswordChange | None = None
    #: Whether the transaction deletes the users.
    users_are_deleted: bool = False


@dataclasses.dataclass(frozen=True)
class RevocationResult:
    """What :meth:`RevocationRecords.revoke` has done within the transaction."""

    #: How many sessions the revocation ends, as far as known before the commit.
    count: int
    #: Whether the session that the password was changed in goes on.
    has_survivor: bool
    #: How many of them the commit itself ends; the others end by :meth:`complete`.
    ended_by_commit: int


# -- protocols -----------------------------------------------------------------------------------


class CheckRecords(t.Protocol):
    """What the session check asks on each request."""

    #: Whether a password change reaches the surviving session a moment after its commit, so that
    #: an outdated fingerprint may belong to a browser that stays signed in.
    updates_after_commit: bool

    def load(
        self, id: uuid.UUID, user: object = None, *, refresh: bool = False
    ) -> LoadedSession | None:
        """Load a user session together with its user, in one statement of the app's session.

        The app's session knows the user from then on: a user loader that asks for the primary key
        runs no statement. ``None`` if the session is unknown or has ended, or its user is gone.

        :param user: what ``get_id()`` returns for the expected user, if known.
        :param refresh: overwrite a user that the app's session has loaded before.
        """

    def find_end(self, id: uuid.UUID) -> End | None:
        """Return why and when a session ended; ``None`` if it hasn't, or is unknown."""

    def find_end_by_store_key(self, store_id: str) -> tuple[End | None, uuid.UUID | None]:
        """Return how the session ended that has, or had, this store key; and its id.

        The reason is :data:`ROTATED` if the session goes on under another key. The end is ``None``
        if it is active under this one; both are ``None`` if the key is unknown.
        """

    def can_be_restored(self, id: uuid.UUID, now: dt.datetime) -> bool:
        """Return whether a "remember me" cookie could still restore this session."""

    def was_rotated_within(self, id: uuid.UUID, duration: dt.timedelta) -> bool:
        """Return whether the session's id was changed within this time."""


class OwnSessionRecords(t.Protocol):
    """What a request does to its own session: login, rotation, touch, logout."""

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

    def complete(self, order: RevocationOrder) -> Iterator[list[StoreEntry]]:
        """After the commit: finish the revocation; yield the sessions it has ended, in batches."""

    def mark_revocation_purged(self, order: RevocationOrder, ids: Sequence[uuid.UUID]) -> None:
        """Record that the store entries of these sessions are deleted.

        :param ids: in the order in which :meth:`complete` has yielded them, without gaps.
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

    def mark_purged(self, ids: Sequence[uuid.UUID]) -> int:
        """Record that the entries of ended sessions are deleted; return how many were pending."""

    def find_stale_keys(
        self, *, lost_before: dt.datetime, window: t.Any = None
    ) -> Iterator[list[StaleKey]]:
        """Yield store keys that sessions have left behind.

        :param lost_before: of keys that a browser may come back to, only those left before this
            moment, or whose session has ended.
        """

    def forget_stale_keys(self, ids: Sequence[uuid.UUID], *, before: dt.datetime) -> None:
        """Delete the tombstones of stale keys whose entries are deleted.

        :param before: only of those left before this moment: a request under way may still come
            with the others.
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
    RevocationRecords,
    ListingRecords,
    MaintenanceRecords,
    OperatorRecords,
    t.Protocol,
):
    """The records of one app: everything that any caller asks."""


# -- ids -----------------------------------------------------------------------------------------


#: What makes UUIDs of version 7, since Python 3.14.
_uuid7: Callable[[], uuid.UUID] | None = getattr(uuid, "uuid7", None)


def new_id(milliseconds: int | None = None) -> uuid.UUID:
    """Return an id for a new user session: a UUID of version 7 (RFC 9562, 5.7).

    It begins with the time, so that rows lie in the order of their ids: a login writes next to the
    previous one, and a prune reads neighbours, however many rows there are.

    :param milliseconds: since the epoch; by default, until now.
    """
    if milliseconds is None and _uuid7 is not None:
        return _uuid7()
    if milliseconds is None:
        milliseconds = (clock.now() - clock.EPOCH) // dt.timedelta(milliseconds=1)
    version, variant = 0x7 << 76, 0b10 << 62
    chance = secrets.randbits(12) << 64 | secrets.randbits(62)
    return uuid.UUID(int=milliseconds << 80 | version | variant | chance)


def as_id(value: object) -> uuid.UUID | None:
    """Return the id of a user session, given as a UUID or as text; ``None`` if it isn't one."""
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(t.cast(str, value))
    except (AttributeError, TypeError, ValueError):
        return None
