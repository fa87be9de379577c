"""A training run from a graph to `result.json`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, EMAWeightAveraging, LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from cnnspec.backends.torch import to_module
from cnnspec.backends.torch_weights import load_weights, read_weights
from cnnspec.diagnostics import CnnspecError, failure
from cnnspec.ir import Graph
from cnnspec.recipe import Recipe
from cnnspec.training.callbacks import Keep, Show, StopOnSignal, Stopped, WholeFiles
from cnnspec.training.data import ImageData, load_data
from cnnspec.training.feed import Feed, Feeds, plain
from cnnspec.training.folders import SHARED, RunFolder
from cnnspec.training.logs import draw_graph, make_loggers, quiet, read_rows
from cnnspec.training.machine import keep_memory, versions
from cnnspec.training.options import PRECISIONS, Result, TrainOptions, folder_to_resume, recipe_lines, recipe_of
from cnnspec.training.scoring import score
from cnnspec.training.task import Task, make_optimizer


def train(graph: Graph, options: TrainOptions | None = None) -> Result:
    """Train a network by its recipe, test its best weights, and write everything into a run folder.

    Nothing is written before the data set is loaded and everything that can be checked has been checked.

    Raises:
        CnnspecError: E0501 to E0503 for the data, E0506 for the run folder, E0508 to E0512 for a recipe that
            cannot be followed on this machine or diverges.
    """
    options = options or TrainOptions()
    keep_memory()
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    console = options.console or Console() if first else Console(quiet=True)
    folder, recipe = folder_to_resume(graph, options) if options.resume else (None, recipe_of(graph, options))
    try:
        data = load_data(graph, recipe.data, options.data_dir, offline=options.offline)
        _check_recipe(recipe, data)
        with quiet():
            pl.seed_everything(recipe.seed, workers=True)
            network = to_module(graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if options.weights is not None and not options.resume:
                load_weights(network, read_weights(options.weights, "name", graph), file=options.weights)
            steps = len(Feed(data.train, plain(graph, data), recipe.batch, seed=recipe.seed))
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
        with quiet():
            self.trainer = self._make_trainer()

    def go(self, first: bool) -> Result:
        """Train, test, and write the result."""
        if first:
            self._write("running")
            self._announce()
        try:
            with quiet(), self.stop:
                self._fit()
        except (Stopped, KeyboardInterrupt, SystemExit) as end:
            if isinstance(end, SystemExit) and self.stop.signal is None:
                raise
            return self._interrupted(first)
        except BaseException as error:
            if first:
                self._write("failed")
            explained = _explained(error)
            if explained is error:
                raise
            raise explained from error
        if not first:  # the first process alone goes on
            raise SystemExit(0)
        if self.stop.signal is not None:
            return self._interrupted(first)
        try:
            found = self._test()
        except KeyboardInterrupt:
            return self._interrupted(first)
        return Result(self.folder.path, "finished", 0, self._write("finished", found))

    def _announce(self) -> None:
        """What is about to be done; defaults of the recipe are marked, as the spec does not show them."""
        data, recipe = self.data, self.recipe
        sizes = ((name, len(part)) for name, part in (("val", data.val), ("test", data.test)) if part is not None)
        counts = ", ".join([f"{len(data.train):,} train", *(f"{count:,} {name}" for name, count in sizes)])
        lines = [f"training {self.graph.name} ({self.graph.parameter_count:,} parameters) on {data.name} ({counts})"]
        stated = {*recipe.stated, *self.options.changes(), "planned"}
        lines += [
            f"  {name:<15} {text}" + ("" if name in stated else "  (default)") for name, text in recipe_lines(recipe)
        ]
        lines.append(f"run folder {self.folder.path}")
        for line in lines:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _fit(self) -> None:
        rows = read_rows(self.folder.path / "metrics.csv", self.folder.last) if self.options.resume else []
        for logger in self.trainer.loggers:
            logger.log_hyperparams(self.recipe.model_dump(mode="json"))
            if isinstance(logger, CSVLogger) and rows:
                logger.experiment.metrics = rows
        draw_graph(self.trainer, self.graph, self.task)
        feed = Feeds(self.graph, self.recipe, self.data)
        checkpoint = str(self.folder.last) if self.options.resume else None
        self.trainer.fit(self.task, datamodule=feed, ckpt_path=checkpoint, weights_only=True)

    def _interrupted(self, first: bool) -> Result:
        if not first:
            raise SystemExit(0)
        values = self._write("interrupted")
        if self.folder.last.is_file():
            command = self.options.resume_command or f"cnnspec build {self.graph.name} --train --resume"
            line = f"stopped; go on with `{command}`"
        else:
            line = "stopped before the first step was done"
        self.console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
        return Result(self.folder.path, "interrupted", 128 + (self.stop.signal or signal.SIGINT), values)

    def _test(self) -> dict[str, float]:
        """Accuracy and loss of the best weights, as `cnnspec test` finds them."""
        network = to_module(self.graph)
        load_weights(network, read_weights(self.folder.best_weights))
        found: dict[str, float] = {}
        device = self.trainer.strategy.root_device
        for name, part in (("val", self.data.val), ("test", self.data.test)):
            if part is not None:
                result = score(network, part, self.data, self.graph.input_shape[1:], device)
                found |= {f"{name}_acc": result.accuracy, f"{name}_loss": result.loss}
        return found

    def _write(self, state: str, found: dict[str, float] | None = None) -> dict[str, Any]:
        """Write `result.json` and return what it holds."""
        scores = {"val_acc": None, "test_acc": None, "val_loss": None, "test_loss": None, **(found or {})}
        values = {
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
        self.folder.write_result(values)
        return values

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
                logger=make_loggers(path),
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
            raise _refused(error) from None


def _check_recipe(recipe: Recipe, data: ImageData) -> None:
    if recipe.early_stop is not None and data.val is None:
        raise failure(
            "E0511",
            "`early_stop` needs validation images, and none are held back",
            help="hold some back with `val=`, or leave `early_stop` out",
        )


def _refused(error: Exception) -> CnnspecError:
    return failure(
        "E0510",
        "Lightning cannot train with these settings",
        notes=[" ".join(str(error).split())[:300]],
        help="see `--accelerator`, `--devices`, `--precision` and `--strategy`",
    )


def _explained(error: BaseException) -> BaseException:
    """A diagnostic for what a user can mend; anything else as it is."""
    if isinstance(error, MisconfigurationException):
        return _refused(error)
    if isinstance(error, torch.OutOfMemoryError):
        return failure("E0513", "the accelerator's memory is full", help="take fewer images per step with `--batch`")
    if isinstance(error, OSError) and error.errno is not None:
        return failure("E0506", f"cannot write to the run folder: {error.strerror}", help="free space, then `--resume`")
    return error
