"""Shapes without their batch axis, and the arithmetic of windows that slide over a map.

A shape is `(C, H, W)` for a map and `(F,)` for flat features; people read it as `[N, C, H, W]`.
"""

from __future__ import annotations

Shape = tuple[int, ...]

AXES = ("channels", "height", "width")


def text(shape: Shape) -> str:
    """`[N, 64, 16, 16]`."""
    return "[" + ", ".join(["N", *map(str, shape)]) + "]"


def is_map(shape: Shape) -> bool:
    """Whether a shape has height and width."""
    return len(shape) == 3


def numel(shape: Shape) -> int:
    """Numbers in one image's tensor."""
    total = 1
    for size in shape:
        total *= size
    return total


def window(size: int, kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1, *, ceil: bool = False) -> int:
    """Positions of a sliding window along one axis; less than 1 where it does not fit.

    `floor((size + 2 pad - dilation (kernel - 1) - 1) / stride) + 1`; with `ceil` the division rounds up,
    but no window starts in the padding behind the map.

    Source: torch.nn.Conv2d and torch.nn.MaxPool2d, section "Shape".
    """
    room = size + 2 * pad - dilation * (kernel - 1) - 1
    if not ceil:
        return room // stride + 1
    positions = -(-room // stride) + 1
    return positions - 1 if (positions - 1) * stride >= size + pad else positions


def same_padding(kernel: int, dilation: int) -> int:
    """The padding on each side that keeps a size at stride 1, for an odd kernel."""
    return dilation * (kernel - 1) // 2


def differing_axes(shapes: list[Shape]) -> list[str]:
    """The axes in which shapes differ, in words; none where a map meets flat features."""
    if len({len(shape) for shape in shapes}) > 1:
        return []
    names = AXES if len(shapes[0]) == 3 else ("features",)
    return [name for name, sizes in zip(names, zip(*shapes, strict=True), strict=True) if len(set(sizes)) > 1]


def join_words(words: list[str]) -> str:
    """`channels, height, and width`."""
    if len(words) <= 2:
        return " and ".join(words)
    return ", ".join(words[:-1]) + ", and " + words[-1]
