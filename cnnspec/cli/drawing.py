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
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PATH", help="File to write: .svg, .png, .pdf, .mmd or .dot."),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Levels of nested modules to draw; deeper ones are a single box.", min=1)
    ] = None,
    block: Annotated[str | None, typer.Option(metavar="NAME", help="Draw only this block.")] = None,
    theme: Annotated[str, typer.Option(help="Colors: light, dark, or auto, which follows the reader.")] = "light",
    paper: Annotated[bool, typer.Option("--paper", help="Draw in the style of papers, one column wide.")] = False,
    at: AtSize = None,
    sets: Settings = None,
    huge: AllowHuge = False,
) -> None:
    """Draw a network as a diagram."""
    from cnnspec.backends import diagram

    one_of("--theme", theme, diagram.THEMES)
    suffix = diagram.format_of(output.name) if output is not None else ".svg"
    graph = compile_at(file, sets, at, huge)
    path = output or Path(f"{graph.name if re.fullmatch(r'[A-Za-z0-9_-]+', graph.name) else 'network'}{suffix}")
    write_file(path, diagram.draw(graph, suffix, depth=depth, block=block, theme=theme, paper=paper))
    echo(str(path))
