"""Many visits at the same moment, and visits that go on all the while."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

_Result = t.TypeVar("_Result")


def at_once(visits: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """Begin the visits at the same moment, each in a thread of its own: their results."""
    barrier = threading.Barrier(len(visits))

    def begin(visit: Callable[[], _Result]) -> _Result:
        barrier.wait(30)
        return visit()

    with ThreadPoolExecutor(len(visits)) as pool:
        return list(pool.map(begin, visits))


@contextmanager
def all_the_while(visits: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Each visit again and again, in a thread of its own, until the block is left.

    The block begins once each has been made, and each is begun once more after it.
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
