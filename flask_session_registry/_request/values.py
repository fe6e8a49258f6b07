"""The values that the steps of a request hand on to each other."""

from __future__ import annotations

import dataclasses
import typing as t
import uuid

from .._records.base import new_id
from .marker import marker

if t.TYPE_CHECKING:
    from .._adoption.adoption import AdoptionState
    from .._revocation.fingerprint import CheckedCredential
    from .current_session import CurrentSession


class SessionKeys(t.NamedTuple):
    """A user session, with the keys of its store entry."""

    id: uuid.UUID
    keys: tuple[str, ...]

    def __repr__(self) -> str:
        return f"SessionKeys(id={self.id!r})"


#: A new hash of the same password: the user's id, the fingerprint before, and the one after.
Rehash = tuple[t.Any, "str | None", "str | None"]


@dataclasses.dataclass(frozen=True, slots=True)
class Login:
    """A login of this request, which has no row yet."""

    user: t.Any
    #: The user session that it replaces.
    replaces: CurrentSession | None
    #: The session id from before, which an attacker may have set.
    session_id: str | None = dataclasses.field(repr=False)
    #: See :attr:`RequestContext.missing_store_key`.
    missing_store_key: str | None = dataclasses.field(repr=False)
    #: What is known about the credential that was checked.
    evidence: CheckedCredential = dataclasses.field(repr=False)
    #: Whether the client, which keeps no cookies, probably signs in like this on each request.
    is_repeated: bool = False
    id: uuid.UUID = dataclasses.field(default_factory=new_id)
    #: The user's primary key, once the id is final.
    user_key: t.Any = dataclasses.field(default=None, repr=False)

    @property
    def marker(self) -> str:
        return marker(self.id, 0, self.user_key)


class ScheduledEnd(t.NamedTuple):
    """A user session that the check has refused and that is to end, after the response."""

    id: uuid.UUID
    keys: tuple[str, ...]
    reason: str

    def __repr__(self) -> str:
        return f"ScheduledEnd(id={self.id!r}, reason={self.reason!r})"


class CheckResult(t.NamedTuple):
    """The result of a session check: an accepted session, a refusal, or neither."""

    session: CurrentSession | None = None
    #: Why the session was refused.
    reason: str | None = None
    #: The id of the refused user session, if known.
    id: uuid.UUID | None = None
    #: Whether it was refused although its browser is, or will be, signed in.
    is_superseded: bool = False
    to_end: ScheduledEnd | None = None
    adoption: AdoptionState | None = None
    #: What ``flask.session`` carries from now on, if that changes.
    marker: str | None = None

    def __repr__(self) -> str:
        return f"CheckResult(session={self.session!r}, reason={self.reason!r}, id={self.id!r})"


#: The result for users of a kind that the registry leaves alone.
LEFT_ALONE = CheckResult()
UNKNOWN = CheckResult(reason="unknown")
UNREGISTERED = CheckResult(reason="unregistered")
