"""Evaluate the expressions of a file that depend on no shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cnnspec import ir
from cnnspec.diagnostics import Edit, Fix, Reported, Span, respell
from cnnspec.diagnostics.suggestions import ReplaceValue, RespectBound, Site, describe, fixes_of
from cnnspec.ir.evaluate import ExpressionError, UnknownShape, convert, evaluate, literal
from cnnspec.ops import foreign_choice
from cnnspec.recipe import Setting
from cnnspec.schema import Declared, Parameter, Type
from cnnspec.semantics.arguments import ArgumentBinder
from cnnspec.semantics.call_hints import unnamed_choice
from cnnspec.semantics.call_site import CallSite
from cnnspec.semantics.context import Context
from cnnspec.semantics.names import ExpressionResolver
from cnnspec.semantics.scope import FileScope
from cnnspec.syntax import ast


@dataclass
class ConstantEvaluator:
    """Evaluates top-level expressions, and calls of the declared choices: initializations, optimizers, and so on."""

    context: Context
    expressions: ExpressionResolver
    arguments: ArgumentBinder

    def value(
        self, node: ast.Expr, scope: FileScope, type_: Type | None = None, name: str = "value", sign: str = "="
    ) -> Any:
        """Evaluate a top-level expression.

        Args:
            node: The expression.
            scope: The names of its file.
            type_: The expected type.
            name: The name of the value, for messages.
            sign: The text between the name and the value, for messages.

        Raises:
            Reported: It has no value.
            UnknownShape: It depends on the image.
        """
        return self.evaluate(self.expressions.resolve(node, scope.top_level(), type_), scope, type_, name, sign)

    def evaluate(
        self, expr: ir.Expr, scope: FileScope, type_: Type | None = None, name: str = "value", sign: str = "="
    ) -> Any:
        """Evaluate a resolved expression; see `value`."""
        try:
            result = evaluate(expr, scope.constants)
            return result if type_ is None else convert(result, type_, name, expr.origin)
        except ExpressionError as error:
            source_map = self.context.source_map
            span = source_map[error.origin] or source_map[expr.origin]
            suggestion = error.suggestion
            if isinstance(suggestion, (ReplaceValue, RespectBound)):
                suggestion = suggestion._replace(sign=sign)
            fixes = fixes_of(suggestion, Site(value=span))
            help = describe(suggestion, span.text if span else "x") if suggestion else None
            raise self.context.reporter.error(error.code, str(error), span, help=help, fixes=fixes) from None

    def default(self, expr: ir.Expr, scope: FileScope, parameter: Parameter) -> ir.Expr:
        """Evaluate an argument of a `default` statement.

        Raises:
            Reported: It has no value, or depends on the image.
        """
        try:
            value = self.evaluate(expr, scope, parameter.type, parameter.name)
        except UnknownShape:
            span = self.context.source_map[expr.origin]
            assert span is not None
            raise self.refuse_image(span, "`default`") from None
        return replace(literal(value), origin=expr.origin)

    def refuse_image(self, span: Span, what: str) -> Reported:
        """Report a value that depends on the image where none is known; `what` cannot depend on it."""
        used = re.compile(r"\bin\.\w+").search(span.source.text, span.start, span.end)
        place = Span(span.source, *used.span()) if used else span
        message, help = f"{what} cannot depend on the input shape", "use a number, or a `param` of the file"
        return self.context.reporter.error("E0207", message, place, help=help)

    def choice(self, call: ast.Call, table: Mapping[str, type[Declared]], what: str, scope: FileScope) -> Setting:
        """Evaluate a call of a choice from a table.

        Raises:
            Reported: The choice is unknown, or an argument is wrong.
        """
        reporter = self.context.reporter
        if not call.callee and call.args and call.args[0].name is None:
            raise unnamed_choice(reporter, call.args[0].value.span, table, what)
        if call.callee not in table:
            help, fixes = respell(call.callee_span, call.callee, table)
            own = foreign_choice(call.callee, table)
            if own is not None and own.lower() != call.callee.lower():
                help = f"write `{own}`"
                fixes = (Fix(help, (Edit(call.callee_span, own),)),)
            help = help or f"choose from {', '.join(f'`{name}`' for name in table)}"
            message = f"unknown {what} `{call.callee}`" if call.callee else f"missing {what} name"
            raise reporter.error("E0201", message, call.callee_span, help=help, fixes=fixes)
        return self._setting(call, table[call.callee], scope, what)

    def _setting(self, call: ast.Call, kind: type[Declared], scope: FileScope, what: str) -> Setting:
        site = CallSite(call.callee, call.callee_span, call.args, kind.parameters, scope.top_level())
        bound = self.arguments.bind(site)
        values: dict[str, Any] = {}
        for name, expr in bound.items():
            try:
                values[name] = self.evaluate(expr, scope, kind.parameters[name].type, name)
            except UnknownShape:
                self.refuse_image(call.span, f"the {what}")
            except Reported:
                pass
        if len(values) < len(bound):
            raise Reported
        return Setting.of(kind(**values))
