"""User sessions as the page shows them: never with a session id or the key of a store entry."""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid

from .. import _clock as clock
from .._app import Registry
from .._ops.serializers import as_json
from ..models import UserSessionRecord
from .i18n import language
from .user_agents import Device, device_of


class SessionView(t.NamedTuple):
    """A user session on the page."""

    id: uuid.UUID
    is_current: bool
    #: The name of the device, in the language of the request.
    name: str
    #: The kind of :class:`~.user_agents.Device`.
    kind: str
    user_agent: str | None
    ip_address: str | None
    place: str | None
    created_at: dt.datetime
    last_seen_at: dt.datetime
    #: ``None`` if the session is not remembered, or no longer.
    remember_until: dt.datetime | None
    ended_at: dt.datetime | None
    reason: str | None

    def as_json(self) -> dict[str, t.Any]:
        return {name: as_json(value) for name, value in self._asdict().items()}


def present(
    registry: Registry, row: UserSessionRecord, *, current: UserSessionRecord
) -> SessionView:
    """Return what the page shows of a session.

    :param current: the session of this request.
    """
    device, until = device_of(row.user_agent), row.remember_until
    geoip = registry.geoip
    return SessionView(
        id=row.id,
        is_current=row.id == current.id,
        name=_name(registry, device),
        kind=device.kind,
        user_agent=row.user_agent,
        ip_address=row.ip_address,
        place=None if geoip is None else geoip.name(row.ip_address, language()),
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        remember_until=until if until is not None and until > clock.now() else None,
        ended_at=row.revoked_at,
        reason=row.revoked_reason,
    )


def _name(registry: Registry, device: Device) -> str:
    if device.browser and device.system:
        return registry.texts("device", browser=device.browser, system=device.system)
    return device.name or registry.texts("unknown_device")
