"""Hypothesis strategies for whole specs that check, to test what works on specs.

A spec is drawn as a tree and printed by the formatter. Every choice is made with the shape at hand, so
what is drawn is valid by construction: nothing is filtered. Values are written in every way the language
has: as literals, variables, sizes of `in`, arithmetic, conditions.

    from hypothesis import given
    from cnnspec.testing import specs

    @given(specs())
    def test_builds(text):
        cnnspec.build(cnnspec.loads(text))

The package `hypothesis` has to be installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import strategies as st

from cnnspec import tree
from cnnspec.diagnostics import Source
from cnnspec.expressions import round_to
from cnnspec.formatting import format_file
from cnnspec.ops import JOINS, OPS, ShapeFault
from cnnspec.shapes import Shape, is_map
from cnnspec.signatures import Interval, OpName, Word

_T = TypeVar("_T")
_SOURCE = Source("generated", "")
_AT = _SOURCE.end
MAX_SIDE = 24
"""Sizes of maps, numbers of channels: small, so that a network of any shape is built in no time."""


def specs() -> st.SearchStrategy[str]:
    """Texts of specs that check: at most some dozens of operators, small maps, at least one layer."""
    return trees().map(format_file)


@st.composite
def trees(draw: st.DrawFn) -> tree.File:
    """Trees of specs that check; they were read from no text, so their spans lead nowhere."""
    return _Author(draw).file()


# --- settings of the operators -------------------------------------------------------------------

Settings = dict[str, Any]


class _Chance:
    """Small decisions; the first option is the one that shrinking leads to."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def pick(self, options: Sequence[_T]) -> _T:
        return self.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def rarely(self, one_in: int = 3) -> bool:
        return self.draw(st.integers(0, one_in - 1)) == one_in - 1

    def some(self, settings: Settings) -> Settings:
        """A part of optional settings."""
        return {name: value for name, value in settings.items() if self.rarely()}

    def size(self, low: int, high: int) -> tuple[int, int]:
        first = self.number(low, high)
        return (first, self.number(low, high) if self.rarely() else first)


def _divisors(*numbers: int) -> list[int]:
    common = math.gcd(*numbers)
    return [n for n in range(1, common + 1) if common % n == 0]


def _conv(chance: _Chance, x: Shape) -> Settings:
    same = chance.pick([True, True, False])
    kernel = chance.pick([(3, 3), (1, 1), (5, 5), (1, 3), (5, 3)] if same else [(2, 2), (3, 3), (4, 2), (3, 1)])
    settings: Settings = {"kernel": kernel, "c": chance.number(1, 12)}
    settings |= chance.some({"stride": chance.size(1, 2), "dilation": chance.size(1, 2), "bias": True})
    settings |= {} if same else {"pad": chance.size(0, 3)}
    if chance.rarely(5):
        settings |= {"depthwise": True, "c": x[0] * chance.number(1, 2)}
    elif chance.rarely():
        settings["groups"] = chance.pick(_divisors(x[0], settings["c"]))
    if chance.rarely(5):
        settings["init"] = Word(chance.pick(["kaiming_normal", "zero", "orthogonal"]))
    return settings


def _conv_transpose(chance: _Chance, x: Shape) -> Settings:
    settings: Settings = {"kernel": chance.size(1, 3), "c": chance.number(1, 8)}
    if chance.rarely(2):
        settings |= {"stride": (2, 2), "out_pad": chance.size(0, 1)}
    settings |= chance.some({"dilation": chance.size(1, 2), "bias": False, "pad": chance.size(0, 1)})
    return settings | chance.some({"groups": chance.pick(_divisors(x[0], settings["c"]))})


def _pool(chance: _Chance, x: Shape) -> Settings:
    settings: Settings = {"kernel": chance.size(1, 3)}
    return settings | chance.some({"stride": chance.size(1, 2), "pad": chance.size(0, 1), "ceil": True})


def _upsample(chance: _Chance, x: Shape) -> Settings:
    settings: Settings = {"factor": chance.size(1, 2)} if chance.rarely(2) else {"size": chance.size(1, MAX_SIDE)}
    return settings | chance.some({"mode": Word("bilinear")})


def _pad(chance: _Chance, x: Shape) -> Settings:
    amounts = [chance.number(-1, 2) for _ in range(chance.pick([1, 2, 4]))]
    return {"amounts": tuple(amounts) if len(amounts) == 2 else amounts, **chance.some({"value": 0.5})}


def _slice(chance: _Chance, x: Shape) -> Settings:
    low = chance.number(0, x[0] - 1)
    return {"range": Interval((low, chance.number(low + 1, x[0])))}


def _norm(chance: _Chance, x: Shape) -> Settings:
    return chance.some({"eps": 1e-3, "affine": False})


def _dropout(chance: _Chance, x: Shape) -> Settings:
    return {"p": chance.pick([0.5, 0.0, 0.25])}


SETTINGS: dict[str, Callable[[_Chance, Shape], Settings]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": lambda chance, x: {"c": chance.number(1, 16), **chance.some({"bias": False})},
    "bn": lambda chance, x: _norm(chance, x) | chance.some({"momentum": 0.2}),
    "gn": lambda chance, x: {"groups": chance.pick(_divisors(x[0])), **_norm(chance, x)},
    "ln": _norm,
    "in_norm": lambda chance, x: chance.some({"eps": 1e-3, "affine": True}),
    "lrn": lambda chance, x: {"size": chance.number(1, 5), **chance.some({"alpha": 1e-3, "k": 2.0})},
    "leaky_relu": lambda chance, x: chance.some({"negative_slope": 0.2}),
    "prelu": lambda chance, x: chance.some({"num_parameters": x[0]}),
    "elu": lambda chance, x: chance.some({"alpha": 0.5}),
    "celu": lambda chance, x: chance.some({"alpha": 0.5}),
    "gelu": lambda chance, x: chance.some({"approximate": Word("tanh")}),
    "softplus": lambda chance, x: chance.some({"beta": 2.0, "threshold": 10.0}),
    "dropout": _dropout,
    "dropout2d": _dropout,
    "drop_path": _dropout,
    "scale": lambda chance, x: chance.some({"init": 0.1}),
    "times": lambda chance, x: {"factor": chance.pick([0.5, 2.0])},
    "maxpool": lambda chance, x: _pool(chance, x) | chance.some({"dilation": (2, 1)}),
    "avgpool": lambda chance, x: _pool(chance, x) | chance.some({"count_pad": False}),
    "adaptive_avgpool": lambda chance, x: {"size": chance.size(1, 6)},
    "adaptive_maxpool": lambda chance, x: {"size": chance.size(1, 6)},
    "upsample": _upsample,
    "pixel_shuffle": lambda chance, x: {"factor": chance.number(1, 2)},
    "channel_shuffle": lambda chance, x: {"groups": chance.pick(_divisors(x[0]))},
    "pad": _pad,
    "slice": _slice,
}
"""How the settings of an operator are drawn for an input shape; an operator without a row is called bare.

Settings that do not fit the shape are not used: another operator is called instead.
"""

_ACTIVATIONS = tuple(
    name for name in OPS if not OPS[name].parameters and name not in ("flatten", "softmax") and "pool" not in name
)
_SAFE_BLOCKS: dict[str, Callable[[_Chance, Shape], Settings]] = {
    "conv_bn": lambda chance, x: {"kernel": (3, 3), "c": chance.number(1, 12)},
    "resnet_block": lambda chance, x: {"c": chance.number(1, 12), **chance.some({"subsample": True})},
    "preact_block": lambda chance, x: {"c": chance.number(1, 12), **chance.some({"subsample": True})},
    "dense_layer": lambda chance, x: {"growth": chance.number(1, 3), "bottleneck": chance.number(1, 2)},
    "squeeze_excite": lambda chance, x: {"ratio": chance.number(1, x[0])},
    "inception_block": lambda chance, x: {name: chance.number(1, 4) for name in ("c1", "r3", "c3", "r5", "c5", "cp")},
}
"""Standard blocks that take every map, with their arguments."""


# --- the tree ------------------------------------------------------------------------------------


@dataclass
class _Frame:
    """What can be named at a place: values, labels with their shapes, the tensor that enters."""

    entering: Shape
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    labels: dict[str, Shape] = field(default_factory=dict[str, Shape])
    labelling: bool = True

    def inner(self, entering: Shape, labelling: bool = True) -> _Frame:
        return _Frame(entering, dict(self.values), dict(self.labels), self.labelling and labelling)


@dataclass
class _Template:
    """A block that was written already: its parameters with their values, and the shapes it was written for."""

    block: tree.Block
    arguments: Settings
    entering: Shape
    leaving: Shape


def _call(callee: str, args: Sequence[tree.Argument] = (), repeat: int | None = None) -> tree.Call:
    return tree.Call(_AT, callee, repeat, tuple(args), _AT)


def _flow(*elements: tree.Element, label: str | None = None, condition: tree.Expr | None = None) -> tree.Flow:
    name = tree.LabelName(_AT, label, label in ("stem", "stage", "head")) if label else None
    return tree.Flow(_AT, name, elements, condition)


def _integer(value: int) -> tree.Expr:
    number = tree.Number(_AT, abs(value), str(abs(value)))
    return number if value >= 0 else tree.Group(_AT, tree.Unary(_AT, "-", number))


def _operand(expr: tree.Expr) -> tree.Expr:
    """An expression as an operand, or as an argument by position: in parentheses unless it is a single word."""
    compound = isinstance(expr, (tree.Binary, tree.Unary, tree.Choice, tree.Interval))
    return tree.Group(_AT, expr) if compound else expr


class _Author(_Chance):
    """Writes one spec."""

    def __init__(self, draw: st.DrawFn) -> None:
        super().__init__(draw)
        self.names = 0
        self.blocks: list[_Template] = []
        self.constants: Settings = {}

    def fresh(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    # expressions

    def expr(self, value: Any, frame: _Frame) -> tree.Expr:
        """An expression that has this value at this place."""
        if isinstance(value, (list, tuple)) and not isinstance(value, Interval):
            if len(value) == 2 and isinstance(value, tuple) and min(value) >= 0:
                alike = value[0] == value[1] and self.rarely(2)
                return self.expr(value[0], frame) if alike else tree.SizeLiteral(_AT, *value)
            return tree.ListLiteral(_AT, tuple(self.expr(item, frame) for item in value))
        known = [name for name, other in frame.values.items() if type(other) is type(value) and other == value]
        if known and self.rarely(2):
            return tree.Name(_AT, self.pick(known))
        if isinstance(value, Interval):
            return tree.Interval(_AT, *(_operand(self.expr(end, frame)) for end in value))
        if isinstance(value, bool):
            return self.boolean(value, frame) if self.rarely() else tree.Bool(_AT, value)
        if isinstance(value, int):
            return self.integer(value, frame) if self.rarely() else _integer(value)
        if isinstance(value, float):
            return tree.Number(_AT, value, repr(value))
        return tree.Name(_AT, str(value))

    def integer(self, value: int, frame: _Frame) -> tree.Expr:
        """An integer in one of the roundabout ways."""
        other = self.number(1, 9)
        sizes = {axis: size for axis, size in zip("chw", frame.entering, strict=False) if size == value}
        ways: list[Callable[[], tree.Expr]] = [
            lambda: self.binary("+", value - other, other, frame),
            lambda: self.binary("-", value + other, other, frame),
            lambda: self.binary("//", value * other + other - 1, other, frame) if value >= 0 else _integer(value),
            lambda: self.binary("/", value * other, other, frame),
            lambda: (
                self.binary("%", value + (abs(value) + 1) * other, abs(value) + 1, frame)
                if value >= 0
                else _integer(value)
            ),
            lambda: self.function("max", value, value - other, frame=frame),
            lambda: self.function("min", value + other, value, frame=frame),
            lambda: self.function("ceil", value - 0.5, frame=frame) if value > 0 else _integer(value),
            lambda: self.root(value, frame) if 0 <= value < 1000 else _integer(value),
            lambda: (
                self.function("round_to", value, 2, frame=frame) if round_to(value, 2) == value else _integer(value)
            ),
            lambda: self.choice(value, value + other, frame),
        ]
        if value % other == 0:
            ways.append(lambda: self.binary("*", value // other, other, frame))
        if sizes:
            ways += [lambda: tree.Dim(_AT, self.pick(list(sizes)))] * 3
        return self.pick(ways)()

    def binary(self, operator: str, left: Any, right: Any, frame: _Frame) -> tree.Expr:
        return tree.Binary(_AT, operator, *(_operand(self.expr(value, frame)) for value in (left, right)))

    def function(self, name: str, *values: Any, frame: _Frame) -> tree.Expr:
        return tree.FunctionCall(_AT, name, tuple(self.expr(value, frame) for value in values))

    def root(self, value: int, frame: _Frame) -> tree.Expr:
        square = value * value + self.number(0, 2 * value)
        return tree.FunctionCall(_AT, "floor", (self.function("sqrt", square, frame=frame),))

    def choice(self, value: Any, other: Any, frame: _Frame) -> tree.Expr:
        decision = self.draw(st.booleans())
        then, otherwise = (value, other) if decision else (other, value)
        return tree.Choice(_AT, self.boolean(decision, frame), self.expr(then, frame), self.expr(otherwise, frame))

    def boolean(self, value: bool, frame: _Frame) -> tree.Expr:
        """A condition with this outcome."""
        way = self.number(0, 4)
        low = self.number(0, 8)
        if way == 0:
            return tree.Bool(_AT, value)
        if way == 1:
            operator = self.pick(["<", "<=", "!="] if value else [">", ">=", "=="])
            return self.binary(operator, low, low + self.number(1, 9), frame)
        if way == 2:
            return self.binary(self.pick(["==", "<="] if value else ["!=", "<"]), low, low, frame)
        if way == 3:
            return tree.Unary(_AT, "not", _operand(self.expr(not value, frame)))
        return self.binary("and" if value else "or", value, value, frame)

    # calls

    def call(
        self, callee: str, settings: Settings, frame: _Frame, order: Sequence[str], repeat: int | None = None
    ) -> tree.Call:
        """A call; arguments stand by position as far as they can and chance has it, the others by name."""
        rest = dict(settings)
        args: list[tree.Argument] = []
        for name in order:
            if name not in rest or self.rarely(5) or (name == "c" and callee == "conv" and not args):
                break
            args.append(tree.Argument(_AT, None, _operand(self.expr(rest.pop(name), frame))))
        for name, value in rest.items():
            flag = value is True and self.rarely(2)
            args.append(
                tree.Argument(_AT, None if flag else name, tree.Name(_AT, name) if flag else self.expr(value, frame))
            )
        return _call(callee, args, repeat)

    def op(self, x: Shape, frame: _Frame, names: Sequence[str] = tuple(OPS)) -> tuple[tree.Element, Shape]:
        """A call of an operator that takes the shape, and what it gives."""
        name = self.pick(names)
        settings = SETTINGS[name](self, x) if name in SETTINGS else {}
        try:
            y = OPS[name](**settings).infer(x)
        except (ShapeFault, TypeError):
            y = None
        if y is None or (is_map(x) and not is_map(y)) or max(y[1:], default=1) > 2 * MAX_SIDE or y[0] > 64:
            return _call(self.pick(_ACTIVATIONS)), x
        return self.call(name, settings, frame, list(OPS[name].parameters)), y

    def reshape(self, x: Shape, target: Shape, frame: _Frame) -> list[tree.Element]:
        """Elements that bring a shape to another one, as few as it takes."""
        elements: list[tree.Element] = []
        if is_map(x) and not is_map(target):
            elements.append(_call("flatten"))
            x = (math.prod(x),)
        if x[1:] != target[1:]:
            name = self.pick(["adaptive_avgpool", "adaptive_maxpool", "upsample"])
            elements.append(self.call(name, {"size": target[1:]}, frame, ["size"] if name != "upsample" else []))
        if x[0] > target[0] and self.rarely():
            elements.append(self.call("slice", {"range": Interval((0, target[0]))}, frame, ["range"]))
        elif x[0] != target[0] and is_map(target):
            elements.append(self.call("conv", {"kernel": (1, 1), "c": target[0]}, frame, ["kernel", "c"]))
        elif x[0] != target[0]:
            elements.append(self.call("linear", {"c": target[0]}, frame, ["c"]))
        return elements

    def block_call(self, x: Shape, frame: _Frame) -> tuple[tree.Element, Shape]:
        """A call of a block: one written before for such a shape, a new one, or a standard one."""
        fitting = [block for block in self.blocks if block.entering == x]
        if is_map(x) and self.rarely(2):
            name = self.pick(list(_SAFE_BLOCKS))
            settings = _SAFE_BLOCKS[name](self, x)
            subsample = 2 if settings.get("subsample") else 1
            c = {
                "dense_layer": x[0] + settings.get("growth", 0),
                "squeeze_excite": x[0],
                "inception_block": sum(value for key, value in settings.items() if key[0] == "c"),
            }.get(name, settings.get("c", 0))
            repeat = (
                self.number(1, 2) if name in ("conv_bn", "resnet_block", "preact_block") and self.rarely() else None
            )
            order = [key for key in settings if key != "subsample"]
            return self.call(name, settings, frame, order, repeat), (c, *(-(-size // subsample) for size in x[1:]))
        if fitting and self.rarely(2):
            template = self.pick(fitting)
        else:
            template = self.block(x)
        repeat = self.number(1, 3) if template.leaving == template.entering and self.rarely() else None
        order = [parameter.name for parameter in template.block.parameters]
        return self.call(template.block.name, template.arguments, frame, order, repeat), template.leaving

    def block(self, x: Shape) -> _Template:
        """A new block for inputs of a shape; its parameters have the values that its body was written for."""
        arguments: Settings = {}
        parameters: list[tree.BlockParameter] = []
        for value in (
            self.pick([4, 8, 0.5, True, (3, 3), OpName("relu"), OpName("silu")]) for _ in range(self.number(0, 3))
        ):
            kind = {int: "int", float: "float", bool: "bool", tuple: "size", OpName: "op"}[type(value)]
            name = self.fresh("p")
            default = None
            if self.rarely(2) and not any(parameter.default is None for parameter in parameters):
                default = self.expr(value, _Frame(x, dict(self.constants)))
            typed = kind != "int" or self.rarely()
            parameters.append(
                tree.BlockParameter(_AT, name, kind if typed else None, default, default is not None and self.rarely())
            )
            arguments[name] = value
        frame = _Frame(x, {**self.constants, **arguments})
        body, y = self.body(x, frame, 1)
        # with `once` the later calls of a repeat have the default, which is the same value
        given = {p.name: arguments[p.name] for p in parameters if p.default is None or self.rarely(2)}
        block = tree.Block(_AT, self.fresh("block"), tuple(parameters), tuple(body), _AT)
        self.blocks.append(_Template(block, given, x, y))
        return self.blocks[-1]

    # elements and statements

    def element(self, x: Shape, frame: _Frame, depth: int) -> tuple[tree.Element, Shape]:
        """An element that takes the shape, and what it gives."""
        ways: list[Callable[[], tuple[tree.Element, Shape]]] = [lambda: self.op(x, frame)] * 4
        if is_map(x):
            ways += [lambda: self.op(x, frame, ("conv", "bn", "maxpool"))] * 2
        operators = [name for name, value in frame.values.items() if isinstance(value, OpName)]
        if operators:
            ways.append(lambda: (_call(self.pick(operators)), x))
        if depth > 0:
            ways += [
                lambda: self.block_call(x, frame),
                lambda: self.join(x, frame, depth),
                lambda: self.braces(x, frame, depth),
                lambda: self.repeat(x, frame, depth),
                lambda: self.conditional(x, frame, depth),
            ]
            ways += [lambda: self.table(x, frame)] if is_map(x) else []
        return self.pick(ways)()

    def elements(self, x: Shape, frame: _Frame, depth: int) -> tuple[list[tree.Element], Shape]:
        found: list[tree.Element] = []
        for _ in range(self.number(1, 3)):
            element, x = self.element(x, frame, depth)
            found.append(element)
        return found, x

    def body(self, x: Shape, frame: _Frame, depth: int) -> tuple[list[tree.Statement], Shape]:
        """Statements below one another, at least one of them a pipeline."""
        found: list[tree.Statement] = []
        for _ in range(self.number(1, 3)):
            if self.rarely(4):
                found.append(self.aside(frame))
            flow, x = self.flow(x, frame, depth)
            found.append(flow)
        return found, x

    def aside(self, frame: _Frame) -> tree.Statement:
        """A `let` or a `require`."""
        if self.rarely():
            return tree.Require(_AT, self.boolean(True, frame), self.pick([None, "it holds for {in.c} channels"]))
        name = self.fresh("v")
        value = self.pick([1, 2, 4, 8, True, 0.25, (1, 3)])
        statement = tree.Let(_AT, name, self.expr(value, frame), _AT)
        frame.values[name] = value
        return statement

    def flow(self, x: Shape, frame: _Frame, depth: int, label: str | None = None) -> tuple[tree.Flow, Shape]:
        """A statement that a tensor flows through."""
        elements, y = self.elements(x, frame, depth)
        if label is None and frame.labelling and self.rarely():
            label = self.fresh("l")
        if self.rarely(5):
            happens = self.draw(st.booleans())
            flow = _flow(*elements, label=label, condition=self.boolean(happens, frame))
            if not happens:
                return flow, x
        else:
            flow = _flow(*elements, label=label)
        if label is not None and label != "stage":
            frame.labels[label] = y
        return flow, y

    def braces(self, x: Shape, frame: _Frame, depth: int) -> tuple[tree.Element, Shape]:
        body, y = self.body(x, frame.inner(x), depth - 1)
        return tree.Braces(_AT, tuple(body)), y

    def repeat(self, x: Shape, frame: _Frame, depth: int) -> tuple[tree.Element, Shape]:
        """A repeated group; it gives back the shape that it takes, so that every round is like the first."""
        inner = frame.inner(x, labelling=False)
        count = self.number(1, 3)
        head = self.expr(count, frame)
        variable = self.fresh("i") if self.rarely(2) else None
        body, y = self.body(x, inner, depth - 1)
        back = self.reshape(y, x, inner)
        if variable is not None:
            later = tree.Binary(_AT, ">", tree.Name(_AT, variable), _integer(0))
            body.append(_flow(_call(self.pick(_ACTIVATIONS)), condition=later))
        body += [_flow(*back)] if back else []
        return tree.Repeat(_AT, head, variable, tuple(body)), x

    def conditional(self, x: Shape, frame: _Frame, depth: int) -> tuple[tree.Element, Shape]:
        decision = self.draw(st.booleans())
        condition = self.boolean(decision, frame)
        body, y = self.body(x, frame.inner(x), depth - 1)
        if decision and self.rarely(2):
            return tree.If(_AT, condition, tuple(body), None), y
        other, z = self.body(x, frame.inner(x), depth - 1)
        return tree.If(_AT, condition, tuple(body), tuple(other)), y if decision else z

    def join(self, x: Shape, frame: _Frame, depth: int) -> tuple[tree.Element, Shape]:
        """A join: a first branch as it comes, and others that are brought to a shape that fits it."""
        kind = self.pick(list(JOINS))
        inner = frame.inner(x)
        first, shape = self.flow(x, inner, depth - 1)
        branches: list[tree.Statement] = [first]
        shapes = [shape]
        for _ in range(self.number(1, 2)):
            start, label = x, None
            usable = [name for name, known in inner.labels.items() if is_map(known) or not is_map(shape)]
            if usable and self.rarely(2):
                label = self.pick(usable)
                start = inner.labels[label]
            target = self.partner(kind, shape, start)
            if is_map(target) and not is_map(start):
                continue
            elements = self.reshape(start, target, inner)
            head: list[tree.Element] = [tree.Reference(_AT, label) if label else tree.In(_AT)]
            branch = _flow(*(elements if elements and not label and self.rarely(2) else head + elements))
            there = True
            if self.rarely(4):
                there, first_side = self.draw(st.booleans()), self.draw(st.booleans())
                absent = (_flow(tree.Nothing(_AT)),)
                sides = ((branch,), absent) if first_side else (absent, (branch,))
                branch = _flow(tree.If(_AT, self.boolean(there == first_side, inner), *sides))
            branches.append(branch)
            shapes += [target] if there else []
        y = shapes[0] if len(shapes) == 1 else JOINS[kind]().infer(*shapes)
        return tree.Join(_AT, kind, tuple(branches)), y

    def partner(self, kind: str, shape: Shape, start: Shape) -> Shape:
        """A shape that a join takes beside another one."""
        if kind == "concat" and start[0] <= 32:
            return (start[0], *shape[1:])
        if kind == "mul" and is_map(shape):
            return (self.pick([shape[0], 1]), *(self.pick([shape[1:], (1, 1)])))
        return shape

    def table(self, x: Shape, frame: _Frame) -> tuple[tree.Element, Shape]:
        """A table of convolutions."""
        columns = self.pick([["kernel", "c"], ["c", "repeat"], ["kernel", "c", "stride"]])
        rest = {} if "kernel" in columns else {"kernel": (3, 3)}
        inner = frame.inner(x)
        args = [tree.Argument(_AT, name, self.expr(value, inner)) for name, value in rest.items()]
        rows: list[tree.Row] = []
        for _ in range(self.number(1, 3)):
            cells = {
                "kernel": self.pick([(1, 1), (3, 3)]),
                "c": self.number(1, 12),
                "stride": (1, 1),
                "repeat": self.number(1, 2),
            }
            label = self.fresh("row") if frame.labelling and "repeat" not in columns and self.rarely() else None
            x = (cells["c"], *x[1:])
            row = [_operand(self.expr(cells[name], inner)) for name in columns]
            if isinstance(row[0], tree.Name):  # `classes` at the head of a line would be a statement
                row[0] = tree.Group(_AT, row[0])
            rows.append(tree.Row(_AT, label, tuple(row)))
        names = tuple(tree.Name(_AT, name) for name in columns)
        return tree.Each(_AT, "conv", names, tuple(args), tuple(rows), _AT), x

    # the file

    def file(self) -> tree.File:
        image = (self.number(1, 4), self.number(1, MAX_SIDE), self.number(1, MAX_SIDE))
        classes = self.number(1, 10)
        params = {
            self.fresh("param"): self.pick([2, 8, 16, False, 0.5, OpName("gelu"), (3, 3)])
            for _ in range(self.number(0, 2))
        }
        self.constants = {"classes": classes, **params}
        frame = _Frame(image, dict(self.constants))
        top: list[tree.Top] = [tree.Network(_AT, "generated")] if self.rarely(2) else []
        top += [tree.Input(_AT, *image), tree.Classes(_AT, _integer(classes))]
        for name, value in params.items():
            top.append(tree.Param(_AT, name, self.expr(value, _Frame((), {"classes": classes})), _AT))
        top += self.rules()
        body, y = self.network(image, frame)
        aux = self.aux(frame, classes)
        blocks = [template.block for template in self.blocks]
        promise = tree.ListLiteral(_AT, tuple(_integer(size) for size in y))
        end: list[tree.Top] = [tree.Expect(_AT, "output", "==", promise, None)] if self.rarely(2) else []
        return tree.File(_AT, _SOURCE, (*top, *blocks, *body, *aux, *end))

    def network(self, x: Shape, frame: _Frame) -> tuple[list[tree.Statement], Shape]:
        """The statements of the network, with `stem`, `stage` and `head` or without, and a classifier or not."""
        found: list[tree.Statement] = []
        words = self.draw(st.booleans())
        for i in range(self.number(1, 4)):
            if self.rarely(5):
                found.append(self.aside(frame))
            flow, x = self.flow(x, frame, 2, ("stem" if i == 0 else "stage") if words else None)
            found.append(flow)
        if self.rarely(4):
            found.append(_flow(_call(self.pick(_ACTIVATIONS))))
            return found, x
        pool = [_call("global_avgpool")] if self.rarely(2) else []
        target = (self.constants["classes"],)
        last = [*pool, _call("flatten"), self.call("linear", {"c": target[0]}, frame, ["c"])]
        found.append(_flow(*last, label="head" if words else None))
        return found, target

    def rules(self) -> list[tree.Top]:
        """Defaults and initialisations that hold for the file."""
        found: list[tree.Top] = []
        if self.rarely(4):
            found.append(tree.Default(_AT, self.call("bn", {"eps": 1e-3}, _Frame(()), [])))
        if self.rarely(4):
            found.append(tree.Default(_AT, self.call("conv", {"bias": True}, _Frame(()), [])))
        if self.rarely(4):
            found.append(
                tree.Init(_AT, "conv", self.call("kaiming_normal", {"mode": Word("fan_out")}, _Frame(()), []), _AT)
            )
        if self.rarely(4):
            found.append(tree.Init(_AT, "linear", self.call("normal", {"std": 0.01}, _Frame(()), ["std"]), _AT))
        return found

    def aux(self, frame: _Frame, classes: int) -> list[tree.Top]:
        """An auxiliary head at one of the labels, now and then."""
        if not frame.labels or not self.rarely(3):
            return []
        label = self.pick(list(frame.labels))
        x = frame.labels[label]
        inner = _Frame(x, dict(self.constants), dict(frame.labels))
        body, y = self.body(x, inner, 0)
        flat = [_call("flatten")] if is_map(y) else []
        body.append(_flow(*flat, self.call("linear", {"c": classes}, inner, ["c"])))
        weight = tree.Argument(_AT, "weight", tree.Number(_AT, 0.3, "0.3"))
        return [tree.Aux(_AT, self.fresh("aux"), tree.Reference(_AT, label), (weight,), tuple(body))]
