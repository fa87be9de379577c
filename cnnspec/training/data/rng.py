"""Random numbers for batches, one row per image, independent of how a batch is divided.

A number depends on the seed, the epoch, the batch and the position of the image in it. So devices that share a batch,
workers that process images one by one, and a resumed run draw the same numbers for the same image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cnnspec.training.data.device import to_device


def make_generator(*numbers: int) -> torch.Generator:
    """Return a generator with a different seed for every tuple of numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


CPU = torch.device("cpu")


@dataclass(frozen=True)
class BatchRng:
    """Random numbers for some rows of one or more batches. They are drawn on the CPU, so that all devices agree.

    Attributes:
        generators: One per batch. Each draw is for the whole batch.
        total: The number of images in a whole batch, over all devices.
        rows: The positions to draw for. Those of the second batch start at `total`.
        indices: The indices of the images at these positions in the training set.
        seed: The seed of the run.
        epoch: The epoch, from 0.
        device: The device of the images, to which numbers are moved.
    """

    generators: tuple[torch.Generator, ...]
    total: int
    rows: Tensor
    indices: Tensor
    seed: int = 0
    epoch: int = 0
    device: torch.device = CPU

    @classmethod
    def for_batch(cls, seed: int, total: int, epoch: int = 0, number: int = 0) -> BatchRng:
        """Create the rng of a whole batch of images with the indices 0, 1, ..."""
        rows = torch.arange(total)
        return cls((make_generator(seed, epoch, number + 1),), total, rows, rows, seed, epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, places: slice) -> BatchRng:
        """Return the rng for some of the rows, with copies of the generators in their current state."""
        copies = tuple(torch.Generator() for _ in self.generators)
        for copy, original in zip(copies, self.generators, strict=True):
            copy.set_state(original.get_state())
        return replace(self, generators=copies, rows=self.rows[places], indices=self.indices[places])

    def rand(self, *tail: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw numbers in [0, 1), `[rows, *tail]`."""
        drawn = [torch.rand(self.total, *tail, generator=generator, dtype=dtype) for generator in self.generators]
        return to_device(torch.cat(drawn)[self.rows], self.device)

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
