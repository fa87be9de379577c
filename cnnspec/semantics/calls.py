"""Binding: every call to what it calls, every argument to its parameter, every word to its meaning.

No shape is known yet. A statement at fault becomes `Broken`, so that the check can go on behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cnnspec import ir
from cnnspec.diagnostics import Edit, Fix, Label, Reporter, Span, counted, respell
from cnnspec.ir.evaluate import literal
from cnnspec.limits import MAX_DEPTH
from cnnspec.ops import FOREIGN_NAMES, KERNEL_FIRST, OPS, translated
from cnnspec.recipe import ENTRIES
from cnnspec.schema import Parameter
from cnnspec.semantics.arguments import REPEAT_WORD, Arguments
from cnnspec.semantics.blocks import BLOCK_TYPES, check_header, signature
from cnnspec.semantics.names import FILLED, Fault, Names
from cnnspec.semantics.scope import FileScope
from cnnspec.syntax import LABEL_WORDS, TOP_WORDS, ast

_MAX_CHAIN = 48
_LABELLED = rf"(?:[A-Za-z0-9_]+[ \t]*:|\b(?:{'|'.join(LABEL_WORDS)}))[ \t]*\Z"
"""A label in front of a word."""


def _entry(span: Span) -> str | None:
    """The line of a callee as an entry of the recipe, where it is one: `optimizer sgd`, `optimizer: sgd`."""
    text = span.source.text
    start = text.rfind("\n", 0, span.start) + 1
    line = re.compile(r"[ \t]*([a-z_]+)[ \t]*:?[ \t]*([^\n#{};|]*)").match(text, start)
    if line is None or line.group(1) not in ENTRIES or span.start > line.start(2):
        return None
    return f"{line.group(1)} {line.group(2)}".rstrip()


class Binder(Arguments):
    """Turns the trees of one compilation into pieces of a Model.

    Attributes:
        blocks: The blocks that are called, by their key.
        too_deep: Whether elements stand inside of one another deeper than the limit, which is reported.
    """

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(reporter)
        self.blocks: dict[str, ir.Block] = {}
        self.too_deep = False
        self._keys: dict[int, str] = {}
        self._signatures: dict[int, dict[str, Parameter]] = {}
        self._open: list[tuple[ast.Block, Span]] = []
        self._depth = 0

    # --- calls -----------------------------------------------------------------------------------

    def call(
        self, node: ast.Call | ast.Each, args: Sequence[ast.Argument], names: Names, repeat: int | None = None
    ) -> ir.Call:
        """A call of an operator, a block, or a parameter that holds an operator.

        Raises:
            Fault: The callee is unknown or an argument is at fault.
        """
        callee, span = node.callee, node.callee_span
        key, variable = callee, False
        kind = names.variables.get(callee)
        if callee in names.variables and (kind is None or kind.kind == "op"):
            variable = True
            self.named.add(callee)
            parameters: Mapping[str, Parameter] = {}
        elif callee in names.file.lost:
            raise Fault
        else:
            found = names.file.find_block(callee)
            if found is not None:
                key = self.block(found[0], found[1], span)
                parameters = self.signature_of(found[1])
            elif callee in OPS:
                parameters = OPS[callee].parameters
            else:
                raise self._unknown_callee(callee, span, names, args)
        bound = self.bind(callee, args, parameters, names, span, repeatable=True, complete=not variable)
        count = bound.pop("repeat", None)
        if repeat is not None and count is not None:
            raise self.fail("E0206", "the repeat is given twice", span, help=f"keep `x{repeat}` or `repeat=`")
        if repeat is not None:
            written = re.compile(r"\s*").match(span.source.text, span.end)
            start = written.end() if written else span.end
            at = self.places.add(Span(span.source, start, start + 1 + len(str(repeat))))
            count = ir.Expr(kind="number", value=repeat, origin=at)
        name = bound.pop("name", None)
        return ir.Call(
            callee=key, variable=variable, args=bound, repeat=count, name=name, origin=self.places.add(span, node.span)
        )

    def _unknown_callee(self, callee: str, span: Span, names: Names, args: Sequence[ast.Argument]) -> Fault:
        named = args[0].value if args and args[0].name is None else None
        fixes: Sequence[Fix] = ()
        if callee in LABEL_WORDS:
            help = f"`{callee}` begins a statement: the line in front of it is not finished"
            if re.search(_LABELLED, span.source.text[span.source.text.rfind("\n", 0, span.start) + 1 : span.start]):
                help = "there are two labels: keep one of them"
                fixes = [Fix(help, (Edit(Span(span.source, span.start, arg.span.start), ""),)) for arg in args[:1]]
        elif entry := _entry(span):
            help = f"this is an entry of the recipe, which stands in braces: `train {{ {entry} }}`"
        elif callee in TOP_WORDS:
            help = f"`{callee}` is a statement of the top of a file; is a `}}` missing in front of it?"
        elif callee in names.variables:
            help = f"`{callee}` is a value; an operator handed to a block has the type `op`: `{callee}: op = relu`"
        elif REPEAT_WORD.fullmatch(callee) and isinstance(named, ast.Name):
            help = f"a repeat stands behind the name: `{named.name} {callee}`"
            edit = Edit(span.to(named.span), f"{named.name} {callee}")
            fixes = (Fix(f"write `{edit.text}`", (edit,), certain=True),)
        elif callee in names.file.labels:
            help = f"`{callee}` is a label: what it gives is `@{callee}`"
            fixes = (Fix(help, (Edit(span, f"@{callee}"),), certain=not args),)
        elif callee in FOREIGN_NAMES:
            help, fixes = self._translated(callee, span, args)
        else:
            known = [*OPS, *names.file.block_names(), *names.variables]
            help, fixes = respell(span, callee, known)
            help = help or "`cnnspec list` shows operators and blocks"
        return self.fail("E0201", f"unknown operator or block `{callee}`", span, help=help, fixes=fixes)

    @staticmethod
    def _translated(callee: str, span: Span, args: Sequence[ast.Argument]) -> tuple[str, Sequence[Fix]]:
        """What is said of an operator that is called by its name elsewhere, where its arguments may have another order."""
        meant = FOREIGN_NAMES[callee]
        ordered = not args or isinstance(args[0].value, ast.SizeLiteral) or meant not in KERNEL_FIRST
        texts = [arg.span.text for arg in args]
        if not ordered and (written := translated(callee, texts)):
            edits = Edit(span, meant), Edit(args[0].span.to(args[-1].span), written.removeprefix(f"{meant} "))
            return f"write `{written}`", [Fix(f"write `{written}`", edits)]
        name, _, setting = meant.partition(" ")
        if name in OPS and setting:
            end = args[-1].span.end if args else span.end
            written = f"{name}{span.source.text[span.end : end]} {setting}"
            return f"write `{written}`", [
                Fix(f"write `{written}`", (Edit(Span(span.source, span.start, end), written),))
            ]
        help = f"write `{meant}`"
        fix = Fix(help, (Edit(span, meant),), certain=ordered and meant in OPS)
        return help if ordered else f"{help}; its kernel comes first: `{meant} 3x3 16`", [fix]

    # --- blocks ----------------------------------------------------------------------------------

    def signature_of(self, block: ast.Block) -> dict[str, Parameter]:
        """The parameters of a block, read off its definition once."""
        known = self._signatures.get(id(block))
        if known is None:
            known = self._signatures[id(block)] = signature(block)
        return known

    def block(self, scope: FileScope, block: ast.Block, called_at: Span | None) -> str:
        """The key of a block in the Model; elaborates it when it is first called.

        Raises:
            Fault: It calls itself, or blocks call one another too deeply.
        """
        for index, (other, _) in enumerate(self._open):
            if other is block and called_at is not None:
                names = [b.name for b, _ in self._open[index:]] + [block.name]
                through = f" through {' -> '.join(f'`{n}`' for n in names)}" if len(names) > 2 else ""
                raise self.fail(
                    "E0210",
                    f"the block `{block.name}` calls itself{through}",
                    called_at,
                    labels=[Label(block.name_span, "defined here")],
                    help="repeat a part with `repeat n { ... }`; a block cannot call itself",
                )
        key = self._keys.get(id(block))
        if key is not None:
            return key
        if len(self._open) >= _MAX_CHAIN and called_at is not None:
            raise self.fail(
                "E0405",
                f"blocks call one another deeper than the limit of {_MAX_CHAIN}",
                called_at,
                help="join some of the blocks",
            )
        key = block.name
        while key in self._keys.values():
            key += "_"
        self._keys[id(block)] = key
        self._open.append((block, called_at or block.name_span))
        around, self.named = self.named, set()
        try:
            self.blocks[key] = self._block(scope, block)
        finally:
            self.named = around
            self._open.pop()
        return key

    def _block(self, scope: FileScope, block: ast.Block) -> ir.Block:
        check_header(block, self.reporter)
        taken = signature(block)
        names = Names(scope, scope.variables())
        parameters: list[ir.BlockParameter] = []
        for parameter in block.parameters:
            type_ = taken[parameter.name].type
            default = None
            if parameter.default is not None:
                try:
                    default = self.expr(parameter.default, names, type_)
                except Fault:
                    default = ir.Expr(kind="name", value="")  # of a value that is not known
            origin = self.places.add(parameter.span)
            try:
                self.need_room(names, parameter.span)
            except Fault:
                break
            parameters.append(
                ir.BlockParameter(
                    name=parameter.name,
                    type=type_.kind,  # type: ignore[arg-type]
                    default=default,
                    once=parameter.once,
                    origin=origin,
                )
            )
            names = names.with_variable(parameter.name, type_)
        body = self.statements(block.body, names)
        constants = {name: literal(value) for name, value in scope.constants.items() if name in self.named}
        return ir.Block(
            name=block.name,
            parameters=tuple(parameters),
            body=body,
            constants=constants,
            origin=self.places.add(block.name_span),
        )

    # --- statements and elements -----------------------------------------------------------------

    def statements(self, body: Iterable[ast.Statement], names: Names) -> tuple[ir.Statement, ...]:
        """A body; a statement at fault is replaced by one that is `Broken`."""
        out: list[ir.Statement] = []
        for statement in body:
            at = self.places.add(statement.span)
            try:
                match statement:
                    case ast.Let():
                        self.need_room(names, statement.name_span)
                        out.append(ir.Let(name=statement.name, value=self.expr(statement.value, names), origin=at))
                        names = names.with_variable(statement.name)
                    case ast.Require():
                        self.named.update(FILLED.findall(statement.message or ""))
                        out.append(
                            ir.Require(
                                condition=self.expr(statement.condition, names), message=statement.message, origin=at
                            )
                        )
                    case _:
                        out.append(self.flow(statement, names))
            except Fault:
                out.append(self._broken(statement, at))
                if isinstance(statement, ast.Let):
                    names = names.with_variable(statement.name)
        return tuple(out)

    @staticmethod
    def _broken(statement: ast.Statement, at: int) -> ir.Flow:
        label = statement.label if isinstance(statement, ast.Flow) else None
        return ir.Flow(
            label=label.name if label else None,
            counted=label is not None and label.word and label.name == "stage",
            elements=(ir.Broken(origin=at),),
            origin=at,
        )

    def flow(self, node: ast.Flow, names: Names) -> ir.Flow:
        """A pipeline; its elements are elaborated one by one, so that each fault is reported.

        Raises:
            Fault: At least one element is at fault.
        """
        elements: list[ir.Element] = []
        failed = False
        for index, element in enumerate(node.elements):
            try:
                if index and isinstance(element, (ast.In, ast.Reference)):
                    word = "in" if isinstance(element, ast.In) else f"@{element.label}"
                    raise self.fail(
                        "E0216",
                        f"`{word}` behind a `|` throws away what flows in",
                        element.span,
                        help=f"start a pipeline with it, or join both: `concat {{ ...; {word} }}`",
                    )
                if isinstance(element, ast.Nothing) and len(node.elements) > 1:
                    raise self.fail(
                        "E0216",
                        "`nothing` stands alone in its branch",
                        element.span,
                        help="remove the other elements, or `nothing`",
                    )
                elements.append(self.element(element, names))
            except Fault:
                failed = True
        condition = self.expr(node.condition, names) if node.condition is not None else None
        if failed:
            raise Fault
        label = node.label
        first = next(iter(node.elements))
        span = label.span if label else getattr(first, "callee_span", first.span)
        return ir.Flow(
            label=label.name if label else None,
            counted=label is not None and label.word and label.name == "stage",
            elements=tuple(elements),
            condition=condition,
            origin=self.places.add(span, node.pipeline_span),
        )

    def element(self, node: ast.Element, names: Names) -> ir.Element:
        """One element of a pipeline.

        Raises:
            Fault: It is at fault.
        """
        if self._depth >= MAX_DEPTH:
            self.too_deep = True
            message = f"elements stand inside of one another deeper than the limit of {MAX_DEPTH}"
            raise self.fail("E0405", message, node.span, help="call fewer blocks from within blocks")
        self._depth += 1
        try:
            return self._element(node, names)
        finally:
            self._depth -= 1

    def _element(self, node: ast.Element, names: Names) -> ir.Element:
        at = self.places.add(node.span)
        match node:
            case ast.Call():
                return self.call(node, node.args, names, node.repeat)
            case ast.Braces():
                return ir.Braces(body=self.statements(node.body, names), origin=at)
            case ast.Repeat():
                inner = names.with_variable(node.variable, BLOCK_TYPES["int"]) if node.variable else names
                return ir.Repeat(
                    count=self.expr(node.count, names),
                    variable=node.variable,
                    body=self.statements(node.body, inner),
                    origin=at,
                )
            case ast.Join():
                if not any(isinstance(statement, ast.Flow) for statement in node.body):
                    raise self.fail(
                        "E0216",
                        f"`{node.kind}` has no branch",
                        node.span,
                        help="write one statement for each branch into its braces",
                    )
                return ir.Join(join=node.kind, body=self.statements(node.body, names), origin=at)
            case ast.If():
                return ir.If(
                    condition=self.expr(node.condition, names),
                    then=self.statements(node.then, names),
                    otherwise=self.statements(node.otherwise or (), names),
                    origin=at,
                )
            case ast.Each():
                return self._each(node, names, at)
            case ast.Reference():
                return ir.Reference(label=node.label, origin=at)
            case ast.In():
                return ir.In(origin=at)
            case ast.Nothing():
                return ir.Nothing(origin=at)
            case _:
                raise Fault

    def _each(self, node: ast.Each, names: Names, at: int) -> ir.Braces:
        """A table as the calls that it stands for."""
        flows: list[ir.Flow] = []
        failed = False
        for row in node.rows:
            if len(row.cells) != len(node.columns):
                self.fail(
                    "E0205",
                    f"the row has {counted(len(row.cells), 'value')} for {counted(len(node.columns), 'column')}",
                    row.span,
                    labels=[Label(node.columns[0].span.to(node.columns[-1].span), "the columns")],
                    help="give one value for each column; put a negative value or an expression in parentheses",
                )
                failed = True
                continue
            cells = [
                ast.Argument(column.span, column.name, cell)
                for column, cell in zip(node.columns, row.cells, strict=True)
            ]
            try:
                call = self.call(node, [*cells, *node.args], names)
            except Fault:
                failed = True
                continue
            origin = self.places.add(row.span)
            flows.append(ir.Flow(label=row.label, elements=(replace(call, origin=origin),), origin=origin))
        if not node.rows:
            raise self.fail("E0203", "the table has no rows", node.callee_span, help="write one row for each call")
        if failed:
            raise Fault
        return ir.Braces(table=True, body=tuple(flows), origin=at)
