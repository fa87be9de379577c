"""The statements around a network: `init`, `expect`, `aux`, and the `train` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnnspec import ir, tree
from cnnspec.binding import Binder
from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Report, Span, respell
from cnnspec.expressions import ExprFault, UnknownShape, convert, evaluate, literal, show
from cnnspec.inits import INITS, allowed_inits
from cnnspec.names import Fault, Names
from cnnspec.ops import FOREIGN_NAMES, OPS
from cnnspec.recipe import AUGMENTATIONS, DATA_SETS, OPTIMIZERS, SCHEDULES, Recipe, Scalars, Setting
from cnnspec.remedies import fixes_of_value
from cnnspec.scopes import FileScope
from cnnspec.signatures import Declared, Parameter, Type, Word
from cnnspec.syntax import RESERVED

METRICS = ("params", "macs", "output", "depth")


class Sections:
    """Elaborates statements whose values are known without any shape.

    Attributes:
        binder: Binds their arguments.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.binder = Binder(report)

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
        self.report.add(Diagnostic(code, message, span, labels=labels, help=help, fixes=fixes))

    def names(self, scope: FileScope) -> Names:
        """What an expression of the top may name; a value that waits for the image has a name, too."""
        return Names(scope, {**scope.variables(), **dict.fromkeys(scope.pending)})

    def value(
        self, node: tree.Expr, scope: FileScope, type_: Type | None = None, name: str = "value", sign: str = "="
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
        except ExprFault as fault:
            span = self.binder.places[fault.origin] or self.binder.places[expr.origin]
            fixes = tuple(fixes_of_value(fault.help, span))
            help = fault.help and fault.help.replace(f"`{name}=", f"`{name}{sign}")
            self.report.add(Diagnostic(fault.code, str(fault), span, help=help, fixes=fixes))
            raise Fault from None

    def settings(self, call: tree.Call, kind: type[Declared], scope: FileScope) -> Setting:
        """A declared choice with its arguments.

        Raises:
            Fault: An argument is at fault.
        """
        bound = self.binder.bind(call.callee, call.args, kind.parameters, self.names(scope), call.callee_span)
        try:
            values = {n: self.resolve(expr, scope, kind.parameters[n].type, n) for n, expr in bound.items()}
        except UnknownShape:
            self.no_image(call.span)
            raise Fault from None
        return Setting.of(kind(**values))

    def choose(self, call: tree.Call, table: Mapping[str, type[Declared]], what: str, scope: FileScope) -> Setting:
        """One of a table of declared choices.

        Raises:
            Fault: There is no such choice, or an argument is at fault.
        """
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
        return literal(value).model_copy(update={"origin": expr.origin})

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

    def init(self, statement: tree.Init, scope: FileScope) -> ir.Init:
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
        low, high = scheme.args.get("low"), scheme.args.get("high")
        if isinstance(low, float) and isinstance(high, float) and low > high:
            span = statement.scheme.span
            self.fail("E0215", f"`low` is above `high`: {show(low)} and {show(high)}", span, help="exchange the two")
            raise Fault
        return ir.Init(target=statement.target, scheme=scheme, origin=self.binder.places.add(statement.span))

    def recipe(self, statement: tree.Train, scope: FileScope) -> Recipe:
        """The `train` section; every entry at fault is reported."""
        fields: dict[str, Any] = {}
        seen: dict[tuple[str, str], Span] = {}
        tables = {"data": DATA_SETS, "augment": AUGMENTATIONS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
        what = {"data": "data set", "augment": "augmentation"}
        for entry in statement.entries:
            word_span = Span(entry.span.source, entry.span.start, entry.span.start + len(entry.word))
            self.once(seen, "entry", entry.word, word_span)
            try:
                if entry.word in tables:
                    if len(entry.calls) > 1 and entry.word != "augment":
                        self.fail(
                            "E0205",
                            f"`{entry.word}` takes one choice",
                            entry.calls[1].span,
                            help="remove what stands behind the `|`",
                        )
                        continue
                    chosen = tuple(
                        self.choose(call, tables[entry.word], what.get(entry.word, entry.word), scope)
                        for call in entry.calls
                    )
                    fields[entry.word] = chosen if entry.word == "augment" else chosen[0]
                elif entry.word in Scalars.parameters:
                    fields[entry.word] = self.scalar(entry, scope)
                else:
                    known = [*tables, *Scalars.parameters]
                    help, fixes = respell(word_span, entry.word, known)
                    owners = [
                        name
                        for name, table in tables.items()
                        for kind in table.values()
                        if entry.word in kind.parameters
                    ]
                    if owners and not fixes:
                        help = f"it is an argument of the {owners[0]}: `{owners[0]} ... {entry.word}=...`"
                    help = help or f"there are {', '.join(f'`{n}`' for n in known)}"
                    message = f"unknown entry `{entry.word}` of the train section"
                    self.fail("E0201", message, word_span, help=help, fixes=fixes)
            except Fault:
                pass
        return Recipe(**fields, stated=tuple(fields))

    def scalar(self, entry: tree.Entry, scope: FileScope) -> Any:
        """An entry of one value, `epochs 180`.

        Raises:
            Fault: It has none, too many, or one of the wrong type.
        """
        call, parameter = entry.calls[0], Scalars.parameters[entry.word]
        values: list[tree.Expr] = [arg.value for arg in call.args if arg.name is None]
        if call.callee:
            values.insert(0, tree.Name(call.callee_span, call.callee))
        if len(values) != 1 or len(values) + len(entry.calls) - 1 != len(call.args) + bool(call.callee):
            self.fail(
                "E0203",
                f"`{entry.word}` takes one value: {parameter.type}",
                entry.span,
                help=f"write `{entry.word} {show(parameter.default) if parameter.default is not None else 5}`",
            )
            raise Fault
        try:
            value = self.value(values[0], scope, parameter.type, entry.word, " ")
        except UnknownShape:
            self.no_image(entry.span)
            raise Fault from None
        return str(value) if isinstance(value, Word) else value

    def aux(self, scope: FileScope, statement: tree.Aux) -> ir.Aux | None:
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

    def expect(self, scope: FileScope, statement: tree.Expect) -> ir.Expect | None:
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
            value = literal(self.resolve(value, scope)).model_copy(update={"origin": value.origin})
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
