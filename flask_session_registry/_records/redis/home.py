"""Where user sessions are kept that are not rows of the app's own database.

A home keeps what it is given, and decides nothing: it knows neither passwords nor timeouts, neither
requests nor transactions. :class:`~flask_session_registry.redis_home.RedisHome` is one. For another
one write a class with the nine verbs of :class:`Home`, and give it to the setting ``RECORDS``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence

from ..base import StoreEntry


@dataclasses.dataclass
class UserSession:
    """One signed-in browser; what the attributes mean says :class:`UserSessionMixin`.

    All times are aware UTC, with microseconds. A copy: changing it changes nothing at home.
    """

    id: uuid.UUID
    created_at: dt.datetime
    last_seen_at: dt.datetime
    authenticated_at: dt.datetime
    #: The user's key: a whole number, text or a UUID; ``None``: it is nobody's.
    user_id: t.Any = None
    generation: int = 0
    store_id: str | None = dataclasses.field(default=None, repr=False)
    previous_store_id: str | None = dataclasses.field(default=None, repr=False)
    ip_address: str | None = None
    user_agent: str | None = None
    rotated_at: dt.datetime | None = None
    remember_until: dt.datetime | None = None
    fingerprint: str | None = dataclasses.field(default=None, repr=False)
    revoked_at: dt.datetime | None = None
    revoked_reason: str | None = None
    revocation: uuid.UUID | None = None
    purged_at: dt.datetime | None = None
    #: When housekeeping should look at it. Some time later a home may drop it by itself.
    due_at: dt.datetime | None = None


#: The names of all attributes.
FIELDS = tuple(field.name for field in dataclasses.fields(UserSession))


@t.runtime_checkable
class Home(t.Protocol):
    """A place where user sessions are kept.

    What a verb has done, every other process sees from then on: no reading from replicas. Each may
    raise whatever its client raises where it can't be asked; then nobody is signed in, and the
    caller is told. What is lost is signed out. Ids that are not there are left out, never an error.
    """

    def assign_id(self, id: uuid.UUID, user_id: t.Any) -> uuid.UUID:
        """The id under which a new session of this user is to be added, made of this random one.

        A home that finds its way by the id may put something into it; others return it is.
        """

    def add(self, session: UserSession) -> None:
        """Keep a session. One that has ended already, and is nobody's, only has a key to tell."""

    def get(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, UserSession]:
        """The sessions with these ids, in one round trip if there is one id: the hot path."""

    def update(
        self,
        ids: Sequence[uuid.UUID],
        values: Mapping[str, t.Any],
        *,
        where: Mapping[str, t.Any],
    ) -> list[StoreEntry]:
        """Give those of these sessions new values that have all the values of ``where``.

        Nothing comes between the comparison and the writing of one session. At most a thousand.

        :returns: of those that were changed, whose they are and their keys, as they are now.
        """

    def of_users(
        self, user_ids: Collection[t.Any], *, ended: bool = False
    ) -> Iterator[list[UserSession]]:
        """The sessions of users that have not ended, or those that have, in batches.

        Those of one user in the order in which they were added. While they are gone through, they
        may end.
        """

    def all(self) -> Iterator[list[UserSession]]:
        """All sessions, ended ones too, in batches and in any order."""

    def due(self, by: dt.datetime) -> Iterator[list[UserSession]]:
        """The sessions whose ``due_at`` is this moment or before, in batches.

        While they are gone through, they may change, or be removed.
        """

    def with_key(self, store_id: str) -> uuid.UUID | None:
        """The session that was last given this key of an entry, as its own; ``None``: unknown.

        It decides nothing, and may be forgotten, or come a moment late.
        """

    def remove(self, ids: Sequence[uuid.UUID]) -> int:
        """Forget those of these sessions that have ended; how many there were."""


def is_home(value: object) -> bool:
    """Whether this has all verbs of a home."""
    return isinstance(value, Home) and not isinstance(value, type)
