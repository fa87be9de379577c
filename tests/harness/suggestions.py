"""Apply the suggestions in the words of a help, as a reader would.

A help quotes code: an operator, an argument, a statement, a size. `readings` returns the texts that a reader may write
after reading one such quote: the code in place of the marked code, of its call, of the value of the same argument, of
its statement, or next to them. A suggestion is right if its error is gone in one of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Diagnostic, Source
from cnnspec.ops import JOINS
from cnnspec.syntax import TOP_WORDS

QUOTE = re.compile(r"`([^`]+)`")
_STATEMENT = re.compile(rf"(?:{'|'.join(TOP_WORDS)}|repeat|if|each|again|{'|'.join(JOINS)})\b|[\w.]+\s*:")
_SETTING = re.compile(r"(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<value>\S.*)")
_ENDS = "|;{}\n#"

Change = tuple[int, int, str]
"""The start and end of a replaced part, and the text in its place."""
Places = Collection[tuple[str, int]]
"""Codes of diagnostics with their offsets."""


def apply(text: str, change: Change) -> str:
    start, end, written = change
    return text[:start] + written + text[end:]


def is_gone(diagnostic: Diagnostic, text: str, changes: Sequence[Change], path: Path | None, before: Places) -> bool:
    """Return whether a text with changes no longer has a diagnostic at its place.

    Args:
        diagnostic: The diagnostic.
        text: The text.
        changes: The changes.
        path: The file of the text.
        before: The other diagnostics of the text.
    """
    changes, changed = sorted(changes), text
    own = diagnostic.span.start if diagnostic.span else -1
    for change in reversed(changes):
        changed = apply(changed, change)

    def moved(offset: int) -> int:
        return offset + sum(len(new) - (end - start) for start, end, new in changes if end <= offset)

    written = [(moved(start), moved(start) + len(new)) for start, _, new in changes]
    others = {(code, moved(at)) for code, at in before}
    after = compile_source(Source(diagnostic.name or "spec", changed), path).untested_diagnostics
    for other in after:
        at = other.span.start if other.span else -1
        if (other.code, at) in others:
            continue
        inside = any(start <= at < end for start, end in written)
        if other.code == diagnostic.code and (at == moved(own) or (own >= 0 and inside)):
            return False
        if inside and other.code.startswith("E010") and other.code not in ("E0108", "E0109"):
            return False
    return True


def _call_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the start and end of the element around a place."""
    low = max(text.rfind(sign, 0, start) for sign in "|;{\n") + 1
    label = re.compile(r"\s*(?:[\w.]+\s*:|(?:stem|stage|head)\b)").match(text, low, start)
    low = label.end() if label else low
    low += len(text[low:start]) - len(text[low:start].lstrip())
    high = next((i for i in range(end, len(text)) if text[i] in _ENDS), len(text))
    return low, max(end, low + len(text[low:high].rstrip()))


def _statement_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the start and end of the line around a place, with the braces that it opens."""
    low = text.rfind("\n", 0, start) + 1
    low += len(text[low:]) - len(text[low:].lstrip(" \t"))
    depth, high = 0, min(low, start)
    while high < len(text):
        depth += (text[high] == "{") - (text[high] == "}")
        if (text[high] in "\n#" and depth <= 0 and high >= end) or depth < 0:
            break
        high += 1
    return low, low + len(text[low:high].rstrip())


def _lines(help: str) -> list[int]:
    return [int(number) for number in re.findall(r"line ([0-9]+)", help)]


def _places(diagnostic: Diagnostic, text: str) -> list[tuple[int, int]]:
    """Return the places that a help may speak about: the marked code, its labels, and the lines that it names."""
    spans = [diagnostic.span, *(label.span for label in diagnostic.labels)]
    found = [(span.start, span.end) for span in spans if span and span.source.text == text]
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    for number in _lines(diagnostic.help or ""):
        line = text[starts[number - 1] :].split("\n")[0]
        found += [
            (starts[number - 1] + word.start(), starts[number - 1] + word.end()) for word in re.finditer(r"\w+", line)
        ]
    return found


def readings(diagnostic: Diagnostic, code: str, text: str) -> Iterator[list[Change]]:
    """Return the changes that a reader may make for code that a help quotes, the most likely ones first."""
    help = diagnostic.help or ""
    setting = _SETTING.fullmatch(code)
    for start, end in _places(diagnostic, text):
        low, high = _call_around(text, start, end)
        call = text[low:high]
        if re.search(r"\b(?:remove|drop)\b", help) and code in text[low:]:
            at = text.index(code, low)
            yield [(at, at + len(code), "")]
            yield [(len(text[:at].rstrip(" \t|")), at + len(code), "")]
        if setting:
            given = re.search(rf"\b{setting['name']}\s*=\s*(?:\[[^\]]*\]|\([^)]*\)|\S+)", call)
            if given:
                yield [(low + given.start(), low + given.end(), code)]
            yield [(start, end, code)]
            if given is None:
                yield [(high, high, f" {code}")]
            for word in re.finditer(r"\S+", call):
                yield [(low + word.start(), low + word.end(), code)]
        if _STATEMENT.match(code):
            yield [_statement_around(text, start, end) + (code,)]  # noqa: RUF005
            first = re.match(r"[\w.]+", code)
            for line in re.finditer(rf"^[ \t]*{first.group()}\b[^\n#]*" if first else "$^", text, re.MULTILINE):
                yield [(line.start(), line.end(), code)]
        yield [(start, end, code)]
        yield [(low, high, code)]
        yield [_statement_around(text, start, end) + (code,)]  # noqa: RUF005
        if code.startswith("|"):
            yield [(high, high, f" {code}")]
            yield [(start, start, f"{code} ")]
        else:
            yield [(low, low, f"{code} | ")]
            yield [(high, high, f" | {code}")]
            yield [(high, high, f" {code}")]
            for word in re.finditer(r"[^\s=]+", call):
                yield [(low + word.start(), low + word.end(), code)]
        line, close = _statement_around(text, start, end)
        yield [(line, line, f"{code}\n")]
        yield [(close, close, f"\n{code}")]
    if declared := re.fullmatch(r"(\w+): \w+(?: = .*)?", code):
        for found in re.finditer(rf"(?<=[(,\s]){declared[1]}\b(?:\s*:\s*\w+)?(?:\s*=\s*[^,)]+)?(?=\s*[,)])", text):
            yield [(found.start(), found.end(), code)]
    header = re.match(r"(?:\s*(?:#[^\n]*|network[^\n]*|use[^\n]*|extends[^\n]*)\n)*", text)
    yield [(header.end() if header else 0, header.end() if header else 0, f"{code}\n")]
    yield [(len(text), len(text), f"\n{code}\n")]
    for line in re.finditer(r"^[ \t]*(?:input|classes)\b[^\n#]*", text, re.MULTILINE):
        yield [(line.end(), line.end(), f"\n{code}")]
