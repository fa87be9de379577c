"""Resolve the names in expressions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, repeat
from typing import Any

from cnnspec import ir
from cnnspec.diagnostics import Edit, Fix, Reported
from cnnspec.ops.inits import INITS
from cnnspec.schema import Type
from cnnspec.semantics.context import FILLED, Context
from cnnspec.semantics.name_hints import unknown_name
from cnnspec.semantics.scope import LocalScope
from cnnspec.syntax import ast

_Rule = Callable[[Any, LocalScope, Type | None, int], ir.Expr]


class ExpressionResolver:
    """Turns syntax trees of expressions into expressions of the Model, in which every name is resolved."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._rules: dict[type[ast.Node], _Rule] = {
            ast.Number: self._number,
            ast.Figure: self._number,
            ast.Bool: self._bool,
            ast.Text: self._text,
            ast.SizeLiteral: self._size,
            ast.Name: self._name,
            ast.Dim: self._dim,
            ast.Unary: self._unary,
            ast.Binary: self._binary,
            ast.FunctionCall: self._function_call,
            ast.Choice: self._choice,
            ast.Interval: self._interval,
            ast.ListLiteral: self._list,
            ast.Group: self._group,
        }

    def resolve(self, node: ast.Expr, scope: LocalScope, type_: Type | None = None) -> ir.Expr:
        """Resolve the names in an expression.

        Args:
            node: The expression.
            scope: The names that it can use.
            type_: The type of the expected value, whose words have a meaning; None where any value will do.

        Raises:
            Reported: It uses an unknown name, or could not be parsed.
        """
        origin = self.context.places.add(node.span)
        rule = self._rules.get(type(node))
        if rule is None:
            raise Reported
        return rule(node, scope, type_, origin)

    def _parts(self, nodes: Iterable[ast.Expr], scope: LocalScope) -> tuple[ir.Expr, ...]:
        return tuple([self.resolve(node, scope) for node in nodes])

    def _number(self, node: ast.Number | ast.Figure, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        return ir.Expr(kind="number", value=node.value, origin=origin)

    def _bool(self, node: ast.Bool, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        return ir.Expr(kind="bool", value=node.value, origin=origin)

    def _text(self, node: ast.Text, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        self.context.used_names.update(FILLED.findall(node.value))
        return ir.Expr(kind="text", value=node.value, origin=origin)

    def _size(self, node: ast.SizeLiteral, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        sizes = [ir.Expr(kind="number", value=size, origin=origin) for size in (node.height, node.width)]
        return ir.Expr(kind="size", parts=tuple(sizes), origin=origin)

    def _name(self, node: ast.Name, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        kind = scope.meaning(node.name, type_)
        if kind is None:
            raise unknown_name(self.context.reporter, node, scope, type_)
        if kind == "name":
            self.context.used_names.add(node.name)
        return ir.Expr(kind=kind, value=node.name, origin=origin)

    def _dim(self, node: ast.Dim, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        return ir.Expr(kind="dim", value=node.axis, origin=origin)

    def _unary(self, node: ast.Unary, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        kind = "neg" if node.operator == "-" else "not"
        return ir.Expr(kind=kind, parts=self._parts([node.operand], scope), origin=origin)

    def _binary(self, node: ast.Binary, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        text = node.span.text
        if type_ is not None and type_.kind == "str" and "\n" not in text:
            help = f'a text stands in quotes: `"{text}"`'
            fixes = [Fix(help, (Edit(node.span, f'"{text}"'),), certain=True)]
            raise self.context.reporter.error("E0204", f"`{text}` is no text", node.span, help=help, fixes=fixes)
        return ir.Expr(kind=node.operator, parts=self._parts([node.left, node.right], scope), origin=origin)

    def _function_call(self, node: ast.FunctionCall, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        if node.function not in INITS:
            return ir.Expr(kind="call", value=node.function, parts=self._parts(node.args, scope), origin=origin)
        if type_ is None or type_.kind != "init":
            help = "only the `init` of a call takes one: `conv 3x3 16 init=normal(0.01)`"
            message = f"`{node.function}` is an initialisation"
            raise self.context.reporter.error("E0207", message, node.span, help=help)
        types = [parameter.type for parameter in INITS[node.function].parameters.values()]
        pairs = zip(node.args, chain(types, repeat(None)), strict=False)
        parts = tuple([self.resolve(arg, scope, own) for arg, own in pairs])
        return ir.Expr(kind="init", value=node.function, parts=parts, origin=origin)

    def _choice(self, node: ast.Choice, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        condition = self.resolve(node.condition, scope)
        branches = [self.resolve(part, scope, type_) for part in (node.then, node.otherwise)]
        return ir.Expr(kind="choice", parts=(condition, *branches), origin=origin)

    def _interval(self, node: ast.Interval, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        return ir.Expr(kind="interval", parts=self._parts([node.low, node.high], scope), origin=origin)

    def _list(self, node: ast.ListLiteral, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        return ir.Expr(kind="list", parts=self._parts(node.items, scope), origin=origin)

    def _group(self, node: ast.Group, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        return self.resolve(node.inner, scope, type_)
