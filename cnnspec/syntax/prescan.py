"""Check a text before it is parsed: limits, characters and braces."""

from __future__ import annotations

import re

from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Reporter, Source, Span
from cnnspec.limits import MAX_FILE_BYTES, MAX_LINE_LENGTH, MAX_NAME, MAX_NESTING, MAX_WORDS


def within_limits(source: Source, reporter: Reporter) -> bool:
    """Check the length of the file, its lines and its words."""
    if len(source.text.encode("utf-8", "replace")) > MAX_FILE_BYTES:
        reporter.add(
            Diagnostic(
                "E0405",
                f"the file is larger than the limit of {MAX_FILE_BYTES // 1024} KiB",
                file=source.name,
                help="use `repeat`, `each`, and blocks instead of writing every layer out",
            )
        )
        return False
    offset = 0
    for line in source.text.split("\n"):
        if len(line) > MAX_LINE_LENGTH:
            reporter.add(
                Diagnostic(
                    "E0405",
                    f"the line is longer than the limit of {MAX_LINE_LENGTH} characters",
                    Span(source, offset, offset + 1),
                    help="break the line in front of a `|`",
                )
            )
            return False
        offset += len(line) + 1
    for count, match in enumerate(_WORDS.finditer(source.text), 1):
        if count > MAX_WORDS:
            reporter.add(
                Diagnostic(
                    "E0405",
                    f"the file has more than the limit of {MAX_WORDS} words and signs",
                    Span(source, match.start(), match.end()),
                    help="use `repeat`, `each`, and blocks instead of writing every layer out",
                )
            )
            return False
        if match.end() - match.start() > MAX_NAME and match.group()[0] not in '#"':
            reporter.add(
                Diagnostic(
                    "E0405",
                    f"the word is longer than the limit of {MAX_NAME} characters",
                    Span(source, match.start(), match.end()),
                    help="choose a shorter one",
                )
            )
            return False
    return True


def count_words(text: str) -> int:
    """Count the names, numbers, signs and comments of a text."""
    return sum(1 for _ in _WORDS.finditer(text))


_WORDS = re.compile(r'#[^\n]*|"[^"\n]*"|[A-Za-z0-9_.]+|[^\s]')
_UNTIL_UNMATCHED = r"(?:[^\n\"#{}()\[\]]|\{[^\n{}]*\}|\([^\n()]*\))*"
"""The contents of a string without an end: the rest of its line up to a sign without a partner in it."""
MARKS = re.compile(rf'#[^\n]*|"[^"\n]*"|"{_UNTIL_UNMATCHED}|[{{}}()\[\]]')
_ODD = re.compile(r'#[^\n]*|"[^"\n]*"?|([^\S \t\n])')
"""Blanks and line ends that the language does not have, outside comments and strings."""
_LINE_ENDS = dict.fromkeys("\x85\u2028\u2029", "\n")
_CLOSING = {"}": "{", ")": "(", "]": "["}
_OPENING = {opened: closing for closing, opened in _CLOSING.items()}


def _write(source: Source, help: str, at: int, text: str) -> Fix:
    return Fix(help, (Edit(Span(source, at, at), text),))


def _end(source: Source, closing: str, opened: int, limit: int) -> Fix:
    """Suggest an end for an open sign.

    A brace ends with the following lines that are indented further than its own, or at `limit` if there are none;
    other signs end with their line.
    """
    text, add = source.text, f"add `{closing}`"
    line = text.rfind("\n", 0, opened) + 1
    end = _line_end(text, opened)
    if closing != "}":
        return _write(source, add, line + len(text[line:end].split("#")[0].rstrip()), closing)
    own = text[line : line + _indent(text, opened)]
    last = _last_inside(text, opened)
    after = _line_end(text, last) + 1 if last is not None else limit
    if text[after:].strip():
        number = text.count("\n", 0, after) + 1
        return _write(source, f"{add} in front of line {number}", after, f"{own}}}\n")
    return _write(source, f"{add} at the end", len(text.rstrip()), f"\n{own}}}")


def _with_plain_blanks(source: Source, reporter: Reporter) -> str:
    """Report characters that look like blanks or line ends, and replace them by those."""
    places: dict[str, list[Span]] = {}
    for match in _ODD.finditer(source.text):
        if match.group(1):
            places.setdefault(match.group(1), []).append(Span(source, *match.span()))
    if not places:
        return source.text
    for sign, spans in places.items():
        plain = _LINE_ENDS.get(sign, " ")
        kind = "blank" if plain == " " else "line end"
        help = f"outside comments and strings a spec is plain ASCII; write a plain {kind}"
        fix = Fix(help, tuple(Edit(span, plain) for span in spans), certain=plain == " ")
        message = f"the character `U+{ord(sign):04X}` is not part of the language"
        notes = (f"the file has it {len(spans)} times",) if spans[1:] else ()
        reporter.add(Diagnostic("E0103", message, spans[0], notes=notes, help=help, fixes=(fix,)))
    return _ODD.sub(lambda match: _LINE_ENDS.get(match.group(1), " ") if match.group(1) else match.group(), source.text)


def balanced(source: Source, reporter: Reporter) -> tuple[str, list[int]] | None:
    """Return the text with matching braces and the offsets at fault, or None if nesting cannot be repaired.

    A statement with such an offset cannot be read, but its neighbors can: in the returned text, every parenthesis and
    bracket that is closed by the wrong sign is closed by the correct one, and a brace that is never closed ends where
    its indentation does. A superfluous closing brace is removed. The text keeps its length.
    """
    braces = _Braces(source, reporter, _with_plain_blanks(source, reporter))
    found = [
        match for match in MARKS.finditer(braces.text) if match.group()[0] != "#" and not _is_string(match.group())
    ]
    signs = [(match.group(), match.start()) for match in found if match.group()[0] != '"']
    for match in found:
        if match.group()[0] == '"':
            braces.end_string(match.group().rstrip(), match.start())
    for index, (mark, at) in enumerate(signs):
        if mark in _CLOSING:
            braces.close(signs, index)
        elif not braces.open(mark, at):
            return None
    return braces.finish()


class _Braces:
    """A pass over the braces, brackets and parentheses of a text that reports and repairs those that do not match.

    Attributes:
        text: The text, as repaired so far.
        wrong: Offsets at fault.
        opened: Signs that are open, with their offsets.
        pairs: Offsets of braces that match.
        early: Offsets of closing braces that seem to end their group too early.
    """

    def __init__(self, source: Source, reporter: Reporter, text: str) -> None:
        self.source, self.reporter, self.text = source, reporter, text
        self.wrong: list[int] = []
        self.opened: list[tuple[str, int]] = []
        self.pairs: list[tuple[int, int]] = []
        self.early: list[int] = []

    def end_string(self, mark: str, at: int) -> None:
        """Report a string without a closing quote, and make it unreadable."""
        help, fixes = 'end it with `"` on the same line', (_write(self.source, 'add `"`', at + len(mark), '"'),)
        span = _sign(self.source, at)
        self.reporter.add(Diagnostic("E0103", "the string has no closing quote", span, help=help, fixes=fixes))
        self.text = self.text[:at] + "!" * len(mark) + self.text[at + len(mark) :]
        self.wrong.append(at)

    def open(self, mark: str, at: int) -> bool:
        """Take an opening sign; False if it is nested too deeply."""
        self.opened.append((mark, at))
        if len(self.opened) <= MAX_NESTING:
            return True
        message, help = f"nested deeper than the limit of {MAX_NESTING}", "name the inner part as a `block`"
        self.reporter.add(Diagnostic("E0405", message, _sign(self.source, at), help=help))
        return False

    def close(self, signs: list[tuple[str, int]], index: int) -> None:
        """Take a closing sign."""
        mark, at = signs[index]
        if self.opened and self.opened[-1][0] == _CLOSING[mark]:
            self.pairs.append((self.opened.pop()[1], at))
            if mark == "}" and _continues(self.text, *self.pairs[-1]):
                self.early.append(at)
        elif mark == "}" and not self.opened:
            extra = self.early.pop() if self.early else at
            self.reporter.add(_superfluous(self.source, extra, at))
            self.text = f"{self.text[:extra]} {self.text[extra + 1 :]}"
        else:
            self.reporter.add(_unmatched(self.source, mark, at, self.opened[-1] if self.opened else None))
            self._repair(signs, index)

    def _repair(self, signs: list[tuple[str, int]], index: int) -> None:
        """Let a sign that closes something else close what is open, or end what is open with its line."""
        mark, at = signs[index]
        if mark != "}" and (not self.opened or self.opened[-1][0] == "{"):
            self.wrong.append(at)  # closes nothing in its statement
            return
        self.wrong.append(self.opened[-1][1])
        if mark == "}":
            inside = _without_parentheses(self.opened)
            if inside and _match(signs[index + 1 :], inside[:-1]):
                self.text, self.opened = _close_with_line(self.text, self.wrong[-1]), inside[:-1]
                return
        self.text = self.text[:at] + _OPENING[self.opened.pop()[0]] + self.text[at + 1 :]

    def finish(self) -> tuple[str, list[int]] | None:
        """Report what is still open at the end of the text, and close it."""
        end, limit = Label(self.source.end, "the text ends here"), len(self.text)
        if _without_parentheses(self.opened):
            return self._close_brace(end, limit)
        for mark, at in self.opened:
            self._never_closed(mark, at, end, limit)
            self.text = _close_with_line(self.text, at)
            self.wrong.append(at)
        return self.text, self.wrong

    def _close_brace(self, end: Label, limit: int) -> tuple[str, list[int]] | None:
        """Close the brace that was left open where its indentation ends, if there is no further one around it."""
        mark, at = self.opened[-1]
        if stolen := _by_indentation(self.text, at, self.pairs):
            (mark, at), limit = ("{", stolen[0]), self.text.rfind("\n", 0, stolen[1]) + 1
            end = Label(_sign(self.source, stolen[1]), "by its indentation this closes another one")
        self._never_closed(mark, at, end, limit)
        closed = _close_by_indentation(self.text, at) if len(self.opened) == 1 else None
        return None if closed is None else (closed, [*self.wrong, len(self.text[:at].rstrip()) - 1])

    def _never_closed(self, mark: str, at: int, end: Label, limit: int) -> None:
        fix = _end(self.source, _OPENING[mark], at, limit)
        message, span = f"`{mark}` is never closed", _sign(self.source, at)
        self.reporter.add(Diagnostic("E0102", message, span, "opened here", labels=(end,), help=fix.help, fixes=(fix,)))


def _close_with_line(text: str, at: int) -> str:
    """End an open sign with its line and the lines that continue it.

    A line continues the one before if it is indented further and that one ends with an open sign or a comma.
    """
    own, start, end = _indent(text, at), at, _line_end(text, at)
    while text[start:end].split("#")[0].rstrip().endswith(("(", "[", ",")):
        after = _NEXT_LINE.match(text, end)
        if after is None or len(after.group(1)) <= own:
            break
        start, end = after.end(), _line_end(text, after.end())
    inside = re.sub(r"#[^\n]*|\n", lambda found: " " * len(found.group()), text[at + 1 : end])
    return f"{text[:at]}!{inside}{text[end:]}"


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


_INDENT = re.compile(r"[ \t]*")


def _indent(text: str, at: int) -> int:
    """Return the indentation of the line at an offset."""
    found = _INDENT.match(text, text.rfind("\n", 0, at) + 1)
    return len(found.group()) if found else 0


def _begins_line(text: str, at: int) -> bool:
    return not text[text.rfind("\n", 0, at) + 1 : at].strip()


_NEXT_LINE = re.compile(r"[^\n]*\n(?:[ \t]*(?:#[^\n]*)?\n)*([ \t]*)")


def _continues(text: str, start: int, end: int) -> bool:
    """Check that a pair of braces seems to end too early.

    The second brace then begins a line that is indented further than the line of the first, and so is the next line.
    If a later brace closes nothing, the second brace is the superfluous one.
    """
    own = _indent(text, start)
    if _indent(text, end) <= own or not _begins_line(text, end):
        return False
    after = _NEXT_LINE.match(text, end)
    return after is not None and len(after.group(1)) > own


def _by_indentation(text: str, opened: int, pairs: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the brace that was left open if `opened` has no partner, and the brace that closes it instead.

    It is the last brace inside `opened` whose partner begins a line that is indented less than its own: that partner
    belongs to a brace further out.
    """
    stolen = [
        (start, end)
        for start, end in pairs
        if start > opened and _begins_line(text, end) and _indent(text, end) < _indent(text, start)
    ]
    return max(stolen, default=None)


def _last_inside(text: str, opened: int) -> int | None:
    """Return the start of the last line after an open brace that is indented further than its own."""
    own, last = _indent(text, opened), None
    at = _line_end(text, opened) + 1
    while at < len(text):
        end = _line_end(text, at)
        if text[at:end].strip():
            if not text[at : at + own + 1].isspace():
                break
            last = at
        at = end + 1
    return last


def _close_by_indentation(text: str, opened: int) -> str | None:
    """End an open brace with the last line inside it.

    The closing brace replaces the start of that line, so that the text keeps its length; the whole statement is at
    fault.
    """
    last, own = _last_inside(text, opened), _indent(text, opened)
    return None if last is None else f"{text[: last + own]}}}{text[last + own + 1 :]}"


def _sign(source: Source, at: int) -> Span:
    return Span(source, at, at + 1)


def _is_string(mark: str) -> bool:
    return len(mark) > 1 and mark[0] == mark[-1] == '"'


def _without_parentheses(open_: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return what is open around the innermost parentheses and brackets."""
    end = len(open_)
    while end and open_[end - 1][0] != "{":
        end -= 1
    return open_[:end]


def _match(signs: list[tuple[str, int]], open_: list[tuple[str, int]]) -> bool:
    """Check that braces close everything that is open or will be opened."""
    depth = sum(mark == "{" for mark, _ in open_)
    for mark, _ in signs:
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if depth < 0:
            return False
    return depth == 0


def _superfluous(source: Source, at: int, last: int) -> Diagnostic:
    """Describe a brace that closes too early, so that the last one, perhaps the same, closes nothing."""
    if at == last:
        return _unmatched(source, "}", at, None)
    span, label = _sign(source, at), Label(_sign(source, last), "so that this one closes nothing")
    fix = Fix("remove it", (Edit(span, ""),))
    return Diagnostic("E0102", "`}` closes too early", span, labels=(label,), help=fix.help, fixes=(fix,))


def _unmatched(source: Source, mark: str, at: int, opened: tuple[str, int] | None) -> Diagnostic:
    """Describe a sign that closes something else, or nothing."""
    span = _sign(source, at)
    if opened is None:
        help, fixes = f"remove it, or open it with `{_CLOSING[mark]}`", (Fix("remove it", (Edit(span, ""),)),)
        return Diagnostic("E0102", f"`{mark}` closes nothing", span, help=help, fixes=fixes)
    sign, where = opened
    meant = _OPENING[sign]
    fixes = (Fix(f"write `{meant}`", (Edit(span, meant),)), _write(source, f"add `{meant}`", at, meant))
    if "\n" in source.text[where:at]:
        fixes = (_end(source, meant, where, at),)
    return Diagnostic(
        "E0102",
        f"`{sign}` is closed by `{mark}`",
        span,
        labels=(Label(_sign(source, where), "opened here"),),
        help=f"close it with `{meant}` first",
        fixes=fixes,
    )
