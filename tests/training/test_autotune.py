"""The choice of the memory format and of the number of threads."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import torch
from harness.runs import TINY

from cnnspec import Graph, build, load, loads
from cnnspec.resources import _quota, available_cores
from cnnspec.training.loop import autotune
from cnnspec.training.loop.machine import default_threads

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny() -> Graph:
    return loads(TINY, name="tiny.cnn")


class Clock:
    """Replaces the measurement of steps and of waiting times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: dict[str, list[float]] = {"channels_last": [1.0], "contiguous": [0.5]}
        self.waiting: float | None = 0.0
        self.calls = 0
        self.waited = 0.0
        monkeypatch.setattr(autotune, "_time_step", self._time_step)
        monkeypatch.setattr(autotune, "_waiting_seconds", self._waiting_seconds)

    def _time_step(self, graph: Graph, network: Any, images: int, device: Any, name: str) -> float:
        times = self.steps[name]
        self.calls += 1
        return times[(self.calls + 1) // 2 % len(times)]  # both formats are measured once per round

    def _waiting_seconds(self) -> float | None:
        self.waited += self.waiting or 0.0
        return None if self.waiting is None else self.waited


def test_the_memory_format_is_measured_and_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CNNSPEC_CACHE", str(tmp_path))
    clock = Clock(monkeypatch)
    graph, device = tiny(), torch.device("cpu")
    network = build(graph)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}

    def choose(batch: int = 8, **options: Any) -> tuple[str, str]:
        found = autotune.choose_tuning(graph, network, batch, device, **options)
        assert found.threads == options.get("threads", default_threads())
        return found.memory_format, found.origin

    assert choose() == ("contiguous", "measured")
    clock.steps["contiguous"] = [2.0]
    assert choose() == ("channels_last", "measured")  # a format other than the default is measured again
    calls = clock.calls
    clock.steps["contiguous"] = [0.1]
    assert choose() == ("channels_last", "cached")
    assert clock.calls == calls
    assert choose(batch=16) == ("contiguous", "measured")
    assert choose(precision="bf16-mixed") == ("contiguous", "measured")  # in the precision of the run
    calls = clock.calls
    compiled = replace(graph, recipe=graph.recipe.model_copy(update={"compile": "default"}))
    assert autotune.choose_tuning(compiled, network, 32, device).origin == "default"
    assert clock.calls == calls  # compiling twice would take longer than a better format saves
    assert choose(memory_format="channels_last", threads=1) == ("channels_last", "requested")
    (tmp_path / "tuning.json").write_text("half")
    clock.steps["contiguous"] = [0.95]  # not clearly faster
    assert choose() == ("channels_last", "measured")
    (tmp_path / "tuning.json").unlink()
    clock.steps["contiguous"] = [0.5, 0.95]  # not in every round
    assert choose() == ("channels_last", "measured")
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("known", [True, False])
def test_nothing_measured_on_a_busy_machine_is_used_or_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: bool
):
    monkeypatch.setenv("CNNSPEC_CACHE", str(tmp_path))
    clock = Clock(monkeypatch)
    graph, device = tiny(), torch.device("cpu")
    if known:
        clock.waiting = 100.0
    else:  # without waiting times, by the spread of the step times
        clock.waiting, clock.steps = None, {"channels_last": [1.0, 2.0], "contiguous": [0.5, 0.9]}
    busy = autotune.choose_tuning(graph, build(graph), 8, device)
    assert (busy.memory_format, busy.origin) == ("channels_last", "default")
    assert not (tmp_path / "tuning.json").exists()
    clock.waiting, clock.steps = 0.0, {"channels_last": [1.0], "contiguous": [0.5]}
    assert autotune.choose_tuning(graph, build(graph), 8, device).memory_format == "contiguous"
    clock.waiting = 100.0
    later = autotune.choose_tuning(graph, build(graph), 8, device)
    assert (later.memory_format, later.origin) == ("contiguous", "cached")


def test_a_busy_minute_does_not_change_later_choices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    graph, device = load("resnet20"), torch.device("cpu")
    network = build(graph)
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(2 * available_cores())]
    try:
        monkeypatch.setenv("CNNSPEC_CACHE", str(tmp_path / "busy"))
        busy = autotune.choose_tuning(graph, network, 32, device)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert busy.origin == "default"
    assert autotune.read_cached(graph, 32, device) is None
    after = autotune.choose_tuning(graph, network, 32, device)
    monkeypatch.setenv("CNNSPEC_CACHE", str(tmp_path / "quiet"))
    quiet = autotune.choose_tuning(graph, network, 32, device)
    assert (after.memory_format, after.threads) == (quiet.memory_format, quiet.threads)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, None),
        ({"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}, 0.5),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, files: dict[str, str], quota: float | None):
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert _quota(tmp_path) == quota
