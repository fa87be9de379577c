"""The check of a Model: the result is a Graph, or errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from cnnspec import ir, shapes
from cnnspec.checker.contracts import check_expectation
from cnnspec.checker.expand import Expander
from cnnspec.checker.graph_builder import GraphBuilder
from cnnspec.diagnostics import Reported, Reporter
from cnnspec.limits import MAX_HUGE, MAX_PARAMETERS
from cnnspec.semantics.context import SourceMap
from cnnspec.shapes.symbolic import PeriodLimit


def check(
    model: ir.Model,
    source_map: SourceMap,
    reporter: Reporter,
    text: str = "",
    steps: int | None = None,
    *,
    allow_huge: bool = False,
    observe: Callable[[GraphBuilder], None] | None = None,
) -> ir.Graph | None:
    """Check every shape and every `expect` of a Model.

    Args:
        model: The Model. Elements that are `Broken` are not reported again.
        source_map: The source position of each piece of the Model.
        reporter: Receives the errors.
        text: The text of the spec, stored in the Graph.
        steps: The limit on elements, if lower than `MAX_STEPS`.
        allow_huge: Raise the limits on parameters and on the elements of a tensor to `MAX_HUGE`.
        observe: Receives the nodes and scopes that will be built, also if there are errors.

    Returns:
        The Graph, or `None` if the reporter holds an error.
    """
    expander = Expander(model, source_map, reporter, steps, allow_huge=allow_huge)
    if observe is not None:
        observe(expander.graph)
    try:
        output = expander.run()
    except Reported:
        return None
    if reporter.failed or output is None:
        return None
    if output.node < len(model.several_images):
        message, origin = "the network has no layers", model.origin
        help = "add layers, such as `stem conv 3x3 c=16 | bn | relu`"
        if len(expander.graph.nodes) > len(model.several_images):
            message = "the output of the network is an image itself: no layer computes it"
            origin = [statement.origin for statement in model.body if isinstance(statement, ir.Flow)][-1]
            help = "end the network with a statement with layers"
        reporter.error("E0108", message, source_map[origin], help=help)
        return None
    graph = ir.Graph(
        name=model.name,
        nodes=tuple(expander.graph.nodes),
        input_shape=model.input,
        output=max(expander.graph.outputs.values(), default=output.node),
        scopes=expander.graph.scopes,
        origins=expander.graph.origins,
        tensors=expander.graph.tensors,
        ends=expander.graph.ends,
        aux=tuple(expander.graph.aux_heads),
        taps=expander.graph.outputs,
        recipe=model.recipe,
        model=model,
        text=text,
    )
    _check_parameter_count(graph, reporter, MAX_HUGE if allow_huge else MAX_PARAMETERS)
    _check_outputs_used(graph, reporter)
    _check_aux_heads(graph, reporter)
    _check_period(graph, reporter)
    for expect in model.expects:
        check_expectation(graph, expect, source_map, reporter)
    return None if reporter.failed else graph


def _check_parameter_count(graph: ir.Graph, reporter: Reporter, limit: int) -> None:
    """Report a network with more parameters than the limit, at its largest operator."""
    if graph.parameter_count <= limit:
        return
    largest = max(graph.nodes, key=lambda node: node.parameter_count)
    if limit < MAX_HUGE:
        help = "to allow it, pass `--allow-huge` (in Python, `allow_huge=True`)"
    else:
        help = "use fewer channels or smaller kernels"
    message = f"the network has {graph.parameter_count:,} parameters, which exceeds the limit of {limit:,}"
    caption = f"has {largest.parameter_count:,} parameters"
    reporter.error("E0405", message, largest.origin, caption=caption, help=help)


def _check_outputs_used(graph: ir.Graph, reporter: Reporter) -> None:
    """Report operators whose output is never used."""
    used = {i for node in graph.nodes for i in node.sources} | {*graph.training_results}
    sizes = {node.inputs[-1] for node in graph.nodes if node.op.sized_by_input}
    learned: set[int] = set()
    paths: dict[int, list[str]] = {}  # of the unused operators
    for index, node in enumerate(graph.nodes):
        if node.weights or learned & {*node.sources}:
            learned.add(index)
        if index not in used and (index not in sizes or index in learned):
            paths[index] = [] if node.use else [node.path]  # a label is the output of the first use
    for path, index in graph.ends.items() if paths else ():
        if index in paths:
            paths[index].append(path)
    for index, own in paths.items():
        node = graph.nodes[index]
        if index < len(graph.images):
            image = [*graph.images][index]
            message, help = f"the image `{image}` is never used", f"read it as `@{image}`, or remove it"
            reporter.error("E0311", message, node.origin, help=help)
            continue
        named = node.op.owns_module and not node.path.rpartition(".")[2].isdecimal()
        name = f"`{node.place}`" if named else f"this `{node.op.name}`"
        message, help = f"the output of {name} is never used", _advice_on_unused(node, own, bool(graph.taps))
        if index in sizes:
            message = f"only the size of the output of {name} is used, so its weights learn nothing"
            help = f"{help}; for the size alone, name another tensor that has it"
        caption = f"outputs {shapes.text(node.shape)}"
        reporter.error("E0311", message, node.origin, caption=caption, help=help)


def _advice_on_unused(node: ir.Node, paths: Sequence[str], named: bool) -> str:
    known = _labels(node.origin.source.text) if node.origin else frozenset[str]()
    label = next((name for path in paths if (name := path.rpartition(".")[2]) in known), "")
    use = f"use it as `@{label}` in a later statement" if label else "label it and use the label in a later statement"
    if not named:
        return f"{use}, such as `add` or `concat`, or remove the layer"
    written = f"`output {label} from @{label}`" if label in paths else "`output NAME from @LABEL`"
    return f"{use}, return it with {written}, or remove the layer"


@lru_cache(maxsize=4)
def _labels(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"(?<![\w@.])(\w+)[ \t]*:", text))


def _check_aux_heads(graph: ir.Graph, reporter: Reporter) -> None:
    """Report auxiliary heads whose output has another shape than the output of the network."""
    for head in graph.aux:
        node = graph.nodes[head.output]
        if node.shape != graph.output_shape:
            reporter.error(
                "E0312",
                f"the auxiliary head `{head.name}` and the network have different output shapes",
                node.origin,
                caption=f"outputs {shapes.text(node.shape)}, but the network outputs {shapes.text(graph.output_shape)}",
                help="end the auxiliary head with the same layer as the network, such as `linear classes`",
            )


def _check_period(graph: ir.Graph, reporter: Reporter) -> None:
    """Report strides whose product is over the limit of the analysis of image sizes."""
    try:
        _ = graph.sizes
    except PeriodLimit as limit:
        reporter.error("E0405", limit.message, graph.nodes[limit.node].origin, help=limit.help)
