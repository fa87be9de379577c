"""The Python code of every operator, one row each."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cnnspec.shapes import Shape

Value = bool | int | float | str | tuple[int, ...] | None
Row = tuple[str, dict[str, Value]]
"""The class of a module and its arguments by name."""

DEFAULTS: dict[str, Value] = (
    {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1, "bias": True}
    | {"eps": 1e-5, "momentum": 0.1, "affine": True, "elementwise_affine": True, "nn.InstanceNorm2d.affine": False}
    | {"alpha": 1e-4, "beta": 0.75, "k": 1.0, "threshold": 20.0, "approximate": "none", "inplace": False, "init": 0.25}
    | {"nn.MaxPool2d.stride": None, "nn.AvgPool2d.stride": None, "ceil_mode": False, "count_include_pad": True}
    | {
        "StandardizedConv2d.eps": 1e-6,
        "gain": None,
        "gamma": 1.0,
        "same": False,
        "BlurPool2d.mode": "reflect",
        "persistent": False,
    }
    | {"size": None, "scale_factor": None, "mode": "nearest", "align_corners": None, "dim": None}
)
"""The defaults of keyword arguments, which are left out; for one class only, with its name. Others are positional."""


def _pair(size: Any) -> Value:
    """Return a size as one number if height and width are equal."""
    return size[0] if size is not None and size[0] == size[1] else size


def _window(op: Any, **others: Value) -> dict[str, Value]:
    """Return the arguments of a sliding window."""
    own = {"kernel_size": op.kernel, "stride": op.stride, "padding": op.padding() if op.name == "conv" else op.pad}
    if op.pad == "tf_same":  # the modules of this package take height and width
        window = {"kernel_size": op.kernel, "stride": op.stride or op.kernel}
        return {**window, **({"dilation": op.dilation} if hasattr(op, "dilation") else {}), **others}
    dilation = {"dilation": _pair(op.dilation)} if hasattr(op, "dilation") else {}
    return {**{name: _pair(size) for name, size in own.items()}, **dilation, **others}


def _standardization(op: Any) -> dict[str, Value]:
    gain = {"gain": op.gain_init, "gamma": op.gamma} if op.gain else {}
    return {"eps": op.eps, **gain, **({"same": True} if op.pad == "tf_same" else {})}


def _norm(op: Any, *names: str) -> dict[str, Value]:
    return {name: getattr(op, name) for name in names or ("eps", "momentum", "affine")}


_PADS = {
    "constant": "nn.ConstantPad2d",
    "reflect": "nn.ReflectionPad2d",
    "replicate": "nn.ReplicationPad2d",
    "circular": "nn.CircularPad2d",
}

MODULES: dict[str, Callable[[Any, Shape], Row]] = {
    "conv": lambda op, x: (
        "StandardizedConv2d" if op.standardize else "SameConv2d" if op.pad == "tf_same" else "nn.Conv2d",
        {"in_channels": x[0], "out_channels": op.channels(x)}
        | _window(op, groups=op.group_count(x), bias=op.bias)
        | (_standardization(op) if op.standardize else {}),
    ),
    "conv_transpose": lambda op, x: (
        "nn.ConvTranspose2d",
        {"in_channels": x[0], "out_channels": op.c}
        | _window(op, output_padding=_pair(op.out_pad), groups=op.groups, bias=op.bias),
    ),
    "linear": lambda op, x: (
        "PointwiseLinear" if op.pointwise else "nn.Linear",
        {"in_features": x[0], "out_features": op.c, "bias": op.bias},
    ),
    "channel_conv": lambda op, x: (
        "ChannelConv",
        {"in_channels": 1, "out_channels": 1, "kernel_size": op.kernel, "padding": op.kernel // 2, "bias": op.bias},
    ),
    "bn": lambda op, x: (f"nn.BatchNorm{2 if len(x) == 3 else 1}d", {"num_features": x[0], **_norm(op)}),
    "gn": lambda op, x: ("nn.GroupNorm", {"num_groups": op.groups, "num_channels": x[0], **_norm(op, "eps", "affine")}),
    "ln": lambda op, x: (
        "ChannelNorm" if len(x) == 3 else "nn.LayerNorm",
        {"num_features": x[0], "eps": op.eps, "elementwise_affine": op.affine},
    ),
    "in_norm": lambda op, x: ("nn.InstanceNorm2d", {"num_features": x[0], **_norm(op)}),
    "lrn": lambda op, x: (
        "nn.LocalResponseNorm",
        {"window": op.window(x), "alpha": op.alpha * op.window(x) / op.size, **_norm(op, "beta", "k")},
    ),
    "relu": lambda op, x: ("nn.ReLU", {}),
    "relu6": lambda op, x: ("nn.ReLU6", {}),
    "hardtanh": lambda op, x: ("nn.Hardtanh", {"low": op.low, "high": op.high}),
    "leaky_relu": lambda op, x: ("nn.LeakyReLU", {"negative_slope": op.negative_slope}),
    "prelu": lambda op, x: ("nn.PReLU", {"num_parameters": op.num_parameters, "init": op.init}),
    "elu": lambda op, x: ("nn.ELU", {"alpha": op.alpha}),
    "celu": lambda op, x: ("nn.CELU", {"alpha": op.alpha}),
    "selu": lambda op, x: ("nn.SELU", {}),
    "gelu": lambda op, x: ("nn.GELU", {"approximate": str(op.approximate)}),
    "silu": lambda op, x: ("nn.SiLU", {}),
    "mish": lambda op, x: ("nn.Mish", {}),
    "softplus": lambda op, x: ("nn.Softplus", {"beta": op.beta, "threshold": op.threshold}),
    "tanh": lambda op, x: ("nn.Tanh", {}),
    "sigmoid": lambda op, x: ("nn.Sigmoid", {}),
    "hardswish": lambda op, x: ("nn.Hardswish", {}),
    "hardsigmoid": lambda op, x: ("nn.Hardsigmoid", {}),
    "identity": lambda op, x: ("nn.Identity", {}),
    "softmax": lambda op, x: ("PartSoftmax", {"parts": op.parts}) if op.parts else ("nn.Softmax", {"dim": 1}),
    "dropout": lambda op, x: ("nn.Dropout", {"p": op.p}),
    "dropout2d": lambda op, x: ("nn.Dropout2d", {"p": op.p}),
    "shake_shake": lambda op, x: ("ShakeShake", {}),
    "shake_drop": lambda op, x: ("ShakeDrop", {"p": op.p}),
    "glu": lambda op, x: ("nn.GLU", {"dim": 1}),
    "drop_path": lambda op, x: ("DropPath", {"p": op.p, **({"mode": "batch"} if op.mode == "batch" else {})}),
    "scale": lambda op, x: ("Scale", {"shape": op.weight(x), "initial": op.init}),
    "shift": lambda op, x: ("Shift", {"shape": op.weight(x), "initial": op.init}),
    "times": lambda op, x: ("Times", {"factor": op.factor}),
    "maxpool": lambda op, x: (
        "SameMaxPool2d" if op.pad == "tf_same" else "nn.MaxPool2d",
        _window(op, **({} if op.pad == "tf_same" else {"ceil_mode": op.ceil})),
    ),
    "avgpool": lambda op, x: (
        "SameAvgPool2d" if op.pad == "tf_same" else "nn.AvgPool2d",
        _window(op, **({} if op.pad == "tf_same" else {"ceil_mode": op.ceil, "count_include_pad": op.count_pad})),
    ),
    "blurpool": lambda op, x: (
        "BlurPool2d",
        {"in_channels": x[0], "kernel_size": op.kernel, "stride": op.stride, "padding": op.padding()}
        | {"mode": str(op.mode), "persistent": op.persistent},
    ),
    "global_avgpool": lambda op, x: ("nn.AdaptiveAvgPool2d", {"output_size": 1}),
    "global_maxpool": lambda op, x: ("nn.AdaptiveMaxPool2d", {"output_size": 1}),
    "adaptive_avgpool": lambda op, x: ("nn.AdaptiveAvgPool2d", {"output_size": _pair(op.size)}),
    "adaptive_maxpool": lambda op, x: ("nn.AdaptiveMaxPool2d", {"output_size": _pair(op.size)}),
    "flatten": lambda op, x: ("nn.Flatten", {}),
    "mean": lambda op, x: ("AxisMean", {"dim": 1 + "chw".index(op.over)}),
    "max": lambda op, x: ("AxisMax", {"dim": 1 + "chw".index(op.over)}),
    "upsample": lambda op, x: (
        "UpsampleLike" if op.like is not None else "nn.Upsample",
        ({} if op.like is not None else {"size": _pair(op.size), "scale_factor": _pair(op.factor)})
        | {"mode": str(op.mode)}
        | ({"align_corners": op.align_corners} if op.mode != "nearest" else {}),
    ),
    "pixel_shuffle": lambda op, x: ("nn.PixelShuffle", {"upscale_factor": op.factor}),
    "pixel_unshuffle": lambda op, x: ("nn.PixelUnshuffle", {"downscale_factor": op.factor}),
    "channel_shuffle": lambda op, x: ("nn.ChannelShuffle", {"channel_groups": op.groups}),
    "pad": lambda op, x: (
        _PADS[op.mode],
        {"sides": op.sides(), **({"value": op.value} if op.mode == "constant" else {})},
    ),
}
"""The module of each operator that has one, given the operator and its input shape.

Classes that are not in `nn` are those of the torch backend; their code is part of the exported source.
"""


BARE: dict[str, str] = {"scale": "*", "shift": "+"}
"""The sign between the input and the weight of each operator whose weight can be a parameter of the module around."""


class Join(NamedTuple):
    """An expression: the text before its inputs, between them, and after them, with a `{name}` for each argument."""

    opening: str
    separator: str
    closing: str
    arguments: dict[str, Value] = {}  # noqa: RUF012


EXPRESSIONS: dict[str, Callable[[Any], Join]] = {
    "add": lambda op: Join("(", " + ", ")"),
    "mul": lambda op: Join("(", " * ", ")"),
    "concat": lambda op: Join("torch.cat([", ", ", "], 1)"),
    "slice": lambda op: Join(
        "", "", ".narrow(1, {start}, {length})", {"start": int(op.range[0]), "length": int(op.range[1] - op.range[0])}
    ),
}
"""The expression of each operator without a module."""


@cache
def class_sources() -> dict[str, str]:
    """Return the code of the classes of the torch backend by their names."""
    text = (Path(__file__).parents[1] / "torch" / "layers.py").read_text("utf-8")
    nodes = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    return {node.name: ast.get_source_segment(text, node) or "" for node in nodes}
