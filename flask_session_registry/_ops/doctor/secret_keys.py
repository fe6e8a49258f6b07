"""Secret keys of the app that can be guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flask import Flask

from .findings import Finding, error

#: In bytes. Shorter keys can be found by brute force.
_MIN_LENGTH = 16

#: Well-known keys, from tutorials and from the documentation of Flask. Only lower-case letters and
#: digits are compared.
_KNOWN_KEYS = frozenset(
    {
        "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
        "5y2lf4q8z",
        "5y2lf4q8znxec",
        "averysecretkey",
        "changeme",
        "changethis",
        "changethiskey",
        "dev",
        "development",
        "developmentkey",
        "devkey",
        "hardtoguessstring",
        "mysecretkey",
        "pleasechangeme",
        "replaceme",
        "secret",
        "secretkey",
        "secretkeyhere",
        "supersecret",
        "supersecretkey",
        "thisisasecret",
        "thisisasecretkey",
        "topsecret",
        "verysecretkey",
        "yoursecretkey",
        "yoursecretkeyhere",
        "youwillneverguess",
    }
)


def examine(app: Flask) -> Iterator[Finding]:
    remedy = (
        "Generate one with python -c 'import secrets; print(secrets.token_hex())', and keep it out"
        " of the code."
    )
    if not app.secret_key:
        yield error("'SECRET_KEY' is not set, so sign-in can't work.", remedy)
    else:
        yield from _examine_key("'SECRET_KEY'", app.secret_key, remedy)
    fallbacks = app.config.get("SECRET_KEY_FALLBACKS") or ()
    if isinstance(fallbacks, (str, bytes)):
        yield error(
            "'SECRET_KEY_FALLBACKS' is text, so each character is taken for a key.",
            "Make it a list.",
        )
        return
    for key in fallbacks:
        yield from _examine_key("A key in 'SECRET_KEY_FALLBACKS'", key, "Remove it from the list.")


def _examine_key(name: str, key: object, remedy: str) -> Iterator[Finding]:
    raw = key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogatepass")
    if re.sub(rb"[\W_]", b"", raw).lower().decode("ascii", "replace") in _KNOWN_KEYS:
        yield error(
            f"{name} is a placeholder that is publicly known: anyone can sign cookies.", remedy
        )
    elif len(raw) < _MIN_LENGTH:
        yield error(
            f"{name} has fewer than {_MIN_LENGTH} bytes and can be found by brute force.", remedy
        )
