"""Names and places: what an expression can name, and where each piece of a Model was written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from cnnspec import ir
from cnnspec.diagnostics import Diagnostic, Edit, Fix, Label, Reporter, Span, respell
from cnnspec.diagnostics.suggestions import pipe_before
from cnnspec.limits import MAX_NAMES
from cnnspec.ops import OPS
from cnnspec.ops.inits import INITS
from cnnspec.schema import Type
from cnnspec.semantics.scope import FileScope
from cnnspec.syntax import ast

_TRUTHS = {
    **dict.fromkeys(("yes", "on", "True"), "true"),
    **dict.fromkeys(("no", "off", "False", "none", "None"), "false"),
}
"""What truth values are called elsewhere."""

FILLED = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.]*)\}")
"""What stands in a text for a value: `{name}`."""


class Fault(Exception):
    """A statement or element that cannot be elaborated; its diagnostic is reported already."""


@dataclass
class Places:
    """The side table from the numbers in a Model to the places in the text."""

    spans: list[Span | None] = field(default_factory=lambda: [None])
    wholes: dict[int, Span] = field(default_factory=dict[int, Span])
    """The whole of a call or a pipeline whose place is a part of it, such as its name."""

    def add(self, span: Span, whole: Span | None = None) -> int:
        self.spans.append(span)
        if whole is not None:
            self.wholes[len(self.spans) - 1] = whole
        return len(self.spans) - 1

    def __getitem__(self, origin: int) -> Span | None:
        return self.spans[origin] if 0 <= origin < len(self.spans) else None


@dataclass(frozen=True)
class Names:
    """What an expression can name: variables, with the type where it is known, and the file around."""

    file: FileScope
    variables: dict[str, Type | None]

    def with_variable(self, name: str, type_: Type | None = None) -> Names:
        """These names and one more."""
        return Names(self.file, {**self.variables, name: type_})


class Resolver:
    """Resolves the names in expressions.

    Attributes:
        places: Where each piece was written.
        named: What has been named since the block around was begun, in expressions and in texts.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.places = Places()
        self.named: set[str] = set()

    def fail(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        caption: str = "",
        help: str | None = None,
        labels: Sequence[Label] = (),
        notes: Sequence[str] = (),
        fixes: Sequence[Fix] = (),
    ) -> Fault:
        """Reports an error and gives the exception to raise where nothing can follow."""
        found = Diagnostic(code, message, span, caption, tuple(labels), tuple(notes), help, fixes=tuple(fixes))
        self.reporter.add(found)
        return Fault()

    def need_room(self, names: Names, span: Span) -> None:
        """Reports one named value too many.

        Raises:
            Fault: There are as many as the limit.
        """
        if len(names.variables) >= MAX_NAMES:
            message = f"more values have a name here than the limit of {MAX_NAMES}"
            raise self.fail("E0405", message, span, help="write values where they are used, or as rows of `each`")

    def expr(self, node: ast.Expr, names: Names, type_: Type | None = None) -> ir.Expr:
        """An expression with every name resolved; `type_` tells which bare words have a meaning.

        Raises:
            Fault: It names something unknown.
        """
        at = self.places.add(node.span)

        def make(kind: str, *parts: ast.Expr, value: ir.Scalar | None = None, inner: Type | None = None) -> ir.Expr:
            return ir.Expr(
                kind=kind, value=value, parts=tuple(self.expr(part, names, inner) for part in parts), origin=at
            )

        match node:
            case ast.Number() | ast.Figure():
                return make("number", value=node.value)
            case ast.Bool():
                return make("bool", value=node.value)
            case ast.Text():
                self.named.update(FILLED.findall(node.value))
                return make("text", value=node.value)
            case ast.SizeLiteral():
                sizes = tuple(ir.Expr(kind="number", value=size, origin=at) for size in (node.height, node.width))
                return ir.Expr(kind="size", parts=sizes, origin=at)
            case ast.Name():
                return self._name(node, names, type_, at)
            case ast.Dim():
                return make("dim", value=node.axis)
            case ast.Binary() if type_ is not None and type_.kind == "str" and "\n" not in node.span.text:
                help = f'a text stands in quotes: `"{node.span.text}"`'
                fixes = (Fix(help, (Edit(node.span, f'"{node.span.text}"'),), certain=True),)
                raise self.fail("E0204", f"`{node.span.text}` is no text", node.span, help=help, fixes=fixes)
            case ast.Unary():
                return make("neg" if node.operator == "-" else "not", node.operand)
            case ast.Binary():
                return make(node.operator, node.left, node.right)
            case ast.FunctionCall() if node.function in INITS:
                if type_ is None or type_.kind != "init":
                    help = "only the `init` of a call takes one: `conv 3x3 16 init=normal(0.01)`"
                    raise self.fail("E0207", f"`{node.function}` is an initialisation", node.span, help=help)
                types = [parameter.type for parameter in INITS[node.function].parameters.values()]
                parts = [self.expr(arg, names, kind) for arg, kind in zip_longest(node.args, types) if arg is not None]
                return ir.Expr(kind="init", value=node.function, parts=tuple(parts), origin=at)
            case ast.FunctionCall():
                return make("call", *node.args, value=node.function)
            case ast.Choice():
                condition = self.expr(node.condition, names)
                branches = tuple(self.expr(part, names, type_) for part in (node.then, node.otherwise))
                return ir.Expr(kind="choice", parts=(condition, *branches), origin=at)
            case ast.Interval():
                return make("interval", node.low, node.high)
            case ast.ListLiteral():
                return make("list", *node.items)
            case ast.Group():
                return self.expr(node.inner, names, type_)
            case _:
                raise Fault

    def _name(self, node: ast.Name, names: Names, type_: Type | None, at: int) -> ir.Expr:
        word = node.name
        if word in names.variables:
            self.named.add(word)
            return ir.Expr(kind="name", value=word, origin=at)
        if type_ is not None and word in type_.words:
            return ir.Expr(kind="word", value=word, origin=at)
        if word in OPS and (type_ is None or type_.kind == "op"):
            return ir.Expr(kind="op", value=word, origin=at)
        known = [
            *names.variables,
            *(type_.words if type_ else ()),
            *(OPS if type_ is None or type_.kind == "op" else ()),
        ]
        help, fixes = respell(node.span, word, known)
        if word == "valid" and type_ is not None and "same" in type_.words:
            help = "write `0` for no padding"
            fixes = (Fix(help, (Edit(node.span, "0"),), certain=True),)
        elif word in names.file.labels:
            help, fixes = f"`{word}` is a label, and no value: branches are joined by `concat {{ in; @{word} }}`", ()
        elif word == "same" and type_ is not None and type_.kind == "size":
            help, fixes = "`conv` alone knows `pad=same`: write a number, such as `pad=1` with a 3x3 kernel", ()
        elif word == "classes":
            help = "state how many there are: `classes 10`"
        elif word == "in":
            help, fixes = (
                "`in` is no number: `in.c` is; tensors are joined in braces, as in `add { in; conv 3x3 16 }`",
                (),
            )
        elif word in ("True", "False") or (type_ is not None and type_.kind == "bool" and word in _TRUTHS):
            help = f"write `{_TRUTHS[word]}`"
            fixes = (Fix(help, (Edit(node.span, _TRUTHS[word]),), certain=type_ is None or type_.kind == "bool"),)
        elif help is None and type_ is not None and type_.words and word not in OPS:
            help = f"the words here are {', '.join(f'`{w}`' for w in type_.words)}"
        elif word in OPS:
            message = f"`{word}` is an operator, and {type_} is wanted here"
            help = f"elements are joined by `|`: `| {word}`; a parameter that takes an operator has the type `op`"
            raise self.fail("E0204", message, node.span, help=help, fixes=pipe_before(node.span, word))
        elif help is None and type_ is not None and type_.kind == "op":
            help = "name an operator, such as `relu` or `gelu`"
        elif help is None and type_ is not None and type_.kind == "str":
            help = f'a text stands in quotes: `"{word}"`'
            fixes = (Fix(help, (Edit(node.span, f'"{word}"'),)),)
        elif help is None:
            help = f"define it with `let {word} = ...`, or at the top of the file with `param {word} = ...`"
        raise self.fail("E0207", f"unknown name `{word}`", node.span, help=help, fixes=fixes)
