"""Properties of the formatter: it keeps the tree and the comments, and is idempotent."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnspec.cli.app import make_command
from cnnspec.compiler import compile_source, format_text
from cnnspec.diagnostics import CnnspecError, Reporter, Source
from cnnspec.syntax import ast, parse
from cnnspec.syntax.formatter import MAX_WIDTH, format_file, significant
from cnnspec.testing import specs

ROOT = Path(__file__).parents[2]
SMALL = [path for path in sorted(ROOT.glob("specs/*.cnn")) if path.stat().st_size < 1500]


def read(text: str) -> ast.File:
    """Parse a text.

    Raises:
        CnnspecError: The text has a syntax error.
    """
    reporter = Reporter()
    file = parse(Source("text", text), reporter)
    if file is None or file.broken:
        raise CnnspecError(reporter.diagnostics)
    return file


def check_properties(text: str) -> str:
    """Format a text and check every property of the formatter on it."""
    file = read(text)
    formatted = format_file(file)
    again = read(formatted)
    assert again == file, formatted
    assert [comment.text for comment in again.comments] == [comment.text for comment in file.comments], formatted
    assert format_file(again) == formatted
    assert significant(formatted) == significant(text)
    assert not re.search(r"[ \t\r]$", formatted, re.MULTILINE)
    assert formatted == "" or re.search(r"[^\n]\n\Z", formatted)
    assert "\n\n\n" not in formatted
    return formatted


def samples() -> list[tuple[str, str]]:
    """Return all specs of the project: shipped specs, examples, cases, and code blocks of the documentation."""
    found = [
        (path.name, path.read_text("utf-8")) for name in ("specs", "examples") for path in (ROOT / name).rglob("*.cnn")
    ]
    found += [(path.name, path.read_text("utf-8")) for path in (ROOT / "tests" / "cases").rglob("*.cnn")]
    found += [(path.name, path.read_text("utf-8")) for path in (ROOT / "tests" / "cases").rglob("*.formatted")]
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for i, block in enumerate(
            re.findall(r"^```(?:cnn)?\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        ):
            found.append((f"{path.name}-{i}", block))
    trees = ((name, text, parse(Source(name, text), Reporter())) for name, text in found)
    return [(name, text) for name, text, file in trees if file is not None and not file.broken]


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in samples()])
def test_properties_hold_for_every_text_of_the_project(text: str) -> None:
    check_properties(text)


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "specs").rglob("*.cnn")), *sorted((ROOT / "examples").rglob("*.cnn"))],
    ids=lambda path: path.name,
)
def test_shipped_files_are_formatted(path: Path) -> None:
    assert check_properties(path.read_text("utf-8")) == path.read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "formatted"), [("", ""), ("\n\n", ""), ("  # only\n\n\n\n#this\n\n", "# only\n\n#this\n")]
)
def test_texts_without_statements(text: str, formatted: str) -> None:
    assert check_properties(text) == formatted


def test_a_tree_without_a_text_can_be_printed() -> None:
    source = Source("none", "")
    nowhere = source.end
    branch = ast.Flow(nowhere, None, (ast.In(nowhere),), None)
    size = ast.Argument(nowhere, None, ast.SizeLiteral(nowhere, 3, 3))
    conv = ast.Flow(nowhere, ast.LabelName(nowhere, "net"), (ast.Call(nowhere, "conv", 2, (size,), nowhere),), None)
    block = ast.Block(
        nowhere, "b", (), (ast.Flow(nowhere, None, (ast.Join(nowhere, "add", (conv, branch)),), None),), nowhere
    )
    file = ast.File(nowhere, source, (ast.Input(nowhere, 3, 4, 5), block))
    assert format_file(file) == "input 3x4x5\n\nblock b() {\n    add { net: conv x2 3x3; in }\n}\n"
    assert read(format_file(file)) == file


def test_deep_and_long_expressions_are_printed() -> None:
    deep = "(" * 30 + "1" + " + 1)" * 30
    text = f"let x = {' + '.join(['1'] * 60)}\nlet y = {deep} * 2\n"
    assert re.sub(r"\n {8}", " ", check_properties(text)) == text


@pytest.mark.parametrize("percent", ["1", "0.7", "7", "0.07", "33.333333", "100", "12.5", "0.0001"])
def test_percentages_survive(percent: str) -> None:
    assert check_properties(f"expect macs == 1 within  {percent} %") == f"expect macs = 1 within {percent}%\n"


# --- random texts --------------------------------------------------------------------------------


class Writer:
    """Generator of random texts that follow the grammar, with whitespace and comments in all allowed places.

    The texts need not be valid networks: the formatter handles every text that parses.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.comments = 0

    def maybe(self, text: Callable[[], str] | str, share: float = 0.5) -> str:
        if self.rng.random() >= share:
            return ""
        return text() if callable(text) else text

    def many(self, part: Callable[[], str], least: int, most: int, joint: Callable[[], str]) -> str:
        parts = [part() for _ in range(self.rng.randint(least, most))]
        return "".join(one + (joint() if i < len(parts) - 1 else "") for i, one in enumerate(parts))

    def comment(self) -> str:
        self.comments += 1
        return f"#{self.maybe(' ')}{self.comments}{self.maybe(' {')}{self.maybe(' | }')}{self.maybe(' ')}\n"

    def gap(self) -> str:
        """Return whitespace at a place where a newline does not end a statement."""
        return (
            "".join(self.rng.choice([" ", " ", " ", "  ", "\n", self.maybe(self.comment, 0.3)]) for _ in range(2)) + " "
        )

    def end(self) -> str:
        """Return the end of a statement: newlines, `;` and comments."""
        rest = self.maybe(
            lambda: self.many(lambda: self.rng.choice(["\n", "\n\n", "  ", self.comment(), ";"]), 0, 4, str)
        )
        return (
            self.rng.choice(["\n", "\n", "\n\n", ";", f"  {self.comment()}"])
            + rest
            + self.rng.choice(["", "\n", ";", "    "])
        )

    def name(self) -> str:
        return self.rng.choice(["a", "conv", "bn1", "x2y", "width", "long_name_of_something", "in_norm", "stage1"])

    def atom(self, depth: int) -> str:
        kind = self.rng.randint(0, 13 if depth else 8)
        if kind < 6:
            return self.rng.choice(
                ["1", "64", "0.10", "1e-4", "true", "false", "3x5", "in.c", "in.h", '"a | text"', self.name()]
            )
        if kind < 9:
            return self.name()
        gap = self.gap()
        if kind == 9:
            return f"({gap}{self.expression(depth - 1)}{self.maybe(' ')})"
        if kind == 10:
            items = self.many(lambda: self.expression(depth - 1), 0, 12, lambda: "," + self.gap())
            return f"[{gap}{items}{self.maybe(' ')}]"
        if kind == 11:
            items = self.many(lambda: self.expression(depth - 1), 1, 3, lambda: "," + self.gap())
            return f"{self.rng.choice(['min', 'round_to', 'ceil'])}({gap}{items})"
        return f"({self.rng.choice(['-', 'not '])}{gap}{self.atom(depth - 1)})"

    def expression(self, depth: int = 2) -> str:
        kind = self.rng.randint(0, 9)
        if kind < 5 or not depth:
            return self.atom(depth)
        if kind < 8:
            operators = ["+", "-", "*", "/", "//", "%", " and ", " or "]
            return self.many(
                lambda: self.atom(depth - 1), 2, 4, lambda: self.maybe(" ") + self.rng.choice(operators) + self.gap()
            )
        if kind == 8:
            left, relation = self.atom(depth), self.rng.choice(["==", "!=", "<=", "<", ">", ">="])
            return f"{left} {relation}{self.gap()}{self.atom(depth)}"
        parts = (self.atom(depth - 1) for _ in range(3))
        return "if{0}{2} then{0}{3} else{1}{4}".format(self.gap(), self.gap(), *parts)

    def argument(self) -> str:
        if self.rng.random() < 0.5:
            return f" {self.maybe(lambda: self.name() + ' = ' + self.gap())}{self.expression(1)}"
        return f" {self.atom(1)}{self.maybe(lambda: ' ..' + self.gap() + self.atom(0), 0.1)}"

    def arguments(self) -> str:
        return self.many(self.argument, 0, 4, str)

    def call(self) -> str:
        return f"{self.name()}{self.maybe(' x3', 0.2)}{self.arguments()}"

    def body(self, depth: int) -> str:
        inner = self.many(lambda: self.statement(depth - 1), 0, 3 if depth else 1, self.end)
        return f"{{{self.maybe(self.end, 0.4)}{inner}{self.maybe(self.end, 0.4)}}}"

    def element(self, depth: int) -> str:
        kind = self.rng.randint(0, 11 if depth > 0 else 5)
        if kind < 4:
            return self.call()
        if kind < 6:
            return self.rng.choice(["in", "nothing", "@stage1", "relu"])
        if kind == 6:
            return self.body(depth)
        if kind == 7:
            variable = self.maybe(lambda: f"as{self.gap()}i{self.gap()}")
            return f"repeat{self.gap()}{self.expression(1)} {variable}{self.body(depth)}"
        if kind < 10:
            return f"{self.rng.choice(['add', 'mul', 'concat'])}{self.gap()}{self.body(depth)}"
        if kind == 10:
            other = self.maybe(lambda: f"{self.rng.choice([' ', self.gap()])}else{self.gap()}{self.body(depth)}")
            return f"if{self.gap()}{self.expression(1)} {self.body(depth)}{other}"
        columns = self.many(self.name, 1, 4, lambda: self.rng.choice([" ", ", ", self.gap()]))
        rows = self.many(
            lambda: (
                self.maybe(lambda: self.name() + self.maybe(" ") + ": ")
                + self.many(lambda: self.atom(1), 1, 4, lambda: "  ")
            ),
            0, 3, self.end,
        )  # fmt: skip
        return f"each f({columns}){self.arguments()} {{{self.maybe(self.end)}{rows}{self.maybe(self.end)}}}"

    def statement(self, depth: int = 2) -> str:
        kind = self.rng.randint(0, 9)
        if kind == 0:
            return f"let{self.gap()}{self.name()} = {self.gap()}{self.expression()}"
        if kind == 1:
            text = self.maybe(lambda: "," + self.gap() + '"text {c} # no comment"')
            return f"require{self.gap()}{self.expression()}{text}"
        label = self.maybe(lambda: self.rng.choice(["stem ", "stage ", "head ", "net: ", "downsample :", "block: "]))
        elements = self.many(
            lambda: self.element(depth),
            1,
            5,
            lambda: self.rng.choice([" ", "\n", "  " + self.comment(), "\n" + self.comment()]) + "|" + self.gap(),
        )
        return f"{label}{elements}{self.maybe(lambda: ' when' + self.gap() + self.expression(1), 0.3)}"

    def parameter(self) -> str:
        default = self.maybe(lambda: " =" + self.gap() + self.expression(1))
        return f"{self.maybe('once ')}{self.name()}{self.maybe(lambda: ' :' + self.gap() + 'int')}{default}"

    def entry(self) -> str:
        return self.many(self.call, 1, 3, lambda: self.rng.choice([" ", "\n", "  # c\n"]) + "|" + self.gap())

    def top(self) -> str:
        kind = self.rng.randint(0, 16)
        if kind > 8:
            return self.statement()
        if kind == 0:
            parameters = self.many(self.parameter, 0, 6, lambda: "," + self.gap())
            return f"block{self.gap()}{self.name()} ({self.gap()}{parameters}){self.gap()}{self.body(1)}"
        if kind == 1:
            return f"train {{{self.end()}{self.many(self.entry, 0, 4, self.end)}{self.end()}}}"
        if kind == 2:
            return f"aux{self.gap()}a from @b{self.arguments()} {self.body(1)}"
        if kind == 3:
            within = self.maybe(lambda: f" within{self.gap()}{self.rng.choice(['1', '0.7', '2.50', '13'])} %")
            relation, gap = self.rng.choice(["=", "==", "<="]), self.gap()
            return f"expect macs {relation}{gap}{self.rng.choice(['40.8M', '3', '[1, a]'])}{within}"
        return self.rng.choice(
            [
                f"input{self.gap()}3x32x32",
                f"classes{self.gap()}{self.expression(1)}",
                f"param{self.gap()}width ={self.gap()}{self.expression(1)}",
                f"default{self.gap()}{self.call()}",
                f"init{self.gap()}conv {self.call()}",
                f'use{self.gap()}a, {self.gap()}b from {self.gap()}"x.cnn"',
                f"extends{self.gap()}net{self.arguments()}",
                f"network{self.gap()}net",
            ]
        )

    def file(self) -> str:
        return f"{self.maybe(self.end)}{self.many(self.top, 0, 8, self.end)}{self.maybe(self.end)}"


@given(st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_properties_hold_for_random_texts(rng: random.Random) -> None:
    check_properties(Writer(rng).file())


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
@settings(max_examples=20_000)
def test_properties_hold_for_very_many_random_texts(rng: random.Random) -> None:
    check_properties(Writer(rng).file())


@given(st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_lines_are_short_where_possible(rng: random.Random) -> None:
    """Check that a line is too long only if it is one element or has a comment."""
    for line in check_properties(Writer(rng).file()).splitlines():
        if len(line) > MAX_WIDTH and "#" not in line:
            assert not re.search(r" \| \w+$", line), line


@given(st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_formatting_a_damaged_text_changes_no_error(rng: random.Random) -> None:
    lines = rng.choice(SMALL).read_text().split("\n")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        line = lines[at]
        cut = rng.randint(0, len(line))
        inserted = rng.choice(["", "=", "stride=", "|", "{", "}", "0..", "%", "block ", ":", "-"])
        lines[at] = line[:cut] + inserted + (line[cut:] if rng.random() < 0.5 else "")
    text = "\n".join(lines)
    try:
        formatted = format_text(Source("text", text))
    except CnnspecError:
        return
    before, after = (compile_source(Source("text", each)).reporter.sorted() for each in (text, formatted))
    assert [found.code for found in before] == [found.code for found in after]
    assert format_text(Source("text", formatted)) == formatted


# --- the guard -----------------------------------------------------------------------------------

PIECES = re.compile(r'#[^\n]*|"[^"\n]*"|\w+|[=<>!]=|//|\.\.|[^\w\s]|\s+')
INSERTED = ["", " ", "\n", "  # a {\n", "#b\n", *"; , | = == % - x3 0 relu name in ( ) { }".split()]


@given(specs(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_formatting_a_drawn_text_keeps_its_tokens_with_and_without_errors(text: str, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        pieces = PIECES.findall(text)
        at = rng.randrange(len(pieces))
        pieces[at] = rng.choice([pieces[at], pieces[at], "", rng.choice(pieces)]) + rng.choice(INSERTED)
        text = "".join(pieces)
    try:
        formatted = format_text(Source("text", text))
    except CnnspecError:
        return
    before, after = (
        [re.sub("^0+|^=(?==$)", "", piece) for piece in PIECES.findall(part) if not re.match(r"[\s;,#]", piece)]
        for part in (text, formatted)
    )
    assert before == after
    assert format_text(Source("text", formatted)) == formatted


@pytest.mark.parametrize("seed", range(40))
def test_the_guard_notices_every_change_of_a_token_or_a_comment(seed: int) -> None:
    rng = random.Random(seed)
    pieces = PIECES.findall(format_file(read(Writer(rng).file())))
    places = [at for at, piece in enumerate(pieces) if not piece.isspace() and piece not in (",", "=", "==")]
    if not places:
        return
    at = rng.choice(places)
    changes = ["", pieces[at] + pieces[at] + "1", pieces[at][:-1] + "q"]
    for change in changes:
        changed = "".join([*pieces[:at], change, *pieces[at + 1 :]])
        assert significant(changed) != significant("".join(pieces)), (pieces[at], change)


@pytest.mark.parametrize(
    "text", ["input 3x8x8\nrelu   # a\nconv 3x3 4\n", "input 3x8x8\nrelu   # a\nconv 3x3 no_name\n"]
)
@pytest.mark.parametrize("lost", ["relu", "# a", " a"])
def test_fmt_writes_nothing_if_the_formatter_loses_a_token(
    lost: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.cnn"
    path.write_text(text)
    monkeypatch.setattr("cnnspec.syntax.formatter.format_file", lambda file: format_file(file).replace(lost, ""))
    with pytest.raises(RuntimeError, match="changes its meaning"):
        make_command("fmt").main([str(path)], standalone_mode=False)
    assert path.read_text() == text
