"""The parameters of a block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cnnspec.diagnostics import Edit, Fix, Label, Reporter, Span, respell
from cnnspec.ops import OPS
from cnnspec.ops.examples import example_value
from cnnspec.schema import REQUIRED, Parameter, Type
from cnnspec.semantics.context import refuse_reserved
from cnnspec.syntax import ast

BLOCK_TYPES = {
    "int": Type("int"),
    "float": Type("float"),
    "bool": Type("bool"),
    "size": Type("size"),
    "op": Type("op"),
    "str": Type("str"),
    "list": Type("list"),
    "tensor": Type("tensor"),
}
"""The types of block parameters."""
_FOREIGN_TYPES = {
    **dict.fromkeys(("integer", "channels"), "int"),
    **dict.fromkeys(("number", "num", "numeric"), "int float"),
    **dict.fromkeys(("double", "real"), "float"),
    "boolean": "bool",
    "string": "str",
    **dict.fromkeys(("activation", "operator", "layer", "module"), "op"),
    **dict.fromkeys(("map", "feature", "features", "label", "node"), "tensor"),
}
"""Types of other languages, each with the types that it may mean."""

_NEUTRAL = {"int": "1", "bool": "false", "size": "1x1"}
"""Plausible defaults of `once` parameters, which later calls use."""
_CHANNELS = ("c", "channels", "width")
"""Parameters for which 1 is not a plausible value."""

_LOGIC = ("and", "or", "==", "!=", "<", "<=", ">", ">=")


def signature(block: ast.Block) -> dict[str, Parameter]:
    """Return the parameters of a block; a parameter without a type has the type of its default, or `int`."""
    known: dict[str, Parameter] = {}
    for parameter in block.parameters:
        kind = parameter.type if parameter.type in BLOCK_TYPES else _kind(parameter.default)
        default = REQUIRED if parameter.default is None or kind == "tensor" else parameter.default
        known[parameter.name] = Parameter(parameter.name, BLOCK_TYPES[kind], default, parameter.once)
    return known


def _kind(value: ast.Expr | None) -> str:
    """Infer the type of an expression without evaluating it."""
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
        case ast.ListLiteral():
            return "list"
        case ast.Number() if isinstance(value.value, float):
            return "float"
        case ast.Unary():
            return "bool" if value.operator == "not" else _kind(value.operand)
        case ast.Binary():
            if value.operator in _LOGIC:
                return "bool"
            return "float" if "float" in (_kind(value.left), _kind(value.right)) else "int"
        case ast.Name() if value.name in OPS:
            return "op"
        case _:
            return "int"


def check_header(block: ast.Block, reporter: Reporter) -> None:
    """Report invalid parameters of a block."""
    seen: dict[str, Span] = {}
    for parameter in block.parameters:
        name, span = parameter.name, parameter.span
        if name in seen:
            labels = [Label(seen[name], "first defined here")]
            message, help = f"parameter `{name}` is defined multiple times", "rename or remove one of them"
            reporter.error("E0211", message, span, labels=labels, help=help)
        if name in ("repeat", "name"):
            help = f"choose another name for the parameter: every call takes `{name}`"
            reporter.error("E0211", f"invalid parameter name `{name}`: it is a reserved word", span, help=help)
        else:
            refuse_reserved(reporter, "parameter", name, span)
        if parameter.type is not None and parameter.type not in BLOCK_TYPES:
            _unknown_type(span, parameter.type, reporter)
        if parameter.type == "tensor":
            _check_tensor(parameter, block, reporter)
        elif parameter.once and parameter.default is None:
            message = f"`once` parameter `{name}` has no default"
            type_ = BLOCK_TYPES.get(parameter.type or "int", BLOCK_TYPES["int"])
            value = _NEUTRAL.get(type_.kind) if name not in _CHANNELS else None
            value = value or example_value(Parameter(name, type_))
            help = f"add a default for the calls after the first: `{span.text} = {value}`"
            reporter.error("E0203", message, span, help=help)
        seen[name] = span


def _check_tensor(parameter: ast.BlockParameter, block: ast.Block, reporter: Reporter) -> None:
    """Report a tensor parameter that is optional, or that has the name of a label of the block."""
    name, span = parameter.name, parameter.span
    help = f"write `{name}: tensor`, and pass the tensor in each call: `{block.name} {name}=@stem`"
    if parameter.once:
        message = f"the tensor parameter `{name}` cannot be `once`: it has no default for the calls after the first"
        reporter.error("E0203", message, span, help=help)
    elif parameter.default is not None:
        reporter.error("E0203", f"the tensor parameter `{name}` cannot have a default", span, help=help)
    for label, place in labels_of(block.body):
        if label == name:
            message = f"the label `{name}` has the name of a tensor parameter"
            help, labels = "rename one of them", [Label(span, "parameter defined here")]
            reporter.error("E0209", message, place, labels=labels, help=help)


def labels_of(body: Iterable[ast.Statement]) -> Iterator[tuple[str, Span]]:
    """Iterate over the labels of a body, without those in braces."""
    for flow in body:
        if isinstance(flow, ast.Flow):
            if flow.label is not None:
                yield flow.label.name, flow.label.span
            for row in (row for element in flow.elements if isinstance(element, ast.Each) for row in element.rows):
                if row.label is not None:
                    yield row.label, Span(row.span.source, row.span.start, row.span.start + len(row.label))


def _unknown_type(parameter: Span, name: str, reporter: Reporter) -> None:
    text = parameter.source.text
    start = text.index(name, text.index(":", parameter.start))
    span = Span(parameter.source, start, start + len(name))
    help, fixes = respell(span, name, BLOCK_TYPES)
    own = _FOREIGN_TYPES.get(name.lower(), "").split()
    if own:
        fixes = tuple(Fix(f"write `{type_}`", (Edit(span, type_),), certain=len(own) == 1) for type_ in own)
        help = f"write {' or '.join(f'`{type_}`' for type_ in own)}"
    help = help or f"choose from {', '.join(f'`{type_}`' for type_ in BLOCK_TYPES)}"
    reporter.error("E0204", f"unknown type `{name}`", span, help=help, fixes=fixes)
