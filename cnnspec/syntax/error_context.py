"""Where a text cannot be read, as the rules see it that say what was meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from cnnspec.diagnostics import Edit, Fix, Source, Span


@dataclass
class Meaning:
    """What a rule has to say.

    Attributes:
        help: What to do.
        fixes: The changes that do it.
        span: Where the fault is; none for the word that cannot be read.
        what: The fault; none for "it cannot stand here".
        code: Its code.
    """

    help: str
    fixes: list[Fix] = field(default_factory=list[Fix])
    span: Span | None = None
    what: str | None = None
    code: str = "E0101"


@dataclass
class Place:
    """Where a text cannot be read.

    Attributes:
        source: What was read.
        text: The same text without the statements that were taken out.
        expected: The terminals that could stand there.
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
        """The word or sign that cannot be read."""
        return self._found.group()

    @property
    def start(self) -> int:
        """Where the word begins."""
        return self._found.start()

    @property
    def end(self) -> int:
        return self._found.end()

    @cached_property
    def line_end(self) -> bool:
        """Whether nothing stands there, but the line ends."""
        return self.start >= len(self.text.rstrip()) or self.word in ("", "\n", "#")

    @cached_property
    def line(self) -> int:
        """Where the line begins."""
        return self.text.rfind("\n", 0, self.at) + 1

    @cached_property
    def before(self) -> str:
        """The line in front of the place."""
        return self.text[self.line : self.at]

    @cached_property
    def code(self) -> str:
        """The same without a comment at its end."""
        return re.sub(r'^([^"#]*)#.*$', r"\1", self.before)

    @cached_property
    def rest(self) -> str:
        """The line from the place on."""
        return self.text[self.at : (self.text + "\n").index("\n", self.at)]

    @cached_property
    def whole(self) -> str:
        """The line."""
        return self.before + self.rest

    def span(self, low: int, high: int) -> Span:
        return Span(self.source, low, high)

    def fix(self, said: str, *edits: tuple[int, int, str], certain: bool = False) -> Fix:
        """Changes of the text, each from where to where, and to what."""
        return Fix(said, tuple(Edit(self.span(low, high), written) for low, high, written in edits), certain)

    def parted(self, written: str) -> str:
        """What stands in place of the sign at the place, with a blank behind it where there is none."""
        return written if self.rest[1:2].isspace() else f"{written} "

    def first_word(self, help: str) -> Meaning:
        """A line that is none by its first word."""
        first = re.match(r"\s*([A-Za-z_]\w*)", self.whole)
        assert first is not None
        span = self.span(self.line + first.start(1), self.line + first.end(1))
        return Meaning(help, [], span, f"`{first.group(1)}` cannot stand here")
