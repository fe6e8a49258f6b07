"""Decides when a process prunes by itself."""

from __future__ import annotations

import datetime as dt
import random
import time


class PruneSchedule:
    """When this process prunes by itself.

    :param interval: between two prunes; ``None``: never.
    """

    def __init__(self, interval: dt.timedelta | None) -> None:
        self._seconds = None if interval is None else interval.total_seconds()
        self.next_at: float | None = None

    def is_due(self) -> bool:
        """Return whether it is time to prune."""
        if self._seconds is None:
            return False
        now = time.monotonic()
        if self.next_at is None:
            # Each process begins at a random moment: not all at once, nor only those that live
            # long.
            self.next_at = now + random.uniform(0, self._seconds)  # noqa: S311
        return now >= self.next_at

    def take_turn(self) -> bool:
        """Return whether it is time to prune; if so, the next time is an interval later."""
        if self._seconds is None or not self.is_due():
            return False
        self.next_at = time.monotonic() + self._seconds
        return True
