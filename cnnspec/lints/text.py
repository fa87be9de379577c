"""Lints of the text: rules over the syntax tree of the user's file.

A rule is a function from a `Context` to warnings, listed in `RULES`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cnnspec.diagnostics import Diagnostic, Edit, Label, Span
from cnnspec.lints.base import LITERALS, LintContext, remove_argument, remove_statement, warning
from cnnspec.ops import FOREIGN_ARGUMENTS, OPS, keeps_shape, stacked
from cnnspec.ops.inits import INITS
from cnnspec.recipe import CHOICES
from cnnspec.schema import Parameter
from cnnspec.semantics.blocks import signature
from cnnspec.semantics.loader import standard_block, standard_blocks
from cnnspec.shapes import join_words
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
"""Attributes of `torch.nn.Module`; a submodule of that name is not accessible as an attribute."""

_POOLS = ("maxpool", "avgpool")
_NO_EFFECT: tuple[tuple[tuple[str, ...], str, Callable[[Mapping[str, Any]], bool], str], ...] = (
    (("conv", "conv_transpose", "maxpool"), "dilation", lambda v: v["kernel"] == (1, 1), "with a 1x1 kernel"),
    (("avgpool",), "count_pad", lambda v: v["pad"] == (0, 0), "without padding"),
)
"""Arguments without effect: operators, argument, condition on all values, and the reason."""


# --- unused names --------------------------------------------------------------------------------


def unused_values(context: LintContext) -> Iterator[Diagnostic]:
    """Report each `let` and `param` that is never used."""
    yield from _unused_in(context, context.file.statements, is_file=True)
    for block in context.blocks.values():
        yield from _unused_in(context, block.body)


def _unused_in(context: LintContext, body: Iterable[ast.Node], *, is_file: bool = False) -> Iterator[Diagnostic]:
    """Report unused values of a body, and of the braces in it. In a file, a `let` may follow its use."""
    statements = list(body)
    uses: dict[str, list[int]] = defaultdict(list)
    for index, statement in enumerate(statements):
        for name in context.names(statement):
            uses[name].append(index)
    for index, statement in enumerate(statements):
        for inner in _bodies(statement):
            yield from _unused_in(context, inner)
        if isinstance(statement, ast.Let):
            last = max(uses[statement.name], default=-1)
            if last < 0 or (not is_file and last <= index):
                message, edit = f"the value `{statement.name}` is never used", remove_statement(statement.span)
                yield warning("W0104", message, statement.name_span, f"remove `let {statement.name}`", edit)
        elif isinstance(statement, ast.Param) and not context.extends and not set(uses[statement.name]) - {index}:
            message, edit = f"the parameter `{statement.name}` is never used", remove_statement(statement.span)
            yield warning("W0102", message, statement.name_span, f"remove `param {statement.name}`", edit)


def _bodies(node: ast.Node) -> Iterator[tuple[ast.Node, ...]]:
    """Iterate over the outermost braces in a statement of a network; each is a scope of names."""
    if isinstance(node, (ast.Braces, ast.Repeat, ast.Join, ast.Aux)):
        yield node.body
    elif isinstance(node, ast.If):
        yield node.then
        yield node.otherwise or ()
    elif not isinstance(node, ast.Block):
        for child in node.children():
            yield from _bodies(child)


def unused_blocks(context: LintContext) -> Iterator[Diagnostic]:
    """Report blocks of the file, and blocks that it imports, that the network does not use."""
    if context.graph is None:
        return
    used = _used_blocks(context, set(context.graph.scopes.values()))
    for block in context.blocks.values():
        if block.name not in used:
            message, edit = f"the block `{block.name}` is never used", remove_statement(block.span)
            found = warning("W0101", message, block.name_span, "remove the block", edit)
            yield replace(found, fallback="remove the block, and the unused blocks that call it")
    for use in (statement for statement in context.file.statements if isinstance(statement, ast.Use)):
        for name in use.names:
            if name.name not in used:
                edit = remove_statement(use.span) if len(use.names) == 1 else None
                help = "remove the `use` statement" if edit else "remove it from the `use` statement"
                yield warning("W0101", f"the imported block `{name.name}` is never used", name.span, help, edit)


def _used_blocks(context: LintContext, used: set[str]) -> set[str]:
    """Return the names that the network refers to, directly or through other blocks; `used` are some of them."""
    queue: list[ast.Node] = [
        statement
        for statement in context.file.statements
        if not isinstance(statement, (ast.Block, ast.Default, ast.Use))
    ]
    while queue:
        for name in context.names(queue.pop()) - used:
            used.add(name)
            if name in context.blocks:
                queue.append(context.blocks[name])
    return used.union(*(context.names(context.blocks[name]) for name in used if name in context.blocks))


def unused_block_parameters(context: LintContext) -> Iterator[Diagnostic]:
    """Report parameters of blocks that are never used."""
    for block in context.blocks.values():
        body = {name for statement in block.body for name in context.names(statement)}
        nodes = [node for statement in block.body for node in statement.walk()]
        tensors = {node.label for node in nodes if isinstance(node, ast.Reference)}
        in_defaults: dict[str, set[str]] = defaultdict(set)
        for parameter in block.parameters:
            for name in context.names(parameter.default) if parameter.default is not None else ():
                in_defaults[name].add(parameter.name)
        for parameter in block.parameters:
            used = body if parameter.type != "tensor" else tensors
            if parameter.name not in used and not in_defaults[parameter.name] - {parameter.name}:
                message = f"the parameter `{parameter.name}` of the block `{block.name}` is never used"
                yield warning("W0102", message, parameter.span, f"remove it, also from the calls of `{block.name}`")


def hidden_standard_blocks(context: LintContext) -> Iterator[Diagnostic]:
    """Report blocks with the name of a different standard block."""
    for block in context.blocks.values() if context.graph is not None else ():
        standard = standard_block(block.name) if block.name in standard_blocks() else None
        if standard is not None and standard[1] != block:
            message = f"the block `{block.name}` shadows the standard block `{block.name}`"
            help = "rename it, or remove it to use the standard block"
            yield warning("W0108", message, block.name_span, help)


def unused_defaults(context: LintContext) -> Iterator[Diagnostic]:
    """Report `default` statements for operators and blocks that are never called."""
    if context.extends:
        return
    statements = context.file.statements
    used = {name for other in statements if not isinstance(other, ast.Default) for name in context.names(other)}
    for statement in statements:
        if isinstance(statement, ast.Default) and (callee := statement.call.callee) not in used:
            message = f"`default {callee}` has no effect: `{callee}` is never called in this file"
            edit = remove_statement(statement.span)
            yield warning("W0105", message, statement.span, "remove it", edit)


# --- labels and branches -------------------------------------------------------------------------


def labels(context: LintContext) -> Iterator[Diagnostic]:
    """Report labels that are never used and name no module, and labels that are attributes of torch modules."""
    referenced = {node.label for node in context.nodes if isinstance(node, ast.Reference)}
    for flow in context.nodes:
        if not isinstance(flow, ast.Flow) or (label := flow.label) is None:
            continue
        alias = len(flow.elements) == 1 and isinstance(flow.elements[0], (ast.In, ast.Reference, ast.Again))
        if alias and label.name not in referenced and not label.word:
            message = f"the label `{label.name}` is never used and names no module"
            yield warning("W0103", message, label.span, "remove the label", _remove_label(label))
        for word in label.name.split(".") if _names_module(flow) else ():
            if word not in MODULE_WORDS:
                continue
            message = f"the label `{word}` is an attribute of every `torch.nn.Module`"
            help = f"rename the label: `net.{label.name}` is the attribute of `torch.nn.Module`, not this submodule"
            yield warning("W0109", message, label.span, help)


def _names_module(flow: ast.Flow) -> bool:
    """Return True if the label of a pipeline is a path in the module tree."""
    single = flow.elements[0] if len(flow.elements) == 1 else None
    if isinstance(single, ast.Call) and single.callee in OPS:
        return OPS[single.callee].owns_module
    return not isinstance(single, (ast.In, ast.Reference, ast.Again))


def _remove_label(label: ast.LabelName) -> Edit:
    text = label.span.source.text
    colon = text.index(":", label.span.end) + 1
    end = colon + len(text[colon:]) - len(text[colon:].lstrip(" \t"))
    return Edit(Span(label.span.source, label.span.start, end), "")


def conditional_in(context: LintContext) -> Iterator[Diagnostic]:
    """Report `in when ...`, which is `in` in both cases."""
    for flow in context.nodes:
        if isinstance(flow, ast.Flow) and flow.condition is not None:
            single = flow.elements[0] if len(flow.elements) == 1 else None
            if isinstance(single, ast.In):
                branch = f"if {flow.condition.span.text} {{ in }} else {{ nothing }}"
                help = f"remove `when`, or write `{branch}` for an optional branch"
                yield warning("W0105", "`when` has no effect on `in`", flow.span, help)


def leading_in(context: LintContext) -> Iterator[Diagnostic]:
    """Report `in` at the head of a pipeline that continues the statement before it anyway."""
    braces = [node for node in context.nodes if isinstance(node, (ast.Braces, ast.Repeat, ast.If, ast.Aux))]
    bodies: list[tuple[str, Iterable[ast.Node]]] = [("network", context.file.statements)]
    bodies += [("block", block.body) for block in context.blocks.values()]
    bodies += [("braces", body) for node in braces for body in _bodies(node)]
    for scope, body in bodies:
        flows = [statement for statement in body if isinstance(statement, ast.Flow)]
        for flow in flows[1:]:
            first = flow.elements[0]
            if isinstance(first, ast.In) and (len(flow.elements) > 1 or flow.label is None):
                label = f"write `x: in` as the first statement of the {scope} and `@x` instead of `in` here"
                help = f"remove `in`; to use the input of the {scope}, {label}"
                message = "`in` has no effect here: it is the output of the previous statement"
                yield warning("W0105", message, first.span, help)


def stacked_branches(context: LintContext) -> Iterator[Diagnostic]:
    """Report joins whose branches look like the consecutive layers of one branch."""
    for join in context.nodes:
        if not isinstance(join, ast.Join):
            continue
        flows = [statement for statement in join.body if isinstance(statement, ast.Flow)]
        called = [[e.callee if isinstance(e, ast.Call) else None for e in flow.elements] for flow in flows]
        if stacked(called) and len({flow.span.line for flow in flows}) == len(flows):
            alone = [flow for flow, names in zip(flows, called, strict=True) if keeps_shape(names)]
            names = join_words([f"`{flow.elements[0].span.text}`" for flow in alone])
            branches = "is a separate branch" if len(alone) == 1 else "are separate branches"
            labels = tuple(Label(flow.span, "a branch of its own") for flow in alone)
            help = "to chain statements, put them in `{ }` or join them with `|`"
            yield warning("W0115", f"{names} {branches} of `{join.kind}`", join.span, help, labels=labels)


# --- arguments -----------------------------------------------------------------------------------


def redundant_arguments(context: LintContext) -> Iterator[Diagnostic]:
    """Report arguments that equal the default of their parameter, or that have no effect."""
    with_default = {s.call.callee for s in context.file.statements if isinstance(s, ast.Default)}
    for call in context.nodes:
        if isinstance(call, (ast.Call, ast.Each)) and call.callee not in with_default:
            parameters = _parameters(context, call)
            if parameters is not None and call.callee_span.start != call.span.end:
                yield from _redundant_in(context, call, parameters)


def _parameters(context: LintContext, call: ast.Call | ast.Each) -> Mapping[str, Parameter] | None:
    """Return the parameters of the called block or operator, if it is known."""
    block = context.blocks.get(call.callee)
    if block is None and call.callee in OPS:
        return OPS[call.callee].parameters
    if block is None and (standard := standard_block(call.callee)) is not None:
        block = standard[1]
    return signature(block) if block is not None else None


def _redundant_in(
    context: LintContext, call: ast.Call | ast.Each, parameters: Mapping[str, Parameter]
) -> Iterator[Diagnostic]:
    args = _bind(call.args, parameters)
    given = {name: context.literal(arg.value, parameters[name]) for name, arg in args.items() if name in parameters}
    columns = [column.name for column in call.columns] if isinstance(call, ast.Each) else []
    values = {**{name: p.default for name, p in parameters.items()}, **dict.fromkeys(columns), **given}
    positional = [arg for arg in args.values() if arg.name is None and _flag(arg, parameters) is None]
    # The first positional argument is the subject of a call, `dropout 0.5`; the others need those before them.
    needed = {id(arg) for arg in (*positional[:1], *positional[:-1])}
    for name, arg in args.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.required or id(arg) in needed:
            continue
        shadowed = isinstance(arg.value, ast.Name) and arg.value.name in context.values[id(call)]
        is_default = parameter.default is True
        if not _flag(arg, parameters):
            is_default = not shadowed and _is_default(context, arg.value, parameter)
        is_kernel = call.callee in _POOLS and name == "stride" and given[name] == values["kernel"] is not None
        if is_default or is_kernel:
            message, edit = f"`{name}` already has this value by default", remove_argument(arg.span)
            yield warning("W0120", message, arg.span, "remove it", edit)
        for callees, unused, holds, reason in _NO_EFFECT:
            if call.callee in callees and name == unused and holds(values):
                message, edit = f"`{name}` has no effect {reason}", remove_argument(arg.span)
                yield warning("W0105", message, arg.span, "remove it", edit, certain=False)


def accidental_arguments(context: LintContext) -> Iterator[Diagnostic]:
    """Report values of the file that look like flags, but set an optional argument by their position."""
    for call in context.nodes:
        if not isinstance(call, ast.Call):
            continue
        parameters = _parameters(context, call) or {}
        bound = _bind(call.args, parameters) if parameters else {}
        for name, arg in bound.items():
            word = arg.value.name if arg.name is None and isinstance(arg.value, ast.Name) else ""
            value = context.values[id(call)]
            if word not in value or name not in parameters or parameters[name].required:
                continue
            if name in ("c", next(iter(bound))):  # the subject of a call, such as `dropout rate`
                continue
            if not _flag(arg, parameters) and not _related(word, name):
                message = f"`{word}` sets `{name}` of `{call.callee}` by its position"
                edit = Edit(Span(arg.span.source, arg.span.start, arg.span.start), f"{name}=")
                help = f"write `{name}={word}` to set `{name}`, or remove `{word}`"
                defined = value[word]
                labels = (Label(defined, "the value is defined here"),) if defined else ()
                yield warning("W0117", message, arg.span, help, edit, labels=labels, certain=False)


def _related(word: str, parameter: str) -> bool:
    """Return True if a value has the name of a parameter, an abbreviation of it, or its name in another library."""
    names = [parameter, *(other for other, owns in FOREIGN_ARGUMENTS.items() if parameter in owns)]
    words = [part.rstrip("0123456789") for part in word.lower().split("_")]
    return any(
        part and (name.startswith(part) or (len(name) > 1 and part.startswith(name)))
        for part in words
        for name in names
    )


def products_as_sizes(context: LintContext) -> Iterator[Diagnostic]:
    """Report `3*3` where a size is expected: it is the number 9."""
    for _, parameter, value in _typed_values(context):
        product = value
        while isinstance(product, ast.Group):
            product = product.inner
        if parameter.type.kind != "size" or not isinstance(product, ast.Binary) or product.operator != "*":
            continue
        sides = [side.value for side in (product.left, product.right) if isinstance(side, ast.Number)]
        factors = [value for value in sides if isinstance(value, int)]
        if len(factors) == 2:
            number, size = factors[0] * factors[1], "x".join(str(factor) for factor in factors)
            message = f"`{value.span.text}` is the number {number}: `{parameter.name}` is {number}x{number}"
            edit = Edit(value.span, size)
            yield warning("W0118", message, value.span, f"write `{size}`", edit, certain=False)


def sizes_of_the_image(context: LintContext) -> Iterator[Diagnostic]:
    """Report `in.c`, `in.h` and `in.w` of the image after the first element of its pipeline."""
    if context.graph is not None and not context.extends:
        yield from _after_the_first_layer(context.file.statements)


def _after_the_first_layer(body: Iterable[ast.Node], *, all_: bool = False) -> Iterator[Diagnostic]:
    """Search the pipelines of a body that the image flows into: the first one, or all branches of a join."""
    flows = [statement for statement in body if isinstance(statement, ast.Flow)]
    for flow in flows if all_ else flows[:1]:
        first = flow.elements[0]
        for inner in _bodies(first):
            yield from _after_the_first_layer(inner, all_=isinstance(first, ast.Join))
        for element in () if isinstance(first, (ast.In, ast.Reference)) else flow.elements[1:]:
            args = element.args if isinstance(element, (ast.Call, ast.Each)) else ()
            for dim in (part for arg in args for part in arg.value.walk() if isinstance(part, ast.Dim)):
                message = f"`in.{dim.axis}` refers to the input image, not to the output of the previous layer"
                help = f"write the element as a statement on its own line, or in braces: `{{ {element.span.text} }}`"
                yield warning("W0119", message, dim.span, help)


def shadowed_words(context: LintContext) -> Iterator[Diagnostic]:
    """Report values that have the name of a keyword or operator which their argument accepts."""
    for call, parameter, value in _typed_values(context):
        for name in _whole_names(value):
            keyword = name.name in parameter.type.words
            values = context.values[id(call)]
            if name.name in values and (keyword or (name.name in OPS and parameter.type.kind == "op")):
                what = f"keyword of `{parameter.name}`" if keyword else "operator"
                message = f"`{name.name}` refers to the value of that name, not to the {what}"
                defined = values[name.name]
                labels = (Label(defined, "the value is defined here"),) if defined else ()
                yield warning("W0116", message, name.span, f"rename the value `{name.name}`", labels=labels)


def _typed_values(context: LintContext) -> Iterator[tuple[ast.Node, Parameter, ast.Expr]]:
    """Iterate over the values of arguments, with the call and the parameter; also in tables, `init` and `train`."""
    for node in context.nodes:
        calls: Iterable[ast.Call | ast.Each] = ()
        kinds: Mapping[str, Any] = {}
        match node:
            case ast.Call() | ast.Each():
                for parameter, value in _bound_values(node, _parameters(context, node) or {}):
                    yield node, parameter, value
                continue
            case ast.Init():
                calls, kinds = (node.scheme,), INITS
            case ast.Entry():
                calls, kinds = node.calls, CHOICES.get(node.word, {})
            case _:
                continue
        for call in calls:
            parameters: Mapping[str, Parameter] | None = getattr(kinds.get(call.callee), "parameters", None)
            for parameter, value in _bound_values(call, parameters or {}):
                yield call, parameter, value


def _bound_values(
    call: ast.Call | ast.Each, parameters: Mapping[str, Parameter]
) -> Iterator[tuple[Parameter, ast.Expr]]:
    if parameters:
        for name, arg in _bind(call.args, parameters).items():
            if name in parameters and not _flag(arg, parameters):
                yield parameters[name], arg.value
    if isinstance(call, ast.Each):
        for row in call.rows:
            for column, cell in zip(call.columns, row.cells, strict=False):
                if column.name in parameters:
                    yield parameters[column.name], cell


def _whole_names(value: ast.Expr) -> Iterator[ast.Name]:
    """Iterate over the names that can be the whole value of an expression."""
    match value:
        case ast.Name():
            yield value
        case ast.Group():
            yield from _whole_names(value.inner)
        case ast.Choice():
            yield from _whole_names(value.then)
            yield from _whole_names(value.otherwise)
        case _:
            return


def _is_default(context: LintContext, value: ast.Expr, parameter: Parameter) -> bool:
    """Return True if an expression is the default of a parameter, written out."""
    default = parameter.default
    if isinstance(default, ast.Node):
        operator = isinstance(value, ast.Name) and value.name in OPS and parameter.type.kind == "op"
        return (operator or isinstance(value, LITERALS)) and value == default
    if isinstance(value, ast.Name):
        return bool(parameter.type.words) and value.name == default
    given = context.literal(value, parameter)
    return given is not None and type(given) is type(default) and given == default


def _flag(arg: ast.Argument, parameters: Mapping[str, Parameter]) -> str | None:
    """Return the name of a boolean parameter that an argument sets by its bare name."""
    word = arg.value.name if arg.name is None and isinstance(arg.value, ast.Name) else ""
    return word if word in parameters and parameters[word].type.kind == "bool" else None


def _bind(args: Iterable[ast.Argument], parameters: Mapping[str, Parameter]) -> dict[str, ast.Argument]:
    """Return the arguments by the name of their parameter."""
    flags = {_flag(arg, parameters) for arg in args}
    free = iter([name for name in parameters if name not in flags])
    return {arg.name or _flag(arg, parameters) or next(free): arg for arg in args}


RULES: tuple[Callable[[LintContext], Iterator[Diagnostic]], ...] = (
    unused_values,
    unused_blocks,
    hidden_standard_blocks,
    unused_block_parameters,
    labels,
    redundant_arguments,
    accidental_arguments,
    products_as_sizes,
    sizes_of_the_image,
    shadowed_words,
    stacked_branches,
    conditional_in,
    leading_in,
    unused_defaults,
)
