"""Command-line overrides of the recipe, and the result of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from cnnspec.diagnostics import counted, failure
from cnnspec.ir import Graph
from cnnspec.recipe import ORIGINS, FromPython, Recipe, Setting
from cnnspec.rewrite.set_values import setting_text
from cnnspec.semantics.recipe_rules import contradictions, refuse
from cnnspec.training.runs.listing import run_table

if TYPE_CHECKING:
    from cnnspec.training.data.records import Splits

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Lightning's names of the precisions."""
REQUESTS = ("accelerator", "devices", "strategy", "ddp", "scale_lr", "precision", "deterministic")
"""The options that a resumed run takes from the run if they are not given again."""


SCALES: dict[str, Callable[[float], float]] = {
    "none": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
}
"""The factor of the learning rate by the ratio of two batch sizes.

Source: linear: Goyal et al. 2017, arXiv 1706.02677; sqrt: Krizhevsky 2014, arXiv 1404.5997.
"""
_RATES = ("lr", "adam_lr", "end")
"""The arguments of a recipe that are learning rates."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run. `None` means the value of the recipe.

    Attributes:
        data: Another dataset.
        images: Images and labels of this program. They replace the dataset of the recipe, except for the arguments of
            `data python`.
        data_dir: The directory of downloaded datasets.
        offline: Never download.
        epochs: Passes over the training images.
        batch: Images per step, over all devices.
        scale_lr: The rule by which another `batch` than that of the spec scales all learning rates: `none`, `linear` or
            `sqrt`.
        seed: The seed of weights, order and augmentation.
        weights: The initial weights: a file, or `torchvision:DEFAULT`.
        match: How the tensors of `weights` are matched: by `name`, by `order`, or by a map (its path).
        reinit: Paths of modules that are initialized randomly, even with `weights`.
        out: The folder of the run folders.
        resume: Resume the latest unfinished run, or the one in this folder, with its own settings.
        accept_changes: Resume with the settings, spec and data as they are now, even if they have changed.
        verify_data: Hash the contents of all images, and compare them when the run is resumed.
        accelerator: Passed to Lightning, as are `devices` and `strategy`. `auto` devices are all GPUs, or one if a step
            is short.
        ddp: Arguments of `torch.nn.parallel.DistributedDataParallel`: `static_graph`, `gradient_as_bucket_view`,
            `find_unused_parameters` and `bucket_cap_mb`.
        precision: `auto`, `fp32`, `bf16`, `fp16`, or one of Lightning's names.
        deterministic: Use only deterministic kernels on a GPU, in full float32 precision. A CPU always does.
        memory_format: `channels_last` or `contiguous`. With None, the faster one is measured.
        threads: The number of torch threads. With None, all available cores are used.
        cache: Where the images are kept: `auto`, `ram`, `device`, `disk`, or `off` to read files in each epoch.
        workers: The number of processes that read and augment images, and of others that read images for validation.
            With None, one per core, at most eight.
        allocator: `keep` lets glibc keep large blocks, `default` does not change the allocator.
        plots: Whether to draw curves and other plots.
        brief: Leave the recipe out of the first messages.
        save_every: Seconds between two checkpoints within an epoch.
        log: Additional loggers: `tensorboard`, `wandb`, `mlflow`.
        watch: Called with the number and the metrics of each validated epoch. If it returns true, the run ends as
            `pruned` and is not tested.
        resume_command: The command to print for resuming after a stop.
        console: The console for progress, by default the standard output.
    """

    data: Setting | None = None
    images: Splits | None = None
    data_dir: Path = Path("data")
    offline: bool = False
    epochs: int | None = None
    batch: int | None = None
    scale_lr: str = "none"
    seed: int | None = None
    weights: str | None = None
    match: str = "name"
    reinit: tuple[str, ...] = ()
    out: Path = Path("runs")
    resume: bool | Path = False
    accept_changes: bool = False
    verify_data: bool = False
    accelerator: str = "auto"
    devices: str | int = "auto"
    precision: str | None = None
    strategy: str = "auto"
    ddp: Mapping[str, bool | int] = field(default_factory=dict[str, "bool | int"])
    deterministic: bool = False
    memory_format: str | None = None
    threads: int | None = None
    cache: str = "auto"
    workers: int | None = None
    allocator: str = "keep"
    plots: bool = True
    brief: bool = False
    save_every: float = 300.0
    log: tuple[str, ...] = ()
    watch: Callable[[int, Mapping[str, float]], bool] | None = None
    resume_command: str | None = None
    console: Console | None = None

    @property
    def start(self) -> str | None:
        """A description of the initial weights, or None if they are random."""
        reinit = f" without {', '.join(self.reinit)}" if self.reinit else ""
        return None if self.weights is None else f"{self.weights}{reinit}"

    def overrides(self, recipe: Recipe) -> dict[str, Any]:
        """Return the fields of a recipe that these options override. `data python` keeps its arguments."""
        data = self.data
        if self.images is not None and data is None and recipe.data.name != FromPython.name:
            data = recipe.data.from_python()
        overrides = {"data": data, "epochs": self.epochs, "batch": self.batch, "seed": self.seed}
        if self.precision in ("auto", *PRECISIONS):
            overrides["precision"] = self.precision
        if self.batch is not None:
            overrides |= scaled_rates(recipe, self.batch, self.scale_lr)
        return {name: value for name, value in overrides.items() if value is not None}


def scaled_rates(recipe: Recipe, batch: int, rule: str) -> dict[str, Any]:
    """Return the entries of a recipe that change if its learning rates are scaled for another batch size.

    Raises:
        CnnspecError: E0510 if there is no such rule.
    """
    if rule not in SCALES:
        raise failure("E0510", f"unknown rule `{rule}` for the learning rate", help=f"use one of {', '.join(SCALES)}")
    factor = SCALES[rule](batch / recipe.batch)

    def scaled(setting: Setting) -> Setting:
        args: dict[str, Any] = {
            name: float(f"{value * factor:.10g}") if name in _RATES and isinstance(value, int | float) else value
            for name, value in setting.args.items()
        }
        return setting.model_copy(update={"args": args})

    found: dict[str, Any] = {name: scaled(getattr(recipe, name)) for name in ("optimizer", "schedule")}
    found["rates"] = tuple(map(scaled, recipe.rates))
    return {name: value for name, value in found.items() if value != getattr(recipe, name)}


def rate_rule(recipe: Recipe, options: TrainOptions) -> str:
    """Describe how the learning rate follows the batch size, for the recipe of a spec."""
    if options.batch is None or options.batch == recipe.batch:
        return "that of the spec"
    if options.scale_lr == "none":
        return f"not scaled for the batch of {options.batch} in place of {recipe.batch}"
    factor = SCALES[options.scale_lr](options.batch / recipe.batch)
    return f"times {factor:.4g}: {options.scale_lr} in the batch, {options.batch} in place of {recipe.batch}"


def statistics_rule(recipe: Recipe) -> str:
    """Describe the images over which batch normalization computes its statistics in training."""
    if recipe.ghost is not None:
        return f"of each group of {counted(recipe.ghost, 'image')}"
    if recipe.bn_statistics.name == "local":
        return "of each device: the result depends on the number of devices"
    return "of the batch over all devices" if recipe.accumulate == 1 else "of each part of the batch over all devices"


def lightning_precision(precision: str, device: torch.device) -> str:
    """Return Lightning's name of a precision. `auto` is bf16 on a GPU that computes with it, fp32 elsewhere."""
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if bf16 else "fp32"
    return PRECISIONS.get(precision, precision)


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Attributes:
        folder: The folder of the run.
        state: `finished`, `interrupted` or `pruned`.
        exit_code: 0, or 128 plus the number of the signal that stopped the run.
        values: The contents of `result.json`.
    """

    folder: Path
    state: str
    exit_code: int
    values: dict[str, Any]

    def _repr_html_(self) -> str:
        """Return the outcome as a table for notebooks."""
        return run_table(self.values, str(self.folder), self.state)


def effective_recipe(graph: Graph, options: TrainOptions) -> Recipe:
    """Return the recipe of the spec with the overrides of the options.

    Raises:
        CnnspecError: E0511 or E0512 if the recipe contradicts itself.
    """
    recipe = overridden(graph, options)
    refuse(contradictions(recipe))
    return recipe


def overridden(graph: Graph, options: TrainOptions) -> Recipe:
    """Return the recipe of the spec with the overrides of the options, which may contradict itself."""
    recipe = graph.recipe if options.epochs is None else graph.recipe.over(options.epochs)
    overrides = options.overrides(recipe)
    return recipe.model_copy(update={**overrides, "overridden": tuple(dict.fromkeys((*recipe.overridden, *overrides)))})


def recipe_lines(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the entries of the recipe as written in a spec. Empty entries are left out."""
    entries = ((name, getattr(recipe, name)) for name in Recipe.model_fields if name not in ORIGINS)
    lines = [(name, setting_text(value, full=True)) for name, value in entries if value is not None and value != ()]
    return [(name, text) for name, text in lines if (name, text) != ("freeze", "")]
