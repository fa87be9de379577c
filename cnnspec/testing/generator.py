"""Generate random specs. Every choice depends on the current shape, so the specs are valid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cnnspec.ops import JOINS, OPS, ShapeError
from cnnspec.schema import Interval, OpName, TensorName, Word
from cnnspec.shapes import Shape, is_map
from cnnspec.syntax import ast
from cnnspec.testing.draw import RandInt, Rng, T
from cnnspec.testing.growth import GrowingBlock
from cnnspec.testing.operator_settings import ACTIVATIONS, MAX_SIDE, SETTINGS, STANDARD_BLOCKS, VARIANTS, Settings
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
_STATEMENTS = (
    *("repeat", "each", "when", "if", "again", "nothing"),
    *("@label", "like=@label", "like=in", "list[i]", "parameter: tensor"),
)
_CHANGING = ("conv_transpose", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "glu", "shake_shake", "in_norm")
FEATURES = (*_CHANGING, *VARIANTS, *KINDS, *_STATEMENTS, *STANDARD_BLOCKS)
"""Constructs that would be too rare otherwise: each spec is forced to contain some of them."""


@dataclass
class Template:
    """A block written earlier in the spec.

    Attributes:
        arguments: The values of its parameters.
        input_shape: The shape of its input.
        output_shape: The shape of its output.
        tensors: The shapes of its tensor parameters.
    """

    block: ast.Block
    arguments: Settings
    input_shape: Shape
    output_shape: Shape
    tensors: dict[str, Shape] = field(default_factory=dict[str, Shape])

    def given(self, rng: Rng, frame: Frame) -> Settings | None:
        """Return arguments for a call, or None if a tensor of the right shape is missing."""
        tensors: Settings = {}
        for name, shape in self.tensors.items():
            fitting = [TensorName(f"@{label}") for label, known in frame.labels.items() if known == shape]
            fitting += [TensorName("in")] if frame.input_shape == shape else []
            if not fitting:
                return None
            tensors[name] = rng.choice(fitting)
        order = [parameter.name for parameter in self.block.parameters]
        return dict(sorted({**self.arguments, **tensors}.items(), key=lambda pair: order.index(pair[0])))


class SpecGenerator:
    """Generate one spec.

    Args:
        randint: The source of randomness.
        plant: Returns faulty statements for a map, which are planted among the others.
        nested: Whether they can also be planted inside braces.

    Attributes:
        faulty: The planted statements.
        outermost: The top-level statement that is planted, or that contains the planted ones.
        inside: The number of statements before the planted ones in the same braces, 0 without braces.
    """

    def __init__(
        self,
        randint: RandInt,
        plant: Callable[[Rng, Shape], list[ast.Statement]] | None = None,
        *,
        nested: bool = True,
    ) -> None:
        self.rng = Rng(randint)
        self.exprs = ExpressionWriter(self.rng)
        self.plant = plant
        self.nested = nested
        self.faulty: list[ast.Statement] = []
        self.outermost: ast.Statement | None = None
        self.inside = 0
        self.names = 0
        self.scopes: list[str] = []
        self.blocks: list[Template] = []
        self.growing: list[GrowingBlock] = []
        self.constants: Settings = {}

    def new_name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def new_label(self) -> str:
        """Return a label; some are paths that fill the same scopes."""
        if not self.rng.rarely(4):
            return self.new_name("l")
        if not self.scopes or self.rng.rarely(2):
            self.scopes.append(self.new_name("s") + self.rng.choice(["", ".0", ".inner"]))
        return f"{self.rng.choice(self.scopes)}.{self.new_name(self.rng.choice(['', 'l']))}"

    # calls

    def call(
        self, callee: str, settings: Settings, frame: Frame, order: Sequence[str], repeat: int | None = None
    ) -> ast.Call:
        """Build a call with some leading arguments by position, at random, and the rest by name."""
        rest = dict(settings)
        args: list[ast.Argument] = []
        for name in order:
            if name not in rest or self.rng.rarely(5) or (name == "c" and callee == "conv" and not args):
                break
            args.append(ast.Argument(NOWHERE, None, operand(self.exprs.expr(rest.pop(name), frame))))
        for name, value in rest.items():
            flag = value is True and self.rng.rarely(2)
            args.append(
                ast.Argument(
                    NOWHERE, None if flag else name, ast.Name(NOWHERE, name) if flag else self.exprs.expr(value, frame)
                )
            )
        name = self.call_name(frame, repeat is not None)
        return make_call(callee, [*args, name] if name else args, repeat)

    def call_name(self, frame: Frame, repeated: bool) -> ast.Argument | None:
        """Return the argument `name` of a call where its value is unique, sometimes."""
        if not (frame.labeling or frame.counter) or not frame.input_shape or not self.rng.rarely(8):
            return None
        scope = self.rng.choice(["", "", f"{self.new_name('s')}."])
        pattern = scope + self.new_name("n") + self.rng.choice(["", "_{in.c}", "-{in.c + 1}", "/{2*in.c}+"])
        pattern += self.rng.choice([f"_{{{frame.counter}}}", f"-{{{frame.counter} + 4}}"]) if not frame.labeling else ""
        pattern += self.rng.choice(["_{i}", "_{n}", "-{i + 4}", ".{2*n - 1}"]) if repeated else ""
        return ast.Argument(NOWHERE, "name", ast.Text(NOWHERE, pattern))

    def draw_settings(self, name: str, x: Shape) -> tuple[Settings, Shape] | None:
        """Draw settings of an operator for a shape, and return them with the output shape, or None.

        The result is None if the operator does not accept the shape, or if the output is a large map.
        """
        name, draw = VARIANTS.get(name, (name, SETTINGS.get(name)))
        settings = draw(self.rng, x) if draw is not None else {}
        try:
            y = OPS[name](**settings).infer(x) if settings is not None else None
        except (ShapeError, TypeError):
            return None
        large = y is None or max(y[1:], default=1) > 2 * MAX_SIDE or y[0] > 64
        return None if y is None or settings is None or large or is_map(x) != is_map(y) else (settings, y)

    def op(self, x: Shape, frame: Frame, names: Sequence[str] = tuple(OPS)) -> tuple[ast.Element, Shape]:
        """Build a call of an operator that accepts the shape, and return it with the output shape."""
        name = self.rng.choice(names)
        drawn = self.draw_settings(name, x)
        if drawn is None:
            return make_call(self.rng.choice(ACTIVATIONS)), x
        settings, y = drawn
        return self.call(name, settings, frame, list(OPS[name].parameters)), y

    def reshape(self, x: Shape, target: Shape, frame: Frame) -> list[ast.Element]:
        """Return the shortest list of elements that turns one shape into another."""
        elements: list[ast.Element] = []
        if is_map(x) and not is_map(target):
            elements.append(make_call("flatten"))
            x = (math.prod(x),)
        if x[1:] != target[1:]:
            name = self.rng.choice(["adaptive_avgpool", "adaptive_maxpool", "upsample"])
            similar = [TensorName(f"@{label}") for label, y in frame.labels.items() if y[1:] == target[1:]]
            similar += [TensorName("in")] if frame.input_shape[1:] == target[1:] else []
            settings: Settings = {"size": target[1:]}
            if name == "upsample" and similar and is_map(target):
                settings = {"like": self.rng.choice(similar), **self.rng.subset({"mode": Word("bilinear")})}
            elements.append(self.call(name, settings, frame, ["size"] if name != "upsample" else []))
        if x[0] > target[0] and self.rng.rarely():
            elements.append(self.call("slice", {"range": Interval((0, target[0]))}, frame, ["range"]))
        elif x[0] != target[0] and is_map(target):
            elements.append(self.call("conv", {"kernel": (1, 1), "c": target[0]}, frame, ["kernel", "c"]))
        elif x[0] != target[0]:
            elements.append(self.call("linear", {"c": target[0]}, frame, ["c"]))
        return elements

    def block_call(self, x: Shape, frame: Frame) -> tuple[ast.Element, Shape]:
        """Build a call of a block: an earlier one with this input shape, a new one, or a standard block."""
        if is_map(x) and self.rng.rarely(4):
            return self.growing_call(x)
        fitting = [
            block for block in self.blocks if block.input_shape == x and block.given(self.rng, frame) is not None
        ]
        standard = [name for name, block in STANDARD_BLOCKS.items() if is_map(x) and block.accepts(x)]
        if standard and self.rng.rarely(2):
            return self.standard_call(self.rng.choice(standard), x, frame)
        if fitting and self.rng.rarely(2):
            template = self.rng.choice(fitting)
        else:
            template = self.new_block(x, frame)
        return self.call_of(template, frame), template.output_shape

    def call_of(self, template: Template, frame: Frame) -> ast.Call:
        """Build a call of a block, of which the frame has the tensors."""
        given = template.given(self.rng, frame)
        assert given is not None
        repeat = self.rng.randint(1, 3) if template.output_shape == template.input_shape and self.rng.rarely() else None
        order = [parameter.name for parameter in template.block.parameters]
        return self.call(template.block.name, given, frame, order, repeat)

    def growing_call(self, x: Shape) -> tuple[ast.Element, Shape]:
        """Build a call of a block that accepts every map; some are called several times."""
        if not self.growing or self.rng.rarely():
            self.growing.append(GrowingBlock(self.rng, self.new_name("growing")))
        repeat = self.rng.randint(2, 3) if self.rng.boolean() else None
        return self.rng.choice(self.growing).call(x, self.rng.choice([None, 2, 4]), repeat)

    def standard_call(self, name: str, x: Shape, frame: Frame) -> tuple[ast.Element, Shape]:
        """Build a call of a standard block for a map that it accepts."""
        block = STANDARD_BLOCKS[name]
        settings = block.settings(self.rng, x)
        y = block.output(x, settings)
        repeat = self.rng.randint(1, 2) if y == x and self.rng.rarely() else None
        order = [key for key in settings if key not in ("subsample", "stride")]
        return self.call(name, settings, frame, order, repeat), y

    def new_block(self, x: Shape, frame: Frame, *, reads: bool = False) -> Template:
        """Write a new block for an input shape. The values of its parameters are those its body was generated with.

        Args:
            x: The shape of its input.
            frame: The frame of a call; its tensors can be parameters.
            reads: Whether the block has such parameters for sure.
        """
        arguments: Settings = {}
        parameters: list[ast.BlockParameter] = []
        for value in (
            self.rng.choice([4, 8, 0.5, True, (3, 3), [4, 2, 8], OpName("relu"), OpName("silu")])
            for _ in range(self.rng.randint(0, 3))
        ):
            kind = {int: "int", float: "float", bool: "bool", tuple: "size", list: "list", OpName: "op"}[type(value)]
            hidden = (
                [name for name in self.constants if name not in ("classes", *arguments)] if type(value) is int else []
            )
            name = self.rng.choice(hidden) if hidden and self.rng.rarely(4) else self.new_name("p")
            default = None
            if self.rng.rarely(2) and not any(parameter.default is None for parameter in parameters):
                default = self.exprs.expr(value, Frame(x, {**self.constants, **arguments}))
                if isinstance(value, OpName):  # any activation keeps the shape
                    default = ast.Name(NOWHERE, self.rng.choice(ACTIVATIONS))
            typed = kind != "int" or self.rng.rarely()
            parameters.append(
                ast.BlockParameter(
                    NOWHERE, name, kind if typed else None, default, default is not None and self.rng.rarely()
                )
            )
            arguments[name] = value
        known = list(dict.fromkeys([*frame.labels.values(), frame.input_shape]))
        tensors = {self.new_name("t"): self.rng.choice(known) for _ in range(self.rng.randint(0, 2) if known else 0)}
        if reads and not tensors:
            tensors = {self.new_name("t"): self.rng.choice(known)}
        for name in tensors:
            position = self.rng.randint(0, len(parameters))
            parameters.insert(position, ast.BlockParameter(NOWHERE, name, "tensor", None, False))
        frame = Frame(x, {**self.constants, **arguments}, dict(tensors), own=set(tensors))
        body, y = self.body(x, frame, 1)
        for name, shape in tensors.items():
            if is_map(shape) or not is_map(y):
                side = make_flow(ast.Reference(NOWHERE, name), *self.reshape(shape, y, frame))
                body.append(make_flow(ast.Join(NOWHERE, "add", (make_flow(ast.In(NOWHERE)), side))))
        # with `once`, later calls of a repeat use the default, which makes the same shapes
        plain = [p for p in parameters if p.name not in tensors]
        given = {p.name: arguments[p.name] for p in plain if p.default is None or self.rng.rarely(2)}
        block = ast.Block(NOWHERE, self.new_name("block"), tuple(parameters), tuple(body), NOWHERE)
        self.blocks.append(Template(block, given, x, y, tensors))
        return self.blocks[-1]

    # elements and statements

    def element(self, x: Shape, frame: Frame, depth: int) -> tuple[ast.Element, Shape]:
        """Generate an element for an input shape, and return it with the output shape."""
        ways: list[Callable[[], tuple[ast.Element, Shape]]] = [lambda: self.op(x, frame)] * 4
        if is_map(x):
            ways += [lambda: self.op(x, frame, ("conv", "bn", "maxpool"))] * 2
        operators = [name for name, value in frame.values.items() if isinstance(value, OpName)]
        if operators:
            ways.append(lambda: (make_call(self.rng.choice(operators)), x))
        shared = [label for label, (entering, _) in frame.modules.items() if entering == x]
        if shared:
            label = self.rng.choice(shared)
            ways.append(lambda: (_again(label), frame.modules[label][1]))
        if depth > 0:
            ways += [
                lambda: self.block_call(x, frame),
                lambda: self.join(x, frame, depth),
                lambda: self.braces(x, frame, depth),
                lambda: self.repeat(x, frame, depth),
                lambda: self.conditional(x, frame, depth),
            ]
            ways += [lambda: self.each(x, frame)] if is_map(x) else []
        return self.rng.choice(ways)()

    def elements(self, x: Shape, frame: Frame, depth: int) -> tuple[list[ast.Element], Shape]:
        found: list[ast.Element] = []
        for _ in range(self.rng.randint(1, 3)):
            element, x = self.element(x, frame, depth)
            found.append(element)
        return found, x

    def body(self, x: Shape, frame: Frame, depth: int) -> tuple[list[ast.Statement], Shape]:
        """Generate a list of statements with at least one pipeline."""
        found: list[ast.Statement] = []
        for _ in range(self.rng.randint(1, 3)):
            found += self.before_flow(x, frame)
            flow, x = self.flow(x, frame, depth)
            found.append(flow)
        frame.input_shape = x
        if self.rng.rarely(6):
            found.append(self.let_or_require(frame))
        return found, x

    def before_flow(self, x: Shape, frame: Frame, *, shadowing: bool = True) -> list[ast.Statement]:
        """Let `in` be the tensor that enters the next statement, and write something else before it, sometimes."""
        frame.input_shape = x
        found: list[ast.Statement] = []
        if self.rng.rarely(4):
            found.append(self.let_or_require(frame, shadowing=shadowing))
        if frame.labeling and self.rng.rarely(6):
            outer = [name for name in frame.labels if name not in frame.own]
            label = self.rng.choice(outer) if outer and self.rng.rarely(2) else self.new_label()
            frame.labels[label] = x
            frame.modules.pop(label, None)
            frame.own.add(label)
            found.append(make_flow(ast.In(NOWHERE), label=label))
        return found

    def let_or_require(self, frame: Frame, *, shadowing: bool = True) -> ast.Statement:
        """Generate a `let` or a `require`; with `shadowing`, the `let` may hide another value."""
        if self.rng.rarely():
            return ast.Require(
                NOWHERE,
                self.exprs.boolean(True, frame),
                self.rng.choice([None, ast.Text(NOWHERE, "it holds for {in.c} channels")]),
            )
        named = [name for name in frame.values if name not in (frame.counter, "classes")]
        hidden = named if shadowing and self.rng.rarely() else []
        name = self.rng.choice(hidden) if hidden else self.new_name("v")
        value = self.rng.choice([1, 2, 4, 8, True, 0.25, (1, 3)])
        statement = ast.Let(NOWHERE, name, self.exprs.expr(value, frame), NOWHERE)
        frame.values[name] = value
        return statement

    def flow(self, x: Shape, frame: Frame, depth: int, label: str | None = None) -> tuple[ast.Flow, Shape]:
        """Generate a pipeline statement."""
        labels, modules = dict(frame.labels), dict(frame.modules)
        elements, y = self.elements(x, frame, depth)
        if len(elements) == 1 and _is_named(elements[0]):
            if label is not None:
                elements.append(make_call("identity"))
        elif label is None and frame.labeling and self.rng.rarely():
            label = self.new_label()
        if self.rng.rarely(8):
            elements.insert(0, ast.In(NOWHERE))
        if self.rng.rarely(5):
            happens = self.rng.boolean()
            flow = make_flow(*elements, label=label, condition=self.exprs.boolean(happens, frame))
            if not happens:
                frame.labels, frame.modules = labels, modules  # without those of tables in the pipeline
                return flow, x
        else:
            flow = make_flow(*elements, label=label)
        if label is not None and label != "stage":
            frame.labels[label] = y
            frame.own.add(label)
            frame.modules.pop(label, None)
            runs = any(isinstance(element, ast.Call) and element.callee in OPS for element in elements)
            if runs and not _reads_others(elements):
                frame.modules[label] = (x, y)
        return flow, y

    def braces(self, x: Shape, frame: Frame, depth: int) -> tuple[ast.Element, Shape]:
        body, y = self.body(x, frame.inner(x), depth - 1)
        return ast.Braces(NOWHERE, tuple(body)), y

    def repeat(self, x: Shape, frame: Frame, depth: int) -> tuple[ast.Element, Shape]:
        """Generate a repeated group. Its output shape equals its input shape, so that every iteration is valid."""
        count = self.rng.randint(1, 3)
        head = self.exprs.expr(count, frame)
        variable = self.new_name("i") if self.rng.rarely(2) else None
        hidden = [name for name, value in frame.values.items() if type(value) is int and name != "classes"]
        if variable and hidden and self.rng.rarely(4):
            variable = self.rng.choice(hidden)
        inner = frame.repeated(x, variable)
        body, y = self.body(x, inner, depth - 1)
        back = self.reshape(y, x, inner)
        if variable is not None:
            later = ast.Binary(NOWHERE, ">", ast.Name(NOWHERE, variable), make_integer(0))
            body.append(make_flow(make_call(self.rng.choice(ACTIVATIONS)), condition=later))
        body += [make_flow(*back)] if back else []
        return ast.Repeat(NOWHERE, head, variable, tuple(body), NOWHERE), x

    def conditional(self, x: Shape, frame: Frame, depth: int) -> tuple[ast.Element, Shape]:
        decision = self.rng.boolean()
        condition = self.exprs.boolean(decision, frame)
        body, y = self.body(x, frame.inner(x), depth - 1)
        if decision and self.rng.rarely(2):
            return ast.If(NOWHERE, condition, tuple(body), None), y
        other, z = self.body(x, frame.inner(x), depth - 1)
        return ast.If(NOWHERE, condition, tuple(body), tuple(other)), y if decision else z

    def join(self, x: Shape, frame: Frame, depth: int, required: str | None = None) -> tuple[ast.Element, Shape]:
        """Generate a join: a first branch, and further branches reshaped to be compatible with it."""
        kind = self.rng.choice([known for known in KINDS if required in (None, known)])
        inner = frame.inner(x)
        first, shape = self.flow(x, inner, depth - 1)
        branches: list[ast.Statement] = [first]
        shapes = [shape]
        for _ in range(self.rng.randint(1, 2)):
            start, label = x, None
            usable = [name for name, known in inner.labels.items() if is_map(known) or not is_map(shape)]
            if usable and self.rng.rarely(2):
                label = self.rng.choice(usable)
                start = inner.labels[label]
            target = self.matching_shape(kind, shape, start)
            if is_map(target) and not is_map(start):
                continue
            elements = self.reshape(start, target, inner)
            head: list[ast.Element] = [ast.Reference(NOWHERE, label) if label else ast.In(NOWHERE)]
            branch = make_flow(*(elements if elements and not label and self.rng.rarely(2) else head + elements))
            there = True
            if self.rng.rarely(4):
                there, first_side = self.rng.boolean(), self.rng.boolean()
                absent = (make_flow(ast.Nothing(NOWHERE)),)
                sides = ((branch,), absent) if first_side else (absent, (branch,))
                branch = make_flow(ast.If(NOWHERE, self.exprs.boolean(there == first_side, inner), *sides))
            branches.append(branch)
            shapes += [target] if there else []
        y = shapes[0] if len(shapes) == 1 else JOINS[kind]().infer(*shapes)
        return ast.Join(NOWHERE, kind, tuple(branches)), y  # type: ignore[arg-type]

    def matching_shape(self, kind: str, shape: Shape, start: Shape) -> Shape:
        """Return a shape that a join accepts together with another one."""
        if kind == "concat" and start[0] <= 32:
            return (start[0], *shape[1:])
        if kind == "mul" and is_map(shape):
            return (self.rng.choice([shape[0], 1]), *(self.rng.choice([shape[1:], (1, 1)])))
        return shape

    def each(self, x: Shape, frame: Frame) -> tuple[ast.Element, Shape]:
        """Generate a table of convolutions, or of calls of a block."""
        if self.rng.rarely():
            template = self.new_block(x, frame)
            if template.arguments or template.tensors:
                return self.each_block(template, frame), template.output_shape
        columns = self.rng.choice([["kernel", "c"], ["c", "repeat"], ["kernel", "c", "stride"], ["kernel"]])
        fixed: Settings = {} if "kernel" in columns else {"kernel": (3, 3)}
        fixed |= {} if "c" in columns else {"c": self.rng.randint(1, 12)}
        fixed |= {"bias": True} if self.rng.rarely() else {}
        named = frame.labeling and self.rng.rarely(4)
        rows: list[ast.Row] = []
        for _ in range(self.rng.randint(1, 3)):
            cells = {
                "kernel": self.rng.choice([(1, 1), (3, 3)]),
                "c": fixed.get("c", self.rng.randint(1, 12)),
                "stride": (1, 1),
                "repeat": self.rng.randint(1, 2),
            }
            label = self.new_label() if frame.labeling and not named and self.rng.rarely() else None
            x = (cells["c"], *x[1:])
            if label:
                frame.labels[label] = x
                frame.own.add(label)
            name = [ast.Text(NOWHERE, self.new_name("n") + "_{n}" * ("repeat" in columns))] if named else []
            rows.append(ast.Row(NOWHERE, label, (*self.cells([cells[name] for name in columns], frame), *name)))
        return self.table("conv", [*columns, *(["name"] if named else [])], fixed, rows, frame), x

    def each_block(self, template: Template, frame: Frame) -> ast.Each:
        """Generate a table of calls of a block, with one row if it changes the shape."""
        given = template.given(self.rng, frame)
        assert given is not None
        columns = list(given)
        fixed = {columns[-1]: given[columns.pop()]} if len(columns) > 1 and self.rng.rarely(2) else {}
        values = [given[name] for name in columns]
        count = self.rng.randint(1, 2) if template.output_shape == template.input_shape else 1
        rows = [ast.Row(NOWHERE, None, self.cells(values, frame)) for _ in range(count)]
        return self.table(template.block.name, columns, fixed, rows, frame)

    def cells(self, values: Sequence[Any], frame: Frame) -> tuple[ast.Expr, ...]:
        """Return the cells of a row."""
        cells = [operand(self.exprs.expr(value, frame)) for value in values]
        if isinstance(cells[0], ast.Name):  # `classes` at the start of a line would be parsed as a statement
            cells[0] = ast.Group(NOWHERE, cells[0])
        return tuple(cells)

    def table(
        self, callee: str, columns: Sequence[str], fixed: Settings, rows: Sequence[ast.Row], frame: Frame
    ) -> ast.Each:
        """Return a table with arguments for all rows."""
        args = [ast.Argument(NOWHERE, name, self.exprs.expr(value, frame)) for name, value in fixed.items()]
        names = tuple(ast.Name(NOWHERE, name) for name in columns)
        return ast.Each(NOWHERE, callee, names, tuple(args), tuple(rows), NOWHERE)

    # required features

    def statements_with(self, name: str, x: Shape, frame: Frame) -> tuple[list[ast.Statement], Shape]:
        """Generate statements that contain one of `FEATURES`, preceded by whatever makes the map fit."""
        if name in OPS or name in VARIANTS:
            elements, y = self._make_fit(x, frame, lambda z: self.draw_settings(name, z))
            if y is None:
                return [], x
            settings, shape = y
            name = VARIANTS[name][0] if name in VARIANTS else name
            call = self.call(name, settings, frame, list(OPS[name].parameters))
            return [make_flow(*elements, call)], shape
        if name in STANDARD_BLOCKS:
            elements, z = self._make_fit(x, frame, lambda z: z if STANDARD_BLOCKS[name].accepts(z) else None)
            assert z is not None
            call, shape = self.standard_call(name, z, frame)
            return [make_flow(*elements, call)], shape
        label = self.new_label()
        plain = make_call(self.rng.choice(ACTIVATIONS))
        here = make_flow(ast.In(NOWHERE))
        match name:
            case "when":
                happens = self.rng.boolean()
                return [make_flow(plain, condition=self.exprs.boolean(happens, frame))], x
            case "@label":
                frame.labels[label] = x
                frame.own.add(label)
                joined = ast.Join(NOWHERE, "add", (here, make_flow(ast.Reference(NOWHERE, label))))
                return [make_flow(plain, label=label), make_flow(joined)], x
            case "like=@label" | "like=in":
                kernel = tuple(min(size, self.rng.randint(1, 3)) for size in x[1:])
                down = self.call("maxpool", {"kernel": kernel}, frame, ["kernel"])
                tensor = TensorName("in" if name == "like=in" else f"@{label}")
                mode = self.rng.choice(["nearest", "bilinear", "bicubic", "bicubic"])
                settings: Settings = {"like": tensor, "mode": Word(mode)}
                resized = make_flow(down, self.call("upsample", settings, frame, []))
                if name == "like=in":
                    return [resized], x
                frame.labels[label] = x
                frame.own.add(label)
                return [make_flow(plain, label=label), resized], x
            case "list[i]":
                return self.listed(x, frame)
            case "parameter: tensor":
                frame.labels[label] = x
                frame.own.add(label)
                frame.input_shape = x
                template = self.new_block(x, frame, reads=True)
                return [make_flow(plain, label=label), make_flow(self.call_of(template, frame))], template.output_shape
            case "again":
                return self.shared(label, x, frame)
            case "nothing":
                absent = (make_flow(ast.Nothing(NOWHERE)),)
                branch = ast.If(
                    NOWHERE, self.exprs.boolean(self.rng.boolean(), frame.inner(x)), (make_flow(plain),), absent
                )
                return [make_flow(ast.Join(NOWHERE, "add", (here, make_flow(branch))))], x
            case "repeat":
                element, y = self.repeat(x, frame, 1)
            case "each":
                element, y = self.each(x, frame)
            case "if":
                element, y = self.conditional(x, frame, 1)
            case _:
                element, y = self.join(x, frame, 1, name)
        return [make_flow(element)], y

    def listed(self, x: Shape, frame: Frame) -> tuple[list[ast.Statement], Shape]:
        """Generate a repeat whose convolutions take their channels from a list."""
        values = [self.rng.randint(1, 12) for _ in range(self.rng.randint(1, 3))]
        name, variable = self.new_name("v"), self.new_name("i")
        items = self.exprs.expr(values, frame.inner(x))
        channels = ast.Index(NOWHERE, ast.Name(NOWHERE, name), ast.Name(NOWHERE, variable))
        args = [ast.Argument(NOWHERE, None, ast.SizeLiteral(NOWHERE, 1, 1)), ast.Argument(NOWHERE, "c", channels)]
        body = (make_flow(make_call("conv", args), make_call(self.rng.choice(ACTIVATIONS))),)
        count = ast.FunctionCall(NOWHERE, "len", (ast.Name(NOWHERE, name),))
        repeat = ast.Repeat(NOWHERE, count, variable, body, NOWHERE)
        braces = ast.Braces(NOWHERE, (ast.Let(NOWHERE, name, items, NOWHERE), make_flow(repeat)))
        return [make_flow(braces)], (values[-1], *x[1:])

    def shared(self, label: str, x: Shape, frame: Frame) -> tuple[list[ast.Statement], Shape]:
        """Generate a module that is used for two sizes, and a sum of both results."""
        before = self.new_label()
        channels = self.rng.randint(1, 8)
        sides = self.rng.choice([(1, 1), (3, 3), (3, 1)])
        layers: list[tuple[str, Settings]] = [("conv", {"kernel": sides, "c": channels})]
        norm = ("bn", {}) if channels == 1 else ("gn", {"groups": 1})  # not `gn` for single values
        layers += self.rng.choice([[], [("bn", {})], [("gelu", {}), norm, ("dropout2d", {})]])
        pool: Settings = {"kernel": tuple(min(size, self.rng.randint(1, 3)) for size in x[1:])}
        small = OPS["maxpool"](**pool).infer(x)
        frame.labels |= {before: x, label: (channels, *x[1:])}
        frame.own |= {before, label}
        calls = [self.call(name, settings, frame, list(settings)) for name, settings in layers]
        calls += [make_call("identity")] if len(calls) == 1 and _is_named(calls[0]) else []
        inner = frame.inner((channels, *x[1:]))
        frame.modules[label] = (x, frame.labels[label])
        down = self.call("maxpool", pool, inner, ["kernel"])
        again = [down, *[_again(label)] * (self.rng.randint(1, 2) if channels == x[0] else 1)]
        back = self.reshape((channels, *small[1:]), frame.labels[label], inner)
        branch = make_flow(ast.Reference(NOWHERE, before), *again, *back)
        joined = ast.Join(NOWHERE, "add", (make_flow(ast.In(NOWHERE)), branch))
        first = make_flow(ast.In(NOWHERE), label=before)
        return [first, make_flow(*calls, label=label), make_flow(joined)], frame.labels[label]

    def _make_fit(
        self, x: Shape, frame: Frame, fits: Callable[[Shape], T | None]
    ) -> tuple[list[ast.Element], T | None]:
        """Return the elements that turn a map into a shape that fits, and the result of `fits` for that shape."""
        for target in (x, x, x, (x[0], 4, 4), (4 * self.rng.randint(1, 3), 4, 4)):
            found = fits(target)
            if found is not None:
                return self.reshape(x, target, frame), found
        return [], None

    # the file

    def file(self) -> ast.File:
        image = (self.rng.randint(1, 4), self.rng.randint(1, MAX_SIDE), self.rng.randint(1, MAX_SIDE))
        classes = self.rng.randint(1, 10)
        params = {
            self.new_name("param"): self.rng.choice([2, 8, 16, False, 0.5, OpName("gelu"), (3, 3), [2, 8, 4]])
            for _ in range(self.rng.randint(0, 2))
        }
        self.constants = {"classes": classes, **params}
        lets: list[ast.Top] = []
        frame = Frame(image, dict(self.constants))
        top: list[ast.Top] = [ast.Network(NOWHERE, "generated")] if self.rng.rarely(2) else []
        images = self.images(image, frame)
        top += [*images, ast.Classes(NOWHERE, make_integer(classes))]
        for name, value in params.items():
            top.append(ast.Param(NOWHERE, name, self.exprs.expr(value, Frame((), {"classes": classes})), NOWHERE))
        top += self.rules()
        for name, value in (
            (self.new_name("v"), self.rng.choice([1, 3, 6, True])) for _ in range(self.rng.randint(0, 2))
        ):
            lets.append(ast.Let(NOWHERE, name, self.exprs.expr(value, Frame((), dict(self.constants))), NOWHERE))
            self.constants[name] = frame.values[name] = value
        body, y = self.network(image, frame)
        body[:0] = self.uses_of(images, image)
        aux = self.aux(frame, classes) if y == (classes,) else []
        blocks = [template.block for template in (*self.blocks, *self.growing)]
        shape = ast.ListLiteral(NOWHERE, tuple(make_integer(size) for size in y))
        outputs = [] if aux else self.outputs(body, frame)
        metric = f"output.{outputs[-1].name}" if outputs else "output"
        end: list[ast.Top] = [ast.Expect(NOWHERE, metric, "==", shape, None, NOWHERE)] if self.rng.rarely(2) else []
        if self.rng.rarely(4):
            least = ast.Figure(NOWHERE, 900_000_000, "900M")
            metric, within = self.rng.choice(["params", "macs", "depth"]), self.rng.choice([None, 0.01])
            end.append(ast.Expect(NOWHERE, metric, self.rng.choice(["<=", "<", "!="]), least, within, NOWHERE))
        first = next((index for index, piece in enumerate(body) if isinstance(piece, ast.Let)), len(body))
        split = self.rng.randint(0, first)  # layers and blocks can use a `let` before its line, another `let` cannot
        planted = next((index for index, piece in enumerate(body) if piece is self.outermost), split)
        if planted < split < planted + len(self.faulty) and not self.inside:  # between two faulty statements
            split = planted
        return ast.File(NOWHERE, NO_SOURCE, (*top, *blocks, *body[:split], *lets, *body[split:], *aux, *outputs, *end))

    def images(self, first: Shape, frame: Frame) -> list[ast.Input]:
        """Generate the images: one, perhaps with a name, or several."""
        if not self.rng.rarely(6):
            return [ast.Input(NOWHERE, *first)]  # type: ignore[arg-type]
        found: list[ast.Input] = []
        for number in range(self.rng.randint(1, 3)):
            c, h, w = first if number == 0 else (self.rng.randint(1, 4), *first[1:])
            name = self.new_name("image")
            frame.labels[name] = (c, h, w)
            frame.own.add(name)
            found.append(ast.Input(NOWHERE, c, h, w, name))
        return found

    def uses_of(self, images: Sequence[ast.Input], x: Shape) -> list[ast.Statement]:
        """Return a statement that reads all images and keeps the shape of the first."""
        if len(images) < 2:
            return []
        size = ast.Argument(NOWHERE, None, ast.SizeLiteral(NOWHERE, 1, 1))
        project = make_call("conv", [size, ast.Argument(NOWHERE, "c", make_integer(x[0]))])
        names = [image.name for image in images[1:] if image.name is not None]
        sides = [make_flow(ast.Reference(NOWHERE, name), project) for name in names]
        return [make_flow(ast.Join(NOWHERE, "add", (make_flow(ast.In(NOWHERE)), *sides)))]

    def network(self, x: Shape, frame: Frame) -> tuple[list[ast.Statement], Shape]:
        """Generate the body of the network, with or without `stem`, `stage`, `head`, and a classifier."""
        found: list[ast.Statement] = []
        words = self.rng.boolean()
        count = self.rng.randint(1, 3)
        features = self.rng.sample(FEATURES, 4)
        planted = self.rng.randint(0, count - 1) if self.plant else None
        for i in range(count):
            found += self.before_flow(x, frame, shadowing=False)
            if i == planted and self.plant:
                found += self.plant_fault(self.plant, x)
            flow, x = self.flow(x, frame, 1, ("stem" if i == 0 else "stage") if words else None)
            found.append(flow)
            for name in features if i == count - 1 else [features.pop()]:
                frame.input_shape = x
                statements, x = self.statements_with(name, x, frame)
                found += statements
        frame.input_shape = x
        if self.rng.rarely(4):
            found.append(make_flow(make_call(self.rng.choice(ACTIVATIONS))))
            return found, x
        pool = [make_call("global_avgpool")] if self.rng.rarely(2) else []
        target = (self.constants["classes"],)
        last = [*pool, make_call("flatten")]
        if self.rng.rarely(4):
            found.append(make_flow(*last))
            frame.input_shape = (x[0] if pool else math.prod(x),)
            flow, x = self.flow(frame.input_shape, frame, 1)
            found.append(flow)
            frame.input_shape = x
            last = []
        last.append(self.call("linear", {"c": target[0]}, frame, ["c"]))
        if len(last) == 1 and _is_named(last[0]):
            words = False
        found.append(make_flow(*last, label="head" if words else None))
        return found, target

    def plant_fault(self, plant: Callable[[Rng, Shape], list[ast.Statement]], x: Shape) -> list[ast.Statement]:
        """Return the faulty statements, sometimes inside braces and after other statements."""
        self.faulty = plant(self.rng, x)
        found: list[ast.Statement] = list(self.faulty)
        if found and self.nested and self.rng.rarely():
            before = [make_flow(make_call(self.rng.choice(ACTIVATIONS))) for _ in range(self.rng.randint(1, 2))]
            self.inside = len(before)
            found = [make_flow(ast.Braces(NOWHERE, (*before, *self.faulty)))]
        self.outermost = found[0] if found else None
        return found

    def rules(self) -> list[ast.Top]:
        """Generate defaults and initializations for the whole file."""
        found: list[ast.Top] = []
        if self.rng.rarely(4):
            found.append(ast.Default(NOWHERE, self.call("bn", {"eps": 1e-3}, Frame(()), [])))
        if self.rng.rarely(4):
            found.append(ast.Default(NOWHERE, self.call("conv", {"bias": True}, Frame(()), [])))
        if self.rng.rarely(4):
            found.append(
                ast.Init(
                    NOWHERE, "conv", self.call("kaiming_normal", {"mode": Word("fan_out")}, Frame(()), []), NOWHERE
                )
            )
        if self.rng.rarely(4):
            found.append(ast.Init(NOWHERE, "linear", self.call("normal", {"std": 0.01}, Frame(()), ["std"]), NOWHERE))
        return found

    def aux(self, frame: Frame, classes: int) -> list[ast.Top]:
        """Generate an auxiliary head at one of the labels, sometimes."""
        if not frame.labels or not self.rng.rarely(3):
            return []
        label = self.rng.choice(list(frame.labels))
        x = frame.labels[label]
        inner = Frame(x, dict(self.constants), dict(frame.labels))
        weight_value = self.exprs.expr(self.rng.choice([0.3, 1, 2]), inner)
        body, y = self.body(x, inner, 0)
        flat = [make_call("flatten")] if is_map(y) else []
        body.append(make_flow(*flat, self.call("linear", {"c": classes}, inner, ["c"])))
        weight = ast.Argument(NOWHERE, "weight", weight_value)
        return [ast.Aux(NOWHERE, self.new_name("aux"), ast.Reference(NOWHERE, label), (weight,), tuple(body))]

    def outputs(self, body: list[ast.Statement], frame: Frame) -> list[ast.Output]:
        """Generate named outputs, sometimes: some labels, and the last statement, which gets a label."""
        last = body[-1]
        if self.plant or not self.rng.rarely(6) or not isinstance(last, ast.Flow) or any(map(_is_named, last.elements)):
            return []
        if not _computes(last):
            return []
        label = last.label.name if last.label else self.new_label()
        if label == "stage":
            return []
        body[-1] = last.replace(label=last.label or ast.LabelName(NOWHERE, label))
        flows = [flow for flow in body if isinstance(flow, ast.Flow) and flow.label]
        computed = {flow.label.name for flow in flows if flow.label and _computes(flow)}
        others = [other for other in frame.labels if other in computed - {label}]
        chosen = [*self.rng.sample(others, min(len(others), self.rng.randint(0, 2))), label]
        names = self.rng.choice(
            [chosen, [str(n) for n in range(len(chosen))], [f"maps.{n}" for n, _ in enumerate(chosen)]]
        )
        return [
            ast.Output(NOWHERE, n, ast.Reference(NOWHERE, each), NOWHERE) for n, each in zip(names, chosen, strict=True)
        ]


def _computes(flow: ast.Flow) -> bool:
    """Return whether a flow certainly runs a layer, so that its result is not the image."""
    return flow.condition is None and any(isinstance(element, ast.Call | ast.Join) for element in flow.elements)


def _again(label: str) -> ast.Again:
    return ast.Again(NOWHERE, ast.Reference(NOWHERE, label))


def _reads_others(elements: Sequence[ast.Element]) -> bool:
    """Return whether elements may read another tensor than their input."""
    pieces = [piece for element in elements for piece in element.walk()]
    modules = {id(piece.label) for piece in pieces if isinstance(piece, ast.Again)}
    return any(isinstance(piece, ast.Reference) and id(piece) not in modules for piece in pieces)


def _is_named(element: ast.Element) -> bool:
    """Return whether an element is a call with the argument `name`."""
    return isinstance(element, ast.Call) and any(arg.name == "name" for arg in element.args)
