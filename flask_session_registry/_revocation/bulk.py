"""Ends the sessions of very many users: batch by batch, each in a short transaction."""

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
    """What a bulk revocation has done so far: correct at any moment, even if interrupted."""

    #: The number of sessions that have ended.
    ended: int = 0
    #: The number of their store entries that were deleted, and that could not be.
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
    """End the matching sessions of these users, or of everybody, in the app's session.

    Each batch is committed before the next one is read.

    :param tally: updated after each commit, also if what follows the commit is interrupted.
    :returns: yields the number of sessions that each batch has ended.
    """
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
            tally.ended += revocation.after_commit.ended
            tally.purged += revocation.after_commit.purged
            tally.unpurged += revocation.after_commit.unpurged
        yield revocation.after_commit.ended
