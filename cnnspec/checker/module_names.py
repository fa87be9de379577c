"""Paths in the module tree."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cnnspec import ir
from cnnspec.checker.call_stack import CallStack
from cnnspec.checker.environment import Frame
from cnnspec.checker.values import ValueEvaluator
from cnnspec.diagnostics import Label, Reporter
from cnnspec.ir.evaluate import Template
from cnnspec.limits import MAX_NAME, MAX_PATH
from cnnspec.schema import Type

_NAME = Type("str")
_PART = r"[A-Za-z0-9_+/-]+"
_NAMES = re.compile(rf"{_PART}(\.{_PART})*")
"""A name that `name="..."` can give."""


@dataclass(slots=True)
class Namespace:
    """A level of the module tree, in which names are unique.

    A name may be a path, `convs.0`. Its scope `convs` is filled by all names that begin with it, and by nothing else.

    Attributes:
        path: The path of the module whose children are named here.
        used: The origin of each name.
        scopes: The origin of the first name in each scope that names with dots fill.
    """

    path: str
    used: dict[str, int] = field(default_factory=dict[str, int])
    scopes: dict[str, int] = field(default_factory=dict[str, int])
    _positions: int = 0
    _stages: int = 0

    def next_position(self) -> str:
        """Return the name of the next unnamed child: `0`, `1`, ..."""
        self._positions += 1
        return str(self._positions - 1)

    def next_stage(self) -> str:
        """Return the name of the next `stage`: `stage1`, `stage2`, ..."""
        self._stages += 1
        return f"stage{self._stages}"

    def join(self, name: str) -> str:
        """Return the path of a child."""
        return f"{self.path}.{name}" if self.path else name


class ModuleNamer:
    """Names calls and labeled pipelines."""

    def __init__(self, reporter: Reporter, calls: CallStack, values: ValueEvaluator) -> None:
        self._reporter, self._calls, self._values = reporter, calls, values
        self._patterns: dict[int, tuple[ir.Call, str, Frame]] = {}

    def claim(self, names: Namespace, name: str, origin: int) -> str:
        """Return the path of a name, and report a second use of it.

        Raises:
            Reported: The path is too long.
        """
        if name in names.used:
            self.report_duplicate(names, name, origin)
        if "." in name or name in names.scopes:
            self._enter_scopes(names, name, origin)
        names.used[name] = origin
        path = names.join(name)
        if len(path) > MAX_PATH:
            message = f"a module path exceeds the limit of {MAX_PATH:,} characters"
            raise self._reporter.error("E0405", message, **self._calls.locate(origin), help="use shorter labels")
        return path

    def _enter_scopes(self, names: Namespace, name: str, origin: int) -> None:
        """Enter the scopes of a name with dots, and report a name that is both a module and such a scope."""
        scopes = [name[: match.start()] for match in re.finditer(r"\.", name)]
        modules = [(scope, names.used[scope]) for scope in scopes if scope in names.used]
        if name in names.scopes:
            modules.append((name, names.scopes[name]))
        for module, first in modules:
            where = f"in the module `{names.path}`" if names.path else "in the network"
            inner = next((used for used in names.used if used.startswith(f"{module}.")), name)
            message = f"`{module}` {where} names both a statement and a module that contains `{inner}`"
            labels = self._calls.label(first, "first used here") if first != origin else []
            location = self._calls.locate(origin, labels=labels)
            self._reporter.error("E0209", message, **location, help="rename one of them")
        for scope in scopes:
            names.scopes.setdefault(scope, origin)

    def report_duplicate(self, names: Namespace, name: str, origin: int, first: int | None = None) -> None:
        """Report a second use of a name; `first` is the origin of the first use, if it is not a module."""
        where = f"the module `{names.path}`" if names.path else "the network"
        first = names.used.get(name, first)
        labels, help = list[Label](), "rename one of them"
        if first == origin:  # an earlier iteration of the same call
            help = "a label is the same in every iteration: name the calls instead, for example "
            help += f'`repeat 3 as i {{ conv 3x3 16 name="{re.sub("[.][0-9]+$", ".", name)}{{i}}" }}`'
            if origin in self._patterns:
                help = self._distinguish(*self._patterns[origin])
        elif first is not None:
            labels = self._calls.label(first, "first defined here")
        location = self._calls.locate(origin, labels=labels)
        self._reporter.error("E0209", f"duplicate name `{name}` in {where}", **location, help=help)

    def _distinguish(self, call: ir.Call, pattern: str, frame: Frame) -> str:
        """Return the help for a `name` that is the same in several iterations."""
        counters = ("i", "n") if call.repeat else ()
        fresh = (letter for letter in "rstuvw" if letter not in frame.values)
        indices, heads, renamed = list[str](), list[str](), list[str]()
        for group in reversed([scope.repeat for scope in frame.outward() if scope.repeat]):
            index = group.variable
            if index is None or index in counters:
                renamed += [index] if index in counters else []
                index, count = next(fresh, "r"), self._calls.source_map[group.count.origin]
                heads.append(f"repeat {count.text if count else '2'} as {index}")
            indices.append(index)
        if counters and not any(f"{{{counter}}}" in pattern for counter in counters):
            indices.append("i")
        missing = "_".join(f"{{{index}}}" for index in indices if f"{{{index}}}" not in pattern)
        stem, brace, filled = pattern.partition("{")
        name = f'name="{stem}{missing}_{brace}{filled}"' if brace else f'name="{stem}{missing}"'
        if not heads:
            what = "call" if counters and missing == "{i}" else "iteration"
            return f"add the index of the {what} to the name: `{name}`"
        written = " { ".join([*heads, self._code(call, name)]) + " }" * len(heads)
        if renamed:
            return (
                f"in a repeated call, `{{{renamed[0]}}}` is the index of the call, which shadows the variable "
                f"`{renamed[0]}` of the group: rename the variable, and use both: `{written}`"
            )
        return f"add the index of the iteration to the name: `{written}`"

    def _code(self, call: ir.Call, name: str) -> str:
        """Return the code of a call with another `name`."""
        source_map = self._calls.source_map
        whole, pattern = source_map.wholes.get(call.origin), call.name and source_map[call.name.origin]
        if whole is None or pattern is None:
            return f"{call.callee} {name}"
        text = whole.source.text
        before = re.sub(r"\bname[ \t]*=[ \t]*$", "", text[whole.start : pattern.start])
        return " ".join(f"{before}{name}{text[pattern.end : whole.end]}".split())

    def name(self, call: ir.Call, frame: Frame, names: Namespace, label: str | None, iteration: int | None) -> str:
        """Return the name of a call: its label, its `name` pattern, or its position.

        Args:
            call: The call.
            frame: The values for the pattern.
            names: The namespace of the call.
            label: The label of the statement, if the call is all of it.
            iteration: The iteration of a repeated call, from 0: the value of `{i}`.

        Raises:
            Reported: The name is too long.
        """
        if call.name is None:
            return label if label is not None else names.next_position()
        pattern = self._values.argument(call.name, frame, _NAME, "name")
        if label is not None:
            location = self._calls.locate(call.name.origin)
            message = f"the call has both the label `{label}` and a `name`"
            self._reporter.error("E0206", message, **location, help="remove one of them")
            return label
        if pattern is None or (frame.shape is None and "in." in pattern):
            return names.next_position()
        self._patterns[call.origin] = call, pattern, frame
        name = self._expand(pattern, frame, iteration, call.name.origin)
        return name if name is not None else names.next_position()

    def _expand(self, pattern: str, frame: Frame, iteration: int | None, origin: int) -> str | None:
        """Expand a `name` pattern; `None` if the result is not a name, after an error."""
        counters: dict[str, int] = {} if iteration is None else {"i": iteration, "n": iteration + 1}
        name = self._values.fill(pattern, frame, counters) if len(pattern) <= MAX_NAME else pattern
        if name is None:
            return None
        if len(name) > MAX_NAME:
            message = f"the name of a call exceeds the limit of {MAX_NAME} characters"
            raise self._reporter.error("E0405", message, **self._calls.locate(origin), help="use a shorter name")
        if not _NAMES.fullmatch(name):
            help = "use letters, digits, `_`, `-`, `+` and `/`; a dot separates the parts of a path"
            if "{" in name:
                help = '`{i}` and `{n}` are defined in repeated calls only: `conv x3 3x3 16 name="conv{n}"`'
            if isinstance(pattern, Template) and any(hole.kind == "text" for hole in pattern.holes):
                help = "write an expression in the braces, such as `{i + 1}`"
            self._reporter.error("E0215", f"invalid name `{name}`", **self._calls.locate(origin), help=help)
            return None
        return name
