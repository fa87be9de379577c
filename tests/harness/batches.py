"""Run code while a run fetches its batches."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from cnnspec.training.data.batches import Batch, EpochBatches


def watch(patch: pytest.MonkeyPatch, act: Callable[[EpochBatches, int, Batch], None]) -> None:
    """Call `act` with each batch and its index before the run receives it."""
    batches = EpochBatches.__iter__

    def watched(self: EpochBatches) -> Iterator[Batch]:
        for number, batch in enumerate(batches(self), self.skip):
            act(self, number, batch)
            yield batch

    patch.setattr(EpochBatches, "__iter__", watched)


def stop_at(patch: pytest.MonkeyPatch, epoch: int, batch: int, number: int = signal.SIGTERM) -> None:
    """Send a signal before a training batch."""

    def act(batches: EpochBatches, place: int, _: Batch) -> None:
        if batches.seed is not None and (batches.epoch, place) == (epoch, batch):
            os.kill(os.getpid(), number)

    watch(patch, act)
