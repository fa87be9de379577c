"""Stop cleanly on Ctrl-C, SIGTERM and SLURM's signal: requests are noted immediately and obeyed between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
"""The handled signals. `sbatch --signal=USR1@SECONDS` sends SIGUSR1 before the time limit, and a terminal sends SIGHUP
when it is closed."""

HANGUP = getattr(signal, "SIGHUP", None)


def handled_signals() -> list[int]:
    """Return the signals that stop a run: `SIGNALS`, without a hangup that `nohup` ignores."""
    return [number for number in SIGNALS if number != HANGUP or signal.getsignal(number) is not signal.SIG_IGN]


class Stopped(Exception):
    """The run was asked to stop, and its checkpoint is written."""


class Pruned(Exception):
    """The `watch` callback ended the run after an epoch."""


class StopHandler:
    """Handle Ctrl-C, SIGTERM, SIGUSR1, and SIGHUP unless `nohup` ignores it. A second signal stops the process at once.

    Attributes:
        signal: The number of the received signal, or None.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.signal: int | None = None
        self._log = log
        self._previous: dict[int, Any] = {}
        self._message: threading.Thread | None = None

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code that shells expect of a process stopped by a signal."""
        return 128 + (self.signal or signal.SIGINT)

    def poll(self) -> None:
        """Raise `Stopped` if a stop was requested."""
        if self.requested:
            raise Stopped

    def __enter__(self) -> StopHandler:
        self._previous = self.listen()
        return self

    def listen(self) -> dict[int, Any]:
        """Install the handlers, and return those that they replace.

        During a fit, Lightning installs its own handlers: one exits with code 0 between two steps, and the one for
        SIGUSR1 on SLURM writes another kind of checkpoint and requeues the job from the start.
        """
        # Only the main thread may install handlers.
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._receive) for number in handled_signals()}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._message is not None:
            self._message.join(1)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == HANGUP:  # of a terminal, and again of its shell
                return
            raise KeyboardInterrupt
        self.signal = number
        text = "stopping after the next checkpoint; press Ctrl-C or send the signal again to stop immediately"
        # The signal may have interrupted the output of a line. Another thread waits for its end.
        self._message = threading.Thread(target=self._log, args=(text,), daemon=True)
        self._message.start()
