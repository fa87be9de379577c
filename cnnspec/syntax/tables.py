"""The parse tables of the grammar: Lark makes them, once, and they are committed.

A check neither imports Lark nor reads the grammar: `syntax.automaton` runs the tables.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple

from cnnspec.resources import resource

_KEYWORD = re.compile(r"\(?([a-z|]+)\)?" + re.escape("(?![A-Za-z0-9_])"))


class Rule(NamedTuple):
    """A rule by which the parser replaces what was read.

    Attributes:
        name: What stands in its place; one that starts with `_` gives its children to the rule around.
        size: How many symbols it replaces.
        kept: Which of them are children, as `(index, inlined, absent)`: an inlined one stands for its own children,
            and `absent` optional ones are missing in front of it. None where all are children, as they are.
        absent: How many optional children are missing at the end.
    """

    name: str
    size: int
    kept: list[tuple[int, bool, int]] | None
    absent: int


class Tables(NamedTuple):
    """An automaton of shifts and reductions.

    Attributes:
        terminals: The pattern of each terminal but keywords, in the order in which they are tried.
        keywords: The terminals of words that are a `NAME` where they have no meaning.
        ignored: The terminals between words.
        rules: See `Rule`.
        states: For each state what a symbol leads to: the next state, or `-1 - rule` for a rule to apply.
            The first state is the start, and `end` the one in which a whole text was read.
    """

    terminals: dict[str, str]
    keywords: dict[str, str]
    ignored: list[str]
    rules: list[Rule]
    states: list[dict[str, int]]
    end: int


def load_tables() -> Tables:
    """The tables that are committed."""
    stored = json.loads(resource("grammar", "cnn.tables.json").read_text("utf-8"))
    rules = [Rule(*rule) for rule in stored["rules"]]
    return Tables(**{name: stored[name] for name in Tables._fields if name != "rules"}, rules=rules)


def make_tables() -> str:
    """The tables of the grammar as JSON; `key` tells which grammar, and which Lark, they were made from."""
    import lark
    from lark.parsers.lalr_analysis import Shift

    grammar = resource("grammar", "cnn.lark").read_text("utf-8")
    made: Any = lark.Lark(grammar, parser="lalr", maybe_placeholders=True)
    automaton = made.parser.parser._parse_table
    numbers = {rule: number for number, rule in enumerate(made.rules)}
    first = automaton.start_states["start"]
    order, places = [first], {first: 0}
    states: list[dict[str, int]] = []
    for state in order:  # grows on the way
        row: dict[str, int] = {}
        for symbol, (action, to) in sorted(automaton.states[state].items()):
            if action is Shift and to not in places:
                places[to] = len(order)
                order.append(to)
            row[str(symbol)] = places[to] if action is Shift else -1 - numbers[to]
        states.append(row)
    patterns = {terminal.name: terminal.pattern.to_regexp() for terminal in made.parser.lexer.root_lexer.terminals}
    words = {name: found for name, pattern in patterns.items() if (found := _KEYWORD.fullmatch(pattern))}
    tables = Tables(
        {name: pattern for name, pattern in patterns.items() if name not in words},
        {word: name for name, found in words.items() for word in found[1].split("|")},
        sorted(made.ignore_tokens),
        [_rule(rule) for rule in made.rules],
        states,
        places[automaton.end_states["start"]],
    )
    key = f"lark {lark.__version__} {hashlib.sha256(grammar.encode()).hexdigest()}"
    return json.dumps({"key": key, **tables._asdict()}, separators=(",", ":")) + "\n"


def _rule(rule: Any) -> Rule:
    """A rule of Lark as one of ours."""
    optional = rule.options.empty_indices or [False] * len(rule.expansion)
    kept: list[tuple[int, bool, int]] = []
    index = absent = 0
    for missing in optional:
        if missing:
            absent += 1
            continue
        symbol = rule.expansion[index]
        if not (symbol.is_term and symbol.filter_out):
            kept.append((index, not symbol.is_term and symbol.name.startswith("_"), absent))
            absent = 0
        index += 1
    plain = not absent and kept == [(i, False, 0) for i in range(len(rule.expansion))]
    return Rule(rule.alias or rule.origin.name, len(rule.expansion), None if plain else kept, absent)
