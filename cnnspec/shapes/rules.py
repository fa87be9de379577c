"""Shapes without their batch axis, and the rules that change the sizes of a map.

A shape is `(C, H, W)` for a map and `(F,)` for flat features; it is printed as `[N, C, H, W]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import ClassVar, NamedTuple

from cnnspec.limits import MAX_PERIOD

Shape = tuple[int, ...]

AXES = ("channels", "height", "width")


def text(shape: Shape) -> str:
    """Render a shape as `[N, 64, 16, 16]`."""
    return "[" + ", ".join(["N", *map(str, shape)]) + "]"


def outputs_text(shape: Shape, named: Mapping[str, Shape]) -> str:
    """Render what a network returns: `[N, 10]`, or `p3 [N, 256, 28, 28], p4 [N, 256, 14, 14]` for named outputs."""
    return ", ".join(f"{name} {text(each)}" for name, each in named.items()) or text(shape)


def is_map(shape: Shape) -> bool:
    """Check whether a shape has height and width."""
    return len(shape) == 3


def numel(shape: Shape) -> int:
    """Return the number of elements per image."""
    total = 1
    for size in shape:
        total *= size
    return total


def quotient(factor: int, size: str, offset: int, divisor: int) -> str:
    """Render `(factor*size + offset)//divisor`, without the parts that have no effect."""
    product = size if factor == 1 else f"{factor}*({size})" if any(c in size for c in " +-/") else f"{factor}*{size}"
    total = product if offset == 0 else f"{product} {'+' if offset > 0 else '-'} {abs(offset)}"
    if divisor == 1:
        return total
    return f"({total})//{divisor}" if offset or factor != 1 or "//" in size else f"{total}//{divisor}"


class Span(NamedTuple):
    """The input range of each output position on an unbounded axis.

    Position `period*k + r` reads from `step*k + low[r]` to `step*k + high[r]`. If it reads nothing, `low[r]` is the
    first position that a later one reads, and `high[r]` the last of an earlier one.
    """

    period: int
    step: int
    low: tuple[int, ...]
    high: tuple[int, ...]


ITSELF = Span(1, 1, (0,), (0,))
"""Each position reads itself."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window that slides along an axis: `floor((size + 2 pad - dilation (kernel - 1) - 1) / stride) + 1` positions.

    With `ceil` the division rounds up, but no window starts in the padding after the map. The result is less than 1
    if the window does not fit. `mode` is what fills the padding, as in `Shift`. If padding is not `filled`, each window
    must contain a position of the map, which a dilated one may skip.

    Source: torch.nn.Conv2d and torch.nn.MaxPool2d, section "Shape".
    """

    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    ceil: bool = False
    mode: str = "constant"
    filled: bool = True

    def __call__(self, size: int) -> int:
        room = size + 2 * self.pad - self.dilation * (self.kernel - 1) - 1
        if not self.ceil:
            return room // self.stride + 1
        positions = -(-room // self.stride) + 1
        return positions - 1 if (positions - 1) * self.stride >= size + self.pad else positions

    @property
    def rate(self) -> tuple[int, int]:
        return self.stride, 1

    @property
    def least(self) -> int:
        rounding = self.stride - 1 if self.ceil else 0
        fitting = self.dilation * (self.kernel - 1) + 1 - 2 * self.pad - rounding
        starts = range(-self.pad, 0, self.stride) if not self.filled and self.dilation > 1 else ()
        skipping = (start % self.dilation + 1 for start in starts)  # the first position of the window in the map
        return max(Shift(self.pad, self.pad, self.mode).least, fitting, *skipping)

    def text(self, size: str) -> str:
        offset = 2 * self.pad - self.dilation * (self.kernel - 1) - 1
        if not self.ceil:
            return quotient(1, size, offset + self.stride, self.stride)
        inside = quotient(1, size, self.pad + self.stride - 1, self.stride)
        return f"min({quotient(1, size, offset + 2 * self.stride - 1, self.stride)}, {inside})"

    def span(self, size: int) -> Span:
        return Span(1, self.stride, (-self.pad,), (self.dilation * (self.kernel - 1) - self.pad,))

    def reads(self, size: int) -> Sequence[Sequence[int]]:
        reach = self.dilation * (self.kernel - 1) + 1
        starts = range(-self.pad, self(size) * self.stride - self.pad, self.stride)
        windows = [range(start, start + reach, self.dilation) for start in starts]
        if self.mode == "constant":
            return windows
        source = Shift(self.pad, self.pad, self.mode).source
        return [[source(place, size) for place in window] for window in windows]


@dataclass(frozen=True, slots=True)
class SameWindow:
    """A window that slides along an axis padded as in TensorFlow: `ceil(size / stride)` positions.

    The padding depends on the size; of an odd amount, the larger half is after the map.

    Source: tf.nn.convolution with `padding="SAME"`.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    least: ClassVar[int] = 1

    def __call__(self, size: int) -> int:
        return -(-size // self.stride)

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    @property
    def rate(self) -> tuple[int, int]:
        return self.stride, 1

    def text(self, size: str) -> str:
        return quotient(1, size, self.stride - 1, self.stride)

    def before(self, size: int) -> int:
        """Return the padding before the map."""
        return max(0, (self(size) - 1) * self.stride + self.reach - size) // 2

    def span(self, size: int) -> Span:
        before = self.before(size)
        return Span(1, self.stride, (-before,), (self.reach - 1 - before,))

    def reads(self, size: int) -> Sequence[Sequence[int]]:
        starts = range(-self.before(size), self(size) * self.stride - self.before(size), self.stride)
        return [range(start, start + self.reach, self.dilation) for start in starts]


@dataclass(frozen=True, slots=True)
class Spread:
    """A transposed window: `(size - 1) stride - 2 pad + dilation (kernel - 1) + out_pad + 1`.

    Source: torch.nn.ConvTranspose2d, section "Shape".
    """

    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    out_pad: int = 0

    def __call__(self, size: int) -> int:
        return (size - 1) * self.stride - 2 * self.pad + self.dilation * (self.kernel - 1) + self.out_pad + 1

    @property
    def rate(self) -> tuple[int, int]:
        return 1, self.stride

    @property
    def least(self) -> int:
        return max(1, 2 + -self(1) // self.stride)

    def text(self, size: str) -> str:
        return quotient(self.stride, size, self(0), 1)

    def span(self, size: int) -> Span | None:
        if self.stride > MAX_PERIOD:
            return None
        last = self.dilation * (self.kernel - 1) - self.pad
        low = tuple(-((last - place) // self.stride) for place in range(self.stride))
        high = tuple((place + self.pad) // self.stride for place in range(self.stride))
        return Span(self.stride, 1, low, high)

    def reads(self, size: int) -> Sequence[Sequence[int]]:
        # Input position q adds to the output positions q * stride - pad + dilation * k. For one output position, the
        # solutions are a progression: with each step of k by `every`, q falls by `less`.
        common = gcd(self.stride, self.dilation)
        every, less = self.stride // common, self.dilation // common
        inverse = pow(less, -1, every)
        found: list[Sequence[int]] = []
        for place in range(self(size)):
            at, rest = divmod(place + self.pad, common)
            k = at * inverse % every
            q = (at - less * k) // every
            outside = max(0, -((size - 1 - q) // less))
            k, q = k + outside * every, q - outside * less
            more = min((self.kernel - 1 - k) // every, q // less)
            found.append(range(q - more * less, q + 1, less) if not rest and more >= 0 else ())
        return found


@dataclass(frozen=True, slots=True)
class Times:
    """A multiple of the size."""

    factor: int
    least: ClassVar[int] = 1

    def __call__(self, size: int) -> int:
        return size * self.factor

    @property
    def rate(self) -> tuple[int, int]:
        return 1, self.factor

    def text(self, size: str) -> str:
        return quotient(self.factor, size, 0, 1)

    def span(self, size: int) -> Span | None:
        if self.factor > MAX_PERIOD:
            return None
        return Span(self.factor, 1, (0,) * self.factor, (0,) * self.factor)

    def reads(self, size: int) -> Sequence[Sequence[int]]:
        return [(place // self.factor,) for place in range(size * self.factor)]


@dataclass(frozen=True, slots=True)
class Fixed:
    """A fixed size, whatever the input."""

    size: int
    rate: ClassVar[tuple[int, int]] = 1, 0
    least: ClassVar[int] = 1

    def __call__(self, size: int) -> int:
        return self.size

    def text(self, size: str) -> str:
        return str(self.size)

    def span(self, size: int) -> Span | None:
        common = gcd(size, self.size)
        period = self.size // common
        if self.size == 1 or period > MAX_PERIOD:
            return None
        first = [self._read(place, size) for place in range(period)]
        return Span(period, size // common, tuple(read[0] for read in first), tuple(read[-1] for read in first))

    def reads(self, size: int) -> Sequence[Sequence[int]]:
        return [self._read(place, size) for place in range(self.size)]

    def _read(self, place: int, size: int) -> range:
        """Return the window of a position. Source: torch.nn.AdaptiveAvgPool2d."""
        return range(place * size // self.size, -(-(place + 1) * size // self.size))


@dataclass(frozen=True, slots=True)
class Shift:
    """Padding on both sides; negative amounts crop.

    Attributes:
        before, after: The amounts.
        mode: What fills the padding: a constant, or elements of the map.
    """

    before: int
    after: int
    mode: str = "constant"
    rate: ClassVar[tuple[int, int]] = 1, 1

    def __call__(self, size: int) -> int:
        return size + self.before + self.after

    def span(self, size: int) -> Span:
        return Span(1, 1, (-self.before,), (-self.before,))

    def reads(self, size: int) -> Sequence[Sequence[int]]:
        return [(self.source(place - self.before, size),) for place in range(self(size))]

    def source(self, place: int, size: int) -> int:
        """Return the position whose element is at a place."""
        match self.mode:
            case "reflect":
                return abs(place) if place < size else 2 * (size - 1) - place
            case "replicate":
                return min(max(place, 0), size - 1)
            case "circular":
                return place % size
            case _:
                return place

    @property
    def least(self) -> int:
        if self.mode in ("reflect", "circular"):
            return max(1, max(self.before, self.after) + (self.mode == "reflect"))
        return max(1, 1 - self.before - self.after, -min(self.before, 0) - min(self.after, 0))

    def text(self, size: str) -> str:
        return quotient(1, size, self.before + self.after, 1)


AxisRule = Window | SameWindow | Spread | Times | Fixed | Shift
"""The output size along one axis as a function of the input size, for every integer.

A rule never decreases; `rate` is `(period, step)`: `rule(size + period) == rule(size) + step`. `least` is the
smallest input size for which the output size is at least 1. `text` renders the rule.

For an input of a size, `span` is the range that an output position reads on an unbounded map, or `None` for the whole
map and for a period above the limit. `reads` are the positions that each position reads; those outside the map are
padding.
"""
KEEP = Times(1)


def same_padding(kernel: int, dilation: int) -> int:
    """Return the padding on each side that keeps the size at stride 1, for an odd kernel."""
    return dilation * (kernel - 1) // 2


def differing_axes(shapes: list[Shape]) -> list[str]:
    """Return the names of the axes in which shapes differ, or an empty list for a map and flat features."""
    if len({len(shape) for shape in shapes}) > 1:
        return []
    names = AXES if len(shapes[0]) == 3 else ("features",)
    return [name for name, sizes in zip(names, zip(*shapes, strict=True), strict=True) if len(set(sizes)) > 1]


def join_words(words: list[str]) -> str:
    """Join words as `channels, height and width`."""
    if len(words) <= 2:
        return " and ".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]
