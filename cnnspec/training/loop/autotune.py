"""Choose the fastest memory format for a network by a short measurement.

The format does not change what is computed, only the layout of tensors in memory. The choice is cached for the next run
with the same network, batch size and machine. Nothing that was measured on a busy machine is cached or used. A resumed
run keeps its settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from cnnspec.diagnostics import CnnspecError
from cnnspec.files import read_json, write_atomically
from cnnspec.ir import Graph
from cnnspec.limits import MAX_JSON_BYTES
from cnnspec.resources import cache_folder
from cnnspec.training.loop.machine import default_threads, device_name

FORMATS: dict[str, torch.memory_format] = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
DEFAULT_FORMAT = "channels_last"
IMAGES, IMAGES_ON_GPU = 64, 1024
"""The maximum number of images in a measured step."""
GAIN = 0.9
"""The other format must take less than this fraction of the default's time, in every round."""
ROUNDS = 6
"""Both formats are measured once per round. The first round is a warm-up."""
MIN_ROUNDS = 4
"""The number of rounds, with the warm-up, that a choice needs."""
MAX_SECONDS = 10.0
"""The time after which no further round starts, in seconds."""
MAX_WAIT = 0.05
"""On a machine that is not busy, threads wait for a core during at most this fraction of the measurement."""
MAX_SPREAD = 0.3
"""Where waiting times are unknown, step times on a machine that is not busy differ by at most this fraction."""


@dataclass(frozen=True)
class Tuning:
    """The machine settings of a run.

    Attributes:
        memory_format: `channels_last` or `contiguous`.
        threads: The number of torch threads.
        origin: The origin of the memory format: `measured`, `cached` from an earlier measurement, `requested`,
            `resumed`, or `default` if the machine was too busy to measure.
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


def _key(graph: Graph, batch: int, device: torch.device, precision: str) -> str:
    chip = platform.processor() or platform.machine() if device.type == "cpu" else device_name(device)
    network = hashlib.sha256(graph.model.model_dump_json(exclude={"recipe"}).encode()).hexdigest()[:16]
    return "/".join([network, str(batch), chip, str(torch.get_num_threads()), torch.__version__, precision])


_CACHE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def _read_cache() -> dict[str, Any]:
    path = cache_file()
    try:
        return (path and read_json(path, _CACHE, MAX_JSON_BYTES, "E0506")) or {}
    except CnnspecError:  # it is measured again
        return {}


def _store(key: str, found: Tuning) -> None:
    path = cache_file()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**_read_cache(), key: found.to_json()}, indent=1).encode())
    except OSError:  # the next run measures again
        pass


def read_cached(graph: Graph, batch: int, device: torch.device, precision: str = "32-true") -> str | None:
    """Return the cached memory format, or None."""
    cached: Any = _read_cache().get(_key(graph, batch, device, precision))
    memory_format = cached.get("memory_format") if isinstance(cached, dict) else None
    return memory_format if isinstance(memory_format, str) and memory_format in FORMATS else None


def choose_tuning(
    graph: Graph,
    network: nn.Module,
    batch: int,
    device: torch.device,
    memory_format: str | None = None,
    threads: int | None = None,
    precision: str = "32-true",
) -> Tuning:
    """Return the settings of a network. The memory format is requested, cached, or measured now.

    A cached format other than the default is measured again; on a busy machine, it is used as it is.

    Args:
        graph: The graph of `network`.
        network: The module. It is not modified.
        batch: Images per step.
        device: The device to train on.
        memory_format: The requested memory format, or None.
        threads: The requested number of threads; None for all cores that this process may use.
        precision: Lightning's name of the precision of the run, in which steps are measured.
    """
    threads = threads or default_threads()
    if memory_format is not None:
        return Tuning(memory_format, threads, "requested")
    if graph.recipe.compile is not None:  # compiling twice would take longer than the better format can save
        return Tuning(DEFAULT_FORMAT, threads)
    cached = read_cached(graph, batch, device, precision)
    if cached == DEFAULT_FORMAT:
        return Tuning(cached, threads, "cached")
    images = min(batch, IMAGES_ON_GPU if device.type == "cuda" else IMAGES)
    measured = _measure(graph, network, images, device, threads, precision)
    if measured is None:
        return Tuning(cached, threads, "cached") if cached else Tuning(DEFAULT_FORMAT, threads)
    found = Tuning(measured, threads, "measured")
    _store(_key(graph, batch, device, precision), found)
    return found


def _measure(
    graph: Graph, network: nn.Module, images: int, device: torch.device, threads: int, precision: str
) -> str | None:
    """Return the faster memory format, or None if the machine is too busy or too slow to tell."""
    seconds: dict[str, list[float]] = {name: [] for name in FORMATS}
    state, threads_before = torch.get_rng_state(), torch.get_num_threads()
    try:
        copies = {name: Tuning(name, threads).apply(deepcopy(network).to(device)).train() for name in FORMATS}
        start, waited = time.perf_counter(), _waiting_seconds()
        for number in range(ROUNDS):
            for name in list(FORMATS)[:: 1 if number % 2 else -1]:
                with autocast(device, precision):
                    seconds[name].append(_time_step(graph, copies[name], images, device, name))
            if time.perf_counter() - start > MAX_SECONDS:
                break
        elapsed, waited_after = time.perf_counter() - start, _waiting_seconds()
    except (RuntimeError, MemoryError):  # running out of memory here does not mean that training will
        return None
    finally:
        torch.set_num_threads(threads_before)
        torch.set_rng_state(state)
    default = seconds[DEFAULT_FORMAT][1:]
    if len(default) + 1 < MIN_ROUNDS:
        return None
    if waited is not None and waited_after is not None:
        busy = waited_after - waited > MAX_WAIT * elapsed * threads
    else:
        busy = any(max(times[1:]) - min(times[1:]) > MAX_SPREAD * min(times[1:]) for times in seconds.values())
    if busy:
        return None
    for name, times in seconds.items():
        if all(other < GAIN * own for other, own in zip(times[1:], default, strict=True)):
            return name
    return DEFAULT_FORMAT


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context of a step in one of Lightning's mixed precisions."""
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device.type, kinds[precision]) if precision in kinds else nullcontext()


def _waiting_seconds() -> float | None:
    """Return the time that the threads of this process have waited for a core, None where it is unknown.

    Source: `/proc/PID/task/TID/schedstat` of Linux, second field, in nanoseconds.
    """
    try:
        files = [Path("/proc/self/task", task, "schedstat") for task in os.listdir("/proc/self/task")]
        return sum(int(file.read_text("ascii").split()[1]) for file in files) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def _time_step(graph: Graph, network: nn.Module, images: int, device: torch.device, name: str) -> float:
    """Return the time of a forward and backward pass in seconds."""
    x = torch.zeros(images, *graph.input_shape, device=device).to(memory_format=FORMATS[name])
    network.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    outputs = network(x)
    getattr(outputs, "logits", outputs).square().mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
