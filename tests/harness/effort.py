"""Bounds on the effort of a block that hold on slow and busy machines, and in a process with many objects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from cnnspec.resources import without_garbage_collection

_UNIT = 0.0086
"""The time that the loop of `_slowness` takes on the machine whose seconds `bounded` counts."""


@contextmanager
def bounded(seconds: float, mebibytes: int | None = None) -> Iterator[None]:
    """Check that a block takes at most so much processor time and additional memory.

    Other threads do not count, nor does a collection of the garbage that other tests have left. On a slower machine, a
    second is longer.
    """
    import resource

    slowness = _slowness()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with without_garbage_collection():
        start = time.thread_time()
        yield
        spent = time.thread_time() - start
    if spent >= seconds:  # the machine may have become slower
        slowness = max(slowness, _slowness())
    assert spent < seconds * slowness
    if mebibytes is not None:
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < mebibytes


def _slowness() -> float:
    """Return how many times as long this machine takes for some work, at least 1."""
    start = time.thread_time()
    total = 0
    for number in range(300_000):
        total += number & 1
    return max(1.0, (time.thread_time() - start) / _UNIT)
