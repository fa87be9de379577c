"""Batches of images: brought to the input's size, changed at random, normalised.

Images are unsigned bytes `[N, C, h, w]` until the last step. Every random number comes from the `Chance` that is
handed in, one row per image, so an image depends on the seed and its place alone: not on workers, not on devices,
not on what was drawn before. The distributions are those of `torchvision.transforms.v2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from cnnspec.recipe import Setting
from cnnspec.training.data.rng import Chance

Size = tuple[int, int]


Change = Callable[..., Tensor]
"""A random change: images, the input's size, chance, and the arguments of its declaration; gives images."""


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

    def __call__(self, images: Tensor, chance: Chance | None = None) -> Tensor:
        """Float images `[N, C, H, W]` from bytes `[N, C, h, w]`; unchanged without chance."""
        sized = False
        for step in self.augment if chance is not None else ():
            if step.name not in ANY_SIZE and not sized:
                images, sized = fit(images, self.size), True
            if images.is_floating_point() and step.name not in ANY_TYPE:
                images = images.to(torch.uint8)
            images = CHANGES[step.name](images, self.size, chance, **step.args)
        images = fit(images, self.size)
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        made = torch.empty_like(images, dtype=torch.float32, memory_format=torch.channels_last)
        for some in _parts(made):
            # Channel by channel is several times faster before the channels are brought together. Floats are of this
            # module's making, so they may be overwritten.
            made[some] = images[some].to(torch.float32).div_(255).sub_(mean).div_(std)
        return made


CACHED = 2**19
"""Numbers that a CPU works on at once: so many stay in its cache from one operation to the next."""


def _parts(images: Tensor) -> list[slice]:
    """Places of the images `[N, C, H, W]` that are made at once: all of them but on a CPU."""
    size = max(1, CACHED // images.shape[1:].numel()) if images.device.type == "cpu" else max(1, len(images))
    return [slice(start, start + size) for start in range(0, len(images), size)]


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


def _flip(axis: int) -> Change:
    def flip(images: Tensor, size: Size, chance: Chance, *, p: float) -> Tensor:
        return _mirror(images, chance.rand() < p, axis)

    return flip


def _mirror(images: Tensor, chosen: Tensor, axis: int) -> Tensor:
    """The images with those that are chosen `[N]` mirrored."""
    mirrored = images.index_select(0, chosen.nonzero()[:, 0]).flip(axis)
    own = torch.arange(len(images), device=images.device)
    # Gathering whole images is three times as fast as writing some over others.
    return torch.cat([images, mirrored]).index_select(0, torch.where(chosen, len(images) - 1 + chosen.cumsum(0), own))


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the rows `[H]` and of the columns `[W]`."""
    rows, cols = (torch.arange(length, device=images.device) for length in images.shape[-2:])
    return rows, cols


def _reflected(places: Tensor, length: int) -> Tensor:
    """Places mirrored at the first and the last pixel, as often as needed."""
    if length == 1:
        return torch.zeros_like(places)
    period = 2 * (length - 1)
    places = places.remainder(period)
    return torch.where(places < length, places, period - places)


def _shift(images: Tensor, down: Tensor, right: Tensor, mode: str = "zeros") -> Tensor:
    """Each image with its own part `[N]` of the plane around it: its row `down`, its column `right` come first."""
    n, _, height, width = images.shape
    rows, cols = (first[:, None] + places for first, places in zip((down, right), _places(images), strict=True))
    if mode == "reflect":
        source_rows, source_cols = _reflected(rows, height), _reflected(cols, width)
    else:
        source_rows, source_cols = rows.clamp(0, height - 1), cols.clamp(0, width - 1)
    each = torch.arange(n, device=images.device)[:, None, None]
    cut = images.permute(0, 2, 3, 1)[each, source_rows[:, :, None], source_cols[:, None, :]]  # [N, H, W, C]
    if mode == "zeros":
        inside = (rows == source_rows)[:, :, None] & (cols == source_cols)[:, None, :]
        cut = cut * inside[..., None]
    return cut.permute(0, 3, 1, 2)


def random_crop(images: Tensor, size: Size, chance: Chance, *, pad: Size, mode: str) -> Tensor:
    """Shift each image by up to `pad` pixels and fill what is uncovered. Source: `v2.RandomCrop`."""
    down, right = (chance.below(2 * amount + 1) - amount for amount in pad)
    return _shift(images, down, right, mode)


def translate(images: Tensor, size: Size, chance: Chance, *, by: float) -> Tensor:
    """Shift by up to a share of the size, black outside. Source: `v2.RandomAffine(0, translate=(by, by))`."""
    down, right = (chance.uniform(-by * length, by * length).round().long() for length in images.shape[-2:])
    return _shift(images, -down, -right)


def crop_boxes(size: Size, scale: Sequence[float], ratio: Sequence[float], chance: Chance) -> Tensor:
    """Boxes `[N, 4]` of top, left, height, width for `random_resized_crop`.

    Ten attempts per image, then the largest centred box of an allowed ratio. Source: `v2.RandomResizedCrop`.
    """
    height, width = size
    area = height * width * chance.uniform(scale[0], scale[1], 10)
    aspect = torch.exp(chance.uniform(math.log(ratio[0]), math.log(ratio[1]), 10))
    widths, heights = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)
    w, h = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
    top, left = chance.below(height - h + 1), chance.below(width - w + 1)
    whole = min(max(width / height, ratio[0]), ratio[1])
    w0, h0 = min(width, round(height * whole)), min(height, round(width / whole))
    centre = torch.tensor([(height - h0) // 2, (width - w0) // 2, h0, w0], device=fits.device)
    return torch.where(fits.any(1)[:, None], torch.stack([top, left, h, w], 1), centre)


def _resampling(start: Tensor, length: Tensor, out: int, full: int) -> Tensor:
    """Weights `[N, out, full]` that resize the pixels from `start` on to `out` pixels.

    A triangle as wide as one pixel of the coarser of the two grids, cut at the box: bilinear, antialiased.
    """
    step = length / out  # source pixels per result pixel
    reach = step.clamp(min=1)[:, None, None]
    centre = (torch.arange(out, device=start.device) + 0.5) * step[:, None]
    place = torch.arange(full, device=start.device) - start[:, None] + 0.5
    weights = (1 - (place[:, None, :] - centre[:, :, None]).abs() / reach).clamp(min=0)
    weights = weights * ((place > 0) & (place < length[:, None]))[:, None, :]
    return weights / weights.sum(-1, keepdim=True)


def resize_boxes(images: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Cut a box out of every image and resize it, `[N, C, h, w]` to `[N, C, H, W]`: two matrix products per image.

    Where the image is no larger than the result two pixels of each axis take part in one of it. Then whole rows are
    gathered, the map is turned, and whole columns are: that is faster than to gather pixels. The result holds whole
    numbers as floats.
    """
    top, left, height, width = boxes.unbind(1)
    if images.shape[-2] <= size[0] and images.shape[-1] <= size[1]:
        made = torch.empty(*images.shape[:2], *size, device=images.device)
        for some in _parts(made):
            turned = _enlarge_rows(images[some], top[some], height[some], size[0]).mT
            made[some] = _enlarge_rows(turned, left[some], width[some], size[1]).mT.round_()
        return made
    rows = _resampling(top, height, size[0], images.shape[-2])[:, None]  # [N, 1, H, h]
    cols = _resampling(left, width, size[1], images.shape[-1])[:, None]  # [N, 1, W, w]
    resized = rows @ images.to(torch.float32) @ cols.transpose(-1, -2)
    return resized.round_().clamp_(0, 255)


def _enlarge_rows(images: Tensor, start: Tensor, length: Tensor, out: int) -> Tensor:
    """The rows `[N]` from `start` on resized to `out` rows: `[N, C, h, w]` to `[N, C, out, w]`, as floats."""
    n, channels, height, width = images.shape
    place = (torch.arange(out, device=start.device) + 0.5) * (length / out)[:, None] - 0.5
    place = place.clamp(min=0).minimum(length[:, None] - 1)  # within the box
    low = place.floor()
    rows = torch.stack([low, (low + 1).minimum(length[:, None] - 1)]).long() + start[:, None]  # [2, N, out]
    plane = torch.arange(n * channels, device=start.device).view(n, channels, 1) * height
    rows = (rows[:, :, None] + plane).view(-1)  # [2, N, C, out]
    above, below = images.reshape(-1, width).index_select(0, rows).float().view(2, n, channels, out, width)
    return above.lerp_(below, (place - low)[:, None, :, None])


def random_resized_crop(
    images: Tensor, size: Size, chance: Chance, *, scale: Sequence[float], ratio: Sequence[float]
) -> Tensor:
    """Cut out a part of random area and aspect and resize it to the input's size."""
    height, width = images.shape[-2:]
    return resize_boxes(images, crop_boxes((height, width), scale, ratio, chance), size)


def rotate(images: Tensor, size: Size, chance: Chance, *, degrees: float) -> Tensor:
    """Rotate about the centre, bilinear, black outside. Source: `v2.RandomRotation`."""
    n, _, height, width = images.shape
    angle = chance.uniform(-degrees, degrees) * math.pi / 180
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # In coordinates that run from -1 to 1 on both axes, whatever the aspect.
    theta = torch.stack([cos, -sin * height / width, none, sin * width / height, cos, none], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.to(torch.float32), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.round_().to(torch.uint8)


def color_jitter(
    images: Tensor,
    size: Size,
    chance: Chance,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Tensor:
    """Change colours by random factors, in random order. Source: `v2.ColorJitter`."""
    kinds: list[tuple[Callable[[Tensor, float], Tensor], Tensor]] = [
        (change, chance.uniform(max(0.0, 1 - amount), 1 + amount))
        for change, amount in (
            (V.adjust_brightness, brightness),
            (V.adjust_contrast, contrast),
            (V.adjust_saturation, saturation),
        )
        if amount
    ]
    if hue:
        kinds.append((V.adjust_hue, chance.uniform(-hue, hue)))
    if not kinds:
        return images
    orders = chance.rand(len(kinds)).argsort(1).tolist()
    factors = [factor.tolist() for _, factor in kinds]
    changed: list[Tensor] = []
    for i, image in enumerate(images):
        for k in orders[i]:
            image = kinds[k][0](image, factors[k][i])
        changed.append(image)
    return torch.stack(changed)


def random_erasing(
    images: Tensor, size: Size, chance: Chance, *, p: float, scale: Sequence[float], ratio: Sequence[float]
) -> Tensor:
    """Blank a rectangle of random area and aspect, if one fits in ten attempts. Source: `v2.RandomErasing`."""
    height, width = images.shape[-2:]
    chosen = chance.rand() < p
    area = height * width * chance.uniform(scale[0], scale[1], 10)
    aspect = torch.exp(chance.uniform(math.log(ratio[0]), math.log(ratio[1]), 10))
    heights, widths = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(1, keepdim=True)
    h, w = heights.gather(1, first), widths.gather(1, first)
    top, left = chance.below((height - h + 1).clamp(min=1)), chance.below((width - w + 1).clamp(min=1))
    rows, cols = _places(images)
    in_rows, in_cols = (rows >= top) & (rows < top + h), (cols >= left) & (cols < left + w)
    blank = (chosen & fits.any(1))[:, None, None] & in_rows[:, :, None] & in_cols[:, None, :]
    return images.masked_fill(blank[:, None], 0)


def alternating_flip(images: Tensor, size: Size, chance: Chance) -> Tensor:
    """Mirror half of the images in the first epoch, the other half in the next, and so on.

    Source: Jordan 2024, arXiv 2404.00498, section 3.6.
    """
    # A bit of each image's own, by a mix of its number and the seed. Source: splitmix64.
    mixed = chance.indices + (chance.seed * 2 + 1) * 0x1E3779B97F4A7C15 % 2**62
    mixed = (mixed ^ (mixed >> 30)) * 0x3F58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 27)) * 0x14D049BB133111EB
    turned = ((mixed ^ (mixed >> 31)) & 1) ^ (chance.epoch % 2)
    return _mirror(images, turned.bool().to(images.device), -1)


def cutout(images: Tensor, size: Size, chance: Chance, *, side: int) -> Tensor:
    """Blank a square around a random pixel, cut at the border. Source: DeVries and Taylor 2017, arXiv 1708.04552."""
    height, width = images.shape[-2:]
    top, left = (chance.below(length)[:, None] - side // 2 for length in (height, width))
    rows, cols = _places(images)
    in_rows, in_cols = (rows >= top) & (rows < top + side), (cols >= left) & (cols < left + side)
    return images.masked_fill((in_rows[:, :, None] & in_cols[:, None, :])[:, None], 0)


def _one_by_one(make: Callable[..., nn.Module]) -> Change:
    """A transform of torchvision's that draws its own numbers, for each image from a seed of its own."""

    def change(images: Tensor, size: Size, chance: Chance, **args: Any) -> Tensor:
        transform = make(**args)
        changed: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, chance.seeds(), strict=True):
                torch.random.default_generator.manual_seed(seed)
                changed.append(transform(image))
        return torch.stack(changed)

    return change


def _auto(policy: str) -> nn.Module:
    return v2.AutoAugment(v2.AutoAugmentPolicy(policy))


CHANGES: dict[str, Change] = {
    "hflip": _flip(-1),
    "vflip": _flip(-2),
    "alternating_flip": alternating_flip,
    "random_crop": random_crop,
    "translate": translate,
    "random_resized_crop": random_resized_crop,
    "rotate": rotate,
    "color_jitter": color_jitter,
    "autoaugment": _one_by_one(_auto),
    "randaugment": _one_by_one(lambda ops, magnitude: v2.RandAugment(ops, magnitude)),
    "trivialaugment": _one_by_one(v2.TrivialAugmentWide),
    "random_erasing": random_erasing,
    "cutout": cutout,
}
"""What the augmentations of the recipe do; they take its arguments."""

ANY_SIZE = {"hflip", "vflip", "alternating_flip", "random_resized_crop"}
"""Changes that may come before the image has the input's size."""

ANY_TYPE = {"hflip", "vflip", "alternating_flip", "random_resized_crop", "random_crop", "translate", "cutout"}
"""Changes that take whole numbers as floats, too, and so need no way back to bytes."""
