"""Context of a lint, and the edits that lints offer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cnnspec import ir
from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Reported, Reporter, Span
from cnnspec.ir.evaluate import ExpressionError, UnknownShape, evaluate
from cnnspec.schema import Parameter
from cnnspec.semantics.context import Context
from cnnspec.semantics.names import ExpressionResolver
from cnnspec.semantics.scope import FileScope, LocalScope
from cnnspec.syntax import ast

LITERALS = (ast.Number, ast.Bool, ast.Text, ast.SizeLiteral)


class LintContext:
    """The file that is checked, and facts that several lints use.

    Attributes:
        file: The syntax tree of the file.
        graph: Its network; `None` where it only defines blocks.
        extends: The file extends another spec.
        blocks: Its blocks by name.
        nodes: Every node of the tree.
        values: The values that each call and `init` statement can use, with their definition if it is in the file, by
            the `id` of the node.
    """

    def __init__(self, file: ast.File, graph: ir.Graph | None) -> None:
        self.file, self.graph = file, graph
        self.extends = any(isinstance(statement, ast.Extends) for statement in file.statements)
        self.blocks = {statement.name: statement for statement in file.statements if isinstance(statement, ast.Block)}
        self.nodes = list(file.walk())
        self._names: dict[int, set[str]] = {}
        constants: Iterable[str] = graph.model.constants if graph is not None else ()
        values: dict[str, Span | None] = dict.fromkeys(constants)
        values |= {node.name: node.name_span for node in file.statements if isinstance(node, (ast.Param, ast.Let))}
        self.values: dict[int, Mapping[str, Span | None]] = {}
        _find_values(file, values, self.values)

    def names(self, node: ast.Node) -> set[str]:
        """Return the words in a node that can refer to a value, an operator or a block."""
        names = self._names.get(id(node))
        if names is None:
            names = self._names[id(node)] = {name for part in node.walk() for name in _names_of(part)}
        return names

    def owns(self, node: ir.Node) -> bool:
        """Return True if a node of the network is written in the file itself."""
        return node.origin is not None and node.origin.source is self.file.source

    def literal(self, value: ast.Expr, parameter: Parameter) -> Any:
        """Return the value of a literal for a parameter; `None` for any other expression."""
        if not isinstance(value, LITERALS):
            return None
        try:
            scope = FileScope(self.file, lambda _: None)
            resolver = ExpressionResolver(Context(Reporter()))
            given = evaluate(resolver.resolve(value, LocalScope(scope, {}), parameter.type), {})
        except (Reported, ExpressionError, UnknownShape):
            return None
        if parameter.type.kind == "size" and isinstance(given, int) and not isinstance(given, bool):
            given = (given, given)
        return given


def _find_values(
    node: ast.Node, values: Mapping[str, Span | None], found: dict[int, Mapping[str, Span | None]]
) -> None:
    """Collect the values that the calls in a node can use."""
    for child in node.children():
        if isinstance(child, ast.Expr):
            continue
        inner = values
        if isinstance(child, ast.Block):
            inner = {**values, **{p.name: p.span for p in child.parameters if p.type != "tensor"}}
        elif isinstance(child, ast.Repeat) and child.variable:
            inner = {**values, child.variable: child.variable_span}
        elif isinstance(child, (ast.Call, ast.Each)):
            found[id(child)] = values
        _find_values(child, inner, found)
        if isinstance(child, ast.Let):
            values = {**values, child.name: child.name_span}


def _names_of(node: ast.Node) -> Iterable[str]:
    match node:
        case ast.Name():
            return (node.name,)
        case ast.Call() | ast.Each():
            return (node.callee,)
        case ast.Text():
            return ast.PLACEHOLDER.findall(node.value)
        case _:
            return ()


def warning(
    code: str,
    message: str,
    span: Span,
    help: str,
    edit: Edit | None = None,
    *,
    labels: tuple[Label, ...] = (),
    certain: bool = True,
) -> Diagnostic:
    """Return a warning; `edit` applies its help, and `certain` edits are safe to apply without asking."""
    fixes = (Fix(help, (edit,), certain),) if edit is not None else ()
    return Diagnostic(code, message, span, labels=labels, help=help, fixes=fixes)


def remove_statement(span: Span) -> Edit:
    """Remove a statement, with its line if nothing else is in it."""
    text = span.source.text
    start, end = text.rfind("\n", 0, span.start) + 1, (text + "\n").index("\n", span.end)
    if not text[start : span.start].strip() and re.fullmatch(r"[ \t]*(#[^\n]*)?", text[span.end : end]):
        return Edit(Span(span.source, start, min(end + 1, len(text))), "")
    separator = re.compile(r"[ \t]*;[ \t]*").match(text, span.end)
    return Edit(Span(span.source, span.start, separator.end() if separator else span.end), "")


def remove_argument(span: Span) -> Edit:
    """Remove an argument, with the spaces before it."""
    start = len(span.source.text[: span.start].rstrip(" \t"))
    return Edit(Span(span.source, start, span.end), "")
