"""Why shapes do not fit, with what led there and what would mend it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cnnspec import ir, shapes
from cnnspec.diagnostics import Edit, Fix, Label, Report, Span
from cnnspec.expressions import evaluate
from cnnspec.frames import Evaluator, Frame, Tensor
from cnnspec.names import Places
from cnnspec.ops import Op, ShapeFault
from cnnspec.ops.join import disagreement, projection
from cnnspec.remedies import fixes_of_call, fixes_of_join, settings_of
from cnnspec.shapes import Shape

_MAX_CHAIN = 8
"""Shapes on a way that are shown."""


class Conflicts(Evaluator):
    """Reports shapes that an operator or a join does not take.

    Attributes:
        nodes: The operators so far, in the order in which they run.
    """

    def __init__(self, places: Places, report: Report, image: tuple[int, int, int]) -> None:
        super().__init__(places, report, image)
        self.nodes: list[ir.Node] = []

    def fixes_of(self, call: ir.Call, op: Op, help: str | None) -> list[Fix]:
        """What the help of a shape rule amounts to as changes of the call."""
        values = {name: self.places[expr.origin] for name, expr in call.args.items()}
        return fixes_of_call(help, op.parameters, self.places.wholes.get(call.origin), values)

    def refuse(self, fault: ShapeFault, op: Op, call: ir.Call, x: Tensor) -> None:
        """Reports a shape rule that does not hold, at the argument that it is about.

        Args:
            fault: What the rule says.
            op: The operator.
            call: Where it is called.
            x: What enters.
        """
        at = call.args[fault.argument].origin if fault.argument in call.args else call.origin
        made = self.nodes[x.node].origin if x.node != ir.IMAGE else None
        labels = [Label(made, f"{shapes.text(x.shape)} from here")] if made and made != self.places[at] else []
        caption = f"gets {shapes.text(x.shape)}" if fault.code.startswith("E03") else ""
        fixes = self.fixes_of(call, op, fault.help)
        notes: list[str] = []
        if caption and ir.channels_last(self.image):
            c, height, width = self.image
            notes = [f"the image has {c} channels, and is {height} high and {width} wide: `input` takes channels first"]
        if fault.code == "E0304" and len(way := self.changes(self.trace(x.node), axes=slice(1, 3))) > 1:
            notes.append(f"the map on its way here: {self.chain(ir.IMAGE, way, axes=slice(1, 3))}")
        self.fail(
            fault.code, fault.message, at, caption=caption, labels=labels, help=fault.help, fixes=fixes, notes=notes
        )

    def refuse_join(
        self, fault: ShapeFault, element: ir.Join, branches: Sequence[tuple[ir.Flow, Tensor]], frame: Frame
    ) -> None:
        """Reports branches that cannot be joined, with the shapes on the way to each since they parted."""
        inputs = [tensor.shape for _, tensor in branches]
        differ = disagreement(element.join, inputs)
        caption = f"the branches differ in {shapes.join_words(differ)}" if differ else "maps and flat features"
        fork, *ways = self.parted([tensor for _, tensor in branches])
        labels: list[Label] = []
        for (flow, tensor), way in zip(branches, ways, strict=True):
            labels += self.branch_labels(flow, tensor, fork[-1], way)
        free = 1 if element.join == "concat" else 0  # axes in which branches may differ
        help = fault.help
        wanted = inputs[1 if help and "the first branch" in help else 0]
        if element.join == "add" and (projected := self.shortcut(branches, frame)):
            help, wanted = projected
        places = [
            (self.places.wholes.get(flow.origin), _hands_on(flow) and isinstance(flow.elements[0], ir.In))
            for flow, tensor in branches
            if tensor.shape[free:] != wanted[free:]
        ]
        fixes = fixes_of_join(help, places)
        if {"height", "width"} & {*differ}:
            evened = [self.evened(flow, way) for (flow, _), way in zip(branches, ways, strict=True)]
            fixes = [fix for fix in evened if fix] + fixes
            help = ", or ".join(dict.fromkeys(fix.help for fix in fixes)) or help
        self.fail(fault.code, fault.message, element.origin, caption=caption, labels=labels, help=help, fixes=fixes)

    # --- what led there --------------------------------------------------------------------------

    def trace(self, node: int) -> list[int]:
        """The nodes from the image to one of them, by the first input of each."""
        found = [node]
        while node != ir.IMAGE:
            node = self.nodes[node].inputs[0]
            found.append(node)
        return found[::-1]

    def parted(self, tensors: Sequence[Tensor]) -> list[list[int]]:
        """The nodes that led to all of some tensors, and those that led to each of them alone behind these."""
        traces = [self.trace(tensor.node) for tensor in tensors]
        common = next(
            (i for i, nodes in enumerate(zip(*traces, strict=False)) if len({*nodes}) > 1), min(map(len, traces))
        )
        return [traces[0][:common], *(trace[common:] for trace in traces)]

    def shape_of(self, node: int) -> Shape:
        return self.image if node == ir.IMAGE else self.nodes[node].shape

    def changes(self, way: Sequence[int], axes: slice = slice(None)) -> list[int]:
        """Those nodes of a way that change the shape, or those axes of it."""
        nodes = ((i, self.nodes[i]) for i in way if i != ir.IMAGE)
        return [i for i, node in nodes if node.shape[axes] != self.shape_of(node.inputs[0])[axes]]

    def chain(self, start: int, way: Sequence[int], axes: slice = slice(None)) -> str:
        """Shapes, or those axes of them, and the operators between them; of a long way the middle is left out."""
        said = [_sizes(self.shape_of(start)[axes])]
        said += [f"{self.nodes[i].op.name} {_sizes(self.nodes[i].shape[axes])}" for i in way]
        return " -> ".join(said if len(said) <= _MAX_CHAIN else [*said[:2], "...", *said[3 - _MAX_CHAIN :]])

    def branch_labels(self, flow: ir.Flow, tensor: Tensor, start: int, way: Sequence[int]) -> list[Label]:
        """The shape of a branch at its place, or the shapes on its way, each at the operator that makes it."""
        changes, text = self.changes(way), shapes.text(tensor.shape)
        if isinstance(flow.elements[-1], (ir.In, ir.Reference)):
            text += f", {self.whence(tensor)}"
            if len(changes) > 1:
                text += f": {self.chain(start, changes)}"
            return self.label(flow.origin, text)
        whole = self.places.wholes.get(flow.origin)
        steps: dict[Span, list[str]] = {}
        for i in changes:
            at = self.nodes[i].origin
            if at is None or not whole or at.source is not whole.source or not whole.start <= at.start < whole.end:
                return self.label(flow.origin, self.chain(start, changes) if len(changes) > 1 else text)
            steps.setdefault(at, []).append(shapes.text(self.nodes[i].shape))
        found = [Label(at, " -> ".join(texts[-_MAX_CHAIN:])) for at, texts in steps.items()]
        return found[-_MAX_CHAIN:] or self.label(flow.origin, text)

    def whence(self, tensor: Tensor) -> str:
        """Where a tensor was made, in words."""
        if tensor.node == ir.IMAGE:
            return "the input image"
        node = self.nodes[tensor.node]
        line = f" in line {node.origin.line}" if node.origin and not node.origin.source.shipped else ""
        return f"from `{node.path or node.op.name}`{line}"

    # --- what would mend it ----------------------------------------------------------------------

    def shortcut(self, branches: Sequence[tuple[ir.Flow, Tensor]], frame: Frame) -> tuple[str, Shape] | None:
        """The remedy for a sum in which what is only handed on has another shape than what is worked out, and that shape.

        The projection is written in the words of the other branch: those of a block hold for all of its calls.
        """
        made = {tensor.shape: flow for flow, tensor in branches if not _hands_on(flow)}
        handed = {tensor.shape for flow, tensor in branches if _hands_on(flow)} - made.keys()
        if len(made) != 1 or len(handed) != 1:
            return None
        ((wanted, flow),) = made.items()
        found = projection(wanted, handed.pop()) if shapes.is_map(wanted) else None
        if found is None:
            return None
        c, stride = (self.written(flow, name, value, frame) for name, value in zip(("c", "stride"), found, strict=True))
        element = f"conv 1x1 {c}{f' stride={stride}' if stride != '1' else ''}"
        return f"project the shortcut with `{element}`", wanted

    def written(self, flow: ir.Flow, name: str, value: int, frame: Frame) -> str:
        """How a pipeline writes the value of an argument itself, or the number where it does not."""
        whole = self.places.wholes.get(flow.origin)
        for element in reversed(flow.elements):
            expr = element.args.get(name) if isinstance(element, ir.Call) else None
            at = self.places[expr.origin] if expr else None
            within = at and whole and at.source is whole.source and whole.start <= at.start < whole.end
            if expr and at and within and evaluate(expr, frame.values, frame.shape) == value:
                return at.source.text[at.start : at.end]
        return str(value)

    def evened(self, flow: ir.Flow, way: Sequence[int]) -> Fix | None:
        """The change of those windows of a branch that do not keep its size but for their strides."""
        calls = {id(self.places[call.origin]): call for call in _calls(flow.elements)}
        edits: list[Edit] = []
        said: list[str] = []
        for i in way:
            node = self.nodes[i]
            call, settings = calls.get(id(node.origin)), {name: _value(size) for name, size in node.op.even().items()}
            if call is None or not settings or node.origin is None:
                continue
            values = {name: self.places[expr.origin] for name, expr in call.args.items()}
            found = settings_of(self.places.wholes.get(call.origin), values, settings)
            if found and found[0] not in edits:
                written = " ".join(f"{name}={value}" for name, value in settings.items())
                edits += found
                said.append(f"give the `{node.op.name}` in line {node.origin.line} `{written}`")
        return Fix(" and ".join(said), tuple(edits)) if edits else None


def _sizes(shape: Shape) -> str:
    return "x".join(map(str, shape)) if len(shape) == 2 else shapes.text(shape)


def _value(size: tuple[int, int] | str) -> str:
    return size if isinstance(size, str) else str(size[0]) if size[0] == size[1] else _sizes(size)


def _calls(pieces: Sequence[Any]) -> Iterator[ir.Call]:
    """The calls in elements, and in the braces among them."""
    for piece in pieces:
        if isinstance(piece, ir.Call):
            yield piece
        elif isinstance(piece, ir.Flow):
            yield from _calls(piece.elements)
        elif isinstance(piece, (ir.Braces, ir.Repeat)):
            yield from _calls(piece.body)


def _hands_on(flow: ir.Flow) -> bool:
    """Whether a pipeline only hands on what was made elsewhere."""
    return len(flow.elements) == 1 and isinstance(flow.elements[0], (ir.In, ir.Reference))
