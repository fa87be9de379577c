"""Construction of the nodes and scopes of a Graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cnnspec import ir, shapes
from cnnspec.checker.call_stack import CallStack
from cnnspec.checker.environment import MaybeTensor, Module, Tensor
from cnnspec.diagnostics import Reported, Reporter, Span
from cnnspec.limits import MAX_ELEMENTS, MAX_HUGE
from cnnspec.ops import JOINS, OPS, Op, ShapeError
from cnnspec.ops.base import FLOAT
from cnnspec.ops.inits import INITS, InitScheme
from cnnspec.shapes import Shape

_GROWTH = {"pad": "less padding", "conv_transpose": "a smaller stride", "conv": "less padding"}
"""How a map grows less, for operators that do not upsample by a factor."""


class _Result(NamedTuple):
    """The fields of a node that depend only on its operator and the shapes of its inputs."""

    shape: Shape
    weights: dict[str, Shape]
    macs: int
    init: InitScheme | None


class Misfit(Exception):
    """A module that does not fit another input.

    Attributes:
        node: The operator that does not fit.
        why: The reason.
    """

    def __init__(self, node: ir.Node, why: str) -> None:
        super().__init__(why)
        self.node, self.why = node, why


class GraphBuilder:
    """Builds a Graph, one node after another.

    Args:
        inits: The `init` statements.
        image: The shape of the image.
        reporter: Receives the errors.
        calls: Locates the errors.
        allow_huge: Raise the limit on the elements of a tensor.

    Attributes:
        nodes: The nodes so far, in the order in which they run.
        scopes: Paths of modules that are not operators, with the name of their block.
        origins: Source locations of the statements of these modules.
        ends: The same paths with the node that computes their output.
        tensors: Paths of calls with tensor parameters, with the node of each.
        aux_heads: The auxiliary heads so far.
        outputs: The nodes of the named outputs.
        current_head: The auxiliary head that new nodes belong to.
    """

    def __init__(
        self,
        inits: Sequence[ir.Init],
        image: Shape,
        reporter: Reporter,
        calls: CallStack,
        *,
        allow_huge: bool = False,
    ) -> None:
        self._reporter, self._calls, self._image = reporter, calls, image
        self._max_elements = MAX_HUGE if allow_huge else MAX_ELEMENTS
        self.nodes: list[ir.Node] = []
        self.scopes: dict[str, str] = {}
        self.origins: dict[str, Span | None] = {}
        self.ends: dict[str, int] = {}
        self.tensors: dict[str, dict[str, int]] = {}
        self.aux_heads: list[ir.AuxHead] = []
        self.outputs: dict[str, int] = {}
        self.current_head: str | None = None
        self._inits: dict[str, InitScheme] = {i.target: INITS[i.scheme.name](**i.scheme.args) for i in inits}
        self._operators: dict[tuple[Any, ...], Op] = {}
        self._results: dict[tuple[int, tuple[Shape, ...]], _Result] = {}
        self._uses: Counter[str] = Counter()

    def operator(self, name: str, settings: dict[str, Any]) -> Op:
        """Return an operator or a join; equal ones are one object."""
        key = (name, *settings.items())
        op = self._operators.get(key)
        if op is None:
            op = self._operators[key] = (OPS.get(name) or JOINS[name])(**settings)
        return op

    def add(self, op: Op, path: str, inputs: Sequence[Tensor], origin: int) -> Tensor:
        """Add a node and return its output.

        Raises:
            ShapeError: The operator does not accept the shapes of its inputs.
            Reported: The output or the workspace has more elements than the limit.
        """
        sources: tuple[int, ...]
        input_shapes: tuple[Shape, ...]
        sources, input_shapes = zip(*inputs, strict=True)
        result = self._results.get((id(op), input_shapes)) or self._apply(op, input_shapes, origin)
        self.nodes.append(ir.Node(path, op, sources, *result, self.current_head, self._calls.source_map[origin]))
        return Tensor(len(self.nodes) - 1, result.shape)

    def add_again(self, module: Module, x: Tensor, origin: int, step: Callable[[int], None]) -> Tensor:
        """Add the nodes of a module again, for another input, and return its output.

        Operators keep the settings of the first use, as the modules of torch do.

        Args:
            module: The module.
            x: The other input.
            origin: The element that uses the module again.
            step: Called before each node, to limit their number.

        Raises:
            Misfit: An operator does not accept the input, or its weights do not.
            Reported: A limit is reached.
        """
        made, uses = {module.x.node: x}, dict[tuple[str, int], ir.Use]()
        for index in module.nodes:
            step(origin)
            first = self.nodes[index]
            shapes_before = [self._shape(i) for i in first.inputs]
            inputs = [made[i] for i in first.inputs]
            try:
                made[index] = self.add(first.op, first.path, inputs, origin)
            except ShapeError as error:
                raise Misfit(first, error.message) from None
            if why := ir.mismatch(first, shapes_before[0], inputs[0].shape):
                raise Misfit(first, why)
            inside = first.path == module.path or first.path.startswith(f"{module.path}.")
            key = (module.path, 0) if inside or first.use is None else first.use
            if key not in uses:
                self._uses[key[0]] += 1
                uses[key] = ir.Use(key[0], 1 + self._uses[key[0]])
            self.nodes[-1].use = uses[key]
        assert module.output is not None
        return made[module.output.node]

    def _shape(self, node: int) -> Shape:
        return self._image if node == ir.IMAGE else self.nodes[node].shape

    def close_scope(self, path: str, output: object) -> None:
        """Record the output of a scope."""
        if isinstance(output, Tensor) and output.node != ir.IMAGE:
            self.ends[path] = output.node

    def add_aux_head(self, output: MaybeTensor, weight: float | None) -> None:
        """Finish the current auxiliary head; it is left out after an error."""
        if output is not None and weight is not None and self.current_head is not None:
            self.aux_heads.append(ir.AuxHead(self.current_head, output.node, weight))
        self.current_head = None

    def _apply(self, op: Op, input_shapes: tuple[Shape, ...], origin: int) -> _Result:
        shape = op.infer(*input_shapes)
        self._check_elements(op, input_shapes, shape, origin)
        weights = op.weights(input_shapes[0])
        init = self._init_of(op) if weights else None
        result = _Result(shape, weights, op.macs(input_shapes[0], shape), init)
        self._results[id(op), input_shapes] = result
        return result

    def check_image(self, origin: int) -> None:
        """Report an image with more elements than the limit.

        Raises:
            Reported: It has more.
        """
        if shapes.numel(self._image) > self._max_elements:
            raise self._too_large(f"the image {shapes.text(self._image)}", origin, "use a smaller `input`")

    def _check_elements(self, op: Op, inputs: tuple[Shape, ...], output: Shape, origin: int) -> None:
        """Report an output, or a workspace in one of the passes, with more elements than the limit."""
        if shapes.numel(output) > self._max_elements:
            raise self._too_large(
                f"the tensor {shapes.text(output)}", origin, self._smaller(op, output, inputs[0], origin)
            )
        saved = op.saved(inputs, output, [True] * len(inputs)).extra
        workspaces = (saved, op.scratch(inputs, output), op.backward_scratch(inputs, output))
        elements = max(op.workspace(inputs, output), *(size // FLOAT for size in workspaces))
        if elements > self._max_elements:
            raise self._too_large(
                f"the workspace of `{op.name}` with {elements:,} elements", origin, "use smaller sizes"
            )

    def _too_large(self, what: str, origin: int, help: str) -> Reported:
        if self._max_elements < MAX_HUGE:
            help += ", or pass `--allow-huge` (in Python, `allow_huge=True`)"
        message = f"{what} exceeds the limit of {self._max_elements:,} elements for one image"
        return self._reporter.error("E0405", message, **self._calls.locate(origin), help=help)

    def _smaller(self, op: Op, shape: Shape, before: Shape, origin: int) -> str:
        """Return the help for an output that is too large: how it can grow less."""
        if len(shape) < 3:
            remedies = ["fewer features"]
        elif shape[1:] != before[1:] and shapes.numel(shape[1:]) > shapes.numel(before[1:]):
            remedies = [_GROWTH.get(op.name, "a smaller upsampling factor")]
        elif shape[0] > before[0]:
            remedies = ["fewer channels"]
        else:
            remedies = ["fewer channels", "a smaller height and width"]
        place = self._calls.source_map[origin]
        if place is not None and any(node.origin == place for node in self.nodes):
            remedies.append("a smaller repeat count")
        return f"use {' or '.join(remedies)}"

    def _init_of(self, op: Op) -> InitScheme | None:
        """Return the initialization of an operator: its own argument, or the `init` statement of its kind."""
        own = getattr(op, "init", None)
        if isinstance(own, str):
            return INITS[own]()
        return own if isinstance(own, InitScheme) else self._inits.get(op.name)
