"""What a syntax error means, in the words of the language."""

from __future__ import annotations

import re

from lark import UnexpectedInput

from cnnspec.diagnostics import Diagnostic, Source, Span, did_you_mean
from cnnspec.syntax.words import TOP_WORDS

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


def explain(source: Source, text: str, error: UnexpectedInput, at: int) -> Diagnostic:
    """A syntax error in the words of the language."""
    found = re.compile(r"\n|[A-Za-z0-9_]+|[^\sA-Za-z0-9_]|$").search(text, at)
    assert found is not None
    word = found.group()
    start = found.start()
    line_end = start >= len(text.rstrip()) or word in ("", "\n")
    span = Span(source, start, start if line_end else found.end())
    expected: set[str] = set(getattr(error, "expected", None) or getattr(error, "allowed", None) or ())
    before = text[text.rfind("\n", 0, at) + 1 : at]
    rest = text[at : (text + "\n").index("\n", at)]
    what = "the line ends too early" if line_end else f"`{word}` cannot stand here"
    code, help = "E0101", None
    if not line_end and not " " <= word[0] <= "~":
        shown = word[0] if word[0].isprintable() else f"U+{ord(word[0]):04X}"
        code, what = "E0103", f"the character `{shown}` is not part of the language"
        span = Span(source, start, start + 1)
        help = "outside comments and strings a spec is plain ASCII"
    elif re.match(r"x[0-9]+$", word):
        code, what = "E0106", f"the repeat `{word}` does not stand right after the name"
        call = re.search(r"([A-Za-z_][A-Za-z0-9_]*)[^|{};]*$", before)
        help = f"write `{call.group(1)} {word} ...`" if call else "put it right after the name it repeats"
    elif (size := re.match(r"[0-9]+(x[0-9]+)+(?![A-Za-z0-9_])", rest)) and not line_end:
        span = Span(source, at, at + size.end())
        what = f"the size `{size.group()}` cannot stand here"
        first = re.match(r"\s*([A-Za-z_]+)", before)
        near = did_you_mean(first.group(1), TOP_WORDS) if first and first.group(1) not in TOP_WORDS else None
        if re.search(r"\binput\s*$", before):
            what, help = f"the input is `{size.group()}`", "state channels, height and width: `input 3x32x32`"
        elif size.group().count("x") == 2:
            help = near or "three sizes only stand behind `input`; a kernel is `3x3`"
        else:
            help = near or "a statement starts with a name: `conv 3x3 c=16`"
    elif re.match(r"[0-9]+(\.[0-9]+)?[A-Za-z_]", rest) and not line_end:
        token = re.match(r"[0-9][0-9A-Za-z_.]*(?:(?<=[0-9][eE])[-+][0-9A-Za-z_.]+)?", rest)
        assert token is not None
        span = Span(source, at, at + token.end())
        code, what = "E0103", f"`{token.group()}` is neither a number nor a size"
        help = "a number is `3`, `0.1` or `1e-4`, a size is `3x5` (height x width); a name starts with a letter"
    elif re.match(r"[A-Za-z_][A-Za-z0-9_]*\(", rest):
        what = f"`{word}(` cannot stand here"
        help = "a call is a name and its arguments, separated by spaces: `conv 3x3 c=16`"
    elif word == "," and re.search(r"\(\s*[^()]*$", before):
        help = "arguments are separated by spaces: `conv 3x3 c=16`"
    elif word == "," and "COMMA" not in expected:
        help = "arguments are separated by spaces, list items in `[...]` by commas"
    elif word == "(" and re.search(r"[A-Za-z0-9_]\s*$", before):
        help = "a call is a name and its arguments, separated by spaces: `conv 3x3 c=16`"
    elif word == ":" and re.search(r"[A-Za-z0-9_]\s*$", before):
        help = "a label stands at the head of a statement; an argument is written `name=value`"
    elif word == "=" and re.match(r"\s*[A-Za-z_][A-Za-z0-9_]*\s*$", before):
        help = f"a value is named with `let {before.strip()} = ...`"
    elif word == "=":
        help = "an argument is written `name=value`: `conv 3x3 c=16`"
    elif word == "-" or (word == "." and (text[at - 1 : at].isdigit() or re.match(r"\.[0-9]", rest))):
        help = "a number needs digits on both sides of its point, a range is `0.8..1.0`"
    elif word == "|" and not before.strip():
        help = "a pipeline needs an element in front of its first `|`"
    elif word == "|" and before.rstrip().endswith("|"):
        help = "write an element between the two `|`, or remove one"
    elif line_end and before.rstrip().endswith("|"):
        help = "write an element behind the last `|`, or remove it"
    elif expected and len(expected) <= 4:
        help = "expected " + " or ".join(
            sorted({_WORDS.get(name, f"`{name.strip('_').lower()}`") for name in expected})
        )
    else:
        first = re.match(r"\s*([A-Za-z_]+)", before)
        near = did_you_mean(first.group(1), TOP_WORDS) if first and first.group(1) not in TOP_WORDS else None
        help = near or "a statement ends with its line; elements are joined by `|`"
    return Diagnostic(code, what, span, help=help)


def blank_statement(text: str, at: int) -> str:
    """The text with the line of an error blanked, braces kept, so that what follows can be read."""
    start = text.rfind("\n", 0, min(at, len(text))) + 1
    end = (text + "\n").index("\n", start)
    blank = re.sub(r"[^{}]", " ", text[start:end])
    if blank == text[start:end] and start > 0:
        return blank_statement(text, start - 1)
    return text[:start] + blank + text[end:]
