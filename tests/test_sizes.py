"""Symbolic sizes: their normal form, the set of sizes that a network takes, and the words for it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnspec
from cnnspec import ir
from cnnspec.compiler import loads
from cnnspec.counts import count
from cnnspec.diagnostics import CnnspecError
from cnnspec.shapes import AxisRule, Fixed, Shift, Spread, Times, Window
from cnnspec.symbolic import IMAGE_LENGTH, ONE, Amount, Length, PeriodLimit
from cnnspec.testing import specs

SIZES = range(1, 61)

windows = st.builds(
    lambda kernel, stride, pad, dilation, ceil: Window(kernel, stride, min(pad, kernel // 2) if ceil else pad, dilation, ceil),
    st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 2), st.booleans(),
)  # fmt: skip
rules: st.SearchStrategy[AxisRule] = st.one_of(
    windows,
    windows,
    st.builds(Spread, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(0, 1)),
    st.builds(Times, st.integers(1, 3)),
    st.builds(Fixed, st.integers(1, 4)),
    st.builds(Shift, st.integers(-3, 3), st.integers(-3, 3)),
)


@given(rules)
def test_a_rule_keeps_its_law(rule: AxisRule) -> None:
    period, step = rule.rate
    for size in range(-30, 30):
        assert rule(size + period) == rule(size) + step
        assert rule(size + 1) >= rule(size)
    assert rule(rule.least) >= 1
    if not isinstance(rule, Shift):  # a crop needs more than that a place is left: what is cropped must be there
        assert all(rule(size) < 1 for size in range(1, rule.least))
    for size in range(1, 20):
        assert eval(rule.text("n"), {"n": size, "min": min}) == rule(size)


def compose(chain: list[AxisRule]) -> Length:
    length = IMAGE_LENGTH
    for rule in chain:
        length = length.through(rule)
    return length


def stepwise(chain: list[AxisRule], size: int) -> int:
    for rule in chain:
        size = rule(size)
    return size


chains = st.lists(rules, max_size=4)


@given(chains)
def test_a_length_is_its_rules_one_after_the_other(chain: list[AxisRule]) -> None:
    length = compose(chain)
    assert [length(n) for n in SIZES] == [stepwise(chain, n) for n in SIZES]
    text = length.text("n")
    assert [eval(text, {"n": n, "min": min, "max": max}) for n in SIZES] == [length(n) for n in SIZES]


@given(chains, chains)
def test_the_normal_form_is_unique(one: list[AxisRule], other: list[AxisRule]) -> None:
    a, b = compose(one), compose(other)
    far = range(1, 2 * max(a.period, b.period) + 2)
    same = all(a(n) == b(n) for n in far) and a.step * b.period == b.step * a.period
    assert (a == b) == same
    assert hash(a) == hash(b) or not same


@given(chains, chains, chains)
def test_the_greater_of_two_lengths(one: list[AxisRule], other: list[AxisRule], more: list[AxisRule]) -> None:
    a, b = compose(one), compose(other)
    c = a.greatest(b)
    far = [n for n in range(1, 200) if a(n) >= 1 and b(n) >= 1]  # no map is smaller
    assert [c(n) for n in far] == [max(a(n), b(n)) for n in far]
    d = c
    for rule in more:
        d = d.through(rule)
    assert [d(n) for n in far] == [stepwise(more, c(n)) for n in far]


@given(chains, st.integers(-3, 40))
def test_the_least_image(chain: list[AxisRule], wanted: int) -> None:
    length = compose(chain)
    found = length.least(wanted)
    first = next((n for n in range(1, 20_000) if length(n) >= wanted), None)
    assert found == first


def test_amounts_add_and_multiply() -> None:
    half = IMAGE_LENGTH.through(Window(2, 2))
    height, width = Amount.height(half), Amount.width(half)
    amount = 3 * (64 * height * width) + 10
    assert str(amount) == "192*(H//2)*(W//2) + 10"
    assert isinstance(amount, Amount)
    assert amount(8, 6) == 192 * 4 * 3 + 10
    assert amount + -10 + -192 * height * width == Amount({})
    assert str(Amount({})) == "0"
    assert Amount.height(ONE) == 1
    with pytest.raises(ValueError, match="product of two heights"):
        _ = height * height


def test_strides_beyond_the_limit() -> None:
    with pytest.raises(PeriodLimit):
        compose([Window(1, 100)] * 3)
    steep = IMAGE_LENGTH.through(Times(5_000))
    with pytest.raises(PeriodLimit):
        compose([Window(1, 4093)]).greatest(compose([Window(1, 4091)]))
    with pytest.raises(PeriodLimit):
        steep.through(Shift(100_000_000, 0)).greatest(IMAGE_LENGTH)


# --- sets of sizes -------------------------------------------------------------------------------


def takes(graph: ir.Graph, height: int, width: int) -> bool:
    """Whether every operator's own rule holds at a size."""
    try:
        return graph.at(height, width).input_shape[1:] == (height, width)
    except CnnspecError as error:
        return error.diagnostics[0].code != "E0313"


def pairs(graph: ir.Graph) -> list[tuple[int, int]]:
    _, h, w = graph.input_shape
    return [
        *((n, w) for n in range(1, 41)),
        *((h, n) for n in range(1, 41)),
        *itertools.product((1, 2, 3, 7, 16), repeat=2),
    ]


@given(specs())
@settings(max_examples=60, deadline=None)
def test_the_set_is_that_of_the_rules(text: str) -> None:
    graph = loads(text)
    ranges = graph.sizes.rectangles
    for height, width in pairs(graph):
        holds = takes(graph, height, width)
        assert graph.accepts(height, width) == holds, f"{height}x{width}\n{text}"
        if ranges is not None:
            assert any(height in high and width in wide for high, wide in ranges) == holds, f"{height}x{width}\n{text}"
        if holds:
            there = graph.at(height, width)
            for i, node in enumerate(there.nodes):
                given = [
                    size(height, width) if isinstance(size, Amount) else size
                    for size in graph.sizes.shape(i, node.shape[0])
                ]
                assert tuple(given) == node.shape


WORDS = {
    "3x32x32 conv 3x3 8 | global_avgpool | flatten | linear 10": "any HxW",
    "3x32x32 conv 7x7 8 pad=0 | global_avgpool": "any HxW from 7x7 up",
    "3x32x32 conv 5x3 8 pad=0 | global_avgpool": "H from 5 up, W from 3 up",
    "3x32x32 conv 32x32 8 pad=0 | flatten | linear 10": "only 32x32: `2` follows a flattened map",
    "3x32x32 conv 3x3 8 | maxpool 2x2 | flatten | linear 10": (
        "only H and W from 32 to 33 (or 8 more ranges with as many features): `3` follows a flattened map"
    ),
    "3x32x32 maxpool 2x2 | in_norm": "H from 4 up, W from 2 up; or H from 2 up, W from 4 up",
    "3x32x32 concat { in; maxpool 2x2 | upsample 2 }": "H and W multiples of 2: the branches of `concat` must agree",
    "3x32x32 concat { in; maxpool 4x4 | upsample 4 } | conv 3x3 8 pad=0 dilation=4": (
        "H and W multiples of 4 from 12 up: the branches of `concat` must agree"
    ),
    "3x31x31 add { conv 3x3 3 stride=2; maxpool 2x2 | pad [0, 1, 0, 1] }": (
        "H and W 2*k + 1 from 3 up: the branches of `add` must agree"
    ),
    "3x33x33 concat { maxpool 3x3; maxpool 2x2 stride=3 }": (
        "H and W where the rest of the division by 3 is 0, 1, from 3 up: the branches of `concat` must agree"
    ),
    "3x8x8 add { conv 3x3 3 stride=2; adaptive_avgpool 4 }": (
        "only H and W from 7 to 8: the branches of `add` must agree"
    ),
    "3x8x8 flatten | gn 2 affine=false": "8x8, and others as `accepts` tells",
}


@pytest.mark.parametrize("spec", WORDS)
def test_words(spec: str) -> None:
    image, _, pipeline = spec.partition(" ")
    assert loads(f"input {image}\n{pipeline}\n").sizes.words() == WORDS[spec]


def test_a_unet_takes_multiples() -> None:
    text = """input 3x64x64
e1: conv 3x3 8 | relu
e2: maxpool 2x2 | conv 3x3 16 | relu
e3: maxpool 2x2 | conv 3x3 32 | relu
maxpool 2x2 | conv 3x3 64 | relu
concat { upsample 2; @e3 } | conv 3x3 32 | relu
concat { upsample 2; @e2 } | conv 3x3 16 | relu
concat { upsample 2; @e1 } | conv 3x3 8 | relu
conv 1x1 2
"""
    graph = loads(text)
    assert graph.sizes.words().startswith("H and W multiples of 8: ")
    assert graph.sizes.to_json()["ranges"] == [
        {axis: {"few": [], "from": 1, "period": 8, "residues": [0]} for axis in ("height", "width")}
    ]
    with pytest.raises(CnnspecError) as caught:
        graph.at(100, 64)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "E0313"
    assert "does not take images of 3x100x64" in diagnostic.message
    assert diagnostic.line == 6
    assert diagnostic.notes == ("it takes " + graph.sizes.words(),)
    assert diagnostic.help == "the nearest size is 3x104x64"


def test_auxiliary_heads_have_sizes_of_their_own() -> None:
    sizes = cnnspec.load("inception_v3").sizes
    assert sizes.words() == "any HxW from 299x299 up; in evaluation any HxW from 75x75 up"
    assert not sizes.accepts(75, 75)
    assert sizes.in_evaluation.accepts(75, 75)
    assert not sizes.in_evaluation.accepts(75, 74)
    assert sizes.to_json()["in_evaluation"]["ranges"][0]["height"]["from"] == 75


def test_the_weights_stay_at_another_size() -> None:
    graph = cnnspec.load("resnet20")
    there = graph.at(96, 40)
    assert there.input_shape == (3, 96, 40)
    assert [node.weights for node in there] == [node.weights for node in graph]
    assert there.parameter_count == 272_378
    assert there.macs == pytest.approx(graph.macs * 96 * 40 / 1024, rel=1e-3)
    with pytest.raises(CnnspecError, match="a size is at least 1"):
        graph.at(0, 32)
    fixed = loads("input 3x32x32\nflatten | fc\n".replace("fc", "linear 10"))
    with pytest.raises(CnnspecError, match="made for 3,072 features and would get 1,536"):
        fixed.at(16, 32)


def at(value: object, height: int, width: int) -> object:
    return value(height, width) if isinstance(value, Amount) else value


@given(specs())
@settings(max_examples=40, deadline=None)
def test_counts_are_functions_of_the_size(text: str) -> None:
    graph = loads(text)
    symbolic = graph.symbolic
    formulas = count(symbolic)
    for height, width in [graph.input_shape[1:], (17, 23), (40, 32), (8, 5)]:
        if not graph.accepts(height, width):
            continue
        there = graph.at(height, width)
        numbers = count(there)
        assert at(symbolic.macs, height, width) == there.macs
        assert [at(flops, height, width) for flops in formulas.flops] == numbers.flops
        assert [at(flops, height, width) for flops in formulas.backward_flops] == numbers.backward_flops
        assert [at(kept.image, height, width) for kept in formulas.kept] == [kept.image for kept in numbers.kept]
        assert at(formulas.training_flops, height, width) == numbers.training_flops
        assert at(formulas.kept_total.image, height, width) == numbers.kept_total.image


def test_a_formula() -> None:
    graph = loads("input 3x32x32\nconv 3x3 16 stride=2 | global_avgpool | flatten | linear 10\n").symbolic
    assert str(graph.macs) == "432*((H + 1)//2)*((W + 1)//2) + 160"
    assert str(cnnspec.load("resnet20").symbolic.macs).endswith(" + 640")


def test_strides_without_end_are_refused() -> None:
    with pytest.raises(CnnspecError, match="strides on the way here multiply to more than the limit of 4,096"):
        loads("input 3x32x32\nconv 1x1 8 stride=100 | conv 1x1 8 stride=100\n")
