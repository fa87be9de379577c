"""What tests do while a run fetches its batches."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from cnnspec.training.data.batches import Batch, Feed


def watch(patch: pytest.MonkeyPatch, act: Callable[[Feed, int, Batch], None]) -> None:
    """Calls `act` with each batch and its number before it is handed out."""
    batches = Feed.__iter__

    def watched(self: Feed) -> Iterator[Batch]:
        for number, batch in enumerate(batches(self), self.skip):
            act(self, number, batch)
            yield batch

    patch.setattr(Feed, "__iter__", watched)


def stop_at(patch: pytest.MonkeyPatch, epoch: int, batch: int, number: int = signal.SIGTERM) -> None:
    """Sends a signal in front of a batch of training."""

    def act(feed: Feed, place: int, _: Batch) -> None:
        if feed.seed is not None and (feed.epoch, place) == (epoch, batch):
            os.kill(os.getpid(), number)

    watch(patch, act)
