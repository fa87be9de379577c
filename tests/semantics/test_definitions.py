"""Names that a file defines: reserved words, and names or statements that occur twice."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from cnnspec import check
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Diagnostic, Source
from cnnspec.syntax import RESERVED

ROOT = Path(__file__).parents[2]
TOP = {
    "param": "param NAME = 3",
    "let": "let NAME = 3",
    "let of an operator": "let NAME = relu",
    "let of the image": "let NAME = in.h",
    "block": "block NAME(c) { conv 3x3 c }",
    "use": 'use NAME from "other.cnn"',
}
INNER = {
    "let in braces": "{ let NAME = 3; conv 3x3 8 }",
    "let in a block": "block f(c) { let NAME = c; conv 3x3 c }",
    "parameter of a block": "block f(NAME) { conv 3x3 8 }",
    "repeat": "repeat 2 as NAME { conv 3x3 8 }",
}


def codes(text: str) -> list[str]:
    return [d.code for d in check(f"input 3x8x8\n{text}\nstem conv 3x3 8\n") if d.severity == "error"]


def test_the_reserved_words_are_the_keywords_of_the_grammar_and_of_the_reference() -> None:
    grammar = (ROOT / "grammar/cnn.lark").read_text()
    patterns = re.findall(r"^_?[A-Z]+\.3: /(\(.*?\)|[a-z]+)(?:\\b|\(\?!\[\\w\.\]\))/", grammar, re.MULTILINE)
    words = {word for pattern in patterns for word in pattern.strip("()").split("|") if word.isalpha()}
    assert words == RESERVED
    reference = (ROOT / "docs/reference/language/syntax.md").read_text()
    listed = re.search(r"names of values, parameters or blocks \(E0211\): (.*?)\. A", reference, re.DOTALL)
    assert listed
    assert set(re.findall(r"`(\w+)`", listed.group(1))) == RESERVED


@pytest.mark.parametrize("kind", [*sorted(TOP.keys() - {"use"}), *INNER])
def test_a_reserved_word_is_no_name(kind: str) -> None:
    for word in RESERVED - {"else"}:
        expected = "E0101" if word == "once" and kind == "parameter of a block" else "E0211"
        assert codes((TOP | INNER)[kind].replace("NAME", word)) == [expected], word
    assert codes((TOP | INNER)[kind].replace("NAME", "within_reach")) == []


@pytest.mark.parametrize(("first", "second"), list(product(TOP, repeat=2)))
def test_a_file_defines_a_name_once(first: str, second: str, tmp_path: Path) -> None:
    (tmp_path / "other.cnn").write_text("block n(c) { conv 3x3 c }\nblock m(c) { conv 3x3 c }\n")
    same = first == second == "use"  # two imports of one block are one definition
    for other, expected in (("n", [] if same else ["E0211"]), ("m", [])):
        statements = TOP[first].replace("NAME", "n"), TOP[second].replace("NAME", other)
        text = "\n".join(("input 3x8x8", *statements, "conv 3x3 8"))
        found = compile_source(Source("net.cnn", text), tmp_path / "net.cnn").diagnostics
        assert [d.code for d in found if d.severity == "error"] == expected


@pytest.mark.parametrize(
    ("first", "second", "other"),
    [
        ("network a", "network b", ""),
        ("input 3x8x8", "input 3x9x9", ""),
        ("classes 10", "classes 10", ""),
        ("train { epochs 3 }", "train { batch 4 }", ""),
        ("train { epochs 3", "epochs 4 }", "batch 4 }"),
        ("init conv zero", "init conv dirac", "init linear zero"),
        ("default conv bias", "default conv bias=false", "default conv kernel=1x1"),
        ("default conv 3x3", "default conv stride=2 kernel=5", "default conv_transpose kernel=5"),
        ("aux a from @x { linear 10 }", "aux a from @x { relu }", "aux b from @x { relu }"),
    ],
)
def test_a_statement_does_not_silently_override_an_earlier_one(first: str, second: str, other: str) -> None:
    def found(following: str) -> list[str]:
        sizes = () if "input" in first else ("input 3x8x8",)
        text = "\n".join((*sizes, first, following, "conv 3x3 10", "x: global_avgpool | flatten"))
        return [d.code for d in check(text) if d.severity == "error"]

    assert found(second) in (["E0211"], ["E0206"], ["E0209"])
    assert found(other) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends resnet20\nparam n = 5", ["E0211"]),
        ("extends resnet20 n=4\nparam n = 5", ["E0211"]),
        ("extends resnet20 n=n\nparam n = 5", []),
        ("extends resnet20 n=n+1\nparam n = 5", []),
        ("extends resnet20 n=k\nparam k = 5", []),
        ("extends resnet20\nclasses 5", []),
    ],
)
def test_a_parameter_of_the_base_is_set_by_extends(text: str, expected: list[str]) -> None:
    found = check(text)
    assert [d.code for d in found if d.severity == "error"] == expected
    for diagnostic in found:
        if expected and "pass the value" in (diagnostic.help or ""):
            written = re.findall(r"`([^`]*)`", diagnostic.help or "")[0]
            assert check(f"{written}\n") == []


@pytest.mark.parametrize("value", ["0.5", "true", "relu", "3x3", '"a"', "1 / 3"])
@pytest.mark.parametrize("default", ["v", "(v)", "if in.c > 1 then v else v"])
def test_a_default_of_another_type_is_helped_by_a_declaration(value: str, default: str) -> None:
    def checked(parameter: str) -> list[Diagnostic]:
        text = f"input 3x8x8\nparam v = {value}\nblock f({parameter}) {{ conv 3x3 8 }}\nf\n"
        return [d for d in check(text) if d.severity == "error"]

    (error,) = checked(f"p = {default}")
    written = re.findall(r"declare the type: `(.*)`", error.help or "")
    assert len(written) == 1, error.help
    assert checked(written[0]) == []


@pytest.mark.parametrize(
    "second",
    [
        'use cna from "base.cnn"',
        'use cna from "./base.cnn"',
        'use cna from "middle.cnn"',
        'use cna, two from "middle.cnn"',
    ],
)
def test_a_block_imported_through_two_paths_is_one_definition(second: str, tmp_path: Path) -> None:
    (tmp_path / "base.cnn").write_text("block cna(c) { conv 3x3 c | bn | relu }\n")
    (tmp_path / "middle.cnn").write_text('use cna from "base.cnn"\nblock two(c) { cna c | cna c }\n')
    (tmp_path / "other.cnn").write_text("block cna(c) { conv 3x3 c | bn | relu }\n")

    def errors(*uses: str) -> list[str]:
        text = "\n".join(("input 3x8x8", *uses, "cna 8", ""))
        return [d.code for d in compile_source(Source("net", text), tmp_path / "net.cnn").diagnostics if d.code < "W"]

    first = 'use cna from "base.cnn"'
    assert errors(first, second) == errors(second, first) == []
    assert errors(first, 'use cna from "other.cnn"') == ["E0211"]
    assert errors(first, second, "block cna(c) { relu }") == ["E0211"]
