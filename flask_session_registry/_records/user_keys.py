"""The primary keys of users as text, where they are kept outside of the database."""

from __future__ import annotations

import uuid
from collections.abc import Callable

#: A user's key of a type that can be written as text.
UserKey = int | str | uuid.UUID

#: Reads the rest of the text, by the name of the type.
_READERS: dict[str, Callable[[str], UserKey]] = {"int": int, "str": str, "UUID": uuid.UUID}


def as_text(key: UserKey) -> str:
    """Return a user's key as text, with its type."""
    return f"{type(key).__name__}:{key.hex if isinstance(key, uuid.UUID) else key}"


def is_textual(key: object) -> bool:
    """Return whether a user's key can be written as text and read again: not if it is a tuple."""
    return type(key) in (int, str, uuid.UUID)


def from_text(text: str) -> UserKey:
    """Return the key that was written as text.

    :raises ValueError: it is invalid.
    """
    kind, _, value = text.partition(":")
    try:
        return _READERS[kind](value)
    except KeyError:
        raise ValueError("The type of the key is unknown.") from None
