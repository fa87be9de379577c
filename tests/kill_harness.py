"""Runs that are killed and stopped at random moments, resumed, and compared with a run that was left alone.

    python tests/kill_harness.py --kills 40 --signals 40 --seed 1

Each trial trains in a process of its own, forked from this one. Half of them have the folder for temporary files on
another file system, if there is one. A trial fails if the run does not resume, loses more steps than were done since
its last checkpoint (none, if it was asked to stop), or ends with another bit in its weights, its journal or its
result than the undisturbed run.
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
SAME = ("val_acc", "test_acc", "val_loss", "test_loss", "best_epoch", "steps", "epochs")


@dataclass
class Shared:
    """Two numbers that survive a child: steps done, and steps in the newest checkpoint."""

    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 8))

    def write(self, place: int, value: int) -> None:
        struct.pack_into("i", self.memory, 4 * place, value)

    def read(self) -> tuple[int, int]:
        return struct.unpack_from("ii", self.memory)


@dataclass
class Outcome:
    """What became of the trials."""

    trials: int = 0
    hits: dict[str, int] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def _count(shared: Shared) -> None:
    """Let this process tell its steps and its checkpoints."""
    from cnnspec.training.checkpoints import Checkpoints
    from cnnspec.training.task import Task

    step, save = Task.training_step, Checkpoints.save

    def counted_step(self: Task, *args: Any) -> None:
        step(self, *args)
        shared.write(0, self.progress.step)

    def counted_save(self: Checkpoints, state: dict[str, Any], **options: Any) -> None:
        save(self, state, **options)
        shared.write(1, state["progress"]["step"])

    Task.training_step, Checkpoints.save = counted_step, counted_save


def _signal_in(phase: str, number: int, occasion: int) -> None:
    """Let this process signal itself once in a phase, at an occasion counted from 0."""
    from cnnspec.training import checkpoints, run, task

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

        def scored(*args: Any) -> Any:
            def poll() -> None:
                maybe()
                args[-1]()

            return original(*args[:-1], poll)

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


def go_on(out: Path) -> int:
    """Begin the run, or resume it, if it is not finished."""
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


def hunt(kills: int, signals: int, seed: int, folder: Path, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Disturb so many runs, resume each, and compare.

    Args:
        kills: Runs that are killed at a random moment, each up to three times.
        signals: Runs that get SIGTERM or SIGINT, in every phase in turn.
        seed: Of the moments.
        folder: For the runs.
        tell: Is told of each trial.
    """
    import cnnspec.training.run  # noqa: F401 - once, before the first fork

    draw, done = random.Random(seed), Outcome()
    whole = folder / "whole"
    begin = time.monotonic()
    assert wait(fork(lambda: train_once(whole, False, 0.05))) == 0
    length = time.monotonic() - begin
    expected = contents(whole)
    assert expected["state"] == "finished"
    elsewhere = other_file_system(folder)
    for trial in range(kills + signals):
        out, shared = folder / str(trial), Shared()
        killing = trial < kills
        name, code = ("kill", -signal.SIGKILL) if killing else (list(PHASES)[trial % len(PHASES)], 0)
        occasion = draw.randrange(PHASES.get(name, 1))
        number = signal.SIGTERM if trial % 2 else signal.SIGINT
        kept = os.environ.pop("TMPDIR", None)
        if elsewhere and trial % 2:
            os.environ["TMPDIR"] = elsewhere
        tempfile.tempdir = None

        def job(
            out: Path = out, shared: Shared = shared, name: str = name, at: tuple[int, int] = (number, occasion)
        ) -> int:
            _count(shared)
            if name != "kill":
                _signal_in(name, *at)
            return go_on(out)

        for _ in range(draw.randint(1, 3) if killing else 1):
            child = fork(job)
            if killing:
                time.sleep(draw.uniform(0, length))
                os.kill(child, signal.SIGKILL)
            code = wait(child)
            step, saved = shared.read()
            if code in (-signal.SIGKILL, 128 + number):
                done.hits[name] = done.hits.get(name, 0) + 1
                done.lost.append(_lost(out, step, saved, code, trial, done.faults))
            elif code == 0:
                break
            else:
                done.faults.append(f"trial {trial} ({name}): exit code {code}")
        tries = 0
        while code != 0 and tries < 3:
            code = wait(fork(lambda: go_on(out)))  # noqa: B023
            tries += 1
        if code != 0 or contents(out) != expected:
            done.faults.append(f"trial {trial} ({name}): " + (f"exit code {code}" if code else "another result"))
        else:
            shutil.rmtree(out)
        if kept is not None:
            os.environ["TMPDIR"] = kept
        done.trials += 1
        tell(f"trial {trial + 1}: {name}, {done.hits.get(name, 0)} hits, {len(done.faults)} faults")
    return done


def _lost(out: Path, step: int, saved: int, code: int, trial: int, faults: list[str]) -> int:
    """How many steps are not in the checkpoint that is found again."""
    from cnnspec.training.checkpoints import Checkpoints

    store = Checkpoints(newest(out) / "checkpoints")
    if not store.exist():
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
    print(f"{done.trials} runs disturbed, by: {done.hits}; most steps done again: {max(done.lost, default=0)}")
    print("\n".join(done.faults) or "every run ended as the undisturbed one, bit for bit")
    sys.exit(bool(done.faults))


if __name__ == "__main__":
    main()
