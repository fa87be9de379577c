"""Batches in an order that depends on the seed, the epoch and the place in the epoch, and on nothing else.

So a run that is resumed, in an epoch or between two, sees the batches that it would have seen, with the same
augmentation, whatever the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from cnnspec.ir import Graph
from cnnspec.recipe import Recipe
from cnnspec.training.augment import Prepare
from cnnspec.training.data import ImageData, Images

Batch = tuple[Tensor, Tensor]
"""Images `[N, C, H, W]` and labels `[N]`."""


class Feed:
    """The batches of one epoch; each iteration gives the same ones.

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
        threads: How many batches are made ahead, each by a thread; 0 for none.
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
        threads: int = 0,
    ) -> None:
        self.images, self.prepare, self.batch = images, prepare, min(batch, len(images))
        self.seed, self.epoch, self.skip = seed, epoch, skip
        self.rank, self.world, self.threads = rank, world, threads

    def __len__(self) -> int:
        """Batches in the whole epoch, those that are skipped included."""
        full, rest = divmod(len(self.images), self.batch)
        return full + (1 if rest and self.seed is None else 0)

    def __iter__(self) -> Iterator[Batch]:
        numbers = range(self.skip, len(self))
        order = self._order()
        if not self.threads:
            yield from (self._make(order, number) for number in numbers)
            return
        ahead: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.threads)
        try:
            for number in numbers:
                ahead.append(pool.submit(self._make, order, number))
                if len(ahead) > self.threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _order(self) -> Tensor:
        if self.seed is None:
            return torch.arange(len(self.images))
        return torch.randperm(len(self.images), generator=_generator(self.seed, self.epoch))

    def _make(self, order: Tensor, number: int) -> Batch:
        indices = order[number * self.batch : (number + 1) * self.batch][self.rank :: self.world]
        generator = None if self.seed is None else _generator(self.seed, self.epoch, number + 1, self.rank)
        images = [self.prepare(group, generator) for group in self.images.read(indices)]
        together = images[0] if len(images) == 1 else torch.cat(images)
        return together, self.images.labels[indices]


def _generator(*numbers: int) -> torch.Generator:
    """Random numbers that differ for every tuple of numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def plain(graph: Graph, data: ImageData) -> Prepare:
    """What brings images to a network's input, without augmentation."""
    return Prepare(graph.input_shape[1:], data.mean, data.std)


class Feeds(pl.LightningDataModule):
    """Gives each epoch its batches; where it stands follows from the number of steps done."""

    def __init__(self, graph: Graph, recipe: Recipe, data: ImageData) -> None:
        super().__init__()
        self.recipe, self.data = recipe, data
        self.plain = plain(graph, data)
        self.changing = Prepare(graph.input_shape[1:], data.mean, data.std, recipe.augment)

    def _threads(self, in_memory: bool) -> int:
        assert self.trainer is not None
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        # Small batches in memory are ready sooner than a second thread would be.
        return 0 if in_memory and on_cpu else min(4, os.cpu_count() or 1)

    def train_dataloader(self) -> Feed:
        assert self.trainer is not None
        feed = Feed(
            self.data.train,
            self.changing,
            self.recipe.batch,
            seed=self.recipe.seed,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            threads=self._threads(self.data.train.in_memory),
        )
        feed.epoch, feed.skip = divmod(self.trainer.global_step, len(feed))
        return feed

    def val_dataloader(self) -> Any:
        # Every device sees every image, so that the accuracy is exact.
        val = self.data.val
        return [] if val is None else Feed(val, self.plain, self.recipe.batch, threads=self._threads(val.in_memory))
