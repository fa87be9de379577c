"""Draw a `Graph`: SVG, Mermaid and DOT as text, PNG and PDF from the SVG. Needs neither torch nor Graphviz."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cnnspec.backends.diagram import markup, svg
from cnnspec.backends.diagram.layout import lay_out
from cnnspec.backends.diagram.outline import Box, Figure, Key, Outliner, blocks_in, size_text
from cnnspec.diagnostics import counted, did_you_mean, failure, named
from cnnspec.ir import Graph
from cnnspec.limits import MAX_BOXES, MAX_PIXELS

FORMATS = (".svg", ".png", ".pdf", ".mmd", ".dot")
"""The extensions of the formats."""
THEMES = svg.THEMES

_TYPST = b'#set document(date: none)\n#set page(width: auto, height: auto, margin: 0pt)\n#image("net.svg")\n'


def format_of(name: str) -> str:
    """Return the extension of a file name, which selects the format.

    Raises:
        CnnspecError: E0523 if it is not one of `FORMATS`.
    """
    suffix = name[name.rfind(".") :].lower() if name.rfind(".") > 0 else ""
    if suffix not in FORMATS:
        raise failure("E0523", f"cannot draw `{name}`: unknown format", help=f"use one of {', '.join(FORMATS)}")
    return suffix


def draw(
    graph: Graph,
    form: str,
    *,
    depth: int | None = None,
    block: str | None = None,
    theme: str = "light",
    paper: bool = False,
) -> bytes:
    """Draw a network.

    The bytes depend on the arguments only; those of PNG and PDF also on the fonts of the machine.

    Args:
        graph: The network.
        form: One of `FORMATS`.
        depth: Levels of nested modules to draw; deeper ones are a single box.
        block: Draw only this block.
        theme: `light`, `dark`, or `auto`, which follows the setting of the reader.
        paper: Draw in the style of papers, one column wide.

    Raises:
        CnnspecError: E0523 if there is no such block, or if the diagram would have too many boxes; E0507 if a library
            is not installed.
    """
    outliner = Outliner(graph, depth)
    main, blocks = figures_of(outliner, block)
    every = [*([main] if main else []), *blocks]
    if (count := sum(_count(figure.boxes) for figure in every)) > MAX_BOXES:
        help = "draw fewer levels with `--depth`, or a single block with `--block`"
        raise failure("E0523", f"the diagram has {count:,} boxes, more than the limit of {MAX_BOXES:,}", help=help)
    if form in (".mmd", ".dot"):
        write = markup.write_mermaid if form == ".mmd" else markup.write_dot
        return write(graph.name, every).encode()
    panels = svg.arrange(
        [lay_out(main, paper=paper)] if main else [],
        [lay_out(figure, paper=paper) for figure in blocks],
        [counted(len(figure.uses), "call") for figure in blocks],
        paper,
    )
    title = graph.name if block is None else f"{block} in {graph.name}"
    text = svg.write_svg(panels, title, _subtitle(graph), _description(graph, every), theme=theme, paper=paper)
    return text.encode() if form == ".svg" else _render(text, form.removeprefix("."))


def figures_of(outliner: Outliner, block: str | None = None) -> tuple[Figure | None, list[Figure]]:
    """Return the figure of the network, unless a block is given, and those of the blocks that are called."""
    main = None if block is not None else outliner.network()
    pending = [key for key in outliner.calls if key[0] == block] if main is None else blocks_in(main.boxes)
    if main is None and not pending:
        names = list(dict.fromkeys(key[0] for key in outliner.calls))
        known = f"its blocks are {named(names)}" if names else "it has no blocks"
        help = did_you_mean(block or "", names) or known
        raise failure("E0523", f"the network has no block `{block}`", help=help)
    found: dict[Key, Figure] = {}
    while pending:
        key = pending.pop(0)
        if key not in found:
            found[key] = outliner.block(key)
            pending += blocks_in(found[key].boxes)
    return main, list(found.values())


def _count(boxes: Iterable[Box]) -> int:
    return sum(1 + _count(box.inner or ()) for box in boxes)


def _subtitle(graph: Graph) -> str:
    sizes = f"{size_text(graph.input_shape)} → {size_text(graph.output_shape)}"
    return f"{sizes} · {graph.parameter_count:,} parameters · {graph.macs:,} multiply-adds"


def _description(graph: Graph, every: Iterable[Figure]) -> str:
    """Return what a screen reader says of the diagram."""
    parts = [f"{figure.title}: {', then '.join(_words(figure.boxes))}" for figure in every]
    return f"{_subtitle(graph)}. {'. '.join(parts)}."


def _words(boxes: Iterable[Box]) -> list[str]:
    words: list[str] = []
    for box in boxes:
        inner = f" ({', then '.join(_words(box.inner))})" if box.inner else ""
        cells = " ".join(cell.text for row in box.rows for cell in row)
        times = f"{box.repeat} times" if box.repeat > 1 else ""
        words.append(" ".join(filter(None, (times, box.name, cells))) + inner)
    return words


def _render(text: str, form: str) -> bytes:
    """Render an SVG as PNG or PDF.

    Raises:
        CnnspecError: E0507 if typst is not installed.
    """
    try:
        import typst  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        help = "install it with `pip install 'cnnspec[draw]'`, or write an SVG"
        raise failure("E0507", "typst is not installed", help=help) from None
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0])
    ppi = 192.0 * min(1.0, (MAX_PIXELS / (4 * width * height)) ** 0.5)
    return typst.compile({"main.typ": _TYPST, "net.svg": text.encode()}, format=form, ppi=ppi)
