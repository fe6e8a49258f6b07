"""Approximate places of IP addresses."""

from __future__ import annotations

import typing as t

import geoip2.database
from geoip2.errors import GeoIP2Error
from maxminddb import InvalidDatabaseError

#: Parts of the names of database types, with the method that reads such a database.
_METHODS = {"Enterprise": "enterprise", "City": "city", "Country": "country"}


class GeoIPDatabase:
    """A GeoIP2 or GeoLite2 database of cities or countries.

    :param path: of the ``.mmdb`` file.
    :raises OSError: the file can't be read.
    :raises ValueError: the database is of another type.
    :raises maxminddb.InvalidDatabaseError: the file is not a database.
    """

    def __init__(self, path: str) -> None:
        reader = geoip2.database.Reader(path)
        kind = reader.metadata().database_type
        methods = [method for name, method in _METHODS.items() if name in kind]
        if not methods:
            reader.close()
            raise ValueError(f"It is a '{kind}'. Use a database of cities or countries.")
        self._find: t.Callable[[str], t.Any] = getattr(reader, methods[0])

    def name(self, ip_address: str | None, language: str) -> str | None:
        """Return the city and country of an address, as known; ``None`` if neither is.

        :param language: of the names. Names that the database lacks in it are in English.
        """
        if ip_address is None:
            return None
        try:
            found = self._find(ip_address)
        except (GeoIP2Error, InvalidDatabaseError, ValueError):
            return None
        places = (getattr(found, "city", None), found.country)
        names = [
            place.names.get(language) or place.names.get(language[:2]) or place.names.get("en")
            for place in places
            if place is not None
        ]
        return ", ".join(name for name in names if name) or None
