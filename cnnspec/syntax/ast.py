"""The syntax tree: one class for each construct of the language, with the span of each node.

Two trees are equal if they have the same meaning; spans and comments are not compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import get_annotations
from typing import Any, ClassVar, Literal, Self, dataclass_transform

from cnnspec.diagnostics import Source, Span


@dataclass_transform(frozen_default=True)
class Record:
    """A frozen record like a dataclass. Defining fifty of these takes a fiftieth of the time, which every start of
    the command line pays.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    compared: ClassVar[tuple[str, ...]] = ()
    """Fields that are compared: all but positions and spelling."""

    def __init_subclass__(cls) -> None:
        own = {name: kind for name, kind in get_annotations(cls).items() if not kind.startswith("ClassVar")}
        cls.fields = (*cls.fields, *own)
        if "compared" not in vars(cls):
            said = (name for name, kind in own.items() if kind != "Span" and name not in ("text", "source", "comments"))
            cls.compared = (*cls.compared, *said)

    def __init__(self, *values: Any, **named: Any) -> None:
        store = self.__dict__
        store.update(zip(self.fields, values, strict=False))
        if len(store) < len(self.fields):
            store.update(named)
            for name in self.fields[len(values) :]:
                if name not in store:
                    store[name] = getattr(type(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{**self.__dict__, **changes})

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(getattr(self, name) == getattr(other, name) for name in self.compared)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in self.compared)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.compared)})"


class Node(Record):
    """A node of the tree; `span` is its position in the text."""

    span: Span

    def children(self) -> list[Node]:
        """Return the child nodes."""
        found: list[Node] = []
        for name in self.fields:
            value: Any = getattr(self, name)
            if isinstance(value, Node):
                found.append(value)
            elif type(value) is tuple:
                found += [item for item in value if isinstance(item, Node)]  # pyright: ignore[reportUnknownVariableType]
        return found

    def walk(self) -> Iterator[Node]:
        """Iterate over the node and all its descendants, in preorder."""
        left = [self]
        while left:
            node = left.pop()
            yield node
            left += node.children()[::-1]


# --- expressions ---------------------------------------------------------------------------------

HOLE = re.compile(r"\{([^{}]*)\}")
"""A place for a value in a string: `{name}` or `{i + 1}`."""
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.]*)\}")
"""The place for the value of one name, which is not parsed as an expression."""


class Number(Node):
    """`3`, `0.1`, `1e-4`; `text` is how it was written."""

    value: int | float
    text: str


class Figure(Node):
    """`40.8M`, `300k` in an `expect`."""

    value: int | float
    text: str


POWERS = {"k": 10**3, "M": 10**6, "G": 10**9}
"""Factor for the letter after a `Figure`."""


class Bool(Node):
    value: bool


class Text(Node):
    """A string, without its quotes; `holes` are the expressions in braces in it that are not a single name."""

    compared: ClassVar[tuple[str, ...]] = ("value",)
    value: str
    holes: tuple[Expr, ...] = ()


class SizeLiteral(Node):
    """`3x5`: height times width."""

    height: int
    width: int


class Name(Node):
    """A bare word: a variable, a flag, an operator as a value, or one of an argument's own words."""

    name: str


class Dim(Node):
    """`in.c`, `in.h`, `in.w`."""

    axis: str


class Unary(Node):
    operator: Literal["-", "not"]
    operand: Expr


class Binary(Node):
    """Arithmetic, a comparison, `and`, or `or`."""

    operator: str
    left: Expr
    right: Expr


class FunctionCall(Node):
    """`min(a, b)`, `round_to(x, 8)`, ..."""

    function: str
    args: tuple[Expr, ...]


class Choice(Node):
    """`if a then b else c`."""

    condition: Expr
    then: Expr
    otherwise: Expr


class Interval(Node):
    """`0.8..1.0`."""

    low: Expr
    high: Expr


class ListLiteral(Node):
    """`[100, 150]`."""

    items: tuple[Expr, ...]


class Index(Node):
    """`depths[i]`: an item of a named list; the first one is 0."""

    sequence: Name
    place: Expr


class Reference(Node):
    """`@label`, as an element or as the value of an argument."""

    label: str


class In(Node):
    """`in` as an element, or as the value of an argument."""


class Broken(Node):
    """An expression or element that cannot be read; its error has been reported."""


class Group(Node):
    """An expression in parentheses; kept, so that the text can be written back."""

    inner: Expr


Expr = (
    Number
    | Figure
    | Bool
    | Text
    | SizeLiteral
    | Name
    | Dim
    | Unary
    | Binary
    | FunctionCall
    | Choice
    | Interval
    | ListLiteral
    | Group
    | Index
    | Reference
    | In
    | Broken
)


# --- elements ------------------------------------------------------------------------------------


class Argument(Node):
    """`c=16`, or by position `16`."""

    name: str | None
    value: Expr

    @property
    def name_span(self) -> Span:
        return Span(self.span.source, self.span.start, self.span.start + len(self.name or ""))


class Call(Node):
    """`conv 3x3 c=16`, `resnet_block x3 c=16`; `callee_span` is the name alone."""

    callee: str
    repeat: int | None
    args: tuple[Argument, ...]
    callee_span: Span


class Braces(Node):
    """`{ ... }` as an element."""

    body: tuple[Statement, ...]


class Repeat(Node):
    """`repeat n as i { ... }`."""

    count: Expr
    variable: str | None
    body: tuple[Statement, ...]
    variable_span: Span


class Join(Node):
    """`add { ... }`, `mul { ... }`, `concat { ... }`; each statement is a branch or a `let`."""

    kind: Literal["add", "mul", "concat"]
    body: tuple[Statement, ...]


class If(Node):
    """`if COND { ... } else { ... }`; an absent `else` passes the input on."""

    condition: Expr
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] | None


class Row(Node):
    label: str | None
    cells: tuple[Expr, ...]


class Each(Node):
    """`each inception_block(c1 r3 c3) act=relu { a: 64 96 128 }`."""

    callee: str
    columns: tuple[Name, ...]
    args: tuple[Argument, ...]
    rows: tuple[Row, ...]
    callee_span: Span


class Nothing(Node):
    """`nothing`: an absent branch."""


class Again(Node):
    """`again @label`: the module with this label, applied to another tensor."""

    label: Reference


Element = Call | Braces | Repeat | Join | If | Each | Again | Reference | In | Nothing | Broken


# --- statements ----------------------------------------------------------------------------------


class LabelName(Node):
    """`name:`, or one of the words `stem`, `stage`, `head` at the start of a statement."""

    name: str
    word: bool = False


class Flow(Node):
    """A pipeline with its label and condition: `downsample: conv 1x1 c | bn when in.c != c`."""

    label: LabelName | None
    elements: tuple[Element, ...]
    condition: Expr | None

    @property
    def pipeline_span(self) -> Span:
        """Span of the elements, without label and condition."""
        start, end, text = self.elements[0].span.start, self.span.end, self.span.source.text
        if self.condition is not None:
            end = start + len(text[start : text.rindex("when", start, self.condition.span.start)].rstrip())
        return Span(self.span.source, start, end)


class Let(Node):
    name: str
    value: Expr
    name_span: Span


class Require(Node):
    """`require CONDITION, "MESSAGE"`."""

    condition: Expr
    message: Text | None


# --- statements of the top of a file -------------------------------------------------------------


class Network(Node):
    name: str


class Input(Node):
    """`input 3x32x32`, `input left 3x32x32`: channels, height, width."""

    compared: ClassVar[tuple[str, ...]] = ("channels", "height", "width", "name")
    channels: int
    height: int
    width: int
    name: str | None = None
    name_span: Span | None = None


class Classes(Node):
    value: Expr


class Param(Node):
    name: str
    value: Expr
    name_span: Span


class BlockParameter(Node):
    """`once subsample: bool = false`."""

    name: str
    type: str | None
    default: Expr | None
    once: bool


class Block(Node):
    name: str
    parameters: tuple[BlockParameter, ...]
    body: tuple[Statement, ...]
    name_span: Span


class Default(Node):
    """`default bn eps=1e-3`."""

    call: Call


class Init(Node):
    """`init conv kaiming_normal mode=fan_out`."""

    target: str
    scheme: Call
    target_span: Span


class Expect(Node):
    """`expect macs = 40.8M within 1%`; `within` is a fraction."""

    metric: str
    relation: str
    value: Expr
    within: float | None
    metric_span: Span


class Entry(Node):
    """A line of the `train` section: its word and what it calls, `augment hflip | crop pad=4`.

    An entry of one value, `epochs 180`, is a call without a name.
    """

    word: str
    calls: tuple[Call, ...]


class Train(Node):
    entries: tuple[Entry, ...]


class Use(Node):
    names: tuple[Name, ...]
    path: str
    path_span: Span


class Extends(Node):
    target: str
    quoted: bool
    args: tuple[Argument, ...]
    target_span: Span


class Aux(Node):
    """`aux aux1 from @inception4a weight=0.3 { ... }`."""

    name: str
    label: Reference
    args: tuple[Argument, ...]
    body: tuple[Statement, ...]


class Output(Node):
    """`output p3 from @fpn3`."""

    name: str
    label: Reference
    name_span: Span


Statement = Flow | Let | Require
Top = (
    Statement
    | Network
    | Input
    | Classes
    | Param
    | Block
    | Default
    | Init
    | Expect
    | Train
    | Use
    | Extends
    | Aux
    | Output
)


class Comment(Node):
    """`# text`; `own_line` if there is nothing before it on its line."""

    compared: ClassVar[tuple[str, ...]] = ("text", "own_line")
    text: str
    own_line: bool


class File(Node):
    """A whole spec; `broken` if statements that cannot be read are missing."""

    source: Source
    statements: tuple[Top, ...]
    comments: tuple[Comment, ...] = ()
    broken: bool = False
