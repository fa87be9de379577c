"""A clean stop: Ctrl-C, SIGTERM and the signal of SLURM are heard at once and obeyed between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
"""What is heard; the last is what `sbatch --signal=USR1@SECONDS` sends before the time is over."""


class Stopped(Exception):
    """A run was asked to stop, and its checkpoint is written."""


class Pruned(Exception):
    """A run was ended behind an epoch, because who watches it saw enough."""


class Stop:
    """Hears Ctrl-C, SIGTERM and SIGUSR1; a second signal does not wait.

    Attributes:
        signal: The number of the signal, if there was one.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.signal: int | None = None
        self._say = say
        self._former: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that was stopped."""
        return 128 + (self.signal or signal.SIGINT)

    def poll(self) -> None:
        """Raise `Stopped` if a stop was asked for."""
        if self.asked:
            raise Stopped

    def __enter__(self) -> Stop:
        self._former = self.listen()
        return self

    def listen(self) -> dict[int, Any]:
        """Hear the signals from here on, alone; gives the handlers that did so far.

        Lightning adds handlers of its own for the time of a fit: one ends the process with 0 between two steps, the one
        for SLURM's SIGUSR1 writes a checkpoint of another kind and queues the job again, from its beginning.
        """
        # Only the main thread may set handlers.
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._receive) for number in SIGNALS}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        self._say("stopping as soon as there is a checkpoint; once more to stop at once")
