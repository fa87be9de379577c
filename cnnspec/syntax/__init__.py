"""Text to tree; the only package that has heard of Lark.

`parse` never raises for what is in the text: it gives the tree, or the faults. Every statement that
cannot be read is reported once, and reading goes on behind it.
"""

from __future__ import annotations

from lark import Token, UnexpectedInput

from cnnspec import tree
from cnnspec.diagnostics import Report, Source
from cnnspec.syntax.build import Builder
from cnnspec.syntax.faults import blank_statement, explain
from cnnspec.syntax.guard import balanced, within_limits
from cnnspec.syntax.tables import parser
from cnnspec.syntax.words import FUNCTIONS, RESERVED, TOP_WORDS

__all__ = ["FUNCTIONS", "RESERVED", "TOP_WORDS", "parse"]

_MAX_REPORTED = 10


def parse(source: Source, report: Report) -> tree.File | None:
    """The tree of a source, or nothing when its text is at fault; the faults go to `report`."""
    if not within_limits(source, report) or not balanced(source, report):
        return None
    text, parsed = source.text, None
    for _ in range(_MAX_REPORTED):
        try:
            parsed = parser().parse(text)
            break
        except UnexpectedInput as error:
            at = error.pos_in_stream if error.pos_in_stream is not None and error.pos_in_stream >= 0 else len(text)
            if isinstance(getattr(error, "token", None), Token) and error.token.type == "$END":  # type: ignore[attr-defined]
                at = len(text.rstrip())
            report.add(explain(source, text, error, at))
            blanked = blank_statement(text, at)
            if blanked == text:
                return None
            text = blanked
    if report.failed or parsed is None:
        return None
    file = Builder(source, report).file(parsed)
    return None if report.failed else file
