"""Texts of documents, their positions in the protocol, and what the compiler knows about them."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from attrs import fields, has
from lsprotocol.types import Position, Range, TextDocumentContentChangeEvent, TextDocumentContentChangePartial

from cnnspec.analysis.receptive_field import fields as receptive_fields
from cnnspec.compiler import Compilation, compile_source
from cnnspec.diagnostics import Diagnostic, Source, Span
from cnnspec.ir import IMAGE, Node
from cnnspec.lsp.names import Names
from cnnspec.shapes import Shape
from cnnspec.syntax import ast

T = TypeVar("T")


class Text:
    r"""A text with positions as the protocol counts them.

    Lines end in `\n`, `\r\n` or `\r`, and columns are code units of an encoding.

    Args:
        text: The text; newlines are normalized.
        encoding: `utf-16`, the default of the protocol, `utf-8` or `utf-32`.
    """

    def __init__(self, text: str, encoding: str = "utf-16") -> None:
        self.text, self.encoding = Source.plain(text), encoding
        self._starts = [0]
        at = self.text.find("\n")
        while at >= 0:
            self._starts.append(at + 1)
            at = self.text.find("\n", at + 1)
        self._plain = self.text.isascii()

    def line_of(self, offset: int) -> int:
        """Return the line of an offset, counted from 0."""
        return bisect_right(self._starts, offset) - 1

    def line_end(self, line: int) -> int:
        """Return the offset after the last character of a line."""
        return self._starts[line + 1] - 1 if line + 1 < len(self._starts) else len(self.text)

    def units(self, start: int, end: int) -> int:
        """Return the length of a part in code units."""
        if self._plain or self.encoding == "utf-32":
            return end - start
        return sum(self._unit(char) for char in self.text[start:end])

    def _unit(self, char: str) -> int:
        if self.encoding == "utf-16":
            return 1 + (char > "\uffff")
        return 1 + (char > "\x7f") + (char > "\u07ff") + (char > "\uffff")

    def position(self, offset: int) -> Position:
        """Return the position of an offset."""
        line = self.line_of(offset)
        return Position(line, self.units(self._starts[line], offset))

    def range(self, start: int, end: int) -> Range:
        """Return the range between two offsets."""
        return Range(self.position(start), self.position(end))

    def offset(self, position: Position) -> int:
        """Return the offset of a position; one after the end of its line is the end of the line."""
        if position.line >= len(self._starts):
            return len(self.text)
        start, end = self._starts[position.line], self.line_end(position.line)
        if self._plain or self.encoding == "utf-32":
            return min(start + position.character, end)
        left = position.character
        for offset in range(start, end):
            if left <= 0:
                return offset
            left -= self._unit(self.text[offset])
        return end

    def changed(self, changes: Sequence[TextDocumentContentChangeEvent]) -> tuple[Text, list[Change]]:
        """Apply the changes of a client in their order."""
        text, done = self, list[Change]()
        for change in changes:
            if isinstance(change, TextDocumentContentChangePartial):
                start, end = sorted((text.offset(change.range.start), text.offset(change.range.end)))
                new = Text(text.text[:start] + change.text + text.text[end:], self.encoding)
                done.append((start, end, len(new.text) - len(text.text) + end))
            else:
                new = Text(change.text, self.encoding)
                done.append(difference(text.text, new.text))
            text = new
        return text, done


Change = tuple[int, int, int]
"""Offsets of a replaced part: its start, and its end in the old and in the new text."""


def difference(old: str, new: str) -> Change:
    """Return the smallest single change that makes one text of another."""
    shorter = min(len(old), len(new))
    start = _common(old, new, shorter)
    after = _common(old[::-1], new[::-1], shorter - start)
    return start, len(old) - after, len(new) - after


@dataclass(frozen=True)
class Output:
    """The output of a statement or an element in one of its expansions.

    Attributes:
        path: The path of its module.
        nodes: Its operators, in the order of execution.
        inputs: The shapes of the inputs of the first operator.
        shape: The shape of its output.
        end: The index of the node of its output.
    """

    path: str
    nodes: Sequence[Node]
    inputs: Sequence[Shape]
    shape: Shape
    end: int

    @property
    def parameter_count(self) -> int:
        return sum(node.parameter_count for node in self.nodes)

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self.nodes)


class Stale(Exception):
    """A computation whose result is outdated."""


class Analysis:
    """A text and its compilation. Values are computed on first access.

    Args:
        text: The text.
        uri: The document.
        path: The file; None for a text that is not stored.
        buffers: The texts of open documents, by resolved path.

    Attributes:
        cost: Milliseconds of processor time that it took.
    """

    cost = 0.0

    def __init__(
        self, text: Text, uri: str, path: Path | None = None, buffers: Mapping[Path, str] | None = None
    ) -> None:
        self.text, self.uri, self.path = text, uri, path
        name = path.name if path is not None else uri
        self.buffers = {
            other: buffer for other, buffer in (buffers or {}).items() if path is None or other != path.resolve()
        }
        self.compilation: Compilation = compile_source(Source(name, text.text), path, buffers=self.buffers)
        self.source = self.compilation.source

    @property
    def tree(self) -> ast.File | None:
        return self.compilation.tree

    @cached_property
    def names(self) -> Names | None:
        return Names(self.tree, self.compilation.library) if self.tree is not None else None

    def path_of(self, source: Source) -> Path | None:
        """Return the file of a source."""
        if source is self.source:
            return self.path
        library = self.compilation.library
        return library.path_of(source) if library is not None else None

    @classmethod
    def ready(cls, *args: Any) -> Analysis:
        """Compile a text, and compute what most features need."""
        begun = time.thread_time()
        analysis = cls(*args)
        _ = analysis.names, analysis._places, analysis._inside
        analysis.cost = 1000 * (time.thread_time() - begun)
        return analysis

    def diagnostics(self, is_stale: Callable[[], bool] = lambda: False) -> Sequence[Diagnostic]:
        """Return the errors or lints with tested fixes.

        Raises:
            Stale: The result is outdated.
        """
        compile_again = self.compilation.recompile

        def recompile(text: str, steps: int) -> Compilation:
            if is_stale():
                raise Stale
            assert compile_again is not None
            return compile_again(text, steps)

        try:
            self.compilation.recompile = recompile
            return self.compilation.diagnostics
        finally:
            self.compilation.recompile = compile_again

    def range(self, span: Span) -> Range:
        """Return the range of a span in this text."""
        return self.text.range(span.start, span.end)

    def nodes_at(self, offset: int) -> list[ast.Node]:
        """Return the nodes of the tree that contain an offset, from the outside in.

        The span of a join is its word, so it also contains what follows up to the next element.
        """
        found: list[ast.Node] = []
        node: ast.Node | None = self.tree
        while node is not None:
            found.append(node)
            before = (child for child in node.children() if child.span.start <= offset)
            inside = (child for child in before if offset <= child.span.end or isinstance(child, ast.Join))
            node = max(inside, key=lambda child: child.span.start, default=None)
        return found

    @cached_property
    def _places(self) -> tuple[dict[int, list[int]], dict[int, list[str]]]:
        """The operators and the scopes of the network by the start of the code that they come from."""
        nodes: dict[int, list[int]] = {}
        scopes: dict[int, list[str]] = {}
        built = self.compilation.expanded
        for index, node in enumerate(built.nodes if built else ()):
            if node.origin is not None and node.origin.source is self.source:
                nodes.setdefault(node.origin.start, []).append(index)
        for path, origin in built.origins.items() if built else ():
            if origin is not None and origin.source is self.source:
                scopes.setdefault(origin.start, []).append(path)
        return nodes, scopes

    @cached_property
    def _inside(self) -> dict[str, list[int]]:
        """The operators of each scope."""
        found: dict[str, list[int]] = {}
        for index, node in enumerate(self.compilation.expanded.nodes if self.compilation.expanded else ()):
            path = node.place if not node.op.owns_module else node.place.rpartition(".")[0]
            while path:
                found.setdefault(path, []).append(index)
                path = path.rpartition(".")[0]
        return found

    def outputs(self, start: int) -> list[Output]:
        """Return the outputs of the statement, call, join or `again` that starts at an offset, as they are executed.

        There is more than one if it is repeated, or is part of a block with several calls.
        """
        built, model = self.compilation.expanded, self.compilation.model
        if built is None or model is None:
            return []
        nodes, scopes = self._places
        found: list[Output] = []

        def add(path: str, inside: Sequence[int], end: int) -> None:
            first = built.nodes[inside[0]]
            inputs = [model.input if i == IMAGE else built.nodes[i].shape for i in first.inputs]
            parts = [built.nodes[index] for index in inside]
            found.append(Output(path, parts, inputs, built.nodes[end].shape, end))

        uses: dict[object, list[int]] = {}
        for index in nodes.get(start, ()):
            uses.setdefault(built.nodes[index].use or index, []).append(index)
        for inside in uses.values():
            use = built.nodes[inside[0]].use
            path = use.module if use is not None else built.nodes[inside[0]].path
            last = built.nodes[built.ends.get(path, inside[-1])].path  # the same for all uses
            add(path, inside, next((index for index in inside if built.nodes[index].path == last), inside[-1]))
        for path in scopes.get(start, ()):
            if path in built.ends and self._inside.get(path):
                add(path, self._with_uses(self._inside[path], start, built.ends[path]), built.ends[path])
        return sorted(found, key=lambda output: output.end)

    def _with_uses(self, inside: list[int], start: int, end: int) -> Sequence[int]:
        """Return the operators of a statement that starts at an offset, with those that it applies again."""
        nodes = self.compilation.expanded.nodes if self.compilation.expanded else ()
        first, own = inside[0], {*inside}

        def is_use(index: int) -> bool:
            origin = nodes[index].origin if 0 <= index < len(nodes) and nodes[index].use is not None else None
            return origin is not None and origin.source is self.source and origin.start > start

        while is_use(first - 1):
            first -= 1
        return [index for index in range(first, max(inside[-1], end) + 1) if index in own or is_use(index)]

    def outputs_of(self, element: ast.Element) -> list[Output]:
        """Return the outputs of an element; those of all rows for a table."""
        if isinstance(element, ast.Each):
            rows = (output for row in element.rows for output in self.outputs(row.span.start))
            return sorted(rows, key=lambda output: output.end)
        return self.outputs(element.callee_span.start if isinstance(element, ast.Call) else element.span.start)

    @cached_property
    def fields(self) -> list[tuple[int | None, int | None]]:
        """The receptive field of each node; empty unless the network is valid."""
        graph = self.compilation.graph
        return receptive_fields(graph) if graph is not None else []


class Moved:
    """Positions after some changes: an answer for an old text, moved to a new one.

    Args:
        old: The old text.
        new: The new text.
        changes: The changes between them, in their order.
    """

    def __init__(self, old: Text, new: Text, changes: Sequence[Change]) -> None:
        self.old, self.new, self._changes = old, new, changes

    def back(self, position: Position) -> Position | None:
        """Return the position in the old text; None in what was changed."""
        offset = self.new.offset(position)
        for start, end, new_end in reversed(self._changes):
            if start < offset < new_end:
                return None
            offset += end - new_end if offset >= new_end else 0
        return self.old.position(offset)

    def forward(self, position: Position) -> Position:
        """Return the position in the new text; the end of the change for what was changed."""
        offset = self.old.offset(position)
        for start, end, new_end in self._changes:
            offset = offset + new_end - end if offset >= end else min(offset, start)
        return self.new.position(offset)

    def answer(self, value: T) -> T:
        """Move every position in an answer, and return it."""
        _move(value, self.forward)
        return value


def _common(a: str, b: str, limit: int) -> int:
    """Return the length of the common prefix of two texts."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _move(value: Any, move: Callable[[Position], Position]) -> None:
    """Move every position in a value of the protocol, in place."""
    if isinstance(value, list):
        for item in cast(list[Any], value):
            _move(item, move)
        return
    for name in _fields_of(cast(Any, type(value))):
        part = getattr(value, name)
        if isinstance(part, Position):
            setattr(value, name, move(part))
        elif not isinstance(part, str):
            _move(part, move)


@cache
def _fields_of(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind)) if has(kind) else ()
