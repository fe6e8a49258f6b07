"""How user sessions and tombstones are written in Redis: every value is text.

A session is a hash of its attributes, a tombstone is JSON.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
import typing as t
import uuid
from collections.abc import Callable, Iterable, Mapping

from ... import _clock as clock
from .. import user_keys
from ..base import StoreEntry
from .session import FIELDS, RedisUserSession, Tombstone

#: Raised where something unreadable is decoded.
_UNREADABLE = (AttributeError, KeyError, OverflowError, TypeError, ValueError)


# Redis stores a hash compactly, in less than half of the memory, if none of its values is longer
# than 64 bytes.

#: The fields that hold a user agent, in pieces.
_USER_AGENT = ("user_agent", *(f"user_agent {number}" for number in range(2, 9)))
_PIECE = 64

#: A store key that ends with a hash in hexadecimal digits, as those of Flask-Session do by default.
#: As Base64 the hash is a third shorter.
_HASHED = re.compile(r"(.*)([0-9a-f]{64})", re.DOTALL)

#: What a store key begins with, as it is written: a hash in Base64, or the key itself. A key that
#: was written without that is unreadable.
_BASE64, _PLAIN = "\x01", "\x02"

#: The length of a hash in Base64, without its padding.
_LENGTH, _PADDING = 43, "="


def encode(values: Mapping[str, t.Any]) -> dict[str, str | None]:
    written = {name: _write(name, value) for name, value in values.items()}
    if "user_agent" in written:
        rest = written["user_agent"] or ""
        for name in _USER_AGENT:
            end = None if name == _USER_AGENT[-1] else _PIECE
            written[name], rest = rest[:end] or None, rest[_PIECE:]
    return written


def encode_choices(choices: Mapping[str, t.Any]) -> dict[str, list[str | None]]:
    """Return the values that an attribute may have; given one, or a set of them."""
    return {
        name: [_write(name, each) for each in (value if isinstance(value, frozenset) else [value])]
        for name, value in choices.items()
    }


def _write(name: str, value: t.Any) -> str | None:
    """Return a value as text: Lua would round a number."""
    if value is None:
        return None
    if name == "user_id":
        return user_keys.as_text(value)
    if name == "store_id":
        return _write_key(value)
    if isinstance(value, dt.datetime):
        return str(clock.microseconds(value))
    return value.hex if isinstance(value, uuid.UUID) else str(value)


def _write_key(store_id: str) -> str:
    """Return a store key as it is written."""
    found = _HASHED.fullmatch(store_id)
    if found is None:
        return f"{_PLAIN}{store_id}"
    prefix, digits = found.groups()
    written = base64.b64encode(bytes.fromhex(digits)).decode().rstrip(_PADDING)
    return f"{_BASE64}{written}{prefix}"


def _read_key(text: str) -> str:
    """Return the store key that was written.

    :raises ValueError: it is unreadable.
    """
    kind, rest = text[:1], text[1:]
    if kind == _PLAIN:
        return rest
    if kind != _BASE64:
        raise ValueError("The kind of the store key is unknown.")
    digest = base64.b64decode(rest[:_LENGTH] + _PADDING, validate=True)
    return f"{rest[_LENGTH:]}{digest.hex()}"


def decode(id: uuid.UUID, written: Iterable[str]) -> RedisUserSession | None:
    """Return a session; ``None`` if it is unreadable. Attributes of other releases are ignored.

    :param written: names and values, in turns.
    """
    each = iter(written)
    try:
        fields = dict(zip(each, each, strict=True))
        if _USER_AGENT[1] in fields:
            fields["user_agent"] = "".join([fields.get(name, "") for name in _USER_AGENT])
        return RedisUserSession(
            id=id, **{name: _READ[name](value) for name, value in fields.items() if name in _READ}
        )
    except _UNREADABLE:
        return None


def decode_some(names: Iterable[str], written: Iterable[t.Any]) -> list[t.Any] | None:
    """Return some attributes of a session, given in the same order; ``None`` if unreadable.

    :param written: ``False`` stands for a missing one.
    """
    try:
        return [
            None if value is False else _READ[name](value)
            for name, value in zip(names, written, strict=True)
        ]
    except _UNREADABLE:
        return None


def decode_entry(id: str, user_id: str, store_id: str | t.Literal[False]) -> StoreEntry | None:
    """Return the entry of a session; ``None`` if it is unreadable.

    :param store_id: ``False`` stands for a missing one.
    """
    try:
        key = None if store_id is False else _read_key(store_id)
        return StoreEntry(uuid.UUID(hex=id), user_keys.from_text(user_id), key)
    except _UNREADABLE:
        return None


def decode_tombstone(text: str | bytes) -> Tombstone | None:
    """Return a tombstone; ``None`` if it is unreadable."""
    try:
        written: dict[str, str] = json.loads(text)
        return Tombstone(
            id=uuid.UUID(hex=written["id"]),
            user_session_id=uuid.UUID(hex=written["user_session_id"]),
            store_id=_read_key(written["store_id"]),
            left_at=_moment(written["left_at"]),
            is_linked=written["is_linked"] == str(True),
        )
    except _UNREADABLE:
        return None


def _moment(text: str) -> dt.datetime:
    return clock.EPOCH + dt.timedelta(microseconds=int(text))


_READ: dict[str, Callable[[str], t.Any]] = {
    **dict.fromkeys(FIELDS, str),
    **dict.fromkeys((name for name in FIELDS if name.endswith(("_at", "_until"))), _moment),
    "revocation": uuid.UUID,
    "generation": int,
    "user_id": user_keys.from_text,
    "store_id": _read_key,
}
del _READ["id"]


def as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
