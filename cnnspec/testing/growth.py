"""Random blocks that accept every map, because the channels of each convolution are computed from `in`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cnnspec.shapes import Shape
from cnnspec.syntax import ast
from cnnspec.testing.draw import Rng
from cnnspec.testing.writing import NOWHERE, make_call, make_flow, make_integer

_IN = ast.In(NOWHERE)
_CHANNELS = ast.Dim(NOWHERE, "c")


def _name(name: str) -> ast.Name:
    return ast.Name(NOWHERE, name)


def _more(amount: ast.Expr) -> ast.Expr:
    return ast.Binary(NOWHERE, "+", _CHANNELS, amount)


def _conv(channels: ast.Expr) -> ast.Call:
    size = ast.SizeLiteral(NOWHERE, 1, 1)
    return make_call("conv", [ast.Argument(NOWHERE, None, size), ast.Argument(NOWHERE, "c", channels)])


def _grow(amount: int) -> ast.Flow:
    return make_flow(_conv(_more(make_integer(amount))))


def _table() -> ast.Each:
    rows = tuple(ast.Row(NOWHERE, None, (ast.SizeLiteral(NOWHERE, side, side),)) for side in (1, 3))
    fixed = ast.Argument(NOWHERE, "c", _more(make_integer(1)))
    return ast.Each(NOWHERE, "conv", (_name("kernel"),), (fixed,), rows, NOWHERE)


def _even() -> ast.Expr:
    rest = ast.Binary(NOWHERE, "%", _CHANNELS, make_integer(2))
    return ast.Binary(NOWHERE, "==", rest, make_integer(0))


def _add(first: ast.Element) -> ast.Flow:
    return make_flow(ast.Join(NOWHERE, "add", (make_flow(first, _conv(_CHANNELS)), make_flow(_IN))))


@dataclass(frozen=True)
class _Step:
    """Statements of a body, and the channels after them: of the channels before them, those of the block, and `k`."""

    statements: tuple[ast.Statement, ...]
    after: Callable[[int, int, int], int]


_STEPS = (
    _Step((make_flow(_conv(_more(make_integer(1))), _conv(_more(make_integer(2)))),), lambda c, block, k: c + 2),
    _Step((make_flow(ast.Repeat(NOWHERE, make_integer(2), None, (_grow(1),), NOWHERE)),), lambda c, block, k: c + 2),
    _Step((make_flow(make_call("relu"), ast.Braces(NOWHERE, (_grow(1), _grow(2)))),), lambda c, block, k: c + 3),
    _Step(
        (ast.Let(NOWHERE, "width", _more(make_integer(1)), NOWHERE), _grow(3), make_flow(_conv(_name("width")))),
        lambda c, block, k: c + 1,
    ),
    _Step((make_flow(_table()),), lambda c, block, k: c + 1),
    _Step((_grow(1).replace(condition=_even()),), lambda c, block, k: c + (c % 2 == 0)),
    _Step(
        (make_flow(ast.If(NOWHERE, _even(), (_grow(1),), (_grow(2),))),),
        lambda c, block, k: c + (1 if c % 2 == 0 else 2),
    ),
    _Step(
        (make_flow(_IN, label="before"), _grow(2), _add(ast.Reference(NOWHERE, "before"))), lambda c, block, k: c + 2
    ),
    _Step(
        (
            make_flow(_IN, label="hidden"),
            make_flow(
                ast.Braces(
                    NOWHERE,
                    (_grow(1), make_flow(_IN, label="hidden"), _grow(2), _add(ast.Reference(NOWHERE, "hidden"))),
                )
            ),
        ),
        lambda c, block, k: c + 3,
    ),
    _Step((make_flow(_conv(_name("wide"))),), lambda c, block, k: block + 3),
    _Step((make_flow(_conv(_more(_name("k")))),), lambda c, block, k: c + k),
)


class GrowingBlock:
    """A block that accepts every map. Its parameters are `wide`, which is never given, and `k`, for the first call."""

    def __init__(self, rng: Rng, name: str) -> None:
        self._steps = rng.sample(_STEPS, rng.randint(2, 5))
        statements = tuple(statement for step in self._steps for statement in step.statements)
        parameters = (
            ast.BlockParameter(NOWHERE, "wide", None, _more(make_integer(3)), False),
            ast.BlockParameter(NOWHERE, "k", None, make_integer(1), True),
        )
        self.block = ast.Block(NOWHERE, name, parameters, statements, NOWHERE)

    def call(self, x: Shape, k: int | None, repeat: int | None) -> tuple[ast.Call, Shape]:
        """Return a call and its output shape."""
        args = [] if k is None else [ast.Argument(NOWHERE, "k", make_integer(k))]
        for iteration in range(repeat or 1):
            block = c = x[0]
            for step in self._steps:
                c = step.after(c, block, 1 if iteration or k is None else k)
            x = (c, *x[1:])
        return make_call(self.block.name, args, repeat), x
