"""A second implementation of the language, written from its reference in `docs/reference/language`.

It shares the parser with the compiler and nothing else: names, values, scopes, module names, shapes and weights are
computed here again, in the most direct way, without error messages or limits. The signatures of operators are read from
the tables of `operators.md`. The input is a valid spec; the behavior for an invalid one is undefined.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from cnnspec.diagnostics import Reporter, Source
from cnnspec.syntax import ast, parse

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "specs"

Shape = tuple[int, ...]
IMAGE = -1


class Tensor(NamedTuple):
    """The output of a layer, by its number, or the image."""

    layer: int
    shape: Shape


class Op(str):
    """The name of an operator as a value."""


class Word(str):
    """A keyword of an argument."""


class ReadsIn(Exception):
    """A value of the file uses `in`, so it has no value before the network runs."""


@dataclass(frozen=True)
class Layer:
    """An operator or a join that ran: its path (empty for a join), name, inputs, output shape and learned weights."""

    path: str
    name: str
    inputs: tuple[int, ...]
    shape: Shape
    weights: tuple[tuple[str, Shape], ...] = ()


@dataclass
class Result:
    layers: list[Layer] = field(default_factory=list)
    output: Shape = ()
    heads: list[tuple[str, float, int]] = field(default_factory=list)
    """Name, weight and output of each auxiliary head."""
    outputs: list[tuple[str, int]] = field(default_factory=list)
    """Name and layer of each named output."""

    @property
    def parameters(self) -> int:
        """The number of weights; those of a module that is used several times count once."""
        once = {(layer.path, key): math.prod(shape) for layer in self.layers for key, shape in layer.weights}
        return sum(once.values())


# --- signatures, from the documentation -----------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    default: Any = None
    once: bool = False


@cache
def operators() -> dict[str, dict[str, Parameter]]:
    """Read the arguments of every operator from the tables of the reference."""
    text = (ROOT / "docs/reference/language/operators.md").read_text("utf-8")
    found = {}
    for name, cell in re.findall(r"^\| `(\w+)` \| (`[^|]*`|none) \|", text, re.MULTILINE):
        found[name] = {}
        for argument, kind, default in re.findall(r"`(\w+): ([\w/]+)\??(?: = ([^`]+))?`", cell):
            found[name][argument] = Parameter(argument, kind, _default(kind, default))
    return found


def _default(kind: str, text: str) -> Any:
    if not text:
        return None
    if kind == "size" or (kind.startswith("size/") and text not in kind):
        return tuple(map(int, text.split("x")))
    if kind == "bool":
        return text == "true"
    return int(text) if kind == "int" else float(text) if kind == "float" else Word(text)


# --- names and files ------------------------------------------------------------------------------


@dataclass(eq=False)
class File:
    """A file: the values that its layers and blocks can use, its blocks, and its defaults."""

    tree: ast.File
    folder: Path
    values: dict[str, Any] = field(default_factory=dict)
    declared: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, tuple[File, ast.Block]] = field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Net:
    """The network of a file with what it extends: the statements that run, each with its file."""

    file: File
    image: Shape = ()
    images: list[ast.Input] = field(default_factory=list)
    declared: dict[str, Any] = field(default_factory=dict)
    body: list[tuple[File, ast.Statement]] = field(default_factory=list)
    aux: list[tuple[File, ast.Aux]] = field(default_factory=list)
    outputs: list[ast.Output] = field(default_factory=list)


def read(path: Path) -> ast.File:
    tree = parse(Source(path.name, path.read_text("utf-8")), Reporter())
    assert tree is not None
    return tree


def evaluate_file(path: Path, given: Mapping[str, Any] | None = None) -> Result:
    return evaluate_tree(read(path), path.parent, given)


def evaluate_tree(tree: ast.File, folder: Path = SPECS, given: Mapping[str, Any] | None = None) -> Result:
    """Return the layers of a valid spec.

    Args:
        tree: The spec.
        folder: The folder in which `use` and `extends` look for files first.
        given: Values for its parameters.
    """
    return Evaluator().run(Evaluator.gather(tree, folder, dict(given or {})))


@dataclass
class Braces:
    """Innermost braces: the names in them, and the tensor that flows into the current statement."""

    file: File
    values: ChainMap[str, Any]
    labels: ChainMap[str, Tensor]
    input: Tensor
    modules: ChainMap[str, Module] = field(default_factory=lambda: ChainMap[str, Module]({}))

    def inner(self, entering: Tensor) -> Braces:
        return Braces(self.file, self.values.new_child(), self.labels.new_child(), entering, self.modules.new_child())


class Module(NamedTuple):
    """What `again` repeats: the layer that enters a labeled statement, its own layers, and its output."""

    entering: int
    layers: range
    output: int


@dataclass
class Names:
    """A level of the module tree."""

    path: str = ""
    used: set[str] = field(default_factory=set)
    positions: int = 0
    stages: int = 0

    def child(self, name: str | None = None) -> str:
        if name is None:
            name, self.positions = str(self.positions), self.positions + 1
        for other in self.used:
            assert f"{name}.".startswith(f"{other}.") is f"{other}.".startswith(f"{name}.") is False, (name, other)
        self.used.add(name)
        return f"{self.path}.{name}" if self.path else name


NOTHING = None
"""The output of a branch that is omitted."""


class Evaluator:
    def __init__(self) -> None:
        self.result = Result()
        self.shapes: list[Callable[..., Shape]] = []
        """For each layer, the shape of its output as a function of those of its inputs."""

    # --- files ------------------------------------------------------------------------------------

    @classmethod
    def gather(cls, tree: ast.File, folder: Path, given: dict[str, Any]) -> Net:
        statements = tree.statements
        extends = next((s for s in statements if isinstance(s, ast.Extends)), None)
        if extends is None:
            file = cls.define(tree, folder, given, {})
            net = Net(file)
        else:
            own = cls.define(tree, folder, given, {})
            taken = {arg.name: value(arg.value, own.values, None) for arg in extends.args}
            taken = {**{n: own.values[n] for n in own.declared}, **taken, **given}
            path = cls.find(extends.target, folder)
            net = cls.gather(read(path), path.parent, taken)
            base = net.file
            file = cls.define(tree, folder, given, base.values)
            base.blocks |= {name: found for name, found in file.blocks.items() if found[0] is file}
            file.blocks = {**base.blocks, **file.blocks}
            for callee, defaults in file.defaults.items():
                base.defaults.setdefault(callee, {}).update(defaults)
            net.file = file
        net.declared |= file.declared
        layers = [
            (file, s)
            for s in statements
            if isinstance(s, (ast.Flow, ast.Require)) or (isinstance(s, ast.Let) and s.name not in file.values)
        ]
        aux = [(file, s) for s in statements if isinstance(s, ast.Aux)]
        outputs = [s for s in statements if isinstance(s, ast.Output)]
        if outputs or any(isinstance(s, ast.Flow) for s in statements):
            net.outputs = outputs
        if any(isinstance(s, ast.Flow) for s in statements):
            net.body, net.aux = layers, aux
        else:
            net.body, net.aux = net.body + layers, net.aux + aux
        net.images = [s for s in statements if isinstance(s, ast.Input)] or net.images
        for s in net.images:
            net.image = (sum(image.channels for image in net.images), s.height, s.width)
        return net

    @classmethod
    def define(cls, tree: ast.File, folder: Path, given: Mapping[str, Any], inherited: Mapping[str, Any]) -> File:
        file = File(tree, folder, dict(inherited))
        for s in tree.statements:
            match s:
                case ast.Param() | ast.Classes():
                    name = s.name if isinstance(s, ast.Param) else "classes"
                    own = value(s.value, file.values, None)
                    file.values[name] = file.declared[name] = given.get(name, own)
                case ast.Let():
                    file.values.pop(s.name, None)
                    try:
                        file.values[s.name] = value(s.value, file.values, None)
                    except (ReadsIn, KeyError):
                        pass
                case ast.Block():
                    file.blocks[s.name] = (file, s)
                case ast.Use():
                    path = cls.find(s.path, folder)
                    other = cls.define(read(path), path.parent, {}, {})
                    file.blocks |= {name.name: other.blocks[name.name] for name in s.names}
        for s in tree.statements:
            if isinstance(s, ast.Default):
                braces = Braces(file, ChainMap(file.values), ChainMap(), Tensor(IMAGE, ()))
                signature = cls.signature(file, s.call.callee)
                bound = bind(s.call.args, signature, file.values)
                values = {n: cls.argument(e, signature[n].kind, braces) for n, e in bound.items()}
                file.defaults.setdefault(s.call.callee, {}).update(values)
        return file

    @staticmethod
    def find(target: str, folder: Path) -> Path:
        name = target if target.endswith(".cnn") else f"{target}.cnn"
        return next(place / name for place in (folder, SPECS) if (place / name).exists())

    @classmethod
    def block(cls, file: File, name: str) -> tuple[File, ast.Block] | None:
        """Find a block: one of the file, or a standard block."""
        if name in file.blocks:
            return file.blocks[name]
        return _standard(name)

    @classmethod
    def signature(cls, file: File, callee: str) -> dict[str, Parameter]:
        found = cls.block(file, callee)
        if found is None:
            return operators()[callee]
        return {p.name: Parameter(p.name, p.type or _type(p.default), p.default, p.once) for p in found[1].parameters}

    # --- the network ------------------------------------------------------------------------------

    def run(self, net: Net) -> Result:
        names, labels = Names(), ChainMap[str, Tensor]({})
        values: dict[str, Any] = {}
        for file, _ in net.body:
            values |= file.values
        shared = ChainMap[str, Any]({}, values)
        x: Tensor | None = Tensor(IMAGE, net.image)
        for image in net.images if net.images[0].name else ():
            entering = Tensor(IMAGE, net.image)
            if len(net.images) > 1:
                shape = (image.channels, *net.image[1:])
                layer = Layer("", "slice", (IMAGE,), shape)
                entering = self.add(layer, lambda x, c=image.channels: (c, *x[1:]))
            labels[image.name] = entering
            x = labels[net.images[0].name]
        modules = ChainMap[str, Module]({})
        for file, s in net.body:
            assert x is not None
            x = self.statement(s, Braces(file, shared, labels, x, modules), names, x)
        assert x is not None
        self.result.output = x.shape
        self.result.outputs = [(output.name, labels[output.label.label].layer) for output in net.outputs]
        if self.result.outputs:
            self.result.output = self.result.layers[max(layer for _, layer in self.result.outputs)].shape
        for file, head in net.aux:
            x = labels[head.label.label]
            braces = Braces(file, shared.new_child(), labels.new_child(), x, modules.new_child())
            weight = next((value(arg.value, braces.values, x.shape) for arg in head.args), 1)
            y = self.body(head.body, braces, Names(names.child(head.name)), x)
            assert y is not None
            self.result.heads.append((head.name, float(weight), y.layer))
        return self.result

    def body(self, body: Sequence[ast.Statement], braces: Braces, names: Names, x: Tensor | None) -> Tensor | None:
        """Run statements below one another: the output of one flows into the next."""
        for s in body:
            assert x is not None
            braces.input = x
            x = self.statement(s, braces, names, x)
        return x

    def statement(self, s: ast.Statement, braces: Braces, names: Names, x: Tensor) -> Tensor | None:
        match s:
            case ast.Let():
                braces.values[s.name] = value(s.value, braces.values, x.shape)
            case ast.Require():
                assert value(s.condition, braces.values, x.shape) is True
            case ast.Flow():
                return self.flow(s, braces, names, x)
        return x

    def flow(self, s: ast.Flow, braces: Braces, names: Names, x: Tensor) -> Tensor | None:
        if s.condition is not None and not value(s.condition, braces.values, x.shape):
            return x
        label = s.label.name if s.label else None
        if s.label and s.label.word and label == "stage":
            names.stages += 1
            label = f"stage{names.stages}"
        first = s.elements[0]
        alone = len(s.elements) == 1
        y: Tensor | None = x
        start = len(self.result.layers)
        if alone and isinstance(first, (ast.In, ast.Reference, ast.Again)):
            y = self.element(first, braces, names, x)
        elif label and alone and isinstance(first, ast.Call) and not self.repeats(first):
            y = self.call(first.callee, first.args, 1, False, braces, names, x, label)
        else:
            inside = Names(names.child(label)) if label else names
            for element in s.elements:
                assert y is not None
                y = self.element(element, braces, inside, y)
        if label and y is not None:
            braces.labels[label] = y
            braces.modules[label] = Module(x.layer, range(start, len(self.result.layers)), y.layer)
        return y

    def again(self, module: Module, x: Tensor) -> Tensor:
        """Repeat layers with their settings and weights, for another tensor that enters."""
        made = {module.entering: x}
        for number in module.layers:
            layer = self.result.layers[number]
            inputs = [made[i] for i in layer.inputs]
            shape = self.shapes[number](*(one.shape for one in inputs))
            made[number] = self.add(
                Layer(layer.path, layer.name, tuple(one.layer for one in inputs), shape, layer.weights),
                self.shapes[number],
            )
        return made[module.output]

    @staticmethod
    def repeats(call: ast.Call) -> bool:
        return call.repeat is not None or any(arg.name == "repeat" for arg in call.args)

    def element(self, e: ast.Element, braces: Braces, names: Names, x: Tensor) -> Tensor | None:
        match e:
            case ast.Call():
                return self.call(e.callee, e.args, e.repeat or 1, self.repeats(e), braces, names, x, None)
            case ast.Braces():
                return self.body(e.body, braces.inner(x), names, x)
            case ast.Repeat():
                return self.repeat(e, braces, names, x)
            case ast.If():
                chosen = e.then if value(e.condition, braces.values, braces.input.shape) else e.otherwise or ()
                return self.body(chosen, braces.inner(x), names, x)
            case ast.Again():
                return self.again(braces.modules[e.label.label], x)
            case ast.Join():
                return self.join(e, braces.inner(x), names, x)
            case ast.Each():
                y = x
                for row in e.rows:
                    cells = [
                        ast.Argument(column.span, column.name, cell)
                        for column, cell in zip(e.columns, row.cells, strict=True)
                    ]
                    args = [*cells, *e.args]
                    repeated = any(arg.name == "repeat" for arg in args)
                    if row.label and repeated:
                        inside = Names(names.child(row.label))
                        y = self.call(e.callee, args, 1, True, braces, inside, y, None)
                    else:
                        y = self.call(e.callee, args, 1, repeated, braces, names, y, row.label)
                    if row.label:
                        braces.labels[row.label] = y
                return y
            case ast.Reference():
                return braces.labels[e.label]
            case ast.In():
                return braces.input
            case ast.Nothing():
                return NOTHING
        raise AssertionError(e)

    def repeat(self, e: ast.Repeat, braces: Braces, names: Names, x: Tensor) -> Tensor | None:
        y: Tensor | None = x
        for i in range(whole(value(e.count, braces.values, braces.input.shape))):
            assert y is not None
            inner = braces.inner(y)
            if e.variable:
                inner.values[e.variable] = i
            y = self.body(e.body, inner, names, y)
        return y

    def join(self, e: ast.Join, braces: Braces, names: Names, x: Tensor) -> Tensor | None:
        branches = [
            y for s in e.body if (y := self.statement(s, braces, names, x)) is not NOTHING and isinstance(s, ast.Flow)
        ]
        if len(branches) == 1:
            return branches[0]
        joined = [branch for branch in branches if branch is not NOTHING]
        rule = partial(self.joined_shape, e.kind)
        shape = rule(*(branch.shape for branch in joined))
        return self.add(Layer("", e.kind, tuple(branch.layer for branch in joined), shape), rule)

    @staticmethod
    def joined_shape(kind: str, *shapes: Shape) -> Shape:
        shape = shapes[0]
        if kind == "add":
            assert all(other == shape for other in shapes)
            return shape
        if kind == "concat":
            assert all(other[1:] == shape[1:] for other in shapes)
            return (sum(other[0] for other in shapes), *shape[1:])
        return tuple(max(sizes) for sizes in zip(*shapes, strict=True))

    def add(self, layer: Layer, rule: Callable[..., Shape]) -> Tensor:
        self.result.layers.append(layer)
        self.shapes.append(rule)
        return Tensor(len(self.result.layers) - 1, layer.shape)

    # --- calls ------------------------------------------------------------------------------------

    def call(
        self,
        callee: str,
        args: Sequence[ast.Argument],
        count: int,
        repeated: bool,
        braces: Braces,
        names: Names,
        x: Tensor,
        label: str | None,
    ) -> Tensor:
        variable = braces.values.get(callee)
        if isinstance(variable, Op):
            signature: dict[str, Parameter] = {}
            callee, found, bound = str(variable), None, {}
        else:
            found = self.block(braces.file, callee)
            signature = self.signature(braces.file, callee)
            bound = {}
        both = {**signature, "repeat": Parameter("repeat", "int"), "name": Parameter("name", "str")}
        bound = bind(args, both, braces.values)
        evaluated = {n: self.argument(e, both[n].kind, braces) for n, e in bound.items()}
        if repeated:
            count = evaluated.pop("repeat", count)
        pattern = evaluated.pop("name", None)
        if not isinstance(variable, Op):
            evaluated = {**braces.file.defaults.get(callee, {}), **evaluated}
        for i in range(count):
            name = label
            if pattern is not None:
                counters = {"i": i, "n": i + 1} if repeated else {}
                name = fill(pattern, {**braces.values, **counters}, braces.input.shape)
            path = names.child(name)
            if found is not None:
                x = self.enter(found, signature, evaluated, i, path, x)
            else:
                x = self.operate(callee, evaluated, path, x)
        return x

    def enter(
        self,
        found: tuple[File, ast.Block],
        signature: Mapping[str, Parameter],
        given: Mapping[str, Any],
        iteration: int,
        path: str,
        x: Tensor,
    ) -> Tensor:
        """Run the body of a block."""
        file, block = found
        braces = Braces(file, ChainMap({}, file.values), ChainMap({}), x)
        for p in signature.values():
            if p.kind == "tensor":
                braces.labels[p.name] = given[p.name]
            elif p.name in given and not (p.once and iteration):
                braces.values[p.name] = given[p.name]
            else:
                braces.values[p.name] = self.argument(p.default, p.kind, braces)
        y = self.body(block.body, braces, Names(path), x)
        assert y is not None
        return y

    @staticmethod
    def argument(e: ast.Expr, kind: str, braces: Braces) -> Any:
        """Evaluate an argument for a parameter: a keyword, a tensor, the name of an operator, or an expression."""
        if isinstance(e, (ast.Reference, ast.In)):
            return braces.labels[e.label] if isinstance(e, ast.Reference) else braces.input
        result = value(e, braces.values, braces.input.shape, kind)
        if isinstance(result, (Word, Op)):
            return result
        match kind.split("/")[0]:
            case "int":
                return whole(result)
            case "size":
                return (whole(result), whole(result)) if is_number(result) else result
            case "float":
                return float(result)
            case "list":
                return result if isinstance(result, (list, tuple)) else [result]
            case _:
                return result

    def operate(self, name: str, given: Mapping[str, Any], path: str, x: Tensor) -> Tensor:
        a = {n: given.get(n, p.default) for n, p in operators()[name].items()}
        weights = WEIGHTS.get(name, lambda a, x: {})(a, x.shape)
        like = a.get("like")
        inputs = (x,) if like is None else (x, like)

        def rule(x: Shape, *like: Shape) -> Shape:
            settings = {**a, "like": Tensor(IMAGE, like[0])} if like else a
            return SHAPES.get(name, lambda a, x: x)(settings, x)

        shape = rule(*(one.shape for one in inputs))
        return self.add(Layer(path, name, tuple(one.layer for one in inputs), shape, tuple(weights.items())), rule)


@cache
def _standard(name: str) -> tuple[File, ast.Block] | None:
    path = SPECS / "blocks" / f"{name}.cnn"
    return Evaluator.define(read(path), path.parent, {}, {}).blocks.get(name) if path.exists() else None


def _type(default: ast.Expr | None) -> str:
    """Return the type of a parameter from the form of its default."""
    match default:
        case ast.Bool() | ast.Unary(operator="not"):
            return "bool"
        case ast.Binary() if default.operator in ("and", "or", "==", "!=", "<", "<=", ">", ">="):
            return "bool"
        case ast.Number():
            return "float" if isinstance(default.value, float) else "int"
        case ast.SizeLiteral():
            return "size"
        case ast.Text():
            return "str"
        case ast.Name() if default.name in operators():
            return "op"
        case ast.Group():
            return _type(default.inner)
        case _:
            return "int"


def bind(
    args: Sequence[ast.Argument], signature: Mapping[str, Parameter], values: Mapping[str, Any]
) -> dict[str, ast.Expr]:
    """Assign arguments to parameters: by name, as a flag, or in order."""
    bound: dict[str, ast.Expr] = {}
    order = [name for name in signature if name not in ("repeat", "name")]
    for arg in args:
        word = arg.value.name if isinstance(arg.value, ast.Name) else None
        if arg.name is not None:
            bound[arg.name] = arg.value
        elif word in order and signature[word].kind == "bool":
            bound[word] = ast.Bool(arg.span, True)
        else:
            bound[next(name for name in order if name not in bound)] = arg.value
    return bound


# --- values ---------------------------------------------------------------------------------------


def is_number(x: object) -> bool:
    return isinstance(x, (int, float, Fraction)) and not isinstance(x, bool)


def whole(x: Any) -> int:
    assert is_number(x), x
    assert x == int(x), x
    return int(x)


def value(e: ast.Expr, names: Mapping[str, Any], entering: Shape | None, kind: str = "") -> Any:
    """Evaluate an expression where a value of a kind is expected; `entering` is the shape of `in`."""
    match e:
        case ast.Number() | ast.Figure() | ast.Bool() | ast.Text():
            return e.value
        case ast.SizeLiteral():
            return (e.height, e.width)
        case ast.Group():
            return value(e.inner, names, entering, kind)
        case ast.Dim():
            if entering is None:
                raise ReadsIn
            return entering["chw".index(e.axis)]
        case ast.Name():
            return word(e.name, names, kind)
        case ast.Choice():
            chosen = e.then if value(e.condition, names, entering) else e.otherwise
            return value(chosen, names, entering, kind)
        case _:
            return calculate(e, lambda part: value(part, names, entering))


def word(name: str, names: Mapping[str, Any], kind: str) -> Any:
    """Return the meaning of a bare word: a value, an operator, or a keyword."""
    if name in names:
        return names[name]
    if kind.split("/")[0] in ("", "op") and name in operators():
        return Op(name)
    if kind in ("", "int", "float", "bool"):
        raise KeyError(name)
    return Word(name)


def calculate(e: ast.Expr, of: Callable[[ast.Expr], Any]) -> Any:
    match e:
        case ast.Unary():
            x = of(e.operand)
            return not x if e.operator == "not" else -x
        case ast.Interval():
            return (of(e.low), of(e.high))
        case ast.ListLiteral():
            return [of(item) for item in e.items]
        case ast.Index():
            return of(e.sequence)[whole(of(e.place))]
        case ast.FunctionCall():
            return FUNCTIONS.get(e.function, lambda *_: Word(e.function))(*(of(arg) for arg in e.args))
        case ast.Binary(operator="and"):
            return of(e.left) and of(e.right)
        case ast.Binary(operator="or"):
            return of(e.left) or of(e.right)
        case ast.Binary():
            return BINARY[e.operator](of(e.left), of(e.right))
        case _:
            raise AssertionError(e)


def exact(x: Any) -> Any:
    return x.numerator if isinstance(x, Fraction) and x.denominator == 1 else x


def divide(a: Any, b: Any) -> Any:
    return a / b if isinstance(a, float) or isinstance(b, float) else exact(Fraction(a) / b)


def equal(a: Any, b: Any) -> bool:
    """Values of different types are never equal; integers and floats are numbers."""
    if is_number(a) or is_number(b):
        return is_number(a) and is_number(b) and a == b
    return type(a) is type(b) and a == b


def square_root(x: Any) -> Any:
    root = math.sqrt(x)
    return math.isqrt(x) if isinstance(x, int) and math.isqrt(x) ** 2 == x else root


def round_to(x: Any, m: int) -> int:
    """Return the nearest multiple, at least `m`, and never more than 10 % below `x`."""
    nearest = max(m, math.floor(Fraction(x) / m + Fraction(1, 2)) * m)
    return nearest + m if nearest < Fraction(9, 10) * Fraction(x) else nearest


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: exact(a + b),
    "-": lambda a, b: exact(a - b),
    "*": lambda a, b: exact(a * b),
    "/": divide,
    "//": lambda a, b: exact(a // b),
    "%": lambda a, b: exact(a % b),
    "==": equal,
    "!=": lambda a, b: not equal(a, b),
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "ceil": math.ceil,
    "floor": math.floor,
    "sqrt": square_root,
    "round_to": round_to,
    "sum": sum,
    "len": len,
}


def fill(pattern: str, names: Mapping[str, Any], entering: Shape) -> str:
    def replacement(match: re.Match[str]) -> str:
        tree = parse(Source("", f"let x = {match.group(1)}"), Reporter())
        assert tree is not None
        (let,) = tree.statements
        assert isinstance(let, ast.Let)
        found = value(let.value, names, entering)
        return found if isinstance(found, str) else str(whole(found))

    return re.sub(r"\{([^{}]+)\}", replacement, pattern)


# --- shapes and weights ---------------------------------------------------------------------------


def _window(a: Mapping[str, Any], x: Shape, c: int) -> Shape:
    kernel, stride = a["kernel"], a["stride"] or a["kernel"]
    dilation, pad = a.get("dilation") or (1, 1), a["pad"]
    if pad == "tf_same":
        return (c, *(-(-n // s) for n, s in zip(x[1:], stride, strict=True)))
    if pad == "same":
        pad = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    sizes = []
    for n, k, s, d, p in zip(x[1:], kernel, stride, dilation, pad, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        if a.get("ceil"):
            size = -(-room // s) + 1
            size -= (size - 1) * s >= n + p
        else:
            size = room // s + 1
        sizes.append(size)
    return (c, *sizes)


def _transposed(a: Mapping[str, Any], x: Shape) -> Shape:
    axes = zip(x[1:], a["kernel"], a["stride"], a["pad"], a["out_pad"], a["dilation"], strict=True)
    return (a["c"], *((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, o, d in axes))


def _resized(a: Mapping[str, Any], x: Shape) -> Shape:
    if a["like"] is not None:
        return (x[0], *a["like"].shape[1:])
    return (x[0], *(a["size"] or (n * f for n, f in zip(x[1:], a["factor"], strict=True))))


def _padded(a: Mapping[str, Any], x: Shape) -> Shape:
    amounts = [whole(n) for n in a["amounts"]]
    if len(amounts) == 1:
        amounts *= 4
    elif len(amounts) == 2:
        amounts = [amounts[1], amounts[1], amounts[0], amounts[0]]
    left, right, top, bottom = amounts
    return (x[0], x[1] + top + bottom, x[2] + left + right)


def _cut(a: Mapping[str, Any], x: Shape) -> Shape:
    low, high = map(whole, a["range"])
    return (high - low, *x[1:])


def _conv_weights(a: Mapping[str, Any], x: Shape) -> dict[str, Shape]:
    c, groups = a["c"] or x[0], x[0] if a["depthwise"] else a["groups"]
    bias, gain = {"bias": (c,)} if a["bias"] else {}, {"gain": (c, 1, 1, 1)} if a["gain"] else {}
    return {"weight": (c, x[0] // groups, *a["kernel"]), **bias, **gain}


def _transposed_weights(a: Mapping[str, Any], x: Shape) -> dict[str, Shape]:
    return {
        "weight": (x[0], a["c"] // a["groups"], *a["kernel"]),
        **({"bias": (a["c"],)} if a["bias"] else {}),
    }


def _norm_weights(a: Mapping[str, Any], x: Shape) -> dict[str, Shape]:
    return {"weight": (x[0],), "bias": (x[0],)} if a["affine"] else {}


def _learned(word: str, c: int) -> Shape:
    return {"channel": (c,), "map": (c, 1, 1), "batch": (1, c, 1, 1), "one": (1,), "scalar": ()}[word]


Rule = Callable[[Mapping[str, Any], Shape], Any]

SHAPES: dict[str, Rule] = {
    "conv": lambda a, x: _window(a, x, a["c"] or x[0]),
    "conv_transpose": _transposed,
    "linear": lambda a, x: (a["c"], *x[1:]),
    "maxpool": lambda a, x: _window(a, x, x[0]),
    **dict.fromkeys(("avgpool", "blurpool"), lambda a, x: _window(a, x, x[0])),
    "global_avgpool": lambda a, x: (x[0], 1, 1),
    "global_maxpool": lambda a, x: (x[0], 1, 1),
    "adaptive_avgpool": lambda a, x: (x[0], *a["size"]),
    "adaptive_maxpool": lambda a, x: (x[0], *a["size"]),
    "mean": lambda a, x: tuple(1 if axis == a["over"] else n for axis, n in zip("chw", x, strict=False)),
    "max": lambda a, x: tuple(1 if axis == a["over"] else n for axis, n in zip("chw", x, strict=False)),
    "flatten": lambda a, x: (math.prod(x),),
    "upsample": _resized,
    "pixel_shuffle": lambda a, x: (x[0] // a["factor"] ** 2, x[1] * a["factor"], x[2] * a["factor"]),
    **dict.fromkeys(("glu", "shake_shake"), lambda a, x: (x[0] // 2, *x[1:])),
    "pixel_unshuffle": lambda a, x: (x[0] * a["factor"] ** 2, x[1] // a["factor"], x[2] // a["factor"]),
    "pad": _padded,
    "slice": _cut,
}
"""The output shape of the operators that change it."""

WEIGHTS: dict[str, Rule] = {
    "conv": _conv_weights,
    "conv_transpose": _transposed_weights,
    "linear": lambda a, x: {"weight": (a["c"], x[0]), **({"bias": (a["c"],)} if a["bias"] else {})},
    **dict.fromkeys(("bn", "gn", "ln", "in_norm"), _norm_weights),
    "channel_conv": lambda a, x: {"weight": (1, 1, a["kernel"]), **({"bias": (1,)} if a["bias"] else {})},
    "prelu": lambda a, x: {"weight": (a["num_parameters"],)},
    "scale": lambda a, x: {"" if a["bare"] else "weight": _learned(a["shape"], x[0])},
    "shift": lambda a, x: {"" if a["bare"] else "bias": _learned(a["shape"], x[0])},
}
"""The learned weights of the operators that have some."""
