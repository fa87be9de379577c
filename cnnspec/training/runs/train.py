"""Train a network, from a graph to `result.json`."""

from __future__ import annotations

import functools
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import nn

from cnnspec.backends.torch.matching import load_weights
from cnnspec.backends.torch.memory import is_out_of_memory, out_of_memory
from cnnspec.backends.torch.module import to_module
from cnnspec.backends.torch.weights import read_weights
from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.files import write_atomically
from cnnspec.ir import Graph
from cnnspec.recipe import Recipe
from cnnspec.semantics.recipe_rules import divided_group, frozen_modules, network_conflicts, nothing_validated, refuse
from cnnspec.training.data import identity
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.batches import Workers, steps_per_epoch
from cnnspec.training.data.datasets import ImageData, Images, load_data
from cnnspec.training.data.preprocessing import Preprocessing, choose_preprocessing
from cnnspec.training.loop.about import about_weights, describe
from cnnspec.training.loop.autotune import FORMATS, Tuning, choose_tuning
from cnnspec.training.loop.batch_norm import convert_batch_norm
from cnnspec.training.loop.checkpoints import State
from cnnspec.training.loop.evaluate import score
from cnnspec.training.loop.journal import Journal
from cnnspec.training.loop.launch import Launch, LaunchedEnvironment, is_main_process, local_processes, read_launch
from cnnspec.training.loop.machine import (
    default_workers,
    device_name,
    device_of,
    images_that_fit,
    keep_memory,
    training_kernels,
    versions,
)
from cnnspec.training.loop.optimizers import optimizer_for
from cnnspec.training.loop.processes import Processes, lost_process
from cnnspec.training.loop.signals import Pruned, StopHandler, Stopped
from cnnspec.training.loop.task import BatchDataModule, StateCheck, Task, TrainingContext, check_parts, parts_note
from cnnspec.training.runs.devices import check_strategy, choose_devices, make_strategy
from cnnspec.training.runs.folder import RunFolder, shared_folder, write_error
from cnnspec.training.runs.loggers import ExternalLogger, draw_graph, make_loggers, quiet
from cnnspec.training.runs.options import (
    PRECISIONS,
    REQUESTS,
    Result,
    TrainOptions,
    effective_recipe,
    lightning_precision,
    rate_rule,
    recipe_lines,
    statistics_rule,
)
from cnnspec.training.runs.placement import choose_placement, place_data
from cnnspec.training.runs.plots import (
    draw_augmentation,
    draw_confusion,
    draw_curves,
    draw_misclassified,
    draw_reliability,
)
from cnnspec.training.runs.predictions import write_predictions
from cnnspec.training.runs.progress import ProgressDisplay, default_console, print_line
from cnnspec.training.runs.resume import Change, find_run, resolved_settings, spec_hashes


def train(graph: Graph, options: TrainOptions | None = None) -> Result:
    """Train a network by its recipe, test its best weights, and write everything into a run folder.

    Nothing is written until the dataset is loaded and everything that can be checked is checked.

    Raises:
        CnnspecError: E0501 to E0503 for the data, E0506 for the run folder, E0508 to E0514 for a recipe that is invalid
            on this machine or diverges.
    """
    options = options or TrainOptions()
    device = device_of(options.accelerator)
    if options.allocator == "keep" and device.type == "cpu":
        keep_memory()
    threads = torch.get_num_threads()
    main_process = is_main_process()
    console = options.console or default_console() if main_process else Console(quiet=True)
    start: _Start | None = None
    run: _TrainingRun | None = None
    kernels = training_kernels(device, deterministic=options.deterministic)
    with StopHandler(lambda text: print_line(console, text, "yellow")) as stop, quiet(), kernels:
        try:
            processes = Processes()
            if (launch := read_launch()) is not None:
                with console.status("waiting for the other processes"):
                    processes.connect(launch, device_of(options.accelerator))
            start = _Start(graph, options, processes)
            with console.status("loading the data"):
                start.prepare(stop)
            with console.status("computing statistics, and measuring the memory format"):
                run = _TrainingRun(start, console, stop)
            return run.run()
        except Stopped:
            print_line(console, "stopped before the run started", "yellow")
            return Result(options.out, "interrupted", stop.exit_code, {})
        except OSError as error:  # before the first step; later ones are converted by the run
            if error.errno is None:
                raise
            raise write_error(error, options.out) from error
        except BaseException as error:
            explained = out_of_memory(error) if is_out_of_memory(error) else lost_process(error)
            if explained is not None:
                raise explained from None
            raise
        finally:
            if run is not None:
                run.close()
            if start is not None and start.folder is not None:
                start.folder.release()
            torch.set_num_threads(threads)  # the choice of one run must not affect the next


class _Start:
    """Everything that a run starts with, checked in this order.

    Attributes:
        resumed: The run to resume, or None for a new one.
        folder: Its folder, or None before a new one is created.
        images_at_once: The images of a batch that fit into the memory together.
        parts: The number of parts that a batch is computed in.
        placement: The place of the images.
        placed: The dataset with its images in this place.
        changes: The accepted changes of a resumed run.
    """

    def __init__(self, graph: Graph, options: TrainOptions, processes: Processes) -> None:
        self.graph, self.options, self.processes = graph, options, processes
        self.resumed = resumed = find_run(graph, options, processes) if options.resume else None
        self.folder: RunFolder | None = resumed.folder if resumed is not None else None
        if resumed is not None:
            self.options, self.recipe = resumed.options, resumed.recipe
        else:
            self.recipe = effective_recipe(graph, options)
        self.is_listed = False

    def prepare(self, stop: StopHandler) -> None:
        """Load the data, create the network and the trainer, and then the folder of a new run.

        Raises:
            CnnspecError: Something is invalid, or a resumed run has changed. Nothing is written.
        """
        graph, options, resumed = self.graph, self.options, self.resumed
        device = device_of(options.accelerator)
        fitting = images_that_fit(replace(graph, recipe=self.recipe), device, training=True)
        count, self.devices_reason = choose_devices(options, graph.macs * self.recipe.batch)
        self.trainer = _make_trainer(replace(options, devices=count), self.recipe, self.folder)
        if resumed is not None:
            resumed.compare_machine(self.trainer)
        self.data = self._load_data()
        check_recipe(self.recipe, self.data)
        images = min(self.recipe.batch, len(self.data.train))
        self.images_at_once = min(self.recipe.batch, fitting or self.recipe.batch)
        block = self.recipe.ghost or 1  # the images that a part has or has not
        blocks, at_once = images // block, max(1, self.images_at_once // block)
        self.parts = max(self.recipe.accumulate, -(-blocks // at_once))
        devices = self.trainer.world_size
        if devices > 1 and devices * self.recipe.accumulate > blocks:
            least = "image" if block == 1 else f"group of {block} images"
            parts = f" in {self.recipe.accumulate} parts" if self.recipe.accumulate > 1 else ""
            raise failure(
                "E0524",
                f"a batch of {images}{parts} cannot be divided among {devices} devices",
                notes=[f"each device needs at least one {least} of every part"],
                help="use a larger batch, fewer parts (`accumulate`) or fewer devices",
            )
        if self.parts > 1 and options.ddp.get("static_graph") and devices > 1:
            raise failure(
                "E0510",
                f"`static_graph` does not support a batch in {self.parts} parts",
                notes=["DistributedDataParallel cannot skip the exchange of gradients in the first backward pass"],
                help="omit `--ddp static_graph=true`, or use fewer parts (`accumulate`)",
            )
        if devices == 1 or self.recipe.bn_statistics.name == "local":  # others compute the statistics together
            check_parts(graph, images // devices, self.parts, ghost=self.recipe.ghost)
        self.network = _make_network(graph, self.recipe, options)
        self._place_data(stop)
        stop.poll()
        if self.folder is None:
            self.folder = shared_folder(self.processes, lambda: RunFolder.create(options.out, graph))

    def _place_data(self, stop: StopHandler) -> None:
        device, processes = self.trainer.strategy.root_device, local_processes(self.trainer.world_size)
        settings: dict[str, Any] = {"processes": processes, "poll": stop.poll}
        self.placement = choose_placement(self.data, self.options.cache, self.graph, self.recipe, device, **settings)
        self.placed = place_data(self.data, self.placement, device, **settings)

    def _load_data(self) -> ImageData:
        options, resumed = self.options, self.resumed
        settings: dict[str, Any] = {
            "offline": options.offline,
            "verify": options.verify_data,
            "images": options.images,
        }
        if resumed is None:
            return load_data(self.graph, self.recipe.data, options.data_dir, **settings)
        try:
            data = load_data(self.graph, self.recipe.data, options.data_dir, **settings, examine=resumed.examine)
        except CnnspecError:
            resumed.refuse()  # what has changed explains more than what is wrong now
            raise
        resumed.refuse()
        assert data.inventory is not None
        inventory, self.is_listed = resumed.inventory(data.inventory)
        return replace(data, inventory=inventory)

    @property
    def changes(self) -> list[Change]:
        return self.resumed.changes if self.resumed is not None else []


def _make_network(graph: Graph, recipe: Recipe, options: TrainOptions) -> nn.Module:
    """Build the network with its initial weights. Raise an error if torch rejects the recipe."""
    refuse(network_conflicts(recipe, graph))
    pl.seed_everything(recipe.seed, workers=True, verbose=False)
    network = to_module(graph)
    if options.weights is not None and not options.resume:
        weights = read_weights(options.weights, options.match, graph, offline=options.offline)
        load_weights(network, weights, options.match, file=options.weights, reinit=options.reinit)
    frozen = frozen_modules(recipe, graph)
    for path, module in network.named_modules():
        if path in frozen:
            module.requires_grad_(False)
    optimizer_for(network, recipe, 1)
    return network


class _TrainingRun:
    """A training run with its collaborators."""

    def __init__(self, start: _Start, console: Console, stop: StopHandler) -> None:
        folder, network = start.folder, start.network
        assert folder is not None
        self.start = start
        self.graph, self.options, self.recipe, self.data = start.graph, start.options, start.recipe, start.data
        self.folder, self.console, self.stop = folder, console, stop
        self.previous = start.resumed.result if start.resumed is not None else {}
        self._external_runs: dict[str, str] = {**self.previous.get("loggers", {})}
        self.is_main_process = is_main_process()
        state = None
        data, recipe = self.data, self.recipe
        workers = self.options.workers
        workers = default_workers(local_processes(start.trainer.world_size)) if workers is None else workers
        steps = steps_per_epoch(data.train, recipe.batch)
        if start.resumed is not None and folder.checkpoints.exists():
            check = StateCheck(network, recipe, steps)
            state, problems = folder.checkpoints.load(check, check.max_bytes)
            for line in problems:
                self._log(f"{line}; using the previous one", style="yellow")
        self.preprocessing, self._origins = choose_preprocessing(
            recipe, self.graph.input_shape, data.compute_statistics, self._carried(state), training=True
        )
        recorded = self.previous.get("preprocessing", {}).get("origins", {})
        for entry, origin in self._origins.items():
            if origin == "weights" and entry in recorded:  # the checkpoint of this run, not the initial weights
                self._origins[entry] = recorded[entry]
        self.context = TrainingContext(
            data,
            self.preprocessing,
            folder.checkpoints,
            None,
            stop,
            self._log,
            is_main_process=self.is_main_process,
            processes=start.processes,
            save_every=self.options.save_every,
            watch=self.options.watch,
            about=describe(self.graph, data.names, self.preprocessing),
            workers=Workers(workers),
        )
        self.task = Task(self.graph, network, self.recipe, steps, self.context, state)
        if start.parts > self.task.progress.parts:
            self.task.progress.parts = start.parts
            self._log(
                f"memory: each batch is computed in {start.parts} parts{parts_note(recipe)}",
                style="yellow",
            )
        self.changes = _change_rows(self.previous.get("changes", []), start.changes, self.task.progress.step)
        self.trainer = start.trainer
        self._add_loggers()
        self.task.trainer = self.trainer
        self.context.data = start.placed
        self.weights = self.previous.get("weights") if start.resumed is not None else self.options.start
        self.tuning = start.processes.from_main(lambda: self._choose_tuning(network))
        # After the measurement, which only one process makes.
        strategy, devices = self.trainer.strategy, self.trainer.world_size
        self.task.groups = convert_batch_norm(network, recipe, strategy.root_device, devices)
        self.tuning.apply(network)
        self.context.memory_format = FORMATS[self.tuning.memory_format]
        self.context.threads = self.tuning.threads

    def _carried(self, state: State | None) -> Preprocessing | None:
        """Return the preprocessing of the checkpoint, or of the weights that training starts from."""
        about = ((state or {}).get("run") or {}).get("about")
        if about:
            return Preprocessing.from_json(about["preprocessing"])
        if self.options.weights is None or self.start.resumed is not None:
            return None
        return about_weights(self.options.weights, self.graph).preprocessing

    def _add_loggers(self) -> None:
        step = self.task.progress.step
        try:
            loggers = make_loggers(self.folder.path, self.options.log, step, self._external_runs, self._log)
        except CnnspecError:
            if self.start.resumed is None:
                self.folder.remove()
            raise
        self.trainer.loggers = loggers
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.append(ProgressDisplay(self.console, self.task))
        self._external_runs |= {logger.name: logger.version for logger in loggers if isinstance(logger, ExternalLogger)}

    def run(self) -> Result:
        """Train, test, and write the result."""
        try:
            return self._run()
        except BaseException as error:
            explained = _explain(error, self.folder.path)
            if self.is_main_process and not isinstance(error, SystemExit):
                self._write_failure(explained)
            if explained is error:
                raise
            raise explained from error

    def _run(self) -> Result:
        state, scores, exit_code = "finished", None, 0
        try:
            if self.is_main_process:
                self._start()
            self.stop.poll()
            self._fit()
            if not self.context.processes.are_connected:
                self._exit_other_processes()
            scores = self._test()
        except (Stopped, KeyboardInterrupt):
            state = "interrupted"
        except Pruned:
            state = "pruned"
        except SystemExit:
            if not (self.is_main_process and self.stop.requested):  # Lightning turns a second signal into this
                raise
            state = "interrupted"
        self._exit_other_processes()
        self._finish_files()
        values = self._write_result(state, scores)
        if state == "interrupted":
            exit_code = self.stop.exit_code
            command = self.options.resume_command or "TrainOptions(resume=True)"
            self._log(f"stopped after step {self.task.progress.step}; resume with `{command}`", style="yellow")
        return Result(self.folder.path, state, exit_code, values)

    def _start(self) -> None:
        """Write the first files of the run and log its settings."""
        self.folder.remove_partial_files()
        inventory = self.data.inventory
        if inventory is not None and inventory.splits and not self.start.is_listed:
            listed = inventory.to_bytes()
            if listed is None:
                self._log(f"the folder has too many images for `{identity.FILE}`: a later change names no files")
            else:
                write_atomically(self.folder.path / identity.FILE, listed)
        self._write_result("running")
        if self.start.changes:
            self.folder.write_spec(self.graph)
        self.folder.announce()
        if self.options.plots:
            preprocess = Preprocess(self.preprocessing, self.recipe.augment)
            draw_augmentation(self.folder.path, self.data, preprocess, self.recipe.seed)
        self.context.journal = Journal(self.folder.path, self.task.progress.files, self.changes)
        self._log_start()

    def _exit_other_processes(self) -> None:
        """End every process but the main one. Lightning treats any other exit code as a crash."""
        if not self.is_main_process:
            raise SystemExit(0)

    def _finish_files(self) -> None:
        """Close the files and loggers, and draw the curves.

        Raises:
            OSError: A file cannot be written.
        """
        for logger in self.trainer.loggers:
            logger.finalize("success")  # Lightning finalizes them only after a fit
        if self.context.journal is not None:
            self.context.journal.close()
            if self.options.plots:
                draw_curves(self.folder.path)

    def close(self) -> None:
        """End the workers, and close what an error has left open."""
        self.context.workers.close()
        for logger in self.trainer.loggers:
            with suppress(Exception):  # the first error is reported
                logger.finalize("failed")
        if self.context.journal is not None:
            with suppress(OSError):
                self.context.journal.close()

    def _choose_tuning(self, network: nn.Module) -> Tuning:
        """Return the machine settings. A resumed run and other processes use the settings chosen before."""
        options, resumed = self.options, self.start.resumed is not None
        if resumed or not self.is_main_process:
            stored = self.folder.read_result().get("machine", {})
            if {"memory_format", "threads"} <= stored.keys():
                requested = {"memory_format": options.memory_format, "threads": options.threads} if resumed else {}
                requested = {name: value for name, value in requested.items() if value not in (None, stored[name])}
                origin = "requested" if requested else "resumed" if resumed else stored["origin"]
                chosen = {**stored, **requested}
                return Tuning(chosen["memory_format"], chosen["threads"], origin)
        device = self.trainer.strategy.root_device
        return choose_tuning(
            replace(self.graph, recipe=self.recipe),
            network,
            self.start.images_at_once,
            device,
            options.memory_format,
            options.threads,
            str(self.trainer.precision),
        )

    def _log_start(self) -> None:
        """Log what the run will do. Defaults of the recipe are marked, because the spec does not show them."""
        data, recipe = self.data, self.recipe
        sizes = ((name, len(part)) for name, part in (("val", data.val), ("test", data.test)) if part is not None)
        counts = ", ".join([f"{len(data.train):,} train", *(f"{count:,} {name}" for name, count in sizes)])
        self._log(f"training {self.graph.name} ({self.graph.parameter_count:,} parameters) on {data.name} ({counts})")
        for note in data.notes:
            self._log(f"  note: {note}")
        stated = {*recipe.specified, *self.options.overrides(self.graph.recipe), "planned"}
        for name, text in () if self.options.brief else recipe_lines(recipe):
            self._log(f"  {name:<15} {text}" + ("" if name in stated else "  (default)"))
        origins = ", ".join(f"{entry}: {origin}" for entry, origin in self._origins.items())
        self._log(f"preprocessing: {self.preprocessing} ({origins})")
        if frozen := frozen_modules(recipe, self.graph):
            count = sum(node.parameter_count for node in self.graph if node.path in frozen)
            self._log(f"frozen: {count:,} of {self.graph.parameter_count:,} parameters")
        devices = self.trainer.world_size
        if devices > 1:
            self._log(
                f"devices: {devices}, {recipe.batch} images per step in total, about {recipe.batch / devices:.4g} each"
            )
        if self.start.devices_reason is not None:
            self._log(f"devices: {self.start.devices_reason}")
        if devices > 1 or self.options.scale_lr != "none":
            self._log(f"learning rate: {rate_rule(self.graph.recipe, self.options)}")
        if devices > 1 or recipe.bn_statistics.name != "sync":
            self._log(f"batch statistics: {statistics_rule(recipe)}")
        machine = self.tuning
        self._log(f"machine: {machine.memory_format}, {machine.threads} threads ({machine.origin})")
        device = self.trainer.strategy.root_device
        if device.type != "cpu":
            kernels = "deterministic kernels" if self.options.deterministic else "TF32 for products in float32"
            self._log(f"device: {device_name(device)}, {self.trainer.precision}, {kernels}")
        if self.context.data is not data:
            places = {"device": f"memory of {device}", "ram": "memory, decoded", "disk": "disk cache, decoded"}
            self._log(f"images in the {places[self.start.placement.place]}")
        self._log(f"run folder: {self.folder.path}")
        for line in self.start.resumed.remarks if self.start.resumed is not None else ():
            self._log(line)
        for change in self.start.changes:
            self._log(f"accepted change: {change}")
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
            with Workers(self.context.workers.count, self.recipe.epochs) as workers:
                batches = BatchDataModule(self.recipe, self.context.data, self.preprocessing, workers)
                batches.skip = skip
                trainer.fit(task, datamodule=batches)
        finally:
            task.stop_clock()
            self.folder.checkpoints.wait()

    def _write_failure(self, error: BaseException) -> None:
        """Write the error into the result, if possible."""
        entry: dict[str, Any] = {"code": None, "message": str(error)}
        if isinstance(error, CnnspecError):
            entry = {"code": error.diagnostics[0].code, "message": error.diagnostics[0].message}
        try:
            self._write_result("failed", error=entry)
        except OSError:
            pass

    def _test(self) -> dict[str, Any]:
        """Evaluate the best weights on the validation and test images, as `cnnspec test` does."""
        network = to_module(self.graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.is_main_process:
            load_weights(network, read_weights(self.folder.checkpoints.weights))
        processes = self.context.processes
        processes.broadcast(network.state_dict().values())
        scores: dict[str, Any] = {"metrics": {}}
        predictions: dict[str, tuple[Images, torch.Tensor, torch.Tensor]] = {}
        names = self.data.class_names
        device = self.trainer.strategy.root_device
        for name, part in (("val", self.data.val), ("test", self.data.test)):
            if part is not None:
                options: dict[str, Any] = {"poll": self.task.poll, "tta": self.recipe.tta, "processes": processes}
                result = score(network, part, self.preprocessing, device, **options, workers=self.context.workers)
                scores |= {f"{name}_acc": result.accuracy, f"{name}_loss": result.loss}
                scores["metrics"][name] = result.metrics()
                predictions[name] = part, result.predicted, result.probability
                if name == "test" and self.options.plots and self.is_main_process:
                    path = self.folder.path
                    draw_confusion(path, result.labels, result.predicted, names)
                    draw_misclassified(path, part, result.predicted, names, self.preprocessing)
                    draw_reliability(path, scores["metrics"][name])
        self._exit_other_processes()
        write_predictions(self.folder.path, predictions, names, self.data.root)
        return scores

    def _write_result(
        self, state: str, scores: dict[str, Any] | None = None, error: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write `result.json` and return what it holds."""
        metrics = {**dict.fromkeys(("val_acc", "test_acc", "val_loss", "test_loss")), "metrics": {}, **(scores or {})}
        task, inventory = self.task, self.data.inventory
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
            "classes": list(self.data.names),
            "data_notes": list(self.data.notes),
            "preprocessing": {**self.preprocessing.to_json(), "origins": self._origins},
            "data_identity": inventory and inventory.identity.model_dump(mode="json"),
            "spec": spec_hashes(self.graph),
            **resolved_settings(self.trainer),
            "bn_statistics": statistics_rule(self.recipe),
            "requested": {name: getattr(self.options, name) for name in REQUESTS} | {"ddp": dict(self.options.ddp)},
            "machine": {**self.tuning.to_json(), "allocator": self.options.allocator},
            "loggers": self._external_runs,
            "recipe": self.recipe.model_dump(mode="json"),
            "changes": self.changes,
            "versions": versions(),
        }
        return self.folder.write_result(values)


def _change_rows(earlier: list[dict[str, Any]], changes: list[Change], step: int) -> list[dict[str, Any]]:
    """Return the accepted changes of all resumptions, each with the step after which it applies."""
    rows = [{**row, "step": min(row["step"], step)} for row in earlier]
    return rows + ([{"step": step, "changes": [change.to_json() for change in changes]}] if changes else [])


def _make_trainer(options: TrainOptions, recipe: Recipe, folder: RunFolder | None) -> pl.Trainer:
    """Create the trainer, without the loggers and callbacks of the run.

    Raises:
        CnnspecError: E0510 if Lightning does not support the settings.
    """
    precision: Any = lightning_precision(options.precision or recipe.precision, device_of(options.accelerator))
    launch = read_launch()
    devices, plugins = (options.devices, []) if launch is None else _launched(launch, options)
    strategy = "ddp" if launch is not None and options.strategy == "auto" else options.strategy
    check_strategy(strategy)
    make = functools.partial(
        pl.Trainer,
        accelerator=options.accelerator,
        devices=devices,
        plugins=plugins,
        precision=precision,
        max_epochs=recipe.epochs,
        logger=False,
        limit_val_batches=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.path if folder is not None else options.out,
    )
    try:
        trainer = make(strategy=strategy)
        shares_statistics = recipe.bn_statistics.name == "sync"
        if (other := make_strategy(strategy, trainer.strategy, options.ddp, buffers=shares_statistics)) is not None:
            trainer = make(strategy=other)
    except (MisconfigurationException, ValueError, RuntimeError, TypeError, ImportError) as error:
        raise _settings_error(error) from None
    if str(precision) in ("16", PRECISIONS["fp16"]) and trainer.precision != PRECISIONS["fp16"]:
        raise failure(
            "E0510",
            "`fp16` requires a GPU",
            notes=["float16 has a small range, so mixed precision scales the loss; Lightning does so only on GPUs"],
            help="use `--precision bf16` or `--precision fp32`",
        )
    return trainer


def _launched(launch: Launch, options: TrainOptions) -> tuple[int, list[Any]]:
    """Return the number of devices of this machine that Lightning uses, and its view of the processes.

    Raises:
        CnnspecError: E0524 if the processes of this machine do not fit the option `devices`.
    """
    given = str(options.devices)
    count = int(given) if given.isdecimal() else len(given.strip(",").split(",")) if "," in given else None
    own = launch.local_world or count or launch.local_rank + 1
    if count is not None and (count != own or launch.local_rank >= count):
        raise failure(
            "E0524",
            f"`--devices {given}` does not match the {max(own, launch.local_rank + 1)} processes on this machine",
            notes=[f"this is {launch.place}"],
            help="omit `--devices`: each process that `torchrun` or `srun` starts uses one device",
        )
    visible = torch.cuda.device_count() if device_of(options.accelerator).type == "cuda" else own
    if visible == 1 < own:  # SLURM shows each task its own GPU only
        return 1, [LaunchedEnvironment(launch, 0)]
    return own, [LaunchedEnvironment(launch, launch.local_rank)]


def check_recipe(recipe: Recipe, data: ImageData) -> None:
    """Raise an error if the recipe needs data that the dataset lacks.

    Raises:
        CnnspecError: E0511 for early stopping without validation images, E0525 if there are fewer training images than
            a batch, and groups of ghost batch normalization do not divide them.
    """
    refuse(divided_group(recipe, min(recipe.batch, len(data.train))))
    refuse(nothing_validated(recipe, 0 if data.val is None else len(data.val)))


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
    if is_out_of_memory(error):
        return out_of_memory(error)
    if (explained := lost_process(error)) is not None:
        return explained
    if isinstance(error, OSError) and error.errno is not None:
        return write_error(error, folder, ["the existing checkpoints are intact"], ", then resume with `--resume`")
    return error
