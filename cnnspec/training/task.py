"""The LightningModule: loss, accuracy, optimizer and schedule of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from cnnspec.diagnostics import failure
from cnnspec.ir import Graph
from cnnspec.recipe import Recipe, Setting
from cnnspec.training.feed import Batch

NAN_CHECK = 20
"""Steps between two looks at the loss; each makes a GPU wait."""


def _adam(kind: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    return lambda weights, *, beta1, beta2, **args: kind(weights, betas=(beta1, beta2), **args)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": _adam(torch.optim.Adam),
    "adamw": _adam(torch.optim.AdamW),
    "rmsprop": torch.optim.RMSprop,
}
"""Optimizers of the recipe; each takes the weights and the arguments of its declaration."""


def _constant(optimizer: Optimizer, epochs: int, steps: float) -> LRScheduler:
    return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def _multistep(optimizer: Optimizer, epochs: int, steps: float, *, at: tuple[int, ...], gamma: float) -> LRScheduler:
    return lr_scheduler.MultiStepLR(optimizer, [round(epoch * steps) for epoch in at], gamma)


def _step(optimizer: Optimizer, epochs: int, steps: float, *, every: int, gamma: float) -> LRScheduler:
    return lr_scheduler.StepLR(optimizer, max(1, round(every * steps)), gamma)


def _cosine(optimizer: Optimizer, epochs: int, steps: float, *, end: float) -> LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, round(epochs * steps), end)


def _onecycle(optimizer: Optimizer, epochs: int, steps: float, *, warmup: float, anneal: str) -> LRScheduler:
    total = round(epochs * steps)
    # torch divides by zero where one of the two phases has a single step.
    share = min(warmup, (total - 1) / total)
    share = share if share * total > 1 else 0.0
    style: Any = "linear" if anneal == "linear" else "cos"
    # The momentum stays what the recipe says.
    return lr_scheduler.OneCycleLR(
        optimizer,
        optimizer.param_groups[0]["lr"],
        total_steps=total,
        pct_start=share,
        anneal_strategy=style,
        cycle_momentum=False,
    )


SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "constant": _constant,
    "multistep": _multistep,
    "step": _step,
    "cosine": _cosine,
    "onecycle": _onecycle,
}
"""Schedules of the recipe; each takes the optimizer, the epochs that it was written for, the steps of
one of them, and its arguments. A run of other epochs has the same shape: an epoch of the schedule is then so many
steps more or less.

All of them are asked at every step, so that a checkpoint at the end of an epoch holds the next epoch's rate.
"""


def make_optimizer(weights: Any, recipe: Recipe, steps: int) -> tuple[Optimizer, LRScheduler]:
    """The optimizer and the schedule of a recipe.

    Args:
        weights: The learned weights.
        recipe: Names both.
        steps: Steps of one epoch.

    Raises:
        CnnspecError: E0512 if torch refuses their arguments.
    """

    def refused(setting: Setting, error: Exception) -> Exception:
        return failure(
            "E0512", f"torch refuses the settings of `{setting.name}`: {error}", help="see the `train` section"
        )

    try:
        optimizer = OPTIMIZERS[recipe.optimizer.name](weights, **recipe.optimizer.args)
    except ValueError as error:
        raise refused(recipe.optimizer, error) from None
    try:
        planned = recipe.planned or recipe.epochs
        stretched = steps * recipe.epochs / planned
        return optimizer, SCHEDULES[recipe.schedule.name](optimizer, planned, stretched, **recipe.schedule.args)
    except (ValueError, ZeroDivisionError) as error:
        raise refused(recipe.schedule, error) from None


class Task(pl.LightningModule):
    """Trains a network to tell classes apart.

    The loss is the cross entropy, with those of the auxiliary heads added by their weights. Validation uses
    the plain cross entropy.

    Args:
        graph: What `network` was built from.
        network: The module to train.
        recipe: How.
        steps: Steps of one epoch.
    """

    def __init__(self, graph: Graph, network: nn.Module, recipe: Recipe, steps: int) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.steps = steps
        self.aux_weights = [head.weight for head in graph.aux]
        classes = graph.output_shape[0]
        self.train_acc = MulticlassAccuracy(classes, average="micro")
        self.val_acc = MulticlassAccuracy(classes, average="micro")
        self._random: dict[str, Any] | None = None

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        outputs = self.network(images)
        logits = getattr(outputs, "logits", outputs)  # [N, classes]
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        for weight, aux in zip(self.aux_weights, getattr(outputs, "aux", ()), strict=False):
            loss = loss + weight * F.cross_entropy(aux, labels, label_smoothing=smoothing)
        if batch_idx % NAN_CHECK == 0:
            self._refuse_nan(loss)
        self.train_acc(logits, labels)
        self.log("loss", loss.detach(), on_step=True, on_epoch=False)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.val_acc(logits, labels)
        self.log("val_loss", loss, on_epoch=True, batch_size=len(labels), sync_dist=True)
        self.log("val_acc", self.val_acc, on_epoch=True, batch_size=len(labels))

    def on_train_epoch_end(self) -> None:
        # Before the checkpoint of this epoch is written.
        self._refuse_nan(self.trainer.callback_metrics["train_loss"])

    def _refuse_nan(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise failure(
                "E0509",
                f"training diverged: the loss is {float(loss)} in epoch {self.current_epoch + 1}",
                help=f"use a lower learning rate than {self.recipe.optimizer.args['lr']:g}, or a warm-up (`schedule onecycle`)",
            )

    def configure_optimizers(self) -> Any:
        optimizer, schedule = make_optimizer(self.network.parameters(), self.recipe, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    # Dropout draws from torch's random state, which Lightning does not keep.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random"] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            checkpoint["random"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random = checkpoint.get("random")

    def on_train_start(self) -> None:
        if self._random is not None:
            torch.set_rng_state(self._random["cpu"])
            if "cuda" in self._random and self.device.type == "cuda":
                torch.cuda.set_rng_state(self._random["cuda"], self.device)
            self._random = None
