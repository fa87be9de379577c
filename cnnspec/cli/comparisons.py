"""The command `compare`, which trains several networks and compares them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from cnnspec.cli.options import AsJson, compile_spec, format_of, grid
from cnnspec.cli.output import importing, make_console, print_json
from cnnspec.cli.training_options import Training, repeated_command, stop_on_sigterm, training_options
from cnnspec.cli.workers import Jobs, Launcher, is_worker, share_work
from cnnspec.diagnostics import echo

Networks = Annotated[list[str] | None, typer.Argument(metavar="FILE...", help="Spec files, or names of shipped specs.")]
GridOf = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V,V", help="Values of a parameter or recipe entry to compare."),
]


@training_options(without=["seed", "out", "resume", "log", "plots", "devices", "strategy", "ddp"])
def compare(
    context: typer.Context,
    files: Networks = None,
    *,
    sets: GridOf = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Runs per network.")] = 3,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed (default: that of the recipe).")] = None,
    runs: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Reuse finished runs in this folder, with any seed.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="ACC", help="Also compare the training time until this accuracy, 0.9 or 90%.")
    ] = None,
    training: Training,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the comparison (default: comparisons/NAMES).")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Also draw plots for each run.")] = False,
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv, or json.")] = "text",
    jobs: Jobs = "1",
    launcher: Launcher = "local",
    as_json: AsJson = False,
) -> int:
    """Train networks with several seeds, and compare the results. Resumes a comparison that was stopped."""
    form = format_of(form, as_json, ("text", "markdown", "csv", "json"), "text")
    if not files and not runs:
        raise typer.BadParameter("pass networks, or a folder of runs with `--runs`")
    if not files and sets:
        raise typer.BadParameter("has no effect without networks", param_hint="--set")
    goal = None if target is None else _accuracy(target)
    values = grid(sets)
    stop_on_sigterm()
    graphs = [compile_spec(file).require_graph() for file in files or []]
    options = training.options(
        [graph.recipe for graph in graphs],
        seed=seed,
        plots=plots,
        resume_command=repeated_command(context),
        console=make_console(stderr=form != "text" or is_worker(), lossy=True),
    )
    with importing():
        from cnnspec.training import compare as compare_networks
        from cnnspec.training.comparison.compare import REPORT

    most = len(graphs) * seeds * math.prod(len(found) for found in values.values())
    if graphs and (code := share_work(context, jobs, launcher, graphs, most, options.accelerator)):
        return code
    done = compare_networks(
        files or [], seeds=seeds, grid=values, options=options, runs=runs or [], target=goal, out=out
    )
    if is_worker():
        return done.exit_code
    if form == "json":
        print_json(done.to_json())
    elif form == "text":
        place = done.folder if done.state == "interrupted" else done.folder / REPORT
        echo("", *done.to_text().split("\n"), str(place))
    else:
        text = done.to_markdown() if form == "markdown" else done.to_csv()
        echo(*text.removesuffix("\n").split("\n"))
    return done.exit_code


def _accuracy(text: str) -> float:
    """Parse an accuracy such as `0.9` or `90%`.

    Raises:
        BadParameter: It is not an accuracy in (0, 1].
    """
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise typer.BadParameter(f"`{text}` is not an accuracy such as 0.9 or 90%", param_hint="--target")
    return found
