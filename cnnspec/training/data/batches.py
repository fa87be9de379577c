"""Batches in an order that depends on the seed, the epoch and the place in the epoch, and on nothing else.

So a run that is resumed, in an epoch or between two, sees the batches that it would have seen, with the same
augmentation, whatever the number of workers and devices.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnnspec.diagnostics import CnnspecError, failure
from cnnspec.ir import Graph
from cnnspec.recipe import Recipe
from cnnspec.training.data.augment import Prepare
from cnnspec.training.data.datasets import ImageData, Images
from cnnspec.training.data.rng import Chance, generator_of

Batch = tuple[Tensor, Tensor]
"""Images `[N, C, H, W]` and labels `[N]`."""
_LISTENS = hasattr(signal, "SIGCHLD")  # not on Windows
PATIENCE = 3
"""How often workers that died are replaced."""
TOGETHER = 2**22
"""Numbers in the images that are made at once from those in memory: small batches wait for calls, not for arithmetic."""


class Feed(Dataset[Batch]):
    """The batches of one epoch, by their numbers; each iteration gives the same ones.

    Args:
        images: Where they come from.
        prepare: Makes the network's input.
        batch: Images per step, over all devices together.
        seed: Shuffles and augments, and leaves out a last batch that is not full; without it the images come
            in their order, unchanged, all of them.
        epoch: Number of the epoch, from 0.
        skip: How many batches have been seen before.
        rank: Number of this device.
        world: How many devices share each batch.
        workers: Processes that make batches ahead; 0 for none.
    """

    def __init__(
        self,
        images: Images,
        prepare: Prepare,
        batch: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        skip: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        self.images, self.prepare, self.batch = images, prepare, min(batch, len(images))
        self.seed, self.epoch, self.skip = seed, epoch, skip
        self.rank, self.world, self.workers = rank, world, workers
        self._order = (
            torch.arange(len(images))
            if seed is None
            else torch.randperm(len(images), generator=generator_of(seed, epoch))
        )

    @property
    def batches(self) -> int:
        """Batches in the whole epoch."""
        full, rest = divmod(len(self.images), self.batch)
        return full + (1 if rest and self.seed is None else 0)

    def __len__(self) -> int:
        """Batches that are still to come."""
        return self.batches - self.skip

    def __iter__(self) -> Iterator[Batch]:
        number = self.skip
        for attempt in range(PATIENCE + 1):
            try:
                for batch in self._ahead(number) if self.workers else self._here(number):
                    if isinstance(batch, CnnspecError):
                        raise batch
                    yield batch
                    number += 1
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                # A death shows in what torch says, or in a pipe that ends.
                if not self.workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
                    raise
                if attempt == PATIENCE:
                    raise failure(
                        "E0514",
                        "the processes that read the images die again and again",
                        notes=[" ".join(str(error).split())[:200]],
                        help="look for a broken image or for too little memory, then go on with `--resume`",
                    ) from None
                print("a process that reads images died; its batches are made again", file=sys.stderr)

    def _ahead(self, number: int) -> Iterator[Batch | CnnspecError]:
        former = signal.getsignal(signal.SIGCHLD) if _LISTENS else None
        numbers = range(number, self.batches)
        made = iter(
            DataLoader(_Told(self), batch_size=None, sampler=numbers, num_workers=self.workers, prefetch_factor=4)
        )
        if _LISTENS and threading.current_thread() is threading.main_thread():
            # torch's own handler raises wherever the process is, in the middle of a step; here a worker is missed
            # when its batch is.
            signal.signal(signal.SIGCHLD, former or signal.SIG_DFL)
        return made

    def _here(self, number: int) -> Iterator[Batch]:
        numbers = self.batch * len(self.prepare.mean) * math.prod(self.prepare.size)
        together = max(1, TOGETHER // numbers) if self.images.in_memory else 1
        for first in range(number, self.batches, together):
            yield from self._made(range(first, min(first + together, self.batches)))

    def __getitem__(self, number: int) -> Batch:
        """The batch of a number, as far as it is this device's."""
        return self._made(range(number, number + 1))[0]

    def _made(self, numbers: range) -> list[Batch]:
        """Batches in a row; what each holds does not depend on the others."""
        whole = self._order[numbers.start * self.batch : numbers.stop * self.batch]
        starts = range(0, len(whole), self.batch)
        own = [range(start + self.rank, min(start + self.batch, len(whole)), self.world) for start in starts]
        rows = torch.tensor([place for places in own for place in places], dtype=torch.long)
        indices = whole[rows]
        chance = None
        if self.seed is not None:
            generators = tuple(generator_of(self.seed, self.epoch, number + 1) for number in numbers)
            chance = Chance(generators, self.batch, rows, indices, self.seed, self.epoch, self.images.device)
        images: list[Tensor] = []
        place = 0
        for group in self.images.read(indices):
            part = chance and (chance if len(group) == len(rows) else chance.part(slice(place, place + len(group))))
            images.append(self.prepare(group, part))
            place += len(group)
        sizes = [len(places) for places in own]
        made = images[0] if len(images) == 1 else torch.cat(images)
        return list(zip(made.split(sizes), self.images.labels[indices].split(sizes), strict=True))


class _Told(Dataset[Any]):
    """The batches of a Feed in another process: a diagnostic comes back as a value, or torch would make text of it."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __getitem__(self, number: int) -> Batch | CnnspecError:
        try:
            return self.feed[number]
        except CnnspecError as error:
            return error


def plain(graph: Graph, data: ImageData) -> Prepare:
    """What brings images to a network's input, without augmentation."""
    return Prepare(graph.input_shape[1:], data.mean, data.std)


class Feeds(pl.LightningDataModule):
    """Gives each epoch its batches.

    Args:
        graph: The network.
        recipe: How it is trained.
        data: The images.
        workers: Processes that read images from files.
    """

    def __init__(self, graph: Graph, recipe: Recipe, data: ImageData, workers: int = 0) -> None:
        super().__init__()
        self.recipe, self.data, self.workers = recipe, data, workers
        self.changing = Prepare(graph.input_shape[1:], data.mean, data.std, recipe.augment)
        self.skip = 0
        """Batches of the next epoch that have been seen before an interruption."""

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        feed = Feed(
            self.data.train,
            self.changing,
            self.recipe.batch,
            seed=self.recipe.seed,
            epoch=self.trainer.current_epoch,
            skip=self.skip,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            workers=0 if self.data.train.in_memory else self.workers,
        )
        self.skip = 0
        return feed
