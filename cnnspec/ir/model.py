"""The hierarchical intermediate representation: a network with every name resolved, before any shape is known.

A `Model` keeps blocks, repeats and conditions, and survives JSON. It knows no places in a text: each part carries a
number, `origin`, and a side table leads from there to the source.

`Model` is a Pydantic model, and its parts are frozen dataclasses that Pydantic reads and writes as fields of it. A
part is made by code whose types are checked, so it is not validated again when it is made: the schema is built when a
Model is first read from JSON or written to it, and `cnnspec check` does neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from cnnspec.recipe import Recipe, Setting

Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a Model; `origin` is its number in the source map, 0 for none."""

    origin: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expr(Piece):
    """An expression: its `kind`, its literal or name, and its operands.

    Kinds: `number`, `bool`, `text`, `name`, `op`, `word`, `dim` (an axis of `in`), `size`, `interval`,
    `list`, `index`, `call` (of a function), `choice`, `neg`, `not`, `tensor` (`@label` or `in`), and the binary
    operators as written.
    """

    kind: str
    value: Scalar | None = None
    parts: tuple[Expr, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Piece):
    """A call of an operator or a block; `variable` if `callee` is a parameter that holds an operator."""

    kind: Literal["call"] = "call"
    callee: str
    variable: bool = False
    args: dict[str, Expr] = field(default_factory=dict[str, "Expr"])
    repeat: Expr | None = None
    name: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Braces(Piece):
    """Statements in braces. The rows of an `each` are a `table`; their labels belong to the enclosing scope."""

    kind: Literal["braces"] = "braces"
    table: bool = False
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat(Piece):
    """A repeated group; `variable` counts its iterations from 0."""

    kind: Literal["repeat"] = "repeat"
    count: Expr
    variable: str | None
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(Piece):
    """An `add`, `mul` or `concat`; every flow in the body is a branch."""

    kind: Literal["join"] = "join"
    join: Literal["add", "mul", "concat"]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class If(Piece):
    """A choice between two bodies by a condition."""

    kind: Literal["if"] = "if"
    condition: Expr
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference(Piece):
    """The output of the element with this label."""

    kind: Literal["reference"] = "reference"
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Again(Piece):
    """The module with this label, applied to the input of the element."""

    kind: Literal["again"] = "again"
    module: Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class In(Piece):
    """The input of the statement."""

    kind: Literal["in"] = "in"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing(Piece):
    """An absent branch."""

    kind: Literal["nothing"] = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken(Piece):
    """An element with a reported error; nothing that depends on it is checked."""

    kind: Literal["broken"] = "broken"


Element = Annotated[
    Call | Braces | Repeat | Join | If | Again | Reference | In | Nothing | Broken, Field(discriminator="kind")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow(Piece):
    """A pipeline; `label` names it, and `counted` numbers the label: `stage1`, `stage2`, ..."""

    kind: Literal["flow"] = "flow"
    label: str | None = None
    counted: bool = False
    elements: tuple[Element, ...]
    condition: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Let(Piece):
    """A named value."""

    kind: Literal["let"] = "let"
    name: str
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Require(Piece):
    """A precondition with its message, a template with `{name}` placeholders; `holes` are its other expressions."""

    kind: Literal["require"] = "require"
    condition: Expr
    message: str | None
    holes: tuple[Expr, ...] = ()


Statement = Annotated[Flow | Let | Require, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockParameter(Piece):
    """A parameter of a block; the types are those of section "Blocks" in the language reference."""

    name: str
    type: Literal["int", "float", "bool", "size", "op", "str", "list", "tensor"]
    default: Expr | None
    once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Block(Piece):
    """A block definition; `constants` are the values of its file that it uses."""

    name: str
    parameters: tuple[BlockParameter, ...]
    body: tuple[Statement, ...]
    constants: dict[str, Expr] = field(default_factory=dict[str, "Expr"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Init(Piece):
    """Weight initialization of an operator."""

    target: str
    scheme: Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect(Piece):
    """A contract; `within` is the relative tolerance. The shape of a named output is the metric `output.NAME`."""

    metric: Annotated[str, Field(pattern=r"^(params|macs|depth|output(\.\w+)*)$")]
    relation: Literal["==", "!=", "<=", ">=", "<", ">"]
    value: Expr
    within: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aux(Piece):
    """An auxiliary head, present in training only; its loss is added with `weight`."""

    name: str
    source: str
    weight: Expr
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Piece):
    """A named output: the network returns the tensor with the label `source` under this name."""

    name: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(Piece):
    """An image with a name, which the network reads as `@name`."""

    name: str
    channels: int


class Model(BaseModel):
    """A whole network."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    origin: int = 0
    name: str
    input: tuple[int, int, int]
    images: tuple[Image, ...] = ()
    constants: dict[str, Expr]
    blocks: dict[str, Block]
    body: tuple[Statement, ...]
    aux: tuple[Aux, ...] = ()
    outputs: tuple[Output, ...] = ()
    inits: tuple[Init, ...] = ()
    expects: tuple[Expect, ...] = ()
    recipe: Recipe = Field(default_factory=Recipe)

    @property
    def several_images(self) -> tuple[Image, ...]:
        """The images of a network with several: the first nodes slice them from its input."""
        return self.images if len(self.images) > 1 else ()

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what most networks lack, so that the JSON of the others, and its hash, stay as they were."""
        data: dict[str, Any] = write(self)
        return {key: value for key, value in data.items() if value or key not in ("images", "outputs")}
