"""Limits on the work of an expansion."""

from __future__ import annotations

from collections.abc import Sized

from cnnspec import ir
from cnnspec.checker.call_stack import CallStack
from cnnspec.diagnostics import Reporter
from cnnspec.limits import MAX_DEPTH, MAX_EVALUATIONS, MAX_NODES, MAX_STEPS


class Budget:
    """Counts elements, terms of expressions and nesting; every method raises `Reported` above its limit.

    Args:
        reporter: Receives the errors.
        calls: Locates the errors.
        nodes: The operators so far.
        max_steps: The limit on elements, if lower than `MAX_STEPS`.
    """

    def __init__(self, reporter: Reporter, calls: CallStack, nodes: Sized, max_steps: int | None = None) -> None:
        self._reporter, self._calls, self._nodes = reporter, calls, nodes
        self._max_steps = min(max_steps or MAX_STEPS, MAX_STEPS)
        self._steps = self._depth = self._terms = 0
        self._terms_of: dict[int, int] = {}

    def step(self, origin: int) -> None:
        """Count an element or an iteration of a repeat."""
        self._steps += 1
        many = len(self._nodes) > MAX_NODES
        if many or self._steps > self._max_steps:
            limit = f"{MAX_NODES:,} operators" if many else f"{self._max_steps:,} elements and repeat iterations"
            message = f"the network exceeds the limit of {limit}"
            raise self._reporter.error("E0404", message, **self._calls.locate(origin), help="reduce the repeat counts")

    def enter(self, origin: int) -> None:
        """Count an element and enter it."""
        self.step(origin)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._reporter.error(
                "E0405",
                f"the nesting of elements exceeds the limit of {MAX_DEPTH}",
                **self._calls.locate(origin),
                help="nest fewer block calls",
            )

    def leave(self) -> None:
        """Leave an element."""
        self._depth -= 1

    def evaluate(self, expr: ir.Expr) -> None:
        """Count the terms of an expression; a literal or a name is free."""
        if expr.parts:
            terms = self._terms_of.get(id(expr))
            if terms is None:
                terms = self._terms_of[id(expr)] = _count_terms(expr)
            self.spend_terms(terms, expr.origin)

    def spend_terms(self, terms: int, origin: int) -> None:
        """Count evaluated terms."""
        self._terms += terms
        if self._terms > MAX_EVALUATIONS:
            raise self._reporter.error(
                "E0404",
                f"the network exceeds the limit of {MAX_EVALUATIONS:,} evaluated expression terms",
                **self._calls.locate(origin),
                help="compute values once, with `let` outside the `repeat`",
            )


def _count_terms(expr: ir.Expr) -> int:
    return 1 + sum(map(_count_terms, expr.parts))
