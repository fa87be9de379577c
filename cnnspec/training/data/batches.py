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
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cnnspec.diagnostics import CnnspecError, echo, failure, one_line
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.datasets import Images
from cnnspec.training.data.device import to_device
from cnnspec.training.data.rng import BatchRng, make_generator
from cnnspec.training.data.sources import Records

Batch = tuple[Tensor, Tensor]
"""Images `[N, C, H, W]` and labels `[N]`."""
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
        stop: The number of the batch to stop before, by default that after the last one.
        rank: The index of this device.
        world: The number of devices that share each batch.
        block: The number of consecutive images of a batch that stay on one device.
        workers: The processes that load batches ahead, None for this process.
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
        stop: int | None = None,
        rank: int = 0,
        world: int = 1,
        block: int = 1,
        workers: Workers | None = None,
    ) -> None:
        self.images, self.preprocess, self.batch = images, preprocess, min(batch, len(images))
        self.seed, self.skip, self.stop = seed, skip, stop
        self.rank, self.world, self.block = rank, world, block
        # Each worker would read all rows of a stream, which decodes images in threads.
        alone = isinstance(images, Records) and images.one_process
        self.workers = workers if workers is not None and workers.count and not alone else None
        self._settings = preprocess.fixed, preprocess.augment, self.batch, seed, rank, world, block
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Change the epoch, and with it the order of the images."""
        self.epoch = epoch
        generator = None if self.seed is None else make_generator(self.seed, epoch)
        self._order = torch.arange(len(self.images)) if generator is None else self.images.order(generator)

    def differs_only_in_epoch(self, other: EpochBatches) -> bool:
        """Return whether other batches are of the same images, and created in the same way."""
        return self.images is other.images and self._settings == other._settings

    @property
    def num_batches(self) -> int:
        """The number of batches in the whole epoch."""
        full, rest = divmod(len(self.images), self.batch)
        return full + (1 if rest and self.seed is None else 0)

    @property
    def numbers(self) -> range:
        """The numbers of the batches to iterate over."""
        return range(self.skip, self.num_batches if self.stop is None else min(self.stop, self.num_batches))

    def __len__(self) -> int:
        """Return the number of remaining batches."""
        return len(self.numbers)

    def __iter__(self) -> Iterator[Batch]:
        return self._iterate() if self.workers is None else self._iterate_workers(self.workers)

    def _iterate_workers(self, workers: Workers) -> Iterator[Batch]:
        number, deaths = self.skip, 0
        while number < self.numbers.stop:
            try:
                batch = workers.load(self, number)
            except WORKER_ERRORS as error:
                if not worker_died(error):
                    raise
                workers.close()
                workers.epochs = 0  # an image that kills workers in the next epoch must not end this one
                if deaths == MAX_RESTARTS:
                    raise failure(
                        "E0514",
                        "the data loader workers keep failing",
                        notes=[one_line(error)],
                        help="check for a corrupt image file or too little memory, then resume with `--resume`",
                    ) from None
                deaths += 1
                echo("a data loader worker died; its batches are loaded again", file=sys.stderr)
                continue
            if isinstance(batch, CnnspecError):
                raise batch
            yield batch
            number += 1

    def _iterate(self) -> Iterator[Batch]:
        values = self.batch * len(self.preprocess.mean) * math.prod(self.preprocess.size)
        most = GROUP_VALUES.get(self.images.device.type, GROUP_VALUES["cpu"])
        group_size = max(1, most // values) if self.images.in_memory else 1
        for first in range(len(self))[::group_size]:
            yield from self._make_batches(self.numbers[first : first + group_size])

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


class Workers:
    """Processes that load batches ahead. They are kept from one epoch to the next, until `close`.

    Args:
        count: The maximum number of processes, 0 for none.
        epochs: The number of epochs of a run: after the last batches of an epoch, the first ones of the next epoch are
            loaded. By default, the batches of an epoch are loaded from its start.
    """

    def __init__(self, count: int = 0, epochs: int = 0) -> None:
        self.count, self.epochs = count, epochs
        self._batches: EpochBatches | None = None
        self._loader: Any = None
        self._loaded: Any = None
        self._first: _Place | None = None
        self._next: _Place | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, batches: EpochBatches, number: int) -> Batch | CnnspecError:
        """Return a batch, which was loaded ahead if it follows the previous one."""
        if self._batches is None or not batches.differs_only_in_epoch(self._batches):
            self.close()
            self._loader = DataLoader(
                _WorkerBatches(batches),
                batch_size=None,
                sampler=self,  # type: ignore[arg-type]
                num_workers=min(self.count, batches.num_batches),
                prefetch_factor=4,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_ignore_requests,
                persistent_workers=True,
            )
        self._batches, place = batches, (batches.epoch, number)
        if self._next != place:
            self._first = place
            self._loaded = start(self._loader)
        self._next = None  # after an error, the place is not known
        loaded = next(self._loaded)
        self._next = self._following(place)
        return loaded

    def __iter__(self) -> Iterator[_Place]:
        """Yield the places of the batches to load, as the sampler of the loader."""
        place = self._first
        while place is not None:
            yield place
            place = self._following(place)

    def _following(self, place: _Place) -> _Place | None:
        (epoch, number), batches = place, self._batches
        if batches is not None and number + 1 < batches.numbers.stop:
            return epoch, number + 1
        return (epoch + 1, 0) if epoch + 1 < self.epochs else None

    def close(self) -> None:
        """End the processes. Loading another batch starts new ones."""
        if self._loaded is not None:
            stop(self._loaded)
        self._batches = self._loader = self._loaded = self._next = None


_Place = tuple[int, int]
"""The epoch and the number of a batch."""


class _WorkerBatches(Dataset[Any]):
    """The batches in a worker process. It returns diagnostics as values, because torch converts exceptions to text."""

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = copy(batches)
        self.batches.workers = None

    def __getitem__(self, place: _Place) -> Batch | CnnspecError:
        epoch, number = place
        if epoch != self.batches.epoch:
            self.batches.set_epoch(epoch)
        try:
            return self.batches[number]
        except CnnspecError as error:
            return error


def _ignore_requests(_: int) -> None:
    """Ignore requests to stop, which a terminal or SLURM sends to all processes: the run ends its workers."""
    for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGUSR1", "SIGHUP")):
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


WORKER_ERRORS = RuntimeError, ConnectionError, EOFError
"""The types of errors that the death of a worker causes: a message from torch, or a closed pipe."""


def worker_died(error: Exception) -> bool:
    """Return whether one of `WORKER_ERRORS` means that a worker died.

    If a worker raised it instead, torch has put `Caught RuntimeError in DataLoader worker` before its message.
    """
    message = str(error)
    return message.startswith("DataLoader worker") if isinstance(error, RuntimeError) else message[:7] != "Caught "


def start(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start to iterate over a loader, without the signal handler of torch.

    The handler raises at any point, even within a step. Without it, a dead worker is noticed when its batch is missing.
    """
    if not hasattr(signal, "SIGCHLD"):  # Windows
        return iter(loader)
    previous = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, previous or signal.SIG_DFL)
    return iterator


def stop(iterator: Iterator[Any]) -> None:
    """End the processes of a loader, which otherwise live as long as its iterator: an exception can keep it."""
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        iterator._shutdown_workers()  # torch has no public function for it


def steps_per_epoch(images: Images, batch: int) -> int:
    """Return the number of optimizer steps of an epoch. An incomplete last batch is dropped."""
    return max(1, len(images) // batch)
