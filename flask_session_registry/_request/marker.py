"""The marker in ``flask.session``: the user session that a browser carries, and its generation.

It also names the user, by the primary key, where that can be written as text. The records know
whose session it is; the key lets them find the user at the same time, whatever ``get_id()`` is.
"""

from __future__ import annotations

import re
import typing as t
import uuid

from .._records import user_keys
from .._records.user_keys import UserKey

#: The key of the marker in ``flask.session``.
MARKER = "_user_session"

#: The marker of a session whose user is of a kind that the registry leaves alone.
OTHER = "other"

#: A longer key is left out: the session may be a cookie.
_MAX_KEY = 64

_FORM = re.compile(r"([0-9a-f]{32})\.([0-9]{1,9})(?:\.(.{1,80}))?", re.DOTALL)


class Marker(t.NamedTuple):
    """What a marker says."""

    #: The id of the user session, in hexadecimal.
    hex: str
    generation: int
    #: The user's key; ``None`` if it isn't there. The records know whether it is right.
    user_key: UserKey | None
    #: The marker itself.
    text: str

    def __repr__(self) -> str:
        return f"Marker(generation={self.generation})"

    @property
    def id(self) -> uuid.UUID:
        """The id of the user session."""
        return uuid.UUID(hex=self.hex)

    @classmethod
    def of(cls, id: uuid.UUID, generation: int, user_key: object = None) -> Marker:
        """Return the marker of a user session.

        :param user_key: the user's primary key; ``None`` if unknown.
        """
        text = f"{id.hex}.{generation}"
        if user_keys.is_textual(user_key):
            written = user_keys.as_text(t.cast(UserKey, user_key))
            if len(written) <= _MAX_KEY:
                return cls(id.hex, generation, t.cast(UserKey, user_key), f"{text}.{written}")
        return cls(id.hex, generation, None, text)


def marker(id: uuid.UUID, generation: int, user_key: object = None) -> str:
    """Return :meth:`Marker.of` as text."""
    return Marker.of(id, generation, user_key).text


def parse_marker(value: object) -> Marker | None:
    """Return what a marker says; ``None`` if it is invalid."""
    found = _FORM.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    hex, generation, written = found.groups()
    key = None if written is None else _read_key(written)
    return Marker(hex, int(generation), key, found.string)


def _read_key(text: str) -> UserKey | None:
    try:
        return user_keys.from_text(text)
    except ValueError:
        return None


def read_marker(value: object) -> tuple[uuid.UUID, int] | None:
    """Return the id and the generation in a marker; ``None`` if it is invalid."""
    found = parse_marker(value)
    return None if found is None else (found.id, found.generation)
