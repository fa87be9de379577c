"""Test cases in files with expected texts.

A format case is `NAME.cnn` with the expected `NAME.formatted`. An error case is `CODE_name.cnn`, in which marks state
the expected errors, with the exact rendered text in `CODE_name.txt`:

    add {  #~ E0301             this line has this error (several codes may follow)
    #~^ E0301                   the previous line has it
    #~ file E0108               an error without a line

A line without a mark must have no error. The marks are removed before the text is checked.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[1] / "cases"
FORMAT_CASES = sorted((CASES / "format").glob("*.cnn"))
ERROR_CASES = sorted((CASES / "errors").glob("*/*.cnn"))

_MARK = re.compile(r"[ \t]*#~(?P<where>\^| file)?(?P<codes>(?: [EW][0-9]{4})+)$", re.MULTILINE)


@dataclass(frozen=True)
class MarkedText:
    """A text without its marks, and the number of expected errors by code and line (None for errors without a line)."""

    text: str
    expected: Counter[tuple[int | None, str]]


def read_marks(marked: str) -> MarkedText:
    """Remove the marks from a text. A line that contains only marks becomes empty."""
    expected: Counter[tuple[int | None, str]] = Counter()
    lines: list[str] = []
    for number, line in enumerate(marked.split("\n"), start=1):
        found = _MARK.search(line)
        lines.append(line[: found.start()] if found else line)
        assert found or "#~" not in line, f"line {number}: a mark is `#~ E0301`, `#~^ E0301` or `#~ file E0301`"
        if found:
            where = {" file": None, "^": number - 1}.get(found["where"], number)
            expected.update((where, code) for code in found["codes"].split())
    return MarkedText("\n".join(lines), expected)


def compare(path: Path, actual: str, accept: bool) -> None:
    """Compare a text with an expected file. With `accept`, rewrite the file and fail once."""
    expected = path.read_text("utf-8") if path.exists() else None
    if actual == expected:
        return
    if accept:
        path.write_text(actual, "utf-8")
        pytest.fail(f"{path.name} was rewritten: read it, then run again")
    if expected is None:
        pytest.fail(f"{path.name} is missing: write it with `pytest --accept`\n\n{actual}")
    diff = difflib.unified_diff(expected.split("\n"), actual.split("\n"), path.name, "now", lineterm="")
    pytest.fail("\n".join(diff))
