"""Arguments: each to the parameter that it is for, by its place, by its name, or as a flag."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cnnspec import ir
from cnnspec.diagnostics import Edit, Fix, Label, Span, nearest, respell
from cnnspec.diagnostics.suggestions import NO_PLACES, NO_SETTINGS, pipe_before, share
from cnnspec.ops import FOREIGN_ARGUMENTS, INFERRED, OPS
from cnnspec.recipe import ENTRIES
from cnnspec.schema import Bounds, Parameter, Type
from cnnspec.semantics.names import Fault, Names, Resolver
from cnnspec.syntax import LABEL_WORDS, ast

_REPEAT = Type("int", bounds=Bounds(1))
REPEAT_WORD = re.compile(r"x[0-9]+")
"""How often, behind the name of what is repeated."""
_TOLD = {"conv": 1, "bn": 0, "ln": 0, "in_norm": 0, "gn": 1, "linear": 0}
"""Where torch's modules are told how many channels come in."""
_EXAMPLES = {"size": "2", "int": "2", "float": "0.1"}
"""A value of a kind."""
_OTHERS = ("padding", "strides", "stride", "downsample")
"""Arguments elsewhere that no value is called."""
_HALVED = "write `{}` to halve the map, and nothing to keep it"
_MAX_STRIDE = 7
"""What is more is hardly meant as a stride."""


class Arguments(Resolver):
    """Binds arguments to parameters."""

    def bind(
        self,
        callee: str,
        args: Iterable[ast.Argument],
        parameters: Mapping[str, Parameter],
        names: Names,
        span: Span,
        *,
        repeatable: bool = False,
        complete: bool = True,
    ) -> dict[str, ir.Expr]:
        """Arguments by the names of their parameters.

        Raises:
            Fault: At least one argument is at fault; all that are have been reported.
        """
        bound: dict[str, ir.Expr] = {}
        first: dict[str, Span] = {}
        queue = list(parameters)
        known = {
            **parameters,
            **({"repeat": Parameter("repeat", _REPEAT), "name": Parameter("name", Type("str"))} if repeatable else {}),
        }
        failed = keyword_seen = False
        given = list(args)
        joined = -1
        for index, arg in enumerate(given):
            if index <= joined:
                continue
            name, value = arg.name, arg.value
            after = given[index + 1] if index + 1 < len(given) and given[index + 1].name is None else None
            flag = (
                name is None
                and isinstance(value, ast.Name)
                and value.name in parameters
                and parameters[value.name].type.kind == "bool"
            )
            try:
                if range_ := _open_range(value, names):
                    self.fail("E0101", "the line ends too early", range_, help="a range needs its end: `0..8`")
                    failed = True
                    break  # what follows is another statement
                if percent(value):
                    self.refuse_percents(other.value for other in given[index:])
                    failed = True
                    break  # what follows is another statement
                if after and span.source.text[arg.span.end : after.span.start + 1] == "[":
                    joined, at = index + 1, arg.value.span.to(after.span)
                    message = f"`{at.text}` cannot stand here"
                    raise self.fail("E0101", message, at, help=NO_PLACES)
                if flag:
                    assert isinstance(value, ast.Name)
                    name = value.name
                elif name is None and isinstance(value, ast.Name) and REPEAT_WORD.fullmatch(value.name):
                    help = f"write `{callee} {value.name} ...`"
                    here, behind = (
                        Span(span.source, arg.span.start - 1, arg.span.end),
                        Span(span.source, span.end, span.end),
                    )
                    raise self.fail(
                        "E0106",
                        f"the repeat `{value.name}` does not stand right after the name",
                        arg.span,
                        help=help,
                        fixes=[Fix(help, (Edit(behind, f" {value.name}"), Edit(here, "")), certain=True)],
                    )
                elif name is None and (fix := self._spaced(callee, index, given, after, parameters, names, span)):
                    joined = index + 1
                    raise self.fail("E0207", "unknown name `x`", arg.span, help=fix.help, fixes=[fix])
                elif name is None and (fix := self._listed(queue, bound, given[index:], parameters)):
                    joined = index + fix.edits[0].text.count(",")
                    message = f"the numbers of a list stand in brackets, and `{callee}` takes one here"
                    raise self.fail("E0204", message, fix.edits[0].span, help=fix.help, fixes=[fix])
                elif name is None and repeatable and (fix := self._repeated(arg, names)):
                    message = f"unknown name `{arg.span.text}`"
                    help = f"{fix.help}; a number alone can follow the `x`"
                    raise self.fail("E0207", message, arg.span, help=help, fixes=[fix])
                elif name is None and (fix := self._incoming(callee, index, given, after)):
                    text = arg.span.text
                    message = f"`{callee}` is not told that {text} channels come in"
                    raise self.fail("E0205", message, arg.span, help="take it out: that is known", fixes=[fix])
                elif name is None and (parted := self._parted(arg, after, known, names)):
                    joined, (message, help, fixes) = index + 1, parted
                    raise self.fail("E0207", message, arg.span, help=help, fixes=fixes)
                elif name is None and (
                    fix := self._worded(arg, parameters, [] if keyword_seen else queue, bound, names)
                ):
                    message = f"`{arg.span.text}` is the value of another argument"
                    raise self.fail("E0207", message, arg.span, help=fix.help, fixes=[fix])
                elif name is None:
                    while queue and queue[0] in bound:
                        queue.pop(0)
                    if keyword_seen:
                        fixes = self._by_name(queue, bound, arg)
                        help = fixes[0].help if fixes else "remove it"
                        if isinstance(before := given[index - 1].value, ast.Name) and before.name in OPS:
                            help, fixes = NO_SETTINGS, [self._taken_out(arg, NO_SETTINGS, certain=False)]
                        raise self.fail("E0205", "positional arguments come first", arg.span, help=help, fixes=fixes)
                    if not queue:
                        raise self._too_many(callee, parameters, names, arg)
                    if isinstance(value, ast.Name) and (near := self._misspelt_flag(value, parameters, names)):
                        message = f"`{callee}` has no flag `{value.name}`"
                        help, fixes = respell(arg.span, value.name, near)
                        raise self.fail("E0202", message, arg.span, help=help, fixes=fixes)
                    name = queue.pop(0)
                else:
                    keyword_seen = keyword_seen or name != "repeat"
                if name not in known:
                    at = arg.name_span
                    help, fixes = respell(at, name, known)
                    here = next((own for own in FOREIGN_ARGUMENTS.get(name, ()) if own in parameters), None)
                    if here and parameters[here].type.kind == "bool" and not isinstance(value, ast.Bool):
                        help = _HALVED.format(here)
                        fixes = self._flagged(here, arg)
                    elif here:
                        help = f"it is called `{here}` here"
                        fixes = (Fix(f"write `{here}`", (Edit(at, here),), certain=True),)
                    elif name in ("activation", "act") and callee in OPS:
                        help, fixes = "an activation is an element of its own: `| relu`", ()
                    elif name in INFERRED:
                        help, fixes = "take it out: what comes in is known", (self._taken_out(arg, "take it out"),)
                    message = f"`{callee}` has no argument `{name}`"
                    raise self.fail("E0202", message, at, help=help or _takes(callee, known), fixes=fixes)
                if name in bound:
                    swapped = name == "kernel" and "c" in parameters and "c" not in bound
                    fixes = self._kernel_first(callee, given, arg) if swapped else []
                    raise self.fail(
                        "E0206",
                        f"`{name}` is given twice",
                        arg.span,
                        labels=[Label(first[name], "given here first")],
                        help=fixes[0].help if fixes else "keep one of the two",
                        fixes=fixes or self._without(arg, first[name]),
                    )
                first[name] = arg.span
                if flag:
                    bound[name] = ir.Expr(kind="bool", value=True, origin=self.places.add(arg.span))
                else:
                    bound[name] = self.expr(value, names, known[name].type)
            except Fault:
                failed = True
                if name is not None and name in known:
                    bound.setdefault(name, ir.Expr(kind="number", value=0))
        if complete:
            for name, default in names.file.defaults.get(callee, {}).items():
                bound.setdefault(name, default)
            missing = [p for p in parameters.values() if p.required and p.name not in bound]
            if missing and not failed:
                listed = ", ".join(f"`{p.name}`" for p in missing)
                example = " ".join(f"{p.name}=..." for p in missing)
                help, fixes = f"add `{example}`: {missing[0].name} is {missing[0].type}", ()
                if callee == "linear" and "classes" in names.variables:
                    help = "for the last layer write `linear classes`"
                    fixes = (Fix(help, (Edit(Span(span.source, span.end, span.end), " classes"),)),)
                message = f"`{callee}` is missing its argument{'s' if len(missing) > 1 else ''} {listed}"
                self.fail("E0203", message, span, help=help, fixes=fixes)
                failed = True
        if failed:
            raise Fault
        return bound

    def refuse_percents(self, values: Iterable[ast.Expr]) -> bool:
        """Reports every share in percent at the end of a line, and tells whether there is one."""
        found = [at for value in values if (at := percent(value))]
        for at in found:
            fix = share(at)
            message = f"`{at.text}` cannot stand here"
            self.fail("E0101", message, at, help=fix.help, fixes=[fix])
        return bool(found)

    @staticmethod
    def _spaced(
        callee: str,
        index: int,
        given: Sequence[ast.Argument],
        after: ast.Argument | None,
        parameters: Mapping[str, Parameter],
        names: Names,
        span: Span,
    ) -> Fix | None:
        """What joins an `x` with the number behind it: to a size, or to a repeat behind the name."""
        if not _is_name(given[index].value, "x") or "x" in names.variables:
            return None
        if after is None or not isinstance(after.value, ast.Number):
            return None
        source = span.source
        count = after.span.text
        before = given[index - 1] if index else None
        types = [parameter.type.kind for parameter in parameters.values()]
        if (
            before
            and before.name is None
            and isinstance(before.value, ast.Number)
            and types[index - 1 : index] == ["size"]
        ):
            written = f"{before.span.text}x{count}"
            return Fix(f"write `{written}`", (Edit(before.span.to(after.span), written),), certain=True)
        start = before.span.end if before else span.end
        edits = (Edit(Span(source, span.end, span.end), f" x{count}"), Edit(Span(source, start, after.span.end), ""))
        return Fix(f"write `{callee} x{count}`", edits, certain=True)

    @staticmethod
    def _listed(
        queue: Sequence[str],
        bound: Mapping[str, Any],
        given: Sequence[ast.Argument],
        parameters: Mapping[str, Parameter],
    ) -> Fix | None:
        """What puts whole numbers into brackets that stand side by side where a list is wanted."""
        name = next((name for name in queue if name not in bound), None)
        if name is None or parameters[name].type.kind != "list":
            return None
        whole = [
            arg.name is None and isinstance(arg.value, ast.Number) and type(arg.value.value) is int for arg in given
        ]
        items = given[: [*whole, False].index(False)]
        if len(items) < 2:
            return None
        text = items[0].span.source.text
        written = f"{name}=[{', '.join(text[item.span.start : item.span.end] for item in items)}]"
        return Fix(f"a list: `{written}`", (Edit(items[0].span.to(items[-1].span), written),), certain=True)

    @staticmethod
    def _repeated(arg: ast.Argument, names: Names) -> Fix | None:
        """What repeats as often as a value says whose name stands behind an `x`."""
        word = arg.value.name if isinstance(arg.value, ast.Name) else ""
        if word[:1] != "x" or word in names.variables or word[1:] not in names.variables:
            return None
        return Fix(f"write `repeat={word[1:]}`", (Edit(arg.span, f"repeat={word[1:]}"),))

    @classmethod
    def _incoming(
        cls, callee: str, index: int, given: Sequence[ast.Argument], after: ast.Argument | None
    ) -> Fix | None:
        """What takes the number of channels that come in out of a call, where torch wants to be told."""
        value, behind = given[index].value, after.value if after else None
        if _TOLD.get(callee) != index or not (isinstance(value, ast.Number) and value.value >= 2):
            return None
        if callee == "linear" and not (isinstance(behind, ast.Number) or (behind and _is_name(behind, "classes"))):
            return None
        if callee == "conv":  # a third number is the stride, unless that is named as well
            sized, strided = isinstance(given[0].value, ast.SizeLiteral), any(arg.name == "stride" for arg in given)
            if not (sized and strided and isinstance(behind, ast.Number) and behind.value > _MAX_STRIDE):
                return None
        return cls._taken_out(given[index], "take it out: that is known", certain=callee != "conv")

    def _parted(
        self, arg: ast.Argument, after: ast.Argument | None, parameters: Mapping[str, Parameter], names: Names
    ) -> tuple[str, str, Sequence[Fix]] | None:
        """What is said of the name of an argument that stands alone, and what gives it the value behind it."""
        word = arg.value.name if isinstance(arg.value, ast.Name) else ""
        others = FOREIGN_ARGUMENTS.get(word, ()) if word in _OTHERS else ()
        name = next((name for name in (word, *others) if name in parameters), None)
        if name is None or word in names.variables or word in parameters[name].type.words:
            return None
        type_ = parameters[name].type
        given = ast.Argument(arg.span.to(after.span), name, after.value) if after else None
        if type_.kind == "bool":
            said = f"unknown name `{word}`", _HALVED.format(name), self._flagged(name, given)
            return said if name != word else None
        message = f"`{word}` is an argument without a value"
        if given is None:
            return message, f"write `{name}={_EXAMPLES.get(type_.kind, '...')}`: {name} is {type_}", ()
        at = given.value.span
        written = f"{name}={at.text}"
        return message, f"write `{written}`", (Fix(f"write `{written}`", (Edit(given.span, written),), certain=True),)

    @staticmethod
    def _worded(
        arg: ast.Argument,
        parameters: Mapping[str, Parameter],
        queue: Sequence[str],
        bound: Mapping[str, Any],
        names: Names,
    ) -> Fix | None:
        """What gives a word to the one argument that knows it, where it stands in the place of another."""
        word = arg.value.name if isinstance(arg.value, ast.Name) else ""
        knowing = [name for name, parameter in parameters.items() if word in parameter.type.words]
        written = f"{knowing[0]}={word}" if len(knowing) == 1 else ""
        if word == "valid" and "pad" in parameters:
            knowing, written = ["pad"], "pad=0"
        place = next((name for name in queue if name not in bound), None)
        if not written or word in names.variables or knowing[0] in (place, *bound):
            return None
        return Fix(f"write `{written}`", (Edit(arg.span, written),), certain=True)

    @staticmethod
    def _misspelt_flag(value: ast.Name, parameters: Mapping[str, Parameter], names: Names) -> list[str]:
        """The flags that a bare word without a meaning nearly is."""
        if value.name in names.variables or value.name in OPS:
            return []
        words = any(value.name in p.type.words for p in parameters.values())
        return [] if words else nearest(value.name, [n for n, p in parameters.items() if p.type.kind == "bool"])

    @staticmethod
    def _by_name(queue: list[str], bound: Mapping[str, Any], arg: ast.Argument) -> list[Fix]:
        """A positional argument behind a named one, by the name that it has in its turn."""
        free = [name for name in queue if name not in bound]
        text = arg.span.text
        at = Span(arg.span.source, arg.span.start, arg.span.start)
        return [Fix(f"write `{free[0]}={text}`", (Edit(at, f"{free[0]}="),))] if free else []

    def _flagged(self, flag: str, arg: ast.Argument | None) -> tuple[Fix, ...]:
        """A stride as the flag that stands for it."""
        stride = arg.value.value if arg and isinstance(arg.value, ast.Number) else None
        if arg and stride == 2:
            return (Fix(f"write `{flag}`", (Edit(arg.span, flag),), certain=True),)
        return (self._taken_out(arg, "take it out"),) if arg and stride == 1 else ()

    @staticmethod
    def _taken_out(arg: ast.Argument, help: str, *, certain: bool = True) -> Fix:
        """An argument taken out, with the blanks in front of it."""
        text, at = arg.span.source.text, arg.span
        return Fix(help, (Edit(Span(at.source, len(text[: at.start].rstrip(" \t")), at.end), ""),), certain)

    def _without(self, arg: ast.Argument, first: Span) -> list[Fix]:
        """The second of two arguments taken out; certain where both say the same."""
        text = arg.span.source.text
        one, other = (text[span.start : span.end].split("=", 1)[-1].strip() for span in (first, arg.span))
        return [self._taken_out(arg, "keep the first one", certain=one == other)]

    def _kernel_first(self, callee: str, given: Sequence[ast.Argument], arg: ast.Argument) -> list[Fix]:
        """What puts a kernel that is named in front of the channels that were taken for it."""
        first = given[0]
        if first.name is not None or any(other.name == "c" for other in given):
            return []
        text = arg.span.source.text
        channels, kernel = (text[part.span.start : part.span.end] for part in (first, arg.value))
        written = f"{kernel}x{kernel} {channels}" if kernel.isdigit() else f"{kernel} {channels}"
        said = f"the kernel comes first: `{callee} {written}`"
        return [Fix(said, (Edit(first.span, written), *self._taken_out(arg, said).edits))]

    def _too_many(self, callee: str, parameters: Mapping[str, Parameter], names: Names, arg: ast.Argument) -> Fault:
        value = arg.value
        takes = _takes(callee, parameters)
        if isinstance(value, ast.Name) and value.name not in names.variables:
            help, fixes = respell(arg.span, value.name, parameters)
            help = help or takes
            if value.name in OPS or names.file.find_block(value.name):
                fixes = pipe_before(arg.span, value.name)
                help = fixes[0].help
            return self.fail("E0202", f"`{callee}` has no flag `{value.name}`", arg.span, help=help, fixes=fixes)
        return self.fail(
            "E0205", f"`{callee}` has too many arguments", arg.span, help=f"{takes}; elements are joined by `|`"
        )


def percent(value: ast.Expr) -> Span | None:
    """A share in percent at the end of a line, where the next line was taken for the divisor."""
    if not (isinstance(value, ast.Binary) and value.operator == "%" and isinstance(value.left, ast.Number)):
        return None
    text, end = value.span.source.text, value.right.span.start
    sign = re.compile(r"[ \t]*%").match(text, value.left.span.end)
    divisor = isinstance(value.right, ast.Name) and value.right.name in (*OPS, *LABEL_WORDS, *ENTRIES)
    if sign is None or not divisor or "\n" not in text[sign.end() : end]:
        return None
    return Span(value.span.source, value.span.start, sign.end())


def _open_range(value: ast.Expr, names: Names) -> Span | None:
    """The end of a range at the end of a line, where a word of the next line was taken for its end."""
    if not (isinstance(value, ast.Interval) and isinstance(value.high, ast.Name)) or value.high.name in names.variables:
        return None
    text, low, high = value.span.source.text, value.low.span.end, value.high.span.start
    end = text.find("\n", low, high)
    return Span(value.span.source, end, end) if end >= 0 else None


def _is_name(value: ast.Expr, name: str) -> bool:
    return isinstance(value, ast.Name) and value.name == name


def _takes(callee: str, parameters: Iterable[str]) -> str:
    """What a callee takes, in words."""
    listed = ", ".join(f"`{name}`" for name in parameters)
    return f"`{callee}` takes {listed or 'no arguments'}"
