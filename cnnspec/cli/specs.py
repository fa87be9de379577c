"""The commands on specs, which work without torch."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnspec.api import format as format_text
from cnnspec.cli.options import (
    STDIN,
    AllowHuge,
    AsJson,
    AtSize,
    Settings,
    SpecFile,
    SpecPaths,
    compile_at,
    compile_spec,
    format_of,
    one_of,
    settings,
    spec_paths,
)
from cnnspec.cli.output import escape_json, print_diagnostics, print_json, write_file
from cnnspec.compiler import locate
from cnnspec.diagnostics import (
    CnnspecError,
    Diagnostic,
    Reporter,
    counted,
    did_you_mean,
    echo,
    failure,
    named,
    printable,
)
from cnnspec.limits import MAX_FILE_BYTES, MAX_INTEGER
from cnnspec.lints import OFF_BY_DEFAULT
from cnnspec.resources import without_garbage_collection
from cnnspec.semantics.loader import read_stdin, read_text, shipped_folder

if TYPE_CHECKING:
    from cnnspec.analysis.summary import LargestBatch, Summary
    from cnnspec.cli.formats import Checked
    from cnnspec.compiler import Compilation
    from cnnspec.ir import Graph


def check(
    files: SpecPaths,
    sets: Settings = None,
    huge: AllowHuge = False,
    form: Annotated[
        str, typer.Option("--format", help="Output format: full, concise, json, sarif, or github.")
    ] = "full",
    as_json: AsJson = False,
    fix: Annotated[bool, typer.Option("--fix", help="Apply the fixes that are certain, then check again.")] = False,
    lints: Annotated[
        list[str] | None,
        typer.Option("--lint", metavar="CODE", help="Also report a lint that is off by default: W0120."),
    ] = None,
) -> int:
    """Check the syntax, names, shapes and contracts of specs."""
    from cnnspec.cli import formats as rendering

    form = format_of(form, as_json, rendering.FORMATS, "full")
    on = [one_of("--lint", code, sorted(OFF_BY_DEFAULT)) for code in lints or ()]
    results: list[Checked] = []
    failed = False
    if fix and STDIN in files:
        raise typer.BadParameter("cannot change the standard input", param_hint="--fix")
    for file, missing in _each_path(files):
        fixed: list[Diagnostic] | None = None
        try:
            done = None
            if missing is not None:
                raise missing
            if fix:
                fixed, done = _fix(file, sets, huge, on)
            done = done or compile_spec(file, sets, huge, on)
            result = rendering.Checked(file, done.diagnostics, done.graph, fixed)
        except CnnspecError as error:
            result = rendering.Checked(file, error.diagnostics, None, fixed)
        failed |= not result.ok
        if form in ("full", "concise", "github"):
            print_result(result, form)
        else:
            results.append(result)
    if form == "json":
        print_json(rendering.to_json(results))
    elif form == "sarif":
        import cnnspec
        from cnnspec.diagnostics.explain import titles

        print_json(rendering.to_sarif(results, cnnspec.__version__, titles()))
    return int(failed)


def _each_path(files: Iterable[str]) -> Iterator[tuple[str, CnnspecError | None]]:
    """Yield each spec, and each folder without specs with its error."""
    for file in files:
        try:
            yield from ((path, None) for path in spec_paths([file]))
        except CnnspecError as error:
            yield file, error


def print_result(result: Checked, form: str) -> None:
    """Print the result of a check in one of the formats that are written file by file: full, concise or github."""
    from cnnspec.cli import formats as rendering

    for diagnostic in result.fixed or ():
        echo(f"{result.file}:{diagnostic.line}: fixed {diagnostic.code}: {diagnostic.message}", file=sys.stderr)
    if form != "full":
        line = rendering.concise if form == "concise" else rendering.github
        for diagnostic in result.diagnostics:
            sys.stdout.write(f"{line(diagnostic, result.file)}\n")
        return
    if result.diagnostics:
        sys.stdout.flush()
        print_diagnostics(result.diagnostics)
    if not result.ok:
        count = sum(d.severity == "error" for d in result.diagnostics)
        echo(f"{result.file}: {counted(count, 'error')}", file=sys.stderr)
    elif result.graph is not None:
        _print_figures(result.file, result.graph)
    else:
        echo(f"{result.file}: ok, blocks only")


def _print_figures(file: str, graph: Graph) -> None:
    from cnnspec.shapes import outputs_text

    echo(
        f"{file}: ok, {graph.input_text} -> {outputs_text(graph.output_shape, graph.output_shapes)}, "
        f"{graph.parameter_count:,} parameters, {graph.macs / 1e6:,.2f} MMACs, {graph.sizes.words()}"
    )


def _fix(
    file: str, sets: list[str] | None, huge: bool, lints: Sequence[str]
) -> tuple[list[Diagnostic], Compilation | None]:
    """Apply the fixes that are certain to a file, and return what was fixed and the compilation of the new text.

    A shipped spec stays as it is, and is not compiled.
    """
    from cnnspec.rewrite.autofix import apply_fixes

    path, name = locate(file)
    if path.resolve().is_relative_to(shipped_folder()):
        return [], None
    reporter = Reporter()
    if read_text(path, name, reporter) is None:
        raise CnnspecError(reporter.sorted())
    with path.open("rb") as opened:
        data = opened.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:  # the check reports it
        return [], None
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    text = data[len(mark) :].decode()
    changed, fixed, done = apply_fixes(text, name, path, settings(sets), allow_huge=huge, lints=lints)
    if changed != text:
        write_file(path, mark + changed.encode())
    return fixed, done


def explain(code: Annotated[str, typer.Argument(metavar="CODE", help="A code such as E0301 or W0101.")]) -> None:
    """Explain a code of an error or lint, with a sample that fails and the fixed sample."""
    from cnnspec.diagnostics.explain import explanation, titles

    try:
        echo(*explanation(code.upper()).removesuffix("\n").split("\n"))
    except KeyError:
        hint = did_you_mean(code.upper(), titles()) or "a code looks like `E0301`"
        raise typer.BadParameter(f"unknown code `{code}`; {hint}", param_hint="CODE") from None


def fmt(
    files: SpecPaths,
    check_only: Annotated[
        bool, typer.Option("--check", help="Do not write files; exit with 1 if a file is not formatted.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Do not write files; print the changes as a diff.")] = False,
) -> int:
    """Format specs; `-` reads from the standard input and writes to the standard output."""
    pending = failed = 0
    for file in spec_paths(files):
        reporter = Reporter()
        path, name = locate(file)
        text = read_stdin(reporter) if file == "-" else read_text(path, name, reporter)
        try:
            if text is None:
                raise CnnspecError(reporter.sorted())
            if path != Path(file) and not (check_only or diff):
                help = f"copy {path}, or write a file that starts with `extends {path.stem}`"
                raise failure(
                    "E0212", f"`{file}` is a shipped spec and cannot be formatted in place", file=file, help=help
                )
            new = format_text(text, file)
        except CnnspecError as error:
            print_diagnostics(error.diagnostics)
            failed += 1
            continue
        if file == "-" and not (check_only or diff):
            _write_text(new)
            continue
        if new == text and (file == "-" or path.read_bytes() == new.encode()):
            continue
        pending += 1
        if diff:
            import difflib

            names = printable(file), f"{printable(file)} (formatted)"
            for line in difflib.unified_diff(text.splitlines(True), new.splitlines(True), *names):
                sys.stdout.write(printable(line, keep="\t\n"))
        elif check_only:
            echo(f"{file}: not formatted")
        else:
            write_file(path, new.encode())
            echo(f"{file}: formatted")
    return int(bool(failed or (pending and (check_only or diff))))


def _write_text(text: str) -> None:
    """Write a spec to the standard output, in the encoding of specs. On a terminal, it is escaped."""
    if sys.stdout.isatty():
        sys.stdout.write(printable(text, keep="\t\n"))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())


FORMATS = ("table", "json", "csv", "markdown")


def summary(
    files: SpecPaths,
    depth: Annotated[
        int | None, typer.Option(help="Levels of nested modules to show (default: 2; in JSON, all).", min=1)
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="A,B,...", help="Columns to show for each module.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="Output format: table, json, csv, or markdown.")] = "table",
    batch: Annotated[int, typer.Option(help="Batch size.", min=1, max=MAX_INTEGER)] = 1,
    max_batch: Annotated[
        str | None,
        typer.Option(
            "--max-batch", metavar="MEMORY", help="Print the largest batch size that trains in 16GiB, 500MB, ..."
        ),
    ] = None,
    symbolic: Annotated[
        bool, typer.Option("--symbolic", help="Show shapes, operations and memory as functions of the image size.")
    ] = False,
    at: AtSize = None,
    sets: Settings = None,
    huge: AllowHuge = False,
    as_json: AsJson = False,
) -> int:
    """Show shapes, parameters, operations, memory and receptive fields per module."""
    from cnnspec.analysis.summary import COLUMNS, DEFAULT_COLUMNS, largest_batch, parse_bytes, summarize

    one_of("--format", format, FORMATS)
    chosen = DEFAULT_COLUMNS if columns is None else tuple(name.strip() for name in columns.split(","))
    for name in chosen:
        one_of("--columns", name, COLUMNS)
        if chosen.count(name) > 1:
            raise typer.BadParameter(f"duplicate column `{name}`", param_hint="--columns")
    try:
        memory = None if max_batch is None else parse_bytes(max_batch)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--max-batch") from None
    failed, objects = False, list[Any]()
    paths = spec_paths(files)
    for file in paths:
        try:
            graph = compile_at(file, sets, at, huge)
        except CnnspecError as error:
            if len(paths) == 1:
                raise
            if error.diagnostics[0].code == "E0108" and file not in files:  # blocks in a folder
                table = format == "table" and not as_json
                echo(f"{file}: {_blocks_of(file)}", file=sys.stdout if table else sys.stderr)
                continue
            print_diagnostics(error.diagnostics)
            failed = True
            continue
        done = summarize(graph, batch, symbolic=symbolic)
        largest = None if memory is None else largest_batch(graph, memory)
        if as_json or format == "json":
            data = done.to_json(tuple(COLUMNS) if columns is None else chosen, depth)
            objects.append({**data, **({"max_batch": largest.to_json()} if largest else {})})
        else:
            _print_summary(done, format, depth or 2, chosen, largest)
    if as_json or format == "json":
        print_json(objects[0] if len(paths) == 1 else objects)
    return int(failed)


def _blocks_of(file: str) -> str:
    """Return which blocks a spec without a network defines."""
    from cnnspec.syntax.ast import Block

    tree = compile_spec(file).tree
    names = [statement.name for statement in tree.statements if isinstance(statement, Block)] if tree else []
    return f"blocks only: {named(names)}"


@without_garbage_collection()
def _print_summary(done: Summary, format: str, depth: int, chosen: Sequence[str], largest: LargestBatch | None) -> None:
    if format == "table":
        from cnnspec.cli.tables import print_summary

        print_summary(done, depth, chosen)
    else:
        lines = done.to_csv(chosen, depth) if format == "csv" else done.to_markdown(chosen, depth)
        echo(*lines.removesuffix("\n").split("\n"))
    if largest:
        blank = [""] if format == "markdown" else []
        echo(*blank, *largest.text().split("\n"), file=sys.stderr if format == "csv" else sys.stdout)


def show(
    file: SpecFile,
    stage: Annotated[str, typer.Option(help="Stage to print: tree, model, or graph.")] = "graph",
    sets: Settings = None,
    huge: AllowHuge = False,
    as_json: AsJson = False,
) -> None:
    """Print a stage of the compilation: the syntax tree, the model, or the checked graph."""
    from cnnspec.cli import dump as inspection

    one_of("--stage", stage, inspection.STAGES)
    done = compile_spec(file, sets, huge)
    text = inspection.show(done, stage, as_json=as_json)
    if as_json or stage == "model":
        sys.stdout.write(f"{escape_json(text)}\n")
    else:
        echo(*text.split("\n"))


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A spec file, or the name of a shipped spec.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A second spec to compare with the first.")],
    sets: Settings = None,
    huge: AllowHuge = False,
    as_json: AsJson = False,
) -> int:
    """Compare two networks module by module; exit with 1 if they differ."""
    from cnnspec.analysis.diff import compare

    done = compare(compile_spec(a, sets, huge).require_graph(), compile_spec(b, sets, huge).require_graph())
    if as_json:
        print_json(done.to_json())
        return int(not done.same)
    if done.same:
        echo(f"{done.names[0]} and {done.names[1]} are the same network")
        return 0
    signs = {"added": "+", "removed": "-"}
    for change in done.changes:
        if change.kind == "changed":
            echo(f"~ {change.path}: {change.before}", f"  {' ' * len(change.path)}  {change.after}")
        else:
            echo(f"{signs[change.kind]} {change.path}: {change.before or change.after}")
    for name, (before, after) in done.totals.items():
        echo(f"{name.replace('_', ' ')}: {before:,} -> {after:,} ({after - before:+,})")
    return 1


def list_(
    family: Annotated[
        str | None, typer.Argument(metavar="FAMILY", help="A family of networks, such as resnet, to describe.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped networks by family, the standard blocks, and the operators."""
    from cnnspec.cli import dump as inspection

    listing = inspection.listing()
    specs = listing["specs"]
    groups = inspection.families(specs)
    if family is not None:
        if family not in groups:
            hint = did_you_mean(family, groups) or f"the families are {', '.join(groups)}"
            raise typer.BadParameter(f"unknown family `{family}`; {hint}", param_hint="FAMILY")
        chosen = {name: specs[name] for name in groups[family]}
        if as_json:
            print_json({"specs": chosen})
        else:
            echo(*inspection.table(chosen))
        return
    if as_json:
        print_json({"families": groups, **listing})
        return
    echo("networks by family (`cnnspec list FAMILY` describes them):")
    echo(*inspection.table({name: " ".join(members) for name, members in groups.items()}))
    for title in ("blocks", "operators"):
        echo("", f"{title}:", *inspection.table(listing[title]))
