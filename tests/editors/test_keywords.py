"""Highlighting compared with the grammar: a word is a keyword where the parser reads one, and only there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest
from harness.highlighting import character_types, samples
from lark.exceptions import UnexpectedInput

pytest.importorskip("pygls")

from lsprotocol.types import Position

from cnnspec.lsp.document import Text
from cnnspec.lsp.tokens import TYPES, semantic_tokens
from cnnspec.resources import resource
from cnnspec.syntax.parser import load_parser

SPECS = {path.name: path.read_text("utf-8") for path in sorted(resource("specs").rglob("*.cnn"))}
WORDS = """
network again
input 3x8x8
again: conv 3x3 3
again  @again | again @again
block again_block(again) { conv 3x3 again }
add { in; again @again }
let x = 1
stage: { conv 3x3 again=1; again\t@again }
"""
"""Words that are keywords in some places only."""


def words_of_the_parser(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield the words of a text, up to its first error: the offset, the word, and whether it is a keyword."""
    parsing = load_parser().parse_interactive(text)
    try:
        for token in parsing.iter_parse():
            word, start = str(token), token.start_pos or 0
            if re.match(r"[A-Za-z_]", word) and not re.match("[ \t]*=", text[start + len(word) :]):
                yield start, word, token.type in ("JOIN", "WORD") or token.type.strip("_").lower() == word
    except UnexpectedInput:
        return


def texts() -> Iterator[tuple[str, str]]:
    yield "words", WORDS
    yield from SPECS.items()
    yield from ((f"{page} {number}", text) for page, parts in samples().items() for number, text in enumerate(parts))


def served_kinds(text: str) -> dict[int, str]:
    """Return the kinds of the tokens of the language server by offset."""
    plain = Text(text, "utf-32")
    data = semantic_tokens(plain).data
    found: dict[int, str] = {}
    line = column = 0
    for lines, start, _, kind, _ in zip(*[iter(data)] * 5, strict=True):
        line, column = line + lines, start + (0 if lines else column)
        found[plain.offset(Position(line, column))] = TYPES[kind]
    return found


def test_words_are_keywords_where_the_parser_reads_a_keyword() -> None:
    """In the Pygments lexer, with which the other grammars are compared, and in the language server."""
    checked: Counter[bool] = Counter()
    for name, text in texts():
        lexed = {at // 4: kind.startswith("Keyword") for kind, at in character_types(text, unit="utf-32-le")}
        served = {at: kind == "keyword" for at, kind in served_kinds(text).items()}
        for at, word, keyword in words_of_the_parser(text):
            if keyword or word == "again":
                assert (lexed[at], served[at]) == (keyword, keyword), f"{name}: {word} at {at}"
                checked[keyword] += 1
    assert checked[True] > 1000
    assert checked[False] >= 3
