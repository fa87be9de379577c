"""Receptive fields against published ones, gradients of the built module, and what spreads through it."""

# ruff: noqa: E402

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, example, given, settings
from torch import Tensor, nn

from cnnspec.analysis.receptive_field import center_extent, fields, masks
from cnnspec.analysis.summary import summarize
from cnnspec.api import build, load, loads
from cnnspec.backends.torch.layers import EXPRESSIONS, AxisMax, SameMaxPool2d, SamePad, StandardizedConv2d
from cnnspec.backends.torch.module import split_images
from cnnspec.ir import Graph
from cnnspec.testing import specs

QUICK = settings(max_examples=40, deadline=None)
NARROW = EXPRESSIONS["slice"]
LONG = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))


# --- published figures ---------------------------------------------------------------------------

SLIM = """
network slim_resnet
input 3x224x224
classes 1000

block unit(c, stride = 1) {
    add {
        conv 1x1 c | bn | relu | conv 3x3 c stride=stride | bn | relu | conv 1x1 4*c | bn
        conv 1x1 4*c stride=stride | bn  when stride != 1 or in.c != 4*c
    }
    relu
}

param a = 3
param b = 4
param c = 6
conv 7x7 64 stride=2 | bn | relu | maxpool 3x3 stride=2 pad=1
repeat a - 1 { unit 64 }
unit 64 stride=2
repeat b - 1 { unit 128 }
unit 128 stride=2
repeat c - 1 { unit 256 }
unit 256 stride=2
unit x3 512
"""


@pytest.mark.parametrize(
    ("name", "path", "size"),
    [
        ("alexnet", "features.12", 195),
        ("vgg16", "features.30", 212),
        ("inception_v4", "features.21", 2071),
        ("inception_resnet_v2", "conv2d_7b", 3039),
    ],
)
def test_fields_are_those_of_araujo(name: str, path: str, size: int) -> None:
    """Araujo et al. 2019, the table of networks."""
    graph = load(name)
    index = graph.find(path)
    assert index is not None, graph.paths
    assert fields(graph)[index] == (size, size)


@pytest.mark.parametrize(("units", "size"), [((3, 4, 6), 483), ((3, 4, 23), 1027), ((3, 8, 36), 1507)])
def test_fields_of_resnets_that_stride_late(units: tuple[int, int, int], size: int) -> None:
    """The ResNets of the same table thin out in the last unit of a stage, those of torchvision in the first."""
    graph = loads(SLIM, **dict(zip("abc", units, strict=True)))
    assert fields(graph)[graph.output] == (size, size)


def test_what_sees_the_whole_image() -> None:
    head = "input 3x65x33\nclasses 2\n"
    whole = "global_avgpool,global_maxpool,in_norm,gn 1,flatten,mul { in; global_avgpool }".split(",")
    for op in whole:
        graph = loads(f"{head}conv 3x3 4\n{op}\n")
        assert fields(graph)[graph.output] == (None, None), op
        assert center_extent(masks(graph)[graph.output]) == (65, 33), op
    for op in ("bn", "ln", "lrn 3", "softmax", "dropout", "add { in; relu }"):
        graph = loads(f"{head}conv 3x3 4\n{op}\n")
        assert fields(graph)[graph.output] == (3, 3), op
        assert center_extent(masks(graph)[graph.output]) == (3, 3), op


@pytest.mark.parametrize(
    ("layers", "field"),
    [
        ("conv 3x3 4 dilation=2", 5),
        ("conv_transpose 4x4 4 stride=2 pad=1", 2),
        ("conv_transpose 2x2 4 stride=2 | conv 3x3 4", 2),
        ("upsample 2 | conv 5x5 4", 3),
        ("upsample 2 mode=bilinear", 2),
        ("upsample 3 mode=bicubic", 4),
        ("maxpool 2 | upsample 2", 2),
        ("conv 3x3 4 stride=2 | conv 3x3 16 stride=2 | pixel_shuffle 2 | conv 3x3 4", 11),
        ("pixel_unshuffle 4 | conv 3x3 4", 12),
        ("adaptive_avgpool 8", 4),
        ("adaptive_avgpool 12", 4),
        ("pad [0, 3, 3, 0] | conv 3x3 4", 3),
    ],
)
def test_fields_by_hand(layers: str, field: int) -> None:
    graph = loads(f"input 3x32x32\nclasses 2\n{layers}\n")
    assert fields(graph)[graph.output] == (field, field)


@pytest.mark.parametrize(
    "layers",
    [
        "upsample 5000",
        "upsample size=4999x4999 mode=bilinear",
        "adaptive_avgpool 4999",
        "conv_transpose 1x1 1 stride=5000",
        "upsample 67 | pad 1 | adaptive_avgpool 71",
        "add { conv 1x1 4 stride=2 | upsample size=7x7; adaptive_maxpool 7 | conv 1x1 4 }",
    ],
)
def test_what_repeats_too_late_or_parts_counts_as_the_whole_image(layers: str) -> None:
    graph = loads(f"input 3x13x13\n{layers}\n")
    assert fields(graph)[graph.output] == (None, None)


POINT = "upsample size=1x1 mode=bilinear align_corners"
STEPS = [
    POINT, "upsample size=5x5 mode=bilinear align_corners", "upsample size=7x4", "upsample 2 mode=bicubic", "pad 1",
    "pad [1, 0, 2, 0]", "conv 3x3 4 pad=same", "conv 1x1 4 stride=2", "conv_transpose 2x2 4 stride=2",
    "maxpool 1 stride=2",
    "adaptive_avgpool 3", "adaptive_avgpool 1", "mul { in; global_avgpool }", "bn", "gn 1",
    "add { conv 1x1 4; conv 3x3 4 pad=same }", f"concat {{ {POINT}; adaptive_maxpool 1 }}",
]  # fmt: skip


@pytest.mark.parametrize("second", STEPS)
@pytest.mark.parametrize("first", STEPS)
def test_every_pair_of_operators_has_fields(first: str, second: str) -> None:
    for last in ("relu", POINT, "conv 3x3 4 pad=same", "global_avgpool"):
        graph = loads(f"input 4x6x6\n{first}\n{second}\n{last}\n")
        theoretical, seen = fields(graph)[graph.output], masks(graph)[graph.output]
        for bound, extent in zip(theoretical, center_extent(seen), strict=True):
            assert extent <= 6
            assert bound is None or extent <= bound, (first, second, last)
        summarize(graph, symbolic=True).to_json()


@pytest.mark.parametrize(
    ("layers", "field"),
    [
        (POINT, 1),
        (f"{POINT} | conv 3x3 4 pad=same", 1),
        (f"conv 3x3 4 pad=same | {POINT}", 3),
        (f"conv 3x3 4 pad=same | {POINT} | conv 3x3 4 pad=same | {POINT}", 3),
        (f"{POINT} | upsample 4 | conv 3x3 4 stride=2 | {POINT}", 1),
        (f"conv 3x3 4 stride=2 | pad 3 | {POINT} | upsample size=9x9 mode=bilinear | conv 5x5 4 pad=same", 3),
        (f"concat {{ conv 5x5 4 pad=same | {POINT}; {POINT} | conv 3x3 4 pad=same }}", 5),
    ],
)
def test_fields_of_maps_whose_positions_all_see_the_same(layers: str, field: int) -> None:
    graph = loads(f"input 4x16x16\n{layers}\n")
    assert fields(graph)[graph.output] == (field, field)


def test_branches_of_other_periods_see_what_both_see() -> None:
    graph = loads("input 3x32x32\nadd { conv 3x3 4 stride=2 | upsample 2; conv 5x5 4 }\n")
    assert fields(graph)[graph.output] == (5, 5)
    parts = loads("input 3x32x32\nadd { conv 3x3 4 stride=2 | upsample 2; conv 3x3 4 stride=4 | upsample 4 }\n")
    assert fields(parts)[parts.output] == (5, 5)


def test_a_place_between_those_of_a_transposed_convolution_sees_nothing() -> None:
    holes = "conv_transpose 1x1 1 stride=2"
    graph = loads(f"input 1x4x4\n{holes}\n")
    assert [len(masks(graph)[0]), center_extent(masks(graph)[0])] == [1, (0, 0)]
    many = "".join(f"    {holes} | conv {k}x{k} 1\n" for k in (1, 1, 3, 3))
    graph = loads(f"input 1x4x4\nadd {{\n    {holes}\n{many}    {holes}\n}}\n")
    assert center_extent(masks(graph)[graph.output]) == (2, 2)
    assert fields(graph)[graph.output] == (2, 2)


def test_very_many_paths_with_holes() -> None:
    branch = "    conv_transpose 1x1 1 stride=2\n"
    graph = loads(f"input 1x4x4\nadd {{\n{branch * 40}}}\n")
    assert len(masks(graph)[graph.output]) == 1


# --- gradients -----------------------------------------------------------------------------------


def spread(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil: bool) -> Tensor:
    """Return a matrix `[size, places]` that sums over the windows along an axis; torch slides the windows."""
    numbers = torch.arange(1.0, size + 1, dtype=torch.float64).view(1, 1, size, 1)
    places: list[Tensor] = []
    for row in range(size):
        one = torch.full_like(numbers, -1.0)
        one[0, 0, row] = numbers[0, 0, row]
        y = nn.functional.max_pool2d(one, (kernel, 1), (stride, 1), (pad, 0), (dilation, 1), ceil_mode=ceil)
        places.append((y.flatten() > 0).double())
    return torch.stack(places)


def linear_pool(layer: nn.MaxPool2d) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> Tensor:
        def pair(value: Any) -> tuple[int, int]:
            return value if isinstance(value, tuple) else (value, value)

        (x,) = inputs
        if isinstance(layer, SameMaxPool2d):
            x = SamePad.pad(x, layer.kernel_size, layer.stride, layer.dilation)
        sides = zip(
            x.shape[2:],
            *(pair(v) for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)),
            strict=True,
        )
        rows, columns = (spread(*side, layer.ceil_mode) for side in sides)
        return torch.einsum("nchw,hp,wq->ncpq", x, rows, columns)

    return hook


def plain(layer: StandardizedConv2d, inputs: tuple[Tensor], _: Tensor) -> Tensor:
    """The convolution without standardization, which would make equal weights 0."""
    window = layer.kernel_size, layer.stride, layer.dilation
    x = SamePad.pad(inputs[0], *window) if layer.same else inputs[0]
    return layer._conv_forward(x, layer.weight, layer.bias)


def linearise(module: nn.Module) -> None:
    """Makes a module a sum of what it reads with positive factors, so that no gradient cancels."""
    for name, weight in module.named_parameters():
        with torch.no_grad():
            weight.zero_() if name.endswith("bias") else weight.fill_(
                len(weight) / weight.numel() if weight.ndim else 1
            )
    for layer in module.modules():
        kind = type(layer).__name__
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(linear_pool(layer))
        elif isinstance(layer, StandardizedConv2d):
            layer.register_forward_hook(plain)
        elif isinstance(layer, nn.AdaptiveMaxPool2d):
            layer.register_forward_hook(lambda m, x, y: nn.functional.adaptive_avg_pool2d(x[0], m.output_size))
        elif isinstance(layer, AxisMax):
            layer.register_forward_hook(lambda m, x, y: x[0].mean(m.dim, keepdim=True))
        elif isinstance(layer, nn.GroupNorm | nn.InstanceNorm2d):
            layer.register_forward_hook(
                lambda m, x, y: x[0] + x[0].mean((2, 3), keepdim=True) if x[0].ndim == 4 else x[0]
            )
        elif isinstance(layer, nn.GLU):
            layer.register_forward_hook(lambda m, x, y: sum(x[0].chunk(2, 1)))
        elif isinstance(layer, nn.LayerNorm | nn.LocalResponseNorm | nn.Softmax | nn.ReLU | nn.ReLU6 | nn.Hardtanh) or (
            type(layer).__module__ == "torch.nn.modules.activation"
        ):
            if hasattr(layer, "inplace"):
                layer.inplace = False
            layer.register_forward_hook(lambda m, x, y: x[0])
        assert kind


def slice_of_all(op: Any, inputs: list[str]) -> str:
    """The channels of a map are taken together: those that a slice leaves away count, too."""
    return f"({NARROW(op, inputs)} + {inputs[0]}.mean(1, True))"


def values(graph: Graph, module: nn.Module, image: Tensor) -> dict[int, Tensor]:
    """What every node gives that has a module of its own, and the logits."""
    found: dict[int, Tensor] = {}
    uses: dict[str, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        if node.op.owns_module and node.aux is None:
            uses.setdefault(node.path, []).append(index)
    for path, indices in uses.items():
        module.get_submodule(path).register_forward_hook(
            lambda _, __, y, left=indices: found.__setitem__(left.pop(0), y)
        )
    output = module(*split_images(graph, image))
    found |= {index: output[name] for name, index in graph.taps.items()} if graph.taps else {graph.output: output}
    return found


def extent(marks: Tensor) -> int:
    """From the first mark to the last."""
    places = marks.nonzero()
    return int(places.max() - places.min()) + 1 if len(places) else 0


def hold_against_gradients(text: str) -> None:
    graph = loads(text)
    with patch.dict(EXPRESSIONS, mul=EXPRESSIONS["add"], slice=slice_of_all):
        # A factor of a product that is 0, all of it padding, would hide the others.
        module = build(graph).double().eval()
    linearise(module)
    image = torch.ones(1, *graph.input_shape, dtype=torch.float64, requires_grad=True)
    found, sight, field = values(graph, module, image), masks(graph), fields(graph)
    for index, y in found.items():
        one = y[0, :, y.shape[2] // 2, y.shape[3] // 2] if y.ndim == 4 else y
        if one.requires_grad:
            (gradient,) = torch.autograd.grad(one.sum(), image, retain_graph=True, allow_unused=True)
        else:
            gradient = None
        marks = torch.zeros(graph.input_shape[1:]) if gradient is None else gradient[0].abs().sum(0)
        marks = marks > 1e-9 * marks.max()
        seen = (extent(marks.any(1)), extent(marks.any(0)))
        assert center_extent(sight[index]) == seen, f"{graph.nodes[index].path}: {graph.nodes[index].op!r}\n{text}"
        for small, large in zip(seen, field[index], strict=True):
            assert large is None or small <= large, f"{graph.nodes[index].path}\n{text}"


@given(specs())
@example("input 1x1x2\nclasses 2\nl1: upsample size=3x3 mode=bilinear\nupsample size=1x1\nflatten | linear 2\n")
@QUICK
def test_gradients_agree(text: str) -> None:
    hold_against_gradients(text)


@pytest.mark.slow
@given(specs())
@LONG
def test_gradients_agree_on_very_many(text: str) -> None:
    hold_against_gradients(text)
