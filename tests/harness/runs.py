"""The network and helpers that tests of training runs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from cnnspec import CnnspecError

TINY = """network tiny
input 1x28x28
classes 10
stem conv 7x7 4 stride=7 pad=0 | bn | relu
head dropout 0.1 | global_avgpool | flatten | linear classes
"""
"""A network without a recipe."""


def code(error: pytest.ExceptionInfo[CnnspecError]) -> str:
    """Return the code of the first diagnostic of an error."""
    return error.value.diagnostics[0].code
