"""Hints for misunderstood joins, created only after the shapes of the branches differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cnnspec import ir
from cnnspec.checker.call_stack import CallStack
from cnnspec.checker.environment import Frame, Tensor
from cnnspec.checker.shape_trace import ShapeTrace
from cnnspec.checker.values import ValueEvaluator
from cnnspec.diagnostics import Edit, Fix, Span
from cnnspec.ops import stacked

Branches = Sequence[tuple[ir.Flow, Tensor]]
Hint = tuple[str, list[Fix]]

USE_BLOCK_INPUT = "to use the input of the block, write `x: in` as the first statement of the block and `@x` {place}"
"""Help for an `in` that is not the input of the block."""
_MAX_LABELS = 8
"""Labeled branches that are compared with one another."""


def passed_through(flow: ir.Flow) -> ir.In | ir.Reference | None:
    """Return the element of a pipeline that only passes a tensor through."""
    element = flow.elements[0]
    return element if len(flow.elements) == 1 and isinstance(element, (ir.In, ir.Reference)) else None


class JoinHints:
    """Guess how the user misunderstood a join.

    Args:
        model: The Model.
        values: Evaluates conditions.
        calls: The stack of block calls, with the source map.
        trace: The operators that led to each branch.
    """

    def __init__(self, model: ir.Model, values: ValueEvaluator, calls: CallStack, trace: ShapeTrace) -> None:
        self.model = model
        self.values, self.calls, self.source_map, self.trace = values, calls, calls.source_map, trace

    def guess(self, join: str, branches: Branches, frame: Frame) -> Hint | None:
        """Return the help and the fixes for the first misunderstanding that applies."""
        if self._is_one_pipeline(branches):
            help = f"each statement of `{join}` is a separate branch: to chain statements, put them in `{{ }}`"
            return f"{help} or join them with `|`", []
        if (optional := self._optional_input(branches, frame)) is not None:
            return optional
        help = self._labeled_input(join, branches, frame)
        return (help, []) if help is not None else self._continued_branch(branches, frame)

    def _is_one_pipeline(self, branches: Branches) -> bool:
        """Check whether the branches, each on its own line, look like the steps of one pipeline."""
        lines = {at.line for flow, _ in branches if (at := self.source_map[flow.origin])}
        calls = [[e.callee if isinstance(e, ir.Call) else None for e in flow.elements] for flow, _ in branches]
        return len(lines) == len(branches) and stacked(calls)

    def _optional_input(self, branches: Branches, frame: Frame) -> Hint | None:
        """Suggest an `if` for `in when ...`, which passes the input through whether or not the condition holds."""
        for flow, _ in branches:
            condition = flow.condition if isinstance(passed_through(flow), ir.In) else None
            if condition is not None and self.values.condition(condition, frame) is False:
                whole, at = self.source_map.wholes.get(flow.origin), self.source_map[condition.origin]
                code = f"if {at.text if at else 'false'} {{ in }} else {{ nothing }}"
                help = f"`in` passes its input through even if its `when` is false: write `{code}`"
                return help, [Fix(help, (Edit(whole.to(at), code),))] if whole and at else []
        return None

    def _labeled_input(self, join: str, branches: Branches, frame: Frame) -> str | None:
        """Explain an `in` that is the tensor that another branch refers to by its label."""
        if not any(isinstance(flow.elements[0], ir.In) and not passed_through(flow) for flow, _ in branches):
            return None
        for label, x in _labeled(branches):
            if frame.entering and x.node == frame.entering.node:
                help = f"inside `{join}`, `in` is the input of `{join}`, here the output of `{label}`"
                if self.calls:
                    return f"{help}: {USE_BLOCK_INPUT.format(place='instead of `in`')}"
                return f"{help}: to use another tensor, write its label instead of `in`"
        return None

    def _continued_branch(self, branches: Branches, frame: Frame) -> Hint | None:
        """Explain a labeled statement whose input is the other one only because it comes after it."""
        labeled, nodes = _labeled(branches), self.trace.nodes
        for (label, x), (other, y) in ((one, two) for one in labeled for two in labeled):
            path = self.trace.path(y.node, x.node)
            direct = x.node < y.node and path and nodes[path[0]].inputs[0] == x.node
            continues = direct and all(f".{other}." in f".{nodes[i].path}." for i in path)
            if continues and not self._has_input(other):
                help = f"the input of `{other}` is the output of `{label}`, the previous statement"
                advice, edits = self._start(other, label, x.node, frame)
                help = f"{help}: {advice}"
                return help, [Fix(help, edits)] if edits else []
        return None

    def _labeled_flows(self, label: str) -> list[ir.Flow]:
        flows = [flow for body in (self.model, *self.model.blocks.values()) for flow in _flows(body)]
        return [flow for flow in flows if flow.label == label]

    def _has_input(self, label: str) -> bool:
        """Check whether a labeled pipeline starts with a reference."""
        return any(isinstance(flow.elements[0], ir.Reference) for flow in self._labeled_flows(label))

    def _start(self, other: str, label: str, node: int, frame: Frame) -> tuple[str, tuple[Edit, ...]]:
        """Advise to start a labeled statement with the input of another one, which ends at a node."""
        first, second = self._starts(label), self._starts(other)
        nodes = self.trace.nodes
        while node != ir.IMAGE and f".{label}." in f".{nodes[node].path}.":
            node = nodes[node].inputs[0]
        known = {x.node: name for scope in frame.outward() for name, x in scope.labels.items() if x}
        if node in known:
            edits = (Edit(second[1], f"@{known[node]} | "),) if second else ()
            return f"start `{other}` with `@{known[node]} |` to use the same input", edits
        edits = ()
        if first and second:
            text, at = first[0].source.text, first[0].start
            indent = text[text.rfind("\n", 0, at) + 1 : at]
            edits = Edit(first[0], "x: in; " if indent.strip() else f"x: in\n{indent}"), Edit(second[1], "@x | ")
        return f"add `x: in` before `{label}`, and start `{other}` with `@x |` to use the same input", edits

    def _starts(self, label: str) -> tuple[Span, Span] | None:
        """Return the places before the only statement with a label, and before its first element."""
        flows = self._labeled_flows(label)
        at = self.source_map[flows[0].origin]
        if len(flows) != 1 or at is None:
            return None
        whole = self.source_map.wholes[flows[0].origin]
        start = max(at.end, whole.start)
        start += len(at.source.text[start:]) - len(at.source.text[start:].lstrip(" \t:"))
        return Span(at.source, at.start, at.start), Span(at.source, start, start)


def _flows(piece: Any) -> Iterator[ir.Flow]:
    """Iterate over the pipelines in a piece of the Model."""
    if isinstance(piece, ir.Flow):
        yield piece
    for part in ("body", "elements", "then", "otherwise"):
        for inner in getattr(piece, part, ()):
            yield from _flows(inner)


def _labeled(branches: Branches) -> list[tuple[str, Tensor]]:
    """Return the labels that branches refer to, with their tensors; only the first few."""
    references = ((passed_through(flow), x) for flow, x in branches)
    return [(found.label, x) for found, x in references if isinstance(found, ir.Reference)][:_MAX_LABELS]
