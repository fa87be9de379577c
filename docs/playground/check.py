"""Check a spec for the playground. Pyodide runs this in a web worker."""

from __future__ import annotations

import json
from typing import Any

from cnnspec import api
from cnnspec.analysis.summary import COLUMNS, DEFAULT_COLUMNS, summarize
from cnnspec.compiler import compile_source, plain_source
from cnnspec.diagnostics import CnnspecError, Diagnostic, Source, Span, render
from cnnspec.ir import Graph
from cnnspec.semantics.loader import shipped_specs
from cnnspec.shapes import text as shape_text

EXAMPLES = ("resnet20", "resnet18", "vgg11", "googlenet", "densenet121", "mobilenet_v2", "convnext_tiny")
"""The examples that are listed first."""


def examples() -> str:
    """Return the texts of the shipped networks by name."""
    specs = shipped_specs()
    names = [*(name for name in EXAMPLES if name in specs), *(name for name in specs if name not in EXAMPLES)]
    return json.dumps({name: specs[name].read_text("utf-8") for name in names})


def format(text: str) -> str:
    """Return the formatted text; unchanged if it has errors."""
    try:
        return api.format(text)
    except CnnspecError:
        return text


def check(text: str, theme: str) -> str:
    """Return diagnostics, shapes, summary and diagram of a text as JSON. Positions count units of UTF-16.

    Args:
        text: The spec; its lines end in a newline.
        theme: The theme of the diagram, `light` or `dark`.
    """
    done = compile_source(plain_source(text, "network"))
    found: dict[str, Any] = {"diagnostics": [_diagnostic(one, done.source) for one in done.diagnostics]}
    if (graph := done.graph) is not None:
        found["shapes"] = _shapes(graph, done.source)
        summary = summarize(graph)
        columns = [COLUMNS[name] for name in DEFAULT_COLUMNS]
        found["head"] = ["module", *(column.title for column in columns)]
        rows = [*summary.upto(2), summary.total]
        found["rows"] = [[row.path or "total", *(column.cell(row) for column in columns)] for row in rows]
        found["title"] = repr(graph)
        try:
            found["svg"] = api.draw(graph, theme=theme).decode()
        except CnnspecError as error:  # too large
            found["undrawn"] = error.diagnostics[0].message
    return json.dumps(found)


def _diagnostic(found: Diagnostic, source: Source) -> dict[str, Any]:
    span = found.span if found.span and found.span.source is source else Span(source, 0, 0)
    fixes = [{"help": fix.help, "text": fix.apply(source.text)} for fix in found.fixes]
    start, end = (_utf16(source.text, offset) for offset in (span.start, span.end))
    return {
        "severity": found.severity,
        "code": found.code,
        "message": found.message,
        "text": render(found),
        "from": start,
        "to": end,
        "fixes": fixes,
    }


def _shapes(graph: Graph, source: Source) -> dict[int, str]:
    """Return the shape at the end of each line; of a line that is run several times, the first and the last one."""
    ends: dict[int, dict[int, list[tuple[int, ...]]]] = {}
    places = [(node.origin, node.shape) for node in graph.nodes]
    places += [
        (span, graph.nodes[graph.ends[path]].shape) for path, span in graph.origins.items() if path in graph.ends
    ]
    for span, shape in places:
        if span is not None and span.source is source:
            ends.setdefault(span.line, {}).setdefault(span.start, []).append(shape)
    found: dict[int, str] = {}
    for line, by_start in ends.items():
        texts = [shape_text(shape) for shape in by_start[max(by_start)]]
        found[line] = texts[0] if len({*texts}) == 1 else f"{texts[0]} … {texts[-1]}"
    return found


def _utf16(text: str, offset: int) -> int:
    return len(text[:offset].encode("utf-16-le", "surrogatepass")) // 2
