"""The tokens of the Pygments lexer, with which the grammars of the editors are compared."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

EXTENSIONS = Path(__file__).resolve().parents[2] / "docs" / "_ext"


def lexer() -> Any:
    """Return the module of the lexer."""
    pytest.importorskip("pygments")
    if str(EXTENSIONS) not in sys.path:
        sys.path.append(str(EXTENSIONS))
    return importlib.import_module("cnn_lexer")


def character_types(text: str, *, unit: str = "utf-8") -> Iterator[tuple[str, int]]:
    """Yield the type of each character that is not blank, and its position in units of an encoding."""
    width = 2 if unit.startswith("utf-16") else 1
    at = 0
    for _, kind, part in lexer().CnnLexer().get_tokens_unprocessed(text):
        for character in part:
            if not character.isspace():
                yield str(kind).removeprefix("Token."), at
            at += len(character.encode(unit)) // width
