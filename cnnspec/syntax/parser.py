"""The Lark parser of the language, loaded from stored tables.

Building a parser from the grammar takes 0.3 to 0.5 s, loading its tables about 15 ms. A wheel contains the tables
(`hatch_build.py` writes them); otherwise they are stored in the user's cache folder when they are first needed.
Both are plain JSON after a line with a key and a checksum: nothing is unpickled, and tables that were damaged or
that belong to another grammar or version of Lark are ignored. They then come from the grammar.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnspec.resources import cache_folder, resource

if TYPE_CHECKING:
    from lark import Lark

    class Token(str):
        """A token of Lark with its position."""

        type: str
        start_pos: int
        end_pos: int


FORMAT = 1
"""Increase when `serialize` changes."""

TABLES = "cnn.tables.json"


class Parsed:
    """A node of Lark's tree: a rule of the grammar and its children, `None` for an optional part that is missing.

    Attributes:
        start_pos: Offset of the first token; not set for a rule without tokens.
        end_pos: Offset after the last token.
    """

    __slots__ = ("children", "data", "end_pos", "start_pos")
    start_pos: int
    end_pos: int

    def __init__(self, data: str, children: list[Any]) -> None:
        self.data, self.children = data, children
        for child in children:
            if child is not None:
                self.start_pos = child.start_pos
                break
        for child in reversed(children):
            if child is not None:
                self.end_pos = child.end_pos
                break


class ParseFailure(Exception):
    """A text that the grammar does not accept.

    Attributes:
        at: The offset of the first unexpected token; after the last visible character at the end of the text.
        expected: The names of the terminals that the grammar accepts there.
    """

    def __init__(self, at: int, expected: set[str]) -> None:
        super().__init__(at)
        self.at, self.expected = at, expected


def parse_text(text: str) -> Parsed:
    """Parse a text into Lark's tree.

    Raises:
        ParseFailure: The text does not follow the grammar.
    """
    from lark import UnexpectedCharacters, UnexpectedToken

    parser: Any = load_parser()
    try:
        return parser.parse(text)
    except UnexpectedToken as error:
        token: Any = error.token
        at = len(text.rstrip()) if token.type == "$END" else token.start_pos
        raise ParseFailure(at, set(error.expected)) from None
    except UnexpectedCharacters as error:
        place: Any = error.pos_in_stream
        raise ParseFailure(place, set(error.allowed or ())) from None


@lru_cache(maxsize=1)
def load_parser() -> Lark:
    """Return the parser of the language: from the package, from the cache folder, or else from the grammar."""
    grammar = resource("grammar", "cnn.lark").read_text("utf-8")
    key = table_key(grammar)
    for path, shared in ((resource("grammar", TABLES), False), (_cached(key), True)):
        if path is not None and (parser := _load(path, key, check_owner=shared)):
            return parser
    parser = build_parser(grammar)
    if path := _cached(key):
        _store(path, serialize(parser, key))
    return parser


def build_parser(grammar: str) -> Lark:
    """Build the parser from the text of the grammar."""
    from lark import Lark

    return Lark(grammar, **_options())


def _options() -> dict[str, Any]:
    return {
        "parser": "lalr",
        "lexer": "contextual",
        "start": ["start"],
        "maybe_placeholders": True,
        "g_regex_flags": re.ASCII,
        "tree_class": Parsed,
    }


def table_key(grammar: str) -> str:
    """Return the key of the parser that Lark builds from a grammar; tables with another key are ignored."""
    import lark

    return f"{FORMAT}-{lark.__version__}-{hashlib.sha256(grammar.encode()).hexdigest()}"


# --- tables as JSON ------------------------------------------------------------------------------


def serialize(parser: Any, key: str) -> bytes:
    """Return a line with key and checksum, and Lark's own data in a line of JSON.

    Lark keeps most of it in dictionaries with consecutive integers as keys, for which JSON has lists. The actions of a
    state are a list of pairs: a symbol, and the next state or `-1 - rule`.
    """
    from lark.grammar import Rule
    from lark.lexer import TerminalDef

    data, memo = parser.memo_serialize([TerminalDef, Rule])
    table = data["parser"]["parser"]
    states = [
        [part for symbol, (reduces, to) in row.items() for part in (symbol, -1 - to["@"] if reduces else to)]
        for row in _in_order(table["states"])
    ]
    stored = {
        "memo": _in_order(memo),
        "rules": data["rules"],
        "parser": {**data["parser"], "parser": {**table, "tokens": _in_order(table["tokens"]), "states": states}},
    }
    text = json.dumps(stored, separators=(",", ":"), sort_keys=True).encode()
    return _header(key, text) + text


def deserialize(stored: bytes, key: str) -> Lark | None:
    """Return the parser of stored tables; None if they are damaged or belong to another grammar or version of Lark."""
    from lark import Lark

    end = stored.find(b"\n") + 1
    text = stored[end:]
    if stored[:end] != _header(key, text):
        return None
    data: Any = json.loads(text)
    table = data["parser"]["parser"]
    table["tokens"] = _numbered(table["tokens"])
    table["states"] = {number: _actions(row) for number, row in _numbered(table["states"]).items()}
    memo, data["options"] = _numbered(data.pop("memo")), _options()
    lark: Any = Lark
    return lark.load({"data": data, "memo": memo})


def _actions(row: list[int]) -> dict[int, tuple[int, Any]]:
    pairs = zip(row[::2], row[1::2], strict=True)
    return {symbol: (0, to) if to >= 0 else (1, {"@": -1 - to}) for symbol, to in pairs}


def _numbered(values: list[Any]) -> dict[int, Any]:
    return dict(enumerate(values))


def _in_order(numbered: dict[int, Any]) -> list[Any]:
    return [numbered[number] for number in range(len(numbered))]


def _header(key: str, text: bytes) -> bytes:
    return json.dumps({"key": key, "sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n"


# --- files ---------------------------------------------------------------------------------------


def _cached(key: str) -> Path | None:
    folder = cache_folder()
    return folder / f"grammar-{key[:40]}.json" if folder else None


def _load(path: Path, key: str, *, check_owner: bool) -> Lark | None:
    """Load tables from a file; None if it does not exist or does not match the grammar."""
    try:
        with path.open("rb") as file:
            if check_owner and not _private(os.fstat(file.fileno())):
                return None
            return deserialize(file.read(), key)
    except OSError:
        return None


def _private(status: os.stat_result) -> bool:
    """Check that only this user or the administrator can have written a file.

    A checksum finds damage, not malice: in a cache folder that others can write to, somebody could leave tables that
    make the parser misread a spec. On Windows the folders of a user are private.
    """
    return not hasattr(os, "geteuid") or (status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022)


def _store(path: Path, stored: bytes) -> None:
    """Write tables, so that a process that reads them meanwhile finds all or nothing.

    If the folder cannot be written to, the tables are built again by the next process; this is not an error.
    """
    from cnnspec.files import write_atomically  # imports Pydantic, which a check does not need

    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, stored, shared=True)
