"""Accuracy and loss of a network on real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnspec.backends.torch.module import to_module
from cnnspec.backends.torch.weights import Match, load_weights, read_weights
from cnnspec.diagnostics import failure
from cnnspec.ir import Graph
from cnnspec.recipe import Setting
from cnnspec.training.data.augment import Prepare
from cnnspec.training.data.batches import Feed
from cnnspec.training.data.datasets import ImageData, Images, load_data
from cnnspec.training.loop.machine import best_device, default_workers, keep_memory, memory_is_full

BATCH = 250
"""Images at once."""


@dataclass(frozen=True)
class Score:
    """How many images were told right, of how many, the mean cross entropy, and what each was told to be `[N]`."""

    correct: int
    images: int
    loss: float
    predicted: Tensor

    @property
    def accuracy(self) -> float:
        return self.correct / self.images


def score(
    network: nn.Module,
    images: Images,
    data: ImageData,
    size: tuple[int, int],
    device: torch.device,
    poll: Callable[[], None] = lambda: None,
    tta: Literal["hflip"] | None = None,
) -> Score:
    """Score a network on one part of a data set, in float32, without augmentation; in smaller parts if memory is full.

    Args:
        network: Takes `[N, C, H, W]`, gives logits `[N, classes]`; it is left in evaluation mode.
        images: The part.
        data: The set that it belongs to, for the statistics.
        size: Height and width that the network takes.
        device: Where to compute.
        poll: Called before each batch; what it raises ends the scoring.
        tta: `hflip` averages the logits of each image and of its mirror image.
    """
    network = network.to(device).eval()
    correct, loss, parts = 0, 0.0, 1
    predicted: list[Tensor] = []
    workers = 0 if images.in_memory else default_workers()
    with torch.inference_mode():
        for batch, labels in Feed(images, Prepare(size, data.mean, data.std), BATCH, workers=workers):
            poll()
            while True:
                try:
                    outputs = [_logits(network, x.to(device), tta) for x in batch.chunk(parts)]
                    break
                except RuntimeError as error:
                    if parts >= len(batch) or not memory_is_full(error):
                        raise
                    parts *= 2
            logits, labels = torch.cat(outputs), labels.cpu()
            predicted.append(logits.argmax(1))
            correct += int((predicted[-1] == labels).sum())
            loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    return Score(correct, len(images), loss / len(images), torch.cat(predicted))


def _logits(network: nn.Module, images: Tensor, tta: str | None) -> Tensor:
    """Logits `[N, classes]` on the CPU."""
    logits = network(images)
    return ((logits + network(images.flip(3))) / 2 if tta == "hflip" else logits).cpu()


def evaluate(
    graph: Graph,
    weights: str | Path,
    *,
    match: Match = "name",
    data: Setting | None = None,
    data_dir: str | Path = "data",
    offline: bool = False,
    split: Literal["val", "test"] = "test",
) -> dict[str, Any]:
    """Test a network with weights from a file.

    Args:
        graph: The network.
        weights: A checkpoint, a saved `state_dict`, or safetensors.
        match: Whether the file's tensors are matched by `name` or by `order`.
        data: The data set; by default the recipe's.
        data_dir: Where downloaded sets are kept.
        offline: Never download.
        split: Which part is tested.

    Returns:
        Plain data: `test_acc` or `val_acc` as a fraction, `test_loss` or `val_loss`, `images`, `correct`,
        `matched` (tensors), and what was tested.

    Raises:
        CnnspecError: E0501 to E0505, E0508, E0511.
    """
    keep_memory()
    network = to_module(graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    matched = load_weights(network, read_weights(weights, match, graph), match, str(weights))
    setting = data or graph.recipe.data
    images = load_data(graph, setting, Path(data_dir), offline=offline)
    part = images.test if split == "test" else images.val
    if part is None:
        raise failure("E0503", f"`{images.name}` has no {split} images", help="choose the other part with `--split`")
    result = score(network, part, images, graph.input_shape[1:], best_device(), tta=graph.recipe.tta)
    return {
        "network": graph.name,
        "weights": str(weights),
        "match": match,
        "matched": matched,
        "data": setting.model_dump(mode="json"),
        "split": split,
        "tta": graph.recipe.tta,
        f"{split}_acc": result.accuracy,
        f"{split}_loss": result.loss,
        "images": result.images,
        "correct": result.correct,
        "parameters": graph.parameter_count,
        "macs": graph.macs,
    }
