"""Test the export of networks: each file is loaded by its own runtime and compared with the network."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import cnnspec
from cnnspec import CnnspecError, loads
from cnnspec.backends.source.classes import CONSTANTS
from cnnspec.backends.source.rows import class_sources
from cnnspec.backends.torch.folding import fold
from cnnspec.backends.torch.module import Network, split_images, to_module
from cnnspec.cli.app import app
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Source
from cnnspec.inference import export, export_network, load_run
from cnnspec.inference.export import TOLERANCES
from cnnspec.inference.export_options import read_axes
from cnnspec.inference.graph_input import GraphInput
from cnnspec.syntax.formatter import format_file
from cnnspec.syntax.keywords import RESERVED
from cnnspec.testing.generator import SpecGenerator
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop.about import describe
from cnnspec.training.loop.checkpoints import weight_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = """
network photos
input 3x24x20
classes 3
stem: conv 3x3 8 stride=2 | bn | relu
type: conv 3x3 8 depthwise | bn eps=1e-3
block residual(c) { add { { conv 3x3 c | bn | relu | conv 3x3 c | bn }; in } | relu }
body: residual repeat=2 8
concat { avgpool 3x3 stride=1 pad=1; conv 1x1 4 bias=true | bn }
global_avgpool | flatten | dropout
fc: linear classes
"""
CLASSES = ("cat", "dög 🐕", 'a "bird" \'""" \n\r\\"""\nraise SystemExit\n"""{x}\u202e\x00\\')
FITTED = Preprocessing((24, 20), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 26)
ENDINGS = {"torch": "py", "pt2": "pt2", "onnx": "onnx"}


def settle(network: nn.Module, seed: int = 0) -> None:
    """Give batch normalizations statistics and weights as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_mean.shape, generator=generator) + 0.5)  # type: ignore[union-attr]
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Weights as a run stores them."""
    torch.manual_seed(0)
    network = to_module(loads(SPEC))
    settle(network)
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    path.write_bytes(weight_bytes(network.state_dict(), {"about": describe(network.graph, CLASSES, FITTED)}))
    return path


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_onnx(path: Path, given: Tensor) -> Tensor:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": given.numpy()})[0])


def run_file(path: Path, given: Tensor) -> Tensor:
    """Run an exported file as its users do, without this package."""
    if path.suffix == ".onnx":
        return run_onnx(path, given)
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(given)
    names: dict[str, Any] = {"__name__": "exported"}
    exec(compile(path.read_text("utf-8"), path, "exec", dont_inherit=True), names)
    network = [v for v in names.values() if isinstance(v, type) and v.__module__ == "exported"][-1]().eval()
    state = torch.load(path.with_suffix(".pt"), weights_only=True)
    half = next(iter(state.values())).dtype == torch.float16
    network.load_state_dict(state)
    return (network.half()(given.half()) if half else network(given)).float()


@pytest.mark.parametrize("to", ENDINGS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fold": True, "half": True},
        *(pytest.param({name: True}, marks=pytest.mark.slow) for name in ("fold", "half")),
    ],
    ids=str,
)
def test_a_file_computes_what_the_network_computes(weights: Path, tmp_path: Path, to: str, options: dict) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"photos.{ENDINGS[to]}"
    done = export_network(weights, path, to, **options)  # type: ignore[arg-type]
    given = images(1, 3, 24, 20)
    with torch.no_grad():
        expected, found = load_run(weights).module(given), run_file(path, given)
    assert done.relative <= done.tolerance == max(TOLERANCES[name] for name in (to, *options))
    assert float((expected - found).abs().max() / expected.abs().max()) <= done.tolerance
    assert (done.difference == 0) == (not options and to != "onnx")
    assert done.files == ((str(path), str(path.with_suffix(".pt"))) if to == "torch" else (str(path),))
    assert sorted(map(str, tmp_path.iterdir())) == sorted(done.files)


def metadata(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        model = pytest.importorskip("onnx").load(path)
        return json.loads({entry.key: entry.value for entry in model.metadata_props}["cnnspec"])
    if path.suffix == ".pt2":
        extra = {"cnnspec.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["cnnspec.json"])
    names: dict[str, Any] = {}
    exec(compile(path.read_text("utf-8"), path, "exec", dont_inherit=True), names)
    exported = names["EXPORT"]
    return {"classes": names["CLASSES"], "spec": names["SPEC"], "preprocessing": names["PREPROCESSING"]} | {
        "compared": exported
    }


@pytest.mark.parametrize("to", ENDINGS)
def test_a_file_carries_classes_preprocessing_spec_and_difference(weights: Path, tmp_path: Path, to: str) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"photos.{ENDINGS[to]}"
    done = export_network(weights, path, to)  # type: ignore[arg-type]
    found = metadata(path)
    assert tuple(found["classes"]) == CLASSES
    assert found["spec"] == SPEC
    assert Preprocessing.from_json(found["preprocessing"]) == FITTED
    assert found["compared"]["difference"] == done.difference
    content = b"".join(Path(file).read_bytes() for file in done.files)
    for trace in (str(Path(cnnspec.__file__).parent).encode(), b"site-packages", str(Path.home()).encode() + b"/"):
        assert trace not in content


def test_nodes_are_named_by_their_paths(weights: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export_network(weights, tmp_path / "photos.onnx", "onnx")
    names = [node.name for node in onnx.load(tmp_path / "photos.onnx").graph.node]
    assert len(set(names)) == len(names)
    for name in ("stem.0/Conv", "type_.0/Conv", "body.0.0/Conv", "Add", "body.1.5/Relu", "fc/Gemm"):
        assert name in names


# --- names ------------------------------------------------------------------------------------------

UNREACHABLE = sorted(name for name in export._UNREACHABLE if name not in RESERVED)
"""Labels that are attributes of modules or keywords of Python."""


def spec_of_labels(labels: list[str], spec: Path) -> Network:
    """Write a network whose parameters, modules, scopes and shared modules have labels; build it."""
    lines = [f'scale {1 + (i % 7 - 3) / 100} bare name="{label}"' for i, label in enumerate(labels)]
    lines += [
        f"g.{label}: {{ prelu init={0.9 - i % 9 / 10:.1f} }}" for i, label in enumerate(labels) if label.isidentifier()
    ]
    lines += ["h.class: conv 1x1 3", "h.type: { bn\n again @h.class }", "again @h.type"]
    spec.write_text("input 3x4x4\n" + "\n".join(lines))
    torch.manual_seed(0)
    return cnnspec.build(spec).eval()  # type: ignore[return-value]


def test_every_label_has_a_name_that_torch_export_can_write(tmp_path: Path) -> None:
    assert {"lambda", "None", "type", "meta", "recompile", "training", "__init__", "graph"} <= {*UNREACHABLE}
    network = spec_of_labels(UNREACHABLE, tmp_path / "net.cnn")
    renamed = export._with_plain_names(network)
    parts = {part for path, _ in renamed.named_parameters() for part in path.split(".")}
    assert parts.isdisjoint(UNREACHABLE)
    given = images(2, 3, 4, 4)
    assert torch.equal(renamed(given), network(given))
    assert torch.equal(copy.deepcopy(network)(given), network(given))


@pytest.mark.parametrize("spec", ["input 3x6x6\n", "input 4x6x6\n", "input 1x6x6\noutput maps from @last\n"])
@pytest.mark.parametrize("to", ["torch", "pt2"])
def test_a_network_that_is_no_classifier_takes_weights(spec: str, to: str, tmp_path: Path) -> None:
    (tmp_path / "net.cnn").write_text(f"{spec}conv 3x3 4 | bn | relu\nlast: conv 1x1 2 bias\n")
    network = cnnspec.build(tmp_path / "net.cnn").eval()
    settle(network)
    torch.save(network.state_dict(), tmp_path / "own.pt")
    result = export_network(tmp_path / "net.cnn", tmp_path / f"net.{ENDINGS[to]}", to, weights=tmp_path / "own.pt")  # type: ignore[arg-type]
    given = images(1, network.graph.input_shape[0], 6, 6)
    names: dict[str, Any] = {"__name__": "exported"}
    if to == "torch":
        exec(compile((tmp_path / "net.py").read_text("utf-8"), "net.py", "exec", dont_inherit=True), names)
        exported = names["Net"]().eval()
        exported.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    else:
        exported = torch.export.load(tmp_path / "net.pt2").module()
    with torch.no_grad():
        expected, found = network(given), exported(given)
    torch.testing.assert_close(found, expected)
    assert result.notes == ()


@pytest.mark.parametrize("to", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_every_label_can_be_exported(to: str, tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    labels = [*"lambda None type meta recompile training __deepcopy__ _x self torch images A a-b a_b a_0 p_a_0".split()]
    network = spec_of_labels(labels, tmp_path / "net.cnn")
    torch.manual_seed(0)
    export_network(tmp_path / "net.cnn", tmp_path / f"net.{to}", to, half=True)  # type: ignore[arg-type]
    given = images(1, 3, 4, 4)
    with torch.no_grad():
        expected, found = network(given), run_file(tmp_path / f"net.{to}", given)
    assert float((expected - found).abs().max() / expected.abs().max()) <= TOLERANCES["half"]


@pytest.mark.parametrize("name", [*CONSTANTS, "torch", "None", "blocks"])
def test_no_name_of_a_spec_hides_a_name_of_exported_source(name: str, tmp_path: Path) -> None:
    names = [*CONSTANTS, *class_sources(), *"Tensor F Network nn torch print None self".split()]
    lines = ["conv 1x1 4"]
    if name == "blocks":
        lines = [f"block {word}(c) {{ add {{ in; {word}: bn when c > 4 }} | conv 1x1 c }}" for word in names]
        lines += [f"{word} 4\n{word} 5" for word in names]
    body = "\n".join(lines)
    (tmp_path / "net.cnn").write_text(f"network {name}\ninput 3x4x4\n{body}\nscale | times 2\nglobal_avgpool | flatten")
    torch.manual_seed(0)
    export_network(tmp_path / "net.cnn", tmp_path / "net.py", "torch")
    torch.manual_seed(0)
    network, given = cnnspec.build(tmp_path / "net.cnn").eval(), images(1, 3, 4, 4)
    assert torch.equal(run_file(tmp_path / "net.py", given), network(given))


def test_fold_removes_batch_normalization(weights: Path, tmp_path: Path) -> None:
    for options, remaining in (({}, 7), ({"fold": True}, 0)):
        export_network(weights, tmp_path / "photos.pt2", "pt2", **options)  # type: ignore[arg-type]
        nodes = torch.export.load(tmp_path / "photos.pt2").graph.nodes
        assert sum("batch_norm" in str(node.target) for node in nodes) == remaining
    export_network(weights, tmp_path / "photos.py", "torch", fold=True)
    assert "BatchNorm" not in (tmp_path / "photos.py").read_text("utf-8")


@pytest.mark.parametrize("seed", range(12))
def test_fold_keeps_the_outputs(seed: int) -> None:
    file = SpecGenerator(random.Random(seed).randint).file()
    network = to_module(compile_source(Source("drawn", format_file(file))).require_graph()).double().eval()
    with torch.no_grad():
        settle(network, seed)
        folded = fold(network).double()
        given = split_images(network.graph, images(2, *network.graph.input_shape, seed=seed).double())
        pairs = [(network(*given), folded(*given))]
    if network.graph.taps:
        pairs = [(pairs[0][0][name], pairs[0][1][name]) for name in network.graph.taps]
    for expected, found in pairs:
        bound = 1e-4 * float(expected.abs().max())
        assert torch.allclose(expected, found, rtol=1e-4, atol=bound) or expected.isnan().any()


# --- variable sizes ---------------------------------------------------------------------------------

REDUCTIONS = """
wide: conv 3x3 4
mul { in; concat { mean over=c; max over=c } | conv 3x3 1 | sigmoid }
add { mean over=w | upsample like=@wide; max over=h | upsample like=@wide }
"""
COMPUTED = """
conv 3x3 8 bias standardize gain gamma=1.7 | hardtanh low=(-0.5) high=0.7
channel_conv 3 | softmax parts=2 | conv 3x3 4 standardize eps=1e-3
"""
SIZES = {
    "after a layer that permutes": ("conv 3x3 4 | ln | conv 3x3 4 | in_norm", (2, 2), None),
    "any size": ("conv 3x3 4 stride=2 | relu | maxpool 2x2 stride=2 pad=1", (2, 2), None),
    "at least": ("conv 5x5 4 pad=0 | relu", (5, 5), (4, 9)),
    "multiples": ("d: conv 3x3 4\n maxpool 2x2 | upsample 2\n concat { in; @d }", (2, 2), (3, 4)),
    "some multiples": ("conv 3x3 4 stride=2\n add { maxpool 2x2; conv 3x3 4 stride=2 }", (4, 4), None),
    "the size of another map": (
        "half: conv 3x3 4 stride=2\n conv 3x3 4 stride=2\n add { upsample like=@half mode=bilinear; @half }",
        (2, 2),
        None,
    ),
    "reductions": (REDUCTIONS, (2, 2), None),
    "blurs": (
        "conv 3x3 4 | blurpool 3 | blurpool 4 stride=1 pad=1 mode=replicate | blurpool 5 mode=constant",
        (3, 3),
        None,
    ),
    "computed weights": (COMPUTED, (2, 2), None),
    "space to depth": ("pixel_unshuffle 2 | channel_shuffle 3 | conv 5x5 4 pad=0", (10, 10), (11, 12)),
    "maps of one position": ("conv 3x3 4 stride=8 | adaptive_avgpool 1x1", (2, 2), None),
}


@pytest.mark.parametrize(("body", "least", "refused"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("to", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_the_size_varies_in_the_range_that_the_network_accepts(
    body: str, least: tuple[int, int], refused: tuple[int, int] | None, to: str, tmp_path: Path
) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    spec = tmp_path / "net.cnn"
    spec.write_text(f"input 3x24x20\n{body}\nglobal_avgpool | flatten | linear 3\n")
    path = tmp_path / f"net.{to}"
    torch.manual_seed(0)
    done = export_network(spec, path, to, dynamic=["batch", "size"])  # type: ignore[arg-type]
    assert done.images >= 36
    note = "the file takes multiples of 4 from 4; the network accepts H and W with remainder 0 or 3 modulo 4"
    notes = [each.partition(":")[0] for each in done.notes if "the file takes" in each]
    assert notes == ([note] if "maxpool 2x2; conv" in body else [])
    torch.manual_seed(0)
    network = cnnspec.build(spec).eval()
    for size in (least, (24, 20), (40, 64)):
        for batch in (1, 3):
            given = images(batch, 3, *size)
            with torch.no_grad():
                assert torch.allclose(run_file(path, given), network(given), rtol=1e-4, atol=1e-5)
    if refused is not None and to == "pt2":
        with pytest.raises(AssertionError, match="Guard failed"):
            run_file(path, images(1, 3, *refused))


@pytest.mark.parametrize("to", ["pt2", "onnx"])
def test_operators_at_one_size(to: str, tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    bodies = [body for body, *_ in SIZES.values()]
    bodies += ["blurpool 3 stride=1 mode=circular | pad [1, 0, 0, 2] mode=circular | conv 3x3 4 pad=0"]
    bodies += ["conv 3x3 16 | shake_shake | shake_drop 0.2 | glu | drop_path 0.2 mode=batch"]
    branches = "".join(f"{{\n{body}\nglobal_avgpool\n}}\n" for body in bodies)
    spec = tmp_path / "net.cnn"
    spec.write_text(f"input 3x24x20\nconcat {{\n{branches}}}\nflatten | linear 6 | softmax parts=3")
    torch.manual_seed(0)
    export_network(spec, tmp_path / f"net.{to}", to)  # type: ignore[arg-type]
    torch.manual_seed(0)
    network = cnnspec.build(spec).eval()
    given = images(1, 3, 24, 20)
    with torch.no_grad():
        torch.testing.assert_close(run_file(tmp_path / f"net.{to}", given), network(given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["avgpool", "maxpool"])
@pytest.mark.parametrize("count", [2, 3, 7, (2, 5), (6, 1)])
def test_adaptive_pooling_for_onnx_is_that_of_torch(kind: str, count: int | tuple[int, int]) -> None:
    pool = {"avgpool": torch.nn.AdaptiveAvgPool2d, "maxpool": torch.nn.AdaptiveMaxPool2d}[kind](count)
    for height in range(1, 15):
        x = torch.randn(2, 3, height, 17 - height)
        torch.testing.assert_close(export._AdaptivePool(pool)(x), pool(x))


ANY_SIZE = {
    "adaptive_avgpool": ("input 3x12x10\nconv 3x3 4 | adaptive_avgpool 3x2 | flatten | linear 3", (17, 9)),
    "adaptive_maxpool": ("input 3x12x10\nconv 3x3 4 | adaptive_maxpool 2 | flatten | linear 3", (7, 31)),
    "one axis": ("input 3x1x10\nconv 1x3 4 pad=0 | adaptive_avgpool 1x3 | flatten | linear 3", (5, 23)),
    "a single pixel": ("input 3x1x1\nconv 3x3 4 | global_avgpool | flatten | linear 3", (5, 3)),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "adaptive_avgpool" else pytest.mark.slow) for kind in ANY_SIZE]
)
def test_onnx_files_of_adaptive_networks_take_images_of_any_size(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    text, size = ANY_SIZE[kind]
    (tmp_path / "net.cnn").write_text(text)
    torch.manual_seed(0)
    export_network(tmp_path / "net.cnn", tmp_path / "net.onnx", "onnx", dynamic=["batch", "size"])
    torch.manual_seed(0)
    network, given = cnnspec.build(tmp_path / "net.cnn").eval(), images(3, 3, *size)
    with torch.no_grad():
        assert torch.allclose(run_file(tmp_path / "net.onnx", given), network(given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", ["pt2", "onnx"])
def test_the_padding_of_tensorflow_follows_the_size(to: Literal["pt2", "onnx"], tmp_path: Path) -> None:
    layers = ("conv 3x3 4 stride=2", "maxpool 5x4 stride=2", "conv 2x3 6 dilation=2", "avgpool 3 stride=2")
    text = "\n".join(
        ("input 3x13x10", *(f"{layer} pad=tf_same" for layer in layers), "global_avgpool | flatten | linear 3")
    )
    (tmp_path / "net.cnn").write_text(text)
    torch.manual_seed(0)
    export_network(tmp_path / "net.cnn", tmp_path / f"net.{to}", to, dynamic=["batch", "size"])
    torch.manual_seed(0)
    network = cnnspec.build(tmp_path / "net.cnn").eval()
    for size in [(13, 10), (7, 31), (24, 24)]:
        given = images(3, 3, *size)
        with torch.no_grad():
            assert torch.allclose(run_file(tmp_path / f"net.{to}", given), network(given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("conv 3x3 4 | flatten", "the image size cannot vary"),
        ("conv 3x3 4 | flatten | gn 2", "the image size cannot vary"),
        (
            "maxpool 3x3 stride=2 ceil | conv 3x3 4 | maxpool 3x3 stride=2 ceil | global_avgpool | flatten",
            "torch.export",
        ),
    ],
)
def test_a_size_that_cannot_vary_is_an_error(body: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.cnn").write_text(f"input 3x8x8\n{body} | linear 3\n")
    with pytest.raises(CnnspecError, match=message) as refusal:
        export_network(tmp_path / "net.cnn", tmp_path / "net.pt2", "pt2", dynamic=["size"])
    assert refusal.value.diagnostics[0].code == "E0522"
    assert [path.name for path in tmp_path.iterdir()] == ["net.cnn"]


# --- preprocessing in the graph -----------------------------------------------------------------------


@pytest.mark.parametrize("to", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_file_with_preprocessing_predicts_as_the_network_does(weights: Path, tmp_path: Path, to: str) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"photos.{to}"
    done = export_network(weights, path, to, with_preprocessing=True, dynamic=["batch"])  # type: ignore[arg-type]
    assert done.levels is not None
    assert done.levels <= 2
    trained = load_run(weights)
    for size in ((24, 20), (60, 47), (33, 90), (7, 5)):
        smooth = nn.functional.interpolate(torch.rand(4, 3, 4, 4), size=size, mode="bicubic").clamp(0, 1)
        photos = (smooth * 255).to(torch.uint8)
        found = run_file(path, photos).softmax(1)
        expected = torch.stack([prediction.probabilities for prediction in trained.predict(photos)])
        assert float((found - expected).detach().abs().max()) < 0.01


def test_resizing_in_the_graph_is_that_of_the_pipeline_and_of_pillow() -> None:
    rng = random.Random(0)
    worst = {"nearest": 0.0, "bilinear": 0.0, "bicubic": 0.0}
    for _ in range(150):
        size = rng.randint(1, 64), rng.randint(1, 64)
        fit = rng.choice(["crop", "squash", "letterbox"])
        shorter = rng.choice([None, max(size), max(size) + 7, max(1, min(size) // 2)]) if fit == "crop" else None
        fixed = Preprocessing(size, (0.5,), (0.5,), shorter, rng.choice([*worst]), fit)
        given = torch.randint(0, 256, (2, 1, rng.randint(1, 120), rng.randint(1, 120)), dtype=torch.uint8)
        resized = GraphInput(nn.Identity(), fixed).resized(given)
        worst[fixed.mode] = max(worst[fixed.mode], float((resized - fixed.fit_images(given)).abs().max()))
    assert worst["nearest"] == 0
    assert max(worst.values()) <= 2
    photo = Image.effect_noise((90, 61), 80)
    for mode, method in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        fixed = Preprocessing((32, 40), (0.5,), (0.5,), None, mode, "squash")
        resized = GraphInput(nn.Identity(), fixed).resized(torch.from_numpy(np.array(photo))[None, None])
        expected = np.array(photo.resize((40, 32), method)).astype(np.float32)
        assert np.abs(resized[0, 0].numpy() - expected).max() <= 2


def test_unknown_normalization_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CnnspecError) as refusal:
        export_network("lenet5", tmp_path / "lenet5.pt2", "pt2", with_preprocessing=True)
    assert refusal.value.diagnostics[0].code == "E0511"


@pytest.mark.parametrize("stated", [None, "imagenet"])
@pytest.mark.parametrize(
    ("to", "form"),
    [("torch", "pt"), ("torch", "safetensors"), ("pt2", "pt"), pytest.param("onnx", "pt", marks=pytest.mark.slow)],
)
def test_weights_of_another_program_need_no_normalization(
    weights: Path, to: Any, form: str, stated: str | None, tmp_path: Path
) -> None:
    """Only `with_preprocessing` needs it; without it, the metadata lacks the preprocessing, and a note says so."""
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    (tmp_path / "photos.cnn").write_text(SPEC)
    state = load_run(weights).module.state_dict()
    path = tmp_path / f"own.{form}"
    if form == "pt":
        torch.save(state, path)
    else:
        path.write_bytes(weight_bytes(state, {}))
    settings: dict[str, Any] = {"weights": path} | ({"normalize": stated} if stated else {})
    file = tmp_path / f"photos.{ENDINGS[to]}"
    done = export_network(tmp_path / "photos.cnn", file, to, **settings)
    if to != "torch":
        assert (metadata(file).get("preprocessing") is None) == (stated is None)
    else:
        assert ("PREPROCESSING = " in file.read_text("utf-8")) == (stated is not None)
    assert ["--set normalize=" in note for note in done.notes] == ([] if stated else [True])
    given = images(1, 3, 24, 20)
    with torch.no_grad():
        torch.testing.assert_close(run_file(file, given), load_run(weights).module(given), rtol=1e-4, atol=1e-4)
    if to != "torch" and stated is None:
        with pytest.raises(CnnspecError) as refusal:
            export_network(tmp_path / "photos.cnn", file, to, with_preprocessing=True, **settings)
        assert refusal.value.diagnostics[0].code == "E0511"


def test_weights_without_those_of_auxiliary_heads_can_be_exported(tmp_path: Path) -> None:
    body = "body: conv 3x3 4 | bn\naux head from @body { global_avgpool | flatten | linear 3 }\n"
    (tmp_path / "net.cnn").write_text(f"input 3x8x8\n{body}flatten | linear 3\n")
    state = cnnspec.build(tmp_path / "net.cnn").state_dict()
    heads = cnnspec.load(tmp_path / "net.cnn").aux
    kept = {key: value for key, value in state.items() if not any(key.startswith(f"{head.name}.") for head in heads)}
    assert len(kept) < len(state)
    torch.save(kept, tmp_path / "own.pt")
    done = export_network(tmp_path / "net.cnn", tmp_path / "net.py", "torch", weights=tmp_path / "own.pt")
    assert done.difference == 0


# --- other runtimes ------------------------------------------------------------------------------------


def test_openvino_agrees_with_the_network(weights: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    pytest.importorskip("onnxruntime")
    given = images(2, 3, 24, 20)
    expected = load_run(weights).module(given).detach()
    export_network(weights, tmp_path / "photos.onnx", "onnx", dynamic=["batch"])
    model = openvino.Core().compile_model(str(tmp_path / "photos.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(model(given.numpy())[0] - expected.numpy()).max() <= 1e-4
    export_network(weights, tmp_path / "bytes.onnx", "onnx", with_preprocessing=True)
    model = openvino.Core().compile_model(str(tmp_path / "bytes.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    photo = torch.randint(0, 256, (1, 3, 50, 41), dtype=torch.uint8)
    assert np.abs(model(photo.numpy())[0] - run_onnx(tmp_path / "bytes.onnx", photo).numpy()).max() <= 1e-2


WITHOUT = "import sys\nsys.modules[{absent!r}] = None  # an import of it fails\n"


def test_files_need_no_cnnspec(weights: Path, tmp_path: Path) -> None:
    export_network(weights, tmp_path / "photos.py", "torch")
    export_network(weights, tmp_path / "photos.pt2", "pt2")
    code = (
        WITHOUT.format(absent="cnnspec")
        + """
import torch, photos
network = photos.Photos().eval()
network.load_state_dict(torch.load("photos.pt", weights_only=True))
x = torch.ones(1, 3, 24, 20)
print(torch.equal(network(x), torch.export.load("photos.pt2").module()(x)), photos.CLASSES[0])
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "True cat\n", done.stderr


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CnnspecError, match=f"export to ONNX requires `{package}`") as refusal:
        export_network("lenet5", tmp_path / "lenet5.onnx", "onnx")
    assert refusal.value.diagnostics[0].code == "E0507"
    assert "pip install 'cnnspec[onnx]'" in str(refusal.value)
    assert not [*tmp_path.iterdir()]


# --- failures --------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A file from an earlier export, which a failure must not change."""
    (tmp_path / "photos.pt2").write_text("earlier")
    yield tmp_path / "photos.pt2"
    assert [path.name for path in tmp_path.iterdir()] == ["photos.pt2"]
    assert (tmp_path / "photos.pt2").read_text() == "earlier"


def test_a_file_that_computes_something_else_is_not_written(
    weights: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnspec.backends import pt2

    for wrong, message in (
        (lambda x: x.flatten(1)[:, :3], "differs by"),
        (lambda x: x, "the output"),
        (lambda x: x / 0, "NaN"),
    ):
        monkeypatch.setattr(pt2, "load", lambda content, wrong=wrong: wrong)
        with pytest.raises(CnnspecError, match=message) as refusal:
            export_network(weights, target, "pt2")
        assert refusal.value.diagnostics[0].code == "E0522"


def test_a_network_that_overflows_in_float16_is_refused(weights: Path, tmp_path: Path, target: Path) -> None:
    network = load_run(weights).module
    state = {key: value * 1e7 if key == "fc.weight" else value for key, value in network.state_dict().items()}
    large = target.parent.parent / "large.safetensors"
    large.write_bytes(weight_bytes(state, {"about": describe(loads(SPEC), CLASSES, FITTED)}))
    export_network(large, target.parent.parent / "large.pt2", "pt2")
    with pytest.raises(CnnspecError, match="NaN or Inf"):
        export_network(large, target, "pt2", half=True)


def test_random_weights_that_overflow_are_refused_with_advice_to_train(tmp_path: Path) -> None:
    spec, file = tmp_path / "deep.cnn", tmp_path / "deep.py"
    spec.write_text("input 1x4x4\nrepeat 3 { scale 1e15 } | flatten | linear 3\n")
    with pytest.raises(CnnspecError, match="NaN or Inf") as refusal:
        export_network(str(spec), file, "torch")
    assert "trained weights" in (refusal.value.diagnostics[0].help or "")
    assert not file.exists()


def test_what_cannot_be_exported_says_so(weights: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **settings: object) -> None:
        raise ValueError("no\nway")

    monkeypatch.setattr(torch.export, "export", broken)
    with pytest.raises(CnnspecError, match=r"torch\.export cannot export the network\n.*ValueError: no way"):
        export_network(weights, target, "pt2")
    monkeypatch.setattr(torch.export, "save", broken)


def test_a_network_that_is_too_large_for_onnx_is_refused_before_it_is_traced(
    weights: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("cnnspec.backends.onnx")
    onnx.require_packages()
    size = sum(tensor.nbytes for tensor in load_run(weights).module.state_dict().values())
    monkeypatch.setattr(onnx, "_MARGIN", 0)
    monkeypatch.setattr(onnx, "MAX_BYTES", size)
    monkeypatch.setattr(torch.export, "export", None)
    with pytest.raises(CnnspecError, match="an ONNX file has at most") as refusal:
        export_network(weights, target.with_suffix(".onnx"), "onnx")
    assert "use `--half`" in str(refusal.value)


@pytest.mark.parametrize(
    ("file", "code"),
    [("folder.pt2", "E0506"), ("none/x.pt2", "E0506"), ("\0.pt2", "E0506"), (f"{'x' * 300}.pt2", "E0506")],
)
def test_a_file_that_cannot_be_written(weights: Path, tmp_path: Path, file: str, code: str) -> None:
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(CnnspecError) as refusal:
        export_network(weights, f"{tmp_path}/{file}", "pt2")
    assert refusal.value.diagnostics[0].code == code
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt2"]


NAMES = ["naïve 🐦", os.fsdecode(b"\xff \xfe"), "-x", "a'b\"c", "a\nb", "x.y", "{x}%s"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_files(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name} in").mkdir()
    for ending in ("py", "pt2") if name == NAMES[0] else ("py",):
        file = tmp_path / f"{name} in" / f"{name}.{ending}"
        shown = cnnspec_export("lenet5", file, "--set", "classes=3", "--json")
        assert json.loads(shown)["files"][0] == str(file)
        assert run_file(file, images(1, 1, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize("as_weights", [False, True])
def test_the_weights_of_python_source_replace_only_those_of_an_earlier_export(
    weights: Path, tmp_path: Path, as_weights: bool
) -> None:
    """The file of the weights has a name that the user does not state."""
    state = {"state_dict": load_run(weights).module.state_dict()}
    torch.save(state, tmp_path / "best.pt")
    content = (tmp_path / "best.pt").read_bytes()
    (tmp_path / "photos.cnn").write_text(SPEC)
    (tmp_path / "link.pt").symlink_to("best.pt")
    for name in ("best.py", "link.py"):
        given = {"weights": tmp_path / "best.pt"} if as_weights else {}
        with pytest.raises(CnnspecError, match=r"cannot write") as refusal:
            export_network(tmp_path / "photos.cnn", tmp_path / name, "torch", **given)
        assert refusal.value.diagnostics[0].code == "E0506"
    with pytest.raises(CnnspecError, match="cannot write"):
        export_network(tmp_path / "photos.cnn", tmp_path / "new.pt", "torch")
    assert (tmp_path / "best.pt").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "photos.cnn", "link.pt"}
    for _ in range(2):
        given = {"weights": tmp_path / "best.pt", "normalize": "half"}
        export_network(tmp_path / "photos.cnn", tmp_path / "new.py", "torch", **given)
    assert run_file(tmp_path / "new.py", images(1, 3, 24, 20)).shape == (1, 3)


@pytest.mark.parametrize("failing", [".py.part", ".pt.part"])
def test_both_files_of_python_source_are_written_or_none(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("net.py", "net.pt"):
        (tmp_path / name).write_text("earlier")
    opened = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **settings: Any) -> Any:
        if path.name.endswith(failing):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *args, **settings)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(CnnspecError, match="No space left") as refusal:
        export_network("lenet5", tmp_path / "net.py", "torch")
    monkeypatch.undo()
    assert refusal.value.diagnostics[0].code == "E0506"
    assert failing.removesuffix(".part") in refusal.value.diagnostics[0].message
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("net.py", "net.pt"), "earlier"
    )


@pytest.mark.parametrize("ending", ENDINGS.values())
def test_a_folder_that_is_not_writable_is_an_error_before_the_export(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(export, "_read", None)
    form = next(form for form in ENDINGS if ENDINGS[form] == ending)
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    with pytest.raises(CnnspecError, match="its folder is not writable") as refusal:
        export_network("lenet5", tmp_path / f"net.{ending}", form)  # type: ignore[arg-type]
    assert refusal.value.diagnostics[0].code == "E0506"


def cnnspec_export(*arguments: object) -> str:
    """Run the command, and return its output."""
    return (
        CliRunner().invoke(app, ["export", *map(str, arguments)], standalone_mode=False, catch_exceptions=False).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("lenet5 x.h5", "the format of `x.h5` is unknown"),
        ("lenet5 x.onnx --to pt2", "must end in `.pt2`"),
    ],
)
def test_incorrect_usage(arguments: str, message: str) -> None:
    with pytest.raises(typer.BadParameter) as refusal:
        cnnspec_export(*arguments.split())
    assert message in refusal.value.message


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nothing", "x.pt2"], "E0"),
        (["lenet5", "x.pt2", "--weights", "nothing.safetensors"], "E0505"),
        (["lenet5", "x.pt2", "--set", "wrong=1"], "E0"),
        (["{weights}", "x.pt2", "--set", "classes=3"], "E0217"),
        (["{weights}", "x.pt2", "--weights", "{weights}"], "E0217"),
        ([".", "x.pt2"], "E0505"),
    ],
)
def test_bad_input_is_an_error(
    weights: Path, arguments: list[str], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CnnspecError) as refusal:
        cnnspec_export(*(argument.format(weights=weights) for argument in arguments))
    assert refusal.value.diagnostics[0].code.startswith(code)
    assert not [*tmp_path.iterdir()]


class Read(Exception):
    """The options are valid: the network is read."""


@pytest.mark.parametrize("match", ["name", "order"])
@pytest.mark.parametrize("with_preprocessing", [False, True])
@pytest.mark.parametrize("dynamic", ["", "batch", "size", "batch,size", "height", "batch,width"])
@pytest.mark.parametrize("to", [*ENDINGS, "keras", ""])
def test_options_that_do_not_exist_or_have_no_effect_are_errors(
    to: Any, dynamic: str, with_preprocessing: bool, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option, expected = "", list[str]()
    if to not in ENDINGS:
        option, expected = "to", [f"unknown format `{to}`", "torch, pt2, onnx"]
    elif dynamic.endswith(("height", "width")):
        option, expected = "dynamic", [f"unknown axis `{dynamic.split(',')[-1]}`", "batch, size"]
    elif to == "torch" and (dynamic or with_preprocessing):
        option = "dynamic" if dynamic else "with_preprocessing"
        expected = ["has no effect on Python source", "omit it"]
    elif with_preprocessing and "size" in dynamic:
        option, expected = "with_preprocessing", ["`size` in", "has no effect with", "omit it"]
    elif match != "name":
        option, expected = "match", ["has no effect without", "omit it"]

    def read(*_: object) -> None:
        raise Read

    monkeypatch.setattr(export.onnx, "require_packages", lambda: None)
    monkeypatch.setattr(export, "_read", read)
    file = tmp_path / f"net.{ENDINGS.get(to, 'py')}"
    words = [f"--dynamic={dynamic}", "--match", match, *(["--with-preprocessing"] if with_preprocessing else [])]
    with pytest.raises(CnnspecError if option else Read) as refusal:
        export_network("lenet5", file, to, dynamic=dynamic, with_preprocessing=with_preprocessing, match=match)
    with pytest.raises(typer.BadParameter if option else Read) as usage:
        cnnspec_export("lenet5", file, "--to", to, *words)
    if option:
        (found,) = refusal.value.diagnostics
        assert found.code == "E0522"
        for part in (f"`{option}`", *expected):
            assert part in f"{found.message}; {found.help}"
        for part in (f"`--{option.replace('_', '-')}`", *expected):
            assert part in usage.value.message
    assert not [*tmp_path.iterdir()]


def test_axes_are_a_list_or_a_text(tmp_path: Path) -> None:
    assert [read_axes(given) for given in ("", (), "batch", ["batch"])] == [[], [], ["batch"], ["batch"]]
    assert read_axes("size, batch,size") == read_axes(("size", "batch")) == ["size", "batch"]
    export_network("lenet5", tmp_path / "lenet5.pt2", "pt2", dynamic="batch")
    assert run_file(tmp_path / "lenet5.pt2", images(5, 1, 32, 32)).shape == (5, 10)


def test_the_command_prints_what_it_verified(weights: Path, tmp_path: Path) -> None:
    found = json.loads(cnnspec_export(weights, tmp_path / "photos.py", "--json"))
    assert found["files"] == [str(tmp_path / "photos.py"), str(tmp_path / "photos.pt")]
    assert found["difference"] == 0
    shown = cnnspec_export("lenet5", tmp_path / "lenet5.py")
    assert "the weights are random" in shown
    assert "verified on 12 images: the largest difference is 0 in a logit" in shown
