"""What the callers of the Redis client see of its errors."""

from __future__ import annotations

import functools
import typing as t
from collections.abc import Callable, Iterator

from ...errors import RecordsError

_Parameters = t.ParamSpec("_Parameters")
_Result = t.TypeVar("_Result")


def reporting(
    method: Callable[_Parameters, _Result],
) -> Callable[_Parameters, _Result]:
    """Raise :exc:`RecordsError` in place of any error of a method."""

    @functools.wraps(method)
    def report(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            raise _failure(error) from None

    return report


def reporting_batches(
    method: Callable[_Parameters, Iterator[_Result]],
) -> Callable[_Parameters, Iterator[_Result]]:
    """Raise :exc:`RecordsError` in place of any error of a method that yields."""

    @functools.wraps(method)
    def report(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Iterator[_Result]:
        try:
            yield from method(*args, **kwargs)
        except Exception as error:
            raise _failure(error) from None

    return report


def _failure(error: Exception) -> RecordsError:
    """Return what to raise for an error of redis-py, whose text might name a server or a key."""
    if isinstance(error, RecordsError):
        return error
    return RecordsError(
        f"Could not read or write the user sessions ({type(error).__name__}). The operation might"
        " not have completed. Retry it."
    )
