"""What a user says beside the spec, what a run gives back, and which run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cnnspec.diagnostics import failure
from cnnspec.ir import Graph
from cnnspec.recipe import ORIGINS, Recipe, Setting
from cnnspec.rewrite.set_values import setting_text
from cnnspec.semantics.recipe_rules import impossible, refuse
from cnnspec.training.runs.folder import RunFolder, is_first, shared_folder

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Lightning's names for the recipe's."""


@dataclass(frozen=True)
class TrainOptions:
    """What a user says beside the spec; what is `None` is as the recipe says.

    Attributes:
        data: Another data set.
        data_dir: Where downloaded sets are kept.
        offline: Never download.
        epochs: Passes over the training images.
        batch: Images per step, over all devices together.
        seed: Of weights, order and augmentation.
        weights: What the weights start from: a file, or `torchvision:DEFAULT`.
        fresh: Paths of modules that start anew in spite of `weights`.
        out: Where run folders are made.
        resume: Go on with the newest unfinished run, or the one in this folder, by its own recipe.
        accelerator: For Lightning, as `devices` and `strategy`.
        precision: `fp32`, `bf16`, `fp16`, or one of Lightning's.
        memory_format: `channels_last` or `contiguous`; measured if it is `None`.
        threads: Of torch; measured if it is `None`.
        allocator: `keep` lets glibc keep large blocks, `default` leaves it alone.
        pictures: Whether curves and the like are drawn.
        brief: Whether the recipe is left out of what is said at the start.
        save_every: Seconds between two checkpoints inside of an epoch.
        log: Further loggers, of `tensorboard`, `wandb`, `mlflow`.
        watch: Is told the number and the scores of each epoch that has ended; where it gives true, the run ends
            there, as `pruned` and without a test.
        resume_command: What is printed as the way to go on after a stop.
        console: Where progress is shown; by default the standard output.
    """

    data: Setting | None = None
    data_dir: Path = Path("data")
    offline: bool = False
    epochs: int | None = None
    batch: int | None = None
    seed: int | None = None
    weights: str | None = None
    fresh: tuple[str, ...] = ()
    out: Path = Path("runs")
    resume: bool | Path = False
    accelerator: str = "auto"
    devices: str | int = "auto"
    precision: str | None = None
    strategy: str = "auto"
    memory_format: str | None = None
    threads: int | None = None
    allocator: str = "keep"
    pictures: bool = True
    brief: bool = False
    save_every: float = 300.0
    log: tuple[str, ...] = ()
    watch: Callable[[int, Mapping[str, float]], bool] | None = None
    resume_command: str | None = None
    console: Console | None = None

    @property
    def start(self) -> str | None:
        """What the weights start from, in words; none if they are drawn."""
        fresh = f" without {', '.join(self.fresh)}" if self.fresh else ""
        return None if self.weights is None else f"{self.weights}{fresh}"

    def changes(self) -> dict[str, Any]:
        """The fields of the recipe that these options state."""
        stated = {"data": self.data, "epochs": self.epochs, "batch": self.batch, "seed": self.seed}
        if self.precision in PRECISIONS:
            stated["precision"] = self.precision
        return {name: value for name, value in stated.items() if value is not None}


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        folder: Where its files are.
        state: `finished`, `interrupted` or `pruned`.
        exit_code: 0, or 128 and the number of the signal that stopped it.
        values: What `result.json` holds.
    """

    folder: Path
    state: str
    exit_code: int
    values: dict[str, Any]


def recipe_of(graph: Graph, options: TrainOptions) -> Recipe:
    """The spec's recipe, changed as the options say.

    Raises:
        CnnspecError: E0511 or E0512 if it contradicts itself.
    """
    changes = options.changes()
    recipe = graph.recipe if options.epochs is None else graph.recipe.over(options.epochs)
    recipe = recipe.model_copy(update=changes)
    refuse(impossible(recipe))
    return recipe


def folder_to_resume(graph: Graph, options: TrainOptions) -> tuple[RunFolder, Recipe]:
    """The run to go on with and its recipe, which the options must not contradict."""
    if not is_first():
        folder = shared_folder(options.out)
        return folder, Recipe.model_validate(folder.read_result()["recipe"])
    folder, recipe = RunFolder.find(options.out, graph, options.resume if isinstance(options.resume, Path) else None)
    for name, value in options.changes().items():
        if getattr(recipe, name) != value:
            folder.release()
            raise failure(
                "E0506",
                f"a run is resumed by its own recipe, and that has another `{name}`",
                file=str(folder.path),
                help=f"leave `--{name}` out, or train anew without `--resume`",
            )
    return folder, recipe


def recipe_lines(recipe: Recipe) -> list[tuple[str, str]]:
    """The recipe as it is written in a spec, entry by entry; what is empty is left out."""
    entries = ((name, getattr(recipe, name)) for name in Recipe.model_fields if name not in ORIGINS)
    return [(name, setting_text(value, full=True)) for name, value in entries if value is not None and value != ()]
