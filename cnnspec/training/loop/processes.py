"""Exchange flags and results between the processes that train together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cnnspec.diagnostics import CnnspecError

PATIENCE = timedelta(days=1)
"""The maximum time to wait for another process. The end of a process closes its connections."""


class Processes:
    """The processes of a run. Alone, a process exchanges nothing.

    Gradients on GPUs use NCCL, and reading its results waits for the device. Flags and results are exchanged between
    the CPUs by a second group of processes.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[Tensor, Any] | None = None

    @property
    def size(self) -> int:
        """The number of processes."""
        return dist.get_world_size() if self.are_connected else 1

    @property
    def rank(self) -> int:
        """The index of this process."""
        return dist.get_rank() if self.are_connected else 0

    @property
    def are_connected(self) -> bool:
        return dist.is_available() and dist.is_initialized()

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is true in any process."""
        return [value > 0 for value in self.greatest(*map(int, flags))]

    def vote(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it was true in any process at the previous call, without waiting for this one.

        So all processes obey a flag after the same step. A flag stays set until it is obeyed, because the result of a
        vote is dropped when something else is exchanged. Alone, a flag is returned at once.
        """
        if not self.are_connected:
            return list(flags)
        previous = self._end_vote()
        self._pending = self._maximum(list(map(int, flags)))
        return [value > 0 for value in previous] or [False] * len(flags)

    def greatest(self, *values: int) -> list[int]:
        """Return the maximum of each value over all processes."""
        self._end_vote()
        if not self.are_connected:
            return list(values)
        found, work = self._maximum(values)
        work.wait()
        return found.tolist()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of tensors over all processes, on the CPU."""
        self._end_vote()
        total = values.detach().to("cpu", copy=True)
        if self.are_connected:
            dist.all_reduce(total, group=self._connection())
        return total

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the main process."""
        self._end_vote()
        for tensor in tensors if self.are_connected else ():
            values = tensor.detach().to("cpu", copy=True)
            dist.broadcast(values, 0, group=self._connection())
            tensor.detach().copy_(values)

    def raise_any(self, error: CnnspecError | None) -> None:
        """Raise the error of the first process that has one, in all processes."""
        if not self.any(error is not None)[0]:
            return
        errors: list[CnnspecError | None] = [error]
        if self.are_connected:
            errors *= self.size
            dist.all_gather_object(errors, error, group=self._connection())
        raise next(error for error in errors if error is not None)

    def _maximum(self, values: Sequence[int]) -> tuple[Tensor, Any]:
        found = torch.tensor(values)
        return found, dist.all_reduce(found, dist.ReduceOp.MAX, group=self._connection(), async_op=True)

    def _end_vote(self) -> list[int]:
        """Wait for the last vote and return its result."""
        if self._pending is None:
            return []
        (flags, work), self._pending = self._pending, None
        work.wait()
        return flags.tolist()

    def _connection(self) -> Any:
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return self._group
