"""The closed set of operators: the settings, shape rule, weights and counts of one in one class."""

from cnnspec.ops import activation, convolution, join, layout, norm, pool
from cnnspec.ops.base import Op, ShapeFault
from cnnspec.ops.foreign import FOREIGN_ARGUMENTS, FOREIGN_NAMES, INFERRED, KERNEL_FIRST, translated
from cnnspec.ops.join import Add, Concat, Mul

__all__ = [
    "FOREIGN_ARGUMENTS",
    "FOREIGN_NAMES",
    "INFERRED",
    "JOINS",
    "KERNEL_FIRST",
    "OPS",
    "Add",
    "Concat",
    "Mul",
    "Op",
    "ShapeFault",
    "translated",
]

_MODULES = (convolution, norm, activation, pool, layout, join)

_ALL: list[type[Op]] = [
    kind
    for module in _MODULES
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Op) and kind.__module__ == module.__name__ and kind.name
]

OPS: dict[str, type[Op]] = {kind.name: kind for kind in _ALL if kind.callable}
"""Every operator that a spec can call, by its name."""

JOINS: dict[str, type[Op]] = {kind.name: kind for kind in _ALL if not kind.callable}
"""The joins, by the word in front of their braces."""
