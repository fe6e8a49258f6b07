"""Text from untrusted sources, made safe to display."""

from __future__ import annotations

import re

#: Characters that can break a line, a terminal or the direction of a text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Return the text with each character that could break its display replaced by a space."""
    return _CONTROL.sub(" ", text)
