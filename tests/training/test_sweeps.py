"""Test sweeps: candidates, rejections, several processes, and the best spec."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.batches import stop_at
from harness.images import write_images
from harness.kill_runs import fork, wait, wait_until
from harness.runs import code
from rich.console import Console

from cnnspec import CnnspecError, load
from cnnspec.recipe import Folder, Setting
from cnnspec.training import SweepOptions, SweepResult, TrainOptions, sweep
from cnnspec.training.data.locks import LOCK, acquire
from cnnspec.training.sweeps.space import Choice, Range, Space, parse_amount

study = pytest.importorskip("cnnspec.training.sweeps.study")
storage = pytest.importorskip("cnnspec.training.sweeps.storage")

SPEC = """# a small one
network tiny
input 1x28x28
classes 10
param c = 4
stem conv 7x7 c stride=7 pad=0 | bn | relu
head global_avgpool | flatten | linear classes
expect params = 254
train {
    data      fashion_mini val=500
    batch     2000
    epochs    2
    optimizer sgd lr=0.1 momentum=0.9  # by hand
}
"""
PARAMETERS = {4: 254, 8: 498, 16: 986, 24: 1474}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.cnn"
    path.write_text(SPEC)
    return path


@pytest.fixture
def search(spec: Path, tmp_path: Path, output: io.StringIO) -> Callable[..., SweepResult]:
    """Run a sweep over a spec in the test's folder."""

    def search(space: dict[str, Any], train: dict[str, Any] | None = None, **options: Any) -> SweepResult:
        settings = TrainOptions(offline=True, plots=False, memory_format="contiguous", threads=1, **(train or {}))
        given: dict[str, Any] = {"out": tmp_path / "sweep", "console": Console(file=output, width=200), **options}
        return sweep(spec, space, SweepOptions(train=settings, **given))

    return search


def results(folder: Path) -> dict[int, dict[str, Any]]:
    """Read the results of the runs of a sweep by the number of the trial."""
    paths = list(folder.glob("trials/*/tiny/*/result.json"))
    found = {int(path.parts[-4]): json.loads(path.read_text()) for path in paths}
    assert len(found) == len(paths), "a trial was started again"
    return found


# --- the space ------------------------------------------------------------------------------------


def test_parse_space():
    space = Space.of({"c": ["16", "32"], "lr": "0.001..0.1", "n": "2..6", "w": "16..64:8", "p": "0.1..0.5", "e": "3"})
    assert space.fixed == {"e": "3"}
    assert space.axes == {
        "c": Choice(("16", "32")),
        "lr": Range(0.001, 0.1, integer=False, log=True),
        "n": Range(2, 6, integer=True, log=False),
        "w": Range(16, 64, integer=True, log=False, step=8),
        "p": Range(0.1, 0.5, integer=False, log=False),
    }
    assert space.size is None
    assert space.candidate({"c": "32", "lr": 0.0123456, "n": 3, "w": 24, "p": 0.5}) == {
        "c": "32", "lr": "0.01235", "n": "3", "w": "24", "p": "0.5", "e": "3",
    }  # fmt: skip
    assert Space.of({"a": "0.1..0.2:log", "b": "1..100:linear"}).axes == {
        "a": Range(0.1, 0.2, integer=False, log=True),
        "b": Range(1, 100, integer=True, log=False),
    }
    assert Space.of({"w": "1..8:3", "b": [True, False], "k": [(3, 3), 0.5]}).size == 3 * 2 * 2
    assert [*Space.of({"w": "1..8:3"}).all_choices()] == [{"w": 1}, {"w": 4}, {"w": 7}]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"c": "3"},
        {"c": "3..3"},
        {"c": []},
        {"c": ["1", "1"]},
        {"c": ["1", " "]},
        {"c": "9..3"},
        {"c": "a..b"},
        {"c": "1..9:0"},
        {"c": "1..9:often"},
        {"c": "0..9:log"},
        {"c": "0.5..9.5:2"},
        {"c": [object()]},
    ],
)
def test_invalid_spaces(given: dict[str, Any]):
    with pytest.raises(CnnspecError) as error:
        Space.of(given)
    assert code(error) == "E0204"


def test_parse_amount():
    assert [parse_amount(text) for text in ("300k", "50M", "1.5G", "12345", "0.85M")] == [
        300_000, 50_000_000, 1_500_000_000, 12345, 850_000,
    ]  # fmt: skip
    for text in ("", "k", "-3", "1.2345k", "3 K", "1e5", "9" * 16):
        with pytest.raises(CnnspecError):
            parse_amount(text)


# --- one process ----------------------------------------------------------------------------------


def test_a_sweep_trains_valid_candidates_and_writes_the_best(search: Callable[..., SweepResult], output: io.StringIO):
    space = {"c": [4, 8, 16, 24], "lr": "0.01..0.3"}
    done = search(space, trials=3, max_params=900, max_macs=7000)
    assert (done.state, done.exit_code) == ("finished", 0)
    rows = done.values["trials"]
    assert len(rows) == 3
    assert len({tuple(row["values"].items()) for row in rows}) == 3
    assert all(PARAMETERS[int(row["values"]["c"])] == row["parameters"] <= 900 for row in rows)
    accuracies = [row["val_acc"] for row in rows if row["state"] == "finished"]
    assert accuracies == sorted(accuracies, reverse=True)
    ran = results(done.folder)
    assert sorted(ran) == sorted(row["trial"] for row in rows)
    for row in rows:
        run = ran[row["trial"]]
        assert run["parameters"] == row["parameters"]
        assert run["recipe"]["optimizer"]["args"]["lr"] == float(row["values"]["lr"])
        assert row["state"] == "pruned" or run["val_acc"] == row["val_acc"]
    assert done.best == done.folder / "best.cnn"
    graph, best = load(done.best), rows[0]
    assert graph.parameter_count == best["parameters"]
    assert graph.recipe.optimizer.args["lr"] == float(best["values"]["lr"])
    assert "# by hand" in graph.text
    assert done.values["best"]["test_acc"] == ran[best["trial"]]["test_acc"]
    assert done.values["rejected"] == output.getvalue().count("rejected: ")
    # A second sweep has nothing to do.
    output.truncate(0)
    again = search(space, trials=3, max_params=900, max_macs=7000)
    assert again.values == done.values
    assert "3 of them done" in output.getvalue()


def test_a_sweep_in_one_process_is_deterministic(search: Callable[..., SweepResult], tmp_path: Path):
    space = {"c": "1..16", "lr": "0.01..0.3"}
    whole = search(space, trials=2, out=tmp_path / "whole")
    search(space, trials=1, out=tmp_path / "parts")
    parts = search(space, trials=2, out=tmp_path / "parts")
    seen = [[(row["values"], row["val_acc"]) for row in done.values["trials"]] for done in (whole, parts)]
    assert seen[0] == seen[1]


def test_an_exhausted_space_ends_the_sweep(search: Callable[..., SweepResult]):
    done = search({"c": [4, 8, 16], "batch": [1000, 2000]}, trials=50, max_params=900, train={"epochs": 1})
    assert done.state == "exhausted"
    values = {(row["values"]["c"], row["values"]["batch"]) for row in done.values["trials"]}
    assert values == {(c, batch) for c in ("4", "8") for batch in ("1000", "2000")}
    assert (len(done.values["trials"]), done.values["rejected"]) == (4, 2)


def test_a_sweep_without_valid_candidates_reports_the_reasons(
    search: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cnnspec.training.sweeps.sweep.MAX_REJECTED", 5)
    with pytest.raises(CnnspecError) as error:
        search({"c": "4..400"}, max_params=100)
    assert code(error) == "E0517"
    assert "parameters exceed the limit of 100" in str(error.value)
    assert "the minimum was " in str(error.value)
    with pytest.raises(CnnspecError) as error:
        search({"c": [0, -1]}, out=tmp_path / "faults")
    assert [diagnostic.code for diagnostic in error.value.diagnostics][:2] == ["E0517", "E0215"]
    assert not results(tmp_path / "sweep")


@pytest.mark.parametrize(
    ("space", "options", "expected"),
    [
        ({"width": [1, 2]}, {}, "E0217"),
        ({"c": ["wide", "wider"]}, {}, "E0204"),
        ({"batch": [100, 200]}, {"train": {"batch": 300}}, "E0204"),
        ({"c": [4, 8], "data.val": "0"}, {}, "E0511"),
        ({"c": [4, 8]}, {"storage": "nonsense"}, "E0516"),
        ({"c": [4, 8]}, {"storage": "sqlite:////proc/no/such/file.db"}, "E0516"),
    ],
)
def test_names_that_cannot_be_searched(
    search: Callable[..., SweepResult], space: dict[str, Any], options: dict[str, Any], expected: str
):
    with pytest.raises(CnnspecError) as error:
        search(space, **options)
    assert code(error) == expected


def test_another_sweep_in_the_same_storage_is_rejected(search: Callable[..., SweepResult], spec: Path):
    search({"c": [4, 8]}, trials=1, train={"epochs": 1})
    for space, options in (
        ({"c": [4, 16]}, {"train": {"epochs": 1}}),
        ({"c": [4, 8]}, {"train": {"epochs": 2}}),
        ({"c": [4, 8]}, {"train": {"epochs": 1}, "max_params": 5000}),
    ):
        with pytest.raises(CnnspecError) as error:
            search(space, trials=1, **options)
        assert code(error) == "E0516"
    spec.write_text(SPEC.replace("relu", "gelu"))
    with pytest.raises(CnnspecError) as error:
        search({"c": [4, 8]}, trials=1, train={"epochs": 1})
    assert code(error) == "E0516"


def test_a_diverged_run_does_not_end_the_sweep(search: Callable[..., SweepResult]):
    done = search({"lr": [0.1, 1e12]}, trials=2, train={"batch": 500})
    assert [(row["values"]["lr"], row["state"]) for row in done.values["trials"]] == [
        ("0.1", "finished"), ("1000000000000.0", "failed"),
    ]  # fmt: skip
    assert done.values["trials"][1]["reason"].startswith("training diverged")


def test_bad_trials_are_pruned(search: Callable[..., SweepResult], monkeypatch: pytest.MonkeyPatch):
    median = study.optuna.pruners.MedianPruner(n_startup_trials=1)
    monkeypatch.setattr(study, "PRUNERS", {"median": lambda: median})
    monkeypatch.setattr(study._Proposals, "sample_relative", lambda self, study, trial, space: {"lr": next(order)})
    order = iter(["0.1", "1e-09", "0.2"])
    done = search({"lr": [0.1, 1e-9, 0.2]}, trials=3, train={"epochs": 3})
    rows = {row["values"]["lr"]: row for row in done.values["trials"]}
    assert (rows["1e-09"]["state"], rows["1e-09"]["epochs"]) == ("pruned", 1)
    assert done.values["trials"][-1] == rows["1e-09"]
    run = results(done.folder)[1]
    assert (run["state"], run["epochs"], run["test_acc"]) == ("pruned", 1, None)
    # A pruned trial is never the best, whatever its accuracy.
    assert done.values["best"]["values"]["lr"] in ("0.1", "0.2")


def test_the_best_spec_is_written_with_the_files_it_uses(
    search: Callable[..., SweepResult], spec: Path, tmp_path: Path
):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "base.cnn").write_text(SPEC)
    spec.write_text('extends "parts/base.cnn"\nnetwork tiny\n')
    done = search({"c": [8, 16]}, trials=1, train={"epochs": 1})
    assert done.error is None
    assert load(tmp_path / "sweep" / "best.cnn").parameter_count == done.values["trials"][0]["parameters"]
    # An existing file of that name is not overwritten, and then there is no best spec.
    (tmp_path / "sweep" / "parts" / "base.cnn").write_text(SPEC.replace("relu", "gelu"))
    again = search({"c": [8, 16]}, trials=1, train={"epochs": 1})
    assert (again.best, again.error and again.error.diagnostics[0].code) == (None, "E0518")
    assert not (tmp_path / "sweep" / "best.cnn").exists()


def test_without_optuna_the_error_names_the_install_command(monkeypatch: pytest.MonkeyPatch):
    from cnnspec import training

    for name in ("sweeps.study", "sweeps.sweep"):
        monkeypatch.delitem(sys.modules, f"cnnspec.training.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(CnnspecError) as error:
        training.sweep  # noqa: B018
    assert code(error) == "E0507"
    assert "pip install 'cnnspec[sweep]'" in str(error.value)


# --- several processes ----------------------------------------------------------------------------


def test_two_processes_share_twelve_trials_after_one_is_killed(search: Callable[..., SweepResult], tmp_path: Path):
    space, limits = {"c": [4, 8, 16, 24], "lr": "0.01..0.3"}, {"max_params": 900}
    dies = tmp_path / "dies"

    def work(doomed: bool) -> int:
        begun: set[int] = set()
        report = study.SharedStudy.report

        def watched(self: Any, trial: Any, epoch: int, accuracy: float) -> bool:
            begun.add(trial.number)
            if doomed and len(begun) == 2:
                dies.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if not doomed and len(begun) == 6:  # leave enough trials for the other process
                wait_until(dies.exists)
            return report(self, trial, epoch, accuracy)

        study.SharedStudy.report = watched
        done = search(space, trials=12, **limits)
        (tmp_path / f"{doomed}.json").write_text(json.dumps(done.values))
        return done.exit_code

    first, second = fork(lambda: work(True)), fork(lambda: work(False))
    assert wait(first) == -signal.SIGKILL
    assert wait(second) == 0
    rows = json.loads((tmp_path / "False.json").read_text())["trials"]
    assert len(rows) == 12
    assert len({tuple(row["values"].items()) for row in rows}) == 12
    assert {row["state"] for row in rows} <= {"finished", "pruned"}
    ran = results(tmp_path / "sweep")
    assert sorted(ran) == sorted(row["trial"] for row in rows)
    assert {run["state"] for run in ran.values()} <= {"finished", "pruned"}
    assert max(run["parameters"] for run in ran.values()) <= 900


def test_a_stopped_sweep_resumes(search: Callable[..., SweepResult], tmp_path: Path):
    space = {"lr": "0.01..0.3"}

    def work(number: int | None) -> int:
        report = study.SharedStudy.report

        def stopping(self: Any, trial: Any, epoch: int, accuracy: float) -> bool:
            if number is not None and epoch == 1:
                os.kill(os.getpid(), number)
            return report(self, trial, epoch, accuracy)

        study.SharedStudy.report = stopping
        return search(space, trials=1, train={"epochs": 3}, out=tmp_path / str(number)).exit_code

    assert wait(fork(lambda: work(None))) == 0
    for number in (signal.SIGTERM, signal.SIGINT):
        out = tmp_path / str(int(number))
        assert wait(fork(lambda number=number: work(int(number)))) == 128 + number
        assert [run["state"] for run in results(out).values()] == ["interrupted"]
        done = search(space, trials=1, train={"epochs": 3}, out=out)
        assert [run["steps"] for run in results(out).values()] == [6]
        [whole] = results(tmp_path / "None").values()
        assert done.values["trials"][0]["val_acc"] == whole["val_acc"]


def stopped_trial(search: Callable[..., SweepResult]) -> Path:
    """Stop a sweep in its first trial, and return the run."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, 1, signal.SIGINT)
        done = search({"c": [4, 8]}, trials=1, train={"epochs": 3})
    assert (done.state, done.exit_code) == ("interrupted", 130)
    [run] = done.folder.glob("trials/*/tiny/1")
    return run


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def set_version(run: Path) -> None:
    values = json.loads((run / "result.json").read_text())
    values["versions"]["torch"] = "1.0"
    (run / "result.json").write_text(json.dumps(values))


RUN_CHANGES: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "the latest checkpoint": (lambda run: cut(run / "checkpoints/last.ckpt"), ["1"], ""),
    "all checkpoints": (lambda run: [cut(path) for path in run.glob("checkpoints/*.ckpt")], ["1", "2"], "are damaged"),
    "the result": (lambda run: cut(run / "result.json"), ["1", "2"], "cannot read `result.json`"),
    "the network": (lambda run: cut(run / "model.json"), ["1", "2"], "cannot read `model.json`"),
    "the version of torch": (set_version, ["1", "2"], "`torch version` was 1.0"),
}


@pytest.mark.parametrize("kind", RUN_CHANGES)
def test_a_trial_that_cannot_be_resumed_starts_again_and_says_why(
    kind: str, search: Callable[..., SweepResult], output: io.StringIO
):
    change, runs, reason = RUN_CHANGES[kind]
    run = stopped_trial(search)
    change(run)
    done = search({"c": [4, 8]}, trials=1, train={"epochs": 3})
    assert done.values["trials"][0]["state"] == "finished"
    assert sorted(path.name for path in run.parent.iterdir()) == runs
    said = [line for line in output.getvalue().splitlines() if "starts again" in line]
    assert [reason in line for line in said] == [True] * bool(reason)


def test_a_trial_that_another_process_trains_is_waited_for(search: Callable[..., SweepResult], tmp_path: Path):
    run = stopped_trial(search)
    ready, waits = tmp_path / "ready", tmp_path / "waits"

    class Output(io.StringIO):
        def write(self, text: str) -> int:
            if "waits for another process that trains it" in text:
                waits.touch()
            return super().write(text)

    def hold() -> int:
        before = (run / "result.json").read_bytes()
        with acquire(run / LOCK):
            ready.touch()
            wait_until(waits.exists)
            time.sleep(1)
            return int((run / "result.json").read_bytes() != before)

    child = fork(hold)
    wait_until(ready.exists)
    done = search({"c": [4, 8]}, trials=1, train={"epochs": 3}, console=Console(file=Output(), width=200))
    assert wait(child) == 0
    assert done.values["trials"][0]["state"] == "finished"
    assert [path.name for path in run.parent.iterdir()] == ["1"]


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize("given", [False, True])
def test_a_sweep_does_not_mix_datasets(given: bool, search: Callable[..., SweepResult], spec: Path, tmp_path: Path):
    images = tmp_path / "images"
    for split in ("train", "test"):
        write_images(images / split, count=6, size=(28, 28))
    data = "fashion_mini" if given else 'folder "images" val=0.4'
    text = SPEC.replace("classes 10", "classes 2").replace("fashion_mini val=500", data)
    spec.write_text(text.replace("batch     2000", "batch 4").replace("expect params = 254\n", ""))

    def train() -> dict[str, Any]:
        return {"data": Setting.of(Folder(path=str(images)))} if given else {}

    search({"c": [4, 8, 16]}, trials=1, train=train())
    images = images.rename(tmp_path / "moved") if given else images
    assert len(search({"c": [4, 8, 16]}, trials=2, train=train()).values["trials"]) == 2
    shutil.copyfile(images / "train/a/0.png", images / "train/b/new.png")
    with pytest.raises(CnnspecError, match="its dataset differs") as error:
        search({"c": [4, 8, 16]}, trials=3, train=train())
    assert code(error) == "E0516"


def test_machines_without_a_common_folder_share_a_storage(
    search: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "HEARTBEAT", 1)
    monkeypatch.setattr(storage, "GRACE", 3)
    here, there = tmp_path / "here" / "first", tmp_path / "there" / "first"

    def work(out: Path) -> SweepResult:
        return search({"lr": "0.01..0.3"}, trials=2, storage=f"sqlite:///{tmp_path / 'shared.db'}", out=out)

    def dying() -> int:
        study.SharedStudy.report = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        return work(there).exit_code

    assert wait(fork(dying)) == -signal.SIGKILL
    assert [run["state"] for run in results(there).values()] == ["running"]
    rows = work(here).values["trials"]
    assert {row["state"] for row in rows} == {"finished"}
    assert sorted(results(here)) == sorted(row["trial"] for row in rows) == [0, 1]


@pytest.mark.slow
def test_randomly_killed_processes_neither_lose_nor_repeat_trials(tmp_path: Path):
    trials, draw = 40, random.Random(3)
    space = Space.of({"a": "0..7", "b": [1, 2, 3], "x": "1..5"})

    def work() -> int:
        shared = study.SharedStudy(tmp_path / "sweep", None, "fake", space, 1, "median", {"space": 1})

        def objective(trial: Any) -> float:
            if "attempt_of" in trial.user_attrs:
                candidate = shared.claim(trial)
                number, values = candidate.number, candidate.values
            else:
                number, values = trial.number, shared.propose(trial)
                shared.record(trial, values, {"parameters": 1, "macs": 1}, "too large" if values["a"] == "7" else None)
                shared.decide(trial, trials, lambda: None)
            with (tmp_path / "log").open("a") as log:
                log.write(f"{number} {os.getpid()}\n")
            time.sleep(0.05)
            return float(values["x"])

        while True:
            seen = shared.refresh()
            if len(seen.ended) >= trials:
                shared.close()
                return 0
            orphan = next((candidate for candidate in seen.trained if candidate.state == "retry"), None)
            if orphan is not None:
                shared.reopen(orphan)
            elif any(c.state == "waiting" for c in seen.trained) or len(seen.trained) < trials:
                shared.work(objective)
            else:
                time.sleep(0.05)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "DEATHS", 1000)
        patch.setattr(study, "NAMELESS", 2)
        children = [fork(work) for _ in range(4)]
        for _ in range(15):
            time.sleep(draw.uniform(0.2, 1.5))
            place = draw.randrange(4)
            os.kill(children[place], signal.SIGKILL)  # an ended process stays until it is waited for
            wait(children[place])
            children[place] = fork(work)
        assert [wait(child) for child in children] == [0, 0, 0, 0]
    shared = study.SharedStudy(tmp_path / "sweep", None, "fake", space, 1, "median", {"space": 1})
    ended = shared.refresh().ended
    shared.close()
    assert len(ended) == trials
    assert len({tuple(sorted(candidate.values.items())) for candidate in ended}) == trials
    assert not [candidate for candidate in ended if candidate.values["a"] == "7"]
    begun = {int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()}
    assert begun == {candidate.number for candidate in ended}
