"""Text to tree; the only module that has heard of Lark.

`parse` never raises for what is in the text: it gives the tree, or the faults. Every statement that
cannot be read is reported once, and reading goes on behind it.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import lark
from lark import Lark, Token, Tree, UnexpectedInput
from lark.grammar import Rule
from lark.lexer import TerminalDef

from cnnspec import tree
from cnnspec.diagnostics import Diagnostic, Label, Report, Source, Span, did_you_mean
from cnnspec.limits import MAX_FILE_BYTES, MAX_INTEGER, MAX_LINE_LENGTH, MAX_NESTING, MAX_TERMS
from cnnspec.resources import resource

FUNCTIONS = ("min", "max", "ceil", "floor", "sqrt", "round_to")
TOP_WORDS = (
    "network input classes param block default init expect train use extends aux let require".split()
)
_OPTIONS: dict[str, Any] = {"parser": "lalr", "propagate_positions": True, "maybe_placeholders": True}
_MAX_REPORTED = 10


def parse(source: Source, report: Report) -> tree.File | None:
    """The tree of a source, or nothing when its text is at fault; the faults go to `report`."""
    if not _within_limits(source, report) or not _balanced(source, report):
        return None
    text, parsed = source.text, None
    for _ in range(_MAX_REPORTED):
        try:
            parsed = _parser().parse(text)
            break
        except UnexpectedInput as error:
            at = error.pos_in_stream if error.pos_in_stream is not None and error.pos_in_stream >= 0 else len(text)
            if isinstance(getattr(error, "token", None), Token) and error.token.type == "$END":  # type: ignore[attr-defined]
                at = len(text.rstrip())
            report.add(_explain(source, text, error, at))
            blanked = _blank_statement(text, at)
            if blanked == text:
                return None
            text = blanked
    if report.failed or parsed is None:
        return None
    file = _Builder(source, report).file(parsed)
    return None if report.failed else file


# --- before the parser: limits and braces --------------------------------------------------------


def _within_limits(source: Source, report: Report) -> bool:
    if len(source.text.encode("utf-8", "replace")) > MAX_FILE_BYTES:
        report.add(
            Diagnostic(
                "E0405",
                f"the file is larger than the limit of {MAX_FILE_BYTES // 1024} KiB",
                file=source.name,
                help="use `repeat`, `each`, and blocks instead of writing every layer out",
            )
        )
        return False
    offset = 0
    for line in source.text.split("\n"):
        if len(line) > MAX_LINE_LENGTH:
            report.add(
                Diagnostic(
                    "E0405",
                    f"the line is longer than the limit of {MAX_LINE_LENGTH} characters",
                    Span(source, offset, offset + 1),
                    help="break the line in front of a `|`",
                )
            )
            return False
        offset += len(line) + 1
    return True


_MARKS = re.compile(r'#[^\n]*|"[^"\n]*"|"[^\n]*|[{}()\[\]]')
_CLOSING = {"}": "{", ")": "(", "]": "["}


def _balanced(source: Source, report: Report) -> bool:
    """Whether every brace, parenthesis and bracket is closed, every string ends, and nesting is sane."""
    open_marks: list[tuple[str, int]] = []
    for match in _MARKS.finditer(source.text):
        mark, at = match.group(), match.start()
        span = Span(source, at, at + 1)
        if mark[0] == "#" or (mark[0] == '"' and len(mark) > 1 and mark[-1] == '"'):
            continue
        if mark[0] == '"':
            report.add(Diagnostic("E0103", "the string has no closing quote", span, help='end it with `"` on the same line'))
            return False
        if mark in "{([":
            open_marks.append((mark, at))
            if len(open_marks) > MAX_NESTING:
                report.add(
                    Diagnostic(
                        "E0405",
                        f"nested deeper than the limit of {MAX_NESTING}",
                        span,
                        help="name the inner part as a `block`",
                    )
                )
                return False
        elif open_marks and open_marks[-1][0] == _CLOSING[mark]:
            open_marks.pop()
        elif open_marks:
            opened, where = open_marks[-1]
            report.add(
                Diagnostic(
                    "E0102",
                    f"`{opened}` is closed by `{mark}`",
                    span,
                    labels=(Label(Span(source, where, where + 1), "opened here"),),
                    help=f"close it with `{next(c for c, o in _CLOSING.items() if o == opened)}` first",
                )
            )
            return False
        else:
            report.add(Diagnostic("E0102", f"`{mark}` closes nothing", span, help=f"remove it, or open it with `{_CLOSING[mark]}`"))
            return False
    if open_marks:
        opened, where = open_marks[-1]
        closing = next(c for c, o in _CLOSING.items() if o == opened)
        report.add(
            Diagnostic(
                "E0102",
                f"`{opened}` is never closed",
                Span(source, where, where + 1),
                "opened here",
                labels=(Label(source.end, "the text ends here"),),
                help=f"add `{closing}`",
            )
        )
        return False
    return True


# --- what a syntax error means -------------------------------------------------------------------

_WORDS = {
    "_NEWLINE": "the end of the line",
    "SEMICOLON": "`;`",
    "$END": "the end of the file",
    "NAME": "a name",
    "INT": "a number",
    "FLOAT": "a number",
    "SIZE": "a size like `3x3`",
    "VOLUME": "a size like `3x32x32`",
    "STRING": "a string in quotes",
    "LABEL": "a label",
    "REFERENCE": "a reference like `@stage1`",
    "PERCENT": "a percentage like `1%`",
    "RELATION": "one of `<=`, `>=`, `<`, `>`",
    "EQUAL": "`=`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "VBAR": "`|`",
    "_THEN": "`then`",
    "_ELSE": "`else`",
    "_FROM": "`from`",
}


def _explain(source: Source, text: str, error: UnexpectedInput, at: int) -> Diagnostic:
    """A syntax error in the words of the language."""
    found = re.compile(r"\n|[A-Za-z0-9_]+|[^\sA-Za-z0-9_]|$").search(text, at)
    assert found is not None
    word = found.group()
    start = found.start()
    line_end = start >= len(text.rstrip()) or word in ("", "\n")
    span = Span(source, start, start if line_end else found.end())
    expected = set(getattr(error, "expected", None) or getattr(error, "allowed", None) or ())
    before = text[text.rfind("\n", 0, at) + 1 : at]
    rest = text[at : (text + "\n").index("\n", at)]
    what = "the line ends too early" if line_end else f"`{word}` cannot stand here"
    code, help = "E0101", None
    if not line_end and ord(word[0]) > 126:
        code, what = "E0103", f"the character `{word[0]}` is not part of the language"
        span = Span(source, start, start + 1)
        help = "outside comments and strings a spec is plain ASCII"
    elif re.match(r"x[0-9]+$", word):
        code, what = "E0106", f"the repeat `{word}` does not stand right after the name"
        call = re.search(r"([A-Za-z_][A-Za-z0-9_]*)[^|{};]*$", before)
        help = f"write `{call.group(1)} {word} ...`" if call else "put it right after the name it repeats"
    elif re.match(r"[0-9]+(\.[0-9]+)?[A-Za-z_]", rest) and not line_end:
        token = re.match(r"[0-9][0-9A-Za-z_.]*", rest)
        assert token is not None
        span = Span(source, at, at + token.end())
        code, what = "E0103", f"`{token.group()}` is neither a number nor a size"
        help = "a number is `3`, `0.1` or `1e-4`, a size is `3x5` (height x width); a name starts with a letter"
    elif word == "," and re.search(r"\(\s*[^()]*$", before):
        help = "arguments are separated by spaces: `conv 3x3 c=16`"
    elif word == "," and "COMMA" not in expected:
        help = "arguments are separated by spaces, list items in `[...]` by commas"
    elif word == "(" and re.search(r"[A-Za-z0-9_]\s*$", before):
        help = "a call is a name and its arguments, separated by spaces: `conv 3x3 c=16`"
    elif word == ":" and re.search(r"[A-Za-z0-9_]\s*$", before):
        help = "a label stands at the head of a statement; an argument is written `name=value`"
    elif word == "=" and re.match(r"\s*[A-Za-z_][A-Za-z0-9_]*\s*$", before):
        help = f"a value is named with `let {before.strip()} = ...`"
    elif word == "-" or (word == "." and text[at - 1 : at].isdigit()):
        help = "a number needs digits on both sides of its point, a range is `0.8..1.0`"
    elif word == "|" and not before.strip():
        help = "a pipeline needs an element in front of its first `|`"
    elif expected and len(expected) <= 4:
        help = "expected " + " or ".join(sorted({_WORDS.get(name, f"`{name.strip('_').lower()}`") for name in expected}))
    else:
        first = re.match(r"\s*([A-Za-z_]+)", before)
        near = did_you_mean(first.group(1), TOP_WORDS) if first and first.group(1) not in TOP_WORDS else None
        help = near or "a statement ends with its line; elements are joined by `|`"
    return Diagnostic(code, what, span, help=help)


def _blank_statement(text: str, at: int) -> str:
    """The text with the line of an error blanked, braces kept, so that what follows can be read."""
    start = text.rfind("\n", 0, min(at, len(text))) + 1
    end = (text + "\n").index("\n", start)
    blank = re.sub(r"[^{}]", " ", text[start:end])
    if blank == text[start:end] and start > 0:
        return _blank_statement(text, start - 1)
    return text[:start] + blank + text[end:]


# --- the parser ----------------------------------------------------------------------------------


def _integer_keys(data: dict[str, Any]) -> dict[int, Any]:
    """A table of JSON with the integer keys that it was made of."""
    return {int(key): value for key, value in data.items()}


def _grammar_key(grammar: str) -> str:
    return f"lark {lark.__version__} {hashlib.sha256(grammar.encode()).hexdigest()}"


def compile_tables() -> str:
    """The parse tables of the grammar as JSON, which load in a tenth of the time that making them takes."""
    grammar = resource("grammar", "cnn.lark").read_text("utf-8")
    data, memo = Lark(grammar, **_OPTIONS).memo_serialize([TerminalDef, Rule])  # type: ignore[no-untyped-call]
    return json.dumps({"key": _grammar_key(grammar), "data": data, "memo": memo}, separators=(",", ":")) + "\n"


@lru_cache(maxsize=1)
def _parser() -> Lark:
    grammar = resource("grammar", "cnn.lark").read_text("utf-8")
    path: Path = resource("grammar", "cnn.tables.json")
    if path.exists():
        tables = json.loads(path.read_text("utf-8"))
        if tables.get("key") == _grammar_key(grammar):
            automaton = tables["data"]["parser"]["parser"]
            automaton["tokens"] = _integer_keys(automaton["tokens"])
            automaton["states"] = {state: _integer_keys(row) for state, row in _integer_keys(automaton["states"]).items()}
            return Lark._load_from_dict(tables["data"], _integer_keys(tables["memo"]))  # type: ignore
    return Lark(grammar, **_OPTIONS)


# --- from Lark's tree to ours --------------------------------------------------------------------


class _Builder:
    """Walks Lark's tree once; the methods are named as the rules of the grammar."""

    def __init__(self, source: Source, report: Report) -> None:
        self.source = source
        self.report = report
        self.depth = 0

    def file(self, parsed: Tree[Token]) -> tree.File:
        statements = tuple(self.build(child) for child in parsed.children)
        return tree.File(Span(self.source, 0, len(self.source.text)), self.source, statements, self.comments())

    def comments(self) -> tuple[tree.Comment, ...]:
        found: list[tree.Comment] = []
        text = self.source.text
        for match in _MARKS.finditer(text):
            if match.group()[0] == "#":
                own = not text[text.rfind("\n", 0, match.start()) + 1 : match.start()].strip()
                found.append(tree.Comment(self.at(match.start(), match.end()), match.group().rstrip(), own))
        return tuple(found)

    def at(self, start: int, end: int) -> Span:
        return Span(self.source, start, end)

    def token(self, token: Token) -> Span:
        start = token.start_pos or 0
        return Span(self.source, start, start + len(token))

    def span(self, node: Tree[Token]) -> Span:
        return Span(self.source, node.meta.start_pos, node.meta.end_pos)

    def build(self, node: Any) -> Any:
        self.depth += 1
        if self.depth > 4 * MAX_TERMS:
            if not self.report.failed:
                self.too_deep(self.span(node))
            result: Any = tree.Number(self.span(node), 0, "0")
        else:
            result = getattr(self, node.data)(node)
        self.depth -= 1
        return result

    def too_deep(self, span: Span) -> None:
        self.report.add(
            Diagnostic(
                "E0405",
                f"the expression has more than the limit of {MAX_TERMS} terms",
                span,
                help="name its parts with `let`",
            )
        )

    def integer(self, token: Token | str, span: Span) -> int:
        if len(token) > 18 or int(token) > MAX_INTEGER:
            self.report.add(
                Diagnostic("E0405", f"the integer is larger than the limit of {MAX_INTEGER}", span, help="write a smaller number")
            )
            return 1
        return int(token)

    # the top of a file

    def network(self, node: Any) -> tree.Network:
        return tree.Network(self.span(node), str(node.children[0]))

    def input(self, node: Any) -> tree.Input:
        span = self.token(node.children[0])
        c, h, w = (self.integer(part, span) for part in node.children[0].split("x"))
        return tree.Input(span, c, h, w)

    def classes(self, node: Any) -> tree.Classes:
        return tree.Classes(self.span(node), self.build(node.children[0]))

    def param(self, node: Any) -> tree.Param:
        name, value = node.children
        return tree.Param(self.span(node), str(name), self.build(value), self.token(name))

    def block(self, node: Any) -> tree.Block:
        name, parameters, body = node.children
        built = tuple(self.build(child) for child in parameters.children)
        return tree.Block(self.span(node), str(name), built, self.statements(body), self.token(name))

    def parameter(self, node: Any) -> tree.BlockParameter:
        once, name, type_, default = node.children
        value = self.build(default.children[0]) if default is not None else None
        return tree.BlockParameter(self.span(node), str(name), str(type_) if type_ else None, value, once is not None)

    def default(self, node: Any) -> tree.Default:
        return tree.Default(self.span(node), self.build(node.children[0]))

    def init(self, node: Any) -> tree.Init:
        target, scheme = node.children
        return tree.Init(self.span(node), str(target), self.build(scheme), self.token(target))

    def expect(self, node: Any) -> tree.Expect:
        metric, relation, value, within = node.children
        fraction = float(within.rstrip("% \t")) / 100 if within else None
        relation = "==" if relation == "=" else str(relation)
        return tree.Expect(self.span(node), str(metric), relation, self.build(value), fraction)

    def figure(self, node: Any) -> tree.Figure:
        text = str(node.children[0])
        scale = {"k": 1e3, "M": 1e6, "G": 1e9}[text[-1]]
        return tree.Figure(self.span(node), float(text[:-1]) * scale, text)

    def train(self, node: Any) -> tree.Train:
        return tree.Train(self.span(node), tuple(self.build(child) for child in node.children))

    def entry(self, node: Any) -> tree.Entry:
        calls = [self.build(child) for child in node.children]
        head, rest = calls[0], calls[1:]
        first = head.args[0] if head.args else None
        if first and first.name is None and isinstance(first.value, tree.Name):
            span = Span(self.source, first.span.start, head.span.end)
            calls = [tree.Call(span, first.value.name, head.repeat, head.args[1:], first.value.span), *rest]
        else:
            calls = [tree.Call(head.span, "", head.repeat, head.args, head.callee_span), *rest]
        return tree.Entry(self.span(node), head.callee, tuple(calls))

    def use(self, node: Any) -> tree.Use:
        *names, path = node.children
        used = tuple(tree.Name(self.token(name), str(name)) for name in names)
        return tree.Use(self.span(node), used, str(path)[1:-1], self.token(path))

    def extends(self, node: Any) -> tree.Extends:
        target, *args = node.children
        quoted = target.type == "STRING"
        name = str(target)[1:-1] if quoted else str(target)
        return tree.Extends(self.span(node), name, quoted, tuple(self.build(arg) for arg in args), self.token(target))

    def aux(self, node: Any) -> tree.Aux:
        name, reference, *args, body = node.children
        built = tuple(self.build(arg) for arg in args)
        return tree.Aux(self.span(node), str(name), self.build(reference), built, self.statements(body))

    # statements and elements

    def statements(self, node: Any) -> tuple[tree.Statement, ...]:
        return tuple(self.build(child) for child in node.children)

    def label(self, token: Token | None) -> tree.LabelName | None:
        if token is None:
            return None
        name = token.rstrip(": \t")
        start = token.start_pos or 0
        return tree.LabelName(self.at(start, start + len(name)), name, word=token.type == "WORD")

    def flow(self, node: Any) -> tree.Flow:
        label, *rest, condition = node.children
        elements: list[tree.Element] = []
        for child in rest:
            if child.data == "piped":
                wrong, child = child.children
                if wrong is not None:
                    span = self.label(wrong).span  # type: ignore[union-attr]
                    self.report.add(
                        Diagnostic(
                            "E0104",
                            f"the label `{wrong.rstrip(': ')}` stands behind a `|`",
                            span,
                            help="put the element on a line of its own: a label names a whole statement",
                        )
                    )
            elements.append(self.build(child))
        when = self.build(condition.children[0]) if condition is not None else None
        return tree.Flow(self.span(node), self.label(label), tuple(elements), when)

    def let(self, node: Any) -> tree.Let:
        name, value = node.children
        return tree.Let(self.span(node), str(name), self.build(value), self.token(name))

    def require(self, node: Any) -> tree.Require:
        condition, message = node.children
        return tree.Require(self.span(node), self.build(condition), str(message)[1:-1] if message else None)

    def call(self, node: Any) -> tree.Call:
        name, repeat, *args = node.children
        count = self.integer(repeat[1:], self.token(repeat)) if repeat is not None else None
        built = tuple(self.build(arg) for arg in args)
        return tree.Call(self.span(node), str(name), count, built, self.token(name))

    def keyword(self, node: Any) -> tree.Argument:
        name, value = node.children
        return tree.Argument(self.span(node), str(name), self.build(value))

    def positional(self, node: Any) -> tree.Argument:
        return tree.Argument(self.span(node), None, self.build(node.children[0]))

    def body(self, node: Any) -> tree.Braces:
        return tree.Braces(self.span(node), self.statements(node))

    def repeat(self, node: Any) -> tree.Repeat:
        count, variable, body = node.children
        return tree.Repeat(self.span(node), self.build(count), str(variable) if variable else None, self.statements(body))

    def join(self, node: Any) -> tree.Join:
        kind, body = node.children
        return tree.Join(self.token(kind), str(kind), self.statements(body))  # type: ignore[arg-type]

    def if_(self, node: Any) -> tree.If:
        condition, then, otherwise = node.children
        other = self.statements(otherwise) if otherwise is not None else None
        return tree.If(self.span(node), self.build(condition), self.statements(then), other)

    def each(self, node: Any) -> tree.Each:
        name, *rest = node.children
        columns = tuple(tree.Name(self.token(item), str(item)) for item in rest if isinstance(item, Token))
        args = tuple(self.build(item) for item in rest if isinstance(item, Tree) and item.data != "row")
        rows = tuple(self.build(item) for item in rest if isinstance(item, Tree) and item.data == "row")
        return tree.Each(self.span(node), str(name), columns, args, rows, self.token(name))

    def row(self, node: Any) -> tree.Row:
        label, *cells = node.children
        built = self.label(label)
        return tree.Row(self.span(node), built.name if built else None, tuple(self.build(cell) for cell in cells))

    def reference(self, node: Any) -> tree.Reference:
        return tree.Reference(self.span(node), str(node.children[0])[1:])

    def in_(self, node: Any) -> tree.In:
        return tree.In(self.span(node))

    def nothing(self, node: Any) -> tree.Nothing:
        return tree.Nothing(self.span(node))

    # expressions

    def choice(self, node: Any) -> tree.Choice:
        condition, then, otherwise = node.children
        return tree.Choice(self.span(node), self.build(condition), self.build(then), self.build(otherwise))

    def interval(self, node: Any) -> tree.Interval:
        return tree.Interval(self.span(node), self.build(node.children[0]), self.build(node.children[1]))

    def chain(self, node: Any, operator: str | None = None) -> tree.Expr:
        """`a + b - c` as (a + b) - c; with `operator`, the children are operands alone."""
        children = node.children
        step = 2 if operator is None else 1
        if len(children) > step * MAX_TERMS:
            self.too_deep(self.span(node))
            return tree.Number(self.span(node), 0, "0")
        left: tree.Expr = self.build(children[0])
        for i in range(1, len(children), step):
            right = self.build(children[i + step - 1])
            left = tree.Binary(left.span.to(right.span), operator or str(children[i]), left, right)
        return left

    def or_(self, node: Any) -> tree.Expr:
        return self.chain(node, "or")

    def and_(self, node: Any) -> tree.Expr:
        return self.chain(node, "and")

    comparison = sum = product = chain

    def not_(self, node: Any) -> tree.Unary:
        return tree.Unary(self.span(node), "not", self.build(node.children[0]))

    def negative(self, node: Any) -> tree.Unary:
        return tree.Unary(self.span(node), "-", self.build(node.children[1]))

    def number(self, node: Any) -> tree.Number:
        token = node.children[0]
        span = self.span(node)
        value = self.integer(token, span) if token.type == "INT" else float(token)
        return tree.Number(span, value, str(token))

    def size(self, node: Any) -> tree.SizeLiteral:
        span = self.span(node)
        height, width = (self.integer(part, span) for part in node.children[0].split("x"))
        return tree.SizeLiteral(span, height, width)

    def text(self, node: Any) -> tree.Text:
        return tree.Text(self.span(node), str(node.children[0])[1:-1])

    def true(self, node: Any) -> tree.Bool:
        return tree.Bool(self.span(node), True)

    def false(self, node: Any) -> tree.Bool:
        return tree.Bool(self.span(node), False)

    def name(self, node: Any) -> tree.Name:
        return tree.Name(self.span(node), str(node.children[0]))

    def dim(self, node: Any) -> tree.Dim:
        span = self.span(node)
        axis = str(node.children[0])[3:]
        if axis not in ("c", "h", "w"):
            self.report.add(
                Diagnostic("E0207", f"a tensor has no `{axis}`", span, help="write `in.c` (channels), `in.h` (height) or `in.w` (width)")
            )
        return tree.Dim(span, axis)

    def function(self, node: Any) -> tree.FunctionCall:
        name, *args = node.children
        if name not in FUNCTIONS:
            self.report.add(
                Diagnostic(
                    "E0207",
                    f"there is no function `{name}`",
                    self.token(name),
                    help=did_you_mean(name, FUNCTIONS) or f"the functions are {', '.join(FUNCTIONS)}; a call of an operator takes no parentheses",
                )
            )
        return tree.FunctionCall(self.span(node), str(name), tuple(self.build(arg) for arg in args))

    def list(self, node: Any) -> tree.ListLiteral:
        return tree.ListLiteral(self.span(node), tuple(self.build(item) for item in node.children))

    def group(self, node: Any) -> tree.Group:
        return tree.Group(self.span(node), self.build(node.children[0]))


# rules that are spelt like Python's keywords
for _rule in ("if", "in", "or", "and", "not"):
    setattr(_Builder, _rule, getattr(_Builder, f"{_rule}_"))


if __name__ == "__main__":
    resource("grammar", "cnn.tables.json").write_text(compile_tables(), "utf-8")
