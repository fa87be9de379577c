"""Process settings, devices, memory, and versions."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

import cnnspec
from cnnspec.analysis.cost import live_memory, training_memory
from cnnspec.diagnostics import failure
from cnnspec.ir import Graph
from cnnspec.ops.base import FLOAT
from cnnspec.resources import available_cores, machine_memory

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """Let glibc keep large blocks instead of returning them to the system at every step.

    Otherwise a step of a DenseNet at batch 128 takes some 470,000 page faults, half of its time on a CPU. On other
    systems this does nothing. Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and platform.libc_ver()[0] == "glibc":
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def default_threads() -> int:
    """Return the number of torch threads: that of torch or of `OMP_NUM_THREADS`, at most the available cores."""
    return min(torch.get_num_threads(), available_cores())


def default_workers(processes: int = 1) -> int:
    """Return the number of processes that read images for one of the training processes of this machine.

    One per available core for all of them, at most eight for each.
    """
    return min(8, max(1, available_cores() // processes))


def available_memory() -> int:
    """Return the memory in bytes that this process could use now without swapping, at most that of its container."""
    free = machine_memory()
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = min(free, 1024 * int(line.split()[1]))
    except (OSError, ValueError):  # not on Linux
        pass
    return free


def best_device() -> torch.device:
    """Return the GPU for tests and predictions if there is one with CUDA, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(accelerator: str) -> torch.device:
    """Return the device of a Lightning accelerator name. `auto` and `gpu` select CUDA before MPS, as in Lightning."""
    if accelerator in ("auto", "gpu"):
        return (
            torch.device("mps") if best_device().type == "cpu" and torch.backends.mps.is_available() else best_device()
        )
    return torch.device(accelerator if accelerator in ("cuda", "mps") else "cpu")


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def exact_float(device: torch.device) -> torch.dtype:
    """Return the type to add up a whole epoch in: float64, but on MPS, which has none, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def training_kernels(device: torch.device, *, deterministic: bool) -> Generator[None]:
    """Select the kernels of a training run, and restore the selection at the end.

    On a GPU, convolutions are measured and the fastest algorithm is used, and float32 products use TF32. With
    `deterministic`, only deterministic kernels are used, in full precision. On a CPU, nothing changes.
    Source: `torch.backends.cudnn.benchmark`, `torch.set_float32_matmul_precision`,
    `torch.use_deterministic_algorithms`.
    """
    if device.type == "cpu":
        yield
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = not deterministic
        with float32_products(tf32=not deterministic):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextmanager
def float32_products(*, tf32: bool) -> Generator[None]:
    """Let products and convolutions in float32 use TF32 on a GPU, or not."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def free_memory(device: torch.device) -> int:
    """Return the free memory of a GPU in bytes, 0 for a device without its own memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def images_that_fit(graph: Graph, device: torch.device, *, training: bool) -> int | None:
    """Return how many images at a time fit into the memory of a CPU, by the estimate of the check.

    An allocation beyond the memory of the machine need not fail: the system may end the process instead. Other devices
    report that memory has run out, so the result is None for them.

    Raises:
        CnnspecError: E0513 if not even one image fits.
    """
    if device.type != "cpu":
        return None
    if training:
        images = training_memory(graph).largest_batch(machine_memory())
    else:
        left = machine_memory() - FLOAT * graph.parameter_count
        images = max(0, left // max(live.image for live in live_memory(graph)))
    if images == 0:
        raise failure(
            "E0513",
            f"out of memory: one image does not fit into the {machine_memory() / 2**30:.1f} GiB of this machine",
            notes=["`cnnspec summary --batch 1` shows where memory is needed"],
            help="use a smaller network or image size",
        )
    return images


def versions() -> dict[str, str]:
    """Return the versions of the software used in a run."""
    packages = ("torch", "torchvision", "pytorch-lightning")
    own = {"cnnspec": cnnspec.__version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in packages}
