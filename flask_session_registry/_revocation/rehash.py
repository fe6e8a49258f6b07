"""Marks a password change as a new hash of the same password."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import sqlalchemy as sa

_KEY = "flask_session_registry.rehash"


def is_rehash(user: object) -> bool:
    """Return whether a change of this user's password is a new hash of the same password."""
    return bool(sa.inspect(user, raiseerr=True).info.get(_KEY))


@contextlib.contextmanager
def same_password(user: object) -> Iterator[None]:
    """Treat changes of this user's password within the block as new hashes of the same one."""
    info = sa.inspect(user, raiseerr=True).info
    before = info.get(_KEY)
    info[_KEY] = True
    try:
        yield
    finally:
        info[_KEY] = before
