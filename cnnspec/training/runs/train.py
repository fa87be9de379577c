"""Train a network, from a graph to `result.json`."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import nn

from cnnspec.backends.torch.module import to_module
from cnnspec.backends.torch.weights import load_weights, read_weights
from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.ir import Graph
from cnnspec.recipe import Recipe
from cnnspec.semantics.recipe_rules import nothing_validated, refuse
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.batches import BatchDataModule, steps_per_epoch
from cnnspec.training.data.datasets import ImageData, load_data
from cnnspec.training.data.preprocessing import choose_preprocessing
from cnnspec.training.loop.autotune import FORMATS, Tuning, choose_tuning
from cnnspec.training.loop.evaluate import score
from cnnspec.training.loop.journal import Journal
from cnnspec.training.loop.machine import default_workers, is_out_of_memory, keep_memory, versions
from cnnspec.training.loop.optimizers import optimizer_for
from cnnspec.training.loop.signals import Pruned, StopHandler, Stopped
from cnnspec.training.loop.sync_batchnorm import sync_batch_norm
from cnnspec.training.loop.task import Task, TrainingContext
from cnnspec.training.runs.folder import RunFolder, is_main_process, shared_folder
from cnnspec.training.runs.loggers import ExternalLogger, draw_graph, make_loggers, quiet
from cnnspec.training.runs.options import (
    PRECISIONS,
    Result,
    TrainOptions,
    effective_recipe,
    folder_to_resume,
    recipe_lines,
)
from cnnspec.training.runs.plan import place_data
from cnnspec.training.runs.plots import draw_augmentation, draw_confusion, draw_curves, draw_misclassified
from cnnspec.training.runs.predictions import Predictions, write_predictions
from cnnspec.training.runs.progress import ProgressDisplay, print_line


def train(graph: Graph, options: TrainOptions | None = None) -> Result:
    """Train a network by its recipe, test its best weights, and write everything into a run folder.

    Nothing is written until the data set is loaded and everything that can be checked is checked.

    Raises:
        CnnspecError: E0501 to E0503 for the data, E0506 for the run folder, E0508 to E0514 for a recipe that is invalid
            on this machine or diverges.
    """
    options = options or TrainOptions()
    if options.allocator == "keep":
        keep_memory()
    threads = torch.get_num_threads()
    main_process = is_main_process()
    console = options.console or Console() if main_process else Console(quiet=True)
    folder: RunFolder | None = None
    with StopHandler(lambda text: console.print(text, style="yellow", markup=False, soft_wrap=True)) as stop, quiet():
        try:
            if options.resume:
                folder, recipe = folder_to_resume(graph, options)
            else:
                recipe = effective_recipe(graph, options)
            data = load_data(graph, recipe.data, options.data_dir, offline=options.offline)
            check_recipe(recipe, data)
            network = _make_network(graph, recipe, options)
            stop.poll()
            if folder is None:
                folder = RunFolder.create(options.out, graph) if main_process else shared_folder(options.out)
            run = _TrainingRun(graph, options, recipe, data, network, folder, console, stop)
        except Stopped:
            console.print("stopped before the run started", style="yellow")
            if folder:
                folder.release()
            return Result(options.out, "interrupted", stop.exit_code, {})
        except BaseException:
            if folder:
                folder.release()
            raise
        try:
            return run.run()
        finally:
            run.close()
            folder.release()
            torch.set_num_threads(threads)  # the choice of one run must not affect the next


def _make_network(graph: Graph, recipe: Recipe, options: TrainOptions) -> nn.Module:
    """Build the network with its initial weights. Raise an error if torch rejects the recipe."""
    pl.seed_everything(recipe.seed, workers=True, verbose=False)
    network = to_module(graph)
    if options.weights is not None and not options.resume:
        weights = read_weights(options.weights, "name", graph)
        load_weights(network, weights, file=options.weights, reinit=options.reinit)
    optimizer_for(network, recipe, 1)
    return network


class _TrainingRun:
    """A training run with its collaborators."""

    def __init__(
        self,
        graph: Graph,
        options: TrainOptions,
        recipe: Recipe,
        data: ImageData,
        network: nn.Module,
        folder: RunFolder,
        console: Console,
        stop: StopHandler,
    ) -> None:
        self.graph, self.options, self.recipe, self.data = graph, options, recipe, data
        self.folder, self.console, self.stop = folder, console, stop
        self._external_runs: dict[str, str] = folder.read_result().get("loggers", {}) if options.resume else {}
        self.is_main_process = is_main_process()
        state = None
        if options.resume and folder.checkpoints.exists():
            state, problems = folder.checkpoints.load()
            for line in problems:
                self._log(f"{line}; using the previous one", style="yellow")
        self.preprocessing, self._origins = choose_preprocessing(
            recipe, graph.input_shape, lambda: (data.mean, data.std), training=True
        )
        steps = steps_per_epoch(data.train, recipe.batch)
        self.context = TrainingContext(
            data,
            self.preprocessing,
            folder.checkpoints,
            None,
            stop,
            self._log,
            is_main_process=self.is_main_process,
            save_every=options.save_every,
            watch=options.watch,
        )
        self.task = Task(graph, network, recipe, steps, self.context, state)
        self.trainer = self._make_trainer()
        others = [logger for logger in self.trainer.loggers if isinstance(logger, ExternalLogger)]
        self._external_runs |= {logger.name: logger.version for logger in others}
        self.task.trainer = self.trainer
        self.context.data = place_data(data, graph, recipe, self.trainer.strategy.root_device)
        previous = self.folder.read_result() if options.resume else {}
        self.weights = previous.get("weights") if options.resume else options.start
        self.tuning = self._choose_tuning(network)
        if self.trainer.world_size > 1:  # after the measurement, which only one process makes
            sync_batch_norm(network, self.trainer.strategy.root_device)
        self.tuning.apply(network)
        self.context.memory_format = FORMATS[self.tuning.memory_format]

    def run(self) -> Result:
        """Train, test, and write the result."""
        try:
            if self.is_main_process:
                self._start()
            self.stop.poll()
            self._fit()
            self._exit_other_processes()
            scores = self._test()
        except (Stopped, KeyboardInterrupt):
            return self._interrupted()
        except Pruned:
            self._exit_other_processes()
            return Result(self.folder.path, "pruned", 0, self._write_result("pruned"))
        except SystemExit:
            if self.is_main_process and self.stop.requested:  # Lightning turns a second signal into this
                return self._interrupted()
            raise
        except BaseException as error:
            diagnosed = _explain(error, self.folder.path)
            if self.is_main_process:
                self._write_failure(diagnosed)
            if diagnosed is error:
                raise
            raise diagnosed from error
        return Result(self.folder.path, "finished", 0, self._write_result("finished", scores))

    def _start(self) -> None:
        """Write the first files of the run and log its settings."""
        self._write_result("running")
        if self.options.plots:
            preprocess = Preprocess(self.preprocessing, self.recipe.augment)
            draw_augmentation(self.folder.path, self.data, preprocess, self.recipe.seed)
        self.context.journal = Journal(self.folder.path, self.task.progress.files)
        self._log_start()

    def _exit_other_processes(self) -> None:
        """End every process but the main one. Lightning treats any other exit code as a crash."""
        if not self.is_main_process:
            raise SystemExit(0)

    def close(self) -> None:
        """Close the files and loggers, and draw the curves."""
        for logger in self.trainer.loggers:
            if isinstance(logger, ExternalLogger):  # Lightning finalizes them only after a fit
                logger.finalize("success")
        if self.context.journal is not None:
            self.context.journal.close()
            if self.options.plots:
                draw_curves(self.folder.path)

    def _choose_tuning(self, network: nn.Module) -> Tuning:
        """Return the machine settings. A resumed run and other processes use the settings chosen before."""
        options = self.options
        if options.resume or not self.is_main_process:
            stored = self.folder.read_result().get("machine", {})
            if {"memory_format", "threads"} <= stored.keys():
                return Tuning(
                    stored["memory_format"], stored["threads"], "resumed" if options.resume else stored["origin"]
                )
        device = self.trainer.strategy.root_device
        return choose_tuning(self.graph, network, self.recipe.batch, device, options.memory_format, options.threads)

    def _log_start(self) -> None:
        """Log what the run will do. Defaults of the recipe are marked, because the spec does not show them."""
        data, recipe = self.data, self.recipe
        sizes = ((name, len(part)) for name, part in (("val", data.val), ("test", data.test)) if part is not None)
        counts = ", ".join([f"{len(data.train):,} train", *(f"{count:,} {name}" for name, count in sizes)])
        self._log(f"training {self.graph.name} ({self.graph.parameter_count:,} parameters) on {data.name} ({counts})")
        for note in data.notes:
            self._log(f"  note: {note}")
        stated = {*recipe.specified, *self.options.overrides(), "planned"}
        for name, text in () if self.options.brief else recipe_lines(recipe):
            self._log(f"  {name:<15} {text}" + ("" if name in stated else "  (default)"))
        self._log(f"preprocessing: {self.preprocessing}")
        machine = self.tuning
        self._log(f"machine: {machine.memory_format}, {machine.threads} threads ({machine.origin})")
        if self.context.data is not data:
            self._log(f"images in the memory of {self.trainer.strategy.root_device}")
        self._log(f"run folder: {self.folder.path}")
        if done := self.task.progress.step:
            self._log(f"resuming after step {done} of {self.task.steps * recipe.epochs}")

    def _log(self, text: str, style: str | None = None) -> None:
        print_line(self.console, text, style)

    def _fit(self) -> None:
        """Run the remaining steps, after closing an epoch that had ended before the interruption."""
        task, trainer = self.task, self.trainer
        if not task.progress.step:
            for logger in trainer.loggers:
                logger.log_hyperparams(self.recipe.model_dump(mode="json"))
            draw_graph(trainer, self.graph, task)
        try:
            if task.epoch_is_pending:
                task.to(trainer.strategy.root_device)
                task.start_clock()
                task.close_epoch()
                task.stop_clock()
            if task.is_done:
                return
            epoch, skip = divmod(task.progress.step, task.steps)
            progress: Any = trainer.fit_loop.epoch_progress.current
            progress.processed = progress.completed = epoch
            batches = BatchDataModule(self.recipe, self.context.data, self.preprocessing, default_workers())
            batches.skip = skip
            trainer.fit(task, datamodule=batches)
        finally:
            task.stop_clock()

    def _interrupted(self) -> Result:
        self._exit_other_processes()
        values = self._write_result("interrupted")
        command = self.options.resume_command or f"cnnspec build {self.graph.name} --train --resume"
        self._log(f"stopped after step {self.task.progress.step}; resume with `{command}`", style="yellow")
        return Result(self.folder.path, "interrupted", self.stop.exit_code, values)

    def _write_failure(self, error: BaseException) -> None:
        """Write the error into the result, if possible."""
        entry: dict[str, Any] = {"code": None, "message": str(error)}
        if isinstance(error, CnnspecError):
            entry = {"code": error.diagnostics[0].code, "message": error.diagnostics[0].message}
        try:
            self._write_result("failed", error=entry)
        except OSError:
            pass

    def _test(self) -> dict[str, float]:
        """Evaluate the best weights on the validation and test images, as `cnnspec test` does."""
        network = to_module(self.graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        load_weights(network, read_weights(self.folder.checkpoints.weights))
        scores: dict[str, float] = {}
        predictions: dict[str, Predictions] = {}
        device = self.trainer.strategy.root_device
        for name, part in (("val", self.data.val), ("test", self.data.test)):
            if part is not None:
                result = score(network, part, self.preprocessing, device, poll=self.stop.poll, tta=self.recipe.tta)
                scores |= {f"{name}_acc": result.accuracy, f"{name}_loss": result.loss}
                predictions[name] = part.labels, result.predicted
                if name == "test" and self.options.plots:
                    classes, path = self.graph.output_shape[0], self.folder.path
                    draw_confusion(path, part.labels, result.predicted, classes)
                    draw_misclassified(path, part, result.predicted, self.preprocessing)
        write_predictions(self.folder.path, predictions)
        return scores

    def _write_result(
        self, state: str, scores: dict[str, float] | None = None, error: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write `result.json` and return what it holds."""
        metrics = {"val_acc": None, "test_acc": None, "val_loss": None, "test_loss": None, **(scores or {})}
        task = self.task
        values = {
            "network": self.graph.name,
            "state": state,
            "error": error,
            **metrics,
            "parameters": self.graph.parameter_count,
            "macs": self.graph.macs,
            "epochs": task.progress.validated_step // task.steps,
            "steps": task.progress.step,
            "best_epoch": task.progress.best_epoch or None,
            "seconds": round(task.seconds, 1),
            "epoch_seconds": task.progress.epoch_seconds,
            "seed": self.recipe.seed,
            "weights": self.weights,
            "data": self.data.name,
            "data_notes": list(self.data.notes),
            "preprocessing": {**self.preprocessing.to_json(), "origins": self._origins},
            "accelerator": self.trainer.strategy.root_device.type,
            "devices": self.trainer.world_size,
            "precision": str(self.trainer.precision),
            "machine": {**self.tuning.to_json(), "allocator": self.options.allocator},
            "loggers": self._external_runs,
            "recipe": self.recipe.model_dump(mode="json"),
            "versions": versions(),
        }
        return self.folder.write_result(values)

    def _make_trainer(self) -> pl.Trainer:
        recipe, options, path = self.recipe, self.options, self.folder.path
        precision: Any = PRECISIONS.get(options.precision or recipe.precision, options.precision)
        try:
            return pl.Trainer(
                accelerator=options.accelerator,
                devices=options.devices,
                strategy=options.strategy,
                precision=precision,
                max_epochs=recipe.epochs,
                callbacks=[ProgressDisplay(self.console, self.task)],
                logger=make_loggers(path, options.log, self.task.progress.step, self._external_runs, self._log),
                limit_val_batches=0,
                reload_dataloaders_every_n_epochs=1,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=path,
            )
        except (MisconfigurationException, ValueError, RuntimeError, TypeError, ImportError, CnnspecError) as error:
            if not options.resume:
                self.folder.remove()
            raise error if isinstance(error, CnnspecError) else _settings_error(error) from None


def check_recipe(recipe: Recipe, data: ImageData) -> None:
    """Raise an error if the recipe needs data that the data set lacks.

    Raises:
        CnnspecError: E0511 for early stopping without validation images.
    """
    refuse(nothing_validated(recipe, 0 if data.val is None else len(data.val)))


_LOST_PROCESS = ("gloo", "connection closed by peer", "connection reset by peer", "nccl")
"""Parts of torch's error messages when another process does not respond."""


def _settings_error(error: Exception) -> CnnspecError:
    return failure(
        "E0510",
        "Lightning does not support these settings",
        notes=[one_line(error, 300)],
        help="change `--accelerator`, `--devices`, `--precision` or `--strategy`",
    )


def _explain(error: BaseException, folder: Path) -> BaseException:
    """Convert an error that the user can fix to a diagnostic. Return other errors unchanged."""
    if isinstance(error, MisconfigurationException):
        return _settings_error(error)
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        help = "write `accumulate 2` or more in the recipe, or use a smaller network or image size"
        return failure("E0513", "out of memory", notes=[one_line(error)], help=help)
    if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST_PROCESS):
        return failure(
            "E0515",
            "another process of this run has ended",
            notes=[one_line(error)],
            help="see the output of that process, then resume with `--resume`",
        )
    if isinstance(error, OSError) and error.errno is not None:
        room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return failure(
            "E0506",
            f"cannot write to the run folder: {error.strerror.lower() if error.strerror else error}",
            notes=["the existing checkpoints are intact"],
            file=str(error.filename or folder),
            help=f"{'free disk space' if room else 'make the folder writable'}, then resume with `--resume`",
        )
    return error
