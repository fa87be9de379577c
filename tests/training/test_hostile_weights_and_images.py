"""Test weights and images of unknown origin that exhaust memory or time, or are something else than they look like."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.effort import bounded
from harness.runs import TINY, code
from PIL import Image
from safetensors.torch import save_file

from cnnspec import CnnspecError, Graph, build, load, loads
from cnnspec.backends.torch.matching import load_weights
from cnnspec.backends.torch.module import to_module
from cnnspec.backends.torch.weights import read_weights
from cnnspec.diagnostics import Diagnostic
from cnnspec.files import check_pickled_tensors
from cnnspec.recipe import FashionMini, Folder, Setting
from cnnspec.training.data import images
from cnnspec.training.data.datasets import load_data
from cnnspec.training.data.images import read_image
from cnnspec.training.loop.checkpoints import METADATA
from cnnspec.training.loop.evaluate import evaluate

LIMITS = 2.0, 300
"""Seconds, and mebibytes."""


def tiny() -> Graph:
    return loads(TINY, name="tiny.cnn")


def archive(pickle: bytes, *entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive as `torch.save` writes it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in (("data.pkl", pickle), ("version", b"3\n"), ("byteorder", b"little"), *entries):
            file.writestr(f"archive/{name}", content)
    return data.getvalue()


def saved(value: Any, **options: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data, **options)
    return data.getvalue()


def call(name: str, argument: bytes = b"\x8a\x05\x00\x00\x00\x00\x02") -> bytes:
    """Return a pickle that calls a constructor with 8,589,934,592."""
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + argument + b"\x85R."


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


PICKLES = {
    "bytearray": call("builtins bytearray"),
    "tensor": call("torch FloatTensor"),
    "base tensor": call("torch Tensor"),
    "storage": call("torch UntypedStorage"),
    "a storage class": call("torch.storage UntypedStorage"),
    "shared tuples": b"\x80\x02}K\x01" + b"2\x86" * 60 + b"K\x01s.",
    "shared wide tuples": b"\x80\x02}(K\x01tq\x00(" + b"h\x00" * 200 + b"tq\x00(" * 1 + b"h\x00" * 200 + b"tK\x01s.",
    "nested tuples": b"\x80\x02}K\x01" + b"\x85" * 200_000 + b"K\x01s.",
    "nested lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "many objects": b"\x80\x02(" + b"]" * 8_000_000 + b"l.",
    "no end": b"\x80\x02}",
    "stack underflow": b"\x80\x02ssss.",
    "unknown opcode": b"\x80\x02\xff.",
    "a long text": b"\x80\x02X\xff\xff\xff\x7fabc.",
}
WEIGHTS: dict[str, Callable[[], bytes]] = {
    **{f"{name}.pt": lambda data=data: archive(data) for name, data in PICKLES.items()},
    **{f"{name} alone.pth": lambda data=data: data for name, data in PICKLES.items()},
    "an inflated entry.pt": lambda: archive(
        b"\x80\x02}.", ("data/0", bytes(200_000_000)), compression=zipfile.ZIP_DEFLATED
    ),
    "an inflated pickle.pt": lambda: archive(b"\x80\x02}" + b"0" * 100_000_000, compression=zipfile.ZIP_DEFLATED),
    "many entries.pt": lambda: archive(b"\x80\x02}.", *((f"data/{number}", b"") for number in range(60_000))),
    "half.pt": lambda: saved(tiny_weights())[:-500],
    "empty.pt": lambda: b"",
    "meta.pt": lambda: saved({"a": torch.ones(2, device="meta")}),
    "sparse.pt": lambda: saved({"a": torch.eye(2).to_sparse()}),
    "sparse rows.pt": lambda: saved({"a": torch.eye(2).to_sparse_csr()}),
    "complex.pt": lambda: saved({"a": torch.ones(2, dtype=torch.complex64)}),
    "float8.pt": lambda: saved({"a": torch.ones(2).to(torch.float8_e4m3fn)}),
    "nested tensor.pt": lambda: saved({"a": torch.nested.nested_tensor([torch.ones(2)])}),
    "a declared terabyte.safetensors": lambda: header(
        a={"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}
    ),
    "nested.safetensors": lambda: struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a long header.safetensors": lambda: struct.pack("<Q", 1 << 60) + b"{}",
    "overlapping.safetensors": lambda: (
        header(
            a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            b={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        )
        + bytes(4)
    ),
    "garbage.safetensors": lambda: bytes(range(256)) * 10,
    "empty.safetensors": lambda: b"",
}


def containing_itself(*path: str | int) -> Any:
    """Return a dict that contains itself at a path of keys and indices."""
    outer: Any = {}
    place: Any = outer
    for key, following in zip(path, [*path[1:], None], strict=True):
        inner = outer if following is None else {} if isinstance(following, str) else []
        if isinstance(place, list):
            place.append(inner)
        else:
            place[key] = inner
        place = inner
    return outer


def late_chain(length: int) -> bytes:
    """Return the pickle of dicts in dicts, each filled after it was put into the one before."""

    def memo(code: bytes, number: int) -> bytes:
        return code + struct.pack("<I", number)

    links = (memo(b"j", i) + b"X\x05\x00\x00\x00model}" + memo(b"r", i + 1) + b"s0" for i in range(length))
    return b"\x80\x02}" + memo(b"r", 0) + b"0" + b"".join(links) + memo(b"j", 0) + b"."


CYCLES: list[tuple[str | int, ...]] = [
    ("model",), ("state_dict",), ("model", "net"), ("net", "ema", "model"), ("other",), ("model", "other"),
    ("x", 0), ("model", 0, 0, "y"),
]  # fmt: skip
WEIGHTS |= {f"contains itself at {path}.pt": lambda path=path: saved(containing_itself(*path)) for path in CYCLES}
WEIGHTS |= {f"a late chain of {n}.pt": lambda n=n: archive(late_chain(n)) for n in (70, 5000, 50_000)}


def tiny_weights() -> dict[str, torch.Tensor]:
    return dict(to_module(tiny()).state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights_are_an_error_in_bounded_time(name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(WEIGHTS[name]())
    with bounded(*LIMITS), pytest.raises(CnnspecError) as error:
        build(tiny(), weights=path)
    assert code(error) in ("E0504", "E0505")
    assert str(path) in str(error.value)


HOSTILE, HARMLESS = PICKLES["bytearray"], b"\x80\x02}."


def directory_and_end(data: bytes, shift: int = 0) -> tuple[bytes, bytes]:
    """Return the directory of an archive, whose entries are moved, and the 22 bytes at its end."""
    count, size, start = struct.unpack("<HLL", data[-12:-2])
    entries, position = bytearray(data[start : start + size]), 0
    for _ in range(count):
        lengths, (offset,) = (
            struct.unpack_from("<HHH", entries, position + 28),
            struct.unpack_from("<L", entries, position + 42),
        )
        struct.pack_into("<L", entries, position + 42, offset + shift)
        position += 46 + sum(lengths)
    return bytes(entries), data[-22:]


def with_two_directories(first: bytes, second: bytes, comment: bytes = b"") -> bytes:
    """Return an archive whose end states the offset of the first directory, with the second one before the end."""
    one, two = archive(first), archive(second)
    (directory, _), (other, _) = directory_and_end(one), directory_and_end(two, shift=len(one))
    assert len(directory) == len(other)
    end = struct.pack("<4s4HLLH", b"PK\x05\x06", 0, 0, 3, 3, len(other), len(one) - 22 - len(directory), len(comment))
    return one + two[: -22 - len(other)] + other + end + comment


def with_two_large_directories(first: bytes, second: bytes) -> bytes:
    """Return an archive with two directories for large archives; the locator states the offset of the first."""
    one, two = archive(first), archive(second)
    data = one[:-22]
    (directory, _), (other, _) = directory_and_end(one), directory_and_end(two, shift=len(data) + 56)

    def record(size: int, offset: int) -> bytes:
        return struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, size, offset)

    place = len(data)
    data += record(len(directory), len(data) - len(directory)) + two[:-22]
    data = data[: -len(other)] + other
    data += record(len(other), len(data) - len(other))
    return data + struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1) + struct.pack(
        "<4s4HLLH", b"PK\x05\x06", 0, 0, 3, 3, len(other), len(data) - 56 - len(other), 0
    )  # fmt: skip


def with_a_name(name: str, extra: bytes = b"") -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        entry = zipfile.ZipInfo(f"archive/{name}")
        entry.extra = extra
        file.writestr(entry, HOSTILE)
        file.writestr("archive/version", b"3\n")
    return data.getvalue()


def unicode_path(name: str) -> bytes:
    """Return the extra field that replaces a name in some programs."""
    return struct.pack("<HHBL", 0x7075, 5 + len(name), 1, zlib.crc32(b"archive/data.pkl")) + name.encode()


AMBIGUOUS: dict[str, Callable[[], bytes]] = {
    "two directories": lambda: with_two_directories(HOSTILE, HARMLESS),
    "two directories and a comment": lambda: with_two_directories(HOSTILE, HARMLESS, b"a comment"),
    "two large directories": lambda: with_two_large_directories(HOSTILE, HARMLESS),
    "a name in capitals": lambda: with_a_name("DATA.pKl"),
    "a name in an extra field": lambda: with_a_name("data.pkl", unicode_path("archive/notes.txt")),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_torch_reads_of_an_archive_is_checked(name: str):
    data = AMBIGUOUS[name]()
    assert torch._C.PyTorchFileReader(io.BytesIO(data)).get_record("data.pkl") == HOSTILE
    with pytest.raises(ValueError, match=r"its directory is not where|it calls `builtins\.bytearray`"):
        check_pickled_tensors(io.BytesIO(data), len(data))


@pytest.mark.parametrize("start", [b"", b"PK\x05\x06", b"PKx\n", b"PK\x01\x02"])
def test_bytes_before_an_archive_do_not_hide_a_pickle(start: bytes):
    data = archive(HARMLESS)
    directory, _ = directory_and_end(data)
    pickle = start + HOSTILE
    moved, _ = directory_and_end(data, shift=len(pickle))
    end = struct.pack("<4s4HLLH", b"PK\x05\x06", 0, 0, 3, 3, len(moved), len(pickle) + len(data) - 22 - len(moved), 0)
    hidden = pickle + data[: -22 - len(directory)] + moved + end
    with pytest.raises(ValueError):  # noqa: PT011 - torch reads it as a pickle, which fails in many ways
        check_pickled_tensors(io.BytesIO(hidden), len(hidden))


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_valid_archives_pass_the_check(compression: int, sealed: bool):
    seal = b"CNNSPEC1" + bytes(32) if sealed else b""
    for data in (saved(tiny_weights()), archive(HARMLESS, compression=compression)):
        check_pickled_tensors(io.BytesIO(data + seal), len(data + seal))


@pytest.mark.parametrize("ending", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a sparse file", "a link to itself", "a device"])
def test_what_is_no_file_of_weights_is_an_error(ending: str, kind: str, tmp_path: Path):
    path = tmp_path / f"weights{ending}"
    make: dict[str, Callable[[], Any]] = {
        "a pipe": lambda: os.mkfifo(path),
        "a folder": path.mkdir,
        "a sparse file": lambda: (path.touch(), os.truncate(path, 1 << 40)),
        "a link to itself": lambda: path.symlink_to(path.name),
        "a device": lambda: path.symlink_to("/dev/zero"),
    }
    make[kind]()
    with bounded(*LIMITS), pytest.raises(CnnspecError) as error:
        build(tiny(), weights=path)
    assert code(error) == "E0505"
    assert str(path) in str(error.value)


@pytest.mark.parametrize("match", ["name", "order"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_quantized_weights_do_not_load(dtype: torch.dtype, match: Any, tmp_path: Path):
    path = tmp_path / "weights.pt"
    weights = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tiny_weights().items()}
    torch.save(weights, path)
    with pytest.raises(CnnspecError) as error:
        load_weights(to_module(tiny()), read_weights(path, match), match, str(path))
    assert code(error) == "E0504"
    assert str(dtype).removeprefix("torch.") in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_load(dtype: torch.dtype, tmp_path: Path):
    path = tmp_path / "weights.pt"
    torch.save(
        {key: value.to(dtype) if value.is_floating_point() else value for key, value in tiny_weights().items()}, path
    )
    assert load_weights(to_module(tiny()), read_weights(path)).count == len(tiny_weights())


def test_checkpoints_of_large_networks_load(tmp_path: Path):
    weights = {f"layer{number}.weight": torch.ones(1) for number in range(5000)}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        path = tmp_path / "weights.pt"
        path.write_bytes(saved({"state_dict": weights, "optimizer_states": [{"state": weights}]}, **options))
        assert len(read_weights(path)) == 5000


def test_published_weights_are_not_downloaded_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    graph = load("resnet18")
    with pytest.raises(CnnspecError, match="`--offline` prevents the download") as error:
        build(graph, weights="torchvision:DEFAULT", offline=True)
    assert code(error) == "E0505"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(b"garbage")
    with pytest.raises(CnnspecError) as error:
        build(graph, weights="torchvision:DEFAULT", offline=True)
    assert code(error) == "E0505"


SAID: dict[str, Any] = {
    "a list": [], "a number": 5, "nested": "[" * 100_000, "broken": "{", "data a number": {"data": 5},
    "about a list": {"about": [1]}, "another version": {"about": {"format_version": 2}},
    "no preprocessing": {"about": {"format_version": 1}},
    **{
        f"{name} {value}": {"about": {"format_version": 1, "preprocessing": {
            "size": [28, 28], "mean": [0.5], "std": [0.5], name: value,
        }}}
        for name, value in (
            ("size", [0, 0]), ("size", [-1, 5]), ("size", [10**12, 1]), ("size", "x"), ("mean", []), ("mean", [1e300]),
            ("std", [0]), ("std", [-1]), ("resize", 0), ("resize", 10**12), ("mode", "x"), ("fit", 5), ("extra", 1),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SAID)
def test_what_weights_say_is_read_through_a_schema(kind: str, tmp_path: Path):
    value = SAID[kind]
    weights = {key: tensor.contiguous() for key, tensor in tiny_weights().items()}
    files = [tmp_path / "weights.safetensors", tmp_path / "weights.ckpt"]
    save_file(weights, files[0], {METADATA: value if isinstance(value, str) else json.dumps(value)})
    torch.save({"state_dict": weights, "run": value}, files[1])
    for file in files:
        diagnostics: tuple[Diagnostic, ...] = ()
        try:
            evaluate(tiny(), file, data=Setting.of(FashionMini()), offline=True)
        except CnnspecError as error:
            diagnostics = error.diagnostics
        assert all((found.code, found.file) == ("E0505", str(file)) for found in diagnostics)
        assert diagnostics or not isinstance(value, dict)


# --- images ---------------------------------------------------------------------------------------


def png(width: int, height: int, rows: int = 0) -> bytes:
    """Return a PNG that declares a size, with some rows of zeros."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = zlib.compress((b"\0" + bytes(width)) * rows)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def encoded(form: str, size: tuple[int, int] = (9, 9)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(data, form)
    return data.getvalue()


IMAGES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "garbage": lambda: bytes(range(256)) * 40,
    "many pixels": lambda: png(20_000, 9_000, 100),
    "more pixels than the limit": lambda: png(8_000, 6_000, 100),
    "declared pixels": lambda: png(60_000, 60_000),
    "no pixels": lambda: png(0, 0),
    "half a PNG": lambda: encoded("PNG")[:40],
    "half a JPEG": lambda: encoded("JPEG")[:300],
    "half a GIF": lambda: encoded("GIF")[:20],
    "half a TIFF": lambda: encoded("TIFF")[:60],
    "PostScript": lambda: encoded("EPS"),
    "an icon": lambda: encoded("ICO", (16, 16)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_hostile_images_are_an_error_that_names_them(kind: str, tmp_path: Path):
    path = tmp_path / "train" / "a" / "1.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(IMAGES[kind]())
    graph = loads("input 1x8x8\nhead global_avgpool | flatten | linear 1", name="one.cnn")
    with bounded(*LIMITS), pytest.raises(CnnspecError) as error:
        list(load_data(graph, Setting.of(Folder(path=str(tmp_path), val=0)), Path()).train.read(torch.tensor([0])))
    assert code(error) == "E0503"
    assert str(path) in str(error.value) or "contains no images" in str(error.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_converted_as_a_whole(mode: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = Image.effect_mandelbrot((37, 700), (-2, -2, 2, 2), 50)
    image = image.convert("RGB").quantize(16) if mode == "P" else image.convert(mode)
    path = tmp_path / "1.png"
    image.save(path, "TIFF" if mode == "CMYK" else "PNG")
    found = read_image(path, channels)
    monkeypatch.setattr(images, "_STRIP", 1_000_000)
    assert found.shape == (1, channels, 700, 37)
    assert torch.equal(found, read_image(path, channels))


# --- folders that a spec names --------------------------------------------------------------------

SPEC = """input 3x8x8
head global_avgpool | flatten | linear 1
train { data folder "PATH" val=0; epochs 1; batch 1 }
"""


def pictures(folder: Path) -> None:
    (folder / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "train" / "a" / "1.png")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Return the path of a spec next to images, with other images outside of its folder."""
    pictures(tmp_path / "private")
    pictures(tmp_path / "specs" / "images")
    return tmp_path / "specs" / "net.cnn"


@pytest.mark.parametrize(
    "path",
    ["../private", "PRIVATE", "~", "~/private", "~root", "images/../../private", "link", "link/train/..", "/", ".."],
)
def test_a_spec_cannot_name_a_folder_outside_of_its_own(path: str, spec: Path, tmp_path: Path):
    (spec.parent / "link").symlink_to(tmp_path / "private")
    spec.write_text(SPEC.replace("PATH", path.replace("PRIVATE", str(tmp_path / "private"))))
    with pytest.raises(CnnspecError) as error:
        load(spec)
    assert code(error) == "E0218"
    assert "--data folder:" in str(error.value)


@pytest.mark.parametrize("path", ["images", "./images", "deeper/../images", "link", "inner"])
def test_a_spec_names_a_folder_relative_to_its_own(path: str, spec: Path, monkeypatch: pytest.MonkeyPatch):
    (spec.parent / "deeper").mkdir()
    (spec.parent / "link").symlink_to("images")
    (spec.parent / "inner").symlink_to(spec.parent / "images")
    spec.write_text(SPEC.replace("PATH", path))
    monkeypatch.chdir(spec.parent.parent)
    for name in (spec, Path("specs/net.cnn")):
        graph = load(name)
        assert len(load_data(graph, graph.recipe.data, Path()).train) == 1


@pytest.mark.parametrize("link", ["train", "train/a", "train/a/1.png", "train/b", "train/a/2.png"])
def test_a_link_in_a_folder_of_a_spec_cannot_leave_it(link: str, spec: Path, tmp_path: Path):
    import shutil

    spec.write_text(SPEC.replace("PATH", "images").replace("linear 1", f"linear {1 + (link == 'train/b')}"))
    place, target = spec.parent / "images" / link, tmp_path / "private" / link
    if not target.exists():
        target = tmp_path / "private" / "train" / "a" / ("1.png" if "." in link else "")
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(target)
    graph = load(spec)
    with pytest.raises(CnnspecError) as error:
        load_data(graph, graph.recipe.data, Path())
    assert code(error) == "E0218"
    own = Setting.of(Folder(path=str(spec.parent / "images"), val=0))
    assert len(load_data(graph, own, Path()).train) >= 1


def test_a_user_can_name_any_folder(spec: Path, tmp_path: Path):
    spec.write_text(SPEC.replace("PATH", "images"))
    graph = load(spec, path=f'"{tmp_path / "private"}"')
    assert graph.recipe.data.base is None
    assert load_data(graph, graph.recipe.data, Path()).name == str(tmp_path / "private")
