"""Suggestions and fixes: each fix is tried, and does what its help states."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from harness.cases import ERROR_CASES, read_marks
from harness.try_suggestions import mutant, small_specs, try_suggestions

from cnnspec.api import check
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import (
    Diagnostic,
    Edit,
    Fix,
    Label,
    Source,
    Span,
    apply_edits,
    did_you_mean,
    nearest,
    respell,
)
from cnnspec.diagnostics.suggestions import (
    Advice,
    InsertBefore,
    MoveFlattenAfter,
    ReplaceCall,
    ReplaceOperator,
    ReplaceValue,
    RespectBound,
    SetArgument,
    SetNumbers,
    Site,
    Suggestion,
    SwapArguments,
    WrapValue,
    describe,
    fixes_of,
    one_of,
)
from cnnspec.ir.evaluate import ExpressionError
from cnnspec.lints import OFF_BY_DEFAULT
from cnnspec.ops import ShapeError
from cnnspec.rewrite.autofix import apply_fixes
from cnnspec.syntax.formatter import format_file
from cnnspec.testing.faults import draw_faulty
from cnnspec.testing.generator import SpecGenerator

HEAD = "network t\ninput 3x32x32\nclasses 10\n"


def fixed_texts(text: str) -> list[str]:
    """Apply each fix of the first diagnostic."""
    return [fix.apply(text) for fix in check(text)[0].fixes]


@pytest.mark.parametrize("path", ERROR_CASES, ids=lambda path: path.stem)
def test_every_fix_removes_its_error(path: Path) -> None:
    text = read_marks(path.read_text("utf-8")).text
    done = compile_source(Source(path.name, text), path)
    for diagnostic in done.diagnostics:
        others = Counter(d.code for d in done.diagnostics if d is not diagnostic)
        for fix in diagnostic.fixes:
            again = compile_source(Source(path.name, fix.apply(text)), path).diagnostics
            before, after = (
                sum((d.code, d.message) == (diagnostic.code, diagnostic.message) for d in found)
                for found in (done.diagnostics, again)
            )
            assert after < before, fix
            assert len(again) <= len(done.diagnostics), fix
            assert fix.certain or not Counter(d.code for d in again if d.severity == "error") - others, fix


@pytest.mark.parametrize("path", ERROR_CASES, ids=lambda path: path.stem)
def test_every_suggestion_in_words_removes_its_error(path: Path) -> None:
    text = read_marks(path.read_text("utf-8")).text
    lints = frozenset(OFF_BY_DEFAULT & {path.parent.name})
    assert failed_suggestions(text, path, lints, edits=False) == []  # edits are tried above


@pytest.mark.parametrize("seed", range(30))
def test_every_suggestion_for_a_mutant_removes_its_error(seed: int) -> None:
    """`python tests/harness/try_suggestions.py` tries more."""
    rng = random.Random(seed)
    path = rng.choice(small_specs())
    assert failed_suggestions(mutant(path.read_text("utf-8"), rng), path) == []
    assert failed_suggestions(draw_faulty(rng.randint).text, None) == []


def failed_suggestions(
    text: str, path: Path | None, lints: frozenset[str] = frozenset(), *, edits: bool = True
) -> list[str]:
    tried = try_suggestions(text, path, lints, edits=edits)
    return [f"{found.code} {code}: {found.help}" for outcome, found, code in tried if outcome.startswith("failed")]


def test_errors_that_a_fix_reveals() -> None:
    convv, gn = (
        check(HEAD + f"stem {words} | squeeze_excite ratio=32\n")[0] for words in ("convv 3x3 16", "conv 3x3 16 | gn 5")
    )
    assert [fix.certain for fix in convv.fixes] == [True]  # the misspelling hid the other error
    assert (gn.fixes, gn.help) == (
        (),
        "write `groups=4`, a divisor of 16 close to 5",
    )  # or the fix caused the error


def test_bounds_leave_the_choice() -> None:
    (diagnostic,) = check(HEAD + "stem conv 3x3 16 | dropout 1.5\n")
    assert (diagnostic.fixes, diagnostic.help) == ((), "write `p=1` or less")


def test_many_codes_have_fixes() -> None:
    codes = set[str]()
    for path in ERROR_CASES:
        text = read_marks(path.read_text("utf-8")).text
        codes |= {d.code for d in compile_source(Source(path.name, text), path).diagnostics if d.fixes}
    assert len(codes) >= 12, sorted(codes)


FIXED_LINES = [
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
        "add { conv 3x3 9; conv 1x1 9; conv 3x3 9 stride=2 }",
        "add { conv 3x3 9 | conv 1x1 9 stride=2; conv 1x1 9 | conv 1x1 9 stride=2; conv 3x3 9 stride=2 }",
    ),
    (
        "concat { conv 1x1 9; conv 3x3 9 stride=2; relu }",
        "concat { conv 1x1 9 | maxpool 2x2; conv 3x3 9 stride=2; relu | maxpool 2x2 }",
    ),
    ("add { conv 3x3 16; conv 1x1 8 | bn }", "add { conv 3x3 16; conv 1x1 16 | bn }"),
    ("add { conv 1x1 4*2; conv 1x1 6; conv 3x3 7 }", "add { conv 1x1 4*2; conv 1x1 4*2; conv 3x3 4*2 }"),
    ("flatten | add { linear 9; linear 10 | relu }", "flatten | add { linear 9; linear 9 | relu }"),
    ("add { conv 3x3 8 stride=2x1; conv 3x3 8 }", "add { conv 3x3 8 stride=2x1; conv 3x3 8 | conv 1x1 8 stride=2x1 }"),
    ("concat { in; conv 1x1 8 stride=1x2 }", "concat { maxpool 1x2; conv 1x1 8 stride=1x2 }"),
    ("add { conv 3x3 8; flatten }", "add { conv 3x3 8; conv 1x1 8 }"),
    ("add { conv 3x3 3; flatten }", "add { conv 3x3 3; in }"),
    ("add { conv 3x3 8; conv 3x3 8 | relu | flatten }", "add { conv 3x3 8; conv 3x3 8 | relu }"),
    (
        "mul { conv 1x1 8; global_avgpool | flatten | linear 8 | relu }",
        "mul { conv 1x1 8; global_avgpool | conv 1x1 8 bias | relu }",
    ),
    ("concat { flatten; conv 1x1 2 } | conv 1x1 1", "concat { in; conv 1x1 2 } | conv 1x1 1"),
    ("stem flatten | conv 3x3 8 | bn", "stem conv 3x3 8 | bn"),
    ("conv 3x3 8 stride=8 | conv 5x5 8 pad=0", "conv 3x3 8 stride=8 | conv 5x5 8 pad=same"),
    ("conv 3x3 8 stride=8 | conv 6x6 8 pad=0", "conv 3x3 8 stride=8 | conv 6x6 8 pad=1"),
    ("conv_transpose 1x2 4 pad=17x1", "conv_transpose 1x2 4 pad=15x1"),
    ("conv_transpose 2x2 4 dilation=2x3 out_pad=1x3", "conv_transpose 2x2 4 dilation=2x3 out_pad=1x2"),
    ("maxpool 2x4 pad=2x2", "maxpool 2x4 pad=1x2"),
    ("stem conv 3x3 16 | slice 8..20", "stem conv 3x3 16 | slice 8..16"),
    ("conv 1x1 131072 | gn 3", "conv 1x1 131072 | gn 2"),
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
]


@pytest.mark.parametrize(("line", "expected"), FIXED_LINES)
def test_fix(line: str, expected: str) -> None:
    text, fixed = with_head(line, expected)
    assert fixed in fixed_texts(text)


def with_head(*lines: str) -> list[str]:
    head = HEAD.replace("input 3x32x32\n", "") if "inptu" in lines[0] else HEAD
    return [head + line + "\n" for line in lines]


def test_a_fix_that_does_not_work_is_not_shown() -> None:
    block = "block wide(width) { conv 3x3 width }\nblock residual(width) { add { wide width; in } }\n"
    diagnostic, *_ = check(HEAD + block + "residual 16\nresidual 32\n")  # `conv 1x1 16` is wrong for one of the calls
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


@pytest.mark.parametrize("seed", range(40))
def test_applied_fixes_of_lints_do_not_change_the_network(seed: int) -> None:
    text = format_file(SpecGenerator(random.Random(seed).randint).file())
    _, fixed, result = apply_fixes(text, "drawn", lints=OFF_BY_DEFAULT)
    before, after = compile_source(Source("drawn", text)).require_graph(), result.require_graph()
    facts = [
        [(node.path, node.op.name, node.inputs, node.shape, node.weights, node.macs) for node in graph]
        for graph in (before, after)
    ]
    assert facts[0] == facts[1], [f"{diagnostic.code} {diagnostic.message}" for diagnostic in fixed]


@pytest.mark.parametrize("element", ["slice 0..2", "in", "conv 3x3 4", "{ slice 0..2 }", "slice 0..4 | slice 0..2"])
def test_removing_an_unused_label_keeps_the_names(element: str) -> None:
    text = f"{HEAD}conv 3x3 8\nlabel: {element}\nconv 3x3 8\nhead global_avgpool | flatten | linear classes\n"
    before, after = (compile_source(Source("t", one)).require_graph() for one in (text, apply_fixes(text, "t")[0]))
    assert [node.path for node in before] == [node.path for node in after]


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


# --- suggestions alone ---------------------------------------------------------------------------


def site_of(call: str, **values: str) -> Site:
    """Make the site of a call that is a whole text, from the code of its arguments."""
    source = Source("spec", call)
    starts = {name: call.index(value) for name, value in values.items()}
    places = {name: Span(source, start, start + len(values[name])) for name, start in starts.items()}
    return Site(Span(source, 0, len(call)), places, next(iter(places.values()), None))


@pytest.mark.parametrize(
    ("suggestion", "help", "fixed"),
    [
        (SetArgument("groups", 4), "write `groups=4`", ["conv 3 c=2 groups=4"]),
        (SetArgument("c", 8), "write `c=8`", ["conv 3 c=8"]),
        (
            one_of("take `{0}` or `{1.value}`", SetArgument("c", 8), SetArgument("kernel", "1x1")),
            "take `c=8` or `1x1`",
            ["conv 3 c=8", "conv 1x1 c=2"],
        ),
        (SetNumbers((("kernel", "2x2"), ("c", 3)), "as `{0}`"), "as `2x2 3`", ["conv 2x2 c=3"]),
        (SetNumbers((("kernel", "2x2"), ("stride", 3)), "as `{0}`"), "as `2x2 3`", []),
        (SwapArguments("kernel", "c"), "swap the two values", ["conv 2 c=3"]),
        (SwapArguments("kernel", "stride"), "swap the two values", []),
        (InsertBefore("flatten"), "insert `flatten` before it", ["flatten | conv 3 c=2"]),
        (MoveFlattenAfter("conv"), "move `conv` before `flatten`", []),
        (ReplaceCall("relu"), "write `relu`", ["relu"]),
        (ReplaceOperator("mul"), "write `mul`", []),
        (ReplaceValue("5", "kernel"), "write `kernel=5`", ["conv 5 c=2"]),
        (RespectBound("1", "kernel", "write `{0}` or more", " "), "write `kernel 1` or more", ["conv 1 c=2"]),
        (WrapValue("floor"), "write `floor(x)`", ["conv floor(3) c=2"]),
        (Advice("use {any} `kernel`"), "use {any} `kernel`", []),
    ],
)
def test_a_suggestion_has_one_wording_and_its_edits(suggestion: Suggestion, help: str, fixed: list[str]) -> None:
    call = "conv 3 c=2"
    assert describe(suggestion) == help
    assert [fix.apply(call) for fix in fixes_of(suggestion, site_of(call, kernel="3", c="2"))] == fixed
    assert fixes_of(suggestion, Site()) == []


def test_an_expression_is_not_replaced_by_a_number() -> None:
    swapped = SetNumbers((("kernel", "2x2"), ("c", 3)), "as `{0}`")
    assert fixes_of(swapped, site_of("conv k c=2", kernel="k", c="2")) == []


# --- no code reads the wording -------------------------------------------------------------------


def reworded(value: Any) -> Any:
    """Reverse the words of a text and spell them backwards in capitals, so that no pattern matches it."""
    if isinstance(value, str):
        return " ".join(word[::-1].upper() for word in reversed(value.split(" ")))
    return tuple(map(reworded, value)) if isinstance(value, tuple) else value


def reword_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reword every suggestion as it is rendered, and every message, caption, label, note and help as it is made."""

    def reword(kind: type[Any], fields: dict[str, int]) -> None:
        made = kind.__init__

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            places = {place: name for name, place in fields.items()}
            args = tuple(reworded(arg) if place in places else arg for place, arg in enumerate(args))
            made(self, *args, **{name: reworded(arg) if name in fields else arg for name, arg in kwargs.items()})

        monkeypatch.setattr(kind, "__init__", init)

    reword(Diagnostic, {"message": 1, "caption": 3, "notes": 5, "help": 6, "fallback": 9})
    reword(Fix, {"help": 0})
    reword(Label, {"text": 1})
    reword(ShapeError, {"message": 1})
    reword(ExpressionError, {"message": 1})
    for module in [module for name, module in sys.modules.items() if name.startswith("cnnspec.")]:
        if getattr(module, "describe", None) is describe:
            monkeypatch.setattr(module, "describe", lambda *args: reworded(describe(*args)))


Offered = list[tuple[object, ...]]


def offered(texts: Iterable[tuple[str, Path | None]]) -> tuple[list[Offered], list[str | None]]:
    """Return the edits offered for texts, before and after their trial, and the helps."""
    edits: list[Offered] = []
    helps: list[str | None] = []
    for text, path in texts:
        done = compile_source(Source("spec", text), path)
        for diagnostics in (done.untested_diagnostics, done.diagnostics):
            edits.append(
                [(d.code, d.line, d.column, *((fix.certain, places(fix)) for fix in d.fixes)) for d in diagnostics]
            )
            helps += [d.help for d in diagnostics]
    return edits, helps


def places(fix: Fix) -> list[tuple[int, int, str]]:
    return [(edit.span.start, edit.span.end, edit.text) for edit in fix.edits]


def test_the_same_edits_are_offered_in_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[tuple[str, Path | None]] = [(read_marks(path.read_text("utf-8")).text, path) for path in ERROR_CASES]
    texts += [(with_head(line)[0], None) for line, _ in FIXED_LINES]
    expected, helps = offered(texts)
    reword_everything(monkeypatch)
    found, others = offered(texts)
    for text, one, other in zip(texts, expected[1::2], found[1::2], strict=True):
        assert one == other, text
    assert found == expected
    assert all(one is None or one != other for one, other in zip(helps, others, strict=True))
    assert sum(len(places) > 3 for shown in expected for places in shown) > 300
