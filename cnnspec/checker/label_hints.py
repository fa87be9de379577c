"""Help for a reference to a label that is not in scope."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from cnnspec import ir
from cnnspec.checker.call_stack import CallStack
from cnnspec.diagnostics import Edit, Fix, Reporter, Span, respell
from cnnspec.syntax.prescan import MARKS

_MAX_LISTED = 12


class LabelHints:
    """Reports references to labels that are not in scope."""

    def __init__(self, model: ir.Model, reporter: Reporter, calls: CallStack) -> None:
        self._model, self._reporter, self._calls = model, reporter, calls
        self._owners: dict[str, str] = {}

    def report(self, label: str, origin: int, known: Sequence[str]) -> None:
        """Report a reference; `known` are the labels in scope."""
        elsewhere = self._labels.get(label)
        if elsewhere is not None:
            self._report_out_of_scope(label, origin, elsewhere)
        else:
            self._report_unknown(label, origin, known)

    def _report_out_of_scope(self, label: str, origin: int, elsewhere: int) -> None:
        at, there = self._calls.source_map[origin], self._calls.source_map[elsewhere]
        whole = self._calls.source_map.wholes.get(elsewhere)
        if at and whole and at.source is whole.source and whole.start <= at.start < whole.end:
            message = f"`@{label}` is used inside the statement that it names"
            help = (
                f"write `in` for the input of the statement; to apply it several times, write `again @{label}` after it"
            )
        elif self._calls and label not in self._owners:
            message = f"the label `{label}` is not in scope: a block does not see the labels of its caller"
            last = label.rpartition(".")[2]
            name = "side" if last.isdigit() else last
            help = f"declare the parameter `{name}: tensor` of the block, and write `{name}=@{label}` in its calls"
        elif at and there and there.source is at.source and _is_later_in_scope(at, there):
            message = f"`@{label}` is used before it is defined"
            help = "move the statement after the one with the label"
        else:
            message = f"the label `{label}` is not in scope: it is defined inside other braces"
            block = self._owners.get(label)
            outer = f"the call of `{block}`" if block else "the statement around the braces"
            help = f"label {outer} instead: a label is only visible inside its own braces"
        location = self._calls.locate(origin, labels=self._calls.label(elsewhere, "defined here"))
        self._reporter.error("E0208", message, **location, help=help)

    def _report_unknown(self, label: str, origin: int, known: Sequence[str]) -> None:
        at = self._calls.source_map[origin]
        name = Span(at.source, at.start + 1, at.start + 1 + len(label)) if at else None
        help, fixes = respell(name, label, known)
        outer = next((other for other in known if label.startswith(f"{other}.")), None)
        if outer is not None and name is not None:
            help = f"write `@{outer}` for its output: elements inside `{outer}` cannot be referenced from outside"
            fixes = (Fix(f"write `@{outer}`", (Edit(name, outer),)),)
        if help is None and known:
            help = f"labels in scope: {', '.join(f'`{name}`' for name in known[:_MAX_LISTED])}"
        help = help or f"add the label to an earlier statement, as in `{label}: conv 3x3 16`"
        location = self._calls.locate(origin)
        self._reporter.error("E0208", f"unknown label `{label}`", **location, help=help, fixes=fixes)

    @cached_property
    def _labels(self) -> dict[str, int]:
        """The origin of every label in the network and in its blocks."""
        labels = {image.name: image.origin for image in self._model.images}

        def visit(piece: Any, block: str | None) -> None:
            if isinstance(piece, ir.Flow) and piece.label and not piece.counted and piece.label not in labels:
                labels[piece.label] = piece.origin
                if block is not None:
                    self._owners[piece.label] = block
            for part in ("body", "elements", "then", "otherwise"):
                for inner in getattr(piece, part, ()):
                    visit(inner, block)

        visit(self._model, None)
        for block in self._model.blocks.values():
            visit(block, block.name)
        return labels


def _is_later_in_scope(reference: Span, label: Span) -> bool:
    """Check whether a label would be visible at an earlier reference if it were defined before it."""
    depth = least = 0
    for mark in MARKS.findall(reference.source.text, reference.end, label.start):
        depth += (mark == "{") - (mark == "}")
        least = min(least, depth)
    return label.start > reference.start and depth == least
