"""Which sessions does an operator mean?"""

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
    """What a session has in common with all that are meant. What is ``None`` does not matter."""

    #: Begun at this moment or before.
    begun_by: dt.datetime | None = None
    #: Last seen at this moment or before.
    unseen_since: dt.datetime | None = None
    #: Last seen from an address in this network.
    network: Network | None = None
    #: This is in the user agent, in small or capital letters.
    user_agent: str | None = None

    def is_met_by_all(self) -> bool:
        return all(value is None for value in self)

    def condition(self, columns: t.Mapping[str, t.Any]) -> sa.ColumnElement[bool]:
        """Whether a row is meant, as far as a database can tell: not by its network."""
        conditions: list[sa.ColumnElement[bool]] = [sa.true()]
        if self.begun_by is not None:
            conditions.append(columns["created_at"] <= self.begun_by)
        if self.unseen_since is not None:
            conditions.append(columns["last_seen_at"] <= self.unseen_since)
        if self.network is not None:
            conditions.append(columns["ip_address"].is_not(None))
        if self.user_agent is not None:
            conditions.append(columns["user_agent"].icontains(self.user_agent, autoescape=True))
        return sa.and_(*conditions)

    def meets(self, session: t.Any) -> bool:
        """The same of a session that is not in a database; by its network, too."""
        return (
            (self.begun_by is None or session.created_at <= self.begun_by)
            and (self.unseen_since is None or session.last_seen_at <= self.unseen_since)
            and self.meets_address(session.ip_address)
            and (
                self.user_agent is None
                or self.user_agent.lower() in (session.user_agent or "").lower()
            )
        )

    def meets_address(self, address: str | None) -> bool:
        """Whether an address is in the network; one that is none is in no network."""
        if self.network is None:
            return True
        try:
            return ipaddress.ip_address(address or "") in self.network
        except ValueError:
            return False


def ago(text: str) -> dt.datetime:
    """The moment so long ago: ``45s``, ``90m``, ``12h``, ``30d``, ``2w``.

    :raises ValueError: it is no such duration, with a sentence that says what to write instead.
    """
    written = re.fullmatch("0*([1-9][0-9]*)([smhdw])", text)
    if written is None:
        raise ValueError(
            f"'{text}' is no duration. Write a whole number above zero and its unit: '45s', '90m',"
            " '12h', '30d' or '2w'."
        )
    try:
        return clock.now() - dt.timedelta(**{_UNITS[written[2]]: int(written[1])})
    except (OverflowError, ValueError):
        raise ValueError(f"'{text}' is longer ago than anything. Write less.") from None


def network(text: str) -> Network:
    """The network of this notation; an address is a network of one.

    :raises ValueError: it is none, with a sentence that says what to write instead.
    """
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(_what_to_write(text)) from None
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(_IPV4_WITHIN_IPV6):
        # As such it would meet nobody: the registry writes down the IPv4 address.
        address = int(found.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((address, found.prefixlen - _IPV4_WITHIN_IPV6.prefixlen))
    return found


def _what_to_write(text: str) -> str:
    try:
        around = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return (
            f"'{text}' is no IP address or network. Write '203.0.113.9', '10.0.0.0/8' or"
            " '2001:db8::/32'."
        )
    return f"'{text}' is an address within a network. Write '{around}' for the whole network."


def part_of_user_agent(text: str) -> str:
    """The text as it would have been written down.

    :raises ValueError: it is empty, and would be in all of them.
    """
    if not text:
        raise ValueError("It is empty. Write what is in the user agent, 'Firefox' say.")
    return plain(text)
