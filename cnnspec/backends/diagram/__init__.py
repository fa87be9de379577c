"""Draw a `Graph`: SVG, HTML, Mermaid and DOT as text, PNG and PDF from the SVG. Needs neither torch nor Graphviz."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from cnnspec.analysis.diff import node_statuses
from cnnspec.backends.diagram import html, layout, markup, svg
from cnnspec.backends.diagram.outline import Box, Figure, Key, Outliner, blocks_in, shortened, size_text
from cnnspec.diagnostics import counted, did_you_mean, failure, named
from cnnspec.ir import Graph
from cnnspec.limits import MAX_BOXES, MAX_PIXELS

FORMATS = (".svg", ".html", ".png", ".pdf", ".mmd", ".dot")
"""The extensions of the formats."""
THEMES = svg.THEMES
DIRECTIONS = layout.DIRECTIONS

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
    other: Graph | None = None,
    depth: int | None = None,
    block: str | None = None,
    theme: str | None = None,
    paper: bool = False,
    direction: str = "TB",
) -> bytes:
    """Draw a network, or the difference of two networks, as `cnnspec.draw` does.

    The bytes depend on the arguments only; those of PNG and PDF also on the fonts of the machine.

    Raises:
        CnnspecError: E0523 if there is no such block, or if the diagram would have too many boxes; E0507 if a library
            is not installed.
    """
    graphs = [graph] if other is None else [graph, other]
    figures = _all_figures(graphs, depth, block)
    title = " and ".join(each.name for each in graphs)
    if form in (".mmd", ".dot"):
        return markup.write(form, title, figures, direction).encode()
    title = title if block is None else f"{block} in {title}"
    theme = theme or ("auto" if form == ".html" else "light")
    if form == ".html":
        levels = [(str(level), _all_figures(graphs, level, block)) for level in _levels(figures)]
        views: list[tuple[str, str]] = []
        for number, (name, shown) in enumerate([*levels, ("all" if depth is None else str(depth), figures)]):
            prefix = f"v{number}-"
            page = _page(graphs, shown, title, theme, direction, paper=paper, prefix=prefix, embedded=True)
            views.append((name, page))
        sources = [each.text for each in graphs]
        return html.write_html(views, title, _subtitle(graphs), sources, theme, paper=paper).encode()
    text = _page(graphs, figures, title, theme, direction, paper=paper)
    return text.encode() if form == ".svg" else _render(text, form.removeprefix("."))


def _page(
    graphs: Sequence[Graph],
    figures: Sequence[Figure],
    title: str,
    theme: str,
    direction: str,
    *,
    paper: bool,
    prefix: str = "",
    embedded: bool = False,
) -> str:
    """Return all figures as SVG."""
    drawings = [layout.lay_out(figure, paper=paper, direction=direction) for figure in figures]
    main = [drawing for drawing in drawings if drawing.figure.key is None]
    blocks = [drawing for drawing in drawings if drawing.figure.key is not None]
    notes = [counted(len(drawing.figure.uses), "call") for drawing in blocks]
    panels = svg.arrange_paper(main, blocks) if paper else svg.arrange(main, blocks, notes, heading=not embedded)
    description = f"{_subtitle(graphs)}. {_description(figures)}"
    return svg.write_svg(
        panels, title, _subtitle(graphs), description, theme=theme, paper=paper, prefix=prefix, embedded=embedded
    )


def _all_figures(graphs: Sequence[Graph], depth: int | None, block: str | None) -> list[Figure]:
    """Return the figures of one network, or those of two that differ.

    Raises:
        CnnspecError: E0523 if there is no such block, or if there would be too many boxes.
    """
    statuses = node_statuses(graphs[0], graphs[1]) if len(graphs) > 1 else [None]
    figures: list[Figure] = []
    for number, (graph, status) in enumerate(zip(graphs, statuses, strict=True)):
        main, blocks = figures_of(Outliner(graph, depth, status), block)
        if status is not None:
            blocks = [f for f in blocks if block is not None or any(box.status for box in f.boxes)]
            for figure in blocks:
                figure.title += f" of {graph.name}"
        for figure in [*([main] if main else []), *blocks]:
            figure.network = number
            figures.append(figure)
    if (count := sum(_count(figure.boxes) for figure in figures)) > MAX_BOXES:
        help = "draw fewer levels with `--depth`, or a single block with `--block`"
        raise failure("E0523", f"the diagram has {count:,} boxes, more than the limit of {MAX_BOXES:,}", help=help)
    return figures


def _levels(figures: Sequence[Figure]) -> range:
    """Return the depths at which less is drawn than in the figures, at most four."""

    def nesting(boxes: Sequence[Box]) -> int:
        return max([1 + nesting(box.inner) for box in boxes if box.inner is not None] or [0])

    return range(1, 1 + min(4, max([nesting(figure.boxes) for figure in figures if figure.key is None] or [0])))


def figures_of(outliner: Outliner, block: str | None = None) -> tuple[Figure | None, list[Figure]]:
    """Return the figure of the network, unless a block is given, and those of the blocks that are called."""
    main = None if block is not None else outliner.network()
    pending = [key for key in outliner.calls if key[0] == block] if main is None else blocks_in(main.boxes)
    if main is None and not pending:
        names = list(dict.fromkeys(key[0] for key in outliner.calls))
        known = f"its blocks are {named(names)}" if names else "it has no blocks"
        help = did_you_mean(block or "", names) or known
        raise failure("E0523", f"`{outliner.graph.name}` has no block `{block}`", help=help)
    found: dict[Key, Figure] = {}
    while pending:
        key = pending.pop(0)
        if key not in found:
            found[key] = outliner.block(key)
            pending += blocks_in(found[key].boxes)
    return main, list(found.values())


def _count(boxes: Iterable[Box]) -> int:
    return sum(1 + _count(box.inner or ()) for box in boxes)


def _subtitle(graphs: Sequence[Graph]) -> str:
    """Return sizes and counts in words; each may be a function of the image size."""
    one, two = graphs[0], graphs[-1]

    def change(a: object, b: object) -> str:
        text = " → ".join(shortened(f"{value:,}", 80) for value in (a, b)[: len(graphs)])
        return f"{text} ({b - a:+,})" if len(graphs) > 1 and isinstance(a, int) and isinstance(b, int) else text

    counts = (
        f"{change(one.parameter_count, two.parameter_count)} parameters · {change(one.macs, two.macs)} multiply-adds"
    )
    read, returned = (
        ", ".join(f"{name} {size_text(shape)}" for name, shape in named.items()) or size_text(single)
        for single, named in ((one.input_shape, one.images), (one.output_shape, one.output_shapes))
    )
    sizes = f"{read} → {returned}"
    return counts if len(graphs) > 1 else f"{shortened(sizes, 80)} · {counts}"


def _description(figures: Iterable[Figure]) -> str:
    """Return what a screen reader says of the diagram."""
    return " ".join(f"{figure.title}: {', then '.join(_words(figure.boxes))}." for figure in figures)


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
        import typst
    except ModuleNotFoundError:
        help = "install it with `pip install 'cnnspec[draw]'`, or write an SVG"
        raise failure("E0507", "typst is not installed", help=help) from None
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0])
    ppi = 192.0 * min(1.0, (MAX_PIXELS / (4 * width * height)) ** 0.5)
    compile: Any = typst.compile  # its stub lacks several input files
    return compile({"main.typ": _TYPST, "net.svg": text.encode()}, format=form, ppi=ppi)
