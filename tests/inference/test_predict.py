"""Predictions of trained networks: the forms of images, the sources of weights, and the command."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from PIL import Image
from torchvision import models
from typer.testing import CliRunner

from cnnspec import CnnspecError, Graph, load, load_run, loads
from cnnspec.cli.app import app
from cnnspec.inference import network as inference
from cnnspec.recipe import Folder, Setting
from cnnspec.training import TrainOptions, evaluate, train
from cnnspec.training.data.datasets import load_data
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop.evaluate import Evaluator, score

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = """\
network tiny
param width = 8
input 3x9x8
classes 10
conv 3x3 width | bn | relu
conv 3x3 24 | bn | relu
head flatten | linear classes
train {
    optimizer sgd lr=0.1
    epochs 1
    batch 8
    RECIPE
}
"""
NAMES = ("ash", "box elder", "oak, red")


def mixed_images(folder: Path) -> None:
    """Write images in several modes, sizes, formats and orientations."""
    random = np.random.default_rng(5)
    for split in ("train", "test"):
        for label, name in enumerate(NAMES):
            (folder / split / name / "more").mkdir(parents=True)
            for index in range(9):
                size = [(9, 8), (20, 13), (7, 31)][index % 3]
                pixels = (random.integers(0, 120, (*size, 3)) + 45 * label).astype(np.uint8)
                mode, ending = [("RGB", "png"), ("L", "bmp"), ("RGBA", "webp"), ("P", "gif"), ("CMYK", "jpg")][
                    index % 5
                ]
                image = Image.fromarray(pixels).convert(mode)
                exif = Image.Exif()
                exif[0x0112] = index % 8 + 1
                image.save(folder / split / name / ("more" if index == 4 else "") / f"{index}.{ending}", exif=exif)
            deep = random.integers(0, 65536, (9, 8)).astype(np.uint16)
            Image.fromarray(deep).save(folder / split / name / "deep.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained on mixed images, which are next to it in `data`."""
    folder = tmp_path_factory.mktemp("trained")
    mixed_images(folder / "data")
    return train_on(folder, graph_of())


def train_on(folder: Path, graph: Graph) -> Path:
    options = TrainOptions(data=data(folder / "data"), out=folder / "runs", plots=False, offline=True)
    return train(graph, options).folder


def graph_of(recipe: str = "", **params: Any) -> Graph:
    return loads(SPEC.replace("RECIPE", recipe), classes=3, width=5, **params)


def data(folder: Path) -> Setting:
    return Setting.of(Folder(path=str(folder), val=0))


def root(run: Path) -> Path:
    return run.parents[2]


def failing(call: Callable[[], Any]) -> Any:
    with pytest.raises(CnnspecError) as raised:
        call()
    return raised.value.diagnostics[0]


def test_batches_do_not_change_the_logits_of_an_image() -> None:
    torch.manual_seed(2)
    graph = graph_of()
    evaluator = Evaluator(inference.to_module(graph), torch.device("cpu"))
    images = torch.randn(37, *graph.input_shape).contiguous(memory_format=torch.channels_last)
    for count in (1, 2, 3, 4, 5, 8, 11, 36):
        assert torch.equal(torch.cat([evaluator(part) for part in images.split(count)]), evaluator(images))


@pytest.mark.parametrize("recipe", ["", "tta hflip", "normalize half; resize 12", "resize fit=letterbox mode=bicubic"])
@pytest.mark.parametrize("batch", [None, 1, 5])
def test_predictions_equal_those_of_a_test(tmp_path: Path, recipe: str, batch: int | None) -> None:
    mixed_images(tmp_path / "data")
    graph = graph_of(recipe.replace("; ", "\n"))
    run = train_on(tmp_path, graph)
    network = load_run(run)
    images = load_data(graph, data(tmp_path / "data"), tmp_path, classes=network.classes).test
    assert images is not None
    tested = score(network.module, images, network.preprocessing, torch.device("cpu"), tta=graph.recipe.tta)
    found = network.predict(tmp_path / "data" / "test", batch=batch)
    assert [prediction.file for prediction in found] == [str(path) for path in images.paths() or ()]  # type: ignore[union-attr]
    assert [prediction.probability for prediction in found] == tested.probability.tolist()
    assert [prediction.name for prediction in found] == [NAMES[index] for index in tested.predicted]
    result = evaluate(graph, network.weights, data=data(tmp_path / "data"), offline=True)
    assert result["correct"] == sum(p.name in str(p.file) for p in found)


def test_workers_change_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_run(trained)
    folder = root(trained) / "data"
    alone = network.predict(folder)
    monkeypatch.setattr(inference, "default_workers", lambda: 2)
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    handler = signal.getsignal(signal.SIGCHLD)
    together = network.predict(folder, batch=4)
    assert signal.getsignal(signal.SIGCHLD) == handler  # that of torch would raise anywhere
    assert [(p.file, p.probabilities.tolist()) for p in together] == [(p.file, p.probabilities.tolist()) for p in alone]
    assert len(alone) == 60


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "E0514"),
        (MemoryError(), "E0514"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "E0514"),
        (RuntimeError("broken"), None),
        (ConnectionError("broken"), None),
    ],
    ids=str,
)
def test_a_death_of_a_worker_and_little_memory_are_told_from_other_errors(
    error: Exception | None, code: str | None, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        if error is None:
            os._exit(1)
        raise error

    before = {*multiprocessing.active_children()}
    monkeypatch.setattr(inference, "default_workers", lambda: 2)
    monkeypatch.setattr(inference, "read_image", fail)
    with pytest.raises(CnnspecError if code else type(error)) as raised:  # type: ignore[arg-type]
        load_run(trained).predict(root(trained) / "data", batch=4)
    assert {*multiprocessing.active_children()} == before  # although the exception is kept
    if isinstance(raised.value, CnnspecError):
        assert raised.value.diagnostics[0].code == code
    else:
        assert "broken" in str(raised.value)


@pytest.mark.parametrize("file", ["best.safetensors", "best.ckpt", "last.ckpt"])
def test_weights_are_enough(trained: Path, tmp_path: Path, file: str) -> None:
    """Not only the network, but also its parameters are in the weights."""
    copied = tmp_path / file
    copied.write_bytes((trained / "checkpoints" / file).read_bytes())
    found = load_run(copied)
    assert found.classes == NAMES
    assert found.graph == load_run(trained).graph
    assert found.graph.output_shape == (3,)
    images = [root(trained) / "data" / "test" / name / "0.png" for name in NAMES]
    expected = load_run(trained).predict(images)
    assert [p.top() for p in found.predict(images)] == [p.top() for p in expected]


def test_every_form_of_an_image_gives_the_same_prediction(trained: Path) -> None:
    network = load_run(trained)
    path = root(trained) / "data" / "test" / NAMES[0] / "3.gif"
    picture = Image.open(path).convert("RGB")
    array = np.array(picture)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms: list[Any] = [
        str(path),
        path,
        picture,
        array,
        array.astype(np.float32).transpose(2, 0, 1) / 255,
        array.astype(np.float64).transpose(2, 0, 1) / 255,
        tensor,
        tensor / 255,
        (tensor / 255).requires_grad_(),
    ]
    expected = network.predict(path)[0]
    for form in forms:
        (found,) = network.predict(form)
        assert torch.equal(found.probabilities, expected.probabilities)
    found = network.predict(forms)
    assert [p.probabilities.tolist() for p in found] == [expected.probabilities.tolist()] * len(forms)
    assert [p.file for p in found] == [str(path)] * 2 + [None] * 7
    for batch in (array[None].repeat(3, 0), tensor[None].expand(3, -1, -1, -1), iter([array] * 3)):
        assert [p.top() for p in network.predict(batch)] == [expected.top()] * 3
    assert network.predict([]) == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pillow_images_are_read_as_files(trained: Path, tmp_path: Path, mode: str, orientation: int) -> None:
    network = load_run(trained)
    pixels = np.random.default_rng(3).integers(0, 256, (11, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("RGB" if mode == "I;16" else mode)
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    picture.save(path, exif=exif)
    # Not by its path: Pillow 13 applies the orientation of some TIFF files twice, if it opens them itself.
    with path.open("rb") as file, Image.open(file) as opened:
        opened.load()  # which rotates a TIFF
        size = opened.size
        (found,) = network.predict(opened)
        assert opened.size == size
    assert torch.equal(found.probabilities, network.predict(path)[0].probabilities)


def test_a_gray_image_is_one_for_every_form(trained: Path) -> None:
    network = load_run(trained)
    gray = np.random.default_rng(1).integers(0, 256, (9, 8), dtype=np.uint8)
    forms = [gray, gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None], gray / 255, gray[None] / 255]
    assert len({tuple(network.predict(form)[0].probabilities.tolist()) for form in forms}) == 1


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((3, 9, 8), np.uint8), "it has 8 channels, read as [H, W, C]"),
        (torch.zeros(9, 8, 3), "it has 9 channels, read as [C, H, W]"),
        (torch.randn(3, 9, 8), "its values are from"),
        (torch.full((3, 9, 8), torch.nan), "its values are from nan"),
        (torch.zeros(3, 9, 8, dtype=torch.int32), "the type int32"),
        (np.zeros((9, 8), np.int64), "the type int64"),
        (np.zeros((0, 8, 3), np.uint8), "its shape is [0, 8, 3]"),
        (np.zeros(8, np.uint8), "its shape is [8]"),
        (np.array(["a"]), "the type <U1"),
        (None, "the type object"),
        (3, "the type int64"),
    ],
)
def test_other_values_are_no_images(trained: Path, image: Any, said: str) -> None:
    error = failing(lambda: load_run(trained).predict([np.zeros((9, 8), np.uint8), image]))
    assert (error.code, error.message) == ("E0503", "cannot read the image number 2")
    assert said in error.notes[0]


def test_published_weights_bring_their_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    reference = models.resnet18().eval()
    url = models.ResNet18_Weights.DEFAULT.url
    torch.save(reference.state_dict(), tmp_path / "hub" / "checkpoints" / Path(url).name)
    found = load_run("torchvision:DEFAULT", spec="resnet18", offline=True)
    assert found.classes == tuple(models.ResNet18_Weights.DEFAULT.meta["categories"])
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (240, 300, 3), dtype=np.uint8))
    (prediction,) = found.predict(picture)
    with torch.inference_mode():
        expected = reference(models.ResNet18_Weights.DEFAULT.transforms()(picture)[None]).softmax(1)[0]
    torch.testing.assert_close(prediction.probabilities.float(), expected, atol=5e-3, rtol=0.02)
    plain = tmp_path / "plain.pth"
    torch.save(reference.state_dict(), plain)
    assert load_run(plain, spec="resnet18").classes[:2] == ("0", "1")
    assert failing(lambda: load_run(plain)).message == "the weights do not say which network they belong to"
    assert "`--spec FILE`" in failing(lambda: load_run(plain)).help
    assert failing(lambda: load_run("torchvision:DEFAULT")).code == "E0505"


def test_weights_without_preprocessing_ask_for_it(tmp_path: Path) -> None:
    graph = graph_of()
    torch.save(inference.to_module(graph).state_dict(), tmp_path / "own.pt")
    error = failing(lambda: load_run(tmp_path / "own.pt", spec=graph))
    assert (error.code, error.help) == ("E0511", "set it as in training, for example with `--set normalize=imagenet`")
    found = load_run(tmp_path / "own.pt", spec=graph_of(normalize="imagenet"))
    assert found.preprocessing == Preprocessing((9, 8), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("missing.pt", "E0505", "not found"),
        ("x" * 300 + ".pt", "E0505", "cannot read"),
        ("x" * 300, "E0505", "extension"),
        ("missing", "E0505", "extension"),
        ("empty", "E0505", "not the folder of a run"),
        ("runs", "E0505", "not the folder of a run"),
        ("runs/tiny/7", "E0505", "no weights yet"),
        ("broken/tiny/1", "E0506", "cannot read `result.json`"),
        ("noise.safetensors", "E0505", "cannot read weights"),
        ("noise.pt", "E0505", "cannot read weights"),
        ("noise.ckpt", "E0505", "cannot read weights"),
        ("half.safetensors", "E0505", "cannot read weights"),
        ("half.pt", "E0505", "cannot read weights"),
        ("half.bin", "E0505", "cannot read weights"),
        ("empty.pth", "E0505", "cannot read weights"),
        ("empty.safetensors", "E0505", "cannot read weights"),
        ("no_tensors.pt", "E0505", "does not contain a `state_dict`"),
        ("whole.pt", "E0505", "do not say which network"),
    ],
)
def test_other_sources_are_errors(trained: Path, tmp_path: Path, source: str, code: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "tiny" / "7" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "7" / "result.json").write_text((trained / "result.json").read_text())
    (tmp_path / "broken" / "tiny" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "tiny" / "1" / "result.json").write_text("{")
    for ending in ("safetensors", "pt", "ckpt"):
        (tmp_path / f"noise.{ending}").write_bytes(b"\x10" * 64)
    torch.save({"a": torch.ones(100)}, tmp_path / "whole.pt")
    torch.save({"a": "text"}, tmp_path / "no_tensors.pt")
    best = (trained / "checkpoints" / "best.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(best[: len(best) // 2])
    for name in ("half.pt", "half.bin"):
        (tmp_path / name).write_bytes((tmp_path / "whole.pt").read_bytes()[:-300])
    for name in ("empty.pth", "empty.safetensors"):
        (tmp_path / name).touch()
    error = failing(lambda: load_run(tmp_path / source))
    assert error.code == code
    assert said in error.message
    if source == "runs":
        assert "runs/tiny/7`" in error.help


def metadata(trained: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write weights whose metadata were changed."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    from cnnspec.training.loop.checkpoints import METADATA, weight_bytes

    original = trained / "checkpoints" / "best.safetensors"
    with safe_open(original, "pt") as file:
        found = json.loads(file.metadata()[METADATA])
    change(found["about"])
    path = tmp_path / "changed.safetensors"
    path.write_bytes(weight_bytes(load_file(original), found))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(model="{"),
        lambda about: about.update(model=3),
        lambda about: about.update(model=about["model"].replace('"flatten"', '"conv"')),
        lambda about: about.update(model=about["model"].replace('"linear"', '"lineer"')),
        lambda about: about.update(model=about["model"].replace('"input":[3,9,8]', '"input":[3,1,8]')),
        lambda about: about.update(model=about["model"].replace('"batch":8', '"batch":-8')),
        lambda about: about.pop("spec"),
        lambda about: about.update(format_version=99),
        lambda about: about.update(classes=["one"]),
        lambda about: about.update(classes=4),
        lambda about: about["preprocessing"].update(std=[0]),
    ],
)
def test_damaged_metadata_is_an_error(trained: Path, tmp_path: Path, change: Any) -> None:
    error = failing(lambda: load_run(metadata(trained, tmp_path, change)))
    assert error.code in ("E0504", "E0505")


# --- the command ---------------------------------------------------------------------------------


def cnnspec(*arguments: object, text: str = "") -> Any:
    """Run the command in this process, in the current folder."""
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], input=text, standalone_mode=False)


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two readable images, and files that are not images."""
    path = tmp_path_factory.mktemp("images")
    (path / "in").mkdir()
    source = root(trained) / "data" / "test" / NAMES[0]
    (path / "in" / "a.png").write_bytes((source / "0.png").read_bytes())
    (path / "in" / "b,\n1.png").write_bytes((source / "3.gif").read_bytes())
    (path / "in" / "damaged.png").write_bytes((source / "0.png").read_bytes()[:60])
    (path / "in" / "notes.txt").write_text("no image")
    (path / "in" / ".hidden.png").write_bytes(b"")
    return path


def test_the_command_reports_what_it_cannot_read_and_goes_on(
    trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    expected = load_run(trained).predict([folder / "in" / "a.png", folder / "in" / "b,\n1.png"])
    done = cnnspec(trained, "in", "missing.png", "--json")
    assert done.return_value == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == ["in/a.png", "in/b,\n1.png"]
    for row, prediction in zip(rows, expected, strict=True):
        assert [(found["class"], found["probability"]) for found in row["predictions"]] == prediction.top()
    errors = done.stderr.splitlines()
    assert errors[0] == "note: skipped hidden and system files: `.hidden.png`"
    assert errors[1].startswith("note: skipped files in `in` that are not images: 1 with `.txt`")
    assert errors[2].startswith("in/damaged.png: cannot read the image `damaged.png`: ")
    assert errors[3].startswith("missing.png: cannot read the image `missing.png`: ")
    assert errors[4] == "2 of 4 images could not be read"


def test_csv_and_paths_from_stdin(trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = cnnspec(trained, "-", "--csv", "--top", 2, text="in/a.png\r\n\nin/a.png\n")
    assert (done.return_value, done.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    expected = load_run(trained).predict(folder / "in" / "a.png")[0].top(2)
    assert [(row["file"], row["rank"], row["class"], float(row["probability"])) for row in rows] == [
        ("in/a.png", str(rank), *row) for rank, row in enumerate(expected, 1)
    ] * 2


def test_the_table_fits_80_columns(trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    long = folder / ("deep" * 12) / ("folder" * 12)
    long.mkdir(parents=True, exist_ok=True)
    (long / "a.png").write_bytes((folder / "in" / "a.png").read_bytes())
    done = cnnspec(trained, f"{long.parent.name}/**/*.png", "in/[a-b]*", "--top", 9)
    lines = done.stdout.splitlines()
    assert done.return_value == 0
    assert len(lines) == 2 + 3 * 3
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[0].startswith("...")
    assert lines[2].split()[0].endswith("folder/a.png")
    prediction = load_run(trained).predict(folder / "in" / "a.png")[0]
    assert lines[5].endswith(f"{prediction.probability:.2%}")
    assert [line[30:].strip().rpartition(" ")[0].strip() for line in lines[5:8]] == [
        name for name, _ in prediction.top()
    ]
    assert "b,\\n1.png" in lines[8]


def test_nothing_to_read_is_an_error(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    done = cnnspec(trained, "empty", "*.png")
    assert done.return_value == 1
    assert done.stderr.splitlines() == [
        "empty: `empty` contains no images",
        "*.png: cannot read the image `*.png`: [Errno 2] No such file or directory: '*.png'",
        "2 of 2 images could not be read",
    ]


@pytest.mark.parametrize("arguments", [["--json", "--csv"], ["--set", "width=3"], ["--top", "0"]])
def test_contradicting_options_are_usage_errors(
    trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(folder)
    assert type(cnnspec(trained, "in/a.png", *arguments).exception).__name__ == "BadParameter"


def test_shipped_specs_carry_their_parameters(tmp_path: Path) -> None:
    mixed_images(tmp_path / "data")
    graph = load("lenet5", classes=3, optimizer="adam", epochs=1, batch=8)
    found = load_run(train_on(tmp_path, graph) / "checkpoints" / "last.ckpt")
    assert (found.graph, found.classes) == (graph, NAMES)
    assert len(found.predict(tmp_path / "data" / "test")) == 30
