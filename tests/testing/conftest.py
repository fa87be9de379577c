"""A process in which effort can be measured and limited."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest


@pytest.fixture
def fresh() -> Iterator[ProcessPoolExecutor]:
    """A process with a single thread, few objects and without torch, unlike this one. It can be forked."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool
