"""Show the progress of a run: one updating line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cnnspec.diagnostics import LossyStream, printable_line
from cnnspec.training.loop.task import Task


class ProgressDisplay(Callback):
    """A progress display with loss, accuracy, images per second and remaining time.

    On a terminal, it is a bar. Elsewhere, it prints one line per epoch and further lines at intervals in a long epoch.
    """

    PLAIN_INTERVAL = 20.0
    """Seconds between two plain lines within an epoch."""
    INTERVAL = 0.2
    """Seconds between two updates of the bar."""
    BAR_WIDTH = 10
    """The minimum width of the bar, and of the space before it."""

    def __init__(self, console: Console, task: Task) -> None:
        self._console, self._task = console, task
        self._epochs = task.recipe.epochs
        self._bar: Progress | None = None
        self._epoch_start = self._last = time.monotonic()
        self._start_step = 0
        self._printed = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start_step = self._task.progress.step
        self._printed = self._task.progress.validated_step
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(None))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("training", total=self._epochs * self._task.steps, completed=self._start_step)
            self._bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The module closes an epoch after the callbacks.
        if self._task.progress.validated_step != self._printed:
            self._end_epoch()
        self._epoch_start = self._last = time.monotonic()
        self._start_step = self._task.progress.step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._last < (self.INTERVAL if self._bar else self.PLAIN_INTERVAL):
            return
        self._last = now
        parts = [f"epoch {self._task.epoch}/{self._epochs}", *self._status(now)]
        if self._bar:
            line = fit(parts, (0, 1, 3, 2), self._console.width - self.BAR_WIDTH)
            self._bar.update(self._bar.task_ids[0], completed=self._task.progress.step, description=line)
        else:
            print_line(self._console, "  ".join(parts))

    def _status(self, now: float) -> list[str]:
        task = self._task
        loss, correct, count = task.running_sums
        done = task.progress.step - self._start_step
        speed = done / max(
            now - self._epoch_start, 1e-9
        )  # of this epoch only, because the machine may have been busy before
        left = (self._epochs * task.steps - task.progress.step) / speed
        batch = min(task.recipe.batch, len(task.context.data.train))
        return [
            f"loss {loss / max(count, 1):.4f} acc {correct / max(count, 1):.2%}",
            f"{speed * batch:,.0f} images/s",
            f"{format_duration(left)} left",
        ]

    def _end_epoch(self) -> None:
        self._printed = self._task.progress.validated_step
        metrics = self._task.last_metrics
        epoch = -(-self._printed // self._task.steps)
        parts = [f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}"]
        parts.append(f"train loss {metrics['train_loss']:.4f} acc {metrics['train_acc']:.2%}")
        if "val_acc" in metrics:
            best = " best" if metrics["best"] else ""
            parts.append(f"val loss {metrics['val_loss']:.4f} acc {metrics['val_acc']:.2%}{best}")
        parts.append(f"{time.monotonic() - self._epoch_start:.1f} s")
        order = (0, 2, 1, 3) if "val_acc" in metrics else (0, 1, 2)
        width = self._console.width if self._console.is_terminal else sys.maxsize
        print_line(self._console, fit(parts, order, width))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._task.progress.validated_step != self._printed:
            self._end_epoch()
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def fit(parts: Sequence[str], order: Sequence[int], width: int) -> str:
    """Join parts of a line, and leave out as many as needed to fit into a width.

    Args:
        parts: The parts.
        order: Their indices, the most important one first.
        width: The number of columns of the terminal.
    """
    for count in range(len(order), 0, -1):
        line = "  ".join(parts[index] for index in sorted(order[:count]))
        if len(line) < width:  # a line of the full width wraps in some terminals
            return line
    return parts[order[0]][: max(0, width - 1)]


def default_console() -> Console:
    """Return the console of this process. A notebook, which cannot move the cursor, gets plain lines.

    What cannot be written is dropped: the run goes on after its terminal was closed.
    """
    if Console().is_jupyter:
        return Console(force_jupyter=False, force_terminal=False)
    return Console(file=LossyStream(sys.stdout) if sys.stdout else None)  # pyright: ignore[reportArgumentType]


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a line of text without control characters, markup, highlighting or wrapping."""
    console.print(printable_line(text), style=style, highlight=False, markup=False, soft_wrap=True)


def format_duration(seconds: float) -> str:
    """Format a duration as hours, minutes and seconds, `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
