"""The report of a comparison: one page of HTML that needs nothing beside it."""

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
from torch import Tensor

from cnnspec.analysis.diff import compare
from cnnspec.diagnostics import CnnspecError
from cnnspec.training.comparison.candidates import Candidate
from cnnspec.training.comparison.charts import SERIES, costs, curves, short
from cnnspec.training.comparison.table import Row, columns, notes
from cnnspec.training.data.augment import fit
from cnnspec.training.data.datasets import ImageData, load_data
from cnnspec.training.runs.options import recipe_lines
from cnnspec.training.runs.predictions import Told, confusion, read_predictions

WRONG = 24
"""Images shown of each network."""
CHANGES = 200
"""Changes shown of each network."""
TABLE = 20
"""Up to so many classes a confusion matrix is a table; with more it is a picture."""
SIDE = 96
"""At most so many pixels are shown of the side of an image."""


@dataclass(frozen=True)
class Matrix:
    """How often images of a class (row) were told to be of another (column): shares, as the mean over seeds."""

    shares: list[list[float]]
    picture: str | None
    worst: list[tuple[str, str, float]]


@dataclass(frozen=True)
class Wrong:
    """An image that was told wrong: what it is, what it was told to be by most, by how many seeds of how many."""

    picture: str
    label: str
    told: str
    seeds: str


def render(
    candidates: Sequence[Candidate], rows: Sequence[Row], folder: Path, target: float | None, data_dir: Path
) -> str:
    """The page.

    Args:
        candidates: The networks.
        rows: What their runs came to, in the same order.
        folder: Of the comparison.
        target: The accuracy that time was measured to.
        data_dir: Where the data sets lie, for the images; nothing is downloaded.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["short"] = short
    accuracy = "test_acc" if any(row.figure("test_acc") for row in rows) else "val_acc"
    best = max((row for row in rows if row.figure(accuracy)), key=lambda r: r.figure(accuracy).mean, default=None)  # type: ignore[union-attr]
    charts = [
        curves(rows, "val_acc", "validation accuracy", "c1") or curves(rows, "train_acc", "training accuracy", "c1"),
        curves(rows, "train_loss", "training loss", "c2"),
        costs(rows, "parameters", accuracy, "parameters", "c3"),
        costs(rows, "macs", accuracy, "MACs", "c4"),
    ]
    sets = _Sets(data_dir)
    details = [_details(candidate, row, folder, sets) for candidate, row in zip(candidates, rows, strict=True)]
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
        table=TABLE,
        limit=CHANGES,
        candidates=candidates,
    )


class _Sets:
    """The data sets of the networks, each read once."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._known: dict[str, ImageData | None] = {}

    def find(self, candidate: Candidate) -> ImageData | None:
        """The data of a network; nothing if it is not there any more."""
        graph, setting = candidate.graph, candidate.recipe.data
        place = f"{setting.model_dump_json()} {graph.input_shape[0]} {graph.output_shape}"
        if place not in self._known:
            try:
                self._known[place] = load_data(graph, setting, self._data_dir, offline=True)
            except CnnspecError:
                self._known[place] = None
        return self._known[place]


def _details(candidate: Candidate, row: Row, folder: Path, sets: _Sets) -> dict[str, Any]:
    """What the page tells of one network beside its figures."""
    told = [read_predictions(folder / run.folder) for run in row.finished if run.folder is not None]
    split = "test" if any("test" in found for found in told) else "val"
    parts = _fitting([found[split] for found in told if split in found], candidate.graph.output_shape[0])
    data = sets.find(candidate)
    names = data.names if data is not None and data.names else [str(n) for n in range(candidate.graph.output_shape[0])]
    return {
        "split": {"test": "test", "val": "validation"}[split],
        "names": names,
        "matrix": _matrix(parts, names) if parts else None,
        "wrong": _wrong(parts, data, split, candidate, names) if parts and data is not None else None,
        "recipe": recipe_lines(candidate.recipe),
        "machines": sorted({_machine(run.result) for run in row.finished}),
    }


def _fitting(parts: Sequence[Told], classes: int) -> list[Told]:
    """What was told of the images that the first run was told of, in classes that there are."""
    return [
        (labels, predicted)
        for labels, predicted in parts
        if torch.equal(labels, parts[0][0])
        and all(int(t.min()) >= 0 and int(t.max()) < classes for t in (labels, predicted))
    ]


def _machine(result: dict[str, Any]) -> str:
    tuned = result.get("machine") or {}
    words = [result.get("accelerator"), result.get("precision"), tuned.get("memory_format")]
    threads = tuned.get("threads")
    return ", ".join([*(str(word) for word in words if word), *([f"{threads} threads"] if threads else [])])


def _matrix(parts: Sequence[Told], names: Sequence[str]) -> Matrix:
    counts = torch.stack([confusion(told, len(names)).double() for told in parts])
    shares = (counts / counts.sum(2, keepdim=True).clamp(min=1)).mean(0)
    off = shares.clone().fill_diagonal_(0)
    order: list[int] = off.flatten().argsort(descending=True, stable=True)[:5].tolist()
    pairs = [(place // len(names), place % len(names)) for place in order]
    worst = [(names[i], names[j], float(off[i, j])) for i, j in pairs if off[i, j] > 0]
    if len(names) <= TABLE:
        return Matrix(shares.tolist(), None, worst)
    # The colour of the page shines through: black is as much as was told, and the style inverts it in the dark.
    pixels = torch.zeros(*shares.shape, 4, dtype=torch.uint8)
    pixels[..., 3] = (shares.sqrt() * 255).round().byte()
    return Matrix([], _png(Image.fromarray(pixels.numpy(), "RGBA")), worst)


def _wrong(
    parts: Sequence[Told], data: ImageData, split: str, candidate: Candidate, names: Sequence[str]
) -> list[Wrong] | None:
    """Those images that most seeds tell wrong, in their order; nothing if the images are not those that were told."""
    images = data.test if split == "test" else data.val
    labels = parts[0][0]
    if images is None or len(images) != len(labels) or not torch.equal(images.labels, labels):
        return None
    told = torch.stack([predicted for _, predicted in parts])  # [seeds, N]
    missed = (told != labels).sum(0)
    shown = missed.argsort(descending=True, stable=True)[:WRONG]
    shown = shown[missed[shown] > 0]
    found: list[Wrong] = []
    height, width = candidate.graph.input_shape[1:]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pictures = [image for group in images.read(shown) for image in fit(group, size)]
    for index, picture in zip(shown.tolist(), pictures, strict=True):
        others = told[:, index][told[:, index] != labels[index]]
        most = int(others.mode().values)
        seeds = f"{int(missed[index])} of {len(parts)}" if len(parts) > 1 else ""
        found.append(Wrong(_picture(picture), names[int(labels[index])], names[most], seeds))
    return found


def _picture(image: Tensor) -> str:
    """An image `[C, H, W]` of bytes as a text that a page can hold."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return _png(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array))


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _changes(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """What each network but the first changes: operators, and entries of the recipe."""
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
