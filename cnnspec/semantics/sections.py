"""Read the statements next to the network: `init`, `expect`, `aux`, and `output`."""

from __future__ import annotations

from dataclasses import replace

from cnnspec import ir
from cnnspec.diagnostics import Edit, Fix, Label, Reporter, Span, respell
from cnnspec.diagnostics.suggestions import Site, describe, fixes_of
from cnnspec.ir.evaluate import UnknownShape, literal
from cnnspec.ops import FOREIGN_NAMES, OPS
from cnnspec.ops.inits import INITS, allowed_inits
from cnnspec.schema import Parameter, Type
from cnnspec.semantics.bodies import BodyElaborator
from cnnspec.semantics.call_site import CallSite
from cnnspec.semantics.constants import ConstantEvaluator
from cnnspec.semantics.context import SourceMap
from cnnspec.semantics.name_hints import EXPECTED
from cnnspec.semantics.scope import FileScope
from cnnspec.semantics.train_section import spans_of_values
from cnnspec.syntax import RESERVED, ast

_METRICS = ("params", "macs", "output", "depth")
_AUX_PARAMETERS = {"weight": Parameter("weight", Type("float"), None)}


def read_init(statement: ast.Init, scope: FileScope, constants: ConstantEvaluator) -> ir.Init:
    """Read an `init` statement.

    Raises:
        Reported: Its operator or scheme is wrong.
    """
    reporter, call = constants.context.reporter, statement.scheme
    if statement.target_span.line != call.callee_span.line and call.callee in (*RESERVED, *OPS):
        end = statement.target_span.end
        help = "write an operator and an initialization: `init conv kaiming_normal`"
        span = Span(statement.span.source, end, end)
        message = f"unexpected end of line after `init {statement.target}`"
        raise reporter.error("E0101", message, span, help=help)
    _check_target(statement, reporter)
    scheme = constants.choice(call, INITS, "initialization", scope)
    allowed = allowed_inits(statement.target)
    if scheme.name not in allowed:
        message = f"`{scheme.name}` cannot initialize the weights of `{statement.target}`"
        help = f"choose from {', '.join(f'`{name}`' for name in allowed)}"
        raise reporter.error("E0215", message, call.callee_span, help=help)
    if refused := INITS[scheme.name](**scheme.args).refused():
        message, suggestion = refused
        fixes = fixes_of(suggestion, Site(values=spans_of_values(call, INITS[scheme.name])))
        raise reporter.error("E0215", message, call.span, help=describe(suggestion), fixes=fixes)
    return ir.Init(target=statement.target, scheme=scheme, origin=constants.context.source_map.add(statement.span))


def _check_target(statement: ast.Init, reporter: Reporter) -> None:
    target, span = statement.target, statement.target_span
    targets = [name for name, op in OPS.items() if "init" in op.parameters and op.parameters["init"].type.words]
    if target in targets:
        return
    message = f"`{target}` has no weights to initialize" if target in OPS else f"unknown operator `{target}`"
    help, fixes = respell(span, target, targets)
    own = FOREIGN_NAMES.get(target, "").split(" ")[0]
    if own in targets:
        help = f"write `{own}`"
        fixes = (Fix(help, (Edit(span, own),), certain=True),)
    help = help or f"choose from {', '.join(f'`{name}`' for name in targets)}"
    raise reporter.error("E0201", message, span, help=help, fixes=fixes)


def read_expect(statement: ast.Expect, scope: FileScope, constants: ConstantEvaluator) -> ir.Expect:
    """Read an `expect` statement.

    Raises:
        Reported: Its metric or value is wrong.
    """
    metric, whole = statement.metric, statement.span
    if metric not in _METRICS and not metric.startswith("output."):
        span = statement.metric_span
        help, fixes = respell(span, metric, _METRICS)
        help = help or f"choose from {', '.join(f'`{name}`' for name in _METRICS)}"
        raise constants.context.reporter.error("E0201", f"unknown metric `{metric}`", span, help=help, fixes=fixes)
    try:
        expr = constants.expressions.resolve(statement.value, scope.top_level(), use=EXPECTED)
        value = replace(literal(constants.evaluate(expr, scope)), origin=expr.origin)
    except UnknownShape:
        raise constants.refuse_image(whole, "`expect`") from None
    return ir.Expect(
        metric=metric,
        relation=statement.relation,  # type: ignore[arg-type]
        value=value,
        within=statement.within,
        origin=constants.context.source_map.add(whole),
    )


def read_aux(statement: ast.Aux, scope: FileScope, bodies: BodyElaborator) -> ir.Aux:
    """Read an `aux` section.

    Raises:
        Reported: An argument is wrong.
    """
    local = scope.local()
    site = CallSite("aux", statement.span, statement.args, _AUX_PARAMETERS, local)
    weight = bodies.calls.arguments.bind(site).get("weight") or literal(1.0)
    origin = bodies.context.source_map.add(statement.label.span)
    return ir.Aux(
        name=statement.name,
        source=statement.label.label,
        weight=weight,
        body=bodies.statements(statement.body, local),
        origin=origin,
    )


def read_output(statement: ast.Output, reporter: Reporter, source_map: SourceMap, aux: Span | None) -> ir.Output:
    """Read an `output` statement.

    Args:
        statement: The statement.
        reporter: Receives the errors.
        source_map: Takes its span.
        aux: An auxiliary head of the network.

    Raises:
        Reported: The network has auxiliary heads.
    """
    if aux is not None:
        message = "a network with `output` statements cannot have auxiliary heads"
        help = "write the layers of the head as part of the network, and return their result with `output`"
        raise reporter.error("E0312", message, statement.span, labels=[Label(aux, "auxiliary head")], help=help)
    origin = source_map.add(statement.label.span)
    return ir.Output(name=statement.name, source=statement.label.label, origin=origin)
