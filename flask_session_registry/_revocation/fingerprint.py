"""The fingerprint of a credential: SHA-256 of the stored password hash.

Fingerprints are compared, never reversed. One reveals nothing that the password hash beside it in
the database doesn't.
"""

from __future__ import annotations

import hashlib
import typing as t
from collections.abc import Callable

from ..errors import SessionRegistryError

#: The values of the password attributes of one user, in the order of the attributes.
Values = tuple[object, ...]

#: The fingerprint of a session whose credential was no longer the stored one when its row was
#: written. It equals no other.
SUPERSEDED = "superseded"


def fingerprint(values: Values) -> str | None:
    """Return SHA-256, in hexadecimal, of password values; ``None`` if there are none.

    :raises SessionRegistryError: a value is neither text, bytes, a number nor ``None``.
    """
    if not values:
        return None
    if len(values) == 1:
        return hashlib.sha256(_as_bytes(values[0])).hexdigest()
    digests = [hashlib.sha256(_as_bytes(value)) for value in values]
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def _as_bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if value is None:
        return b"\0"
    if isinstance(value, (int, float)):
        return repr(value).encode()
    raise SessionRegistryError(
        f"A password attribute holds a value of type '{type(value).__name__}', which has no"
        " fingerprint. Set 'SESSION_REGISTRY_PASSWORD_ATTRIBUTE' to an attribute that holds text,"
        " bytes or a number."
    )


def is_unusable(value: object) -> bool:
    """Return whether a value is no usable password: empty, or a marker of Django's or Unix's."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text is None or (isinstance(text, str) and text[:1] in ("", "!", "*"))


def is_passwordless(passwords: Values) -> bool:
    """Return whether a user with these password values can't sign in by password."""
    return all(map(is_unusable, passwords))


class StoredCredential(t.NamedTuple):
    """The credential of a user as the database stores it."""

    fingerprint: str | None
    #: The password attributes of an instance of the user model, loaded from there.
    attributes: Values
    #: The values in the database, from which the fingerprint is made.
    raw: Values

    def __repr__(self) -> str:
        return "StoredCredential()"


class CheckedCredential(t.NamedTuple):
    """The credential that a login was checked against, if the registry has seen it."""

    #: The password attributes when an instance first loaded them; ``None`` if none has.
    seen: Values | None = None
    #: What this process has stored since.
    stored: tuple[Values, ...] = ()
    #: Returns whether the session check, or an earlier step of the login, saw a fingerprint before
    #: the instance was loaded; ``None`` if neither saw any.
    knows: Callable[[str | None], bool] | None = None
    #: The password attributes of the instance that signs in, if it is transient; ``None`` if it
    #: isn't, or holds no password.
    transient: Values | None = None

    def covers(self, current: StoredCredential) -> bool:
        """Return whether the login was checked against the credential that is stored now.

        If no credential was seen, the login counts as checked against the stored one.
        """
        if current.attributes in self.stored:
            return True
        if self.knows is not None and not self.knows(current.fingerprint):
            return False
        if self.transient is not None and self.transient != current.attributes:
            return False
        return self.seen is None or self.seen == current.attributes

    def __repr__(self) -> str:
        return "CheckedCredential()"


class CredentialChange(t.NamedTuple):
    """A change of a credential by a flush."""

    #: The fingerprint before the change.
    before: str | None
    #: The fingerprint after it.
    after: str | None
    #: Whether the password is the same, and only what identifies a user without one has changed.
    is_same_password: bool

    def __repr__(self) -> str:
        return f"CredentialChange(is_same_password={self.is_same_password})"
