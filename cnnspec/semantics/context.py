"""The state that the stages of one elaboration share."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cnnspec.diagnostics import Reporter, Span
from cnnspec.limits import MAX_NAMES
from cnnspec.syntax import RESERVED, ast


@dataclass
class SourceMap:
    """A map from the origins in a Model to spans of the source text.

    Attributes:
        wholes: For an origin that marks a part of a call or pipeline, such as its name: the span of the whole.
    """

    spans: list[Span | None] = field(default_factory=lambda: [None])
    wholes: dict[int, Span] = field(default_factory=dict[int, Span])

    def add(self, span: Span, whole: Span | None = None) -> int:
        """Add a span and return its origin."""
        self.spans.append(span)
        if whole is not None:
            self.wholes[len(self.spans) - 1] = whole
        return len(self.spans) - 1

    def __getitem__(self, origin: int) -> Span | None:
        return self.spans[origin] if 0 <= origin < len(self.spans) else None


@dataclass
class Context:
    """The state of one elaboration.

    Attributes:
        reporter: Takes the diagnostics.
        source_map: The spans of the pieces of the Model.
        used_names: The names used so far in the block being elaborated, in expressions and in placeholders.
        open_blocks: The blocks being elaborated, outermost first, each with the span of its first call.
        depth: The number of elements being elaborated that contain the current one.
        too_deep: Whether elements were nested deeper than the limit; the error is reported.
    """

    reporter: Reporter
    source_map: SourceMap = field(default_factory=SourceMap)
    used_names: set[str] = field(default_factory=set[str])
    open_blocks: list[tuple[ast.Block, Span]] = field(default_factory=list[tuple[ast.Block, Span]])
    depth: int = 0
    too_deep: bool = False

    @contextmanager
    def inside(self, block: ast.Block, span: Span) -> Generator[None]:
        """Mark a block as open and collect the names that it uses."""
        self.open_blocks.append((block, span))
        outer, self.used_names = self.used_names, set()
        try:
            yield
        finally:
            self.used_names = outer
            self.open_blocks.pop()

    @contextmanager
    def quiet(self) -> Generator[None]:
        """Discard the diagnostics of a step that is repeated later."""
        reporter, self.reporter = self.reporter, Reporter()
        try:
            yield
        finally:
            self.reporter = reporter

    def check_name_limit(self, count: int, span: Span) -> None:
        """Report that a scope which already has `count` names cannot take another one.

        Raises:
            Reported: The limit is reached.
        """
        if count >= MAX_NAMES:
            message = f"the named values of this scope exceed the limit of {MAX_NAMES}"
            help = "write values where they are used, or as rows of `each`"
            raise self.reporter.error("E0405", message, span, help=help)


def refuse_reserved(reporter: Reporter, what: str, name: str, span: Span) -> None:
    """Report a definition whose name is a reserved word; `what` says of what kind it is."""
    if name in RESERVED:
        help = f"choose another name for the {what}"
        if name == "classes" and what in ("value", "parameter"):
            help = "define the number of classes with `classes 10`"
        reporter.error("E0211", f"invalid {what} name `{name}`: it is a reserved word", span, help=help)
