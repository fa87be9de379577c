"""Going on behind a syntax error: which statement is at fault, and the text without it.

A statement that cannot be read is overwritten in place, so that every other one keeps its position. Where a tensor
flows through it a mark is left, from which the tree gets a `Broken` element: what depends on it is not judged. Nor
are names that it may have defined.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cnnspec.syntax.keywords import TOP_WORDS

MARK = "_"
_TOKEN = re.compile(r'#[^\n]*|"[^"\n]*"?|[{}()\[\];|\n]|[^\s#"{}()\[\];|]+')
_GOES_ON = re.compile(r"(?:\s|#[^\n]*\n)*(?:\||else(?![A-Za-z0-9_])|[\])\,])")
_LABEL = re.compile(r"(?:stem|stage|head)(?![A-Za-z0-9_])|(?!else[ \t]*:)[A-Za-z_][A-Za-z0-9_]*[ \t]*:")
_TRAIN = re.compile(r"(?:^|[\n;])[ \t]*train\s*\{[^{}]*\Z")
_DEFINED = re.compile(
    r"(?:let|param|block|aux|network)\s+([A-Za-z_]\w*)|^\s*([A-Za-z_]\w*)\s*[=:]|(?:\||^)\s*([A-Za-z_]\w*)\s*:",
    re.ASCII,
)


@dataclass(frozen=True)
class Piece:
    """A statement, or the part of one between braces; `before` and `behind` are what separates it from others,
    `next` is the offset behind that.
    """

    start: int
    end: int
    before: str
    behind: str
    next: int


def pieces(text: str) -> list[Piece]:
    """The statements of a text as far as line ends, `;` and braces tell them, whether they can be read or not."""
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
            if depth == 0 and last != "|" and not _GOES_ON.match(text, match.end()):
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
    """The piece in which an offset lies, or the last one before it, and the statement that ends with the line
    in front of it.
    """
    here = earlier = None
    for piece in pieces(text):
        if piece.start > at and here is not None:
            break
        if piece.start < piece.end:
            earlier = here if here is not None and here.behind == "\n" and piece.before == "\n" else None
            here = piece
    return here, earlier


def in_train(text: str, at: int) -> bool:
    """Whether an offset lies in the braces of a `train` section."""
    return _TRAIN.search(text, 0, at) is not None


def without(text: str, piece: Piece) -> tuple[str, int | None, set[str]]:
    """A text without a statement.

    Returns:
        The text, of the same length; where the mark is, if there is one; the names that may have been defined.
    """
    start, end = piece.start, piece.end
    if piece.behind == "{":
        end = _statement_end(text, piece.end)
    lost = text[start:end]
    first = re.match(r"[A-Za-z_]\w*", lost)
    names = {name for match in _DEFINED.finditer(text[start : piece.end]) for name in match.groups() if name}
    if first and first.group() in ("use", "classes"):
        names |= set(re.findall(r"[A-Za-z_]\w*", lost))
    if first and first.group() == "block":  # its parameters: without its brace the body stands outside of it
        names |= set(re.findall(r"[A-Za-z_]\w*", text[start : piece.end]))
    blank = re.sub(r"[^\n]", " ", lost)
    if first and first.group() in TOP_WORDS:
        return text[:start] + blank + text[end:], None, names
    label = None if in_train(text, start) else _LABEL.match(lost)
    head = f"{label.group()} {MARK}" if label and piece.before != "}" else "| " + MARK if piece.before == "}" else MARK
    if len(head) > len(lost) or "\n" in lost[: len(head)]:
        head = MARK if piece.before != "}" else ""
    mark = start + len(head) - 1 if head else None
    # The rest of its lines is closed, or what follows would belong to it.
    return text[:start] + head + blank[len(head) :] + text[end:], mark, names


def _statement_end(text: str, at: int) -> int:
    """Where a statement ends whose header is at fault: behind its braces and what goes on behind them."""
    depth = 0
    rest = pieces(text)
    for index, piece in enumerate(rest):
        if piece.end < at:
            continue
        depth += {"{": 1, "}": -1}.get(piece.behind, 0)
        if depth <= 0 and piece.behind == "}":
            tail = rest[index + 1] if index + 1 < len(rest) else None
            if tail is None or tail.start == tail.end or tail.before != "}":
                return piece.next
            if tail.behind != "{":
                return tail.end
    return len(text)
