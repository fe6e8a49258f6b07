"""The values that callers and records exchange, their batches, and the ids of user sessions."""

from __future__ import annotations

import dataclasses
import datetime as dt
import secrets
import typing as t
import uuid
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa

from .. import _clock as clock
from ..errors import RecordsError

#: The number of user sessions that are purged, and named by one signal, at a time.
BATCH = 1000

#: How long an in-flight request may still carry an id or a store key that has changed since.
IN_FLIGHT_GRACE = dt.timedelta(minutes=1)

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

_Row = t.TypeVar("_Row")


# -- values --------------------------------------------------------------------------------------


class StoreEntry(t.NamedTuple):
    """The entry of a user session in the session store."""

    #: Of the user session.
    id: uuid.UUID
    user_id: t.Any
    #: The key of the entry; ``None`` if there is none, because the session is a signed cookie.
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
    user_id: t.Any
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

    maximum: int
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
    """The session in which a password is changed: it stays active when the user's others
    end."""

    id: uuid.UUID
    #: The generations in which its request knows the session, oldest first, each with its
    #: fingerprint. Updating the credentials appends the new one.
    held: list[tuple[int, str | None]]
    #: The key of its store entry, as its request knows it.
    store_id: str | None
    #: The key of the entry that the response to its request writes; ``None`` if it writes none.
    next_store_id: str | None = None

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
    #: Kept in each row that it ends.
    id: uuid.UUID = dataclasses.field(default_factory=uuid.uuid4)


@dataclasses.dataclass(frozen=True)
class RevocationResult:
    """What :meth:`RevocationRecords.revoke` has done within the transaction."""

    #: How many sessions the revocation ends, as known before the commit.
    count: int
    #: Whether the session that the password was changed in stays active.
    has_survivor: bool
    #: How many of them the commit itself ends; the others end by :meth:`complete`.
    ended_by_commit: int
    #: The sessions that the commit ends, where the statement has returned them.
    entries: Sequence[StoreEntry] | None = dataclasses.field(default=None, repr=False)
    #: After the commit: returns whether it has kept exactly what the revocation has written. If
    #: not, or if that can't be known, the records must be read.
    is_kept: Callable[[], bool] = dataclasses.field(default=lambda: False, repr=False)


# -- batches -------------------------------------------------------------------------------------


def batches_of(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Yield the rows in batches."""
    return (list(rows[n : n + BATCH]) for n in range(0, len(rows), BATCH))


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
