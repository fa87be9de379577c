"""Run a function in a process of its own, with limits on its time and memory."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

SECONDS = 20
"""The limit on the processor time of one call, in seconds."""
BYTES = 4 * 2**30
"""The limit on the memory of the calls, in addition to what this process has, in bytes."""
_MAX_CALLS = 500
"""The number of calls after which a process is replaced: torch keeps 0.6 MiB of each network that TensorBoard shows."""


class Outcome(NamedTuple):
    """The end of an isolated call.

    Attributes:
        value: The value that the function returned, after a round trip through JSON.
        failure: The exception that escaped, or the signal that ended the process; empty if there is none.
        seconds: Processor time; 0 if the process ended.
        bytes: The peak of the resident memory of its process, beyond that at the first call.
    """

    value: Any
    failure: str
    seconds: float = 0.0
    bytes: int = 0


class Isolated:
    """A function that runs in a forked process, which is replaced after a call that ends it, and after many calls.

    A fork is only safe while this process has a single thread, so torch must not have used more in it.

    Args:
        function: Takes a number and returns a value that JSON can express. Its output on the terminal is discarded.
        seconds: The limit on the processor time of a call. The limit on real time is eight times as long.
        memory: The limit on further address space in bytes. An allocation beyond it fails.
    """

    def __init__(self, function: Callable[[int], Any], seconds: int = SECONDS, memory: int = BYTES) -> None:
        self.function, self.seconds, self.memory = function, seconds, memory
        self._child: tuple[int, IO[str], IO[str]] | None = None
        self._calls = 0

    def __call__(self, number: int) -> Outcome:
        if self._calls % _MAX_CALLS == 0:
            self.close()
        self._calls += 1
        self._child = self._child or self._fork()
        _, requests, answers = self._child
        try:
            requests.write(f"{number}\n")
            requests.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if answer.endswith("\n"):
            return Outcome(*json.loads(answer))
        self.close()
        ended = os.waitstatus_to_exitcode(self._status)
        return Outcome(
            None, f"ended by {signal.Signals(-ended).name}" if ended < 0 else f"ended with exit code {ended}"
        )

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            child, requests, answers = self._child
            requests.close()
            answers.close()
            _, self._status = os.waitpid(child, 0)
            self._child = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _fork(self) -> tuple[int, IO[str], IO[str]]:
        (numbers, requests), (answers, results) = os.pipe(), os.pipe()
        child = os.fork()
        if child:
            os.close(numbers)
            os.close(results)
            return child, open(requests, "w", encoding="utf-8"), open(answers, encoding="utf-8")
        os.close(requests)
        os.close(answers)
        try:
            self._serve(numbers, results)
        finally:
            os._exit(0)  # without the cleanup that belongs to the parent

    def _serve(self, numbers: int, results: int) -> None:
        """Answer the calls in the forked process."""
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        gc.freeze()  # a collection would visit and copy the objects of the parent, at the expense of a call
        before = memory_in_use("VmRSS")
        most = memory_in_use("VmSize") + self.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        with open(numbers, encoding="utf-8") as lines:
            for line in lines:
                start = time.process_time()
                resource.setrlimit(resource.RLIMIT_CPU, (int(start) + 1 + self.seconds, resource.RLIM_INFINITY))
                signal.alarm(8 * self.seconds)
                value, failure = None, ""
                try:
                    value = self.function(int(line))
                except BaseException as error:  # noqa: BLE001 - whatever escapes is the result
                    failure = f"{type(error).__name__}: {error}"[:500]
                signal.alarm(0)
                spent, grown = time.process_time() - start, memory_in_use("VmHWM") - before
                os.write(results, f"{json.dumps([value, failure, spent, grown])}\n".encode())


def memory_in_use(name: str) -> int:
    """Return a size of this process in bytes: `VmRSS`, its peak `VmHWM`, or the address space `VmSize`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in status if line.startswith(f"{name}:")).split()[1]) * 1024
