"""Ways to do the same, timed in turns in one process, so that what the machine does besides falls on all of them."""

import time
from collections.abc import Callable, Sequence


def in_turns(
    ways: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Seconds of each way in so many turns; the order changes from turn to turn, and a first turn warms up."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for which in range(len(ways)) if turn % 2 else reversed(range(len(ways))):
            start = clock()
            ways[which]()
            if turn:
                seconds[which].append(clock() - start)
    return seconds
