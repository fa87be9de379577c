"""Hints for arguments that the normal rules cannot bind, or bind only by accident.

Each table is ordered. A hint reports the error and returns it, or returns None to leave the argument to the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from cnnspec.diagnostics import Edit, Fix, Label, Reported, Reporter, Span, alternatives, nearest, respell
from cnnspec.diagnostics.suggestions import A_TENSOR, INDEXED, NO_INDEX, no_settings, pipe_before, share
from cnnspec.ops import FOREIGN_ARGUMENTS, INFERRED, OPS, foreign_operator, operator_of_two_words
from cnnspec.ops.examples import example_value, meaning
from cnnspec.recipe import ENTRIES
from cnnspec.schema import Parameter
from cnnspec.semantics.call_site import REPEAT_WORD, Binding, CallSite
from cnnspec.semantics.name_hints import TRUTH_VALUES
from cnnspec.syntax import LABEL_WORDS, ast

Hint = Callable[[Binding], Reported | None]
Advice = tuple[str, Sequence[Fix]]
"""A help and its fixes."""

_INPUT_CHANNELS = {"conv": 1, "bn": 0, "ln": 0, "in_norm": 0, "gn": 1, "linear": 0}
"""The position at which torch's modules take the number of input channels."""
_FOREIGN_WORDS = ("padding", "strides", "stride", "downsample")
"""Arguments of other libraries that are never the name of a value."""
_MAX_STRIDE = 7
"""The largest plausible stride."""


# --- edits ---------------------------------------------------------------------------------------


def _insertion(span: Span, offset: int, text: str) -> Edit:
    return Edit(Span(span.source, offset, offset), text)


def _removal(arg: ast.Argument, help: str, *, certain: bool = True) -> Fix:
    """Remove an argument and the blanks before it."""
    span = arg.span
    start = len(span.source.text[: span.start].rstrip(" \t"))
    return Fix(help, (Edit(Span(span.source, start, span.end), ""),), certain)


def _stride_as_flag(flag: str, arg: ast.Argument | None) -> Advice:
    """Replace a stride by the flag for a stride of 2."""
    stride = arg.value.value if arg and isinstance(arg.value, ast.Number) else None
    if arg and stride == 1:
        help = f"remove it: without `{flag}`, the resolution is unchanged"
        return help, [_removal(arg, help)]
    if arg and stride == 2:
        help = f"write `{flag}` to halve the resolution"
        return help, [Fix(help, (Edit(arg.span, flag),), certain=True)]
    return f"write `{flag}` to halve the resolution; other strides are not supported", ()


def _is_word(value: ast.Expr, word: str) -> bool:
    return isinstance(value, ast.Name) and value.name == word


# --- arguments that the parser read across a line end, or that touch the next one -------------------


def _open_range(binding: Binding) -> Reported | None:
    """`0..` at the end of a line, where a word of the next line was read as the end of the range."""
    value = binding.arg.value
    if not (isinstance(value, ast.Interval) and isinstance(value.high, ast.Name)):
        return None
    end = value.span.source.text.find("\n", value.low.span.end, value.high.span.start)
    if end < 0 or value.high.name in binding.site.scope.variables:
        return None
    span = Span(value.span.source, end, end)
    low = value.low.span.text
    end_value = "1.0" if isinstance(value.low, ast.Number) and isinstance(value.low.value, float) else "in.c"
    help = f"write the end of the range, as in `{low}..{end_value}`"
    fixes = [Fix(help, (Edit(span, end_value),), example=True)]
    message, taken = "missing end of the range", len(binding.remaining)
    return binding.error("E0101", message, span, help=help, fixes=fixes, taken=taken)


def _empty_keyword(binding: Binding) -> Reported | None:
    """`stride=` at the end of a line, where a word of the next line was read as the value."""
    name, arg = binding.arg.name, binding.arg
    if name is None or not isinstance(arg.value, ast.Name) or "\n" not in arg.span.text:
        return None
    if binding.site.scope.meaning(arg.value.name, None) == "name":
        return None
    end = arg.span.start + len(arg.span.text.split("\n")[0].split("#")[0].rstrip())
    parameter = binding.site.parameter(name)
    help, span, fixes = "write a value", Span(arg.span.source, end, end), list[Fix]()
    if parameter:
        help += f", such as `{name}={example_value(parameter)}`"
        fixes = [Fix(help, (Edit(span, example_value(parameter)),), example=True)]
    message, taken = f"missing value for the argument `{name}`", len(binding.remaining)
    return binding.error("E0101", message, span, help=help, fixes=fixes, taken=taken)


def _percent(value: ast.Expr) -> Span | None:
    """Find a percentage at the end of a line, where a word of the next line was read as the divisor."""
    if not (isinstance(value, ast.Binary) and value.operator == "%" and isinstance(value.left, ast.Number)):
        return None
    text, end = value.span.source.text, value.right.span.start
    sign = re.compile(r"[ \t]*%").match(text, value.left.span.end)
    divisor = isinstance(value.right, ast.Name) and value.right.name in (*OPS, *LABEL_WORDS, *ENTRIES)
    if sign is None or not divisor or "\n" not in text[sign.end() : end]:
        return None
    return Span(value.span.source, value.span.start, sign.end())


def report_percents(reporter: Reporter, values: Iterable[ast.Expr]) -> Reported | None:
    """Report every percentage at the end of a line; returns the last error."""
    error = None
    for span in filter(None, map(_percent, values)):
        fix = share(span)
        error = reporter.error("E0101", f"unexpected percentage `{span.text}`", span, help=fix.help, fixes=[fix])
    return error


def _percents(binding: Binding) -> Reported | None:
    if _percent(binding.arg.value) is None:
        return None
    binding.taken = len(binding.remaining)  # the others belong to another statement
    return report_percents(binding.reporter, [arg.value for arg in binding.remaining])


def _index(binding: Binding) -> Reported | None:
    """`widths[0]`."""
    arg, following = binding.arg, binding.following
    if following is None or arg.span.source.text[arg.span.end : following.span.start + 1] != "[":
        return None
    text = arg.span.source.text
    name = re.search(r"\w+\Z", text[: arg.span.end])
    start = name.start() if name else arg.span.start
    end = text.find("]", following.span.start) + 1 or following.span.end
    return binding.error("E0101", INDEXED, Span(arg.span.source, start, end), help=NO_INDEX, taken=2)


def _two_words(binding: Binding) -> Reported | None:
    """`max pool 2x2` and `avgpool global`, where the first word is an operator itself."""
    word, site = binding.word, binding.site
    if binding.index or binding.arg.name or not word or site.scope.meaning(word, None):
        return None
    own = operator_of_two_words(site.callee, word, OPS) if site.callee in OPS and word not in site.parameters else None
    if own is None:
        return None
    fix = Fix(f"write `{own}`", (Edit(site.span.to(binding.arg.span), own),))
    message = f"unknown operator `{site.callee} {word}`"
    return binding.error("E0201", message, help=fix.help, fixes=[fix], taken=len(binding.remaining))


MALFORMED: Sequence[Hint] = (_open_range, _empty_keyword, _percents, _index, _two_words)
"""Hints for positional and keyword arguments."""


# --- positional arguments ------------------------------------------------------------------------


def _late_repeat(binding: Binding) -> Reported | None:
    """`conv 3x3 16 x3`."""
    word, callee = binding.word, binding.site.span
    if not REPEAT_WORD.fullmatch(word):
        return None
    span = binding.arg.span
    message = f"misplaced repeat count `{word}`"
    others = " ".join(arg.span.text for arg in binding.site.args if arg is not binding.arg)
    written = f"{binding.site.callee} {word} {others}".rstrip()
    help = f"write the repeat count directly after the name: `{written}`"
    edits = _insertion(callee, callee.end, f" {word}"), Edit(Span(span.source, span.start - 1, span.end), "")
    return binding.error("E0106", message, help=help, fixes=[Fix(help, edits, certain=True)])


def _spaced_size(binding: Binding) -> Reported | None:
    """`3 x 3`, or a repeat with a blank in it: `conv x 3`."""
    site, following = binding.site, binding.following
    if binding.word != "x" or "x" in site.scope.variables:
        return None
    if following is None or not isinstance(following.value, ast.Number):
        return None
    count, callee = following.span.text, site.span
    before = site.args[binding.index - 1] if binding.index else None
    kinds = [parameter.type.kind for parameter in site.parameters.values()]
    is_height = before and before.name is None and isinstance(before.value, ast.Number)
    if before and is_height and kinds[binding.index - 1 : binding.index] == ["size"]:
        span, written = before.span.to(following.span), f"{before.span.text}x{count}"
        fix = Fix(f"write `{written}`", (Edit(span, written),), certain=True)
        return binding.error("E0101", f"invalid size `{span.text}`", span, help=fix.help, fixes=[fix], taken=2)
    start = before.span.end if before else callee.end
    edits = _insertion(callee, callee.end, f" x{count}"), Edit(Span(callee.source, start, following.span.end), "")
    fix = Fix(f"write the repeat count directly after the name: `{site.callee} x{count}`", edits, certain=True)
    span = binding.arg.span.to(following.span)
    message = f"misplaced repeat count `{span.text}`"
    return binding.error("E0106", message, span, help=fix.help, fixes=[fix], taken=2)


def _numbers_of_a_list(binding: Binding) -> Reported | None:
    """`step 100 150` where a list is expected."""
    name = binding.unbound
    if name is None or binding.site.parameters[name].type.kind not in ("list", "numbers"):
        return None
    items: list[Span] = []
    for arg in binding.remaining:
        if arg.name is not None or not isinstance(arg.value, ast.Number) or type(arg.value.value) is not int:
            break
        items.append(arg.span)
    if len(items) < 2:
        return None
    span = items[0].to(items[-1])
    written = f"{name}=[{', '.join(item.text for item in items)}]"
    message = f"`{binding.site.callee}` expects a list in brackets for `{name}`"
    fix = Fix(f"write `{written}`", (Edit(span, written),), certain=True)
    return binding.error("E0204", message, span, help=fix.help, fixes=[fix], taken=len(items))


def _named_repeat(binding: Binding) -> Reported | None:
    """`xn` for `repeat=n`."""
    word, variables = binding.word, binding.site.scope.variables
    if not binding.site.repeatable or word[:1] != "x" or word in variables or word[1:] not in variables:
        return None
    span, written = binding.arg.span, f"repeat={word[1:]}"
    fix = Fix(f"write `{written}`", (Edit(span, written),))
    help = f"{fix.help}; only a number can follow the `x`"
    return binding.error("E0207", f"unknown name `{span.text}`", help=help, fixes=[fix])


def _input_channels(binding: Binding) -> Reported | None:
    """The number of input channels, which torch's modules take."""
    callee, value, following = binding.site.callee, binding.arg.value, binding.following
    if _INPUT_CHANNELS.get(callee) != binding.index or not (isinstance(value, ast.Number) and value.value >= 2):
        return None
    after = following.value if following else None
    if callee == "linear" and not (isinstance(after, ast.Number) or (after and _is_word(after, "classes"))):
        return None
    if callee == "conv":  # a third number is the stride, unless there is a keyword `stride` as well
        args = binding.site.args
        sized, strided = isinstance(args[0].value, ast.SizeLiteral), any(arg.name == "stride" for arg in args)
        if not (sized and strided and isinstance(after, ast.Number) and after.value > _MAX_STRIDE):
            return None
    what = "number of input features" if callee == "linear" else "number of input channels"
    help = f"remove it: the {what} is inferred"
    message = f"`{callee}` does not take the {what}, got `{binding.arg.span.text}`"
    return binding.error("E0205", message, help=help, fixes=[_removal(binding.arg, help, certain=callee != "conv")])


def _keyword_without_sign(binding: Binding) -> Reported | None:
    """`stride 2` for `stride=2`."""
    word, site, following = binding.word, binding.site, binding.following
    foreign = FOREIGN_ARGUMENTS.get(word, ()) if word in _FOREIGN_WORDS else ()
    name = next((name for name in (word, *foreign) if name in site.known), None)
    if name is None or word in site.scope.variables or word in site.known[name].type.words:
        return None
    parameter = site.known[name]
    if following and isinstance(following.value, ast.Name):
        following = following if site.scope.meaning(following.value.name, parameter.type) else None
    given = ast.Argument(binding.arg.span.to(following.span), name, following.value) if following else None
    code, message = "E0202", f"`{site.callee}` has no argument `{word}`"
    if parameter.type.kind == "bool":  # the parameter's own name would be a flag
        help, fixes = _stride_as_flag(name, given)
        return binding.error(code, message, help=help, fixes=fixes, taken=1 + (given is not None))
    if given is None:
        examples = dict.fromkeys((example_value(parameter), *parameter.type.words[:1]))
        help = f"write a value, such as {alternatives(f'{name}={value}' for value in examples)}"
        fixes = [
            Fix(f"write a value, such as `{name}={value}`", (Edit(binding.arg.span, f"{name}={value}"),), example=True)
            for value in examples
        ]
        if name == word:
            code, message = "E0207", f"missing value for the argument `{word}`"
        return binding.error(code, message, help=help, fixes=fixes)
    if name == word:
        code, message = "E0207", f"missing `=` after the argument `{word}`"
    written = f"{name}={given.value.span.text}"
    fix = Fix(f"write `{written}`", (Edit(given.span, written),), certain=True)
    return binding.error(code, message, help=fix.help, fixes=[fix], taken=2)


def _flag_without_name(binding: Binding) -> Reported | None:
    """`conv 3x3 16 true`, where the next parameter is a stride."""
    name, site, value = binding.next_parameter, binding.site, binding.arg.value
    if name is None or site.parameters[name].type.kind == "bool":
        return None
    if not isinstance(value, ast.Bool) and (binding.word not in TRUTH_VALUES or binding.word in site.scope.variables):
        return None
    flags = [
        name
        for name, parameter in site.parameters.items()
        if parameter.type.kind == "bool" and name not in binding.values
    ]
    message, fixes = f"unexpected positional argument `{binding.arg.span.text}`", list[Fix]()
    help = f"write a flag by its name: {alternatives(flags)}" if flags else None
    if binding.index and site.is_flag(site.args[binding.index - 1]):
        fixes = [_removal(binding.arg, "remove it: a flag has no value")]
        help = fixes[0].help
    return binding.error("E0207", message, help=help, fixes=fixes) if help else None


def _channels_before_kernel(binding: Binding) -> Reported | None:
    """`conv 16 3x3`."""
    first, arg = binding.site.args[0], binding.arg
    if binding.index != 1 or binding.next_parameter != "c" or not isinstance(arg.value, ast.SizeLiteral):
        return None
    if not isinstance(first.value, ast.Number) or first.name is not None:
        return None
    rest = [other.span.text for other in binding.site.args[2:]]
    help = f"write the kernel size first: `{' '.join((binding.site.callee, arg.span.text, first.span.text, *rest))}`"
    fix = Fix(help, (Edit(first.span, arg.span.text), Edit(arg.span, first.span.text)), certain=True)
    message = f"`c` must be an integer, got {arg.span.text}"
    return binding.error("E0204", message, help=help, fixes=[fix])


def _value_of_another(binding: Binding) -> Reported | None:
    """A keyword of exactly one of the other parameters."""
    word, parameters = binding.word, binding.site.parameters
    owners = [name for name, parameter in parameters.items() if word in parameter.type.words]
    written = f"{owners[0]}={word}" if len(owners) == 1 else ""
    if word == "valid" and "pad" in parameters:
        owners, written = ["pad"], "pad=0"
    if not written or word in binding.site.scope.variables or owners[0] in (binding.next_parameter, *binding.values):
        return None
    fix = Fix(f"write `{written}`", (Edit(binding.arg.span, written),), certain=True)
    message = f"unexpected positional argument `{binding.arg.span.text}`"
    return binding.error("E0207", message, help=fix.help, fixes=[fix])


def _settings_of_an_operator(binding: Binding) -> Reported | None:
    """`act=leaky_relu 0.1`."""
    if not binding.keyword_seen:
        return None
    before = binding.site.args[binding.index - 1].value
    if not (isinstance(before, ast.Name) and before.name in OPS):
        return None
    fix = _removal(binding.arg, no_settings(f"{before.name} {binding.arg.span.text}"), certain=False)
    return binding.error("E0205", "positional argument follows keyword argument", help=fix.help, fixes=[fix])


_KINDS: Mapping[type[ast.Expr], Sequence[str]] = {
    ast.Reference: ("tensor",),
    ast.In: ("tensor",),
    ast.Bool: ("bool",),
    ast.SizeLiteral: ("size",),
    ast.Text: ("str",),
    ast.Number: ("int", "float", "size", "list"),
}
"""The kinds of parameters that take a literal."""


def _accepts(parameter: Parameter, value: ast.Expr) -> bool:
    return parameter.type.kind in _KINDS.get(type(value), (parameter.type.kind,))


def _after_a_keyword(binding: Binding) -> Reported | None:
    if not binding.keyword_seen:
        return None
    span, site = binding.arg.span, binding.site
    unbound = (name for name in site.parameters if name not in binding.values)
    name = next((name for name in unbound if _accepts(site.parameters[name], binding.arg.value)), None)
    help, fixes = "remove it", list[Fix]()
    if name is not None:
        help = f"write `{name}={span.text}`"
        fixes = [Fix(help, (_insertion(span, span.start, f"{name}="),))]
    return binding.error("E0205", "positional argument follows keyword argument", help=help, fixes=fixes)


def _stray_tensor(binding: Binding) -> Reported | None:
    """`conv 3x3 16 @stem`, and branches of a join without the `;` between them."""
    site, arg = binding.site, binding.arg
    kinds = {parameter.type.kind for parameter in site.parameters.values()}
    if not isinstance(arg.value, (ast.Reference, ast.In)) or "tensor" in kinds:
        return None
    text, fixes = arg.span.text, list[Fix]()
    others = [other.span.text for other in site.args if other is not arg]
    help = f"to apply `{site.callee}` to `{text}`, write `{' '.join((f'{text} | {site.callee}', *others))}`"
    if site.scope.in_join and binding.following is None:
        before = arg.span.source.text[: arg.span.start].rstrip()
        gap = Span(arg.span.source, len(before), arg.span.start)
        help = "separate branches with `;` or line breaks"
        fixes = [Fix("write `;`", (Edit(gap, "; "),), certain=True)]
    return binding.error("E0207", f"`{text}` is a tensor, not a value", help=help, fixes=fixes)


def _tensor_by_position(binding: Binding) -> Reported | None:
    """A tensor where the next parameter is a value, or a value where it is a tensor: `upsample @stem`."""
    name, site, span = binding.next_parameter, binding.site, binding.arg.span
    if name is None or isinstance(binding.arg.value, ast.Name):
        return None
    type_, is_tensor = site.parameters[name].type, isinstance(binding.arg.value, (ast.Reference, ast.In))
    if is_tensor == (type_.kind == "tensor"):
        return None
    given = {*binding.values, *(arg.name for arg in binding.remaining)}
    free = [other for other in site.parameters.values() if other.name not in given]
    fitting = next((other.name for other in free if _accepts(other, binding.arg.value)), None)
    if fitting is None and type_.kind != "tensor":
        return None
    if binding.failed:  # by an argument before it, which may have another order
        return Reported()
    help, fixes = _takes(site.callee, site.parameters), list[Fix]()
    if fitting is None:
        help = A_TENSOR
    elif binding.following is None:
        help = f"write `{fitting}={span.text}`"
        fixes = [Fix(help, (_insertion(span, span.start, f"{fitting}="),), certain=True)]
    return binding.error("E0204", f"`{name}` must be {type_}, got `{span.text}`", help=help, fixes=fixes)


def _too_many(binding: Binding) -> Reported | None:
    if binding.unbound is not None:
        return None
    site, word, span = binding.site, binding.word, binding.arg.span
    takes = _takes(site.callee, site.parameters)
    if not word or word in site.scope.variables:
        fix = _removal(binding.arg, f"remove it: {takes}", certain=False)
        return binding.error("E0205", f"too many arguments for `{site.callee}`", help=fix.help, fixes=[fix])
    help, fixes = respell(span, word, site.parameters)
    if word in OPS or site.scope.file.find_block(word):
        fixes = pipe_before(span, word)
        help = fixes[0].help
    return binding.error(
        "E0202", f"`{site.callee}` has no flag `{word}`", help=help or f"remove it: {takes}", fixes=fixes
    )


def _misspelt_flag(binding: Binding) -> Reported | None:
    word, site = binding.word, binding.site
    if not word or word in site.scope.variables or word in OPS:
        return None
    if any(word in parameter.type.words for parameter in site.parameters.values()):
        return None
    near = nearest(word, [name for name, parameter in site.parameters.items() if parameter.type.kind == "bool"])
    if not near:
        return None
    help, fixes = respell(binding.arg.span, word, near)
    return binding.error("E0202", f"`{site.callee}` has no flag `{word}`", help=help, fixes=fixes)


_NO_FLAGS = frozenset({*TRUTH_VALUES, "x", "same", "valid", "classes"})
"""Words that have hints of their own where a value is expected."""


def _negated_flag(binding: Binding) -> Reported | None:
    """`conv 3x3 16 no_bias`."""
    flag = re.sub(r"^(?:no|without)_?", "", binding.word)
    parameter = binding.site.parameters.get(flag)
    if flag == binding.word or parameter is None or parameter.type.kind != "bool":
        return None
    fix = Fix(f"write `{flag}=false`", (Edit(binding.arg.span, f"{flag}=false"),), certain=True)
    message = f"`{binding.site.callee}` has no flag `{binding.word}`"
    return binding.error("E0202", message, help=fix.help, fixes=[fix])


def _unknown_flag(binding: Binding) -> Reported | None:
    """`conv 3x3 16 ws`, where the next parameter is optional."""
    word, site, name = binding.word, binding.site, binding.next_parameter
    if not word or name in (None, "c") or site.parameters[name].required or site.scope.meaning(word, None):
        return None
    if word in _NO_FLAGS or word in site.scope.file.labels:
        return None
    type_ = site.parameters[name].type
    if (
        word in type_.words
        or type_.kind in ("op", "init", "str")
        or nearest(word, [*site.scope.variables, *type_.words])
    ):
        return None
    flags = [flag for flag, parameter in site.parameters.items() if parameter.type.kind == "bool"]
    takes = f"the flags of `{site.callee}` are {alternatives(flags, 'and')}" if len(flags) > 1 else ""
    takes = takes or (f"`{site.callee}` has the flag `{flags[0]}`" if flags else _takes(site.callee, site.parameters))
    help = f"remove `{word}`: {takes}"
    if type_.kind != "bool":
        meant = f"if `{word}` is meant as the value of `{name}`"
        help += f"; {meant}, write `{name}={word}` and define `{word}` at the top of the file"
    return binding.error("E0202", f"`{site.callee}` has no flag `{word}`", help=help)


POSITIONAL: Sequence[Hint] = (
    _stray_tensor,
    _late_repeat,
    _spaced_size,
    _numbers_of_a_list,
    _named_repeat,
    _input_channels,
    _keyword_without_sign,
    _value_of_another,
    _flag_without_name,
    _channels_before_kernel,
    _settings_of_an_operator,
    _after_a_keyword,
    _tensor_by_position,
    _too_many,
    _negated_flag,
    _misspelt_flag,
    _unknown_flag,
)
"""Hints for positional arguments that are not flags."""


# --- keyword arguments ---------------------------------------------------------------------------


def _foreign_argument(binding: Binding) -> Advice | None:
    """An argument by the name that it has in other libraries."""
    name, parameters = binding.arg.name or "", binding.site.parameters
    own = next((own for own in FOREIGN_ARGUMENTS.get(name, ()) if own in parameters), None)
    if own is None:
        return None
    if parameters[own].type.kind == "bool" and not isinstance(binding.arg.value, ast.Bool):
        return _stride_as_flag(own, binding.arg)
    value, span = binding.arg.value.span.text, binding.arg.span
    pair = re.fullmatch(r"\[\s*([0-9]+)\s*,\s*([0-9]+)\s*\]", value)
    if pair and parameters[own].type.kind == "size":
        value = f"{pair[1]}x{pair[2]}"
    elif value == "valid" and own == "pad":
        value = "0"
    binding.fail(own)
    fix = Fix(f"write `{own}={value}`", (Edit(span, f"{own}={value}"),), certain=True)
    return fix.help, [fix]


_ELEMENTS = {
    **dict.fromkeys(("activation", "act", "nonlinearity", "activation_fn"), ("activation", "relu")),
    **dict.fromkeys(("norm", "normalization", "norm_layer", "batch_norm", "use_bn", "bn"), ("norm", "bn")),
}
"""Arguments of layers in other libraries that are elements here, with an operator of their kind."""


def _element(binding: Binding) -> Advice | None:
    """`conv 3x3 16 activation=relu`."""
    name, site, given = binding.arg.name or "", binding.site, binding.arg.value
    if name not in _ELEMENTS or site.callee not in OPS:
        return None
    what, written = _ELEMENTS[name]
    word = given.name if isinstance(given, ast.Name) else given.value if isinstance(given, ast.Text) else ""
    found = word if word in OPS else foreign_operator(word, OPS)
    help = f"write the {what} as a separate element: `| {found or written}`"
    if found is None:
        return help, ()
    (removed,), end = _removal(binding.arg, help).edits, site.args[-1].span.end
    if binding.arg is site.args[-1]:
        return help, [Fix(help, (Edit(removed.span, f" | {found}"),))]
    return help, [Fix(help, (removed, _insertion(removed.span, end, f" | {found}")))]


_TENSORS = ("input", "inputs", "bottom", "x", "src", "from")
"""Arguments for the input of a layer in other libraries."""


def _input_argument(binding: Binding) -> Advice | None:
    """`conv 3x3 16 input=stem`."""
    given = binding.arg.value
    if binding.arg.name not in _TENSORS or not isinstance(given, (ast.Name, ast.Reference)):
        return None
    label = given.span.text.lstrip("@")
    if label not in binding.site.scope.file.labels:
        return None
    site = binding.site
    others = [arg.span.text for arg in site.args if arg is not binding.arg]
    written = f"@{label} | {' '.join((site.callee, *others))}"
    help = f"start the statement with its input: `{written}`"
    return help, [Fix(help, (Edit(Span(site.span.source, site.span.start, site.args[-1].span.end), written),))]


def _inferred(binding: Binding) -> Advice | None:
    """`in_channels=3`."""
    if binding.arg.name not in INFERRED:
        return None
    what = "features" if binding.site.callee == "linear" else "channels"
    help = f"remove it: the number of input {what} is inferred"
    return help, [_removal(binding.arg, help)]


def _misspelt_argument(binding: Binding) -> Advice | None:
    help, fixes = respell(binding.arg.name_span, binding.arg.name or "", binding.site.known)
    return (help, fixes) if help else None


UNKNOWN_ARGUMENT: Sequence[Callable[[Binding], Advice | None]] = (
    _foreign_argument,
    _element,
    _input_argument,
    _inferred,
    _misspelt_argument,
)
"""Advice on a keyword argument that the callee does not have."""


def _unknown_argument(binding: Binding) -> Reported | None:
    site, name = binding.site, binding.arg.name
    if name is None or site.parameter(name) is not None:
        return None
    found = (advice(binding) for advice in UNKNOWN_ARGUMENT)
    help, fixes = next(filter(None, found), (_takes(site.callee, site.known), ()))
    message = f"`{site.callee}` has no argument `{name}`"
    return binding.error("E0202", message, binding.arg.name_span, help=help, fixes=fixes)


def _kernel_after_channels(binding: Binding) -> Advice | None:
    """`conv 16 kernel=3`, where the first number was bound to the kernel."""
    site, arg, first = binding.site, binding.arg, binding.site.args[0]
    if binding.parameter != "kernel" or "c" not in site.parameters or "c" in binding.values:
        return None
    if first.name is not None or any(other.name == "c" for other in site.args):
        return None
    channels, kernel = first.span.text, arg.value.span.text
    written = f"{kernel}x{kernel} {channels}" if kernel.isdigit() else f"{kernel} {channels}"
    rest = [other.span.text for other in site.args if other not in (first, arg)]
    help = f"write the kernel size first: `{' '.join((site.callee, written, *rest))}`"
    return help, [Fix(help, (Edit(first.span, written), *_removal(arg, help).edits))]


def _given_twice(binding: Binding) -> Reported | None:
    name, arg = binding.parameter, binding.arg
    if name is None or name not in binding.values:
        return None
    first = binding.spans[name]
    advice = _kernel_after_channels(binding)
    if advice is None:
        one, other = (span.text.split("=", 1)[-1].strip() for span in (first, arg.span))
        advice = "remove one of the two", [_removal(arg, "remove the second one", certain=one == other)]
    labels = [Label(first, "first value")]
    return binding.error(
        "E0206", f"multiple values for the argument `{name}`", help=advice[0], labels=labels, fixes=advice[1]
    )


NAMED: Sequence[Hint] = (_unknown_argument, _given_twice)
"""Hints for keyword arguments and flags."""


# --- missing arguments ---------------------------------------------------------------------------


def without_channels(site: CallSite) -> list[Parameter]:
    """Return the parameter for the output channels of a `conv` that lacks them, unless it is depthwise."""
    given = {arg.name or arg.span.text for arg in site.args}
    positional = [arg for arg in site.args if arg.name is None and not site.is_flag(arg)]
    if site.callee != "conv" or given & {"c", "depthwise"} or len(positional) > 1:
        return []
    return [site.parameters["c"]]


def missing_arguments(site: CallSite, missing: Sequence[Parameter]) -> Advice:
    """Advise on the required arguments that a call lacks."""
    if site.callee == "linear" and "classes" in site.scope.variables:
        help = "write `linear classes` for the last layer"
        return help, [Fix(help, (_insertion(site.span, site.span.end, " classes"),))]
    named = {parameter.name for parameter in missing}
    if any(arg.name == arg.span.text for arg in site.args):  # a table, whose columns are its arguments
        given = " ".join(f"{parameter.name}={example_value(parameter)}" for parameter in missing)
        what = "a column" if len(missing) == 1 else "columns"
        values = "a value" if len(missing) == 1 else "values"
        columns = alternatives(sorted(named), "and")
        return f"add {what} for {columns}, or write {values} after the columns, for example `{given}`", ()
    order = [name for name in site.parameters if name in named]
    given = [arg.span.text for arg in site.args]
    positional = [arg.span.text for arg in site.args if arg.name is None and not site.is_flag(arg)]
    following = list(site.parameters)[len(positional) : len(positional) + len(order)]
    examples = [example_value(site.parameters[name]) for name in order]
    if following == order:
        written = [*positional, *examples, *(text for text in given if text not in positional)]
    else:
        written = [*given, *(f"{name}={value}" for name, value in zip(order, examples, strict=True))]
    meanings = [meaning(site.callee, site.parameters[name]) for name in order]
    added = " and ".join(meanings) if len(meanings) <= 2 else "the missing arguments"
    repeat = re.match(r"[ \t]*(x[0-9]+)(?![\w.])", site.span.source.text[site.span.end :])
    call = " ".join((site.callee, *(repeat.groups() if repeat else ()), *written))
    help, end = f"add {added}, for example `{call}`", max([site.span.end, *(arg.span.end for arg in site.args)])
    end = max(end, site.span.end + repeat.end()) if repeat else end
    return help, [Fix(help, (Edit(Span(site.span.source, site.span.start, end), call),), example=True)]


def _takes(callee: str, parameters: Iterable[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in parameters)
    return f"`{callee}` takes {listed or 'no arguments'}"
