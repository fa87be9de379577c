"""Runs that are killed and stopped at random moments, resumed, and compared with a run that was left alone.

    python tests/harness/kill_runs.py --kills 40 --signals 40 --seed 1

Each trial trains in a process of its own, forked from this one. Half of them have the folder for temporary files on
another file system, if there is one. A trial fails if the run does not resume, loses more steps than were done since
its last checkpoint (none, if it was asked to stop), or ends with another bit in its weights, its journal or its
result than the undisturbed run.

The moment of a kill is drawn from what the process tells: a number of steps, and of the calls that write a
checkpoint, and behind that a random time. So it lands. One that does not is repeated and not counted.
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

SPEC = """network tiny
input 1x28x28
classes 10
stem conv 7x7 4 stride=7 pad=0 | bn | relu
head dropout 0.1 | global_avgpool | flatten | linear classes
train {
    data      fashion_mini val=1500
    augment   alternating_flip | random_crop pad=2
    optimizer sgd lr=0.1 momentum=0.9
    schedule  cosine warmup=1
    batch     250
    epochs    3
    ema       0.9
}
"""
PHASES = {"loading": 1, "saving": 12, "step": 48, "validation": 18, "testing": 9}
"""Where a signal comes, and how many occasions there are at least."""
PAUSE = 2e-4
"""Seconds between two looks at what a process tells."""
TRIES = 60
"""How often a kill that does not land is repeated."""
SAME = ("val_acc", "test_acc", "val_loss", "test_loss", "best_epoch", "steps", "epochs")


def _number(place: int) -> Any:
    """One of the numbers of `Shared`."""

    def read(self: Shared) -> int:
        return struct.unpack_from("i", self.memory, 4 * place)[0]

    def write(self: Shared, value: int) -> None:
        struct.pack_into("i", self.memory, 4 * place, value)

    return property(read, write)


class Shared:
    """Numbers that survive a process: what it had done when it died.

    Attributes:
        step: Steps done; -1 before training has begun.
        saved: Steps in the newest checkpoint.
        calls: Calls made so far by the checkpoint that is being written; 0 if none is.
        most: The most calls of one checkpoint.
    """

    step, saved, calls, most = (_number(place) for place in range(4))

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 16)
        self.step = -1


@dataclass
class Outcome:
    """What became of the trials.

    Attributes:
        trials: Runs that were disturbed.
        hits: How many kills and signals came in which phase.
        missed: Kills and signals that came too late, and were repeated.
        lost: Steps that had to be done again, of each hit.
        faults: What should not be.
    """

    trials: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    lost: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def _report(shared: Shared) -> None:
    """Let this process tell its steps, its checkpoints, and every call that writes one."""
    from cnnspec.training.loop import checkpoints
    from cnnspec.training.loop.task import Task

    # Many calls to be killed in.
    checkpoints.CHUNK = 512

    class Predictions(io.FileIO):
        def write(self, content: Any) -> int:
            called()
            return super().write(content)

    def called() -> None:
        if shared.calls:
            shared.calls += 1

    def opened(path: Path, *args: Any, **options: Any) -> Any:
        if path.suffix != ".part":
            return path_open(path, *args, **options)
        called()
        return Predictions(path, "wb")

    def telling(home: Any, name: str) -> None:
        original = getattr(home, name)

        def call(*args: Any) -> Any:
            called()
            return original(*args)

        setattr(home, name, call)

    path_open, Path.open = Path.open, opened
    for name in ("fsync", "replace", "link"):
        telling(checkpoints.os, name)
    begin, step, save = Task.on_train_start, Task.training_step, checkpoints.Checkpoints.save

    def told_begin(self: Task) -> None:
        shared.step = self.progress.step
        begin(self)

    def told_step(self: Task, *args: Any) -> None:
        step(self, *args)
        shared.step = self.progress.step

    def told_save(self: checkpoints.Checkpoints, state: dict[str, Any], **options: Any) -> None:
        shared.calls = 1
        save(self, state, **options)
        shared.saved, shared.most = state["progress"]["step"], max(shared.most, shared.calls)
        shared.calls = 0

    Task.on_train_start, Task.training_step, checkpoints.Checkpoints.save = told_begin, told_step, told_save


def _signal_in(phase: str, number: int, occasion: int) -> None:
    """Let this process signal itself once in a phase, at an occasion counted from 0."""
    from cnnspec.training.loop import checkpoints, task
    from cnnspec.training.runs import train as run

    left = [occasion]

    def maybe() -> None:
        if left[0] == 0:
            os.kill(os.getpid(), number)
        left[0] -= 1

    def before(home: Any, name: str) -> None:
        original = getattr(home, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            maybe()
            return original(*args, **options)

        setattr(home, name, wrapped)

    def polled(home: Any) -> None:
        original = home.score

        def scored(*args: Any, poll: Callable[[], None], **options: Any) -> Any:
            def polled() -> None:
                maybe()
                poll()

            return original(*args, poll=polled, **options)

        home.score = scored

    if phase == "loading":
        before(run, "load_data")
    elif phase == "saving":
        before(checkpoints.os, "replace")
    elif phase == "step":
        before(task.F, "cross_entropy")
    else:
        polled(task if phase == "validation" else run)


def fork(job: Callable[[], int]) -> int:
    """Run a job in a process of its own; its exit code is what the job returns."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        code = job()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:  # noqa: BLE001 - told by the exit code
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def poll(child: int) -> int | None:
    """The same if the process has ended."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def train_once(out: Path, resume: bool, save_every: float) -> int:
    import torch
    from rich.console import Console

    from cnnspec import loads
    from cnnspec.training import TrainOptions, train

    torch.set_num_threads(1)
    console = Console(file=io.StringIO())
    options = TrainOptions(out=out, resume=resume, save_every=save_every, offline=True, console=console, pictures=False)
    return train(loads(SPEC, name="tiny.cnn"), options).exit_code


def newest(out: Path) -> Path:
    """The folder of the run; one that was killed before it had a result is left behind."""
    return max((out / "tiny").glob("*"), key=lambda path: int(path.name), default=out / "tiny" / "1")


def go_on(out: Path, temporary: str | None = None) -> int:
    """Begin the run, or resume it, if it is not finished."""
    if temporary is not None:
        os.environ["TMPDIR"], tempfile.tempdir = temporary, None
    path = newest(out) / "result.json"
    if path.exists() and json.loads(path.read_text())["state"] == "finished":
        return 0
    return train_once(out, path.exists(), 0.05)


def contents(out: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on what happened to it."""
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
    """A folder for temporary files that is on another file system."""
    candidates = (Path("/dev/shm"), Path("/run/shm"), Path("/var/tmp"), Path.home())
    device = folder.stat().st_dev
    for path in candidates:
        if path.is_dir() and path.stat().st_dev != device and os.access(path, os.W_OK):
            return str(path)
    return None


@dataclass(frozen=True)
class Undisturbed:
    """The run that was left alone.

    Attributes:
        contents: What it ended with.
        steps: All of it.
        step: Seconds of one, with its share of everything.
        tail: Seconds behind the last one.
        calls: The most of one checkpoint.
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
    """Start a process and kill it in training or in saving, some steps or more behind `after`."""
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
        os.kill(child, signal.SIGKILL)  # a process that has ended by itself is not yet waited for
        code = wait(child)
    return Killed(code, "saving" if shared.calls else "training", shared)


@dataclass(frozen=True)
class Killed:
    """The exit code of a process, the phase in which it was, and what it had done."""

    code: int
    phase: str
    shared: Shared


def hunt(kills: int, signals: int, seed: int, folder: Path, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Disturb so many runs, resume each, and compare.

    Args:
        kills: Runs that are killed at a random moment, each up to three times; of half of them the first kill
            comes while a checkpoint is written.
        signals: Runs that get SIGTERM or SIGINT, in every phase in turn.
        seed: Of the moments.
        folder: For the runs.
        tell: Is told of each trial.
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
    """Kill a run one to three times; each kill lands."""

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
            shutil.rmtree(out)  # finished, and no kill has landed: another run for this trial
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
    """Let a run signal itself in a phase."""
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
    """How many steps are not in the checkpoint that is found again."""
    from cnnspec.training.loop.checkpoints import Checkpoints

    store, step = Checkpoints(newest(out) / "checkpoints"), max(0, step)
    if not store.exists():
        if step:
            faults.append(f"trial {trial}: {step} steps and no checkpoint")
        return step
    state, said = store.load()
    found = state["progress"]["step"]
    if said:
        faults.append(f"trial {trial}: {said}")
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
