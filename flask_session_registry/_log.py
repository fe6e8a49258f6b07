"""The logger ``flask_session_registry``, to which no secret goes.

The text of an error that is not ours might hold one: a database names the value that is there
already, Redis its address with the password in it, a session store the key of an entry. So of such
an error, and of all that led to it, the log has the class, the code and the place, and no text. No
error is changed by that: whoever catches it, or logs it too, has all of it.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator

from .errors import SessionRegistryError

#: How many errors of a chain, or of a group, are described.
_MOST = 20

#: Where the errors of database drivers, and of the system, have their code.
_CODES = ("sqlstate", "pgcode", "sqlite_errorname", "errno")
_CODE = re.compile("[0-9A-Z_]{1,40}")


def _hide_texts(record: logging.LogRecord) -> bool:
    """Describe the error of a record, in the place of what a formatter would make of it."""
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = description_of(record.exc_info[1])
        # A formatter, or a service that collects errors, would go through it by itself.
        record.exc_info = None
    return True


def description_of(error: BaseException) -> str:
    """The traceback of an error, and of all that led to it, without texts that are not ours."""
    try:
        return "".join(_describe(error)).rstrip()
    except Exception:
        # One of its attributes raises. A log line is not worth a failed request.
        return type(error).__name__


def _describe(error: BaseException) -> Iterator[str]:
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _MOST:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        if seen:
            yield "\nCaused by, or grouped with:\n\n"
        seen.add(id(one))
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(one.__traceback__)
        yield f"{_name_of(one)}\n"
        members = getattr(one, "exceptions", ())
        causes = (one.__cause__, one.__context__, *(members if isinstance(members, tuple) else ()))
        waiting += [cause for cause in causes if isinstance(cause, BaseException)]


def _name_of(error: BaseException) -> str:
    cls = type(error)
    name = cls.__qualname__
    if cls.__module__ != "builtins":
        name = f"{cls.__module__}.{name}"
    if isinstance(error, SessionRegistryError):
        return f"{name}: {error}"
    code = code_of(error)
    return name if code is None else f"{name} ({code})"


def code_of(error: BaseException) -> str | None:
    """The number or the name that a driver has for such errors; ``None``: there is none."""
    # Drivers of MariaDB have it as their first argument, and may have a vaguer one besides.
    first = error.args[0] if error.args and isinstance(error.args[0], int) else None
    for code in (first, *(getattr(error, name, None) for name in _CODES)):
        if isinstance(code, (int, str)) and _CODE.fullmatch(str(code)):
            return str(code)
    return None


log = logging.getLogger("flask_session_registry")
log.addFilter(_hide_texts)
