"""The value of an expression, and its fit to the type of a parameter.

Integers are exact, `/` keeps fractions, nothing is ever rounded unasked.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

from cnnspec.ir.model import Expr
from cnnspec.limits import MAX_INTEGER
from cnnspec.ops.inits import INITS, InitScheme
from cnnspec.schema import Interval, OpName, Size, Type, Word
from cnnspec.shapes import Shape

_MAX_VALUE = MAX_INTEGER**2


class ExprFault(Exception):
    """An expression without a value, or a value of the wrong type.

    Attributes:
        origin: The number of the piece at fault.
    """

    def __init__(self, code: str, message: str, origin: int, help: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.origin, self.help = code, message, origin, help


class Unknown:
    """The value of a `let` that was at fault."""


class UnknownShape(Exception):
    """The expression asks for what an earlier fault left unknown: the size of a tensor, or a value."""


def show(value: object) -> str:
    """A value as the language writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator} = {float(value):.4g}"
    if isinstance(value, Interval):
        return f"{show(value[0])}..{show(value[1])}"
    if isinstance(value, (list, tuple)):
        items = [show(item) for item in cast(Sequence[object], value)]
        return f"[{', '.join(items)}]" if isinstance(value, list) else "x".join(items)
    if isinstance(value, InitScheme):
        return f"{value.name}({', '.join(show(setting) for setting in value.changed().values())})"
    if isinstance(value, (OpName, Word)):
        return str(value)
    if isinstance(value, float):
        short = f"{value:g}"  # which must not say an integer of what is none
        return repr(value) if float(short).is_integer() and not value.is_integer() else short
    return f'"{value}"' if isinstance(value, str) else str(value)


def kind_of(value: object) -> str:
    """What a value is, in words."""
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, (float, Fraction)):
        return "a number"
    if isinstance(value, Interval):
        return "a range"
    if isinstance(value, tuple):
        return "a size"
    if isinstance(value, list):
        return "a list"
    return (
        "the name of an operator" if isinstance(value, OpName) else "a word" if isinstance(value, Word) else "a string"
    )


def _exact(value: Any) -> Any:
    return value.numerator if type(value) is Fraction and value.denominator == 1 else value


def _divide(a: Any, b: Any) -> Any:
    return a / b if isinstance(a, float) or isinstance(b, float) else Fraction(a) / Fraction(b)


def _sqrt(value: float) -> int | float:
    """The root; that of a square is exact."""
    root = math.isqrt(value) if isinstance(value, int) and value >= 0 else -1
    return root if root * root == value else math.sqrt(value)


def round_to(value: float, multiple: int) -> int:
    """The nearest multiple, at least one, never more than 10 % below the value.

    Source: `_make_divisible` of Sandler et al. 2018, arXiv 1801.04381 (MobileNetV2).

    Raises:
        ValueError: There are no multiples of what is less than 1.
    """
    if multiple < 1:
        raise ValueError
    rounded = max(multiple, int(value + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * value else rounded


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_FUNCTIONS: dict[str, tuple[int | None, Callable[..., Any]]] = {
    "min": (None, min),
    "max": (None, max),
    "ceil": (1, math.ceil),
    "floor": (1, math.floor),
    "sqrt": (1, _sqrt),
    "round_to": (2, round_to),
}
_NEEDS = {
    "sqrt": "a number below 0 has no root; state what must hold with `require`",
    "round_to": "round to multiples of 1 or more: `round_to(x, 8)`",
}


def reads_image(expr: Expr) -> bool:
    """Whether the value depends on the tensor that enters, by `in.c` and its like."""
    return expr.kind == "dim" or any(map(reads_image, expr.parts))


_NUMBERS = (int, float, Fraction)


def _is_number(value: object) -> bool:
    return type(value) in _NUMBERS  # `isinstance` would ask the abstract class behind Fraction, at ten times the cost


def evaluate(expr: Expr, names: Mapping[str, Any], entering: Shape | None = None) -> Any:
    """The value of an expression.

    Args:
        expr: What to evaluate.
        names: The values of the names in scope.
        entering: Shape of the tensor that enters the innermost braces, for `in.c` and its like.

    Raises:
        ExprFault: It has no value.
        UnknownShape: It needs `in`, whose shape is not known because of an earlier fault.
    """
    kind = expr.kind
    if kind in ("number", "bool"):
        return expr.value
    if kind == "name":
        value = names.get(str(expr.value))
        if value is None or isinstance(value, Unknown):
            raise UnknownShape
        return value
    if kind == "text":
        return expr.value
    if kind == "op":
        return OpName(expr.value)
    if kind == "word":
        return Word(expr.value)
    if kind == "dim":
        return _dim(expr, entering)
    if kind == "choice":
        return evaluate(expr.parts[1 if _truth(expr.parts[0], names, entering) else 2], names, entering)
    if kind == "and":
        return all(_truth(part, names, entering) for part in expr.parts)
    if kind == "or":
        return any(_truth(part, names, entering) for part in expr.parts)
    if kind == "not":
        return not _truth(expr.parts[0], names, entering)
    values = [evaluate(part, names, entering) for part in expr.parts]
    if kind == "size":
        return tuple(values)
    if kind == "init":
        return _scheme(expr, values)
    if kind == "list":
        return values
    if kind in ("==", "!="):
        return (values[0] == values[1]) == (kind == "==")
    for part, value in zip(expr.parts, values, strict=True):
        if not _is_number(value):
            what = (
                f"`{expr.value}`"
                if kind == "call"
                else "a range"
                if kind == "interval"
                else f"`{'-' if kind == 'neg' else kind}`"
            )
            help = "a negative argument stands in parentheses: `conv 3x3 (-1)`" if kind == "-" else None
            help = f"elements are joined by `|`: `| {value}`" if isinstance(value, OpName) else help
            raise ExprFault("E0204", f"{what} needs numbers, got {kind_of(value)}", part.origin, help)
    if kind == "interval":
        low, high = values
        if low > high:
            raise ExprFault(
                "E0215",
                f"the range {show(low)}..{show(high)} ends before it starts",
                expr.origin,
                f"write `{show(high)}..{show(low)}`",
            )
        return Interval((low, high))
    if kind in _ORDER:
        return _ORDER[kind](values[0], values[1])
    return _number(expr, values)


def _scheme(expr: Expr, values: list[Any]) -> InitScheme:
    """An initialisation with its arguments, in the order in which `init` statements name them."""
    scheme = INITS[str(expr.value)]
    parameters = list(scheme.parameters.values())
    if len(values) > len(parameters):
        raise ExprFault("E0205", f"`{scheme.name}` takes {len(parameters)} values, got {len(values)}", expr.origin)
    given = zip(parameters, values, expr.parts, strict=False)
    settings = {p.name: convert(value, p.type, p.name, part.origin) for p, value, part in given}
    missing = [p.name for p in parameters if p.required and p.name not in settings]
    if missing:
        raise ExprFault("E0203", f"`{scheme.name}` needs `{missing[0]}`", expr.origin, f"write `{scheme.name}(0.01)`")
    made = scheme(**settings)
    if refused := made.refused():
        raise ExprFault("E0215", refused[0], expr.origin, refused[1])
    return made


def _number(expr: Expr, values: list[Any]) -> Any:
    kind = expr.kind
    try:
        if kind == "neg":
            return -values[0]
        if kind == "call":
            count, function = _FUNCTIONS[str(expr.value)]
            if len(values) != count if count is not None else len(values) < 2:
                takes = f"{count} value{'s' * (count > 1)}" if count is not None else "two values or more"
                raise ExprFault("E0205", f"`{expr.value}` takes {takes}, got {len(values)}", expr.origin)
            result = function(*values)
        else:
            result = _ARITHMETIC[kind](*values)
    except ZeroDivisionError:
        raise ExprFault("E0214", "division by zero", expr.origin, "state what must hold with `require`") from None
    except (ValueError, OverflowError):
        message = f"`{expr.value or kind}` has no value for {', '.join(map(show, values))}"
        raise ExprFault("E0214", message, expr.origin, _NEEDS.get(str(expr.value))) from None
    result = _exact(result)
    if isinstance(result, float) and not math.isfinite(result):
        raise ExprFault("E0214", "the result is not finite", expr.origin)
    if abs(result) > _MAX_VALUE or (isinstance(result, Fraction) and result.denominator > _MAX_VALUE):
        raise ExprFault("E0405", f"the result is larger than the limit of {_MAX_VALUE}", expr.origin)
    return result


def _dim(expr: Expr, entering: Shape | None) -> int:
    if entering is None:
        raise UnknownShape
    if expr.value == "c":
        return entering[0]
    if len(entering) == 1:
        raise ExprFault(
            "E0308",
            f"`in.{expr.value}` of flat features, which have no height and width",
            expr.origin,
            "use `in.c`, or take it before `flatten`",
        )
    return entering[1 if expr.value == "h" else 2]


def _truth(expr: Expr, names: Mapping[str, Any], entering: Shape | None) -> bool:
    value = evaluate(expr, names, entering)
    if not isinstance(value, bool):
        raise ExprFault(
            "E0204", f"a condition must be true or false, got {show(value)}", expr.origin, "compare it: `x != 0`"
        )
    return value


def truth(expr: Expr, names: Mapping[str, Any], entering: Shape | None) -> bool:
    """The value of a condition.

    Raises:
        ExprFault: It has none.
        UnknownShape: It needs a shape that is not known.
    """
    return _truth(expr, names, entering)


def convert(value: Any, type_: Type, name: str, origin: int) -> Any:
    """A value as a parameter of this type takes it.

    Args:
        value: What `evaluate` gave.
        type_: The parameter's type.
        name: The parameter's name, for the message.
        origin: The piece to point to.

    Raises:
        ExprFault: It does not fit.
    """
    kind = type_.kind
    if isinstance(value, Word) and value in type_.words:
        return value
    value = _exact(value)
    result: Any = None
    help: str | None = None
    if kind == "int":
        if _is_number(value) and value == int(value):
            result = int(value)
        elif isinstance(value, Fraction):
            help = "divide with `//`, or use `round_to(x, 8)`"
        elif isinstance(value, float):
            help = "use `floor`, `ceil` or `round_to`"
        elif type(value) is tuple and name == "c":
            help = f"the kernel comes first: `{show(cast(object, value))} c=...`"
    elif kind == "float":
        result = float(value) if _is_number(value) else None
    elif kind == "bool":
        result = value if isinstance(value, bool) else None
        help = f"write `{name}={show(bool(value))}`" if _is_number(value) else None
    elif kind == "size":
        if type(value) is str and value in type_.words:
            help = f"write `{value}`"
        elif type(value) is tuple:
            result = cast(Size, value)
        elif _is_number(value) and value == int(value):
            result = (int(value), int(value))
        elif type(value) is list and (pair := _list(value)) and len(pair) == 2:
            help = f"write `{pair[0]}x{pair[1]}`"
    elif kind == "interval":
        result = value if isinstance(value, Interval) else None
        help = f"write `0..{value}` for the first {value}" if name == "range" and type(value) is int else None
    elif kind == "list":
        result = _list(value)
    elif kind == "op":
        result = value if isinstance(value, OpName) else None
    elif kind == "init":
        result = value if isinstance(value, InitScheme) else None
    elif kind == "str":
        result = value if type(value) is str else None
    if result is None:
        raise ExprFault("E0204", f"`{name}` must be {type_}, got {show(cast(object, value))}", origin, help)
    _bound(result, type_, name, origin)
    return result


def _list(value: Any) -> tuple[int, ...] | None:
    items: list[Any] = list(cast(Sequence[Any], value)) if type(value) in (list, tuple) else [value]
    return tuple(int(item) for item in items) if all(_is_number(item) and item == int(item) for item in items) else None


_LIMITS: tuple[tuple[str, Callable[[Any, Any], bool], str, str], ...] = (
    ("least", operator.lt, "at least", "write `{0}` or more"),
    ("greatest", operator.gt, "at most", "write `{0}` or less"),
    ("above", operator.le, "above", "write a number {1}"),
    ("below", operator.ge, "below", "write a number {1}"),
)
"""The bounds of a type by their names, what breaks them, and what is said then."""


def _bound(result: Any, type_: Type, name: str, origin: int) -> None:
    numbers = cast("tuple[Any, ...]", result) if type(result) in (tuple, Interval) else (result,)
    for number in numbers:
        if not _is_number(number):
            continue
        for limit, breaks, must, nearest in _LIMITS:
            bound = getattr(type_.bounds, limit)
            if bound is not None and breaks(number, bound):
                listed = type_.kind == "list"
                got = show(cast(object, list(numbers) if listed else result))
                help = nearest.format(f"{name}={bound:g}", f"{must} {bound:g}")
                help = f"each number is {must} {bound:g}" if listed else help
                raise ExprFault("E0215", f"`{name}` must be {must} {bound:g}, got {got}", origin, help)
        if isinstance(number, int) and abs(number) > MAX_INTEGER:
            raise ExprFault(
                "E0405", f"`{name}` is larger than the limit of {MAX_INTEGER}", origin, "write a smaller number"
            )


_SEQUENCES: dict[type[Any], str] = {list: "list", Interval: "interval", tuple: "size"}


def literal(value: Any) -> Expr:
    """The expression that has this value."""
    if isinstance(value, bool):
        return Expr(kind="bool", value=value)
    if isinstance(value, (int, float)):
        return Expr(kind="number", value=value)
    if isinstance(value, Fraction):
        return Expr(kind="/", parts=(literal(value.numerator), literal(value.denominator)))
    if isinstance(value, InitScheme):
        values = [setting for setting in value.settings().values() if setting is not None]
        return Expr(kind="init", value=value.name, parts=tuple(literal(setting) for setting in values))
    if isinstance(value, str):
        kind = "op" if isinstance(value, OpName) else "word" if isinstance(value, Word) else "text"
        return Expr(kind=kind, value=str(value))
    return Expr(kind=_SEQUENCES[type(value)], parts=tuple(literal(item) for item in value))
