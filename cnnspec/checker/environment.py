"""What surrounds an element while a Model is written out: tensors, names, braces, values, faults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn

from cnnspec import ir, shapes
from cnnspec.diagnostics import Diagnostic, Fix, Label, Reporter, Span, respell
from cnnspec.diagnostics.suggestions import Site, fixes_of
from cnnspec.ir.evaluate import ExpressionError, UnknownShape, convert, evaluate, reads_image, show, truth
from cnnspec.limits import MAX_EVALUATIONS, MAX_HUGE, MAX_NAME, MAX_PATH, MAX_REPEAT
from cnnspec.ops import Op
from cnnspec.schema import Bounds, Type
from cnnspec.semantics.blocks import BLOCK_TYPES
from cnnspec.semantics.context import FILLED, Places
from cnnspec.shapes import Shape


class Tensor(NamedTuple):
    """A known tensor: the node that gives it and its shape without the batch axis."""

    node: int
    shape: Shape


Flowing = Tensor | None
"""What flows through a pipeline; `None` behind a fault."""


_COUNT = Type("int", bounds=Bounds(1, MAX_REPEAT))
_MANY = 12


class LimitReached(Exception):
    """The network is larger than a limit; the diagnostic is reported already."""


class TooLarge(Exception):
    """A tensor has more numbers than the limit.

    Attributes:
        shape: Its shape without the batch axis.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.shape = shape


class Absent:
    """The branch that is not there."""


ABSENT: Final = Absent()


@dataclass(slots=True)
class Namespace:
    """A level of the module tree, in which every name stands once."""

    path: str
    count: int = 0
    stages: int = 0
    used: dict[str, int] = field(default_factory=dict[str, int])

    def next_position(self) -> str:
        self.count += 1
        return str(self.count - 1)

    def next_stage(self) -> str:
        self.stages += 1
        return f"stage{self.stages}"

    def join(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


@dataclass(slots=True)
class Frame:
    """The innermost braces: the values and labels in scope, and the tensor that enters.

    Attributes:
        ops: The operators of calls that were worked out before with these values, by the `id` of the call; none
            where the values may be new ones each time.
    """

    values: dict[str, Any]
    entering: Flowing
    parent: Frame | None = None
    labels: dict[str, Flowing] = field(default_factory=dict[str, Flowing])
    absent: set[str] = field(default_factory=set[str])
    borrowed: bool = False
    ops: dict[int, Op] | None = None

    def inner(self, entering: Flowing) -> Frame:
        """The frame of braces in this one; it has the values of this one until it defines its own."""
        return Frame(self.values, entering, self, borrowed=True, ops=self.ops)

    def define(self, name: str, value: Any) -> None:
        """Names a value in these braces."""
        if self.borrowed:
            self.values, self.borrowed = dict(self.values), False
        self.values[name] = value
        self.ops = None

    @property
    def shape(self) -> Shape | None:
        return self.entering.shape if self.entering else None


def _plain(value: object) -> str:
    return value if type(value) is str else show(value)


class Evaluator:
    """Evaluates expressions in a frame and reports what is wrong, at the user's place.

    Attributes:
        calls: The block calls around, outermost first, with the round of a repeated one, from 0.
        image: The declared shape of an image.
        asked: How often the value of an expression or a text depended on the shape that enters the braces around it.
    """

    def __init__(self, places: Places, reporter: Reporter, image: tuple[int, int, int]) -> None:
        self.places = places
        self.image = image
        self.reporter = reporter
        self.calls: list[tuple[int, int]] = []
        self.asked = 0
        self._evaluations = 0
        self._terms: dict[int, tuple[int, bool]] = {}

    def fail(
        self,
        code: str,
        message: str,
        origin: int,
        *,
        caption: str = "",
        labels: Sequence[Label] = (),
        help: str | None = None,
        notes: Sequence[str] = (),
        fixes: Sequence[Fix] = (),
        fallback: str | None = None,
    ) -> None:
        """Reports a fault at a piece of the Model; in a shipped block it is shown at the user's call."""
        span, extra = self.places[origin], list(labels)
        notes = list(notes)
        calls = [(place, turn) for call, turn in self.calls if (place := self.places[call]) is not None]
        own = [(place, turn) for place, turn in calls if not place.source.shipped]
        if span is not None and span.source.shipped and own:
            extra.insert(0, Label(span, caption))
            span, turn = own[-1]
            caption = f"in this call{_again(turn)}"
        elif span is not None and calls and not calls[-1][0].source.shipped:
            place, turn = calls[-1]
            extra.append(Label(place, f"called from here{_again(turn)}")) if place is not span else None
        self.reporter.add(
            Diagnostic(
                code, message, span, caption, tuple(extra), tuple(notes), help, fixes=tuple(fixes), fallback=fallback
            )
        )

    def fail_label(self, label: str, origin: int, elsewhere: int | None, known: Sequence[str]) -> None:
        """Reports a reference to a label that cannot be seen from here; `elsewhere` is where there is one."""
        at = self.places[origin]
        if elsewhere is not None:
            there = self.places[elsewhere]
            early = at and there and there.source is at.source and there.start > at.start
            self.fail(
                "E0208",
                f"`@{label}` stands {'before its label' if early else 'outside of the braces that hold its label'}",
                origin,
                labels=[Label(there, "labelled here")] if there else [],
                help="move the statement behind the one with the label"
                if early
                else "a label is known in its own braces alone: give the statement around it a label",
            )
            return
        word = Span(at.source, at.start + 1, at.start + 1 + len(label)) if at else None
        help, fixes = respell(word, label, known)
        help = help or (
            f"labels that can be named here: {', '.join(f'`{n}`' for n in known[:_MANY])}"
            if known
            else "give an earlier statement the label"
        )
        self.fail("E0208", f"there is no label `{label}`", origin, help=help, fixes=fixes)

    def refuse_size(self, fault: TooLarge, origin: int) -> NoReturn:
        """Reports a tensor that is too large.

        Raises:
            LimitReached: Always.
        """
        message = f"the tensor {shapes.text(fault.shape)} has more than the limit of {MAX_HUGE} numbers"
        self.fail("E0405", message, origin, help="use smaller sizes")
        raise LimitReached

    def label(self, origin: int, text: str) -> list[Label]:
        span = self.places[origin]
        return [Label(span, text)] if span is not None else []

    def value(self, expr: ir.Expr, frame: Frame, type_: Type, name: str) -> Any:
        """The value of an argument, or `None` behind a fault."""
        try:
            return convert(self.evaluate(expr, frame), type_, name, expr.origin)
        except ExpressionError as fault:
            at = fault.origin or expr.origin
            fixes = fixes_of(fault.suggestion, Site(value=self.places[at]))
            self.fail(fault.code, str(fault), at, help=fault.help, fixes=fixes)
        except UnknownShape:
            pass
        return None

    def arguments(self, block: ir.Block, call: ir.Call, frame: Frame, x: Flowing, index: int) -> Frame | None:
        """The frame of a block's body, in which its parameters have their values; nothing behind a fault.

        Args:
            block: What is called.
            call: Where, with what.
            frame: The frame of the call.
            x: The tensor that enters.
            index: The round of a repeated call, from 0; `once` parameters are given to the first alone.
        """
        self.charge_terms(len(block.constants) + len(block.parameters), call.origin)
        values: dict[str, Any] = {name: evaluate(expr, {}) for name, expr in block.constants.items()}
        inner = Frame(values, x)
        broken = False
        for parameter in block.parameters:
            type_ = BLOCK_TYPES[parameter.type]
            given = call.args.get(parameter.name)
            if given is not None and not (parameter.once and index):
                value = self.value(given, frame, type_, parameter.name)
            elif parameter.default is not None:
                self.calls.append((call.origin, index))
                value = self.value(parameter.default, inner, type_, parameter.name)
                self.calls.pop()
            else:
                value = None
            broken |= value is None
            values[parameter.name] = value
        return None if broken else inner

    def decide(self, expr: ir.Expr, frame: Frame) -> bool | None:
        """The value of a condition, or `None` behind a fault."""
        self.charge(expr)
        try:
            return truth(expr, frame.values, frame.shape)
        except ExpressionError as fault:
            self.fail(fault.code, str(fault), fault.origin or expr.origin, help=fault.help)
        except UnknownShape:
            pass
        return None

    def rounds(self, count: ir.Expr, frame: Frame) -> int:
        """How often to repeat; 0 behind a fault."""
        try:
            return int(convert(self.evaluate(count, frame), _COUNT, "repeat", count.origin))  # type: ignore[arg-type]
        except ExpressionError as fault:
            code = "E0403" if fault.code in ("E0215", "E0405") else fault.code
            limit = (
                f"a repeat is from 1 to {MAX_REPEAT}; leave a part out with `when`" if code == "E0403" else fault.help
            )
            self.fail(code, str(fault), fault.origin or count.origin, help=limit)
        except UnknownShape:
            pass
        return 0

    def evaluate(self, expr: ir.Expr, frame: Frame) -> Any:
        """The value of an expression.

        Raises:
            ExpressionError: It has none.
            UnknownShape: It depends on the shape of a tensor behind a fault.
            LimitReached: The network takes too many terms.
        """
        self.charge(expr)
        return evaluate(expr, frame.values, frame.shape)

    def charge(self, expr: ir.Expr) -> None:
        """Counts the terms of an expression that is evaluated, and whether it asks for a shape.

        Raises:
            LimitReached: The network takes too many of them.
        """
        if not expr.parts:
            self.asked += expr.kind == "dim"
            return
        known = self._terms.get(id(expr))
        if known is None:
            known = self._terms[id(expr)] = _count_terms(expr), reads_image(expr)
        self.asked += known[1]
        self.charge_terms(known[0], expr.origin)

    def charge_terms(self, count: int, origin: int) -> None:
        """Counts terms that are evaluated.

        Raises:
            LimitReached: The network takes too many of them.
        """
        self._evaluations += count
        if self._evaluations > MAX_EVALUATIONS:
            message = f"the network evaluates more than the limit of {MAX_EVALUATIONS} terms of expressions"
            self.fail("E0404", message, origin, help="name a value with `let` outside of the repeat")
            raise LimitReached

    def claim(self, names: Namespace, name: str, origin: int) -> str:
        """The path of a name in its namespace; a second use of it is a fault."""
        if name in names.used:
            where = f"`{names.path}`" if names.path else "the network"
            again = names.used[name] == origin
            self.fail(
                "E0209",
                f"two elements of {where} are called `{name}`",
                origin,
                labels=[] if again else self.label(names.used[name], "the first one"),
                help='count the rounds in the name: `repeat 3 as r { conv 3x3 8 name="conv{r}" }`; in the name of a'
                " repeated call `{i}` and `{n}` count its own calls"
                if again
                else "rename one of the two",
            )
        names.used[name] = origin
        path = names.join(name)
        if len(path) > MAX_PATH:
            message = f"the name of a module is longer than the limit of {MAX_PATH} characters"
            self.fail("E0405", message, origin, help="choose shorter labels")
            raise LimitReached
        return path

    def name(self, call: ir.Call, frame: Frame, names: Namespace, label: str | None, index: int | None) -> str:
        """The name of a call: its label, its own pattern, or its position."""
        if call.name is None:
            return label if label is not None else names.next_position()
        pattern = self.value(call.name, frame, Type("str"), "name")
        if label is not None:
            self.fail(
                "E0206", f"the call has the label `{label}` and a name", call.name.origin, help="keep one of the two"
            )
            return label
        if pattern is None or (frame.shape is None and "{in." in pattern):
            return names.next_position()
        counters: dict[str, int] = {} if index is None else {"i": index, "n": index + 1}
        text = self.fill(pattern, frame, counters) if len(pattern) <= MAX_NAME else pattern
        if len(text) > MAX_NAME:
            message = f"the name of a call is longer than the limit of {MAX_NAME} characters"
            self.fail("E0405", message, call.name.origin, help="choose a shorter one")
            raise LimitReached
        if not re.fullmatch(r"[A-Za-z_0-9]+", text):
            self.fail(
                "E0215",
                f"`{text}` cannot be a name",
                call.name.origin,
                help="a name has letters, digits and `_`; `{i}` counts a repeat from 0, `{n}` from 1",
            )
            return names.next_position()
        return text

    def fill(self, text: str, frame: Frame, counters: Mapping[str, int] = MappingProxyType({})) -> str:
        """A text with each `{name}` replaced by its value."""

        def replacement(match: re.Match[str]) -> str:
            name = match.group(1)
            if name.startswith("in.") and frame.shape:
                self.asked += 1
                index = "chw".find(name[3:])
                return str(frame.shape[index]) if 0 <= index < len(frame.shape) else match.group()
            values = counters if name in counters else frame.values
            return _plain(values[name]) if name in values else match.group()

        return FILLED.sub(replacement, text)


def _again(turn: int) -> str:
    """Which round of a repeated call it is that fails, where it is not the first."""
    return f", round {turn + 1}" if turn else ""


def _count_terms(expr: ir.Expr) -> int:
    return 1 + sum(_count_terms(part) for part in expr.parts)


def labels_of(model: ir.Model) -> dict[str, int]:
    """Every label of a Model, wherever it stands, with where it was written."""
    found: dict[str, int] = {}

    def visit(piece: Any) -> None:
        if isinstance(piece, ir.Flow) and piece.label:
            found.setdefault(piece.label, piece.origin)
        for part in ("body", "elements", "then", "otherwise"):
            for inner in getattr(piece, part, ()):
                visit(inner)

    visit(model)
    for block in model.blocks.values():
        visit(block)
    return found
