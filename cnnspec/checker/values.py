"""Evaluation of expressions in a frame; errors are reported in the user's file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any, cast

from cnnspec import ir
from cnnspec.checker.budget import Budget
from cnnspec.checker.call_stack import CallStack
from cnnspec.checker.environment import Frame, MaybeTensor
from cnnspec.diagnostics import Fix, Reporter, Span
from cnnspec.diagnostics.suggestions import Advice, Site, fixes_of
from cnnspec.ir.evaluate import (
    ExpressionError,
    Template,
    Unknown,
    UnknownShape,
    convert,
    evaluate,
    is_number,
    show,
    truth,
)
from cnnspec.limits import MAX_REPEAT
from cnnspec.schema import Bounds, OpName, Type
from cnnspec.semantics.blocks import BLOCK_TYPES
from cnnspec.syntax import ast

_COUNT = Type("int", bounds=Bounds(1, MAX_REPEAT))


class ValueEvaluator:
    """Evaluates expressions.

    A value is `None` after an error, which is reported. It is `None` without an error where it depends on an earlier
    one.
    """

    def __init__(self, reporter: Reporter, calls: CallStack, budget: Budget) -> None:
        self._reporter, self._calls, self._budget = reporter, calls, budget
        self._constants: dict[int, dict[str, Any]] = {}

    def argument(
        self,
        expr: ir.Expr,
        frame: Frame,
        type_: Type,
        name: str,
        *,
        is_default: bool = False,
        parameter: ir.BlockParameter | None = None,
    ) -> Any:
        """Evaluate an argument and convert it to the type of its parameter.

        Args:
            expr: The argument.
            frame: The names that it can use.
            type_: The type of the parameter.
            name: The parameter.
            is_default: The expression is the default of a parameter of a block, whose type can be declared.
            parameter: The parameter of a block that the argument is for.
        """
        value = None
        try:
            value = self._evaluate(expr, frame)
            return convert(value, type_, name, expr.origin)
        except ExpressionError as error:
            span = self._span(error, expr)
            if is_default and span and (kind := _type_word(value)) not in (None, type_.kind):
                error.suggestion = Advice(f"declare the type: `{name}: {kind} = {span.text}`")
            elif span and parameter and type_.kind == "int" and (kind := _type_word(value)) in ("float", "size"):
                help = error.help_for(span.text) or f"write {type_}"
                declared = self._with_type(parameter, kind, span)
                error.suggestion = Advice(f"{help}, or {declared}") if declared else error.suggestion
            self._report(error, expr, fixes_of(error.suggestion, Site(value=self._span(error, expr))))
        except UnknownShape:
            pass
        return None

    def condition(self, expr: ir.Expr, frame: Frame) -> bool | None:
        """Evaluate a condition."""
        self._budget.evaluate(expr)
        try:
            return truth(expr, frame.values, frame.shape)
        except ExpressionError as error:
            self._report(error, expr)
        except UnknownShape:
            pass
        return None

    def repetitions(self, expr: ir.Expr, frame: Frame) -> int:
        """Evaluate the count of a repeat; 0 after an error."""
        value: Any = None
        try:
            value = self._evaluate(expr, frame)
            count: int = convert(value, _COUNT, "repeat", expr.origin)
            return count
        except ExpressionError as error:
            if error.code in ("E0215", "E0405"):
                location = self._calls.locate(error.origin or expr.origin)
                skip = "; to skip a part, use `when`" if is_number(value) and value < 1 else ""
                help = f"use a count from 1 to {MAX_REPEAT:,}{skip}"
                self._reporter.error("E0403", error.message, **location, help=help)
            else:
                self._report(error, expr)
        except UnknownShape:
            pass
        return 0

    def local(self, expr: ir.Expr, frame: Frame, counters: Mapping[str, int] = MappingProxyType({})) -> Any:
        """Evaluate a `let`, or an expression in a name; the value is `Unknown` after an error."""
        try:
            return self._evaluate(expr, frame, counters)
        except ExpressionError as error:
            self._report(error, expr)
        except UnknownShape:
            pass
        return Unknown()

    def fill(self, text: str, frame: Frame, counters: Mapping[str, int] = MappingProxyType({})) -> str | None:
        """Replace each expression in braces in a text with its value; one with an undefined name stays as it is.

        Returns:
            `None` if a value is unknown after an error.
        """
        holes = iter(text.holes if isinstance(text, Template) else ())
        values = {**frame.values, **counters}
        parts: list[str] = []
        end = 0
        for match in ast.HOLE.finditer(text):
            value: Any = match.group()
            if not ast.PLACEHOLDER.fullmatch(value):
                hole = next(holes, None)
                if hole is not None and all(name in values for name in _names(hole)):
                    value = self.local(hole, frame, counters)
            elif value.startswith("{in.") and frame.shape:
                axis = "chw".find(value[4:-1])
                value = frame.shape[axis] if 0 <= axis < len(frame.shape) else value
            else:
                value = values.get(match.group(1), value)
            if value is None or isinstance(value, Unknown):
                return None
            parts += [text[end : match.start()], str(value) if isinstance(value, str) else show(value)]
            end = match.end()
        return "".join([*parts, text[end:]])

    def block_frame(self, block: ir.Block, call: ir.Call, frame: Frame, x: MaybeTensor, iteration: int) -> Frame | None:
        """Return the frame of a block's body, with a value for each parameter.

        Args:
            block: The block.
            call: Its call.
            frame: The frame of the call.
            x: The tensor that enters.
            iteration: The iteration of a repeated call, from 0; only the first passes its `once` parameters.

        Returns:
            `None` after an error.
        """
        self._budget.spend_terms(len(block.constants) + len(block.parameters), call.origin)
        inner = Frame(dict(self._constants_of(block)), x)
        valid = True
        for parameter in block.parameters:
            type_, value = BLOCK_TYPES[parameter.type], None
            given = call.args.get(parameter.name)
            if given is not None and not (parameter.once and iteration):
                value = self.argument(given, frame, type_, parameter.name, parameter=parameter)
            elif parameter.default is not None:
                self._calls.push(call.origin, iteration)
                value = self.argument(parameter.default, inner, type_, parameter.name, is_default=True)
                self._calls.pop()
            valid &= value is not None
            value = list(value) if type_.kind == "list" and value is not None else value
            inner.values[parameter.name] = value
        return inner if valid else None

    def _with_type(self, parameter: ir.BlockParameter, kind: str, given: Span) -> str | None:
        """Advise to declare another type for a parameter of a block whose type is that of its default."""
        default = self._calls.source_map[parameter.default.origin] if parameter.default else None
        if default is None or default.source is not given.source:
            return None
        before = default.source.text[max(0, default.start - 200) : default.start]
        if not re.search(rf"\b{parameter.name}\s*=\s*$", before):
            return None
        return f"declare the type of the parameter: `{parameter.name}: {kind} = {default.text}`"

    def _constants_of(self, block: ir.Block) -> dict[str, Any]:
        constants = self._constants.get(id(block))
        if constants is None:
            constants = {name: evaluate(expr, {}) for name, expr in block.constants.items()}
            self._constants[id(block)] = constants
        return constants

    def _evaluate(self, expr: ir.Expr, frame: Frame, counters: Mapping[str, int] = MappingProxyType({})) -> Any:
        self._budget.evaluate(expr)
        return evaluate(expr, {**frame.values, **counters} if counters else frame.values, frame.shape)

    def _span(self, error: ExpressionError, expr: ir.Expr) -> Span | None:
        return self._calls.source_map[error.origin or expr.origin]

    def _report(self, error: ExpressionError, expr: ir.Expr, fixes: Iterable[Fix] = ()) -> None:
        location, span = self._calls.locate(error.origin or expr.origin), self._span(error, expr)
        help = error.help_for(span.text if span else "x")
        self._reporter.error(error.code, error.message, **location, help=help, fixes=fixes)


def _names(expr: ir.Expr) -> list[str]:
    """Return the names of values in an expression."""
    own = [str(expr.value)] if expr.kind == "name" else []
    return own + [name for part in expr.parts for name in _names(part)]


def _type_word(value: Any) -> str | None:
    """Return the name of the type of a value, as a parameter of a block declares it."""
    words = {bool: "bool", str: "str", OpName: "op", tuple: "size", float: "float", Fraction: "float", int: "int"}
    return words.get(cast(Any, type(value)))
