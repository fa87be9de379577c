"""Analyses of very large networks: bounded effort, and the same results as the plain algorithms."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from itertools import product
from math import floor

import pytest
from harness.effort import bounded

from cnnspec import ir
from cnnspec.analysis import summary
from cnnspec.analysis.diff import compare
from cnnspec.analysis.receptive_field import fields, masks
from cnnspec.analysis.summary import summarize
from cnnspec.api import load, loads, resize
from cnnspec.diagnostics import CnnspecError
from cnnspec.limits import MAX_FORMULA, MAX_SHOWN_TERMS
from cnnspec.ops import OPS
from cnnspec.ops.layout import TAPS
from cnnspec.shapes import symbolic
from cnnspec.shapes.intervals import AxisSet
from cnnspec.shapes.rules import Spread


def spread_by_hand(rule: Spread, size: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(rule(size))]
    for q, k in product(range(size), range(rule.kernel)):
        place = q * rule.stride - rule.pad + rule.dilation * k
        if 0 <= place < len(found):
            found[place].append(q)
    return found


def test_transposed_windows_read_what_adds_to_them() -> None:
    count = 0
    for settings in product(range(1, 6), range(1, 6), range(3), range(1, 5), range(2)):
        rule = Spread(*settings)
        for size in range(1, 6):
            if rule(size) > 0:
                assert [list(places) for places in rule.reads(size)] == spread_by_hand(rule, size)
                count += 1
    assert count > 2_000


@pytest.mark.parametrize("mode", TAPS)
@pytest.mark.parametrize("corners", [False, True])
def test_resizing_reads_the_taps_around_an_exact_position(mode: str, corners: bool) -> None:
    if corners and mode == "nearest":
        return
    for x, y in product(range(1, 9), range(1, 12)):
        op = OPS["upsample"](size=(y, y), mode=mode, **({"align_corners": True} if corners else {}))
        rate = (Fraction(x - 1, y - 1) if y > 1 else Fraction(0)) if corners else Fraction(x, y)
        middle = Fraction(0) if corners or mode == "nearest" else (Fraction(x, y) - 1) / 2
        for place, read in enumerate(op.reads(0, x, y) or ()):
            at = max(rate * place + middle, Fraction(0)) if mode == "bilinear" else rate * place + middle
            taps = TAPS[mode] if at % 1 else (0,)
            assert set(read) == {min(max(floor(at) + tap, 0), x - 1) for tap in taps}


def test_a_lookup_agrees_with_membership() -> None:
    for some in (AxisSet((), 1), AxisSet((3, 7), 9, 4, (1, 2)), AxisSet((5,), 6, 1, ()), AxisSet((), 4, 3, (0,))):
        lookup = some.lookup()
        assert [n for n in range(1, 60) if lookup(n)] == [n for n in range(1, 60) if n in some]


@pytest.mark.parametrize("name", ["resnet20", "googlenet_cifar", "densenet_cifar", "vgg11_bn"])
def test_a_module_sums_up_its_operators(name: str) -> None:
    graph = load(name)
    rows = {row.path: row for row in summarize(graph, 3).rows}
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        parts = node.path.split(".") if node.path else []
        for end in range(1, len(parts) + 1):
            counts[".".join(parts[:end])] += node.parameter_count
    assert {path: row.parameters for path, row in rows.items()} == {path: counts[path] for path in rows}
    assert [*rows] == [*counts]
    general = summarize(graph, 3, symbolic=True)
    _, height, width = graph.input_shape
    for row in general.rows:
        if not isinstance(row.activations, int):
            assert row.activations(height, width) == rows[row.path].activations


HEAVY = {
    "upsamples": "input 3x64x64\nrepeat 300 { upsample 4096 | maxpool 4096 }\nconv 1x1 4",
    "bicubic": "input 3x1021x1021\nrepeat 900 { upsample size=1023x1023 mode=bicubic | upsample size=1021x1021 }",
    "kernels": "input 1x1024x1024\nrepeat 100 { conv_transpose 4095x4095 1 pad=2047 }",
    "one kernel": "input 1x1024x1\nconv 1000001x1 1 pad=500000x0",
    "joins": "input 1x1024x1024\nx: conv_transpose 1x1 1 stride=4096\nrepeat 1000 { add { in; conv 1x1 1; @x } }",
}


@pytest.mark.parametrize("name", HEAVY)
def test_receptive_fields_of_very_large_maps_take_bounded_time(name: str) -> None:
    graph = loads(HEAVY[name], allow_huge=True)
    with bounded(2):  # up to 21 s without limits
        assert len(fields(graph)) == len(graph.nodes)
        assert masks(graph) is None


def test_joins_of_one_scope_have_different_names_in_a_diff() -> None:
    graph = loads("input 3x8x8\n" + "add { in; in }\n" * 1_200)
    with bounded(2):
        assert compare(graph, graph).same
        found = compare(graph, loads("input 3x8x8\n" + "add { in; in }\n" * 1_199))
    assert [change.path for change in found.changes] == ["add#1200"]


# --- sizes as functions of the image size -------------------------------------------------------------


def too_complex(graph: ir.Graph) -> str:
    with pytest.raises(CnnspecError) as caught:
        summarize(graph, symbolic=True)
    (found,) = caught.value.diagnostics
    (size,) = re.findall(r"write `--at (\S+)` instead of `--symbolic`", found.help or "")
    assert found.code == "E0405"
    assert summarize(resize(graph, size)).rows
    return found.message


def test_a_symbolic_summary_has_limits() -> None:
    crops = loads("input 1x64x64\nconv 3x3 1 pad=4096\nrepeat 1001 { pad -1 }")
    assert "more than 1,000 functions" in too_complex(crops)
    flat = (
        "input 1x4096x4096\nx: relu\nflatten\nrepeat 60 as i { concat { in; @x | maxpool i+1 | flatten } }\nrelu x200"
    )
    assert "more than 10,000 terms" in too_complex(loads(flat))
    heads = (f"aux h{n} from @x {{ mul {{ flatten; maxpool {n} stride={n} ceil | flatten }} }}" for n in range(2, 8))
    maxima = loads("input 1x1x1\nx: relu\nflatten\n" + "\n".join(heads))
    assert summarize(maxima).total.parameters == 0
    assert "more than 16 formulas" in too_complex(maxima)


def test_the_maximum_of_two_sizes_is_in_a_symbolic_summary() -> None:
    graph = loads("input 1x1x1\nrelu\nmul { flatten; maxpool 3 stride=2 pad=1 | flatten }")
    total = summarize(graph, symbolic=True).total
    assert str(total.activations).startswith("max(")
    assert total.activations(1, 1) == summarize(graph).total.activations  # type: ignore[operator]


STRIDES = "maxpool 3 stride=2 pad=1 | upsample 3\n"
"""Twice in a row, the size has no closed form."""


def test_a_formula_may_be_as_long_as_the_network() -> None:
    graph = loads(f"input 1x64x64\n{STRIDES * 2}repeat 1500 {{ pad 1x0 }}")
    height = str(graph.symbolic.output_shape[1])  # without a recursion for each operator
    assert graph.symbolic.output_shape[1](64, 64) == graph.output_shape[1]
    assert len(height) < 20 + MAX_FORMULA


def test_a_long_part_of_a_formula_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic, "MAX_FORMULA", 30)
    graph = loads(f"input 1x77x77\npad 11\n{STRIDES * 6}")
    assert "..." in str(graph.symbolic.output_shape[1])
    assert len(str(graph.symbolic.output_shape[1])) <= 30


def test_a_long_sum_is_cut() -> None:
    layers = MAX_SHOWN_TERMS + 40
    graph = loads(f"input 1x512x512\nrepeat {layers} {{ conv 3x3 1 pad=0 }}")
    macs = str(summarize(graph, symbolic=True).total.macs)
    assert macs.endswith("... (40 more terms)")
    assert macs.count("(H") == MAX_SHOWN_TERMS


def test_terms_are_in_the_order_of_the_maps() -> None:
    total = summarize(load("vgg11_bn"), symbolic=True).total
    for figure in (total.macs, total.activations, total.saved):
        text = str(figure)
        places = [text.index(f"(H//{n})") for n in (2, 4, 8, 16)]
        assert places == sorted(places)
    assert summary.MAX_SIDE == 1024
