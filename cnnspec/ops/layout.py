"""Operators that rearrange elements: flatten, resize, shuffle, pad, slice."""

from collections.abc import Sequence
from fractions import Fraction
from math import floor, gcd, lcm
from typing import Literal

from cnnspec import shapes
from cnnspec.diagnostics.suggestions import Advice, InsertBefore, SetArgument
from cnnspec.limits import MAX_PERIOD
from cnnspec.ops.base import INPUT, Op, Saved, ShapeError, divisors, need_divisible, need_map
from cnnspec.schema import Count, CountSize, Interval, TensorName
from cnnspec.shapes import KEEP, AxisRule, Fixed, Shape, Shift, Span, Times, Window


class Flatten(Op, name="flatten", torch="torch.nn.Flatten"):
    """`[N, C, H, W] -> [N, C*H*W]`. Source: torch.nn.Flatten."""

    def infer(self, *inputs: Shape) -> Shape:
        return (shapes.numel(inputs[0]),)

    def shares(self, training: bool) -> bool:
        return True


TAPS: dict[str, tuple[int, ...]] = {"nearest": (0,), "bilinear": (0, 1), "bicubic": (-1, 0, 1, 2)}
"""The positions that a fractional position interpolates, relative to its floor."""


class Upsample(Op, name="upsample", torch="torch.nn.Upsample"):
    """Upsample by `factor`, to `size`, or to the size of another map. Source: torch.nn.Upsample."""

    factor: CountSize | None = None
    size: CountSize | None = None
    mode: Literal["nearest", "bilinear", "bicubic"] = "nearest"
    align_corners: bool = False
    like: TensorName | None = None

    @property
    def sized_by_input(self) -> bool:
        return self.like is not None

    def infer(self, *inputs: Shape) -> Shape:
        c, h, w = need_map(self.name, inputs[0])
        if sum(setting is not None for setting in (self.factor, self.size, self.like)) != 1:
            raise ShapeError(
                "E0203",
                "`upsample` requires exactly one of `factor`, `size` and `like`",
                Advice("write `upsample 2`, `upsample size=32x32`, or `upsample like=@x` for the size of `x`"),
            )
        if self.align_corners and self.mode == "nearest":
            raise ShapeError(
                "E0215",
                "`align_corners` has no effect with `mode=nearest`",
                SetArgument("mode", "bilinear"),
                argument="align_corners",
            )
        if self.like is not None:
            if len(inputs[1]) != 3:
                message = f"`like` expects a feature map [N, C, H, W], got flat features {shapes.text(inputs[1])}"
                raise ShapeError("E0308", message, Advice("use a tensor before `flatten`"), argument="like")
            return c, *inputs[1][1:]
        return c, *self.resized(h, w)

    def axis_rule(self, axis: Literal[0, 1]) -> AxisRule:
        if self.size is not None:
            return Fixed(self.size[axis])
        return Times(self.factor[axis]) if self.factor is not None else KEEP

    def span(self, axis: Literal[0, 1], x: int, y: int) -> Span | None:
        rate, middle = self._position(x, y)
        if rate.denominator > MAX_PERIOD:
            return None
        low, high = TAPS[self.mode][0], TAPS[self.mode][-1]
        at = _divided(rate, middle, rate.denominator)
        first = tuple(place + (low if rest else 0) for place, rest in at)
        last = tuple(place + (high if rest else 0) for place, rest in at)
        return Span(rate.denominator, rate.numerator, first, last)

    def reads(self, axis: Literal[0, 1], x: int, y: int) -> Sequence[Sequence[int]]:
        whole, last = (0,), x - 1
        found: list[Sequence[int]] = []
        for place, rest in _divided(*self._position(x, y), y):
            outside = place < 0 and self.mode == "bilinear"  # torch clamps it to the first position
            taps = TAPS[self.mode] if rest and not outside else whole
            found.append([min(max(place + tap, 0), last) for tap in taps])
        return found

    def _position(self, x: int, y: int) -> tuple[Fraction, Fraction]:
        """Return the input position of an output position as `rate * place + middle`."""
        if self.mode == "nearest":
            return Fraction(x, y), Fraction(0)
        if self.align_corners:
            return Fraction(x - 1, y - 1) if y > 1 else Fraction(0), Fraction(0)
        return Fraction(x, y), (Fraction(x, y) - 1) / 2


def _divided(rate: Fraction, middle: Fraction, count: int) -> list[tuple[int, int]]:
    """Return `rate * place + middle` for places from 0 as whole numbers and remainders, without slow fractions."""
    common = lcm(rate.denominator, middle.denominator)
    step, start = int(rate * common), int(middle * common)
    return [divmod(step * place + start, common) for place in range(count)]


class PixelShuffle(Op, name="pixel_shuffle", torch="torch.nn.PixelShuffle"):
    """`[N, C*r*r, H, W] -> [N, C, H*r, W*r]` with `r = factor`. Source: torch.nn.PixelShuffle."""

    factor: Count

    def infer(self, *inputs: Shape) -> Shape:
        c, h, w = need_map(self.name, inputs[0])
        r = self.factor
        if c % (r * r):
            message = "the number of input channels of `pixel_shuffle` must be divisible by the square of `factor`"
            raise ShapeError(
                "E0306",
                f"{message}, got {c:,} channels and `factor={r}` (square {r * r:,})",
                InsertBefore(f"conv 1x1 {-(-c // (r * r)) * r * r}", "insert `{0}` before `pixel_shuffle`"),
                argument="factor",
            )
        return c // (r * r), *self.resized(h, w)

    def axis_rule(self, axis: Literal[0, 1]) -> AxisRule:
        return Times(self.factor)


class PixelUnshuffle(Op, name="pixel_unshuffle", torch="torch.nn.PixelUnshuffle"):
    """`[N, C, H*r, W*r] -> [N, C*r*r, H, W]` with `r = factor`. Source: torch.nn.PixelUnshuffle."""

    factor: Count

    @property
    def multiple(self) -> int:
        return self.factor

    def infer(self, *inputs: Shape) -> Shape:
        c, h, w = need_map(self.name, inputs[0])
        r = self.factor
        if h % r or w % r:
            near = min(divisors(gcd(h, w)), key=lambda n: (abs(n - r), n))
            padding = InsertBefore(f"pad [0, {-w % r}, 0, {-h % r}]", "insert `{0}` before `pixel_unshuffle`")
            raise ShapeError(
                "E0306",
                f"the height and width of the input of `pixel_unshuffle` must be divisible by `factor`, got {h}x{w} "
                f"and `factor={r}`",
                SetArgument("factor", near) if near > 1 else padding,
                argument="factor",
            )
        return c * r * r, *self.resized(h, w)

    def axis_rule(self, axis: Literal[0, 1]) -> AxisRule:
        return Window(self.factor, self.factor)


class ChannelShuffle(Op, name="channel_shuffle", torch="torch.nn.ChannelShuffle"):
    """Interleave `groups` groups of channels. Source: torch.nn.ChannelShuffle."""

    groups: Count

    def infer(self, *inputs: Shape) -> Shape:
        c, h, w = need_map(self.name, inputs[0])
        need_divisible(self.name, "input channels", c, self.groups, "groups")
        return c, h, w


class Pad(Op, name="pad", torch="torch.nn.ConstantPad2d"):
    """Pad: `pad 1` all around, `pad 1x2` in height and width, `pad [l, r, t, b]` for each side.

    Negative amounts crop with `mode=constant`. Other modes fill with elements of the map instead of a constant.

    Source: torch.nn.ConstantPad2d, ReflectionPad2d, ReplicationPad2d, CircularPad2d.
    """

    amounts: tuple[int, ...]
    value: float = 0.0
    mode: Literal["constant", "reflect", "replicate", "circular"] = "constant"

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return INPUT if self.mode in ("reflect", "replicate") else Saved()

    def _check_mode(self, h: int, w: int) -> None:
        """Refuse amounts and values that another mode than `constant` does not take."""
        if self.value != 0:
            message = f"`value` has no effect with `mode={self.mode}`"
            raise ShapeError("E0215", message, Advice("remove `value`"), argument="value")
        if min(self.sides()) < 0:
            message = f"`pad mode={self.mode}` expects amounts of at least 0, got {min(self.sides())}"
            raise ShapeError(
                "E0309",
                message,
                Advice("crop with a separate `pad` without `mode`: only `mode=constant` accepts negative amounts"),
                argument="amounts",
            )
        least = (self.axis_rule(0).least, self.axis_rule(1).least)
        if h < least[0] or w < least[1]:
            axis = "height" if h < least[0] else "width"
            most = (h, w)[axis == "width"] - (self.mode == "reflect")
            amounts = "x".join(map(str, self.amounts)) if len(self.amounts) < 4 else str(list(self.amounts))
            limit = "must be smaller than" if self.mode == "reflect" else "must not be larger than"
            message = f"the padding {amounts} of `pad mode={self.mode}` {limit} the map, which is {h}x{w}"
            raise ShapeError("E0309", message, Advice(f"pad the {axis} by at most {most}"), argument="amounts")

    def sides(self) -> tuple[int, int, int, int]:
        """Return the padding at the left, right, top and bottom."""
        if len(self.amounts) == 1:
            amount = self.amounts[0]
            return amount, amount, amount, amount
        if len(self.amounts) == 2:
            height, width = self.amounts
            return width, width, height, height
        if len(self.amounts) == 4:
            left, right, top, bottom = self.amounts
            return left, right, top, bottom
        raise ShapeError(
            "E0215",
            f"`pad` takes 1, 2 or 4 amounts, got {len(self.amounts)}",
            Advice("write `pad 1`, `pad 1x2`, or `pad [left, right, top, bottom]`"),
            argument="amounts",
        )

    def infer(self, *inputs: Shape) -> Shape:
        c, h, w = need_map(self.name, inputs[0])
        if self.mode != "constant":
            self._check_mode(h, w)
        least = (self.axis_rule(0).least, self.axis_rule(1).least)
        if h < least[0] or w < least[1]:
            left, right, top, bottom = self.sides()
            kept = (h + min(top, 0) + min(bottom, 0), w + min(left, 0) + min(right, 0))
            less = [
                f"fewer than {size} {what}"
                for size, limit, what in zip((h, w), least, ("rows", "columns"), strict=True)
                if size < limit
            ]
            raise ShapeError(
                "E0309",
                f"`pad` crops away the entire feature map: {h}x{w} becomes {max(kept[0], 0)}x{max(kept[1], 0)}",
                Advice(f"crop {' and '.join(less)} in total"),
                argument="amounts",
            )
        return c, *self.resized(h, w)

    def axis_rule(self, axis: Literal[0, 1]) -> Shift:
        left, right, top, bottom = self.sides()
        return Shift(left, right, self.mode) if axis else Shift(top, bottom, self.mode)


class Slice(Op, name="slice", torch="torch.narrow", owns_module=False):
    """Channels `low` to `high - 1`, `[N, C, ...] -> [N, high - low, ...]`. Source: torch.narrow."""

    range: Interval

    def infer(self, *inputs: Shape) -> Shape:
        low, high = self.range
        if not (isinstance(low, int) and isinstance(high, int) and 0 <= low < high <= inputs[0][0]):
            start, end = max(floor(low), 0), min(floor(high), inputs[0][0])
            start, end = (start, end) if start < end else (0, inputs[0][0])
            raise ShapeError(
                "E0310",
                f"`slice {low}..{high}` is out of range for {inputs[0][0]} channels",
                SetArgument(
                    "range",
                    f"{start}..{end}",
                    "write `slice {0.value}`: channels are numbered from 0, and the end is exclusive",
                ),
                argument="range",
            )
        return high - low, *inputs[0][1:]

    def shares(self, training: bool) -> bool:
        return True
