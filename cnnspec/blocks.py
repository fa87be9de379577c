"""What a block takes, by its definition."""

from __future__ import annotations

from cnnspec import tree
from cnnspec.ops import OPS
from cnnspec.signatures import REQUIRED, Parameter, Type

BLOCK_TYPES = {
    "int": Type("int"),
    "float": Type("float"),
    "bool": Type("bool"),
    "size": Type("size"),
    "op": Type("op"),
    "str": Type("str"),
}
"""The types that a block can give its parameters."""

_LOGIC = ("and", "or", "==", "!=", "<", "<=", ">", ">=")


def signature(block: tree.Block) -> dict[str, Parameter]:
    """The parameters of a block; one without a type has that of its default, or is an integer."""
    known: dict[str, Parameter] = {}
    for parameter in block.parameters:
        kind = parameter.type if parameter.type in BLOCK_TYPES else _kind(parameter.default)
        default = REQUIRED if parameter.default is None else parameter.default
        known[parameter.name] = Parameter(parameter.name, BLOCK_TYPES[kind], default, parameter.once)
    return known


def _kind(value: tree.Expr | None) -> str:
    """The type that an expression shows without being evaluated."""
    match value:
        case tree.Group():
            return _kind(value.inner)
        case tree.Choice():
            return _kind(value.then)
        case tree.Bool():
            return "bool"
        case tree.Text():
            return "str"
        case tree.SizeLiteral():
            return "size"
        case tree.Number() if isinstance(value.value, float):
            return "float"
        case tree.Unary():
            return "bool" if value.operator == "not" else _kind(value.operand)
        case tree.Binary():
            return (
                "bool"
                if value.operator in _LOGIC
                else "float"
                if "float" in (_kind(value.left), _kind(value.right))
                else "int"
            )
        case tree.Name() if value.name in OPS:
            return "op"
        case _:
            return "int"
