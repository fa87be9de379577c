"""Lints of the text: what the tree of the user's file shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cnnspec import ir
from cnnspec.diagnostics import Edit, Reported, Reporter, Span
from cnnspec.ir.evaluate import ExpressionError, UnknownShape, evaluate
from cnnspec.lints.base import LITERALS, Lints, without, without_line
from cnnspec.ops import OPS, stacked
from cnnspec.schema import Parameter
from cnnspec.semantics.blocks import signature
from cnnspec.semantics.context import Context
from cnnspec.semantics.loader import standard_block, standard_blocks
from cnnspec.semantics.names import ExpressionResolver
from cnnspec.semantics.scope import FileScope, LocalScope
from cnnspec.syntax import ast

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

_POOLS = ("maxpool", "avgpool")
_IDLE: tuple[tuple[tuple[str, ...], str, Callable[[Mapping[str, Any]], bool], str], ...] = (
    (("conv", "conv_transpose", "maxpool"), "dilation", lambda v: v["kernel"] == (1, 1), "on a kernel of one place"),
    (("avgpool",), "count_pad", lambda v: v["pad"] == (0, 0), "without padding"),
)
"""Arguments that do nothing: of which operators, for which values, and why."""


class TextLints(Lints):
    def text(self) -> None:
        """Looks at the tree."""
        self.unused_values(self.file.statements, top=True)
        if self.graph is not None:
            self.unused_blocks(self.graph)
        for block in self.blocks.values():
            self.block(block)
        referred = {part.label for part in self.parts if isinstance(part, ast.Reference)}
        called = {part.callee for part in self.parts if isinstance(part, (ast.Call, ast.Each))}
        for part in self.parts:
            if isinstance(part, ast.Flow) and part.label is not None:
                self.label(part, part.label, referred)
            elif isinstance(part, (ast.Call, ast.Each)):
                self.arguments(part)
            elif isinstance(part, ast.Join):
                self.branches(part)
        for flow in (part for part in self.parts if isinstance(part, ast.Flow) and part.condition is not None):
            if len(flow.elements) == 1 and isinstance(flow.elements[0], ast.In):
                help = "`in` flows on without it, too; a branch that may be absent is `if ... { in } else { nothing }`"
                self.say("W0105", "`when` has no effect on `in`", flow.span, help)
        defaults = [s for s in self.file.statements if isinstance(s, ast.Default)]
        named = {name for s in self.file.statements if not isinstance(s, ast.Default) for name in self.names(s)}
        for statement in defaults if not self.extends else ():
            callee = statement.call.callee
            if callee not in named:
                said = "called" if callee in called else "called in this file"
                self.say(
                    "W0105",
                    f"`default {callee}` has no effect: it is not {said}",
                    statement.span,
                    "remove it",
                    without_line(statement.span),
                )

    def unused_values(self, body: Iterable[ast.Node], *, top: bool = False) -> None:
        """Reports every `let`, and at the top every `param`, that nothing names."""
        statements = list(body)
        naming: dict[str, list[int]] = defaultdict(list)
        for index, statement in enumerate(statements):
            for name in self.names(statement):
                naming[name].append(index)
        for index, statement in enumerate(statements):
            for child in _bodies(statement):
                self.unused_values(child)
            if isinstance(statement, ast.Let):
                last = max(naming[statement.name], default=-1)
                if last < 0 or (not top and last <= index):
                    message = f"`{statement.name}` is never used"
                    self.say("W0104", message, statement.name_span, "remove the `let`", without_line(statement.span))
            elif isinstance(statement, ast.Param) and not self.extends and not set(naming[statement.name]) - {index}:
                message = f"the parameter `{statement.name}` is never used"
                edit = without_line(statement.span)
                self.say("W0102", message, statement.name_span, "remove the `param`", edit)

    def unused_blocks(self, graph: ir.Graph) -> None:
        """Reports blocks of the file, and blocks that it uses, that no statement of the network leads to."""
        reached = set(graph.scopes.values())
        queue: list[ast.Node] = [
            s for s in self.file.statements if not isinstance(s, (ast.Block, ast.Default, ast.Use))
        ]
        while queue:
            for name in self.names(queue.pop()) - reached:
                reached.add(name)
                if name in self.blocks:
                    queue.append(self.blocks[name])
        for name in [name for name in reached if name in self.blocks]:
            reached |= self.names(self.blocks[name])
        for block in self.blocks.values():
            if block.name not in reached:
                message = f"the block `{block.name}` is never used"
                self.say("W0101", message, block.name_span, "remove it", without_line(block.span))
        for statement in self.file.statements:
            if isinstance(statement, ast.Use):
                for name in statement.names:
                    if name.name not in reached:
                        edit = without_line(statement.span) if len(statement.names) == 1 else None
                        self.say("W0101", f"the block `{name.name}` is never used", name.span, "remove it", edit)

    def block(self, block: ast.Block) -> None:
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
            body |= self.names(statement)
        defaults: dict[str, set[str]] = defaultdict(set)
        for parameter in block.parameters:
            for name in self.names(parameter.default) if parameter.default is not None else ():
                defaults[name].add(parameter.name)
        for parameter in block.parameters:
            if parameter.name not in body and not defaults[parameter.name] - {parameter.name}:
                message = f"the parameter `{parameter.name}` of the block `{block.name}` is never used"
                self.say("W0102", message, parameter.span, "remove it, and the argument in its calls")
        self.unused_values(block.body)

    def label(self, flow: ast.Flow, label: ast.LabelName, referred: set[str]) -> None:
        """Reports a label that names nothing, or what torch calls otherwise."""
        single = flow.elements[0] if len(flow.elements) == 1 else None
        names_module = not isinstance(single, (ast.In, ast.Reference))
        if isinstance(single, ast.Call) and single.callee in OPS:
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

    def arguments(self, call: ast.Call | ast.Each) -> None:
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
        columns = [column.name for column in call.columns] if isinstance(call, ast.Each) else []
        values = {**{name: p.default for name, p in parameters.items()}, **dict.fromkeys(columns), **given}
        by_place = [arg for arg in named.values() if arg.name is None and _flag(arg, parameters) is None]
        for name, arg in named.items():
            parameter = parameters.get(name)
            # The first by its place says what the call is about, `dropout 0.5`; those behind it need the ones in front.
            meant = any(arg is other for other in (*by_place[:1], *by_place[:-1]))
            if parameter is None or parameter.required or meant:
                continue
            if _flag(arg, parameters):
                known = parameter.default is True
            else:
                known = self.restates(arg.value, parameter)
            if known or (call.callee in _POOLS and name == "stride" and given[name] == values["kernel"] is not None):
                self.say("W0105", f"`{name}` has this value anyway", arg.span, "remove it", without(arg.span))
            for callees, idle, holds, why in _IDLE:
                if call.callee in callees and name == idle and holds(values):
                    message = f"`{name}` has no effect {why}"
                    self.say("W0105", message, arg.span, "remove it", without(arg.span), certain=False)

    def restates(self, value: ast.Expr, parameter: Parameter) -> bool:
        """Whether a value written out is the default of a parameter."""
        default = parameter.default
        if isinstance(default, ast.Node):
            operator = isinstance(value, ast.Name) and value.name in OPS and parameter.type.kind == "op"
            return (operator or isinstance(value, LITERALS)) and value == default
        if isinstance(value, ast.Name):
            return bool(parameter.type.words) and value.name == default
        given = self.written(value, parameter)
        return given is not None and type(given) is type(default) and given == default

    def written(self, value: ast.Expr, parameter: Parameter) -> Any:
        """The value of a literal, as the parameter takes it; none for any other expression."""
        if not isinstance(value, LITERALS):
            return None
        try:
            scope = FileScope(self.file, lambda _: None)
            given = evaluate(
                ExpressionResolver(Context(Reporter())).resolve(value, LocalScope(scope, {}), parameter.type), {}
            )
        except (Reported, ExpressionError, UnknownShape):
            return None
        if parameter.type.kind == "size" and isinstance(given, int) and not isinstance(given, bool):
            given = (given, given)
        return given

    def branches(self, join: ast.Join) -> None:
        """Reports statements in lines of their own that seem to be meant behind one another, and are branches."""
        flows = [statement for statement in join.body if isinstance(statement, ast.Flow)]
        called = [[e.callee if isinstance(e, ast.Call) else None for e in flow.elements] for flow in flows]
        if stacked(called) and len({flow.span.line for flow in flows}) == len(flows):
            message = (
                f"each statement of `{join.kind}` is a branch of its own, and one is a norm or an activation alone"
            )
            help = "put those that follow one another in `{ }`, or join them with `|`"
            self.say("W0115", message, join.span, help)


def _flag(arg: ast.Argument, parameters: Mapping[str, Parameter]) -> str | None:
    """The name of the flag that an argument is."""
    word = arg.value.name if arg.name is None and isinstance(arg.value, ast.Name) else ""
    return word if word in parameters and parameters[word].type.kind == "bool" else None


def _named(args: Iterable[ast.Argument], parameters: Mapping[str, Parameter]) -> dict[str, ast.Argument]:
    """Arguments by the parameters that they are for."""
    flags = {_flag(arg, parameters) for arg in args}
    free = iter([name for name in parameters if name not in flags])
    return {arg.name or _flag(arg, parameters) or next(free): arg for arg in args}


def _bodies(node: ast.Node) -> Iterator[tuple[ast.Node, ...]]:
    """The outermost braces inside of a statement of a network, each with its own names."""
    if isinstance(node, (ast.Braces, ast.Repeat, ast.Join, ast.Aux)):
        yield node.body
    elif isinstance(node, ast.If):
        yield node.then
        yield node.otherwise or ()
    elif not isinstance(node, ast.Block):
        for child in node.children():
            yield from _bodies(child)
