"""Evaluate expressions, and convert their values to the types of parameters.

Integers are exact, `/` makes fractions, and nothing is rounded implicitly.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

from cnnspec.diagnostics import counted
from cnnspec.diagnostics.suggestions import (
    A_TENSOR,
    Advice,
    ReplaceValue,
    RespectBound,
    Suggestion,
    TakeItem,
    UseFloorDivision,
    WrapValue,
    describe,
    one_of,
)
from cnnspec.ir.model import Expr
from cnnspec.limits import MAX_INTEGER, MIN_NUMBER
from cnnspec.ops.inits import INITS, InitScheme
from cnnspec.schema import Interval, OpName, Path, Size, TensorName, Type, Word
from cnnspec.shapes import Shape

_MAX_VALUE = MAX_INTEGER**2


class ExpressionError(Exception):
    """An expression without a value, or a value of the wrong type.

    Attributes:
        code: The code of the diagnostic.
        message: The problem.
        origin: The number of the piece that is wrong.
        suggestion: The action to take.
    """

    def __init__(self, code: str, message: str, origin: int, suggestion: Suggestion | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.origin, self.suggestion = code, message, origin, suggestion

    def help_for(self, value: str) -> str | None:
        """Return the suggestion in words; `value` is the code that is wrong."""
        return describe(self.suggestion, value) if self.suggestion else None


class Unknown:
    """The value of a `let` with an error."""


class Template(str):
    """A string with expressions in braces.

    Attributes:
        holes: The expressions in order, without those that are a single name.
    """

    holes: tuple[Expr, ...]

    @classmethod
    def of(cls, text: str, holes: tuple[Expr, ...]) -> Template:
        """Return a template."""
        made = cls(text)
        made.holes = holes
        return made


class UnknownShape(Exception):
    """The expression depends on a value or the size of a tensor that is unknown after an earlier error."""


def show(value: object) -> str:
    """Render a value in the syntax of the language."""
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
    if isinstance(value, (OpName, TensorName, Word)):
        return str(value)
    if isinstance(value, float):
        short = f"{value:g}"  # which must not look like an integer if it is none
        return repr(value) if float(short).is_integer() and not value.is_integer() else short
    return f'"{value}"' if isinstance(value, str) else str(value)


def kind_of(value: object) -> str:
    """Name the kind of a value in words."""
    if isinstance(value, bool):
        return "a boolean"
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
    if isinstance(value, TensorName):
        return "a tensor"
    return (
        "the name of an operator" if isinstance(value, OpName) else "a word" if isinstance(value, Word) else "a string"
    )


def _exact(value: Any) -> Any:
    return value.numerator if type(value) is Fraction and value.denominator == 1 else value


def _divide(a: Any, b: Any) -> Any:
    return a / b if isinstance(a, float) or isinstance(b, float) else Fraction(a) / Fraction(b)


def _sqrt(value: float) -> int | float:
    """Return the square root; that of a square is exact."""
    if isinstance(value, int) and value >= 0 and (root := math.isqrt(value)) ** 2 == value:
        return root
    return math.sqrt(value)


def round_to(value: float, multiple: int) -> int:
    """Round to the nearest multiple, at least one of them and at most 10 % below the value.

    Source: `_make_divisible` of Sandler et al. 2018, arXiv 1801.04381 (MobileNetV2).

    Raises:
        ValueError: `multiple` is less than 1.
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
    "sum": (1, sum),
    "len": (1, len),
}
_ADVICE = {
    "sqrt": Advice("use a number that is at least 0"),
    "round_to": Advice("use a multiple of at least 1, as in `round_to(12, 8)`"),
}


def reads_image(expr: Expr) -> bool:
    """Check whether the value depends on the input tensor, as `in.c` does."""
    return expr.kind == "dim" or any(map(reads_image, expr.parts))


_NUMBERS = (int, float, Fraction)


def is_number(value: object) -> bool:
    """Check whether a value is a number; `true` and `false` are not."""
    return type(value) in _NUMBERS  # `isinstance` would ask the abstract base class of Fraction, at ten times the cost


def evaluate(expr: Expr, names: Mapping[str, Any], entering: Shape | None = None) -> Any:
    """Evaluate an expression.

    Args:
        expr: The expression.
        names: The values of the names in scope.
        entering: Shape of the input of the statement, for `in.c`, `in.h` and `in.w`.

    Raises:
        ExpressionError: It has no value.
        UnknownShape: It depends on a name or shape that is unknown after an earlier error.
    """
    return _EVALUATORS.get(expr.kind, _number)(expr, names, entering)


Names = Mapping[str, Any]


def _literal(expr: Expr, names: Names, entering: Shape | None) -> Any:
    return expr.value


def _text(expr: Expr, names: Names, entering: Shape | None) -> Any:
    return Template.of(str(expr.value), expr.parts) if expr.parts else expr.value


def _name(expr: Expr, names: Names, entering: Shape | None) -> Any:
    value = names.get(str(expr.value))
    if value is None or isinstance(value, Unknown):
        raise UnknownShape
    return value


def _dim(expr: Expr, names: Names, entering: Shape | None) -> int:
    if entering is None:
        raise UnknownShape
    if expr.value == "c":
        return entering[0]
    if len(entering) == 1:
        raise ExpressionError(
            "E0308",
            f"`in.{expr.value}` is not defined for flat features, which have no height and width",
            expr.origin,
            Advice(f"use `in.c`, or use `in.{expr.value}` before `flatten`"),
        )
    return entering[1 if expr.value == "h" else 2]


def _choice(expr: Expr, names: Names, entering: Shape | None) -> Any:
    return evaluate(expr.parts[1 if truth(expr.parts[0], names, entering) else 2], names, entering)


def truth(expr: Expr, names: Names, entering: Shape | None) -> bool:
    """Evaluate a condition.

    Raises:
        ExpressionError: It is not true or false.
        UnknownShape: It depends on an unknown name or shape.
    """
    value = evaluate(expr, names, entering)
    if not isinstance(value, bool):
        message = f"a condition must be true or false, got {show(value)}"
        raise ExpressionError("E0204", message, expr.origin, Advice("write a comparison, such as `x != 0`"))
    return value


def _parts(expr: Expr, names: Names, entering: Shape | None) -> list[Any]:
    return [evaluate(part, names, entering) for part in expr.parts]


def _equal(expr: Expr, names: Names, entering: Shape | None) -> bool:
    left, right = _parts(expr, names, entering)
    return left == right and (type(left) is type(right) or (is_number(left) and is_number(right)))


def _scheme(expr: Expr, names: Names, entering: Shape | None) -> InitScheme:
    """Evaluate an initialization; its arguments are positional, in the order of an `init` statement."""
    values = _parts(expr, names, entering)
    scheme = INITS[str(expr.value)]
    parameters = list(scheme.parameters.values())
    if len(values) > len(parameters):
        raise ExpressionError(
            "E0205", f"`{scheme.name}` takes at most {len(parameters)} arguments, got {len(values)}", expr.origin
        )
    given = zip(parameters, values, expr.parts, strict=False)
    settings = {p.name: convert(value, p.type, p.name, part.origin) for p, value, part in given}
    missing = [p.name for p in parameters if p.required and p.name not in settings]
    if missing:
        written = ReplaceValue(f"{scheme.name}(0.01)")
        raise ExpressionError(
            "E0203", f"`{scheme.name}` is missing the required argument `{missing[0]}`", expr.origin, written
        )
    made = scheme(**settings)
    if refused := made.refused():
        raise ExpressionError("E0215", refused[0], expr.origin, refused[1])
    return made


def _number(expr: Expr, names: Names, entering: Shape | None) -> Any:
    """Evaluate an operation on numbers."""
    kind, values = expr.kind, _parts(expr, names, entering)
    for part, value in zip(expr.parts, values, strict=True):
        if not is_number(value):
            raise _not_a_number(expr, part, value)
    if kind in _ORDER:
        return _ORDER[kind](values[0], values[1])
    return _interval(expr, values) if kind == "interval" else _calculate(expr, values)


def _not_a_number(expr: Expr, part: Expr, value: Any) -> ExpressionError:
    named = {"call": f"`{expr.value}`", "interval": "a range", "neg": "`-`"}
    suggestion = None
    if expr.kind == "-" and expr.parts[1].kind == "number":
        suggestion = Advice(f"put a negative argument in parentheses: `(-{show(expr.parts[1].value)})`")
    if isinstance(value, OpName):
        suggestion = Advice(f"separate elements with `|`: `| {value}`")
    message = f"{named.get(expr.kind, f'`{expr.kind}`')} expects numbers, got {kind_of(value)}"
    return ExpressionError("E0204", message, part.origin, suggestion)


def _function(expr: Expr, names: Names, entering: Shape | None) -> Any:
    """Evaluate a call of a function, of which `sum` and `len` take a list."""
    if expr.value not in ("sum", "len"):
        return _number(expr, names, entering)
    values = _parts(expr, names, entering)
    if len(values) == 1 and (type(values[0]) is not list or not all(map(is_number, cast("list[Any]", values[0])))):
        message = f"`{expr.value}` expects a list of numbers, got {show(cast(object, values[0]))}"
        advice = Advice(f"write a list, such as `{expr.value}([3, 4, 6, 3])`")
        raise ExpressionError("E0204", message, expr.parts[0].origin, advice)
    return _calculate(expr, values)


def _index(expr: Expr, names: Names, entering: Shape | None) -> Any:
    """Evaluate an item of a list, or the height or width of a size."""
    sequence, place = _parts(expr, names, entering)
    if type(sequence) not in (list, tuple):
        message = f"`{expr.parts[0].value}` is {kind_of(sequence)}, not a list or a size"
        advice = Advice("index a named list, such as `let widths = [3, 4, 6, 3]`")
        raise ExpressionError("E0204", message, expr.parts[0].origin, advice)
    help = f"use an index from 0 to {len(sequence) - 1}" if len(sequence) > 1 else "use the index 0"
    help = help if sequence else "add items to the list"
    if not is_number(place) or place != int(place):
        message = f"an index must be an integer, got {show(place)}"
        help += ", or round down with `//`" if sequence and isinstance(place, Fraction) else ""
        raise ExpressionError("E0204", message, expr.parts[1].origin, Advice(help))
    if not 0 <= place < len(sequence):
        size = counted(len(sequence), "item")
        message = f"the index {show(place)} is out of range: `{expr.parts[0].value}` has {size}"
        raise ExpressionError("E0214", message, expr.parts[1].origin, Advice(help))
    return sequence[int(place)]


def _interval(expr: Expr, values: list[Any]) -> Interval:
    low, high = values
    if low > high:
        written = f"{show(high)}..{show(low)}"
        exact = isinstance(low, Fraction) or isinstance(high, Fraction)  # which `show` does not render as code
        suggestion = Advice(f"write `{written}`") if exact else ReplaceValue(written)
        message = f"the start of the range {show(low)}..{show(high)} is greater than its end"
        raise ExpressionError("E0215", message, expr.origin, suggestion)
    return Interval((low, high))


def _calculate(expr: Expr, values: list[Any]) -> Any:
    try:
        if expr.kind == "neg":
            return -values[0]
        result = _call(expr, values) if expr.kind == "call" else _ARITHMETIC[expr.kind](*values)
    except ZeroDivisionError:
        divisor = expr.parts[1]
        named = divisor.kind == "name"
        advice = f"change `{divisor.value}`, which is 0 here" if named else "use a divisor that is not 0"
        raise ExpressionError("E0214", "division by zero", expr.origin, Advice(advice)) from None
    except (ValueError, OverflowError):
        message = f"`{expr.value or expr.kind}` is not defined for {', '.join(map(show, values))}"
        raise ExpressionError("E0214", message, expr.origin, _ADVICE.get(str(expr.value))) from None
    result = _exact(result)
    if isinstance(result, float) and not math.isfinite(result):
        raise ExpressionError("E0214", "the result is not finite", expr.origin)
    if abs(result) > _MAX_VALUE or (isinstance(result, Fraction) and result.denominator > _MAX_VALUE):
        message = f"the result exceeds the limit of {_MAX_VALUE:,}"
        raise ExpressionError("E0405", message, expr.origin, Advice("use smaller numbers"))
    return result


def _call(expr: Expr, values: list[Any]) -> Any:
    count, function = _FUNCTIONS[str(expr.value)]
    if len(values) != count if count is not None else len(values) < 2:
        takes = counted(count, "argument") if count is not None else "at least 2 arguments"
        raise ExpressionError("E0205", f"`{expr.value}` takes {takes}, got {len(values)}", expr.origin)
    return function(*values)


_EVALUATORS: dict[str, Callable[[Expr, Names, Shape | None], Any]] = {
    "number": _literal,
    "bool": _literal,
    "name": _name,
    "op": lambda expr, names, entering: OpName(expr.value),
    "word": lambda expr, names, entering: Word(expr.value),
    "tensor": lambda expr, names, entering: TensorName(expr.value),
    "dim": _dim,
    "text": _text,
    "choice": _choice,
    "and": lambda expr, names, entering: all(truth(part, names, entering) for part in expr.parts),
    "or": lambda expr, names, entering: any(truth(part, names, entering) for part in expr.parts),
    "not": lambda expr, names, entering: not truth(expr.parts[0], names, entering),
    "size": lambda expr, names, entering: tuple(_parts(expr, names, entering)),
    "init": _scheme,
    "list": _parts,
    "index": _index,
    "call": _function,
    "==": _equal,
    "!=": lambda expr, names, entering: not _equal(expr, names, entering),
}
"""Evaluators by the kind of the expression; every other kind is an operation on numbers."""


# --- values as parameters ------------------------------------------------------------------------


def convert(value: Any, type_: Type, name: str, origin: int) -> Any:
    """Convert a value to the type of a parameter.

    Args:
        value: A value from `evaluate`.
        type_: The type of the parameter.
        name: The name of the parameter, for the message.
        origin: The number of the piece to point to.

    Raises:
        ExpressionError: It has another type, or is out of bounds.
    """
    if isinstance(value, Word) and value in type_.words:
        return value
    value = _exact(value)
    converter = _CONVERTERS.get(type_.kind)
    result = converter(value) if converter else None
    if result is None:
        message = f"`{name}` must be {type_}, got {show(cast(object, value))}"
        raise ExpressionError("E0204", message, origin, _suggest(value, type_, name))
    _check_bounds(result, type_, name, origin, value)
    return result


def _integer(value: Any) -> int | None:
    return int(value) if is_number(value) and value == int(value) else None


def _size(value: Any) -> Size | None:
    if type(value) is tuple:
        return cast(Size, value)
    side = _integer(value)
    return None if side is None else (side, side)


def _list(value: Any) -> tuple[int, ...] | None:
    items: list[Any] = list(cast(Sequence[Any], value)) if type(value) in (list, tuple) else [value]
    return tuple(int(item) for item in items) if all(is_number(item) and item == int(item) for item in items) else None


def _path(value: Any) -> str | None:
    return str(value) if type(value) in (str, Path) else None


def _paths(value: Any) -> tuple[str, ...] | None:
    items: list[Any] = list(cast(Sequence[Any], value)) if type(value) in (list, tuple) else [value]
    found = [path for item in items if (path := _path(item)) is not None]
    return tuple(found) if len(found) == len(items) else None


def _numbers(value: Any) -> tuple[float, ...] | None:
    items: list[Any] = list(cast(Sequence[Any], value)) if type(value) is list else [value]
    return tuple(map(float, items)) if all(map(is_number, items)) else None


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "int": _integer,
    "float": lambda value: float(value) if is_number(value) else None,
    "bool": lambda value: value if isinstance(value, bool) else None,
    "size": _size,
    "interval": lambda value: value if isinstance(value, Interval) else None,
    "list": _list,
    "numbers": _numbers,
    "path": _path,
    "paths": _paths,
    "op": lambda value: value if isinstance(value, OpName) else None,
    "tensor": lambda value: value if isinstance(value, TensorName) else None,
    "init": lambda value: value if isinstance(value, InitScheme) else None,
    "str": lambda value: value if type(value) in (str, Template) else None,
}
"""Conversions by the kind of the type; None for a value of another type."""


def _suggest(value: Any, type_: Type, name: str) -> Suggestion | None:
    """Suggest what to write for a value of another type."""
    given = cast(object, type(value))
    match type_.kind:
        case "int" if isinstance(value, Fraction):
            return UseFloorDivision()
        case "int" if isinstance(value, float):
            return one_of("round it with `{0}`, `ceil` or `round_to`", WrapValue("floor"))
        case "int" if given is tuple and name == "c":
            return Advice("write a number of channels, such as 16")
        case "int" if given is list and (items := _list(value)) and len(set(items)) > 1:
            return TakeItem()
        case "int" if given in (tuple, list) and (same := _list(value)) and len(set(same)) == 1:
            return ReplaceValue(str(same[0]), name)
        case "str" if is_number(value) and not isinstance(value, Fraction):
            return ReplaceValue(f'"{show(value)}"', name)
        case "bool" if is_number(value):
            return ReplaceValue(show(bool(value)), name)
        case _ if given is str and value in type_.words:
            return ReplaceValue(str(value))
        case "tensor":
            return Advice(A_TENSOR)
        case "int" | "size" if given is str and re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6})?", str(value)):
            return ReplaceValue(str(value))
        case "size" if given is list and (pair := _list(value)) and len(pair) == 2:
            return ReplaceValue(f"{pair[0]}x{pair[1]}")
        case "interval" if name == "range" and given is int:
            return Advice(f"write `0..{value}` for the first {'channel' if value == 1 else f'{value} channels'}")
        case _:
            return None


_LIMITS: tuple[tuple[str, Callable[[Any, Any], bool], str, str | None], ...] = (
    ("least", operator.lt, "at least", "write `{0}` or more"),
    ("greatest", operator.gt, "at most", "write `{0}` or less"),
    ("above", operator.le, "greater than", None),
    ("below", operator.ge, "less than", None),
    ("other_than", operator.eq, "other than", None),
)
"""The bounds of a type: their field, violation, and words, and the help if the bound itself is allowed."""
_EXAMPLES = {"eps": "1e-5", "std": "0.5", "lr": "0.1", "area": "0.1", "weight_decay": "1e-4"}
"""Plausible values where a value of 0 is not allowed and 1 is not plausible."""


def _check_bounds(result: Any, type_: Type, name: str, origin: int, value: Any) -> None:
    several = type(result) in (tuple, Interval)
    numbers = cast("tuple[Any, ...]", result) if several else (result,)
    for number in filter(is_number, numbers):
        for limit, breaks, must, nearest in _LIMITS:
            bound = getattr(type_.bounds, limit)
            if bound is not None and breaks(number, bound):
                must = "nonzero" if limit == "other_than" and not bound else f"{must} {bound:g}"
                help = f"use a value such as `{_EXAMPLES.get(name, '1')}`" if not bound else f"write a number {must}"
                suggestion = RespectBound(f"{bound:g}", name, nearest) if nearest else Advice(help)
                what = f"`{name}`"
                if type_.kind in ("list", "numbers"):
                    what, suggestion = f"each number in `{name}`", Advice(f"use only numbers that are {must}")
                elif type_.kind == "interval":
                    what, suggestion = f"both ends of `{name}`", Advice(f"use a start and an end that are {must}")
                must = must.replace(f"{bound:g}", f"{bound:,}") if bound >= 1000 else must
                given = f"{value:,}" if type(value) is int else show(cast(object, value))
                message = f"{what} must be {must}, got {given}"
                raise ExpressionError("E0215", message, origin, suggestion)
        if number and type_.kind in ("float", "interval") and abs(number) < MIN_NUMBER:
            message = f"`{name}` is too small for float32, got {show(number)}"
            help = f"use a larger number: the smallest is {MIN_NUMBER:g}"
            raise ExpressionError("E0405", message, origin, Advice(help))
        if isinstance(number, int) and abs(number) > MAX_INTEGER:
            message = f"`{name}` exceeds the limit of {MAX_INTEGER:,}"
            raise ExpressionError("E0405", message, origin, Advice("use a smaller number"))


_SEQUENCES: dict[type[Any], str] = {list: "list", Interval: "interval", tuple: "size"}


def literal(value: Any) -> Expr:
    """Make the expression for a value."""
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
        kinds = {OpName: "op", TensorName: "tensor", Word: "word"}
        kind = kinds.get(cast("type[Any]", type(value)), "text")
        return Expr(kind=kind, value=str(value), parts=value.holes if isinstance(value, Template) else ())
    return Expr(kind=_SEQUENCES[type(value)], parts=tuple(literal(item) for item in value))
