"""Rules for syntax of other languages: torch, Python, YAML, and foreign operators."""

from __future__ import annotations

import re

from cnnspec.diagnostics import Fix
from cnnspec.limits import MAX_LITERAL
from cnnspec.ops import FOREIGN_NAMES, JOINS, OPS, translated
from cnnspec.recipe import ENTRIES
from cnnspec.syntax.error_context import Meaning, Place
from cnnspec.syntax.keywords import LABEL_WORDS, TOP_WORDS
from cnnspec.syntax.recovery import in_train

_BLOCK = "a block is defined with `block name(c, stride = 1) { ... }`"
_REPEAT = "a group is repeated with `repeat 3 as i { ... }`"
_FIRST_WORDS = {
    **dict.fromkeys(("def", "func", "function", "fn", "class", "module"), _BLOCK),
    **dict.fromkeys(("for", "while", "loop"), _REPEAT),
}
"""First words of statements in other languages."""

_LAYERS = "a spec is a list of elements, in the order in which they run: `conv 3x3 16 | bn | relu`"
_FIRST_LINES = {
    r"(?:import|from)\s+[A-Za-z_][\w.]*": (
        "a spec imports nothing: operators and standard blocks are there, others come by `use`"
    ),
    r"(?:self|super)\b(?=\s*[.(=])": _LAYERS,
    r"(?:[A-Za-z_]\w*\s*=\s*)?(?:torch\.)?(?:nn\.)?(?:Sequential|ModuleList)\s*\(": _LAYERS,
}
"""Patterns of Python lines, with the help for them."""

_CALL = re.compile(
    r"\s*(?P<all>(?:(?:self\.)?(?P<label>[A-Za-z_]\w*)\s*=\s*)?"
    r"(?P<call>(?:torch\.)?(?:nn\.)?(?P<name>[A-Z]\w*)\((?P<args>[^()]*)\))\s*,?)\s*(?:#.*)?"
)
"""A line that constructs a torch module."""

_THREE = r"[(\[]?\s*([0-9]+)\s*[,*\s]\s*([0-9]+)\s*[,*\s]\s*([0-9]+)\s*[)\]]?"
"""A shape of three numbers in other languages."""

_STATED = ("network", "input", "classes", "extends")
"""Top-level statements that other languages write as settings."""


def operator_after(rest: str) -> str | None:
    """Return the name of the operator after a sign, if it is one of this or another language."""
    name = re.match(r"\W\s*([A-Za-z_][A-Za-z0-9_]*)", rest)
    return name.group(1) if name and name.group(1) in {*OPS, *JOINS, *FOREIGN_NAMES} else None


def python(at: Place) -> Meaning | None:
    """Lines that construct a torch module, and other lines of Python."""
    call = _CALL.fullmatch(at.whole)
    args = [arg for arg in call["args"].split(",") if arg.strip()] if call else []
    if call and (meant := translated(call["name"], args)):
        written = f"{call['label']}: {meant}" if call["label"] else meant
        fix = at.fix(f"write `{written}`", (at.line + call.start("all"), at.line + call.end("all"), written))
        span = at.span(at.line + call.start("call"), at.line + call.end("call"))
        return Meaning(fix.help, [fix], span, f"`{call['name']}(...)` cannot stand here")
    for first, said in _FIRST_LINES.items():
        if re.match(rf"\s*{first}", at.whole):
            return at.first_word(said)
    path = re.search(r"(?:torch\.)?\b(?:nn|F)(?:\.functional)?$", at.before)
    if at.word == "." and path and (called := operator_after(at.rest)):
        help = f"operators stand alone, with their arguments behind them: `{FOREIGN_NAMES.get(called, called)} ...`"
        span = at.span(at.at - len(path.group()), at.at + 1 + len(called))
        return Meaning(help, [], span, f"`{path.group()}.{called}` cannot stand here")
    return None


def first_words(at: Place) -> Meaning | None:
    """Statements of other languages, recognized by their first word."""
    first = re.match(r"\s*([a-z]+)\s", at.whole)
    meant = _FIRST_WORDS.get(first.group(1)) if first else None
    if first is None or meant is None:
        return None
    meaning = at.first_word(meant)
    if meant is _BLOCK:
        meaning.fixes.append(at.fix("write `block`", (at.line + first.start(1), at.line + first.end(1), "block")))
    return meaning


def lists(at: Place) -> Meaning | None:
    """Colons, equal signs and dashes of configuration files."""
    label = re.fullmatch(r"\s*([a-z]+)(\s*:\s*)", at.before)
    if label and label.group(1) in TOP_WORDS and not at.line_end:
        fix = at.fix("remove the colon", (at.line + label.start(2), at.line + label.end(2), " "), certain=True)
        return Meaning(f"a statement of the top takes no colon: `{label.group(1)} ...`", [fix])
    setting = re.match(r"\s*(?P<word>[a-z]+)(?P<sign>\s*=\s*)(?P<value>[^\n#;]*[^\s#;])", at.whole)
    if (
        at.word == "="
        and setting
        and setting["word"] in (*_STATED, *LABEL_WORDS)
        and not at.before[setting.end("word") :].strip()
    ):
        edit = (at.line + setting.start("sign"), at.line + setting.end("sign"), " ")
        written = f"{setting['word']} {setting['value']}"
        return Meaning(
            f"`{setting['word']}` takes no `=`: write `{written}`", [at.fix("remove the `=`", edit, certain=True)]
        )
    if at.word == "-" and not at.before.strip():
        fix = at.fix("remove the `-`", (at.start, at.start + 1 + at.rest[1:2].isspace(), ""), certain=True)
        return Meaning("elements stand on lines of their own, with nothing in front of them", [fix])
    return None


def names(at: Place) -> Meaning | None:
    """Names of networks and labels with invalid characters."""
    network = re.match(r"\s*network\b\s*=?\s*(?P<name>[^\s#;=][^\n#;]*)", at.whole)
    if network and at.at <= at.line + network.end():
        name = re.sub(r"[^A-Za-z0-9_]+", "_", network["name"]).strip("_")
        name = f"_{name}" if name[:1].isdigit() else name
        start = at.whole.index("network") + len("network")
        edit = (at.line + start, at.line + network.start() + len(network.group().rstrip()), f" {name}")
        return Meaning(
            f"a network is named by one word of letters, digits and `_`: write `network {name}`",
            [at.fix(f"write `network {name}`", edit, certain=True)],
        )
    label = re.match(r"\s*(?P<name>[A-Za-z_]\w*(?:[.-]\w+)+)\s*:", at.whole)
    if label and at.line + label.start("name") < at.at <= at.line + label.end("name"):
        name = re.sub(r"[.-]", "_", label["name"])
        fix = at.fix(f"write `{name}:`", (at.line + label.start("name"), at.line + label.end("name"), name))
        help = f"a label is a single name, of letters, digits and `_`: `{name}: ...`"
        return Meaning(f"{help}; parts inside of braces have their own", [fix])
    filled = re.match(
        r"\s*(?P<name>\w*(?:\{\w+\}\w*)+)\s*:\s*(?P<call>[^\n#;|{}]*[^\s#;|{}])?(?P<more>[|{])?", at.whole
    )
    if filled and at.line <= at.at <= at.line + filled.end("name"):
        written, fixes = f'name="{filled["name"]}"', list[Fix]()
        if filled["call"] and not filled["more"]:
            start, behind = at.line + filled.start("name"), at.line + filled.end("call")
            edits = (start, at.line + filled.start("call"), ""), (behind, behind, f" {written}")
            fixes.append(at.fix(f"write `{filled['call']} {written}`", *edits))
        return Meaning(f"a label is a single name; a call that is repeated has `{written}` behind its arguments", fixes)
    part = re.match(r"\.[\w.]+", at.rest)
    whole = re.search(r"@(\w+)$", at.before)
    if part and whole:
        fix = at.fix(f"write `{whole.group()}`", (at.at, at.at + part.end(), ""))
        help = f"`{whole.group()}` is what comes out of it"
        return Meaning(f"{help}; what is inside of `{whole.group(1)}` cannot be named from outside", [fix])
    return None


def entries(at: Place) -> Meaning | None:
    """Entries of a `train` section with a `=` or a `:`, and augmentations with commas."""
    for entry in re.finditer(r"(?:^|[{;])\s*([a-z_]+)\s*([:=]\s*)", at.whole):
        name, sign = entry.group(1), entry.group(2).strip()
        here = at.line + entry.start(1) <= at.at <= at.line + entry.end(2)
        if here and sign == ":" and name in ENTRIES and not in_train(at.text, at.at):
            said = re.match(r"[^\s#{};|]+", at.whole[entry.end(2) :])
            written = f"{name} {said.group() if said else '...'}"
            return Meaning(f"this is an entry of the recipe, which stands in braces: `train {{ {written} }}`")
        if not here or not (in_train(at.text, at.at) or (sign == "=" and name in ENTRIES)):
            continue
        span = at.span(at.line + entry.start(2), at.line + entry.start(2) + 1)
        if name not in ENTRIES:
            said = "an entry is a name and its arguments, such as `optimizer sgd lr=0.1`; there is none called"
            return Meaning(f"{said} `{name}`", [], span, f"`{sign}` cannot stand here")
        fix = at.fix("remove it", (at.line + entry.end(1), at.line + entry.end(2), " "), certain=True)
        help = f"an entry of the train section takes no `{sign}`: `{name} ...`"
        return Meaning(help, [fix], span, f"`{sign}` cannot stand here")
    return _in_entry(at) if in_train(at.text, at.at) else None


_STEP = r"[^,\[\](){};|#\n]+"


def _in_entry(at: Place) -> Meaning | None:
    """Commas and braces in the entries of a `train` section, and paths without quotes."""
    word = re.search(r"(?:^|[{;])[ \t]*([a-z_]+)[^{};]*$", at.before)
    entry = word.group(1) if word else ""
    behind = re.match(r",[ \t]*([A-Za-z_]+)", at.rest)
    if behind and behind.group(1) in ENTRIES:
        fix = at.fix("write `;`", (at.start, at.start + 1, ";"), certain=True)
        return Meaning("entries are separated by `;`, or stand on lines of their own", [fix])
    if at.word == "," and entry == "augment":
        begin = at.line + at.before.rindex("augment")
        steps = re.compile(rf"augment[ \t]({_STEP}(?:,{_STEP})+)(?=[;}}#\n]|$)").match(at.text, begin)
        written = " | ".join(step.strip() for step in (steps.group(1) if steps else "hflip, random_crop 4").split(","))
        help = f"augmentations are joined by `|`: `augment {written}`"
        end = steps and begin + len(steps.group().rstrip())
        return Meaning(help, [at.fix(help, (begin, end, f"augment {written}"), certain=True)] if end else [])
    numbers = re.search(r"(?:=[ \t]*|[ \t])([0-9]+)[ \t]*$", at.before)
    more = re.match(r"(?:[ \t]*,[ \t]*[0-9]+(?![\w.]))+", at.rest)
    if entry == "schedule" and numbers and more:
        items = re.findall(r"[0-9]+", numbers.group(1) + more.group())
        edit = (at.line + numbers.start(1), at.at + more.end(), f"[{', '.join(items)}]")
        fix = at.fix(f"a list stands in brackets: `{edit[2]}`", edit, certain=True)
        return Meaning(fix.help, [fix])
    if at.word == "{" and entry in ENTRIES:
        said = "a choice and its arguments stand behind the word, without braces"
        named = re.match(r"\{\s*(?:name|type)\s*[:=]?\s*\"?([a-z][a-z0-9_]*)", at.text[at.at : at.at + 200])
        return Meaning(f"{said}: `{entry} {named.group(1) if named else '...'}`")
    path = re.match(r"[~./\\A-Za-z][\w./\\:~-]*", at.rest)
    if path and re.search(r"\bfolder[ \t]+$", at.before):
        edit = (at.at, at.at + path.end(), f'"{path.group()}"')
        fix = at.fix(f"a text stands in quotes: `{edit[2]}`", edit, certain=True)
        return Meaning(fix.help, [fix])
    return None


def signs(at: Place) -> Meaning | None:
    """Comments, arrows and image shapes of other languages."""
    if at.rest.startswith(("//", "/*")):
        fixes = [at.fix("write `#`", (at.start, at.start + 2, "#"), certain=True)] if at.rest[1] == "/" else []
        help = "a comment begins with `#` and ends with its line"
        return Meaning(help, fixes, at.span(at.start, at.start + 2), f"`{at.rest[:2]}` cannot stand here")
    arrow = re.compile(r"[-=]>|>>").match(at.text, at.start - (at.text[at.start - 1 : at.start] == "-"))
    if arrow:
        fix = at.fix("write `|`", (arrow.start(), arrow.end(), "|"), certain=True)
        span = at.span(arrow.start(), arrow.end())
        return Meaning("elements are joined by `|`", [fix], span, f"`{arrow.group()}` cannot stand here")
    if at.rest.rstrip() == "\\":
        fix = at.fix("remove it", (at.start, at.start + 1, ""), certain=True)
        return Meaning("a statement goes on in the next line where that begins with `|`", [fix])
    if at.word == "^" or (at.word == "*" and at.before.endswith("*")):
        return _power(at)
    if re.search(r"\binput\s*$", at.before) and (three := re.match(_THREE, at.rest)):
        shape = "x".join(three.groups())
        fix = at.fix(f"write `input {shape}`", (at.at, at.at + three.end(), shape), certain=True)
        span = at.span(at.at, at.at + three.end())
        return Meaning(f"{fix.help}: channels, height and width", [fix], span, f"`{three.group()}` is no size")
    return None


def _power(at: Place) -> Meaning:
    """Explain how to write a power: `2**3`, `c**2`, or doubled channels, `16 * 2**i`."""
    power = re.compile(
        r"(?<![\w.])([0-9]{1,4}|[A-Za-z_]\w*)[ \t]*(?:\*\*|\^)[ \t]*([0-9]{1,2}(?![\w.]|[ \t]*(?:\*\*|\^)))?"
    )
    found = next((power for power in power.finditer(at.text, at.line, at.end + 8) if power.end() > at.start), None)
    base, exponent = found.groups() if found else ("", None)
    if found and exponent and base.isdigit() and (value := int(base) ** int(exponent)) <= MAX_LITERAL:
        fix = at.fix(f"there are no powers: write `{value}`", (*found.span(), str(value)), certain=True)
        return Meaning(fix.help, [fix])
    if found and base == "2" and at.text[found.end() : found.end() + 1].isidentifier():
        return Meaning("there are no powers: twice as many channels as enter are `2 * in.c`")
    return Meaning("there are no powers: write the product, `c * c`")
