"""Test datasets, augmentation and batches."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import signal
import time
import urllib.error
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.images import write_images
from harness.runs import code
from torch.utils.data import random_split
from torchvision import transforms
from torchvision.transforms import v2

from cnnspec import CnnspecError, Graph, loads
from cnnspec.recipe import (
    AUGMENTATIONS,
    DATA_SETS,
    Cifar100,
    ColorJitter,
    FashionMini,
    Folder,
    Mnist,
    RandomCrop,
    Rotate,
    Setting,
)
from cnnspec.training.data import batches as batches_module
from cnnspec.training.data import download
from cnnspec.training.data.augment import TRANSFORMS, Preprocess, crop_boxes, resize_boxes
from cnnspec.training.data.batches import WORKER_ERRORS, Batch, EpochBatches, Workers
from cnnspec.training.data.channel_statistics import statistics
from cnnspec.training.data.datasets import SOURCES, ImageData, Pixels, load_data, split
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.data.rng import BatchRng
from cnnspec.training.data.sources import Files, Records

REAL = os.environ.get("CNNSPEC_DATA")
pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more processes than cores are a test, too
needs_real_data = pytest.mark.skipif(REAL is None, reason="needs the real datasets in CNNSPEC_DATA")


def graph(input: str = "1x28x28", classes: int = 10) -> Graph:
    return loads(f"network tiny\ninput {input}\nglobal_avgpool | flatten | linear {classes}\n", name="tiny.cnn")


def fashion_mini(input: str = "1x28x28") -> ImageData:
    return load_data(graph(input), Setting.of(FashionMini()), Path("nowhere"))


def batch_rng(count: int, seed: int = 0) -> BatchRng:
    return BatchRng.for_batch(seed, count)


def plain(size: tuple[int, int], channels: int) -> Preprocessing:
    """A preprocessing with known statistics."""
    return Preprocessing(size, (0.5,) * channels, (0.25,) * channels)


# --- datasets ------------------------------------------------------------------------------------


def test_every_declared_data_set_and_augmentation_has_a_row():
    assert {*SOURCES, "folder", "hf", "python"} == set(DATA_SETS)
    assert set(TRANSFORMS) == set(AUGMENTATIONS)


@pytest.mark.parametrize(("count", "held_out"), [(50000, 5000), (60000, 5000), (6000, 500), (10, 1), (10, 0)])
def test_the_split_equals_that_of_the_global_seed(count: int, held_out: int):
    torch.manual_seed(42)
    kept, held_back = random_split(range(count), [count - held_out, held_out])  # type: ignore[arg-type]
    train, val = split(count, held_out, "set")
    assert val.tolist() == list(held_back.indices)
    assert sorted(train.tolist()) == sorted(kept.indices)
    if held_out:
        assert train.tolist() == list(kept.indices)


def test_a_split_must_leave_training_images():
    with pytest.raises(CnnspecError) as error:
        split(100, 100, "set")
    assert code(error) == "E0511"


def test_statistics_equal_those_of_numpy():
    pixels = torch.randint(0, 256, (2500, 3, 5, 4), dtype=torch.uint8)
    mean, std = statistics([pixels])
    scaled = pixels.numpy() / 255.0
    assert np.allclose(mean, scaled.mean(axis=(0, 2, 3)), atol=1e-8)
    assert np.allclose(std, scaled.std(axis=(0, 2, 3)), atol=1e-8)
    assert statistics([torch.full((2, 1, 3, 3), 7, dtype=torch.uint8)])[1] == (1.0,)


def test_fashion_mini_is_small_balanced_and_licensed():
    folder = Path(download.__file__).parent / "fashion_mini"
    assert (folder / "fashion_mini.npz").stat().st_size <= 4_000_000
    assert "Copyright © 2017 Zalando SE, https://tech.zalando.com" in (folder / "LICENSE").read_text(encoding="utf-8")
    data = fashion_mini()
    assert (len(data.train), data.val and len(data.val), data.test and len(data.test)) == (5500, 500, 1000)
    assert data.test
    assert torch.bincount(data.test.labels).tolist() == [100] * 10
    assert data.val
    assert (torch.bincount(data.train.labels) + torch.bincount(data.val.labels)).tolist() == [600] * 10


@needs_real_data
def test_fashion_mini_contains_the_first_images_of_each_class():
    from torchvision.datasets import FashionMNIST

    original = FashionMNIST(REAL, train=False, download=False)
    firsts = torch.cat([(original.targets == k).nonzero()[:100, 0] for k in range(10)]).sort().values
    data = fashion_mini()
    assert isinstance(data.test, Pixels)
    assert torch.equal(data.test.pixels[:, 0], original.data[firsts])
    assert torch.equal(data.test.labels, original.targets[firsts])


@needs_real_data
def test_cifar10_has_the_published_statistics():
    assert REAL
    data = load_data(graph("3x32x32"), Setting(name="cifar10", args={"val": 5000}), Path(REAL), offline=True)
    assert data.mean == (0.49139968, 0.48215841, 0.44653091)
    assert data.std == (0.24703223, 0.24348513, 0.26158784)
    assert (len(data.train), data.val and len(data.val), data.test and len(data.test)) == (45000, 5000, 10000)


def test_grayscale_images_are_repeated_to_rgb():
    grey, rgb = fashion_mini(), fashion_mini("3x28x28")
    assert rgb.mean == grey.mean * 3
    assert isinstance(grey.test, Pixels)
    assert isinstance(rgb.test, Pixels)
    assert torch.equal(rgb.test.pixels, grey.test.pixels.repeat(1, 3, 1, 1))


def test_a_wrong_number_of_classes_is_rejected_before_the_download(tmp_path: Path):
    with pytest.raises(CnnspecError) as error:
        load_data(graph(classes=10), Setting.of(Cifar100()), tmp_path / "data")
    assert code(error) == "E0501"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "text", ["input 1x28x28\nconv 3x3 10\n", "input 4x28x28\nglobal_avgpool | flatten | linear 10\n"]
)
def test_only_image_classifiers_are_trained(text: str):
    with pytest.raises(CnnspecError) as error:
        load_data(loads("network odd\n" + text, name="odd.cnn"), Setting.of(FashionMini()), Path())
    assert code(error) == "E0508"


# --- downloads ------------------------------------------------------------------------------------


class FakeSet:
    """A stand-in for the datasets of torchvision. `answer` is the behavior of the server."""

    answer: BaseException | None = None

    def __init__(self, root: Path | str, train: bool, download: bool) -> None:
        folder = Path(root) / "Fake"
        if download and not folder.exists():
            folder.mkdir(parents=True)
            (folder / "half").write_bytes(b"x")
            (Path(root) / "archive.tar.gz").write_bytes(b"x")
            if self.answer:
                raise self.answer
            (folder / "whole").write_bytes(b"x")
        if not (folder / "whole").exists():
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        self.data = np.zeros((20, 28, 28), np.uint8)
        self.targets = [0, 1] * 10


FAULTS = [
    urllib.error.URLError("Name or service not known"),
    RuntimeError("File not found or corrupted."),
    TimeoutError("timed out"),
    OSError(28, "No space left on device"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException):
    monkeypatch.setitem(download._CLASSES, "mnist", type("Failing", (FakeSet,), {"answer": fault}))
    with pytest.raises(CnnspecError) as error:
        load_data(graph(), Setting.of(Mnist()), tmp_path / "data")
    assert code(error) == "E0502"
    for option in ("--data fashion_mini", "--data-dir", "--data folder"):
        assert option in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_start_together_download_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Slow(FakeSet):
        def __init__(self, folder: Path, train: bool, download: bool):
            if download and train:
                with (tmp_path / "downloads").open("a") as file:
                    file.write("x")
                time.sleep(0.5)
            super().__init__(folder, train, download)

    def load() -> None:
        torch.set_num_threads(1)  # a forked process does not have the threads of torch
        assert len(load_data(graph(), Setting.of(Mnist(val=2)), tmp_path / "data").train) == 18

    monkeypatch.setitem(download._CLASSES, "mnist", Slow)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=load) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "downloads").read_text() == "x"
    assert not list((tmp_path / "data").glob(".*"))


def test_offline_never_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(download._CLASSES, "mnist", FakeSet)
    with pytest.raises(CnnspecError) as error:
        load_data(graph(), Setting.of(Mnist()), tmp_path, offline=True)
    assert code(error) == "E0502"
    assert list(tmp_path.iterdir()) == []


def test_a_complete_download_is_moved_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(download._CLASSES, "mnist", FakeSet)
    data = load_data(graph(), Setting.of(Mnist(val=4)), tmp_path / "data")
    assert len(data.train) == 16
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["Fake"]


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_with_a_validation_fraction(tmp_path: Path):
    write_images(tmp_path / "train")
    data = load_data(graph("3x8x8", 2), Setting.of(Folder(path=str(tmp_path), val=0.2)), Path())
    assert (len(data.train), data.val and len(data.val), data.test) == (16, 4, None)
    preprocess = Preprocess(Preprocessing((8, 8), data.mean, data.std))
    with Workers(2) as workers:
        (images, labels), *_ = EpochBatches(data.train, preprocess, 4, seed=1, workers=workers)
    assert images.shape == (4, 3, 8, 8)
    assert set(labels.tolist()) <= {0, 1}


def test_a_folder_with_its_own_splits(tmp_path: Path):
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        write_images(tmp_path / part, count=count)
    data = load_data(graph("1x8x8", 2), Setting.of(Folder(path=str(tmp_path))), Path())
    assert (len(data.train), data.val and len(data.val), data.test and len(data.test)) == (12, 6, 4)
    assert len(data.mean) == 1
    assert isinstance(data.train, Records)
    assert isinstance(data.train.source, Files)
    assert next(data.train.read(torch.tensor([0]))).shape == (1, 1, 8, 6)


def test_folder_errors(tmp_path: Path):
    def load() -> str:
        with pytest.raises(CnnspecError) as error:
            _ = load_data(graph("3x8x8", 2), Setting.of(Folder(path=str(tmp_path / "images"))), Path()).mean
        return code(error)

    assert load() == "E0503"  # not a folder
    (tmp_path / "images" / "train").mkdir(parents=True)
    assert load() == "E0503"  # no classes
    write_images(tmp_path / "images" / "train", "abc")
    assert load() == "E0501"
    (tmp_path / "images" / "train" / "c").rename(tmp_path / "c")
    write_images(tmp_path / "images" / "test", "x")
    assert load() == "E0503"  # a class that is missing in `train`
    (tmp_path / "images" / "test").rename(tmp_path / "test")
    (tmp_path / "images" / "train" / "a" / "0.png").write_bytes(b"no image")
    assert load() == "E0503"


# --- augmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_test_images_equal_those_of_torchvision_exactly(channels: int):
    data = fashion_mini(f"{channels}x28x28")
    assert isinstance(data.test, Pixels)
    ours = Preprocess(Preprocessing((28, 28), data.mean, data.std))(data.test.pixels[:50])
    old = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])
    arrays = data.test.pixels[:50].permute(0, 2, 3, 1).contiguous().numpy()
    assert torch.equal(ours, torch.stack([old(array) for array in arrays]))


def test_resizing_equals_torchvision_and_keeps_the_aspect_ratio():
    images = torch.randint(0, 256, (4, 3, 20, 30), dtype=torch.uint8)
    covering = v2.Compose([v2.Resize(40, antialias=True), v2.CenterCrop(40)])
    assert torch.equal(plain((40, 40), 3).fit_images(images), covering(images))
    assert plain((20, 30), 3).fit_images(images) is images
    assert torch.equal(plain((10, 15), 3).fit_images(images), v2.functional.resize(images, [10, 15], antialias=True))


@pytest.mark.parametrize("size", [(32, 32), (14, 20), (50, 41)])
def test_a_resized_crop_equals_that_of_torchvision(size: tuple[int, int]):
    images = torch.randint(0, 256, (30, 3, 32, 28), dtype=torch.uint8)
    boxes = crop_boxes((32, 28), (0.08, 1.0), (3 / 4, 4 / 3), batch_rng(30))
    ours = resize_boxes(images, boxes, size).int()
    for image, box, got in zip(images, boxes.tolist(), ours, strict=True):
        wanted = v2.functional.resized_crop(image, *box, list(size), antialias=True).int()
        assert (got - wanted).abs().max() <= 1


def test_crops_are_distributed_as_in_torchvision():
    torch.manual_seed(0)
    image, scale, ratio = torch.zeros(3, 32, 32), (0.8, 1.0), (0.9, 1.1)
    transform = v2.RandomResizedCrop(32, scale, ratio)
    params = [transform.make_params([image]) for _ in range(3000)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in params]).double()
    ours = crop_boxes((32, 32), scale, ratio, batch_rng(3000)).double()
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.1
    assert (ours.std(0) - theirs.std(0)).abs().max() < 0.1
    assert (ours.amax(0) - theirs.amax(0)).abs().max() <= 1


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples, relative to the critical value at p = 0.001."""
    places = torch.cat([ours, theirs]).double().sort().values
    shares = [
        torch.searchsorted(sample.double().sort().values, places, right=True) / len(sample) for sample in (ours, theirs)
    ]
    limit = 1.95 * ((len(ours) + len(theirs)) / (len(ours) * len(theirs))) ** 0.5
    return float((shares[0] - shares[1]).abs().max()) / limit


@pytest.mark.parametrize(("scale", "ratio"), [((0.8, 1.0), (0.9, 1.1)), ((0.08, 1.0), (3 / 4, 4 / 3))])
def test_crops_pass_the_kolmogorov_smirnov_test(scale: tuple[float, float], ratio: tuple[float, float]):
    torch.manual_seed(1)
    transform = v2.RandomResizedCrop(32, scale, ratio)
    params = [transform.make_params([torch.zeros(3, 32, 32)]) for _ in range(4000)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in params])
    ours = crop_boxes((32, 32), scale, ratio, batch_rng(4000, 5))
    for column in range(4):
        assert distance(ours[:, column], theirs[:, column]) < 1
    assert distance(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < 1
    # The test can fail: half a pixel of height is detected.
    assert distance(ours[:, 2] + 1, theirs[:, 2]) > 1


def test_shifts_and_flips_pass_the_kolmogorov_smirnov_test():
    torch.manual_seed(0)
    ramp = (torch.arange(12)[:, None] * 16 + torch.arange(16) + 1).byte()[None]  # every pixel encodes its position
    crop, flip, move = (
        v2.RandomCrop((12, 16), padding=4),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomAffine(0, (0.25, 0.25)),
    )
    images = ramp.repeat(4000, 1, 1, 1)
    for name, theirs_of, args in (
        ("random_crop", crop, {"pad": (4, 4), "mode": "zeros"}),
        ("hflip", flip, {"p": 0.5}),
        ("translate", move, {"by": 0.25}),
    ):
        ours = TRANSFORMS[name](images, (12, 16), batch_rng(4000, 100), **args)
        theirs = torch.stack([theirs_of(ramp) for _ in range(4000)])
        for row, col in ((0, 0), (6, 8), (11, 15), (2, 13)):
            assert distance(ours[:, 0, row, col], theirs[:, 0, row, col]) < 1, (name, row, col)


def test_alternating_flip_mirrors_each_half_in_turn():
    images = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4).repeat(2000, 1, 1, 1)
    turned = []
    for epoch in range(3):
        flipped = TRANSFORMS["alternating_flip"](images, (3, 4), BatchRng.for_batch(1, 2000, epoch))
        turned.append((flipped == images.flip(-1)).flatten(1).all(1))
    assert torch.equal(turned[0], ~turned[1])
    assert torch.equal(turned[0], turned[2])
    assert 0.45 < turned[0].float().mean() < 0.55
    other = TRANSFORMS["alternating_flip"](images, (3, 4), BatchRng.for_batch(2, 2000))
    assert 0.4 < ((other == images.flip(-1)).flatten(1).all(1) == turned[0]).float().mean() < 0.6


def test_cutout_erases_squares_with_uniform_centers():
    images = torch.full((4000, 1, 9, 7), 9, dtype=torch.uint8)
    blank = TRANSFORMS["cutout"](images, (9, 7), batch_rng(4000), side=3) == 0
    rows, cols = blank.any(-1).sum(-1).flatten(), blank.any(-2).sum(-1).flatten()
    assert torch.equal(blank.flatten(1).sum(1), rows * cols)
    assert set(rows.tolist()) == set(cols.tolist()) == {2, 3}
    assert abs(float((rows == 2).float().mean()) - 2 / 9) < 0.03
    assert abs(float((cols == 2).float().mean()) - 2 / 7) < 0.03


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "alternating_flip"])
def test_parts_of_a_batch_are_augmented_like_the_whole(name: str):
    setting = SETTINGS.get(name) or Setting.of(AUGMENTATIONS[name]())
    images = torch.randint(0, 256, (9, 3, 20, 24), dtype=torch.uint8)
    preprocess = Preprocess(plain((16, 16), 3), [setting])
    whole = preprocess(images, batch_rng(9))
    one_by_one = torch.cat([preprocess(images[i : i + 1], batch_rng(9).select(slice(i, i + 1))) for i in range(9)])
    assert torch.allclose(whole, one_by_one, atol=1e-5)


def test_a_crop_that_cannot_fit_is_the_center():
    boxes = crop_boxes((10, 40), (1.0, 1.0), (1.0, 1.0), batch_rng(5))
    assert boxes.tolist() == [[0, 15, 10, 10]] * 5


@pytest.mark.parametrize("mode", ["zeros", "reflect", "edge"])
def test_a_random_crop_is_a_window_of_the_padded_image(mode: str):
    padding = {"zeros": "constant", "reflect": "reflect", "edge": "edge"}[mode]
    images = torch.randint(1, 256, (40, 2, 6, 5), dtype=torch.uint8)
    crops = TRANSFORMS["random_crop"](images, (6, 5), batch_rng(40), pad=(2, 3), mode=mode)
    places: set[tuple[int, int]] = set()
    for image, crop in zip(images, crops, strict=True):
        padded = v2.functional.pad(image, [3, 2], padding_mode=padding)
        found = [(i, j) for i in range(5) for j in range(7) if torch.equal(padded[:, i : i + 6, j : j + 5], crop)]
        assert found
        places.update(found)
    assert {i for i, _ in places} == set(range(5))
    assert {j for _, j in places} == set(range(7))


def test_flips_happen_with_the_given_probability():
    images = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4).repeat(2000, 1, 1, 1)
    for name, axis in (("hflip", -1), ("vflip", -2)):
        flipped = TRANSFORMS[name](images, (3, 4), batch_rng(2000), p=0.3)
        turned = (flipped == images.flip(axis)).flatten(1).all(1)
        same = (flipped == images).flatten(1).all(1)
        assert bool((turned ^ same).all())
        assert 0.26 < turned.float().mean() < 0.34


def test_rotation_equals_that_of_torchvision():
    image = torch.zeros(1, 1, 24, 16, dtype=torch.uint8)
    image[..., 8:16, 4:12] = 200
    torch.manual_seed(0)
    turned = TRANSFORMS["rotate"](image.repeat(20, 1, 1, 1), (24, 16), batch_rng(20, 3), degrees=30.0)
    angles = (batch_rng(20, 3).rand() * 60 - 30).tolist()
    for angle, got in zip(angles, turned, strict=True):
        wanted = v2.functional.rotate(image[0], angle, v2.InterpolationMode.BILINEAR)
        other = v2.functional.rotate(image[0], -angle, v2.InterpolationMode.BILINEAR)
        error = min((got.int() - side.int()).abs().float().mean() for side in (wanted, other))
        assert error < 1.5


def test_random_erasing_erases_a_rectangle():
    images = torch.full((300, 3, 20, 20), 9, dtype=torch.uint8)
    erased = TRANSFORMS["random_erasing"](images, (20, 20), batch_rng(300), p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3))
    blank = (erased == 0).all(1)
    area = blank.flatten(1).sum(1)
    assert 0.4 < (area > 0).float().mean() < 0.6
    assert torch.equal(area, blank.any(1).sum(1) * blank.any(2).sum(1))
    assert area[area > 0].min() >= 400 * 0.01
    assert area.max() <= 400 * 0.37


SETTINGS = {
    "random_crop": Setting.of(RandomCrop(pad=(3, 3))),
    "translate": Setting.of(AUGMENTATIONS["translate"](by=0.2)),
    "cutout": Setting.of(AUGMENTATIONS["cutout"](side=5)),
    "rotate": Setting.of(Rotate(degrees=20.0)),
    "color_jitter": Setting.of(ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)),
}


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_depends_only_on_its_generator(name: str, channels: int):
    setting = SETTINGS.get(name) or Setting.of(AUGMENTATIONS[name]())
    images = torch.randint(0, 256, (16, channels, 20, 24), dtype=torch.uint8)
    kept = images.clone()
    preprocess = Preprocess(plain((16, 16), channels), [setting])
    before = torch.get_rng_state()
    first, again, other = (preprocess(images, batch_rng(16, seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, kept)
    assert first.shape == (16, channels, 16, 16)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    if not (name == "color_jitter" and channels == 1):
        assert not torch.equal(first, other)
    assert torch.equal(
        preprocess(images),
        Preprocess(plain((16, 16), channels))(images),
    )


# --- batches --------------------------------------------------------------------------------------

CHANGING = Preprocess(plain((28, 28), 1), [Setting.of(RandomCrop(pad=(2, 2)))])


def pixels(count: int = 50) -> Pixels:
    return Pixels(torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8), torch.arange(count))


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_batches_created_together_equal_those_created_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch):
    setting = SETTINGS.get(name) or Setting.of(AUGMENTATIONS[name]())
    images = Pixels(torch.randint(0, 256, (30, 3, 12, 10), dtype=torch.uint8), torch.arange(30))
    preprocess = Preprocess(plain((12, 10), 3), [setting])
    monkeypatch.setattr(batches_module, "GROUP_VALUES", {"cpu": 3 * 4 * 3 * 12 * 10})  # three batches
    for rank in range(2):
        batches = EpochBatches(images, preprocess, 4, seed=1, skip=1, rank=rank, world=2)
        together, alone = list(batches), [batches[number] for number in range(1, 7)]
        for ours, theirs in zip(together, alone, strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
            assert ours[0].stride() == theirs[0].stride()


def test_batches_depend_on_seed_epoch_and_position():
    images = pixels()
    whole = list(EpochBatches(images, CHANGING, 8, seed=1, epoch=2))
    assert len(whole) == 6  # the last two images do not fill a batch
    assert len({int(label) for _, labels in whole for label in labels}) == 48
    for skip, stop in ((0, None), (2, None), (0, 4), (3, 5), (6, None), (7, 9)):
        other = EpochBatches(images, CHANGING, 8, seed=1, epoch=2, skip=skip, stop=stop)
        assert len(other) == len(whole[skip:stop])
        assert_equal(other, whole[skip:stop])
    for changed in (
        EpochBatches(images, CHANGING, 8, seed=2, epoch=2),
        EpochBatches(images, CHANGING, 8, seed=1, epoch=3),
    ):
        assert not torch.equal(next(iter(changed))[1], whole[0][1])


def test_the_numbers_of_a_batch_are_drawn_once_for_all_of_its_images(monkeypatch: pytest.MonkeyPatch):
    def draw(rng: BatchRng) -> list[torch.Tensor]:
        return [rng.rand(), rng.uniform(-1, 1, 10), rng.randint(7), torch.tensor(rng.seeds())]

    whole = BatchRng.for_batch(3, 20, epoch=1, number=2)
    expected, drawn = draw(whole), []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **given: drawn.append(size) or rand(*size, **given))
    rng = BatchRng.for_batch(3, 20, epoch=1, number=2)
    for position in (4, 0, 19):
        one = draw(rng.select(slice(position, position + 1)))
        assert all(torch.equal(a, b[position : position + 1]) for a, b in zip(one, expected, strict=True))
    assert len(drawn) == 4
    later = BatchRng.for_batch(3, 20, epoch=1, number=2)
    later.rand()
    assert torch.equal(later.select(slice(2, 5)).uniform(-1, 1, 10), expected[1][2:5])


def test_devices_share_a_batch():
    images = pixels()
    whole = list(EpochBatches(images, CHANGING, 8, seed=1))
    shares = [list(EpochBatches(images, CHANGING, 8, seed=1, rank=rank, world=2)) for rank in range(2)]
    for (_, labels), (_, first), (_, second) in zip(whole, *shares, strict=True):
        assert sorted(torch.cat([first, second]).tolist()) == sorted(labels.tolist())


def test_testing_sees_every_image_once_in_order():
    labels = [label for _, labels in EpochBatches(pixels(), CHANGING, 8) for label in labels.tolist()]
    assert labels == list(range(50))


def test_a_data_set_smaller_than_a_batch_is_one_batch():
    assert len(list(EpochBatches(pixels(5), CHANGING, 8, seed=1))) == 1


def assert_equal(batches: Iterable[Batch], expected: Iterable[Batch]) -> None:
    for (ours, labels), (theirs, wanted) in zip(batches, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(labels, wanted)


def kill_children() -> None:
    for child in multiprocessing.active_children():
        child.kill()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("epochs", [0, 4])
def test_workers_are_kept_over_the_epochs(count: int, epochs: int):
    """Iterations that follow each other, begin again, end early and differ in the images come from the same object."""
    images, others = pixels(), pixels()

    def batches(epoch: int, images: Pixels = images, **more: Any) -> EpochBatches:
        return EpochBatches(images, CHANGING, 8, seed=1, epoch=epoch, **more)

    with Workers(count, epochs) as workers:
        assert multiprocessing.active_children() == []
        assert_equal(batches(0, skip=4, workers=workers), batches(0, skip=4))
        started = multiprocessing.active_children()
        assert len(started) == count
        for epoch in (1, 2, 2, 0):
            assert_equal(batches(epoch, workers=workers), batches(epoch))
        assert_equal(itertools.islice(batches(1, workers=workers), 3), batches(1, stop=3))
        assert_equal(batches(1, skip=3, workers=workers), batches(1, skip=3))
        assert_equal(batches(2, skip=1, workers=workers), batches(2, skip=1))
        both = (iter(batches(epoch, workers=workers)) for epoch in (1, 3))
        for (ours, theirs), *expected in zip(zip(*both, strict=True), batches(1), batches(3), strict=True):
            assert_equal((ours, theirs), expected)
        assert {child.pid for child in multiprocessing.active_children()} == {child.pid for child in started}
        assert_equal(batches(3, others, workers=workers), batches(3, others))
        assert {child.pid for child in multiprocessing.active_children()}.isdisjoint(child.pid for child in started)
    assert multiprocessing.active_children() == []


def test_workers_load_the_next_epoch_ahead_but_not_beyond_the_last(monkeypatch: pytest.MonkeyPatch):
    made, note = multiprocessing.Pipe(duplex=False)
    make = EpochBatches.__getitem__

    def noted(self: EpochBatches, number: int) -> Batch:
        note.send((self.epoch, number))
        return make(self, number)

    monkeypatch.setattr(EpochBatches, "__getitem__", noted)
    images = pixels(24)
    for epochs, last in ((0, 1), (3, 2)):
        with Workers(1, epochs) as workers:
            assert len(list(EpochBatches(images, CHANGING, 8, seed=1, epoch=1, workers=workers))) == 3
            # One process serves its requests in their order, and those ahead were sent before the last batch.
            expected = [(epoch, number) for epoch in range(1, last + 1) for number in range(3)]
            assert [made.recv() for _ in expected if made.poll(60)] == expected
        assert not made.poll()


def test_no_more_workers_than_batches():
    with Workers(8) as workers:
        list(EpochBatches(pixels(), CHANGING, 20, workers=workers))
        assert len(multiprocessing.active_children()) == 3


@pytest.mark.parametrize("broken", [RuntimeError("broken"), ValueError("broken")])
def test_an_error_in_a_worker_loses_no_batch(broken: Exception, monkeypatch: pytest.MonkeyPatch):
    images = pixels()
    make, whole = EpochBatches.__getitem__, list(EpochBatches(images, CHANGING, 8, seed=1))
    has_failed = multiprocessing.get_context("fork").Event()

    def fail_once(self: EpochBatches, number: int) -> Batch:
        if number == 2 and not has_failed.is_set():
            has_failed.set()
            raise broken
        return make(self, number)

    monkeypatch.setattr(EpochBatches, "__getitem__", fail_once)
    with Workers(1) as workers:
        batches = EpochBatches(images, CHANGING, 8, seed=1, workers=workers)
        found = [workers.load(batches, number) for number in range(2)]
        with pytest.raises(type(broken), match="broken"):
            workers.load(batches, 2)
        assert_equal(found + [workers.load(batches, number) for number in range(2, 6)], whole)


@pytest.mark.parametrize("text", ["broken", "DataLoader worker (pid 7) exited unexpectedly"])
@pytest.mark.parametrize("kind", [*WORKER_ERRORS, ConnectionResetError, BrokenPipeError, NotImplementedError])
def test_an_error_in_a_worker_is_no_death_of_it(
    kind: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(self: EpochBatches, number: int) -> Batch:
        raise kind(text)

    monkeypatch.setattr(EpochBatches, "__getitem__", fail)
    with Workers(1) as workers, pytest.raises(kind, match=f"(?s)Traceback.*{re.escape(text)}"):
        list(EpochBatches(pixels(), CHANGING, 8, seed=1, workers=workers))
    assert not capsys.readouterr().err


def test_an_image_that_a_worker_cannot_read_is_a_diagnostic(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = Records.of(Files((tmp_path / "broken.png",) * 8, 1), torch.zeros(8).long())
    with Workers(1) as workers, pytest.raises(CnnspecError) as error:
        next(iter(EpochBatches(images, CHANGING, 4, seed=1, workers=workers)))
    assert code(error) == "E0503"
    assert "`broken.png`" in str(error.value)


@pytest.mark.parametrize(("count", "place"), [(1, (0, 3)), (1, (1, 3)), (2, (1, 3)), (1, (0, 49)), (2, (1, 0))])
def test_a_worker_that_dies_is_replaced(count: int, place: tuple[int, int], capsys: pytest.CaptureFixture[str]):
    """Kill workers within an epoch, between two, and after the first batch of the second."""
    images = pixels(400)
    with Workers(count, 2) as workers:
        for epoch in range(2):
            seen: list[Batch] = []
            for number, batch in enumerate(EpochBatches(images, CHANGING, 8, seed=1, epoch=epoch, workers=workers)):
                seen.append(batch)
                if (epoch, number) == place:
                    kill_children()
            assert_equal(seen, EpochBatches(images, CHANGING, 8, seed=1, epoch=epoch))
    assert capsys.readouterr().err.count("died; its batches are loaded again") == 1
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_requests_to_stop_do_not_end_workers(number: int, capsys: pytest.CaptureFixture[str]):
    images = pixels(400)
    with Workers(1) as workers:
        batches = EpochBatches(images, CHANGING, 8, workers=workers)
        first = workers.load(batches, 0)  # the worker has started
        started = [child.pid for child in multiprocessing.active_children()]
        for pid in started:
            os.kill(pid, number)
        rest = [workers.load(batches, number) for number in range(1, batches.num_batches)]
        assert_equal([first, *rest], EpochBatches(images, CHANGING, 8))
        assert [child.pid for child in multiprocessing.active_children()] == started
    assert not capsys.readouterr().err


def test_workers_that_die_between_two_iterations_are_replaced(capsys: pytest.CaptureFixture[str]):
    images = pixels(20)
    expected = list(EpochBatches(images, CHANGING, 8))
    with Workers(2) as workers:
        for _ in range(2):
            assert_equal(EpochBatches(images, CHANGING, 8, workers=workers), expected)
            kill_children()
    assert capsys.readouterr().err.count("died; its batches are loaded again") == 1


# --- images in the memory of a device -------------------------------------------------------------


BY_IMAGE = ("color_jitter", "autoaugment", "randaugment", "trivialaugment")
"""These augmentations process images one by one, and need numbers on the CPU."""


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name not in BY_IMAGE])
def test_batches_are_created_on_the_device_of_the_images(name: str):
    """Use tensors without data on a fake GPU. torch rejects mixed devices as on a real one."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    setting = SETTINGS.get(name) or Setting.of(AUGMENTATIONS[name]())
    preprocess = Preprocess(plain((16, 16), 3), [setting])
    shapes = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes):
        images = Pixels(torch.zeros(20, 3, 20, 24, dtype=torch.uint8), torch.zeros(20).long())
        there = images.to(torch.device("cuda", 0))
        made, labels = EpochBatches(there, preprocess, 8, seed=1)[1]
        with pytest.raises(RuntimeError, match="device"):  # mixed devices are detected
            made + torch.zeros(16)
    assert made.device == labels.device == there.device == torch.device("cuda", 0)
    assert made.shape == (8, 3, 16, 16)


def test_random_numbers_are_drawn_on_the_cpu_and_moved_to_the_images():
    here = BatchRng.for_batch(3, 5)
    there = replace(BatchRng.for_batch(3, 5), device=torch.device("meta"))
    for _ in range(3):
        here.rand(4)
        assert there.rand(4).device.type == "meta"
    assert here.position == there.position == 3
    assert here.position == there.position


def test_subsets_always_have_the_same_images(tmp_path: Path) -> None:
    graph = loads("input 1x28x28\nclasses 10\nflatten | linear classes\n")
    whole, part = (
        load_data(graph, Setting.of(kind), tmp_path)
        for kind in (FashionMini(val=100), FashionMini(val=100, train=200, test=50))
    )
    assert (len(part.train), len(part.val or ()), len(part.test or ())) == (200, 100, 50)
    assert isinstance(whole.train, Pixels)
    assert isinstance(part.train, Pixels)
    known = {bytes(image.numpy().tobytes()) for image in whole.train.pixels}
    assert {bytes(image.numpy().tobytes()) for image in part.train.pixels} <= known
    again = load_data(graph, Setting.of(FashionMini(val=100, train=200)), tmp_path)
    assert torch.equal(again.train.labels, part.train.labels)
    assert part.mean == whole.mean
    with pytest.raises(CnnspecError, match="`train=6000` exceeds"):
        load_data(graph, Setting.of(FashionMini(val=100, train=6000)), tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "mnist"])
@pytest.mark.parametrize("offline", [True, False])
def test_a_plan_lists_what_would_be_downloaded(name: str, offline: bool, tmp_path: Path):
    from cnnspec.training.runs.options import TrainOptions
    from cnnspec.training.runs.plan import plan, plan_lines

    channels, classes = (3 if "cifar" in name else 1), (100 if name == "cifar100" else 10)
    text = f"input {channels}x8x8\nhead global_avgpool | flatten | linear {classes}\ntrain {{ data {name} }}"
    planned = plan(loads(text, name="net.cnn"), TrainOptions(data_dir=tmp_path, offline=offline))
    assert all(file["url"].startswith("http") and file["bytes"] > 1000 for file in planned["data"]["downloads"])
    assert planned["data"]["state"] == ("not found" if offline else "not found, will be downloaded")
    assert all(any(file["url"] in line for line in plan_lines(planned)) for file in planned["data"]["downloads"])
    assert list(tmp_path.iterdir()) == []


def test_a_plan_lists_weights_that_would_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from cnnspec import load
    from cnnspec.training.runs.options import TrainOptions
    from cnnspec.training.runs.plan import plan, plan_lines

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    options = TrainOptions(data_dir=tmp_path, weights="torchvision:DEFAULT")
    planned = plan(load("resnet18", classes=10), options)
    assert planned["weights"]["downloads"][0]["url"] in "\n".join(plan_lines(planned))
    assert list(tmp_path.iterdir()) == []
