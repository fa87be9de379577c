"""Lints: what is no fault, but most likely not what was meant. They never make a spec invalid.

Those of the text look at the tree of the user's file, those of the network at its Graph, as far as it was written in
that file: what lies in a shipped block is not the user's to mend. `# cnnspec: ignore W0106` silences one.
"""

from __future__ import annotations

import re
from dataclasses import replace

from cnnspec import ir
from cnnspec.diagnostics import Diagnostic, Fix, counted
from cnnspec.limits import MAX_FAULTS
from cnnspec.lints.base import without, without_line
from cnnspec.lints.network import NetworkLints
from cnnspec.syntax import ast


def lint(file: ast.File, graph: ir.Graph | None) -> list[Diagnostic]:
    """What there is to say about a file without errors.

    Args:
        file: Its tree.
        graph: Its network; none where it only defines blocks.

    Returns:
        The first of them in the order of their places; the last says how many more there are.
    """
    run = NetworkLints(file, graph)
    run.text()
    if graph is not None:
        run.network(graph)
    found = sorted(_silenced(file, [*run.found.values()]), key=lambda d: d.span.start if d.span else -1)
    if len(found) > MAX_FAULTS:
        note = f"{counted(len(found) - MAX_FAULTS, 'more warning')} not shown: mend these first, then check again"
        found[MAX_FAULTS - 1 :] = [replace(found[MAX_FAULTS - 1], notes=(*found[MAX_FAULTS - 1].notes, note))]
    return found


_IGNORE = r"#\s*cnnspec:\s*(?P<what>ignore-file|ignore)\b(?P<codes>[ \t,]*(?:[A-Z][0-9]{4}\b[ \t,]*)*)"


def _silenced(file: ast.File, found: list[Diagnostic]) -> list[Diagnostic]:
    """The lints that no comment silences, with those about comments that silence nothing."""
    text = file.source.text
    out: list[Diagnostic] = []
    silenced: set[tuple[str, int | None]] = set()
    places = {(d.code, line) for d in found for line in (d.line, None)}  # none for the whole file
    for comment in file.comments:
        match = re.match(_IGNORE, comment.text)
        if match is None:
            continue
        line = comment.span.line
        if comment.own_line:  # it speaks of the next line that holds more than a comment
            behind = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*").match(text, comment.span.end)
            line = file.source.position(min(behind.end() if behind else comment.span.end, len(text)))[0]
        codes = re.findall(r"[A-Z][0-9]{4}", match["codes"])
        whole = match["what"] == "ignore-file"
        edit = without_line(comment.span) if comment.own_line else without(comment.span)
        if not codes:
            message = "the comment names no lint to ignore"
            out.append(Diagnostic("W0110", message, comment.span, help="name one: `# cnnspec: ignore W0106`"))
        for code in codes:
            place = (code, None if whole else line)
            silenced.add(place)
            if place not in places:
                fixes = (Fix("remove the comment", (edit,), certain=True),) if len(codes) == 1 else ()
                why = (
                    "errors cannot be ignored"
                    if code[0] == "E"
                    else f"there is no {code} {'in this file' if whole else 'here'}"
                )
                out.append(
                    Diagnostic(
                        "W0110", f"the comment silences nothing: {why}", comment.span, help="remove it", fixes=fixes
                    )
                )
    return [d for d in found if not silenced & {(d.code, d.line), (d.code, None)}] + out
