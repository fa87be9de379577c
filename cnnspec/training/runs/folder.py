"""Manage the folder of a run, `runs/NAME/N/`: create it, find it again to resume, and lock it for one process.

The folder contains the spec as used (`spec.cnn`, `model.json`), `result.json`, `metrics.csv`, TensorBoard events, and
`checkpoints/` with the last two and the best epoch.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnnspec.diagnostics import CnnspecError, failure, reason_of
from cnnspec.files import write_atomically
from cnnspec.ir import Graph
from cnnspec.training.data.locks import LOCK, acquire
from cnnspec.training.loop.checkpoints import Checkpoints
from cnnspec.training.loop.launch import SHARED_FOLDER_VARIABLE, is_main_process
from cnnspec.training.loop.processes import Processes
from cnnspec.training.runs.json_files import model_to_json, read_result, with_version
from cnnspec.training.runs.lookup import StoredRun, read_run


def shared_folder(processes: Processes, find: Callable[[], RunFolder]) -> RunFolder:
    """Return the folder that the main process finds or creates, in all processes."""
    found: RunFolder | None = None

    def path() -> str:
        nonlocal found
        found = find()
        return str(found.path)

    if not is_main_process() and not processes.are_connected:
        return RunFolder(Path(os.environ[SHARED_FOLDER_VARIABLE]))
    other = processes.from_main(path)
    return found or RunFolder(Path(other))


def next_folder(out: Path, graph: Graph) -> Path:
    """Return the path of the next run of a network."""
    return out / graph.name / str(max((n for n, _ in _numbered_folders(out / graph.name)), default=0) + 1)


class RunFolder:
    """The files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._lock_file: Any = None

    @classmethod
    def create(cls, out: Path, graph: Graph) -> RunFolder:
        """Create a folder with the next free number, and write the spec into it.

        Raises:
            CnnspecError: E0506 if it cannot be written.
        """
        runs = out / graph.name
        folder: RunFolder | None = None
        try:
            runs.mkdir(parents=True, exist_ok=True)
            number = int(next_folder(out, graph).name)
            while folder is None:
                try:
                    (runs / str(number)).mkdir()
                    folder = cls(runs / str(number))
                except FileExistsError:  # another run took the number
                    number += 1
            folder.lock()
            folder.checkpoints.folder.mkdir()
            folder.write_spec(graph)
        except (OSError, CnnspecError) as error:
            if folder is not None:
                folder.remove()
            if isinstance(error, CnnspecError):
                raise
            message = f"cannot create the run folder: {reason_of(error)}"
            raise _refusal(Path(error.filename or out), message, "choose another folder with `--out`") from None
        return folder

    def write_spec(self, graph: Graph) -> None:
        """Write the spec and the resolved network."""
        write_atomically(self.path / "spec.cnn", graph.text.encode("utf-8", "surrogatepass"))
        write_atomically(self.path / "model.json", model_to_json(graph.model).encode())

    def remove_partial_files(self) -> None:
        """Delete what a killed process or a failed write has left: partial files, and a checkpoint not yet in place."""
        for path in (*self.path.glob("*.part"), *self.checkpoints.folder.glob("*.part"), self.checkpoints.new):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @classmethod
    def find(cls, out: Path, graph: Graph, path: Path | None = None) -> tuple[RunFolder, StoredRun]:
        """Find the latest unfinished run of a network, or the one at `path`. Lock it, and return it with its contents.

        Raises:
            CnnspecError: E0506 if there is none, if it is still running, or if its files are damaged.
        """
        runs = out / graph.name
        found = [cls(path)] if path else [cls(path) for _, path in sorted(_numbered_folders(runs), reverse=True)]
        folder = next((folder for folder in found if folder.state not in ("finished", "unknown")), None)
        if folder is None:
            finished = found and all(folder.state == "finished" for folder in found)
            reason = "all runs are finished" if finished else "no run has started"
            if not found:
                reason = "no run found"
            help = "train again without `--resume`, or pass the parent of the run folders with `--out`"
            if path is not None:
                reason = "the run is finished" if finished else "it is not the folder of a run that has started"
                help = "`cnnspec runs` lists the runs"
            raise _refusal(path or runs, f"nothing to resume: {reason}", help)
        _refuse_links(folder.path)
        run = read_run(folder.path)
        folder.lock()
        return folder, run

    def announce(self) -> None:
        """Name the path to the processes that Lightning starts for other devices."""
        os.environ[SHARED_FOLDER_VARIABLE] = str(self.path)

    def lock(self) -> None:
        """Keep other processes from resuming this run until this one ends.

        Raises:
            CnnspecError: E0506 if another process has locked it.
        """
        try:
            self._lock_file = acquire(self.path / LOCK)
        except BlockingIOError:
            help = "wait for it, stop it, or train again without `--resume`"
            raise _refusal(self.path, "the run is still running in another process", help) from None
        except OSError as error:
            help = "make the folder writable, or choose another one with `--out`"
            message = f"cannot write to the run folder: {reason_of(error)}"
            raise _refusal(self.path / LOCK, message, help) from None

    def release(self) -> None:
        """Release the lock of the run."""
        os.environ.pop(SHARED_FOLDER_VARIABLE, None)
        if self._lock_file is not None:
            with suppress(OSError):  # it is empty
                self._lock_file.close()
            self._lock_file = None

    def remove(self) -> None:
        """Delete a run that never started, and its parent folders if they are empty."""
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
        """Read `result.json`. The result is empty if it does not exist.

        Raises:
            CnnspecError: E0506 if it is damaged or has another format version.
        """
        return read_result(self.path)

    def write_result(self, values: dict[str, Any]) -> dict[str, Any]:
        """Write `result.json` atomically, and return its contents."""
        values = with_version(values)
        write_atomically(self.path / "result.json", (json.dumps(values, indent=2) + "\n").encode())
        return values


def write_error(error: OSError, folder: Path, notes: Sequence[str] = (), then: str = "") -> CnnspecError:
    """Convert an error of the file system while a folder is written to a diagnostic that names the file.

    Args:
        error: The error.
        folder: The folder, which is named if the error names no file.
        notes: The state of the folder.
        then: What to do when the cause is removed.
    """
    named = error.filename if isinstance(error.filename, str | bytes) else None
    path = Path(os.fsdecode(named)) if named else folder
    room = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = (error.strerror or str(error)).lower()
    cause = "free disk space" if room else "make the file and its folder writable"
    return _refusal(path, f"cannot write `{path.name}`: {reason}", f"{cause}{then}", notes)


def _refusal(path: Path, message: str, help: str, notes: Sequence[str] = ()) -> CnnspecError:
    return failure("E0506", message, notes=notes, file=str(path), help=help)


def _refuse_links(folder: Path) -> None:
    """Raise an error if a file of a run is a link or a device: resuming would write to another place.

    Raises:
        CnnspecError: E0506.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                what = "a symbolic link" if path.is_symlink() else "not a regular file"
                help = "replace it with a copy of the file, or train again without `--resume`"
                raise _refusal(path, f"cannot resume the run: `{name}` is {what}", help)


def _numbered_folders(runs: Path) -> Iterator[tuple[int, Path]]:
    if not runs.is_dir():
        return
    try:
        entries = list(runs.iterdir())
    except OSError as error:
        help = "choose another folder with `--out`"
        raise _refusal(runs, f"cannot read the folder: {reason_of(error)}", help) from None
    yield from ((int(entry.name), entry) for entry in entries if is_number(entry.name) and entry.is_dir())


def is_number(name: str) -> bool:
    """Return whether a name is the number of a run."""
    return name.isascii() and name.isdigit() and len(name) <= 9
