"""Why shapes do not fit, with what led there and what would mend it."""

from __future__ import annotations

from collections.abc import Sequence

from cnnspec import ir, shapes
from cnnspec.diagnostics import Fix, Label, Report, Span
from cnnspec.expressions import evaluate
from cnnspec.frames import Evaluator, Frame, Tensor
from cnnspec.names import Places
from cnnspec.ops import Op, ShapeFault
from cnnspec.ops.join import disagreement, projection
from cnnspec.remedies import fixes_of_call, fixes_of_join
from cnnspec.shapes import Shape


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

    def refuse(self, fault: ShapeFault, op: Op, call: ir.Call, shape: Shape, made: Span | None) -> None:
        """Reports a shape rule that does not hold, at the argument that it is about.

        Args:
            fault: What the rule says.
            op: The operator.
            call: Where it is called.
            shape: What enters.
            made: Where that was made; none for the image.
        """
        at = call.args[fault.argument].origin if fault.argument in call.args else call.origin
        labels = (
            [Label(made, f"{shapes.text(shape)} from here")] if made is not None and made != self.places[at] else []
        )
        caption = f"gets {shapes.text(shape)}" if fault.code.startswith("E03") else ""
        fixes = self.fixes_of(call, op, fault.help)
        notes: list[str] = []
        if caption and ir.channels_last(self.image):
            c, height, width = self.image
            notes = [f"the image has {c} channels, and is {height} high and {width} wide: `input` takes channels first"]
        self.fail(
            fault.code, fault.message, at, caption=caption, labels=labels, help=fault.help, fixes=fixes, notes=notes
        )

    def refuse_join(
        self, fault: ShapeFault, element: ir.Join, branches: Sequence[tuple[ir.Flow, Tensor]], frame: Frame
    ) -> None:
        """Reports branches that cannot be joined."""
        inputs = [tensor.shape for _, tensor in branches]
        differ = disagreement(element.join, inputs)
        caption = f"the branches differ in {shapes.join_words(differ)}" if differ else "maps and flat features"
        labels = [label for flow, tensor in branches for label in self.branch_label(flow, tensor)]
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
        self.fail(fault.code, fault.message, element.origin, caption=caption, labels=labels, help=help, fixes=fixes)

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
        element = f"conv 1x1 {c}{f' stride={stride}' if found[1] > 1 else ''}"
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

    def branch_label(self, flow: ir.Flow, tensor: Tensor) -> list[Label]:
        """The shape of a branch at its place, and where it comes from if it only hands something on."""
        text = shapes.text(tensor.shape)
        last = flow.elements[-1]
        if isinstance(last, (ir.In, ir.Reference)):
            text += f", {self.whence(tensor)}"
        return self.label(flow.origin, text)

    def whence(self, tensor: Tensor) -> str:
        """Where a tensor was made, in words."""
        if tensor.node == ir.IMAGE:
            return "the input image"
        node = self.nodes[tensor.node]
        line = f" in line {node.origin.line}" if node.origin and not node.origin.source.shipped else ""
        return f"from `{node.path or node.op.name}`{line}"


def _hands_on(flow: ir.Flow) -> bool:
    """Whether a pipeline only hands on what was made elsewhere."""
    return len(flow.elements) == 1 and isinstance(flow.elements[0], (ir.In, ir.Reference))
