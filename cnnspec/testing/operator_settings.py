"""Random settings of operators and standard blocks that are valid for an input shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cnnspec.ops import OPS
from cnnspec.schema import Interval, Word
from cnnspec.shapes import Shape
from cnnspec.testing.draw import Rng

Settings = dict[str, Any]

MAX_SIDE = 24
"""The largest height and width, small enough for every network to be built quickly."""


def _divisors(*numbers: int) -> list[int]:
    common = math.gcd(*numbers)
    return [n for n in range(1, common + 1) if common % n == 0]


def _conv(rng: Rng, x: Shape) -> Settings:
    same = rng.choice([True, True, False])
    kernel = rng.choice([(3, 3), (1, 1), (5, 5), (1, 3), (5, 3)] if same else [(2, 2), (3, 3), (4, 2), (3, 1)])
    settings: Settings = {"kernel": kernel, "c": rng.randint(1, 12)}
    settings |= rng.subset({"stride": rng.size(1, 2), "dilation": rng.size(1, 2), "bias": True})
    settings |= {} if same else {"pad": Word("tf_same") if rng.rarely() else rng.size(0, 3)}
    if rng.rarely(5):
        settings |= {"depthwise": True, "c": x[0] * rng.randint(1, 2)}
    elif rng.rarely():
        settings["groups"] = rng.choice(_divisors(x[0], settings["c"]))
    if rng.rarely(5):
        settings["init"] = Word(rng.choice(["kaiming_normal", "zero", "orthogonal"]))
    return settings | (_standardization(rng) if rng.rarely(6) and math.prod(kernel) > 1 else {})


def _standardization(rng: Rng) -> Settings:
    settings: Settings = {"standardize": True, **rng.subset({"eps": 1e-5})}
    return settings | ({"gain": True, **rng.subset({"gain_init": 0.5, "gamma": 1.5})} if rng.rarely(2) else {})


def _conv_transpose(rng: Rng, x: Shape) -> Settings:
    settings: Settings = {"kernel": rng.size(1, 3), "c": rng.randint(1, 8)}
    if rng.rarely(2):
        settings |= {"stride": (2, 2), "out_pad": rng.size(0, 1)}
    settings |= rng.subset({"dilation": rng.size(1, 2), "bias": False, "pad": rng.size(0, 1)})
    return settings | rng.subset({"groups": rng.choice(_divisors(x[0], settings["c"]))})


def _pool(rng: Rng, x: Shape, others: Settings) -> Settings:
    settings: Settings = {"kernel": rng.size(1, 3)}
    if rng.rarely(4):
        return {**settings, "pad": Word("tf_same"), **rng.subset({"stride": rng.size(1, 2)})}
    return settings | rng.subset({"stride": rng.size(1, 2), "pad": rng.size(0, 1), "ceil": True, **others})


def _blurpool(rng: Rng, x: Shape) -> Settings:
    modes = ["constant", "replicate", "circular"]
    settings: Settings = {"kernel": (2 * rng.randint(0, 2) + 1, 2 * rng.randint(0, 1) + 1)} if rng.rarely(2) else {}
    settings |= {"kernel": rng.size(1, 4), "pad": rng.size(0, 2)} if rng.rarely(3) else {}
    return settings | rng.subset({"stride": rng.size(1, 3), "mode": Word(rng.choice(modes)), "persistent": True})


def _upsample(rng: Rng, x: Shape) -> Settings:
    settings: Settings = {"factor": rng.size(1, 2)} if rng.rarely(2) else {"size": rng.size(1, MAX_SIDE)}
    return settings | rng.subset({"mode": Word("bilinear")})


def _pad(rng: Rng, x: Shape) -> Settings:
    if rng.rarely() and len(x) == 3:
        sides = [rng.randint(0, max(0, min(2, min(x[1:]) - 1))) for _ in range(4)]
        return {"amounts": sides, "mode": Word(rng.choice(["reflect", "replicate", "circular"]))}
    amounts = [rng.randint(-1, 2) for _ in range(rng.choice([1, 2, 4]))]
    return {"amounts": tuple(amounts) if len(amounts) == 2 else amounts, **rng.subset({"value": 0.5})}


def _slice(rng: Rng, x: Shape) -> Settings:
    low = rng.randint(0, x[0] - 1)
    return {"range": Interval((low, rng.randint(low + 1, x[0])))}


def _norm(rng: Rng, x: Shape) -> Settings:
    return rng.subset({"eps": 1e-3, "affine": False})


def _dropout(rng: Rng, x: Shape) -> Settings:
    return {"p": rng.choice([0.5, 0.0, 0.25])}


def _group_norm(rng: Rng, x: Shape) -> Settings | None:
    """Draw groups of more than one value, because torch does not normalize a single value."""
    groups = [n for n in _divisors(x[0]) if math.prod(x) > n]
    return {"groups": rng.choice(groups), **_norm(rng, x)} if groups else None


def _softmax(rng: Rng, x: Shape) -> Settings:
    parts = _divisors(x[0])[1:]
    return {"parts": rng.choice(parts)} if parts and rng.rarely(2) else {}


def _pointwise(x: Shape) -> Settings:
    return {"pointwise": True} if len(x) == 3 else {}


def _learned(rng: Rng, x: Shape) -> Settings:
    kinds = ["channel", "one", "scalar", *(["map", "batch"] if len(x) == 3 else [])]
    return rng.subset({"init": 0.1, "shape": Word(rng.choice(kinds)), "bare": True})


SETTINGS: dict[str, Callable[[Rng, Shape], Settings | None]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": lambda rng, x: {"c": rng.randint(1, 16), **rng.subset({"bias": False}), **_pointwise(x)},
    "channel_conv": lambda rng, x: {"kernel": rng.choice([1, 3, 5]), **rng.subset({"bias": True})},
    "bn": lambda rng, x: _norm(rng, x) | rng.subset({"momentum": 0.2}),
    "gn": _group_norm,
    "ln": _norm,
    "in_norm": lambda rng, x: rng.subset({"eps": 1e-3, "affine": True}) if x[1:] != (1, 1) else None,
    "lrn": lambda rng, x: {"size": rng.randint(1, 5), **rng.subset({"alpha": 1e-3, "k": 2.0})},
    "hardtanh": lambda rng, x: rng.subset({"low": 0.0, "high": 2.0}),
    "leaky_relu": lambda rng, x: rng.subset({"negative_slope": 0.2}),
    "prelu": lambda rng, x: rng.subset({"num_parameters": x[0]}),
    "elu": lambda rng, x: rng.subset({"alpha": 0.5}),
    "celu": lambda rng, x: rng.subset({"alpha": 0.5}),
    "gelu": lambda rng, x: rng.subset({"approximate": Word("tanh")}),
    "softplus": lambda rng, x: rng.subset({"beta": 2.0, "threshold": 10.0}),
    "softmax": _softmax,
    "dropout": _dropout,
    "dropout2d": _dropout,
    "shake_drop": _dropout,
    "drop_path": lambda rng, x: _dropout(rng, x) | rng.subset({"mode": Word("batch")}),
    "scale": _learned,
    "shift": _learned,
    "times": lambda rng, x: {"factor": rng.choice([0.5, 2.0])},
    "maxpool": lambda rng, x: _pool(rng, x, {"dilation": (2, 1)}),
    "avgpool": lambda rng, x: _pool(rng, x, {"count_pad": False}),
    "blurpool": _blurpool,
    "adaptive_avgpool": lambda rng, x: {"size": rng.size(1, 6)},
    "adaptive_maxpool": lambda rng, x: {"size": rng.size(1, 6)},
    "upsample": _upsample,
    "mean": lambda rng, x: {"over": Word(rng.choice("chw" if len(x) == 3 else "c"))},
    "max": lambda rng, x: {"over": Word(rng.choice("chw" if len(x) == 3 else "c"))},
    "pixel_shuffle": lambda rng, x: {"factor": rng.randint(1, 2)},
    "pixel_unshuffle": lambda rng, x: {"factor": rng.choice([n for n in (1, 2, 3) if not any(s % n for s in x[1:])])},
    "channel_shuffle": lambda rng, x: {"groups": rng.choice(_divisors(x[0]))},
    "pad": _pad,
    "slice": _slice,
}
"""Draw the settings of each operator for an input shape. Operators without a row are called without arguments.

If the result is None, or the operator rejects the settings, the generator draws another operator.
"""


def _with(name: str, **forced: Any) -> tuple[str, Callable[[Rng, Shape], Settings | None]]:
    """Return an operator with random settings, some of which are given."""

    def draw(rng: Rng, x: Shape) -> Settings | None:
        settings = SETTINGS[name](rng, x)
        return None if settings is None else {**settings, **forced}

    return name, draw


def _resized(rng: Rng, x: Shape) -> Settings:
    return {"size": rng.size(1, MAX_SIDE), "mode": Word(rng.choice(["nearest", "bilinear", "bicubic", "bicubic"]))}


def _padded(mode: str) -> tuple[str, Callable[[Rng, Shape], Settings]]:
    def draw(rng: Rng, x: Shape) -> Settings:
        return {"amounts": [rng.randint(0, max(0, min(2, min(x[1:]) - 1))) for _ in range(4)], "mode": Word(mode)}

    return "pad", draw


VARIANTS: dict[str, tuple[str, Callable[[Rng, Shape], Settings | None]]] = {
    "conv pad=tf_same": _with("conv", pad=Word("tf_same")),
    "conv standardize": ("conv", lambda rng, x: {"kernel": (3, 3), "c": rng.randint(1, 12), "standardize": True}),
    "conv gain": _with("conv", kernel=(3, 3), pad=(1, 1), standardize=True, gain=True),
    "linear pointwise": _with("linear", pointwise=True),
    "gelu approximate=tanh": _with("gelu", approximate=Word("tanh")),
    "softmax parts": ("softmax", lambda rng, x: {"parts": rng.choice(_divisors(x[0])[1:])} if x[0] > 1 else None),
    "drop_path mode=batch": _with("drop_path", mode=Word("batch")),
    "maxpool pad=tf_same": ("maxpool", lambda rng, x: {"kernel": rng.size(1, 3), "pad": Word("tf_same")}),
    "avgpool pad=tf_same": ("avgpool", lambda rng, x: {"kernel": rng.size(1, 3), "pad": Word("tf_same")}),
    "upsample size": ("upsample", _resized),
    **{
        f"{name} shape={shape}": (name, lambda rng, x, shape=shape: _learned(rng, x) | {"shape": Word(shape)})
        for name in ("scale", "shift")
        for shape in ("map", "batch", "one", "scalar")
    },
    **{f"{name} over={axis}": _with(name, over=Word(axis)) for name in ("mean", "max") for axis in "chw"},
    **{f"pad mode={mode}": _padded(mode) for mode in ("reflect", "replicate", "circular")},
    **{
        f"blurpool mode={mode}": ("blurpool", lambda rng, x, mode=mode: {"mode": Word(mode), "stride": rng.size(1, 2)})
        for mode in ("constant", "replicate", "circular")
    },
}
"""Operators with certain arguments, which random settings contain too seldom: the operator, and how to draw them."""

ACTIVATIONS = tuple(
    name
    for name in OPS
    if not OPS[name].parameters and name not in ("flatten", "softmax", "glu", "shake_shake") and "pool" not in name
)


@dataclass(frozen=True)
class StandardBlock:
    """A standard block: random settings for a map, its output shape, and the maps it accepts."""

    settings: Callable[[Rng, Shape], Settings]
    output: Callable[[Shape, Settings], Shape]
    accepts: Callable[[Shape], bool] = lambda x: True


def _strided(times: int) -> Callable[[Shape, Settings], Shape]:
    """Return the output shape of a block with `c` channels that halves the map with `subsample`."""

    def output(x: Shape, settings: Settings) -> Shape:
        step = 2 if settings.get("subsample") else settings.get("stride", 1)
        return (times * settings["c"], *(-(-size // step) for size in x[1:]))

    return output


def _narrow(rng: Rng, x: Shape) -> Settings:
    return {"c": rng.randint(1, 12), **rng.subset({"subsample": True})}


_COLUMNS = ("c1", "r3", "c3", "r5", "c5", "cp")

STANDARD_BLOCKS: dict[str, StandardBlock] = {
    "conv_bn": StandardBlock(lambda rng, x: {"kernel": (3, 3), "c": rng.randint(1, 12)}, _strided(1)),
    "resnet_block": StandardBlock(_narrow, _strided(1)),
    "preact_block": StandardBlock(_narrow, _strided(1)),
    "bottleneck": StandardBlock(lambda rng, x: _narrow(rng, x) | {"c": rng.randint(1, 4)}, _strided(4)),
    "preact_bottleneck": StandardBlock(lambda rng, x: _narrow(rng, x) | {"c": rng.randint(1, 4)}, _strided(4)),
    "inverted_residual": StandardBlock(
        lambda rng, x: {"expand": rng.randint(1, 2), "c": rng.randint(1, 12), **rng.subset({"stride": 2})},
        _strided(1),
    ),
    "transition": StandardBlock(
        lambda rng, x: rng.subset({"c": rng.randint(1, 12)}),
        lambda x, settings: (settings.get("c", x[0] // 2), x[1] // 2, x[2] // 2),
        lambda x: min(x) >= 2,
    ),
    "dense_layer": StandardBlock(
        lambda rng, x: {"growth": rng.randint(1, 3), "bottleneck": rng.randint(1, 2)},
        lambda x, settings: (x[0] + settings["growth"], *x[1:]),
    ),
    "squeeze_excite": StandardBlock(lambda rng, x: {"ratio": rng.randint(1, x[0])}, lambda x, settings: x),
    "inception_block": StandardBlock(
        lambda rng, x: {name: rng.randint(1, 4) for name in _COLUMNS},
        lambda x, settings: (sum(settings[name] for name in _COLUMNS if name[0] == "c"), *x[1:]),
    ),
}
"""Random settings of the shipped blocks."""
