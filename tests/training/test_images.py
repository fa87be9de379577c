"""Reading image files, compared with the samples that were written into them."""

from __future__ import annotations

import importlib.util
import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
import torchvision
from harness.images import stored
from PIL import Image, ImageCms

from cnnspec.diagnostics import CnnspecError
from cnnspec.training.data import images
from cnnspec.training.data.folders import EXTENSIONS
from cnnspec.training.data.images import open_image, read_image

GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = np.stack([GRAY, GRAY[::-1], GRAY.T], axis=2)
ALPHA = np.repeat(np.array([0, 1, 100, 128, 200, 254, 255, 255], np.uint8), 32).reshape(16, 16)
SIXTEEN = (np.arange(4096, dtype=np.uint16) * 16 + 7).reshape(64, 64)
UPRIGHT = np.random.default_rng(0).integers(0, 256, (48, 32, 3), dtype=np.uint8)
STORED = {orientation: stored(UPRIGHT, orientation) for orientation in range(1, 9)}


def read(path: Path, channels: int = 3) -> np.ndarray:
    """Read a file as `[h, w]` or `[h, w, 3]`."""
    pixels = read_image(path, channels)
    assert pixels.shape[:2] == (1, channels)
    return pixels[0].permute(1, 2, 0).numpy().squeeze(2) if channels == 1 else pixels[0].permute(1, 2, 0).numpy()


def luminance(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601, which Pillow and torchvision use."""
    return np.round(rgb.astype(float) @ np.array([0.299, 0.587, 0.114]))


def on_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha.astype(float)[..., None] / 255 if colors.ndim == 3 else alpha.astype(float) / 255
    return colors * weight + 255 * (1 - weight)


def gray_tiff(path: Path, values: np.ndarray, *, order: str, bits: int, white_is_zero: bool = False) -> Path:
    """Write an uncompressed grayscale TIFF by hand; Pillow cannot write big-endian, 12-bit or inverted ones."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = values.astype(f"{order}u2").tobytes()
    entries = [
        (256, 3, width),
        (257, 3, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, 0 if white_is_zero else 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, height),
        (279, 4, len(data)),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        table += struct.pack(f"{order}HHI", tag, kind, 1)
        table += struct.pack(f"{order}HH" if kind == 3 else f"{order}I", *((value, 0) if kind == 3 else (value,)))
    path.write_bytes(head + data + table + struct.pack(f"{order}I", 0))
    return path


# --- modes ---------------------------------------------------------------------------------------

LOSSLESS = {"png": {}, "bmp": {}, "tiff": {}, "ppm": {}, "webp": {"lossless": True}}


@pytest.mark.parametrize("extension", LOSSLESS)
def test_rgb(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    Image.fromarray(RGB).save(path, **LOSSLESS[extension])
    assert (read(path) == RGB).all()
    assert np.abs(read(path, 1) - luminance(RGB)).max() <= 1


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "pgm", "gif"])
def test_grayscale(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    Image.fromarray(GRAY).save(path)
    assert (read(path, 1) == GRAY).all()
    assert (read(path) == GRAY[..., None]).all()


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "jpe", "jfif"])
def test_jpeg(tmp_path: Path, extension: str) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (32, 32, 3))
    path = tmp_path / f"x.{extension}"
    Image.fromarray(np.ascontiguousarray(smooth)).save(path, "JPEG", quality=100, subsampling=0)
    assert np.abs(read(path).astype(int) - smooth).max() <= 2


@pytest.mark.parametrize("extension", ["png", "tiff", "pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grayscale_is_scaled(tmp_path: Path, extension: str, channels: int) -> None:
    path = tmp_path / f"x.{extension}"
    Image.fromarray(SIXTEEN).save(path)
    expected = np.round(SIXTEEN / 257)
    found = read(path, channels)
    assert (found == (expected if channels == 1 else expected[..., None])).all()
    assert len(np.unique(found)) == 256


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_16_bit_tiff_of_both_orders_and_polarities(tmp_path: Path, order: str, white_is_zero: bool) -> None:
    path = gray_tiff(tmp_path / "x.tif", SIXTEEN, order=order, bits=16, white_is_zero=white_is_zero)
    if order == ">" and white_is_zero:
        with pytest.raises(CnnspecError):  # Pillow does not know this combination
            read(path, 1)
        return
    expected = np.round(SIXTEEN / 257)
    assert (read(path, 1) == (255 - expected if white_is_zero else expected)).all()


def test_12_bit_tiff(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = gray_tiff(tmp_path / "x.tif", values, order="<", bits=12)
    assert (read(path, 1) == np.round(values.astype(float) * 255 / 4095)).all()


def test_16_bit_pgm_with_its_own_maximum(tmp_path: Path) -> None:
    path = tmp_path / "x.pgm"
    values = np.array([0, 1, 500, 1000], ">u2")
    path.write_bytes(b"P5 4 1 1000\n" + values.tobytes())
    assert np.abs(read(path, 1)[0] - np.array([0, 0.255, 127.5, 255])).max() <= 1


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_known_range_are_refused(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.linspace(0, 1000, 256).reshape(16, 16).astype(kind)).save(path)
    with pytest.raises(CnnspecError, match="cannot read the image") as raised:
        read(path)
    diagnostic = raised.value.diagnostics[0]
    assert diagnostic.code == "E0503"
    assert diagnostic.file == str(path)
    assert "whose range is unknown" in diagnostic.notes[0]


@pytest.mark.parametrize("extension", ["png", "tiff", "pbm", "bmp"])
def test_bilevel(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    mask = GRAY % 3 == 0
    Image.fromarray(mask).save(path)
    assert (read(path, 1) == mask * 255).all()
    assert (read(path) == mask[..., None] * 255).all()


@pytest.mark.parametrize("extension", ["png", "gif", "bmp", "tiff"])
def test_palette(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    colors = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(GRAY, "P")
    image.putpalette(colors.tobytes())
    image.save(path)
    assert (read(path) == colors[GRAY]).all()
    assert np.abs(read(path, 1) - luminance(colors[GRAY])).max() <= 1


def test_cmyk(tmp_path: Path) -> None:
    inks = np.stack([GRAY, GRAY[::-1], GRAY.T, GRAY // 4], axis=2).astype(float)
    path = tmp_path / "x.tif"
    Image.fromarray(inks.astype(np.uint8), "CMYK").save(path)
    expected = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert np.abs(read(path) - expected).max() <= 1
    jpeg = tmp_path / "x.jpg"
    flat = np.full((16, 16, 4), [10, 100, 200, 30], np.uint8)
    Image.fromarray(flat, "CMYK").save(jpeg, quality=100)
    expected = (255 - flat[..., :3].astype(float)) * (255 - 30) / 255
    assert np.abs(read(jpeg) - expected).max() <= 2


def test_ycbcr(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.full((16, 16, 3), [120, 90, 160], np.uint8), "YCbCr").save(path)
    y, cb, cr = 120, 90 - 128, 160 - 128
    expected = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    assert np.abs(read(path) - np.array(expected)).max() <= 1


def test_lab(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    source = Image.fromarray(np.full((8, 8, 3), [200, 80, 40], np.uint8))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(source, *profiles, outputMode="LAB")
    assert lab is not None
    lab.save(path)
    assert np.abs(read(path).astype(int) - np.array([200, 80, 40])).max() <= 3


# --- transparency --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extension", "options"), [("png", {}), ("tiff", {}), ("webp", {"lossless": True, "exact": True})]
)
def test_alpha_is_blended_with_white(tmp_path: Path, extension: str, options: Any) -> None:
    path = tmp_path / f"x.{extension}"
    Image.fromarray(np.dstack([RGB, ALPHA])).save(path, **options)
    assert np.abs(read(path) - on_white(RGB, ALPHA)).max() <= 1
    assert np.abs(read(path, 1) - luminance(on_white(RGB, ALPHA))).max() <= 2


def test_alpha_of_grayscale(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.dstack([GRAY, ALPHA]), "LA").save(path)
    assert np.abs(read(path, 1) - on_white(GRAY, ALPHA)).max() <= 1


@pytest.mark.parametrize("extension", ["png", "gif"])
def test_transparent_palette_entry(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    image = Image.fromarray(GRAY, "P")
    image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    image.save(path, transparency=7)
    assert (read(path, 1) == np.where(GRAY == 7, 255, GRAY)).all()


def test_palette_with_alpha(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    image = Image.fromarray(GRAY, "P")
    image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    image.save(path, transparency=bytes(range(256)))
    assert np.abs(read(path, 1) - on_white(GRAY, GRAY)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "I;16"])
def test_transparent_color_of_png(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.png"
    array: np.ndarray
    key: Any
    if mode == "RGB":
        array, key = RGB, tuple(int(v) for v in RGB[3, 3])
        expected = np.where((key == RGB).all(2, keepdims=True), 255, RGB)
    elif mode == "1":
        array, key = GRAY > 100, 0
        expected = np.full((16, 16, 3), 255)
    elif mode == "L":
        array, key = GRAY, 51
        expected = np.where(key == GRAY, 255, GRAY)[..., None]
    else:
        array, key = SIXTEEN, int(SIXTEEN[5, 5])
        expected = np.where(key == SIXTEEN, 255, np.round(SIXTEEN / 257))[..., None]
    Image.fromarray(array).save(path, transparency=key)
    assert (read(path) == expected).all()


# --- orientation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("extension", ["png", "webp", "tiff", "jpg"])
def test_orientation_is_applied(tmp_path: Path, extension: str, orientation: int) -> None:
    path = tmp_path / f"x.{extension}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(extension, {})
    Image.fromarray(STORED[orientation]).save(path, exif=exif, **options)
    found = read(path).astype(int)
    assert found.shape == UPRIGHT.shape
    assert np.abs(found - UPRIGHT).max() <= (12 if extension == "jpg" else 0)


WRITABLE = {
    ("png", None): ("L", "P", "1", "I;16", "RGBA", "LA"),
    ("webp", None): ("L", "P", "RGBA"),
    ("jpg", None): ("L", "CMYK"),
    ("tiff", None): ("L", "P", "1", "I;16", "RGBA", "CMYK"),
    ("tiff", "tiff_lzw"): ("L", "P", "1", "I;16", "RGBA", "CMYK"),
}
"""The modes that Pillow writes in each format, with each compression."""


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("mode", "extension", "compression"),
    [(mode, extension, compression) for (extension, compression), modes in WRITABLE.items() for mode in modes],
)
def test_orientation_is_applied_in_every_mode(
    tmp_path: Path, mode: str, extension: str, orientation: int, compression: str | None
) -> None:
    """Bright pixels show where the image is turned to."""
    marks = np.zeros((24, 32), np.uint8)
    marks[:8, :8] = 255
    marks[:8, -8:] = 100 if mode != "1" else 255
    upright = np.ascontiguousarray(marks[..., None].repeat(3, 2))
    turned = stored(upright, orientation)
    if mode == "I;16":
        image = Image.fromarray(turned[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(turned).convert("L" if mode == "P" else mode)
        image = image.convert("P") if mode == "P" else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"webp": {"lossless": True}, "jpg": {"quality": 100}}.get(extension, {})
    options |= {"compression": compression} if compression else {}
    path = tmp_path / f"x.{extension}"
    image.save(path, exif=exif, **options)
    found = read(path).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= (12 if extension == "jpg" else 0)


# --- several frames, damaged files ---------------------------------------------------------------


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_is_read(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (40, 90, 200)]
    options: dict[str, Any] = {"lossless": True} if extension == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert (read(path) == 40).all()


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
@pytest.mark.parametrize("damage", ["cut in half", "cut in the header", "empty", "text", "a folder"])
def test_damaged_files_are_named(tmp_path: Path, extension: str, damage: str) -> None:
    path = tmp_path / f"x{extension}"
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64), dtype=np.uint8))
    noise.convert("1" if extension == ".pbm" else "RGB").save(path, {".jpe": "JPEG", ".jfif": "JPEG"}.get(extension))
    data = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    else:
        contents = {"cut in half": data[: len(data) // 2], "cut in the header": data[:6], "empty": b""}
        path.write_bytes(contents.get(damage, b"this is not an image\n" * 20))
    with pytest.raises(CnnspecError) as raised:
        read(path)
    assert raised.value.diagnostics[0].code == "E0503"
    assert raised.value.diagnostics[0].file == str(path)
    assert raised.value.diagnostics[0].notes[0]


# --- decoders ------------------------------------------------------------------------------------


def jpeg(rng: np.random.Generator, **given: Any) -> bytes:
    """Return a photo as a JPEG file of a random size."""
    height, width = rng.integers(1, 70, 2).tolist()
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", **given)
    return file.getvalue()


def outcome(content: bytes, channels: int = 3) -> tuple[Any, ...]:
    try:
        pixels = open_image(io.BytesIO(content), channels, "x")
    except CnnspecError as error:
        return (re.sub("0x[0-9a-f]+", "", str(error)),)
    return pixels.shape, pixels.stride(), pixels.numpy().tobytes()


def damaged(content: bytes, rng: np.random.Generator, how: str) -> bytes:
    changed = bytearray(content)
    if how == "short":
        del changed[int(rng.integers(1, len(content))) :]
    for _ in range({"one bit": 1, "three bits": 3}.get(how, 0)):
        changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


@pytest.mark.parametrize("how", ["intact", "short", "one bit", "three bits"])
def test_every_jpeg_file_has_the_pixels_or_the_error_of_pillow(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    contents = []
    for number in range(60):
        given: dict[str, Any] = {"quality": int(rng.integers(20, 101)), "progressive": number % 2 == 0}
        given |= {"keep_rgb": True} if number % 7 == 0 else {"subsampling": number % 3}
        given |= {"restart_marker_blocks": 2} if number % 5 == 0 else {}
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(0, 10)) if number % 4 == 0 else 1
        contents.append(damaged(jpeg(rng, exif=exif, **given), rng, how))
    found = [outcome(content, channels) for content in contents for channels in (1, 3)]
    assert images._decoders_agree()
    monkeypatch.setattr(images, "_decode_jpeg", lambda *args: None)
    assert found == [outcome(content, channels) for content in contents for channels in (1, 3)]
    assert any(len(result) == 3 for result in found) or how == "short"


def test_pillow_decodes_if_torchvision_has_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision 0.29 announces the removal of its decoders."""
    content = jpeg(np.random.default_rng(0))
    spec = importlib.util.spec_from_file_location("images_of_pillow", images.__file__)
    assert spec is not None
    assert spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    monkeypatch.delattr(torchvision.io, "decode_image")
    spec.loader.exec_module(without)
    assert not without._decoders_agree()
    pixels, expected = (module.open_image(io.BytesIO(content), 3, "x") for module in (without, images))
    assert torch.equal(pixels, expected)
    assert pixels.stride() == expected.stride()


def test_pillow_decodes_if_the_decoders_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg(np.random.default_rng(0))
    expected = outcome(content)
    images._decoders_agree.cache_clear()
    with monkeypatch.context() as patch:
        decode = images.decode_image
        patch.setattr(images, "decode_image", lambda *args: decode(*args) ^ 1)
        assert not images._decoders_agree()
        assert outcome(content) == expected
    images._decoders_agree.cache_clear()
    assert images._decoders_agree()
