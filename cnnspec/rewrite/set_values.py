"""Write the values of `--set` into the text of a spec."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from cnnspec.compiler import compile_source, format_text, plain_source
from cnnspec.diagnostics import CnnspecError, Edit, Source, Span, apply_edits, failure
from cnnspec.ir import Graph
from cnnspec.recipe import CHOICES, OF_MODULES, ORIGINS, Recipe, Setting, plain
from cnnspec.semantics.elaborate import is_plain
from cnnspec.syntax import ast

_DECLARED = {name: kind for table in CHOICES.values() for name, kind in table.items()}
_JOINTS = {"interval": "..", "size": "x"}
_SIMPLE = re.compile(r'[A-Za-z0-9_.]+(?:[eE][+-][0-9]+)?|"[^"\n]*"|\[[^\[\]"\n]*\]|\([^()"\n]*\)')
"""Values that need no parentheses in any position."""


def apply_values(
    text: str, name: str, values: Mapping[str, str], path: Path | None = None, *, allow_huge: bool = False
) -> str:
    """Set values in the text of a spec, and format it; comments are kept.

    Parameters are set in their `param` statement or in the arguments of `extends`, values of the recipe in the `train`
    section, which is added if it is missing. If a parameter changes, `expect` statements with plain numbers are
    removed, because they describe another network.

    Args:
        text: The spec.
        name: The name of the spec for diagnostics.
        values: Values as in `--set`, by the names of parameters and of recipe entries.
        path: The file that the spec was read from; imports are relative to its folder.
        allow_huge: Allow more parameters than the limit.

    Raises:
        CnnspecError: The spec has errors, with these values or without; E0518 if the result is not equivalent to the
            spec with these values.
    """

    def compiled(text: str, given: Mapping[str, str]) -> Graph:
        return compile_source(Source(name, text), path, given, allow_huge=allow_huge).require_graph()

    text = Source.plain(text)
    stated, wanted = compiled(text, {}), compiled(text, values)
    wanted = replace(wanted, recipe=_unstretched(wanted.recipe, name))
    tree = compile_source(Source(name, text), path).tree
    assert tree is not None
    writer = _Writer(tree, stated, wanted, values)
    written = apply_edits(text, writer.edits())
    try:
        written = format_text(plain_source(written, name))
        found = compiled(written, {})
    except CnnspecError as error:
        raise _refused(name, [f"the resulting spec has an error: {error.diagnostics[0].message}"]) from None
    if not same(found, wanted):
        raise _refused(name, ["the resulting spec describes another network or recipe"])
    return written


def same(a: Graph, b: Graph) -> bool:
    """Return True if two networks and their recipes are equal, wherever they are stated."""
    data = a.recipe.data.model_copy(update={"base": b.recipe.data.base})
    recipe = a.recipe.model_copy(update={**{name: getattr(b.recipe, name) for name in ORIGINS}, "data": data})
    return replace(a, model=b.model, recipe=recipe) == b


def setting_text(value: Any, *, full: bool = False) -> str:
    """Return a value of a recipe as text of a spec.

    Args:
        value: A setting with its arguments, a tuple of settings, or a plain value.
        full: Include arguments that equal their default.
    """
    if isinstance(value, Setting):
        name = () if value.name in CHOICES.get(value.name, ()) else (value.name,)
        return " ".join([*name, *_arguments(value, full)])
    if isinstance(value, tuple):
        return " | ".join(setting_text(step, full=full) for step in cast("tuple[Setting, ...]", value))
    return _value_text(value)


def _arguments(setting: Setting, full: bool) -> Iterator[str]:
    for name, given in setting.args.items():
        default = _DECLARED[setting.name].parameters[name].default
        if given is None or not (full or given != plain(default)):
            continue
        kind = _DECLARED[setting.name].parameters[name].type.kind
        if kind == "paths":
            yield from (f'"{path}"' for path in cast("tuple[str, ...]", given))
        elif given is True:
            yield name
        elif given is not False or default is True:
            yield f"{name}={_value_text(given, kind)}"


def _value_text(value: Any, kind: str = "") -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, tuple):
        parts = [_value_text(part) for part in cast("tuple[Any, ...]", value)]
        return _JOINTS[kind].join(parts) if kind in _JOINTS else f"[{', '.join(parts)}]"
    return f'"{value}"' if kind in ("str", "path") else str(value)


def _unstretched(recipe: Recipe, name: str) -> Recipe:
    """Return a recipe whose schedule is stated for its own number of epochs.

    Raises:
        CnnspecError: E0518 if a step of the schedule would not be a whole epoch.
    """
    if recipe.planned in (None, recipe.epochs):
        return recipe.model_copy(update={"planned": None})
    by = recipe.epochs / recipe.planned  # type: ignore[operator]
    args: dict[str, Any] = dict(recipe.schedule.args)
    if recipe.schedule.name != "onecycle" and args.get("warmup"):
        args["warmup"] *= by
    for key in ("at", "every"):
        if key in args:
            places = [place * by for place in (args[key] if key == "at" else (args[key],))]
            if any(place != int(place) for place in places):
                raise _refused(
                    name,
                    [f"with {recipe.epochs} epochs, `{key}` of the schedule is not a whole number"],
                    "keep `epochs`, or set the schedule as well",
                )
            args[key] = tuple(map(int, places)) if key == "at" else int(places[0])
    return recipe.model_copy(update={"planned": None, "schedule": Setting(name=recipe.schedule.name, args=args)})


class _Writer:
    """Finds the edits that set values in a spec."""

    def __init__(self, file: ast.File, stated: Graph, wanted: Graph, values: Mapping[str, str]) -> None:
        self.file, self.stated, self.wanted, self.values = file, stated, wanted, values

    def edits(self) -> list[Edit]:
        changed, edits = self._parameters()
        recipe = self._recipe()
        if changed:
            edits += [Edit(s.span, "") for s in self.file.statements if isinstance(s, ast.Expect) and is_plain(s.value)]
        if not any(isinstance(s, ast.Network) for s in self.file.statements) and self.wanted.name.isidentifier():
            source = self.file.source
            start = source.text.rfind("\n", 0, self.file.statements[0].span.start) + 1
            edits.append(Edit(Span(source, start, start), f"network {self.wanted.name}\n"))
        return edits + recipe

    def _parameters(self) -> tuple[bool, list[Edit]]:
        """Return True if a parameter changes, and the edits."""
        own = {
            statement.name if isinstance(statement, ast.Param) else "classes": statement
            for statement in self.file.statements
            if isinstance(statement, (ast.Param, ast.Classes))
        }
        extends = next((s for s in self.file.statements if isinstance(s, ast.Extends)), None)
        before, after = self.stated.model.constants, self.wanted.model.constants
        edits: list[Edit] = []
        added = ""
        changed = False
        for name, value in self.values.items():
            if name not in after or _bare(before.get(name)) == _bare(after[name]):
                continue
            if name not in own and extends is None:
                continue
            changed = True
            text = value.strip() if _SIMPLE.fullmatch(value.strip()) else f"({value.strip()})"
            if name in own:
                edits.append(Edit(own[name].value.span, text))
            given = [arg for arg in extends.args if arg.name == name] if extends else []
            for arg in given:
                if not (isinstance(arg.value, ast.Name) and arg.value.name in own):
                    edits.append(Edit(arg.value.span, text))
            if name not in own and not given:
                added += f" {name}={text}"
        if added and extends is not None:
            edits.append(_insertion(extends.span, added))
        return changed, edits

    def _recipe(self) -> list[Edit]:
        before, after = self.stated.recipe, self.wanted.recipe
        names = [name for name in Recipe.model_fields if name not in {*ORIGINS, "planned"}]
        changed = [name for name in names if getattr(before, name) != getattr(after, name)]
        if not changed:
            return []
        section = next((s for s in self.file.statements if isinstance(s, ast.Train)), None)
        if section is None:  # this section replaces an inherited one
            stated = [name for name in names if name in after.specified or name in changed]
            lines = "".join(_entry(after, name) for name in stated)
            end = len(self.file.source.text)
            return [Edit(Span(self.file.source, end, end), f"\n\ntrain {{\n{lines}}}\n")]
        entries = {entry.word: entry for entry in section.entries}
        edits: list[Edit] = []
        added = ""
        for name in changed:
            entry = entries.get(name)
            if entry is None:
                added += _entry(after, name)
            else:
                edits += _entry_edits(entry, getattr(before, name), getattr(after, name))
        if added:
            brace = Span(section.span.source, section.span.end - 1, section.span.end - 1)
            edits.append(Edit(brace, f"\n{added}"))
        return edits


def _entry(recipe: Recipe, name: str) -> str:
    return f"    {name} {setting_text(getattr(recipe, name))}\n"


def _entry_edits(entry: ast.Entry, before: Any, after: Any) -> Iterator[Edit]:
    """Iterate over the edits of an entry of the `train` section."""
    many = isinstance(after, tuple)
    steps: list[tuple[Any, Any]] = list(zip(before, cast("tuple[Any, ...]", after), strict=False)) if many else []
    steps = steps if many else [(before, after)]
    comparable = isinstance(after, (Setting, tuple)) and len(steps) == len(entry.calls)
    if not comparable or entry.word in OF_MODULES or any(old.name != new.name for old, new in steps):
        start = entry.span.start + len(entry.word)
        yield Edit(Span(entry.span.source, start, entry.span.end), f" {setting_text(after)}")
        return
    for call, (old, new) in zip(entry.calls, steps, strict=True):
        for name, value in new.args.items():
            if value != old.args.get(name):
                yield _argument_edit(call, new.name, name, value)


def _argument_edit(call: ast.Call, kind: str, name: str, value: Any) -> Edit:
    """Return the edit that sets an argument of a call, given by name or by position."""
    parameters = _DECLARED[kind].parameters
    text = f"{name}={_value_text(value, parameters[name].type.kind)}"
    flags = {n for n, parameter in parameters.items() if parameter.type.kind == "bool"}
    given = {arg.name: arg for arg in call.args if arg.name is not None}
    for arg in call.args:
        if arg.name is None and isinstance(arg.value, ast.Name) and arg.value.name in flags:
            given[arg.value.name] = arg
    if name in given:
        return Edit(given[name].span, text)
    free = [n for n in parameters if n not in given]
    placed = [arg for arg in call.args if arg not in given.values()]
    by_place = dict(zip(free, placed, strict=False))
    if name in by_place:
        return Edit(by_place[name].span, text)
    return _insertion(call.span, f" {text}")


def _insertion(span: Span, text: str) -> Edit:
    return Edit(Span(span.source, span.end, span.end), text)


def _bare(expr: Any) -> Any:
    """Return an expression without its origin."""
    return replace(expr, origin=0) if expr is not None else None


def _refused(name: str, notes: Sequence[str], help: str = "edit the spec by hand") -> CnnspecError:
    return failure("E0518", "cannot write these values into the spec", file=name, notes=list(notes), help=help)
