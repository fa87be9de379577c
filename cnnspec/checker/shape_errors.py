"""Shape errors: report them with the shapes that led there and with suggestions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from cnnspec import ir, shapes
from cnnspec.checker.call_stack import CallStack
from cnnspec.checker.environment import Frame, Tensor
from cnnspec.checker.join_hints import Branches, JoinHints, passed_through
from cnnspec.checker.shape_trace import MAX_SHOWN, ShapeTrace
from cnnspec.checker.values import ValueEvaluator
from cnnspec.diagnostics import Edit, Fix, Label, Reporter, Span
from cnnspec.diagnostics.suggestions import (
    AppendToBranches,
    Branch,
    ReplaceCall,
    ReplaceOperator,
    Site,
    Suggestion,
    describe,
    fixes_of,
    set_arguments,
)
from cnnspec.ir.evaluate import evaluate, show
from cnnspec.ops import JOINS, Op, ShapeError
from cnnspec.ops.convolution import Linear
from cnnspec.ops.join import disagreement, projection

_MAX_WINDOWS = 4
"""Calls that one fix changes."""
_SIDES = slice(1, 3)
"""Height and width of a shape."""


class ShapeConflicts:
    """Report shapes that an operator or a join does not accept.

    Args:
        model: The Model.
        nodes: The operators so far, in the order in which they run.
        values: Evaluates conditions.
        reporter: Receives the errors.
        calls: Locates the errors.
    """

    def __init__(
        self,
        model: ir.Model,
        nodes: Sequence[ir.Node],
        values: ValueEvaluator,
        reporter: Reporter,
        calls: CallStack,
    ) -> None:
        self.model, self.nodes, self.image = model, nodes, model.input
        self.reporter, self.calls, self.places = reporter, calls, calls.places
        self.trace = ShapeTrace(nodes, model.input)
        self.hints = JoinHints(values, calls, self.trace)
        self._calls: dict[int, ir.Call] | None = None

    # --- operators -------------------------------------------------------------------------------

    def refuse(self, error: ShapeError, op: Op, call: ir.Call, x: Tensor, *, joined: bool) -> None:
        """Report an operator that does not accept its input, at the argument that is wrong.

        Args:
            error: The error of its shape rule.
            op: The operator.
            call: The call of it.
            x: Its input.
            joined: Whether the call is in a branch of a join.
        """
        at = call.args[error.argument].origin if error.argument in call.args else call.origin
        made = self.nodes[x.node].origin if x.node != ir.IMAGE else None
        labels = [Label(made, f"outputs {shapes.text(x.shape)}")] if made and made != self.places[at] else []
        suggestion = error.suggestion
        if joined and isinstance(op, Linear):
            code = f"conv 1x1 {op.c}{' bias' if op.bias else ''}"
            suggestion = ReplaceCall(code, "write `{0}`, a linear layer at each position of the map")
        caption = f"the input is {shapes.text(x.shape)}" if error.code.startswith("E03") else ""
        self.reporter.error(
            error.code,
            error.message,
            **self.calls.locate(at, caption, labels),
            help=describe(suggestion),
            fixes=fixes_of(suggestion, Site(self.places.wholes.get(call.origin), self._values(call))),
            notes=self._notes(error, x),
        )

    def _values(self, call: ir.Call) -> dict[str, Span | None]:
        return {name: self.places[expr.origin] for name, expr in call.args.items()}

    def _notes(self, error: ShapeError, x: Tensor) -> list[str]:
        notes: list[str] = []
        if error.code.startswith("E03") and ir.channels_last(self.image):
            c, height, width = self.image
            size = f"{c} channels, height {height} and width {width}"
            notes.append(f"the image has {size}: `input` expects channels first")
        if error.code == "E0304" and len(path := self.trace.changes(self.trace.path(x.node), _SIDES)) > 1:
            notes.append(f"height and width up to here: {self.trace.chain(path, _SIDES)}")
        return notes

    # --- joins -----------------------------------------------------------------------------------

    def refuse_join(self, error: ShapeError, element: ir.Join, branches: Branches, frame: Frame) -> None:
        """Report branches that cannot be joined, with the shapes of each since they forked."""
        differ = disagreement(element.join, [tensor.shape for _, tensor in branches])
        fork = self.trace.fork(tensor.node for _, tensor in branches)
        paths = [self.trace.path(tensor.node, fork) for _, tensor in branches]
        labels: list[Label] = []
        for (flow, tensor), path in zip(branches, paths, strict=True):
            labels += self._branch_labels(flow, tensor, path)
        resized = paths if {"height", "width"} & {*differ} else []
        help, fixes = self._join_help(error, element, branches, frame, resized)
        caption = (
            f"the branches differ in {shapes.join_words(differ)}"
            if differ
            else "the branches mix maps and flat features"
        )
        self.reporter.error(
            error.code,
            error.message,
            **self.calls.locate(element.origin, caption, labels),
            help=help,
            fixes=fixes,
            fallback=JOINS[element.join].advice,
        )

    def _branch_labels(self, flow: ir.Flow, tensor: Tensor, path: Sequence[int]) -> list[Label]:
        """Label a branch with its shape, or each operator in it that changes the shape."""
        changes, text = self.trace.changes(path), shapes.text(tensor.shape)
        if isinstance(flow.elements[-1], (ir.In, ir.Reference)):
            text += f", {self.trace.origin(tensor.node)}"
            if len(changes) > 1:
                text += f": {self.trace.chain(changes)}"
            return self.calls.label(flow.origin, text)
        if changes == path[:1]:  # its first operator alone
            return self.calls.label(flow.origin, text)
        whole = self.places.wholes.get(flow.origin)
        steps: dict[Span, list[str]] = {}
        for i in changes:
            at = self.nodes[i].origin
            if not _contains(at, whole):
                return self.calls.label(flow.origin, self.trace.chain(changes) if len(changes) > 1 else text)
            steps.setdefault(at, []).append(shapes.text(self.nodes[i].shape))
        found = [Label(at, " -> ".join(texts[-MAX_SHOWN:])) for at, texts in steps.items()]
        return found[-MAX_SHOWN:] or self.calls.label(flow.origin, text)

    def _join_help(
        self, error: ShapeError, element: ir.Join, branches: Branches, frame: Frame, resized: Sequence[Sequence[int]]
    ) -> tuple[str, list[Fix]]:
        """Return help and fixes for a join.

        Args:
            error: The error of its shape rule.
            element: The join.
            branches: Its branches.
            frame: The frame of its braces.
            resized: The path to each branch if their sizes differ; empty if only their channels do.
        """
        suggestion: Suggestion = error.suggestion
        if element.join == "add" and not isinstance(suggestion, ReplaceOperator):
            suggestion = self._shortcut(branches, frame) or suggestion
        site = Site(
            operator=self.places[element.origin],
            branches=[
                Branch(self.places.wholes.get(flow.origin), tensor.shape, isinstance(passed_through(flow), ir.In))
                for flow, tensor in branches
            ],
        )
        help, fixes = describe(suggestion), fixes_of(suggestion, site)
        if isinstance(suggestion, ReplaceOperator) and fixes:
            return help, fixes
        if (hint := self.hints.guess(element.join, branches, frame)) is not None:
            return hint
        if resized:
            fixes = [fix for fix in dict.fromkeys(map(self._keep_size, resized)) if fix] + fixes
            help = ", or ".join(dict.fromkeys(fix.help for fix in fixes)) or help
        return help, fixes

    def _shortcut(self, branches: Branches, frame: Frame) -> AppendToBranches | None:
        """Suggest a projection of the branches of a sum that only pass a tensor through.

        The projection is written in the code of the other branch: that of a block holds for all of its calls.
        """
        made = {tensor.shape: flow for flow, tensor in branches if not passed_through(flow)}
        shortcuts = {tensor.shape for flow, tensor in branches if passed_through(flow)} - made.keys()
        if len(made) != 1 or len(shortcuts) != 1:
            return None
        ((wanted, flow),) = made.items()
        found = projection(wanted, shortcuts.pop()) if shapes.is_map(wanted) else None
        if found is None:
            return None
        c, stride = (
            self._code_of(flow, name, value, frame) for name, value in zip(("c", "stride"), found, strict=True)
        )
        code = f"conv 1x1 {c}{f' stride={stride}' if stride != '1' else ''}"
        return AppendToBranches(code, wanted, "project the shortcut with `{0}`")

    def _code_of(self, flow: ir.Flow, name: str, value: int, frame: Frame) -> str:
        """Return the code of an argument in a pipeline that has this value, or else the number."""
        whole = self.places.wholes.get(flow.origin)
        for element in reversed(flow.elements):
            expr = element.args.get(name) if isinstance(element, ir.Call) else None
            at = self.places[expr.origin] if expr else None
            if expr and _contains(at, whole) and evaluate(expr, frame.values, frame.shape) == value:
                return at.text
        return str(value)

    def _keep_size(self, path: Sequence[int]) -> Fix | None:
        """Fix the padding of those windows on a path that do not keep the size, apart from their strides."""
        if self._calls is None:
            bodies = [self.model.body, *(block.body for block in self.model.blocks.values())]
            self._calls = {id(self.places[call.origin]): call for body in bodies for call in _calls(body)}
        edits: list[Edit] = []
        fixed: list[str] = []
        for node in (self.nodes[i] for i in path):
            settings = {name: _code(size) for name, size in node.op.even().items()}
            call = self._calls.get(id(node.origin))
            if call is None or not settings or node.origin is None:
                continue
            found = set_arguments(self.places.wholes.get(call.origin), self._values(call), settings)
            if found and found[0] not in edits:
                written = " ".join(f"{name}={value}" for name, value in settings.items())
                edits += found
                fixed.append(f"set `{written}` for the `{node.op.name}` in line {node.origin.line}")
        return Fix(" and ".join(fixed), tuple(edits)) if 0 < len(fixed) <= _MAX_WINDOWS else None


def _contains(at: Span | None, whole: Span | None) -> TypeGuard[Span]:
    """Check whether a place lies in another one."""
    return whole is not None and at is not None and at.source is whole.source and whole.start <= at.start < whole.end


def _code(size: tuple[int, int] | str) -> str:
    return size if isinstance(size, str) else show(size[0] if size[0] == size[1] else size)


def _calls(pieces: Sequence[Any]) -> Iterator[ir.Call]:
    """Iterate over the calls in elements, and in the braces among them."""
    for piece in pieces:
        if isinstance(piece, ir.Call):
            yield piece
        elif isinstance(piece, ir.Flow):
            yield from _calls(piece.elements)
        elif isinstance(piece, (ir.Braces, ir.Repeat, ir.Join)):
            yield from _calls(piece.body)
        elif isinstance(piece, ir.If):
            yield from _calls((*piece.then, *piece.otherwise))
