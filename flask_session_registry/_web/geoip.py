"""Where is an IP address, roughly?"""

from __future__ import annotations

import typing as t

import geoip2.database
from geoip2.errors import GeoIP2Error
from maxminddb import InvalidDatabaseError

#: What the type of a database has in its name, and the method that reads such a one.
_KINDS = {"Enterprise": "enterprise", "City": "city", "Country": "country"}


class GeoIPDatabase:
    """A database of GeoIP2, or GeoLite2: of cities or of countries.

    :param path: of the ``.mmdb`` file.
    :raises OSError: it can't be read.
    :raises ValueError: it is of something else.
    :raises maxminddb.InvalidDatabaseError: it is none.
    """

    def __init__(self, path: str) -> None:
        reader = geoip2.database.Reader(path)
        kind = reader.metadata().database_type
        found = [method for name, method in _KINDS.items() if name in kind]
        if not found:
            reader.close()
            raise ValueError(f"It is a '{kind}', neither of cities nor of countries.")
        self._find: t.Callable[[str], t.Any] = getattr(reader, found[0])

    def name(self, ip_address: str | None, language: str) -> str | None:
        """City and country of an address, as far as they are known; ``None``: they are not.

        :param language: of the names, where the database has them in it; else they are in English.
        """
        if ip_address is None:
            return None
        try:
            found = self._find(ip_address)
        except (GeoIP2Error, InvalidDatabaseError, ValueError):
            return None
        records = (getattr(found, "city", None), found.country)
        names = [
            record.names.get(language) or record.names.get(language[:2]) or record.names.get("en")
            for record in records
            if record is not None
        ]
        return ", ".join(name for name in names if name) or None
