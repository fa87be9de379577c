"""Fixes of joins in the branches themselves: paddings, channels, and `flatten`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from cnnspec import ir, shapes
from cnnspec.checker.call_stack import CallStack
from cnnspec.checker.environment import Frame
from cnnspec.checker.join_hints import Branches, passed_through
from cnnspec.checker.shape_trace import ShapeTrace
from cnnspec.diagnostics import Edit, Fix, Span
from cnnspec.diagnostics.suggestions import set_arguments
from cnnspec.ir.evaluate import evaluate, show
from cnnspec.ops import OPS
from cnnspec.ops.base import SameShape
from cnnspec.ops.convolution import Linear, show_size
from cnnspec.ops.join import ordinal, projection, strided
from cnnspec.schema import Size
from cnnspec.shapes import Shape

_MAX_WINDOWS = 4
"""Calls that one fix changes."""

Paths = Sequence[Sequence[int]]
"""The nodes of each branch since the branches forked."""


class JoinFixes:
    """Edit the calls in the branches of a join so that their shapes agree.

    Args:
        model: The Model.
        calls: The stack of block calls, with the source map.
        trace: The operators that led to each branch.
    """

    def __init__(self, model: ir.Model, calls: CallStack, trace: ShapeTrace) -> None:
        self.model, self.source_map, self.trace = model, calls.source_map, trace
        self._calls: dict[int, ir.Call] | None = None

    def keep_size(self, path: Sequence[int]) -> Fix | None:
        """Fix the padding of those windows on a path that do not keep the size, apart from their strides."""
        edits: list[Edit] = []
        fixed: list[str] = []
        for node in (self.trace.nodes[i] for i in path):
            settings = {name: _code(size) for name, size in node.op.even().items()}
            call = self._call_of(node)
            if call is None or not settings or node.origin is None:
                continue
            found = self._set(call, settings)
            if found and found[0] not in edits:
                written = " ".join(f"{name}={value}" for name, value in settings.items())
                edits += found
                fixed.append(f"set `{written}` for the `{node.op.name}` on line {node.origin.line}")
        return Fix(" and ".join(fixed), tuple(edits)) if 0 < len(fixed) <= _MAX_WINDOWS else None

    def take_size(self, branches: Branches, paths: Paths) -> list[Fix]:
        """Give the `upsample` at the end of a branch the size of another branch, which has a name."""
        fixes: list[Fix] = []
        for (flow, _), path in zip(branches, paths, strict=True):
            last = self.trace.changes(path, slice(1, 3))[-1:]
            call = self._call_of(self.trace.nodes[last[0]]) if last else None
            factor = self.source_map[call.args["factor"].origin] if call and "factor" in call.args else None
            if call is None or call.callee != "upsample" or factor is None:
                continue
            for other, _ in branches:
                named = passed_through(other)
                if named is None or (isinstance(named, ir.In) and call not in flow.elements):
                    continue
                name = "in" if isinstance(named, ir.In) else f"@{named.label}"
                text = factor.source.text[: factor.start]
                keyword = re.search(r"factor\s*=\s*$", text)
                at = Span(factor.source, keyword.start() if keyword else factor.start, factor.end)
                line = f" on line {at.line}" if not self._within(at, flow) else ""
                fixes.append(Fix(f"write `upsample like={name}`{line}", (Edit(at, f"like={name}"),)))
        return fixes

    def same_channels(self, branches: Branches, paths: Paths, frame: Frame) -> Fix | None:
        """Set the output channels of the last layer of each branch to those of the first branch."""
        wanted = branches[0][1].shape[0]
        edits: list[Edit] = []
        written: list[str] = []
        for index, ((flow, tensor), path) in enumerate(zip(branches, paths, strict=True)):
            if tensor.shape[0] == wanted:
                continue
            call = None if passed_through(flow) else self._last_layer(path)
            code = self.code_of(branches[0][0], "c", wanted, frame)
            found = self._set(call, {"c": code}) if call is not None else []
            whole = self.source_map.wholes.get(call.origin) if call is not None else None
            if len(found) != 1 or whole is None or not self._within(found[0].span, flow):
                return None
            at = found[0].span
            text = whole.text[: at.start - whole.start] + found[0].text + whole.text[at.end - whole.start :]
            edits += found
            written.append(f"`{text}` in the {ordinal(index)} branch")
        return Fix(f"write {' and '.join(written)}", tuple(edits)) if 0 < len(written) <= _MAX_WINDOWS else None

    def without_flatten(self, join: str, branches: Branches, paths: Paths) -> Fix | None:
        """Keep the feature maps of the branches that end as flat features."""
        wanted = next(tensor.shape for _, tensor in branches if shapes.is_map(tensor.shape))
        edits: list[Edit] = []
        written: list[str] = []
        for (flow, tensor), path in zip(branches, paths, strict=True):
            if not shapes.is_map(tensor.shape):
                found = self._unflattened(join, flow, path, wanted)
                if found is None:
                    return None
                written += found[0]
                edits += found[1]
        return Fix(shapes.join_words([*dict.fromkeys(written)]), tuple(edits))

    def code_of(self, flow: ir.Flow, name: str, value: Size | int, frame: Frame) -> str:
        """Return the code of an argument in a pipeline that has this value, or else the value."""
        for element in reversed(flow.elements):
            expr = element.args.get(name) if isinstance(element, ir.Call) else None
            at = self.source_map[expr.origin] if expr else None
            if (
                expr
                and at
                and self._within(at, flow)
                and _pair(evaluate(expr, frame.values, frame.shape)) == _pair(value)
            ):
                return at.text
        return _code(value)

    def _unflattened(
        self, join: str, flow: ir.Flow, path: Sequence[int], wanted: Shape
    ) -> tuple[list[str], list[Edit]] | None:
        """Return the help and the edits that remove the `flatten` from a branch."""
        calls = [element for element in flow.elements if isinstance(element, ir.Call) and not element.variable]
        index = next((i for i, call in enumerate(calls) if call.callee == "flatten"), None)
        if index is None or len(calls) < len(flow.elements):
            return None
        at = self.source_map[calls[index].origin]
        before = next((self.trace.entering(i) for i in path if self.trace.nodes[i].origin == at), None)
        if at is None or before is None or not self._within(at, flow):
            return None
        if len(calls) > index + 1:
            found = self._convolutions(calls[index + 1 :])
            return None if found is None else (["remove `flatten`", *found[0]], [Edit(_with_pipe(at), ""), *found[1]])
        if join == "add" and before != wanted:
            needed = projection(wanted, before)
            code = strided(needed[0], show_size(needed[1])) if needed else None
        else:
            if join == "mul" and index == 0:  # `in` twice would square the tensor
                return None
            code = "in" if index == 0 else ""
        if not code:
            return None if code is None else (["remove `flatten`"], [Edit(_with_pipe(at), "")])
        return [f"write `{code}` instead of `flatten`"], [Edit(at, code)]

    def _convolutions(self, calls: Sequence[ir.Call]) -> tuple[list[str], list[Edit]] | None:
        """Return the help and the edits that write linear layers as 1x1 convolutions; None for other layers."""
        written, edits = list[str](), list[Edit]()
        for call in calls:
            kind = OPS.get(call.callee)
            if kind is not Linear:
                if kind is None or not issubclass(kind, SameShape):
                    return None
                continue
            whole, c = self.source_map.wholes.get(call.origin), self.source_map[call.args["c"].origin]
            if whole is None or c is None or not contains(c, whole):
                return None
            edits.append(Edit(whole, f"conv 1x1 {c.text} bias"))
            written.append(f"write `conv 1x1 {c.text} bias` instead of `{whole.text}`")
        return written, edits

    def _last_layer(self, path: Sequence[int]) -> ir.Call | None:
        """Return the call on a path that sets the channels of its end; None if another operator changes them."""
        for i in reversed(path):
            node = self.trace.nodes[i]
            if "c" in node.op.parameters:
                return self._call_of(node)
            if node.shape[0] != self.trace.entering(i)[0]:
                return None
        return None

    def _call_of(self, node: ir.Node) -> ir.Call | None:
        if self._calls is None:
            bodies = [self.model.body, *(block.body for block in self.model.blocks.values())]
            self._calls = {id(self.source_map[call.origin]): call for body in bodies for call in _calls(body)}
        return self._calls.get(id(node.origin))

    def _set(self, call: ir.Call, settings: dict[str, str]) -> list[Edit]:
        values = {name: self.source_map[expr.origin] for name, expr in call.args.items()}
        return set_arguments(self.source_map.wholes.get(call.origin), values, settings)

    def _within(self, at: Span, flow: ir.Flow) -> bool:
        return contains(at, self.source_map.wholes.get(flow.origin))


def contains(at: Span | None, whole: Span | None) -> TypeGuard[Span]:
    """Check whether a place lies in another one."""
    return whole is not None and at is not None and at.source is whole.source and whole.start <= at.start < whole.end


def _with_pipe(at: Span) -> Span:
    """Extend the place of an element by the `|` before it, or else the one after it."""
    text = at.source.text
    before = re.search(r"[ \t]*\|[ \t]*$", text[: at.start])
    after = re.compile(r"[ \t]*\|[ \t]*").match(text, at.end)
    if before:
        return Span(at.source, before.start(), at.end)
    return Span(at.source, at.start, after.end() if after else at.end)


def _pair(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size


def _code(size: Size | int | str) -> str:
    return size if isinstance(size, str) else show(size) if isinstance(size, int) else show_size(size)


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
