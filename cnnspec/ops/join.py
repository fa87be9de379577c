"""The joins of branches: `add`, `mul`, `concat`."""

from collections.abc import Callable, Sequence
from typing import ClassVar, cast

from cnnspec import shapes
from cnnspec.diagnostics.suggestions import Advice, AppendToBranches, ReplaceOperator, Suggestion
from cnnspec.ops.base import FLOAT, Op, Saved, ShapeError
from cnnspec.ops.convolution import show_size
from cnnspec.schema import Size
from cnnspec.shapes import AxisRule, Shape, Window
from cnnspec.shapes.symbolic import greatest

MIXED = "use feature maps in all branches, or `flatten` in all of them"
"""Help for branches of which some are feature maps and some are flat."""


class Join(Op, owns_module=False, callable=False):
    """An operator with several inputs, written with braces.

    Attributes:
        advice: Help for branches that no single suggestion makes compatible.
    """

    advice: ClassVar[str] = "use the same total stride and `pad=same` in all branches"

    @staticmethod
    def joined(inputs: Sequence[Shape]) -> Shape:
        """Return the output shape for compatible inputs; sizes may be functions of the image size."""
        return inputs[0]

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        # The branches are joined one by one.
        return FLOAT * shapes.numel(self.joined(inputs[:-1])) if len(inputs) > 2 else 0


def _larger(first: Shape, other: Shape, window: Callable[[int], AxisRule]) -> tuple[str, Shape, Size] | None:
    """Return which of two maps is larger, the smaller map, and the stride of a window that makes the sizes equal."""
    for small, large, which in ((first, other, "other"), (other, first, "first")):
        height, width = (_stride(large[i], small[i], window) for i in (1, 2))
        if height and width and (height, width) != (1, 1):
            return which, small, (height, width)
    return None


def _stride(large: int, small: int, window: Callable[[int], AxisRule]) -> int | None:
    """Return the stride of a window from one size to another, if there is one."""
    candidates = (-(-large // small), large // small)
    return next((stride for stride in candidates if stride and window(stride)(large) == small), None)


def _single(shape: Shape) -> bool:
    return shape[1:] == (1, 1)


def projection(wanted: Shape, x: Shape) -> tuple[int, Size] | None:
    """Return channels and stride of the 1x1 convolution from the map `x` to the wanted shape, if there is one."""
    if x[1:] == wanted[1:]:
        return wanted[0], (1, 1)
    found = _larger(wanted, x, lambda stride: Window(1, stride))
    return (wanted[0], found[2]) if found and found[0] == "other" else None


def _append(
    code: str, which: str, wanted: Shape, inputs: Sequence[Shape], wording: str, first_axis: int = 0
) -> AppendToBranches:
    """Suggest an operator at the end of the branches that do not have the wanted shape.

    Args:
        code: The operator.
        which: `first` if the first branch must change, else `other`.
        wanted: The shape of the branches that stay as they are.
        inputs: The shapes of all branches.
        wording: The help; see `AppendToBranches`.
        first_axis: The axes from this one on must be equal.
    """
    wrong = [i for i, shape in enumerate(inputs) if shape[first_axis:] != wanted[first_axis:]]
    branches = "larger branches" if which == "first" and shapes.is_map(wanted) else "other branches"
    if len(wrong) == 1:
        branches = f"{ordinal(wrong[0])} branch"
    return AppendToBranches(code, wanted, wording, branches, first_axis)


def ordinal(index: int) -> str:
    """Return `first`, `second`, ... for a position from 0."""
    number = index + 1
    words = ("first", "second", "third", "fourth", "fifth", "sixth")
    if number <= len(words):
        return words[index]
    endings = {1: "st", 2: "nd", 3: "rd"} if number // 10 % 10 != 1 else {}
    return f"{number}{endings.get(number % 10, 'th')}"


def strided(c: object, stride: str) -> str:
    """Return the code of a projection; a stride of 1 is left out."""
    return f"conv 1x1 {c}{f' stride={stride}' if stride != '1' else ''}"


def _projection(first: Shape, other: Shape, inputs: Sequence[Shape]) -> AppendToBranches | None:
    """Suggest the operator that gives a branch the shape of another one, if there is one."""
    if not shapes.is_map(first):
        return _append(f"linear {first[0]}", "other", inputs[0], inputs, "append `{0}` to the {0.which}")
    for which, wanted, x in (("other", first, other), ("first", other, first)):
        if found := projection(wanted, x):
            code = strided(found[0], show_size(found[1]))
            saved = other if which == "first" else inputs[0]
            return _append(code, which, saved, inputs, "project the {0.which} with `{0}`")
    return None


def disagreement(kind: str, inputs: list[Shape]) -> list[str]:
    """Return the axes in which the branches of a join must agree, but differ."""
    axes = shapes.differing_axes(inputs)
    if len({len(shape) for shape in inputs}) > 1 or kind == "add":
        return axes
    if kind == "concat":
        return [axis for axis in axes if axis != "channels"]
    maps = [shape for shape in inputs if shape[1:] != (1, 1)]
    channels = {shape[0] for shape in inputs} - {1}
    sides = [axis for axis in (shapes.differing_axes(maps) if maps else []) if axis in ("height", "width")]
    return (axes[:1] if len(channels) > 1 else []) + sides


class Add(Join, name="add", torch="torch.add", fresh=True):
    """Sum of tensors of one shape; never broadcasts. Source: torch.add."""

    def infer(self, *inputs: Shape) -> Shape:
        for other in inputs[1:]:
            if other != inputs[0]:
                message = "cannot add tensors of different shapes"
                raise ShapeError("E0301", message, self._equal_shapes(other, inputs))
        return inputs[0]

    def _equal_shapes(self, other: Shape, inputs: Sequence[Shape]) -> Suggestion:
        first = inputs[0]
        if len(other) != len(first):  # their sizes would rarely agree once both are flat
            return Advice(MIXED)
        if _single(other) != _single(first) and other[0] == first[0]:
            return ReplaceOperator(
                "mul", "write `{0}`, which multiplies each channel by its value in the 1x1 feature map"
            )
        return _projection(first, other, inputs) or Advice(self.advice)


class Mul(Join, name="mul", torch="torch.mul"):
    """Product; broadcasts over 1x1 maps and over single channels only. Source: torch.mul."""

    advice = "use the same channels, height and width in all branches; only 1 channel or a 1x1 feature map is broadcast"

    def infer(self, *inputs: Shape) -> Shape:
        result = inputs[0]
        for other in inputs[1:]:
            if len(other) != len(result):
                raise ShapeError("E0303", "cannot multiply a feature map and flat features", Advice(MIXED))
            channels = {result[0], other[0]} - {1}
            maps = {result[1:], other[1:]} - {(1, 1)}
            if len(channels) > 1 or len(maps) > 1:
                single = (1, 1) in (result[1:], other[1:])
                found = _projection(result, (other[0], *result[1:]) if single else other, inputs)
                raise ShapeError(
                    "E0303", "cannot multiply tensors of incompatible shapes", found or Advice(self.advice)
                )
            result = self.joined((result, other))
        return result

    @staticmethod
    def joined(inputs: Sequence[Shape]) -> Shape:
        result = inputs[0]
        for other in inputs[1:]:
            result = tuple(cast(int, greatest(a, b)) for a, b in zip(result, other, strict=True))
        return result

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        # A product saves a factor if the other one requires a gradient; so do the partial products of three or more.
        saved: set[int] = set()
        extra, before, partial = 0, tracked[0], inputs[0]
        for i in range(1, len(inputs)):
            saved |= ({i} if before else set()) | ({0} if i == 1 and tracked[1] else set())
            if i > 1 and tracked[i]:
                extra += FLOAT * shapes.numel(partial)
            before, partial = before or tracked[i], self.joined((partial, inputs[i]))
        return Saved(tuple(sorted(saved)), extra=extra)

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return len(inputs) * FLOAT * shapes.numel(y)  # unreduced gradients of the broadcast factors


class Concat(Join, name="concat", torch="torch.cat", fresh=True):
    """Concatenation of channels, `[N, C1 + C2, H, W]`. Source: torch.cat, `dim=1`."""

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return 0

    def infer(self, *inputs: Shape) -> Shape:
        for other in inputs[1:]:
            if len(other) != len(inputs[0]):
                which, flat = ("first", other) if shapes.is_map(inputs[0]) else ("other", inputs[0])
                both = _append("flatten", which, flat, inputs, "append `{0}` to the {0.which}", 1)
                raise ShapeError("E0302", "cannot concatenate a feature map and flat features", both)
            if other[1:] != inputs[0][1:]:
                message = "cannot concatenate feature maps of different sizes"
                raise ShapeError("E0302", message, self._equal_sizes(other, inputs))
        return sum(shape[0] for shape in inputs), *inputs[0][1:]

    def _equal_sizes(self, other: Shape, inputs: Sequence[Shape]) -> Suggestion:
        found = _larger(inputs[0], other, lambda stride: Window(stride, stride))
        if found is None:
            return Advice(self.advice)
        which, smaller, stride = found
        wording = "downsample the {0.which} with `{0}`"
        return _append(f"maxpool {stride[0]}x{stride[1]}", which, smaller, inputs, wording, 1)
