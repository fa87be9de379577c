"""What weights carry with them: the spec, the classes, the preprocessing, and the identity of their dataset."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnspec.backends.torch.weights import PUBLISHED
from cnnspec.checker.check import check
from cnnspec.diagnostics import CnnspecError, Reporter, failure, one_line
from cnnspec.ir import Graph, Model
from cnnspec.ir.stored_recipe import checked_recipe
from cnnspec.limits import MAX_JSON_BYTES
from cnnspec.semantics.context import SourceMap
from cnnspec.training.data.identity import DataIdentity
from cnnspec.training.data.preprocessing import HALF, Preprocessing
from cnnspec.training.loop.checkpoints import read_about

FORMAT_VERSION = 2
_READABLE = (1, FORMAT_VERSION)
"""The versions that can be read. Version 1 has no network."""


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
        "model": graph.model.model_dump_json(),  # as text: weights files may contain few values, and no deep ones
        "input_shape": list(graph.input_shape),
        "classes": list(classes),
        "preprocessing": preprocessing.to_json(),
    }


def stored_network(model: str, spec: str, *, allow_huge: bool = False) -> Graph:
    """Return the network of a Model that was stored as JSON.

    Args:
        model: The Model.
        spec: The text of the spec.
        allow_huge: Allow more than `limits.MAX_PARAMETERS` parameters and `limits.MAX_ELEMENTS` elements.

    Raises:
        ValueError: The Model is not a valid network.
    """
    if len(model) > MAX_JSON_BYTES:
        raise ValueError(f"its description has more characters than the limit of {MAX_JSON_BYTES:,}")
    reporter = Reporter()
    try:
        found = Model.model_validate_json(model)
        checked_recipe(found.recipe)
        graph = check(found, SourceMap(), reporter, spec, allow_huge=allow_huge)
    except Exception as error:  # noqa: BLE001 - a forged model can break any rule that the elaboration ensures
        raise ValueError(one_line(error)) from None
    if graph is None:
        raise ValueError(reporter.sorted()[0].message if reporter.failed else "the network is empty")
    return graph


def carried_network(source: Path, *, allow_huge: bool = False) -> Graph | None:
    """Return the network that a weights file was trained as, or None if the file does not contain it.

    Raises:
        CnnspecError: E0505 if the file says something that cannot be understood.
    """
    own: Any = read_about(source).get("about")
    try:
        if not own or own["format_version"] not in _READABLE or "model" not in own:
            return None
        return stored_network(own["model"], str(own["spec"]), allow_huge=allow_huge)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(source, error) from None


def _unreadable(source: str | Path, error: Exception) -> CnnspecError:
    return failure(
        "E0505",
        "cannot read the metadata of the weights",
        notes=[one_line(error)],
        file=str(source),
        help="use a file that this version of cnnspec wrote, or save the weights alone",
    )


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
        if own and own["format_version"] not in _READABLE:
            raise ValueError(f"format version {own['format_version']}, expected {FORMAT_VERSION}")
        classes = tuple(str(name) for name in own.get("classes", ()))
        preprocessing = Preprocessing.from_json(own["preprocessing"]) if own else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(source, error) from None
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
