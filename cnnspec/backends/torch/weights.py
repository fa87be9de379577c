"""Read weights from files and from torchvision, and load them by name or by order.

Checkpoints are read with `weights_only=True`, so a file cannot run code.
"""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cnnspec.diagnostics import CnnspecError, did_you_mean, failure, one_line
from cnnspec.files import check_pickled_tensors, open_regular
from cnnspec.ir import Graph

Match = Literal["name", "order"]
Weights = dict[str, Tensor]

PREFIXES = ("model.", "network.", "module.", "_orig_mod.")
"""Prefixes that wrappers add to every key: Lightning modules, DistributedDataParallel, torch.compile."""
PUBLISHED = "torchvision:"
"""The prefix of weights that torchvision publishes."""
_COUNTER = "num_batches_tracked"
_SHOWN = 5


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
        return torch.load(file, map_location="cpu", weights_only=True)


def _load_state_dict(path: Path) -> Any:
    with open_regular(path, sys.maxsize, "E0505") as file:
        assert file is not None
        loaded = load_pickled(file, os.fstat(file.fileno()).st_size)
    return loaded["state_dict"] if isinstance(loaded, Mapping) and "state_dict" in loaded else loaded


_READERS: dict[str, Callable[[Path], Any]] = {
    ".ckpt": _load_state_dict,
    ".pt": _load_state_dict,
    ".pth": _load_state_dict,
    ".safetensors": lambda path: load_file(path),
}
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The types of weights. Integers are quantized values, which have no meaning without their scale."""
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""The types of counters."""


def weights_file(source: str | os.PathLike[str]) -> Path:
    """Return the path of a weights file.

    Raises:
        CnnspecError: E0505 if it does not exist, or does not have the extension of one.
    """
    path = Path(source)
    if path.suffix.lower() not in _READERS:
        endings = ", ".join(f"`{known}`" for known in _READERS)
        message = f"`{path.name}` does not have the extension of a weights file"
        raise failure("E0505", message, file=str(path), help=f"use a file with {endings}")
    with open_regular(path, sys.maxsize, "E0505") as file:
        if file is None:
            help = "check the path; a run stores its weights in `checkpoints/best.safetensors`"
            raise failure("E0505", "weights file not found", file=str(path), help=help)
    return path


def read_weights(
    source: str | os.PathLike[str], match: Match = "name", graph: Graph | None = None, *, offline: bool = False
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
        loaded = _READERS[ending](path)
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


def load_weights(
    module: nn.Module,
    weights: Weights,
    match: Match = "name",
    file: str | None = None,
    reinit: Sequence[str] = (),
) -> int:
    """Load weights into a module.

    Args:
        module: The module. It stays unchanged if the weights do not match.
        weights: The tensors, as returned by `read_weights`.
        match: `name` requires the same keys, after removing any of `PREFIXES` that all keys share. `order` requires the
            same shapes in the same order, with any keys.
        file: The name of the weights in error messages.
        reinit: Paths of modules that keep their current weights. Only used when matching by name.

    Returns:
        The number of matched tensors.

    Raises:
        CnnspecError: E0504 if the weights do not match, or a path of `reinit` is not a module.
    """
    own: Weights = dict(module.state_dict())
    for path in reinit:
        if len(_without(own, [path])) == len(own):
            known = dict.fromkeys(key.split(".")[0] for key in own)
            help = did_you_mean(path, known) or f"use one of {', '.join(f'`{name}`' for name in known)}"
            raise failure("E0504", f"the network has no module `{path}` with weights", help=help)
    matched = (
        _by_name(_without(own, reinit), weights, file, reinit) if match == "name" else _by_order(own, weights, file)
    )
    module.load_state_dict({**own, **matched})
    return len(matched)


def _without(weights: Weights, paths: Sequence[str]) -> Weights:
    """Return the weights without those of the modules at these paths."""
    return {key: value for key, value in weights.items() if not any(key.startswith(f"{path}.") for path in paths)}


def _by_name(own: Weights, given: Weights, file: str | None, reinit: Sequence[str] = ()) -> Weights:
    stripped = given
    while _without(stripped, reinit).keys() != own.keys():
        prefix = next((p for p in PREFIXES if stripped and all(key.startswith(p) for key in stripped)), None)
        if prefix is None:
            break
        stripped = {key[len(prefix) :]: tensor for key, tensor in stripped.items()}
    stripped = _without(stripped, reinit)
    if stripped.keys() != own.keys():
        missing = [key for key in own if key not in stripped]
        unknown = [key for key in stripped if key not in own]
        raise _mismatch(
            f"{len(missing)} of {len(own)} tensors of the network are missing in the file, and {len(unknown)} tensors"
            " of the file are unexpected",
            own,
            stripped,
            [(a, b) for a, b in itertools.zip_longest(missing, unknown)],
            file,
            "if only the names differ, use `--match order`",
        )
    wrong = [(key, key) for key in own if not _fits(own[key], stripped[key])]
    if wrong and all(own[key].shape == stripped[key].shape for key, _ in wrong):
        message, help = f"{len(wrong)} tensors have the wrong type", "use weights that are not quantized"
        raise _mismatch(message, own, stripped, wrong, file, help)
    if wrong:
        module = wrong[0][0].rpartition(".")[0]
        help = f"use `--reinit {module}` to initialize this module at random" if len(wrong) < 3 else None
        raise _mismatch(f"size mismatch for {len(wrong)} tensors", own, stripped, wrong, file, help)
    return {key: stripped[key] for key in own}


def _by_order(own: Weights, given: Weights, file: str | None) -> Weights:
    ours, theirs = list(own), list(given)
    # Files written before torch 0.4.1 have no batch counters of batch normalization.
    if not any(key.endswith(_COUNTER) for key in theirs):
        ours = [key for key in ours if not key.endswith(_COUNTER)]
    wrong = [
        (a, b) for a, b in itertools.zip_longest(ours, theirs) if a is None or b is None or not _fits(own[a], given[b])
    ]
    if wrong:
        raise _mismatch(
            f"the network has {len(ours)} tensors, the file has {len(theirs)},"
            f" and {len(wrong)} positions differ in shape or type",
            own,
            given,
            wrong,
            file,
            "use `--match name`, or a file with the same shapes in the same order",
        )
    return {a: given[b] for a, b in zip(ours, theirs, strict=True)}


def _fits(own: Tensor, given: Tensor) -> bool:
    """Return whether a tensor of a file has the shape and a type of a tensor of the network."""
    return own.shape == given.shape and given.dtype in (FLOATS if own.is_floating_point() else INTEGERS)


def _mismatch(
    message: str,
    own: Weights,
    given: Weights,
    pairs: Sequence[tuple[str | None, str | None]],
    file: str | None,
    help: str | None,
) -> CnnspecError:
    def show(key: str | None, tensors: Weights) -> str:
        if key is None:
            return "none"
        kind = "" if tensors[key].dtype in FLOATS else f" {str(tensors[key].dtype).removeprefix('torch.')}"
        return f"`{key}` {list(tensors[key].shape)}{kind}"

    notes = [f"network: {show(a, own)}, file: {show(b, given)}" for a, b in pairs[:_SHOWN]]
    if len(pairs) > _SHOWN:
        notes.append(f"and {len(pairs) - _SHOWN} more")
    return failure("E0504", f"the weights do not match: {message}", notes=notes, help=help, file=file)
