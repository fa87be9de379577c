"""Resize, augment and normalize batches of images.

Images are unsigned bytes `[N, C, h, w]` until the last step. All random numbers come from a `BatchRng`, one row per
image. So an image depends only on the seed and its position, not on workers, devices, or earlier draws. The
distributions are those of `torchvision.transforms.v2`.
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
from cnnspec.training.data import policies
from cnnspec.training.data.device import to_device
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.data.rng import BatchRng

Size = tuple[int, int]

Augmentation = Callable[..., Tensor]
"""A random transform, called with the images, the input size, a `BatchRng`, and the arguments in the recipe."""


class Preprocess:
    """Turn images of one size into the input of a network.

    The augmentations run in the order of the recipe. Images are resized before the first augmentation that needs the
    input size, so that `random_resized_crop` crops from the original image.
    """

    def __init__(self, fixed: Preprocessing, augment: Sequence[Setting] = ()) -> None:
        self.fixed, self.size = fixed, fixed.size
        self.augment = tuple(augment)
        self.mean = torch.tensor(fixed.mean, dtype=torch.float32)[:, None, None]
        self.std = torch.tensor(fixed.std, dtype=torch.float32)[:, None, None]

    def __call__(self, images: Tensor, rng: BatchRng | None = None) -> Tensor:
        """Return float images `[N, C, H, W]` from bytes `[N, C, h, w]`. Without an rng, no augmentation is applied."""
        sized = False
        for step in self.augment if rng is not None else ():
            if step.name not in ANY_SIZE and not sized:
                images, sized = self.fixed.fit_images(images), True
            if images.is_floating_point() and step.name not in ANY_TYPE:
                images = images.to(torch.uint8)
            images = TRANSFORMS[step.name](images, self.size, rng, **step.args)
            sized = sized or step.name == "random_resized_crop"
        if not sized:
            images = self.fixed.fit_images(images)
        mean, std = to_device(self.mean, images.device), to_device(self.std, images.device)
        out = torch.empty_like(images, dtype=torch.float32, memory_format=torch.channels_last)
        for chunk in _chunks(out):
            # Normalizing channel by channel is several times faster before the conversion to channels_last. Floats were
            # created in this module, so they may be overwritten.
            out[chunk] = images[chunk].to(torch.float32).div_(255).sub_(mean).div_(std)
        return out


CHUNK_VALUES = 2**19
"""The number of values that a CPU processes at a time, so that they stay in its cache between operations."""


def _chunks(images: Tensor) -> list[slice]:
    """Return slices of the images `[N, C, H, W]` to process at a time: chunks on a CPU, all images on other devices."""
    size = max(1, CHUNK_VALUES // images.shape[1:].numel()) if images.device.type == "cpu" else max(1, len(images))
    return [slice(start, start + size) for start in range(0, len(images), size)]


def _make_flip(axis: int) -> Augmentation:
    def flip(images: Tensor, size: Size, rng: BatchRng, *, p: float) -> Tensor:
        return _flip_selected(images, rng.rand() < p, axis)

    return flip


def _flip_selected(images: Tensor, selected: Tensor, axis: int) -> Tensor:
    """Mirror the images selected by a mask `[N]`."""
    if images.device.type != "cpu":  # the number of selected images is not known to the host
        return torch.where(selected[:, None, None, None], images.flip(axis), images)
    mirrored = images.index_select(0, selected.nonzero()[:, 0]).flip(axis)
    own = torch.arange(len(images), device=images.device)
    # Gathering whole images is three times as fast as overwriting some of them.
    return torch.cat([images, mirrored]).index_select(
        0, torch.where(selected, len(images) - 1 + selected.cumsum(0), own)
    )


def _pixel_indices(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row indices `[H]` and the column indices `[W]`."""
    rows, cols = (torch.arange(length, device=images.device) for length in images.shape[-2:])
    return rows, cols


def _reflect(places: Tensor, length: int) -> Tensor:
    """Reflect indices at the first and last pixel as often as needed."""
    if length == 1:
        return torch.zeros_like(places)
    period = 2 * (length - 1)
    places = places.remainder(period)
    return torch.where(places < length, places, period - places)


def _shift(images: Tensor, down: Tensor, right: Tensor, mode: str = "zeros") -> Tensor:
    """Crop each image from the plane around it, so that row `down[n]` and column `right[n]` come first."""
    n, _, height, width = images.shape
    rows, cols = (first[:, None] + places for first, places in zip((down, right), _pixel_indices(images), strict=True))
    if mode == "reflect":
        source_rows, source_cols = _reflect(rows, height), _reflect(cols, width)
    else:
        source_rows, source_cols = rows.clamp(0, height - 1), cols.clamp(0, width - 1)
    each = torch.arange(n, device=images.device)[:, None, None]
    cut = images.permute(0, 2, 3, 1)[each, source_rows[:, :, None], source_cols[:, None, :]]  # [N, H, W, C]
    if mode == "zeros":
        inside = (rows == source_rows)[:, :, None] & (cols == source_cols)[:, None, :]
        cut = cut * inside[..., None]
    return cut.permute(0, 3, 1, 2)  # [N, C, H, W]


def random_crop(images: Tensor, size: Size, rng: BatchRng, *, pad: Size, mode: str) -> Tensor:
    """Shift each image by up to `pad` pixels and fill the border. Source: `v2.RandomCrop`."""
    down, right = (rng.randint(2 * amount + 1) - amount for amount in pad)
    return _shift(images, down, right, mode)


def translate(images: Tensor, size: Size, rng: BatchRng, *, by: float) -> Tensor:
    """Shift by up to a fraction of the size and fill with black. Source: `v2.RandomAffine(0, translate=(by, by))`."""
    down, right = (rng.uniform(-by * length, by * length).round().long() for length in images.shape[-2:])
    return _shift(images, -down, -right)


def _random_sides(size: Size, scale: Sequence[float], ratio: Sequence[float], rng: BatchRng) -> tuple[Tensor, Tensor]:
    """Draw ten rectangles per image with random area and aspect ratio, and return both sides, each `[N, 10]`.

    The ratio of the first side to the second is between `ratio[0]` and `ratio[1]`.
    """
    area = size[0] * size[1] * rng.uniform(scale[0], scale[1], 10)
    aspect = torch.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), 10))
    return (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()


def crop_boxes(size: Size, scale: Sequence[float], ratio: Sequence[float], rng: BatchRng) -> Tensor:
    """Return boxes `[N, 4]` of top, left, height, width for `random_resized_crop`.

    The first of ten attempts that fits, or the largest centered box of an allowed ratio. Source:
    `v2.RandomResizedCrop`.
    """
    height, width = size
    widths, heights = _random_sides(size, scale, ratio, rng)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)  # [N, 1]
    w, h = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
    top, left = rng.randint(height - h + 1), rng.randint(width - w + 1)
    whole = min(max(width / height, ratio[0]), ratio[1])
    w0, h0 = (max(1, min(side, round(other))) for side, other in ((width, height * whole), (height, width / whole)))
    center = to_device(torch.tensor([(height - h0) // 2, (width - w0) // 2, h0, w0]), fits.device)
    return torch.where(fits.any(1)[:, None], torch.stack([top, left, h, w], 1), center)


def _resize_weights(start: Tensor, length: Tensor, out: int, full: int) -> Tensor:
    """Return weights `[N, out, full]` that resize `length` pixels from `start` on to `out` pixels.

    The kernel is a triangle as wide as one pixel of the coarser grid, clipped to the box (bilinear, antialiased).
    """
    step = length / out  # source pixels per output pixel
    reach = step.clamp(min=1)[:, None, None]
    center = (torch.arange(out, device=start.device) + 0.5) * step[:, None]  # [N, out]
    place = torch.arange(full, device=start.device) - start[:, None] + 0.5  # [N, full]
    weights = (1 - (place[:, None, :] - center[:, :, None]).abs() / reach).clamp(min=0)
    weights = weights * ((place > 0) & (place < length[:, None]))[:, None, :]
    return weights / weights.sum(-1, keepdim=True)


def resize_boxes(images: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Crop a box from every image and resize it, `[N, C, h, w]` to `[N, C, H, W]`, with two matrix products per image.

    If the image is not larger than the output, each output pixel depends on only two pixels per axis. Then gathering
    whole rows, transposing, and gathering rows again is faster. The result contains integers as floats.
    """
    top, left, height, width = boxes.unbind(1)
    if images.shape[-2] <= size[0] and images.shape[-1] <= size[1]:
        out = torch.empty(*images.shape[:2], *size, device=images.device)
        for chunk in _chunks(out):
            transposed = _enlarge_rows(images[chunk], top[chunk], height[chunk], size[0]).mT
            out[chunk] = _enlarge_rows(transposed, left[chunk], width[chunk], size[1]).mT.round_()
        return out
    rows = _resize_weights(top, height, size[0], images.shape[-2])[:, None]  # [N, 1, H, h]
    cols = _resize_weights(left, width, size[1], images.shape[-1])[:, None]  # [N, 1, W, w]
    resized = rows @ images.to(torch.float32) @ cols.transpose(-1, -2)
    return resized.round_().clamp_(0, 255)


def _enlarge_rows(images: Tensor, start: Tensor, length: Tensor, out: int) -> Tensor:
    """Resize `length` rows from `start` on to `out` rows, `[N, C, h, w]` to `[N, C, out, w]`, as floats."""
    n, channels, height, width = images.shape
    place = (torch.arange(out, device=start.device) + 0.5) * (length / out)[:, None] - 0.5
    place = place.clamp(min=0).minimum(length[:, None] - 1)  # stay inside the box
    low = place.floor()
    rows = torch.stack([low, (low + 1).minimum(length[:, None] - 1)]).long() + start[:, None]  # [2, N, out]
    plane = torch.arange(n * channels, device=start.device).view(n, channels, 1) * height
    rows = (rows[:, :, None] + plane).view(-1)  # [2, N, C, out]
    above, below = images.reshape(-1, width).index_select(0, rows).float().view(2, n, channels, out, width)
    return above.lerp_(below, (place - low)[:, None, :, None])


def random_resized_crop(
    images: Tensor, size: Size, rng: BatchRng, *, scale: Sequence[float], ratio: Sequence[float]
) -> Tensor:
    """Crop a rectangle of random area and aspect ratio, and resize it to the input size."""
    height, width = images.shape[-2:]
    return resize_boxes(images, crop_boxes((height, width), scale, ratio, rng), size)


def rotate(images: Tensor, size: Size, rng: BatchRng, *, degrees: float) -> Tensor:
    """Rotate around the center, bilinear, and fill with black. Source: `v2.RandomRotation`."""
    n, _, height, width = images.shape
    angle = rng.uniform(-degrees, degrees) * math.pi / 180
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # In coordinates from -1 to 1 on both axes, for any aspect ratio.
    theta = torch.stack([cos, -sin * height / width, none, sin * width / height, cos, none], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # [N, H, W, 2]
    rotated = F.grid_sample(images.to(torch.float32), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return rotated.round_().to(torch.uint8)


def color_jitter(
    images: Tensor,
    size: Size,
    rng: BatchRng,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Tensor:
    """Change colors by random factors in random order. Source: `v2.ColorJitter`."""
    amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    kinds = [(name, rng.uniform(max(0.0, 1 - amount), 1 + amount)) for name, amount in amounts.items() if amount]
    if hue:
        kinds.append(("hue", rng.uniform(-hue, hue)))
    if not kinds:
        return images
    order = rng.rand(len(kinds)).argsort(1)
    if images.device.type != "cpu":
        return policies.color_jitter(images, kinds, order)
    orders, factors = order.tolist(), [factor.tolist() for _, factor in kinds]
    changed: list[Tensor] = []
    for i, image in enumerate(images):
        for k in orders[i]:
            image = _ADJUST[kinds[k][0]](image, factors[k][i])
        changed.append(image)
    return torch.stack(changed)


_ADJUST: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": V.adjust_brightness,
    "contrast": V.adjust_contrast,
    "saturation": V.adjust_saturation,
    "hue": V.adjust_hue,
}


def random_erasing(
    images: Tensor, size: Size, rng: BatchRng, *, p: float, scale: Sequence[float], ratio: Sequence[float]
) -> Tensor:
    """Erase a rectangle of random area and aspect ratio if one of ten attempts fits. Source: `v2.RandomErasing`."""
    height, width = images.shape[-2:]
    selected = rng.rand() < p
    heights, widths = _random_sides((height, width), scale, ratio, rng)
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(1, keepdim=True)
    h, w = heights.gather(1, first), widths.gather(1, first)
    top, left = rng.randint((height - h + 1).clamp(min=1)), rng.randint((width - w + 1).clamp(min=1))
    blank = _rectangle_masks(images, top, left, h, w) & (selected & fits.any(1))[:, None, None]
    return images.masked_fill(blank[:, None], 0)


def _rectangle_masks(images: Tensor, top: Tensor, left: Tensor, height: Tensor | int, width: Tensor | int) -> Tensor:
    """Return masks `[N, H, W]` of one rectangle per image. `top`, `left`, `height` and `width` are `[N, 1]`."""
    rows, cols = _pixel_indices(images)
    in_rows, in_cols = (rows >= top) & (rows < top + height), (cols >= left) & (cols < left + width)
    return in_rows[:, :, None] & in_cols[:, None, :]


def alternating_flip(images: Tensor, size: Size, rng: BatchRng) -> Tensor:
    """Mirror one half of the images in the first epoch, the other half in the next, and so on.

    Source: Jordan 2024, arXiv 2404.00498, section 3.6.
    """
    # One random bit per image, hashed from its index and the seed. Source: splitmix64.
    mixed = rng.indices + (rng.seed * 2 + 1) * 0x1E3779B97F4A7C15 % 2**62
    mixed = (mixed ^ (mixed >> 30)) * 0x3F58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 27)) * 0x14D049BB133111EB
    flipped = ((mixed ^ (mixed >> 31)) & 1) ^ (rng.epoch % 2)
    return _flip_selected(images, to_device(flipped.bool(), images.device), -1)


def cutout(images: Tensor, size: Size, rng: BatchRng, *, side: int) -> Tensor:
    """Erase a square around a random pixel, clipped at the border.

    Source: DeVries and Taylor 2017, arXiv 1708.04552.
    """
    height, width = images.shape[-2:]
    top, left = (rng.randint(length)[:, None] - side // 2 for length in (height, width))
    return images.masked_fill(_rectangle_masks(images, top, left, side, side)[:, None], 0)


def _per_image(make: Callable[..., nn.Module], batched: Augmentation) -> Augmentation:
    """Apply a torchvision transform to each image, with a seed per image, and to a whole batch on other devices."""

    def change(images: Tensor, size: Size, rng: BatchRng, **args: Any) -> Tensor:
        if images.device.type != "cpu":
            return batched(images, size, rng, **args)
        transform = make(**args)
        changed: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, rng.seeds(), strict=True):
                torch.random.default_generator.manual_seed(seed)
                changed.append(transform(image))
        return torch.stack(changed)

    return change


TRANSFORMS: dict[str, Augmentation] = {
    "hflip": _make_flip(-1),
    "vflip": _make_flip(-2),
    "alternating_flip": alternating_flip,
    "random_crop": random_crop,
    "translate": translate,
    "random_resized_crop": random_resized_crop,
    "rotate": rotate,
    "color_jitter": color_jitter,
    "autoaugment": _per_image(lambda policy: v2.AutoAugment(v2.AutoAugmentPolicy(policy)), policies.autoaugment),
    "randaugment": _per_image(lambda ops, magnitude: v2.RandAugment(ops, magnitude), policies.randaugment),
    "trivialaugment": _per_image(v2.TrivialAugmentWide, policies.trivialaugment),
    "random_erasing": random_erasing,
    "cutout": cutout,
}
"""The transform of every augmentation in the recipe. It takes the arguments of the recipe as keywords."""

PER_IMAGE = {"color_jitter", "autoaugment", "randaugment", "trivialaugment"}
"""Augmentations that process one image after another on a CPU."""


def is_per_image(augment: Sequence[Setting]) -> bool:
    """Return whether some augmentation processes one image after another on a CPU."""
    return any(step.name in PER_IMAGE for step in augment)


ANY_SIZE = {"hflip", "vflip", "alternating_flip", "random_resized_crop"}
"""Augmentations that may run before the image has the input size."""

ANY_TYPE = {"hflip", "vflip", "alternating_flip", "random_resized_crop", "random_crop", "translate", "cutout"}
"""Augmentations that also accept integers stored as floats, and so need no conversion back to bytes."""
