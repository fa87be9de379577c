"""Networks and batches that do not fit into the memory of the machine, and values at the end of float32."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from harness.runs import code, tiny
from rich.console import Console

from cnnspec import CnnspecError, build
from cnnspec.analysis.cost import training_memory
from cnnspec.api import loads
from cnnspec.backends.torch import memory as backend
from cnnspec.backends.torch.inits import truncated_normal
from cnnspec.testing.bounds import two_images
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop import machine
from cnnspec.training.loop.evaluate import score
from cnnspec.training.runs import train as runs
from cnnspec.training.runs.options import Result, TrainOptions

TINY = tiny(shape="3x12x12", layers="stem conv 3x3 8 | bn | relu")


def train(
    recipe: str, folder: Path, patch: pytest.MonkeyPatch, memory: int | None = None, console: Console | None = None
) -> Result:
    """Train with two images, on a machine with some memory."""
    patch.setattr(runs, "load_data", lambda *args, **more: two_images(3, 10))
    if memory is not None:
        patch.setattr(machine, "machine_memory", lambda: memory)
    options = TrainOptions(
        out=folder, plots=False, memory_format="channels_last", threads=1, accelerator="cpu", devices=1,
        allocator="default", console=console or Console(quiet=True),
    )  # fmt: skip
    return runs.train(loads(f"{TINY}train {{\n batch 2\n epochs 1\n {recipe}\n}}\n"), options)


def test_a_batch_that_does_not_fit_is_computed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = training_memory(loads(f"{TINY}train {{ batch 2 }}\n"))
    with (tmp_path / "log").open("w") as log:
        assert train("", tmp_path / "a", monkeypatch, needs.at(2), Console(file=log)).state == "finished"
        assert train("", tmp_path / "b", monkeypatch, needs.at(2) - 1, Console(file=log)).state == "finished"
    assert (tmp_path / "log").read_text().count("memory: each batch is computed in 2 parts") == 1


def test_an_image_that_does_not_fit_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = training_memory(loads(TINY))
    with pytest.raises(CnnspecError, match="one image does not fit") as error:
        train("", tmp_path / "a", monkeypatch, needs.at(1) - 1)
    assert code(error) == "E0513"
    assert not (tmp_path / "a").exists()


def test_weights_that_do_not_fit_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "machine_memory", lambda: 1000)
    with pytest.raises(CnnspecError, match="of weights do not fit") as error:
        build(loads(TINY))
    assert code(error) == "E0513"
    with torch.device("meta"):
        build(loads(TINY))


def test_a_failed_allocation_of_any_kind_is_out_of_memory() -> None:
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory: 9")):
        assert backend.is_out_of_memory(error)
    for error in (ValueError("can't allocate memory"), RuntimeError("shape")):
        assert not backend.is_out_of_memory(error)


def test_an_infinite_weight_is_found_after_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.SGD.step

    def overflow(self: torch.optim.SGD, closure: object = None) -> None:
        step(self)
        with torch.no_grad():
            self.param_groups[0]["params"][0][0] = math.inf

    monkeypatch.setattr(torch.optim.SGD, "step", overflow)
    with pytest.raises(CnnspecError, match="a weight is not finite after step 1") as error:
        train("optimizer sgd", tmp_path, monkeypatch)
    assert code(error) == "E0509"
    assert "`stem.0.weight`" in error.value.diagnostics[0].notes[0]


def test_an_output_that_is_not_finite_is_an_error() -> None:
    data, network = two_images(3, 10), build(loads(TINY))
    assert data.test is not None
    score(network, data.test, Preprocessing((12, 12), data.mean, data.std), torch.device("cpu"))
    with torch.no_grad():
        network.get_parameter("head.2.bias")[3] = math.nan
    with pytest.raises(CnnspecError) as error:
        score(network, data.test, Preprocessing((12, 12), data.mean, data.std), torch.device("cpu"))
    assert code(error) == "E0509"
    assert "`head.2`" in error.value.diagnostics[0].notes[0]


def test_a_learning_rate_of_zero_keeps_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = ("sgd lr=0", "cosine"), ("muon lr=0 adam_lr=0", "linear warmup=1"), ("adam lr=0", "onecycle")
    for optimizer, schedule in recipes:
        run = train(f"optimizer {optimizer}\n schedule {schedule}", tmp_path / schedule, monkeypatch)
        assert run.state == "finished"


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_resized_to_single_pixels(size: tuple[int, int], channels: int) -> None:
    images = torch.randint(256, (2, channels, 28, 28), dtype=torch.uint8)
    assert Preprocessing(size, (0.0,), (1.0,)).fit_images(images).shape == (2, channels, *size)


INTERVALS = [
    (5, 0.01, -2, 2), (-5, 0.01, -2, 2), (0, 1, 3, 4), (0, 1, -4, -3), (0, 1, 0.6, 0.7), (0, 1, 0.6, 50),
    (0, 1, -9, -0.55), (10, 1, -2, 2), (2.1, 0.5, -2, 2), (0, 1, -0.1, 0.2), (0, 1, 0.2, 0.4), (0, 1, -2, 2),
    (0, 1.2e-38, 1e-8, 2), (0, 1e18, 2e18, 3e18), (3, 1, 2, 2), (1e15, 1.2e-38, -1e15, -1e15), (0, 1, 40, 41),
]  # fmt: skip


@pytest.mark.parametrize(("mean", "std", "low", "high"), INTERVALS)
def test_a_truncated_normal_has_its_distribution_in_any_interval(
    mean: float, std: float, low: float, high: float
) -> None:
    torch.manual_seed(1)
    count = 50_000
    weight = truncated_normal(torch.empty(count), mean, std, low, high)
    least, most = torch.tensor([low, high], dtype=torch.float32)
    assert bool(((weight >= least) & (weight <= most)).all())
    start, end = (low - mean) / std, (high - mean) / std
    if not (start < end and max(start, -end) < 8):
        return  # the distribution function has no digits there
    sign = -1.0 if start + end > 0 else 1.0  # the lower tail, where the function is exact
    ends = sorted((sign * start, sign * end))
    share = torch.special.ndtr((sign * (weight.double() - mean) / std).sort().values)
    below, above = torch.special.ndtr(torch.tensor(ends, dtype=torch.float64))
    found, expected = (share - below) / (above - below), torch.arange(count) / count
    assert float((found - expected).abs().max()) * math.sqrt(count) < 1.95  # Kolmogorov and Smirnov: 1 in 1,000


def test_a_truncated_normal_on_the_meta_device_is_not_drawn() -> None:
    assert truncated_normal(torch.empty(3, device="meta"), 5, 0.01, -2, 2).is_meta
