"""Application of certain fixes to a file; the rest of the file stays the same, byte for byte."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnspec.compiler import Compilation, compile_source
from cnnspec.diagnostics import Diagnostic, Edit, Source, Span, apply_edits
from cnnspec.diagnostics.spelling import Search, searching
from cnnspec.diagnostics.trials import MAX_CHARACTERS, MAX_TRIALS

_MAX_ROUNDS = 12
_MAX_EFFORT = 96 * 1024
"""Characters of all texts that are compiled, with those of the trials of fixes; beyond it there are no more rounds."""
_EFFORT_PER_NODE = 8


def apply_fixes(
    text: str,
    name: str,
    path: Path | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    allow_huge: bool = False,
    lints: Collection[str] = (),
    buffers: Mapping[Path, str] | None = None,
) -> tuple[str, list[Diagnostic], Compilation]:
    """Apply every certain fix.

    Fixes are applied in rounds: a fix that overlaps another one, or whose error only appears after others are fixed, is
    left to the next round. A round that would increase the number of errors is not applied. A large spec gets fewer
    rounds, to bound the time.

    Args:
        text: The spec, with its line endings on disk.
        name: The name of the spec for diagnostics.
        path: The file that it was read from; imports are relative to its folder.
        params: Values for the parameters of the spec.
        allow_huge: Allow more parameters than the limit.
        lints: Codes of lints to report that are off by default.
        buffers: Texts that replace those of other files, by resolved path.

    Returns:
        The text, the diagnostics that were fixed, and the compilation of the text.
    """
    fixed: list[Diagnostic] = []
    search = Search()

    def compiled(text: str) -> Compilation:
        search.renew()
        source = Source(name, Source.plain(text))
        return compile_source(source, path, params, allow_huge=allow_huge, lints=lints, buffers=buffers)

    with searching(search):
        current, effort = compiled(text), 0
        for _ in range(_MAX_ROUNDS):
            effort += _effort(text, current)
            if effort > _MAX_EFFORT and fixed:
                break
            chosen = certain_fixes(current.diagnostics)
            if not chosen:
                break
            edits = [edit for _, taken in chosen for edit in taken]
            changed = apply_edits(text, _on_disk(text, edits))
            result = compiled(changed)
            if _count_errors(result.diagnostics) > _count_errors(current.diagnostics):
                break
            text, current = changed, result
            fixed += [diagnostic for diagnostic, _ in chosen]
    return text, fixed, current


def _effort(text: str, compilation: Compilation) -> int:
    """Return the effort of a round: characters of the text and of the trials of its fixes, and nodes."""
    trials = min(sum(len(diagnostic.fixes) for diagnostic in compilation.untested_diagnostics), MAX_TRIALS)
    nodes = len(compilation.graph.nodes) if compilation.graph else 0
    return min(len(text) * trials, MAX_CHARACTERS) + 2 * len(text) + _EFFORT_PER_NODE * nodes


def _count_errors(diagnostics: Sequence[Diagnostic]) -> int:
    return sum(diagnostic.severity == "error" for diagnostic in diagnostics)


def certain_fixes(diagnostics: Sequence[Diagnostic]) -> list[tuple[Diagnostic, tuple[Edit, ...]]]:
    """Return the certain fixes that do not overlap or touch, with their diagnostics."""
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
    r"""Convert edits of a text with `\n` line endings to edits of the text with its own line endings."""
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
