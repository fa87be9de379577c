"""Finding the images of folders and tables: layouts, skipped files, links, duplicates, and the validation split."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from PIL import Image

from cnnspec.diagnostics import CnnspecError
from cnnspec.training.data.datasets import split_by_class
from cnnspec.training.data.folders import EXTENSIONS, SPLITS, Listing, list_images


def write(path: Path, value: int) -> None:
    """Write a small image whose content is `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(path, "PNG")


def fill(root: Path, *splits: str, classes: str = "ab", count: int = 2) -> None:
    number = 0
    for split in splits:
        for name in classes:
            for index in range(count):
                number += 1
                write(root / split / name / f"{index}.png", number)


def names(listing: Listing, split: str = "train") -> list[str]:
    return [entry.name for entry in listing.splits[split]]


def error_of(path: Path, classes: Any = None) -> tuple[str, list[str]]:
    with pytest.raises(CnnspecError) as raised:
        list_images(path).with_classes(classes) if classes else list_images(path)
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.code == "E0503"
    return diagnostic.message, list(diagnostic.notes)


# --- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", [alias for split in ("val", "test") for alias in SPLITS[split]])
@pytest.mark.parametrize("change", [str.lower, str.capitalize, str.upper])
def test_split_folders_may_have_other_names(tmp_path: Path, alias: str, change: Any) -> None:
    fill(tmp_path, "train", change(alias))
    listing = list_images(tmp_path)
    split = next(split for split, aliases in SPLITS.items() if alias in aliases)
    assert set(listing.splits) == {"train", split}
    assert names(listing, split) == [f"{change(alias)}/{name}/{index}.png" for name in "ab" for index in range(2)]
    assert [entry.label for entry in listing.splits[split]] == [0, 0, 1, 1]
    assert any(change(alias) in note for note in listing.notes) == (change(alias) != split)


def test_classes_without_splits(tmp_path: Path) -> None:
    fill(tmp_path, "", classes="cab")
    listing = list_images(tmp_path)
    assert listing.classes == ("a", "b", "c")
    assert set(listing.splits) == {"train"}
    assert names(listing) == [f"{name}/{index}.png" for name in "abc" for index in range(2)]


def test_test_images_alone(tmp_path: Path) -> None:
    fill(tmp_path, "test")
    assert set(list_images(tmp_path).splits) == {"test"}


def test_two_folders_for_one_split_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "train", "val", "valid")
    message, _ = error_of(tmp_path)
    assert "`val` and `valid`" in message


def test_other_folders_next_to_splits_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, "train", "vla")
    assert any("`vla`" in note for note in list_images(tmp_path).notes)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_tables(tmp_path: Path, form: str) -> None:
    rows = [
        ("x/1.png", "cat", "train"),
        ("x/2.png", "dog", ""),
        ("3.png", "cat", "Validation"),
        ("4.png", "dog", "test"),
    ]
    for number, (file, _, _) in enumerate(rows):
        write(tmp_path / file, number)
    table = tmp_path / f"labels.{form}"
    if form == "csv":
        table.write_text("file,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows), "utf-8-sig")
    else:
        keys = ("file", "label", "split")
        table.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows), "utf-8")
    listing = list_images(table)
    assert listing.classes == ("cat", "dog")
    found = {split: [(e.name, e.label) for e in entries] for split, entries in listing.splits.items()}
    assert found == {"train": [("x/1.png", 0), ("x/2.png", 1)], "val": [("3.png", 0)], "test": [("4.png", 1)]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,class\n1.png,cat\n", "line 2"),
        ("file,label,split\n1.png,cat,both\n", "unknown split"),
        ("file,label\n1.png,cat\n1.png,dog\n", "lines 2 and 3"),
        ("file,label\n2.png,cat\n", "cannot be read"),
        ("file,label\n../1.png,cat\n", "outside"),
        ("file,label\n/etc/passwd,cat\n", "outside"),
        ("file,label\n", "no images"),
        ("", "no images"),
        ('file,label\n1.png,"cat\n', "cat"),
        ("\0\0\0", ""),
    ],
)
def test_damaged_tables(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path / "1.png", 1)
    (tmp_path / "t.csv").write_text(text, "utf-8")
    if expected == "cat":  # an unclosed quote ends at the end of the file
        assert list_images(tmp_path / "t.csv").classes == ("cat",)
    else:
        assert expected in error_of(tmp_path / "t.csv")[0]


@pytest.mark.parametrize("line", ["{", "[1]", '"x"', "[" * 100_000, '{"file": 3}', '{"label": "x"}', "\x00"])
def test_damaged_json_lines(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.jsonl").write_text(line + "\n", "utf-8")
    error_of(tmp_path / "t.jsonl")


def test_classes_of_weights(tmp_path: Path) -> None:
    fill(tmp_path, "test", classes="bd")
    listing = list_images(tmp_path).with_classes(["d", "c", "b", "a"])
    assert listing.classes == ("d", "c", "b", "a")
    assert [entry.label for entry in listing.splits["test"]] == [0, 0, 2, 2]
    message, notes = error_of(tmp_path, ["a", "b"])
    assert "`d`" in message
    assert notes == ["classes of the data: `b`, `d`", "classes of the weights: `a`, `b`"]


# --- skipped files -------------------------------------------------------------------------------

IGNORED = [
    ".ipynb_checkpoints/1.png",
    "._1.png",
    ".hidden/deep/1.png",
    "__MACOSX/a/1.png",
    "@eaDir/1.png",
]


@pytest.mark.parametrize("name", IGNORED)
@pytest.mark.parametrize("place", ["train/a", "train", ""])
def test_hidden_and_system_files_are_skipped_and_reported(tmp_path: Path, name: str, place: str) -> None:
    fill(tmp_path, "train")
    write(tmp_path / place / name, 200)
    write(tmp_path / "train" / "a" / "deep" / name, 200)
    listing = list_images(tmp_path)
    assert names(listing) == ["train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png"]
    part = next(part for part in Path(name).parts if part[0] in "._@")
    shown = "._*" if part.startswith("._") else part
    assert any("hidden and system files" in note and shown in note for note in listing.notes)


def test_thumbnails_are_skipped(tmp_path: Path) -> None:
    fill(tmp_path, "train")
    for name in ("Thumbs.db", "desktop.ini"):
        (tmp_path / "train" / "a" / name).write_bytes(b"x")
    (note,) = list_images(tmp_path).notes
    assert "`Thumbs.db`" in note
    assert "`desktop.ini`" in note


def test_unknown_extensions_are_counted_by_class(tmp_path: Path) -> None:
    fill(tmp_path, "train")
    for name in ("1.heic", "2.heic", "3.txt", "README"):
        (tmp_path / "train" / "b" / name).write_bytes(b"x")
    (note,) = list_images(tmp_path).notes
    assert "`b`" in note
    assert "2 with `.heic`" in note
    assert "1 with `.txt`" in note
    assert "1 without an extension" in note


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_every_extension_is_found_in_any_case(tmp_path: Path, extension: str) -> None:
    fill(tmp_path, "train")
    write(tmp_path / "train" / "a" / f"x{extension}", 1)
    write(tmp_path / "train" / "a" / f"Y{extension.upper()}", 2)
    assert {f"train/a/x{extension}", f"train/a/Y{extension.upper()}"} <= {*names(list_images(tmp_path))}


def test_images_in_no_class_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, "train")
    write(tmp_path / "train" / "9.png", 9)
    (note,) = list_images(tmp_path).notes
    assert note == "skipped 1 image in `train` that is in no class"


def test_symbolic_links(tmp_path: Path) -> None:
    fill(tmp_path / "data", "train")
    write(tmp_path / "elsewhere" / "z.png", 77)
    train = tmp_path / "data" / "train"
    (train / "c").symlink_to(tmp_path / "elsewhere")
    (train / "a" / "loop").symlink_to(train / "a")
    (train / "a" / "broken.png").symlink_to(tmp_path / "nothing.png")
    (train / "b" / "link.png").symlink_to(tmp_path / "elsewhere" / "z.png")
    listing = list_images(tmp_path / "data")
    expected = ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/link.png", "c/z.png"]
    assert names(listing) == [f"train/{name}" for name in expected]
    assert sum("loop" in note for note in listing.notes) == 1
    assert sum("broken symbolic link" in note for note in listing.notes) == 1


def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    fill(tmp_path, "train")
    os.mkfifo(tmp_path / "train" / "a" / "pipe.png")
    assert any("not a regular file" in note for note in list_images(tmp_path).notes)


# --- classes and duplicates ----------------------------------------------------------------------


def test_missing_classes_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, "train", classes="abc")
    fill(tmp_path, "test", classes="a")
    (tmp_path / "test" / "b").mkdir()
    assert "test has no images of `b`, `c`" in list_images(tmp_path).notes


def test_a_class_without_training_images_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "train", "test")
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "c" / "1.heic").write_bytes(b"x")
    message, notes = error_of(tmp_path)
    assert "`c`" in message
    assert any(".heic" in note for note in notes)


def test_duplicates_across_splits_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, "train", "test")
    write(tmp_path / "test" / "a" / "again.png", 1)
    write(tmp_path / "train" / "a" / "twice.png", 1)  # within one split, duplicates are the user's choice
    (note,) = list_images(tmp_path).notes
    assert note == "1 image of test is also in train, such as `train/a/0.png` and `test/a/again.png`"


def test_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    for root, order in (("one", (1, 2, 3)), ("two", (3, 1, 2))):
        for number in order:
            write(tmp_path / root / "train" / "a" / f"{number}.png", number)
    one, two = (list_images(tmp_path / root) for root in ("one", "two"))
    assert names(one) == names(two)


# --- validation split ----------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("counts", [(20, 20, 20), (1000, 10, 2), (1, 2, 3), (1, 1, 50), (7, 300, 90)])
def test_each_class_is_split(counts: tuple[int, ...], fraction: float) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    train, val = split_by_class(labels, fraction)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        held_out = int((labels[val] == label).sum())
        if count == 1:
            assert held_out == 0
        else:
            assert 1 <= held_out < count
            assert abs(held_out - count * fraction) <= 1 or held_out in (1, count - 1)
    again = split_by_class(labels, fraction)
    assert all(torch.equal(a, b) for a, b in zip((train, val), again, strict=True))


@pytest.mark.parametrize("column", ["file", "label", "split"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_column_that_occurs_twice_is_an_error(ending: str, column: str, tmp_path: Path):
    table = tmp_path / f"labels.{ending}"
    row = {"file": "a.png", "label": "x", "split": "train", "note": "n"}
    if ending == "csv":
        table.write_text(f"{','.join(row)}, {column} ,note\n{','.join(row.values())},{row[column]},n\n")
    else:
        table.write_text(json.dumps(row)[:-1] + f', "{column}": "{row[column]}", "note": "m"}}\n')
    with pytest.raises(CnnspecError) as error:
        list_images(table)
    assert error.value.diagnostics[0].code == "E0503"
    assert f"duplicate column `{column}`" in error.value.diagnostics[0].notes[0]
