"""A training run from a graph to `result.json`."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import Tensor, nn

from cnnspec.backends.torch.module import to_module
from cnnspec.backends.torch.weights import load_weights, read_weights
from cnnspec.diagnostics import CnnspecError, failure
from cnnspec.ir import Graph
from cnnspec.recipe import Recipe
from cnnspec.semantics.recipe_rules import nothing_validated, refuse
from cnnspec.training.data.augment import Prepare
from cnnspec.training.data.batches import Feed, Feeds, plain
from cnnspec.training.data.datasets import ImageData, load_data
from cnnspec.training.loop.autotune import FORMATS, Tuning, choose
from cnnspec.training.loop.evaluate import score
from cnnspec.training.loop.journal import Journal
from cnnspec.training.loop.machine import default_workers, keep_memory, memory_is_full, versions
from cnnspec.training.loop.optimizers import optimizer_of
from cnnspec.training.loop.signals import Pruned, Stop, Stopped
from cnnspec.training.loop.sync_batchnorm import synchronise
from cnnspec.training.loop.task import Surroundings, Task
from cnnspec.training.runs.folder import RunFolder, is_first, shared_folder
from cnnspec.training.runs.loggers import Elsewhere, draw_graph, make_loggers, quiet
from cnnspec.training.runs.options import PRECISIONS, Result, TrainOptions, folder_to_resume, recipe_lines, recipe_of
from cnnspec.training.runs.plan import nearest
from cnnspec.training.runs.plots import draw_augmentation, draw_confusion, draw_curves, draw_wrong
from cnnspec.training.runs.predictions import write_predictions
from cnnspec.training.runs.progress import Show


def train(graph: Graph, options: TrainOptions | None = None) -> Result:
    """Train a network by its recipe, test its best weights, and write everything into a run folder.

    Nothing is written before the data set is loaded and everything that can be checked has been checked.

    Raises:
        CnnspecError: E0501 to E0503 for the data, E0506 for the run folder, E0508 to E0514 for a recipe that
            cannot be followed on this machine or diverges.
    """
    options = options or TrainOptions()
    if options.allocator == "keep":
        keep_memory()
    threads = torch.get_num_threads()
    first = is_first()
    console = options.console or Console() if first else Console(quiet=True)
    folder: RunFolder | None = None
    with Stop(lambda text: console.print(text, style="yellow", markup=False, soft_wrap=True)) as stop, quiet():
        try:
            if options.resume:
                folder, recipe = folder_to_resume(graph, options)
            else:
                recipe = recipe_of(graph, options)
            data = load_data(graph, recipe.data, options.data_dir, offline=options.offline)
            check_recipe(recipe, data)
            network = _make_network(graph, recipe, options)
            stop.poll()
            if folder is None:
                folder = RunFolder.create(options.out, graph) if first else shared_folder(options.out)
            run = _Run(graph, options, recipe, data, network, folder, console, stop)
        except Stopped:
            console.print("stopped before the run had begun", style="yellow")
            if folder:
                folder.release()
            return Result(options.out, "interrupted", stop.exit_code, {})
        except BaseException:
            if folder:
                folder.release()
            raise
        try:
            return run.go()
        finally:
            run.close()
            folder.release()
            torch.set_num_threads(threads)  # what a run chose for itself is no matter of the next one


def _make_network(graph: Graph, recipe: Recipe, options: TrainOptions) -> nn.Module:
    """The network with its first weights; a recipe that torch cannot follow is refused here."""
    pl.seed_everything(recipe.seed, workers=True, verbose=False)
    network = to_module(graph)
    if options.weights is not None and not options.resume:
        given = read_weights(options.weights, "name", graph)
        load_weights(network, given, file=options.weights, fresh=options.fresh)
    optimizer_of(network, recipe, 1)
    return network


class _Run:
    """One run with all that it needs."""

    def __init__(
        self,
        graph: Graph,
        options: TrainOptions,
        recipe: Recipe,
        data: ImageData,
        network: nn.Module,
        folder: RunFolder,
        console: Console,
        stop: Stop,
    ) -> None:
        self.graph, self.options, self.recipe, self.data = graph, options, recipe, data
        self.folder, self.console, self.stop = folder, console, stop
        self._elsewhere: dict[str, str] = folder.read_result().get("loggers", {}) if options.resume else {}
        self.first = is_first()
        state = None
        if options.resume and folder.checkpoints.exist():
            state, said = folder.checkpoints.load()
            for line in said:
                self._say(f"{line}; going on from the one before", style="yellow")
        steps = Feed(data.train, plain(graph, data), recipe.batch, seed=recipe.seed).batches
        self.around = Surroundings(
            data,
            folder.checkpoints,
            None,
            stop,
            self._say,
            first=self.first,
            save_every=options.save_every,
            watch=options.watch,
        )
        self.task = Task(graph, network, recipe, steps, self.around, state)
        self.trainer = self._make_trainer()
        others = [logger for logger in self.trainer.loggers if isinstance(logger, Elsewhere)]
        self._elsewhere |= {logger.name: logger.version for logger in others}
        self.task.trainer = self.trainer
        self.around.data = nearest(data, graph, recipe, self.trainer.strategy.root_device)
        former = self.folder.read_result() if options.resume else {}
        self.weights = former.get("weights") if options.resume else options.start
        self.tuning = self._tune(network)
        if self.trainer.world_size > 1:  # behind the measurement, which one process makes alone
            synchronise(network, self.trainer.strategy.root_device)
        self.tuning.apply(network)
        self.around.layout = FORMATS[self.tuning.memory_format]

    def go(self) -> Result:
        """Train, test, and write the result."""
        try:
            if self.first:
                self._write("running")
                if self.options.pictures:
                    prepare = Prepare(self.graph.input_shape[1:], self.data.mean, self.data.std, self.recipe.augment)
                    draw_augmentation(self.folder.path, self.data, prepare, self.recipe.seed)
                self.around.journal = Journal(self.folder.path, self.task.progress.files)
                self._announce()
            self.stop.poll()
            self._fit()
            if not self.first:  # the first process alone goes on
                raise SystemExit(0)
            found = self._test()
        except (Stopped, KeyboardInterrupt):
            return self._interrupted()
        except Pruned:
            if not self.first:
                raise SystemExit(0) from None
            return Result(self.folder.path, "pruned", 0, self._write("pruned"))
        except SystemExit:
            if self.first and self.stop.asked:  # what Lightning makes of a second signal
                return self._interrupted()
            raise
        except BaseException as error:
            explained = _explained(error, self.folder.path)
            if self.first:
                self._fail(explained)
            if explained is error:
                raise
            raise explained from error
        return Result(self.folder.path, "finished", 0, self._write("finished", found))

    def close(self) -> None:
        """Let go of the files and the loggers, and draw what was written."""
        for logger in self.trainer.loggers:
            if isinstance(logger, Elsewhere):  # Lightning ends them behind a fit, and there may have been none
                logger.finalize("success")
        if self.around.journal is not None:
            self.around.journal.close()
            if self.options.pictures:
                draw_curves(self.folder.path)

    def _tune(self, network: nn.Module) -> Tuning:
        """The settings of the machine: a run that goes on and the other processes take those that were chosen."""
        options = self.options
        if options.resume or not self.first:
            kept = self.folder.read_result().get("machine", {})
            if {"memory_format", "threads"} <= kept.keys():
                return Tuning(kept["memory_format"], kept["threads"], "resumed" if options.resume else kept["origin"])
        device = self.trainer.strategy.root_device
        return choose(self.graph, network, self.recipe.batch, device, options.memory_format, options.threads)

    def _announce(self) -> None:
        """What is about to be done; defaults of the recipe are marked, as the spec does not show them."""
        data, recipe = self.data, self.recipe
        sizes = ((name, len(part)) for name, part in (("val", data.val), ("test", data.test)) if part is not None)
        counts = ", ".join([f"{len(data.train):,} train", *(f"{count:,} {name}" for name, count in sizes)])
        self._say(f"training {self.graph.name} ({self.graph.parameter_count:,} parameters) on {data.name} ({counts})")
        stated = {*recipe.stated, *self.options.changes(), "planned"}
        for name, text in () if self.options.brief else recipe_lines(recipe):
            self._say(f"  {name:<15} {text}" + ("" if name in stated else "  (default)"))
        machine = self.tuning
        self._say(f"machine: {machine.memory_format}, {machine.threads} threads ({machine.origin})")
        if self.around.data is not data:
            self._say(f"images in the memory of {self.trainer.strategy.root_device}")
        self._say(f"run folder {self.folder.path}")
        if done := self.task.progress.step:
            self._say(f"going on behind step {done} of {self.task.steps * recipe.epochs}")

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def _fit(self) -> None:
        """The steps that are left, and the end of an epoch that was reached and not worked through."""
        task, trainer = self.task, self.trainer
        if not task.progress.step:
            for logger in trainer.loggers:
                logger.log_hyperparams(self.recipe.model_dump(mode="json"))
            draw_graph(trainer, self.graph, task)
        try:
            if task.unclosed:
                task.to(trainer.strategy.root_device)
                task.start_clock()
                task.close_epoch()
                task.stop_clock()
            if task.trained:
                return
            epoch, skip = divmod(task.progress.step, task.steps)
            progress: Any = trainer.fit_loop.epoch_progress.current
            progress.processed = progress.completed = epoch
            feed = Feeds(self.graph, self.recipe, self.around.data, default_workers())
            feed.skip = skip
            trainer.fit(task, datamodule=feed)
        finally:
            task.stop_clock()

    def _interrupted(self) -> Result:
        if not self.first:
            raise SystemExit(0)  # Lightning takes anything else for a crash and kills the first process
        values = self._write("interrupted")
        command = self.options.resume_command or f"cnnspec build {self.graph.name} --train --resume"
        self._say(f"stopped behind step {self.task.progress.step}; go on with `{command}`", style="yellow")
        return Result(self.folder.path, "interrupted", self.stop.exit_code, values)

    def _fail(self, error: BaseException) -> None:
        """Say so in the result, if it can still be written."""
        found = error.diagnostics[0] if isinstance(error, CnnspecError) else None
        told = {"code": found.code, "message": found.message} if found else {"code": None, "message": str(error)}
        try:
            self._write("failed", fault=told)
        except OSError:
            pass

    def _test(self) -> dict[str, float]:
        """Accuracy and loss of the best weights, as `cnnspec test` finds them."""
        network = to_module(self.graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        load_weights(network, read_weights(self.folder.checkpoints.weights))
        found: dict[str, float] = {}
        predicted: dict[str, tuple[Tensor, Tensor]] = {}
        device = self.trainer.strategy.root_device
        for name, part in (("val", self.data.val), ("test", self.data.test)):
            if part is not None:
                size = self.graph.input_shape[1:]
                result = score(network, part, self.data, size, device, poll=self.stop.poll, tta=self.recipe.tta)
                found |= {f"{name}_acc": result.accuracy, f"{name}_loss": result.loss}
                predicted[name] = part.labels, result.predicted
                if name == "test" and self.options.pictures:
                    classes, path = self.graph.output_shape[0], self.folder.path
                    draw_confusion(path, part.labels, result.predicted, classes)
                    draw_wrong(path, part, result.predicted, self.graph.input_shape[1:])
        write_predictions(self.folder.path, predicted)
        return found

    def _write(
        self, state: str, found: dict[str, float] | None = None, fault: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write `result.json` and return what it holds."""
        scores = {"val_acc": None, "test_acc": None, "val_loss": None, "test_loss": None, **(found or {})}
        task = self.task
        values = {
            "network": self.graph.name,
            "state": state,
            "fault": fault,
            **scores,
            "parameters": self.graph.parameter_count,
            "macs": self.graph.macs,
            "epochs": task.progress.closed // task.steps,
            "steps": task.progress.step,
            "best_epoch": task.progress.best_epoch or None,
            "seconds": round(task.seconds, 1),
            "epoch_seconds": task.progress.epoch_seconds,
            "seed": self.recipe.seed,
            "weights": self.weights,
            "data": self.data.name,
            "accelerator": self.trainer.strategy.root_device.type,
            "devices": self.trainer.world_size,
            "precision": str(self.trainer.precision),
            "machine": {**self.tuning.to_json(), "allocator": self.options.allocator},
            "loggers": self._elsewhere,
            "recipe": self.recipe.model_dump(mode="json"),
            "versions": versions(),
        }
        self.folder.write_result(values)
        return values

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
                callbacks=[Show(self.console, self.task)],
                logger=make_loggers(path, options.log, self.task.progress.step, self._elsewhere, self._say),
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
            raise error if isinstance(error, CnnspecError) else _refused(error) from None


def check_recipe(recipe: Recipe, data: ImageData) -> None:
    """Refuse a recipe that wants of the data what is not there.

    Raises:
        CnnspecError: E0511 for stopping early without validation images.
    """
    refuse(nothing_validated(recipe, 0 if data.val is None else len(data.val)))


_PARTED = ("gloo", "connection closed by peer", "connection reset by peer", "nccl")
"""What torch says when a process does not answer."""


def _refused(error: Exception) -> CnnspecError:
    return failure(
        "E0510",
        "Lightning cannot train with these settings",
        notes=[" ".join(str(error).split())[:300]],
        help="see `--accelerator`, `--devices`, `--precision` and `--strategy`",
    )


def _explained(error: BaseException, folder: Path) -> BaseException:
    """A diagnostic for what a user can mend; anything else as it is."""
    if isinstance(error, MisconfigurationException):
        return _refused(error)
    if isinstance(error, RuntimeError) and memory_is_full(error):
        help = "state `accumulate 2` or more in the recipe, or use a smaller network or image"
        return failure("E0513", "memory is full", notes=[" ".join(str(error).split())[:200]], help=help)
    if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _PARTED):
        return failure(
            "E0515",
            "another process of this run has ended",
            notes=[" ".join(str(error).split())[:200]],
            help="look at what it said, then go on with `--resume`",
        )
    if isinstance(error, OSError) and error.errno is not None:
        room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return failure(
            "E0506",
            f"cannot write to the run folder: {error.strerror.lower() if error.strerror else error}",
            notes=["the checkpoints that are there are whole"],
            file=str(error.filename or folder),
            help=f"{'free space' if room else 'make the folder writable'}, then go on with `--resume`",
        )
    return error
