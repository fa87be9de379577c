"""Test datasets that are streamed from shards on a disk and on a web server: orders, devices, resumed runs, errors.

The pixels of an image are its number, so each row can be recognized.
"""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import datasets
import numpy as np
import torch
from harness.batches import stop_at, watch
from harness.processes import free_port, variables
from harness.runs import code
from PIL import Image
from safetensors.torch import load_file

from cnnspec import CnnspecError, Graph, loads
from cnnspec.recipe import HuggingFace, Setting
from cnnspec.training import Result, evaluate
from cnnspec.training.data import streams
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.batches import EpochBatches, Workers
from cnnspec.training.data.datasets import ImageData, load_data
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.data.sources import Records
from cnnspec.training.data.streams import Shards

pytestmark = pytest.mark.usefixtures("one_thread", "no_workers")
TRAIN, TEST = (7, 1, 25, 12), (6,)
"""The rows of each file."""


def graph(recipe: str = "") -> Graph:
    return loads(
        "network net\ninput 1x4x4\nclasses 3\nstem conv 3x3 4 | bn | relu\nhead global_avgpool | flatten | linear"
        f" classes\ntrain {{ batch 4; epochs 3; augment hflip; optimizer sgd lr=0.1; normalize half; {recipe} }}",
        name="net.cnn",
    )


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_shards(folder: Path, label: str = "names", rows: int = 5, content: Callable[[int], bytes] = png) -> Path:
    """Write Parquet files with a number of rows per group, and a list of the files."""
    folder.mkdir(exist_ok=True)
    kind = datasets.ClassLabel(names=["ant", "bee", "cat"]) if label == "names" else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    number = 0
    for split, counts in (("train", TRAIN), ("test", TEST)):
        for place, count in enumerate(counts):
            numbers = range(number, number + count)
            values = [n % 3 if label == "names" else "abc"[n % 3] for n in numbers]
            columns = {"image": [{"bytes": content(n), "path": None} for n in numbers], "label": values}
            path = folder / f"{split}-{place:05}-of-{len(counts):05}.parquet"
            datasets.Dataset.from_dict(columns, features=features).to_parquet(path, batch_size=rows)
            number += count
    (folder / "shards.txt").write_text("".join(f"{path.name}\n" for path in sorted(folder.glob("*.parquet"))))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def setting(path: Path | str, **given: Any) -> Setting:
    return Setting.of(HuggingFace(path=str(path), **{"stream": True, "val": 0.0, "buffer": 8, **given}))


def read(path: Path | str, cache: Path, **given: Any) -> ImageData:
    return load_data(graph(), setting(path, **given), cache)


def stream_of(data: ImageData) -> Records:
    assert isinstance(data.train, Records)
    assert isinstance(data.train.source, Shards)
    return data.train


def numbers_of(images: Iterator[torch.Tensor]) -> list[int]:
    return [int(image[0, 0, 0, 0]) for image in images]


# --- the images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["names", "texts"])
def test_a_stream_has_the_images_and_labels_of_the_dataset(label: str, tmp_path: Path):
    folder = write_shards(tmp_path / "shards", label)
    data, whole = read(folder, tmp_path), read(folder, tmp_path, stream=False)
    for part, other in ((data.train, whole.train), (data.test, whole.test)):
        assert part is not None
        assert other is not None
        assert len(part) == len(other)
        assert torch.equal(part.labels, other.labels)
        everything = torch.arange(len(part))
        assert numbers_of(part.read(everything)) == numbers_of(other.read(everything))
    assert data.names == whole.names
    assert data.inventory is not None
    assert whole.inventory is not None
    assert data.inventory.identity.digest == whole.inventory.identity.digest


@pytest.mark.parametrize("buffer", [1, 8, 1000])
@pytest.mark.parametrize("val", [0.0, 0.3])
def test_an_epoch_reads_every_row_once_in_an_order_of_its_own(
    buffer: int, val: float, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = read(shards, tmp_path, buffer=buffer, val=val)
    stream = stream_of(data)
    opened: Counter[int] = Counter()
    advance = Shards._advance

    def counted(self: Shards, shard: int, offset: int, end: int) -> None:
        opened[shard] += self._open.get(shard, (None, end))[1] > offset
        advance(self, shard, offset, end)

    monkeypatch.setattr(Shards, "_advance", counted)
    own = sorted({*range(45)} - {*(data.val.positions.tolist() if isinstance(data.val, Records) else ())})
    orders: set[tuple[int, ...]] = set()
    for seed, epoch in ((1, 0), (1, 1), (2, 0)):
        opened.clear()
        batches = EpochBatches(stream, scale(), 4, seed=seed, epoch=epoch)
        seen = numbers_of(stream.read(batches._order))
        assert sorted(seen) == own
        assert [n % 3 for n in seen] == stream.labels[batches._order].tolist()
        assert set(opened.values()) == {1}  # no shard is read twice
        orders.add(tuple(seen))
    assert len(orders) == 3
    if val:
        assert data.val is not None
        assert len(data.val) + len(stream) == 45


def scale() -> Preprocess:
    return Preprocess(Preprocessing((4, 4), (0.0,), (1 / 255,)))


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("skip", [0, 4])
def test_devices_share_the_batches_without_loss_or_repetition(world: int, skip: int, shards: Path, tmp_path: Path):
    given: dict[str, Any] = {"seed": 3, "epoch": 1, "skip": skip, "workers": Workers(4)}
    alone = list(EpochBatches(read(shards, tmp_path).train, scale(), 6, **given))
    parts = [
        list(EpochBatches(read(shards, tmp_path).train, scale(), 6, **given, rank=rank, world=world))
        for rank in range(world)
    ]
    assert len(alone) == 7 - skip
    for number, (images, labels) in enumerate(alone):
        whole = torch.empty_like(images)
        for rank in range(world):
            own, kinds = parts[rank][number]
            whole[rank::world] = own
            assert torch.equal(kinds, labels[rank::world])
        assert torch.equal(whole, images)


def test_a_stream_decodes_with_a_thread_for_each_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No worker processes help it."""
    stream = stream_of(read(write_shards(tmp_path / "shards"), tmp_path))
    together, decode = threading.Barrier(12), Shards._decode

    def wait(self: Shards, position: int, content: bytes | None) -> torch.Tensor:
        together.wait(60)
        return decode(self, position, content)

    monkeypatch.setattr(Shards, "_decode", wait)
    monkeypatch.setattr(streams, "available_cores", lambda: 12)
    assert len(numbers_of(stream.read(torch.arange(24)))) == 24


def test_the_rows_in_memory_are_limited(tmp_path: Path):
    """A device keeps rows that another one uses only for some windows."""
    stream = stream_of(read(write_shards(tmp_path / "shards", rows=3), tmp_path, buffer=3))
    for _ in EpochBatches(stream, scale(), 2, seed=1, rank=1, world=2):
        assert len(stream.source._kept) <= 4 * 3 + 3
    assert len(stream.source._open) <= 4


# --- training -------------------------------------------------------------------------------------


def same(one: Result, other: Result) -> None:
    for name in ("metrics.csv", "predictions.csv"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    weights, others = (load_file(result.folder / "checkpoints/best.safetensors") for result in (one, other))
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    assert one.values["test_loss"] == other.values["test_loss"]


@pytest.mark.parametrize("step", [1, 10])
def test_a_run_resumes_exactly(step: int, run: Callable[..., Result], shards: Path):
    whole = run(graph("ema 0.9"), data=setting(shards))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, step, signal.SIGTERM)
        assert run(graph("ema 0.9"), data=setting(shards)).state == "interrupted"
    resumed = run(graph("ema 0.9"), data=setting(shards), resume=True)
    same(whole, resumed)
    tested = evaluate(graph(), resumed.folder / "checkpoints/best.safetensors", data=setting(shards))
    assert tested["test_acc"] == resumed.values["test_acc"]


def test_another_order_is_a_change(run: Callable[..., Result], shards: Path):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, 1, signal.SIGTERM)
        run(graph(), data=setting(shards))
    with pytest.raises(CnnspecError, match=r"`data\.buffer` was 8, is 9") as error:
        run(graph(), data=setting(shards, buffer=9), resume=True)
    assert code(error) == "E0506"


# --- a web server ---------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and parts of files if `ranges` is set. Paths in `broken` are errors."""

    ranges = True
    broken: frozenset[str] = frozenset()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.name in self.broken or not path.is_file():
            self.send_error(404)
            return
        content, start = path.read_bytes(), 0
        end = len(content)
        given = self.headers.get("Range", "")
        if self.ranges and given.startswith("bytes="):
            first, _, last = given.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end) + 1, end)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Serve a folder. Return the address of its list of shards."""
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(folder: Path, handler: type[Handler] = Handler) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/shards.txt"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_shards_of_a_web_server_train_as_those_of_a_disk(
    ranges: bool, serve: Callable[..., str], run: Callable[..., Result], shards: Path, tmp_path: Path
):
    url = serve(shards, type("Other", (Handler,), {"ranges": ranges}))
    local, remote = read(shards, tmp_path), read(url, tmp_path)
    assert numbers_of(local.train.read(torch.arange(45))) == numbers_of(remote.train.read(torch.arange(45)))
    with pytest.raises(CnnspecError, match="--offline") as error:
        run(graph(), data=setting(url))
    assert code(error) == "E0502"
    same(run(graph(), data=setting(shards)), run(graph(), data=setting(url), offline=False))


def test_a_server_that_fails_ends_the_run_which_resumes_exactly(
    serve: Callable[..., str], run: Callable[..., Result], shards: Path
):
    url = serve(shards)
    given: dict[str, Any] = {"data": setting(url), "offline": False, "save_every": 0}
    whole = run(graph(), **given)

    def fail(batches: EpochBatches, number: int, _: Any) -> None:
        if (batches.epoch, number, batches.seed is None) == (1, 3, False):
            patch.setattr(Handler, "broken", frozenset(path.name for path in shards.iterdir()))

    with pytest.MonkeyPatch.context() as patch:
        watch(patch, fail)
        with pytest.raises(CnnspecError, match=r"cannot read shard \d+ of") as error:
            run(graph(), **given)
        assert code(error) == "E0502"
    same(whole, run(graph(), **given, resume=True))


def start_ranks(folder: Path, url: str, count: int, *options: str) -> list[subprocess.Popen[str]]:
    """Start the processes of a run that streams its images, each with a worker."""
    folder.mkdir(exist_ok=True)
    (folder / "net.cnn").write_text(graph("clip 1").text)
    command = [sys.executable, "-m", "cnnspec", "build", "net.cnn", "--train", "--data", f"stream:{url}", "--no-plots"]
    command += ["--epochs", "15", "--workers", "1", "--memory-format", "contiguous", "--accelerator", "cpu", *options]
    port, found = free_port(), []
    for rank in range(count):
        settings = {**os.environ, "OMP_NUM_THREADS": "1", **(variables(rank, count, port) if count > 1 else {})}
        log = (folder / f"{rank}.log").open("a")
        found.append(subprocess.Popen(command, cwd=folder, env=settings, text=True, stdout=log, stderr=log))
    return found


def end_ranks(processes: list[subprocess.Popen[str]]) -> list[int]:
    try:
        return [process.wait(240) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_two_processes_stream_from_a_web_server_and_resume_exactly(
    number: signal.Signals, serve: Callable[..., str], shards: Path, tmp_path: Path
):
    url, part = serve(shards), "runs/net/1"
    assert end_ranks(start_ranks(tmp_path / "alone", url, 1)) == [0]
    assert end_ranks(start_ranks(tmp_path / "whole", url, 2)) == [0, 0]
    folder = tmp_path / "stopped"
    processes = start_ranks(folder, url, 2, "--save-every", "0")
    while not (folder / part / "checkpoints/previous.ckpt").exists():
        assert processes[0].poll() is None, (folder / "0.log").read_text()
        time.sleep(0.01)
    processes[int(number == signal.SIGKILL)].send_signal(number)
    codes = end_ranks(processes)
    assert codes == ([143, 0] if number == signal.SIGTERM else [1, -9]), (folder / "0.log").read_text()
    assert json.loads((folder / part / "result.json").read_text())["steps"] < 15 * 12
    assert end_ranks(start_ranks(folder, url, 2, "--resume")) == [0, 0], (folder / "0.log").read_text()
    whole, resumed = (
        load_file(tmp_path / name / part / "checkpoints/best.safetensors") for name in ("whole", "stopped")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    for name in ("metrics.csv", "predictions.csv"):
        assert (tmp_path / "whole" / part / name).read_bytes() == (folder / part / name).read_bytes()
    alone = load_file(tmp_path / "alone" / part / "checkpoints/best.safetensors")
    for key in alone:
        assert torch.allclose(alone[key].float(), whole[key].float(), rtol=0, atol=1e-4), key


LISTS = {
    "https://elsewhere.example/train-0.parquet\n": "is not a list of shards",
    "../train-0.parquet\n": "is not a list of shards",
    "/etc/train-0.parquet\n": "is not a list of shards",
    "<html>not found</html>": "is not a list of shards",
    "other-0.parquet\n": "has no Parquet files",
    "": "has no Parquet files",
    "train-missing.parquet\n": "is not available|cannot read shard",
    "a" * (1 << 20) + "\n": "larger than",
}


@pytest.mark.parametrize("content", LISTS, ids=range(len(LISTS)))
def test_a_bad_list_of_shards_is_an_error(content: str, serve: Callable[..., str], tmp_path: Path):
    (tmp_path / "shards.txt").write_text(content)
    with pytest.raises(CnnspecError, match=LISTS[content]) as error:
        read(serve(tmp_path), tmp_path)
    assert code(error) in ("E0502", "E0503")


def test_a_list_that_is_not_there_is_an_error(serve: Callable[..., str], tmp_path: Path):
    for url in (serve(tmp_path), "http://127.0.0.1:9/shards.txt", "https://", "http://[/shards.txt"):
        with pytest.raises(CnnspecError) as error:
            read(url, tmp_path)
        assert code(error) == "E0502"


# --- damaged data ---------------------------------------------------------------------------------


def test_an_image_that_cannot_be_read_names_its_row(tmp_path: Path):
    folder = write_shards(tmp_path / "shards", content=lambda number: b"no image" if number == 9 else png(number))
    stream = stream_of(read(folder, tmp_path))
    with pytest.raises(CnnspecError, match=r"row 9 of .*shards train") as error:
        list(stream.read(torch.arange(45)))
    assert code(error) == "E0503"


@pytest.mark.parametrize("change", ["removed", "truncated", "fewer rows", "garbage"])
def test_a_shard_that_changes_during_a_run_is_an_error(change: str, tmp_path: Path):
    folder = write_shards(tmp_path / "shards", rows=30)
    stream = stream_of(read(folder, tmp_path))
    path = folder / "train-00002-of-00004.parquet"
    content = path.read_bytes()
    if change == "removed":
        path.unlink()
    elif change == "fewer rows":
        datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path)).select(range(3)).to_parquet(path)
    else:
        path.write_bytes(content[: len(content) // 2] if change == "truncated" else bytes(len(content)))
    with pytest.raises(CnnspecError, match=r"cannot read shard 2 of") as error:
        list(stream.read(torch.arange(45)))
    assert code(error) == "E0502"


@pytest.mark.parametrize(("given", "words"), [
    ({"image": "picture"}, "no column `picture`"), ({"label": "kind"}, "no column `kind`"),
    ({"image": "label"}, "does not contain images"),
])  # fmt: skip
def test_a_column_that_does_not_fit_is_an_error(given: dict[str, str], words: str, shards: Path, tmp_path: Path):
    with pytest.raises(CnnspecError, match=words) as error:
        read(shards, tmp_path, **given)
    assert code(error) == "E0503"
