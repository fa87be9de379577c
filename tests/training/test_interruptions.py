"""Test that nothing is lost: damaged checkpoints, failed writes, signals, kills, NaN losses, full memory and disks."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.batches import stop_at, watch
from harness.kill_runs import fork, hunt, wait
from harness.runs import TINY, code
from PIL import Image

from cnnspec import CnnspecError, Graph, build, files, load, loads
from cnnspec.backends.torch.weights import read_weights
from cnnspec.training import Result
from cnnspec.training.data.batches import EpochBatches
from cnnspec.training.loop import checkpoints
from cnnspec.training.loop.checkpoints import Checkpoints, DamagedCheckpoint, unseal
from cnnspec.training.loop.journal import Journal, read_journal
from cnnspec.training.loop.task import Task
from cnnspec.training.runs.folder import RunFolder

NETWORK = (
    TINY
    + """train {
    data      fashion_mini val=2000
    batch     250
    epochs    2
    optimizer sgd lr=0.1 momentum=0.9
    RECIPE
}
"""
)
STEPS = 16


def tiny(recipe: str = "") -> Graph:
    return loads(NETWORK.replace("RECIPE", recipe), name="tiny.cnn")


pytestmark = pytest.mark.usefixtures("one_thread")


def state_of(step: int) -> dict[str, Any]:
    weights = torch.randn(9000, generator=torch.Generator().manual_seed(step))
    return {"state_dict": {"network.a": weights}, "progress": {"step": step}}


# --- checkpoints ----------------------------------------------------------------------------------


def test_the_last_two_checkpoints_and_the_best_are_kept(tmp_path: Path):
    store = Checkpoints(tmp_path)
    assert not store.exists()
    for step in range(1, 5):
        store.save(state_of(step), best=step == 2)
    steps = [unseal(path.read_bytes())["progress"]["step"] for path in (store.previous, store.last, store.best)]
    assert steps == [3, 4, 2]
    assert torch.equal(read_weights(store.weights)["a"], state_of(2)["state_dict"]["network.a"])
    assert torch.load(store.last, weights_only=True)["progress"] == {"step": 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["best.ckpt", "best.safetensors", "previous.ckpt", "last.ckpt"]
    )


def trained_state(step: int) -> dict[str, Any]:
    """Return the state of a ResNet-20 run: weights, statistics and momenta."""
    torch.manual_seed(step)
    network = build(load("resnet20"))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    weights = {f"network.{key}": tensor for key, tensor in network.state_dict().items()}
    return {"state_dict": weights, "optimizer_states": [optimizer.state_dict()], "progress": {"step": step}}


def test_every_truncation_and_every_flipped_byte_is_detected(tmp_path: Path):
    store = Checkpoints(tmp_path)
    for step in (1, 2):
        store.save(trained_state(step))
    content = store.last.read_bytes()
    lengths = [*range(0, len(content), 4096), *(len(content) - less for less in (1, 8, 31, 32, 33, 39, 40, 41))]
    assert len(lengths) > 500
    draw = random.Random(0)
    flips = [(draw.randrange(len(content)), draw.randint(1, 255)) for _ in range(992)]
    flips += [(len(content) - 40 + place, 1) for place in (0, 7, 8, 39)]  # the magic bytes and the checksum
    flips += [(place, 128) for place in range(4)]

    def damaged() -> Iterator[bytes | bytearray]:
        for length in lengths:
            yield content[:length]
        flipped = bytearray(content)
        for place, bits in flips:
            flipped[place] ^= bits
            yield flipped
            flipped[place] ^= bits

    count = 0
    for bytes_ in damaged():
        with pytest.raises(DamagedCheckpoint):
            unseal(bytes_)
        if count % 50 == 0:  # and the run resumes from the previous one
            store.last.write_bytes(bytes_)
            state, output = store.load()
            assert state["progress"]["step"] == 1
            assert len(output) == 1
            assert output[0].startswith("the checkpoint `last.ckpt` is damaged")
        count += 1
    assert count == len(lengths) + 1000
    assert unseal(content)["progress"]["step"] == 2


class Failing:
    """Count the system calls that a checkpoint makes, and let one of them fail."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int | None, fault: int) -> None:
        self.calls: list[str] = []
        self._number, self._fault = number, fault
        path_open = Path.open

        def opened(path: Path, *args: Any, **options: Any) -> Any:
            file = path_open(path, *args, **options)
            if path.suffix != ".part":
                return file
            self._call("open")
            return Writer(self, file)

        patch.setattr(Path, "open", opened)
        for name in ("fsync", "replace", "link"):
            patch.setattr(checkpoints.os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._call(name)
            return original(*args)

        return call

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self._number:
            raise OSError(self._fault, os.strerror(self._fault))


class Writer:
    """A file that counts each `write`. A failing one has written half of its data before."""

    def __init__(self, failing: Failing, file: Any) -> None:
        self._failing, self._file = failing, file

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *args: Any) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, content: Any) -> int:
        try:
            self._failing._call("write")
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_an_intact_checkpoint_exists_after_any_failed_system_call(tmp_path: Path, fault: int):
    def attempt(number: int | None) -> tuple[Failing, Checkpoints]:
        store = Checkpoints(tmp_path / f"{number}")
        store.folder.mkdir()
        for step in (1, 2):
            store.save(state_of(step), best=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "CHUNK", 8192)
            failing = Failing(patch, number, fault)
            with contextlib.suppress(OSError):
                store.save(state_of(3), best=True)
        return failing, store

    whole, store = attempt(None)
    assert set(whole.calls) >= {"open", "write", "fsync", "replace", "link"}
    assert len(whole.calls) > 20
    assert store.load()[0]["progress"]["step"] == 3
    for number in range(1, len(whole.calls) + 1):
        failing, store = attempt(number)
        # Only a link may fail without an effect, because a copy replaces it.
        assert failing.calls[number - 1] == whole.calls[number - 1]
        found, complaints = store.load()
        assert found["progress"]["step"] in (2, 3), failing.calls
        assert complaints == []
        assert torch.equal(
            found["state_dict"]["network.a"], state_of(found["progress"]["step"])["state_dict"]["network.a"]
        )
        assert unseal(store.best.read_bytes())["progress"]["step"] in (2, 3)
        store.save(state_of(4))
        assert store.load()[0]["progress"]["step"] == 4


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(run: Callable[..., Result], output: io.StringIO):
    whole = run(tiny(), seed=1)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 0, 9)
        stopped = run(tiny(), seed=1, save_every=0)
    store = RunFolder(stopped.folder).checkpoints
    content = store.last.read_bytes()
    store.last.write_bytes(content[:-100] + b"x" + content[-99:])
    resumed = run(tiny(), resume=True)
    assert "the checkpoint `last.ckpt` is damaged: the checksum does not match" in output.getvalue()
    assert resumed.folder == stopped.folder
    assert same(whole, resumed)


def same(first: Result, second: Result) -> bool:
    states = [RunFolder(result.folder).checkpoints.load()[0] for result in (first, second)]
    one, two = (state["state_dict"] for state in states)
    journals = [(result.folder / "metrics.jsonl").read_bytes() for result in (first, second)]
    return all(torch.equal(one[key], two[key]) for key in one) and journals[0] == journals[1]


def test_the_journal_is_truncated_to_the_checkpoint(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.write(step=1, loss=2.5)
    lengths = journal.lengths()
    journal.write(step=2, loss=1.5)
    journal.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,")  # half a row
    again = Journal(tmp_path, lengths)
    again.write(step=2, loss=0.5)
    again.close()
    assert list(read_journal(tmp_path)) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 0.5}]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == ["1,,,2.5,,,,", "2,,,0.5,,,,"]


# --- kills and signals ----------------------------------------------------------------------------


def test_sigterm_during_a_checkpoint_stops_after_the_next_step(run: Callable[..., Result]):
    whole = run(tiny(), seed=5)
    save, sent = Task.save, [False]

    def signalled(self: Task, **options: Any) -> None:
        if self.progress.step == 3 and not sent[0]:
            sent[0] = True
            os.kill(os.getpid(), 15)
        save(self, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "save", signalled)
        stopped = run(tiny(), seed=5, save_every=0)
    assert (stopped.state, stopped.exit_code, stopped.values["steps"]) == ("interrupted", 143, 4)
    assert same(whole, run(tiny(), resume=True))


def test_killed_and_stopped_runs_end_like_the_undisturbed_one(tmp_path: Path):
    done = hunt(kills=3, signals=5, seed=3, folder=tmp_path)
    assert done.faults == []
    assert done.trials == 8
    phases = {name.split()[-1] for name in done.hits if name.startswith("SIG")}
    assert phases == {"loading", "saving", "step", "validation", "testing"}
    assert sum(count for name, count in done.hits.items() if name.startswith("kill")) >= 3


@pytest.mark.slow
def test_many_killed_and_stopped_runs(tmp_path: Path):
    done = hunt(kills=40, signals=40, seed=4, folder=tmp_path)
    assert done.faults == []
    assert sum(done.hits.values()) >= 80
    assert min(done.hits["kill in training"], done.hits["kill in saving"]) > 15


# --- NaN, memory, disks ---------------------------------------------------------------------------


def test_a_nonfinite_loss_is_reported_with_step_learning_rate_and_layer(run: Callable[..., Result], tmp_path: Path):
    step = Task.training_step

    def poisoned(self: Task, *args: Any) -> None:
        if self.progress.step == STEPS + 4:
            with torch.no_grad():
                self.network.get_submodule("stem.0").weight[0] = float("inf")  # type: ignore[index]
        step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "training_step", poisoned)
        with pytest.raises(CnnspecError) as error:
            run(tiny("schedule constant"))
    assert code(error) == "E0509"
    text = str(error.value)
    assert f"at step {STEPS + 5} (epoch 2) with learning rate 0.1" in text
    assert "`stem.0.weight`" in text
    assert "first layer whose output contains NaN or Inf is `stem.0`" in text
    folder = tmp_path / "runs" / "tiny" / "1"
    assert json.loads((folder / "result.json").read_text())["state"] == "failed"
    state, _ = RunFolder(folder).checkpoints.load()
    assert state["progress"]["step"] == STEPS
    assert all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())
    assert run(tiny("schedule constant"), resume=True).state == "finished"


def test_the_first_nonfinite_layer_is_found(run: Callable[..., Result]):
    text = NETWORK.replace(" | bn", "").replace("RECIPE", "schedule constant").replace("lr=0.1", "lr=1e14")
    with pytest.raises(CnnspecError) as error:
        run(loads(text, name="tiny.cnn"))
    assert "with learning rate 1e+14" in str(error.value)
    assert "contains NaN or Inf is `" in str(error.value)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("could not create a primitive")],
    ids=["torch", "oneDNN"],
)
def test_out_of_memory_splits_the_batch(run: Callable[..., Result], output: io.StringIO, error: RuntimeError):
    forward = torch.nn.Conv2d.forward

    def limited(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) > 70:
            raise error
        return forward(self, x)

    def full(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise error
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv2d, "forward", limited)
        result = run(tiny())
    assert "from step 1 on, each batch is computed in 2 parts" in output.getvalue()
    assert "from step 1 on, each batch is computed in 4 parts" in output.getvalue()
    state, _ = RunFolder(result.folder).checkpoints.load()
    assert (state["progress"]["step"], state["progress"]["parts"]) == (2 * STEPS, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv2d, "forward", full)
        with pytest.raises(CnnspecError) as refused:
            run(tiny())
    assert code(refused) == "E0513"


def test_parts_of_a_batch_have_the_gradients_of_the_whole(run: Callable[..., Result]):
    text = NETWORK.replace(" | bn", "").replace("dropout 0.1 | ", "").replace("epochs    2", "epochs    1")
    weights = []
    for recipe in ("schedule constant", "schedule constant; accumulate 5"):
        result = run(loads(text.replace("RECIPE", recipe), name="tiny.cnn"))
        weights.append(RunFolder(result.folder).checkpoints.load()[0]["state_dict"])
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0])


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_ends_the_run_with_an_error(run: Callable[..., Result], tmp_path: Path, fault: int):
    save = checkpoints.write_atomically

    def full(path: Path, content: bytes) -> None:
        if b"metrics" in content and len(calls) > 1:
            raise OSError(fault, os.strerror(fault), str(path))
        calls.append(path)
        save(path, content)

    calls: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write_atomically", full)
        with pytest.raises(CnnspecError) as error:
            run(tiny(), save_every=0)
    assert code(error) == "E0506"
    assert os.strerror(fault).lower() in str(error.value)
    assert run(tiny(), resume=True).state == "finished"
    assert json.loads((tmp_path / "runs" / "tiny" / "1" / "result.json").read_text())["steps"] == 2 * STEPS


def test_a_truncated_write_keeps_the_checkpoints(run: Callable[..., Result]):
    """Write a part of the checkpoint and then fail, as on a full disk."""
    pytest.importorskip("resource")
    whole = run(tiny(), seed=6)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 0, 9)
        stopped = run(tiny(), seed=6)
    store = RunFolder(stopped.folder).checkpoints
    size, before = store.last.stat().st_size, store.last.read_bytes()

    def job() -> int:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(CnnspecError) as error:
            run(tiny(), resume=True)
        return 40 if code(error) == "E0506" and "file too large" in str(error.value) else 41

    assert wait(fork(job)) == 40
    assert store.last.read_bytes() == before
    assert list(stopped.folder.rglob("*.part")) == []
    assert same(whole, run(tiny(), resume=True))


TIGHT = """
import os, resource, sys
from pathlib import Path
from rich.console import Console
from cnnspec import loads
from cnnspec.training import TrainOptions, train

text, out = sys.argv[1:]
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = 300 << 20  # the activations of a whole batch are 300 MB and more
resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGESIZE") + room, -1))
train(
    loads(text, name="tiny.cnn"),
    TrainOptions(
        out=Path(out), offline=True, plots=False, console=Console(width=200),
        memory_format="contiguous", threads=1, allocator="default",
    ),
)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_failed_allocation_splits_the_batch(tmp_path: Path):
    """Request more memory than the process is allowed to have.

    A new process is used, because this one has free memory left by other tests.
    """
    text = NETWORK.replace("stem conv 7x7 4 stride=7 pad=0", "stem conv 3x3 128").replace("val=2000", "val=5500")
    text = text.replace("RECIPE", "").replace("epochs    2", "epochs    1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    for attempt in range(4):
        out = tmp_path / str(attempt)
        command = [sys.executable, "-c", TIGHT, text, str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if "cannot allocate memory for thread-local data" not in done.stderr:
            break  # otherwise the C library ended the process: another thread began when no memory was left
    assert done.returncode == 0, done.stderr
    folder = RunFolder(out / "tiny" / "1")
    parts = folder.checkpoints.load()[0]["progress"]["parts"]
    assert folder.read_result()["state"] == "finished"
    assert folder.read_result()["steps"] == 2
    assert parts > 1
    assert f"in {parts} parts" in done.stdout


@pytest.fixture
def reads_files(tmp_path: Path) -> Graph:
    """A network that trains on a folder of images, four steps per epoch."""
    for part, count in (("train", 20), ("val", 4)):
        for kind in "ab":
            (tmp_path / "images" / part / kind).mkdir(parents=True)
            for number in range(count):
                shade = (number * 5 + (kind == "b") * 120) % 256
                image = Image.new("L", (28, 28), shade)
                image.save(tmp_path / "images" / part / kind / f"{number}.png")
    text = NETWORK.replace("RECIPE", "").replace("fashion_mini val=2000", 'folder "images"')
    text = text.replace("classes 10", "classes 2").replace("batch     250", "batch     10")
    (tmp_path / "tiny.cnn").write_text(text)
    return load(tmp_path / "tiny.cnn")


def test_workers_that_die_repeatedly_end_the_run_with_a_saved_state(
    reads_files: Graph, run: Callable[..., Result], tmp_path: Path
):
    graph, options = reads_files, {"seed": 8, "workers": 1}
    whole = run(graph, **options)
    make, here = EpochBatches.__getitem__, os.getpid()

    def dying(self: EpochBatches, place: int) -> Any:
        if os.getpid() != here and self.epoch == 1 and place == 2:
            os._exit(9)
        return make(self, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochBatches, "__getitem__", dying)
        with pytest.raises(CnnspecError) as error:
            run(graph, **options)
    assert code(error) == "E0514"
    assert multiprocessing.active_children() == []
    folder = tmp_path / "runs" / "tiny" / "2"
    assert json.loads((folder / "result.json").read_text())["state"] == "failed"
    assert Checkpoints(folder / "checkpoints").load()[0]["progress"]["step"] == 4
    assert same(whole, run(graph, resume=True))


@pytest.mark.parametrize(("epoch", "place", "count"), [(1, 0, 1), (1, 2, 2), (None, 0, 2)])
def test_a_worker_that_dies_in_the_second_epoch_changes_nothing(
    epoch: int | None,
    place: int,
    count: int,
    reads_files: Graph,
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Kill one that creates a training batch, or one that creates the batch of the second validation."""
    whole = run(reads_files, seed=8, workers=0)
    make, here, loaded = EpochBatches.__getitem__, os.getpid(), list[int]()
    mark = tmp_path / "died"

    def dying(self: EpochBatches, number: int) -> Any:
        loaded.append(number)
        found = len(loaded) == 2 if epoch is None else self.epoch == epoch
        if os.getpid() != here and (self.seed is None) == (epoch is None) and found and number == place:
            with contextlib.suppress(FileExistsError):
                mark.touch(exist_ok=False)
                os._exit(9)
        return make(self, number)

    monkeypatch.setattr(EpochBatches, "__getitem__", dying)
    assert same(whole, run(reads_files, seed=8, workers=count))
    assert capsys.readouterr().err.count("died; its batches are loaded again") == 1
    assert mark.exists()


def test_workers_end_with_their_run(
    reads_files: Graph, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Several runs in one process, as in a comparison."""
    options = {"seed": 8, "workers": 2}

    def alive() -> set[str]:
        return {process.name for process in multiprocessing.active_children()}

    seen: list[set[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, lambda *_: seen.append(alive()))
        whole = run(reads_files, **options)
    assert len(set().union(*seen)) == 4  # two for training, one for the batch of the validation, one for the test
    assert alive() == set()
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, 2)
        assert run(reads_files, **options).state == "interrupted"
    assert alive() == set()
    assert same(whole, run(reads_files, resume=True))
    assert alive() == set()
    assert run(reads_files, **options, watch=lambda epoch, values: True).state == "pruned"
    assert alive() == set()
    monkeypatch.setattr(Task, "training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(reads_files, **options)
    assert alive() == set()


def test_a_run_has_one_process_at_a_time(tmp_path: Path):
    graph = tiny()
    folder = RunFolder.create(tmp_path, graph)
    folder.write_result({"state": "interrupted", "recipe": graph.recipe.model_dump(mode="json")})
    with pytest.raises(CnnspecError, match="still running") as error:
        RunFolder.find(tmp_path, graph)
    assert code(error) == "E0506"
    folder.release()
    again, _ = RunFolder.find(tmp_path, graph)
    again.release()
