"""Recover from a syntax error: find the statement with the error, and remove it from the text.

A statement that cannot be read is overwritten in place, so that all others keep their positions. If a tensor flows
through it, a mark is left, which becomes a `Broken` element of the tree: nothing that depends on it is checked. The
same holds for names that the statement may have defined.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cnnspec.syntax.keywords import OUTPUT, TOP_WORDS
from cnnspec.syntax.parser import ParseFailure, parse_text

MARK = "_"
_TOKEN = re.compile(r'#[^\n]*|"[^"\n]*"?|[{}()\[\];|\n]|[^\s#"{}()\[\];|]+')
_CONTINUES = re.compile(r"(?:\s|#[^\n]*\n)*(?:\||else(?![A-Za-z0-9_])|[\])\,])")
_LABEL = re.compile(
    r"(?:stem|stage|head)(?![A-Za-z0-9_])|(?!else[ \t]*:)[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*[ \t]*:"
)
_TRAIN = re.compile(r"(?:^|[\n;])[ \t]*train\s*\{[^{}]*\Z")
_DEFINED = re.compile(
    r"(?:let|param|block|aux|network)\s+([A-Za-z_]\w*)|^\s*([A-Za-z_]\w*)\s*[=:]|(?:\||^)\s*([A-Za-z_]\w*)\s*:",
    re.ASCII,
)


@dataclass(frozen=True)
class Piece:
    """A statement, or the part of one between braces.

    `before` and `after` separate it from its neighbors; `next` is the offset after `after`.
    """

    start: int
    end: int
    before: str
    after: str
    next: int


class Recovery:
    """A text from which statements that cannot be read are removed, one after the other.

    Attributes:
        text: What is left; it keeps its length.
        unsure: Names that removed statements may define.
        marks: Offsets of the marks left in place of them.
    """

    def __init__(self, text: str, unsure: set[str]) -> None:
        self.text, self.unsure = text, unsure
        self.marks: set[int] = set()

    def remove(self, piece: Piece) -> bool:
        """Remove a statement; False if there is nothing left of it."""
        changed, mark, names = without(self.text, piece)
        if changed == self.text:
            return False
        self.text = changed
        self.unsure |= names
        if mark is not None:
            self.marks.add(mark)
        return True

    def remove_at(self, at: int) -> None:
        """Remove the statement at an offset."""
        piece, _ = piece_at(self.text, at)
        if piece is not None and piece.start <= at < piece.end:
            self.remove(piece)

    def locate(self, failure: ParseFailure) -> tuple[ParseFailure, Piece | None]:
        """Return the failure and the statement with the error.

        That is the previous statement if its line ends too early: alone, it cannot be read either.
        """
        here, earlier = piece_at(self.text, failure.at)
        if earlier is not None:
            try:
                parse_text(re.sub(r"[^\n]", " ", self.text[: earlier.start]) + self.text[earlier.start : earlier.end])
            except ParseFailure as alone:
                if alone.at >= earlier.end:
                    return ParseFailure(earlier.end, alone.expected), earlier
        return failure, here


def pieces(text: str) -> list[Piece]:
    """Split a text into statements by line ends, `;` and braces, whether they can be read or not."""
    found: list[Piece] = []
    start: int | None = None
    end = depth = 0
    before = last = "\n"

    def close(separator: str, at: int) -> None:
        nonlocal start, before, depth
        if start is not None or separator in ("{", "}"):
            here = at if start is None else start
            found.append(Piece(here, max(here, end), before, separator, at + len(separator)))
        start, before, depth = None, separator, 0

    for match in _TOKEN.finditer(text):
        token = match.group()
        if token[0] == "#":
            continue
        if token in "([":
            depth += 1
        elif token in ")]":
            depth = max(0, depth - 1)
        if token == "\n":
            if depth == 0 and last != "|" and not _CONTINUES.match(text, match.end()):
                close(token, match.start())
            continue
        last = token
        if token in "{};" and (depth == 0 or token != ";"):
            close(token, match.start())
            continue
        if start is None:
            start = match.start()
        end = match.end()
    close("", len(text))
    return found


def piece_at(text: str, at: int) -> tuple[Piece | None, Piece | None]:
    """Return the piece that contains an offset (or the last one before it), and the statement on the line above."""
    here = earlier = None
    for piece in pieces(text):
        if piece.start > at and here is not None:
            break
        if piece.start < piece.end:
            earlier = here if here is not None and here.after == "\n" and piece.before == "\n" else None
            here = piece
    return here, earlier


def in_train(text: str, at: int) -> bool:
    """Check that an offset lies in the braces of a `train` section."""
    return _TRAIN.search(text, 0, at) is not None


def code_before(text: str, at: int) -> str:
    """Return the code before an offset, without strings and comments."""
    return re.sub(r'"[^"\n]*"|#[^\n]*', "", text[:at])


def in_braces(text: str, at: int) -> bool:
    """Check that an offset lies in braces."""
    before = code_before(text, at)
    return before.count("{") > before.count("}")


def without(text: str, piece: Piece) -> tuple[str, int | None, set[str]]:
    """Remove a statement from a text.

    Returns:
        The text, of the same length; the offset of the mark, if there is one; names that the statement may define.
    """
    start, end = piece.start, piece.end
    if piece.after == "{":
        end = _statement_end(text, piece.end)
    lost = text[start:end]
    first = re.match(r"[A-Za-z_]\w*", lost)
    names = {name for match in _DEFINED.finditer(text[start : piece.end]) for name in match.groups() if name}
    if first and first.group() in ("use", "classes"):
        names |= set(re.findall(r"[A-Za-z_]\w*", lost))
    if first and first.group() == "block":  # its parameters: without its brace, the body is outside it
        names |= set(re.findall(r"[A-Za-z_]\w*", text[start : piece.end]))
    blank = re.sub(r"[^\n]", " ", lost)
    if first and (first.group() in TOP_WORDS or OUTPUT.match(lost)):
        return text[:start] + blank + text[end:], None, names
    label = None if in_train(text, start) else _LABEL.match(lost)
    head = f"{label.group()} {MARK}" if label and piece.before != "}" else "| " + MARK if piece.before == "}" else MARK
    if len(head) > len(lost) or "\n" in lost[: len(head)]:
        head = MARK if piece.before != "}" else ""
    mark = start + len(head) - 1 if head else None
    # Blank the rest of its lines, or the following ones would continue it.
    return text[:start] + head + blank[len(head) :] + text[end:], mark, names


def _statement_end(text: str, at: int) -> int:
    """Return the end of a statement with an error in its header: after its braces and what continues them."""
    depth = 0
    rest = pieces(text)
    for index, piece in enumerate(rest):
        if piece.end < at:
            continue
        depth += {"{": 1, "}": -1}.get(piece.after, 0)
        if depth <= 0 and piece.after == "}":
            tail = rest[index + 1] if index + 1 < len(rest) else None
            if tail is None or tail.start == tail.end or tail.before != "}":
                return piece.next
            if tail.after != "{":
                return tail.end
    return len(text)
