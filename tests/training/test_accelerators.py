"""Test the settings that a GPU needs, with devices that only pretend to be one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness.runs import TINY
from torch import nn

from cnnspec import loads
from cnnspec.recipe import HFlip, Recipe, Scalars, Setting
from cnnspec.training import TrainOptions, train
from cnnspec.training.data import batches, device
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.batches import EpochBatches, Workers
from cnnspec.training.data.datasets import Pixels
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop import machine, task
from cnnspec.training.loop.evaluate import full_float32
from cnnspec.training.runs.options import lightning_precision

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
MODES = Scalars.parameters["compile"].type.words
REPLAYED = {"reduce_overhead", "max_autotune", "cuda_graphs"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_compile_reaches_torch(mode: str, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Modes that replay kernels would overwrite gradients that are accumulated, so that parts run uncompiled."""
    compiled: list[dict[str, Any]] = []
    calls: list[int] = []

    def compile(network: nn.Module, **given: Any) -> Any:
        compiled.append(given)

        def run(images: torch.Tensor) -> Any:
            calls.append(len(images))
            return network(images)

        return run

    monkeypatch.setattr(task.torch, "compile", compile)
    recipe = f"data fashion_mini train=64 val=0 test=10; batch 32; epochs 1; compile {mode}; accumulate {parts}"
    train(loads(TINY + f"train {{ {recipe} }}"), TrainOptions(out=tmp_path, plots=False, offline=True))
    expected = {"backend": "cudagraphs"} if mode == "cuda_graphs" else {"mode": mode.replace("_", "-")}
    assert compiled == [expected]
    if "mode" in expected and mode != "default":
        assert expected["mode"] in torch._inductor.list_mode_options()
    assert calls == ([] if parts > 1 and mode in REPLAYED else [32 // parts] * 2 * parts)


def test_every_mode_of_compile_is_tested():
    assert {*MODES} == {"default", *REPLAYED}


@pytest.mark.parametrize("kind", [CUDA, MPS])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_kernels_of_a_gpu_are_those_of_the_run_and_only_during_it(
    kind: torch.device, deterministic: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def state() -> tuple[Any, ...]:
        return (
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        )

    before = state()
    with machine.training_kernels(CPU, deterministic=deterministic):
        assert state() == before
    with machine.training_kernels(kind, deterministic=deterministic):
        assert state() == (
            not deterministic,
            not deterministic,
            "highest" if deterministic else "high",
            deterministic,
        )
        with full_float32():  # the final test
            assert state()[1:3] == (False, "highest")
        assert state()[2] == ("highest" if deterministic else "high")
    assert state() == before


@pytest.mark.parametrize(("kind", "bf16", "name"), [
    (CPU, True, "32-true"), (MPS, True, "32-true"), (CUDA, True, "bf16-mixed"), (CUDA, False, "32-true"),
])  # fmt: skip
def test_the_precision_of_a_device(kind: torch.device, bf16: bool, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert lightning_precision("auto", kind) == name
    assert lightning_precision("fp16", kind) == "16-mixed"


class HostTensor:
    """A tensor in the memory of the host that records how it is copied to a device."""

    def __init__(self, *, pinned: bool) -> None:
        self.device, self.pinned, self.copies = CPU, pinned, list[tuple[bool, bool]]()

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> HostTensor:
        found = HostTensor(pinned=True)
        found.copies = self.copies
        return found

    def to(self, target: torch.device, *, non_blocking: bool) -> HostTensor:
        self.copies.append((self.pinned, non_blocking))
        return self


@pytest.mark.parametrize("pinned", [False, True])
def test_copies_to_a_gpu_are_pinned_and_do_not_wait(pinned: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for kind, expected in ((CUDA, (True, True)), (MPS, (pinned, False))):
        values: Any = HostTensor(pinned=pinned)
        device.to_device(values, kind)
        assert values.copies == [expected]
    values = HostTensor(pinned=pinned)
    assert device.to_device(values, CPU) is values
    assert values.copies == []


@pytest.mark.parametrize("gpu", [False, True])
def test_workers_pin_memory_for_a_gpu(gpu: bool, monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, Any]] = []

    def loader(dataset: Any, **given: Any) -> Any:
        seen.append(given)
        return torch.utils.data.DataLoader(dataset, batch_size=None, sampler=given["sampler"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(batches, "DataLoader", loader)
    images = Pixels(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.zeros(8, dtype=torch.long))
    preprocess = Preprocess(Preprocessing((4, 4), (0.5,), (0.2,)))
    monkeypatch.setattr(EpochBatches, "_make_batches", lambda self, numbers: [*numbers])
    workers = Workers(3)
    assert [*EpochBatches(images, preprocess, 4, seed=1, workers=workers)] == [0, 1]
    assert [(given["num_workers"], given["pin_memory"]) for given in seen] == [(2, gpu)]


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 1), (2, 1, 2), (16, 1, 8), (16, 4, 4), (4, 8, 1), (64, 2, 8)]
)
def test_the_cores_are_divided_among_processes(
    cores: int, processes: int, workers: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    assert machine.default_workers(processes) == workers


@pytest.mark.parametrize(
    ("in_memory", "per_image", "kind", "needed"),
    [
        (False, False, CPU, True),
        (False, True, CUDA, True),
        (True, False, CPU, False),
        (True, True, CPU, False),
        (True, False, CUDA, False),
        (True, True, CUDA, True),
    ],
)
def test_workers_only_where_they_help(
    in_memory: bool, per_image: bool, kind: torch.device, needed: bool, monkeypatch: pytest.MonkeyPatch
):
    """Images in memory are processed as a batch, unless a GPU waits for a transform that takes one at a time."""
    monkeypatch.setattr(task, "is_per_image", lambda augment: per_image)
    module = task.BatchDataModule.__new__(task.BatchDataModule)
    module.recipe, module.workers = Recipe(augment=(Setting.of(HFlip()),)), Workers(3)
    module.data = SimpleNamespace(train=SimpleNamespace(device=CPU, in_memory=in_memory))  # type: ignore[assignment]
    module.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=kind))  # type: ignore[assignment]
    assert (module._needed_workers() is not None) == needed
