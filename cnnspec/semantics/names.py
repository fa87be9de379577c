"""Resolve the names in expressions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, repeat

from cnnspec import ir
from cnnspec.diagnostics import Edit, Fix, Reported
from cnnspec.ops.inits import INITS
from cnnspec.schema import Type
from cnnspec.semantics.context import Context
from cnnspec.semantics.name_hints import NO_USE, Use, tensor_as_value, unknown_name
from cnnspec.semantics.scope import LocalScope
from cnnspec.syntax import ast

_NUMBER, _CONDITION = Type("float"), Type("bool")
_OPERANDS: dict[str, Type | None] = {"and": _CONDITION, "or": _CONDITION, "==": None, "!=": None}
"""Types of the operands of binary operators; the others take numbers."""


@dataclass
class ExpressionResolver:
    """Turns syntax trees of expressions into expressions of the Model, in which every name is resolved."""

    context: Context

    def resolve(self, node: ast.Expr, scope: LocalScope, type_: Type | None = None, use: Use = NO_USE) -> ir.Expr:
        """Resolve the names in an expression.

        Args:
            node: The expression.
            scope: The names that it can use.
            type_: The type of the expected value, whose words have a meaning; None if any value is valid.
            use: What the value is for, for messages.

        Raises:
            Reported: It uses an unknown name, or could not be parsed.
        """
        origin = self.context.source_map.add(node.span)
        match node:
            case ast.Name():
                return self._name(node, scope, type_, origin, use)
            case ast.Number() | ast.Figure():
                return ir.Expr(kind="number", value=node.value, origin=origin)
            case ast.SizeLiteral():
                sizes = [ir.Expr(kind="number", value=size, origin=origin) for size in (node.height, node.width)]
                return ir.Expr(kind="size", parts=tuple(sizes), origin=origin)
            case ast.Bool():
                return ir.Expr(kind="bool", value=node.value, origin=origin)
            case ast.Dim():
                return ir.Expr(kind="dim", value=node.axis, origin=origin)
            case ast.Text():
                return ir.Expr(kind="text", value=node.value, parts=self.holes(node, scope), origin=origin)
            case ast.Group():
                return self.resolve(node.inner, scope, type_, use)
            case ast.Reference() | ast.In():
                return self._tensor(node, type_, origin, use)
            case _:
                return self._operation(node, scope, type_, origin)

    def holes(self, node: ast.Text, scope: LocalScope) -> tuple[ir.Expr, ...]:
        """Resolve the expressions in a string; `i` and `n` may be the indices of a repeated call."""
        self.context.used_names.update(ast.PLACEHOLDER.findall(node.value))
        for counter in ("i", "n") if node.holes else ():
            scope = scope if counter in scope.variables else scope.with_variable(counter)
        return tuple([self.resolve(hole, scope) for hole in node.holes])

    def _name(self, node: ast.Name, scope: LocalScope, type_: Type | None, origin: int, use: Use) -> ir.Expr:
        kind = scope.meaning(node.name, type_)
        if kind is None:
            raise unknown_name(self.context.reporter, node, scope, type_, use)
        if kind == "name":
            self.context.used_names.add(node.name)
        return ir.Expr(kind=kind, value=node.name, origin=origin)

    def _tensor(self, node: ast.Reference | ast.In, type_: Type | None, origin: int, use: Use) -> ir.Expr:
        if type_ is None or type_.kind != "tensor":
            raise tensor_as_value(self.context.reporter, node, type_, use)
        return ir.Expr(kind="tensor", value=node.span.text, origin=origin)

    def _operation(self, node: ast.Expr, scope: LocalScope, type_: Type | None, origin: int) -> ir.Expr:
        """Resolve an expression that has parts."""
        kind, value = "", None
        types: Iterable[Type | None] = ()
        match node:
            case ast.Unary():
                kind, parts = "neg" if node.operator == "-" else "not", [node.operand]
                types = repeat(_NUMBER if kind == "neg" else _CONDITION)
            case ast.Binary():
                self._refuse_unquoted(node, type_)
                kind, parts = node.operator, [node.left, node.right]
                types = repeat(_OPERANDS.get(kind, _NUMBER))
            case ast.FunctionCall() if node.function in INITS:
                kind, value, parts = "init", node.function, node.args
                types = self._scheme_types(node, type_)
            case ast.FunctionCall():
                kind, value, parts = "call", node.function, node.args
                types = repeat(None if node.function in ("sum", "len") else _NUMBER)
            case ast.Index():
                kind, parts, types = "index", [node.sequence, node.place], (None, _NUMBER)
            case ast.Choice():
                kind, parts = "choice", [node.condition, node.then, node.otherwise]
                types = (_CONDITION, type_, type_)
            case ast.Interval():
                kind, parts, types = "interval", [node.low, node.high], repeat(_NUMBER)
            case ast.ListLiteral():
                kind, parts, types = "list", node.items, repeat(_NUMBER)
            case _:
                raise Reported
        pairs = zip(parts, chain(types, repeat(None)), strict=False)
        resolved = tuple([self.resolve(part, scope, own) for part, own in pairs])
        return ir.Expr(kind=kind, value=value, parts=resolved, origin=origin)

    def _refuse_unquoted(self, node: ast.Binary, type_: Type | None) -> None:
        """Refuse a calculation where a string is expected, such as `my-name`."""
        text = node.span.text
        if type_ is not None and type_.kind == "str" and "\n" not in text:
            help = f'write the string in quotes: `"{text}"`'
            fixes = [Fix(help, (Edit(node.span, f'"{text}"'),), certain=True)]
            raise self.context.reporter.error(
                "E0204", f"expected a string in quotes, got `{text}`", node.span, help=help, fixes=fixes
            )

    def _scheme_types(self, node: ast.FunctionCall, type_: Type | None) -> list[Type]:
        """Return the types of the arguments of an initialization."""
        if type_ is None or type_.kind != "init":
            help = "use it only as the `init` argument of a call: `conv 3x3 16 init=normal(0.01)`"
            message = f"initialization `{node.function}` is not allowed here"
            raise self.context.reporter.error("E0207", message, node.span, help=help)
        return [parameter.type for parameter in INITS[node.function].parameters.values()]
