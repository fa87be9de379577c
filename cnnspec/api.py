"""The Python API: load, check, format and build a network.

Only `build` needs torch, and imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from cnnspec import ir
from cnnspec.analysis.features import tap
from cnnspec.compiler import compile_file, compile_source, format_text, plain_source
from cnnspec.diagnostics import CnnspecError, Diagnostic, Diagnostics, failure

if TYPE_CHECKING:
    from torch import nn


def load(path_or_name: str | Path, *, allow_huge: bool = False, **params: Any) -> ir.Graph:
    """Load and check the network of a file, or of a shipped spec.

    Args:
        path_or_name: A path, `"my/net.cnn"`, or the name of a shipped spec, `"resnet20"`.
        allow_huge: Allow more than 10,000,000,000 parameters, and tensors of more than 100,000,000,000 elements.
        **params: Values for the parameters of the spec.

    Raises:
        CnnspecError: The spec has errors; see `.diagnostics`.
    """
    return compile_file(path_or_name, params, allow_huge=allow_huge).require_graph()


def loads(text: str, name: str = "network", *, allow_huge: bool = False, **params: Any) -> ir.Graph:
    """Load and check the network of a text.

    Args:
        text: The spec.
        name: The name for diagnostics, and of the network if the text states none.
        allow_huge: Allow more than 10,000,000,000 parameters, and tensors of more than 100,000,000,000 elements.
        **params: Values for the parameters of the spec.

    Raises:
        CnnspecError: The spec has errors; see `.diagnostics`.
    """
    return compile_source(plain_source(text, name), None, params, allow_huge=allow_huge).require_graph()


def check(
    text: str, name: str = "network", *, allow_huge: bool = False, lints: Collection[str] = ()
) -> list[Diagnostic]:
    """Return the errors of a text, or if there are none its lints, in the order of their places.

    Args:
        text: The spec.
        name: Its name in diagnostics.
        allow_huge: Allow more parameters and larger tensors than the limits.
        lints: Codes of lints to report that are off by default, such as `W0120`.
    """
    return Diagnostics(compile_source(plain_source(text, name), allow_huge=allow_huge, lints=lints).diagnostics)


def format(text: str, name: str = "network") -> str:
    """Format a text.

    Raises:
        CnnspecError: The text has syntax errors, or other errors that its layout decides on.
    """
    return format_text(plain_source(text, name))


def resize(graph: ir.Graph, size: str | Sequence[int]) -> ir.Graph:
    """Return the network for images of another size; its weights are the same.

    Args:
        graph: The network.
        size: Channels, height and width, `"3x96x96"` or `(3, 96, 96)`; channels are optional. All of several
            images get this size, and the channels are those of each.

    Raises:
        CnnspecError: The size is invalid, or the network does not accept it.
    """
    parts = size.split("x") if isinstance(size, str) else [str(n) for n in size] if hasattr(size, "__iter__") else []
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        raise failure("E0204", f"invalid image size `{size}`", help="write channels, height and width: `3x96x96`")
    *channels, height, width = map(int, parts)
    expected = list(dict.fromkeys(shape[0] for shape in graph.images.values())) or [graph.input_shape[0]]
    if channels and channels != expected:
        raise failure(
            "E0313",
            f"`{graph.name}` expects images with {' and '.join(map(str, expected))} channels, got {channels[0]}",
            help="omit the channels, or change `input` in the spec",
        )
    return graph.at(height, width)


def draw(
    spec: ir.Graph | str | Path,
    format: str = "svg",
    *,
    other: ir.Graph | str | Path | None = None,
    depth: int | None = None,
    block: str | None = None,
    theme: str | None = None,
    paper: bool = False,
    direction: str = "TB",
) -> bytes:
    """Draw a network, or the difference of two networks.

    Args:
        spec: A Graph, a file, or the name of a shipped spec.
        format: `svg`, `html`, `png`, `pdf`, `mmd` (Mermaid) or `dot` (Graphviz).
        other: A second network: draw both, with what was added, removed and changed.
        depth: Levels of nested modules to draw; deeper ones are a single box.
        block: Draw only this block.
        theme: `light`, `dark`, or `auto`, which follows the setting of the reader; by default `auto` for HTML, else
            `light`.
        paper: Draw in the style of papers, one column wide; two columns from left to right.
        direction: `TB`, from top to bottom, or `LR`, from left to right.

    Returns:
        The content of the file.

    Raises:
        CnnspecError: A spec has errors, the format or the block does not exist, or the diagram is too large; PNG and
            PDF: typst is not installed.
    """
    from cnnspec.backends import diagram

    graphs = [each if isinstance(each, ir.Graph) else load(each) for each in (spec, other) if each is not None]
    second = graphs[1] if other is not None else None
    suffix = diagram.format_of(f"diagram.{format.removeprefix('.')}")
    return diagram.draw(
        graphs[0], suffix, other=second, depth=depth, block=block, theme=theme, paper=paper, direction=direction
    )


_THEMES = (
    "<style>.cnnspec-diagram{color-scheme:light dark}"
    "[data-jp-theme-light=true] .cnnspec-diagram,.vscode-light .cnnspec-diagram{color-scheme:light}"
    "[data-jp-theme-light=false] .cnnspec-diagram,.vscode-dark .cnnspec-diagram{color-scheme:dark}</style>"
)
"""The theme of a diagram in a notebook: that of JupyterLab or VS Code, or else the setting of the reader."""


def _display(graph: ir.Graph) -> str | None:
    """Return the diagram of a network for notebooks, as an image that does not mix with the page, and its summary."""
    import base64
    from html import escape

    from cnnspec.analysis.summary import summarize

    try:
        data = base64.b64encode(draw(graph, theme="auto")).decode()
    except CnnspecError:  # too large: the notebook shows the text
        return None
    image = f'<img alt="{escape(repr(graph))}" class="cnnspec-diagram" src="data:image/svg+xml;base64,{data}">{_THEMES}'
    sizes = cast("tuple[object, ...]", graph.input_shape)
    if not all(isinstance(size, int) for size in sizes):  # they are functions of the image size
        return image
    table = summarize(graph)._repr_html_()  # pyright: ignore[reportPrivateUsage]
    return f"{image}<details><summary>Summary</summary>{table}</details>"


setattr(ir.Graph, "_repr_html_", _display)  # noqa: B010  # the diagram is a backend, which `ir` does not know


def torch_backend() -> ModuleType:
    """Import the torch backend.

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
    match: str = "name",
    reinit: Sequence[str] = (),
    outputs: Sequence[str] = (),
    offline: bool = False,
    allow_huge: bool = False,
    **params: Any,
) -> nn.Module:
    """Build the torch module of a network.

    Args:
        spec: A Graph, a file, or the name of a shipped spec.
        input: Another image size than the spec declares, `(3, 96, 96)` or `"3x96x96"`. The shapes of the weights do
            not change, so it must be in `Graph.sizes`.
        weights: Pretrained weights: a `.safetensors`, `.pt` or `.ckpt` file, or
            `torchvision:DEFAULT`, `torchvision:IMAGENET1K_V2` and so on for a network of torchvision.
        match: How the tensors are matched: by `name`, by `order`, or by a map that `cnnspec match` wrote (its path).
        reinit: Paths of modules to initialize instead of loading them from `weights`, such as a head for other classes.
        outputs: Paths of modules for feature extraction, or names of outputs of the spec. The module returns a `dict`
            from these to tensors of shape `[N, C, H, W]` in place of the logits, and layers after the last of them
            are not built.
        offline: Never download weights.
        allow_huge: Allow more than 10,000,000,000 parameters, and tensors of more than 100,000,000,000 elements.
        **params: Values for the parameters of the spec.

    Raises:
        CnnspecError: The spec has errors, an output does not exist, the weights do not match, or torch is not
            installed.
    """
    to_module = torch_backend().to_module
    if isinstance(spec, ir.Graph):
        if params:
            raise failure(
                "E0217",
                "cannot set parameters of a network that is already loaded",
                help="pass them to `load`, or pass the file to `build`",
            )
        graph = spec
    else:
        graph = load(spec, allow_huge=allow_huge, **params)
    if input is not None:
        graph = resize(graph, input)
    module = to_module(tap(graph, outputs) if outputs else graph)
    if weights is not None:
        from cnnspec.backends.torch.matching import load_weights
        from cnnspec.backends.torch.weights import read_weights

        whole = to_module(graph) if outputs else module
        given = read_weights(weights, match, graph, offline=offline)
        load_weights(whole, given, match, file=str(weights), reinit=reinit)
        if outputs:
            kept = whole.state_dict()
            module.load_state_dict({key: kept[key] for key in module.state_dict()})
    return module
