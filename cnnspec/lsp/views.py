"""What is shown next to the text: diagnostics, hover, inlay hints and code lenses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from lsprotocol import types as lsp

from cnnspec.diagnostics import Diagnostic, Source, Span
from cnnspec.lsp.descriptions import (
    block_text,
    callee_text,
    code,
    declared_text,
    entry_documentation,
    entry_text,
    graph_text,
    outputs_text,
    parameter_text,
    shape_text,
    short_count,
)
from cnnspec.lsp.document import Analysis, Stale, Text
from cnnspec.lsp.names import Names, Symbol
from cnnspec.ops.inits import INITS
from cnnspec.recipe import CHOICES, ENTRIES
from cnnspec.shapes import Shape
from cnnspec.syntax import ast

# --- diagnostics ---------------------------------------------------------------------------------


def diagnostics(analysis: Analysis, is_stale: Callable[[], bool] = lambda: False) -> list[lsp.Diagnostic] | None:
    """Return the errors, or if there are none the lints, in the order of their places; None if no longer needed."""
    try:
        return [to_protocol(analysis, found) for found in analysis.diagnostics(is_stale)]
    except Stale:
        return None


def to_protocol(analysis: Analysis, found: Diagnostic) -> lsp.Diagnostic:
    """Convert a diagnostic. An error in another file is shown at the statement that names the file."""
    span = found.span
    message = "\n".join([found.message, *found.notes, *([f"help: {found.help}"] if found.help else [])])
    related = [(label.span, label.text) for label in found.labels]
    if span is not None and span.source is not analysis.source:
        related.insert(0, (span, found.caption or found.message))
        span = _import_of(analysis, span.source)
    information: list[lsp.DiagnosticRelatedInformation] = []
    for other, text in related:
        if (place := location(analysis, other)) is not None:
            information.append(lsp.DiagnosticRelatedInformation(place, text or found.message))
    return lsp.Diagnostic(
        range=analysis.range(span) if span else analysis.text.range(0, analysis.text.line_end(0)),
        message=message,
        severity=lsp.DiagnosticSeverity.Error if found.severity == "error" else lsp.DiagnosticSeverity.Warning,
        code=found.code,
        source="cnnspec",
        related_information=information or None,
    )


def location(analysis: Analysis, span: Span) -> lsp.Location | None:
    """Return the location of a span, or None if its text is not in a file."""
    if span.source is analysis.source:
        return lsp.Location(analysis.uri, analysis.range(span))
    path = analysis.path_of(span.source)
    if path is None:
        return None
    return lsp.Location(uri_of(path), Text(span.source.text, analysis.text.encoding).range(span.start, span.end))


def uri_of(path: Path) -> str:
    """Return the URI of a file."""
    return path.resolve().as_uri()


def _import_of(analysis: Analysis, source: Source) -> Span | None:
    """Return the statement that names a file, or else the first one that names any."""
    paths: list[Span] = []
    for statement in analysis.tree.statements if analysis.tree else ():
        if isinstance(statement, ast.Use):
            paths.append(statement.path_span)
        elif isinstance(statement, ast.Extends):
            paths.append(statement.target_span)
    stem = source.name.rpartition("/")[2].removesuffix(".cnn")
    return next((span for span in paths if stem in span.text), paths[0] if paths else None)


# --- hover ---------------------------------------------------------------------------------------


def hover(analysis: Analysis, position: lsp.Position) -> lsp.Hover | None:
    """Describe what is at a position: its documentation, shapes, parameters, multiply-adds and receptive field."""
    offset = analysis.text.offset(position)
    nodes, names = analysis.nodes_at(offset), analysis.names
    if names is None:
        return None
    for depth in range(len(nodes), 0, -1):
        found = _describe(analysis, names, nodes[:depth], offset)
        if found is not None:
            span, parts = found
            text = "\n\n---\n\n".join(part for part in parts if part)
            return lsp.Hover(lsp.MarkupContent(lsp.MarkupKind.Markdown, text), analysis.range(span)) if text else None
    occurrence = names.at(offset)
    if occurrence is None:
        return None
    text = lsp.MarkupContent(lsp.MarkupKind.Markdown, symbol_text(analysis, occurrence.symbol))
    return lsp.Hover(text, analysis.text.range(occurrence.start, occurrence.end))


def _describe(
    analysis: Analysis, names: Names, nodes: Sequence[ast.Node], offset: int
) -> tuple[Span, list[str | None]] | None:
    """Describe the last one of nested nodes by its name; None if the offset is not at its name."""
    node = nodes[-1]
    match node:
        case ast.Call() | ast.Each() if _touches(node.callee_span, offset) and node.callee:
            return node.callee_span, _callee(analysis, names, node, nodes)
        case ast.Argument(name=str(name)) if _touches(node.name_span, offset):
            found = names.parameters(nodes).get(name)
            return node.name_span, [code(parameter_text(found)) if found else None]
        case ast.LabelName():
            return node.span, [_figures(analysis, node.span.start, nodes)]
        case ast.Again() if _touches(head := _head(node.span, "again"), offset):
            return head, [_figures(analysis, node.span.start, nodes)]
        case ast.Join() if _touches(head := _head(node.span, node.kind), offset):
            return head, [_figures(analysis, node.span.start, nodes)]
        case ast.Entry() if _touches(head := _head(node.span, node.word), offset):
            known = node.word in ENTRIES
            return head, [code(entry_text(node.word)), entry_documentation(node.word)] if known else [None]
        case ast.Network() if analysis.compilation.graph is not None:
            return node.span, [graph_text(analysis.compilation.graph)]
        case ast.Output() if _touches(head := _head(node.span, "output"), offset) and node.name in names.outputs:
            return head, [symbol_text(analysis, names.outputs[node.name])]
        case ast.Block() if _touches(node.name_span, offset):
            return node.name_span, [block_text(node)]
        case _:
            return None


def _callee(analysis: Analysis, names: Names, node: ast.Call | ast.Each, nodes: Sequence[ast.Node]) -> list[str | None]:
    entry = next((outer for outer in nodes if isinstance(outer, ast.Entry)), None)
    if entry is not None:
        kind = CHOICES.get(entry.word, {}).get(node.callee)
        return [declared_text(kind) if kind else None]
    if any(isinstance(outer, ast.Init) for outer in nodes):
        return [declared_text(INITS[node.callee]) if node.callee in INITS else None]
    outputs = analysis.outputs_of(node)
    return [callee_text(node.callee, names.block(node.callee)), outputs_text(analysis, outputs) if outputs else None]


def _figures(analysis: Analysis, start: int, nodes: Sequence[ast.Node]) -> str | None:
    outputs = analysis.outputs(start)
    flow = next((node for node in reversed(nodes) if isinstance(node, ast.Flow)), None)
    if not outputs and flow is not None and len(flow.elements) == 1:  # the label of a single call
        outputs = analysis.outputs_of(flow.elements[0])
    return outputs_text(analysis, outputs) if outputs else None


def symbol_text(analysis: Analysis, symbol: Symbol) -> str:
    """Describe a definition."""
    node = symbol.node
    if isinstance(node, ast.Block):
        return block_text(node)
    if isinstance(node, (ast.Flow, ast.Row)) and node.span.source is analysis.source:
        outputs = analysis.outputs(symbol.span.start)
        if not outputs and isinstance(node, ast.Flow):
            outputs = analysis.outputs_of(node.elements[0])
        first = " ".join(node.span.text.split())
        return "\n\n".join([code(first[:200]), *([outputs_text(analysis, outputs)] if outputs else [])])
    if isinstance(node, ast.Output) and node.span.source is analysis.source and analysis.names is not None:
        label = analysis.names.top.labels.get(node.label.label)
        return "\n\n".join([code(node.span.text), *([symbol_text(analysis, label)] if label else [])])
    if isinstance(node, ast.File):
        return f"`{node.source.name}`"
    if isinstance(node, ast.Input):
        return code(f"input {node.name} {node.span.text}")
    head = node.span.text if not isinstance(node, ast.Repeat) else node.span.text.partition("{")[0]
    return code(head[:200])


def _head(span: Span, word: str) -> Span:
    return Span(span.source, span.start, span.start + len(word))


def _touches(span: Span, offset: int) -> bool:
    return span.start <= offset <= span.end


# --- inlay hints and code lenses -----------------------------------------------------------------


def inlay_hints(analysis: Analysis, within: lsp.Range | None = None) -> list[lsp.InlayHint]:
    """Return the output shape of the last element on each line, at the end of the line."""
    text = analysis.text
    found: dict[int, tuple[int, list[Shape]]] = {}
    for element, end, is_inner in _elements(analysis.tree.statements if analysis.tree else (), False):
        line = text.line_of(end)
        if within is not None and not within.start.line <= line <= within.end.line:
            continue
        if (line not in found or found[line][0] < end) and (outputs := analysis.outputs_of(element)):
            found[line] = end, [output.shape for output in (outputs if is_inner else outputs[-1:])]
            for row in element.rows if isinstance(element, ast.Each) else ():
                shapes = [output.shape for output in analysis.outputs(row.span.start)]
                found.setdefault(text.line_of(row.span.end), (row.span.end, shapes))
    hints: list[lsp.InlayHint] = []
    for line, (_, shapes) in sorted(found.items()):
        place = text.position(text.line_end(line))
        hints.append(lsp.InlayHint(place, shape_text(shapes), lsp.InlayHintKind.Type, padding_left=True))
    return hints


def _elements(body: Sequence[ast.Node], is_inner: bool) -> Iterator[tuple[ast.Element, int, bool]]:
    """Iterate over elements, each with its end, and whether it is in a block or a repeated group."""
    for node in body:
        if isinstance(node, (ast.Block, ast.Aux)):
            yield from _elements(node.body, is_inner or isinstance(node, ast.Block))
        elif isinstance(node, ast.Flow):
            for element, following in zip_longest(node.elements, node.elements[1:]):
                yield element, _end(element, following, node), is_inner
                if isinstance(element, ast.If):
                    yield from _elements((*element.then, *(element.otherwise or ())), is_inner)
                elif isinstance(element, (ast.Braces, ast.Join, ast.Repeat)):
                    yield from _elements(element.body, is_inner or isinstance(element, ast.Repeat))


def _end(element: ast.Element, following: ast.Element | None, flow: ast.Flow) -> int:
    """Return the end of an element; the span of a join is its word, without its braces."""
    if not isinstance(element, ast.Join):
        return element.span.end
    limit = following.span.start if following is not None else flow.pipeline_span.end
    return element.span.source.text.rfind("}", element.span.end, limit) + 1 or element.span.end


def code_lenses(analysis: Analysis) -> list[lsp.CodeLens]:
    """Return the parameters of the network and of each labeled statement, with commands."""
    graph, tree = analysis.compilation.graph, analysis.tree
    lenses: list[lsp.CodeLens] = []

    def add(span: Span, title: str, command: str = "", *arguments: object) -> None:
        place = analysis.text.range(span.start, span.start)
        lenses.append(lsp.CodeLens(place, lsp.Command(title, command, arguments=[*arguments] or None)))

    for statement in tree.statements if tree else ():
        if isinstance(statement, ast.Flow) and statement.label is not None:
            outputs = analysis.outputs(statement.label.span.start) or analysis.outputs_of(statement.elements[0])
            if outputs and (count := sum(output.parameter_count for output in outputs)):
                macs = sum(output.macs for output in outputs)
                add(statement.span, f"{short_count(count)} parameters, {short_count(macs)} MACs")
    first = next((node for node in tree.statements if isinstance(node, ast.Network)), None) if tree else None
    if graph is not None and tree is not None:
        span = (first or tree.statements[0]).span
        add(span, f"{short_count(graph.parameter_count)} parameters, {short_count(graph.macs)} MACs")
        add(span, "draw", "cnnspec.draw", analysis.uri)
        add(span, "open reference", "cnnspec.openReference", analysis.uri)
    return lenses
