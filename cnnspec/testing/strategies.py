"""Hypothesis strategies: specs that check, specs with one fault, sizes of images."""

from __future__ import annotations

from hypothesis import strategies as st

from cnnspec.ir import Graph
from cnnspec.syntax import ast
from cnnspec.syntax.formatter import format_file
from cnnspec.testing.draw import Numbers
from cnnspec.testing.faults import CODES, FaultySpec, draw_faulty
from cnnspec.testing.generator import Author


def _numbers(draw: st.DrawFn) -> Numbers:
    return lambda low, high: draw(st.integers(low, high))


@st.composite
def trees(draw: st.DrawFn) -> ast.File:
    """Trees of specs that check; they were read from no text, so their spans lead nowhere."""
    return Author(_numbers(draw)).file()


def specs() -> st.SearchStrategy[str]:
    """Texts of specs that check: at most some hundred operators, small maps, at least one layer."""
    return trees().map(format_file)


@st.composite
def faulty_specs(draw: st.DrawFn) -> FaultySpec:
    """Specs that check but for one planted fault, each with its code and its place."""
    return draw_faulty(_numbers(draw), draw(st.sampled_from(CODES)))


@st.composite
def sizes(draw: st.DrawFn, graph: Graph, most: int = 96) -> tuple[int, int]:
    """Heights and widths of images that a network takes, up to `most` or to the size that it declares."""
    return draw(st.sampled_from(_near(draw, graph, most, inside=True) or [graph.input_shape[1:]]))


@st.composite
def sizes_outside(draw: st.DrawFn, graph: Graph, most: int = 96) -> tuple[int, int]:
    """Heights and widths of images that a network does not take, up to `most`.

    Raises:
        ValueError: It takes all of them.
    """
    side = range(1, most + 1)
    found = _near(draw, graph, most, inside=False) or [(h, w) for h in side for w in side if not graph.accepts(h, w)]
    if not found:
        raise ValueError(f"`{graph.name}` takes every size up to {most}x{most}: there is none outside")
    return draw(st.sampled_from(found))


def _near(draw: st.DrawFn, graph: Graph, most: int, *, inside: bool) -> list[tuple[int, int]]:
    """Sizes in or out of the set: along each axis beside the declared size, and a few pairs."""
    _, high, wide = graph.input_shape
    side = st.integers(1, max(most, 1))
    pairs = draw(st.lists(st.tuples(side, side), min_size=4, max_size=4))
    tried = [(high, wide), *((h, wide) for h in range(1, most + 1)), *((high, w) for w in range(1, most + 1)), *pairs]
    return [size for size in tried if graph.accepts(*size) == inside]
