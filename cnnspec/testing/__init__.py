"""Hypothesis strategies for whole specs, to test what works on specs.

A spec is drawn as a tree and printed by the formatter. Every choice is made with the shape at hand, so
what is drawn is valid by construction: nothing is filtered. Values are written in every way the language
has: as literals, variables, sizes of `in`, arithmetic, conditions.

    import cnnspec
    from cnnspec.testing import specs
    from hypothesis import given

    @given(specs())
    def test_builds(text):
        cnnspec.build(cnnspec.loads(text))

The package `hypothesis` has to be installed.
"""

from __future__ import annotations

from hypothesis import strategies as st

from cnnspec import tree
from cnnspec.formatting import format_file
from cnnspec.testing.author import Author
from cnnspec.testing.faults import FAULTS

__all__ = ["faulty_specs", "specs", "trees"]


@st.composite
def trees(draw: st.DrawFn) -> tree.File:
    """Trees of specs that check; they were read from no text, so their spans lead nowhere."""
    return Author(draw).file()


def specs() -> st.SearchStrategy[str]:
    """Texts of specs that check: at most some hundred operators, small maps, at least one layer."""
    return trees().map(format_file)


@st.composite
def faulty_specs(draw: st.DrawFn) -> tuple[str, str]:
    """Texts with one fault planted into a spec that checks, each with the code of its one diagnostic."""
    code = draw(st.sampled_from(sorted(FAULTS)))
    return format_file(Author(draw, code).file()), code
