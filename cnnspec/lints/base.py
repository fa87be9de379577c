"""What lints of the text and of the network share."""

from __future__ import annotations

import re
from typing import Any

from cnnspec import ir
from cnnspec.diagnostics import Diagnostic, Edit, Fix, Span
from cnnspec.semantics.context import FILLED
from cnnspec.syntax import ast

LITERALS = (ast.Number, ast.Bool, ast.Text, ast.SizeLiteral)


def without_line(span: Span) -> Edit:
    """Takes a statement out, with its line if nothing else stands there."""
    text = span.source.text
    start, end = text.rfind("\n", 0, span.start) + 1, (text + "\n").index("\n", span.end)
    if not text[start : span.start].strip() and re.fullmatch(r"[ \t]*(#[^\n]*)?", text[span.end : end]):
        return Edit(Span(span.source, start, min(end + 1, len(text))), "")
    behind = re.compile(r"[ \t]*;[ \t]*").match(text, span.end)
    return Edit(Span(span.source, span.start, behind.end() if behind else span.end), "")


def without(span: Span) -> Edit:
    """Takes an argument out, with the spaces in front of it."""
    start = len(span.source.text[: span.start].rstrip(" \t"))
    return Edit(Span(span.source, start, span.end), "")


def _names(node: ast.Node) -> set[str]:
    """The words in a piece of a spec that can mean a value, an operator or a block."""
    found: set[str] = set()
    for part in node.walk():
        match part:
            case ast.Name():
                found.add(part.name)
            case ast.Call() | ast.Each():
                found.add(part.callee)
            case ast.Text():
                found.update(FILLED.findall(part.value))
            case ast.Require():
                found.update(FILLED.findall(part.message or ""))
            case _:
                pass
    return found


class Lints:
    def __init__(self, file: ast.File, graph: ir.Graph | None) -> None:
        self.file = file
        self.graph = graph
        self.found: dict[tuple[str, Span | None], Diagnostic] = {}
        self.extends = any(isinstance(statement, ast.Extends) for statement in file.statements)
        self.blocks = {s.name: s for s in file.statements if isinstance(s, ast.Block)}
        self.defaults = {s.call.callee for s in file.statements if isinstance(s, ast.Default)}
        self.parts = list(file.walk())
        self._names: dict[int, set[str]] = {}

    def names(self, node: ast.Node) -> set[str]:
        """The words in a piece of a spec that can mean a value, an operator or a block."""
        known = self._names.get(id(node))
        if known is None:
            known = self._names[id(node)] = _names(node)
        return known

    def say(self, code: str, message: str, span: Span, help: str, edit: Edit | None = None, **more: Any) -> None:
        certain = more.pop("certain", True)
        fixes = (Fix(help, (edit,), certain),) if edit is not None else ()
        self.found.setdefault((code, span), Diagnostic(code, message, span, help=help, fixes=fixes, **more))

    def own(self, node: ir.Node) -> bool:
        return node.origin is not None and node.origin.source is self.file.source
