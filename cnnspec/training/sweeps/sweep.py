"""Run a sweep: check, train and compare candidates, and write the best one as a spec."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from cnnspec.backends.torch.module import to_module
from cnnspec.compiler import compile_file, compile_source, locate
from cnnspec.diagnostics import CnnspecError, Reporter, Source, failure, printable_line
from cnnspec.files import write_atomically
from cnnspec.ir import Graph
from cnnspec.rewrite.set_values import apply_values, same
from cnnspec.semantics.loader import read_text
from cnnspec.training.data.datasets import load_data
from cnnspec.training.data.locks import LOCK, is_locked
from cnnspec.training.loop.autotune import choose_tuning
from cnnspec.training.loop.launch import read_launch
from cnnspec.training.loop.machine import device_of
from cnnspec.training.loop.signals import StopHandler, Stopped
from cnnspec.training.runs.folder import is_number
from cnnspec.training.runs.json_files import read_result
from cnnspec.training.runs.options import Result, TrainOptions, effective_recipe, lightning_precision
from cnnspec.training.runs.progress import default_console, print_line
from cnnspec.training.runs.train import train
from cnnspec.training.sweeps.space import Candidate, Space
from cnnspec.training.sweeps.study import Candidates, Pruned, SharedStudy, TrainedCandidate, Trial

MAX_REJECTED = 60
"""The number of consecutive rejected candidates after which a sweep ends."""
STATUS_INTERVAL = 20.0
"""Seconds between two lines about a running trial without a terminal."""
CANDIDATE_ERRORS = ("E0509", "E0512", "E0513")
"""Training errors that a candidate can cause: divergence, invalid settings, too little memory."""


@dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep.

    Attributes:
        trials: The number of candidates to train, over all processes.
        max_params: The maximum number of parameters of a candidate.
        max_macs: The maximum number of multiply-adds of a candidate.
        out: The folder of the sweep, by default `sweeps/NAME`.
        storage: The URL of a database that several machines share, by default a file in the folder.
        pruner: The rule that ends bad trials early: `median`, `halving` or `none`.
        allow_huge: Allow more parameters than the limit of the language.
        train: The training options of a candidate. `out`, `resume`, `weights`, `watch` and `devices` are ignored.
        console: The console for progress, by default the standard output.
    """

    trials: int = 20
    max_params: int | None = None
    max_macs: int | None = None
    out: Path | None = None
    storage: str | None = None
    pruner: str = "median"
    allow_huge: bool = False
    train: TrainOptions = field(default_factory=lambda: TrainOptions(plots=False))
    console: Console | None = None


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep.

    Attributes:
        folder: The folder of the sweep.
        state: `finished`, `exhausted` if all candidates were tried, or `interrupted`.
        exit_code: 0, or 128 plus the number of the signal that stopped it.
        best: The spec of the best candidate, or None.
        values: The outcome as plain data, with `trials` from best to worst.
        error: The error that prevented writing the spec of the best candidate.
    """

    folder: Path
    state: str
    exit_code: int
    best: Path | None
    values: dict[str, Any]
    error: CnnspecError | None = None


def sweep(
    spec: str | Path, space: Mapping[str, str | Sequence[Any]] | Space, options: SweepOptions | None = None
) -> SweepResult:
    """Search for the candidate with the best validation accuracy, alone or together with other processes.

    Args:
        spec: A file, or the name of a shipped spec.
        space: For each name that `--set` accepts, a list of values or a range as text: `{"c": [16, 32],
            "lr": "0.01..0.1"}`.
        options: The other options.

    Raises:
        CnnspecError: The spec or the space is invalid. E0511 without validation images. E0516 for the storage.
            E0517 if no candidate passes. Errors of `train`.
    """
    options = options or SweepOptions()
    space = space if isinstance(space, Space) else Space.of(space)
    if read_launch() is not None:
        raise failure(
            "E0516", "a sweep cannot be started with torchrun or srun",
            help="start each process of the sweep separately; they share the trials through the storage",
        )  # fmt: skip
    return _Sweep(spec, space, options).run()


class _Interrupted(Exception):
    """The run of a trial was interrupted and can be resumed."""


class _Sweep:
    """One process of a sweep."""

    def __init__(self, spec: str | Path, space: Space, options: SweepOptions) -> None:
        self.spec, self.space, self.options = spec, space, options
        self.console = options.console or default_console()
        self.path, self.name = locate(spec)
        reporter = Reporter()
        text = read_text(self.path, self.name, reporter)
        if text is None:
            raise CnnspecError(reporter.sorted())
        self.text = text
        self.base = self._require(space.fixed)
        self._check_names()
        self.folder = options.out or Path("sweeps") / self.base.name
        recipe = effective_recipe(self.base, options.train)
        data = load_data(
            self.base,
            recipe.data,
            options.train.data_dir,
            offline=options.train.offline,
            images=options.train.images,
        )
        if data.val is None:
            raise failure(
                "E0511", "a sweep requires validation images, and the dataset has none",
                notes=["the test images are not used to select a candidate"], help="hold out some images with `val=`",
            )  # fmt: skip
        self.dataset = data.inventory and data.inventory.identity.digest[:16]
        self.train_options = self._tuned_options(recipe.batch)
        self.exit_code = 0

    def _check_names(self) -> None:
        """Raise an error if the spec does not have a searched name, because no candidate would be valid."""
        overrides = self.options.train.overrides(self.base.recipe)
        for name, axis in self.space.axes.items():
            if name in overrides:
                raise failure(
                    "E0204", f"`{name}` is both searched and set by an option", help=f"remove one of the two `{name}`"
                )
            value = axis.text(axis.all()[0]) if axis.count is not None else axis.text(axis.low)  # type: ignore[union-attr]
            found = self._compile({**self.space.fixed, name: value})
            if isinstance(found, CnnspecError) and any(d.code in ("E0217", "E0204") for d in found.diagnostics):
                raise found

    def _require(self, candidate: Candidate) -> Graph:
        source = Source(self.name, self.text)
        return compile_source(source, self.path, candidate, allow_huge=self.options.allow_huge).require_graph()

    def _compile(self, candidate: Candidate) -> Graph | CnnspecError:
        try:
            return self._require(candidate)
        except CnnspecError as error:
            return error

    def _tuned_options(self, batch: int) -> TrainOptions:
        """Return the training options of all candidates. Memory format and threads are measured once, on the spec."""
        options = self.options.train
        device = device_of(options.accelerator)
        if device.type == "cuda" and not torch.cuda.is_available():
            return replace(options, devices=1)  # Lightning reports the missing GPU
        precision = lightning_precision(options.precision or self.base.recipe.precision, device)
        tuned = choose_tuning(
            self.base, to_module(self.base), batch, device, options.memory_format, options.threads, precision
        )
        return replace(options, devices=1, memory_format=tuned.memory_format, threads=tuned.threads)

    def _terms(self) -> dict[str, Any]:
        """Return the settings that all processes of the sweep must share."""
        options, given = self.options, self.options.train.overrides(self.base.recipe)
        if "data" in given:
            given["data"] = {"name": given["data"].name, **given["data"].args, "path": None}
        recipe = self.base.model.recipe  # without the folder of the spec, which may be moved
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"base": None})})
        model = self.base.model.model_copy(update={"recipe": recipe})
        network = hashlib.sha256(model.model_dump_json().encode()).hexdigest()[:16]
        return {
            "network": network,
            "space": json.dumps(self.space.to_json()),
            "max_params": options.max_params,
            "max_macs": options.max_macs,
            "pruner": options.pruner,
            "dataset": self.dataset,
            **{name: value if type(value) is int else str(value) for name, value in given.items()},
        }

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> SweepResult:
        seed = effective_recipe(self.base, self.options.train).seed
        options = self.options
        self.stop = StopHandler(lambda text: self._log(text, "yellow"))
        study = SharedStudy(
            self.folder,
            options.storage,
            self.folder.resolve().name,
            self.space,
            seed,
            options.pruner,
            self._terms(),
            lambda: self.stop.requested,
        )
        self.study, ended = study, True
        try:
            with self.stop:
                state = self._work()
            return self._result(state)
        except Exception as error:
            if (explained := study.address.explain(error)) is error:
                raise
            ended = False
            raise explained from error
        finally:
            study.close(ended=ended)

    def _work(self) -> str:
        """Work until all trials have ended. Return the final state."""
        study = self.study
        candidates = study.refresh()
        done = len(candidates.ended)
        self._log(
            f"sweep of {self.base.name}: {self.options.trials} trials in {self.folder}"
            + (f", {done} of them done" if done else "")
        )
        try:
            while True:
                self.stop.poll()
                candidates = study.refresh()
                if len(candidates.ended) >= self.options.trials:
                    return "finished"
                self._check_progress(candidates)
                waiting = any(candidate.state == "waiting" for candidate in candidates.trained)
                orphan = next((candidate for candidate in candidates.trained if candidate.state == "retry"), None)
                if orphan is not None:
                    study.reopen(orphan)
                elif waiting or len(candidates.trained) < self.options.trials:
                    if not waiting and self.space.size is not None and len(candidates.tried()) >= self.space.size:
                        if len(candidates.ended) == len(candidates.trained):
                            return "exhausted"
                        time.sleep(0.5)
                        continue
                    study.work(self._trial)
                else:  # other processes work on the rest
                    time.sleep(0.5)
        except Stopped:
            self.exit_code = self.stop.exit_code
        except _Interrupted:
            pass
        return "interrupted"

    def _check_progress(self, candidates: Candidates) -> None:
        """End a sweep that finds nothing to train.

        Raises:
            CnnspecError: E0517.
        """
        last = max((candidate.number for candidate in candidates.trained), default=-1)
        rejected = [trial for trial in candidates.rejected if trial.number > last]
        everything = (
            not candidates.trained and self.space.size is not None and len(candidates.tried()) >= self.space.size
        )
        if len(rejected) < MAX_REJECTED and not everything:
            return
        found = [trial.user_attrs["candidate"] for trial in rejected]
        notes = [f"{_format_values(found[0]['values'])}: {found[0]['reason']}"]
        if sizes := [one["sizes"] for one in found if one["sizes"]]:
            least = {key: min(size[key] for size in sizes) for key in ("parameters", "macs")}
            notes.append(f"the minimum was {least['parameters']:,} parameters and {least['macs']:,} multiply-adds")
        error = failure(
            "E0517", f"no valid candidate: {len(found):,} consecutive candidates were rejected", file=self.name,
            notes=notes, help="raise `--max-params` or `--max-macs`, or search other values",
        )  # fmt: skip
        own = self._compile(found[0]["values"])
        raise CnnspecError([*error.diagnostics, *(own.diagnostics if isinstance(own, CnnspecError) else ())])

    # --- one trial -------------------------------------------------------------------------------

    def _trial(self, trial: Trial) -> float:
        """Train a new candidate or a queued attempt, and return its validation accuracy."""
        if "attempt_of" in trial.user_attrs:
            candidate = self.study.claim(trial)
            return self._train(trial, candidate.number, candidate.values, self._require(candidate.values))
        values = self.study.propose(trial)
        found = self._compile(values)
        sizes = {"parameters": found.parameter_count, "macs": found.macs} if isinstance(found, Graph) else {}
        reason = self._rejection(found)
        if reason is not None:
            self._log(f"trial {trial.number}  {_format_values(values)}  rejected: {reason}")
        self.study.record(trial, values, sizes, reason)
        assert isinstance(found, Graph)
        self.study.decide(trial, self.options.trials, self.stop.poll)
        return self._train(trial, trial.number, values, found)

    def _rejection(self, found: Graph | CnnspecError) -> str | None:
        """Return the reason why a candidate is not trained, or None."""
        if isinstance(found, CnnspecError):
            return f"{found.diagnostics[0].code}: {found.diagnostics[0].message}"
        most = {"parameters": self.options.max_params, "multiply-adds": self.options.max_macs}
        for (what, limit), size in zip(most.items(), (found.parameter_count, found.macs), strict=True):
            if limit is not None and size > limit:
                return f"{size:,} {what} exceed the limit of {limit:,}"
        return None

    def _train(self, trial: Trial, number: int, values: Candidate, graph: Graph) -> float:
        out = self.folder / "trials" / str(number)
        run = self._wait_for_run(out / graph.name, number)
        begun, problem = _result_of(run)
        if problem:
            self._log(f"trial {number} starts again: {problem}", "yellow")
        if begun.get("state") == "finished" and begun.get("val_acc") is not None:  # its process died after the end
            self._log_end(number, values, f"val acc {begun['val_acc']:.2%}")
            return begun["val_acc"]
        out.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        epochs = effective_recipe(graph, self.train_options).epochs
        with (out / "log.txt").open("a", encoding="utf-8") as log, self._status() as show:

            def watch(epoch: int, scores: Mapping[str, float]) -> bool:
                show(
                    f"trial {number}  {_format_values(values)}  epoch {epoch}/{epochs}  val acc {scores['val_acc']:.2%}"
                )
                return self.study.report(trial, epoch, scores["val_acc"])

            options = replace(
                self.train_options, out=out, watch=watch, console=Console(force_jupyter=False, file=log, width=120)
            )
            show(f"trial {number}  {_format_values(values)}  epoch 1/{epochs}")
            try:
                result = self._run(
                    graph, options, run if begun.get("state", "finished") != "finished" else None, number
                )
            except CnnspecError as error:
                if error.diagnostics[0].code not in CANDIDATE_ERRORS:
                    raise
                trial.set_user_attr("reason", error.diagnostics[0].message)
                self._log_end(number, values, error.diagnostics[0].message, start)
                raise Pruned from None
        if result.state == "interrupted":
            self.exit_code = result.exit_code
            raise _Interrupted
        if result.state == "pruned":
            self._log_end(number, values, f"pruned after epoch {result.values['epochs']}", start)
            raise Pruned
        accuracy: float = result.values["val_acc"]
        self._log_end(number, values, f"val acc {accuracy:.2%}", start)
        return accuracy

    def _wait_for_run(self, runs: Path, number: int) -> Path | None:
        """Return the newest run of a trial. Wait for a process that still trains it, such as one that was suspended."""
        told = False
        while (run := _newest(runs)) is not None and is_locked(run / LOCK):
            if not told:
                self._log(f"trial {number} waits for another process that trains it in {run}", "yellow")
            told = True
            self.stop.poll()
            time.sleep(0.5)
        return run

    def _run(self, graph: Graph, options: TrainOptions, run: Path | None, number: int) -> Result:
        """Train a candidate. Resume an earlier attempt unless it is damaged or was made with other settings."""
        if run is not None:
            try:
                return train(graph, replace(options, resume=run))
            except CnnspecError as error:
                found = error.diagnostics[0]
                if found.code != "E0506":
                    raise
                self._log(f"trial {number} starts again: {'; '.join([found.message, *found.notes])}", "yellow")
        return train(graph, options)

    # --- messages -------------------------------------------------------------------------------

    def _log(self, text: str, style: str | None = None) -> None:
        print_line(self.console, text, style)

    def _log_end(self, number: int, values: Candidate, how: str, start: float | None = None) -> None:
        done = len(self.study.refresh().ended) + 1
        took = f"  {time.monotonic() - start:.1f} s" if start is not None else ""
        self._log(f"{done}/{self.options.trials}  trial {number}  {_format_values(values)}  {how}{took}")

    @contextmanager
    def _status(self) -> Generator[Callable[[str], None]]:
        """Provide a function that shows the progress of a trial, in one updating line on a terminal."""
        if self.console.is_terminal:
            with self.console.status("") as status:
                yield lambda text: status.update(Text(printable_line(text)))
            return
        last = time.monotonic()

        def show(text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= STATUS_INTERVAL:
                last = time.monotonic()
                self._log(text)

        yield show

    # --- results ---------------------------------------------------------------------------------

    def _result(self, state: str) -> SweepResult:
        candidates = self.study.refresh()
        rows = [self._row(candidate) for candidate in sorted(candidates.ended, key=_rank)]
        best: Path | None = None
        error: CnnspecError | None = None
        values: dict[str, Any] = {
            "network": self.base.name,
            "state": state,
            "folder": str(self.folder),
            "space": self.space.to_json(),
            "trials": rows,
            "rejected": len(candidates.rejected),
            "best": None,
        }
        if rows and rows[0]["state"] == "finished":
            best, error = self._write_best(rows[0]["values"])
            run = self.folder / rows[0]["run"] if rows[0]["run"] else None
            weights = run / "checkpoints" / "best.safetensors" if run else None
            values["best"] = {
                **rows[0],
                "spec": str(best) if best else None,
                "weights": str(weights) if weights and weights.exists() else None,
                "test_acc": _result_of(run)[0].get("test_acc"),
            }
        return SweepResult(self.folder, state, self.exit_code, best, values, error)

    def _row(self, candidate: TrainedCandidate) -> dict[str, Any]:
        run = _newest(self.folder / "trials" / str(candidate.number) / self.base.name)
        return {
            "trial": candidate.number,
            "state": candidate.state,
            "reason": candidate.last.user_attrs.get("reason"),
            "values": candidate.values,
            **candidate.sizes,
            "val_acc": candidate.accuracy,
            "epochs": len(candidate.last.intermediate_values),
            "seconds": candidate.seconds,
            "run": str(run.relative_to(self.folder)) if run else None,
        }

    def _write_best(self, values: Candidate) -> tuple[Path | None, CnnspecError | None]:
        """Write the spec of a candidate and the files that it uses, and check that it still means the same."""
        target, root = self.folder / "best.cnn", self.path.parent.resolve()
        try:
            text = apply_values(self.text, self.name, values, self.path, allow_huge=self.options.allow_huge)
            written = compile_source(Source(self.name, text), self.path, allow_huge=self.options.allow_huge)
            others = [path for path in written.files if path != self.path.resolve() and path.is_relative_to(root)]
            if target.resolve() in (self.path.resolve(), *others):
                raise failure(
                    "E0518", "the best spec would overwrite a file of the original spec", file=str(target),
                    help="choose another folder with `--out`",
                )  # fmt: skip
            for path in others:
                copy = self.folder / path.relative_to(root)
                if not copy.exists():
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(copy, path.read_bytes())
            write_atomically(target, text.encode())
            found = compile_file(target, allow_huge=self.options.allow_huge)
            if found.graph is None or not same(found.graph, written.require_graph()):
                target.unlink()
                raise failure(
                    "E0518", "the best spec describes another network in the sweep folder", file=str(target),
                    notes=["the spec uses other files, and the folder contains different files with their names"],
                    help="choose another folder with `--out`",
                )  # fmt: skip
        except CnnspecError as error:
            return None, error
        return target, None


def _result_of(run: Path | None) -> tuple[dict[str, Any], str | None]:
    """Return the result of a run, and what is wrong with it. The result is empty if there is none, or it is damaged."""
    try:
        return {} if run is None else read_result(run), None
    except CnnspecError as error:
        found = error.diagnostics[0]
        return {}, "; ".join([f"{found.message} of {run}", *found.notes])


def _newest(runs: Path) -> Path | None:
    return max((path for path in runs.glob("*") if is_number(path.name)), key=lambda path: int(path.name), default=None)


def _rank(candidate: TrainedCandidate) -> tuple[bool, float, int, int]:
    """Sort finished candidates first, then by accuracy, then by size."""
    accuracy = -1.0 if candidate.accuracy is None else candidate.accuracy
    return (candidate.state != "finished", -accuracy, candidate.sizes["parameters"], candidate.number)


def _format_values(values: Candidate) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())
