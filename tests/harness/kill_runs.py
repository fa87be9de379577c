"""Kill and stop runs at random moments, resume them, and compare the result with an undisturbed run.

    python tests/harness/kill_runs.py --kills 40 --signals 40 --seed 1

Each trial trains in a forked process. Half of the trials use temporary files on another file system, if there is one. A
trial fails if the run does not resume, if it loses more steps than were done since its last checkpoint (none after a
requested stop), or if its weights, journal or result differ from the undisturbed run in a single bit.

The moment of a kill is drawn in terms of what the process reports: a number of steps, or of the calls that write a
checkpoint, plus a random time. Kills that come too late are repeated and not counted.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.runs import TINY

SPEC = TINY + (
    "train { data fashion_mini val=1500; augment alternating_flip | random_crop pad=2; "
    "optimizer sgd lr=0.1 momentum=0.9; schedule cosine warmup=1; batch 250; epochs 3; ema 0.9 }\n"
)
PHASES = {"loading": 1, "saving": 12, "step": 48, "validation": 18, "testing": 9}
"""The phases in which a signal arrives, and the minimum number of occasions in each."""
PAUSE = 2e-4
"""Seconds between two looks at the shared memory."""
TRIES = 60
"""The number of times that a missed kill is repeated."""
SAME = ("val_acc", "test_acc", "val_loss", "test_loss", "best_epoch", "steps", "epochs")


def _number(place: int) -> Any:
    """Return a property for one of the numbers of `Shared`."""

    def read(self: Shared) -> int:
        return struct.unpack_from("i", self.memory, 4 * place)[0]

    def write(self: Shared, value: int) -> None:
        struct.pack_into("i", self.memory, 4 * place, value)

    return property(read, write)


class Shared:
    """Numbers in shared memory that show what a process had done when it died.

    Attributes:
        step: Completed steps, -1 before training starts.
        saved: Steps in the latest checkpoint.
        calls: Calls made so far by the current checkpoint, 0 if none is being written.
        most: The maximum number of calls of one checkpoint.
    """

    step, saved, calls, most = (_number(place) for place in range(4))

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 16)
        self.step = -1


@dataclass
class Outcome:
    """The outcome of all trials.

    Attributes:
        trials: Disturbed runs.
        hits: The number of kills and signals by phase.
        missed: Kills and signals that came too late and were repeated.
        lost: Repeated steps, for each hit.
        faults: Violations.
    """

    trials: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    lost: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def _run_before(owner: Any, name: str, action: Callable[[], None]) -> None:
    """Replace a function by one that runs an action first."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        action()
        return original(*args, **options)

    setattr(owner, name, wrapped)


def _report(shared: Shared) -> None:
    """Let this process report its steps, its checkpoints, and every system call that writes one."""
    _report_calls(shared)
    _report_steps(shared)


def _report_calls(shared: Shared) -> None:
    from cnnspec import files
    from cnnspec.training.loop import checkpoints

    # Small chunks result in many calls at which to kill the process.
    files.CHUNK = 512

    def count() -> None:
        if shared.calls:
            shared.calls += 1

    class CountingFile(io.FileIO):
        def write(self, content: Any) -> int:
            count()
            return super().write(content)

    def open_counting(path: Path, *args: Any, **options: Any) -> Any:
        if path.suffix != ".part":
            return path_open(path, *args, **options)
        count()
        return CountingFile(path, "wb")

    path_open, Path.open = Path.open, open_counting
    for name in ("fsync", "replace", "link"):
        _run_before(checkpoints.os, name, count)


def _report_steps(shared: Shared) -> None:
    from cnnspec.training.loop.checkpoints import Checkpoints
    from cnnspec.training.loop.task import Task

    start, step, save = Task.on_train_start, Task.training_step, Checkpoints.save

    def start_reporting(self: Task) -> None:
        shared.step = self.progress.step
        start(self)

    def step_reporting(self: Task, *args: Any) -> None:
        step(self, *args)
        shared.step = self.progress.step

    def save_reporting(self: Checkpoints, state: dict[str, Any], **options: Any) -> None:
        shared.calls = 1
        save(self, state, **options)
        shared.saved, shared.most = state["progress"]["step"], max(shared.most, shared.calls)
        shared.calls = 0

    Task.on_train_start, Task.training_step, Checkpoints.save = start_reporting, step_reporting, save_reporting


def _signal_in(phase: str, number: int, occasion: int) -> None:
    """Let this process send itself a signal once in a phase, at an occasion counted from 0."""
    from cnnspec.training.loop import checkpoints, task
    from cnnspec.training.runs import train as run

    left = [occasion]

    def maybe_signal() -> None:
        if left[0] == 0:
            os.kill(os.getpid(), number)
        left[0] -= 1

    targets = {"loading": (run, "load_data"), "saving": (checkpoints.os, "replace"), "step": (task.F, "cross_entropy")}
    if phase in targets:
        _run_before(*targets[phase], maybe_signal)
    else:
        _poll_before(task if phase == "validation" else run, maybe_signal)


def _poll_before(module: Any, action: Callable[[], None]) -> None:
    """Run an action before each batch of `score` in a module."""
    original = module.score

    def score(*args: Any, poll: Callable[[], None], **options: Any) -> Any:
        def poll_after() -> None:
            action()
            poll()

        return original(*args, poll=poll_after, **options)

    module.score = score


def fork(job: Callable[[], int]) -> int:
    """Run a job in a forked process. Its exit code is the result of the job."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        code = job()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:  # noqa: BLE001 - the exit code reports it
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Wait for a process and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_until(happened: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until a function returns true, which another process brings about."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"it did not happen within {seconds} s")
        time.sleep(0.01)


def poll(child: int) -> int | None:
    """Return the exit code of a process, or None while it is running."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def train_once(out: Path, resume: bool, save_every: float) -> int:
    import torch
    from rich.console import Console

    from cnnspec import loads
    from cnnspec.training import TrainOptions, train

    torch.set_num_threads(1)
    console = Console(file=io.StringIO())
    options = TrainOptions(
        out=out, resume=resume, save_every=save_every, offline=True, console=console, plots=False,
        memory_format="channels_last", threads=1,
    )  # fmt: skip
    return train(loads(SPEC, name="tiny.cnn"), options).exit_code


def newest(out: Path) -> Path:
    """Return the folder of the latest run. A run killed before it has a result leaves an earlier folder."""
    return max((out / "tiny").glob("*"), key=lambda path: int(path.name), default=out / "tiny" / "1")


def go_on(out: Path, temporary: str | None = None) -> int:
    """Start the run, or resume it if it is unfinished."""
    if temporary is not None:
        os.environ["TMPDIR"], tempfile.tempdir = temporary, None
    path = newest(out) / "result.json"
    if path.exists() and json.loads(path.read_text())["state"] == "finished":
        return 0
    return train_once(out, path.exists(), 0.05)


def contents(out: Path) -> dict[str, Any]:
    """Return everything of a finished run that must not depend on interruptions."""
    import torch

    folder = newest(out)
    result = json.loads((folder / "result.json").read_text())
    found: dict[str, Any] = {name: result[name] for name in SAME} | {"state": result["state"]}
    for name in ("last", "best"):
        state = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for part in ("state_dict", "trained"):
            found |= {f"{name}.{part}.{key}": tensor.numpy().tobytes() for key, tensor in state[part].items()}
    return found | {name: (folder / name).read_bytes() for name in ("metrics.csv", "metrics.jsonl")}


def other_file_system(folder: Path) -> str | None:
    """Return a folder for temporary files on another file system, or None."""
    candidates = (Path("/dev/shm"), Path("/run/shm"), Path("/var/tmp"), Path.home())
    device = folder.stat().st_dev
    for path in candidates:
        if path.is_dir() and path.stat().st_dev != device and os.access(path, os.W_OK):
            return str(path)
    return None


@dataclass(frozen=True)
class Undisturbed:
    """The undisturbed run.

    Attributes:
        contents: The result of `contents`.
        steps: The number of steps.
        step: Seconds per step, averaged over everything.
        tail: Seconds after the last step.
        calls: The maximum number of calls of one checkpoint.
    """

    contents: dict[str, Any]
    steps: int
    step: float
    tail: float
    calls: int


def undisturbed(out: Path) -> Undisturbed:
    shared = Shared()

    def job() -> int:
        _report(shared)
        return train_once(out, False, 0.05)

    child = fork(job)
    last, begun, since = -1, 0.0, 0.0
    while (code := poll(child)) is None:
        if shared.step != last:
            last, since = shared.step, time.monotonic()
            begun = begun or since
        time.sleep(PAUSE)
    assert code == 0, f"the undisturbed run ended with {code}"
    found = contents(out)
    assert found["state"] == "finished"
    return Undisturbed(found, last, (since - begun) / last, time.monotonic() - since, shared.most)


def kill_one(job: Callable[[Shared], int], kind: str, after: int, whole: Undisturbed, draw: random.Random) -> Killed:
    """Start a process and kill it during training or saving, some steps or calls after `after`."""
    shared = Shared()
    step = draw.randint(after, whole.steps)
    calls = draw.randint(1, whole.calls) if kind == "saving" else 0
    delay = whole.step if step < whole.steps else whole.tail
    delay = draw.uniform(0, whole.step / whole.calls if calls else delay)
    child = fork(lambda: job(shared))
    while (code := poll(child)) is None and (shared.step < step or shared.calls < calls):
        time.sleep(PAUSE)
    if code is None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)  # a process that has ended stays until it is waited for
        code = wait(child)
    return Killed(code, "saving" if shared.calls else "training", shared)


@dataclass(frozen=True)
class Killed:
    """The exit code of a killed process, its phase, and its progress."""

    code: int
    phase: str
    shared: Shared


def hunt(kills: int, signals: int, seed: int, folder: Path, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Disturb runs, resume each, and compare.

    Args:
        kills: The number of runs that are killed at a random moment, each up to three times. In half of them, the first
            kill comes during a checkpoint.
        signals: The number of runs that receive SIGTERM or SIGINT, alternating over all phases.
        seed: The seed of the moments.
        folder: The folder for the runs.
        tell: Called with a message about each trial.
    """
    draw, done = random.Random(seed), Outcome()
    whole = undisturbed(folder / "whole")
    elsewhere = other_file_system(folder)
    for trial in range(kills + signals):
        out, temporary = folder / str(trial), elsewhere if trial % 2 else None
        before = len(done.faults)
        if trial < kills:
            name = "kill"
            _kill(out, temporary, trial, whole, draw, done)
        else:
            name = list(PHASES)[trial % len(PHASES)]
            _signal(out, temporary, trial, name, draw, done)
        code = 1
        for _ in range(3):
            code = code and wait(fork(lambda: go_on(out, temporary)))  # noqa: B023
        if code != 0 or contents(out) != whole.contents:
            done.faults.append(f"trial {trial} ({name}): " + (f"exit code {code}" if code else "another result"))
        if len(done.faults) == before:
            shutil.rmtree(out)
        done.trials += 1
        for fault in done.faults[before:]:
            tell(fault)
        tell(f"trial {trial + 1}: {name}; {dict(done.hits)}, {done.missed} repeated, {len(done.faults)} faults")
    return done


def _kill(out: Path, temporary: str | None, trial: int, whole: Undisturbed, draw: random.Random, done: Outcome) -> None:
    """Kill a run one to three times, with at least one hit."""

    def job(shared: Shared) -> int:
        _report(shared)
        return go_on(out, temporary)

    after, left, tries, landed = 0, draw.randint(1, 3), 0, False
    kinds = ["saving" if trial // 2 % 2 else "training", *draw.choices(("saving", "training"), k=left - 1)]
    while left and tries < TRIES:
        killed = kill_one(job, kinds[-left], after, whole, draw)
        tries += 1
        if killed.code == -signal.SIGKILL:
            after = max(after, killed.shared.saved)
            done.lost.append(_lost(out, killed.shared.step, after, killed.code, trial, done.faults))
        elif killed.code == 0 and landed:
            done.missed += 1
            return
        elif killed.code == 0:
            shutil.rmtree(out)  # the run finished without a hit: repeat the trial
            after = 0
        else:
            done.faults.append(f"trial {trial} (kill): exit code {killed.code}")
            return
        if killed.code == -signal.SIGKILL and kinds[-left] in (killed.phase, "training"):
            done.hits[f"kill in {killed.phase}"] += 1
            landed, left = True, left - 1
        else:
            done.missed += 1
    if left:
        done.faults.append(f"trial {trial} (kill): it did not land")


def _signal(out: Path, temporary: str | None, trial: int, phase: str, draw: random.Random, done: Outcome) -> None:
    """Let a run send itself a signal in a phase."""
    shared, occasion = Shared(), draw.randrange(PHASES[phase])
    number = draw.choice((signal.SIGTERM, signal.SIGINT))

    def job() -> int:
        _report(shared)
        _signal_in(phase, number, occasion)
        return go_on(out, temporary)

    code = wait(fork(job))
    if code != 128 + number:
        done.faults.append(f"trial {trial} ({phase}): exit code {code}")
        return
    done.hits[f"{number.name} in {phase}"] += 1
    done.lost.append(_lost(out, shared.step, shared.saved, code, trial, done.faults))


def _lost(out: Path, step: int, saved: int, code: int, trial: int, faults: list[str]) -> int:
    """Return the number of steps that the resumed run has to repeat."""
    from cnnspec.training.loop.checkpoints import Checkpoints

    store, step = Checkpoints(newest(out) / "checkpoints"), max(0, step)
    if not store.exists():
        if step:
            faults.append(f"trial {trial}: {step} steps and no checkpoint")
        return step
    state, output = store.load()
    found = state["progress"]["step"]
    if output:
        faults.append(f"trial {trial}: {output}")
    if found < saved or (code > 0 and found != step):
        faults.append(f"trial {trial}: step {found} was found, {saved} was saved, {step} were done")
    return max(0, step - found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=150)
    parser.add_argument("--signals", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = hunt(args.kills, args.signals, args.seed, Path(folder), lambda line: print(line, flush=True))
    print(f"{done.trials} runs disturbed, {sum(done.hits.values())} times, {done.missed} more repeated")
    print("\n".join(f"  {name:<26} {count:>4}" for name, count in sorted(done.hits.items())))
    print(f"most steps done again: {max(done.lost, default=0)}")
    print("\n".join(done.faults) or "every run ended as the undisturbed one, bit for bit")
    sys.exit(bool(done.faults))


if __name__ == "__main__":
    main()
