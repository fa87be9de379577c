"""Find finished runs by network, recipe with data, and seed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from cnnspec.diagnostics import CnnspecError, one_line
from cnnspec.files import open_regular, parse_json, read_text, unreadable
from cnnspec.ir import Graph
from cnnspec.limits import MAX_EPOCHS, MAX_FILE_BYTES, MAX_JOURNAL_BYTES
from cnnspec.recipe import ORIGINS, Folder, Recipe
from cnnspec.training.loop.about import stored_network
from cnnspec.training.runs.json_files import Accuracy, Count, Number, read_model, read_result, recipe_of

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
        return self.key_with(self.data)

    def key_with(self, data: str | None) -> str:
        """Return the key of the same run on other data."""
        return _hash(self.structure, self.recipe, self.result.get("weights"), data)

    @property
    def data(self) -> str | None:
        """The digest of the dataset, or None if the run has not recorded it."""
        digest = (self.result.get("data_identity") or {}).get("digest")
        return digest if isinstance(digest, str) else None

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


def run_key(graph: Graph, recipe: Recipe, weights: str | None = None, data: str | None = None) -> str:
    """Return a hash of a run without its seed. It does not depend on how the spec is written or where the data is.

    Args:
        graph: The network.
        recipe: The recipe.
        weights: The source of the initial weights, or None if they are random.
        data: The digest of the dataset, or None if it is unknown.
    """
    return _hash(structure(graph), recipe, weights, data)


def _hash(structure: str, recipe: Recipe, weights: str | None, data: str | None) -> str:
    same = recipe.model_dump(mode="json", exclude={"seed", *ORIGINS})
    same["data"].pop("base", None)
    if data is not None and same["data"]["name"] == Folder.name:  # a copied folder is the same dataset
        same["data"]["args"].pop("path", None)
    text = json.dumps([structure, same, weights, data], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def structure(graph: Graph) -> str:
    """Return everything about a network that its modules depend on, as text."""
    return json.dumps(graph.to_json(), sort_keys=True, default=str)


def stored_runs(folder: Path, skipped: Callable[[CnnspecError], None] = lambda error: None) -> list[StoredRun]:
    """Return the runs in a folder and its subfolders, by name and number. Runs that have not started are left out.

    Args:
        folder: The folder.
        skipped: Called with the error of a run that is left out because its files are damaged or of another version.
    """
    found: list[StoredRun] = []
    places = [Path(place) for place, *names in os.walk(folder) if any("result.json" in group for group in names)]
    for path in sorted(places, key=lambda path: [part.zfill(9) for part in path.parts]):
        try:
            found.append(read_run(path))
        except CnnspecError as error:
            skipped(error)
    return found


def read_run(folder: Path) -> StoredRun:
    """Read a run.

    Raises:
        CnnspecError: E0506 if a file is missing, damaged, or of another version.
    """
    result = read_result(folder)
    recipe, model = recipe_of(result, folder), read_model(folder)
    spec = read_text(folder / "spec.cnn", MAX_FILE_BYTES, "E0506", inside=folder)
    if spec is None:
        raise unreadable(folder / "spec.cnn", "the file does not exist", "E0506")
    try:
        found = _network(model.model_dump_json(), spec)
    except ValueError as error:
        raise unreadable(folder / "model.json", f"it is not a valid network: {one_line(error)}", "E0506") from None
    return StoredRun(folder, *found, recipe, result)


@lru_cache(maxsize=128)
def _network(model: str, spec: str) -> tuple[Graph, str]:
    """Return the network of a run and its structure, which are checked once for all runs of it."""
    graph = stored_network(model, spec, allow_huge=True)
    return graph, structure(graph)


class EpochRow(BaseModel):
    """A row of the journal at the end of an epoch."""

    model_config = ConfigDict(extra="ignore", strict=True)

    epoch: Count
    step: Count | None = None
    train_loss: Number
    train_acc: Accuracy | None = None
    val_loss: Number | None = None
    val_acc: Accuracy | None = None


_ROW = TypeAdapter(EpochRow)


def epoch_rows(folder: Path) -> tuple[dict[str, Any], ...]:
    """Return the rows of the journal at the ends of epochs. The result is empty if the journal is damaged."""
    path = folder / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    try:
        with open_regular(path, MAX_JOURNAL_BYTES, "E0506", inside=folder) as file:
            for line in file or ():
                if b'"train_loss"' in line:
                    row = parse_json(line, _ROW, path, "E0506")
                    rows.append(row.model_dump(exclude_none=True))
                if len(rows) > MAX_EPOCHS:
                    return ()
    except (OSError, CnnspecError):
        return ()
    return tuple(rows)
