"""Initialize the weights of a module: one row per initialization."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import init

from cnnspec.ops.inits import InitScheme

FILLS: dict[str, Callable[[Any, Tensor, int], Tensor]] = {
    "kaiming_normal": lambda s, w, groups: init.kaiming_normal_(w, s.slope, s.mode, s.nonlinearity),
    "kaiming_uniform": lambda s, w, groups: init.kaiming_uniform_(w, s.slope, s.mode, s.nonlinearity),
    "xavier_normal": lambda s, w, groups: init.xavier_normal_(w, s.gain),
    "xavier_uniform": lambda s, w, groups: init.xavier_uniform_(w, s.gain),
    "normal": lambda s, w, groups: init.normal_(w, s.mean, s.std),
    "trunc_normal": lambda s, w, groups: init.trunc_normal_(w, s.mean, s.std, s.low, s.high),
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
