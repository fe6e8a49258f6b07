"""How do the sessions of very many users end? Batch after batch, each in a short transaction."""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Iterator, Sequence

from flask import Flask

from .filters import Filter
from .installation import Installation
from .revocation import revoke_users


@dataclasses.dataclass
class Tally:
    """What was done so far; true at every moment, whatever interrupts it."""

    #: How many sessions have ended.
    ended: int = 0
    #: How many of their store entries were deleted, and how many could not be.
    purged: int = 0
    unpurged: int = 0


def revoke_many(
    installation: Installation,
    app: Flask,
    user_ids: Sequence[t.Any] | None,
    filter: Filter,
    *,
    reason: str,
    tally: Tally,
) -> Iterator[int]:
    """End the sessions that are meant, of these users or of everybody; how many, batch by batch."""
    records, session = installation.records, installation.db_session
    if user_ids is None and filter.is_met_by_all() and installation.settings.adopts:
        # Also of those who were not seen since the installation.
        installation.table.bar_everybody()
    for owners, among in records.to_end(user_ids, filter):
        revocation = revoke_users(
            installation, app, owners, reason=reason, session=session, among=among
        )
        try:
            session.commit()
        finally:
            # What follows the commit may be interrupted.
            tally.ended += revocation.ended
            tally.purged += revocation.purged
            tally.unpurged += revocation.unpurged
        yield revocation.ended
