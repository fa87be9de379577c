"""Plot a run: curves, augmented images, the confusion matrix, and misclassified images.

A run never fails because something cannot be drawn, only because a file cannot be written.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.datasets import ImageData, Images
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.data.rng import BatchRng
from cnnspec.training.loop.checkpoints import write_atomically
from cnnspec.training.loop.journal import read_journal
from cnnspec.training.runs.predictions import confusion

COLUMNS = 8
"""Images per row."""


def _best_effort(draw: Callable[..., None]) -> Callable[..., None]:
    def attempt(*args: Any) -> None:
        try:
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
    figure.savefig(content, format=path.suffix[1:], dpi=dpi)
    write_atomically(path, content.getvalue())


def _show(panel: Any, image: Tensor) -> None:
    """Show an image `[C, H, W]` of bytes."""
    panel.imshow(V.to_pil_image(image), cmap="gray", vmin=0, vmax=255)
    panel.set_axis_off()


@_best_effort
def draw_augmentation(folder: Path, data: ImageData, preprocess: Preprocess, seed: int) -> None:
    """Draw training images with three augmented versions of each to `augmentation.png`."""
    count = min(COLUMNS, len(data.train))
    by_class = data.train.labels.cpu().argsort(stable=True)
    indices = by_class[torch.linspace(0, len(by_class) - 1, count).long()]
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
    figure.suptitle("first row: original images; other rows: augmented versions")
    _write(figure, folder / "augmentation.png", 100)


@_best_effort
def draw_confusion(folder: Path, labels: Tensor, predicted: Tensor, classes: int) -> None:
    """Write the confusion matrix to `confusion.csv` and `confusion.png`: rows are actual, columns predicted classes."""
    counts = confusion((labels, predicted), classes)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["class", *range(classes)])
    writer.writerows([number, *row] for number, row in enumerate(counts.tolist()))
    write_atomically(folder / "confusion.csv", text.getvalue().encode())
    side = min(4 + 0.3 * classes, 20)
    figure = Figure(figsize=(side, side), layout="constrained")
    panel: Any = figure.subplots()
    panel.imshow((counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmin=0, vmax=1)
    panel.set(xlabel="predicted label", ylabel="true label", title="confusion matrix of the test images")
    if classes <= 20:
        panel.set(xticks=range(classes), yticks=range(classes))
        for row in range(classes):
            for col in range(classes):
                color = "white" if counts[row, col] > counts[row].sum() / 2 else "black"
                panel.text(col, row, int(counts[row, col]), ha="center", va="center", fontsize=7, color=color)
    _write(figure, folder / "confusion.png", 100)


@_best_effort
def draw_misclassified(folder: Path, images: Images, predicted: Tensor, preprocessing: Preprocessing) -> None:
    """Draw the first misclassified images with their actual and predicted classes to `misclassified.png`."""
    misclassified = (images.labels != predicted).nonzero()[: 4 * COLUMNS, 0]
    if not len(misclassified):
        return
    shown = torch.cat([preprocessing.fit_images(group) for group in images.read(misclassified)])
    figure = Figure(figsize=(1.3 * COLUMNS, 7), layout="constrained")
    panels: Any = figure.subplots(4, COLUMNS)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, image, index in zip(panels.flat, shown, misclassified.tolist(), strict=False):
        _show(panel, image)
        panel.set_title(f"actual {int(images.labels[index])}, predicted {int(predicted[index])}", fontsize=7)
    _write(figure, folder / "misclassified.png", 100)
