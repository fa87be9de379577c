"""Render the report of a comparison as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torchvision.transforms.v2 import functional as V

from cnnspec.analysis.diff import compare
from cnnspec.diagnostics import CnnspecError, printable
from cnnspec.recipe import Setting
from cnnspec.training.comparison.candidates import Candidate
from cnnspec.training.comparison.charts import SERIES, cost_chart, curve_chart, format_short
from cnnspec.training.comparison.table import Row, columns, notes
from cnnspec.training.data.datasets import DatasetCache, ImageData
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop.metrics import confusion
from cnnspec.training.runs.options import recipe_lines
from cnnspec.training.runs.predictions import Predictions, read_predictions

MAX_MISCLASSIFIED = 24
"""The maximum number of images per network."""
MAX_CHANGES = 200
"""The maximum number of changes per network."""
MAX_TABLE_CLASSES = 20
"""The maximum number of classes for a confusion matrix as a table. A larger one is an image."""
MAX_IMAGE_SIDE = 96
"""The maximum side of a displayed image, in pixels."""


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as shares of the actual class (row) by predicted class (column), averaged over seeds."""

    shares: list[list[float]]
    image: str | None
    most_confused: list[tuple[str, str, float]]


@dataclass(frozen=True)
class Metrics:
    """Means over seeds: the classes with the lowest F1, each with precision, recall and F1; top-5; calibration."""

    classes: list[tuple[str, float | None, float | None, float | None]]
    top5: float | None
    calibration_error: float | None
    count: int


@dataclass(frozen=True)
class Misclassified:
    """A misclassified image: its class, its most frequent wrong prediction, and the seeds that misclassify it."""

    image: str
    label: str
    predicted: str
    seeds: str


def render(
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    folder: Path,
    target: float | None,
    data_dir: Path,
    data: Setting | None = None,
    *,
    stored: bool = False,
) -> str:
    """Render the page.

    Args:
        candidates: The networks.
        rows: The results of the networks, in the same order.
        folder: The folder of the comparison.
        target: The accuracy up to which time was measured.
        data_dir: The directory of datasets, for the images. Nothing is downloaded.
        data: The dataset that the user named.
        stored: Whether the recipes come from run folders. A folder of images that they name is only read if it is
            below the current folder, or if `data` is this folder.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        finalize=_visible, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["short"] = format_short
    accuracy = "test_acc" if any(row.statistic("test_acc") for row in rows) else "val_acc"
    best = max((row for row in rows if row.statistic(accuracy)), key=lambda r: r.statistic(accuracy).mean, default=None)  # type: ignore[union-attr]
    charts = [
        curve_chart(rows, "val_acc", "validation accuracy", "c1")
        or curve_chart(rows, "train_acc", "training accuracy", "c1"),
        curve_chart(rows, "train_loss", "training loss", "c2"),
        cost_chart(rows, "parameters", accuracy, "parameters", "c3"),
        cost_chart(rows, "macs", accuracy, "MACs", "c4"),
    ]
    datasets = DatasetCache(data_dir, offline=True)
    details = [
        _details(candidate, row, folder, datasets, _readable_data(candidate.recipe.data, data) if stored else None)
        for candidate, row in zip(candidates, rows, strict=True)
    ]
    return environment.get_template("report.html.j2").render(
        rows=rows,
        columns=columns(target),
        notes=notes(rows),
        best=best,
        accuracy=accuracy,
        charts=[chart for chart in charts if chart is not None],
        details=details,
        changes=_changes(candidates),
        series=SERIES,
        table=MAX_TABLE_CLASSES,
        limit=MAX_CHANGES,
        candidates=candidates,
    )


def _visible(value: Any) -> Any:
    """Escape control characters of a value in the page. Charts are Markup and stay as they are."""
    return printable(value, keep="\n\t") if type(value) is str else value


def _readable_data(stored: Setting, given: Setting | None) -> Setting:
    """Return the dataset of a run folder, which may come from somebody else, restricted to the current folder."""
    path = stored.args.get("path")
    if path is None or (given is not None and given.args.get("path") == path):
        return stored
    return stored.model_copy(
        update={"base": ".", "args": {**stored.args, "path": str(Path(stored.base or "", str(path)))}}
    )


def _details(
    candidate: Candidate, row: Row, folder: Path, datasets: DatasetCache, setting: Setting | None
) -> dict[str, Any]:
    """Return the details of one network for the page."""
    files = [read_predictions(folder / run.folder) for run in row.finished if run.folder is not None]
    split = "test" if any("test" in splits for splits in files) else "val"
    classes = candidate.graph.output_shape[0]
    predictions = _comparable([splits[split] for splits in files if split in splits], classes)
    try:
        data = datasets.load(candidate.graph, setting or candidate.recipe.data)
    except CnnspecError:  # the dataset was moved or deleted
        data = None
    stored = next((own for run in row.finished if len(own := run.result.get("classes") or ()) == classes), None)
    names = data.names if data is not None and data.names else stored or [str(n) for n in range(classes)]
    return {
        "metrics": _metrics([run.result for run in row.finished], split, names),
        "split": {"test": "test", "val": "validation"}[split],
        "names": names,
        "matrix": _matrix(predictions, names) if predictions else None,
        "misclassified": _misclassified(predictions, data, split, candidate, names)
        if predictions and data is not None
        else None,
        "recipe": recipe_lines(candidate.recipe),
        "machines": sorted({_machine(run.result) for run in row.finished}),
    }


def _comparable(predictions: Sequence[Predictions], classes: int) -> list[Predictions]:
    """Return the predictions with the same images as the first run and valid classes."""
    return [
        (labels, predicted)
        for labels, predicted in predictions
        if torch.equal(labels, predictions[0][0])
        and all(int(t.min()) >= 0 and int(t.max()) < classes for t in (labels, predicted))
    ]


def _metrics(results: Sequence[dict[str, Any]], split: str, names: Sequence[str]) -> Metrics | None:
    """Return the metrics of a split, averaged over the seeds that have them."""
    stored = [metrics for result in results if (metrics := (result.get("metrics") or {}).get(split))]
    stored = [metrics for metrics in stored if len(metrics.get("classes", ())) == len(names)]
    if not stored:
        return None
    of_classes: list[tuple[str, float | None, float | None, float | None]] = []
    for number, name in enumerate(names):
        rows = [metrics["classes"][number] for metrics in stored]
        precision, recall, f1 = (_mean([row.get(key) for row in rows]) for key in ("precision", "recall", "f1"))
        of_classes.append((name, precision, recall, f1))
    of_classes.sort(key=lambda row: -1.0 if row[3] is None else row[3])
    top5, error = (_mean([metrics.get(key) for metrics in stored]) for key in ("top5_acc", "calibration_error"))
    return Metrics(of_classes[:MAX_TABLE_CLASSES], top5, error, len(names))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _machine(result: dict[str, Any]) -> str:
    tuned = result.get("machine") or {}
    words = [result.get("accelerator"), result.get("precision"), tuned.get("memory_format")]
    threads = tuned.get("threads")
    return ", ".join([*(str(word) for word in words if word), *([f"{threads} threads"] if threads else [])])


def _matrix(predictions: Sequence[Predictions], names: Sequence[str]) -> Matrix:
    counts = torch.stack([confusion(*pair, len(names)).double() for pair in predictions])
    shares = (counts / counts.sum(2, keepdim=True).clamp(min=1)).mean(0)
    off = shares.clone().fill_diagonal_(0)
    order: list[int] = off.flatten().argsort(descending=True, stable=True)[:5].tolist()
    pairs = [(place // len(names), place % len(names)) for place in order]
    most_confused = [(names[i], names[j], float(off[i, j])) for i, j in pairs if off[i, j] > 0]
    if len(names) <= MAX_TABLE_CLASSES:
        return Matrix(shares.tolist(), None, most_confused)
    # The page shows through: opacity is the share, drawn in black, and the style sheet inverts it in dark mode.
    pixels = torch.zeros(*shares.shape, 4, dtype=torch.uint8)
    pixels[..., 3] = (shares.sqrt() * 255).round().byte()
    return Matrix([], _png(Image.fromarray(pixels.numpy(), "RGBA")), most_confused)


def _misclassified(
    predictions: Sequence[Predictions], data: ImageData, split: str, candidate: Candidate, names: Sequence[str]
) -> list[Misclassified] | None:
    """Return the images that most seeds misclassify, or None if the dataset differs from the one predicted on."""
    images = data.test if split == "test" else data.val
    labels = predictions[0][0]
    if images is None or len(images) != len(labels) or not torch.equal(images.labels, labels):
        return None
    predicted = torch.stack([predicted for _, predicted in predictions])  # [seeds, N]
    errors = (predicted != labels).sum(0)
    shown = errors.argsort(descending=True, stable=True)[:MAX_MISCLASSIFIED]
    shown = shown[errors[shown] > 0]
    found: list[Misclassified] = []
    height, width = candidate.graph.input_shape[1:]
    scale = min(1.0, MAX_IMAGE_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    cover = Preprocessing(size, (0.0,), (1.0,)).fit_images
    thumbnails = [image for group in images.read(shown) for image in cover(group)]
    for index, image in zip(shown.tolist(), thumbnails, strict=True):
        others = predicted[:, index][predicted[:, index] != labels[index]]
        most = int(others.mode().values)
        seeds = f"{int(errors[index])} of {len(predictions)}" if len(predictions) > 1 else ""
        found.append(Misclassified(_png(V.to_pil_image(image)), names[int(labels[index])], names[most], seeds))
    return found


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _changes(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return the changes of each network relative to the first: operators, and entries of the recipe."""
    first = candidates[0]
    before = dict(recipe_lines(first.recipe))
    found: list[dict[str, Any]] = []
    for other in candidates[1:]:
        after = dict(recipe_lines(other.recipe))
        entries = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
        changes = compare(first.graph, other.graph).changes
        recipe = [(name, before.get(name, ""), after.get(name, "")) for name in entries if name != "seed"]
        found.append({"label": other.label, "changes": changes, "recipe": recipe})
    return found
