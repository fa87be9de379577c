"""Run a function in several processes that know each other by the variables of `torchrun`."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

_numbers = itertools.count(101 * os.getpid())


def free_port() -> int:
    """Return a port that nothing uses.

    It is below those that systems choose for connections, and processes that run tests at the same time begin at
    different ones. So it stays free until it is used.
    """
    for number in _numbers:
        port = 20_000 + number % 10_000
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


def variables(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the variables that `torchrun` sets on a single machine."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip


def run_in_processes(
    count: int, job: Callable[[int], Any], seconds: float = 120, *, connect: bool = False
) -> list[Any]:
    """Call a function with the rank in forked processes.

    Args:
        count: The number of processes.
        job: The function. Its result must be picklable.
        seconds: The time limit.
        connect: Whether to create a process group before.

    Returns:
        The result of each process, or its exception. None for a process that was killed.
    """
    context = multiprocessing.get_context("fork")
    port, pipes, processes = free_port(), [context.Pipe(duplex=False) for _ in range(count)], []
    for rank, (_, sender) in enumerate(pipes):
        process = context.Process(target=_run, args=(rank, count, port, job, sender, connect))
        process.start()
        sender.close()
        processes.append(process)
    results, end = [], time.monotonic() + seconds
    try:
        for receiver, _ in pipes:
            if not receiver.poll(max(0.0, end - time.monotonic())):
                raise TimeoutError(f"no result after {seconds} s")
            try:
                results.append(pickle.loads(receiver.recv_bytes()))
            except EOFError:
                results.append(None)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()  # no later test sees it
    return results


def _run(rank: int, count: int, port: int, job: Callable[[int], Any], sender: Any, connect: bool) -> None:
    os.environ.update(variables(rank, count, port))
    torch.set_num_threads(1)  # more threads do not survive a fork
    try:
        if connect:
            torch.distributed.init_process_group("gloo")
        result = job(rank)
        if connect:
            torch.distributed.barrier()
    except BaseException as error:  # noqa: BLE001  the test looks at it
        traceback.print_exc()
        result = error
    sender.send_bytes(pickle.dumps(result))
    sender.close()
    os._exit(0)
