"""The command `draw`, which draws a network or the difference of two networks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cnnspec.cli.options import AllowHuge, AtSize, Settings, compile_at, one_of
from cnnspec.cli.output import write_file
from cnnspec.diagnostics import echo


def draw(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A spec file, or the name of a shipped spec.")],
    other: Annotated[str | None, typer.Argument(metavar="OTHER", help="A second spec: draw the differences.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="PATH", help="File to write: extension .svg, .html, .png, .pdf, .mmd or .dot."
        ),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Levels of nested modules to draw; deeper ones are a single box.", min=1)
    ] = None,
    block: Annotated[str | None, typer.Option(metavar="NAME", help="Draw only this block.")] = None,
    theme: Annotated[
        str | None, typer.Option(help="Colors: light, dark, or auto, which follows the reader (default in HTML).")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Draw in the style of papers, one column wide.")] = False,
    direction: Annotated[
        str, typer.Option(help="TB (from top to bottom) or LR (from left to right), as in Graphviz and Mermaid.")
    ] = "TB",
    at: AtSize = None,
    sets: Settings = None,
    huge: AllowHuge = False,
) -> None:
    """Draw a network as a diagram, or the difference of two networks."""
    from cnnspec.backends import diagram

    if theme is not None:
        one_of("--theme", theme, diagram.THEMES)
    direction = direction.upper()
    one_of("--direction", direction, diagram.DIRECTIONS)
    suffix = diagram.format_of(output.name) if output is not None else ".svg"
    graphs = [compile_at(name, sets, at, huge) for name in (file, other) if name is not None]
    stem = "-".join(graph.name if re.fullmatch(r"[A-Za-z0-9_-]+", graph.name) else "network" for graph in graphs)
    path = output or Path(f"{stem[:100]}{suffix}")
    second = graphs[1] if other is not None else None
    data = diagram.draw(
        graphs[0], suffix, other=second, depth=depth, block=block, theme=theme, paper=paper, direction=direction
    )
    write_file(path, data)
    echo(str(path))
