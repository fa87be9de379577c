"""Hints for misunderstood joins, created only after the shapes of the branches differ."""

from __future__ import annotations

from collections.abc import Sequence

from cnnspec import ir
from cnnspec.checker.call_stack import CallStack
from cnnspec.checker.environment import Frame, Tensor
from cnnspec.checker.shape_trace import ShapeTrace
from cnnspec.checker.values import ValueEvaluator
from cnnspec.diagnostics import Edit, Fix
from cnnspec.ops import stacked

Branches = Sequence[tuple[ir.Flow, Tensor]]
Hint = tuple[str, list[Fix]]

_MAX_LABELS = 8
"""Labeled branches that are compared with one another."""


def passed_through(flow: ir.Flow) -> ir.In | ir.Reference | None:
    """Return the element of a pipeline that only passes a tensor through."""
    element = flow.elements[0]
    return element if len(flow.elements) == 1 and isinstance(element, (ir.In, ir.Reference)) else None


class JoinHints:
    """Guess how the user misunderstood a join.

    Args:
        values: Evaluates conditions.
        calls: The stack of block calls, and places.
        trace: The operators that led to each branch.
    """

    def __init__(self, values: ValueEvaluator, calls: CallStack, trace: ShapeTrace) -> None:
        self.values, self.calls, self.places, self.trace = values, calls, calls.places, trace

    def guess(self, join: str, branches: Branches, frame: Frame) -> Hint | None:
        """Return the help and the fixes for the first misunderstanding that applies."""
        if self._is_one_pipeline(branches):
            help = f"each statement of `{join}` is a separate branch: to chain statements, put them in `{{ }}`"
            return f"{help} or join them with `|`", []
        if (optional := self._optional_input(branches, frame)) is not None:
            return optional
        help = self._labeled_input(branches, frame) or self._continued_branch(branches)
        return (help, []) if help is not None else None

    def _is_one_pipeline(self, branches: Branches) -> bool:
        """Check whether the branches, each on its own line, look like the steps of one pipeline."""
        lines = {at.line for flow, _ in branches if (at := self.places[flow.origin])}
        calls = [[e.callee if isinstance(e, ir.Call) else None for e in flow.elements] for flow, _ in branches]
        return len(lines) == len(branches) and stacked(calls)

    def _optional_input(self, branches: Branches, frame: Frame) -> Hint | None:
        """Suggest an `if` for `in when ...`, which passes the input through whether or not the condition holds."""
        for flow, _ in branches:
            condition = flow.condition if isinstance(passed_through(flow), ir.In) else None
            if condition is not None and self.values.condition(condition, frame) is False:
                whole, at = self.places.wholes.get(flow.origin), self.places[condition.origin]
                code = f"if {at.text if at else '...'} {{ in }} else {{ nothing }}"
                help = f"`in` passes its input through even if its `when` is false: write `{code}`"
                return help, [Fix(help, (Edit(whole.to(at), code),))] if whole and at else []
        return None

    def _labeled_input(self, branches: Branches, frame: Frame) -> str | None:
        """Explain an `in` that is the tensor that another branch refers to by its label."""
        if not any(isinstance(flow.elements[0], ir.In) and not passed_through(flow) for flow, _ in branches):
            return None
        for label, x in _labeled(branches):
            if frame.entering and x.node == frame.entering.node:
                help = f"`in` is the input of these braces, which is the output of `{label}`"
                if self.calls:
                    return f"{help}: start the block with `x: in`, and write `@x`"
                return f"{help}: use the label of an earlier statement"
        return None

    def _continued_branch(self, branches: Branches) -> str | None:
        """Explain a labeled statement whose input is the other one only because it comes after it."""
        labeled, nodes = _labeled(branches), self.trace.nodes
        for (label, x), (other, y) in ((one, two) for one in labeled for two in labeled):
            path = self.trace.path(y.node, x.node)
            direct = x.node < y.node and path and nodes[path[0]].inputs[0] == x.node
            if direct and all(f".{other}." in f".{nodes[i].path}." for i in path):
                start = "`@x`, and write `x: in` before both" if self.calls else "the label of its intended input"
                reason = f"the input of `{other}` is the output of `{label}`, the statement before it"
                return f"{reason}: start it with {start}"
        return None


def _labeled(branches: Branches) -> list[tuple[str, Tensor]]:
    """Return the labels that branches refer to, with their tensors; only the first few."""
    references = ((passed_through(flow), x) for flow, x in branches)
    return [(found.label, x) for found, x in references if isinstance(found, ir.Reference)][:_MAX_LABELS]
