"""The author of specs: every choice is made with the shape at hand, so what is drawn is valid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from cnnspec.ops import JOINS, OPS, ShapeFault
from cnnspec.schema import Interval, OpName, Word
from cnnspec.shapes import Shape, is_map
from cnnspec.syntax import ast
from cnnspec.testing.draw import ACTIVATIONS, MAX_SIDE, SETTINGS, STANDARD_BLOCKS, Chance, Numbers, Settings, T
from cnnspec.testing.writing import (
    NO_SOURCE,
    NOWHERE,
    ExpressionWriter,
    Frame,
    make_call,
    make_flow,
    make_integer,
    operand,
)

KINDS: tuple[Literal["add", "mul", "concat"], ...] = ("add", "mul", "concat")
FEATURES = (
    *(name for name in OPS if name not in ("flatten", "linear")),
    *(*KINDS, "repeat", "each", "when", "if", "reference", "nothing"),
    *STANDARD_BLOCKS,
)
"""What has to occur often: some of it is made to occur in each spec. `flatten` and `linear` stand in the head of most."""


@dataclass
class Template:
    """A block that was written already: its parameters with their values, and the shapes it was written for."""

    block: ast.Block
    arguments: Settings
    entering: Shape
    leaving: Shape


class Author(ExpressionWriter):
    """Writes one spec.

    Args:
        number: Where chance comes from.
        plant: Statements with a fault, for the map that they stand behind, which are planted among the others.
        nested: Whether they can be planted in braces, too.

    Attributes:
        faulty: What was planted.
        outermost: The statement of the file that it is, or that holds it.
        inside: How many statements stand in front of it in its braces; 0 where it stands in none.
    """

    def __init__(
        self,
        number: Numbers,
        plant: Callable[[Chance, Shape], list[ast.Statement]] | None = None,
        *,
        nested: bool = True,
    ) -> None:
        super().__init__(number)
        self.plant = plant
        self.nested = nested
        self.faulty: list[ast.Statement] = []
        self.outermost: ast.Statement | None = None
        self.inside = 0
        self.names = 0
        self.blocks: list[Template] = []
        self.constants: Settings = {}

    def fresh(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    # calls

    def call(
        self, callee: str, settings: Settings, frame: Frame, order: Sequence[str], repeat: int | None = None
    ) -> ast.Call:
        """A call; arguments stand by position as far as they can and chance has it, the others by name."""
        rest = dict(settings)
        args: list[ast.Argument] = []
        for name in order:
            if name not in rest or self.rarely(5) or (name == "c" and callee == "conv" and not args):
                break
            args.append(ast.Argument(NOWHERE, None, operand(self.expr(rest.pop(name), frame))))
        for name, value in rest.items():
            flag = value is True and self.rarely(2)
            args.append(
                ast.Argument(
                    NOWHERE, None if flag else name, ast.Name(NOWHERE, name) if flag else self.expr(value, frame)
                )
            )
        return make_call(callee, args, repeat)

    def settle(self, name: str, x: Shape) -> tuple[Settings, Shape] | None:
        """Settings of an operator for a shape and what it then gives, if it takes it and gives no large map."""
        settings = SETTINGS[name](self, x) if name in SETTINGS else {}
        try:
            y = OPS[name](**settings).infer(x) if settings is not None else None
        except (ShapeFault, TypeError):
            return None
        large = y is None or max(y[1:], default=1) > 2 * MAX_SIDE or y[0] > 64
        return None if y is None or settings is None or large or is_map(x) != is_map(y) else (settings, y)

    def op(self, x: Shape, frame: Frame, names: Sequence[str] = tuple(OPS)) -> tuple[ast.Element, Shape]:
        """A call of an operator that takes the shape, and what it gives."""
        name = self.pick(names)
        settled = self.settle(name, x)
        if settled is None:
            return make_call(self.pick(ACTIVATIONS)), x
        settings, y = settled
        return self.call(name, settings, frame, list(OPS[name].parameters)), y

    def reshape(self, x: Shape, target: Shape, frame: Frame) -> list[ast.Element]:
        """Elements that bring a shape to another one, as few as it takes."""
        elements: list[ast.Element] = []
        if is_map(x) and not is_map(target):
            elements.append(make_call("flatten"))
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

    def block_call(self, x: Shape, frame: Frame) -> tuple[ast.Element, Shape]:
        """A call of a block: one written before for such a shape, a new one, or a standard one."""
        fitting = [block for block in self.blocks if block.entering == x]
        standard = [name for name, block in STANDARD_BLOCKS.items() if is_map(x) and block.takes(x)]
        if standard and self.rarely(2):
            return self.standard_call(self.pick(standard), x, frame)
        if fitting and self.rarely(2):
            template = self.pick(fitting)
        else:
            template = self.block(x)
        repeat = self.number(1, 3) if template.leaving == template.entering and self.rarely() else None
        order = [parameter.name for parameter in template.block.parameters]
        return self.call(template.block.name, template.arguments, frame, order, repeat), template.leaving

    def standard_call(self, name: str, x: Shape, frame: Frame) -> tuple[ast.Element, Shape]:
        """A call of a standard block, for a map that it takes."""
        block = STANDARD_BLOCKS[name]
        settings = block.settings(self, x)
        y = block.gives(x, settings)
        repeat = self.number(1, 2) if y == x and self.rarely() else None
        order = [key for key in settings if key not in ("subsample", "stride")]
        return self.call(name, settings, frame, order, repeat), y

    def block(self, x: Shape) -> Template:
        """A new block for inputs of a shape; its parameters have the values that its body was written for."""
        arguments: Settings = {}
        parameters: list[ast.BlockParameter] = []
        for value in (
            self.pick([4, 8, 0.5, True, (3, 3), OpName("relu"), OpName("silu")]) for _ in range(self.number(0, 3))
        ):
            kind = {int: "int", float: "float", bool: "bool", tuple: "size", OpName: "op"}[type(value)]
            name = self.fresh("p")
            default = None
            if self.rarely(2) and not any(parameter.default is None for parameter in parameters):
                default = self.expr(value, Frame(x, dict(self.constants)))
            typed = kind != "int" or self.rarely()
            parameters.append(
                ast.BlockParameter(
                    NOWHERE, name, kind if typed else None, default, default is not None and self.rarely()
                )
            )
            arguments[name] = value
        frame = Frame(x, {**self.constants, **arguments})
        body, y = self.body(x, frame, 1)
        # with `once` the later calls of a repeat have the default, which is the same value
        given = {p.name: arguments[p.name] for p in parameters if p.default is None or self.rarely(2)}
        block = ast.Block(NOWHERE, self.fresh("block"), tuple(parameters), tuple(body), NOWHERE)
        self.blocks.append(Template(block, given, x, y))
        return self.blocks[-1]

    # elements and statements

    def element(self, x: Shape, frame: Frame, depth: int) -> tuple[ast.Element, Shape]:
        """An element that takes the shape, and what it gives."""
        ways: list[Callable[[], tuple[ast.Element, Shape]]] = [lambda: self.op(x, frame)] * 4
        if is_map(x):
            ways += [lambda: self.op(x, frame, ("conv", "bn", "maxpool"))] * 2
        operators = [name for name, value in frame.values.items() if isinstance(value, OpName)]
        if operators:
            ways.append(lambda: (make_call(self.pick(operators)), x))
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

    def elements(self, x: Shape, frame: Frame, depth: int) -> tuple[list[ast.Element], Shape]:
        found: list[ast.Element] = []
        for _ in range(self.number(1, 3)):
            element, x = self.element(x, frame, depth)
            found.append(element)
        return found, x

    def body(self, x: Shape, frame: Frame, depth: int) -> tuple[list[ast.Statement], Shape]:
        """Statements below one another, at least one of them a pipeline."""
        found: list[ast.Statement] = []
        for _ in range(self.number(1, 3)):
            if self.rarely(4):
                found.append(self.aside(frame))
            flow, x = self.flow(x, frame, depth)
            found.append(flow)
        return found, x

    def aside(self, frame: Frame) -> ast.Statement:
        """A `let` or a `require`."""
        if self.rarely():
            return ast.Require(NOWHERE, self.boolean(True, frame), self.pick([None, "it holds for {in.c} channels"]))
        name = self.fresh("v")
        value = self.pick([1, 2, 4, 8, True, 0.25, (1, 3)])
        statement = ast.Let(NOWHERE, name, self.expr(value, frame), NOWHERE)
        frame.values[name] = value
        return statement

    def flow(self, x: Shape, frame: Frame, depth: int, label: str | None = None) -> tuple[ast.Flow, Shape]:
        """A statement that a tensor flows through."""
        elements, y = self.elements(x, frame, depth)
        if label is None and frame.labelling and self.rarely():
            label = self.fresh("l")
        if self.rarely(5):
            happens = self.happens()
            flow = make_flow(*elements, label=label, condition=self.boolean(happens, frame))
            if not happens:
                return flow, x
        else:
            flow = make_flow(*elements, label=label)
        if label is not None and label != "stage":
            frame.labels[label] = y
        return flow, y

    def braces(self, x: Shape, frame: Frame, depth: int) -> tuple[ast.Element, Shape]:
        body, y = self.body(x, frame.inner(x), depth - 1)
        return ast.Braces(NOWHERE, tuple(body)), y

    def repeat(self, x: Shape, frame: Frame, depth: int) -> tuple[ast.Element, Shape]:
        """A repeated group; it gives back the shape that it takes, so that every round is like the first."""
        inner = frame.inner(x, labelling=False)
        count = self.number(1, 3)
        head = self.expr(count, frame)
        variable = self.fresh("i") if self.rarely(2) else None
        body, y = self.body(x, inner, depth - 1)
        back = self.reshape(y, x, inner)
        if variable is not None:
            later = ast.Binary(NOWHERE, ">", ast.Name(NOWHERE, variable), make_integer(0))
            body.append(make_flow(make_call(self.pick(ACTIVATIONS)), condition=later))
        body += [make_flow(*back)] if back else []
        return ast.Repeat(NOWHERE, head, variable, tuple(body)), x

    def conditional(self, x: Shape, frame: Frame, depth: int) -> tuple[ast.Element, Shape]:
        decision = self.happens()
        condition = self.boolean(decision, frame)
        body, y = self.body(x, frame.inner(x), depth - 1)
        if decision and self.rarely(2):
            return ast.If(NOWHERE, condition, tuple(body), None), y
        other, z = self.body(x, frame.inner(x), depth - 1)
        return ast.If(NOWHERE, condition, tuple(body), tuple(other)), y if decision else z

    def join(self, x: Shape, frame: Frame, depth: int, wanted: str | None = None) -> tuple[ast.Element, Shape]:
        """A join: a first branch as it comes, and others that are brought to a shape that fits it."""
        kind = self.pick([known for known in KINDS if wanted in (None, known)])
        inner = frame.inner(x)
        first, shape = self.flow(x, inner, depth - 1)
        branches: list[ast.Statement] = [first]
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
            head: list[ast.Element] = [ast.Reference(NOWHERE, label) if label else ast.In(NOWHERE)]
            branch = make_flow(*(elements if elements and not label and self.rarely(2) else head + elements))
            there = True
            if self.rarely(4):
                there, first_side = self.happens(), self.happens()
                absent = (make_flow(ast.Nothing(NOWHERE)),)
                sides = ((branch,), absent) if first_side else (absent, (branch,))
                branch = make_flow(ast.If(NOWHERE, self.boolean(there == first_side, inner), *sides))
            branches.append(branch)
            shapes += [target] if there else []
        y = shapes[0] if len(shapes) == 1 else JOINS[kind]().infer(*shapes)
        return ast.Join(NOWHERE, kind, tuple(branches)), y  # type: ignore[arg-type]

    def partner(self, kind: str, shape: Shape, start: Shape) -> Shape:
        """A shape that a join takes beside another one."""
        if kind == "concat" and start[0] <= 32:
            return (start[0], *shape[1:])
        if kind == "mul" and is_map(shape):
            return (self.pick([shape[0], 1]), *(self.pick([shape[1:], (1, 1)])))
        return shape

    def table(self, x: Shape, frame: Frame) -> tuple[ast.Element, Shape]:
        """A table of convolutions."""
        columns = self.pick([["kernel", "c"], ["c", "repeat"], ["kernel", "c", "stride"]])
        rest = {} if "kernel" in columns else {"kernel": (3, 3)}
        inner = frame.inner(x)
        args = [ast.Argument(NOWHERE, name, self.expr(value, inner)) for name, value in rest.items()]
        rows: list[ast.Row] = []
        for _ in range(self.number(1, 3)):
            cells = {
                "kernel": self.pick([(1, 1), (3, 3)]),
                "c": self.number(1, 12),
                "stride": (1, 1),
                "repeat": self.number(1, 2),
            }
            label = self.fresh("row") if frame.labelling and "repeat" not in columns and self.rarely() else None
            x = (cells["c"], *x[1:])
            row = [operand(self.expr(cells[name], inner)) for name in columns]
            if isinstance(row[0], ast.Name):  # `classes` at the head of a line would be a statement
                row[0] = ast.Group(NOWHERE, row[0])
            rows.append(ast.Row(NOWHERE, label, tuple(row)))
        names = tuple(ast.Name(NOWHERE, name) for name in columns)
        return ast.Each(NOWHERE, "conv", names, tuple(args), tuple(rows), NOWHERE), x

    # what has to occur

    def featured(self, name: str, x: Shape, frame: Frame) -> tuple[list[ast.Statement], Shape]:
        """Statements in which one of `FEATURES` occurs, for a map; with what it takes to make it fit in front."""
        if name in OPS:
            elements, y = self._fitted(x, frame, lambda z: self.settle(name, z))
            if y is None:
                return [], x
            settings, shape = y
            call = self.call(name, settings, frame, list(OPS[name].parameters))
            return [make_flow(*elements, call)], shape
        if name in STANDARD_BLOCKS:
            elements, z = self._fitted(x, frame, lambda z: z if STANDARD_BLOCKS[name].takes(z) else None)
            assert z is not None
            call, shape = self.standard_call(name, z, frame)
            return [make_flow(*elements, call)], shape
        label = self.fresh("l")
        plain = make_call(self.pick(ACTIVATIONS))
        here = make_flow(ast.In(NOWHERE))
        match name:
            case "when":
                happens = self.happens()
                return [make_flow(plain, condition=self.boolean(happens, frame))], x
            case "reference":
                frame.labels[label] = x
                joined = ast.Join(NOWHERE, "add", (here, make_flow(ast.Reference(NOWHERE, label))))
                return [make_flow(plain, label=label), make_flow(joined)], x
            case "nothing":
                absent = (make_flow(ast.Nothing(NOWHERE)),)
                branch = ast.If(NOWHERE, self.boolean(self.happens(), frame.inner(x)), (make_flow(plain),), absent)
                return [make_flow(ast.Join(NOWHERE, "add", (here, make_flow(branch))))], x
            case "repeat":
                element, y = self.repeat(x, frame, 1)
            case "each":
                element, y = self.table(x, frame)
            case "if":
                element, y = self.conditional(x, frame, 1)
            case _:
                element, y = self.join(x, frame, 1, name)
        return [make_flow(element)], y

    def _fitted(self, x: Shape, frame: Frame, fits: Callable[[Shape], T | None]) -> tuple[list[ast.Element], T | None]:
        """Elements that bring a map to a shape that fits, none if it does, and what it is then."""
        for target in (x, x, x, (x[0], 4, 4), (4 * self.number(1, 3), 4, 4)):
            found = fits(target)
            if found is not None:
                return self.reshape(x, target, frame), found
        return [], None

    # the file

    def file(self) -> ast.File:
        image = (self.number(1, 4), self.number(1, MAX_SIDE), self.number(1, MAX_SIDE))
        classes = self.number(1, 10)
        params = {
            self.fresh("param"): self.pick([2, 8, 16, False, 0.5, OpName("gelu"), (3, 3)])
            for _ in range(self.number(0, 2))
        }
        self.constants = {"classes": classes, **params}
        frame = Frame(image, dict(self.constants))
        top: list[ast.Top] = [ast.Network(NOWHERE, "generated")] if self.rarely(2) else []
        top += [ast.Input(NOWHERE, *image), ast.Classes(NOWHERE, make_integer(classes))]
        for name, value in params.items():
            top.append(ast.Param(NOWHERE, name, self.expr(value, Frame((), {"classes": classes})), NOWHERE))
        top += self.rules()
        body, y = self.network(image, frame)
        aux = self.aux(frame, classes) if y == (classes,) else []
        blocks = [template.block for template in self.blocks]
        promise = ast.ListLiteral(NOWHERE, tuple(make_integer(size) for size in y))
        end: list[ast.Top] = [ast.Expect(NOWHERE, "output", "==", promise, None)] if self.rarely(2) else []
        return ast.File(NOWHERE, NO_SOURCE, (*top, *blocks, *body, *aux, *end))

    def network(self, x: Shape, frame: Frame) -> tuple[list[ast.Statement], Shape]:
        """The statements of the network, with `stem`, `stage` and `head` or without, and a classifier or not."""
        found: list[ast.Statement] = []
        words = self.happens()
        count = self.number(1, 3)
        features = self.few(FEATURES, 4)
        planted = self.number(0, count - 1) if self.plant else None
        for i in range(count):
            if self.rarely(5):
                found.append(self.aside(frame))
            if i == planted and self.plant:
                found += self.planted(self.plant, x)
            flow, x = self.flow(x, frame, 1, ("stem" if i == 0 else "stage") if words else None)
            found.append(flow)
            for name in features if i == count - 1 else [features.pop()]:
                statements, x = self.featured(name, x, frame)
                found += statements
        if self.rarely(4):
            found.append(make_flow(make_call(self.pick(ACTIVATIONS))))
            return found, x
        pool = [make_call("global_avgpool")] if self.rarely(2) else []
        target = (self.constants["classes"],)
        last = [*pool, make_call("flatten")]
        if self.rarely(4):
            found.append(make_flow(*last))
            flow, x = self.flow((x[0] if pool else math.prod(x),), frame, 1)
            found.append(flow)
            last = []
        last.append(self.call("linear", {"c": target[0]}, frame, ["c"]))
        found.append(make_flow(*last, label="head" if words else None))
        return found, target

    def planted(self, plant: Callable[[Chance, Shape], list[ast.Statement]], x: Shape) -> list[ast.Statement]:
        """The statements with the fault, now and then in braces behind others."""
        self.faulty = plant(self, x)
        found: list[ast.Statement] = list(self.faulty)
        if found and self.nested and self.rarely():
            before = [make_flow(make_call(self.pick(ACTIVATIONS))) for _ in range(self.number(1, 2))]
            self.inside = len(before)
            found = [make_flow(ast.Braces(NOWHERE, (*before, *self.faulty)))]
        self.outermost = found[0] if found else None
        return found

    def rules(self) -> list[ast.Top]:
        """Defaults and initialisations that hold for the file."""
        found: list[ast.Top] = []
        if self.rarely(4):
            found.append(ast.Default(NOWHERE, self.call("bn", {"eps": 1e-3}, Frame(()), [])))
        if self.rarely(4):
            found.append(ast.Default(NOWHERE, self.call("conv", {"bias": True}, Frame(()), [])))
        if self.rarely(4):
            found.append(
                ast.Init(
                    NOWHERE, "conv", self.call("kaiming_normal", {"mode": Word("fan_out")}, Frame(()), []), NOWHERE
                )
            )
        if self.rarely(4):
            found.append(ast.Init(NOWHERE, "linear", self.call("normal", {"std": 0.01}, Frame(()), ["std"]), NOWHERE))
        return found

    def aux(self, frame: Frame, classes: int) -> list[ast.Top]:
        """An auxiliary head at one of the labels, now and then."""
        if not frame.labels or not self.rarely(3):
            return []
        label = self.pick(list(frame.labels))
        x = frame.labels[label]
        inner = Frame(x, dict(self.constants), dict(frame.labels))
        body, y = self.body(x, inner, 0)
        flat = [make_call("flatten")] if is_map(y) else []
        body.append(make_flow(*flat, self.call("linear", {"c": classes}, inner, ["c"])))
        weight = ast.Argument(NOWHERE, "weight", ast.Number(NOWHERE, 0.3, "0.3"))
        return [ast.Aux(NOWHERE, self.fresh("aux"), ast.Reference(NOWHERE, label), (weight,), tuple(body))]
