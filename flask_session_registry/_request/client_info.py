"""Client details recorded for each request."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import typing as t

from flask import request

from .._plain_text import plain

_USER_AGENT_LENGTH = 512

#: An address as some proxies write it: with a port, and IPv6 in brackets. An IPv6 address without
#: brackets has no port.
_WITH_PORT = re.compile(r"\[(?P<v6>.+)\](?::[0-9]+)?|(?P<v4>[0-9.]+):[0-9]+", re.DOTALL)


def client_info(moment: dt.datetime) -> dict[str, t.Any]:
    """Return what is recorded about the client of this request."""
    return {
        "last_seen_at": moment,
        "ip_address": _ip_address(request.remote_addr),
        "user_agent": plain(request.user_agent.string)[:_USER_AGENT_LENGTH] or None,
    }


def _ip_address(address: str | None) -> str | None:
    """Return an address in its usual form, without port and zone; ``None`` if it isn't one."""
    text = address or ""
    match = _WITH_PORT.fullmatch(text)
    if match is not None:
        text = match["v6"] or match["v4"]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A dual-stack socket reports an IPv4 address within an IPv6 one.
    return str(getattr(found, "ipv4_mapped", None) or found)
