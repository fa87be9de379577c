"""Sets of sizes: along one axis, and as ranges of heights times ranges of widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from cnnspec.limits import MAX_EFFORT
from cnnspec.shapes.symbolic import Length


class TooMany(Exception):
    """The set is too complex to be written out."""


_left: ContextVar[int] = ContextVar("_left", default=MAX_EFFORT)


@contextmanager
def limited_effort() -> Generator[None]:
    """Limit the number of sizes that are examined in a `with` block."""
    token = _left.set(MAX_EFFORT)
    try:
        yield
    finally:
        _left.reset(token)


def spend(sizes: int) -> None:
    """Count sizes that are examined.

    Raises:
        TooMany: There are more than the limit.
    """
    left = _left.get() - sizes
    if left < 0:
        raise TooMany
    _left.set(left)


@dataclass(frozen=True, slots=True)
class AxisSet:
    """A set of positive sizes that is periodic from some size on.

    Attributes:
        few: Its members below `start`.
        start: From here on, `n` is a member if `n % period` is one of `residues`.
    """

    few: tuple[int, ...]
    start: int
    period: int = 1
    residues: tuple[int, ...] = (0,)

    @staticmethod
    def of(holds: Callable[[int], bool], start: int, period: int) -> AxisSet:
        """Return the set of a condition that is periodic from `start` on, in normal form.

        Raises:
            TooMany: Period or start are above the limit.
        """
        spend(period + start)
        members = [holds(n) for n in range(1, start)]
        wheel = [False] * period
        for n in range(start, start + period):
            wheel[n % period] = holds(n)
        for part in range(1, period):
            if period % part == 0 and all(wheel[i] == wheel[i % part] for i in range(period)):
                wheel, period = wheel[:part], part
                break
        while members and members[-1] == wheel[len(members) % period]:
            members.pop()
        few = tuple(n for n, member in enumerate(members, start=1) if member)
        residues = tuple(i for i, member in enumerate(wheel) if member)
        if not residues:
            return finite_set(few)
        return AxisSet(few, len(members) + 1, period, residues)

    def __contains__(self, size: object) -> bool:
        assert isinstance(size, int)
        return size % self.period in self.residues if size >= self.start else size in self.few

    def lookup(self) -> Callable[[int], bool]:
        """Return a fast test for membership, for many sizes."""
        few, residues = frozenset(self.few), frozenset(self.residues)
        return lambda size: size % self.period in residues if size >= self.start else size in few

    def nearest(self, size: int) -> int:
        """Return the member nearest to a size, the larger of two; the set must not be empty."""
        found = list(self.few)
        for residue in self.residues:
            above = max(size, self.start)
            above += (residue - above) % self.period
            found += [above, above - self.period] if above - self.period >= self.start else [above]
        return min(found, key=lambda n: (abs(n - size), -n))

    def __bool__(self) -> bool:
        return bool(self.few or self.residues)

    @property
    def finite(self) -> bool:
        return not self.residues

    @property
    def ray(self) -> bool:
        """Whether it contains every size from some size on."""
        return not self.few and self.period == 1 and bool(self.residues)

    def combined(self, other: AxisSet, rule: Callable[[bool, bool], bool]) -> AxisSet:
        """Combine two sets by a rule for membership."""
        period = math.lcm(self.period, other.period)
        one, two = self.lookup(), other.lookup()
        return AxisSet.of(lambda n: rule(one(n), two(n)), max(self.start, other.start), period)

    def __and__(self, other: AxisSet) -> AxisSet:
        if self == EVERY:
            return other
        if other in (EVERY, self):
            return self
        if self.finite or other.finite:
            finite, any_ = (self, other) if self.finite else (other, self)
            spend(len(finite.few))
            return finite_set([*filter(any_.lookup(), finite.few)])
        if self.ray and other.ray:
            return self if self.start > other.start else other
        return self.combined(other, lambda a, b: a and b)

    def without(self, other: AxisSet) -> AxisSet:
        return self.combined(other, lambda a, b: a and not b)

    def words(self) -> str:
        """Describe the set in words that follow `H`."""
        if self.finite:
            return _listed(self.few)
        first = next(n for n in range(self.start, self.start + self.period) if n in self)
        earliest = next(n for n in range(1, self.period + 1) if n % self.period in self.residues)
        if len(self.residues) == self.period:
            text = f"at least {self.start}" if self.start > 1 else "any"
        elif len(self.residues) == 1:
            rest = self.residues[0]
            text = f"multiples of {self.period}" if rest == 0 else f"{self.period}*k + {rest}"
            text += f", at least {first}" if first > earliest else ""
        else:
            residues = " or ".join(map(str, self.residues))
            text = f"with remainder {residues} modulo {self.period}"
            text += f", at least {first}" if first > earliest else ""
        return f"{_listed(self.few)}, or {text}" if self.few else text

    def to_json(self) -> dict[str, Any]:
        """Convert the set to plain data: the members `few`, and `n >= from` with `n % period` in `residues`."""
        tail = {"from": self.start, "period": self.period, "residues": list(self.residues)} if self.residues else {}
        return {"few": list(self.few), **tail}


EVERY = AxisSet((), 1)
NEVER = AxisSet((), 1, 1, ())


def _listed(sizes: Sequence[int]) -> str:
    """Render sizes as `7`, `3 or 5`, `from 224 to 255`."""
    runs: list[list[int]] = []
    for size in sizes:
        if runs and runs[-1][1] == size - 1:
            runs[-1][1] = size
        else:
            runs.append([size, size])
    parts = [str(low) if low == high else f"from {low} to {high}" for low, high in runs]
    if len(parts) > 6:
        parts = [*parts[:5], f"{len(parts) - 5} more"]
    return " or ".join(parts)


def finite_set(sizes: Sequence[int]) -> AxisSet:
    """Return the set of these sizes, given in ascending order."""
    return AxisSet(tuple(sizes), sizes[-1] + 1, 1, ()) if sizes else NEVER


def where_equal(one: Length, other: Length) -> AxisSet:
    """Return the sizes for which two lengths are equal.

    Raises:
        TooMany: It cannot be written out.
    """
    period = math.lcm(one.period, other.period)
    start = max(one.start, other.start)
    rises = [length.step * period // length.period for length in (one, other)]
    spend(period)
    if rises[0] != rises[1]:  # they are never equal again once the gap exceeds the change per period
        gap = max(abs(one(n) - other(n)) for n in range(start, start + period))
        start += period * (gap // abs(rises[0] - rises[1]) + 2)
    return AxisSet.of(lambda n: one(n) == other(n), start, period)


def where_is(length: Length, value: int) -> AxisSet:
    """Return the sizes for which a length has a value."""
    low, high = length.least(value), length.least(value + 1)
    if low is None or length(low) != value:
        return NEVER
    return AxisSet((), low) if high is None else finite_set(range(low, high))


def where_above(length: Length, least: int) -> AxisSet:
    """Return the sizes for which a length is at least a value."""
    low = length.least(least)
    return NEVER if low is None else AxisSet((), low)


Rectangle = tuple[AxisSet, AxisSet]
"""The pairs of any of these heights with any of these widths."""


def meet(some: Sequence[Rectangle], others: Sequence[Rectangle]) -> list[Rectangle]:
    """Intersect two unions of rectangles.

    Raises:
        TooMany: There are too many of them.
    """
    spend(16 * len(some) * len(others))
    met = {(a[0] & b[0], a[1] & b[1]): None for a in some for b in others}
    return [both for both in met if both[0] and both[1]]


def divisors(number: int) -> list[int]:
    """Return the divisors of a number in ascending order.

    Raises:
        TooMany: The number is too large.
    """
    spend(math.isqrt(number))
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def from_to(low: int, end: int | None) -> AxisSet:
    """Return the sizes from `low` to `end`, which is not included; without `end`, all from `low` up."""
    return AxisSet((), low) if end is None else finite_set(range(low, end))


def interval(amount: Callable[[int], int], count: int, low: int, grows: bool) -> AxisSet:
    """Return the sizes from `low` up for which a function that never decreases has a value."""
    if not grows:
        return EVERY if amount(1) == count else NEVER

    def first(wanted: int) -> int:
        below, above = low - 1, low
        while amount(above) < wanted:
            below, above = above, above * 2
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (below, middle) if amount(middle) >= wanted else (middle, above)
        return above

    start, end = first(count), first(count + 1)
    spend(end - start)
    return finite_set(range(start, end))


def includes(other: Rectangle, both: Rectangle) -> bool:
    """Check whether a rectangle includes another one."""
    return (other[0] & both[0], other[1] & both[1]) == both


def rectangle_words(both: Rectangle) -> str:
    """Describe a rectangle: `any HxW of at least 33x33`, `H at least 5, W at least 3`."""
    high, wide = both
    if high != wide:
        return f"H {high.words()}, W {wide.words()}"
    if high == EVERY:
        return "any HxW"
    if high.ray:
        return f"any HxW of at least {high.start}x{high.start}"
    if high.finite and len(high.few) == 1:
        return f"only {high.few[0]}x{high.few[0]}"
    return f"{'only ' if high.finite else ''}H and W {high.words()}"
