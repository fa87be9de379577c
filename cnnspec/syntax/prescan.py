"""Check a text before it is parsed: limits, characters and braces."""

from __future__ import annotations

import re

from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Reporter, Source, Span
from cnnspec.limits import MAX_FILE_BYTES, MAX_LINE_LENGTH, MAX_NAME, MAX_NESTING, MAX_WORDS

ASCII_ONLY = "outside comments and strings, a spec is plain ASCII"
"""Note of errors about other characters."""

_SHORTER = "use `repeat`, `each`, and blocks instead of writing out every layer"


def within_limits(source: Source, reporter: Reporter) -> bool:
    """Check the length of the file and of its lines and tokens."""
    if len(source.text.encode("utf-8", "replace")) > MAX_FILE_BYTES:
        reporter.add(
            Diagnostic(
                "E0405",
                f"the size of the file exceeds the limit of {MAX_FILE_BYTES // 1024} KiB",
                file=source.name,
                help=_SHORTER,
            )
        )
        return False
    offset = 0
    for line in source.text.split("\n"):
        if len(line) > MAX_LINE_LENGTH:
            reporter.add(
                Diagnostic(
                    "E0405",
                    f"the length of the line exceeds the limit of {MAX_LINE_LENGTH:,} characters",
                    Span(source, offset, offset + 1),
                    help="break the line before a `|`",
                )
            )
            return False
        offset += len(line) + 1
    for count, match in enumerate(_WORDS.finditer(source.text), 1):
        if count > MAX_WORDS:
            reporter.add(
                Diagnostic(
                    "E0405",
                    f"the file exceeds the limit of {MAX_WORDS:,} tokens",
                    Span(source, match.start(), match.end()),
                    help=_SHORTER,
                )
            )
            return False
        if match.end() - match.start() > MAX_NAME and match.group()[0] not in '#"':
            reporter.add(
                Diagnostic(
                    "E0405",
                    f"the length of the name or number exceeds the limit of {MAX_NAME} characters",
                    Span(source, match.start(), match.end()),
                    help="use a shorter one",
                )
            )
            return False
    return True


def count_words(text: str) -> int:
    """Count the tokens and comments of a text."""
    return sum(1 for _ in _WORDS.finditer(text))


_WORDS = re.compile(r'#[^\n]*|"[^"\n]*"|[A-Za-z0-9_.]+|[^\s]')
_UNTIL_UNMATCHED = r"(?:[^\n\"#{}()\[\]]|\{[^\n{}]*\}|\([^\n()]*\))*"
"""The contents of an unterminated string: the rest of its line up to the first unmatched bracket."""
MARKS = re.compile(rf'#[^\n]*|"[^"\n]*"|"{_UNTIL_UNMATCHED}|[{{}}()\[\]]')
_ODD = re.compile(r'#[^\n]*|"[^"\n]*"?|([^\S \t\n])')
"""Whitespace that is not part of the language, outside comments and strings."""
_LINE_ENDS = dict.fromkeys("\x85\u2028\u2029", "\n")
_CLOSING = {"}": "{", ")": "(", "]": "["}
_OPENING = {opened: closing for closing, opened in _CLOSING.items()}


def _write(source: Source, help: str, at: int, text: str) -> Fix:
    return Fix(help, (Edit(Span(source, at, at), text),))


_MEMBERS = {"add": "branch", "mul": "branch", "concat": "branch", "train": "entry", "each": "row"}
"""What the braces after a word contain, if not statements."""


def _end(source: Source, closing: str, opened: int, limit: int) -> Fix:
    """Suggest an end for an open sign; the fix has no edit if the end is unknown.

    A brace ends with the following lines that are indented further than its own, or at `limit` if there are none;
    other signs end with their line and those that continue it.
    """
    text, add = source.text, f"add `{closing}`"
    line = text.rfind("\n", 0, opened) + 1
    if closing != "}":
        last = _end_of_lines(text, opened)
        start = text.rfind("\n", 0, last) + 1
        if (brace := text.find("{", opened, last)) >= 0:
            return _write(source, f"{add} before the `{{`", len(text[:brace].rstrip()), closing)
        help = f"{add} at the end of line {text.count(chr(10), 0, last) + 1}"
        return _write(source, help, start + len(text[start:last].split("#")[0].rstrip()), closing)
    own = text[line : line + _indent(text, opened)]
    last = _last_inside(text, opened)
    if last is None and limit == len(text) and text[_line_end(text, opened) :].strip():
        head = text[line:opened].split()
        word = next((word for word in head if word in _MEMBERS), None)
        where = f"{_MEMBERS[word]} of `{word}`" if word else "statement of the group"
        return Fix(f"{add} after the last {where}", ())
    after = _line_end(text, last) + 1 if last is not None else limit
    if text[after:].strip():
        number = text.count("\n", 0, after) + 1
        return _write(source, f"{add} before line {number}", after, f"{own}}}\n")
    return _write(source, f"{add} at the end", len(text.rstrip()), f"\n{own}}}")


def _with_plain_whitespace(source: Source, reporter: Reporter) -> str:
    """Report other whitespace than spaces, tabs and newlines, and replace it with spaces and newlines."""
    places: dict[str, list[Span]] = {}
    for match in _ODD.finditer(source.text):
        if match.group(1):
            places.setdefault(match.group(1), []).append(Span(source, *match.span()))
    if not places:
        return source.text
    for sign, spans in places.items():
        plain = _LINE_ENDS.get(sign, " ")
        help = f"replace it with a {'space' if plain == ' ' else 'newline'}"
        fix = Fix(help, tuple(Edit(span, plain) for span in spans), certain=plain == " ")
        message = f"invalid character `U+{ord(sign):04X}`"
        notes = (ASCII_ONLY, *([f"the file contains it {len(spans)} times"] if spans[1:] else []))
        reporter.add(Diagnostic("E0103", message, spans[0], notes=notes, help=help, fixes=(fix,)))
    return _ODD.sub(lambda match: _LINE_ENDS.get(match.group(1), " ") if match.group(1) else match.group(), source.text)


def balanced(source: Source, reporter: Reporter) -> tuple[str, list[int]] | None:
    """Return the text with matching braces and the offsets of errors, or None if nesting cannot be repaired.

    A statement with such an offset cannot be read, but its neighbors can: in the returned text, every parenthesis and
    bracket that is closed by the wrong sign is closed by the correct one, and a brace that is never closed ends where
    its indentation does. An unmatched closing brace is removed. The text keeps its length.
    """
    braces = _Braces(source, reporter, _with_plain_whitespace(source, reporter))
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
        wrong: Offsets of errors.
        opened: Signs that are open, with their offsets.
        pairs: Offsets of braces that match.
        early: Offsets of matching braces that seem to end their group too early.
    """

    def __init__(self, source: Source, reporter: Reporter, text: str) -> None:
        self.source, self.reporter, self.text = source, reporter, text
        self.wrong: list[int] = []
        self.opened: list[tuple[str, int]] = []
        self.pairs: list[tuple[int, int]] = []
        self.early: list[tuple[int, int]] = []

    def end_string(self, mark: str, at: int) -> None:
        """Report an unterminated string, and overwrite it with characters that do not parse."""
        help = 'add the closing `"` on the same line'
        fixes = (_write(self.source, help, at + len(mark), '"'),)
        span = _sign(self.source, at)
        self.reporter.add(Diagnostic("E0103", "unterminated string", span, help=help, fixes=fixes))
        self.text = self.text[:at] + "!" * len(mark) + self.text[at + len(mark) :]
        self.wrong.append(at)

    def open(self, mark: str, at: int) -> bool:
        """Handle an opening bracket; False if it is nested too deeply."""
        self.opened.append((mark, at))
        if len(self.opened) <= MAX_NESTING:
            return True
        message = f"the nesting of braces exceeds the limit of {MAX_NESTING}"
        help = "move the inner part to a `block`"
        self.reporter.add(Diagnostic("E0405", message, _sign(self.source, at), help=help))
        return False

    def close(self, signs: list[tuple[str, int]], index: int) -> None:
        """Handle a closing bracket."""
        mark, at = signs[index]
        if self.opened and self.opened[-1][0] == _CLOSING[mark]:
            self.pairs.append((self.opened.pop()[1], at))
            if mark == "}" and _continues(self.text, *self.pairs[-1]):
                self.early.append(self.pairs[-1])
        elif mark == "}" and not self.opened:
            opened, extra = self.early.pop() if self.early else (at, at)
            self.reporter.add(_extra(self.source, extra, at, opened))
            self.text = f"{self.text[:extra]} {self.text[extra + 1 :]}"
        else:
            self.reporter.add(_unmatched(self.source, mark, at, self.opened[-1] if self.opened else None))
            self._repair(signs, index)

    def _repair(self, signs: list[tuple[str, int]], index: int) -> None:
        """Close the open bracket with a closing bracket of another kind, or end it with its line."""
        mark, at = signs[index]
        if mark != "}" and (not self.opened or self.opened[-1][0] == "{"):
            self.wrong.append(at)  # unmatched in its statement
            return
        self.wrong.append(self.opened[-1][1])
        if mark == "}":
            inside = _without_parentheses(self.opened)
            if inside and _match(signs[index + 1 :], inside[:-1]):
                self.text, self.opened = _close_with_line(self.text, self.wrong[-1]), inside[:-1]
                return
        self.text = self.text[:at] + _OPENING[self.opened.pop()[0]] + self.text[at + 1 :]

    def finish(self) -> tuple[str, list[int]] | None:
        """Report brackets that are still open at the end of the text, and close them."""
        end, limit = Label(self.source.end, "end of file"), len(self.text)
        if _without_parentheses(self.opened):
            return self._close_brace(end, limit)
        for mark, at in self.opened:
            self._unclosed(mark, at, end, limit)
            self.text = _close_with_line(self.text, at)
            self.wrong.append(at)
        return self.text, self.wrong

    def _close_brace(self, end: Label, limit: int) -> tuple[str, list[int]] | None:
        """Close an unclosed brace where its indentation ends, if it is the only one."""
        mark, at = self.opened[-1]
        if stolen := _by_indentation(self.text, at, self.pairs):
            (mark, at), limit = ("{", stolen[0]), self.text.rfind("\n", 0, stolen[1]) + 1
            end = Label(_sign(self.source, stolen[1]), "by its indentation, this closes an outer `{`")
        self._unclosed(mark, at, end, limit)
        closed = _close_by_indentation(self.text, at) if len(self.opened) == 1 else None
        return None if closed is None else (closed, [*self.wrong, len(self.text[:at].rstrip()) - 1])

    def _unclosed(self, mark: str, at: int, end: Label, limit: int) -> None:
        fix = _end(self.source, _OPENING[mark], at, limit)
        message, span, fixes = f"unclosed `{mark}`", _sign(self.source, at), (fix,) if fix.edits else ()
        self.reporter.add(Diagnostic("E0102", message, span, "opened here", labels=(end,), help=fix.help, fixes=fixes))


def _close_with_line(text: str, at: int) -> str:
    """End an open bracket with its line and the lines that continue it.

    A line continues the previous one if it is indented further and the previous one ends with a bracket or a comma.
    """
    end = _end_of_lines(text, at)
    inside = re.sub(r"#[^\n]*|\n", lambda found: " " * len(found.group()), text[at + 1 : end])
    return f"{text[:at]}!{inside}{text[end:]}"


def _end_of_lines(text: str, at: int) -> int:
    """Return the end of the line at an offset and of the lines that continue it."""
    own, start, end = _indent(text, at), at, _line_end(text, at)
    while text[start:end].split("#")[0].rstrip().endswith(("(", "[", ",")):
        after = _NEXT_LINE.match(text, end)
        if after is None or len(after.group(1)) <= own:
            break
        start, end = after.end(), _line_end(text, after.end())
    return end


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
    If a later brace is unmatched, the second brace is the one to remove.
    """
    own = _indent(text, start)
    if _indent(text, end) <= own or not _begins_line(text, end):
        return False
    after = _NEXT_LINE.match(text, end)
    return after is not None and len(after.group(1)) > own


def _by_indentation(text: str, opened: int, pairs: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the brace that is not closed if `opened` is unmatched, and the brace that closes it instead.

    It is the last brace inside `opened` whose closing brace starts a line that is indented less than its own: that
    closing brace belongs to an outer brace.
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

    The closing brace replaces the start of that line, so that the text keeps its length; the whole statement counts as
    an error.
    """
    last, own = _last_inside(text, opened), _indent(text, opened)
    return None if last is None else f"{text[: last + own]}}}{text[last + own + 1 :]}"


def _sign(source: Source, at: int) -> Span:
    return Span(source, at, at + 1)


def _is_string(mark: str) -> bool:
    return len(mark) > 1 and mark[0] == mark[-1] == '"'


def _without_parentheses(open_: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the open braces and brackets around the innermost parentheses and brackets."""
    end = len(open_)
    while end and open_[end - 1][0] != "{":
        end -= 1
    return open_[:end]


def _match(signs: list[tuple[str, int]], open_: list[tuple[str, int]]) -> bool:
    """Check that the closing braces match all opening ones."""
    depth = sum(mark == "{" for mark, _ in open_)
    for mark, _ in signs:
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if depth < 0:
            return False
    return depth == 0


def _extra(source: Source, at: int, last: int, opened: int) -> Diagnostic:
    """Describe a brace that closes `opened` too early, which leaves the last one, perhaps the same, unmatched."""
    if at == last:
        return _unmatched(source, "}", at, None)
    span, label = _sign(source, at), Label(_sign(source, last), "no `{` is left for this `}`")
    fix = Fix(f"remove the `}}` on line {span.line}", (Edit(span, ""),))
    caption = f"this closes the `{{` on line {_sign(source, opened).line}"
    return Diagnostic("E0102", "unmatched `}`", span, caption, labels=(label,), help=fix.help, fixes=(fix,))


def _unmatched(source: Source, mark: str, at: int, opened: tuple[str, int] | None) -> Diagnostic:
    """Describe a closing bracket that does not match the open one, or is unmatched."""
    span = _sign(source, at)
    if opened is None:
        help, fixes = f"remove it, or add the missing `{_CLOSING[mark]}`", (Fix("remove it", (Edit(span, ""),)),)
        return Diagnostic("E0102", f"unmatched `{mark}`", span, help=help, fixes=fixes)
    sign, where = opened
    closing = _OPENING[sign]
    fixes = (Fix(f"write `{closing}`", (Edit(span, closing),)), _write(source, f"add `{closing}`", at, closing))
    if "\n" in source.text[where:at]:
        fixes = (_end(source, closing, where, at),)
    return Diagnostic(
        "E0102",
        f"closing `{mark}` does not match opening `{sign}`",
        span,
        labels=(Label(_sign(source, where), "opened here"),),
        help=f"close `{sign}` with `{closing}` first",
        fixes=fixes,
    )
