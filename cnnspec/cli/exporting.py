"""The command `export`, which writes a network for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnnspec.cli.options import AllowHuge, AsJson, InitialWeights, Match, Offline, Settings, settings
from cnnspec.cli.output import importing, print_json
from cnnspec.diagnostics import counted, echo
from cnnspec.inference.export_options import ENDINGS, find_fault, read_axes


def export(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_SPEC", help="A run folder, a weights file of cnnspec, or a spec.")
    ],
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write: .py, .pt2 or .onnx.")],
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="torch, pt2 or onnx (default: that of the extension of FILE).")
    ] = None,
    weights: InitialWeights = None,
    match: Match = "name",
    fold: Annotated[
        bool, typer.Option("--fold", help="Fold batch normalization into the convolutions before it.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Compute in float16.")] = False,
    dynamic: Annotated[
        str,
        typer.Option(metavar="AXES", help="Let the batch size and the image size vary: batch, size, or batch,size."),
    ] = "",
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Resize and normalize in the graph, from bytes of any size.")
    ] = False,
    sets: Settings = None,
    huge: AllowHuge = False,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Export a network, and compare the file with the network in its own runtime."""
    form = to if to is not None else next((name for name in ENDINGS if ENDINGS[name] == target.suffix), None)
    if form is None:
        known = ", ".join(ENDINGS.values())
        raise typer.BadParameter(f"the format of `{target.name}` is unknown; use {known}", param_hint="FILE")
    axes = read_axes(dynamic)
    given = weights is not None
    if fault := find_fault(form, axes, with_preprocessing, match, given, lambda name: f"--{name.replace('_', '-')}"):
        raise typer.BadParameter("; ".join(fault))
    if target.suffix != ENDINGS[form]:
        raise typer.BadParameter(f"`{target.name}` must end in `{ENDINGS[form]}` for `--to {form}`", param_hint="FILE")
    with importing():
        from cnnspec.inference import export_network

    done = export_network(
        source,
        target,
        form,  # type: ignore[arg-type]
        weights=weights,
        match=match,
        fold=fold,
        half=half,
        dynamic=axes,
        with_preprocessing=with_preprocessing,
        offline=offline,
        allow_huge=huge,
        **settings(sets),
    )
    if as_json:
        print_json(done.to_json())
        return
    echo(*(f"note: {note}" for note in done.notes), *done.files)
    echo(
        f"verified on {counted(done.images, 'image')}: the largest difference is {done.difference:.2g} in a logit, "
        f"{done.relative:.2g} of the largest logit (tolerance {done.tolerance:g}), and {done.probability:.2g} in a "
        "probability"
    )
    if done.levels is not None:
        echo(f"resized pixels differ from Pillow's by at most {done.levels} of 255")
