"""The command `export`, which writes a network for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnnspec.cli.options import AllowHuge, AsJson, InitialWeights, Match, Offline, Settings, one_of, settings
from cnnspec.cli.output import importing, print_json
from cnnspec.diagnostics import counted, echo

_ENDINGS = {"torch": ".py", "pt2": ".pt2", "onnx": ".onnx"}


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
    endings = {ending: name for name, ending in _ENDINGS.items()}
    if to is None and target.suffix not in endings:
        raise typer.BadParameter(
            f"the format of `{target.name}` is unknown; use {', '.join(endings)}", param_hint="FILE"
        )
    form = one_of("--to", to, _ENDINGS) if to is not None else endings[target.suffix]
    if target.suffix != _ENDINGS[form]:
        raise typer.BadParameter(f"`{target.name}` must end in `{_ENDINGS[form]}` for `--to {form}`", param_hint="FILE")
    axes = [one_of("--dynamic", axis.strip(), ("batch", "size")) for axis in dynamic.split(",")] if dynamic else []
    if match != "name" and weights is None:
        raise typer.BadParameter("has no effect without --weights", param_hint="--match")
    if form == "torch" and (axes or with_preprocessing):
        hint = "--dynamic" if axes else "--with-preprocessing"
        raise typer.BadParameter("has no effect on Python source", param_hint=hint)
    if with_preprocessing and "size" in axes:
        raise typer.BadParameter("`size` has no effect with --with-preprocessing", param_hint="--dynamic")
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
