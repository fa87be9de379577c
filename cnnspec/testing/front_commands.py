"""Run every command that does not need torch on a file, and measure processor time and memory of each."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cnnspec import api
from cnnspec.analysis.summary import COLUMNS
from cnnspec.cli.app import app
from cnnspec.cli.output import print_diagnostics
from cnnspec.diagnostics import CnnspecError

MAX_SECONDS = 1.0
"""The limit on the processor time of one command, in seconds."""
MAX_BYTES = 300 * 2**20
"""The limit on the peak memory of a process that runs one command, in bytes."""
_ABORT = 10.0
"""Seconds after which a command is stopped."""

_ALL = ("--depth", "99", "--columns", ",".join(COLUMNS))

ANY_TEXT: dict[str, tuple[str, ...]] = {
    "check": ("check", "FILE"),
    "check --format concise": ("check", "FILE", "--format", "concise"),
    "check --json": ("check", "FILE", "--json"),
    "check --format sarif": ("check", "FILE", "--format", "sarif"),
    "check --format github": ("check", "FILE", "--format", "github"),
    "summary": ("summary", "FILE"),
    "show --stage tree": ("show", "FILE", "--stage", "tree"),
    "show --stage tree --json": ("show", "FILE", "--stage", "tree", "--json"),
    "plan": ("plan", "FILE"),
    "fmt --diff": ("fmt", "FILE", "--diff"),
}
"""Arguments of the commands for any text; the others end with the same errors as `summary` if it has any."""

NETWORKS: dict[str, tuple[str, ...]] = {
    "summary, everything": ("summary", "FILE", *_ALL),
    "summary --json": ("summary", "FILE", "--json"),
    "summary --format csv": ("summary", "FILE", "--format", "csv", *_ALL),
    "summary --format markdown": ("summary", "FILE", "--format", "markdown", *_ALL),
    "summary --symbolic": ("summary", "FILE", "--symbolic", *_ALL),
    "summary --symbolic --json": ("summary", "FILE", "--symbolic", "--json"),
    "summary --max-batch": ("summary", "FILE", "--max-batch", "16GiB"),
    "summary --at": ("summary", "FILE", "--at", "65x63"),
    "show --stage model": ("show", "FILE", "--stage", "model"),
    "show": ("show", "FILE"),
    "show --json": ("show", "FILE", "--json"),
    "diff": ("diff", "FILE", "FILE"),
    "diff with another": ("diff", "FILE", "resnet18"),
    "diff --json": ("diff", "resnet18", "FILE", "--json"),
}
"""Arguments of the commands for a text without errors."""

_FUNCTIONS = {"loads": api.loads, "format": api.format}

CHANGES: dict[str, tuple[str, ...]] = {"check --fix": ("check", "FILE", "--fix"), "fmt": ("fmt", "FILE")}
"""Arguments of the commands that change the file; they run last."""


class Outcome(NamedTuple):
    """The outcome of a command.

    Attributes:
        command: The command.
        seconds: Processor time.
        memory: Peak memory of the process in bytes.
        failed: Whether the command exited with another code than 0.
        fault: The unexpected exception, or an empty string.
    """

    command: str
    seconds: float
    memory: int
    failed: bool
    fault: str

    def violations(self) -> Iterator[str]:
        if self.fault:
            yield f"{self.command} raises {self.fault}"
        if self.seconds > MAX_SECONDS:
            yield f"{self.command} takes {self.seconds:.2f} s"
        if self.memory > MAX_BYTES:
            yield f"{self.command}: {self.memory / 2**20:.0f} MiB in use"


def run_all(path: Path) -> Iterator[Outcome]:
    """Run all commands on a file, and the functions `loads` and `format` on its text."""
    first = _measure("check", path, ANY_TEXT["check"])
    yield first
    for name, arguments in [*[*ANY_TEXT.items()][1:], *(() if first.failed else NETWORKS.items())]:
        yield _measure(name, path, arguments)
    if os.path.isfile(path):  # unlike `Path.is_file`, False if the name is too long
        for name in _FUNCTIONS:
            yield _measure(name, path, ())
    for name, arguments in CHANGES.items():
        yield _measure(name, path, arguments)


@cache
def warm_up() -> None:
    """Run each command once in this process, so that no other run imports modules or loads the grammar."""
    with tempfile.TemporaryDirectory() as folder:
        for text in ("input 3x8x8\nconv_bn 3x3 8\n", "input 3x8x8\nconvv 3x3 8\n"):
            path = Path(folder) / "warm.cnn"
            path.write_text(text)
            for outcome in run_all(path):
                if outcome.fault:
                    raise RuntimeError(f"{outcome.command}: {outcome.fault}")


def _measure(name: str, path: Path, arguments: tuple[str, ...]) -> Outcome:
    function = _FUNCTIONS.get(name)
    text = path.read_bytes().decode("utf-8", "replace") if function else ""
    failed, fault = False, ""
    _reset_peak()
    start = time.process_time()
    try:
        with _silent(), _time_limit(), _without_torch():
            if function:
                function(text)
            else:
                failed = bool(app([str(path) if word == "FILE" else word for word in arguments], standalone_mode=False))
    except CnnspecError as error:
        failed = True
        with _silent():
            print_diagnostics(error.diagnostics)
            str(error)
    except Exception as error:  # noqa: BLE001
        failed, fault = True, f"{type(error).__name__}: {error}"
    return Outcome(name, time.process_time() - start, peak_memory(), failed, fault)


class _Sink(io.TextIOBase):
    """A stream that forgets what is written."""

    def write(self, text: str, /) -> int:
        return len(text)

    def isatty(self) -> bool:
        return False


@contextmanager
def _silent() -> Generator[None]:
    with redirect_stdout(_Sink()), redirect_stderr(_Sink()):
        yield


@contextmanager
def _time_limit() -> Generator[None]:
    """Stop a command that takes too much processor time, to measure the others."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {_ABORT:g} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, _ABORT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # by default, a signal that arrives late ends the process


@contextmanager
def _without_torch() -> Generator[None]:
    """Make torch look as if it is not installed, unless this process has loaded it."""
    missing = "torch" not in sys.modules
    if missing:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if missing:
            del sys.modules["torch"]


def _reset_peak() -> None:
    """Reset the peak memory of this process to its current memory, where the system can."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` would include the peak of the parent process
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(found.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
