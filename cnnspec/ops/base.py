"""The base class of operators: settings, shape rule, weights, and counts."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, Literal, NamedTuple

from cnnspec import shapes
from cnnspec.diagnostics.suggestions import (
    Advice,
    MoveFlattenAfter,
    RemoveFlatten,
    SetArgument,
    Suggestion,
    describe,
    one_of,
)
from cnnspec.schema import Declared, Size
from cnnspec.shapes import ITSELF, KEEP, AxisRule, Shape, Span, is_map

FLOAT = 4
"""Bytes of a float32."""

INDEX = 8
"""Bytes of an int64."""


class Saved(NamedTuple):
    """Tensors that an operator saves for its backward pass.

    Attributes:
        inputs: The positions of the saved inputs.
        output: Whether the output is saved.
        extra: Bytes per image of further tensors: masks, indices, statistics.
        fixed: Bytes of further tensors per batch, whatever its size.
    """

    inputs: tuple[int, ...] = ()
    output: bool = False
    extra: int = 0
    fixed: int = 0


INPUT = Saved(inputs=(0,))
OUTPUT = Saved(output=True)


class ShapeError(Exception):
    """Shapes or settings that violate the shape rule of an operator.

    Attributes:
        code: The code of the diagnostic.
        message: The problem.
        suggestion: The action to take.
        argument: The argument that is wrong, if it is one.
        fallback: The help where the suggestion cannot be applied to the text.
    """

    def __init__(
        self, code: str, message: str, suggestion: Suggestion, *, argument: str = "", fallback: str | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.suggestion, self.argument = code, message, suggestion, argument
        self.fallback = fallback

    @property
    def help(self) -> str:
        """The suggestion in words."""
        return describe(self.suggestion)


class Op(Declared):
    """An operator: its settings are its fields.

    Attributes:
        torch: The equivalent class or function of torch.
        counts_as_layer: Whether papers count it as a layer of a network's depth.
        owns_module: Whether it has its own module in the built network.
        callable: Whether it can be called by name in a spec.
        fixes_features: Whether it is built for one number of flat features, even without weights.

        keeps: The tensors that its gradient needs.
        fresh: Whether its output is a new tensor that its own gradient does not need, so that an in-place activation
            may overwrite it.
        overwrites: Whether it works in place if nothing else needs its input.
    """

    torch: ClassVar[str] = ""
    counts_as_layer: ClassVar[bool] = False
    owns_module: ClassVar[bool] = True
    callable: ClassVar[bool] = True
    fixes_features: ClassVar[bool] = False

    keeps: ClassVar[Saved] = Saved()
    fresh: ClassVar[bool] = False
    overwrites: ClassVar[bool] = False

    def infer(self, *inputs: Shape) -> Shape:
        """Return the output shape.

        Raises:
            ShapeError: The operator does not accept these inputs.
        """
        raise NotImplementedError

    def weights(self, x: Shape) -> dict[str, Shape]:
        """Return the shapes of the weights by their key in the `state_dict`, for an input of shape `x`."""
        return {}

    def macs(self, x: Shape, y: Shape) -> int:
        """Return the multiply-adds per image, for an input of shape `x` and an output of shape `y`."""
        return 0

    def even(self) -> dict[str, Size | str]:
        """Return the arguments to change so that only the stride changes the size of the map."""
        return {}

    def shares(self, training: bool) -> bool:
        """Check whether its output is a view of its input."""
        return False

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        """Return the tensors that torch saves in training, on a CPU in float32.

        Args:
            inputs: Shapes of the inputs.
            y: Shape of the output.
            tracked: For each input, whether it requires a gradient.
        """
        return self.keeps

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        """Return the peak bytes per image of temporary tensors in evaluation, besides the output."""
        return 0

    def fixed_scratch(self, inputs: Sequence[Shape]) -> int:
        """Return the bytes of temporary tensors in evaluation whose size does not depend on the batch."""
        return 0

    def workspace(self, inputs: Sequence[Shape], y: Shape) -> int:
        """Return the elements per image of the largest buffer that a kernel may need, which no estimate counts."""
        return 0

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        """Return the bytes per image of temporary tensors in the backward pass, besides the input gradients."""
        return 0

    def buffers(self, x: Shape) -> int:
        """Return the bytes of its buffers, such as running statistics."""
        return 0

    @property
    def sized_by_input(self) -> bool:
        """Whether its last input is read only for its height and width, which the output has."""
        return False

    def axis_rule(self, axis: Literal[0, 1]) -> AxisRule:
        """Return the rule for the height (0) or width (1) of a map."""
        return KEEP

    @property
    def multiple(self) -> int:
        """The number that must divide the height and width of its input."""
        return 1

    def needs_places(self, x: Shape) -> bool:
        """Check whether it fails on a map `x` of a single position."""
        return False

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of its output; less than 1 if the map is too small."""
        return self.axis_rule(0)(height), self.axis_rule(1)(width)

    def span(self, axis: Literal[0, 1], x: int, y: int) -> Span | None:
        """Return the input range of an output position on an unbounded map; None for the whole map.

        Args:
            axis: 0 for the height, 1 for the width.
            x: The size of the input along the axis; 1 for flat features.
            y: The size of the output.
        """
        rule = self.axis_rule(axis)
        return rule.span(x) if rule is not KEEP else ITSELF if x == y else None

    def reads(self, axis: Literal[0, 1], x: int, y: int) -> Sequence[Sequence[int]] | None:
        """Return the input positions of each output position along an axis; None if each reads only itself.

        A position outside the map is padding. The arguments are those of `span`.
        """
        rule = self.axis_rule(axis)
        return rule.reads(x) if rule is not KEEP else None if x == y else [range(x)] * y

    def reduction(self, x: Shape, y: Shape) -> tuple[Fraction, Fraction]:
        """Return the reduction of height and width; below 1 for an operator that upsamples."""
        if not (is_map(x) and is_map(y)):
            return Fraction(1), Fraction(1)
        rates = (self.axis_rule(0).rate, self.axis_rule(1).rate)
        height, width = (
            Fraction(period, step) if step else Fraction(x[axis], y[axis])
            for axis, (period, step) in enumerate(rates, start=1)
        )
        return height, width


class SameShape(Op):
    """An operator that keeps the shape: `[N, C, H, W] -> [N, C, H, W]`."""

    def infer(self, *inputs: Shape) -> Shape:
        return inputs[0]


def need_map(name: str, x: Shape) -> tuple[int, int, int]:
    """Return channels, height and width of a map.

    Raises:
        ShapeError: The input is flat.
    """
    if len(x) != 3:
        raise ShapeError(
            "E0308",
            f"`{name}` expects a feature map [N, C, H, W], got flat features {shapes.text(x)}",
            one_of("move `{0.operator}` before `flatten`, or {1.wording}", MoveFlattenAfter(name), RemoveFlatten()),
            fallback=f"move `{name}` before `flatten`",
        )
    return x[0], x[1], x[2]


def need_divisible(
    name: str, what: str, size: int, by: int, argument: str, other: int = 0, *, proper: bool = False, least: int = 1
) -> None:
    """Require that `size` is a multiple of `by`.

    Args:
        name: The operator.
        what: The name of the size, such as `input channels`.
        size: The size.
        by: The divisor.
        argument: The argument that sets the divisor.
        other: A size that the suggested divisor must divide, too; 0 for none.
        proper: Whether the suggested divisor must be smaller than the size.
        least: The smallest divisor to suggest.

    Raises:
        ShapeError: It is not.
    """
    if size % by:
        common = math.gcd(size, other)
        possible = [n for n in divisors(common) if least <= n and (n < size or not proper)] or [1]
        near = min(possible, key=lambda n: (abs(n - by), n))
        divisor = f"common divisor of {size} and {other}" if other not in (0, size) else f"divisor of {size}"
        divisor = f"proper {divisor}" if proper else divisor
        wording = f"write `{{0}}`, a {divisor} close to {by}"
        noun = "channel" if size == 1 else "channels"
        raise ShapeError(
            "E0306",
            f"the number of {what} of `{name}` must be divisible by `{argument}`, got {size:,} {noun} "
            f"and `{argument}={by}`",
            one_of(wording, SetArgument(argument, near)) if near >= least else Advice(f"remove `{argument}`"),
            argument=argument,
        )


def divisors(number: int) -> list[int]:
    """Return the divisors of a number."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return [*small, *(number // n for n in small)]
