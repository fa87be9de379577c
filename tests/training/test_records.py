"""Test datasets of the Hugging Face library and of a program: the same images as a folder, and their errors.

The expected values are those that the same images have as files of a folder, or are computed with NumPy here.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import config
from datasets.packaged_modules.parquet.parquet import Parquet
from harness.runs import code
from PIL import Image
from torch.utils.data import Dataset, TensorDataset
from torchvision import transforms

from cnnspec import CnnspecError, Graph, loads
from cnnspec.cli.training_options import find_data
from cnnspec.recipe import DATA_SETS, Folder, FromPython, HuggingFace, Recipe, Setting
from cnnspec.training import Splits, TrainOptions, evaluate, train
from cnnspec.training.data.datasets import ImageData, load_data

CLASSES = ("ant", "bee", "cat")
RNG = np.random.default_rng(5)
PIXELS = {
    split: [RNG.integers(0, 256, (7 + i % 3, 6, 3), dtype=np.uint8) for i in range(count)]
    for split, count in (("train", 12), ("test", 6))
}
LABELS = {split: [i % 3 for i in range(len(found))] for split, found in PIXELS.items()}


def graph(channels: int = 3, classes: int = 3, recipe: str = "") -> Graph:
    return loads(
        f"input {channels}x8x8\nclasses {classes}\nstem conv 3x3 4 | bn | relu\n"
        f"head global_avgpool | flatten | linear classes\ntrain {{ batch 4; epochs 1; {recipe} }}",
        name="net.cnn",
    )


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_folder(folder: Path) -> Setting:
    for split, images in PIXELS.items():
        for i, pixels in enumerate(images):
            place = folder / split / CLASSES[LABELS[split][i]]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:02}.png").write_bytes(png(pixels))
    return Setting.of(Folder(path=str(folder), val=0))


def write_parquet(folder: Path, label: str = "names", **columns: Any) -> Setting:
    folder.mkdir(parents=True)
    kind: Any = datasets.ClassLabel(names=list(CLASSES)) if label == "names" else datasets.Value(label)
    for split, images in PIXELS.items():
        labels: list[Any] = LABELS[split]
        if label == "string":
            labels = [CLASSES[i] for i in labels]
        rows = {"image": [{"bytes": png(pixels), "path": None} for pixels in images], "label": labels, **columns}
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return Setting.of(HuggingFace(path=str(folder), val=0))


def tensors(data: ImageData, split: str) -> list[tuple[torch.Tensor, int]]:
    part = getattr(data, split)
    return [
        (image[0], label) for image, label in zip(part.read(torch.arange(len(part))), part.labels.tolist(), strict=True)
    ]


def same(a: list[tuple[torch.Tensor, int]], b: list[tuple[torch.Tensor, int]]) -> bool:
    def sorted_by_content(found: list[tuple[torch.Tensor, int]]) -> list[Any]:
        return sorted((label, image.numpy().tobytes()) for image, label in found)

    return sorted_by_content(a) == sorted_by_content(b)


class Pairs(Dataset[Any]):
    """A dataset of pairs, with images of one kind."""

    def __init__(self, images: list[Any], labels: list[Any]) -> None:
        self.images, self.labels_ = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels_[index]


KINDS = {
    "PIL": Image.fromarray,
    "array": lambda pixels: pixels,
    "bytes": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
    "ToTensor": transforms.ToTensor(),
    "double": lambda pixels: (pixels / 255.0).transpose(2, 0, 1),
}


# --- the same images -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("label", ["names", "string", "int64"])
def test_parquet_files_are_read_as_the_folder_of_the_same_images(tmp_path: Path, label: str, channels: int):
    expected = load_data(graph(channels), write_folder(tmp_path / "folder"), tmp_path)
    found = load_data(graph(channels), write_parquet(tmp_path / "parquet", label), tmp_path / "data")
    assert found.names == (CLASSES if label != "int64" else ("0", "1", "2"))
    for split in PIXELS:
        assert same(tensors(found, split), tensors(expected, split))
    assert (found.mean, found.std) == (expected.mean, expected.std)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_program_are_those_of_the_folder(tmp_path: Path, kind: str, channels: int):
    expected = load_data(graph(channels), write_folder(tmp_path / "folder"), tmp_path)
    images = {split: [KINDS[kind](pixels) for pixels in found] for split, found in PIXELS.items()}
    for splits in (
        Splits(**{split: Pairs(images[split], LABELS[split]) for split in images}, classes=CLASSES),
        Splits(**{split: (images[split], np.array(LABELS[split])) for split in images}, classes=CLASSES),
        Splits(**{split: (images[split], torch.tensor(LABELS[split])) for split in images}, classes=CLASSES),
    ):
        found = load_data(graph(channels), Setting.of(FromPython(val=0)), tmp_path, images=splits)
        for split in PIXELS:
            assert same(tensors(found, split), tensors(expected, split))
        assert found.names == CLASSES


def test_gray_images_and_tensor_datasets(tmp_path: Path):
    gray = RNG.integers(0, 256, (9, 8, 8), dtype=np.uint8)
    labels = np.arange(9) % 3
    tensor = torch.from_numpy(gray)[:, None]
    for given in ((gray, labels), (gray[..., None], labels), TensorDataset(tensor, torch.from_numpy(labels))):
        data = load_data(graph(3), Setting.of(FromPython(val=0)), tmp_path, images=Splits(train=given))
        assert torch.equal(torch.cat(list(data.train.read(torch.arange(9)))), tensor.expand(-1, 3, -1, -1))


def test_validation_images_are_held_out_by_class(tmp_path: Path):
    splits = Splits(train=Pairs(PIXELS["train"], LABELS["train"]))
    data = load_data(graph(), Setting.of(FromPython(val=0.25)), tmp_path, images=splits)
    assert data.val is not None
    assert data.val.labels.bincount().tolist() == [1, 1, 1]
    assert data.train.labels.bincount().tolist() == [3, 3, 3]


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
def test_a_run_on_images_of_a_program_resumes_and_tests(tmp_path: Path):
    splits = Splits(
        train=Pairs(PIXELS["train"], LABELS["train"]), test=(PIXELS["test"], LABELS["test"]), classes=CLASSES
    )
    options = {"images": splits, "out": tmp_path / "runs", "plots": False}
    result = train(graph(), TrainOptions(**options))
    assert result.values["data"] == "python"
    weights = result.folder / "checkpoints" / "best.safetensors"
    tested = evaluate(graph(), weights, images=splits)
    assert tested["test_acc"] == result.values["test_acc"]
    assert tested["classes"] == list(CLASSES)
    with pytest.raises(CnnspecError) as error:
        evaluate(graph(), weights, images=Splits(test=(PIXELS["test"], [0] * 6), classes=CLASSES))
    assert code(error) == "E0519"
    with pytest.raises(CnnspecError) as error:  # without the images
        train(graph(recipe="data python"), TrainOptions(out=tmp_path / "runs"))
    assert code(error) == "E0502"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("given", [{}, {"data.val": 0.25}], ids=["spec", "--set"])
@pytest.mark.parametrize("recipe", ["data python val=0", "data python val=0.5", "data python", ""])
def test_a_run_on_images_of_a_program_keeps_the_arguments_of_the_recipe(
    recipe: str, given: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if given and not recipe:
        pytest.skip("the dataset of the recipe is another one")
    spec = loads(graph(recipe=recipe).text, **given)
    fraction = given.get("data.val", float(recipe.partition("=")[2] or 0.1))
    splits = Splits(train=Pairs(PIXELS["train"], LABELS["train"]), test=(PIXELS["test"], LABELS["test"]))
    result = train(spec, TrainOptions(images=splits, out=tmp_path / "runs", plots=False))
    assert result.values["recipe"]["data"] == {"name": "python", "args": {"val": fraction}}
    assert ("data" in result.values["recipe"]["overridden"]) == (bool(given) or not recipe)
    held_out = 3 * max(1, round(4 * fraction)) if fraction else 0
    sizes = {name: int(size) for size, name in re.findall(r"(\d+) (train|val)\b", capsys.readouterr().out)}
    assert sizes == {"train": 12 - held_out} | ({"val": held_out} if held_out else {})
    if held_out:
        weights = result.folder / "checkpoints" / "best.safetensors"
        assert evaluate(spec, weights, images=splits, split="val")["images"] == held_out


@pytest.mark.parametrize("name", sorted({*DATA_SETS} - {"python"}))
def test_the_command_line_replaces_the_path_and_keeps_the_other_arguments(name: str, tmp_path: Path):
    kind = DATA_SETS[name]
    path = {"path": str(tmp_path)} if "path" in kind.parameters else {}
    values = {"val": 0, "train": None, "test": 30, "image": "pixels", "label": "kind", "revision": "old"}
    values |= {"buffer": 7, "stream": True}
    given = {key: value for key, value in values.items() if key in kind.parameters}
    recipe = Recipe(data=Setting.of(kind(**given, **({"path": "other"} if path else {}))))
    found = find_data([Recipe(data=Setting.of(FromPython())), recipe], f"{name}:{tmp_path}" if path else name, None)
    assert (found.name, found.base) == (name, None)
    assert found.args == {**given, **path, **({"revision": None} if "revision" in given else {})}


@pytest.mark.usefixtures("one_thread")
def test_a_run_on_parquet_files_tests_by_class_name(tmp_path: Path):
    data = write_parquet(tmp_path / "parquet")
    options = TrainOptions(data=data, out=tmp_path / "runs", data_dir=tmp_path / "data", plots=False)
    result = train(graph(), options)
    weights = result.folder / "checkpoints" / "best.safetensors"
    folder = evaluate(graph(), weights, data=write_folder(tmp_path / "folder"))
    assert folder["test_acc"] == result.values["test_acc"]


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("empty", [[], ((), ()), (np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int64))], ids=str)
def test_an_empty_split_is_that_of_no_images(split: str, empty: Any, tmp_path: Path) -> None:
    """As for folders, validation images are held out of the training images."""
    given = {"train": Pairs(PIXELS["train"], LABELS["train"]), "test": Pairs(PIXELS["test"], LABELS["test"])}
    setting = Setting.of(FromPython(val=0.25))
    expected = load_data(graph(), setting, tmp_path, images=Splits(**{k: v for k, v in given.items() if k != split}))
    found = load_data(graph(), setting, tmp_path, images=Splits(**{**given, split: empty}))
    for name in ("train", "val", "test"):
        wanted, part = getattr(expected, name), getattr(found, name)
        assert (part is None) == (wanted is None)
        assert part is None or torch.equal(part.positions, wanted.positions)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([torch.zeros(3, 4, 4) - 0.5], [0], "its values are from -0.5"),
        ([torch.full((3, 4, 4), 1.5)], [0], "its values are from 1.5"),
        ([torch.full((3, 4, 4), float("nan"))], [0], "its values are from nan"),
        ([np.zeros((4, 4, 3), np.int64)], [0], "values of the type int64"),
        ([np.zeros((4, 4, 5), np.uint8)], [0], "it has 5 channels"),
        ([np.zeros(4, np.uint8)], [0], "its shape is [4]"),
        (["x.png"], [0], "values of the type <U5"),
        ([PIXELS["train"][0]], [-1], "must be an integer of at least 0, got -1"),
        ([PIXELS["train"][0]], [0.5], "must be an integer of at least 0, got 0.5"),
        ([PIXELS["train"][0]], ["ant"], "must be an integer of at least 0, got 'ant'"),
        ([PIXELS["train"][0]], [0, 1], "1 images, but 2 labels"),
    ],
)
def test_unsuitable_images_and_labels_are_an_error(tmp_path: Path, images: Any, labels: Any, message: str):
    splits = Splits(train=(images, labels))
    with pytest.raises(CnnspecError) as error:
        _ = load_data(graph(classes=1), Setting.of(FromPython(val=0)), tmp_path, images=splits).mean
    assert code(error) == "E0503"
    (diagnostic,) = error.value.diagnostics
    assert message in " ".join((diagnostic.message, *diagnostic.notes))


@pytest.mark.parametrize("given", [5, iter([]), ["a"], "train"])
def test_what_is_no_dataset_is_an_error(tmp_path: Path, given: Any):
    with pytest.raises(CnnspecError) as error:
        load_data(graph(), Setting.of(FromPython(val=0)), tmp_path, images=Splits(train=given))
    assert code(error) == "E0503"


def test_a_dataset_that_names_files_is_an_error(tmp_path: Path):
    """A file of a stranger could name any file of this machine as an image."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(PIXELS["train"][0]))
    rows = {"image": [{"bytes": None, "path": str(secret)}] * 3, "label": [0, 1, 2]}
    features = datasets.Features(
        {
            "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.Value("int64"),
        }
    )
    (tmp_path / "p").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "p" / "train.parquet")
    with pytest.raises(CnnspecError) as error:
        _ = load_data(graph(), Setting.of(HuggingFace(path=str(tmp_path / "p"), val=0)), tmp_path / "data").mean
    assert code(error) == "E0503"
    assert "a path to it" in error.value.diagnostics[0].message


@pytest.mark.parametrize(
    ("setting", "expected", "message"),
    [
        ({"image": "photo"}, "E0503", "no column `photo`"),
        ({"label": "kind"}, "E0503", "no column `kind`"),
        ({"image": "label"}, "E0503", "does not contain images"),
        ({"path": "owner/name"}, "E0502", "needs a fixed revision"),
    ],
)
def test_errors_of_columns_and_names(tmp_path: Path, setting: dict[str, Any], expected: str, message: str):
    write_parquet(tmp_path / "parquet")
    declared = HuggingFace(**{"path": str(tmp_path / "parquet"), **setting})
    with pytest.raises(CnnspecError) as error:
        load_data(graph(), Setting.of(declared), tmp_path / "data", offline=True)
    assert code(error) == expected
    assert message in error.value.diagnostics[0].message


def hub(revision: str) -> Setting:
    return Setting.of(HuggingFace(path="name", revision=revision))


@pytest.fixture
def no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a connection was opened"))


@pytest.mark.usefixtures("no_connections")
def test_a_dataset_that_is_not_available_is_an_error(tmp_path: Path):
    with pytest.raises(CnnspecError) as error:
        load_data(graph(), hub("0" * 40), tmp_path / "data", offline=True)
    assert code(error) == "E0502"


@pytest.mark.usefixtures("no_connections")
@pytest.mark.parametrize("offline", [True, False])
def test_a_downloaded_dataset_is_used_for_its_revision_alone(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without a connection, the library falls back to the latest dataset of this name in its cache."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", not offline)
    write_parquet(tmp_path / "files")
    (train_file,) = (tmp_path / "files").glob("train*")
    caches: list[str] = []

    def remember(*, cache_dir: str, **_: Any) -> None:
        caches.append(cache_dir)
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", remember)
        with pytest.raises(CnnspecError):
            load_data(graph(), hub("first"), tmp_path / "data", offline=offline)
    files = {"train": [str(train_file)]}
    Parquet(caches[0], "name", "default", "a" * 40, config_id="default", data_files=files).download_and_prepare()
    found = load_data(graph(), hub("first"), tmp_path / "data", offline=offline)
    assert found.train is not None
    for other in ("second", "..", "a/b", "f" * 300):
        with pytest.raises(CnnspecError) as error:
            load_data(graph(), hub(other), tmp_path / "data", offline=offline)
        assert code(error) == "E0502"
    assert config.HF_HUB_OFFLINE is not offline


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(CnnspecError) as error:
        load_data(graph(), Setting.of(HuggingFace(path=str(tmp_path))), tmp_path / "data")
    assert code(error) == "E0502"


def test_a_spec_names_only_parquet_files_below_its_folder(tmp_path: Path):
    write_parquet(tmp_path / "outside")
    (tmp_path / "specs" / "linked").mkdir(parents=True)
    (tmp_path / "specs" / "linked" / "train.parquet").symlink_to(next((tmp_path / "outside").glob("train*")))
    for path in ("linked", "../outside"):
        setting = Setting(name="hf", args=Setting.of(HuggingFace(path=path)).args, base=str(tmp_path / "specs"))
        with pytest.raises(CnnspecError) as error:
            load_data(graph(), setting, tmp_path / "data")
        assert code(error) == "E0218"


def test_the_command_line_names_a_dataset_and_its_revision():
    for text, path, revision in (("a/b@v1", "a/b", "v1"), ("some/folder", "some/folder", None)):
        for prefix, stream in (("hf", False), ("stream", True)):
            found = find_data([], f"{prefix}:{text}", None)
            assert (found.name, found.args["path"], found.args["revision"]) == ("hf", path, revision)
            assert found.args["stream"] == stream
