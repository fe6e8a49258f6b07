"""Filters by which an operator selects user sessions."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import typing as t

import sqlalchemy as sa

from .. import _clock as clock
from .._plain_text import plain

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_IPV4_WITHIN_IPV6 = ipaddress.IPv6Network("::ffff:0:0/96")


class Filter(t.NamedTuple):
    """Conditions that a session must match, all of them; those that are ``None`` don't matter."""

    #: Created at this moment or before.
    created_until: dt.datetime | None = None
    #: Last seen at this moment or before.
    last_seen_until: dt.datetime | None = None
    #: Last seen from an address in this network.
    network: Network | None = None
    #: The user agent contains this text, whatever the case.
    user_agent: str | None = None

    def is_met_by_all(self) -> bool:
        """Return whether every session matches."""
        return all(value is None for value in self)

    def condition(self, columns: t.Mapping[str, t.Any]) -> sa.ColumnElement[bool]:
        """Return the condition for a row, except for the network: databases can't compare it."""
        conditions: list[sa.ColumnElement[bool]] = [sa.true()]
        if self.created_until is not None:
            conditions.append(columns["created_at"] <= self.created_until)
        if self.last_seen_until is not None:
            conditions.append(columns["last_seen_at"] <= self.last_seen_until)
        if self.network is not None:
            conditions.append(columns["ip_address"].is_not(None))
        if self.user_agent is not None:
            conditions.append(columns["user_agent"].icontains(self.user_agent, autoescape=True))
        return sa.and_(*conditions)

    def meets(self, session: t.Any) -> bool:
        """Return whether a session matches, its network included."""
        return (
            (self.created_until is None or session.created_at <= self.created_until)
            and (self.last_seen_until is None or session.last_seen_at <= self.last_seen_until)
            and self.meets_address(session.ip_address)
            and (
                self.user_agent is None
                or self.user_agent.lower() in (session.user_agent or "").lower()
            )
        )

    def meets_address(self, address: str | None) -> bool:
        """Return whether an address is in the network; an invalid address is in none."""
        if self.network is None:
            return True
        try:
            return ipaddress.ip_address(address or "") in self.network
        except ValueError:
            return False


def ago(text: str) -> dt.datetime:
    """Return the moment this long ago: ``45s``, ``90m``, ``12h``, ``30d``, ``2w``.

    :raises ValueError: the duration is invalid. The message says what to write instead.
    """
    written = re.fullmatch("0*([1-9][0-9]*)([smhdw])", text)
    if written is None:
        raise ValueError(
            f"'{text}' is not a duration. Use a whole number above zero and a unit: '45s', '90m',"
            " '12h', '30d' or '2w'."
        )
    try:
        return clock.now() - dt.timedelta(**{_UNITS[written[2]]: int(written[1])})
    except (OverflowError, ValueError):
        raise ValueError(f"'{text}' is out of range. Use a shorter duration.") from None


def network(text: str) -> Network:
    """Parse a network; an address is a network of one.

    :raises ValueError: the network is invalid. The message says what to write instead.
    """
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(_explain_invalid_network(text)) from None
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(_IPV4_WITHIN_IPV6):
        # It would match no session: the registry records the IPv4 address.
        address = int(found.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((address, found.prefixlen - _IPV4_WITHIN_IPV6.prefixlen))
    return found


def _explain_invalid_network(text: str) -> str:
    try:
        around = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return (
            f"'{text}' is not an IP address or network. Use '203.0.113.9', '10.0.0.0/8' or"
            " '2001:db8::/32', for example."
        )
    return f"'{text}' is an address within a network. Use '{around}' for the whole network."


def part_of_user_agent(text: str) -> str:
    """Return the text as it would be recorded.

    :raises ValueError: it is empty, so every user agent would contain it.
    """
    if not text:
        raise ValueError("It is empty. Use a part of the user agent, such as 'Firefox'.")
    return plain(text)
