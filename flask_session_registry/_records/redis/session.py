"""What is stored in Redis: user sessions, and the keys they have left behind."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t
import uuid

from .. import base
from ..base import SessionSummary, StoreEntry
from ..expiry import Expiry


@dataclasses.dataclass
class RedisUserSession:
    """A copy of one user session, with the attributes of :class:`UserSessionRecord`.

    All times are aware UTC, with microseconds.
    """

    id: uuid.UUID
    #: The user's key: an integer, text or a UUID.
    user_id: t.Any
    created_at: dt.datetime
    last_seen_at: dt.datetime
    authenticated_at: dt.datetime
    generation: int = 0
    store_id: str | None = dataclasses.field(default=None, repr=False)
    ip_address: str | None = None
    user_agent: str | None = None
    rotated_at: dt.datetime | None = None
    remember_until: dt.datetime | None = None
    fingerprint: str | None = dataclasses.field(default=None, repr=False)
    revoked_at: dt.datetime | None = None
    revoked_reason: str | None = None
    revocation: uuid.UUID | None = None
    purged_at: dt.datetime | None = None
    #: When maintenance looks at it next. Redis drops it some time after that.
    due_at: dt.datetime | None = None

    @property
    def entry(self) -> StoreEntry:
        return StoreEntry(self.id, self.user_id, self.store_id)

    @property
    def summary(self) -> SessionSummary:
        return SessionSummary._make(getattr(self, name) for name in SessionSummary._fields)

    @property
    def end(self) -> base.End | None:
        """How the session ended; ``None`` if it is active."""
        if self.revoked_reason is None or self.revoked_at is None:
            return None
        return base.End(self.revoked_reason, self.revoked_at, self.revocation)

    @property
    def is_unpurged(self) -> bool:
        """Whether the session has ended and its entry may still be in the session store."""
        return self.revoked_at is not None and self.purged_at is None and bool(self.entry.keys)

    def has_ended_by(self, moment: dt.datetime) -> bool:
        return self.revoked_at is not None and self.revoked_at <= moment

    def has_expired(self, expiry: Expiry) -> bool:
        return expiry.has_expired(self.last_seen_at, self.created_at, self.remember_until)


@dataclasses.dataclass(frozen=True)
class Tombstone:
    """A store key that a user session has left behind, until its entry is deleted."""

    id: uuid.UUID
    user_session_id: uuid.UUID
    store_id: str = dataclasses.field(repr=False)
    left_at: dt.datetime
    #: Whether the browser may come back to the key.
    is_linked: bool = False


class KeyHolder(t.NamedTuple):
    """The user session that has, or had, a store key."""

    user_session_id: uuid.UUID
    #: When it left the key behind; ``None`` if it still has it, or that is unknown.
    left_at: dt.datetime | None = None


#: The names of all attributes of a user session.
FIELDS = tuple(field.name for field in dataclasses.fields(RedisUserSession))
