"""Decide how images become the input of a network: resizing, cropping and normalization.

The values come from the command line, the weights, the recipe or the training images, in an order that depends on
whether a network is trained or tested. They are stored with the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from cnnspec.diagnostics import failure
from cnnspec.recipe import Recipe, Setting

Size = tuple[int, int]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, on a scale from 0 to 1."""

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet. Source: torchvision and timm."""
HALF: Statistics = ((0.5,), (0.5,))
"""Scale to -1..1."""
_FIXED: dict[str, Statistics] = {"imagenet": IMAGENET, "half": HALF, "none": ((0.0,), (1.0,))}


@dataclass(frozen=True)
class Preprocessing:
    """The fixed part of the preprocessing, without augmentation.

    Attributes:
        size: Height and width of the network's input.
        mean: The mean of each channel, on a scale from 0 to 1.
        std: The standard deviation of each channel.
        resize: The length in pixels of the shorter side before the center crop; None covers the input exactly.
        mode: The interpolation, `nearest`, `bilinear` or `bicubic`, antialiased.
        fit: `crop`, `squash` or `letterbox`.
    """

    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    mode: str = "bilinear"
    fit: str = "crop"

    def fit_images(self, images: Tensor) -> Tensor:
        """Resize and crop images `[N, C, h, w]` to the input size.

        Source: `torchvision.transforms.v2.Resize` and `CenterCrop`.
        """
        height, width = images.shape[-2:]
        if (height, width) == self.size and self.resize is None:
            return images
        if self.fit == "squash":
            return self._resize(images, self.size)
        if self.fit == "letterbox":
            scale = min(self.size[0] / height, self.size[1] / width)
            inner = max(1, round(height * scale)), max(1, round(width * scale))
            top, left = (self.size[0] - inner[0]) // 2, (self.size[1] - inner[1]) // 2
            rest = self.size[1] - inner[1] - left, self.size[0] - inner[0] - top
            return F.pad(self._resize(images, inner), (left, rest[0], top, rest[1]))
        if self.resize is None:
            scale = max(self.size[0] / height, self.size[1] / width)
            covering = max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale))
        else:  # truncated, as in torchvision
            short = min(height, width)
            covering = int(self.resize * height / short), int(self.resize * width / short)
        return V.center_crop(self._resize(images, covering), list(self.size))

    def _resize(self, images: Tensor, size: Size) -> Tensor:
        if images.shape[-2:] == size:
            return images
        if size == (1, 1):
            # torch's kernel for bytes fails on three planes that become single pixels, unless they are channels last.
            images = images.contiguous(memory_format=torch.channels_last)
        return V.resize(images, list(size), InterpolationMode(self.mode), antialias=self.mode != "nearest")

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        how = {
            "crop": f"resize {self.resize}, center crop {size}"
            if self.resize
            else f"resize to cover {size}, center crop",
            "squash": f"squash to {size}",
            "letterbox": f"letterbox {size}",
        }[self.fit]
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{how} ({self.mode}); mean {mean}; std {std}"

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as stored with weights and in `result.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Preprocessing:
        """Read what `to_json` returns.

        Raises:
            ValueError: Values are missing, unknown or out of range.
        """
        return cls(**_Stored.model_validate(values).model_dump())


_Side = Annotated[int, Field(ge=1, le=100_000)]


class _Stored(BaseModel):
    """The schema of a stored `Preprocessing`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    size: tuple[_Side, _Side]
    mean: tuple[Annotated[float, Field(ge=-1000, le=1000)], ...] = Field(min_length=1, max_length=4)
    std: tuple[Annotated[float, Field(ge=1e-6, le=1000)], ...] = Field(min_length=1, max_length=4)
    resize: int | None = Field(None, ge=1, le=100_000)
    mode: str = Field("bilinear", pattern="^(nearest|bilinear|bicubic)$")
    fit: str = Field("crop", pattern="^(crop|squash|letterbox)$")


def choose_preprocessing(
    recipe: Recipe,
    image: tuple[int, ...],
    statistics: Callable[[], Statistics],
    weights: Preprocessing | None = None,
    *,
    training: bool = False,
) -> tuple[Preprocessing, dict[str, str]]:
    """Choose the preprocessing of a network.

    The command line comes first. In training, the recipe comes before the weights that training starts from. In a
    test, the weights come before the recipe, because they were trained with their own preprocessing.

    Args:
        recipe: The recipe with the entries `normalize` and `resize`.
        image: The input shape of the network, `(C, H, W)`.
        statistics: Returns the mean and standard deviation of the training images.
        weights: The preprocessing that is stored with or published for the weights.
        training: Whether the network is trained.

    Returns:
        The preprocessing, and the origin of `normalize` and `resize`: `--set`, `recipe`, `weights` or `default`.

    Raises:
        CnnspecError: E0511 if the recipe contradicts the input of the network.
    """
    channels, height, width = image
    origins: dict[str, str] = {}
    for entry in ("normalize", "resize"):
        stated = "--set" if entry in recipe.overridden else "recipe" if entry in recipe.specified else ""
        if weights is not None and (not stated or (stated == "recipe" and not training)):
            stated = "weights"
        origins[entry] = stated or "default"
    if weights is not None and origins["normalize"] == "weights":
        mean, std = weights.mean, weights.std
    else:
        mean, std = _normalization(recipe.normalize, statistics)
    if weights is not None and origins["resize"] == "weights":
        resize, mode, fit = weights.resize, weights.mode, weights.fit
        if resize is not None:  # the same fraction of the image at another input size
            resize = round(resize * min(height, width) / min(weights.size))
    else:
        resize, mode, fit = _resize_rule(recipe.resize, (height, width))
    if {len(mean), len(std)} - {1, channels}:
        message = f"the normalization has {max(len(mean), len(std))} channels, but the input has {channels}"
        help = f"use `normalize mean=[...] std=[...]` with {channels} or 1 numbers, `half`, `none` or `dataset`"
        raise failure("E0511", message, help=help)
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    return Preprocessing((height, width), mean, std, resize, mode, fit), origins


def _normalization(setting: Setting, statistics: Callable[[], Statistics]) -> Statistics:
    if setting.name == "dataset":
        return statistics()
    if setting.name == "normalize":
        mean, std = (tuple(float(value) for value in setting.args[name]) for name in ("mean", "std"))  # type: ignore[union-attr]
        return mean, std
    return _FIXED[setting.name]


def _resize_rule(setting: Setting, size: Size) -> tuple[int | None, str, str]:
    """Return the length of the shorter side, the interpolation and the fit."""
    shorter, crop, mode, fit = (setting.args[name] for name in ("size", "crop", "mode", "fit"))
    if fit != "crop" and (shorter is not None or crop is not None):
        given = "size" if shorter is not None else "crop"
        raise failure("E0511", f"`{given}` has no effect with `fit={fit}`", help=f"remove `{given}`, or `fit={fit}`")
    if shorter is not None and crop is not None:
        raise failure("E0511", "`resize` has both a `size` and a `crop`", help="remove one of the two")
    if crop is not None:
        shorter = round(max(size) / float(crop))  # type: ignore[arg-type]
    if shorter is not None and int(shorter) < max(size):  # type: ignore[call-overload]
        message = f"`resize {shorter}` is smaller than the input of {size[0]}x{size[1]}"
        raise failure("E0511", message, help=f"use `resize {max(size)}` or more, or `fit=letterbox`")
    return shorter, str(mode), str(fit)  # type: ignore[return-value]
