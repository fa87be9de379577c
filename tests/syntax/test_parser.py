"""Our reader of the parse tables against Lark itself: the same pieces at the same places, the same faults."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import lark
import pytest

from cnnspec.resources import resource
from cnnspec.semantics.loader import shipped_specs, standard_blocks
from cnnspec.syntax.automaton import Parsed, Unreadable, parser

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted((ROOT / "tests" / "cases").rglob("*.cnn"))
SIGNS = [*'{}()[]|:=,.@#\n "x', "..", "stage ", "when ", "block ", "3x3", "1e-3", "if ", "else", "ü", "train {", "§"]


@lru_cache(maxsize=1)
def reference() -> lark.Lark:
    grammar = resource("grammar", "cnn.lark").read_text("utf-8")
    return lark.Lark(grammar, parser="lalr", maybe_placeholders=True, propagate_positions=True)


def plain(node: Any) -> Any:
    """A piece of either parser as plain data."""
    match node:
        case lark.Tree():
            empty = node.meta.empty
            place = (-1, -1) if empty else (node.meta.start_pos, node.meta.end_pos)
            return str(node.data), place, [plain(child) for child in node.children]
        case Parsed():
            return node.data, (node.start, node.end), [plain(child) for child in node.children]
        case lark.Token():
            return node.type, node.start_pos, str(node)
        case None:
            return None
        case _:
            return node.type, node.start, str(node)


def both(text: str) -> tuple[Any, Any]:
    """What Lark and our parser make of a text: the pieces, or the place and the words that could stand there."""
    try:
        wanted = plain(reference().parse(text))
    except lark.UnexpectedInput as error:
        end = getattr(getattr(error, "token", None), "type", None) == "$END"
        wanted = len(text.rstrip()) if end else error.pos_in_stream
    try:
        found = plain(parser().parse(text))
    except Unreadable as fault:
        found = fault.at
    return wanted, found


@pytest.mark.parametrize("path", [*shipped_specs().values(), *standard_blocks().values(), *CASES], ids=lambda p: p.name)
def test_files_are_read_as_by_lark(path: Path) -> None:
    wanted, found = both(path.read_text("utf-8"))
    assert found == wanted


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_are_read_as_by_lark(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        text = chance.choice(CASES).read_text("utf-8")
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(text) + 1)
            text = text[:at] + chance.choice([*SIGNS, ""]) + text[at + chance.randint(0, 4) :]
        wanted, found = both(text)
        assert found == wanted, text
