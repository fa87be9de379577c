"""Differences between two networks, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cnnspec import shapes
from cnnspec.diagnostics import html_table
from cnnspec.ir import Graph, Node
from cnnspec.ir.evaluate import show
from cnnspec.ops.base import FLOAT


@dataclass(frozen=True, slots=True)
class Change:
    """A module that is in only one of two networks, or differs between them.

    Attributes:
        path: The path in the module tree.
        kind: `added`, `removed` or `changed`.
        before: The operator with its settings and its output shape in the first network; empty if added.
        after: The same in the second network; empty if removed.
    """

    path: str
    kind: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Difference:
    """The differences between two networks.

    Attributes:
        names: The names of the networks.
        changes: The modules that differ.
        totals: Parameters, MACs and bytes of activations, before and after.
    """

    names: tuple[str, str]
    changes: tuple[Change, ...]
    totals: dict[str, tuple[int, int]]

    @property
    def same(self) -> bool:
        """The networks are identical except for their names."""
        return not self.changes

    def to_json(self) -> dict[str, Any]:
        """Return the differences as plain data."""
        return {
            "a": self.names[0],
            "b": self.names[1],
            "same": self.same,
            "changes": [{"path": c.path, "kind": c.kind, "before": c.before, "after": c.after} for c in self.changes],
            "totals": {name: {"a": a, "b": b, "difference": b - a} for name, (a, b) in self.totals.items()},
        }

    def _repr_html_(self) -> str:
        """Return the changes and totals as a table for notebooks."""
        totals = ((name.replace("_", " "), f"{b - a:+,}", f"{a:,}", f"{b:,}") for name, (a, b) in self.totals.items())
        rows = [*((c.path, c.kind, c.before, c.after) for c in self.changes), *totals]
        return html_table(("module", "change", *self.names), rows)


def compare(a: Graph, b: Graph) -> Difference:
    """Compare two networks.

    Operators are matched by their path. A join has no path of its own: its position in its scope identifies it.
    """
    before, after = _descriptions(a), _descriptions(b)
    changes: list[Change] = []
    if a.input_text != b.input_text and ([*a.images] != [*b.images] or not a.images):  # others are among the nodes
        changes.append(Change("input", "changed", a.input_text, b.input_text))
    if a.taps != b.taps or [*a.taps] != [*b.taps]:
        changes += _changed_outputs(a, b)
    for path in dict.fromkeys((*before, *after)):
        old, new = before.get(path), after.get(path)
        if old != new:
            kind = "added" if old is None else "removed" if new is None else "changed"
            changes.append(Change(path, kind, old or "", new or ""))
    totals = {
        "parameters": (a.parameter_count, b.parameter_count),
        "macs": (a.macs, b.macs),
        "activation_bytes": (_activations(a), _activations(b)),
    }
    return Difference((a.name, b.name), tuple(changes), totals)


def _changed_outputs(a: Graph, b: Graph) -> Iterator[Change]:
    """Yield the named outputs that differ, by the operator that computes them."""
    old, new = _named_outputs(a), _named_outputs(b)
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name, ""), new.get(name, "")
        if before != after:
            kind = "added" if not before else "removed" if not after else "changed"
            yield Change(f"output {name}".rstrip(), kind, before, after)
    common = [name for name in old if name in new]
    if common != [name for name in new if name in old]:
        yield Change("order of outputs", "changed", ", ".join(old), ", ".join(new))


def _named_outputs(graph: Graph) -> dict[str, str]:
    """Return the place and shape of each output by its name, which is empty for the only one."""
    return {
        name: f"{graph.nodes[index].place or graph.nodes[index].op.name} -> {shapes.text(graph.nodes[index].shape)}"
        for name, index in (graph.taps or {"": graph.output}).items()
    }


def node_statuses(a: Graph, b: Graph) -> tuple[list[str], list[str]]:
    """Return the kind of change of every node of two networks, as in `compare`; empty if it does not differ."""
    before, after = _descriptions(a), _descriptions(b)

    def status(path: str, own: dict[str, str], other: dict[str, str], missing: str) -> str:
        return missing if path not in other else "changed" if own[path] != other[path] else ""

    return (
        [status(path, before, after, "removed") for path in before],
        [status(path, after, before, "added") for path in after],
    )


def _activations(graph: Graph) -> int:
    """Return the bytes of the outputs of all operators for one image."""
    return sum(FLOAT * shapes.numel(node.shape) for node in graph.nodes[len(graph.images) :])


def _descriptions(graph: Graph) -> dict[str, str]:
    """Return a description of each operator by a unique path."""
    descriptions: dict[str, str] = {}
    keys: list[str] = []
    counts: dict[str, int] = {}
    for name, shape in graph.images.items():
        keys.append(f"input {name}")
        descriptions[keys[-1]] = shapes.text(shape)
    for node in graph.nodes[len(keys) :]:
        key = node.place
        if not node.op.owns_module:
            place = f"{key}.{node.op.name}" if key else node.op.name
            key, count = place, counts.get(place, 1)
            while key in descriptions:
                count += 1
                key = f"{place}#{count}"
            counts[place] = count
        named = len(node.inputs) > 1 or (node.use is not None and node.inputs[:1] != (len(keys) - 1,))
        reads = " of " + ", ".join(keys[i] if i >= 0 else "the image" for i in node.inputs) if named else ""
        descriptions[key] = _text(node) + reads
        keys.append(key)
    return descriptions


def _text(node: Node) -> str:
    settings = "".join(f" {name}={show(value)}" for name, value in node.op.changed().items())
    init = f", init {node.init.name}" if node.init is not None else ""
    return f"{node.op.name}{settings}{init} -> {shapes.text(node.shape)}"
