"""Elaborate blocks, and the statements and elements in their bodies.

No shape is known yet. A wrong statement becomes `Broken`, so that the check can continue after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from cnnspec import ir
from cnnspec.diagnostics import Label, Reported, Span, counted
from cnnspec.ir.evaluate import literal
from cnnspec.limits import MAX_DEPTH
from cnnspec.semantics.arguments import ArgumentBinder
from cnnspec.semantics.blocks import BLOCK_TYPES, check_header, signature
from cnnspec.semantics.calls import CallBinder
from cnnspec.semantics.context import Context, refuse_reserved
from cnnspec.semantics.names import ExpressionResolver
from cnnspec.semantics.scope import REPEAT_INDEX, FileScope, LocalScope
from cnnspec.syntax import ast

_MAX_CALL_DEPTH = 48


class BodyElaborator:
    """Turns blocks and the statements of networks into pieces of a Model.

    Attributes:
        blocks: The blocks that are called, by their key.
    """

    def __init__(self, context: Context, expressions: ExpressionResolver, arguments: ArgumentBinder) -> None:
        self.context = context
        self.expressions = expressions
        self.calls = CallBinder(context, arguments, self)
        self.blocks: dict[str, ir.Block] = {}
        self._keys: dict[int, str] = {}

    # --- blocks ----------------------------------------------------------------------------------

    def key(self, scope: FileScope, block: ast.Block, call: Span | None) -> str:
        """Return the key of a block in the Model; elaborate the block when it is first called.

        Args:
            scope: The scope of its definition.
            block: The block.
            call: The span of the call; None if the block is elaborated only to check it.

        Raises:
            Reported: It calls itself, or blocks call one another too deeply.
        """
        if call is not None:
            self._refuse_recursion(block, call)
        key = self._keys.get(id(block))
        if key is not None:
            return key
        if len(self.context.open_blocks) >= _MAX_CALL_DEPTH and call is not None:
            message = f"the nesting of block calls exceeds the limit of {_MAX_CALL_DEPTH}"
            raise self.context.reporter.error("E0405", message, call, help="merge some of the blocks")
        key = block.name
        while key in self._keys.values():
            key += "_"
        self._keys[id(block)] = key
        with self.context.inside(block, call or block.name_span):
            self.blocks[key] = self._block(scope, block)
        return key

    def elaborate_own_blocks(self, scope: FileScope) -> None:
        """Elaborate the blocks that a file defines, whether they are called or not."""
        for owner, block in list(scope.blocks.values()):
            if owner is scope:
                self.key(owner, block, None)

    def _refuse_recursion(self, block: ast.Block, call: Span) -> None:
        open_blocks = [other for other, _ in self.context.open_blocks]
        start = next((index for index, other in enumerate(open_blocks) if other is block), None)
        if start is None:
            return
        cycle = [other.name for other in (*open_blocks[start:], block)]
        through = f" through {' -> '.join(f'`{name}`' for name in cycle)}" if len(cycle) > 2 else ""
        message = f"block `{block.name}` calls itself{through}"
        labels = [Label(block.name_span, "defined here")]
        help = "use `repeat` to repeat elements: a block cannot be recursive"
        raise self.context.reporter.error("E0210", message, call, labels=labels, help=help)

    def _block(self, scope: FileScope, block: ast.Block) -> ir.Block:
        check_header(block, self.context.reporter)
        parameters, inner = self._parameters(block, scope.local())
        body = self.statements(block.body, inner)
        used = self.context.used_names - {parameter.name for parameter in parameters if parameter.type == "tensor"}
        return ir.Block(
            name=block.name,
            parameters=tuple(parameters),
            body=body,
            constants={name: literal(scope.constants[name]) for name in scope.constants if name in used},
            origin=self.context.source_map.add(block.name_span),
        )

    def _parameters(self, block: ast.Block, scope: LocalScope) -> tuple[list[ir.BlockParameter], LocalScope]:
        """Elaborate the parameters of a block; returns them with the scope of its body."""
        types = {name: parameter.type for name, parameter in signature(block).items()}
        parameters: list[ir.BlockParameter] = []
        for node in block.parameters:
            type_ = types[node.name]
            default = None
            if type_.kind != "tensor" and node.default is not None:
                try:
                    default = self.expressions.resolve(node.default, scope, type_)
                except Reported:
                    default = ir.Expr(kind="name", value="")  # an unknown value
            origin = self.context.source_map.add(node.span)
            try:
                self.context.check_name_limit(len(scope.variables), node.span)
            except Reported:
                break
            kind: Any = type_.kind
            parameter = ir.BlockParameter(name=node.name, type=kind, default=default, once=node.once, origin=origin)
            parameters.append(parameter)
            scope = scope.with_variable(node.name, type_)
        return parameters, scope

    # --- statements ------------------------------------------------------------------------------

    def statements(self, body: Iterable[ast.Statement], scope: LocalScope) -> tuple[ir.Statement, ...]:
        """Elaborate the statements of a body; a wrong one becomes a flow that is `Broken`."""
        out: list[ir.Statement] = []
        for statement in body:
            origin = self.context.source_map.add(statement.span)
            try:
                out.append(self._statement(statement, scope, origin))
            except Reported:
                out.append(self._broken(statement, origin))
            if isinstance(statement, ast.Let):
                scope = scope.with_variable(statement.name)
        return tuple(out)

    def _statement(self, node: ast.Statement, scope: LocalScope, origin: int) -> ir.Statement:
        match node:
            case ast.Let():
                self.context.check_name_limit(len(scope.variables), node.name_span)
                refuse_reserved(self.context.reporter, "value", node.name, node.name_span)
                return ir.Let(name=node.name, value=self.expressions.resolve(node.value, scope), origin=origin)
            case ast.Require():
                holes = self.expressions.holes(node.message, scope) if node.message else ()
                condition = self.expressions.resolve(node.condition, scope, BLOCK_TYPES["bool"])
                message = node.message.value if node.message else None
                return ir.Require(condition=condition, message=message, holes=holes, origin=origin)
            case _:
                return self._flow(node, scope)

    @staticmethod
    def _broken(statement: ast.Statement, origin: int) -> ir.Flow:
        label = statement.label if isinstance(statement, ast.Flow) else None
        return ir.Flow(
            label=label.name if label else None,
            counted=_is_counted(label),
            elements=(ir.Broken(origin=origin),),
            origin=origin,
        )

    def _flow(self, node: ast.Flow, scope: LocalScope) -> ir.Flow:
        """Elaborate a pipeline; each wrong element is reported."""
        elements: list[ir.Element] = []
        failed = False
        for index, element in enumerate(node.elements):
            try:
                self._refuse_misplaced(element, index, node.elements, scope)
                elements.append(self._element(element, scope))
            except Reported:
                failed = True
        truth = BLOCK_TYPES["bool"]
        condition = self.expressions.resolve(node.condition, scope, truth) if node.condition is not None else None
        if failed:
            raise Reported
        label = node.label
        first = node.elements[0]
        span = label.span if label else getattr(first, "callee_span", first.span)
        return ir.Flow(
            label=label.name if label else None,
            counted=_is_counted(label),
            elements=tuple(elements),
            condition=condition,
            origin=self.context.source_map.add(span, node.pipeline_span),
        )

    def _refuse_misplaced(
        self, element: ast.Element, index: int, elements: Sequence[ast.Element], scope: LocalScope
    ) -> None:
        """Refuse an element that ignores its input after another one, and `nothing` next to others."""
        reporter = self.context.reporter
        if index and isinstance(element, (ast.In, ast.Reference)):
            word = "in" if isinstance(element, ast.In) else f"@{element.label}"
            before = elements[0].span.to(elements[index - 1].span)
            message = f"`{word}` after `|` discards the output of the element before it"
            text = " ".join(before.text.split())
            help = f"join both: `concat {{ {text}; {word} }}`, or remove `{text} |`"
            raise reporter.error("E0216", message, element.span, help=help)
        if isinstance(element, ast.Nothing) and len(elements) > 1:
            message, help = (
                "`nothing` must be the only element of its branch",
                "remove the other elements, or `nothing`",
            )
            if not scope.in_join:
                message, help = "`nothing` is not allowed outside a join", "remove `nothing`"
            raise reporter.error("E0216", message, element.span, help=help)

    # --- elements --------------------------------------------------------------------------------

    def _element(self, node: ast.Element, scope: LocalScope) -> ir.Element:
        context = self.context
        if context.depth >= MAX_DEPTH:
            context.too_deep = True
            message = f"the nesting of elements exceeds the limit of {MAX_DEPTH}"
            raise context.reporter.error("E0405", message, node.span, help="nest fewer blocks")
        context.depth += 1
        try:
            return self._one_element(node, scope, context.source_map.add(node.span))
        finally:
            context.depth -= 1

    def _one_element(self, node: ast.Element, scope: LocalScope, origin: int) -> ir.Element:
        match node:
            case ast.Call():
                return self.calls.bind(node, node.args, scope, node.repeat)
            case ast.Braces():
                return ir.Braces(body=self.statements(node.body, scope), origin=origin)
            case ast.Repeat():
                inner = scope
                if node.variable:
                    refuse_reserved(self.context.reporter, "index", node.variable, node.variable_span)
                    inner = scope.with_variable(node.variable, REPEAT_INDEX)
                inner = replace(inner, in_join=False)
                count = self.expressions.resolve(node.count, scope, BLOCK_TYPES["int"])
                body = self.statements(node.body, inner)
                return ir.Repeat(count=count, variable=node.variable, body=body, origin=origin)
            case ast.Join():
                return self._join(node, scope, origin)
            case ast.If():
                return ir.If(
                    condition=self.expressions.resolve(node.condition, scope, BLOCK_TYPES["bool"]),
                    then=self.statements(node.then, scope),
                    otherwise=self.statements(node.otherwise or (), scope),
                    origin=origin,
                )
            case ast.Each():
                return self._each(node, scope, origin)
            case ast.Again():
                module = ir.Reference(label=node.label.label, origin=self.context.source_map.add(node.label.span))
                return ir.Again(module=module, origin=origin)
            case ast.Reference():
                return ir.Reference(label=node.label, origin=origin)
            case ast.In():
                return ir.In(origin=origin)
            case ast.Nothing():
                return ir.Nothing(origin=origin)
            case _:
                raise Reported

    def _join(self, node: ast.Join, scope: LocalScope, origin: int) -> ir.Element:
        if not any(isinstance(statement, ast.Flow) for statement in node.body):
            help = f"write one statement per branch in the braces: `{node.kind} {{ in; conv 3x3 16 }}`"
            raise self.context.reporter.error("E0216", f"`{node.kind}` has no branches", node.span, help=help)
        return ir.Join(join=node.kind, body=self.statements(node.body, replace(scope, in_join=True)), origin=origin)

    def _each(self, node: ast.Each, scope: LocalScope, origin: int) -> ir.Element:
        """Elaborate a table into one call for each row."""
        flows: list[ir.Flow] = []
        for row in node.rows:
            try:
                flows.append(self._row(node, row, scope))
            except Reported:
                pass
        if not node.rows:
            help = "add a row for each call, with one value per column"
            raise self.context.reporter.error("E0203", "`each` table has no rows", node.callee_span, help=help)
        if len(flows) < len(node.rows):
            raise Reported
        return ir.Braces(table=True, body=tuple(flows), origin=origin)

    def _row(self, node: ast.Each, row: ast.Row, scope: LocalScope) -> ir.Flow:
        columns = node.columns
        if len(row.cells) != len(columns):
            message = f"row has {counted(len(row.cells), 'value')}, but the table has {counted(len(columns), 'column')}"
            labels = [Label(columns[0].span.to(columns[-1].span), "columns")]
            help = "write one value per column; put negative values and expressions in parentheses"
            raise self.context.reporter.error("E0205", message, row.span, labels=labels, help=help)
        pairs = zip(columns, row.cells, strict=True)
        cells = [ast.Argument(column.span, column.name, cell) for column, cell in pairs]
        call = self.calls.bind(node, [*cells, *node.args], scope)
        origin = self.context.source_map.add(row.span)
        return ir.Flow(label=row.label, elements=(replace(call, origin=origin),), origin=origin)


def _is_counted(label: ast.LabelName | None) -> bool:
    """Return whether a flow is numbered: `stage1`, `stage2`, ..."""
    return label is not None and label.word and label.name == "stage"
