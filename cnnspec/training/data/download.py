"""Download datasets with torchvision, atomically."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tarfile
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import download_url

from cnnspec.diagnostics import CnnspecError, echo, failure, one_line
from cnnspec.files import open_regular
from cnnspec.recipe import DATA_SETS
from cnnspec.training.data.locks import acquire

_CLASSES: dict[str, Any] = {
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
    "fashion_mnist": datasets.FashionMNIST,
    "mnist": datasets.MNIST,
}
_SIZES = {
    "cifar10": (170_498_071,),
    "cifar100": (169_001_437,),
    "fashion_mnist": (26_421_880, 29_515, 4_422_102, 5_148),
    "mnist": (9_912_422, 28_881, 1_648_877, 4_542),
}
"""The sizes of the files to download, in bytes."""
TIMEOUT = 30.0
"""The timeout of a connection without data, in seconds."""
MAX_DATA_FILE_BYTES = 256 << 20
"""The maximum size of one file of a dataset, in bytes. The largest has 170 MB."""
MAX_UNPACKED_BYTES = 1 << 30
"""The maximum unpacked size of an archive, in bytes. The largest dataset has 190 MB."""


@dataclass(frozen=True)
class RawImages:
    """Images as stored in their files: bytes `[N, h, w]` or `[N, h, w, C]`, and labels `[N]`.

    `names` are the names of the classes, if the files contain them.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()


def downloads(name: str) -> list[tuple[str, int]]:
    """Return the address and the size in bytes of each file of a dataset."""
    kind = _CLASSES[name]
    urls = [kind.url] if hasattr(kind, "url") else [f"{kind.mirrors[0]}{file}" for file, _ in kind.resources]
    return list(zip(urls, _SIZES[name], strict=True))


def torchvision_set(name: str, data_dir: Path, offline: bool, train: bool) -> RawImages:
    """Read a dataset from its directory, and download it first if it is missing.

    Raises:
        CnnspecError: E0502 if it is not available.
    """
    try:
        return _read(name, data_dir, train)
    except Exception as error:
        if isinstance(error, CnnspecError):
            raise
        if offline:
            raise _unavailable(
                name, f"it is not in `{data_dir}`, and `--offline` prevents the download", error
            ) from None
        _download(name, data_dir, lambda: _is_readable(name, data_dir, train))
        try:
            return _read(name, data_dir, train)
        except Exception as second_error:  # noqa: BLE001
            raise _unavailable(name, f"its files in `{data_dir}` cannot be read", second_error) from None


def _is_readable(name: str, data_dir: Path, train: bool) -> bool:
    try:
        _read(name, data_dir, train)
    except Exception:  # noqa: BLE001
        return False
    return True


def _read(name: str, data_dir: Path, train: bool) -> RawImages:
    """Read a downloaded dataset. torchvision unpickles the files of CIFAR only if their checksums match.

    Raises:
        Exception: The files are missing or damaged, in one of many ways.
    """
    _check_files(name, data_dir)
    data = _CLASSES[name](data_dir, train=train, download=False)
    images, labels = np.asarray(data.data), np.asarray(data.targets, dtype=np.int64)
    classes = DATA_SETS[name].classes or 0
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not 0 < len(images) == len(labels):
        raise ValueError("the images and the labels do not match")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"some labels are outside 0 to {classes - 1}")
    names = tuple(data.classes) if hasattr(data, "meta") else ()  # of CIFAR
    if names and not (len(names) == classes and all(isinstance(name, str) for name in names)):
        raise ValueError(f"the names of the classes are not {classes} texts")
    return RawImages(images, labels, names)


def _check_files(name: str, data_dir: Path) -> None:
    """Check the files of a dataset before torchvision reads them as a whole.

    Raises:
        CnnspecError: E0502 if one is not a regular file, or is larger than any of a dataset.
    """
    kind = _CLASSES[name]
    folder = data_dir / getattr(kind, "base_folder", f"{kind.__name__}/raw")
    for path in folder.iterdir() if folder.is_dir() else ():
        with open_regular(path, MAX_DATA_FILE_BYTES, "E0502"):
            pass


@contextlib.contextmanager
def _one_at_a_time(lock: Path, name: str) -> Generator[None]:
    """Wait until no other process downloads this dataset to the same directory."""
    file: IO[str] | None = None
    try:
        file = acquire(lock)
    except BlockingIOError:
        echo(f"waiting for another process that downloads {name}", file=sys.stderr)
        with contextlib.suppress(BlockingIOError):  # the file system has no locks
            file = acquire(lock, wait=True)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        if file is not None:
            file.close()


def _download(name: str, data_dir: Path, is_there: Callable[[], bool]) -> None:
    """Download into a temporary folder, and move complete files into place.

    Args:
        name: The dataset.
        data_dir: The directory of datasets.
        is_there: Returns whether another process has downloaded it in the meantime.
    """
    existed = data_dir.exists()
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(data_dir / f".{name}.lock", name):
            if not is_there():
                _fetch(name, data_dir)
    except (OSError, RuntimeError, EOFError, ValueError, tarfile.TarError) as error:  # URLError is an OSError
        raise _unavailable(name, f"the download to `{data_dir}` failed", error) from None
    finally:
        socket.setdefaulttimeout(previous_timeout)
        if not existed:
            with contextlib.suppress(OSError):  # not empty, or never created
                data_dir.rmdir()


def _fetch(name: str, data_dir: Path) -> None:
    echo(f"downloading {name} to {data_dir}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as folder:
        with contextlib.redirect_stdout(sys.stderr):
            _fetch_archive(name, folder)
            for train in (True, False):
                _CLASSES[name](folder, train=train, download=True)
        for entry in sorted(Path(folder).iterdir()):
            if entry.is_dir():
                shutil.rmtree(data_dir / entry.name, ignore_errors=True)
                entry.rename(data_dir / entry.name)


def _fetch_archive(name: str, folder: str) -> None:
    """Download the archive of a dataset, if it has one, and check it before torchvision extracts it.

    Before Python 3.14, extraction writes to any path that a member names.
    """
    kind = _CLASSES[name]
    if hasattr(kind, "tgz_md5"):
        download_url(kind.url, folder, kind.filename, kind.tgz_md5)
        check_archive(Path(folder, kind.filename))


def check_archive(path: Path) -> None:
    """Reject an archive that contains anything but files and folders inside its own folder.

    Raises:
        ValueError: It does, or its unpacked size is too large.
        TarError: It cannot be read.
    """
    total = 0
    with tarfile.open(path) as archive:
        for member in archive:
            total += member.size
            place = PurePosixPath(member.name.replace("\\", "/"))
            if place.is_absolute() or ".." in place.parts or PureWindowsPath(member.name).drive:
                raise ValueError(f"the archive would write to `{member.name}`, outside its folder")
            if not (member.isreg() or member.isdir()):
                raise ValueError(f"`{member.name}` in the archive is neither a file nor a folder")
            if total > MAX_UNPACKED_BYTES:
                raise ValueError(f"the archive unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")


def _unavailable(name: str, why: str, error: Exception) -> CnnspecError:
    reason = one_line(error)
    return failure(
        "E0502",
        f"the dataset `{name}` is not available: {why}",
        notes=[reason] if reason else [],
        help=(
            "use `--data fashion_mini`, which is part of the package, pass the directory that contains"
            f" {name} with `--data-dir DIR`, or use your own images with `--data folder:PATH`"
        ),
    )
