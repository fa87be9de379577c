"""What the machine is told once at the start, and what is written down about it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import sys

import torch

import cnnspec

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """Tell glibc to keep large blocks instead of giving them back at every step.

    A step of a DenseNet at batch 128 otherwise takes some 470,000 page faults, half of its time on a CPU.
    Elsewhere nothing happens. Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and platform.libc_ver()[0] == "glibc":
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def default_workers() -> int:
    """Processes that read images from files: one for each core, at most eight."""
    return min(8, os.cpu_count() or 1)


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_memory(device: torch.device) -> int:
    """Bytes that are free in the memory of a GPU; 0 where a device has no memory of its own."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


_FULL = re.compile(r"can't allocate memory|could not create a primitive(?! descriptor)")
"""What torch says on a CPU, and what oneDNN says of its own allocations (it names none of its reasons)."""


def memory_is_full(error: RuntimeError) -> bool:
    """Whether an allocation has failed, on a GPU or on the CPU; what a GPU keeps in reserve is then given back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return isinstance(error, torch.OutOfMemoryError) or _FULL.search(str(error)) is not None


def versions() -> dict[str, str]:
    """Versions of what took part in a run."""
    packages = ("torch", "torchvision", "pytorch-lightning")
    own = {"cnnspec": cnnspec.__version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in packages}
