"""The data sets of the recipe: training, validation and test images, and the training set's statistics.

Images are kept as unsigned bytes in the spec's number of channels and in their own size; `augment.Prepare`
brings them to the spec's size. Sets of small images are one tensor in memory; a folder is read image by image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import random_split
from torchvision.transforms.v2 import functional as V

from cnnspec.diagnostics import failure
from cnnspec.ir import Graph
from cnnspec.recipe import DATA_SETS, Setting
from cnnspec.semantics.recipe_rules import no_classifier, nothing_left, other_classes, refuse, too_few
from cnnspec.training.data.download import Original, torchvision_set

SPLIT_SEED = 42
"""Which images are held out for validation does not depend on the run's seed, so that runs can be compared."""
SAMPLE = 2000
"""Of a folder at most so many training images are read for the statistics."""


@dataclass(frozen=True)
class Pixels:
    """Images of one size in memory: `pixels` are bytes `[N, C, h, w]`, labels `[N]`."""

    pixels: Tensor
    labels: Tensor
    in_memory: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Tensor) -> Iterator[Tensor]:
        """Images as groups `[n, C, h, w]` of one size each, in the order of the indices."""
        yield self.pixels.index_select(0, indices.to(self.device))

    def part(self, indices: Tensor) -> Pixels:
        """Some of the images."""
        return Pixels(self.pixels[indices], self.labels[indices])

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def to(self, device: torch.device) -> Pixels:
        """The images in the memory of a device."""
        return Pixels(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Files:
    """Images in files, read when they are needed."""

    paths: tuple[Path, ...]
    labels: Tensor
    channels: int
    in_memory: ClassVar[bool] = False
    device: ClassVar[torch.device] = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Tensor) -> Iterator[Tensor]:
        """Images as groups `[1, C, h, w]`, in the order of the indices."""
        return (_decode(self.paths[i], self.channels) for i in indices.tolist())

    def part(self, indices: Tensor) -> Files:
        """Some of the images."""
        return Files(tuple(self.paths[i] for i in indices.tolist()), self.labels[indices], self.channels)

    def to(self, device: torch.device) -> Files:
        """Themselves: they stay where they are."""
        return self


Images = Pixels | Files
"""One part of a data set."""


def _decode(path: Path, channels: int) -> Tensor:
    """One image `[1, C, h, w]`."""
    try:
        with Image.open(path) as image:
            array = np.array(image.convert("RGB" if channels == 3 else "L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise failure(
            "E0503",
            f"cannot read the image `{path.name}`",
            notes=[str(error)],
            file=str(path),
            help="remove the file or save it again",
        ) from None
    return torch.from_numpy(array).view(1, *array.shape[:2], -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ImageData:
    """A data set in three parts, with the mean and standard deviation of each channel, scaled to 0..1.

    `names` are those of its classes, where they have any.
    """

    name: str
    classes: int
    train: Images
    val: Images | None
    test: Images | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the images that are in memory."""
        parts = (self.train, self.val, self.test)
        return sum(part.pixels.numel() for part in parts if isinstance(part, Pixels))

    def to(self, device: torch.device) -> ImageData:
        """The set with what is in memory in the memory of a device."""
        val, test = (part and part.to(device) for part in (self.val, self.test))
        return replace(self, train=self.train.to(device), val=val, test=test)


def class_count(graph: Graph) -> int:
    """How many classes a network tells apart.

    Raises:
        CnnspecError: E0508 if its output is no vector, or it does not read grey or RGB images.
    """
    refuse(no_classifier(graph.input_shape, graph.output_shape))
    return graph.output_shape[0]


def load_data(graph: Graph, setting: Setting, data_dir: Path, *, offline: bool = False) -> ImageData:
    """Load a data set for a network.

    Args:
        graph: The network; its input says how many channels are wanted, its output how many classes.
        setting: The data set and its arguments.
        data_dir: Where downloaded sets are kept; a torchvision `root`.
        offline: Never download.

    Raises:
        CnnspecError: E0501 if it has another number of classes than the network, E0502 if it cannot be
            had, E0503 if a folder is not as it should be, E0508 if the network is no image classifier.
    """
    wanted = class_count(graph)
    _compare_classes(graph, setting.name, DATA_SETS[setting.name].classes or wanted, wanted)
    channels = graph.input_shape[0]
    if setting.name == "folder":
        return _load_folder(graph, Path(str(setting.args["path"])), setting.args["val"], channels, wanted)  # type: ignore[arg-type]
    load = SOURCES[setting.name]
    train = _pixels(load(data_dir, offline, True), channels)
    test = _pixels(load(data_dir, offline, False), channels)
    mean, std = statistics([train.pixels])
    kept, held = split(len(train), int(setting.args["val"]), setting.name)  # type: ignore[arg-type]
    val = train.part(held) if len(held) else None
    train = _some(train.part(kept), setting, "train")
    names = NAMES.get(setting.name, ())
    return ImageData(setting.name, wanted, train, val, _some(test, setting, "test"), mean, std, names)


def _some(images: Pixels, setting: Setting, part: str) -> Pixels:
    """So many images of a part as are wanted, always the same ones.

    Raises:
        CnnspecError: E0511 if there are not so many.
    """
    wanted: Any = setting.args.get(part)
    if wanted is None:
        return images
    refuse(too_few(setting, part, len(images)))
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    return images.part(torch.randperm(len(images), generator=generator)[:wanted])


def _compare_classes(graph: Graph, name: str, classes: int, wanted: int) -> None:
    refuse(other_classes(graph.name, wanted, name, classes, graph.model.constants.get("classes")))


def _packaged(data_dir: Path, offline: bool, train: bool) -> Original:
    """The set that comes with the package; its rule is in the licence file beside it."""
    part = "train" if train else "test"
    with np.load(Path(__file__).with_name("fashion_mini") / "fashion_mini.npz", allow_pickle=False) as arrays:
        return Original(arrays[f"{part}_images"], arrays[f"{part}_labels"])


_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
NAMES: dict[str, tuple[str, ...]] = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion_mnist": _CLOTHES,
    "fashion_mini": _CLOTHES,
}
"""What the classes of a set are called, in the order of their labels."""

SOURCES: dict[str, Callable[[Path, bool, bool], Original]] = {
    "cifar10": partial(torchvision_set, "cifar10"),
    "cifar100": partial(torchvision_set, "cifar100"),
    "fashion_mnist": partial(torchvision_set, "fashion_mnist"),
    "mnist": partial(torchvision_set, "mnist"),
    "fashion_mini": _packaged,
}
"""Where a set's images come from; by data directory, whether offline, and whether the training part."""


def _pixels(original: Original, channels: int) -> Pixels:
    images = torch.from_numpy(original.images)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()  # [N, C, h, w]
    if images.shape[1] == 1:
        images = images.expand(-1, channels, -1, -1)
    elif channels == 1:
        images = _to_grey(images)
    return Pixels(images, torch.from_numpy(original.labels).long())


def _to_grey(images: Tensor) -> Tensor:
    """One channel of luminance from three. Source: `torchvision.transforms.v2.Grayscale`."""
    return torch.cat([V.rgb_to_grayscale(chunk) for chunk in images.split(5000)])


def split(count: int, held: int, name: str) -> tuple[Tensor, Tensor]:
    """Indices that are trained on, and the `held` ones kept back for validation.

    The same as `torch.manual_seed(42)` followed by `random_split(range(count), [count - held, held])`.

    Raises:
        CnnspecError: E0511 if nothing is left to train on.
    """
    refuse(nothing_left(name, held, count))
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    kept, kept_back = random_split(range(count), [count - held, held], generator)  # type: ignore[arg-type]
    if not held:
        return torch.arange(count), torch.arange(0)
    return torch.tensor(list(kept.indices)), torch.tensor(list(kept_back.indices))


def statistics(groups: Sequence[Tensor] | Iterator[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of `[n, C, h, w]`, scaled to 0..1.

    Exact sums, rounded to eight digits as such constants are published.
    """
    count, total, squares = 0, torch.tensor(0), torch.tensor(0)
    for group in groups:
        for chunk in group.split(2000):
            values = chunk.long()
            count += values.numel() // values.shape[1]
            total = total + values.sum((0, 2, 3))
            squares = squares + values.square().sum((0, 2, 3))
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).sqrt()
    # A channel that never changes is left as it is.
    scaled = (std / 255).where(std > 0, 1.0)
    return tuple(round(v, 8) for v in (mean / 255).tolist()), tuple(round(v, 8) for v in scaled.tolist())


# --- folders -------------------------------------------------------------------------------------

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_LAYOUT = "it needs `train/CLASS/*.png` (or jpg and the like), `test/CLASS/*`, and may have `val/CLASS/*`"


def _load_folder(graph: Graph, path: Path, share: float, channels: int, wanted: int) -> ImageData:
    path = path.expanduser()
    if not (path / "train").is_dir():
        what = "has no folder `train`" if path.is_dir() else "is not a folder"
        raise failure("E0503", f"`{path}` {what}", help=_LAYOUT)
    names = _class_names(path / "train")
    train = _list_files(path / "train", names, channels)
    # Before any image is opened.
    _compare_classes(graph, str(path), len(names), wanted)
    val = _list_files(path / "val", names, channels) if (path / "val").is_dir() else None
    test = _list_files(path / "test", names, channels) if (path / "test").is_dir() else None
    sample = torch.randperm(len(train), generator=torch.Generator().manual_seed(SPLIT_SEED))[:SAMPLE]
    mean, std = statistics(train.read(sample))
    if val is None and share > 0:
        kept, held = split(len(train), round(len(train) * share), str(path))
        train, val = train.part(kept), train.part(held) if len(held) else None
    return ImageData(str(path), wanted, train, val, test, mean, std, tuple(names))


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_files(folder: Path, names: list[str], channels: int) -> Files:
    if strange := [name for name in _class_names(folder) if name not in names]:
        raise failure("E0503", f"`{folder}` has the class `{strange[0]}`, and `train` has not", help=_LAYOUT)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():
            continue
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())
        if not found and folder.name == "train":
            raise failure("E0503", f"`{folder / name}` holds no images", help=_LAYOUT)
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise failure("E0503", f"`{folder}` holds no images", help=_LAYOUT)
    return Files(tuple(paths), torch.tensor(labels), channels)
