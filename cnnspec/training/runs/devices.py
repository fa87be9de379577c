"""Choose the devices of a run, and the strategy that exchanges gradients between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry

from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.training.loop.launch import read_launch
from cnnspec.training.loop.machine import device_of
from cnnspec.training.loop.processes import PATIENCE
from cnnspec.training.runs.options import TrainOptions

MACS_PER_STEP = 100_000_000_000
"""Multiply-adds of the forward pass of a batch from which `--devices auto` uses all GPUs.

Below it a step takes a few milliseconds on one GPU, and exchanging gradients takes a similar time. The value is an
estimate; it has not been measured, which `benchmarks/gpu.py devices` does on two GPUs.
"""
_DDP_OPTIONS = {
    "static_graph": bool,
    "gradient_as_bucket_view": bool,
    "find_unused_parameters": bool,
    "bucket_cap_mb": int,
}
"""The arguments of `torch.nn.parallel.DistributedDataParallel` that can be set, and their types."""


def read_ddp(texts: Iterable[str]) -> dict[str, bool | int]:
    """Return the arguments of `DistributedDataParallel` that a user has written as `NAME=VALUE`.

    Raises:
        CnnspecError: E0510 if there is no such argument, or its value has another type.
    """
    found: dict[str, bool | int] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        kind = _DDP_OPTIONS.get(name)
        if kind is bool and value in ("true", "false"):
            found[name] = value == "true"
        elif kind is int and value.isascii() and value.isdecimal() and 0 < int(value[:9]) < 10**6:
            found[name] = int(value)
        else:
            known = ", ".join(f"{key}={'MB' if kind is int else 'true'}" for key, kind in _DDP_OPTIONS.items())
            raise failure(
                "E0510",
                f"`{one_line(text, 80)}` is not an option of `DistributedDataParallel` that can be set",
                help=f"use one of {known}",
            )
    return found


def choose_devices(options: TrainOptions, macs_per_step: int) -> tuple[str | int, str | None]:
    """Return the devices for Lightning, and the reason if `auto` leaves GPUs unused.

    Args:
        options: The options.
        macs_per_step: The multiply-adds of the forward pass of a batch.
    """
    if options.devices != "auto" or read_launch() is not None or device_of(options.accelerator).type != "cuda":
        return options.devices, None
    count = torch.cuda.device_count()
    if count < 2 or macs_per_step >= MACS_PER_STEP:
        return options.devices, None
    return 1, (
        f"one of {count} GPUs, because a step has {macs_per_step / 1e9:,.1f} billion multiply-adds, fewer than"
        f" {MACS_PER_STEP / 1e9:,.0f}; `--devices {count}` uses all of them"
    )


def make_strategy(name: str, created: Any, ddp: Mapping[str, bool | int], *, buffers: bool = True) -> Any:
    """Return the strategy in place of the one that Lightning has created by a name, None to keep that one.

    Args:
        name: The name of the strategy.
        created: The strategy that Lightning has created.
        ddp: Arguments of `DistributedDataParallel`.
        buffers: Whether all devices take the running statistics of the first one at each step.

    Raises:
        CnnspecError: E0510 if the strategy starts copies of this process, or does not use the options.
    """
    if getattr(created, "_start_method", "popen") != "popen":
        raise _start_method(name)
    if type(created) is not DDPStrategy:
        if ddp and created.root_device is not None and type(created).__name__ != "SingleDeviceStrategy":
            raise failure(
                "E0510",
                f"`--ddp` has no effect on the strategy `{name}`",
                help="use `--strategy ddp`, or omit `--ddp`",
            )
        return None
    # Another process may work for longer than the 30 minutes of Lightning, for example while it reads the data. If it
    # ends, its connections are closed.
    own = StrategyRegistry[name]["init_params"] if name in StrategyRegistry else {}
    shared = {} if buffers else {"broadcast_buffers": False}
    return DDPStrategy(**{**own, **ddp, **shared, "timeout": PATIENCE})


def check_strategy(name: str) -> None:
    """Check that a strategy starts processes that begin anew.

    Raises:
        CnnspecError: E0510 if it forks this process, or starts others with a copy of its state.
    """
    if name in StrategyRegistry and StrategyRegistry[name]["init_params"].get("start_method", "popen") != "popen":
        raise _start_method(name)


def _start_method(name: str) -> CnnspecError:
    return failure(
        "E0510",
        f"the strategy `{name}` cannot train: it copies this process, which has the data and the run folder open",
        notes=["a process that uses CUDA cannot be forked"],
        help="use `--strategy ddp`, or start the processes with `torchrun`; in a notebook, use one device",
    )
