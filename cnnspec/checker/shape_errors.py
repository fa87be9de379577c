"""Shape errors: report them with the shapes that led there and with suggestions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import lcm

from cnnspec import ir, shapes
from cnnspec.checker.call_stack import CallStack
from cnnspec.checker.environment import Frame, Tensor
from cnnspec.checker.join_fixes import JoinFixes, Paths, contains
from cnnspec.checker.join_hints import Branches, JoinHints, passed_through
from cnnspec.checker.shape_trace import MAX_SHOWN, ShapeTrace
from cnnspec.checker.values import ValueEvaluator
from cnnspec.diagnostics import Edit, Fix, Label, Reporter, Span, counted
from cnnspec.diagnostics.suggestions import (
    AppendToBranches,
    Branch,
    ReplaceCall,
    ReplaceOperator,
    SetArgument,
    Site,
    Suggestion,
    describe,
    fixes_of,
)
from cnnspec.ir.valid_sizes import Agree, derive
from cnnspec.ops import JOINS, Op, ShapeError
from cnnspec.ops.convolution import Conv, ConvTranspose, Linear, show_size
from cnnspec.ops.join import MIXED, disagreement, projection, strided
from cnnspec.schema import Size
from cnnspec.shapes import Shape, Window
from cnnspec.shapes.symbolic import IMAGE_LENGTH, PeriodLimit

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
        self._input = "input"
        for first in model.images[:1]:
            self.image, self._input = (first.channels, *model.input[1:]), f"input {first.name}"
        self.reporter, self.calls, self.source_map = reporter, calls, calls.source_map
        self.trace = ShapeTrace(nodes, model)
        self.hints, self.fixes = JoinHints(model, values, calls, self.trace), JoinFixes(model, calls, self.trace)

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
        labels = [Label(made, f"outputs {shapes.text(x.shape)}")] if made and made != self.source_map[at] else []
        suggestion = error.suggestion
        if joined and isinstance(op, Linear) and not op.pointwise:
            code = f"conv 1x1 {op.c}{' bias' if op.bias else ''}"
            suggestion = ReplaceCall(code, "write `{0}`, a linear layer at each position of the feature map")
        site = Site(self.source_map.wholes.get(call.origin), self._values(call))
        help, fixes = describe(suggestion), fixes_of(suggestion, site)
        if not fixes and error.fallback:
            help = error.fallback
        if error.code == "E0304" and not isinstance(op, ConvTranspose):
            help, fixes = self._smaller_window(suggestion, op, call, x, site)
        caption = ""
        if error.code.startswith("E03"):
            caption = f"{'the input is' if at == call.origin else 'for input'} {shapes.text(x.shape)}"
        self.reporter.error(
            error.code,
            error.message,
            **self.calls.locate(at, caption, labels),
            help=help,
            fixes=fixes,
            notes=self._notes(error, x),
            fallback=error.fallback,
        )

    def _smaller_window(
        self, suggestion: Suggestion, op: Op, call: ir.Call, x: Tensor, site: Site
    ) -> tuple[str, list[Fix]]:
        """Return help and fixes for a window that is larger than its map.

        Args:
            suggestion: The largest kernel that fits.
            op: The operator.
            call: The call of it.
            x: Its input.
            site: The place of the call.
        """
        if ir.channels_last(self.image):
            c, height, width = self.image
            help = f"write `{self._input} {width}x{c}x{height}`"
            return help, [Fix(help, edits)] if (edits := self._edits_of_input(r"\3x\1x\2")) else []
        path = self.trace.path(x.node)
        earlier = sum(self.nodes[i].origin == self.source_map[call.origin] for i in path)
        options = [f"apply this `{op.name}` at most {counted(earlier, 'time')}"] if earlier else []
        if not earlier and not isinstance(op, Conv) and x.shape[1:] == (1, 1):
            options.append(f"remove `{op.name}`")
        suggestions: list[Suggestion] = []
        if isinstance(op, Conv):
            settings = op.even() or {"pad": _padding(op, x.shape)}
            suggestions += [
                SetArgument(name, size if isinstance(size, str) else show_size(size)) for name, size in settings.items()
            ]
        if min(x.shape[1:]) > 1:
            suggestions.append(suggestion)
        options += map(describe, suggestions)
        shrinks = bool(self.trace.changes(path, _SIDES))
        options.append(f"downsample less before `{op.name}`" if shrinks else "use a larger `input`")
        fixes = [fix for one in suggestions for fix in fixes_of(one, site)]
        return ", or ".join([", ".join(options[:-1]), options[-1]] if options[:-1] else options), fixes

    def _edits_of_input(self, template: str) -> tuple[Edit, ...]:
        r"""Write other shapes in the `input` statements of the file, such as `\1x32x32` with the same channels."""
        if (start := self.source_map[self.model.origin]) is None:
            return ()
        _, height, width = self.image
        stated = re.compile(rf"^[ \t]*input[ \t]+(?:\w+[ \t]+)?(\d+)x({height})x({width})\b", re.MULTILINE)
        each = stated.finditer(start.source.text)
        return tuple(Edit(Span(start.source, found.start(1), found.end(3)), found.expand(template)) for found in each)

    def _values(self, call: ir.Call) -> dict[str, Span | None]:
        return {name: self.source_map[expr.origin] for name, expr in call.args.items()}

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
        mixed = len({len(tensor.shape) for _, tensor in branches}) > 1
        help, fixes = self._join_help(error, element, branches, frame, paths)
        caption = f"differ in {'the number of features' if differ == ['features'] else shapes.join_words(differ)}"
        caption = "mix feature maps and flat features" if mixed else caption
        self.reporter.error(
            error.code,
            error.message,
            **self.calls.locate(element.origin, f"the branches {caption}", labels),
            help=help,
            fixes=fixes,
            fallback=MIXED if mixed else JOINS[element.join].advice,
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
        whole = self.source_map.wholes.get(flow.origin)
        steps: dict[Span, list[str]] = {}
        for i in changes:
            at = self.nodes[i].origin
            if not contains(at, whole):
                return self.calls.label(flow.origin, self.trace.chain(changes) if len(changes) > 1 else text)
            steps.setdefault(at, []).append(shapes.text(self.nodes[i].shape))
        found = [Label(at, " -> ".join(texts[-MAX_SHOWN:])) for at, texts in steps.items()]
        return found[-MAX_SHOWN:] or self.calls.label(flow.origin, text)

    def _join_help(
        self, error: ShapeError, element: ir.Join, branches: Branches, frame: Frame, paths: Paths
    ) -> tuple[str, list[Fix]]:
        """Return help and fixes for a join.

        Args:
            error: The error of its shape rule.
            element: The join.
            branches: Its branches.
            frame: The frame of its braces.
            paths: The operators of each branch.
        """
        suggestion: Suggestion = error.suggestion
        shortcut = self._shortcut(branches, frame) if element.join == "add" else None
        if shortcut and not isinstance(suggestion, ReplaceOperator):
            suggestion = shortcut
        site = Site(
            operator=self.source_map[element.origin],
            branches=[
                Branch(self.source_map.wholes.get(flow.origin), tensor.shape, isinstance(passed_through(flow), ir.In))
                for flow, tensor in branches
            ],
        )
        help, fixes = describe(suggestion), fixes_of(suggestion, site)
        if isinstance(suggestion, ReplaceOperator) and fixes:
            return help, fixes
        if (hint := self.hints.guess(element.join, branches, frame)) is not None:
            return hint
        differ = disagreement(element.join, [tensor.shape for _, tensor in branches])
        if not differ:  # feature maps and flat features
            better = [self.fixes.without_flatten(element.join, branches, paths)]
        elif {"height", "width"} & {*differ}:
            better = [self.fixes.keep_size(path) for path in paths]
            fitting = None if any(better) else self._fitting_size(branches)
            if fitting is not None:
                better, help = self.fixes.take_size(branches, paths), self._fit_image(fitting).help
                fixes = [fix for fix in (self._fit_image(fitting),) if fix.edits]
        else:
            better = [] if shortcut else [self.fixes.same_channels(branches, paths, frame)]
            fixes = fixes if better == [None] or shortcut else []
        fixes = [fix for fix in dict.fromkeys(better) if fix] + fixes
        return ", or ".join(dict.fromkeys(fix.help for fix in fixes)) or help, fixes

    def _fit_image(self, size: Size) -> Fix:
        code = f"{size[0]}x{size[1]}"
        help = f"use an image size that fits, such as `{self._input} {self.image[0]}x{code}`"
        return Fix(help, self._edits_of_input(rf"\1x{code}"))

    def _fitting_size(self, branches: Branches) -> Size | None:
        """Return an image size at which branches agree that differ by rounding alone.

        It is the nearest multiple of the strides, at which nothing is rounded, or else the nearest size that works.
        """
        try:
            sizes = derive(self.nodes, self.model.input)
        except PeriodLimit:
            return None
        image = (IMAGE_LENGTH, IMAGE_LENGTH)
        first, *others = (image if x.node == ir.IMAGE else sizes.lengths[x.node] for _, x in branches)
        demands: list[Agree] = []
        whole = [*self.image[1:]]
        for axis, other in product((0, 1), others):
            one, two = first[axis], other[axis]
            if not one.step or one.period * two.step != two.period * one.step:
                return None
            demands.append(Agree(len(self.nodes), axis, one, two))
            if one != two:
                period = lcm(one.period, two.period)
                whole[axis] = max((2 * self.image[1 + axis] + period) // (2 * period), 1) * period
        sizes = replace(sizes, demands=(*sizes.demands, *demands))
        return (whole[0], whole[1]) if sizes.accepts(*whole) else sizes.nearest(*self.image[1:])

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
        code = strided(
            *(self.fixes.code_of(flow, *setting, frame) for setting in zip(("c", "stride"), found, strict=True))
        )
        which = "shortcuts" if sum(passed_through(flow) is not None for flow, _ in branches) > 1 else "shortcut"
        return AppendToBranches(code, wanted, f"project the {which} with `{{0}}`")


def _padding(op: Conv, x: Shape) -> Size:
    """Return the smallest padding with which a window fits its map."""
    windows = [rule for rule in (op.axis_rule(0), op.axis_rule(1)) if isinstance(rule, Window)]
    reaches = [window.dilation * (window.kernel - 1) + 1 for window in windows]
    height, width = (
        max(window.pad, -(-(reach - size) // 2)) for window, reach, size in zip(windows, reaches, x[1:], strict=True)
    )
    return height, width
