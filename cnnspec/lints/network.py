"""Lints of the network: what its Graph shows, as far as it was written in the user's file."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from cnnspec import ir, shapes
from cnnspec.diagnostics import Edit, Label, Span
from cnnspec.ir.valid_sizes import SINGLE
from cnnspec.lints.base import LITERALS, without, without_line
from cnnspec.lints.text import TextLints
from cnnspec.ops import OPS
from cnnspec.recipe import DATA_SETS
from cnnspec.semantics.recipe_rules import no_classifier, other_classes, unlikely
from cnnspec.semantics.train_section import diagnosed
from cnnspec.shapes import Window
from cnnspec.syntax import ast

DROPOUTS = ("dropout", "dropout2d", "drop_path")
ACTIVATIONS = (
    "relu relu6 leaky_relu prelu elu celu selu gelu silu mish softplus tanh sigmoid hardswish hardsigmoid softmax"
).split()
_CHANNELS = OPS["conv"].parameters["c"]


class NetworkLints(TextLints):
    def network(self, graph: ir.Graph) -> None:
        """Looks at the Graph."""
        readers: dict[int, list[ir.Node]] = defaultdict(list)
        for node in graph.nodes:
            for index in node.inputs:
                readers[index].append(node)
        for index, node in enumerate(graph.nodes):
            if getattr(node.op, "bias", False) and "bias" in node.weights and self.own(node):
                self.bias(node, readers[index])
        joins = {part.span.start: part for part in self.parts if isinstance(part, ast.Join)}
        for start, inputs in {n.origin.start: n.inputs for n in graph.nodes if n.origin and self.own(n)}.items():
            if start in joins:
                self.twice(joins[start], inputs)
        for output in (graph.output, *(head.output for head in graph.aux)):
            self.last(graph, output)
            self.activated(graph.nodes[output])
        self.channels_last(graph.input_shape)
        self.classes(graph)
        self.recipe(graph)
        self.strides(graph)
        started = {node.op.name for node in graph.nodes if node.weights}
        for statement in self.file.statements:
            if isinstance(statement, ast.Init) and statement.target not in started:
                message = f"`init {statement.target}` has no effect: the network has no `{statement.target}`"
                self.say("W0105", message, statement.target_span, "remove it", without_line(statement.span))

    def twice(self, join: ast.Join, inputs: Sequence[int]) -> None:
        """Reports branches of a join that hand on one tensor by two names."""
        flows = [statement for statement in join.body if isinstance(statement, ast.Flow)]
        names: dict[int, str] = {}
        for flow, node in zip(flows, inputs, strict=False) if len(flows) == len(inputs) else ():
            element = flow.elements[0] if len(flow.elements) == 1 else None
            name = f"@{element.label}" if isinstance(element, ast.Reference) else "in"
            if isinstance(element, (ast.In, ast.Reference)) and names.setdefault(node, name) != name:
                within = any(block.span.start < join.span.start < block.span.end for block in self.blocks.values())
                before = (
                    "what enters the block: begin it with `x: in`, and write `@x`" if within else "an earlier label"
                )
                help = f"`in` is what enters the braces of `{join.kind}`; what was meant may be {before}"
                self.say("W0115", f"`{names[node]}` and `{name}` are one tensor here", join.span, help)

    def bias(self, node: ir.Node, readers: list[ir.Node]) -> None:
        """Reports a bias that is subtracted again at once with the mean of its channel."""
        norms = [reader for reader in readers if _centres_channels(reader)]
        if not norms or len(norms) < len(readers) or node.origin is None:
            return
        norm = norms[0]
        labels = (Label(norm.origin, "subtracts the mean of each channel"),) if norm.origin and self.own(norm) else ()
        flag = re.compile(r"[^|\n{};]*?(\s+bias(?:=true)?)(?![A-Za-z0-9_=])").match(
            self.file.source.text, node.origin.end
        )
        edit = Edit(Span(self.file.source, *flag.span(1)), "") if flag else None
        help = "leave the bias out" if flag else "leave the bias out: `bias=false`"
        message = f"the bias of this `{node.op.name}` has no effect before `{norm.op.name}`"
        self.say("W0106", message, node.origin, help, edit, labels=labels, certain=False)

    def strides(self, graph: ir.Graph) -> None:
        """Reports strides over a map of one place, and those that step over pixels."""
        calls = {part.callee_span.start: part for part in self.parts if isinstance(part, ast.Call)}
        sliding: dict[int, list[ir.Node]] = defaultdict(list)
        single: dict[int, bool] = defaultdict(lambda: True)
        for index, node in enumerate(graph.nodes):
            if self.own(node) and node.origin is not None and isinstance(node.op.axis_rule(0), Window):
                at, first = node.origin.start, node.inputs[0]
                sliding[at].append(node)
                both = [graph.sizes.lengths[i] for i in (first, index)] if first != ir.IMAGE else []
                single[at] &= both == [SINGLE, SINGLE]
        for at, nodes in sliding.items():
            args = calls[at].args if at in calls else ()
            stride = next((arg for arg in args if arg.name == "stride" and isinstance(arg.value, LITERALS)), None)
            if single[at] and stride is not None:
                message = "`stride` has no effect on a map of one place"
                self.say("W0105", message, stride.span, "remove it", without(stride.span), certain=False)
            elif not single[at]:
                for node in nodes:
                    self.steps_over(node, graph.input_shapes(node)[0][0], args)

    def steps_over(self, node: ir.Node, channels: int, args: Iterable[ast.Argument]) -> None:
        """Reports a stride that is larger than the window, as torch's order of arguments makes it."""
        windows = [window for axis in (0, 1) if isinstance(window := node.op.axis_rule(axis), Window)]
        reaches = [window.dilation * (window.kernel - 1) + 1 for window in windows]
        if node.origin is None or not any(w.stride > reach > 1 for w, reach in zip(windows, reaches, strict=True)):
            return
        kernel, stride = (f"{high}x{wide}" for high, wide in (reaches, [window.stride for window in windows]))
        message = f"the stride {stride} of `{node.op.name}` is larger than its {kernel} window: the pixels between are never read"
        help, edit = "write a stride that is no larger than the window", None
        by_place = [arg for arg in args if arg.name is None]
        if node.op.name == "conv" and len(by_place) > 2 and self.written(by_place[1].value, _CHANNELS) == channels:
            help = f"`conv` is not told how many channels come in: take `{channels}` out"
            edit = without(by_place[1].span)
        self.say("W0114", message, node.origin, help, edit, certain=False)

    def last(self, graph: ir.Graph, output: int) -> None:
        """Reports a dropout that no layer follows."""
        index = output
        while index != ir.IMAGE:
            node = graph.nodes[index]
            if node.op.name in DROPOUTS:
                if self.own(node) and node.origin is not None:
                    message = f"no layer follows this `{node.op.name}`: it zeroes what the network gives"
                    self.say("W0107", message, node.origin, "put it in front of the last layer, or remove it")
                return
            if node.weights or len(node.inputs) != 1:
                return
            index = node.inputs[0]

    def activated(self, node: ir.Node) -> None:
        """Reports an activation of the logits."""
        if node.op.name in ACTIVATIONS and len(node.shape) == 1 and self.own(node) and node.origin is not None:
            text = self.file.source.text
            bar = re.search(r"[ \t]*\|[ \t]*$", text[: node.origin.start])
            behind = re.match(r"[ \t]*(?:[#\n;}]|$)", text[node.origin.end :])
            cut = Edit(Span(self.file.source, bar.start(), node.origin.end), "") if bar else without_line(node.origin)
            why = (
                "which the loss of training applies, too" if node.op.name == "softmax" else "and the loss takes logits"
            )
            message = f"the network ends with `{node.op.name}`, {why}"
            self.say("W0111", message, node.origin, "remove it", cut if behind else None, certain=False)

    def classes(self, graph: ir.Graph) -> None:
        """Reports `classes` that nothing reads, of a network that gives another number."""
        stated = next((s for s in self.file.statements if isinstance(s, ast.Classes)), None)
        read = any("classes" in self.names(s) for s in self.file.statements if s is not stated)
        last, output = graph.nodes[graph.output], graph.output_shape
        if stated is None or read or self.extends:
            return
        wanted = graph.model.constants["classes"].value
        if output == (wanted,):
            return
        help, edit = "end the network with `linear classes`, or remove it", None
        given = re.compile(r"[ \t]+(?:c[ \t]*=[ \t]*)?([0-9]+)(?=[ \t]*(?:[#\n;}]|$))")
        own = last.op.name == "linear" and self.own(last) and last.origin
        if own and (literal := given.match(self.file.source.text, own.end)):
            help, edit = "write `linear classes`", Edit(Span(self.file.source, *literal.span(1)), "classes")
        message = f"`classes` is {wanted}, and the network gives {shapes.text(output)}: nothing reads it"
        self.say("W0102", message, stated.span, help, edit, certain=False)

    def recipe(self, graph: ir.Graph) -> None:
        """Reports what of the recipe cannot be meant, as far as this file states it."""
        train = next((s for s in self.file.statements if isinstance(s, ast.Train)), None)
        if train is None:
            return
        recipe, entries = graph.recipe, {entry.word: entry for entry in train.entries}
        given, wanted = graph.output_shape, DATA_SETS[recipe.data.name].classes
        found = [*unlikely(recipe, graph.input_shape), *no_classifier(graph.input_shape, given)]
        if wanted is not None and len(given) == 1:
            found += other_classes(graph.name, given[0], recipe.data.name, wanted, graph.model.constants.get("classes"))
        for one in found:
            if one.entry in entries:
                told = diagnosed(one, "W0113", recipe, entries, self.file.source.name)
                self.found.setdefault((told.code, told.span), told)
            elif not one.entry:
                word = Span(train.span.source, train.span.start, train.span.start + len("train"))
                self.say("W0113", one.message, word, one.help)

    def channels_last(self, shape: tuple[int, int, int]) -> None:
        """Reports an image that has its channels behind its height and width, by all appearance."""
        if ir.channels_last(shape):
            stated = next((s for s in self.file.statements if isinstance(s, ast.Input)), None)
            if stated is not None:
                c, h, w = shape
                help = f"if channels stand last here, write `input {w}x{c}x{h}`"
                edit = Edit(stated.span, f"{w}x{c}x{h}")
                message = f"the image has {c} channels, and is {h} high and {w} wide"
                self.say("W0112", message, stated.span, help, edit, certain=False)


def _centres_channels(node: ir.Node) -> bool:
    """Whether an operator subtracts the mean of each channel alone; a wider mean leaves a bias standing."""
    return node.op.name in ("bn", "in_norm") or (
        node.op.name == "gn" and getattr(node.op, "groups", 0) == node.shape[0]
    )
