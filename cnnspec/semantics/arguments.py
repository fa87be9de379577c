"""Bind arguments to parameters: by position, by keyword, or as a flag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnnspec import ir
from cnnspec.diagnostics import Reported
from cnnspec.schema import Type
from cnnspec.semantics.argument_hints import MALFORMED, NAMED, POSITIONAL, Hint, missing_arguments, without_channels
from cnnspec.semantics.call_site import Binding, CallSite
from cnnspec.semantics.context import Context
from cnnspec.semantics.name_hints import Use
from cnnspec.semantics.names import ExpressionResolver
from cnnspec.syntax import ast


@dataclass
class ArgumentBinder:
    """Binds the arguments of calls."""

    context: Context
    expressions: ExpressionResolver

    def bind(self, site: CallSite, *, complete: bool = True) -> dict[str, ir.Expr]:
        """Bind the arguments of a call.

        Args:
            site: The call.
            complete: Whether every required parameter needs a value; defaults of the file are filled in then.

        Returns:
            The arguments by parameter.

        Raises:
            Reported: At least one argument is wrong. Each wrong argument is reported.
        """
        binding = Binding(site, self.context.reporter)
        placed = _place(site)
        if placed is None:
            self._bind_doubtful(binding)
        else:
            for name, arg in placed.items():
                self._bind_one(binding, name, arg)
        if complete:
            self._complete(binding)
        if binding.failed:
            raise Reported
        return binding.values

    def _bind_one(self, binding: Binding, name: str, arg: ast.Argument) -> None:
        site = binding.site
        binding.spans[name] = arg.span
        try:
            if site.is_flag(arg):
                binding.values[name] = ir.Expr(kind="bool", value=True, origin=self.context.source_map.add(arg.span))
            else:
                parameter = site.parameter(name)
                assert parameter is not None
                binding.values[name] = self.expressions.resolve(
                    arg.value, site.scope, parameter.type, Use(site.callee, name)
                )
        except Reported:
            binding.fail(name)

    def _bind_doubtful(self, binding: Binding) -> None:
        """Bind the arguments one by one, except those that a hint refuses."""
        while binding.index < len(binding.site.args):
            binding.taken = 1
            arg = binding.arg
            if self._refused(binding):
                binding.fail(arg.name)
            else:
                name = binding.parameter
                assert name is not None
                self._bind_one(binding, name, arg)
            binding.index += binding.taken

    @staticmethod
    def _refused(binding: Binding) -> bool:
        if _report(MALFORMED, binding):
            return True
        arg = binding.arg
        binding.keyword_seen |= arg.name not in (None, "repeat")
        if arg.name is None and not binding.site.is_flag(arg):
            return _report(POSITIONAL, binding)
        return _report(NAMED, binding)

    @staticmethod
    def _complete(binding: Binding) -> None:
        """Fill in the defaults of the file and report required arguments that are missing."""
        site = binding.site
        for name, default in site.scope.file.defaults.get(site.callee, {}).items():
            binding.values.setdefault(name, default)
        missing = [p for p in site.parameters.values() if p.required and p.name not in binding.values]
        if not missing or binding.failed:
            return
        missing += without_channels(site)
        listed = ", ".join(f"`{parameter.name}`" for parameter in missing)
        help, fixes = missing_arguments(site, missing)
        message = f"`{site.callee}` is missing the required argument{'s' if len(missing) > 1 else ''} {listed}"
        raise binding.reporter.error("E0203", message, site.span, help=help, fixes=fixes)


def _report(hints: Sequence[Hint], binding: Binding) -> bool:
    return any(hint(binding) is not None for hint in hints)


def _place(site: CallSite) -> dict[str, ast.Argument] | None:
    """Assign each argument to a parameter: keywords and flags by name, the others in order.

    Returns:
        The arguments by parameter; None if an argument has no parameter, or may not fit its parameter.
    """
    placed: dict[str, ast.Argument] = {}
    end, named = -1, False
    for arg in site.args:
        if arg.span.start == end or not _is_on_one_line(arg.value):
            return None
        end = arg.span.end
        name = arg.name
        if name is not None:
            if "\n" in arg.span.text:
                return None
            named = True
        elif site.is_flag(arg):
            assert isinstance(arg.value, ast.Name)
            name, named = arg.value.name, True
        else:
            name = next((name for name in site.parameters if name not in placed), None)
            if named or name is None or not _fits(arg.value, site, site.parameters[name].type):
                return None
        if name in placed or site.parameter(name) is None:
            return None
        placed[name] = arg
    return placed


def _is_on_one_line(value: ast.Expr) -> bool:
    return not isinstance(value, (ast.Binary, ast.Interval)) or "\n" not in value.span.text


def _fits(value: ast.Expr, site: CallSite, type_: Type) -> bool:
    """Return whether a positional value evidently fits a parameter; a value that may not fit does not count."""
    if type_.kind == "tensor" or isinstance(value, (ast.Reference, ast.In)):
        return type_.kind == "tensor" and isinstance(value, (ast.Reference, ast.In))
    if type_.kind == "bool":
        return isinstance(value, ast.Bool)
    if isinstance(value, (ast.Bool, ast.SizeLiteral)):
        return isinstance(value, ast.SizeLiteral) and type_.kind == "size"
    if isinstance(value, ast.Number):
        return type_.kind in ("int", "size") or (type_.kind == "float" and value.value < 2)
    if isinstance(value, ast.Name):
        word = value.name
        return word[0] != "x" and word not in site.parameters and site.scope.meaning(word, type_) is not None
    return True
