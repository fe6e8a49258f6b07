"""When, whence and with what is this browser seen?"""

from __future__ import annotations

import datetime as dt
import ipaddress
import typing as t

from flask import request

from .plain_text import plain

_USER_AGENT_LENGTH = 512


def sight(moment: dt.datetime) -> dict[str, t.Any]:
    """What the row keeps of this request."""
    return {
        "last_seen_at": moment,
        "ip_address": _ip_address(request.remote_addr),
        "user_agent": plain(request.user_agent.string)[:_USER_AGENT_LENGTH] or None,
    }


def _ip_address(address: str | None) -> str | None:
    """The address in its usual form, without a scope; ``None`` if it is none (a socket, say)."""
    try:
        found = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return None
    # A socket for both families gives an IPv4 address within an IPv6 one.
    return str(getattr(found, "ipv4_mapped", None) or found)
