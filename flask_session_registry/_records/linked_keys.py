"""Chooses which keys of a session are kept because its browser may come back to them.

If a "remember me" cookie restores several requests of one browser in parallel, each gets a store
entry. The browser keeps the session cookie of the response that arrives last.
"""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid
from collections.abc import Sequence

from .base import MAX_LINKED_KEYS


class LinkedKey(t.NamedTuple):
    """A key that a session has left behind, and may come back to."""

    #: Of the tombstone that keeps it.
    id: uuid.UUID
    store_id: str | None
    left_at: dt.datetime

    def __repr__(self) -> str:
        return f"LinkedKey(id={self.id!r}, left_at={self.left_at!r})"


def ids_for(id: uuid.UUID) -> list[uuid.UUID]:
    """Return the ids of the tombstones that keep the linked keys of a session.

    Always the same ones, so that they are found by primary key, and there are never more.
    """
    return [uuid.uuid5(id, str(number)) for number in range(MAX_LINKED_KEYS)]


def choose(
    ids: Sequence[uuid.UUID], kept: Sequence[LinkedKey], *, left: str, used: str | None
) -> tuple[uuid.UUID, str | None]:
    """Return which of these tombstones is to keep one more key, and the key it gives up, if any.

    :param kept: those that exist.
    :param left: the key that is left behind.
    :param used: the key that the session has from now on, and that needs no tombstone.
    """
    for link in kept:
        if link.store_id in (left, used):
            return link.id, None
    taken = {link.id for link in kept}
    for id in ids:
        if id not in taken:
            return id, None
    oldest = min(kept, key=lambda link: link.left_at)
    return oldest.id, oldest.store_id
