"""Completion and signature help, from the words before the cursor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lsprotocol import types as lsp

from cnnspec.lsp.descriptions import (
    NAME,
    REPEAT,
    callee_text,
    declared_text,
    entry_documentation,
    entry_text,
    parameter_text,
    signature_text,
)
from cnnspec.lsp.document import Text
from cnnspec.lsp.names import Names, Scope
from cnnspec.lsp.tokens import Token, Typing, typing_at
from cnnspec.ops import JOINS, OPS
from cnnspec.ops.inits import INITS, allowed_inits
from cnnspec.recipe import CHOICES, ENTRIES, OF_MODULES, Scalars
from cnnspec.schema import Parameter
from cnnspec.semantics.blocks import signature
from cnnspec.semantics.loader import SUFFIX, shipped_specs, standard_block, standard_blocks
from cnnspec.syntax import FUNCTIONS, LABEL_WORDS, TOP_WORDS

TRIGGERS = ["@", " ", "=", "|", '"', ".", "{"]
_BODY_WORDS = ("let", "require", "repeat", "again", "each", "if", "in", "nothing", *JOINS)
_METRICS = ("params", "macs", "output", "depth")
_Kind = lsp.CompletionItemKind


def completion(text: Text, position: lsp.Position, names: Names | None, path: Path | None) -> lsp.CompletionList:
    """Return what can be written at a position.

    Args:
        text: The current text.
        position: The position.
        names: The names of the text, or of an earlier one.
        path: The file of the text.
    """
    offset = text.offset(position)
    typing = typing_at(text.text, offset)
    word = typing.word
    if word is not None and word.kind in ("comment", "number"):
        return lsp.CompletionList(False, [])
    start = offset if word is None else word.start + (word.kind in ("string", "reference"))
    scope = names.scope_at(min(offset, names.top.end)) if names is not None else Scope(0, 0)
    place = text.range(start, offset)
    typed = text.text[start:offset].lower()
    items = [
        item for item in _Completer(typing, names, scope, path).items() if item.label.lower().startswith(typed[:1])
    ]
    for item in items:
        item.text_edit = lsp.TextEdit(place, item.label)
    return lsp.CompletionList(False, items)


def resolve(item: lsp.CompletionItem) -> lsp.CompletionItem:
    """Add the documentation of an item."""
    group, _, name = str(item.data).partition(":")
    text: str | None = None
    if group == "callee":
        text = callee_text(name, found[1] if (found := standard_block(name)) else None)
    elif group == "init" and name in INITS:
        text = declared_text(INITS[name])
    elif group == "entry" and name in ENTRIES:
        text = entry_documentation(name)
    elif name in CHOICES.get(group, {}):
        text = declared_text(CHOICES[group][name])
    item.documentation = lsp.MarkupContent(lsp.MarkupKind.Markdown, text) if text else None
    return item


def _item(label: str, kind: lsp.CompletionItemKind, detail: str | None = None, group: str = "") -> lsp.CompletionItem:
    return lsp.CompletionItem(label, kind=kind, detail=detail, data=f"{group}:{label}" if group else None)


class _Completer:
    """The items at one place."""

    def __init__(self, typing: Typing, names: Names | None, scope: Scope, path: Path | None) -> None:
        self._typing, self._names, self._scope, self._path = typing, names, scope, path
        self._element = [token for token in typing.element if token.kind != "newline"]

    def items(self) -> Iterator[lsp.CompletionItem]:
        typing, element = self._typing, self._element
        words, word = [token.text for token in element], typing.word
        if word is not None and word.kind == "string":
            if typing.statement == "extends" or words[-1:] == ["from"]:
                yield from self._files()
        elif (word is not None and word.kind == "reference") or words[-1:] == ["@"]:
            yield from (_item(name, _Kind.Reference) for name in self._scope.labels)
        elif word is not None and word.text.startswith("in."):
            yield from (_item(f"in.{axis}", _Kind.Property) for axis in "chw")
        elif typing.in_train:
            yield from self._recipe(words)
        elif not words:
            yield from self._heads()
        elif words[-1] == "=" and words[0] not in ("param", "let"):
            parameter = self._parameters().get(words[-2] if len(words) > 1 else "")
            yield from self._values(parameter)
        else:
            yield from self._arguments(words)

    def _callees(self) -> Iterator[lsp.CompletionItem]:
        for name, kind in OPS.items():
            yield _item(name, _Kind.Function, kind.torch, "callee")
        own = self._names.blocks if self._names is not None else {}
        for name, block in own.items():
            yield _item(name, _Kind.Class, signature_text(name, signature(block)), "callee")
        yield from (_item(name, _Kind.Class, "block", "callee") for name in standard_blocks() if name not in own)

    def _heads(self) -> Iterator[lsp.CompletionItem]:
        yield from self._callees()
        top = () if self._typing.around else (*LABEL_WORDS, *TOP_WORDS, "output")
        if self._typing.statement:  # after `|`
            top = ()
        yield from (_item(word, _Kind.Keyword) for word in dict.fromkeys((*_BODY_WORDS, *top)))
        yield from self._variables()

    def _variables(self) -> Iterator[lsp.CompletionItem]:
        for name, symbol in self._scope.values.items():
            kind = _Kind.Variable if symbol.kind == "value" else _Kind.TypeParameter
            yield _item(name, kind, " ".join(symbol.node.span.text.partition("{")[0].split())[:80])

    def _arguments(self, words: list[str]) -> Iterator[lsp.CompletionItem]:
        """Complete after the first word of an element."""
        head, count = words[0], len(words)
        if head in ("network", "block", "input") or (head in ("param", "let") and count < 3):
            return
        if head == "use":
            yield _item("from", _Kind.Keyword)
        elif head == "extends" and count == 1:
            yield from self._files()
        elif head == "expect" and count == 1:
            yield from (_item(metric, _Kind.Keyword) for metric in _METRICS)
            yield from (_item(f"output.{name}", _Kind.Keyword) for name in (self._names.outputs if self._names else ()))
        elif head == "output" and not self._typing.around and words[1:2] != ["="]:
            if count == 2:
                yield _item("from", _Kind.Keyword)
            elif words[-1] == "from":
                yield from (_item(f"@{label}", _Kind.Reference) for label in self._scope.labels)
        elif head == "init" and count == 1:
            yield from (_item(name, _Kind.Function) for name, op in OPS.items() if "init" in op.parameters)
        elif head == "init" and count == 2:
            yield from (_item(name, _Kind.Function, None, "init") for name in allowed_inits(words[1]))
        elif head in ("default", "each") and count == 1:
            yield from self._callees()
        else:
            yield from self._named(self._parameters())
            given = {token.text for token in self._element}
            for name, parameter in self._parameters().items():
                if parameter.type.kind == "tensor" and parameter.required and name not in given:
                    yield from self._values(parameter)
                    return
            yield from self._values(None)

    def _named(self, parameters: Mapping[str, Parameter]) -> Iterator[lsp.CompletionItem]:
        given = {token.text for token in self._element}
        for name, parameter in parameters.items():
            if name not in given:
                sort = "0" if parameter.required else "1"
                item = _item(name, _Kind.Field, parameter_text(parameter))
                item.sort_text = f"{sort}{name}"
                yield item

    def _values(self, parameter: Parameter | None) -> Iterator[lsp.CompletionItem]:
        """Complete a value; that of a parameter, if it is known."""
        kind = parameter.type.kind if parameter is not None else None
        if parameter is not None:
            yield from (_item(word, _Kind.EnumMember) for word in parameter.type.words)
        if kind == "bool":
            yield from (_item(word, _Kind.Keyword) for word in ("true", "false"))
        elif kind in ("op", None):
            names = OPS if kind == "op" or self._element[0].text in ("param", "let") else ()
            yield from (_item(name, _Kind.Function, None, "callee") for name in names)
        elif kind == "tensor":
            yield from (_item(f"@{label}", _Kind.Reference) for label in self._scope.labels)
            yield _item("in", _Kind.Keyword)
        yield from self._variables()
        if kind in ("int", "float", "size", None):
            yield from (_item(name, _Kind.Function) for name in FUNCTIONS)
            yield from (_item(f"in.{axis}", _Kind.Property) for axis in "chw")

    def _parameters(self) -> Mapping[str, Parameter]:
        return callee_of(self._typing, self._names)[1]

    def _recipe(self, words: list[str]) -> Iterator[lsp.CompletionItem]:
        entry = self._typing.statement
        if not entry:
            yield from (_item(word, _Kind.Property, entry_text(word), "entry") for word in ENTRIES)
            return
        given = words[1:] if words[:1] == [entry] else words
        if entry in CHOICES and not given:
            for name, kind in CHOICES[entry].items():
                if name != entry:
                    yield _item(name, _Kind.Function, ", ".join(kind.parameters) or None, entry)
        if entry in Scalars.parameters:
            yield from self._values(Scalars.parameters[entry])
        elif words[-1:] == ["="]:
            yield from self._values(self._parameters().get(words[-2] if len(words) > 1 else ""))
        else:
            yield from self._named(self._parameters())
        if entry in OF_MODULES and self._names is not None:
            yield from (_item(label, _Kind.Reference) for label in self._names.top.labels)

    def _files(self) -> Iterator[lsp.CompletionItem]:
        shipped: Iterable[str] = shipped_specs()
        if self._typing.statement == "use":
            shipped = (f"blocks/{name}{SUFFIX}" for name in standard_blocks())
        yield from (_item(name, _Kind.File, "shipped") for name in shipped)
        if self._path is not None and self._path.parent.is_dir():
            near = sorted(p for p in self._path.parent.glob(f"*{SUFFIX}") if p.name != self._path.name)
            yield from (_item(p.name, _Kind.File) for p in near[:200])


# --- signature help ------------------------------------------------------------------------------


def callee_of(typing: Typing, names: Names | None) -> tuple[str, Mapping[str, Parameter], list[Token]]:
    """Return the callee at a place, its parameters, and the tokens of its arguments so far."""
    element = [token for token in typing.element if token.kind != "newline"]
    words = [token.text for token in element]
    if not words:
        return "", {}, []
    if typing.in_train:
        table = CHOICES.get(typing.statement, {})
        start = 1 if words[0] == typing.statement and words[0] not in words[1:2] else 0
        start = 1 if len(words) > 1 and words[0] == typing.statement and words[1] in table else start
        callee = words[start] if len(words) > start and words[start] in table else typing.statement
        skipped = start + (len(words) > start and words[start] == callee)
        return callee, table[callee].parameters if callee in table else {}, element[skipped:]
    if words[0] == "init":
        scheme = INITS.get(words[2]) if len(words) > 2 else None
        return (words[2], scheme.parameters, element[3:]) if scheme is not None else ("", {}, [])
    if words[0] == "default":
        del words[0], element[0]
    if not words or (names is None and words[0] not in OPS):
        return "", {}, []
    found = names.parameters_of(words[0]) if names is not None else OPS[words[0]].parameters
    if not found:
        return "", {}, []
    return words[0], {**found, "repeat": REPEAT, "name": NAME}, element[1:]


def signature_help(text: Text, position: lsp.Position, names: Names | None) -> lsp.SignatureHelp | None:
    """Return the parameters of the call at a position, with the one that is being written."""
    offset = text.offset(position)
    typing = typing_at(text.text, offset)
    if typing.word is not None and typing.word.kind == "comment":
        return None
    callee, parameters, given = callee_of(typing, names)
    if not parameters:
        return None
    if typing.word is not None:
        given = [*given, typing.word]
    labels = [parameter_text(parameter) for parameter in parameters.values()]
    active = _active(given, [*parameters], at_new=typing.word is None)
    signature = lsp.SignatureInformation(
        f"{callee} {', '.join(labels)}", parameters=[lsp.ParameterInformation(label) for label in labels]
    )
    return lsp.SignatureHelp([signature], 0, active)


def _active(given: Sequence[Token], parameters: Sequence[str], *, at_new: bool) -> int | None:
    """Return the index of the parameter that the last of some tokens belongs to; None if it is unknown."""
    positional, current, depth, joined = -1, "", 0, False
    for index, token in enumerate(given):
        sign = token.text
        if token.kind == "sign":
            depth += (sign in "([") - (sign in ")]")
            joined = sign not in ")]"
            continue
        if depth == 0 and not joined and not (sign[0] == "x" and sign[1:].isdigit()):
            following = given[index + 1].text if index + 1 < len(given) else ""
            if following == "=":
                current = sign
            else:
                positional, current = positional + 1, ""
        joined = False
    if at_new and not joined:
        positional, current = positional + 1, ""
    index = parameters.index(current) if current in parameters else positional if not current else -1
    return index if 0 <= index < len(parameters) else None
