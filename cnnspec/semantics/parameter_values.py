"""Values for the parameters of a spec that come from outside: `--set`, or keyword arguments in Python."""

from __future__ import annotations

from math import isfinite
from typing import Any, cast

from cnnspec.diagnostics import CnnspecError, Diagnostic, Reported, Reporter, Source, failure
from cnnspec.ir.evaluate import ExpressionError, UnknownShape, evaluate
from cnnspec.limits import MAX_LITERAL, MAX_NAME
from cnnspec.semantics.context import Context
from cnnspec.semantics.names import ExpressionResolver
from cnnspec.semantics.scope import FileScope, LocalScope
from cnnspec.syntax import ast, parse


def parameter_value(name: str, value: Any) -> Any:
    """Return a value of the language; a string is read as an expression, or as a bare word.

    Raises:
        CnnspecError: The value does not exist in the language.
    """
    if not isinstance(value, str):
        _require_value(name, value)
        return value
    reporter = Reporter()
    try:
        return _evaluate(name, value, reporter)
    except ExpressionError as error:
        reporter.add(Diagnostic(error.code, error.message))
    except (Reported, UnknownShape):
        pass
    if value.isidentifier() and len(value) <= MAX_NAME:
        return value
    raise _not_a_value(name, value, reporter)


def _evaluate(name: str, text: str, reporter: Reporter) -> Any:
    """Evaluate an expression without names.

    Raises:
        ExpressionError: It has no value.
        Reported: It is not an expression, or contains a name.
        UnknownShape: It depends on a tensor.
    """
    file = parse(Source(f"--set {name}", f"let value = {text}\n"), reporter)
    statement = file.statements[0] if file and not reporter.failed and len(file.statements) == 1 else None
    if file is None or not isinstance(statement, ast.Let):
        raise Reported
    scope = LocalScope(FileScope(file, lambda _: None), {})
    return evaluate(ExpressionResolver(Context(reporter)).resolve(statement.value, scope), {})


def _not_a_value(name: str, text: str, reporter: Reporter) -> CnnspecError:
    shown = text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}..."
    return failure(
        "E0204",
        f"invalid value `{name}={shown}`",
        notes=[f"parsed as an expression: {error.message}" for error in reporter.diagnostics[:1]],
        help="use a number, a size like `3x3`, `true` or `false`, or the name of an operator",
    )


def _require_value(name: str, value: object) -> None:
    """Refuse Python objects that are not values of the language; its numbers are finite and limited."""
    kind = type(value)
    parts = cast("tuple[Any, ...]", value) if kind in (tuple, list) else (cast(Any, value),)
    message = None
    if kind not in (bool, int, float, tuple, list):
        message = f"unsupported type `{kind.__name__}` for `{name}`"
    elif kind is list and not all(type(part) is int or (type(part) is float and isfinite(part)) for part in parts):
        message = f"expected a list of finite numbers for `{name}`"
    elif kind is tuple and [type(part) for part in parts] != [int, int]:
        message = f"expected a tuple of two integers for `{name}`"
    elif kind is float and not isfinite(parts[0]):
        message = f"`{name}` must be finite, got {value}"
    if message is not None:
        help = "use a number, a size like `(3, 3)`, a list of numbers, `True` or `False`, or the name of an operator"
        raise failure("E0204", message, help=help)
    if any(abs(part) > MAX_LITERAL for part in parts):
        raise failure("E0405", f"`{name}` exceeds the limit of {MAX_LITERAL:,}", help="use a smaller number")
