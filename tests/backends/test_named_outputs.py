"""Networks with named outputs, against modules of torch that are written by hand and return a dict."""

# ruff: noqa: E402

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from analysis.test_cost import hold_against_torch
from backends.test_shared_modules import assert_equal_gradients
from backends.test_source import assert_equal, import_source
from harness.runs import COMMANDS, refuse
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.retinanet import RetinaNetClassificationHead

import cnnspec
from cnnspec import CnnspecError, Model
from cnnspec.analysis.diff import compare
from cnnspec.analysis.summary import summarize
from cnnspec.api import build, load, loads
from cnnspec.backends.source import write_source
from cnnspec.backends.torch.folding import fold
from cnnspec.inference import export_network
from cnnspec.testing.oracle import compare_sizes_with_torch, compare_training_step, compare_with_torch, draw_sizes

pytestmark = pytest.mark.usefixtures("one_thread")


def conv_bn(before: int, c: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU())


class Unit(nn.Module):
    def __init__(self, before: int, c: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        self.downsample = nn.Sequential(nn.Conv2d(before, c, 1, stride, bias=False), nn.BatchNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class Pyramid(nn.Module):
    """A feature pyramid over the last three stages of a small ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.body = nn.ModuleDict({f"c{n}": Unit(8 * (n - 2) or 8, 8 * (n - 1), 2) for n in (3, 4, 5)})
        self.inner = nn.ModuleList(nn.Conv2d(8 * (n - 1), 8, 1) for n in (3, 4, 5))
        self.layer = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c3 = self.body["c3"](self.stem(x))
        c4 = self.body["c4"](c3)
        c5 = self.body["c5"](c4)
        m5 = self.inner[2](c5)
        p5 = self.layer[2](m5)
        m4 = self.inner[1](c4)
        m4 = m4 + F.interpolate(m5, size=m4.shape[2:])
        p4 = self.layer[1](m4)
        m3 = self.inner[0](c3)
        m3 = m3 + F.interpolate(m4, size=m3.shape[2:])
        return {"p3": self.layer[0](m3), "p4": p4, "p5": p5}


class Supervised(nn.Module):
    """A U-Net that predicts at each of its scales: deep supervision."""

    def __init__(self) -> None:
        super().__init__()
        self.d1, self.d2, self.d3 = conv_bn(1, 4), conv_bn(4, 8), conv_bn(8, 16)
        self.u2, self.u1 = conv_bn(24, 8), conv_bn(12, 4)
        self.heads = nn.ModuleList(nn.Conv2d(c, 2, 1) for c in (4, 8, 16))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        d1 = self.d1(x)
        d2 = self.d2(F.max_pool2d(d1, 2))
        d3 = self.d3(F.max_pool2d(d2, 2))
        u2 = self.u2(torch.cat([F.interpolate(d3, size=d2.shape[2:]), d2], 1))
        u1 = self.u1(torch.cat([F.interpolate(u2, size=d1.shape[2:]), d1], 1))
        return {"0": self.heads[0](u1), "1": self.heads[1](u2), "2": self.heads[2](d3)}


class TwoHeads(nn.Module):
    """A classifier with two heads, and its features, one of them the input of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 2)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.animal, self.color = nn.Linear(8, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        before = self.conv(self.stem(x))
        features = F.adaptive_avg_pool2d(F.relu(before), 1).flatten(1)
        animal = self.animal(features)
        color = self.color(features)
        return {
            "color": color,
            "animal": animal,
            "maps.raw": before,
            "features": features,
            "again": color,
        }


class Case(NamedTuple):
    text: str
    module: type[nn.Module]


CASES = {
    "pyramid": Case(
        """
        network pyramid
        input 3x32x24
        block unit(c, stride = 1) {
            add {
                {
                    conv1: conv 3x3 c stride=stride
                    bn1: bn
                    relu
                    conv2: conv 3x3 c
                    bn2: bn
                }
                downsample: conv 1x1 c stride=stride | bn
            }
            relu
        }
        stem: conv 3x3 8 | bn | relu
        body.c3: unit 16 stride=2
        body.c4: unit 24 stride=2
        body.c5: unit 32 stride=2
        inner.2: conv 1x1 8 bias
        layer.2: conv 3x3 8 bias
        @body.c4
        inner.1: conv 1x1 8 bias
        m4: add { in; @inner.2 | upsample like=in }
        layer.1: conv 3x3 8 bias
        @body.c3
        inner.0: conv 1x1 8 bias
        add { in; @m4 | upsample like=in }
        layer.0: conv 3x3 8 bias
        output p3 from @layer.0
        output p4 from @layer.1
        output p5 from @layer.2
        """,
        Pyramid,
    ),
    "supervised": Case(
        """
        input 1x16x20
        d1: conv 3x3 4 | bn | relu
        maxpool 2
        d2: conv 3x3 8 | bn | relu
        maxpool 2
        d3: conv 3x3 16 | bn | relu
        concat { upsample like=@d2; @d2 }
        u2: conv 3x3 8 | bn | relu
        concat { upsample like=@d1; @d1 }
        u1: conv 3x3 4 | bn | relu
        heads.0: conv 1x1 2 bias
        @u2
        heads.1: conv 1x1 2 bias
        @d3
        heads.2: conv 1x1 2 bias
        output 0 from @heads.0
        output 1 from @heads.1
        output 2 from @heads.2
        """,
        Supervised,
    ),
    "two heads": Case(
        """
        input 3x12x10
        stem: conv 3x3 8 stride=2 | bn | relu
        conv: conv 3x3 8
        features: relu | global_avgpool | flatten
        animal: linear 5
        @features
        color: linear 3
        output color from @color
        output animal from @animal
        output maps.raw from @conv
        output features from @features
        output again from @color
        """,
        TwoHeads,
    ),
}
"""Specs, each with a module that is written by hand and has the same keys."""


def network(name: str) -> Any:
    return loads(CASES[name].text)


def pair(name: str) -> tuple[Any, nn.Module, Tensor]:
    """Return the built module, the one that is written by hand with the same weights, and images."""
    built, expected = build(network(name)), CASES[name].module()
    assert set(built.state_dict()) == set(expected.state_dict())
    built.load_state_dict(expected.state_dict())
    return built, expected, torch.randn(3, *built.graph.input_shape, generator=torch.Generator().manual_seed(0))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return [*found] == [*wanted] and all(torch.equal(found[key], wanted[key]) for key in wanted)


def close(name: str, found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_a_module_written_by_hand_computes(name: str) -> None:
    built, expected, x = pair(name)
    for training in (False, True, False):
        found, wanted = (module.train(training)(x) for module in (built, expected))
        assert type(found) is dict
        assert same(found, wanted)
    for module in (built, expected):
        sum((n + 1) * y.square().mean() for n, y in enumerate(module.train()(x).values())).backward()  # type: ignore[union-attr]
    assert_equal_gradients(built, expected)


@pytest.mark.parametrize("name", CASES)
def test_counts_sizes_and_shapes_are_those_of_torch(name: str) -> None:
    graph, rng = network(name), random.Random(0)
    compare_with_torch(graph, draw_sizes(graph, rng, 4))
    accepted, rejected = compare_sizes_with_torch(graph, [(h, w) for h in range(1, 24) for w in range(1, 24)])
    assert accepted
    assert rejected == (23 * 23 - 20 * 20 if name == "supervised" else 0)
    compare_training_step(graph)
    hold_against_torch(CASES[name].text)
    for size in draw_sizes(graph, rng, 4):
        at, symbolic = graph.at(*size), graph.symbolic
        assert at.macs == symbolic.macs(*size)
        evaluated = {
            key: tuple(side if isinstance(side, int) else side(*size) for side in shape)
            for key, shape in symbolic.output_shapes.items()
        }
        assert evaluated == at.output_shapes


@pytest.mark.parametrize("name", CASES)
def test_every_copy_returns_the_same(name: str) -> None:
    graph = network(name)
    assert_equal(graph)
    built = build(graph).eval()
    x = torch.randn(2, *graph.input_shape)
    for other in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert same(other(x), built(x))
    close(name, fold(built)(x), built(x))
    again = cnnspec.Model.model_validate_json(graph.model.model_dump_json())
    assert again == graph.model
    assert [output.name for output in again.outputs] == [*graph.taps]
    assert loads(cnnspec.format(CASES[name].text)) == graph
    stored = json.loads(json.dumps(graph.to_json()))
    assert stored["outputs"] == graph.taps


@pytest.mark.parametrize("form", ["torch", "pt2", "onnx"])
@pytest.mark.parametrize("name", CASES)
def test_files_return_the_same(name: str, form: Any, tmp_path: Path) -> None:
    """The export loads each file in its own runtime, and compares names, shapes and values."""
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    spec, weights = tmp_path / "net.cnn", tmp_path / "weights.pt"
    spec.write_text(CASES[name].text)
    built, _, x = pair(name)
    torch.save(built.state_dict(), weights)
    file = tmp_path / f"net.{({'torch': 'py'}).get(form, form)}"
    done = export_network(spec, file, form, weights=weights)
    assert done.relative <= done.tolerance
    names = [*built.graph.taps]
    if form == "onnx":
        import onnx

        assert [value.name for value in onnx.load(file).graph.output] == names
    elif form == "pt2":
        found, wanted = torch.export.load(file).module()(x[:1]), built.eval()(x[:1])
        assert [*found] == names
        close(name, found, wanted)
    else:
        loaded = import_source(file.read_text()).eval()
        loaded.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
        assert same(loaded(x), built.eval()(x))


def test_names_of_inputs_and_weights_are_free_in_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    spec = tmp_path / "net.cnn"
    spec.write_text(
        "input 3x8x8\nconv: conv 3x3 4 bias\nadd { in; conv 1x1 4 }\nlast: relu\nflat: flatten\n"
        "output images from @conv\noutput conv.weight from @last\noutput logits from @conv\noutput add from @flat\n"
        "output flatten from @flat\noutput relu from @last\n"
    )
    export_network(spec, tmp_path / "net.onnx", "onnx")
    names = ["images", "conv.weight", "logits", "add", "flatten", "relu"]
    assert [value.name for value in onnx.load(tmp_path / "net.onnx").graph.output] == names


def test_exports_with_options(tmp_path: Path) -> None:
    spec = tmp_path / "net.cnn"
    spec.write_text(CASES["pyramid"].text + "\ntrain { normalize imagenet }\n")
    for form, options in (
        ("torch", {"half": True, "fold": True}),
        ("pt2", {"with_preprocessing": True, "dynamic": ["batch"]}),
    ):
        done = export_network(spec, tmp_path / f"net.{form}", form, **options)  # type: ignore[arg-type]
        assert done.relative <= done.tolerance


# --- other parts ---------------------------------------------------------------------------------


def test_a_spec_without_outputs_is_unchanged() -> None:
    graph = load("resnet20")
    assert "outputs" not in graph.model.model_dump_json()
    assert "outputs" not in graph.to_json()
    assert (graph.taps, graph.output_shapes, graph.results) == ({}, {}, (graph.output,))
    assert "outputs" not in summarize(graph).to_json()


def test_outputs_are_features() -> None:
    graph = network("pyramid")
    assert [(f.path, f.shape, *map(int, f.reduction)) for f in graph.features] == [
        ("p3", (8, 16, 12), 2, 2),
        ("p4", (8, 8, 6), 4, 4),
        ("p5", (8, 4, 3), 8, 8),
    ]
    built, _, x = pair("pyramid")
    for outputs in (["p4"], ["p5", "p3"], ["body.c3", "p5"]):
        part = build(graph, outputs=outputs).eval()
        part.load_state_dict({key: built.state_dict()[key] for key in part.state_dict()})
        found = part(x)
        assert [*found] == outputs
        wanted = built.eval()(x)
        assert all(torch.equal(found[key], wanted[key]) for key in outputs if key in wanted)
    with pytest.raises(CnnspecError, match="no module `p6`"):
        build(graph, outputs=["p6"])


def test_the_summary_has_the_field_of_each_output() -> None:
    graph = network("pyramid")
    done = summarize(graph, 2)
    fields = {row.path: row.field for row in done.outputs}
    assert [*fields] == ["p3", "p4", "p5"]
    for name, index in graph.taps.items():
        alone = summarize(build(graph, outputs=[name]).graph)
        assert (fields[name], done.outputs[[*fields].index(name)].center_field) == (
            alone.total.field,
            alone.total.center_field,
        )
        assert graph.depths[index] == alone.total.depth
    assert done.total.depth == graph.depth == max(row.depth for row in done.outputs)
    data = done.to_json()["outputs"]
    assert (data[0]["name"], data[0]["output_shape"], data[0]["stride"]) == ("p3", [8, 16, 12], [2, 2])
    assert summarize(graph, symbolic=True).to_json()["outputs"][2]["output_shape"][0] == 8


def test_outputs_differ_by_name_order_and_tensor() -> None:
    head = "input 3x8x8\na: conv 3x3 8\nb: conv 3x3 8\n"
    first = loads(f"{head}output x from @a\noutput y from @b\n")
    others = {
        "output y from @b\noutput x from @a\n": {("order of outputs", "changed")},
        "output x from @a\noutput z from @b\n": {("output y", "removed"), ("output z", "added")},
        "output x from @b\noutput y from @a\n": {("output x", "changed"), ("output y", "changed")},
        "output x from @a\noutput y from @b\noutput z from @a\n": {("output z", "added")},
        "": {("output", "added"), ("output x", "removed"), ("output y", "removed")},
    }
    for text, expected in others.items():
        other = loads(head + text)
        assert other != first
        found = compare(first, other)
        assert {(change.path, change.kind) for change in found.changes} == expected, text
        assert compare(other, other).same


def test_an_extension_replaces_all_outputs(tmp_path: Path) -> None:
    (tmp_path / "base.cnn").write_text(CASES["pyramid"].text + "\nexpect output.p3 = [8, 16, 12]\nexpect depth = 9\n")

    def extended(text: str) -> Any:
        (tmp_path / "own.cnn").write_text(f'extends "base.cnn"\n{text}')
        return load(tmp_path / "own.cnn")

    assert [*extended("").taps] == ["p3", "p4", "p5"]
    more = "output p3 from @layer.0\noutput p4 from @layer.1\noutput p5 from @layer.2\n"
    assert [*extended(f"output c5 from @body.c5\n{more}").taps] == ["c5", "p3", "p4", "p5"]
    assert [*extended("output map from @layer.0\noutput b from @layer.1\noutput p5 from @layer.2\n").taps] == [
        *("map", "b", "p5")
    ]
    with pytest.raises(CnnspecError) as dropped:
        extended("output p3 from @layer.0\noutput p4 from @layer.1\n")
    assert [error.code for error in dropped.value.diagnostics] == ["E0311"]
    assert extended("conv 3x3 8 | relu\nexpect depth = 1\n").taps == {}
    assert [*extended("only: conv 3x3 8\noutput only from @only\nexpect depth = 1\n").taps] == ["only"]


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_not_trained(command: str, tmp_path: Path) -> None:
    text = "input 1x28x28\nclasses 10\nx: global_avgpool | flatten | linear classes\noutput x from @x\n"
    error = refuse(command, text, tmp_path)
    assert "`output x ...`" in error.message


def test_a_detector_with_shared_heads() -> None:
    """The heads of RetinaNet: the same convolutions on every level, with the keys and values of torchvision."""
    levels = range(3, 6)
    heads = "\n".join(
        f"@p{n} | again @head.cls\nlogits{n}: in" if n > 3 else "@p3\nhead.cls: tower 6\nlogits3: in" for n in levels
    )
    graph = loads(
        "input 3x32x32\nblock tower(c) {\n    conv.0: conv 3x3 16 bias | relu\n    conv.1: conv 3x3 16 bias | relu\n"
        "    conv.2: conv 3x3 16 bias | relu\n    conv.3: conv 3x3 16 bias | relu\n    cls_logits: conv 3x3 c bias\n}\n"
        "p3: conv 3x3 16 stride=2\np4: conv 3x3 16 stride=2\np5: conv 3x3 16 stride=2\n"
        f"{heads}\n" + "".join(f"output {n} from @logits{n}\n" for n in levels)
    )
    built: Any = build(graph).eval()
    head = RetinaNetClassificationHead(16, 3, 2).eval()
    keys = {f"head.cls.{key}" for key in head.state_dict()}
    assert keys == {key for key in built.state_dict() if key.startswith("head")}
    built.load_state_dict(
        {**built.state_dict(), **{f"head.cls.{key}": value for key, value in head.state_dict().items()}}
    )
    x = torch.randn(2, 3, 32, 32)
    p3 = built.p3(x)
    p4 = built.p4(p3)
    maps = {"3": p3, "4": p4, "5": built.p5(p4)}
    found = built(x)
    assert same(found, {key: head.cls_logits(head.conv(y)) for key, y in maps.items()})
    rows = [y.view(2, 3, 2, *y.shape[2:]).permute(0, 3, 4, 1, 2).reshape(2, -1, 2) for y in found.values()]
    assert torch.equal(torch.cat(rows, 1), head([*maps.values()]))


def test_a_network_of_one_output_returns_a_dict_too() -> None:
    built = build(loads("input 3x8x8\nx: conv 3x3 8\noutput y from @x\n"))
    image = torch.randn(1, 3, 8, 8)
    assert same(built(image), {"y": built.x(image)})
    assert "dict[str, Tensor]" in built.code
    assert "def forward(self, x: Tensor) -> dict[str, Tensor]" in write_source(built.graph)


def test_the_model_is_validated() -> None:
    graph = network("pyramid")
    data = json.loads(graph.model.model_dump_json())
    data["outputs"][0]["source"] = 3
    with pytest.raises(ValueError, match="outputs"):
        Model.model_validate(data)
