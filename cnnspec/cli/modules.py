"""The commands on modules: build, train, test. They import torch."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnspec.cli.app import (
    AllowHuge,
    AsJson,
    AtSize,
    DataDir,
    DataName,
    Offline,
    Settings,
    SpecFile,
    app,
    compile_at,
    compile_spec,
    make_console,
    one_of,
    print_json,
)
from cnnspec.diagnostics import did_you_mean, failure
from cnnspec.ir import Graph

if TYPE_CHECKING:
    from cnnspec.recipe import Recipe

Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per step.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of weights, order and augmentation.")]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where run folders go.")]
Handed = Annotated[str, typer.Option(help="Handed to Lightning.")]
Precision = Annotated[str | None, typer.Option(help="Handed to Lightning, e.g. bf16-mixed (default: 32-true).")]
MemoryFormat = Annotated[
    str | None, typer.Option(metavar="NAME", help="channels_last or contiguous (default: measured).")
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of torch (default: measured).")]
Allocator = Annotated[str, typer.Option(metavar="NAME", help="keep or default: whether large blocks are kept.")]
SaveEvery = Annotated[
    float, typer.Option("--save-every", metavar="S", min=0, help="Seconds between two checkpoints inside of an epoch.")
]
Pictures = Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw curves and the like.")]


@app.command()
def build(
    file: SpecFile,
    train: Annotated[bool, typer.Option("--train", help="Train the network by its recipe.")] = False,
    data: DataName = None,
    data_dir: DataDir = None,
    epochs: Epochs = None,
    batch: BatchSize = None,
    at: AtSize = None,
    sets: Settings = None,
    huge: AllowHuge = False,
    seed: Seed = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="What the weights start from; also torchvision:DEFAULT.")
    ] = None,
    fresh: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="A module that starts anew in spite of --weights.")
    ] = None,
    out: OutDir = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest unfinished run of this network.")
    ] = False,
    offline: Offline = False,
    save_every: SaveEvery = 300.0,
    log: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A further logger: wandb or mlflow.")] = None,
    memory_format: MemoryFormat = None,
    threads: Threads = None,
    allocator: Allocator = "keep",
    pictures: Pictures = True,
    accelerator: Handed = "auto",
    devices: Handed = "auto",
    precision: Precision = None,
    strategy: Handed = "auto",
    as_json: AsJson = False,
) -> int:
    """Compile a network to a torch module; with --train, train and test it."""
    if train and at is not None:
        raise typer.BadParameter(
            "has no effect with --train: images are brought to the size of `input`", param_hint="--at"
        )
    if fresh and weights is None:
        raise typer.BadParameter("has no effect without --weights: every module starts anew", param_hint="--fresh")
    graph = compile_at(file, sets, at, huge)
    if not train:
        defaults = {
            "--out": (out, Path("runs")),
            "--accelerator": (accelerator, "auto"),
            "--strategy": (strategy, "auto"),
        }
        defaults |= {"--devices": (devices, "auto"), "--data": (data, None), "--data-dir": (data_dir, None)}
        defaults |= {"--precision": (precision, None), "--epochs": (epochs, None), "--batch": (batch, None)}
        defaults |= {"--resume": (resume, False), "--offline": (offline, False)}
        defaults |= {"--save-every": (save_every, 300.0), "--log": (log or None, None)}
        defaults |= {"--memory-format": (memory_format, None), "--threads": (threads, None)}
        defaults |= {"--allocator": (allocator, "keep"), "--no-pictures": (pictures, True)}
        stray = {option: value != default for option, (value, default) in defaults.items()}
        for option, value in stray.items():
            if value:
                raise typer.BadParameter("has no effect without --train", param_hint=option)
        return _try_out(graph, weights, fresh or [], seed, as_json)
    stop_on_sigterm()
    from cnnspec import training

    sets_again = "".join(f" --set {pair}" for pair in sets or [])
    place = "" if out == Path("runs") else f" --out {out}"
    options = train_options(
        [graph.recipe],
        data,
        data_dir,
        offline=offline,
        epochs=epochs,
        batch=batch,
        seed=seed,
        weights=weights,
        fresh=tuple(fresh or ()),
        out=out,
        resume=resume,
        save_every=save_every,
        log=tuple(log or ()),
        memory_format=memory_format,
        threads=threads,
        allocator=allocator,
        pictures=pictures,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        strategy=strategy,
        resume_command=f"cnnspec build {file}{sets_again} --train --resume{place}"
        + (f" --data-dir {data_dir}" if data_dir else ""),
        console=make_console(stderr=as_json),
    )
    result = training.train(graph, options)
    if as_json:
        print_json(result.values)
    elif result.state == "finished":
        _print_result(result)
    return result.exit_code


def train_options(recipes: Sequence[Recipe], data: str | None, data_dir: Path | None, **given: Any) -> Any:
    """What is said beside the spec; the words among it are checked."""
    from cnnspec import training

    if given["memory_format"] is not None:
        one_of("--memory-format", given["memory_format"], ("channels_last", "contiguous"))
    one_of("--allocator", given["allocator"], ("keep", "default"))
    return training.TrainOptions(data=data_of(recipes, data, data_dir), data_dir=data_dir or Path("data"), **given)


@app.command()
def plan(
    file: SpecFile,
    data: DataName = None,
    data_dir: DataDir = None,
    epochs: Epochs = None,
    batch: BatchSize = None,
    sets: Settings = None,
    seed: Seed = None,
    out: OutDir = Path("runs"),
    offline: Offline = False,
    memory_format: MemoryFormat = None,
    threads: Threads = None,
    allocator: Allocator = "keep",
    pictures: Pictures = True,
    accelerator: Handed = "auto",
    devices: Handed = "auto",
    precision: Precision = None,
    strategy: Handed = "auto",
    as_json: AsJson = False,
) -> None:
    """Print everything that a training run would use, and start nothing."""
    graph = compile_spec(file, sets).require_graph()
    from cnnspec import training

    options = train_options(
        [graph.recipe],
        data,
        data_dir,
        offline=offline,
        epochs=epochs,
        batch=batch,
        seed=seed,
        out=out,
        memory_format=memory_format,
        threads=threads,
        allocator=allocator,
        pictures=pictures,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        strategy=strategy,
    )
    planned = training.plan(graph, options)
    if as_json:
        print_json(planned)
        return
    from cnnspec.training.runs.plan import plan_lines

    print("\n".join(plan_lines(planned)))


@app.command()
def runs(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Where run folders are.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List what has been trained, with its state and result."""
    from cnnspec.training.runs.listing import list_runs

    found = list_runs(out)
    if as_json:
        print_json(found)
        return
    if not found:
        print(f"no runs in {out}")
        return
    from rich import box
    from rich.table import Table

    from cnnspec.cli.tables import print_table

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("run", "state", "data", "epochs", "val acc", "test acc", "seconds"):
        table.add_column(title, justify="left" if title in ("run", "state", "data") else "right", no_wrap=True)
    for run in found:
        accuracies = ("" if run[key] is None else f"{run[key]:.2%}" for key in ("val_acc", "test_acc"))
        figures = (str(run["epochs"]), *accuracies, f"{run['seconds'] or 0:,.1f}")
        table.add_row(run["folder"], run["state"], str(run["data"]), *figures)
    print_table(table)


def stop_on_sigterm() -> None:
    """Until the run listens itself: a stop while torch is imported has the exit code of a stop."""

    def stop(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)


def _try_out(graph: Graph, weights: str | None, fresh: list[str], seed: int | None, as_json: bool) -> int:
    """Builds a module and runs it forward and backward on two random images."""
    from cnnspec import api

    api.torch_backend()
    import torch

    if seed is not None:
        torch.manual_seed(seed)
    module = api.build(graph, weights=weights, fresh=fresh)
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
    from cnnspec.analysis.summary import summarise

    if as_json:
        print_json(summarise(graph).to_json())
    else:
        from cnnspec.cli.tables import print_summary

        print_summary(summarise(graph), 2)
        print(f"forward and backward pass on {tuple(images.shape)}: ok, {counted:,} parameters")
    return 0


def data_of(recipes: Sequence[Recipe], text: str | None, data_dir: Path | None) -> Any:
    """The data set of `--data`, with the arguments of the first recipe that has this set."""
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
    own = (recipe.data for recipe in recipes if recipe.data.name == name)
    return next(own, None) or Setting.of(DATA_SETS[name]())


def _print_result(result: Any) -> None:
    from rich import box
    from rich.table import Table

    from cnnspec.cli.tables import print_table

    values = result.values
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    for key in ("val_acc", "test_acc"):
        if values[key] is not None:
            name = {"val_acc": "validation accuracy", "test_acc": "test accuracy"}[key]
            table.add_row(name + (" (flips averaged)" if values["recipe"]["tta"] else ""), f"{values[key]:.2%}")
    table.add_row("parameters", f"{values['parameters']:,}")
    table.add_row("MACs", f"{values['macs']:,}")
    table.add_row("epochs", str(values["epochs"]))
    table.add_row("seconds", f"{values['seconds']:,.1f}")
    print_table(table, f"{values['network']} on {values['data']}")
    print(f"{result.folder}/result.json")


@app.command()
def test(
    file: SpecFile,
    weights: Annotated[
        str, typer.Option(metavar="FILE", help="A .safetensors, .pt or Lightning .ckpt file; or torchvision:DEFAULT.")
    ],
    match: Annotated[str, typer.Option(help="How tensors are matched: name or order.")] = "name",
    data: DataName = None,
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    sets: Settings = None,
    huge: AllowHuge = False,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Test a network with trained weights."""
    if match not in ("name", "order"):
        raise typer.BadParameter(f"`{match}` is neither name nor order", param_hint="--match")
    if split not in ("val", "test"):
        raise typer.BadParameter(f"`{split}` is neither val nor test", param_hint="--split")
    graph = compile_spec(file, sets, huge).require_graph()
    from cnnspec import training

    found = training.evaluate(
        graph,
        weights,
        match=match,
        data=data_of([graph.recipe], data, data_dir),
        data_dir=data_dir or Path("data"),
        offline=offline,
        split=split,
    )
    if as_json:
        print_json(found)
        return
    print(f"{found['matched']} tensors matched by {match}" + (", flips averaged" if found["tta"] else ""))
    print(
        f"{graph.name} on {found['data']['name']}, {split}: accuracy {found[f'{split}_acc']:.4f} ({found['correct']} of {found['images']}), loss {found[f'{split}_loss']:.4f}"
    )
