"""Random numbers of batches: one row for each image, whatever part of a batch is made here.

A number depends on the seed, the epoch, the batch and the image's place in it. So two devices that share a batch,
workers that make images one by one, and a run that is resumed draw the same numbers for the same image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


def generator_of(*numbers: int) -> torch.Generator:
    """Random numbers that differ for every tuple of numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Chance:
    """The random numbers of some rows of one batch or more, drawn on the CPU, so that they are the same everywhere.

    Attributes:
        generators: Of each batch; drawn from for the whole batch.
        total: Images in a whole batch, over all devices.
        rows: The places that are made here; those of the second batch begin at `total`.
        indices: The images at these places, by their number in the training set.
        seed: The run's.
        epoch: From 0.
        device: Where the images are; the numbers are brought there.
    """

    generators: tuple[torch.Generator, ...]
    total: int
    rows: Tensor
    indices: Tensor
    seed: int = 0
    epoch: int = 0
    device: torch.device = CPU

    @classmethod
    def of(cls, seed: int, total: int, epoch: int = 0, number: int = 0) -> Chance:
        """For a whole batch of images that are numbered from 0."""
        rows = torch.arange(total)
        return cls((generator_of(seed, epoch, number + 1),), total, rows, rows, seed, epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, places: slice) -> Chance:
        """For some of these rows; the generators' numbers are drawn again from here on."""
        again = tuple(torch.Generator() for _ in self.generators)
        for mine, theirs in zip(again, self.generators, strict=True):
            mine.set_state(theirs.get_state())
        return replace(self, generators=again, rows=self.rows[places], indices=self.indices[places])

    def rand(self, *tail: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers from 0 to 1, `[rows, *tail]`."""
        drawn = [torch.rand(self.total, *tail, generator=generator, dtype=dtype) for generator in self.generators]
        return torch.cat(drawn)[self.rows].to(self.device)

    def uniform(self, low: float, high: float, *tail: int) -> Tensor:
        """Numbers from `low` to `high`, `[rows, *tail]`."""
        return self.rand(*tail) * (high - low) + low

    def below(self, limit: Tensor | int) -> Tensor:
        """An integer from 0 to `limit - 1` for each row; `limit` is a number, or `[rows]` or `[rows, 1]`."""
        tail = limit.shape[1:] if isinstance(limit, Tensor) else ()
        return (self.rand(*tail, dtype=torch.float64) * limit).long()

    def seeds(self) -> list[int]:
        """A seed for each row."""
        return self.below(2**31).tolist()
