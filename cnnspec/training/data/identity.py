"""Identify a dataset, so that a run, its weights and a later test can notice that it has changed.

The identity of a folder is a hash of the relative names, the sizes and the labels of its images; that of any other
dataset a hash of its labels. Contents are hashed on request. Paths and times do not count: a copied or moved folder is
the same dataset.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.files import read_bytes
from cnnspec.resources import available_cores
from cnnspec.training.data.folders import SPLITS, Entry, Listing

FILE = "data.jsonl.gz"
"""The list of the images of a folder, in the folder of a run: a line `[split, name, size, class]` per image."""
NAMED = 10
"""The number of files that a message names, of those that changed in the same way."""
MAX_BYTES = 64 << 20
"""The maximum size of the list of images, in bytes."""
MAX_LINE = 64 << 10
"""The maximum length of a line of it, in bytes."""
MAX_LIST_MEMORY = 256 << 20
"""The maximum memory of the list of images, in bytes. That of ImageNet needs 200 MiB."""


class DataIdentity(BaseModel):
    """The identity of a dataset, as stored in `result.json` and in checkpoints.

    Attributes:
        name: The name of the dataset, `folder` for every folder.
        digest: A hash of everything that counts: of `splits` and `classes`.
        splits: A hash of the relative names, sizes and labels of the images of each split, or of the labels alone.
        classes: The names of the classes in the order of the labels, if they have any.
        images: The number of images by split and class.
        contents: A hash of the contents of all images, or None if they were not hashed.
        path: The folder. It is informative.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    splits: dict[str, str]
    classes: tuple[str, ...]
    images: dict[str, dict[str, int]]
    contents: str | None = None
    path: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the identity as plain data, without the path."""
        return self.model_dump(mode="json", exclude={"path"})

    def same(self, other: DataIdentity) -> bool:
        """Return whether two datasets are the same, with their contents if both are known."""
        contents = self.contents == other.contents or None in (self.contents, other.contents)
        return (self.name, self.digest) == (other.name, other.digest) and contents


@dataclass(frozen=True)
class Images:
    """The images of one split of a folder.

    Attributes:
        names: The paths below the folder.
        sizes: The sizes of the files in bytes.
        classes: The names of their classes.
        hashes: The SHA-256 of the contents, or nothing.
    """

    names: Sequence[str]
    sizes: Sequence[int]
    classes: Sequence[str]
    hashes: Sequence[str] = ()

    def digest(self) -> str:
        """Return a hash of the names, the sizes and the classes."""
        rows = zip(self.names, self.sizes, self.classes, strict=True)
        return _sha256(f"{name}\0{size}\0{kind}\n".encode("utf-8", "surrogateescape") for name, size, kind in rows)

    def by_name(self) -> dict[str, tuple[int, str, str]]:
        """Return size, class and hash of each image."""
        hashes = self.hashes or [""] * len(self.names)
        return dict(zip(self.names, zip(self.sizes, self.classes, hashes, strict=True), strict=True))


@dataclass(frozen=True)
class Inventory:
    """The identity of a dataset, and the list of its images if it is a folder.

    Attributes:
        identity: The identity.
        splits: The images of each split, or nothing if they are not known.
        problem: The reason why the list of images in a file was not read.
    """

    identity: DataIdentity
    splits: Mapping[str, Images] = field(default_factory=dict[str, Images])
    problem: str | None = None

    def to_bytes(self) -> bytes | None:
        """Return the compressed list of images, which is the same for the same images. None if it is too large."""
        packed, room = io.BytesIO(), _Room()
        encode = json.JSONEncoder(separators=(",", ":")).encode
        with gzip.GzipFile("", "wb", 3, packed, mtime=0) as archive, io.BufferedWriter(archive, 1 << 20) as file:  # type: ignore[arg-type]
            for split, found in self.splits.items():
                hashes = [(value,) for value in found.hashes] or [()] * len(found.names)
                for row in zip(found.names, found.sizes, found.classes, hashes, strict=True):
                    if not room.take(row[0], *row[3]):
                        return None
                    file.write(encode([split, *row[:3], *row[3]]).encode() + b"\n")
        return packed.getvalue()

    @classmethod
    def read(cls, identity: DataIdentity, path: Path) -> Inventory:
        """Return an identity with the list of images in a file, or without one if the file does not belong to it.

        The identity alone shows whether the data has changed, and how many images per class.
        """
        try:
            data = read_bytes(path, MAX_BYTES, "E0506", inside=path.parent)
            if data is None:
                return cls(identity)
            with gzip.open(io.BytesIO(data)) as file:
                splits = _read_list(file, identity)
            return cls(identity, splits)
        except CnnspecError as error:
            reason = error.diagnostics[0].notes[0]
        except (OSError, EOFError, ValueError, TypeError, RecursionError, zlib.error) as error:
            reason = one_line(error)
        return cls(identity, problem=f"the files are not named: cannot read `{path.name}`: {reason}")


class _Room:
    """The memory that is left for the list of images."""

    def __init__(self) -> None:
        self._left = MAX_LIST_MEMORY

    def take(self, *texts: str) -> bool:
        """Take the memory of an image with its size and class. Return whether it was left."""
        self._left -= sum(map(sys.getsizeof, texts)) + 64
        return self._left >= 0


def _read_list(file: gzip.GzipFile, identity: DataIdentity) -> dict[str, Images]:
    """Read a list of images.

    Raises:
        ValueError: It is not a list of these images, or is too large.
    """
    names, sizes, classes, hashes = (defaultdict[str, list[Any]](list) for _ in range(4))
    kinds, room = {name: name for name in identity.classes}, _Room()
    while line := file.readline(MAX_LINE):
        split, name, size, kind, *digest = json.loads(line.decode())
        is_image = split in identity.splits and isinstance(name, str) and type(size) is int and 0 <= size < 1 << 63
        if not (is_image and len(digest) <= 1 and all(isinstance(value, str) for value in digest)):
            raise ValueError("it is not a list of images")
        if not room.take(name, *digest):
            raise ValueError(f"its images need more than {MAX_LIST_MEMORY >> 20} MiB")
        names[split].append(name)
        sizes[split].append(size)
        classes[split].append(kinds.get(kind))
        hashes[split] += digest
    found = {split: Images(names[split], sizes[split], classes[split], hashes[split]) for split in identity.splits}
    if any(digest != found[split].digest() for split, digest in identity.splits.items()):
        raise ValueError("it is the list of other images")
    if any(len(images.hashes) not in (0, len(images.names)) for images in found.values()):
        raise ValueError("it is not a list of images")
    return found


# --- folders -------------------------------------------------------------------------------------


def identify_folder(path: Path, listing: Listing, *, verify: bool = False) -> Inventory:
    """Identify the images of a folder or a table.

    Args:
        path: The folder or the table.
        listing: Its images.
        verify: Hash the contents of the images.

    Raises:
        CnnspecError: E0503 if an image cannot be read.
    """
    digests: dict[str, str] = {}
    splits: dict[str, Images] = {}
    for split, entries in sorted(listing.splits.items()):
        kinds = [listing.classes[entry.label] for entry in entries]
        found = Images([e.name for e in entries], [e.size for e in entries], kinds)
        digests[split] = found.digest()
        splits[split] = replace(found, hashes=_hash_files(entries)) if verify else found
    images = {split: dict(sorted(Counter(found.classes).items())) for split, found in splits.items()}
    contents = _sha256(value.encode() for found in splits.values() for value in found.hashes) if verify else None
    return Inventory(_identity("folder", digests, listing.classes, images, contents, str(path.absolute())), splits)


def _hash_files(entries: Sequence[Entry]) -> list[str]:
    def hash_file(entry: Entry) -> str:
        try:
            with entry.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise failure(
                "E0503",
                f"cannot read the image `{entry.name}`",
                notes=[one_line(error)],
                file=str(entry.path),
                help="check the file and its permissions",
            ) from None

    with ThreadPoolExecutor(available_cores() + 4) as pool:
        return list(pool.map(hash_file, entries))


def _identity(
    name: str,
    splits: dict[str, str],
    classes: Sequence[str],
    images: dict[str, dict[str, int]],
    contents: str | None,
    path: str | None = None,
) -> DataIdentity:
    digest = _sha256([json.dumps([name, splits, list(classes)], sort_keys=True).encode()])
    return DataIdentity(
        name=name, digest=digest, splits=splits, classes=tuple(classes), images=images, contents=contents, path=path
    )


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


# --- other datasets -----------------------------------------------------------------------------


def identify_labels(
    name: str,
    labels: Mapping[str, np.ndarray],
    classes: Sequence[str] = (),
    pixels: Iterable[np.ndarray] | None = None,
) -> Inventory:
    """Identify a dataset by its labels.

    Args:
        name: The name of the dataset.
        labels: The labels of each split.
        classes: The names of the classes.
        pixels: The images of all splits in the order of their names, to hash them too.
    """
    digests: dict[str, str] = {}
    images: dict[str, dict[str, int]] = {}
    for split, values in sorted(labels.items()):
        digests[split] = _sha256([np.ascontiguousarray(values, "<i8").data.cast("B")])
        counts = np.bincount(values).tolist()
        images[split] = {classes[k] if k < len(classes) else str(k): count for k, count in enumerate(counts) if count}
    contents = None if pixels is None else _sha256(np.ascontiguousarray(values).data.cast("B") for values in pixels)
    return Inventory(_identity(name, digests, classes, images, contents))


# --- differences ---------------------------------------------------------------------------------


OVERLAP = 0.5
"""A folder with a smaller fraction of the old images in one of its splits is another dataset."""


def is_other(old: Inventory, new: Inventory) -> bool:
    """Return whether a folder is another dataset and not a changed one: a split has few of the old images.

    Without the lists of both, it counts as changed.
    """
    shared = [split for split in old.splits if split in new.splits]
    if not old.splits or not new.splits:
        return False
    return not shared or any(_overlap(old.splits[split], new.splits[split]) < OVERLAP for split in shared)


def _overlap(old: Images, new: Images) -> float:
    """Return the fraction of the images of two splits that are in both."""
    before, after = old.by_name(), new.by_name()
    same = sum(after.get(name, ("", ""))[:2] == value[:2] for name, value in before.items())
    return same / max(1, len(before), len(after))


def differences(old: Inventory, new: Inventory, *, shared: bool = False) -> list[str]:
    """Describe how a dataset has changed. The result is empty if it has not.

    Args:
        old: The dataset before.
        new: The dataset now.
        shared: Compare only the splits that both have.
    """
    if old.identity.same(new.identity):
        return []
    both = old.identity.splits.keys() & new.identity.splits.keys()
    if shared and both and not old.identity.splits.keys() == new.identity.splits.keys() == both:
        old, new = _only(old, both), _only(new, both)
        if old.identity.splits == new.identity.splits:
            return []
    if old.identity.name != new.identity.name:
        return [f"the dataset was `{old.identity.name}`, now `{new.identity.name}`"]
    found = _changed_classes(old.identity.images, new.identity.images)
    if old.splits and new.splits:
        for split in SPLITS:
            found += _changed_files(old.splits.get(split), new.splits.get(split))
    if found:
        return [*found, *([old.problem] if old.problem else [])]
    if old.identity.digest == new.identity.digest:
        return ["the contents of images have changed"]
    changed = [name for name, value in old.identity.splits.items() if new.identity.splits.get(name) != value]
    if changed:
        return [f"names, sizes or labels of images in `{split}` have changed" for split in changed]
    return ["the names of the classes have changed"] if old.identity.classes else []  # which may not be recorded


def _only(found: Inventory, splits: Collection[str]) -> Inventory:
    """Return an inventory with some of its splits."""
    own = found.identity
    kept = {
        "splits": {name: digest for name, digest in own.splits.items() if name in splits},
        "images": {name: counts for name, counts in own.images.items() if name in splits},
    }
    return Inventory(own.model_copy(update=kept), {name: found.splits[name] for name in found.splits if name in splits})


def _changed_classes(old: Mapping[str, Mapping[str, int]], new: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Describe splits and classes whose numbers of images differ."""
    found: list[str] = []
    for split in dict.fromkeys((*old, *new)):
        if split not in old or split not in new:
            counts = new.get(split) or old.get(split) or {}
            what = "added" if split not in old else "removed"
            found.append(f"`{split}` was {what} ({sum(counts.values()):,} images)")
            continue
        for name in dict.fromkeys((*old[split], *new[split])):
            before, after = old[split].get(name), new[split].get(name)
            if before is None or after is None:
                what = "added" if before is None else "removed"
                found.append(f"the class `{name}` was {what} in `{split}` ({before or after:,} images)")
            elif before != after:
                found.append(f"`{split}/{name}` had {before:,} images, now {after:,}")
    return found


def _changed_files(old: Images | None, new: Images | None) -> list[str]:
    """Name the files of a split that differ. Splits and classes that were added or removed as a whole are left out."""
    if old is None or new is None:
        return []
    before, after = old.by_name(), new.by_name()
    shared = {*old.classes} & {*new.classes}

    def only(first: Mapping[str, tuple[int, str, str]], second: Mapping[str, Any]) -> list[str]:
        return [name for name, (_, kind, _) in first.items() if name not in second and kind in shared]

    def differing(place: int) -> list[str]:
        return [name for name in before if name in after and before[name][place] != after[name][place]]

    resized = differing(0)
    rewritten = [name for name in differing(2) if old.hashes and new.hashes and before[name][0] == after[name][0]]
    return [
        *_some(only(before, after), "was removed"),
        *_some(only(after, before), "was added"),
        *_some(resized, "has another size", lambda name: f" ({before[name][0]:,} bytes, now {after[name][0]:,})"),
        *_some(differing(1), "has another class", lambda name: f" (`{before[name][1]}`, now `{after[name][1]}`)"),
        *_some(rewritten, "has other contents"),
    ]


def _some(names: Sequence[str], what: str, more: Callable[[str], str] = lambda name: "") -> list[str]:
    shown = [f"`{name}` {what}{more(name)}" for name in names[:NAMED]]
    rest = len(names) - len(shown)
    return [*shown, f"{rest:,} more files: each {what}"] if rest else shown
