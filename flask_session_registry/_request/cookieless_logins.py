"""Clients that keep no cookies, and sign in again on each request."""

from __future__ import annotations

import typing as t
from collections.abc import Hashable

from .._records.base import StoreEntry

if t.TYPE_CHECKING:
    from .._app import Registry

#: After this many logins of one user, from one address with one user agent, a process looks for
#: those of their sessions that no browser has come back to, and leaves this many open, with the new
#: one. Only for sessions begun before a view was called, by requests without any cookie.
NEVER_RESUMED = 50

#: The maximum number of clients that a process remembers.
_MOST_CLIENTS = 10_000


class CookielessLogins:
    """Counts logins without cookies by client, in this process."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = {}

    def counts_to(self, number: int, client: Hashable) -> bool:
        """Count a login; return whether it is this client's n-th, and start over if so."""
        if len(self._counts) >= _MOST_CLIENTS and client not in self._counts:
            self._counts.clear()
        count = self._counts[client] = self._counts.get(client, 0) + 1
        if count < number:
            return False
        self._counts.pop(client, None)
        return True


def find_never_resumed(registry: Registry, values: dict[str, t.Any]) -> list[StoreEntry]:
    """Return the sessions that end because their client signs in again on each request.

    Otherwise each of its requests would leave a row for a month. It may do so, for example, because
    of a header that a proxy sets.

    :param values: the values of the new row.
    """
    client = (values["user_id"], values["ip_address"], values["user_agent"])
    if not registry.cookieless_logins.counts_to(NEVER_RESUMED, client):
        return []
    found = registry.records.find_never_resumed(
        values["user_id"],
        ip_address=values["ip_address"],
        user_agent=values["user_agent"],
        skip=NEVER_RESUMED - 1,
    )
    if found:
        registry.log_once.warning(
            "never resumed",
            "A user has signed in %d times from one address with one user agent, without any"
            " cookie, and never come back: the oldest of these sessions end. If 'login_user()' is"
            " called for each request, because of a header that a proxy sets, use Flask-Login's"
            " 'request_loader' instead.",
            NEVER_RESUMED,
        )
    return found
