"""Where names are defined and used, their renaming, and the outline of a document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException

from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Source, Span, counted
from cnnspec.ir import Graph
from cnnspec.lsp.document import Analysis
from cnnspec.lsp.names import Occurrence, Symbol
from cnnspec.lsp.views import location
from cnnspec.ops import OPS, Op
from cnnspec.schema import TensorName
from cnnspec.syntax import RESERVED, ast

Place = tuple[Path | None, int]


def definition(analysis: Analysis, position: lsp.Position) -> lsp.Location | None:
    """Return where the name at a position is defined."""
    found = occurrence_at(analysis, position)
    return location(analysis, found.symbol.span) if found is not None else None


def occurrence_at(analysis: Analysis, position: lsp.Position) -> Occurrence | None:
    """Return the occurrence of a name at a position."""
    names = analysis.names
    return names.at(analysis.text.offset(position)) if names is not None else None


def place_of(analysis: Analysis, symbol: Symbol) -> Place:
    """Return the file and offset of a definition, which identify it in all documents."""
    path = analysis.path_of(symbol.span.source)
    return path.resolve() if path is not None else None, symbol.span.start


def occurrences(analysis: Analysis, place: Place, kind: str) -> list[Occurrence]:
    """Return the occurrences in a document of a symbol that is defined at a place."""
    names = analysis.names
    return [
        found
        for found in (names.occurrences if names is not None else ())
        if found.symbol.kind == kind and place_of(analysis, found.symbol) == place
    ]


def highlights(analysis: Analysis, position: lsp.Position) -> list[lsp.DocumentHighlight]:
    """Return all occurrences in the document of the name at a position."""
    found = occurrence_at(analysis, position)
    if found is None:
        return []
    own = occurrences(analysis, place_of(analysis, found.symbol), found.symbol.kind)
    return [lsp.DocumentHighlight(analysis.text.range(other.start, other.end)) for other in own]


def references(analyses: Iterable[Analysis], place: Place, kind: str, *, with_definition: bool) -> list[lsp.Location]:
    """Return the uses of a symbol in several documents."""
    found: list[lsp.Location] = []
    for analysis in analyses:
        own = analysis.path.resolve() if analysis.path is not None else None
        for one in occurrences(analysis, place, kind):
            if with_definition or (own, one.start) != place:
                found.append(lsp.Location(analysis.uri, analysis.text.range(one.start, one.end)))
    return found


# --- rename --------------------------------------------------------------------------------------


def refused(reason: str) -> JsonRpcException:
    """Return the error for a name that cannot be changed."""
    return JsonRpcException(reason, lsp.LSPErrorCodes.RequestFailed)


@dataclass(frozen=True)
class Renaming:
    """The edits of a renaming in each document, and a note if keys of the state dict change."""

    edits: dict[str, list[lsp.TextEdit]]
    note: str | None


def renamable(analysis: Analysis, position: lsp.Position) -> Occurrence:
    """Return the occurrence of the name at a position.

    Raises:
        JsonRpcException: There is none, or its definition is not part of a text of the user.
    """
    found = occurrence_at(analysis, position)
    if found is None:
        raise refused("no name that can be renamed at this position")
    symbol = found.symbol
    if symbol.span.source.shipped:
        raise refused(f"`{symbol.name}` is defined in a file of cnnspec")
    if symbol.kind == "file" or isinstance(symbol.node, ast.Classes):
        raise refused(f"`{symbol.name}` cannot be renamed")
    if isinstance(symbol.node, ast.Flow) and symbol.node.label is not None and symbol.node.label.word:
        raise refused(f"`{symbol.name}` is a keyword; write `{symbol.name}:` to use another label")
    return found


def prepare_rename(analysis: Analysis, params: lsp.PrepareRenameParams) -> lsp.Range:
    """Return the range of the name at a position.

    Raises:
        JsonRpcException: It cannot be renamed.
    """
    found = renamable(analysis, params.position)
    return analysis.text.range(found.start, found.end)


def rename(analyses: Sequence[Analysis], place: Place, symbol: Symbol, new: str) -> Renaming:
    """Rename a symbol in several documents.

    Raises:
        JsonRpcException: The name is invalid, or a document would have new errors or another network.
    """
    pattern = {"label": r"[A-Za-z_]\w*(\.\w+)*", "output": r"\w+(\.\w+)*"}.get(symbol.kind, r"[A-Za-z_]\w*")
    reserved = {"label": {"else"}, "output": set[str](), "block": RESERVED | {*OPS}}.get(symbol.kind, RESERVED)
    if not re.fullmatch(pattern, new, re.ASCII) or new in reserved:
        raise refused(f"`{new}` is not a valid name")
    changed: dict[str, tuple[Analysis, str, list[lsp.TextEdit]]] = {}
    for analysis in analyses:
        found = occurrences(analysis, place, symbol.kind)
        if found:
            text, edits, done = analysis.text.text, list[lsp.TextEdit](), 0
            parts: list[str] = []
            for one in found:
                parts += [text[done : one.start], new]
                edits.append(lsp.TextEdit(analysis.text.range(one.start, one.end), new))
                done = one.end
            changed[analysis.uri] = analysis, "".join([*parts, text[done:]]), edits
    buffers = {a.path.resolve(): text for a, text, _ in changed.values() if a.path is not None}
    keys = 0
    for analysis, text, _ in changed.values():
        keys += _changed_keys(analysis, text, {**analysis.buffers, **buffers}, new)
    note = f"changes {counted(keys, 'key')} of the state dict: weights that were saved before have the old ones"
    return Renaming({uri: edits for uri, (_, _, edits) in changed.items()}, note if keys else None)


def _changed_keys(analysis: Analysis, text: str, buffers: dict[Path, str], new: str) -> int:
    """Return the number of keys of the state dict that another text changes.

    Raises:
        JsonRpcException: It has other errors, or describes another network.
    """
    source = Source(analysis.source.name, text)
    after = compile_source(source, analysis.path, buffers=buffers)
    before = analysis.compilation
    errors = [[found.code for found in one.reporter.sorted()] for one in (before, after)]
    if errors[0] != errors[1]:
        first = next((found.message for found in after.reporter.sorted()), "the errors of the text would change")
        raise refused(f"`{new}` cannot be used: {first}")
    if before.graph is None or after.graph is None:
        return 0
    if _structure(before.graph) != _structure(after.graph):
        raise refused(f"`{new}` cannot be used: it has another meaning in `{analysis.source.name}`")
    keys = [[key for node in graph.nodes for key in node.parameters] for graph in (before.graph, after.graph)]
    return sum(one != other for one, other in zip(*keys, strict=True))


def _structure(graph: Graph) -> list[object]:
    nodes = ((node.op.name, _values(node.op), node.inputs, node.shape, node.aux is None) for node in graph.nodes)
    return [*nodes, *graph.taps.values()]


def _values(op: Op) -> dict[str, object]:
    """Return the settings of an operator, without the names of tensors."""
    return {name: value for name, value in op.settings().items() if not isinstance(value, TensorName)}


# --- outline -------------------------------------------------------------------------------------


def document_symbols(analysis: Analysis) -> list[lsp.DocumentSymbol]:
    """Return the definitions and labels of a document."""
    tree = analysis.tree
    return [*_symbols(analysis, tree.statements)] if tree is not None else []


def _symbols(analysis: Analysis, body: Iterable[ast.Node]) -> Iterator[lsp.DocumentSymbol]:
    for node in body:
        children: list[lsp.DocumentSymbol] = []
        match node:
            case ast.Network():
                name, kind, span = node.name, lsp.SymbolKind.Module, node.span
            case ast.Param():
                name, kind, span = node.name, lsp.SymbolKind.Constant, node.name_span
            case ast.Let():
                name, kind, span = node.name, lsp.SymbolKind.Variable, node.name_span
            case ast.Block():
                name, kind, span = node.name, lsp.SymbolKind.Function, node.name_span
                children = [*_symbols(analysis, (*node.parameters, *node.body))]
            case ast.BlockParameter():
                name, kind, span = node.name, lsp.SymbolKind.TypeParameter, node.span
            case ast.Train():
                name, kind, span = "train", lsp.SymbolKind.Object, _first(node.span, 5)
                children = [*_symbols(analysis, node.entries)]
            case ast.Entry():
                name, kind, span = node.word, lsp.SymbolKind.Property, _first(node.span, len(node.word))
            case ast.Aux():
                name, kind, span = node.name, lsp.SymbolKind.Field, _first(node.span, 3)
                children = [*_symbols(analysis, node.body)]
            case ast.Output():
                name, kind, span = node.name, lsp.SymbolKind.Event, node.name_span
            case ast.Flow():
                children = [*_symbols(analysis, _bodies(node))]
                if node.label is None:
                    yield from children
                    continue
                name, kind, span = node.label.name, lsp.SymbolKind.Field, node.label.span
            case _:
                continue
        whole = analysis.range(node.span)
        detail = None if children else " ".join(node.span.text.split())[:80]
        yield lsp.DocumentSymbol(name, kind, whole, analysis.range(span), detail, children=children or None)


def _first(span: Span, length: int) -> Span:
    return Span(span.source, span.start, min(span.start + length, span.end))


def _bodies(flow: ast.Flow) -> Iterator[ast.Node]:
    for element in flow.elements:
        if isinstance(element, (ast.Braces, ast.Join, ast.Repeat)):
            yield from element.body
        elif isinstance(element, ast.If):
            yield from (*element.then, *(element.otherwise or ()))
