"""Format a tree as canonical text, with its comments.

The tests verify three properties: the formatted text parses to an equal tree, formatting is idempotent, and the
comments are the same in the same order. The layout therefore depends only on the tree, on blank lines, and on which
braces are on one line, all of which are preserved.

- Indentation is four spaces, with one statement per line. There is at most one blank line between statements, and
  always one around blocks, `train` and `aux`. Braces that were written on one line stay on one line if they fit.
- A pipeline that is too long is broken before a `|`.
- Consecutive labels, `stem`/`stage`/`head`, the entries of `train`, and tables are aligned in columns.
- Operators have spaces around them, except in arguments, where a space ends the argument.
- A comment stays at the end of its line or on its own line; a comment inside a statement moves above it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

from cnnspec.syntax import ast

MAX_WIDTH = 100
INDENT = 4

_Piece = ast.Top | ast.Element | ast.Entry | ast.Row
_SECTIONS = (ast.Block, ast.Train, ast.Aux)
_MARKS = re.compile(r'#[^\n]*|"[^"\n]*"|[{}()\[\]]|, ')
_TOKENS = re.compile(r'#[^\n]*|"[^"\n]*"|[A-Za-z_]\w*|[0-9]\w*(?:\.\w+)*|[=<>!]=|//|\.\.|[^\s,;]', re.ASCII)
_LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")


def significant(text: str) -> tuple[list[str], list[str]]:
    """Return the tokens and the comments of a text, which formatting keeps.

    What the formatter may write in another way is left out or unified: separators, `=` for `==`, leading zeros, and the
    digits of a percentage.
    """
    tokens: list[str] = []
    comments: list[str] = []
    for token in _TOKENS.findall(text):
        if token[0] == "#":
            comments.append(token.rstrip())
        elif tokens and tokens[-1] == "within" and re.fullmatch(r"[0-9]+(\.[0-9]+)?", token):
            tokens.append(repr(float(token) / 100))
        elif token[0].isdigit() or re.fullmatch("x[0-9]+", token):
            tokens.append(_LEADING_ZEROS.sub("", token))
        else:
            tokens.append("=" if token == "==" else token)
    return tokens, comments


def format_file(file: ast.File) -> str:
    """Return the canonical text of a tree; an empty file stays empty.

    >>> from cnnspec.diagnostics import Report, Source
    >>> from cnnspec.syntax import parse
    >>> file = parse(Source("tiny", "net:conv   3x3 c = 2*k|bn;head linear(10)   # ten"), Report())
    >>> print(format_file(file), end="")
    net: conv 3x3 c=2*k | bn
    head linear (10)  # ten
    """
    lines = _Printer(file).body(file.statements, len(file.source.text) + 1, 0)
    return "".join(f"{text}\n" for line in lines for text in line.render())


# --- lines ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Line:
    """A line: code, a comment, or both; without either it is blank."""

    indent: int
    code: str = ""
    comment: str = ""

    def fits(self, more: str = "") -> bool:
        return self.indent + len(self.code) + len(more) <= MAX_WIDTH

    def take(self, comment: ast.Comment) -> bool:
        """Append a comment that followed code to this line; return False if that is not possible."""
        if comment.own_line or self.comment or not self.code:
            return False
        self.comment = comment.text
        return True

    def render(self) -> list[str]:
        """Return the text; code that is too long is broken after commas in parentheses and brackets."""
        parts = [self.code] if self.fits() else _break(self.code, MAX_WIDTH - self.indent)
        if self.comment:
            parts[-1] += f"  {self.comment}" if parts[-1] else self.comment
        return [" " * (self.indent + (2 * INDENT if i else 0)) + part if part else "" for i, part in enumerate(parts)]


def _break(code: str, width: int) -> list[str]:
    """Break code into lines of a width; all but the first are shorter, because they are indented."""
    places, depth, parts = [0], 0, [""]
    for match in _MARKS.finditer(code):
        depth += (match.group() in "([") - (match.group() in ")]")
        if match.group() == ", " and depth > 0:
            places.append(match.end())
    for start, end in pairwise([*places, len(code)]):
        if parts[-1] and len(parts[-1]) + end - start > width - (2 * INDENT if len(parts) > 1 else 0):
            parts.append("")
        parts[-1] += code[start:end]
    return [part.rstrip() for part in parts]


@dataclass(slots=True)
class _Item:
    """A statement or an own-line comment with its lines; `blank` asks for a blank line before it."""

    lines: list[_Line]
    blank: bool
    piece: _Piece | None = None

    @property
    def label(self) -> str:
        """The label to align; empty if there is none or the statement has several lines."""
        if isinstance(self.piece, ast.Flow) and not _word(self.piece) and len(self.lines) == 1:
            return _ends(self.piece)[0].rstrip()
        return ""


def _align_labels(items: Sequence[_Item]) -> None:
    """Align the elements of consecutive labeled statements."""
    run: list[_Item] = []
    for item in [*items, _Item([], False)]:
        if run and (item.blank or not item.label):
            width = max(len(one.label) for one in run)
            if all(one.lines[0].fits(" " * (width - len(one.label))) for one in run):
                for one in run:
                    one.lines[0].code = one.label.ljust(width) + one.lines[0].code[len(one.label) :]
            run = []
        if item.label:
            run.append(item)


def _separate(items: Sequence[_Item]) -> None:
    """Put blank lines around blocks and sections, before the comments that introduce them."""
    for i, item in enumerate(items):
        if i and isinstance(items[i - 1].piece, _SECTIONS):
            item.blank = True
        if isinstance(item.piece, _SECTIONS):
            while i and not items[i].blank and items[i - 1].piece is None:
                i -= 1
            items[i].blank = True


# --- text without layout -------------------------------------------------------------------------

_LOOSE = frozenset({"and", "or", "==", "!=", "<", "<=", ">", ">="})
_EXPRESSIONS: dict[type[Any], Callable[[Any, bool], str]] = {
    ast.Number: lambda node, tight: node.text,
    ast.Figure: lambda node, tight: node.text,
    ast.Bool: lambda node, tight: str(node.value).lower(),
    ast.Text: lambda node, tight: f'"{node.value}"',
    ast.SizeLiteral: lambda node, tight: f"{node.height}x{node.width}",
    ast.Name: lambda node, tight: node.name,
    ast.Dim: lambda node, tight: f"in.{node.axis}",
    ast.Unary: lambda node, tight: ("-" if node.operator == "-" else "not ") + _expr(node.operand, tight),
    ast.Binary: lambda node, tight: _chain(node, tight),
    ast.FunctionCall: lambda node, tight: f"{node.function}({_comma(_expr(arg, tight) for arg in node.args)})",
    ast.Choice: lambda node, tight: (
        f"if {_expr(node.condition, tight)} then {_expr(node.then, tight)} else {_expr(node.otherwise, tight)}"
    ),
    ast.Interval: lambda node, tight: f"{_expr(node.low, True)}..{_expr(node.high, True)}",
    ast.ListLiteral: lambda node, tight: f"[{_comma(_expr(item, tight) for item in node.items)}]",
    ast.Group: lambda node, tight: f"({_expr(node.inner, tight)})",
    ast.Index: lambda node, tight: f"{node.sequence.name}[{_expr(node.place, tight)}]",
    ast.Reference: lambda node, tight: f"@{node.label}",
    ast.In: lambda node, tight: "in",
}
_comma = ", ".join


def _expr(node: ast.Expr, tight: bool = False) -> str:
    """Format an expression in one line; `tight` without spaces, for arguments and tables."""
    return _EXPRESSIONS[type(node)](node, tight)


def _chain(node: ast.Binary, tight: bool) -> str:
    """Format `a + b - c` without recursion into the left operands, of which there may be many."""
    left: ast.Expr = node
    parts: list[str] = []
    while isinstance(left, ast.Binary):
        space = "" if tight and left.operator not in _LOOSE else " "
        parts.append(f"{space}{left.operator}{space}{_expr(left.right, tight)}")
        left = left.left
    return "".join([_expr(left, tight), *reversed(parts)])


def _args(args: Sequence[ast.Argument]) -> str:
    return "".join((f" {arg.name}=" if arg.name else " ") + _expr(arg.value, True) for arg in args)


def _call(call: ast.Call) -> str:
    return call.callee + (f" x{call.repeat}" if call.repeat is not None else "") + _args(call.args)


def _parameter(node: ast.BlockParameter) -> str:
    typed = f"{node.name}: {node.type}" if node.type else node.name
    return ("once " if node.once else "") + typed + (f" = {_expr(node.default)}" if node.default else "")


def _within(fraction: float | None) -> str:
    """Return the shortest percentage that parses to this fraction."""
    texts = [f"{(fraction or 0) * 100:.{digits}f}" for digits in range(20)]
    text = next((text for text in texts if float(text) / 100 == fraction), texts[-1])
    return "" if fraction is None else f" within {text}%"


# Every statement and element, up to its brace if it has one; pipelines and aligned nodes are formatted elsewhere.
_TEXTS: dict[type[Any], Callable[[Any], str]] = {
    ast.Network: lambda node: f"network {node.name}",
    ast.Input: lambda node: f"input {f'{node.name} ' if node.name else ''}{node.channels}x{node.height}x{node.width}",
    ast.Classes: lambda node: f"classes {_expr(node.value)}",
    ast.Param: lambda node: f"param {node.name} = {_expr(node.value)}",
    ast.Let: lambda node: f"let {node.name} = {_expr(node.value)}",
    ast.Require: lambda node: (
        f"require {_expr(node.condition)}" + ("" if node.message is None else f", {_expr(node.message)}")
    ),
    ast.Default: lambda node: f"default {_call(node.call)}",
    ast.Init: lambda node: f"init {node.target} {_call(node.scheme)}",
    ast.Expect: lambda node: (
        f"expect {node.metric} {'=' if node.relation == '==' else node.relation} "
        f"{_expr(node.value)}{_within(node.within)}"
    ),
    ast.Use: lambda node: f'use {_comma(name.name for name in node.names)} from "{node.path}"',
    ast.Extends: lambda node: "extends " + (f'"{node.target}"' if node.quoted else node.target) + _args(node.args),
    ast.Block: lambda node: f"block {node.name}({_comma(map(_parameter, node.parameters))}) ",
    ast.Train: lambda node: "train ",
    ast.Aux: lambda node: f"aux {node.name} from @{node.label.label}{_args(node.args)} ",
    ast.Output: lambda node: f"output {node.name} from @{node.label.label}",
    ast.Call: _call,
    ast.Braces: lambda node: "",
    ast.Repeat: lambda node: f"repeat {_expr(node.count)} " + (f"as {node.variable} " if node.variable else ""),
    ast.Join: lambda node: f"{node.kind} ",
    ast.If: lambda node: f"if {_expr(node.condition)} ",
    ast.Each: lambda node: f"each {node.callee}({' '.join(name.name for name in node.columns)}){_args(node.args)} ",
    ast.Again: lambda node: f"again @{node.label.label}",
    ast.Reference: lambda node: f"@{node.label}",
    ast.In: lambda node: "in",
    ast.Nothing: lambda node: "nothing",
}


def _bodies(piece: _Piece) -> list[Sequence[_Piece]]:
    """Return the contents of each pair of braces of a node."""
    found = (getattr(piece, name, None) for name in ("body", "then", "otherwise", "rows", "entries"))
    return [body for body in found if body is not None]


def _word(piece: _Piece) -> str:
    """Return the first word of an entry, or of a statement that starts with `stem`, `stage` or `head`."""
    if isinstance(piece, ast.Flow):
        return piece.label.name if piece.label and piece.label.word else ""
    return piece.word if isinstance(piece, ast.Entry) else ""


def _ends(flow: ast.Flow, width: int = 0) -> tuple[str, str]:
    """Return the text before and after a pipeline."""
    label = flow.label.name.ljust(width) + (" " if flow.label.word else ": ") if flow.label else ""
    return label, f"  when {_expr(flow.condition)}" if flow.condition else ""


def _table(rows: Sequence[ast.Row]) -> Iterator[str]:
    """Format the rows of a table: labels aligned to the left, cells to the right."""
    cells = [[_expr(cell, True) for cell in row.cells] for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*cells, fillvalue="")]
    labels = [f"{row.label}: " if row.label else "" for row in rows]
    margin = max(map(len, labels), default=0)
    for label, line in zip(labels, cells, strict=True):
        yield label.ljust(margin) + " ".join(map(str.rjust, line, widths))


# --- layout and comments -------------------------------------------------------------------------


class _Printer:
    """A walk over the tree from top to bottom that emits comments as it passes them."""

    def __init__(self, file: ast.File) -> None:
        self.text = file.source.text
        self.comments = deque(file.comments)
        self.closing: dict[int, int] = {}
        pending: list[int] = []
        for match in _MARKS.finditer(self.text):
            if match.group() == "{":
                pending.append(match.start())
            elif match.group() == "}":
                self.closing[pending.pop()] = match.start()
        self.opening = sorted(self.closing)

    def start(self, piece: _Piece) -> int:
        """Return the start of a statement; the span of an `input` is its size alone."""
        if not isinstance(piece, ast.Input):
            return piece.span.start
        return max(0, self.text.rfind("input", 0, (piece.name_span or piece.span).start))

    def braces(self, piece: _Piece) -> list[tuple[int, int]]:
        """Return the offsets of a node's braces; a tree that was not parsed from a text has none."""
        found: list[tuple[int, int]] = []
        at = piece.span.start
        for _ in _bodies(piece):
            index = bisect_left(self.opening, at)
            opened = self.opening[index] if index < len(self.opening) else at
            at = self.closing.get(opened, opened)
            found.append((opened, at))
        return found

    def head_end(self, piece: _Piece) -> int:
        """Return the end of the part of a node that has to be on one line."""
        if isinstance(piece, (ast.Flow, ast.Entry)):
            return self.head_end(piece.elements[0] if isinstance(piece, ast.Flow) else piece.calls[0])
        braces = self.braces(piece)
        return braces[0][0] if braces else piece.span.end

    def take(self, until: int) -> Iterator[ast.Comment]:
        while self.comments and self.comments[0].span.start < until:
            yield self.comments.popleft()

    def blank_before(self, offset: int) -> bool:
        at = offset
        while at > 0 and self.text[at - 1].isspace():
            at -= 1
        return self.text.count("\n", at, offset) > 1

    def body(self, pieces: Sequence[_Piece], end: int, indent: int, header: _Line | None = None) -> list[_Line]:
        """Format a whole file or the contents of braces; `header` takes the comment after its brace."""
        items: list[_Item] = []
        rows = _table([piece for piece in pieces if isinstance(piece, ast.Row)])
        width = max(map(len, map(_word, pieces)), default=0)
        for piece in [*pieces, None]:
            for comment in self.take(self.start(piece) if piece else end):
                last = items[-1].lines[-1] if items else header
                if not last or not last.take(comment):
                    items.append(_Item([_Line(indent, comment=comment.text)], self.blank_before(comment.span.start)))
            if piece:
                blank = self.blank_before(self.start(piece))
                for comment in self.take(self.head_end(piece)):
                    items.append(_Item([_Line(indent, comment=comment.text)], blank))
                    blank = False
                items.append(_Item(self.lines(piece, indent, width, rows), blank, piece))
        if header is None:
            _separate(items)
        _align_labels(items)
        for item in items[1:]:
            item.lines[:0] = [_Line(0)] * item.blank
        return [line for item in items for line in item.lines]

    def lines(self, piece: _Piece, indent: int, width: int, rows: Iterator[str]) -> list[_Line]:
        """Format a statement, an entry or a row; `width` is that of the aligned first words."""
        match piece:
            case ast.Flow():
                label, condition = _ends(piece, width if _word(piece) else 0)
                return self.pipeline([_Line(indent, label)], piece.elements, condition, first=True)
            case ast.Entry():
                first, *rest = piece.calls
                word = _call(first.replace(callee=piece.word, args=())).ljust(width)  # `x3` was parsed after the word
                start = f"{word} {first.callee}{_args(first.args)}" if first.callee else word + _args(first.args)
                return self.pipeline([_Line(indent, start.rstrip())], rest)
            case ast.Row():
                return [_Line(indent, next(rows))]
            case _:
                lines = [_Line(indent, _TEXTS[type(piece)](piece))]
                self.add_bodies(piece, lines)
                return lines

    def add_bodies(self, piece: _Piece, lines: list[_Line]) -> None:
        """Append the contents of braces after the head of a node, which is the last of the lines so far."""
        for i, (body, (_, closed)) in enumerate(zip(_bodies(piece), self.braces(piece), strict=True)):
            header = lines[-1]
            header.code += " else {" if i else "{"
            inner = self.body(body, closed, header.indent + INDENT, header)
            if inner or header.comment:
                lines += [*inner, _Line(header.indent, "}")]
            else:
                header.code += "}"

    def flat(self, piece: _Piece) -> str | None:
        """Format a statement or element in one line; None if its braces were written on several."""
        if isinstance(piece, ast.Flow):
            elements = [self.flat(element) for element in piece.elements]
            label, condition = _ends(piece)
            return None if None in elements else label + " | ".join(map(str, elements)) + condition
        text, bodies, places = _TEXTS[type(piece)](piece), _bodies(piece), self.braces(piece)
        if not bodies:
            return text
        inside = self.text[places[0][0] : places[-1][1]]
        if (isinstance(piece, ast.Each) and piece.rows) or ("\n" in inside and ("#" in inside or any(bodies))):
            return None
        parts = [[self.flat(statement) for statement in body] for body in bodies]
        if any(None in part for part in parts):
            return None
        return text + " else ".join(f"{{ {'; '.join(map(str, part))} }}" if part else "{}" for part in parts)

    def pipeline(
        self, lines: list[_Line], elements: Sequence[ast.Element], suffix: str = "", first: bool = False
    ) -> list[_Line]:
        """Append elements joined by `|` to a line, in new lines if they do not fit; `first` if nothing precedes."""
        deeper = lines[0].indent + INDENT
        for i, element in enumerate(elements):
            tail = suffix if i == len(elements) - 1 else ""
            joint = "" if first else " | "
            broken = False
            for comment in self.take(self.head_end(element)):
                broken = True
                if not lines[-1].take(comment):
                    lines.append(_Line(deeper, comment=comment.text))
            fresh = lines[0] if first else _Line(deeper, "| ")
            flat = self.flat(element)
            if flat is not None and not fresh.fits(flat + tail) and _bodies(element):
                flat = None
            head = _TEXTS[type(element)](element) if flat is None else flat
            if not first and (broken or not lines[-1].fits(joint + head + ("{" if flat is None else tail))):
                lines.append(fresh)
                joint = ""
            lines[-1].code += joint + head
            if flat is None:
                self.add_bodies(element, lines)
            first = False
        lines[-1].code += suffix
        return lines
