"""Lints: what is no fault, but most likely not what was meant. They never make a spec invalid.

Those of the text look at the tree of the user's file, those of the network at its Graph, as far as it was written in
that file: what lies in a shipped block is not the user's to mend. `# cnnspec: ignore W0106` silences one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cnnspec import ir, shapes, tree
from cnnspec.blocks import signature
from cnnspec.contradictions import no_classifier, other_classes, unlikely
from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Report, Span, counted
from cnnspec.expressions import ExprFault, UnknownShape, evaluate
from cnnspec.library import standard_block, standard_blocks
from cnnspec.limits import MAX_FAULTS
from cnnspec.names import FILLED, Fault, Names, Resolver
from cnnspec.ops import OPS, stacked
from cnnspec.recipe import DATA_SETS
from cnnspec.scopes import FileScope
from cnnspec.sections import diagnosed
from cnnspec.shapes import Window
from cnnspec.signatures import Parameter
from cnnspec.sizes import SINGLE

DROPOUTS = ("dropout", "dropout2d", "drop_path")
ACTIVATIONS = (
    "relu relu6 leaky_relu prelu elu celu selu gelu silu mish softplus tanh sigmoid hardswish hardsigmoid softmax"
).split()
MODULE_WORDS = frozenset(
    """T_destination add_module apply bfloat16 buffers call_super_init children code compile cpu cuda double
    dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule graph half ipu
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty
    train training type xpu zero_grad""".split()
)
"""What a torch module calls its own; a child of that name is no attribute."""


def lint(file: tree.File, graph: ir.Graph | None) -> list[Diagnostic]:
    """What there is to say about a file without errors.

    Args:
        file: Its tree.
        graph: Its network; none where it only defines blocks.

    Returns:
        The first of them in the order of their places; the last says how many more there are.
    """
    run = _Lints(file, graph)
    run.text()
    if graph is not None:
        run.network(graph)
    found = sorted(_silenced(file, [*run.found.values()]), key=lambda d: d.span.start if d.span else -1)
    if len(found) > MAX_FAULTS:
        note = f"{counted(len(found) - MAX_FAULTS, 'more warning')} not shown: mend these first, then check again"
        found[MAX_FAULTS - 1 :] = [replace(found[MAX_FAULTS - 1], notes=(*found[MAX_FAULTS - 1].notes, note))]
    return found


# --- walking the tree ----------------------------------------------------------------------------


def _names(node: tree.Node) -> set[str]:
    """The words in a piece of a spec that can mean a value, an operator or a block."""
    found: set[str] = set()
    for part in node.walk():
        match part:
            case tree.Name():
                found.add(part.name)
            case tree.Call() | tree.Each():
                found.add(part.callee)
            case tree.Text():
                found.update(FILLED.findall(part.value))
            case tree.Require():
                found.update(FILLED.findall(part.message or ""))
            case _:
                pass
    return found


def _without_line(span: Span) -> Edit:
    """Takes a statement out, with its line if nothing else stands there."""
    text = span.source.text
    start, end = text.rfind("\n", 0, span.start) + 1, (text + "\n").index("\n", span.end)
    if not text[start : span.start].strip() and re.fullmatch(r"[ \t]*(#[^\n]*)?", text[span.end : end]):
        return Edit(Span(span.source, start, min(end + 1, len(text))), "")
    behind = re.compile(r"[ \t]*;[ \t]*").match(text, span.end)
    return Edit(Span(span.source, span.start, behind.end() if behind else span.end), "")


def _without(span: Span) -> Edit:
    """Takes an argument out, with the spaces in front of it."""
    start = len(span.source.text[: span.start].rstrip(" \t"))
    return Edit(Span(span.source, start, span.end), "")


class _Lints:
    def __init__(self, file: tree.File, graph: ir.Graph | None) -> None:
        self.file = file
        self.graph = graph
        self.found: dict[tuple[str, Span | None], Diagnostic] = {}
        self.extends = any(isinstance(statement, tree.Extends) for statement in file.statements)
        self.blocks = {s.name: s for s in file.statements if isinstance(s, tree.Block)}
        self.defaults = {s.call.callee for s in file.statements if isinstance(s, tree.Default)}
        self.parts = list(file.walk())

    def say(self, code: str, message: str, span: Span, help: str, edit: Edit | None = None, **more: Any) -> None:
        certain = more.pop("certain", True)
        fixes = (Fix(help, (edit,), certain),) if edit is not None else ()
        self.found.setdefault((code, span), Diagnostic(code, message, span, help=help, fixes=fixes, **more))

    # --- the text --------------------------------------------------------------------------------

    def text(self) -> None:
        """Looks at the tree."""
        self.unused_values(self.file.statements, top=True)
        if self.graph is not None:
            self.unused_blocks(self.graph)
        for block in self.blocks.values():
            self.block(block)
        referred = {part.label for part in self.parts if isinstance(part, tree.Reference)}
        called = {part.callee for part in self.parts if isinstance(part, (tree.Call, tree.Each))}
        for part in self.parts:
            if isinstance(part, tree.Flow) and part.label is not None:
                self.label(part, part.label, referred)
            elif isinstance(part, (tree.Call, tree.Each)):
                self.arguments(part)
            elif isinstance(part, tree.Join):
                self.branches(part)
        for flow in (part for part in self.parts if isinstance(part, tree.Flow) and part.condition is not None):
            if len(flow.elements) == 1 and isinstance(flow.elements[0], tree.In):
                help = "`in` flows on without it, too; a branch that may be absent is `if ... { in } else { nothing }`"
                self.say("W0105", "`when` has no effect on `in`", flow.span, help)
        defaults = [s for s in self.file.statements if isinstance(s, tree.Default)]
        named = {name for s in self.file.statements if not isinstance(s, tree.Default) for name in _names(s)}
        for statement in defaults if not self.extends else ():
            callee = statement.call.callee
            if callee not in named:
                said = "called" if callee in called else "called in this file"
                self.say(
                    "W0105",
                    f"`default {callee}` has no effect: it is not {said}",
                    statement.span,
                    "remove it",
                    _without_line(statement.span),
                )

    def unused_values(self, body: Iterable[tree.Node], *, top: bool = False) -> None:
        """Reports every `let`, and at the top every `param`, that nothing names."""
        statements = list(body)
        naming: dict[str, list[int]] = defaultdict(list)
        for index, statement in enumerate(statements):
            for name in _names(statement):
                naming[name].append(index)
        for index, statement in enumerate(statements):
            for child in _bodies(statement):
                self.unused_values(child)
            if isinstance(statement, tree.Let):
                last = max(naming[statement.name], default=-1)
                if last < 0 or (not top and last <= index):
                    message = f"`{statement.name}` is never used"
                    self.say("W0104", message, statement.name_span, "remove the `let`", _without_line(statement.span))
            elif isinstance(statement, tree.Param) and not self.extends and not set(naming[statement.name]) - {index}:
                message = f"the parameter `{statement.name}` is never used"
                edit = _without_line(statement.span)
                self.say("W0102", message, statement.name_span, "remove the `param`", edit)

    def unused_blocks(self, graph: ir.Graph) -> None:
        """Reports blocks of the file, and blocks that it uses, that no statement of the network leads to."""
        reached = set(graph.scopes.values())
        queue: list[tree.Node] = [
            s for s in self.file.statements if not isinstance(s, (tree.Block, tree.Default, tree.Use))
        ]
        while queue:
            for name in _names(queue.pop()) - reached:
                reached.add(name)
                if name in self.blocks:
                    queue.append(self.blocks[name])
        for name in [name for name in reached if name in self.blocks]:
            reached |= _names(self.blocks[name])
        for block in self.blocks.values():
            if block.name not in reached:
                message = f"the block `{block.name}` is never used"
                self.say("W0101", message, block.name_span, "remove it", _without_line(block.span))
        for statement in self.file.statements:
            if isinstance(statement, tree.Use):
                for name in statement.names:
                    if name.name not in reached:
                        edit = _without_line(statement.span) if len(statement.names) == 1 else None
                        self.say("W0101", f"the block `{name.name}` is never used", name.span, "remove it", edit)

    def block(self, block: tree.Block) -> None:
        """Reports a block that hides another one, and what is never used in it."""
        standard = standard_block(block.name) if block.name in standard_blocks() else None
        if standard is not None and self.graph is not None and standard[1] != block:
            self.say(
                "W0108",
                f"the block `{block.name}` hides a standard block that is another one",
                block.name_span,
                "give it another name, or remove it if the standard one will do",
            )
        body: set[str] = set()
        for statement in block.body:
            body |= _names(statement)
        defaults: dict[str, set[str]] = defaultdict(set)
        for parameter in block.parameters:
            for name in _names(parameter.default) if parameter.default is not None else ():
                defaults[name].add(parameter.name)
        for parameter in block.parameters:
            if parameter.name not in body and not defaults[parameter.name] - {parameter.name}:
                message = f"the parameter `{parameter.name}` of the block `{block.name}` is never used"
                self.say("W0102", message, parameter.span, "remove it, and the argument in its calls")
        self.unused_values(block.body)

    def label(self, flow: tree.Flow, label: tree.LabelName, referred: set[str]) -> None:
        """Reports a label that names nothing, or what torch calls otherwise."""
        single = flow.elements[0] if len(flow.elements) == 1 else None
        names_module = not isinstance(single, (tree.In, tree.Reference))
        if isinstance(single, tree.Call) and single.callee in OPS:
            names_module = OPS[single.callee].owns_module
        if not names_module and label.name not in referred and not label.word:
            text = label.span.source.text
            colon = text.index(":", label.span.end) + 1
            end = colon + len(text[colon:]) - len(text[colon:].lstrip(" \t"))
            edit = Edit(Span(label.span.source, label.span.start, end), "")
            self.say(
                "W0103",
                f"the label `{label.name}` names no module, and nothing refers to it",
                label.span,
                "remove the label",
                edit,
            )
        elif names_module and label.name in MODULE_WORDS:
            self.say(
                "W0109",
                f"`{label.name}` is an attribute of every torch module",
                label.span,
                f'choose another label: this part could only be reached as `["{label.name}"]`',
            )

    def arguments(self, call: tree.Call | tree.Each) -> None:
        """Reports arguments of a call that give a parameter the value that it has without them, or that do nothing."""
        if call.callee in self.defaults or call.callee_span.start == call.span.end:
            return
        found = self.blocks.get(call.callee)
        standard = standard_block(call.callee) if found is None and call.callee not in OPS else None
        block = found or (standard[1] if standard else None)
        if block is not None:
            parameters = signature(block)
        elif call.callee in OPS and call.callee not in self.blocks:
            parameters = OPS[call.callee].parameters
        else:
            return
        named = _named(call.args, parameters)
        given = {name: self.written(arg.value, parameters[name]) for name, arg in named.items() if name in parameters}
        columns = [column.name for column in call.columns] if isinstance(call, tree.Each) else []
        values = {**{name: p.default for name, p in parameters.items()}, **dict.fromkeys(columns), **given}
        by_place = [arg for arg in named.values() if arg.name is None and _flag(arg, parameters) is None]
        for name, arg in named.items():
            parameter = parameters.get(name)
            behind = any(arg is other for other in by_place[:-1])  # others need it, to be told by their places
            if parameter is None or parameter.required or behind:
                continue
            if _flag(arg, parameters):
                known = parameter.default is True
            else:
                known = self.restates(arg.value, parameter)
            if known or (call.callee in _POOLS and name == "stride" and given[name] == values["kernel"] is not None):
                self.say("W0105", f"`{name}` has this value anyway", arg.span, "remove it", _without(arg.span))
            for callees, idle, holds, why in _IDLE:
                if call.callee in callees and name == idle and holds(values):
                    message = f"`{name}` has no effect {why}"
                    self.say("W0105", message, arg.span, "remove it", _without(arg.span), certain=False)

    def restates(self, value: tree.Expr, parameter: Parameter) -> bool:
        """Whether a value written out is the default of a parameter."""
        default = parameter.default
        if isinstance(default, tree.Node):
            operator = isinstance(value, tree.Name) and value.name in OPS and parameter.type.kind == "op"
            return (operator or isinstance(value, _LITERALS)) and value == default
        if isinstance(value, tree.Name):
            return bool(parameter.type.words) and value.name == default
        given = self.written(value, parameter)
        return given is not None and type(given) is type(default) and given == default

    def written(self, value: tree.Expr, parameter: Parameter) -> Any:
        """The value of a literal, as the parameter takes it; none for any other expression."""
        if not isinstance(value, _LITERALS):
            return None
        try:
            scope = FileScope(self.file, lambda _: None)
            given = evaluate(Resolver(Report()).expr(value, Names(scope, {}), parameter.type), {})
        except (Fault, ExprFault, UnknownShape):
            return None
        if parameter.type.kind == "size" and isinstance(given, int) and not isinstance(given, bool):
            given = (given, given)
        return given

    def branches(self, join: tree.Join) -> None:
        """Reports statements in lines of their own that seem to be meant behind one another, and are branches."""
        flows = [statement for statement in join.body if isinstance(statement, tree.Flow)]
        called = [[e.callee if isinstance(e, tree.Call) else None for e in flow.elements] for flow in flows]
        if stacked(called) and len({flow.span.line for flow in flows}) == len(flows):
            message = (
                f"each statement of `{join.kind}` is a branch of its own, and one is a norm or an activation alone"
            )
            help = "put those that follow one another in `{ }`, or join them with `|`"
            self.say("W0115", message, join.span, help)

    # --- the network -----------------------------------------------------------------------------

    def network(self, graph: ir.Graph) -> None:
        """Looks at the Graph."""
        readers: dict[int, list[ir.Node]] = defaultdict(list)
        for node in graph.nodes:
            for index in node.inputs:
                readers[index].append(node)
        for index, node in enumerate(graph.nodes):
            if getattr(node.op, "bias", False) and "bias" in node.weights and self.own(node):
                self.bias(node, readers[index])
        joins = {part.span.start: part for part in self.parts if isinstance(part, tree.Join)}
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
            if isinstance(statement, tree.Init) and statement.target not in started:
                message = f"`init {statement.target}` has no effect: the network has no `{statement.target}`"
                self.say("W0105", message, statement.target_span, "remove it", _without_line(statement.span))

    def own(self, node: ir.Node) -> bool:
        return node.origin is not None and node.origin.source is self.file.source

    def twice(self, join: tree.Join, inputs: Sequence[int]) -> None:
        """Reports branches of a join that hand on one tensor by two names."""
        flows = [statement for statement in join.body if isinstance(statement, tree.Flow)]
        names: dict[int, str] = {}
        for flow, node in zip(flows, inputs, strict=False) if len(flows) == len(inputs) else ():
            element = flow.elements[0] if len(flow.elements) == 1 else None
            name = f"@{element.label}" if isinstance(element, tree.Reference) else "in"
            if isinstance(element, (tree.In, tree.Reference)) and names.setdefault(node, name) != name:
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
        calls = {part.callee_span.start: part for part in self.parts if isinstance(part, tree.Call)}
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
            stride = next((arg for arg in args if arg.name == "stride" and isinstance(arg.value, _LITERALS)), None)
            if single[at] and stride is not None:
                message = "`stride` has no effect on a map of one place"
                self.say("W0105", message, stride.span, "remove it", _without(stride.span), certain=False)
            elif not single[at]:
                for node in nodes:
                    self.steps_over(node, graph.input_shapes(node)[0][0], args)

    def steps_over(self, node: ir.Node, channels: int, args: Iterable[tree.Argument]) -> None:
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
            edit = _without(by_place[1].span)
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
            cut = Edit(Span(self.file.source, bar.start(), node.origin.end), "") if bar else _without_line(node.origin)
            why = (
                "which the loss of training applies, too" if node.op.name == "softmax" else "and the loss takes logits"
            )
            message = f"the network ends with `{node.op.name}`, {why}"
            self.say("W0111", message, node.origin, "remove it", cut if behind else None, certain=False)

    def classes(self, graph: ir.Graph) -> None:
        """Reports `classes` that nothing reads, of a network that gives another number."""
        stated = next((s for s in self.file.statements if isinstance(s, tree.Classes)), None)
        read = any("classes" in _names(s) for s in self.file.statements if s is not stated)
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
        train = next((s for s in self.file.statements if isinstance(s, tree.Train)), None)
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
            stated = next((s for s in self.file.statements if isinstance(s, tree.Input)), None)
            if stated is not None:
                c, h, w = shape
                help = f"if channels stand last here, write `input {w}x{c}x{h}`"
                edit = Edit(stated.span, f"{w}x{c}x{h}")
                message = f"the image has {c} channels, and is {h} high and {w} wide"
                self.say("W0112", message, stated.span, help, edit, certain=False)


_LITERALS = (tree.Number, tree.Bool, tree.Text, tree.SizeLiteral)
_POOLS = ("maxpool", "avgpool")
_CHANNELS = OPS["conv"].parameters["c"]
_IDLE: tuple[tuple[tuple[str, ...], str, Callable[[Mapping[str, Any]], bool], str], ...] = (
    (("conv", "conv_transpose", "maxpool"), "dilation", lambda v: v["kernel"] == (1, 1), "on a kernel of one place"),
    (("avgpool",), "count_pad", lambda v: v["pad"] == (0, 0), "without padding"),
)
"""Arguments that do nothing: of which operators, for which values, and why."""


def _flag(arg: tree.Argument, parameters: Mapping[str, Parameter]) -> str | None:
    """The name of the flag that an argument is."""
    word = arg.value.name if arg.name is None and isinstance(arg.value, tree.Name) else ""
    return word if word in parameters and parameters[word].type.kind == "bool" else None


def _named(args: Iterable[tree.Argument], parameters: Mapping[str, Parameter]) -> dict[str, tree.Argument]:
    """Arguments by the parameters that they are for."""
    flags = {_flag(arg, parameters) for arg in args}
    free = iter([name for name in parameters if name not in flags])
    return {arg.name or _flag(arg, parameters) or next(free): arg for arg in args}


def _centres_channels(node: ir.Node) -> bool:
    """Whether an operator subtracts the mean of each channel alone; a wider mean leaves a bias standing."""
    return node.op.name in ("bn", "in_norm") or (
        node.op.name == "gn" and getattr(node.op, "groups", 0) == node.shape[0]
    )


def _bodies(node: tree.Node) -> Iterator[tuple[tree.Node, ...]]:
    """The outermost braces inside of a statement of a network, each with its own names."""
    if isinstance(node, (tree.Braces, tree.Repeat, tree.Join, tree.Aux)):
        yield node.body
    elif isinstance(node, tree.If):
        yield node.then
        yield node.otherwise or ()
    elif not isinstance(node, tree.Block):
        for child in node.children():
            yield from _bodies(child)


# --- silencing -----------------------------------------------------------------------------------

_IGNORE = re.compile(r"#\s*cnnspec:\s*(?P<what>ignore-file|ignore)\b(?P<codes>[ \t,]*(?:[A-Z][0-9]{4}\b[ \t,]*)*)")


def _silenced(file: tree.File, found: list[Diagnostic]) -> list[Diagnostic]:
    """The lints that no comment silences, with those about comments that silence nothing."""
    text = file.source.text
    out: list[Diagnostic] = []
    silenced: set[tuple[str, int | None]] = set()
    places = {(d.code, line) for d in found for line in (d.line, None)}  # none for the whole file
    for comment in file.comments:
        match = _IGNORE.match(comment.text)
        if match is None:
            continue
        line = comment.span.line
        if comment.own_line:  # it speaks of the next line that holds more than a comment
            behind = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*").match(text, comment.span.end)
            line = file.source.position(min(behind.end() if behind else comment.span.end, len(text)))[0]
        codes = re.findall(r"[A-Z][0-9]{4}", match["codes"])
        whole = match["what"] == "ignore-file"
        edit = _without_line(comment.span) if comment.own_line else _without(comment.span)
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
