"""How tables are printed."""

from __future__ import annotations

from collections.abc import Sequence

from cnnspec.cli.app import make_console
from cnnspec.shapes import text
from cnnspec.summary import COLUMNS, DEFAULT_COLUMNS, Summary


def print_summary(done: Summary, level: int, columns: Sequence[str] = DEFAULT_COLUMNS) -> None:
    """The modules of a network down to a level, with the total, on a terminal."""
    from rich import box
    from rich.table import Table

    chosen = [COLUMNS[name] for name in columns]
    title = f"{done.name}: {text(done.input_shape)} -> {text(done.output_shape)}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("module", no_wrap=True, overflow="ellipsis")
    for column in chosen:
        table.add_column(column.title, justify="right" if column.figure else "left", no_wrap=True, overflow="ellipsis")
    for row in done.upto(level):
        indent = "  " * (row.level - 1)
        table.add_row(indent + row.path.rpartition(".")[2], *(column.cell(row) for column in chosen))
    table.add_section()
    table.add_row("total", *(column.cell(done.total) for column in chosen))
    # A table that was asked for by its columns is shown whole, however wide it is.
    make_console(wide=done.symbolic or tuple(columns) != DEFAULT_COLUMNS).print(table)
    images = "one image" if done.batch == 1 else f"a batch of {done.batch:,} images"
    notes = f"depth {done.total.depth}; figures for {images} in float32"
    if "activations" in columns:
        notes += "; activations: outputs of all operators"
    if "kept" in columns:
        notes += "; kept: what training keeps for the backward pass"
    if "peak" in columns:
        notes += "; peak: all that lives at a time in inference"
    print(notes)
