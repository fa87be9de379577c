"""Test the statistics of batch normalization against plain torch, and several processes against one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.batches import stop_at, watch
from harness.processes import run_in_processes
from harness.runs import code
from torch import Tensor, nn
from torch.nn import functional as F

from cnnspec import CnnspecError, Graph, build, loads
from cnnspec.backends.torch.weights import read_weights
from cnnspec.recipe import GhostStatistics, Recipe, Setting
from cnnspec.training import TrainOptions, plan, train
from cnnspec.training.data.batches import EpochBatches
from cnnspec.training.loop.batch_norm import CPUSyncBatchNorm, convert_batch_norm
from cnnspec.training.loop.task import part_sizes

SPEC = """network tiny
input 1x28x28
classes 10
stem conv 7x7 4 stride=7 pad=0 | bn | relu
head global_avgpool | flatten | linear 8 | bn momentum=0.3 | relu | linear classes
train {
    data      fashion_mini val=100 train=384 test=100
    augment   hflip
    batch     48
    epochs    1
    optimizer sgd lr=0.1 momentum=0.9
    schedule  constant
    RECIPE
}
"""
STEPS = 8
CPU = torch.device("cpu")
Partition = Callable[[int], list[list[list[int]]]]
"""For the number of images of a batch: its parts, each with the positions of the images of every group."""

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(recipe: str) -> Graph:
    return loads(SPEC.replace("RECIPE", recipe.replace("; ", "\n    ")), name="tiny.cnn")


def options(folder: Path, **given: Any) -> TrainOptions:
    fixed: dict[str, Any] = {"memory_format": "channels_last", "threads": 1, "plots": False, "offline": True}
    return TrainOptions(out=folder / "runs", accelerator="cpu", **{**fixed, **given})


def state(folder: Path) -> dict[str, Tensor]:
    saved = torch.load(folder / "runs" / "tiny" / "1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["progress"]["step"] == STEPS
    return {key.removeprefix("network."): value for key, value in saved["state_dict"].items()}


def train_in_processes(folder: Path, count: int, recipe: str, prepare: Any = None, **given: Any) -> list[Any]:
    graph = tiny(recipe)

    def job(rank: int) -> str:
        if prepare is not None:
            prepare()
        try:
            settings = {"devices": count, "strategy": "ddp" if count > 1 else "auto", **given}
            return train(graph, options(folder, **settings)).state
        except SystemExit as end:
            return f"exit {end.code}"

    return run_in_processes(count, job)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance, msg=lambda text: f"{key}: {text}")  # noqa: B023


# --- one process ----------------------------------------------------------------------------------


def in_groups(size: int, parts: int = 1) -> Partition:
    def partition(images: int) -> list[list[list[int]]]:
        groups = [list(range(first, first + size)) for first in range(0, images, size)]
        bounds = [len(groups) * part // parts for part in range(parts + 1)]
        return [groups[a:b] for a, b in itertools.pairwise(bounds)]

    return partition


def on_devices(count: int) -> Partition:
    return lambda images: [[list(range(rank, images, count)) for rank in range(count)]]


def train_by_hand(graph: Graph, batches: list[tuple[Tensor, Tensor]], partition: Partition) -> dict[str, Tensor]:
    """Train the plain network. Each group passes through it alone, from the same running statistics."""
    torch.manual_seed(graph.recipe.seed)
    network = build(graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    for images, labels in batches:
        optimizer.zero_grad()
        for groups in partition(len(labels)):
            before = {name: buffer.clone() for name, buffer in network.named_buffers()}
            outputs: list[Tensor] = []
            after: list[dict[str, Tensor]] = []
            for group in groups:
                for name, buffer in network.named_buffers():
                    buffer.data = before[name].clone()
                outputs.append(network(images[group]))
                after.append({name: buffer.clone() for name, buffer in network.named_buffers()})
            for name, buffer in network.named_buffers():
                buffer.data = torch.stack([values[name].double() for values in after]).mean(0).to(buffer.dtype)
            order = [position for group in groups for position in group]
            (F.cross_entropy(torch.cat(outputs), labels[order], reduction="sum") / len(labels)).backward()
        optimizer.step()
    return {name: value.detach() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("recipe", "partition"),
    [
        ("bn_statistics ghost 8", in_groups(8)),
        ("bn_statistics ghost 8; accumulate 4", in_groups(8, 4)),  # parts of one and two groups
        ("bn_statistics ghost 48", in_groups(48)),
        ("bn_statistics local; accumulate 2", in_groups(24, 2)),  # a single device
    ],
)
def test_a_run_equals_plain_torch(recipe: str, partition: Partition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Tensor, Tensor]] = []
    watch(monkeypatch, lambda batches, _, batch: seen.append(batch) if batches.seed is not None else None)
    graph = tiny(recipe)
    result = train(graph, options(tmp_path))
    assert len(seen) == STEPS
    assert_close(state(tmp_path), train_by_hand(graph, seen, partition), 1e-5)
    assert read_weights(result.folder / "checkpoints" / "best.safetensors").keys() == build(graph).state_dict().keys()


def test_a_part_of_a_batch_divides_no_group(tmp_path: Path):
    """So the trained weights do not depend on the number of parts."""
    for number, parts in enumerate((1, 3)):
        train(tiny(f"bn_statistics ghost 8; accumulate {parts}"), options(tmp_path / str(number)))
    one, other = state(tmp_path / "0"), state(tmp_path / "1")
    names = [name for name, _ in build(tiny("")).named_parameters()]
    assert_close({name: other[name] for name in names}, {name: one[name] for name in names}, 1e-5)


@pytest.mark.parametrize("shape", [(12, 3), (12, 3, 5, 4)], ids=["flat", "maps"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 4, 12])
def test_ghost_batch_norm_equals_batch_norm_of_each_group(
    shape: tuple[int, ...], affine: bool, dtype: torch.dtype, size: int
):
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    plain, ghost = (nn.Sequential(kind(3, momentum=0.2, affine=affine)) for _ in range(2))
    convert_batch_norm(ghost, Recipe(bn_statistics=Setting.of(GhostStatistics(images=size))), CPU, 1)
    affines = [*plain.parameters()]
    values = (3 * torch.randn(shape) + 1).to(dtype)
    one, other = (values.clone().requires_grad_() for _ in range(2))
    after: list[Tensor] = []
    outputs: list[Tensor] = []
    for group in one.split(size):
        mean, var = torch.zeros(3), torch.ones(3)
        outputs.append(F.batch_norm(group, mean, var, *affines, training=True, momentum=0.2))
        after.append(torch.stack([mean, var]))
    expected, found = torch.cat(outputs), ghost(other)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
    (found * values).sum().backward()
    (expected * values).sum().backward()
    torch.testing.assert_close(other.grad, one.grad)
    for (_, weight), (_, reference) in zip(ghost.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(weight.grad, reference.grad)
    torch.testing.assert_close(ghost[0].running_mean, torch.stack(after).mean(0)[0])
    torch.testing.assert_close(ghost[0].running_var, torch.stack(after).mean(0)[1])
    assert ghost[0].num_batches_tracked == 1
    ghost.eval()
    kept = ghost[0].running_mean.clone()
    torch.testing.assert_close(ghost(values), F.batch_norm(values, kept, ghost[0].running_var, *ghost.parameters()))
    assert torch.equal(ghost[0].running_mean, kept)


def test_statistics_of_one_process_leave_the_network_as_it_is():
    """So that the default trains as it always did."""
    for recipe in ("", "bn_statistics sync", "bn_statistics local"):
        graph = tiny(recipe)
        network = build(graph)
        classes = [type(module) for module in network.modules()]
        assert convert_batch_norm(network, graph.recipe, CPU, 1) is None
        assert [type(module) for module in network.modules()] == classes


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (3, 2, 2, 2)], ids=["flat", "maps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_synchronized_statistics_are_those_of_the_whole_batch(shape: tuple[int, ...], dtype: torch.dtype):
    """Also in half precision, and with different numbers of images on each device."""
    torch.manual_seed(0)
    parts = [(3 * torch.randn((shape[0] + 4 * rank, *shape[1:])) + 1).to(dtype) for rank in range(2)]
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d

    def results(norm: nn.Module, values: Tensor) -> list[Tensor]:
        values = values.clone().requires_grad_()
        output = norm(values)
        (output * values).sum().backward()
        assert values.grad is not None
        assert output.dtype == values.grad.dtype == dtype
        buffers = [buffer.clone() for buffer in norm.buffers()]
        norm.eval()
        return [output.detach(), values.grad, norm(values).detach(), *buffers]

    def module() -> nn.Module:
        norm = nn.Sequential(kind(shape[1]))
        return norm.double() if dtype == torch.float64 else norm

    def job(rank: int) -> list[Tensor]:
        norm = module()
        assert convert_batch_norm(norm, Recipe(), CPU, 2) is None
        assert type(norm[0]) is CPUSyncBatchNorm  # type: ignore[index]
        return results(norm, parts[rank])

    expected = results(module(), torch.cat(parts))
    for rank, found in enumerate(run_in_processes(2, job, connect=True)):
        sizes = [len(part) for part in parts]
        for own, whole in zip(found[:3], expected[:3], strict=True):
            torch.testing.assert_close(own, whole.split(sizes)[rank])
        torch.testing.assert_close(found[3:], expected[3:])


@pytest.mark.parametrize(
    ("count", "recipe", "given"),
    [
        (2, "bn_statistics sync", {}),
        (2, "bn_statistics ghost 8", {"save_every": 0.0}),  # six groups; a checkpoint in each step
        (2, "bn_statistics ghost 16; ema 0.9; clip 1", {}),  # two groups and one
        (3, "bn_statistics ghost 6; accumulate 2; freeze stem", {}),  # one or two groups of each device per part
    ],
)
def test_processes_train_as_one(count: int, recipe: str, given: dict[str, Any], tmp_path: Path):
    assert train_in_processes(tmp_path / "alone", 1, recipe) == ["finished"]
    done = train_in_processes(tmp_path / "together", count, recipe, **given)
    assert done == ["finished", *["exit 0"] * (count - 1)]
    one, other = state(tmp_path / "alone"), state(tmp_path / "together")
    assert_close(other, one, 1e-5)
    losses = [
        json.loads((tmp_path / name / "runs/tiny/1/result.json").read_text())["val_loss"]
        for name in ("alone", "together")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    if "freeze" in recipe:
        assert torch.equal(other["stem.1.running_mean"], torch.zeros(4))


def test_a_run_with_groups_resumes_on_another_number_of_processes(tmp_path: Path):
    recipe = "bn_statistics ghost 8"

    def stop() -> None:
        stop_at(pytest.MonkeyPatch(), 0, 3)

    assert train_in_processes(tmp_path / "alone", 1, recipe) == ["finished"]
    assert train_in_processes(tmp_path, 2, recipe, stop) == ["interrupted", "exit 0"]
    assert train_in_processes(tmp_path, 1, recipe, resume=True, accept_changes=True) == ["finished"]
    assert_close(state(tmp_path), state(tmp_path / "alone"), 1e-5)


def test_local_statistics_are_those_of_each_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = "bn_statistics local"
    assert train_in_processes(tmp_path, 2, recipe) == ["finished", "exit 0"]
    seen: list[tuple[Tensor, Tensor]] = []
    watch(monkeypatch, lambda batches, _, batch: seen.append(batch) if batches.seed is not None else None)
    train(tiny(recipe), options(tmp_path / "alone"))
    assert_close(state(tmp_path), train_by_hand(tiny(recipe), seen, on_devices(2)), 1e-5)
    name = "stem.1.running_var"
    assert not torch.allclose(state(tmp_path)[name], state(tmp_path / "alone")[name], rtol=0, atol=1e-4)
    result = json.loads((tmp_path / "runs/tiny/1/result.json").read_text())
    assert result["bn_statistics"] == "of each device: the result depends on the number of devices"


# --- images and errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2])
def test_devices_get_whole_groups(block: int, world: int, parts: int):
    """Every image belongs to one device, and the sizes of the parts are those of the batch."""
    batch = 48
    positions: list[list[int]] = []
    for rank in range(world):
        batches = EpochBatches.__new__(EpochBatches)
        batches.rank, batches.world, batches.block = rank, world, block
        own = batches._own_positions(100, 100 + batch)
        sizes = part_sizes(batch, parts, rank, world, block)
        assert sum(sizes) == len(own)
        begin = 0
        for part, size in enumerate(sizes):
            first, last = (batch // block * number // parts * block for number in (part, part + 1))
            mine = [position - 100 for position in own[begin : begin + size]]
            assert all(first <= position < last for position in mine)
            assert [position // block for position in mine[::block]] == [*dict.fromkeys(p // block for p in mine)]
            begin += size
        positions.append(own)
    assert sorted(itertools.chain(*positions)) == list(range(100, 100 + batch))


@pytest.mark.parametrize(
    ("recipe", "given", "expected"),
    [
        ("bn_statistics ghost 24", {"batch": 36}, "E0525"),
        ("bn_statistics ghost 40", {"batch": 640}, "E0525"),  # there are 384 images
        ("bn_statistics ghost 16", {"devices": 4}, "E0524"),
        ("bn_statistics ghost 16; accumulate 2", {"devices": 2}, "E0524"),
        ("bn_statistics local", {"devices": 48}, "E0520"),
        ("bn_statistics local; accumulate 24", {"devices": 2}, "E0520"),
    ],
)
def test_groups_that_do_not_fit_are_errors(recipe: str, given: dict[str, Any], expected: str, tmp_path: Path):
    settings = {"strategy": "ddp", **given} if "devices" in given else given
    with pytest.raises(CnnspecError) as error:
        train(tiny(recipe), options(tmp_path, **settings))
    assert code(error) == expected
    assert not list(tmp_path.iterdir())


def test_the_plan_names_the_images_of_the_statistics(tmp_path: Path):
    rules = {
        "": "of the batch over all devices",
        "accumulate 2": "of each part of the batch over all devices",
        "bn_statistics ghost 8": "of each group of 8 images",
        "bn_statistics local": "of each device: the result depends on the number of devices",
    }
    for recipe, rule in rules.items():
        assert plan(tiny(recipe), options(tmp_path))["device"]["bn_statistics"] == rule
