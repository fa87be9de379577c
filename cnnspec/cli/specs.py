"""The commands on specs; they need no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cnnspec.cli.app import (
    AllowHuge,
    AsJson,
    AtSize,
    Settings,
    SpecFile,
    SpecFiles,
    app,
    compile_at,
    compile_spec,
    print_diagnostics,
    print_json,
    print_summary,
    settings,
)
from cnnspec.compiler import compile_file
from cnnspec.diagnostics import CnnspecError, Diagnostic, counted, failure


@app.command()
def check(files: SpecFiles, sets: Settings = None, huge: AllowHuge = False, as_json: AsJson = False) -> int:
    """Check shapes, names and contracts, and explain every fault at its place."""
    results: list[dict[str, Any]] = []
    failed = False
    for file in files:
        try:
            done = compile_file(file, settings(sets), allow_huge=huge)
            diagnostics: list[Diagnostic] = done.diagnostics
            graph = done.graph
        except CnnspecError as error:
            diagnostics, graph = list(error.diagnostics), None
        wrong = any(d.severity == "error" for d in diagnostics)
        failed |= wrong
        if as_json:
            entry: dict[str, Any] = {"file": file, "ok": not wrong, "diagnostics": [d.to_json() for d in diagnostics]}
            if graph is not None:
                figures = {
                    "input": list(graph.input_shape),
                    "output": list(graph.output_shape),
                    "parameters": graph.parameter_count,
                    "macs": graph.macs,
                    "sizes": graph.sizes.to_json(),
                }
                entry |= {"name": graph.name, **figures}
            results.append(entry)
            continue
        if diagnostics:
            sys.stdout.flush()
            print_diagnostics(diagnostics)
        if wrong:
            count = sum(d.severity == "error" for d in diagnostics)
            print(f"{file}: {counted(count, 'error')}", file=sys.stderr)
        elif graph is not None:
            from cnnspec.shapes import text

            print(
                f"{file}: ok, {text(graph.input_shape)} -> {text(graph.output_shape)}, {graph.parameter_count:,} parameters, {graph.macs / 1e6:,.2f} MMACs, {graph.sizes.words()}"
            )
        else:
            print(f"{file}: ok, blocks only")
    if as_json:
        print_json({"version": 1, "files": results})
    return int(failed)


@app.command()
def fmt(
    files: SpecFiles,
    check_only: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 if a file is not formatted.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Change nothing; print what would change.")] = False,
) -> int:
    """Write specs in the one obvious way; `-` reads from the standard input."""
    from cnnspec import compiler
    from cnnspec.diagnostics import Report
    from cnnspec.library import read_text

    pending = failed = 0
    for file in files:
        report = Report()
        text = sys.stdin.read() if file == "-" else read_text(Path(file), file, report)
        try:
            if text is None:
                raise CnnspecError(report.sorted())
            new = compiler.format(text, file)
        except CnnspecError as error:
            print_diagnostics(error.diagnostics)
            failed += 1
            continue
        if file == "-" and not (check_only or diff):
            print(new, end="")
            continue
        if new == text and (file == "-" or Path(file).read_bytes() == new.encode()):
            continue
        pending += 1
        if diff:
            import difflib

            lines = difflib.unified_diff(text.splitlines(True), new.splitlines(True), file, f"{file} (formatted)")
            print("".join(lines), end="")
        elif check_only:
            print(f"{file}: not formatted")
        else:
            _write(Path(file), new)
            print(f"{file}: formatted")
    return int(bool(failed or (pending and (check_only or diff))))


def _write(path: Path, text: str) -> None:
    """Replaces a file as a whole, so that a fault on the way leaves the old one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(text.encode())
        temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path.resolve())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise failure(
            "E0212", f"`{path}` cannot be written: {(error.strerror or str(error)).lower()}", file=str(path)
        ) from None


@app.command()
def summary(
    file: SpecFile,
    depth: Annotated[int, typer.Option(help="How many levels of modules to show.", min=1)] = 2,
    at: AtSize = None,
    sets: Settings = None,
    huge: AllowHuge = False,
    as_json: AsJson = False,
) -> None:
    """Show shapes, parameters, multiply-adds and activation memory by module."""
    from cnnspec.summary import summarise

    graph = compile_at(file, sets, at, huge)
    if as_json:
        print_json(summarise(graph).to_json())
    else:
        print_summary(graph, depth)


@app.command()
def show(
    file: SpecFile,
    stage: Annotated[str, typer.Option(help="tree, model, or graph.")] = "graph",
    sets: Settings = None,
    huge: AllowHuge = False,
    as_json: AsJson = False,
) -> None:
    """Print a stage of the compilation: what was read, what it means, what was proven."""
    from cnnspec import inspection

    if stage not in inspection.STAGES:
        raise typer.BadParameter(f"`{stage}` is not one of {', '.join(inspection.STAGES)}", param_hint="--stage")
    done = compile_spec(file, sets, huge)
    print(inspection.show(done, stage, as_json=as_json))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A spec file, or the name of a shipped spec.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    sets: Settings = None,
    huge: AllowHuge = False,
    as_json: AsJson = False,
) -> int:
    """Tell what changes from one network to another, by module; exit 1 when they differ."""
    from cnnspec.difference import compare

    done = compare(compile_spec(a, sets, huge).require_graph(), compile_spec(b, sets, huge).require_graph())
    if as_json:
        print_json(done.to_json())
        return int(not done.same)
    if done.same:
        print(f"{done.names[0]} and {done.names[1]} are the same network")
        return 0
    signs = {"added": "+", "removed": "-"}
    for change in done.changes:
        if change.kind == "changed":
            print(f"~ {change.path}: {change.before}\n  {' ' * len(change.path)}  {change.after}")
        else:
            print(f"{signs[change.kind]} {change.path}: {change.before or change.after}")
    for name, (before, after) in done.totals.items():
        print(f"{name.replace('_', ' ')}: {before:,} -> {after:,} ({after - before:+,})")
    return 1


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the shipped specs, the standard blocks, and the operators."""
    from cnnspec import inspection

    listing = inspection.listing()
    if as_json:
        print_json(listing)
        return
    for title, entries in listing.items():
        print(f"{title}:")
        width = max(len(name) for name in entries)
        for name, text in entries.items():
            print(f"  {name:<{width}}  {text}".rstrip())
        print()
