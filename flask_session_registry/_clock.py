"""What time is it?"""

from __future__ import annotations

import datetime as dt

#: Stands for a moment that nobody knows: before all others.
EPOCH = dt.datetime.fromtimestamp(0, dt.timezone.utc)


def now() -> dt.datetime:
    """Aware UTC, with microseconds. Tests move the time by replacing this function."""
    return dt.datetime.now(dt.timezone.utc)


def ago(duration: dt.timedelta) -> dt.datetime:
    """The moment so long before now, and not before the epoch."""
    moment = now()
    return EPOCH if duration >= moment - EPOCH else moment - duration


def is_within(duration: dt.timedelta, *, of: dt.datetime) -> bool:
    """Whether a moment is that recent, by clocks that may differ by as much.

    One further in the future, from a clock that was ahead, is not: it would be for too long.
    """
    return abs(now() - of) < duration


def as_utc(value: dt.datetime) -> dt.datetime:
    """The same moment, aware and in UTC.

    SQLite and MariaDB give back naive datetimes, which are UTC because that is what was
    stored; PostgreSQL gives them in the time zone of the connection.
    """
    if value.tzinfo is None:
        return value.replace(tzinfo=dt.timezone.utc)
    return value.astimezone(dt.timezone.utc)
