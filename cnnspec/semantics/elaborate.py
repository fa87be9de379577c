"""Tree to Model: what a file states, what it takes with `use` and `extends`, as one resolved network."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, cast

from cnnspec import ir
from cnnspec.diagnostics import Diagnostic, Label, Reporter, Span, respell
from cnnspec.ir.evaluate import ExpressionError, UnknownShape, convert, literal, show
from cnnspec.limits import MAX_FILE_DEPTH
from cnnspec.ops import OPS
from cnnspec.recipe import Recipe
from cnnspec.schema import Size, Type, type_of
from cnnspec.semantics.blocks import signature
from cnnspec.semantics.loader import Library, standard_block
from cnnspec.semantics.names import Fault, Names, Places
from cnnspec.semantics.overrides import override_all
from cnnspec.semantics.scope import FileScope, FoundBlock
from cnnspec.semantics.sections import Sections
from cnnspec.syntax import RESERVED, ast


@dataclass
class Network:
    """What a file amounts to, with what it extends.

    Attributes:
        declared: Every parameter that can be changed from outside, with its value.
        changed: Whether a parameter has another value than the file states.
        body: Statements of the network, each with the scope of the file it stands in.
    """

    scope: FileScope
    name: str | None = None
    input: ast.Input | None = None
    declared: dict[str, Any] = field(default_factory=dict[str, Any])
    changed: bool = False
    body: list[tuple[FileScope, ast.Statement]] = field(default_factory=list[tuple[FileScope, ast.Statement]])
    aux: list[tuple[FileScope, ast.Aux]] = field(default_factory=list[tuple[FileScope, ast.Aux]])
    inits: list[ir.Init] = field(default_factory=list[ir.Init])
    expects: list[tuple[FileScope, ast.Expect]] = field(default_factory=list[tuple[FileScope, ast.Expect]])
    recipe: Recipe | None = None

    @property
    def is_library(self) -> bool:
        """Whether the file only defines blocks for others."""
        return bool(self.scope.blocks) and not self.body and self.input is None and self.name is None


class _Elaboration(Sections):
    """One run over a file and all that it takes from others."""

    def __init__(self, library: Library, reporter: Reporter) -> None:
        super().__init__(reporter)
        self.library = library
        self._scopes: dict[int, FileScope] = {}
        self._open: list[ast.File] = []

    @contextmanager
    def opened(self, file: ast.File, at: Span | None) -> Generator[None]:
        """Guards against files that take from themselves, and against too long chains of files.

        Raises:
            Fault: This file is open already.
        """
        self.refuse_cycle(file, at)
        if len(self._open) >= MAX_FILE_DEPTH and at is not None:
            self.fail(
                "E0405",
                f"files take from one another deeper than the limit of {MAX_FILE_DEPTH}",
                at,
                help="take from the last one directly",
            )
            raise Fault
        self._open.append(file)
        try:
            yield
        finally:
            self._open.pop()

    def refuse_cycle(self, file: ast.File, at: Span | None) -> None:
        """Reports a file that takes from itself.

        Raises:
            Fault: This file is open already.
        """
        if at is not None and any(other is file for other in self._open):
            names = [other.source.name for other in self._open[self._open.index(file) :]] + [file.source.name]
            self.fail(
                "E0213",
                f"`{file.source.name}` takes from itself: {' -> '.join(names)}",
                at,
                help="move what both need into a third file",
            )
            raise Fault

    def find(self, wanted: str, asking: ast.File, at: Span) -> ast.File:
        file = self.library.find(wanted, asking, at, self.reporter)
        if file is None:
            if not self.reporter.failed:
                self.fail("E0212", f"`{wanted}` cannot be read", at)
            raise Fault
        return file

    # --- scopes ----------------------------------------------------------------------------------

    def find_standard(self, name: str) -> FoundBlock | None:
        found = standard_block(name)
        return (self.scope_of(found[0], None), found[1]) if found else None

    def new_scope(self, file: ast.File) -> FileScope:
        return FileScope(file, self.find_standard)

    def scope_of(self, file: ast.File, at: Span | None) -> FileScope:
        """The scope of a file that only lends its blocks."""
        scope = self._scopes.get(id(file))
        if scope is None:
            with self.opened(file, at):
                scope = self.new_scope(file)
                self._scopes[id(file)] = scope
                self.define(file, scope, {}, {})
        else:
            self.refuse_cycle(file, at)
        return scope

    def define(
        self, file: ast.File, scope: FileScope, given: Mapping[str, Any], inherited: Mapping[str, Any]
    ) -> tuple[dict[str, Any], bool]:
        """Fills a scope with a file's constants, blocks, and defaults.

        Returns:
            The parameters with the values that the file states, and whether one was changed from outside.
        """
        scope.constants.update(inherited)
        seen: dict[tuple[str, str], Span] = {}
        declared: dict[str, Any] = {}
        changed = False
        for statement in file.statements:
            try:
                match statement:
                    case ast.Param() | ast.Classes():
                        self.binder.need_room(Names(scope, scope.constants), statement.span)
                        name = statement.name if isinstance(statement, ast.Param) else "classes"
                        span = statement.name_span if isinstance(statement, ast.Param) else statement.span
                        self.once(seen, "parameter", name, span)
                        value = self.value(statement.value, scope, Type("int") if name == "classes" else None, name)
                        declared[name] = value
                        if name in given:
                            value = self.changed_value(name, value, given[name], span)
                            changed |= value != declared[name]
                        scope.constants[name] = value
                    case ast.Let():
                        self.once(seen, "value", statement.name, statement.name_span)
                        self.binder.need_room(Names(scope, scope.constants), statement.span)
                        scope.constants.pop(statement.name, None)
                        scope.constants[statement.name] = self.value(statement.value, scope)
                    case ast.Block():
                        self.once(seen, "block", statement.name, statement.name_span)
                        if statement.name in OPS or statement.name in RESERVED:
                            help = "choose another name for the block"
                            kind = "an operator" if statement.name in OPS else "a word of the language"
                            self.fail("E0211", f"`{statement.name}` is {kind}", statement.name_span, help=help)
                        scope.blocks[statement.name] = (scope, statement)
                    case ast.Use():
                        self.use(statement, file, scope, seen)
                    case _:
                        pass
            except UnknownShape:
                if isinstance(statement, ast.Let):
                    scope.pending.add(statement.name)
                else:
                    self.fail(
                        "E0207", "`in` has no meaning here", statement.span, help="only a `let` can depend on the image"
                    )
            except Fault:
                if isinstance(statement, (ast.Param, ast.Let)):
                    scope.constants.setdefault(statement.name, declared.get(statement.name, 1))
        for statement in file.statements:
            if isinstance(statement, ast.Default):
                try:
                    self.default(statement, scope)
                except Fault:
                    pass
        return declared, changed

    def changed_value(self, name: str, stated: Any, given: Any, span: Span) -> Any:
        """The value that a parameter is given from outside, in the type of the stated one."""
        kinds: dict[Any, Any] = {tuple: Size, Fraction: float}
        kind = kinds.get(type(stated), cast(Any, type(stated)))
        try:
            return convert(given, type_of(kind), name, 0)
        except ExpressionError as fault:
            note = f"it is given from outside of this file: `{name}` = {show(given)}"
            help = f"give it a value like {show(stated)}"
            self.reporter.add(Diagnostic(fault.code, str(fault), span, f"{show(stated)} here", (), (note,), help))
            raise Fault from None

    def use(self, statement: ast.Use, file: ast.File, scope: FileScope, seen: dict[tuple[str, str], Span]) -> None:
        """Takes blocks from another file.

        Raises:
            Fault: The file cannot be had.
        """
        try:
            other = self.scope_of(self.find(statement.path, file, statement.path_span), statement.path_span)
        except Fault:
            scope.lost.update(name.name for name in statement.names)
            raise
        for name in statement.names:
            self.once(seen, "block", name.name, name.span)
            found = other.blocks.get(name.name)
            if found is None:
                help, fixes = respell(name.span, name.name, other.blocks)
                help = help or f"it has {', '.join(f'`{n}`' for n in other.blocks) or 'none'}"
                message = f"`{statement.path}` has no block `{name.name}`"
                self.fail("E0201", message, name.span, help=help, fixes=fixes)
                scope.lost.add(name.name)
            else:
                scope.blocks[name.name] = found

    def default(self, statement: ast.Default, scope: FileScope) -> None:
        """Sets the defaults of a callee for one file.

        Raises:
            Fault: There is no such callee or argument.
        """
        call = statement.call
        if call.callee in scope.lost:
            return
        found = scope.find_block(call.callee)
        if found is None and call.callee not in OPS:
            known = [*OPS, *scope.block_names()]
            help, fixes = respell(call.callee_span, call.callee, known)
            help = help or "`cnnspec list` shows operators and blocks"
            self.fail("E0201", f"unknown operator or block `{call.callee}`", call.callee_span, help=help, fixes=fixes)
            raise Fault
        parameters = signature(found[1]) if found else OPS[call.callee].parameters
        names = Names(scope, scope.variables())
        bound = self.binder.bind(call.callee, call.args, parameters, names, call.callee_span, complete=False)
        if not bound:
            self.fail(
                "E0203",
                f"`default {call.callee}` sets nothing",
                statement.span,
                help="add an argument, as in `default bn eps=1e-3`",
            )
        values = {name: self.constant(expr, scope, parameters[name], name) for name, expr in bound.items()}
        scope.defaults.setdefault(call.callee, {}).update(values)

    # --- networks --------------------------------------------------------------------------------

    def gather(self, file: ast.File, given: Mapping[str, Any], at: Span | None) -> Network:
        """What a file amounts to, with the values that its parameters are given from outside.

        Raises:
            Fault: It takes from itself, or what it extends cannot be had.
        """
        with self.opened(file, at):
            scope = self.new_scope(file)
            extends = [s for s in file.statements if isinstance(s, ast.Extends)]
            if len(extends) > 1:
                labels = (Label(extends[0].span, "the first one"),)
                self.fail(
                    "E0211",
                    "a file extends one network only",
                    extends[1].span,
                    labels=labels,
                    help="take single blocks with `use`",
                )
            if not extends:
                declared, changed = self.define(file, scope, given, {})
                network = Network(scope, declared=declared, changed=changed)
            else:
                try:
                    network = self.extend(file, extends[0], scope, given)
                except Fault:  # without its network little can be said of the file; but `use` stands for itself
                    self.use_all(file, scope)
                    raise
            return self.state(file, network, scope)

    def use_all(self, file: ast.File, scope: FileScope) -> None:
        """Takes what a file uses, and nothing else, for the faults in it."""
        for statement in file.statements:
            if isinstance(statement, ast.Use):
                try:
                    self.use(statement, file, scope, {})
                except Fault:
                    pass

    def extend(self, file: ast.File, statement: ast.Extends, scope: FileScope, given: Mapping[str, Any]) -> Network:
        """The network that a file extends, under the scope of that file."""
        own = self.new_scope(file)
        quiet, self.reporter, self.binder.reporter = self.reporter, Reporter(), Reporter()
        try:  # the file's own parameters, for the arguments of `extends`; faults are reported by `define` below
            self.define(file, own, given, {})
        finally:
            self.reporter = self.binder.reporter = quiet
        taken: dict[str, Any] = {}
        spans: dict[str, Span] = {}
        for arg in statement.args:
            if arg.name is None:
                self.fail(
                    "E0205", "`extends` takes its arguments by name", arg.span, help="write `n=9` for the parameter `n`"
                )
                continue
            if arg.name in taken:
                self.fail("E0206", f"`{arg.name}` is given twice", arg.span, help="keep one of the two")
            try:
                taken[arg.name], spans[arg.name] = self.value(arg.value, own), arg.span
            except UnknownShape:
                self.no_image(arg.span)
                taken[arg.name] = None
            except Fault:
                taken[arg.name] = None
        for stated in file.statements:  # a parameter that both files have is set by this one
            if isinstance(stated, (ast.Param, ast.Classes)):
                name = stated.name if isinstance(stated, ast.Param) else "classes"
                taken.setdefault(name, own.constants.get(name))
        taken = {name: value for name, value in taken.items() if value is not None}
        base_file = self.find(statement.target, file, statement.target_span)
        base = self.gather(base_file, {**taken, **given}, statement.target_span)
        for name, span in spans.items():
            if name not in base.declared:
                at = Span(span.source, span.start, span.start + len(name))
                help, fixes = respell(at, name, base.declared)
                help = help or (
                    f"it has {', '.join(f'`{n}`' for n in base.declared)}" if base.declared else "it has none"
                )
                self.fail("E0202", f"`{statement.target}` has no parameter `{name}`", at, help=help, fixes=fixes)
        declared, changed = self.define(file, scope, given, dict(base.scope.constants))
        changed |= any(n in given and given[n] != taken.get(n, v) for n, v in base.declared.items())
        for name, found in base.scope.blocks.items():
            scope.blocks.setdefault(name, found)
        scope.lost |= base.scope.lost
        own_blocks = {name: found for name, found in scope.blocks.items() if found[0] is scope}
        base.scope.blocks.update(own_blocks)
        for callee, defaults in scope.defaults.items():
            base.scope.defaults.setdefault(callee, {}).update(defaults)
        return replace(base, scope=scope, declared={**base.declared, **declared, **taken}, changed=changed, name=None)

    def state(self, file: ast.File, network: Network, scope: FileScope) -> Network:
        """Puts what the file states itself in the place of what it took."""
        seen: dict[tuple[str, str], Span] = {}
        body: list[tuple[FileScope, ast.Statement]] = []
        aux: list[tuple[FileScope, ast.Aux]] = []
        expects: list[tuple[FileScope, ast.Expect]] = []
        for statement in file.statements:
            try:
                match statement:
                    case ast.Network():
                        self.once(seen, "network", "", statement.span)
                        network.name = statement.name
                    case ast.Input():
                        self.once(seen, "input", "", statement.span)
                        if 0 in (statement.channels, statement.height, statement.width):
                            self.fail(
                                "E0215",
                                "every size of the input must be at least 1",
                                statement.span,
                                help="write channels x height x width: `3x32x32`",
                            )
                            raise Fault
                        network.input = statement
                    case ast.Let() if statement.name not in scope.constants:
                        body.append((scope, statement))
                    case ast.Flow() | ast.Require():
                        body.append((scope, statement))
                    case ast.Aux():
                        aux.append((scope, statement))
                    case ast.Init():
                        init = self.init(statement, scope)
                        network.inits = [other for other in network.inits if other.target != init.target] + [init]
                    case ast.Expect():
                        expects.append((scope, statement))
                    case ast.Train():
                        self.once(
                            seen,
                            "train",
                            "section",
                            Span(statement.span.source, statement.span.start, statement.span.start + 5),
                        )
                        network.recipe = self.recipe(statement, scope)
                    case _:
                        pass
            except Fault:
                pass
        stated = {statement.metric for _, statement in expects}
        network.expects = [e for e in network.expects if e[1].metric not in stated] + [
            e for e in expects if not (network.changed and is_plain(e[1].value))
        ]
        if any(isinstance(statement, ast.Flow) for _, statement in body):
            network.body, network.aux = body, aux
        else:
            network.body, network.aux = network.body + body, network.aux + aux
        return network

    # --- the model -------------------------------------------------------------------------------

    def model(self, network: Network, file: ast.File, name: str) -> ir.Model | None:
        """The Model of a gathered network, or nothing when it lacks what every network needs."""
        binder = self.binder
        for scope in (network.scope,):
            for owner, block in list(scope.blocks.values()):
                if owner is scope:
                    binder.block(owner, block, None)
        body: list[ir.Statement] = []
        variables: dict[int, Names] = {}
        scopes = {id(scope): scope for scope, statement in network.body if isinstance(statement, ast.Flow)}
        constants = dict(network.scope.constants)
        for scope in scopes.values():
            constants |= scope.constants
        for scope, statement in network.body:
            names = variables.get(id(scope)) or Names(scope, scope.variables())
            body.extend(binder.statements((statement,), names))
            if isinstance(statement, ast.Let):
                names = names.with_variable(statement.name)
            variables[id(scope)] = names
        aux = [built for scope, statement in network.aux if (built := self.aux(scope, statement)) is not None]
        expects = [
            built for scope, statement in network.expects if (built := self.expect(scope, statement)) is not None
        ]
        if file.broken and (network.input is None or not any(isinstance(s, ir.Flow) for s in body)):
            return None  # what is missing may be among what cannot be read
        if not file.statements:
            help = "start with `network NAME`, `input 3x32x32`, and a pipeline: `stem conv 3x3 c=16 | bn | relu`"
            self.reporter.add(Diagnostic("E0108", "the file is empty", file=file.source.name, help=help))
            return None
        if network.input is None and any(isinstance(statement, ast.Input) for statement in file.statements):
            return None
        if network.input is None:
            help = "state the image that goes in, channels x height x width: `input 3x32x32`"
            self.reporter.add(Diagnostic("E0109", "the network has no `input`", file=file.source.name, help=help))
            return None
        if not any(isinstance(statement, ir.Flow) for statement in body):
            self.reporter.add(
                Diagnostic(
                    "E0108",
                    "the network has no layers",
                    file=file.source.name,
                    help="add a pipeline: `stem conv 3x3 c=16 | bn | relu`",
                )
            )
            return None
        return ir.Model.model_construct(
            name=network.name or name,
            input=(network.input.channels, network.input.height, network.input.width),
            constants={name: literal(value) for name, value in constants.items()},
            blocks=binder.blocks,
            body=tuple(body),
            aux=tuple(aux),
            inits=tuple(network.inits),
            expects=tuple(expects),
            recipe=network.recipe or Recipe.model_construct(),
            origin=binder.places.add(network.input.span),
        )


def is_plain(node: ast.Expr) -> bool:
    """Whether an expected figure is a plain number, which only holds for the file's own parameters."""
    return isinstance(node, (ast.Number, ast.Figure))


def elaborate(
    file: ast.File, library: Library, given: Mapping[str, Any], name: str, reporter: Reporter
) -> tuple[ir.Model | None, Places]:
    """The Model of a file, or nothing; faults go to `report`.

    Args:
        file: The tree of the file.
        library: Where it finds other files.
        given: Values for its parameters from outside.
        name: The network's name where the file states none.
        reporter: Takes the diagnostics.

    Returns:
        The Model, which may hold `Broken` pieces, and the places of its pieces. A file that only
        defines blocks has no Model and no fault.
    """
    run = _Elaboration(library, reporter)
    try:
        network = run.gather(file, given, None)
        other = {key: value for key, value in given.items() if key not in network.declared}
        if other and not file.broken:
            network.recipe = override_all(
                network.recipe or Recipe.model_construct(), other, network.declared, file.source.name, reporter
            )
        if network.recipe is not None:
            run.contradicted(network.recipe, file.source.name)
        if network.is_library and not given:
            for owner, block in network.scope.blocks.values():
                if owner is network.scope:
                    run.binder.block(owner, block, None)
            return None, run.binder.places
        model = run.model(network, file, name)
        return None if run.binder.too_deep else model, run.binder.places  # or it would be told twice
    except Fault:
        return None, run.binder.places
