"""Write and read the prediction for each image, `predictions.csv`."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cnnspec.diagnostics import CnnspecError
from cnnspec.files import read_text
from cnnspec.limits import MAX_LIST_BYTES
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
    found: dict[str, tuple[array[int], array[int]]] = {}
    try:
        text = read_text(folder / FILE, MAX_LIST_BYTES, "E0506", inside=folder)
        for row in csv.DictReader(io.StringIO(text or ""), strict=True):
            columns = found.setdefault(row["split"], (array("q"), array("q")))
            for column, name in zip(columns, ("label", "predicted"), strict=True):
                column.append(int(row[name]))
    except (CnnspecError, ValueError, KeyError, TypeError, OverflowError, csv.Error):
        return {}
    return {
        split: (torch.tensor(labels), torch.tensor(predicted))
        for split, (labels, predicted) in found.items()
        if split in ("val", "test")
    }


def confusion(pairs: Predictions, classes: int) -> Tensor:
    """Return the confusion matrix `[classes, classes]`: rows are actual, columns predicted classes."""
    labels, predicted = pairs
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)
