"""Small decisions, and the settings of operators that fit a shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cnnspec.ops import OPS
from cnnspec.schema import Interval, Word
from cnnspec.shapes import Shape

T = TypeVar("T")
Settings = dict[str, Any]

MAX_SIDE = 24
"""The greatest height and width: small, so that a network of any shape is built in no time."""


Numbers = Callable[[int, int], int]
"""Where chance comes from: an integer between two others, both included. Hypothesis gives them, so that examples shrink,
or a `random.Random(seed).randint`, which is fast and even."""


class Chance:
    """Small decisions; the first option is the one that shrinking leads to."""

    def __init__(self, number: Numbers) -> None:
        self.number = number

    def pick(self, options: Sequence[T]) -> T:
        return options[self.number(0, len(options) - 1)]

    def happens(self) -> bool:
        return bool(self.number(0, 1))

    def rarely(self, one_in: int = 3) -> bool:
        return self.number(0, one_in - 1) == one_in - 1

    def few(self, options: Sequence[T], count: int) -> list[T]:
        """Some different ones of the options."""
        left = list(options)
        return [left.pop(self.number(0, len(left) - 1)) for _ in range(min(count, len(left)))]

    def some(self, settings: Settings) -> Settings:
        """A part of optional settings."""
        return {name: value for name, value in settings.items() if self.rarely()}

    def size(self, low: int, high: int) -> tuple[int, int]:
        first = self.number(low, high)
        return (first, self.number(low, high) if self.rarely() else first)


def _divisors(*numbers: int) -> list[int]:
    common = math.gcd(*numbers)
    return [n for n in range(1, common + 1) if common % n == 0]


def _conv(chance: Chance, x: Shape) -> Settings:
    same = chance.pick([True, True, False])
    kernel = chance.pick([(3, 3), (1, 1), (5, 5), (1, 3), (5, 3)] if same else [(2, 2), (3, 3), (4, 2), (3, 1)])
    settings: Settings = {"kernel": kernel, "c": chance.number(1, 12)}
    settings |= chance.some({"stride": chance.size(1, 2), "dilation": chance.size(1, 2), "bias": True})
    settings |= {} if same else {"pad": chance.size(0, 3)}
    if chance.rarely(5):
        settings |= {"depthwise": True, "c": x[0] * chance.number(1, 2)}
    elif chance.rarely():
        settings["groups"] = chance.pick(_divisors(x[0], settings["c"]))
    if chance.rarely(5):
        settings["init"] = Word(chance.pick(["kaiming_normal", "zero", "orthogonal"]))
    return settings


def _conv_transpose(chance: Chance, x: Shape) -> Settings:
    settings: Settings = {"kernel": chance.size(1, 3), "c": chance.number(1, 8)}
    if chance.rarely(2):
        settings |= {"stride": (2, 2), "out_pad": chance.size(0, 1)}
    settings |= chance.some({"dilation": chance.size(1, 2), "bias": False, "pad": chance.size(0, 1)})
    return settings | chance.some({"groups": chance.pick(_divisors(x[0], settings["c"]))})


def _pool(chance: Chance, x: Shape) -> Settings:
    settings: Settings = {"kernel": chance.size(1, 3)}
    return settings | chance.some({"stride": chance.size(1, 2), "pad": chance.size(0, 1), "ceil": True})


def _upsample(chance: Chance, x: Shape) -> Settings:
    settings: Settings = {"factor": chance.size(1, 2)} if chance.rarely(2) else {"size": chance.size(1, MAX_SIDE)}
    return settings | chance.some({"mode": Word("bilinear")})


def _pad(chance: Chance, x: Shape) -> Settings:
    amounts = [chance.number(-1, 2) for _ in range(chance.pick([1, 2, 4]))]
    return {"amounts": tuple(amounts) if len(amounts) == 2 else amounts, **chance.some({"value": 0.5})}


def _slice(chance: Chance, x: Shape) -> Settings:
    low = chance.number(0, x[0] - 1)
    return {"range": Interval((low, chance.number(low + 1, x[0])))}


def _norm(chance: Chance, x: Shape) -> Settings:
    return chance.some({"eps": 1e-3, "affine": False})


def _dropout(chance: Chance, x: Shape) -> Settings:
    return {"p": chance.pick([0.5, 0.0, 0.25])}


def _group_norm(chance: Chance, x: Shape) -> Settings | None:
    """Groups of more than one number, for torch normalises no single one."""
    groups = [n for n in _divisors(x[0]) if math.prod(x) > n]
    return {"groups": chance.pick(groups), **_norm(chance, x)} if groups else None


SETTINGS: dict[str, Callable[[Chance, Shape], Settings | None]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": lambda chance, x: {"c": chance.number(1, 16), **chance.some({"bias": False})},
    "bn": lambda chance, x: _norm(chance, x) | chance.some({"momentum": 0.2}),
    "gn": _group_norm,
    "ln": _norm,
    "in_norm": lambda chance, x: chance.some({"eps": 1e-3, "affine": True}) if x[1:] != (1, 1) else None,
    "lrn": lambda chance, x: {"size": chance.number(1, 5), **chance.some({"alpha": 1e-3, "k": 2.0})},
    "leaky_relu": lambda chance, x: chance.some({"negative_slope": 0.2}),
    "prelu": lambda chance, x: chance.some({"num_parameters": x[0]}),
    "elu": lambda chance, x: chance.some({"alpha": 0.5}),
    "celu": lambda chance, x: chance.some({"alpha": 0.5}),
    "gelu": lambda chance, x: chance.some({"approximate": Word("tanh")}),
    "softplus": lambda chance, x: chance.some({"beta": 2.0, "threshold": 10.0}),
    "dropout": _dropout,
    "dropout2d": _dropout,
    "drop_path": _dropout,
    "scale": lambda chance, x: chance.some({"init": 0.1}),
    "times": lambda chance, x: {"factor": chance.pick([0.5, 2.0])},
    "maxpool": lambda chance, x: _pool(chance, x) | chance.some({"dilation": (2, 1)}),
    "avgpool": lambda chance, x: _pool(chance, x) | chance.some({"count_pad": False}),
    "adaptive_avgpool": lambda chance, x: {"size": chance.size(1, 6)},
    "adaptive_maxpool": lambda chance, x: {"size": chance.size(1, 6)},
    "upsample": _upsample,
    "pixel_shuffle": lambda chance, x: {"factor": chance.number(1, 2)},
    "channel_shuffle": lambda chance, x: {"groups": chance.pick(_divisors(x[0]))},
    "pad": _pad,
    "slice": _slice,
}
"""How the settings of an operator are drawn for an input shape; an operator without a row is called bare.

None, and settings that the operator refuses for the shape, call for another operator.
"""

ACTIVATIONS = tuple(
    name for name in OPS if not OPS[name].parameters and name not in ("flatten", "softmax") and "pool" not in name
)


@dataclass(frozen=True)
class StandardBlock:
    """A standard block: how it is called for a map, what it gives, and which maps it takes."""

    settings: Callable[[Chance, Shape], Settings]
    gives: Callable[[Shape, Settings], Shape]
    takes: Callable[[Shape], bool] = lambda x: True


def _strided(times: int) -> Callable[[Shape, Settings], Shape]:
    """What a block gives that takes `c`, and halves the map with `subsample`."""

    def gives(x: Shape, settings: Settings) -> Shape:
        step = 2 if settings.get("subsample") else settings.get("stride", 1)
        return (times * settings["c"], *(-(-size // step) for size in x[1:]))

    return gives


def _narrow(chance: Chance, x: Shape) -> Settings:
    return {"c": chance.number(1, 12), **chance.some({"subsample": True})}


_COLUMNS = ("c1", "r3", "c3", "r5", "c5", "cp")

STANDARD_BLOCKS: dict[str, StandardBlock] = {
    "conv_bn": StandardBlock(lambda chance, x: {"kernel": (3, 3), "c": chance.number(1, 12)}, _strided(1)),
    "resnet_block": StandardBlock(_narrow, _strided(1)),
    "preact_block": StandardBlock(_narrow, _strided(1)),
    "bottleneck": StandardBlock(lambda chance, x: _narrow(chance, x) | {"c": chance.number(1, 4)}, _strided(4)),
    "preact_bottleneck": StandardBlock(lambda chance, x: _narrow(chance, x) | {"c": chance.number(1, 4)}, _strided(4)),
    "inverted_residual": StandardBlock(
        lambda chance, x: {"expand": chance.number(1, 2), "c": chance.number(1, 12), **chance.some({"stride": 2})},
        _strided(1),
    ),
    "transition": StandardBlock(
        lambda chance, x: chance.some({"c": chance.number(1, 12)}),
        lambda x, settings: (settings.get("c", x[0] // 2), x[1] // 2, x[2] // 2),
        lambda x: min(x) >= 2,
    ),
    "dense_layer": StandardBlock(
        lambda chance, x: {"growth": chance.number(1, 3), "bottleneck": chance.number(1, 2)},
        lambda x, settings: (x[0] + settings["growth"], *x[1:]),
    ),
    "squeeze_excite": StandardBlock(lambda chance, x: {"ratio": chance.number(1, x[0])}, lambda x, settings: x),
    "inception_block": StandardBlock(
        lambda chance, x: {name: chance.number(1, 4) for name in _COLUMNS},
        lambda x, settings: (sum(settings[name] for name in _COLUMNS if name[0] == "c"), *x[1:]),
    ),
}
"""How the shipped blocks are drawn."""
