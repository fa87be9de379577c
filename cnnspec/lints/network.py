"""Lints of the network: rules over its Graph, for the parts that are written in the user's file.

A rule is a function from a `Context` and its Graph to warnings, listed in `RULES`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from cnnspec import ir, shapes
from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Span
from cnnspec.ir.valid_sizes import SINGLE
from cnnspec.lints.base import LITERALS, LintContext, remove_argument, remove_statement, warning
from cnnspec.ops import OPS
from cnnspec.ops.activation import Activation
from cnnspec.recipe import DATA_SETS
from cnnspec.semantics.recipe_rules import implausible_values, no_classifier, other_classes, useless_statistics
from cnnspec.semantics.train_section import to_diagnostic
from cnnspec.shapes import Window
from cnnspec.syntax import ast

_DROPOUTS = ("dropout", "dropout2d", "drop_path", "shake_drop")
_CHANNELS = OPS["conv"].parameters["c"]


# --- layers --------------------------------------------------------------------------------------


def bias_before_norm(context: LintContext, graph: ir.Graph) -> Iterator[Diagnostic]:
    """Report biases that the normalization after them subtracts with the mean of each channel."""
    readers: dict[int, list[ir.Node]] = defaultdict(list)
    outputs: dict[str, list[int]] = defaultdict(list)  # of all uses of a module
    for index, node in enumerate(graph.nodes):
        for source in node.sources:
            readers[source].append(node)
        outputs[node.path].append(index)
    for node in graph.nodes:
        if node.origin is None or not (getattr(node.op, "bias", False) and "bias" in node.weights) or node.use:
            continue
        read = [readers[index] for index in outputs[node.path]]
        if context.owns(node) and all(nodes and all(map(_subtracts_channel_mean, nodes)) for nodes in read):
            yield _bias_warning(context, node, node.origin, read[0][0])


def _bias_warning(context: LintContext, node: ir.Node, span: Span, norm: ir.Node) -> Diagnostic:
    labels: tuple[Label, ...] = ()
    if norm.origin and context.owns(norm):
        labels = (Label(norm.origin, "subtracts the mean of each channel"),)
    flag = re.compile(r"[^|\n{};]*?(\s+bias(?:=true)?)(?![A-Za-z0-9_=])").match(span.source.text, span.end)
    edit = Edit(Span(span.source, *flag.span(1)), "") if flag else None
    help = "remove the bias" if flag else "write `bias=false`"
    message = f"the bias of this `{node.op.name}` has no effect before `{norm.op.name}`"
    return warning("W0106", message, span, help, edit, labels=labels, certain=False)


def _subtracts_channel_mean(node: ir.Node) -> bool:
    """Return True if an operator subtracts the mean of each channel alone; a mean over several leaves a bias."""
    if node.op.name == "gn":
        return getattr(node.op, "groups", 0) == node.shape[0]
    return node.op.name in ("bn", "in_norm")


def identical_branches(context: LintContext, graph: ir.Graph) -> Iterator[Diagnostic]:
    """Report branches of a join that pass the same tensor through under two names."""
    joins = {node.span.start: node for node in context.nodes if isinstance(node, ast.Join)}
    inputs = {node.origin.start: node.inputs for node in graph.nodes if node.origin and context.owns(node)}
    for start, sources in inputs.items():
        if start in joins:
            yield from _identical_branches_of(context, joins[start], sources)


def _identical_branches_of(context: LintContext, join: ast.Join, sources: Sequence[int]) -> Iterator[Diagnostic]:
    flows = [statement for statement in join.body if isinstance(statement, ast.Flow)]
    names: dict[int, str] = {}
    around = [block for block in context.blocks.values() if block.span.start < join.span.start < block.span.end]
    parameters = (parameter for block in around for parameter in block.parameters if parameter.type == "tensor")
    passed = {f"@{parameter.name}" for parameter in parameters}  # which may be another tensor in another call
    for flow, source in zip(flows, sources, strict=False) if len(flows) == len(sources) else ():
        element = flow.elements[0] if len(flow.elements) == 1 else None
        name = f"@{element.label}" if isinstance(element, ast.Reference) else "in"
        if name in passed or not isinstance(element, (ast.In, ast.Reference)):
            continue
        if names.setdefault(source, name) != name:
            if around:
                other = "to use that of the block, write `x: in` as its first statement and `@x` instead of `in` here"
            else:
                other = "to use another tensor, write its label"
            help = f"inside `{join.kind}`, `in` is the input of `{join.kind}`; {other}"
            yield warning("W0115", f"`{names[source]}` and `{name}` are the same tensor here", join.span, help)


def strides(context: LintContext, graph: ir.Graph) -> Iterator[Diagnostic]:
    """Report strides on maps of size 1x1, and strides that skip pixels."""
    calls = {node.callee_span.start: node for node in context.nodes if isinstance(node, ast.Call)}
    windows: dict[int, list[int]] = defaultdict(list)
    for index, node in enumerate(graph.nodes):
        if node.use is not None:  # reported at the first use
            continue
        if context.owns(node) and node.origin is not None and isinstance(node.op.axis_rule(0), Window):
            windows[node.origin.start].append(index)
    for start, indices in windows.items():
        args = calls[start].args if start in calls else ()
        stride = next((arg for arg in args if arg.name == "stride" and isinstance(arg.value, LITERALS)), None)
        single = all(_is_single(graph, index) for index in indices)
        parameter = graph.nodes[indices[0]].op.parameters.get("stride")
        if stride and parameter and context.literal(stride.value, parameter) == parameter.default:
            continue
        if single and stride is not None:
            message, edit = "`stride` has no effect on a 1x1 feature map", remove_argument(stride.span)
            yield warning("W0105", message, stride.span, "remove it", edit, certain=False)
        elif not single:
            for node in (graph.nodes[index] for index in indices):
                yield from _skipping_stride(context, node, graph.input_shapes(node)[0][0], args)


def _is_single(graph: ir.Graph, index: int) -> bool:
    """Return True if a node maps 1x1 to 1x1 for every size of image."""
    source = graph.nodes[index].inputs[0]
    return source != ir.IMAGE and all(graph.sizes.lengths[i] == SINGLE for i in (source, index))


def _skipping_stride(
    context: LintContext, node: ir.Node, channels: int, args: Sequence[ast.Argument]
) -> Iterator[Diagnostic]:
    """Report a stride larger than its window, as in `conv 3x3 16 32`, torch's order of arguments."""
    windows = [window for axis in (0, 1) if isinstance(window := node.op.axis_rule(axis), Window)]
    reaches = [window.dilation * (window.kernel - 1) + 1 for window in windows]
    if node.origin is None or not any(w.stride > reach > 1 for w, reach in zip(windows, reaches, strict=True)):
        return
    kernel, stride = (f"{high}x{wide}" for high, wide in (reaches, [window.stride for window in windows]))
    dilated = "dilated " if any(window.dilation > 1 for window in windows) else ""
    larger = f"the stride {stride} of `{node.op.name}` is larger than its {dilated}{kernel} kernel"
    help, edit = f"use a stride of at most {kernel}", None
    positional = [arg for arg in args if arg.name is None]
    torch_order = node.op.name == "conv" and len(positional) > 2
    if torch_order and context.literal(positional[1].value, _CHANNELS) == channels:
        help = f"remove `{channels}`: the input channels of `conv` are inferred"
        edit = remove_argument(positional[1].span)
    message = f"{larger}: some inputs are never read"
    yield warning("W0114", message, node.origin, help, edit, certain=False)


# --- the end of the network ----------------------------------------------------------------------


def final_dropout(context: LintContext, graph: ir.Graph) -> Iterator[Diagnostic]:
    """Report dropout after the last layer."""
    for index in graph.training_results:
        while index != ir.IMAGE:
            node = graph.nodes[index]
            if node.op.name in _DROPOUTS:
                if context.owns(node) and node.origin is not None:
                    message = f"`{node.op.name}` after the last layer zeroes outputs of the network"
                    yield warning("W0107", message, node.origin, "move it before the last layer, or remove it")
                break
            if node.weights or len(node.inputs) != 1:
                break
            index = node.inputs[0]


def final_activation(context: LintContext, graph: ir.Graph) -> Iterator[Diagnostic]:
    """Report activations of the logits."""
    for head, node in _outputs_of(graph):
        if not isinstance(node.op, Activation) or len(node.shape) != 1 or not context.owns(node) or node.origin is None:
            continue
        text = context.file.source.text
        pipe = re.search(r"[ \t]*\|[ \t]*$", text[: node.origin.start])
        is_last = re.match(r"[ \t]*(?:[#\n;}]|$)", text[node.origin.end :])
        edit = remove_statement(node.origin)
        if pipe:
            edit = Edit(Span(context.file.source, pipe.start(), node.origin.end), "")
        softmax = node.op.name == "softmax"
        reason = "which the training loss already applies" if softmax else "but the training loss expects logits"
        message = f"{head} ends with `{node.op.name}`, {reason}"
        yield warning(
            "W0111", message, node.origin, f"remove `{node.op.name}`", edit if is_last else None, certain=False
        )


def _outputs_of(graph: ir.Graph) -> Iterator[tuple[str, ir.Node]]:
    if not graph.taps:  # named outputs are not logits of a classifier
        yield "the network", graph.nodes[graph.output]
    for head in graph.aux:
        yield f"the auxiliary head `{head.name}`", graph.nodes[head.output]


def unused_classes(context: LintContext, graph: ir.Graph) -> Iterator[Diagnostic]:
    """Report `classes` that is never used, if the network has another number of outputs."""
    statements = context.file.statements
    stated = next((statement for statement in statements if isinstance(statement, ast.Classes)), None)
    used = any("classes" in context.names(statement) for statement in statements if statement is not stated)
    if stated is None or used or context.extends:
        return
    classes, last = graph.model.constants["classes"].value, graph.nodes[graph.output]
    if any(graph.nodes[index].shape == (classes,) for index in graph.results):
        return
    layers = "global_avgpool | flatten | linear classes" if shapes.is_map(graph.output_shape) else "linear classes"
    help, edit = f"end the network with `{layers}`, or remove `classes`", None
    if graph.taps:
        help = "remove `classes`"
    literal = re.compile(r"[ \t]+(?:c[ \t]*=[ \t]*)?([0-9]+)(?=[ \t]*(?:[#\n;}]|$))")
    own = last.op.name == "linear" and not graph.taps and context.owns(last) and last.origin
    if own and (outputs := literal.match(context.file.source.text, own.end)):
        help = f"write `linear classes` instead of `linear {outputs[1]}`"
        edit = Edit(Span(context.file.source, *outputs.span(1)), "classes")
    returned = shapes.outputs_text(graph.output_shape, graph.output_shapes)
    message = f"`classes` is never used: it is {classes}, but the network outputs {returned}"
    yield warning("W0102", message, stated.span, help, edit, certain=False)


# --- statements about the network ----------------------------------------------------------------


def channels_last(context: LintContext, graph: ir.Graph) -> Iterator[Diagnostic]:
    """Report an `input` that looks like height x width x channels."""
    inputs = [statement for statement in context.file.statements if isinstance(statement, ast.Input)]
    if inputs and all(ir.channels_last((one.channels, one.height, one.width)) for one in inputs):
        edits = tuple(Edit(one.span, f"{one.width}x{one.channels}x{one.height}") for one in inputs)
        names = (f"{one.name} " if one.name else "" for one in inputs)
        written = (f"`input {name}{edit.text}`" for name, edit in zip(names, edits, strict=True))
        help = f"if the order is height, width, channels, write {' and '.join(written)}"
        c, h, w = inputs[0].channels, inputs[0].height, inputs[0].width
        message = f"`input` looks like channels last: it has {c} channels, height {h} and width {w}"
        yield replace(warning("W0112", message, inputs[0].span, help), fixes=(Fix(help, edits),))


def implausible_recipe(context: LintContext, graph: ir.Graph) -> Iterator[Diagnostic]:
    """Report implausible values in the `train` section of this file."""
    train = next((statement for statement in context.file.statements if isinstance(statement, ast.Train)), None)
    if train is None:
        return
    recipe, entries = graph.recipe, {entry.word: entry for entry in train.entries}
    outputs, classes = graph.output_shape, DATA_SETS[recipe.data.name].classes
    constant = graph.model.constants.get("classes")
    found = [*no_classifier(graph)]
    if not graph.images:  # for which there is no training
        found += [*implausible_values(recipe, graph.input_shape), *useless_statistics(recipe, graph)]
    if classes is not None and len(outputs) == 1 and not (graph.taps or graph.images):
        found += other_classes(graph.name, outputs[0], recipe.data.name, classes, constant)
    for finding in found:
        if finding.entry in entries:
            yield to_diagnostic(finding, "W0113", recipe, entries, context.file.source.name)
        elif finding.entry in ("", "input"):
            stated = next((one for one in context.file.statements if isinstance(one, ast.Input)), None)
            word = Span(train.span.source, train.span.start, train.span.start + len("train"))
            at = stated.span if finding.entry and stated else word
            yield warning("W0113", finding.message, at, finding.help)


def unused_inits(context: LintContext, graph: ir.Graph) -> Iterator[Diagnostic]:
    """Report `init` statements for operators that the network does not have."""
    initialized = {node.op.name for node in graph.nodes if node.weights}
    for statement in context.file.statements:
        if isinstance(statement, ast.Init) and statement.target not in initialized:
            message = f"`init {statement.target}` has no effect: the network has no `{statement.target}`"
            yield warning("W0105", message, statement.target_span, "remove it", remove_statement(statement.span))


RULES: tuple[Callable[[LintContext, ir.Graph], Iterator[Diagnostic]], ...] = (
    bias_before_norm,
    identical_branches,
    final_dropout,
    final_activation,
    channels_last,
    unused_classes,
    implausible_recipe,
    strides,
    unused_inits,
)
