"""What a block takes, by its definition."""

from __future__ import annotations

from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Reporter, Span, respell
from cnnspec.ops import OPS
from cnnspec.schema import REQUIRED, Parameter, Type
from cnnspec.syntax import ast

BLOCK_TYPES = {
    "int": Type("int"),
    "float": Type("float"),
    "bool": Type("bool"),
    "size": Type("size"),
    "op": Type("op"),
    "str": Type("str"),
}
"""The types that a block can give its parameters."""
_FOREIGN_TYPES = {
    **dict.fromkeys(("integer", "channels"), "int"),
    **dict.fromkeys(("number", "num", "numeric"), "int float"),
    **dict.fromkeys(("double", "real"), "float"),
    "boolean": "bool",
    "string": "str",
    **dict.fromkeys(("activation", "operator", "layer", "module"), "op"),
}
"""What other languages call a type; some types are two here."""

_LOGIC = ("and", "or", "==", "!=", "<", "<=", ">", ">=")


def signature(block: ast.Block) -> dict[str, Parameter]:
    """The parameters of a block; one without a type has that of its default, or is an integer."""
    known: dict[str, Parameter] = {}
    for parameter in block.parameters:
        kind = parameter.type if parameter.type in BLOCK_TYPES else _kind(parameter.default)
        default = REQUIRED if parameter.default is None else parameter.default
        known[parameter.name] = Parameter(parameter.name, BLOCK_TYPES[kind], default, parameter.once)
    return known


def _kind(value: ast.Expr | None) -> str:
    """The type that an expression shows without being evaluated."""
    match value:
        case ast.Group():
            return _kind(value.inner)
        case ast.Choice():
            return _kind(value.then)
        case ast.Bool():
            return "bool"
        case ast.Text():
            return "str"
        case ast.SizeLiteral():
            return "size"
        case ast.Number() if isinstance(value.value, float):
            return "float"
        case ast.Unary():
            return "bool" if value.operator == "not" else _kind(value.operand)
        case ast.Binary():
            return (
                "bool"
                if value.operator in _LOGIC
                else "float"
                if "float" in (_kind(value.left), _kind(value.right))
                else "int"
            )
        case ast.Name() if value.name in OPS:
            return "op"
        case _:
            return "int"


def check_header(block: ast.Block, reporter: Reporter) -> None:
    """Reports parameters of a block that cannot be."""
    seen: dict[str, Span] = {}
    for parameter in block.parameters:
        name, span = parameter.name, parameter.span
        if name in seen:
            labels = (Label(seen[name], "the first one"),)
            message, help = f"the parameter `{name}` is defined twice", "rename one of the two"
            reporter.add(Diagnostic("E0211", message, span, labels=labels, help=help))
        if name in ("repeat", "name"):
            help = "every call takes `repeat` and `name`; choose another word"
            reporter.add(Diagnostic("E0211", f"a parameter cannot be called `{name}`", span, help=help))
        if parameter.type is not None and parameter.type not in BLOCK_TYPES:
            text = span.source.text
            start = text.index(parameter.type, text.index(":", span.start))
            word = Span(span.source, start, start + len(parameter.type))
            meant = _FOREIGN_TYPES.get(parameter.type.lower(), "").split()
            help, fixes = respell(word, parameter.type, BLOCK_TYPES)
            if meant:
                fixes = tuple(Fix(f"write `{own}`", (Edit(word, own),), certain=len(meant) == 1) for own in meant)
                help = f"write {' or '.join(f'`{own}`' for own in meant)}"
            help = help or f"the types are {', '.join(BLOCK_TYPES)}"
            reporter.add(Diagnostic("E0204", f"there is no type `{parameter.type}`", word, help=help, fixes=fixes))
        if parameter.once and parameter.default is None:
            message = f"the `once` parameter `{name}` needs a default"
            help = f"the later calls of a repeat get it: `once {name} = ...`"
            reporter.add(Diagnostic("E0203", message, span, help=help))
        seen[name] = span
