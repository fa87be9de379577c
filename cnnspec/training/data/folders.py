"""Find the labeled images below a folder, or those of a table of files and labels.

Three layouts are read: splits with classes (`train/CLASS/*`, `test/CLASS/*`, `val/CLASS/*`), classes alone
(`CLASS/*`), and a table (`labels.csv` or `labels.jsonl` with the columns `file`, `label` and optionally `split`).
The result does not depend on the order of files on the disk.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cnnspec.diagnostics import CnnspecError, counted, failure, named, one_line, reason_of
from cnnspec.recipe import Setting
from cnnspec.semantics.loader import is_below, path_below

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""The names of the folders of each split, in lower case. The case of a name does not matter."""
EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"}
)
"""The file extensions of images, in lower case."""
TABLES = frozenset({".csv", ".jsonl"})
"""The extensions of tables of files and labels."""
LAYOUT = (
    "arrange the images in one folder per class, as `CLASS/*.png` (or `.jpg` etc.) or `train/CLASS/*.png`, or list "
    "them in a table, `labels.csv`"
)
_IGNORED = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"})
"""Names of files and folders that operating systems create, in lower case. So are all names that start with a dot."""
_MAX_TABLE_BYTES = 1 << 28
_MAX_COMPARED_BYTES = 1 << 28
"""The number of bytes that are read at most to find duplicates."""


def split_of(name: str) -> str | None:
    """Return the split that the name of a folder or file means, or None."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


@dataclass(frozen=True, slots=True)
class Entry:
    """One labeled image.

    Attributes:
        path: The file.
        name: The path below the folder of the data, with `/`.
        size: The size of the file in bytes.
        label: The index of the class.
    """

    path: Path
    name: str
    size: int
    label: int


@dataclass(frozen=True)
class Listing:
    """The labeled images of a folder or table.

    Attributes:
        classes: The class names, sorted, or those of trained weights.
        splits: The images of each split that exists, sorted by name; with classes alone, all are in `train`.
        notes: What a user should know: skipped files, missing classes, duplicates.
    """

    classes: tuple[str, ...]
    splits: dict[str, tuple[Entry, ...]]
    notes: tuple[str, ...]

    def with_classes(self, classes: Sequence[str]) -> Listing:
        """Label the images with the classes of trained weights. The data may have some of them only.

        Raises:
            CnnspecError: E0503 if a class of the data is not one of `classes`.
        """
        label = class_positions(self.classes, classes)
        splits = {
            split: tuple(
                sorted(
                    (replace(entry, label=label[entry.label]) for entry in entries),
                    key=lambda entry: (entry.label, entry.name),
                )
            )
            for split, entries in self.splits.items()
        }
        return Listing(tuple(classes), splits, self.notes)


def class_positions(own: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the position of each class of the data among those of trained weights.

    Raises:
        CnnspecError: E0503 if the weights do not have one of them.
    """
    position = {name: index for index, name in enumerate(classes)}
    if unknown := [name for name in own if name not in position]:
        raise failure(
            "E0503",
            f"the data has a class `{unknown[0]}` that the weights do not have",
            notes=[f"classes of the data: {named(own)}", f"classes of the weights: {named(classes)}"],
            help="rename the classes of the data, or use weights that were trained with these classes",
        )
    return [position[name] for name in own]


def data_path(setting: Setting) -> tuple[Path, Path | None]:
    """Return the folder or table that a setting names, and the folder that it must not leave if a spec names it.

    Raises:
        CnnspecError: E0218 if it is outside the folder of the spec. E0503 if its user does not exist.
    """
    text = str(setting.args["path"])
    if setting.base is None:
        try:
            return Path(text).expanduser(), None
        except RuntimeError as error:
            raise failure("E0503", f"`{text}` does not exist", notes=[one_line(error)], help=LAYOUT) from None
    path = path_below(Path(setting.base), text)
    if path is None:
        raise outside(Path(text))
    return path, Path(setting.base)


def outside(path: Path) -> CnnspecError:
    """Return the error for a path that leaves the folder of the spec."""
    help = "copy the images to the folder of the spec, or use `--data folder:PATH`"
    return failure("E0218", f"`{path}` is outside the folder of the spec", file=str(path), help=help)


def check_exists(path: Path) -> None:
    """Check that a path is a folder or a table.

    Raises:
        CnnspecError: E0503 if it is neither.
    """
    if not path.is_dir() and not (path.suffix.lower() in TABLES and path.is_file()):
        what = "is not a folder" if path.exists() else "does not exist"
        raise failure("E0503", f"`{path}` {what}", help=LAYOUT)


def list_images(path: Path, base: Path | None = None) -> Listing:
    """Find the images of a folder or a table.

    Args:
        path: A folder or a table.
        base: A folder that all files must be in, with symbolic links resolved.

    Raises:
        CnnspecError: E0503 if the path has none of the layouts or a class without training images, or cannot be read.
            E0218 if a file is outside of `base`.
    """
    try:
        check_exists(path)
        found = _Walk(base).splits(path) if path.is_dir() else _read_table(path, base)
    except OSError as error:
        place = str(error.filename or path)
        raise failure("E0503", f"cannot read `{place}`: {reason_of(error)}", file=place, help=LAYOUT) from None
    return found.listing(path)


def images_below(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the images in a folder and its subfolders, sorted, and notes on skipped files.

    Raises:
        CnnspecError: E0503 if there are none, or a folder cannot be read.
    """
    walk = _Walk(None)
    try:
        found = [path for path, _, _ in walk._images(folder, folder, str(folder), frozenset())]
    except OSError as error:
        place = str(error.filename or folder)
        raise failure("E0503", f"cannot read `{place}`: {reason_of(error)}", file=place) from None
    notes = [*walk.notes, *walk._summary()]
    if not found:
        raise failure("E0503", f"`{folder}` contains no images", notes=notes, file=str(folder))
    return found, notes


@dataclass
class _Found:
    """Images by split and class name, as found."""

    images: dict[str, dict[str, list[tuple[Path, str, int]]]]
    notes: list[str] = field(default_factory=list[str])

    def listing(self, root: Path) -> Listing:
        own = sorted({name for found in self.images.values() for name in found})
        if not any(found for by_class in self.images.values() for found in by_class.values()):
            raise failure("E0503", f"`{root}` contains no images", notes=self.notes, help=LAYOUT)
        self._check_train(root)
        label = {name: index for index, name in enumerate(own)}
        splits = {
            split: tuple(
                sorted(
                    (
                        Entry(path, name, size, label[class_name])
                        for class_name, found in by_class.items()
                        for path, name, size in found
                    ),
                    key=lambda entry: (entry.label, entry.name),
                )
            )
            for split, by_class in self.images.items()
        }
        splits = {split: entries for split, entries in splits.items() if entries}
        notes = [*self.notes, *self._missing(own), *_duplicates(splits)]
        return Listing(tuple(own), splits, tuple(notes))

    def _check_train(self, root: Path) -> None:
        train = self.images.get("train")
        if train is None:
            return
        for name, found in sorted(train.items()):
            if not found:
                raise failure(
                    "E0503", f"the class `{name}` in `{root}` has no training images", notes=self.notes, help=LAYOUT
                )
        for split in self.images:
            if unknown := sorted(self.images[split].keys() - train.keys()):
                message = f"`{split}` in `{root}` has a class `{unknown[0]}` that `train` does not have"
                raise failure("E0503", message, notes=[f"classes of `train`: {named(sorted(train))}"], help=LAYOUT)

    def _missing(self, names: Sequence[str]) -> Iterator[str]:
        for split, by_class in self.images.items():
            if missing := [name for name in names if not by_class.get(name)]:
                yield f"{split} has no images of {named(missing)}"


class _Walk:
    """A search of folders for images, which counts what it skips."""

    def __init__(self, base: Path | None) -> None:
        self.base = base
        self.skipped: Counter[str] = Counter()
        self.extensions: dict[str, Counter[str]] = {}
        self.notes: list[str] = []

    def splits(self, root: Path) -> _Found:
        folders = sorted(entry.name for entry in self._scan(root) if entry.is_dir() and not self._ignore(entry.name))
        by_split: dict[str, str] = {}
        for name in folders:
            if (split := split_of(name)) is None:
                continue
            if split in by_split:
                message = f"`{root}` has two folders for the split `{split}`: `{by_split[split]}` and `{name}`"
                raise failure("E0503", message, help="rename or remove one of the two")
            by_split[split] = name
        if by_split and "train" not in by_split and "test" not in by_split:
            message = f"`{root}` has a folder `{by_split['val']}` but none called `train` or `test`"
            raise failure("E0503", message, help=LAYOUT)
        if by_split:
            images = {split: self._classes(root, root / by_split[split]) for split in SPLITS if split in by_split}
            if others := [name for name in folders if name not in by_split.values()]:
                self.notes.append(f"skipped {named(others)} next to {named(sorted(by_split.values()))}")
            self.notes += [f"{split}: the folder `{name}`" for split, name in by_split.items() if name != split]
        else:
            images = {"train": self._classes(root, root)}
        return _Found(images, [*self.notes, *self._summary()])

    def _scan(self, folder: Path) -> list[os.DirEntry[str]]:
        """Return the entries of a folder, sorted by name.

        Raises:
            CnnspecError: E0218 if one is a symbolic link that leaves the folder of the spec.
        """
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        for entry in entries:
            if self.base is not None and entry.is_symlink() and not is_below(Path(entry.path), self.base):
                raise outside(Path(entry.path))
        return entries

    def _ignore(self, name: str) -> bool:
        if name.startswith(".") or name.lower() in _IGNORED:
            self.skipped[name if name.lower() in _IGNORED or not name.startswith("._") else "._*"] += 1
            return True
        return False

    def _classes(self, root: Path, folder: Path) -> dict[str, list[tuple[Path, str, int]]]:
        classes: dict[str, list[tuple[Path, str, int]]] = {}
        loose = 0
        for entry in self._scan(folder):
            if self._ignore(entry.name):
                continue
            if entry.is_dir():
                classes[entry.name] = list(self._images(root, Path(entry.path), entry.name, frozenset()))
            elif Path(entry.name).suffix.lower() in EXTENSIONS:
                loose += 1
        if loose:
            verb = "is" if loose == 1 else "are"
            self.notes.append(
                f"skipped {counted(loose, 'image')} in `{_relative(folder, root)}` that {verb} in no class"
            )
        return classes

    def _images(
        self, root: Path, folder: Path, class_name: str, parents: frozenset[tuple[int, int]]
    ) -> Iterator[tuple[Path, str, int]]:
        state = folder.stat()
        if (state.st_dev, state.st_ino) in parents:
            self.notes.append(f"skipped `{_relative(folder, root)}`: a symbolic link to a folder that contains it")
            return
        parents |= {(state.st_dev, state.st_ino)}
        for entry in self._scan(folder):
            if self._ignore(entry.name):
                continue
            path = Path(entry.path)
            if entry.is_dir():
                yield from self._images(root, path, class_name, parents)
            elif (extension := path.suffix.lower()) not in EXTENSIONS:
                self.extensions.setdefault(class_name, Counter())[extension or "no extension"] += 1
            elif entry.is_file():
                yield path, _relative(path, root), entry.stat().st_size
            else:
                what = "a broken symbolic link" if entry.is_symlink() else "not a regular file"
                self.notes.append(f"skipped `{_relative(path, root)}`: {what}")

    def _summary(self) -> Iterator[str]:
        if self.skipped:
            shown = ", ".join(
                f"`{name}`" + (f" ({count})" if count > 1 else "") for name, count in sorted(self.skipped.items())[:5]
            )
            yield f"skipped hidden and system files: {shown}" + (", ..." if len(self.skipped) > 5 else "")
        for class_name, found in sorted(self.extensions.items())[:5]:
            shown = ", ".join(
                f"{count} with `{extension}`" if extension[0] == "." else f"{count} without an extension"
                for extension, count in found.most_common(5)
            )
            yield f"skipped files in `{class_name}` that are not images: {shown}"
        if len(self.extensions) > 5:
            rest = sum(count for _, found in sorted(self.extensions.items())[5:] for count in found.values())
            yield f"skipped {counted(rest, 'file')} in other classes that are not images"


# --- tables --------------------------------------------------------------------------------------


def _read_table(path: Path, base: Path | None) -> _Found:
    images: dict[str, dict[str, list[tuple[Path, str, int]]]] = {}
    seen: dict[str, int] = {}
    for line, row in _rows(path):
        try:
            file, label, split = row["file"], row["label"], row.get("split") or "train"
        except KeyError as error:
            message = f"line {line} of `{path}` has no `{error.args[0]}`"
            raise failure(
                "E0503", message, file=str(path), help="the columns are `file`, `label` and `split`"
            ) from None
        if (part := split_of(split)) is None:
            message = f"line {line} of `{path}` has the unknown split `{split}`"
            raise failure("E0503", message, file=str(path), help="use `train`, `val` or `test`")
        if file in seen:
            message = f"lines {seen[file]} and {line} of `{path}` name the same file `{file}`"
            raise failure("E0503", message, file=str(path), help="remove one of the two")
        seen[file] = line
        if Path(file).is_absolute() or ".." in Path(file).parts:
            message = f"line {line} of `{path}` names a file outside the folder of the table: `{file}`"
            raise failure("E0503", message, file=str(path), help="move the table to a folder above the images")
        image = path.parent / file
        if base is not None and not is_below(image, base):
            raise outside(image)
        try:
            size = image.stat().st_size
        except (OSError, ValueError) as error:
            message = f"line {line} of `{path}` names a file that cannot be read: `{file}`"
            raise failure("E0503", message, notes=[one_line(error)], file=str(path)) from None
        images.setdefault(part, {}).setdefault(label, []).append((image, file, size))
    return _Found(images)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a table and their line numbers."""
    if path.stat().st_size > _MAX_TABLE_BYTES:
        raise failure("E0503", f"`{path}` is larger than {_MAX_TABLE_BYTES:,} bytes", file=str(path))
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
            _unique((str(name).strip(), None) for name in reader.fieldnames or ())
            for row in reader:
                yield (
                    reader.line_num,
                    {str(key).strip(): str(value).strip() for key, value in row.items() if value is not None},
                )
        else:
            for line, written in enumerate(text.splitlines(), 1):
                if written.strip():
                    row = json.loads(written, object_pairs_hook=_unique)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {line} is not an object")
                    yield line, {str(key): str(value) for key, value in row.items() if value is not None}
    except CnnspecError:
        raise
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        message = f"cannot read the table `{path}`"
        raise failure("E0503", message, notes=[one_line(error)], file=str(path)) from None


def _unique(columns: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return columns by name.

    Raises:
        ValueError: A column that is read occurs twice.
    """
    found: dict[str, Any] = {}
    for name, value in columns:
        if name in found and name in ("file", "label", "split"):
            raise ValueError(f"duplicate column `{name}`")
        found[name] = value
    return found


# --- notes ---------------------------------------------------------------------------------------


def _duplicates(splits: dict[str, tuple[Entry, ...]]) -> Iterator[str]:
    """Report images whose contents are in more than one split. Only files of equal size are read."""
    by_size: dict[int, list[tuple[str, Entry]]] = {}
    for split, entries in splits.items():
        for entry in entries:
            by_size.setdefault(entry.size, []).append((split, entry))
    candidates = [found for found in by_size.values() if len({split for split, _ in found}) > 1]
    budget = _MAX_COMPARED_BYTES
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for found in sorted(candidates, key=lambda found: found[0][1].size):
        by_content: dict[bytes, tuple[str, Entry]] = {}
        for split, entry in found:
            budget -= entry.size
            if budget < 0:
                break
            first = by_content.setdefault(_digest(entry.path), (split, entry))
            if first[0] != split:
                pairs.setdefault((first[0], split), []).append((first[1].name, entry.name))
    for (a, b), names in sorted(pairs.items()):
        first, second = names[0]
        verb = "is" if len(names) == 1 else "are"
        yield f"{counted(len(names), 'image')} of {b} {verb} also in {a}, such as `{first}` and `{second}`"
    if budget < 0:
        yield f"the search for duplicates stopped after {_MAX_COMPARED_BYTES // 2**20} MiB"


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:  # reading the image will report it
        return str(path).encode()


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
