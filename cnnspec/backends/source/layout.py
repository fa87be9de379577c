"""Layout of Python code in lines of at most 88 columns, as `ruff format` and Black do it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

WIDTH = 88
INDENT = "    "


@dataclass(frozen=True)
class Group:
    """Code in brackets.

    Attributes:
        head: The text up to the opening bracket.
        items: The code between the brackets.
        tail: The closing bracket and what follows.
        separator: The text between items in one line.
        bare: Whether the brackets are left out if everything fits into one line.
        literal: Whether this is a list, tuple or dictionary, which has one item per line if it needs several lines.
    """

    head: str
    items: tuple[Code, ...]
    tail: str
    separator: str = ", "
    bare: bool = False
    literal: bool = False


Code = str | Group


def flat(code: Code) -> str:
    """Return code in one line."""
    if isinstance(code, str):
        return code
    inner = code.separator.join(map(flat, code.items))
    return inner if code.bare else f"{code.head}{inner}{code.tail}"


def lay_out(code: Code, indent: str, before: str = "", after: str = "", comment: str = "") -> list[str]:
    """Return the lines of code: in one line if it fits, else with the items in a line of their own, or one per line.

    Args:
        code: The code.
        indent: The indentation of its first line.
        before: Text before it in the first line.
        after: Text after it in the last line.
        comment: A comment for the first line.
    """
    line = f"{indent}{before}{flat(code)}{after}"
    if isinstance(code, str) or len(line) <= WIDTH or not code.items:
        return [line + (f"  # {comment}" if comment and len(line) + len(comment) + 4 <= WIDTH else "")]
    first = f"{indent}{before}{code.head}"
    last = f"{indent}{code.tail}{after}"
    inner = indent + INDENT
    body = f"{inner}{code.separator.join(map(flat, code.items))}"
    if len(body) <= WIDTH and not code.literal:
        return [first, body, last]
    lines = [first]
    word = code.separator.strip()
    for position, item in enumerate(code.items):
        if word in ("", ","):
            lines += lay_out(item, inner, after=word)
        else:  # an operator, before each operand but the first
            lines += lay_out(item, inner, before=f"{word} " if position else "")
    return [*lines, last]


def call(function: str, items: Sequence[Code], before: str = "") -> Group:
    """Return a call."""
    return Group(f"{before}{function}(", tuple(items), ")")


def literal(value: object) -> str:
    """Return the Python literal of a value."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, (tuple, list)):
        inner = ", ".join(map(literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if value is not None and type(value) not in (bool, int, float):
        raise TypeError(f"no literal for a {type(value).__name__}")
    return repr(value)


def quoted(text: str) -> str:
    """Return a string literal of printable ASCII characters that nothing in the text can end."""
    body = text.encode("unicode_escape").decode("ascii")
    quote = "'" if body.count('"') > body.count("'") else '"'
    return quote + body.replace(quote, f"\\{quote}") + quote


def document(text: str) -> str:
    """Return a string literal of several lines that nothing in the text can end."""
    plain = (char if char == "\n" or (char.isprintable() and char != "\\") else quoted(char)[1:-1] for char in text)
    body = re.sub(r'"(?="|\Z)', r'\\"', "".join(plain))
    return f'"""\\\n{body}"""'


def structured(data: object) -> Code:
    """Return plain data as code: a dictionary or list of literals."""
    if isinstance(data, dict):
        items: list[Code] = []
        for key, value in data.items():
            code = structured(value)
            own = f"{quoted(str(key))}: "
            items.append(own + code if isinstance(code, str) else replace(code, head=own + code.head))
        return Group("{", tuple(items), "}", literal=True) if items else "{}"
    if isinstance(data, (list, tuple)):
        return Group("[", tuple(map(structured, data)), "]", literal=True) if data else "[]"
    return literal(data)
