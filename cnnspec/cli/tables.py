"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnspec.analysis.summary import COLUMNS, DECLARED, DEFAULT_COLUMNS, Summary
from cnnspec.cli.output import make_console
from cnnspec.shapes import text


def print_table(table: Any, title: str | None = None) -> None:
    """Print a table without truncating it: on a narrow terminal, cells wrap between words."""
    console = make_console()
    if console.is_terminal:
        for column in table.columns:
            words = [word for cell in (column.header, *column.cells) for word in str(cell).split()]
            column.no_wrap, column.overflow, column.min_width = False, "fold", max(map(len, words), default=0)
    else:
        console.width = console.measure(table, options=console.options.update(width=100_000)).maximum
    if title is not None:
        console.print(title, style="table.title", soft_wrap=True)
    console.print(table, crop=False)


def print_summary(done: Summary, level: int, columns: Sequence[str] = DEFAULT_COLUMNS) -> None:
    """Print the modules of a network down to a level, and the total."""
    from rich import box
    from rich.table import Table

    chosen = [COLUMNS[name] for name in columns]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("module", no_wrap=True)
    for column in chosen:
        table.add_column(column.title, justify="right" if column.figure else "left", no_wrap=True)
    for row in done.upto(level):
        indent = "  " * (row.level - 1)
        table.add_row(indent + row.path.rpartition(".")[2], *(column.cell(row) for column in chosen))
    table.add_section()
    table.add_row("total", *(column.cell(done.total) for column in chosen))
    print_table(table, f"{done.name}: {text(done.input_shape)} -> {text(done.output_shape)}")
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
    print(notes)
