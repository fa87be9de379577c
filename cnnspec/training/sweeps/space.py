"""Define the search space of a sweep: the values of each name, and the candidates made of them.

    c=16,32           one of these values
    depth=2..6        an integer
    c=16..64:8        an integer in steps of 8
    lr=0.001..0.1     a number on a log scale, because the ends differ by a factor of at least 10
    lr=0.1..0.5:log   a number on a log scale; use `:linear` for a linear scale
    epochs=10         a fixed value

A candidate maps each name to a value as written in a spec, so a trial uses exactly what `best.cnn` will contain.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from cnnspec.diagnostics import CnnspecError, failure
from cnnspec.ir.evaluate import show
from cnnspec.syntax.ast import POWERS

DIGITS = 4
"""Significant digits of a number from a range. More would make no measurable difference."""
LOG_FROM = 10
"""The ratio of the ends from which a range is searched on a log scale."""

_NUMBER = r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,2})?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*(?::\s*([a-z]+|[0-9]{{1,9}})\s*)?", re.ASCII)

Candidate = dict[str, str]
"""A value for each name, as written in a spec."""


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.values)

    def text(self, value: Any) -> str:
        """Return a value as written in a spec."""
        return str(value)

    def all(self) -> Sequence[Any]:
        return self.values

    def __str__(self) -> str:
        return ",".join(self.values)


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included.

    Attributes:
        integer: Whether it is an integer.
        log: Whether it is searched on a log scale.
        step: The step between integers.
    """

    low: float
    high: float
    integer: bool
    log: bool
    step: int = 1

    @property
    def count(self) -> int | None:
        """The number of values, or None if it is a float."""
        return (int(self.high) - int(self.low)) // self.step + 1 if self.integer else None

    def text(self, value: Any) -> str:
        """Return a value as written in a spec."""
        if self.integer:
            return str(int(value))
        return repr(min(max(float(f"{float(value):.{DIGITS}g}"), self.low), self.high))

    def all(self) -> Sequence[Any]:
        return range(int(self.low), int(self.high) + 1, self.step)

    def __str__(self) -> str:
        ends = f"{int(self.low)}..{int(self.high)}" if self.integer else f"{self.low!r}..{self.high!r}"
        return f"{ends}:{'log' if self.log else self.step if self.integer else 'linear'}"


Axis = Choice | Range


@dataclass(frozen=True)
class Space:
    """The search space of a sweep.

    Attributes:
        axes: The values of each searched name.
        fixed: Names with one value.
    """

    axes: Mapping[str, Axis]
    fixed: Candidate

    @classmethod
    def of(cls, given: Mapping[str, str | Sequence[Any]]) -> Space:
        """Parse the space that a user describes.

        Args:
            given: For each name, a range or value as text, or a list of values.

        Raises:
            CnnspecError: E0204 if the description is invalid.
        """
        axes: dict[str, Axis] = {}
        fixed: Candidate = {}
        for name, values in given.items():
            texts = [values] if isinstance(values, str) else [_text(name, value) for value in values]
            if not texts or not all(text.strip() for text in texts) or len(set(texts)) < len(texts):
                raise _space_error(name, texts, "a value is missing, empty, or given twice", "give each value once")
            axis = _range(name, texts[0]) if len(texts) == 1 else None
            if axis is not None and axis.low < axis.high:
                axes[name] = axis
            elif len(texts) == 1:
                fixed[name] = texts[0] if axis is None else axis.text(axis.low)
            else:
                axes[name] = Choice(tuple(texts))
        if not axes:
            raise failure(
                "E0204", "the search space is empty", notes=["every name has a single value"] if fixed else [],
                help="write several values, `c=16,32`, or a range, `lr=0.01..0.1`",
            )  # fmt: skip
        return cls(axes, fixed)

    @property
    def size(self) -> int | None:
        """The number of candidates, or None if an axis is continuous."""
        counts = [axis.count for axis in self.axes.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def candidate(self, chosen: Mapping[str, Any]) -> Candidate:
        """Return the candidate for a value on each axis."""
        return {**self.fixed, **{name: axis.text(chosen[name]) for name, axis in self.axes.items()}}

    def all_choices(self) -> Iterator[dict[str, Any]]:
        """Yield all combinations of values, for a finite space."""
        for values in itertools.product(*(axis.all() for axis in self.axes.values())):
            yield dict(zip(self.axes, values, strict=True))

    def to_json(self) -> dict[str, str]:
        return {**self.fixed, **{name: str(axis) for name, axis in self.axes.items()}}


def parse_amount(text: str) -> int:
    """Parse an amount: `300k`, `50M` or `1.5G`, as in `expect`, or `300000`.

    Raises:
        CnnspecError: E0204 if the text is not an amount.
    """
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)([kMG]?)\s*", text, re.ASCII)
    exact = Fraction(match.group(1)) * POWERS.get(match.group(2), 1) if match else None
    if exact is None or exact.denominator != 1:
        raise failure("E0204", f"`{text}` is not a number", help="write `300k`, `50M`, `1.5G` or a plain number")
    return exact.numerator


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if type(value) in (bool, int, float, tuple):
        return repr(value) if type(value) is float else show(value)
    raise _space_error(name, [repr(value)], "unsupported type of value", "use numbers, booleans or strings")


def _range(name: str, text: str) -> Range | None:
    """Parse a range. Return None if the text is not one."""
    if ".." not in text or '"' in text:
        return None
    match = _RANGE.fullmatch(text)
    if match is None:
        help = "write `16..64`, `16..64:8`, `0.001..0.1`, or `0.1..0.5:log`"
        raise _space_error(name, [text], "invalid range of numbers", help)
    low_text, high_text, option = match.groups()
    integer = all(re.fullmatch("[+-]?[0-9]+", end) for end in (low_text, high_text))
    low, high = float(low_text), float(high_text)
    if not low <= high or not math.isfinite(high):
        raise _space_error(
            name, [text], "the end of the range is less than its start", f"write `{high_text}..{low_text}`"
        )
    log = low > 0 and high >= LOG_FROM * low
    step = 1
    if option in ("log", "linear"):
        log = option == "log"
        if log and low <= 0:
            raise _space_error(name, [text], "a log scale requires positive numbers", "start above 0, or remove `:log`")
    elif option is not None and option.isdigit() and integer and int(option) > 0:
        step, log = int(option), False
        high = low + (high - low) // step * step
    elif option is not None:
        raise _space_error(name, [text], f"unexpected `:{option}`", "write `:log`, `:linear`, or a step, `16..64:8`")
    return Range(low, high, integer, log, step)


def _space_error(name: str, texts: Sequence[str], why: str, help: str) -> CnnspecError:
    return failure("E0204", f"`{name}={','.join(texts)}` is not a valid search space", notes=[why], help=help)
