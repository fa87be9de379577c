"""Read the `train` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Reported, Span, respell
from cnnspec.diagnostics.suggestions import Site, fixes_of
from cnnspec.ir.evaluate import UnknownShape
from cnnspec.ops import FOREIGN_ENTRIES, FOREIGN_OPTIONS
from cnnspec.ops.examples import entry_with, example_entry
from cnnspec.recipe import CHOICES, ENTRIES, NOUNS, OF_MODULES, PIPELINES, Recipe, Scalars, Setting
from cnnspec.schema import Declared, Word
from cnnspec.semantics.argument_hints import report_percents
from cnnspec.semantics.constants import ConstantEvaluator
from cnnspec.semantics.context import Context
from cnnspec.semantics.loader import Library, path_below
from cnnspec.semantics.recipe_rules import Contradiction, contradictions
from cnnspec.semantics.scope import FileScope
from cnnspec.syntax import ast


class TrainReader:
    """Reads the `train` section.

    Attributes:
        entries: The entries without errors, by their word.
    """

    def __init__(self, context: Context, constants: ConstantEvaluator, library: Library) -> None:
        self.context = context
        self.constants = constants
        self.library = library
        self.entries: dict[str, ast.Entry] = {}

    def read(self, statement: ast.Train, scope: FileScope) -> Recipe:
        """Read a `train` section; each wrong entry is reported."""
        fields: dict[str, Any] = {}
        seen: dict[str, ast.Entry] = {}
        self.entries = {}
        for entry in statement.entries:
            if entry.word in seen:
                self._defined_twice(seen[entry.word], entry)
            seen.setdefault(entry.word, entry)
            try:
                fields[entry.word] = self._entry(entry, scope)
                self.entries[entry.word] = entry
            except Reported:
                pass
        return Recipe.model_construct(**fields, specified=tuple(fields))

    def check(self, recipe: Recipe, file: str) -> None:
        """Report each contradiction of a recipe, which may have values from outside the file."""
        for found in contradictions(recipe):
            self.context.reporter.add(to_diagnostic(found, found.code, recipe, self.entries, file))

    def _entry(self, entry: ast.Entry, scope: FileScope) -> Any:
        if entry.word in CHOICES:
            return self._choice(entry, scope)
        if entry.word in Scalars.parameters:
            return self._scalar(entry, scope)
        raise self._unknown(entry)

    def _defined_twice(self, first: ast.Entry, entry: ast.Entry) -> None:
        """Report a second entry of the same name; the help combines augmentations."""
        help, fixes = f"keep only one `{entry.word}`", list[Fix]()
        if entry.word in PIPELINES:
            source = entry.span.source
            steps = Span(source, entry.calls[0].span.start, entry.span.end)
            help = f"combine them with `|`: `{first.span.text} | {steps.text}`"
            start = len(source.text[: entry.span.start].rstrip(" \t\n;"))
            after = Span(source, first.span.end, first.span.end)
            edits = Edit(after, f" | {steps.text}"), Edit(Span(source, start, entry.span.end), "")
            fixes = [Fix(help, edits)]
        labels = [Label(_word_span(first), "first defined here")]
        message = f"entry `{entry.word}` is defined multiple times"
        self.context.reporter.error("E0211", message, _word_span(entry), labels=labels, help=help, fixes=fixes)

    def _choice(self, entry: ast.Entry, scope: FileScope) -> Setting | tuple[Setting, ...]:
        """Read an entry that chooses from a table; each wrong choice is reported."""
        if len(entry.calls) > 1 and entry.word not in PIPELINES:
            message = f"`{entry.word}` takes only one choice"
            first, rest = entry.calls[0].span, Span(entry.span.source, entry.calls[0].span.end, entry.span.end)
            fix = Fix(f"write `{entry.word} {first.text}`", (Edit(rest, ""),))
            raise self.context.reporter.error("E0205", message, entry.calls[1].span, help=fix.help, fixes=[fix])
        what = NOUNS.get(entry.word, entry.word)
        chosen: list[Setting] = []
        for call in entry.calls:
            try:
                named = _named(call, entry.word)
                setting = self.constants.choice(named, CHOICES[entry.word], what, scope)
                chosen.append(self._located(setting, named, scope) if "path" in setting.args else setting)
            except Reported:
                pass
        if len(chosen) < len(entry.calls):
            raise Reported
        return tuple(chosen) if entry.word in PIPELINES else chosen[0]

    def _located(self, setting: Setting, call: ast.Call, scope: FileScope) -> Setting:
        """Return a setting with the folder that its path is relative to.

        Raises:
            Reported: The path leaves the folder of the spec.
        """
        base, path = self.library.base_of(scope.file), str(setting.args["path"])
        if path_below(base, path) is not None:
            return setting.model_copy(update={"base": str(base)})
        span = spans_of_values(call, CHOICES["data"][setting.name]).get("path", call.span)
        help = f"move the images to the folder of the spec, or use `--data {setting.name}:{path}`"
        raise self.context.reporter.error("E0218", f"`{path}` is outside the folder of the spec", span, help=help)

    def _scalar(self, entry: ast.Entry, scope: FileScope) -> Any:
        """Read an entry of one value, `epochs 180`."""
        call, parameter = entry.calls[0], Scalars.parameters[entry.word]
        values: list[ast.Expr] = [arg.value for arg in call.args]
        if call.callee:
            values.insert(0, ast.Name(call.callee_span, call.callee))
        if error := report_percents(self.context.reporter, values):
            raise error
        if len(values) != 1 or len(entry.calls) > 1 or any(arg.name for arg in call.args):
            written = f"{entry.word} {values[0].span.text}" if values else example_entry(entry.word)
            clear = len(values) == 1 or parameter.type.kind == "bool"
            example = "" if values else "a value, for example "
            fix = Fix(f"write {example}`{written}`", (Edit(entry.span, written),), certain=clear)
            message = f"`{entry.word}` expects {parameter.type.single}"
            raise self.context.reporter.error("E0203", message, entry.span, help=fix.help, fixes=[fix])
        try:
            value = self.constants.value(values[0], scope, parameter.type, entry.word, " ")
        except UnknownShape:
            raise self.constants.refuse_image(entry.span, "the recipe") from None
        return str(value) if isinstance(value, Word) else value

    def _unknown(self, entry: ast.Entry) -> Reported:
        span = _word_span(entry)
        help, fixes = respell(span, entry.word, ENTRIES)
        if own := FOREIGN_ENTRIES.get(entry.word):
            bare = not (entry.calls[0].args or entry.calls[0].callee)
            written = example_entry(own) if bare and " " not in own else own
            help, edit = f"write `{written}`", Edit(entry.span if " " in written else span, written)
            fixes = (Fix(help, (edit,)),)
        elif option := FOREIGN_OPTIONS.get(entry.word):
            help = f"remove it: `--{option}` is an option of the command line"
        value = entry.calls[0].args[0].span.text if entry.calls[0].args else "0.1"
        owner = entry_with(entry.word, value)
        if owner and help is None:
            help = f"write it as an argument of `{owner.split()[0]}`, for example `{owner}`"
        help = help or f"choose from {', '.join(f'`{name}`' for name in ENTRIES)}"
        message = f"unknown entry `{entry.word}` in the `train` section"
        return self.context.reporter.error("E0201", message, span, help=help, fixes=fixes)


def _named(call: ast.Call, word: str) -> ast.Call:
    """Return the call with the name of its choice, which is not written if it is that of the entry."""
    if word in OF_MODULES:
        return _with_paths(call, word)
    if call.callee or word not in CHOICES[word]:
        return call
    return ast.Call(call.span, word, call.repeat, call.args, call.callee_span)


def _with_paths(call: ast.Call, word: str) -> ast.Call:
    """Return a call whose bare words are paths of modules, with those given by position in its argument `modules`."""
    name = word if word in CHOICES[word] else call.callee
    given: list[ast.Expr] = []
    if name != call.callee and call.callee:
        given.append(ast.Name(call.callee_span, call.callee))
    args: list[ast.Argument] = []
    for arg in call.args:
        if arg.name is None and isinstance(arg.value, ast.ListLiteral):
            given.extend(arg.value.items)
        elif arg.name is None:
            given.append(arg.value)
        else:
            args.append(arg.replace(value=_as_path(arg.value)))
    if given:
        span = Span(call.span.source, given[0].span.start, given[-1].span.end)
        args.insert(0, ast.Argument(span, "modules", _as_path(ast.ListLiteral(span, tuple(given)))))
    return ast.Call(call.span, name, call.repeat, tuple(args), call.callee_span)


def _as_path(value: ast.Expr) -> ast.Expr:
    if isinstance(value, ast.ListLiteral):
        return value.replace(items=tuple(map(_as_path, value.items)))
    return ast.Text(value.span, value.name) if isinstance(value, ast.Name) else value


def _word_span(entry: ast.Entry) -> Span:
    return Span(entry.span.source, entry.span.start, entry.span.start + len(entry.word))


def spans_of_values(call: ast.Call, kind: type[Declared]) -> dict[str, Span]:
    """Return the spans of the values of a correct call, by parameter; a flag has no value."""
    names = iter(kind.parameters)
    found: dict[str, Span] = {}
    for arg in call.args:
        flag = arg.name is None and isinstance(arg.value, ast.Name) and arg.value.name in kind.parameters
        if not flag:
            found[arg.name or next(names)] = arg.value.span
    return found


def to_diagnostic(
    found: Contradiction, code: str, recipe: Recipe, entries: Mapping[str, ast.Entry], file: str
) -> Diagnostic:
    """Locate a contradiction at its entry, unless a value from outside the file replaces the entry."""
    entry = entries.get(found.entry)
    if entry is None or found.entry in recipe.overridden:
        return Diagnostic(code, found.message, file=file, help=found.help)
    call, fixes = entry.calls[found.step], list[Fix]()
    span = call.span
    if found.entry in CHOICES:
        named = _named(call, found.entry)
        kind = CHOICES[found.entry][named.callee]
        spans = spans_of_values(named, kind)
        items = [
            item.span
            for arg in named.args
            if arg.name == found.argument and isinstance(arg.value, ast.ListLiteral)
            for item in arg.value.items
            if isinstance(item, ast.Text) and item.value == found.item
        ]
        span = items[0] if items else spans.get(found.argument, span)
        fixes = fixes_of(found.suggestion, Site(call.span, spans))
    return Diagnostic(code, found.message, span, help=found.help, fixes=tuple(fixes))
