"""Compute the mean and standard deviation of each channel of the training images, to normalize them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cnnspec.diagnostics import CnnspecError
from cnnspec.files import read_text, write_atomically
from cnnspec.resources import available_cores, cache_folder
from cnnspec.training.data.decoded import cache_key
from cnnspec.training.data.images import read_image
from cnnspec.training.data.preprocessing import Statistics
from cnnspec.training.data.sources import Files, Records
from cnnspec.training.data.threads import MAX_THREADS, in_order

_STORED: TypeAdapter[Statistics] = TypeAdapter(Statistics)
_MAX_BYTES = 4096

Sums = tuple[int, Tensor, Tensor]
"""The number of pixels, and the sums of their values and of the squares of their values by channel, as integers."""


def statistics(groups: Iterable[Tensor]) -> Statistics:
    """Return the mean and standard deviation of each channel over all pixels of `[n, C, h, w]`, on a scale from 0 to 1.

    The sums are exact, so they do not depend on the order. The result is rounded to eight digits, as such constants are
    published.
    """
    return _of_sums(_sums(group) for group in groups)


def _sums(group: Tensor) -> Sums:
    count, total, squares = 0, torch.tensor(0), torch.tensor(0)
    for chunk in group.split(2000):
        values = chunk.long()
        count += values.numel() // values.shape[1]
        total = total + values.sum((0, 2, 3))
        squares = squares + values.square().sum((0, 2, 3))
    return count, total, squares


def _of_sums(parts: Iterable[Sums]) -> Statistics:
    count, total, squares = 0, torch.tensor(0), torch.tensor(0)
    for part in parts:
        count, total, squares = count + part[0], total + part[1], squares + part[2]
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).sqrt()
    # A constant channel is not scaled.
    scaled = (std / 255).where(std > 0, 1.0)
    return tuple(round(v, 8) for v in (mean / 255).tolist()), tuple(round(v, 8) for v in scaled.tolist())


def image_statistics(images: Records) -> Statistics:
    """Return the statistics of images. Files are read by several threads, and their result is stored in the cache.

    Raises:
        CnnspecError: E0503 if one cannot be read.
    """
    source = images.source
    if not isinstance(source, Files):
        return statistics(images.read(torch.arange(len(images))))
    path = _cache_file(images, source.channels)
    found = path and _read(path, source.channels)
    if not found:
        paths = images.paths() or ()
        threads = min(MAX_THREADS, available_cores())
        found = _of_sums(in_order(lambda image: _sums(read_image(image, source.channels)), paths, threads))
        # If an image changed while it was read, the statistics are not those of the key.
        if path is not None and _cache_file(images, source.channels) == path:
            _write(path, found)
    return found


def _cache_file(images: Records, channels: int) -> Path | None:
    folder = cache_folder()
    try:
        return folder and folder / "statistics" / f"{cache_key(images, channels).hex()}.json"
    except OSError:  # reading the images reports it
        return None


def _seal(path: Path, content: str) -> str:
    return hashlib.sha256(f"{path.stem} {content}".encode()).hexdigest()


def _read(path: Path, channels: int) -> Statistics | None:
    """Return stored statistics, or None if there are none or the file is damaged."""
    try:
        content, _, seal = (read_text(path, _MAX_BYTES, "E0503", inside=path.parent) or "").partition("\n")
        if seal != _seal(path, content):
            return None
        found = _STORED.validate_json(content)
    except (CnnspecError, ValidationError):
        return None
    return found if {len(values) for values in found} == {channels} else None


def _write(path: Path, found: Statistics) -> None:
    content = json.dumps(found)
    with suppress(OSError):  # the next run computes them again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{content}\n{_seal(path, content)}".encode(), shared=True)
