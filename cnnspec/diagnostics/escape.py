"""Escape text before it is printed, so that text from a file, a file name or another library cannot control the output.

Every character that a terminal does not show as itself is printed as its Python escape: control characters, line
breaks, bidirectional formatting, zero-width characters, and surrogates.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any

_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
"""Characters without a width that are no format characters. Source: Unicode, Default_Ignorable_Code_Point."""
_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_SUSPECT = re.compile(rf"[^ -~\u00a1-\u00ac\u00ae-\u02ff{_SPACES}]")
_ALWAYS = re.compile(f"[{_INVISIBLE}]")
_COMMAND = re.compile(r"^(\s*):(?=:)|#(?=#\[)")
"""The start of a GitHub workflow command: `::` at the start of a line, or `##[` anywhere in it."""


def printable(text: str, keep: str = "") -> str:
    r"""Return a text without characters that a terminal interprets or hides: `a\x1b[2J`, `\u202e`, `\n`.

    Args:
        text: The text.
        keep: Characters to leave as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return _SUSPECT.sub(lambda match: char if (char := match.group()) in keep else _escape(char), text)


def without_commands(line: str) -> str:
    """Return a line of output without GitHub workflow commands."""
    return _COMMAND.sub(lambda match: f"{match.group(1) or ''}\\x{ord(match.group()[-1]):02x}", line)


def printable_line(text: str) -> str:
    """Return a whole line of output, printable and without GitHub workflow commands."""
    return without_commands(printable(text))


class LossyStream:
    """A text stream that drops what cannot be written, for the progress of work that does not depend on it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def html_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table for notebooks; texts are escaped."""
    from html import escape  # not needed by a check

    def line(cells: Iterable[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(printable(cell))}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def echo(*lines: str, file: IO[str] | None = None) -> None:
    """Print lines, by default to the standard output. A line break within a line is escaped.

    All output of this package that is not JSON, a table or a rendered diagnostic is printed here.
    """
    if lines:
        print("\n".join(map(printable_line, lines)), file=file or sys.stdout)


def _escape(char: str) -> str:
    if char.isprintable() and not _ALWAYS.match(char):
        return char
    return char.encode("unicode_escape").decode()
