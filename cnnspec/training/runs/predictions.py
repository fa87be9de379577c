"""What a finished run told of every image: `predictions.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cnnspec.training.loop.checkpoints import write_whole

FILE = "predictions.csv"
Told = tuple[Tensor, Tensor]
"""What images are and what they were told to be, both `[N]`."""


def write_predictions(folder: Path, parts: Mapping[str, Told]) -> None:
    """Write what was told of the images of some parts, in their order.

    Raises:
        OSError: It cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "index", "label", "predicted"])
    for split, (labels, predicted) in parts.items():
        pairs = zip(labels.tolist(), predicted.tolist(), strict=True)
        writer.writerows([split, index, *pair] for index, pair in enumerate(pairs))
    write_whole(folder / FILE, text.getvalue().encode())


def read_predictions(folder: Path) -> dict[str, Told]:
    """What a run wrote; nothing, if it cannot be read."""
    found: dict[str, list[tuple[int, int]]] = {}
    try:
        with (folder / FILE).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["split"], []).append((int(row["label"]), int(row["predicted"])))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {split: (told[:, 0], told[:, 1]) for split, told in ((s, torch.tensor(r)) for s, r in found.items())}


def confusion(told: Told, classes: int) -> Tensor:
    """How often images of a class (row) were told to be of another (column), `[classes, classes]`."""
    labels, predicted = told
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)
