"""The functions of expressions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from cnnspec.api import loads

VALUES = [0, 1, 2, 4, 9, 10**12, 0.0, 0.25, 1.0, 2.0, 4.0, 1e-6, Fraction(1), Fraction(1, 4), Fraction(9)]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_square_roots_are_those_of_math(value: int | float | Fraction) -> None:
    """A root is never negative; `sqrt(1.0)` was -1."""
    code = f"{value.numerator} / {value.denominator}" if isinstance(value, Fraction) else repr(value)
    for text in (code, f"1 * ({code})", f"({code}) / 1"):
        graph = loads(f"input 3x8x8\nscale init=sqrt({text})\n")
        assert graph.nodes[0].op.settings()["init"] == pytest.approx(math.sqrt(value), rel=1e-12, abs=0)
