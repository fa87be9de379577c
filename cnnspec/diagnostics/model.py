"""Source text, spans, and diagnostics as data, with their plain-text renderer.

A `Diagnostic` says what is wrong, where, and what to do about it. Every error in a spec ends as one of these;
functions that cannot return them raise `CnnspecError`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from cnnspec.diagnostics.escape import printable
from cnnspec.limits import MAX_ERRORS

Severity = Literal["error", "warning"]


@dataclass(frozen=True, eq=False)
class Source:
    r"""A named text that spans point into.

    Attributes:
        name: The name that the user gave; printed before line and column.
        text: The whole text, with newlines normalized to `\n`.
        shipped: Whether the file comes with the package: an error in such a file is shown at the user's call of it.
    """

    name: str
    text: str
    shipped: bool = False

    @staticmethod
    def plain(text: str) -> str:
        r"""Normalize the newlines of a text to `\n`."""
        return text.replace("\r\n", "\n").replace("\r", "\n")

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(i + 1 for i, char in enumerate(self.text) if char == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """Return line and column of an offset, both counted from 1."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Return the text of a line, without its newline."""
        start = self._starts[number - 1]
        end = self._starts[number] - 1 if number < len(self._starts) else len(self.text)
        return self.text[start:end]

    @property
    def end(self) -> Span:
        """The empty span after the last visible character."""
        offset = len(self.text.rstrip())
        return Span(self, offset, offset)


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of a source, from `start` to `end`."""

    source: Source
    start: int
    end: int

    @property
    def text(self) -> str:
        """The text of the span."""
        return self.source.text[self.start : self.end]

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.position(self.start)[1]

    @property
    def end_place(self) -> tuple[int, int]:
        """Line and column of the first character after it."""
        return self.source.position(self.end)

    def to(self, other: Span) -> Span:
        """Return the span from the start of this one to the end of another."""
        return Span(self.source, self.start, max(self.end, other.end))


@dataclass(frozen=True, slots=True)
class Label:
    """A second place that is involved in an error, with its caption."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Edit:
    """A replacement of a span; an empty span inserts."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Fix:
    """A set of edits that fixes an error.

    Attributes:
        help: The description of the fix.
        edits: The edits, all in one source and without overlaps.
        certain: Whether the fix is unambiguous, so that a program may apply it without asking.
        example: Whether the edits only show that the help is right: the value in it is an example or a bound, and the
            choice is the user's. They are tried as those of other fixes, but not offered.
    """

    help: str
    edits: tuple[Edit, ...]
    certain: bool = False
    example: bool = False

    def apply(self, text: str) -> str:
        """Apply the fix to the text of the source that its spans point into."""
        return apply_edits(text, self.edits)


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """Apply edits to a text.

    Raises:
        ValueError: Two edits overlap.
    """
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
    """One error or lint.

    Attributes:
        code: `E01xx` syntax, `E02xx` names and arguments, `E03xx` shapes, `E04xx` contracts and
            limits, `E05xx` backends, data and training, `W....` lints. Never reused.
        message: The problem; lower case, no full stop, understandable alone.
        span: The smallest place that shows it; None for a whole file.
        caption: The text under the caret.
        labels: Further places, with shapes.
        notes: The reasons.
        help: The action to take.
        file: The name of the file if there is no span.
        fixes: Fixes, the best one first. The compiler returns only those that work; see `trials.prove`.
        fallback: The help if none of the fixes works.
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
        """The name of the file with the error."""
        return self.span.source.name if self.span else self.file

    @property
    def line(self) -> int | None:
        return self.span.line if self.span else None

    @property
    def column(self) -> int | None:
        return self.span.column if self.span else None

    def to_json(self) -> dict[str, Any]:
        """Convert the diagnostic to plain data for programs."""
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

    def _repr_html_(self) -> str:
        return render_html([self])


class Diagnostics(list[Diagnostic]):
    """A list of diagnostics that a notebook shows as text with marked source lines."""

    def _repr_html_(self) -> str | None:
        return render_html(self) if self else None


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
    """The one exception of this package for errors that a user can fix.

    Attributes:
        diagnostics: Errors and lints, in the order of their places.
    """

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return "\n\n".join(render(diagnostic) for diagnostic in self.diagnostics)

    def _repr_html_(self) -> str:
        return render_html(self.diagnostics)

    def _render_traceback_(self) -> list[str]:
        """Return what IPython prints in place of a traceback."""
        return ["\n\n".join(render(diagnostic, color=True) for diagnostic in self.diagnostics)]


def failure(
    code: str, message: str, *, help: str | None = None, notes: Sequence[str] = (), file: str | None = None
) -> CnnspecError:
    """Make an error of one diagnostic that has no place in a source."""
    return CnnspecError([Diagnostic(code, message, notes=tuple(notes), help=help, file=file)])


def one_line(error: object, limit: int = 200) -> str:
    """Return the message of another library's error in one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]


def reason_of(error: OSError) -> str:
    """Return the reason of an error of the system, in lower case."""
    return (error.strerror or str(error) or type(error).__name__).lower()


def counted(number: int, noun: str) -> str:
    """Count a noun: `1 value`, `2 values`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def named(names: Sequence[str], limit: int = 8) -> str:
    """List names, at most `limit` of them: ``"`a`, `b` and 3 more"``."""
    shown = ", ".join(f"`{name}`" for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


_UNKNOWN_NAME = ("E0201", "E0202", "E0207", "E0208")
"""The codes of errors about unknown names."""


class TooManyErrors(Exception):
    """The reporter is full: the stages stop, and its diagnostics are shown."""


class Reported(Exception):
    """An error that is reported already; raised where nothing can follow it."""


@dataclass(slots=True)
class Reporter:
    """Collect diagnostics; one code is reported once per place.

    Attributes:
        unsure: Names that may be defined by a statement with a syntax error; their use is not reported.
        full: Whether the limit of diagnostics is reached.
        extended_by: The statement that extends a file with other parameters, by the identity of its source.
    """

    diagnostics: list[Diagnostic] = field(default_factory=list[Diagnostic])
    unsure: set[str] = field(default_factory=set[str])
    full: bool = False
    extended_by: dict[int, Span] = field(default_factory=dict[int, "Span"])
    _seen: set[tuple[object, ...]] = field(default_factory=set[tuple[object, ...]])

    def add(self, diagnostic: Diagnostic) -> None:
        """Add a diagnostic.

        Raises:
            TooManyErrors: The reporter is full.
        """
        span = diagnostic.span
        place = (id(span.source), span.start) if span else (diagnostic.file, diagnostic.message)
        key = (diagnostic.code, *place)
        if span and self.unsure and diagnostic.code in _UNKNOWN_NAME:
            word = span.text.lstrip("@")
            if word in self.unsure:
                return
        if key not in self._seen:
            if len(self.diagnostics) >= MAX_ERRORS:
                self.full = True
                raise TooManyErrors
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
            TooManyErrors: The reporter is full.
        """
        origin = self.extended_by.get(id(span.source)) if span else None
        labels = tuple(labels)
        if span and origin and origin.source is not span.source:
            labels += (Label(origin, "extended with these parameters"),)
        found = Diagnostic(code, message, span, caption, labels, tuple(notes), help, file, tuple(fixes), fallback)
        self.add(found)
        return Reported()

    @property
    def failed(self) -> bool:
        return any(diagnostic.severity == "error" for diagnostic in self.diagnostics)

    def sorted(self) -> list[Diagnostic]:
        """Return errors and lints in the order of their files and places."""
        files: dict[str | None, int] = {}
        for diagnostic in self.diagnostics:
            files.setdefault(diagnostic.name, len(files))
        found = sorted(self.diagnostics, key=lambda d: (files[d.name], d.span.start if d.span else -1))
        if self.full:
            message = f"the number of errors exceeds the limit of {MAX_ERRORS} per run"
            found.append(Diagnostic("E0405", message, help="fix these first, then check again"))
        return found


_COLORS = {"error": "1;31", "warning": "1;33", "head": "1", "bar": "1;34", "second": "1;34", "help": "1;36"}
_CSS = {"error": "#e03c3c", "warning": "#a86f00", "head": "", "bar": "#3a7bd5", "second": "#3a7bd5", "help": "#128686"}
"""The same colors in HTML: readable on white and on black, because a page does not say which it is."""
_PRE = "white-space:pre;overflow-x:auto;line-height:1.35;font-family:Menlo,Consolas,'DejaVu Sans Mono',monospace"


def render(diagnostic: Diagnostic, *, color: bool = False) -> str:
    """Render a diagnostic as text: message, place, marked source lines, notes, help.

    Control characters in names, source lines and messages are escaped.

    Args:
        diagnostic: The diagnostic.
        color: Whether to add ANSI colors.
    """

    def paint(text: str, style: str = "") -> str:
        text = printable(text)
        return f"\x1b[{_COLORS[style]}m{text}\x1b[0m" if color and style and text else text

    return _render(diagnostic, paint)


def render_html(diagnostics: Iterable[Diagnostic]) -> str:
    """Render diagnostics for notebooks: the text of `render`, escaped, in colors."""
    from html import escape  # not needed by a check

    def paint(text: str, style: str = "") -> str:
        text = escape(printable(text))
        css = "font-weight:bold" + (f";color:{_CSS[style]}" if style and _CSS[style] else "")
        return f'<span style="{css}">{text}</span>' if style and text else text

    text = "\n\n".join(_render(diagnostic, paint) for diagnostic in diagnostics)
    return f'<pre style="{_PRE}">{text}</pre>'


def _render(diagnostic: Diagnostic, paint: Callable[..., str]) -> str:
    """Render a diagnostic with a function that escapes a text and paints it in a style."""
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
        out.append(" " * width + paint("-->", "bar") + paint(f" {source.name}:{first.line}:{first.column}"))
        out.append(" " * width + paint(" |", "bar"))
        previous = 0
        for span, text, primary in own:
            number = span.line
            line = source.line(number).replace("\t", " ")
            if number != previous:
                if previous and number > previous + 1:
                    out.append(paint("...", "bar"))
                out.append(paint(f"{number:>{width}} |", "bar") + (paint(f" {line}") if line.strip() else ""))
            previous = number
            before, marked = line[: span.column - 1], line[span.column - 1 :][: span.end - span.start]
            style = severity if primary else "second"
            mark = ("^" if primary else "-") * max(1, len(printable(marked)))
            caption = f" {text}" if text else ""
            indent = " " * (1 + len(printable(before)))
            out.append(" " * width + paint(" |", "bar") + indent + paint(mark + caption, style))
    if not marks and diagnostic.file:
        out.append(paint(" -->", "bar") + paint(f" {diagnostic.file}"))
    tail = [*(("note", note) for note in diagnostic.notes), *([("help", diagnostic.help)] if diagnostic.help else [])]
    if tail and marks:
        out.append(" " * width + paint(" |", "bar"))
    for word, text in tail:
        out.append(" " * width + paint(" =", "bar") + paint(f" {word}: ", "help") + paint(text))
    return "\n".join(out)
