"""What a syntax error means, in the words of the language."""

from __future__ import annotations

import re

from cnnspec.diagnostics import Diagnostic, Edit, Fix, Source, Span, respell
from cnnspec.ops import FOREIGN_NAMES, JOINS, OPS
from cnnspec.recipe import Scalars
from cnnspec.syntax.build import percentage
from cnnspec.syntax.recovery import in_train
from cnnspec.syntax.words import FUNCTIONS, SCHEMES, TOP_WORDS

_ENTRIES = ("data", "augment", "optimizer", "schedule", *Scalars.parameters)
_MEANT = {"×": "x", "–": "-", "—": "-", "−": "-", "“": '"', "”": '"', "\u00a0": " ", "，": ",", "；": ";", "：": ":"}
"""What a character that is not part of the language stands for."""

_BLOCK = "a block is defined with `block name(c, stride = 1) { ... }`"
_REPEAT = "a group is repeated with `repeat 3 as i { ... }`"
_FOREIGN_WORDS = {
    **dict.fromkeys(("def", "func", "function", "fn", "class", "module"), _BLOCK),
    **dict.fromkeys(("for", "while", "loop"), _REPEAT),
}
"""First words of statements in other languages."""

_TORCH = {
    "Conv2d": " c kernel stride pad dilation groups bias",
    "Linear": " c bias",
    "MaxPool2d": "kernel stride pad",
    "AvgPool2d": "kernel stride pad",
    "Dropout": "p",
    "BatchNorm2d": " eps momentum",
}
"""Arguments of torch's modules in their order, as they are called here; the first of some is known here."""
_OPTIONS = {"out_channels": "c", "out_features": "c", "kernel_size": "kernel", "padding": "pad"}

_LAYERS = "a spec is a list of elements, in the order in which they run: `conv 3x3 16 | bn | relu`"
_FOREIGN_LINES = {
    r"(?:import|from)\s+[A-Za-z_][\w.]*": "a spec imports nothing: operators and standard blocks are there, others come by `use`",
    r"(?:self|super|model)\b(?=\s*[.(=])": _LAYERS,
    r"(?:[A-Za-z_]\w*\s*=\s*)?(?:torch\.)?(?:nn\.)?(?:Sequential|ModuleList)\s*\(": _LAYERS,
}
"""Beginnings of lines of Python, with what is to be said."""

_THREE = r"[(\[]?\s*([0-9]+)\s*[,*\s]\s*([0-9]+)\s*[,*\s]\s*([0-9]+)\s*[)\]]?"
"""Three numbers, as other languages write a shape."""

_NAMED = r"([A-Za-z_][A-Za-z0-9_]*)(\s*)$"
"""A name, and what is behind it."""

_WORDS = {
    "_NEWLINE": "the end of the line",
    "SEMICOLON": "`;`",
    "$END": "the end of the file",
    "NAME": "a name",
    "INT": "a number",
    "FLOAT": "a number",
    "SIZE": "a size like `3x3`",
    "VOLUME": "a size like `3x32x32`",
    "STRING": "a string in quotes",
    "LABEL": "a label",
    "REFERENCE": "a reference like `@stage1`",
    "PERCENT": "a percentage like `1%`",
    "RELATION": "one of `<=`, `>=`, `<`, `>`",
    "EQUAL": "`=`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "VBAR": "`|`",
    "_THEN": "`then`",
    "_ELSE": "`else`",
    "_FROM": "`from`",
}


def _operator(rest: str) -> str | None:
    """The operator behind a sign, as it is called here or elsewhere."""
    name = re.match(r"\W\s*([A-Za-z_][A-Za-z0-9_]*)", rest)
    return name.group(1) if name and name.group(1) in {*OPS, *JOINS, *FOREIGN_NAMES} else None


_CALL = re.compile(
    r"\s*(?P<all>(?:(?:self\.)?(?P<label>[A-Za-z_]\w*)\s*=\s*)?"
    r"(?P<call>(?:torch\.)?(?:nn\.)?(?P<name>[A-Z]\w*)\((?P<args>[^()]*)\))\s*,?)\s*(?:#.*)?"
)
"""A line that makes a torch module."""


def _translated(name: str, args: str) -> str | None:
    """A call of a torch module in the words of the language, where all of its arguments have some."""
    order = _TORCH.get(name)
    if order is None:
        alone = args.strip() in ("", "inplace=True", "True")
        return FOREIGN_NAMES.get(name) if alone else None
    given: dict[str, str] = {}
    places = order.split(" ")
    for place, arg in zip(places, args.split(",") if args.strip() else (), strict=False):
        key, _, value = arg.rpartition("=")
        key = key.strip() or place
        if not re.fullmatch(r"\s*[\w.]+\s*", value):
            return None
        given[_OPTIONS.get(key, key)] = {"True": "true", "False": "false"}.get(value.strip(), value.strip())
    known = {"", "in_channels", "in_features", "num_features"}
    if len(args.split(",")) > len(places) or given.keys() - known - set(places):
        return None
    kernel, c = (given.pop(key, "") for key in ("kernel", "c"))
    if name == "Conv2d":
        given.setdefault("pad", "0")
    kernel = f"{kernel}x{kernel}" if kernel.isdigit() else kernel
    written = [FOREIGN_NAMES[name], kernel, c, *(f"{key}={value}" for key, value in given.items() if key not in known)]
    return " ".join(filter(None, written))


def explain(source: Source, text: str, expected: set[str], at: int) -> Diagnostic:
    """A syntax error in the words of the language."""
    found = re.compile(r"\n|[0-9]+\.[0-9]+(?![A-Za-z0-9_.])|[A-Za-z0-9_]+|[^\sA-Za-z0-9_]|$").search(text, at)
    assert found is not None
    word = found.group()
    start = found.start()
    line_end = start >= len(text.rstrip()) or word in ("", "\n", "#")
    span = Span(source, start, start if line_end else found.end())
    before = text[text.rfind("\n", 0, at) + 1 : at]
    rest = text[at : (text + "\n").index("\n", at)]
    what = "the line ends too early" if line_end else f"`{word}` cannot stand here"
    code, help = "E0101", None
    fixes: list[Fix] = []

    def change(said: str, *edits: tuple[int, int, str], certain: bool = False) -> None:
        changes = tuple(Edit(Span(source, low, high), written) for low, high, written in edits)
        fixes.append(Fix(said, changes, certain))

    def top_word() -> str | None:
        first = re.match(r"\s*([A-Za-z_]+)", before)
        if first is None or first.group(1) in TOP_WORDS:
            return None
        head = at - len(before) + first.start(1)
        near, found = respell(Span(source, head, head + len(first.group(1))), first.group(1), TOP_WORDS)
        fixes.extend(found)
        return near

    def open_call() -> None:
        line = text.rfind("\n", 0, at) + 1
        for call in re.finditer(
            r"([A-Za-z_][A-Za-z0-9_]*) *\(([^()\n]*)\)", text[line : (text + "\n").index("\n", line)]
        ):
            if line + call.start() <= at <= line + call.end() and call.group(1) not in (*FUNCTIONS, *SCHEMES):
                args = re.sub(r"\s*=\s*", "=", re.sub(r"\s*,\s*", " ", call.group(2).strip()))
                change(
                    f"write `{call.group(1)} {args}`",
                    (line + call.start(), line + call.end(), f"{call.group(1)} {args}"),
                )

    line = at - len(before)
    foreign = _CALL.fullmatch(before + rest)
    if foreign and (translated := _translated(foreign["name"], foreign["args"])):
        span = Span(source, line + foreign.start("call"), line + foreign.end("call"))
        written = f"{foreign['label']}: {translated}" if foreign["label"] else translated
        what, help = f"`{foreign['name']}(...)` cannot stand here", f"write `{written}`"
        change(help, (line + foreign.start("all"), line + foreign.end("all"), written))
    elif said := next((say for first, say in _FOREIGN_LINES.items() if re.match(rf"\s*{first}", before + rest)), None):
        first = re.match(r"\s*([A-Za-z_]\w*)", before + rest)
        assert first is not None
        span = Span(source, line + first.start(1), line + first.end(1))
        what, help = f"`{first.group(1)}` cannot stand here", said
    elif (label := re.fullmatch(r"\s*([a-z]+)(\s*:\s*)", before)) and label.group(1) in TOP_WORDS and not line_end:
        help = f"a statement of the top takes no colon: `{label.group(1)} ...`"
        change("remove the colon", (line + label.start(2), line + label.end(2), " "), certain=True)
    elif (
        (entry := re.match(r"\s*([a-z_]+)\s*([:=]\s*)", before + rest))
        and at <= line + entry.end(2)
        and in_train(text, at)
    ):
        name = entry.group(1)
        what = f"`{entry.group(2).strip()}` cannot stand here"
        span = Span(source, line + entry.start(2), line + entry.start(2) + 1)
        if name in _ENTRIES:
            help = f"an entry of the train section takes no `{entry.group(2).strip()}`: `{name} ...`"
            change("remove it", (line + entry.end(1), line + entry.end(2), " "), certain=True)
        else:
            help = (
                f"an entry is a name and its arguments, such as `optimizer sgd lr=0.1`; there is none called `{name}`"
            )
    elif word == "," and re.match(r"\s*augment\s", before) and in_train(text, at):
        help = "augmentations are joined by `|`: `augment pad_crop 4 | hflip`"
        change("write `|`", (start, start + 1, " |" if rest[1:2].isspace() else " | "), certain=True)
    elif expected == {"LPAR"} and (block := re.fullmatch(r"\s*block\s+[A-Za-z_]\w*(\s*)", before)):
        help = "a block lists its parameters in parentheses, also where there are none: `block name() { ... }`"
        change("write `()`", (at - len(block.group(1)), at - len(block.group(1)), "()"), certain=True)
    elif word == "=" and re.fullmatch(r"\s*block\s+[^{}]*\)\s*", before):
        help = "the body stands right behind the parameters: `block name(c) { ... }`"
        change("remove the `=`", (start, start + 1 + rest[1:2].isspace(), ""), certain=True)
    elif loop := re.match(r"(\s*)repeat\s+([A-Za-z_]\w*)\s+in\b", before + rest):
        help = f"write `repeat 3 as {loop.group(2)} {{ ... }}`; `{loop.group(2)}` counts from 0"
    elif (
        "LBRACE" in expected
        and not re.match(r"x[0-9]", word)
        and (opened := re.search(r"\b(add|mul|concat)\s*$", before))
    ):
        help = f"the branches of `{opened.group(1)}` stand in braces: `{opened.group(1)} {{ @a; @b }}`"
    elif word == ":" and re.fullmatch(r"\s*(?:repeat|if|else)\b.*", before):
        help = "a group stands in braces: `repeat 3 { ... }`"
    elif word == "-" and not before.strip():
        help = "elements stand on lines of their own, with nothing in front of them"
        change("remove the `-`", (start, start + 1 + rest[1:2].isspace(), ""), certain=True)
    elif (line_end or word in ("|", "}")) and (share := re.search(r"[0-9]+(?:\.[0-9]+)?\s*%\s*$", before)):
        end = line + len(before.rstrip())
        return percentage(source, Span(source, line + share.start(), end))
    elif line_end and re.fullmatch(r"\s*[A-Za-z_]\w*\s*:\s*", before):
        help = "a label stands in front of its element, in the same line: `conv1: conv 3x3 16`"
    elif not line_end and not " " <= word[0] <= "~":
        shown = word[0] if word[0].isprintable() else f"U+{ord(word[0]):04X}"
        code, what = "E0103", f"the character `{shown}` is not part of the language"
        span = Span(source, start, start + 1)
        help = "outside comments and strings a spec is plain ASCII"
        if word[0] in _MEANT:
            help += f"; write `{_MEANT[word[0]]}`"
            change(help, (start, start + 1, _MEANT[word[0]]), certain=True)
    elif re.match(r"x[0-9]+$", word):
        code, what = "E0106", f"the repeat `{word}` does not stand right after the name"
        call = re.search(r"([A-Za-z_][A-Za-z0-9_]*)[^|{};]*$", before)
        if call and call.group(1) in ("add", "mul", "concat"):
            help = f"repeat a group around it: `repeat {word[1:]} {{ {call.group(1)} {{ ... }} }}`"
        elif call:
            help = f"write `{call.group(1)} {word} ...`"
            behind = at - len(before) + call.end(1)
            change(help, (behind, behind, f" {word}"), (start - 1, found.end(), ""), certain=True)
        else:
            help = "put it right after the name it repeats"
    elif rest.startswith(("//", "/*")):
        span = Span(source, start, start + 2)
        what, help = f"`{rest[:2]}` cannot stand here", "a comment begins with `#` and ends with its line"
        if rest[1] == "/":
            change("write `#`", (start, start + 2, "#"), certain=True)
    elif (first := re.match(r"\s*([a-z]+)\s", before + rest)) and (meant := _FOREIGN_WORDS.get(first.group(1))):
        low = at - len(before) + first.start(1)
        span = Span(source, low, low + len(first.group(1)))
        what, help = f"`{first.group(1)}` cannot stand here", meant
        if meant is _BLOCK:
            change("write `block`", (low, low + len(first.group(1)), "block"))
    elif word == ")" and (call := re.search(r"[A-Za-z_][A-Za-z0-9_]*(\(\s*)$", before)):
        help = "a call without arguments has no parentheses"
        change("remove them", (start - len(call.group(1)), start + 1, ""), certain=True)
    elif word == ":" and re.match(r"\s*block\b", before):
        help = "the body of a block stands in braces: `block name(c) { ... }`"
    elif repeat := re.match(r"([0-9]+)(?:x\s|\s*\*)\s*([A-Za-z_][A-Za-z0-9_]*)", rest):
        count, name = repeat.groups()
        sign = rest[: repeat.start(2)].rstrip()
        code, what = "E0106", f"the repeat `{sign}` does not stand right after the name"
        help = f"write `{name} x{count}`"
        change(help, (at, at + repeat.end(), f"{name} x{count}"), certain=True)
        span = Span(source, at, at + len(sign))
    elif (times := re.match(r"\*\s*([0-9]+)(?![A-Za-z0-9_.])", rest)) and (call := re.search(_NAMED, before)):
        help = f"write `{call.group(1)} x{times.group(1)}`"
        change(help, (at - len(call.group(2)), at + times.end(), f" x{times.group(1)}"), certain=True)
    elif arrow := re.compile(r"[-=]>|>>").match(text, start - (text[start - 1 : start] == "-")):
        span = Span(source, arrow.start(), arrow.end())
        what, help = f"`{arrow.group()}` cannot stand here", "elements are joined by `|`"
        change("write `|`", (arrow.start(), arrow.end(), "|"), certain=True)
    elif re.search(r"\binput\s*$", before) and (three := re.match(_THREE, rest)):
        span = Span(source, at, at + three.end())
        shape = "x".join(three.groups())
        what, help = f"`{three.group()}` is no size", f"write `input {shape}`: channels, height and width"
        change(f"write `input {shape}`", (at, at + three.end(), shape), certain=True)
    elif (size := re.match(r"[0-9]+(x[0-9]+)+(?![A-Za-z0-9_])", rest)) and not line_end:
        span = Span(source, at, at + size.end())
        what = f"the size `{size.group()}` cannot stand here"
        near = top_word()
        if re.search(r"\binput\s*$", before):
            what, help = f"the input is `{size.group()}`", "state channels, height and width: `input 3x32x32`"
        elif size.group().count("x") == 2:
            kernel = "x".join(size.group().split("x")[:2])
            help = near or f"three sizes only stand behind `input`; a kernel is `{kernel}`"
            change(f"write `{kernel}`", (at, at + size.end(), kernel))
        else:
            help = near or "a statement starts with a name: `conv 3x3 c=16`"
    elif (size := re.match(r"[0-9]+(?:[X*][0-9]+)+(?!\w)", rest)) and "X" in size.group():
        span = Span(source, at, at + size.end())
        written = size.group().lower()
        what, help = f"`{size.group()}` is no size", f"write `{written}`"
        change(help, (at, at + size.end(), written), certain=True)
    elif re.match(r"[0-9]+(\.[0-9]+)?[A-Za-z_]", rest) and not line_end:
        token = re.match(r"[0-9][0-9A-Za-z_.]*(?:(?<=[0-9][eE])[-+][0-9A-Za-z_.]+)?", rest)
        assert token is not None
        span = Span(source, at, at + token.end())
        code, what = "E0103", f"`{token.group()}` is neither a number nor a size"
        help = "a number is `3`, `0.1` or `1e-4`, a size is `3x5` (height x width); a name starts with a letter"
    elif re.match(r"[A-Za-z_][A-Za-z0-9_]*\(", rest):
        what = f"`{word}(` cannot stand here"
        help = "a call is a name and its arguments, separated by spaces: `conv 3x3 c=16`"
        open_call()
    elif word == "," and re.match(r"\s*block\b", before):
        help = "parameters are separated by one comma: `block name(c, stride = 1)`"
    elif word == "," and re.search(r"\(\s*[^()]*$", before):
        help = "arguments are separated by spaces: `conv 3x3 c=16`"
        open_call()
    elif (
        word == ","
        and "COMMA" not in expected
        and re.match(r",\s*(?:in|nothing|[A-Za-z_][A-Za-z0-9_]*\s*:)(?!\.|\w)", rest)
    ):
        help = "statements in braces are separated by `;`, or stand on lines of their own"
        change("write `;`", (start, start + 1, ";"), certain=True)
    elif word == "," and "COMMA" not in expected and (behind := _operator(rest)):
        help = f"elements are joined by `|`: `| {behind}`"
        change("write `|`", (start, start + 1, " |" if rest[1:2].isspace() else " | "))
    elif word == "," and "COMMA" not in expected:
        help = "arguments are separated by spaces, list items in `[...]` by commas"
        change("remove the comma", (start, start + 1, "" if rest[1:2].isspace() else " "), certain=True)
    elif word == "(" and re.search(r"[A-Za-z0-9_]\s*$", before):
        help = "a call is a name and its arguments, separated by spaces: `conv 3x3 c=16`"
        open_call()
    elif word == ":" and (name := re.search(r"[A-Za-z0-9_](\s*)$", before)):
        help = "a label stands at the head of a statement; an argument is written `name=value`"
        spaces = re.match(r":\s*", rest)
        change("write `=`", (start - len(name.group(1)), start + (spaces.end() if spaces else 1), "="))
    elif word == "=" and (entry := re.search(r"(?:^|[{;])\s*([a-z_]+)\s*$", before)) and entry.group(1) in _ENTRIES:
        spaces = re.match(r"=\s*", rest)
        help = f"an entry of the train section takes no `=`: `{entry.group(1)} ...`"
        change("remove the `=`", (start, start + (spaces.end() if spaces else 1), ""), certain=True)
    elif word == "=" and (name := re.match(rf"\s*{_NAMED}", before)) and (called := _operator(rest)):
        help = f"what a statement gives is named by a label: `{name.group(1)}: {called} ...`"
        change(f"write `{name.group(1)}: {called} ...`", (start - len(name.group(2)), start + 1, ":"))
    elif word == "=" and re.match(r"\s*[A-Za-z_][A-Za-z0-9_]*\s*$", before):
        help = f"a value is named with `let {before.strip()} = ...`"
        head = at - len(before.lstrip())
        change(f"write `let {before.strip()} = ...`", (head, head, "let "))
    elif word == "=" and re.search(r"[A-Za-z_]\(\s*[^()]*$", before):
        open_call()
        help = fixes[0].help if fixes else "a call is a name and its arguments, separated by spaces: `conv 3x3 c=16`"
    elif word == "=":
        help = "an argument is written `name=value`: `conv 3x3 c=16`"
    elif (
        word == "."
        and (path := re.search(r"(?:torch\.)?\b(?:nn|F)(?:\.functional)?$", before))
        and (called := _operator(rest))
    ):
        help = f"operators stand alone, with their arguments behind them: `{FOREIGN_NAMES.get(called, called)} ...`"
        span = Span(source, at - len(path.group()), at + 1 + len(called))
        what = f"`{path.group()}.{called}` cannot stand here"
    elif word == "-" or (word == "." and (text[at - 1 : at].isdigit() or re.match(r"\.[0-9]", rest))):
        help = "a number needs digits on both sides of its point, a range is `0.8..1.0`"
        if word == ".":
            digit = start + 1 if text[at - 1 : at].isdigit() else start
            change("write the `0`", (digit, digit, "0"), certain=True)
    elif word == "|" and not before.strip():
        help = "a pipeline needs an element in front of its first `|`"
        change("remove the `|`", (start, found.end() + rest[1:2].isspace(), ""))
    elif word == "|" and before.rstrip().endswith("|"):
        help = "write an element between the two `|`, or remove one"
        change("remove one `|`", (start, found.end() + rest[1:2].isspace(), ""))
    elif (line_end or word == "}") and before.rstrip().endswith("|"):
        help = "write an element behind the last `|`, or remove it"
        bar = at - len(before) + len(before.rstrip()) - 1
        change("remove the last `|`", (bar - text[bar - 1 : bar].isspace(), bar + 1, ""))
    elif "COMMA" in expected and (items := re.search(r"\[([^\[\]]*)$", before)):
        end = text.find("]", at)
        help = "list items are separated by commas: `[16, 32]`"
        if end > 0:
            begin = at - len(items.group(1))
            change(
                "write the commas", (begin, end, ", ".join(re.split(r"[\s,]+", text[begin:end].strip()))), certain=True
            )
    elif line_end and "_THEN" in expected and (condition := re.search(r"\S\s+(if)\s", before)):
        low = at - len(before) + condition.start(1)
        span = Span(source, low, low + 2)
        what, help = "`if` cannot stand here", "the condition of a statement stands behind it: `conv 3x3 16 when deep`"
        change("write `when`", (low, low + 2, "when"), certain=True)
    elif expected and len(expected) <= 4:
        help = "expected " + " or ".join(
            sorted({_WORDS.get(name, f"`{name.strip('_').lower()}`") for name in expected})
        )
    else:
        help = top_word() or "a statement ends with its line; elements are joined by `|`"
    return Diagnostic(code, what, span, help=help, fixes=tuple(fixes))
