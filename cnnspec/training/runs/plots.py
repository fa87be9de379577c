"""What a run looks like: curves, augmented images, the confusion matrix, and what was told wrong.

The pictures are made beside the training; a run never fails because of one.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cnnspec.training.data.augment import Prepare, fit
from cnnspec.training.data.datasets import ImageData, Images
from cnnspec.training.data.rng import Chance
from cnnspec.training.loop.journal import read_journal
from cnnspec.training.runs.predictions import confusion

SHOWN = 8
"""Images in a row."""


def _tried(draw: Callable[..., None]) -> Callable[..., None]:
    def attempt(*args: Any) -> None:
        try:
            draw(*args)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the run is worth more than a picture
            logging.getLogger(__name__).warning("no picture: %s", error)

    return attempt


@_tried
def draw_curves(folder: Path) -> None:
    """`curves.svg` and `curves.png`: loss, accuracy and learning rate over the epochs."""
    rows = list(read_journal(folder))
    epochs = [row for row in rows if "train_loss" in row]
    steps = [row for row in rows if "lr" in row]
    if not epochs:
        return
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    for panel, name in zip(panels, ("loss", "acc"), strict=False):
        for part in ("train", "val"):
            seen = [(row["epoch"], row[f"{part}_{name}"]) for row in epochs if f"{part}_{name}" in row]
            if seen:
                panel.plot(*zip(*seen, strict=True), marker="." if len(seen) < 30 else None, label=part)
        panel.set(title={"loss": "loss", "acc": "accuracy"}[name], xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend()
        panel.grid(alpha=0.3)
    panels[2].plot([row["step"] for row in steps], [row["lr"] for row in steps])
    panels[2].set(title="learning rate", xlabel="step")
    panels[2].grid(alpha=0.3)
    for ending in ("svg", "png"):
        figure.savefig(folder / f"curves.{ending}", dpi=120)


def _show(panel: Any, image: Tensor) -> None:
    """An image `[C, H, W]` of bytes."""
    array = image.permute(1, 2, 0).numpy()
    panel.imshow(array[..., 0] if array.shape[-1] == 1 else array, cmap="gray", vmin=0, vmax=255)
    panel.set_axis_off()


@_tried
def draw_augmentation(folder: Path, data: ImageData, prepare: Prepare, seed: int) -> None:
    """`augmentation.png`: training images in the first row, and three changed forms of each below."""
    count = min(SHOWN, len(data.train))
    indices = torch.arange(count)
    originals = torch.cat([fit(group, prepare.size) for group in data.train.read(indices)])
    figure = Figure(figsize=(1.3 * count, 5.6), layout="constrained")
    panels: Any = figure.subplots(4, count, squeeze=False)
    for row in range(4):
        images = originals
        if row:
            chance = Chance.of(seed, count, epoch=row)
            groups = data.train.read(indices)
            made = [
                prepare(group, chance if len(group) == count else chance.part(slice(i, i + len(group))))
                for i, group in enumerate(groups)
            ]
            images = torch.cat(made).mul(prepare.std).add(prepare.mean).mul(255).round().clamp(0, 255).byte()
        for panel, image in zip(panels[row], images, strict=True):
            _show(panel, image)
    figure.suptitle("original, and changed three times")
    figure.savefig(folder / "augmentation.png", dpi=100)


@_tried
def draw_confusion(folder: Path, labels: Tensor, predicted: Tensor, classes: int) -> None:
    """`confusion.csv` and `confusion.png`: how often a class (row) was told to be another (column)."""
    counts = confusion((labels, predicted), classes)
    with (folder / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *range(classes)])
        writer.writerows([number, *row] for number, row in enumerate(counts.tolist()))
    side = min(4 + 0.3 * classes, 20)
    figure = Figure(figsize=(side, side), layout="constrained")
    panel: Any = figure.subplots()
    panel.imshow((counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmin=0, vmax=1)
    panel.set(xlabel="told", ylabel="is", title="confusion on the test images")
    if classes <= 20:
        panel.set(xticks=range(classes), yticks=range(classes))
        for row in range(classes):
            for col in range(classes):
                color = "white" if counts[row, col] > counts[row].sum() / 2 else "black"
                panel.text(col, row, int(counts[row, col]), ha="center", va="center", fontsize=7, color=color)
    figure.savefig(folder / "confusion.png", dpi=100)


@_tried
def draw_wrong(folder: Path, images: Images, predicted: Tensor, size: tuple[int, int]) -> None:
    """`wrong.png`: the first images that were told wrong, with what they are and what they were told to be."""
    wrong = (images.labels != predicted).nonzero()[: 4 * SHOWN, 0]
    if not len(wrong):
        return
    shown = torch.cat([fit(group, size) for group in images.read(wrong)])
    figure = Figure(figsize=(1.3 * SHOWN, 7), layout="constrained")
    panels: Any = figure.subplots(4, SHOWN)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, image, index in zip(panels.flat, shown, wrong.tolist(), strict=False):
        _show(panel, image)
        panel.set_title(f"{int(images.labels[index])} told {int(predicted[index])}", fontsize=8)
    figure.savefig(folder / "wrong.png", dpi=100)
