"""Augmentations of a whole batch, compared with torchvision's of one image: with the same parameters, and as drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from cnnspec.training.data import augment, policies
from cnnspec.training.data.policies import JITTER, OPERATIONS, SHIFTS, apply_operations
from cnnspec.training.data.rng import BatchRng

SPACES: dict[str, tuple[Any, int]] = {
    "trivialaugment": (v2.TrivialAugmentWide(), 31),
    "randaugment": (v2.RandAugment(), 31),
    "autoaugment": (v2.AutoAugment(), 10),
}
OWN: dict[str, dict[str, Any]] = {
    "trivialaugment": {},
    "randaugment": {"ops": 2, "magnitude": 9},
    "autoaugment": {"policy": "cifar10"},
}
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 9, 14), (3, 2, 2), (1, 1, 1)]
ADJUST: dict[str, Callable[..., torch.Tensor]] = {
    "brightness": V.adjust_brightness,
    "contrast": V.adjust_contrast,
    "saturation": V.adjust_saturation,
    "hue": V.adjust_hue,
}
DRAWS = 6000


def images_of(shape: tuple[int, int, int], count: int = 40) -> torch.Tensor:
    """Return smooth images with noise, and some that are constant or have only two values."""
    rng = torch.Generator().manual_seed(0)
    channels, *size = shape
    coarse = torch.rand(count, channels, 5, 6, generator=rng) * 255
    waves = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    images = (waves + 8 * torch.randn(count, *shape, generator=rng)).clamp(0, 255).to(torch.uint8)
    images[0], images[1], images[2, :, :1] = 7, 255, 0
    images[3] = images[3] // 128 * 255
    return images


def assert_close(found: torch.Tensor, expected: torch.Tensor, *, exact: bool) -> None:
    """Compare bytes. A product that is rounded once more can fall to the next integer."""
    assert found.dtype == expected.dtype == torch.uint8
    difference = (found.int() - expected.int()).abs()
    assert int(difference.max()) <= (0 if exact else 1)
    if found[0].numel() > 16:
        assert float((difference > 0).float().mean()) < 0.06  # two of 40 images are constant


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("space", SPACES)
def test_an_operation_of_a_batch_is_that_of_each_image(space: str, shape: tuple[int, int, int]):
    transform, bins = SPACES[space]
    images, rng = images_of(shape), torch.Generator().manual_seed(1)
    for name, (magnitudes, signed) in transform._AUGMENTATION_SPACE.items():
        values = magnitudes(bins, *shape[1:])
        drawn = torch.zeros(40) if values is None else values.float()[torch.randint(bins, (40,), generator=rng)]
        drawn = torch.where(torch.rand(40, generator=rng) < 0.5, -drawn, drawn) if signed else drawn
        found = apply_operations(images, torch.full((40,), OPERATIONS.index(name)), drawn)
        expected = [
            transform._apply_image_or_video_transform(image, name, value, transform.interpolation, transform._fill)
            for image, value in zip(images, drawn.tolist(), strict=True)
        ]
        exact = name in (*SHIFTS, "Identity", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert")
        assert_close(found, torch.stack(expected), exact=exact)


def test_every_image_has_its_own_operation():
    images, transform = images_of((3, 16, 20)), v2.AutoAugment()
    kinds = torch.arange(40) % len(OPERATIONS)
    drawn = torch.linspace(0.1, 0.9, 40)
    found = apply_operations(images, kinds, drawn)
    for number, kind in enumerate(kinds.tolist()):
        expected = transform._apply_image_or_video_transform(
            images[number], OPERATIONS[kind], float(drawn[number]), transform.interpolation, transform._fill
        )
        assert_close(found[number], expected, exact=False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_color_jitter_of_a_batch_is_that_of_each_image(shape: tuple[int, int, int]):
    images, rng = images_of(shape), torch.Generator().manual_seed(2)
    for name, adjust in ADJUST.items():
        factors = torch.rand(40, generator=rng) * 2 if name != "hue" else torch.rand(40, generator=rng) - 0.5
        expected = [adjust(image, value) for image, value in zip(images, factors.tolist(), strict=True)]
        assert_close(JITTER[name](images, factors), torch.stack(expected), exact=False)


def test_color_jitter_on_a_device_draws_what_it_draws_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    images, given = images_of((3, 24, 24)), {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.1}
    expected = augment.color_jitter(images, (24, 24), BatchRng.for_batch(5, 40), **given)
    calls: list[Any] = []
    monkeypatch.setattr(policies, "color_jitter", lambda images, *more: calls.append(more) or images)
    augment.color_jitter(images.to("meta"), (24, 24), BatchRng.for_batch(5, 40), **given)
    monkeypatch.undo()
    ((changes, order),) = calls
    assert [name for name, _ in changes] == list(given)
    difference = (policies.color_jitter(images, changes, order).int() - expected.int()).abs()
    assert float((difference > 2).float().mean()) < 0.01  # a difference of one can grow in the next change
    assert len({tuple(row) for row in order.tolist()}) > 10


def drawn_by_torchvision(transform: Any, count: int, size: tuple[int, int]) -> list[list[tuple[str, float]]]:
    """Return the operations and magnitudes that torchvision draws for each image."""
    found: list[list[tuple[str, float]]] = []
    transform._apply_image_or_video_transform = lambda image, name, value, **_: found[-1].append((name, value)) or image
    image = torch.zeros(1, *size, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        for _ in range(count):
            found.append([])
            transform(image)
    return found


def drawn_here(
    name: str, count: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> list[list[tuple[str, float]]]:
    calls: list[tuple[list[int], list[float]]] = []

    def record(images: torch.Tensor, kind: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
        calls.append((kind.tolist(), magnitude.tolist()))
        return images

    monkeypatch.setattr(policies, "apply_operations", record)
    images = torch.zeros(count, 1, *size, dtype=torch.uint8)
    getattr(policies, name)(images, size, BatchRng.for_batch(3, count), **OWN[name])
    rows = [[(OPERATIONS[kinds[n]], values[n]) for kinds, values in calls] for n in range(count)]
    # AutoAugment leaves out an operation, here it becomes the identity
    return [[call for call in row if name != "autoaugment" or call[0] != "Identity"] for row in rows]


@pytest.mark.parametrize("name", OWN)
def test_operations_and_magnitudes_are_distributed_as_in_torchvision(name: str, monkeypatch: pytest.MonkeyPatch):
    made: dict[str, Any] = {
        "trivialaugment": v2.TrivialAugmentWide(),
        "randaugment": v2.RandAugment(2, 9),
        "autoaugment": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    }
    size = (20, 30)
    theirs = drawn_by_torchvision(made[name], DRAWS, size)
    ours = drawn_here(name, DRAWS, size, monkeypatch)
    features: dict[str, Callable[[list[tuple[str, float]]], Any]] = {
        "operations in order": lambda row: tuple(kind for kind, _ in row),
        "first": lambda row: row[0][0] if row else None,
        "sign": lambda row: [(kind, value < 0) for kind, value in row][:1],
        "operation and magnitude": lambda row: tuple((kind, round(value, 3)) for kind, value in row)[-1:],
        "magnitude": lambda row: round(abs(row[0][1]), 3) if row else None,
    }
    for what, feature in features.items():
        one, two = (Counter(str(feature(row)) for row in rows) for rows in (theirs, ours))
        for value in {*one, *two}:
            share = (one[value] + two[value]) / (2 * DRAWS)
            deviation = (2 * share * (1 - share) / DRAWS) ** 0.5
            assert abs(one[value] - two[value]) / DRAWS <= 5 * deviation + 3 / DRAWS, (what, value)


def test_images_do_not_depend_on_the_others_of_their_batch():
    images = images_of((3, 16, 16))
    for name, given in OWN.items():
        change = getattr(policies, name)
        whole = change(images, (16, 16), BatchRng.for_batch(4, 40), **given)
        some = slice(7, 12)
        assert torch.equal(change(images[some], (16, 16), BatchRng.for_batch(4, 40).select(some), **given), whole[some])


def test_every_operation_of_torchvision_is_known():
    for transform, _ in SPACES.values():
        assert {*transform._AUGMENTATION_SPACE} <= {*OPERATIONS}
