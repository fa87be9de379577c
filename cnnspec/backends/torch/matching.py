"""Match the tensors of a weights file with those of a network: by name, by order, or by a map of module names."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter
from torch import Tensor, nn

from cnnspec.diagnostics import CnnspecError, did_you_mean, failure, named
from cnnspec.files import read_json

Weights = dict[str, Tensor]

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The types of weights. Integers are quantized values, which have no meaning without their scale."""
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""The types of counters."""
PREFIXES = ("model.", "network.", "module.", "_orig_mod.")
"""Prefixes that wrappers add to every key: Lightning modules, DistributedDataParallel, torch.compile."""
_COUNTER = "num_batches_tracked"
_WORDS = frozenset({"weight", "bias", "running_mean", "running_var", _COUNTER})
"""The names of tensors in the modules of torch."""
_SHOWN = 5
_MAX_MAP_BYTES = 1 << 24


@dataclass(frozen=True)
class Matched:
    """What `load_weights` did.

    Attributes:
        count: The number of tensors that were loaded.
        unused: The keys of the file that were not loaded.
        missing: The optional tensors of the network that the file does not have.
    """

    count: int
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Return lines for people about the tensors that were not matched."""
        lines: list[str] = []
        if self.unused:
            lines.append(f"unused tensors of the file: {named(self.unused)}")
        if self.missing:
            lines.append(f"not in the file and not needed for a test: {named(self.missing)}")
        return lines


def load_weights(
    module: nn.Module,
    weights: Weights,
    match: str = "name",
    file: str | None = None,
    reinit: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Matched:
    """Load weights into a module.

    Counters of batch norm (`num_batches_tracked`) that the file does not have start at 0.

    Args:
        module: The module. It stays unchanged if the weights do not match.
        weights: The tensors, as returned by `read_weights`.
        match: `name` requires the same keys, after removing a prefix under which all keys of the network are found.
            `order` requires the same shapes in the same order, with any keys. Anything else is the path of a map, a
            JSON file as written by `cnnspec match`.
        file: The name of the weights in error messages.
        reinit: Paths of modules that keep their current weights. Not used when matching by order.
        optional: Paths of modules that the file need not have, such as auxiliary heads in a test.

    Raises:
        CnnspecError: E0504 if the weights do not match, or a path of `reinit` is not a module.
    """
    own: Weights = dict(module.state_dict())
    for path in reinit:
        if len(_without(own, [path])) == len(own):
            known = dict.fromkeys(key.split(".")[0] for key in own)
            help = did_you_mean(path, known) or f"use one of {', '.join(f'`{name}`' for name in known)}"
            raise failure("E0504", f"the network has no module `{path}` with weights", help=help)
    wanted = own if match == "order" else _without(own, reinit)
    if match == "order":
        matched = _by_order(own, weights, file)
    else:
        given = weights if match == "name" else _renamed(weights, Path(match))
        matched = _by_name(wanted, given, file, reinit, _keys_of(wanted, optional))
    module.load_state_dict({**own, **matched})
    used = {id(tensor) for tensor in matched.values()}
    replaced = [f".{path}." for path in reinit]
    unused = [
        key
        for key, tensor in weights.items()
        if id(tensor) not in used and not any(path in f".{key}" for path in replaced)
    ]
    missing = [key for key in wanted if key not in matched and not _is_counter(key)]
    return Matched(len(matched), tuple(unused), tuple(missing))


def _without(weights: Weights, paths: Sequence[str]) -> Weights:
    """Return the weights without those of the modules at these paths."""
    return {key: value for key, value in weights.items() if not any(key.startswith(f"{path}.") for path in paths)}


def _keys_of(weights: Weights, paths: Sequence[str]) -> set[str]:
    return weights.keys() - _without(weights, paths).keys()


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] == _COUNTER


# --- by name -------------------------------------------------------------------------------------


def _by_name(own: Weights, given: Weights, file: str | None, reinit: Sequence[str], optional: set[str]) -> Weights:
    prefix = _prefix(own, given, reinit, optional)
    stripped = {key[len(prefix) :]: tensor for key, tensor in given.items() if key.startswith(prefix)}
    stripped = _without(stripped, reinit)
    needed = [key for key in own if key not in optional and not _is_counter(key)]
    missing = [key for key in needed if key not in stripped]
    unknown = [key for key in stripped if key not in own]
    if missing or unknown:
        raise _mismatch(
            f"{len(missing)} of {len(own)} tensors of the network are missing in the file, and {len(unknown)} tensors"
            " of the file are unexpected",
            own,
            stripped,
            [(a, b) for a, b in itertools.zip_longest(missing, unknown)],
            file,
            "if only the names differ, use `--match order`, or a map that `cnnspec match` writes",
        )
    wrong = [(key, key) for key in own if key in stripped and not _fits(own[key], stripped[key])]
    if wrong and all(own[key].shape == stripped[key].shape for key, _ in wrong):
        message, help = f"{len(wrong)} tensors have the wrong type", "use weights that are not quantized"
        raise _mismatch(message, own, stripped, wrong, file, help)
    if wrong:
        module = wrong[0][0].rpartition(".")[0]
        help = f"use `--reinit {module}` to initialize this module at random" if len(wrong) < 3 else None
        raise _mismatch(f"size mismatch for {len(wrong)} tensors", own, stripped, wrong, file, help)
    return {key: stripped[key] for key in own if key in stripped}


def _prefix(own: Weights, given: Weights, reinit: Sequence[str], optional: set[str]) -> str:
    """Return the prefix of the keys of the file under which the network is found, empty if there is none.

    Other keys of the file are left out if all keys under the prefix are those of the network.
    """
    needed = {key for key in own if key not in optional and not _is_counter(key)}
    longest = max(needed, key=len, default=None)  # the fewest keys of the file end in it
    if longest is None:
        return ""
    for key in given:
        prefix = key.removesuffix(longest)
        if not key.endswith(longest) or (prefix and not prefix.endswith(".")):
            continue
        inside = _without({k[len(prefix) :]: given[k] for k in given if k.startswith(prefix)}, reinit)
        if needed <= inside.keys() <= own.keys():
            return prefix
    return _known_prefix(given)


def _known_prefix(given: Weights) -> str:
    """Return the prefixes of wrappers that all keys share, for the error message of keys that do not match."""
    prefix = ""
    while found := next((p for p in PREFIXES if given and all(key.startswith(prefix + p) for key in given)), None):
        prefix += found
    return prefix


# --- by order ------------------------------------------------------------------------------------


def _by_order(own: Weights, given: Weights, file: str | None) -> Weights:
    ours, theirs = list(own), list(given)
    # Files written before torch 0.4.1 have no batch counters of batch normalization.
    if not any(_is_counter(key) for key in theirs):
        ours = [key for key in ours if not _is_counter(key)]
    pairs = list(itertools.zip_longest(ours, theirs))
    wrong = [(a, b) for a, b in pairs if a is None or b is None or not _fits(own[a], given[b])]
    if wrong:
        raise _mismatch(
            f"the network has {len(ours)} tensors, the file has {len(theirs)},"
            f" and {len(wrong)} positions differ in shape or type",
            own,
            given,
            wrong,
            file,
            "use `--match name`, a file with the same shapes in the same order, or a map that `cnnspec match` writes",
        )
    swapped = [(a, b) for a, b in pairs if a is not None and b is not None and _another_word(a, b)]
    if swapped:
        raise _mismatch(
            f"{len(swapped)} tensors in the same position have different names, so their order differs",
            own,
            given,
            swapped,
            file,
            "use `--match name`, or a map that `cnnspec match` writes",
        )
    return {a: given[b] for a, b in zip(ours, theirs, strict=True)}


def _another_word(own: str, given: str) -> bool:
    """Return True if two keys end in different names of tensors of torch, such as `weight` and `bias`."""
    a, b = own.rpartition(".")[2], given.rpartition(".")[2]
    return a != b and {a, b} <= _WORDS


def _fits(own: Tensor, given: Tensor) -> bool:
    """Return whether a tensor of a file has the shape and a type of a tensor of the network."""
    return own.shape == given.shape and given.dtype in (FLOATS if own.is_floating_point() else INTEGERS)


# --- by a map ------------------------------------------------------------------------------------


class WeightMap(BaseModel):
    """A map of module names, as `cnnspec match` writes it.

    Attributes:
        modules: The module of the file for each module of the network.
        uncertain: The modules of the network whose pairs should be checked.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = 1
    modules: dict[str, str]
    uncertain: list[str] = []


def _renamed(given: Weights, path: Path) -> Weights:
    """Return the tensors of a file under the names of the network."""
    help = "write it with `cnnspec match SPEC FILE --out map.json`"
    loaded = read_json(path, TypeAdapter(WeightMap), _MAX_MAP_BYTES, "E0504", help=help)
    if loaded is None:
        raise failure("E0504", f"the map `{path}` does not exist", help="use `name`, `order`, or the path of a map")
    by_module = _by_module(given)
    if unknown := [name for name in loaded.modules.values() if name not in by_module]:
        help = did_you_mean(unknown[0], by_module)
        raise failure("E0504", f"the weights have no module `{unknown[0]}`", file=str(path), help=help)
    if twice := [name for name, count in Counter(loaded.modules.values()).items() if count > 1]:
        raise failure("E0504", f"the map uses the module `{twice[0]}` twice", file=str(path))
    return {
        f"{own}.{word}" if own else word: tensor
        for own, theirs in loaded.modules.items()
        for word, tensor in by_module[theirs].items()
    }


def _by_module(weights: Weights) -> dict[str, Weights]:
    """Group tensors by the module that has them."""
    modules: dict[str, Weights] = {}
    for key, tensor in weights.items():
        path, _, word = key.rpartition(".")
        modules.setdefault(path, {})[word] = tensor
    return modules


def propose_map(module: nn.Module, weights: Weights, ordered: bool = True) -> WeightMap:
    """Propose a map from the modules of a network to those of a file, by shapes, names and order.

    Modules with the same tensors and shapes are paired by their names if they agree, otherwise in their order. A pair
    is uncertain if several pairings are possible and the names do not decide.

    Args:
        module: The network.
        weights: The tensors of the file.
        ordered: Whether the tensors are in the order of the file's network. Otherwise they are sorted by name.
    """
    own, theirs = _by_module(dict(module.state_dict())), _by_module(weights)
    if not ordered:
        theirs = dict(sorted(theirs.items(), key=lambda item: _natural(item[0])))
    pairs: dict[str, str] = {}
    uncertain: list[str] = []
    by_shape: dict[tuple[Any, ...], tuple[list[str], list[str]]] = {}
    for side, modules in enumerate((own, theirs)):
        for name, tensors in modules.items():
            by_shape.setdefault(_shapes_of(tensors), ([], []))[side].append(name)
    for ours, others in by_shape.values():
        same = set(ours) & set(others)
        pairs |= {name: name for name in same}
        rest, others = [name for name in ours if name not in same], [name for name in others if name not in same]
        for position, name in enumerate(rest):
            if position >= len(others):
                uncertain.append(name)
                continue
            pairs[name] = others[position]
            if len(rest) != len(others) or not _clearly_closest(name, others[position], rest, others):
                uncertain.append(name)
    return WeightMap(
        modules={name: pairs[name] for name in own if name in pairs},
        uncertain=[name for name in own if name in set(uncertain)],
    )


def _shapes_of(tensors: Weights) -> tuple[Any, ...]:
    return tuple(sorted((word, *tensor.shape) for word, tensor in tensors.items() if word != _COUNTER))


def _clearly_closest(own: str, given: str, ours: Sequence[str], others: Sequence[str]) -> bool:
    """Return True if two names are closer to each other than to any other candidate, or are the only candidates."""
    if len(ours) == 1:
        return True
    closeness = _closeness(own, given)
    return all(_closeness(own, other) < closeness for other in others if other != given) and all(
        _closeness(other, given) < closeness for other in ours if other != own
    )


def _closeness(a: str, b: str) -> float:
    """Return how close two module names are, mainly by the numbers in them, in [0, 2]."""
    numbers = [re.findall(r"\d+", name) for name in (a, b)]
    by_number = SequenceMatcher(None, *numbers, autojunk=False).ratio() if all(numbers) else 0.0
    return by_number + SequenceMatcher(None, a[-64:], b[-64:], autojunk=False).ratio()


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which `layer2` comes before `layer10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


# --- errors --------------------------------------------------------------------------------------


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
