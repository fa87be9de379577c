"""Networks with several images, against modules of torch that are written by hand."""

# ruff: noqa: E402

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from analysis.test_cost import hold_against_torch
from backends.test_shared_modules import assert_equal_gradients
from backends.test_source import assert_equal, import_source
from harness.runs import COMMANDS, refuse
from torch import Tensor, fx, nn
from torch.nn import functional as F

from cnnspec import CnnspecError, Graph
from cnnspec.analysis.diff import compare
from cnnspec.analysis.summary import summarize
from cnnspec.api import build, loads
from cnnspec.backends.source import write_source
from cnnspec.backends.torch.module import split_images
from cnnspec.inference import export_network
from cnnspec.testing.oracle import compare_sizes_with_torch, compare_training_step, compare_with_torch, draw_sizes

pytestmark = pytest.mark.usefixtures("one_thread")

SIAMESE = """
network siamese
input before 3x16x16
input after 3x16x16
classes 2

block unit(c) {
    conv1: conv 3x3 c stride=2
    bn1: bn
    relu
}
encoder: { unit x2 8 }
other: @after | again @encoder
add { @encoder; @other | scale -1.0 shape=scalar bare name="sign" }
global_avgpool | flatten
fc: linear classes
train { normalize imagenet }
expect depth = 3
"""


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*(self.unit(before) for before in (3, 8)))
        self.sign = nn.Parameter(torch.tensor(-1.0))
        self.fc = nn.Linear(8, 2)

    @staticmethod
    def unit(before: int) -> nn.Module:
        unit = nn.Module()
        unit.conv1, unit.bn1 = nn.Conv2d(before, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        return unit

    def features(self, x: Tensor) -> Tensor:
        for unit in self.encoder:
            x = F.relu(unit.bn1(unit.conv1(x)))  # type: ignore[operator]
        return x

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        x = self.features(before)
        x = x + self.features(after) * self.sign
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


STEREO = """
network stereo
input left 3x16x24
input right 3x16x24

block correlation(right: tensor, d) {
    mul { in; @right | pad [d, -d, 0, 0] } | mean over=c
}

features: conv 5x5 8 stride=2 bias | relu
other: @right | again @features
cost: concat {
    @features | correlation @other 0
    @features | correlation @other 1
    @features | correlation @other 2
    @features
}
fuse: conv 3x3 8 bias
relu
disparity: upsample like=@left mode=bilinear | conv 3x3 1 bias
expect output = [1, 16, 24]
"""


class Stereo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU())
        self.fuse = nn.Conv2d(11, 8, 3, padding=1)
        self.disparity = nn.Sequential(nn.Identity(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        x, y = self.features(left), self.features(right)
        costs = [(x * F.pad(y, (d, -d))).mean(1, keepdim=True) for d in range(3)]
        fused = F.relu(self.fuse(torch.cat([*costs, x], 1)))
        return self.disparity(F.interpolate(fused, size=left.shape[2:], mode="bilinear"))


RGBD = """
network rgbd
input color 3x15x17
input depth 1x15x17
classes 4

block branch(c) {
    conv 3x3 c | bn | relu
    maxpool 3x3 stride=2 pad=1
}
rgb: branch 8
d: @depth | branch 4
mul { concat { @rgb; @d }; conv: conv 1x1 12 | sigmoid }
scores: conv 1x1 classes bias
wide: upsample like=@depth
output scores from @scores
output mask from @wide
"""


class Rgbd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.d = self.stem(3, 8), nn.Sequential(self.stem(1, 4))
        self.conv = nn.Sequential(nn.Conv2d(4, 12, 1, bias=False), nn.Sigmoid())
        self.scores = nn.Conv2d(12, 4, 1)

    @staticmethod
    def stem(before: int, c: int) -> nn.Sequential:
        conv = nn.Conv2d(before, c, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(c), nn.ReLU(), nn.MaxPool2d(3, 2, 1))

    def forward(self, color: Tensor, depth: Tensor) -> dict[str, Tensor]:
        rgb, d = self.rgb(color), self.d(depth)
        scores = self.scores(torch.cat([rgb, d], 1) * self.conv(d))
        return {"scores": scores, "mask": F.interpolate(scores, size=depth.shape[2:])}


CASES: dict[str, tuple[str, type[nn.Module]]] = {
    "siamese": (SIAMESE, Siamese),
    "stereo": (STEREO, Stereo),
    "rgbd": (RGBD, Rgbd),
}


def pair(name: str) -> tuple[Any, nn.Module, tuple[Tensor, ...]]:
    """The built module and the one written by hand, with the same weights, and two images for each input."""
    text, kind = CASES[name]
    torch.manual_seed(0)
    built, expected = build(loads(text)), kind()
    assert [*built.state_dict()] == [*expected.state_dict()] or {*built.state_dict()} == {*expected.state_dict()}
    expected.load_state_dict(built.state_dict())
    graph: Graph = built.graph
    return built, expected, tuple(torch.randn(2, *shape) for shape in graph.images.values())


def named(found: Any) -> dict[str, Tensor]:
    return found if isinstance(found, dict) else {"": found}


def same(found: Any, wanted: Any) -> bool:
    return [*named(found)] == [*named(wanted)] and all(map(torch.equal, named(found).values(), named(wanted).values()))


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_a_module_written_by_hand_computes(name: str) -> None:
    built, expected, images = pair(name)
    for training in (False, True, False):
        found, wanted = (module.train(training)(*images) for module in (built, expected))
        assert same(found, wanted)
    by_name = dict(zip(built.graph.images, images, strict=True))
    assert same(built(**dict(reversed(by_name.items()))), wanted)
    for module in (built, expected):
        sum((n + 1) * y.square().mean() for n, y in enumerate(named(module.train()(*images)).values())).backward()  # type: ignore[union-attr]
    assert_equal_gradients(built, expected)


@pytest.mark.parametrize("name", CASES)
def test_counts_sizes_and_shapes_are_those_of_torch(name: str) -> None:
    graph, rng = loads(CASES[name][0]), random.Random(0)
    compare_with_torch(graph, draw_sizes(graph, rng, 4))
    accepted, rejected = compare_sizes_with_torch(graph, [(h, w) for h in range(1, 14) for w in range(1, 14)])
    assert accepted
    assert (rejected > 0) == (name == "stereo")  # which moves the features by up to 2 pixels
    compare_training_step(graph)
    hold_against_torch(CASES[name][0])
    assert sum(row.activations for row in summarize(graph).rows if row.level == 1) <= summarize(graph).total.activations


@pytest.mark.parametrize("name", CASES)
def test_every_copy_returns_the_same(name: str) -> None:
    built, _, images = pair(name)
    assert_equal(built.graph)
    built.eval()
    copies = [copy.deepcopy(built), pickle.loads(pickle.dumps(built)), fx.symbolic_trace(built)]
    copies.append(torch.compile(built, backend="eager", fullgraph=True))
    for other in copies:
        assert same(other(*images), built(*images))


@pytest.mark.parametrize("form", ["torch", "pt2", "onnx"])
@pytest.mark.parametrize("name", CASES)
def test_files_take_all_images(name: str, form: Any, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    built, _, images = pair(name)
    built.eval()
    (tmp_path / "net.cnn").write_text(CASES[name][0])
    torch.save(built.state_dict(), tmp_path / "weights.pt")
    file = tmp_path / f"net.{({'torch': 'py'}).get(form, form)}"
    dynamic = () if form == "torch" else ("batch", "size")
    done = export_network(tmp_path / "net.cnn", file, form, weights=tmp_path / "weights.pt", dynamic=dynamic)
    assert done.relative <= done.tolerance
    assert done.images > 0
    if form == "onnx":
        import onnx

        assert [value.name for value in onnx.load(file).graph.input] == [*built.graph.images]
    elif form == "pt2":
        found = torch.export.load(file).module()(*images)
        assert all(map(torch.allclose, named(found).values(), named(built(*images)).values()))
    else:
        loaded = import_source(file.read_text()).eval()
        loaded.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
        assert same(loaded(**dict(zip(built.graph.images, images, strict=True))), built(*images))


def test_exports_with_options(tmp_path: Path) -> None:
    spec = tmp_path / "net.cnn"
    spec.write_text(SIAMESE)
    for form in ("torch", "pt2"):
        done = export_network(spec, tmp_path / f"net.{form}", form, half=True, fold=True)  # type: ignore[arg-type]
        assert done.relative <= done.tolerance
    with pytest.raises(CnnspecError) as refused:
        export_network(spec, tmp_path / "other.pt2", "pt2", with_preprocessing=True)
    (error,) = refused.value.diagnostics
    assert error.code == "E0522"
    assert "`before`, `after`" in error.message
    assert not (tmp_path / "other.pt2").exists()


NAMES = ["class", "self", "torch", "Outputs", "aux1", "range", "i", "x", "_left", "left", "left_", "__debug__", "half"]


def test_every_name_is_an_argument(tmp_path: Path) -> None:
    names = [*NAMES, *(f"image{number}" for number in range(7))]
    text = "network names\n" + "".join(f"input {name} 1x8x8\n" for name in names) + "classes 3\n"
    text += f"all: concat {{ in; {'; '.join(f'@{name}' for name in names[1:])} }} | conv 3x3 8 bias\n"
    text += "repeat 4 { add { in; conv 1x1 8 | relu } }\nlast: add { in; @i }\n".replace("@i", "@i | conv 1x1 8")
    text += (
        "global_avgpool | flatten | linear classes\naux side from @all { global_avgpool | flatten | linear classes }\n"
    )
    graph = loads(text)
    assert len({*graph.arguments}) == len(names)
    assert [graph.arguments[names.index(name)] for name in ("class", "left", "_left", "half")] == [
        *("class_", "left", "left__", "half")
    ]
    assert_equal(graph)
    built, source = build(graph), import_source(write_source(graph))
    source.load_state_dict(built.state_dict())
    images = split_images(graph, torch.randn(2, *graph.input_shape))
    wanted = built.eval()(*images)
    for module in (built, source.eval()):
        assert torch.equal(module(**dict(zip(graph.arguments, images, strict=True))), wanted)


def test_names_of_images_outputs_and_weights_are_free_in_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    spec = tmp_path / "net.cnn"
    spec.write_text(
        "input logits 3x8x8\ninput y 3x8x8\ninput relu 3x8x8\ninput b 3x8x8\n"
        'add { in; @y | relu; @relu; @b | scale bare name="y" }\nlast: conv 3x3 3 | conv 1x1 3 name="b"\n'
        "output logits from @last\noutput z from @last\n"
    )
    export_network(spec, tmp_path / "net.onnx", "onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [value.name for value in graph.input] == ["logits:0", "y", "relu", "b"]
    assert [value.name for value in graph.output] == ["logits", "z"]


def test_images_of_different_sizes_are_an_error() -> None:
    graph = loads(SIAMESE)
    built, source = build(graph).eval(), import_source(write_source(graph)).eval()
    before, after = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 32, 32)
    for module in (built, source):
        with pytest.raises(AssertionError, match="`before` and `after` must have one height and width"):
            module(before, after)
        assert module(after, after).shape == (1, 2)


def test_images_are_not_overwritten() -> None:
    built = build(loads("input a 3x8x8\ninput b 3x8x8\nrelu\nadd { in; @b | relu }\nconv 3x3 3\n"))
    images = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    copies = [image.clone() for image in images]
    built(*images)
    assert all(map(torch.equal, images, copies))


def test_features_keep_all_arguments() -> None:
    graph = loads(STEREO)
    built = build(graph, outputs=["features.0"])
    left, right = torch.randn(1, 3, 16, 24), torch.randn(1, 3, 16, 24)
    assert built(left, right)["features.0"].shape == (1, 8, 8, 12)


def test_networks_differ_by_the_names_and_the_order_of_images() -> None:
    graph = loads(RGBD)
    renamed = loads(RGBD.replace("depth", "range"))
    text = RGBD.replace("input color 3x15x17\ninput depth 1x15x17", "input depth 1x15x17\ninput color 3x15x17")
    swapped = loads(text.replace("rgb: branch", "rgb: @color | branch"))
    assert compare(graph, loads(RGBD)).same
    for other in (renamed, swapped):
        assert [change.path for change in compare(graph, other).changes if change.kind == "changed"][:1] == ["input"]


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_not_trained(command: str, tmp_path: Path) -> None:
    text = (
        "input left 1x28x28\ninput right 2x28x28\nclasses 10\n"
        "concat { in; @right } | global_avgpool | flatten | linear classes\n"
    )
    error = refuse(command, text, tmp_path)
    assert error.span is not None
    assert error.span.text == "right"
    assert "`left`, `right`" in error.message
