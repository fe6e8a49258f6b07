"""What a request knows about its own user session."""

from __future__ import annotations

import functools
import typing as t
import uuid

import sqlalchemy as sa

from .._records.base import SurvivingSession
from . import store_keys
from .marker import Marker, marker

if t.TYPE_CHECKING:
    from flask.sessions import SessionInterface


class CurrentSession:
    """The user session that a request is signed in by. Only its methods change it.

    Initial values are in the class: there is one of these for each request that is signed in.
    """

    #: Whether the password was given again in this request.
    is_confirmed = False
    #: Whether this request has given the session another credential, and committed that.
    credentials_updated = False
    #: Whether this request has changed the row in a transaction that isn't committed yet.
    awaits_commit = False
    _is_rotating = False
    _is_restored = False
    _next_session_id: str | None = None
    _next_store_id: str | None = None
    _is_changed_elsewhere = False
    _row: tuple[object, object] | None = None

    def __init__(
        self,
        known: Marker,
        user: t.Any,
        *,
        session_id: str | None,
        store_id: str | None,
        held: list[tuple[int, str | None]],
        is_touch_due: bool = False,
    ) -> None:
        self.user = user
        #: What ``flask.session`` carries.
        self.marker = known.text
        #: The generation in the row, as known to this request.
        self.generation = known.generation
        self._known = known
        #: The session id when the session was accepted; ``None`` for a signed cookie.
        self.session_id = session_id
        #: The key of the store entry that the row names.
        self.store_id = store_id
        #: The generations in which this request knows the session, each with its fingerprint: the
        #: one that the check accepted, then those made by this request, in transactions that might
        #: not be committed yet. In any other generation the session belongs to another request.
        #: A revocation appends to it: see :class:`SurvivingSession`.
        self.held = held
        #: Whether it is time to record when the session was last seen.
        self.is_touch_due = is_touch_due
        self._stored: list[str | None] = []

    def __repr__(self) -> str:
        return f"CurrentSession(id={self._known.hex}, generation={self.generation})"

    @functools.cached_property
    def id(self) -> uuid.UUID:
        return self._known.id

    @property
    def keys(self) -> tuple[str, ...]:
        return () if self.store_id is None else (self.store_id,)

    @property
    def next_keys(self) -> tuple[str, ...]:
        """The store key that a password change of this request gives the row, if any."""
        return () if self._next_store_id is None else (self._next_store_id,)

    @property
    def user_id(self) -> t.Any:
        """The primary key of the user."""
        return sa.inspect(self.user).identity[0]

    def knows(self, fingerprint: str | None) -> bool:
        """Return whether this request has seen, or stored, this credential of its user."""
        return fingerprint in self._stored or any(fingerprint == one for _, one in self.held)

    def needs_rotation(self, session_id: str | None) -> bool:
        """Return whether the session needs a new generation, because its id has changed.

        A remember cookie changes the id within the generation.
        """
        return self._is_rotating or (session_id != self.session_id and not self._is_restored)

    @property
    def knows_user(self) -> bool:
        """Whether :attr:`user` is the only instance whose password this request has changed."""
        return not self._is_changed_elsewhere

    @property
    def is_as_checked(self) -> bool:
        """Whether this request has nothing to record about it, as long as it keeps its id."""
        return not (
            self.is_touch_due
            or self._is_rotating
            or self._is_restored
            or self.credentials_updated
            or self.awaits_commit
        )

    # -- what happens to it --------------------------------------------------------------------

    def begin_rotation(self) -> bool:
        """Begin a rotation, which the end of the request completes; ``False`` if begun before."""
        is_first, self._is_rotating = not self._is_rotating, True
        return is_first

    def rotate(self, generation: int, *, session_id: str | None, store_id: str | None) -> None:
        """Note the generation, session id and store key that the row has been given."""
        self.held.append((generation, self.held[-1][1]))
        self._begin_generation(generation)
        self.session_id, self.store_id = session_id, store_id
        self._is_rotating = False

    def name_user(self) -> None:
        """Let the marker name the user, before ``flask.session`` carries it."""
        self._begin_generation(self.generation)

    def _begin_generation(self, generation: int) -> None:
        self.generation = generation
        self.marker = marker(self.id, generation, self.user_id)

    def confirm(self) -> None:
        """Note that the password was given again."""
        self.is_confirmed = True

    def restore(self) -> None:
        """Note that a "remember me" cookie has restored the session, under a new session id."""
        self._is_restored = True

    def store_credential(self, fingerprint: str | None) -> None:
        """Note a credential that this request has stored, committed or not."""
        self._stored.append(fingerprint)

    def survive(self, interface: SessionInterface, user: object) -> SurvivingSession:
        """Return how the session goes on, once a password change of this request is committed.

        All changes of one request choose the same session id: nobody knows it before the response.

        :param user: the instance whose password is changed.
        """
        if self._next_session_id is None:
            self._next_session_id = store_keys.new_session_id(interface)
            self._next_store_id = store_keys.store_key(interface, self._next_session_id)
        if user is not self.user:
            self._is_changed_elsewhere = True
        return SurvivingSession(self.id, self.held, self.store_id, self._next_store_id)

    def sync_fingerprints(self, before: str | None, after: str | None) -> None:
        """Note that this request has stored the same password as another hash."""
        self.held += [(generation, after) for generation, one in self.held if one == before]

    def update_credentials(self, generation: int, fingerprint: str | None) -> None:
        """Note that this request has committed another credential, in a new generation."""
        self._begin_generation(generation)
        self.held[:] = [(generation, fingerprint)]
        self.session_id, self.store_id = self._next_session_id, self._next_store_id
        self.credentials_updated = True

    def note_commit(self) -> None:
        """Note a commit that has left the row in its generation.

        A session may be bound to a connection whose transaction goes on.
        """
        self.awaits_commit = bool(self.held) and self.held[-1][0] != self.generation

    def touch_done(self) -> None:
        """Note that recording when the session was last seen has been scheduled."""
        self.is_touch_due = False

    def hold_row(self, row: object, transaction: object) -> None:
        """Keep the row, which the app's session doesn't keep itself, for one transaction."""
        self._row = transaction, row

    def forget_row(self, *, unless_of: object = None) -> None:
        """Forget the row, so that it is read again.

        :param unless_of: keep a row that was read in this transaction.
        """
        if self._row is not None and (unless_of is None or self._row[0] is not unless_of):
            self._row = None
