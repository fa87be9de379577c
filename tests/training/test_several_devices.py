"""Compare training on several processes with training on one."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import two_hosts
from harness.batches import stop_at, watch
from harness.processes import free_port, run_in_processes
from harness.runs import DEEPER, tiny
from pytorch_lightning.strategies import ddp as strategy

from cnnspec import CnnspecError, loads
from cnnspec.training import TrainOptions, train
from cnnspec.training.data.batches import EpochBatches
from cnnspec.training.loop.checkpoints import Checkpoints
from cnnspec.training.loop.launch import JOIN_VARIABLE
from cnnspec.training.loop.processes import Processes
from cnnspec.training.loop.task import Task

train_module = importlib.import_module("cnnspec.training.runs.train")
SPEC = tiny(
    "data fashion_mini val=4000; augment hflip | random_crop pad=2; optimizer sgd lr=0.1 momentum=0.9; "
    "schedule cosine warmup=0.5; batch 99; epochs 1",
    layers=DEEPER,
)
STEPS = 20


def start(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "tiny.cnn").write_text(SPEC)
    command = [sys.executable, "-m", "cnnspec", "build", "tiny.cnn", "--train", "--accelerator", "cpu", *options]
    command += ["--memory-format", "channels_last"]  # so that a measurement makes no difference
    home = str(Path(__file__).parents[2])
    settings = {**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command, cwd=folder, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    return output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state, _ = Checkpoints(folder / "runs" / "tiny" / "1" / "checkpoints").load()
    assert state["progress"]["step"] == STEPS
    return state["state_dict"]


def rows(folder: Path) -> list[dict[str, float]]:
    """Return the rows of the journal, without those of changes."""
    found = [json.loads(line) for line in (folder / "runs/tiny/1/metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "changes" not in row]


def train_in_processes(
    folder: Path, count: int, prepare: Callable[[int], None] = lambda rank: None, **options: Any
) -> list[Any]:
    """Train in several processes, after `prepare` is called with the rank in each. Return the results."""
    graph = loads(options.pop("spec", SPEC), name="tiny.cnn")

    def job(rank: int) -> str:
        prepare(rank)
        settings = {"accelerator": "cpu", "devices": count, "strategy": "ddp" if count > 1 else "auto", **options}
        settings |= {"memory_format": "channels_last", "threads": 1, "plots": False, "offline": True}
        try:
            return train(graph, TrainOptions(out=folder / "runs", data_dir=folder / "data", **settings)).state
        except SystemExit as end:
            return f"exit {end.code}"

    return run_in_processes(count, job)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert train_in_processes(folder, 1) == ["finished"]
    return folder


def equal(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    for key in one:
        assert torch.allclose(one[key].float(), two[key].float(), rtol=0, atol=1e-5), key
    for a, b in zip(rows(first), rows(second), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_processes_use_the_recorded_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # without it, Lightning divides the cores of the machine
    monkeypatch.setattr("lightning_fabric.utilities.distributed._suggested_max_num_threads", lambda processes: 2)

    def check(batches: EpochBatches, number: int, batch: object) -> None:
        assert torch.get_num_threads() == 1

    for count in (1, 2):
        folder = tmp_path / str(count)
        found = train_in_processes(folder, count, lambda rank: watch(pytest.MonkeyPatch(), check))
        assert found == ["finished", "exit 0"][:count]
        (result,) = folder.glob("runs/tiny/1/result.json")
        assert json.loads(result.read_text())["machine"]["threads"] == 1


def test_two_processes_end_with_the_weights_of_one(alone: Path, tmp_path: Path):
    # The main process chooses the machine settings before the other one exists.
    process = start(tmp_path, "--devices", "2", "--strategy", "ddp", CNNSPEC_CACHE=str(tmp_path / "cache"))
    output = finish(process)
    assert process.returncode == 0, output
    assert "1 threads (requested)" in output
    equal(alone, tmp_path)
    assert [path.name for path in (tmp_path / "runs" / "tiny").iterdir()] == ["1"]
    assert output.count("run folder") == 1


@pytest.mark.slow
def test_torchrun_trains_on_two_processes_and_resumes_after_a_stop(alone: Path, tmp_path: Path):
    port = str(free_port())
    (tmp_path / "tiny.cnn").write_text(SPEC)
    home = str(Path(__file__).parents[2])

    def torchrun(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
        command += ["-m", "cnnspec", "build", "tiny.cnn", "--train", "--accelerator", "cpu", "--devices", "2", *options]
        settings = {**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=tmp_path, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    process = torchrun("--save-every", "0")
    wait_for(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert json.loads((tmp_path / "runs/tiny/1/result.json").read_text())["state"] == "interrupted", output
    process = torchrun("--resume")
    output = finish(process)
    assert process.returncode == 0, output
    equal(alone, tmp_path)
    assert not list((tmp_path / "runs").glob(".run-*"))


@pytest.mark.slow
def test_slurm_trains_on_two_processes_and_resumes_after_its_signal(alone: Path, tmp_path: Path):
    """Start two tasks as `srun` does, by setting the variables that Lightning reads."""
    port = str(free_port())

    def srun(*options: str) -> list[subprocess.Popen[str]]:
        shared = {
            "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        return [
            start(
                tmp_path,
                "--devices",
                "2",
                "--strategy",
                "ddp",
                *options,
                **shared,
                SLURM_PROCID=rank,
                SLURM_LOCALID=rank,
            )
            for rank in "01"
        ]

    tasks = srun("--save-every", "0")
    wait_for(tmp_path, tasks[0])
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    output = "".join(map(finish, tasks))
    assert tasks[0].returncode == 128 + signal.SIGUSR1, output
    assert "Traceback" not in output, output
    assert json.loads((tmp_path / "runs/tiny/1/result.json").read_text())["state"] == "interrupted", output
    assert not list((tmp_path / "runs").rglob("hpc_ckpt*"))
    tasks = srun("--resume")
    output = "".join(map(finish, tasks))
    assert [task.returncode for task in tasks] == [0, 0], output
    assert output.count("run folder") == 1
    equal(alone, tmp_path)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]


def wait_for(folder: Path, process: subprocess.Popen[str], step: int = 2) -> None:
    """Wait until a checkpoint has the given number of steps."""
    store, end = Checkpoints(folder / "runs" / "tiny" / "1" / "checkpoints"), time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if store.exists() and store.load()[0]["progress"]["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint")


@pytest.mark.slow
def test_a_dead_process_ends_the_others_and_the_run_resumes(alone: Path, tmp_path: Path):
    process = start(tmp_path, "--devices", "2", "--strategy", "ddp", "--save-every", "0")
    wait_for(tmp_path, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("needs /proc")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)
    output = finish(process)
    assert process.returncode != 0, output
    assert "Traceback" not in output, output
    process = start(tmp_path, "--devices", "2", "--strategy", "ddp", "--resume")
    output = finish(process)
    assert process.returncode == 0, output
    equal(alone, tmp_path)


@pytest.mark.parametrize("count", [2, 4])
def test_a_stop_of_one_process_ends_all_and_another_number_resumes(alone: Path, tmp_path: Path, count: int):
    """The stop of the last process is obeyed within two steps, after the same step by all."""

    def stop(rank: int) -> None:
        if rank == count - 1:
            stop_at(pytest.MonkeyPatch(), 0, 7)

    assert train_in_processes(tmp_path, count, stop) == ["interrupted", *["exit 0"] * (count - 1)]
    state, _ = Checkpoints(tmp_path / "runs" / "tiny" / "1" / "checkpoints").load()
    assert 8 <= state["progress"]["step"] <= 9
    resumed = train_in_processes(tmp_path, 6 - count, resume=True, accept_changes=True)
    assert resumed == ["finished", *["exit 0"] * (5 - count)]
    equal(alone, tmp_path)


@pytest.mark.parametrize(
    ("count", "recipe"),
    [
        (2, "batch 99; accumulate 4"),
        (4, "batch 99; accumulate 7; clip 0.5; loss cross_entropy class_weights=balanced"),
        (4, "batch 13; accumulate 3"),  # one or two images of each device per part
        (
            3,
            "batch 50; accumulate 3; label_smoothing 0.1; loss cross_entropy class_weights=[0,1,2,3,4,5,6,7,8,0]",
        ),
    ],
)
def test_gradients_are_those_of_one_process(count: int, recipe: str, tmp_path: Path):
    """The parts of a batch, also of uneven sizes, have the same images. Gradients are exchanged once per step."""
    spec = SPEC.replace("batch 99", recipe)

    def record(rank: int) -> None:
        """Store the gradients of the first step, with the number of times that they are exchanged."""
        exchanges: list[bool] = []

        def count_exchange(model: Any, output: Any) -> None:
            exchanges.append(model.require_backward_grad_sync)
            prepare(model, output)

        def stop(task: Task, optimizer: torch.optim.Optimizer) -> None:
            clip(task, optimizer)
            gradients = {name: weight.grad for name, weight in task.network.named_parameters()}
            torch.save((gradients, sum(exchanges)), tmp_path / f"{task.trainer.world_size}-{rank}.pt")
            raise SystemExit(0)

        prepare, clip = strategy.prepare_for_backward, Task.on_before_optimizer_step
        pytest.MonkeyPatch().setattr(strategy, "prepare_for_backward", count_exchange)
        pytest.MonkeyPatch().setattr(Task, "on_before_optimizer_step", stop)

    for number in (1, count):
        assert train_in_processes(tmp_path, number, record, spec=spec) == ["exit 0"] * number
    expected, _ = torch.load(tmp_path / "1-0.pt")
    for rank in range(count):
        found, exchanges = torch.load(tmp_path / f"{count}-{rank}.pt")
        assert exchanges == 1
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("recipe", ["batch 2", "batch 2; accumulate 2", "batch 99; accumulate 34"])
def test_a_part_smaller_than_the_number_of_devices_is_an_error(recipe: str, tmp_path: Path):
    spec = SPEC.replace("batch 99", recipe)
    errors = train_in_processes(tmp_path, 3, spec=spec)
    assert [error.diagnostics[0].code for error in errors] == ["E0524"] * 3
    assert not (tmp_path / "runs").exists()


def codes(results: list[Any]) -> list[Any]:
    """Return the codes of errors, and other results as they are."""
    return [found.diagnostics[0].code if isinstance(found, CnnspecError) else found for found in results]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_process_is_an_error(rank: int, tmp_path: Path):
    def leave(other: int) -> None:
        if other != rank:
            os._exit(0)
        os.environ[JOIN_VARIABLE] = "2"

    results = train_in_processes(tmp_path, 2, leave, devices="auto")
    assert codes(results)[rank] == "E0524"
    assert not (tmp_path / "runs").exists()


def test_processes_wait_for_the_main_one_as_long_as_it_works(tmp_path: Path):
    """Loading the data takes longer than the time to join, which starts for both at once."""
    ready = multiprocessing.get_context("fork").Barrier(2)

    def delay(rank: int) -> None:
        os.environ[JOIN_VARIABLE] = "3"
        connect = Processes.connect

        def connect_together(*args: Any) -> None:
            ready.wait(60)
            connect(*args)

        pytest.MonkeyPatch().setattr(Processes, "connect", connect_together)
        if rank == 0:
            load = train_module.load_data

            def load_slowly(*args: Any, **options: Any) -> Any:
                time.sleep(5)
                return load(*args, **options)

            pytest.MonkeyPatch().setattr(train_module, "load_data", load_slowly)

    assert train_in_processes(tmp_path, 2, delay, devices="auto", strategy="auto") == ["finished", "exit 0"]


@pytest.mark.parametrize(("count", "killed"), [(2, 1), (4, 0), (4, 2)])
def test_a_killed_process_ends_the_others_within_30_seconds(count: int, killed: int, tmp_path: Path):
    killed_at = multiprocessing.get_context("fork").Value("d", 0.0)

    def die(batches: EpochBatches, number: int, _: object) -> None:
        if number == 5 and batches.seed is not None:
            killed_at.value = time.monotonic()
            os.kill(os.getpid(), signal.SIGKILL)

    results = train_in_processes(tmp_path, count, lambda rank: rank == killed and watch(pytest.MonkeyPatch(), die))
    assert killed_at.value
    assert time.monotonic() - killed_at.value < 60  # twice as long on a busy machine
    expected: list[Any] = ["E0515"] * count
    expected[killed] = None
    assert codes(results) == expected


def test_an_error_of_the_main_process_ends_the_others(tmp_path: Path):
    assert codes(train_in_processes(tmp_path, 3, resume=True)) == ["E0506", "exit 1", "exit 1"]


@pytest.mark.parametrize("devices", ["3", 1, "0,1,2"])
def test_another_number_of_devices_than_processes_is_an_error(devices: str | int, tmp_path: Path):
    assert codes(train_in_processes(tmp_path, 2, devices=devices)) == ["E0524"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_two_hosts_end_with_the_weights_of_one_process(processes: int):
    script = Path(__file__).parents[1] / "harness" / "two_hosts.py"
    command = [sys.executable, str(script), "--processes", str(processes)]
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=settings)
    if result.returncode == two_hosts.SKIPPED:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
