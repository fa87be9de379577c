"""Text to tree.

`parse` never raises for what is in the text. Every statement that cannot be read is reported once, and
reading goes on behind it.
"""

from __future__ import annotations

import re

from cnnspec.diagnostics import Reporter, Source, TooManyFaults
from cnnspec.syntax import ast
from cnnspec.syntax.builder import Builder
from cnnspec.syntax.keywords import FUNCTIONS, LABEL_WORDS, RESERVED, TOP_WORDS
from cnnspec.syntax.parser import Parsed, ParseFailure, parse_text
from cnnspec.syntax.prescan import balanced, count_words, within_limits
from cnnspec.syntax.recovery import Piece, piece_at, without

__all__ = ["FUNCTIONS", "LABEL_WORDS", "RESERVED", "TOP_WORDS", "count_words", "parse"]

_MAX_REPORTED = 10
_MAX_CHARACTERS = 200_000
"""Of all attempts at one text together."""


def parse(source: Source, reporter: Reporter) -> ast.File | None:
    """The tree of a source; the faults go to `report`.

    Statements that cannot be read are missing in the tree, which then says that it is `broken`. There is no tree
    where a limit is passed, or where braces do not match and indentation does not tell what was meant.
    """
    try:
        return _parse(source, reporter)
    except TooManyFaults:
        return None


def _parse(source: Source, reporter: Reporter) -> ast.File | None:
    if not within_limits(source, reporter):
        return None
    found = balanced(source, reporter)
    if found is None:
        return None
    text, wrong = found
    broken, parsed = text != source.text or bool(wrong), None
    marks: set[int] = set()

    def take_out(piece: Piece) -> bool:
        nonlocal text
        changed, mark, names = without(text, piece)
        if changed == text:
            return False
        text = changed
        marks.update({mark} if mark is not None else ())
        reporter.unsure |= names
        return True

    for at in wrong:
        here, _ = piece_at(text, at)
        if here is not None and here.start <= at < here.end:
            take_out(here)
    for _ in range(max(2, min(_MAX_REPORTED, _MAX_CHARACTERS // max(len(text), 1)))):
        parsed, fault = _attempt(text)
        if fault is None:
            break
        from cnnspec.syntax.error_rules import explain  # not before: most texts have no fault

        broken = True
        at = fault.at
        here, earlier = piece_at(text, at)
        if earlier is not None:  # a line end is no end where more is needed: the statement before may be unfinished
            alone = re.sub(r"[^\n]", " ", text[: earlier.start]) + text[earlier.start : earlier.end]
            _, unfinished = _attempt(alone)
            if unfinished is not None and unfinished.at >= earlier.end:
                here, fault, at = earlier, unfinished, earlier.end
        reporter.add(explain(source, text, fault.expected, at))
        if here is None or not take_out(here):
            return None
    if parsed is None:
        return None
    file = Builder(source, reporter, marks).file(parsed, broken=broken)
    return None if any(d.code == "E0405" for d in reporter.diagnostics) else file


def _attempt(text: str) -> tuple[Parsed | None, ParseFailure | None]:
    try:
        return parse_text(text), None
    except ParseFailure as fault:
        return None, fault
