"""The marker in ``flask.session``: the user session that a browser carries, and its generation."""

from __future__ import annotations

import uuid

#: The key of the marker in ``flask.session``.
MARKER = "_user_session"

#: The marker of a session whose user is of a kind that the registry leaves alone.
OTHER = "other"


def marker(id: uuid.UUID, generation: int) -> str:
    """Return the marker of a user session."""
    return f"{id.hex}.{generation}"


def read_marker(value: object) -> tuple[uuid.UUID, int] | None:
    """Return the id and the generation in a marker; ``None`` if it is invalid."""
    if not isinstance(value, str):
        return None
    id, _, generation = value.partition(".")
    try:
        return uuid.UUID(hex=id), int(generation)
    except ValueError:
        return None
