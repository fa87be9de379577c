"""The stack of block calls, and where an error inside them is reported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from cnnspec.diagnostics import Label, Span
from cnnspec.semantics.context import SourceMap


class Location(TypedDict):
    """The arguments of `Reporter.error` that state a place."""

    span: Span | None
    caption: str
    labels: list[Label]


class CallStack:
    """The block calls that lead to the current element, outermost first.

    Attributes:
        source_map: The source position of each piece of the Model, by its origin.
    """

    def __init__(self, source_map: SourceMap) -> None:
        self.source_map = source_map
        self._calls: list[tuple[int, int]] = []

    def push(self, origin: int, iteration: int) -> None:
        """Enter a block; `iteration` counts the iterations of a repeated call from 0."""
        self._calls.append((origin, iteration))

    def pop(self) -> None:
        """Leave the innermost block."""
        self._calls.pop()

    def __bool__(self) -> bool:
        return bool(self._calls)

    def locate(self, origin: int, caption: str = "", labels: Iterable[Label] = ()) -> Location:
        """Return where to report an error in a piece of the Model.

        An error in a shipped block is reported at the innermost call in the user's own file. An error in the user's
        own block gets a label at that call.
        """
        span, labels = self.source_map[origin], list(labels)
        calls = ((self.source_map[call], iteration) for call, iteration in reversed(self._calls))
        call, iteration = next((found for found in calls if found[0] and not found[0].source.shipped), (None, 0))
        if span is not None and call is not None:
            if span.source.shipped:
                labels.insert(0, Label(span, caption))
                span, caption = call, f"in this call{_iteration(iteration)}"
            else:
                labels.append(Label(call, f"called from here{_iteration(iteration)}"))
        return {"span": span, "caption": caption, "labels": labels}

    def label(self, origin: int, text: str) -> list[Label]:
        """Return a label at a piece of the Model; none if its position is unknown."""
        span = self.source_map[origin]
        return [Label(span, text)] if span is not None else []


def _iteration(iteration: int) -> str:
    return f", iteration {iteration + 1}" if iteration else ""
