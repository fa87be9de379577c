"""The commands on modules: build, train, test. They import torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cnnspec.cli.options import (
    AcceptChanges,
    AllowHuge,
    AsJson,
    AtSize,
    DataDir,
    DataName,
    InitialWeights,
    Match,
    Offline,
    Reinit,
    ResumeFrom,
    Settings,
    SpecFile,
    VerifyData,
    compile_at,
    compile_spec,
    data_folder,
)
from cnnspec.cli.output import importing, make_console, print_json
from cnnspec.cli.training_options import (
    Training,
    check_folder,
    check_weights,
    find_data,
    repeated_command,
    stop_on_sigterm,
    training_options,
)
from cnnspec.diagnostics import echo, failure
from cnnspec.ir import Graph


@dataclass(frozen=True, kw_only=True)
class Building:
    """Options of `build` and `train` besides those of the training itself."""

    sets: Settings = None
    huge: AllowHuge = False
    weights: InitialWeights = None
    match: Match = "name"
    reinit: Reinit = None
    resume_from: ResumeFrom = None
    as_json: AsJson = False


@training_options()
def build(
    context: typer.Context,
    file: SpecFile,
    *,
    train: Annotated[bool, typer.Option("--train", help="Train the network with its recipe.")] = False,
    training: Training,
    at: AtSize = None,
    building: Building,
) -> int:
    """Compile a network to a torch module; with --train, train and test it."""
    return _build(context, file, train, at, training, building)


@training_options()
def train(context: typer.Context, file: SpecFile, *, training: Training, building: Building) -> int:
    """Train a network with its recipe, and test it; short for `build --train`."""
    return _build(context, file, True, None, training, building)


def _build(
    context: typer.Context, file: str, train: bool, at: str | None, training: Training, building: Building
) -> int:
    weights, match, reinit, resume_from = building.weights, building.match, building.reinit, building.resume_from
    if train and at is not None:
        raise typer.BadParameter(
            "has no effect with --train: images are resized to the size of `input`", param_hint="--at"
        )
    if reinit and weights is None:
        raise typer.BadParameter(
            "has no effect without --weights: all modules are initialized at random", param_hint="--reinit"
        )
    if match != "name" and weights is None:
        raise typer.BadParameter("has no effect without --weights", param_hint="--match")
    if match == "order" and reinit:
        raise typer.BadParameter("has no effect with --match order", param_hint="--reinit")
    _check_match(match)
    if training.resume and resume_from is not None:
        raise typer.BadParameter("`--resume` and `--resume-from` cannot be used together", param_hint="--resume-from")
    if training.accept_changes and not (training.resume or resume_from):
        raise typer.BadParameter("has no effect without --resume", param_hint="--accept-changes")
    if resume_from is not None and not train:
        raise typer.BadParameter("has no effect without --train", param_hint="--resume-from")
    graph = compile_at(file, building.sets, at, building.huge)
    check_weights(weights)
    if not train:
        for option in training.given():
            if option != "--seed" and not (option == "--offline" and weights):
                raise typer.BadParameter("has no effect without --train", param_hint=option)
        return _try_out(graph, weights, match, reinit or [], training, building.as_json)
    stop_on_sigterm()
    more: dict[str, Any] = {}
    if resume_from is not None:  # `3` is the third run of this network
        more["resume"] = training.out / graph.name / resume_from if resume_from.isdecimal() else Path(resume_from)
    options = training.options(
        [graph.recipe],
        **more,
        weights=weights,
        match=match,
        reinit=tuple(reinit or ()),
        resume_command=repeated_command(context, *([] if "resume" in more or training.resume else ["--resume"])),
        console=make_console(stderr=building.as_json, lossy=True),
    )
    with importing():
        from cnnspec.training import train as train_network

    result = train_network(graph, options)
    if building.as_json:
        print_json(result.values)
    elif result.state == "finished":
        _print_result(result)
    return result.exit_code


@training_options(without=["resume", "accept_changes", "verify_data", "save_every", "log"])
def plan(
    file: SpecFile,
    *,
    training: Training,
    sets: Settings = None,
    weights: InitialWeights = None,
    as_json: AsJson = False,
) -> None:
    """Print everything that a training run would use and download, without starting it."""
    graph = compile_spec(file, sets).require_graph()
    options = training.options([graph.recipe], weights=weights)
    with importing():
        from cnnspec.training import plan as plan_run

    planned = plan_run(graph, options)
    if as_json:
        print_json(planned)
        return
    from cnnspec.training.runs.plan import plan_lines

    echo(*plan_lines(planned))


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DIR...", help="Folders of runs (default: runs, comparisons, sweeps).", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List training runs with their state and result, also those of comparisons and sweeps."""
    from cnnspec.training.runs.listing import list_runs

    places = folders or [Path(name) for name in ("runs", "comparisons", "sweeps")]
    found = [run for place in places for run in list_runs(place)]
    if as_json:
        print_json(found)
        return
    if not found:
        echo(f"no runs found in {', '.join(map(str, places))}")
        return
    from cnnspec.cli.tables import Justify, print_table

    titles: dict[str, Justify] = {}
    titles |= dict.fromkeys(("run", "state", "data"), "left")
    titles |= dict.fromkeys(("epochs", "val acc", "test acc", "seconds"), "right")
    rows: list[list[str]] = []
    for run in found:
        accuracies = ("" if run[key] is None else f"{run[key]:.2%}" for key in ("val_acc", "test_acc"))
        seconds = "" if run["seconds"] is None else f"{run['seconds']:,.1f}"
        rows.append([run["folder"], run["state"], run["data"] or "", str(run["epochs"] or 0), *accuracies, seconds])
    print_table([*titles.items()], rows)
    echo(*(f"{run['folder']}: {run['reason']}" for run in found if run["reason"]))


def _check_match(match: str) -> None:
    """Raise an error if `--match` is neither `name` nor `order` nor a JSON file."""
    if match not in ("name", "order") and not match.endswith(".json"):
        raise typer.BadParameter(f"`{match}` is not `name`, `order` or a `.json` file", param_hint="--match")


def _try_out(
    graph: Graph, weights: str | None, match: str, reinit: list[str], training: Training, as_json: bool
) -> int:
    """Build a module, and run it forward and backward on two random images."""
    from cnnspec import api

    with importing():
        api.torch_backend()
        import torch

        from cnnspec.backends.torch.module import split_images

    if training.seed is not None:
        torch.manual_seed(training.seed)
    module = api.build(graph, weights=weights, match=match, reinit=reinit, offline=training.offline)
    images = split_images(graph, torch.randn(2, *graph.input_shape))
    given = module(*images)
    named = graph.taps or {"": graph.output}
    if graph.taps:
        parts = list(given.values())
    else:
        parts = [given] if isinstance(given, torch.Tensor) else [given[0], *given[1]]
    torch.stack([part.square().mean() for part in parts]).sum().backward()
    found = {name: tuple(part.shape[1:]) for name, part in zip(named, parts, strict=False)}
    shapes = {name: graph.nodes[index].shape for name, index in named.items()}
    counted = sum(weight.numel() for weight in module.parameters())
    if found != shapes or counted != graph.parameter_count:
        raise AssertionError(
            f"the module returns {found} and has {counted} parameters, "
            f"the checker computed {shapes} and {graph.parameter_count}"
        )
    from cnnspec.analysis.summary import summarize

    if as_json:
        print_json(summarize(graph).to_json())
    else:
        from cnnspec.cli.tables import print_summary

        print_summary(summarize(graph), 2)
        read = " and ".join(str(tuple(image.shape)) for image in images)
        echo(f"forward and backward pass on {read}: ok, {counted:,} parameters")
    return 0


def _print_result(result: Any) -> None:
    from cnnspec.cli.tables import print_table

    values = result.values
    rows: list[list[str]] = []
    for key in ("val_acc", "test_acc"):
        if values[key] is not None:
            name = {"val_acc": "validation accuracy", "test_acc": "test accuracy"}[key]
            rows.append([name + (" (averaged over flips)" if values["recipe"]["tta"] else ""), f"{values[key]:.2%}"])
    metrics = (values["metrics"] or {}).get("test") or {}
    if metrics.get("top5_acc") is not None:
        rows.append(["test top-5 accuracy", f"{metrics['top5_acc']:.2%}"])
    if metrics:
        rows.append(["expected calibration error", f"{metrics['calibration_error']:.4f}"])
    rows += [["parameters", f"{values['parameters']:,}"], ["MACs", f"{values['macs']:,}"]]
    rows += [["epochs", str(values["epochs"])], ["seconds", f"{values['seconds']:,.1f}"]]
    title = f"{values['network']} on {values['data']}"
    print_table([("", "left"), ("", "right")], rows, title, header=False)
    echo(f"{result.folder}/result.json")


def preprocessing_line(values: dict[str, Any]) -> str:
    """Describe the preprocessing of a test and where it comes from."""
    from cnnspec.training.data.preprocessing import Preprocessing

    origins = values["origins"]
    used = Preprocessing.from_json({name: value for name, value in values.items() if name != "origins"})
    return f"preprocessing: {used} (normalize: {origins['normalize']}, resize: {origins['resize']})"


def test(
    file: SpecFile,
    weights: Annotated[
        str, typer.Option(metavar="FILE", help="A .safetensors, .pt or Lightning .ckpt file; or torchvision:DEFAULT.")
    ],
    match: Match = "name",
    data: DataName = None,
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(help="Split to evaluate: val or test.")] = "test",
    sets: Settings = None,
    huge: AllowHuge = False,
    verify_data: VerifyData = False,
    accept_changes: AcceptChanges = False,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Test a network with trained weights."""
    _check_match(match)
    if split not in ("val", "test"):
        raise typer.BadParameter(f"`{split}` is not one of val, test", param_hint="--split")
    graph = compile_spec(file, sets, huge).require_graph()
    check_weights(weights)
    setting = find_data([graph.recipe], data, data_dir)
    check_folder(setting or graph.recipe.data)
    with importing():
        from cnnspec.training import evaluate

    found = evaluate(
        graph,
        weights,
        match=match,
        data=setting,
        data_dir=data_folder(data_dir),
        offline=offline,
        split=split,
        verify_data=verify_data,
        accept_changes=accept_changes,
    )
    if as_json:
        print_json(found)
        return
    echo(*(f"accepted change: {change}" for change in found["data_changes"]))
    if found["data_is_other"]:
        echo("the data is another dataset than that of the training")
    echo(*(f"note: {note}" for note in (*found["data_notes"], *found["notes"])))
    echo(preprocessing_line(found["preprocessing"]))
    echo(
        f"{found['matched']} tensors matched by {match}" + (", averaged over flips" if found["tta"] else ""),
        f"{graph.name} on {found['data']['name']}, {split}: accuracy {found[f'{split}_acc']:.2%} "
        f"({found['correct']} of {found['images']}), loss {found[f'{split}_loss']:.4f}",
    )
    top5, error = found["metrics"]["top5_acc"], found["metrics"]["calibration_error"]
    echo(("" if top5 is None else f"top-5 accuracy {top5:.2%}, ") + f"expected calibration error {error:.4f}")


def match(
    file: SpecFile,
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS", help="A weights file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the map to this file (default: stdout).")
    ] = None,
    sets: Settings = None,
    huge: AllowHuge = False,
) -> None:
    """Propose a map from the modules of a network to those of a weights file, for --match."""
    graph = compile_spec(file, sets, huge).require_graph()
    from cnnspec import api

    check_weights(weights)
    with importing():
        network = api.torch_backend().to_module(graph)
        from cnnspec.backends.torch.matching import propose_map
        from cnnspec.backends.torch.weights import read_weights
        from cnnspec.files import write_atomically

    ordered = Path(weights).suffix.lower() != ".safetensors"
    found = propose_map(network, read_weights(weights, graph=graph, offline=True), ordered)
    text = found.model_dump_json(indent=1)
    if out is None:
        echo(*text.splitlines())
    else:
        try:
            write_atomically(out, f"{text}\n".encode())
        except OSError as error:
            help = "choose another file with `--out`"
            raise failure("E0506", f"cannot write the map: {error.strerror}", file=str(out), help=help) from None
    paired = f"{len(found.modules)} modules matched"
    echo(f"{paired}, {len(found.uncertain)} uncertain: check them before you use the map", file=sys.stderr)
