"""Find finished runs by network, recipe with data, and seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cnnspec.checker.check import check
from cnnspec.diagnostics import CnnspecError, Reporter
from cnnspec.ir import Graph
from cnnspec.recipe import ORIGINS, Recipe
from cnnspec.semantics.context import Places
from cnnspec.training.loop.journal import read_journal
from cnnspec.training.runs.json_files import model_from_json, read_result

METRICS = ("val_acc", "test_acc", "val_loss", "test_loss", "seconds", "epochs", "best_epoch")
DIVERGED = "E0509"
"""The only error that a run would meet again, because training is deterministic."""


@dataclass(frozen=True)
class StoredRun:
    """A run read from its folder.

    Attributes:
        graph: The network.
        structure: The graph as canonical text.
        recipe: The recipe as used.
        result: The contents of `result.json`.
    """

    folder: Path
    graph: Graph
    structure: str
    recipe: Recipe
    result: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """A hash of everything but the seed."""
        return _hash(self.structure, self.recipe, self.result.get("weights"))

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def finished(self) -> bool:
        return self.result.get("state") == "finished"

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train."""
        return self.finished or (self.result.get("error") or {}).get("code") == DIVERGED


def run_key(graph: Graph, recipe: Recipe, weights: str | None = None) -> str:
    """Return a hash of a run without its seed. It does not depend on how the spec is written.

    Args:
        graph: The network.
        recipe: The recipe.
        weights: The source of the initial weights, or None if they are random.
    """
    return _hash(structure(graph), recipe, weights)


def _hash(structure: str, recipe: Recipe, weights: str | None) -> str:
    same = recipe.model_dump(mode="json", exclude={"seed", *ORIGINS})
    text = json.dumps([structure, same, weights], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def structure(graph: Graph) -> str:
    """Return everything about a network that its modules depend on, as text."""
    return json.dumps(graph.to_json(), sort_keys=True, default=str)


def stored_runs(folder: Path) -> list[StoredRun]:
    """Return the runs in a folder and its subfolders, by name and number. Incomplete runs are left out.

    Raises:
        CnnspecError: E0506 if a `result.json` has another format version.
    """
    paths = sorted(folder.rglob("result.json"), key=lambda path: [part.zfill(9) for part in path.parts])
    return [found for path in paths if (found := _read(path.parent)) is not None]


def _read(folder: Path) -> StoredRun | None:
    read_result(folder)  # raises an error for another version
    try:
        return read_run(folder)
    except (OSError, ValueError, CnnspecError):
        return None


def read_run(folder: Path) -> StoredRun:
    """Read a run from its folder.

    Raises:
        CnnspecError: E0506 if a file has another format version.
        OSError: A file cannot be read.
        ValueError: A file is damaged.
    """
    result = read_result(folder)
    recipe = Recipe.model_validate(result.get("recipe"))
    model, spec = ((folder / name).read_text(encoding="utf-8") for name in ("model.json", "spec.cnn"))
    try:
        found = _network(model, spec)
    except CnnspecError as error:
        raise CnnspecError([replace(one, file=str(folder / "model.json")) for one in error.diagnostics]) from None
    if found is None or not _has_valid_numbers(result):
        raise ValueError(f"`{'model.json' if found is None else 'result.json'}` contains invalid values")
    return StoredRun(folder, *found, recipe, result)


@lru_cache(maxsize=128)
def _network(model: str, spec: str) -> tuple[Graph, str] | None:
    """Check the model of a run, once for all runs of it, and return the graph and its structure."""
    graph = check(model_from_json(model), Places(), Reporter(), spec, allow_huge=True)
    return None if graph is None else (graph, structure(graph))


def _has_valid_numbers(result: dict[str, Any]) -> bool:
    """Return whether all metrics are numbers, because a result may come from elsewhere."""
    figures = [result.get(name) for name in METRICS]
    ends, error = result.get("epoch_seconds", []), result.get("error") or {}
    numbers = [figure for figure in figures if figure is not None] + (ends if isinstance(ends, list) else [None])
    return all(type(number) in (int, float) for number in numbers) and isinstance(error, dict)


def epoch_rows(folder: Path) -> tuple[dict[str, Any], ...]:
    """Return the rows of the journal at the ends of epochs. The result is empty if the journal is damaged."""
    try:
        rows = [row for row in read_journal(folder) if "train_loss" in row]
        valid = all(type(value) in (int, float) for row in rows for value in row.values())
    except (OSError, ValueError, TypeError, AttributeError):
        return ()
    return tuple(rows) if valid and all("epoch" in row for row in rows) else ()
