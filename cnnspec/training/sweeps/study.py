"""Manage the trials of a sweep in a storage that several processes share, with Optuna.

Optuna numbers trials in the order in which they start, and stores attributes for each. All agreement between processes
follows from that, without a lock:

- A **candidate** is a trial that Optuna proposed. Its own process decides once whether it is rejected, a duplicate,
  surplus, or trained. It waits until all earlier candidates are decided, so every process comes to the same decision.
- A trained candidate has **attempts**: its own trial, and further ones if that fails. An attempt counts only if all
  earlier ones have failed. So one process at a time works on a candidate.
- A trial whose process has died **fails**: on the same machine as soon as the lock of the process is free, on other
  machines when its heartbeat stops. Optuna ends a trial only once, so only one process can mark it.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import socket
import sqlite3
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from sqlalchemy import URL

from cnnspec.diagnostics import CnnspecError, failure, one_line, reason_of
from cnnspec.files import first_problem, open_regular, unreadable
from cnnspec.limits import MAX_DATABASE_BYTES
from cnnspec.training.data import locks
from cnnspec.training.sweeps.space import Axis, Candidate, Choice, Space
from cnnspec.training.sweeps.storage import Address

NAMELESS = 15
"""Seconds after which a trial without the name of a process fails."""
DEATHS = 3
"""The number of dead processes after which a candidate is not tried again."""
PRUNERS: Mapping[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": optuna.pruners.MedianPruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "none": optuna.pruners.NopPruner,
}

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", "Heartbeat of storage")


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Sizes(_Part):
    parameters: int | None = None
    macs: int | None = None


class _Candidate(_Part):
    values: dict[str, str]
    sizes: _Sizes
    reason: str | None


class _Attributes(_Part):
    """The attributes of a trial."""

    candidate: _Candidate | None = None
    attempt_of: int | None = None
    verdict: Literal["trained", "duplicate", "surplus"] | None = None
    worker: str | None = None
    stopped: bool | None = None
    dropped: bool | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        trained = self.verdict == "trained"
        if trained and (self.candidate is None or None in (self.candidate.sizes.parameters, self.candidate.sizes.macs)):
            raise ValueError("a trained candidate has no values or sizes")
        return self


def _check_database(path: Path) -> None:
    """Check that a file is a database with plain tables, in which reading a table runs nothing else.

    Raises:
        CnnspecError: E0516 if it is not.
    """
    with open_regular(path, MAX_DATABASE_BYTES, "E0516", inside=path.parent) as file:
        start = b"" if file is None else file.read(16)
    if not start:  # new
        return
    if start != b"SQLite format 3\0":
        raise unreadable(path, "it is not an SQLite database", "E0516")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=60)) as database:
            objects = database.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_master LIMIT 1000").fetchall()
            for kind, name, sql in objects:
                plain = kind in ("table", "index") and not re.search(r"\bvirtual\b|\bgenerated\b|\bas\s*\(", sql, re.I)
                if not plain:
                    raise unreadable(path, f"`{name}` is not a plain table", "E0516")
    except (sqlite3.Error, UnicodeDecodeError, TypeError) as error:
        raise unreadable(path, one_line(error), "E0516") from None


Pruned = optuna.TrialPruned
"""Ends a trial that counts but was not completed."""


class TrialDiscarded(Exception):
    """This trial does not count: it is a duplicate, surplus, or taken by another process."""


class Candidates:
    """A snapshot of the trials of a study."""

    def __init__(self, trials: list[FrozenTrial]) -> None:
        self.trials = trials
        self.proposed = [trial for trial in trials if "attempt_of" not in trial.user_attrs]
        self.trained = [self._candidate(trial) for trial in self.proposed if _verdict(trial) == "trained"]
        self.rejected = [trial for trial in self.proposed if _verdict(trial) == "rejected"]

    def _candidate(self, trial: FrozenTrial) -> TrainedCandidate:
        others = [t for t in self.trials if t.user_attrs.get("attempt_of") == trial.number]
        return TrainedCandidate(trial, [trial, *(t for t in others if "dropped" not in t.user_attrs)])

    def tried(self) -> set[tuple[str, ...]]:
        """Return the values of all candidates that were trained or rejected."""
        return {_values_of(trial) for trial in self.proposed if _verdict(trial) in ("trained", "rejected")}

    def undecided(self, before: int) -> list[FrozenTrial]:
        """Return the candidates before a number that are not decided yet."""
        return [
            trial
            for trial in self.proposed
            if trial.number < before and trial.state == TrialState.RUNNING and _verdict(trial) is None
        ]

    @property
    def ended(self) -> list[TrainedCandidate]:
        return [candidate for candidate in self.trained if candidate.ended]


@dataclass(frozen=True)
class TrainedCandidate:
    """A candidate that is selected for training.

    Attributes:
        proposal: The trial that proposed it and provides its number.
        attempts: The trials that train it, in order.
    """

    proposal: FrozenTrial
    attempts: list[FrozenTrial]

    @property
    def number(self) -> int:
        return self.proposal.number

    @property
    def values(self) -> Candidate:
        return self.proposal.user_attrs["candidate"]["values"]

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of `parameters` and `macs`."""
        return self.proposal.user_attrs["candidate"]["sizes"]

    @cached_property
    def last(self) -> FrozenTrial:
        """The attempt that ended, runs, or waits, or else the latest one."""
        rank = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL)
        return min(reversed(self.attempts), key=lambda trial: rank.index(trial.state))

    @property
    def state(self) -> str:
        """The state: `running`, `waiting` or `retry`, and at the end `finished`, `pruned`, `failed` or `crashed`."""
        last = self.last
        if last.state == TrialState.PRUNED:
            return "failed" if "reason" in last.user_attrs else "pruned"
        states = {TrialState.COMPLETE: "finished", TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}
        deaths = sum(1 for trial in self.attempts if "stopped" not in trial.user_attrs)
        return states.get(last.state) or ("crashed" if deaths >= DEATHS else "retry")

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "pruned", "failed", "crashed")

    @property
    def accuracy(self) -> float | None:
        """The best validation accuracy so far."""
        last = self.last
        if last.state == TrialState.COMPLETE:
            return last.value
        return max(last.intermediate_values.values(), default=None)

    @property
    def seconds(self) -> float:
        """The total duration of all attempts in seconds."""
        taken = (t.duration.total_seconds() for t in self.attempts if t.duration is not None)
        return round(sum(taken), 1)


def _verdict(trial: FrozenTrial) -> str | None:
    """Return the decision on a candidate: `rejected`, `trained`, `duplicate` or `surplus`, or None before."""
    if trial.user_attrs.get("candidate", {}).get("reason") is not None:
        return "rejected"
    return trial.user_attrs.get("verdict")


def _values_of(trial: FrozenTrial) -> tuple[str, ...]:
    found: Any = trial.user_attrs.get("candidate")
    return tuple(f"{name}={value}" for name, value in sorted(found["values"].items())) if found else ()


class _Proposals(BaseSampler):
    """Optuna's TPE sampler, seeded by the number of the trial, without repeating candidates.

    So a sweep in one process proposes the same candidates again, even after an interruption, and two processes do not
    propose the same.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed
        self._distributions = {name: _distribution(axis) for name, axis in space.axes.items()}
        self._inner: BaseSampler = RandomSampler(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner = TPESampler(seed=self._seed_of(trial), constant_liar=True)
        self._inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self._inner.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {} if trial.params else self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        tried = Candidates(study.get_trials(deepcopy=False)).tried()
        joint_space = self._inner.infer_relative_search_space(study, trial)
        chosen = self._inner.sample_relative(study, trial, joint_space)
        random_sampler = RandomSampler(self._seed_of(trial))
        for _ in range(50):
            for name, distribution in search_space.items():
                if name not in chosen:
                    chosen[name] = self._inner.sample_independent(study, trial, name, distribution)
            if self._values(chosen) not in tried:
                return chosen
            chosen, self._inner = {}, random_sampler
        if self._space.size is not None and self._space.size <= 100_000:
            left = [choice for choice in self._space.all_choices() if self._values(choice) not in tried]
            if left:
                return random.Random(self._seed_of(trial)).choice(left)
        return {name: random_sampler.sample_independent(study, trial, name, d) for name, d in search_space.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def _values(self, chosen: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(f"{name}={value}" for name, value in sorted(self._space.candidate(chosen).items()))

    def _seed_of(self, trial: FrozenTrial) -> int:
        return (self._seed * 1_000_003 + trial.number) % 2**32


def _distribution(axis: Axis) -> BaseDistribution:
    if isinstance(axis, Choice):
        choices: tuple[CategoricalChoiceType, ...] = axis.values
        return CategoricalDistribution(choices)
    if axis.integer:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=axis.step)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _suggest(trial: Trial, name: str, axis: Axis) -> Any:
    if isinstance(axis, Choice):
        return trial.suggest_categorical(name, axis.values)
    if axis.integer:
        return trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log, step=axis.step)
    return trial.suggest_float(name, axis.low, axis.high, log=axis.log)


class SharedStudy:
    """The trials of a sweep, as seen by one of its processes.

    Args:
        folder: The folder of the sweep, shared by all processes on this machine.
        url: The storage, by default a file in the folder.
        name: The name of the study in the storage.
        space: The search space.
        seed: The seed of the proposals.
        pruner: One of `PRUNERS`.
        terms: The settings that all processes of a sweep must share.
        is_stopped: Returns whether to stop waiting for a server.

    Raises:
        CnnspecError: E0516 if the storage cannot be used or belongs to another sweep, E0507 without its driver.
    """

    def __init__(
        self,
        folder: Path,
        url: str | None,
        name: str,
        space: Space,
        seed: int,
        pruner: str,
        terms: Mapping[str, Any],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.space = space
        self._workers = folder / "workers"
        self._first_seen: dict[int, float] = {}
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        database = folder.resolve() / "study.db"
        self.address = Address(url or URL.create("sqlite", database=str(database)).render_as_string())
        try:
            self._workers.mkdir(parents=True, exist_ok=True)
            self._lock = locks.acquire(self._workers / f"{self.worker}.lock", wait=True)
        except OSError as error:
            raise failure(
                "E0516", f"cannot write to the sweep folder: {reason_of(error)}", file=str(folder),
                help="choose another folder with `--out`",
            ) from None  # fmt: skip
        try:
            with locks.acquire(
                folder / ".opening", wait=True
            ):  # two processes must not create the tables at the same time
                if url is None:
                    _check_database(database)
                storage, self._connection = self.address.open(is_stopped)
                self._study = self._open(storage, name, _Proposals(space, seed), pruner, terms)
        except BaseException:
            self.close()
            raise

    def _open(
        self, storage: RDBStorage, name: str, sampler: BaseSampler, pruner: str, terms: Mapping[str, Any]
    ) -> optuna.Study:
        common: dict[str, Any] = {"storage": storage, "sampler": sampler, "pruner": PRUNERS[pruner]()}
        try:
            try:
                study = optuna.create_study(study_name=name, direction="maximize", **common)
                study.set_user_attr("terms", dict(terms))
            except optuna.exceptions.DuplicatedStudyError:
                study = optuna.load_study(study_name=name, **common)
        except Exception as error:  # databases raise errors of many classes  # noqa: BLE001
            raise self.address.refusal(error) from None
        end = time.monotonic() + 10
        while (stored := self._terms(study)) is None and time.monotonic() < end:
            time.sleep(0.1)
        if stored is None:  # the process that created the study died immediately
            study.set_user_attr("terms", stored := dict(terms))
        if not isinstance(stored, dict):
            raise self._damaged("its terms are not an object")
        for term, value in terms.items():
            if stored.get(term) != value:
                differs = f"its {term} is {_format_term(stored.get(term))}, not {_format_term(value)}"
                if term in ("network", "dataset"):  # hashes
                    differs = f"its {term} differs"
                raise failure(
                    "E0516",
                    f"the storage belongs to another sweep: {differs}",
                    file=self.address.shown,
                    help="choose another folder with `--out`, or use the settings that the sweep started with",
                )
        return study

    def close(self, *, ended: bool = True) -> None:
        """Release the lock of this process.

        Args:
            ended: Whether all its trials have ended. Otherwise the file stays, and shows that the process is dead.
        """
        self._lock.close()
        if ended:
            (self._workers / f"{self.worker}.lock").unlink(missing_ok=True)

    # --- reading ---------------------------------------------------------------------------------

    def refresh(self) -> Candidates:
        """Read the trials, after marking those of dead processes as failed."""
        trials = self._read()
        dead = [trial for trial in trials if trial.state == TrialState.RUNNING and self._is_dead(trial)]
        for trial in dead:
            try:
                self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            except optuna.exceptions.UpdateFinishedTrialError:  # another process was faster
                pass
        return Candidates(self._read() if dead else trials)

    def _read(self) -> list[FrozenTrial]:
        """Return the trials, whose attributes fit their schema.

        Raises:
            CnnspecError: E0516 if the storage is damaged.
        """
        try:
            if self._connection.is_settled:
                optuna.storages.fail_stale_trials(self._study)
            trials, names = self._study.get_trials(deepcopy=False), self.space.to_json().keys()
            for trial in trials:
                attributes = _Attributes.model_validate(trial.user_attrs)
                if attributes.candidate and attributes.candidate.values.keys() != names:
                    raise self._damaged(f"trial {trial.number} has other values than the search space")
        except ValidationError as error:
            raise self._damaged(first_problem(error)) from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # from Optuna
            raise self._damaged(one_line(error)) from None
        return trials

    def _terms(self, study: optuna.Study) -> Any:
        try:
            return study.user_attrs.get("terms")
        except (ValueError, RecursionError) as error:
            raise self._damaged(one_line(error)) from None

    def _damaged(self, reason: str) -> CnnspecError:
        help = "choose another folder with `--out`, or restore the storage"
        return failure("E0516", "the sweep storage is damaged", file=self.address.shown, notes=[reason], help=help)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        if worker is None:  # a process starts without a name, and may die before it writes it
            return time.monotonic() - self._first_seen.setdefault(trial.number, time.monotonic()) > NAMELESS
        if worker.rsplit("-", 2)[0] != socket.gethostname():
            return False
        lock = self._workers / f"{worker}.lock"
        return locks.SUPPORTED and worker != self.worker and lock.exists() and not locks.is_locked(lock)

    # --- writing ---------------------------------------------------------------------------------

    def reopen(self, candidate: TrainedCandidate) -> None:
        """Put a candidate whose attempts have failed back into the queue."""
        last, proposal = candidate.last, candidate.proposal
        self._study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=proposal.params,
                distributions=proposal.distributions,
                user_attrs={"attempt_of": candidate.number},
                intermediate_values=last.intermediate_values,
            )
        )

    def work(self, objective: Callable[[Trial], float]) -> None:
        """Run one trial: a queued one, or a new candidate.

        Any exception but `Pruned` makes it fail. `TrialDiscarded` is not raised further.
        """

        def attempt(trial: Trial) -> float:
            trial.set_user_attr("worker", self.worker)
            try:
                return objective(trial)
            except (TrialDiscarded, Pruned, optuna.exceptions.UpdateFinishedTrialError):
                raise
            except BaseException:  # the process is alive, so this is not a death
                trial.set_user_attr("stopped", True)
                raise

        try:
            self._study.optimize(attempt, n_trials=1, catch=(TrialDiscarded,))
        except optuna.exceptions.UpdateFinishedTrialError:  # another process took it over
            pass

    def propose(self, trial: Trial) -> Candidate:
        """Propose the values of a new candidate."""
        return self.space.candidate({name: _suggest(trial, name, axis) for name, axis in self.space.axes.items()})

    def record(self, trial: Trial, values: Candidate, sizes: Mapping[str, int], rejection: str | None) -> None:
        """Store the description of a candidate, and the reason if it is rejected.

        Raises:
            Pruned: It is rejected.
        """
        trial.set_user_attr("candidate", {"values": values, "sizes": dict(sizes), "reason": rejection})
        if rejection is not None:
            raise Pruned

    def decide(self, trial: Trial, trials: int, poll: Callable[[], None]) -> None:
        """Wait until all earlier candidates are decided, and decide whether to train this one.

        Raises:
            TrialDiscarded: It is a duplicate, or there are enough candidates.
        """
        while (candidates := self.refresh()).undecided(trial.number):
            poll()
            time.sleep(0.05)
        proposal = next(t for t in candidates.proposed if t.number == trial.number)
        earlier = [candidate for candidate in candidates.trained if candidate.number < trial.number]
        duplicate = any(_values_of(candidate.proposal) == _values_of(proposal) for candidate in earlier)
        verdict = "duplicate" if duplicate else "surplus" if len(earlier) >= trials else "trained"
        trial.set_user_attr("verdict", verdict)
        if verdict != "trained":
            raise TrialDiscarded

    def report(self, trial: Trial, epoch: int, accuracy: float) -> bool:
        """Store the accuracy of an epoch, and return whether to prune the trial."""
        if epoch not in self._study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(accuracy, epoch)
        return trial.should_prune()

    def claim(self, trial: Trial) -> TrainedCandidate:
        """Return the candidate that a queued trial is an attempt of.

        Raises:
            TrialDiscarded: It has ended, or another process works on it.
        """
        number = trial.user_attrs["attempt_of"]
        candidate = next((c for c in self.refresh().trained if c.number == number), None)
        if candidate is None:
            raise self._damaged(f"trial {trial.number} is an attempt of an unknown candidate")
        earlier = [attempt for attempt in candidate.attempts if attempt.number < trial.number]
        if any(attempt.state != TrialState.FAIL for attempt in earlier):
            trial.set_user_attr("dropped", True)
            raise TrialDiscarded
        return candidate


def _format_term(value: Any) -> str:
    return "not set" if value is None else f"{value:,}" if type(value) is int else f"`{value}`"
