"""Lints: what is no fault, but most likely not what was meant. They never make a spec invalid.

Those of the text look at the tree of the user's file, those of the network at its Graph, as far as it was written in
that file: what lies in a shipped block is not the user's to mend. `# cnnspec: ignore W0106` silences one.
"""

from __future__ import annotations

from dataclasses import replace

from cnnspec import ir, tree
from cnnspec.diagnostics import Diagnostic, counted
from cnnspec.limits import MAX_FAULTS
from cnnspec.lints.network import NetworkLints
from cnnspec.lints.silence import silenced


def lint(file: tree.File, graph: ir.Graph | None) -> list[Diagnostic]:
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
    found = sorted(silenced(file, [*run.found.values()]), key=lambda d: d.span.start if d.span else -1)
    if len(found) > MAX_FAULTS:
        note = f"{counted(len(found) - MAX_FAULTS, 'more warning')} not shown: mend these first, then check again"
        found[MAX_FAULTS - 1 :] = [replace(found[MAX_FAULTS - 1], notes=(*found[MAX_FAULTS - 1].notes, note))]
    return found
