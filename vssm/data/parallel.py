"""A map over a stream by a few threads, in order, a bounded way ahead of its reader."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["R", "T", "map_ahead"]

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[R]:
    """Yields function(item) for each item, in order; at most `ahead` results are being made or wait to be taken.

    Pays where `function` leaves Python's lock, as decoding and resizing by Pillow do. An exception of `function` or of
    `items` is raised here. When the reader stops early, what has not begun is given up.
    """
    if threads < 1 or ahead < 1:
        raise ValueError(f"threads and ahead must be at least 1, not {threads} and {ahead}")
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="map_ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
