"""The contracts of a spec: `expect` statements."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from cnnspec import ir
from cnnspec.diagnostics import Edit, Fix, Reporter, Span, alternatives, respell
from cnnspec.ir.evaluate import evaluate, is_number, show
from cnnspec.semantics.context import SourceMap

_RELATIONS: dict[str, Callable[[Any, Any, Any], bool]] = {
    "==": lambda actual, expected, slack: abs(actual - expected) <= slack,
    "!=": lambda actual, expected, slack: abs(actual - expected) > slack,
    "<=": lambda actual, expected, slack: actual <= expected + slack,
    ">=": lambda actual, expected, slack: actual >= expected - slack,
    "<": lambda actual, expected, slack: actual < expected + slack,
    ">": lambda actual, expected, slack: actual > expected - slack,
}
_METRICS: dict[str, Callable[[ir.Graph], int]] = {
    "params": lambda graph: graph.parameter_count,
    "macs": lambda graph: graph.macs,
    "depth": lambda graph: graph.depth,
}


def check_expectation(graph: ir.Graph, expect: ir.Expect, source_map: SourceMap, reporter: Reporter) -> None:
    """Compare a metric of the Graph with the value in an `expect` statement."""
    expected = evaluate(expect.value, {})
    if expect.metric.startswith("output"):
        _check_output(graph, expect, expected, source_map, reporter)
    elif not is_number(expected):
        _report_type(expect, expected, source_map, reporter)
    else:
        actual = _METRICS[expect.metric](graph)
        slack = Fraction(str(expect.within or 0)) * abs(expected)
        if not _RELATIONS[expect.relation](actual, expected, slack):
            deviation = f" ({(actual - expected) / expected:+.2%})" if expected not in (0, actual) else ""
            wanted = f"{expected:,}" if isinstance(expected, int) else show(expected)
            wanted += f" within {100 * expect.within:g}%" if expect.within is not None else ""
            relation = expect.relation if expect.relation in ("<=", ">=") else "="
            correct = f"{relation} {show(actual)}"
            if expect.within is not None and relation == "=":
                correct += f" within {100 * expect.within:g}%"
            _report_mismatch(graph, expect, wanted, f"{actual:,}{deviation}", correct, source_map, reporter)


def _check_output(graph: ir.Graph, expect: ir.Expect, expected: Any, source_map: SourceMap, reporter: Reporter) -> None:
    name = expect.metric.partition(".")[2]
    if name not in (graph.taps or ("",)):
        _report_which(graph, expect, name, source_map, reporter)
        return
    actual = list(graph.nodes[graph.taps.get(name, graph.output)].shape)
    if is_number(expected):
        expected = [expected]
    wanted = show(expected)
    if not isinstance(expected, list):
        _report_type(expect, expected, source_map, reporter)
    elif expect.within is not None:
        _report_within(expect, source_map, reporter)
    elif expect.relation not in ("==", "!="):
        _report_order(expect, source_map, reporter)
    elif (actual == expected) != (expect.relation == "=="):
        _report_mismatch(graph, expect, wanted, show(actual), f"= {show(actual)}", source_map, reporter)


def _report_which(graph: ir.Graph, expect: ir.Expect, name: str, source_map: SourceMap, reporter: Reporter) -> None:
    """Report the name of an output that the network does not have, or a missing one."""
    whole = source_map[expect.origin]
    at = whole and re.compile(r"expect[ \t]+output[ \t]*\.?").match(whole.source.text, whole.start)
    span = Span(whole.source, at.end(), at.end() + len(name)) if whole and at else None
    if not graph.taps:
        message, help = f"the network has no output `{name}`: it returns one tensor", "write `expect output`"
        fix = Fix(help, (Edit(Span(span.source, span.start - 1, span.end), ""),)) if span else None
        reporter.error("E0201", message, span, help=help, fixes=[fix] if fix else [])
    elif name:
        help, fixes = respell(span, name, graph.taps)
        help = help or f"choose from {alternatives(graph.taps)}"
        reporter.error("E0201", f"the network has no output `{name}`", span, help=help, fixes=fixes)
    else:
        help = f"name the output, as in `expect output.{next(iter(graph.taps))}`"
        reporter.error("E0203", "missing name of the output in `expect output`", whole, help=help)


def _report_type(expect: ir.Expect, expected: object, source_map: SourceMap, reporter: Reporter) -> None:
    message = f"`expect {expect.metric}` cannot be compared with {show(expected)}"
    help = "write a shape, such as `[classes]`" if expect.metric.startswith("output") else "write a number"
    reporter.error("E0204", message, source_map[expect.origin], help=help)


def _report_order(expect: ir.Expect, source_map: SourceMap, reporter: Reporter) -> None:
    message = f"`output` cannot be compared with `{expect.relation}`: shapes have no order"
    span, value = source_map[expect.origin], source_map[expect.value.origin]
    help = "compare shapes with `=` or `!=`"
    fixes: list[Fix] = []
    if span and value:
        help = f"write `expect {expect.metric} = {value.text}`"
        fixes = [Fix(help, (Edit(Span(span.source, span.start, value.start), f"expect {expect.metric} = "),))]
    reporter.error("E0204", message, span, help=help, fixes=fixes)


def _report_within(expect: ir.Expect, source_map: SourceMap, reporter: Reporter) -> None:
    span, value = source_map[expect.origin], source_map[expect.value.origin]
    help = "remove `within`"
    edits = [Edit(Span(value.source, value.end, span.end), "")] if value and span else []
    fixes = [Fix(help, (edit,), certain=True) for edit in edits]
    message = "`within` is not allowed for `output`, which must match exactly"
    reporter.error("E0204", message, span, help=help, fixes=fixes)


def _report_mismatch(
    graph: ir.Graph,
    expect: ir.Expect,
    expected: str,
    actual: str,
    correct: str,
    source_map: SourceMap,
    reporter: Reporter,
) -> None:
    """Report an `expect` that does not hold.

    Args:
        graph: The Graph.
        expect: The statement.
        expected: The value in the statement, for the message.
        actual: The actual value, for the message.
        correct: A relation and a value that hold, for the help.
        source_map: The source positions.
        reporter: Receives the error.
    """
    help = f"if the network is correct, write `expect {expect.metric} {correct}`"
    value = source_map[expect.value.origin]
    fixes: list[Fix] = []
    if value is not None and expect.relation in ("==", "<=", ">="):  # never certain: the network may be wrong
        fixes = [Fix(help, (Edit(value, correct.partition(" ")[2]),))]
    reporter.error(
        "E0401",
        f"expected `{expect.metric}` {expect.relation.replace('==', '=')} {expected}, got {actual}",
        source_map[expect.origin],
        notes=_inherited(graph, expect, source_map),
        help=help,
        fixes=fixes,
    )


def _inherited(graph: ir.Graph, expect: ir.Expect, source_map: SourceMap) -> list[str]:
    """Return a note for an `expect` of a base spec whose layers are replaced."""
    own, span = source_map[graph.model.body[0].origin], source_map[expect.origin]
    if not own or not span or own.source is span.source:
        return []
    replaced = f"which replace all layers of `{span.source.name}`: layers cannot be replaced one by one"
    return [f"`{own.source.name}` defines layers, {replaced}"]
