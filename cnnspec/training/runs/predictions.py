"""Write and read the prediction for each image, `predictions.csv`."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cnnspec.diagnostics import CnnspecError
from cnnspec.files import read_text, write_atomically
from cnnspec.limits import MAX_LIST_BYTES
from cnnspec.training.data.datasets import Images, Pixels

FILE = "predictions.csv"
Predictions = tuple[Tensor, Tensor]
"""The actual and the predicted classes of images, both `[N]`."""


def write_predictions(
    folder: Path, parts: Mapping[str, tuple[Images, Tensor, Tensor]], names: Sequence[str], root: Path | None = None
) -> None:
    """Write the predictions for the images of each split, in their order.

    Args:
        folder: The folder of the run.
        parts: The images, predicted classes `[N]` and their probabilities `[N]` by split.
        names: The names of the classes.
        root: The folder that the names of files are relative to.

    Raises:
        OSError: The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "index", "file", "label", "predicted", "label_name", "predicted_name", "probability"])
    for split, (images, predicted, probability) in parts.items():
        rows = zip(images.labels.tolist(), predicted.tolist(), probability.tolist(), strict=True)
        paths = None if isinstance(images, Pixels) else images.paths()
        for index, (label, found, value) in enumerate(rows):
            path = paths[index] if paths else ""
            file = path.relative_to(root).as_posix() if path and root and path.is_relative_to(root) else path
            writer.writerow([split, index, file, label, found, names[label], names[found], value])
    write_atomically(folder / FILE, text.getvalue().encode("utf-8", "backslashreplace"))


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
