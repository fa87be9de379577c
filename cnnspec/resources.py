"""What a process uses: shipped files, the cache folder, memory, cores, and the cycle collector.

Grammar, specs and data lie inside the package in a wheel, next to it in a checkout.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(folder: str, *parts: str) -> Path:
    """Return the path of a shipped file; in a wheel `grammar` and `specs` lie inside the package."""
    inside = _PACKAGE / folder
    return (inside if inside.exists() else _PACKAGE.parent / folder).joinpath(*parts)


def machine_memory() -> int:
    """Return the memory that this process may use in bytes: that of the machine, or of its container."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no container, or one without a limit
            pass
    return min(found)


def available_cores() -> int:
    """Return the number of cores that this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in ("/sys/fs/cgroup", "/sys/fs/cgroup/cpu"):
        try:
            quota = _quota(Path(folder))
        except (OSError, ValueError):
            continue
        if quota is not None:
            cores = min(cores, max(1, math.ceil(quota)))
    return cores


def _quota(folder: Path) -> float | None:
    """Return the number of cores that a control group may use, None without a limit. Source: cgroups(7)."""
    if (folder / "cpu.max").exists():  # version 2
        quota, period = (folder / "cpu.max").read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
    return int(quota) / int(period) if int(quota) > 0 else None


def cache_folder() -> Path | None:
    """Return the folder for what can be computed again: `CNNSPEC_CACHE`, or the platform's folder for such files.

    None if there is no home folder.
    """
    if own := os.environ.get("CNNSPEC_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    try:
        return Path(base or Path.home() / ".cache") / "cnnspec"
    except RuntimeError:
        return None


@contextmanager
def without_garbage_collection() -> Generator[None]:
    """Disable Python's cycle collector: among many small objects it takes long, and finds almost nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
