"""Pieces of a tree that was read from no text, and expressions for a value that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnspec.diagnostics import Source
from cnnspec.ir.evaluate import round_to
from cnnspec.schema import Interval
from cnnspec.shapes import Shape
from cnnspec.syntax import LABEL_WORDS, ast
from cnnspec.testing.draw import Chance

NO_SOURCE = Source("generated", "")
NOWHERE = NO_SOURCE.end


@dataclass
class Frame:
    """What can be named at a place: values, labels with their shapes, the tensor that enters."""

    entering: Shape
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    labels: dict[str, Shape] = field(default_factory=dict[str, Shape])
    labelling: bool = True

    def inner(self, entering: Shape, labelling: bool = True) -> Frame:
        return Frame(entering, dict(self.values), dict(self.labels), self.labelling and labelling)


def make_call(callee: str, args: Sequence[ast.Argument] = (), repeat: int | None = None) -> ast.Call:
    return ast.Call(NOWHERE, callee, repeat, tuple(args), NOWHERE)


def make_flow(*elements: ast.Element, label: str | None = None, condition: ast.Expr | None = None) -> ast.Flow:
    name = ast.LabelName(NOWHERE, label, label in LABEL_WORDS) if label else None
    return ast.Flow(NOWHERE, name, elements, condition)


def make_integer(value: int) -> ast.Expr:
    number = ast.Number(NOWHERE, abs(value), str(abs(value)))
    return number if value >= 0 else ast.Group(NOWHERE, ast.Unary(NOWHERE, "-", number))


def operand(expr: ast.Expr) -> ast.Expr:
    """An expression as an operand, or as an argument by position: in parentheses unless it is a single word."""
    compound = isinstance(expr, (ast.Binary, ast.Unary, ast.Choice, ast.Interval))
    return ast.Group(NOWHERE, expr) if compound else expr


class ExpressionWriter(Chance):
    """Writes values in every way that the language has."""

    def expr(self, value: Any, frame: Frame) -> ast.Expr:
        """An expression that has this value at this place."""
        if isinstance(value, (list, tuple)) and not isinstance(value, Interval):
            if len(value) == 2 and isinstance(value, tuple) and min(value) >= 0:
                alike = value[0] == value[1] and self.rarely(2)
                return self.expr(value[0], frame) if alike else ast.SizeLiteral(NOWHERE, *value)
            return ast.ListLiteral(NOWHERE, tuple(self.expr(item, frame) for item in value))
        known = [name for name, other in frame.values.items() if type(other) is type(value) and other == value]
        if known and self.rarely(2):
            return ast.Name(NOWHERE, self.pick(known))
        if isinstance(value, Interval):
            return ast.Interval(NOWHERE, *(operand(self.expr(end, frame)) for end in value))
        if isinstance(value, bool):
            return self.boolean(value, frame) if self.rarely() else ast.Bool(NOWHERE, value)
        if isinstance(value, int):
            return self.integer(value, frame) if self.rarely() else make_integer(value)
        if isinstance(value, float):
            return ast.Number(NOWHERE, value, repr(value))
        return ast.Name(NOWHERE, str(value))

    def integer(self, value: int, frame: Frame) -> ast.Expr:
        """An integer in one of the roundabout ways."""
        other = self.number(1, 9)
        sizes = {axis: size for axis, size in zip("chw", frame.entering, strict=False) if size == value}
        ways: list[Callable[[], ast.Expr]] = [
            lambda: self.binary("+", value - other, other, frame),
            lambda: self.binary("-", value + other, other, frame),
            lambda: self.binary("//", value * other + other - 1, other, frame) if value >= 0 else make_integer(value),
            lambda: self.binary("/", value * other, other, frame),
            lambda: (
                self.binary("%", value + (abs(value) + 1) * other, abs(value) + 1, frame)
                if value >= 0
                else make_integer(value)
            ),
            lambda: self.function("max", value, value - other, frame=frame),
            lambda: self.function("min", value + other, value, frame=frame),
            lambda: self.function("ceil", value - 0.5, frame=frame) if value > 0 else make_integer(value),
            lambda: self.root(value, frame) if 0 <= value < 1000 else make_integer(value),
            lambda: (
                self.function("round_to", value, 2, frame=frame) if round_to(value, 2) == value else make_integer(value)
            ),
            lambda: self.choice(value, value + other, frame),
        ]
        if value % other == 0:
            ways.append(lambda: self.binary("*", value // other, other, frame))
        if sizes:
            ways += [lambda: ast.Dim(NOWHERE, self.pick(list(sizes)))] * 3
        return self.pick(ways)()

    def binary(self, operator: str, left: Any, right: Any, frame: Frame) -> ast.Expr:
        return ast.Binary(NOWHERE, operator, *(operand(self.expr(value, frame)) for value in (left, right)))

    def function(self, name: str, *values: Any, frame: Frame) -> ast.Expr:
        return ast.FunctionCall(NOWHERE, name, tuple(self.expr(value, frame) for value in values))

    def root(self, value: int, frame: Frame) -> ast.Expr:
        square = value * value + self.number(0, 2 * value)
        return ast.FunctionCall(NOWHERE, "floor", (self.function("sqrt", square, frame=frame),))

    def choice(self, value: Any, other: Any, frame: Frame) -> ast.Expr:
        decision = self.happens()
        then, otherwise = (value, other) if decision else (other, value)
        return ast.Choice(NOWHERE, self.boolean(decision, frame), self.expr(then, frame), self.expr(otherwise, frame))

    def boolean(self, value: bool, frame: Frame) -> ast.Expr:
        """A condition with this outcome."""
        way = self.number(0, 4)
        low = self.number(0, 8)
        if way == 0:
            return ast.Bool(NOWHERE, value)
        if way == 1:
            operator = self.pick(["<", "<=", "!="] if value else [">", ">=", "=="])
            return self.binary(operator, low, low + self.number(1, 9), frame)
        if way == 2:
            return self.binary(self.pick(["==", "<="] if value else ["!=", "<"]), low, low, frame)
        if way == 3:
            return ast.Unary(NOWHERE, "not", operand(self.expr(not value, frame)))
        return self.binary("and" if value else "or", value, value, frame)
