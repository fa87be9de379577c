"""What changed between two networks, module by module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cnnspec import shapes
from cnnspec.analysis.summary import summarise
from cnnspec.ir import Graph, Node
from cnnspec.ir.evaluate import show


@dataclass(frozen=True, slots=True)
class Change:
    """A module that is in one of two networks only, or not the same in both.

    Attributes:
        path: Its place in the module tree.
        kind: `added`, `removed`, or `changed`.
        before: What it was: the operator with its settings, or the shape it gave.
        after: What it is.
    """

    path: str
    kind: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Difference:
    """The changes from one network to another, and the totals of both.

    Attributes:
        totals: Parameters, MACs, and bytes of activations, each before and after.
    """

    names: tuple[str, str]
    changes: tuple[Change, ...]
    totals: dict[str, tuple[int, int]]

    @property
    def same(self) -> bool:
        """Whether both are the same network, whatever they are called."""
        return not self.changes

    def to_json(self) -> dict[str, Any]:
        """The difference as plain data."""
        return {
            "a": self.names[0],
            "b": self.names[1],
            "same": self.same,
            "changes": [{"path": c.path, "kind": c.kind, "before": c.before, "after": c.after} for c in self.changes],
            "totals": {name: {"a": a, "b": b, "difference": b - a} for name, (a, b) in self.totals.items()},
        }


def compare(a: Graph, b: Graph) -> Difference:
    """The changes from network `a` to network `b`.

    Operators are told apart by their path; a join, which has none of its own, by what stands around it.
    """
    before, after = _described(a), _described(b)
    changes: list[Change] = []
    if a.input_shape != b.input_shape:
        changes.append(Change("input", "changed", shapes.text(a.input_shape), shapes.text(b.input_shape)))
    for path in dict.fromkeys((*before, *after)):
        old, new = before.get(path), after.get(path)
        if old != new:
            kind = "added" if old is None else "removed" if new is None else "changed"
            changes.append(Change(path, kind, old or "", new or ""))
    first, second = summarise(a), summarise(b)
    totals = {
        "parameters": (first.total.parameters, second.total.parameters),
        "macs": (first.total.macs, second.total.macs),
        "activation_bytes": (first.total.activations, second.total.activations),
    }
    return Difference((a.name, b.name), tuple(changes), totals)


def _described(graph: Graph) -> dict[str, str]:
    """Each operator in words, by a path that is its own."""
    found: dict[str, str] = {}
    keys: list[str] = []
    for node in graph.nodes:
        key = node.path
        if not node.op.owns_module:
            place = f"{node.path}.{node.op.name}" if node.path else node.op.name
            key, count = place, 1
            while key in found:
                count += 1
                key = f"{place}#{count}"
        reads = (
            "" if len(node.inputs) < 2 else " of " + ", ".join(keys[i] if i >= 0 else "the image" for i in node.inputs)
        )
        found[key] = _text(node) + reads
        keys.append(key)
    return found


def _text(node: Node) -> str:
    settings = "".join(f" {name}={show(value)}" for name, value in node.op.changed().items())
    init = f", init {node.init.name}" if node.init is not None else ""
    return f"{node.op.name}{settings}{init} -> {shapes.text(node.shape)}"
