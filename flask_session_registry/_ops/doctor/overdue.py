"""Maintenance that is overdue."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from flask import Flask

from ..._app import Registry
from ..counts import sessions_of
from .findings import Finding, warning

#: Maintenance that is due for longer than this probably isn't being done.
_OVERDUE = dt.timedelta(days=1)


def examine(app: Flask, registry: Registry) -> Iterator[Finding]:
    expiry = registry.expiry(app).earlier(_OVERDUE)
    unpurged = registry.records.count_unpurged(ended_by=expiry.now)
    if unpurged:
        yield warning(
            f"The entries of {sessions_of(unpurged)} that ended more than"
            " a day ago are still in the session store.",
            "Run 'flask sessions prune'. The log says why they could not be deleted before.",
        )
    if registry.settings.auto_prune is not None:
        return
    if unpurged or registry.records.count_expired(expiry):
        yield warning(
            "'SESSION_REGISTRY_AUTO_PRUNE' is None and nothing else seems to prune: maintenance is"
            " more than a day overdue.",
            "Run 'flask sessions prune' from cron.",
        )
