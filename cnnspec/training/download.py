"""Data sets of torchvision, downloaded once and complete or not at all."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from cnnspec.diagnostics import CnnspecError, failure

_CLASSES: dict[str, Any] = {
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
    "fashion_mnist": datasets.FashionMNIST,
    "mnist": datasets.MNIST,
}
PATIENCE = 30.0
"""Seconds without a byte after which a server is given up."""


@dataclass(frozen=True)
class Original:
    """Images as their files hold them: bytes `[N, h, w]` or `[N, h, w, C]`, and labels `[N]`."""

    images: np.ndarray
    labels: np.ndarray


def torchvision_set(name: str, data_dir: Path, offline: bool, train: bool) -> Original:
    """Read a set from its directory, and download it first if it is not there.

    Raises:
        CnnspecError: E0502 if it cannot be had.
    """
    try:
        data = _CLASSES[name](data_dir, train=train, download=False)
    except (RuntimeError, OSError, ValueError) as error:
        if offline:
            raise _missing(name, f"it is not in `{data_dir}`, and `--offline` forbids the download", error) from None
        _download(name, data_dir)
        try:
            data = _CLASSES[name](data_dir, train=train, download=False)
        except (RuntimeError, OSError, ValueError) as again:
            raise _missing(name, f"what is in `{data_dir}` cannot be read", again) from None
    return Original(np.asarray(data.data), np.asarray(data.targets, dtype=np.int64))


def _download(name: str, data_dir: Path) -> None:
    """Download into a folder of its own and move what is complete into place."""
    there = data_dir.exists()
    waited = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        print(f"downloading {name} to {data_dir}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as folder:
            with contextlib.redirect_stdout(sys.stderr):
                for train in (True, False):
                    _CLASSES[name](folder, train=train, download=True)
            for entry in sorted(Path(folder).iterdir()):
                if entry.is_dir():
                    shutil.rmtree(data_dir / entry.name, ignore_errors=True)
                    entry.rename(data_dir / entry.name)
    except (OSError, RuntimeError, EOFError, ValueError) as error:  # URLError is an OSError
        raise _missing(name, f"it cannot be downloaded to `{data_dir}`", error) from None
    finally:
        socket.setdefaulttimeout(waited)
        if not there:
            with contextlib.suppress(OSError):  # not empty, or never made
                data_dir.rmdir()


def _missing(name: str, why: str, error: Exception) -> CnnspecError:
    reason = " ".join(str(error).split())[:200]
    return failure(
        "E0502",
        f"the data set `{name}` is not available: {why}",
        notes=[reason] if reason else [],
        help=(
            "train on the set that comes with the package with `--data fashion_mini`, name a directory that holds"
            f" {name} with `--data-dir DIR`, or use your own images with `--data folder`"
        ),
    )
