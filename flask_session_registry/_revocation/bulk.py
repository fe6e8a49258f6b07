"""How do the sessions of very many users end? Batch after batch, each in a short transaction."""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Iterator, Sequence

from flask import Flask

from .._app import Registry
from .._ops.filters import Filter
from .revoke import revoke_users


@dataclasses.dataclass
class Tally:
    """What was done so far; true at every moment, whatever interrupts it."""

    #: How many sessions have ended.
    ended: int = 0
    #: How many of their store entries were deleted, and how many could not be.
    purged: int = 0
    unpurged: int = 0


def revoke_many(
    registry: Registry,
    app: Flask,
    user_ids: Sequence[t.Any] | None,
    filter: Filter,
    *,
    reason: str,
    tally: Tally,
) -> Iterator[int]:
    """End the sessions that are meant, of these users or of everybody; how many, batch by batch."""
    records, session = registry.records, registry.db_session
    if user_ids is None and filter.is_met_by_all():
        registry.adoption.before_revoking_everybody()
    for owners, where in records.select_for_revocation(user_ids, filter):
        revocation = revoke_users(
            registry, app, owners, reason=reason, session=session, where=where
        )
        try:
            session.commit()
        finally:
            # What follows the commit may be interrupted.
            tally.ended += revocation.ended
            tally.purged += revocation.purged
            tally.unpurged += revocation.unpurged
        yield revocation.ended
