"""Rules for syntax of other languages: torch, Python, YAML, and foreign operators."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cnnspec.diagnostics import Fix, did_you_mean
from cnnspec.limits import MAX_LITERAL
from cnnspec.ops import (
    FOREIGN_NAMES,
    JOINS,
    OPS,
    absent_operator,
    foreign_choice,
    split_arguments,
    translated,
    translation,
)
from cnnspec.ops.examples import entry_with, example_call, example_entry, move_into_train
from cnnspec.recipe import AUGMENTATIONS, ENTRIES, Scalars
from cnnspec.syntax.error_context import Explanation, Place
from cnnspec.syntax.keywords import LABEL_WORDS, TOP_WORDS
from cnnspec.syntax.recovery import in_train

_BLOCKS = ("def", "func", "function", "fn", "class", "module")
_LOOPS = ("for", "while", "loop")
"""First words of statements in other languages."""

LAYERS = "write the layers in the order in which they run: `conv 3x3 16 | bn | relu`"
"""Help for a description of layers in another language."""
_RECIPE = "write the recipe in a `train` section: `train { optimizer adam lr=0.001; epochs 20 }`"
_FIRST_LINES = {
    r"(?:import|from)\s+[A-Za-z_][\w.]*": (
        "remove it: operators and standard blocks need no import, and `use` imports other blocks"
    ),
    r"class\s+\w+\s*\([\w.]*(?:Module|Model|Layer)\)": LAYERS,
    r"def\s+\w+\s*\(\s*self\b": LAYERS,
    r"(?:self|super)\b(?=\s*[.(=])": LAYERS,
    r"(?:[A-Za-z_]\w*\s*=\s*)?(?:torch\.)?(?:nn\.)?(?:Sequential|ModuleList)\s*\(": LAYERS,
    r"(?:[A-Za-z_]\w*\s*=\s*)?(?:[A-Za-z_]\w*\.)*Model\s*\(": (
        "remove it: the output of the network is that of its last statement"
    ),
    r"[A-Za-z_]\w*\.(?:compile|fit|backward|step|zero_grad)\s*\(": _RECIPE,
    r"for\s+epoch\b": _RECIPE,
    r"(?:[A-Za-z_]\w*\s*=\s*)?(?:torch\.)?(?:nn\.)?\w*Loss\s*\(": _RECIPE,
    r"(?:[A-Za-z_]\w*\s*=\s*)?(?:torchvision\.)?transforms\.": (
        "write augmentations in a `train` section: `train { augment hflip | random_crop 4 }`"
    ),
    r"(?:[A-Za-z_]\w*\s*=\s*)?[A-Za-z_]\w*\s*\[\s*:": "take a range of channels with `slice`: `slice 0..8`",
    r"[A-Za-z_]\w*(?:\s*,\s*[A-Za-z_]\w*)+\s*=(?!=)": LAYERS,
    r"input\s*(?:\||->)": "remove `input`: the first statement takes the image",
    r"train\s*\(": _RECIPE,
    r"(?:[A-Za-z_]\w*\s*=\s*)?(?:torch\.)?optim\.": _RECIPE,
    r"(?:[A-Za-z_]\w*\s*=\s*)?(?:[A-Za-z_]\w*\.)*(?:Add|Concatenate|Multiply)\s*\(": (
        "write the branches in braces after `add`, `concat` or `mul`: `add { in; conv 3x3 16 }`"
    ),
    r"(?:[A-Za-z_]\w*\s*=\s*)?lambda\b": "define a block with `block`, and call it by its name",
}
"""Patterns of Python lines, with the help for them."""

_CALL = re.compile(
    r"\s*(?P<all>(?:(?:self\.)?(?P<label>[A-Za-z_]\w*)\s*=\s*|\w+\.add\()?"
    r"(?P<call>(?:[a-z_]+\.)*(?P<name>[A-Z]\w*)\((?P<args>(?:[^()]|\([^()]*\))*)\))"
    r"(?P<applied>\(\w+\))?\)?\s*,?)\s*(?:#.*)?"
)
"""A line that constructs a module of torch or a layer of Keras."""

_THREE = r"[(\[]?\s*([0-9]+)\s*[,*\s]\s*([0-9]+)\s*[,*\s]\s*([0-9]+)\s*[)\]]?"
"""A shape of three numbers in other languages."""

_INPUT = re.compile(rf"\s*(?:[A-Za-z_]\w*\s*=\s*)?(?:[A-Za-z_]\w*\.)*Input(?:Layer)?\s*\([^()\d]*(?:{_THREE})?")
"""The input of a network in Keras, which states height, width and channels."""

_TENSOR = r"(?:@[\w.]+|[A-Za-z_]\w*)"
_TARGET = r"(?:(?P<target>[A-Za-z_]\w*)\s*=\s*)?"
_SUM = re.compile(rf"{_TARGET}(?P<all>{_TENSOR}(?:\s*(?:\+=?|\*)\s*{_TENSOR})+)")
_JOINED = re.compile(
    rf"{_TARGET}(?:[A-Za-z_]\w*\.)*(?P<join>[A-Za-z_]\w*)\s*(?:\(\s*\)\s*)?\(\s*[\[(]?\s*"
    rf"(?P<all>{_TENSOR}(?:\s*,\s*{_TENSOR})+)\s*[\])]?\s*(?:,\s*(?:(?:dim|axis)\s*=\s*)?-?[0-9]+\s*)?\)"
)
"""Sums and joins of tensors in Python, with the name of the result."""

_SETTINGS = ("network", "input", "classes", "extends")
"""Top-level statements that other languages write as settings."""

_NAME = "consists of letters, digits and `_`, and does not start with a digit"


def operator_after(rest: str) -> str | None:
    """Return the name of the operator after a sign, if it is one of this or another language."""
    name = re.match(r"\W\s*([A-Za-z_][A-Za-z0-9_]*)", rest)
    return name.group(1) if name and name.group(1) in {*OPS, *JOINS, *FOREIGN_NAMES} else None


def python(at: Place) -> Explanation | None:
    """Lines that construct a torch module, and other lines of Python."""
    assigned = re.match(r"\s*([A-Za-z_]\w*)\s*=", at.whole)
    if assigned and assigned.group(1) in ENTRIES:
        return None
    call = _CALL.fullmatch(at.whole)
    args = split_arguments(call["args"]) if call else []
    if call and (found := _translated_call(at, call, args)):
        return found
    if (found := _joined(at)) is not None or (found := _image(at)) is not None:
        return found
    for first, help in _FIRST_LINES.items():
        if re.match(rf"\s*{first}", at.whole):
            found = at.first_word(help)
            assert found.span is not None
            if found.span.text not in ("input", "train"):
                found.message = "unexpected Python statement"
            return found
    method = re.match(r"\s*(?:[A-Za-z_]\w*\s*=\s*)?(?P<path>(?:[A-Za-z_]\w*\.)+)(?P<name>\w+)\s*\(", at.whole)
    module_of_torch = re.fullmatch(r"(?:torch\.)?(?:nn|F)\.(?:functional\.)?", method["path"]) if method else None
    if method and (assigned or not module_of_torch):
        found = at.first_word(absent_operator(method["name"]) or LAYERS)
        found.message = "unexpected Python statement"
        return found
    path = re.search(r"(?:torch\.)?\b(?:nn|F)(?:\.functional)?$", at.before)
    module = re.match(r"\.([A-Za-z_]\w*)(?:\(([^()\n]*)\))?", at.rest)
    if path and module:
        return _module(at, at.at - len(path.group()), module)
    return None


def _image(at: Place) -> Explanation | None:
    """Explain the input of a network in Keras: `Input(shape=(32, 32, 3))`."""
    found = _INPUT.match(at.whole)
    if found is None:
        return None
    height, width, c = found.groups()[-3:]
    shape = f"{c}x{height}x{width}" if c else "3x32x32"
    explained = at.first_word(f"write the channels, height and width of the image: `input {shape}`")
    explained.message = "unexpected Python statement"
    if c:
        start = at.line + len(at.whole) - len(at.whole.lstrip())
        explained.fixes.append(at.fix(f"write `input {shape}`", (start, at.code_end, f"input {shape}")))
    return explained


def _joined(at: Place) -> Explanation | None:
    """Explain sums and joins of tensors: `x = x + shortcut`, `torch.cat([x, y], 1)`, `add(x, y)`."""
    start, end = at.statement
    written = at.text[start:end]
    computed, called = _SUM.fullmatch(written), _JOINED.fullmatch(written)
    found = computed or called
    if found is None or in_train(at.text, at.at):
        return None
    names = re.split(r"\s*(?:\+=?|\*|,)\s*", found["all"])
    target = names[0] if "+=" in found["all"] else found["target"]
    join = "add" if "+" in found["all"] else "mul"
    if called:
        join = FOREIGN_NAMES.get(called["join"], called["join"].lower())
    product = computed and "*" in found["all"]
    tensors = [name for name in names if name in ("in", target) or name[0] == "@" or name in at.labels]
    if join not in JOINS or target in TOP_WORDS or (product and ("+" in found["all"] or not tensors)):
        return None
    if not at.values.isdisjoint(names):
        return None
    branches = [
        "in" if name in ("in", target) else name if called and name in OPS else as_tensor(name) for name in names
    ]
    label = f"{target}: " if target and target not in (*names, *LABEL_WORDS) else ""
    code = f"{label}{join} {{ {'; '.join(branches)} }}"
    what = {"add": "add", "mul": "multiply", "concat": "join"}[join]
    fix = at.fix(f"{what} tensors in braces: `{code}`", (start, end, code))
    before = called["join"] if called and at.word == "(" else found["target"]
    return Explanation(fix.help, [fix], where=f"after `{before}`" if before and at.word in "(=" else "")


def as_tensor(name: str) -> str:
    """Return the code for the output of a variable of Python."""
    return name if name[0] == "@" or name == "in" else f"@{name}"


def _translated_call(at: Place, call: re.Match[str], args: Sequence[str]) -> Explanation | None:
    """Explain a line that constructs a module; no fix is offered if an argument has no equivalent."""
    span = at.span(at.line + call.start("call"), at.line + call.end("call"))
    message = f"unexpected Python call `{call['name']}(...)`"
    word = args[0].strip("\"' ") if call["name"] == "Activation" and len(args) == 1 else ""
    if own := FOREIGN_NAMES.get(word, word if word in OPS else None) or translated(call["name"], args):
        written = f"{call['label']}: {own}" if call["label"] and not call["applied"] else own
        fix = at.fix(f"write `{written}`", (at.line + call.start("all"), at.line + call.end("all"), written))
        return Explanation(fix.help, [fix], span, message)
    found = translation(call["name"], args)
    return Explanation(found.help, [], span, message) if found else None


def _module(at: Place, start: int, module: re.Match[str]) -> Explanation:
    """Explain a module of torch in a pipeline: `nn.Conv2d(3, 16, 3)`."""
    name, span = module.group(1), at.span(start, at.at + module.end(1))
    own = FOREIGN_NAMES.get(name) or next((own for own in OPS if own == name.lower()), None)
    if own is None:
        return Explanation("run `cnnspec list` to see all operators and blocks", [], span)
    if module.group(2) is not None:
        args = split_arguments(module.group(2))
        if written := translated(name, args):
            fix = at.fix(f"write `{written}`", (start, at.at + module.end(), written))
            return Explanation(fix.help, [fix], span)
        if (found := translation(name, args)) is not None:
            return Explanation(found.help, [], span)
    example = example_call(own, OPS[own].parameters.values()) if own in OPS else own
    return Explanation(f"write the operator, followed by its arguments: `{example}`", [], span)


def first_words(at: Place) -> Explanation | None:
    """Statements of other languages, recognized by their first word."""
    first = re.match(r"\s*([a-z]+)\s", at.whole)
    if first and first.group(1) in _BLOCKS:
        head = re.match(r"\s*[a-z]+\s+(\w+\s*(?:\([^()]*\))?)", at.whole)
        written = head.group(1).strip() if head and "(" in head.group(1) else "conv_relu(c)"
        inline = re.search(r"\)\s*:\s*(?=[^\s#])", at.whole) if head else None
        body, end = at.until_end(at.line + inline.end()) if inline else ("", 0)
        written = f"block {written} {{ {body} }}" if body else f"block {written}"
        edit = (first.start(1), end - at.line, written) if body else (first.start(1), first.end(1), "block")
        found = at.first_word(f"define a block with `block`: `{written}`")
        found.fixes.append(at.fix("write `block`", (at.line + edit[0], at.line + edit[1], edit[2])))
        return found
    if first and first.group(1) in _LOOPS:
        loop = re.match(r"\s*for\s+([A-Za-z_]\w*)\s+in\s+range\(\s*(\w+)\s*\)", at.whole)
        listed = re.match(r"\s*for\s+([A-Za-z_]\w*)\s+in\s+\[([^\[\]\n]*)\]", at.whole)
        if listed and listed[2].strip():
            count, name = listed[2].strip(" ,").count(",") + 1, f"{listed[1]}s"
            repeated = f"repeat {count} as i {{ conv 3x3 {name}[i] }}"
            return at.first_word(
                f"repeat a group over a list: `let {name} = [{listed[2].strip(' ,')}]`, then `{repeated}`"
            )
        variable, count = loop.groups() if loop else ("i", "3")
        found = at.first_word(f"repeat a group with `repeat`: `repeat {count} as {variable} {{ conv 3x3 16 }}`")
        if loop:
            edit = (at.line + len(at.whole) - len(at.whole.lstrip()), at.line + loop.end())
            found.fixes.append(at.fix("write `repeat`", (*edit, f"repeat {count} as {variable}")))
        return found
    return None


def lists(at: Place) -> Explanation | None:
    """Colons, equal signs and dashes of configuration files, types of values, and two labels."""
    if (found := _brackets(at)) is not None:
        return found
    typed = re.fullmatch(r"\s*(?P<what>param|let)\s+(?P<name>[A-Za-z_]\w*)(?P<colon>\s*)", at.before)
    if typed and (type_ := re.match(r"(?::\s*([A-Za-z_]\w*)(?:\[\w*\])?|(int|float|bool|size|op|str)\b)", at.rest)):
        value, _ = at.until_end(at.at + type_.end())
        example = {"op": "= relu", "bool": "= true", "float": "= 0.1", "size": "= 3x3"}.get(
            type_.group(1) or type_.group(2), "= 16"
        )
        written = f"{typed['what']} {typed['name']} {value or example}"
        fixes = [at.fix("remove the type", (at.line + typed.start("colon"), at.at + type_.end(), ""), certain=True)]
        note = f"the type of a `{typed['what']}` is that of its value"
        help = f"remove the type: `{written}`"
        span = at.span(at.at, at.at + type_.end())
        return Explanation(help, fixes if value else [], span, where=f"in a `{typed['what']}` statement", note=note)
    if typed and at.word == ":" and (value := at.until_end(at.end)[0]):
        fix = at.fix(
            "write `=`", (at.line + typed.start("colon"), at.end + at.rest[1:2].isspace(), " = "), certain=True
        )
        help = f"write `=` before the value: `{typed['what']} {typed['name']} = {value}`"
        return Explanation(help, [fix], where=f"in a `{typed['what']}` statement")
    two = re.fullmatch(r"\s*(?P<first>[A-Za-z_][\w.]*)(?P<colon>\s*:\s*)(?P<second>[A-Za-z_][\w.]*)\s*", at.before)
    if at.word == ":" and two:
        path = f"{two['first']}.{two['second']}"
        fix = at.fix(f"write one label: `{path}:`", (at.line + two.start("colon"), at.line + two.end("colon"), "."))
        note = f"`{path}` is the module `{two['second']}` in the module `{two['first']}`"
        return Explanation(fix.help, [fix], message="a statement has only one label", note=note)
    label = re.fullmatch(r"\s*([a-z]+)(\s*:\s*)", at.before)
    if label and label.group(1) in TOP_WORDS and not at.line_end:
        fix = at.fix("remove the colon", (at.line + label.start(2), at.line + label.end(2), " "), certain=True)
        colon = at.line + at.before.index(":")
        value, _ = at.until_end(at.at)
        help = f"remove the colon: `{label.group(1)} {value}`"
        return Explanation(help, [fix], at.span(colon, colon + 1), where=f"after `{label.group(1)}`")
    setting = re.match(r"\s*(?P<word>[a-z]+)(?P<sign>\s*=\s*)(?P<value>[^\n#;]*[^\s#;])", at.whole)
    if (
        at.word == "="
        and setting
        and setting["word"] in (*_SETTINGS, *LABEL_WORDS)
        and not at.before[setting.end("word") :].strip()
    ):
        edit = (at.line + setting.start("sign"), at.line + setting.end("sign"), " ")
        written = f"{setting['word']} {setting['value']}"
        fix = at.fix("remove the `=`", edit, certain=True)
        return Explanation(f"remove the `=`: `{written}`", [fix], where=f"after `{setting['word']}`")
    if at.word == "-" and not at.before.strip():
        fix = at.fix("remove the `-`", (at.start, at.start + 1 + at.rest[1:2].isspace(), ""), certain=True)
        note = "layers are written without list markers"
        return Explanation(fix.help, [fix], where="at the start of a line", note=note)
    return None


_SECTION = re.compile(r"^[ \t]*\[[a-z_]+\][ \t]*$", re.MULTILINE)
"""The head of a section of an ini file."""


def _brackets(at: Place) -> Explanation | None:
    """Explain brackets in place of a group, and lines of an ini file: `[convolutional]`, `filters=32`."""
    if _SECTION.search(at.source.text) and (at.word == "[" or re.match(r"\s*[a-z_]+\s*=", at.whole)):
        return Explanation(LAYERS)
    if at.word != "[" or not re.search(r"(?:^|[|:{;])\s*$", at.before):
        return None
    inner = re.match(r"\[\s*([A-Za-z_][^\[\]#]*?)\s*\](?:\s*\*\s*([0-9]+))?", at.rest)
    if inner is None:
        return Explanation(LAYERS)
    elements = " | ".join(re.split(r"\s*,\s*", inner.group(1)))
    written = f"repeat {inner.group(2)} {{ {elements} }}" if inner.group(2) else elements
    fix = at.fix(f"write `{written}`", (at.start, at.start + inner.end(), written))
    return Explanation(fix.help, [fix], note="elements are joined with `|`")


def names(at: Place) -> Explanation | None:
    """Names of networks and labels with invalid characters."""
    odd = re.match(r"\s*(?P<name>\"[^\"\n]*\"|(?:stem|stage|head)[ \t]+[0-9]+|[0-9]+)\s*:(?!:)", at.whole)
    if odd and at.line <= at.at <= at.line + odd.end():
        plain = re.sub(r"[^A-Za-z0-9_]+", "", odd["name"])
        name = plain if plain[:1].isalpha() else f"layer{plain}"
        span = at.span(at.line + odd.start("name"), at.line + odd.end("name"))
        fix = at.fix(f"write `{name}:`", (span.start, span.end, name))
        return Explanation(fix.help, [fix], span, f"invalid label `{odd['name']}`", note=f"a label {_NAME}")
    network = re.match(r"\s*network\b\s*=?\s*(?P<name>[^\s#;=][^\n#;]*)", at.whole)
    if network and at.at <= at.line + network.end():
        name = re.sub(r"[^A-Za-z0-9_]+", "_", network["name"]).strip("_")
        name = f"_{name}" if name[:1].isdigit() else name
        start = at.whole.index("network") + len("network")
        edit = (at.line + start, at.line + network.start() + len(network.group().rstrip()), f" {name}")
        fix = at.fix(f"write `network {name}`", edit, certain=True)
        return Explanation(fix.help, [fix], where="in the name of a network", note=f"a name {_NAME}")
    label = re.match(r"\s*(?P<name>[A-Za-z_][\w.]*(?:-[\w.]+)+)\s*:", at.whole)
    if label and at.line + label.start("name") < at.at <= at.line + label.end("name"):
        name = label["name"].replace("-", "_")
        fix = at.fix(f"write `{name}:`", (at.line + label.start("name"), at.line + label.end("name"), name))
        span = at.span(at.line + label.start("name"), at.line + label.end("name"))
        note = f"a label {_NAME}"
        return Explanation(f"write `{name}:`", [fix], span, f"invalid label `{label['name']}`", note=note)
    filled = re.match(r"\s*(?P<name>\w*(?:\{\w+\}\w*)+)\s*:\s*(?P<call>[^\n#;|{}]*[^\s#;|{}])?", at.whole)
    if filled and at.line <= at.at <= at.line + filled.end("name"):
        return _pattern(at, filled)
    return None


def _pattern(at: Place, filled: re.Match[str]) -> Explanation:
    """Explain a label with a placeholder, which only the name of a call can have: `conv{i}: conv 3x3 16`."""
    name, call = f'name="{filled["name"]}"', filled["call"] or ""
    more = at.whole[filled.end() :].lstrip()[:1] in ("|", "{")
    help, fixes = f"name the calls inside instead, as in `conv 3x3 16 {name}`", list[Fix]()
    if call and not more:
        start, end = at.line + filled.start("name"), at.line + filled.end("call")
        edits = (start, at.line + filled.start("call"), ""), (end, end, f" {name}")
        fixes = [at.fix(f"name the call instead: `{call} {name}`", *edits)]
        help = fixes[0].help
    span = at.span(at.line + filled.start("name"), at.line + filled.end("name"))
    return Explanation(help, fixes, span, f"invalid label `{filled['name']}`", note=f"a label {_NAME}")


def entries(at: Place) -> Explanation | None:
    """Entries of a `train` section with a `=` or a `:`, and augmentations with commas."""
    for entry in re.finditer(r"(?:^|[{;])\s*([a-z_]+)\s*([:=]\s*)", at.whole):
        name, sign = entry.group(1), entry.group(2).strip()
        here = at.line + entry.start(1) <= at.at <= at.line + entry.end(2)
        inside = in_train(at.text, at.at)
        if not here or not (inside or name in ENTRIES):
            continue
        value, _ = at.until_end(at.line + entry.end(2))
        if not inside:
            value = "" if re.search(r"[.(]\w*", value) and "(" in value else value  # a call of Python
            span = at.span(at.line + entry.start(1), at.line + entry.end(1))
            message = f"`{name}` is only allowed in the `train` section"
            return Explanation(move_into_train(at.source.text, name, value), [], span, message, "E0201")
        span = at.span(at.line + entry.start(2), at.line + entry.start(2) + 1)
        if name not in ENTRIES:
            owner = entry_with(name, value) if value else None
            near = did_you_mean(name, ENTRIES)
            help = near or f"remove it, or choose from {', '.join(f'`{word}`' for word in ENTRIES)}"
            if owner is not None:
                help = f"write it as an argument of `{owner.split()[0]}`, for example `{owner}`"
            note = f"the `train` section has no entry `{name}`"
            return Explanation(help, [], span, where=f"after `{name}`", note=note)
        fix = at.fix("remove it", (at.line + entry.end(1), at.line + entry.end(2), " "), certain=True)
        remove = "remove the colon" if sign == ":" else "remove the `=`"
        written = f": `{name} {value}`" if value else f", and write a value, for example `{example_entry(name)}`"
        return Explanation(f"{remove}{written}", [fix], span, where=f"after `{name}`")
    return _in_entry(at) if in_train(at.text, at.at) else None


def _augmentations(at: Place, begin: int) -> Explanation:
    """Explain commas between augmentations: `augment hflip, random_crop 4`."""
    code, end = at.until_end(begin)
    steps = re.split(r",(?![^()]*\))\s*", code.removeprefix("augment").strip(" ,"))
    number = r"\s*([0-9]+(?:\.[0-9]+)?)\s*"
    written: list[str] = []
    for step in steps:
        name, _, args = step.strip().partition(" ")
        args = re.sub(rf"\({number},{number}\)", r"\1..\2", args)
        written.append(f"{foreign_choice(name, AUGMENTATIONS) or name} {args}".rstrip())
    where = "between augmentations"
    if not code or not all(step.split()[0] in AUGMENTATIONS for step in written if step):
        return Explanation("join augmentations with `|`", where=where)
    help = f"join augmentations with `|`: `augment {' | '.join(written)}`"
    return Explanation(help, [at.fix(help, (begin, end, f"augment {' | '.join(written)}"))], where=where)


def _in_entry(at: Place) -> Explanation | None:
    """Commas, bars and braces in the entries of a `train` section, and paths without quotes."""
    word = re.search(r"(?:^|[{;])[ \t]*([a-z_]+)([^{};]*)$", at.before)
    entry = word.group(1) if word else ""
    following = re.match(r",[ \t]*([A-Za-z_]+)", at.rest)
    if following and following.group(1) in ENTRIES:
        fix = at.fix("write `;`", (at.start, at.start + 1, ";"), certain=True)
        return Explanation("separate entries with `;` or line breaks", [fix], where="between entries")
    if word and entry in Scalars.parameters and (at.word == "," or word.group(2).rstrip().endswith("|")):
        sign = at.line + len(at.before.rstrip()) - (at.word != ",")
        sign += at.word == "," and at.start - sign
        value, (_, end) = word.group(2).strip(" \t|"), at.until_end(at.start)
        fix = at.fix(f"write `{entry} {value}`", (at.line + word.start(2), end, f" {value}"))
        message = f"`{entry}` expects {Scalars.parameters[entry].type.single}"
        return Explanation(fix.help, [fix], at.span(sign, sign + 1), message)
    if at.word == "," and entry == "augment":
        return _augmentations(at, at.line + at.before.rindex("augment"))
    sizes = re.fullmatch(r"[ \t]*(?:size[ \t]*=)?[ \t]*([([]?)[ \t]*([0-9]+)[ \t]*", word.group(2)) if word else None
    if entry == "resize" and word and sizes and re.match(r",[ \t]*[0-9]+(?![\w.])", at.rest):
        help, (_, end) = (
            f"`resize` takes one size, that of the shorter side: `resize {sizes[2]}`",
            at.until_end(at.start),
        )
        fix = at.fix(f"write `resize {sizes[2]}`", (at.line + word.start(2), end, f" {sizes[2]}"))
        return Explanation(help, [] if sizes[1] else [fix], where="between arguments")
    numbers = re.search(r"(?:=[ \t]*|[ \t])([0-9]+)[ \t]*$", at.before)
    more = re.match(r"(?:[ \t]*,[ \t]*[0-9]+(?![\w.]))+", at.rest)
    if entry == "schedule" and numbers and more:
        items = re.findall(r"[0-9]+", numbers.group(1) + more.group())
        edit = (at.line + numbers.start(1), at.at + more.end(), f"[{', '.join(items)}]")
        fix = at.fix(f"write the list in brackets: `{edit[2]}`", edit, certain=True)
        return Explanation(fix.help, [fix], where="in a list without brackets")
    if at.word == "{" and entry in ENTRIES:
        named = re.match(r"\{\s*(?:name|type)\s*[:=]?\s*\"?([a-z][a-z0-9_]*)", at.text[at.at : at.at + 200])
        written = f"{entry} {named.group(1)}" if named else example_entry(entry)
        help = f"write the value without braces{':' if named else ', for example'} `{written}`"
        return Explanation(help, where=f"after `{entry}`")
    path = re.match(r'(?P<sign>:?)[ \t]*"?(?P<path>[~./\\A-Za-z0-9][\w./\\:~-]*)"?', at.rest)
    if path and re.search(r"\bfolder[ \t]*$", at.before):
        written, begin = path["path"], at.at - (len(at.before) - len(at.before.rstrip()))
        quoted = path.group().endswith('"')
        edit = (at.at + path.start("sign"), at.at + path.end(), f'"{written}"')
        if path["sign"]:
            edit = (begin, edit[1], f' "{written}"')
        message = f"expected a path in quotes, found `{written}`" if not quoted else "unexpected `:` after `folder`"
        if written[0] in "~/":
            help = f"use `--data folder:{written}`: a spec can only name a folder below its own"
            return Explanation(help, [], at.span(*edit[:2]), message)
        fix = at.fix(f'write `folder "{written}"`', edit, certain=True)
        return Explanation(fix.help, [fix], at.span(edit[0], edit[1]), message)
    return None


def signs(at: Place) -> Explanation | None:
    """Comments, arrows and image shapes of other languages."""
    if at.rest.startswith(("//", "/*")):
        fixes = [at.fix("write `#`", (at.start, at.start + 2, "#"), certain=True)] if at.rest[1] == "/" else []
        span, note = at.span(at.start, at.start + 2), "a comment ends at the end of its line"
        return Explanation("start a comment with `#`", fixes, span, note=note)
    arrow = re.compile(r"[-=]>|>>").match(at.text, at.start - (at.text[at.start - 1 : at.start] in ("-", ">")))
    head = re.fullmatch(r"\s*(block\b[^{}]*\))\s*-?", at.before) if arrow else None
    if arrow and head:
        result = re.compile(r"[ \t]*(?:\([^()\n]*\)|[\w.\[\]]+)?").match(at.text, arrow.end())
        end = result.end() if result else arrow.end()
        fix = at.fix(f"write `{head.group(1)} {{`", (at.line + head.end(1), end, ""))
        note = "a block outputs the result of its last statement"
        return Explanation(fix.help, [fix], at.span(arrow.start(), end), where="in a block definition", note=note)
    if arrow:
        arrows = re.compile(r"[-=]>|>>").finditer(at.text, arrow.start(), at.code_end)
        fix = at.fix("write `|`", *((sign.start(), sign.end(), "|") for sign in arrows), certain=True)
        span = at.span(arrow.start(), arrow.end())
        return Explanation("join elements with `|`", [fix], span, where="between elements")
    if at.rest.rstrip() == "\\":
        argument = re.compile(r"\\[ \t]*\n[ \t]*(?=[a-z_]+=)").match(at.text, at.start)
        help = "remove it, and join the two lines" if argument else "remove it"
        fix = at.fix(help, (at.start, argument.end() if argument else at.start + 1, ""), certain=True)
        note = "a statement continues on the next line if that line starts with `|`"
        return Explanation(fix.help, [fix], where="at the end of a line", note=note)
    if at.word == "^" or (at.word == "*" and at.before.endswith("*")):
        return _power(at)
    if re.search(r"\binput\s*$", at.before) and (three := re.match(_THREE, at.rest)):
        shape = "x".join(three.groups())
        fix = at.fix(f"write `input {shape}`", (at.at, at.at + three.end(), shape), certain=True)
        span = at.span(at.at, at.at + three.end())
        help, message = f"{fix.help}: channels, height and width", f"invalid input shape `{three.group()}`"
        return Explanation(help, [fix], span, message)
    return None


def _power(at: Place) -> Explanation:
    """Explain how to write a power: `2**3`, `c**2`, or doubled channels, `16 * 2**i`."""
    power = re.compile(
        r"(?<![\w.])([0-9]{1,4}|[A-Za-z_]\w*)[ \t]*(?:\*\*|\^)[ \t]*([0-9]{1,2}(?![\w.]|[ \t]*(?:\*\*|\^)))?"
    )
    found = next((power for power in power.finditer(at.text, at.line, at.end + 8) if power.end() > at.start), None)
    base, exponent = found.groups() if found else ("", None)
    message = f"there is no power operator `{'^' if at.word == '^' else '**'}`"
    if found and exponent and base.isdigit() and (value := int(base) ** int(exponent)) <= MAX_LITERAL:
        fix = at.fix(f"write `{value}`", (*found.span(), str(value)), certain=True)
        return Explanation(fix.help, [fix], message=message)
    if found and base == "2" and at.text[found.end() : found.end() + 1].isidentifier():
        return Explanation("write `2 * in.c` to double the number of channels", message=message)
    times = int(exponent) if exponent and 2 <= int(exponent) <= 4 else 2
    return Explanation(f"write a product, such as `{' * '.join([base or 'c'] * times)}`", message=message)
