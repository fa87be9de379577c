"""The environment of an element: tensors, values and labels in scope."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple

from cnnspec import ir
from cnnspec.ops import Op
from cnnspec.shapes import Shape


class Tensor(NamedTuple):
    """A tensor in the network: the node that computes it and its shape without the batch axis."""

    node: int
    shape: Shape


MaybeTensor = Tensor | None
"""The tensor in a pipeline; `None` after an error."""


@dataclass(slots=True)
class Module:
    """A labeled statement with operators, which `again` can apply to another tensor.

    Attributes:
        path: Its path in the module tree.
        frame: The frame of the statement.
        x: The tensor that enters.
        origin: The origin of the statement.
        nodes: Its nodes.
        output: Its output.
        outside: How the spec refers to another tensor that it reads; empty if it reads only `x`.
    """

    path: str
    frame: Frame
    x: Tensor
    origin: int
    nodes: range
    output: Tensor | None = None
    outside: str = ""


class _Branch(Enum):
    OMITTED = "omitted"


Omitted = Literal[_Branch.OMITTED]
"""The type of `OMITTED`."""
OMITTED: Omitted = _Branch.OMITTED
"""The result of a branch that ends in `nothing`: the join leaves it out."""


@dataclass(slots=True)
class Frame:
    """The innermost braces: the values and labels in scope, and the tensor that enters the current statement.

    Attributes:
        values: Values by name. Braces inside share them until they define a value of their own.
        entering: The tensor that enters the current statement: the meaning of `in`.
        parent: The enclosing braces in the same body; `None` at the top of the network or of a block.
        labels: Outputs of labeled statements.
        label_origins: The origins of these statements.
        modules: Modules of labeled statements.
        skipped_labels: Labels of statements whose condition is false.
        repeat: The repeated group whose iteration these braces are.
        shares_values: `values` belongs to `parent`.
        operators: Operators of earlier calls with the same values, by the `id` of the call; `None` where a value
            may differ each time.
    """

    values: dict[str, Any]
    entering: MaybeTensor
    parent: Frame | None = None
    labels: dict[str, MaybeTensor] = field(default_factory=dict[str, MaybeTensor])
    label_origins: dict[str, int] = field(default_factory=dict[str, int])
    modules: dict[str, Module] = field(default_factory=dict[str, "Module"])
    skipped_labels: set[str] = field(default_factory=set[str])
    repeat: ir.Repeat | None = None
    shares_values: bool = False
    operators: dict[int, Op] | None = None

    def inner(self, entering: MaybeTensor) -> Frame:
        """Return the frame of braces inside this one."""
        return Frame(self.values, entering, self, shares_values=True, operators=self.operators)

    def define(self, name: str, value: Any, *, varies: bool) -> None:
        """Define a value in these braces; `varies` if the other values do not determine it."""
        if self.shares_values:
            self.values, self.shares_values = dict(self.values), False
        self.values[name] = value
        if varies:
            self.operators = None

    def outward(self) -> Iterator[Frame]:
        """Iterate over this frame and the enclosing ones, innermost first."""
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.parent

    @property
    def shape(self) -> Shape | None:
        """The shape of `in`, if it is known."""
        return self.entering.shape if self.entering else None
