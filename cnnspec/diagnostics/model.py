"""Source text, spans, and diagnostics as data, with their plain-text renderer.

A `Diagnostic` says what is wrong, where, and what to do about it. Everything that can be wrong with a
spec ends as one of these; `CnnspecError` carries them where a function cannot return them.
"""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from string import digits
from typing import Any, Literal

from cnnspec.limits import MAX_FAULTS

Severity = Literal["error", "warning"]


@dataclass(frozen=True, eq=False)
class Source:
    r"""A named text that spans point into.

    Attributes:
        name: What the user calls it; printed in front of line and column.
        text: The whole text, newlines normalised to `\n`.
        shipped: Whether the file comes with the package: a fault found in such a file is shown at the
            user's call of it.
    """

    name: str
    text: str
    shipped: bool = False

    @staticmethod
    def plain(text: str) -> str:
        r"""A text with `\n` at the end of every line."""
        return text.replace("\r\n", "\n").replace("\r", "\n")

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(i + 1 for i, char in enumerate(self.text) if char == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset, both counted from 1."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a line, without its newline."""
        start = self._starts[number - 1]
        end = self._starts[number] - 1 if number < len(self._starts) else len(self.text)
        return self.text[start:end]

    @property
    def end(self) -> Span:
        """The place behind the last visible character."""
        offset = len(self.text.rstrip())
        return Span(self, offset, offset)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a source, `start` included and `end` not."""

    source: Source
    start: int
    end: int

    @property
    def text(self) -> str:
        """What stands there."""
        return self.source.text[self.start : self.end]

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.position(self.start)[1]

    @property
    def end_place(self) -> tuple[int, int]:
        """Line and column of the first character behind it."""
        return self.source.position(self.end)

    def to(self, other: Span) -> Span:
        """The span from the start of this one to the end of another."""
        return Span(self.source, self.start, max(self.end, other.end))


@dataclass(frozen=True, slots=True)
class Label:
    """A second place that takes part in a fault, with what is to be said there."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Edit:
    """A piece of a text and what to write in its place; an empty span inserts."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Fix:
    """A remedy that is a change of the text.

    Attributes:
        help: What it does, in words.
        edits: The changes, all in one source; none overlaps another.
        certain: Whether nothing else can have been meant, so that a program may apply it unasked.
    """

    help: str
    edits: tuple[Edit, ...]
    certain: bool = False

    def apply(self, text: str) -> str:
        """The text with this remedy in it; `text` is that of the source which the spans point into."""
        return apply_edits(text, self.edits)


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """A text with edits in it, none of which may overlap another."""
    out: list[str] = []
    done = 0
    for edit in sorted(edits, key=lambda edit: (edit.span.start, edit.span.end)):
        if edit.span.start < done:
            raise ValueError(f"two edits overlap at {edit.span.start}")
        out += [text[done : edit.span.start], edit.text]
        done = edit.span.end
    return "".join([*out, text[done:]])


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One fault: what, where, which other places take part, why, and the remedy.

    Attributes:
        code: `E01xx` syntax, `E02xx` names and arguments, `E03xx` shapes, `E04xx` contracts and
            limits, `E05xx` what a backend cannot express, `W....` lints. Never reused.
        message: What is wrong; lower case, no full stop, understandable alone.
        span: The smallest place that shows it; none where a whole file is meant.
        caption: What is said under the caret.
        labels: Further places, with shapes.
        notes: Why.
        help: What to do.
        file: The name of the file where there is no span.
        fixes: Changes of the text that mend it, the best one first. Those that the compiler hands out were
            tried: the changed text does not have this fault; see `trials.prove`.
        fallback: What to do if none of the fixes works.
    """

    code: str
    message: str
    span: Span | None = None
    caption: str = ""
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None
    file: str | None = None
    fixes: tuple[Fix, ...] = ()
    fallback: str | None = None

    @property
    def severity(self) -> Severity:
        return "warning" if self.code.startswith("W") else "error"

    @property
    def name(self) -> str | None:
        """The name of the file that the fault is in."""
        return self.span.source.name if self.span else self.file

    @property
    def line(self) -> int | None:
        return self.span.line if self.span else None

    @property
    def column(self) -> int | None:
        return self.span.column if self.span else None

    def to_json(self) -> dict[str, Any]:
        """The diagnostic as plain data for programs."""
        nowhere = {"file": self.file, "line": None, "column": None, "end_line": None, "end_column": None}
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            **(_place(self.span) if self.span else nowhere),
            "caption": self.caption,
            "labels": [{**_place(label.span), "text": label.text} for label in self.labels],
            "notes": list(self.notes),
            "help": self.help,
            "fixes": [
                {
                    "help": fix.help,
                    "certain": fix.certain,
                    "edits": [{**_place(edit.span), "text": edit.text} for edit in fix.edits],
                }
                for fix in self.fixes
            ],
        }

    def __str__(self) -> str:
        return render(self)


def _place(span: Span) -> dict[str, Any]:
    end_line, end_column = span.end_place
    return {
        "file": span.source.name,
        "line": span.line,
        "column": span.column,
        "end_line": end_line,
        "end_column": end_column,
    }


class CnnspecError(Exception):
    """The one exception of this package for what a user can mend.

    Attributes:
        diagnostics: The faults, errors and lints, in the order of their places.
    """

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return "\n\n".join(render(diagnostic) for diagnostic in self.diagnostics)


def failure(
    code: str, message: str, *, help: str | None = None, notes: Sequence[str] = (), file: str | None = None
) -> CnnspecError:
    """An error of one diagnostic that has no place in a source."""
    return CnnspecError([Diagnostic(code, message, notes=tuple(notes), help=help, file=file)])


def counted(number: int, noun: str) -> str:
    """`1 value`, `2 values`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


_OF_NAMES = ("E0201", "E0202", "E0207", "E0208")
"""What can be said of a name that is not known."""


class TooManyFaults(Exception):
    """The reporter is full: the stages stop, and what it holds is shown."""


class Reported(Exception):
    """An error that the reporter already holds; raised where nothing can follow it."""


@dataclass(slots=True)
class Reporter:
    """Collects diagnostics; a fault that is found again at the same place is kept once.

    Attributes:
        unsure: Names that a statement may define which cannot be read; nothing is said about their use.
    """

    diagnostics: list[Diagnostic] = field(default_factory=list[Diagnostic])
    unsure: set[str] = field(default_factory=set[str])
    full: bool = False
    _seen: set[tuple[object, ...]] = field(default_factory=set[tuple[object, ...]])

    def add(self, diagnostic: Diagnostic) -> None:
        """Keeps a diagnostic.

        Raises:
            TooManyFaults: The report is full.
        """
        span = diagnostic.span
        place = (id(span.source), span.start) if span else (diagnostic.file, diagnostic.message)
        key = (diagnostic.code, *place)
        if span and self.unsure and diagnostic.code in _OF_NAMES:
            word = span.text.lstrip("@")
            if word in self.unsure:
                return
        if key not in self._seen:
            if len(self.diagnostics) >= MAX_FAULTS:
                self.full = True
                raise TooManyFaults
            self._seen.add(key)
            self.diagnostics.append(diagnostic)

    def error(
        self,
        code: str,
        message: str,
        span: Span | None = None,
        *,
        caption: str = "",
        labels: Iterable[Label] = (),
        notes: Iterable[str] = (),
        help: str | None = None,
        file: str | None = None,
        fixes: Iterable[Fix] = (),
        fallback: str | None = None,
    ) -> Reported:
        """Report an error; see `Diagnostic` for the arguments.

        Returns:
            The exception to raise where nothing can follow.

        Raises:
            TooManyFaults: The reporter is full.
        """
        found = Diagnostic(
            code, message, span, caption, tuple(labels), tuple(notes), help, file, tuple(fixes), fallback
        )
        self.add(found)
        return Reported()

    @property
    def failed(self) -> bool:
        return any(diagnostic.severity == "error" for diagnostic in self.diagnostics)

    def sorted(self) -> list[Diagnostic]:
        """Errors and lints in the order of their files and places."""
        files: dict[str | None, int] = {}
        for diagnostic in self.diagnostics:
            files.setdefault(diagnostic.name, len(files))
        found = sorted(self.diagnostics, key=lambda d: (files[d.name], d.span.start if d.span else -1))
        if self.full:
            message = f"more faults than the limit of {MAX_FAULTS} that one run shows"
            found.append(Diagnostic("E0405", message, help="mend these first, then check again"))
        return found


_MANY = 256
_NO_DIGITS = str.maketrans("", "", digits)


def _distance(a: str, b: str) -> int:
    """Letters to add, drop, replace, or exchange with their neighbour until one word is the other."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, left in enumerate(a):
        earlier, before, row = before, row, [i + 1]
        for j, right in enumerate(b):
            cost = min(row[j] + 1, before[j + 1] + 1, before[j] + (left != right))
            if i and j and left == b[j - 1] and a[i - 1] == right:
                cost = min(cost, earlier[j - 1] + 1)
            row.append(cost)
    return row[-1]


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The known words that are nearest to a misspelt one, all equally near; none when none is near."""
    words = list(dict.fromkeys(known))
    folded = [other for other in words if other.lower() == word.lower()]
    if folded:
        return folded[:1]
    if len(words) > _MANY:  # comparing takes a while: of very many only those that start alike
        words = [other for other in words if other[:2] == word[:2]][:_MANY]
    near = difflib.get_close_matches(word, words, n=8, cutoff=0.5 if len(word) <= 3 else 0.6)
    distances = {other: _distance(word, other) for other in near}
    least = min(distances.values(), default=0)
    return [other for other in near if distances[other] == least][:3]


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A help that names the nearest known words, or nothing when none is near."""
    return respell(None, word, known)[0]


def respell(span: Span | None, word: str, known: Iterable[str]) -> tuple[str | None, tuple[Fix, ...]]:
    """A help that names the nearest known words, and the fixes that write one of them.

    A fix is certain where one word alone is near, and a single slip away that is no number: another digit is another
    thing. There are none where nothing is near, and no fixes without a place.
    """
    near = nearest(word, known)
    if not near:
        return None, ()
    help = f"did you mean {' or '.join(f'`{other}`' for other in near)}?"
    if span is None:
        return help, ()
    slip = _distance(word, near[0]) == 1 and word.translate(_NO_DIGITS) != near[0].translate(_NO_DIGITS)
    certain = len(near) == 1 and len(word) > 2 and (slip or near[0].lower() == word.lower())
    return help, tuple(Fix(help, (Edit(span, other),), certain) for other in near)


_COLORS = {"error": "1;31", "warning": "1;33", "head": "1", "bar": "1;34", "second": "1;34", "help": "1;36"}


def render(diagnostic: Diagnostic, *, color: bool = False) -> str:
    """The diagnostic as a person reads it: message, place, marked source lines, notes, help.

    Args:
        diagnostic: What to show.
        color: Whether to add ANSI colours.
    """

    def paint(text: str, style: str) -> str:
        return f"\x1b[{_COLORS[style]}m{text}\x1b[0m" if color and text else text

    severity = diagnostic.severity
    out = [paint(f"{severity}[{diagnostic.code}]", severity) + paint(f": {diagnostic.message}", "head")]
    marks: list[tuple[Span, str, bool]] = []
    if diagnostic.span:
        marks.append((diagnostic.span, diagnostic.caption, True))
    marks += [(label.span, label.text, False) for label in diagnostic.labels]
    width = max((len(str(span.line)) for span, _, _ in marks), default=0)
    for source in dict.fromkeys(span.source for span, _, _ in marks):
        own = sorted(
            (mark for mark in marks if mark[0].source is source), key=lambda mark: (mark[0].line, mark[0].column)
        )
        first = next((mark[0] for mark in own if mark[2]), own[0][0])
        arrow = "-->" if source is marks[0][0].source else ":::"
        out.append(" " * width + paint(arrow, "bar") + f" {source.name}:{first.line}:{first.column}")
        out.append(" " * width + paint(" |", "bar"))
        previous = 0
        for span, text, primary in own:
            number = span.line
            line = source.line(number).replace("\t", " ")
            if number != previous:
                if previous and number > previous + 1:
                    out.append(paint("...", "bar"))
                out.append(paint(f"{number:>{width}} |", "bar") + (f" {line}" if line.strip() else ""))
            previous = number
            length = max(1, min(span.end - span.start, len(line) - span.column + 1))
            style = severity if primary else "second"
            mark = ("^" if primary else "-") * length
            said = f" {text}" if text else ""
            out.append(" " * width + paint(" |", "bar") + " " * span.column + paint(mark + said, style))
    if not marks and diagnostic.file:
        out.append(paint(" -->", "bar") + f" {diagnostic.file}")
    tail = [*(("note", note) for note in diagnostic.notes), *([("help", diagnostic.help)] if diagnostic.help else [])]
    if tail and marks:
        out.append(" " * width + paint(" |", "bar"))
    for word, text in tail:
        out.append(" " * width + paint(" =", "bar") + paint(f" {word}: ", "help") + text)
    return "\n".join(out)
