"""The joins of branches: `add`, `mul`, `concat`."""

from collections.abc import Callable, Sequence
from typing import ClassVar, cast

from cnnspec import shapes
from cnnspec.ops.base import FLOAT, Kept, Op, ShapeFault
from cnnspec.shapes import AxisRule, Shape, Window
from cnnspec.shapes.symbolic import greatest


class Join(Op):
    """An operator of several inputs, written with braces."""

    owns_module: ClassVar[bool] = False
    callable: ClassVar[bool] = False

    @staticmethod
    def joined(inputs: Sequence[Shape]) -> Shape:
        """The shape of the result for inputs that fit; sizes may be functions of the image's."""
        return inputs[0]

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        # The branches are joined one after the other.
        return FLOAT * shapes.numel(self.joined(inputs[:-1])) if len(inputs) > 2 else 0


def _larger(first: Shape, other: Shape, window: Callable[[int], AxisRule]) -> tuple[str, Shape, int] | None:
    """Which of two maps is the larger one, the smaller one, and the stride at which the window makes them alike."""
    for small, large, which in ((first, other, "other"), (other, first, "first")):
        for stride in (-(-large[1] // small[1]), large[1] // small[1]):
            if stride > 1 and all(window(stride)(large[i]) == small[i] for i in (1, 2)):
                return which, small, stride
    return None


SCALES = "write `mul`: it takes a 1x1 map as a factor of each channel"
"""The remedy for a sum with the weights of channels."""


def _single(shape: Shape) -> bool:
    return shape[1:] == (1, 1)


def projection(wanted: Shape, x: Shape) -> tuple[int, int] | None:
    """Channels and stride of the 1x1 convolution that brings the map `x` to a shape, where there is one."""
    if x[1:] == wanted[1:]:
        return wanted[0], 1
    found = _larger(wanted, x, lambda stride: Window(1, stride))
    return (wanted[0], found[2]) if found and found[0] == "other" else None


def _projection(first: Shape, other: Shape) -> str | None:
    """The remedy for a branch whose shape differs from the first one, where an element is one."""
    if not shapes.is_map(first):
        return f"give the other branch as many features with `linear {first[0]}`"
    for which, wanted, x in (("other", first, other), ("first", other, first)):
        if found := projection(wanted, x):
            c, stride = found
            return f"project the {which} branch with `conv 1x1 {c}{f' stride={stride}' if stride > 1 else ''}`"
    return None


def disagreement(kind: str, inputs: list[Shape]) -> list[str]:
    """The axes in which the branches of a join differ and must not."""
    axes = shapes.differing_axes(inputs)
    if len({len(shape) for shape in inputs}) > 1 or kind == "add":
        return axes
    if kind == "concat":
        return [axis for axis in axes if axis != "channels"]
    maps = [shape for shape in inputs if shape[1:] != (1, 1)]
    channels = {shape[0] for shape in inputs} - {1}
    sides = [axis for axis in (shapes.differing_axes(maps) if maps else []) if axis in ("height", "width")]
    return (axes[:1] if len(channels) > 1 else []) + sides


class Add(Join):
    """Sum of tensors of one shape; never broadcasts. Source: torch.add."""

    name: ClassVar[str] = "add"
    torch: ClassVar[str] = "torch.add"
    fresh: ClassVar[bool] = True

    def infer(self, *inputs: Shape) -> Shape:
        for other in inputs[1:]:
            if other != inputs[0]:
                help = (
                    "use `flatten` in every branch, or in none"  # the sums of what they are flattened to hardly agree
                )
                if len(other) == len(inputs[0]):
                    help = SCALES if _single(other) != _single(inputs[0]) and other[0] == inputs[0][0] else None
                    help = help or _projection(inputs[0], other)
                    help = help or "give both branches the same kernels, paddings and strides in total"
                raise ShapeFault("E0301", "cannot add tensors of different shapes", help=help)
        return inputs[0]


class Mul(Join):
    """Product; broadcasts over 1x1 maps and over single channels only. Source: torch.mul."""

    name: ClassVar[str] = "mul"
    torch: ClassVar[str] = "torch.mul"

    def infer(self, *inputs: Shape) -> Shape:
        result = inputs[0]
        for other in inputs[1:]:
            if len(other) != len(result):
                raise ShapeFault(
                    "E0303",
                    "cannot multiply a map with flat features",
                    help="leave `flatten` out and write `conv 1x1` for `linear`, or flatten every branch",
                )
            channels = {result[0], other[0]} - {1}
            maps = {result[1:], other[1:]} - {(1, 1)}
            if len(channels) > 1 or len(maps) > 1:
                single = (1, 1) in (result[1:], other[1:])
                help = _projection(result, (other[0], *result[1:]) if single else other)
                help = help or "the factors must agree in channels and map, or have 1 channel, or a 1x1 map"
                raise ShapeFault("E0303", "cannot multiply tensors of these shapes", help=help)
            result = self.joined((result, other))
        return result

    @staticmethod
    def joined(inputs: Sequence[Shape]) -> Shape:
        result = inputs[0]
        for other in inputs[1:]:
            result = tuple(cast(int, greatest(a, b)) for a, b in zip(result, other, strict=True))
        return result

    def kept(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Kept:
        # A product keeps a factor where the other one has a gradient, and keeps what it is of three and more.
        kept: set[int] = set()
        extra, before = 0, tracked[0]
        for i in range(1, len(inputs)):
            kept |= ({i} if before else set()) | ({0} if i == 1 and tracked[1] else set())
            if i > 1 and tracked[i]:
                extra += FLOAT * shapes.numel(self.joined(inputs[:i]))
            before = before or tracked[i]
        return Kept(tuple(sorted(kept)), extra=extra)

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return (
            len(inputs) * FLOAT * shapes.numel(y)
        )  # of each factor, before it is summed up over what it was spread to


class Concat(Join):
    """The channels of all branches one after the other, `[N, C1 + C2, H, W]`. Source: torch.cat, `dim=1`."""

    name: ClassVar[str] = "concat"
    torch: ClassVar[str] = "torch.cat"
    fresh: ClassVar[bool] = True

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return 0

    def infer(self, *inputs: Shape) -> Shape:
        for other in inputs[1:]:
            if len(other) != len(inputs[0]):
                which = "first" if shapes.is_map(inputs[0]) else "other"
                help = f"flatten the {which} branch, too, with `flatten`"
                raise ShapeFault("E0302", "cannot concatenate a map and flat features", help=help)
            if other[1:] != inputs[0][1:]:
                help = "give all branches the same stride in total, and padding that keeps the size"
                if found := _larger(inputs[0], other, lambda stride: Window(stride, stride)):
                    which, _, stride = found
                    help = f"bring the {which} branch to the same size with `maxpool {stride}x{stride}`"
                raise ShapeFault("E0302", "cannot concatenate maps of different sizes", help=help)
        return sum(shape[0] for shape in inputs), *inputs[0][1:]
