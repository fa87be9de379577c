"""Command-line overrides of the recipe, and the result of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from cnnspec.ir import Graph
from cnnspec.recipe import ORIGINS, FromPython, Recipe, Setting
from cnnspec.rewrite.set_values import setting_text
from cnnspec.semantics.recipe_rules import contradictions, refuse
from cnnspec.training.runs.listing import run_table

if TYPE_CHECKING:
    from cnnspec.training.data.records import Splits

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Lightning's names of the precisions."""
REQUESTS = ("accelerator", "devices", "strategy", "precision", "deterministic")
"""The options that a resumed run takes from the run if they are not given again."""


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
        seed: The seed of weights, order and augmentation.
        weights: The initial weights: a file, or `torchvision:DEFAULT`.
        match: How the tensors of `weights` are matched: by `name`, by `order`, or by a map (its path).
        reinit: Paths of modules that are initialized randomly, even with `weights`.
        out: The folder of the run folders.
        resume: Resume the latest unfinished run, or the one in this folder, with its own settings.
        accept_changes: Resume with the settings, spec and data as they are now, even if they have changed.
        verify_data: Hash the contents of all images, and compare them when the run is resumed.
        accelerator: Passed to Lightning, as are `devices` and `strategy`.
        precision: `auto`, `fp32`, `bf16`, `fp16`, or one of Lightning's names.
        deterministic: Use only deterministic kernels on a GPU, in full float32 precision. A CPU always does.
        memory_format: `channels_last` or `contiguous`. With None, the faster one is measured.
        threads: The number of torch threads. With None, all available cores are used.
        cache: Where the images are kept: `auto`, `ram`, `device`, `disk`, or `off` to read files in each epoch.
        workers: The number of processes that read and augment images. With None, one per core, at most eight.
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
        return {name: value for name, value in overrides.items() if value is not None}


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
