"""The table of a network by module: shapes, parameters, operations, memory, and receptive fields."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from cnnspec import shapes
from cnnspec.analysis.cost import count, live_memory, training_memory
from cnnspec.analysis.receptive_field import centre, fields, sights
from cnnspec.ir import Graph
from cnnspec.ops.base import FLOAT
from cnnspec.shapes import Shape
from cnnspec.shapes.symbolic import Amount

MAX_SIDE = 1024
"""Of an image for which it is worked out exactly what a place sees."""

Field = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One module, or one operator where it is a module of its own. Figures are for a batch, bytes in float32.

    Attributes:
        path: Its path in the module tree; empty for the whole network.
        kind: The block that it is a call of, or the operator; empty for a plain scope.
        level: How deep it lies in the module tree, from 1; 0 for the whole network.
        shape: What it gives, without the batch axis.
        parameters: Learned weights in it.
        macs: Multiply-adds of its convolutions and linear layers in inference.
        flops: Floating-point operations of the same, two for a multiply-add.
        backward_flops: Those of the backward pass of a training step.
        activations: Bytes of the outputs of all operators in it.
        kept: Bytes of its activations that stay for the backward pass; a tensor counts once, where it is made.
        peak: Bytes of all tensors that live while its operator that needs most of them runs in inference.
        field: Height and width of the receptive field of what it gives, none for the whole image.
        sees: Height and width of the part of the image that the centre of its map sees; none where that is
            not worked out.
        stride: Pixels of the image for one place of the map, in height and width.
        depth: Convolutions and linear layers on the longest path from the image to what it gives.
    """

    path: str
    kind: str
    level: int
    shape: Shape
    parameters: int
    macs: int
    flops: int
    backward_flops: int
    activations: int
    kept: int
    peak: int
    field: Field
    sees: tuple[int, int] | None
    stride: tuple[Fraction, Fraction]
    depth: int

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "parameters": self.parameters,
            "macs": self.macs,
            "flops": self.flops,
            "backward_flops": self.backward_flops,
            "activation_bytes": self.activations,
            "kept_bytes": self.kept,
            "peak_bytes": self.peak,
            "field": list(self.field),
            "sees": list(self.sees) if self.sees else None,
            "stride": [int(s) if s == int(s) else float(s) for s in self.stride],
            "depth": self.depth,
        }


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: its title, its cell as text, and whether it holds a figure."""

    title: str
    cell: Callable[[Row], str]
    figure: bool = True


def in_bytes(count: int | Amount) -> str:
    """`2.90 MiB`."""
    if isinstance(count, Amount):
        return f"{count:,} B"
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if size >= 1024:
            size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:,.1f} KiB" if unit == "KiB" else f"{size:,.2f} {unit}"


def _field(field: Field) -> str:
    return "whole image" if field == (None, None) else "x".join("all" if side is None else str(side) for side in field)


COLUMNS: dict[str, Column] = {
    "is": Column("is", lambda row: row.kind, False),
    "output": Column("output", lambda row: shapes.text(row.shape), False),
    "parameters": Column("parameters", lambda row: f"{row.parameters:,}"),
    "macs": Column("MACs", lambda row: f"{row.macs:,}"),
    "flops": Column("FLOPs", lambda row: f"{row.flops:,}"),
    "backward_flops": Column("backward FLOPs", lambda row: f"{row.backward_flops:,}"),
    "activations": Column("activations", lambda row: in_bytes(row.activations)),
    "kept": Column("kept", lambda row: in_bytes(row.kept)),
    "peak": Column("peak", lambda row: in_bytes(row.peak)),
    "field": Column("field", lambda row: _field(row.field)),
    "sees": Column("sees", lambda row: _field(row.sees) if row.sees else ""),
    "stride": Column("stride", lambda row: "x".join(map(str, row.stride))),
    "depth": Column("depth", lambda row: str(row.depth)),
}
"""Every column by the name that asks for it."""

KEYS = {
    "is": "kind",
    "output": "output_shape",
    "activations": "activation_bytes",
    "kept": "kept_bytes",
    "peak": "peak_bytes",
}
"""What columns are called in JSON, where that is not their name."""

DECLARED = ("peak", "field", "sees", "stride")
"""The columns that are those of the declared size where others are functions of the image's size."""

DEFAULT_COLUMNS = ("is", "output", "parameters", "macs", "activations", "field")


@dataclass(frozen=True, slots=True)
class Summary:
    """A network by module, with its totals, for a batch of images.

    Attributes:
        rows: Every module, a scope in front of what it holds.
        total: The whole network. Multiply-adds and operations are those of inference, without auxiliary heads,
            the backward pass and what is kept are those of training, with them.
        training_flops: Operations of a training step, forward and backward.
        declared: The image that the spec declares, where shapes are functions of the image's size.
    """

    name: str
    batch: int
    input_shape: Shape
    output_shape: Shape
    rows: tuple[Row, ...]
    total: Row
    training_flops: int
    declared: Shape | None = None

    def upto(self, level: int) -> list[Row]:
        """The rows down to a level of the module tree."""
        return [row for row in self.rows if row.level <= level]

    def to_json(self, columns: Sequence[str] = tuple(COLUMNS), level: int | None = None) -> dict[str, Any]:
        """Columns of the rows down to a level as plain data; of all rows without one."""
        keys = {KEYS.get(name, name) for name in columns}

        def figures(row: Row) -> dict[str, Any]:
            data = {"kind": row.kind, "output_shape": list(row.shape), **row.to_json()}
            return {key: value for key, value in data.items() if key in keys}

        total = {key: value for key, value in self.total.to_json().items() if key in keys}
        named = [KEYS.get(name, name) for name in DECLARED if name in columns]
        declared = {"input_shape": list(self.declared or ()), "figures": named}
        return {
            "name": self.name,
            "batch": self.batch,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            **({"declared": declared} if self.declared else {}),
            **total,
            "training_flops": self.training_flops,
            "modules": [
                {"path": row.path, **figures(row)} for row in (self.rows if level is None else self.upto(level))
            ],
        }

    def to_csv(self, columns: Sequence[str] = DEFAULT_COLUMNS, level: int = 2) -> str:
        """Columns of the rows down to a level as CSV, figures as plain numbers; the last row is the total."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["module", *columns])
        for row in [*self.upto(level), self.total]:
            plain = {"activations": row.activations, "kept": row.kept, "peak": row.peak}
            cells = (plain.get(name, COLUMNS[name].cell(row)) for name in columns)
            figures = (
                cell.replace(",", "") if COLUMNS[name].figure and isinstance(cell, str) else cell
                for name, cell in zip(columns, cells, strict=True)
            )
            writer.writerow([row.path or "total", *figures])
        return text.getvalue()

    def to_markdown(self, columns: Sequence[str] = DEFAULT_COLUMNS, level: int = 2) -> str:
        """Columns of the rows down to a level as a table in Markdown; the last row is the total."""
        chosen = [COLUMNS[name] for name in columns]
        lines = [
            ["module", *(column.title for column in chosen)],
            ["---", *("--:" if c.figure else "---" for c in chosen)],
        ]
        for row in [*self.upto(level), self.total]:
            lines.append([f"`{row.path}`" if row.path else "total", *(column.cell(row) for column in chosen)])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summarise(graph: Graph, batch: int = 1, *, symbolic: bool = False) -> Summary:
    """The table of a graph; a module's figures are sums over all operators in it, its peak the greatest.

    Args:
        graph: A network.
        batch: How many images; parameters do not grow with it, receptive fields neither.
        symbolic: Whether shapes, operations, activations and what is kept are functions of the image's height and
            width (`symbolic.Amount`) where they depend on it; all other figures are those of the declared size.
    """
    shown = graph.symbolic if symbolic else graph
    counts, live, reach = count(shown), live_memory(graph), fields(graph)
    seen = sights(graph) if max(graph.input_shape) <= MAX_SIDE else None
    sight = [centre(each) for each in seen] if seen else [None] * len(graph.nodes)
    kinds: dict[str, str] = dict(graph.scopes)
    sums: dict[str, list[int]] = {"": [0] * 7}
    last: dict[str, int] = {}
    for index, node in enumerate(shown.nodes):
        runs = node.aux is None
        figures = (
            node.parameter_count,
            batch * node.macs if runs else 0,
            batch * counts.flops[index] if runs else 0,
            batch * counts.backward_flops[index],
            batch * FLOAT * shapes.numel(node.shape),
            counts.kept[index].at(batch),
        )
        if node.op.owns_module:
            kinds[node.path] = node.op.name
        parts = node.path.split(".") if node.path else []
        for end in range(len(parts) + 1):
            path = ".".join(parts[:end])
            total = sums.setdefault(path, [0] * 7)
            for place, figure in enumerate(figures):
                total[place] += figure
            total[6] = max(total[6], live[index].at(batch))
            last[path] = index
    last[""] = graph.output
    rows: list[Row] = []
    for path, (parameters, macs, flops, backward, activations, kept, peak) in sums.items():
        index, level = last[path], path.count(".") + 1 if path else 0
        rows.append(
            Row(
                *(path, kinds.get(path, ""), level, shown.nodes[index].shape),
                *(parameters, macs, flops, backward, activations, kept, peak),
                *(reach[index], sight[index], graph.reductions[index], graph.depths[index]),
            )
        )
    whole = replace(rows[0], kept=counts.kept_total.at(batch))
    return Summary(
        *(graph.name, batch, shown.input_shape, shown.output_shape, tuple(rows[1:]), whole),
        batch * counts.training_flops,
        graph.input_shape if symbolic else None,
    )


# --- the largest batch ---------------------------------------------------------------------------

_UNITS = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}


def parse_bytes(text: str) -> int:
    """Bytes of `16GiB` or `500 MB`.

    Raises:
        ValueError: It is no amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]+)\s*", text, re.ASCII)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is None or match.group(2).lower() not in units:
        raise ValueError(f"`{text}` is no amount of memory such as 16GiB or 500MB")
    return int(Fraction(match.group(1)) * units[match.group(2).lower()])


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """The most images whose training step fits into some memory, and what takes it, in bytes of float32.

    Attributes:
        memory: What there is.
        batch: The images; 0 where not even one fits, and then the other figures are those of one.
        weights: Learned weights and the running statistics of normalisations.
        gradients: Of the weights.
        optimizer: What the recipe's optimizer remembers, and the average of the weights where there is one.
        activations: Of the step that needs most: the image, what is kept, and the gradients of a backward step.
    """

    memory: int
    batch: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def to_json(self) -> dict[str, int]:
        """The figures as plain data."""
        names = ("memory", "batch", "weights", "gradients", "optimizer", "activations", "total")
        return {name: getattr(self, name) for name in names}

    def text(self) -> str:
        """The answer in words."""
        parts = ", ".join(
            f"{name} {in_bytes(getattr(self, name))}" for name in ("weights", "gradients", "optimizer", "activations")
        )
        if self.batch == 0:
            return f"not even one image trains in {in_bytes(self.memory)}: it takes {in_bytes(self.total)} ({parts})"
        return f"largest batch that trains in {in_bytes(self.memory)}: {self.batch:,}, which takes {in_bytes(self.total)} ({parts})"


def largest_batch(graph: Graph, memory: int) -> LargestBatch:
    """The largest batch that trains in so many bytes.

    Counted is what tensors of torch take in float32. What is not: the memory that kernels take for themselves,
    the loss, images in preparation, and torch itself.
    """
    needs = training_memory(graph)
    batch = needs.largest_batch(memory)
    activations = needs.activations(max(batch, 1))
    return LargestBatch(memory, batch, needs.weights, needs.gradients, needs.optimizer, activations)
