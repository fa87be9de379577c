"""Hints for a call whose callee is unknown.

`HINTS` is an ordered table; each hint reports the error and returns it, or returns None to leave it to the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cnnspec.diagnostics import Edit, Fix, Reported, Reporter, Span, nearest, respell
from cnnspec.ir.evaluate import show
from cnnspec.ops import (
    DEFINITIONS,
    FOREIGN_CLASSES,
    JOINS,
    KERNEL_FIRST,
    OPS,
    absent_operator,
    foreign_choice,
    foreign_operator,
    operator_of_two_words,
    sized_operator,
    translation,
)
from cnnspec.ops.examples import move_into_train
from cnnspec.recipe import DATA_SETS, ENTRIES
from cnnspec.schema import Declared
from cnnspec.semantics.call_site import REPEAT_WORD
from cnnspec.semantics.loader import standard_blocks
from cnnspec.semantics.scope import FILE_VALUE, REPEAT_INDEX, LocalScope
from cnnspec.syntax import LABEL_WORDS, TOP_WORDS, ast
from cnnspec.syntax.recovery import code_before, in_braces

_AFTER_LABEL = rf"(?:[A-Za-z0-9_.]+[ \t]*:|\b(?:{'|'.join(LABEL_WORDS)}))[ \t]*\Z"

_TRAIN_WITHOUT_BRACES = re.compile(
    rf"^[ \t]*(?P<head>train[ \t]*:)[ \t]*\n(?P<entries>(?:[ \t]*(?:{'|'.join(ENTRIES)})\b[^\n:#]*(?:\n|\Z))+)",
    re.MULTILINE,
)
"""A recipe in the style of Python or YAML."""


@dataclass(frozen=True)
class UnknownCallee:
    """A call of something that is neither an operator nor a block."""

    reporter: Reporter
    callee: str
    span: Span
    scope: LocalScope
    args: Sequence[ast.Argument] = ()

    def error(self, help: str, fixes: Iterable[Fix] = (), message: str = "", span: Span | None = None) -> Reported:
        message = message or f"unknown operator or block `{self.callee}`"
        return self.reporter.error("E0201", message, span or self.span, help=help, fixes=fixes)


def _label_word(unknown: UnknownCallee) -> Reported | None:
    """`stage` after something that is not a complete statement."""
    span, callee = unknown.span, unknown.callee
    if callee not in LABEL_WORDS:
        return None
    text, message = span.source.text, f"`{callee}` is a label, not an operator or block"
    if not re.search(_AFTER_LABEL, text[text.rfind("\n", 0, span.start) + 1 : span.start]):
        help = f"complete the statement before it: `{callee}` starts a new one"
        return unknown.error(help, message=message)
    help = "remove one of the two labels"
    edits = [Edit(Span(span.source, span.start, arg.span.start), "") for arg in unknown.args[:1]]
    return unknown.error(help, [Fix(help, (edit,)) for edit in edits], message)


def _recipe_entry(unknown: UnknownCallee) -> Reported | None:
    """An entry of the recipe outside `train`: `optimizer sgd`, `optimizer: sgd`."""
    source, at = unknown.span.source, unknown.span.start
    start = source.text.rfind("\n", 0, at) + 1
    line = re.compile(r"[ \t]*([a-z_]+)[ \t]*:?[ \t]*([^\n#{};|]*)").match(source.text, start)
    if line is None or line.group(1) not in ENTRIES or at > line.start(2):
        return None
    word, value = line.group(1), line.group(2).rstrip()
    for section in _TRAIN_WITHOUT_BRACES.finditer(source.text):
        if section.start("entries") <= start < section.end():
            entries = "; ".join(" ".join(entry.split()) for entry in section["entries"].strip().splitlines())
            end = Span(source, section.end("head"), section.end("head"))
            if any(diagnostic.span == end for diagnostic in unknown.reporter.diagnostics):
                return Reported()  # reported at an entry above
            help = f"write the recipe in braces: `train {{ {entries} }}`"
            return unknown.reporter.error("E0101", "unexpected end of line after `train:`", end, help=help)
    message, span = f"`{word}` is only allowed in the `train` section", Span(source, *line.span(1))
    return unknown.error(move_into_train(source.text, word, value), (), message, span)


def _output(unknown: UnknownCallee) -> Reported | None:
    """`output p3`, `output p3=@p3`, and an `output` statement in braces or after a label or a `|`."""
    callee, args, span = unknown.callee, unknown.args, unknown.span
    tensor = next((arg.value for arg in args if isinstance(arg.value, ast.Reference)), None)
    words = [arg.name or arg.span.text for arg in args if arg.name or arg.value is not tensor]
    if callee not in ("output", "outputs") and not (tensor and "from" in words and nearest(callee, ("output",))):
        return None
    label = tensor.label if tensor is not None else ""
    word = words[0] if words and words[0] != "from" else label or "p3"
    name = re.sub(r"[^A-Za-z0-9_.]", "_", word.strip('"'))
    written = f"output {name} from @{label or name}"
    place = span.source.text, span.start
    if tensor is not None and (in_braces(*place) or code_before(*place).rstrip(" \t").endswith(("|", ":"))):
        help = f"write `{written}` on its own line at the top level"
        return unknown.error(help, message=f"`{callee}` is only allowed at the top level of the file")
    help = f"name the output and the label of its tensor: `{written}`"
    known = args and (tensor is not None or name in unknown.scope.file.labels)
    fixes = [Fix(help, (Edit(span.to(args[-1].span), written),))] if known else []
    return unknown.error(help, fixes)


def _top_level_word(unknown: UnknownCallee) -> Reported | None:
    callee = unknown.callee
    if callee not in TOP_WORDS:
        return None
    message, what = f"`{callee}` is only allowed at the top level of the file", "it"
    if callee == "train":
        what = "the recipe as a section, such as `train { epochs 20 }`,"
    help = f"write {what} on its own line"
    place = unknown.span.source.text, unknown.span.start
    if code_before(*place).rstrip(" \t").endswith("|"):
        message = f"unexpected `{callee}` after `|`"
    if in_braces(*place):
        help = f"{help} at the top level, or add the missing `}}` before it"
    return unknown.error(help, (), message)


def _variable(unknown: UnknownCallee) -> Reported | None:
    """A value that is not an operator: a number of the file, or a parameter of the enclosing block."""
    callee, scope = unknown.callee, unknown.scope
    if callee not in scope.variables:
        return None
    type_ = scope.variables[callee]
    if type_ is FILE_VALUE and callee in scope.file.constants:
        value = show(scope.file.constants[callee])
        help = f"call an operator or block by its name, or define `{callee}` as an operator: `let {callee} = relu`"
        return unknown.error(help, (), f"`{callee}` is {value}, not an operator or block")
    if scope.is_tensor(callee):
        help = f"write `@{callee}`"
        fix = Fix(help, (Edit(unknown.span, f"@{callee}"),), certain=not unknown.args)
        return unknown.error(help, [fix], f"`{callee}` is a tensor, not an operator or block")
    if type_ is REPEAT_INDEX:
        help = f"use it in an argument, such as `conv 3x3 16*({callee}+1)`"
        return unknown.error(help, (), f"`{callee}` is the index of a `repeat`, not an operator or block")
    help = f"to pass an operator to a block, declare `{callee}: op` and call it without arguments"
    return unknown.error(help, (), f"`{callee}` is {type_}, not an operator or block")


def _repeat_before_callee(unknown: UnknownCallee) -> Reported | None:
    """`x3 resnet_block`."""
    first = unknown.args[0] if unknown.args else None
    if first is None or first.name is not None or not isinstance(first.value, ast.Name):
        return None
    if not REPEAT_WORD.fullmatch(unknown.callee):
        return None
    written = f"{first.value.name} {unknown.callee}"
    help = f"write the repeat count directly after the name: `{written}`"
    fix = Fix(help, (Edit(unknown.span.to(first.value.span), written),), certain=True)
    message = f"misplaced repeat count `{unknown.callee}`"
    return unknown.reporter.error("E0106", message, unknown.span, help=help, fixes=[fix])


def _label(unknown: UnknownCallee) -> Reported | None:
    callee = unknown.callee
    if callee not in unknown.scope.file.labels:
        return None
    help = f"write `@{callee}` for the output of this label"
    fix = Fix(help, (Edit(unknown.span, f"@{callee}"),), certain=not unknown.args)
    return unknown.error(help, [fix], f"`{callee}` is a label, not an operator or block")


def _foreign_name(unknown: UnknownCallee) -> Reported | None:
    """An operator by the name that it has in other libraries, where its arguments may have another order."""
    span, args, own = unknown.span, unknown.args, foreign_operator(unknown.callee, OPS)
    if own is None:
        return None
    name, _, setting = own.partition(" ")
    given = [arg.span.text for arg in args]
    same_order = not args or isinstance(args[0].value, ast.SizeLiteral) or own not in KERNEL_FIRST
    if not same_order and (found := translation(unknown.callee, given)):
        rest = found.text.removeprefix(f"{own} ")
        repeat = re.match(r"\s*(x[0-9]+)\b", span.source.text[span.end : args[0].span.start])
        found = replace(found, text=" ".join((own, *(repeat.groups() if repeat else ()), rest)))
        edits = Edit(span, own), Edit(args[0].span.to(args[-1].span), rest)
        words = re.findall(r"\b(?!pad)[a-z_]+=([A-Za-z_]\w*)|=([A-Za-z_]\w*)", rest)
        if any((size and size not in unknown.scope.variables) or word in OPS for size, word in words):
            return unknown.error(_kernel_first(own))
        return unknown.error(found.help, [] if found.is_example else [Fix(found.help, edits)])
    if name in OPS and setting:
        whole = span.to(args[-1].span) if args else span
        between = span.source.text[span.end : whole.end] or (" 3x3" if name in KERNEL_FIRST else "")
        alone = re.fullmatch(r"\(([0-9]+)\)", between)
        written = f"{name}{f' {alone[1]}x{alone[1]}' if alone else between} {setting}"
        help = f"write `{written}`"
        return unknown.error(help, [Fix(help, (Edit(whole, written),))])
    if own in JOINS:
        return unknown.error(f"write `{own}` and its branches in braces: `{own} {{ in; conv 3x3 16 }}`")
    help = f"write `{own}`"
    fix = Fix(help, (Edit(span, own),), certain=same_order and own in OPS)
    if not same_order:
        help, fix = _kernel_first(own), Fix(help, (Edit(span, own),))
    return unknown.error(help, [fix])


def _kernel_first(own: str) -> str:
    return f"write `{own}` with the kernel size before the number of channels, such as `{own} 3x3 16`"


def _label_without_colon(unknown: UnknownCallee) -> Reported | None:
    """`stage1 conv 3x3 16`, at the start of a statement."""
    first = unknown.args[0] if unknown.args else None
    if first is None or first.name is not None or not isinstance(first.value, ast.Name):
        return None
    source, span, word = unknown.span.source, unknown.span, first.value.name
    start = source.text.rfind("\n", 0, span.start) + 1
    if not re.fullmatch(r"[ \t]*|.*[{;][ \t]*", source.text[start : span.start]):
        return None
    block = unknown.scope.file.find_block(word)
    if (
        absent_operator(unknown.callee)
        or not (word in OPS or block)
        or nearest(unknown.callee, [*OPS, *unknown.scope.file.block_names()])
    ):
        return None
    call = source.text[first.span.start : unknown.args[-1].span.end]
    help = f"write a colon after the label: `{unknown.callee}: {call}`"
    return unknown.error(help, [Fix(help, (Edit(Span(source, span.end, span.end), ":"),), certain=True)])


def _definition(unknown: UnknownCallee) -> Reported | None:
    """`const width = 16`, which reads as a call, and `num_classes 10`."""
    span, arg = unknown.span, unknown.args[0] if unknown.args else None
    if unknown.callee in DEFINITIONS and arg and arg.name:
        help = f"define a value with `let`: `let {arg.name} = {arg.value.span.text}`"
        return unknown.error(help, [Fix(help, (Edit(span, "let"),))])
    if unknown.callee in FOREIGN_CLASSES and arg and isinstance(arg.value, ast.Number):
        help = f"write `classes {arg.span.text}`"
        return unknown.error(help, [Fix(help, (Edit(span, "classes"),))])
    return None


_KINDS = frozenset("activation act nonlinearity nonlin layer op operator norm normalization pool pooling".split())
"""Words that other languages write before the name of an operator."""


def _two_words(unknown: UnknownCallee) -> Reported | None:
    """`pool max 2x2`, `batch norm`, `activation relu`."""
    first = unknown.args[0] if unknown.args else None
    if first is None or first.name is not None or not isinstance(first.value, ast.Name):
        return None
    word = first.value.name
    own = operator_of_two_words(unknown.callee, word, OPS)
    if own is None and unknown.callee in _KINDS:
        own = word if word in OPS else foreign_operator(word, OPS)
    if own is None:
        return None
    help = f"write `{own}`"
    return unknown.error(help, [Fix(help, (Edit(unknown.span.to(first.value.span), own),))])


def _sized(unknown: UnknownCallee) -> Reported | None:
    """`conv3x3 16`."""
    found = sized_operator(unknown.callee, OPS)
    if found is None:
        return None
    rest = [re.sub(r"^\((\w+)\)$", r"\1", arg.span.text) for arg in unknown.args]
    written = " ".join((*found, *rest))
    whole = unknown.span.to(unknown.args[-1].span) if rest else unknown.span
    return unknown.error(f"write `{written}`", [Fix(f"write `{written}`", (Edit(whole, written),))])


def _again(unknown: UnknownCallee) -> Reported | None:
    """`again head`, without the sign of a label, and `again x2 @head`."""
    if unknown.callee != "again":
        return None
    first = unknown.args[0].value if unknown.args and unknown.args[0].name is None else None
    if isinstance(first, ast.Reference):
        source, place = unknown.span.source, unknown.span.to(first.span)
        times = re.fullmatch(r"\s*x([0-9]+)\s*", source.text[unknown.span.end : first.span.start])
        written = f"again @{first.label}"
        written = f"repeat {times.group(1)} {{ {written} }}" if times else written
        fix = Fix(f"write `{written}`", (Edit(place, written),), certain=len(unknown.args) == 1)
        return unknown.reporter.error("E0101", "invalid syntax of `again`", place, help=fix.help, fixes=[fix])
    if not isinstance(first, ast.Name) or first.name == "in":
        return unknown.error("write the label of the module that is used again: `again @label`")
    help = f"write `again @{first.name}`"
    return unknown.error(help, [Fix(help, (Edit(first.span, f"@{first.name}"),))])


HINTS: Sequence[Callable[[UnknownCallee], Reported | None]] = (
    _label_word,
    _again,
    _two_words,
    _recipe_entry,
    _top_level_word,
    _variable,
    _output,
    _repeat_before_callee,
    _label,
    _definition,
    _sized,
    _label_without_colon,
    _foreign_name,
)


def unknown_callee(unknown: UnknownCallee) -> Reported:
    """Report a call of an unknown operator or block."""
    for hint in HINTS:
        if (error := hint(unknown)) is not None:
            return error
    return misspelt_callee(unknown)


def misspelt_callee(unknown: UnknownCallee) -> Reported:
    """Report an unknown operator or block; the help names those with the nearest spelling."""
    operators = [name for name, type_ in unknown.scope.variables.items() if type_ is None or type_.kind == "op"]
    blocks, absent = unknown.scope.file.block_names(), absent_operator(unknown.callee)
    known = [*OPS, *blocks] if absent is None else [name for name in blocks if name not in standard_blocks()]
    help, fixes = respell(unknown.span, unknown.callee, [*known, *operators])
    return unknown.error(help or absent or "run `cnnspec list` to see all operators and blocks", fixes)


def unnamed_choice(reporter: Reporter, span: Span, table: Mapping[str, type[Declared]], what: str) -> Reported:
    """Report a value where the name of a choice is expected: a name in quotes or with signs in it, or a folder."""
    if any(
        found.span and found.span.source is span.source and found.span.start == span.start
        for found in reporter.diagnostics
    ):
        return Reported()  # `sgd(0.1)`, which is reported as a call
    given, quoted = span.text.strip('"'), span.text[:1] == '"'
    written = foreign_choice(given, table)
    folder = table is DATA_SETS and re.fullmatch(r"[\w./ -]*[A-Za-z][\w./ -]*", given)
    message = f"unknown {what} `{span.text}`"
    place = span
    if written is None and folder:
        path = given.removeprefix("folder").strip()
        if path != given:
            message = f"expected a path in quotes, found `{path}`"
            place = Span(span.source, span.end - len(path), span.end)
        if path.startswith("/"):
            help = f"use `--data folder:{path}`: a spec can only name a folder below its own"
            return reporter.error("E0201", message, place, help=help)
        written = f'folder "{path}"'
    elif quoted:
        message = f"unexpected quotes around the {what} name"
    if written is None:
        help, fixes = respell(span, given, table)
        help = help or f"choose from {', '.join(f'`{name}`' for name in table)}"
        return reporter.error("E0201", message, span, help=help, fixes=fixes)
    help = f"write `{written}`"
    fix = Fix(help, (Edit(span, written),), certain=written in table)
    return reporter.error("E0201", message, place, help=help, fixes=[fix])
