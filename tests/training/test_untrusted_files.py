"""Test untrusted files: weights, checkpoints, archives, datasets and images that try to run code, write elsewhere, or
exhaust memory. Each is rejected without running or writing anything.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.runs import code, tiny
from torchvision import datasets

from cnnspec import CnnspecError, loads
from cnnspec.backends.torch.matching import load_weights
from cnnspec.backends.torch.module import to_module
from cnnspec.backends.torch.weights import read_weights
from cnnspec.ir import Graph
from cnnspec.recipe import Cifar10, Cifar100, Folder, Mnist, Setting
from cnnspec.training.data import download
from cnnspec.training.data.datasets import load_data
from cnnspec.training.data.identity import differences
from cnnspec.training.loop.checkpoints import DamagedCheckpoint, seal, unseal


def tiny_graph(shape: str = "1x28x28") -> Graph:
    return loads(tiny(shape=shape), name="tiny.cnn")


# --- weights and checkpoints ----------------------------------------------------------------------


class Evil:
    """An object that touches a file when unpickled."""

    target = ""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        calls: dict[str, Any] = {
            "system": (os.system, (f"touch {self.target}",)),
            "exec": (exec, (f"open({self.target!r}, 'w')",)),
            "eval": (eval, (f"open({self.target!r}, 'w')",)),
            "open": (open, (self.target, "w")),
            "shutil": (shutil.copy, (__file__, self.target)),
            "import": (__import__, ("antigravity",)),
            "mkdir": (os.mkdir, (self.target,)),
            "path": (Path, (self.target,)),
            "partial": (__import__("functools").partial, (os.system, f"touch {self.target}")),
            "loader": (torch.hub.load_state_dict_from_url, ("http://127.0.0.1:9/evil.pth",)),
            "module": (torch.nn.Linear, (2, 2)),
        }
        return calls[self.kind]


def with_zip(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)


def safetensors(header: Any, body: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def evil_files(folder: Path) -> dict[str, Path]:
    """Write files that are invalid as weights in different ways."""
    made: dict[str, Path] = {}

    def put(name: str, content: bytes | Callable[[Path], None]) -> None:
        made[name] = path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)

    kinds = ("system", "exec", "eval", "open", "shutil", "import", "mkdir", "path", "partial", "loader", "module")
    for kind in kinds:
        put(f"{kind}.pt", lambda path, kind=kind: torch.save({"a": Evil(kind)}, path))
    put("legacy.pth", lambda path: torch.save({"a": Evil("system")}, path, _use_new_zipfile_serialization=False))
    put("plain_pickle.pt", pickle.dumps(Evil("system")))
    put("plain_pickle.ckpt", pickle.dumps({"state_dict": Evil("system")}))
    put(
        "in_checkpoint.ckpt", lambda path: torch.save({"state_dict": {"a": torch.ones(1)}, "hyper": Evil("exec")}, path)
    )
    put("as_key.pt", lambda path: torch.save({Evil("open"): torch.ones(1)}, path))
    put("hand_made.pt", b"cos\nsystem\n(S'touch " + Evil.target.encode() + b"'\ntR.")
    put(
        "zip_pickle.pt",
        lambda path: with_zip(path, archive__data_pkl=pickle.dumps(Evil("system")), archive__version=b"3"),
    )
    put("zip_escape.pt", lambda path: with_zip(path, **{"..__..__escaped": b"x", "archive__version": b"3"}))
    put("script.pt", lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(str(path)))
    put("not_tensors.pt", lambda path: torch.save({"a": [1, 2], "b": "c"}, path))
    put("a_list.pt", lambda path: torch.save([torch.ones(1)], path))
    put("numbers_as_keys.pt", lambda path: torch.save({1: torch.ones(1)}, path))
    put("half.pt", lambda path: (torch.save({"a": torch.ones(9999)}, path), path.write_bytes(path.read_bytes()[:9000])))
    put("empty.pt", b"")
    put("empty.safetensors", b"")
    put("header_of_an_exabyte.safetensors", safetensors({}, size=1 << 60))
    put("header_too_long.safetensors", safetensors({}, b"x" * 50, size=40))
    put("no_json.safetensors", safetensors(b"{'a': eval}"))
    put(
        "offsets_outside.safetensors",
        safetensors({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, b"x" * 8),
    )
    put(
        "offsets_backwards.safetensors",
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"x" * 8),
    )
    put("negative.safetensors", safetensors({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"x" * 8))
    put("huge_shape.safetensors", safetensors({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}))
    put("strange_type.safetensors", safetensors({"a": {"dtype": "PY", "shape": [2], "data_offsets": [0, 8]}}, b"x" * 8))
    overlap = {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}
    put("overlapping.safetensors", safetensors(overlap, b"x" * 8))
    put("pickle.safetensors", pickle.dumps(Evil("system")))
    return made


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # its files exist
def test_no_weights_file_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "was_run"
    monkeypatch.setattr(Evil, "target", str(target))
    (tmp_path / "files").mkdir()
    network = to_module(tiny_graph())
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    files = evil_files(tmp_path / "files")
    assert len(files) >= 35
    for name, path in files.items():
        with pytest.raises(CnnspecError) as error:
            load_weights(network, read_weights(path))
        assert code(error) in ("E0504", "E0505"), name
        assert not target.exists(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files"]
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    # The files are effective if unpickled.
    with open(files["system.pt"], "rb") as file:
        torch.load(file, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("kind", ["system", "exec", "eval", "open", "mkdir", "partial", "module"])
def test_no_checkpoint_of_a_run_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    target = tmp_path / "was_run"
    monkeypatch.setattr(Evil, "target", str(target))
    content = seal({"state_dict": {}, "progress": Evil(kind)})
    with pytest.raises(DamagedCheckpoint):
        unseal(content)
    assert not target.exists()


def test_weights_of_another_shape_are_rejected(tmp_path: Path):
    network = to_module(tiny_graph())
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    wrong = [
        {**state, "stem.0.weight": torch.ones(4, 1, 7, 8)},
        {**state, "more": torch.ones(1)},
        {key: tensor for key, tensor in state.items() if key != "stem.0.weight"},
        {**state, "stem.0.weight": torch.ones(0)},
    ]
    for number, weights in enumerate(wrong):
        path = tmp_path / f"{number}.pt"
        torch.save(weights, path)
        with pytest.raises(CnnspecError) as error:
            load_weights(network, read_weights(path))
        assert code(error) == "E0504"


# --- archives of datasets ------------------------------------------------------------------------


def member(
    name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "", size: int | None = None
) -> Any:
    """Return a member of an archive, possibly with a false size."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(content) if size is None else size, 0o755
    return info, content


def archive(*members: Any) -> bytes:
    """Write a compressed archive by hand, without validation."""
    made = io.BytesIO()
    for info, content in members:
        made.write(info.tobuf(tarfile.GNU_FORMAT))
        made.write(content + b"\0" * (-len(content) % 512))
    return gzip.compress(made.getvalue() + b"\0" * 1024, 1)


def evil_archives(outside: Path) -> dict[str, bytes]:
    link, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    (outside / "secret").write_text("secret")
    return {
        "parent": archive(member("../was_run")),
        "parents": archive(member("cifar-10-batches-py/../../../../was_run")),
        "absolute": archive(member(str(outside / "was_run"))),
        "backslashes": archive(member("..\\..\\was_run")),
        "a drive": archive(member("C:/was_run")),
        "a link out": archive(member("out", b"", link, str(outside))),
        "through a link": archive(member("out", b"", link, str(outside)), member("out/was_run")),
        "a link upwards": archive(member("out", b"", link, "../.."), member("out/was_run")),
        "the folder as a link": archive(member("cifar-10-batches-py", b"", link, str(outside))),
        "a link to a secret": archive(member("data_batch_1", b"", link, str(outside / "secret"))),
        "a hard link": archive(member("data_batch_1", b"", hard, str(outside / "secret"))),
        "a hard link upwards": archive(member("data_batch_1", b"", hard, "../../outside/secret")),
        "a device": archive(member("zero", b"", tarfile.CHRTYPE)),
        "a block device": archive(member("disk", b"", tarfile.BLKTYPE)),
        "a pipe": archive(member("pipe", b"", tarfile.FIFOTYPE)),
        "a bomb": archive(member("zeros", bytes(3 << 20))),
        "a terabyte": archive(member("zeros", b"", size=1 << 40)),
        "many": archive(*(member(f"{i}", bytes(300_000)) for i in range(8))),
        "half": archive(member("data_batch_1", os.urandom(90_000)))[:5000],
        "no archive": b"this is no archive",
        "empty": b"",
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """A local server with one file."""
    served = tmp_path / "served"
    served.mkdir()

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Silent, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()

        def serve(content: bytes) -> str:
            (served / "archive.tar.gz").write_bytes(content)
            return f"http://127.0.0.1:{running.server_address[1]}/archive.tar.gz"

        yield serve
        running.shutdown()


@pytest.mark.parametrize("signed", [False, True], ids=["with another checksum", "with the right checksum"])
def test_no_archive_writes_outside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Callable[[bytes], str], signed: bool
):
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setattr(download, "MAX_UNPACKED_BYTES", 2 << 20)
    found = evil_archives(outside)
    assert len(found) >= 20
    for name, content in found.items():
        changes = {"url": server(content)}
        if signed:
            changes["tgz_md5"] = hashlib.md5(content).hexdigest()
        monkeypatch.setitem(download._CLASSES, "cifar10", type("Evil", (datasets.CIFAR10,), changes))
        with pytest.raises(CnnspecError) as error:
            load_data(tiny_graph("3x32x32"), Setting.of(Cifar10()), tmp_path / "data")
        assert code(error) == "E0502", name
        assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "served"], name
        assert [path.name for path in outside.iterdir()] == ["secret"], name
        assert (outside / "secret").stat().st_nlink == 1, name
        if signed and name == "through a link":
            assert "neither a file nor a folder" in str(error.value)


def test_a_valid_archive_is_accepted(tmp_path: Path):
    (tmp_path / "good.tar.gz").write_bytes(
        archive(member("cifar/", b"", tarfile.DIRTYPE), member("cifar/data_batch_1"), member("./cifar/b..c"))
    )
    download.check_archive(tmp_path / "good.tar.gz")


# --- existing datasets ---------------------------------------------------------------------------


def idx(*sizes: int, magic: int | None = None, content: bytes | None = None) -> bytes:
    """Return a file in the format of MNIST."""
    body = bytes(int(np.prod(sizes))) if content is None else content
    return struct.pack(f">{len(sizes) + 1}I", 0x800 + len(sizes) if magic is None else magic, *sizes) + body


IMAGES, LABELS = idx(20, 28, 28), idx(20)
EVIL_MNIST = {
    "no numbers": (b"hello", LABELS),
    "empty": (b"", LABELS),
    "another magic": (idx(20, 28, 28, magic=0x12345678), LABELS),
    "no type": (idx(20, 28, 28, magic=0x703), LABELS),
    "floats": (idx(20, 28, 28, magic=0xD03, content=bytes(20 * 28 * 28 * 4)), LABELS),
    "half": (IMAGES[:900], LABELS),
    "more than there is": (idx(1 << 31, 1 << 31, 1 << 31, content=b"x"), LABELS),
    "one axis": (idx(20), LABELS),
    "labels of others": (IMAGES, idx(19)),
    "a label too high": (IMAGES, idx(20, content=b"\xff" * 20)),
    "labels with axes": (IMAGES, idx(20, 28, 28)),
    "none": (idx(0, 28, 28), idx(0)),
    "a pickle": (pickle.dumps(print), LABELS),
}


@pytest.mark.parametrize("name", EVIL_MNIST)
def test_mnist_files_are_validated(tmp_path: Path, name: str):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind, content in zip(("images-idx3", "labels-idx1"), EVIL_MNIST[name], strict=True):
            (folder / f"{part}-{kind}-ubyte").write_bytes(content)
    with pytest.raises(CnnspecError) as error:
        load_data(tiny_graph(), Setting.of(Mnist(val=4)), tmp_path, offline=True)
    assert code(error) == "E0502"


def test_existing_pickles_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "was_run"
    monkeypatch.setattr(Evil, "target", str(target))
    data = tmp_path / "data"
    (data / "cifar-10-batches-py").mkdir(parents=True)
    for name, _ in (*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list, ("batches.meta", "")):
        (data / "cifar-10-batches-py" / name).write_bytes(pickle.dumps({"data": Evil("system"), "labels": []}))
    (data / "MNIST" / "processed").mkdir(parents=True)
    for name in ("training.pt", "test.pt"):  # an old format that torchvision prefers
        torch.save((Evil("system"), Evil("exec")), data / "MNIST" / "processed" / name)
    for setting, shape in ((Setting.of(Cifar10()), "3x32x32"), (Setting.of(Mnist()), "1x28x28")):
        with pytest.raises(CnnspecError) as error:
            load_data(tiny_graph(shape), setting, data, offline=True)
        assert code(error) == "E0502"
        assert not target.exists()


# --- images ---------------------------------------------------------------------------------------


def png(width: int, height: int, rows: bytes) -> bytes:
    """Return a grayscale image with an arbitrary size in its header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


EVIL_IMAGES = {
    "bomb.png": png(50_000, 50_000, bytes(1 << 20)),
    "no_rows.png": png(8, 8, b""),
    "no_size.png": png(0, 8, b"x"),
    "half.png": png(40, 40, random.Random(0).randbytes(1640))[:900],
    "empty.png": b"",
    "pickle.png": pickle.dumps(print),
    "script.gif": b"#!/bin/sh\ntouch was_run\n",
    "archive.jpg": archive(member("../was_run")),
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(was_run) (w) file\n",
}


@pytest.mark.parametrize("name", EVIL_IMAGES)
def test_images_are_validated(tmp_path: Path, name: str):
    for kind in "ab":
        (tmp_path / "train" / kind).mkdir(parents=True)
        (tmp_path / "train" / kind / name).write_bytes(EVIL_IMAGES[name])
    graph = loads(tiny(classes=2), name="tiny.cnn")
    with pytest.raises(CnnspecError) as error:
        list(load_data(graph, Setting.of(Folder(path=str(tmp_path))), Path()).train.read(torch.arange(1)))
    assert code(error) == "E0503"
    assert f"`{name}`" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


META = {
    "the names": ([f"class {number}" for number in range(100)], None),
    "other names than published": ([f"class {number}" for number in range(100)], "0" * 32),
    "too few": (["a"], None),
    "numbers": (list(range(100)), None),
    "code": (Evil("system"), "0" * 32),
}


@pytest.mark.parametrize("kind", META)
def test_the_class_names_of_cifar100_are_read_from_its_files(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names, checksum = META[kind]
    monkeypatch.setattr(Evil, "target", str(tmp_path / "was_run"))
    folder = tmp_path / datasets.CIFAR100.base_folder
    folder.mkdir()
    sums: dict[str, str] = {}
    for name, count in (("train", 200), ("test", 100)):
        batch = {"data": np.zeros((count, 3072), np.uint8), "fine_labels": [n % 100 for n in range(count)]}
        (folder / name).write_bytes(pickle.dumps(batch))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    content = pickle.dumps({"fine_label_names": names, "coarse_label_names": ["x"]})
    (folder / "meta").write_bytes(content)
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    meta = {**datasets.CIFAR100.meta, "md5": checksum or hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR100, "meta", meta)
    graph = loads("input 3x32x32\nclasses 100\nhead global_avgpool | flatten | linear classes")
    if kind == "the names":
        data = load_data(graph, Setting.of(Cifar100(val=10)), tmp_path, offline=True)
        assert data.names == data.class_names == tuple(names)
        assert data.inventory is not None
        assert data.inventory.identity.classes == tuple(names)
        old = replace(
            data.inventory, identity=data.inventory.identity.model_copy(update={"classes": (), "digest": "0"})
        )
        assert differences(old, data.inventory) == []
    else:
        with pytest.raises(CnnspecError) as error:
            load_data(graph, Setting.of(Cifar100(val=10)), tmp_path, offline=True)
        assert code(error) == "E0502"
    assert not (tmp_path / "was_run").exists()
