"""The words of a text that need not be valid: what is being typed, folding, and highlighting."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lsprotocol import types as lsp

from cnnspec.lsp.document import Text
from cnnspec.ops import JOINS, OPS
from cnnspec.ops.inits import INITS
from cnnspec.recipe import CHOICES
from cnnspec.semantics.blocks import BLOCK_TYPES
from cnnspec.syntax import FUNCTIONS, LABEL_WORDS, OUTPUT, RESERVED

_TOKEN = re.compile(
    r'(?P<comment>#[^\n]*)|(?P<string>"[^"\n]*"?)|(?P<reference>@[\w.]*)|(?P<number>[0-9][0-9A-Za-z]*(?:\.[0-9]\w*)?)'
    r"|(?P<word>[A-Za-z_]\w*(?:\.\w*)*)|(?P<newline>\n)|(?P<sign>\.\.|==|!=|<=|>=|//|[^\s])",
    re.ASCII,
)
_CLOSES = {"}": "{", ")": "(", "]": "["}


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def tokens(text: str, end: int | None = None) -> Iterator[Token]:
    """Split a text into tokens, up to an offset."""
    for match in _TOKEN.finditer(text, 0, len(text) if end is None else end):
        yield Token(match.lastgroup or "", match.group(), match.start())


@dataclass
class Typing:
    """What precedes a place in a text.

    Attributes:
        statement: The first word of the statement; of an entry of the `train` section.
        element: The tokens of the element, without a label, and without the word at the place.
        word: The token that ends at the place, or contains it.
        around: The first words of the elements whose braces are open, from the outside in.
    """

    statement: str = ""
    element: list[Token] = field(default_factory=list[Token])
    word: Token | None = None
    around: list[str] = field(default_factory=list[str])

    @property
    def in_train(self) -> bool:
        return self.around[-1:] == ["train"]


def typing_at(text: str, offset: int) -> Typing:
    """Return what precedes an offset. Only lines and brackets count, so that it works in half-typed text."""
    found, depth = Typing(), 0
    for token in tokens(text, offset):
        kind, sign = token.kind, token.text
        if kind == "newline":
            if depth == 0:
                found.statement, found.element = "", []
            continue
        if kind == "comment":
            found.word = token if token.end == offset else found.word
            continue
        if kind == "sign" and sign in "([":
            depth += 1
        elif kind == "sign" and sign in ")]":
            depth = max(0, depth - 1)
        elif kind == "sign" and sign in "{};|":
            if sign == "{":
                found.around.append(found.element[0].text if found.element else "")
            elif sign == "}" and found.around:
                found.around.pop()
            if sign != "|":
                found.statement = ""
            found.element, depth = [], 0
            continue
        if depth == 0 and sign == ":" and len(found.element) == 1 and not found.in_train:
            found.statement, found.element = "", []  # after a label
            continue
        if depth == 0 and not found.element and sign in LABEL_WORDS and not found.in_train and token.end < offset:
            continue
        found.statement = found.statement or sign
        found.element.append(token)
    last = found.element[-1] if found.element else None
    if last is not None and last.end == offset and last.kind != "sign" and _is_open(last):
        found.word = found.element.pop()
        if not found.element and found.word.text == found.statement:
            found.statement = ""
    return found


def _is_open(token: Token) -> bool:
    return token.kind != "string" or len(token.text) == 1 or not token.text.endswith('"')


# --- folding -------------------------------------------------------------------------------------


def folding_ranges(text: Text) -> list[lsp.FoldingRange]:
    """Return the lines between brackets, and those of comments."""
    found: list[lsp.FoldingRange] = []
    opened: list[tuple[str, int]] = []
    comments: list[int] = []

    def close_comments() -> None:
        if len(comments) > 1:
            found.append(lsp.FoldingRange(comments[0], comments[-1], kind=lsp.FoldingRangeKind.Comment))
        comments.clear()

    for token in tokens(text.text):
        line = text.line_of(token.start)
        if token.kind == "comment":
            if comments and comments[-1] != line - 1:
                close_comments()
            if not text.text[text.text.rfind("\n", 0, token.start) + 1 : token.start].strip():
                comments.append(line)
        elif token.kind == "sign" and token.text in "{[(":
            opened.append((token.text, line))
        elif token.kind == "sign" and opened and _CLOSES.get(token.text) == opened[-1][0]:
            _, first = opened.pop()
            if line > first + 1:
                found.append(lsp.FoldingRange(first, line - 1))
    close_comments()
    return sorted(found, key=lambda folded: (folded.start_line, folded.end_line))


# --- highlighting --------------------------------------------------------------------------------

TYPES = ("keyword", "function", "class", "parameter", "variable", "property", "string", "number", "comment", "type")
_NUMBERS = {name: number for number, name in enumerate(TYPES)}
LEGEND = lsp.SemanticTokensLegend([*TYPES], [])
_KEYWORDS = {*RESERVED, *JOINS}
_NAMING = {"network": "class", "block": "class", "use": "class", "param": "variable", "let": "variable",
           "as": "variable", "init": "function", "default": "function", "input": "property"}  # fmt: skip


def semantic_tokens(text: Text) -> lsp.SemanticTokens:
    """Return the kind of each token."""
    data: list[int] = []
    line = before = 0
    for token, kind in _highlighted([*tokens(text.text)], text.text):
        here = text.line_of(token.start)
        if here != line:
            before = text.text.rfind("\n", 0, token.start) + 1
        data += [here - line, text.units(before, token.start), text.units(token.start, token.end), _NUMBERS[kind], 0]
        line, before = here, token.start
    return lsp.SemanticTokens(data)


def _highlighted(found: Sequence[Token], text: str) -> Iterator[tuple[Token, str]]:
    at_start, depth, in_train, previous = True, 0, 0, ""
    named = -1  # the token that is the name of an output
    for index, token in enumerate(found):
        following = found[index + 1].text if index + 1 < len(found) else ""
        if token.kind == "newline":
            at_start, previous = at_start or depth == 0, "" if depth == 0 else previous
            continue
        if token.kind == "sign":
            depth = max(0, depth + (token.text in "([") - (token.text in ")]"))
            if token.text in "{|};:" and depth == 0:
                at_start = True
            if in_train or token.text == "{":
                in_train = (1 if previous == "train" else in_train + (in_train > 0)) if token.text == "{" else in_train
                in_train -= token.text == "}"
            previous = token.text
            continue
        kind = {"reference": "property"}.get(token.kind, token.kind)
        if token.kind == "word":
            kind = _word(token.text, following, previous, at_start=at_start, in_list=depth > 0, in_train=in_train > 0)
            if token.text == "output" and at_start and OUTPUT.match(text, token.start):
                kind, named = "keyword", index + 1
        if index == named:
            kind = "property"
        yield token, kind
        if token.kind != "comment":
            previous, at_start = token.text, at_start and token.text in LABEL_WORDS


def _word(word: str, following: str, previous: str, *, at_start: bool, in_list: bool, in_train: bool) -> str:
    """Return the kind of a word."""
    if in_train and at_start:
        return "function" if previous == "|" else "keyword"
    if following == ":" and (at_start or in_list):
        return "parameter" if in_list else "property"
    if previous == ":" and in_list and word in BLOCK_TYPES:
        return "type"
    if previous in _NAMING:
        return _NAMING[previous]
    again = word == "again" and following.startswith("@")
    if again or word in _KEYWORDS or word in ("true", "false") or word.startswith("in."):
        return "keyword"
    if following == "=":
        return "parameter"
    if at_start:
        return "function" if word in OPS else "class"
    known = word in OPS or word in FUNCTIONS or word in INITS
    known = known or (in_train and previous in CHOICES and word in CHOICES[previous])
    return "function" if known else "variable"
