"""Test the torch backend, with torch as the oracle for shapes, weights and counts of every operator."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import pickle
import random
import traceback
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import torchvision
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cnnspec import load, loads
from cnnspec.backends.torch import layers as torch_layers
from cnnspec.backends.torch.inits import FILLS
from cnnspec.backends.torch.layers import EXPRESSIONS, ROWS, UNINITIALIZED
from cnnspec.backends.torch.module import Network, Outputs, to_module, write_forward
from cnnspec.ir import IMAGE, AuxHead, Graph, Model, Node
from cnnspec.ops import JOINS, OPS, ShapeError, inits
from cnnspec.ops.inits import INITS, InitScheme
from cnnspec.recipe import Recipe
from cnnspec.schema import Interval
from cnnspec.shapes import Shape

MAP, FLAT = (8, 9, 7), (12,)
PUBLISHED = ["resnet20", "preact_resnet20", "googlenet_cifar", "densenet_cifar"]

SETTINGS: dict[str, list[tuple[Shape, dict[str, Any]]]] = {
    "conv": [
        (MAP, {"kernel": (3, 4), "c": 4, "stride": (2, 3), "pad": "tf_same", "dilation": (2, 1)}),
        (MAP, {"kernel": (3, 3), "c": 6}),
        (MAP, {"kernel": (3, 3), "c": 6, "standardize": True, "eps": 1e-5}),
        (MAP, {"kernel": (2, 3), "depthwise": True, "pad": "tf_same", "standardize": True, "gain": True, "bias": True}),
        (MAP, {"kernel": (3, 5), "c": 6, "stride": (2, 1), "dilation": (2, 1), "bias": True}),
        (MAP, {"kernel": (2, 4), "c": 12, "pad": (1, 0), "groups": 4}),
        (MAP, {"kernel": (3, 3), "depthwise": True}),
        (MAP, {"kernel": (3, 3), "c": 16, "depthwise": True, "stride": (2, 2)}),
    ],
    "conv_transpose": [
        (MAP, {"kernel": (2, 2), "c": 6, "stride": (2, 2)}),
        (
            MAP,
            {"kernel": (3, 4), "c": 12, "stride": (2, 3), "pad": (1, 2), "out_pad": (1, 2), "groups": 4, "bias": False},
        ),
        (MAP, {"kernel": (3, 3), "c": 6, "dilation": (2, 2), "out_pad": (1, 0)}),
    ],
    "linear": [(FLAT, {"c": 5}), (FLAT, {"c": 5, "bias": False}), (MAP, {"c": 5, "pointwise": True})],
    "channel_conv": [(MAP, {"kernel": 3}), (FLAT, {"kernel": 5, "bias": True}), (MAP, {"kernel": 17})],
    "softmax": [(MAP, {}), (FLAT, {}), (MAP, {"parts": 2}), (FLAT, {"parts": 4})],
    "bn": [(MAP, {}), (FLAT, {}), (MAP, {"affine": False, "eps": 1e-3, "momentum": 0.2})],
    "gn": [(MAP, {"groups": 4}), (FLAT, {"groups": 3}), (MAP, {"groups": 8, "affine": False})],
    "ln": [(MAP, {}), (FLAT, {}), (MAP, {"affine": False}), (FLAT, {"affine": False})],
    "in_norm": [(MAP, {}), (MAP, {"affine": True})],
    "lrn": [(MAP, {"size": 5}), (MAP, {"size": 4, "alpha": 1e-3, "beta": 0.5, "k": 2.0})],
    "hardtanh": [(MAP, {}), (FLAT, {"low": 0.0, "high": 6.0})],
    "leaky_relu": [(MAP, {"negative_slope": 0.1})],
    "prelu": [(MAP, {}), (MAP, {"num_parameters": 8, "init": 0.1}), (FLAT, {"num_parameters": 12})],
    "elu": [(MAP, {"alpha": 0.5})],
    "celu": [(MAP, {"alpha": 0.5})],
    "gelu": [(MAP, {}), (MAP, {"approximate": "tanh"})],
    "softplus": [(MAP, {"beta": 2.0, "threshold": 10.0})],
    "dropout": [(MAP, {"p": 0.3}), (FLAT, {})],
    "dropout2d": [(MAP, {"p": 0.3})],
    "shake_drop": [(MAP, {"p": 0.3}), (FLAT, {"p": 0.0}), (FLAT, {"p": 1.0})],
    "drop_path": [(MAP, {"p": 0.3}), (MAP, {"p": 0.6, "mode": "batch"}), (FLAT, {"p": 0.0}), (MAP, {"p": 1.0})],
    "scale": [(MAP, {"init": 1e-6}), (FLAT, {}), (MAP, {"shape": "map"}), (MAP, {"shape": "scalar"})],
    "shift": [(MAP, {"init": 0.5}), (FLAT, {}), (MAP, {"shape": "batch"}), (FLAT, {"shape": "one"})],
    "times": [(MAP, {"factor": 0.5})],
    "maxpool": [
        (MAP, {"kernel": (3, 2), "stride": (2, 2), "pad": "tf_same"}),
        (MAP, {"kernel": (2, 2)}),
        (MAP, {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1), "ceil": True}),
        (MAP, {"kernel": (2, 3), "stride": (1, 2), "dilation": (2, 1)}),
    ],
    "avgpool": [
        (MAP, {"kernel": (3, 2), "stride": (2, 2), "pad": "tf_same"}),
        (MAP, {"kernel": (2, 2)}),
        (MAP, {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1), "ceil": True, "count_pad": False}),
    ],
    "blurpool": [
        (MAP, {}),
        (MAP, {"kernel": (4, 3), "stride": (1, 2), "pad": (2, 1), "mode": "circular", "persistent": True}),
        (MAP, {"kernel": (5, 1), "mode": "replicate"}),
        (MAP, {"kernel": (2, 2), "pad": (0, 0), "mode": "constant"}),
    ],
    "adaptive_avgpool": [(MAP, {"size": (4, 3)}), (MAP, {"size": (16, 1)})],
    "adaptive_maxpool": [(MAP, {"size": (4, 3)})],
    "flatten": [(MAP, {}), (FLAT, {})],
    "upsample": [
        (MAP, {"factor": (2, 3)}),
        (MAP, {"size": (5, 20), "mode": "bilinear", "align_corners": True}),
        (MAP, {"factor": (2, 2), "mode": "bicubic"}),
    ],
    **{name: [(MAP, {"over": axis}) for axis in "chw"] + [(FLAT, {"over": "c"})] for name in ("mean", "max")},
    "pixel_shuffle": [(MAP, {"factor": 2})],
    "pixel_unshuffle": [((8, 6, 9), {"factor": 3})],
    "channel_shuffle": [(MAP, {"groups": 4})],
    "pad": [
        *((MAP, {"amounts": (1, 2, 0, 1), "mode": mode}) for mode in ("reflect", "replicate", "circular")),
        (MAP, {"amounts": (1,)}),
        (MAP, {"amounts": (1, 2), "value": 3.0}),
        (MAP, {"amounts": (0, 1, -2, 3)}),
    ],
    "slice": [(MAP, {"range": Interval((2, 5))}), (FLAT, {"range": Interval((0, 12))})],
}
"""Input shapes and settings to test. Operators without a row have no settings and accept maps and flat features."""

ANY: list[tuple[Shape, dict[str, Any]]] = [(MAP, {}), (FLAT, {})]
MAPS_ONLY = {"glu", "shake_shake", "global_avgpool", "global_maxpool"}
CASES = [
    pytest.param(name, shape, settings, id=f"{name}-{number}")
    for name in OPS
    for number, (shape, settings) in enumerate(SETTINGS.get(name, ANY[:1] if name in MAPS_ONLY else ANY))
]


class Draft:
    """A graph under construction."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.input_shape, self.nodes = input_shape, list[Node]()

    def shape(self, index: int) -> Shape:
        return self.input_shape if index == IMAGE else self.nodes[index].shape

    def add(
        self,
        path: str,
        name: str,
        *inputs: int,
        scheme: InitScheme | None = None,
        aux: str | None = None,
        **settings: Any,
    ) -> int:
        op = (OPS | JOINS)[name](**settings)
        inputs = inputs or (len(self.nodes) - 1,)
        shapes = [self.shape(i) for i in inputs]
        shape = op.infer(*shapes)
        self.nodes.append(Node(path, op, inputs, shape, op.weights(shapes[0]), op.macs(shapes[0], shape), scheme, aux))
        return len(self.nodes) - 1

    def graph(self, output: int | None = None, aux: tuple[AuxHead, ...] = ()) -> Graph:
        output = len(self.nodes) - 1 if output is None else output
        model = Model(name="draft", input=(1, 1, 1), constants={}, blocks={}, body=())
        return Graph("draft", tuple(self.nodes), self.input_shape, output, {}, {}, aux, Recipe(), model)  # type: ignore[arg-type]


def single(name: str, shape: Shape, settings: dict[str, Any], scheme: InitScheme | None = None) -> Graph:
    draft = Draft(shape)
    draft.add("net.op", name, IMAGE, scheme=scheme, **settings)
    return draft.graph()


def interpret(network: Network, x: Tensor) -> Tensor | Outputs:
    """Run the forward pass without generated code and keep every value."""
    values: dict[int, Tensor] = {IMAGE: x}
    for index, node in enumerate(network.graph):
        if node.aux and not network.training:
            continue
        inputs = [values[i].clone() for i in node.inputs]
        if node.op.name == "add":
            values[index] = sum(inputs[1:], inputs[0])
        elif node.op.name == "mul":
            values[index] = math.prod(inputs[1:], start=inputs[0])
        elif node.op.name == "concat":
            values[index] = torch.cat(inputs, 1)
        elif node.op.name == "slice":
            low, high = node.op.range  # type: ignore[attr-defined]
            values[index] = inputs[0][:, low:high]
        else:
            module: Any = network
            for part in node.path.split("."):
                module = module._modules[part]
            values[index] = module(inputs[0])
    logits = values[network.graph.output]
    if network.training and network.graph.aux:
        return Outputs(logits, tuple(values[head.output] for head in network.graph.aux))
    return logits


# --- every operator -------------------------------------------------------------------------------


def test_every_operator_has_one_row() -> None:
    kinds = (OPS | JOINS).values()
    assert {kind.name for kind in kinds if kind.owns_module} == set(ROWS)
    assert {kind.name for kind in kinds if not kind.owns_module} == set(EXPRESSIONS)
    assert set(INITS) == set(FILLS)
    assert set(UNINITIALIZED) <= set(ROWS)
    assert set(SETTINGS) <= set(OPS)


def test_every_operator_with_settings_is_tested() -> None:
    assert {name for name, kind in OPS.items() if set(kind.parameters) - {"init"}} <= set(SETTINGS)


@pytest.mark.parametrize(("name", "shape", "settings"), CASES)
def test_operator_agrees_with_torch(name: str, shape: Shape, settings: dict[str, Any]) -> None:
    graph = single(name, shape, settings)
    node = graph.nodes[0]
    with torch.device("meta"):
        network = to_module(graph)
        counter = FlopCounterMode(display=False)
        with counter:
            y = network(torch.empty(2, *shape))
    assert tuple(y.shape) == (2, *node.shape)
    assert {key: tuple(p.shape) for key, p in network.named_parameters()} == {
        f"net.op.{key}": size for key, size in node.weights.items()
    }
    assert counter.get_total_flops() == 2 * 2 * node.macs
    if node.op.owns_module and node.op.torch.startswith("torch.nn."):
        kind = node.op.torch.rpartition(".")[2]
        bases = [base.__name__ for base in type(network["net"]["op"]).__mro__]
        documented = bases[0] in (type(node.op).__doc__ or "")
        assert documented or kind in bases or kind.replace("2d", "1d") in bases


SIZES = st.tuples(st.integers(1, 5), st.integers(1, 5))
PADS = st.tuples(st.integers(0, 3), st.integers(0, 3))
WINDOWS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "conv": {
        "kernel": SIZES,
        "c": st.integers(1, 4),
        "stride": SIZES,
        "pad": PADS | st.just("same"),
        "dilation": SIZES,
    },
    "conv_transpose": {
        "kernel": SIZES,
        "c": st.integers(1, 4),
        "stride": SIZES,
        "pad": PADS,
        "out_pad": PADS,
        "dilation": SIZES,
    },
    "maxpool": {
        "kernel": SIZES,
        "stride": st.none() | SIZES,
        "pad": PADS,
        "dilation": SIZES,
        "ceil": st.booleans(),
    },
    "avgpool": {
        "kernel": SIZES,
        "stride": st.none() | SIZES,
        "pad": PADS,
        "ceil": st.booleans(),
        "count_pad": st.booleans(),
    },
    "pad": {"amounts": st.lists(st.integers(-3, 3), min_size=4, max_size=4).map(tuple)},
    "upsample": {"factor": SIZES, "mode": st.sampled_from(["nearest", "bilinear", "bicubic"])},
    "adaptive_avgpool": {"size": SIZES},
}


@pytest.mark.parametrize("name", WINDOWS)
@hypothesis.settings(max_examples=60)
@hypothesis.given(data=st.data())
def test_shape_rules_accept_what_torch_accepts(name: str, data: st.DataObject) -> None:
    shape = (2, data.draw(st.integers(1, 12), "height"), data.draw(st.integers(1, 12), "width"))
    op = OPS[name](**{key: data.draw(strategy, key) for key, strategy in WINDOWS[name].items()})
    expected = given = None
    with contextlib.suppress(ShapeError):
        expected = op.infer(shape)
    with contextlib.suppress(ShapeError, RuntimeError, ValueError):
        given = tuple(ROWS[name](op, shape)(torch.zeros(2, *shape)).shape[1:])
    assert expected == (None if given and 0 in given else given)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("add", [MAP, MAP, MAP]),
        ("add", [FLAT, FLAT]),
        ("mul", [MAP, (8, 1, 1)]),
        ("mul", [(1, 9, 7), MAP, (8, 1, 1)]),
        ("concat", [MAP, (3, 9, 7), (1, 9, 7)]),
        ("concat", [FLAT, (3,)]),
    ],
)
def test_join_agrees_with_torch(name: str, shapes: list[Shape]) -> None:
    draft = Draft((1, 9, 7))
    for number, shape in enumerate(shapes):
        if len(shape) == 3:
            draft.add(f"{number}", "conv", IMAGE, kernel=(1, 1), c=shape[0])
            if shape[1:] == (1, 1):
                draft.add(f"pool{number}", "global_avgpool")
        else:
            draft.add(f"flat{number}", "flatten", IMAGE)
            draft.add(f"{number}", "linear", c=shape[0])
    inputs = [
        i for i, node in enumerate(draft.nodes) if i + 1 == len(draft.nodes) or draft.nodes[i + 1].inputs == (IMAGE,)
    ]
    draft.add("", name, *inputs)
    network = to_module(draft.graph())
    x = torch.randn(2, 1, 9, 7)
    y = network(x)
    assert tuple(y.shape[1:]) == draft.nodes[-1].shape
    assert torch.equal(y, interpret(network, x))


def test_shake_shake_mixes_with_other_weights_in_the_backward_pass() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 8, 4, 4)
    shake = torch_layers.ShakeShake()
    assert torch.equal(shake.eval()(x), (x[:, :4] + x[:, 4:]) / 2)
    x = torch.randn(6, 8, 4, 4, requires_grad=True)
    y = shake.train()(x)
    y.sum().backward()
    gradient = x.grad
    assert gradient is not None
    one, other = x.detach().chunk(2, 1)
    weights = [((y.detach() - other) / (one - other)).flatten(1).median(1).values, gradient[:, 0, 0, 0]]
    assert all(((w >= 0) & (w <= 1)).all() and w.unique().numel() == 6 for w in weights)
    assert not torch.allclose(*weights, atol=1e-3)
    torch.testing.assert_close(y.detach(), other + (one - other) * weights[0].view(6, 1, 1, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient[:, :4] + gradient[:, 4:], torch.ones(6, 4, 4, 4))


def test_shake_drop_has_other_factors_in_the_backward_pass() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 2, requires_grad=True)
    drop = torch_layers.ShakeDrop(0.3)
    y = drop.train()(x)
    y.sum().backward()
    assert x.grad is not None
    forward, backward = (y / x).detach().mean(1), x.grad[:, 0]
    kept = backward == 1
    assert abs(float(kept.float().mean()) - 0.7) < 0.03
    assert torch.equal(y[kept], x[kept])
    assert (forward[~kept] > -1.001).all()
    assert (forward[~kept] < 1.001).all()
    assert abs(float(forward.mean()) - 0.7) < 0.03
    assert abs(float(backward[~kept].mean()) - 0.5) < 0.03
    assert torch.equal(drop.eval()(x), x * 0.7)


def test_own_layers() -> None:
    x = torch.randn(6, 8, 4, 4)
    torch.manual_seed(3)
    ours = torch_layers.DropPath(0.4).train()(x)
    torch.manual_seed(3)
    assert torch.equal(ours, torchvision.ops.stochastic_depth(x, 0.4, "row"))
    for seed in range(8):
        torch.manual_seed(seed)
        ours = torch_layers.DropPath(0.4, "batch").train()(x)
        torch.manual_seed(seed)
        assert torch.equal(ours, torchvision.ops.stochastic_depth(x, 0.4, "batch"))
    assert torch.equal(torch_layers.DropPath(0.4).eval()(x), x)
    assert not torch_layers.DropPath(1.0).train()(x).any()

    norm = torch_layers.ChannelNorm(8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    centred = x - x.mean(1, keepdim=True)
    plain = centred / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = plain * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)

    scale = torch_layers.Scale((8,), 0.5)
    with torch.no_grad():
        scale.weight[3] = 2.0
    assert torch.equal(scale(x)[:, 3], 2 * x[:, 3])
    assert torch.equal(scale(x[:, :, 0, 0]), 0.5 * x[:, :, 0, 0] * torch.tensor([1, 1, 1, 4, 1, 1, 1, 1]))
    assert torch.equal(torch_layers.Times(0.25)(x), x / 4)


# --- initial weights ------------------------------------------------------------------------------

STARTS: list[tuple[InitScheme, float, float]] = [
    # Mean and standard deviation of a 3x3 convolution from 64 to 128 channels.
    (inits.KaimingNormal(), 0, math.sqrt(2 / (64 * 9))),
    (inits.KaimingNormal(mode="fan_out"), 0, math.sqrt(2 / (128 * 9))),
    (inits.KaimingNormal(nonlinearity="leaky_relu", slope=0.5), 0, math.sqrt(2 / 1.25 / (64 * 9))),
    (inits.KaimingNormal(nonlinearity="tanh"), 0, 5 / 3 / math.sqrt(64 * 9)),
    (inits.KaimingUniform(nonlinearity="linear"), 0, math.sqrt(1 / (64 * 9))),
    (inits.XavierNormal(gain=2.0), 0, 2 * math.sqrt(2 / (192 * 9))),
    (inits.XavierUniform(), 0, math.sqrt(2 / (192 * 9))),
    (inits.Normal(std=0.02, mean=0.5), 0.5, 0.02),
    (inits.TruncNormal(std=0.02), 0, 0.02),
    (inits.TruncNormal(std=1.0, low=-1.0, high=1.0), 0, 0.5396),
    (inits.Uniform(low=-1.0, high=3.0), 1, 4 / math.sqrt(12)),
    (inits.Constant(weight=0.25), 0.25, 0),
    (inits.Zero(), 0, 0),
    (inits.Dirac(), 64 / (128 * 64 * 9), 0.0295),
    (inits.Orthogonal(gain=0.5), 0, 0.5 / math.sqrt(64 * 9)),
]


def test_every_initialization_is_tested() -> None:
    assert {scheme.name for scheme, _, _ in STARTS} == set(INITS)


@pytest.mark.parametrize(("scheme", "mean", "std"), STARTS, ids=lambda value: getattr(value, "name", ""))
def test_initialization_has_its_mean_and_deviation(scheme: InitScheme, mean: float, std: float) -> None:
    torch.manual_seed(0)
    for bias in (False, True):
        graph = single("conv", (64, 8, 8), {"kernel": (3, 3), "c": 128, "bias": bias}, scheme)
        layer = to_module(graph)["net"]["op"]
        assert type(layer) is nn.Conv2d
        weight = layer.weight.detach()
        assert weight.mean().item() == pytest.approx(mean, abs=max(0.02 * std, 1e-6))
        assert weight.std().item() == pytest.approx(std, rel=0.05)
        if bias:
            start = torch.zeros(128) if scheme.name == "zero" else None
            assert start is None or torch.equal(layer.bias, start)
            # Otherwise the bias is initialized as in torch: uniform within 1 / sqrt(fan_in).
            assert start is not None or 0 < layer.bias.abs().max().item() <= 1 / 24


def test_initialization_sets_the_bias_if_stated() -> None:
    for name, shape, settings in [
        ("conv", MAP, {"kernel": (3, 3), "c": 4, "bias": True}),
        ("conv_transpose", MAP, {"kernel": (3, 3), "c": 4}),
        ("linear", FLAT, {"c": 4}),
        ("bn", MAP, {}),
    ]:
        layer = to_module(single(name, shape, settings, inits.Constant(weight=2.0, bias=3.0)))["net"]["op"]
        assert (layer.weight == 2).all()
        assert (layer.bias == 3).all()
        assert type(layer) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)
    layer = to_module(single("bn", MAP, {}, inits.Constant(weight=2.0)))["net"]["op"]
    assert (layer.bias == 0).all()
    to_module(single("bn", MAP, {"affine": False}, inits.Zero()))


def test_dirac_keeps_the_channels_of_every_group() -> None:
    x = torch.randn(2, *MAP)
    graph = single("conv", MAP, {"kernel": (3, 3), "c": 8, "groups": 4}, inits.Dirac())
    assert torch.equal(to_module(graph)(x), x)


def test_weights_follow_the_seed_and_torch() -> None:
    graph = load("resnet20")
    torch.manual_seed(1)
    first = to_module(graph).state_dict()
    torch.manual_seed(1)
    second = to_module(graph).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(1)
    plain = to_module(single("linear", FLAT, {"c": 5}))["net"]["op"]
    torch.manual_seed(1)
    assert torch.equal(plain.weight, nn.Linear(12, 5).weight)


# --- the forward pass -----------------------------------------------------------------------------

SMALL = """
network small
input 3x8x8
classes 5

block residual(c) {
    add {
        net:   conv 3x3 c | bn | relu | conv 3x3 c | bn
        class: conv 1x1 c
    }
    relu
}

stem  conv 3x3 c=8 | bn | relu
stage residual x2 c=8
_x: { concat { slice 0..4; mul { in; global_avgpool | conv 1x1 8 bias | sigmoid } } }
global_avgpool | flatten
fc: linear classes

aux side from @stage1 weight=0.3 {
    conv 1x1 4
    flatten
    fc: linear classes
}
"""

SMALL_CODE = """\
def forward(self, x: Tensor) -> Tensor | Outputs:  # [N, 3, 8, 8]

    # stem
    x = self.stem[0](x)  # [N, 8, 8, 8]
    x = self.stem[1](x)
    x = self.stem[2](x)

    # stage1.0: residual
    a = self.stage1[0].net[0](x)
    a = self.stage1[0].net[1](a)
    a = self.stage1[0].net[2](a)
    a = self.stage1[0].net[3](a)
    a = self.stage1[0].net[4](a)
    x = self.stage1[0]["class"](x)
    x = a + x
    del a
    x = self.stage1[0][0](x)

    # stage1.1: residual
    a = self.stage1[1].net[0](x)
    a = self.stage1[1].net[1](a)
    a = self.stage1[1].net[2](a)
    a = self.stage1[1].net[3](a)
    a = self.stage1[1].net[4](a)
    x = self.stage1[1]["class"](x)
    x = a + x
    del a
    x = self.stage1[1][0](x)

    # side
    if self.training:
        a = self.side[0](x)  # [N, 4, 8, 8]
        a = self.side[1](a)  # [N, 256]
        aux1 = self.side.fc(a)  # [N, 5]
        del a
"""


@pytest.fixture(scope="module")
def small() -> Network:
    torch.manual_seed(0)
    return to_module(loads(SMALL))


def test_code_is_readable(small: Network) -> None:
    assert small.code.startswith(SMALL_CODE)
    assert small.code.endswith("    if self.training:\n        return Outputs(x, (aux1,))\n    return x\n")
    assert inspect.getsource(small.forward) == small.code
    with pytest.raises(RuntimeError) as caught:
        small(torch.zeros(1, 4, 8, 8))
    assert "x = self.stem[0](x)" in "".join(traceback.format_exception(caught.value))


def test_aux_heads_run_in_training_only(small: Network) -> None:
    x = torch.randn(2, 3, 8, 8)
    trained = small.train()(x)
    assert isinstance(trained, Outputs)
    assert [tuple(logits.shape) for logits in (trained.logits, *trained.aux)] == [(2, 5), (2, 5)]
    logits = small.eval()(x)
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, 5)
    assert "side.fc.weight" in small.state_dict()


def test_values_are_deleted_after_their_last_use(small: Network) -> None:
    alive: dict[str, weakref.ref[Tensor]] = {}
    seen: list[bool] = []
    handles = [
        small["stage1"][0]["net"][4].register_forward_hook(lambda m, i, y: alive.update(branch=weakref.ref(y))),
        small["stage1"][0][0].register_forward_hook(lambda m, i, y: seen.append(alive["branch"]() is None)),
    ]
    with torch.no_grad():
        small.eval()(torch.zeros(1, 3, 8, 8))
    for handle in handles:
        handle.remove()
    assert seen == [True]


def _random_graph(seed: int) -> Graph:
    """Generate a random acyclic graph with many joins and up to two auxiliary heads."""
    choose = random.Random(seed)
    draft = Draft((4, 6, 6))
    fresh = iter(range(1000))

    def grow(sources: list[int], count: int, aux: str | None) -> list[int]:
        values = list(sources)
        for _ in range(count):
            kind = choose.choice(
                ["conv", "bn", "relu", "relu", "identity", "sigmoid", "add", "mul", "concat", "slice", "drop"]
            )
            one = choose.choice(values[-4:])
            path = f"{aux or choose.choice(['stem', 'stage1', 'stage1.net'])}.n{next(fresh)}"
            if kind in ("add", "mul", "concat"):
                same = [i for i in values if kind == "concat" or draft.shape(i) == draft.shape(one)]
                index = draft.add("stage1", kind, *(choose.choice(same) for _ in range(choose.randint(2, 3))), aux=aux)
            elif kind == "conv":
                index = draft.add(path, "conv", one, kernel=(3, 3), c=choose.choice([2, 4]), aux=aux)
            elif kind == "slice":
                index = draft.add("stage1", "slice", one, range=Interval((0, 2)), aux=aux)
            elif kind == "drop":
                index = draft.add(path, "dropout", one, p=0.0, aux=aux)
            else:
                index = draft.add(path, kind, one, aux=aux)
            values.append(index)
        unread = [i for i in values if i not in sources and not any(i in node.inputs for node in draft.nodes)]
        joined = draft.add("stage1", "concat", *unread, aux=aux)
        return [*values, joined]

    values = grow([IMAGE], choose.randint(4, 14), None)
    heads = list[AuxHead]()
    for number in range(choose.randint(0, 2)):
        name = f"head{number}"
        grow([choose.choice(values)], choose.randint(1, 4), name)
        heads.append(AuxHead(name, len(draft.nodes) - 1, 0.3))
    output = values[-1] if heads else len(draft.nodes) - 1
    return draft.graph(output, tuple(heads))


@pytest.mark.parametrize("seed", range(40))
def test_forward_equals_an_interpreter(seed: int) -> None:
    graph = _random_graph(seed)
    torch.manual_seed(seed)
    network = to_module(graph).double()
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    for training in (True, False):
        network.train(training)
        plain.train(training)
        x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours, expected = network(mine), interpret(plain, other)
        if not isinstance(ours, Outputs):
            ours, expected = Outputs(ours, ()), Outputs(expected, ())  # type: ignore[arg-type]
        for one, two in zip((ours.logits, *ours.aux), (expected.logits, *expected.aux), strict=True):
            torch.testing.assert_close(one, two)
        sum(y.sum() for y in (ours.logits, *ours.aux)).backward()
        sum(y.sum() for y in (expected.logits, *expected.aux)).backward()
        torch.testing.assert_close(mine.grad, other.grad)
        assert torch.equal(mine, x)


@pytest.mark.parametrize(("name", "shape", "settings"), CASES)
def test_inplace_activations_do_not_change_other_inputs(name: str, shape: Shape, settings: dict[str, Any]) -> None:
    draft = Draft(shape)
    draft.add("op", name, IMAGE, **settings)
    draft.add("act", "relu")
    network = to_module(draft.graph()).train()
    x = torch.randn(4, *shape)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(0)
    network(mine).sum().backward()
    torch.manual_seed(0)
    plain = copy.deepcopy(network)
    y = plain["op"](other) if "op" in plain._modules else other.narrow(1, *_narrow(settings))
    F.relu(y).sum().backward()
    assert torch.equal(mine, x)
    torch.testing.assert_close(mine.grad, other.grad)


def _narrow(settings: dict[str, Any]) -> tuple[int, int]:
    low, high = settings["range"]
    return low, high - low


# --- names ----------------------------------------------------------------------------------------

AWKWARD = [
    "type",
    "train",
    "training",
    "forward",
    "modules",
    "_modules",
    "_x",
    "class",
    "T_destination",
    "graph",
    "code",
    "__init__",
    "None",
    "x",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_every_label_is_an_attribute_or_key(name: str) -> None:
    draft = Draft((3, 8, 8))
    draft.add(name, "conv", IMAGE, kernel=(3, 3), c=4)
    draft.add(f"stage1.{name}.{name}", "bn")
    draft.add(f"stage1.{name}.0", "flatten")
    draft.add("007", "linear", c=2)
    network = to_module(draft.graph())
    stage = f"stage1.{name}.{name}"
    assert list(dict(network.named_parameters())) == [
        f"{name}.weight",
        f"{stage}.weight",
        f"{stage}.bias",
        "007.weight",
        "007.bias",
    ]
    x = torch.randn(2, 3, 8, 8)
    y = network.eval()(x)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(x), y)
    assert network.train().training
    assert network.to(torch.float64).double().state_dict()[f"{name}.weight"].dtype == torch.float64


def test_a_path_with_dashes_and_numbers_is_built() -> None:
    text = 'input 3x8x8\nconvs.0: conv 3x3 4\nconvs.1x1: conv 1x1 4 | bn\nconv x2 1x1 4 name="b-{i + 4}/3x3+"\n'
    network = to_module(loads(text))
    assert [key for key in network.state_dict() if key.endswith(".weight")] == [
        "convs.0.weight", "convs.1x1.0.weight", "convs.1x1.1.weight", "b-4/3x3+.weight", "b-5/3x3+.weight",
    ]  # fmt: skip
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 4, 8, 8)
    assert isinstance(pickle.loads(pickle.dumps(network)), torch.nn.Module)


@pytest.mark.parametrize("path", ["a:b", "a b.c", "a\nimport os", "", "a..b", "é", "x)"])
def test_text_never_becomes_code(path: str) -> None:
    draft = Draft((3, 8, 8))
    draft.add("stem.0", "conv", IMAGE, kernel=(3, 3), c=4)
    graph = draft.graph()
    graph = replace(graph, nodes=(replace(graph.nodes[0], path=path),), name='"""\nimport os')
    with pytest.raises(ValueError, match="not a name"):
        write_forward(graph)


# --- the published networks -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_are_the_names_of_the_spec(name: str) -> None:
    graph = load(name)
    network = to_module(graph)
    expected = {key: shape for node in graph for key, shape in node.parameters.items()}
    assert [(key, tuple(p.shape)) for key, p in network.named_parameters()] == list(expected.items())
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.zeros(1, *graph.input_shape))
    assert counter.get_total_flops() == 2 * graph.macs


@pytest.mark.parametrize("name", [*PUBLISHED, "small"])
def test_network_survives_copy_and_pickle(name: str, small: Network, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = (copy.deepcopy(small) if name == "small" else to_module(load(name))).eval()
    shape = network.graph.input_shape
    x = torch.randn(3, *shape)
    with torch.no_grad():
        y = network(x)
        torch.testing.assert_close(torch.cat([network(x[:1]), network(x[1:])]), y, rtol=1e-4, atol=1e-5)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert isinstance(other, Network)
            assert other.graph == network.graph
            assert type(other) is type(network)
            assert torch.equal(other(x), y)
            assert str(other) == str(network)

        torch.save(network.state_dict(), tmp_path / "weights.pt")
        other = to_module(network.graph).eval()
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert torch.equal(other(x), y)

        torch.testing.assert_close(interpret(network, x), y)
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5)

        wide = copy.deepcopy(network).double()
        torch.testing.assert_close(wide(x.double()).float(), y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet20", "small"])
def test_network_compiles_whole(name: str, small: Network) -> None:
    network = copy.deepcopy(small) if name == "small" else to_module(load(name))
    x = torch.randn(3, *network.graph.input_shape)
    for training in (False, True) if name == "small" else (False,):
        network.train(training)
        compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
        ours, theirs = network(x), compiled(x)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_network_compiles_with_inductor(name: str) -> None:
    network = to_module(load(name)).eval()
    x = torch.randn(3, *network.graph.input_shape)
    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True)
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet20", "small"])
def test_network_exports_for_any_batch(name: str) -> None:
    # torch writes module names into its own Python code, where a keyword is invalid.
    graph = loads(SMALL.replace("class:", "shortcut:")) if name == "small" else load(name)
    network = to_module(graph).eval()
    x = torch.randn(5, *network.graph.input_shape)
    program = torch.export.export(network, (x[:2],), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}})
    assert set(program.state_dict) == set(network.state_dict())
    for count in (1, 5):
        torch.testing.assert_close(program.module()(x[:count]), network(x[:count]))


def test_network_runs_distributed(small: Network, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        network = nn.parallel.DistributedDataParallel(copy.deepcopy(small).train())
        outputs = network(torch.randn(2, 3, 8, 8))
        (outputs.logits.sum() + 0.3 * outputs.aux[0].sum()).backward()
        assert all(p.grad is not None for p in network.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_network_trains() -> None:
    torch.manual_seed(0)
    network = to_module(loads(SMALL))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(10, 3, 8, 8), torch.arange(10) % 5
    losses = []
    for _ in range(30):
        outputs = network(x)
        loss = F.cross_entropy(outputs.logits, y) + 0.3 * F.cross_entropy(outputs.aux[0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("spec", ["conv 3x3 4 | global_avgpool | bn", "flatten | bn"])
def test_one_image_has_no_variance_to_train_on(spec: str) -> None:
    network = to_module(loads(f"input 3x8x8\n{spec}\n"))
    image = torch.randn(1, 3, 8, 8)
    network.eval()(image)
    network.train()(image.expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(image)
