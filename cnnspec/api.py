"""The Python API: load, check, format and build a network.

Nothing here needs torch but `build`, which imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cnnspec import ir
from cnnspec.analysis.features import tap
from cnnspec.compiler import compile_file, compile_source, format_text, plain_source
from cnnspec.diagnostics import Diagnostic, failure

if TYPE_CHECKING:
    from torch import nn


def load(path_or_name: str | Path, *, allow_huge: bool = False, **params: Any) -> ir.Graph:
    """The checked network of a file, or of a shipped spec by its name.

    Args:
        path_or_name: `"my/net.cnn"` or `"resnet20"`.
        allow_huge: Whether it may have more than 10,000,000,000 parameters.
        **params: Values for the spec's `param`s.

    Raises:
        CnnspecError: The spec is at fault; `.diagnostics` says where and why.
    """
    return compile_file(path_or_name, params, allow_huge=allow_huge).require_graph()


def loads(text: str, name: str = "network", *, allow_huge: bool = False, **params: Any) -> ir.Graph:
    """The checked network of a text.

    Args:
        text: A spec.
        name: What to call it in messages, and the network's name where the text states none.
        allow_huge: Whether it may have more than 10,000,000,000 parameters.
        **params: Values for the spec's `param`s.

    Raises:
        CnnspecError: The spec is at fault; `.diagnostics` says where and why.
    """
    return compile_source(plain_source(text, name), None, params, allow_huge=allow_huge).require_graph()


def check(text: str, name: str = "network", *, allow_huge: bool = False) -> list[Diagnostic]:
    """Every fault and lint of a text, in the order of their places; none when all is well."""
    return compile_source(plain_source(text, name), allow_huge=allow_huge).diagnostics


def format(text: str, name: str = "network") -> str:
    """The text as the one obvious way to write it.

    Raises:
        CnnspecError: It cannot be read.
    """
    return format_text(plain_source(text, name))


def resize(graph: ir.Graph, size: str | Sequence[int]) -> ir.Graph:
    """The same network for images of another size.

    Args:
        graph: A network.
        size: `"3x96x96"` or `(3, 96, 96)`, in which the channels may be left out.

    Raises:
        CnnspecError: This is not a size, or the network does not take it.
    """
    parts = size.split("x") if isinstance(size, str) else [str(n) for n in size] if hasattr(size, "__iter__") else []
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        raise failure("E0204", f"`{size}` is not a size of images", help="write channels, height and width: `3x96x96`")
    *channels, height, width = map(int, parts)
    if channels and channels[0] != graph.input_shape[0]:
        raise failure(
            "E0313",
            f"`{graph.name}` takes images of {graph.input_shape[0]} channels, got {channels[0]}",
            help="leave the channels out, or change `input` in the spec",
        )
    return graph.at(height, width)


def torch_backend() -> ModuleType:
    """The module `cnnspec.backends.torch`.

    Raises:
        CnnspecError: Torch is not installed.
    """
    try:
        from cnnspec.backends.torch import module as torch
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "numpy"):
            raise
        raise failure(
            "E0507", "torch is not installed", help="install it with `pip install 'cnnspec[train]'`"
        ) from None
    return torch


def build(
    spec: ir.Graph | str | Path,
    *,
    input: str | Sequence[int] | None = None,
    weights: str | Path | None = None,
    fresh: Sequence[str] = (),
    outputs: Sequence[str] = (),
    allow_huge: bool = False,
    **params: Any,
) -> nn.Module:
    """The torch module of a network.

    Args:
        spec: A Graph, a file, or the name of a shipped spec.
        input: Another size of images than the spec declares, `(3, 96, 96)` or `"3x96x96"`; the weights stay as
            they are, so it has to be one of `Graph.sizes`.
        weights: What the weights start from, matched strictly by name: a `.safetensors`, `.pt` or `.ckpt` file,
            or `torchvision:DEFAULT`, `torchvision:IMAGENET1K_V2` and their like for a network of torchvision's.
        fresh: Paths of modules that start anew in spite of `weights`: the head, for other classes.
        outputs: Paths of modules whose features are wanted in place of the logits; nothing behind the last
            of them is built or run, and the module gives a `dict` from these paths to `[N, C, H, W]`.
        allow_huge: Whether it may have more than 10,000,000,000 parameters.
        **params: Values for the spec's `param`s.

    Raises:
        CnnspecError: The spec is at fault, an output is unknown, the weights do not match, or torch is not
            installed.
    """
    to_module = torch_backend().to_module
    if isinstance(spec, ir.Graph):
        if params:
            raise failure(
                "E0217",
                "the parameters of a checked network cannot change",
                help="hand them to `load`, or give `build` the file",
            )
        graph = spec
    else:
        graph = load(spec, allow_huge=allow_huge, **params)
    if input is not None:
        graph = resize(graph, input)
    module = to_module(tap(graph, outputs) if outputs else graph)
    if weights is not None:
        from cnnspec.backends.torch.weights import load_weights, read_weights

        whole = to_module(graph) if outputs else module
        load_weights(whole, read_weights(weights, "name", graph), file=str(weights), fresh=fresh)
        if outputs:
            kept = whole.state_dict()
            module.load_state_dict({key: kept[key] for key in module.state_dict()})
    return module
