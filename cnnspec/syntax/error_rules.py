"""Explain syntax errors: the unexpected token, the reason, and a fix.

Runs only after a failure. The rules are tried in order; the first that returns an explanation wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from cnnspec.diagnostics import Diagnostic, Fix, Source, alternatives, respell
from cnnspec.diagnostics.suggestions import INDEXED, NO_INDEX, share
from cnnspec.ops import (
    FOREIGN_CLASSES,
    FOREIGN_NAMES,
    JOINS,
    OPS,
    absent_operator,
    foreign_choice,
    foreign_operator,
    split_arguments,
    translated,
)
from cnnspec.ops.examples import example_call, example_value
from cnnspec.recipe import CHOICES
from cnnspec.resources import resource
from cnnspec.schema import Parameter, Type
from cnnspec.syntax import foreign_hints as foreign
from cnnspec.syntax.error_context import Explanation, Place
from cnnspec.syntax.foreign_hints import operator_after
from cnnspec.syntax.keywords import FUNCTIONS, LABEL_WORDS, OUTPUT, SCHEMES, TOP_WORDS
from cnnspec.syntax.prescan import ASCII_ONLY
from cnnspec.syntax.recovery import in_braces, in_train

_REPLACEMENTS = {"×": "x", "–": "-", "—": "-", "−": "-", "“": '"', "”": '"', "，": ",", "；": ";", "：": ":"}
"""Replacements for characters that are not part of the language."""

_NAMED = r"([A-Za-z_][A-Za-z0-9_]*)(\s*)$"
"""A name, and the spaces after it."""

_REACH = 500
"""Characters that a rule may look back beyond its line."""

_REPEATED = r"(?:^|[|{;])\s*(?:(?:stem|stage|head)\s+|[A-Za-z_]\w*\s*:\s*)?(x([0-9]+)\s*)$"
"""A repeat without a name before it."""

_CALL = "write a call without parentheses, and separate its arguments with spaces"

_INCOMPLETE = {
    "network": "network small",
    "input": "input 3x32x32",
    "classes": "classes 10",
    "param": "param width = 64",
    "let": "let width = 64",
    "block": "block conv_relu(c) { conv 3x3 c | relu }",
    "default": "default bn eps=1e-3",
    "init": "init conv kaiming_normal",
    "expect": "expect params <= 1M",
    "require": "require in.c > 3",
    "use": 'use conv_bn from "blocks/conv_bn.cnn"',
    "extends": "extends resnet20",
    "aux": "aux early from @stem { global_avgpool | flatten | linear classes }",
    "output": "output p3 from @p3",
    "train": "train { optimizer sgd lr=0.1; epochs 20 }",
    "repeat": "repeat 3 { conv 3x3 16 }",
    "if": "if deep { conv 3x3 16 }",
    "each": "each conv(kernel c) { 3x3 16; 3x3 32 }",
}
"""A complete statement for each first word."""

_ENDS = {"SEMICOLON", "RBRACE", "_NEWLINE", "$END", "VBAR", "_WITHIN", "_WHEN"}
"""Terminals that end a statement or continue it."""

_WORDS = {
    "_NEWLINE": "end of line",
    "SEMICOLON": "`;`",
    "$END": "end of file",
    "NAME": "a name",
    "INT": "a number",
    "FLOAT": "a number",
    "SIZE": "a size like `3x3`",
    "VOLUME": "a size like `3x32x32`",
    "STRING": "a string in quotes",
    "LABEL": "a label",
    "REFERENCE": "a reference like `@stage1`",
    "PERCENT": "a percentage like `1%`",
    "RELATION": "`<`, `>`, `<=`, `>=`",
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
    "TIMES": "`repeat`",
}


def explain(source: Source, text: str, expected: set[str], at: int) -> Diagnostic:
    """Return the diagnostic of a syntax error: the explanation of the first rule that applies."""
    place = Place(source, text, expected, at)
    found = next(filter(None, (rule(place) for rule in _RULES)), None) or _expected(place)
    span = found.span or place.span(place.start, place.start if place.line_end else place.end)
    unexpected = f"`{found.span.text}`" if found.span else place.token
    message = found.message or f"unexpected {unexpected} {found.where}".rstrip()
    notes = (found.note,) if found.note else ()
    return Diagnostic(found.code, message, span, notes=notes, help=found.help, fixes=tuple(found.fixes))


def _top_word(at: Place) -> tuple[str | None, list[Fix]]:
    """Suggest a top-level statement that is spelled like the first word of the line."""
    first = re.match(r"\s*([A-Za-z_]+)", at.before)
    words = (*TOP_WORDS, "output")
    if first is None or first.group(1) in words:
        return None, []
    near, fixes = respell(at.span(at.line + first.start(1), at.line + first.end(1)), first.group(1), words)
    return near, list(fixes)


def _without_parentheses(at: Place) -> list[Fix]:
    """Rewrite a call with parentheses as a call of this language."""
    for call in re.finditer(r"([A-Za-z_][A-Za-z0-9_]*) *\(([^()\n]*)\)", at.whole):
        name, args = call.groups()
        if at.line + call.start() <= at.at <= at.line + call.end() and name not in (*FUNCTIONS, *SCHEMES):
            plain = re.sub(r"\s*=\s*", "=", re.sub(r"\s*,\s*", " ", args.strip()))
            written = translated(name, split_arguments(args))
            if written is None and name[0].isupper():
                continue  # a class of another library
            written = written or f"{name} {plain}"
            help = f"write a call without parentheses: `{written}`"
            return [at.fix(help, (at.line + call.start(), at.line + call.end(), written))]
    return []


def _blocks(at: Place) -> Explanation | None:
    """Heads of blocks."""
    if at.expected == {"LPAR"} and (block := re.fullmatch(r"\s*block\s+([A-Za-z_]\w*)(\s*)", at.before)):
        end = at.at - len(block.group(2))
        listed = re.match(r"[A-Za-z_]\w*(?:(?:[ \t]*,[ \t]*|[ \t]+)[A-Za-z_]\w*)*[ \t]*(?=\{)", at.rest)
        parameters = ", ".join(re.findall(r"\w+", listed.group())) if listed else ""
        last = at.at + len(listed.group().rstrip()) if listed else end
        written = f"({parameters})"
        fix = at.fix(f"add a parameter list: `block {block.group(1)}{written}`", (end, last, written), certain=True)
        return Explanation(fix.help, [fix], message=f"missing parameter list of the block `{block.group(1)}`")
    head = re.fullmatch(r"\s*(block\b[^{}]*)", at.code)
    if head is None:
        return None
    written = head.group(1).strip()
    if at.word == "=" and written.endswith(")"):
        fix = at.fix("remove the `=`", (at.start, at.start + 1 + at.rest[1:2].isspace(), ""), certain=True)
        return Explanation(fix.help, [fix], where="in a block definition")
    if at.word == ":":
        body, end = at.until_end(at.start + 1)
        help = f"write the body in braces: `{written} {{ {body or 'relu'} }}`"
        fixes = [at.fix(help, (at.start, end, f" {{ {body} }}"))] if body else []
        return Explanation(help, fixes, where="in a block definition")
    if at.line_end and at.expected == {"LBRACE"}:
        end = at.line + len(at.code.rstrip())
        fix = at.fix("add `{` at the end of the line", (end, end, " {"))
        message = "expected `{` after the parameter list, found end of line"
        return Explanation(fix.help, [fix], message=message)
    if at.word == "," and written.endswith(","):
        fix = at.fix("remove one of the two commas", (at.start, at.start + 1, ""), certain=True)
        return Explanation(fix.help, [fix], where="in a parameter list")
    if at.word == ",":
        return Explanation("write a name between `(` and `,`, or remove the comma", where="in a parameter list")
    return None


def _groups(at: Place) -> Explanation | None:
    """Heads of repeated and conditional groups."""
    if loop := re.match(r"\s*repeat\s+([A-Za-z_]\w*)\s+in\b", at.whole):
        help = f"write `repeat 3 as {loop.group(1)}`, where 3 is the number of iterations"
        note = f"`{loop.group(1)}` is the index of the iteration, counted from 0"
        return Explanation(help, where="in a `repeat` statement", note=note)
    if at.word == ":" and (head := re.fullmatch(r"\s*(?:\}\s*)?((?:repeat|if|else)\b[^{]*)", at.before)):
        body, end = at.until_end(at.at + 1)
        written = f"{head.group(1).strip()} {{ {body or 'relu'} }}"
        fixes = [at.fix(f"write `{written}`", (at.at, end, f" {{ {body} }}"))] if body else []
        return Explanation(f"write the group in braces: `{written}`", fixes, where="before a group")
    if at.word == "=" and (named := re.search(r"\brepeat\s+([A-Za-z_]\w*\s*)$", at.before)):
        fix = at.fix("write the number alone, as in `repeat 3`", (at.at - len(named.group(1)), at.start + 1, ""))
        return Explanation(fix.help, [fix], where="in a `repeat` statement")
    group = re.search(r"\brepeat\s+([0-9]+)\s+$", at.before)
    index = re.match(r"([A-Za-z_]\w*)\s*\{", at.rest) if group else None
    if group and index and index.group(1) not in (*OPS, *JOINS):
        fix = at.fix(f"write `repeat {group.group(1)} as {index.group(1)}`", (at.start, at.start, "as "))
        return Explanation(fix.help, [fix], where=f"after `repeat {group.group(1)}`")
    if group and "LBRACE" in at.expected and re.match(r"[A-Za-z_]", at.word):
        count, name = group.group(1), at.word
        call, end = at.until_end(at.start, stop="|{};")
        written = f"{name} x{count}{call[len(name) :]}"
        fix = at.fix(f"write `{written}`", (at.line + group.start(), end, written))
        help = f"write `{written}` to repeat a call, or `repeat {count} {{ {call} }}` to repeat a group"
        return Explanation(help, [fix], where=f"after `repeat {count}`")
    if at.word == "{" and re.search(r"\brepeat\s*$", at.before):
        return Explanation("write the number, as in `repeat 2`", message="missing number of repetitions after `repeat`")
    if at.word == "{" and (times := re.search(_REPEATED, at.before)):
        edit = (at.line + times.start(1), at.at, f"repeat {times.group(2)} ")
        body, _ = at.until_end(at.start)
        written = f"repeat {times.group(2)}"
        help = f"replace `{times.group(1).rstrip()}` with `{written}`: `{f'{written} {body}'.rstrip()}`"
        fix = at.fix(help, edit, certain=True)
        where = f"after `{times.group(1).rstrip()}`"
        return Explanation(fix.help, [fix], where=where, note=f"`x{times.group(2)}` repeats a call, not a group")
    return None


def _tables(at: Place) -> Explanation | None:
    """Columns of a table with a value for all rows, and bars in its rows."""
    if at.word == "|" and re.search(r"\beach\s+[A-Za-z_]\w*\([^()]*\)[^{}]*\{[^{}]*\Z", at.text[: at.at]):
        fix = at.fix("remove the `|`", (at.start, at.end, ""))
        return Explanation(fix.help, [fix], where="in a row of a table", note="a row consists of values")
    table = re.search(r"\beach\s+([A-Za-z_]\w*)\(([^()]*)\)", at.whole)
    if at.word != "=" or not table or not at.line + table.start(2) <= at.at <= at.line + table.end():
        return None
    where = "in the columns of `each`"
    columns = re.findall(r"[A-Za-z_]\w*(?:=[^\s,()]+)?", re.sub(r"\s*=\s*", "=", table.group(2)))
    names = [column for column in columns if "=" not in column]
    words = [word for column in columns for word in column.split("=")]
    row = re.compile(r"[^{}\n]*\{\s*(?:\w+[ \t]*:)?([^\n;{}]*)").match(at.text, at.line + table.end())
    cells = len(row.group(1).split("#")[0].split()) if row else 0
    if cells == len(words) and all(map(str.isidentifier, words)):
        written = f"each {table.group(1)}({' '.join(words)})"
        help = f"separate columns with spaces: `{written}`"
    elif names:
        same = "".join(f" {column}" for column in columns if "=" in column)
        written = f"each {table.group(1)}({' '.join(names)}){same}"
        help = f"after the columns, write the arguments that apply to all rows: `{written}`"
    else:
        written = f"each {table.group(1)}({' '.join(column.partition('=')[0] for column in columns)})"
        help = f"write only names here, and their values in the rows: `{written}`"
        return Explanation(help, where=where)
    fix = at.fix(f"write `{written}`", (at.line + table.start(), at.line + table.end(), written))
    return Explanation(help, [fix], where=where)


def _branches(at: Place) -> Explanation | None:
    """Joins without braces, and groups in parentheses."""
    if (found := _parentheses(at)) is not None:
        return found
    if at.word == "{" and (found := _label_of_a_group(at)) is not None:
        return found
    join = re.search(rf"\b({'|'.join(JOINS)})\s*$", at.before)
    if at.word == "{" and (called := re.search(r"(?:^|[|;{:]|\b(?:stem|stage|head)\s)\s*(\w+)\s*$", at.before)):
        return _braces_of(at, called)
    if not join or "LBRACE" not in at.expected or re.match(r"x[0-9]", at.word):
        return None
    body, end = at.until_end(at.start, stop="|;")
    listed = body[1:-1].strip() if body[:1] in ("(", "[") else body
    branches = re.split(r"\s*,\s*", re.sub(r"(?<![\w.@=])(in|@[\w.]+)\s+(?=[\w@])", r"\1, ", listed))
    help, fixes = f"write the branches in braces: `{join.group(1)} {{ in; conv 3x3 16 }}`", list[Fix]()
    if body and not re.search(r"[()\[\]{}]", "".join(branches)):
        branches = [foreign.as_tensor(name) if name in at.labels else name for name in branches]
        branches = ["in", *branches] if len(branches) == 1 and branches != ["in"] else branches
        branches = [*branches, "conv 3x3 16"] if len(branches) == 1 else branches
        written = f"{{ {'; '.join(branches)} }}"
        help = f"write the branches in braces: `{join.group(1)} {written}`"
        fixes.append(at.fix(help, (at.line + join.end(1), end, f" {written}")))
    return Explanation(help, fixes, where=f"after `{join.group(1)}`")


def _label_of_a_group(at: Place) -> Explanation | None:
    """Explain a label without its colon before a join, a repeat or a condition: `stage1 add { in; relu }`."""
    group = rf"(?:{'|'.join(JOINS)}|(?:repeat|if)\s+[^{{}};|]+?)"
    head = rf"(?:^|[;{{])\s*(?P<label>[A-Za-z_]\w*)\s+(?P<group>{group})\s*$"
    found = re.search(head, at.before)
    if found is None or found["label"] in (*TOP_WORDS, *OPS, *JOINS, *LABEL_WORDS, "repeat", "if", "else", "each"):
        return None
    label, end = found["label"], at.line + found.end("label")
    fix = at.fix(f"write `{label}:`", (end, end, ":"), certain=True)
    span = at.span(at.line + found.start("label"), end)
    help = f"write a colon after the label: `{label}: {found['group']} {{`"
    return Explanation(help, [fix], span, message=f"missing colon after the label `{label}`")


def _braces_of(at: Place, called: re.Match[str]) -> Explanation | None:
    """Explain braces after something else than a join."""
    name = called.group(1)
    own = FOREIGN_NAMES.get(name)
    if own in JOINS:
        fix = at.fix(f"write `{own}`", (at.line + called.start(1), at.line + called.end(1), own))
        return Explanation(fix.help, [fix], at.span(at.line + called.start(1), at.line + called.end(1)))
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in (*TOP_WORDS, "repeat", "if", "else", "each"):
        return None
    if (found := _group_of(at, name, at.line + called.start(1))) is not None:
        return found
    note = f"only {alternatives((*JOINS, 'repeat', 'if', 'else'), 'and')} are followed by a group"
    return Explanation("separate them with `|`, or remove the braces", where=f"after `{name}`", note=note)


_SHORTCUTS = re.compile(r"(?:res|residual|skip|shortcut|identity)(?:_?(?:connection|block|unit|add|path))?", re.I)
_BRANCHES = re.compile(r"(?:parallel|branch|branches|split|fork|inception)\w*", re.I)
_GROUPS = re.compile(r"(?:sequential|seq|group|chain|layers?|body|block)", re.I)
"""Words that other languages write before a group."""


def _group_of(at: Place, name: str, start: int) -> Explanation | None:
    """Explain a group after a word of another language, or after a label without its colon."""
    end = _closing(at)
    text = at.text[at.start + 1 : end].strip() if end is not None else ""
    short = text if text and len(text) < 60 and "\n" not in text else "conv 3x3 16"
    where = f"after `{name}`"
    if re.match(r"(?:name|type)\s*:", text):  # a layer of Caffe
        return Explanation(foreign.LAYERS, where=where)
    if _SHORTCUTS.fullmatch(name):
        branch = short if text == short and not re.search(r"[;{}]", short) else f"{{ {short} }}"
        fixes = []
        if end is not None:
            inner = text == short and branch == short
            edits = (start, at.start + 1, "add { in; " if inner else "add { in; {"), (end, end, "" if inner else "} ")
            fixes = [at.fix("write the shortcut as a branch of `add`", *edits)]
        return Explanation(f"write the shortcut as a branch: `add {{ in; {branch} }}`", fixes, where=where)
    if _BRANCHES.fullmatch(name):
        fixes = [at.fix(f"write `{join}`", (start, at.start, f"{join} ")) for join in ("concat", "add")]
        return Explanation(
            "write `concat` to join the channels of the branches, or `add` for their sum", fixes, where=where
        )
    if _GROUPS.fullmatch(name):
        fix = at.fix(f"remove `{name}`", (start, at.start, ""))
        return Explanation(f"remove `{name}`: braces alone make a group", [fix], where=where)
    before = at.text[at.line : start].strip()
    if before == "" and name not in (*OPS, *FOREIGN_NAMES) and re.search(r"[0-9]$", name):
        fix = at.fix(f"write `{name}:`", (start, start + len(name), f"{name}:"), certain=True)
        return Explanation(f"write a colon after the label: `{name}: {{ {short} }}`", [fix], where=where)
    return None


def _parentheses(at: Place) -> Explanation | None:
    """Explain a group in parentheses: `seq(conv 3x3 16, bn)`."""
    head = r"(?:^|[|;{:])\s*(?P<name>[A-Za-z_]\w*)\s*(?P<open>\()\s*[a-z_]\w*\s+[^()]*$"
    group = re.search(head, at.before)
    if group is None or not (_GROUPS.fullmatch(group["name"]) or _BRANCHES.fullmatch(group["name"])):
        return None
    code, end = at.until_end(at.line + group.start("open"), stop="|;")
    if not code.endswith(")"):
        return None
    parts, chain = re.split(r"\s*,\s*", code[1:-1].strip()), _GROUPS.fullmatch(group["name"])
    written = f"{{ {' | '.join(parts)} }}" if chain else f"concat {{ {'; '.join(parts)} }}"
    help = f"write the {'group' if chain else 'branches'} in braces: `{written}`"
    fix = at.fix(help, (at.line + group.start("name"), end, written))
    span = at.span(at.line + group.start("open"), at.line + group.start("open") + 1)
    return Explanation(help, [fix], span, where=f"after `{group['name']}`")


def _closing(at: Place) -> int | None:
    """Return the offset of the brace that closes the one at the error."""
    depth = 0
    for token in re.compile(r'"[^"\n]*"|#[^\n]*|[{}]').finditer(at.text, at.start):
        depth += (token.group() == "{") - (token.group() == "}")
        if token.group() == "}" and depth == 0:
            return token.start()
    return None


def _unfinished(at: Place) -> Explanation | None:
    """Percentages, ranges without an end, and labels without an element."""
    begin = max(at.line - 200, 0) if at.word == "}" and not at.before.strip() else at.line
    share_ends = re.compile(r"(?<![0-9.])[0-9]+(?:\.[0-9]+)?[ \t]*%(?=[ \t]*(?:#[^\n]*)?\s*$)")
    percent = share_ends.search(at.text[begin : at.line] + at.code)
    if percent and (at.line_end or at.word in ("|", "}")):
        span = at.span(begin + percent.start(), begin + percent.end())
        fix = share(span)
        return Explanation(fix.help, [fix], span, f"unexpected percentage `{percent.group()}`")
    if at.line_end and re.fullmatch(r"\s*train\s*:\s*", at.code):
        return Explanation(f"write the recipe in braces: `{_INCOMPLETE['train']}`", where="after `train:`")
    reach = max(0, at.at - _REACH)
    low = re.search(r"([\w.()/*]*)\.\.\s*$", at.text[reach : at.at])
    if low and (at.line_end or at.word in ("|", "}")):
        end = reach + len(at.text[reach : at.at].rstrip())
        scale = re.fullmatch(r"0\.[0-9]+", low.group(1))
        help = f"write the end of the range, as in `{low.group(1)}..{'1.0' if scale else 'in.c'}`"
        return Explanation(help, span=at.span(end, end), message="missing end of the range")
    if at.line_end and (label := re.fullmatch(r"\s*([A-Za-z_][\w.]*)\s*:\s*", at.code)):
        message = f"expected an element after the label `{label.group(1)}`, found end of line"
        if re.match(r"[^\n]*\n\s*-", at.text[at.at :]):
            return Explanation("remove this line: layers are not listed under a heading", message=message)
        return Explanation(f"write the element on the same line: `{label.group(1)}: conv 3x3 16`", message=message)
    return None


def _incomplete(at: Place) -> Explanation | None:
    """Statements and expressions that end too early."""
    if not at.line_end:
        return None
    operator = re.search(r"(?:[-+*/%<=>]|[<>=!]=|//|\b(?:and|or|not))$", at.code.rstrip())
    if operator and not re.search(r"(?<![<>=!])=$", operator.group()):
        message = f"expected an expression after `{operator.group()}`, found end of line"
        return Explanation("complete the expression, or remove the operator", message=message)
    if words := re.search(r"\b(when|if|then|else)$", at.code.rstrip()):
        what = "a condition" if words.group() in ("when", "if") else "a value"
        message = f"expected {what} after `{words.group()}`, found end of line"
        return Explanation("complete the expression on the same line", message=message)
    first = re.search(r"(?:^|[;{}|])\s*(?:(?:stem|stage|head|\w+\s*:)\s+)?([a-z]+)\b([^;{}|]*)$", at.code)
    if first and first.group(1) == "init" and first.group(2).strip() not in OPS:
        help = "write an operator and an initialization: `init conv kaiming_normal`"
        return Explanation(help, where=f"after `{first.group().strip()}`")
    if first and first.group(1) in _INCOMPLETE:
        word, named = first.group(1), re.match(r"\s*([A-Za-z_]\w*)", first.group(2))
        example = _INCOMPLETE[word].replace("width", named.group(1)) if named else _INCOMPLETE[word]
        help = f"complete the statement, as in `{example}`"
        return Explanation(help, where=f"after `{first.group().strip(' ;{}|')}`")
    if argument := re.search(r"\b([A-Za-z_]\w*)\s*=\s*$", at.code):
        name = argument.group(1)
        example = example_value(Parameter(name, Type("int")))
        message = f"missing value for the argument `{name}`"
        return Explanation(f"write a value, such as `{name}={example}`", message=message)
    return None


def _else(at: Place) -> Explanation | None:
    """An `else` that continues nothing, and names spelled `else`."""
    if at.word != "else":
        return None
    if re.match(r"else\s*\{", at.rest) and (parted := re.search(r"\}(\s*;)\s*$", at.before)):
        fix = at.fix("remove the `;`", (at.line + parted.start(1), at.line + parted.end(1), ""), certain=True)
        return Explanation(fix.help, [fix], where="after `;`", note="`else` directly follows the `}` of its `if`")
    if re.search(r"[;{}]\s*$|^\s*$", at.before) and not re.match(r"else\s*=", at.rest):
        body, _ = at.until_end(at.end)
        written = f"else {{ {body.lstrip(': ').strip('{ }')} }}".replace("{  }", "").rstrip()
        help = f"write `{written}` directly after the `}}` of an `if`"
        note = "`else` cannot be used as a label" if body[:1] == ":" else None
        return Explanation(help, message="`else` without an `if`", note=note)
    return Explanation("choose another name", message="`else` is a reserved word and cannot be used as a name")


def _tensors(at: Place) -> Explanation | None:
    """Outputs of elements named with `let`, and references in expressions."""
    if at.word == "@" and "INT" in at.expected and (reference := re.match(r"@[A-Za-z_][\w.]*", at.rest)):
        message = f"`{reference.group()}` is a tensor, not a value"
        named = re.fullmatch(r"\s*((?:let|param)\s+([A-Za-z_]\w*)\s*=\s*)", at.before)
        help = "write `in.c`, `in.h` or `in.w` for the sizes of the input of a statement"
        if named:
            fix = at.fix(f"name a tensor with a label: `{named.group(2)}: {reference.group()}`",
                         (at.line + named.start(1), at.line + named.end(1), f"{named.group(2)}: "))  # fmt: skip
            return Explanation(fix.help, [fix], message=message)
        return Explanation(help, span=at.span(at.start, at.start + reference.end()), message=message)
    named = re.fullmatch(r"\s*(let\s+([A-Za-z_]\w*)\s*=\s*)([A-Za-z_]\w*)\s*", at.before)
    if named is None or not re.match(r"[A-Za-z0-9_|{]", at.rest):
        return None
    called, _ = at.until_end(at.line + named.start(3))
    written = f"{named.group(2)}: {called or named.group(3)}"
    fix = at.fix(f"write `{written}`", (at.line + named.start(1), at.line + named.end(1), f"{named.group(2)}: "))
    help = f"name the output of an element with a label: `{written}`"
    return Explanation(help, [fix], where="in a `let` statement", note="`let` defines a value, not an element")


def _contracts(at: Place) -> Explanation | None:
    """Expected shapes and numbers in other notations."""
    if not re.match(r"\s*expect\b", at.before):
        return None
    if (shape := re.match(r"[0-9]+(?:x[0-9]+){2,}", at.rest)) and re.search(r"=\s*$", at.before):
        written = f"[{', '.join(shape.group().split('x'))}]"
        fix = at.fix(f"write `{written}`", (at.at, at.at + shape.end(), written), certain=True)
        span = at.span(at.at, at.at + shape.end())
        return Explanation(f"write the shape as a list: `{written}`", [fix], span, where="in an `expect` statement")
    metric = re.fullmatch(r"\s*expect\s+([A-Za-z_]\w*)(\s*)", at.before)
    if metric and (sign := re.match(r":?\s*(?=[0-9\[])", at.rest)):
        fix = at.fix("write `=`", (at.at - len(metric.group(2)), at.at + sign.end(), " = "))
        value, _ = at.until_end(at.at + sign.end())
        help = f"write `=`, `<=` or `>=` before the expected value: `expect {metric.group(1)} = {value}`"
        word = re.match(r":|\[|[\w.]+", at.rest)
        assert word is not None
        span = at.span(at.at, at.at + word.end())
        return Explanation(help, [fix], span, where=f"after `expect {metric.group(1)}`")
    number = re.search(r"[0-9]+\s*$", at.before)
    parts = re.match(r"(?:,[0-9]{3})+(?![\w,])|[kMG](?!\w)", at.rest)
    if number and parts:
        written = number.group().strip() + parts.group().replace(",", "")
        fix = at.fix(f"write `{written}`", (at.line + number.start(), at.at + parts.end(), written), certain=True)
        help = f"write the number without commas or spaces: `{written}`"
        return Explanation(help, [fix], where="in a number")
    if "_WITHIN" in at.expected and not at.line_end:
        _, end = at.until_end(at.start)
        fix = at.fix("remove it", (at.line + len(at.before.rstrip()), end, ""))
        return Explanation("remove it, or write a tolerance: `within 1%`", [fix], where="after the expected value")
    return None


def _references(at: Place) -> Explanation | None:
    """Labels without `@`, file names without quotes, and a missing `from`."""
    if at.word == "@" and (branch := re.search(r"[{;]\s*(?:@[A-Za-z0-9_]+|in)(\s+)$", at.before)):
        fix = at.fix("write `;`", (at.at - len(branch.group(1)), at.start, "; "), certain=True)
        return Explanation("separate branches with `;` or line breaks", [fix], where="after a branch")
    if at.expected == {"REFERENCE"} and re.match(r"[A-Za-z_]\w*", at.rest):
        fix = at.fix(f"write `@{at.word}`", (at.start, at.start, "@"), certain=True)
        message = f"expected a reference such as `@stem`, found `{at.word}`"
        return Explanation(f"write `@{at.word}` to refer to the element with this label", [fix], message=message)
    if re.match(r"\s*aux\s*$", at.before):
        rest, _ = at.until_end(at.start, stop=";{")
        help = f"name the auxiliary head: `aux early from {rest or '@stem'}`"
        fix = at.fix(help, (at.start, at.start, "early from "))
        fixes = [fix] if at.word == "@" else []
        return Explanation(fix.help, fixes, message="missing name of the auxiliary head")
    path = re.compile(r"\s*(?:use\b.*\bfrom|extends)\s+([\w./-]+)").match(at.whole)
    if path and at.line + path.start(1) <= at.at <= at.line + path.end(1) and not at.line_end and at.word != ",":
        span = at.span(at.line + path.start(1), at.line + path.end(1))
        fix = at.fix(f'write `"{path.group(1)}"`', (span.start, span.end, f'"{path.group(1)}"'))
        message = f"expected a file name in quotes, found `{path.group(1)}`"
        return Explanation(fix.help, [fix], span, message)
    if re.match(r"\s*aux\s+[A-Za-z_]\w*(?:\s+from)?\s*$", at.before) and at.word != "@":
        body, _ = at.until_end(at.start)
        head = at.before.strip().removesuffix("from").strip()
        written = f"{head} from @LABEL {body if body.startswith('{') else ''}".rstrip()
        help = f"add the label of the statement whose output the auxiliary head reads: `{written}`"
        return Explanation(help, where=f"after `{at.before.strip()}`")
    if (used := re.fullmatch(r"\s*use\s+([A-Za-z_]\w*)\s*", at.before)) and at.line_end:
        help = f'write the file that defines it: `use {used.group(1)} from "blocks.cnn"`'
        message = f"missing `from` after `use {used.group(1)}`"
        if resource("specs", "blocks", f"{used.group(1)}.cnn").is_file():
            help = f"remove it: `{used.group(1)}` is a standard block, which needs no `use`"
            return Explanation(help, [at.fix(help, (at.line, at.code_end, ""))], message=message)
        return Explanation(help, message=message, note="standard blocks need no `use`")
    return None


_OUTPUT = re.compile(
    r"(?:^|(?P<sign>[|;{}:]))\s*(?P<word>outputs?|return)\b\s*(?P<name>(?!from\s*$)\"?[\w.-]*\"?)\s*[^\s@{};|]*\s*$"
)
"""The start of a statement that returns a tensor, up to its label."""


def _outputs(at: Place) -> Explanation | None:
    """Incomplete and misplaced `output` statements."""
    if OUTPUT.match(at.rest):  # in braces, where a statement begins
        return _inner_output(at, at.at, at.until_end(at.at)[0])
    if re.search(r"\boutput\s+[\w.]+\s+from\s+@[\w.]+\s*$", at.before) and at.word in ("|", "{"):
        help = "write the layers in a labeled statement, and name its label in `output`"
        return Explanation(help, where="at the end of an `output` statement")
    found = _OUTPUT.search(at.before)
    if found is None:
        return None
    if at.expected == {"REFERENCE"} and at.word in ("in", "nothing"):
        help = f"label the statement that computes it, and name the label: `output {found['name']} from @LABEL`"
        return Explanation(help, message=f"expected a reference such as `@stem`, found `{at.word}`")
    label = re.match(r"[:=<>-]*\s*@[ \t]*([A-Za-z_][\w.]*)", at.rest)
    name = re.sub(r"[^\w.]", "_", found["name"].strip('"')) or (label.group(1) if label else "p3")
    if at.word == "," and found["name"]:
        help = f"write a statement for each output: `output {name} from @{name}`"
        return Explanation(help, where="in an `output` statement")
    if label is None:
        return None
    written, start = f"output {name} from @{label.group(1)}", at.line + found.start("word")
    if found["sign"] in ("|", ":") or in_braces(at.text, start):
        return _inner_output(at, start, written)
    fix = at.fix(f"write `{written}`", (start, at.at + label.end(), written))
    return Explanation(fix.help, [fix], message="invalid syntax of `output`")


def _inner_output(at: Place, start: int, written: str) -> Explanation:
    help = f"write `{written}` on its own line at the top level"
    message = "`output` is only allowed at the top level of the file"
    return Explanation(help, [], at.span(start, start + len("output")), message, "E0201")


def _characters(at: Place) -> Explanation | None:
    """Invalid characters."""
    if at.line_end or " " <= at.word[0] <= "~":
        return None
    sign = at.word[0]
    shown = sign if sign.isprintable() else f"U+{ord(sign):04X}"
    help, fixes = "remove it or write an ASCII character instead", list[Fix]()
    if plain := _REPLACEMENTS.get(sign):
        help = f"write `{plain}`"
        fixes.append(at.fix(help, (at.start, at.start + 1, plain), certain=True))
    span = at.span(at.start, at.start + 1)
    return Explanation(help, fixes, span, f"invalid character `{shown}`", "E0103", note=ASCII_ONLY)


def _repeats(at: Place) -> Explanation | None:
    """Repeat counts that do not follow a name."""
    if not re.match(r"x[0-9]+$", at.word):
        return None
    message = f"misplaced repeat count `{at.word}`"
    call = re.search(r"([A-Za-z_][A-Za-z0-9_]*)([^|{};]*)$", at.before)
    if call is None:
        help = "write the repeat count directly after the name of an operator or block: `conv_bn x3 3x3 16`"
        return Explanation(help, message=message, code="E0106")
    name, end = call.group(1), at.line + call.end(1)
    if (used := re.fullmatch(r"\s+(@[\w.]+)\s*", call.group(2))) and name == "again":
        written = f"repeat {at.word[1:]} {{ again {used.group(1)} }}"
        fix = at.fix(f"repeat a group that contains it: `{written}`", (at.line + call.start(), at.end, written))
        return Explanation(fix.help, [fix], message=message, code="E0106")
    rest, last = at.until_end(at.end, stop="|;")
    if name in JOINS:
        written = f"repeat {at.word[1:]} {{ {name} {rest or '{ in; conv 3x3 16 }'} }}"
        fixes = [at.fix(f"write `{written}`", (at.line + call.start(), last, written))] if rest else []
        note = f"`{name}` is not a call, and only calls have a repeat count"
        return Explanation(f"repeat a group that contains it: `{written}`", fixes, None, message, "E0106", note=note)
    written = " ".join(f"{name} {at.word} {call.group(2)} {rest}".split())
    edits = (end, end, f" {at.word}"), (at.start - 1, at.end, "")
    fix = at.fix(f"write the repeat count directly after the name: `{written}`", *edits, certain=True)
    return Explanation(fix.help, [fix], message=message, code="E0106")


def _again(at: Place) -> Explanation | None:
    """`again@x`, `again x2 @x` and `again @ x`."""
    call = re.search(r"\bagain(?:\s+x([0-9]+))?\s*$", at.before)
    if call is None or at.word != "@":
        return None
    label = re.match(r"@[ \t]*([\w.]+)", at.rest)
    written = f"again @{label.group(1) if label else 'stage1'}"
    if call.group(1):
        written = f"repeat {call.group(1)} {{ {written} }}"
    fixes = [at.fix(f"write `{written}`", (at.line + call.start(), at.at + label.end(), written))] if label else []
    return Explanation(f"write `{written}`", fixes, message="invalid syntax of `again`")


def _repeats_of_others(at: Place) -> Explanation | None:
    """`3x block`, `3 * block` and `block * 3`."""
    if repeat := re.match(r"([0-9]+)(?:x\s|\s*\*)\s*([A-Za-z_][A-Za-z0-9_]*)", at.rest):
        count, name = repeat.groups()
        sign = at.rest[: repeat.start(2)].rstrip()
        help = f"write the repeat count directly after the name: `{name} x{count}`"
        fix = at.fix(help, (at.at, at.at + repeat.end(), f"{name} x{count}"), certain=True)
        span = at.span(at.at, at.at + len(sign))
        return Explanation(fix.help, [fix], span, f"misplaced repeat count `{sign}`", "E0106")
    times, call = re.match(r"\*\s*([0-9]+)(?![A-Za-z0-9_.])", at.rest), re.search(_NAMED, at.before)
    if times and call:
        edit = (at.at - len(call.group(2)), at.at + times.end(), f" x{times.group(1)}")
        fix = at.fix(f"write `{call.group(1)} x{times.group(1)}`", edit, certain=True)
        return Explanation(fix.help, [fix], where=f"after `{call.group(1)}`")
    return None


_AFTER_INPUT = r"\binput(?:\s+([A-Za-z_]\w*))?\s*:?\s*$"  # without or with the name of an image


def _input_shape(at: Place, shape: str) -> Explanation:
    """Explain an input that has not three numbers."""
    span, numbers = at.span(at.at, at.at + len(shape)), shape.split("x")
    name = re.search(_AFTER_INPUT, at.before)
    head = f"input {name.group(1)}" if name and name.group(1) else "input"
    message = f"expected channels, height and width of the input, found `{shape}`"
    if len(numbers) > 3:
        batch = len(numbers) == 4 and numbers[0] == "1"
        written = "x".join(numbers[1:] if batch else (numbers[0], *numbers[-2:]))
        help = f"write channels, height and width{', without the batch' if batch else ' only'}: `{head} {written}`"
        note = (
            None
            if batch
            else "an input has two axes besides the channels; 3D networks, such as video networks, are not supported"
        )
        fixes = [at.fix(f"write `{head} {written}`", (span.start, span.end, written))] if batch else []
        return Explanation(help, fixes, span, message, note=note)
    low, high = sorted(map(int, numbers)) if len(numbers) == 2 else (int(shape), int(shape))
    if len(numbers) == 1 or low == 1:
        written = f"1x1x{high}" if len(numbers) == 2 else f"{shape}x1x1"
        what = "a sequence is a map of height 1" if len(numbers) == 2 else "flat features are channels of a map of 1x1"
        fix = at.fix(f"write `{head} {written}`", (span.start, span.end, written))
        return Explanation(f"write channels, height and width; {what}: `{head} {written}`", [fix], span, message)
    fixes = [at.fix(f"write `{head} {c}x{shape}`", (span.start, span.end, f"{c}x{shape}")) for c in (1, 3)]
    help = f"write the channels first: `{head} 1x{shape}` for grayscale images, `{head} 3x{shape}` for color images"
    return Explanation(help, fixes, span, message)


_IMAGE = r"[0-9]+x[0-9]+x[0-9]+(?!\w)"


def _named_inputs(at: Place) -> Explanation | None:
    """`input left: 3x8x8`, `input 3x8x8 left`, `input left, right 3x8x8` and `input 3x8x8, 3x8x8`."""
    start = re.search(r"(?:^|;)\s*(input)\s+([^;]*)$", at.before)
    if start is None:
        return None
    code, end = at.until_end(at.line + start.start(2))
    parts = re.split(r"[\s,:=\"]+", code.strip(' \t,:="'))
    sizes = [part for part in parts if re.fullmatch(_IMAGE, part)]
    names = [re.sub(r"\W", "_", part) for part in parts if re.fullmatch(r"[A-Za-z_][\w.-]*", part)]
    known = len(sizes) + len(names) == len(parts)
    names = names or [f"image{number}" for number, _ in enumerate(sizes, 1)]
    if not known or not sizes or len(sizes) not in (1, len(names)):
        return None
    if {*parts[parts.index(sizes[0]) :]} & {*OPS, *JOINS, *TOP_WORDS}:  # another statement
        return None
    sizes *= len(names) if len(sizes) == 1 else 1
    written = [f"input {name} {size}" for name, size in zip(names, sizes, strict=True)]
    each = "one `input` for each image: " if len(names) > 1 else ""
    edit = (at.line + start.start(1), end, "\n".join(written))
    fix = at.fix(f"write {each}{', '.join(f'`{one}`' for one in written)}", edit, certain=len(names) == 1)
    return Explanation(fix.help, [fix], where="in an `input` statement")


def _after_input(at: Place) -> Explanation | None:
    """`input 3x8x8 | conv 3x3 8`, `input 3x8x8 stem: conv 3x3 8` and `input 3x8x8 classes 10`."""
    stated = re.search(rf"(?:^|;)\s*input\s+((?:[A-Za-z_]\w*\s+)?{_IMAGE})\s*$", at.before)
    other = re.match(r"(?:\|[ \t]*)?(?=[A-Za-z_@{])(?!\w+\s*=)", at.rest)
    if stated is None or other is None:
        return None
    edit = (at.line + stated.end(1), at.at + other.end(), "\n")
    fix = at.fix(f"start a new line after `input {stated.group(1)}`", edit)
    return Explanation(fix.help, [fix], where="in an `input` statement")


def _inner_input(at: Place) -> Explanation | None:
    """`input 3x32x32` or `input left 3x32x32` in braces or in a pipeline."""
    before = re.search(r"\binput(?:[ \t]+[A-Za-z_]\w*)?[ \t]+$", at.before)
    start = at.line + before.start() if before else at.at
    found = re.match(r"(input\s+(?:[A-Za-z_]\w*\s+)?[0-9]+x[0-9]+x[0-9]+)(?!\w)", at.text[start:])
    if found is None:
        return None
    message = "`input` is only allowed at the top level of the file"
    help = f"write `{' '.join(found.group(1).split())}` on its own line at the top level"
    return Explanation(help, [], at.span(start, start + len("input")), message, "E0201")


def _numbers(at: Place) -> Explanation | None:
    """Misplaced sizes, and words that begin with a digit."""
    if at.line_end:
        return None
    if size := re.match(r"[0-9]+(x[0-9]+)+(?![A-Za-z0-9_])", at.rest):
        span, message = at.span(at.at, at.at + size.end()), f"unexpected size `{size.group()}`"
        near, fixes = _top_word(at)
        if re.search(_AFTER_INPUT, at.before) and size.group().count("x") != 2:
            return _input_shape(at, size.group())
        if size.group().count("x") == 2:
            kernel = "x".join(size.group().split("x")[:2])
            fixes.append(at.fix(f"write `{kernel}`", (at.at, at.at + size.end(), kernel)))
            note = None if near else "only `input` takes three numbers"
            return Explanation(near or f"write the kernel size as `{kernel}`", fixes, span, message, note=note)
        return Explanation(near or "write the name of an operator before it: `conv 3x3 16`", fixes, span, message)
    if (number := re.match(r"[0-9]+(?![\w.])(?=\s*(?:#|$))", at.rest)) and re.search(_AFTER_INPUT, at.before):
        return _input_shape(at, number.group())
    if size := re.match(r"[0-9]+(?:[xX][0-9]+)+(?!\w)", at.rest):
        written = size.group().lower()
        fix = at.fix(f"write `{written}`", (at.at, at.at + size.end(), written), certain=True)
        return Explanation(fix.help, [fix], at.span(at.at, at.at + size.end()), f"invalid size `{size.group()}`")
    if re.match(r"[0-9]+(\.[0-9]+)?[A-Za-z_]", at.rest):
        token = re.match(r"[0-9][0-9A-Za-z_.]*(?:(?<=[0-9][eE])[-+][0-9A-Za-z_.]+)?", at.rest)
        assert token is not None
        help = "write a number as `3`, `0.1` or `1e-4`, and a size as `3x5` (height x width)"
        span, message = at.span(at.at, at.at + token.end()), f"invalid number or size `{token.group()}`"
        note = "a name starts with a letter or `_`"
        if computed := re.fullmatch(r"[0-9]+x([A-Za-z_]\w*)", token.group()):
            name = computed.group(1)
            help = f"for a square kernel, write the value alone: `conv {name} 16`"
            note = "a size consists of two literal numbers"
        return Explanation(help, [], span, message, "E0103", note=note)
    return None


def _values(at: Place) -> Explanation | None:
    """Values in other notations: `'same'`, `$width`, `{width}`, `x.c`, `0,5`."""
    if quoted := re.match(r"'([^'\n]*)'", at.rest):
        word, free = (
            quoted.group(1),
            re.search(r"\b(?:name|path)\s*=\s*$|\b(?:from|folder|extends)\s*$|,\s*$", at.before),
        )
        written = word if re.fullmatch(r"[A-Za-z_]\w*", word) and not free else f'"{word}"'
        fix = at.fix(f"write `{written}`", (at.at, at.at + quoted.end(), written))
        return Explanation(fix.help, [fix], at.span(at.at, at.at + quoted.end()))
    inserted = re.match(r"\$\{?\s*([A-Za-z_]\w*)\s*\}?|\{\s*([A-Za-z_]\w*)\s*\}", at.rest)
    name = (inserted.group(1) or inserted.group(2)) if inserted else ""
    if inserted and (at.word == "$" or (name not in OPS and re.search(r"(?:[0-9)=]|\b[a-z]\w*)\s*$", at.before))):
        fix = at.fix(f"write `{name}`", (at.at, at.at + inserted.end(), name))
        note = "placeholders in braces are only allowed in names in quotes"
        return Explanation(fix.help, [fix], at.span(at.at, at.at + inserted.end()), note=note)
    if (axis := re.match(r"\.(c|h|w)\b", at.rest)) and re.search(r"[A-Za-z_]\w*$", at.before):
        help = f"write `in.{axis.group(1)}`: only the tensor `in` has dimensions"
        return Explanation(help, span=at.span(at.at, at.at + axis.end()))
    decimal = re.match(r",([0-9]+)(?![\w.,])", at.rest)
    side = re.search(r"\w\s*=\s*([0-9]+)$", at.before)
    if decimal and side and "COMMA" not in at.expected:
        written = f"{side.group(1)}x{decimal.group(1)}"
        fix = at.fix(f"write the size as `{written}`", (at.at - len(side.group(1)), at.at + decimal.end(), written))
        return Explanation(fix.help, [fix], where="in a size")
    if decimal and "COMMA" not in at.expected and re.search(r"(?<![\w.])0$", at.before):
        written = f"0.{decimal.group(1)}"
        fix = at.fix(f"write `{written}`", (at.at - 1, at.at + decimal.end(), written))
        return Explanation(fix.help, [fix], where="in a number")
    return None


def _calls(at: Place) -> Explanation | None:
    """Parentheses around arguments, and commas between them."""
    if at.word == ")" and (call := re.search(r"[A-Za-z_][A-Za-z0-9_]*(\(\s*)$", at.before)):
        fix = at.fix("remove the parentheses", (at.start - len(call.group(1)), at.start + 1, ""), certain=True)
        return Explanation(fix.help, [fix], where="in a call without arguments")
    pair = re.search(r"(?:=|\s)(\(\s*([0-9]+)\s*)$", at.before)
    if pair and (second := re.match(r",\s*([0-9]+)\s*\)", at.rest)):
        channels = re.search(r"\b[0-9]+x[0-9]+\s*$", at.before[: pair.start() + 1])
        if channels:  # the numbers of input and output channels
            written = second.group(1)
            fix = at.fix(f"write `{written}`", (at.at - len(pair.group(1)), at.at + second.end(), written))
            help = f"write the number of output channels alone: `{written}`"
            return Explanation(help, [fix], where="between numbers of channels")
        written = f"{pair.group(2)}x{second.group(1)}"
        fix = at.fix(f"write `{written}`", (at.at - len(pair.group(1)), at.at + second.end(), written), certain=True)
        return Explanation(f"write the size as `{written}`", [fix], where="in a size")
    if at.word == "," and not at.rest[1:].strip():
        fix = at.fix("remove the comma", (at.start, at.start + 1, ""), certain=True)
        return Explanation(fix.help, [fix], where="at the end of a line")
    if opened := _opened(at):
        fixes = _without_parentheses(at)
        own = foreign_operator(opened[0], OPS)
        choice = next(filter(None, (foreign_choice(opened[0], table) for table in CHOICES.values())), None)
        example = example_call(own, OPS[own].parameters.values()) if own in OPS else "conv 3x3 16"
        if choice and in_train(at.text, at.at):
            given = re.search(r"\(\s*([^()\n]*)", at.whole[opened[1] - at.line :])
            example = f"{choice} {re.sub(r'[ ]*,[ ]*', ' ', given.group(1).strip())}".strip() if given else choice
        help = fixes[0].help if fixes else absent_operator(opened[0]) or f"{_CALL}: `{example}`"
        return Explanation(help, fixes, at.span(opened[1], opened[1] + 1), where=f"after `{opened[0]}`")
    if at.word != "," or "COMMA" in at.expected:
        return None
    if re.match(r",\s*(?:@|(?:in|nothing|[A-Za-z_][A-Za-z0-9_]*\s*:)(?!\.|\w))", at.rest):
        fix = at.fix("write `;`", (at.start, at.start + 1, ";"), certain=True)
        return Explanation("separate statements with `;` or line breaks", [fix], where="between statements")
    joined = re.search(rf"\b({'|'.join(JOINS)})\s*\{{[^{{}}]*$", at.text[max(0, at.at - _REACH) : at.at])
    if operator := operator_after(at.rest):
        if joined:
            fix = at.fix("write `;`", (at.start, at.start + 1, ";"), certain=True)
            return Explanation("separate branches with `;` or line breaks", [fix], where="between branches")
        fix = at.fix("write `|`", (at.start, at.start + 1, at.spaced(" |")))
        return Explanation(f"join elements with `|`: `| {operator}`", [fix], where="between elements")
    return _commas(at)


def _opened(at: Place) -> tuple[str, int] | None:
    """Return the callee and the offset of the parenthesis around the arguments of a call."""
    name = r"([A-Za-z_][\w.]*)[ \t]*"
    if at.word in (",", "=") and not re.match(r"\s*(?:block|each|stage\s+each|\w+\s*:\s*each)\b", at.before):
        call = re.search(rf"{name}(\()[^()]*$", at.before)
        return (call.group(1), at.line + call.start(2)) if call else None
    if "RPAR" in at.expected and (call := re.search(r"(?<![\w.])([A-Za-z_]\w*)[ \t]+(\()[^(){}]*$", at.before)):
        return None if call.group(1) in ("block", "if", "when", "and", "or", "not", "require") else _place(at, call)
    if at.word == "(":
        call = re.search(rf"{name}$", at.before)
        return (call.group(1), at.start) if call else None
    call = re.match(r"([A-Za-z_]\w*)\(", at.rest)
    return (call.group(1), at.at + call.end() - 1) if call else None


def _place(at: Place, call: re.Match[str]) -> tuple[str, int]:
    return call.group(1), at.line + call.start(2)


def _commas(at: Place) -> Explanation:
    """Explain commas between the arguments of a call, or between definitions."""
    defined = re.fullmatch(r"\s*(let|param)\s+[A-Za-z_]\w*\s*=\s*[^,;]+", at.before)
    if defined and re.match(r",\s*[A-Za-z_]\w*\s*=", at.rest):
        start = at.line + len(at.before) - len(at.before.lstrip())
        code, end = at.until_end(start)
        written = re.sub(r"\s*,\s*(?=[A-Za-z_]\w*\s*=)", f"; {defined.group(1)} ", code)
        fix = at.fix(f"write one value per statement: `{written}`", (start, end, written))
        return Explanation(fix.help, [fix], where="between definitions")
    call = re.search(r"(?:[A-Za-z_]\w*\s*:|\b(?:stem|stage|head)\b)?\s*([^|{};:]*)$", at.before)
    start = at.line + call.start(1) if call else at.start
    code, end = at.until_end(start, stop="|;{")
    outside = r",(?![^\[\]()]*[\])])"
    commas = [found.start() for found in re.finditer(outside, at.text[start:end])] if code else [at.start - start]
    edits = [
        (start + comma, start + comma + 1, "" if at.text[start + comma + 1 : start + comma + 2].isspace() else " ")
        for comma in commas
    ]
    written = re.sub(rf"\s*{outside}\s*", " ", code)
    fix = at.fix("remove the comma", *edits, certain=True)
    help = f"separate arguments with spaces: `{written}`" if code else "separate arguments with spaces"
    return Explanation(help, [fix], where="between arguments")


def _names(at: Place) -> Explanation | None:
    """Colons and equal signs after a name."""
    if at.word == ":" and (name := re.search(r"[A-Za-z0-9_](\s*)$", at.before)):
        spaces = re.match(r":\s*", at.rest)
        end = at.start + (spaces.end() if spaces else 1)
        fix = at.fix("write `=`", (at.start - len(name.group(1)), end, "="))
        note = "a label is only allowed at the start of a statement"
        written = re.search(r"\w*\s*$", at.before), re.match(r"[^\s|{};#]*", at.text[end:])
        code = "=".join(part.group().strip() for part in written if part)
        help = f"write an argument as `{code}`" if code[-1:] != "=" else "write an argument as `name=value`"
        return Explanation(help, [fix], note=note)
    if at.word != "=":
        return None
    if walrus := re.fullmatch(r"\s*([A-Za-z_]\w*)(\s*:\s*)", at.before):
        value, _ = at.until_end(at.start + 1)
        head = at.at - len(at.before.lstrip())
        fix = at.fix("define a value with `let`", (head, head, "let "), (at.line + walrus.start(2), at.start + 1, " ="))
        return Explanation(f"define a value with `let`: `let {walrus.group(1)} = {value or 16}`", [fix])
    if re.search(r"\b(?:require|if|when)\b[^{}|;]*$", at.before):
        fix = at.fix("write `==`", (at.start, at.start + 1, "=="), certain=True)
        return Explanation("compare values with `==`", [fix], where="in a condition")
    if (word := at.before.strip()) in ("let", "param"):
        return Explanation(f"name the value: `{word} width = 64`", message=f"missing name after `{word}`")
    named = re.search(rf"(?:^|[{{;])\s*{_NAMED}", at.before)
    if named is None:
        return Explanation("write the name of the argument before the `=`, as in `c=16`")
    name, head = named.group(1), at.line + named.start(1)
    found = _assigned(at, name, head)
    return replace(found, where=f"after `{name}`")


def _assigned(at: Place, name: str, head: int) -> Explanation:
    """Explain the `=` of an assignment: of an element, of a tensor, or of a value."""
    value, _ = at.until_end(at.start + 1)
    called = operator_after(at.rest)
    if called or re.match(r"=\s*(?:in(?![\w.])|@)", at.rest):
        written = f"{name}: {value or called}"
        help = f"name the output of an element with a label: `{written}`"
        return Explanation(help, [at.fix(f"write `{written}`", (head + len(name), at.start + 1, ":"))])
    if re.search(r"\\[ \t]*\n\Z", at.source.text[max(0, at.line - _REACH) : at.line]):
        return Explanation("write all arguments of a call on one line")
    if name in FOREIGN_CLASSES:
        edit = (head, at.start + 1 + at.rest[1:2].isspace(), "classes ")
        return Explanation(f"write `classes {value}`", [at.fix(f"write `classes {value}`", edit)])
    value = value if re.search(r"[\w)\]\"]$", value) else "16"
    written = f"let {name} = {value}"
    _, end = at.until_end(at.start + 1)
    fix = at.fix(f"define a value with `let`: `{written}`", (head, max(end, at.start + 1), written))
    return Explanation(fix.help, [fix])


def _points(at: Place) -> Explanation | None:
    """Numbers without digits on one side of the decimal point."""
    digit = at.text[at.at - 1 : at.at].isdigit()
    if at.word != "-" and not (at.word == "." and (digit or re.match(r"\.[0-9]", at.rest))):
        return None
    if at.word == "-":
        return Explanation("write a range as `0.8..1.0`, and a name with `_`")
    side, zero = "after" if digit else "before", at.start + digit
    written = re.search(r"[0-9]*$", at.before), re.match(r"\.[0-9]*", at.rest)
    number = "".join(part.group() for part in written if part)
    number = f"{number}0" if digit else f"0{number}"
    fix = at.fix(f"write `{number}`", (zero, zero, "0"), certain=True)
    message = f"missing digit {side} the decimal point"
    return Explanation(fix.help, [fix], message=message)


def _bars(at: Place) -> Explanation | None:
    """Bars without an element on one side."""
    label = re.search(r"(?:^|[{;])\s*(stem|stage|head)(\s*)$", at.before)
    if at.word == "|" and label:
        start = at.line + label.start(1)
        fix = at.fix(f"write `@{label.group(1)}` for the output of the label", (start, start, "@"))
        return Explanation(fix.help, [fix], where=f"after the label `{label.group(1)}`")
    if at.word == "|" and not at.before.strip():
        fix = at.fix("remove the `|`", (at.start, at.end + at.rest[1:2].isspace(), ""))
        help = "write an element before the `|`, or remove it"
        return Explanation(help, [fix], where="at the start of a pipeline")
    if not at.code.rstrip().endswith("|"):
        return None
    if at.word == "|":
        fix = at.fix("remove one `|`", (at.start, at.end + at.rest[1:2].isspace(), ""))
        return Explanation("write an element between the two `|`, or remove one", [fix], where="after `|`")
    if at.line_end or at.word == "}":
        bar = at.line + len(at.code.rstrip()) - 1
        fix = at.fix("remove the last `|`", (bar - at.text[bar - 1 : bar].isspace(), bar + 1, ""))
        return Explanation("write an element after the last `|`, or remove it", [fix], where="after `|`")
    return None


def _items(at: Place) -> Explanation | None:
    """List items without commas, and indexing."""
    if at.word == "[" and (indexed := re.search(r"(?:[A-Za-z_]\w*|\[[^\[\]]*\])$", at.before)):
        end = at.rest.find("]") + 1 or 1
        return Explanation(NO_INDEX, span=at.span(at.line + indexed.start(), at.at + end), message=INDEXED)
    if at.word == "]" and (indexed := re.search(r"[A-Za-z_]\w*\[\s*$", at.before)):
        fix = at.fix(f"write the index: `{indexed.group().rstrip()}0]`", (at.start, at.start, "0"))
        return Explanation(fix.help, [fix], message="missing index of a list item")
    if "COMMA" in at.expected and (items := re.search(r"\[([^\[\]]*)$", at.before)):
        begin, end, fixes = at.at - len(items.group(1)), at.text.find("]", at.at), list[Fix]()
        help = "separate list items with commas: `[16, 32]`"
        if end > 0:
            written = ", ".join(re.split(r"[\s,]+", at.text[begin:end].strip()))
            help = f"separate list items with commas: `[{written}]`"
            fixes.append(at.fix(help, (begin, end, written), certain=True))
        return Explanation(help, fixes, where="in a list")
    return None


_CHOICE = re.compile(r"(?<![\w.])([\w.]+)[ \t]+if[ \t]+([^(){}|;,\n]+?)[ \t]+else[ \t]+([\w.]+)")
"""A conditional expression of Python."""
_WHEN = re.compile(
    r"(?:^|[|\n{;])\s*(?:(?:stem|stage|head)\s+)?(?:\w+\s*:\s*)?([^|{};\n:]+?)\s+when\s+([^|{};\n]+?)\s*\Z"
)
"""An element and its condition."""


def _conditions(at: Place) -> Explanation | None:
    """Misplaced conditions, and conditions of other languages."""
    if at.line_end and "_THEN" in at.expected and (condition := re.search(r"\S\s+(if)\s", at.before)):
        low = at.line + condition.start(1)
        fix = at.fix("write `when`", (low, low + 2, "when"), certain=True)
        start = max((at.before.rfind(sign) + 1 for sign in "|;{}"), default=0)
        written = re.sub(r"\bif\b", "when", at.code[start:].strip())
        help = f"write the condition of a statement with `when`: `{written}`"
        return Explanation(help, [fix], at.span(low, low + 2), where="after an element")
    elif_ = re.match(r"\s*(?:\}\s*)?(?:elif|elseif)\b", at.whole) or re.match(r"elif\b|elseif\b", at.rest)
    if elif_ or (at.word == "if" and re.search(r"\belse\s*$", at.before)):
        return _else_if(at)
    if at.word == "then" and "LBRACE" in at.expected:
        body, end = at.until_end(at.end)
        if body and body[0] != "{":
            fix = at.fix(f"write the group in braces: `{{ {body} }}`", (at.start, end, f"{{ {body} }}"))
            return Explanation(fix.help, [fix], where="before a group")
        fix = at.fix("remove the `then`", (at.start - 1, at.end, ""), certain=True)
        return Explanation("remove the `then`", [fix], where="before a group")
    for choice in _CHOICE.finditer(at.whole) if at.word in ("if", "else") else ():
        if choice.start() <= at.at - at.line <= choice.end():
            yes, condition, no = choice.groups()
            written = f"if {condition} then {yes} else {no}"
            fix = at.fix(f"write `{written}`", (at.line + choice.start(), at.line + choice.end(), written))
            return Explanation(fix.help, [fix], where="in a conditional expression")
    if at.word == "|" and (element := _WHEN.search(at.text, max(0, at.at - _REACH), at.at)):
        written = f"if {element.group(2)} {{ {element.group(1)} }}"
        fix = at.fix(f"write `{written}`", (element.start(1), element.end(2), written))
        help, note = f"write `{written}` for one element", "`when` applies to a whole statement and ends it"
        return Explanation(help, [fix], where="after a condition", note=note)
    return None


def _else_if(at: Place) -> Explanation:
    """Explain `elif` and `else if`: a second `if` in the braces of `else`."""
    start = at.start if at.word == "if" else at.end
    body, end = at.until_end(start)
    condition = body.removeprefix("if").strip()
    help, fixes = "write the second `if` in the braces of `else`", list[Fix]()
    head, _ = at.until_end(start, stop="{;")
    if head := head.removeprefix("if").strip():
        help = f"write `else {{ if {head} {{`, and close both groups"
    if condition and condition.count("{") == condition.count("}") > 0:
        written = f"else {{ if {condition} }}"
        help = f"write the second `if` in the braces of `else`: `{written}`"
        low = at.line + at.before.rindex("else") if at.word == "if" else at.start
        fixes.append(at.fix(f"write `{written}`", (low, end, written)))
    where = "after `else`" if at.word == "if" else ""
    return Explanation(help, fixes, where=where, note="the language has no `else if`")


def _expected(at: Place) -> Explanation:
    """List the expected terminals if there are few."""
    if at.word in ("+", "*") and re.search(r"[\w})]\s*$", at.before):
        join, what = ("add", "add") if at.word == "+" else ("mul", "multiply")
        help = f"to {what} tensors, write them as branches of `{join}`: `{join} {{ in; conv 3x3 16 }}`"
        return Explanation(help)
    if at.expected and at.expected <= _ENDS and not at.line_end:
        if at.word == "{" and re.search(r"(?:@[\w.]+|\bin)\s*$", at.before):
            fix = at.fix("separate them with `|`", (at.start, at.start, "| "))
            return Explanation(fix.help, [fix], where="after a tensor")
        value = re.search(r"=\s*([0-9.]+)\s*$", at.before)
        more = re.match(r"[0-9.]+(?=\s*(?:#|;|$))", at.rest)
        fixes = []
        if value and more:
            listed = f"[{value.group(1)}, {more.group()}]"
            edit = (at.line + value.start(1), at.at + more.end(), listed)
            fixes = [at.fix(f"remove it, or write a list: `{listed}`", edit)]
        return Explanation(fixes[0].help if fixes else "remove it", fixes, where="at the end of a statement")
    if at.expected == {"EQUAL"} and not at.line_end:
        fix = at.fix("write `=` before the value", (at.start, at.start, "= "), certain=True)
        return Explanation(fix.help, [fix], message=f"expected `=`, found {at.token}")
    if at.expected == {"NAME"} and re.match(r"[0-9]", at.word):
        return Explanation("write a name that starts with a letter", message=f"expected a name, found {at.token}")
    if at.expected == {"LPAR"} and (table := re.search(r"\beach\s+([A-Za-z_]\w*)\s*$", at.before)):
        return _without_columns(at, table.group(1))
    if "LBRACE" in at.expected and not at.line_end and re.search(r"\b(?:block|if|else|repeat)\b", at.before):
        body, end = at.until_end(at.start)
        fixes = [at.fix(f"write the group in braces: `{{ {body} }}`", (at.start, end, f"{{ {body} }}"))] if body else []
        help = fixes[0].help if fixes else "write the group in braces"
        return Explanation(help, fixes, message=f"expected `{{`, found {at.token}")
    if at.expected and len(at.expected) <= 4:
        *names, last = sorted({_WORDS.get(name, f"`{name.strip('_').lower()}`") for name in at.expected})
        expected = f"{', '.join(names)} or {last}" if names else last
        return Explanation(None, message=f"expected {expected}, found {at.token}")
    near, fixes = _top_word(at)
    note = None if near else "a statement ends at the end of its line, and elements are joined with `|`"
    return Explanation(near, fixes, note=note)


def _without_columns(at: Place, callee: str) -> Explanation:
    """Explain a table without columns: name those of its first row."""
    where, row = f"after `each {callee}`", re.match(r"\{\s*(?:\w+[ \t]*:)?([^\n;{}#]*)", at.text[at.start :])
    defined = re.search(rf"\bblock[ \t]+{callee}[ \t]*\(([^()]*)\)", at.text)
    names = list(OPS[callee].parameters) if callee in OPS else []
    if defined:
        names = re.findall(r"(?:^|,)\s*(?:once\s+)?([A-Za-z_]\w*)", defined.group(1))
    columns = names[: len(row.group(1).split())] if row else []
    if row is None or not columns or len(columns) < len(row.group(1).split()):
        help = f"write the names of the columns in parentheses after `{callee}`"
        return Explanation(help, where=where)
    body, _ = at.until_end(at.start)
    written = f"each {callee}({' '.join(columns)})"
    edit = (at.line + len(at.before.rstrip()), at.start, f"({' '.join(columns)}) ")
    fix = at.fix(f"write `{written}`", edit)
    help = f"write the names of the columns in parentheses: `{f'{written} {body}'.rstrip()}`"
    return Explanation(help, [fix], where=where)


_RULES: tuple[Callable[[Place], Explanation | None], ...] = (
    foreign.python,
    foreign.names,
    foreign.lists,
    foreign.entries,
    foreign.first_words,
    _conditions,
    _else,
    _blocks,
    _groups,
    _tables,
    _branches,
    _outputs,
    _tensors,
    _contracts,
    _references,
    _unfinished,
    _incomplete,
    _characters,
    _again,
    _inner_input,
    _named_inputs,
    _after_input,
    _repeats,
    _repeats_of_others,
    foreign.signs,
    _numbers,
    _values,
    _calls,
    _names,
    _points,
    _bars,
    _items,
)
"""Rules in the order in which they are tried."""
