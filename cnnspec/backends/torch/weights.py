"""Read weights from files and from torchvision.

Checkpoints are read with `weights_only=True`, so a file cannot run code.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cnnspec.backends.torch.matching import FLOATS, INTEGERS, Weights
from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.files import check_nesting, check_pickled_tensors, open_regular, weights_file
from cnnspec.ir import Graph

PUBLISHED = "torchvision:"
"""The prefix of weights that torchvision publishes."""
TABLES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "state_dict_ema", "model_ema", "ema")
"""The names under which training scripts save a `state_dict`, in the order in which they are looked for."""


def load_pickled(file: IO[bytes], size: int) -> Any:
    """Read a file of `torch.save`. Only tensors and plain values are unpickled.

    Args:
        file: The file, at its start.
        size: Its size in bytes.

    Raises:
        Exception: The file is damaged or hostile, in one of many ways.
    """
    check_pickled_tensors(file, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file's pickle protocol
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    check_nesting(loaded)
    return loaded


def _load_state_dict(path: Path) -> Any:
    with open_regular(path, sys.maxsize, "E0505") as file:
        assert file is not None
        loaded = load_pickled(file, os.fstat(file.fileno()).st_size)
    return _enter_table(loaded, path)


def _enter_table(loaded: Any, path: Path) -> Any:
    """Return the table of tensors in a checkpoint, at any depth of the names in `TABLES`.

    Raises:
        CnnspecError: E0505 if there are several.
    """
    while isinstance(loaded, Mapping) and not all(isinstance(value, Tensor) for value in loaded.values()):
        tables = [name for name in TABLES if isinstance(loaded.get(name), Mapping) and loaded[name]]
        if "state_dict" in tables:
            tables = ["state_dict"]
        if not tables:
            break
        if len(tables) > 1:
            named = ", ".join(f"`{name}`" for name in tables)
            help = "save one of them on its own: `torch.save(torch.load(FILE)[NAME], NEW)`"
            raise failure("E0505", f"the file contains several networks: {named}", file=str(path), help=help)
        loaded = loaded[tables[0]]
    return loaded


def _load_any(path: Path) -> Any:
    """Read a file whose extension does not say what it is."""
    with path.open("rb") as file:
        start = file.read(9)
    return load_file(path) if start[8:9] == b"{" and start[:2] != b"PK" else _load_state_dict(path)


_READERS: dict[str, Callable[[Path], Any]] = {".ckpt": _load_state_dict, ".safetensors": lambda path: load_file(path)}


def read_weights(
    source: str | os.PathLike[str], match: str = "name", graph: Graph | None = None, *, offline: bool = False
) -> Weights:
    """Read the tensors of a file by their keys, in the order of the file.

    Args:
        source: A Lightning checkpoint (`.ckpt`), a saved `state_dict` (`.pt`, `.pth`), or `.safetensors`; or
            `torchvision:DEFAULT` or `torchvision:IMAGENET1K_V2`, the published weights of `graph`.
        match: How `load_weights` will match them.
        graph: The network that will load them.
        offline: Never download.

    Raises:
        CnnspecError: E0505 if the file is missing or broken or contains anything but tensors, or if torchvision cannot
            provide the weights. E0504 if they are to be matched by order and the file does not keep it.
    """
    if graph is not None and str(source).startswith(PUBLISHED):
        return _read_published(graph, str(source).removeprefix(PUBLISHED), offline)
    path = weights_file(source)
    ending = path.suffix.lower()

    def refusal(message: str, help: str, *, code: str = "E0505", notes: Sequence[str] = ()) -> CnnspecError:
        return failure(code, message, notes=notes, file=str(path), help=help)

    if match == "order" and ending == ".safetensors":
        help = "use `--match name`, or a `.ckpt` or `.pt` file"
        raise refusal("safetensors files do not keep the order of tensors", help, code="E0504")
    try:
        loaded = _READERS.get(ending, _load_any)(path)
    except CnnspecError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken or hostile file fails in many ways
        reason = f"{type(error).__name__}: {one_line(error)}"
        help = "use a file that contains a `state_dict` of tensors and nothing else"
        notes = [reason, "no code in the file was executed"]
        raise refusal("cannot read weights from the file", help, notes=notes) from None
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        help = "save the weights with `torch.save(module.state_dict(), PATH)`"
        raise refusal("the file does not contain a `state_dict` of tensors", help)
    for key, tensor in loaded.items():
        if (what := unusual(tensor)) is not None:
            help = "save the weights of an ordinary network with `torch.save(module.state_dict(), PATH)`"
            raise refusal("the file contains a tensor that is not a weight", help, notes=[f"`{key}` is {what}"])
    return dict(loaded)


def unusual(tensor: Tensor) -> str | None:
    """Return what distinguishes a value from a dense tensor in memory, or None."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_nested:
        return "nested" if tensor.is_nested else f"a `{type(tensor).__name__}`"
    if tensor.device.type != "cpu":
        return f"on the device `{tensor.device}`, without values"
    if tensor.layout != torch.strided:
        return f"sparse (`{tensor.layout}`)"
    if tensor.is_quantized or tensor.dtype not in (*FLOATS, *INTEGERS, torch.bool):
        return f"of the type `{tensor.dtype}`"
    return None


@dataclass(frozen=True)
class Published:
    """Weights that torchvision publishes.

    Attributes:
        url: Their address.
        file: The file in torch's cache that they are downloaded to.
        megabytes: The size of the file in MB.
        member: The member of torchvision's enumeration.
    """

    url: str
    file: Path
    megabytes: float
    member: Any


def find_published(graph: Graph, tag: str) -> Published:
    """Return the weights that torchvision publishes for the network of this name.

    Raises:
        CnnspecError: E0505 if there are none.
    """
    from torchvision import models

    try:
        known = models.get_model_weights(graph.name)
    except ValueError:
        raise failure(
            "E0505",
            f"torchvision has no pretrained weights for `{graph.name}`",
            help="name the network as torchvision does, such as `resnet50`",
        ) from None
    if tag not in known.__members__:
        help = f"use one of {', '.join(f'`{PUBLISHED}{name}`' for name in known.__members__)}"
        raise failure("E0505", f"torchvision has no pretrained weights `{tag}` for `{graph.name}`", help=help)
    member: Any = known[tag]
    file = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlparse(member.url).path).name)
    return Published(member.url, file, float(member.meta["_file_size"]), member)


def _read_published(graph: Graph, tag: str, offline: bool) -> Weights:
    """Return the weights that torchvision publishes, verified by their hash when they are downloaded."""
    from torchvision import models

    found = find_published(graph, tag)
    if offline and not found.file.is_file():
        raise failure(
            "E0505",
            f"the pretrained weights `{tag}` of `{graph.name}` are not in `{found.file.parent}`,"
            " and `--offline` prevents the download",
            notes=[f"{found.url}, {found.megabytes:,.1f} MB"],
            help="remove `--offline`, or pass a file with `--weights FILE`",
        )
    heads = {"aux_logits": True} if graph.aux else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the initialization of the other weights
            reference = models.get_model(graph.name, weights=found.member, progress=sys.stderr.isatty(), **heads)
    except Exception as error:  # noqa: BLE001 - the network and a damaged file fail in many ways
        raise failure(
            "E0505",
            f"cannot load the pretrained weights `{tag}` of `{graph.name}` from torchvision",
            notes=[f"{type(error).__name__}: {one_line(error)}"],
            file=str(found.file) if found.file.exists() else None,
            help="check the internet connection (they are downloaded once), or pass a file with `--weights FILE`",
        ) from None
    return dict(reference.state_dict())
