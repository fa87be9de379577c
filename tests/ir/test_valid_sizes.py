"""Symbolic sizes: their normal form, the set of sizes that a network takes, and the words for it."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cnnspec
from cnnspec import ir
from cnnspec.analysis.cost import count
from cnnspec.api import loads
from cnnspec.diagnostics import CnnspecError
from cnnspec.ir.valid_sizes import Features
from cnnspec.limits import MAX_PERIOD
from cnnspec.ops import OPS
from cnnspec.shapes import AxisRule, Fixed, Shift, Spread, Times, Window, symbolic
from cnnspec.shapes.intervals import (
    EVERY,
    NEVER,
    AxisSet,
    TooMany,
    from_to,
    interval,
    limited_effort,
    meet,
    where_above,
    where_equal,
    where_is,
)
from cnnspec.shapes.symbolic import IMAGE_LENGTH, ONE, Amount, Greatest, Length, LengthsLimit, PeriodLimit, greatest
from cnnspec.testing import specs

SIZES = range(1, 61)

windows = st.builds(
    lambda kernel, stride, pad, dilation, ceil: Window(
        kernel, stride, min(pad, kernel // 2) if ceil else pad, dilation, ceil
    ),
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


def test_what_a_place_reads() -> None:
    # A kernel of 3 by stride 2: the two inputs add to places -1..1 and 1..3, of which 0..2 are there.
    assert [list(places) for places in Spread(3, 2, 1).reads(2)] == [[0], [0, 1], [1]]
    assert Times(MAX_PERIOD + 1).span(8) is None
    for rule in (Times(3), Window(1, 2), Spread(3, 3, 0)):  # the same in short, where no border is
        span = rule.span(8)
        assert span is not None
        for place, places in enumerate(rule.reads(8)):
            k, r = divmod(place, span.period)
            assert list(places) == list(range(span.step * k + span.low[r], span.step * k + span.high[r] + 1))
    upsample = OPS["upsample"](factor=(2, 2), mode="bilinear", align_corners=True)
    assert upsample.reads(0, 3, 5) == [[0], [0, 1], [1], [1, 2], [2]]  # at 0, 1/2, 1, 3/2, 2
    assert upsample.reads(0, 3, 1) == [[0]]


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
    "3x32x32 conv 7x7 8 pad=0 | global_avgpool": "any HxW of at least 7x7",
    "3x32x32 conv 5x3 8 pad=0 | global_avgpool": "H at least 5, W at least 3",
    "3x32x32 conv 32x32 8 pad=0 | flatten | linear 10": "only 32x32: `2` follows a flattened map",
    "3x32x32 conv 3x3 8 | maxpool 2x2 | flatten | linear 10": (
        "H and W from 32 to 33 and 8 other sizes or ranges of sizes"
        " with the same number of features: `3` follows a flattened map"
    ),
    "3x32x32 maxpool 2x2 | in_norm": "H at least 4, W at least 2; or H at least 2, W at least 4",
    "3x32x32 concat { in; maxpool 2x2 | upsample 2 }": "H and W multiples of 2: the branches of `concat` must match",
    "3x32x32 concat { in; maxpool 4x4 | upsample 4 } | conv 3x3 8 pad=0 dilation=4": (
        "H and W multiples of 4, at least 12: the branches of `concat` must match"
    ),
    "3x32x32 conv 3x3 8 stride=2 | pixel_unshuffle 4": (
        "H and W with remainder 0 or 7 modulo 8: `1` divides the height and width"
    ),
    "3x24x24 pixel_unshuffle 4 | flatten | linear 4": (
        "24x24 and 8 other sizes or ranges of sizes with the same number of features: `2` follows a flattened map"
    ),
    "3x32x32 pixel_unshuffle 2 | conv 5x5 8 pad=0": (
        "H and W multiples of 2, at least 10: `0` divides the height and width"
    ),
    "3x31x31 add { conv 3x3 3 stride=2; maxpool 2x2 | pad [0, 1, 0, 1] }": (
        "H and W 2*k + 1, at least 3: the branches of `add` must match"
    ),
    "3x33x33 concat { maxpool 3x3; maxpool 2x2 stride=3 }": (
        "H and W with remainder 0 or 1 modulo 3, at least 3: the branches of `concat` must match"
    ),
    "3x8x8 add { conv 3x3 3 stride=2; adaptive_avgpool 4 }": (
        "only H and W from 7 to 8: the branches of `add` must match"
    ),
    "3x224x224 concat { conv 3x3 8 | flatten; maxpool 2 | flatten; conv 3x3 4 stride=3 | flatten } | linear 4": (
        "only 224x224: `6` follows a flattened map"
    ),
    "3x8x8 flatten | gn 2 affine=false": "8x8 and possibly others; use `Graph.accepts` to check a size",
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
    assert "does not accept images of 3x100x64" in diagnostic.message
    assert diagnostic.line == 6
    assert diagnostic.notes == ("accepted sizes: " + graph.sizes.words(),)
    assert diagnostic.help == "use 3x104x64, the nearest accepted size"


def test_auxiliary_heads_have_sizes_of_their_own() -> None:
    sizes = cnnspec.load("inception_v3").sizes
    assert sizes.words() == "any HxW of at least 299x299; in evaluation any HxW of at least 75x75"
    assert not sizes.accepts(75, 75)
    assert sizes.in_evaluation.accepts(75, 75)
    assert not sizes.in_evaluation.accepts(75, 74)
    assert sizes.to_json()["in_evaluation"]["ranges"][0]["height"]["from"] == 75


def test_equal_sizes_of_training_and_evaluation_are_told_once() -> None:
    head = "aux early from @l0 { maxpool 2 | flatten | linear 3 }\n"
    text = f"input 1x8x8\nl0: conv 2x2 2 stride=3 pad=2\nflatten | linear 3\n{head}"
    sizes = loads(text).sizes
    assert sizes.demands != sizes.in_evaluation.demands
    assert "in evaluation" not in sizes.words()
    assert "in_evaluation" not in sizes.to_json()


def test_the_weights_stay_at_another_size() -> None:
    graph = cnnspec.load("resnet20")
    there = graph.at(96, 40)
    assert there.input_shape == (3, 96, 40)
    assert [node.weights for node in there] == [node.weights for node in graph]
    assert there.parameter_count == 272_378
    assert there.macs == pytest.approx(graph.macs * 96 * 40 / 1024, rel=1e-3)
    with pytest.raises(CnnspecError, match="height and width must be at least 1"):
        graph.at(0, 32)
    fixed = loads("input 3x32x32\nflatten | fc\n".replace("fc", "linear 10"))
    with pytest.raises(CnnspecError, match="expects 3,072 features, got 1,536"):
        fixed.at(16, 32)


def at(value: object, height: int, width: int) -> object:
    return value(height, width) if isinstance(value, Amount) else value


@given(specs())
@example("input 1x2x2\nclasses 1\nrelu\nconv 2x2 2 stride=2 pad=tf_same\nflatten | linear 1\n")
@example("input 1x5x4\nclasses 1\nin_norm\nmaxpool 2x1 stride=2x3 pad=tf_same\nflatten | linear 1\n")
@example(
    "input 1x9x9\nclasses 2\nln\nmaxpool 2x2 pad=tf_same\nconv 3x3 1 pad=tf_same\nmaxpool 2x2 pad=tf_same\nmean c\n"
)
@settings(max_examples=40, deadline=None)
def test_counts_are_functions_of_the_size(text: str) -> None:
    graph = loads(text)
    symbolic = graph.symbolic
    try:
        formulas = count(symbolic)
    except PeriodLimit:  # the maximum of many sizes is too long to write
        return
    for height, width in [graph.input_shape[1:], (17, 23), (40, 32), (8, 5)]:
        if not graph.accepts(height, width):
            continue
        there = graph.at(height, width)
        numbers = count(there)
        assert at(symbolic.macs, height, width) == there.macs
        assert [at(flops, height, width) for flops in formulas.flops] == numbers.flops
        assert [at(flops, height, width) for flops in formulas.backward_flops] == numbers.backward_flops
        assert [at(kept.image, height, width) for kept in formulas.saved] == [kept.image for kept in numbers.saved]
        assert at(formulas.training_flops, height, width) == numbers.training_flops
        assert at(formulas.saved_total.image, height, width) == numbers.saved_total.image


def test_a_formula() -> None:
    graph = loads("input 3x32x32\nconv 3x3 16 stride=2 | global_avgpool | flatten | linear 10\n").symbolic
    assert str(graph.macs) == "432*((H + 1)//2)*((W + 1)//2) + 160"
    assert str(cnnspec.load("resnet20").symbolic.macs).endswith(" + 640")


def test_strides_without_end_are_refused() -> None:
    with pytest.raises(CnnspecError, match="product of all strides up to this layer exceeds the limit of 4,096"):
        loads("input 3x32x32\nconv 1x1 8 stride=100 | conv 1x1 8 stride=100\n")


# --- what chance seldom draws --------------------------------------------------------------------


def test_a_set_in_words() -> None:
    assert AxisSet((2, 3, 9), 10, 1, ()).words() == "from 2 to 3 or 9"
    assert AxisSet(tuple(range(1, 20, 2)), 20, 1, ()).words() == "1 or 3 or 5 or 7 or 9 or 5 more"
    assert AxisSet((3,), 8, 4, (0,)).words() == "3, or multiples of 4, at least 8"
    assert AxisSet((3,), 8, 4, (0,)).to_json() == {"few": [3], "from": 8, "period": 4, "residues": [0]}
    assert AxisSet((3,), 4, 1, ()).to_json() == {"few": [3]}


AREA = Amount({(IMAGE_LENGTH, IMAGE_LENGTH): 1})


def test_sets_that_are_too_intricate() -> None:
    for make in (
        lambda: AxisSet.of(bool, 1, 1 << 20),
        lambda: AxisSet.of(bool, 1 << 20, 1),
        lambda: where_equal(compose([Window(1, 4093)]), compose([Window(1, 4091)])),
        lambda: meet([(EVERY, EVERY)] * 200, [(EVERY, EVERY)] * 200),
        lambda: interval(lambda n: n // 10_000_000, 3, 1, True),
        lambda: Features(0, AREA, 10**12).rectangles(),
        lambda: Features(0, AREA + Amount.height(IMAGE_LENGTH), 10**9).rectangles(),
    ):
        with limited_effort(), pytest.raises(TooMany):
            make()
    graph = loads("input 3x1x1\nconcat { maxpool 1x1 stride=4093; maxpool 1x1 stride=4091 }\n")
    assert (
        graph.sizes.words()
        == "1x1 and possibly others; use `Graph.accepts` to check a size: the branches of `concat` must match"
    )
    assert graph.sizes.to_json()["ranges"] is None
    assert graph.accepts(4091, 1)
    assert not graph.accepts(4092, 1)


def test_where_a_length_has_a_value() -> None:
    assert where_is(IMAGE_LENGTH.through(Times(2)), 5) == NEVER
    assert where_is(compose([Window(1, 3)]), 2) == AxisSet((4, 5, 6), 7, 1, ())
    assert where_is(compose([Fixed(2)]), 3) == NEVER
    assert where_is(compose([Fixed(2)]), 2) == EVERY
    assert where_above(compose([Fixed(2)]), 3) == NEVER
    assert from_to(3, None) == AxisSet((), 3)
    assert interval(lambda _: 7, 7, 1, False) == EVERY
    assert interval(lambda _: 7, 8, 1, False) == NEVER
    assert not NEVER
    assert EVERY


def test_a_large_image_is_answered_at_once() -> None:
    sizes = loads("input 3x1024x1024\nflatten | linear 4\n").sizes
    assert (
        sizes.words() == "1024x1024 and 20 other sizes or ranges of sizes with the same number of features: "
        "`1` follows a flattened map"
    )
    assert Features(0, 2 * AREA, 7).rectangles() == []
    both = loads("input 3x64x64\nconcat { flatten; maxpool 2x2 | flatten } | linear 4\n").sizes
    assert both.rectangles is not None
    for height, width in itertools.product((1, 2, 3, 16, 31, 32, 33, 64, 65, 128, 256), repeat=2):
        member = any(height in high and width in wide for high, wide in both.rectangles)
        assert both.accepts(height, width) == member


def test_flat_features_that_depend_on_one_side() -> None:
    tall = loads("input 3x8x8\nadaptive_avgpool 2x2 | upsample 1x1 | flatten | linear 4\n")
    assert tall.sizes.words() == "any HxW"
    high = loads("input 3x8x8\nmaxpool 8x1 stride=8x1 | flatten | linear 4\n").sizes
    assert (
        high.words() == "H from 8 to 15, W 8 and 3 other sizes or ranges of sizes"
        " with the same number of features: `2` follows a flattened map"
    )


@pytest.mark.parametrize(
    ("body", "taken", "refused"),
    [
        ("add { flatten; maxpool 2x2 | upsample 2 | flatten }", (6, 4), (5, 4)),
        ("mul { flatten; global_avgpool | conv 1x1 1 | flatten }", (5, 7), (0, 4)),
        ("mul { flatten; maxpool 2x2 | upsample 2 | flatten }", (6, 4), (5, 4)),
        ("flatten | slice 0..100 | linear 4", (6, 6), (5, 6)),
        ("concat { flatten; global_avgpool | flatten } | linear 4", (8, 8), (7, 8)),
        ("flatten | ln affine=false", (4, 16), (4, 15)),
        ("flatten | channel_conv 3 | shift", (4, 16), (4, 15)),
        ("flatten | softmax parts=2 | scale", (4, 16), (4, 15)),
        ("flatten | relu", (3, 3), (0, 3)),
        ("flatten | prelu num_parameters=192", (4, 16), (4, 15)),
    ],
)
def test_flat_features(body: str, taken: tuple[int, int], refused: tuple[int, int]) -> None:
    graph = loads(f"input 3x8x8\n{body}\n")
    assert graph.accepts(*taken)
    assert takes(graph, *taken)
    assert not graph.accepts(*refused)
    assert not takes(graph, *refused)


def test_branches_that_agree_along_one_axis_alone() -> None:
    graph = loads("input 3x8x8\nadd { conv 3x3 8 stride=1x2; maxpool 1x2 | conv 1x1 8 }\n")
    assert [(height, width) for height in (4, 5) for width in (6, 7) if graph.accepts(height, width)] == [
        (4, 6),
        (5, 6),
    ]


def test_equal_flat_features_agree_at_every_size() -> None:
    graph = loads("input 3x8x8\nadd { flatten; flatten | relu }\n")
    assert graph.accepts(5, 9)
    assert graph.at(5, 9).output_shape == (135,)


def test_maps_that_are_multiplied() -> None:
    graph = loads("input 3x8x8\n"
        "mul { maxpool 4x4 | conv 1x1 3; maxpool 4x4 | conv 3x3 3 stride=2 pad=1; in | maxpool 4x4 }\n"
                  .replace("3x8x8", "3x4x4"))  # fmt: skip
    for height, width in itertools.product(range(1, 20), repeat=2):
        assert graph.accepts(height, width) == takes(graph, height, width)
        if graph.accepts(height, width):
            shape = [at(size, height, width) for size in graph.symbolic.output_shape]
            assert tuple(shape) == graph.at(height, width).output_shape


@pytest.mark.parametrize(
    ("body", "size", "nearest"),
    [
        ("flatten | linear 4", (500, 500), (8, 8)),
        ("flatten | linear 4", (3, 19), (4, 16)),
        ("conv 3x3 4 | pad 47 | conv 101x101 4 pad=0", (1, 500), (7, 500)),
        ("concat { in; maxpool 4x4 | upsample 4 }", (1, 1001), (4, 1000)),
        ("concat { in; maxpool 4x4 | upsample 4 }", (6, 7), (8, 8)),
        ("maxpool 2x2 | in_norm", (1, 1), (4, 2)),
        ("flatten | gn 2 affine=false", (7, 7), (8, 7)),
        ("flatten | gn 64 affine=false", (7, 1), (8, 8)),
    ],
)
def test_the_nearest_size(body: str, size: tuple[int, int], nearest: tuple[int, int]) -> None:
    sizes = loads(f"input 3x8x8\n{body}\n").sizes
    assert sizes.nearest(*size) == nearest
    assert sizes.accepts(*nearest)


def test_sets_are_shown_in_a_line() -> None:
    assert repr(loads("input 3x8x8\nconv 3x3 4 pad=0\n").sizes) == "Sizes(declared=(8, 8), demands=2)"


def test_the_help_names_a_size_that_is_taken() -> None:
    for text, help in (
        ("input 3x128x128\nconv 101x101 4 pad=0\n", "use 3x101x101, the nearest accepted size"),
        ("input 2x67x67\nflatten | gn 4489 affine=false\n", "use 2x67x67, which it accepts"),
    ):
        with pytest.raises(CnnspecError) as caught:
            loads(text).at(1, 1)
        assert caught.value.diagnostics[0].help == help


@pytest.mark.parametrize(
    "body",
    [
        "concat { conv 3x3 8 | flatten; maxpool 2 | flatten; conv 3x3 4 stride=3 | flatten } | linear 4",
        "concat { maxpool 2x3 | flatten; adaptive_avgpool 2x2 | flatten; maxpool 3x2 | flatten } | linear 4",
        "concat { maxpool 2x2 | flatten; upsample 1x2 | maxpool 3x3 | flatten } | linear 4",
        "concat { maxpool 4x1 | flatten; maxpool 8x1 stride=8x1 | conv 1x1 1 | flatten } | linear 4",
    ],
)
@pytest.mark.parametrize("image", ["3x8x9", "3x13x12", "3x24x24"])
def test_sums_of_maps_are_written_out(image: str, body: str) -> None:
    sizes = loads(f"input {image}\n{body}\n").sizes
    assert sizes.rectangles is not None
    for height, width in itertools.product(range(1, 80), repeat=2):
        member = any(height in high and width in wide for high, wide in sizes.rectangles)
        assert sizes.accepts(height, width) == member, (height, width)


def test_lengths_and_amounts_as_values() -> None:
    length = compose([Window(3, 2), Times(2)])
    assert pickle.loads(pickle.dumps(length)) == length
    assert repr(length) == "Length(2*((n - 1)//2))"
    assert repr(Amount.height(length)) == "Amount(2*((H - 1)//2))"
    assert compose([Times(2), Window(1, 3), Times(3)]).text("H") == "3*((2*H + 2)//3)"
    assert compose([Window(2, 2), Times(2), Window(3, 3)]).text("H") == "(H + 2)//6 + H//6"
    assert compose([Window(3, 4), Times(9), Window(2, 5), Times(7), Shift(1, 0)]).text("W").count("W") == 1
    assert length != 3
    for cycle in ((1, 2, 2, 2), (0, 1, 1, 1)):
        text = Length.of(4, 2, cycle).text("n")
        assert text.count("//4") == 2
        assert [eval(text) for n in range(40)] == [n // 4 * 2 + cycle[n % 4] for n in range(40)]
    assert symbolic.text((64, height := Amount.height(length), 1)) == f"[N, 64, {height}, 1]"
    height = Amount.height(IMAGE_LENGTH)
    assert greatest(3, 2) == 3
    assert greatest(height, 1) == greatest(1, height) == height
    assert str(greatest(height, 4)) == "max(4, H)"
    flat = height * Amount.width(IMAGE_LENGTH)
    assert greatest(flat, 9) == greatest(9, flat) == 9  # where both can be multiplied it is 9, or 1
    larger = greatest(flat, 2 * height)
    assert isinstance(larger, Amount)
    assert str(flat + 3 * larger) == "max(4*H*W, 6*H + H*W)"
    assert [larger(5, n) for n in (1, 2, 3)] == [10, 10, 15]
    assert str(greatest(larger, 9 * flat)) == "max(2*H, 9*H*W, H*W)"
    assert larger == greatest(2 * height, flat)
    with pytest.raises(TooMany):
        Features(0, larger, 4).rectangles()
    with pytest.raises(LengthsLimit):
        _ = greatest(Greatest(*(n * height for n in range(1, 10))), Greatest(*(n * height for n in range(9, 18))))
    assert hash(larger) == hash(greatest(2 * height, flat))


def test_functions_are_forgotten_when_there_are_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic, "MAX_LENGTHS", 30)
    lengths = [compose([Times(n), Window(3, 2)]) for n in range(1, 12)]
    assert lengths == [compose([Times(n), Window(3, 2)]) for n in range(1, 12)]


def test_a_long_chain_survives_pickling() -> None:
    graph = loads("input 3x2000x2000\nrepeat 900 { conv 3x3 3 pad=0 }\n")
    sizes = pickle.loads(pickle.dumps(graph.sizes))
    assert sizes.words() == graph.sizes.words() == "any HxW of at least 1801x1801"
    assert str(copy.deepcopy(graph.sizes).shape(899, 3)[1]) == "H - 1800"


@pytest.mark.parametrize("period", [2, 9, 15])
def test_a_function_has_one_form_whatever_its_period(period: int) -> None:
    assert Length.of(period, period, tuple(range(period))) == IMAGE_LENGTH


# --- flat features -------------------------------------------------------------------------------

MAPS = (
    "",
    "maxpool 8 | ",
    "avgpool 4 | ",
    "maxpool 3 stride=2 | ",
    "global_avgpool | ",
    "conv 1 2 | ",
    "conv 1 2 stride=8 | ",
)
FEATURES = (
    "",
    " | relu",
    " | dropout 0.1",
    " | linear 5",
    " | slice 0..1",
    " | slice 0..4",
    " | slice 0..64",
    " | slice 2..7",
)


@st.composite
def flat_specs(draw: st.DrawFn) -> str:
    branch = st.builds("{}flatten{}{}".format, *map(st.sampled_from, (MAPS, FEATURES, FEATURES)))
    joined = st.builds(
        "{} {{ {} }}".format,
        st.sampled_from(("add", "mul", "concat")),
        st.lists(branch, min_size=2, max_size=3).map("; ".join),
    )
    more = draw(
        st.lists(
            st.builds(
                "x: in{}\nmul {{ {} }}\n".format,
                st.sampled_from(FEATURES),
                st.sampled_from(("@x; in", "in | slice 0..1; @x", "@x; linear 1", "relu; @x | slice 0..5")),
            ),
            max_size=1,
        )
    )
    end = ("", "linear 3", "relu")
    return f"input 1x8x8\n{draw(st.one_of(branch, joined))}\n{''.join(more)}{draw(st.sampled_from(end))}\n"


@given(flat_specs())
@settings(max_examples=300, deadline=None)
@example("input 1x8x8\npad [0,-7,0,0] | flatten\nmul {\nrelu\nin | slice 0..8\n}\n")
@example("input 1x8x8\nflatten | slice 0..64 | linear 3\n")
@example("input 1x8x8\nmul { maxpool 8 | flatten; avgpool 4 | flatten }\nlinear 2\n")
@example("input 1x8x8\nmul {\nmaxpool 8 | flatten\nflatten | slice 0..5\n}\nlinear 3\n")
@example("input 1x8x8\nmul { maxpool 8 | flatten ; avgpool 4 | flatten }\n")
@example(
    "input 1x8x8\n"
    "concat { mul { maxpool 8 | flatten; avgpool 4 | flatten }; flatten; mul { flatten; maxpool 8 | flatten } }\n"
)
@example("input 1x8x8\nmul { mul { maxpool 8 | flatten; avgpool 4 | flatten }; flatten }\nlinear 2\n")
def test_the_set_and_the_shapes_of_flat_features(text: str) -> None:
    try:
        graph = loads(text)
    except CnnspecError:
        return
    sizes = [(n, m) for n in (1, 2, 3, 4, 7, 8, 9, 16, 17, 24) for m in (1, 4, 5, 8, 16, 40, 64)]
    rectangles = graph.sizes.rectangles
    for height, width in sizes:
        accepted = graph.accepts(height, width)
        assert accepted == takes(graph, height, width), (height, width)
        if rectangles is not None:
            assert accepted == any(height in high and width in wide for high, wide in rectangles), (height, width)
        if accepted:
            known = graph.at(height, width)
            symbolic = graph.symbolic
            assert at(symbolic.macs, height, width) == known.macs
            for node, other in zip(known.nodes, symbolic.nodes, strict=True):
                assert tuple(at(size, height, width) for size in other.shape) == node.shape, (node, other)


@pytest.mark.parametrize(
    ("body", "words", "shape"),
    [
        ("conv 3x3 8 stride=2 | mean over=c", "any HxW", "[N, 1, (H + 1)//2, (W + 1)//2]"),
        ("conv 3x3 8 | max over=h", "any HxW", "[N, 8, 1, W]"),
        ("flatten | mean over=c", "any HxW", "[N, 1]"),
        ("conv 3x3 8 | mean over=w | flatten | linear 5", "H 32, W any: ", "[N, 5]"),
        ("mean over=h | max over=w | max over=c", "any HxW", "[N, 1, 1, 1]"),
    ],
)
def test_reductions_of_one_axis(body: str, words: str, shape: str) -> None:
    graph = loads(f"input 3x32x24\n{body}\n")
    assert graph.sizes.words().startswith(words)
    assert graph.symbolic_shape(graph.paths[-1]) == shape
    assert graph.accepts(32, 77)
    assert graph.accepts(31, 24) is ("linear" not in body)
