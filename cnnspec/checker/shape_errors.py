"""Why shapes do not fit, with what led there and what would mend it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Any

from cnnspec import ir, shapes
from cnnspec.checker.environment import Evaluator, Frame, Tensor
from cnnspec.diagnostics import Edit, Fix, Label, Span
from cnnspec.diagnostics.suggestions import fixes_of_call, fixes_of_join, settings_of
from cnnspec.ir.evaluate import evaluate, show
from cnnspec.ops import Op, ShapeFault, stacked
from cnnspec.ops.convolution import Linear
from cnnspec.ops.join import SCALES, disagreement, projection
from cnnspec.shapes import Shape

_MAX_CHAIN = 8
"""Shapes on a way that are shown."""
_MAX_WAY = 1000
"""Nodes on a way that are looked at."""
_MAX_EVENED = 4
"""Windows that one remedy changes."""
_SIDES = slice(1, 3)
"""Height and width of a shape."""


class Conflicts:
    """Reports shapes that an operator or a join does not take.

    Args:
        run: What writes the Model out, and reports.
        model: The Model.
        nodes: The operators so far, in the order in which they run.
    """

    def __init__(self, run: Evaluator, model: ir.Model, nodes: Sequence[ir.Node]) -> None:
        self.run, self.places, self.image, self.calls = run, run.places, run.image, run.calls
        self.model, self.nodes = model, nodes
        self._calls: dict[int, ir.Call] | None = None

    def fixes_of(self, call: ir.Call, op: Op, help: str | None) -> list[Fix]:
        """What the help of a shape rule amounts to as changes of the call."""
        values = {name: self.places[expr.origin] for name, expr in call.args.items()}
        return fixes_of_call(help, op.parameters, self.places.wholes.get(call.origin), values)

    def refuse(self, fault: ShapeFault, op: Op, call: ir.Call, x: Tensor, *, joined: bool) -> None:
        """Reports a shape rule that does not hold, at the argument that it is about.

        Args:
            fault: What the rule says.
            op: The operator.
            call: Where it is called.
            x: What enters.
            joined: Whether it stands in a branch of a join.
        """
        at = call.args[fault.argument].origin if fault.argument in call.args else call.origin
        made = self.nodes[x.node].origin if x.node != ir.IMAGE else None
        labels = [Label(made, f"{shapes.text(x.shape)} from here")] if made and made != self.places[at] else []
        caption = f"gets {shapes.text(x.shape)}" if fault.code.startswith("E03") else ""
        help, fixes = fault.help, self.fixes_of(call, op, fault.help)
        if joined and isinstance(op, Linear):
            written = f"conv 1x1 {op.c}{' bias' if op.bias else ''}"
            help = f"write `{written}`: a linear layer at each place of the map"
            fixes = [Fix(help, (Edit(at, written),)) for at in (self.places.wholes.get(call.origin),) if at]
        notes: list[str] = []
        if caption and ir.channels_last(self.image):
            c, height, width = self.image
            notes = [f"the image has {c} channels, and is {height} high and {width} wide: `input` takes channels first"]
        if fault.code == "E0304" and len(way := self.changes(self.trace(x.node), _SIDES)) > 1:
            notes.append(f"the map on its way here: {self.chain(way, _SIDES)}")
        self.run.fail(
            fault.code, fault.message, at, caption=caption, labels=labels, help=help, fixes=fixes, notes=notes
        )

    def refuse_join(
        self, fault: ShapeFault, element: ir.Join, branches: Sequence[tuple[ir.Flow, Tensor]], frame: Frame
    ) -> None:
        """Reports branches that cannot be joined, with the shapes on the way to each since they parted."""
        inputs = [tensor.shape for _, tensor in branches]
        differ = disagreement(element.join, inputs)
        caption = f"the branches differ in {shapes.join_words(differ)}" if differ else "maps and flat features"
        fork = self.fork(tensor.node for _, tensor in branches)
        ways = [self.trace(tensor.node, fork) for _, tensor in branches]
        labels: list[Label] = []
        for (flow, tensor), way in zip(branches, ways, strict=True):
            labels += self.branch_labels(flow, tensor, way)
        free = 1 if element.join == "concat" else 0  # axes in which branches may differ
        help = fault.help
        wanted = inputs[1 if help and "the first branch" in help else 0]
        if element.join == "add" and help != SCALES and (projected := self.shortcut(branches, frame)):
            help, wanted = projected
        places = [
            (self.places.wholes.get(flow.origin), isinstance(_handed(flow), ir.In))
            for flow, tensor in branches
            if tensor.shape[free:] != wanted[free:]
        ]
        fixes = fixes_of_join(help, places)
        if help == SCALES and (word := self.places[element.origin]):
            fixes = [Fix(SCALES, (Edit(word, "mul"),))]
        elif misread := self.misread(element.join, branches, frame):
            help, fixes = misread
        elif {"height", "width"} & {*differ}:
            evened = dict.fromkeys(self.evened(way) for way in ways)
            fixes = [fix for fix in evened if fix] + fixes
            help = ", or ".join(dict.fromkeys(fix.help for fix in fixes)) or help
        self.run.fail(fault.code, fault.message, element.origin, caption=caption, labels=labels, help=help, fixes=fixes)

    # --- what led there --------------------------------------------------------------------------

    def trace(self, node: int, start: int = ir.IMAGE) -> list[int]:
        """The nodes that led from one to another, by the first input of each; of a long way the last ones."""
        found: list[int] = []
        while node > start and len(found) < _MAX_WAY:
            found.append(node)
            node = self.nodes[node].inputs[0]
        return found[::-1]

    def fork(self, nodes: Iterable[int]) -> int:
        """The last node that led to all of some others."""
        heads = {-node for node in nodes}  # the last one first
        queue = sorted(heads)
        while len(heads) > 1:
            last = heappop(queue)
            heads.discard(last)
            before = -self.nodes[-last].inputs[0]
            if before not in heads:
                heads.add(before)
                heappush(queue, before)
        return -heads.pop()

    def shape_of(self, node: int) -> Shape:
        return self.image if node == ir.IMAGE else self.nodes[node].shape

    def changes(self, way: Sequence[int], axes: slice = slice(None)) -> list[int]:
        """Those nodes of a way that change the shape, or those axes of it."""
        nodes = ((i, self.nodes[i]) for i in way)
        return [i for i, node in nodes if node.shape[axes] != self.shape_of(node.inputs[0])[axes]]

    def chain(self, way: Sequence[int], axes: slice = slice(None)) -> str:
        """Shapes, or those axes of them, and the operators between them; of a long way the middle is left out."""
        said = [_sizes(self.shape_of(self.nodes[way[0]].inputs[0])[axes])]
        said += [f"{self.nodes[i].op.name} {_sizes(self.nodes[i].shape[axes])}" for i in way]
        return " -> ".join(said if len(said) <= _MAX_CHAIN else [*said[:2], "...", *said[3 - _MAX_CHAIN :]])

    def branch_labels(self, flow: ir.Flow, tensor: Tensor, way: Sequence[int]) -> list[Label]:
        """The shape of a branch at its place, or the shapes on its way, each at the operator that makes it."""
        changes, text = self.changes(way), shapes.text(tensor.shape)
        if isinstance(flow.elements[-1], (ir.In, ir.Reference)):
            text += f", {self.whence(tensor)}"
            if len(changes) > 1:
                text += f": {self.chain(changes)}"
            return self.run.label(flow.origin, text)
        if changes == way[:1]:  # its first operator alone
            return self.run.label(flow.origin, text)
        whole = self.places.wholes.get(flow.origin)
        steps: dict[Span, list[str]] = {}
        for i in changes:
            at = self.nodes[i].origin
            if at is None or not whole or at.source is not whole.source or not whole.start <= at.start < whole.end:
                return self.run.label(flow.origin, self.chain(changes) if len(changes) > 1 else text)
            steps.setdefault(at, []).append(shapes.text(self.nodes[i].shape))
        found = [Label(at, " -> ".join(texts[-_MAX_CHAIN:])) for at, texts in steps.items()]
        return found[-_MAX_CHAIN:] or self.run.label(flow.origin, text)

    def whence(self, tensor: Tensor) -> str:
        """Where a tensor was made, in words."""
        if tensor.node == ir.IMAGE:
            return "the input image"
        node = self.nodes[tensor.node]
        line = f" in line {node.origin.line}" if node.origin and not node.origin.source.shipped else ""
        return f"from `{node.path or node.op.name}`{line}"

    # --- what would mend it ----------------------------------------------------------------------

    def misread(
        self, join: str, branches: Sequence[tuple[ir.Flow, Tensor]], frame: Frame
    ) -> tuple[str, list[Fix]] | None:
        """The remedy where a join means something else than what seems to be meant."""
        lines = {at.line for flow, _ in branches if (at := self.places[flow.origin])}
        called = [[_callee(element) for element in flow.elements] for flow, _ in branches]
        if len(lines) == len(branches) and stacked(called):
            help = f"each statement of `{join}` is a branch of its own: put those that follow one another in `{{ }}`"
            return f"{help}, or join them with `|`", []
        for flow, _ in branches:
            condition = flow.condition if isinstance(_handed(flow), ir.In) else None
            if condition is not None and self.run.decide(condition, frame) is False:
                return self.left_out(flow, condition)
        if (said := self.behind_a_label(branches, frame) or self.goes_on(branches)) is not None:
            return said, []
        return None

    def behind_a_label(self, branches: Sequence[tuple[ir.Flow, Tensor]], frame: Frame) -> str | None:
        """What is said of a branch that begins with `in` where that is what another branch names by its label."""
        if not any(isinstance(flow.elements[0], ir.In) and not _handed(flow) for flow, _ in branches):
            return None
        for label, x in _named(branches):
            if frame.entering and x.node == frame.entering.node:
                said = f"`in` is what enters these braces, which is what `{label}` gives"
                if self.calls:
                    return f"{said}: begin the block with `x: in`, and write `@x`"
                return f"{said}: write the label of what comes before it"
        return None

    def goes_on(self, branches: Sequence[tuple[ir.Flow, Tensor]]) -> str | None:
        """What is said of two labelled statements of which one reads the other, as it stands behind it."""
        named = _named(branches)
        for (label, x), (other, y) in ((one, two) for one in named for two in named):
            way = self.trace(y.node, x.node)
            direct = x.node < y.node and way and self.nodes[way[0]].inputs[0] == x.node
            if direct and all(f".{other}." in f".{self.nodes[i].path}." for i in way):
                begin = "`in |`" if self.calls else "the label of what it is to read"
                return f"`{other}` goes on from `{label}`, which stands in front of it: begin it with {begin}"
        return None

    def left_out(self, flow: ir.Flow, condition: ir.Expr) -> tuple[str, list[Fix]]:
        """The remedy for `in when ...`, which passes on what enters in both cases."""
        whole, at = self.places.wholes.get(flow.origin), self.places[condition.origin]
        said = at.text if at else "..."
        help = f"what enters takes this branch without its `when`, too: write `if {said} {{ in }} else {{ nothing }}`"
        edits = [Edit(whole.to(at), f"if {said} {{ in }} else {{ nothing }}")] if whole and at else []
        return help, [Fix(help, (edit,)) for edit in edits]

    def shortcut(self, branches: Sequence[tuple[ir.Flow, Tensor]], frame: Frame) -> tuple[str, Shape] | None:
        """The remedy for a sum in which what is only handed on has another shape than what is worked out, and that shape.

        The projection is written in the words of the other branch: those of a block hold for all of its calls.
        """
        made = {tensor.shape: flow for flow, tensor in branches if not _handed(flow)}
        handed = {tensor.shape for flow, tensor in branches if _handed(flow)} - made.keys()
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
                return at.text
        return str(value)

    def evened(self, way: Sequence[int]) -> Fix | None:
        """The change of those windows on a way that do not keep its size but for their strides."""
        if self._calls is None:
            bodies = [self.model.body, *(block.body for block in self.model.blocks.values())]
            self._calls = {id(self.places[call.origin]): call for body in bodies for call in _calls(body)}
        edits: list[Edit] = []
        said: list[str] = []
        for node in (self.nodes[i] for i in way):
            settings = {name: _value(size) for name, size in node.op.even().items()}
            call = self._calls.get(id(node.origin))
            if call is None or not settings or node.origin is None:
                continue
            values = {name: self.places[expr.origin] for name, expr in call.args.items()}
            found = settings_of(self.places.wholes.get(call.origin), values, settings)
            if found and found[0] not in edits:
                written = " ".join(f"{name}={value}" for name, value in settings.items())
                edits += found
                said.append(f"give the `{node.op.name}` in line {node.origin.line} `{written}`")
        return Fix(" and ".join(said), tuple(edits)) if 0 < len(said) <= _MAX_EVENED else None


def _sizes(shape: Shape) -> str:
    return show(shape) if len(shape) == 2 else shapes.text(shape)


def _value(size: tuple[int, int] | str) -> str:
    return size if isinstance(size, str) else show(size[0] if size[0] == size[1] else size)


def _calls(pieces: Sequence[Any]) -> Iterator[ir.Call]:
    """The calls in elements, and in the braces among them."""
    for piece in pieces:
        if isinstance(piece, ir.Call):
            yield piece
        elif isinstance(piece, ir.Flow):
            yield from _calls(piece.elements)
        elif isinstance(piece, (ir.Braces, ir.Repeat, ir.Join)):
            yield from _calls(piece.body)
        elif isinstance(piece, ir.If):
            yield from _calls((*piece.then, *piece.otherwise))


def _handed(flow: ir.Flow) -> ir.In | ir.Reference | None:
    """What a pipeline hands on, where it does nothing else."""
    element = flow.elements[0]
    return element if len(flow.elements) == 1 and isinstance(element, (ir.In, ir.Reference)) else None


def _callee(element: ir.Element) -> str | None:
    return element.callee if isinstance(element, ir.Call) else None


def _named(branches: Sequence[tuple[ir.Flow, Tensor]]) -> list[tuple[str, Tensor]]:
    """The labels that branches hand on, with what they give; the first few."""
    handed = ((_handed(flow), x) for flow, x in branches)
    return [(found.label, x) for found, x in handed if isinstance(found, ir.Reference)][:_MAX_CHAIN]
