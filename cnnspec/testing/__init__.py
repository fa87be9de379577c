"""Test your own specs, and code that processes specs.

`assert_sound` compares a spec with torch. The Hypothesis strategies generate specs: a spec is drawn as a syntax tree
and printed by the formatter. Every choice depends on the current shape, so generated specs are valid by construction
and none are filtered out. Values are written in every form of the language.

    import cnnspec
    from cnnspec.testing import assert_sound, specs
    from hypothesis import given

    def test_mine():
        assert_sound("my_network.cnn")

    @given(specs())
    def test_my_pass(text):
        assert my_pass(cnnspec.loads(text)).output_shape == ...

The strategies need the package `hypothesis`, and `assert_sound` needs torch. Both are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnspec.exports import lazy_exports
from cnnspec.testing.faults import FaultySpec

if TYPE_CHECKING:
    from cnnspec.testing.oracle import assert_sound
    from cnnspec.testing.strategies import faulty_specs, sizes, sizes_outside, specs, trees

__all__ = ["FaultySpec", "assert_sound", "faulty_specs", "sizes", "sizes_outside", "specs", "trees"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "assert_sound": "cnnspec.testing.oracle",
        **dict.fromkeys(("faulty_specs", "sizes", "sizes_outside", "specs", "trees"), "cnnspec.testing.strategies"),
    },
)
