"""Errors in a network that a file extends: section "extends" of the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnnspec.compiler import compile_file
from cnnspec.diagnostics import Diagnostic

BASE = """input a 3x32x32
input b 3x32x32
param n = 16
classes 10
block part(c) { conv 3x3 c | bn | relu }
left: conv 3x3 n stride=2 | relu
other: @b | again @left
mid: concat { @left; @other } | part n
global_avgpool | flatten | linear classes
expect output = [classes]
"""

CAUSES = {
    "input a 3x32x32\ninput »c« 3x32x32": "E0208",  # renames the second image
    "input »c« 3x32x32\ninput a 3x32x32": "E0208",
    "input »3x32x32«": "E0208",
    "input »left« 3x32x32\ninput b 3x32x32": "E0209",
    "input a 3x32x32\ninput »b« 1x32x32": "E0314",
    "input »a« 3x1x1\ninput b 3x1x1\ndefault conv pad=0": "E0304",
    "»classes 0«": "E0215",
    "classes 5\nblock »part«(c, d) { conv 3x3 c }": "E0203",
    "block »part«(c) { conv 3x3 c | flatten }": "E0308",
}


def found(folder: Path, text: str, base: str = BASE, **params: object) -> list[Diagnostic]:
    (folder / "base.cnn").write_text(base, "utf-8")
    (folder / "net.cnn").write_text(text, "utf-8")
    return compile_file(folder / "net.cnn", params).diagnostics


def marked(text: str) -> tuple[str, int, str]:
    """Return a text without its marks, the position of the first, and the text between them."""
    start, end = text.index("»"), text.index("«") - 1
    text = text.replace("»", "").replace("«", "")
    return text, start, text[start:end]


def hold_place(one: Diagnostic, start: int, text: str, base: str = "base.cnn") -> None:
    assert one.span is not None
    assert (one.span.source.name.endswith("net.cnn"), one.span.start, one.span.text) == (True, start, text)
    assert [label.span.source.name for label in one.labels].count(base) >= 1


@pytest.mark.parametrize("statements", CAUSES)
def test_an_error_is_at_the_statement_that_causes_it(statements: str, tmp_path: Path) -> None:
    text, start, word = marked(f"extends base\n{statements}\n")
    [one] = found(tmp_path, text)
    assert one.code == CAUSES[statements]
    hold_place(one, start, word)


def test_several_errors_have_their_own_causes(tmp_path: Path) -> None:
    text = "extends base n=0\nclasses 0\n"
    classes, number = sorted(found(tmp_path, text), key=lambda one: one.span.text if one.span else "")
    hold_place(classes, text.index("classes"), "classes 0")
    hold_place(number, text.index("n=0"), "n=0")


def test_several_causes_of_one_error_are_shown_at_extends(tmp_path: Path) -> None:
    base = "input 3x32x32\nparam n = 1\nparam m = 2\nconv 3x3 8\nrequire n < m or m < 1, 'n'\n".replace("'", '"')
    text = "extends base n=2 m=2\n"
    assert found(tmp_path, "extends base n=2 m=3\n", base) == []
    [one] = found(tmp_path, text, base)
    hold_place(one, text.index("n=2"), "n=2")
    [both] = found(tmp_path, "extends base n=3 m=1\n", base)
    hold_place(both, text.index("base"), "base")


def test_errors_of_the_extended_network_itself_stay_there(tmp_path: Path) -> None:
    base = BASE.replace("conv 3x3 n stride=2", "conv 3x3 n stride=0")
    for text in ("extends base\n", "extends base\nclasses 3\n", "extends base n=8\ninput a 3x8x8\ninput b 3x8x8\n"):
        [one] = found(tmp_path, text, base)
        assert one.name == "base.cnn"
    overridden = found(tmp_path, "extends base\nclasses 3\n", n=0)
    assert {one.name for one in overridden} == {"base.cnn"}


def test_it_is_not_sought_in_long_files(tmp_path: Path) -> None:
    line, text = f"# {'-' * 997}\n", "extends base\nclasses 0\n"
    [one] = found(tmp_path, text, BASE + 70 * line)
    assert (one.code, one.name) == ("E0215", "base.cnn")
    [one] = found(tmp_path, text, BASE + 40 * line)  # one trial, without all changes of the file
    hold_place(one, text.index("base"), "base")


def test_a_network_without_an_image_of_its_own(tmp_path: Path) -> None:
    text = "extends base\ninput 3x1x1\n"
    [one] = found(tmp_path, text, "conv 3x3 8 pad=0\n")
    assert (one.code, one.name) == ("E0304", "base.cnn")  # no size is right without another statement


def test_a_shipped_network(tmp_path: Path) -> None:
    text, start, word = marked("extends resnet18\ninput »1x64x64«\n")
    assert {one.code for one in found(tmp_path, text)} == {"E0401"}
    for one in found(tmp_path, text):
        hold_place(one, start, word, "resnet18.cnn")
