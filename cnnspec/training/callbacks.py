"""What happens around the steps of a run: checkpoints, a clean stop, and what a person sees."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cnnspec.backends.torch_weights import write_weights


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there, so that a kill leaves the former one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


class Keep(Checkpoint):
    """Keeps the last epoch and the one with the best validation accuracy, the first of equals.

    Without validation images every epoch counts as better than the one before.

    Attributes:
        best_epoch: Counted from 1; 0 before the first.
        best_score: Its validation accuracy.
        seconds: Time spent in training, over all parts of a run that was interrupted.
    """

    def __init__(self, folder: Path) -> None:
        self.last, self.best, self.weights = (folder / name for name in ("last.ckpt", "best.ckpt", "best.safetensors"))
        self.best_epoch = 0
        self.best_score = -1.0
        self._before = 0.0
        self._start = time.monotonic()
        self._saved: dict[str, torch.Tensor] = {}

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        score = trainer.callback_metrics.get("val_acc")
        if score is None or float(score) > self.best_score:
            self.best_score = -1.0 if score is None else float(score)
            self.best_epoch = trainer.current_epoch + 1 if not trainer.fit_loop.done else trainer.current_epoch
            trainer.save_checkpoint(self.best)
            if trainer.is_global_zero:
                write_weights(self._saved, self.weights)
            self._saved = {}
        trainer.save_checkpoint(self.last)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # An average of the weights has taken their place in the checkpoint by now.
        start = "network."
        self._saved = {k[len(start) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(start)}

    def state_dict(self) -> dict[str, Any]:
        return {"best_epoch": self.best_epoch, "best_score": self.best_score, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_epoch, self.best_score = state_dict["best_epoch"], state_dict["best_score"]
        self._before = state_dict["seconds"]


class Stopped(Exception):
    """A run was asked to stop, and its checkpoint is written."""


class StopOnSignal(Callback):
    """Turns Ctrl-C and SIGTERM into a stop between two steps, with a checkpoint.

    In validation it waits for its end, so that the epoch's checkpoint is complete. A second signal does not wait.

    Attributes:
        signal: The number of the signal, if there was one.
    """

    def __init__(self, last: Path, console: Console) -> None:
        self.signal: int | None = None
        self._last, self._console = last, console
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        # Only the main thread may set handlers.
        if threading.current_thread() is threading.main_thread():
            self._former = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        self._console.print("stopping as soon as there is a checkpoint; once more to stop at once", style="yellow")

    def _asked(self, trainer: pl.Trainer) -> bool:
        asked = self.signal is not None
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch and self._asked(trainer):
            trainer.save_checkpoint(self._last)
            raise Stopped

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._asked(trainer) and trainer.current_epoch > 0:
            raise Stopped


class Show(Callback):
    """A bar on a terminal; elsewhere plain lines: one for each epoch, and one now and then in a long one."""

    EVERY = 20.0
    """Seconds between two plain lines in an epoch."""

    def __init__(self, console: Console, epochs: int, keep: Keep) -> None:
        self._console, self._epochs, self._keep = console, epochs, keep
        self._bar: Progress | None = None
        self._epoch_start = self._last = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._console.is_terminal:
            columns = (BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(TextColumn("{task.description}"), *columns, console=self._console, transient=True)
            total = self._epochs * int(trainer.num_training_batches)
            self._bar.add_task("training", total=total, completed=trainer.global_step)
            self._bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_start = self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._last < (0.2 if self._bar else self.EVERY):
            return
        self._last = now
        epoch, loss = f"epoch {trainer.current_epoch + 1}/{self._epochs}", float(outputs["loss"])
        if self._bar:
            self._bar.update(
                self._bar.task_ids[0], completed=trainer.global_step, description=f"{epoch} loss {loss:.3f}"
            )
        else:
            self._print(f"{epoch}  step {batch_idx + 1}/{int(trainer.num_training_batches)}  loss {loss:.4f}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch = trainer.current_epoch + 1
        parts = [f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}"]
        parts.append(f"train loss {seen['train_loss']:.4f} acc {seen['train_acc']:.4f}")
        if "val_acc" in seen:
            best = " best" if seen["val_acc"] > self._keep.best_score else ""
            parts.append(f"val loss {seen['val_loss']:.4f} acc {seen['val_acc']:.4f}{best}")
        parts.append(f"{time.monotonic() - self._epoch_start:.1f} s")
        self._print("  ".join(parts))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
