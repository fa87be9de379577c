"""The command line. Torch is imported only by the commands that compute with it."""

from __future__ import annotations

import gc

gc.disable()  # imports leave nothing behind that is worth a search: a fifth of the time to start

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any, NoReturn  # noqa: E402

import typer  # noqa: E402

from cnnspec.compiler import Compilation, compile_file  # noqa: E402
from cnnspec.diagnostics import CnnspecError, Diagnostic, did_you_mean, failure, render  # noqa: E402
from cnnspec.ir import Graph  # noqa: E402

gc.freeze()
gc.enable()

app = typer.Typer(
    help="Describe a convolutional network in a few lines of text; check it, build it, train it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SpecFile = Annotated[str, typer.Argument(metavar="FILE", help="A spec file, or the name of a shipped spec.")]
SpecFiles = Annotated[list[str], typer.Argument(metavar="FILE...", help="Spec files, or names of shipped specs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="Give a `param` of the spec another value.")
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        help="cifar10, cifar100, fashion_mnist, mnist, fashion_mini, or folder:PATH (also folder with --data-dir).",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where data sets lie or are downloaded to (default: data)."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never download.")]


def main() -> NoReturn:
    """Runs the command line: exit 0 fine, 1 the spec or its data is at fault, 2 usage or a bug."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except CnnspecError as error:
        _print_diagnostics(error.diagnostics)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # usage errors of the command line
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        if type(error).__name__ == "Abort":
            sys.exit(130)
        if os.environ.get("CNNSPEC_DEBUG"):
            raise
        print(f"internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("this is a bug of cnnspec; CNNSPEC_DEBUG=1 shows where", file=sys.stderr)
        sys.exit(2)


def _print_diagnostics(diagnostics: Any) -> None:
    color = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print("\n\n".join(render(diagnostic, color=color) for diagnostic in diagnostics), file=sys.stderr)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def _settings(pairs: list[str] | None) -> dict[str, str]:
    settings: dict[str, str] = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign or not key.isidentifier() or not value.strip():
            raise typer.BadParameter(f"`{pair}` is not of the form name=value", param_hint="--set")
        settings[key] = value
    return settings


def _compile(file: str, pairs: list[str] | None = None) -> Compilation:
    done = compile_file(file, _settings(pairs))
    warnings = [d for d in done.diagnostics if d.severity == "warning"]
    if warnings and not done.report.failed:
        _print_diagnostics(warnings)
    return done


def _version(show: bool) -> None:
    if show:
        import cnnspec

        print(f"cnnspec {cnnspec.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def check(files: SpecFiles, sets: Settings = None, as_json: AsJson = False) -> int:
    """Check shapes, names and contracts, and explain every fault at its place."""
    results: list[dict[str, Any]] = []
    failed = False
    for file in files:
        try:
            done = compile_file(file, _settings(sets))
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
                }
                entry |= {"name": graph.name, **figures}
            results.append(entry)
            continue
        if diagnostics:
            sys.stdout.flush()
            _print_diagnostics(diagnostics)
        if wrong:
            count = sum(d.severity == "error" for d in diagnostics)
            print(f"{file}: {count} error{'s' * (count > 1)}", file=sys.stderr)
        elif graph is not None:
            from cnnspec.shapes import text

            print(
                f"{file}: ok, {text(graph.input_shape)} -> {text(graph.output_shape)}, {graph.parameter_count:,} parameters, {graph.macs / 1e6:,.2f} MMACs"
            )
        else:
            print(f"{file}: ok, blocks only")
    if as_json:
        _print_json({"version": 1, "files": results})
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
            _print_diagnostics(error.diagnostics)
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
    sets: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Show shapes, parameters, multiply-adds and activation memory by module."""
    from cnnspec.summary import summarise

    graph = _compile(file, sets).require_graph()
    if as_json:
        _print_json(summarise(graph).to_json())
    else:
        _print_summary(graph, depth)


def _print_summary(graph: Graph, depth: int) -> None:
    from rich import box
    from rich.table import Table

    from cnnspec.shapes import text
    from cnnspec.summary import summarise

    done = summarise(graph)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{done.name}: {text(done.input_shape)} -> {text(done.output_shape)}",
        title_justify="left",
    )
    for title in ("module", "is", "output", "parameters", "MACs", "activations"):
        table.add_column(
            title, justify="left" if title in ("module", "is", "output") else "right", no_wrap=True, overflow="ellipsis"
        )
    for row in done.upto(depth):
        indent = "  " * (row.depth - 1)
        table.add_row(
            indent + row.path.rpartition(".")[2],
            row.kind,
            text(row.shape),
            f"{row.parameters:,}",
            f"{row.macs:,}",
            _bytes(row.activations),
        )
    table.add_section()
    table.add_row(
        "total",
        f"depth {done.depth}",
        text(done.output_shape),
        f"{done.parameters:,}",
        f"{done.macs:,}",
        _bytes(done.activations),
    )
    _console().print(table)
    print("activations: outputs of all operators, one image, float32")


def _console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(width=None if stream.isatty() else 120, highlight=False, stderr=stderr)


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.2f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


@app.command()
def show(
    file: SpecFile,
    stage: Annotated[str, typer.Option(help="tree, model, or graph.")] = "graph",
    sets: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Print a stage of the compilation: what was read, what it means, what was proven."""
    from cnnspec import inspection

    if stage not in inspection.STAGES:
        raise typer.BadParameter(f"`{stage}` is not one of {', '.join(inspection.STAGES)}", param_hint="--stage")
    done = _compile(file, sets)
    print(inspection.show(done, stage, as_json=as_json))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A spec file, or the name of a shipped spec.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    sets: Settings = None,
    as_json: AsJson = False,
) -> int:
    """Tell what changes from one network to another, by module; exit 1 when they differ."""
    from cnnspec.difference import compare

    done = compare(_compile(a, sets).require_graph(), _compile(b, sets).require_graph())
    if as_json:
        _print_json(done.to_json())
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
        _print_json(listing)
        return
    for title, entries in listing.items():
        print(f"{title}:")
        width = max(len(name) for name in entries)
        for name, text in entries.items():
            print(f"  {name:<{width}}  {text}".rstrip())
        print()


@app.command()
def build(
    file: SpecFile,
    train: Annotated[bool, typer.Option("--train", help="Train the network by its recipe.")] = False,
    data: DataName = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    sets: Settings = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of weights, order and augmentation.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where run folders go.")] = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest unfinished run of this network.")
    ] = False,
    offline: Offline = False,
    accelerator: Annotated[str, typer.Option(help="Handed to Lightning.")] = "auto",
    devices: Annotated[str, typer.Option(help="Handed to Lightning.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="Handed to Lightning, e.g. bf16-mixed (default: 32-true).")
    ] = None,
    strategy: Annotated[str, typer.Option(help="Handed to Lightning.")] = "auto",
    as_json: AsJson = False,
) -> int:
    """Compile a network to a torch module; with --train, train and test it."""
    graph = _compile(file, sets).require_graph()
    if not train:
        defaults = {
            "--out": (out, Path("runs")),
            "--accelerator": (accelerator, "auto"),
            "--strategy": (strategy, "auto"),
        }
        defaults |= {"--devices": (devices, "auto"), "--data": (data, None), "--data-dir": (data_dir, None)}
        defaults |= {"--precision": (precision, None), "--epochs": (epochs, None), "--batch": (batch, None)}
        defaults |= {"--resume": (resume, False), "--offline": (offline, False)}
        stray = {option: value != default for option, (value, default) in defaults.items()}
        for option, value in stray.items():
            if value:
                raise typer.BadParameter("has no effect without --train", param_hint=option)
        return _try_out(graph, seed, as_json)
    from cnnspec import training

    sets_again = "".join(f" --set {pair}" for pair in sets or [])
    place = "" if out == Path("runs") else f" --out {out}"
    options = training.TrainOptions(
        data=_data(graph, data, data_dir),
        data_dir=data_dir or Path("data"),
        offline=offline,
        epochs=epochs,
        batch=batch,
        seed=seed,
        out=out,
        resume=resume,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        strategy=strategy,
        resume_command=f"cnnspec build {file}{sets_again} --train --resume{place}"
        + (f" --data-dir {data_dir}" if data_dir else ""),
        console=_console(stderr=as_json),
    )
    result = training.train(graph, options)
    if as_json:
        _print_json(result.values)
    elif result.state == "finished":
        _print_result(result)
    return result.exit_code


def _try_out(graph: Graph, seed: int | None, as_json: bool) -> int:
    """Builds a module and runs it forward and backward on two random images."""
    from cnnspec.compiler import build as build_module

    module = build_module(graph)
    import torch

    if seed is not None:
        torch.manual_seed(seed)
    images = torch.randn(2, *graph.input_shape)
    given = module(images)
    parts = [given] if isinstance(given, torch.Tensor) else [given[0], *given[1]]
    torch.stack([part.square().mean() for part in parts]).sum().backward()
    shape = tuple(parts[0].shape[1:])
    counted = sum(weight.numel() for weight in module.parameters())
    if shape != graph.output_shape or counted != graph.parameter_count:
        raise AssertionError(
            f"the module gives {shape} with {counted} parameters, the check says {graph.output_shape} with {graph.parameter_count}"
        )
    if as_json:
        from cnnspec.summary import summarise

        _print_json(summarise(graph).to_json())
    else:
        _print_summary(graph, 2)
        print(f"forward and backward pass on {tuple(images.shape)}: ok, {counted:,} parameters")
    return 0


def _data(graph: Graph, text: str | None, data_dir: Path | None) -> Any:
    """The data set of `--data`, with the recipe's own arguments where it is the recipe's set."""
    from cnnspec.recipe import DATA_SETS, Folder, Setting

    if text is None:
        return None
    name, _, path = text.replace(" ", ":", 1).partition(":")
    if name == "folder" and not path and data_dir:
        path = str(data_dir)
    if name == "folder" and path:
        return Setting.of(Folder(path=path))
    if name not in DATA_SETS or path or name == "folder":
        known = ", ".join("folder:PATH" if n == "folder" else n for n in DATA_SETS)
        raise failure(
            "E0502", f"there is no data set `{text}`", help=f"{did_you_mean(name, DATA_SETS) or 'choose one'} ({known})"
        )
    return graph.recipe.data if graph.recipe.data.name == name else Setting.of(DATA_SETS[name]())


def _print_result(result: Any) -> None:
    from rich import box
    from rich.table import Table

    values = result.values
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{values['network']} on {values['data']}", title_justify="left", show_header=False
    )
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    for key in ("val_acc", "test_acc"):
        if values[key] is not None:
            table.add_row({"val_acc": "validation accuracy", "test_acc": "test accuracy"}[key], f"{values[key]:.2%}")
    table.add_row("parameters", f"{values['parameters']:,}")
    table.add_row("MACs", f"{values['macs']:,}")
    table.add_row("epochs", str(values["epochs"]))
    table.add_row("seconds", f"{values['seconds']:,.1f}")
    _console().print(table)
    print(f"{result.folder}/result.json")


@app.command()
def test(
    file: SpecFile,
    weights: Annotated[Path, typer.Option(metavar="FILE", help="A .safetensors, .pt or Lightning .ckpt file.")],
    match: Annotated[str, typer.Option(help="How tensors are matched: name or order.")] = "name",
    data: DataName = None,
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    sets: Settings = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Test a network with trained weights."""
    if match not in ("name", "order"):
        raise typer.BadParameter(f"`{match}` is neither name nor order", param_hint="--match")
    if split not in ("val", "test"):
        raise typer.BadParameter(f"`{split}` is neither val nor test", param_hint="--split")
    graph = _compile(file, sets).require_graph()
    from cnnspec import training

    found = training.evaluate(
        graph,
        weights,
        match=match,
        data=_data(graph, data, data_dir),
        data_dir=data_dir or Path("data"),
        offline=offline,
        split=split,
    )
    if as_json:
        _print_json(found)
        return
    print(f"{found['matched']} tensors matched by {match}")
    print(
        f"{graph.name} on {found['data']['name']}, {split}: accuracy {found[f'{split}_acc']:.4f} ({found['correct']} of {found['images']}), loss {found[f'{split}_loss']:.4f}"
    )
