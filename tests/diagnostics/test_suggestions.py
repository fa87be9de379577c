"""Helps that are changes of the text: each was tried, and does what it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from harness.cases import ERROR_CASES, read_marks

from cnnspec.api import check
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Edit, Source, Span, apply_edits, did_you_mean, nearest, respell

HEAD = "network t\ninput 3x32x32\nclasses 10\n"


def mended(text: str) -> list[str]:
    """The texts that the fixes of the first diagnostic lead to."""
    return [fix.apply(text) for fix in check(text)[0].fixes]


@pytest.mark.parametrize("path", ERROR_CASES, ids=lambda path: path.stem)
def test_every_fix_makes_its_fault_go_away(path: Path) -> None:
    text = read_marks(path.read_text("utf-8")).text
    done = compile_source(Source(path.name, text), path)
    for diagnostic in done.diagnostics:
        others = Counter(d.code for d in done.diagnostics if d is not diagnostic)
        for fix in diagnostic.fixes:
            again = compile_source(Source(path.name, fix.apply(text)), path).diagnostics
            same = [
                d
                for d in again
                if (d.code, d.message, d.line) == (diagnostic.code, diagnostic.message, diagnostic.line)
            ]
            assert not same, fix
            assert len(again) <= len(done.diagnostics), fix
            assert fix.certain or not Counter(d.code for d in again if d.severity == "error") - others, fix


def test_what_a_fix_brings_to_light() -> None:
    convv, gn = (
        check(HEAD + f"stem {words} | squeeze_excite ratio=32\n")[0] for words in ("convv 3x3 16", "conv 3x3 16 | gn 5")
    )
    assert [fix.certain for fix in convv.fixes] == [True]  # a slip of the pen hid the other fault
    assert (gn.fixes, gn.help) == ((), "the nearest divisor of 16 is 4: write `groups=4`")  # or the change made it


def test_bounds_leave_the_choice() -> None:
    (diagnostic,) = check(HEAD + "stem conv 3x3 16 | dropout 1.5\n")
    assert (diagnostic.fixes, diagnostic.help) == ((), "write `p=1` or less")


def test_many_kinds_of_faults_have_fixes() -> None:
    codes = set[str]()
    for path in ERROR_CASES:
        text = read_marks(path.read_text("utf-8")).text
        codes |= {d.code for d in compile_source(Source(path.name, text), path).diagnostics if d.fixes}
    assert len(codes) >= 12, sorted(codes)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("stem convv 3x3 16 | bn", "stem conv 3x3 16 | bn"),
        ("stem Conv2d 3x3 16 | bn", "stem conv 3x3 16 | bn"),
        ("stem Conv2d 3 16 5 | bn", "stem conv 5x5 16 pad=0 bias | bn"),
        ("stem conv 64 3", "stem conv 3x3 64"),
        ("stem conv 64 kernel=3 | bn", "stem conv 3x3 64 | bn"),
        ("stem conv 3x3 16 strid=2", "stem conv 3x3 16 stride=2"),
        ("stem conv 3x3 16 bais", "stem conv 3x3 16 bias"),
        ("stem conv 3x3 c=8/3", "stem conv 3x3 c=8//3"),
        ("stem conv 3x3 16 | gn 5", "stem conv 3x3 16 | gn 4"),
        ("stem conv 3x3 16 | conv 3x3 16 groups=3", "stem conv 3x3 16 | conv 3x3 16 groups=2"),
        ("stem conv 4x4 16", "stem conv 4x4 16 pad=2"),
        ("stem linear 10", "stem flatten | linear 10"),
        ("add { conv 3x3 16; in }", "add { conv 3x3 16; conv 1x1 16 }"),
        ("concat { conv 3x3 9 stride=2; in }", "concat { conv 3x3 9 stride=2; maxpool 2x2 }"),
        ("concat { in; conv 3x3 9 stride=2 | relu }", "concat { maxpool 2x2; conv 3x3 9 stride=2 | relu }"),
        (
            "concat { conv 1x1 9; conv 3x3 9 stride=2; relu }",
            "concat { conv 1x1 9 | maxpool 2x2; conv 3x3 9 stride=2; relu | maxpool 2x2 }",
        ),
        ("concat { flatten; conv 1x1 2 } | gn 1", "concat { flatten; conv 1x1 2 | flatten } | gn 1"),
        ("mul { conv 1x1 8; global_avgpool | gelu }", "mul { conv 1x1 8; global_avgpool | gelu | conv 1x1 8 }"),
        ("stem flatten | dropout 0.5 | conv 3x3 8 | linear 9", "stem dropout 0.5 | conv 3x3 8 | flatten | linear 9"),
        ("add { conv 3x3 16; bn | relu }", "add { conv 3x3 16; bn | relu | conv 1x1 16 }"),
        (
            "add { conv 3x3 3 stride=2; in  when in.c == 3 }",
            "add { conv 3x3 3 stride=2; conv 1x1 3 stride=2  when in.c == 3 }",
        ),
        ("first: conv 3x3 16\nconcat { in; @fist }", "first: conv 3x3 16\nconcat { in; @first }"),
        ("conv 3x3 16 bn", "conv 3x3 16 | bn"),
        ("flatten linear 10", "flatten | linear 10"),
        ("conv c=16 3x3", "conv c=16 kernel=3x3"),
        ("conv 3x3 16 c=16", "conv 3x3 16"),
        ("conv 3x3 16 name=first", 'conv 3x3 16 name="first"'),
        ("conv 3x3 16\nexpect params = 3", "conv 3x3 16\nexpect params = 432"),
        ("conv 3x3 16\nexpect params <= 0.3k within 1%", "conv 3x3 16\nexpect params <= 432 within 1%"),
        ("conv 3x3, 16 | bn", "conv 3x3 16 | bn"),
        ("conv(3, 16) | bn", "conv 3 16 | bn"),
        ("conv(3, c=16, stride = 2) | bn", "conv 3 c=16 stride=2 | bn"),
        ("resnet_block 16 x3", "resnet_block x3 16"),
        ("conv 3×3 16", "conv 3x3 16"),
        ("conv 3x3 16 | dropout .5", "conv 3x3 16 | dropout 0.5"),
        ("conv 3x3 16 | dropout 0.", "conv 3x3 16 | dropout 0.0"),
        ("conv 3x3 16 | | relu", "conv 3x3 16 | relu"),
        ("conv 3x3 16 |", "conv 3x3 16"),
        ("width = 16\nconv 3x3 width", "let width = 16\nconv 3x3 width"),
        ("conv 3x3 c: 16", "conv 3x3 c=16"),
        ("conv 3x3x3 16", "conv 3x3 16"),
        ("relu\ntrain { epochs = 3 }", "relu\ntrain { epochs 3 }"),
        ("relu\ntrain { schedule multistep at=[16 32] }", "relu\ntrain { schedule multistep at=[16, 32] }"),
        ("conv 3x3 16 | norm: bn", "conv 3x3 16\nnorm: bn"),
        ("add {\n    conv 3x3 3\n    in\nrelu", "add {\n    conv 3x3 3\n    in\n}\nrelu"),
        ("relu\n}", "relu\n"),
        ('relu\nrequire in.c > 2, "colour', 'relu\nrequire in.c > 2, "colour"'),
        ("inptu 3x8x8\nrelu", "input 3x8x8\nrelu"),
    ],
)
def test_fix(line: str, expected: str) -> None:
    head = HEAD.replace("input 3x32x32\n", "") if "inptu" in line else HEAD
    assert head + expected + "\n" in mended(head + line + "\n")


def test_a_remedy_that_does_not_work_is_not_shown() -> None:
    block = "block wide(width) { conv 3x3 width }\nblock residual(width) { add { wide width; in } }\n"
    diagnostic, *_ = check(HEAD + block + "residual 16\nresidual 32\n")  # `conv 1x1 16` is not right for both
    assert diagnostic.code == "E0301"
    assert diagnostic.fixes == ()
    assert "conv 1x1" not in (diagnostic.help or "")


def test_one_slip_is_certain_and_a_choice_is_not() -> None:
    assert [fix.certain for fix in check(HEAD + "convv 3x3 16\n")[0].fixes] == [True]
    assert [fix.certain for fix in check(HEAD + "linear 10\n")[0].fixes] == [False, False]
    assert [fix.certain for fix in check(HEAD + "relu\nexpect params = 3\n")[0].fixes] == [False]
    assert [fix.certain for fix in check(HEAD + "conv 3x3 16 c=16\n")[0].fixes] == [True]
    assert [fix.certain for fix in check(HEAD + "conv 3x3 16 c=32\n")[0].fixes] == [False]
    assert [fix.certain for fix in check(HEAD + "Conv2d 3 16 3\n")[0].fixes] == [False]
    assert [fix.certain for fix in check(HEAD + "stage1: relu\nadd { in; @stage9 }\n")[0].fixes] == [False]
    span = Span(Source("x", "flip"), 0, 4)
    assert [(fix.edits[0].text, fix.certain) for fix in respell(span, "flip", ["vflip", "hflip"])[1]] == [
        ("vflip", False),
        ("hflip", False),
    ]


def test_the_nearest_word() -> None:
    assert nearest("resnet21", ["resnet32", "resnet20", "resnet110"]) == ["resnet20"]
    assert nearest("SGD", ["adam", "sgd"]) == ["sgd"]
    assert nearest("sriide", ["stride", "size"]) == ["stride"]
    assert nearest("frobnicate", ["conv", "bn"]) == []
    assert did_you_mean("flip", ["vflip", "hflip"]) == "did you mean `vflip` or `hflip`?"


def test_edits_are_applied_together() -> None:
    source = Source("x", "abcdef")
    edits = [Edit(Span(source, 4, 6), "Z"), Edit(Span(source, 0, 1), "XY"), Edit(Span(source, 2, 2), "-")]
    assert apply_edits("abcdef", edits) == "XYb-cdZ"
    with pytest.raises(ValueError, match="overlap"):
        apply_edits("abcdef", [Edit(Span(source, 0, 3), ""), Edit(Span(source, 2, 4), "")])


def test_a_large_spec_is_not_tried_again() -> None:
    text = HEAD + "repeat 4000 { relu }\nconvv 3x3 16\n" + "# " + "x" * 100 + "\n"
    (diagnostic,) = check(text)
    assert (diagnostic.code, diagnostic.fixes, diagnostic.help) == ("E0201", (), "did you mean `conv`?")
