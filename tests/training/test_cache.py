"""The cache of decoded images: the same images, whatever happens to its files and to those of the images."""

from __future__ import annotations

import io
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from harness.runs import code
from PIL import Image

import cnnspec
from cnnspec import Graph
from cnnspec.diagnostics import CnnspecError
from cnnspec.recipe import Folder, Setting
from cnnspec.training import Result, Splits, TrainOptions, plan
from cnnspec.training.data import channel_statistics
from cnnspec.training.data import decoded as decoded_module
from cnnspec.training.data import images as images_module
from cnnspec.training.data.channel_statistics import image_statistics, statistics
from cnnspec.training.data.datasets import ImageData, load_data
from cnnspec.training.data.decoded import Decoded, Headers, cache_in_file, cache_in_memory, read_headers
from cnnspec.training.data.sources import Files, Records
from cnnspec.training.data.threads import in_order
from cnnspec.training.loop.signals import Stopped
from cnnspec.training.runs import placement
from cnnspec.training.runs.placement import choose_placement, place_data

CPU = torch.device("cpu")
SPEC = """network small
input 3x12x12
classes 3
conv 3x3 4 | bn | relu | global_avgpool | flatten | linear classes
train {
    data folder "FOLDER" val=0.25
    augment random_resized_crop | hflip | rotate 10 | color_jitter
    optimizer sgd lr=0.05
    epochs 2
    batch 7
    seed 3
}
"""
KINDS: dict[str, Any] = {
    "jpg": {"quality": 85},
    "png": {},
    "gif": {},
    "bmp": {},
    "webp": {"quality": 80},
    "tiff": {},
    "ppm": {},
}


def write_images(folder: Path, count: int = 24) -> Path:
    """Write images of three classes in all formats, modes, sizes and orientations."""
    draw = np.random.default_rng(0)
    for number in range(count):
        kind = [*KINDS][number % len(KINDS)]
        height, width = draw.integers(9, 40, 2).tolist()
        image = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        if number % 5 == 0 and kind in ("png", "jpg", "tiff"):
            image = image.convert("L")
        given = dict(KINDS[kind])
        if kind in ("jpg", "png", "tiff", "webp"):
            exif = Image.Exif()
            exif[0x0112] = number % 8 + 1
            given["exif"] = exif
        path = folder / "train" / "abc"[number % 3] / f"{number}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **given)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CNNSPEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def graph(folder: Path, *changes: tuple[str, str]) -> Graph:
    text = SPEC.replace("FOLDER", folder.name)
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = folder.parent / "small.cnn"
    path.write_text(text, encoding="utf-8")
    return cnnspec.load(path)


def load(folder: Path) -> ImageData:
    return load_data(graph(folder), Setting.of(Folder(path=str(folder), val=0.25)), Path())


def records(folder: Path) -> Records:
    found = load(folder).train
    assert isinstance(found, Records)
    return found


def pixels(images: Records) -> list[torch.Tensor]:
    return list(images.read(torch.arange(len(images))))


def assert_same(one: Records, two: Records) -> None:
    assert torch.equal(one.labels, two.labels)
    for a, b in zip(pixels(one), pixels(two), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()  # what is computed from them may depend on it


def in_file(images: Records, **given: Any) -> Records:
    return cache_in_file(images, read_headers(images, 2), 2, **given)


def checkpoint(result: Result) -> dict[str, Any]:
    return torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)


# --- the same images -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cached", [cache_in_memory, cache_in_file])
def test_cached_images_are_those_of_the_files(cached: Callable[..., Records], channels: int, folder: Path):
    images = Records.of(Files(tuple(records(folder).paths() or ()), channels), torch.arange(18))
    found = cached(images, read_headers(images, 2), 2)
    assert_same(found, images)
    some = torch.tensor([5, 2, 11])
    assert_same(found.subset(some), images.subset(some))


@pytest.mark.usefixtures("one_thread")
def test_a_run_is_the_same_to_the_bit_with_every_cache(run: Callable[..., Result], folder: Path):
    network = graph(folder)
    expected = run(network, cache="off", workers=0, memory_format="contiguous")
    for place, workers in (("ram", 1), ("device", 0), ("disk", 1)):
        result = run(network, cache=place, workers=workers, memory_format="contiguous")
        for name, weights in checkpoint(expected)["state_dict"].items():
            assert torch.equal(weights, checkpoint(result)["state_dict"][name]), place
        for name in ("val_loss", "val_acc", "best_epoch"):
            assert result.values[name] == expected.values[name], place


def test_images_of_one_size_are_one_group_on_a_device(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoded_module, "to_device", lambda tensor, device: tensor)
    for path in records(folder).paths() or ():
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(path)
    images = records(folder)
    found = cache_in_memory(images, read_headers(images, 1), 1)
    on_device = type("OnDevice", (Decoded,), {"device": property(lambda self: torch.device("meta"))})
    assert isinstance(found.source, Decoded)
    moved = Records.of(on_device(found.source.pixels, found.source.sizes, 3), images.labels)
    some = torch.tensor([3, 0, 3])
    (group,) = moved.read(some)
    assert torch.equal(group, torch.cat(list(images.read(some))))
    assert moved.in_memory
    assert not found.in_memory


def test_warnings_are_shown_again_after_threads_have_read_images(folder: Path):
    import warnings

    before = list(warnings.filters)
    images = records(folder)
    for _ in range(5):
        cache_in_memory(images, read_headers(images, 8), 8)
    assert warnings.filters == before
    assert images_module._silence._readers == 0


# --- files of the cache ---------------------------------------------------------------------------


def contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.suffix != ".lock"}


def test_a_file_of_the_cache_is_used_again(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    images = records(folder)
    in_file(images)
    (before,) = contents(cache).values()
    monkeypatch.setattr(decoded_module, "read_image", lambda *args: pytest.fail("an image was read"))
    assert_same(in_file(images), images)
    assert list(contents(cache).values()) == [before]


def edit(path: Path) -> None:
    """Change the pixels of a file, but neither its size nor its time."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap(path: Path) -> None:
    """Exchange a file with another of the same size."""
    other = path.with_name("other.bmp")
    other.write_bytes(path.read_bytes())
    edit(other)
    os.replace(other, path)


def save_again(path: Path) -> None:
    image = Image.open(path).convert("RGB")
    image.rotate(90, expand=True).save(path)


CHANGES: dict[str, Callable[[Path], None]] = {"edit": edit, "swap": swap, "save again": save_again}


@pytest.mark.parametrize("change", CHANGES)
def test_images_that_have_changed_are_decoded_again(change: str, folder: Path, cache: Path):
    images = records(folder)
    in_file(images)
    CHANGES[change](next(path for path in images.paths() or () if path.suffix == ".bmp"))
    assert_same(in_file(images), images)
    assert len(contents(cache)) == 1


def test_another_list_of_images_has_another_file(folder: Path, cache: Path):
    images = records(folder)
    in_file(images)
    for other in (images.subset(torch.arange(5)), images.subset(torch.arange(17, -1, -1))):
        assert_same(in_file(other), other)
    assert len(contents(cache)) == 3


def flip(place: float) -> Callable[[bytes], bytes]:
    """Return a function that changes one bit, at a fraction of the length."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[min(len(content) - 1, int(place * len(content)))] ^= 1
        return bytes(changed)

    return change


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "pixels": flip(0.3),
    "first": flip(0),
    "sizes": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
    "key": lambda content: content[:-70] + bytes([content[-70] ^ 1]) + content[-69:],
    "hash": lambda content: content[:-30] + bytes([content[-30] ^ 1]) + content[-29:],
    "format": flip(1),
    "short": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "long": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_written_again(damage: str, folder: Path, cache: Path):
    images = records(folder)
    in_file(images)
    ((name, before),) = contents(cache).items()
    (cache / name).write_bytes(DAMAGE[damage](before))
    assert_same(in_file(images), images)
    assert contents(cache) == {name: before}


def test_what_is_not_a_file_in_the_place_of_the_cache(folder: Path, cache: Path, tmp_path: Path):
    images = records(folder)
    in_file(images)
    ((name, before),) = contents(cache).items()
    (tmp_path / "elsewhere").write_bytes(b"mine")
    (cache / name).unlink()
    (cache / name).symlink_to(tmp_path / "elsewhere")
    assert_same(in_file(images), images)
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
    (cache / name).unlink()
    (cache / name).mkdir()
    with pytest.raises(CnnspecError) as error:
        in_file(images)
    assert code(error) == "E0510"
    (cache / name).rmdir()
    os.mkfifo(cache / name)
    assert_same(in_file(images), images)
    assert contents(cache) == {name: before}


def test_a_full_disk_leaves_nothing(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(decoded_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CnnspecError) as error:
        in_file(records(folder))
    assert code(error) == "E0510"
    assert "10 bytes are free" in str(error.value)
    assert contents(cache) == {}


@pytest.mark.parametrize("cached", [cache_in_memory, cache_in_file])
def test_a_stop_ends_the_work_and_leaves_nothing(cached: Callable[..., Records], folder: Path, cache: Path):
    calls: list[int] = []

    def poll() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise Stopped

    images = records(folder)
    headers = read_headers(images, 2)
    with pytest.raises(Stopped):
        cached(images, headers, 2, poll)
    assert not cache.exists() or contents(cache) == {}


@pytest.mark.parametrize("cached", [cache_in_memory, cache_in_file])
def test_an_image_that_cannot_be_decoded_is_an_error(cached: Callable[..., Records], folder: Path, cache: Path):
    images = records(folder)
    headers = read_headers(images, 2)
    path = next(path for path in images.paths() or () if path.suffix == ".png")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(CnnspecError) as error:
        cached(images, headers, 2)
    assert code(error) == "E0503"
    other = Headers(headers.sizes + 1, 3)
    path.unlink()
    Image.new("RGB", (3, 3)).save(path)
    with pytest.raises(CnnspecError) as error:
        cached(images, other, 2)
    assert code(error) == "E0503"
    assert not cache.exists() or contents(cache) == {}


def _cache(folder: str, answers: Any) -> None:
    torch.set_num_threads(1)
    answers.put([image.clone().numpy() for image in pixels(in_file(records(Path(folder))))])


def test_processes_that_start_together_write_one_file(folder: Path, cache: Path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_cache, args=(str(folder), answers)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    expected = [image.numpy() for image in pixels(records(folder))]
    for images in found:
        assert all(np.array_equal(one, two) for one, two in zip(images, expected, strict=True))
    assert len(contents(cache)) == 1


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_of_files_are_computed_in_parallel_and_stored(
    channels: int, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    images = Records.of(Files(tuple(records(folder).paths() or ()), channels), torch.zeros(18).long())
    serial = statistics(pixels(images))
    assert image_statistics(images) == serial
    with monkeypatch.context() as patch:
        patch.setattr(channel_statistics, "read_image", lambda *args: pytest.fail("an image was read"))
        assert image_statistics(images) == serial
    CHANGES["edit"](next(path for path in images.paths() or () if path.suffix == ".bmp"))
    changed = image_statistics(images)
    assert changed == statistics(pixels(images)) != serial
    assert len(list((cache.parent / "statistics").iterdir())) == 2


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, "empty", "text", "folder"])
def test_damaged_statistics_are_computed_again(place: float | str, folder: Path, cache: Path):
    images = records(folder)
    expected = image_statistics(images)
    (path,) = (cache.parent / "statistics").iterdir()
    content = path.read_bytes()
    if place == "folder":
        path.unlink()
        path.mkdir()
    else:
        texts = {"empty": b"", "text": b"[[0.5], [1]]\n"}
        path.write_bytes(texts[place] if isinstance(place, str) else flip(place)(content))
    assert image_statistics(images) == expected
    if place != "folder":
        assert path.read_bytes() == content


def test_statistics_that_cannot_be_stored(folder: Path, cache: Path):
    cache.parent.mkdir()
    (cache.parent / "statistics").write_bytes(b"")
    images = records(folder)
    assert image_statistics(images) == statistics(pixels(images))


# --- the place -----------------------------------------------------------------------------------


def choose(data: ImageData, cache: str, device: torch.device = CPU, **changes: str) -> placement.Placement:
    assert data.root is not None
    network = graph(data.root, *changes.items())
    return choose_placement(data, cache, network, network.recipe, device)


def test_images_that_do_not_fit_are_not_cached(folder: Path, monkeypatch: pytest.MonkeyPatch):
    data = load(folder)
    needed = choose(data, "ram").nbytes
    assert needed == sum(image.numel() for part in (data.train, data.val) if part for image in pixels(part))  # type: ignore[arg-type]
    for cache, fraction in (("auto", 4), ("ram", 2)):
        monkeypatch.setattr(placement, "available_memory", lambda fraction=fraction: needed * fraction)
        assert (choose(data, cache).place, choose(data, cache).limit) == ("ram", needed)
    monkeypatch.setattr(placement, "available_memory", lambda: 2 * needed - 2)
    assert (choose(data, "auto").place, choose(data, "disk").place) == ("off", "disk")
    for cache in ("ram", "device"):  # the same on a CPU
        with pytest.raises(CnnspecError) as error:
            choose(data, cache)
        assert code(error) == "E0513"
    network = graph(folder)
    monkeypatch.setattr(placement, "available_memory", lambda: 4 * needed)
    assert choose_placement(data, "auto", network, network.recipe, CPU, processes=2).place == "off"


def test_images_that_are_read_once_are_not_cached(folder: Path):
    assert choose(load(folder), "auto", **{"epochs 2": "epochs 1"}).place == "off"
    assert choose(load(folder), "ram", **{"epochs 2": "epochs 1"}).place == "ram"


def test_images_of_one_size_are_moved_to_a_device_with_room(folder: Path, monkeypatch: pytest.MonkeyPatch):
    meta, fixed = torch.device("meta"), {" | color_jitter": ""}
    monkeypatch.setattr(placement, "free_memory", lambda device: 2**40)
    assert choose(load(folder), "auto", meta, **fixed).place == "ram"  # of several sizes
    assert choose(load(folder), "device", meta, **fixed).place == "device"
    for path in (folder / "train").rglob("*.*"):
        Image.new("RGB", (9, 10)).save(path)
    data = load(folder)
    place = choose(data, "auto", meta, **fixed)
    assert place.place == "device"
    assert place_data(data, place, meta).train.device == meta
    monkeypatch.setattr(placement, "free_memory", lambda device: 0)
    assert choose(data, "auto", meta, **fixed).place == "ram"
    with pytest.raises(CnnspecError) as error:
        choose(data, "device", meta)
    assert code(error) == "E0513"


@pytest.mark.parametrize("place", ["ram", "device", "disk"])
def test_images_of_a_program_are_not_cached(place: str, run: Callable[..., Result], tmp_path: Path):
    splits = Splits(train=(np.zeros((6, 12, 12, 3), np.uint8), [0, 1, 2, 0, 1, 2]))
    network = graph(tmp_path / "x", ('folder "x"', "python"))
    with pytest.raises(CnnspecError) as error:
        run(network, images=splits, cache=place)
    assert code(error) == "E0510"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["disk", "rom", ""])
def test_a_place_that_cannot_be_used_is_an_error(place: str, run: Callable[..., Result], tmp_path: Path):
    network = graph(tmp_path / "x", ('folder "x" val=0.25', "fashion_mini"), ("classes 3", "classes 10"))
    with pytest.raises(CnnspecError) as error:
        run(network, cache=place)
    assert code(error) == "E0510"
    assert not (tmp_path / "runs").exists()


def test_the_plan_and_the_run_say_where_the_images_are(folder: Path, run: Callable[..., Result], output: io.StringIO):
    for cache in ("auto", "disk", "off"):
        planned = plan(graph(folder), TrainOptions(cache=cache))["data"]["cache"]
        assert planned["place"] == {"auto": "ram"}.get(cache, cache)
        assert (planned["limit"] is None) == (cache != "auto")
    run(graph(folder), cache="disk", workers=0)
    assert "images in the disk cache" in output.getvalue()


def test_a_stop_while_images_are_cached_leaves_no_run(
    folder: Path, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stopped(*args: Any) -> Records:
        raise Stopped

    monkeypatch.setattr(placement, "cache_in_memory", stopped)
    assert run(graph(folder)).state == "interrupted"
    assert not (tmp_path / "runs").exists()


def test_results_that_a_thread_of_their_own_ends_do_not_wait_for_it() -> None:
    """The garbage collector runs in any thread, and ends what an exception left behind."""
    reached, failures = threading.Event(), []

    def compute(value: int) -> int:
        if value == 1:
            reached.wait(60)
            try:
                results.close()
            except BaseException as error:  # noqa: BLE001
                failures.append(error)
            finished.set()
        return value

    finished = threading.Event()
    results = in_order(compute, range(1000), 2)
    assert next(results) == 0
    reached.set()
    assert finished.wait(60)
    assert failures == []
    assert list(results) == []
