"""Outline of a network: boxes and the edges between them, with repeats collapsed and every block drawn once.

An outline knows no coordinates. Scopes of the module tree become frames, calls of blocks become single boxes that refer
to a figure of the block, and operators that follow each other, such as `conv | bn | relu`, share a box.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import Any, NamedTuple

from cnnspec.diagnostics import Span, counted
from cnnspec.ir import IMAGE, Graph, Node
from cnnspec.ops import JOINS, Op
from cnnspec.ops.inits import InitScheme
from cnnspec.shapes import Shape

ENTRY = -1
"""The index of the input of a figure, in place of a box."""

_MAX_PERIOD = 12
_KINDS = {"convolution": "conv", "norm": "norm", "activation": "act", "pool": "pool", "layout": "layout"}
_MINOR = ("norm", "act")
_SILENT = ("bias", "init", "pad", "eps", "momentum", "affine", "align_corners", "range")
"""Settings that are left out of a label; titles have them."""

Key = tuple[Any, ...]


class Cell(NamedTuple):
    """An operator in a box: its kind, which selects the color, and its label."""

    kind: str
    text: str


@dataclass
class Box:
    """A node of a figure.

    Attributes:
        kind: `op`, `join`, `block` (a call), `group` (a scope), `input` or `output`. The inputs of a block that are
            tensor parameters read `ENTRY`, for their place in the layout; no edge leads to an `input`.
        name: The label in the spec; empty if there is none worth showing.
        path: The path of the module.
        rows: The operators from top to bottom; those of a row are next to each other.
        nodes: The nodes of the graph that it stands for, including all repetitions.
        inputs: The boxes of the same figure that it reads, or `ENTRY`.
        shape: The output shape.
        title: A description of every operator, for screen readers and tooltips.
        parameters: The number of learned weights.
        macs: The multiply-adds.
        repeat: The number of repetitions.
        block: The figure of the block that is called.
        inner: The content of a frame.
        line: The line of the statement in the spec; 0 if it is in another file.
        status: `added`, `removed` or `changed` in a comparison.
        edge: The output shape in words; empty if the calls of a block differ in it.
    """

    kind: str
    name: str
    path: str
    rows: list[list[Cell]]
    nodes: Sequence[int]
    inputs: tuple[int, ...]
    shape: Shape
    title: str = ""
    parameters: int = 0
    macs: int = 0
    repeat: int = 1
    block: Key | None = None
    inner: list[Box] | None = None
    line: int = 0
    status: str = ""
    edge: str = ""


@dataclass
class Figure:
    """A picture of the network or of a block.

    Attributes:
        title: The name of the network, or of the block with a letter if it has several structures.
        boxes: The boxes in the order of execution.
        exit: The index of the box whose output leaves the figure.
        entry: The input shape; empty if it varies.
        uses: The paths of the calls.
        key: The structure of a block; None for the network.
        network: The number of its network in a comparison.
    """

    title: str
    boxes: list[Box]
    exit: int
    entry: Shape = ()
    uses: list[str] = field(default_factory=list[str])
    key: Key | None = None
    network: int = 0


def kind_of(op: Op | type[Op]) -> str:
    """Return the kind of an operator, which selects its color."""
    if op.name in JOINS or op.name == "linear":
        return op.name
    return _KINDS[(op if isinstance(op, type) else type(op)).__module__.rpartition(".")[2]]


def shortened(text: str, limit: int = 34) -> str:
    """Return a text of at most `limit` characters; the middle of a longer one is left out."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]}…{text[-(limit // 3 - 1) :]}"


def size_text(shape: Shape) -> str:
    """Render a shape as `64×56×56`, or `64×(H//2)×(W//2)` as a function of the image size."""
    return "×".join(text if text.isalnum() else f"({text})" for text in map(str, shape))


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return "×".join(map(_value, value))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, float):
        return f"{value:g}"
    return value.name if isinstance(value, InitScheme) else str(value)


def _label_parts(node: Node) -> dict[str, tuple[str, str]]:
    """Return the parts of the label of an operator by setting: a prefix and a value."""
    op, parts = node.op, {"": ("", node.op.name)}
    settings = op.changed()
    if op.counts_as_layer:
        settings["c"] = node.shape[0]
    if settings.get("groups", 1) > 1 and 1 in node.weights.get("weight", (0, 0, 0))[1:2]:
        settings = {**settings, "depthwise": True, "groups": False}
    for name, value in settings.items():
        if name in _SILENT or value is False:
            continue
        if name == "stride":
            alike = isinstance(value, tuple) and len(set(value)) == 1
            parts[name] = ("/", _value(value[0] if alike else value))
        elif value is True:
            parts[name] = ("", name)
        else:
            plain = name in ("kernel", "c", "size", "factor", "p", "amounts")
            parts[name] = ("" if plain else f"{name}=", _value(value))
    return parts


def _merged(values: Iterable[str]) -> str:
    """Return the values of one setting in all calls of a block: `3×3, 5×5`, or `64–512` for many numbers."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 2 and all(re.fullmatch(r"[\d.]+", value) for value in distinct):
        numbers = sorted(distinct, key=float)
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(distinct) if len(distinct) < 4 else f"{distinct[0]}, …"


def label(nodes: Iterable[Node]) -> str:
    """Return the label of an operator; settings that differ between the calls of a block are joined."""
    distinct = {tuple(parts.items()): parts for parts in map(_label_parts, nodes)}
    found = list(distinct.values())
    texts: dict[str, str] = {}
    for name in dict.fromkeys(name for parts in found for name in parts):
        given = [parts[name] for parts in found if name in parts]
        text = given[0][0] + _merged(value for _, value in given)
        texts[name] = text if len(given) == len(found) else f"({text})"
    stride = texts.pop("stride", "")
    head, *rest = texts.values()
    return " ".join(filter(None, (head, ", ".join(rest), stride)))


class Outliner:
    """Make the figures of a graph.

    Attributes:
        graph: The network.
        depth: The level from which scopes are single boxes; None for none.
        statuses: For a comparison, the status of each node.
    """

    def __init__(self, graph: Graph, depth: int | None = None, statuses: Sequence[str] | None = None) -> None:
        self.graph, self.depth, self._statuses = graph, depth, statuses
        nodes = graph.nodes
        self._consumers: list[list[int]] = [[] for _ in nodes]
        for index, node in enumerate(nodes):
            for source in node.inputs:
                if source != IMAGE:
                    self._consumers[source].append(index)
        self._leaving = {*graph.training_results}
        texts: dict[int, str] = {}
        self._keys: list[Key] = []
        for index, node in enumerate(nodes):
            if id(node.op) not in texts:
                texts[id(node.op)] = f"{node.op!r}"
            self._keys.append((texts[id(node.op)], self._status(index), node.use is not None))
        self._find_scopes()
        self._find_blocks()

    def _status(self, index: int) -> str:
        return self._statuses[index] if self._statuses else ""

    def _find_scopes(self) -> None:
        """Find the scopes of each node, outermost first, and keep those whose nodes are consecutive."""
        scopes, known = self.graph.scopes, dict[str, tuple[str, ...]]()

        def above(path: str) -> tuple[str, ...]:
            if path not in known:
                before = above(path.rpartition(".")[0]) if "." in path else ()
                known[path] = (*before, path) if _plain(path) in scopes else before
            return known[path]

        spans: dict[str, list[int]] = {}
        self._chains: list[tuple[str, ...]] = []
        for index, node in enumerate(self.graph.nodes):
            chain = above(node.place)
            self._chains.append(chain)
            for scope in chain:
                spans.setdefault(scope, []).append(index)
        self._spans = {s: range(v[0], v[-1] + 1) for s, v in spans.items() if len(v) == v[-1] - v[0] + 1}
        self._chains = [tuple(s for s in chain if s in self._spans) for chain in self._chains]

    def _find_blocks(self) -> None:
        """Find the calls of every block and group them by structure."""
        self.calls: dict[Key, list[str]] = {}
        self._blocks: dict[str, Key] = {}
        for scope, span in self._spans.items():
            name = self.graph.scopes[_plain(scope)]
            tensors = self._tensors(scope)
            if name and (self._is_closed(span) or (tensors and set(self._exits(span)) <= {span[-1]})):
                ops = tuple(
                    (self.graph.nodes[i].op.name, self._status(i), *self._reads(i, span, tensors)) for i in span
                )
                key: Key = (name, ops)
                self.calls.setdefault(key, []).append(scope)
                if not self._is_stack(span):  # a short one is drawn in place
                    self._blocks[scope] = key
        structures: dict[str, list[Key]] = {}
        for key in (*self._blocks.values(), *self.calls):
            if key not in structures.setdefault(key[0], []):
                structures[key[0]].append(key)
        drawn = set(self._blocks.values())
        self.titles: dict[Key, str] = {}
        for name, keys in structures.items():
            for number, key in enumerate(keys):
                single = len(keys) == 1 or (number == 0 and keys[1] not in drawn)
                self.titles[key] = name if single else f"{name} {_letters(number)}"

    def _tensors(self, scope: str) -> dict[int, str]:
        """Return the nodes that a call of a block gets in addition to its input, by their parameter."""
        return {node: name for name, node in reversed(self.graph.tensors.get(_plain(scope), {}).items())}

    def _reads(
        self, index: int, span: range, tensors: Mapping[int, str] = MappingProxyType({})
    ) -> list[int | str | None]:
        """Return the inputs of a node relative to a span; one from outside is None or a tensor parameter."""
        return [i - span.start if i >= span.start else tensors.get(i) for i in self.graph.nodes[index].inputs]

    def _outer(self, span: Sequence[int]) -> set[int]:
        first = span[0]
        return {i for index in span for i in self.graph.nodes[index].inputs if i < first}

    def _exits(self, span: Sequence[int]) -> list[int]:
        last = span[-1]
        return [i for i in span if i in self._leaving or any(user > last for user in self._consumers[i])]

    def _is_closed(self, span: range) -> bool:
        """Return whether a span of nodes has one input and at most one output, the last node."""
        return len(self._outer(span)) == 1 and set(self._exits(span)) <= {span[-1]}

    def _follows(self, index: int) -> bool:
        """Return whether a node reads only the node before it, which nothing else reads."""
        before = index - 1
        return (
            before >= len(self.graph.images)
            and self.graph.nodes[index].inputs == (before,)
            and self._consumers[before] == [index]
            and before not in self._leaving
            and self._status(before) == self._status(index)
        )

    def _fuses(self, stack: Sequence[int], index: int) -> bool:
        """Return whether an operator joins the box of the operators before it."""
        nodes = self.graph.nodes
        kinds = [kind_of(nodes[i].op) for i in (*stack, index)]
        minor = [
            kind in _MINOR or nodes[i].op.name == "flatten" for kind, i in zip(kinds, (*stack, index), strict=True)
        ]
        if not self._follows(index) or any(kind in JOINS for kind in kinds) or len(kinds) > 6:
            return False
        if kinds[0] == "norm":  # normalization and activation before a layer
            return all(minor[:-1])
        return minor[-1] and (not minor[0] or all(minor))

    def _is_stack(self, span: Sequence[int]) -> bool:
        return all(self._fuses(span[:k], span[k]) for k in range(1, len(span))) if len(span) <= 6 else False

    # -- figures

    def network(self) -> Figure:
        """Return the figure of the whole network."""
        graph = self.graph
        boxes = self._collapse(self._boxes(range(len(graph.nodes)), 0, ()))
        if not graph.images:
            boxes = [Box("input", "", "", [[Cell("input", "input")]], (), (), graph.input_shape), *boxes]
            boxes[0].edge = shortened(size_text(graph.input_shape))
        for box in boxes[1:]:  # several images read the first one, for their place in the layout
            box.inputs = tuple(max(i, 0) if graph.images else i + 1 for i in box.inputs)
        boxes[0].inputs = ()
        owners = {node: i for i, box in enumerate(boxes) for node in box.nodes}
        for name, index in (graph.taps or {"output": graph.output}).items():
            shape = graph.nodes[index].shape
            boxes.append(Box("output", "", "", [[Cell("output", name)]], (), (owners[index],), shape))
        exit = max(range(len(boxes) - len(graph.results), len(boxes)), key=lambda i: boxes[i].inputs)
        return Figure(graph.name, boxes, exit, graph.input_shape)

    def block(self, key: Key) -> Figure:
        """Return the figure of a block, whose labels hold for all of its calls."""
        scopes = self.calls[key]
        span = self._spans[scopes[0]]
        level = self._chains[span.start].index(scopes[0]) + 1
        starts = tuple(self._spans[scope].start for scope in scopes)
        boxes = self._boxes(span, level, starts)
        for box in boxes:
            if len({self.graph.nodes[box.nodes[-1] - span.start + start].shape for start in starts}) > 1:
                box.edge = ""
        if sides := self._side_boxes(scopes):
            boxes = self._linked([*sides, *boxes], span[0])
            for box in sides:
                box.inputs = (ENTRY,)
        boxes = self._collapse(boxes)
        tensors = [self._tensors(scope) for scope in scopes]
        outer = [
            [i for i in self._outer(self._spans[s]) if i not in own] for s, own in zip(scopes, tensors, strict=True)
        ]
        entries = {self._shape(nodes[0]) if nodes else () for nodes in outer}
        return Figure(
            self.titles[key], boxes, len(boxes) - 1, entries.pop() if len(entries) == 1 else (), list(scopes), key
        )

    def _shape(self, index: int) -> Shape:
        return self.graph.input_shape if index == IMAGE else self.graph.nodes[index].shape

    def _side_boxes(self, scopes: Sequence[str]) -> list[Box]:
        """Return boxes for the tensor parameters that the calls of a block read, in the order of their first use."""
        read = self._outer(self._spans[scopes[0]])
        boxes: list[Box] = []
        for node, name in self._tensors(scopes[0]).items():
            if node not in read:
                continue
            shapes = {self._shape(self.graph.tensors[_plain(scope)][name]) for scope in scopes}
            shape = shapes.pop() if len(shapes) == 1 else ()
            box = Box("input", "", "", [[Cell("input", name)]], (node,), (), shape)
            boxes.append(replace(box, edge=shortened(size_text(shape))))
        return boxes[::-1]

    def _child(self, index: int, level: int, only_blocks: bool) -> int | None:
        chain = self._chains[index]
        for position in range(level, len(chain)):
            if not only_blocks or chain[position] in self._blocks or self._is_stack(self._spans[chain[position]]):
                return position
        return None

    def _boxes(self, span: Sequence[int], level: int, starts: tuple[int, ...]) -> list[Box]:
        """Return the boxes of consecutive nodes; inputs outside of them are `ENTRY`.

        Args:
            span: The nodes.
            level: The number of scopes around them.
            starts: For a block, the first node of every call.
        """
        boxes: list[Box] = []
        position, end = span[0], span[-1] + 1
        while position < end:
            child = self._child(position, level, bool(starts))
            if child is None:
                stack = [position]
                while position + len(stack) < end and self._child(position + len(stack), level, bool(starts)) is None:
                    if not self._fuses(stack, position + len(stack)):
                        break
                    stack.append(position + len(stack))
                boxes.append(self._op_box(stack, level, span[0], starts))
                position += len(stack)
                continue
            scope = self._chains[position][child]
            inside = self._spans[scope]
            boxes += self._scope_boxes(scope, inside, child, level, span[0], starts)
            position = inside.stop
        for before, box in zip(boxes[-2::-1], boxes[:0:-1], strict=True):  # the parts of a branch: its name once
            if box.name == before.name and box.kind != "group":
                box.name = ""
        return self._linked(boxes, span[0])

    def _scope_boxes(
        self, scope: str, span: range, child: int, level: int, origin: int, starts: tuple[int, ...]
    ) -> list[Box]:
        """Return the boxes of a scope: a single one, a frame, or its content without a frame."""
        name = self._name(scope, span, level, origin)
        if self._is_stack(span):
            return [replace(self._op_box(list(span), level, origin, starts), name=name, path=scope)]
        key = self._blocks.get(scope)
        if key is not None:
            cells = [[Cell("block", self.titles[key])]]
            return [self._box("block", name, scope, cells, span, block=key)]
        if self.depth is not None and child + 1 >= self.depth:
            below = dict.fromkeys(s for i in span for s in self._chains[i][child + 1 : child + 2])
            counts = Counter(block for s in below if (block := self.graph.scopes[_plain(s)]))
            parts = [f"{block} ×{count}" if count > 1 else block for block, count in counts.items()][:2]
            words = ", ".join(parts) or counted(len(span), "operator")
            return [self._box("group", name, scope, [[Cell("group", words)]], span)]
        inner = self._boxes(span, child + 1, starts)
        if not self._is_closed(span):
            return inner
        inner = self._collapse(inner)
        if len(inner) == 1:
            return [replace(inner[0], name=name)]
        return [self._box("group", name, scope, [], span, inner=inner)]

    def _box(self, kind: str, name: str, path: str, rows: list[list[Cell]], span: Sequence[int], **more: Any) -> Box:
        nodes = [self.graph.nodes[i] for i in span]
        statuses = {self._status(i) for i in span}
        return Box(
            kind,
            name,
            path,
            rows,
            span,
            (),
            nodes[-1].shape,
            parameters=sum(node.parameter_count for node in nodes),
            macs=sum(node.macs for node in nodes),
            line=self._line(self.graph.origins.get(path) or nodes[0].origin),
            status=statuses.pop() if len(statuses) == 1 else "changed",
            edge=shortened(size_text(nodes[-1].shape)),
            **more,
        )

    def _line(self, span: Span | None) -> int:
        return span.line if span is not None and span.source.text == self.graph.text else 0

    def _op_box(self, stack: list[int], level: int, origin: int, starts: tuple[int, ...]) -> Box:
        nodes = self.graph.nodes
        if stack[0] < len(self.graph.images):
            return self._box("input", "", "", [[Cell("input", [*self.graph.images][stack[0]])]], stack)
        rows: list[list[Cell]] = []
        for i in stack:
            cell = Cell(kind_of(nodes[i].op), label(nodes[start + i - origin] for start in starts or (origin,)))
            minor = cell.kind in _MINOR or nodes[i].op.name == "flatten"
            if minor and rows and (rows[-1][0].kind in _MINOR or rows[-1][0].text == "flatten"):
                rows[-1].append(cell)
            else:
                rows.append([cell])
        main = next((i for i in stack if kind_of(nodes[i].op) not in _MINOR), stack[0])
        kind = "join" if nodes[main].op.name in JOINS else "op"
        name = "" if kind == "join" else self._name(nodes[main].place, [main], level, origin)
        title = "; ".join(f"{nodes[i].place}: {nodes[i].op!r}" for i in stack)
        return replace(self._box(kind, name, nodes[main].place, rows, stack), title=title)

    def _name(self, path: str, nodes: Sequence[int], level: int, origin: int) -> str:
        """Return the path within the figure; empty if it is a number or repeats the name of the operator."""
        chain = self._chains[origin]
        scope = chain[level - 1] if level else ""
        own = path[len(scope) + 1 :] if scope and path.startswith(f"{scope}.") else path
        within = self.graph.nodes[nodes[0]].aux
        for head in self.graph.aux:
            if head.name == own:
                return f"{own}, weight {head.weight:g}"
            if head.name == within and "#" in own:  # a module of the network, used again in the head
                return f"{own} in {within}, weight {head.weight:g}"
        word = re.sub(r"[_\d.]+$", "", own.rpartition(".")[2] if own.count(".") == 0 else own)
        names = {self.graph.nodes[i].op.name for i in nodes}
        if re.fullmatch(r"[\d.]*", own) or word in {*names, "norm", "pool", "relu", "act"}:
            return ""
        in_block = scope in self._blocks  # where a number is the position in a branch
        return re.sub(r"(\.\d+)+$", "", own) if in_block else own

    def _linked(self, boxes: list[Box], first: int) -> list[Box]:
        """Set the inputs of boxes."""
        owner = {node: index for index, box in enumerate(boxes) for node in box.nodes}
        for index, box in enumerate(boxes):
            sources = [i for node in box.nodes for i in self.graph.nodes[node].inputs]
            box.inputs = tuple(dict.fromkeys(owner.get(i, ENTRY) for i in sources if owner.get(i) != index))
        return self._without_repeated_concats(boxes)

    def _without_repeated_concats(self, boxes: list[Box]) -> list[Box]:
        """Let a concatenation that contains all inputs of an earlier one read that one, as dense blocks are drawn."""
        seen: list[tuple[int, set[int]]] = []
        for index, box in enumerate(boxes):
            if box.kind != "join" or box.rows[0][0].kind != "concat":
                continue
            own = set(box.inputs)
            for earlier, inputs in reversed(seen[-16:]):
                if len(inputs) > 1 and inputs <= own:
                    box.inputs = (earlier, *(i for i in box.inputs if i not in inputs))
                    break
            seen.append((index, own))
        return boxes

    # -- repeats

    def _signature(self, box: Box) -> Key:
        span = range(box.nodes[0], box.nodes[-1] + 1)
        return (box.kind, *((self._keys[i], *self._reads(i, span)) for i in box.nodes))

    def _collapse(self, boxes: list[Box]) -> list[Box]:
        """Replace consecutive equal parts by one part with the number of its repetitions."""
        signatures = [self._signature(box) for box in boxes]
        last = [inf if {*box.nodes} & self._leaving else -1 for box in boxes]  # the last reader of each box
        for index, box in enumerate(boxes):
            for i in box.inputs:
                if i != ENTRY:
                    last[i] = max(last[i], index)
        result: list[Box] = []
        moved: dict[int, int] = {ENTRY: ENTRY}
        position = 0
        while position < len(boxes):
            turns, period = self._turns(boxes, signatures, last, position)
            end = position + turns * period
            part = boxes[position : position + period]
            whole = part[0]
            if turns > 1:
                nodes = [n for box in boxes[position:end] for n in box.nodes]
                inner = [
                    replace(b, inputs=tuple(i - position if i >= position else ENTRY for i in b.inputs)) for b in part
                ]
                if period > 1:
                    whole = replace(whole, kind="group", name="", rows=[], block=None, inner=inner, title="")
                whole = self._box(
                    whole.kind, whole.name, whole.path, whole.rows, nodes,
                    block=whole.block, inner=whole.inner, title=whole.title, repeat=turns,
                )  # fmt: skip
            whole.inputs = tuple(moved[i] for i in part[0].inputs)
            result.append(whole)
            moved.update(dict.fromkeys(range(position, end), len(result) - 1))
            position = end
        return result

    def _turns(self, boxes: list[Box], signatures: list[Key], last: list[float], start: int) -> tuple[int, int]:
        """Return how often the part that starts at a box is repeated, and its number of boxes."""

        def is_same(other: int) -> bool:
            """Return whether the boxes from `other` on repeat those from `start` on and read only the last before."""
            if signatures[start:after] != signatures[other : other + period]:
                return False
            before = boxes[start].inputs
            for one, two in zip(boxes[start:after], boxes[other : other + period], strict=True):
                if any(i < start and before != (i,) for i in one.inputs):
                    return False
                if two.inputs != tuple(other - start + i if i >= start else other - 1 for i in one.inputs):
                    return False
            closed = (last[place + k] < place + period for place in (start, other) for k in range(period - 1))
            return all(closed) and last[other - 1] < other + period

        for period in range(1, _MAX_PERIOD + 1):
            turns, after = 1, start + period
            while is_same(start + turns * period):
                turns += 1
            if turns > 1:
                return turns, period
        return 1, 1


def _plain(path: str) -> str:
    """Return a path without the number of a further use of a module."""
    return re.sub(r"#[0-9]+", "", path)


def _letters(number: int) -> str:
    """Return A, B, ..., Z, AA, AB, ..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(65 + rest) + text
    return text


def blocks_in(boxes: Iterable[Box]) -> list[Key]:
    """Return the figures that boxes refer to, in order."""
    found: dict[Key, None] = {}
    for box in boxes:
        if box.block is not None:
            found[box.block] = None
        found.update(dict.fromkeys(blocks_in(box.inner or ())))
    return list(found)
