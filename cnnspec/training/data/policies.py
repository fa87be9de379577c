"""Change the colors and the geometry of a whole batch on a device, each image with an operation of its own.

Every operation is computed for all images and selected by a mask, so the host never waits for the device. An image is
the same as with `torchvision.transforms.v2` and the same parameters, up to rounding. Images are bytes `[N, C, h, w]`,
parameters `[N]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from cnnspec.training.data.device import to_device
from cnnspec.training.data.rng import BatchRng

Operation = Callable[[Tensor, Tensor], Tensor]
"""Changes images by a parameter each."""


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _to_bytes(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return `images * factor + other * (1 - factor)`."""
    ratio = _per_image(factor)
    return _to_bytes(images * ratio + other * (1 - ratio))


def _gray(images: Tensor) -> Tensor:
    """Return the luminance `[N, 1, h, w]` in whole numbers. Source: `torchvision.transforms.v2.functional`."""
    if images.shape[1] == 1:
        return images.to(torch.float32)
    red, green, blue = images.to(torch.float32).unbind(1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_()[:, None]


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the values. Source: `v2.functional.adjust_brightness`."""
    return _to_bytes(images * _per_image(factor))


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luminance. Source: `v2.functional.adjust_contrast`."""
    return _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luminance. Source: `v2.functional.adjust_saturation`."""
    return images if images.shape[1] == 1 else _blend(images, _gray(images), factor)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a blurred image, except at the border. Source: `v2.functional.adjust_sharpness`."""
    channels, height, width = images.shape[1:]
    if height <= 2 or width <= 2:
        return images
    kernel = torch.full((channels, 1, 3, 3), 1 / 13, device=images.device)
    kernel[:, :, 1, 1] = 5 / 13
    inner = images[:, :, 1:-1, 1:-1]
    blurred = F.conv2d(images.to(torch.float32), kernel, groups=channels).round_()
    changed = images.clone()
    changed[:, :, 1:-1, 1:-1] = _to_bytes(inner + (blurred - inner) * (1 - _per_image(factor)))
    return changed


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by a fraction of a full turn. Source: `v2.functional.adjust_hue`, `colorsys`."""
    if images.shape[1] == 1:
        return images
    values = images.to(torch.float32) / 255
    red, green, blue = values.unbind(1)
    least, value = values.aminmax(dim=1)
    span = value - least
    divisor = torch.where(span > 0, span, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = (hue / 6 + shift[:, None, None]).remainder(1.0) * 6
    parts = [(number + hue).remainder(6) for number in (5, 3, 1)]
    planes = [value - span * torch.minimum(part, 4 - part).clamp(0, 1) for part in parts]
    return (torch.stack(planes, 1) * 255.999).to(torch.uint8)  # as `v2.functional.to_dtype`


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper bits. Source: `v2.functional.posterize`."""
    mask = 256 - 2 ** (8 - bits.long())
    return images & _per_image(mask).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert values from a fraction of the range on. Source: `v2.functional.solarize`."""
    return torch.where(images >= _per_image(255 * threshold), images.bitwise_not(), images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the whole range. Source: `v2.functional.autocontrast`."""
    values = images.to(torch.float32)
    least, greatest = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    scale = (greatest - least) * (1 / 255)
    flat = scale == 0
    return _to_bytes((values - least.masked_fill(flat, 0)) / scale.masked_fill(flat, 1))


COLORS: dict[str, Operation] = {
    "Brightness": lambda images, magnitude: adjust_brightness(images, 1 + magnitude),
    "Color": lambda images, magnitude: adjust_saturation(images, 1 + magnitude),
    "Contrast": lambda images, magnitude: adjust_contrast(images, 1 + magnitude),
    "Sharpness": lambda images, magnitude: adjust_sharpness(images, 1 + magnitude),
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": lambda images, _: V.equalize(images),
    "Invert": lambda images, _: images.bitwise_not(),
}
"""The operations of the policies on colors, by torchvision's names, called with the images and the magnitudes."""
SHIFTS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
"""The operations of the policies on positions."""
OPERATIONS = ("Identity", *SHIFTS, *COLORS)
"""All operations. Their index is drawn."""


def _move(images: Tensor, kind: Tensor, magnitude: Tensor) -> Tensor:
    """Apply the operations of `SHIFTS`, with the nearest pixel and black outside. Source: `v2.functional.affine`."""
    height, width = images.shape[-2:]
    chosen = {name: kind == OPERATIONS.index(name) for name in SHIFTS}
    none = torch.zeros_like(magnitude)

    def where(name: str, value: Tensor, other: Tensor) -> Tensor:
        return torch.where(chosen[name], value, other)

    angle = where("Rotate", magnitude, none).double().deg2rad()
    cos, sin, pixels = angle.cos().float(), angle.sin().float(), magnitude.trunc()
    right = where("ShearX", magnitude * (height / 2), where("TranslateX", -pixels, none))
    down = where("ShearY", magnitude * (width / 2), where("TranslateY", -pixels, none))
    to_x = torch.stack([cos, where("ShearX", magnitude, -sin), right], 1) / (width / 2)
    to_y = torch.stack([where("ShearY", magnitude, sin), cos, down], 1) / (height / 2)
    x = (torch.arange(width, device=images.device) - (width - 1) / 2).expand(height, -1)
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None].expand(-1, width)
    places = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3).expand(len(images), -1, -1)
    grid = (places @ torch.stack([to_x, to_y], 2)).view(-1, height, width, 2)  # [N, h, w, 2]: where pixels come from
    moved = F.grid_sample(images.to(torch.float32), grid, "nearest", "zeros", align_corners=False)
    return moved.to(torch.uint8)


def apply_operations(images: Tensor, kind: Tensor, magnitude: Tensor) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: Bytes `[N, C, h, w]`.
        kind: The indices of the operations in `OPERATIONS`, `[N]`.
        magnitude: Their magnitudes, `[N]`.
    """
    is_moved = (kind >= 1) & (kind <= len(SHIFTS))
    found = torch.where(_per_image(is_moved), _move(images, kind, magnitude), images)
    for name, change in COLORS.items():
        chosen = kind == OPERATIONS.index(name)
        found = torch.where(_per_image(chosen), change(images, magnitude), found)
    return found


# --- policies -------------------------------------------------------------------------------------


@cache
def _table(transform: type[Any], bins: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the operations of a transform as indices `[K]`, their magnitudes `[K, bins]`, and their being signed."""
    space: dict[str, Any] = transform._AUGMENTATION_SPACE
    kinds = torch.tensor([OPERATIONS.index(name) for name in space])
    found = [(function(bins, height, width), signed) for function, signed in space.values()]
    magnitudes = [torch.zeros(bins) if values is None else values.float() for values, _ in found]
    return kinds, torch.stack(magnitudes), torch.tensor([signed for _, signed in found])


def _signed(magnitude: Tensor, is_signed: Tensor, rng: BatchRng) -> Tensor:
    return torch.where(is_signed & (rng.rand() <= 0.5), -magnitude, magnitude)


def _on(device: torch.device, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [to_device(tensor, device) for tensor in tensors]


def trivialaugment(images: Tensor, size: Any, rng: BatchRng) -> Tensor:
    """Apply a random operation with a random magnitude. Source: `v2.TrivialAugmentWide`."""
    kinds, magnitudes, signed = _on(images.device, _table(v2.TrivialAugmentWide, 31, *images.shape[-2:]))
    row, place = rng.randint(len(kinds)), rng.randint(31)
    return apply_operations(images, kinds[row], _signed(magnitudes[row, place], signed[row], rng))


def randaugment(images: Tensor, size: Any, rng: BatchRng, *, ops: int, magnitude: int) -> Tensor:
    """Apply random operations with the same magnitude, one after another. Source: `v2.RandAugment`."""
    kinds, magnitudes, signed = _on(images.device, _table(v2.RandAugment, 31, *images.shape[-2:]))
    for _ in range(ops):
        row = rng.randint(len(kinds))
        images = apply_operations(images, kinds[row], _signed(magnitudes[row, magnitude], signed[row], rng))
    return images


@cache
def _policies(policy: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the operations of the policies as rows of the table, their probabilities and bins, each `[P, 2]`."""
    transform: Any = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
    names = list(transform._AUGMENTATION_SPACE)
    rows = [[(names.index(name), p, place or 0) for name, p, place in pair] for pair in transform._policies]
    found = torch.tensor(rows, dtype=torch.float64)
    return found[..., 0].long(), found[..., 1].float(), found[..., 2].long()


def autoaugment(images: Tensor, size: Any, rng: BatchRng, *, policy: str) -> Tensor:
    """Apply a random one of 25 pairs of operations. Source: `v2.AutoAugment`."""
    kinds, magnitudes, signed = _on(images.device, _table(v2.AutoAugment, 10, *images.shape[-2:]))
    rows, probabilities, places = _on(images.device, _policies(policy))
    pair = rng.randint(len(rows))
    for number in range(2):
        row, place = rows[pair, number], places[pair, number]
        magnitude = _signed(magnitudes[row, place], signed[row], rng)
        is_applied = rng.rand() <= probabilities[pair, number]
        images = apply_operations(images, torch.where(is_applied, kinds[row], 0), magnitude)
    return images


def color_jitter(images: Tensor, changes: Sequence[tuple[str, Tensor]], order: Tensor) -> Tensor:
    """Change colors in an order of its own for each image. Source: `v2.ColorJitter`.

    Args:
        images: Bytes `[N, C, h, w]`.
        changes: The names of K changes, `brightness`, `contrast`, `saturation` or `hue`, with their factors `[N]`.
        order: The indices of the changes in the order to apply them, `[N, K]`.
    """
    for step in order.unbind(1):
        before = images
        for number, (name, factor) in enumerate(changes):
            changed = JITTER[name](before, factor)
            images = torch.where(_per_image(step == number), changed, images)
    return images


JITTER: dict[str, Operation] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
"""The changes of `color_jitter`."""
