"""The table of a network: shapes, parameters, multiply-adds and activation memory by module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cnnspec import shapes
from cnnspec.ir import Graph
from cnnspec.shapes import Shape

BYTES = 4
"""Of one number in float32."""


@dataclass(frozen=True, slots=True)
class Row:
    """One module, or one operator where it is a module of its own.

    Attributes:
        path: Its path in the module tree.
        kind: The block that it is a call of, or the operator; empty for a plain scope.
        shape: What it gives, without the batch axis.
        parameters: Learned weights in it.
        macs: Multiply-adds of one image.
        activations: Bytes of the outputs of all operators in it, for one image in float32.
        depth: How deep it lies in the module tree, from 1.
    """

    path: str
    kind: str
    shape: Shape
    parameters: int
    macs: int
    activations: int
    depth: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A network by module, with its totals.

    Attributes:
        rows: Every module, a scope in front of what it holds.
        activations: Bytes of the outputs of all operators, for one image in float32.
    """

    name: str
    input_shape: Shape
    output_shape: Shape
    rows: tuple[Row, ...]
    parameters: int
    macs: int
    activations: int
    depth: int

    def upto(self, depth: int) -> list[Row]:
        """The rows down to a depth of the module tree."""
        return [row for row in self.rows if row.depth <= depth]

    def to_json(self) -> dict[str, Any]:
        """The summary as plain data."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "parameters": self.parameters,
            "macs": self.macs,
            "activation_bytes": self.activations,
            "depth": self.depth,
            "modules": [
                {
                    "path": row.path,
                    "kind": row.kind,
                    "output_shape": list(row.shape),
                    "parameters": row.parameters,
                    "macs": row.macs,
                    "activation_bytes": row.activations,
                }
                for row in self.rows
            ],
        }


def summarise(graph: Graph) -> Summary:
    """The table of a graph; a module's figures are the sums over all operators in it."""
    order: dict[str, None] = {}
    kinds: dict[str, str] = dict(graph.scopes)
    shape: dict[str, Shape] = {}
    sums: dict[str, list[int]] = {}
    for node in graph.nodes:
        parts = node.path.split(".") if node.path else []
        figures = (node.parameter_count, node.macs if node.aux is None else 0, BYTES * shapes.numel(node.shape))
        if node.op.owns_module:
            kinds[node.path] = node.op.name
        for count in range(1, len(parts) + 1):
            path = ".".join(parts[:count])
            order.setdefault(path)
            shape[path] = node.shape
            total = sums.setdefault(path, [0, 0, 0])
            for i, figure in enumerate(figures):
                total[i] += figure
    rows: list[Row] = []
    for path in order:
        parameters, macs, activations = sums[path]
        depth = path.count(".") + 1
        rows.append(Row(path, kinds.get(path, ""), shape[path], parameters, macs, activations, depth))
    activations = sum(BYTES * shapes.numel(node.shape) for node in graph.nodes)
    return Summary(
        graph.name,
        graph.input_shape,
        graph.output_shape,
        tuple(rows),
        graph.parameter_count,
        graph.macs,
        activations,
        graph.depth,
    )
