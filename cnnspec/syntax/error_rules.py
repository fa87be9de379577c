"""Explain syntax errors in the terms of the language.

Runs only after a failure. The rules are tried in order; the first that returns an explanation wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from cnnspec.diagnostics import Diagnostic, Fix, Source, respell
from cnnspec.diagnostics.suggestions import NO_PLACES, share
from cnnspec.ops import JOINS, translated
from cnnspec.syntax import foreign_hints as foreign
from cnnspec.syntax.error_context import Meaning, Place
from cnnspec.syntax.foreign_hints import operator_after
from cnnspec.syntax.keywords import FUNCTIONS, SCHEMES, TOP_WORDS

_MEANT = {"×": "x", "–": "-", "—": "-", "−": "-", "“": '"', "”": '"', "，": ",", "；": ";", "：": ":"}
"""Replacements for characters that are not part of the language."""

_NAMED = r"([A-Za-z_][A-Za-z0-9_]*)(\s*)$"
"""A name, and the blanks after it."""

_REACH = 500
"""Characters that a rule may look back beyond its line."""

_REPEATED = r"(?:^|[|{;])\s*(?:(?:stem|stage|head)\s+|[A-Za-z_]\w*\s*:\s*)?(x([0-9]+)\s*)$"
"""A repeat without a name before it."""

_CALL = "a call is a name and its arguments, separated by spaces: `conv 3x3 c=16`"

_WORDS = {
    "_NEWLINE": "the end of the line",
    "SEMICOLON": "`;`",
    "$END": "the end of the file",
    "NAME": "a name",
    "INT": "a number",
    "FLOAT": "a number",
    "SIZE": "a size like `3x3`",
    "VOLUME": "a size like `3x32x32`",
    "STRING": "a string in quotes",
    "LABEL": "a label",
    "REFERENCE": "a reference like `@stage1`",
    "PERCENT": "a percentage like `1%`",
    "RELATION": "one of `<=`, `>=`, `<`, `>`",
    "EQUAL": "`=`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "VBAR": "`|`",
    "TIMES": "`repeat`",
}


def explain(source: Source, text: str, expected: set[str], at: int) -> Diagnostic:
    """Describe a syntax error in the terms of the language."""
    place = Place(source, text, expected, at)
    found = next(filter(None, (rule(place) for rule in _RULES)), None) or _expected(place)
    span = found.span or place.span(place.start, place.start if place.line_end else place.end)
    what = found.what or ("the line ends too early" if place.line_end else f"`{place.word}` cannot stand here")
    return Diagnostic(found.code, what, span, help=found.help, fixes=tuple(found.fixes))


def _top_word(at: Place) -> tuple[str | None, list[Fix]]:
    """Suggest a top-level statement that is spelled like the first word of the line."""
    first = re.match(r"\s*([A-Za-z_]+)", at.before)
    if first is None or first.group(1) in TOP_WORDS:
        return None, []
    near, fixes = respell(at.span(at.line + first.start(1), at.line + first.end(1)), first.group(1), TOP_WORDS)
    return near, list(fixes)


def _without_parentheses(at: Place) -> list[Fix]:
    """Rewrite a call with parentheses as a call of this language."""
    for call in re.finditer(r"([A-Za-z_][A-Za-z0-9_]*) *\(([^()\n]*)\)", at.whole):
        name, args = call.groups()
        if at.line + call.start() <= at.at <= at.line + call.end() and name not in (*FUNCTIONS, *SCHEMES):
            plain = re.sub(r"\s*=\s*", "=", re.sub(r"\s*,\s*", " ", args.strip()))
            written = translated(name, [arg for arg in args.split(",") if arg.strip()]) or f"{name} {plain}"
            return [at.fix(f"write `{written}`", (at.line + call.start(), at.line + call.end(), written))]
    return []


def _blocks(at: Place) -> Meaning | None:
    """Heads of blocks."""
    if at.expected == {"LPAR"} and (block := re.fullmatch(r"\s*block\s+[A-Za-z_]\w*(\s*)", at.before)):
        behind = at.at - len(block.group(1))
        help = "a block lists its parameters in parentheses, also where there are none: `block name() { ... }`"
        return Meaning(help, [at.fix("write `()`", (behind, behind, "()"), certain=True)])
    if at.word == "=" and re.fullmatch(r"\s*block\s+[^{}]*\)\s*", at.before):
        fix = at.fix("remove the `=`", (at.start, at.start + 1 + at.rest[1:2].isspace(), ""), certain=True)
        return Meaning("the body stands right behind the parameters: `block name(c) { ... }`", [fix])
    if at.word == ":" and re.fullmatch(r"\s*block\b[^{]*", at.before):
        return Meaning("the body of a block stands in braces: `block name(c) { ... }`")
    if at.word == "," and re.fullmatch(r"\s*block\b[^{]*", at.before):
        return Meaning("parameters are separated by one comma: `block name(c, stride = 1)`")
    return None


def _groups(at: Place) -> Meaning | None:
    """Heads of repeated and conditional groups."""
    if loop := re.match(r"\s*repeat\s+([A-Za-z_]\w*)\s+in\b", at.whole):
        return Meaning(f"write `repeat 3 as {loop.group(1)} {{ ... }}`; `{loop.group(1)}` counts from 0")
    if at.word == ":" and re.fullmatch(r"\s*(?:repeat|if|else)\b[^{]*", at.before):
        return Meaning("a group stands in braces: `repeat 3 { ... }`")
    group = re.search(r"\brepeat\s+([0-9]+)\s+$", at.before)
    if group and "LBRACE" in at.expected and re.match(r"[A-Za-z_]", at.word):
        count, name = group.group(1), at.word
        help = f"a group stands in braces: `repeat {count} {{ ... }}`; a single call is repeated as `{name} x{count}`"
        fix = at.fix(f"write `{name} x{count}`", (at.line + group.start(), at.end, f"{name} x{count}"))
        return Meaning(help, [fix])
    if at.word == "{" and re.search(r"\brepeat\s*$", at.before):
        return Meaning("say how often: `repeat 2 { ... }`")
    if at.word == "{" and (times := re.search(_REPEATED, at.before)):
        fix = at.fix(
            f"write `repeat {times.group(2)} {{ ... }}`",
            (at.line + times.start(1), at.at, f"repeat {times.group(2)} "),
            certain=True,
        )
        return Meaning(f"a group is repeated with `repeat`: {fix.help}", [fix])
    return None


def _tables(at: Place) -> Meaning | None:
    """Columns of a table with a value for all rows."""
    table = re.search(r"\beach\s+([A-Za-z_]\w*)\(([^()]*)\)", at.whole)
    if at.word == "=" and table and at.line + table.start(2) <= at.at <= at.line + table.end():
        columns = re.findall(r"[A-Za-z_]\w*(?:=[^\s,()]+)?", re.sub(r"\s*=\s*", "=", table.group(2)))
        names = [column for column in columns if "=" not in column]
        if not names:
            written = " ".join(column.partition("=")[0] for column in columns)
            return Meaning(f"columns are names alone, and rows give their values: `each {table.group(1)}({written})`")
        same = "".join(f" {column}" for column in columns if "=" in column)
        written = f"each {table.group(1)}({' '.join(names)}){same}"
        fix = at.fix(f"write `{written} {{ ... }}`", (at.line + table.start(), at.line + table.end(), written))
        return Meaning(f"columns are names alone; what is the same in all rows stands behind them: {fix.help}", [fix])
    return None


def _branches(at: Place) -> Meaning | None:
    """Joins without braces."""
    join = re.search(rf"\b({'|'.join(JOINS)})\s*$", at.before)
    if join and "LBRACE" in at.expected and not re.match(r"x[0-9]", at.word):
        return Meaning(f"the branches of `{join.group(1)}` stand in braces: `{join.group(1)} {{ @a; @b }}`")
    return None


def _unfinished(at: Place) -> Meaning | None:
    """Percentages, ranges without an end, and labels without an element."""
    begin = max(at.line - 200, 0) if at.word == "}" and not at.before.strip() else at.line
    share_ends = re.compile(r"(?<![0-9.])[0-9]+(?:\.[0-9]+)?[ \t]*%(?=[ \t]*(?:#[^\n]*)?\s*$)")
    percent = share_ends.search(at.text[begin : at.line] + at.code)
    if percent and (at.line_end or at.word in ("|", "}")):
        span = at.span(begin + percent.start(), begin + percent.end())
        fix = share(span)
        return Meaning(fix.help, [fix], span, f"`{percent.group()}` cannot stand here")
    if at.line_end and re.fullmatch(r"\s*train\s*:\s*", at.code):
        return Meaning("the recipe stands in braces: `train { optimizer sgd lr=0.1; epochs 20 }`")
    if at.text[max(0, at.at - _REACH) : at.at].rstrip().endswith("..") and (at.line_end or at.word in ("|", "}")):
        return Meaning("a range needs its end: `0..8`")
    if at.line_end and re.fullmatch(r"\s*[A-Za-z_]\w*\s*:\s*", at.code):
        return Meaning("a label stands in front of its element, in the same line: `conv1: conv 3x3 16`")
    return None


def _else(at: Place) -> Meaning | None:
    """An `else` that continues nothing, and names spelled `else`."""
    if at.word != "else":
        return None
    if re.match(r"else\s*\{", at.rest) and (parted := re.search(r"\}(\s*;)\s*$", at.before)):
        fix = at.fix("remove the `;`", (at.line + parted.start(1), at.line + parted.end(1), ""), certain=True)
        return Meaning(f"`else` goes on behind the `}}` of its `if`: {fix.help}", [fix])
    return Meaning("`else` stands behind the `}` of an `if`, `if deep { ... } else { ... }`; nothing can be called so")


def _tensors(at: Place) -> Meaning | None:
    """Tensors named with `let`."""
    named = re.fullmatch(r"\s*(let\s+([A-Za-z_]\w*)\s*=\s*)([A-Za-z_]\w*)\s*", at.before)
    if named is None or not re.match(r"[A-Za-z0-9_|{]", at.rest):
        return None
    label, called = named.group(2, 3)
    fix = at.fix(f"write `{label}: {called} ...`", (at.line + named.start(1), at.line + named.end(1), f"{label}: "))
    return Meaning(f"`let` names a value; what an element gives is named by a label: `{label}: {called} ...`", [fix])


def _contracts(at: Place) -> Meaning | None:
    """Expected shapes and numbers in other notations."""
    if not re.match(r"\s*expect\b", at.before):
        return None
    if (shape := re.match(r"[0-9]+(?:x[0-9]+){2,}", at.rest)) and re.search(r"=\s*$", at.before):
        written = f"[{', '.join(shape.group().split('x'))}]"
        fix = at.fix(f"write `{written}`", (at.at, at.at + shape.end(), written), certain=True)
        return Meaning(f"a shape is a list here: `{written}`", [fix], at.span(at.at, at.at + shape.end()))
    metric = re.fullmatch(r"\s*expect\s+([A-Za-z_]\w*)(\s*)", at.before)
    if metric and (sign := re.match(r":?\s*(?=[0-9\[])", at.rest)):
        fix = at.fix("write `=`", (at.at - len(metric.group(2)), at.at + sign.end(), " = "))
        help = f"`=`, `<=` or `>=` stands behind what is expected: `expect {metric.group(1)} = ...`"
        word = re.match(r":|\[|[\w.]+", at.rest)
        assert word is not None
        return Meaning(help, [fix], at.span(at.at, at.at + word.end()), f"`{word.group()}` cannot stand here")
    number = re.search(r"[0-9]+\s*$", at.before)
    parts = re.match(r"(?:,[0-9]{3})+(?![\w,])|[kMG](?!\w)", at.rest)
    if number and parts:
        written = number.group().strip() + parts.group().replace(",", "")
        fix = at.fix(f"write `{written}`", (at.line + number.start(), at.at + parts.end(), written), certain=True)
        return Meaning(f"a number has neither commas nor blanks in it: `{written}`", [fix])
    return None


def _references(at: Place) -> Meaning | None:
    """Labels without `@`, file names without quotes, and a missing `from`."""
    if at.word == "@" and (branch := re.search(r"[{;]\s*(?:@[A-Za-z0-9_]+|in)(\s+)$", at.before)):
        fix = at.fix("write `;`", (at.at - len(branch.group(1)), at.start, "; "), certain=True)
        return Meaning("branches are separated by `;`, or stand on lines of their own", [fix])
    if at.expected == {"REFERENCE"} and re.match(r"[A-Za-z_]\w*", at.rest):
        fix = at.fix(f"write `@{at.word}`", (at.start, at.start, "@"), certain=True)
        return Meaning(f"write `@{at.word}`: the element with this label", [fix])
    if re.match(r"\s*aux\s*$", at.before):
        return Meaning("an auxiliary head has a name: `aux early from @stem { ... }`")
    path = re.compile(r"\s*(?:use\b.*\bfrom|extends)\s+([\w./-]+)").match(at.whole)
    if path and at.line + path.start(1) <= at.at <= at.line + path.end(1) and not at.line_end and at.word != ",":
        fix = at.fix(
            f'write `"{path.group(1)}"`', (at.line + path.start(1), at.line + path.end(1), f'"{path.group(1)}"')
        )
        return Meaning(f'a file stands in quotes: `"{path.group(1)}"`', [fix])
    if (used := re.fullmatch(r"\s*use\s+([A-Za-z_]\w*)\s*", at.before)) and at.line_end:
        return Meaning(f'say from which file: `use {used.group(1)} from "blocks.cnn"`; standard blocks need no `use`')
    return None


def _characters(at: Place) -> Meaning | None:
    """Characters outside the language."""
    if at.line_end or " " <= at.word[0] <= "~":
        return None
    sign = at.word[0]
    shown = sign if sign.isprintable() else f"U+{ord(sign):04X}"
    help, fixes = "outside comments and strings a spec is plain ASCII", list[Fix]()
    if sign in _MEANT:
        help += f"; write `{_MEANT[sign]}`"
        fixes.append(at.fix(help, (at.start, at.start + 1, _MEANT[sign]), certain=True))
    span = at.span(at.start, at.start + 1)
    return Meaning(help, fixes, span, f"the character `{shown}` is not part of the language", "E0103")


def _repeats(at: Place) -> Meaning | None:
    """Repeats that do not follow a name."""
    if re.match(r"x[0-9]+$", at.word):
        what = f"the repeat `{at.word}` does not stand right after the name"
        call = re.search(r"([A-Za-z_][A-Za-z0-9_]*)[^|{};]*$", at.before)
        if call is None:
            return Meaning("put it right after the name it repeats", what=what, code="E0106")
        name = call.group(1)
        if name in JOINS:
            help = f"repeat a group around it: `repeat {at.word[1:]} {{ {name} {{ ... }} }}`"
            return Meaning(help, what=what, code="E0106")
        behind = at.line + call.end(1)
        edits = (behind, behind, f" {at.word}"), (at.start - 1, at.end, "")
        fix = at.fix(f"write `{name} {at.word} ...`", *edits, certain=True)
        return Meaning(fix.help, [fix], what=what, code="E0106")
    return None


def _repeats_of_others(at: Place) -> Meaning | None:
    """`3x block`, `3 * block` and `block * 3`."""
    if repeat := re.match(r"([0-9]+)(?:x\s|\s*\*)\s*([A-Za-z_][A-Za-z0-9_]*)", at.rest):
        count, name = repeat.groups()
        sign = at.rest[: repeat.start(2)].rstrip()
        fix = at.fix(f"write `{name} x{count}`", (at.at, at.at + repeat.end(), f"{name} x{count}"), certain=True)
        what = f"the repeat `{sign}` does not stand right after the name"
        return Meaning(fix.help, [fix], at.span(at.at, at.at + len(sign)), what, "E0106")
    times, call = re.match(r"\*\s*([0-9]+)(?![A-Za-z0-9_.])", at.rest), re.search(_NAMED, at.before)
    if times and call:
        edit = (at.at - len(call.group(2)), at.at + times.end(), f" x{times.group(1)}")
        fix = at.fix(f"write `{call.group(1)} x{times.group(1)}`", edit, certain=True)
        return Meaning(fix.help, [fix])
    return None


def _numbers(at: Place) -> Meaning | None:
    """Misplaced sizes, and words that begin with a digit."""
    if at.line_end:
        return None
    if size := re.match(r"[0-9]+(x[0-9]+)+(?![A-Za-z0-9_])", at.rest):
        span, what = at.span(at.at, at.at + size.end()), f"the size `{size.group()}` cannot stand here"
        near, fixes = _top_word(at)
        if re.search(r"\binput\s*$", at.before):
            return Meaning(
                "state channels, height and width: `input 3x32x32`", fixes, span, f"the input is `{size.group()}`"
            )
        if size.group().count("x") == 2:
            kernel = "x".join(size.group().split("x")[:2])
            fixes.append(at.fix(f"write `{kernel}`", (at.at, at.at + size.end(), kernel)))
            return Meaning(near or f"three sizes only stand behind `input`; a kernel is `{kernel}`", fixes, span, what)
        return Meaning(near or "a statement starts with a name: `conv 3x3 c=16`", fixes, span, what)
    if size := re.match(r"[0-9]+(?:[xX][0-9]+)+(?!\w)", at.rest):
        written = size.group().lower()
        fix = at.fix(f"write `{written}`", (at.at, at.at + size.end(), written), certain=True)
        return Meaning(fix.help, [fix], at.span(at.at, at.at + size.end()), f"`{size.group()}` is no size")
    if re.match(r"[0-9]+(\.[0-9]+)?[A-Za-z_]", at.rest):
        token = re.match(r"[0-9][0-9A-Za-z_.]*(?:(?<=[0-9][eE])[-+][0-9A-Za-z_.]+)?", at.rest)
        assert token is not None
        help = "a number is `3`, `0.1` or `1e-4`, a size is `3x5` (height x width); a name starts with a letter"
        span = at.span(at.at, at.at + token.end())
        return Meaning(help, [], span, f"`{token.group()}` is neither a number nor a size", "E0103")
    return None


def _calls(at: Place) -> Meaning | None:
    """Parentheses around arguments, and commas between them."""
    if at.word == ")" and (call := re.search(r"[A-Za-z_][A-Za-z0-9_]*(\(\s*)$", at.before)):
        fix = at.fix("remove them", (at.start - len(call.group(1)), at.start + 1, ""), certain=True)
        return Meaning("a call without arguments has no parentheses", [fix])
    if re.match(r"[A-Za-z_][A-Za-z0-9_]*\(", at.rest):
        return Meaning(_CALL, _without_parentheses(at), what=f"`{at.word}(` cannot stand here")
    pair = re.search(r"(?:=|\s)(\(\s*([0-9]+)\s*)$", at.before)
    if pair and (second := re.match(r",\s*([0-9]+)\s*\)", at.rest)):
        written = f"{pair.group(2)}x{second.group(1)}"
        fix = at.fix(f"write `{written}`", (at.at - len(pair.group(1)), at.at + second.end(), written), certain=True)
        return Meaning(f"a size is written `{written}`", [fix])
    if at.word == "," and not at.rest[1:].strip():
        fix = at.fix("remove the comma", (at.start, at.start + 1, ""), certain=True)
        return Meaning("a statement ends with its line: remove the comma", [fix])
    if at.word == "," and re.search(r"\(\s*[^()]*$", at.before):
        return Meaning("arguments are separated by spaces: `conv 3x3 c=16`", _without_parentheses(at))
    if at.word == "(" and re.search(r"[A-Za-z0-9_]\s*$", at.before):
        return Meaning(_CALL, _without_parentheses(at))
    if at.word != "," or "COMMA" in at.expected:
        return None
    if re.match(r",\s*(?:@|(?:in|nothing|[A-Za-z_][A-Za-z0-9_]*\s*:)(?!\.|\w))", at.rest):
        fix = at.fix("write `;`", (at.start, at.start + 1, ";"), certain=True)
        return Meaning("statements in braces are separated by `;`, or stand on lines of their own", [fix])
    if behind := operator_after(at.rest):
        fix = at.fix("write `|`", (at.start, at.start + 1, at.parted(" |")))
        return Meaning(f"elements are joined by `|`: `| {behind}`", [fix])
    fix = at.fix("remove the comma", (at.start, at.start + 1, "" if at.rest[1:2].isspace() else " "), certain=True)
    return Meaning("arguments are separated by spaces, list items in `[...]` by commas", [fix])


def _names(at: Place) -> Meaning | None:
    """Colons and equal signs after a name."""
    if at.word == ":" and (name := re.search(r"[A-Za-z0-9_](\s*)$", at.before)):
        spaces = re.match(r":\s*", at.rest)
        end = at.start + (spaces.end() if spaces else 1)
        fix = at.fix("write `=`", (at.start - len(name.group(1)), end, "="))
        return Meaning("a label stands at the head of a statement; an argument is written `name=value`", [fix])
    if at.word != "=":
        return None
    if re.search(r"\b(?:require|if|when)\b[^{}|;]*$", at.before):
        fix = at.fix("write `==`", (at.start, at.start + 1, "=="), certain=True)
        return Meaning("two values are compared with `==`", [fix])
    if at.before.strip() in ("let", "param"):
        return Meaning(f"a value has a name: `{at.before.strip()} width = 64`")
    if (name := re.match(rf"\s*{_NAMED}", at.before)) and (called := operator_after(at.rest)):
        written = f"{name.group(1)}: {called} ..."
        fix = at.fix(f"write `{written}`", (at.start - len(name.group(2)), at.start + 1, ":"))
        return Meaning(f"what a statement gives is named by a label: `{written}`", [fix])
    if re.match(r"\s*[A-Za-z_][A-Za-z0-9_]*\s*$", at.before):
        head = at.at - len(at.before.lstrip())
        fix = at.fix(f"write `let {at.before.strip()} = ...`", (head, head, "let "))
        return Meaning(f"a value is named with `let {at.before.strip()} = ...`", [fix])
    if re.search(r"[A-Za-z_]\(\s*[^()]*$", at.before):
        fixes = _without_parentheses(at)
        return Meaning(fixes[0].help if fixes else _CALL, fixes)
    return Meaning("an argument is written `name=value`: `conv 3x3 c=16`")


def _points(at: Place) -> Meaning | None:
    """Numbers without digits on one side of the decimal point."""
    digit = at.text[at.at - 1 : at.at].isdigit()
    if at.word != "-" and not (at.word == "." and (digit or re.match(r"\.[0-9]", at.rest))):
        return None
    help, zero = "a number needs digits on both sides of its point, a range is `0.8..1.0`", at.start + digit
    return Meaning(help, [at.fix("write the `0`", (zero, zero, "0"), certain=True)] if at.word == "." else [])


def _bars(at: Place) -> Meaning | None:
    """Bars without an element on one side."""
    if at.word == "|" and not at.before.strip():
        fix = at.fix("remove the `|`", (at.start, at.end + at.rest[1:2].isspace(), ""))
        return Meaning("a pipeline needs an element in front of its first `|`", [fix])
    if not at.code.rstrip().endswith("|"):
        return None
    if at.word == "|":
        fix = at.fix("remove one `|`", (at.start, at.end + at.rest[1:2].isspace(), ""))
        return Meaning("write an element between the two `|`, or remove one", [fix])
    if at.line_end or at.word == "}":
        bar = at.line + len(at.code.rstrip()) - 1
        fix = at.fix("remove the last `|`", (bar - at.text[bar - 1 : bar].isspace(), bar + 1, ""))
        return Meaning("write an element behind the last `|`, or remove it", [fix])
    return None


def _items(at: Place) -> Meaning | None:
    """List items without commas, and indexing."""
    if at.word == "[" and re.search(r"[A-Za-z_]\w*$", at.before):
        return Meaning(NO_PLACES)
    if "COMMA" in at.expected and (items := re.search(r"\[([^\[\]]*)$", at.before)):
        begin, end, fixes = at.at - len(items.group(1)), at.text.find("]", at.at), list[Fix]()
        if end > 0:
            written = ", ".join(re.split(r"[\s,]+", at.text[begin:end].strip()))
            fixes.append(at.fix("write the commas", (begin, end, written), certain=True))
        return Meaning("list items are separated by commas: `[16, 32]`", fixes)
    return None


_CHOICE = re.compile(r"(?<![\w.])([\w.]+)[ \t]+if[ \t]+([^(){}|;,\n]+?)[ \t]+else[ \t]+([\w.]+)")
"""A conditional expression of Python."""
_WHEN = re.compile(
    r"(?:^|[|\n{;])\s*(?:(?:stem|stage|head)\s+)?(?:\w+\s*:\s*)?([^|{};\n:]+?)\s+when\s+([^|{};\n]+?)\s*\Z"
)
"""An element and its condition."""


def _conditions(at: Place) -> Meaning | None:
    """Misplaced conditions, and conditions of other languages."""
    if at.line_end and "_THEN" in at.expected and (condition := re.search(r"\S\s+(if)\s", at.before)):
        low = at.line + condition.start(1)
        fix = at.fix("write `when`", (low, low + 2, "when"), certain=True)
        help = "the condition of a statement stands behind it: `conv 3x3 16 when deep`"
        return Meaning(help, [fix], at.span(low, low + 2), "`if` cannot stand here")
    elif_ = re.match(r"\s*(?:\}\s*)?(?:elif|elseif)\b", at.whole) or re.match(r"elif\b|elseif\b", at.rest)
    if elif_ or (at.word == "if" and re.search(r"\belse\s*$", at.before)):
        return Meaning("a further condition is a group of its own: `else { if deep { ... } }`")
    if at.word == "then" and "LBRACE" in at.expected:
        fix = at.fix("remove the `then`", (at.start - 1, at.end, ""), certain=True)
        return Meaning("a group stands in braces right behind its condition: `if deep { ... }`", [fix])
    for choice in _CHOICE.finditer(at.whole) if at.word in ("if", "else") else ():
        if choice.start() <= at.at - at.line <= choice.end():
            yes, condition, no = choice.groups()
            written = f"if {condition} then {yes} else {no}"
            fix = at.fix(f"write `{written}`", (at.line + choice.start(), at.line + choice.end(), written))
            return Meaning(fix.help, [fix])
    if at.word == "|" and (element := _WHEN.search(at.text, max(0, at.at - _REACH), at.at)):
        written = f"if {element.group(2)} {{ {element.group(1)} }}"
        fix = at.fix(f"write `{written}`", (element.start(1), element.end(2), written))
        return Meaning(f"`when` ends its statement and is about all of it: for one element write `{written}`", [fix])
    return None


def _expected(at: Place) -> Meaning:
    """List the expected terminals if there are few."""
    if at.expected and len(at.expected) <= 4:
        names = {_WORDS.get(name, f"`{name.strip('_').lower()}`") for name in at.expected}
        return Meaning(f"expected {' or '.join(sorted(names))}")
    near, fixes = _top_word(at)
    return Meaning(near or "a statement ends with its line; elements are joined by `|`", fixes)


_RULES: tuple[Callable[[Place], Meaning | None], ...] = (
    foreign.python,
    foreign.names,
    foreign.lists,
    foreign.entries,
    foreign.first_words,
    _conditions,
    _else,
    _blocks,
    _groups,
    _tables,
    _branches,
    _tensors,
    _contracts,
    _references,
    _unfinished,
    _characters,
    _repeats,
    _repeats_of_others,
    foreign.signs,
    _numbers,
    _calls,
    _names,
    _points,
    _bars,
    _items,
)
"""Rules in the order in which they are tried."""
