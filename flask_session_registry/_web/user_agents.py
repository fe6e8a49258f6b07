"""Which device is this, in words that a person understands?"""

from __future__ import annotations

import functools
import re
import typing as t

from ua_parser import parse

from .._plain_text import plain

#: What ua-parser says of a browser that its user does not: there it is one browser.
_VARIANT = re.compile(r"\b(Mobile|iOS|WebView|UI/WKWebView)\b")
_NAMES = {"IE": "Internet Explorer", "Mac OS X": "macOS", "Chrome OS": "ChromeOS"}
_DESKTOPS = {"Windows", "macOS", "ChromeOS", "Linux", "Ubuntu", "Fedora", "Debian", "FreeBSD"}
_LENGTH = 40

#: The name of a program that ua-parser does not know (RFC 9110, 10.1.5); every browser is Mozilla.
_PRODUCT = re.compile(r"(?!Mozilla\b)([\w!#$%&'*+.^`|~-]{1,40})(?=[/\s]|$)", re.ASCII)


class Device(t.NamedTuple):
    """What a user agent says of a device. A stranger wrote it: escape it."""

    #: ``None``: unknown.
    browser: str | None
    #: The operating system; of Apple's, the device.
    system: str | None
    #: ``"desktop"``, ``"phone"``, ``"tablet"``, ``"program"`` (no browser), or ``"unknown"``.
    kind: str

    @property
    def name(self) -> str | None:
        """In English, ``"Firefox on Linux"``; ``None``: nothing is known."""
        if self.browser and self.system:
            return f"{self.browser} on {self.system}"
        return self.browser or self.system


@functools.lru_cache(1024)
def device_of(user_agent: str | None) -> Device:
    """The device that sends this ``User-Agent``; any text will do."""
    user_agent = user_agent or ""
    found = parse(user_agent)
    browser = _name(found.user_agent.family if found.user_agent else "")
    system = _name(found.os.family if found.os else "")
    if browser == system:
        browser = None
    family = found.device.family if found.device else ""
    if family in ("iPad", "iPhone", "iPod"):
        return Device(browser, family, "tablet" if family == "iPad" else "phone")
    if system == "Android":
        return Device(browser, system, "phone" if "Mobile" in user_agent else "tablet")
    if system in _DESKTOPS:
        return Device(browser, system, "desktop")
    if browser is None and system is None and (product := _PRODUCT.match(user_agent)):
        browser = product[1]
    return Device(browser, system, "program" if browser and system is None else "unknown")


def _name(family: str) -> str | None:
    name = " ".join(plain(_VARIANT.sub("", family)).split())[:_LENGTH]
    return _NAMES.get(name, name) or None
