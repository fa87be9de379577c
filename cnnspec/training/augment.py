"""Batches of images: brought to the input's size, changed at random, normalised.

Images are unsigned bytes `[N, C, h, w]` until the last step. Every random number comes from the generator
that is handed in, one row per image, so a batch depends on its seed alone: not on threads, not on devices,
not on what was drawn before. The distributions are those of `torchvision.transforms.v2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from cnnspec.recipe import Setting

Size = tuple[int, int]


Change = Callable[..., Tensor]
"""A random change: images, the input's size, a generator, and the arguments of its declaration; gives images."""


class Prepare:
    """Makes the network's input from images of one size.

    The steps run in the order in which the recipe names them. Images are resized before the first step that
    needs the input's size, so that `random_resized_crop` cuts from the original.
    """

    def __init__(
        self, size: Size, mean: Sequence[float], std: Sequence[float], augment: Sequence[Setting] = ()
    ) -> None:
        self.size = size
        self.augment = tuple(augment)
        self.mean = torch.tensor(mean, dtype=torch.float32)[:, None, None]
        self.std = torch.tensor(std, dtype=torch.float32)[:, None, None]

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Float images `[N, C, H, W]` from bytes `[N, C, h, w]`; unchanged by chance without a generator."""
        sized = False
        for step in self.augment if generator is not None else ():
            if step.name not in ANY_SIZE and not sized:
                images, sized = fit(images, self.size), True
            images = CHANGES[step.name](images, self.size, generator, **step.args)
        images = fit(images, self.size)
        images = images.to(torch.float32, memory_format=torch.channels_last)
        return images.div_(255).sub_(self.mean).div_(self.std)


def fit(images: Tensor, size: Size) -> Tensor:
    """Resize so that the image covers the size, keeping its aspect, and cut out the centre.

    Bilinear with antialiasing, as `torchvision.transforms.v2.Resize` and `CenterCrop`.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    scale = max(size[0] / height, size[1] / width)
    covered = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    return V.center_crop(V.resize(images, covered, antialias=True), list(size))


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _below(limit: Tensor, generator: torch.Generator) -> Tensor:
    """A random integer from 0 to `limit - 1` for each entry of `limit`."""
    drawn = torch.rand(limit.shape, generator=generator, dtype=torch.float64)
    return (drawn * limit).long()


def _flip(axis: int) -> Change:
    def flip(images: Tensor, size: Size, generator: torch.Generator, *, p: float) -> Tensor:
        chosen = torch.rand(len(images), generator=generator) < p
        return torch.where(chosen[:, None, None, None], images.flip(axis), images)

    return flip


def _reflected(places: Tensor, length: int) -> Tensor:
    """Places mirrored at the first and the last pixel, as often as needed."""
    if length == 1:
        return torch.zeros_like(places)
    period = 2 * (length - 1)
    places = places.remainder(period)
    return torch.where(places < length, places, period - places)


def random_crop(images: Tensor, size: Size, generator: torch.Generator, *, pad: Size, mode: str) -> Tensor:
    """Shift each image by up to `pad` pixels and fill what is uncovered. Source: `v2.RandomCrop`."""
    n, _, height, width = images.shape
    rows = _below(torch.full((n,), 2 * pad[0] + 1), generator)[:, None] + torch.arange(height) - pad[0]
    cols = _below(torch.full((n,), 2 * pad[1] + 1), generator)[:, None] + torch.arange(width) - pad[1]
    if mode == "reflect":
        source_rows, source_cols = _reflected(rows, height), _reflected(cols, width)
    else:
        source_rows, source_cols = rows.clamp(0, height - 1), cols.clamp(0, width - 1)
    each = torch.arange(n)[:, None, None]
    cut = images.permute(0, 2, 3, 1)[each, source_rows[:, :, None], source_cols[:, None, :]]  # [N, H, W, C]
    if mode == "zeros":
        inside = (rows == source_rows)[:, :, None] & (cols == source_cols)[:, None, :]
        cut = cut * inside[..., None]
    return cut.permute(0, 3, 1, 2)


def crop_boxes(
    n: int, size: Size, scale: Sequence[float], ratio: Sequence[float], generator: torch.Generator
) -> Tensor:
    """Boxes `[N, 4]` of top, left, height, width for `random_resized_crop`.

    Ten attempts per image, then the largest centred box of an allowed ratio. Source: `v2.RandomResizedCrop`.
    """
    height, width = size
    area = height * width * _uniform(n * 10, scale[0], scale[1], generator).view(n, 10)
    aspect = torch.exp(_uniform(n * 10, math.log(ratio[0]), math.log(ratio[1]), generator)).view(n, 10)
    widths, heights = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)
    w, h = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
    top, left = _below(height - h + 1, generator), _below(width - w + 1, generator)
    whole = min(max(width / height, ratio[0]), ratio[1])
    w0, h0 = min(width, round(height * whole)), min(height, round(width / whole))
    centre = torch.tensor([(height - h0) // 2, (width - w0) // 2, h0, w0])
    return torch.where(fits.any(1)[:, None], torch.stack([top, left, h, w], 1), centre)


def _resampling(start: Tensor, length: Tensor, out: int, full: int) -> Tensor:
    """Weights `[N, out, full]` that resize the pixels from `start` on to `out` pixels.

    A triangle as wide as one pixel of the coarser of the two grids, cut at the box: bilinear, antialiased.
    """
    step = length / out  # source pixels per result pixel
    reach = step.clamp(min=1)[:, None, None]
    centre = (torch.arange(out) + 0.5) * step[:, None]
    place = torch.arange(full) - start[:, None] + 0.5
    weights = (1 - (place[:, None, :] - centre[:, :, None]).abs() / reach).clamp(min=0)
    weights = weights * ((place > 0) & (place < length[:, None]))[:, None, :]
    return weights / weights.sum(-1, keepdim=True)


def resize_boxes(images: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Cut a box out of every image and resize it: two matrix products per image, `[N, C, h, w]` to `[N, C, H, W]`."""
    top, left, height, width = boxes.unbind(1)
    rows = _resampling(top, height, size[0], images.shape[-2])[:, None]  # [N, 1, H, h]
    cols = _resampling(left, width, size[1], images.shape[-1])[:, None]  # [N, 1, W, w]
    resized = rows @ images.to(torch.float32) @ cols.transpose(-1, -2)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def random_resized_crop(
    images: Tensor, size: Size, generator: torch.Generator, *, scale: Sequence[float], ratio: Sequence[float]
) -> Tensor:
    """Cut out a part of random area and aspect and resize it to the input's size."""
    height, width = images.shape[-2:]
    return resize_boxes(images, crop_boxes(len(images), (height, width), scale, ratio, generator), size)


def rotate(images: Tensor, size: Size, generator: torch.Generator, *, degrees: float) -> Tensor:
    """Rotate about the centre, bilinear, black outside. Source: `v2.RandomRotation`."""
    n, _, height, width = images.shape
    angle = _uniform(n, -degrees, degrees, generator) * math.pi / 180
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros(n)
    # In coordinates that run from -1 to 1 on both axes, whatever the aspect.
    theta = torch.stack([cos, -sin * height / width, none, sin * width / height, cos, none], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.to(torch.float32), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.round_().to(torch.uint8)


def color_jitter(
    images: Tensor,
    size: Size,
    generator: torch.Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Tensor:
    """Change colours by random factors, in random order. Source: `v2.ColorJitter`."""
    n = len(images)
    kinds: list[tuple[Callable[[Tensor, float], Tensor], Tensor]] = [
        (change, _uniform(n, max(0.0, 1 - amount), 1 + amount, generator))
        for change, amount in (
            (V.adjust_brightness, brightness),
            (V.adjust_contrast, contrast),
            (V.adjust_saturation, saturation),
        )
        if amount
    ]
    if hue:
        kinds.append((V.adjust_hue, _uniform(n, -hue, hue, generator)))
    changed: list[Tensor] = []
    for i, image in enumerate(images):
        for k in torch.randperm(len(kinds), generator=generator).tolist():
            change, factors = kinds[k]
            image = change(image, float(factors[i]))
        changed.append(image)
    return torch.stack(changed)


def random_erasing(
    images: Tensor, size: Size, generator: torch.Generator, *, p: float, scale: Sequence[float], ratio: Sequence[float]
) -> Tensor:
    """Blank a rectangle of random area and aspect, if one fits in ten attempts. Source: `v2.RandomErasing`."""
    n, _, height, width = images.shape
    chosen = torch.rand(n, generator=generator) < p
    area = height * width * _uniform(n * 10, scale[0], scale[1], generator).view(n, 10)
    aspect = torch.exp(_uniform(n * 10, math.log(ratio[0]), math.log(ratio[1]), generator)).view(n, 10)
    heights, widths = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(1, keepdim=True)
    h, w = heights.gather(1, first), widths.gather(1, first)
    top, left = _below((height - h + 1).clamp(min=1), generator), _below((width - w + 1).clamp(min=1), generator)
    rows, cols = torch.arange(height), torch.arange(width)
    in_rows, in_cols = (rows >= top) & (rows < top + h), (cols >= left) & (cols < left + w)
    blank = (chosen & fits.any(1))[:, None, None] & in_rows[:, :, None] & in_cols[:, None, :]
    return images.masked_fill(blank[:, None], 0)


CHANGES: dict[str, Change] = {
    "hflip": _flip(-1),
    "vflip": _flip(-2),
    "random_crop": random_crop,
    "random_resized_crop": random_resized_crop,
    "rotate": rotate,
    "color_jitter": color_jitter,
    "random_erasing": random_erasing,
}
"""What the augmentations of the recipe do; they take its arguments."""

ANY_SIZE = {"hflip", "vflip", "random_resized_crop"}
"""Changes that may come before the image has the input's size."""
