"""What weights carry with them: the spec, the classes, the preprocessing, and the identity of their dataset."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnspec.backends.torch.weights import PUBLISHED
from cnnspec.diagnostics import failure, one_line
from cnnspec.ir import Graph
from cnnspec.training.data.identity import DataIdentity
from cnnspec.training.data.preprocessing import HALF, Preprocessing
from cnnspec.training.loop.checkpoints import read_about

FORMAT_VERSION = 1


@dataclass(frozen=True)
class About:
    """What a weights file says about the run that wrote it. Files of other programs say nothing.

    Attributes:
        classes: The names of the classes in the order of the logits, or nothing.
        preprocessing: How images become the input of the network.
        data: The identity of the dataset.
    """

    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    data: DataIdentity | None = None


def describe(graph: Graph, classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    """Return plain data to store with weights. The identity of the dataset is stored next to it."""
    return {
        "format_version": FORMAT_VERSION,
        "network": graph.name,
        "spec": graph.text,
        "files": dict(graph.files),
        "input_shape": list(graph.input_shape),
        "classes": list(classes),
        "preprocessing": preprocessing.to_json(),
    }


def about_weights(source: str | Path, graph: Graph) -> About:
    """Return what weights say about themselves.

    Args:
        source: A file, or weights that torchvision publishes, such as `torchvision:DEFAULT`.
        graph: The network that loads them.

    Raises:
        CnnspecError: E0505 if the file says something that cannot be understood.
    """
    if str(source).startswith(PUBLISHED):
        return About(preprocessing=_published(graph.name, str(source).removeprefix(PUBLISHED)))
    found = read_about(Path(source))
    try:
        data = DataIdentity.model_validate(found["data"]) if found.get("data") is not None else None
        own: Any = found.get("about") or {}
        if own and own["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {own['format_version']}, expected {FORMAT_VERSION}")
        classes = tuple(str(name) for name in own.get("classes", ()))
        preprocessing = Preprocessing.from_json(own["preprocessing"]) if own else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise failure(
            "E0505",
            "cannot read the metadata of the weights",
            notes=[one_line(error)],
            file=str(source),
            help="use a file that this version of cnnspec wrote, or save the weights alone",
        ) from None
    return About(classes, preprocessing, data)


def _published(name: str, tag: str) -> Preprocessing | None:
    """Return the published preprocessing of torchvision's weights.

    GoogLeNet and Inception have a part of it in the module (`transform_input`): with it, the input is in -1..1.
    """
    from torchvision import models

    try:
        transforms = models.get_model_weights(name)[tag].transforms()
        module = typing.get_type_hints(inspect.unwrap(models.get_model_builder(name)))["return"]
    except (KeyError, ValueError):  # `read_weights` reports unknown weights
        return None
    transformed = "transform_input" in inspect.signature(module).parameters
    mean, std = HALF if transformed else (tuple(transforms.mean), tuple(transforms.std))
    side = transforms.crop_size[0]
    mode = transforms.interpolation.value
    return Preprocessing((side, side), mean * (3 // len(mean)), std * (3 // len(std)), transforms.resize_size[0], mode)
