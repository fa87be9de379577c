"""The closed set of operators; one class holds the settings, shape rule, weights and counts of each."""

from collections.abc import Sequence

from cnnspec.ops import activation, convolution, join, layout, norm, pool
from cnnspec.ops.aliases import (
    DEFINITIONS,
    FOREIGN_ARGUMENTS,
    FOREIGN_CLASSES,
    FOREIGN_ENTRIES,
    FOREIGN_NAMES,
    FOREIGN_OPTIONS,
    INFERRED,
    KERNEL_FIRST,
    absent_operator,
    foreign_choice,
    foreign_operator,
    operator_of_two_words,
    sized_operator,
    split_arguments,
    translated,
    translation,
)
from cnnspec.ops.base import Op, SameShape, ShapeError
from cnnspec.ops.join import Add, Concat, Join, Mul

__all__ = [
    "DEFINITIONS",
    "FOREIGN_ARGUMENTS",
    "FOREIGN_CLASSES",
    "FOREIGN_ENTRIES",
    "FOREIGN_NAMES",
    "FOREIGN_OPTIONS",
    "INFERRED",
    "JOINS",
    "KERNEL_FIRST",
    "OPS",
    "Add",
    "Concat",
    "Mul",
    "Op",
    "ShapeError",
    "absent_operator",
    "foreign_choice",
    "foreign_operator",
    "keeps_shape",
    "operator_of_two_words",
    "sized_operator",
    "split_arguments",
    "stacked",
    "translated",
    "translation",
]

_MODULES = (convolution, norm, activation, pool, layout, join)

_ALL: list[type[Op]] = [
    kind
    for module in _MODULES
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Op) and kind.__module__ == module.__name__ and kind.name
]

OPS: dict[str, type[Op]] = {kind.name: kind for kind in _ALL if kind.callable}
"""Every operator that a spec can call, by name."""

JOINS: dict[str, type[Join]] = {kind.name: kind for kind in _ALL if issubclass(kind, Join)}
"""The joins, by the word before their braces."""


def stacked(branches: Sequence[Sequence[str | None]]) -> bool:
    """Check whether branches look like one pipeline: a layer at the end of one, a norm or activation alone in the next.

    Args:
        branches: The callees of each branch in order; None for an element that is not a call.
    """
    ends = [OPS.get(branch[-1] or "") for branch in branches[:-1]]
    return any(
        end is not None and end.counts_as_layer and keeps_shape(branch)
        for end, branch in zip(ends, branches[1:], strict=True)
    )


def keeps_shape(branch: Sequence[str | None]) -> bool:
    """Check whether a branch is a norm or an activation alone."""
    kind = OPS.get(branch[0] or "") if len(branch) == 1 else None
    return kind is not None and issubclass(kind, SameShape)
