"""Metrics by class, calibration, and the predictions of a run, compared with torchmetrics and with the files."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.runs import tiny
from PIL import Image
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from cnnspec import load_run, loads
from cnnspec.recipe import Folder, Setting
from cnnspec.training import TrainOptions, evaluate, train
from cnnspec.training.comparison.report import _metrics
from cnnspec.training.data.datasets import Pixels
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop.evaluate import score
from cnnspec.training.loop.metrics import calibration, class_metrics, confusion
from cnnspec.training.runs.json_files import read_result
from cnnspec.training.runs.plots import _of_all_classes

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("a $x^{", "b\nc", "d" * 60, "e,f", "\N{CJK UNIFIED IDEOGRAPH-732B}", "<b>&", "g")
SPEC = tiny("optimizer sgd lr=0.1; epochs 1; batch 20", shape="3x8x8", classes=7, layers="conv 3x3 8 | bn | relu")


class Given(torch.nn.Module):
    """A network that returns its input as logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


@pytest.mark.parametrize(("classes", "count"), [(2, 7), (5, 50), (10, 1000), (37, 400)])
def test_metrics_are_those_of_torchmetrics(classes: int, count: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    pixels = torch.randint(0, 256, (count, 1, 1, classes), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, max(2, classes - 3), (count,), generator=generator)
    scale = Preprocessing((1, classes), (0.0,), (0.2,))
    found = score(Given(), Pixels(pixels, labels), scale, torch.device("cpu"))
    metrics = found.metrics()
    probabilities = (pixels.flatten(1) / 255 / 0.2).softmax(1)
    settings: Any = {"num_classes": classes, "average": None}
    rows = {
        "precision": multiclass_precision(probabilities, labels, **settings),
        "recall": multiclass_recall(probabilities, labels, **settings),
        "f1": multiclass_f1_score(probabilities, labels, **settings),
    }
    for name, expected in rows.items():
        own = [row[name] or 0.0 for row in metrics["classes"]]
        torch.testing.assert_close(torch.tensor(own), expected, atol=1e-6, rtol=0)
    assert [row["images"] for row in metrics["classes"]] == torch.bincount(labels, minlength=classes).tolist()
    assert all(row["recall"] is None for row in metrics["classes"] if not row["images"])
    error = multiclass_calibration_error(probabilities, labels, num_classes=classes, n_bins=15)
    assert metrics["calibration_error"] == pytest.approx(float(error), abs=1e-6)
    assert sum(row["images"] for row in metrics["reliability"]) == count
    if classes <= 5:
        assert metrics["top5_acc"] is None
    else:
        top5 = multiclass_accuracy(probabilities, labels, num_classes=classes, top_k=5, average="micro")
        ties = (pixels.flatten(1).sort(1, descending=True).values[:, 4:6].diff(dim=1) == 0).sum()
        assert abs(metrics["top5_acc"] - float(top5)) * count <= float(ties)


def test_confident_predictions_are_in_the_last_bin() -> None:
    error, bins = calibration(torch.tensor([True, True, False]), torch.ones(3, dtype=torch.float64))
    assert error == pytest.approx(1 / 3)
    assert bins == [{"images": 3, "confidence": 1.0, "accuracy": pytest.approx(2 / 3)}]


def test_augmented_images_are_of_all_classes() -> None:
    labels = torch.tensor([0] * 500 + [1] * 2 + [3] + [2] * 90)
    assert labels[_of_all_classes(labels, 8)].tolist() == [0, 0, 0, 1, 1, 2, 2, 3]
    assert labels[_of_all_classes(labels[:3], 8)].tolist() == [0] * 3
    assert _of_all_classes(torch.arange(12).repeat(4), 8).tolist() == list(range(12))
    assert len(_of_all_classes(torch.arange(1000), 8)) == 20


def test_a_run_names_files_and_classes(tmp_path: Path) -> None:
    """Names of classes may contain anything that the names of folders may contain."""
    random = np.random.default_rng(1)
    for split, count in (("train", 6), ("test", 2)):
        for name in NAMES:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{index}.png")
    setting = Setting.of(Folder(path=str(tmp_path / "data"), val=0.3))
    graph = loads(SPEC)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        run = train(graph, TrainOptions(data=setting, out=tmp_path / "runs", offline=True)).folder
    assert [str(found.message) for found in shown if "font" in str(found.message)] == []
    names = sorted(NAMES)
    for file in ("confusion.png", "misclassified.png", "augmentation.png", "reliability.png"):
        assert (run / file).stat().st_size > 1000
    with (run / "confusion.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    assert table[0] == ["class", *names]
    assert [row[0] for row in table[1:]] == names
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    found = load_run(run).predict(tmp_path / "data" / "test")
    root = tmp_path / "data"
    assert [row["file"] for row in rows] == [Path(str(p.file)).relative_to(root).as_posix() for p in found]
    assert [(row["predicted_name"], float(row["probability"])) for row in rows] == [
        (p.name, p.probability) for p in found
    ]
    for row in rows:
        assert row["label_name"] == names[int(row["label"])] == row["file"].split("/")[1]
        assert row["predicted_name"] == names[int(row["predicted"])]
    result = json.loads((run / "result.json").read_text())
    assert set(result["metrics"]) == {"val", "test"}
    assert read_result(run)["metrics"] == result["metrics"]
    tested = evaluate(graph, run / "checkpoints" / "best.safetensors", data=setting, offline=True)
    assert tested["metrics"] == result["metrics"]["test"]


def test_the_report_averages_over_seeds_and_omits_damaged_metrics() -> None:
    one = {"classes": class_metrics(confusion(torch.tensor([0, 1]), torch.tensor([0, 0]), 2)), "top5_acc": None}
    two = {"classes": class_metrics(confusion(torch.tensor([0, 1]), torch.tensor([0, 1]), 2)), "calibration_error": 0.5}
    results: list[Any] = [
        {"metrics": {"test": one}},
        {"metrics": {"test": two}},
        {},
        {"metrics": {"test": {"classes": []}}},
    ]
    found = _metrics(results, "test", ["x", "y"])
    assert found is not None
    assert found.classes == [("y", 1.0, 0.5, 0.5), ("x", 0.75, 1.0, pytest.approx(5 / 6))]
    assert (found.top5, found.calibration_error) == (None, 0.5)
    assert _metrics(results[2:], "test", ["x", "y"]) is None
