"""Export a module with `torch.export`, and read the file again (`.pt2`)."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config

from cnnspec.diagnostics import failure, one_line

METADATA = "cnnspec.json"
"""The name of the extra file with the metadata."""


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log messages of the exporters; what goes wrong is an exception."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def reason(error: BaseException) -> str:
    """Return the first cause of an error in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error)}"


def _copied(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


@contextmanager
def _contiguous(module: nn.Module, images: Sequence[Tensor]) -> Iterator[None]:
    """Copy values with other strides than those of a new tensor: after them, torch.export excludes single images.

    A tensor that is contiguous can have such strides on axes of size 1, such as a single channel.
    """
    read: set[nn.Module] = set()
    returned: set[nn.Module] = set()

    def is_new(value: Tensor) -> bool:
        return value.stride() == torch.empty(value.shape, device="meta").stride()

    def note_inputs(part: nn.Module, given: tuple[Tensor, ...]) -> None:
        if not all(map(is_new, given)):
            read.add(part)

    def note_output(part: nn.Module, given: Any, output: Tensor) -> Tensor:
        if is_new(output):
            return output
        returned.add(part)
        return _copied(output)

    def copy_inputs(part: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(map(_copied, given))

    def copy_output(part: nn.Module, given: Any, output: Tensor) -> Tensor:
        return _copied(output)

    leaves = [part for part in module.modules() if not [*part.children()]]
    handles = [part.register_forward_pre_hook(note_inputs) for part in leaves]
    handles += [part.register_forward_hook(note_output) for part in leaves]
    module(*images)
    for handle in handles:
        handle.remove()
    handles = [part.register_forward_pre_hook(copy_inputs) for part in read]
    handles += [part.register_forward_hook(copy_output) for part in returned]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(module: nn.Module, *images: Tensor, dynamic: Mapping[int, Any] | None = None) -> ExportedProgram:
    """Return the graph of a module in evaluation mode, without paths of this machine.

    Args:
        module: The module, which maps batches of images to one tensor, or to a dict of tensors.
        *images: An example of its inputs.
        dynamic: The axes of all inputs whose size may vary, each with its `torch.export.Dim`.

    Raises:
        CnnspecError: E0522 if torch cannot export it.
    """
    images = tuple(map(_copied, images))
    try:
        # Otherwise torch excludes image sizes at which a feature map has a single row or column.
        patch: Any = _config.patch  # pyright: ignore[reportAttributeAccessIssue]
        with quiet(), torch.no_grad(), _contiguous(module, images), patch(backed_size_oblivious=True):
            axes = dict(dynamic or {})
            arguments = inspect.signature(module.forward).bind(*images).arguments
            shapes = {n: (axes,) * len(part) if isinstance(part, tuple) else axes for n, part in arguments.items()}
            program = torch.export.export(module, images, dynamic_shapes=shapes)
    except Exception as error:  # noqa: BLE001 - the exporter fails in many ways
        sizes = " with variable image sizes" if dynamic and (2 in dynamic or 3 in dynamic) else ""
        notes = [reason(error)]
        help = "export it for one image size: remove `size` from `--dynamic`" if sizes else None
        raise failure("E0522", f"torch.export cannot export the network{sizes}", notes=notes, help=help) from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def dimension(name: str, least: int, most: int | None = None, multiple: int = 1) -> Any:
    """Return a variable size: the multiples of a number from one size to another."""
    most = most // multiple if most is not None else None
    return multiple * Dim(name, min=-(-least // multiple), max=most) if multiple > 1 else Dim(name, min=least, max=most)


def to_bytes(program: ExportedProgram, metadata: str) -> bytes:
    """Return the contents of a `.pt2` file."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={METADATA: metadata})
    return file.getvalue()


def load(content: bytes) -> Callable[..., Any]:
    """Return the function of a `.pt2` file."""
    with quiet():
        return torch.export.load(io.BytesIO(content)).module()
