"""Runs found again by what they are: the network, the whole recipe with its data, and the seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cnnspec.checker.check import check
from cnnspec.diagnostics import CnnspecError, Reporter
from cnnspec.ir import Graph, Model
from cnnspec.recipe import ORIGINS, Recipe
from cnnspec.semantics.names import Places
from cnnspec.training.loop.journal import read_journal
from cnnspec.training.runs.listing import read_result

FIGURES = ("val_acc", "test_acc", "val_loss", "test_loss", "seconds", "epochs", "best_epoch")
DIVERGED = "E0509"
"""The one fault that a run would meet again, as it is the same to the bit."""


@dataclass(frozen=True)
class Stored:
    """A run that lies in a folder.

    Attributes:
        graph: Its network.
        structure: The same as text.
        recipe: As it was really used.
        result: What its `result.json` holds.
    """

    folder: Path
    graph: Graph
    structure: str
    recipe: Recipe
    result: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """What stands for all but the seed."""
        return _key(self.structure, self.recipe, self.result.get("weights"))

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def finished(self) -> bool:
        return self.result.get("state") == "finished"

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train."""
        return self.finished or (self.result.get("fault") or {}).get("code") == DIVERGED


def key_of(graph: Graph, recipe: Recipe, weights: str | None = None) -> str:
    """What two runs have in common that differ in nothing but their seed; how it is written does not matter.

    Args:
        graph: The network.
        recipe: How it is trained.
        weights: What its weights start from; none if they are drawn.
    """
    return _key(_structure(graph), recipe, weights)


def _key(structure: str, recipe: Recipe, weights: str | None) -> str:
    same = recipe.model_dump(mode="json", exclude={"seed", *ORIGINS})
    text = json.dumps([structure, same, weights], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _structure(graph: Graph) -> str:
    return json.dumps(graph.to_json(), sort_keys=True, default=str)


def stored_runs(folder: Path) -> list[Stored]:
    """The runs in a folder and in the folders below it, by name and number; what is no whole run is left out."""
    paths = sorted(folder.rglob("result.json"), key=lambda path: [part.zfill(9) for part in path.parts])
    return [found for path in paths if (found := _read(path.parent)) is not None]


def _read(folder: Path) -> Stored | None:
    result = read_result(folder)
    try:
        recipe = Recipe.model_validate(result.get("recipe"))
        model, spec = ((folder / name).read_text(encoding="utf-8") for name in ("model.json", "spec.cnn"))
        found = _network(model, spec)
    except (OSError, ValueError, ValidationError, CnnspecError):
        return None
    return Stored(folder, *found, recipe, result) if found is not None and _plausible(result) else None


@lru_cache(maxsize=128)
def _network(model: str, spec: str) -> tuple[Graph, str] | None:
    """The network of a Model, checked once for all runs of it, and its structure."""
    graph = check(Model.model_validate_json(model), Places(), Reporter(), spec, allow_huge=True)
    return None if graph is None else (graph, _structure(graph))


def _plausible(result: dict[str, Any]) -> bool:
    """Whether figures are numbers: a result may be from elsewhere."""
    figures = [result.get(name) for name in FIGURES]
    ends, fault = result.get("epoch_seconds", []), result.get("fault") or {}
    numbers = [figure for figure in figures if figure is not None] + (ends if isinstance(ends, list) else [None])
    return all(type(number) in (int, float) for number in numbers) and isinstance(fault, dict)


def epochs_of(folder: Path) -> tuple[dict[str, Any], ...]:
    """The rows of a run's journal at the ends of its epochs; none if it is damaged."""
    try:
        rows = [row for row in read_journal(folder) if "train_loss" in row]
        known = all(type(value) in (int, float) for row in rows for value in row.values())
    except (OSError, ValueError, TypeError, AttributeError):
        return ()
    return tuple(rows) if known and all("epoch" in row for row in rows) else ()
