"""Applying the fixes that are certain to a file, which otherwise stays as it is, byte by byte."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Diagnostic, Edit, Source, Span, apply_edits

_MAX_ROUNDS = 12


def mend(
    text: str, name: str, path: Path | None = None, params: Mapping[str, Any] | None = None, *, allow_huge: bool = False
) -> tuple[str, list[Diagnostic]]:
    """The text with every fix that is certain, and what was mended.

    Fixes that touch one another wait for the next round, as do those of faults that only show when others are gone.
    A round that would leave more errors than there were is not taken.

    Args:
        text: A spec, with the line ends that it has on disk.
        name: What to call it in diagnostics.
        path: The file that it was read from; other files are looked up beside it.
        params: Values for the spec's parameters.
        allow_huge: Whether more parameters in total than the limit are no fault.
    """
    mended: list[Diagnostic] = []
    done = compile_source(Source(name, Source.plain(text)), path, params, allow_huge=allow_huge)
    for _ in range(_MAX_ROUNDS):
        chosen = _choose(done.diagnostics)
        if not chosen:
            break
        edits = [edit for _, taken in chosen for edit in taken]
        changed = apply_edits(text, _on_disk(text, edits))
        again = compile_source(Source(name, Source.plain(changed)), path, params, allow_huge=allow_huge)
        if _errors(again.diagnostics) > _errors(done.diagnostics):
            break
        text, done = changed, again
        mended += [diagnostic for diagnostic, _ in chosen]
    return text, mended


def _errors(diagnostics: Sequence[Diagnostic]) -> int:
    return sum(diagnostic.severity == "error" for diagnostic in diagnostics)


def _choose(diagnostics: Sequence[Diagnostic]) -> list[tuple[Diagnostic, tuple[Edit, ...]]]:
    """For each diagnostic the fix that is certain, as far as none touches another."""
    chosen: list[tuple[Diagnostic, tuple[Edit, ...]]] = []
    taken: list[tuple[int, int]] = []
    for diagnostic in diagnostics:
        fix = next((fix for fix in diagnostic.fixes if fix.certain), None)
        if fix is None:
            continue
        spans = [(edit.span.start, edit.span.end) for edit in fix.edits]
        if all(end < other or start > other_end for start, end in spans for other, other_end in taken):
            chosen.append((diagnostic, fix.edits))
            taken += spans
    return chosen


def _on_disk(text: str, edits: Sequence[Edit]) -> list[Edit]:
    """Edits of a text with plain line ends as edits of the text with the line ends that it has."""
    pairs = [match.start() for match in re.finditer("\r\n", text)]
    newline = re.search("\r\n|\r|\n", text)
    ends = [at - index for index, at in enumerate(pairs)]
    source = Source("", text)

    def place(offset: int) -> int:
        return offset + bisect_left(ends, offset)

    def moved(edit: Edit) -> Edit:
        span = Span(source, place(edit.span.start), place(edit.span.end))
        return Edit(span, edit.text.replace("\n", newline.group() if newline else "\n"))

    return [moved(edit) for edit in edits]
