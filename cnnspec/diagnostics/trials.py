"""Trials of suggestions: a fix or an example is shown only if it makes its error go away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from cnnspec.diagnostics.model import Diagnostic, Edit, Fix, Source

MAX_TRIALS = 16
MAX_CHARACTERS = 48 * 1024
"""Length of all texts that are tried together."""
_MAX_STEPS = 4_000
"""Elements that are expanded in all trials together."""

_Outcome = Literal["works", "unknown", "reveals", "fails"]
"""The outcome of a trial, from the best to the worst."""


def prove(
    diagnostics: Sequence[Diagnostic], source: Source, again: Callable[[str, int], Sequence[Diagnostic]]
) -> list[Diagnostic]:
    """Keep the fixes that work, and the help that makes its error go away.

    A fix works if the changed text has neither the diagnostic nor a new error. A certain fix may bring up errors that
    were hidden before, but not in the text that it wrote. If another fix brings some up elsewhere, it is unknown
    whether it works: it is not offered, but the help stays. So does the help of a fix that brings up another error in
    its place. A fix that leaves its error, or code that cannot be parsed, is removed from the help. The number of
    trials is limited to keep a check fast; a fix that was not tried is not offered.

    Args:
        diagnostics: The diagnostics of a text.
        source: The text.
        again: Returns the diagnostics of another text in its place, given a limit of elements to expand.
    """
    wanted = [(d, fix) for d in diagnostics for fix in d.fixes if all(e.span.source is source for e in fix.edits)]
    wanted.sort(key=lambda one: one[1].example)
    trials = min(len(wanted), MAX_TRIALS, MAX_CHARACTERS // max(len(source.text), 1))
    outcomes: dict[int, _Outcome] = {}
    for diagnostic, fix in wanted[:trials]:
        found = again(fix.apply(source.text), _MAX_STEPS // trials)
        outcomes[id(fix)] = _outcome(diagnostic, fix, diagnostics, found)
    return [_proven(d, outcomes) if d.fixes else d for d in diagnostics]


def _proven(diagnostic: Diagnostic, outcomes: dict[int, _Outcome]) -> Diagnostic:
    """Return a diagnostic with the fixes that work, and a help without those that do not."""
    found: dict[_Outcome | None, list[Fix]] = {}
    for fix in diagnostic.fixes:
        found.setdefault(outcomes.get(id(fix)), []).append(fix)
    works, help = found.pop("works", []), diagnostic.help
    if works:
        help = _joined(works) if found else help
    elif "fails" in found and "unknown" not in found:
        help = diagnostic.fallback or _joined(found.get("reveals", ())) or None
    elif "reveals" in found and "unknown" not in found:
        help = diagnostic.fallback or help
    return replace(diagnostic, fixes=tuple(fix for fix in works if not fix.example), help=help)


def _joined(fixes: Iterable[Fix]) -> str:
    return ", or ".join(dict.fromkeys(fix.help for fix in fixes))


def _outcome(diagnostic: Diagnostic, fix: Fix, before: Iterable[Diagnostic], after: Iterable[Diagnostic]) -> _Outcome:
    """Judge a fix by the diagnostics before and after it."""
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
    has_code = any(character.isalnum() for edit in edits for character in edit.text)  # and not only a sign
    outcome: _Outcome = "works"
    for found in after:
        at = found.span.start if found.span else -1
        if (found.code, at) in known:
            continue
        if (found.code, at) in places:
            return "fails"
        if found.severity == "warning":
            continue
        touched = found.span is not None and any(at <= end and found.span.end >= start for start, end in written)
        if diagnostic.severity == "warning" or (touched and has_code and found.code.startswith("E01")):
            return "fails"
        if touched or found.span is None or found.code.startswith("E01") or found.code == "E0404":
            outcome = "reveals"
        elif not fix.certain and outcome == "works":
            outcome = "unknown"  # a new error: caused by this fix, or hidden before
    return outcome


def _moved(offset: int, edits: Sequence[Edit]) -> int:
    """Return the offset in the new text for one in the old text."""
    shift = 0
    for edit in edits:
        if edit.span.end <= offset:
            shift += len(edit.text) - (edit.span.end - edit.span.start)
    return offset + shift
