"""Read datasets that are not files by class: those of the Hugging Face `datasets` library, and those of a program.

Both are read by position, so a batch depends on its position only, as with other datasets.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, cast
from urllib.parse import urljoin
from urllib.request import urlopen

import torch
from torch import Tensor

from cnnspec.diagnostics import CnnspecError, failure, named, one_line
from cnnspec.recipe import Setting
from cnnspec.semantics.loader import path_below
from cnnspec.training.data.folders import SPLITS, outside, split_of
from cnnspec.training.data.images import image_pixels, open_image
from cnnspec.training.data.sources import Records, Rows
from cnnspec.training.data.streams import Shards, read_labels

MAX_LABELS = 1 << 20
"""The maximum number of classes that integer labels may have."""


@dataclass(frozen=True)
class Splits:
    """Images and labels of a program, for `TrainOptions(images=...)`.

    Each split is a pair of arrays, or a map-style `torch.utils.data.Dataset` of pairs `(image, label)`. Images are PIL
    images, bytes (`[h, w]` or `[h, w, C]` in an array, `[C, h, w]` in a tensor), or floats `[C, h, w]` from 0 to 1, as
    `torchvision.transforms.ToTensor` makes them. Normalization and augmentation belong to the recipe. Labels are
    integers from 0. The images of a dataset are read when they are needed, its labels once.

    Attributes:
        train: The training images, or None to test only.
        test: The test images.
        val: The validation images. Without them, the recipe's fraction of `train` is held out.
        classes: The names of the classes.
    """

    train: Any = None
    test: Any = None
    val: Any = None
    classes: Sequence[str] = ()


Loaded = tuple[dict[str, Records], tuple[str, ...]]
"""The splits, and the names of the classes."""
MAX_LIST_BYTES = 1 << 20
"""The maximum size of a list of shards, in bytes."""
TIMEOUT = 30.0
"""The timeout of a connection without data, in seconds."""


# --- the datasets library ------------------------------------------------------------------------


def load_hub_dataset(setting: Setting, channels: int, data_dir: Path, *, offline: bool) -> Loaded:
    """Load a dataset of the Hugging Face Hub, or a folder of Parquet files.

    Args:
        setting: `hf` with its arguments.
        channels: 1 for grayscale, 3 for RGB.
        data_dir: The directory of downloaded datasets. The cache is in its folder `huggingface`, in one of its own for
            each revision of a dataset of the Hub: without a connection, the library uses the latest one in the folder.
        offline: Never download.

    Raises:
        CnnspecError: E0502 if the library is not installed or the dataset is not available. E0503 if it has no column
            of images or of labels. E0218 if a spec names a folder outside its own.
    """
    try:
        import datasets
    except ImportError:
        help = "install it with `pip install 'cnnspec[hf]'`"
        raise failure("E0502", "`data hf` needs the package `datasets`", help=help) from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are exceptions, too
    path, stream = str(setting.args["path"]), bool(setting.args.get("stream"))
    files = _listed_files(path, offline) if is_url(path) else _parquet_files(path, setting.base)
    given: dict[str, Any] = {"path": path}
    cache = data_dir / "huggingface"
    if files is not None:
        given = {"path": "parquet", "data_files": files}
    else:
        given["revision"] = _revision(setting)
        if stream and offline:
            message = f"`{path}` cannot be streamed, because `--offline` prevents the connection"
            raise failure("E0502", message, help="use a local folder of Parquet files")
        cache /= hashlib.sha256(given["revision"].encode()).hexdigest()[:16]

    def load(**more: Any) -> dict[str, Any]:
        with _connections(allowed=not offline):
            loaded = datasets.load_dataset(**given, **more, streaming=stream, cache_dir=str(cache))
        splits = cast("Mapping[str, Any]", loaded)
        found = {split: rows for name, rows in splits.items() if (split := split_of(name)) is not None}
        if not found:
            notes = [f"its splits: {named(list(splits))}"]
            raise failure("E0503", f"`{path}` has no split `train` or `test`", notes=notes)
        return {name: found[name] for name in SPLITS if name in found}

    try:
        found = load()
        if not stream:
            return _labeled_rows(path, setting, found, channels)
        return _streams(path, setting, found, channels, load, only_labels=files is not None)
    except CnnspecError:
        raise
    except Exception as error:  # noqa: BLE001  the library raises many types for files and connections
        reason = one_line(error, 300) or type(error).__name__
        help = "check the name and the connection, or use a local folder of Parquet files"
        raise failure("E0502", f"the dataset `{path}` is not available", notes=[reason], help=help) from None


@contextmanager
def _connections(*, allowed: bool) -> Generator[None]:
    """Let the `datasets` library connect to the Hub only if it is allowed. It reads the environment when imported."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or not allowed
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def is_url(path: str) -> bool:
    """Return whether a path is an address of the web."""
    return path.startswith(("https://", "http://"))


def _listed_files(url: str, offline: bool) -> dict[str, list[str]]:
    """Return the Parquet files in a list on the web by split. The list has one path per line, relative to itself.

    Raises:
        CnnspecError: E0502 if it cannot be read. E0503 if it names no Parquet files, or files elsewhere.
    """
    if offline:
        raise failure("E0502", f"`{url}` is not available: `--offline` prevents the connection")
    try:
        with urlopen(url, timeout=TIMEOUT) as answer:
            content = answer.read(MAX_LIST_BYTES + 1)
        lines = [line.strip() for line in content.decode().splitlines() if line.strip()]
    except (OSError, ValueError, HTTPException) as error:
        help = "check the address and the connection"
        raise failure(
            "E0502", f"the list of shards `{url}` is not available", notes=[one_line(error)], help=help
        ) from None
    if len(content) > MAX_LIST_BYTES:
        raise failure("E0503", f"the list of shards `{url}` is larger than {MAX_LIST_BYTES:,} bytes")
    for line in lines:
        if is_url(line) or line.startswith("/") or ".." in PurePosixPath(line).parts or not line.endswith(".parquet"):
            help = (
                "write the path of a Parquet file below the list on each line, such as `train-00000-of-00008.parquet`"
            )
            raise failure(
                "E0503", f"`{url}` is not a list of shards: it has the line `{one_line(line, 100)}`", help=help
            )
    files = _by_split((PurePosixPath(line), urljoin(url, line)) for line in lines)
    return files or _no_files(url)


def _revision(setting: Setting) -> str:
    revision = setting.args.get("revision")
    if not revision:
        name = setting.args["path"]
        raise failure(
            "E0502",
            f"the dataset `{name}` of the Hugging Face Hub needs a fixed revision",
            notes=["without one, a later run could train with other images"],
            help=f'write `data hf "{name}" revision="COMMIT"`, or `--data hf:{name}@COMMIT`',
        )
    return str(revision)


def _parquet_files(path: str, base: str | None) -> dict[str, list[str]] | None:
    """Return the Parquet files of a folder by split, or None if there is no such folder."""
    folder = Path(path).expanduser() if base is None else path_below(Path(base), path)
    if folder is None:
        raise outside(Path(path))
    if not folder.is_dir():
        return None
    found = sorted(folder.rglob("*.parquet"))
    for file in found:
        if base is not None and path_below(Path(base), str(file.relative_to(base))) is None:
            raise outside(file)
    return _by_split((PurePosixPath(file), str(file)) for file in found) or _no_files(path)


def _by_split(files: Iterable[tuple[PurePosixPath, str]]) -> dict[str, list[str]]:
    """Return files by the split in their name, such as `train-00000-of-00008.parquet` or `train/0.parquet`."""
    found: dict[str, list[str]] = {}
    for path, place in files:
        words = (path.stem.split("-")[0], path.parent.name)
        split = next((split for word in words if (split := split_of(word)) is not None), None)
        if split is not None:
            found.setdefault(split, []).append(place)
    return found


def _no_files(path: str) -> NoReturn:
    help = "name the files by split, such as `train-00000-of-00001.parquet`"
    raise failure("E0503", f"`{path}` has no Parquet files of `train` or `test`", help=help)


def _labeled_rows(path: str, setting: Setting, splits: Mapping[str, Any], channels: int) -> Loaded:
    image, label = str(setting.args["image"]), str(setting.args["label"])
    rows = {split: _image_rows(found, image, label, path) for split, found in splits.items()}
    values = {split: list(found.with_format(None)[label]) for split, found in splits.items()}
    labels, names = _numbered(values, [found.features[label] for found in splits.values()], path)
    records = {
        split: Records.of(Rows(_RowReader(rows[split], image, channels, f"{path} {split}")), found)
        for split, found in labels.items()
    }
    return records, names


def _streams(
    path: str,
    setting: Setting,
    splits: Mapping[str, Any],
    channels: int,
    load: Callable[..., Any],
    *,
    only_labels: bool,
) -> Loaded:
    """Return the splits of a streamed dataset, after reading the labels of all rows."""
    image, label = str(setting.args["image"]), str(setting.args["label"])
    window: Any = setting.args["buffer"]
    splits = {split: found.reshard() for split, found in splits.items()}  # row groups can be read alone
    if any(found.features is None for found in splits.values()):
        splits = {split: found._resolve_features() for split, found in splits.items()}
    rows = {split: _image_rows(found, image, label, path) for split, found in splits.items()}
    kinds = [found.features[label] for found in splits.values()]
    columns = {split: found.select_columns([label]) for split, found in splits.items()}
    if only_labels:  # of Parquet files, the column alone is transferred
        columns = {split: found.reshard() for split, found in load(columns=[label]).items()}
    found = {split: read_labels(columns[split], label, f"{path} {split}") for split in splits}
    values = {split: [value for shard in shards for value in shard] for split, shards in found.items()}
    labels, names = _numbered(values, kinds, path)
    streams: dict[str, Records] = {}
    for split, numbers in labels.items():
        counts = [len(shard) for shard in found[split]]
        streams[split] = Records.of(Shards(rows[split], counts, image, channels, window, f"{path} {split}"), numbers)
    return streams, names


def _image_rows(found: Any, image: str, label: str, path: str) -> Any:
    """Return the column of images, not decoded by the library: they are read, checked and limited as files are."""
    from datasets import Image as ImageFeature

    for argument, column in (("image", image), ("label", label)):
        if column not in found.features:
            columns = f"its columns: {named([*found.features])}"
            help = f"name the column, such as `{argument}={next(iter(found.features), 'x')}`"
            raise failure("E0503", f"`{path}` has no column `{column}`", notes=[columns], help=help)
    kind = found.features[image]
    is_bytes = getattr(kind, "dtype", None) in ("binary", "large_binary", "string")
    if not (
        isinstance(kind, ImageFeature) or is_bytes or (isinstance(kind, dict) and {"bytes", "path"} <= kind.keys())
    ):
        message = f"the column `{image}` of `{path}` does not contain images"
        raise failure("E0503", message, notes=[f"its type is {one_line(repr(kind), 100)}"])
    return found.cast_column(image, ImageFeature(decode=False)).select_columns([image])


def _numbered(
    values: dict[str, list[Any]], kinds: Sequence[Any], path: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the labels of each split, and the names of the classes, which texts are sorted into."""
    from datasets import ClassLabel

    names = next((list(kind.names) for kind in reversed(kinds) if isinstance(kind, ClassLabel)), None)
    if names is None:
        if bad := next((v for found in values.values() for v in found if not isinstance(v, str | int)), None):
            message = f"the labels of `{path}` must be integers or strings, got {type(bad).__name__}"
            raise failure("E0503", message)
        known = {value for found in values.values() for value in found}
        if not all(isinstance(value, int) for value in known):
            names = sorted({str(value) for value in known})
            position = {name: index for index, name in enumerate(names)}
            values = {split: [position[str(value)] for value in found] for split, found in values.items()}
    return {split: _labels(found, path) for split, found in values.items()}, tuple(names or ())


@dataclass(frozen=True)
class _RowReader:
    """Reads the image of a row. The rows are mapped into memory, not loaded."""

    rows: Any
    column: str
    channels: int
    name: str

    def __call__(self, position: int) -> Tensor:
        content = self.rows[position][self.column]["bytes"]
        if content is None:  # a path or address, which a dataset could point anywhere
            raise failure("E0503", f"row {position} of `{self.name}` does not contain its image, but a path to it")
        return open_image(io.BytesIO(content), self.channels, f"row {position} of {self.name}")


# --- arrays and datasets of a program ------------------------------------------------------------


def load_splits(splits: Splits, channels: int) -> Loaded:
    """Return the images of a program.

    Args:
        splits: The images.
        channels: 1 for grayscale, 3 for RGB.

    Raises:
        CnnspecError: E0503 if a split is neither a pair of arrays nor a dataset, or has unsuitable images or labels.
    """
    found: dict[str, Records] = {}
    for name in SPLITS:
        given = getattr(splits, name)
        if given is None:
            continue
        if isinstance(given, tuple | list) and len(given) == 2 and not hasattr(given[0], "save"):
            images, labels = given
            if len(images) != len(labels):
                raise failure("E0503", f"`{name}` has {len(images):,} images, but {len(labels):,} labels")
            labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        else:
            if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
                message = f"`{name}` must be a pair of arrays or a map-style dataset, got {type(given).__name__}"
                raise failure("E0503", message, help="load an iterable dataset into a list of pairs first")
            images, labels = _FirstItems(given), _dataset_labels(given, name)
        found[name] = Records.of(Rows(_ItemReader(images, channels, name)), _labels(labels, name))
    return found, tuple(splits.classes)


def _dataset_labels(dataset: Any, name: str) -> list[Any]:
    """Return the labels of a dataset, from its attribute `targets` as in torchvision, otherwise from its items."""
    targets = getattr(dataset, "targets", None)
    if targets is not None and len(targets) == len(dataset) and getattr(dataset, "target_transform", None) is None:
        return targets.tolist() if hasattr(targets, "tolist") else list(targets)
    labels: list[Any] = []
    for position in range(len(dataset)):
        item = dataset[position]
        if not (isinstance(item, tuple | list) and len(item) == 2):
            message = f"the items of `{name}` must be pairs of image and label, got {type(item).__name__}"
            raise failure("E0503", message)
        labels.append(item[1])
    return labels


@dataclass(frozen=True)
class _FirstItems:
    dataset: Any

    def __getitem__(self, position: int) -> Any:
        return self.dataset[position][0]


@dataclass(frozen=True)
class _ItemReader:
    """Reads an image of a program."""

    images: Any
    channels: int
    name: str

    def __call__(self, position: int) -> Tensor:
        return image_pixels(self.images[position], self.channels, f"{position} of `{self.name}`")


def _labels(values: Sequence[Any], name: str) -> Tensor:
    """Return labels as `[N]`.

    Raises:
        CnnspecError: E0503 if one is not an integer from 0.
    """
    for position, value in enumerate(values):
        item = value.item() if hasattr(value, "item") else value
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < MAX_LABELS:
            message = f"label {position} of `{name}` must be an integer of at least 0, got {one_line(repr(item), 60)}"
            raise failure("E0503", message, help="number the classes from 0")
    return torch.tensor([int(value) for value in values], dtype=torch.long)
