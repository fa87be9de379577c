"""The operators that lead to a tensor and their shapes, for the labels and notes of shape errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from cnnspec import ir, shapes
from cnnspec.ir.evaluate import show
from cnnspec.shapes import Shape

MAX_SHOWN = 8
"""Shapes of a path that are shown."""
_MAX_PATH = 1000
"""Nodes of a path that are examined."""


class ShapeTrace:
    """Trace tensors back to the operators that compute them.

    Args:
        nodes: The operators so far, in the order in which they run.
        model: The network.
    """

    def __init__(self, nodes: Sequence[ir.Node], model: ir.Model) -> None:
        self.nodes, self.image = nodes, model.input
        self._images = model.several_images

    def path(self, node: int, start: int = ir.IMAGE) -> list[int]:
        """List the nodes from one to another, by the first input of each; only the last ones of a long path."""
        found: list[int] = []
        start = max(start, len(self._images) - 1)
        while node > start and len(found) < _MAX_PATH:
            found.append(node)
            node = self.nodes[node].inputs[0]
        return found[::-1]

    def fork(self, nodes: Iterable[int]) -> int:
        """Find the last node that led to all of some others."""
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

    def changes(self, path: Sequence[int], axes: slice = slice(None)) -> list[int]:
        """Keep the nodes of a path that change the shape, or these axes of it."""
        return [i for i in path if self.nodes[i].shape[axes] != self.entering(i)[axes]]

    def chain(self, path: Sequence[int], axes: slice = slice(None)) -> str:
        """Render shapes, or these axes of them, and the operators between; a long path is shortened in the middle."""
        steps = [_sizes(self.entering(path[0])[axes])]
        steps += [f"{_sizes(self.nodes[i].shape[axes])} (`{self.nodes[i].op.name}`)" for i in path]
        return " -> ".join(steps if len(steps) <= MAX_SHOWN else [*steps[:2], "...", *steps[3 - MAX_SHOWN :]])

    def origin(self, node: int) -> str:
        """Name the operator that computes a tensor, and its line."""
        if node == ir.IMAGE:
            return "the input image"
        if node < len(self._images):
            return f"the image `{self._images[node].name}`"
        made = self.nodes[node]
        if made.origin is None or made.origin.source.shipped:
            return f"from `{made.path or made.op.name}`"
        return f"from `{made.op.name}` on line {made.origin.line}"

    def entering(self, node: int) -> Shape:
        """Return the shape of the first input of a node."""
        before = self.nodes[node].inputs[0]
        return self.image if before == ir.IMAGE else self.nodes[before].shape


def _sizes(shape: Shape) -> str:
    return show(shape) if len(shape) == 2 else shapes.text(shape)
