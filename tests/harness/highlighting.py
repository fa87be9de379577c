"""The tokens of the Pygments lexer, with which the grammars of the editors are compared, and the texts for that."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTENSIONS = ROOT / "docs" / "_ext"


def samples() -> dict[str, list[str]]:
    """Return the samples of the documentation, valid and not, by page."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    fence = re.compile(r"^```cnn[^\n]*\n(.*?)^```$", re.M | re.S)
    found = {page.relative_to(ROOT).as_posix(): fence.findall(page.read_text("utf-8")) for page in pages}
    return {page: texts for page, texts in found.items() if texts}


def write_samples(folder: Path) -> list[Path]:
    """Write the samples to a file for each page, and return the files."""
    paths: list[Path] = []
    for page, texts in samples().items():
        paths.append(folder / f"{page.replace('/', '-')}.cnn")
        paths[-1].write_text("\n".join(texts), "utf-8")
    return paths


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
