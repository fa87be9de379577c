"""Named attacks: small specs that would exhaust time or memory without limits, and files that are not specs.

Most must be rejected; the heavy ones are valid.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cnnspec.limits import MAX_FILE_BYTES

_HEAD = "network bomb\ninput 3x32x32\nclasses 10\n"

Attack = Callable[[Path], Path]
"""Write the files of an attack into a folder, and return the file to check."""


def _spec(body: str, head: str = _HEAD) -> Attack:
    return _raw((head + body + "\n").encode("utf-8", "surrogatepass"))


def _raw(data: bytes) -> Attack:
    def place(folder: Path) -> Path:
        (folder / "bomb.cnn").write_bytes(data)
        return folder / "bomb.cnn"

    return place


def _files(main: str, others: dict[str, str]) -> Attack:
    def place(folder: Path) -> Path:
        for name, text in others.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, "utf-8")
        (folder / "bomb.cnn").write_text(main, "utf-8")
        return folder / "bomb.cnn"

    return place


def _linked(target: Callable[[Path], Path], use: str) -> Attack:
    """Create a file that is a link to a file outside its folder."""

    def place(folder: Path) -> Path:
        inner = folder / "inner"
        inner.mkdir()
        (folder / "secret.cnn").write_text("block secret() { relu }\n", "utf-8")
        (inner / "link.cnn").symlink_to(target(folder))
        (inner / "bomb.cnn").write_text(_HEAD + use, "utf-8")
        return inner / "bomb.cnn"

    return place


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.cnn")
    (folder / "bomb.cnn").write_text(_HEAD + 'use a from "pipe"\na\n', "utf-8")
    return folder / "bomb.cnn"


def _folder(folder: Path) -> Path:
    (folder / "bomb.cnn").mkdir()
    return folder / "bomb.cnn"


def _tower(levels: int, twice: str = "{0}\n{0}", first: str = "relu") -> str:
    """Return a chain of blocks, each calling the previous one twice."""
    blocks = [f"block b0() {{ {first} }}"]
    blocks += [f"block b{i}() {{\n{twice.format(f'b{i - 1}')}\n}}" for i in range(1, levels)]
    return "\n".join([*blocks, f"b{levels - 1}"])


def _nested(levels: int, opening: str, inner: str, closing: str = "}") -> str:
    return opening * levels + inner + closing * levels


_CHAIN = {f"f{i}.cnn": f'use b{i + 1} from "f{i + 1}"\nblock b{i}() {{ b{i + 1} }}\n' for i in range(40)}
_WIDE = {f"w{i}.cnn": f"block w{i}() {{ relu }}\n" for i in range(200)}
_LARGE = {f"l{i}.cnn": f"block l{i}() {{ relu }}\n" + "block x() { relu }\n" * 1_500 for i in range(20)}

BOMBS: dict[str, Attack] = {
    # repeats and blocks
    "nested_repeats": _spec(_nested(8, "repeat 4096 { ", "relu ")),
    "nested_call_repeats": _spec("block a() { relu x4096 }\nblock b() { a x4096 }\nb x4096"),
    "huge_repeat": _spec("relu x999999999"),
    "huge_repeat_expression": _spec("repeat 1000 * 1000 * 1000 { relu }"),
    "repeat_of_image": _spec("repeat in.h * in.w * in.c * 1000 { relu }"),
    "repeat_of_nothing": _spec("repeat 4096 { repeat 4096 { relu when 1 == 2 } }"),
    "repeat_of_lets": _spec("repeat 4096 { repeat 4096 { let a = 1 } }"),
    "repeat_of_sums": _spec("repeat 4096 { repeat 9 { times (" + "1 + " * 60 + "1) } }"),
    "repeat_of_conditions": _spec("repeat 4096 { repeat 4096 { if 1 == 2 { relu } } }"),
    "repeat_of_requires": _spec("repeat 4096 { repeat 4096 as i { require i >= 0 } }"),
    "tower_of_two": _spec(_tower(40)),
    "tower_of_three": _spec(_tower(30, "{0}\n{0}\n{0}")),
    "tower_in_joins": _spec(_tower(40, "add {{ {0}; {0} }}")),
    "tower_of_concat": _spec(_tower(40, "concat {{ in; {0} }}\n{0}")),
    "tower_of_conditions": _spec(_tower(40, "if in.c == 3 {{ {0} }} else {{ relu }}\n{0}")),
    "tower_of_nothing": _spec(_tower(40, first="relu when 1 == 2")),
    "tower_of_empty_lets": _spec(_tower(40, first="let a = 1")),
    "long_chain_of_blocks": _spec(_tower(2_000, "{0}")),
    "block_calls_itself": _spec("block a() { relu | a }\na"),
    "blocks_call_one_another": _spec("block a() { b }\nblock b() { c }\nblock c() { a }\na"),
    "deep_braces_in_blocks": _spec(
        "block b0() { relu }\n"
        + "\n".join(f"block b{i}() {{ {_nested(28, '{ ', f'b{i - 1} ')} }}" for i in range(1, 30))
        + "\nb29"
    ),
    "each_of_huge_repeats": _spec("each conv(kernel c repeat) {\n" + "1 3 4096\n" * 500 + "}"),
    "huge_table": _spec("each conv(kernel c) {\n" + "1 3\n" * 40_000 + "}"),
    "wide_table": _spec("each conv(" + " ".join(f"c{i}" for i in range(300)) + ") {\n" + "1 " * 300 + "\n}"),
    # numbers
    "huge_integer": _spec("conv 1x1 " + "9" * 1_900),
    "huge_integer_in_words": _spec("conv 1x1 " + "9" * 100),
    "huge_float": _spec("times 1e308 * 1e308"),
    "tiny_fraction": _spec("times 1 / 999999937 / 999999929 / 999999893 / 999999883 / 999999797"),
    "tower_of_products": _spec(
        "let a0 = 999999999\n" + "".join(f"let a{i} = a{i - 1} * a{i - 1}\n" for i in range(1, 40)) + "times a39"
    ),
    "tower_of_roots": _spec("times " + "sqrt(" * 30 + "0 - 1" + ")" * 30),
    "root_of_negative": _spec("conv 1x1 sqrt(0 - 1)"),
    "round_to_zero": _spec("conv 1x1 round_to(8, 0)"),
    "round_to_huge": _spec("conv 1x1 round_to(1, 999999999) * round_to(1, 999999999)"),
    "division_by_zero": _spec("conv 1x1 8 // (in.c - in.c)"),
    "huge_volume": _spec("conv 1x1 3", "input 999999999999x999999999999x999999999999\n"),
    "huge_image": _spec("conv 1x1 3", "input 999999999x999999999x999999999\n"),
    # sizes
    "huge_kernel": _spec("conv 999999999x999999999 999999999"),
    "huge_channels": _spec("conv 1x1 999999999 | conv 1x1 999999999"),
    "huge_linear": _spec("upsample 10000 | flatten | linear 999999999"),
    "huge_padding": _spec("pad 999999999 | pad 999999999"),
    "tower_of_upsamples": _spec("upsample 1000\n" * 100),
    "tower_of_strides": _spec("maxpool 1x1 stride=4\nconv_transpose 3x3 3 stride=3\n" * 30),
    "many_sizes": _spec("conv 1 1 stride=4096\nrepeat 4000 as i { pad i+1 | pad -(i+1) }"),
    "many_flattened_maps": _spec(
        "x: relu\nflatten\nrepeat 700 as i { concat { in; @x | maxpool i+1 | flatten } }\nlinear 2",
        "network bomb\ninput 1x3000x3000\n",
    ),
    "doubling_channels": _spec("concat { in; in }\n" * 60),
    "large_groups": _spec("conv 1x1 999999936 | gn 999999937", "network t\ninput 1x1x1\n"),
    # nesting and length
    "nested_braces": _spec(_nested(5_000, "{ ", "relu ")),
    "nested_parentheses": _spec("times " + "(" * 900 + "1" + ")" * 900),
    "nested_lists": _spec("pad " + "[" * 900 + "1" + "]" * 900),
    "nested_joins": _spec(_nested(500, "add { in; ", "relu ")),
    "nested_conditions": _spec(_nested(500, "if 1 == 1 { ", "relu ")),
    "nested_choices": _spec("times " + "if 1 == 1 then 1 else\n" * 200 + "1"),
    "long_sum": _spec("times (" + " + ".join(["1"] * 450) + ")"),
    "long_sum_of_lines": _spec("times (" + "1\n+ " * 20_000 + "1)"),
    "long_nots": _spec("relu when " + "not " * 450 + "true"),
    "long_negation": _spec("times (" + "-" * 1_500 + "1)"),
    "long_line": _spec("relu | " * 500 + "relu"),
    "long_pipeline": _spec("relu\n" + "| relu\n" * 30_000),
    "long_word": _spec("r" * 1_900),
    "long_label": _spec("r" * 1_900 + ": relu"),
    "long_string": _spec('relu name="' + "a" * 1_900 + '"'),
    "large_file": _raw(_HEAD.encode() + b"relu\n" * (MAX_FILE_BYTES // 4)),
    "ten_thousand_labels": _spec("".join(f"l{i}: relu\n" for i in range(10_000))),
    "ten_thousand_lets": _spec("".join(f"let v{i} = {i}\n" for i in range(10_000)) + "relu"),
    "two_thousand_lets": _spec("".join(f"let v{i} = {i}\n" for i in range(2_000)) + "relu"),
    "ten_thousand_blocks": _spec("".join(f"block b{i}() {{ relu }}\n" for i in range(10_000)) + "relu"),
    "thousand_faults": _spec("dropout 2\n" * 1_000),
    "thousand_unknown_words": _spec("".join(f"resnet_blok{i} c=3\n" for i in range(1_000))),
    "pattern_of_names": _spec('block a(s: str) { relu x4096 name="' + "{s}" * 40 + '" }\na s="' + "a" * 120 + '"'),
    "pattern_in_patterns": _spec('relu x4096 name="' + "{n}" * 600 + '"'),
    "message_of_messages": _spec(
        'block a(s: str) { require 1 == 2, "' + "{s}" * 600 + '" }\na s="' + "a" * 1_900 + '"'
    ),
    "long_paths": _spec(
        "block b0() { "
        + "a" * 120
        + ": relu }\n"
        + "\n".join(f"block b{i}() {{ {'a' * 120}: b{i - 1} }}" for i in range(1, 40))
        + "\nb39"
    ),
    # files
    "extends_itself": _files('extends "bomb"\n', {}),
    "uses_itself": _files(_HEAD + 'use a from "bomb"\nblock a() { relu }\na\n', {}),
    "cycle_of_two": _files('extends "other"\n', {"other.cnn": 'extends "bomb"\n'}),
    "deep_files": _files(_HEAD + 'use b0 from "f0"\nb0\n', _CHAIN | {"f40.cnn": "block b40() { relu }\n"}),
    "deep_extends": _files('extends "e0"\n', {f"e{i}.cnn": f'extends "e{i + 1}"\n' for i in range(40)}),
    "many_files": _files(_HEAD + "".join(f'use w{i} from "w{i}"\n' for i in range(200)) + "relu\n", _WIDE),
    "many_large_files": _files(_HEAD + "".join(f'use l{i} from "l{i}"\n' for i in range(20)) + "relu\n", _LARGE),
    "outside_by_dots": _files(_HEAD + 'use a from "../../../../etc/passwd"\na\n', {}),
    "outside_by_root": _files(_HEAD + 'use a from "/etc/passwd"\na\n', {}),
    "outside_by_link": _linked(lambda folder: folder / "secret.cnn", 'use secret from "link"\nsecret\n'),
    "outside_by_link_of_extends": _linked(lambda folder: folder / "secret.cnn", 'extends "link"\n'),
    "link_to_itself": _linked(lambda folder: folder / "inner" / "link.cnn", 'use a from "link"\na\n'),
    "link_to_device": _linked(lambda folder: Path("/dev/zero"), 'use a from "link"\na\n'),
    "pipe_as_file": _pipe,
    "device_as_spec": lambda folder: Path("/dev/zero"),
    "folder_as_spec": _folder,
    "missing_spec": lambda folder: folder / "missing.cnn",
    "very_long_file_name": lambda folder: folder / ("a" * 5_000 + ".cnn"),
    "very_long_used_name": _spec('use a from "' + "a/" * 900 + '"\na'),
    "long_used_name": _spec('use a from "' + "a" * 900 + '"\na'),
    "null_in_used_name": _raw(_HEAD.encode() + b'use a from "a\0b"\na\n'),
    # encodings and characters
    "not_utf8": _raw(_HEAD.encode() + b"relu \xff\xfe\n"),
    "nulls": _raw(_HEAD.encode() + b"re\0lu\n"),
    "utf16": _raw((_HEAD + "relu\n").encode("utf-16")),
    "all_nulls": _raw(b"\0" * 100_000),
    "unicode_digits": _spec("conv ３x３ ٨"),
    "homoglyphs": _spec("сonv 3x3 8"),
    "right_to_left": _spec("relu \u202e 3x3 conv"),
    "invisible_letters": _spec("re\u200blu"),
    "line_separators": _spec("relu\u2028conv 3x3 8\u2029relu"),
    "byte_order_mark_inside": _spec("\ufeffrelu"),
}
"""Each attack must be rejected immediately, with an error that names the limit or the mistake."""


def _deep(levels: int, name: str, inner: str, count: int) -> str:
    """Return calls of a chain of blocks with labels, for modules at the end of long paths."""
    blocks = [f"block b0() {{ {inner} }}"]
    blocks += [f"block b{i}() {{ {name}: b{i - 1} }}" for i in range(1, levels)]
    return "\n".join([*blocks, *(f"l{i}: b{levels - 1}" for i in range(count))])


def _each(values: Iterable[object], line: str) -> str:
    """Return a line for each value, with the value in place of `$`."""
    return "\n".join(line.replace("$", str(value)) for value in values)


def _image(shape: str, body: str) -> Attack:
    return _spec(body, f"network heavy\ninput {shape}\n")


_PRIMES = (4093, 4091, 4079, 4073, 4057, 4051, 4049, 4027, 4021, 4019, 4013, 4007, 4003, 4001, 3989, 3967)
_SHARED_RATE = "repeat 1000 { maxpool 3x3 stride=2 pad=1 | conv_transpose 3x3 1 stride=2 }"

HEAVY: dict[str, Attack] = {
    # receptive fields of large maps, large windows and long periods
    "upsamples": _image("3x64x64", "repeat 300 { upsample 4096 | maxpool 4096 }\nconv 1x1 4"),
    **{
        f"resizes, {mode}": _image(
            "3x1021x1021",
            f"repeat 3000 {{ upsample size=1023x1023 mode={mode} | upsample size=1021x1021 mode={mode} }}",
        )
        for mode in ("nearest", "bilinear", "bicubic")
    },
    "large transposed kernels": _image("1x1024x1024", "repeat 100 { conv_transpose 4095x4095 1 pad=2047 }"),
    "large transposed strides": _image("1x1024x1024", "repeat 300 { conv_transpose 1x1 1 stride=4096 | maxpool 4096 }"),
    "joins with a long period": _image(
        "1x1024x1024", "x: conv_transpose 1x1 1 stride=4096\nrepeat 2000 { add { in; conv 1x1 1; @x } }"
    ),
    "branches with a long period": _image(
        "1x64x64", "x: upsample 4093\nconcat {\n" + "in\n" * 2000 + "@x | maxpool 3 stride=1 pad=1\n" * 500 + "}"
    ),
    "large kernels": _image("1x1024x1", "repeat 1000 { conv 1001x1 1 pad=500x0 }"),
    "large windows": _image("1x1024x1024", "repeat 3000 { avgpool 1023 stride=1 pad=511 }"),
    "whole maps": _image("4x1024x1024", "repeat 4096 { gn 2 }\nrepeat 4096 { gn 2 }"),
    "pools of a fixed size": _image("3x1024x1024", "repeat 3000 { adaptive_avgpool 1023 | adaptive_avgpool 1024 }"),
    # many modules, long paths
    "chain": _spec("repeat 4096 { relu }\nrepeat 4096 { conv 1x1 3 }\nrepeat 1700 { bn }"),
    "slices of one scope": _image("9000x1x1", "slice 0..9000\n" * 1500),
    "joins of one scope": _spec("add { in; in }\n" * 1300),
    "joins in repeats": _spec("repeat 4096 { add { in; in } }\nrepeat 4096 { add { in; in } }"),
    "repeats in repeats": _spec(_nested(13, "repeat 2 { ", "relu ")),
    "dense joins": _spec("conv 1x1 8\nrepeat 1500 { concat { in; bn | relu | conv 3x3 4 } }"),
    "wide joins": _spec("repeat 9 { concat {\n" + "in\n" * 3000 + "}\nconv 1x1 3 }"),
    "blocks in a repeat": _spec("conv 1x1 8\nrepeat 1400 { resnet_block 8 }"),
    "long labels": _spec(_deep(15, "a" * 120, "relu x600", 16)),
    "long labels of joins": _spec(_deep(15, "a" * 120, "repeat 300 { add { in; in } }", 16)),
    "deep modules": _spec(_deep(90, "a" * 15, "relu x600", 16)),
    "deep joins": _spec(_deep(90, "a" * 15, "repeat 300 { add { in; in } }", 16)),
    "many heads": _spec(
        "a: relu\nflatten | linear classes\n"
        + _each(range(500), "aux h$ from @a { relu x14; flatten | linear classes }")
    ),
    # sizes as functions of the image size
    "different crops": _image("1x64x64", "conv 3x3 1 pad=4096\nrepeat 3000 { pad -1 }"),
    "different pads": _image("1x64x64", "conv 3x3 1 stride=4 pad=4096\nrepeat 3000 as i { pad i+1 | pad -(i+1) }"),
    "flattened maps": _image(
        "1x4096x4096", "x: relu\nflatten\nrepeat 200 as i { concat { in; @x | maxpool i+1 | flatten } }\nrelu x4000"
    ),
    "no closed form": _image("1x640x640", _SHARED_RATE),
    "products of products": _image(
        "1x1x1", "repeat 12 { mul { maxpool 3 stride=2 pad=1; conv 2x2 1 pad=1 stride=2 } }\nrelu x2000"
    ),
    "products of strides": _image(
        "1x1x1",
        _each([*range(2, 10)] * 30, "mul { conv 3x3 1 pad=1 stride=$; conv 5x5 1 pad=2; adaptive_avgpool 1 }"),
    ),
    "products of flattened maps": _image(
        "1x1x1", _each(range(2, 9), "a$: mul { in; maxpool 3 stride=$ pad=1 }") + "\nflatten"
    ),
    # sets of valid sizes
    "sums of strides": _image(
        "1x4096x4096",
        _each(range(2, 400), "add { maxpool 1x1 stride=$; maxpool $ stride=$ ceil }\nupsample size=4096x4096"),
    ),
    "sums of prime strides": _image(
        "1x4096x4096",
        "x: relu\nconcat {\n"
        + _each(_PRIMES * 6, "add { @x | maxpool 1x1 stride=$; @x | maxpool $ stride=$ ceil } | adaptive_avgpool 1")
        + "\n}",
    ),
    "layers of flattened maps": _image(
        "1x400x400", "x: relu\nconcat {\n" + _each(range(2, 300), "@x | maxpool $ stride=$ | flatten | linear 2") + "}"
    ),
    # fixes and lints
    "biases": _spec("conv 3x3 4 bias | bn\n" * 1100),
    "repeated biases": _spec("repeat 2000 { conv 3x3 4 bias | bn }"),
    "strides of points": _spec("global_avgpool\n" + "maxpool 1 stride=2\n" * 1200),
    "unused values": _spec(_each(range(1000), "let v$ = $") + "\nrelu x4096\nrelu x4096"),
    "unused blocks": _spec(_each(range(1000), "block b$() { relu }") + "\nrelu x4096\nrelu x4096"),
}
"""Valid specs on which a command took, or could take, a long time."""
