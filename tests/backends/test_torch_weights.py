"""Test weights from files: reading, matching, and rejecting."""

from __future__ import annotations

import itertools
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.runs import code
from torch import nn

from cnnspec import CnnspecError, build, load, loads
from cnnspec.backends.torch.matching import load_weights
from cnnspec.backends.torch.weights import read_weights
from cnnspec.recipe import Cifar10, FashionMini, Setting
from cnnspec.training import evaluate
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.datasets import ImageData, Pixels, load_data
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop.checkpoints import weight_bytes
from cnnspec.training.loop.evaluate import score

REAL = os.environ.get("CNNSPEC_DATA")
needs_real_data = pytest.mark.skipif(REAL is None, reason="needs the real datasets in CNNSPEC_DATA")

TINY = """network tiny
input 1x28x28
classes 10
stem conv 5x5 8 stride=4 | bn | relu
head global_avgpool | flatten | linear classes
"""


def tiny() -> nn.Module:
    return build(loads(TINY, name="tiny.cnn"))


def save(state: Any, folder: Path, ending: str) -> Path:
    path = folder / f"weights{ending}"
    if ending == ".safetensors":
        path.write_bytes(weight_bytes(state))
    else:
        torch.save({"state_dict": state, "epoch": 3} if ending == ".ckpt" else state, path)
    return path


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "model.", "network.", "module._orig_mod."])
def test_every_kind_of_file_is_loaded_by_name(tmp_path: Path, ending: str, prefix: str):
    source, target = tiny(), tiny()
    path = save({prefix + key: tensor for key, tensor in source.state_dict().items()}, tmp_path, ending)
    assert load_weights(target, read_weights(path)).count == 8
    for key, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], tensor)


@pytest.mark.parametrize("counted", [True, False])
def test_weights_are_matched_by_order(tmp_path: Path, counted: bool):
    source, target = tiny(), tiny()
    renamed = {f"other.{i}.{key.split('.')[-1]}": tensor for i, (key, tensor) in enumerate(source.state_dict().items())}
    if not counted:
        renamed = {key: tensor for key, tensor in renamed.items() if "num_batches_tracked" not in key}
    path = save(renamed, tmp_path, ".pt")
    assert load_weights(target, read_weights(path), "order").count == (8 if counted else 7)
    assert torch.equal(target.head[2].weight, source.head[2].weight)  # type: ignore[index, union-attr]
    with pytest.raises(CnnspecError) as error:
        load_weights(target, read_weights(path), "name")
    assert code(error) == "E0504"
    assert "--match order" in str(error.value)


def test_safetensors_have_no_order(tmp_path: Path):
    path = save(tiny().state_dict(), tmp_path, ".safetensors")
    with pytest.raises(CnnspecError) as error:
        read_weights(path, "order")
    assert code(error) == "E0504"


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_reinitialized_head_keeps_its_own_weights(prefix: str) -> None:
    source = tiny().state_dict()
    given = {prefix + key: tensor for key, tensor in source.items()} | {prefix + "head.2.weight": torch.zeros(3, 8)}
    target = tiny()
    own = target.head[2].weight.clone()  # type: ignore[index, union-attr]
    with pytest.raises(CnnspecError, match=r"use `--reinit head\.2`"):
        load_weights(target, given)
    assert load_weights(target, given, reinit=["head.2"]).count == 6
    assert torch.equal(target.head[2].weight, own)  # type: ignore[index, union-attr]
    assert torch.equal(target.stem[0].weight, source["stem.0.weight"])  # type: ignore[index, union-attr]
    without = {key: tensor for key, tensor in given.items() if "head" not in key}
    assert load_weights(tiny(), without, reinit=["head"]).count == 6
    with pytest.raises(CnnspecError, match="no module `haed`"):
        load_weights(tiny(), given, reinit=["haed"])


def test_other_shapes_are_rejected_and_nothing_is_loaded(tmp_path: Path):
    target = tiny()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    state = dict(tiny().state_dict())
    state["stem.0.weight"] = torch.zeros(8, 3, 5, 5)
    for match in ("name", "order"):
        with pytest.raises(CnnspecError) as error:
            load_weights(target, state, match, "odd.pt")  # type: ignore[arg-type]
        assert code(error) == "E0504"
        assert "[8, 1, 5, 5]" in str(error.value)
        assert "[8, 3, 5, 5]" in str(error.value)
    short = dict(list(state.items())[:-1])
    for match in ("name", "order"):
        with pytest.raises(CnnspecError) as error:
            load_weights(target, short, match)  # type: ignore[arg-type]
        assert code(error) == "E0504"
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[key])


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def test_a_hostile_broken_or_missing_file_is_a_diagnostic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.ckpt")
    Path("pickle.pt").write_bytes(pickle.dumps(Evil()))
    Path("noise.ckpt").write_bytes(os.urandom(1000))
    Path("noise.safetensors").write_bytes(os.urandom(1000))
    Path("empty.pt").write_bytes(b"")
    with zipfile.ZipFile("zip.pt", "w") as archive:
        archive.writestr("hello", "world")
    torch.save([torch.zeros(3)], "list.pt")
    torch.save({"state_dict": {"a": 3}}, "numbers.ckpt")
    torch.save(tiny(), "module.pt")
    save(tiny().state_dict(), tmp_path, ".pt")
    whole = Path("weights.pt").read_bytes()
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    Path("folder.pt").mkdir()
    for path in [
        *Path().glob("*.pt"),
        *Path().glob("*.ckpt"),
        *Path().glob("*.safetensors"),
        "none.pt",
        "weights.onnx",
    ]:
        if str(path) == "weights.pt":
            continue
        with pytest.raises(CnnspecError) as error:
            read_weights(path)
        assert code(error) == "E0505", path
    assert not Path("evil").exists()


def test_evaluate_returns_plain_data(tmp_path: Path):
    path = save(tiny().state_dict(), tmp_path, ".safetensors")
    graph = loads(TINY, name="tiny.cnn")
    for split, count in (("test", 1000), ("val", 500)):
        found = evaluate(graph, path, data=Setting.of(FashionMini()), split=split)  # type: ignore[arg-type]
        assert found[f"{split}_acc"] == found["correct"] / count
        assert found["images"] == count
        assert found["matched"] == 8


# --- the published checkpoints --------------------------------------------------------------------

PUBLISHED = {
    "resnet20": ("ResNet", 120, 0.9106, 0.9184),
    "preact_resnet20": ("ResNetPreAct", 123, 0.9107, 0.9180),
    "googlenet_cifar": ("GoogleNet", 345, 0.8970, 0.9040),
    "densenet_cifar": ("DenseNet", 315, 0.9023, 0.9072),
}


def published(name: str) -> Path:
    assert REAL
    return Path(REAL) / "uva-tutorial5" / f"{PUBLISHED[name][0]}.ckpt"


@needs_real_data
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_checkpoints_match_by_order(name: str):
    given = read_weights(published(name))
    module = build(name)
    assert load_weights(module, given, "order").count == PUBLISHED[name][1]
    for ours, theirs in zip(module.state_dict().values(), given.values(), strict=True):
        assert torch.equal(ours, theirs)


@needs_real_data
def test_a_published_checkpoint_predicts_a_slice_of_cifar10_as_torch_modules_do():
    """Compare the first 1,000 test images with the network of the tutorial in plain torch."""
    assert REAL
    graph = load("resnet20")
    data: ImageData = load_data(graph, Setting.of(Cifar10()), Path(REAL), offline=True)
    assert isinstance(data.test, Pixels)
    first = data.test.subset(torch.arange(1000))
    module = build(graph)
    given = read_weights(published("resnet20"))
    load_weights(module, given, "order")
    found = score(module, first, Preprocessing((32, 32), data.mean, data.std), torch.device("cpu"))
    by_hand = _tutorial_resnet({re.sub(r"^model\.", "", key): tensor for key, tensor in given.items()})
    images = Preprocess(Preprocessing((32, 32), data.mean, data.std))(first.pixels)
    with torch.no_grad():
        logits = by_hand(images)
        assert torch.allclose(logits, module.eval()(images), atol=1e-4)
    assert found.correct == int((logits.argmax(1) == first.labels).sum())
    assert found.accuracy > 0.88


def _tutorial_resnet(state: dict[str, torch.Tensor]) -> nn.Module:
    class Block(nn.Module):
        def __init__(self, c: int, out: int) -> None:
            super().__init__()
            half = c != out
            conv = nn.Conv2d(c, out, 3, 2 if half else 1, 1, bias=False)
            self.net = nn.Sequential(
                conv, nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
            )
            self.downsample = nn.Conv2d(c, out, 1, 2) if half else None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.net(x)
            return torch.relu(z + (self.downsample(x) if self.downsample else x))

    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    network = nn.Sequential()
    network.input_net = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    network.blocks = nn.Sequential(*(Block(a, b) for a, b in itertools.pairwise(widths)))
    network.output_net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    network.load_state_dict(state)
    return network.eval()


@pytest.mark.slow
@needs_real_data
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_checkpoints_have_their_published_accuracy(name: str):
    assert REAL
    _, matched, test, val = PUBLISHED[name]
    for split, wanted in (("test", test), ("val", val)):
        found = evaluate(load(name), published(name), match="order", data_dir=REAL, offline=True, split=split)  # type: ignore[arg-type]
        assert found[f"{split}_acc"] == wanted
        assert found["matched"] == matched


def test_flips_are_averaged_with_tta(tmp_path: Path) -> None:
    """Compare with the mean logits of two networks, one of which sees mirror images."""
    graph = loads("input 1x28x28\nclasses 10\nconv 7x7 4 stride=7 pad=0 | flatten | linear classes\n")
    torch.manual_seed(3)
    module = build(graph).eval()
    data = load_data(graph, Setting.of(FashionMini(test=200)), tmp_path)
    assert isinstance(data.test, Pixels)
    found = score(module, data.test, Preprocessing((28, 28), data.mean, data.std), torch.device("cpu"), tta="hflip")
    plain = score(module, data.test, Preprocessing((28, 28), data.mean, data.std), torch.device("cpu"))
    images = Preprocess(Preprocessing((28, 28), data.mean, data.std))(data.test.pixels)
    with torch.no_grad():
        logits = (module(images) + module(images.flip(3))) / 2
    assert torch.equal(found.predicted, logits.argmax(1))
    assert not torch.equal(found.predicted, plain.predicted)
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, data.test.labels)), rel=1e-5)
