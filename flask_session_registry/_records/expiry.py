"""When has a user session expired?"""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa


class Expiry(t.NamedTuple):
    """The moments that the times of a user session are compared with."""

    now: dt.datetime
    #: Last seen at this moment or before, and not remembered: expired.
    unseen_since: dt.datetime
    #: Last seen at this moment or before: expired. ``None``: there is no ``IDLE_TIMEOUT``.
    idle_since: dt.datetime | None
    #: Begun at this moment or before: expired. ``None``: there is no ``ABSOLUTE_TIMEOUT``.
    begun_by: dt.datetime | None

    def earlier(self, by: dt.timedelta) -> Expiry:
        """The same rule, as it was some time ago: what it finds has expired for so long."""
        return Expiry._make([moment and moment - by for moment in self])

    def has_timed_out(self, last_seen_at: dt.datetime, created_at: dt.datetime | None) -> bool:
        """Whether one of the app's own timeouts has passed, remembered or not.

        :param created_at: needed with an ``ABSOLUTE_TIMEOUT`` only.
        """
        return (self.idle_since is not None and last_seen_at <= self.idle_since) or (
            self.begun_by is not None and created_at is not None and created_at <= self.begun_by
        )

    def condition(self, columns: t.Mapping[str, t.Any]) -> sa.ColumnElement[bool]:
        """The same of a row, in SQL; and whether it was forgotten about for too long."""
        remember_until, last_seen_at = columns["remember_until"], columns["last_seen_at"]
        is_remembered = sa.and_(remember_until.is_not(None), remember_until > self.now)
        ways = [sa.and_(last_seen_at <= self.unseen_since, sa.not_(is_remembered))]
        if self.idle_since is not None:
            ways.append(last_seen_at <= self.idle_since)
        if self.begun_by is not None:
            ways.append(columns["created_at"] <= self.begun_by)
        return sa.or_(*ways)

    def due_at(
        self,
        last_seen_at: dt.datetime,
        created_at: dt.datetime,
        remember_until: dt.datetime | None,
    ) -> dt.datetime:
        """When a session with these times will have expired, if nothing becomes of it."""
        moments = [_later(last_seen_at, self.now - self.unseen_since)]
        if remember_until is not None:
            moments = [max(*moments, remember_until)]
        if self.idle_since is not None:
            moments.append(_later(last_seen_at, self.now - self.idle_since))
        if self.begun_by is not None:
            moments.append(_later(created_at, self.now - self.begun_by))
        return min(moments)

    def is_over(
        self,
        last_seen_at: dt.datetime,
        created_at: dt.datetime,
        remember_until: dt.datetime | None,
    ) -> bool:
        """Whether it has by now."""
        return self.due_at(last_seen_at, created_at, remember_until) <= self.now


def _later(moment: dt.datetime, by: dt.timedelta) -> dt.datetime:
    end = dt.datetime.max.replace(tzinfo=dt.timezone.utc)
    return moment + by if by < end - moment else end
