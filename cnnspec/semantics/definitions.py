"""Collect the names that a file defines: parameters, values, blocks, and defaults, also from the files that it uses."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

from cnnspec.diagnostics import Label, Reported, Span, respell
from cnnspec.ir.evaluate import ExpressionError, Template, UnknownShape, convert, show
from cnnspec.limits import MAX_FILE_DEPTH
from cnnspec.ops import OPS
from cnnspec.schema import Size, Type, type_of
from cnnspec.semantics.arguments import ArgumentBinder
from cnnspec.semantics.blocks import signature
from cnnspec.semantics.call_hints import UnknownCallee, misspelt_callee
from cnnspec.semantics.call_site import CallSite
from cnnspec.semantics.constants import ConstantEvaluator
from cnnspec.semantics.context import Context, refuse_reserved
from cnnspec.semantics.loader import Library, standard_block
from cnnspec.semantics.scope import FileScope, FoundBlock, LocalScope
from cnnspec.syntax import ast


@dataclass
class UniqueNames:
    """The definitions of a file so far; a second one of a name is reported."""

    context: Context
    names: dict[str, tuple[str, Span]] = field(default_factory=dict[str, tuple[str, Span]])
    statements: dict[str, Span] = field(default_factory=dict[str, Span])

    def add(self, what: str, name: str, span: Span) -> None:
        """Add the definition of a name; `what` says of what kind it is."""
        refuse_reserved(self.context.reporter, what, name, span)
        other, first = self.names.setdefault(name, (what, span))
        if first is not span:
            defined = f"{what} `{name}`" if what == other else f"`{name}`"
            self._report(defined, first, span, "rename or remove one of them")

    def add_statement(self, statement: str, span: Span) -> None:
        """Add a statement that a file can have only once."""
        first = self.statements.setdefault(statement, span)
        if first is not span:
            self._report(f"`{statement}`", first, span, f"keep only one `{statement}`")

    def _report(self, defined: str, first: Span, span: Span, help: str) -> None:
        labels = [Label(first, "first defined here")]
        self.context.reporter.error("E0211", f"{defined} is defined multiple times", span, labels=labels, help=help)


@dataclass
class Definitions:
    """The definitions of one file.

    Attributes:
        given: Values for its parameters from outside.
        declared: Its parameters, with the values that the file states.
        changed: Whether a value from outside differs from the stated one.
    """

    scope: FileScope
    given: Mapping[str, Any]
    names: UniqueNames
    declared: dict[str, Any] = field(default_factory=dict[str, Any])
    changed: bool = False


class FileDefiner:
    """Collects the definitions of files; each file that provides blocks is read once."""

    def __init__(
        self, context: Context, library: Library, constants: ConstantEvaluator, arguments: ArgumentBinder
    ) -> None:
        self.context = context
        self.library = library
        self.constants = constants
        self.arguments = arguments
        self._scopes: dict[int, FileScope] = {}
        self._open: list[ast.File] = []

    # --- files -----------------------------------------------------------------------------------

    @contextmanager
    def opened(self, file: ast.File, span: Span | None) -> Generator[None]:
        """Mark a file as open, to detect cycles and long chains of files.

        Args:
            file: The file.
            span: The statement that names it; None for the user's file.

        Raises:
            Reported: The file is open already, or too many files are open.
        """
        self._refuse_cycle(file, span)
        if len(self._open) >= MAX_FILE_DEPTH and span is not None:
            message = f"the nesting of `use` and `extends` exceeds the limit of {MAX_FILE_DEPTH} files"
            raise self.context.reporter.error("E0405", message, span, help="use or extend the last file directly")
        self._open.append(file)
        try:
            yield
        finally:
            self._open.pop()

    def _refuse_cycle(self, file: ast.File, span: Span | None) -> None:
        if span is not None and any(other is file for other in self._open):
            names = [other.source.name for other in (*self._open[self._open.index(file) :], file)]
            message = f"circular include: {' -> '.join(names)}"
            help = "remove one of these includes, or move the shared blocks to a file that includes none of them"
            if len(names) == 2:
                help = "remove this statement, or name another file: a file cannot include itself"
            raise self.context.reporter.error("E0213", message, span, help=help)

    def find(self, path: str, file: ast.File, span: Span) -> ast.File:
        """Read a file that another file names.

        Raises:
            Reported: The file does not exist or cannot be read.
        """
        reporter = self.context.reporter
        found = self.library.find(path, file, span, reporter)
        if found is not None:
            return found
        raise Reported if reporter.failed else reporter.error("E0212", f"cannot read `{path}`", span)

    # --- scopes ----------------------------------------------------------------------------------

    def new_scope(self, file: ast.File) -> FileScope:
        """Return the scope of a file before anything is defined."""
        return FileScope(file, self._find_standard)

    def _find_standard(self, name: str) -> FoundBlock | None:
        found = standard_block(name)
        return (self._scope_of(found[0], None), found[1]) if found else None

    def _scope_of(self, file: ast.File, span: Span | None) -> FileScope:
        """Return the scope of a file that provides blocks."""
        scope = self._scopes.get(id(file))
        if scope is not None:
            self._refuse_cycle(file, span)
            return scope
        with self.opened(file, span):
            scope = self._scopes[id(file)] = self.new_scope(file)
            self.define(file, scope, {}, {})
        return scope

    def define(
        self, file: ast.File, scope: FileScope, given: Mapping[str, Any], inherited: Mapping[str, Any]
    ) -> Definitions:
        """Fill a scope with the definitions of a file; each wrong definition is reported.

        Args:
            file: The file.
            scope: Its scope.
            given: Values for its parameters from outside.
            inherited: The constants of the network that it extends.
        """
        for name, value in inherited.items():
            scope.define(name, value)
        own = Definitions(scope, given, UniqueNames(self.context))
        for statement in file.statements:
            try:
                self._define(statement, own)
            except UnknownShape:
                if isinstance(statement, ast.Let):
                    scope.image_dependent.add(statement.name)
                else:
                    word = "classes" if isinstance(statement, ast.Classes) else "param"
                    self.constants.refuse_image(statement.span, f"`{word}`")
            except Reported:
                if isinstance(statement, (ast.Param, ast.Let)) and statement.name not in scope.constants:
                    scope.define(statement.name, own.declared.get(statement.name, 1))
        for statement in file.statements:
            if isinstance(statement, ast.Default):
                try:
                    self._default(statement, scope)
                except Reported:
                    pass
        return own

    def _define(self, statement: ast.Node, own: Definitions) -> None:
        match statement:
            case ast.Param():
                own.names.add("parameter", statement.name, statement.name_span)
                self._param(statement.name, statement.name_span, statement, None, own)
            case ast.Classes():
                own.names.add_statement("classes", statement.span)
                self._param("classes", statement.span, statement, Type("int"), own)
            case ast.Let():
                own.names.add("value", statement.name, statement.name_span)
                self.context.check_name_limit(len(own.scope.constants), statement.span)
                own.scope.remove(statement.name)
                own.scope.define(statement.name, self.constants.value(statement.value, own.scope))
            case ast.Block():
                self._block(statement, own)
            case ast.Use():
                self.use(statement, own.scope, own.names)
            case _:
                pass

    def _param(
        self, name: str, span: Span, statement: ast.Param | ast.Classes, type_: Type | None, own: Definitions
    ) -> None:
        self.context.check_name_limit(len(own.scope.constants), statement.span)
        value = self.constants.value(statement.value, own.scope, type_, name)
        own.declared[name] = value
        if name in own.given:
            value = self._given_value(name, value, own.given[name], span)
            own.changed |= value != own.declared[name]
        own.scope.define(name, value)

    def _given_value(self, name: str, stated: Any, given: Any, span: Span) -> Any:
        """Convert a value from outside to the type of the stated value."""
        kinds: dict[Any, Any] = {tuple: Size, Fraction: float, Template: str}
        items: tuple[Any, ...] | None = _items(stated)
        kind = kinds.get(type(stated), cast(Any, type(stated)))
        if items is not None:
            kind = tuple[int, ...] if all(isinstance(item, int) for item in items) else tuple[float, ...]
        try:
            value = convert(given, type_of(kind), name, 0)
            return value if items is None else list(value)
        except ExpressionError as error:
            note = f"the value comes from outside this file: `{name}` = {show(given)}"
            help, caption = f"use a value such as {show(stated)}", f"defined as {show(stated)} here"
            reporter = self.context.reporter
            raise reporter.error(error.code, str(error), span, caption=caption, notes=[note], help=help) from None

    def _block(self, statement: ast.Block, own: Definitions) -> None:
        name, span = statement.name, statement.name_span
        own.names.add("block", name, span)
        if name in OPS:
            message = f"invalid block name `{name}`: it is an operator"
            self.context.reporter.error("E0211", message, span, help="choose another name for the block")
        own.scope.blocks[name] = (own.scope, statement)

    def use(self, statement: ast.Use, scope: FileScope, names: UniqueNames) -> None:
        """Import blocks from another file.

        Raises:
            Reported: The file cannot be read.
        """
        try:
            other = self._scope_of(self.find(statement.path, scope.file, statement.path_span), statement.path_span)
        except Reported:
            scope.unavailable.update(name.name for name in statement.names)
            raise
        for name in statement.names:
            found, earlier = other.blocks.get(name.name), scope.blocks.get(name.name)
            if (
                found is None or earlier is None or found[1] is not earlier[1]
            ):  # one block by two paths is one definition
                names.add("block", name.name, name.span)
            if found is not None:
                scope.blocks[name.name] = found
                continue
            help, fixes = respell(name.span, name.name, other.blocks)
            help = help or f"available blocks: {', '.join(f'`{block}`' for block in other.blocks) or 'none'}"
            message = f"`{statement.path}` has no block `{name.name}`"
            self.context.reporter.error("E0201", message, name.span, help=help, fixes=fixes)
            scope.unavailable.add(name.name)

    def _default(self, statement: ast.Default, scope: FileScope) -> None:
        """Set the defaults of a callee."""
        call, reporter = statement.call, self.context.reporter
        if call.callee in scope.unavailable:
            return
        found = scope.find_block(call.callee)
        if found is None and call.callee not in OPS:
            raise misspelt_callee(UnknownCallee(reporter, call.callee, call.callee_span, LocalScope(scope, {})))
        parameters = signature(found[1]) if found else OPS[call.callee].parameters
        site = CallSite(call.callee, call.callee_span, call.args, parameters, scope.local())
        bound = self.arguments.bind(site, complete=False)
        earlier, places = scope.defaults.setdefault(call.callee, {}), self.context.source_map
        for name, expr in bound.items():
            if name in earlier and (first := places[earlier[name].origin]) and (span := places[expr.origin]):
                message, labels = f"multiple values for the argument `{name}`", [Label(first, "first value")]
                reporter.error("E0206", message, span, labels=labels, help="remove one of the two")
        if not bound:
            help = "add an argument, as in `default bn eps=1e-3`"
            if not parameters:
                help = f"remove it: `{call.callee}` takes no arguments"
            reporter.error("E0203", f"`default {call.callee}` has no arguments", statement.span, help=help)
        values = {name: self.constants.default(expr, scope, parameters[name]) for name, expr in bound.items()}
        earlier.update(values)


def _items(value: Any) -> tuple[Any, ...] | None:
    """Return the items of a list, or None for another value."""
    return tuple(value) if type(value) is list else None  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
