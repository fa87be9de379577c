"""Hypothesis strategies for valid specs, specs with one error, and image sizes."""

from __future__ import annotations

from hypothesis import strategies as st

from cnnspec.ir import Graph
from cnnspec.syntax import ast
from cnnspec.syntax.formatter import format_file
from cnnspec.testing.draw import RandInt
from cnnspec.testing.faults import CODES, FaultySpec, draw_faulty
from cnnspec.testing.generator import SpecGenerator


def _randint(draw: st.DrawFn) -> RandInt:
    return lambda low, high: draw(st.integers(low, high))


@st.composite
def trees(draw: st.DrawFn) -> ast.File:
    """Generate syntax trees of valid specs. Their spans refer to no text."""
    return SpecGenerator(_randint(draw)).file()


def specs() -> st.SearchStrategy[str]:
    """Generate texts of valid specs, with at most a few hundred operators, small maps, and at least one layer."""
    return trees().map(format_file)


@st.composite
def faulty_specs(draw: st.DrawFn) -> FaultySpec:
    """Generate specs with exactly one error, together with its code and position."""
    return draw_faulty(_randint(draw), draw(st.sampled_from(CODES)))


@st.composite
def sizes(draw: st.DrawFn, graph: Graph, most: int = 96) -> tuple[int, int]:
    """Generate heights and widths that a network accepts, up to `most` or the declared size."""
    return draw(st.sampled_from(_near(draw, graph, most, inside=True) or [graph.input_shape[1:]]))


@st.composite
def sizes_outside(draw: st.DrawFn, graph: Graph, most: int = 96) -> tuple[int, int]:
    """Generate heights and widths that a network rejects, up to `most`.

    Raises:
        ValueError: The network accepts all of them.
    """
    side = range(1, most + 1)
    found = _near(draw, graph, most, inside=False) or [(h, w) for h in side for w in side if not graph.accepts(h, w)]
    if not found:
        raise ValueError(f"`{graph.name}` accepts every size up to {most}x{most}")
    return draw(st.sampled_from(found))


def _near(draw: st.DrawFn, graph: Graph, most: int, *, inside: bool) -> list[tuple[int, int]]:
    """Return sizes that are accepted or rejected: along each axis through the declared size, and a few pairs."""
    _, high, wide = graph.input_shape
    side = st.integers(1, max(most, 1))
    pairs = draw(st.lists(st.tuples(side, side), min_size=4, max_size=4))
    tried = [(high, wide), *((h, wide) for h in range(1, most + 1)), *((high, w) for w in range(1, most + 1)), *pairs]
    return [size for size in tried if graph.accepts(*size) == inside]
