"""What a request knows about its own user session."""

from __future__ import annotations

import typing as t
import uuid

import sqlalchemy as sa

from .marker import marker


class CurrentSession:
    """The user session that a request is signed in by. Only its methods change it."""

    __slots__ = (
        "_awaits_commit",
        "_credentials_updated",
        "_generation",
        "_held",
        "_is_confirmed",
        "_is_restored",
        "_is_rotating",
        "_is_touch_due",
        "_row",
        "_session_id",
        "_store_id",
        "_stored",
        "id",
        "user",
    )

    def __init__(
        self,
        id: uuid.UUID,
        generation: int,
        user: t.Any,
        *,
        session_id: str | None,
        store_id: str | None,
        held: list[tuple[int, str | None]],
        is_touch_due: bool = False,
    ) -> None:
        self.id = id
        self.user = user
        self._generation = generation
        self._session_id = session_id
        self._store_id = store_id
        self._held = held
        self._is_touch_due = is_touch_due
        self._stored: list[str | None] = []
        self._row: tuple[object, object] | None = None
        self._is_rotating = False
        self._is_confirmed = False
        self._is_restored = False
        self._credentials_updated = False
        self._awaits_commit = False

    def __repr__(self) -> str:
        return f"CurrentSession(id={self.id!r}, generation={self._generation})"

    # -- what is known -------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """The generation in the row, as known to this request."""
        return self._generation

    @property
    def session_id(self) -> str | None:
        """The session id when the session was accepted; ``None`` for a signed cookie."""
        return self._session_id

    @property
    def store_id(self) -> str | None:
        """The key of the store entry that the row names."""
        return self._store_id

    @property
    def held(self) -> list[tuple[int, str | None]]:
        """The generations in which this request knows the session, each with its fingerprint.

        The one that the check accepted, then those made by this request, in transactions that
        might not be committed yet. In any other generation the session belongs to another request.
        A revocation appends to it: see :class:`SurvivingSession`.
        """
        return self._held

    @property
    def is_touch_due(self) -> bool:
        """Whether it is time to record when the session was last seen."""
        return self._is_touch_due

    @property
    def is_confirmed(self) -> bool:
        """Whether the password was given again in this request."""
        return self._is_confirmed

    @property
    def credentials_updated(self) -> bool:
        """Whether this request has given the session another credential, and committed that."""
        return self._credentials_updated

    @property
    def awaits_commit(self) -> bool:
        """Whether this request has changed the row in a transaction that isn't committed yet."""
        return self._awaits_commit

    @property
    def marker(self) -> str:
        return marker(self.id, self._generation)

    @property
    def keys(self) -> tuple[str, ...]:
        return () if self._store_id is None else (self._store_id,)

    @property
    def user_id(self) -> t.Any:
        """The primary key of the user."""
        return sa.inspect(self.user).identity[0]

    def knows(self, fingerprint: str | None) -> bool:
        """Return whether this request has seen, or stored, this credential of its user."""
        return fingerprint in self._stored or any(fingerprint == one for _, one in self._held)

    def needs_rotation(self, session_id: str | None) -> bool:
        """Return whether the session needs a new generation, because its id has changed.

        A remember cookie or updated credentials change the id within the generation.
        """
        return self._is_rotating or (
            session_id != self._session_id
            and not self._is_restored
            and not self._credentials_updated
        )

    # -- what happens to it --------------------------------------------------------------------

    def begin_rotation(self) -> bool:
        """Begin a rotation, which the end of the request completes; ``False`` if begun before."""
        is_first, self._is_rotating = not self._is_rotating, True
        return is_first

    def rotate(self, generation: int, *, session_id: str | None, store_id: str | None) -> None:
        """Note the generation, session id and store key that the row has been given."""
        self._held.append((generation, self._held[-1][1]))
        self._generation, self._session_id, self._store_id = generation, session_id, store_id
        self._is_rotating = False

    def confirm(self) -> None:
        """Note that the password was given again."""
        self._is_confirmed = True

    def restore(self) -> None:
        """Note that a "remember me" cookie has restored the session, under a new session id."""
        self._is_restored = True

    def store_credential(self, fingerprint: str | None) -> None:
        """Note a credential that this request has stored, committed or not."""
        self._stored.append(fingerprint)

    def sync_fingerprints(self, before: str | None, after: str | None) -> None:
        """Note that this request has stored the same password as another hash."""
        self._held += [(generation, after) for generation, one in self._held if one == before]

    def update_credentials(self, generation: int, fingerprint: str | None) -> None:
        """Note that this request has committed another credential, in a new generation."""
        self._generation = generation
        self._held[:] = [(generation, fingerprint)]
        self._credentials_updated = True

    def note_commit(self) -> None:
        """Note a commit that has left the row in its generation.

        A session may be bound to a connection whose transaction goes on.
        """
        self._awaits_commit = bool(self._held) and self._held[-1][0] != self._generation

    def touch_done(self) -> None:
        """Note that recording when the session was last seen has been scheduled."""
        self._is_touch_due = False

    def hold_row(self, row: object, transaction: object) -> None:
        """Keep the row, which the app's session doesn't keep itself, for one transaction."""
        self._row = transaction, row

    def forget_row(self, *, unless_of: object = None) -> None:
        """Forget the row, so that it is read again.

        :param unless_of: keep a row that was read in this transaction.
        """
        if self._row is not None and (unless_of is None or self._row[0] is not unless_of):
            self._row = None
