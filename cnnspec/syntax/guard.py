"""Before the parser: the limits of a text, and its braces."""

from __future__ import annotations

import re

from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Report, Source, Span
from cnnspec.limits import MAX_FILE_BYTES, MAX_LINE_LENGTH, MAX_NAME, MAX_NESTING, MAX_WORDS


def within_limits(source: Source, report: Report) -> bool:
    """Whether the file and its lines are not too long."""
    if len(source.text.encode("utf-8", "replace")) > MAX_FILE_BYTES:
        report.add(
            Diagnostic(
                "E0405",
                f"the file is larger than the limit of {MAX_FILE_BYTES // 1024} KiB",
                file=source.name,
                help="use `repeat`, `each`, and blocks instead of writing every layer out",
            )
        )
        return False
    offset = 0
    for line in source.text.split("\n"):
        if len(line) > MAX_LINE_LENGTH:
            report.add(
                Diagnostic(
                    "E0405",
                    f"the line is longer than the limit of {MAX_LINE_LENGTH} characters",
                    Span(source, offset, offset + 1),
                    help="break the line in front of a `|`",
                )
            )
            return False
        offset += len(line) + 1
    for count, match in enumerate(_WORDS.finditer(source.text), 1):
        if count > MAX_WORDS:
            report.add(
                Diagnostic(
                    "E0405",
                    f"the file has more than the limit of {MAX_WORDS} words and signs",
                    Span(source, match.start(), match.end()),
                    help="use `repeat`, `each`, and blocks instead of writing every layer out",
                )
            )
            return False
        if match.end() - match.start() > MAX_NAME and match.group()[0] not in '#"':
            report.add(
                Diagnostic(
                    "E0405",
                    f"the word is longer than the limit of {MAX_NAME} characters",
                    Span(source, match.start(), match.end()),
                    help="choose a shorter one",
                )
            )
            return False
    return True


def count_words(text: str) -> int:
    """Names, numbers, signs and comments of a text."""
    return sum(1 for _ in _WORDS.finditer(text))


_WORDS = re.compile(r'#[^\n]*|"[^"\n]*"|[A-Za-z0-9_.]+|[^\s]')
MARKS = re.compile(r'#[^\n]*|"[^"\n]*"|"[^\n]*|[{}()\[\]]')
_CLOSING = {"}": "{", ")": "(", "]": "["}
_OPENING = {opened: closing for closing, opened in _CLOSING.items()}


def _write(source: Source, help: str, at: int, text: str) -> Fix:
    return Fix(help, (Edit(Span(source, at, at), text),))


def _ends(text: str, closing: str, opened: int) -> list[tuple[int, str]]:
    """Where what was opened may have been meant to end, and what to write there: for a brace in front of the next
    line that is indented no further than its own, or at the end of the text; for others at the end of the line.
    """
    line = text.rfind("\n", 0, opened) + 1
    if closing != "}":
        end = (text + "\n").index("\n", opened)
        return [(line + len(text[line:end].split("#")[0].rstrip()), closing)]
    indent = re.compile(r"[ \t]*").match(text, line)
    own = indent.group() if indent else ""
    places: list[tuple[int, str]] = []
    at = (text + "\n").index("\n", opened) + 1
    while at < len(text):
        end = (text + "\n").index("\n", at)
        here = text[at:end]
        if here.strip() and not here.startswith(own + " ") and not here.startswith(own + "\t"):
            places.append((at, f"{own}}}\n"))
            break
        at = end + 1
    return [*places, (len(text.rstrip()), f"\n{own}}}")]


def balanced(source: Source, report: Report) -> str | None:
    """The text, if every brace, parenthesis and bracket is closed and nesting is sane; or nothing.

    A string without an end is taken out of it, so that what follows can be read.
    """
    text = source.text
    open_marks: list[tuple[str, int]] = []
    for match in MARKS.finditer(source.text):
        mark, at = match.group(), match.start()
        span = Span(source, at, at + 1)
        if mark[0] == "#" or (mark[0] == '"' and len(mark) > 1 and mark[-1] == '"'):
            continue
        if mark[0] == '"':
            report.add(
                Diagnostic(
                    "E0103",
                    "the string has no closing quote",
                    span,
                    help='end it with `"` on the same line',
                    fixes=(_write(source, 'add `"`', match.end(), '"'),),
                )
            )
            text = text[:at] + ('"' + " " * (len(mark) - 2) + '"' if len(mark) > 1 else " ") + text[match.end() :]
            continue
        if mark in "{([":
            open_marks.append((mark, at))
            if len(open_marks) > MAX_NESTING:
                report.add(
                    Diagnostic(
                        "E0405",
                        f"nested deeper than the limit of {MAX_NESTING}",
                        span,
                        help="name the inner part as a `block`",
                    )
                )
                return None
        elif open_marks and open_marks[-1][0] == _CLOSING[mark]:
            open_marks.pop()
        elif open_marks:
            opened, where = open_marks[-1]
            report.add(
                Diagnostic(
                    "E0102",
                    f"`{opened}` is closed by `{mark}`",
                    span,
                    labels=(Label(Span(source, where, where + 1), "opened here"),),
                    help=f"close it with `{_OPENING[opened]}` first",
                    fixes=(
                        Fix(f"write `{_OPENING[opened]}`", (Edit(span, _OPENING[opened]),)),
                        _write(source, f"add `{_OPENING[opened]}`", at, _OPENING[opened]),
                    ),
                )
            )
            return None
        else:
            report.add(
                Diagnostic(
                    "E0102",
                    f"`{mark}` closes nothing",
                    span,
                    help=f"remove it, or open it with `{_CLOSING[mark]}`",
                    fixes=(Fix("remove it", (Edit(span, ""),)),),
                )
            )
            return None
    if open_marks:
        opened, where = open_marks[-1]
        closing = _OPENING[opened]
        report.add(
            Diagnostic(
                "E0102",
                f"`{opened}` is never closed",
                Span(source, where, where + 1),
                "opened here",
                labels=(Label(source.end, "the text ends here"),),
                help=f"add `{closing}`",
                fixes=tuple(_write(source, f"add `{closing}`", *place) for place in _ends(source.text, closing, where)),
            )
        )
        return None
    return text
