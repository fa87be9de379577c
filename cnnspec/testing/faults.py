"""Faults to plant: for each code statements that have it, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable

from cnnspec import tree
from cnnspec.shapes import Shape, is_map
from cnnspec.testing.writing import NOWHERE, make_call, make_flow, make_integer

Fault = Callable[[Shape], list[tree.Statement]]


def _args(*positional: tree.Expr, **named: tree.Expr) -> list[tree.Argument]:
    return [
        *(tree.Argument(NOWHERE, None, value) for value in positional),
        *(tree.Argument(NOWHERE, name, value) for name, value in named.items()),
    ]


def _size(height: int, width: int) -> tree.Expr:
    return tree.SizeLiteral(NOWHERE, height, width)


def _number(value: float) -> tree.Expr:
    return tree.Number(NOWHERE, value, repr(value))


def _quotient(operator: str, left: int, right: int) -> tree.Expr:
    return tree.Group(NOWHERE, tree.Binary(NOWHERE, operator, make_integer(left), make_integer(right)))


def _wider(x: Shape, by: int) -> tree.Call:
    """An element that gives more channels or features."""
    if is_map(x):
        return make_call("conv", _args(_size(1, 1), make_integer(x[0] + by)))
    return make_call("linear", _args(make_integer(x[0] + by)))


def _join(kind: str, *others: tree.Element) -> list[tree.Statement]:
    branches = (make_flow(tree.In(NOWHERE)), *(make_flow(other) for other in others))
    return [make_flow(tree.Join(NOWHERE, kind, branches))]  # type: ignore[arg-type]


def _range(low: int, high: int) -> tree.Expr:
    return tree.Interval(NOWHERE, make_integer(low), make_integer(high))


def _pool(x: Shape) -> list[tree.Statement]:
    return [make_flow(*([make_call("flatten")] if is_map(x) else []), make_call("maxpool", _args(_size(1, 1))))]


_EVERYWHERE: dict[str, Fault] = {
    "E0201": lambda x: [make_flow(make_call("no_such_block"))],
    "E0202": lambda x: [make_flow(make_call("relu", _args(no_such_argument=make_integer(1))))],
    "E0203": lambda x: [make_flow(make_call("gn"))],
    "E0204": lambda x: [make_flow(make_call("linear", _args(_quotient("/", 1, 2))))],
    "E0205": lambda x: [make_flow(make_call("relu", _args(make_integer(3))))],
    "E0206": lambda x: [make_flow(make_call("dropout", _args(_number(0.5), p=_number(0.5))))],
    "E0207": lambda x: [make_flow(make_call("dropout", _args(tree.Name(NOWHERE, "no_such_name"))))],
    "E0208": lambda x: _join("concat", tree.Reference(NOWHERE, "no_such_label")),
    "E0209": lambda x: [make_flow(make_call("relu"), label="twice"), make_flow(make_call("tanh"), label="twice")],
    "E0214": lambda x: [make_flow(make_call("times", _args(_quotient("//", 1, 0))))],
    "E0215": lambda x: [make_flow(make_call("dropout", _args(_number(1.5))))],
    "E0216": lambda x: [make_flow(tree.Nothing(NOWHERE))],
    "E0301": lambda x: _join("add", _wider(x, 1)),
    "E0306": lambda x: [make_flow(make_call("gn", _args(make_integer(x[0] + 1))))],
    "E0308": _pool,
    "E0310": lambda x: [make_flow(make_call("slice", _args(_range(0, x[0] + 1))))],
    "E0402": lambda x: [tree.Require(NOWHERE, tree.Bool(NOWHERE, False), None)],
    "E0403": lambda x: [make_flow(tree.Repeat(NOWHERE, make_integer(0), None, (make_flow(make_call("relu")),)))],
}
_ON_MAPS: dict[str, Fault] = {
    "E0302": lambda x: _join("concat", make_call("adaptive_avgpool", _args(_size(x[1] + 1, x[2])))),
    "E0303": lambda x: _join("mul", *(make_call("upsample", _args(size=_size(x[1] + n, x[2]))) for n in (1, 2))),
    "E0304": lambda x: [make_flow(make_call("conv", _args(_size(x[1] + 1, 1), make_integer(4), pad=make_integer(0))))],
    "E0305": lambda x: [make_flow(make_call("conv", _args(_size(2, 2), make_integer(4))))],
    "E0307": lambda x: [make_flow(make_call("linear", _args(make_integer(3))))],
    "E0309": lambda x: [make_flow(make_call("avgpool", _args(_size(1, 1), pad=make_integer(1))))],
}
FAULTS: dict[str, Fault] = {**_EVERYWHERE, **_ON_MAPS}
"""Statements with exactly one fault of a code, for a map `(C, H, W)`; those of `_EVERYWHERE` for flat features, too."""
