"""Every shape rule against torch, on a grid of settings and sizes: what torch gives, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cnnspec.backends.torch.layers import SamePad
from cnnspec.diagnostics.suggestions import OneOf, SetArgument
from cnnspec.ops import JOINS, OPS, Op, ShapeError
from cnnspec.schema import Interval
from cnnspec.shapes import Shape, Shift, Window, differing_axes, is_map, join_words, numel, same_padding, text

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

Grid = dict[str, list[Any]]
MAPS: list[Shape] = [(c, h, w) for c in (4, 6) for h, w in [(1, 1), (1, 4), (2, 3), (3, 2), (4, 7), (5, 5), (9, 8)]]
FLAT: list[Shape] = [(1,), (6,), (12,)]


def both(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def grid(settings: Grid) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*settings.values()):
        yield dict(zip(settings, values, strict=True))


def conv(x: Any, kernel: Any, c: int, stride: Any, pad: Any, dilation: Any, groups: int) -> Any:
    weight = torch.empty(c, x.shape[1] // groups, *kernel, device="meta")
    if pad == "tf_same":
        x, pad = SamePad.pad(x, kernel, stride, dilation), 0
    if c % groups or x.shape[1] % groups:
        raise ValueError("groups")
    return F.conv2d(x, weight, None, stride, pad, dilation, groups)


def conv_transpose(x: Any, kernel: Any, c: int, stride: Any, pad: Any, out_pad: Any, dilation: Any, groups: int) -> Any:
    if c % groups or x.shape[1] % groups:
        raise ValueError("groups")
    x = torch.zeros(x.shape)  # the meta device does not hold `out_pad` against the stride
    weight = torch.zeros(x.shape[1], c // groups, *kernel)
    return F.conv_transpose2d(x, weight, None, stride, pad, out_pad, groups, dilation)


def crop(x: Any, amounts: tuple[int, ...], mode: str) -> Any:
    sides = {1: lambda a: (a,) * 4, 2: lambda h, w: (w, w, h, h), 4: lambda *a: a}[len(amounts)](*amounts)
    if mode != "constant" and min(sides) < 0:
        raise ValueError("crop")
    return F.pad(x, sides, mode=mode)


def maxpool(x: Any, kernel: Any, stride: Any, pad: Any, dilation: Any, ceil: bool) -> Any:
    y = F.max_pool2d(torch.zeros(x.shape), kernel, stride, pad, dilation, ceil)
    if y.isneginf().any():  # a window of padding alone, whose gradient torch writes outside of the tensor
        raise ValueError("padding")
    return y


def blurpool(x: Any, kernel: Any, stride: Any, pad: Any, mode: str) -> Any:
    x = F.pad(x, (pad[1], pad[1], pad[0], pad[0]), mode=mode)
    return F.conv2d(x, torch.empty(x.shape[1], 1, *kernel, device="meta"), stride=stride, groups=x.shape[1])


def narrow(x: Any, range: Interval) -> Any:
    low, high = int(range[0]), int(range[1])
    if high <= low:
        raise ValueError("empty")
    return torch.narrow(x, 1, low, high - low)


def linear(x: Any, c: int, pointwise: bool) -> Any:
    if pointwise != (x.ndim == 4):
        raise ValueError("flat")
    y = F.linear(x.movedim(1, -1), torch.empty(c, x.shape[1], device="meta"))
    return y.movedim(-1, 1)


def channel_conv(x: Any, kernel: int) -> Any:
    y = x.movedim(1, -1).reshape(-1, 1, x.shape[1])
    y = F.conv1d(y, torch.empty(1, 1, kernel, device="meta"), padding=kernel // 2)
    return y.reshape(x.movedim(1, -1).shape).movedim(-1, 1)


def part_softmax(x: Any, parts: int | None) -> Any:
    return x.softmax(1) if parts is None else x.unflatten(1, (parts, x.shape[1] // parts)).softmax(1).flatten(1, 2)


def hardtanh(x: Any, low: float, high: float) -> Any:
    return torch.nn.Hardtanh(low, high)(x)


def learned(x: Any, shape: str, bare: bool) -> Any:
    sizes = {"channel": (x.shape[1], *(1,) * (x.ndim - 2)), "map": (x.shape[1], 1, 1), "batch": (1, x.shape[1], 1, 1)}
    y = x * torch.empty(sizes.get(shape, (1,)), device="meta")
    if y.shape != x.shape:
        raise ValueError("broadcast")
    return y


SIZES = [(1, 1), (3, 3), (2, 3)]
RULES: dict[str, tuple[Grid, Callable[..., Any], list[Shape]]] = {
    "conv": (
        {"kernel": SIZES, "c": [4, 6], "stride": [(1, 1), (2, 3)], "pad": [(0, 0), (1, 2), "tf_same"],
         "dilation": [(1, 1), (2, 1)], "groups": [1, 2, 4]},
        conv, MAPS,
    ),
    "conv_transpose": (
        {"kernel": SIZES, "c": [4, 6], "stride": [(1, 1), (2, 3)], "pad": [(0, 0), (1, 2)], "out_pad": [(0, 0), (1, 0)],
         "dilation": [(1, 1), (2, 3)], "groups": [1, 2, 3]},
        conv_transpose, MAPS,
    ),
    "maxpool": (
        {"kernel": [*SIZES, (2, 4)], "stride": [(1, 1), (2, 3), (4, 4)], "pad": [(0, 0), (0, 1), (1, 1), (1, 2)],
         "dilation": [(1, 1), (2, 1), (3, 4)], "ceil": [False, True]},
        maxpool, MAPS,
    ),
    "avgpool": (
        {"kernel": SIZES, "stride": [(1, 1), (2, 3), (4, 4)], "pad": [(0, 0), (0, 1), (1, 1)], "ceil": [False, True]},
        lambda x, kernel, stride, pad, ceil: F.avg_pool2d(x, kernel, stride, pad, ceil), MAPS,
    ),
    "blurpool": (
        {"kernel": [*SIZES, (4, 5), (2, 2)], "stride": [(1, 1), (2, 3)], "pad": [(0, 0), (1, 2), (4, 3)],
         "mode": ["constant", "reflect", "replicate", "circular"]},
        blurpool, MAPS,
    ),
    "global_avgpool": ({}, lambda x: F.adaptive_avg_pool2d(x, 1), MAPS),
    "global_maxpool": ({}, lambda x: F.adaptive_max_pool2d(x, 1), MAPS),
    "adaptive_avgpool": ({"size": SIZES}, lambda x, size: F.adaptive_avg_pool2d(x, size), MAPS),
    "adaptive_maxpool": ({"size": SIZES}, lambda x, size: F.adaptive_max_pool2d(x, size), MAPS),
    "upsample": ({"factor": [(1, 1), (2, 3)]}, lambda x, factor: F.interpolate(x, scale_factor=factor), MAPS),
    "mean": ({"over": list("chw")}, lambda x, over: x.mean(1 + "chw".index(over), keepdim=True), [*MAPS, *FLAT]),
    "max": ({"over": list("chw")}, lambda x, over: x.amax(1 + "chw".index(over), keepdim=True), [*MAPS, *FLAT]),
    "pixel_shuffle": ({"factor": [1, 2, 3]}, lambda x, factor: F.pixel_shuffle(x, factor), MAPS),
    "pixel_unshuffle": ({"factor": [1, 2, 3, 4]}, lambda x, factor: F.pixel_unshuffle(x, factor), MAPS),
    "channel_shuffle": ({"groups": [1, 2, 3, 4]}, lambda x, groups: F.channel_shuffle(x, groups), MAPS),
    "pad": (
        {"amounts": [(0,), (2,), (-1,), (1, 2), (0, -1), (1, 2, 0, 3), (-1, 2, 3, -2), (-2, -1, 0, 0), (5, -4, 0, 0),
                     (0, 0, -4, 3), (-9, 9, 0, 0), (3, 3, 2, 0), (5, 0, 0, 4), (0, 0, 0, 0)],
         "mode": ["constant", "reflect", "replicate", "circular"]},
        crop, MAPS,
    ),
    "slice": (
        {"range": [Interval(pair) for pair in ((0, 1), (0, 4), (2, 4), (3, 6), (4, 12), (0, 13), (2, 2))]},
        narrow, [*MAPS, *FLAT],
    ),
    "flatten": ({}, lambda x: torch.flatten(x, 1), [*MAPS, *FLAT]),
    "linear": ({"c": [1, 5], "pointwise": [False, True]}, linear, [*MAPS, *FLAT]),
    "scale": ({"shape": ["channel", "map", "batch", "one", "scalar"], "bare": [False, True]}, learned, [*MAPS, *FLAT]),
    "shift": ({"shape": ["channel", "map", "batch", "one", "scalar"], "bare": [False, True]}, learned, [*MAPS, *FLAT]),
    "gn": ({"groups": [1, 2, 3, 4, 6]}, lambda x, groups: F.group_norm(x, groups), [*MAPS, *FLAT]),
    "in_norm": ({}, lambda x: F.instance_norm(x), MAPS),
    "lrn": ({"size": [1, 2, 5]}, lambda x, size: F.local_response_norm(x, size), MAPS),
    "prelu": (
        {"num_parameters": [1, 4, 6]},
        lambda x, num_parameters: F.prelu(x, torch.empty(num_parameters, device="meta")), [*MAPS, *FLAT],
    ),
    "channel_conv": ({"kernel": [1, 2, 3, 4, 9]}, channel_conv, [*MAPS, *FLAT]),
    "softmax": ({"parts": [None, 2, 3, 5]}, part_softmax, [*MAPS, *FLAT]),
    "hardtanh": ({"low": [-1.0, 0.0, 2.0], "high": [1.0, 2.0]}, hardtanh, [*MAPS, *FLAT]),
    "shake_shake": ({}, lambda x: F.glu(x, 1), MAPS),
    "glu": ({}, lambda x: F.glu(x, 1), MAPS),
    "dropout2d": ({}, lambda x: F.dropout2d(x), MAPS),
}  # fmt: skip


def shape_of(rule: Callable[[], Shape]) -> Shape | None:
    try:
        return rule()
    except ShapeError:
        return None


def torch_shape(function: Callable[..., Any], x: Shape, settings: dict[str, Any]) -> Shape | None:
    """What torch gives; a tensor without numbers counts as refused, for the language has none."""
    try:
        shape = tuple(function(torch.empty(1, *x, device="meta"), **settings).shape[1:])
    except (AssertionError, RuntimeError, ValueError, IndexError):
        return None
    return shape if min(shape) > 0 else None


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_that_of_torch(name: str) -> None:
    settings, function, inputs = RULES[name]
    given = refused = 0
    for values in grid(settings):
        op = OPS[name](**values)
        for x in inputs:
            expected = torch_shape(function, x, values)
            found = shape_of(lambda op=op, x=x: op.infer(x))
            assert found == expected, f"{op!r} of {x}"
            given += expected is not None
            refused += expected is None
            if found is not None and is_map(x) and is_map(found):
                assert op.resized(x[1], x[2]) == found[1:]
                if x[1:] == found[1:] == (1, 1) or not op.needs_places(x):
                    continue
                assert x[1:] != (1, 1)
    assert given
    assert refused or name not in ("conv", "conv_transpose", "maxpool", "avgpool", "pad", "slice", "gn", "prelu")


def suggested(error: ShapeError, kind: type[Op]) -> list[tuple[str, Any]]:
    """The arguments that the suggestion of an error sets."""
    options = error.suggestion.options if isinstance(error.suggestion, OneOf) else (error.suggestion,)
    found = [option for option in options if isinstance(option, SetArgument)]
    return [(option.name, value_of(kind, option.name, str(option.value))) for option in found]


def value_of(kind: type[Op], name: str, code: str) -> Any:
    if code in kind.parameters[name].type.words:
        return code
    if name == "range":
        low, high = map(int, code.split(".."))
        return Interval((low, high))
    parts = tuple(map(int, code.split("x")))
    return both(parts[0] if len(parts) == 1 else parts) if kind.parameters[name].type.kind == "size" else parts[0]


@pytest.mark.parametrize("name", RULES)
def test_suggested_values_are_accepted_and_bounds_are_tight(name: str) -> None:
    settings, _, inputs = RULES[name]
    tried = 0
    extra = {"pad": [(3, 1), (1, 3)], "out_pad": [(2, 0), (1, 3)], "groups": [5], "dilation": [(3, 1), (1, 2)]}
    wider = {key: [*values, *(extra.get(key, []) if values[0] != (0,) else [])] for key, values in settings.items()}
    for values, x in itertools.product(grid(wider), inputs):
        try:
            OPS[name](**values).infer(x)
        except ShapeError as error:
            for argument, value in suggested(error, OPS[name]):
                tried += 1
                fixed = {**values, argument: value}
                again = error_of(OPS[name](**fixed), x)
                assert again is None or again.argument != argument, (values, x, value)
                if isinstance(value, tuple) and again is None and not isinstance(value, Interval):
                    for axis in (0, 1):
                        more = tuple(part + (i == axis) for i, part in enumerate(value))
                        unsure = values.get("ceil") and values["stride"][axis] == values["kernel"][axis]
                        at_limit = more[axis] <= values[argument][axis] and not unsure
                        assert not at_limit or error_of(OPS[name](**{**values, argument: more}), x), (values, x, more)
    assert tried or name not in ("conv", "conv_transpose", "maxpool", "avgpool", "channel_shuffle", "gn", "prelu")


def error_of(op: Op, x: Shape) -> ShapeError | None:
    try:
        op.infer(x)
    except ShapeError as error:
        return error
    return None


def test_every_operator_with_a_rule_of_its_own_is_on_the_grid() -> None:
    own = {name for name, kind in OPS.items() if kind.infer is not OPS["relu"].infer}
    assert own == set(RULES)


@pytest.mark.parametrize("name", sorted(set(OPS) - {"flatten", "linear"}))
def test_what_needs_a_map_says_so(name: str) -> None:
    required = {
        "kernel": (1, 1),
        "c": 4,
        "factor": 1 if name in ("pixel_shuffle", "pixel_unshuffle") else (1, 1),
        "groups": 1,
        "size": (1, 1),
    }
    required |= {"amounts": (0,), "range": Interval((0, 1)), "p": 0.5, "over": "c"}
    if name in ("times", "lrn", "channel_conv"):
        required |= {"factor": 1.0, "size": 1, "kernel": 1}
    kind = OPS[name]
    op = kind(**{p: required[p] for p, parameter in kind.parameters.items() if parameter.required or p == "factor"})
    takes_flat = name not in RULES or any(len(x) == 1 for x in RULES[name][2])
    found = shape_of(lambda: op.infer((6,)))
    assert (found is not None) == takes_flat
    if found is None:
        with pytest.raises(ShapeError, match=f"`{name}` expects a feature map") as caught:
            op.infer((6,))
        assert caught.value.code == "E0308"


def test_depthwise_convolutions() -> None:
    kind = OPS["conv"]
    assert kind(kernel=(3, 3), depthwise=True).infer((6, 5, 5)) == (6, 5, 5)
    assert kind(kernel=(3, 3), depthwise=True, c=12).weights((6, 5, 5)) == {"weight": (12, 1, 3, 3)}
    assert kind(kernel=(3, 3), depthwise=True, c=12).macs((6, 5, 5), (12, 5, 5)) == 12 * 25 * 9
    padding = "or set the padding explicitly"
    for wrong, code, help in (
        (kind(kernel=(3, 3), depthwise=True, groups=2), "E0215", "remove one of them"),
        (kind(kernel=(3, 3), depthwise=True, c=8), "E0306", "write `c=6`, or remove `c` for 6 output channels"),
        (kind(kernel=(3, 3), depthwise=True, c=10), "E0306", "write `c=12`, or remove `c` for 6 output channels"),
        (kind(kernel=(3, 3)), "E0203", "add the number of output channels, such as `c=16`"),
        (kind(kernel=(2, 3), c=4), "E0305", f"use a kernel size of 3x3, {padding}: `pad=1` or `pad=0`"),
        (kind(kernel=(4, 1), c=4), "E0305", f"use a kernel size of 5x1, {padding}: `pad=0`"),
    ):
        with pytest.raises(ShapeError) as caught:
            wrong.infer((6, 5, 5))
        assert (caught.value.code, caught.value.help) == (code, help)


def test_same_padding_keeps_the_size() -> None:
    for kernel, dilation in itertools.product((1, 3, 5, 7), (1, 2, 3)):
        rule = Window(kernel, 1, same_padding(kernel, dilation), dilation)
        assert [rule(size) for size in range(1, 12)] == list(range(1, 12))
        assert OPS["conv"](kernel=(kernel, kernel), c=1, dilation=(dilation, dilation)).infer((1, 9, 7)) == (1, 9, 7)


def test_least_size_is_the_first_whose_windows_all_contain_a_position() -> None:
    for kernel, stride, dilation, ceil in itertools.product(range(1, 6), range(1, 9), range(1, 6), (False, True)):
        for pad in range(kernel // 2 + 1):
            rule = Window(kernel, stride, pad, dilation, ceil, filled=False)
            fits = [
                rule(size) >= 1 and all(any(0 <= place < size for place in window) for window in rule.reads(size))
                for size in range(1, 25)
            ]
            assert fits == [size >= rule.least for size in range(1, 25)], rule


def test_weights_and_multiply_adds_are_those_of_torch() -> None:
    nn = torch.nn
    x = (6, 9, 8)
    pairs: list[tuple[Op, Any, Shape]] = [
        (OPS["conv"](kernel=(3, 2), c=4, groups=2, bias=True, pad=(0, 0)), nn.Conv2d(6, 4, (3, 2), groups=2), x),
        (OPS["conv"](kernel=(3, 3), c=4), nn.Conv2d(6, 4, 3, bias=False), x),
        (OPS["conv_transpose"](kernel=(3, 2), c=4, groups=2), nn.ConvTranspose2d(6, 4, (3, 2), groups=2), x),
        (OPS["conv_transpose"](kernel=(3, 2), c=4, bias=False), nn.ConvTranspose2d(6, 4, (3, 2), bias=False), x),
        (OPS["linear"](c=5), nn.Linear(6, 5), (6,)),
        (OPS["linear"](c=5, bias=False), nn.Linear(6, 5, bias=False), (6,)),
        (OPS["bn"](), nn.BatchNorm2d(6), x),
        (OPS["bn"](affine=False), nn.BatchNorm2d(6, affine=False), x),
        (OPS["gn"](groups=2), nn.GroupNorm(2, 6), x),
        (OPS["gn"](groups=2, affine=False), nn.GroupNorm(2, 6, affine=False), x),
        (OPS["ln"](), nn.LayerNorm(6), x),
        (OPS["ln"](affine=False), nn.LayerNorm(6, elementwise_affine=False), x),
        (OPS["in_norm"](affine=True), nn.InstanceNorm2d(6, affine=True), x),
        (OPS["in_norm"](), nn.InstanceNorm2d(6), x),
        (OPS["prelu"](num_parameters=6), nn.PReLU(6), x),
        (OPS["scale"](), nn.ParameterDict({"weight": torch.empty(6)}), x),
    ]
    for op, module, entering in pairs:
        assert op.weights(entering) == {name: tuple(w.shape) for name, w in module.named_parameters()}, repr(op)
    assert OPS["conv"](kernel=(3, 2), c=4, groups=2, pad=(0, 0)).macs(x, (4, 7, 7)) == 4 * 7 * 7 * 3 * 3 * 2
    assert OPS["conv_transpose"](kernel=(3, 2), c=4, groups=2).macs(x, (4, 11, 9)) == 6 * 9 * 8 * 2 * 3 * 2
    assert OPS["linear"](c=5).macs((6,), (5,)) == 30
    assert OPS["relu"]().macs(x, x) == 0


JOINED: list[tuple[Shape, ...]] = [
    ((4, 3, 3), (4, 3, 3)), ((4, 3, 3), (2, 3, 3)), ((4, 3, 3), (4, 3, 2)), ((4, 3, 3), (4, 2, 3)),
    ((4, 3, 3), (4, 1, 1)),
    ((4, 3, 3), (1, 3, 3)), ((1, 3, 3), (4, 1, 1)), ((4, 1, 3), (4, 3, 3)), ((6,), (6,)), ((6,), (1,)), ((6,), (2,)),
    ((4, 3, 3), (4, 3, 3), (4, 3, 3)), ((4, 3, 3), (4, 3, 3), (3, 3, 3)), ((4, 3, 3), (36,)),
    ((4, 1, 1), (1, 3, 3), (4, 3, 3)),
]  # fmt: skip


def joined(kind: str, *inputs: Shape) -> Shape | None:
    """Return the shape in torch if the language allows the join; it broadcasts only in `mul`, and not every axis."""
    tensors = [torch.empty(1, *shape, device="meta") for shape in inputs]
    if len({len(shape) for shape in inputs}) > 1 or (kind == "add" and len(set(inputs)) > 1):
        return None
    if len({shape[1:] for shape in inputs} - {(1, 1)}) > 1 and kind == "mul":
        return None
    try:
        if kind == "concat":
            return tuple(torch.cat(tensors, 1).shape[1:])
        result = tensors[0]
        for other in tensors[1:]:
            result = result + other if kind == "add" else result * other
        return tuple(result.shape[1:])
    except RuntimeError:
        return None


@pytest.mark.parametrize("kind", JOINS)
def test_a_join_is_that_of_torch(kind: str) -> None:
    for inputs in JOINED:
        found = shape_of(lambda inputs=inputs: JOINS[kind]().infer(*inputs))
        assert found == joined(kind, *inputs), inputs


def test_words_about_shapes() -> None:
    assert text((64, 16, 8)) == "[N, 64, 16, 8]"
    assert numel((64, 16, 8)) == 8192
    assert differing_axes([(4, 3, 3), (4, 3, 2)]) == ["width"]
    assert differing_axes([(4, 3, 3), (5, 2, 3)]) == ["channels", "height"]
    assert differing_axes([(4,), (5,)]) == ["features"]
    assert differing_axes([(4,), (5, 1, 1)]) == []
    assert [join_words(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert Shift(-2, 1).least == 2
    assert Shift(-2, -2).least == 5
    assert Shift(3, 0).least == 1


@pytest.mark.parametrize(("before", "after"), [(2, 1), (-1, 2), (1, -2), (-2, -1)])
def test_places_that_padding_reads_are_those_of_torch(before: int, after: int) -> None:
    padded = F.pad(torch.arange(6) + 1, (before, after)).tolist()  # 0 where it is padding
    places = [place for (place,) in Shift(before, after).reads(6)]
    assert [place + 1 if 0 <= place < 6 else 0 for place in places] == padded


def test_how_much_an_operator_thins_out_a_map() -> None:
    x = (4, 8, 6)
    assert OPS["conv"](kernel=(3, 3), c=4, stride=(2, 1)).reduction(x, (4, 4, 6)) == (2, 1)
    assert OPS["global_avgpool"]().reduction(x, (4, 1, 1)) == (8, 6)
    assert [float(part) for part in OPS["upsample"](factor=(2, 4)).reduction(x, (4, 16, 24))] == [0.5, 0.25]
    assert OPS["flatten"]().reduction(x, (192,)) == (1, 1)
    assert OPS["relu"]().reduction(x, x) == (1, 1)
