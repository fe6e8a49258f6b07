"""What is known of user sessions, wherever they are kept.

They are kept in a table of the app's own database (:mod:`table`), or elsewhere (:mod:`elsewhere`).
Both have the same verbs.
"""

from __future__ import annotations

import datetime as dt
import secrets
import typing as t
import uuid
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa

from .. import _clock as clock
from ..errors import RecordsError

#: How many user sessions are purged and told of at a time.
BATCH = 1000

#: Why a record of nobody has ended that holds the key of an entry which a session has left behind.
STALE_KEY = "rotated"

#: How many such records one session has at most, of entries that its browser may come back to.
LINKED = 8

#: Times of a session that a touch corrects if they are in the future.
NOT_IN_THE_FUTURE = ("created_at", "authenticated_at")

#: What the verbs raise where neither yes nor no can be said.
UNAVAILABLE = (sa.exc.SQLAlchemyError, RecordsError)

Execute = Callable[..., t.Any]


class StoreEntries(t.NamedTuple):
    """A user session that may have entries in the session store."""

    id: uuid.UUID
    user_id: t.Any
    #: The key of its entry, and the one from before its last rotation.
    store_id: str | None
    previous_store_id: str | None

    def __repr__(self) -> str:
        return f"Stored(id={self.id!r}, user_id={self.user_id!r})"

    @property
    def keys(self) -> tuple[str, ...]:
        if self.previous_store_id is None:
            return () if self.store_id is None else (self.store_id,)
        return tuple(key for key in self[2:] if key is not None)


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
    #: Which revocation has ended it; ``None`` if none has.
    revocation: uuid.UUID | None = None


class PageEnd(t.NamedTuple):
    """Where one page of sessions ends, most recently seen first, and the next one begins."""

    last_seen_at: dt.datetime
    id: uuid.UUID


class Limit(t.NamedTuple):
    """How many active sessions a user may have."""

    most: int
    #: Whether a login beyond that is refused; else the oldest session ends for it.
    rejects: bool


class LimitReachedError(Exception):
    """A user has as many active sessions as they may have."""


class SupersededError(Exception):
    """The session that a login takes the place of has ended, or gone on, in another request."""


class Replaced(t.NamedTuple):
    """A session that a login takes the place of."""

    id: uuid.UUID
    #: The one that the login depends on: in another one it is somebody else's by now. ``None``:
    #: nothing depends on it.
    generation: int | None
    #: Whether it is of the user who signs in: as long as it stands, so does the login.
    vouches: bool


class Left(t.NamedTuple):
    """A key that a session has left behind, and may come back to."""

    #: Of the record that keeps it.
    id: uuid.UUID
    store_id: str | None
    left_at: dt.datetime

    def __repr__(self) -> str:
        return f"Left(id={self.id!r}, left_at={self.left_at!r})"


class SurvivingSession(t.NamedTuple):
    """The session that goes on where its user's others end."""

    id: uuid.UUID
    #: The generations that its request knows it by, each with the fingerprint that belongs to it,
    #: the last one last. It gets the one after that in which it stands, which is added here.
    held: list[tuple[int, str | None]]
    #: Whether its session is an entry in a store.
    has_entry: bool

    def __repr__(self) -> str:
        return f"Renewal(id={self.id!r})"


class PasswordChange(t.NamedTuple):
    """What a transaction has done to a user's password."""

    #: Of the new one.
    fingerprint: str | None
    #: The session that it was done in; ``None``: none that goes on.
    current: SurvivingSession | None

    def __repr__(self) -> str:
        return f"PasswordChange(current={self.current!r})"


class Ending(t.Protocol):
    """User sessions that end when a transaction commits."""

    #: How many, as far as that is known before the commit.
    count: int
    #: Whether the session that the password was changed in goes on.
    is_renewed: bool
    #: Whether the commit ends them; else :meth:`carry_out` does.
    is_done_by_commit: bool

    def execute_after_commit(self) -> Iterator[list[StoreEntries]]:
        """After the commit: which have ended, in batches."""

    def mark_purged(self, batch: list[StoreEntries]) -> None:
        """Take down that the entries of a batch are gone from the session store."""

    def close(self) -> None:
        """Take down what the batches before have left."""


def new_id(milliseconds: int | None = None) -> uuid.UUID:
    """An id for a new user session: a UUID of version 7, with 74 random bits (RFC 9562, 5.7).

    It begins with the time, so that rows lie in the order of their ids: a login writes where the
    last one has written, and a prune reads neighbours, however many rows there are.

    :param milliseconds: since the epoch; by default, until now.
    """
    if milliseconds is None:
        milliseconds = (clock.now() - clock.EPOCH) // dt.timedelta(milliseconds=1)
    version, variant = 0x7 << 76, 0b10 << 62
    chance = secrets.randbits(12) << 64 | secrets.randbits(62)
    return uuid.UUID(int=milliseconds << 80 | version | variant | chance)


def link_ids(id: uuid.UUID) -> list[uuid.UUID]:
    """The ids of the records that keep what a session has left behind, and may come back to.

    Always the same ones: so they are found by their keys, and there are never more.
    """
    return [uuid.uuid5(id, str(number)) for number in range(LINKED)]


def choose_link(
    ids: Sequence[uuid.UUID], kept: Sequence[Left], *, left: str, used: str
) -> tuple[uuid.UUID, str | None]:
    """Which of these records is to keep one more key; the key that loses its place for it.

    :param kept: those that there are.
    :param left: the key that is left behind.
    :param used: the one that the session has from now on, and that needs no record.
    """
    for one in kept:
        if one.store_id in (left, used):
            return one.id, None
    taken = {one.id for one in kept}
    for id in ids:
        if id not in taken:
            return id, None
    oldest = min(kept, key=lambda one: one.left_at)
    return oldest.id, oldest.store_id


def as_id(value: object) -> uuid.UUID | None:
    """The id of a user session that is a UUID already, or text; ``None``: it is no such id."""
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(t.cast(str, value))
    except (AttributeError, TypeError, ValueError):
        return None
