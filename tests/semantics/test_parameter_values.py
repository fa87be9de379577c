"""Values for parameters from the command line and from Python."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from cnnspec.diagnostics import CnnspecError
from cnnspec.schema import OpName
from cnnspec.semantics.parameter_values import parameter_value


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (3, 3),
        (0.5, 0.5),
        (True, True),
        ((3, 5), (3, 5)),
        ("3", 3),
        ("3x5", (3, 5)),
        ("2 * 3 / 4", Fraction(3, 2)),
        ("true", True),
        ("relu", OpName("relu")),
        ("cosine", "cosine"),
    ],
)
def test_a_value_of_the_language(given: Any, value: Any) -> None:
    assert parameter_value("name", given) == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1\nrelu", "invalid value `name=1\nrelu`"),
        ("in.c", "invalid value `name=in.c`"),
        ("1 / 0", "invalid value `name=1 / 0`"),
        ([3, "a"], "expected a list of finite numbers for `name`"),
        ({3}, "unsupported type `set` for `name`"),
    ],
)
def test_no_value_of_the_language(given: Any, message: str) -> None:
    with pytest.raises(CnnspecError) as caught:
        parameter_value("name", given)
    assert [diagnostic.message for diagnostic in caught.value.diagnostics] == [message]
