"""The fixed part of the preprocessing, compared with torchvision's published transforms, and its choice."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from cnnspec.diagnostics import CnnspecError
from cnnspec.recipe import NORMALIZATIONS, Recipe, Resize, Setting, Statistics
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.preprocessing import IMAGENET, Preprocessing, choose_preprocessing

OWN = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
SIZES = [(300, 200), (200, 333), (224, 224), (500, 257), (64, 64), (225, 900)]


def image(height: int, width: int) -> torch.Tensor:
    """Smooth content with some noise, bytes `[1, 3, h, w]`."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return ((smooth * 200).round() + torch.randint(0, 40, smooth.shape, generator=generator)).byte()


def choose(
    recipe: Recipe, weights: Preprocessing | None = None, **options: Any
) -> tuple[Preprocessing, dict[str, str]]:
    return choose_preprocessing(recipe, options.pop("image", (3, 224, 224)), lambda: OWN, weights, **options)


def recipe(*specified: str, overridden: tuple[str, ...] = (), **values: Any) -> Recipe:
    return Recipe(specified=(*specified, *overridden), overridden=overridden, **values)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_resize_and_crop_equals_torchvision(size: tuple[int, int], mode: str) -> None:
    resize = Setting.of(Resize(size=256, mode=mode))
    found, _ = choose(recipe("resize", resize=resize))
    theirs = v2.Compose([v2.Resize(256, InterpolationMode(mode), antialias=mode != "nearest"), v2.CenterCrop(224)])
    assert torch.equal(found.fit_images(image(*size)), theirs(image(*size)))


@pytest.mark.parametrize("name", ["resnet18", "inception_v3", "densenet121", "vgg11_bn", "resnet50"])
@pytest.mark.parametrize("size", SIZES)
def test_published_transforms(name: str, size: tuple[int, int]) -> None:
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    side, shorter = transforms.crop_size[0], transforms.resize_size[0]
    setting = Setting.of(Resize(size=shorter, mode=transforms.interpolation.value))
    imagenet = Setting.of(NORMALIZATIONS["imagenet"]())
    found, _ = choose(recipe("resize", "normalize", resize=setting, normalize=imagenet), image=(3, side, side))
    pixels = image(*size)
    ours = Preprocess(found)(pixels)
    theirs = transforms(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()))[None]
    # Pillow and torch round the resized bytes differently by one level at most.
    assert (ours - theirs).abs().max() <= 1 / 255 / min(IMAGENET[1]) + 1e-5
    assert (ours - theirs).abs().mean() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_squash_and_letterbox(size: tuple[int, int]) -> None:
    squashed, _ = choose(recipe("resize", resize=Setting.of(Resize(fit="squash"))))
    assert torch.equal(squashed.fit_images(image(*size)), v2.functional.resize(image(*size), [224, 224]))
    boxed, _ = choose(recipe("resize", resize=Setting.of(Resize(fit="letterbox"))))
    found = boxed.fit_images(image(*size))
    assert found.shape == (1, 3, 224, 224)
    scale = 224 / max(size)
    inner = [round(size[0] * scale), round(size[1] * scale)]
    top, left = (224 - inner[0]) // 2, (224 - inner[1]) // 2
    inside = found[..., top : top + inner[0], left : left + inner[1]]
    assert torch.equal(inside, v2.functional.resize(image(*size), inner))
    assert int(found.long().sum()) == int(inside.long().sum())


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        (Setting(name="dataset"), OWN),
        (Setting(name="imagenet"), IMAGENET),
        (Setting(name="half"), ((0.5,) * 3, (0.5,) * 3)),
        (Setting(name="none"), ((0.0,) * 3, (1.0,) * 3)),
        (Setting.of(Statistics(mean=(0.1,), std=(0.2, 0.3, 0.4))), ((0.1,) * 3, (0.2, 0.3, 0.4))),
    ],
)
def test_normalizations(normalize: Setting, expected: Any) -> None:
    found, origins = choose(recipe("normalize", normalize=normalize))
    assert (found.mean, found.std) == expected
    assert origins == {"normalize": "recipe", "resize": "default"}
    pixels = image(224, 224)
    mean, std = (torch.tensor(values)[:, None, None] for values in expected)
    assert torch.allclose(Preprocess(found)(pixels), (pixels / 255 - mean) / std, atol=1e-6)


STORED = Preprocessing((224, 224), (0.7,) * 3, (0.8,) * 3, 256, "bicubic", "crop")


def test_the_order_of_the_origins() -> None:
    stated = {"normalize": Setting(name="half"), "resize": Setting.of(Resize(size=300))}
    assert choose(Recipe(), STORED) == (STORED, {"normalize": "weights", "resize": "weights"})
    assert choose(recipe("normalize", "resize", **stated), STORED)[0] == STORED
    trained, origins = choose(recipe("normalize", **stated), STORED, training=True)
    assert (trained.mean, trained.resize) == ((0.5,) * 3, 256)
    assert origins == {"normalize": "recipe", "resize": "weights"}
    given, origins = choose(recipe("resize", overridden=("normalize",), **stated), STORED)
    assert (given.mean, given.resize) == ((0.5,) * 3, 256)
    assert origins == {"normalize": "--set", "resize": "weights"}


def test_stored_rules_scale_with_the_input() -> None:
    found, _ = choose(Recipe(), STORED, image=(3, 112, 112))
    assert (found.size, found.resize) == ((112, 112), 128)


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({"resize": Resize(size=200)}, (3, 224, 224)),
        ({"resize": Resize(size=300, crop=0.9)}, (3, 224, 224)),
        ({"resize": Resize(crop=0.9, fit="squash")}, (3, 224, 224)),
        ({"normalize": NORMALIZATIONS["imagenet"]()}, (1, 28, 28)),
        ({"normalize": Statistics(mean=(0.1, 0.2), std=(1.0,))}, (3, 28, 28)),
    ],
)
def test_contradictions(values: Any, image: tuple[int, int, int]) -> None:
    with pytest.raises(CnnspecError) as raised:
        choose(recipe(*values, **{name: Setting.of(value) for name, value in values.items()}), image=image)
    assert raised.value.diagnostics[0].code == "E0511"


def test_json_round_trip_and_damaged_values() -> None:
    values = STORED.to_json()
    assert Preprocessing.from_json(values) == STORED
    for key, wrong in [
        ("size", 3),
        ("mean", []),
        ("std", ["x"]),
        ("resize", 0),
        ("mode", "cubic"),
        ("fit", 1),
        ("x", 1),
    ]:
        with pytest.raises(ValueError, match=key):
            Preprocessing.from_json({**values, key: wrong})
