"""Train several networks over several seeds, and compare the results.

Every run is an ordinary run in the folder of the comparison, and is found by its network, recipe and seed. So nothing
is trained twice, interrupted runs are resumed, and whatever has changed is trained again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count, zip_longest
from pathlib import Path
from typing import IO, Any

from cnnspec.backends.torch.module import to_module
from cnnspec.diagnostics import CnnspecError, counted, failure, reason_of
from cnnspec.files import write_atomically
from cnnspec.ir import Graph
from cnnspec.recipe import Folder
from cnnspec.training.comparison.candidates import Candidate, Grid, candidates_from_runs, folder_name, make_candidates
from cnnspec.training.comparison.report import render
from cnnspec.training.comparison.table import Row, Run, format_csv, format_html, format_markdown, format_text
from cnnspec.training.data.datasets import DatasetCache
from cnnspec.training.data.folders import data_path
from cnnspec.training.data.locks import LOCK, acquire, is_locked, relock
from cnnspec.training.loop.launch import read_launch
from cnnspec.training.loop.optimizers import optimizer_for
from cnnspec.training.loop.signals import StopHandler, Stopped
from cnnspec.training.runs.folder import is_number, write_error
from cnnspec.training.runs.json_files import read_comparison, with_version
from cnnspec.training.runs.lookup import DIVERGED, StoredRun, epoch_rows, stored_runs
from cnnspec.training.runs.options import TrainOptions
from cnnspec.training.runs.progress import default_console, format_duration, print_line
from cnnspec.training.runs.train import check_recipe, train

NETWORK_ERRORS = (DIVERGED, "E0513")
"""Errors of a single network, after which the comparison continues. Any other error would affect all networks."""
RESULT, REPORT = "comparison.json", "report.html"
JOIN_SECONDS = 5
"""The longest time that another process may need to prepare the folder of a comparison."""
CLAIMS = "claims"
"""The folder with the lock files of the runs that a process trains, and of the results."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        folder: The folder of the comparison.
        state: `finished`, `failed` if a run failed, or `interrupted`.
        exit_code: 0, 1, or 128 plus the number of the signal that stopped it.
        rows: One row per network, in the given order.
        target: The accuracy up to which time is measured.
    """

    folder: Path
    state: str
    exit_code: int
    rows: tuple[Row, ...]
    target: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return with_version({"state": self.state, "target": self.target, "rows": [row.to_json() for row in self.rows]})

    def to_text(self, width: int = 120) -> str:
        """Return the table as text for a terminal."""
        return format_text(self.rows, self.target, width)

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        return format_markdown(self.rows, self.target)

    def to_csv(self) -> str:
        """Return the table as CSV."""
        return format_csv(self.rows, self.target)

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        return format_html(self.rows, self.target)

    def write(self) -> None:
        """Write the table to the folder in every format."""
        forms = {
            "table.txt": self.to_text(),
            "table.md": self.to_markdown(),
            "table.csv": self.to_csv(),
            RESULT: json.dumps(self.to_json(), indent=2) + "\n",
        }
        for name, text in forms.items():
            write_atomically(self.folder / name, text.encode())


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
    """Train networks over several seeds, unless they are trained already, and compare them.

    Several processes with the same networks and folder share the runs. Each of them waits for the last one.

    Args:
        specs: Files, names of shipped specs, or networks. Without any, the networks of `runs` are compared.
        seeds: The number of runs per network. Seeds count up from the seed of the recipe.
        grid: Values of parameters and recipe entries by name. Each network is trained with every combination of those
            that it has.
        options: The training options. Every run uses one device. `out` and `resume` are ignored.
        runs: Folders to search for finished runs of these networks, with any seed.
        target: An accuracy between 0 and 1. The training time to reach it is compared.
        out: The folder of the comparison, by default one in `comparisons` named after the networks.

    Raises:
        CnnspecError: A spec is invalid. E0506 if another comparison uses the folder, or it is not writable. E0524 under
            torchrun. Any error that would affect all networks. A network that diverges or does not fit into memory is
            reported as a failed run.
    """
    if read_launch() is not None:
        raise failure(
            "E0524",
            "a comparison cannot be started with torchrun or srun, whose processes train one run together",
            help="start each process of the comparison separately, or use `--jobs`; they share the runs in the folder",
        )
    options = options or TrainOptions(plots=False)
    console = options.console or default_console()

    def log(text: str, style: str | None = None) -> None:
        print_line(console, text, style)

    damaged: list[CnnspecError] = []
    reused = [found for folder in runs for found in stored_runs(Path(folder), damaged.append) if found.finished]
    if not specs and not reused and damaged:
        raise CnnspecError(diagnostic for error in damaged for diagnostic in error.diagnostics)
    for error in damaged:
        log_skipped(error, log)
    candidates = make_candidates(specs, grid or {}, options, log) if specs else candidates_from_runs(reused, runs)
    folder = Path(out) if out is not None else Path("comparisons") / folder_name(candidates)
    identity = _identity(candidates, seeds, target, runs)
    with _shared(folder, identity), StopHandler(lambda text: log(text, "yellow")) as stop:
        own = replace(options, out=folder / "runs", devices=1, console=console)
        datasets = DatasetCache(own.data_dir, offline=own.offline, images=own.images)
        if specs:
            stored = [*reused, *stored_runs(folder / "runs")]
            candidates = [_with_data(candidate, datasets, stored, log) for candidate in candidates]
        work = _ComparisonRuns(candidates, seeds if specs else 0, reused, folder, own, log)
        code = work.train_all(log, stop, datasets)
        with acquire(folder / CLAIMS / "results", wait=True):
            work.scan()
            rows = tuple(work.row(candidate, target) for candidate in candidates)
            failed = any(row.failed for row in rows)
            state = "interrupted" if code else "failed" if failed else "finished"
            done = Comparison(folder, state, code or int(failed), rows, target)
            try:
                done.write()
                if state != "interrupted":
                    page = render(candidates, rows, folder, target, own.data_dir, own.data, stored=not specs)
                    write_atomically(folder / REPORT, page.encode())
            except OSError as error:
                if error.errno is None:
                    raise
                raise write_error(
                    error, folder, then=", then repeat the comparison; finished runs are reused"
                ) from None
    return done


def _with_data(candidate: Candidate, datasets: DatasetCache, stored: Sequence[StoredRun], log: Log) -> Candidate:
    """Return a candidate with the identity of its dataset, so that only runs on the same data are reused.

    If the dataset is not there any more, that of the latest run is assumed.

    Raises:
        CnnspecError: The dataset is unsuitable, or it is not there and no run of the candidate is done.
    """
    setting = candidate.recipe.data
    try:
        inventory = datasets.load(candidate.graph, setting).inventory
    except CnnspecError as error:
        done = [run for run in stored if run.done and run.key_with(None) == candidate.key]
        missing = (
            not data_path(setting)[0].exists() if setting.name == Folder.name else error.diagnostics[0].code == "E0502"
        )
        if not (done and missing):
            raise
        log(f"the data of `{candidate.label}` is not compared with that of its runs: {error.diagnostics[0].message}")
        return replace(candidate, data=done[-1].data)
    return replace(candidate, data=inventory and inventory.identity.digest)


def log_skipped(error: CnnspecError, log: Log) -> None:
    """Log that a file is left out because it cannot be read."""
    found = error.diagnostics[0]
    log(f"{found.file} is left out: {'; '.join([found.message, *found.notes])}")


class _ComparisonRuns:
    """The runs of a comparison, existing and missing."""

    def __init__(
        self,
        candidates: list[Candidate],
        seeds: int,
        reused: list[StoredRun],
        folder: Path,
        options: TrainOptions,
        log: Log,
    ) -> None:
        self.candidates, self.seeds, self.folder, self.options = candidates, seeds, folder, options
        self._reused: dict[str, dict[int, StoredRun]] = {}
        for found in reused:
            self._reused.setdefault(found.key, {}).setdefault(found.seed, found)
        self._own: dict[tuple[str, int], StoredRun] = {}
        self.scan(lambda error: log_skipped(error, log))

    def scan(self, skipped: Callable[[CnnspecError], None] = lambda error: None) -> None:
        """Read the runs in the folder. Among duplicates, keep one that is done, or the latest."""
        for found in stored_runs(self.folder / "runs", skipped):
            previous = self._own.get((found.key, found.seed))
            if previous is None or not previous.done:
                self._own[found.key, found.seed] = found

    def find(self, candidate: Candidate, seed: int) -> StoredRun | None:
        """Return the run of a network with a seed, if there is one."""
        return self._reused.get(candidate.key, {}).get(seed) or self._own.get((candidate.key, seed))

    def seeds_of(self, candidate: Candidate) -> list[int]:
        """Return the seeds of the reused runs, and further ones up to the requested number."""
        elsewhere = self._reused.get(candidate.key, {})
        own = (seed for seed in count(candidate.recipe.seed) if seed not in elsewhere)
        return sorted([*elsewhere, *(next(own) for _ in range(self.seeds - len(elsewhere)))])

    def jobs(self) -> list[tuple[Candidate, int]]:
        """Return all runs, ordered by seed first. Identical networks share their runs."""
        different = {candidate.key: candidate for candidate in reversed(self.candidates)}
        networks = [candidate for candidate in self.candidates if different[candidate.key] is candidate]
        by_network = ([(candidate, seed) for seed in self.seeds_of(candidate)] for candidate in networks)
        return [job for round_ in zip_longest(*by_network) for job in round_ if job is not None]

    def train_all(self, log: Log, stop: StopHandler, datasets: DatasetCache) -> int:
        """Train the missing runs. Return the exit code of a stop, or 0."""
        jobs = self.jobs()
        done = sum(found is not None and found.done for found in (self.find(*job) for job in jobs))
        ready = f", {done} of them done" if done else ""
        log(f"comparing {len(self.candidates)} networks in {self.folder}: {len(jobs)} runs{ready}")
        self._log_duplicates(log)
        if done == len(jobs):
            return 0
        try:
            self._check([job for job in jobs if not self._done(job)], stop, datasets)
            datasets.clear()  # every run loads its own
            self._log_changes(log)
            return self._train_missing(jobs, log, stop)
        except Stopped:
            command = self.options.resume_command
            log(
                f"stopped; resume with `{command}`" if command else "stopped; start the same comparison again to resume"
            )
            return stop.exit_code

    def _train_missing(self, jobs: list[tuple[Candidate, int]], log: Log, stop: StopHandler) -> int:
        """Train the runs that no other process trains, and wait for those of the others. Return the exit code.

        Raises:
            Stopped: A stop was requested between two runs.
        """
        left, waits = dict(enumerate(jobs, 1)), False
        while left:
            before = len(left)
            for number, job in list(left.items()):
                stop.poll()
                with self._claim(job) as is_free:
                    if is_free and not self._done(job):
                        log(f"run {number} of {len(jobs)}: {job[0].label}, seed {job[1]}{self._time_left(jobs)}")
                        if code := self._train(*job, log):
                            return code
                if is_free:
                    del left[number]
            if left and len(left) == before:
                if not waits:
                    log(f"waiting for other processes to end {counted(len(left), 'run')}")
                waits = True
                time.sleep(0.5)
        return 0

    @contextmanager
    def _claim(self, job: tuple[Candidate, int]) -> Iterator[bool]:
        """Lock a run among the processes of the comparison, and read it again. False if another process trains it."""
        candidate, seed = job
        if self._done(job):
            yield True
            return
        try:
            lock = acquire(self.folder / CLAIMS / f"{candidate.key}-{seed}")
        except BlockingIOError:
            yield False
            return
        with lock:
            self.scan()
            yield True

    def _time_left(self, jobs: Sequence[tuple[Candidate, int]]) -> str:
        """Estimate the time of the remaining runs from that of finished ones, in proportion to their operations."""
        operations = seconds = left = 0.0
        for candidate, seed in jobs:
            found = self.find(candidate, seed)
            if found is None or not found.done:
                left += candidate.work
            elif found.finished and found.result.get("seconds") is not None:  # 0.0 for a very short run
                operations, seconds = operations + candidate.work, seconds + found.result["seconds"]
        return f", about {format_duration(left * seconds / operations)} left in total" if operations else ""

    def _done(self, job: tuple[Candidate, int]) -> bool:
        found = self.find(*job)
        return found is not None and found.done

    def _train(self, candidate: Candidate, seed: int, log: Log) -> int:
        found = self.find(candidate, seed)
        options = replace(self.options, seed=seed, resume=found.folder if found else False)
        options = replace(options, brief=seed != candidate.recipe.seed)
        try:
            # A resumed run uses the graph in its folder, which is equivalent but may be written differently.
            code = train(found.graph if found else candidate.graph, options).exit_code
        except CnnspecError as error:
            if error.diagnostics[0].code not in NETWORK_ERRORS:
                raise
            log(f"{candidate.label}, seed {seed} failed: {error.diagnostics[0].message}")
            code = 0
        self.scan()
        return code

    def _check(self, jobs: Iterable[tuple[Candidate, int]], stop: StopHandler, datasets: DatasetCache) -> None:
        """Raise the errors of all runs before the first one starts."""
        for candidate in {id(candidate): candidate for candidate, _ in jobs}.values():
            graph, recipe = candidate.graph, candidate.recipe
            check_recipe(recipe, datasets.load(graph, recipe.data))
            optimizer_for(to_module(graph), recipe, 1)
            stop.poll()

    def _log_duplicates(self, log: Log) -> None:
        """Log which networks are identical."""
        first: dict[str, str] = {}
        for candidate in self.candidates:
            label = first.setdefault(candidate.key, candidate.label)
            if label != candidate.label:
                log(f"`{candidate.label}` is the same network with the same recipe as `{label}`: their runs are shared")

    def _log_changes(self, log: Log) -> None:
        """Log which networks have changed since the last comparison in this folder."""
        try:
            keys = read_comparison(self.folder / RESULT)
        except CnnspecError as error:
            log_skipped(error, log)
            return
        for candidate in self.candidates:
            if keys.get(candidate.label, candidate.key) != candidate.key:
                log(
                    f"the network, recipe or data of `{candidate.label}` has changed since the last comparison"
                    " in this folder:"
                    " it is trained again"
                )

    def row(self, candidate: Candidate, target: float | None) -> Row:
        """Collect the results of a network."""
        runs: list[Run] = []
        for seed in self.seeds_of(candidate):
            found = self.find(candidate, seed)
            if found is None:
                runs.append(Run(seed, None, {}))
                continue
            shown = Path(os.path.relpath(found.folder, self.folder))
            runs.append(Run(seed, shown.as_posix(), found.result, epoch_rows(found.folder)))
        graph = candidate.graph
        figures = (graph.parameter_count, graph.macs)
        return Row(candidate.label, graph.name, candidate.settings, candidate.key, *figures, tuple(runs), target)


def _identity(candidates: Sequence[Candidate], seeds: int, target: float | None, runs: Sequence[str | Path]) -> str:
    """Return a hash of what the processes of a comparison must share."""
    networks = [(candidate.label, candidate.key) for candidate in candidates]
    text = json.dumps([networks, seeds, target, sorted(map(str, runs))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _shared(folder: Path, identity: str) -> Iterator[None]:
    """Lock the folder of a comparison for processes with the same identity.

    Raises:
        CnnspecError: E0506 if another comparison has locked it, or it cannot be written.
    """
    claims = folder / CLAIMS
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        lock = _join(folder, identity)
        claims.mkdir(exist_ok=True)
    except BlockingIOError:
        help = "wait for it, stop it, or choose another folder with `--out`"
        raise failure(
            "E0506", "the comparison folder is in use by another comparison", file=str(folder), help=help
        ) from None
    except OSError as error:
        why = f"cannot create the comparison folder: {reason_of(error)}"
        place = str(error.filename or folder / LOCK)
        raise failure("E0506", why, file=place, help="choose another folder with `--out`") from None
    try:
        yield
    finally:
        with suppress(OSError), lock:
            relock(lock)  # fails unless this is the last process
            shutil.rmtree(claims, ignore_errors=True)


def _join(folder: Path, identity: str) -> IO[str]:
    """Lock a folder alone and prepare it, or together with processes of the same identity.

    Raises:
        BlockingIOError: Another comparison has locked it.
        OSError: It cannot be written.
    """
    path = folder / LOCK
    try:
        lock = acquire(path)
    except BlockingIOError:
        lock = _acquire_shared(path)
        if lock.read(len(identity) + 1) != identity:
            lock.close()
            raise
        return lock
    _remove_unstarted(folder / "runs")
    lock.truncate(0)
    lock.write(identity)
    lock.flush()
    relock(lock, shared=True)
    return lock


def _acquire_shared(path: Path) -> IO[str]:
    """Wait while the first process prepares a folder, or the last one leaves it.

    Raises:
        BlockingIOError: Another process keeps the folder for itself.
    """
    end = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            return acquire(path, shared=True)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _remove_unstarted(runs: Path) -> None:
    """Delete runs that were killed before they had a result, so that the numbering has no gaps."""
    for path in runs.glob("*/*"):
        begun = (path / "result.json").exists() or any((path / "checkpoints").glob("*"))
        if is_number(path.name) and not begun and not is_locked(path / LOCK):
            shutil.rmtree(path, ignore_errors=True)
