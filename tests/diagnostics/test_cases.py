"""The cases in `tests/cases`: formatted texts, and faulty specs with the exact text of their diagnostics."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from harness import cases
from harness.cases import ERROR_CASES, FORMAT_CASES, read_marks

import cnnspec
from cnnspec.api import format
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Source, nearest, render
from cnnspec.lints import OFF_BY_DEFAULT


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", FORMAT_CASES, ids=name)
def test_format(path: Path, accept: bool) -> None:
    formatted = format(path.read_text("utf-8"), path.name)
    cases.compare(path.with_suffix(".formatted"), formatted, accept)
    assert format(formatted) == formatted


@pytest.mark.parametrize("path", ERROR_CASES, ids=name)
def test_error(path: Path, accept: bool) -> None:
    marked = read_marks(path.read_text("utf-8"))
    on = OFF_BY_DEFAULT & {path.parent.name}
    diagnostics = compile_source(Source(path.name, marked.text), path, lints=on).diagnostics
    rendered = "\n\n".join(render(diagnostic) for diagnostic in diagnostics)
    cases.compare(path.with_suffix(".txt"), rendered + "\n", accept)
    own = (d.line if d.name == path.name else None for d in diagnostics)
    found = Counter(zip(own, (d.code for d in diagnostics), strict=True))
    assert found == marked.expected, rendered
    assert path.stem.split("_")[0] in {diagnostic.code for diagnostic in diagnostics}


OUTSIDE = {"E0217", "E0219", "E0313"}
"""Codes of errors in the arguments of a caller, which no text can show."""


def test_every_code_has_a_case() -> None:
    """What a backend cannot express (E05xx) is tested with the backends."""
    package = Path(cnnspec.__file__).parent
    sources = [path for path in package.rglob("*.py") if not {"backends", "training"} & set(path.parts)]
    codes = {code for path in sources for code in re.findall(r"\b[EW]0[0-9]{3}\b", path.read_text("utf-8"))}
    shown = {code for path in ERROR_CASES for _, code in read_marks(path.read_text("utf-8")).expected}
    assert sorted(code for code in codes - shown - OUTSIDE if not code.startswith("E05")) == []


@pytest.mark.parametrize(
    ("params", "code", "help"),
    [
        ({"widht": 32}, "E0217", "did you mean `width`?"),
        ({"k": 32}, "E0217", "available parameters: `width`, `wide`, `classes`"),
        ({"width": 1.5}, "E0204", "use a value such as 16"),
        ({"wide": 3}, "E0204", "use a value such as true"),
        (
            {"data.val": 50000},
            "E0511",
            "hold out fewer than its 50,000 training images, or write `val=0` to hold out none",
        ),
    ],
)
def test_faults_of_given_parameters(params: dict[str, Any], code: str, help: str) -> None:
    text = "input 3x8x8\nparam width = 16\nparam wide = true\nclasses 10\nconv 3x3 width\nrelu  when wide\n"
    text += "global_avgpool | flatten | linear classes\n"
    assert compile_source(Source("net", text), params={"width": 8, "wide": False}).diagnostics == []
    diagnostic, *_ = compile_source(Source("net", text), params=params).diagnostics
    assert (diagnostic.code, diagnostic.help) == (code, help)


def test_marks_are_read() -> None:
    marked = read_marks("a  #~ E0101 E0102\nb\n#~^ W0001\n#~ file E0108\n")
    assert marked.text == "a\nb\n\n\n"
    assert marked.expected == Counter({(1, "E0101"): 1, (1, "E0102"): 1, (2, "W0001"): 1, (None, "E0108"): 1})


def test_a_malformed_mark_is_refused() -> None:
    with pytest.raises(AssertionError, match="line 1"):
        read_marks("conv 3x3 #~ oops")


def test_accept_rewrites_and_fails_once(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with pytest.raises(pytest.fail.Exception, match="missing"):
        cases.compare(path, "new", accept=False)
    with pytest.raises(pytest.fail.Exception, match="rewritten"):
        cases.compare(path, "new", accept=True)
    cases.compare(path, "new", accept=True)
    with pytest.raises(pytest.fail.Exception, match="-new"):
        cases.compare(path, "newer", accept=False)


def test_help_shows_code_that_can_be_written() -> None:
    """A help of an error in syntax, names or arguments has no `...` in place of code that is known."""
    texts = [path.with_suffix(".txt") for path in ERROR_CASES if path.stem[:3] in ("E01", "E02")]
    assert [
        f"{path.stem}: {line}"
        for path in texts
        for line in path.read_text("utf-8").splitlines()
        if line.strip().startswith("= help:") and "..." in line.replace("0..", "")
    ] == []


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("widht", ["width", "w"], ["width"]),
        ("size", ["slice"], []),
        ("foo", ["floor"], []),
        ("resnet21", ["resnet20", "resnet50"], ["resnet20"]),
        ("resnet99", ["resnet20", "resnet56"], []),
        ("kaiming", ["kaiming_normal"], ["kaiming_normal"]),
        ("parameters", ["params"], ["params"]),
        ("E0391", ["E0311", "E0301"], ["E0311", "E0301"]),
    ],
)
def test_only_close_words_are_suggested(word: str, known: list[str], near: list[str]) -> None:
    assert nearest(word, known) == near
