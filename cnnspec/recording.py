"""Calls of one block that are alike are worked out once: what was written out is written again at another path."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import islice

from cnnspec import ir
from cnnspec.frames import Tensor


@dataclass(frozen=True, slots=True)
class _Record:
    """What a call added: nodes from `start` on, and the scopes and ends below its path."""

    path: str
    entering: int
    start: int
    nodes: tuple[ir.Node, ...]
    scopes: tuple[tuple[str, str], ...]
    ends: tuple[tuple[str, int], ...]
    result: Tensor
    steps: int


class Recorder:
    """Remembers calls of blocks by a key: the block, the values of its parameters, and the shape that enters.

    Nothing else reaches into a block: it knows neither labels nor names from outside.

    Args:
        nodes: The nodes of the network so far; what is repeated is added to them.
        scopes: Paths that are no operator, with their block.
        ends: The same paths with the node that gives their output.
    """

    def __init__(self, nodes: list[ir.Node], scopes: dict[str, str], ends: dict[str, int]) -> None:
        self.nodes, self.scopes, self.ends = nodes, scopes, ends
        self._records: dict[Hashable, _Record] = {}

    def mark(self) -> tuple[int, int, int]:
        """Where a call begins."""
        return len(self.nodes), len(self.scopes), len(self.ends)

    def keep(self, key: Hashable, mark: tuple[int, int, int], path: str, x: Tensor, result: Tensor, steps: int) -> None:
        """Remembers what was added since a mark."""
        start, scopes, ends = mark
        cut = len(path)
        self._records[key] = _Record(
            path,
            x.node,
            start,
            tuple(self.nodes[start:]),
            tuple((name[cut:], block) for name, block in islice(self.scopes.items(), scopes, None)),
            tuple((name[cut:], node) for name, node in islice(self.ends.items(), ends, None)),
            result,
            steps,
        )

    def again(self, key: Hashable, path: str, x: Tensor) -> tuple[Tensor, int] | None:
        """Adds what an equal call added, below another path; its result, and the steps that it took."""
        record = self._records.get(key)
        if record is None:
            return None
        cut, shift = len(record.path), len(self.nodes) - record.start
        moved = {record.entering: x.node}

        def at(node: int) -> int:
            return moved[node] if node in moved else node + shift

        self.nodes += [
            ir.Node(
                path + node.path[cut:],
                node.op,
                tuple([at(i) for i in node.inputs]),
                node.shape,
                node.weights,
                node.macs,
                node.init,
                node.aux,
                node.origin,
            )
            for node in record.nodes
        ]
        self.scopes.update((path + name, block) for name, block in record.scopes)
        self.ends.update((path + name, at(node)) for name, node in record.ends if at(node) != ir.IMAGE)
        return Tensor(at(record.result.node), record.result.shape), record.steps
