"""A call and the state of binding its arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cnnspec import ir
from cnnspec.diagnostics import Fix, Label, Reported, Reporter, Span
from cnnspec.schema import Bounds, Parameter, Type
from cnnspec.semantics.scope import LocalScope
from cnnspec.syntax import ast

_CALL_PARAMETERS = {
    "repeat": Parameter("repeat", Type("int", bounds=Bounds(1))),
    "name": Parameter("name", Type("str")),
}
"""The parameters that every operator and block has besides its own."""

REPEAT_WORD = re.compile(r"x[0-9]+")
"""A repeat count after a callee: `x3`."""


@dataclass(frozen=True)
class CallSite:
    """A call whose arguments are to be bound.

    Attributes:
        span: The span of the callee's name.
        repeatable: Whether the call also takes `repeat` and `name`.
    """

    callee: str
    span: Span
    args: Sequence[ast.Argument]
    parameters: Mapping[str, Parameter]
    scope: LocalScope
    repeatable: bool = False

    @property
    def known(self) -> Mapping[str, Parameter]:
        """Every parameter that the call takes."""
        return {**self.parameters, **_CALL_PARAMETERS} if self.repeatable else self.parameters

    def parameter(self, name: str) -> Parameter | None:
        """Return the parameter of this name."""
        return (_CALL_PARAMETERS.get(name) if self.repeatable else None) or self.parameters.get(name)

    def is_flag(self, arg: ast.Argument) -> bool:
        """Return whether an argument is the bare name of a boolean parameter."""
        if arg.name is not None or not isinstance(arg.value, ast.Name):
            return False
        parameter = self.parameters.get(arg.value.name)
        return parameter is not None and parameter.type.kind == "bool"


@dataclass
class Binding:
    """The arguments of a call that are bound so far, and the argument that is next.

    Attributes:
        values: The bound arguments by parameter.
        spans: The span of each bound argument.
        index: The position of the current argument.
        taken: The number of arguments that the current step accounts for.
        keyword_seen: Whether a keyword argument precedes the current one.
        failed: Whether an error was reported.
    """

    site: CallSite
    reporter: Reporter
    values: dict[str, ir.Expr] = field(default_factory=dict[str, ir.Expr])
    spans: dict[str, Span] = field(default_factory=dict[str, Span])
    index: int = 0
    taken: int = 1
    keyword_seen: bool = False
    failed: bool = False

    @property
    def arg(self) -> ast.Argument:
        return self.site.args[self.index]

    @property
    def remaining(self) -> Sequence[ast.Argument]:
        """The current argument and those after it."""
        return self.site.args[self.index :]

    @property
    def word(self) -> str:
        """The current argument, if it is a bare word."""
        return self.arg.value.name if isinstance(self.arg.value, ast.Name) else ""

    @property
    def following(self) -> ast.Argument | None:
        """The next argument, if it is positional."""
        following = self.site.args[self.index + 1 : self.index + 2]
        return following[0] if following and following[0].name is None else None

    @property
    def unbound(self) -> str | None:
        """The first parameter without a value."""
        return next((name for name in self.site.parameters if name not in self.values), None)

    @property
    def next_parameter(self) -> str | None:
        """The parameter that a positional argument is for."""
        return None if self.keyword_seen else self.unbound

    @property
    def parameter(self) -> str | None:
        """The parameter that the current argument is for."""
        if self.arg.name is not None:
            return self.arg.name
        return self.word if self.site.is_flag(self.arg) else self.next_parameter

    def fail(self, name: str | None) -> None:
        """Note an error in the argument for a parameter, which counts as bound from now on."""
        self.failed = True
        if name is not None and self.site.parameter(name) is not None:
            self.values.setdefault(name, ir.Expr(kind="number", value=0))
            self.spans.setdefault(name, self.arg.span)

    def error(
        self,
        code: str,
        message: str,
        span: Span | None = None,
        *,
        help: str | None = None,
        labels: Iterable[Label] = (),
        fixes: Iterable[Fix] = (),
        taken: int = 1,
    ) -> Reported:
        """Report an error in the current argument and the `taken - 1` arguments after it."""
        self.taken = taken
        return self.reporter.error(code, message, span or self.arg.span, help=help, labels=labels, fixes=fixes)
