"""Kill comparisons at random moments, restart them, and compare the result with an undisturbed one.

    python tests/harness/kill_comparisons.py --trials 20 --seed 1

Each trial compares two networks over two seeds in a forked process, which is killed five times. A trial fails if the
comparison does not end, or if its table, data or report differ from the undisturbed ones in anything but measured
times.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.kill_runs import fork, wait
from harness.runs import TINY

SPEC = TINY + (
    "train { data fashion_mini val=4000; augment alternating_flip | random_crop pad=2; "
    "optimizer sgd lr=0.1 momentum=0.9; schedule cosine warmup=1; batch 250; epochs 2 }\n"
)
NETWORKS = {"small": SPEC.replace("tiny", "small"), "smooth": SPEC.replace("tiny", "smooth").replace("relu", "gelu")}
KILLS = 5
LATEST = 0.2
"""The latest moment of a kill, as a fraction of the duration of the undisturbed comparison."""


@dataclass
class Outcome:
    """The outcome of all trials."""

    trials: int = 0
    kills: int = 0
    faults: list[str] = field(default_factory=list)


def compare_once(out: Path) -> int:
    import torch
    from rich.console import Console

    from cnnspec import loads
    from cnnspec.training import TrainOptions, compare

    torch.set_num_threads(1)
    options = TrainOptions(
        offline=True, save_every=0.05, console=Console(file=io.StringIO()), plots=False,
        memory_format="channels_last", threads=1,
    )  # fmt: skip
    specs = [loads(text, name=f"{name}.cnn") for name, text in NETWORKS.items()]
    return compare(specs, seeds=2, options=options, target=0.25, out=out).exit_code


def contents(out: Path) -> dict[str, str]:
    """Return everything that a comparison wrote, without measured times."""
    found = {path.name: path.read_text("utf-8") for path in out.iterdir() if path.is_file() and path.name != ".lock"}
    data = json.loads(found.pop("comparison.json"))
    return {name: without_seconds(text) for name, text in found.items()} | {"data": json.dumps(_unmeasured(data))}


def _unmeasured(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _unmeasured(value) for name, value in data.items() if "seconds" not in name}
    return [_unmeasured(value) for value in data] if isinstance(data, list) else data


def without_seconds(text: str) -> str:
    """Return a table or report without the columns and elements with measured times."""
    text = re.sub(r'(<(\w+)[^>]*class="[^"]*measured[^"]*"[^>]*>).*?</\2>', r"\1", text, flags=re.S)
    if text.startswith("label,"):
        head = text.splitlines()[0].split(",")
        kept = [place for place, name in enumerate(head) if "seconds" not in name]
        return "\n".join(",".join(line.split(",")[place] for place in kept) for line in text.splitlines())
    if text.startswith("| network"):
        return "\n".join("|".join(line.split("|")[:7]) for line in text.splitlines())
    if "─" in text:
        return "\n".join(re.sub(r"^(.*?\d+\.\d\d)  .*$", r"\1", line) for line in text.splitlines() if "─" not in line)
    return text


def hunt(trials: int, seed: int, folder: Path, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Kill comparisons five times each, and compare their results.

    Args:
        trials: The number of comparisons.
        seed: The seed of the moments.
        folder: The folder for the comparisons.
        tell: Called with a message about each trial.
    """
    draw, done = random.Random(seed), Outcome()
    begin = time.monotonic()
    assert wait(fork(lambda: compare_once(folder / "whole"))) == 0
    length = time.monotonic() - begin
    expected = contents(folder / "whole")
    for trial in range(trials):
        out, kills, code = folder / str(trial), 0, 0
        while kills < KILLS and not code:
            child = fork(lambda: compare_once(out))  # noqa: B023
            time.sleep(draw.uniform(0, LATEST * length))
            os.kill(child, signal.SIGKILL)  # a process that has ended stays until it is waited for
            code = wait(child)
            if code == -signal.SIGKILL:
                kills, code = kills + 1, 0
            elif not code:  # it was faster than the undisturbed one: repeat the trial with earlier kills
                shutil.rmtree(out)
                kills, length = 0, length / 2
        done.kills += kills
        code = code or wait(fork(lambda: compare_once(out)))  # noqa: B023
        if code:
            done.faults.append(f"trial {trial}: exit code {code}")
        else:
            found = contents(out)
            other = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
            done.faults += [f"trial {trial}: another {name}" for name in other]
        done.trials += 1
        tell(f"trial {trial + 1}: {done.kills} kills, {len(done.faults)} faults")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = hunt(args.trials, args.seed, Path(folder), lambda line: print(line, flush=True))
    print(f"{done.trials} comparisons killed {done.kills} times")
    print("\n".join(done.faults) or "every one ended as the undisturbed one")
    sys.exit(bool(done.faults))


if __name__ == "__main__":
    main()
