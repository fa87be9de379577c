"""Define the LightningModule: training steps, the end of an epoch, and the contents of a checkpoint.

Random numbers of a step derive from the seed and the step. So no random state is saved, and a resumed run
repeats the arithmetic of an uninterrupted one.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from cnnspec.backends.torch.memory import is_out_of_memory
from cnnspec.backends.torch.weights import unusual
from cnnspec.diagnostics import CnnspecError, failure, named, one_line
from cnnspec.files import first_problem
from cnnspec.ir import Graph
from cnnspec.ir.stored_recipe import read_recipe
from cnnspec.limits import CHECKPOINT_RATIO, MAX_INTEGER
from cnnspec.recipe import Recipe
from cnnspec.semantics.recipe_rules import frozen_modules, single_value_norm
from cnnspec.shapes import text
from cnnspec.training.data.augment import Preprocess, is_per_image
from cnnspec.training.data.batches import Batch, EpochBatches, Workers
from cnnspec.training.data.datasets import ImageData
from cnnspec.training.data.device import to_device
from cnnspec.training.data.identity import DataIdentity
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop.average import WeightAverage
from cnnspec.training.loop.batch_norm import Groups, average_over_devices, running_statistics
from cnnspec.training.loop.checkpoints import Checkpoints, DamagedCheckpoint, State, network_weights
from cnnspec.training.loop.conv1x1_grad import NarrowGradients, has_narrow
from cnnspec.training.loop.evaluate import full_float32, score
from cnnspec.training.loop.journal import Journal
from cnnspec.training.loop.machine import exact_float
from cnnspec.training.loop.nan_search import divergence_error, first_nonfinite_weight
from cnnspec.training.loop.optimizers import optimizer_for
from cnnspec.training.loop.processes import Processes
from cnnspec.training.loop.restore import convert, restore_optimizer, run_facts
from cnnspec.training.loop.signals import Pruned, StopHandler, Stopped

LOG_EVERY = 50
"""Steps between two rows of the journal."""


@dataclass
class Progress:
    """The progress of a run, stored in its checkpoints.

    Attributes:
        step: Completed steps.
        validated_step: The step at the end of the last epoch that was closed: logged, and validated if it was due.
        stopped_early: Whether training ended early, by early stopping or the time limit.
        best_epoch: The best epoch, from 1. 0 before the first one ends.
        best_score: The validation accuracy of the best epoch.
        best_loss: The validation loss of the best epoch. It decides between epochs with the same accuracy.
        epochs_without_improvement: Epochs since the accuracy increased, with those that were not validated.
        seconds: Training time, over all parts of an interrupted run. Steps lost in a crash are not included, their
            repetition is.
        epoch_seconds: The training time at the end of each epoch.
        parts: The number of parts that a batch is split into.
        sums: Sums of this epoch: the loss of all images, correct predictions, images.
        files: The lengths of the journal files, in bytes.
    """

    step: int = 0
    validated_step: int = 0
    stopped_early: bool = False
    best_epoch: int = 0
    best_score: float = -1.0
    best_loss: float = 0.0
    epochs_without_improvement: int = 0
    seconds: float = 0.0
    epoch_seconds: list[float] = field(default_factory=list[float])
    parts: int = 1
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    files: dict[str, int] = field(default_factory=dict[str, int])


_PROGRESS = TypeAdapter(Progress)


@dataclass
class StateCheck:
    """Checks that the state of a checkpoint is one of a run, whose parts have the types and shapes that it needs."""

    network: nn.Module
    recipe: Recipe
    steps: int

    @property
    def max_bytes(self) -> int:
        """The maximum size of a checkpoint of the network."""
        weights = sum(tensor.nbytes for tensor in self.network.state_dict().values())
        return CHECKPOINT_RATIO * (weights + (1 << 20))

    def __call__(self, state: State) -> None:
        """Check a state by the recipe that it was saved with.

        Raises:
            DamagedCheckpoint: It does not fit the network or this recipe.
        """
        try:
            recipe, steps = self._saved_with(state.get("run"))
            averaged = ["trained", "averaged"] if recipe.ema is not None else []
            if missing := [key for key in ("state_dict", "optimizer_states", *averaged) if key not in state]:
                raise ValueError(f"`{missing[0]}` is missing")
            _check_progress(state["progress"], recipe, steps)
            for name in ["state_dict", *averaged[:1]]:
                _check_weights(state[name], dict(self.network.state_dict()))
            own, saved = self.network.state_dict(), network_weights(state["state_dict"])
            is_own = {key: value.shape for key, value in own.items()} == {key: saved[key].shape for key in saved}
            optimizer, _ = optimizer_for(self.network, recipe, steps)
            for part in state["optimizer_states"] if is_own else ():  # a network that has changed is refused later
                _check_optimizer(optimizer, part["state"])
            if averaged and not (type(state["averaged"]) is int and state["averaged"] >= 0):
                raise ValueError("`averaged` is not a number of steps")
            if not all(type(value) in (int, float) for value in state.get("scaler", {}).values()):
                raise ValueError("`scaler` has values that are not numbers")
        except ValidationError as error:
            raise DamagedCheckpoint(first_problem(error)) from None
        except Exception as error:  # noqa: BLE001 - a forged state can have any type in any place
            raise DamagedCheckpoint(one_line(error) or type(error).__name__) from None

    def _saved_with(self, run: Any) -> tuple[Recipe, int]:
        """Return the recipe and the steps per epoch of the run that saved a state."""
        if run is None:
            return self.recipe, self.steps
        if run["data"] is not None:
            DataIdentity.model_validate(run["data"])
        if run.get("about"):
            Preprocessing.from_json(run["about"]["preprocessing"])
        steps = run["steps_per_epoch"]
        if type(steps) is not int or not 1 <= steps <= MAX_INTEGER:
            raise ValueError("`steps_per_epoch` is not a number of steps")
        return read_recipe(run["recipe"]), steps


def _check_progress(values: Any, recipe: Recipe, steps: int) -> None:
    progress = _PROGRESS.validate_python(values)
    if values.keys() != {part.name for part in fields(Progress)}:
        raise ValueError("`progress` has other keys than this version of cnnspec writes")
    numbers = (progress.seconds, progress.best_score, progress.best_loss, *progress.epoch_seconds, *progress.sums)
    counts = (progress.best_epoch, progress.epochs_without_improvement, *progress.files.values())
    if not (
        0 <= progress.validated_step <= progress.step <= steps * recipe.epochs
        and 1 <= progress.parts <= recipe.batch
        and len(progress.sums) == 3
        and all(math.isfinite(number) for number in numbers)
        and min(counts) >= 0
    ):
        raise ValueError("`progress` has values that no run has")


def _check_weights(weights: Any, own: Mapping[str, Tensor]) -> None:
    """Check the types of weights. Their names and shapes may differ from those of a network that has changed."""
    for name, tensor in network_weights(weights).items():
        if (what := unusual(tensor)) is not None:
            raise ValueError(f"`{name}` is {what}")
        if name in own and own[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"`{name}` has the type `{tensor.dtype}`")


def _check_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state.items():
        for value in values.values():
            if isinstance(value, Tensor) and (value.layout != torch.strided or value.device.type != "cpu"):
                raise ValueError("a state of the optimizer is not a dense tensor")
            if isinstance(value, Tensor) and value.shape not in (parameters[number].shape, ()):
                raise ValueError("a state of the optimizer has another shape than its parameter")
            if not (value is None or isinstance(value, (Tensor, int, float))):
                raise ValueError("a state of the optimizer is not a tensor")


@dataclass
class TrainingContext:
    """The collaborators of a task: data, files, logging, and callbacks."""

    data: ImageData
    preprocessing: Preprocessing
    checkpoints: Checkpoints
    journal: Journal | None
    stop: StopHandler
    log: Callable[[str], None]
    is_main_process: bool = True
    processes: Processes = field(default_factory=Processes)
    save_every: float = 300.0
    watch: Callable[[int, Mapping[str, float]], bool] | None = None
    about: Mapping[str, Any] | None = None
    workers: Workers = field(default_factory=Workers)
    memory_format: torch.memory_format = torch.channels_last
    threads: int | None = None


def _load_checkpoint(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a checkpoint into a network, which may have changed since.

    Raises:
        CnnspecError: E0506 if the weights have other names or shapes.
    """
    own = network.state_dict()
    differing = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
    differing += [key for key in weights if key not in own]
    if differing:
        raise failure(
            "E0506",
            "cannot resume the run: the weights of the changed network do not match its checkpoint",
            notes=[f"differing: {named(differing, 5)}"],
            help="restore the spec from `spec.cnn` in the run folder, or train again without `--resume`",
        )
    network.load_state_dict(dict(weights))


def check_parts(graph: Graph, images: int, parts: int, *, ghost: int | None = None) -> None:
    """Check that batch normalization sees more than one value per channel in every part of a batch.

    Args:
        graph: The network.
        images: The images of a batch.
        parts: The number of parts that a batch is computed in.
        ghost: The size of the groups of ghost batch normalization, which no part divides.

    Raises:
        CnnspecError: E0520 if a part has a single image, and a `bn` a single value per channel and image.
    """
    if ghost is not None or images // min(parts, images) > 1:
        return
    node = single_value_norm(graph, frozen_modules(graph.recipe, graph))
    if node is not None:
        part = "of a batch" if parts == 1 else f"of a batch of {images} in {parts} parts"
        raise failure(
            "E0520",
            f"`{node.path}` needs more than 1 value per channel, but gets a single image {part}",
            notes=[f"its input is {text(node.shape)}; batch normalization computes a variance over N"],
            help="use a larger batch or fewer parts (`accumulate`), or `gn` or `ln` in place of this `bn`",
        )


def parts_note(recipe: Recipe) -> str:
    """Return what a message about a batch in several parts adds on batch normalization."""
    return "" if recipe.ghost is not None else "; batch normalization uses one part at a time"


def part_sizes(images: int, parts: int, rank: int = 0, devices: int = 1, block: int = 1) -> list[int]:
    """Return the number of images of one device in each part of a batch, for up to `images // block // devices` parts.

    Each part is a range of the blocks of a batch, of which the device has every block whose position has the remainder
    `rank`. So a part has the same images for any number of devices. The parts of a batch differ by at most one block.
    """
    bounds = [images // block * part // parts for part in range(parts + 1)]
    return [block * len(range(a + (rank - a) % devices, b, devices)) for a, b in itertools.pairwise(bounds)]


def class_weights(recipe: Recipe, data: ImageData) -> Tensor | None:
    """Return the weight of each class in the loss, `[classes]`, or None.

    `balanced` is N / (K n): N training images of K classes, n of the class. Source: scikit-learn,
    `compute_class_weight`. The weight of a class without training images is 0.
    """
    given: Any = recipe.loss.args["class_weights"]
    if given is None:
        return None
    if given != "balanced":
        return torch.tensor(given, dtype=torch.float32)
    counts = torch.bincount(data.train.labels.cpu(), minlength=data.classes).double()
    return (counts.sum() / ((counts > 0).sum() * counts)).where(counts > 0, 0.0).float()


def _compiled(network: nn.Module, mode: str) -> Any:
    if mode == "cuda_graphs":
        return torch.compile(network, backend="cudagraphs")
    return torch.compile(network, mode=mode.replace("_", "-"))


class Task(pl.LightningModule):
    """Train an image classifier.

    The loss is the cross-entropy, weighted by class if the recipe says so, plus that of the auxiliary heads times their
    weights. Validation is without augmentation and class weights: on a CPU in float32, as in `cnnspec test`, and on a
    GPU in the precision of the run.

    Args:
        graph: The graph of `network`.
        network: The module to train.
        recipe: The recipe.
        steps: Steps per epoch.
        context: The collaborators. Required for training.
        state: The checkpoint to resume from.
    """

    def __init__(
        self,
        graph: Graph,
        network: nn.Module,
        recipe: Recipe,
        steps: int,
        context: TrainingContext | None = None,
        state: State | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.graph, self.recipe, self.steps = graph, recipe, steps
        self.aux_weights = [head.weight for head in graph.aux]
        self.classes = graph.output_shape[0]
        # The strategy treats everything in the module tree as weights, so these are kept outside it.
        self._hidden: dict[str, Any] = {"context": context, "average": None}
        self._gradients: Any = nullcontext()
        self.groups: Groups | None = None
        """The groups of ghost batch normalization."""
        self._state = state
        self.progress = Progress(parts=recipe.accumulate)
        self._run = run_facts(recipe, steps, self._data_identity()) | {"about": context and context.about}
        if state is not None:
            self._state = state = convert(state, recipe, self._run, self.context.log)
            self.progress = _PROGRESS.validate_python(state["progress"])
            trained = state["trained"] if recipe.ema is not None else state["state_dict"]
            _load_checkpoint(network, network_weights(trained))
        self._frozen = frozen_modules(recipe, graph)
        self._class_weights = class_weights(recipe, context.data) if context is not None else None
        self._sums = torch.tensor(self.progress.sums, dtype=torch.float64)
        self._last_save = time.monotonic()
        self._clock_start: float | None = None
        self.loss = torch.zeros(())
        self.last_metrics: dict[str, float] = {}
        """Loss and accuracy of the last closed epoch."""

    def train(self, mode: bool = True) -> Task:
        """Set the training mode of all modules but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for path, module in self.network.named_modules() if mode else ():
            if path in self._frozen:
                module.eval()
        return self

    def _data_identity(self) -> dict[str, Any] | None:
        context = self._hidden["context"]
        inventory = context.data.inventory if context is not None else None
        return inventory.identity.to_json() if inventory is not None else None

    @property
    def context(self) -> TrainingContext:
        context = self._hidden["context"]
        assert context is not None
        return context

    @property
    def average(self) -> WeightAverage | None:
        return self._hidden["average"]

    @property
    def seconds(self) -> float:
        return self.progress.seconds + (time.monotonic() - self._clock_start if self._clock_start is not None else 0.0)

    def start_clock(self) -> None:
        """Count time as training time from now on."""
        self.stop_clock()
        self._clock_start = time.monotonic()

    def stop_clock(self) -> None:
        """Stop counting time as training time."""
        self.progress.seconds, self._clock_start = self.seconds, None

    @property
    def running_sums(self) -> tuple[float, float, float]:
        """The sums of this epoch so far: the loss of all images, correct predictions, images."""
        loss, correct, count = self._sums.tolist()
        return loss, correct, count

    @property
    def epoch(self) -> int:
        """The epoch of the last step, from 1."""
        return -(-self.progress.step // self.steps)

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self.progress.stopped_early or self.progress.step >= self.steps * self.recipe.epochs

    @property
    def epoch_is_pending(self) -> bool:
        """Whether an epoch has ended that is not closed yet."""
        ends = self.progress.stopped_early or self.progress.step % self.steps == 0
        return ends and self.progress.step > self.progress.validated_step

    # --- Lightning hooks -------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = optimizer_for(self.network, self.recipe, self.steps)
        if self._state is not None:
            restore_optimizer(optimizer, schedule, self._state)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def on_train_start(self) -> None:
        self.context.stop.listen()
        if self.context.threads is not None:
            torch.set_num_threads(self.context.threads)  # launchers of Lightning set another number
        recipe, state = self.recipe, self._state
        if recipe.ema is not None:
            average = WeightAverage(self.network, recipe.ema)
            if state is not None:
                average.module.load_state_dict(network_weights(state["state_dict"]))
                average.updates = state["averaged"]
            self._hidden["average"] = average
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if state is not None and scaler is not None and "scaler" in state:
            scaler.load_state_dict(state["scaler"])
        if recipe.compile is not None:
            self._hidden["compiled"] = _compiled(self.network, recipe.compile)
        elif self.device.type == "cpu" and has_narrow(self.network):
            self._gradients = NarrowGradients()
        self._sums = self._sums.to(self.device, exact_float(self.device))
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(self.device)
        self.train()
        if not self.context.is_main_process:
            # The checkpoint contains the sums over all devices, which the main process restores.
            self._sums.zero_()
        # From now on, checkpoints are created from the current state.
        self._state = None
        self._last_save = time.monotonic()
        self.start_clock()
        if not self.progress.step:
            self.save()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        images = images.contiguous(memory_format=self.context.memory_format)
        optimizer: Any = self.optimizers()
        while True:
            self._seed_step()
            optimizer.zero_grad()
            try:
                loss, correct = self._add_gradients(images, labels)
                break
            except (RuntimeError, MemoryError) as error:
                self._split_further(error, len(labels))
        if self.device.type == "cpu" or self._logs_step(self.progress.step + 1):  # it waits for the device
            self._check_finite(loss, images, labels)
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        self._lr = optimizer.param_groups[0]["lr"]
        schedule.step()
        if self.average is not None:
            self.average.update(self.network)
        self.loss = loss
        count = torch.full_like(correct, len(labels))
        self._sums += torch.stack([loss.to(count.dtype) * self._batch, correct, count])
        self.progress.step += 1
        self._log_step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.recipe.clip is None:
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        # Lightning has unscaled the gradients, unless the optimizer does it in its step. Then it must not.
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        recipe, now = self.recipe, time.monotonic()
        time_is_up = recipe.minutes is not None and self.seconds >= 60 * recipe.minutes
        save_due = now - self._last_save >= self.context.save_every
        processes = self.context.processes
        agree = processes.any if self.epoch_is_pending else processes.vote
        stop_requested, time_is_up, save_due = agree(self.context.stop.requested, time_is_up, save_due)
        if time_is_up:
            self.context.log(f"stopping: the time limit of {recipe.minutes:g} minutes is reached")
            self.progress.stopped_early = self.trainer.should_stop = True
        if self.epoch_is_pending:
            return
        if stop_requested or save_due:
            self.save()
        if stop_requested:
            raise Stopped

    def on_train_epoch_end(self) -> None:
        self.close_epoch()
        if self.progress.stopped_early:
            self.trainer.should_stop = True

    # --- one step --------------------------------------------------------------------------------

    def _seed_step(self) -> None:
        """Seed all generators of the process for this step and device."""
        rank = self.trainer.global_rank
        seed = int(np.random.SeedSequence((self.recipe.seed, self.progress.step, rank, 1)).generate_state(1)[0])
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    def _add_gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients of a batch, part by part.

        Returns:
            This device's share of the mean loss of the batch, and its number of correct predictions.
        """
        targets = labels
        if self.recipe.mixup is not None or self.recipe.cutmix is not None:
            images, targets = self._mix(images, labels)
        processes, batch = self.context.processes, self._batch
        block = self.recipe.ghost or 1
        parts = min(self.progress.parts, batch // block // processes.size)  # the same number on all devices
        sizes = part_sizes(batch, parts, processes.rank, processes.size, block)
        whole = part_sizes(batch, parts, block=block)
        weight_sum = None if sizes == [batch] else self._weight_sum(targets)
        total = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device, dtype=exact_float(self.device))
        # A graph of kernels reuses its memory at each replay, also that of gradients that are accumulated.
        is_replayed = self.recipe.compile in ("reduce_overhead", "max_autotune", "cuda_graphs")
        forward = self.network if parts > 1 and is_replayed else self._hidden.get("compiled", self.network)
        pieces = zip(images.split(sizes), targets.split(sizes), labels.split(sizes), whole, strict=True)
        for left, (x, y, actual, in_part) in zip(reversed(range(parts)), pieces, strict=True):
            if self.groups is not None and processes.are_connected:
                self.groups.share = processes.size * block / in_part
            with self._gradients:
                outputs = forward(x)
            logits = getattr(outputs, "logits", outputs)  # [N, classes]
            loss = self._loss(logits, y, weight_sum)
            for weight, aux in zip(self.aux_weights, getattr(outputs, "aux", ()), strict=False):
                loss = loss + weight * self._loss(aux, y, weight_sum)
            with self._local_gradients() if left and processes.are_connected else nullcontext():
                self.manual_backward(loss * processes.size)  # because gradients are averaged over devices
            total = total + loss.detach()
            correct += (logits.detach().argmax(1) == actual).sum()
        return total, correct

    @property
    def _batch(self) -> int:
        """The number of images of a batch, over all devices."""
        return min(self.recipe.batch, len(self.context.data.train))

    def _local_gradients(self) -> AbstractContextManager[Any]:
        """Accumulate gradients without exchanging them between devices."""
        strategy: Any = self.trainer.strategy
        return strategy.block_backward_sync()

    def _loss(self, logits: Tensor, targets: Tensor, weight_sum: float | Tensor | None) -> Tensor:
        """Return the cross-entropy, weighted by class. Source: `torch.nn.CrossEntropyLoss`.

        Args:
            logits: `[N, classes]`.
            targets: Classes `[N]` or probabilities `[N, classes]`.
            weight_sum: The divisor of a part of a batch. None for a whole batch, whose mean torch computes.
        """
        weight = None if self._class_weights is None else self._class_weights.to(logits.dtype)
        smoothing = self.recipe.label_smoothing
        if weight_sum is None:
            return F.cross_entropy(logits, targets, weight, label_smoothing=smoothing)
        return F.cross_entropy(logits, targets, weight, reduction="sum", label_smoothing=smoothing) / weight_sum

    def _weight_sum(self, targets: Tensor) -> float | Tensor:
        """Return the number of images of a batch over all devices; with class weights, the sum of their weights."""
        if self._class_weights is None or targets.ndim > 1:  # torch averages over images if targets are probabilities
            return self._batch
        total = self._class_weights[targets].sum()
        if self.context.processes.are_connected:
            torch.distributed.all_reduce(total)
        return total

    def _mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Apply mixup, cutmix, or a random one of both. Return images and targets `[N, classes]`."""
        kinds: list[nn.Module] = []
        if self.recipe.mixup is not None:
            kinds.append(v2.MixUp(alpha=self.recipe.mixup, num_classes=self.classes))
        if self.recipe.cutmix is not None:
            kinds.append(v2.CutMix(alpha=self.recipe.cutmix, num_classes=self.classes))
        return kinds[int(torch.randint(len(kinds), (1,)))](images, labels)

    def _split_further(self, error: RuntimeError | MemoryError, images: int) -> None:
        """Double the number of parts after a failed allocation, or raise the error again.

        The step is repeated from the start. Batch norm statistics that the failed attempt updated are kept; they come
        from the same images.
        """
        # Several devices would have to agree on the number of parts in the middle of a step.
        largest = images // (self.recipe.ghost or 1)
        if self.progress.parts >= largest or self.context.processes.are_connected or not is_out_of_memory(error):
            raise error
        try:
            check_parts(self.graph, images, 2 * self.progress.parts, ghost=self.recipe.ghost)
        except CnnspecError:
            raise error from None
        self.progress.parts *= 2
        self.context.log(
            f"out of memory: from step {self.progress.step + 1} on, each batch is computed in {self.progress.parts}"
            f" parts{parts_note(self.recipe)}"
        )

    def _check_finite(self, loss: Tensor, images: Tensor | None = None, labels: Tensor | None = None) -> None:
        if not torch.isfinite(loss):
            if labels is not None and self._class_weights is not None and not self._class_weights[labels].any():
                message = f"the loss at step {self.progress.step + 1} is undefined"
                notes = ["all images of the batch belong to classes whose weight in `class_weights` is 0"]
                raise failure("E0509", message, notes=notes, help="use positive weights, or a larger `batch`")
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise divergence_error(self.network, images, float(loss), self.progress.step + 1, self.steps, lr)

    def _logs_step(self, step: int) -> bool:
        return step % min(LOG_EVERY, self.steps) == 0

    def _log_step(self) -> None:
        """Write a row of the journal at intervals, with the loss over all devices."""
        if not self._logs_step(self.progress.step):
            return
        loss = self.loss.clone()
        if self.context.processes.are_connected:
            torch.distributed.all_reduce(loss)
        if self.context.is_main_process:
            self._log(epoch=self.epoch, lr=self._lr, loss=float(loss))

    def _log(self, **values: Any) -> None:
        if self.context.journal is not None:
            self.context.journal.write(step=self.progress.step, **values)
        for logger in self.trainer.loggers:
            logger.log_metrics(values, self.progress.step)

    # --- the end of an epoch ---------------------------------------------------------------------

    def close_epoch(self) -> None:
        """Validate if it is due, log the epoch, and save its weights if they are the best so far.

        Raises:
            Stopped: A stop was requested. The state is saved, and the resumed run closes the epoch.
            Pruned: The `watch` callback ended the run.
        """
        sums = self.context.processes.sum(self._sums)
        self._check_state_finite(sums)
        self._average_statistics()
        try:
            if self.context.processes.any(self.context.stop.requested)[0]:
                raise Stopped
            metrics = self._validate() if self._validation_is_due else {}
        except Stopped:
            self.save()
            raise
        progress, (train_loss, train_acc) = self.progress, (sums[:2] / sums[2]).tolist()
        values = {"train_loss": train_loss, "train_acc": train_acc, **metrics}
        improved = self._note_score(metrics)
        if self.context.is_main_process:
            self._log(epoch=self.epoch, **values)
        self._sums.zero_()
        progress.validated_step = progress.step
        progress.epoch_seconds.append(round(self.seconds, 3))
        self.last_metrics = {**values, "best": float(improved)}
        self.save(best=improved)
        watch = self.context.watch
        if watch is not None and self._validation_is_due:
            prune = self.context.is_main_process and watch(self.epoch, values)
            if self.context.processes.any(prune)[0] and not self.is_done:
                raise Pruned

    @property
    def _validation_is_due(self) -> bool:
        """Whether the last epoch is one to validate. Without validation images, this decides on the best weights."""
        return self.is_done or self.epoch % self.recipe.val_every == 0

    def _note_score(self, metrics: Mapping[str, float]) -> bool:
        """Update the best epoch and early stopping. Return whether the epoch is the best so far.

        Args:
            metrics: The result of the validation, empty without one.
        """
        progress = self.progress
        if not self._validation_is_due:
            progress.epochs_without_improvement += 1
            return False
        score, loss = metrics.get("val_acc", -1.0), metrics.get("val_loss", 0.0)
        loss = loss if math.isfinite(loss) else sys.float_info.max
        improved = not metrics or (score, -loss) > (progress.best_score, -progress.best_loss)
        more_accurate = not metrics or score > progress.best_score
        progress.epochs_without_improvement = 0 if more_accurate else progress.epochs_without_improvement + 1
        if improved:
            progress.best_epoch, progress.best_score, progress.best_loss = self.epoch, score, loss
        if self.recipe.early_stop is not None and progress.epochs_without_improvement >= self.recipe.early_stop:
            progress.stopped_early = True
        return improved

    def _check_state_finite(self, sums: Tensor) -> None:
        """Check the sums of the epoch over all devices, and the weights, which the last update may have made infinite.

        Raises:
            CnnspecError: E0509 if one of them is not finite.
        """
        if not torch.isfinite(sums).all():
            self._check_finite(sums[0])
        if self.progress.step and first_nonfinite_weight(self.network) is not None:
            raise divergence_error(self.network, None, None, self.progress.step, self.steps, self._lr)

    def _validate(self) -> dict[str, float]:
        val = self.context.data.val
        if val is None:
            return {}
        network = self.average.module if self.average is not None else self.network
        try:
            if self._state is not None and self.recipe.ema is not None:
                network = self._averaged_copy(self._state)
            preprocessing, processes = self.context.preprocessing, self.context.processes
            result = score(
                network,
                val,
                preprocessing,
                self.device,
                poll=self.poll,
                processes=processes,
                precision=self._val_precision,
                workers=self.context.workers,
            )
        finally:
            network.train()
            self.train()
        return {"val_loss": result.loss, "val_acc": result.accuracy}

    def _val_precision(self) -> AbstractContextManager[Any]:
        """Return the context of validation: full float32 precision on a CPU, that of the run on a GPU."""
        return full_float32() if self.device.type == "cpu" else self.trainer.precision_plugin.forward_context()

    def _averaged_copy(self, state: State) -> nn.Module:
        """Return the averaged network of a checkpoint, before training starts."""
        copy = deepcopy(self.network)
        copy.load_state_dict(network_weights(state["state_dict"]))
        return copy

    def poll(self) -> None:
        """Raise `Stopped` if a process was asked to stop before the previous call. All processes call this."""
        if self.context.processes.vote(self.context.stop.requested)[0]:
            raise Stopped

    # --- checkpoints -----------------------------------------------------------------------------

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint in the background.

        Raises:
            CnnspecError: E0509 if the sums of the epoch or the weights are not finite.
            OSError: The checkpoint before it could not be written.
        """
        sums = self.context.processes.sum(self._sums)
        self._check_state_finite(sums)
        self._average_statistics()
        if self.context.is_main_process:
            journal = self.context.journal
            files = journal.lengths() if journal is not None else {}
            progress = {**asdict(self.progress), "sums": sums.tolist(), "files": files, "seconds": self.seconds}
            self.context.checkpoints.save_in_background(self._make_state(progress), best=best)
        self._last_save = time.monotonic()

    def _average_statistics(self) -> None:
        """Average the running statistics of batch normalization over the devices, if each has its own.

        An update is linear, so that the average is that of a single device which has seen all images.
        """
        shares = self.recipe.bn_statistics.name == "sync" or not self.context.processes.are_connected
        if shares or self._state is not None:
            return
        networks = [self.network, *([self.average.module] if self.average is not None else [])]
        average_over_devices([value for part in networks for value in running_statistics(part, self._frozen)])

    def _make_state(self, progress: dict[str, Any]) -> State:
        if self._state is not None:  # nothing else has changed between loading and the first step
            return {**self._state, "progress": progress, "run": self._run}
        average, optimizer = self.average, self.trainer.optimizers[0]
        trained_weights = self.network.state_dict()
        eval_weights = average.module.state_dict() if average is not None else trained_weights
        state: State = {
            "state_dict": {f"network.{key}": value for key, value in eval_weights.items()},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [self.trainer.lr_scheduler_configs[0].scheduler.state_dict()],
            "global_step": self.progress.step,
            "epoch": self.progress.step // self.steps,
            "pytorch-lightning_version": pl.__version__,
            "progress": progress,
            "run": self._run,
        }
        if average is not None:
            state |= {"trained": trained_weights, "averaged": average.updates}
        if (scaler := getattr(self.trainer.precision_plugin, "scaler", None)) is not None:
            state["scaler"] = scaler.state_dict()
        return state


class BatchDataModule(pl.LightningDataModule):
    """The data module that provides the batches of each epoch.

    Args:
        recipe: The recipe.
        data: The dataset.
        preprocessing: Turns images into the input of the network.
        workers: The processes that read images from files.
    """

    def __init__(self, recipe: Recipe, data: ImageData, preprocessing: Preprocessing, workers: Workers) -> None:
        super().__init__()
        self.recipe, self.data, self.workers = recipe, data, workers
        self.preprocess = Preprocess(preprocessing, recipe.augment)
        self.skip = 0
        """The number of batches to skip in the next epoch, after an interruption."""

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        images, labels = batch
        return to_device(images, device), to_device(labels, device)

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        batches = EpochBatches(
            self.data.train,
            self.preprocess,
            self.recipe.batch,
            seed=self.recipe.seed,
            epoch=self.trainer.current_epoch,
            skip=self.skip,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            block=self.recipe.ghost or 1,
            workers=self._needed_workers(),
        )
        self.skip = 0
        return batches

    def _needed_workers(self) -> Workers | None:
        """Return the workers, or None for images in memory, unless a CPU processes them one by one for a GPU."""
        assert self.trainer is not None
        for_gpu = self.trainer.strategy.root_device.type != self.data.train.device.type
        one_by_one = for_gpu and is_per_image(self.recipe.augment)
        return self.workers if not self.data.train.in_memory or one_by_one else None
