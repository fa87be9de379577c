"""The statements around a network: `init`, `expect`, `aux`, and the `train` section."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from cnnspec import ir
from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Reporter, Span, respell
from cnnspec.diagnostics.suggestions import ReplaceValue, RespectBound, Site, describe, fixes_of
from cnnspec.ir.evaluate import ExpressionError, UnknownShape, convert, evaluate, literal, show
from cnnspec.ops import FOREIGN_NAMES, OPS
from cnnspec.ops.inits import INITS, allowed_inits
from cnnspec.recipe import CHOICES, DATA_SETS, ENTRIES, Recipe, Scalars, Setting
from cnnspec.schema import Declared, Parameter, Type, Word
from cnnspec.semantics.calls import Binder
from cnnspec.semantics.names import Fault, Names
from cnnspec.semantics.recipe_rules import Contradiction, impossible
from cnnspec.semantics.scope import FileScope
from cnnspec.syntax import RESERVED, ast

METRICS = ("params", "macs", "output", "depth")


def word_of(entry: ast.Entry) -> Span:
    """Where the word of an entry stands."""
    return Span(entry.span.source, entry.span.start, entry.span.start + len(entry.word))


def values_of(call: ast.Call, kind: type[Declared]) -> dict[str, Span]:
    """Where the values of a call without faults stand, by their parameters; a flag has none."""
    places = iter(kind.parameters)
    found: dict[str, Span] = {}
    for arg in call.args:
        flag = arg.name is None and isinstance(arg.value, ast.Name) and arg.value.name in kind.parameters
        if not flag:
            found[arg.name or next(places)] = arg.value.span
    return found


def diagnosed(one: Contradiction, code: str, recipe: Recipe, entries: Mapping[str, ast.Entry], file: str) -> Diagnostic:
    """A contradiction at the entry that it is about; at none where a value from outside takes its place."""
    entry = entries.get(one.entry)
    if entry is None or one.entry in recipe.given:
        return Diagnostic(code, one.message, file=file, help=one.help)
    call, fixes = entry.calls[one.step], list[Fix]()
    span = call.span
    if one.entry in CHOICES:
        kind = CHOICES[one.entry][call.callee]
        values = values_of(call, kind)
        span = values.get(one.argument, span)
        fixes = fixes_of(one.suggestion, Site(call.span, values))
    return Diagnostic(code, one.message, span, help=one.help, fixes=tuple(fixes))


class Sections:
    """Elaborates statements whose values are known without any shape.

    Attributes:
        binder: Binds their arguments.
        entries: Those of the `train` section that are without fault, by their words.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.binder = Binder(reporter)
        self.entries: dict[str, ast.Entry] = {}

    def fail(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        help: str | None = None,
        labels: tuple[Label, ...] = (),
        fixes: tuple[Fix, ...] = (),
    ) -> None:
        self.reporter.add(Diagnostic(code, message, span, labels=labels, help=help, fixes=fixes))

    def names(self, scope: FileScope) -> Names:
        """What an expression of the top may name; a value that waits for the image has a name, too."""
        return Names(scope, {**scope.variables(), **dict.fromkeys(scope.pending)})

    def value(
        self, node: ast.Expr, scope: FileScope, type_: Type | None = None, name: str = "value", sign: str = "="
    ) -> Any:
        """The value of an expression of the top of a file.

        Raises:
            Fault: It has none; the reason has been reported.
            UnknownShape: It depends on the image.
        """
        expr = self.binder.expr(node, self.names(scope), type_)
        return self.resolve(expr, scope, type_, name, sign)

    def resolve(
        self, expr: ir.Expr, scope: FileScope, type_: Type | None = None, name: str = "value", sign: str = "="
    ) -> Any:
        try:
            result = evaluate(expr, scope.constants)
            return result if type_ is None else convert(result, type_, name, expr.origin)
        except ExpressionError as fault:
            span = self.binder.places[fault.origin] or self.binder.places[expr.origin]
            suggestion, fixes = fault.suggestion, tuple(fixes_of(fault.suggestion, Site(value=span)))
            if isinstance(suggestion, (ReplaceValue, RespectBound)):
                suggestion = suggestion._replace(sign=sign)
            help = describe(suggestion) if suggestion else None
            self.reporter.add(Diagnostic(fault.code, str(fault), span, help=help, fixes=fixes))
            raise Fault from None

    def settings(self, call: ast.Call, kind: type[Declared], scope: FileScope) -> Setting:
        """A declared choice with its arguments.

        Raises:
            Fault: An argument is at fault.
        """
        bound = self.binder.bind(call.callee, call.args, kind.parameters, self.names(scope), call.callee_span)
        values: dict[str, Any] = {}
        for name, expr in bound.items():
            try:
                values[name] = self.resolve(expr, scope, kind.parameters[name].type, name)
            except UnknownShape:
                self.no_image(call.span)
            except Fault:
                pass
        if len(values) < len(bound):
            raise Fault
        return Setting.of(kind(**values))

    def choose(self, call: ast.Call, table: Mapping[str, type[Declared]], what: str, scope: FileScope) -> Setting:
        """One of a table of declared choices.

        Raises:
            Fault: There is no such choice, or an argument is at fault.
        """
        if not call.callee and call.args and call.args[0].name is None:
            self.no_name(call.args[0].value.span, table, what)
            raise Fault
        if call.callee not in table:
            help, fixes = respell(call.callee_span, call.callee, table)
            self.fail(
                "E0201",
                f"unknown {what} `{call.callee}`" if call.callee else f"{what} needs a name",
                call.callee_span,
                help=help or f"there are {', '.join(f'`{n}`' for n in table)}",
                fixes=fixes,
            )
            raise Fault
        return self.settings(call, table[call.callee], scope)

    def no_name(self, at: Span, table: Mapping[str, type[Declared]], what: str) -> None:
        """Reports what stands where one of a table is named: a name in quotes or with signs in it, or a folder."""
        given = at.text.strip('"')
        plain = re.sub(r"[\W_]", "", given.lower())
        meant = next((name for name in table if name.replace("_", "") == plain), None)
        help, fixes = f"there are {', '.join(f'`{n}`' for n in table)}", ()
        if meant is None and table is DATA_SETS and re.fullmatch(r"[\w./ -]*[A-Za-z][\w./ -]*", given):
            meant = f'folder "{given.removeprefix("folder").strip()}"'
        if meant is not None:
            help = f"write `{meant}`"
            fixes = (Fix(help, (Edit(at, meant),), certain=meant in table),)
        self.fail("E0201", f"`{at.text}` is no {what}", at, help=help, fixes=fixes)

    def contradicted(self, recipe: Recipe, file: str) -> None:
        """Reports what of a recipe no run can follow; values from outside of the file take part."""
        for one in impossible(recipe):
            self.reporter.add(diagnosed(one, one.code, recipe, self.entries, file))

    def no_image(self, span: Span) -> None:
        """Reports a value of the file that would depend on the image."""
        self.fail("E0207", "`in` has no meaning here", span, help="write a number, or a `param` of the file")

    def constant(self, expr: ir.Expr, scope: FileScope, parameter: Parameter, name: str) -> ir.Expr:
        try:
            value = self.resolve(expr, scope, parameter.type, name)
        except UnknownShape:
            span = self.binder.places[expr.origin]
            assert span is not None
            self.fail("E0207", "`in` has no meaning here", span, help="a default of a file is a number or a `param`")
            raise Fault from None
        return replace(literal(value), origin=expr.origin)

    def once(self, seen: dict[tuple[str, str], Span], what: str, name: str, span: Span) -> None:
        """Reports a second definition of a name."""
        if (what, name) in seen:
            labels = (Label(seen[what, name], "the first one"),)
            self.fail(
                "E0211",
                f"the {what} `{name}` is defined twice" if name else f"`{what}` is stated twice",
                span,
                labels=labels,
                help="rename or remove one of the two",
            )
        seen[what, name] = span

    def init(self, statement: ast.Init, scope: FileScope) -> ir.Init:
        """An `init` rule.

        Raises:
            Fault: It has no such target or scheme.
        """
        targets = {name: op for name, op in OPS.items() if "init" in op.parameters and op.parameters["init"].type.words}
        callee = statement.scheme.callee
        if statement.target_span.line != statement.scheme.callee_span.line and callee in (*RESERVED, *OPS):
            end = statement.target_span.end
            help = "an `init` names an operator and how its weights start: `init conv kaiming_normal`"
            self.fail("E0101", "the line ends too early", Span(statement.span.source, end, end), help=help)
            raise Fault
        if statement.target not in targets:
            known = f"there are {', '.join(f'`{n}`' for n in targets)}"
            message = (
                f"`{statement.target}` has no weights to start"
                if statement.target in OPS
                else f"unknown operator `{statement.target}`"
            )
            help, fixes = respell(statement.target_span, statement.target, targets)
            help = help or known
            if FOREIGN_NAMES.get(statement.target) in OPS:
                help = f"write `{FOREIGN_NAMES[statement.target]}`"
                fixes = (Fix(help, (Edit(statement.target_span, FOREIGN_NAMES[statement.target]),), certain=True),)
            self.fail("E0201", message, statement.target_span, help=help, fixes=fixes)
            raise Fault
        scheme = self.choose(statement.scheme, INITS, "initialisation", scope)
        allowed = allowed_inits(statement.target)
        if scheme.name not in allowed:
            self.fail(
                "E0215",
                f"`{scheme.name}` cannot start the weights of `{statement.target}`",
                statement.scheme.callee_span,
                help=f"there are {', '.join(f'`{n}`' for n in allowed)}",
            )
            raise Fault
        if refused := INITS[scheme.name](**scheme.args).refused():
            message, suggestion = refused
            fixes = tuple(fixes_of(suggestion, Site(values=values_of(statement.scheme, INITS[scheme.name]))))
            self.fail("E0215", message, statement.scheme.span, help=describe(suggestion), fixes=fixes)
            raise Fault
        return ir.Init(target=statement.target, scheme=scheme, origin=self.binder.places.add(statement.span))

    def recipe(self, statement: ast.Train, scope: FileScope) -> Recipe:
        """The `train` section; every entry at fault is reported."""
        fields: dict[str, Any] = {}
        seen: dict[str, ast.Entry] = {}
        self.entries = {}
        for entry in statement.entries:
            if entry.word in seen:
                self.twice(seen[entry.word], entry)
            seen.setdefault(entry.word, entry)
            try:
                if entry.word in CHOICES:
                    fields[entry.word] = self.choice(entry, scope)
                elif entry.word in Scalars.parameters:
                    fields[entry.word] = self.scalar(entry, scope)
                else:
                    self.unknown(entry)
            except Fault:
                continue
            self.entries[entry.word] = entry
        return Recipe.model_construct(**fields, stated=tuple(fields))

    def twice(self, first: ast.Entry, entry: ast.Entry) -> None:
        """Reports an entry that is stated already; augmentations are joined."""
        labels = (Label(word_of(first), "the first one"),)
        help, fixes = "rename or remove one of the two", ()
        if entry.word == "augment":
            source = entry.span.source
            steps = Span(source, entry.calls[0].span.start, entry.span.end)
            help = f"join the two with `|`: `{first.span.text} | {steps.text}`"
            start = len(source.text[: entry.span.start].rstrip(" \t\n;"))
            behind = Span(source, first.span.end, first.span.end)
            edits = (Edit(behind, f" | {steps.text}"), Edit(Span(source, start, entry.span.end), ""))
            fixes = (Fix(help, edits),)
        message = f"the entry `{entry.word}` is defined twice"
        self.fail("E0211", message, word_of(entry), labels=labels, help=help, fixes=fixes)

    def choice(self, entry: ast.Entry, scope: FileScope) -> Setting | tuple[Setting, ...]:
        """An entry that chooses from a table; every choice at fault is reported.

        Raises:
            Fault: One is at fault.
        """
        if len(entry.calls) > 1 and entry.word != "augment":
            help = "remove what stands behind the `|`"
            self.fail("E0205", f"`{entry.word}` takes one choice", entry.calls[1].span, help=help)
            raise Fault
        what = {"data": "data set", "augment": "augmentation"}.get(entry.word, entry.word)
        chosen: list[Setting] = []
        for call in entry.calls:
            try:
                chosen.append(self.choose(call, CHOICES[entry.word], what, scope))
            except Fault:
                pass
        if len(chosen) < len(entry.calls):
            raise Fault
        return tuple(chosen) if entry.word == "augment" else chosen[0]

    def unknown(self, entry: ast.Entry) -> NoReturn:
        """Reports an entry that the section does not have.

        Raises:
            Fault: Always.
        """
        help, fixes = respell(word_of(entry), entry.word, ENTRIES)
        owners = [n for n, table in CHOICES.items() for kind in table.values() if entry.word in kind.parameters]
        if owners and not fixes:
            help = f"it is an argument of the {owners[0]}: `{owners[0]} ... {entry.word}=...`"
        help = help or f"there are {', '.join(f'`{n}`' for n in ENTRIES)}"
        message = f"unknown entry `{entry.word}` of the train section"
        self.fail("E0201", message, word_of(entry), help=help, fixes=fixes)
        raise Fault

    def scalar(self, entry: ast.Entry, scope: FileScope) -> Any:
        """An entry of one value, `epochs 180`.

        Raises:
            Fault: It has none, too many, or one of the wrong type.
        """
        call, parameter = entry.calls[0], Scalars.parameters[entry.word]
        values: list[ast.Expr] = [arg.value for arg in call.args]
        if call.callee:
            values.insert(0, ast.Name(call.callee_span, call.callee))
        if self.binder.refuse_percents(values):
            raise Fault
        if len(values) != 1 or len(entry.calls) > 1 or any(arg.name for arg in call.args):
            usual = "true" if parameter.type.kind == "bool" else show(parameter.default or 5)
            written = f"{entry.word} {values[0].span.text if values else usual}"
            clear = len(values) == 1 or parameter.type.kind == "bool"
            fixes = (Fix(f"write `{written}`", (Edit(entry.span, written),), certain=clear),)
            message = f"`{entry.word}` takes one value: {parameter.type}"
            self.fail("E0203", message, entry.span, help=f"write `{written}`", fixes=fixes)
            raise Fault
        try:
            value = self.value(values[0], scope, parameter.type, entry.word, " ")
        except UnknownShape:
            self.no_image(entry.span)
            raise Fault from None
        return str(value) if isinstance(value, Word) else value

    def aux(self, scope: FileScope, statement: ast.Aux) -> ir.Aux | None:
        names = Names(scope, scope.variables())
        parameters = {"weight": Parameter("weight", Type("float"), None)}
        try:
            bound = self.binder.bind("aux", statement.args, parameters, names, statement.span)
            weight = bound.get("weight") or literal(1.0)
        except Fault:
            return None
        origin = self.binder.places.add(statement.label.span)
        return ir.Aux(
            name=statement.name,
            source=statement.label.label,
            weight=weight,
            body=self.binder.statements(statement.body, names),
            origin=origin,
        )

    def expect(self, scope: FileScope, statement: ast.Expect) -> ir.Expect | None:
        if statement.metric not in METRICS:
            text, source = statement.metric, statement.span.source
            start = source.text.index(text, statement.span.start + len("expect"))
            at = Span(source, start, start + len(text))
            help, fixes = respell(at, statement.metric, METRICS)
            help = help or f"there are {', '.join(METRICS)}"
            self.fail("E0201", f"nothing is known of `{statement.metric}`", at, help=help, fixes=fixes)
            return None
        try:
            value = self.binder.expr(statement.value, self.names(scope))
            value = replace(literal(self.resolve(value, scope)), origin=value.origin)
        except UnknownShape:
            self.no_image(statement.span)
            return None
        except Fault:
            return None
        origin = self.binder.places.add(statement.span)
        return ir.Expect(
            metric=statement.metric,
            relation=statement.relation,  # type: ignore[arg-type]
            value=value,
            within=statement.within,
            origin=origin,
        )
