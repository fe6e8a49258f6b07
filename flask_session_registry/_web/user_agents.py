"""Device names for people, derived from the user agent."""

from __future__ import annotations

import functools
import re
import typing as t

from ua_parser import parse

from .._plain_text import plain

#: Parts of ua-parser's browser names that distinguish variants of what users know as one browser.
_VARIANT = re.compile(r"\b(Mobile|iOS|WebView|UI/WKWebView)\b")
_NAMES = {"IE": "Internet Explorer", "Mac OS X": "macOS", "Chrome OS": "ChromeOS"}
_APPLE = {"iPad": "tablet", "iPhone": "phone", "iPod": "phone"}
_DESKTOPS = {"Windows", "macOS", "ChromeOS", "Linux", "Ubuntu", "Fedora", "Debian", "FreeBSD"}
_MAX_LENGTH = 40

#: The name of a program that ua-parser doesn't know (RFC 9110, 10.1.5). Every browser is Mozilla.
_PRODUCT = re.compile(r"(?!Mozilla\b)([\w!#$%&'*+.^`|~-]{1,40})(?=[/\s]|$)", re.ASCII)


class Device(t.NamedTuple):
    """A device as its user agent describes it. The text is untrusted: escape it."""

    #: ``None`` if unknown.
    browser: str | None
    #: The operating system; for Apple's, the device.
    system: str | None
    #: ``"desktop"``, ``"phone"``, ``"tablet"``, ``"program"`` (not a browser), or ``"unknown"``.
    kind: str

    @property
    def name(self) -> str | None:
        """The name in English, such as ``"Firefox on Linux"``; ``None`` if nothing is known."""
        if self.browser and self.system:
            return f"{self.browser} on {self.system}"
        return self.browser or self.system


@functools.lru_cache(1024)
def device_of(user_agent: str | None) -> Device:
    """Return the device that sends this ``User-Agent``, which may be any text."""
    user_agent = user_agent or ""
    found = parse(user_agent)
    browser = _name(found.user_agent.family) if found.user_agent else None
    system = _name(found.os.family) if found.os else None
    if browser == system:
        browser = None
    if found.device and found.device.family in _APPLE:
        return Device(browser, found.device.family, _APPLE[found.device.family])
    if browser is None and system is None:
        return _program(user_agent)
    return Device(browser, system, _kind(system, user_agent))


def _program(user_agent: str) -> Device:
    product = _PRODUCT.match(user_agent)
    if product is None:
        return Device(None, None, "unknown")
    return Device(product[1], None, "program")


def _kind(system: str | None, user_agent: str) -> str:
    if system is None:
        return "program"
    if system == "Android":
        return "phone" if "Mobile" in user_agent else "tablet"
    return "desktop" if system in _DESKTOPS else "unknown"


def _name(family: str) -> str | None:
    name = " ".join(plain(_VARIANT.sub("", family)).split())[:_MAX_LENGTH]
    return _NAMES.get(name, name) or None
