"""Test comparisons: which runs are trained and reused, the table, interruptions, and errors."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import kill_comparisons
from harness.batches import stop_at, watch
from harness.images import write_images
from harness.kill_runs import fork, wait, wait_until
from harness.processes import variables
from harness.runs import code, tiny
from rich.console import Console
from typer.testing import CliRunner

from cnnspec import CnnspecError, Graph, load, loads
from cnnspec.cli.app import app
from cnnspec.training import Comparison, TrainOptions, compare, train
from cnnspec.training.comparison import compare as comparing
from cnnspec.training.comparison.table import Row, Run, Statistic

SPEC = tiny(
    "data fashion_mini val=4000; optimizer sgd lr=0.1 momentum=0.9; batch 250; epochs 2",
    name="NAME",
    layers="param c = 4\nstem conv 7x7 c stride=7 pad=0 | bn | relu",
)

pytestmark = pytest.mark.usefixtures("one_thread")
Compare = Callable[..., Comparison]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two specs in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.cnn").write_text(SPEC.replace("NAME", "a"))
    (tmp_path / "b.cnn").write_text(
        SPEC.replace("NAME", "b").replace("relu", "gelu").replace("param c = 4\n", "let c = 4\n")
    )
    return tmp_path


@pytest.fixture
def run_compare(folder: Path, output: io.StringIO) -> Compare:
    def run(*specs: str | Graph, **given: Any) -> Comparison:
        stated = {"memory_format": "channels_last", "threads": 1, **given.pop("options", {})}
        console = Console(file=output, width=200)
        options = TrainOptions(offline=True, plots=False, console=console, **stated)
        return compare(specs, options=options, **{"seeds": 2, **given})

    return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The runs that are trained, as network and seed."""
    seen: list[tuple[str, int]] = []

    def counted(graph: Any, options: Any) -> Any:
        seen.append((graph.name, options.seed))
        return train(graph, options)

    monkeypatch.setattr(comparing, "train", counted)
    return seen


def results(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Read the results of the runs in a folder by network and seed."""
    found = [json.loads(path.read_text()) for path in folder.glob("runs/*/*/result.json")]
    return {(result["network"], result["seed"]): result for result in found}


# --- the table ------------------------------------------------------------------------------------


def test_the_table_matches_the_results_of_the_runs(run_compare: Compare, folder: Path, trained: list[Any]) -> None:
    done = run_compare("a.cnn", "b.cnn", target=0.15)
    assert (done.state, done.exit_code, done.folder) == ("finished", 0, Path("comparisons/a-b"))
    assert trained == [("a", 42), ("b", 42), ("a", 43), ("b", 43)]
    stored = results(done.folder)
    data = json.loads((done.folder / "comparison.json").read_text())
    assert data == json.loads(json.dumps(done.to_json()))
    lines = list(csv.DictReader(io.StringIO((done.folder / "table.csv").read_text())))
    for row, line in zip(data["rows"], lines, strict=True):
        own = [stored[row["label"], seed] for seed in (42, 43)]
        for name in ("val_acc", "test_acc"):
            values = [result[name] for result in own]
            assert row[name] == {"mean": statistics.fmean(values), "std": statistics.stdev(values), "n": 2}
            assert float(line[f"{name}_mean"]) == row[name]["mean"]
            assert float(line[f"{name}_std"]) == row[name]["std"]
            mean, std = (f"{100 * row[name][part]:.2f}" for part in ("mean", "std"))
            for text in (done.to_text(), (done.folder / "table.md").read_text()):
                assert f"{mean} ± {std}%" in text
        assert (row["parameters"], row["macs"]) == (own[0]["parameters"], own[0]["macs"])
        assert (line["label"], int(line["seeds"]), int(line["parameters"])) == (row["label"], 2, row["parameters"])
        assert [run["folder"] for run in row["runs"]] == [f"runs/{row['label']}/{n}" for n in (1, 2)]
        first = [result["epoch_seconds"][0] for result in own]
        assert row["seconds_per_epoch"]["mean"] <= max(result["epoch_seconds"][-1] for result in own)
        assert row["seconds_to_target"]["n"] == 2
        assert row["seconds_to_target"]["mean"] >= min(first)
    assert (done.folder / "table.txt").read_text() == done.to_text()


def run_of(accuracies: list[float], seconds: list[float], **result: Any) -> Run:
    epochs = tuple({"epoch": n, "train_loss": 1.0, "val_acc": acc} for n, acc in enumerate(accuracies, 1))
    return Run(1, "r", {"state": "finished", "epoch_seconds": seconds, **result}, epochs)


def test_time_of_a_run() -> None:
    run = run_of([0.2, 0.5, 0.4, 0.6], [10, 13, 16, 18])
    assert [run.seconds_to(target) for target in (0.1, 0.2, 0.3, 0.5, 0.55, 0.61)] == [10, 10, 13, 13, 18, None]
    assert run.seconds_per_epoch == 3  # the median of 10, 3, 3, 2
    unvalidated = Run(
        1, "r", {"state": "finished", "epoch_seconds": [1, 2], "test_acc": 0.7}, ({"epoch": 1}, {"epoch": 2})
    )
    assert (unvalidated.seconds_to(0.7), unvalidated.seconds_to(0.71)) == (2, None)
    old = Run(1, "r", {"state": "finished", "seconds": 9.0, "epochs": 3, "test_acc": 0.7})
    assert (old.seconds_per_epoch, old.seconds_to(0.5)) == (3.0, None)


def test_a_statistic_of_one_value_has_no_deviation() -> None:
    assert Statistic.of([]) is None
    assert Statistic.of([None, 0.5]) == Statistic(0.5, None, 1)
    assert Statistic(0.5, None, 1).text(1, 100) == "50.0"
    assert Statistic.of([0.1, 0.3]) == Statistic(pytest.approx(0.2), pytest.approx(0.1414213562), 2)
    reached, missed = run_of([0.6], [4.0]), run_of([0.4], [5.0])
    row = Row("x", "x", {}, "k", 1, 1, (reached, missed), 0.5)
    assert row.seconds_to_target == Statistic(4.0, None, 1)
    assert "4.0 (1 of 2)" in comparing.format_text([row], 0.5)


def test_markdown_escapes_labels() -> None:
    row = Row("a|b*<i>`x", "a", {}, "k", 1, 1, ())
    table = comparing.format_markdown([row], None)
    assert "a\\|b\\*\\<i\\>\\`x" in table


# --- training and reuse ---------------------------------------------------------------------------


def test_nothing_is_trained_twice(run_compare: Compare, folder: Path, trained: list[Any], output: io.StringIO) -> None:
    run_compare("a.cnn", seeds=1, out="c")
    before = (folder / "c/runs/a/1/result.json").read_bytes()
    path = folder / "a.cnn"
    path.write_text("# other words for the same\n" + path.read_text().replace("| bn | relu", "| bn |\n     relu"))
    done = run_compare("a.cnn", "b.cnn", seeds=2, out="c")
    assert trained == [("a", 42), ("b", 42), ("a", 43), ("b", 43)]
    assert (folder / "c/runs/a/1/result.json").read_bytes() == before
    assert [len(row.finished) for row in done.rows] == [2, 2]
    assert "changed" not in output.getvalue()
    assert run_compare("a.cnn", "b.cnn", seeds=2, out="c").to_json() == done.to_json()
    assert run_compare("a.cnn", seeds=1, out="c").rows[0].statistic("test_acc").std is None
    assert len(trained) == 4


def test_time_left_after_a_run_that_took_no_time(run_compare: Compare, folder: Path, output: io.StringIO) -> None:
    run_compare("a.cnn", seeds=1, out="c")
    path = folder / "c/runs/a/1/result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 0.0}))
    run_compare("a.cnn", seeds=2, out="c")
    assert "run 2 of 2: a, seed 43, about 0:00 left in total\n" in output.getvalue()


def test_changed_networks_are_trained_again(
    run_compare: Compare, folder: Path, trained: list[Any], output: io.StringIO
) -> None:
    run_compare("a.cnn", seeds=1, out="c")
    path = folder / "a.cnn"
    path.write_text(path.read_text().replace("| bn | relu", "| bn | silu"))
    done = run_compare("a.cnn", seeds=1, out="c")
    assert trained == [("a", 42)] * 2
    assert (
        "the network, recipe or data of `a` has changed since the last comparison in this folder: it is trained again"
        in output.getvalue()
    )
    assert done.rows[0].runs[0].folder == "runs/a/2"
    path.write_text(path.read_text().replace("lr=0.1", "lr=0.2"))
    run_compare("a.cnn", seeds=1, out="c")
    run_compare("a.cnn", seeds=1, out="c", options={"epochs": 1})
    assert len(trained) == 4


def test_runs_from_other_folders_are_reused(
    run_compare: Compare, folder: Path, trained: list[Any], run: Callable[..., Any]
) -> None:
    graph = loads((folder / "a.cnn").read_text(), "a.cnn")
    for seed in (7, 42):
        run(graph, seed=seed, threads=1, memory_format="channels_last")
    run(graph, seed=8, epochs=1)  # another recipe
    done = run_compare("a.cnn", seeds=3, runs=["runs"])
    assert trained == [("a", 43)]
    assert [r.seed for r in done.rows[0].runs] == [7, 42, 43]
    assert [r.folder for r in done.rows[0].runs] == ["../../runs/a/1", "../../runs/a/2", "runs/a/1"]
    assert run_compare("a.cnn", seeds=1, runs=["runs"], out="d").rows[0].statistic("val_acc").count == 2
    alone = run_compare(runs=["runs"], out="e")
    assert trained == [("a", 43)]
    assert [(row.label, len(row.finished)) for row in alone.rows] == [("a epochs=2", 2), ("a epochs=1 planned=2", 1)]
    with pytest.raises(CnnspecError) as error:
        run_compare(runs=["nowhere"])
    assert code(error) == "E0506"


def folder_of_images(folder: Path) -> Path:
    """Let `a` train on a folder of images, 12 of each of two classes."""
    for split, count in (("train", 12), ("test", 2)):
        write_images(folder / "images" / split, count=count, size=(28, 28))
    text = SPEC.replace("NAME", "a").replace("classes 10", "classes 2").replace("batch 250", "batch 8")
    text = text.replace("epochs 2", "epochs 1")
    (folder / "a.cnn").write_text(text.replace("fashion_mini val=4000", 'folder "images" val=0.2'))
    return folder / "images"


DATA_CHANGES: dict[str, Callable[[Path], None]] = {
    "an image more": lambda images: shutil.copyfile(images / "train/a/0.png", images / "train/a/new.png"),
    "another label": lambda images: shutil.move(images / "train/a/0.png", images / "train/b/a0.png"),
    "a split more": lambda images: shutil.copytree(images / "test", images / "val"),
}  # type: ignore[dict-item]


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize("kind", DATA_CHANGES)
def test_runs_on_other_data_are_not_reused(
    kind: str, run_compare: Compare, folder: Path, trained: list[Any], run: Callable[..., Any], output: io.StringIO
) -> None:
    images = folder_of_images(folder)
    run(load(folder / "a.cnn"), seed=7, threads=1, memory_format="channels_last")
    given: dict[str, Any] = {"seeds": 2, "runs": ["runs"], "out": "c"}
    before = run_compare("a.cnn", **given).rows[0]
    assert ([found.seed for found in before.runs], trained) == ([7, 42], [("a", 42)])
    DATA_CHANGES[kind](images)
    after = run_compare("a.cnn", **given).rows[0]
    assert ([found.seed for found in after.runs], trained) == ([42, 43], [("a", 42), ("a", 42), ("a", 43)])
    assert [found.folder for found in after.runs] == ["runs/a/2", "runs/a/3"]
    assert "recipe or data of `a` has changed" in output.getvalue()
    # without specs, runs on different data are different networks of the table
    alone = run_compare(runs=["runs", "c"], out="d")
    assert [len(row.finished) for row in alone.rows] == [2, 2]


@pytest.mark.usefixtures("no_workers")
def test_runs_on_the_same_data_elsewhere_are_reused(
    run_compare: Compare, folder: Path, trained: list[Any], output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of_images(folder)
    run_compare("a.cnn", seeds=1, out="c")
    shutil.copytree(folder, folder.with_name("moved"))
    monkeypatch.chdir(folder.with_name("moved"))
    run_compare("a.cnn", seeds=1, out="c")
    assert trained == [("a", 42)]
    shutil.rmtree("images")
    row = run_compare("a.cnn", seeds=1, out="c").rows[0]
    assert (len(row.finished), trained) == (1, [("a", 42)])
    assert "the data of `a` is not compared with that of its runs" in output.getvalue()
    with pytest.raises(CnnspecError):
        run_compare("a.cnn", seeds=2, out="c")


@pytest.mark.usefixtures("no_workers")
def test_an_interrupted_run_on_other_data_is_trained_again(
    run_compare: Compare, folder: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder_of_images(folder)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 0, 1, signal.SIGINT)
        assert run_compare("a.cnn", seeds=1, out="c").state == "interrupted"
    DATA_CHANGES["an image more"](images)
    row = run_compare("a.cnn", seeds=1, out="c").rows[0]
    assert [found.folder for found in row.runs] == ["runs/a/2"]


def test_damaged_runs_from_other_folders_are_ignored(
    run_compare: Compare, folder: Path, run: Callable[..., Any]
) -> None:
    whole = run(loads((folder / "a.cnn").read_text(), "a.cnn"), epochs=1).folder
    result = json.loads((whole / "result.json").read_text())
    for changes in (
        {"test_acc": "high"},
        {"epoch_seconds": 3},
        {"error": ["x"]},
        {"recipe": {"epochs": "many"}},
        {"seconds": []},
    ):
        (whole / "result.json").write_text(json.dumps({**result, **changes}))
        with pytest.raises(CnnspecError) as error:
            run_compare(runs=["runs"], out="c")
        assert code(error) == "E0506"
    (whole / "result.json").write_text(json.dumps(result))
    (whole / "metrics.jsonl").write_text('{"train_loss": "low", "epoch": 1}\n')
    assert run_compare(runs=["runs"], out="c").rows[0].runs[0].epochs == ()
    (whole / "metrics.jsonl").write_text("[1]\nnothing\n")
    assert run_compare(runs=["runs"], out="c").rows[0].runs[0].epochs == ()


def test_a_grid_applies_to_the_settings_that_a_spec_has(
    run_compare: Compare, folder: Path, trained: list[Any], output: io.StringIO
) -> None:
    done = run_compare("a.cnn", "b.cnn", seeds=1, grid={"c": ["4", "6"], "epochs": ["1"], "lr": ["0.1", "0.2"]})
    labels = ["a c=4 lr=0.1", "a c=4 lr=0.2", "a c=6 lr=0.1", "a c=6 lr=0.2", "b lr=0.1", "b lr=0.2"]
    assert [row.label for row in done.rows] == labels
    assert done.rows[3].settings == {"c": "6", "epochs": "1", "lr": "0.2"}
    assert [row.parameters for row in done.rows[1:3]] == [254, 376]
    assert {row.runs[0].result["recipe"]["epochs"] for row in done.rows} == {1}
    assert len(trained) == 6
    assert "`b.cnn` has no `c` and is compared without it" in output.getvalue()


@pytest.mark.parametrize(
    ("grid", "expected", "words"),
    [
        ({"width": ["4"]}, "E0217", "width"),
        ({"c": ["4", "relu"]}, "E0204", "a.cnn"),
        ({"lr": ["fast"]}, "E0204", "a.cnn"),
        ({"seed": ["1", "2"]}, "E0204", "--seeds"),
    ],
)
def test_invalid_grids(run_compare: Compare, folder: Path, grid: dict[str, Any], expected: str, words: str) -> None:
    with pytest.raises(CnnspecError) as error:
        run_compare("a.cnn", "b.cnn", grid=grid)
    assert code(error) == expected
    assert words in str(error.value)
    assert not (folder / "comparisons").exists()


def test_identical_networks_share_their_runs(
    run_compare: Compare, folder: Path, trained: list[Any], output: io.StringIO
) -> None:
    done = run_compare("a.cnn", seeds=1, grid={"c": ["4", "2 + 2"]})
    assert trained == [("a", 42)]
    assert done.rows[0].runs == done.rows[1].runs
    assert "`a c=2 + 2` is the same network with the same recipe as `a c=4`" in output.getvalue()
    with pytest.raises(CnnspecError) as error:
        run_compare("a.cnn", "a.cnn")
    assert code(error) == "E0206"
    (folder / "other").mkdir()
    (folder / "other" / "a.cnn").write_text(SPEC.replace("NAME", "a").replace("relu", "silu"))
    labels = [row.label for row in run_compare("a.cnn", "other/a.cnn", seeds=1, out="c").rows]
    assert labels == ["a (a.cnn)", "a (other/a.cnn)"]


# --- errors ---------------------------------------------------------------------------------------


def test_networks_from_python_are_labeled_by_their_arguments(run_compare: Compare, trained: list[Any]) -> None:
    text = Path("a.cnn").read_text()
    networks = [loads(text), loads(text, c=3), loads(text, c=3, lr=0.05)]
    done = run_compare(*networks, seeds=1)
    labels = [row.label for row in done.rows]
    assert [label.split(" (", 1)[1].split(" optimizer")[0].rstrip(")") for label in labels] == ["c=4", "c=3", "c=3"]
    assert "lr=0.05" in labels[2]
    assert len(trained) == 3
    with pytest.raises(CnnspecError) as error:
        run_compare(loads(text), loads(text))
    assert code(error) == "E0206"


def test_a_diverged_network_is_a_failed_row(run_compare: Compare, trained: list[Any], output: io.StringIO) -> None:
    done = run_compare("a.cnn", "b.cnn", seeds=1, grid={"lr": ["0.1", "1e12"]})
    assert (done.state, done.exit_code) == ("failed", 1)
    assert [len(row.failed) for row in done.rows] == [0, 1, 0, 1]
    assert len(trained) == 4
    assert "0 of 1, 1 failed" in done.to_text()
    assert "a lr=1e12, seed 42 failed: E0509: " in done.to_text()
    assert done.to_json()["rows"][1]["test_acc"] is None
    again = run_compare("a.cnn", "b.cnn", seeds=1, grid={"lr": ["0.1", "1e12"]})
    assert len(trained) == 4
    assert again.to_json() == done.to_json()


def test_an_error_of_every_network_ends_the_comparison(run_compare: Compare, folder: Path) -> None:
    (folder / "b.cnn").write_text(SPEC.replace("classes 10", "classes 9"))
    with pytest.raises(CnnspecError) as error:
        run_compare("a.cnn", "b.cnn")
    assert code(error) == "E0501"
    assert not list(folder.glob("comparisons/*/runs/*"))


def test_another_comparison_in_the_same_folder_is_refused(
    run_compare: Compare, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "JOIN_SECONDS", 0.1)
    (folder / "c").mkdir()
    for identity in ("", "of another one", None):
        with comparing.acquire(folder / "c" / comparing.LOCK) as lock:
            if identity is not None:
                lock.write(identity)
                lock.flush()
                comparing.relock(lock, shared=True)
            with pytest.raises(CnnspecError) as error:
                run_compare("a.cnn", out="c")
        assert code(error) == "E0506"
        assert not list(folder.glob("c/runs/*"))


def test_a_comparison_under_torchrun_is_refused(
    run_compare: Compare, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables(0, 2, 29500).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CnnspecError) as error:
        run_compare("a.cnn", out="c")
    assert code(error) == "E0524"
    assert not (folder / "c").exists()


# --- several processes ----------------------------------------------------------------------------


def test_three_processes_share_the_runs_and_one_of_them_is_killed(
    run_compare: Compare, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is trained once, that of the killed process is resumed, and the others end with the same table."""
    networks, given = ("a.cnn", "b.cnn"), {"seeds": 3, "out": "c", "options": {"save_every": 0.01}}
    dies = folder / "dies"

    def work(number: int) -> int:
        started: list[int] = []

        def recorded(graph: Graph, options: TrainOptions) -> Any:
            started.append(options.seed or 0)
            with (folder / "log").open("a") as log:
                log.write(f"{graph.name} {options.seed} {'resumed' if options.resume else 'new'}\n")

            def watch(epoch: int, scores: Any) -> bool:
                if number == 0 and len(started) == 2:
                    dies.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                if number and len(started) == 2:  # leave two runs for the first process
                    wait_until(dies.exists)
                return False

            return train(graph, replace(options, watch=watch))

        comparing.train = recorded
        done = run_compare(*networks, **given)
        (folder / f"{number}.json").write_text(json.dumps(done.to_json()))
        return done.exit_code

    children = [fork(lambda number=number: work(number)) for number in range(3)]
    assert [wait(child) for child in children] == [-signal.SIGKILL, 0, 0]
    log = (folder / "log").read_text().splitlines()
    new, resumed = ([line for line in log if line.endswith(word)] for word in ("new", "resumed"))
    assert len(new) == len(set(new)) == 6
    assert len(resumed) == 1
    assert len(results(folder / "c")) == 6
    assert {result["state"] for result in results(folder / "c").values()} == {"finished"}
    assert (folder / "1.json").read_text() == (folder / "2.json").read_text()
    assert json.loads((folder / "c/comparison.json").read_text())["state"] == "finished"
    assert not (folder / "c" / comparing.CLAIMS).exists()


# --- signals and kills ----------------------------------------------------------------------------


def test_five_kills_change_nothing(tmp_path: Path) -> None:
    done = kill_comparisons.hunt(1, 1, tmp_path)
    assert done.faults == []
    assert done.kills == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_comparison_and_it_resumes(
    run_compare: Compare, folder: Path, output: io.StringIO, number: signal.Signals
) -> None:
    epochs = 20
    given = {"seeds": 1, "out": "c", "options": {"epochs": epochs, "resume_command": "this again"}}
    sent = folder / "sent"

    def stopped() -> int:
        watch(pytest.MonkeyPatch(), lambda batches, *_: batches.epoch < 2 or wait_until(sent.exists))
        code = run_compare("a.cnn", **given).exit_code
        (folder / "output.txt").write_text(output.getvalue())
        return code

    child, journal = fork(stopped), folder / "c/runs/a/1/result.json"
    wait_until((folder / "c/runs/a/1/checkpoints/best.ckpt").exists)
    os.kill(child, number)
    sent.touch()
    assert wait(child) == 128 + number
    assert "resume with `this again`" in (folder / "output.txt").read_text()
    assert json.loads((folder / "c/comparison.json").read_text())["state"] == "interrupted"
    stored = json.loads(journal.read_text())
    assert 0 < stored["epochs"] < epochs
    begin = time.monotonic()
    again = run_compare("a.cnn", **given).rows[0].runs[0].result
    took = time.monotonic() - begin
    ends = again["epoch_seconds"]
    assert ends[: stored["epochs"]] == stored["epoch_seconds"]
    assert len(ends) == epochs
    assert ends == sorted(ends)
    rounded = 0.1
    assert stored["seconds"] - rounded <= ends[stored["epochs"]]
    assert ends[-1] - rounded <= again["seconds"] <= stored["seconds"] + took + rounded


def test_the_command(folder: Path, request: pytest.FixtureRequest) -> None:
    previous = signal.getsignal(signal.SIGTERM)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, previous))
    stated = ["--threads", "1", "--memory-format", "channels_last", "--offline", "--epochs", "1", "--seeds", "1"]
    done = CliRunner().invoke(app, ["compare", "a.cnn", "--set", "c=2,3", *stated, "--target", "1%", "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert [row["settings"] for row in data["rows"]] == [{"c": "2"}, {"c": "3"}]
    assert (data["state"], data["target"]) == ("finished", 0.01)
    assert "run 1 of 2: a c=2, seed 42\n" in done.stderr, done.stderr
    assert re.search(r"run 2 of 2: a c=3, seed 42, about \d+:\d\d left in total\n", done.stderr), done.stderr
    again = CliRunner().invoke(app, ["compare", "a.cnn", "--set", "c=2,3", *stated, "--format", "markdown"])
    assert again.stdout.startswith("| network | seeds |")
    assert "2 runs, 2 of them done" in again.stderr


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["a.cnn", "--target", "0"],
        ["a.cnn", "--target", "101%"],
        ["a.cnn", "--target", "high"],
        ["a.cnn", "--seeds", "0"],
        ["a.cnn", "--format", "html"],
        ["a.cnn", "--json", "--format", "csv"],
        ["a.cnn", "--set", "c=1,1"],
        ["--runs", "runs", "--set", "c=1"],
    ],
    ids=" ".join,
)
def test_usage(folder: Path, args: list[str]) -> None:
    done = CliRunner().invoke(app, ["compare", *args])
    assert done.exit_code == 2, done.output
    assert not (folder / "comparisons").exists()
