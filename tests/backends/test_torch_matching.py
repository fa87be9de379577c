"""Weights from elsewhere: forms of checkpoints, prefixes, missing tensors, order, and maps of names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from cnnspec import CnnspecError, build, load, loads
from cnnspec.backends.torch.matching import WeightMap, load_weights, propose_map
from cnnspec.backends.torch.weights import TABLES, read_weights

SPEC = """\
network small
input 3x8x8
classes 4
conv1: conv 3x3 8
bn1: bn
relu
head global_avgpool | flatten | linear classes
"""
Weights = dict[str, torch.Tensor]


def trained() -> Weights:
    """Weights that differ from any initialization."""
    module = build(loads(SPEC))
    generator = torch.Generator().manual_seed(5)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.state_dict()


def same(module: nn.Module, wanted: Weights) -> bool:
    return all(torch.equal(tensor, wanted[key]) for key, tensor in module.state_dict().items() if key in wanted)


def refused(*args: Any, **options: Any) -> str:
    module = build(loads(SPEC))
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(CnnspecError) as raised:
        load_weights(module, *args, **options)
    assert same(module, before)
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.code == "E0504"
    return "\n".join([diagnostic.message, *diagnostic.notes, diagnostic.help or ""])


# --- forms of files ------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.pth.tar", "x.bin", "x.ckpt"])
def test_a_nested_table_is_entered(tmp_path: Path, table: str, name: str) -> None:
    saved = {"epoch": 3, table: trained(), "optimizer": {"state": {}, "lr": 0.1}, "best_acc": torch.tensor(0.5)}
    torch.save(saved, tmp_path / name)
    module = build(loads(SPEC))
    load_weights(module, read_weights(tmp_path / name))
    assert same(module, trained())


def test_tables_in_tables(tmp_path: Path) -> None:
    torch.save({"model": {"state_dict": trained(), "name": "small"}}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth").keys() == trained().keys()


def test_several_networks_are_an_error(tmp_path: Path) -> None:
    torch.save({"model": trained(), "ema": trained()}, tmp_path / "x.pth")
    with pytest.raises(CnnspecError, match="several networks: `model`, `ema`"):
        read_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.bin", "x.tar", "x.pt", "x.pth"])
def test_safetensors_with_another_extension(tmp_path: Path, name: str) -> None:
    save_file(trained(), tmp_path / name)
    assert same(build(loads(SPEC), weights=tmp_path / name), trained())


# --- by name -------------------------------------------------------------------------------------


def test_missing_counters_are_zero() -> None:
    module = build(loads(SPEC))
    found = load_weights(module, {k: v for k, v in trained().items() if "num_batches" not in k})
    assert same(module, {k: v for k, v in trained().items() if "num_batches" not in k})
    assert module.state_dict()["bn1.num_batches_tracked"] == 0
    assert found.count == len(trained()) - 1
    assert not found.notes()


@pytest.mark.parametrize("prefix", ["model.", "student.encoder.", "x."])
def test_other_tensors_beside_a_prefix_are_left_out(prefix: str) -> None:
    given = {f"{prefix}{key}": tensor for key, tensor in trained().items()}
    given |= {"criterion.weight": torch.ones(4), "teacher.head.2.weight": torch.ones(4, 8)}
    module = build(loads(SPEC))
    found = load_weights(module, given)
    assert same(module, trained())
    assert set(found.unused) == {"criterion.weight", "teacher.head.2.weight"}
    assert found.notes() == ["unused tensors of the file: `criterion.weight`, `teacher.head.2.weight`"]


def test_more_layers_under_the_prefix_are_an_error() -> None:
    given = {f"model.{key}": tensor for key, tensor in trained().items()} | {"model.conv9.weight": torch.ones(3)}
    assert "1 tensors of the file are unexpected" in refused(given)


def test_auxiliary_heads_are_optional_in_a_test(tmp_path: Path) -> None:
    graph = load("googlenet", classes=3)
    reference = models.googlenet(weights=None, num_classes=3, aux_logits=False, init_weights=False)
    module = build(graph)
    with pytest.raises(CnnspecError, match="missing"):
        load_weights(module, dict(reference.state_dict()))
    found = load_weights(module, dict(reference.state_dict()), optional=["aux1", "aux2"])
    assert {name.split(".")[0] for name in found.missing} == {"aux1", "aux2"}
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(module.eval()(x), reference.eval()(x), atol=1e-5)


# --- by order ------------------------------------------------------------------------------------


def test_a_swapped_order_is_refused() -> None:
    swapped = {"bias": "weight", "weight": "bias", "running_mean": "running_var", "running_var": "running_mean"}
    items = list(trained().items())
    for a, b in [(1, 2), (3, 4)]:  # tensors of one shape
        other = list(items)
        other[a], other[b] = other[b], other[a]
        text = refused(dict(other), "order")
        assert "have different names" in text
        assert swapped[items[a][0].rpartition(".")[2]] in text


def test_other_names_are_accepted_in_order() -> None:
    given = {f"layers.{i}.{key.rpartition('.')[2]}": t for i, (key, t) in enumerate(trained().items())}
    module = build(loads(SPEC))
    load_weights(module, given, "order")
    assert same(module, trained())


# --- by a map ------------------------------------------------------------------------------------


def relabeled(reference: nn.Module) -> tuple[Weights, dict[str, str]]:
    """Rename the modules of a network as another library might."""
    names = dict.fromkeys(key.rpartition(".")[0] for key in reference.state_dict())
    renamed = {name: "backbone.blk" + name.replace("layer", "stages_").replace(".", "_") for name in names}
    tensors = {}
    for key, tensor in reference.state_dict().items():
        module, _, word = key.rpartition(".")
        tensors[f"{renamed[module]}.{word}"] = tensor
    return tensors, {name: renamed[name] for name in names}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "vgg11_bn", "googlenet", "inception_v3"])
@pytest.mark.parametrize("ordered", [True, False])
def test_proposed_maps_of_renamed_networks(tmp_path: Path, name: str, ordered: bool) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    reference = models.get_model(name, weights=None, num_classes=7, **options)
    weights, expected = relabeled(reference)
    if not ordered:
        weights = dict(sorted(weights.items()))
    module = build(load(name, classes=7))
    found = propose_map(module, weights, ordered)
    wrong = [key for key, value in found.modules.items() if expected[key] != value]
    assert set(wrong) <= set(found.uncertain)
    if ordered:
        # In torchvision's GoogLeNet, the auxiliary heads come before `fc`, whose tensors have the same shapes.
        assert wrong == (["fc", "aux1.fc2", "aux2.fc2"] if name == "googlenet" else [])
    (tmp_path / "map.json").write_text(WeightMap(modules=expected).model_dump_json())
    load_weights(module, weights, str(tmp_path / "map.json"))
    assert same(module, dict(reference.state_dict()))


def test_the_same_names_are_certain() -> None:
    found = propose_map(build(loads(SPEC)), dict(sorted(trained().items())), ordered=False)
    assert not found.uncertain
    assert found.modules == {name: name for name in ("conv1", "bn1", "head.2")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "cannot read"),
        ("[]", "cannot read"),
        ('{"modules": {"conv1": 3}}', "cannot read"),
        ('{"modules": {"conv1": "conv2"}}', "no module `conv2`"),
        ('{"modules": {"conv1": "conv1"}}', "missing"),
        ('{"modules": {"conv1": "bn1", "bn1": "bn1", "head.2": "head.2"}}', "twice"),
        (json.dumps({"modules": {"conv1": "head.2", "bn1": "bn1", "head.2": "conv1"}}), "do not match"),
    ],
)
def test_damaged_maps(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "map.json").write_text(text)
    assert expected in refused(trained(), str(tmp_path / "map.json"))
    assert "does not exist" in refused(trained(), str(tmp_path / "none.json"))


def test_weight_map_is_versioned() -> None:
    assert WeightMap(modules={}).version == 1
