"""Every `result.json` that a run of these tests writes is validated against its published schema."""

from __future__ import annotations

import importlib.util
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
