"""Options of the commands that train, with one definition for all of them."""

from __future__ import annotations

import functools
import inspect
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnspec.cli.app import ARGUMENTS
from cnnspec.cli.options import (
    DATA_VARIABLE,
    AcceptChanges,
    DataDir,
    DataName,
    Offline,
    VerifyData,
    data_folder,
    one_of,
)
from cnnspec.diagnostics import did_you_mean, failure
from cnnspec.files import weights_file

if TYPE_CHECKING:
    from cnnspec.recipe import Recipe, Setting
    from cnnspec.training import TrainOptions

Seed = Annotated[int | None, typer.Option(min=0, help="Seed of weights, data order and augmentation.")]
Plots = Annotated[bool, typer.Option("--plots/--no-plots", help="Draw curves and other plots.")]
ForLightning = Annotated[str, typer.Option(help="Passed to Lightning.")]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options that override the recipe or configure a run; each is a field of `TrainOptions`.

    The decorator `training_options` selects the options of a command. The others keep their defaults.
    """

    data: DataName = None
    data_dir: DataDir = None
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None
    batch: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None
    scale_lr: Annotated[
        str, typer.Option(metavar="RULE", help="Scale learning rates by --batch: linear, sqrt or none.")
    ] = "none"
    seed: Seed = None
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Parent of the run folders.")] = Path("runs")
    resume: Annotated[bool, typer.Option("--resume", help="Resume the latest unfinished run of this network.")] = False
    accept_changes: AcceptChanges = False
    verify_data: VerifyData = False
    offline: Offline = False
    save_every: Annotated[
        float,
        typer.Option("--save-every", metavar="S", min=0, help="Seconds between two checkpoints within an epoch."),
    ] = 300.0
    log: Annotated[list[str] | None, typer.Option(metavar="NAME", help="An additional logger: wandb or mlflow.")] = None
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Use only deterministic kernels on a GPU (slower).")
    ] = False
    memory_format: Annotated[
        str | None, typer.Option(metavar="NAME", help="channels_last or contiguous (default: measured).")
    ] = None
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of PyTorch threads (default: all available cores).")
    ] = None
    cache: Annotated[
        str, typer.Option(metavar="PLACE", help="Keep decoded images: auto, ram, device, disk; or off.")
    ] = "auto"
    workers: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Processes that read images (default: one per core, at most 8)."),
    ] = None
    allocator: Annotated[
        str, typer.Option(metavar="NAME", help="keep: let glibc keep large memory blocks; or default.")
    ] = "keep"
    plots: Plots = True
    accelerator: ForLightning = "auto"
    devices: ForLightning = "auto"
    precision: Annotated[
        str | None,
        typer.Option(
            help="auto, fp32, bf16, fp16, or passed to Lightning, e.g. bf16-mixed (default: that of the recipe)."
        ),
    ] = None
    strategy: ForLightning = "auto"
    ddp: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="An option of DistributedDataParallel, e.g. static_graph=true."),
    ] = None

    def given(self) -> list[str]:
        """Return the options with a value other than the default, as spelled on the command line."""
        names = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return ["--no-plots" if name == "plots" else f"--{name.replace('_', '-')}" for name in names]

    def options(self, recipes: Sequence[Recipe], **more: Any) -> TrainOptions:
        """Return the options of the training.

        Args:
            recipes: Recipes of the networks to train.
            **more: Fields of `TrainOptions` that the command sets itself.

        Raises:
            BadParameter: The value of `--memory-format`, `--allocator`, `--cache` or `--scale-lr` does not exist.
            CnnspecError: The dataset does not exist, or the extra `train` is not installed.
        """
        if self.memory_format is not None:
            one_of("--memory-format", self.memory_format, ("channels_last", "contiguous"))
        one_of("--allocator", self.allocator, ("keep", "default"))
        one_of("--cache", self.cache, ("auto", "ram", "device", "disk", "off"))
        one_of("--scale-lr", self.scale_lr, ("none", "linear", "sqrt"))
        from cnnspec import training

        if self.ddp:
            from cnnspec.training.runs.devices import read_ddp

            more["ddp"] = read_ddp(self.ddp)
        if self.data is None and not more.get("resume", self.resume):
            for recipe in recipes:
                check_folder(recipe.data)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {
            "data": find_data(recipes, self.data, self.data_dir),
            "data_dir": data_folder(self.data_dir),
            "log": tuple(self.log or ()),
            "ddp": {},
        }
        return training.TrainOptions(**{**values, **more})


def training_options(*, without: Iterable[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replace each parameter of a command that is a data class, such as `Training`, by the fields of that class.

    Args:
        without: Fields that the command lacks or defines itself.
    """
    left_out = set(without)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True)
        groups: dict[str, Any] = {
            name: p.annotation for name, p in own.parameters.items() if is_dataclass(p.annotation)
        }
        options = {
            name: [p for p in inspect.signature(group, eval_str=True).parameters.values() if p.name not in left_out]
            for name, group in groups.items()
        }

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            made = {
                name: group(**{option.name: values.pop(option.name) for option in options[name]})
                for name, group in groups.items()
            }
            return command(**values, **made)

        parameters = [
            option
            for name, parameter in own.parameters.items()
            for option in options.get(name, [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)])
        ]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return decorate


_WITH_PATH = {"folder": "folder:PATH", "hf": "hf:NAME@REVISION"}
STREAM = "stream"
"""The name of `hf` with `stream=true`."""


def find_data(recipes: Sequence[Recipe], text: str | None, data_dir: Path | None) -> Any:
    """Return the dataset of `--data`, with the other arguments of the first recipe that uses it.

    Raises:
        CnnspecError: The dataset does not exist.
    """
    from cnnspec.recipe import DATA_SETS, Folder, HuggingFace, Setting

    if text is None:
        return None
    name, path = (*re.split(r"[:\s]", text.strip(), maxsplit=1), "")[:2]
    kind = HuggingFace.name if name == STREAM else name
    own = next((recipe.data for recipe in recipes if recipe.data.name == kind), None)
    others = own.args if own else {}
    path = path.strip().removeprefix('"').removesuffix('"')  # as in a spec: `folder "PATH"`
    if name == "folder" and not path and (data_dir or os.environ.get(DATA_VARIABLE)):
        path = str(data_folder(data_dir))
    if name == "folder" and path:
        setting = Setting.of(Folder(**{**others, "path": path}))
        check_folder(setting)
        return setting
    if name in ("hf", STREAM) and path:
        path, _, revision = path.partition("@")
        stream = name == STREAM or others.get("stream", False)
        return Setting.of(HuggingFace(**{**others, "path": path, "revision": revision or None, "stream": stream}))
    if name not in DATA_SETS or path or name in _WITH_PATH:
        known = ", ".join([*(_WITH_PATH.get(n, n) for n in DATA_SETS if n != "python"), f"{STREAM}:NAME@REVISION"])
        guess = did_you_mean(name, DATA_SETS)
        notes = [f"the datasets are {known}"] if guess else []
        raise failure("E0502", f"unknown dataset `{text}`", notes=notes, help=guess or f"use one of {known}")
    return own or Setting.of(DATA_SETS[name]())


def check_folder(data: Setting) -> None:
    """Check that the folder of a dataset exists, before PyTorch is imported.

    Raises:
        CnnspecError: E0503 if it does not, E0218 if it is outside the folder of the spec that names it.
    """
    if data.name == "folder":
        from cnnspec.training.data.folders import check_exists, data_path

        path, _ = data_path(data)
        check_exists(path)


def check_weights(source: str | None) -> None:
    """Check that a weights file exists, before PyTorch is imported.

    Raises:
        CnnspecError: E0505 if it does not.
    """
    if source is not None and not source.startswith("torchvision:"):
        weights_file(source)


def repeated_command(context: typer.Context, *more: str) -> str:
    """Return the command line as the user typed it, followed by options that it lacks."""
    args: list[str] = context.meta[ARGUMENTS]
    end = args.index("--") if "--" in args else len(args)
    return shlex.join(["cnnspec", *args[:end], *more, *args[end:]])


def stop_on_sigterm() -> None:
    """Exit with the code of the signal on SIGTERM, until the run installs its own handler."""

    def stop(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
