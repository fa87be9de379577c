"""The folder of a run, `runs/NAME/N/`: made in one step, found again to resume, held by one process at a time.

It holds the spec as used (`spec.cnn`, `model.json`), `result.json`, `metrics.csv`, TensorBoard's events, and
`checkpoints/` with the last two and the best epoch.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cnnspec.diagnostics import failure
from cnnspec.ir import Graph, Model
from cnnspec.recipe import Recipe
from cnnspec.training.loop.checkpoints import Checkpoints, write_whole
from cnnspec.training.runs.listing import hold, read_result

SHARED = "CNNSPEC_RUN_FOLDER"
"""Tells the processes of the other devices which folder the first one made."""


WAIT = 120.0
"""Seconds for which the other processes wait for the first to make the folder."""


def is_first() -> bool:
    """Whether this process is the one that writes, of all that train together."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ:
            return int(os.environ[name]) == 0
    return True


def _meeting(out: Path) -> Path | None:
    """Where processes that were started by `torchrun` or SLURM leave word of the folder."""
    keys = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_PORT")
    words = [os.environ[key] for key in keys if key in os.environ]
    known = "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1
    return out / f".run-{'-'.join(words)}" if known else None


def shared_folder(out: Path) -> RunFolder:
    """The folder that the first process made.

    Raises:
        CnnspecError: E0506 if it has made none.
    """
    if SHARED in os.environ:
        return RunFolder(Path(os.environ[SHARED]))
    meeting, end = _meeting(out), time.monotonic() + WAIT
    while meeting is not None and time.monotonic() < end:
        try:
            folder = RunFolder(Path(meeting.read_text(encoding="utf-8")))
            if folder.read_result():
                return folder
        except OSError:
            pass
        time.sleep(0.1)
    raise failure("E0506", "the first process has made no run folder", file=str(out), help="look at what it says")


def next_folder(out: Path, graph: Graph) -> Path:
    """Where the next run of a network would be."""
    return out / graph.name / str(max((n for n, _ in _numbered(out / graph.name)), default=0) + 1)


class RunFolder:
    """One run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._lock: Any = None
        self._word: Path | None = None

    @classmethod
    def create(cls, out: Path, graph: Graph) -> RunFolder:
        """A new folder with the next free number, that holds the spec.

        Raises:
            CnnspecError: E0506 if it cannot be written.
        """
        runs = out / graph.name
        try:
            runs.mkdir(parents=True, exist_ok=True)
            number = int(next_folder(out, graph).name)
            while True:
                folder = cls(runs / str(number))
                try:
                    folder.path.mkdir()
                    break
                except FileExistsError:  # another run was quicker
                    number += 1
            folder.hold()
            folder.checkpoints.folder.mkdir()
            (folder.path / "spec.cnn").write_text(graph.text, encoding="utf-8")
            (folder.path / "model.json").write_text(graph.model.model_dump_json(indent=2), encoding="utf-8")
        except OSError as error:
            raise failure(
                "E0506",
                f"cannot make a run folder: {error.strerror}",
                file=str(out),
                help="choose another with `--out`",
            ) from None
        folder.share(out)
        return folder

    @classmethod
    def find(cls, out: Path, graph: Graph, path: Path | None = None) -> tuple[RunFolder, Recipe]:
        """The newest unfinished run of a network, or the one at `path`, and the recipe that it follows.

        Raises:
            CnnspecError: E0506 if there is none, if it is still running, or if the network has changed since.
        """
        runs = out / graph.name
        found = [cls(path)] if path else [cls(path) for _, path in sorted(_numbered(runs), reverse=True)]
        unfinished = [folder for folder in found if folder.state not in ("finished", "unknown")]
        if not unfinished:
            what = (
                "every run is finished" if found and all(f.state == "finished" for f in found) else "no run has begun"
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
        folder.share(out)
        return folder, recipe

    def share(self, out: Path) -> None:
        """Tell the processes of the other devices."""
        os.environ[SHARED] = str(self.path)
        self._word = _meeting(out)
        if self._word is not None:
            write_whole(self._word, str(self.path).encode())

    def hold(self) -> None:
        """Keep other processes from resuming this run for as long as this one lives.

        Raises:
            CnnspecError: E0506 if another one holds it.
        """
        try:
            self._lock = hold(self.path)
        except BlockingIOError:
            raise failure(
                "E0506", "the run is still running in another process", file=str(self.path),
                help="wait for it, stop it, or train anew without `--resume`",
            ) from None  # fmt: skip
        except OSError as error:
            raise failure(
                "E0506", f"cannot write to the run folder: {error.strerror}", file=str(self.path),
                help="make the folder writable, or train anew with another `--out`",
            ) from None  # fmt: skip

    def release(self) -> None:
        """Let others have the run."""
        os.environ.pop(SHARED, None)
        if self._word is not None:
            self._word.unlink(missing_ok=True)
            self._word = None
        if self._lock is not None:
            self._lock.close()
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
        return read_result(self.path)

    def write_result(self, values: dict[str, Any]) -> None:
        """Write `result.json`; it is whole at every moment."""
        write_whole(self.path / "result.json", (json.dumps(values, indent=2) + "\n").encode())


def _numbered(runs: Path) -> Iterator[tuple[int, Path]]:
    if runs.is_dir():
        yield from ((int(entry.name), entry) for entry in runs.iterdir() if entry.name.isdigit() and entry.is_dir())


def _network(model: Model) -> Model:
    return model.model_copy(update={"recipe": Recipe()})
