"""The stages of the compiler, in order.

    text --parse--> tree --elaborate--> Model --check--> Graph

Read this file first. Each stage is one function, and `compile_source` runs them. A backend turns the Graph into a torch
module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnspec import ir
from cnnspec.checker.check import check as check_model
from cnnspec.diagnostics import CnnspecError, Diagnostic, Reporter, Source, TooManyErrors, failure
from cnnspec.diagnostics.spelling import Search, searching
from cnnspec.diagnostics.trials import prove
from cnnspec.lints import lint
from cnnspec.resources import without_garbage_collection
from cnnspec.semantics.elaborate import elaborate
from cnnspec.semantics.inherited_errors import move_to_causes
from cnnspec.semantics.loader import SUFFIX, Library, read_text, shipped_specs
from cnnspec.semantics.parameter_values import parameter_value
from cnnspec.semantics.recipe_rules import network_conflicts
from cnnspec.semantics.train_section import to_diagnostic
from cnnspec.syntax import ast, parse

if TYPE_CHECKING:
    from cnnspec.checker.graph_builder import GraphBuilder


@dataclass
class Compilation:
    """The results of the stages that ran, and the diagnostics.

    Attributes:
        source: The text.
        reporter: The errors.
        tree: The syntax tree.
        model: The Model.
        graph: The checked network.
        library: The files that the spec uses and extends.
        expanded: The nodes and scopes of the network up to its errors; only a Graph is proven.
        recompile: Compiles another text in place of this one, with a limit on elements.
        files: The file that the text was read from, and those that it imports, whether they exist or not.
        search: The search for names with a similar spelling, which trials of fixes share.
        lints: Codes of lints to report that are off by default.
    """

    source: Source
    reporter: Reporter
    tree: ast.File | None = None
    model: ir.Model | None = None
    graph: ir.Graph | None = None
    library: Library | None = None
    expanded: GraphBuilder | None = None
    recompile: Callable[[str, int], Compilation] | None = None
    files: tuple[Path, ...] = ()
    search: Search = field(default_factory=Search)
    lints: Collection[str] = ()

    @cached_property
    def untested_diagnostics(self) -> list[Diagnostic]:
        """The errors, or if there are none the lints, in the order of their places; their fixes are not tested."""
        if self.tree is None or self.reporter.failed:
            return self.reporter.sorted()
        return lint(self.tree, self.graph, self.lints)

    @cached_property
    def diagnostics(self) -> list[Diagnostic]:
        """The errors, or if there are none the lints, with those fixes that were tested and work."""
        recompile = self.recompile
        if recompile is None:
            return self.untested_diagnostics
        if self.reporter.full:  # too many fixes to test
            return [replace(diagnostic, fixes=()) for diagnostic in self.untested_diagnostics]
        with searching(self.search):
            proven = prove(
                self.untested_diagnostics, self.source, lambda text, steps: recompile(text, steps).untested_diagnostics
            )
            if self.tree is None or self.library is None:
                return proven

            def again(text: str, steps: int) -> tuple[list[Diagnostic], ir.Model | None]:
                done = recompile(text, steps)
                return done.untested_diagnostics, done.model

            return move_to_causes(proven, self.tree, sum(map(len, self.library.texts(None).values())), again)

    def require_graph(self) -> ir.Graph:
        """Return the Graph.

        Raises:
            CnnspecError: The spec has errors, or no network.
        """
        if self.graph is not None:
            return self.graph
        if self.reporter.failed:
            raise CnnspecError(self.diagnostics)
        raise failure(
            "E0108",
            f"`{self.source.name}` defines blocks but no network",
            file=self.source.name,
            help="add `input` and layers, or import its blocks with `use`",
        )


def compile_source(
    source: Source,
    path: Path | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    steps: int | None = None,
    allow_huge: bool = False,
    lints: Collection[str] = (),
    buffers: Mapping[Path, str] | None = None,
) -> Compilation:
    """Run the stages on a text, up to the first that fails.

    Args:
        source: The text.
        path: The file that it was read from; imports are relative to its folder.
        params: Values for the parameters of the spec.
        steps: The limit on elements, if lower than `limits.MAX_STEPS`.
        allow_huge: Allow more than `limits.MAX_PARAMETERS` parameters and `limits.MAX_ELEMENTS` elements.
        lints: Codes of lints to report that are off by default.
        buffers: Texts that replace those of other files, by resolved path: what is open in an editor.
    """
    compilation = Compilation(source, Reporter(), lints=lints)

    def recompile(text: str, steps: int) -> Compilation:
        changed = Source(source.name, text)
        options: dict[str, Any] = {"allow_huge": allow_huge, "lints": lints, "buffers": buffers}
        return compile_source(changed, path, params, steps=steps, **options)

    compilation.recompile = recompile
    with without_garbage_collection(), searching(compilation.search):
        compilation.library = Library(path.parent if path else None, buffers)
        _run_stages(compilation, compilation.library, path, params, steps, allow_huge)
    return compilation


def _run_stages(
    compilation: Compilation,
    library: Library,
    path: Path | None,
    params: Mapping[str, Any] | None,
    steps: int | None,
    allow_huge: bool,
) -> None:
    source, reporter = compilation.source, compilation.reporter
    compilation.tree = parse(source, reporter)
    if compilation.tree is None:
        return
    if path:
        library.add(path, compilation.tree)
    values = {key: parameter_value(key, value) for key, value in (params or {}).items()}
    name = Path(source.name).stem.strip(".") or "network"  # `..` would name another folder
    try:
        compilation.model, source_map = elaborate(compilation.tree, library, values, name, reporter)
        if compilation.model is not None:
            graph = check_model(
                compilation.model,
                source_map,
                reporter,
                source.text,
                steps,
                allow_huge=allow_huge,
                observe=partial(setattr, compilation, "expanded"),
            )
            if graph is not None and not _conflicts(graph, compilation.tree, source.name, reporter):
                compilation.graph = replace(graph, files=library.texts(path))
    except TooManyErrors:
        pass
    compilation.files = library.files


def _conflicts(graph: ir.Graph, tree: ast.File, file: str, reporter: Reporter) -> bool:
    """Report the entries of the recipe that do not fit the network, and return whether there are any."""
    section = next((statement for statement in tree.statements if isinstance(statement, ast.Train)), None)
    entries = {entry.word: entry for entry in section.entries} if section else {}
    found = [*network_conflicts(graph.recipe, graph)]
    for one in found:
        reporter.add(to_diagnostic(one, one.code, graph.recipe, entries, file))
    return bool(found)


def locate(path_or_name: str | Path) -> tuple[Path, str]:
    """Return the file of a path or of a shipped spec, and its name for diagnostics."""
    path = Path(path_or_name)
    if path.name == str(path_or_name):
        shipped = shipped_specs().get(path.name.removesuffix(SUFFIX))
        if shipped is not None and (path.is_dir() or not path.exists()):
            return shipped, f"{shipped.stem}{SUFFIX}"
    return path, str(path_or_name)


def compile_file(
    path_or_name: str | Path,
    params: Mapping[str, Any] | None = None,
    *,
    allow_huge: bool = False,
    lints: Collection[str] = (),
) -> Compilation:
    """Run the stages on a file, or on a shipped spec by its name."""
    path, name = locate(path_or_name)
    reporter = Reporter()
    text = read_text(path, name, reporter)
    if text is None:
        return Compilation(Source(name, ""), reporter)
    return compile_source(Source(name, text), path, params, allow_huge=allow_huge, lints=lints)


_COMPARED_STEPS = 4_000
"""The limit on elements when the errors of two layouts of a text are compared."""


def format_text(source: Source) -> str:
    """Format a source.

    Raises:
        CnnspecError: It has syntax errors, or errors at the end of a line that the layout would turn into others.
        RuntimeError: The formatter has a bug: the tokens or the comments of the formatted text are different.
    """
    from cnnspec.syntax.formatter import format_file, significant

    reporter = Reporter()
    with searching(Search()):
        file = parse(source, reporter)
    if file is None or reporter.failed:
        raise CnnspecError(reporter.sorted())
    text = format_file(file)
    if text != source.text:
        parts = (Source(source.name, part) for part in (source.text, text))
        before, after = (compile_source(part, steps=_COMPARED_STEPS).reporter.sorted() for part in parts)
        if [found.code for found in before] != [found.code for found in after]:
            raise CnnspecError(before or after)
        if significant(text) != significant(source.text):
            raise RuntimeError(f"formatting `{source.name}` changes its meaning")
    return text


def plain_source(text: str, name: str) -> Source:
    r"""Return a source whose lines end in `\n`."""
    return Source(name, Source.plain(text))
