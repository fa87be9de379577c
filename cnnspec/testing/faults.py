"""Generate specs with one planted error.

The tables list faulty statements for the current shape. `draw_faulty` plants one of them and records its position.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cnnspec.diagnostics import Reporter, Source, Span
from cnnspec.shapes import Shape
from cnnspec.syntax import ast, parse
from cnnspec.syntax.formatter import format_file
from cnnspec.testing.draw import RandInt, Rng
from cnnspec.testing.generator import SpecGenerator
from cnnspec.testing.writing import NOWHERE


@dataclass(frozen=True)
class FaultySpec:
    """A spec with one error.

    Attributes:
        text: The spec.
        code: The code of the error.
        lines: The first and last line of the faulty statement, counted from 1.
    """

    text: str
    code: str
    lines: tuple[int, int]

    def holds(self, line: int | None) -> bool:
        """Return whether a line belongs to the faulty statement."""
        return line is not None and self.lines[0] <= line <= self.lines[1]


Writer = str | Callable[[Rng, int, int, int], str]
"""Faulty statements, or a function of the rng and of channels, height and width that returns them."""


def _write(writer: Writer, rng: Rng, c: int, h: int, w: int) -> str:
    return writer if isinstance(writer, str) else writer(rng, c, h, w)


IN_BODY: dict[str, tuple[Writer, ...]] = {
    "E0201": (
        "no_such_block",
        lambda rng, c, h, w: rng.choice(["rellu", "sigmiod", f"resnet_blok c={c}", f"conv2 1x1 {c}"]),
        lambda rng, c, h, w: f"Conv2d 1x1 {c}",
    ),
    "E0202": (
        "relu no_such_argument=1",
        lambda rng, c, h, w: f"conv 1x1 {c} strid=1",
        "bn epsilon=1e-3",
        lambda rng, c, h, w: f"conv_bn 1x1 {c} bais",
    ),
    "E0203": ("gn", "conv 1x1", "inception_block 1 2 3 4", "upsample"),
    "E0204": (
        lambda rng, c, h, w: f"conv 1x1 ({2 * c + 1} / 2)",
        lambda rng, c, h, w: f"conv 1x1 {c} bias=3",
        'dropout "a half"',
        lambda rng, c, h, w: f"conv_bn 1x1 {c} act=3",
        "relu when in.c + 1",
    ),
    "E0205": (
        "relu 3",
        lambda rng, c, h, w: f"conv c={c} 1x1",
        lambda rng, c, h, w: f"each conv(kernel c) {{ 1x1 {c} 3 }}",
    ),
    "E0206": ("dropout 0.5 p=0.5", lambda rng, c, h, w: f"conv 1x1 {c} bias bias=true"),
    "E0207": (
        "dropout no_such_name",
        lambda rng, c, h, w: f"conv 1x1 (clases - classes + {c})",
        lambda rng, c, h, w: f"conv 1x1 cube({c})",
        "conv 1x1 in.channels",
    ),
    "E0208": (
        "concat { in; @no_such_label }",
        "add { in; @later_on }\nlater_on: relu",
        "{\n hidden: relu\n }\nadd { in; @hidden }",
    ),
    "E0209": ("twice: relu\ntwice: tanh", 'repeat 2 {\n conv 1x1 4 name="same"\n }'),
    "E0214": ("times (1 // 0)", lambda rng, c, h, w: f"conv 1x1 sqrt(0 - {c})", "times (1 % (in.c - in.c))"),
    "E0215": ("dropout 1.5", "conv 1x1 0", "avgpool 2x2 stride=0", "pad [1, 2, 3]", "upsample 1 align_corners"),
    "E0216": ("nothing", "relu | in", "add { }", "add { nothing }"),
    "E0301": (
        lambda rng, c, h, w: f"add {{ in; conv 1x1 {c + rng.randint(1, 3)} }}",
        lambda rng, c, h, w: f"add {{ in; adaptive_avgpool {h + 1}x{w} }}",
        lambda rng, c, h, w: f"add {{ relu; conv 1x1 {c} | pad 1 }}",
    ),
    "E0302": (lambda rng, c, h, w: f"concat {{ in; adaptive_avgpool {h + 1}x{w} }}", "concat { in; pad 1 }"),
    "E0303": (
        lambda rng, c, h, w: f"mul {{ upsample size={h + 1}x{w}; upsample size={h + 2}x{w} }}",
        lambda rng, c, h, w: f"mul {{ conv 1x1 {c + 1}; conv 1x1 {c + 2} }}",
    ),
    "E0304": (lambda rng, c, h, w: f"conv {h + 1}x1 4 pad=0", lambda rng, c, h, w: f"maxpool {h + 1}x{w}"),
    "E0305": (lambda rng, c, h, w: rng.choice(["conv 2x2 4", "conv 4x3 4", "conv 3x2 4"]),),
    "E0306": (
        lambda rng, c, h, w: f"gn {c + 1}",
        lambda rng, c, h, w: f"conv 1x1 {c + 1} groups={c + 1}",
        lambda rng, c, h, w: f"channel_shuffle {c + 1}",
        lambda rng, c, h, w: f"conv 1x1 {4 * c + 1} | pixel_shuffle 2",
        lambda rng, c, h, w: f"pixel_unshuffle {h + 1}",
        lambda rng, c, h, w: f"conv 1x1 {2 * c + 1} | glu",
    ),
    "E0307": ("linear 3",),
    "E0309": ("avgpool 1x1 pad=1", lambda rng, c, h, w: f"pad (-{max(h, w)})"),
    "E0310": (lambda rng, c, h, w: f"slice 0..{c + 1}", lambda rng, c, h, w: f"slice {c}..{c + 2}"),
    "E0402": ('require in.c == 0, "no channels, but {in.c}"', lambda rng, c, h, w: f"squeeze_excite ratio={c + 1}"),
    "E0403": ("repeat 0 { relu }", "relu repeat=5000"),
    "E0404": ("repeat 4096 { repeat 6 { relu } }",),
    "E0405": (
        f"times {'(' * 40}1{')' * 40}",
        "times 9999999999999999999",
        lambda rng, c, h, w: f"times ({'1 + ' * 70}1)",
        lambda rng, c, h, w: f"conv 1x1 {'9' * 9} | conv 1x1 {'9' * 9} | conv 1x1 {c}",
        "upsample 999999999 | upsample 999999999",
    ),
}
"""Statements with exactly one error of each code, for a map with `c` channels, height `h` and width `w`."""

AT_TOP: dict[str, tuple[Writer, ...]] = {
    "E0208": ("aux extra from @no_such_label { flatten | linear classes }",),
    "E0210": ("block endless() { relu | endless }\nendless",),
    "E0211": (
        "let twice_named = 1\nlet twice_named = 2",
        "block twice_taken(a = 1, a = 2) { relu }\ntwice_taken",
        "param twice_stated = 1\nparam twice_stated = 2",
    ),
    "E0212": ('use conv_bn from "no_such_file.cnn"',),
    "E0218": ('use conv_bn from "../../outside.cnn"',),
    "E0311": ("kept: relu\ndead: conv 1x1 4\n@kept | tanh",),
    "E0312": ("seen: relu\naux extra from @seen { flatten | linear classes + 1 }",),
    "E0401": ("expect depth > 1000", "expect output = [classes, 7, 7, 7]", "expect params = 123.4G"),
    "E0204": ("block odd(c: number) { relu }\nodd 3",),
    "E0201": ("init conv kaiming", "default dropuot p=0.5"),
}
"""Top-level statements with exactly one error of each code."""

IN_TEXT: dict[str, tuple[Callable[[Rng, str], str], ...]] = {
    "E0101": (
        lambda rng, line: f"{line} | | relu",
        lambda rng, line: f"{line}, relu",
        lambda rng, line: f"{line} | dropout(p=0.5)",
        lambda rng, line: f"{line} | relu = 3",
    ),
    "E0102": (
        lambda rng, line: f"{line} {rng.choice('})]')}",
        lambda rng, line: f"{line} {rng.choice('([')}",
        lambda rng, line: f"{line} | {{ relu",
    ),
    "E0103": (
        lambda rng, line: f"{line} | dropout {rng.choice('$€§?')}",
        lambda rng, line: f"{line} | dropout 5abc",
        lambda rng, line: f'{line} | relu name="open',
    ),
    "E0104": (lambda rng, line: f"{line} | inner: relu",),
    "E0106": (lambda rng, line: f"{line} | dropout 0.5 x2",),
}
"""Syntax errors, given a statement that occupies one line."""

CODES = tuple(sorted({*IN_BODY, *AT_TOP, *IN_TEXT}))
"""The codes of the errors that can be planted."""


def _statements(text: str) -> list[ast.Statement]:
    reporter = Reporter()
    file = parse(Source("fault", text + "\n"), reporter)
    if file is None or reporter.failed:  # text that does not parse cannot be planted into a tree
        return []
    return list(_without_places(file.statements))


def _without_places(piece: Any) -> Any:
    """Return a copy of a syntax tree with all spans removed."""
    if isinstance(piece, tuple):
        return tuple(_without_places(part) for part in piece)
    if isinstance(piece, Span):
        return NOWHERE
    if isinstance(piece, ast.Record):
        return type(piece)(**{name: _without_places(getattr(piece, name)) for name in piece.fields})
    return piece


def draw_faulty(randint: RandInt, code: str | None = None) -> FaultySpec:
    """Generate a spec with exactly one error, either of the given code or of any code."""
    rng = Rng(randint)
    code = code or rng.choice(CODES)
    tables: list[str] = [
        name for name, table in (("body", IN_BODY), ("top", AT_TOP), ("text", IN_TEXT)) if code in table
    ]
    where = rng.choice(tables)
    if where == "text":
        return _in_text(randint, code, rng)
    writer = rng.choice((IN_BODY if where == "body" else AT_TOP)[code])

    def plant(rng: Rng, x: Shape) -> list[ast.Statement]:
        return _statements(_write(writer, rng, x[0], x[1], x[2]))

    generator = SpecGenerator(randint, plant, nested=where == "body")
    drawn = generator.file()
    if not generator.faulty:
        return _in_lines(randint, code, writer)
    text = format_file(drawn)
    read = parse(Source("faulty", text), Reporter())
    if read is None:
        return _in_lines(randint, code, writer)
    first = next(i for i, statement in enumerate(drawn.statements) if statement is generator.outermost)
    found: list[ast.Top] = list(read.statements[first : first + (1 if generator.inside else len(generator.faulty))])
    if generator.inside and isinstance(found[0], ast.Flow) and isinstance(found[0].elements[0], ast.Braces):
        found = list(found[0].elements[0].body[generator.inside :])
    ends = [statement.span.source.position(statement.span.end)[0] for statement in found]
    return FaultySpec(text, code, (found[0].span.line, max(ends)))


def _plain_lines(text: str) -> list[int]:
    """Return the indices of the lines that hold one complete pipeline of the network."""
    lines = text.split("\n")
    depth, found = 0, list[int]()
    for i, line in enumerate(lines):
        following = lines[i + 1].lstrip() if i + 1 < len(lines) else ""
        plain = re.match(r"(\w+:|stem|stage|head)? *(conv|bn|relu|gelu|maxpool|global_avgpool|flatten)\b", line)
        whole = all(line.count(a) == line.count(b) for a, b in ("()", "[]"))
        if (
            depth == 0
            and plain
            and whole
            and not re.search(r"[{}\"#]|\bwhen\b", line)
            and not following.startswith("|")
        ):
            found.append(i)
        depth += line.count("{") - line.count("}")
    return found


def _in_text(randint: RandInt, code: str, rng: Rng) -> FaultySpec:
    """Plant a syntax error on one line of a valid spec."""
    lines = format_file(SpecGenerator(randint).file()).split("\n")
    plain = _plain_lines("\n".join(lines))
    at = rng.choice(plain) if plain else len(lines) - 1
    lines[at] = rng.choice(IN_TEXT[code])(rng, lines[at] or "relu")
    return FaultySpec("\n".join(lines), code, (at + 1, at + 1))


def _in_lines(randint: RandInt, code: str, writer: Writer) -> FaultySpec:
    """Plant an error that no tree can represent, on its own lines after the header of a valid spec."""
    generator = SpecGenerator(randint)
    lines = format_file(generator.file()).rstrip("\n").split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("classes"))
    image = next(line for line in lines if line.startswith("input")).split()[-1]
    c, h, w = (int(size) for size in image.split("x"))
    added = _write(writer, generator.rng, c, h, w).split("\n")
    lines[at + 1 : at + 1] = added
    return FaultySpec("\n".join([*lines, ""]), code, (at + 2, at + 1 + len(added)))
