"""Build syntax tree nodes without source text, and random expressions for a given value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnspec.diagnostics import Source
from cnnspec.ir.evaluate import round_to
from cnnspec.schema import Interval, TensorName
from cnnspec.shapes import Shape
from cnnspec.syntax import LABEL_WORDS, ast
from cnnspec.testing.draw import Rng

NO_SOURCE = Source("generated", "")
NOWHERE = NO_SOURCE.end


@dataclass
class Frame:
    """The names in scope.

    Attributes:
        input_shape: The shape of `in`, the tensor that enters the current statement.
        values: Values by name.
        labels: Labels with their shapes.
        modules: Labels of modules that can be used again, with the shapes of their input and output.
        labeling: Whether labels can be defined here.
        counter: The variable of the innermost repeat, if it makes the names of calls unique here.
        own: The labels that are defined in these braces.
    """

    input_shape: Shape
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    labels: dict[str, Shape] = field(default_factory=dict[str, Shape])
    labeling: bool = True
    counter: str | None = None
    own: set[str] = field(default_factory=set[str])
    modules: dict[str, tuple[Shape, Shape]] = field(default_factory=dict[str, tuple[Shape, Shape]])

    def inner(self, input_shape: Shape) -> Frame:
        modules = dict(self.modules)
        return Frame(input_shape, dict(self.values), dict(self.labels), self.labeling, self.counter, modules=modules)

    def repeated(self, input_shape: Shape, counter: str | None) -> Frame:
        """Return the frame of a repeated group, in which labels would occur twice."""
        values = {name: value for name, value in self.values.items() if name != counter}
        name = counter if self.labeling else None
        return Frame(input_shape, values, dict(self.labels), False, name, modules=dict(self.modules))


def make_call(callee: str, args: Sequence[ast.Argument] = (), repeat: int | None = None) -> ast.Call:
    return ast.Call(NOWHERE, callee, repeat, tuple(args), NOWHERE)


def make_flow(*elements: ast.Element, label: str | None = None, condition: ast.Expr | None = None) -> ast.Flow:
    name = ast.LabelName(NOWHERE, label, label in LABEL_WORDS) if label else None
    return ast.Flow(NOWHERE, name, elements, condition)


def make_integer(value: int) -> ast.Expr:
    number = ast.Number(NOWHERE, abs(value), str(abs(value)))
    return number if value >= 0 else ast.Group(NOWHERE, ast.Unary(NOWHERE, "-", number))


def operand(expr: ast.Expr) -> ast.Expr:
    """Return an expression as an operand or positional argument: in parentheses unless it is a single token."""
    compound = isinstance(expr, (ast.Binary, ast.Unary, ast.Choice, ast.Interval))
    return ast.Group(NOWHERE, expr) if compound else expr


class ExpressionWriter:
    """Write values in every form that the language has."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng

    def expr(self, value: Any, frame: Frame) -> ast.Expr:
        """Return an expression with this value in this scope."""
        if isinstance(value, (list, tuple)) and not isinstance(value, Interval):
            if len(value) == 2 and isinstance(value, tuple) and min(value) >= 0:
                is_square = value[0] == value[1] and self.rng.rarely(2)
                return self.expr(value[0], frame) if is_square else ast.SizeLiteral(NOWHERE, *value)
            return ast.ListLiteral(NOWHERE, tuple(self.expr(item, frame) for item in value))
        if isinstance(value, TensorName):
            return ast.In(NOWHERE) if value == "in" else ast.Reference(NOWHERE, value[1:])
        known = [name for name, other in frame.values.items() if type(other) is type(value) and other == value]
        if known and self.rng.rarely(2):
            return ast.Name(NOWHERE, self.rng.choice(known))
        if isinstance(value, Interval):
            return ast.Interval(NOWHERE, *(operand(self.expr(end, frame)) for end in value))
        if isinstance(value, bool):
            return self.boolean(value, frame) if self.rng.rarely() else ast.Bool(NOWHERE, value)
        if isinstance(value, int):
            return self.integer(value, frame) if self.rng.rarely() else make_integer(value)
        if isinstance(value, float):
            return ast.Number(NOWHERE, value, repr(value))
        return ast.Name(NOWHERE, str(value))

    def integer(self, value: int, frame: Frame) -> ast.Expr:
        """Return a compound expression for an integer."""
        other = self.rng.randint(1, 9)
        sizes = {axis: size for axis, size in zip("chw", frame.input_shape, strict=False) if size == value}
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
        lists = [(name, items) for name, items in frame.values.items() if type(items) is list and value in items]
        if lists:
            name, items = self.rng.choice(lists)
            place = self.expr(items.index(value), frame)
            ways += [lambda: ast.Index(NOWHERE, ast.Name(NOWHERE, name), place)] * 4
        ways.append(lambda: self.function("sum", [value - other, other], frame=frame))
        if 0 <= value <= 4:
            ways.append(lambda: self.function("len", [other] * value, frame=frame))
        if value % other == 0:
            ways.append(lambda: self.binary("*", value // other, other, frame))
        if frame.input_shape:
            axis, size = self.rng.choice(list(zip("chw", frame.input_shape, strict=False)))
            rest = operand(self.expr(value - size, frame))
            ways += [lambda: ast.Binary(NOWHERE, "+", ast.Dim(NOWHERE, axis), rest)] * 4
        if sizes:
            ways += [lambda: ast.Dim(NOWHERE, self.rng.choice(list(sizes)))] * 3
        return self.rng.choice(ways)()

    def binary(self, operator: str, left: Any, right: Any, frame: Frame) -> ast.Expr:
        return ast.Binary(NOWHERE, operator, *(operand(self.expr(value, frame)) for value in (left, right)))

    def function(self, name: str, *values: Any, frame: Frame) -> ast.Expr:
        return ast.FunctionCall(NOWHERE, name, tuple(self.expr(value, frame) for value in values))

    def root(self, value: int, frame: Frame) -> ast.Expr:
        square = value * value + self.rng.randint(0, 2 * value)
        return ast.FunctionCall(NOWHERE, "floor", (self.function("sqrt", square, frame=frame),))

    def choice(self, value: Any, other: Any, frame: Frame) -> ast.Expr:
        decision = self.rng.boolean()
        then, otherwise = (value, other) if decision else (other, value)
        return ast.Choice(NOWHERE, self.boolean(decision, frame), self.expr(then, frame), self.expr(otherwise, frame))

    def boolean(self, value: bool, frame: Frame) -> ast.Expr:
        """Return a condition with this value."""
        way = self.rng.randint(0, 4)
        low = self.rng.randint(0, 8)
        if way == 0:
            return ast.Bool(NOWHERE, value)
        if way == 1:
            operator = self.rng.choice(["<", "<=", "!="] if value else [">", ">=", "=="])
            return self.binary(operator, low, low + self.rng.randint(1, 9), frame)
        if way == 2:
            return self.binary(self.rng.choice(["==", "<="] if value else ["!=", "<"]), low, low, frame)
        if way == 3:
            return ast.Unary(NOWHERE, "not", operand(self.expr(not value, frame)))
        return self.binary("and" if value else "or", value, value, frame)
