"""What may a user see of a session of theirs? Never a session id, or the key of an entry."""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid

from .. import _clock as clock
from .._app import Registry
from .._ops.serializers import as_json
from .i18n import language
from .user_agents import device_of


class SessionView(t.NamedTuple):
    """One session, as the page shows it."""

    id: uuid.UUID
    is_current: bool
    #: In the language of the request.
    name: str
    #: As of :class:`~flask_session_registry.user_agents.Device`.
    kind: str
    user_agent: str | None
    ip_address: str | None
    place: str | None
    created_at: dt.datetime
    last_seen_at: dt.datetime
    #: ``None``: it is not remembered, or no more.
    remember_until: dt.datetime | None
    ended_at: dt.datetime | None
    reason: str | None

    @property
    def json(self) -> dict[str, t.Any]:
        return {name: as_json(value) for name, value in self._asdict().items()}


def session_view(registry: Registry, row: t.Any, *, current: t.Any) -> SessionView:
    """The facts of a session.

    :param current: the session of this request.
    """
    device, place, until = device_of(row.user_agent), None, row.remember_until
    name = device.name or registry.texts("unknown_device")
    if device.browser and device.system:
        name = registry.texts("device", browser=device.browser, system=device.system)
    if registry.geoip is not None:
        place = registry.geoip.name(row.ip_address, language())
    return SessionView(
        id=row.id,
        is_current=row.id == current.id,
        name=name,
        kind=device.kind,
        user_agent=row.user_agent,
        ip_address=row.ip_address,
        place=place,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        remember_until=until if until is not None and until > clock.now() else None,
        ended_at=row.revoked_at,
        reason=row.revoked_reason,
    )
