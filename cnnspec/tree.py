"""The tree: a spec as it is written, one class for each construct, every node with its span.

Two trees are equal when they say the same; spans and comments do not take part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cnnspec.diagnostics import Source, Span


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of a spec; `span` is where it stands."""

    span: Span = field(compare=False, repr=False)


# --- expressions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number(Node):
    """`3`, `0.1`, `1e-4`; `text` is how it was written."""

    value: int | float
    text: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Figure(Node):
    """`40.8M`, `300k` in an `expect`."""

    value: float
    text: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Bool(Node):
    value: bool


@dataclass(frozen=True, slots=True)
class Text(Node):
    """A string, without its quotes."""

    value: str


@dataclass(frozen=True, slots=True)
class SizeLiteral(Node):
    """`3x5`: height times width."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Name(Node):
    """A bare word: a variable, a flag, an operator as a value, or one of an argument's own words."""

    name: str


@dataclass(frozen=True, slots=True)
class Dim(Node):
    """`in.c`, `in.h`, `in.w`."""

    axis: str


@dataclass(frozen=True, slots=True)
class Unary(Node):
    operator: Literal["-", "not"]
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """Arithmetic, a comparison, `and`, or `or`."""

    operator: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class FunctionCall(Node):
    """`min(a, b)`, `round_to(x, 8)`, ..."""

    function: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Choice(Node):
    """`if a then b else c`."""

    condition: Expr
    then: Expr
    otherwise: Expr


@dataclass(frozen=True, slots=True)
class Interval(Node):
    """`0.8..1.0`."""

    low: Expr
    high: Expr


@dataclass(frozen=True, slots=True)
class ListLiteral(Node):
    """`[100, 150]`."""

    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Group(Node):
    """An expression in parentheses; kept, so that the text can be written back."""

    inner: Expr


Expr = (
    Number | Figure | Bool | Text | SizeLiteral | Name | Dim | Unary | Binary | FunctionCall | Choice | Interval | ListLiteral | Group
)


# --- elements ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Argument(Node):
    """`c=16`, or by position `16`."""

    name: str | None
    value: Expr


@dataclass(frozen=True, slots=True)
class Call(Node):
    """`conv 3x3 c=16`, `resnet_block x3 c=16`; `callee_span` is the name alone."""

    callee: str
    repeat: int | None
    args: tuple[Argument, ...]
    callee_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Braces(Node):
    """`{ ... }` as an element."""

    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Repeat(Node):
    """`repeat n as i { ... }`."""

    count: Expr
    variable: str | None
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Join(Node):
    """`add { ... }`, `mul { ... }`, `concat { ... }`; each statement is a branch or a `let`."""

    kind: Literal["add", "mul", "concat"]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class If(Node):
    """`if COND { ... } else { ... }`; an absent `else` passes the input on."""

    condition: Expr
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] | None


@dataclass(frozen=True, slots=True)
class Row(Node):
    label: str | None
    cells: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Each(Node):
    """`each inception_block(c1 r3 c3) act=relu { a: 64 96 128 }`."""

    callee: str
    columns: tuple[Name, ...]
    args: tuple[Argument, ...]
    rows: tuple[Row, ...]
    callee_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Reference(Node):
    """`@label`."""

    label: str


@dataclass(frozen=True, slots=True)
class In(Node):
    """`in` as an element."""


@dataclass(frozen=True, slots=True)
class Nothing(Node):
    """`nothing`: the branch that is not there."""


Element = Call | Braces | Repeat | Join | If | Each | Reference | In | Nothing


# --- statements ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LabelName(Node):
    """`name:`, or one of the words `stem`, `stage`, `head` at the head of a statement."""

    name: str
    word: bool = False


@dataclass(frozen=True, slots=True)
class Flow(Node):
    """A pipeline with its label and condition: `downsample: conv 1x1 c | bn when in.c != c`."""

    label: LabelName | None
    elements: tuple[Element, ...]
    condition: Expr | None


@dataclass(frozen=True, slots=True)
class Let(Node):
    name: str
    value: Expr
    name_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Require(Node):
    condition: Expr
    message: str | None


# --- statements of the top of a file -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Network(Node):
    name: str


@dataclass(frozen=True, slots=True)
class Input(Node):
    """`input 3x32x32`: channels, height, width."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Classes(Node):
    value: Expr


@dataclass(frozen=True, slots=True)
class Param(Node):
    name: str
    value: Expr
    name_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BlockParameter(Node):
    """`once subsample: bool = false`."""

    name: str
    type: str | None
    default: Expr | None
    once: bool


@dataclass(frozen=True, slots=True)
class Block(Node):
    name: str
    parameters: tuple[BlockParameter, ...]
    body: tuple[Statement, ...]
    name_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Default(Node):
    """`default bn eps=1e-3`."""

    call: Call


@dataclass(frozen=True, slots=True)
class Init(Node):
    """`init conv kaiming_normal mode=fan_out`."""

    target: str
    scheme: Call
    target_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Expect(Node):
    """`expect macs = 40.8M within 1%`; `within` is a fraction."""

    metric: str
    relation: str
    value: Expr
    within: float | None


@dataclass(frozen=True, slots=True)
class Entry(Node):
    """A line of the `train` section: its word and what it calls, `augment hflip | crop pad=4`.

    An entry of one value, `epochs 180`, is a call without a name.
    """

    word: str
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Train(Node):
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Use(Node):
    names: tuple[Name, ...]
    path: str
    path_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Extends(Node):
    target: str
    quoted: bool
    args: tuple[Argument, ...]
    target_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Aux(Node):
    """`aux aux1 from @inception4a weight=0.3 { ... }`."""

    name: str
    label: Reference
    args: tuple[Argument, ...]
    body: tuple[Statement, ...]


Statement = Flow | Let | Require
Top = (
    Statement | Network | Input | Classes | Param | Block | Default | Init | Expect | Train | Use | Extends | Aux
)


@dataclass(frozen=True, slots=True)
class Comment(Node):
    """`# text`; `own_line` when nothing stands before it."""

    text: str
    own_line: bool


@dataclass(frozen=True, slots=True)
class File:
    """A whole spec."""

    source: Source = field(compare=False, repr=False)
    statements: tuple[Top, ...]
    comments: tuple[Comment, ...] = field(compare=False, default=())
