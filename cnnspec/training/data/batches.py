"""Create batches whose order and content depend only on the seed, the epoch and the position in the epoch.

A run that is resumed, within an epoch or between two, sees the batches it would have seen without the interruption,
with the same augmentation, for any number of workers and devices.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnnspec.diagnostics import CnnspecError, echo, failure, one_line
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.datasets import Images
from cnnspec.training.data.device import to_device
from cnnspec.training.data.rng import BatchRng, make_generator
from cnnspec.training.data.sources import Records

Batch = tuple[Tensor, Tensor]
"""Images `[N, C, H, W]` and labels `[N]`."""
_HAS_SIGCHLD = hasattr(signal, "SIGCHLD")  # not on Windows
MAX_RESTARTS = 3
"""The number of times that dead workers are replaced."""
GROUP_VALUES = {"cpu": 2**22, "cuda": 2**26}
"""The number of values to preprocess at a time from images in memory. Small batches are bound by call overhead."""


class EpochBatches(Dataset[Batch]):
    """The batches of one epoch. Iterating again yields the same batches.

    Args:
        images: The images.
        preprocess: Turns images into the input of the network.
        batch: Images per step, over all devices.
        seed: Enables shuffling and augmentation, and drops an incomplete last batch. With None, all images come in
            order and without augmentation.
        epoch: The index of the epoch, from 0.
        skip: The number of batches to skip at the start.
        rank: The index of this device.
        world: The number of devices that share each batch.
        block: The number of consecutive images of a batch that stay on one device.
        workers: The number of processes that load batches ahead, 0 for none.
    """

    def __init__(
        self,
        images: Images,
        preprocess: Preprocess,
        batch: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        skip: int = 0,
        rank: int = 0,
        world: int = 1,
        block: int = 1,
        workers: int = 0,
    ) -> None:
        self.images, self.preprocess, self.batch = images, preprocess, min(batch, len(images))
        self.seed, self.epoch, self.skip = seed, epoch, skip
        # Each worker would read all rows of a stream, which decodes images in threads.
        alone = isinstance(images, Records) and images.source.one_process
        self.rank, self.world, self.block, self.workers = rank, world, block, 0 if alone else workers
        self._order = torch.arange(len(images)) if seed is None else images.order(make_generator(seed, epoch))

    @property
    def num_batches(self) -> int:
        """The number of batches in the whole epoch."""
        full, rest = divmod(len(self.images), self.batch)
        return full + (1 if rest and self.seed is None else 0)

    def __len__(self) -> int:
        """Return the number of remaining batches."""
        return self.num_batches - self.skip

    def __iter__(self) -> Iterator[Batch]:
        number = self.skip
        for attempt in range(MAX_RESTARTS + 1):
            try:
                for batch in self._iterate_workers(number) if self.workers else self._iterate(number):
                    if isinstance(batch, CnnspecError):
                        raise batch
                    yield batch
                    number += 1
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                # The death of a worker shows in the message from torch or in a closed pipe.
                if not self.workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
                    raise
                if attempt == MAX_RESTARTS:
                    raise failure(
                        "E0514",
                        "the data loader workers keep failing",
                        notes=[one_line(error)],
                        help="check for a corrupt image file or too little memory, then resume with `--resume`",
                    ) from None
                echo("a data loader worker died; its batches are loaded again", file=sys.stderr)

    def _iterate_workers(self, number: int) -> Iterator[Batch | CnnspecError]:
        previous = signal.getsignal(signal.SIGCHLD) if _HAS_SIGCHLD else None
        numbers = range(number, self.num_batches)
        batches = _WorkerBatches(self)
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,
            num_workers=self.workers,
            prefetch_factor=4,
            pin_memory=torch.cuda.is_available(),
        )
        iterator = iter(loader)
        if _HAS_SIGCHLD and threading.current_thread() is threading.main_thread():
            # The handler from torch raises at any point, even within a step. Without it, a dead worker is noticed when
            # its batch is missing.
            signal.signal(signal.SIGCHLD, previous or signal.SIG_DFL)
        return iterator

    def _iterate(self, number: int) -> Iterator[Batch]:
        values = self.batch * len(self.preprocess.mean) * math.prod(self.preprocess.size)
        most = GROUP_VALUES.get(self.images.device.type, GROUP_VALUES["cpu"])
        group_size = max(1, most // values) if self.images.in_memory else 1
        for first in range(number, self.num_batches, group_size):
            yield from self._make_batches(range(first, min(first + group_size, self.num_batches)))

    def __getitem__(self, number: int) -> Batch:
        """Return this device's part of a batch."""
        return self._make_batches(range(number, number + 1))[0]

    def _own_positions(self, start: int, stop: int) -> list[int]:
        """Return the positions of this device in a batch: every `world`-th block."""
        blocks = range(start + self.rank * self.block, stop, self.world * self.block)
        return [position for first in blocks for position in range(first, min(first + self.block, stop))]

    def _make_batches(self, numbers: range) -> list[Batch]:
        """Create consecutive batches. The content of each is independent of the others."""
        order = self._order[numbers.start * self.batch : numbers.stop * self.batch]
        starts = range(0, len(order), self.batch)
        own = [self._own_positions(start, min(start + self.batch, len(order))) for start in starts]
        rows = torch.tensor([position for positions in own for position in positions], dtype=torch.long)
        indices = order[rows]
        rng = None
        if self.seed is not None:
            generators = tuple(make_generator(self.seed, self.epoch, number + 1) for number in numbers)
            rng = BatchRng.of(
                generators,
                self.batch,
                rows,
                indices,
                seed=self.seed,
                epoch=self.epoch,
                device=self.images.device,
            )
        images: list[Tensor] = []
        position = 0
        for group in self.images.read(indices):
            part = rng and (rng if len(group) == len(rows) else rng.select(slice(position, position + len(group))))
            images.append(self.preprocess(group, part))
            position += len(group)
        sizes = [len(positions) for positions in own]
        inputs = images[0] if len(images) == 1 else torch.cat(images)
        labels = self.images.labels.index_select(0, to_device(indices, self.images.labels.device))
        return list(zip(inputs.split(sizes), labels.split(sizes), strict=True))


class _WorkerBatches(Dataset[Any]):
    """The batches in a worker process. It returns diagnostics as values, because torch converts exceptions to text."""

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches

    def __getitem__(self, number: int) -> Batch | CnnspecError:
        try:
            return self.batches[number]
        except CnnspecError as error:
            return error


def steps_per_epoch(images: Images, batch: int) -> int:
    """Return the number of optimizer steps of an epoch. An incomplete last batch is dropped."""
    return max(1, len(images) // batch)
