"""Cases in files, where text is the answer.

A format case is `NAME.cnn` with `NAME.formatted` beside it. An error case is `CODE_name.cnn`, in which
marks say what is expected where, with the exact rendered text in `CODE_name.txt`:

    add {  #~ E0301             this line has this fault (several codes may follow one another)
    #~^ E0301                   the line above has it
    #~ file E0108               a fault that has no line

A line without a mark must give nothing. The marks are taken out before the text is checked.
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
    """A text without its marks, and how often each code is expected in each line (none: in no line)."""

    text: str
    expected: Counter[tuple[int | None, str]]


def read_marks(marked: str) -> MarkedText:
    """Takes the marks out of a text; a line that holds nothing else stays as an empty line."""
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
    """Holds a text against the file that has the answer; rewrites the file when told to, and fails once."""
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
