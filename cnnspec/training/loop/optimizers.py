"""Create the optimizer and the schedule of a recipe."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from cnnspec.backends.torch.module import Network
from cnnspec.diagnostics import failure, one_line
from cnnspec.recipe import Recipe, Setting
from cnnspec.semantics.recipe_rules import contains, frozen_modules


def _betas(kind: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    return lambda weights, *, beta1, beta2, **args: kind(weights, betas=(beta1, beta2), **args)


def _fused(kind: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Use the fused implementation, one kernel per step. Networks of many small weights are bound by call overhead."""
    return partial(kind, fused=True)


class Muon(Optimizer):
    """torch.optim.Muon for convolutions and linear layers, AdamW for norms and biases.

    A weight `[c, in, h, w]` is treated as one matrix of `c` rows, because torch's Muon accepts only matrices.
    """

    def __init__(
        self, weights: Any, lr: float, momentum: float, weight_decay: float, nesterov: bool, adam_lr: float
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        matrices: list[dict[str, Any]] = []
        vectors: list[dict[str, Any]] = []
        for number, group in enumerate(self.param_groups):
            own = {"weight_decay": group["weight_decay"], "outer": number}
            matrix_weights = [weight for weight in group["params"] if weight.ndim > 1]
            pairs = [(weight, nn.Parameter(_matrix(weight.detach()))) for weight in matrix_weights]
            self._pairs += pairs
            if pairs:
                matrices.append({"params": [matrix for _, matrix in pairs], **own})
            if vector_weights := [weight for weight in group["params"] if weight.ndim <= 1]:
                vectors.append({"params": vector_weights, **own})
        inner: list[tuple[Optimizer, float]] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=lr, momentum=momentum, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
            )
            inner.append((muon, 1.0))
        if vectors:
            inner.append((torch.optim.AdamW(vectors, lr=adam_lr), adam_lr / lr if adam_lr else 0.0))
        self._inner = inner

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for optimizer, factor in self._inner:
            for group in optimizer.param_groups:
                group["lr"] = self.param_groups[group["outer"]]["lr"] * factor
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
            optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})


def _matrix(weight: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """View `[c, ...]` as `[c, n]` without a copy, in any memory format."""
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
"""The optimizers of the recipe. Each takes the weights and the arguments of its declaration."""


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the groups of the weights that a recipe trains, by learning rate and weight decay.

    Norms and biases, that is, all one-dimensional weights, are in a separate group if `decay` excludes them.
    """
    graph = network.graph if isinstance(network, Network) else None
    frozen = frozen_modules(recipe, graph) if graph is not None else frozenset[str]()
    rates = {path: group.args["lr"] for group in recipe.rates for path in group.args["modules"]}  # type: ignore[union-attr]
    split = recipe.decay == "weights" and bool(recipe.optimizer.args.get("weight_decay"))
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, weight in network.named_parameters():
        module = name.rpartition(".")[0]
        if module in frozen or name in frozen:
            continue
        path = max((path for path in rates if contains(path, name)), key=len, default="")
        undecayed = split and weight.ndim <= 1
        own = {"lr": rates[path]} if path else {}
        group = groups.setdefault(
            (path, undecayed), {"params": [], **own, **({"weight_decay": 0.0} if undecayed else {})}
        )
        group["params"].append(weight)
    return [groups[key] for key in sorted(groups, key=lambda key: ([*rates].index(key[0]) if key[0] else -1, key[1]))]


def _power(gamma: float, times: float) -> float:
    """Return `gamma ** times`, or the largest number where that overflows: the run diverges, or its rate is 0."""
    try:
        return gamma**times
    except OverflowError:
        return sys.float_info.max


CURVES: dict[str, Callable[..., float]] = {
    "constant": lambda epoch, epochs: 1.0,
    "multistep": lambda epoch, epochs, at, gamma: _power(gamma, bisect_right(sorted(at), epoch)),
    "step": lambda epoch, epochs, every, gamma: _power(gamma, epoch // every),
    "cosine": lambda epoch, epochs, end: end + (1 - end) * (1 + math.cos(math.pi * min(1.0, epoch / epochs))) / 2,
    "linear": lambda epoch, epochs, end: 1 + (end - 1) * min(1.0, epoch / epochs),
}
"""The learning rate at a fractional epoch of `epochs`, relative to that of the optimizer."""


def _lambda_schedule(setting: Setting, optimizer: Optimizer, epochs: int, steps: float) -> LRScheduler:
    """Create a schedule from its curve, after a linear warm-up.

    `cosine` and `linear` start at the end of the warm-up. The epochs of `multistep` and `step` are counted from the
    start of the run.
    """
    args = dict(setting.args)
    warmup = float(args.pop("warmup", 0.0))  # type: ignore[arg-type]
    lr = optimizer.defaults["lr"]
    from_warmup = setting.name in ("cosine", "linear")
    if from_warmup:
        end = float(args["end"])  # type: ignore[arg-type]
        args["end"] = end / lr if end else 0.0
    length = max(epochs - warmup, 1 / steps) if from_warmup else epochs
    warmup_steps = round(warmup * steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        # Steps are fractions of an epoch. Rounding must not move a drop to the step before.
        epoch = (step - warmup_steps if from_warmup else step) / steps + 1e-9
        return CURVES[setting.name](epoch, length, **args)

    return lr_scheduler.LambdaLR(optimizer, factor)


def _onecycle(optimizer: Optimizer, epochs: int, steps: float, *, warmup: float, anneal: str) -> LRScheduler:
    total = round(epochs * steps)
    # torch divides by zero if one of the two phases has a single step.
    factor = min(warmup, (total - 1) / total)
    factor = factor if factor * total > 1 else 0.0
    style: Any = "linear" if anneal == "linear" else "cos"
    # the momentum of the recipe stays constant
    return lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=total,
        pct_start=factor,
        anneal_strategy=style,
        cycle_momentum=False,
    )


SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    **dict.fromkeys(CURVES, _lambda_schedule),
    "onecycle": lambda setting, *args: _onecycle(*args, **setting.args),
}
"""The schedules of the recipe.

Each takes its setting, the optimizer, the epochs that it was written for, and the steps per epoch. A run of another
length keeps the shape: an epoch of the schedule then has more or fewer steps.

All schedules are stepped once per training step.
"""


def optimizer_for(network: nn.Module, recipe: Recipe, steps: int) -> tuple[Optimizer, LRScheduler]:
    """Create the optimizer and schedule of a network. See `make_optimizer`."""
    return make_optimizer(parameter_groups(network, recipe), recipe, steps)


def make_optimizer(weights: Iterable[Any], recipe: Recipe, steps: int) -> tuple[Optimizer, LRScheduler]:
    """Create the optimizer and schedule of a recipe.

    Args:
        weights: The trainable weights or parameter groups.
        recipe: The recipe.
        steps: Steps per epoch.

    Raises:
        CnnspecError: E0512 if torch rejects the arguments.
    """

    def rejected(setting: Setting, error: Exception) -> Exception:
        return failure(
            "E0512",
            f"torch rejects the arguments of `{setting.name}`: {one_line(error)}",
            help="change them in the `train` section",
        )

    try:
        optimizer = OPTIMIZERS[recipe.optimizer.name](weights, **recipe.optimizer.args)
    except ValueError as error:
        raise rejected(recipe.optimizer, error) from None
    try:
        epochs = recipe.planned or recipe.epochs
        steps_per_epoch = steps * recipe.epochs / epochs
        return optimizer, SCHEDULES[recipe.schedule.name](recipe.schedule, optimizer, epochs, steps_per_epoch)
    except (ValueError, ZeroDivisionError) as error:
        raise rejected(recipe.schedule, error) from None
