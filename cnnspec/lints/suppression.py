"""Suppression comments: `# cnnspec: ignore W0106` and `# cnnspec: ignore-file W0106`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cnnspec.diagnostics import Diagnostic, Fix
from cnnspec.lints.base import remove_argument, remove_statement
from cnnspec.syntax import ast

_IGNORE = re.compile(r"#\s*cnnspec:\s*(?P<scope>ignore-file|ignore)\b(?P<codes>[ \t,]*(?:[A-Z][0-9]{4}\b[ \t,]*)*)")
_CODE = re.compile(r"[A-Z][0-9]{4}")
_BLANK_LINES = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*")


@dataclass(frozen=True, slots=True)
class _Suppression:
    """A suppression comment; it applies to one line, or to the whole file (`None`)."""

    comment: ast.Comment
    line: int | None
    codes: tuple[str, ...]


def suppress(file: ast.File, found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Remove the suppressed warnings, and add warnings about comments that suppress nothing."""
    suppressions = list(_suppressions(file))
    suppressed = {(code, suppression.line) for suppression in suppressions for code in suppression.codes}
    kept = [d for d in found if not suppressed & {(d.code, d.line), (d.code, None)}]
    places = {(d.code, line) for d in found for line in (d.line, None)}
    return [*kept, *(d for suppression in suppressions for d in _unused(suppression, places))]


def _suppressions(file: ast.File) -> Iterator[_Suppression]:
    for comment in file.comments:
        if (match := _IGNORE.match(comment.text)) is not None:
            line = None if match["scope"] == "ignore-file" else _line(file, comment)
            yield _Suppression(comment, line, tuple(_CODE.findall(match["codes"])))


def _line(file: ast.File, comment: ast.Comment) -> int:
    """Return the line that a comment applies to: its own, or the next line with code if it is on its own line."""
    if not comment.own_line:
        return comment.span.line
    text = file.source.text
    blank = _BLANK_LINES.match(text, comment.span.end)
    return file.source.position(min(blank.end() if blank else comment.span.end, len(text)))[0]


def _unused(suppression: _Suppression, places: set[tuple[str, int | None]]) -> Iterator[Diagnostic]:
    """Report codes that suppress nothing; `places` are those of the warnings, without a line for the whole file."""
    comment, line, codes = suppression.comment, suppression.line, suppression.codes
    if not codes:
        message = "the suppression comment has no lint code"
        yield Diagnostic("W0110", message, comment.span, help="add a code: `# cnnspec: ignore W0106`")
    edit = remove_statement(comment.span) if comment.own_line else remove_argument(comment.span)
    fixes = (Fix("remove the comment", (edit,), certain=True),) if len(codes) == 1 else ()
    for code in codes:
        if (code, line) not in places:
            if code.startswith("E"):
                reason = "errors cannot be suppressed"
            else:
                reason = f"there is no {code} {'in this file' if line is None else 'here'}"
            message = f"unused suppression comment: {reason}"
            yield Diagnostic("W0110", message, comment.span, help="remove it", fixes=fixes)
