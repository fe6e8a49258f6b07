"""Run visits at the same moment, or continuously in the background."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

_Result = t.TypeVar("_Result")


def at_once(visits: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """Start the visits at the same moment, each in its own thread, and return their results."""
    barrier = threading.Barrier(len(visits))

    def begin(visit: Callable[[], _Result]) -> _Result:
        barrier.wait(30)
        return visit()

    with ThreadPoolExecutor(len(visits)) as pool:
        return list(pool.map(begin, visits))


@contextmanager
def all_the_while(visits: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Repeat each visit in its own thread until the block is left.

    The block starts after each visit has run once. Each visit runs once more after the block ends.
    """
    under_way = [threading.Event() for _ in visits]
    is_over = threading.Event()

    def repeat(visit: Callable[[], object], is_under_way: threading.Event) -> None:
        while True:
            is_last = is_over.is_set()
            try:
                visit()
            finally:
                is_under_way.set()
            if is_last:
                return

    with ThreadPoolExecutor(len(visits)) as pool:
        results = [pool.submit(repeat, *pair) for pair in zip(visits, under_way, strict=True)]
        try:
            for event in under_way:
                assert event.wait(30)
            yield
        finally:
            is_over.set()
    for result in results:
        result.result()
