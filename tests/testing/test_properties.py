"""What holds for every spec: drawn by `cnnspec.testing`, with torch on the meta device as the oracle."""

from __future__ import annotations

import pytest
from hypothesis import Phase, example, given, seed, settings
from hypothesis import strategies as st

from cnnspec import ir
from cnnspec.api import check, format, load, loads
from cnnspec.checker.environment import Evaluator
from cnnspec.checker.memo import Recorder
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import CnnspecError, Reporter, Source, render
from cnnspec.ops import JOINS, OPS
from cnnspec.syntax import ast, parse
from cnnspec.syntax.formatter import format_file
from cnnspec.testing import FaultySpec, faulty_specs, sizes, sizes_outside, specs, trees
from cnnspec.testing.operator_settings import SETTINGS
from cnnspec.testing.oracle import compare_with_torch

QUICK = settings(max_examples=60, deadline=None)
LONG = settings(max_examples=3_000, deadline=None)


def hold_against_oracle(text: str) -> None:
    """A spec that checks builds, and torch agrees with every shape and every count, for batches of 1, 2 and 3."""
    graph = loads(text)
    paths = [node.path for node in graph if node.op.owns_module]
    assert len(set(paths)) == len(paths)
    compare_with_torch(graph, 3 * [graph.input_shape[1:]])


@given(specs())
@QUICK
def test_torch_agrees(text: str) -> None:
    hold_against_oracle(text)


@pytest.mark.slow
@given(specs())
@LONG
def test_torch_agrees_on_very_many(text: str) -> None:
    hold_against_oracle(text)


@given(trees())
@QUICK
def test_what_is_drawn_checks_and_is_printed_faithfully(drawn: ast.File) -> None:
    text = format_file(drawn)
    done = compile_source(Source("drawn", text))
    faults = [diagnostic for diagnostic in done.diagnostics if diagnostic.severity == "error"]  # lints may be
    assert faults == [], "\n\n".join([text, *map(render, faults)])
    assert done.tree == drawn
    assert format(text) == text
    assert done.model is not None
    assert ir.Model.model_validate_json(done.model.model_dump_json()) == done.model


def asks(evaluator: Evaluator, expr: ir.Expr) -> None:
    evaluator.asked += 1


@given(specs())
@example(
    """input 3x32x32
classes 10
block dense(growth) {
    concat { in; { bn | conv 3x3 growth name="grow" | relu } }
}
block asks(growth) {
    dense growth when in.c < 16
    dense growth name="from{in.c}"
}
block halves() {
    dense 2 | maxpool 2x2 stride=2
    inner: asks 3
}
stage dense repeat=3 4 name="d{n}"
asks x3 5
halves x3
{ in }
global_avgpool | flatten | linear classes
"""
)
@QUICK
def test_calls_that_are_alike_are_written_out_alike(text: str) -> None:
    graph = loads(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "again", lambda *_: None)
        patch.setattr(Evaluator, "charge", asks)  # no operator is taken from an earlier call
        each = loads(text)
    assert graph == each
    assert list(graph.scopes.items()) == list(each.scopes.items())
    assert list(graph.ends.items()) == list(each.ends.items())


def test_every_operator_is_drawn() -> None:
    assert {name for name, op in OPS.items() if any(p.required for p in op.parameters.values())} <= set(SETTINGS)
    missing = {*OPS, *JOINS}

    for round in range(12):  # examples of one round resemble one another, those of another seed do not

        @seed(round)
        @given(specs())
        @settings(max_examples=150, deadline=None, database=None, phases=[Phase.generate])
        def draw(text: str) -> None:
            missing.difference_update(node.op.name for node in loads(text))

        draw()
        if not missing:
            break
    assert not missing


@given(faulty_specs())
@settings(QUICK, max_examples=100)
def test_a_fault_is_found_at_its_place(faulty: FaultySpec) -> None:
    errors = [diagnostic for diagnostic in check(faulty.text) if diagnostic.severity == "error"]
    assert errors, faulty
    assert faulty.holds(errors[0].line), "\n\n".join([faulty.text, *map(render, errors)])


@given(specs(), st.data())
@settings(QUICK, max_examples=30)
def test_sizes_are_drawn_in_and_out_of_the_set(text: str, data: st.DataObject) -> None:
    graph = loads(text)
    assert graph.accepts(*data.draw(sizes(graph)))
    try:
        outside = data.draw(sizes_outside(graph))
    except ValueError:  # it takes all
        assert all(graph.accepts(height, width) for height in range(1, 97) for width in range(1, 97))
    else:
        assert not graph.accepts(*outside)


@given(st.data())
@settings(max_examples=2)
def test_there_may_be_no_size_outside(data: st.DataObject) -> None:
    with pytest.raises(ValueError, match="`resnet20` takes every size up to 96x96: there is none outside"):
        data.draw(sizes_outside(load("resnet20")))


@pytest.mark.filterwarnings("error")
def test_graphs_are_shown_in_a_line() -> None:
    graph = load("densenet201")
    assert len(repr(sizes(graph))) < 200
    assert repr(graph) == "Graph('densenet201', input=(3, 224, 224), output=(1000,), nodes=707)"


# --- texts that mean nothing ---------------------------------------------------------------------

WORDS = """network input classes param block default init expect train use extends aux let require when repeat as each if
then else in nothing or and not true false once add mul concat stem stage head conv bn relu linear flatten resnet_block
conv_bn op int x3 3x3 3x32x32 16 0.5 1e-3 40M 1% name: @stem in.c in.q min( ceil( " # ; | { } ( ) [ ] , = == <= .. + - * / // %
\n""".split(" ")


def hold_still(text: str) -> None:
    """Nothing in a text makes the check raise, and each of its faults can be shown."""
    for diagnostic in check(text):
        assert render(diagnostic).startswith(f"{diagnostic.severity}[{diagnostic.code}]: ")
    parsed = parse(Source("text", Source.plain(text)), Reporter())
    try:
        assert parse(Source("text", format(text)), Reporter()) == parsed
    except CnnspecError:
        assert parsed is None or parsed.broken


ANY_TEXT = st.one_of(
    st.text(max_size=200),
    st.binary(max_size=200).map(lambda data: data.decode("latin-1")),
    st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join).map("input 3x8x8\n{}".format),
)


@given(ANY_TEXT)
@example("A|stem A")  # a fault that the tree itself does not show
@example("default\nfalse)")
@example("init conv\nfalse)")
@example("train { augment hflip |\nfalse)\n}")
@example("input 3x8x8\nparam bn = relu\ndefault bn eps=0.1\nbn")  # the default of what the name does not mean here
@settings(max_examples=300, deadline=None)
def test_no_text_makes_the_check_raise(text: str) -> None:
    hold_still(text)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A spec that checks, with some of its characters or words taken out, doubled, or replaced."""
    text = draw(specs())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.integers(0, 8)))
        text = text[:at] + draw(st.sampled_from(["", text[at:end] * 2, *WORDS])) + text[end:]
    return text


@given(damaged())
@settings(max_examples=100, deadline=None)
def test_no_damaged_spec_makes_the_check_raise(text: str) -> None:
    hold_still(text)


@pytest.mark.slow
@given(st.one_of(damaged(), ANY_TEXT))
@settings(max_examples=10_000, deadline=None)
def test_none_of_very_many_texts_makes_the_check_raise(text: str) -> None:
    hold_still(text)
