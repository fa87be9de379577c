"""The parser: it reads words and replaces what they make up, as the tables of the grammar say.

In each state it looks for those words alone that can follow there. Lark can run its tables as well, but takes longer
to be imported than all the rest of a check, and three times as long to read a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cnnspec.syntax.tables import Tables, load_tables

_Matcher = Callable[[str, int], "re.Match[str] | None"]


_WORD, _END = "NAME", "$END"
_NONE = -1_000_000
"""What no rule has as its number."""


class Token(str):
    """A word of a text: the terminal that it is (`type`), and where it starts."""

    __slots__ = ("start", "type")
    type: str
    start: int


class Parsed:
    """What a rule of the grammar found: tokens and further rules, `None` for an optional part that is missing."""

    __slots__ = ("children", "data", "end", "start")

    def __init__(self, data: str, children: list[Token | Parsed | None], start: int, end: int) -> None:
        self.data, self.children, self.start, self.end = data, children, start, end


class Unreadable(Exception):
    """A text that is no spec.

    Attributes:
        at: Where it cannot go on; behind the last visible character where more is needed.
        expected: The terminals that could stand there.
    """

    def __init__(self, at: int, expected: set[str]) -> None:
        super().__init__(at)
        self.at, self.expected = at, expected


class Parser:
    """Reads texts by tables."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._ignored = frozenset(tables.ignored)
        self._matchers: list[_Matcher | None] = [None] * len(tables.states)
        self._shared: dict[frozenset[str], _Matcher] = {}

    def _matcher(self, state: int) -> _Matcher:
        """What finds the words that can follow in a state; made when it is first needed."""
        allowed = self._ignored | {_WORD} | (self._allowed(state) & self._tables.terminals.keys())
        found = self._shared.get(allowed)
        if found is None:
            words = (f"(?P<{name}>{pattern})" for name, pattern in self._tables.terminals.items() if name in allowed)
            found = self._shared[allowed] = re.compile("|".join(words)).match
        self._matchers[state] = found
        return found

    def _allowed(self, state: int) -> frozenset[str]:
        """The words that can follow in a state."""
        return frozenset(symbol for symbol in self._tables.states[state] if symbol.isupper() and symbol != _END)

    def parse(self, text: str) -> Parsed:
        """What a whole text consists of.

        Raises:
            Unreadable: It is no spec.
        """
        _, keywords, _, rules, states, end = self._tables
        matchers, ignored, length = self._matchers, self._ignored, len(text)
        state, row = 0, states[0]
        kind: str
        action: int
        # What was read and is not replaced yet: states, what stands in each, and from where to where; -1 for nothing.
        path: list[int] = [0]
        values: list[Any] = []
        starts: list[int] = []
        ends: list[int] = []
        at = start = 0
        while True:
            matcher = matchers[state] or self._matcher(state)
            while at < length:
                match = matcher(text, at)
                if match is None:
                    raise Unreadable(at, set(self._allowed(state)))
                start, at = at, match.end()
                kind = match.lastgroup or ""
                if kind not in ignored:
                    token = Token(match.group())
                    if kind == _WORD:
                        kind = word if (word := keywords.get(token)) in row else kind
                        if kind not in row:
                            raise Unreadable(start, set(self._allowed(state)))
                    token.type, token.start = kind, start
                    break
            else:
                token, kind, start = Token(), _END, len(text.rstrip())
            while (action := row.get(kind, _NONE)) < 0:
                if action == _NONE:
                    raise Unreadable(start, {symbol for symbol in row if symbol.isupper()})
                name, size, kept, absent = rules[-1 - action]
                low = high = -1
                parts: list[Any] = []
                if size:
                    parts = values[-size:]
                    low, high = starts[-size], ends[-1]  # no rule begins or ends with a part that may be empty
                    del values[-size:], starts[-size:], ends[-size:], path[-size:]
                if kept is not None:
                    parts = _children(parts, kept, absent)
                values.append(parts if name[0] == "_" else Parsed(name, parts, low, high))
                starts.append(low)
                ends.append(high)
                state = states[path[-1]][name]
                row = states[state]
                path.append(state)
                if state == end and kind == _END:
                    return values[-1]
            state, row = action, states[action]
            path.append(state)
            values.append(token)
            starts.append(start)
            ends.append(at)


def _children(parts: list[Any], kept: list[tuple[int, bool, int]], absent: int) -> list[Any]:
    """What a rule keeps of what it replaces."""
    found: list[Any] = []
    for index, inlined, missing in kept:
        if missing:
            found += [None] * missing
        if not inlined:
            found.append(parts[index])
        elif found:
            found += parts[index]
        else:
            found = parts[index]  # nobody else has it: a list that grows is not copied for each item
    return [*found, *[None] * absent] if absent else found


@lru_cache(maxsize=1)
def parser() -> Parser:
    """The parser of the language."""
    return Parser(load_tables())
