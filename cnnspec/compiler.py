"""The stages in order: text, tree, Model, Graph, and from there to a module.

    text --parse--> tree --elaborate--> Model --check--> Graph --backend--> nn.Module

This is the file to read first. Each stage is one function; `compile_source` is the pipeline.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cnnspec import ir
from cnnspec.checker.check import check as check_model
from cnnspec.diagnostics import CnnspecError, Diagnostic, Reported, Reporter, Source, TooManyFaults, failure
from cnnspec.diagnostics.trials import prove
from cnnspec.ir.evaluate import ExpressionError, UnknownShape, evaluate
from cnnspec.limits import MAX_LITERAL, MAX_NAME
from cnnspec.lints import lint
from cnnspec.semantics.context import Context
from cnnspec.semantics.elaborate import elaborate
from cnnspec.semantics.loader import SUFFIX, Library, read_text, shipped_specs
from cnnspec.semantics.names import ExpressionResolver
from cnnspec.semantics.scope import FileScope, LocalScope
from cnnspec.syntax import ast, parse

if TYPE_CHECKING:
    pass


@dataclass
class Compilation:
    """What became of a text: each stage as far as it was reached, and what there is to say about it.

    Attributes:
        files: The file that it was read from, and those beside it that it takes from.
    """

    source: Source
    reporter: Reporter
    tree: ast.File | None = None
    model: ir.Model | None = None
    graph: ir.Graph | None = None
    again: Callable[[str, int], Compilation] | None = None
    files: tuple[Path, ...] = ()

    @cached_property
    def found(self) -> list[Diagnostic]:
        """Errors and lints in the order of their places; lints where there is no error."""
        if self.tree is None or self.reporter.failed:
            return self.reporter.sorted()
        return lint(self.tree, self.graph)

    @cached_property
    def diagnostics(self) -> list[Diagnostic]:
        """What was found, with those fixes alone that were tried and work."""
        again = self.again
        if again is None:
            return self.found
        if self.reporter.full:  # there is more to mend than to try
            return [replace(diagnostic, fixes=()) for diagnostic in self.found]
        return prove(self.found, self.source, lambda text, steps: again(text, steps).found)

    def require_graph(self) -> ir.Graph:
        """The Graph.

        Raises:
            CnnspecError: There is none.
        """
        if self.graph is None:
            if not self.reporter.failed:
                raise failure(
                    "E0108",
                    f"`{self.source.name}` defines blocks but no network",
                    file=self.source.name,
                    help="add `input` and layers, or take its blocks with `use`",
                )
            raise CnnspecError(self.diagnostics)
        return self.graph


def compile_source(
    source: Source,
    path: Path | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    steps: int | None = None,
    allow_huge: bool = False,
) -> Compilation:
    """Runs the stages on a text, as far as they go.

    Args:
        source: The text.
        path: The file that it was read from; other files are looked up beside it.
        params: Values for the spec's parameters.
        steps: At most so many elements are written out, where less than the limit is wanted.
        allow_huge: Whether it may have more than `limits.MAX_PARAMETERS` parameters.
    """
    done = Compilation(source, Reporter())

    def again(text: str, steps: int) -> Compilation:
        return compile_source(Source(source.name, text), path, params, steps=steps, allow_huge=allow_huge)

    done.again = again
    with _without_collection():
        _run_stages(done, path, params, steps, allow_huge)
    return done


@contextmanager
def _without_collection() -> Generator[None]:
    """Stops Python's search for unreachable cycles: it takes as long as all stages, and finds next to nothing."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _run_stages(
    done: Compilation, path: Path | None, params: Mapping[str, Any] | None, steps: int | None, allow_huge: bool
) -> None:
    source = done.source
    done.tree = parse(source, done.reporter)
    if done.tree is None:
        return
    library = Library(path.parent if path else None)
    if path:
        library.add(path, done.tree)
    given = {key: _value(key, value) for key, value in (params or {}).items()}
    name = Path(source.name).stem.strip(".") or "network"  # `..` would name another folder
    try:
        done.model, places = elaborate(done.tree, library, given, name, done.reporter)
        if done.model is not None:
            done.graph = check_model(done.model, places, done.reporter, source.text, steps, allow_huge=allow_huge)
    except TooManyFaults:
        pass
    done.files = library.files


def _value(key: str, value: Any) -> Any:
    """A value from outside as one of the language; a text is read as an expression."""
    if isinstance(value, str):
        source, reporter = Source(f"--set {key}", f"let value = {value}\n"), Reporter()
        file = parse(source, reporter)
        let = file.statements[0] if file and not reporter.failed and len(file.statements) == 1 else None
        if isinstance(let, ast.Let):
            assert file is not None
            scope = FileScope(file, lambda _: None)
            try:
                return evaluate(ExpressionResolver(Context(reporter)).resolve(let.value, LocalScope(scope, {})), {})
            except ExpressionError as fault:
                reporter.add(Diagnostic(fault.code, str(fault)))
            except (Reported, UnknownShape):
                pass
        if value.isidentifier() and len(value) <= MAX_NAME:
            return value
        raise failure(
            "E0204",
            f"`{key}={value if len(value) <= MAX_NAME else value[:MAX_NAME] + '...'}` is not a value",
            notes=[f"as an expression: {found.message}" for found in reporter.diagnostics[:1]],
            help="give a number, a size like 3x3, true or false, or the name of an operator",
        )
    _require_value(key, value)
    return value


def _require_value(key: str, value: object) -> None:
    """Refuses objects of Python that are no value of the language, in which numbers are finite and limited."""
    kind = type(value)
    parts = cast("tuple[Any, ...]", value) if kind is tuple else (cast(Any, value),)
    what = None
    if kind not in (bool, int, float, tuple):
        what = f"`{key}` cannot be a value of the type `{kind.__name__}`"
    elif kind is tuple and [type(part) for part in parts] != [int, int]:
        what = f"`{key}` is a tuple, but not of two integers"
    elif kind is float and not isfinite(parts[0]):
        what = f"`{key}` cannot be {value}"
    if what is not None:
        help = "give a number, a size like `(3, 3)`, a truth value, or the name of an operator"
        raise failure("E0204", what, help=help)
    if any(abs(part) > MAX_LITERAL for part in parts):
        raise failure("E0405", f"`{key}` is larger than the limit of {MAX_LITERAL}", help="give a smaller number")


def locate(path_or_name: str | Path) -> tuple[Path, str]:
    """The file that a path or the name of a shipped spec means, and what to call it."""
    path = Path(path_or_name)
    if path.name == str(path_or_name):
        shipped = shipped_specs().get(path.name.removesuffix(SUFFIX))
        if shipped is not None and not path.exists():
            return shipped, f"{shipped.stem}{SUFFIX}"
    return path, str(path_or_name)


def compile_file(
    path_or_name: str | Path, params: Mapping[str, Any] | None = None, *, allow_huge: bool = False
) -> Compilation:
    """Runs the stages on a file, or on a shipped spec by its name."""
    path, name = locate(path_or_name)
    reporter = Reporter()
    text = read_text(path, name, reporter)
    if text is None:
        return Compilation(Source(name, ""), reporter)
    return compile_source(Source(name, text), path, params, allow_huge=allow_huge)


def format_text(source: Source) -> str:
    """The text of a source as the one obvious way to write it.

    Raises:
        CnnspecError: It cannot be read.
    """
    from cnnspec.syntax.formatter import format_file

    reporter = Reporter()
    file = parse(source, reporter)
    if file is None or reporter.failed:
        raise CnnspecError(reporter.sorted())
    return format_file(file)


def plain_source(text: str, name: str) -> Source:
    """A source from a text with any line endings."""
    return Source(name, Source.plain(text))
