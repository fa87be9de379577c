"""Sizes as functions of the image size: `Length` along one axis, `Amount` of elements in a tensor.

Every rule of an axis is linear up to a period (`shapes.AxisRule`), and so is every composition of rules. A `Length`
is such a function in normal form: equal functions are one object.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import chain, islice
from typing import ClassVar

from cnnspec.limits import MAX_AMOUNTS, MAX_FORMULA, MAX_LENGTHS, MAX_PERIOD, MAX_SHOWN_TERMS
from cnnspec.shapes.rules import AxisRule, quotient

_MAX_TERMS = 6


class PeriodLimit(Exception):
    """The strides up to an operator multiply to more than the limit.

    Attributes:
        node: The operator.
    """

    help = "use smaller strides"
    message = f"the product of all strides up to this layer exceeds the limit of {MAX_PERIOD:,}"

    def __init__(self, node: int = 0) -> None:
        super().__init__(node)
        self.node = node


class LengthsLimit(PeriodLimit):
    """The sizes up to an operator take more terms to represent than the limit."""

    message = f"the analysis of accepted image sizes exceeds the limit of {MAX_LENGTHS:,} terms at this layer"
    help = "use smaller strides or fewer layers"


class Length:
    """A size along one axis, as a function of the image size along it, from 1 up.

    `f(n) = (n // period) * step + cycle[n % period]` from `start` on, and `head[n - 1]` before. The function
    never decreases. Equal functions have equal fields, and usually are one object.

    Attributes:
        period, step: `f(n + period) == f(n) + step`.
        source: The operands of the function, to render it if it has no closed form.
    """

    __slots__ = ("_hash", "_texts", "_through", "cycle", "head", "period", "source", "step")

    _known: ClassVar[dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], Length]] = {}
    _values: ClassVar[int] = 0

    period: int
    step: int
    cycle: tuple[int, ...]
    head: tuple[int, ...]
    source: tuple[Length, AxisRule] | tuple[Length, Length] | None
    _through: dict[AxisRule | Length, Length]
    _texts: dict[str, str]
    _hash: int

    @classmethod
    def of(
        cls,
        period: int,
        step: int,
        cycle: tuple[int, ...],
        head: tuple[int, ...] = (),
        source: tuple[Length, AxisRule] | tuple[Length, Length] | None = None,
    ) -> Length:
        """Return the function with these values, in normal form."""
        for prime in _primes(math.gcd(period, step) if step else period):
            while period % prime == 0 and step % prime == 0:
                part, less = period // prime, step // prime
                if any(cycle[i + part] != cycle[i] + less for i in range(period - part)):
                    break
                period, step, cycle = part, less, cycle[:part]
        end = len(head)
        while end and head[end - 1] == end // period * step + cycle[end % period]:
            end -= 1
        key = (period, step, cycle, head[:end])
        known = cls._known.get(key)
        if known is None:
            Length._values += len(cycle) + end + 1
            if Length._values > MAX_LENGTHS:
                for other in cls._known.values():
                    other._through.clear()
                cls._known.clear()
                Length._values = 0
            known = cls.__new__(cls)
            known.period, known.step, known.cycle, known.head = key
            known.source, known._through, known._texts, known._hash = source, {}, {}, hash(key)
            cls._known[key] = known
        return known

    def __call__(self, size: int) -> int:
        if size <= len(self.head):
            return self.head[size - 1]
        rounds, rest = divmod(size, self.period)
        return rounds * self.step + self.cycle[rest]

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Length)
            and self.cycle == other.cycle
            and (self.period, self.step, self.head) == (other.period, other.step, other.head)
        )

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        # Without its operands if they are not needed: a long chain would exhaust the stack.
        source = self.source if self._closed("n") is None else None
        return Length.of, (self.period, self.step, self.cycle, self.head, source)

    @property
    def start(self) -> int:
        """The first size from which on it is linear up to its period."""
        return len(self.head) + 1

    @property
    def constant(self) -> int | None:
        """The value of a constant function, otherwise `None`."""
        return self.cycle[0] if self.step == 0 and self.period == 1 and not self.head else None

    def through(self, rule: AxisRule) -> Length:
        """Apply a rule.

        Raises:
            PeriodLimit: The period is above the limit.
        """
        known = self._through.get(rule)
        if known is None:
            period, step = rule.rate
            rounds = period // math.gcd(period, self.step)
            if self.period * rounds > MAX_PERIOD:
                raise PeriodLimit
            cycle = tuple([rule(round * self.step + value) for round in range(rounds) for value in self.cycle])
            head = tuple(rule(value) for value in self.head)
            more = self.step * rounds // period * step
            known = self._through[rule] = Length.of(self.period * rounds, more, cycle, head, (self, rule))
        return known

    def greatest(self, other: Length) -> Length:
        """Return the maximum of two functions that are at least 1.

        Raises:
            PeriodLimit: The period is above the limit.
        """
        if other == self or other.constant == 1:
            return self
        if self.constant == 1:
            return other
        known = self._through.get(other)
        if known is None:
            known = self._through[other] = self._greatest(other)
        return known

    def _greatest(self, other: Length) -> Length:
        period = math.lcm(self.period, other.period)
        rise, fall = self.step * period // self.period, other.step * period // other.period
        start = max(self.start, other.start)
        gap = max(abs(self(n) - other(n)) for n in range(start, start + period)) if period <= MAX_PERIOD else 0
        if period > MAX_PERIOD or gap > MAX_PERIOD:
            raise PeriodLimit
        if rise != fall:  # from here on the steeper one is larger
            start += period * (gap // abs(rise - fall) + 1)
        first = start + -start % period  # a multiple of the period
        steeper = max(rise, fall)
        cycle = tuple(max(self(n), other(n)) - first // period * steeper for n in range(first, first + period))
        head = tuple(max(self(n), other(n)) for n in range(1, first))
        return Length.of(period, steeper, cycle, head, (self, other))

    def least(self, wanted: int) -> int | None:
        """Return the least image size for which the function is at least the wanted value, if there is one."""
        high = self.start + self.period
        while self(high) < wanted:
            if self.step == 0:
                return None
            high *= 2
        low = 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self(middle) >= wanted else (middle + 1, high)
        return low

    def text(self, letter: str) -> str:
        """Render the function of `H` or `W` in its shortest form; a part that is too long is `...`."""
        pending = [self]
        while pending:  # not recursive: a chain of operands may be as long as the network
            length = pending[-1]
            if letter in length._texts:
                pending.pop()
                continue
            written = length._closed(letter)
            if written is None:
                assert length.source is not None
                before, after = length.source
                operands = [one for one in (before, after) if isinstance(one, Length)]
                if left := [one for one in operands if letter not in one._texts]:
                    pending += left
                    continue
                first, *second = sorted(one._texts[letter] for one in operands)
                written = f"max({first}, {second[0]})" if isinstance(after, Length) else after.text(first)
            length._texts[letter] = written if len(written) <= MAX_FORMULA else "..."
        return self._texts[letter]

    def _closed(self, letter: str) -> str | None:
        """Render the function as a few quotients, or return None."""
        if self.constant is not None:
            return str(self.constant)
        if self.head:
            return None
        offset = self._offset()
        if offset is not None:
            return quotient(self.step, letter, offset, self.period)
        factor = math.gcd(self.step, *(value - self.cycle[0] for value in self.cycle))
        if factor > 1:
            rest = self.cycle[0] % factor
            inner = Length.of(self.period, self.step // factor, tuple((v - rest) // factor for v in self.cycle))
            if inner._offset() is not None:
                return quotient(factor, inner.text(letter), rest, 1)
        return self._sum(letter) if self.step <= _MAX_TERMS else None

    def _sum(self, letter: str) -> str:
        """Render the function as a sum of quotients, one for each increment within a period."""
        values = [*self.cycle, self.cycle[0] + self.step]
        grows = [i for i in range(1, self.period + 1) for _ in range(values[i] - values[i - 1])]
        terms = [quotient(1, letter, self.period - i, self.period) for i in grows]
        if self.cycle[0]:
            terms.append(str(self.cycle[0]))
        return " + ".join(terms).replace("+ -", "- ")

    def _offset(self) -> int | None:
        """Return `b` if the function is `(step*n + b) // period`."""
        least = max(self.period * value - self.step * i for i, value in enumerate(self.cycle))
        most = min(self.period * (value + 1) - 1 - self.step * i for i, value in enumerate(self.cycle))
        return least if least <= most and not self.head else None

    def __repr__(self) -> str:
        return f"Length({self.text('n')})"


def _primes(number: int) -> list[int]:
    found: list[int] = []
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            found.append(divisor)
            while number % divisor == 0:
                number //= divisor
        divisor += 1
    return [*found, number] if number > 1 else found


IMAGE_LENGTH = Length.of(1, 1, (0,))
"""The size of the image."""
ONE = Length.of(1, 0, (1,))


class Amount:
    """A sum of products of a height, a width and an integer, such as `64*(H//2)*(W//2) + 10`.

    It is a size or a count. It can be added and multiplied by integers, and a height can be multiplied by a width.
    Equal sums have equal normal forms.
    """

    __slots__ = ("_text", "terms")

    def __init__(self, terms: dict[tuple[Length, Length], int]) -> None:
        self._text: str | None = None
        self.terms = terms if all(terms.values()) else {key: value for key, value in terms.items() if value}

    @staticmethod
    def height(length: Length) -> Amount | int:
        return length.constant if length.constant is not None else Amount({(length, ONE): 1})

    @staticmethod
    def width(length: Length) -> Amount | int:
        return length.constant if length.constant is not None else Amount({(ONE, length): 1})

    def __call__(self, height: int, width: int) -> int:
        return sum(count * h(height) * w(width) for (h, w), count in self.terms.items())

    def __add__(self, other: Amount | int) -> Amount:
        if other == 0:
            return self
        added = other.terms if isinstance(other, Amount) else {(ONE, ONE): other}
        terms = dict(self.terms)
        for key, count in added.items():
            terms[key] = terms.get(key, 0) + count
        return Amount(terms)

    __radd__ = __add__

    def __mul__(self, other: Amount | int) -> Amount:
        if isinstance(other, int):
            if other == 1:
                return self
            return Amount({key: count * other for key, count in self.terms.items()})
        terms: dict[tuple[Length, Length], int] = {}
        for (h, w), count in self.terms.items():
            for (h2, w2), count2 in other.terms.items():
                if ONE not in (h, h2) or ONE not in (w, w2):
                    raise ValueError("the product of two heights")
                key = (h if h2 == ONE else h2, w if w2 == ONE else w2)
                terms[key] = terms.get(key, 0) + count * count2
        return Amount(terms)

    __rmul__ = __mul__

    def ordered(self, ranks: dict[tuple[Length, Length], int]) -> Amount:
        """Return the same sum with its terms in ascending order of their ranks, and others last."""
        if len(self.terms) < 2:
            return self
        return Amount(dict(sorted(self.terms.items(), key=lambda term: ranks.get(term[0], len(ranks)))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Amount) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def __str__(self) -> str:
        if self._text is None:
            self._text = format(self, "d")
        return self._text

    def __format__(self, spec: str) -> str:
        if len(self.terms) == 1:
            [(lengths, count)] = self.terms.items()
            return _term(*lengths, count, spec)
        shown = islice(self.terms.items(), MAX_SHOWN_TERMS)
        terms = [_term(*lengths, count, spec) for lengths, count in shown]
        if more := len(self.terms) - len(terms):
            terms.append(f"... ({more:,} more terms)")
        return " + ".join(terms) or "0"

    def __repr__(self) -> str:
        return f"Amount({self})"


class Greatest(Amount):
    """The maximum of several numbers of features, each at least 1.

    Raises:
        LengthsLimit: There are too many of them.
    """

    __slots__ = ("amounts",)

    def __init__(self, *amounts: Amount) -> None:
        super().__init__({})
        inner = (amount.amounts if isinstance(amount, Greatest) else (amount,) for amount in amounts)
        self.amounts = frozenset(chain.from_iterable(inner))
        if len(self.amounts) > MAX_AMOUNTS:
            raise LengthsLimit

    def ordered(self, ranks: dict[tuple[Length, Length], int]) -> Amount:
        return self

    def __call__(self, height: int, width: int) -> int:
        return max(amount(height, width) for amount in self.amounts)

    def __add__(self, other: Amount | int) -> Amount:
        return Greatest(*(amount + other for amount in self.amounts))

    __radd__ = __add__

    def __mul__(self, other: Amount | int) -> Amount:
        return Greatest(*(amount * other for amount in self.amounts))

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Greatest) and self.amounts == other.amounts

    def __hash__(self) -> int:
        return hash(self.amounts)

    def __format__(self, spec: str) -> str:
        return f"max({', '.join(sorted(format(amount, spec) for amount in self.amounts))})"


@lru_cache(1024)
def _term(height: Length, width: Length, number: int, spec: str) -> str:
    factors = [length.text(letter) for length, letter in ((height, "H"), (width, "W")) if length != ONE]
    count = format(number, spec)
    if len(factors) == 1 and count == "1":
        return factors[0]
    closed = [f"({factor})" if " " in factor or "/" in factor else factor for factor in factors]
    return "*".join([*([count] if count != "1" or not closed else []), *closed])


def greatest(one: Amount | int, other: Amount | int) -> Amount | int:
    """Return the maximum of two heights, widths or numbers of features that are at least 1."""
    if one == other or other == 1:
        return one
    if one == 1:
        return other
    if isinstance(one, int) and isinstance(other, int):
        return max(one, other)
    for axis, amount in ((0, Amount.height), (1, Amount.width)):
        lengths = [_length(size, axis) for size in (one, other)]
        if lengths[0] is not None and lengths[1] is not None:
            return amount(lengths[0].greatest(lengths[1]))
    if isinstance(one, Amount) and isinstance(other, Amount):
        return Greatest(one, other)
    return one if isinstance(one, int) else other  # the amount equals the number, or is 1


def _length(size: Amount | int, axis: int) -> Length | None:
    """Return the height (0) or width (1) that an amount consists of, if it is only that."""
    if isinstance(size, int):
        return Length.of(1, 0, (size,))
    if isinstance(size, Greatest):
        return None
    ((lengths, count), *more) = size.terms.items()
    return lengths[axis] if not more and count == 1 and lengths[1 - axis] == ONE and lengths[axis] != ONE else None


SymbolicShape = tuple[Amount | int, ...]
"""`(C, H, W)` or `(F,)`, with sizes as functions of the image size."""


def text(shape: SymbolicShape) -> str:
    """Render a shape as `[N, 64, (H + 1)//2, (W + 1)//2]`."""
    return "[" + ", ".join(["N", *(str(size) for size in shape)]) + "]"
