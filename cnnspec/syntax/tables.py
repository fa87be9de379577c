"""The parse tables of the grammar, which are made once and read from a file."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import lark
from lark import Lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

from cnnspec.resources import resource

_OPTIONS: dict[str, Any] = {"parser": "lalr", "propagate_positions": True, "maybe_placeholders": True}


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
def parser() -> Lark:
    grammar = resource("grammar", "cnn.lark").read_text("utf-8")
    path: Path = resource("grammar", "cnn.tables.json")
    if path.exists():
        tables = json.loads(path.read_text("utf-8"))
        if tables.get("key") == _grammar_key(grammar):
            automaton = tables["data"]["parser"]["parser"]
            automaton["tokens"] = _integer_keys(automaton["tokens"])
            automaton["states"] = {
                state: _integer_keys(row) for state, row in _integer_keys(automaton["states"]).items()
            }
            return Lark._load_from_dict(tables["data"], _integer_keys(tables["memo"]))  # type: ignore
    return Lark(grammar, **_OPTIONS)
