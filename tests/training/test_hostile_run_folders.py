"""Test run folders and sweeps of unknown origin: files of every kind in the place of every file of a run."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness.effort import bounded
from harness.runs import TINY
from rich.console import Console
from typer.testing import CliRunner

from cnnspec import CnnspecError, Graph, loads
from cnnspec.cli.app import app
from cnnspec.training import TrainOptions, compare, sweep, train
from cnnspec.training.comparison.compare import REPORT
from cnnspec.training.loop.checkpoints import seal, unseal
from cnnspec.training.runs.listing import list_runs
from cnnspec.training.runs.lookup import epoch_rows, stored_runs
from cnnspec.training.runs.predictions import read_predictions
from cnnspec.training.sweeps.sweep import SweepOptions

LIMITS = 2.0, 300
"""Seconds, and mebibytes."""
pytestmark = pytest.mark.usefixtures("one_thread")


def graph() -> Graph:
    recipe = "train { data fashion_mini val=5900 test=50; epochs 2; batch 50; optimizer sgd lr=0.1 momentum=0.9 }"
    return loads(TINY + recipe, name="tiny.cnn")


def options(out: Path, **more: Any) -> TrainOptions:
    console = Console(file=io.StringIO(), width=200)
    given = {"plots": False, "offline": True, "threads": 1, "memory_format": "contiguous", **more}
    return TrainOptions(out=out, console=console, **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one finished run."""
    out = tmp_path_factory.mktemp("runs")
    train(graph(), options(out))
    return out


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder with an intact run and another one to damage."""
    out = tmp_path / "runs"
    shutil.copytree(finished, out)
    shutil.copytree(out / "tiny" / "1", out / "tiny" / "2")
    return out, out / "tiny" / "2"


# --- files in the place of a file -----------------------------------------------------------------


def bytes_of(make: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        old = path.read_bytes()
        path.unlink()
        path.write_bytes(make(old))

    return write


def replaced_by(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.unlink()
        make(path)

    return write


def elsewhere(path: Path) -> None:
    """Replace a file by a link to a copy outside the run."""
    secret = path.parents[3] / "secret"
    secret.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(secret)


KINDS: dict[str, Callable[[Path], None]] = {
    "missing": replaced_by(lambda path: None),
    "empty": bytes_of(lambda old: b""),
    "half": bytes_of(lambda old: old[: len(old) // 2]),
    "garbage": bytes_of(lambda old: bytes(range(256)) * 64),
    "not UTF-8": bytes_of(lambda old: old.replace(b"t", b"\xff", 1)),
    "zeros": bytes_of(lambda old: bytes(10_000)),
    "nested": bytes_of(lambda old: b"[" * 100_000),
    "nested objects": bytes_of(lambda old: b'{"a":' * 100_000),
    "balanced": bytes_of(lambda old: b"[" * 100_000 + b"]" * 100_000),
    "many values": bytes_of(lambda old: b"[" + b"[]," * 2_000_000 + b"[]]"),
    "null": bytes_of(lambda old: b"null"),
    "a list": bytes_of(lambda old: b"[]"),
    "an object": bytes_of(lambda old: b"{}"),
    "a number": bytes_of(lambda old: b"1e999"),
    "digits": bytes_of(lambda old: b"9" * 1_000_000),
    "huge": replaced_by(lambda path: (path.touch(), os.truncate(path, 1 << 40))),
    "a folder": replaced_by(Path.mkdir),
    "a pipe": replaced_by(os.mkfifo),
    "a link elsewhere": elsewhere,
    "a link to nothing": replaced_by(lambda path: path.symlink_to("nothing")),
    "a link to itself": replaced_by(lambda path: path.symlink_to(path.name)),
    "a device": replaced_by(lambda path: path.symlink_to("/dev/zero")),
}
FILES = ("result.json", "model.json", "spec.cnn", "metrics.jsonl", "predictions.csv")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_hides_no_other_run(name: str, kind: str, runs: tuple[Path, Path]):
    out, run = runs
    KINDS[kind](run / name)
    skipped: list[CnnspecError] = []
    with bounded(*LIMITS):
        listed = list_runs(out)
        found = stored_runs(out, skipped.append)
        rows = [epoch_rows(stored.folder) for stored in found]
        predictions = [read_predictions(stored.folder) for stored in found]
    states = [entry["state"] for entry in listed]
    assert states[0] == "finished"
    if name == "result.json":
        assert states[1:] == ([] if kind == "missing" else ["unreadable"])
        assert all(entry["reason"] and "result.json" in entry["reason"] for entry in listed[1:]) or kind in (
            "an object",
        )
    assert found[0].folder == out / "tiny" / "1"
    assert len(rows[0]) == 2
    assert predictions[0].keys() == {"val", "test"}
    if name in ("metrics.jsonl", "predictions.csv"):
        assert len(found) == 2
    elif kind != "missing" or name != "result.json":
        kept = name == "spec.cnn" and len(found) == 2  # any short text can be a spec
        assert kept or [error.diagnostics[0].file for error in skipped] == [str(run / name)]


@pytest.mark.parametrize("kind", ["nested", "a link elsewhere", "a pipe", "an object"])
@pytest.mark.parametrize("name", FILES)
def test_a_comparison_leaves_out_damaged_runs(name: str, kind: str, runs: tuple[Path, Path], tmp_path: Path):
    out, run = runs
    (tmp_path / "secret").write_text("")
    (run / "spec.cnn").write_text("# secret text\n" + (run / "spec.cnn").read_text())
    KINDS[kind](run / name)
    done = compare(runs=[out], options=options(out), out=tmp_path / "comparison")
    assert done.state == "finished"
    page = (done.folder / REPORT).read_text()
    assert "secret text" not in page or name != "spec.cnn"


WRONG = {
    "a text": "x",
    "a long text": "x" * 100_000,
    "a list": [],
    "an object": {},
    "nested": [[[[[[]]]]]],
    "negative": -1,
    "large": 10**30,
    "a fraction": 0.5,
    "not a number": math.nan,
    "infinite": math.inf,
    "true": True,
    "null": None,
}


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value in plain data."""
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield (*path, key)
        yield from places(data[key], (*path, key))


@pytest.mark.parametrize("name", ["result.json", "model.json"])
def test_a_wrong_value_at_any_key_is_no_traceback(name: str, runs: tuple[Path, Path]):
    out, run = runs
    file = run / name
    text = file.read_text()
    count = 0
    for number, place in enumerate(places(json.loads(text))):
        for kind, value in WRONG.items():
            if (number + len(kind)) % (6 if name == "model.json" else 3):
                continue
            data = json.loads(text)
            parent = data
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = value
            file.write_text(json.dumps(data))
            count += 1
            skipped: list[CnnspecError] = []
            assert len(list_runs(out)) == 2
            found = stored_runs(out, skipped.append)
            assert len(found) + len(skipped) == 2, (place, kind)
            assert all(error.diagnostics[0].file == str(file) for error in skipped), (place, kind)
    assert count > 200


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_lists_damaged_runs_with_a_reason(kind: str, runs: tuple[Path, Path]):
    out, run = runs
    KINDS[kind](run / "result.json")
    result = CliRunner().invoke(app, ["runs", str(out)])
    assert (result.exit_code, result.exception) == (0, None)
    if kind not in ("missing", "an object"):
        assert "unreadable" in result.output
        assert f"{run}: cannot read `result.json`" in result.output.replace("\n", "")


def test_a_result_without_a_version_is_listed(runs: tuple[Path, Path]):
    out, run = runs
    data = json.loads((run / "result.json").read_text())
    del data["format_version"]
    (run / "result.json").write_text(json.dumps(data))
    entry = list_runs(out)[1]
    assert entry["state"] == "unreadable"
    assert "found no format version" in entry["reason"]


# --- resuming -------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(runs: tuple[Path, Path]) -> tuple[Path, Path]:
    """Return a folder with a run that can be resumed."""
    out, run = runs
    data = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**data, "state": "interrupted"}))
    state = unseal((run / "checkpoints" / "last.ckpt").read_bytes())
    state["progress"] |= {"step": 2, "validated_step": 2, "epoch_seconds": [0.1], "best_epoch": 1}
    (run / "checkpoints" / "last.ckpt").write_bytes(seal(state))
    (run / "checkpoints" / "previous.ckpt").unlink()
    return out, run


def forged(**changes: Any) -> Callable[[Path], None]:
    """Return a change of a checkpoint that keeps its seal intact."""

    def write(path: Path) -> None:
        state = unseal(path.read_bytes())
        for key, value in changes.items():
            if value is KeyError:
                del state[key]
            else:
                state[key] = value(state[key]) if callable(value) else value
        path.unlink()
        path.write_bytes(seal(state))

    return write


FORGED = {
    "progress a number": forged(progress=5),
    "progress empty": forged(progress={}),
    "progress of words": forged(progress=lambda old: dict.fromkeys(old, "x")),
    "too many steps": forged(progress=lambda old: {**old, "step": 10**9}),
    "negative step": forged(progress=lambda old: {**old, "step": -1}),
    "not finite": forged(progress=lambda old: {**old, "sums": [math.nan] * 3}),
    "another key": forged(progress=lambda old: {**old, "extra": 1}),
    "no weights": forged(state_dict={}),
    "weights a list": forged(state_dict=[1]),
    "weights of another shape": forged(state_dict=lambda old: {key: value[None] for key, value in old.items()}),
    "weights as integers": forged(state_dict=lambda old: {key: value.long() for key, value in old.items()}),
    "optimizer of words": forged(optimizer_states=["x"]),
    "momentum of another shape": forged(
        optimizer_states=lambda old: [{**old[0], "state": {0: {"momentum_buffer": __import__("torch").ones(3)}}}]
    ),
    **{f"missing {key}": forged(**{key: KeyError}) for key in ("state_dict", "optimizer_states")},
    "recipe a number": forged(run=lambda old: {**old, "recipe": 5}),
    "recipe of another language": forged(
        run=lambda old: {**old, "recipe": {**old["recipe"], "optimizer": {"name": "x"}}}
    ),
    "no steps in an epoch": forged(run=lambda old: {**old, "steps_per_epoch": 0}),
    "data a number": forged(run=lambda old: {**old, "data": 5}),
    "run a list": forged(run=[]),
    "preprocessing a number": forged(run=lambda old: {**old, "about": {"preprocessing": 5}}),
}
HARMLESS = {
    "no optimizer": forged(optimizer_states=[]),
    "schedule of words": forged(lr_schedulers=lambda old: [dict.fromkeys(old[0], "x")]),
    "rate a word": forged(
        optimizer_states=lambda old: [{**old[0], "param_groups": [{**old[0]["param_groups"][0], "lr": "x"}]}]
    ),
    "no run": forged(run=None),
}
"""Changes of what a resumed run does not use."""
CHECKPOINTS = {kind: KINDS[kind] for kind in ("empty", "half", "garbage", "huge", "a folder", "a pipe", "a device")}


def test_an_intact_checkpoint_resumes(unfinished: tuple[Path, Path]):
    out, _ = unfinished
    assert train(graph(), options(out, resume=True)).state == "finished"


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_is_not_used_of_a_checkpoint_is_not_read(kind: str, unfinished: tuple[Path, Path]):
    out, run = unfinished
    HARMLESS[kind](run / "checkpoints" / "last.ckpt")
    assert train(graph(), options(out, resume=True)).state == "finished"


@pytest.mark.parametrize("kind", [*FORGED, *CHECKPOINTS])
def test_a_forged_checkpoint_is_an_error_that_names_it(kind: str, unfinished: tuple[Path, Path]):
    out, run = unfinished
    {**FORGED, **CHECKPOINTS}[kind](run / "checkpoints" / "last.ckpt")
    with bounded(*LIMITS), pytest.raises(CnnspecError) as error:
        train(graph(), options(out, resume=True))
    found = error.value.diagnostics[0]
    assert found.code == "E0506"
    assert "last.ckpt" in str(error.value) or "do not match its checkpoint" in found.message


@pytest.mark.parametrize(
    "name",
    [
        "metrics.csv", "metrics.jsonl", "metrics.csv.part", "result.json.part", ".lock", "predictions.csv",
        "checkpoints/best.ckpt", "checkpoints/new.ckpt.part", "confusion.csv", "tensorboard/events",
    ],
)  # fmt: skip
def test_resuming_writes_nothing_outside_the_run(name: str, unfinished: tuple[Path, Path], tmp_path: Path):
    out, run = unfinished
    mine = tmp_path / "mine"
    mine.write_text("my text")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(mine)
    with pytest.raises(CnnspecError) as error:
        train(graph(), options(out, resume=True))
    assert (error.value.diagnostics[0].code, mine.read_text()) == ("E0506", "my text")
    assert Path(name).name in str(error.value)


# --- sweeps ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sweep")
    spec = folder / "tiny.cnn"
    spec.write_text(graph().text.replace("epochs 2", "epochs 1"))
    search(spec, folder / "out")
    return spec, folder / "out"


def search(spec: Path, out: Path) -> Any:
    given = options(Path(), epochs=1)
    return sweep(spec, {"lr": [0.1, 0.2]}, SweepOptions(trials=2, out=out, train=given, console=given.console))


def executed(*statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            for statement in statements:
                database.execute(statement)

    return change


SET = "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = '{}'"
DATABASES = {
    **{kind: KINDS[kind] for kind in KINDS if kind not in ("missing", "empty")},
    "a view": executed("CREATE VIEW v AS SELECT 1"),
    "an endless view": executed(
        "ALTER TABLE studies RENAME TO others",
        "CREATE VIEW studies AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT x FROM c",
    ),
    "a trigger": executed("CREATE TRIGGER t AFTER INSERT ON trials BEGIN DELETE FROM trials; END"),
    "another column": executed("ALTER TABLE trials RENAME COLUMN state TO phase"),
    "candidate a number": executed(SET.format("5", "candidate")),
    "candidate empty": executed(SET.format("{}", "candidate")),
    "candidate nested": executed(SET.format("[" * 100_000, "candidate")),
    "values a list": executed(SET.format('{"values": [], "sizes": {}, "reason": null}', "candidate")),
    "other values": executed(
        SET.format('{"values": {"q": "1"}, "sizes": {"parameters": 1, "macs": 1}, "reason": null}', "candidate")
    ),
    "no sizes": executed(SET.format('{"values": {"lr": "1"}, "sizes": {}, "reason": null}', "candidate")),
    "a worker a number": executed(SET.format("5", "worker")),
    "another verdict": executed(SET.format('"x"', "verdict")),
    "broken JSON": executed(SET.format("{", "verdict")),
    "terms a list": executed("UPDATE study_user_attributes SET value_json = '[]'"),
    "terms broken": executed("UPDATE study_user_attributes SET value_json = '{'"),
    "another state": executed("UPDATE trials SET state = 'X'"),
}


@pytest.mark.parametrize("kind", DATABASES)
def test_a_damaged_database_is_an_error_that_names_it(kind: str, swept: tuple[Path, Path], tmp_path: Path):
    spec, done = swept
    shutil.copytree(done, tmp_path / "s" / "w" / "e" / "out")
    out = tmp_path / "s" / "w" / "e" / "out"
    DATABASES[kind](out / "study.db")
    with bounded(*LIMITS), pytest.raises(CnnspecError) as error:
        search(spec, out)
    assert error.value.diagnostics[0].code == "E0516"
    assert "study.db" in str(error.value)
