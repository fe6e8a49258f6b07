"""The logger ``flask_session_registry``, which never logs secrets.

The text of another library's error might contain one: a database names the value that already
exists, Redis its address with the password, a session store the key of an entry. So of such an
error, and of everything that led to it, the log shows the class, the code and the place, but no
text. The error itself is not changed: code that catches or logs it, too, gets all of it.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator

from .errors import SessionRegistryError

#: The maximum number of errors described of one chain or group.
_MAX_ERRORS = 20

#: Attributes in which errors of database drivers, and of the system, have their code.
_CODES = ("sqlstate", "pgcode", "sqlite_errorname", "errno")
_CODE = re.compile("[0-9A-Z_]{1,40}")


def _hide_texts(record: logging.LogRecord) -> bool:
    """Replace the error of a record by its description."""
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = describe(record.exc_info[1])
        # Formatters, and services that collect errors, would read its texts.
        record.exc_info = None
    return True


def describe(error: BaseException) -> str:
    """Return the traceback of an error, and of all that led to it, without foreign texts."""
    try:
        return "".join(_describe(error)).rstrip()
    except Exception:
        # One of its attributes raises. A log line must not make a request fail.
        return type(error).__name__


def _describe(error: BaseException) -> Iterator[str]:
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _MAX_ERRORS:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        if seen:
            yield "\nCaused by, or grouped with:\n\n"
        seen.add(id(current))
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(current.__traceback__)
        yield f"{_name_of(current)}\n"
        members = getattr(current, "exceptions", ())
        related = (
            *(current.__cause__, current.__context__),
            *(members if isinstance(members, tuple) else ()),
        )
        waiting += [each for each in related if isinstance(each, BaseException)]


def _name_of(error: BaseException) -> str:
    cls = type(error)
    name = cls.__qualname__
    if cls.__module__ != "builtins":
        name = f"{cls.__module__}.{name}"
    if isinstance(error, SessionRegistryError):
        return f"{name}: {error}"
    code = error_code(error)
    return name if code is None else f"{name} ({code})"


def error_code(error: BaseException) -> str | None:
    """Return the number or name that a driver gives to such errors; ``None`` without one."""
    # MariaDB's drivers have it as the first argument, and may have a less specific attribute too.
    first = error.args[0] if error.args and isinstance(error.args[0], int) else None
    for code in (first, *(getattr(error, name, None) for name in _CODES)):
        if isinstance(code, (int, str)) and _CODE.fullmatch(str(code)):
            return str(code)
    return None


log = logging.getLogger("flask_session_registry")
log.addFilter(_hide_texts)


class OnceLogger:
    """Logs each event once."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def warning(self, event: str, message: str, *arguments: object) -> None:
        """Log a warning, unless this event has been logged before."""
        if event not in self._logged:
            self._logged.add(event)
            log.warning(message, *arguments)
