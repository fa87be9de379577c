"""How this machine computes a network fastest: memory format and threads, from a short measurement.

Nothing here changes what is computed, only in which order numbers lie in memory and who adds them. What was found is
kept for the next run of the same network, batch and machine; a run that is resumed keeps its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnspec.ir import Graph
from cnnspec.training.loop.checkpoints import write_whole

FORMATS: dict[str, torch.memory_format] = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
IMAGES = 64
"""At most so many images are in a step that is measured."""
GAIN = 0.9
"""Another setting than the usual one must take less than this share of its time; noise chooses nothing."""
PATIENCE = 10.0
"""Seconds after which no further setting is tried."""


@dataclass(frozen=True)
class Tuning:
    """The settings of a run.

    Attributes:
        memory_format: `channels_last` or `contiguous`.
        threads: Of torch.
        origin: `measured`, `kept` from a former measurement, `stated`, `resumed`, or `usual`.
    """

    memory_format: str
    threads: int
    origin: str = "usual"

    def apply(self, network: nn.Module) -> nn.Module:
        """The network in its memory format; the threads are set for the process."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        return network.to(memory_format=FORMATS[self.memory_format])  # type: ignore[call-overload]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cache_file() -> Path:
    """Where measurements are kept: `CNNSPEC_CACHE`, or the user's folder for such things."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CNNSPEC_CACHE") or Path(home) / "cnnspec") / "tuning.json"


def _key(graph: Graph, batch: int, device: torch.device) -> str:
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    network = hashlib.sha256(graph.model.model_dump_json(exclude={"recipe"}).encode()).hexdigest()[:16]
    return "/".join([network, str(batch), chip, str(torch.get_num_threads()), torch.__version__])


def _read_cache() -> dict[str, Any]:
    try:
        kept = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def look_up(graph: Graph, batch: int, device: torch.device) -> Tuning | None:
    """What was measured before."""
    kept: Any = _read_cache().get(_key(graph, batch, device))
    try:
        found = Tuning(str(kept["memory_format"]), int(kept["threads"]), "kept")
    except (TypeError, KeyError, ValueError):
        return None
    return found if found.memory_format in FORMATS and found.threads > 0 else None


def choose(
    graph: Graph,
    network: nn.Module,
    batch: int,
    device: torch.device,
    memory_format: str | None = None,
    threads: int | None = None,
) -> Tuning:
    """The settings for a network: those that are stated, were kept, or are measured now.

    Args:
        graph: What `network` was built from.
        network: Stays as it is.
        batch: Images in a step.
        device: Where it will train.
        memory_format: As stated.
        threads: As stated.
    """
    usual = Tuning("channels_last", torch.get_num_threads())
    stated = {"memory_format": memory_format, "threads": threads}
    stated = {name: value for name, value in stated.items() if value is not None}
    if len(stated) == 2 or (stated and device.type != "cpu"):
        return replace(usual, **stated, origin="stated")
    found = look_up(graph, batch, device)
    if found is None:
        found = _measure(graph, network, min(batch, IMAGES), device, usual)
        try:
            cache_file().parent.mkdir(parents=True, exist_ok=True)
            kept = {**_read_cache(), _key(graph, batch, device): found.to_json()}
            write_whole(cache_file(), json.dumps(kept, indent=1).encode())
        except OSError:  # it is measured again next time
            pass
    return replace(found, **stated) if stated else found


def _measure(graph: Graph, network: nn.Module, images: int, device: torch.device, usual: Tuning) -> Tuning:
    candidates = [usual, replace(usual, memory_format="contiguous")]
    if device.type == "cpu" and usual.threads > 1:
        candidates += [replace(candidate, threads=1) for candidate in candidates]
    seconds: dict[Tuning, float] = {}
    end = time.monotonic() + PATIENCE
    state = torch.get_rng_state()
    try:
        for candidate in candidates:
            seconds[candidate] = _time_step(graph, deepcopy(network).to(device), images, device, candidate)
            if time.monotonic() > end:
                break
    except RuntimeError:  # too little memory for the measurement says nothing about the run
        pass
    finally:
        torch.set_num_threads(usual.threads)
        torch.set_rng_state(state)
    best = min(seconds, key=seconds.__getitem__, default=usual)
    better = best is not usual and seconds[best] < GAIN * seconds.get(usual, float("inf"))
    return replace(best if better else usual, origin="measured")


def _time_step(graph: Graph, network: nn.Module, images: int, device: torch.device, tuning: Tuning) -> float:
    """Seconds of a forward and backward pass, the better of two behind one that warms up."""
    network = tuning.apply(network).train()
    x = torch.zeros(images, *graph.input_shape, device=device).to(memory_format=FORMATS[tuning.memory_format])
    taken: list[float] = []
    for _ in range(3):
        network.zero_grad()
        start = time.perf_counter()
        outputs = network(x)
        getattr(outputs, "logits", outputs).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
