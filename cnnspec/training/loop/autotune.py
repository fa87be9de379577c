"""Choose the fastest memory format and number of threads for a network by a short measurement.

The settings do not change what is computed, only the memory layout and the division of work. The result is cached for
the next run with the same network, batch size and machine. A resumed run keeps its settings.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnspec.ir import Graph
from cnnspec.resources import cache_folder
from cnnspec.training.loop.checkpoints import write_atomically

FORMATS: dict[str, torch.memory_format] = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
IMAGES = 64
"""The maximum number of images in a measured step."""
GAIN = 0.9
"""The fraction of the default's time that another setting must stay below, so that noise decides nothing."""
MAX_SECONDS = 10.0
"""The time after which no further setting is measured, in seconds."""


@dataclass(frozen=True)
class Tuning:
    """The machine settings of a run.

    Attributes:
        memory_format: `channels_last` or `contiguous`.
        threads: The number of torch threads.
        origin: `measured`, `cached` from an earlier measurement, `requested`, `resumed`, or `default`.
    """

    memory_format: str
    threads: int
    origin: str = "default"

    def apply(self, network: nn.Module) -> nn.Module:
        """Return the network in its memory format, and set the number of threads of the process."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        return network.to(memory_format=FORMATS[self.memory_format])  # type: ignore[call-overload]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cache_file() -> Path | None:
    """Return the path of the cache, or None if the user has no home folder."""
    folder = cache_folder()
    return folder / "tuning.json" if folder else None


def _key(graph: Graph, batch: int, device: torch.device) -> str:
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    network = hashlib.sha256(graph.model.model_dump_json(exclude={"recipe"}).encode()).hexdigest()[:16]
    return "/".join([network, str(batch), chip, str(torch.get_num_threads()), torch.__version__])


def _read_cache() -> dict[str, Any]:
    path = cache_file()
    try:
        cached = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return cached if isinstance(cached, dict) else {}


def _store(key: str, found: Tuning) -> None:
    path = cache_file()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**_read_cache(), key: found.to_json()}, indent=1).encode())
    except OSError:  # the next run measures again
        pass


def read_cached(graph: Graph, batch: int, device: torch.device) -> Tuning | None:
    """Return the cached settings, or None."""
    cached: Any = _read_cache().get(_key(graph, batch, device))
    try:
        found = Tuning(str(cached["memory_format"]), int(cached["threads"]), "cached")
    except (TypeError, KeyError, ValueError):
        return None
    return found if found.memory_format in FORMATS and found.threads > 0 else None


def choose_tuning(
    graph: Graph,
    network: nn.Module,
    batch: int,
    device: torch.device,
    memory_format: str | None = None,
    threads: int | None = None,
) -> Tuning:
    """Return the settings of a network: requested, cached, or measured now.

    Args:
        graph: The graph of `network`.
        network: The module. It is not modified.
        batch: Images per step.
        device: The device to train on.
        memory_format: The requested memory format, or None.
        threads: The requested number of threads, or None.
    """
    default = Tuning("channels_last", torch.get_num_threads())
    requested = {"memory_format": memory_format, "threads": threads}
    requested = {name: value for name, value in requested.items() if value is not None}
    if len(requested) == 2 or (requested and device.type != "cpu"):
        return replace(default, **requested, origin="requested")
    found = read_cached(graph, batch, device)
    if found is None:
        found = _measure(graph, network, min(batch, IMAGES), device, default)
        _store(_key(graph, batch, device), found)
    return replace(found, **requested) if requested else found


def _measure(graph: Graph, network: nn.Module, images: int, device: torch.device, default: Tuning) -> Tuning:
    candidates = [default, replace(default, memory_format="contiguous")]
    if device.type == "cpu" and default.threads > 1:
        candidates += [replace(candidate, threads=1) for candidate in candidates]
    seconds: dict[Tuning, float] = {}
    end = time.monotonic() + MAX_SECONDS
    state = torch.get_rng_state()
    try:
        for candidate in candidates:
            seconds[candidate] = _time_step(graph, deepcopy(network).to(device), images, device, candidate)
            if time.monotonic() > end:
                break
    except RuntimeError:  # running out of memory here does not mean that training will
        pass
    finally:
        torch.set_num_threads(default.threads)
        torch.set_rng_state(state)
    best = min(seconds, key=seconds.__getitem__, default=default)
    is_better = best is not default and seconds[best] < GAIN * seconds.get(default, float("inf"))
    return replace(best if is_better else default, origin="measured")


def _time_step(graph: Graph, network: nn.Module, images: int, device: torch.device, tuning: Tuning) -> float:
    """Return the time of a forward and backward pass in seconds, the better of two after a warm-up."""
    network = tuning.apply(network).train()
    x = torch.zeros(images, *graph.input_shape, device=device).to(memory_format=FORMATS[tuning.memory_format])
    seconds: list[float] = []
    for _ in range(3):
        network.zero_grad()
        start = time.perf_counter()
        outputs = network(x)
        getattr(outputs, "logits", outputs).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
