"""User sessions as operators see them: never with a session id or the key of a store entry."""

from __future__ import annotations

import datetime as dt
import typing as t
from collections.abc import Sequence

from .. import _clock as clock
from .._plain_text import plain
from .._records.base import SessionSummary
from ..models import UserSessionRecord


def as_json(value: object) -> t.Any:
    """Return an attribute for JSON: times in ISO 8601, keys as numbers or text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return clock.as_utc(value).isoformat() if isinstance(value, dt.datetime) else str(value)


def as_text(value: object) -> str:
    """Return an attribute for a terminal, without control characters."""
    if isinstance(value, dt.datetime):
        return f"{clock.as_utc(value):%Y-%m-%d %H:%M:%S} UTC"
    return "-" if value is None else plain(str(value))


def summary_as_json(summary: SessionSummary) -> dict[str, t.Any]:
    return {name: as_json(value) for name, value in summary._asdict().items()}


def summaries_as_lines(summaries: Sequence[SessionSummary]) -> list[str]:
    """Return a line for each session, in aligned columns."""
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


def session_as_json(row: UserSessionRecord, *, is_active: bool) -> dict[str, t.Any]:
    """Return all that an operator may know of a session."""
    names = (*SessionSummary._fields, "remember_until")
    details = {name: as_json(getattr(row, name)) for name in names}
    details["is_active"] = is_active
    details["ended_at"] = as_json(row.revoked_at)
    details["ended_reason"] = row.revoked_reason
    return details


def session_as_text(row: UserSessionRecord, *, is_active: bool) -> str:
    """Return all that an operator may know of a session, as lines of text."""
    details = {
        "began": row.created_at,
        "last seen": row.last_seen_at,
        "address": row.ip_address,
        "user agent": row.user_agent,
        "remembered": row.remember_until and f"until {as_text(row.remember_until)}",
    }
    if row.revoked_at is not None:
        details["ended"] = f"{as_text(row.revoked_at)}, {row.revoked_reason}"
    elif not is_active:
        details["ended"] = "expired, or opened with an earlier password; not recorded yet"
    lines = [f"    {name:<12}{as_text(value)}" for name, value in details.items()]
    return "\n".join([f"{row.id}, user {as_text(row.user_id)}", *lines])
