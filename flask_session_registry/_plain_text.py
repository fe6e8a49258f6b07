"""What may be shown of a text that a stranger has sent?"""

from __future__ import annotations

import re

#: Characters that can break a line, a terminal or the direction of a text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """The text, with a space for each character that could break what shows it."""
    return _CONTROL.sub(" ", text)
