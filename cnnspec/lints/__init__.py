"""Lints: warnings about likely mistakes in a spec without errors.

Rules of the text read the syntax tree of the user's file, rules of the network read its Graph. Shipped blocks are not
reported. To add a lint, write a rule and list it in `RULES` of its module.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from cnnspec import ir
from cnnspec.diagnostics import Diagnostic, Span, counted
from cnnspec.limits import MAX_ERRORS
from cnnspec.lints import network, text
from cnnspec.lints.base import LintContext
from cnnspec.lints.suppression import suppress
from cnnspec.syntax import ast

OFF_BY_DEFAULT = frozenset({"W0120"})
"""Codes of lints that are only reported on request."""


def lint(file: ast.File, graph: ir.Graph | None, on: Collection[str] = ()) -> list[Diagnostic]:
    """Check a file without errors for likely mistakes.

    Args:
        file: The syntax tree of the file.
        graph: Its network; `None` where it only defines blocks.
        on: Codes of lints to report that are off by default.

    Returns:
        The warnings in the order of their places, at most `MAX_ERRORS`; the last one counts the rest.
    """
    context = LintContext(file, graph)
    warnings = [warning for rule in text.RULES for warning in rule(context)]
    if graph is not None:
        warnings += [warning for rule in network.RULES for warning in rule(context, graph)]
    unique: dict[tuple[str, Span | None], Diagnostic] = {}
    for warning in warnings:
        unique.setdefault((warning.code, warning.span), warning)
    off = OFF_BY_DEFAULT - {*on}
    shown = [warning for warning in suppress(file, [*unique.values()]) if warning.code not in off]
    found = sorted(shown, key=lambda d: d.span.start if d.span else -1)
    if len(found) > MAX_ERRORS:
        note = f"{counted(len(found) - MAX_ERRORS, 'more warning')} not shown: fix these first, then check again"
        found[MAX_ERRORS - 1 :] = [replace(found[MAX_ERRORS - 1], notes=(*found[MAX_ERRORS - 1].notes, note))]
    return found
