"""What every operator has: settings, a shape rule, weights, and counts."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, Literal, NamedTuple

from cnnspec import shapes
from cnnspec.diagnostics.suggestions import MoveFlattenAfter, SetArgument, Suggestion, describe, one_of
from cnnspec.schema import Declared, Size
from cnnspec.shapes import ITSELF, KEEP, AxisRule, Shape, Span, is_map

FLOAT = 4
"""Bytes of a number in float32."""

INDEX = 8
"""Bytes of an index in int64."""


class Kept(NamedTuple):
    """What an operator keeps for its backward pass.

    Attributes:
        inputs: The positions of the inputs that it keeps.
        output: Whether it keeps its output.
        extra: Bytes for each image of tensors of its own: masks, indices, statistics.
        fixed: Bytes of tensors of its own that are the same for every batch.
    """

    inputs: tuple[int, ...] = ()
    output: bool = False
    extra: int = 0
    fixed: int = 0


INPUT = Kept(inputs=(0,))
OUTPUT = Kept(output=True)


class ShapeError(Exception):
    """A shape rule that does not hold.

    Attributes:
        code: The code of the diagnostic.
        message: What is wrong.
        suggestion: What to do about it.
        argument: The argument that is wrong, if it is one.
    """

    def __init__(self, code: str, message: str, suggestion: Suggestion, *, argument: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.suggestion, self.argument = code, message, suggestion, argument

    @property
    def help(self) -> str:
        """The suggestion in words."""
        return describe(self.suggestion)


class Op(Declared):
    """An operator: its settings are its fields.

    Attributes:
        torch: The class or function of torch whose meaning it has.
        counts_as_layer: Whether papers count it into a network's depth.
        owns_module: Whether it has a module of its own in the built tree.
        callable: Whether it can be called by name in a spec.
        fixes_features: Whether it is made for one number of flat features, with weights or without.

        keeps: The tensors that its gradient needs.
        fresh: Whether its result is a new tensor that its own gradient does not need, over which an activation
            may write.
        overwrites: Whether it writes over its input where nothing else needs it.
    """

    name: ClassVar[str] = ""
    torch: ClassVar[str] = ""
    counts_as_layer: ClassVar[bool] = False
    owns_module: ClassVar[bool] = True
    callable: ClassVar[bool] = True
    fixes_features: ClassVar[bool] = False

    keeps: ClassVar[Kept] = Kept()
    fresh: ClassVar[bool] = False
    overwrites: ClassVar[bool] = False

    def infer(self, *inputs: Shape) -> Shape:
        """The output shape.

        Raises:
            ShapeError: The input cannot be taken.
        """
        raise NotImplementedError

    def weights(self, x: Shape) -> dict[str, Shape]:
        """Learned weights by their key in the `state_dict`, for an input of shape `x`."""
        return {}

    def macs(self, x: Shape, y: Shape) -> int:
        """Multiply-adds for one image, for an input of shape `x` and an output of shape `y`."""
        return 0

    def even(self) -> dict[str, Size | str]:
        """The arguments with which its map is that of its input but for the stride; none where it is so."""
        return {}

    def shares(self, training: bool) -> bool:
        """Whether its output lies in the memory of its input."""
        return False

    def kept(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Kept:
        """What it keeps in training, as torch does it on a CPU in float32.

        Args:
            inputs: Shapes of its inputs.
            y: Shape of its output.
            tracked: For each input, whether it has a gradient.
        """
        return self.keeps

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        """Bytes of the tensors that it makes beside its output at evaluation, the most at a time, for one image."""
        return 0

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        """Bytes of the tensors that its backward pass makes beside the gradients of its input, for one image."""
        return 0

    def buffers(self, x: Shape) -> int:
        """Bytes of the state beside its weights that it keeps from batch to batch."""
        return 0

    def axis_rule(self, axis: Literal[0, 1]) -> AxisRule:
        """What becomes of the height (0) or width (1) of a map."""
        return KEEP

    def needs_places(self, x: Shape) -> bool:
        """Whether it cannot work where the map `x` has a single place."""
        return False

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what it gives; less than 1 where the map is too small for it."""
        return self.axis_rule(0)(height), self.axis_rule(1)(width)

    def span(self, axis: Literal[0, 1], x: int, y: int) -> Span | None:
        """What a place of the output reads along an axis, were the map without end; none for the whole map.

        Args:
            axis: 0 for the height, 1 for the width.
            x: The size of the input along the axis, 1 for flat features.
            y: The size of the output.
        """
        rule = self.axis_rule(axis)
        return rule.span(x) if rule is not KEEP else ITSELF if x == y else None

    def reads(self, axis: Literal[0, 1], x: int, y: int) -> Sequence[Sequence[int]] | None:
        """For each place of the output along an axis the places that it reads; none for the place itself.

        A place outside of the map is padding. The arguments are those of `span`.
        """
        rule = self.axis_rule(axis)
        return rule.reads(x) if rule is not KEEP else None if x == y else [range(x)] * y

    def reduction(self, x: Shape, y: Shape) -> tuple[Fraction, Fraction]:
        """By how much it thins out a map in height and width; below 1 where it makes it larger."""
        if not (is_map(x) and is_map(y)):
            return Fraction(1), Fraction(1)
        rates = (self.axis_rule(0).rate, self.axis_rule(1).rate)
        height, width = (
            Fraction(period, step) if step else Fraction(x[axis], y[axis])
            for axis, (period, step) in enumerate(rates, start=1)
        )
        return height, width


class SameShape(Op):
    """An operator that works on each number, or each map, alone: `[N, C, H, W] -> [N, C, H, W]`."""

    def infer(self, *inputs: Shape) -> Shape:
        return inputs[0]


def need_map(name: str, x: Shape) -> tuple[int, int, int]:
    """Channels, height and width of a map.

    Raises:
        ShapeError: The input is flat.
    """
    if len(x) != 3:
        raise ShapeError(
            "E0308",
            f"`{name}` needs a map [N, C, H, W], got flat features {shapes.text(x)}",
            MoveFlattenAfter(name),
        )
    return x[0], x[1], x[2]


def need_divisible(name: str, what: str, size: int, by: int, argument: str, other: int = 0) -> None:
    """Raises a `ShapeError` unless `size` is a multiple of `by`; the remedy divides the `other` size, too."""
    if size % by:
        common = math.gcd(size, other)
        divisors = [n for n in range(1, common + 1) if common % n == 0] if common <= 65_536 else [1]
        near = min(divisors, key=lambda n: (abs(n - by), n))
        both = f"{size} and {other}" if other else f"{size}"
        raise ShapeError(
            "E0306",
            f"`{name}` cannot divide {size} {what} by {by}",
            one_of(f"the nearest divisor of {both} is {near}: write `{{0}}`", SetArgument(argument, near)),
            argument=argument,
        )
