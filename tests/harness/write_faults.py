"""Let each write of a small run fail or kill the process, in turn, then resume the run and compare the result.

    python tests/harness/write_faults.py                     # every call, every fault
    python tests/harness/write_faults.py --faults KILL --every 5

A run is trained by the command line in a forked process. Every call that changes a file below its folder is counted:
open for writing, write, truncate, flush to disk, close, rename, link, delete, and creation of a folder. In a trial, one
call raises an error (`ENOSPC`, `EIO`, `EACCES`), this call and all later ones do (`FULL`, a disk that stays full), or
the process is killed (`KILL`). A write that fails or kills has written half of its bytes.

A trial fails if the error names no file that could not be written, ends with another exit code than 1, or shows a
traceback; if a checkpoint is damaged; or if the resumed run ends otherwise than the undisturbed one in a single bit.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.images import write_images
from harness.kill_runs import contents, fork, newest, wait
from harness.runs import TINY

SPEC = (
    TINY.replace("classes 10", "classes 2")
    + """train {
    data      folder "images"
    optimizer sgd lr=0.1 momentum=0.9
    batch     4
    epochs    1
    ema       0.9
}
"""
)
FAULTS = ("ENOSPC", "EIO", "EACCES", "FULL", "KILL")
OPTIONS = ("--train", "--save-every", "0", "--memory-format", "channels_last", "--threads", "1")
REPLACED = ("link", "unlink")
"""Calls whose failure has no effect: a copy replaces a link, and a temporary file may stay."""


@dataclass(frozen=True)
class Call:
    """A call that changes a file."""

    kind: str
    path: str

    @property
    def name(self) -> str:
        """The name that the error must contain."""
        return Path(self.path).name.removesuffix(".part")


class Injector:
    """Count the calls that change files below a folder, and let one of them fail.

    Args:
        root: The folder.
        number: The number of the call, from 1. With 0, all calls succeed.
        fault: One of `FAULTS`.
        record: Receives each call as a line.
    """

    def __init__(self, root: Path, number: int, fault: str, record: int) -> None:
        self._root, self._number, self._fault, self._record = str(root.resolve()), number, fault, record
        self._count = 0

    def install(self) -> None:
        """Replace the functions of this process."""
        self._open = io.open
        io.open = builtins.open = self._counted_open  # type: ignore[assignment]
        for name in ("replace", "rename", "link", "mkdir", "unlink", "truncate"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        sync = os.fsync

        def fsync(handle: Any) -> None:
            number = handle if isinstance(handle, int) else handle.fileno()
            self.call("fsync", os.readlink(f"/proc/self/fd/{number}"))
            sync(handle)

        os.fsync = fsync

    def call(self, kind: str, path: str, before: Callable[[], Any] = lambda: None, named: Any = None) -> None:
        """Count a call. If it is the one to fail, run `before` and let it fail, with the name that the caller used."""
        if not path.startswith(self._root):
            return
        self._count += 1
        os.write(self._record, f"{json.dumps([kind, path])}\n".encode())
        fails = self._count >= self._number if self._fault == "FULL" else self._count == self._number
        if not self._number or not fails:
            return
        before()
        if self._fault == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, "ENOSPC" if self._fault == "FULL" else self._fault)
        raise OSError(number, os.strerror(number), *([named or path] if kind in ("open", "mkdir") else []))

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            path = os.path.abspath(os.fsdecode(args[1] if name in ("replace", "rename", "link") else args[0]))
            if (name == "mkdir") != os.path.exists(path) or name not in ("mkdir", "unlink"):  # else it changes nothing
                self.call(name, path)
            return original(*args, **options)

        return counted

    def _counted_open(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        path = os.path.abspath(os.fsdecode(file)) if isinstance(file, str | bytes | os.PathLike) else ""
        if not path.startswith(self._root) or not {*mode} & {*"wax+"}:
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self.call("open", path, named=os.fspath(file))
        raw = _CountedFile(self, path, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        binary = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline, buffering == 1)


class _CountedFile(io.FileIO):
    """A file without a buffer that counts what changes it."""

    def __init__(self, injector: Injector, path: str, mode: str) -> None:
        self._injector, self._path = injector, path
        super().__init__(path, mode)

    def write(self, content: Any) -> int:
        half = memoryview(content)[: len(content) // 2]
        self._injector.call("write", self._path, lambda: super(_CountedFile, self).write(half))
        return super().write(content)

    def truncate(self, size: int | None = None) -> int:
        self._injector.call("truncate", self._path)
        return super().truncate(size)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._injector.call("close", self._path)
        finally:
            super().close()


class _BlankFigure:
    """A figure of matplotlib that draws nothing, because drawing would take most of the time."""

    def __init__(self, **options: Any) -> None:
        pass

    def subplots(self, rows: int = 1, columns: int = 1, squeeze: bool = True) -> Any:
        panels = np.empty((rows, columns), object)
        for place in np.ndindex(panels.shape):
            panels[place] = MagicMock()
        return (panels[0, 0] if columns == 1 else panels.squeeze()) if squeeze else panels

    def suptitle(self, text: str) -> None:
        pass

    def savefig(self, file: Any, **options: Any) -> None:
        file.write(bytes(20_000))


# --- runs -----------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Write the images, and train once in this process, so that forked ones start with everything imported."""
    import torch

    import cnnspec.training.comparison.compare  # noqa: F401
    from cnnspec.cli.app import app

    torch.set_num_threads(1)
    os.environ["CNNSPEC_CACHE"] = str(folder / "cache")
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        write_images(folder / "images" / split, count=count, size=(28, 28))
    spec = new_folder(folder / "first") / "tiny.cnn"
    with contextlib.redirect_stdout(io.StringIO()):
        app(["build", str(spec), *OPTIONS, "--out", str(folder / "first")], standalone_mode=False)


def run_command(
    folder: Path, arguments: Sequence[str], number: int = 0, fault: str = ""
) -> tuple[int, str, list[Call]]:
    """Run a command in a forked process. Return its exit code, its output, and its calls.

    Args:
        folder: The folder of the trial, in which the command runs and calls are counted.
        arguments: The arguments of `cnnspec`.
        number: The call that fails.
        fault: The fault.
    """
    log, record = folder.with_suffix(".log"), folder.with_suffix(".calls")

    def job() -> int:
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        calls = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w"), write_through=True) for n in (1, 2))
        from cnnspec import files
        from cnnspec.cli import main
        from cnnspec.training.loop import evaluate
        from cnnspec.training.runs import plots, train

        plots.Figure = _BlankFigure  # type: ignore[misc]
        files.CHUNK = 8192  # several calls per checkpoint
        train.default_workers = evaluate.default_workers = lambda processes: 0
        sys.argv = ["cnnspec", *arguments]
        Injector(folder, number, fault, calls).install()
        main()

    code = wait(fork(job))
    return code, log.read_text(errors="replace"), [Call(*json.loads(line)) for line in record.read_text().splitlines()]


def train(folder: Path, *options: str, number: int = 0, fault: str = "") -> tuple[int, str, list[Call]]:
    """Train the network in a folder, or resume its run."""
    command = [
        "build",
        "tiny.cnn",
        "--train",
        "--save-every",
        "0",
        "--memory-format",
        "channels_last",
        "--threads",
        "1",
    ]
    return run_command(folder, [*command, *options], number, fault)


def new_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copytree(folder.parent / "images", folder / "images")
    (folder / "tiny.cnn").write_text(SPEC)
    return folder


def everything(folder: Path) -> dict[str, Any]:
    """Return everything of a finished run that must not depend on faults."""
    run = newest(folder / "runs")
    names = (
        "predictions.csv",
        "confusion.csv",
        "checkpoints/best.safetensors",
        "model.json",
        "spec.cnn",
        "data.jsonl.gz",
    )
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "tfevents" not in path.name}
    return contents(folder / "runs") | {name: (run / name).read_bytes() for name in names} | {"files": files}


# --- trials ---------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """The outcome of all trials: their number by fault and end, and the violations."""

    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def sample(calls: Sequence[Call], count: int) -> list[int]:
    """Return the numbers of calls that are as different as possible: of every kind and every file in turn."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, call in enumerate(calls, 1):
        groups.setdefault((call.kind, Path(call.path).suffix or call.name), []).append(number)
    return sorted(numbers[len(numbers) // 2] for numbers in list(groups.values())[:: max(1, len(groups) // count)])


def trials(calls: Sequence[Call], faults: Sequence[str], every: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the number of a call and a fault for each trial."""
    for fault in faults:
        yield from ((number, fault) for number in range(1, len(calls) + 1, every))


def disturb(
    folder: Path, chosen: Callable[[list[Call]], Iterator[tuple[int, str]]], tell: Callable[[str], None] = print
) -> Outcome:
    """Disturb a run at each of the chosen calls, resume it, and compare it with the undisturbed one.

    Args:
        folder: The folder for the trials.
        chosen: Returns the trials, given the calls of the undisturbed run.
        tell: Called with a message about each violation and each hundred trials.
    """
    prepare(folder)
    outcome = Outcome()
    code, text, calls = train(new_folder(folder / "whole"))
    assert code == 0, text
    whole = everything(folder / "whole")
    tell(f"{len(calls)} calls: {dict(Counter(call.kind for call in calls))}")
    for done, (number, fault) in enumerate(chosen(calls), 1):
        problem, end = _disturb_one(folder / "trial", number, fault, whole)
        outcome.ends[f"{fault}: {end}"] += 1
        if problem:
            outcome.faults.append(f"call {number} ({calls[number - 1]}), {fault}: {problem}")
            tell(outcome.faults[-1])
        if done % 100 == 0:
            tell(f"{done} trials, {len(outcome.faults)} violations")
    return outcome


def _disturb_one(folder: Path, number: int, fault: str, whole: dict[str, Any]) -> tuple[str, str]:
    """Run one trial. Return a violation or an empty string, and how the disturbed run ended."""
    code, text, calls = train(new_folder(folder), number=number, fault=fault)
    if len(calls) < number:
        return "", "not reached"
    call = calls[number - 1]
    if fault == "KILL":
        end, problem = "killed", "" if code == -signal.SIGKILL else f"exit code {code}: {text}"
    else:
        failed = calls[number - 1 :] if fault == "FULL" else [call]  # threads write in any order
        end = "error" if code else "no effect"
        problem = _wrong_error(code, text, failed) if code else _wrong_success(call, fault)
    problem = problem or _damaged(newest(folder / "runs"))
    if problem:
        return problem, end
    result = newest(folder / "runs") / "result.json"
    if not result.exists() or json.loads(result.read_text())["state"] != "finished":
        code, text, _ = train(folder, *(["--resume"] if result.exists() else []))
        if code:
            return f"it does not resume, exit code {code}: {text}", end
    differing = [name for name, value in everything(folder).items() if value != whole.get(name)]
    return f"another result: {differing}" if differing else "", end


def _wrong_error(code: int, text: str, failed: Sequence[Call]) -> str:
    for word in ("Traceback", "internal error", "Exception"):
        if word in text:
            return f"{word} in the output: {text}"
    named = any(call.name in text for call in failed)
    return "" if code == 1 and "E0506" in text and named else f"exit code {code}: {text}"


def _wrong_success(call: Call, fault: str) -> str:
    is_folder_sync = call.kind == "fsync" and Path(call.path).is_dir() and fault == "EACCES"
    is_lock = (call.kind, call.name) == ("close", ".lock")  # an empty file
    return "" if call.kind in REPLACED or is_folder_sync or is_lock else "the failure is not reported"


def _damaged(run: Path) -> str:
    """Return the name of a damaged checkpoint, or an empty string."""
    from cnnspec.training.loop.checkpoints import DamagedCheckpoint, unseal

    for path in (run / "checkpoints").glob("*.ckpt"):
        try:
            if path.name != "new.ckpt":
                unseal(path.read_bytes())
        except DamagedCheckpoint as damage:
            return f"{path.name} is damaged: {damage}"
    return ""


def disturb_report(folder: Path, faults: Sequence[str], tell: Callable[[str], None] = print) -> Outcome:
    """Disturb the files of a comparison of finished runs at each call, and repeat it."""
    prepare(folder)
    outcome = Outcome()
    assert train(new_folder(folder / "done"))[0] == 0
    command = ["compare", "--runs", str(folder / "done/runs"), "--out", "out"]
    code, text, calls = run_command(new_folder(folder / "whole"), command)
    assert code == 0, text
    tell(f"{len(calls)} calls of a comparison")

    def written(trial: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (trial / "out").iterdir() if path.is_file()}

    whole = written(folder / "whole")
    for number, fault in trials(calls, faults):
        code, text, found = run_command(new_folder(folder / "trial"), command, number, fault)
        call = found[number - 1]
        problem = "" if fault == "KILL" else _wrong_error(code, text, [call]) if code else _wrong_success(call, fault)
        end = "killed" if fault == "KILL" else "error" if code else "no effect"
        code, text, _ = run_command(folder / "trial", command)
        if not problem and (code or written(folder / "trial") != whole):
            problem = f"the comparison cannot be repeated: {text}"
        outcome.ends[f"{fault}: {end}"] += 1
        if problem:
            outcome.faults.append(f"call {number} ({call}), {fault}: {problem}")
            tell(outcome.faults[-1])
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--every", type=int, default=1, help="use only every N-th call")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "runs").mkdir()
        done = disturb(Path(folder) / "runs", lambda calls: trials(calls, args.faults, args.every))
        (Path(folder) / "report").mkdir()
        report = disturb_report(Path(folder) / "report", args.faults)
    for name, outcome in (("run", done), ("comparison", report)):
        print(f"{name}: {sum(outcome.ends.values())} trials, {len(outcome.faults)} violations")
        print("\n".join(f"  {end:<24} {count:>5}" for end, count in sorted(outcome.ends.items())))
    sys.exit(bool(done.faults or report.faults))


if __name__ == "__main__":
    main()
