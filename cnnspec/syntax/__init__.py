"""Parse text into the tree.

`parse` never raises for the contents of a text. Every statement that cannot be read is reported once, and parsing
continues after it.
"""

from __future__ import annotations

from cnnspec.diagnostics import Reporter, Source, TooManyErrors
from cnnspec.syntax import ast
from cnnspec.syntax.builder import Builder
from cnnspec.syntax.keywords import FUNCTIONS, LABEL_WORDS, OUTPUT, RESERVED, TOP_WORDS
from cnnspec.syntax.parser import Parsed, ParseFailure, parse_text
from cnnspec.syntax.prescan import balanced, count_words, within_limits
from cnnspec.syntax.recovery import Recovery

__all__ = ["FUNCTIONS", "LABEL_WORDS", "OUTPUT", "RESERVED", "TOP_WORDS", "count_words", "parse"]

_MAX_REPORTED = 10
_MAX_CHARACTERS = 200_000
"""Limit for all attempts at one text together."""


def parse(source: Source, reporter: Reporter) -> ast.File | None:
    """Return the tree of a source and report its syntax errors.

    Statements that cannot be read are missing in the tree, whose `broken` is then true. Returns None if a limit is
    exceeded, or if braces do not match and indentation does not show what was intended.
    """
    try:
        return _parse(source, reporter)
    except TooManyErrors:
        return None


def _parse(source: Source, reporter: Reporter) -> ast.File | None:
    if not within_limits(source, reporter):
        return None
    found = balanced(source, reporter)
    if found is None:
        return None
    text, wrong = found
    recovery = Recovery(text, reporter.unsure)
    for at in wrong:
        recovery.remove_at(at)
    parsed = _parse_readable(source, reporter, recovery)
    if parsed is None:
        return None
    file = Builder(source, reporter, recovery.marks).file(parsed, broken=recovery.text != source.text or bool(wrong))
    return None if any(d.code == "E0405" for d in reporter.diagnostics) else file


def _parse_readable(source: Source, reporter: Reporter, recovery: Recovery) -> Parsed | None:
    """Parse a text, and report and remove statements with a syntax error until the rest can be read."""
    for _ in range(max(2, min(_MAX_REPORTED, _MAX_CHARACTERS // max(len(recovery.text), 1)))):
        try:
            return parse_text(recovery.text)
        except ParseFailure as failure:
            from cnnspec.syntax.error_rules import explain  # only here: most texts have no error

            failure, piece = recovery.locate(failure)
            reporter.add(explain(source, recovery.text, failure.expected, failure.at))
            if piece is None or not recovery.remove(piece):
                return None
    return None
