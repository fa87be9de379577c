"""The image sizes that a network accepts: exactly those for which each of its operators works.

A network is built for the size that its spec declares, and runs at many others. `derive` walks over it with symbolic
sizes and collects the conditions (`Demand`); `Sizes` checks one size, and describes the whole set in words and as data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Any, Protocol

from cnnspec.limits import MAX_EFFORT, MAX_LENGTHS
from cnnspec.ops import OPS, Op, ShapeError
from cnnspec.ops.base import SameShape
from cnnspec.shapes import SameWindow, Shape, is_map
from cnnspec.shapes.intervals import (
    EVERY,
    Rectangle,
    TooMany,
    divisors,
    from_to,
    includes,
    interval,
    limited_effort,
    meet,
    rectangle_words,
    spend,
    where_above,
    where_equal,
    where_is,
)
from cnnspec.shapes.symbolic import (
    IMAGE_LENGTH,
    ONE,
    Amount,
    Greatest,
    Length,
    LengthsLimit,
    PeriodLimit,
    SymbolicShape,
    greatest,
)

_ANY_FEATURES = (SameShape.infer, OPS["flatten"].infer, OPS["mean"].infer)
"""The shape rules that accept every number of flat features."""

Lengths = tuple[Length, Length]
SINGLE = (ONE, ONE)
_REACH = 64
"""The range of the search for a nearby size in a set that cannot be written out."""


# --- what must hold ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demand:
    """A condition on the image size, of the operator `node`."""

    node: int

    def holds(self, height: int, width: int) -> bool:
        """Check whether it holds for a size."""
        raise NotImplementedError

    def rectangles(self) -> list[Rectangle]:
        """Return the sizes for which it holds.

        Raises:
            TooMany: They cannot be written out.
        """
        raise TooMany


@dataclass(frozen=True)
class Enough(Demand):
    """A height (axis 0) or width (axis 1) of at least `least`."""

    axis: int
    length: Length
    least: int

    def holds(self, height: int, width: int) -> bool:
        return self.length((height, width)[self.axis]) >= self.least

    def rectangles(self) -> list[Rectangle]:
        found = where_above(self.length, self.least)
        return [(EVERY, found) if self.axis else (found, EVERY)]


@dataclass(frozen=True)
class Agree(Demand):
    """Two equal heights, or two equal widths."""

    axis: int
    length: Length
    other: Length

    def holds(self, height: int, width: int) -> bool:
        size = (height, width)[self.axis]
        return self.length(size) == self.other(size)

    def rectangles(self) -> list[Rectangle]:
        found = where_equal(self.length, self.other)
        return [(EVERY, found) if self.axis else (found, EVERY)]


@dataclass(frozen=True)
class Divisible(Agree):
    """A height or width that can be divided: the quotient rounded down equals the one rounded up."""


@dataclass(frozen=True)
class NotSingle(Demand):
    """A map of more than one position."""

    height: Length
    width: Length

    def holds(self, height: int, width: int) -> bool:
        return self.height(height) != 1 or self.width(width) != 1

    def rectangles(self) -> list[Rectangle]:
        high, wide = (EVERY.without(where_is(length, 1)) for length in (self.height, self.width))
        return [(high, EVERY), (EVERY, wide)]


@dataclass(frozen=True)
class Factors(Demand):
    """Maps that can be multiplied: of equal sizes, or one of them 1x1."""

    one: Lengths
    other: Lengths

    def holds(self, height: int, width: int) -> bool:
        one, other = ((h(height), w(width)) for h, w in (self.one, self.other))
        return one == other or (1, 1) in (one, other)

    def rectangles(self) -> list[Rectangle]:
        equal = (where_equal(self.one[0], self.other[0]), where_equal(self.one[1], self.other[1]))
        return [equal, *((where_is(h, 1), where_is(w, 1)) for h, w in (self.one, self.other))]


@dataclass(frozen=True)
class Features(Demand):
    """The number of features that the weights are built for."""

    amount: Amount
    count: int

    def holds(self, height: int, width: int) -> bool:
        return self.amount(height, width) == self.count

    def rectangles(self) -> list[Rectangle]:
        if isinstance(self.amount, Greatest):
            raise TooMany
        (lengths, channels), *more = self.amount.terms.items()
        if not more and ONE not in lengths:
            return self._of_map(lengths, channels)
        return list(dict.fromkeys([*self._along(0), *self._along(1)]))  # one of two sizes is not larger than the other

    def _of_map(self, lengths: Lengths, channels: int) -> list[Rectangle]:
        """Return the sizes for one flattened map, by the divisors of its number of positions."""
        places, rest = divmod(self.count, channels)
        if rest:
            return []
        pairs = ((where_is(lengths[0], d), where_is(lengths[1], places // d)) for d in divisors(places))
        return [(high, wide) for high, wide in pairs if high and wide]

    def _along(self, axis: int) -> Iterator[Rectangle]:
        """Iterate over runs of sizes along an axis for which the amount is constant."""
        own, others = self._lengths(axis), self._lengths(1 - axis)
        size, least = (max((length.least(1) or 1 for length in lengths), default=1) for lengths in (own, others))
        while True:
            spend(32 + 32 * len(self.amount.terms))
            end = min((n for length in own if (n := length.least(length(size) + 1))), default=None)
            across = interval(partial(self._count, axis, size), self.count, least, bool(others))
            if across:
                run = from_to(size, end) if own else EVERY
                yield (across, run) if axis else (run, across)
            if end is None or self._count(axis, end, max(end, least)) > self.count:
                return
            size = end

    def _lengths(self, axis: int) -> list[Length]:
        return list(dict.fromkeys(lengths[axis] for lengths in self.amount.terms if lengths[axis] != ONE))

    def _count(self, axis: int, size: int, across: int) -> int:
        return self.amount(across, size) if axis else self.amount(size, across)


@dataclass(frozen=True)
class Taken(Demand):
    """Flat features that the operator accepts by its own shape rule."""

    op: Op
    amounts: tuple[Amount | int, ...]

    def holds(self, height: int, width: int) -> bool:
        found = [amount(height, width) if isinstance(amount, Amount) else amount for amount in self.amounts]
        try:
            self.op.infer(*((size,) for size in found))
        except ShapeError:
            return False
        return True


# --- the set -------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Sizes:
    """The image sizes that a network accepts.

    Attributes:
        declared: Height and width in the spec.
        demands: The conditions, in the order of the operators.
        names: The operators of the conditions in words.
        main: The number of operators without those of auxiliary heads, which come last.
        lengths: Output height and width of each operator; `(1, 1)` for flat features.
        features: The number of flat output features of each operator; 0 for a map.
    """

    declared: tuple[int, int]
    demands: tuple[Demand, ...]
    names: dict[int, str]
    main: int
    lengths: tuple[Lengths, ...]
    features: tuple[Amount | int, ...]

    def __repr__(self) -> str:
        return f"Sizes(declared={self.declared}, demands={len(self.demands)})"

    def shape(self, index: int, channels: int) -> SymbolicShape:
        """Return the symbolic output shape of a node."""
        height, width = self.lengths[index]
        if self.features[index] != 0:
            return (self.features[index],)
        return channels, Amount.height(height), Amount.width(width)

    @cached_property
    def in_evaluation(self) -> Sizes:
        """The sizes that the network accepts in evaluation, without auxiliary heads."""
        return replace(self, demands=tuple(demand for demand in self.demands if demand.node < self.main))

    def accepts(self, height: int, width: int) -> bool:
        """Check whether the network accepts images of this size, with its auxiliary heads."""
        return height >= 1 and width >= 1 and all(demand.holds(height, width) for demand in self.demands)

    def nearest(self, height: int, width: int) -> tuple[int, int] | None:
        """Return the nearest size that the network accepts; None if the set cannot be written out and none is close."""
        if self.rectangles is not None:
            found = [(high.nearest(height), wide.nearest(width)) for high, wide in self.rectangles]
        else:
            side = range(-_REACH, _REACH + 1)
            found = [(height + dh, width + dw) for dh in side for dw in side]

        def distance(size: tuple[int, int]) -> tuple[int, int, int, int]:
            high, wide = abs(size[0] - height), abs(size[1] - width)
            return max(high, wide), high + wide, -size[0], -size[1]

        tried = sorted(found, key=distance)[: MAX_EFFORT // max(len(self.demands), 1)]
        return next((size for size in tried if self.accepts(*size)), None)

    @cached_property
    def rectangles(self) -> tuple[Rectangle, ...] | None:
        """The set as heights times widths, the declared size in the first one; None if it is too complex."""
        found: list[Rectangle] = [(EVERY, EVERY)]
        try:
            with limited_effort():
                for demand in self.demands:
                    found = meet(found, demand.rectangles())
                spend(len(found) ** 2 // 2)
                found.sort(key=lambda both: not (self.declared[0] in both[0] and self.declared[1] in both[1]))
                return tuple(one for i, one in enumerate(found) if not any(includes(o, one) for o in found[:i]))
        except TooMany:
            return None

    def words(self) -> str:
        """Describe the set: `any HxW of at least 33x33`, `only 224x224: fc follows a flattened map`."""
        if self.rectangles is None:
            text = "{}x{} and possibly others; use `Graph.accepts` to check a size".format(*self.declared)
        else:
            pinned = any(isinstance(demand, Features) for demand in self.demands)
            shown = 1 if pinned else 3
            text = "; or ".join(rectangle_words(both) for both in self.rectangles[:shown])
            if (more := len(self.rectangles) - shown) > 0:
                ranges = f"{more} other sizes or ranges of sizes" if more > 1 else "1 other size or range of sizes"
                same = f" and {ranges} with the same number of features"
                text = text.removeprefix("only ") + (same if pinned else f"; or {ranges}")
        reason = self._reason()
        text += f": {reason}" if reason else ""
        return f"{text}; in evaluation {self.in_evaluation.words()}" if self._differ else text

    @property
    def _differ(self) -> bool:
        """Whether evaluation is known to accept other sizes than training."""
        alone = self.in_evaluation
        return alone.demands != self.demands and (self.rectangles is None or alone.rectangles != self.rectangles)

    def _reason(self) -> str | None:
        """Return the reason why the set is small, if it is."""
        for demand in sorted(self.demands, key=lambda demand: isinstance(demand, Divisible)):
            name = self.names.get(demand.node, "")
            if isinstance(demand, Features):
                return f"{name} follows a flattened map"
            if isinstance(demand, Divisible):
                return f"{name} divides the height and width"
            if isinstance(demand, (Agree, Factors)):
                return f"the branches of {name} must match"
        return None

    def to_json(self) -> dict[str, Any]:
        """Convert the set to plain data."""
        ranges = None
        if self.rectangles is not None:
            ranges = [{"height": high.to_json(), "width": wide.to_json()} for high, wide in self.rectangles]
        more = {"in_evaluation": self.in_evaluation.to_json()} if self._differ else {}
        return {"words": self.words(), "ranges": ranges, **more}


# --- from a network ------------------------------------------------------------------------------


class NodeLike(Protocol):
    """An operator at its place in a network; see `ir.Node`."""

    @property
    def op(self) -> Op: ...
    @property
    def path(self) -> str: ...
    @property
    def inputs(self) -> tuple[int, ...]: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def aux(self) -> str | None: ...


def derive(nodes: Sequence[NodeLike], image: tuple[int, int, int]) -> Sizes:
    """Derive the image sizes that a network accepts.

    Args:
        nodes: Its operators, with their shapes at the declared size.
        image: The declared shape of an image.

    Raises:
        PeriodLimit: The strides along an axis multiply to more than the limit.
    """
    walk = _Walk(nodes, image)
    for index, node in enumerate(nodes):
        try:
            walk.enter(index, node)
        except PeriodLimit as limit:
            raise type(limit)(index) from None
    names = {demand.node: _name(nodes[demand.node]) for demand in walk.demands.values()}
    declared = (image[1], image[2])
    main = sum(node.aux is None for node in nodes)
    return Sizes(declared, tuple(walk.demands.values()), names, main, tuple(walk.lengths), tuple(walk.features))


class _Walk:
    """A walk over the operators with the two lengths of each map and the number of flat features."""

    def __init__(self, nodes: Sequence[NodeLike], image: tuple[int, int, int]) -> None:
        self.nodes = nodes
        self.image = image
        self.lengths: list[Lengths] = []
        self.features: list[Amount | int] = []
        self.demands: dict[object, Demand] = {}
        self._resized: dict[tuple[int, Lengths], Lengths] = {}
        self._values = 0

    def spend(self, values: int) -> None:
        """Count values that represent sizes.

        Raises:
            LengthsLimit: There are more than the limit.
        """
        self._values += values
        if self._values > MAX_LENGTHS:
            raise LengthsLimit

    def demand(self, demand: Demand) -> None:
        key = (type(demand), *(value for name, value in vars(demand).items() if name != "node"))
        self.demands.setdefault(key, demand)

    def enter(self, index: int, node: NodeLike) -> None:
        """Follow the sizes through an operator, and note its conditions."""
        op, inputs = node.op, node.inputs
        first = inputs[0]
        shape = self.nodes[first].shape if first >= 0 else self.image
        if len(shape) == 1:
            entering = [self.features[i] for i in inputs]
            self.lengths.append((ONE, ONE))
            self.features.append(self.flat(op, index, entering, node.shape))
            return
        before = self.lengths[first] if first >= 0 else (IMAGE_LENGTH, IMAGE_LENGTH)
        if op.sized_by_input:
            after = self.lengths[inputs[-1]] if inputs[-1] >= 0 else (IMAGE_LENGTH, IMAGE_LENGTH)
        elif len(inputs) > 1:
            others = [self.lengths[i] if i >= 0 else (IMAGE_LENGTH, IMAGE_LENGTH) for i in inputs[1:]]
            after = self.join(op, index, before, others)
        elif type(op).axis_rule is Op.axis_rule:
            after = before
        else:
            after = self._resized.get((id(op), before)) or self.resize(op, index, before)
        if op.needs_places(shape):
            self.demand(NotSingle(index, *before))
        flattened = not is_map(node.shape)
        self.lengths.append((ONE, ONE) if flattened else after)
        self.features.append(shape[0] * Amount.height(before[0]) * Amount.width(before[1]) if flattened else 0)

    def resize(self, op: Op, index: int, before: Lengths) -> Lengths:
        """Follow a map through an operator that changes its size."""
        after: list[Length] = []
        for axis in (0, 1):
            rule = op.axis_rule(axis)
            if rule.least > 1:
                self.demand(Enough(index, axis, before[axis], rule.least))
            after.append(length := before[axis].through(rule))
            self.spend(length.period + length.start)
            if op.multiple > 1:
                self.demand(Divisible(index, axis, length, before[axis].through(SameWindow(op.multiple, op.multiple))))
        both = self._resized[id(op), before] = (after[0], after[1])
        return both

    def join(self, op: Op, index: int, first: Lengths, others: Sequence[Lengths]) -> Lengths:
        """Follow maps through a join."""
        for other in others:
            if other == first:
                continue
            if op.name == "mul":
                if SINGLE not in (first, other):
                    self.demand(Factors(index, first, other))
                    self.spend(sum(length.period for length in (*first, *other)))
                first = (first[0].greatest(other[0]), first[1].greatest(other[1]))
                self.spend(sum(length.period + length.start for length in first))
            else:
                for axis in (0, 1):
                    if first[axis] != other[axis]:
                        self.demand(Agree(index, axis, first[axis], other[axis]))
        return first

    def flat(self, op: Op, index: int, entering: Sequence[Amount | int], y: Shape) -> Amount | int:
        """Follow flat features through an operator."""
        if all(isinstance(amount, int) for amount in entering):
            return y[0]
        if len(entering) > 1:
            if op.name == "concat":
                self.spend(sum(4 * len(amount.terms) for amount in entering if isinstance(amount, Amount)))
                return sum(entering)
            if any(amount != entering[0] for amount in entering):
                self.demand(Taken(index, op, tuple(entering)))
            return reduce(greatest, entering)  # those of a sum are equal, and those of a product if none is 1
        amount = entering[0]
        assert isinstance(amount, Amount)
        count = amount(*self.image[1:])
        if op.fixes_features or op.weights((count,)) != op.weights((count + 1,)):
            self.demand(Features(index, amount, count))
        elif type(op).infer not in _ANY_FEATURES:
            self.demand(Taken(index, op, (amount,)))
        return amount if isinstance(op, (SameShape, OPS["flatten"])) or _keeps_count(op, count) else y[0]


def _keeps_count(op: Op, count: int) -> bool:
    """Return whether an operator has as many output features as input features."""
    try:
        return all(op.infer((features,)) == (features,) for features in (count, count + 1))
    except ShapeError:  # it accepts one number only
        return False


def _name(node: NodeLike) -> str:
    """Name an operator."""
    if node.op.owns_module:
        return f"`{node.path}`"
    return f"`{node.op.name}` in `{node.path}`" if node.path else f"`{node.op.name}`"
