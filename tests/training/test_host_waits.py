"""Train on a device without values, and check that no step makes the host wait for it.

A GPU works on while the host starts its next kernels, unless the host needs a value. The device `meta` has no values,
so an operation whose result the host needs, such as `item` or `nonzero`, is an error there. A mode around the steps
records the copies for which the host would wait.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from harness.runs import tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cnnspec import build, loads
from cnnspec.training.data.augment import TRANSFORMS, Preprocess
from cnnspec.training.data.batches import EpochBatches
from cnnspec.training.data.datasets import ImageData, Pixels
from cnnspec.training.data.device import to_device
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop import machine
from cnnspec.training.loop import task as task_module
from cnnspec.training.loop.average import WeightAverage
from cnnspec.training.loop.batch_norm import convert_batch_norm
from cnnspec.training.loop.checkpoints import Checkpoints
from cnnspec.training.loop.optimizers import optimizer_for
from cnnspec.training.loop.signals import StopHandler
from cnnspec.training.loop.task import LOG_EVERY, Task, TrainingContext
from cnnspec.training.runs import placement

META = torch.device("meta")
NETWORK = tiny("batch 8; RECIPE", shape="3x8x8", classes=3, layers="conv_bn 3x3 4 | relu")
AUGMENTATIONS = {
    "hflip": "hflip",
    "vflip": "vflip",
    "alternating_flip": "alternating_flip",
    "random_crop": "random_crop",
    "translate": "translate 0.1",
    "random_resized_crop": "random_resized_crop",
    "rotate": "rotate 10",
    "random_erasing": "random_erasing",
    "cutout": "cutout side=3",
    "color_jitter": "color_jitter 0.4 0.4 0.4 0.1",
    "autoaugment": "autoaugment",
    "randaugment": "randaugment",
    "trivialaugment": "trivialaugment",
}


class BlockingCopies(TorchDispatchMode):
    """Records the copies between the host and the device for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        devices = {tensor.device.type for tensor in tree_leaves([args, result]) if isinstance(tensor, Tensor)}
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if copies and devices == {"cpu", "meta"} and not (kwargs.get("non_blocking") or args[2:3] == (True,)):
            self.found.append(str(func))
        return result


class WithoutFloat64(TorchDispatchMode):
    """Raises an error for a tensor in float64 on the device, as MPS does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device == META and tensor.dtype == torch.float64:
                raise TypeError(f"{func}: the device has no float64")
        return result


def copies_in_steps(recipe: str, folder: Path, steps: int = 3, place: torch.device = META) -> list[str]:
    """Run some steps after the first of a training, and return the copies for which the host waits.

    Args:
        recipe: The entries of the recipe.
        folder: The folder for checkpoints.
        steps: The number of steps.
        place: The device that holds the images.
    """
    graph = loads(NETWORK.replace("RECIPE", recipe))
    images = Pixels(torch.zeros(64, 3, 8, 8, dtype=torch.uint8), torch.zeros(64, dtype=torch.long)).to(place)
    data = ImageData("fake", 3, images, None, None, lambda: ((0.5,) * 3, (0.5,) * 3))
    network = build(graph).to(META)
    preprocessing = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
    stop = StopHandler(lambda text: None)
    context = TrainingContext(data, preprocessing, Checkpoints(folder), None, stop, lambda text: None)
    task = Task(graph, network, graph.recipe, 10 * LOG_EVERY, context).to(META)
    task.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    optimizer, schedule = optimizer_for(network, graph.recipe, 10 * LOG_EVERY)
    task.optimizers = lambda: optimizer  # type: ignore[method-assign]
    task.lr_schedulers = lambda: schedule  # type: ignore[method-assign]
    task.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    task._sums = task._sums.to(META, task_module.exact_float(META))
    if task._class_weights is not None:
        task._class_weights = task._class_weights.to(META)
    if graph.recipe.ema is not None:
        task._hidden["average"] = WeightAverage(network, graph.recipe.ema)
    task.groups = convert_batch_norm(network, graph.recipe, META, 1)
    task.train()
    epoch = EpochBatches(images, Preprocess(preprocessing, graph.recipe.augment), 8, seed=1)
    batches = ((to_device(images, META), to_device(labels, META)) for images, labels in epoch)
    task.training_step(next(batches), 0)  # creates the state of the optimizer
    with BlockingCopies() as copies:
        for number in range(steps):
            task.training_step(next(batches), number)
            task.on_before_optimizer_step(optimizer)
            task.on_train_batch_end(None, None, number)
    assert task.loss.device == META
    return copies.found


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_no_augmentation_waits_for_the_device(name: str, tmp_path: Path):
    assert copies_in_steps(f"augment {AUGMENTATIONS[name]}; optimizer rmsprop", tmp_path) == []


def test_every_augmentation_runs_on_the_device(monkeypatch: pytest.MonkeyPatch):
    assert {*AUGMENTATIONS} == {*TRANSFORMS}
    monkeypatch.setattr(placement, "free_memory", lambda device: 2**40)
    part = Pixels(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    data = ImageData("fake", 3, part, None, None, lambda: ((0.5,) * 3, (0.5,) * 3))
    for name in TRANSFORMS:
        graph = loads(NETWORK.replace("RECIPE", f"augment {AUGMENTATIONS[name]}"))
        place = placement.choose_placement(data, "auto", graph, graph.recipe, META)
        moved = placement.place_data(data, place, META).train
        assert moved.device.type == "meta", name


RECIPES = [
    "ema 0.99; clip 1; optimizer rmsprop",
    "accumulate 2; label_smoothing 0.1; optimizer radam",
    "mixup 0.2; optimizer nadam",
    "cutmix 1.0; optimizer adagrad",
    "loss cross_entropy class_weights=[1, 2, 3]; optimizer adadelta",
    "decay weights; optimizer adamax weight_decay=0.1",
    "bn_statistics ghost 4; optimizer rmsprop",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_step_waits_for_the_device(recipe: str, tmp_path: Path):
    assert copies_in_steps(recipe, tmp_path) == []


@pytest.mark.parametrize("recipe", [f"augment {' | '.join(AUGMENTATIONS.values())}; optimizer rmsprop", *RECIPES])
def test_no_step_uses_float64_on_mps(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MPS has no float64. Its images stay in the memory of the host, which preprocesses them."""
    monkeypatch.setattr(placement, "free_memory", lambda device: 0)  # as on MPS
    part = Pixels(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    data = ImageData("fake", 3, part, None, None, lambda: ((0.5,) * 3, (0.5,) * 3))
    graph = loads(NETWORK.replace("RECIPE", ""))
    assert placement.choose_placement(data, "auto", graph, graph.recipe, META).place == "ram"
    with WithoutFloat64():
        with pytest.raises(TypeError, match="no float64"):
            copies_in_steps(recipe, tmp_path, place=torch.device("cpu"))  # its sums are in float64
        monkeypatch.setattr(task_module, "exact_float", lambda device: machine.exact_float(torch.device("mps")))
        copies_in_steps(recipe, tmp_path, place=torch.device("cpu"))


def test_a_wait_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seed_step = Task._seed_step

    def copies(self: Task) -> None:
        seed_step(self)
        torch.ones(1).to(META)

    monkeypatch.setattr(Task, "_seed_step", copies)
    assert copies_in_steps("optimizer rmsprop", tmp_path) == ["aten._to_copy.default"] * 3
    monkeypatch.setattr(Task, "_seed_step", lambda self: self.loss.sum().to(META).item())
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        copies_in_steps("optimizer rmsprop", tmp_path)
