"""Build the syntax tree from Lark's tree."""

from __future__ import annotations

import re
from collections.abc import Collection
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from cnnspec.diagnostics import Diagnostic, Edit, Fix, Reporter, Source, Span, respell
from cnnspec.diagnostics.suggestions import no_settings
from cnnspec.limits import MAX_LITERAL, MAX_TERMS
from cnnspec.ops import FOREIGN_NAMES, OPS, foreign_choice, translation
from cnnspec.ops.examples import example_call
from cnnspec.recipe import CHOICES
from cnnspec.syntax import ast
from cnnspec.syntax.keywords import FUNCTIONS, SCHEMES
from cnnspec.syntax.parser import Parsed, ParseFailure, parse_text
from cnnspec.syntax.prescan import MARKS
from cnnspec.syntax.recovery import in_train

if TYPE_CHECKING:
    from cnnspec.syntax.parser import Token

OPERATORS = {"OR": 1, "AND": 2, "RELATION": 4, "PLUS": 5, "MINUS": 5, "FACTOR": 6}
"""Precedence of the binary operators."""
PREFIXES = {"NOT": 3, "MINUS": 7}
_FOREIGN_FUNCTIONS = {"int": "floor", "trunc": "floor", "maximum": "max", "minimum": "min"}
"""Functions of other languages."""
_OPERANDS = {
    "INT": "number",
    "FLOAT": "number",
    "SIZE": "size",
    "STRING": "text",
    "TRUE": "truth",
    "FALSE": "truth",
    "NAME": "name",
    "DIM": "dim",
    "FIGURE": "figure",
    "REFERENCE": "reference",
    "IN": "in_",
    "NOTHING": "nothing",
}


class Builder:
    """A single walk over Lark's tree; each method builds the rule of the grammar that it is named after."""

    def __init__(self, source: Source, reporter: Reporter, marks: Collection[int] = ()) -> None:
        self.source = source
        self.reporter = reporter
        self.marks = marks
        self.depth = 0
        self.broken = False
        self.misplaced: Diagnostic | None = None

    def file(self, parsed: Parsed, *, broken: bool) -> ast.File:
        statements = tuple(self.build(child) for child in parsed.children)
        span = Span(self.source, 0, len(self.source.text))
        return ast.File(span, self.source, statements, self.comments(), broken or self.broken)

    def missing(self, token: Token) -> bool:
        """Check that a word marks a statement that was removed."""
        return token.start_pos in self.marks

    def reject(self, diagnostic: Diagnostic, span: Span) -> ast.Broken:
        self.reporter.add(diagnostic)
        self.broken = True
        return ast.Broken(span)

    def comments(self) -> tuple[ast.Comment, ...]:
        found: list[ast.Comment] = []
        text = self.source.text
        for match in MARKS.finditer(text):
            if match.group()[0] == "#":
                own = not text[text.rfind("\n", 0, match.start()) + 1 : match.start()].strip()
                found.append(ast.Comment(self.at(match.start(), match.end()), match.group().rstrip(), own))
        return tuple(found)

    def at(self, start: int, end: int) -> Span:
        return Span(self.source, start, end)

    def token(self, token: Token) -> Span:
        return Span(self.source, token.start_pos, token.end_pos)

    def span(self, node: Parsed) -> Span:
        return Span(self.source, node.start_pos, node.end_pos)

    def build(self, node: Any) -> Any:
        if not isinstance(node, Parsed):
            return getattr(self, _OPERANDS[node.type])(node, self.token(node))
        self.depth += 1
        if self.depth > 2 * MAX_TERMS:
            if not self.reporter.failed:
                self.too_deep(self.span(node))
            result: Any = ast.Number(self.span(node), 0, "0")
        else:
            result = getattr(self, node.data)(node)
        self.depth -= 1
        return result

    def too_deep(self, span: Span) -> None:
        self.reporter.add(
            Diagnostic(
                "E0405",
                f"the expression exceeds the limit of {MAX_TERMS} operands",
                span,
                help="define parts of it with `let`",
            )
        )

    def integer(self, token: Token | str, span: Span) -> int:
        if len(token) > 18 or int(token) > MAX_LITERAL:
            self.reporter.add(
                Diagnostic(
                    "E0405",
                    f"the integer exceeds the limit of {MAX_LITERAL:,}",
                    span,
                    help="write a smaller number",
                )
            )
            return 1
        return int(token)

    def real(self, token: Token, span: Span) -> float:
        value = float(token)
        lost = value == 0 and re.match("[0.]*[1-9]", token)
        if lost or value > MAX_LITERAL:
            message, help = f"the number exceeds the limit of {MAX_LITERAL:,}", "write a smaller number"
            if lost:
                message, help = "the number is too small and rounds to 0", "write `0.0` or a larger number"
            self.reporter.add(Diagnostic("E0405", message, span, help=help))
            return 1.0
        return value

    # the top of a file

    def network(self, node: Any) -> ast.Network:
        return ast.Network(self.span(node), str(node.children[1]))

    def input(self, node: Any) -> ast.Input:
        _, name, volume = node.children
        span = self.token(volume)
        c, h, w = (self.integer(part, span) for part in volume.split("x"))
        return ast.Input(span, c, h, w, str(name) if name else None, self.token(name) if name else None)

    def classes(self, node: Any) -> ast.Classes:
        return ast.Classes(self.span(node), self.build(node.children[1]))

    def param(self, node: Any) -> ast.Param:
        _, name, value = node.children
        return ast.Param(self.span(node), str(name), self.build(value), self.token(name))

    def block(self, node: Any) -> ast.Block:
        _, name, parameters, body = node.children
        built = tuple(self.build(child) for child in parameters.children)
        return ast.Block(self.span(node), str(name), built, self.statements(body), self.token(name))

    def parameter(self, node: Any) -> ast.BlockParameter:
        once, name, type_, default = node.children
        value = self.build(default) if default is not None else None
        return ast.BlockParameter(self.span(node), str(name), str(type_) if type_ else None, value, once is not None)

    def default(self, node: Any) -> ast.Default | ast.Flow:
        call = self.build(node.children[1])
        return self.unread(node, call) if isinstance(call, ast.Broken) else ast.Default(self.span(node), call)

    def init(self, node: Any) -> ast.Init | ast.Flow:
        target, call = node.children[1], self.build(node.children[2])
        if isinstance(call, ast.Broken):
            return self.unread(node, call)
        return ast.Init(self.span(node), str(target), call, self.token(target))

    def unread(self, node: Any, call: ast.Broken) -> ast.Flow:
        """Build a statement with a call that cannot be read."""
        return ast.Flow(self.span(node), None, (call,), None)

    def expect(self, node: Any) -> ast.Expect:
        _, metric, relation, value, within = node.children
        fraction = float(within.rstrip("% \t")) / 100 if within else None
        relation = "==" if relation == "=" else str(relation)
        return ast.Expect(self.span(node), str(metric), relation, self.build(value), fraction, self.token(metric))

    def figure(self, token: Token, span: Span) -> ast.Figure:
        text = str(token)
        exact = Fraction(text[:-1]) * ast.POWERS[text[-1]]
        return ast.Figure(span, exact.numerator if exact.denominator == 1 else float(exact), text)

    def train(self, node: Any) -> ast.Train:
        entries = [child for child in node.children[1:-1] if not self.missing(child.children[0].children[0])]
        return ast.Train(self.span(node), tuple(self.build(child) for child in entries))

    def entry(self, node: Any) -> ast.Entry:
        calls = [self.build(child) for child in node.children]
        head, rest = calls[0], [call for call in calls[1:] if not isinstance(call, ast.Broken)]
        first = head.args[0] if head.args else None
        if first and first.name is None and isinstance(first.value, ast.Name):
            span = Span(self.source, first.span.start, head.span.end)
            calls = [ast.Call(span, first.value.name, head.repeat, head.args[1:], first.value.span), *rest]
        else:
            calls = [ast.Call(head.span, "", head.repeat, head.args, head.callee_span), *rest]
        return ast.Entry(self.span(node), head.callee, tuple(calls))

    def use(self, node: Any) -> ast.Use:
        _, *names, path = node.children
        used = tuple(ast.Name(self.token(name), str(name)) for name in names)
        return ast.Use(self.span(node), used, str(path)[1:-1], self.token(path))

    def extends(self, node: Any) -> ast.Extends:
        _, target, *args = node.children
        quoted = target.type == "STRING"
        name = str(target)[1:-1] if quoted else str(target)
        return ast.Extends(self.span(node), name, quoted, tuple(self.argument(arg) for arg in args), self.token(target))

    def aux(self, node: Any) -> ast.Aux:
        _, name, reference, *args, body = node.children
        built = tuple(self.argument(arg) for arg in args)
        return ast.Aux(self.span(node), str(name), self.build(reference), built, self.statements(body))

    def output(self, node: Any) -> ast.Output:
        _, name, reference = node.children
        return ast.Output(self.span(node), str(name), self.build(reference), self.token(name))

    # statements and elements

    def statements(self, node: Any) -> tuple[ast.Statement, ...]:
        return tuple(self.build(child) for child in node.children[1:-1])

    def label(self, token: Token | None) -> ast.LabelName | None:
        if token is None:
            return None
        name = token.rstrip(": \t")
        start = token.start_pos
        return ast.LabelName(self.at(start, start + len(name)), name, word=token.type == "WORD")

    def flow(self, node: Any) -> ast.Flow:
        label, *rest, condition = node.children
        elements: list[ast.Element] = []
        for child in rest:
            if isinstance(child, Parsed) and child.data == "labeled":
                wrong, child = child.children
                span = self.label(wrong).span  # type: ignore[union-attr]
                message, note = f"unexpected label `{wrong.rstrip(': ')}` after `|`", "a label names a whole statement"
                fixes = self.own_line(span)
                help = fixes[0].help
                self.reject(Diagnostic("E0104", message, span, notes=(note,), help=help, fixes=fixes), span)
                self.reporter.unsure.add(wrong.rstrip(": \t"))
            elements.append(self.build(child))
        when = self.build(condition) if condition is not None else None
        return ast.Flow(self.span(node), self.label(label), tuple(elements), when)

    def own_line(self, label: Span) -> tuple[Fix, ...]:
        """Replace the `|` before a label by a line end and the same indentation."""
        text = self.source.text
        bar = text.rindex("|", 0, label.start)
        line = text.rfind("\n", 0, bar) + 1
        indent = text[line : line + len(text[line:bar]) - len(text[line:bar].lstrip())]
        end = len(text[:bar].rstrip())
        if "\n" in text[bar : label.start]:  # the end of the line before it
            return (Fix("remove the `|` at the end of the previous line", (Edit(self.at(end, bar + 1), ""),)),)
        return (Fix("write the labeled element on its own line", (Edit(self.at(end, label.start), f"\n{indent}"),)),)

    def let(self, node: Any) -> ast.Let:
        _, name, value = node.children
        return ast.Let(self.span(node), str(name), self.build(value), self.token(name))

    def require(self, node: Any) -> ast.Require:
        _, condition, message = node.children
        return ast.Require(self.span(node), self.build(condition), self.build(message) if message else None)

    def call(self, node: Any) -> ast.Call | ast.Broken:
        name, repeat, *args = node.children
        if self.missing(name):
            return ast.Broken(self.span(node))
        count = self.integer(repeat[1:], self.token(repeat)) if repeat is not None else None
        built = tuple(self.argument(arg) for arg in args)
        return ast.Call(self.span(node), str(name), count, built, self.token(name))

    def keyword(self, node: Any) -> ast.Argument:
        name, value = node.children
        return ast.Argument(self.span(node), str(name), self.build(value))

    def argument(self, node: Any) -> ast.Argument:
        value = self.build(node)
        return value if isinstance(value, ast.Argument) else ast.Argument(value.span, None, value)

    def body(self, node: Any) -> ast.Braces:
        return ast.Braces(self.span(node), self.statements(node))

    def repeat(self, node: Any) -> ast.Repeat:
        _, count, variable, body = node.children
        at = self.token(variable) if variable else self.span(node)
        name = str(variable) if variable else None
        return ast.Repeat(self.span(node), self.build(count), name, self.statements(body), at)

    def join(self, node: Any) -> ast.Join:
        kind, body = node.children
        return ast.Join(self.token(kind), str(kind), self.statements(body))  # type: ignore[arg-type]

    def if_(self, node: Any) -> ast.If:
        _, condition, then, otherwise = node.children
        other = self.statements(otherwise) if otherwise is not None else None
        return ast.If(self.span(node), self.build(condition), self.statements(then), other)

    def each(self, node: Any) -> ast.Each | ast.Broken:
        _, name, columns, *arguments, table = node.children
        names = tuple(ast.Name(self.token(item), str(item)) for item in columns.children)
        args = tuple(self.argument(item) for item in arguments)
        rows: tuple[ast.Row, ...] = tuple(self.build(row) for row in table.children[1:-1])
        if any(isinstance(cell, ast.Broken) for row in rows for cell in row.cells):
            return ast.Broken(self.span(node))
        return ast.Each(self.span(node), str(name), names, args, rows, self.token(name))

    def row(self, node: Any) -> ast.Row:
        label, *cells = node.children
        built = self.label(label)
        return ast.Row(self.span(node), built.name if built else None, tuple(self.build(cell) for cell in cells))

    def again(self, node: Any) -> ast.Again:
        return ast.Again(self.span(node), self.build(node.children[1]))

    def reference(self, token: Token, span: Span) -> ast.Reference:
        return ast.Reference(span, str(token)[1:])

    def in_(self, token: Token, span: Span) -> ast.In:
        return ast.In(span)

    def nothing(self, token: Token, span: Span) -> ast.Nothing:
        return ast.Nothing(span)

    # expressions

    def choice(self, node: Any) -> ast.Choice:
        _, condition, then, otherwise = node.children
        return ast.Choice(self.span(node), self.build(condition), self.build(then), self.build(otherwise))

    def interval(self, node: Any) -> ast.Interval:
        return ast.Interval(self.span(node), self.build(node.children[0]), self.build(node.children[1]))

    def terms(self, node: Any) -> ast.Expr:
        """Build an expression from a row of operands and operators."""
        parts = node.children
        deep = sum(not isinstance(part, Parsed) and (part.type in OPERATORS or part.type in PREFIXES) for part in parts)
        if deep >= MAX_TERMS:
            self.too_deep(self.span(node))
            return ast.Number(self.span(node), 0, "0")
        self.depth += deep
        misplaced, self.misplaced = self.misplaced, None
        result = self.bound(parts[::-1], 0)
        wrong, self.misplaced = self.misplaced, misplaced
        self.depth -= deep
        return self.reject(wrong, result.span) if wrong is not None else result

    def bound(self, rest: list[Any], least: int) -> ast.Expr:
        """Build an expression of operators with at least this precedence, from the end of `rest`."""
        part = rest.pop()
        if not isinstance(part, Parsed) and part.type in PREFIXES:
            strength = PREFIXES[part.type]
            inner = self.bound(rest, strength)
            if strength < least:
                help = f"put it in parentheses: `({part} {inner.span.text})`"
                self.refuse(part, f"unexpected `{part}` after an operator", help)
            operator = "-" if part.type == "MINUS" else "not"
            left: ast.Expr = ast.Unary(self.token(part).to(inner.span), operator, inner)
        else:
            left = self.build(part)
        while rest and OPERATORS[rest[-1].type] >= least:
            operator = rest.pop()
            strength = OPERATORS[operator.type]
            right = self.bound(rest, strength + 1)
            left = ast.Binary(left.span.to(right.span), str(operator), left, right)
            if operator.type == "RELATION" and rest and rest[-1].type == "RELATION":
                following = rest[-2] if len(rest) > 1 else None
                third = self.span(following).text if isinstance(following, Parsed) else str(following)
                help = (
                    f"combine two comparisons with `and`: `{left.span.text} and {right.span.text} {rest[-1]} {third}`"
                )
                self.refuse(rest[-1], "comparison operators cannot be chained", help)
        return left

    def refuse(self, token: Token, message: str, help: str) -> None:
        self.misplaced = self.misplaced or Diagnostic("E0101", message, self.token(token), help=help)

    def number(self, token: Token, span: Span) -> ast.Number:
        value = self.integer(token, span) if token.type == "INT" else self.real(token, span)
        return ast.Number(span, value, str(token))

    def size(self, token: Token, span: Span) -> ast.SizeLiteral:
        height, width = (self.integer(part, span) for part in token.split("x"))
        return ast.SizeLiteral(span, height, width)

    def text(self, token: Token, span: Span) -> ast.Text:
        text = str(token)[1:-1]
        holes = [match for match in ast.HOLE.finditer(text) if not ast.PLACEHOLDER.fullmatch(match.group())]
        return ast.Text(span, text, tuple(self.hole(span.start + 1 + match.start(1), match) for match in holes))

    def hole(self, start: int, match: re.Match[str]) -> ast.Expr:
        """Build the expression in braces in a string; what is not an expression stays as it is."""
        code, prefix = match.group(1), "let _="
        span = self.at(start - 1, start + len(code) + 1)
        if "#" not in code and start >= len(prefix):
            try:  # after blanks, so that the offsets are those in the file
                parsed = parse_text(" " * (start - len(prefix)) + prefix + code)
            except ParseFailure:
                return ast.Text(span, match.group())
            statement = parsed.children[0]
            if len(parsed.children) == 1 and statement.data == "let":
                return self.build(statement.children[2])
        return ast.Text(span, match.group())

    def truth(self, token: Token, span: Span) -> ast.Bool:
        return ast.Bool(span, token.type == "TRUE")

    def name(self, token: Token, span: Span) -> ast.Name | ast.Broken:
        return ast.Broken(span) if self.missing(token) else ast.Name(span, str(token))

    def dim(self, token: Token, span: Span) -> ast.Dim | ast.Broken:
        axis = str(token)[3:]
        if axis not in ("c", "h", "w"):
            help = "write `in.c` (channels), `in.h` (height) or `in.w` (width)"
            return self.reject(Diagnostic("E0207", f"a tensor has no dimension `{axis}`", span, help=help), span)
        return ast.Dim(span, axis)

    def function(self, node: Any) -> ast.FunctionCall | ast.Broken:
        name, *args, _ = node.children
        if name not in FUNCTIONS and name not in SCHEMES:
            return self.reject(self.unknown_function(node), self.span(node))
        return ast.FunctionCall(self.span(node), str(name), tuple(self.build(arg) for arg in args))

    def unknown_function(self, node: Any) -> Diagnostic:
        """Describe a call of a function that does not exist."""
        name, *args, _ = node.children
        token, whole, given = str(name), self.span(node), [self.build(arg).span.text for arg in args]
        rest, notes = whole.text[len(token) :], tuple[str, ...]()
        help, fixes = respell(self.token(name), token, FUNCTIONS)
        own = FOREIGN_NAMES.get(token, token)
        choice = next(filter(None, (foreign_choice(token, table) for table in CHOICES.values())), None)
        if choice is not None and in_train(whole.source.text, whole.start):
            written = " ".join((choice, *given))
            help = f"write a call without parentheses: `{written}`"
            fixes = (Fix(help, (Edit(whole, written),)),)
        elif replacement := _FOREIGN_FUNCTIONS.get(token):
            help = f"write `{replacement}{rest}`"
            fixes = (Fix(help, (Edit(self.token(name), replacement),)),)
        elif token == "round" and len(given) == 1:
            help = f"write `floor({given[0]} + 0.5)`"
            fixes = (Fix(help, (Edit(whole, help[7:-1]),)),)
        elif own in OPS and not OPS[own].required:
            help = no_settings(" ".join((own, *given)))
            fixes = (Fix(f"write `{own}`", (Edit(whole, own),)),)
        elif own in OPS:
            found = translation(token, given)
            help = found.help if found else f"write `{example_call(own, OPS[own].parameters.values())}`"
            notes = ("an operator cannot be called in an expression",)
            help, fixes = f"{help}, as an element without parentheses", ()
        help = help or f"choose from {', '.join(f'`{known}`' for known in FUNCTIONS)}"
        return Diagnostic("E0207", f"unknown function `{token}`", self.token(name), notes=notes, help=help, fixes=fixes)

    def index(self, node: Any) -> ast.Index:
        name, _, place, _ = node.children
        return ast.Index(self.span(node), ast.Name(self.token(name), str(name)), self.build(place))

    def list(self, node: Any) -> ast.ListLiteral:
        return ast.ListLiteral(self.span(node), tuple(self.build(item) for item in node.children[1:-1]))

    def group(self, node: Any) -> ast.Group:
        return ast.Group(self.span(node), self.build(node.children[1]))
