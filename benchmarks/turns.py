"""Time several functions in turns in one process, so that other load on the machine affects all of them."""

import time
from collections.abc import Callable, Sequence


def in_turns(
    ways: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Return the seconds of each function per turn. The order alternates, and the first turn is a warm-up."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for which in range(len(ways)) if turn % 2 else reversed(range(len(ways))):
            start = clock()
            ways[which]()
            if turn:
                seconds[which].append(clock() - start)
    return seconds
