"""Random choices for the spec generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

RandInt = Callable[[int, int], int]
"""Draw an integer between two others, both included.

This is either a Hypothesis strategy, so that examples shrink, or `random.Random(seed).randint`, which is fast and
uniform.
"""


class Rng:
    """Random choices. Hypothesis shrinks towards the first option of each."""

    def __init__(self, randint: RandInt) -> None:
        self.randint = randint

    def choice(self, options: Sequence[T]) -> T:
        return options[self.randint(0, len(options) - 1)]

    def boolean(self) -> bool:
        return bool(self.randint(0, 1))

    def rarely(self, one_in: int = 3) -> bool:
        return self.randint(0, one_in - 1) == one_in - 1

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """Draw up to `count` different options."""
        left = list(options)
        return [left.pop(self.randint(0, len(left) - 1)) for _ in range(min(count, len(left)))]

    def subset(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Draw a subset of optional settings."""
        return {name: value for name, value in settings.items() if self.rarely()}

    def size(self, low: int, high: int) -> tuple[int, int]:
        first = self.randint(low, high)
        return (first, self.randint(low, high) if self.rarely() else first)
