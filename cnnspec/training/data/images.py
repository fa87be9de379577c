"""Read image files as 8-bit grayscale or RGB pixels.

Pixels are those that a viewer shows: the EXIF orientation is applied, transparent pixels are blended with a white
background, and 16-bit grayscale is scaled to 8 bits. Of an animation or a file with several pages, the first is read.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.limits import MAX_PIXELS

try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:  # torchvision 0.29 announces their removal
    ImageReadMode = decode_image = None

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats of images, whatever the extension is. Pillow starts other programs for some of the others."""
_STRIP = 256
"""Rows that are converted at a time, so that no converted image is in memory as a whole."""
BACKGROUND = 255
"""The gray value behind transparent pixels: white."""
_BITS_PER_SAMPLE, _PHOTOMETRIC = ExifTags.Base.BitsPerSample, ExifTags.Base.PhotometricInterpretation
_WHITE_IS_ZERO = 0
_SIXTEEN_BITS = frozenset({"PNG", "PPM"})
"""The formats in which Pillow's mode `I` holds 16-bit values from 0 to 65535. In others, the scale is unknown."""


class _Silence:
    """Hide warnings while any thread reads an image.

    `warnings.catch_warnings` is not safe for threads: filters that one restores could be those of another.
    """

    def __init__(self) -> None:
        self._lock, self._readers = threading.Lock(), 0
        self._hidden = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Generator[None]:
        with self._lock:
            if self._readers == 0:
                self._hidden = warnings.catch_warnings(action="ignore")
                self._hidden.__enter__()
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if self._readers == 0:
                    self._hidden.__exit__(None, None, None)


_silence = _Silence()


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height in the header of an image file, before its orientation is applied.

    Raises:
        CnnspecError: E0503 if the file is not a readable image.
    """
    try:
        with path.open("rb") as file, _silence(), Image.open(file, formats=FORMATS) as image:
            return image.size
    except Exception as error:  # noqa: BLE001  as in `open_image`
        raise _unreadable(error, f"`{path.name}`", str(path)) from None


def read_image(path: Path, channels: int) -> Tensor:
    """Read one image file.

    Args:
        path: The file.
        channels: 1 for grayscale, 3 for RGB.

    Returns:
        Bytes `[1, channels, h, w]`.

    Raises:
        CnnspecError: E0503 if the file is not a readable image, or its values have no known range: floating-point
            images, and integers of more than 16 bits.
    """
    try:
        # Not by its path: Pillow 13 maps uncompressed grayscale TIFF files into memory, and then applies their
        # orientation twice.
        with path.open("rb") as file:
            return open_image(file, channels, path.name, str(path))
    except OSError as error:
        raise _unreadable(error, f"`{path.name}`", str(path)) from None


def open_image(source: IO[bytes], channels: int, name: str, file: str | None = None) -> Tensor:
    """Read one image from a stream. `name` and `file` identify it in errors.

    Returns:
        Bytes `[1, channels, h, w]`.

    Raises:
        CnnspecError: E0503, as `read_image`.
    """
    try:
        with _silence(), Image.open(source, formats=FORMATS) as image:  # warns of damaged metadata and large images
            decoded = _decode_jpeg(source, image) if channels == 3 else None
            return _pixels(image, channels) if decoded is None else decoded
    except Exception as error:  # noqa: BLE001  decoders raise many types for damaged files, also `struct.error`, `KeyError`
        raise _unreadable(error, f"`{name}`", file) from None


def _decode_jpeg(source: IO[bytes], image: Image.Image) -> Tensor | None:
    """Return the pixels `[1, 3, h, w]` of an RGB image in JPEG format, or None if Pillow is to decode it.

    torchvision is faster. The pixels are the same, because both use libjpeg-turbo; this is checked once for the
    installed versions. Pillow reports what torchvision cannot decode.
    """
    if (image.format, image.mode) != ("JPEG", "RGB") or image.width * image.height > MAX_PIXELS:
        return None
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 or not _decoders_agree():
        return None
    place = source.tell()
    source.seek(0)
    try:
        pixels = _decode(source.read())
        return pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # the memory layout of `_pixels`
    except RuntimeError:
        return None
    finally:
        source.seek(place)


def _decode(content: bytes) -> Tensor:
    """Return the pixels `[3, h, w]` of an image, decoded by torchvision."""
    assert decode_image is not None
    assert ImageReadMode is not None
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


@cache
def _decoders_agree() -> bool:
    """Return whether Pillow and torchvision decode JPEG files of several kinds to the same pixels."""
    if decode_image is None:
        return False
    values = np.arange(40 * 56 * 3, dtype=np.int64).reshape(40, 56, 3)
    image = Image.fromarray(((values * values // 7) % 256).astype(np.uint8))
    for number in range(6):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=70 + 5 * number, subsampling=number % 3, progressive=number > 2)
        try:
            found = _decode(file.getvalue())
        except RuntimeError:  # torchvision was built without libjpeg
            return False
        with Image.open(file, formats=("JPEG",)) as again:
            if not np.array_equal(np.asarray(again), found.permute(1, 2, 0).numpy()):
                return False
    return True


def image_pixels(source: Any, channels: int, name: str) -> Tensor:
    """Return the pixels `[1, channels, h, w]` of an image in memory, as those of a file. The image is not changed.

    Args:
        source: A PIL image, an array or a tensor. Bytes are `[h, w]` or `[h, w, C]` in an array and `[C, h, w]` in a
            tensor. Floats are `[C, h, w]`, from 0 to 1. C is 1 for grayscale, 3 for RGB, 4 for RGB and alpha.
        channels: 1 for grayscale, 3 for RGB.
        name: The name of the image in error messages.

    Raises:
        CnnspecError: E0503 as for `read_image`, or if an array has another type, shape or range.
    """
    if isinstance(source, Image.Image):
        image = source
    else:
        try:
            image = Image.fromarray(_bytes(source))
        except (TypeError, ValueError) as error:
            help = "pass bytes, or floats from 0 to 1 before any normalization"
            raise failure("E0503", f"cannot read the image {name}", notes=[one_line(error)], help=help) from None
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image, image.format = image.copy(), image.format
        return _pixels(image, channels)
    except Exception as error:  # noqa: BLE001  as in `read_image`; the file of the image may not be decoded yet
        raise _unreadable(error, name, None) from None


def _bytes(source: Any) -> np.ndarray:
    """Return bytes `[H, W]` or `[H, W, C]` of an array or a tensor.

    Raises:
        ValueError: It is not an image.
    """
    if isinstance(source, Tensor):
        values = source.detach().cpu()
        array, planar = (values.double() if values.is_floating_point() else values).numpy(), True
    else:
        array = np.asarray(source)
        planar = array.dtype.kind == "f"
    if array.dtype.kind not in "fu" or (array.dtype.kind == "u" and array.dtype != np.uint8):
        raise ValueError(f"values of the type {array.dtype} are not supported")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"its shape is {list(array.shape)}")
    if planar and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        shape, order = list(array.shape), "[C, H, W]" if planar else "[H, W, C]"
        raise ValueError(f"it has {shape[2]} channels, read as {order}; expected 1, 3 or 4")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"its values are from {array.min():.4g} to {array.max():.4g}")
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    return np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _unreadable(error: Exception, name: str, file: str | None) -> CnnspecError:
    return failure(
        "E0503",
        f"cannot read the image {name}",
        notes=[one_line(error) or type(error).__name__],
        file=file,
        help="remove the file, or save the image again as 8-bit grayscale or RGB",
    )


def _pixels(image: Image.Image, channels: int) -> Tensor:
    """Return the pixels `[1, channels, h, w]` of an image. Its orientation is applied to itself."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width:,} x {height:,} pixels, more than the limit of {MAX_PIXELS:,}")
    ImageOps.exif_transpose(image, in_place=True)
    width, height = image.size
    array = np.empty((height, width, channels), np.uint8)
    greatest, mode = _greatest_value(image), "RGB" if channels == 3 else "L"
    for top in range(0, height, _STRIP):
        strip = image.crop((0, top, width, min(top + _STRIP, height)))
        rows = _convert(_eight_bits(image, strip, greatest) if greatest else strip, mode)
        array[top : top + _STRIP] = rows.reshape(-1, width, channels)
    return torch.from_numpy(array)[None].permute(0, 3, 1, 2)


def _convert(image: Image.Image, mode: str) -> np.ndarray:
    """Return the pixels of an 8-bit image."""
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (BACKGROUND,) * 4)
        image = Image.alpha_composite(white, transparent)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")  # from which luminance is computed, also for `LAB` and `CMYK`
    return np.array(image if image.mode == mode else image.convert(mode))


def _greatest_value(image: Image.Image) -> int | None:
    """Return the value of white in grayscale of up to 16 bits, or None for an 8-bit image.

    Raises:
        ValueError: The values have no known range.
    """
    if image.mode[0] not in "IF":
        return None
    if image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN_BITS):
        kind = "floating-point values" if image.mode == "F" else "integers of more than 16 bits, or signed integers"
        raise ValueError(f"the image has {kind}, whose range is unknown")
    tags = image.getexif() if image.format == "TIFF" else {}
    bits = tags.get(_BITS_PER_SAMPLE, 16)
    bits = int(bits[0] if isinstance(bits, tuple) else bits)
    if not 1 <= bits <= 16:
        raise ValueError(f"the image has {bits} bits per value")
    return 2**bits - 1


def _eight_bits(image: Image.Image, strip: Image.Image, greatest: int) -> Image.Image:
    """Scale a part of 16-bit grayscale to 8 bits."""
    tags = image.getexif() if image.format == "TIFF" else {}
    values = np.array(strip).astype(np.int64)
    gray = (values * 255 + greatest // 2) // greatest
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = 255 - gray
    key = image.info.get("transparency")  # of a PNG: the value of transparent pixels
    if isinstance(key, int):
        gray[values == key] = BACKGROUND
    return Image.fromarray(gray.astype(np.uint8))
