"""Load the datasets of the recipe: training, validation and test images, and the statistics of the training images.

Images are stored as unsigned bytes with the channels of the spec, in their original size. `augment.Preprocess` resizes
them. Sets of small images are one tensor in memory. The images of a folder are read one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import random_split
from torchvision.transforms.v2 import functional as V

from cnnspec.diagnostics import failure, named
from cnnspec.ir import Graph
from cnnspec.recipe import DATA_SETS, Setting
from cnnspec.semantics.recipe_rules import no_classifier, nothing_left, other_classes, refuse, too_few
from cnnspec.training.data.channel_statistics import image_statistics, statistics
from cnnspec.training.data.device import to_device
from cnnspec.training.data.download import RawImages, torchvision_set
from cnnspec.training.data.folders import LAYOUT, class_positions, data_path, list_images
from cnnspec.training.data.identity import Inventory, identify_folder, identify_labels
from cnnspec.training.data.preprocessing import Statistics
from cnnspec.training.data.records import Loaded, Splits, load_hub_dataset, load_splits
from cnnspec.training.data.sources import Files, Records

SPLIT_SEED = 42
"""The seed of the validation split. It does not depend on the seed of the run, so that runs are comparable."""
STATISTICS_SAMPLE = 2000
"""The maximum number of training images of a folder that are read to compute the statistics."""


@dataclass(frozen=True)
class Pixels:
    """Images of one size in memory: bytes `[N, C, h, w]` and labels `[N]`."""

    pixels: Tensor
    labels: Tensor
    in_memory: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Tensor) -> Iterator[Tensor]:
        """Yield the images as groups `[n, C, h, w]` of one size each, in the order of the indices."""
        yield self.pixels.index_select(0, to_device(indices, self.device))

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the order of an epoch, `[N]`."""
        return torch.randperm(len(self), generator=generator)

    def subset(self, indices: Tensor) -> Pixels:
        """Return the images at these indices."""
        return Pixels(self.pixels[indices], self.labels[indices])

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def to(self, device: torch.device) -> Pixels:
        """Return the images in the memory of a device."""
        return Pixels(self.pixels.to(device), self.labels.to(device))


Images = Pixels | Records
"""One split of a dataset."""


@dataclass(frozen=True)
class ImageData:
    """A dataset with its splits.

    `compute_statistics` returns the mean and standard deviation of each channel on a scale from 0 to 1. `names` are the
    names of the classes, if they have any. `notes` is what a user should know about the files. `inventory` identifies
    the dataset. `root` is the folder of the images, if they are files.
    """

    name: str
    classes: int
    train: Images
    val: Images | None
    test: Images | None
    compute_statistics: Callable[[], Statistics]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    inventory: Inventory | None = None
    root: Path | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers."""
        return self.names or tuple(map(str, range(self.classes)))

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel of the training images."""
        return self.compute_statistics()[0]

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of each channel of the training images."""
        return self.compute_statistics()[1]

    @property
    def nbytes(self) -> int:
        """The size of the images in memory, in bytes."""
        parts = (self.train, self.val, self.test)
        return sum(subset.pixels.numel() for subset in parts if isinstance(subset, Pixels))

    def to(self, device: torch.device) -> ImageData:
        """Return the dataset with its in-memory images on a device."""
        val, test = (subset and subset.to(device) for subset in (self.val, self.test))
        return replace(self, train=self.train.to(device), val=val, test=test)


class DatasetCache:
    """A cache that loads each dataset once for several networks."""

    def __init__(self, data_dir: Path, *, offline: bool, images: Splits | None = None) -> None:
        self._data_dir, self._offline, self._images = data_dir, offline, images
        self._loaded: dict[tuple[str, int, tuple[int, ...]], ImageData] = {}

    def load(self, graph: Graph, setting: Setting) -> ImageData:
        """Return the dataset of a network, and load it on the first call."""
        key = (setting.model_dump_json(), graph.input_shape[0], graph.output_shape)
        if key not in self._loaded:
            self._loaded[key] = load_data(graph, setting, self._data_dir, offline=self._offline, images=self._images)
        return self._loaded[key]

    def clear(self) -> None:
        """Release the datasets."""
        self._loaded.clear()


def class_count(graph: Graph) -> int:
    """Return the number of classes of an image classifier.

    Raises:
        CnnspecError: E0508 if the output is not a vector or the input is neither grayscale nor RGB.
    """
    refuse(no_classifier(graph), graph.nodes[1].origin if graph.images else None)
    return graph.output_shape[0]


Examine = Callable[[Inventory], None]
"""A function that is called with the identity of a dataset before its layout is checked."""


def load_data(
    graph: Graph,
    setting: Setting,
    data_dir: Path,
    *,
    offline: bool = False,
    verify: bool = False,
    examine: Examine = lambda inventory: None,
    classes: Sequence[str] | None = None,
    images: Splits | None = None,
) -> ImageData:
    """Load a dataset for a network.

    Args:
        graph: The network. Its input determines the channels, its output the classes.
        setting: The dataset and its arguments.
        data_dir: The directory of downloaded datasets, a torchvision `root`.
        offline: Never download.
        verify: Hash the contents of all images.
        examine: Called with the identity of the dataset before its layout and classes are checked.
        classes: The class names of trained weights, to test them: a folder may have some of these classes only, and no
            training images.
        images: The images of `data python`.

    Raises:
        CnnspecError: E0501 if the number of classes differs from the network's, E0502 if the dataset is not available,
            E0503 if a folder has the wrong layout or images are unsuitable, E0508 if the network is not an image
            classifier.
    """
    expected = class_count(graph)
    _check_classes(graph, setting.name, DATA_SETS[setting.name].classes or expected, expected)
    channels = graph.input_shape[0]
    if setting.name not in SOURCES:
        request = _Request(graph, setting, expected, examine, classes, verify=verify)
        if setting.name == "folder":
            return _load_folder(request)
        if setting.name == "hf":
            return _load_records(request, load_hub_dataset(setting, channels, data_dir, offline=offline))
        if images is None:
            help = "call `train(graph, TrainOptions(images=Splits(...)))`, or name a dataset with `--data`"
            raise failure("E0502", "the images of `data python` come from a Python program", help=help)
        return _load_records(request, load_splits(images, channels))
    load = SOURCES[setting.name]
    raw = {split: load(data_dir, offline, split == "train") for split in ("train", "test")}
    names = CLASS_NAMES.get(setting.name) or raw["train"].names
    labels = {split: found.labels for split, found in raw.items()}
    pixels = (raw[split].images for split in sorted(raw))
    inventory = identify_labels(setting.name, labels, names, pixels if verify else None)
    examine(inventory)
    train, test = (_pixels(raw[split], channels) for split in ("train", "test"))
    found = statistics([train.pixels])  # of all training images, also those held out for validation
    train_indices, val_indices = split(len(train), int(setting.args["val"]), setting.name)  # type: ignore[arg-type]
    val = train.subset(val_indices) if len(val_indices) else None
    train = _select(train.subset(train_indices), setting, "train")
    test = _select(test, setting, "test")
    return ImageData(setting.name, expected, train, val, test, lambda: found, names, (), inventory)


def _select(images: Pixels, setting: Setting, subset: str) -> Pixels:
    """Select as many images of a split as the recipe requests, always the same ones.

    Raises:
        CnnspecError: E0511 if there are too few images.
    """
    count: Any = setting.args.get(subset)
    if count is None:
        return images
    refuse(too_few(setting, subset, len(images)))
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    return images.subset(torch.randperm(len(images), generator=generator)[:count])


def _check_classes(graph: Graph, name: str, classes: int, expected: int) -> None:
    refuse(other_classes(graph.name, expected, name, classes, graph.model.constants.get("classes")))


def _load_packaged(data_dir: Path, offline: bool, train: bool) -> RawImages:
    """Load the dataset of the package. The license file in its folder describes how it was made."""
    subset = "train" if train else "test"
    with np.load(Path(__file__).with_name("fashion_mini") / "fashion_mini.npz", allow_pickle=False) as arrays:
        return RawImages(arrays[f"{subset}_images"], arrays[f"{subset}_labels"])


_FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "fashion_mnist": _FASHION,
    "fashion_mini": _FASHION,
}
"""The class names of datasets whose files do not contain them, in the order of the labels."""

SOURCES: dict[str, Callable[[Path, bool, bool], RawImages]] = {
    "cifar10": partial(torchvision_set, "cifar10"),
    "cifar100": partial(torchvision_set, "cifar100"),
    "fashion_mnist": partial(torchvision_set, "fashion_mnist"),
    "mnist": partial(torchvision_set, "mnist"),
    "fashion_mini": _load_packaged,
}
"""The loader of each dataset, called with the data directory, `offline`, and whether to load the training split."""


def _pixels(raw: RawImages, channels: int) -> Pixels:
    images = torch.from_numpy(raw.images)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()  # [N, C, h, w]
    return Pixels(_match_channels(images, channels), torch.from_numpy(raw.labels).long())


def _match_channels(images: Tensor, channels: int) -> Tensor:
    """Convert bytes `[N, C, h, w]` between grayscale and RGB.

    Source: `torchvision.transforms.v2.Grayscale`.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return torch.cat([V.rgb_to_grayscale(chunk) for chunk in images.split(5000)])


def split(count: int, held_out: int, name: str) -> tuple[Tensor, Tensor]:
    """Return the indices of the training images and of the `held_out` validation images.

    Equals `torch.manual_seed(42)` followed by `random_split(range(count), [count - held_out, held_out])`.

    Raises:
        CnnspecError: E0511 if no training images are left.
    """
    refuse(nothing_left(name, held_out, count))
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    if not held_out:
        return torch.arange(count), torch.arange(0)
    train, val = random_split(range(count), [count - held_out, held_out], generator)  # type: ignore[arg-type]
    return torch.tensor(list(train.indices)), torch.tensor(list(val.indices))


# --- folders and records -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """What `load_data` was asked for, for a dataset whose splits and classes are not known in advance."""

    graph: Graph
    setting: Setting
    expected: int
    examine: Examine
    classes: Sequence[str] | None
    verify: bool


def _load_folder(request: _Request) -> ImageData:
    path, base = data_path(request.setting)
    listing = list_images(path, base=base)
    inventory = identify_folder(path, listing, verify=request.verify)
    request.examine(inventory)
    if request.classes:
        listing = listing.with_classes(request.classes)
    channels = request.graph.input_shape[0]
    parts = {
        split: Records.of(
            Files(tuple(entry.path for entry in entries), channels), torch.tensor([entry.label for entry in entries])
        )
        for split, entries in listing.splits.items()
    }
    data = _assemble(request, str(path), parts, listing.classes, listing.notes, inventory)
    return replace(data, root=path if path.is_dir() else path.parent)


def _load_records(request: _Request, loaded: Loaded) -> ImageData:
    found, names = loaded
    parts = {split: images for split, images in found.items() if len(images)}
    name = str(request.setting.args.get("path", request.setting.name))
    labels = {split: found.labels.numpy() for split, found in parts.items()}
    pixels = (group.numpy() for split in sorted(parts) for group in parts[split].read(torch.arange(len(parts[split]))))
    inventory = identify_labels(request.setting.name, labels, names, pixels if request.verify else None)
    request.examine(inventory)
    greatest = max((int(found.labels.max()) for found in parts.values() if len(found)), default=-1)
    if names and greatest >= len(names):
        raise failure("E0503", f"`{name}` has a label {greatest}, but {len(names)} class names")
    if request.classes and names:
        position = torch.tensor(class_positions(names, request.classes))
        parts = {split: replace(found, labels=position[found.labels]) for split, found in parts.items()}
        names = tuple(request.classes)
    names = names or tuple(request.classes or map(str, range(greatest + 1)))
    return _assemble(request, name, parts, names, (), inventory)


def _assemble(
    request: _Request,
    name: str,
    parts: Mapping[str, Records],
    classes: Sequence[str],
    notes: Sequence[str],
    inventory: Inventory,
) -> ImageData:
    """Return a dataset with its splits, and the statistics of a sample of its training images."""
    # before any image is opened
    _check_classes(request.graph, name, len(classes), request.expected)
    notes = list(notes)
    fraction: Any = request.setting.args["val"]
    empty = Records.of(Files((), 0), torch.zeros(0, dtype=torch.long))
    train, val = parts.get("train", empty), parts.get("val")
    if not len(train) and request.classes is None:
        raise failure("E0503", f"`{name}` has no training images", help=LAYOUT)
    if val is None and fraction > 0 and len(train):
        refuse(nothing_left(name, round(len(train) * fraction), len(train)))
        train_indices, val_indices = split_by_class(train.labels, fraction)
        if kept := sorted({*train.labels.tolist()} - {*train.labels[val_indices].tolist()}):
            single = named([str(classes[label]) for label in kept])
            notes.append(f"no validation images of {single}: a single image of a class stays in training")
        train, val = train.subset(train_indices), train.subset(val_indices) if len(val_indices) else None

    @cache
    def compute() -> Statistics:
        if not len(train):
            help = "set one: `--set normalize=imagenet`"
            message = f"`{name}` has no training images to compute the mean and standard deviation of"
            raise failure("E0503", message, help=help)
        generator = torch.Generator().manual_seed(SPLIT_SEED)
        return image_statistics(train.subset(train.order(generator)[:STATISTICS_SAMPLE]))

    test = parts.get("test")
    return ImageData(name, request.expected, train, val, test, compute, tuple(classes), tuple(notes), inventory)


def split_by_class(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return the indices of the training and the validation images, with the same fraction of each class held out.

    Each class with at least two images has one in both parts. A class with a single image is not held out.

    Args:
        labels: The label of each image, `[N]`.
        fraction: The fraction of images to hold out, in (0, 1).
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    held_out: list[Tensor] = []
    for label in labels.unique(sorted=True):
        own = (labels == label).nonzero()[:, 0]
        count = min(max(round(len(own) * fraction), 1), len(own) - 1)
        held_out.append(own[torch.randperm(len(own), generator=generator)[:count]])
    val = torch.cat(held_out).sort().values
    is_train = torch.ones(len(labels), dtype=torch.bool)
    is_train[val] = False
    return is_train.nonzero()[:, 0], val
