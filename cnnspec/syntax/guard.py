"""Before the parser: the limits of a text, and its braces."""

from __future__ import annotations

import re

from cnnspec.diagnostics import Diagnostic, Label, Report, Source, Span
from cnnspec.limits import MAX_FILE_BYTES, MAX_LINE_LENGTH, MAX_NESTING


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
    return True


MARKS = re.compile(r'#[^\n]*|"[^"\n]*"|"[^\n]*|[{}()\[\]]')
_CLOSING = {"}": "{", ")": "(", "]": "["}


def balanced(source: Source, report: Report) -> bool:
    """Whether every brace, parenthesis and bracket is closed, every string ends, and nesting is sane."""
    open_marks: list[tuple[str, int]] = []
    for match in MARKS.finditer(source.text):
        mark, at = match.group(), match.start()
        span = Span(source, at, at + 1)
        if mark[0] == "#" or (mark[0] == '"' and len(mark) > 1 and mark[-1] == '"'):
            continue
        if mark[0] == '"':
            report.add(
                Diagnostic("E0103", "the string has no closing quote", span, help='end it with `"` on the same line')
            )
            return False
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
                return False
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
                    help=f"close it with `{next(c for c, o in _CLOSING.items() if o == opened)}` first",
                )
            )
            return False
        else:
            report.add(
                Diagnostic(
                    "E0102", f"`{mark}` closes nothing", span, help=f"remove it, or open it with `{_CLOSING[mark]}`"
                )
            )
            return False
    if open_marks:
        opened, where = open_marks[-1]
        closing = next(c for c, o in _CLOSING.items() if o == opened)
        report.add(
            Diagnostic(
                "E0102",
                f"`{opened}` is never closed",
                Span(source, where, where + 1),
                "opened here",
                labels=(Label(source.end, "the text ends here"),),
                help=f"add `{closing}`",
            )
        )
        return False
    return True
