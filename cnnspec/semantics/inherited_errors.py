"""Errors in a network that a file extends, moved to the statements of the file that cause them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest

from cnnspec import ir
from cnnspec.diagnostics import Diagnostic, Edit, Label, Span, apply_edits
from cnnspec.syntax import ast

_MAX_TRIALS = 8
_MAX_CHARACTERS = 64 * 1024
"""Length of all texts that are compiled together."""
_MAX_STEPS = 16_000
"""Elements that are expanded in all trials together."""

_Key = tuple[str, str | None, int]
"""What a diagnostic has in common with the same one of another text: code, file and position."""


def move_to_causes(
    diagnostics: Sequence[Diagnostic],
    file: ast.File,
    characters: int,
    again: Callable[[str, int], tuple[Sequence[Diagnostic], ir.Model | None]],
) -> list[Diagnostic]:
    """Move the errors of an extended network to the statements that cause them.

    A statement causes an error if the text without it has neither this error nor a new one. If it takes several
    statements, the place is `extends`. The number of trials is limited to keep a check fast.

    Args:
        diagnostics: The errors of a file.
        file: The file.
        characters: The length of the file and of the files that it extends and uses.
        again: Compiles another text in place of the file, given a limit on elements: errors and Model.
    """
    extends = next((one for one in file.statements if isinstance(one, ast.Extends)), None)
    inherited = {_key(one) for one in diagnostics if one.span and one.span.source is not file.source}
    if extends is None or not inherited:
        return [*diagnostics]
    known = {_key(one) for one in diagnostics}
    places: dict[_Key, Span] = {}

    def remove(parts: Iterable[Span]) -> tuple[set[_Key], ir.Model | None]:
        """Return which of the errors are gone without some parts of the file, and the Model."""
        text = apply_edits(file.source.text, [Edit(span, re.sub(r"[^\n]", " ", span.text)) for span in parts])
        found, model = again(text, _MAX_STEPS // trials)
        left = {_key(one) for one in found if one.severity == "error"}
        return (inherited - left if left <= known else set()), model

    causes = _causes(file, extends)
    trials = min(len(causes) + 1, _MAX_TRIALS, _MAX_CHARACTERS // max(characters, 1))
    open_errors = remove(span for parts, _ in causes for span in parts)[0] if causes and trials else set[_Key]()
    places |= dict.fromkeys(open_errors, extends.target_span)
    for parts, place in causes[: max(trials - 1, 0)]:
        if open_errors:
            gone, model = remove(parts)
            places |= dict.fromkeys(open_errors & gone, place(model))
            open_errors -= gone
    unique: dict[object, Diagnostic] = {}
    for one in diagnostics:
        moved = _moved(one, places[_key(one)], extends) if _key(one) in places else one
        unique.setdefault((moved.code, moved.message, moved.span or moved.file), moved)
    return sorted(unique.values(), key=lambda one: _order(one, file))


def _key(diagnostic: Diagnostic) -> _Key:
    return diagnostic.code, diagnostic.name, diagnostic.span.start if diagnostic.span else -1


def _order(diagnostic: Diagnostic, file: ast.File) -> tuple[bool, int]:
    span = diagnostic.span
    return (True, 0) if span and span.source is not file.source else (False, span.start if span else -1)


def _causes(file: ast.File, extends: ast.Extends) -> list[tuple[list[Span], Callable[[ir.Model | None], Span]]]:
    """Return the parts of a file that change the extended network: what to remove, and the place of its errors."""
    own: list[tuple[Span, Span]] = [(arg.span, arg.span) for arg in extends.args]
    for one in file.statements:
        if isinstance(one, (ast.Classes, ast.Default)):
            own.append((one.span, one.span))
        elif isinstance(one, ast.Block):
            own.append((one.span, one.name_span))
    causes: list[tuple[list[Span], Callable[[ir.Model | None], Span]]]
    causes = [([removed], lambda _, place=place: place) for removed, place in own]
    inputs = [one for one in file.statements if isinstance(one, ast.Input)]
    if inputs:
        causes.insert(0, ([*map(_whole, inputs)], lambda model: _changed(inputs, model)))
    return causes


def _whole(statement: ast.Input) -> Span:
    """Return the span of an `input` with its keyword."""
    start = (statement.name_span or statement.span).start
    source = statement.span.source
    return Span(source, source.text.rindex("input", 0, start), statement.span.end)


def _changed(inputs: Sequence[ast.Input], extended: ir.Model | None) -> Span:
    """Return the place of the first image with another name or other channels than in the extended network."""
    named = extended.images if extended else ()
    before = [(image.name, image.channels) for image in named] or [(None, extended and extended.input[0])]
    pairs = zip_longest(inputs, before)
    changed = next((one for one, image in pairs if one and (one.name, one.channels) != image), inputs[0])
    return changed.name_span or changed.span


def _moved(diagnostic: Diagnostic, place: Span, extends: ast.Extends) -> Diagnostic:
    """Return a diagnostic at another place, with a label at its own."""
    assert diagnostic.span is not None
    caption, labels = (
        f"changes the network in `{diagnostic.span.source.name}`",
        [Label(diagnostic.span, diagnostic.caption or "fails here")],
    )
    for label in diagnostic.labels:
        if label.span == place:
            caption = label.text
        elif label.span != extends.span:  # all arguments
            labels.append(label)
    return replace(diagnostic, span=place, caption=caption, labels=tuple(labels))
