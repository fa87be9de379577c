"""Tests of specs, and of what works on specs.

`assert_sound` holds a spec of yours against torch. The strategies are for Hypothesis: a spec is drawn as a tree and
printed by the formatter; every choice is made with the shape at hand, so what is drawn is valid by construction and
nothing is filtered. Values are written in every way the language has.

    import cnnspec
    from cnnspec.testing import assert_sound, specs
    from hypothesis import given

    def test_mine():
        assert_sound("my_network.cnn")

    @given(specs())
    def test_my_pass(text):
        assert my_pass(cnnspec.loads(text)).output_shape == ...

The strategies need the package `hypothesis`, `assert_sound` needs torch; both are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cnnspec.testing.faults import FaultySpec

if TYPE_CHECKING:
    from cnnspec.testing.oracle import assert_sound
    from cnnspec.testing.strategies import faulty_specs, sizes, sizes_outside, specs, trees

__all__ = ["FaultySpec", "assert_sound", "faulty_specs", "sizes", "sizes_outside", "specs", "trees"]

_HOMES = {
    "assert_sound": "cnnspec.testing.oracle",
    **dict.fromkeys(("faulty_specs", "sizes", "sizes_outside", "specs", "trees"), "cnnspec.testing.strategies"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cnnspec.testing' has no attribute {name!r}")
