"""Evaluate the accuracy and loss of a network on a dataset."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnspec.backends.torch.matching import load_weights
from cnnspec.backends.torch.memory import is_out_of_memory
from cnnspec.backends.torch.module import Network, to_module
from cnnspec.backends.torch.weights import read_weights
from cnnspec.diagnostics import CnnspecError, failure
from cnnspec.ir import Graph
from cnnspec.recipe import Setting
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.batches import EpochBatches, Workers
from cnnspec.training.data.datasets import Images, load_data
from cnnspec.training.data.device import to_device
from cnnspec.training.data.identity import FILE, DataIdentity, Inventory, differences, is_other
from cnnspec.training.data.preprocessing import Preprocessing, choose_preprocessing
from cnnspec.training.data.records import Splits
from cnnspec.training.loop.about import about_weights
from cnnspec.training.loop.launch import local_processes
from cnnspec.training.loop.machine import best_device, default_workers, float32_products, images_that_fit, keep_memory
from cnnspec.training.loop.metrics import calibration, class_metrics, confusion
from cnnspec.training.loop.nan_search import first_nonfinite_layer
from cnnspec.training.loop.processes import Processes

BATCH, BATCH_ON_GPU = 250, 2000
"""The maximum number of images per batch. The host waits for a GPU once per batch."""
BATCH_VALUES = 2**24
"""The maximum number of values per batch of large images."""
GRANULE = 4
"""Batches are padded to a multiple of this number of images. Kernels for one to three images round differently."""

Precision = Callable[[], AbstractContextManager[Any]]
"""Returns the context to compute in."""


def images_per_batch(image: Sequence[int], device: torch.device) -> int:
    """Return the number of images `[C, H, W]` per batch of a test or a prediction."""
    most = BATCH if device.type == "cpu" else BATCH_ON_GPU
    return min(most, max(GRANULE, BATCH_VALUES // math.prod(image) // GRANULE * GRANULE))


def full_float32() -> AbstractContextManager[Any]:
    """Return a context without TF32: the same products on every device."""
    return float32_products(tf32=False)


class Evaluator:
    """Compute the logits of batches, in the precision of the weights.

    On a CPU, the logits of an image do not depend on the other images of its batch. Batches are split if memory runs
    out, and on a CPU if the whole batch would not fit.

    Args:
        network: Maps `[N, C, H, W]` to logits `[N, classes]`. It is left in evaluation mode.
        device: The device to compute on.
        tta: `hflip` averages the logits of each image and of its mirror image.
        precision: Returns the context to compute in, by default full float32 precision.

    Raises:
        CnnspecError: E0513 if not even one image fits into the memory.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        tta: Literal["hflip"] | None = None,
        precision: Precision = full_float32,
    ) -> None:
        self.network, self.device, self.tta, self._precision = network.to(device).eval(), device, tta, precision
        fits = images_that_fit(network.graph, device, training=False) if isinstance(network, Network) else None
        self._most = fits or sys.maxsize
        self._dtype = next((weight.dtype for weight in network.parameters()), torch.float32)  # of `--precision 64-true`

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """Return the logits `[N, classes]` of images `[N, C, H, W]`, on the CPU.

        Raises:
            CnnspecError: E0509 if one is NaN or Inf.
        """
        padded = _padded(batch, GRANULE if self._most >= GRANULE else 1)
        while True:
            try:
                parts = padded.split(min(self._most, len(padded)))
                with self._precision():
                    logits = torch.cat([self._logits(to_device(part, self.device)) for part in parts])
                logits = logits[: len(batch)].cpu()
                break
            except (RuntimeError, MemoryError) as error:
                if self._most == 1 or not is_out_of_memory(error):
                    raise
                most = min(self._most, len(padded)) // 2
                self._most = max(1, most // GRANULE * GRANULE or most)
        if not logits.isfinite().all():
            layer = first_nonfinite_layer(self.network, batch.to(self.device))
            raise failure(
                "E0509",
                "the output of the network is not finite in evaluation: the training diverged",
                notes=[f"the first layer whose output contains NaN or Inf is `{layer}`"] if layer else [],
                help="use a lower learning rate, or other weights",
            )
        return logits

    def _logits(self, images: Tensor) -> Tensor:
        images = images.to(self._dtype)
        logits = self.network(images)
        return (logits + self.network(images.flip(3))) / 2 if self.tta == "hflip" else logits


def _padded(batch: Tensor, granule: int) -> Tensor:
    """Repeat the last image up to a multiple of `granule` images. The result is channels last, also in its strides."""
    count, (channels, height, width) = len(batch), batch.shape[1:]
    strides = (channels * height * width, 1, width * channels, channels)  # ambiguous in torch for a single channel
    if count % granule == 0 and batch.stride() == strides:
        return batch
    shape = (-(-count // granule) * granule, channels, height, width)
    padded = torch.empty_strided(shape, strides, dtype=batch.dtype, device=batch.device)
    padded[:count], padded[count:] = batch, batch[-1:]
    return padded


@dataclass(frozen=True)
class Score:
    """The result of an evaluation.

    Attributes:
        correct: The number of correct predictions.
        images: The number of images.
        loss: The mean cross-entropy.
        labels: The actual class of each image, `[N]`.
        predicted: The predicted class of each image, `[N]`.
        probability: The probability of the predicted class, `[N]` in float64.
        among_five: The number of images whose class is one of the five most probable ones.
        classes: The number of classes.
    """

    correct: int
    images: int
    loss: float
    labels: Tensor
    predicted: Tensor
    probability: Tensor
    among_five: int
    classes: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.images

    @property
    def top5_accuracy(self) -> float | None:
        """The top-5 accuracy, None for up to five classes."""
        return self.among_five / self.images if self.classes > 5 else None

    def metrics(self) -> dict[str, Any]:
        """Return further metrics as plain data, as stored in `result.json`."""
        error, bins = calibration(self.predicted == self.labels, self.probability)
        return {
            "top5_acc": self.top5_accuracy,
            "calibration_error": error,
            "reliability": bins,
            "classes": class_metrics(confusion(self.labels, self.predicted, self.classes)),
        }


def score(
    network: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    device: torch.device,
    poll: Callable[[], None] = lambda: None,
    tta: Literal["hflip"] | None = None,
    processes: Processes | None = None,
    precision: Precision = full_float32,
    workers: Workers | None = None,
) -> Score:
    """Evaluate a network on one split of a dataset, in the precision of its weights and without augmentation.

    Several processes divide the batches. Each returns the score of all images, exactly that of a single process.

    Args:
        network: Maps `[N, C, H, W]` to logits `[N, classes]`. It is left in evaluation mode.
        images: The split.
        preprocessing: Turns images into the input of the network.
        device: The device to compute on.
        poll: Called before each batch, equally often in each process. An exception ends the evaluation.
        tta: `hflip` averages the logits of each image and of its mirror image.
        processes: The processes that share the work. All of them call this function.
        precision: Returns the context to compute in, by default full float32 precision.
        workers: The processes that read images from files, None for this process.

    Raises:
        CnnspecError: E0509 if an output is NaN or Inf, E0513 if not even one image fits into the memory.
    """
    evaluator, processes = Evaluator(network, device, tta, precision), processes or Processes()
    size = images_per_batch((len(preprocessing.mean), *preprocessing.size), device)
    rounds = math.ceil(math.ceil(len(images) / size) / processes.size)
    first = processes.rank * rounds
    batches = EpochBatches(
        images,
        Preprocess(preprocessing),
        size,
        skip=first,
        stop=first + rounds,
        workers=None if images.in_memory else workers,
    )
    found = torch.zeros(4, len(images), dtype=torch.float64)  # predicted, probability, loss, among the first five
    classes, polls, position = 0, 0, first * size
    error: CnnspecError | None = None
    try:
        for batch, labels in batches:
            poll()
            polls += 1
            logits, labels = evaluator(batch), labels.cpu()
            columns = slice(position, position := position + len(labels))
            found[0, columns] = logits.argmax(1).double()
            found[1, columns] = logits.double().softmax(1).amax(1)
            found[2, columns] = F.cross_entropy(logits.double(), labels, reduction="none")
            found[3, columns] = ((logits > logits.gather(1, labels[:, None])).sum(1) < 5).double()
            classes = logits.shape[1]
    except CnnspecError as problem:
        error = problem
    for _ in range(polls, rounds):
        poll()
    processes.raise_any(error)
    found = processes.sum(found)  # the others hold zeros
    predicted, actual = found[0].long(), images.labels.cpu()
    return Score(
        int((predicted == actual).sum()),
        len(images),
        float(found[2].sum()) / len(images),
        actual,
        predicted,
        found[1],
        int(found[3].sum()),
        processes.greatest(classes)[0],
    )


def evaluate(
    graph: Graph,
    weights: str | Path,
    *,
    match: str = "name",
    data: Setting | None = None,
    data_dir: str | Path = "data",
    offline: bool = False,
    split: Literal["val", "test"] = "test",
    verify_data: bool = False,
    accept_changes: bool = False,
    images: Splits | None = None,
) -> dict[str, Any]:
    """Test a network with weights from a file.

    Args:
        graph: The network.
        weights: A checkpoint, a saved `state_dict`, or safetensors.
        match: How the tensors in the file are matched: by `name`, by `order`, or by a map (the path of a JSON file).
        data: The dataset, by default that of the recipe.
        data_dir: The directory of downloaded datasets.
        offline: Never download.
        split: The split to test on.
        verify_data: Compare the contents of all images with those that the weights were trained on.
        accept_changes: Test on data that has changed since the training.
        images: Images and labels of this program. They replace `data`, except for the arguments of `data python`.

    Returns:
        Plain data: `test_acc` or `val_acc` as a fraction, `test_loss` or `val_loss`, `images`, `correct`, `matched`
        (tensors), `metrics` as in `result.json`, and the settings. `data_identity` identifies the data, `data_changes`
        describes how it differs from that of the training.

    Raises:
        CnnspecError: E0501 to E0505, E0508, E0511. E0519 if the dataset has changed since the training.
    """
    keep_memory()
    network = to_module(graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given = read_weights(weights, match, graph, offline=offline)
    matched = load_weights(network, given, match, str(weights), optional=[head.name for head in graph.aux])
    setting = data or graph.recipe.data
    if images is not None:
        setting = setting.from_python()
    about = about_weights(weights, graph)
    found = _DataComparison(Path(weights), about.data, setting.name, verify_data)
    options: dict[str, Any] = {
        "offline": offline,
        "verify": verify_data,
        "classes": about.classes,
        "images": images,
    }
    try:
        loaded = load_data(graph, setting, Path(data_dir), **options, examine=found.examine)
    except CnnspecError:
        found.refuse(accept_changes)
        raise
    found.refuse(accept_changes)
    assert loaded.inventory is not None
    part = loaded.test if split == "test" else loaded.val
    if part is None:
        raise failure("E0503", f"`{loaded.name}` has no {split} images", help="choose another split with `--split`")
    preprocessing, origins = choose_preprocessing(
        graph.recipe, graph.input_shape, loaded.compute_statistics, about.preprocessing
    )
    with Workers(default_workers(local_processes(1))) as workers:
        result = score(network, part, preprocessing, best_device(), tta=graph.recipe.tta, workers=workers)
    return {
        "network": graph.name,
        "weights": str(weights),
        "match": match,
        "matched": matched.count,
        "notes": matched.notes(),
        "data": setting.model_dump(mode="json"),
        "data_identity": loaded.inventory.identity.model_dump(mode="json"),
        "data_changes": found.changes,
        "data_is_other": found.is_other,
        "classes": list(loaded.names),
        "data_notes": list(loaded.notes),
        "split": split,
        "tta": graph.recipe.tta,
        "preprocessing": {**preprocessing.to_json(), "origins": origins},
        f"{split}_acc": result.accuracy,
        f"{split}_loss": result.loss,
        "images": result.images,
        "correct": result.correct,
        "metrics": result.metrics(),
        "parameters": graph.parameter_count,
        "macs": graph.macs,
    }


class _DataComparison:
    """The comparison of a dataset with the one that weights were trained on. Another named dataset is not compared.

    Args:
        weights: The file of the weights.
        identity: The dataset that they were trained on, if it is known.
        name: The name of the dataset.
        verify: Whether contents are to be compared.
    """

    def __init__(self, weights: Path, identity: DataIdentity | None, name: str, verify: bool) -> None:
        self._file, self._verify = weights, verify
        self.changes: list[str] = []
        self.is_other = False
        self._trained: Inventory | None = None
        if identity is not None and identity.name == name:
            self._trained = Inventory.read(identity, weights.parent.parent / FILE)

    def examine(self, inventory: Inventory) -> None:
        """Compare a dataset. The differences are in `changes`."""
        if self._trained is not None:
            self.is_other = is_other(self._trained, inventory)
            self.changes = [] if self.is_other else differences(self._trained, inventory, shared=True)
        if self._verify and (self._trained is None or self._trained.identity.contents is None):
            raise failure(
                "E0519",
                "cannot verify the dataset: the weights do not contain a hash of its images",
                file=str(self._file),
                help="train with `--verify-data`, or omit it to compare names and sizes",
            )

    def refuse(self, accept: bool) -> None:
        """Raise an error if the dataset has changed, unless changes are accepted."""
        if self.changes and not accept:
            raise failure(
                "E0519",
                "the dataset has changed since the weights were trained",
                notes=self.changes,
                file=str(self._file),
                help="restore the dataset, or accept the changes with `--accept-changes`",
            )
