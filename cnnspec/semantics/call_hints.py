"""Hints for a call whose callee is unknown.

`HINTS` is an ordered table; each hint reports the error and returns it, or returns None to leave it to the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cnnspec.diagnostics import Edit, Fix, Reported, Reporter, Span, respell
from cnnspec.ops import FOREIGN_NAMES, KERNEL_FIRST, OPS, translated
from cnnspec.recipe import DATA_SETS, ENTRIES
from cnnspec.schema import Declared
from cnnspec.semantics.call_site import REPEAT_WORD
from cnnspec.semantics.scope import LocalScope
from cnnspec.syntax import LABEL_WORDS, TOP_WORDS, ast

_AFTER_LABEL = rf"(?:[A-Za-z0-9_]+[ \t]*:|\b(?:{'|'.join(LABEL_WORDS)}))[ \t]*\Z"


@dataclass(frozen=True)
class UnknownCallee:
    """A call of something that is neither an operator nor a block."""

    reporter: Reporter
    callee: str
    span: Span
    scope: LocalScope
    args: Sequence[ast.Argument] = ()

    def error(self, help: str, fixes: Iterable[Fix] = ()) -> Reported:
        message = f"unknown operator or block `{self.callee}`"
        return self.reporter.error("E0201", message, self.span, help=help, fixes=fixes)


def _label_word(unknown: UnknownCallee) -> Reported | None:
    """`stage` after something that is not a complete statement."""
    span, callee = unknown.span, unknown.callee
    if callee not in LABEL_WORDS:
        return None
    text = span.source.text
    if not re.search(_AFTER_LABEL, text[text.rfind("\n", 0, span.start) + 1 : span.start]):
        return unknown.error(f"complete the line before it: `{callee}` starts a new statement")
    help = "remove one of the two labels"
    edits = [Edit(Span(span.source, span.start, arg.span.start), "") for arg in unknown.args[:1]]
    return unknown.error(help, [Fix(help, (edit,)) for edit in edits])


def _recipe_entry(unknown: UnknownCallee) -> Reported | None:
    """An entry of the recipe outside `train`: `optimizer sgd`, `optimizer: sgd`."""
    text, at = unknown.span.source.text, unknown.span.start
    start = text.rfind("\n", 0, at) + 1
    line = re.compile(r"[ \t]*([a-z_]+)[ \t]*:?[ \t]*([^\n#{};|]*)").match(text, start)
    if line is None or line.group(1) not in ENTRIES or at > line.start(2):
        return None
    entry = f"{line.group(1)} {line.group(2)}".rstrip()
    return unknown.error(f"write entries of the recipe in a `train` section: `train {{ {entry} }}`")


def _top_level_word(unknown: UnknownCallee) -> Reported | None:
    callee = unknown.callee
    if callee not in TOP_WORDS:
        return None
    return unknown.error(f"move `{callee}` to the top level of the file, or add the missing `}}` before it")


def _variable(unknown: UnknownCallee) -> Reported | None:
    callee = unknown.callee
    if callee not in unknown.scope.variables:
        return None
    return unknown.error(
        f"`{callee}` is a value; to pass an operator to a block, use the type `op`: `{callee}: op = relu`"
    )


def _repeat_before_callee(unknown: UnknownCallee) -> Reported | None:
    """`x3 resnet_block`."""
    first = unknown.args[0] if unknown.args else None
    if first is None or first.name is not None or not isinstance(first.value, ast.Name):
        return None
    if not REPEAT_WORD.fullmatch(unknown.callee):
        return None
    written = f"{first.value.name} {unknown.callee}"
    fix = Fix(f"write `{written}`", (Edit(unknown.span.to(first.value.span), written),), certain=True)
    return unknown.error(f"write the repeat after the name: `{written}`", [fix])


def _label(unknown: UnknownCallee) -> Reported | None:
    callee = unknown.callee
    if callee not in unknown.scope.file.labels:
        return None
    help = f"write `@{callee}` for the output of the label `{callee}`"
    return unknown.error(help, [Fix(help, (Edit(unknown.span, f"@{callee}"),), certain=not unknown.args)])


def _foreign_name(unknown: UnknownCallee) -> Reported | None:
    """An operator by the name that it has in other libraries, where its arguments may have another order."""
    span, args, own = unknown.span, unknown.args, FOREIGN_NAMES.get(unknown.callee)
    if own is None:
        return None
    name, _, setting = own.partition(" ")
    same_order = not args or isinstance(args[0].value, ast.SizeLiteral) or own not in KERNEL_FIRST
    if not same_order and (written := translated(unknown.callee, [arg.span.text for arg in args])):
        help = f"write `{written}`"
        edits = Edit(span, own), Edit(args[0].span.to(args[-1].span), written.removeprefix(f"{own} "))
        return unknown.error(help, [Fix(help, edits)])
    if name in OPS and setting:
        whole = span.to(args[-1].span) if args else span
        written = f"{name}{span.source.text[span.end : whole.end]} {setting}"
        help = f"write `{written}`"
        return unknown.error(help, [Fix(help, (Edit(whole, written),))])
    help = f"write `{own}`"
    fix = Fix(help, (Edit(span, own),), certain=same_order and own in OPS)
    return unknown.error(help if same_order else f"{help} with the kernel first: `{own} 3x3 16`", [fix])


HINTS: Sequence[Callable[[UnknownCallee], Reported | None]] = (
    _label_word,
    _recipe_entry,
    _top_level_word,
    _variable,
    _repeat_before_callee,
    _label,
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
    known = [*OPS, *unknown.scope.file.block_names(), *unknown.scope.variables]
    help, fixes = respell(unknown.span, unknown.callee, known)
    return unknown.error(help or "run `cnnspec list` to see all operators and blocks", fixes)


def unnamed_choice(reporter: Reporter, span: Span, table: Mapping[str, type[Declared]], what: str) -> Reported:
    """Report a value where the name of a choice is expected: a name in quotes or with signs in it, or a folder."""
    given = span.text.strip('"')
    plain = re.sub(r"[\W_]", "", given.lower())
    written = next((name for name in table if name.replace("_", "") == plain), None)
    if written is None and table is DATA_SETS and re.fullmatch(r"[\w./ -]*[A-Za-z][\w./ -]*", given):
        written = f'folder "{given.removeprefix("folder").strip()}"'
    message = f"unknown {what} `{span.text}`"
    if written is None:
        help = f"choose from {', '.join(f'`{name}`' for name in table)}"
        return reporter.error("E0201", message, span, help=help)
    help = f"write `{written}`"
    fix = Fix(help, (Edit(span, written),), certain=written in table)
    return reporter.error("E0201", message, span, help=help, fixes=[fix])
