"""What holds for all runs of these tests: no measurement of the machine changes their results, and every `result.json`
is validated against its published schema.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def valid_results() -> Iterator[None]:
    if importlib.util.find_spec("jsonschema") is None or importlib.util.find_spec("torch") is None:
        yield
        return
    from harness.schemas import problems

    from cnnspec.training.runs.train import _TrainingRun

    write = _TrainingRun._write_result

    def write_valid(self: _TrainingRun, *args: Any, **kwargs: Any) -> dict[str, Any]:
        written = write(self, *args, **kwargs)
        assert problems("result", written) == []
        return written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_TrainingRun, "_write_result", write_valid)
        yield


@pytest.fixture(autouse=True, scope="session")
def unmeasured() -> Iterator[None]:
    """Let no memory format be faster: the choice would depend on what else the machine does, and change the results."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    from cnnspec.training.loop import autotune

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "_time_step", lambda *args: 1.0)
        patch.setattr(autotune, "_waiting_seconds", lambda: 0.0)
        yield


@pytest.fixture(autouse=True)
def no_other_processes() -> None:
    """End the processes that earlier tests have left, which a test of worker processes would count as its own."""
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
