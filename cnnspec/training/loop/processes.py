"""Exchange flags and results between the processes that train together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.training.loop.launch import JOIN_VARIABLE, Launch

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""The maximum time to wait for another process. The end of a process closes its connections."""


_LOST = ("gloo", "connection closed by peer", "connection reset by peer", "nccl")
"""Parts of torch's error messages when another process does not respond."""


def lost_process(error: BaseException) -> CnnspecError | None:
    """Return the diagnostic for an error of torch that means that another process has ended."""
    if not (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)):
        return None
    return failure(
        "E0515",
        "another process of this run has ended",
        notes=[one_line(error)],
        help="see the output of that process, then resume with `--resume`",
    )


class Processes:
    """The processes of a run. Alone, a process exchanges nothing.

    Gradients on GPUs use NCCL, and reading its results waits for the device. Flags and results are exchanged between
    the CPUs by a second group of processes.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[Tensor, Any] | None = None

    def connect(self, launch: Launch, device: torch.device) -> None:
        """Connect the processes that were started together.

        Raises:
            CnnspecError: E0524 if they do not find each other in time.
        """
        if self.are_connected:
            return
        os.environ |= {"MASTER_ADDR": launch.address, "MASTER_PORT": str(launch.port)}
        timeout, backend = timedelta(seconds=launch.join_seconds), "nccl" if device.type == "cuda" else "gloo"
        try:
            store, _, _ = next(dist.rendezvous("env://", launch.rank, launch.world, timeout=timeout))
            store.set_timeout(timeout)
            prefixed = dist.PrefixStore("cnnspec", store)
            dist.init_process_group(backend, store=prefixed, rank=launch.rank, world_size=launch.world)
            self.any(False)
        except (RuntimeError, ValueError) as error:
            raise failure(
                "E0524",
                f"the {launch.world} processes of this run did not connect within {launch.join_seconds} s",
                notes=[f"this is {launch.place}", one_line(error, 300)],
                help=f"check that all processes run and reach `{launch.address}`; name the network interface of the"
                f" machines by GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, or wait longer by {JOIN_VARIABLE}",
            ) from None

    def from_main(self, compute: Callable[[], T]) -> T:
        """Compute a value in the main process, and return it in all processes.

        Others wait as long as the main process runs. They exit with code 1 if it reports an error.
        """
        if not self.are_connected:
            return compute()
        self._end_vote()
        box: list[Any] = [None, True]
        try:
            if self.rank == 0:
                box = [compute(), False]
        finally:
            dist.broadcast_object_list(box, 0, group=self._connection())
        if box[1]:
            raise SystemExit(1)
        return box[0]

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
