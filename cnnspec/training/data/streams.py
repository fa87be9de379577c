"""Read images from shards that do not fit on one disk, with the streams of the Hugging Face `datasets` library.

Shards are the files of a dataset, or the row groups of Parquet files. All labels are read once, so the number
of images and steps is known. In training, the order of an epoch permutes the shards and shuffles within a window of
consecutive rows. It depends on the seed and the epoch only: a resumed run skips to its position in the order, and
devices share each batch, so no row is lost or read twice.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.resources import available_cores
from cnnspec.training.data.images import open_image
from cnnspec.training.data.threads import in_order

MAX_OPEN = 4
"""The maximum number of shards that are read at the same time."""
KEPT_WINDOWS = 4
"""The number of windows of rows that are kept in memory, not decoded, until they are used."""


class Shards:
    """A source of images: shards that are read row by row. Only `order` is fast.

    Args:
        rows: A stream with the column of images, which the library does not decode.
        counts: The number of rows of each shard.
        column: The column of images.
        channels: 1 for grayscale, 3 for RGB.
        window: The number of consecutive rows that are shuffled together.
        name: The name of the dataset and the split, for messages.
    """

    def __init__(self, rows: Any, counts: Sequence[int], column: str, channels: int, window: int, name: str) -> None:
        self._rows, self._counts, self._column, self._channels, self._name = rows, counts, column, channels, name
        self.window = window
        self.starts = torch.tensor([0, *counts]).cumsum(0)[:-1]
        """The position of the first row of each shard."""
        self._open: OrderedDict[int, tuple[Iterator[Any], int]] = OrderedDict()
        self._kept: OrderedDict[int, bytes | None] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": OrderedDict(), "_kept": OrderedDict()}  # connections are not shared

    def order(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order of an epoch, `[N]`: shards in random order, and rows shuffled in windows."""
        shards = torch.searchsorted(self.starts, positions, right=True) - 1
        rank = torch.randperm(len(self.starts), generator=generator)
        order = torch.argsort(rank[shards], stable=True)
        windows = (window[torch.randperm(len(window), generator=generator)] for window in order.split(self.window))
        return torch.cat([order[:0], *windows])

    def images(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Yield the images at some positions. Several are decoded at a time.

        Raises:
            CnnspecError: E0502 if a shard cannot be read or has changed, E0503 if an image is unsuitable.
        """
        contents = ((position, self._content(position)) for position in positions)
        return in_order(lambda image: self._decode(*image), contents, available_cores())

    def _decode(self, position: int, content: bytes | None) -> Tensor:
        place = f"row {position} of {self._name}"
        if content is None:  # a path or address, which a dataset could point anywhere
            raise failure("E0503", f"{place} does not contain its image, but a path to it")
        return open_image(io.BytesIO(content), self._channels, place)

    def _content(self, position: int) -> bytes | None:
        """Return the bytes of an image, and keep those of the rows that are passed on the way to it."""
        if position not in self._kept:
            shard = int(torch.searchsorted(self.starts, position, right=True)) - 1
            offset, count = position - int(self.starts[shard]), self._counts[shard]
            # A small shard is read as a whole, because the rest of it belongs to the same window or the next one.
            self._advance(shard, *((0, count) if count <= self.window else (offset, offset + 1)))
        return self._kept.pop(position)

    def _advance(self, shard: int, offset: int, end: int) -> None:
        first = int(self.starts[shard])
        try:
            iterator, place = self._open.pop(shard, (None, 0))
            if iterator is None or place > offset:
                place = offset
                iterator = iter(self._rows.shard(num_shards=len(self._counts), index=shard).skip(place))
            for row in islice(iterator, end - place):
                self._kept[first + place] = row[self._column]["bytes"]
                place += 1
        except CnnspecError:
            raise
        except Exception as error:  # noqa: BLE001  the library raises many types for files and connections
            raise _unreadable(shard, self._name, one_line(error, 300) or type(error).__name__) from None
        if place < end:
            raise _unreadable(shard, self._name, f"it had {self._counts[shard]:,} rows at the start, now {place:,}")
        if place < self._counts[shard]:
            self._open[shard] = iterator, place
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        while len(self._kept) > KEPT_WINDOWS * self.window + end - offset:  # rows of other devices
            self._kept.popitem(last=False)


def _unreadable(shard: int, name: str, reason: str) -> CnnspecError:
    message = f"cannot read shard {shard} of `{name}`"
    help = "check the files and the connection, then resume with `--resume`"
    return failure("E0502", message, notes=[reason], help=help)


def read_labels(rows: Any, column: str, name: str) -> list[list[Any]]:
    """Return the labels of the rows of each shard of a stream.

    Raises:
        CnnspecError: E0502 if a shard cannot be read.
    """
    found: list[list[Any]] = []
    for shard in range(rows.num_shards):
        labels: list[Any] = []
        try:
            for table in rows.shard(num_shards=rows.num_shards, index=shard).with_format("arrow").iter(10_000):
                labels += table[column].to_pylist()
        except Exception as error:  # noqa: BLE001  the library raises many types for files and connections
            raise _unreadable(shard, name, one_line(error, 300) or type(error).__name__) from None
        found.append(labels)
    return found
