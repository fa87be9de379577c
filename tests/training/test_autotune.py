"""The choice of the memory format and of the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import torch
from harness.runs import TINY

from cnnspec import Graph, build, loads
from cnnspec.resources import _quota
from cnnspec.training.loop import autotune
from cnnspec.training.loop.autotune import _time_step as time_step
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


SHARED_CORE = """
import os, subprocess, sys, time
from cnnspec.training.loop.autotune import MAX_WAIT, _waiting_seconds

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
before = _waiting_seconds()
spin = "print(flush=True)\\nwhile True: pass"
with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as other:
    other.stdout.readline()
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < 1:
        pass
    other.kill()
after = _waiting_seconds()
print(None if before is None else after - before > MAX_WAIT * elapsed)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs the affinity of Linux")
def test_waiting_for_a_core_is_noticed():
    done = subprocess.run([sys.executable, "-c", SHARED_CORE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if done.stdout == "None\n":
        pytest.skip("the system does not report waiting times")
    assert done.stdout == "True\n"


@pytest.mark.parametrize("name", autotune.FORMATS)
def test_a_step_is_measured_without_a_change_of_the_network(name: str):
    graph = tiny()
    network = build(graph)
    before = {key: tensor.clone() for key, tensor in network.named_parameters()}
    assert time_step(graph, network, 4, torch.device("cpu"), name) > 0
    assert all(
        torch.equal(before[key], tensor) and tensor.grad is not None for key, tensor in network.named_parameters()
    )


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
