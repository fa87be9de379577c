"""Write and read the prediction for each image, `predictions.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cnnspec.training.loop.checkpoints import write_atomically

FILE = "predictions.csv"
Predictions = tuple[Tensor, Tensor]
"""The actual and the predicted classes of images, both `[N]`."""


def write_predictions(folder: Path, parts: Mapping[str, Predictions]) -> None:
    """Write the predictions for the images of each split, in their order.

    Raises:
        OSError: The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "index", "label", "predicted"])
    for split, (labels, predicted) in parts.items():
        pairs = zip(labels.tolist(), predicted.tolist(), strict=True)
        writer.writerows([split, index, *pair] for index, pair in enumerate(pairs))
    write_atomically(folder / FILE, text.getvalue().encode())


def read_predictions(folder: Path) -> dict[str, Predictions]:
    """Read the predictions of a run by split. The result is empty if they cannot be read."""
    found: dict[str, list[tuple[int, int]]] = {}
    try:
        with (folder / FILE).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["split"], []).append((int(row["label"]), int(row["predicted"])))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {split: (pairs[:, 0], pairs[:, 1]) for split, pairs in ((s, torch.tensor(r)) for s, r in found.items())}


def confusion(pairs: Predictions, classes: int) -> Tensor:
    """Return the confusion matrix `[classes, classes]`: rows are actual, columns predicted classes."""
    labels, predicted = pairs
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)
