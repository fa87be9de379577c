"""Compute values in threads, and return them in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

MAX_THREADS = 8
"""The maximum number of threads that decode image files. A stream has one for each core: no processes read it."""
_AHEAD = 64
"""The maximum number of results that are computed ahead."""

Poll = Callable[[], None]
"""A function that is called again and again, and ends the work by an exception."""


def in_order(
    function: Callable[[Any], Any], values: Iterable[Any], threads: int, poll: Poll = lambda: None
) -> Generator[Any]:
    """Yield the result of a function for each value, in their order. Threads compute a limited number ahead."""
    pending: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        for value in values:
            pending.append(pool.submit(function, value))
            if len(pending) >= _AHEAD:
                poll()
                yield pending.popleft().result()
        while pending:
            poll()
            yield pending.popleft().result()
        pool.shutdown()
    finally:
        # The garbage collector can end a generator in any thread, and a thread of the pool cannot wait for itself.
        pool.shutdown(wait=False, cancel_futures=True)
