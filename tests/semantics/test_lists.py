"""Lists as values: items, `len`, `sum`, parameters, and values from outside."""

from __future__ import annotations

import pytest

from cnnspec import CnnspecError, loads
from cnnspec.api import format
from cnnspec.rewrite.set_values import apply_values

NET = """\
input 3x16x16
param depths = [1, 2]
param rates = [0.5, 1]
param text = "n{i}"

block row(n: list, c = 8 * n[0]) {
    repeat len(n) as r { conv 3x3 c repeat=n[r] name="{r}.{i}" }
}

row depths
conv 3x3 8*rates[1]
expect depth = sum(depths) + 1
"""


@pytest.mark.parametrize("given", [[1, 2], [3], [2, 1, 4], "[2, 2, 2, 2]", [2.0, 1.0]])
def test_a_list_from_outside(given: list[int] | str) -> None:
    numbers = [2, 2, 2, 2] if isinstance(given, str) else given
    graph = loads(NET, depths=given)
    assert graph.depth == sum(numbers) + 1
    assert graph.nodes[0].shape[0] == 8 * numbers[0]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("depths", [1.5, 2], "`depths` must be a list of integers like `[100, 150]`, got [1.5, 2]"),
        ("depths", "relu", "`depths` must be a list of integers like `[100, 150]`, got relu"),
        ("depths", ["a"], "expected a list of finite numbers for `depths`"),
        ("depths", [float("nan")], "expected a list of finite numbers for `depths`"),
        ("depths", [10**30], "`depths` exceeds the limit"),
        ("depths", [], "the index 0 is out of range: `n` has 0 items"),
        ("rates", True, "`rates` must be a list of numbers"),
    ],
)
def test_a_wrong_value_from_outside(name: str, given: object, message: str) -> None:
    with pytest.raises(CnnspecError) as caught:
        loads(NET, **{name: given})
    assert message in caught.value.diagnostics[0].message


def test_it_is_formatted_and_written_back() -> None:
    assert format("let x = depths[ i+1 ]*2\nconv 3x3 c=w[i + 1]\n") == "let x = depths[i + 1] * 2\nconv 3x3 c=w[i+1]\n"
    assert "param depths = [2, 3]" in apply_values(NET, "net.cnn", {"depths": "[2, 3]"})


def test_sizes_have_a_height_and_a_width() -> None:
    graph = loads("input 3x16x16\nblock b(k: size) { conv k k[0]*k[1]; conv k[1] 4 }\nb 3x5\n")
    assert [node.weights["weight"] for node in graph] == [(15, 3, 3, 5), (4, 15, 5, 5)]
