"""The check: Model to Graph, or the reasons why not."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

from cnnspec import ir, shapes
from cnnspec.checker.expand import Expansion, LimitReached
from cnnspec.diagnostics import Diagnostic, Edit, Fix, Reporter, Span
from cnnspec.ir.evaluate import evaluate, is_number, show
from cnnspec.limits import MAX_HUGE, MAX_PARAMETERS
from cnnspec.semantics.context import Places
from cnnspec.shapes.symbolic import PeriodLimit

_RELATIONS: dict[str, Callable[[Any, Any, Any], bool]] = {
    "==": lambda figure, wanted, slack: abs(figure - wanted) <= slack,
    "!=": lambda figure, wanted, slack: abs(figure - wanted) > slack,
    "<=": lambda figure, wanted, slack: figure <= wanted + slack,
    ">=": lambda figure, wanted, slack: figure >= wanted - slack,
    "<": lambda figure, wanted, slack: figure < wanted + slack,
    ">": lambda figure, wanted, slack: figure > wanted - slack,
}
"""How a figure is held against what is wanted, and by how much it may miss it."""

_FIGURES = {"params": "parameter_count", "macs": "macs", "depth": "depth"}


def check(
    model: ir.Model,
    places: Places,
    reporter: Reporter,
    text: str = "",
    steps: int | None = None,
    *,
    allow_huge: bool = False,
) -> ir.Graph | None:
    """The Graph of a Model whose every shape and contract holds, or nothing.

    Args:
        model: What to check; it may hold `Broken` pieces, about which nothing more is said.
        places: Where its pieces were written.
        reporter: Takes the diagnostics; a Graph is only given when it holds no error.
        text: The spec as it was read, kept with the Graph.
        steps: At most so many elements are written out, where less than the limit is wanted.
        allow_huge: Whether it may have more than the usual number of parameters.
    """
    expansion = Expansion(model, places, reporter, steps)
    try:
        expansion.run()
    except LimitReached:
        return None
    output = expansion.output
    if reporter.failed or output is None:
        return None
    if output.node == ir.IMAGE:
        reporter.add(
            Diagnostic(
                "E0108",
                "the network has no layers",
                places[model.origin],
                help="add a pipeline: `stem conv 3x3 c=16 | bn | relu`",
            )
        )
        return None
    graph = ir.Graph(
        name=model.name,
        nodes=tuple(expansion.nodes),
        input_shape=model.input,
        output=output.node,
        scopes=expansion.scopes,
        ends=expansion.ends,
        aux=tuple(expansion.aux_heads),
        recipe=model.recipe,
        model=model,
        text=text,
    )
    _weight(graph, reporter, MAX_HUGE if allow_huge else MAX_PARAMETERS)
    _unused(graph, reporter)
    _heads(graph, reporter)
    try:
        _ = graph.sizes
    except PeriodLimit as limit:
        reporter.add(Diagnostic("E0405", limit.message, graph.nodes[limit.node].origin, help="use smaller strides"))
    for expect in model.expects:
        _contract(graph, expect, places, reporter)
    return None if reporter.failed else graph


def _weight(graph: ir.Graph, reporter: Reporter, limit: int) -> None:
    """Reports a network with more parameters than the limit, at its heaviest operator."""
    if graph.parameter_count > limit:
        heaviest = max(graph.nodes, key=lambda node: node.parameter_count)
        reporter.add(
            Diagnostic(
                "E0405",
                f"the network has {graph.parameter_count:,} parameters, more than the limit of {limit:,}",
                heaviest.origin,
                f"has {heaviest.parameter_count:,} of them",
                help="if it is meant to be as large, say `--allow-huge` or `allow_huge=True`"
                if limit < MAX_HUGE
                else "use fewer channels or smaller kernels",
            )
        )


def _unused(graph: ir.Graph, reporter: Reporter) -> None:
    """Reports the operators whose output nothing reads."""
    read = {i for node in graph.nodes for i in node.inputs} | {graph.output} | {head.output for head in graph.aux}
    for index, node in enumerate(graph.nodes):
        if index not in read:
            name = f"`{node.path}`" if node.op.owns_module else f"this `{node.op.name}`"
            reporter.add(
                Diagnostic(
                    "E0311",
                    f"the output of {name} is never used",
                    node.origin,
                    f"gives {shapes.text(node.shape)}",
                    help="join it with what follows (`concat`, `add`), name it with `@label` later, or remove it",
                )
            )


def _heads(graph: ir.Graph, reporter: Reporter) -> None:
    """Reports auxiliary heads whose output is not like that of the network."""
    for head in graph.aux:
        shape = graph.nodes[head.output].shape
        if shape != graph.output_shape:
            reporter.add(
                Diagnostic(
                    "E0312",
                    f"the auxiliary head `{head.name}` does not give what the network gives",
                    graph.nodes[head.output].origin,
                    f"gives {shapes.text(shape)}, the network {shapes.text(graph.output_shape)}",
                    help="end it as the network ends, with `linear classes`",
                )
            )


def _contract(graph: ir.Graph, expect: ir.Expect, places: Places, reporter: Reporter) -> None:
    """Holds a figure of the graph against what the spec expects."""
    is_shape = expect.metric == "output"
    figure: Any = list(graph.output_shape) if is_shape else getattr(graph, _FIGURES[expect.metric])
    span = places[expect.origin]
    given = evaluate(expect.value, {})
    wanted = cast(Any, [given] if is_shape and is_number(given) else given)
    if not (isinstance(wanted, list) if is_shape else is_number(wanted)):
        reporter.add(
            Diagnostic(
                "E0204",
                f"`expect {expect.metric}` cannot be held against {show(wanted)}",
                span,
                help="write a number; for `output` a list like `[classes]`",
            )
        )
        return
    if is_shape and expect.within is not None:
        at, help = places[expect.value.origin], "remove the `within`"
        fixes = (Fix(help, (Edit(Span(at.source, at.end, span.end), ""),), certain=True),) if at and span else ()
        message = "`within` has no meaning for `output`, whose sizes are held exactly"
        reporter.add(Diagnostic("E0204", message, span, help=help, fixes=fixes))
        return
    if is_shape:
        holds = expect.relation in ("==", "!=") and (figure == wanted) == (expect.relation == "==")
    else:
        slack = Fraction(str(expect.within or 0)) * abs(wanted)
        holds = _RELATIONS[expect.relation](figure, wanted, slack)
    if not holds:
        said = shapes.text(graph.output_shape) if is_shape else f"{figure:,}"
        close = ""
        if not is_shape and wanted:
            close = f", {(figure - wanted) / wanted:+.2%} off"
        relation = expect.relation if expect.relation in ("<=", ">=") and not is_shape else "="
        help = f"write `expect {expect.metric} {relation} {show(figure)}` if the network is as you want it"
        at = places[expect.value.origin]
        alike = at is not None and expect.relation in ("==", "<=", ">=")  # never certain: the network may be wrong
        fixes = (Fix(help, (Edit(at, show(figure)),)),) if at is not None and alike else ()
        message = f"`{expect.metric}` is {said}{close}"
        notes: tuple[str, ...] = ()
        own = places[graph.model.body[0].origin]
        if own and span and own.source is not span.source:
            theirs = f"which replace all layers of `{span.source.name}`: one part alone cannot be replaced"
            notes = (f"`{own.source.name}` has layers of its own, {theirs}",)
        reporter.add(Diagnostic("E0401", message, span, "this does not hold", notes=notes, help=help, fixes=fixes))
