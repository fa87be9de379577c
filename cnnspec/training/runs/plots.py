"""Plot a run: curves, augmented images, the confusion matrix, and misclassified images.

A run never fails because something cannot be drawn, only because a file cannot be written.
"""

from __future__ import annotations

import csv
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from cnnspec.diagnostics import printable
from cnnspec.files import write_atomically
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.datasets import ImageData, Images
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.data.rng import BatchRng
from cnnspec.training.loop.journal import read_journal
from cnnspec.training.loop.metrics import confusion

COLUMNS = 8
"""Images per row."""
_SHOWN_CLASSES = 20
"""The maximum number of classes that are named in a plot."""


def _best_effort(draw: Callable[..., None]) -> Callable[..., None]:
    def attempt(*args: Any) -> None:
        try:
            with mpl.rc_context({"text.parse_math": False}):  # class names may contain `$`
                draw(*args)
        except OSError as error:
            if error.errno is not None:
                raise
            logging.getLogger(__name__).warning("cannot draw a plot: %s", error)
        except Exception as error:  # noqa: BLE001 - a plot must not end the run
            logging.getLogger(__name__).warning("cannot draw a plot: %s", error)

    return attempt


@_best_effort
def draw_curves(folder: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs to `curves.svg` and `curves.png`."""
    rows = list(read_journal(folder))
    epochs = [row for row in rows if "train_loss" in row]
    steps = [row for row in rows if "lr" in row]
    if not epochs:
        return
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    for panel, name in zip(panels, ("loss", "acc"), strict=False):
        for part in ("train", "val"):
            points = [(row["epoch"], row[f"{part}_{name}"]) for row in epochs if f"{part}_{name}" in row]
            if points:
                panel.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, label=part)
        panel.set(title={"loss": "loss", "acc": "accuracy"}[name], xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend()
        panel.grid(alpha=0.3)
    panels[2].plot([row["step"] for row in steps], [row["lr"] for row in steps])
    panels[2].set(title="learning rate", xlabel="step")
    panels[2].grid(alpha=0.3)
    for ending in ("svg", "png"):
        _write(figure, folder / f"curves.{ending}", 120)


def _write(figure: Figure, path: Path, dpi: int) -> None:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # letters of a name that no font has are boxes
        figure.savefig(content, format=path.suffix[1:], dpi=dpi)
    write_atomically(path, content.getvalue())


def _show(panel: Any, image: Tensor) -> None:
    """Show an image `[C, H, W]` of bytes."""
    panel.imshow(V.to_pil_image(image), cmap="gray", vmin=0, vmax=255)
    panel.set_axis_off()


@_best_effort
def draw_augmentation(folder: Path, data: ImageData, preprocess: Preprocess, seed: int) -> None:
    """Draw training images with three augmented versions of each to `augmentation.png`."""
    labels = data.train.labels.cpu()
    indices = _of_all_classes(labels, COLUMNS)
    count = len(indices)
    originals = torch.cat([preprocess.fixed.fit_images(group) for group in data.train.read(indices)])
    figure = Figure(figsize=(1.3 * count, 5.6), layout="constrained")
    panels: Any = figure.subplots(4, count, squeeze=False)
    for row in range(4):
        images = originals
        if row:
            rng = BatchRng.for_batch(seed, count, epoch=row)
            groups = data.train.read(indices)
            augmented = [
                preprocess(group, rng if len(group) == count else rng.select(slice(i, i + len(group))))
                for i, group in enumerate(groups)
            ]
            images = torch.cat(augmented).mul(preprocess.std).add(preprocess.mean).mul(255).round().clamp(0, 255).byte()
        for panel, image in zip(panels[row], images, strict=True):
            _show(panel, image)
    for panel, label in zip(panels[0], labels[indices].tolist(), strict=True):
        panel.set_title(_short(data.class_names[label], 14), fontsize=8)
    figure.suptitle("first row: original images; other rows: augmented versions")
    _write(figure, folder / "augmentation.png", 100)


def _of_all_classes(labels: Tensor, count: int) -> Tensor:
    """Return the indices of at least `count` images by class: the first of each class, the second of each, and so on.

    Of many classes, some are chosen at equal distances.
    """
    present = labels.unique(sorted=True)
    if len(present) > _SHOWN_CLASSES:
        present = present[torch.linspace(0, len(present) - 1, _SHOWN_CLASSES).long()]
    by_class = [(labels == label).nonzero()[:, 0].tolist() for label in present]
    rounds = [own[turn] for turn in range(max(map(len, by_class))) for own in by_class if turn < len(own)]
    return torch.tensor(sorted(rounds[: max(count, len(present))], key=lambda index: int(labels[index])))


def _short(name: str, length: int = 20) -> str:
    """Return a class name for a plot."""
    name = printable(name)
    return name if len(name) <= length else f"{name[: length - 3]}..."


@_best_effort
def draw_reliability(folder: Path, metrics: dict[str, Any]) -> None:
    """Draw the reliability diagram of the test images to `reliability.png`: accuracy by confidence."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    panel: Any = figure.subplots()
    panel.plot([0, 1], [0, 1], color="gray", linestyle="--", label="perfect calibration")
    confidence, accuracy, images = (
        [row[key] for row in metrics["reliability"]] for key in ("confidence", "accuracy", "images")
    )
    most = max(images, default=1)
    panel.plot(confidence, accuracy, alpha=0.5)
    panel.scatter(confidence, accuracy, [10 + 150 * count / most for count in images], label="area: number of images")
    error = metrics["calibration_error"]
    title = f"test images, expected calibration error {error:.4f}"
    panel.set(title=title, xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panel.legend(loc="upper left")
    panel.grid(alpha=0.3)
    _write(figure, folder / "reliability.png", 100)


@_best_effort
def draw_confusion(folder: Path, labels: Tensor, predicted: Tensor, names: Sequence[str]) -> None:
    """Write the confusion matrix to `confusion.csv` and `confusion.png`: rows are actual, columns predicted classes."""
    classes = len(names)
    counts = confusion(labels, predicted, classes)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["class", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    write_atomically(folder / "confusion.csv", text.getvalue().encode("utf-8", "backslashreplace"))
    side = min(4 + 0.3 * classes, 20)
    figure = Figure(figsize=(side, side), layout="constrained")
    panel: Any = figure.subplots()
    panel.imshow((counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmin=0, vmax=1)
    panel.set(xlabel="predicted label", ylabel="true label", title="confusion matrix of the test images")
    if classes <= _SHOWN_CLASSES:
        ticks = [_short(name) for name in names]
        panel.set_xticks(range(classes), ticks, rotation=90 if max(map(len, ticks)) > 2 else 0)
        panel.set_yticks(range(classes), ticks)
        for row in range(classes):
            for col in range(classes):
                color = "white" if counts[row, col] > counts[row].sum() / 2 else "black"
                panel.text(col, row, int(counts[row, col]), ha="center", va="center", fontsize=7, color=color)
    _write(figure, folder / "confusion.png", 100)


@_best_effort
def draw_misclassified(
    folder: Path, images: Images, predicted: Tensor, names: Sequence[str], preprocessing: Preprocessing
) -> None:
    """Draw the first misclassified images with their actual and predicted classes to `misclassified.png`."""
    misclassified = (images.labels != predicted).nonzero()[: 4 * COLUMNS, 0]
    if not len(misclassified):
        return
    shown = torch.cat([preprocessing.fit_images(group) for group in images.read(misclassified)])
    rows = -(-len(misclassified) // COLUMNS)
    figure = Figure(figsize=(1.4 * COLUMNS, 0.3 + 1.9 * rows), layout="constrained")
    panels: Any = figure.subplots(rows, COLUMNS, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, image, index in zip(panels.flat, shown, misclassified.tolist(), strict=False):
        _show(panel, image)
        actual, found = (_short(names[int(labels[index])], 16) for labels in (images.labels, predicted))
        panel.set_title(f"actual {actual}\npredicted {found}", fontsize=7)
    _write(figure, folder / "misclassified.png", 100)
