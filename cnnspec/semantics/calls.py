"""Bind calls to operators, blocks, and parameters that hold an operator."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from cnnspec import ir
from cnnspec.diagnostics import Label, Reported, Span
from cnnspec.ops import OPS
from cnnspec.schema import Parameter
from cnnspec.semantics.arguments import ArgumentBinder
from cnnspec.semantics.blocks import signature
from cnnspec.semantics.call_hints import UnknownCallee, unknown_callee
from cnnspec.semantics.call_site import CallSite
from cnnspec.semantics.context import Context
from cnnspec.semantics.scope import FileScope, LocalScope
from cnnspec.syntax import ast


class BlockTable(Protocol):
    """Elaborates blocks when they are first called."""

    def key(self, scope: FileScope, block: ast.Block, call: Span | None) -> str:
        """Return the key of a block in the Model."""
        ...


class CallBinder:
    """Binds calls; elaborates the blocks that they call.

    Args:
        context: The state of the elaboration.
        arguments: Binds the arguments.
        blocks: Elaborates the blocks that are called.
    """

    def __init__(self, context: Context, arguments: ArgumentBinder, blocks: BlockTable) -> None:
        self.context = context
        self.arguments = arguments
        self.blocks = blocks
        self._signatures: dict[int, Mapping[str, Parameter]] = {}

    def bind(
        self, node: ast.Call | ast.Each, args: Sequence[ast.Argument], scope: LocalScope, repeat: int | None = None
    ) -> ir.Call:
        """Bind a call.

        Args:
            node: The call, or the table whose row it is.
            args: Its arguments.
            scope: The names that they can use.
            repeat: The count of `x3` after the callee.

        Raises:
            Reported: The callee is unknown or an argument is wrong.
        """
        callee, span = node.callee, node.callee_span
        key, variable, parameters = self._callee(callee, span, args, scope)
        site = CallSite(callee, span, args, parameters, scope, repeatable=True)
        bound = self.arguments.bind(site, complete=not variable)
        count = bound.pop("repeat", None)
        if repeat is not None:
            if count is not None:
                given = next(arg for arg in args if arg.name == "repeat")
                help = f"keep either `x{repeat}` or `{given.span.text}`"
                labels = [Label(self._times(repeat, span), "first value")]
                message = "multiple values for the argument `repeat`"
                raise self.context.reporter.error("E0206", message, given.span, labels=labels, help=help)
            count = self._repeat(repeat, span)
        name = bound.pop("name", None)
        origin = self.context.source_map.add(span, node.span)
        return ir.Call(callee=key, variable=variable, args=bound, repeat=count, name=name, origin=origin)

    def _callee(
        self, callee: str, span: Span, args: Sequence[ast.Argument], scope: LocalScope
    ) -> tuple[str, bool, Mapping[str, Parameter]]:
        """Return the key of a callee, whether it is a variable, and its parameters."""
        if callee in scope.variables:
            type_ = scope.variables[callee]
            if type_ is None or type_.kind == "op":
                self.context.used_names.add(callee)
                return callee, True, {}
        if callee in scope.file.unavailable:
            raise Reported
        found = scope.file.find_block(callee)
        if found is not None:
            key = self.blocks.key(*found, span)
            return key, False, self._signature(found[1])
        if callee in OPS:
            return callee, False, OPS[callee].parameters
        raise unknown_callee(UnknownCallee(self.context.reporter, callee, span, scope, args))

    def _signature(self, block: ast.Block) -> Mapping[str, Parameter]:
        known = self._signatures.get(id(block))
        if known is None:
            known = self._signatures[id(block)] = signature(block)
        return known

    def _repeat(self, repeat: int, span: Span) -> ir.Expr:
        return ir.Expr(kind="number", value=repeat, origin=self.context.source_map.add(self._times(repeat, span)))

    @staticmethod
    def _times(repeat: int, callee: Span) -> Span:
        """Return the span of the repeat count after a callee."""
        written = re.compile(r"\s*").match(callee.source.text, callee.end)
        start = written.end() if written else callee.end
        return Span(callee.source, start, start + 1 + len(str(repeat)))
