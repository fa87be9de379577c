"""Initialize the weights of a module: one row per initialization."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init

from cnnspec.ops.inits import InitScheme


def truncated_normal(weight: Tensor, mean: float, std: float, low: float, high: float) -> Tensor:
    """Fill with a normal distribution truncated to an interval.

    torch draws until all values lie in the interval, which does not end if hardly any of the distribution does. Beyond
    half a standard deviation from the mean, this function draws from an exponential distribution instead, and accepts
    at least 4 of 10 values wherever the interval is. Source: Robert 1995, arXiv 0907.4010, section 2.
    """
    start, end = (low - mean) / std, (high - mean) / std  # in standard deviations from the mean
    nearest = max(start, -end)
    if nearest <= 0.5 or weight.is_meta:
        return init.trunc_normal_(weight, mean, std, low, high)
    rate, length = nearest, end - start
    values = torch.empty(weight.shape, dtype=torch.float64)
    pending = torch.ones(weight.shape, dtype=torch.bool)
    while count := int(pending.sum()):
        share, chance = torch.rand(2, count, dtype=torch.float64)
        # The distance from the near end, exponential with this rate and truncated to `length`.
        drawn = -torch.log1p(share * math.expm1(-rate * length)) / rate
        accepted = chance < torch.exp(-drawn.square() / 2)
        places = pending.nonzero(as_tuple=True)
        values[places] = drawn
        pending[places] = ~accepted
    values.mul_(std)
    with torch.no_grad():
        return weight.copy_(values.add_(low) if start > 0 else values.neg_().add_(high)).clamp_(low, high)


FILLS: dict[str, Callable[[Any, Tensor, int], Tensor]] = {
    "kaiming_normal": lambda s, w, groups: init.kaiming_normal_(w, s.slope, s.mode, s.nonlinearity),
    "kaiming_uniform": lambda s, w, groups: init.kaiming_uniform_(w, s.slope, s.mode, s.nonlinearity),
    "xavier_normal": lambda s, w, groups: init.xavier_normal_(w, s.gain),
    "xavier_uniform": lambda s, w, groups: init.xavier_uniform_(w, s.gain),
    "normal": lambda s, w, groups: init.normal_(w, s.mean, s.std),
    "trunc_normal": lambda s, w, groups: truncated_normal(w, s.mean, s.std, s.low, s.high),
    "uniform": lambda s, w, groups: init.uniform_(w, s.low, s.high),
    "constant": lambda s, w, groups: init.constant_(w, s.weight),
    "zero": lambda s, w, groups: init.zeros_(w),
    "dirac": lambda s, w, groups: init.dirac_(w, groups),
    "orthogonal": lambda s, w, groups: init.orthogonal_(w, s.gain),
}
"""The function of each initialization: fills a weight, given the scheme and the groups of the convolution."""


def sets_all(scheme: InitScheme, weights: Iterable[str]) -> bool:
    """Return whether a scheme sets every weight with these keys, so that torch's defaults are not needed."""
    return getattr(scheme, "bias", None) is not None or "bias" not in weights


def initialize(module: nn.Module, scheme: InitScheme) -> None:
    """Fill the weight of a module by a scheme, and its bias if the scheme sets one."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(weight, Tensor):
        FILLS[scheme.name](scheme, weight, getattr(module, "groups", 1))
    if isinstance(bias, Tensor) and (value := getattr(scheme, "bias", None)) is not None:
        init.constant_(bias, value)
