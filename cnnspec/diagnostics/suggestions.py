"""Suggestions as data: what to do about an error, without its place in the text.

A rule that knows no text raises its error with a suggestion. `describe` renders a suggestion as help, and `fixes_of`
turns it into edits at a `Site`. Nothing else does either, and nothing reads the rendered help, so its wording is free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from cnnspec.diagnostics.model import Edit, Fix, Span

INDEXED = "only a named list can be indexed"
"""Message for `widths[0]`."""

A_TENSOR = "write `@` and the label of an earlier statement, or `in`"
"""Help for a value in place of a tensor."""

NO_INDEX = "name the list with `let` or `param`, and use its item as a value: `conv 3x3 widths[0]`"
"""Help for `widths[0]`."""


def no_settings(call: str) -> str:
    """Return the help for `act=leaky_relu(0.1)`; `call` is `leaky_relu 0.1`."""
    return (
        "operators passed as arguments use their default settings; for other settings, write a block of your own that"
        f" calls `{call}`"
    )


# --- the suggestions -----------------------------------------------------------------------------
#
# `wording` is a template for `str.format`: `{0}` is the suggestion, which prints as code.
# Named tuples, because every start of the program makes these classes, and data classes take eight times as long.


class Advice(NamedTuple):
    """Text alone: the choice is the user's."""

    text: str


class SetArgument(NamedTuple):
    """Set an argument of the call, whether it is given or not."""

    name: str
    value: object
    wording: str = "write `{0}`"

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


class SetNumbers(NamedTuple):
    """Set arguments of the call that are given as plain integers; expressions are not replaced."""

    settings: tuple[tuple[str, object], ...]
    wording: str

    def __str__(self) -> str:
        return " ".join(str(value) for _, value in self.settings)


class SwapArguments(NamedTuple):
    """Swap the values of two arguments, if both are given."""

    first: str
    second: str
    wording: str = "swap the two values"


class InsertBefore(NamedTuple):
    """Insert an operator before the call."""

    code: str
    wording: str = "insert `{0}` before it"

    def __str__(self) -> str:
        return self.code


class MoveFlattenAfter(NamedTuple):
    """Move the `flatten` before the call to the place after it."""

    operator: str
    wording: str = "move `{0.operator}` before `flatten`"


class RemoveFlatten(NamedTuple):
    """Remove the `flatten` before the call."""

    wording: str = "remove `flatten`"


class ReplaceCall(NamedTuple):
    """Replace the call and its arguments."""

    code: str
    wording: str = "write `{0}`"

    def __str__(self) -> str:
        return self.code


class ReplaceOperator(NamedTuple):
    """Replace the name of the operator, and keep its arguments or branches."""

    operator: str
    wording: str = "write `{0}`"

    def __str__(self) -> str:
        return self.operator


class AppendToBranches(NamedTuple):
    """Append an operator to the branches of a join whose shape is not the wanted one.

    Attributes:
        which: The branches in words.
        first_axis: The axes from this one on must agree.
    """

    code: str
    wanted: tuple[int, ...]
    wording: str
    which: str = "other branch"
    first_axis: int = 0

    def __str__(self) -> str:
        return self.code


class ReplaceValue(NamedTuple):
    """Replace the value of an argument.

    Attributes:
        name: The argument, if the help names it.
        sign: The sign between the argument and its value; the train section has a space.
    """

    code: str
    name: str = ""
    sign: str = "="
    wording: str = "write `{0}`"

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.code}" if self.name else self.code


class RespectBound(NamedTuple):
    """Write a value within a bound; which one is the user's choice."""

    code: str
    name: str
    wording: str
    sign: str = "="

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.code}"


class WrapValue(NamedTuple):
    """Call a function on the value of an argument."""

    function: str
    wording: str = "write `{0}({value})`"

    def __str__(self) -> str:
        return self.function


class UseFloorDivision(NamedTuple):
    """Replace `/` by `//` in the value of an argument, if it is a division."""

    wording: str = "use floor division: `{value}`"

    def __str__(self) -> str:
        return "//"


class TakeItem(NamedTuple):
    """Use an item of a list instead of the list."""

    wording: str = "use an item of the list, such as `{value}[0]`"


class OneOf(NamedTuple):
    """Several suggestions in one sentence, with `{0}`, `{1}`, ... for their code; each makes its own fix."""

    wording: str
    options: tuple[Change, ...]


Change = (
    SetArgument
    | SetNumbers
    | SwapArguments
    | InsertBefore
    | MoveFlattenAfter
    | RemoveFlatten
    | ReplaceCall
    | ReplaceOperator
    | AppendToBranches
    | ReplaceValue
    | WrapValue
    | UseFloorDivision
    | TakeItem
)
Suggestion = Advice | RespectBound | Change | OneOf


def one_of(wording: str, *options: Change) -> OneOf:
    """Name several suggestions in one sentence."""
    return OneOf(wording, options)


# --- their wording and their edits ---------------------------------------------------------------


class Branch(NamedTuple):
    """A branch of a join: its place, its shape, and whether it is `in` alone."""

    span: Span | None
    shape: tuple[int, ...]
    is_input: bool


class Site(NamedTuple):
    """The places in the text that an error is about.

    Attributes:
        call: The call with its arguments.
        values: The values of its arguments, including those from a `default` statement.
        value: The value that is wrong.
        operator: The name of the operator.
        branches: The branches of a join.
    """

    call: Span | None = None
    values: Mapping[str, Span | None] = MappingProxyType({})
    value: Span | None = None
    operator: Span | None = None
    branches: Sequence[Branch] = ()


def describe(suggestion: Suggestion, value: str = "x") -> str:
    """Render a suggestion as help.

    Args:
        suggestion: The suggestion.
        value: The code of the value that is wrong.
    """
    if isinstance(suggestion, Advice):
        return suggestion.text
    if isinstance(suggestion, UseFloorDivision):
        divided = _new_value(suggestion, value)
        if divided == value:
            return "round it with `floor`, `ceil` or `round_to`"
        value = divided
    if isinstance(suggestion, TakeItem) and not value.isidentifier():
        return NO_INDEX
    parts = suggestion.options if isinstance(suggestion, OneOf) else (suggestion,)
    if isinstance(parts[0], WrapValue) and re.fullmatch(r"[0-9]+\.[0-9]+", value):
        return f"write an integer, such as `{max(int(float(value)), 1)}`"
    return suggestion.wording.format(*parts, value=value)


def fixes_of(suggestion: Suggestion | None, site: Site) -> list[Fix]:
    """Turn a suggestion into fixes, one per option; options that do not apply to the site give none."""
    if suggestion is None or isinstance(suggestion, Advice):
        return []
    if isinstance(suggestion, RespectBound):
        edits = (Edit(site.value, suggestion.code),) if site.value else ()
        return [Fix(describe(suggestion), edits, example=True)] if edits else []
    options = suggestion.options if isinstance(suggestion, OneOf) else (suggestion,)
    value = site.value.text if site.value else "x"
    found = ((option, _edits(option, site)) for option in options)
    return [
        Fix(describe(option, value), tuple(edits), example=isinstance(option, TakeItem))
        for option, edits in found
        if edits
    ]


def _edits(change: Change, site: Site) -> list[Edit]:
    match change:
        case SetArgument():
            return set_arguments(site.call, site.values, {change.name: str(change.value)})
        case SetNumbers():
            settings = {name: str(value) for name, value in change.settings}
            given = [site.values.get(name) for name in settings]
            numbers = all(at is not None and at.text.isdigit() for at in given)
            return set_arguments(site.call, site.values, settings) if numbers else []
        case SwapArguments():
            first, second = site.values.get(change.first), site.values.get(change.second)
            return [Edit(first, second.text), Edit(second, first.text)] if first and second else []
        case AppendToBranches():
            return _appended(change, site.branches)
        case MoveFlattenAfter():
            return _flatten_moved(site.call)
        case RemoveFlatten():
            return _flatten_moved(site.call)[:1]
        case InsertBefore():
            return [Edit(Span(site.call.source, site.call.start, site.call.start), f"{change} | ")] if site.call else []
        case ReplaceCall():
            return [Edit(site.call, str(change))] if site.call else []
        case ReplaceOperator():
            return [Edit(site.operator, str(change))] if site.operator else []
        case ReplaceValue() | WrapValue() | UseFloorDivision() | TakeItem():
            written = _new_value(change, site.value.text) if site.value else ""
            return [Edit(site.value, written)] if site.value and written != site.value.text else []


def _new_value(change: ReplaceValue | WrapValue | UseFloorDivision | TakeItem, old: str) -> str:
    if isinstance(change, ReplaceValue):
        return change.code
    if isinstance(change, TakeItem):
        return f"{old}[0]" if old.isidentifier() else old
    return f"{change}({old})" if isinstance(change, WrapValue) else re.sub(r"(?<!/)/(?!/)", str(change), old)


_FLATTEN = r"(?<![A-Za-z0-9_@.])(?P<element>flatten[ \t]*\|[ \t]*)(?:[^\n{};]*\|[ \t]*)?$"
"""A `flatten` in the pipeline before a call."""


def _flatten_moved(call: Span | None) -> list[Edit]:
    before = re.search(_FLATTEN, call.source.text[: call.start]) if call else None
    if call is None or before is None:
        return []
    return [Edit(Span(call.source, *before.span("element")), ""), Edit(_end(call), " | flatten")]


def _appended(change: AppendToBranches, branches: Sequence[Branch]) -> list[Edit]:
    first, edits = change.first_axis, list[Edit]()
    for at, shape, is_input in branches:
        if shape[first:] == change.wanted[first:]:
            continue
        if at is None:
            return []
        edits.append(Edit(at, change.code) if is_input else Edit(_end(at), f" | {change.code}"))
    return edits


def set_arguments(call: Span | None, values: Mapping[str, Span | None], settings: Mapping[str, str]) -> list[Edit]:
    """Make the edits that set arguments of a call; none if the value of one is not written in the call.

    Args:
        call: The call with its arguments.
        values: The values of its arguments, including those from a `default` statement.
        settings: The new values.
    """
    if call is None:
        return []
    edits: list[Edit] = []
    for name in (name for name in settings if name in values):
        at = values[name]
        if at is None or at.source is not call.source or not call.start < at.start < call.end:
            return []
        edits.append(Edit(at, settings[name]))
    added = "".join(f" {name}={value}" for name, value in settings.items() if name not in values)
    return [*edits, Edit(_end(call), added)] if added else edits


def _end(span: Span) -> Span:
    return Span(span.source, span.end, span.end)


def share(at: Span) -> Fix:
    """Replace a percentage by a decimal number."""
    text = at.text
    written = f"{float(text.rstrip('%').rstrip()) / 100:.6g}"
    return Fix(f"write a decimal number instead of a percentage: `{written}`", (Edit(at, written),), certain=True)


def pipe_before(at: Span, element: str) -> tuple[Fix, ...]:
    """Insert a `|` before a word, or write it in place of a `>` or `+`, which makes the word a separate element."""
    text = at.source.text
    sign = re.compile(r"[>+][ \t]*\Z").search(text[max(0, at.start - 80) : at.start])
    start = at.start - len(sign.group()) if sign else at.start
    return (Fix(f"separate elements with `|`: `| {element}`", (Edit(Span(at.source, start, at.start), "| "),)),)
