"""How user sessions and tombstones are written in Redis: as JSON, in which every value is text."""

from __future__ import annotations

import datetime as dt
import json
import typing as t
import uuid
from collections.abc import Callable, Mapping

from ... import _clock as clock
from ..base import StoreEntry
from .session import FIELDS, RedisUserSession, Tombstone


def encode(values: Mapping[str, t.Any]) -> dict[str, str | None]:
    return {name: _write(name, value) for name, value in values.items()}


def _write(name: str, value: t.Any) -> str | None:
    """Return a value as text: Lua would round a number."""
    if value is None:
        return None
    if name == "user_id":
        return user_text(value)
    if isinstance(value, dt.datetime):
        return str(clock.microseconds(value))
    return value.hex if isinstance(value, uuid.UUID) else str(value)


def decode(text: str | bytes) -> RedisUserSession | None:
    """Return a session; ``None`` if it is unreadable. Attributes of other releases are ignored."""
    try:
        written: dict[str, str] = json.loads(text)
        return RedisUserSession(
            **{name: _READ[name](value) for name, value in written.items() if name in _READ}
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None


def decode_tombstone(text: str | bytes) -> Tombstone | None:
    """Return a tombstone; ``None`` if it is unreadable."""
    try:
        written: dict[str, str] = json.loads(text)
        return Tombstone(
            id=uuid.UUID(hex=written["id"]),
            user_session_id=uuid.UUID(hex=written["user_session_id"]),
            store_id=written["store_id"],
            left_at=_moment(written["left_at"]),
            is_linked=written["is_linked"] == str(True),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None


def read_entry(id: t.Any, user_id: t.Any, store_id: t.Any) -> StoreEntry:
    return StoreEntry(
        uuid.UUID(hex=as_text(id)),
        _user_id(as_text(user_id)),
        None if store_id is None else as_text(store_id),
    )


def _moment(text: str) -> dt.datetime:
    return clock.EPOCH + dt.timedelta(microseconds=int(text))


def user_text(user_id: t.Any) -> str:
    text = user_id.hex if isinstance(user_id, uuid.UUID) else user_id
    return f"{type(user_id).__name__}:{text}"


def _user_id(text: str) -> t.Any:
    kind, _, value = text.partition(":")
    return {"int": int, "str": str, "UUID": uuid.UUID}[kind](value)


_READ: dict[str, Callable[[str], t.Any]] = {
    **dict.fromkeys(FIELDS, str),
    **dict.fromkeys((name for name in FIELDS if name.endswith(("_at", "_until"))), _moment),
    "id": uuid.UUID,
    "revocation": uuid.UUID,
    "generation": int,
    "user_id": _user_id,
}


def as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
