"""What weights carry: classes and preprocessing, used by tests and resumed runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.runs import tiny

pytest.importorskip("torch")
import torch
from PIL import Image
from safetensors import safe_open
from torchvision import models

from cnnspec import CnnspecError, Graph, load, loads
from cnnspec.recipe import Folder, Setting
from cnnspec.training import TrainOptions, evaluate, train
from cnnspec.training.loop.about import about_weights

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = tiny(
    "optimizer sgd lr=0.1; epochs 3; batch 12; NORMALIZE", shape="3x8x8", classes=3, layers="conv 3x3 8 | bn | relu"
)
COLORS = {"blue": (20, 40, 220), "green": (30, 200, 60), "red": (220, 30, 40)}


def write(folder: Path, *splits: str, classes: Any = COLORS, count: int = 12, shade: int = 0) -> Path:
    random = np.random.default_rng(len(splits))
    for split in splits:
        for name in classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                noise = random.integers(-20, 20, (10, 12, 3)) + shade
                pixels = (np.array(COLORS.get(name, (9, 9, 9))) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def graph_of(normalize: str = "") -> Graph:
    return loads(SPEC.replace("NORMALIZE", normalize), name="tiny.cnn")


def data(folder: Path) -> Setting:
    return Setting.of(Folder(path=str(folder), val=0.25))


def run(tmp_path: Path, graph: Graph, **options: Any) -> Path:
    write(tmp_path / "data", "train", "test")
    values: dict[str, Any] = {"out": tmp_path / "runs", "plots": False, "offline": True, **options}
    return train(graph, TrainOptions(data=data(tmp_path / "data"), **values)).folder


def test_weights_carry_spec_classes_and_preprocessing(tmp_path: Path) -> None:
    folder = run(tmp_path, graph_of("normalize half"))
    with safe_open(folder / "checkpoints" / "best.safetensors", "pt") as file:
        metadata = file.metadata()
    (found,) = (json.loads(value) for key, value in metadata.items() if key != "format")
    about = found["about"]
    assert about["format_version"] == 2
    assert about["classes"] == ["blue", "green", "red"]
    assert about["spec"].startswith("network tiny")
    assert about["preprocessing"]["mean"] == [0.5] * 3
    assert about["input_shape"] == [3, 8, 8]
    result = json.loads((folder / "result.json").read_text())
    assert result["preprocessing"]["origins"] == {"normalize": "recipe", "resize": "default"}
    assert result["classes"] == about["classes"]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert list(checkpoint["run"]["about"]["preprocessing"]["mean"]) == [0.5] * 3


@pytest.mark.parametrize("file", ["best.safetensors", "last.ckpt"])
def test_another_training_folder_does_not_change_a_test(tmp_path: Path, file: str) -> None:
    weights = run(tmp_path, graph_of()) / "checkpoints" / file
    own = evaluate(graph_of(), weights, data=data(tmp_path / "data"), offline=True)
    assert own["test_acc"] == 1.0
    assert own["preprocessing"]["origins"]["normalize"] == "weights"
    other = write(tmp_path / "other", "train", shade=90)
    (tmp_path / "data" / "test").rename(other / "test")
    found = evaluate(graph_of(), weights, data=data(other), offline=True)
    assert (found["test_acc"], found["test_loss"]) == (own["test_acc"], own["test_loss"])
    assert found["data_is_other"]


def test_test_images_alone_are_enough(tmp_path: Path) -> None:
    weights = run(tmp_path, graph_of()) / "checkpoints" / "best.safetensors"
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "data" / "test").rename(alone / "test")
    found = evaluate(graph_of(), weights, data=data(alone), offline=True)
    assert found["test_acc"] == 1.0
    assert not found["data_changes"]


def test_a_subset_of_the_classes_is_mapped_by_name(tmp_path: Path) -> None:
    weights = run(tmp_path, graph_of()) / "checkpoints" / "best.safetensors"
    some = write(tmp_path / "some", "test", classes=["green", "red"])
    found = evaluate(graph_of(), weights, data=data(some), offline=True)
    assert (found["test_acc"], found["images"]) == (1.0, 24)
    assert found["data_is_other"]


def test_other_class_names_are_an_error_that_shows_both(tmp_path: Path) -> None:
    weights = run(tmp_path, graph_of()) / "checkpoints" / "best.safetensors"
    other = write(tmp_path / "other", "test", classes=["red", "yellow"])
    with pytest.raises(CnnspecError) as raised:
        evaluate(graph_of(), weights, data=data(other), offline=True)
    (diagnostic,) = raised.value.diagnostics
    assert "`yellow`" in diagnostic.message
    assert "classes of the weights: `blue`, `green`, `red`" in diagnostic.notes


def test_a_changed_folder_is_an_error(tmp_path: Path) -> None:
    weights = run(tmp_path, graph_of()) / "checkpoints" / "best.safetensors"
    (tmp_path / "data" / "test" / "red" / "3.png").unlink()
    with pytest.raises(CnnspecError) as raised:
        evaluate(graph_of(), weights, data=data(tmp_path / "data"), offline=True)
    assert raised.value.diagnostics[0].code == "E0519"


def test_the_command_line_overrides_the_weights(tmp_path: Path) -> None:
    weights = run(tmp_path, graph_of()) / "checkpoints" / "best.safetensors"
    edited = evaluate(graph_of("normalize none"), weights, data=data(tmp_path / "data"), offline=True)
    assert edited["preprocessing"]["origins"]["normalize"] == "weights"
    given = loads(SPEC.replace("NORMALIZE", ""), name="tiny.cnn", normalize="none")
    found = evaluate(given, weights, data=data(tmp_path / "data"), offline=True)
    assert found["preprocessing"]["origins"]["normalize"] == "--set"
    assert list(found["preprocessing"]["mean"]) == [0.0] * 3


def test_fine_tuning_keeps_the_preprocessing_of_the_weights(tmp_path: Path) -> None:
    first = run(tmp_path, graph_of("normalize half"))
    second = run(tmp_path, graph_of(), weights=str(first / "checkpoints" / "best.safetensors"))
    result = json.loads((second / "result.json").read_text())
    assert result["preprocessing"]["mean"] == [0.5] * 3
    assert result["preprocessing"]["origins"] == {"normalize": "weights", "resize": "weights"}


@pytest.mark.parametrize(
    ("name", "tag", "resize", "mean"),
    [
        ("resnet18", "DEFAULT", 256, 0.485),
        ("resnet50", "IMAGENET1K_V1", 256, 0.485),
        ("resnet50", "IMAGENET1K_V2", 232, 0.485),
        ("googlenet", "DEFAULT", 256, 0.5),
        ("inception_v3", "DEFAULT", 342, 0.5),
        ("vgg11_bn", "DEFAULT", 256, 0.485),
    ],
)
def test_published_weights_bring_their_preprocessing(name: str, tag: str, resize: int, mean: float) -> None:
    found = about_weights(f"torchvision:{tag}", load(name)).preprocessing
    assert found is not None
    assert (found.resize, found.mean[0], len(found.std)) == (resize, mean, 3)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "inception_v3", "densenet121", "vgg11_bn"])
def test_shipped_specs_agree_with_the_published_labels(tmp_path: Path, name: str) -> None:
    """Test weights of torchvision's constructors on images that the reference labeled under its own preprocessing."""
    torch.manual_seed(1)
    options: dict[str, Any] = (
        {"transform_input": True, "init_weights": False} if "ption" in name or name[0] == "g" else {}
    )
    reference = models.get_model(name, weights=None, num_classes=3, **options).eval()
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    random = np.random.default_rng(3)
    pictures = []
    for index in range(12):
        coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        size = [(300, 240), (200, 330), (400, 300)][index % 3]
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        pictures.append((picture, transforms(picture)))
    with torch.no_grad():
        logits = reference(torch.stack([tensor for _, tensor in pictures]))
    classifier = [module for module in reference.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():  # random weights prefer one class: balance them
        spread = (logits - logits.mean(0)) / logits.std(0)
        classifier = reference.fc if hasattr(reference, "fc") else classifier
        classifier.weight /= logits.std(0)[:, None]
        classifier.bias.copy_((classifier.bias - logits.mean(0)) / logits.std(0))
    labels = spread.argmax(1).tolist()
    margins = spread.sort(1).values[:, -1] - spread.sort(1).values[:, -2]
    assert len(set(labels)) > 1
    for index, ((picture, _), label, margin) in enumerate(zip(pictures, labels, margins.tolist(), strict=True)):
        if margin > 0.05:  # Pillow and torch round resized pixels differently
            (tmp_path / "data" / "test" / "abc"[label]).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "data" / "test" / "abc"[label] / f"{index}.png")
            (tmp_path / "data" / "train" / "abc"[label]).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "data" / "train" / "abc"[label] / f"{index}.png")
    for label in "abc":
        (tmp_path / "data" / "train" / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / "train" / label / "x.png")
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    found = evaluate(load(name, classes=3), tmp_path / "weights.pth", data=data(tmp_path / "data"), offline=True)
    assert found["test_acc"] == 1.0
    assert found["images"] >= 8
    assert found["preprocessing"]["origins"] == {"normalize": "recipe", "resize": "recipe"}
