"""Hints for a bare word that has no meaning where it is used.

`HINTS` is an ordered table; each hint reports the error and returns it, or returns None to leave it to the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from cnnspec.diagnostics import Edit, Fix, Reported, Reporter, Span, nearest, respell
from cnnspec.diagnostics.suggestions import A_TENSOR, pipe_before
from cnnspec.ops import OPS, absent_operator
from cnnspec.ops.examples import example_value
from cnnspec.ops.inits import INITS, allowed_inits, listed_inits
from cnnspec.schema import Parameter, Type
from cnnspec.semantics.scope import LocalScope
from cnnspec.syntax import ast

TRUTH_VALUES = {
    **dict.fromkeys(("yes", "on", "True"), "true"),
    **dict.fromkeys(("no", "off", "False", "none", "None"), "false"),
}
"""Truth values of other languages."""


@dataclass(frozen=True)
class Use:
    """What a value is for: an argument of a call, or else nothing in particular."""

    callee: str = ""
    parameter: str = ""


NO_USE, EXPECTED = Use(), Use("expect")


_IN_AS_VALUE = "write `in.c` for its number of channels, or join tensors in braces: `add { in; conv 3x3 16 }`"


@dataclass(frozen=True)
class UnknownName:
    """A bare word without a meaning.

    Attributes:
        type: The type of the expected value; None if any value is valid.
        use: What the value is for.
    """

    reporter: Reporter
    node: ast.Name
    scope: LocalScope
    type: Type | None
    use: Use

    @property
    def word(self) -> str:
        return self.node.name

    @property
    def kind(self) -> str | None:
        """The kind of the expected value."""
        return self.type.kind if self.type else None

    @property
    def words(self) -> tuple[str, ...]:
        """The keywords of the expected type."""
        return self.type.words if self.type else ()

    @property
    def expected(self) -> str:
        """What is expected, for a message."""
        return f"`{self.use.parameter}` must be {self.type}" if self.use.parameter else f"expected {self.type}"

    @cached_property
    def nearest(self) -> tuple[str | None, tuple[Fix, ...]]:
        """The help and fixes that name the words with the nearest spelling."""
        operator = self.kind in (None, "op") and self.use != EXPECTED and absent_operator(self.word) is None
        operators = OPS if operator else ()
        values = [name for name in self.scope.variables if not self.scope.is_tensor(name)]
        return respell(self.node.span, self.word, [*values, *self.words, *operators])

    def error(self, help: str, fixes: Iterable[Fix] = (), message: str = "") -> Reported:
        message = message or f"unknown name `{self.word}`"
        return self.reporter.error("E0207", message, self.node.span, help=help, fixes=fixes)

    def replaced(self, help: str, text: str, *, certain: bool = True) -> Reported:
        """Report the error with a fix that writes `text` in place of the word."""
        return self.error(help, [Fix(help, (Edit(self.node.span, text),), certain=certain)])


_DIMENSIONS = {
    **dict.fromkeys(
        "in_channels in_features num_features inplanes in_planes input_channels in_c in_ch cin".split(), "c"
    ),
    **dict.fromkeys(("in_height", "input_height", "in_h"), "h"),
    **dict.fromkeys(("in_width", "input_width", "in_w"), "w"),
}
"""Names of the dimensions of an input in other libraries."""


def _dimension(unknown: UnknownName) -> Reported | None:
    word = unknown.word
    text, start = unknown.node.span.source.text, unknown.node.span.start
    line = text[text.rfind("\n", 0, start) + 1 : start].lstrip()
    letter = word in ("c", "h", "w") and unknown.kind in (None, "int", "size", "float")
    letter &= unknown.use != EXPECTED and not re.match(r"(?:param|expect|default|extends|classes)\b", line)
    axis = _DIMENSIONS.get(word) or (word if letter else None)
    if axis is None:
        return None
    fix = Fix(f"write `in.{axis}`", (Edit(unknown.node.span, f"in.{axis}"),))
    more = f" for that of the input, or define it: `let {word} = 16`" if axis == word else ""
    return unknown.error(f"{fix.help}{more}", [fix])


def _mode(unknown: UnknownName) -> Reported | None:
    if unknown.word not in ("training", "is_training", "train", "inference", "eval", "evaluation"):
        return None
    return unknown.error("remove the condition: `dropout` and similar operators act only in training")


def _valid_padding(unknown: UnknownName) -> Reported | None:
    if unknown.word != "valid" or "same" not in unknown.words:
        return None
    return unknown.replaced("write `0` for no padding", "0")


def _label(unknown: UnknownName) -> Reported | None:
    """The name of a tensor, without the `@`."""
    word, is_parameter = unknown.word, unknown.scope.is_tensor(unknown.word)
    if not is_parameter and word not in unknown.scope.file.labels:
        return None
    if unknown.kind == "tensor":
        fix = Fix(f"write `@{word}`", (Edit(unknown.node.span, f"@{word}"),), certain=True)
        what = "tensor parameter" if is_parameter else "label"
        return unknown.error(fix.help, [fix], f"missing `@` before the {what} `{word}`")
    help = f"to use its output, write `@{word}` as an element, or join it: `concat {{ in; @{word} }}`"
    if is_parameter:
        help = help.replace("its output", "it")
    return unknown.error(help, (), f"`{word}` is a {'tensor' if is_parameter else 'label'}, not a value")


def _no_tensor(unknown: UnknownName) -> Reported | None:
    if unknown.kind != "tensor" or unknown.word in OPS:
        return None
    parameters = [name for name in unknown.scope.variables if unknown.scope.is_tensor(name)]
    near = nearest(unknown.word, [*parameters, *sorted(unknown.scope.file.labels)])
    if near:
        return unknown.replaced(f"did you mean `@{near[0]}`?", f"@{near[0]}", certain=False)
    return unknown.error(A_TENSOR)


def _same_padding(unknown: UnknownName) -> Reported | None:
    if unknown.word != "same" or unknown.kind != "size":
        return None
    help = "write a number, such as `pad=1` for a kernel size of 3x3"
    return unknown.error(help, (), "`pad=same` is only supported by `conv`")


def _classes(unknown: UnknownName) -> Reported | None:
    if unknown.word != "classes":
        return None
    return unknown.error("define the number of classes: `classes 10`", unknown.nearest[1])


def _input_tensor(unknown: UnknownName) -> Reported | None:
    if unknown.word != "in":
        return None
    return tensor_as_value(unknown.reporter, unknown.node, unknown.type, unknown.use)


def tensor_as_value(
    reporter: Reporter, node: ast.Reference | ast.In | ast.Name, type_: Type | None, use: Use
) -> Reported:
    """Report a tensor where another value is expected."""
    text = node.span.text
    help = f"join tensors in braces: `concat {{ in; {text} }}`"
    if node.span.source.text[: node.span.start].rstrip().endswith("+"):
        help = _sum_of(node.span)
    elif not isinstance(node, ast.Reference):
        help = _IN_AS_VALUE
    elif type_ is not None and use.parameter:
        help = f"write {type_}"
    defined = re.search(r"\blet\s+([A-Za-z_]\w*)\s*=\s*\Z", node.span.source.text[: node.span.start])
    fixes = list[Fix]()
    if defined:
        help = f"name a tensor with a label: `{defined[1]}: {text}`"
        edit = Edit(Span(node.span.source, defined.start(), node.span.start), f"{defined[1]}: ")
        fixes = [Fix(help, (edit,))]
    return reporter.error("E0207", f"`{text}` is a tensor, not a value", node.span, help=help, fixes=fixes)


def _truth_value(unknown: UnknownName) -> Reported | None:
    value = TRUTH_VALUES.get(unknown.word)
    if value is None or not (unknown.kind == "bool" or unknown.word in ("True", "False")):
        return None
    if unknown.kind in (None, "bool"):
        return unknown.replaced(f"write `{value}`", value)
    message = f"{unknown.expected}, got `{unknown.word}`"
    return unknown.reporter.error("E0204", message, unknown.node.span, help=f"write {unknown.type}")


def _sum_of(at: Span) -> str:
    """Return the help for a sum of elements, `conv 3x3 16 + conv 1x1 16`, given the place of the second one."""
    text = at.source.text
    before = re.search(r"([^|{};:\n]*)\+\s*\Z", text[max(0, at.start - 200) : at.start])
    after = re.compile(r"[^|{};\n#+]*").match(text, at.start)
    first, second = (found.group(index).strip() if found else "" for found, index in ((before, 1), (after, 0)))
    return f"to add tensors, write them as branches of `add`: `add {{ {first}; {second} }}`"


def _operator(unknown: UnknownName) -> Reported | None:
    """An operator where a value is expected."""
    word, span = unknown.word, unknown.node.span
    if word not in OPS:
        return None
    callee, parameter = unknown.use.callee, unknown.use.parameter
    before, fixes = span.source.text[: span.start].rstrip(), tuple[Fix, ...]()
    is_positional = (callee in OPS or unknown.scope.file.find_block(callee)) and before[-1:] != "="
    help = f"write {unknown.type}"
    if not callee and unknown.kind == "bool":
        help = "write a condition, such as `in.c > 16`, or the name of a boolean parameter"
    elif not callee and parameter == "":
        help = "write a number" if unknown.kind in ("int", "float") else help
        help = "write the number of repeats, such as `repeat 2 { relu }`" if before.endswith("repeat") else help
    if before[-1:] == "+" and OPS[word].counts_as_layer:
        help = _sum_of(span)
    elif is_positional or (before[-1:] in (">", "+") and not re.search(r"\([^()\n]*\Z", before)):
        fixes = pipe_before(span, word)
        help = fixes[0].help
    own = unknown.scope.file.blocks.get(callee)
    if own is not None and own[0] is unknown.scope.file:
        help = f"to pass an operator, declare the parameter as `{parameter}: op`"
        if is_positional:
            help += f"; to add an element, write `| {word}`"
    message = f"{unknown.expected}, got the operator `{word}`"
    return unknown.reporter.error("E0204", message, span, help=help, fixes=fixes)


def _initialization(unknown: UnknownName) -> Reported | None:
    """An initialization that does not apply to the weights of the callee, or that needs arguments."""
    word, callee = unknown.word, unknown.use.callee
    if unknown.kind != "init" or word not in INITS:
        return None
    allowed = allowed_inits(callee) if callee in OPS else ()
    if word in allowed or not allowed:
        written = f"{word}({', '.join(example_value(p) for p in INITS[word].parameters.values() if p.required)})"
        fix = Fix(f"write `{written}`", (Edit(unknown.node.span, written),))
        return unknown.error(fix.help, [fix], f"`{word}` is missing its arguments")
    message = f"`{word}` cannot initialize the weights of `{callee}`"
    help = f"choose from {listed_inits(callee)}"
    return unknown.reporter.error("E0215", message, unknown.node.span, help=help)


def _misspelt(unknown: UnknownName) -> Reported | None:
    help, fixes = unknown.nearest
    return unknown.error(help, fixes) if help is not None else None


def _other_word(unknown: UnknownName) -> Reported | None:
    if not unknown.words:
        return None
    if unknown.kind == "init":
        return unknown.error(
            f"choose from {listed_inits(unknown.use.callee)}", (), f"unknown initialization `{unknown.word}`"
        )
    listed = f"choose from {', '.join(f'`{word}`' for word in unknown.words)}"
    return unknown.error(f"write {unknown.type}" if len(unknown.words) == 1 else listed)


def _unknown_operator(unknown: UnknownName) -> Reported | None:
    return unknown.error("write the name of an operator, such as `relu` or `gelu`") if unknown.kind == "op" else None


def _unquoted_string(unknown: UnknownName) -> Reported | None:
    if unknown.kind != "str":
        return None
    quoted = f'"{unknown.word}"'
    return unknown.replaced(f"write the string in quotes: `{quoted}`", quoted, certain=False)


HINTS: tuple[Callable[[UnknownName], Reported | None], ...] = (
    _dimension,
    _mode,
    _valid_padding,
    _label,
    _no_tensor,
    _same_padding,
    _classes,
    _input_tensor,
    _truth_value,
    _operator,
    _initialization,
    _misspelt,
    _other_word,
    _unknown_operator,
    _unquoted_string,
)


def unknown_name(reporter: Reporter, node: ast.Name, scope: LocalScope, type_: Type | None, use: Use) -> Reported:
    """Report a bare word without a meaning."""
    unknown = UnknownName(reporter, node, scope, type_, use)
    for hint in HINTS:
        if (error := hint(unknown)) is not None:
            return error
    by_type = type_ is not None and (use.parameter or type_.kind == "bool")
    example = example_value(Parameter(use.parameter, type_)) if type_ and by_type else "16"
    return unknown.error(f"define it at the top of the file: `let {node.name} = {example}`")
