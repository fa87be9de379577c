"""The flat intermediate representation: a network whose shapes are proven.

A `Graph` holds operators in execution order, each with its inputs, its path in the module tree, and its output shape.
Only `check` makes one, so a backend never validates.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from numbers import Integral
from typing import Any, NamedTuple, cast

from cnnspec.diagnostics import CnnspecError, Diagnostic, Span, failure
from cnnspec.ir.model import Model
from cnnspec.ir.valid_sizes import Sizes, derive
from cnnspec.ops import Op, ShapeError
from cnnspec.ops.inits import InitScheme
from cnnspec.recipe import Recipe, Setting
from cnnspec.shapes import Shape, is_map, numel, outputs_text, symbolic
from cnnspec.shapes.symbolic import IMAGE_LENGTH, Amount

IMAGE = -1
"""The input index of a node that reads the image."""
_RESERVED = {*keyword.kwlist, "self", "torch", "Outputs", "range", "getattr", "i"}
"""Names that the `forward` of a module uses."""


def channels_last(shape: tuple[int, int, int]) -> bool:
    """Return whether an image shape looks like channels-last, such as `32x32x3`."""
    first, second, last = shape
    return last in (1, 3) and min(first, second) >= 8 * last and (last == 3 or first == second)


class Use(NamedTuple):
    """A further use of a module, `again @head`.

    Attributes:
        module: The path of the module that is used again: an operator or a scope.
        number: 2 for its second use.
    """

    module: str
    number: int


@dataclass(slots=True)
class Node:
    """An operator of the graph. Treat it as immutable; a frozen dataclass would double the cost of creating it.

    Attributes:
        path: Path of its module in the module tree, `stage1.0.net.1`. A join, a slice or another node without a
            module of its own has the path of its scope.
        op: The operator with its settings.
        inputs: Indices of the nodes that it reads; `IMAGE` for the input.
        shape: Output shape without the batch axis: `(C, H, W)` or `(F,)`.
        weights: Shapes of its learned weights by their key in its module; the key is empty for a bare parameter,
            whose path is its key in the state dict.
        macs: Multiply-adds for one image.
        init: Initialization of its weights; `None` for torch's default.
        aux: Name of the auxiliary head that it belongs to.
        origin: Source location of the statement that created it.
        use: Set if its module is that of an earlier node with the same path; `weights` are the weights of that module,
            which count once.
    """

    path: str
    op: Op
    inputs: tuple[int, ...]
    shape: Shape
    weights: dict[str, tuple[int, ...]]
    macs: int
    init: InitScheme | None = None
    aux: str | None = None
    origin: Span | None = field(default=None, compare=False, repr=False)
    use: Use | None = None

    @property
    def place(self) -> str:
        """Its path, with the number of a further use of a module after the path of that module: `head#2.conv`."""
        if self.use is None:
            return self.path
        module, number = self.use
        return f"{module}#{number}{self.path[len(module) :]}"

    @property
    def has_state(self) -> bool:
        """Whether it is a module or a parameter of the network."""
        return self.op.owns_module or bool(self.weights)

    @property
    def sources(self) -> tuple[int, ...]:
        """The inputs whose values it reads; of another one it reads only the size."""
        return self.inputs[:-1] if self.op.sized_by_input else self.inputs

    @property
    def parameter_count(self) -> int:
        """Number of its learned weights; 0 if they are those of an earlier node."""
        return 0 if self.use else sum(map(numel, self.weights.values()))

    @property
    def parameters(self) -> dict[str, Shape]:
        """Shapes of its learned weights by their key in the state dict; none if they are those of an earlier node."""
        return (
            {}
            if self.use
            else {f"{self.path}.{key}" if key else self.path: shape for key, shape in self.weights.items()}
        )


def mismatch(node: Node, built: Shape, x: Shape) -> str | None:
    """Return why the module of a node does not fit an input that its shape rule accepts; None if it does.

    Args:
        node: The node.
        built: The shape of the input that its module is built for.
        x: The shape of another input.
    """
    if node.op.weights(x) == node.weights and not (node.op.fixes_features and x[0] != built[0]):
        return None
    return f"`{node.path}` expects {built[0]:,} {'channels' if is_map(x) else 'features'}, got {x[0]:,}"


@dataclass(frozen=True, slots=True)
class AuxHead:
    """An auxiliary output: its name, the index of its output node, and the weight of its loss."""

    name: str
    output: int
    weight: float


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature map of a network, as detection and segmentation heads consume it.

    Attributes:
        path: Path of the module that outputs it, or the name of an output.
        shape: Shape without the batch axis.
        reduction: Image pixels per position of the map, in height and width; 1 and 1 for the image.
    """

    path: str
    shape: Shape
    reduction: tuple[Fraction, Fraction]

    @property
    def channels(self) -> int:
        return self.shape[0]


@dataclass(frozen=True, repr=False)
class Graph:
    """A network whose shapes are proven.

    Attributes:
        nodes: Operators in execution order.
        input_shape: `(C, H, W)` of one image.
        output: Index of the node that outputs the logits; with `taps`, of the last node that outputs one of them.
        scopes: For every path that is not an operator, the name of the called block or an empty string.
        ends: For every path that is not an operator, the index of its output node.
        aux: Auxiliary heads.
        recipe: Training recipe.
        model: The Model that it was made from.
        text: Source text of the spec.
        taps: Output nodes of named outputs and of features; if there are any, the module returns these by name in
            place of the logits.
        files: Source texts of the files that it uses or extends, by their path relative to it; shipped specs are left
            out.
        origins: For every path that is not an operator, the source location of its statement, if it is known.
        tensors: For the path of every call of a block with tensor parameters, the node of each by name.
    """

    name: str
    nodes: tuple[Node, ...]
    input_shape: tuple[int, int, int]
    output: int
    scopes: dict[str, str]
    ends: dict[str, int]
    aux: tuple[AuxHead, ...]
    recipe: Recipe
    model: Model
    text: str = field(default="", compare=False)
    taps: dict[str, int] = field(default_factory=dict[str, int])
    files: dict[str, str] = field(default_factory=dict[str, str], compare=False)
    origins: dict[str, Span | None] = field(default_factory=dict[str, Span | None], compare=False)
    tensors: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]], compare=False)

    @property
    def images(self) -> dict[str, Shape]:
        """Shapes of the images of a network with several, by name. They are its first nodes. Empty for one image."""
        names = (image.name for image in self.model.several_images)
        return {name: node.shape for name, node in zip(names, self.nodes, strict=False)}

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of the module in Python: `x`, or the names of several images.

        Names that Python or the code of a module uses, such as `class` or `torch`, end in `_`.
        """
        if not self.images:
            return ("x",)
        names: list[str] = []
        for image in self.images:
            name = re.sub(r"[^A-Za-z0-9_]", "_", image).lstrip("_0123456789") or "image"
            while name in _RESERVED or re.fullmatch(r"aux[0-9]+", name) or name in {*self.images, *names} - {image}:
                name += "_"
            names.append(name)
        return tuple(names)

    @property
    def input_text(self) -> str:
        """The shape of a batch of images: `[N, 3, 32, 32]`, or the name and shape of each of several."""
        return outputs_text(self.input_shape, self.images)

    def __repr__(self) -> str:
        output = f"outputs={self.output_shapes}" if self.taps else f"output={self.output_shape}"
        return f"Graph({self.name!r}, input={self.input_shape}, {output}, nodes={len(self.nodes)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print `repr(self)` in IPython and Hypothesis, which otherwise print every field of a dataclass."""
        printer.text(repr(self))

    @property
    def output_shape(self) -> Shape:
        """Shape of the logits of one image."""
        return self.nodes[self.output].shape

    @property
    def output_shapes(self) -> dict[str, Shape]:
        """Shapes of the named outputs of one image; empty if the module returns one tensor."""
        return {name: self.nodes[index].shape for name, index in self.taps.items()}

    @property
    def results(self) -> tuple[int, ...]:
        """Indices of the nodes whose outputs the module returns in evaluation."""
        return tuple(self.taps.values()) or (self.output,)

    @property
    def training_results(self) -> tuple[int, ...]:
        """Indices of the nodes whose outputs the module returns in training: with those of the auxiliary heads."""
        return (*self.results, *(head.output for head in self.aux))

    @cached_property
    def parameter_count(self) -> int:
        """Number of learned weights, including auxiliary heads."""
        return sum(node.parameter_count for node in self.nodes)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of convolutions and linear layers for one image, excluding auxiliary heads."""
        return sum(node.macs for node in self.nodes if node.aux is None)

    def input_shapes(self, node: Node) -> list[Shape]:
        """Return the input shapes of a node."""
        return [self.input_shape if i == IMAGE else self.nodes[i].shape for i in node.inputs]

    @cached_property
    def depths(self) -> list[int]:
        """Number of convolutions and linear layers on the longest path from the image to each node, inclusive."""
        depths: list[int] = []
        for node in self.nodes:
            before = max([depths[i] for i in node.sources if i != IMAGE] or (0,))
            depths.append(before + (1 if node.op.counts_as_layer else 0))
        return depths

    @property
    def depth(self) -> int:
        """Number of convolutions and linear layers on the longest path from the image to an output."""
        return max(self.depths[index] for index in self.results)

    @cached_property
    def _places(self) -> dict[str, int]:
        owners = {node.path: i for i, node in enumerate(self.nodes) if node.op.owns_module and node.use is None}
        return {**owners, **self.ends}

    def find(self, path: str) -> int | None:
        """Return the index of the output node of a module, or `None` if the module does not exist."""
        return self._places.get(path)

    @property
    def paths(self) -> list[str]:
        """Paths of all modules."""
        return list(self._places)

    @cached_property
    def reductions(self) -> list[tuple[Fraction, Fraction]]:
        """Image pixels per position of the output map of each node, in height and width."""
        found: list[tuple[Fraction, Fraction]] = []
        one = Fraction(1)
        known: dict[tuple[int, Shape], tuple[Fraction, Fraction]] = {}  # repeats share operators
        for node in self.nodes:
            sized = node.inputs[-1:] if node.op.sized_by_input else node.inputs
            before = [(one, one) if i == IMAGE else found[i] for i in sized]
            high, wide = before[0] if len(before) == 1 else (max(sides) for sides in zip(*before, strict=True))
            shape = self.input_shapes(node)[0]
            if (id(node.op), shape) not in known:
                known[id(node.op), shape] = node.op.reduction(shape, node.shape)
            own = known[id(node.op), shape]
            found.append((high, wide) if own == (one, one) else (high * own[0], wide * own[1]))
        return found

    def feature(self, path: str) -> Feature:
        """Return shape and reduction of the output of a module.

        Raises:
            KeyError: The module does not exist.
        """
        index = self._places[path]
        return Feature(path, self.nodes[index].shape, self.reductions[index])

    @property
    def features(self) -> tuple[Feature, ...]:
        """Named outputs, or features of a tapped network, in their order."""
        return tuple(Feature(path, self.nodes[i].shape, self.reductions[i]) for path, i in self.taps.items())

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @cached_property
    def sizes(self) -> Sizes:
        """All image sizes that the network accepts."""
        return derive(self.nodes, self.input_shape)

    def symbolic_shape(self, path: str) -> str:
        """Return the output shape of a module as a function of the image size, `[N, 512, H//32, W//32]`.

        Raises:
            KeyError: The module does not exist.
        """
        index = self._places[path]
        return symbolic.text(self.sizes.shape(index, self.nodes[index].shape[0]))

    @cached_property
    def symbolic(self) -> Graph:
        """The same network with every shape and count as a function of the image's height and width.

        Constant sizes are integers, and the others are an `Amount`: `graph.symbolic.macs` is
        `9437184*(H//2)*(W//2) + 640`, and `graph.symbolic.macs(96, 64)` is a number.
        """
        height, width = Amount.height(IMAGE_LENGTH), Amount.width(IMAGE_LENGTH)
        image = cast("tuple[int, int, int]", (self.input_shape[0], height, width))
        found = [cast(Shape, self.sizes.shape(i, node.shape[0])) for i, node in enumerate(self.nodes)]
        nodes = [
            replace(
                node, shape=shape, macs=node.op.macs(image if node.inputs[0] == IMAGE else found[node.inputs[0]], shape)
            )
            for node, shape in zip(self.nodes, found, strict=True)
        ]
        return replace(self, input_shape=image, nodes=tuple(nodes))

    def accepts(self, height: int, width: int) -> bool:
        """Return whether the network accepts images of this height and width; `False` if they are not integers."""
        return all(isinstance(side, Integral) for side in (height, width)) and self.sizes.accepts(height, width)

    def at(self, height: int, width: int) -> Graph:
        """Return the same network, with the same weights, for images of another size.

        Raises:
            CnnspecError: The network does not accept them; the diagnostic names the operator that fails, and why.
        """
        if not all(isinstance(side, Integral) for side in (height, width)):
            raise failure("E0204", f"invalid image size `{height}x{width}`", help="pass two integers")
        if (height, width) == self.input_shape[1:]:
            return self
        nodes: list[Node] = []
        image = (self.input_shape[0], height, width)
        for node in self.nodes:
            entering = [image if i == IMAGE else nodes[i].shape for i in node.inputs]
            shape: Shape = ()
            try:
                shape = node.op.infer(*entering)
                why = mismatch(node, self.input_shapes(node)[0], entering[0])
            except ShapeError as error:
                why = error.message
            if min(height, width) < 1:
                why = "height and width must be at least 1"
            if why is not None:
                near = self.sizes.nearest(height, width)
                c = "" if self.images else f"{self.input_shape[0]}x"
                high, wide = near or self.sizes.declared
                help = f"use {c}{high}x{wide}, {'the nearest accepted size' if near else 'which it accepts'}"
                message = f"`{self.name}` does not accept images of {c}{height}x{width}: {why}"
                notes = (f"accepted sizes: {self.sizes.words()}",)
                raise CnnspecError([Diagnostic("E0313", message, node.origin, "", (), notes, help)])
            nodes.append(replace(node, shape=shape, macs=node.op.macs(entering[0], shape)))
        return replace(self, input_shape=image, nodes=tuple(nodes))

    def to_json(self) -> dict[str, Any]:
        """Return the graph as JSON-compatible data."""
        return {
            "name": self.name,
            "input": list(self.input_shape),
            **({"images": {name: list(shape) for name, shape in self.images.items()}} if self.images else {}),
            "output": self.output,
            "output_shape": list(self.output_shape),
            **({"outputs": self.taps} if self.taps else {}),
            "parameters": self.parameter_count,
            "macs": self.macs,
            "depth": self.depth,
            "aux": [{"name": head.name, "output": head.output, "weight": head.weight} for head in self.aux],
            "nodes": [
                {
                    "path": node.path,
                    "op": node.op.name,
                    "settings": {
                        name: Setting.of(value).model_dump() if isinstance(value, InitScheme) else value
                        for name, value in node.op.changed().items()
                    },
                    "inputs": list(node.inputs),
                    "shape": list(node.shape),
                    "symbolic_shape": symbolic.text(self.sizes.shape(index, node.shape[0])),
                    "weights": {key: list(shape) for key, shape in node.weights.items()},
                    "macs": node.macs,
                    "init": Setting.of(node.init).model_dump() if node.init else None,
                    "aux": node.aux,
                    **({"use": node.use._asdict()} if node.use else {}),
                }
                for index, node in enumerate(self.nodes)
            ],
        }
