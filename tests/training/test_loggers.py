"""Test external loggers with the real packages, if installed: they must contain what the journal contains."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.batches import stop_at
from harness.runs import tiny

from cnnspec import Graph, loads
from cnnspec.training import Result
from cnnspec.training.loop.journal import read_journal

SPEC = tiny("data fashion_mini val=2000; batch 250; epochs 2; optimizer sgd lr=0.1 momentum=0.9")
STEPS = 16
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny() -> Graph:
    return loads(SPEC, name="tiny.cnn")


def stopped_and_gone_on_with(run: Callable[..., Result], *log: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, 4)
        assert run(tiny(), log=log).state == "interrupted"
    result = run(tiny(), log=log, resume=True)
    assert result.state == "finished"
    assert set(result.values["loggers"]) == set(log)
    return result


def test_mlflow_contains_the_journal_of_a_stopped_run(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    result = stopped_and_gone_on_with(run, "mlflow")
    client = tracking.MlflowClient(f"sqlite:///{result.folder / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "cnnspec"]
    (there,) = client.search_runs([experiment.experiment_id])
    assert there.info.run_id == result.values["loggers"]["mlflow"]
    assert there.info.status == "FINISHED"
    assert there.data.params["optimizer/name"] == "sgd"
    for name in ("train_loss", "val_loss", "val_acc", "loss", "lr"):
        kept = {point.step: point.value for point in client.get_metric_history(there.info.run_id, name)}
        assert kept == {row["step"]: row[name] for row in read_journal(result.folder) if name in row}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def records(path: Path) -> Iterator[Any]:
    """Read the records of a wandb file: a header of 7 bytes, followed by the log format of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (room := -place % 32768) < 7:  # the rest of a block cannot contain the header of a part
            place += room
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the only part, the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb_contains_the_journal_of_a_stopped_run(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    result = stopped_and_gone_on_with(run, "wandb")
    name = result.values["loggers"]["wandb"]
    parts = sorted((result.folder / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(parts) == 2
    kept: dict[int, dict[str, float]] = {}
    ends: list[int] = []
    for record in (record for part in parts for record in records(part)):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "trainer/global_step" in items:
            kept.setdefault(items["trainer/global_step"], {}).update(items)
        if record.WhichOneof("record_type") == "exit":
            ends.append(record.exit.exit_code)
    assert ends == [1, 0]
    rows: dict[int, dict[str, float]] = {}
    for row in read_journal(result.folder):
        rows.setdefault(row["step"], {}).update({key: value for key, value in row.items() if key != "step"})
    assert {step: {key: kept[step][key] for key in row} for step, row in rows.items()} == rows
    assert set(kept) == set(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_tensorboard_contains_the_journal_once(run: Callable[..., Result]):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = stopped_and_gone_on_with_tensorboard(run)
    found = EventAccumulator(str(result.folder / "tensorboard"))
    found.Reload()
    for name in ("train_loss", "val_acc", "lr"):
        kept = {event.step: event.value for event in found.Scalars(name)}
        assert kept == pytest.approx({row["step"]: row[name] for row in read_journal(result.folder) if name in row})
    assert found.Tags()["graph"]


def stopped_and_gone_on_with_tensorboard(run: Callable[..., Result]) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, 4)
        run(tiny(), log=("tensorboard",))
    return run(tiny(), log=("tensorboard", "tensorboard"), resume=True)


def test_a_logger_that_fails_later_does_not_end_the_run(
    run: Callable[..., Result], output: io.StringIO, monkeypatch: pytest.MonkeyPatch
):
    from pytorch_lightning.loggers import CSVLogger

    from cnnspec.training.runs import loggers as logs

    class Failing(CSVLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            raise ConnectionError("the server is away")

    monkeypatch.setattr(logs, "_start", lambda name, folder, known: Failing(folder))
    result = run(tiny(), log=("mlflow",))
    assert result.state == "finished"
    assert output.getvalue().count("logging to mlflow failed and is disabled for this run: the server is away") == 1


def refused(folder: Path, name: str, before: str = "pass", **environment: str) -> str:
    """Return the message of a run that cannot use a logger and writes nothing."""
    (folder / "tiny.cnn").write_text(SPEC)
    script = f"import sys; {before}; from cnnspec.cli import main; main()"
    command = [sys.executable, "-c", script, "build", "tiny.cnn", "--train", "--log", name]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "MLFLOW_"))}
    settings = {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    ended = subprocess.run(
        command, cwd=folder, env=settings, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600
    )
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (folder / "runs").exists()
    return ended.stderr


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_logger_is_reported(name: str, tmp_path: Path):
    output = refused(tmp_path, name, f"sys.modules[{name!r}] = None")
    assert "E0507" in output
    assert f"pip install {name}" in output


def test_wandb_without_a_login_cannot_start(tmp_path: Path):
    pytest.importorskip("wandb")
    home = str(tmp_path / "home")
    output = refused(tmp_path, "wandb", HOME=home, NETRC=str(tmp_path / "none"), WANDB_BASE_URL="http://127.0.0.1:9")
    assert "E0510" in output
    assert "cannot start the logger `wandb`" in output
    assert "WANDB_MODE=offline" in output


def test_mlflow_without_its_server_cannot_start(tmp_path: Path):
    pytest.importorskip("mlflow")
    output = refused(tmp_path, "mlflow", MLFLOW_TRACKING_URI="nonsense://server")
    assert "E0510" in output
    assert "cannot start the logger `mlflow`" in output
    assert "MLFLOW_TRACKING_URI" in output
