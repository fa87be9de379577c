"""A training run from a graph to `result.json`."""

from __future__ import annotations

import csv
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, EMAWeightAveraging, LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from cnnspec.backends.torch import to_module
from cnnspec.diagnostics import CnnspecError, failure
from cnnspec.ir import Graph
from cnnspec.recipe import Recipe, Setting
from cnnspec.training.augment import Prepare
from cnnspec.training.callbacks import Keep, Show, StopOnSignal, Stopped, WholeFiles
from cnnspec.training.data import ImageData, load_data
from cnnspec.training.feed import Feed
from cnnspec.training.folders import SHARED, RunFolder
from cnnspec.training.machine import best_device, keep_memory, versions
from cnnspec.training.scoring import score
from cnnspec.training.task import Task, make_optimizer
from cnnspec.training.weights import load_weights, read_weights

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
        out: Where run folders are made.
        resume: Go on with the newest unfinished run, by its own recipe.
        accelerator: For Lightning, as `devices` and `strategy`.
        precision: `fp32`, `bf16`, `fp16`, or one of Lightning's.
        resume_command: What is printed as the way to go on after a stop.
        console: Where progress is shown; by default the standard output.
    """

    data: Setting | None = None
    data_dir: Path = Path("data")
    offline: bool = False
    epochs: int | None = None
    batch: int | None = None
    seed: int | None = None
    out: Path = Path("runs")
    resume: bool = False
    accelerator: str = "auto"
    devices: str | int = "auto"
    precision: str | None = None
    strategy: str = "auto"
    resume_command: str | None = None
    console: Console | None = None

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
        state: `finished` or `interrupted`.
        exit_code: 0, or 128 and the number of the signal that stopped it.
        values: What `result.json` holds.
    """

    folder: Path
    state: str
    exit_code: int
    values: dict[str, Any]


def train(graph: Graph, options: TrainOptions | None = None) -> Result:
    """Train a network by its recipe, test its best weights, and write everything into a run folder.

    Nothing is written before the data set is loaded and everything that can be checked has been checked.

    Raises:
        CnnspecError: E0501 to E0503 for the data, E0506 for the run folder, E0508 to E0512 for a recipe that
            cannot be followed on this machine or diverges.
    """
    options = options or TrainOptions()
    console = options.console or Console()
    keep_memory()
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    folder, recipe = _folder_to_resume(graph, options) if options.resume else (None, _recipe(graph, options))
    try:
        data = load_data(graph, recipe.data, options.data_dir, offline=options.offline)
        _check_recipe(recipe, data)
        with _quiet():
            pl.seed_everything(recipe.seed, workers=True)
            network = to_module(graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            steps = len(Feed(data.train, _plain(graph, data), recipe.batch, seed=recipe.seed))
            task = Task(graph, network, recipe, steps)
            make_optimizer(network.parameters(), recipe, steps)
    except BaseException:
        if folder:
            folder.release()
        raise
    if folder is None:
        folder = RunFolder.create(options.out, graph) if first else RunFolder(Path(os.environ[SHARED]))
    try:
        return _Run(graph, options, recipe, data, task, folder, console).go(first)
    finally:
        folder.release()


class _Run:
    """One run with all that it needs."""

    def __init__(
        self,
        graph: Graph,
        options: TrainOptions,
        recipe: Recipe,
        data: ImageData,
        task: Task,
        folder: RunFolder,
        console: Console,
    ) -> None:
        self.graph, self.options, self.recipe, self.data = graph, options, recipe, data
        self.task, self.folder, self.console = task, folder, console
        self.keep = Keep(folder.checkpoints)
        self.stop = StopOnSignal(folder.last, console)
        with _quiet():
            self.trainer = self._make_trainer()

    def go(self, first: bool) -> Result:
        """Train, test, and write the result."""
        say = self.console.print if first else lambda *_, **__: None
        say(f"run folder {self.folder.path}", highlight=False, soft_wrap=True)
        if first:
            self.folder.write_result(self._values("running"))
        try:
            with _quiet(), self.stop:
                self._fit()
        except (Stopped, KeyboardInterrupt, SystemExit) as end:
            if isinstance(end, SystemExit) and self.stop.signal is None:
                raise
            return self._interrupted(say)
        except BaseException:
            self.folder.write_result(self._values("failed"))
            raise
        if not first:  # only the first process goes on
            raise SystemExit(0)
        if self.stop.signal is not None:
            return self._interrupted(say)
        try:
            values = self._values("finished", self._test())
        except KeyboardInterrupt:
            return self._interrupted(say)
        self.folder.write_result(values)
        return Result(self.folder.path, "finished", 0, values)

    def _fit(self) -> None:
        rows = _read_rows(self.folder.path / "metrics.csv") if self.options.resume else []
        for logger in self.trainer.loggers:
            logger.log_hyperparams(self.recipe.model_dump(mode="json"))
            if isinstance(logger, CSVLogger) and rows:
                logger.experiment.metrics = rows
        _draw(self.trainer, self.graph, self.task)
        feed = _Feeds(self.graph, self.recipe, self.data)
        checkpoint = str(self.folder.last) if self.options.resume else None
        self.trainer.fit(self.task, datamodule=feed, ckpt_path=checkpoint, weights_only=True)

    def _interrupted(self, say: Any) -> Result:
        values = self._values("interrupted")
        self.folder.write_result(values)
        if self.folder.last.is_file():
            command = self.options.resume_command or f"cnnspec build {self.graph.name} --train --resume"
            say(f"stopped; go on with `{command}`", style="yellow", highlight=False, soft_wrap=True)
        else:
            say("stopped before the first step was done", style="yellow")
        return Result(self.folder.path, "interrupted", 128 + (self.stop.signal or signal.SIGINT), values)

    def _test(self) -> dict[str, float]:
        """Accuracy and loss of the best weights, as `cnnspec test` finds them."""
        network = to_module(self.graph)
        load_weights(network, read_weights(self.folder.best_weights))
        found: dict[str, float] = {}
        device = best_device() if self.trainer.strategy.root_device.type == "cuda" else torch.device("cpu")
        for name, part in (("val", self.data.val), ("test", self.data.test)):
            if part is not None:
                result = score(network, part, self.data, self.graph.input_shape[1:], device)
                found |= {f"{name}_acc": result.accuracy, f"{name}_loss": result.loss}
        return found

    def _values(self, state: str, found: dict[str, float] | None = None) -> dict[str, Any]:
        scores = {"val_acc": None, "test_acc": None, "val_loss": None, "test_loss": None, **(found or {})}
        return {
            "network": self.graph.name,
            "state": state,
            **scores,
            "parameters": self.graph.parameter_count,
            "macs": self.graph.macs,
            "epochs": self.trainer.current_epoch,
            "best_epoch": self.keep.best_epoch or None,
            "seconds": round(self.keep.seconds, 1),
            "seed": self.recipe.seed,
            "data": self.data.name,
            "accelerator": self.trainer.strategy.root_device.type,
            "devices": self.trainer.world_size,
            "precision": str(self.trainer.precision),
            "recipe": self.recipe.model_dump(mode="json"),
            "versions": versions(),
        }

    def _make_trainer(self) -> pl.Trainer:
        recipe, options, path = self.recipe, self.options, self.folder.path
        callbacks: list[Callback] = [LearningRateMonitor("step"), Show(self.console, recipe.epochs, self.keep)]
        if recipe.ema is not None:
            callbacks.append(EMAWeightAveraging(decay=recipe.ema))
        if recipe.early_stop is not None:
            callbacks.append(EarlyStopping("val_acc", mode="max", patience=recipe.early_stop))
        # Last, so that what they write holds what the others did at this step.
        callbacks += [self.stop, self.keep]
        precision: Any = PRECISIONS.get(options.precision or recipe.precision, options.precision)
        try:
            return pl.Trainer(
                accelerator=options.accelerator,
                devices=options.devices,
                strategy=options.strategy,
                precision=precision,
                max_epochs=recipe.epochs,
                callbacks=callbacks,
                plugins=[WholeFiles()],
                logger=[
                    CSVLogger(path, name="", version=""),
                    TensorBoardLogger(path, "", "tensorboard", default_hp_metric=False),
                ],
                log_every_n_steps=min(50, self.task.steps),
                reload_dataloaders_every_n_epochs=1,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                enable_checkpointing=True,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=path,
            )
        except (MisconfigurationException, ValueError, RuntimeError, TypeError, ImportError) as error:
            if not options.resume:
                self.folder.remove()
            raise failure(
                "E0510",
                "Lightning cannot train with these settings",
                notes=[" ".join(str(error).split())[:300]],
                help="see `--accelerator`, `--devices`, `--precision` and `--strategy`",
            ) from None


class _Feeds(pl.LightningDataModule):
    """Gives each epoch its batches; where it stands follows from the number of steps done."""

    def __init__(self, graph: Graph, recipe: Recipe, data: ImageData) -> None:
        super().__init__()
        self.recipe, self.data = recipe, data
        self.plain = _plain(graph, data)
        self.changing = Prepare(graph.input_shape[1:], data.mean, data.std, recipe.augment)

    def _threads(self, in_memory: bool) -> int:
        assert self.trainer is not None
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        # Small batches in memory are ready sooner than a second thread would be.
        return 0 if in_memory and on_cpu else min(4, os.cpu_count() or 1)

    def train_dataloader(self) -> Feed:
        assert self.trainer is not None
        feed = Feed(
            self.data.train,
            self.changing,
            self.recipe.batch,
            seed=self.recipe.seed,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            threads=self._threads(self.data.train.in_memory),
        )
        feed.epoch, feed.skip = divmod(self.trainer.global_step, len(feed))
        return feed

    def val_dataloader(self) -> Any:
        # Every device sees every image, so that the accuracy is exact.
        val = self.data.val
        return [] if val is None else Feed(val, self.plain, self.recipe.batch, threads=self._threads(val.in_memory))


def _plain(graph: Graph, data: ImageData) -> Prepare:
    return Prepare(graph.input_shape[1:], data.mean, data.std)


def _recipe(graph: Graph, options: TrainOptions) -> Recipe:
    return graph.recipe.model_copy(update=options.changes())


def _folder_to_resume(graph: Graph, options: TrainOptions) -> tuple[RunFolder, Recipe]:
    """The run to go on with and its recipe, which the options must not contradict."""
    if int(os.environ.get("LOCAL_RANK", 0)) != 0:
        folder = RunFolder(Path(os.environ[SHARED]))
        return folder, Recipe.model_validate(folder.read_result()["recipe"])
    folder, recipe = RunFolder.find(options.out, graph)
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


def _check_recipe(recipe: Recipe, data: ImageData) -> None:
    if recipe.early_stop is not None and data.val is None:
        raise failure(
            "E0511",
            "`early_stop` needs validation images, and none are held back",
            help="hold some back with `val=`, or leave `early_stop` out",
        )


def _draw(trainer: pl.Trainer, graph: Graph, task: Task) -> None:
    """Show TensorBoard the graph of the module. It traces the module, and no run fails because that does."""
    task.network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_graph(task.network, torch.zeros(1, *graph.input_shape))
        except Exception as error:  # noqa: BLE001 - whatever tracing raises
            logging.getLogger(__name__).debug("no graph for TensorBoard: %s", error)
    task.network.train()


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The metrics that were logged before; the logger begins its file anew."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    except OSError:
        return []


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's tips and its guesses at what might be meant."""
    loggers = [
        logging.getLogger(name)
        for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch|torchmetrics)\b")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


__all__ = ["CnnspecError", "Result", "TrainOptions", "train"]
