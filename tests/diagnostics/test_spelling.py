"""Similar names: the same answers as an exhaustive search for ordinary names, and bounded effort for all others."""

from __future__ import annotations

import difflib
import re

import pytest
from harness.effort import bounded
from hypothesis import given
from hypothesis import strategies as st

from cnnspec.api import check
from cnnspec.diagnostics import did_you_mean, nearest, spelling
from cnnspec.diagnostics.spelling import Search, searching
from cnnspec.rewrite.autofix import apply_fixes

WORDS = st.text("abcdeX_1", min_size=1, max_size=12)


def distance(a: str, b: str) -> int:
    """The whole matrix of the optimal string alignment distance."""
    rows = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            costs = [rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1])]
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                costs.append(rows[i - 2][j - 2] + 1)
            rows[i][j] = min(costs)
    return rows[-1][-1]


def is_close(word: str, other: str) -> bool:
    """A third of the letters or fewer are wrong, several wrong digits count twice; or an abbreviation."""
    short, long = sorted((word.lower(), other.lower()), key=len)
    if len(short) >= 4 and short[:3] == long[:3] and re.fullmatch(".*".join(map(re.escape, short)) + ".*", long):
        return True
    wrong_digits = sum(a != b and a.isdigit() and b.isdigit() for a, b in zip(word, other, strict=False))
    return distance(word, other) + (wrong_digits if wrong_digits > 1 else 0) <= max(1, len(word) // 3)


def exhaustive(word: str, known: list[str]) -> list[str]:
    words = list(dict.fromkeys(known))
    if folded := [other for other in words if other.lower() == word.lower()]:
        return folded[:1]
    near = difflib.get_close_matches(word, words, n=8, cutoff=0.5 if len(word) <= 3 else 0.6)
    near = [other for other in near if is_close(word, other)]
    least = min((distance(word, other) for other in near), default=0)
    return [other for other in near if distance(word, other) == least][:3]


@given(WORDS, st.lists(WORDS, max_size=20))
def test_ordinary_names_are_compared_with_all_others(word: str, known: list[str]) -> None:
    assert nearest(word, known) == exhaustive(word, known)


@given(st.text("ab", max_size=9), st.text("ab", max_size=9), st.integers(0, 5))
def test_a_distance_is_exact_up_to_its_limit(a: str, b: str, limit: int) -> None:
    full = distance(a, b)
    assert spelling._distance(a, b) == full
    assert spelling._distance(a, b, limit) == (full if full <= limit else None)


@pytest.mark.parametrize("length", [20, 33, 64, 127])
def test_slips_in_names_of_any_length_are_found(length: int) -> None:
    name = ("stage_of_the_network_" * 7)[:length]
    others = [name[::-1], "x" * length, name + "_suffix"]
    for word in (name + "s", name[1:], "x" + name[2:], name[1] + name[0] + name[2:-1] + "y"):
        assert nearest(word, [*others, name]) == [name]
    assert nearest("y" * length, others) == []


@pytest.mark.parametrize("stem", ["a" * 120, "a" * 28, "ab" * 14, "abcdefgh" * 3])
def test_a_search_compares_up_to_a_limit(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spelling, "MAX_COMPARED", 500_000)
    known = [f"{stem}{number}" for number in range(200)]
    with searching(Search()):
        answers = [did_you_mean(f"{stem}x{number}", known) for number in range(40)]
    assert answers[0] is not None
    assert answers[-1] is None
    assert did_you_mean(f"{stem}x39", known) is not None  # outside a run, each search has its own limit


def test_a_renewed_search_completes_the_searches_that_were_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spelling, "MAX_COMPARED", 500_000)
    known = [f"{'a' * 120}{number}" for number in range(200)]
    search = Search()
    with searching(search):
        first, *_, last = (nearest(f"{'a' * 120}x{number}", known) for number in range(41))
        assert last == []
        search.renew()
        assert nearest(f"{'a' * 120}x40", known) != []
        monkeypatch.setattr(spelling, "_distance", lambda *args: pytest.fail("words were compared again"))
        assert nearest(f"{'a' * 120}x0", known) == first


@pytest.mark.parametrize("length", [28, 120])
def test_the_diagnostics_after_fixes_are_those_of_a_check(length: int) -> None:
    """Rounds share their comparisons, which changes nothing."""
    name = "a" * length
    lines = [f"{name}{number}: relu" for number in range(30)]
    lines += [f"@{name}{number}y | relu" for number in range(9)] + [f"@{name[1:]}{number}" for number in range(9)]
    text = "input 3x32x32\n" + "\n".join([*lines, "convv 3x3 8", "conv 3x3 8 strid=2", "flaten"]) + "\n"
    changed, fixed, done = apply_fixes(text, "t")
    assert fixed
    assert [(d.code, d.message, d.help) for d in done.diagnostics] == [
        (d.code, d.message, d.help) for d in check(changed)
    ]


DEFINITIONS = {
    "label": ("$: relu", "@$ | relu"),
    "parameter": ("param $ = 1", "times $"),
    "block": ("block $() { relu }", "$"),
    "value": ("let $ = 1", "times $"),
}


@pytest.mark.parametrize("kind", DEFINITIONS)
@pytest.mark.parametrize("length", [28, 120])
def test_many_similar_names_take_bounded_time(kind: str, length: int) -> None:
    define, use = DEFINITIONS[kind]
    lines = [define.replace("$", f"{'a' * length}{number}") for number in range(600)]
    lines += [use.replace("$", f"{'a' * length}x{number}") for number in range(100)]
    with bounded(1.5):  # names of 28 letters take twice as long without the limit
        found = check("input 3x32x32\n" + "\n".join(lines))
    assert found[0].help is not None
    assert found[0].help.startswith("did you mean")


def block_call(length: int, parameters: int, arguments: list[str]) -> str:
    """Write a block with similar parameters, and a call for each unknown argument, whose name begins like theirs."""
    name = "a" * length
    declared = ",\n".join(f"{name}{number}=1" for number in range(parameters))
    lines = [f"b {name}{argument}=3" for argument in arguments]
    return f"input 3x32x32\nblock b({declared}) {{ relu }}\n" + "\n".join(lines)


def test_similar_arguments_take_bounded_time_with_the_trials_of_their_fixes() -> None:
    text = block_call(120, 14, ["X"] * 10)
    with bounded(2):  # 15 s without the limit and the results that trials share
        found = check(text)
    assert [d.help for d in found] == [d.help for d in check(text)]  # the limit is that of one run
    assert len({d.help for d in found}) == 1


def test_different_similar_arguments_take_bounded_time() -> None:
    with bounded(1.2):  # 2.2 s without the limit
        found = check(block_call(28, 250, [f"x{number}" for number in range(90)]))
    assert found[0].help is not None
    assert found[0].help.startswith("did you mean")
