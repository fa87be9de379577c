"""Remedies that are changes of the text: tried before they are shown, and applied on demand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from cnnspec.diagnostics.model import Diagnostic, Edit, Fix, Source, Span

_MAX_TRIALS = 16
_MAX_CHARACTERS = 64 * 1024
"""Of all texts that are tried together."""
_MAX_STEPS = 4_000
"""Elements that are written out in all trials together."""

_OTHERWISE = {
    "E0301": "give both branches the same kernels, paddings and strides in total",
    "E0302": "give all branches maps of one size, or use `flatten` in all of them",
    "E0303": "the factors must agree in channels and map, or have 1 channel, or a 1x1 map",
}
"""What to do where the remedy that seemed right does not work."""

NO_PLACES = "lists cannot be indexed: write a `param` for each value, or a row of `each`"
"""What is said of `widths[0]`."""

NO_SETTINGS = "an operator as a value has its defaults and takes no arguments: others need a block of your own"
"""What is said of `act=leaky_relu(0.1)`."""

_WORDS = r"`([^`]+)`"
_FLATTEN = r"(?<![A-Za-z0-9_@.])(?P<element>flatten[ \t]*\|[ \t]*)(?:[^\n{};]*\|[ \t]*)?$"
_SETTING = r"([A-Za-z_][A-Za-z0-9_]*)=([^\s\[]+|\[[^\[\]]*\])"


def fixes_of_call(
    help: str | None, known: Iterable[str], whole: Span | None, values: Mapping[str, Span | None]
) -> list[Fix]:
    """The changes of a call that the help of a shape rule speaks of, one for each remedy in it.

    The rule knows no place, so its words are the remedy: `name=value` sets an argument, an element `in front of it`
    is put there.

    Args:
        help: What the rule says.
        known: The parameters of the callee.
        whole: Where the call stands, with its arguments.
        values: Where the values of its arguments stand.
    """
    if help is None or whole is None:
        return []
    fixes: list[Fix] = []

    def set_argument(name: str, value: str, said: str) -> None:
        if edits := settings_of(whole, values, {name: value}):
            fixes.append(Fix(said, tuple(edits)))

    quoted = re.findall(_WORDS, help)
    if help.endswith("in front of `flatten`") and (before := re.search(_FLATTEN, whole.source.text[: whole.start])):
        gone, end = Span(whole.source, *before.span("element")), Span(whole.source, whole.end, whole.end)
        fixes.append(Fix(help, (Edit(gone, ""), Edit(end, " | flatten"))))
    if "in front of it" in help:
        start = Span(whole.source, whole.start, whole.start)
        fixes += [Fix(f"put `{words}` in front of it", (Edit(start, f"{words} | "),)) for words in quoted]
    for words in quoted:
        setting = re.fullmatch(_SETTING, words)
        if setting and setting.group(1) in known:
            set_argument(setting.group(1), setting.group(2), f"write `{words}`")
    if found := re.search(r"use (?:a kernel of at most |`)([0-9]+x[0-9]+)", help):
        set_argument("kernel", found.group(1), f"use a {found.group(1)} kernel")
    if found := re.match(r"the kernel comes first: `conv (\S+) ([0-9]+)`", help):
        swapped: dict[str, str] = {"kernel": found.group(1), "c": found.group(2)}
        if all((at := values.get(name)) and at.text.isdigit() for name in swapped):
            fixes += [Fix(help, tuple(edits)) for edits in (settings_of(whole, values, swapped),) if edits]
    if found := re.search(r"`slice ([0-9]+\.\.[0-9]+)`", help):
        set_argument("range", found.group(1), f"write `slice {found.group(1)}`")
    return fixes


def settings_of(whole: Span | None, values: Mapping[str, Span | None], settings: Mapping[str, str]) -> list[Edit]:
    """The changes that give a call some arguments; none where one of them is not written in the call.

    Args:
        whole: Where the call stands, with its arguments.
        values: Where the values of its arguments stand, those by `default` included.
        settings: The arguments.
    """
    if whole is None:
        return []
    edits: list[Edit] = []
    end = Span(whole.source, whole.end, whole.end)
    added = "".join(f" {name}={value}" for name, value in settings.items() if name not in values)
    for name in (name for name in settings if name in values):
        at = values[name]
        if at is None or at.source is not whole.source or not whole.start < at.start < whole.end:
            return []
        edits.append(Edit(at, settings[name]))
    return [*edits, Edit(end, added)] if added else edits


def fixes_of_value(help: str | None, at: Span | None) -> list[Fix]:
    """The changes of a value that the help of its type speaks of; that of its bounds leaves the choice."""
    if help is None or at is None:
        return []
    text = at.text
    found = re.fullmatch(r"write `(?:[A-Za-z_][A-Za-z0-9_]*=)?(\S+)`", help)
    if found:
        return [Fix(help, (Edit(at, found.group(1)),))]
    if help.startswith("divide with `//`"):
        divided = re.sub(r"(?<!/)/(?!/)", "//", text)
        return [Fix("divide with `//`", (Edit(at, divided),))]
    if help.startswith("use `floor`"):
        return [Fix(f"write `floor({text})`", (Edit(at, f"floor({text})"),))]
    return []


def fixes_of_join(help: str | None, branches: Sequence[tuple[Span | None, bool]]) -> list[Fix]:
    """The changes of a join that its help speaks of: an element behind each branch that differs.

    Args:
        help: What the rule of the join says.
        branches: Where each branch that differs from the wanted one stands, and whether it is `in` alone.
    """
    found = re.search(r"with `((?:conv|linear|maxpool) [^`]+|flatten)`", help or "")
    if found is None or help is None:
        return []
    edits: list[Edit] = []
    for at, alone in branches:
        if at is None:
            return []
        element = found.group(1)
        edits.append(Edit(at, element) if alone else Edit(Span(at.source, at.end, at.end), f" | {element}"))
    return [Fix(help, tuple(edits))] if edits else []


def share(at: Span) -> Fix:
    """The change of a share in percent to the number that it is."""
    text = at.text
    written = f"{float(text.rstrip('%').rstrip()) / 100:.6g}"
    return Fix(f"a share is written as a number from 0 to 1: `{written}`", (Edit(at, written),), certain=True)


def pipe_before(at: Span, element: str) -> tuple[Fix, ...]:
    """The change that makes a word into an element of its own."""
    return (Fix(f"elements are joined by `|`: `| {element}`", (Edit(Span(at.source, at.start, at.start), "| "),)),)


def prove(
    diagnostics: Sequence[Diagnostic], source: Source, again: Callable[[str, int], Sequence[Diagnostic]]
) -> list[Diagnostic]:
    """The diagnostics with those fixes alone that work, and a help that speaks of no other.

    A fix works where the changed text does not have the diagnostic any more, and no error that was not there before.
    Behind one that is certain faults may show that could not be seen before, but none in what was changed; where they
    show behind another one, it is not known to work: it is not shown, and the help stays. Only so much is tried that a
    check stays fast; a fix that was not tried is not shown.

    Args:
        diagnostics: What was found in a text.
        source: The text.
        again: What is found in another text in its place, for which at most so many elements are written out.
    """
    wanted = [(d, fix) for d in diagnostics for fix in d.fixes if all(e.span.source is source for e in fix.edits)]
    trials = min(len(wanted), _MAX_TRIALS, _MAX_CHARACTERS // max(len(source.text), 1))
    works: dict[int, list[Fix]] = {}
    open_: set[int] = set()
    for diagnostic, fix in wanted[:trials]:
        answer = _works(diagnostic, fix, diagnostics, again(fix.apply(source.text), _MAX_STEPS // trials))
        if answer:
            works.setdefault(id(diagnostic), []).append(fix)
        elif answer is None:
            open_.add(id(diagnostic))
    tried = {id(diagnostic) for diagnostic, _ in wanted[:trials]}
    out: list[Diagnostic] = []
    for d in diagnostics:
        fixes, help = tuple(works.get(id(d), ())), d.help
        if id(d) in tried - open_ and len(fixes) < len(d.fixes):
            help = ", or ".join(dict.fromkeys(fix.help for fix in fixes)) or _OTHERWISE.get(d.code, help)
        out.append(replace(d, fixes=fixes, help=help) if d.fixes else d)
    return out


def _works(diagnostic: Diagnostic, fix: Fix, before: Iterable[Diagnostic], after: Iterable[Diagnostic]) -> bool | None:
    """Whether a fix works; none where that cannot be told."""
    edits = sorted(fix.edits, key=lambda edit: (edit.span.start, edit.span.end))
    known = {(d.code, _moved(d.span.start, edits)) for d in before if d.span and d is not diagnostic}
    known |= {(d.code, -1) for d in before if d.span is None and d is not diagnostic}
    own = diagnostic.span.start if diagnostic.span else -1
    places = {(diagnostic.code, own), (diagnostic.code, _moved(own, edits))}
    written: list[tuple[int, int]] = []
    shift = 0
    for edit in edits:
        start = edit.span.start + shift
        written.append((start, start + len(edit.text)))
        shift += len(edit.text) - (edit.span.end - edit.span.start)
    works: bool | None = True
    for found in after:
        at = found.span.start if found.span else -1
        if (found.code, at) in places:
            return False
        if found.severity == "warning" or (found.code, at) in known:
            continue
        if (
            diagnostic.severity == "warning"
            or found.span is None
            or found.code.startswith("E01")
            or found.code == "E0404"
        ):
            return False
        if any(at <= end and found.span.end >= start for start, end in written):
            return False
        if not fix.certain:
            works = None  # another thing is wrong now: by this change, or it could not be seen before
    return works


def _moved(offset: int, edits: Sequence[Edit]) -> int:
    """Where an offset of the old text lies in the new one."""
    shift = 0
    for edit in edits:
        if edit.span.end <= offset:
            shift += len(edit.text) - (edit.span.end - edit.span.start)
    return offset + shift
