"""The command `watch`, which checks, summarizes and draws a spec whenever its files change."""

from __future__ import annotations

import hashlib
import stat
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from cnnspec.analysis.summary import summarize
from cnnspec.api import resize
from cnnspec.backends import diagram
from cnnspec.cli.formats import Checked
from cnnspec.cli.options import STDIN, AllowHuge, AtSize, Settings, SpecFile, settings
from cnnspec.cli.output import make_console, print_diagnostics, write_file
from cnnspec.cli.specs import print_result
from cnnspec.cli.tables import print_summary
from cnnspec.compiler import Compilation, compile_file, locate
from cnnspec.diagnostics import CnnspecError, Reporter, echo
from cnnspec.limits import MAX_FILE_BYTES
from cnnspec.semantics.loader import read_text

INTERVAL = 0.2
"""Seconds between two looks at the files."""
SETTLING = 0.05
"""Seconds for which the files must stay as they are after a change, because editors write in several steps."""


def watch(
    file: SpecFile,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PATH", help="Also draw the network to this file, as `draw` does."),
    ] = None,
    depth: Annotated[int, typer.Option(help="Levels of nested modules to show in the summary.", min=1)] = 2,
    at: AtSize = None,
    sets: Settings = None,
    huge: AllowHuge = False,
) -> int:
    """Check a spec and show its summary whenever one of its files changes, until Ctrl-C."""
    if file == STDIN:
        raise typer.BadParameter("cannot watch the standard input", param_hint="FILE")
    given = settings(sets)
    suffix = None if output is None else diagram.format_of(output.name)
    path, name = locate(file)
    reporter = Reporter()
    if read_text(path, name, reporter) is None and not path.is_file():
        raise CnnspecError(reporter.sorted())
    console = make_console()
    known: dict[Path, object] = {}
    try:
        while True:
            done, known = _compile(file, known, given, allow_huge=huge)
            print_result(Checked(file, done.diagnostics, done.graph), "full")
            try:
                if done.graph is not None:
                    graph = done.graph if at is None else resize(done.graph, at)
                    print_summary(summarize(graph), depth)
                    if output is not None and suffix is not None:
                        write_file(output, diagram.draw(graph, suffix))
                        echo(f"drawn to {output}")
            except CnnspecError as error:
                sys.stdout.flush()
                print_diagnostics(error.diagnostics)
            sys.stdout.flush()
            _await_change(known)
            if console.is_terminal:
                console.clear()
            else:
                echo("", f"{file}: changed")
    except KeyboardInterrupt:
        return 0


def _compile(
    file: str, paths: Iterable[Path], given: dict[str, str], *, allow_huge: bool
) -> tuple[Compilation, dict[Path, object]]:
    """Compile a spec, and return the states that its files had before.

    Args:
        file: The spec.
        paths: Its files as far as they are known. If it uses others, it is compiled again, so that no change of them
            is missed.
        given: Values for its parameters.
        allow_huge: Allow more parameters and larger tensors than the limits.
    """
    own = {Path(file), locate(file)[0]}
    before = _states({*own, *paths})
    while True:
        done = compile_file(file, given, allow_huge=allow_huge)
        used = {*own, *done.files}
        if used <= before.keys():
            return done, {path: before[path] for path in used}
        before = _states(used)


def _states(paths: Iterable[Path]) -> dict[Path, object]:
    return {path: _state(path) for path in paths}


def _state(path: Path) -> object:
    """Return what changes with a file: a hash of its contents, or the reason why it cannot be read."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return mode
        with path.open("rb") as file:
            return hashlib.sha256(file.read(MAX_FILE_BYTES + 1)).digest()
    except OSError as error:
        return error.errno


def _await_change(known: dict[Path, object]) -> None:
    """Return when files have changed and have then stayed as they are for a moment."""
    previous = known
    while True:
        time.sleep(INTERVAL if previous == known else SETTLING)
        now = _states(known)
        if now == previous != known:
            return
        previous = now
