"""`cnnspec init`: the starter spec has no diagnostics, fits the images, and trains."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
from PIL import Image

from cnnspec import CnnspecError
from cnnspec.cli.app import app
from cnnspec.compiler import compile_file
from cnnspec.training import TrainOptions, train


def images(folder: Path, classes: dict[str, int], size: tuple[int, int] = (20, 24), gray: bool = False) -> Path:
    random = np.random.default_rng(1)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 256, size if gray else (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def init(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["init", *map(str, arguments)], standalone_mode=False)


@pytest.mark.parametrize(
    ("folder", "classes", "size", "gray", "shape"),
    [
        ("photos", {"a": 6, "b": 6}, (20, 24), False, (3, 32, 32)),
        ("my photos (2)", {"x, y": 3, "z\n#": 30}, (60, 80), True, (1, 64, 64)),
        ("train", {str(n): 2 for n in range(12)}, (300, 200), False, (3, 224, 224)),
        ("2024", {"a": 2, "b": 2}, (128, 500), True, (3, 224, 224)),
        ('odd "name"', {"a": 2, "b": 2}, (8, 8), False, (3, 32, 32)),
        ("\N{CJK UNIFIED IDEOGRAPH-732B}", {"a": 2, "b": 2}, (8, 8), False, (3, 32, 32)),
    ],
)
def test_the_spec_fits_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    folder: str, classes: dict[str, int], size: tuple[int, int], gray: bool, shape: tuple[int, ...],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    images(tmp_path / folder, classes, size, gray)
    assert init(folder).exception is None
    (path,) = tmp_path.glob("*.cnn")
    done = compile_file(path)
    assert done.diagnostics == []
    graph = done.require_graph()
    assert (graph.input_shape, graph.output_shape) == (shape, (len(classes),))
    assert (graph.recipe.data.name == "folder") == ('"' not in folder)
    assert (graph.recipe.loss.args["class_weights"] == "balanced") == (
        max(classes.values()) > 3 * min(classes.values())
    )
    error = init(folder).exception
    assert isinstance(error, CnnspecError)
    assert "exists already" in error.diagnostics[0].message


def test_the_spec_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "data", {"a": 10, "b": 10})
    assert init("data", "--out", "start.cnn").exception is None
    graph = compile_file("start.cnn").require_graph()
    assert train(graph, TrainOptions(epochs=1, plots=False, offline=True)).state == "finished"


def test_folders_without_two_classes_are_errors(tmp_path: Path) -> None:
    for error in (init(images(tmp_path / "one", {"a": 2})).exception, init(tmp_path / "missing").exception):
        assert isinstance(error, CnnspecError)
        assert error.diagnostics[0].code == "E0503"


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = images(tmp_path / "two", {"a": 1, "b": 1})
    monkeypatch.setitem(sys.modules, "PIL", None)
    error = init(folder).exception
    assert isinstance(error, CnnspecError)
    assert error.diagnostics[0].code == "E0507"
