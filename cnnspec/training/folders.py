"""The folder of a run, `runs/NAME/N/`: made in one step, found again to resume, held by one process at a time.

It holds the spec as used (`spec.cnn`, `model.json`), `result.json`, `metrics.csv`, TensorBoard's events, and
`checkpoints/` with the last and the best epoch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cnnspec.diagnostics import failure
from cnnspec.ir import Graph, Model
from cnnspec.recipe import Recipe

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

SHARED = "CNNSPEC_RUN_FOLDER"
"""Tells the processes of the other devices which folder the first one made."""


class RunFolder:
    """One run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best_weights = self.checkpoints / "best.safetensors"
        self._lock: Any = None

    @classmethod
    def create(cls, out: Path, graph: Graph) -> RunFolder:
        """A new folder with the next free number, that holds the spec.

        Raises:
            CnnspecError: E0506 if it cannot be written.
        """
        runs = out / graph.name
        try:
            runs.mkdir(parents=True, exist_ok=True)
            number = max((n for n, _ in _numbered(runs)), default=0) + 1
            while True:
                folder = cls(runs / str(number))
                try:
                    folder.path.mkdir()
                    break
                except FileExistsError:  # another run was quicker
                    number += 1
            folder.checkpoints.mkdir()
            (folder.path / "spec.cnn").write_text(graph.text, encoding="utf-8")
            (folder.path / "model.json").write_text(graph.model.model_dump_json(indent=2), encoding="utf-8")
            folder.hold()
        except OSError as error:
            raise failure(
                "E0506",
                f"cannot make a run folder: {error.strerror}",
                file=str(out),
                help="choose another with `--out`",
            ) from None
        os.environ[SHARED] = str(folder.path)
        return folder

    @classmethod
    def find(cls, out: Path, graph: Graph) -> tuple[RunFolder, Recipe]:
        """The newest unfinished run of a network, and the recipe that it follows.

        Raises:
            CnnspecError: E0506 if there is none, if it is still running, or if the network has changed since.
        """
        runs = out / graph.name
        found = [cls(path) for _, path in sorted(_numbered(runs), reverse=True)]
        unfinished = [folder for folder in found if folder.state != "finished" and folder.last.is_file()]
        if not unfinished:
            what = (
                "every run is finished"
                if found and all(f.state == "finished" for f in found)
                else "no run has a checkpoint"
            )
            raise failure("E0506", f"nothing to resume: {what}" if found else "nothing to resume: there is no run yet",
                file=str(runs), help="train anew without `--resume`, or name the folder of the runs with `--out`")  # fmt: skip
        folder = unfinished[0]
        try:
            recipe = Recipe.model_validate(folder.read_result().get("recipe"))
            model = Model.model_validate_json((folder.path / "model.json").read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise failure(
                "E0506", "the run cannot be resumed: its files are damaged", file=str(folder.path),
                notes=[str(error).splitlines()[0]], help="train anew without `--resume`",
            ) from None  # fmt: skip
        if _network(model) != _network(graph.model):
            raise failure(
                "E0506", "the run cannot be resumed: the network has changed since", file=str(folder.path),
                help="train anew without `--resume`; `spec.cnn` in the run's folder is the spec that it started with",
            )  # fmt: skip
        folder.hold()
        os.environ[SHARED] = str(folder.path)
        return folder, recipe

    def hold(self) -> None:
        """Keep other processes from resuming this run for as long as this one lives.

        Raises:
            CnnspecError: E0506 if another one holds it.
        """
        if fcntl is None:
            return
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise failure("E0506", "the run is still running in another process", file=str(self.path)) from None

    def release(self) -> None:
        """Let others have the run."""
        if self._lock is not None:
            self._lock.close()
            (self.path / ".lock").unlink(missing_ok=True)
            self._lock = None

    def remove(self) -> None:
        """Delete a run that never started, and the folders around it if they are empty."""
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in (self.path.parent, self.path.parent.parent):
            try:
                folder.rmdir()
            except OSError:
                return

    @property
    def state(self) -> str:
        return str(self.read_result().get("state", "unknown"))

    def read_result(self) -> dict[str, Any]:
        """What `result.json` says; nothing if it cannot be read."""
        try:
            result = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return result if isinstance(result, dict) else {}

    def write_result(self, values: dict[str, Any]) -> None:
        """Write `result.json`; it is whole at every moment."""
        temporary = self.path / "result.json.part"
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.path / "result.json")


def _numbered(runs: Path) -> Iterator[tuple[int, Path]]:
    if runs.is_dir():
        yield from ((int(entry.name), entry) for entry in runs.iterdir() if entry.name.isdigit() and entry.is_dir())


def _network(model: Model) -> Model:
    return model.model_copy(update={"recipe": Recipe()})
