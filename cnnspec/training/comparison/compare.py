"""Several networks trained alike over several seeds, and what they came to side by side.

Every run is an ordinary run in the folder of the comparison, and is found again by what it is. So nothing is trained
twice, what was interrupted goes on, and what has changed since is trained anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console

from cnnspec.backends.torch.module import to_module
from cnnspec.diagnostics import CnnspecError, failure
from cnnspec.ir import Graph
from cnnspec.training.comparison.candidates import Candidate, Grid, candidates_of, folder_name, networks_of
from cnnspec.training.comparison.report import render
from cnnspec.training.comparison.table import Row, Run, in_csv, in_markdown, in_text
from cnnspec.training.data.datasets import ImageData, load_data
from cnnspec.training.loop.checkpoints import write_whole
from cnnspec.training.loop.optimizers import optimizer_of
from cnnspec.training.loop.signals import Stop, Stopped
from cnnspec.training.runs.listing import held, hold, read_result
from cnnspec.training.runs.lookup import DIVERGED, Stored, epochs_of, stored_runs
from cnnspec.training.runs.options import TrainOptions
from cnnspec.training.runs.progress import clock
from cnnspec.training.runs.train import check_recipe, train

OWN = (DIVERGED, "E0513")
"""Faults of a single network, behind which the others go on; any other fault they would meet, too."""
RESULT, REPORT = "comparison.json", "report.html"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        folder: Where its files are.
        state: `finished`; `failed` if a run has; `interrupted`.
        exit_code: 0, 1, or 128 and the number of the signal that stopped it.
        rows: A row for each network, in the order in which they were given.
        target: The accuracy that time is measured to.
    """

    folder: Path
    state: str
    exit_code: int
    rows: tuple[Row, ...]
    target: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {"state": self.state, "target": self.target, "rows": [row.to_json() for row in self.rows]}

    def to_text(self, width: int = 120) -> str:
        """The table as a person reads it in a terminal."""
        return in_text(self.rows, self.target, width)

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return in_markdown(self.rows, self.target)

    def to_csv(self) -> str:
        """The table as CSV."""
        return in_csv(self.rows, self.target)

    def write(self) -> None:
        """Write every form of it into its folder."""
        forms = {
            "table.txt": self.to_text(),
            "table.md": self.to_markdown(),
            "table.csv": self.to_csv(),
            RESULT: json.dumps(self.to_json(), indent=2) + "\n",
        }
        for name, text in forms.items():
            write_whole(self.folder / name, text.encode())


def compare(
    specs: Sequence[str | Path | Graph] = (),
    *,
    seeds: int = 3,
    grid: Grid | None = None,
    options: TrainOptions | None = None,
    runs: Sequence[str | Path] = (),
    target: float | None = None,
    out: str | Path | None = None,
) -> Comparison:
    """Train networks over several seeds, as far as they are not trained yet, and compare them.

    Args:
        specs: Files, names of shipped specs, or networks; without any those of `runs` are compared.
        seeds: Runs of each network, with the seed of its recipe and those that follow.
        grid: Values of parameters and of the recipe by their names; each network is compared with every
            combination of those that it has.
        options: What is said beside the specs, as for `train`. Every run is on one device; `out` and `resume`
            have no meaning here.
        runs: Folders in which finished runs of these networks are looked for, of any seed.
        target: An accuracy between 0 and 1; the time that it takes is compared.
        out: The folder of the comparison; without it one in `comparisons` with the names of the networks.

    Raises:
        CnnspecError: A spec is at fault, E0506 if the folder is in use or cannot be written, or a fault that every
            network would meet. A network that diverges or does not fit into memory is a failed run in its row.
    """
    options = options or TrainOptions(pictures=False)
    console = options.console or Console()

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    taken = [found for folder in runs for found in stored_runs(Path(folder)) if found.finished]
    candidates = candidates_of(specs, grid or {}, options, say) if specs else networks_of(taken, runs)
    folder = Path(out) if out is not None else Path("comparisons") / folder_name(candidates)
    with _held(folder), Stop(lambda text: say(text, "yellow")) as stop:
        _remove_unborn(folder / "runs")
        own = replace(options, out=folder / "runs", devices=1, console=console)
        work = _Work(candidates, seeds if specs else 0, taken, folder, own)
        code = work.train_all(say, stop)
        rows = tuple(work.row(candidate, target) for candidate in candidates)
        failed = any(row.failed for row in rows)
        state = "interrupted" if code else "failed" if failed else "finished"
        done = Comparison(folder, state, code or int(failed), rows, target)
        done.write()
        if state != "interrupted":
            write_whole(folder / REPORT, render(candidates, rows, folder, target, own.data_dir).encode())
    return done


class _Work:
    """The runs of a comparison: those that are there, and those to train."""

    def __init__(
        self, candidates: list[Candidate], seeds: int, taken: list[Stored], folder: Path, options: TrainOptions
    ) -> None:
        self.candidates, self.seeds, self.folder, self.options = candidates, seeds, folder, options
        self._taken: dict[str, dict[int, Stored]] = {}
        for found in taken:
            self._taken.setdefault(found.key, {}).setdefault(found.seed, found)
        self._own: dict[tuple[str, int], Stored] = {}
        self._look()

    def _look(self) -> None:
        """Read what lies in the folder; of several runs that are alike one that is done, or the newest."""
        for found in stored_runs(self.folder / "runs"):
            former = self._own.get((found.key, found.seed))
            if former is None or not former.done:
                self._own[found.key, found.seed] = found

    def find(self, candidate: Candidate, seed: int) -> Stored | None:
        """A run of a network, if there is one."""
        return self._taken.get(candidate.key, {}).get(seed) or self._own.get((candidate.key, seed))

    def seeds_of(self, candidate: Candidate) -> list[int]:
        """The seeds of the runs that were found elsewhere, and of as many more as are wanted."""
        elsewhere = self._taken.get(candidate.key, {})
        own = (seed for seed in _from(candidate.recipe.seed) if seed not in elsewhere)
        return sorted([*elsewhere, *(next(own) for _ in range(self.seeds - len(elsewhere)))])

    def jobs(self) -> list[tuple[Candidate, int]]:
        """All runs, the first of every network before the second of any; those of networks that are the same once."""
        different = {candidate.key: candidate for candidate in reversed(self.candidates)}
        networks = [candidate for candidate in self.candidates if different[candidate.key] is candidate]
        by_network = ([(candidate, seed) for seed in self.seeds_of(candidate)] for candidate in networks)
        return [job for round_ in zip_longest(*by_network) for job in round_ if job is not None]

    def train_all(self, say: Say, stop: Stop) -> int:
        """Train what is left; the exit code of a stop, or 0."""
        jobs = self.jobs()
        done = sum(found is not None and found.done for found in (self.find(*job) for job in jobs))
        ready = f", {done} of them done" if done else ""
        say(f"comparing {len(self.candidates)} networks in {self.folder}: {len(jobs)} runs{ready}")
        self._tell_same(say)
        if done == len(jobs):
            return 0
        try:
            self._check([job for job in jobs if not self._done(job)], stop)
            self._tell_changes(say)
            for number, job in enumerate(jobs, 1):
                stop.poll()
                if not self._done(job):
                    say(f"run {number} of {len(jobs)}: {job[0].label}, seed {job[1]}{self._left(jobs)}")
                    code = self._train(*job, say)
                    if code:
                        return code
        except Stopped:
            say(f"stopped; go on with `{self.options.resume_command or 'the same comparison'}`")
            return stop.exit_code
        return 0

    def _left(self, jobs: Sequence[tuple[Candidate, int]]) -> str:
        """About how long the runs that are left take, where the time of one is known, by operations and epochs."""
        operations = seconds = left = 0.0
        for candidate, seed in jobs:
            found = self.find(candidate, seed)
            if found is None or not found.done:
                left += candidate.work
            elif found.finished and found.result.get("seconds") is not None:  # 0.0 for a run that took next to no time
                operations, seconds = operations + candidate.work, seconds + found.result["seconds"]
        return f", about {clock(left * seconds / operations)} left in all" if operations else ""

    def _done(self, job: tuple[Candidate, int]) -> bool:
        found = self.find(*job)
        return found is not None and found.done

    def _train(self, candidate: Candidate, seed: int, say: Say) -> int:
        found = self.find(candidate, seed)
        options = replace(self.options, seed=seed, resume=found.folder if found else False)
        options = replace(options, brief=seed != candidate.recipe.seed)
        try:
            # A run goes on with the network as it was written then: only that it means the same is known.
            code = train(found.graph if found else candidate.graph, options).exit_code
        except CnnspecError as error:
            if error.diagnostics[0].code not in OWN:
                raise
            say(f"{candidate.label}, seed {seed} failed: {error.diagnostics[0].message}")
            code = 0
        self._look()
        return code

    def _check(self, jobs: Iterable[tuple[Candidate, int]], stop: Stop) -> None:
        """Refuse before the first run what a later one would refuse."""
        data: dict[str, ImageData] = {}
        for candidate in {id(candidate): candidate for candidate, _ in jobs}.values():
            graph, recipe = candidate.graph, candidate.recipe
            place = f"{recipe.data.model_dump_json()} {graph.input_shape[0]} {graph.output_shape}"
            if place not in data:
                data[place] = load_data(graph, recipe.data, self.options.data_dir, offline=self.options.offline)
            check_recipe(recipe, data[place])
            optimizer_of(to_module(graph), recipe, 1)
            stop.poll()

    def _tell_same(self, say: Say) -> None:
        """Say which networks are one and the same."""
        first: dict[str, str] = {}
        for candidate in self.candidates:
            label = first.setdefault(candidate.key, candidate.label)
            if label != candidate.label:
                say(f"`{candidate.label}` is the same network with the same recipe as `{label}`: they share their runs")

    def _tell_changes(self, say: Say) -> None:
        """Say which networks are not what they were when they were compared here before."""
        former: Any = read_result(self.folder, RESULT).get("rows", [])
        keys = {row.get("label"): row.get("key") for row in former if isinstance(row, dict)}
        for candidate in self.candidates:
            if keys.get(candidate.label, candidate.key) != candidate.key:
                say(f"`{candidate.label}` or its recipe has changed since it was compared here: it is trained anew")

    def row(self, candidate: Candidate, target: float | None) -> Row:
        """What the runs of a network came to."""
        runs: list[Run] = []
        for seed in self.seeds_of(candidate):
            found = self.find(candidate, seed)
            if found is None:
                runs.append(Run(seed, None, {}))
                continue
            shown = Path(os.path.relpath(found.folder, self.folder))
            runs.append(Run(seed, shown.as_posix(), found.result, epochs_of(found.folder)))
        graph = candidate.graph
        figures = (graph.parameter_count, graph.macs)
        return Row(candidate.label, graph.name, candidate.settings, candidate.key, *figures, tuple(runs), target)


def _from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder of a comparison.

    Raises:
        CnnspecError: E0506 if another one works in it, or it cannot be written.
    """
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        lock = hold(folder)
    except BlockingIOError:
        help = "wait for it, stop it, or choose another folder with `--out`"
        raise failure("E0506", "another process compares in this folder", file=str(folder), help=help) from None
    except OSError as error:
        why = f"cannot make the folder of a comparison: {error.strerror}"
        raise failure("E0506", why, file=str(folder), help="choose another with `--out`") from None
    with lock:
        yield


def _remove_unborn(runs: Path) -> None:
    """Delete what is left of runs that were killed before they had a result, so that the numbers stay as they are."""
    for path in runs.glob("*/*"):
        begun = (path / "result.json").exists() or any((path / "checkpoints").glob("*"))
        if path.name.isdigit() and not begun and not held(path):
            shutil.rmtree(path, ignore_errors=True)
