"""The constructs of the language that occur in a spec, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cnnspec import ir
from cnnspec.ops import JOINS, OPS
from cnnspec.schema import Word
from cnnspec.syntax import FUNCTIONS, ast
from cnnspec.syntax.keywords import SCHEMES
from cnnspec.testing.operator_settings import STANDARD_BLOCKS

_OPERATORS = "or and == != < <= > >= + - * / // %".split()


def _flow(node: ast.Flow) -> Iterator[str]:
    if node.condition is not None:
        yield "when"
    if node.label is not None:
        yield "stem, stage, head" if node.label.word else "label.path:" if "." in node.label.name else "label:"
    for element in node.elements:
        if isinstance(element, ast.Reference):
            yield "@label"
        elif isinstance(element, ast.In):
            yield "in"


def _argument(node: ast.Argument) -> Iterator[str]:
    if node.name == "like":
        yield "like=in" if isinstance(node.value, ast.In) else "like=@label"
    elif node.name in ("name", "repeat"):
        yield f"{node.name}="


def _parameter(node: ast.BlockParameter) -> Iterator[str]:
    yield f"parameter: {node.type}" if node.type else "parameter"
    if node.default is not None:
        yield "parameter = value"
    if node.once:
        yield "once"


def _each(node: ast.Each) -> Iterator[str]:
    yield "each"
    if node.args:
        yield "each with arguments"
    if any(row.label for row in node.rows):
        yield "each with labels"


def _param(node: ast.Param) -> Iterator[str]:
    yield "param"
    if isinstance(node.value, ast.ListLiteral):
        yield "param = [list]"


_NODES: dict[type[ast.Node], Callable[[Any], Iterable[str]]] = {
    ast.Number: lambda node: (),
    ast.Figure: lambda node: ("40.8M",),
    ast.Bool: lambda node: ("true, false",),
    ast.Text: lambda node: ("string", "{expression}") if node.holes else ("string",),
    ast.SizeLiteral: lambda node: ("3x5",),
    ast.Name: lambda node: (),
    ast.Dim: lambda node: (f"in.{node.axis}",),
    ast.Unary: lambda node: ("not x" if node.operator == "not" else "-x",),
    ast.Binary: lambda node: (f"a {node.operator} b",),
    ast.FunctionCall: lambda node: (f"{node.function}()",),
    ast.Choice: lambda node: ("if then else",),
    ast.Interval: lambda node: ("a..b",),
    ast.ListLiteral: lambda node: ("[list]",),
    ast.Index: lambda node: ("list[i]",),
    ast.Reference: lambda node: (),
    ast.In: lambda node: (),
    ast.Broken: lambda node: (),
    ast.Group: lambda node: ("(a)",),
    ast.Argument: _argument,
    ast.Call: lambda node: ("x3",) if node.repeat is not None else (),
    ast.Braces: lambda node: ("{ }",),
    ast.Repeat: lambda node: ("repeat", "repeat as") if node.variable else ("repeat",),
    ast.Join: lambda node: (node.kind,),
    ast.If: lambda node: ("if",) if node.otherwise is None else ("if", "else"),
    ast.Row: lambda node: (),
    ast.Each: _each,
    ast.Nothing: lambda node: ("nothing",),
    ast.Again: lambda node: ("again",),
    ast.LabelName: lambda node: (),
    ast.Flow: _flow,
    ast.Let: lambda node: ("let",),
    ast.Require: lambda node: ("require",) if node.message is None else ("require", "require with a message"),
    ast.Network: lambda node: ("network",),
    ast.Input: lambda node: ("input", "input NAME") if node.name else ("input",),
    ast.Classes: lambda node: ("classes",),
    ast.Param: _param,
    ast.BlockParameter: _parameter,
    ast.Block: lambda node: ("block",),
    ast.Default: lambda node: ("default",),
    ast.Init: lambda node: ("init",),
    ast.Expect: lambda node: (
        "expect output.NAME" if "." in node.metric else f"expect {node.metric}",
        *(["within"] if node.within is not None else []),
    ),
    ast.Entry: lambda node: (f"train {{ {node.word} }}",),
    ast.Train: lambda node: ("train",),
    ast.Use: lambda node: ("use",),
    ast.Extends: lambda node: ("extends with arguments",) if node.args else ("extends",),
    ast.Aux: lambda node: ("aux with weight",) if node.args else ("aux",),
    ast.Output: lambda node: ("output",),
    ast.Comment: lambda node: (),
    ast.File: lambda node: (),
}
"""The constructs of each class of the syntax tree."""

_OF_TREES = (
    "when", "label:", "label.path:", "stem, stage, head", "@label", "in", "like=in", "like=@label", "name=", "repeat=",
    *("parameter", *(f"parameter: {kind}" for kind in ("int", "float", "bool", "size", "op", "str", "list", "tensor"))),
    "parameter = value", "once", "each", "each with arguments", "each with labels", "param", "param = [list]",
    "40.8M", "true, false", "string", "{expression}", "3x5", "in.c", "in.h", "in.w", "not x", "-x",
    *(f"a {operator} b" for operator in _OPERATORS), *(f"{function}()" for function in (*FUNCTIONS, *SCHEMES)),
    "if then else", "a..b", "[list]", "list[i]", "(a)", "x3", "{ }", "repeat", "repeat as", "if", "else", "nothing",
    "again", "let", "require", "require with a message", "network", "input", "input NAME", "several images", "classes",
    "block", "default", "init", "expect params", "expect macs", "expect output", "expect depth", "within", "train",
    "use", "extends", "extends with arguments", "aux", "aux with weight", "output", "expect output.NAME",
)  # fmt: skip


def _of_operators() -> Iterator[str]:
    for name, op in OPS.items():
        yield name
        for parameter in op.parameters.values():
            yield from (f"{name} {parameter.name}={word}" for word in parameter.type.words if word != parameter.default)
            if not parameter.required and parameter.type.kind != "word":
                yield f"{name} {parameter.name}"


CONSTRUCTS = (*_of_operators(), *JOINS, *STANDARD_BLOCKS, *_OF_TREES)
"""All constructs, for the list of those that do not occur; those of a recipe are only counted."""


def find_constructs(file: ast.File, graph: ir.Graph) -> set[str]:
    """Return the constructs of a spec.

    These are the operators that run, with the arguments that differ from their defaults; the standard blocks that are
    called; and the constructs of the text.
    """
    found = {*graph.scopes.values()} & STANDARD_BLOCKS.keys()
    found |= {"several images"} if graph.images else set()
    for node in graph:
        found.add(node.op.name)
        for name, value in node.op.changed().items():
            if isinstance(value, Word):
                found.add(f"{node.op.name} {name}={value}")
            elif not node.op.parameters[name].required:
                found.add(f"{node.op.name} {name}")
    for piece in file.walk():
        found.update(_NODES[type(piece)](piece))
    return found
