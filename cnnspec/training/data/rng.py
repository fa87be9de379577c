"""Random numbers for batches, one row per image, independent of how a batch is divided.

A number depends on the seed, the epoch, the batch and the position of the image in it. So devices that share a batch,
workers that process images one by one, and a resumed run draw the same numbers for the same image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnspec.training.data.device import to_device


def make_generator(*numbers: int) -> torch.Generator:
    """Return a generator with a different seed for every tuple of numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


CPU = torch.device("cpu")


class _Draws:
    """The numbers of whole batches, each drawn once, whatever the number of rows that use them.

    Args:
        generators: One per batch.
        total: The number of images in a whole batch.
    """

    def __init__(self, generators: tuple[torch.Generator, ...], total: int) -> None:
        self._generators, self._total = generators, total
        self._drawn: list[Tensor] = []

    def get(self, number: int, tail: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the numbers `[batches * total, *tail]` of a draw, counted from 0."""
        if number == len(self._drawn):
            shape = (self._total, *tail)
            parts = [torch.rand(shape, generator=generator, dtype=dtype) for generator in self._generators]
            self._drawn.append(torch.cat(parts))
        found = self._drawn[number]
        assert (found.shape[1:], found.dtype) == (tail, dtype), "all rows of a batch make the same draws"
        return found


@dataclass
class BatchRng:
    """Random numbers for some rows of one or more batches. They are drawn on the CPU, so that all devices agree.

    Attributes:
        draws: The numbers of the whole batches.
        rows: The positions to draw for. Those of the second batch start at `total`.
        indices: The indices of the images at these positions in the training set.
        seed: The seed of the run.
        epoch: The epoch, from 0.
        device: The device of the images, to which numbers are moved.
        position: The number of draws so far.
    """

    draws: _Draws
    rows: Tensor
    indices: Tensor
    seed: int = 0
    epoch: int = 0
    device: torch.device = CPU
    position: int = 0

    @classmethod
    def of(
        cls, generators: tuple[torch.Generator, ...], total: int, rows: Tensor, indices: Tensor, **more: Any
    ) -> BatchRng:
        """Create the rng of some rows.

        Args:
            generators: One per batch. Each draw is for the whole batch.
            total: The number of images in a whole batch, over all devices.
            rows: The positions to draw for. Those of the second batch start at `total`.
            indices: The indices of the images at these positions in the training set.
            **more: Other attributes.
        """
        return cls(_Draws(generators, total), rows, indices, **more)

    @classmethod
    def for_batch(cls, seed: int, total: int, epoch: int = 0, number: int = 0) -> BatchRng:
        """Create the rng of a whole batch of images with the indices 0, 1, ..."""
        rows = torch.arange(total)
        return cls.of((make_generator(seed, epoch, number + 1),), total, rows, rows, seed=seed, epoch=epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, places: slice) -> BatchRng:
        """Return the rng for some of the rows, which makes the same draws from here on."""
        return replace(self, rows=self.rows[places], indices=self.indices[places])

    def rand(self, *tail: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw numbers in [0, 1), `[rows, *tail]`."""
        drawn = self.draws.get(self.position, tail, dtype)
        self.position += 1
        return to_device(drawn[self.rows], self.device)

    def uniform(self, low: float, high: float, *tail: int) -> Tensor:
        """Draw numbers in [low, high), `[rows, *tail]`."""
        return self.rand(*tail) * (high - low) + low

    def randint(self, limit: Tensor | int) -> Tensor:
        """Draw an integer from 0 to `limit - 1` per row. `limit` is a number, or a tensor `[rows]` or `[rows, 1]`."""
        tail = limit.shape[1:] if isinstance(limit, Tensor) else ()
        return (self.rand(*tail, dtype=torch.float64) * limit).long()

    def seeds(self) -> list[int]:
        """Draw a seed per row."""
        return self.randint(2**31).tolist()
