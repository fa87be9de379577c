"""Contradictions of a recipe."""

import pytest

from cnnspec import CnnspecError
from cnnspec.semantics.recipe_rules import nothing_left, refuse


def test_the_first_contradiction_is_raised() -> None:
    refuse(nothing_left("cifar10", 5_000, 50_000))
    with pytest.raises(CnnspecError, match="E0511"):
        refuse(nothing_left("cifar10", 50_000, 50_000))
