"""Where is an IP address, roughly?"""

from __future__ import annotations

import typing as t

import geoip2.database
from geoip2.errors import GeoIP2Error

#: What is read of the databases that are not of countries alone.
_OF_COUNTRIES = "Country"


class Places:
    """A database of GeoIP2, or GeoLite2: of cities or of countries.

    :param path: of the ``.mmdb`` file.
    :raises OSError: it can't be read.
    :raises maxminddb.InvalidDatabaseError: it is none.
    """

    def __init__(self, path: str) -> None:
        self._reader = geoip2.database.Reader(path)
        self._has_cities = not self._reader.metadata().database_type.endswith(_OF_COUNTRIES)

    def name(self, ip_address: str | None, language: str) -> str | None:
        """City and country of an address, as far as they are known; ``None``: they are not.

        :param language: of the names, where the database has them in it; else they are in English.
        """
        if ip_address is None:
            return None
        try:
            found: t.Any = (
                self._reader.city(ip_address)
                if self._has_cities
                else self._reader.country(ip_address)
            )
        except (GeoIP2Error, ValueError):
            return None
        records = (found.city, found.country) if self._has_cities else (found.country,)
        names = [
            record.names.get(language) or record.names.get(language[:2]) or record.names.get("en")
            for record in records
        ]
        return ", ".join(name for name in names if name) or None
