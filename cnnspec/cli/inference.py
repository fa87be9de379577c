"""The command `predict`, which classifies images with a trained network."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnspec.cli.options import STDIN, AllowHuge, Match, Offline, Settings, settings
from cnnspec.cli.output import escape_json, importing, make_console
from cnnspec.diagnostics import CnnspecError, counted, echo, printable_line

if TYPE_CHECKING:
    from cnnspec.inference import Prediction

Write = Callable[["Prediction"], None]
_PROBABILITY = 11
"""The width of the column `probability`."""
_MIN_FILE, _MAX_CLASS = 20, 40
"""The least width of the column `file` and the greatest of the column `class`."""


def predict(
    source: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, a weights file, or torchvision:DEFAULT with --spec.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images, folders, or patterns; `-` reads paths from stdin."),
    ],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Most probable classes to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON Lines, one object per image.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one row per image and class.")] = False,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images per batch (default: up to 250).")
    ] = None,
    tta: Annotated[
        bool | None,
        typer.Option(
            "--tta/--no-tta", help="Average over each image and its mirror image (default: as in the recipe)."
        ),
    ] = None,
    spec: Annotated[
        str | None, typer.Option(metavar="FILE", help="The network, for weights that do not contain it.")
    ] = None,
    match: Match = "name",
    sets: Settings = None,
    huge: AllowHuge = False,
    offline: Offline = False,
) -> int:
    """Classify images with a trained network; exit with 1 if an image cannot be read."""
    if as_json and as_csv:
        raise typer.BadParameter("`--json` and `--csv` cannot be used together", param_hint="--csv")
    if sets and spec is None:
        raise typer.BadParameter("has no effect without --spec", param_hint="--set")
    with importing():
        from cnnspec.inference import load_run

    network = load_run(source, spec=spec, match=match, offline=offline, allow_huge=huge, **settings(sets))
    search = _Search()
    paths: Iterable[str] = search.paths(images)
    if STDIN not in images:
        paths = list(paths)
        echo(*(f"note: {note}" for note in search.notes), file=sys.stderr)
    write = _json_writer(top) if as_json else _csv_writer(top) if as_csv else _table_writer(top, network.classes)
    done = 0
    with ExitStack() as stack:
        advance = _progress(stack, len(paths) if isinstance(paths, list) else None)
        for prediction in network.stream(paths, batch=batch, tta=tta, failed=search.fail):
            write(prediction)
            done += 1
            advance(done + search.failed)
    if search.failed:
        echo(f"{search.failed} of {counted(done + search.failed, 'image')} could not be read", file=sys.stderr)
    return int(search.failed > 0)


class _Search:
    """The search for the images that the arguments of the command mean.

    Attributes:
        failed: The number of images and folders that could not be read.
        notes: What was skipped.
    """

    def __init__(self) -> None:
        self.failed = 0
        self.notes: list[str] = []

    def fail(self, name: str, error: CnnspecError) -> None:
        """Report an image or a folder that cannot be read."""
        self.failed += 1
        first = error.diagnostics[0]
        echo(f"{name}: {': '.join([first.message, *first.notes[:1]])}", file=sys.stderr)

    def paths(self, arguments: Sequence[str]) -> Iterator[str]:
        """Yield the paths of images, with those of folders in order."""
        for argument in arguments:
            if argument == STDIN:
                for line in sys.stdin.buffer:
                    if path := os.fsdecode(line).rstrip("\r\n"):
                        yield from self._expand(path)
            elif glob.has_magic(argument) and not os.path.lexists(argument):
                yield from self._matches(argument)
            else:
                yield from self._expand(argument)

    def _matches(self, pattern: str) -> Iterator[str]:
        from cnnspec.training.data.folders import EXTENSIONS

        found = [path for path in sorted(glob.glob(pattern, recursive=True)) if not Path(path).name.startswith(".")]
        if not found:
            yield pattern  # reading it reports that it does not exist
        for path in found:
            if os.path.isdir(path):
                yield from () if "**" in pattern else self._expand(path)  # `**` finds the files itself
            elif Path(path).suffix.lower() in EXTENSIONS:
                yield path
            else:
                self.notes.append(f"skipped `{path}`, which is not an image")

    def _expand(self, path: str) -> Iterator[str]:
        from cnnspec.training.data.folders import images_below

        if not os.path.isdir(path):
            yield path
            return
        try:
            found, notes = images_below(Path(path))
        except CnnspecError as error:
            self.fail(path, error)
            return
        self.notes += notes
        yield from map(str, found)


def _progress(stack: ExitStack, total: int | None) -> Callable[[int], None]:
    """Show a bar on stderr if that is a terminal, and return the function that sets it."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        return lambda done: None
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("predicting"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn()
    both = sys.stdout.isatty()  # then lines are printed above the bar
    bar = stack.enter_context(
        Progress(*columns, console=console, transient=True, redirect_stdout=both, redirect_stderr=True)
    )
    task = bar.add_task("", total=total)
    return lambda done: bar.update(task, completed=done)


# --- output --------------------------------------------------------------------------------------


def _json_writer(top: int) -> Write:
    def write(prediction: Prediction) -> None:
        found = [{"class": name, "probability": value} for name, value in prediction.top(top)]
        sys.stdout.write(escape_json(json.dumps({"file": prediction.file, "predictions": found})) + "\n")

    return write


def _csv_writer(top: int) -> Write:
    def write(prediction: Prediction) -> None:
        rows = [[prediction.file, rank, *row] for rank, row in enumerate(prediction.top(top), 1)]
        sys.stdout.write(_csv_lines(rows))

    sys.stdout.write(_csv_lines([["file", "rank", "class", "probability"]]))
    return write


def _csv_lines(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _table_writer(top: int, classes: Sequence[str]) -> Write:
    """Return a function that prints rows as soon as they are known. The widths of the columns do not depend on them."""
    from rich.cells import cell_len, chop_cells, set_cell_size

    width = make_console().width if sys.stdout.isatty() else 80
    middle = min(max(5, *map(cell_len, map(printable_line, classes))), _MAX_CLASS, max(5, width - 40))
    left = max(_MIN_FILE, width - middle - _PROBABILITY - 8)

    def fit(text: str, cells: int, *, keep_end: bool = False) -> str:
        text = printable_line(text)
        if cell_len(text) > cells:
            text = (
                f"...{chop_cells(text[::-1], cells - 3)[0][::-1]}"
                if keep_end
                else f"{chop_cells(text, cells - 3)[0]}..."
            )
        return set_cell_size(text, cells)

    def line(file: str, name: str, value: str) -> None:
        echo(f"  {fit(file, left, keep_end=True)}   {fit(name, middle)}   {value:>{_PROBABILITY}}")

    line("file", "class", "probability")
    echo(" " + "─" * (left + middle + _PROBABILITY + 7))

    def write(prediction: Prediction) -> None:
        for rank, (name, value) in enumerate(prediction.top(top)):
            line("" if rank else prediction.file or "", name, f"{value:.2%}")

    return write
