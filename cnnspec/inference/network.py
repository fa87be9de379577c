"""Read a trained network from its run or its weights, and classify images with it.

Images become the input of the network as in `cnnspec test`, so that the predictions for test images are the same.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cnnspec import api
from cnnspec.backends.torch.matching import load_weights
from cnnspec.backends.torch.memory import is_out_of_memory
from cnnspec.backends.torch.module import Network, to_module
from cnnspec.backends.torch.weights import PUBLISHED, find_published, read_weights
from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.files import weights_file
from cnnspec.ir import Graph
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.batches import WORKER_ERRORS, start, stop, worker_died
from cnnspec.training.data.datasets import class_count
from cnnspec.training.data.folders import images_below
from cnnspec.training.data.images import image_pixels, read_image
from cnnspec.training.data.preprocessing import Preprocessing, Statistics, choose_preprocessing
from cnnspec.training.loop.about import about_weights, carried_network
from cnnspec.training.loop.evaluate import Evaluator, images_per_batch
from cnnspec.training.loop.machine import best_device, default_workers, keep_memory
from cnnspec.training.runs.folder import RunFolder
from cnnspec.training.runs.lookup import read_run

Source = Any
"""An image: a path, an image of Pillow, an array or a tensor."""
Failed = Callable[[str, CnnspecError], None]
"""A function that is called with the name and the error of an image that cannot be read."""
_PREFETCHED = 2
"""The number of batches that each worker loads ahead."""
_SEARCHED = "result.json", "*/result.json", "*/*/result.json"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        file: The path of the image, or None for an image in memory.
        names: The names of all classes, in the order of the logits.
        probabilities: The probability of each class, `[classes]` in float64: the softmax of the logits.
    """

    file: str | None
    names: tuple[str, ...]
    probabilities: Tensor

    @property
    def name(self) -> str:
        """The name of the most probable class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return self.top(1)[0][1]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the names and the probabilities of the most probable classes, in descending order."""
        order = self.probabilities.argsort(descending=True, stable=True)[:count].tolist()
        return [(self.names[index], float(self.probabilities[index])) for index in order]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights, and what is needed to use it. `load_run` creates it.

    Attributes:
        graph: The network.
        module: The torch module in evaluation mode.
        classes: The class names in the order of the logits; numbers if the weights do not name them.
        preprocessing: How images become the input of the network.
        origins: The origin of `normalize` and `resize`: `weights`, `recipe`, `--set` or `default`.
        weights: The file of the weights.
    """

    graph: Graph
    module: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    origins: dict[str, str]
    weights: str

    def predict(self, images: Any, *, batch: int | None = None, tta: bool | None = None) -> list[Prediction]:
        """Classify images.

        All forms of an image give the same prediction as its file:

        - the path of a file, or of a folder, which means all images in it
        - a Pillow image
        - a NumPy array of bytes, `[H, W, C]` or `[H, W]`, in RGB
        - a NumPy array of floats from 0 to 1, or a tensor of bytes or of floats from 0 to 1, `[C, H, W]` or `[H, W]`

        Floats are rounded to 8 bits. Images may have any size, and are converted to the channels of the network.

        Args:
            images: One image or an iterable of images, or an array or tensor `[N, ...]` of images.
            batch: Images per batch, by default up to 250, depending on their size.
            tta: Whether to average the logits of each image and its mirror image. By default, as the recipe says.

        Returns:
            One prediction per image, in their order.

        Raises:
            CnnspecError: E0503 if an image cannot be read, E0509 if the output is NaN or Inf, E0513 or E0514 if
                memory runs out.
        """
        return list(self.stream(images, batch=batch, tta=tta))

    def stream(
        self,
        images: Any,
        *,
        batch: int | None = None,
        tta: bool | None = None,
        failed: Failed | None = None,
    ) -> Iterator[Prediction]:
        """Classify images one batch after the other, with a bounded number of them in memory.

        Args:
            images: As for `predict`.
            batch: As for `predict`.
            tta: As for `predict`.
            failed: Called with the name and the error of each image that cannot be read. The default raises the error.

        Yields:
            One prediction per readable image, in their order.

        Raises:
            CnnspecError: As for `predict`.
        """
        keep_memory()
        averaged = self.graph.recipe.tta is not None if tta is None else tta
        evaluator = Evaluator(self.module, best_device(), "hflip" if averaged else None)
        size = images_per_batch(self.graph.input_shape, best_device()) if batch is None else batch
        if size < 1:
            raise ValueError(f"batch must be at least 1, got {size}")
        failed = failed or _raise
        reader = _Reader(self.graph.input_shape[0], self.preprocessing)
        for sources, (inputs, errors) in _read(reader, enumerate(_each(images, failed)), size):
            logits = iter(evaluator(inputs).double().softmax(1) if inputs is not None else ())
            for (index, source), error in zip(sources, errors, strict=True):
                if error is not None:
                    failed(_name(index, source), error)
                else:
                    yield Prediction(os.fspath(source) if _is_path(source) else None, self.classes, next(logits))


def load_run(
    source: str | Path,
    *,
    spec: Graph | str | Path | None = None,
    match: str = "name",
    offline: bool = False,
    allow_huge: bool = False,
    **params: Any,
) -> TrainedNetwork:
    """Load a trained network from its run or its weights.

    Weights that were trained by cnnspec contain the network, the class names and the preprocessing. Other weights need
    a `spec`, whose recipe states the preprocessing.

    Args:
        source: The folder of a run, whose best weights are used; a weights file; or `torchvision:DEFAULT`.
        spec: The network, for weights that do not contain it: a Graph, a file, or the name of a shipped spec.
        match: How the tensors in the file are matched: by `name`, by `order`, or by a map (the path of a JSON file).
        offline: Never download weights.
        allow_huge: Allow more than 10,000,000,000 parameters, and tensors of more than 100,000,000,000 elements.
        **params: Values for the parameters of `spec`, or for its recipe, such as `normalize="imagenet"`.

    Raises:
        CnnspecError: E0505 if the weights cannot be read, or do not say which network they belong to. E0504 if they do
            not match the network, E0506 for a damaged run, E0508 if it is not an image classifier, E0511 if the
            preprocessing is unknown.
    """
    weights, graph = find_weights(source, spec, allow_huge, params)
    classes = class_count(graph)
    about = about_weights(weights, graph)
    names = about.classes
    if str(weights).startswith(PUBLISHED):
        names = tuple(find_published(graph, str(weights).removeprefix(PUBLISHED)).member.meta["categories"])
    if about.classes and len(names) != classes:
        message = f"the weights name {len(names)} classes, but the network has {classes}"
        raise failure("E0505", message, file=str(weights), help="use the spec that the weights were trained with")

    def unknown() -> Statistics:
        raise failure(
            "E0511",
            "the weights do not say how their training images were normalized",
            file=str(weights),
            help="set it as in training, for example with `--set normalize=imagenet`",
        )

    preprocessing, origins = choose_preprocessing(graph.recipe, graph.input_shape, unknown, about.preprocessing)
    module = load_module(graph, weights, match, offline).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if len(names) != classes:
        names = tuple(map(str, range(classes)))
    return TrainedNetwork(graph, module, names, preprocessing, origins, str(weights))


def load_module(graph: Graph, weights: str | Path, match: str, offline: bool) -> Network:
    """Return the module of a network with its weights, in evaluation mode. Auxiliary heads need no weights."""
    module = to_module(graph)
    tensors = read_weights(weights, match, graph, offline=offline)
    load_weights(module, tensors, match, str(weights), optional=[head.name for head in graph.aux])
    return module.eval()


def find_weights(
    source: str | Path, spec: Graph | str | Path | None, allow_huge: bool, params: dict[str, Any]
) -> tuple[str | Path, Graph]:
    """Return the weights that a source means, and their network."""
    if spec is None and params:
        raise failure("E0217", f"cannot set `{next(iter(params))}` without a spec", help="pass the spec with `--spec`")
    if isinstance(spec, Graph) and params:
        raise failure("E0217", "cannot set parameters of a network that is already loaded", help="pass them to `load`")
    graph = spec if spec is None or isinstance(spec, Graph) else api.load(spec, allow_huge=allow_huge, **params)
    weights: str | Path = source
    if str(source).startswith(PUBLISHED):
        if graph is None:
            help = "pass the name of the network with `--spec`, such as `--spec resnet50`"
            raise failure("E0505", f"`{source}` does not say which network it is for", help=help)
        return source, graph
    if os.path.isdir(source):
        folder = RunFolder(Path(source))
        if not folder.read_result():
            runs = sorted(str(file.parent) for pattern in _SEARCHED for file in Path(source).glob(pattern))
            help = f"pass one of the runs in it: `{runs[0]}`" if runs else "pass the folder of a run, or a weights file"
            raise failure("E0505", f"`{source}` is not the folder of a run", file=str(source), help=help)
        weights = folder.checkpoints.weights
        if not weights.exists():
            help = "train it for at least one epoch: continue with `--resume`"
            raise failure("E0505", f"the run `{source}` has no weights yet", file=str(weights), help=help)
        graph = graph or read_run(Path(source)).graph
    else:
        weights = weights_file(source)
        graph = graph or carried_network(weights, allow_huge=allow_huge)
    if graph is None:
        read_weights(weights)  # raises if the file is damaged
        help = "pass the network with `--spec FILE`, or the name of a shipped spec, such as `--spec resnet50`"
        raise failure("E0505", "the weights do not say which network they belong to", file=str(weights), help=help)
    return weights, graph


# --- reading images ------------------------------------------------------------------------------

Numbered = tuple[int, Source]
Loaded = tuple[Tensor | None, list[CnnspecError | None]]
"""The input `[n, C, H, W]` of the readable images of a batch, if there are any, and an error for each other image."""


class _Reader(Dataset[Loaded]):
    """Reads batches of images, also in a worker process. It returns errors as values."""

    def __init__(self, channels: int, preprocessing: Preprocessing) -> None:
        self._channels, self._preprocess = channels, Preprocess(preprocessing)

    def __getitem__(self, sources: Sequence[Numbered]) -> Loaded:
        errors: list[CnnspecError | None] = []
        inputs: list[Tensor] = []
        exact: list[Tensor] = []  # images that need no resizing, which is done for each image alone
        fixed = self._preprocess.fixed
        for index, source in sources:
            try:
                image = self._read(index, source)
            except CnnspecError as error:
                errors.append(error)
                continue
            errors.append(None)
            if image.shape[2:] == fixed.size and fixed.resize is None:
                exact.append(image)
                continue
            inputs += [self._preprocess(torch.cat(exact))] if exact else []
            exact.clear()
            inputs.append(self._preprocess(image))
        inputs += [self._preprocess(torch.cat(exact))] if exact else []
        return torch.cat(inputs) if inputs else None, errors

    def _read(self, index: int, source: Source) -> Tensor:
        """Return bytes `[1, C, h, w]`."""
        if _is_path(source):
            return read_image(Path(source), self._channels)
        return image_pixels(source, self._channels, _name(index, source))


def _read(reader: _Reader, sources: Iterable[Numbered], size: int) -> Iterator[tuple[list[Numbered], Loaded]]:
    """Yield batches and their contents, read by worker processes if they are many files."""
    pending: list[list[Numbered]] = []
    each = iter(sources)
    chunks = iter(lambda: list(itertools.islice(each, size)), [])
    first = next(chunks, [])
    if len(first) < size or not all(_is_path(source) for _, source in first):
        yield from ((chunk, reader[chunk]) for chunk in itertools.chain([first] if first else [], chunks))
        return

    def sampler() -> Iterator[list[Numbered]]:
        for chunk in itertools.chain([first], chunks):
            pending.append(chunk)
            yield chunk

    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=sampler(),  # type: ignore[arg-type]
        num_workers=default_workers(),
        prefetch_factor=_PREFETCHED,
        collate_fn=_same,  # type: ignore[arg-type]
    )
    iterator = start(loader)
    try:
        for loaded in iterator:
            yield pending.pop(0), loaded
    except (*WORKER_ERRORS, MemoryError) as error:
        if not (worker_died(error) or is_out_of_memory(error)):
            raise
        help = "check for a corrupt image file or too little memory; `--batch` sets the images per batch"
        raise failure("E0514", "a data loader worker died", notes=[one_line(error)], help=help) from None
    finally:
        stop(iterator)


def _same(loaded: Any) -> Any:
    return loaded


def _each(images: Any, failed: Failed) -> Iterator[Source]:
    """Yield the images that a value means."""
    if _is_path(images):
        if not os.path.isdir(images):
            yield images
            return
        try:
            yield from map(str, images_below(Path(images))[0])
        except CnnspecError as error:
            failed(os.fspath(images), error)
    elif isinstance(images, (Tensor, np.ndarray)):
        yield from images if images.ndim == 4 else (images,)
    elif isinstance(images, Iterable):
        for image in images:
            yield from _each(image, failed)
    else:
        yield images


def _is_path(source: Source) -> bool:
    return isinstance(source, (str, os.PathLike))


def _name(index: int, source: Source) -> str:
    return os.fspath(source) if _is_path(source) else f"number {index + 1}"


def _raise(name: str, error: CnnspecError) -> NoReturn:
    raise error
