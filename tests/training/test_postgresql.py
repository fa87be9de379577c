"""Test sweeps whose storage is a PostgreSQL server: `make test-cluster`."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import postgres
from harness.kill_runs import fork, wait
from harness.runs import tiny
from rich.console import Console

from cnnspec import CnnspecError
from cnnspec.training import SweepOptions, SweepResult, TrainOptions, sweep
from cnnspec.training.sweeps.space import Space

study = pytest.importorskip("cnnspec.training.sweeps.study")
storage = pytest.importorskip("cnnspec.training.sweeps.storage")
SPEC = tiny("data fashion_mini val=500; batch 500; epochs 3; optimizer sgd lr=0.1 momentum=0.9")
SPACE = {"lr": "0.01..0.3"}


def with_server(test: Any) -> Any:
    """Mark a test that needs a server."""
    for mark in (
        pytest.mark.cluster,
        pytest.mark.skipif(postgres.programs() is None, reason="the PostgreSQL server is not installed"),
        pytest.mark.usefixtures("one_thread"),
    ):
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    pytest.importorskip("psycopg")
    with postgres.run_server() as server:
        yield server


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.cnn"
    path.write_text(SPEC)
    return path


def work(spec: Path, out: Path, url: str, trials: int = 4) -> SweepResult:
    train = TrainOptions(offline=True, plots=False, memory_format="contiguous", threads=1)
    console = Console(file=io.StringIO(), width=200)
    return sweep(spec, SPACE, SweepOptions(trials=trials, out=out, storage=url, train=train, console=console))


def runs(folder: Path) -> list[Path]:
    return sorted(folder.glob("trials/*/tiny/*/result.json"))


URLS = [
    "postgresql://user:PASS@host/db",
    "postgresql+psycopg://user:PASS@host:5432/db?sslmode=require",
    "postgresql://host/db?user=me&password=PASS",
    "postgresql://user:PASS@[::1]:99999999/db",
    "mysql://user:PASS@host/db",
    "nonsense://user:PASS@host:port/db",
    "user:PASS@host",
    "//user:PASS@host",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("secret", ["s3cret", "a%40b%2Fc", "p:q"])
def test_no_password_is_shown(url: str, secret: str, spec: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    address = storage.Address(url.replace("PASS", secret))
    with pytest.raises(CnnspecError) as error:
        address.open(lambda: True)
    said = str(error.value) + address.shown + address.redact(f"failed: {url.replace('PASS', secret)}")
    said += json.dumps([d.to_json() for d in error.value.diagnostics], default=str) + "".join(capfd.readouterr())
    assert error.value.diagnostics[0].code in ("E0516", "E0507")
    for spelling in (secret, secret.replace("%40", "@").replace("%2F", "/")):
        assert spelling not in said


@pytest.mark.parametrize("path", ["plain", "with space", "{braces}", "100%", "a@b", "a:b", "q?x=1", "h#1", "ü"])
def test_a_sweep_works_in_any_folder(path: str, tmp_path: Path):
    shared = study.SharedStudy(tmp_path / path, None, path, Space.of({"a": [1, 2]}), 0, "none", {})
    shared.refresh()
    shared.close()
    assert (tmp_path / path / "study.db").is_file()


# --- with a server ----------------------------------------------------------------------------------


@with_server
def test_machines_share_a_new_database(server: postgres.Server, tmp_path: Path):
    """Six machines create the tables and the study at the same time."""

    def open_study(place: int) -> int:
        folder = tmp_path / str(place)
        shared = study.SharedStudy(folder, server.url, "new", Space.of({"a": [1, 2]}), 0, "none", {"x": 1})
        shared.close()
        return 0

    children = [fork(lambda place=place: open_study(place)) for place in range(6)]
    assert [wait(child) for child in children] == [0] * 6


@with_server
def test_a_killed_worker_on_another_machine(
    server: postgres.Server, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "HEARTBEAT", 1)
    monkeypatch.setattr(storage, "GRACE", 3)
    here, there = tmp_path / "here" / "killed", tmp_path / "there" / "killed"

    def dying() -> int:
        study.SharedStudy.report = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        return work(spec, there, server.url).exit_code

    assert wait(fork(dying)) == -signal.SIGKILL
    found = work(spec, here, server.url)
    assert found.state == "finished"
    assert {row["state"] for row in found.values["trials"]} <= {"finished", "pruned"}
    assert len(found.values["trials"]) == 4
    assert len(runs(here)) == 4  # one of them starts again, because the folder is not shared
    assert postgres.PASSWORD not in json.dumps(found.values)


@with_server
def test_a_killed_worker_on_the_same_machine(server: postgres.Server, spec: Path, tmp_path: Path):
    out = tmp_path / "same"

    def dying() -> int:
        report = study.SharedStudy.report

        def die(self: Any, trial: Any, epoch: int, accuracy: float) -> bool:
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return report(self, trial, epoch, accuracy)

        study.SharedStudy.report = die
        return work(spec, out, server.url).exit_code

    assert wait(fork(dying)) == -signal.SIGKILL
    found = work(spec, out, server.url)
    assert {row["state"] for row in found.values["trials"]} <= {"finished", "pruned"}
    assert len(found.values["trials"]) == 4
    assert len(runs(out)) == 4  # the interrupted one is resumed


@with_server
def test_a_killed_server_is_waited_for(
    server: postgres.Server, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "HEARTBEAT", 1)
    monkeypatch.setattr(storage, "GRACE", 3)
    out, killed = tmp_path / "restarted", threading.Event()
    report = study.SharedStudy.report

    def killing(self: Any, trial: Any, epoch: int, accuracy: float) -> bool:
        if trial.number == 1 and epoch == 2 and not killed.is_set():
            server.kill()
            killed.set()
            threading.Timer(6, server.start).start()  # longer than the time after which a process counts as dead
        return report(self, trial, epoch, accuracy)

    monkeypatch.setattr(study.SharedStudy, "report", killing)
    found = work(spec, out, server.url)
    assert killed.is_set()
    assert (found.state, found.exit_code) == ("finished", 0)
    assert {row["state"] for row in found.values["trials"]} <= {"finished", "pruned"}
    assert len(found.values["trials"]) == 4
    assert len(runs(out)) == 4


@with_server
def test_a_server_that_stays_away_is_an_error_and_the_sweep_resumes(
    server: postgres.Server, spec: Path, tmp_path: Path
):
    out = tmp_path / "away"

    def without_server() -> int:
        storage.PATIENCE = 2
        report = study.SharedStudy.report

        def killing(self: Any, trial: Any, epoch: int, accuracy: float) -> bool:
            if trial.number == 1 and epoch == 2:
                server.kill()
            return report(self, trial, epoch, accuracy)

        study.SharedStudy.report = killing
        try:
            work(spec, out, server.url)
        except CnnspecError as error:
            (tmp_path / "error").write_text(str(error))
            return 1
        return 0

    started = time.monotonic()
    assert wait(fork(without_server)) == 1
    assert time.monotonic() - started < 60
    server.start()
    text = (tmp_path / "error").read_text()
    assert "E0516" in text
    assert "no longer accessible" in text
    assert "s3cret" not in text
    found = work(spec, out, server.url)
    assert {row["state"] for row in found.values["trials"]} <= {"finished", "pruned"}
    assert len(found.values["trials"]) == 4
    assert len(runs(out)) == 4


@with_server
def test_the_command_names_no_password(server: postgres.Server, spec: Path, tmp_path: Path):
    def call(url: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cnnspec", "sweep", str(spec), "--set", "lr=0.1,0.2", "--trials", "1",
                   "--storage", url, "--out", str(tmp_path / "command"), "--no-plots", *more]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    done = call(server.url, "--json")
    assert done.returncode == 0, done.stderr
    wrong = call(server.url.replace("s3cret", "wr0ng"))
    assert (wrong.returncode, "E0516" in wrong.stderr) == (1, True)
    texts = [path.read_text(errors="replace") for path in (tmp_path / "command").rglob("*") if path.is_file()]
    for text in (done.stdout, done.stderr, wrong.stdout, wrong.stderr, *texts):
        assert "s3cret" not in text
        assert "wr0ng" not in text
