"""Cache the decoded images of files in memory, or in a file that is mapped into memory.

The pixels are those that reading the files returns, in their original size. A file of the cache belongs to the paths,
sizes and times of its images and to the version of the decoder. It has a hash of its contents; a file that is damaged
or belongs to other images is written again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import PIL
import torch
import torchvision
from PIL import features
from torch import Tensor

from cnnspec.diagnostics import CnnspecError, failure, one_line, reason_of
from cnnspec.files import open_regular
from cnnspec.resources import cache_folder
from cnnspec.training.data.device import to_device
from cnnspec.training.data.images import image_size, read_image
from cnnspec.training.data.locks import acquire
from cnnspec.training.data.sources import Records
from cnnspec.training.data.threads import Poll, in_order

_MAGIC = b"cnnspec images 1"
_TAIL = struct.Struct("<Q32s32s16s")
"""The end of a file of the cache, after the pixels and the sizes: number of images, key, SHA-256, format."""
_BLOCK = 1 << 24


class Decoded:
    """Decoded images.

    Args:
        pixels: The bytes of all images, one after another, each `[h, w, C]`.
        sizes: The height and width of each image, `[N, 2]`.
        channels: C.
    """

    def __init__(self, pixels: Tensor, sizes: np.ndarray, channels: int) -> None:
        self.pixels, self.sizes, self.channels = pixels, sizes, channels
        ends = sizes.astype(np.int64).prod(1).cumsum() * channels
        self._starts = [0, *ends.tolist()]

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    @cached_property
    def is_uniform(self) -> bool:
        """Whether all images have the same size."""
        return bool((self.sizes == self.sizes[:1]).all())

    def to(self, device: torch.device) -> Decoded:
        """Return the images in the memory of a device."""
        return Decoded(to_device(self.pixels, device), self.sizes, self.channels)

    def images(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Yield the images as groups `[n, C, h, w]`, in the order of the positions.

        On a CPU, a group is one image with the memory layout that reading its file returns, so what is computed from
        it is the same to the bit. On other devices, images of one size are a single group.
        """
        if self.device.type != "cpu" and self.is_uniform:
            height, width = self.sizes[0].tolist()
            stacked = self.pixels.view(-1, height, width, self.channels)
            yield stacked.index_select(0, to_device(torch.tensor(positions), self.device)).permute(0, 3, 1, 2)
            return
        for position in positions:
            start, end = self._starts[position : position + 2]
            height, width = self.sizes[position].tolist()
            yield self.pixels[start:end].view(1, height, width, self.channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Headers:
    """What the headers of some image files say.

    Attributes:
        sizes: The width and height of each image, `[N, 2]`.
        channels: The channels of a decoded image.
    """

    sizes: np.ndarray
    channels: int

    @property
    def nbytes(self) -> int:
        """The size of the decoded images in bytes."""
        return int(self.sizes.prod(1).sum()) * self.channels

    @property
    def are_uniform(self) -> bool:
        return bool((self.sizes == self.sizes[:1]).all())


def read_headers(images: Records, threads: int, poll: Poll = lambda: None) -> Headers:
    """Read the headers of image files.

    Raises:
        CnnspecError: E0503 if one is not a readable image.
    """
    paths, channels = images.paths(), getattr(images.source, "channels", 0)
    found = list(in_order(image_size, paths or (), threads, poll))
    return Headers(np.array(found, dtype=np.int64).reshape(-1, 2), channels)


def _decode(images: Records, headers: Headers, threads: int, poll: Poll) -> Generator[np.ndarray]:
    """Yield the pixels `[h, w, C]` of each image.

    Raises:
        CnnspecError: E0503 if one cannot be read, or its size is not that of its header.
    """
    paths = images.paths() or []
    decoded = in_order(lambda path: read_image(path, headers.channels), paths, threads, poll)
    for path, (width, height), image in zip(paths, headers.sizes.tolist(), decoded, strict=True):
        pixels = image[0].permute(1, 2, 0).numpy()
        if pixels.shape[0] * pixels.shape[1] != width * height:
            raise _changed(path)
        yield pixels


def _changed(path: Path) -> CnnspecError:
    message = f"the image `{path.name}` has a different size than its header says, or changed while it was read"
    return failure("E0503", message, file=str(path), help="save the image again, or use `--cache off`")


def cache_in_memory(images: Records, headers: Headers, threads: int, poll: Poll = lambda: None) -> Records:
    """Return images of files, decoded into memory.

    Raises:
        CnnspecError: E0503 if one cannot be read.
    """
    pixels = torch.empty(headers.nbytes, dtype=torch.uint8)
    place, sizes = 0, np.empty((len(images), 2), np.int64)
    with closing(_decode(images, headers, threads, poll)) as decoded:
        for number, image in enumerate(decoded):
            sizes[number] = image.shape[:2]
            pixels[place : place + image.size] = torch.from_numpy(image.reshape(-1))
            place += image.size
    return Records.of(Decoded(pixels, sizes, headers.channels), images.labels)


# --- files ---------------------------------------------------------------------------------------


def cache_in_file(images: Records, headers: Headers, threads: int, poll: Poll = lambda: None) -> Records:
    """Return images of files, decoded into a file of the cache folder. Processes that need the same file share it.

    Raises:
        CnnspecError: E0503 if an image cannot be read, E0510 if the file cannot be written.
    """
    folder = cache_folder()
    if folder is None:
        help = "set `CNNSPEC_CACHE` to a folder"
        raise failure("E0510", "`--cache disk` needs a cache folder, and there is no home folder", help=help)
    names = "\0".join([str(headers.channels), *(str(path.absolute()) for path in images.paths() or ())])
    name = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    target = folder / "images" / f"{name}.bin"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _waiting_lock(target.with_suffix(".lock"), poll):
            key = cache_key(images, headers.channels)
            found = _open(target, key, headers)
            if found is None:
                _write(target, key, images, headers, threads, poll)
                found = _open(target, key, headers)
    except OSError as error:
        reason = reason_of(error) if error.errno is not None else one_line(error)
        help = "free space, set `CNNSPEC_CACHE` to another folder, or use `--cache off`"
        message = f"cannot write the cache of {headers.nbytes:,} bytes"
        raise failure("E0510", message, notes=[reason], file=str(target), help=help) from None
    if found is None:
        raise failure("E0510", "the cache file was damaged after it was written", file=str(target))
    return Records.of(found, images.labels)


def cache_key(images: Records, channels: int) -> bytes:
    """Return a hash of everything that the decoded pixels depend on.

    Raises:
        OSError: The state of a file cannot be read.
    """
    decoders = f"{PIL.__version__}\0{features.version('jpg')}\0{torchvision.__version__}"
    digest = hashlib.sha256(f"{_MAGIC}\0{decoders}\0{channels}".encode())
    for path in images.paths() or ():
        status = os.stat(path)
        # The change time cannot be set, so a file that was replaced is noticed even if its size and time were kept.
        state = f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{status.st_ino}\n"
        digest.update(os.fsencode(path.absolute()) + state.encode())
    return digest.digest()


def _waiting_lock(path: Path, poll: Poll) -> IO[str]:
    while True:
        try:
            return acquire(path)
        except BlockingIOError:
            poll()
            time.sleep(0.1)


def _write(target: Path, key: bytes, images: Records, headers: Headers, threads: int, poll: Poll) -> None:
    temporary = target.with_suffix(".part")
    temporary.unlink(missing_ok=True)
    free, needed = shutil.disk_usage(target.parent).free, headers.nbytes
    if needed > free:
        raise OSError(f"{free:,} bytes are free")
    try:
        digest, sizes = hashlib.sha256(), np.empty((len(images), 2), "<i8")
        with temporary.open("xb") as file, closing(_decode(images, headers, threads, poll)) as decoded:
            for number, image in enumerate(decoded):
                sizes[number] = image.shape[:2]
                content = np.ascontiguousarray(image).data
                digest.update(content)
                file.write(content)
            digest.update(sizes.data)
            digest.update(key)
            file.write(sizes.data)
            file.write(_TAIL.pack(len(images), key, digest.digest(), _MAGIC))
            file.flush()
            os.fsync(file.fileno())
        if cache_key(images, headers.channels) != key:
            raise failure("E0503", "images changed while they were cached", help="start the run again")
        os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _open(path: Path, key: bytes, headers: Headers) -> Decoded | None:
    """Return the images in a file of the cache, or None if it is missing, damaged or belongs to other images."""
    count = len(headers.sizes)
    expected = headers.nbytes + 16 * count + _TAIL.size
    try:
        with open_regular(path, expected, "E0510", inside=path.parent) as file:
            if file is None or os.fstat(file.fileno()).st_size != expected:
                return None
            file.seek(expected - _TAIL.size)
            stored, stored_key, stored_digest, magic = _TAIL.unpack(file.read(_TAIL.size))
            if (stored, stored_key, magic) != (count, key, _MAGIC):
                return None
            file.seek(0)
            digest, left = hashlib.sha256(), headers.nbytes
            while left:
                content = file.read(min(left, _BLOCK))
                if not content:
                    return None
                digest.update(content)
                left -= len(content)
            table = file.read(16 * count)
    except (CnnspecError, OSError):
        return None
    digest.update(table)
    digest.update(key)
    if digest.digest() != stored_digest:
        return None
    pixels = torch.from_file(str(path), shared=False, size=headers.nbytes, dtype=torch.uint8)
    return Decoded(pixels, np.frombuffer(table, "<i8").reshape(-1, 2), headers.channels)
