"""The table of a network by module: shapes, parameters, operations, memory, and receptive fields."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

from cnnspec import shapes
from cnnspec.analysis.cost import Counts, count, live_memory, training_memory
from cnnspec.analysis.receptive_field import center_extent, fields, masks
from cnnspec.diagnostics import CnnspecError, failure, html_table
from cnnspec.ir import Graph, Node
from cnnspec.limits import MAX_AMOUNTS, MAX_FLAT_TERMS, MAX_SIZES
from cnnspec.ops.base import FLOAT
from cnnspec.resources import without_garbage_collection
from cnnspec.shapes import Shape
from cnnspec.shapes.symbolic import Amount, Length, LengthsLimit

MAX_SIDE = 1024
"""The largest side of an image for which exact receptive fields are computed."""

Field = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One module. Values are for a batch, memory is in bytes of float32.

    Attributes:
        path: The path in the module tree; empty for the whole network. `head#2` is the second use of `head`.
        kind: The block or the operator; empty for a plain scope. `conv, shared` for a further use of a module.
        level: The depth in the module tree, from 1; 0 for the whole network.
        shape: The output shape without the batch axis.
        parameters: The number of learned weights.
        macs: Multiply-adds of convolutions and linear layers in inference.
        flops: Floating-point operations of the same, two per multiply-add.
        backward_flops: Floating-point operations in the backward pass.
        activations: Bytes of the outputs of all operators.
        saved: Bytes saved for the backward pass; a tensor counts once, where it is allocated.
        peak: The most bytes of live tensors while one of its operators runs in inference.
        field: Height and width of the theoretical receptive field, `None` for the whole image.
        center_field: Height and width of the exact receptive field at the center of the map, `None` if not computed.
        stride: Pixels of the image per position of the map, in height and width.
        depth: Convolutions and linear layers on the longest path from the image.
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
    saved: int
    peak: int
    field: Field
    center_field: tuple[int, int] | None
    stride: tuple[Fraction, Fraction]
    depth: int

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain data."""
        return {
            "parameters": self.parameters,
            "macs": self.macs,
            "flops": self.flops,
            "backward_flops": self.backward_flops,
            "activation_bytes": self.activations,
            "saved_bytes": self.saved,
            "peak_bytes": self.peak,
            "field": list(self.field),
            "center_field": list(self.center_field) if self.center_field else None,
            "stride": [s.numerator if s.denominator == 1 else float(s) for s in self.stride],
            "depth": self.depth,
        }


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        title: The heading.
        cell: Formats the cell of a row.
        figure: The cells are numbers.
    """

    title: str
    cell: Callable[[Row], str]
    figure: bool = True


def in_bytes(count: int | Amount) -> str:
    """Format a number of bytes: `2.90 MiB`."""
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
    "kind": Column("kind", lambda row: row.kind, False),
    "output": Column("output", lambda row: shapes.text(row.shape), False),
    "parameters": Column("parameters", lambda row: f"{row.parameters:,}"),
    "macs": Column("MACs", lambda row: f"{row.macs:,}"),
    "flops": Column("FLOPs", lambda row: f"{row.flops:,}"),
    "backward_flops": Column("backward FLOPs", lambda row: f"{row.backward_flops:,}"),
    "activations": Column("activations", lambda row: in_bytes(row.activations)),
    "saved": Column("saved", lambda row: in_bytes(row.saved)),
    "peak": Column("peak", lambda row: in_bytes(row.peak)),
    "field": Column("field", lambda row: _field(row.field)),
    "center_field": Column("center field", lambda row: _field(row.center_field) if row.center_field else ""),
    "stride": Column("stride", lambda row: "x".join(map(str, row.stride))),
    "depth": Column("depth", lambda row: str(row.depth)),
}
"""All columns by name."""

KEYS = {
    "output": "output_shape",
    "activations": "activation_bytes",
    "saved": "saved_bytes",
    "peak": "peak_bytes",
}
"""The keys of columns in JSON, where they differ from the name."""

DECLARED = ("peak", "field", "center_field", "stride")
"""Columns that are for the declared image size even if the others are functions of the image size."""

_FOR_OUTPUTS = ("kind", "output", "field", "center_field", "stride", "depth")
"""Columns that have a value for a named output."""

DEFAULT_COLUMNS = ("kind", "output", "parameters", "macs", "activations", "field")


def show_cell(name: str, row: Row) -> str:
    """Format the cell of a column, for people."""
    return COLUMNS[name].cell(row)


def _plain_cell(name: str, row: Row) -> str:
    """Format the cell of a column with plain numbers, and memory in bytes."""
    if name in ("activations", "saved", "peak"):
        return str(getattr(row, name))
    cell = COLUMNS[name].cell(row)
    return cell.replace(",", "") if COLUMNS[name].figure else cell


@dataclass(frozen=True, slots=True)
class Summary:
    """The table of a network.

    Attributes:
        name: The name of the network.
        batch: The number of images.
        input_shape: The shape of the image.
        images: The shapes of several images by name; their channels are those of the input.
        output_shape: The shape of the output.
        rows: All modules; a module comes before its submodules.
        outputs: The named outputs; `path` is the name, and parameters, operations and memory are 0.
        total: The whole network. `macs` and `flops` are for inference, without auxiliary heads; `backward_flops` and
            `saved` are for training, with them. Of several outputs, fields, strides and depths are the largest.
        training_flops: Floating-point operations of a training step, forward and backward.
        declared: The image that the spec declares, if shapes are functions of the image size.
    """

    name: str
    batch: int
    input_shape: Shape
    images: dict[str, Shape]
    output_shape: Shape
    rows: tuple[Row, ...]
    total: Row
    training_flops: int
    declared: Shape | None = None
    outputs: tuple[Row, ...] = ()

    def upto(self, level: int) -> list[Row]:
        """Return the rows down to a level of the module tree."""
        return [row for row in self.rows if row.level <= level]

    def table(self, columns: Sequence[str], level: int, show: Callable[[str, Row], str] = show_cell) -> list[list[str]]:
        """Return the cells of the modules down to a level, then those of the named outputs, then those of the total.

        Args:
            columns: The columns after the path of a module or the name of an output.
            level: The last level of the module tree.
            show: Formats the cell of a column and a row.
        """
        modules = [[row.path, *(show(name, row) for name in columns)] for row in self.upto(level)]
        outputs = [
            [row.path, *(show(name, row) if name in _FOR_OUTPUTS else "" for name in columns)] for row in self.outputs
        ]
        return [*modules, *outputs, ["total", *(show(name, self.total) for name in columns)]]

    @without_garbage_collection()
    def to_json(self, columns: Sequence[str] = tuple(COLUMNS), level: int | None = None) -> dict[str, Any]:
        """Return the rows down to a level as plain data; all rows by default."""

        def figures(row: Row, keys: Collection[str]) -> dict[str, Any]:
            data = {"kind": row.kind, "output_shape": list(row.shape), **row.to_json()}
            return {key: value for key, value in data.items() if key in keys}

        keys = {KEYS.get(name, name) for name in columns}
        of_outputs = keys & {KEYS.get(name, name) for name in _FOR_OUTPUTS if name != "kind"}
        named = [KEYS.get(name, name) for name in DECLARED if name in columns]
        declared = {"input_shape": list(self.declared or ()), "figures": named}
        rows = self.rows if level is None else self.upto(level)
        return {
            "name": self.name,
            "batch": self.batch,
            "input_shape": list(self.input_shape),
            **({"images": {name: list(shape) for name, shape in self.images.items()}} if self.images else {}),
            "output_shape": list(self.output_shape),
            **({"outputs": [{"name": o.path, **figures(o, of_outputs)} for o in self.outputs]} if self.outputs else {}),
            **({"declared": declared} if self.declared else {}),
            **figures(self.total, keys - {"kind", KEYS["output"]}),
            "training_flops": self.training_flops,
            "modules": [{"path": row.path, **figures(row, keys)} for row in rows],
        }

    def to_csv(self, columns: Sequence[str] = DEFAULT_COLUMNS, level: int = 2) -> str:
        """Return the table down to a level as CSV with plain numbers."""
        text = io.StringIO()
        rows = self.table(columns, level, _plain_cell)
        csv.writer(text, lineterminator="\n").writerows([["module", *columns], *rows])
        return text.getvalue()

    def to_markdown(self, columns: Sequence[str] = DEFAULT_COLUMNS, level: int = 2) -> str:
        """Return the table down to a level as a Markdown table."""
        chosen = [COLUMNS[name] for name in columns]
        *rows, total = self.table(columns, level)
        lines = [
            ["module", *(column.title for column in chosen)],
            ["---", *("--:" if c.figure else "---" for c in chosen)],
            *([f"`{path}`", *cells] for path, *cells in rows),
            total,
        ]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        head = ["module", *(COLUMNS[name].title for name in DEFAULT_COLUMNS)]
        return html_table(head, self.table(DEFAULT_COLUMNS, 2))


@without_garbage_collection()
def summarize(graph: Graph, batch: int = 1, *, symbolic: bool = False) -> Summary:
    """Summarize a network. The values of a module are sums over its operators; its peak is the maximum.

    Args:
        graph: The network.
        batch: The number of images; parameters and receptive fields do not depend on it.
        symbolic: Return shapes, operations, activations and saved memory as functions of the height and width of the
            image (`symbolic.Amount`); the other values are for the declared size.
    """
    if not symbolic:
        return _summarize(graph, graph, batch)
    try:
        _limit_terms(graph)
        return _summarize(graph, graph.symbolic, batch)
    except LengthsLimit:
        raise _too_complex(graph, f"a count is the maximum of more than {MAX_AMOUNTS} formulas") from None


def _limit_terms(graph: Graph) -> None:
    """Check the number of different terms of the sizes of a network, and of all terms of its flat features.

    Raises:
        CnnspecError: There are more than the limit.
    """
    amounts = [size for node in graph.symbolic.nodes for size in node.shape if isinstance(size, Amount)]
    if len({term for amount in amounts for term in amount.terms}) > MAX_SIZES:
        raise _too_complex(graph, f"the sizes of the maps are more than {MAX_SIZES:,} functions of the image size")
    if sum(len(amount.terms) - 1 for amount in amounts) > MAX_FLAT_TERMS:
        raise _too_complex(graph, f"the formulas of flat features have more than {MAX_FLAT_TERMS:,} terms")


def _too_complex(graph: Graph, what: str) -> CnnspecError:
    size = "x".join(map(str, graph.input_shape[1:] if graph.images else graph.input_shape))
    help = f"summarize one image size at a time: write `--at {size}` instead of `--symbolic`"
    python = f'in Python, `summarize(resize(network, "{size}"))`'
    return failure("E0405", f"the summary cannot be symbolic: {what}", help=f"{help} ({python})")


def _summarize(graph: Graph, shown: Graph, batch: int) -> Summary:
    """Summarize a network, whose shapes in `shown` may be symbolic."""
    counts, live, field = count(shown), live_memory(graph), fields(graph)
    center_fields: list[tuple[int, int] | None] = [None] * len(graph.nodes)
    if max(graph.input_shape) <= MAX_SIDE and (found := masks(graph)):
        center_fields = [*map(center_extent, found)]
    kinds: dict[str, str] = dict(graph.scopes)
    sums: dict[str, list[int]] = {"": [0] * 7}
    last: dict[str, int] = {}
    elements = [shapes.numel(node.shape) for node in shown.nodes]
    layers = enumerate(shown.nodes[len(graph.images) :], len(graph.images))
    for index, node in layers:
        if node.op.owns_module:
            kinds[node.path] = node.op.name
        place = node.place
        if place not in sums:
            _enter(place, sums)
        _add(sums[place], (*_node_values(node, index, counts, elements[index], batch), live[index].at(batch)))
        last[place] = index
    for path in reversed([*sums][1:]):  # a module comes before its submodules
        parent = path.rpartition(".")[0]
        _add(sums[parent], sums[path])
        last[parent] = max(last.get(parent, 0), last[path])
    last[""] = graph.output
    ranks: dict[tuple[Length, Length], int] = {}
    for amount in (size for node, own in zip(shown.nodes, elements, strict=True) for size in (node.macs, own)):
        if isinstance(amount, Amount):
            for term in amount.terms:
                ranks.setdefault(term, len(ranks))

    def ordered(value: int) -> int:
        return cast(int, value.ordered(ranks)) if isinstance(value, Amount) else value

    def kind_of(path: str) -> str:
        module, number, rest = path.partition("#")
        if not number:
            return kinds.get(path, "")
        inside = rest.lstrip("0123456789")
        head = shown.nodes[last[path]].aux
        parts = (kinds.get(module + inside, ""), "shared", f"aux {head}" if head and not inside else "")
        return ", ".join(filter(None, parts))

    def row(path: str, values: Sequence[int]) -> Row:
        values = [*map(ordered, values)]
        index, level = last[path], path.count(".") + 1 if path else 0
        parameters, macs, flops, backward_flops, activations, saved, peak = values
        return Row(
            *(path, kind_of(path), level, shown.nodes[index].shape),
            *(parameters, macs, flops, backward_flops, activations, saved, peak),
            *(field[index], center_fields[index], graph.reductions[index], graph.depths[index]),
        )

    rows = [row(path, values) for path, values in sums.items()]
    total = replace(rows[0], saved=ordered(counts.saved_total.at(batch)))
    outputs: list[Row] = []
    for name, index in graph.taps.items():
        last[name] = index
        outputs.append(replace(row(name, [0] * 7), kind="output", level=1))
    if outputs:
        total = replace(
            total,
            field=_largest([one.field for one in outputs]),
            center_field=_largest([one.center_field for one in outputs]),
            stride=_largest([one.stride for one in outputs]),
            depth=graph.depth,
        )
    return Summary(
        *(graph.name, batch, shown.input_shape, shown.images, shown.output_shape, tuple(rows[1:]), total),
        ordered(batch * counts.training_flops),
        graph.input_shape if shown is not graph else None,
        tuple(outputs),
    )


def _largest(pairs: Sequence[Any]) -> Any:
    """Return the largest height and width of several; None is the largest of all."""
    if None in pairs:
        return None
    return tuple(None if None in side else max(side) for side in zip(*pairs, strict=True))


def _enter(path: str, sums: dict[str, list[int]]) -> None:
    """Start the totals of a module and of the modules that contain it, from the outside in."""
    missing: list[str] = []
    while path not in sums:
        missing.append(path)
        path = path.rpartition(".")[0]
    sums.update((path, [0] * 7) for path in reversed(missing))


def _add(total: list[int], values: Sequence[int]) -> None:
    """Add the values of a part to a total; the last one is a peak, of which the maximum counts."""
    for place, value in enumerate(values[:-1]):
        total[place] += value
    total[-1] = max(total[-1], values[-1])


def _node_values(node: Node, index: int, counts: Counts, elements: int, batch: int) -> tuple[int, ...]:
    """Return parameters, MACs, FLOPs, backward FLOPs, activations and saved memory of a node."""
    inference = node.aux is None
    return (
        node.parameter_count,
        batch * node.macs if inference else 0,
        batch * counts.flops[index] if inference else 0,
        batch * counts.backward_flops[index],
        batch * FLOAT * elements,
        counts.saved[index].at(batch),
    )


# --- the largest batch ---------------------------------------------------------------------------

_UNITS = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}


def parse_bytes(text: str) -> int:
    """Parse an amount of memory, `16GiB` or `500 MB`, and return bytes.

    Raises:
        ValueError: The text is not an amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]+)\s*", text, re.ASCII)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is None or match.group(2).lower() not in units:
        raise ValueError(f"invalid amount of memory `{text}`: expected a value such as 16GiB or 500MB")
    return int(Fraction(match.group(1)) * units[match.group(2).lower()])


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """The largest batch that trains in some memory, and its use of that memory in bytes of float32.

    Attributes:
        memory: The available memory.
        batch: The number of images. If it is 0, not even one image fits, and the other values are for one image.
        weights: Learned weights, and the running statistics of normalization.
        gradients: Gradients of the weights.
        optimizer: The state of the optimizer, and the average of the weights if the recipe has one.
        activations: Activations and their gradients at the peak.
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
        """Return the values as plain data."""
        names = ("memory", "batch", "weights", "gradients", "optimizer", "activations", "total")
        return {name: getattr(self, name) for name in names}

    def text(self) -> str:
        """Return the answer as a sentence."""
        parts = ", ".join(
            f"{name} {in_bytes(getattr(self, name))}" for name in ("weights", "gradients", "optimizer", "activations")
        )
        if self.batch == 0:
            return f"a batch of 1 does not fit into {in_bytes(self.memory)}: it needs {in_bytes(self.total)} ({parts})"
        needs = f"{self.batch:,}, which needs {in_bytes(self.total)} ({parts})"
        return f"largest training batch that fits into {in_bytes(self.memory)}: {needs}"


def largest_batch(graph: Graph, memory: int) -> LargestBatch:
    """Return the largest batch that trains in `memory` bytes.

    Only float32 tensors are counted, not kernel workspaces, the loss, prefetched images, or torch itself.
    """
    needs = training_memory(graph)
    batch = needs.largest_batch(memory)
    activations = needs.activations(max(batch, 1))
    return LargestBatch(memory, batch, needs.weights, needs.gradients, needs.optimizer, activations)
