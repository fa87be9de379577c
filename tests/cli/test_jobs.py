"""Test `--jobs`: which devices the processes get, signals, and processes that die. Whole runs: `make test-cluster`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness.runs import tiny
from typer.testing import CliRunner

pytest.importorskip("torch")

from cnnspec import CnnspecError, load
from cnnspec.cli import workers
from cnnspec.cli.app import app
from cnnspec.training.loop import machine

SPEC = tiny("data fashion_mini val=4000; batch 250; epochs 20; optimizer sgd lr=0.1 momentum=0.9", name="a")


def plan(count: int | None = None, runs: int = 100) -> workers.Plan:
    return workers.plan_jobs(count, [load("resnet20"), load("lenet5")], runs, "auto")


@pytest.mark.parametrize(
    ("cores", "gibibytes", "runs", "jobs", "threads"),
    [(8, 64, 100, 8, 1), (8, 64, 3, 3, 2), (8, 4, 100, 3, 2), (8, 0.1, 100, 1, 8), (1, 64, 100, 1, 1)],
)
def test_jobs_on_a_cpu(
    cores: int, gibibytes: float, runs: int, jobs: int, threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers, "available_cores", lambda: cores)
    monkeypatch.setattr(workers, "machine_memory", lambda: int(gibibytes * 2**30))
    found = plan(runs=runs)
    assert found.environments == ({"OMP_NUM_THREADS": str(threads)},) * jobs
    assert found.text.startswith(f"{jobs} at a time on the CPU, {threads} thread")
    assert len(plan(count=5).environments) == 5


def gpus(monkeypatch: pytest.MonkeyPatch, rows: str | None, visible: str | None, count: int = 3) -> None:
    monkeypatch.setattr(machine, "device_of", lambda accelerator: machine.torch.device("cuda"))
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        if rows is None:
            raise FileNotFoundError
        return subprocess.CompletedProcess([], 0, rows, "")

    monkeypatch.setattr(workers.subprocess, "run", run)


ROWS = "0, GPU-a, 100, 80000\n1, GPU-b, 79000, 80000\n2, GPU-c, 0, 80000\n"


@pytest.mark.parametrize(
    ("rows", "visible", "expected"),
    [
        (ROWS, None, ["0", "2"]),
        (ROWS, "1,2", ["2"]),
        (ROWS, "GPU-b, GPU-a", ["GPU-a"]),
        (ROWS, "MIG-1,MIG-2", ["MIG-1", "MIG-2"]),
        (ROWS, "1", ["1"]),  # the user has chosen it
        (None, None, ["0", "1", "2"]),
        ("nonsense", "0,1", ["0", "1"]),
        ("", None, ["0", "1", "2"]),
    ],
)
def test_jobs_on_free_gpus(rows: str | None, visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch):
    gpus(monkeypatch, rows, visible)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in plan().environments] == expected
    assert len(plan(runs=1).environments) == 1
    five = [one["CUDA_VISIBLE_DEVICES"] for one in plan(count=5).environments]
    assert len(five) == 5
    assert set(five) == set(expected)


@pytest.mark.parametrize("command", ["compare", "sweep"])
@pytest.mark.parametrize("given", [["--jobs", text] for text in ("0", "-1", "x", "1.5", "", "99999", "\u0663")]
                         + [["--launcher", "slurm"]], ids=" ".join)  # fmt: skip
def test_usage(command: str, given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    more = ["--set", "lr=0.1,0.2"] if command == "sweep" else []
    done = CliRunner().invoke(app, [command, "resnet20", "--data", "fashion_mini", *more, *given])
    assert done.exit_code == 2, done.output
    assert not list(tmp_path.iterdir())


def test_ray_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(app, ["compare", "resnet20", "--data", "fashion_mini", "--launcher", "ray"])
    assert isinstance(done.exception, CnnspecError)
    assert done.exception.diagnostics[0].code == "E0507"
    assert "pip install 'cnnspec[ray]'" in str(done.exception)


def run_scripts(monkeypatch: pytest.MonkeyPatch, *scripts: str) -> int:
    """Run Python scripts in place of the command."""
    start = subprocess.Popen

    def popen(command: Any, **options: Any) -> Any:
        return start([sys.executable, "-c", scripts[int(options["env"][workers.WORKER_VARIABLE]) - 1]], **options)

    monkeypatch.setattr(workers.subprocess, "Popen", popen)
    return workers._run_here([], workers.Plan(tuple({"PLACE": str(i)} for i in range(len(scripts))), ""))


def test_the_output_is_numbered_and_dead_processes_are_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    talk = "import os, sys; print('no'); print(os.environ['PLACE'], '\\x1b[31m', file=sys.stderr)"
    die = "import os; os.kill(os.getpid(), 9)"
    assert run_scripts(monkeypatch, talk, die, talk, "raise SystemExit(3)") == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert sorted(err.splitlines())[:2] == ["[1] 0 \\x1b[31m", "[3] 2 \\x1b[31m"]
    assert "2 with exit code -9, 4 with exit code 3" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process_once(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    ready = tmp_path / "ready"
    script = f"""if True:
        import os, signal, sys, time
        received = []
        signal.signal({int(number)}, lambda *_: received.append(1))
        if os.environ["PLACE"] == "0":
            open({str(ready)!r}, "w").close()
        else:
            while not os.path.exists({str(ready)!r}):
                time.sleep(0.01)
            os.kill(os.getppid(), {int(number)})
        while not received:
            time.sleep(0.05)
        time.sleep(0.3)
        print(len(received), file=sys.stderr)
        sys.exit(130)
    """
    before = signal.getsignal(number)
    assert run_scripts(monkeypatch, script, script) == 128 + number
    assert sorted(capfd.readouterr().err.splitlines()) == ["[1] 1", "[2] 1"]
    assert signal.getsignal(number) is before


# --- whole runs -----------------------------------------------------------------------------------


def start(folder: Path, *args: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "a.cnn").write_text(SPEC)
    (folder / "b.cnn").write_text(SPEC.replace("network a", "network b").replace("relu", "gelu"))
    command = [sys.executable, "-m", "cnnspec", *args, "--offline"]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=(folder / "log").open("a"),
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


COMMANDS = {
    "compare": ("compare", "a.cnn", "b.cnn", "--seeds", "2", "--out", "out", "--json"),
    "sweep": ("sweep", "a.cnn", "--set", "lr=0.01..0.3", "--trials", "4", "--pruner", "none", "--out", "out", "--json"),
}


def runs(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in folder.glob("out/**/result.json")]
    return sorted(found, key=lambda run: (run["network"], run["seed"]))


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def is_training(folder: Path) -> bool:
    return len(list(folder.glob("out/**/last.ckpt"))) >= 2


def assert_complete(command: str, folder: Path, output: str) -> None:
    found = json.loads(output)
    assert found["state"] == "finished"
    assert [run["state"] for run in runs(folder)] == ["finished"] * 4
    assert len(found["rows" if command == "compare" else "trials"]) == (2 if command == "compare" else 4)
    if command == "compare":
        assert [(run["network"], run["seed"]) for run in runs(folder)] == [("a", 42), ("a", 43), ("b", 42), ("b", 43)]


@pytest.mark.cluster
@pytest.mark.parametrize("command", COMMANDS)
def test_two_jobs_are_stopped_and_resumed(command: str, tmp_path: Path):
    process = start(tmp_path, *COMMANDS[command], "--jobs", "2")
    wait_for(lambda: is_training(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143, (tmp_path / "log").read_text()
    begun = {run["state"] for run in runs(tmp_path)}
    assert "interrupted" in begun
    assert not begun - {"interrupted", "finished"}
    output, _ = start(tmp_path, *COMMANDS[command], "--jobs", "2").communicate(timeout=400)
    assert_complete(command, tmp_path, output)
    assert "[2] " in (tmp_path / "log").read_text()


def ray_workers() -> list[int]:
    """Return the processes of Ray that run the command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::_work" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def ray_address() -> Any:
    """A cluster of two nodes with a core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.cluster
@pytest.mark.parametrize("command", COMMANDS)
def test_ray_restarts_a_killed_process(command: str, tmp_path: Path, ray_address: str):
    process = start(tmp_path, *COMMANDS[command], "--launcher", "ray", "--jobs", "auto", RAY_ADDRESS=ray_address)
    wait_for(lambda: is_training(tmp_path), process)
    before = ray_workers()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=400)
    log = (tmp_path / "log").read_text()
    assert process.returncode == 0, log
    assert "jobs: 2 at a time on Ray: 2 nodes, 2 cores" in log
    assert_complete(command, tmp_path, output)


@pytest.mark.cluster
def test_a_signal_stops_the_processes_of_ray(tmp_path: Path, ray_address: str):
    process = start(tmp_path, *COMMANDS["compare"], "--launcher", "ray", RAY_ADDRESS=ray_address)
    wait_for(lambda: list(tmp_path.glob("out/**/last.ckpt")), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130, (tmp_path / "log").read_text()
    assert "interrupted" in {run["state"] for run in runs(tmp_path)}
    assert not ray_workers()


@pytest.mark.cluster
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", ":", "127.0.0.1:99999", "[::1]:1"])
def test_a_cluster_of_ray_that_is_not_there_is_an_error(address: str, tmp_path: Path):
    pytest.importorskip("ray")
    process = start(tmp_path, *COMMANDS["compare"], "--launcher", "ray", RAY_ADDRESS=address)
    output, _ = process.communicate(timeout=200)
    assert (process.returncode, output) == (1, "")
    assert "error[E0524]" in (tmp_path / "log").read_text()
