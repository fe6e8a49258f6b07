"""How does a user session look to an operator? Never with a session id, or the key of an entry."""

from __future__ import annotations

import datetime as dt
import typing as t
from collections.abc import Sequence

from .. import _clock as clock
from .._plain_text import plain
from .._records.base import SessionSummary


def as_json(value: object) -> t.Any:
    """A value of a row, for JSON. A key that is no number is text, and times are in ISO 8601."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return clock.as_utc(value).isoformat() if isinstance(value, dt.datetime) else str(value)


def as_text(value: object) -> str:
    """A value of a row, for a terminal, whoever wrote it."""
    if isinstance(value, dt.datetime):
        return f"{clock.as_utc(value):%Y-%m-%d %H:%M:%S} UTC"
    return "-" if value is None else plain(str(value))


def json_of(summary: SessionSummary) -> dict[str, t.Any]:
    return {name: as_json(value) for name, value in summary._asdict().items()}


def lines_of(summaries: Sequence[SessionSummary]) -> list[str]:
    """A line for each, with its columns below each other."""
    cells = [
        [
            as_text(value)
            for value in (row.id, row.user_id, row.ip_address, row.last_seen_at, row.user_agent)
        ]
        for row in summaries
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def details_of(row: t.Any, *, is_active: bool) -> dict[str, t.Any]:
    """All that an operator may know of a row, for JSON."""
    names = (*SessionSummary._fields, "remember_until")
    details = {name: as_json(getattr(row, name)) for name in names}
    details["is_active"] = is_active
    details["ended_at"] = as_json(row.revoked_at)
    details["ended_reason"] = row.revoked_reason
    return details


def block_of(row: t.Any, *, is_active: bool) -> str:
    """The same in lines."""
    facts = {
        "began": row.created_at,
        "last seen": row.last_seen_at,
        "address": row.ip_address,
        "user agent": row.user_agent,
        "remembered": row.remember_until and f"until {as_text(row.remember_until)}",
    }
    if row.revoked_at is not None:
        facts["ended"] = f"{as_text(row.revoked_at)}, {row.revoked_reason}"
    elif not is_active:
        facts["ended"] = "expired, or opened with an earlier password; not taken down yet"
    lines = [f"    {name:<12}{as_text(value)}" for name, value in facts.items()]
    return "\n".join([f"{row.id}, user {as_text(row.user_id)}", *lines])
