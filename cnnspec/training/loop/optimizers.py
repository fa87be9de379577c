"""The optimizers and schedules of the recipe, and which weights decay."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from cnnspec.diagnostics import failure
from cnnspec.recipe import Recipe, Setting


def _betas(kind: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    return lambda weights, *, beta1, beta2, **args: kind(weights, betas=(beta1, beta2), **args)


def _fused(kind: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """One kernel for a weight's whole step, where torch has it: a network of many small weights waits for calls."""
    return partial(kind, fused=True)


class Muon(Optimizer):
    """torch.optim.Muon for the filters and the linear layers, AdamW for norms and biases.

    A filter `[c, in, h, w]` is one matrix of `c` rows; Muon of torch takes matrices alone.
    """

    def __init__(
        self, weights: Any, lr: float, momentum: float, weight_decay: float, nesterov: bool, adam_lr: float
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        matrices: list[dict[str, Any]] = []
        vectors: list[dict[str, Any]] = []
        for group in self.param_groups:
            wide = [weight for weight in group["params"] if weight.ndim > 1]
            pairs = [(weight, nn.Parameter(_matrix(weight.detach()))) for weight in wide]
            self._pairs += pairs
            if pairs:
                matrices.append({"params": [matrix for _, matrix in pairs], "weight_decay": group["weight_decay"]})
            if narrow := [weight for weight in group["params"] if weight.ndim <= 1]:
                vectors.append({"params": narrow, "weight_decay": group["weight_decay"]})
        inner: list[tuple[Optimizer, float]] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=lr, momentum=momentum, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
            )
            inner.append((muon, 1.0))
        if vectors:
            inner.append((torch.optim.AdamW(vectors, lr=adam_lr), adam_lr / lr))
        self._inner = inner

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for optimizer, share in self._inner:
            for group in optimizer.param_groups:
                group["lr"] = self.param_groups[0]["lr"] * share
        for weight, matrix in self._pairs:
            matrix.grad = None if weight.grad is None else _matrix(weight.grad, like=weight)
        for optimizer, _ in self._inner:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "inner": [optimizer.state_dict() for optimizer, _ in self._inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        inner = state_dict["inner"]
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "inner"})
        for (optimizer, _), state in zip(self._inner, inner, strict=True):
            optimizer.load_state_dict(state)


def _matrix(weight: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """`[c, ...]` as `[c, n]` of the same memory, whichever order the memory has."""
    like = weight if like is None else like
    if weight.ndim == 4 and not like.is_contiguous():
        return weight.permute(0, 2, 3, 1).flatten(1)
    return weight.flatten(1)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": _fused(torch.optim.SGD),
    "adam": _betas(_fused(torch.optim.Adam)),
    "adamw": _betas(_fused(torch.optim.AdamW)),
    "nadam": _betas(torch.optim.NAdam),
    "radam": _betas(torch.optim.RAdam),
    "adamax": _betas(torch.optim.Adamax),
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "muon": Muon,
}
"""Optimizers of the recipe; each takes the weights and the arguments of its declaration."""


def decay_groups(network: nn.Module, optimizer: Setting, decay: str) -> list[dict[str, Any]]:
    """The weights, with those that do not decay in a group of their own.

    Args:
        network: Whose weights.
        optimizer: Has the decay.
        decay: `all`, or `weights` to spare norms and biases: every weight of one axis.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if decay == "all" or not optimizer.args.get("weight_decay"):
        return [{"params": weights}]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1]},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


Curve = Callable[[float], float]
"""The share of the optimizer's rate at an epoch, counted in parts."""


def _constant(epochs: float) -> Curve:
    return lambda epoch: 1.0


def _multistep(epochs: float, *, at: tuple[int, ...], gamma: float) -> Curve:
    return lambda epoch: gamma ** bisect_right(sorted(at), epoch)


def _step(epochs: float, *, every: int, gamma: float) -> Curve:
    return lambda epoch: gamma ** (epoch // every)


def _cosine(epochs: float, *, end: float) -> Curve:
    return lambda epoch: end + (1 - end) * (1 + math.cos(math.pi * min(1.0, epoch / epochs))) / 2


def _linear(epochs: float, *, end: float) -> Curve:
    return lambda epoch: 1 + (end - 1) * min(1.0, epoch / epochs)


CURVES: dict[str, Callable[..., Curve]] = {
    "constant": _constant,
    "multistep": _multistep,
    "step": _step,
    "cosine": _cosine,
    "linear": _linear,
}


def _curved(setting: Setting, optimizer: Optimizer, epochs: int, steps: float) -> LRScheduler:
    """A schedule by its curve, behind a warm-up that rises in a line.

    `cosine` and `linear` begin where the warm-up ends; the epochs that `multistep` and `step` name are counted from
    the start of the run.
    """
    args = dict(setting.args)
    warmup = float(args.pop("warmup", 0.0))  # type: ignore[arg-type]
    rate = optimizer.param_groups[0]["lr"]
    late = setting.name in ("cosine", "linear")
    if late:
        args["end"] = float(args["end"]) / rate  # type: ignore[arg-type]
    curve = CURVES[setting.name](max(epochs - warmup, 1 / steps) if late else epochs, **args)
    rise = round(warmup * steps)

    def share(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        # A step is a whole part of an epoch; rounding must not move a drop to the step before.
        return curve((step - rise if late else step) / steps + 1e-9)

    return lr_scheduler.LambdaLR(optimizer, share)


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
    **dict.fromkeys(CURVES, _curved),
    "onecycle": lambda setting, *args: _onecycle(*args, **setting.args),
}
"""Schedules of the recipe; each takes its setting, the optimizer, the epochs that it was written for, and the steps
of one of them. A run of other epochs has the same shape: an epoch of the schedule is then so many steps more or less.

All of them are asked at every step.
"""


def optimizer_of(network: nn.Module, recipe: Recipe, steps: int) -> tuple[Optimizer, LRScheduler]:
    """The optimizer of a network's weights and its schedule; see `make_optimizer`."""
    return make_optimizer(decay_groups(network, recipe.optimizer, recipe.decay), recipe, steps)


def make_optimizer(weights: Iterable[Any], recipe: Recipe, steps: int) -> tuple[Optimizer, LRScheduler]:
    """The optimizer and the schedule of a recipe.

    Args:
        weights: The learned weights, or groups of them.
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
        return optimizer, SCHEDULES[recipe.schedule.name](recipe.schedule, optimizer, planned, stretched)
    except (ValueError, ZeroDivisionError) as error:
        raise refused(recipe.schedule, error) from None
