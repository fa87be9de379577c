"""Trials of fixes: only those that make their error go away, and bring up no other, are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from cnnspec.diagnostics.model import Diagnostic, Edit, Fix, Source

MAX_TRIALS = 16
MAX_CHARACTERS = 48 * 1024
"""Length of all texts that are tried together."""
_MAX_STEPS = 4_000
"""Elements that are expanded in all trials together."""


def prove(
    diagnostics: Sequence[Diagnostic], source: Source, again: Callable[[str, int], Sequence[Diagnostic]]
) -> list[Diagnostic]:
    """Keep the fixes that work, and drop the others from the help.

    A fix works if the changed text has neither the diagnostic nor a new error. A certain fix may bring up errors that
    were hidden before, but not in the text that it wrote. If another fix brings some up, it is unknown whether it
    works: it is not shown, and the help stays. The number of trials is limited to keep a check fast; a fix that was not
    tried is not shown.

    Args:
        diagnostics: The diagnostics of a text.
        source: The text.
        again: Returns the diagnostics of another text in its place, given a limit of elements to expand.
    """
    wanted = [(d, fix) for d in diagnostics for fix in d.fixes if all(e.span.source is source for e in fix.edits)]
    trials = min(len(wanted), MAX_TRIALS, MAX_CHARACTERS // max(len(source.text), 1))
    works: dict[int, list[Fix]] = {}
    open_: set[int] = set()
    for diagnostic, fix in wanted[:trials]:
        answer = _works(diagnostic, fix, diagnostics, again(fix.apply(source.text), _MAX_STEPS // trials))
        if answer:
            works.setdefault(id(diagnostic), []).append(fix)
        elif answer is None:
            open_.add(id(diagnostic))
    tried = {id(diagnostic) for diagnostic, _ in wanted[:trials]}
    out: list[Diagnostic] = []
    for d in diagnostics:
        fixes, help = tuple(works.get(id(d), ())), d.help
        if (fixes or id(d) in tried - open_) and len(fixes) < len(d.fixes):
            help = ", or ".join(dict.fromkeys(fix.help for fix in fixes)) or d.fallback or help
        out.append(replace(d, fixes=fixes, help=help) if d.fixes else d)
    return out


def _works(diagnostic: Diagnostic, fix: Fix, before: Iterable[Diagnostic], after: Iterable[Diagnostic]) -> bool | None:
    """Check whether a fix works; None if that is unknown."""
    edits = sorted(fix.edits, key=lambda edit: (edit.span.start, edit.span.end))
    known = {(d.code, _moved(d.span.start, edits)) for d in before if d.span and d is not diagnostic}
    known |= {(d.code, -1) for d in before if d.span is None and d is not diagnostic}
    own = diagnostic.span.start if diagnostic.span else -1
    places = {(diagnostic.code, own), (diagnostic.code, _moved(own, edits))}
    written: list[tuple[int, int]] = []
    shift = 0
    for edit in edits:
        start = edit.span.start + shift
        written.append((start, start + len(edit.text)))
        shift += len(edit.text) - (edit.span.end - edit.span.start)
    works: bool | None = True
    for found in after:
        at = found.span.start if found.span else -1
        if (found.code, at) in places:
            return False
        if found.severity == "warning" or (found.code, at) in known:
            continue
        if (
            diagnostic.severity == "warning"
            or found.span is None
            or found.code.startswith("E01")
            or found.code == "E0404"
        ):
            return False
        if any(at <= end and found.span.end >= start for start, end in written):
            return False
        if not fix.certain:
            works = None  # a new error: caused by this fix, or hidden before
    return works


def _moved(offset: int, edits: Sequence[Edit]) -> int:
    """Return the offset in the new text for one in the old text."""
    shift = 0
    for edit in edits:
        if edit.span.end <= offset:
            shift += len(edit.text) - (edit.span.end - edit.span.start)
    return offset + shift
