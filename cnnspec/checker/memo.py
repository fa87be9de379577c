"""Calls of one block that are alike are worked out once: what was written out is written again at another path.

Calls are alike where the block, the values of its parameters, and the shape that enters are equal. Where nothing in the
block asked for a shape, as by `in.c`, the shape need not be equal: only the shapes of its operators can differ.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from cnnspec import ir
from cnnspec.checker.environment import Tensor, TooLarge
from cnnspec.ops import Op, ShapeError
from cnnspec.ops.inits import InitScheme
from cnnspec.shapes import Shape


class Made(NamedTuple):
    """What an operator makes of its inputs: the fields of a node that do not depend on its place."""

    shape: Shape
    weights: dict[str, Shape]
    macs: int
    init: InitScheme | None


Make = Callable[[Op, tuple[Shape, ...]], Made]


@dataclass(frozen=True, slots=True)
class Record:
    """What a call added: nodes from `start` on, and the scopes and ends below its path.

    Attributes:
        steps: Elements that were written out.
        asked: Whether one of them asked for a shape.
    """

    path: str
    entering: int
    shape: Shape
    start: int
    nodes: tuple[ir.Node, ...]
    scopes: tuple[tuple[str, str], ...]
    ends: tuple[tuple[str, int], ...]
    result: int
    steps: int
    asked: bool


class Recorder:
    """Remembers calls of blocks by a key, the block and the values of its parameters, and by the shape that enters.

    Nothing else reaches into a block: it knows neither labels nor names from outside.

    Args:
        nodes: The nodes of the network so far; what is repeated is added to them.
        scopes: Paths that are no operator, with their block.
        ends: The same paths with the node that gives their output.
        make: What an operator makes of inputs of some shapes; a ShapeError or TooLarge where that is refused.
    """

    def __init__(self, nodes: list[ir.Node], scopes: dict[str, str], ends: dict[str, int], make: Make) -> None:
        self.nodes, self.scopes, self.ends, self._make = nodes, scopes, ends, make
        self._records: dict[Hashable, Record] = {}

    def mark(self) -> tuple[int, int, int]:
        """Where a call begins."""
        return len(self.nodes), len(self.scopes), len(self.ends)

    def keep(
        self,
        key: Hashable,
        mark: tuple[int, int, int],
        path: str,
        x: Tensor,
        result: Tensor,
        *,
        steps: int,
        asked: bool,
    ) -> None:
        """Remembers what was added since a mark."""
        start, scopes, ends = mark
        cut = len(path)
        self._records[(key, x.shape) if asked else key] = Record(
            path,
            x.node,
            x.shape,
            start,
            tuple(self.nodes[start:]),
            tuple((name[cut:], block) for name, block in islice(self.scopes.items(), scopes, None)),
            tuple((name[cut:], node) for name, node in islice(self.ends.items(), ends, None)),
            result.node,
            steps,
            asked,
        )

    def again(self, key: Hashable, path: str, x: Tensor) -> tuple[Tensor, Record] | None:
        """Adds what an alike call added, below another path; its result, and what it is made from.

        Nothing is added where no call was alike, or where an operator refuses what enters here.
        """
        record = self._records.get(key) or self._records.get((key, x.shape))
        if record is None:
            return None
        nodes, make, cut, start = self.nodes, self._make, len(record.path), len(self.nodes)
        shift, entering = start - record.start, record.entering
        try:
            for node in record.nodes:
                inputs = tuple([x.node if i == entering else i + shift for i in node.inputs])
                shape, weights, macs, init = node.shape, node.weights, node.macs, node.init
                if x.shape != record.shape:
                    shapes = tuple([x.shape if i == x.node else nodes[i].shape for i in inputs])
                    shape, weights, macs, init = make(node.op, shapes)
                at = path + node.path[cut:]
                nodes.append(ir.Node(at, node.op, inputs, shape, weights, macs, init, node.aux, node.origin))
        except (ShapeError, TooLarge):
            del nodes[start:]
            return None

        def moved(node: int) -> int:
            return x.node if node == entering else node + shift

        self.scopes.update((path + name, block) for name, block in record.scopes)
        self.ends.update((path + name, moved(node)) for name, node in record.ends if moved(node) != ir.IMAGE)
        result = moved(record.result)
        return Tensor(result, x.shape if result == x.node else nodes[result].shape), record
