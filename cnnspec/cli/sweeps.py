"""The command `sweep`, which searches for the best values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cnnspec.cli.options import AllowHuge, AsJson, SpecFile, compile_spec, grid, one_of
from cnnspec.cli.output import importing, make_console, print_json
from cnnspec.cli.training_options import Plots, Training, stop_on_sigterm, training_options
from cnnspec.cli.workers import Jobs, Launcher, is_worker, share_work
from cnnspec.diagnostics import echo

SearchSpace = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=A,B", help="Search space of a parameter or recipe entry: K=A,B or K=A..B."),
]
SHOWN = 10
"""Number of trials in the final table."""


@training_options(
    without=["out", "resume", "accept_changes", "save_every", "log", "plots", "devices", "strategy", "ddp"]
)
def sweep(
    context: typer.Context,
    file: SpecFile,
    *,
    sets: SearchSpace = None,
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Number of candidates to train.")] = 20,
    max_params: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Reject candidates with more parameters, e.g. 300k.")
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Reject candidates with more multiply-adds, e.g. 50M.")
    ] = None,
    pruner: Annotated[
        str, typer.Option(metavar="NAME", help="Rule that stops bad trials early: median, halving or none.")
    ] = "median",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the sweep (default: sweeps/NAME).")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database shared by several machines, e.g. postgresql://HOST/NAME."),
    ] = None,
    training: Training,
    huge: AllowHuge = False,
    plots: Plots = False,
    jobs: Jobs = "1",
    launcher: Launcher = "local",
    as_json: AsJson = False,
) -> int:
    """Search for the best parameter and recipe values, and write the best spec."""
    from cnnspec.training.sweeps.space import Space, parse_amount

    one_of("--pruner", pruner, ("median", "halving", "none"))
    space = Space.of({name: values[0] if len(values) == 1 else values for name, values in grid(sets).items()})
    limits = {
        "max_params": None if max_params is None else parse_amount(max_params),
        "max_macs": None if max_macs is None else parse_amount(max_macs),
    }
    graph = compile_spec(file, [f"{name}={value}" for name, value in space.fixed.items()], huge).require_graph()
    stop_on_sigterm()
    options = training.options([graph.recipe], plots=plots)
    console = make_console(stderr=as_json or is_worker(), lossy=True)
    with importing():
        from cnnspec.training import SweepOptions
        from cnnspec.training import sweep as run_sweep

    if code := share_work(context, jobs, launcher, [graph], trials, options.accelerator):
        return code

    sweep_options = SweepOptions(
        trials=trials,
        out=out,
        storage=storage,
        pruner=pruner,
        allow_huge=huge,
        train=options,
        console=console,
        **limits,
    )
    result = run_sweep(file, space, sweep_options)
    if is_worker():
        return result.exit_code
    if as_json:
        print_json(result.values)
    else:
        _print(result, console)
    if result.error is not None:
        raise result.error
    return result.exit_code


def _print(result: Any, console: Any) -> None:
    from cnnspec.cli.tables import Justify, print_table

    rows = result.values["trials"]
    if rows:
        names = list(rows[0]["values"])
        titles: list[tuple[str, Justify]] = [
            (title, "right") for title in ("trial", *names, "val acc", "parameters", "MACs", "epochs")
        ]
        cells: list[list[str]] = []
        for row in rows[:SHOWN]:
            accuracy = "" if row["val_acc"] is None else f"{row['val_acc']:.2%}"
            figures = (accuracy, f"{row['parameters']:,}", f"{row['macs']:,}", str(row["epochs"]), row["state"])
            cells.append([str(row["trial"]), *(row["values"][name] for name in names), *figures])
        print_table([*titles, ("state", "left")], cells, console=console)
    done, rejected = len(rows), result.values["rejected"]
    more = f", {rejected} candidate{'s' * (rejected > 1)} rejected" if rejected else ""
    trials = f"{done} trial{'s' * (done != 1)} done{more}"
    lines = {
        "finished": trials,
        "exhausted": f"{trials}: all candidates of the search space were tried",
        "interrupted": f"stopped; {trials}; repeat the command to resume",
    }
    echo(lines[result.state])
    if result.best is not None:
        echo(f"best spec: {result.best}")
