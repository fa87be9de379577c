"""The LightningModule: one step of a recipe, the end of an epoch, and everything that a checkpoint must hold.

Every random number of a step follows from the seed and the step's number. So there is no random state to keep, and
a run that goes on does the same arithmetic as one that was never interrupted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from cnnspec.ir import Graph
from cnnspec.recipe import Recipe
from cnnspec.training.data.batches import Batch
from cnnspec.training.data.datasets import ImageData
from cnnspec.training.loop.checkpoints import Checkpoints, State, weights_in
from cnnspec.training.loop.conv1x1_grad import NarrowGradients, has_narrow
from cnnspec.training.loop.evaluate import score
from cnnspec.training.loop.journal import Journal
from cnnspec.training.loop.machine import memory_is_full
from cnnspec.training.loop.nan_search import first_not_finite
from cnnspec.training.loop.optimizers import optimizer_of
from cnnspec.training.loop.signals import Pruned, Stop, Stopped

LOG_EVERY = 50
"""Steps between two rows of the journal."""
NAN_CHECK = 20
"""Steps between two looks at the loss on an accelerator, which has to wait for each."""


@dataclass
class Progress:
    """Where a run stands; all of it is in its checkpoints.

    Attributes:
        step: Steps done.
        closed: Of these, the steps before the last epoch end that is validated and written down.
        over: Whether training ended before its time: no better score, or no time left.
        best_epoch: Counted from 1; 0 before the first.
        best_score: Its validation accuracy.
        waited: Epochs since then.
        seconds: Time spent in training, over all parts of a run that was interrupted. What was lost with a process
            that died is not in it; that it is done again is.
        epoch_seconds: The same at the end of each epoch.
        parts: In how many parts a batch is computed.
        sums: Of this epoch: the loss of all images, how many were told right, how many there were.
        files: How long the journal is.
    """

    step: int = 0
    closed: int = 0
    over: bool = False
    best_epoch: int = 0
    best_score: float = -1.0
    waited: int = 0
    seconds: float = 0.0
    epoch_seconds: list[float] = field(default_factory=list[float])
    parts: int = 1
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    files: dict[str, int] = field(default_factory=dict[str, int])


@dataclass
class Surroundings:
    """What a task works with beside the network: where it writes, and who may stop it."""

    data: ImageData
    checkpoints: Checkpoints
    journal: Journal | None
    stop: Stop
    say: Callable[[str], None]
    first: bool = True
    save_every: float = 300.0
    watch: Callable[[int, Mapping[str, float]], bool] | None = None
    layout: torch.memory_format = torch.channels_last


class Task(pl.LightningModule):
    """Trains a network to tell classes apart.

    The loss is the cross entropy, with those of the auxiliary heads added by their weights. Validation is plain
    and in float32, as that of `cnnspec test`.

    Args:
        graph: What `network` was built from.
        network: The module to train.
        recipe: How.
        steps: Steps of one epoch.
        around: What the task works with; only a run has it.
        state: Of the checkpoint to go on from.
    """

    def __init__(
        self,
        graph: Graph,
        network: nn.Module,
        recipe: Recipe,
        steps: int,
        around: Surroundings | None = None,
        state: State | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.graph, self.recipe, self.steps = graph, recipe, steps
        self.aux_weights = [head.weight for head in graph.aux]
        self.classes = graph.output_shape[0]
        # What is not in the module tree is not given to the strategy as a weight.
        self._hidden: dict[str, Any] = {"around": around, "run": network, "average": None}
        # A compiler sees to its gradients itself.
        self._gradients = NarrowGradients() if has_narrow(network) and not recipe.compile else nullcontext()
        self._state = state
        self.progress = Progress(parts=recipe.accumulate)
        if state is not None:
            self.progress = Progress(**state["progress"])
            trained = state["trained"] if recipe.ema is not None else state["state_dict"]
            network.load_state_dict(weights_in(trained))
        self._sums = torch.tensor(self.progress.sums, dtype=torch.float64)
        self._saved = time.monotonic()
        self._since: float | None = None
        self.loss = torch.zeros(())
        self.last_scores: dict[str, float] = {}
        """Loss and accuracy of the epoch that was closed last."""

    @property
    def around(self) -> Surroundings:
        found = self._hidden["around"]
        assert found is not None
        return found

    @property
    def average(self) -> AveragedModel | None:
        return self._hidden["average"]

    @property
    def seconds(self) -> float:
        return self.progress.seconds + (time.monotonic() - self._since if self._since is not None else 0.0)

    def start_clock(self) -> None:
        """Count the time from here on as time of training."""
        self.stop_clock()
        self._since = time.monotonic()

    def stop_clock(self) -> None:
        """What comes now is no training."""
        self.progress.seconds, self._since = self.seconds, None

    @property
    def running(self) -> tuple[float, float, float]:
        """Of this epoch so far: loss of all images, how many were told right, how many there were."""
        loss, right, count = self._sums.tolist()
        return loss, right, count

    @property
    def epoch(self) -> int:
        """The epoch that the last step belongs to, counted from 1."""
        return -(-self.progress.step // self.steps)

    @property
    def trained(self) -> bool:
        """Whether there is no step left to do."""
        return self.progress.over or self.progress.step >= self.steps * self.recipe.epochs

    @property
    def unclosed(self) -> bool:
        """Whether the end of an epoch is reached and not yet worked through."""
        ends = self.progress.over or self.progress.step % self.steps == 0
        return ends and self.progress.step > self.progress.closed

    # --- the hooks of Lightning ------------------------------------------------------------------

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = optimizer_of(self.network, self.recipe, self.steps)
        if self._state is not None:
            optimizer.load_state_dict(self._state["optimizer_states"][0])
            schedule.load_state_dict(self._state["lr_schedulers"][0])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def on_train_start(self) -> None:
        self.around.stop.listen()
        recipe, state = self.recipe, self._state
        if recipe.ema is not None:
            average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
            if state is not None:
                average.module.load_state_dict(weights_in(state["state_dict"]))
                average.n_averaged.fill_(state["averaged"])
            self._hidden["average"] = average
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if state is not None and scaler is not None:
            scaler.load_state_dict(state["scaler"])
        if recipe.compile:
            self._hidden["run"] = torch.compile(self.network)
        self._sums = self._sums.to(self.device)
        if not self.around.first:
            # The checkpoint has the sums of all devices; the first one brings them back.
            self._sums.zero_()
        # From here on the state is made anew.
        self._state = None
        self._saved = time.monotonic()
        self.start_clock()
        if not self.progress.step:
            self.save()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        images = images.contiguous(memory_format=self.around.layout)
        optimizer: Any = self.optimizers()
        while True:
            self._seed_step()
            optimizer.zero_grad()
            try:
                loss, right = self._add_gradients(images, labels)
                break
            except RuntimeError as error:
                self._take_smaller_parts(error, len(labels))
        if self.device.type == "cpu" or self.progress.step % NAN_CHECK == 0:
            self._refuse_nan(loss, images)
        if self.recipe.clip is not None:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            if scaler is not None:
                scaler.unscale_(optimizer.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        self._rate = optimizer.param_groups[0]["lr"]
        schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.loss = loss
        self._sums += torch.stack([loss.double() * len(labels), right, right.new_tensor(len(labels))])
        self.progress.step += 1
        self._log_step(len(labels))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        recipe, now = self.recipe, time.monotonic()
        late = recipe.minutes is not None and self.seconds >= 60 * recipe.minutes
        due = now - self._saved >= self.around.save_every
        asked, late, due = self._agree(self.around.stop.asked, late, due)
        if late:
            self.around.say(f"the {recipe.minutes:g} minutes of the recipe are over")
            self.progress.over = self.trainer.should_stop = True
        if self.unclosed:
            return
        if asked or due:
            self.save()
        if asked:
            raise Stopped

    def on_train_epoch_end(self) -> None:
        self.close_epoch()
        if self.progress.over:
            self.trainer.should_stop = True

    # --- one step --------------------------------------------------------------------------------

    def _seed_step(self) -> None:
        """All generators of the process, for this step of this device alone."""
        rank = self.trainer.global_rank
        seed = int(np.random.SeedSequence((self.recipe.seed, self.progress.step, rank, 1)).generate_state(1)[0])
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    def _add_gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the loss over the batch, part by part; gives the loss and how many were told right."""
        targets = labels
        if self.recipe.mixup is not None or self.recipe.cutmix is not None:
            images, targets = self._mixed(images, labels)
        parts = min(self.progress.parts, len(labels))
        total, right = torch.zeros((), device=self.device), torch.zeros((), device=self.device, dtype=torch.float64)
        share = self._share(len(labels))
        for x, y, plain in zip(images.chunk(parts), targets.chunk(parts), labels.chunk(parts), strict=True):
            with self._gradients:
                outputs = self._hidden["run"](x)
            logits = getattr(outputs, "logits", outputs)  # [N, classes]
            smoothing = self.recipe.label_smoothing
            loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
            for weight, aux in zip(self.aux_weights, getattr(outputs, "aux", ()), strict=False):
                loss = loss + weight * F.cross_entropy(aux, y, label_smoothing=smoothing)
            if parts > 1:
                loss = loss * (len(x) / len(labels))
            self.manual_backward(loss if share == 1 else loss * share)
            total = total + loss.detach()
            right += (logits.detach().argmax(1) == plain).sum()
        return total, right

    def _share(self, images: int) -> float:
        """Devices average their gradients; one with more images than another counts for more."""
        world = self.trainer.world_size
        return 1.0 if world == 1 else images * world / min(self.recipe.batch, len(self.around.data.train))

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and targets `[N, classes]` after mixup, cutmix, or one of the two by chance."""
        kinds: list[nn.Module] = []
        if self.recipe.mixup is not None:
            kinds.append(v2.MixUp(alpha=self.recipe.mixup, num_classes=self.classes))
        if self.recipe.cutmix is not None:
            kinds.append(v2.CutMix(alpha=self.recipe.cutmix, num_classes=self.classes))
        return kinds[int(torch.randint(len(kinds), (1,)))](images, labels)

    def _take_smaller_parts(self, error: RuntimeError, images: int) -> None:
        """After an allocation that failed: twice as many parts, if the error is that and there is a smaller part.

        The step is done again from its start. Statistics of normalisation that the failed attempt has moved stay
        moved; they are of the same images.
        """
        # Several devices would have to agree on the parts in the middle of a step.
        if self.progress.parts >= images or not self._alone or not memory_is_full(error):
            raise error
        self.progress.parts *= 2
        self.around.say(
            f"memory is full: from step {self.progress.step + 1} on a batch is computed in {self.progress.parts} parts;"
            " batch normalisation sees one part at a time"
        )

    def _refuse_nan(self, loss: Tensor, images: Tensor | None = None) -> None:
        if not torch.isfinite(loss):
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise first_not_finite(self.network, images, float(loss), self.progress.step + 1, self.steps, rate)

    def _log_step(self, images: int) -> None:
        """A row of the journal now and then, with the loss over all devices."""
        if self.progress.step % min(LOG_EVERY, self.steps):
            return
        loss = self.loss * self._share(images)
        if not self._alone:
            torch.distributed.all_reduce(loss)
            loss /= self.trainer.world_size
        if self.around.first:
            self._log(epoch=self.epoch, lr=self._rate, loss=float(loss))

    def _log(self, **values: Any) -> None:
        if self.around.journal is not None:
            self.around.journal.write(step=self.progress.step, **values)
        for logger in self.trainer.loggers:
            logger.log_metrics(values, self.progress.step)

    # --- the end of an epoch ---------------------------------------------------------------------

    def close_epoch(self) -> None:
        """Validate, write down the epoch, and keep its weights if they are the best so far.

        Raises:
            Stopped: It was asked for; the state is saved, and the epoch is closed when the run goes on.
            Pruned: Who watches the run has seen enough.
        """
        self._refuse_nan_sums()
        try:
            self._poll()
            found = self._validate()
        except Stopped:
            self.save()
            raise
        sums = self._reduced()
        progress, train_loss = self.progress, sums[0] / sums[2]
        values = {"train_loss": train_loss, "train_acc": sums[1] / sums[2], **found}
        better = "val_acc" not in found or found["val_acc"] > progress.best_score
        progress.waited = 0 if better else progress.waited + 1
        if better:
            progress.best_epoch, progress.best_score = self.epoch, found.get("val_acc", -1.0)
        if self.recipe.early_stop is not None and progress.waited >= self.recipe.early_stop:
            progress.over = True
        if self.around.first:
            self._log(epoch=self.epoch, **values)
        self._sums.zero_()
        progress.closed = progress.step
        progress.epoch_seconds.append(round(self.seconds, 3))
        self.last_scores = {**values, "best": float(better)}
        self.save(best=better)
        watch = self.around.watch
        if watch is not None:
            enough = self.around.first and watch(self.epoch, values)
            if self._agree(enough)[0] and not self.trained:
                raise Pruned

    def _refuse_nan_sums(self) -> None:
        if not torch.isfinite(self._sums).all():
            self._refuse_nan(self._sums[0])

    def _validate(self) -> dict[str, float]:
        val = self.around.data.val
        if val is None:
            return {}
        network = self.average.module if self.average is not None else self.network
        try:
            if self._state is not None and self.recipe.ema is not None:
                network = self._averaged_copy(self._state)
            found = score(network, val, self.around.data, self.graph.input_shape[1:], self.device, poll=self._poll)
        finally:
            network.train()
        return {"val_loss": found.loss, "val_acc": found.accuracy}

    def _averaged_copy(self, state: State) -> nn.Module:
        """The averaged network of a state, before training has begun."""
        copy = deepcopy(self.network)
        copy.load_state_dict(weights_in(state["state_dict"]))
        return copy

    def _poll(self) -> None:
        if self._agree(self.around.stop.asked)[0]:
            raise Stopped

    # --- what several devices agree on -----------------------------------------------------------

    def _agree(self, *claims: bool) -> list[bool]:
        """Each claim, if any device makes it."""
        if self._alone:
            return list(claims)
        flags = torch.tensor([int(claim) for claim in claims], device=self.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in flags.tolist()]

    @property
    def _alone(self) -> bool:
        return not (torch.distributed.is_available() and torch.distributed.is_initialized())

    def _reduced(self) -> list[float]:
        """The sums over all devices."""
        sums = self._sums.clone()
        if not self._alone:
            torch.distributed.all_reduce(sums)
        return sums.tolist()

    # --- checkpoints -----------------------------------------------------------------------------

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint.

        Raises:
            CnnspecError: E0509 if the sums of the epoch are not finite.
            OSError: It cannot be written.
        """
        self._refuse_nan_sums()
        sums = self._reduced()
        if self.around.first:
            journal = self.around.journal
            files = journal.lengths() if journal is not None else {}
            progress = {**asdict(self.progress), "sums": sums, "files": files, "seconds": self.seconds}
            self.around.checkpoints.save(self._collect(progress), best=best)
        self._saved = time.monotonic()

    def _collect(self, progress: dict[str, Any]) -> State:
        if self._state is not None:  # between loading and the first step nothing else has changed
            return {**self._state, "progress": progress}
        average, optimizer = self.average, self.trainer.optimizers[0]
        own = self.network.state_dict()
        kept = average.module.state_dict() if average is not None else own
        state: State = {
            "state_dict": {f"network.{key}": value for key, value in kept.items()},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [self.trainer.lr_scheduler_configs[0].scheduler.state_dict()],
            "global_step": self.progress.step,
            "epoch": self.progress.step // self.steps,
            "pytorch-lightning_version": pl.__version__,
            "progress": progress,
        }
        if average is not None:
            state |= {"trained": own, "averaged": int(average.n_averaged)}
        if (scaler := getattr(self.trainer.precision_plugin, "scaler", None)) is not None:
            state["scaler"] = scaler.state_dict()
        return state
