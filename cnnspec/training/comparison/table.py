"""Summarize the runs of each network, and format them as a table in four formats."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from cnnspec.diagnostics import html_table, printable, printable_line
from cnnspec.training.runs.listing import run_table

FORMATS = ("text", "markdown", "csv", "json")
NOT_AVERAGED = ("label", "seeds", "parameters", "macs")
"""Columns that are not means over seeds."""


@dataclass(frozen=True)
class Statistic:
    """The mean of a metric over seeds.

    Attributes:
        std: The sample standard deviation (n - 1), or None if there is one value.
        count: The number of values.
    """

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic | None:
        """Summarize the values that are not None. Return None if there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Format the mean and deviation: `91.06 ± 0.12`."""
        mean = f"{self.mean * scale:,.{digits}f}"
        return mean if self.std is None else f"{mean} ± {self.std * scale:,.{digits}f}"

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "n": self.count}


@dataclass(frozen=True)
class Run:
    """A run as read from its folder.

    Attributes:
        seed: The seed.
        folder: The folder relative to the comparison, or None before the run starts.
        result: The contents of `result.json`.
        epochs: The rows of the journal at the ends of epochs.
    """

    seed: int
    folder: str | None
    result: dict[str, Any] = field(repr=False)
    epochs: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    @property
    def state(self) -> str:
        """`finished`, `failed`, or `unfinished`."""
        state = self.result.get("state")
        return state if state in ("finished", "failed") else "unfinished"

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def seconds_per_epoch(self) -> float | None:
        """The median over all epochs, including validation."""
        ends = [0.0, *self.result.get("epoch_seconds", ())]
        if len(ends) > 1:
            return statistics.median(after - before for before, after in pairwise(ends))
        seconds, epochs = self.result.get("seconds"), self.result.get("epochs")
        return seconds / epochs if seconds and epochs else None  # a run of an older version

    def seconds_to(self, target: float) -> float | None:
        """Return the training time to the end of the first epoch that reaches the target validation accuracy, or None.

        Without validation images, the test accuracy at the end of the run is used.
        """
        ends = self.result.get("epoch_seconds") or []
        validated = False
        for row, seconds in zip(self.epochs, ends, strict=False):
            validated |= "val_acc" in row
            if row.get("val_acc", -1.0) >= target:
                return seconds
        reached = not validated and (self.result.get("test_acc") or 0.0) >= target
        return ends[-1] if ends and reached else None

    def to_json(self) -> dict[str, Any]:
        names = ("val_acc", "test_acc", "val_loss", "test_loss", "best_epoch", "seconds", "error")
        return {
            "seed": self.seed,
            "folder": self.folder,
            "state": self.state,
            **{name: self.result.get(name) for name in names},
            "epochs": self.result.get("epochs"),
            "seconds_per_epoch": self.seconds_per_epoch,
        }

    def _repr_html_(self) -> str:
        """Return the run as a table for notebooks."""
        return run_table(self.result, self.folder or "not started", self.state)


@dataclass(frozen=True)
class Row:
    """A network in a comparison, with its runs.

    Attributes:
        label: The unique name in the comparison.
        network: The name of the network.
        settings: The values from the grid.
        key: A hash of structure and recipe.
        runs: The runs, by seed.
    """

    label: str
    network: str
    settings: dict[str, str]
    key: str
    parameters: int
    macs: int
    runs: tuple[Run, ...]
    target: float | None = None

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.finished]

    @property
    def failed(self) -> list[Run]:
        return [run for run in self.runs if run.state == "failed"]

    def statistic(self, name: str) -> Statistic | None:
        """Summarize `val_acc`, `test_acc`, `val_loss` or `test_loss` over the finished runs."""
        return Statistic.of(run.result.get(name) for run in self.finished)

    @property
    def seconds_per_epoch(self) -> Statistic | None:
        return Statistic.of(run.seconds_per_epoch for run in self.finished)

    @property
    def seconds_to_target(self) -> Statistic | None:
        """The time over the runs that reach the target, or None."""
        if self.target is None:
            return None
        return Statistic.of(run.seconds_to(self.target) for run in self.finished)

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data. Accuracies are fractions, times are in seconds."""
        by_name = {
            "val_acc": self.statistic("val_acc"),
            "test_acc": self.statistic("test_acc"),
            "seconds_per_epoch": self.seconds_per_epoch,
        }
        if self.target is not None:
            by_name["seconds_to_target"] = self.seconds_to_target
        return {
            "label": self.label,
            "network": self.network,
            "settings": self.settings,
            "key": self.key,
            "parameters": self.parameters,
            "macs": self.macs,
            **{name: statistic and statistic.to_json() for name, statistic in by_name.items()},
            "runs": [run.to_json() for run in self.runs],
        }


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: The name for programs.
        title: The title for people.
        cell: Formats the cell of a row.
        value: Returns the value of a row, plain or a `Statistic`.
        number: Whether the values are numbers.
    """

    name: str
    title: str
    cell: Callable[[Row], str]
    value: Callable[[Row], Any]
    number: bool = True


def _accuracy(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        statistic = row.statistic(name)
        return f"{statistic.text(2, 100)}%" if statistic else "-"

    return cell


def _seeds(row: Row) -> str:
    done, all_ = len(row.finished), len(row.runs)
    return str(done) if done == all_ else f"{done} of {all_}" + (f", {len(row.failed)} failed" if row.failed else "")


def _to_target(row: Row) -> str:
    statistic = row.seconds_to_target
    if statistic is None:
        return "not reached" if row.finished else "-"
    return statistic.text(1) + (
        f" ({statistic.count} of {len(row.finished)})" if statistic.count < len(row.finished) else ""
    )


def _per_epoch(row: Row) -> str:
    return statistic.text(1 if statistic.mean >= 10 else 2) if (statistic := row.seconds_per_epoch) else "-"


def columns(target: float | None) -> list[Column]:
    """Return the columns of the table."""
    found = [
        Column("label", "network", lambda row: row.label, lambda row: row.label, number=False),
        Column("seeds", "seeds", _seeds, lambda row: len(row.finished)),
        Column("val_acc", "val acc", _accuracy("val_acc"), lambda row: row.statistic("val_acc")),
        Column("test_acc", "test acc", _accuracy("test_acc"), lambda row: row.statistic("test_acc")),
        Column("parameters", "parameters", lambda row: f"{row.parameters:,}", lambda row: row.parameters),
        Column("macs", "MMACs", lambda row: f"{row.macs / 1e6:,.2f}", lambda row: row.macs),
        Column("seconds_per_epoch", "s/epoch", _per_epoch, lambda row: row.seconds_per_epoch),
    ]
    if target is not None:
        title = f"s to {target * 100:g}%"
        found.append(Column("seconds_to_target", title, _to_target, lambda row: row.seconds_to_target))
    return found


def format_text(rows: Sequence[Row], target: float | None, width: int = 120) -> str:
    """Format the table as text for a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    shown = columns(target)
    for column in shown:
        table.add_column(column.title, justify="right" if column.number else "left", no_wrap=column.number)
    for row in rows:
        table.add_row(*(Text(printable_line(column.cell(row))) for column in shown))
    text = io.StringIO()
    Console(force_jupyter=False, file=text, width=width, highlight=False).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([*(line for line in lines if line), *(printable_line(note.text) for note in notes(rows))]) + "\n"


class Note(NamedTuple):
    """A line below the table."""

    text: str
    is_error: bool = False


def notes(rows: Sequence[Row]) -> list[Note]:
    """Return the notes below the table: the meaning of the deviation, and failed or unfinished runs."""
    found: list[Note] = []
    if any(len(row.finished) > 1 for row in rows):
        found.append(Note("mean ± standard deviation over seeds (n - 1)"))
    for row in rows:
        for run in row.failed:
            error = run.result.get("error") or {}
            reason = ": ".join(str(error[name]) for name in ("code", "message") if error.get(name))
            found.append(
                Note(f"{row.label}, seed {run.seed} failed" + (f": {reason}" if reason else ""), is_error=True)
            )
        waiting = [str(run.seed) for run in row.runs if run.state == "unfinished"]
        if waiting:
            found.append(Note(f"{row.label} is not finished for seed {', '.join(waiting)}"))
    return found


def format_markdown(rows: Sequence[Row], target: float | None) -> str:
    """Format the table in Markdown."""
    shown = columns(target)
    lines = [[column.title for column in shown], ["--:" if column.number else "---" for column in shown]]
    lines += [[_escape_markdown(column.cell(row)) for column in shown] for row in rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "".join(f"\n{_escape_markdown(note.text)}\n" for note in notes(rows))


def format_html(rows: Sequence[Row], target: float | None) -> str:
    """Format the table for notebooks."""
    from html import escape

    shown = columns(target)
    table = html_table((column.title for column in shown), ([column.cell(row) for column in shown] for row in rows))
    return table + "".join(f"<p>{escape(printable(note.text))}</p>" for note in notes(rows))


def _escape_markdown(text: str) -> str:
    """Escape a text for Markdown."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in printable(text))


def format_csv(rows: Sequence[Row], target: float | None) -> str:
    """Format the table as CSV: plain numbers, accuracies as fractions, missing values empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head: list[str] = []
    lines: list[list[Any]] = [[] for _ in rows]
    for column in columns(target):
        if column.name in NOT_AVERAGED:
            head.append(column.name)
        else:
            head += [f"{column.name}_{part}" for part in ("mean", "std", "n")]
        for line, row in zip(lines, rows, strict=True):
            value = column.value(row)
            if column.name in NOT_AVERAGED:
                line.append(printable_line(value) if isinstance(value, str) else value)
            else:
                line += [value.mean, value.std, value.count] if value else [None, None, 0]
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue()
