"""The expiry of user sessions."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa


class Expiry(t.NamedTuple):
    """The moments that the times of a user session are compared with."""

    now: dt.datetime
    #: Sessions last seen by this moment have expired, unless they are remembered.
    unseen_since: dt.datetime
    #: Sessions last seen by this moment have expired. ``None`` without an ``IDLE_TIMEOUT``.
    idle_since: dt.datetime | None
    #: Sessions begun by this moment have expired. ``None`` without an ``ABSOLUTE_TIMEOUT``.
    begun_by: dt.datetime | None

    def earlier(self, by: dt.timedelta) -> Expiry:
        """Return the same rule as of an earlier moment: what it finds expired that long ago."""
        return Expiry._make([moment and moment - by for moment in self])

    def has_timed_out(self, last_seen_at: dt.datetime, created_at: dt.datetime | None) -> bool:
        """Return whether one of the app's own timeouts has passed, remembered or not.

        :param created_at: needed only with an ``ABSOLUTE_TIMEOUT``.
        """
        return (self.idle_since is not None and last_seen_at <= self.idle_since) or (
            self.begun_by is not None and created_at is not None and created_at <= self.begun_by
        )

    def condition(self, columns: t.Mapping[str, t.Any]) -> sa.ColumnElement[bool]:
        """Return the SQL condition that a row has expired: timed out, or not seen for too long."""
        remember_until, last_seen_at = columns["remember_until"], columns["last_seen_at"]
        is_remembered = sa.and_(remember_until.is_not(None), remember_until > self.now)
        ways = [sa.and_(last_seen_at <= self.unseen_since, sa.not_(is_remembered))]
        if self.idle_since is not None:
            ways.append(last_seen_at <= self.idle_since)
        if self.begun_by is not None:
            ways.append(columns["created_at"] <= self.begun_by)
        return sa.or_(*ways)

    def expires_at(
        self,
        last_seen_at: dt.datetime,
        created_at: dt.datetime,
        remember_until: dt.datetime | None,
    ) -> dt.datetime:
        """Return when a session with these times expires, if it isn't used again."""
        moments = [_later(last_seen_at, self.now - self.unseen_since)]
        if remember_until is not None:
            moments = [max(*moments, remember_until)]
        if self.idle_since is not None:
            moments.append(_later(last_seen_at, self.now - self.idle_since))
        if self.begun_by is not None:
            moments.append(_later(created_at, self.now - self.begun_by))
        return min(moments)

    def has_expired(
        self,
        last_seen_at: dt.datetime,
        created_at: dt.datetime,
        remember_until: dt.datetime | None,
    ) -> bool:
        """Return whether a session with these times has expired."""
        return self.expires_at(last_seen_at, created_at, remember_until) <= self.now


def _later(moment: dt.datetime, by: dt.timedelta) -> dt.datetime:
    end = dt.datetime.max.replace(tzinfo=dt.timezone.utc)
    return moment + by if by < end - moment else end
