"""Images of one split that are read by their position, from files, rows or decoded images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cnnspec.training.data.images import read_image


class Source(Protocol):
    """Images by their position. Without the members below, any process can read them in any order."""

    def images(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Yield the images as groups `[n, C, h, w]` of one size each, in the order of the positions."""
        ...


@runtime_checkable
class Movable(Source, Protocol):
    """Images in the memory of a device."""

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        ...

    def to(self, device: torch.device) -> Source:
        """Return the images in the memory of another device."""
        ...


@runtime_checkable
class Sequential(Source, Protocol):
    """Images that are fast to read only in their own random order, by one process: others would read the same rows."""

    def order(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random order of some ascending positions, as indices of them."""
        ...


@dataclass(frozen=True)
class Files:
    """Images in files."""

    paths: tuple[Path, ...]
    channels: int

    def images(self, positions: Sequence[int]) -> Iterator[Tensor]:
        return (read_image(self.paths[position], self.channels) for position in positions)


@dataclass(frozen=True)
class Rows:
    """Images of a table or a program, read by a function that returns bytes `[1, C, h, w]`."""

    read_one: Callable[[int], Tensor] = field(repr=False)

    def images(self, positions: Sequence[int]) -> Iterator[Tensor]:
        return map(self.read_one, positions)


@dataclass(frozen=True)
class Records:
    """Images of one split in a source.

    Attributes:
        source: The source.
        positions: The positions of the images in the source, `[N]`.
        labels: The labels, `[N]`.
    """

    source: Source = field(repr=False)
    positions: Tensor
    labels: Tensor

    @classmethod
    def of(cls, source: Source, labels: Tensor) -> Records:
        """Return all images of a source."""
        return cls(source, torch.arange(len(labels)), labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.source.device if isinstance(self.source, Movable) else torch.device("cpu")

    @property
    def one_process(self) -> bool:
        """Whether several processes would read the same rows."""
        return isinstance(self.source, Sequential)

    @property
    def in_memory(self) -> bool:
        """Whether the images are on a device, which processes cannot share."""
        return self.device.type != "cpu"

    def read(self, indices: Tensor) -> Iterator[Tensor]:
        """Yield the images as groups `[n, C, h, w]` of one size each, in the order of the indices."""
        return self.source.images(self.positions[indices].tolist())

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the order of an epoch, `[N]`."""
        if isinstance(self.source, Sequential):
            return self.source.order(self.positions, generator)
        return torch.randperm(len(self), generator=generator)

    def subset(self, indices: Tensor) -> Records:
        """Return the images at these indices. Those of shards must ascend."""
        return replace(self, positions=self.positions[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> Records:
        """Return the images in the memory of a device, if they are in memory."""
        return replace(self, source=self.source.to(device)) if isinstance(self.source, Movable) else self

    def paths(self) -> list[Path] | None:
        """Return the file of each image, or None if they are not files."""
        if not isinstance(self.source, Files):
            return None
        return [self.source.paths[position] for position in self.positions.tolist()]
