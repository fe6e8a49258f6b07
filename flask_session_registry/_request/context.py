"""What is known of one request."""

from __future__ import annotations

import dataclasses
import time
import typing as t
import uuid

import sqlalchemy as sa

from .._records.base import new_id
from .._revocation.after_commit import Pending
from .._revocation.fingerprint import CheckedCredential

if t.TYPE_CHECKING:
    from .._adoption.adoption import AdoptionState

#: Where the marker stands in ``flask.session``.
MARKER = "_user_session"


#: Stands there for a user of another kind, whom the registry leaves alone.
OTHER = "other"


def marker(id: uuid.UUID, generation: int) -> str:
    """What a browser carries: which user session it is, in which generation."""
    return f"{id.hex}.{generation}"


def read_marker(value: object) -> tuple[uuid.UUID, int] | None:
    """The id and the generation of a marker; ``None`` if it is none."""
    if not isinstance(value, str):
        return None
    id, _, generation = value.partition(".")
    try:
        return uuid.UUID(hex=id), int(generation)
    except ValueError:
        return None


@dataclasses.dataclass(slots=True)
class Current:
    """The user session that the check has accepted in this request."""

    id: uuid.UUID
    #: The generation that stands in the row, as far as this request knows.
    generation: int
    user: t.Any
    #: The session id when it was accepted; ``None`` for signed cookies.
    session_id: str | None = dataclasses.field(repr=False)
    #: The key of the entry that the row names.
    store_id: str | None = dataclasses.field(repr=False)
    #: Whether it is time to write when it was last seen.
    is_touch_due: bool
    #: The generations that this request knows it by, with their fingerprints: the one that the
    #: check has accepted, then those that this request itself has made of it, in transactions which
    #: may not be committed yet. In any other one, somebody else has it.
    held: list[tuple[int, str | None]] = dataclasses.field(repr=False)
    #: The fingerprints of the credentials that this request has stored, committed or not.
    stored: list[str | None] = dataclasses.field(default_factory=list, repr=False)
    #: The row, and the transaction of the app's session in which it was read: it is read once in
    #: each, because the session does not hold it by itself.
    row: tuple[object, t.Any] = dataclasses.field(default=(None, None), repr=False)
    #: Whether ``rotate()`` was called.
    is_rotating: bool = False
    #: Whether the password was given once more.
    is_confirmed: bool = False
    #: Whether a "remember me" cookie brought it back under a new session id.
    is_restored: bool = False
    #: Whether this request has given it another credential, and that is committed.
    credentials_updated: bool = False
    #: Whether a commit of this request was heard of that has not changed the row yet.
    awaits_commit: bool = False

    @property
    def marker(self) -> str:
        return marker(self.id, self.generation)

    @property
    def keys(self) -> tuple[str, ...]:
        return () if self.store_id is None else (self.store_id,)

    def forget_row(self) -> None:
        """Let the row be read again: it has been written, or the transaction is another one."""
        self.row = None, None

    def settle(self, generation: int, fingerprint: str | None) -> None:
        """Note in which generation it stands, now that a transaction has ended."""
        self.generation = generation
        self.held[:] = [(generation, fingerprint)]

    def knows(self, fingerprint: str | None) -> bool:
        """Whether this request has seen, or stored, a credential of its user."""
        return fingerprint in self.stored or any(fingerprint == one for _, one in self.held)

    def sync_fingerprints(self, before: str | None, after: str | None) -> None:
        """Note that the same password is stored otherwise, by this request."""
        self.held += [(generation, after) for generation, one in self.held if one == before]

    @property
    def user_id(self) -> t.Any:
        """The primary key of the user."""
        return sa.inspect(self.user).identity[0]


@dataclasses.dataclass(slots=True)
class Login:
    """A login of this request, which has no row yet."""

    user: t.Any
    #: The user session whose place it takes.
    replaces: Current | None
    #: The session id from before, which an attacker may have set.
    session_id: str | None = dataclasses.field(repr=False)
    #: The key that the browser's cookie names, if there is no such entry.
    missing_store_key: str | None = dataclasses.field(repr=False)
    #: What is known of the credential that was checked.
    evidence: CheckedCredential = dataclasses.field(repr=False)
    #: Whether a client that keeps no cookies is likely to sign in so at each request.
    is_of_each_request: bool = False
    id: uuid.UUID = dataclasses.field(default_factory=new_id)

    @property
    def marker(self) -> str:
        return marker(self.id, 0)


class RequestState:
    """Everything that the registry remembers until the request ends.

    What it begins with stands in the class: there is one of these for each request.
    """

    current: Current | None = None
    login: Login | None = None
    adoption: AdoptionState | None = None
    #: The user session of a login that has been written down in this request.
    registered: uuid.UUID | None = None
    #: The key that the browser's cookie names, if there is no such entry.
    missing_store_key: str | None = None
    #: Why the session of this request was refused.
    rejected: str | None = None
    #: Which user session that was; ``None`` if it named none.
    rejected_id: uuid.UUID | None = None
    #: Whether it was refused although its browser is, or will be, signed in.
    is_superseded: bool = False
    #: The database could not be asked: nothing may be written, no cookie touched.
    is_unavailable: bool = False
    #: The session was emptied, and what the browser holds is not to be taken away.
    discards_session: bool = False
    #: The "remember me" cookie was refused, and its browser is to forget it.
    clears_remember_cookie: bool = False
    #: The reason that a password change in this request gives; ``None``: see the setting.
    watch_reason: str | None = None
    #: A user session that the check has refused and that is to end: its id, keys and the reason.
    to_end: tuple[uuid.UUID, tuple[str, ...], str] | None = None

    def __init__(self, began: float | None) -> None:
        #: When the request began, on the clock that goes on; now, if that was not taken down.
        self.began = time.monotonic() if began is None else began
        #: Revocations of this request that wait for their commit.
        self.pending: list[Pending] = []
        #: Keys of entries that this request has left behind.
        self.left_behind: list[str] = []
        #: New hashes of the same password that this request has stored: whose, the fingerprint
        #: before, and the one after.
        self.rehashes: list[tuple[t.Any, str | None, str | None]] = []
        #: User sessions that this request has ended: their ids and keys.
        self.ended: list[tuple[uuid.UUID, tuple[str, ...]]] = []
        #: The same of those of which nothing is to be kept.
        self.forgotten: list[tuple[uuid.UUID, tuple[str, ...]]] = []

    def is_known(self, carried: object) -> bool:
        """Whether this very session was accepted, or opened, earlier in this request."""
        current, login = self.current, self.login
        return (current is not None and current.marker == carried) or (
            login is not None and login.marker == carried
        )

    def leave_behind(self, store_id: str | None, *, but: str | None) -> None:
        """Note the key of an entry that is to be deleted, unless it is the one in use."""
        if store_id is not None and store_id != but and store_id not in self.left_behind:
            self.left_behind.append(store_id)
