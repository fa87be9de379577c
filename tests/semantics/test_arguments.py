"""Hints for invalid arguments, and valid arguments that need them."""

from __future__ import annotations

import pytest

from cnnspec.compiler import Compilation, compile_source
from cnnspec.diagnostics import Source


def check(call: str, recipe: str = "") -> Compilation:
    text = f"input 8x8x8\nparam n = 2\nclasses 10\n{call}\nglobal_avgpool | flatten | linear classes\n{recipe}\n"
    return compile_source(Source("net", text))


@pytest.mark.parametrize(
    ("call", "code", "help"),
    [
        (
            "conv 3x3 16 1 same same",
            "E0207",
            "write a number, such as `pad=1` for a kernel size of 3x3",
        ),
        ("conv kernel=3 c=16 16", "E0205", "write `stride=16`"),
        ('relu repeat=2 name="a" 16', "E0205", "remove it"),
        ("slice 0..k 3", "E0205", "remove it: `slice` takes `range`"),
        ("dropout 1 % 3 7", "E0205", "remove it: `dropout` takes `p`"),
        ("relu name=foo", "E0207", 'write the string in quotes: `"foo"`'),
        ("conv c=n[0] c=16", "E0206", "remove one of the two"),
        ("global_avgpool | flatten | linear 64 bais", "E0202", "did you mean `bias`?"),
    ],
)
def test_a_wrong_argument(call: str, code: str, help: str) -> None:
    found = [(diagnostic.code, diagnostic.help) for diagnostic in check(call).untested_diagnostics]
    assert (code, help) in found


@pytest.mark.parametrize(
    ("recipe", "fixed"),
    [
        ("train { schedule multistep 30 60 }", "schedule multistep at=[30, 60]"),
        ("train { schedule multistep 30 60 gamma=0.2 }", "at=[30, 60] gamma=0.2"),
    ],
)
def test_numbers_of_a_list_without_brackets(recipe: str, fixed: str) -> None:
    done = check("relu", recipe)
    (found,) = [diagnostic for diagnostic in done.untested_diagnostics if diagnostic.severity == "error"]
    assert found.code == "E0204"
    assert fixed in found.fixes[0].apply(done.source.text)


@pytest.mark.parametrize("call", ["conv 3x3 16 bias 2", "conv repeat=2 3x3 8", "dropout 1", "conv 3x3 8 init=zero"])
def test_a_valid_argument(call: str) -> None:
    assert [diagnostic for diagnostic in check(call).untested_diagnostics if diagnostic.severity == "error"] == []
