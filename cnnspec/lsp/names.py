"""The names of a spec: where each is defined, where it is used, and what is visible at a place."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cnnspec.diagnostics import Reporter, Span
from cnnspec.limits import MAX_FILE_DEPTH
from cnnspec.ops import OPS
from cnnspec.ops.inits import INITS
from cnnspec.recipe import CHOICES, OF_MODULES
from cnnspec.schema import Parameter
from cnnspec.semantics.blocks import signature
from cnnspec.semantics.loader import Library, standard_block
from cnnspec.syntax import ast

Kind = Literal["block", "parameter", "value", "label", "output", "file"]


@dataclass(frozen=True)
class Symbol:
    """A definition.

    Attributes:
        kind: `parameter` is one of a block; `value` is a `param`, a `let`, or the index of a `repeat`.
        span: The name where it is defined; the start of the file for a file.
        node: The statement or parameter that defines it.
    """

    kind: Kind
    name: str
    span: Span
    node: ast.Node


@dataclass(frozen=True)
class Occurrence:
    """A use or the definition of a symbol in the file."""

    start: int
    end: int
    symbol: Symbol


@dataclass
class Scope:
    """The names that are defined between two offsets, and around them; a block does not see the labels around it."""

    start: int
    end: int
    values: ChainMap[str, Symbol] = field(default_factory=ChainMap[str, Symbol])
    labels: ChainMap[str, Symbol] = field(default_factory=ChainMap[str, Symbol])


class Names:
    """The symbols of a file and their occurrences.

    Args:
        tree: The tree of the file.
        library: The files that it uses and extends.
    """

    def __init__(self, tree: ast.File, library: Library | None) -> None:
        self._tree, self._library = tree, library
        self.source = tree.source
        self.occurrences: list[Occurrence] = []
        self.top = Scope(0, len(tree.source.text))
        self.scopes = [self.top]
        self._imports = self._blocks_of(tree, 0)
        self.outputs = self._outputs_of(tree, 0)
        self._define_top()
        for statement in tree.statements:
            self._statement(statement, self.top)
        self.occurrences.sort(key=lambda found: (found.start, found.end))

    def at(self, offset: int) -> Occurrence | None:
        """Return the occurrence at an offset."""
        return next((found for found in self.occurrences if found.start <= offset <= found.end), None)

    def scope_at(self, offset: int) -> Scope:
        """Return the innermost scope at an offset."""
        inside = (scope for scope in reversed(self.scopes) if scope.start <= offset <= scope.end)
        return min(inside, key=lambda scope: scope.end - scope.start, default=self.top)

    def block(self, name: str) -> ast.Block | None:
        """Return the block that a call in the file means."""
        symbol = self._block(name)
        return symbol.node if symbol is not None and isinstance(symbol.node, ast.Block) else None

    @property
    def blocks(self) -> dict[str, ast.Block]:
        """The blocks that the file defines, imports or inherits."""
        nodes = {name: symbol.node for name, symbol in self._imports.items()}
        return {name: node for name, node in nodes.items() if isinstance(node, ast.Block)}

    def parameters(self, nodes: Sequence[ast.Node]) -> Mapping[str, Parameter]:
        """Return the parameters of the innermost of nested calls."""
        entry = next((node for node in nodes if isinstance(node, ast.Entry)), None)
        for node in reversed(nodes):
            if isinstance(node, ast.Call):
                if entry is not None:
                    kind = CHOICES.get(entry.word, {}).get(node.callee or entry.word)
                    return kind.parameters if kind else {}
                if any(isinstance(outer, ast.Init) for outer in nodes):
                    return INITS[node.callee].parameters if node.callee in INITS else {}
                return self.parameters_of(node.callee)
            if isinstance(node, ast.Each):
                return self.parameters_of(node.callee)
        return {}

    def parameters_of(self, callee: str) -> Mapping[str, Parameter]:
        """Return the parameters of an operator or block."""
        block = self.block(callee)
        if block is not None:
            return signature(block)
        return OPS[callee].parameters if callee in OPS else {}

    def file(self, statement: ast.Use | ast.Extends, asking: ast.File | None = None) -> ast.File | None:
        """Return the file that a statement names."""
        if self._library is None:
            return None
        span = statement.path_span if isinstance(statement, ast.Use) else statement.target_span
        path = statement.path if isinstance(statement, ast.Use) else statement.target
        return self._library.find(path, asking or self._tree, span, Reporter())

    # --- definitions -----------------------------------------------------------------------------

    def _blocks_of(self, file: ast.File, depth: int) -> dict[str, Symbol]:
        """Return the blocks that a file defines, imports or inherits."""
        found: dict[str, Symbol] = {}
        for statement in file.statements:
            if isinstance(statement, ast.Block):
                found[statement.name] = Symbol("block", statement.name, statement.name_span, statement)
            elif isinstance(statement, (ast.Use, ast.Extends)) and depth < MAX_FILE_DEPTH:
                other = self.file(statement, file)
                blocks = self._blocks_of(other, depth + 1) if other is not None else {}
                wanted = [name.name for name in statement.names] if isinstance(statement, ast.Use) else [*blocks]
                found = {**{name: blocks[name] for name in wanted if name in blocks}, **found}
        return found

    def _params_of(self, file: ast.File, depth: int = 0) -> dict[str, Symbol]:
        """Return the parameters that a network has, with those of the network that it extends."""
        found: dict[str, Symbol] = {}
        for statement in file.statements:
            if isinstance(statement, ast.Extends) and depth < MAX_FILE_DEPTH:
                other = self.file(statement, file)
                found = {**(self._params_of(other, depth + 1) if other is not None else {}), **found}
            elif isinstance(statement, ast.Param):
                found[statement.name] = Symbol("value", statement.name, statement.name_span, statement)
            elif isinstance(statement, ast.Classes):
                span = Span(file.source, statement.span.start, statement.span.start + len("classes"))
                found["classes"] = Symbol("value", "classes", span, statement)
        return found

    def _outputs_of(self, file: ast.File, depth: int) -> dict[str, Symbol]:
        """Return the outputs of a network: those of the network that it extends, unless it states outputs or layers."""
        found: dict[str, Symbol] = {}
        for statement in file.statements:
            if isinstance(statement, ast.Output):
                found[statement.name] = Symbol("output", statement.name, statement.name_span, statement)
        base = next((statement for statement in file.statements if isinstance(statement, ast.Extends)), None)
        if base is None or depth >= MAX_FILE_DEPTH or found or any(isinstance(s, ast.Flow) for s in file.statements):
            return found
        other = self.file(base, file)
        return self._outputs_of(other, depth + 1) if other is not None else {}

    def _block(self, name: str) -> Symbol | None:
        if name in self._imports:
            return self._imports[name]
        found = standard_block(name)
        return Symbol("block", name, found[1].name_span, found[1]) if found else None

    def _define_top(self) -> None:
        for statement in self._tree.statements:
            if isinstance(statement, ast.Extends):
                self.top.values.update(self._params_of(self._tree))
                if (base := self.file(statement)) is not None:
                    self.top.labels.update(_labels(base.statements))
        for statement in self._tree.statements:
            if isinstance(statement, (ast.Param, ast.Let)):
                symbol = Symbol("value", statement.name, statement.name_span, statement)
                self.top.values[statement.name] = symbol
            elif isinstance(statement, ast.Classes):
                self.top.values.update(self._params_of(self._tree))
        self.top.labels.update(_labels(self._tree.statements))

    def _add(self, span: Span, symbol: Symbol | None) -> None:
        if symbol is not None:
            self.occurrences.append(Occurrence(span.start, span.end, symbol))

    # --- statements ------------------------------------------------------------------------------

    def _statement(self, node: ast.Node, scope: Scope) -> None:
        """Find the occurrences in a statement."""
        match node:
            case ast.Block():
                self._define_block(node, scope)
            case ast.Use() | ast.Extends():
                self._import(node, scope)
            case ast.Param() | ast.Let():
                self._expression(node.value, scope)
                symbol = self.top.values.get(node.name) if scope is self.top else None
                symbol = symbol or Symbol("value", node.name, node.name_span, node)
                scope.values[node.name] = symbol
                self._add(node.name_span, symbol)
            case ast.Flow():
                if node.label is not None and not node.label.word:
                    self._add(node.label.span, scope.labels.get(node.label.name))
                for element in node.elements:
                    self._element(element, scope)
                if node.condition is not None:
                    self._expression(node.condition, scope)
            case ast.Input(name=str(name), name_span=Span() as span):
                self._add(span, scope.labels.get(name))
            case ast.Aux():
                self._expression(node.label, scope)
                for arg in node.args:
                    self._expression(arg.value, scope)
                self._body(node.body, node.span, scope)
            case ast.Default():
                self._call(node.call, scope)
            case ast.Train():
                for entry in node.entries:
                    self._entry(entry, scope)
            case _:
                self._expression(node, scope)

    def _element(self, node: ast.Element, scope: Scope) -> None:
        """Find the occurrences in an element."""
        match node:
            case ast.Call() | ast.Each():
                self._call(node, scope)
            case ast.Braces() | ast.Join():
                self._body(node.body, node.span, scope)
            case ast.Repeat():
                self._expression(node.count, scope)
                inner = self._body_scope(node.body, node.span, scope)
                if node.variable:
                    inner.values[node.variable] = Symbol("value", node.variable, node.variable_span, node)
                    self._add(node.variable_span, inner.values[node.variable])
                self._statements(node.body, inner)
            case ast.If():
                self._expression(node.condition, scope)
                self._body(node.then, node.span, scope)
                self._body(node.otherwise or (), node.span, scope)
            case _:
                self._expression(node, scope)

    def _statements(self, body: Iterable[ast.Node], scope: Scope) -> None:
        for statement in body:
            self._statement(statement, scope)

    def _body_scope(self, body: Sequence[ast.Node], span: Span, parent: Scope, *, is_block: bool = False) -> Scope:
        """Return the scope of a body: from its first statement to its end."""
        start, end = (body[0].span.start, body[-1].span.end) if body and not is_block else (span.start, span.end)
        after = re.compile(r"\s*\}").match(span.source.text, end)
        labels = ChainMap(_labels(body)) if is_block else parent.labels.new_child(_labels(body))
        scope = Scope(start, after.end() - 1 if after else end, parent.values.new_child(), labels)
        self.scopes.append(scope)
        return scope

    def _body(self, body: Sequence[ast.Node], span: Span, parent: Scope) -> None:
        self._statements(body, self._body_scope(body, span, parent))

    def _define_block(self, node: ast.Block, scope: Scope) -> None:
        self._add(node.name_span, self._imports.get(node.name))
        inner = self._body_scope(node.body, node.span, scope, is_block=True)
        for parameter in node.parameters:
            if parameter.default is not None:
                self._expression(parameter.default, inner)
            symbol = _parameter(parameter)
            (inner.labels if parameter.type == "tensor" else inner.values)[parameter.name] = symbol
            self._add(symbol.span, symbol)
        self._statements(node.body, inner)

    def _import(self, node: ast.Use | ast.Extends, scope: Scope) -> None:
        other = self.file(node)
        if other is not None:
            span = node.path_span if isinstance(node, ast.Use) else node.target_span
            quoted = isinstance(node, ast.Use) or node.quoted
            span = Span(span.source, span.start + quoted, span.end - quoted)
            self._add(span, Symbol("file", span.text, Span(other.source, 0, 0), other))
        if isinstance(node, ast.Use):
            for name in node.names:
                self._add(name.span, self._imports.get(name.name))
            return
        params = self._params_of(other) if other is not None else {}
        for arg in node.args:
            if arg.name is not None:
                self._add(arg.name_span, params.get(arg.name))
            self._expression(arg.value, scope)

    # --- elements and expressions ----------------------------------------------------------------

    def _call(self, node: ast.Call | ast.Each, scope: Scope) -> None:
        symbol = scope.values.get(node.callee) or self._block(node.callee)
        self._add(node.callee_span, symbol)
        block = symbol.node if symbol is not None else None
        parameters = {p.name: _parameter(p) for p in block.parameters} if isinstance(block, ast.Block) else {}
        repeated = any(arg.name == "repeat" for arg in node.args) or (isinstance(node, ast.Call) and node.repeat)
        for arg in node.args:
            if arg.name is not None:
                self._add(arg.name_span, parameters.get(arg.name))
            elif isinstance(arg.value, ast.Name) and arg.value.name not in scope.values:
                self._add(arg.value.span, parameters.get(arg.value.name))  # a flag
            self._expression(arg.value, scope, ("i", "n") if repeated and arg.name == "name" else ())
        for column in node.columns if isinstance(node, ast.Each) else ():
            self._add(column.span, parameters.get(column.name))
        for row in node.rows if isinstance(node, ast.Each) else ():
            if row.label is not None:
                span = Span(row.span.source, row.span.start, row.span.start + len(row.label))
                self._add(span, scope.labels.get(row.label))
            for cell in row.cells:
                self._expression(cell, scope)

    def _entry(self, entry: ast.Entry, scope: Scope) -> None:
        for call in entry.calls:
            if entry.word in OF_MODULES:
                if call.callee and call.callee not in CHOICES[entry.word]:
                    self._path(call.callee_span, call.callee, scope)
                for part in (part for arg in call.args for part in arg.value.walk()):
                    if isinstance(part, ast.Name):
                        self._path(part.span, part.name, scope)
                    elif isinstance(part, ast.Text):
                        self._path(Span(part.span.source, part.span.start + 1, part.span.end), part.value, scope)
                continue
            if call.callee and (symbol := scope.values.get(call.callee)):
                self._add(call.callee_span, symbol)
            for arg in call.args:
                self._expression(arg.value, scope)

    def _path(self, span: Span, path: str, scope: Scope) -> None:
        """Add the label at the start of the path of a module."""
        for name in (path, path.partition(".")[0]):
            if name in scope.labels:
                self._add(Span(span.source, span.start, span.start + len(name)), scope.labels[name])
                return

    def _expression(self, node: ast.Node, scope: Scope, counters: Sequence[str] = ()) -> None:
        for part in node.walk():
            match part:
                case ast.Name():
                    self._add(part.span, scope.values.get(part.name))
                case ast.Reference():
                    span = Span(part.span.source, part.span.start + 1, part.span.end)
                    self._add(span, scope.labels.get(part.label))
                case ast.Output():
                    self._add(part.name_span, self.outputs.get(part.name))
                case ast.Expect() if part.metric.startswith("output."):
                    span = Span(part.span.source, part.metric_span.start + len("output."), part.metric_span.end)
                    self._add(span, self.outputs.get(span.text))
                case ast.Text():
                    for match in ast.PLACEHOLDER.finditer(part.value):
                        start, name = part.span.start + 1 + match.start(1), match.group(1)
                        if name not in counters:
                            self._add(Span(part.span.source, start, start + len(name)), scope.values.get(name))
                case _:
                    pass


def _parameter(node: ast.BlockParameter) -> Symbol:
    start = node.span.start
    if node.once:
        text = node.span.source.text
        start = re.compile(r"once\s*").match(text, start).end()  # type: ignore[union-attr]
    return Symbol("parameter", node.name, Span(node.span.source, start, start + len(node.name)), node)


def _labels(body: Iterable[ast.Node]) -> dict[str, Symbol]:
    """Return the labels that a body defines; those of the rows of its tables are among them."""
    found: dict[str, Symbol] = {}
    for node in body:
        if isinstance(node, ast.Input) and node.name is not None and node.name_span is not None:
            found.setdefault(node.name, Symbol("label", node.name, node.name_span, node))
        if not isinstance(node, ast.Flow):
            continue
        if node.label is not None:
            found.setdefault(node.label.name, Symbol("label", node.label.name, node.label.span, node))
        for row in (row for element in node.elements if isinstance(element, ast.Each) for row in element.rows):
            if row.label is not None:
                span = Span(row.span.source, row.span.start, row.span.start + len(row.label))
                found.setdefault(row.label, Symbol("label", row.label, span, row))
    return found
