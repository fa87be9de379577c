"""The context of a syntax error, for the rules that explain it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from cnnspec.diagnostics import Edit, Fix, Source, Span


@dataclass
class Explanation:
    """The explanation of a syntax error by a rule.

    Attributes:
        help: What to do, if that is known.
        fixes: Edits that follow the help.
        span: Span of the error; None for the unexpected token.
        message: The message; None for "unexpected ...", the text of the span, and `where`.
        code: Code of the diagnostic.
        where: The context of the unexpected token: "in a list".
        note: The reason.
    """

    help: str | None
    fixes: list[Fix] = field(default_factory=list[Fix])
    span: Span | None = None
    message: str | None = None
    code: str = "E0101"
    where: str = ""
    note: str | None = None


@dataclass
class Place:
    """The place of a syntax error.

    Attributes:
        source: The source.
        text: Its text without the statements that were removed.
        expected: Names of the terminals that the parser accepts there.
        at: The offset.
    """

    source: Source
    text: str
    expected: set[str]
    at: int

    @cached_property
    def _found(self) -> re.Match[str]:
        found = re.compile(r"\n|[0-9]+\.[0-9]+(?![A-Za-z0-9_.])|[A-Za-z0-9_]+|[^\sA-Za-z0-9_]|$").search(
            self.text, self.at
        )
        assert found is not None
        return found

    @property
    def word(self) -> str:
        """The unexpected word or sign."""
        return self._found.group()

    @property
    def token(self) -> str:
        """The unexpected token as messages name it."""
        return "end of line" if self.line_end else f"`{self.word}`"

    @property
    def start(self) -> int:
        """Offset of the word."""
        return self._found.start()

    @property
    def end(self) -> int:
        return self._found.end()

    @cached_property
    def line_end(self) -> bool:
        """True at the end of a line."""
        return self.start >= len(self.text.rstrip()) or self.word in ("", "\n", "#")

    @cached_property
    def line(self) -> int:
        """Offset of the start of the line."""
        return self.text.rfind("\n", 0, self.at) + 1

    @cached_property
    def before(self) -> str:
        """The line up to the error."""
        return self.text[self.line : self.at]

    @cached_property
    def code(self) -> str:
        """The line up to the error, without a trailing comment."""
        return re.sub(r'^([^"#]*)#.*$', r"\1", self.before)

    @cached_property
    def rest(self) -> str:
        """The line from the error on."""
        return self.text[self.at : (self.text + "\n").index("\n", self.at)]

    @cached_property
    def whole(self) -> str:
        """The whole line."""
        return self.before + self.rest

    @cached_property
    def values(self) -> set[str]:
        """The names that are defined as values somewhere in the text."""
        text = self.source.text
        heads = " ".join(re.findall(r"\bblock\b[^{}\n]*", text))
        return {*re.findall(r"\b(?:let|param|as)\s+([A-Za-z_]\w*)", text), *re.findall(r"\w+", heads)}

    @cached_property
    def labels(self) -> set[str]:
        """The labels in the text."""
        label = r"(?:^|[{;])[ \t]*(?:([A-Za-z_]\w*)[ \t]*:|(stem|stage|head)[ \t]+\w)"
        return {name for pair in re.findall(label, self.source.text, re.MULTILINE) for name in pair if name}

    @property
    def statement(self) -> tuple[int, int]:
        """The start and end of the statement on the line of the error, up to braces and semicolons."""
        start = re.search(r"[^{};]*\Z", self.before)
        end = re.match(r"[^{};#\n]*", self.rest)
        assert start is not None
        assert end is not None
        code = self.before[start.start() :] + end.group()
        low = self.line + start.start() + len(code) - len(code.lstrip())
        return low, max(low, self.at + len(end.group().rstrip()))

    @property
    def code_end(self) -> int:
        """The offset after the code of the line."""
        return self.line + len(re.sub(r'^([^"#]*)#.*$', r"\1", self.whole).rstrip())

    def until_end(self, start: int, stop: str = ";") -> tuple[str, int]:
        """Return the code from an offset to the end of its statement, and the offset after it.

        The statement ends with its line, before a comment, an unmatched closing brace, or one of the signs `stop`
        outside of braces and parentheses.
        """
        depth, end = 0, start
        for token in re.compile(r'"[^"\n]*"|[\s\S]').finditer(self.text, start):
            sign = token.group()
            depth += (sign in "{([") - (sign in "})]")
            if sign in "\n#" or depth < 0 or (depth == (sign in "{([") and sign in stop):
                break
            end = token.end()
        code = self.text[start:end].strip() if depth <= 0 or self.text[end : end + 1] in stop else ""
        return code, start + len(self.text[start:end].rstrip())

    def span(self, low: int, high: int) -> Span:
        return Span(self.source, low, high)

    def fix(self, help: str, *edits: tuple[int, int, str], certain: bool = False) -> Fix:
        """Make a fix of edits, each a start, an end and a replacement."""
        return Fix(help, tuple(Edit(self.span(low, high), written) for low, high, written in edits), certain)

    def spaced(self, written: str) -> str:
        """Return a replacement for the sign at the error, followed by a space if there is none yet."""
        return written if self.rest[1:2].isspace() else f"{written} "

    def first_word(self, help: str) -> Explanation:
        """Explain an error by the first word of its line."""
        first = re.match(r"\s*([A-Za-z_]\w*)", self.whole)
        assert first is not None
        span = self.span(self.line + first.start(1), self.line + first.end(1))
        return Explanation(help, [], span)
