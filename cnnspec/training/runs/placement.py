"""Decide where the images of a run are kept, and put them there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cnnspec.analysis.cost import count, training_memory
from cnnspec.diagnostics import CnnspecError, did_you_mean, failure
from cnnspec.ir import Graph
from cnnspec.recipe import Recipe
from cnnspec.resources import available_cores
from cnnspec.training.data.datasets import ImageData, Pixels
from cnnspec.training.data.decoded import Headers, cache_in_file, cache_in_memory, read_headers
from cnnspec.training.data.sources import Files, Records
from cnnspec.training.data.threads import MAX_THREADS
from cnnspec.training.loop.machine import available_memory, free_memory

PLACES = ("auto", "ram", "device", "disk", "off")
"""The values of the option `cache`."""
MEMORY_FRACTION = 0.8
"""The fraction of a device's free memory that the estimate must fit into for the images to be placed there."""
RAM_FRACTION, REQUESTED_FRACTION = 0.25, 0.5
"""The fraction of the available memory that decoded images may take, by default and if `ram` is requested. The training
processes of a machine share it."""


@dataclass(frozen=True)
class Placement:
    """The place of the training and validation images during a run.

    Attributes:
        place: `ram`, `device`, `disk`, or `off` if the files are read in each epoch.
        nbytes: The size of the images in bytes, None if it is not known.
        limit: The memory for decoded images in bytes, or None if they are in memory anyway.
        reason: The reason for `off`.
        headers: The headers of the training and the validation images, if they are files to cache.
    """

    place: str
    nbytes: int | None = None
    limit: int | None = None
    reason: str | None = None
    headers: tuple[Headers, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        size = "" if self.nbytes is None else f", {self.nbytes / 2**20:,.1f} MiB"
        limit = "" if self.limit is None else f" (limit {self.limit / 2**20:,.1f} MiB)"
        reason = "" if self.reason is None else f", {self.reason}"
        return f"{self.place}{size}{limit}{reason}"

    def to_json(self) -> dict[str, Any]:
        return {"place": self.place, "nbytes": self.nbytes, "limit": self.limit, "reason": self.reason}


def memory(graph: Graph, recipe: Recipe, data: int) -> dict[str, int]:
    """Estimate the memory of a run in bytes. `activations` are those saved for the backward pass, `data` the images."""
    step = training_memory(replace(graph, recipe=recipe))
    found = {
        "weights": step.weights,
        "gradients": step.gradients,
        "optimizer": step.optimizer,
        "activations": count(graph).saved_total.at(-(-recipe.batch // recipe.accumulate)),
        "data": data,
    }
    return {**found, "total": sum(found.values()), "checkpoint": step.weights + step.optimizer}


def choose_placement(
    data: ImageData,
    cache: str,
    graph: Graph,
    recipe: Recipe,
    device: torch.device,
    *,
    processes: int = 1,
    poll: Callable[[], None] = lambda: None,
) -> Placement:
    """Choose the place of the images.

    Args:
        data: The dataset.
        cache: The option `cache`.
        graph: The network.
        recipe: The recipe.
        device: The device that trains.
        processes: The number of training processes of this machine.
        poll: Called while the headers of images are read. An exception ends this.

    Raises:
        CnnspecError: E0510 if the place does not exist or is not one for these images, E0513 if they do not fit there.
    """
    if cache not in PLACES:
        help = did_you_mean(cache, PLACES) or f"use one of {', '.join(PLACES)}"
        raise failure("E0510", f"unknown value `{cache}` of the option `cache`", help=help)

    def fits(nbytes: int) -> bool:
        return memory(graph, recipe, nbytes)["total"] <= MEMORY_FRACTION * free_memory(device)

    if isinstance(data.train, Pixels):
        return _place_pixels(data, cache, fits(data.nbytes), device)
    if not isinstance(data.train.source, Files):
        if cache in ("auto", "off"):
            return Placement("off", reason=f"the images of `{data.name}` are read when they are needed")
        message = f"`--cache {cache}` is not supported for these images"
        notes = [f"only the image files of `data folder` are cached decoded, not the images of `{data.name}`"]
        raise failure("E0510", message, notes=notes, help="use `--cache auto`")
    if cache == "off" or (cache == "auto" and recipe.epochs == 1):
        return Placement("off", reason=None if cache == "off" else "each image is read once")
    limit = int((RAM_FRACTION if cache == "auto" else REQUESTED_FRACTION) * available_memory() / processes)
    on_device = device.type != "cpu"
    threads = min(MAX_THREADS, available_cores() // processes)
    headers = tuple(read_headers(part, threads, poll) for part in _cached(data))
    nbytes = sum(found.nbytes for found in headers)
    if cache == "disk":
        return Placement("disk", nbytes, headers=headers)
    if cache == "device" and on_device:
        if not fits(nbytes):
            raise _too_large(nbytes, f"the memory of {device}")
        return Placement("device", nbytes, headers=headers)
    if nbytes > limit:
        if cache != "auto":
            raise _too_large(nbytes, f"the limit of {limit / 2**20:,.1f} MiB")
        return Placement("off", nbytes, limit, "the decoded images do not fit")
    together = len({tuple(size) for found in headers for size in found.sizes[:1].tolist()}) == 1
    is_uniform = together and all(found.are_uniform for found in headers)
    if cache == "auto" and on_device and is_uniform and fits(nbytes):
        return Placement("device", nbytes, limit, headers=headers)
    return Placement("ram", nbytes, limit, headers=headers)


def _place_pixels(data: ImageData, cache: str, fits: bool, device: torch.device) -> Placement:
    if cache == "disk":
        notes = [f"the images of `{data.name}` are loaded into memory as a whole"]
        raise failure("E0510", "`--cache disk` has no effect on these images", notes=notes, help="use `--cache auto`")
    if cache == "device" and device.type != "cpu" and not fits:
        raise _too_large(data.nbytes, f"the memory of {device}")
    moves = cache == "device" or (cache == "auto" and fits)
    return Placement("device" if moves else "ram", data.nbytes)


def _too_large(nbytes: int, room: str) -> CnnspecError:
    message = f"out of memory: the images of {nbytes / 2**20:,.1f} MiB do not fit into {room}"
    return failure("E0513", message, help="use `--cache disk` for a folder, or `--cache auto`")


def _cached(data: ImageData) -> list[Records]:
    """Return the splits that each epoch reads."""
    return [part for part in (data.train, data.val) if isinstance(part, Records) and isinstance(part.source, Files)]


def place_data(
    data: ImageData,
    placement: Placement,
    device: torch.device,
    *,
    processes: int = 1,
    poll: Callable[[], None] = lambda: None,
) -> ImageData:
    """Return the dataset with its images in their place.

    Raises:
        CnnspecError: E0503 if an image cannot be read, E0510 if the file of the cache cannot be written.
    """
    if placement.place != "off" and isinstance(data.train, Records):
        threads = min(MAX_THREADS, available_cores() // processes)
        cache = cache_in_file if placement.place == "disk" else cache_in_memory
        parts = [
            cache(part, headers, threads, poll) for part, headers in zip(_cached(data), placement.headers, strict=True)
        ]
        data = replace(data, train=parts[0], val=parts[1] if data.val is not None else None)
    return data.to(device) if placement.place == "device" else data
