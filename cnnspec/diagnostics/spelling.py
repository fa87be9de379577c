"""Suggestions of known words with a spelling like that of an unknown one, in bounded time."""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from string import digits

from cnnspec.diagnostics.model import Edit, Fix, Span
from cnnspec.limits import MAX_COMPARED

_MANY = 256
"""Known words that are compared; of more, only those with the same first letters."""
_LONG = 32
"""Length up to which words are compared by `difflib`, which takes the product of their lengths, or more."""
_SLIPS = 4
"""Maximum distance of longer words."""
_NO_DIGITS = str.maketrans("", "", digits)


class _Exhausted(Exception):
    """The comparisons of a run have reached the limit."""


class Search:
    """The comparisons of one run: what is left of their limit, and the results, for errors that return in trials."""

    __slots__ = ("_cut", "_left", "_results")

    def __init__(self) -> None:
        self._left = MAX_COMPARED
        self._results: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        self._cut: list[tuple[str, tuple[str, ...]]] = []

    def renew(self) -> None:
        """Start another run, with the whole limit and the complete results of this one."""
        self._left = MAX_COMPARED
        for search in self._cut:
            del self._results[search]
        self._cut.clear()

    def nearest(self, word: str, words: tuple[str, ...]) -> list[str]:
        found = self._results.get((word, words))
        if found is None:
            try:
                found = self._compare(word, words)
            except _Exhausted:
                found = []
                self._cut.append((word, words))
            self._results[word, words] = found
        return found

    def _compare(self, word: str, words: Sequence[str]) -> list[str]:
        folded = [other for other in words if other.lower() == word.lower()]
        if folded:
            return folded[:1]
        if len(words) > _MANY:
            words = [other for other in words if other[:2] == word[:2]][:_MANY]
        near = self._similar(word, words) if len(word) <= _LONG else words
        distances: dict[str, int] = {}
        for other in near:
            if len(word) > _LONG:
                if abs(len(other) - len(word)) > _SLIPS:
                    continue
                self._spend(4 * _SLIPS * len(word))
            distance = _distance(word, other, _SLIPS if len(word) > _LONG else None)
            if distance is not None and _is_close(word, other, distance):
                distances[other] = distance
        least = min(distances.values(), default=0)
        return [other for other in distances if distances[other] == least][:3]

    def _similar(self, word: str, words: Iterable[str]) -> list[str]:
        """Do the same as `difflib.get_close_matches`, which compares without a limit."""
        cutoff = 0.5 if len(word) <= 3 else 0.6
        matcher = difflib.SequenceMatcher(b=word)
        found: list[tuple[float, str]] = []
        for other in words:
            matcher.set_seq1(other)
            if matcher.real_quick_ratio() < cutoff:
                continue
            self._spend(len(other))
            if matcher.quick_ratio() < cutoff:
                continue
            self._spend(len(word) * len(other))
            if (ratio := matcher.ratio()) >= cutoff:
                found.append((ratio, other))
        return [other for _, other in sorted(found, reverse=True)[:8]]

    def _spend(self, pairs: int) -> None:
        if pairs > self._left:
            self._left = 0
            raise _Exhausted
        self._left -= pairs


_active: ContextVar[Search | None] = ContextVar("_active", default=None)


@contextmanager
def searching(search: Search) -> Generator[None]:
    """Count comparisons in a `with` block to a search; in a block inside another one, to the search of the outer."""
    token = _active.set(_active.get() or search)
    try:
        yield
    finally:
        _active.reset(token)


def _distance(a: str, b: str, limit: int | None = None) -> int | None:
    """Return the Damerau-Levenshtein distance (optimal string alignment) of two words; None if above the limit."""
    start, shorter = 0, min(len(a), len(b))
    while start < shorter and a[start] == b[start]:
        start += 1
    end = 0
    while end < shorter - start and a[-1 - end] == b[-1 - end]:
        end += 1
    a, b = a[start : len(a) - end], b[start : len(b) - end]
    reach = max(len(a), len(b)) if limit is None else limit
    far = reach + 1
    before: list[int] = []
    row = [min(j, far) for j in range(len(b) + 1)]
    for i, left in enumerate(a):
        earlier, before, row = before, row, [far] * (len(b) + 1)
        if i < reach:
            row[0] = i + 1
        for j in range(max(0, i - reach), min(len(b), i + reach + 1)):
            right = b[j]
            cost = min(row[j] + 1, before[j + 1] + 1, before[j] + (left != right))
            if i and j and left == b[j - 1] and a[i - 1] == right:
                cost = min(cost, earlier[j - 1] + 1)
            row[j + 1] = cost
    return row[-1] if row[-1] <= reach else None


def _is_close(word: str, other: str, distance: int) -> bool:
    parts, others = word.lower().split("_"), other.lower().split("_")
    if len(parts) == len(others) > 1:  # each part must be close: `channel_max` is not a misspelled `channel_mean`
        pairs = [(part, near) for part, near in zip(parts, others, strict=True) if part != near]
        slips = [(part, near, _distance(part, near, distance)) for part, near in pairs]
        return all(
            slip is not None and _is_slip(part, near, slip, (len(max(part, near, key=len)) + 1) // 3)
            for part, near, slip in slips
        )
    return _is_slip(word.lower(), other.lower(), distance, len(word) // 3)


def _is_slip(word: str, other: str, distance: int, most: int) -> bool:
    """Return True if a word abbreviates or extends another one, or differs in `most` letters or fewer."""
    short, long = sorted((word, other), key=len)
    if len(long) - len(short) > 1 and long.endswith(short):  # a prefix has a meaning: `unshuffle`
        return False
    letters = iter(long)
    if len(short) >= 4 and short[:3] == long[:3] and all(letter in letters for letter in short):
        return True
    digits_differ = sum(a != b and a.isdigit() and b.isdigit() for a, b in zip(word, other, strict=False))
    return distance + digits_differ * (digits_differ > 1) <= max(1, most)


def alternatives(words: Iterable[object], last: str = "or") -> str:
    """List words as code: `a`, `b` or `c`."""
    *others, final = [f"`{word}`" for word in words]
    return f"{', '.join(others)} {last} {final}" if others else final


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Return the known words nearest to a misspelled one, all at the same distance.

    A word is close if a third of its letters or fewer are wrong, or if it abbreviates or extends a known word. Several
    wrong digits count twice: `resnet99` is not a misspelled `resnet56`. There are none if none is close, or if
    the comparisons of this run have reached `limits.MAX_COMPARED`.
    """
    return (_active.get() or Search()).nearest(word, tuple(dict.fromkeys(known)))


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a help that names the nearest known words, or None if none is close."""
    return respell(None, word, known)[0]


def respell(span: Span | None, word: str, known: Iterable[str]) -> tuple[str | None, tuple[Fix, ...]]:
    """Return a help that names the nearest known words, and the fixes that write one of them.

    A fix is certain if only one word is close, at a distance of one letter that is not a digit. The help is None if
    no word is close, and fixes need a span.
    """
    near = nearest(word, known)
    if not near:
        return None, ()
    help = f"did you mean {alternatives(near)}?"
    if span is None:
        return help, ()
    slip = _distance(word, near[0], 1) == 1 and word.translate(_NO_DIGITS) != near[0].translate(_NO_DIGITS)
    certain = len(near) == 1 and len(word) > 2 and (slip or near[0].lower() == word.lower())
    return help, tuple(Fix(help, (Edit(span, other),), certain) for other in near)
