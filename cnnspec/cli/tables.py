"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from cnnspec.analysis.summary import COLUMNS, DECLARED, DEFAULT_COLUMNS, Summary, show_cell
from cnnspec.cli.output import make_console
from cnnspec.diagnostics import echo, printable_line
from cnnspec.limits import MAX_CELL
from cnnspec.shapes import outputs_text, text

Justify = Literal["left", "right"]
_WRAPPED = 1_000
"""Rows of a summary up to which its cells wrap on a narrow terminal; `rich` takes a millisecond per row."""


def print_table(
    columns: Sequence[tuple[str, Justify]],
    rows: Iterable[Sequence[str] | None],
    title: str | None = None,
    *,
    header: bool = True,
    console: Any = None,
) -> None:
    """Print a table without truncating it: on a narrow terminal, cells wrap between words.

    Args:
        columns: The title and alignment of each column.
        rows: The cells of each row. None draws a line.
        title: The text above the table.
        header: Whether to show the titles of the columns.
        console: The console, by default the standard output.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console or make_console()
    table = Table(box=box.SIMPLE_HEAD, show_header=header)
    for name, justify in columns:
        table.add_column(Text(printable_line(name)), justify=justify, no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*(Text(printable_line(cell)) for cell in row))
    if console.is_terminal:
        for column in table.columns:
            words = [word for cell in (column.header, *column.cells) for word in str(cell).split()]
            column.no_wrap, column.overflow, column.min_width = False, "fold", max(map(len, words), default=0)
    else:
        console.width = console.measure(table, options=console.options.update(width=100_000)).maximum
    if title is not None:
        console.print(printable_line(title), style="table.title", soft_wrap=True)
    console.print(table, crop=False)


def print_summary(done: Summary, level: int, columns: Sequence[str] = DEFAULT_COLUMNS) -> None:
    """Print the modules of a network down to a level, and the total."""
    chosen = [COLUMNS[name] for name in columns]
    figures = [False, *(column.figure for column in chosen)]
    head = ["module", *(column.title for column in chosen)]
    modules = done.upto(level)
    *cells, total = done.table(columns, level, lambda name, row: _short(show_cell(name, row)))
    rows, outputs = cells[: len(modules)], cells[len(modules) :]
    for module, line in zip(modules, rows, strict=True):
        line[0] = "  " * (module.level - 1) + module.path.rpartition(".")[2]
    returned = outputs_text(done.output_shape, {row.path: row.shape for row in done.outputs})
    title = f"{done.name}: {outputs_text(done.input_shape, done.images)} -> {returned}"
    if sys.stdout.isatty() and len(rows) <= _WRAPPED:
        justified: list[Justify] = ["right" if figure else "left" for figure in figures]
        parts = [*rows, *([None, *outputs] if outputs else []), None, total]
        print_table(list(zip(head, justified, strict=True)), parts, title)
    else:
        echo(title, *_lines(head, rows, outputs, total, figures))
    images = "one image" if done.batch == 1 else f"a batch of {done.batch:,} images"
    notes = f"depth {done.total.depth}; values for {images} in float32"
    if "activations" in columns:
        notes += "; activations: outputs of all operators"
    if "saved" in columns:
        notes += "; saved: memory of tensors saved for the backward pass"
    if "peak" in columns:
        notes += "; peak: memory of live tensors during inference"
    if done.declared and (fixed := [COLUMNS[name].title for name in columns if name in DECLARED]):
        notes += f"; {', '.join(fixed)}: at the declared size {text(done.declared)}"
    echo(notes)


def _short(cell: str) -> str:
    """Cut a cell to the limit: every row is as wide as its longest cell."""
    return cell if len(cell) <= MAX_CELL else f"{cell[: MAX_CELL - 3]}..."


def _lines(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    outputs: Sequence[Sequence[str]],
    total: Sequence[str],
    figures: Sequence[bool],
) -> list[str]:
    """Lay out a table as `rich` does with `box.SIMPLE_HEAD`, without wrapping its cells."""
    widths = [max(map(len, column)) for column in zip(head, *rows, *outputs, total, strict=True)]
    places = "".join(f"  {{:{'>' if figure else '<'}{width}}} " for figure, width in zip(figures, widths, strict=True))
    rule = " " + "─" * (sum(widths) + 3 * len(widths) - 1)
    body = [places.format(*row).rstrip() for row in rows]
    body += ["", *(places.format(*row).rstrip() for row in outputs)] if outputs else []
    return ["", places.format(*head).rstrip(), rule, *body, "", places.format(*total).rstrip(), ""]
