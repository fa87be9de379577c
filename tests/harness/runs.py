"""The network and helpers that tests of training runs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from cnnspec import CnnspecError

LAYERS = "stem conv 7x7 4 stride=7 pad=0 | bn | relu"
DEEPER = "stem conv 7x7 8 stride=7 pad=0 | bn | relu\nbody: conv 3x3 8 | bn | relu"


def tiny(
    recipe: str = "", *, name: str = "tiny", shape: str = "1x28x28", classes: int | str = 10, layers: str = LAYERS
) -> str:
    """Return the spec of a small network and its recipe, whose entries are separated by semicolons."""
    head = "head global_avgpool | flatten | linear classes"
    train = f"train {{ {recipe} }}\n" if recipe else ""
    return f"network {name}\ninput {shape}\nclasses {classes}\n{layers}\n{head}\n{train}"


TINY = tiny().replace("head", "head dropout 0.1 |")
"""A network without a recipe."""


def code(error: pytest.ExceptionInfo[CnnspecError]) -> str:
    """Return the code of the first diagnostic of an error."""
    return error.value.diagnostics[0].code
