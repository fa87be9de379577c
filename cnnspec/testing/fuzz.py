"""Generate hostile or meaningless text: damaged specs, noise, similar names, and text as long as the limits allow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cnnspec.limits import MAX_FILE_BYTES, MAX_WORDS
from cnnspec.syntax import count_words
from cnnspec.syntax.formatter import format_file
from cnnspec.testing.draw import RandInt, Rng
from cnnspec.testing.generator import SpecGenerator

_HEAD = "network t\ninput 3x32x32\nclasses 10\n"
WORDS = (
    "network input classes param block default init expect train use extends aux let require when repeat as each if "
    "then else in nothing or and not true false once output add mul concat stem stage head conv bn relu linear flatten "
    'resnet_block conv_bn op int x3 3x3 3x32x32 16 0.5 1e-3 40M 1% name: @stem in.c in.q min( ceil( " # ; | { } '
    "( ) [ ] , . = == <= .. + - * / // % \n \n \n \t \r \0 é ١ ＣＯＮＶ 𝟛 {n} {in.c} "
    "99999999999999999999 1e999 -1 (-1) ..3 3.. §"
).split(" ")


@dataclass(frozen=True)
class Repetition:
    """Text that repeats one kind of line up to the limits. `$` in the line is replaced by its number."""

    line: str
    head: str = ""
    tail: str = "relu"

    def text(self, words: int = MAX_WORDS) -> str:
        """Return the text with at most the given number of words."""
        head, tail = f"{_HEAD}{self.head}\n", f"{self.tail}\n"
        left = words - count_words(head) - count_words(tail)
        room = MAX_FILE_BYTES - len((head + tail).encode())
        each = max(count_words(self.line.replace("$", "1")), 1)
        out: list[str] = []
        for i in range(left // each):
            line = self.line.replace("$", str(i)) + "\n"
            room -= len(line.encode())
            if room < 0:
                break
            out.append(line)
        return head + "".join(out) + tail


_CONSTANTS = "".join(f"let v{i} = {i}\n" for i in range(1_000))

_STEMS = {"long": "a" * 120, "medium": "ab" * 14, "various": "abcdefgh" * 3}
_SIMILAR: dict[str, Repetition] = {}
for _kind, _stem in _STEMS.items():
    _many = [f"{_stem}{i}" for i in range(250)]
    _parameters = ",\n".join(f"{name} = 1" for name in _many)
    _flags = ",\n".join(f"{name} = false" for name in _many)
    _SIMILAR |= {
        f"{_kind} references": Repetition(f"{_stem}$: relu\n@{_stem}x$ | relu"),
        f"{_kind} calls": Repetition(f"{_stem}x$", "\n".join(f"block {name}() {{ relu }}" for name in _many)),
        f"{_kind} values": Repetition(f"times {_stem}x$", "\n".join(f"param {name} = 1" for name in _many)),
        f"{_kind} arguments": Repetition(f"b {_stem}x$=3", f"block b({_parameters}) {{ relu }}"),
        f"{_kind} flags": Repetition(f"b {_stem}x$", f"block b({_flags}) {{ relu }}"),
        f"{_kind} functions": Repetition(f"times {_stem}$(2)"),
        f"{_kind} types": Repetition(f"block b$(x: {_stem}$) {{ relu }}"),
        f"{_kind} inits": Repetition(f"init {_stem}$ {_stem}"),
        f"{_kind} schemes": Repetition(f"init conv {_stem}$"),
        f"{_kind} metrics": Repetition(f"expect {_stem}$ > 2"),
        f"{_kind} entries": Repetition(f"{_stem}$ 2", "relu\ntrain {", "}"),
        f"{_kind} augmentations": Repetition(f"| {_stem}$", "relu\ntrain {\naugment hflip", "}"),
        f"{_kind} datasets": Repetition(f"data {_stem}$", "relu\ntrain {", "}"),
        f"{_kind} statements": Repetition(f"{_stem}$ 3 = 4"),
        f"{_kind} defaults": Repetition(f"default conv {_stem}$=2"),
        f"{_kind} heads": Repetition(f"a{_stem}$: relu\naux h$ from @{_stem}$ {{ flatten | linear classes }}"),
        f"{_kind} uses": Repetition(f'use {_stem}$ from "blocks/conv_bn.cnn"'),
        f"{_kind} files": Repetition(f'use b$ from "{_stem}$.cnn"'),
        f"{_kind} extensions": Repetition(f"extends resnet20 {_stem}$=3"),
    }

REPETITIONS: dict[str, Repetition] = {
    "labels": Repetition("l$: relu"),
    "equal labels": Repetition("l: relu"),
    "lets": Repetition("let v$ = $"),
    "lets of the image": Repetition("let v$ = in.c"),
    "lets in a block": Repetition("let v$ = $", "block b() {", "relu\n}\nb"),
    "lets in braces": Repetition("{ let v = $; relu }"),
    "many values, many lets": Repetition("{ let v = in.c; relu }", _CONSTANTS),
    "many values, many braces": Repetition("{ relu }", _CONSTANTS),
    "many values, many calls": Repetition("b", _CONSTANTS + "block b() { times v1 + v999 }"),
    "many values, many blocks": Repetition("block b$() { relu }\nb$", _CONSTANTS),
    "many values, a long repeat": Repetition("repeat 4096 { let a = v1; relu when a == 2 }", _CONSTANTS),
    "many values, unknown names": Repetition("times w$", _CONSTANTS),
    "params": Repetition("param p$ = $"),
    "parameters of a block": Repetition("p$ = 1,", "block b(", ") { relu }\nb"),
    "arguments of a block": Repetition("b p1=2 p2=3 p3=4 p4=5", "block b(p1 = 1, p2 = 1, p3 = 1, p4 = 1) { relu }"),
    "blocks": Repetition("block b$() { relu }"),
    "blocks that are called": Repetition("block b$() { relu }\nb$"),
    "equal blocks": Repetition("block b() { relu }"),
    "blocks and unknown calls": Repetition("block b$() { relu }\nc$"),
    "standard blocks": Repetition("resnet_block 4"),
    "comments": Repetition("#"),
    "trailing comments": Repetition("relu # a word, and another"),
    "empty lines": Repetition(""),
    "blank lines": Repetition(" " * 1999),
    "semicolons": Repetition(";"),
    "braces": Repetition("{" * 28 + "relu" + "}" * 28),
    "open braces": Repetition("{ relu"),
    "closed braces": Repetition("}"),
    "parentheses": Repetition("times " + "(" * 28 + "1" + ")" * 28),
    "pipes": Repetition("| relu"),
    "only pipes": Repetition("|"),
    "a list": Repetition("1,", "pad [", "1]"),
    "a minimum": Repetition("1,", "times min(", "1)"),
    "sums": Repetition("times (" + "1 + " * 60 + "1)"),
    "nots": Repetition("relu when " + "not " * 60 + "true"),
    "choices": Repetition("times (if 1 == 1 then 2 else if 2 == 2 then 3 else 4)"),
    "numbers": Repetition("9" * 120),
    "fractions": Repetition("times 1.000000001 * 1.00000001"),
    "branches of add": Repetition("in", "add {", "}"),
    "branches of concat": Repetition("in", "concat {", "}"),
    "branches of mul": Repetition("in", "mul {", "}"),
    "labeled branches": Repetition("l$: relu", "add {", "}"),
    "joins": Repetition("add { in; add { in; add { in; relu } } }"),
    "references": Repetition("@a | relu", "a: relu"),
    "unknown references": Repetition("@a$"),
    "labels and unknown references": Repetition("l$: relu\n@a$"),
    "rows": Repetition("1 1", "each conv(kernel c) {", "}"),
    "labeled rows": Repetition("r$: 1 1", "each conv(kernel c) {", "}"),
    "short rows": Repetition("1", "each conv(kernel c) {", "}"),
    "unknown calls": Repetition("c$"),
    "long unknown calls": Repetition("c" * 120 + "$"),
    "misspelt calls": Repetition("resnet_bloc c=$"),
    "unknown names": Repetition("dropout nme$"),
    "unknown arguments": Repetition("relu a$=1"),
    "many arguments": Repetition("relu " + " ".join(f"a{i}=1" for i in range(100))),
    "missing arguments": Repetition("gn"),
    "wrong shapes": Repetition("linear 3"),
    "wrong joins": Repetition("add { in; conv 1x1 $ }"),
    "wrong groups": Repetition("conv 1x1 65536 | gn 65535"),
    "even kernels": Repetition("add { in; conv 2x2 3 }"),
    "nonsense": Repetition("= = ="),
    "half statements": Repetition("let a ="),
    "letters of others": Repetition("éèàü"),
    "open strings": Repetition('relu name="abc'),
    "requires": Repetition("require 1 == 1"),
    "requires that fail": Repetition('{ require 1 == 2, "' + "{classes}" * 100 + '" }'),
    "expects": Repetition("expect params >= 0", tail="conv 1x1 3"),
    "expects that fail": Repetition("expect params > 1G", tail="conv 1x1 3"),
    "inits": Repetition("init conv zero", tail="conv 1x1 3"),
    "defaults": Repetition("default conv bias", tail="conv 1x1 3"),
    "names": Repetition("network n$"),
    "inputs": Repetition("input 3x3x3"),
    "uses": Repetition('use b$ from "blocks/conv_bn.cnn"'),
    "uses of nothing": Repetition('use b$ from "no_such_file$.cnn"'),
    "extensions": Repetition("extends resnet20 n=$"),
    "heads": Repetition("aux h$ from @a { flatten | linear classes }", "a: conv 1x1 3", "flatten | linear classes"),
    "outputs": Repetition("output o$ from @a", "a: conv 1x1 3"),
    "outputs of a name": Repetition("output o from @a", "a: conv 1x1 3"),
    "outputs that miss a label": Repetition("output o$ from @b$", "a: conv 1x1 3"),
    "recipe": Repetition("batch $", "relu\ntrain {", "}"),
    "unknown recipe": Repetition("batch$ 3", "relu\ntrain {", "}"),
    "augmentations": Repetition("| hflip", "relu\ntrain {\naugment hflip", "}"),
    "conditions": Repetition("relu when in.c == 3"),
    "labels under conditions": Repetition("l$: relu when 1 == 2"),
    "branches": Repetition("if in.c == 3 { relu } else { tanh }"),
    "patterns": Repetition('conv 1x1 3 name="n$"'),
    "long patterns": Repetition('relu x4 name="' + "{n}" * 30 + '"'),
    "repeats": Repetition("relu x4096"),
    "repeated groups": Repetition("repeat 4096 { let a = 1 }"),
    "repeated requires": Repetition("repeat 4096 as i { require i >= 0 }"),
    "repeated sums": Repetition("repeat 4096 { let a = " + "1 + " * 60 + "1 }"),
    "convolutions": Repetition("conv 3x3 3"),
    "windows": Repetition("maxpool 3x3 stride=1 pad=1"),
    "strides": Repetition("add { maxpool 1x1 stride=2; maxpool 1x1 stride=2 }\nupsample 2"),
    "slices": Repetition("slice 0..3"),
    "stages": Repetition("stage relu"),
    "colons": Repetition("a:"),
    "carriage returns": Repetition("relu\r"),
    "wide sums": Repetition("conv 1x1 $ + 1", "add {", "}"),
    "sums of many": Repetition("add { " + "; ".join(f"conv 1x1 {i + 1}" for i in range(60)) + " }"),
    "long calls": Repetition("relu " + " ".join(f"a{i}=1" for i in range(300))),
    "misspelt operators": Repetition("convv 3x3 $ + 1"),
    "mistakes that are fixed in turn": Repetition("relu | convv 3x3 4 biass | batchnorm | reluu x 3"),
    "long comments": Repetition("# " + "x" * 1_990),
    "nested joins": Repetition("add { in; " * 28 + "relu | bn | conv 3x3 3 | relu" + " }" * 28),
    "nested branches": Repetition("if 1 == 1 { " * 28 + "relu" + " } else { relu }" * 28),
    **_SIMILAR,
}
"""Every kind of statement and mistake, repeated."""


def draw_text(randint: RandInt) -> tuple[str, str]:
    """Generate a text, and return its kind and the text."""
    rng = Rng(randint)
    kind = rng.randint(0, 99)
    if kind < 50:
        return "damaged", _damaged(rng)
    if kind < 55:
        return "similar names", _similar_names(rng)
    if kind < 60:
        return "heavy", _heavy(rng)
    if kind < 85:
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 80))]
        return "words", ("input 3x8x8\n" if rng.boolean() else "") + " ".join(words)
    if kind < 92:
        return "letters", "".join(chr(rng.choice([rng.randint(0, 0x2FF), rng.randint(32, 126)])) for _ in range(200))
    if kind < 99:
        data = bytes(rng.randint(0, 255) for _ in range(rng.randint(1, 200)))
        return "bytes", data.decode("utf-8", "replace")
    name = rng.choice(list(REPETITIONS))
    return name, REPETITIONS[name].text(rng.randint(100, 2_000))


def _damaged(rng: Rng) -> str:
    """Generate a valid spec and delete, duplicate, move or replace some of its text."""
    text = format_file(SpecGenerator(rng.randint).file())
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(text))
        end = min(len(text), at + rng.randint(0, 12))
        other = rng.randint(0, len(text))
        new = rng.choice(
            ["", text[at:end] * 2, text[other : other + 12], rng.choice(WORDS), str(10 ** rng.randint(1, 20))]
        )
        text = text[:at] + new + text[end:]
    return text


def _similar_names(rng: Rng) -> str:
    """Generate a spec with many similar names that are defined, and misspelled where they are used."""
    stem = "".join(rng.choice("ab_") for _ in range(rng.randint(1, 110))).strip("_") or "a"
    names = [f"{stem}{i}" for i in range(rng.randint(1, 200))]
    misspelled = [_misspell(rng, rng.choice(names)) for _ in range(rng.randint(1, 60))]
    define, use = rng.choice(
        [("$: relu", "@$ | relu"), ("param $ = 1", "times $"), ("block $() { relu }", "$"), ("let $ = 2", "relu $=1")]
    )
    lines = [*(define.replace("$", name) for name in names), *(use.replace("$", name) for name in misspelled)]
    return _HEAD + "\n".join(lines) + "\n"


def _misspell(rng: Rng, name: str) -> str:
    at = rng.randint(0, len(name))
    return name[:at] + rng.choice(["", "x", "ab", "_"]) + name[at + rng.randint(0, 2) :] or "x"


_SAME = (
    "relu", "bn", "in_norm", "times 2", "dropout 0.1", "maxpool s stride=1 pad=s // 2", "conv 3x3 in.c", "gn 1",
    "conv s in.c groups=in.c", "upsample s | maxpool s", "pad s | pad -s", "conv_transpose 3x3 in.c pad=1",
)  # fmt: skip
"""Elements that keep the shape of a map, or most of it, with a size `s`."""
_HEAVY = (
    *_SAME, "conv 1x1 c", "conv 3x3 c stride=s pad=1", "maxpool s", "maxpool 3 stride=s pad=1 ceil", "upsample s",
    "adaptive_avgpool s", "upsample size=sxs", "upsample s mode=bilinear",
    "upsample size=sxs mode=bicubic align_corners", "conv_transpose 3x3 c stride=s",
    "conv_transpose sxs c pad=s // 2", "pad -1", "slice 0..1",
)  # fmt: skip
"""Elements with a size `s` and channels `c`."""
_SIZES = (1, 2, 3, 5, 7, 16, 61, 64, 255, 1021, 1024, 4093)


def _heavy(rng: Rng) -> str:
    """Generate a short spec that can be slow to analyze: large maps, strides and repeats, joins, deep modules."""
    side = rng.choice([1, 7, 32, 64, 255, 1021, 1024])
    body = "\n".join(_heavy_flow(rng, rng.randint(0, 3)) for _ in range(rng.randint(1, 4)))
    tail = rng.choice(["", "flatten\n", "flatten | linear 2\n", "global_avgpool | flatten | linear 2\n"])
    return f"input {rng.choice([1, 2, 4])}x{side}x{side}\nx: relu\n{body}\n{tail}"


def _heavy_flow(rng: Rng, depth: int, elements: Sequence[str] = _HEAVY) -> str:
    """Generate elements, of which those in repeats and joins keep the shape of their input."""
    size = rng.choice(_SIZES)
    flow = " | ".join(rng.choice(elements) for _ in range(rng.randint(1, 3)))
    flow = re.sub(r"\bc\b", str(rng.choice([1, 2, 4])), re.sub(r"\bs\b", str(size | 1), flow.replace("in.c", "IN")))
    flow = flow.replace("IN", "in.c").replace("sxs", f"{size}x{size}")
    if depth == 0:
        return flow
    inner = _heavy_flow(rng, depth - 1, _SAME)
    count = rng.choice([2, 3, 10, 60, 300, 1_000, 4_096])
    joined = rng.choice(
        [
            f"repeat {count} {{ {inner} }}",
            f"repeat {count} as i {{ {inner} | pad i + 1 | pad -(i + 1) }}",
            f"add {{ in; {inner} }}",
            f"mul {{ in; {inner} }}",
            f"concat {{ {'in; ' * min(count, 300)} {inner} }}",
            f"{{ {inner} }}",
            f"y: {inner}",
        ]
    )
    return joined if elements is _SAME else f"{flow}\n{joined}"
