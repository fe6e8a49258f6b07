"""The current time, aware and in UTC."""

from __future__ import annotations

import datetime as dt

#: Stands for an unknown moment: before all others.
EPOCH = dt.datetime.fromtimestamp(0, dt.timezone.utc)


def now() -> dt.datetime:
    """Return the current time, with microseconds. Tests replace this function to move the time."""
    return dt.datetime.now(dt.timezone.utc)


def ago(duration: dt.timedelta) -> dt.datetime:
    """Return the moment this long before now, but not before the epoch."""
    moment = now()
    return EPOCH if duration >= moment - EPOCH else moment - duration


def microseconds(moment: dt.datetime) -> int:
    """Return the microseconds from the epoch to a moment."""
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


def is_within(duration: dt.timedelta, *, of: dt.datetime) -> bool:
    """Return whether a moment is less than this duration in the past, or in the future.

    Clocks may differ. A moment further in the future would count as recent for too long.
    """
    return abs(now() - of) < duration


def as_utc(value: dt.datetime) -> dt.datetime:
    """Return the same moment, aware and in UTC.

    SQLite and MariaDB return naive datetimes, which are in UTC because they were stored so.
    PostgreSQL returns datetimes in the time zone of the connection.
    """
    if value.tzinfo is None:
        return value.replace(tzinfo=dt.timezone.utc)
    return value.astimezone(dt.timezone.utc)
