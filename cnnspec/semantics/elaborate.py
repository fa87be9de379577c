"""Turn the syntax tree of a file into a Model, together with the files that it uses and extends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cnnspec import ir
from cnnspec.diagnostics import Label, Reported, Reporter, Span, respell
from cnnspec.ir.evaluate import UnknownShape, literal
from cnnspec.recipe import Recipe
from cnnspec.semantics.arguments import ArgumentBinder
from cnnspec.semantics.blocks import labels_of
from cnnspec.semantics.bodies import BodyElaborator
from cnnspec.semantics.constants import ConstantEvaluator
from cnnspec.semantics.context import Context, SourceMap
from cnnspec.semantics.definitions import FileDefiner, UniqueNames
from cnnspec.semantics.loader import Library
from cnnspec.semantics.names import ExpressionResolver
from cnnspec.semantics.overrides import override_all
from cnnspec.semantics.scope import FileScope, LocalScope
from cnnspec.semantics.sections import read_aux, read_expect, read_init, read_output
from cnnspec.semantics.train_section import TrainReader
from cnnspec.syntax import ast


@dataclass
class Network:
    """The network of a file, including what it extends.

    Attributes:
        inputs: Its images; several have names.
        declared: Every parameter that can be set from outside, with its value.
        changed: Whether a parameter has another value than the file states.
        body: The statements of the network, each with the scope of its file.
    """

    scope: FileScope
    name: str | None = None
    inputs: Sequence[ast.Input] = ()
    declared: dict[str, Any] = field(default_factory=dict[str, Any])
    changed: bool = False
    body: list[tuple[FileScope, ast.Statement]] = field(default_factory=list[tuple[FileScope, ast.Statement]])
    aux: list[tuple[FileScope, ast.Aux]] = field(default_factory=list[tuple[FileScope, ast.Aux]])
    outputs: list[ast.Output] = field(default_factory=list[ast.Output])
    inits: list[ir.Init] = field(default_factory=list[ir.Init])
    expects: list[tuple[FileScope, ast.Expect]] = field(default_factory=list[tuple[FileScope, ast.Expect]])
    recipe: Recipe | None = None

    @property
    def is_library(self) -> bool:
        """Whether the file only defines blocks for others."""
        return bool(self.scope.blocks) and not self.body and not self.inputs and self.name is None


class Elaborator:
    """Elaborates one file and the files that it uses and extends."""

    def __init__(self, library: Library, reporter: Reporter) -> None:
        self.context = context = Context(reporter)
        expressions = ExpressionResolver(context)
        arguments = ArgumentBinder(context, expressions)
        self.constants = ConstantEvaluator(context, expressions, arguments)
        self.files = FileDefiner(context, library, self.constants, arguments)
        self.bodies = BodyElaborator(context, expressions, arguments)
        self.train = TrainReader(context, self.constants, library)

    # --- networks --------------------------------------------------------------------------------

    def gather(self, file: ast.File, given: Mapping[str, Any], span: Span | None) -> Network:
        """Gather the network of a file.

        Args:
            file: The file.
            given: Values for its parameters from outside.
            span: The statement that names the file; None for the user's file.

        Raises:
            Reported: The file extends itself, or a file that it extends cannot be read.
        """
        with self.files.opened(file, span):
            scope = self.files.new_scope(file)
            extends = [statement for statement in file.statements if isinstance(statement, ast.Extends)]
            if len(extends) > 1:
                message = "`extends` is defined multiple times"
                help = "keep only one `extends`; `use` imports individual blocks from another file"
                labels = [Label(extends[0].span, "first defined here")]
                self.context.reporter.error("E0211", message, extends[1].span, labels=labels, help=help)
            if not extends:
                own = self.files.define(file, scope, given, {})
                network = Network(scope, declared=own.declared, changed=own.changed)
            else:
                try:
                    network = self._extend(file, extends[0], scope, given)
                except Reported:  # without the base network only `use` can be checked
                    self._use_all(file, scope)
                    raise
            return self._state(file, network, scope)

    def _use_all(self, file: ast.File, scope: FileScope) -> None:
        """Check the `use` statements of a file."""
        for statement in file.statements:
            if isinstance(statement, ast.Use):
                try:
                    self.files.use(statement, scope, UniqueNames(self.context))
                except Reported:
                    pass

    def _extend(self, file: ast.File, statement: ast.Extends, scope: FileScope, given: Mapping[str, Any]) -> Network:
        """Return the network that a file extends, with the scope of that file."""
        taken, spans = self._arguments_of_extends(file, statement, given)
        base_file = self.files.find(statement.target, file, statement.target_span)
        extended_by = self.context.reporter.extended_by
        origin = statement.span if taken else extended_by.get(id(file.source))
        if origin is not None:
            extended_by[id(base_file.source)] = origin
        base = self.gather(base_file, {**taken, **given}, statement.target_span)
        for name, span in spans.items():
            if name not in base.declared:
                self._unknown_parameter(statement, name, span, base)
        self._refuse_same_parameters(file, statement, base)
        own = self.files.define(file, scope, given, dict(base.scope.constants))
        changed = own.changed or any(n in given and given[n] != taken.get(n, v) for n, v in base.declared.items())
        _merge_scopes(base.scope, scope)
        declared = {**base.declared, **own.declared, **taken}
        return replace(base, scope=scope, declared=declared, changed=changed, name=None)

    def _arguments_of_extends(
        self, file: ast.File, statement: ast.Extends, given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Span]]:
        """Return the values that a file gives the parameters of its base, and the spans of those by argument."""
        own = self.files.new_scope(file)
        with self.context.quiet():  # the file's own parameters; `_extend` defines them again
            self.files.define(file, own, given, {})
        values: dict[str, Any] = {}
        spans: dict[str, Span] = {}
        reporter = self.context.reporter
        for arg in statement.args:
            if arg.span.start == statement.target_span.end:  # `resnet-18`, which is reported as an unknown file
                continue
            if arg.name is None:
                help = f"write the name of the parameter before the value, as in `n={arg.span.text}`"
                reporter.error("E0205", "`extends` takes keyword arguments only", arg.span, help=help)
                continue
            if arg.name in values:
                message = f"multiple values for the argument `{arg.name}`"
                labels = [Label(spans[arg.name], "first value")] if arg.name in spans else []
                reporter.error("E0206", message, arg.span, labels=labels, help="remove one of the two")
            try:
                values[arg.name], spans[arg.name] = self.constants.value(arg.value, own), arg.span
            except UnknownShape:
                self.constants.refuse_image(arg.span, "`extends`")
                values[arg.name] = None
            except Reported:
                values[arg.name] = None
        if any(isinstance(stated, ast.Classes) for stated in file.statements):
            values.setdefault("classes", own.constants.get("classes"))
        return {name: value for name, value in values.items() if value is not None}, spans

    def _unknown_parameter(self, statement: ast.Extends, name: str, arg: Span, base: Network) -> None:
        span = Span(arg.source, arg.start, arg.start + len(name))
        help, fixes = respell(span, name, base.declared)
        help = help or f"available parameters: {', '.join(f'`{other}`' for other in base.declared) or 'none'}"
        message = f"`{statement.target}` has no parameter `{name}`"
        self.context.reporter.error("E0202", message, span, help=help, fixes=fixes)

    def _refuse_same_parameters(self, file: ast.File, statement: ast.Extends, base: Network) -> None:
        """Report parameters of the base that a file defines again, unless it passes them on: `extends base n=n`."""
        for own in file.statements:
            if not isinstance(own, ast.Param) or own.name not in base.declared:
                continue
            given = next((arg.value for arg in statement.args if arg.name == own.name), None)
            if given is None or all(not isinstance(e, ast.Name) or e.name != own.name for e in given.walk()):
                message = f"`{statement.target}` already defines the parameter `{own.name}`"
                help = f"pass the value: `{statement.span.text} {own.name}={own.value.span.text}`"
                if given is not None:
                    help = f"remove it, or pass its value: `{own.name}={own.name}`"
                labels = [Label(statement.target_span, "also defined in this network")]
                self.context.reporter.error("E0211", message, own.name_span, labels=labels, help=help)

    def _state(self, file: ast.File, network: Network, scope: FileScope) -> Network:
        """Replace what a network has from its base by what the file states itself."""
        names, own = UniqueNames(self.context), Network(scope)
        for statement in file.statements:
            try:
                self._state_one(statement, network, own, names)
            except Reported:
                pass
        stated = {statement.metric for _, statement in own.expects}
        network.inputs = self._inputs(own.inputs) if own.inputs else network.inputs
        replaced = any(isinstance(statement, ast.Flow) for _, statement in own.body)
        kept = [expect for expect in network.expects if expect[1].metric not in stated]
        if own.outputs or (replaced and network.outputs):
            network.outputs = own.outputs
            kept = [expect for expect in kept if expect[1].metric.partition(".")[0] != "output"]
        network.expects = kept + [e for e in own.expects if not (network.changed and is_plain(e[1].value))]
        network.body = own.body if replaced else network.body + own.body
        network.aux = own.aux if replaced else network.aux + own.aux
        return network

    def _state_one(self, statement: ast.Node, network: Network, own: Network, names: UniqueNames) -> None:
        """Apply one statement: single values to `network`, the others to the lists of `own`."""
        scope = own.scope
        match statement:
            case ast.Network():
                names.add_statement("network", statement.span)
                network.name = statement.name
            case ast.Input():
                own.inputs = [*own.inputs, statement]
            case ast.Let() if statement.name not in scope.constants:
                own.body.append((scope, statement))
            case ast.Flow() | ast.Require():
                own.body.append((scope, statement))
            case ast.Aux():
                own.aux.append((scope, statement))
            case ast.Output():
                names.add_statement(f"output {statement.name}", statement.span)
                own.outputs.append(statement)
            case ast.Init():
                names.add_statement(f"init {statement.target}", statement.span)
                init = read_init(statement, scope, self.constants)
                network.inits = [other for other in network.inits if other.target != init.target] + [init]
            case ast.Expect():
                own.expects.append((scope, statement))
            case ast.Train():
                start = statement.span.start
                names.add_statement("train", Span(statement.span.source, start, start + len("train")))
                network.recipe = self.train.read(statement, scope)
            case _:
                pass

    def _inputs(self, inputs: Sequence[ast.Input]) -> Sequence[ast.Input]:
        """Return the images of a file: one, or several with names and one size. After an error, return none."""
        reporter, names, first = self.context.reporter, UniqueNames(self.context), inputs[0]
        before = len(reporter.diagnostics)
        for one in inputs:
            if 0 in (one.channels, one.height, one.width):
                message, help = "channels, height and width of `input` must be at least 1", "`input 3x32x32`"
                reporter.error("E0215", message, one.span, help=f"write channels x height x width: {help}")
            if one is not first and None in (one.name, first.name):
                labels, help = [Label(first.span, "first defined here")], f"`input left {first.span.text}`"
                message, help = "`input` is defined multiple times", f"keep one, or name every image, as in {help}"
                reporter.error("E0211", message, one.span, labels=labels, help=help)
                break
            if one.name is not None and one.name_span is not None:
                names.add("image", one.name, one.name_span)
            sizes = [f"{image.height}x{image.width}" for image in (one, first)]
            if sizes[0] != sizes[1]:
                message = f"the images `{one.name}` and `{first.name}` have different sizes: {' and '.join(sizes)}"
                help = "use one height and width for all images, and `upsample` or a pooling for maps of other sizes"
                reporter.error("E0215", message, one.span, labels=[Label(first.span, "first image")], help=help)
        return inputs if len(reporter.diagnostics) == before else ()

    # --- the model -------------------------------------------------------------------------------

    def model(self, network: Network, file: ast.File, name: str) -> ir.Model | None:
        """Build the Model of a network; None if the network has no input or no layers."""
        self.bodies.elaborate_own_blocks(network.scope)
        body = self._body(network)
        aux: list[ir.Aux] = []
        for scope, statement in network.aux:
            try:
                aux.append(read_aux(statement, scope, self.bodies))
            except Reported:
                pass
        outputs: list[ir.Output] = []
        head = next((statement.label.span for _, statement in network.aux), None)
        for statement in network.outputs:
            try:
                outputs.append(read_output(statement, self.context.reporter, self.context.source_map, head))
            except Reported:
                break  # the others have the same error
        expects: list[ir.Expect] = []
        for scope, statement in network.expects:
            try:
                expects.append(read_expect(statement, scope, self.constants))
            except Reported:
                pass
        has_layers = any(isinstance(statement, ir.Flow) for statement in body)
        if not network.inputs or not has_layers:
            self._incomplete(network, file)
            return None
        constants = dict(network.scope.constants)
        for scope in {id(scope): scope for scope, node in network.body if isinstance(node, ast.Flow)}.values():
            constants |= scope.constants
        return ir.Model.model_construct(
            name=network.name or name,
            input=(sum(one.channels for one in network.inputs), network.inputs[0].height, network.inputs[0].width),
            images=self._images(network),
            constants={name: literal(value) for name, value in constants.items()},
            blocks=self.bodies.blocks,
            body=tuple(body),
            aux=tuple(aux),
            outputs=tuple(outputs),
            inits=tuple(network.inits),
            expects=tuple(expects),
            recipe=network.recipe or Recipe.model_construct(),
            origin=self.context.source_map.add(network.inputs[0].span),
        )

    def _images(self, network: Network) -> tuple[ir.Image, ...]:
        """Return the images with a name; a label of the network cannot have the same name."""
        spans = {one.name: one.name_span for one in network.inputs if one.name and one.name_span}
        for label, place in labels_of(statement for _, statement in network.body) if spans else ():
            if label in spans:
                message, labels = f"the label `{label}` has the name of an image", [Label(spans[label], "image")]
                self.context.reporter.error("E0209", message, place, labels=labels, help="rename one of them")
        origins = map(self.context.source_map.add, spans.values())
        named = zip(network.inputs, spans, origins, strict=False)
        return tuple(ir.Image(name=name, channels=one.channels, origin=origin) for one, name, origin in named)

    def _body(self, network: Network) -> list[ir.Statement]:
        body: list[ir.Statement] = []
        scopes: dict[int, LocalScope] = {}
        for file_scope, statement in network.body:
            scope = scopes.get(id(file_scope)) or file_scope.local()
            body.extend(self.bodies.statements((statement,), scope))
            if isinstance(statement, ast.Let):
                scope = scope.with_variable(statement.name)
            scopes[id(file_scope)] = scope
        return body

    def _incomplete(self, network: Network, file: ast.File) -> None:
        """Report a network without an input or without layers."""
        reporter, name = self.context.reporter, file.source.name
        if file.broken:
            return  # the missing part may be among what could not be parsed
        if not file.statements:
            help = "write `input 3x32x32`, and layers such as `stem conv 3x3 16 | bn | relu`"
            reporter.error("E0108", "the file is empty", file=name, help=help)
        elif network.inputs:
            help = "add layers, such as `stem conv 3x3 16 | bn | relu`"
            reporter.error("E0108", "the network has no layers", file=name, help=help)
        elif not any(isinstance(statement, ast.Input) for statement in file.statements):
            help = "add the input shape, channels x height x width: `input 3x32x32`"
            reporter.error("E0109", "the network has no `input`", file=name, help=help)


def _merge_scopes(base: FileScope, scope: FileScope) -> None:
    """Let a file use the blocks of its base, and the base the blocks and defaults of the file."""
    for name, found in base.blocks.items():
        scope.blocks.setdefault(name, found)
    scope.unavailable |= base.unavailable
    base.blocks.update({name: found for name, found in scope.blocks.items() if found[0] is scope})
    for callee, defaults in scope.defaults.items():
        base.defaults.setdefault(callee, {}).update(defaults)


def is_plain(node: ast.Expr) -> bool:
    """Return whether an expected value is a plain number, which holds only for the file's own parameters."""
    return isinstance(node, (ast.Number, ast.Figure))


def elaborate(
    file: ast.File, library: Library, given: Mapping[str, Any], name: str, reporter: Reporter
) -> tuple[ir.Model | None, SourceMap]:
    """Elaborate a file.

    Args:
        file: The syntax tree of the file.
        library: Finds other files.
        given: Values for its parameters from outside.
        name: The name of the network if the file states none.
        reporter: Takes the diagnostics.

    Returns:
        The Model, which may have `Broken` pieces, and the spans of its pieces. The Model is None after an
        error that leaves no network, and without an error for a file that only defines blocks.
    """
    run = Elaborator(library, reporter)
    source_map = run.context.source_map
    try:
        network = run.gather(file, given, None)
        other = {key: value for key, value in given.items() if key not in network.declared}
        if other and not file.broken:
            recipe = network.recipe or Recipe.model_construct()
            network.recipe = override_all(recipe, other, network.declared, file.source.name, reporter)
        if network.recipe is not None:
            run.train.check(network.recipe, file.source.name)
        if network.is_library and not given:
            run.bodies.elaborate_own_blocks(network.scope)
            return None, source_map
        model = run.model(network, file, name)
        return None if run.context.too_deep else model, source_map  # the check would report it again
    except Reported:
        return None, source_map
