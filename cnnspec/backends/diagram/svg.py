"""Scalable vector graphics of figures, as text that depends on nothing but the network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from math import fsum
from typing import NamedTuple

from cnnspec.backends.diagram.layout import (
    LEAD,
    MINOR,
    NAME,
    SMALL,
    STACK,
    Drawing,
    Edge,
    Placed,
    frame_title,
    has_bars,
    row_metrics,
    shown_name,
    text_width,
)
from cnnspec.backends.diagram.outline import Box, Key, shortened, size_text
from cnnspec.diagnostics import printable

FONT = "Inter, Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_SERIF = "'Times New Roman', Times, 'Liberation Serif', 'DejaVu Serif', serif"
_MARGIN, _TITLE_ROW = 24.0, 40.0
_PANEL_PAD, _PANEL_TITLE = 16.0, 30.0
_PAPER_WIDTHS = {"TB": 3.3 * 96, "LR": 6.9 * 96}
"""Width of a figure in pixels: one column of a page with two columns, or both."""
_PAPER_ASPECT, _PAPER_PAD = 2.4, 22.0
"""The largest height of a figure as a multiple of its width, and the space between figures."""

LIGHT = {
    "page": "#ffffff", "text": "#1f2933", "faint": "#5f6c7b", "edge": "#52606d", "panel": "#f7f8fa", "line": "#d3d9e0",
    "conv": "#cfe2f8", "norm": "#e6eaee", "act": "#fbe3c4", "pool": "#e2d5f3", "linear": "#f8cfcf",
    "layout": "#eef0e0", "add": "#ffffff", "mul": "#ffffff", "concat": "#ffffff", "block": "#cdeee2",
    "group": "#ffffff", "input": "#ffffff", "output": "#ffffff", "stroke": "#7b8794", "params": "#c2410c",
    "macs": "#1d4ed8", "added": "#15803d", "removed": "#b91c1c", "changed": "#b45309",
}  # fmt: skip
DARK = {
    "page": "#15191e", "text": "#e6eaee", "faint": "#9aa5b1", "edge": "#9aa5b1", "panel": "#1c2229", "line": "#3a444f",
    "conv": "#1f4268", "norm": "#36404a", "act": "#66481f", "pool": "#463366", "linear": "#6b2b2f",
    "layout": "#41452c", "add": "#15191e", "mul": "#15191e", "concat": "#15191e", "block": "#1c5343",
    "group": "#15191e", "input": "#15191e", "output": "#15191e", "stroke": "#7b8794", "params": "#fb923c",
    "macs": "#60a5fa", "added": "#4ade80", "removed": "#f87171", "changed": "#fbbf24",
}  # fmt: skip
_PAPER = {
    **LIGHT, "text": "#000000", "faint": "#333333", "edge": "#000000", "stroke": "#000000", "panel": "#ffffff",
    "line": "#888888", "conv": "#dce9f7", "norm": "#f2f2f2", "act": "#fcefd9", "pool": "#ece4f6", "linear": "#fae0e0",
    "layout": "#f4f5ea", "block": "#dff3ec",
}  # fmt: skip
KINDS = {
    "conv": "convolution", "norm": "normalization", "act": "activation", "pool": "pooling", "linear": "linear",
    "layout": "layout", "block": "block", "group": "group",
}  # fmt: skip
"""The kinds of boxes in the legend, with their names."""
THEMES = ("light", "dark", "auto")


Anchors = dict[tuple[int, Key], str]


class Panel(NamedTuple):
    """A figure on the page, at a place."""

    drawing: Drawing
    x: float
    y: float
    width: float
    height: float
    title: str
    note: str


def style(theme: str, paper: bool = False) -> str:
    """Return the style sheet of a theme; `auto` follows the reader's setting."""
    base = _rules(_PAPER if paper else DARK if theme == "dark" else LIGHT, paper)
    dark = _rules(DARK, paper)
    return f"{base}@media (prefers-color-scheme:dark){{{dark}}}" if theme == "auto" and not paper else base


def _rules(colors: dict[str, str], paper: bool) -> str:
    kinds = "".join(
        f".{kind}{{fill:{colors[kind]}}}" for kind in (*KINDS, "add", "mul", "concat", "input", "output", "page")
    )
    marks = "".join(f".is-{s}{{stroke:{colors[s]};stroke-width:2}}" for s in ("added", "removed", "changed"))
    arrows = "".join(f".to-{s}{{stroke:{colors[s]}}}" for s in ("added", "removed"))
    return (
        f"text{{font-family:{_SERIF if paper else FONT};fill:{colors['text']}}}"
        f".faint{{fill:{colors['faint']}}}.bold{{font-weight:600}}{kinds}"
        f".panel{{fill:{colors['panel']};stroke:{colors['line']}}}"
        f".frame{{fill:none;stroke:{colors['line']};stroke-dasharray:4 3}}"
        f".rim{{fill:none;stroke:{colors['stroke']};stroke-width:{0.8 if paper else 1}}}"
        f".edge{{fill:none;stroke:{colors['edge']};stroke-width:{0.9 if paper else 1.2}}}"
        f".head{{fill:{colors['edge']}}}.track{{fill:{colors['text']};opacity:.12}}"
        f".halo{{stroke:{colors['page']};stroke-width:3;paint-order:stroke;stroke-linejoin:round}}.same{{opacity:.45}}.params{{fill:{colors['params']}}}.macs{{fill:{colors['macs']}}}{marks}{arrows}"
    )


def number(value: float) -> str:
    """Format a coordinate with at most one decimal."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def safe(text: str) -> str:
    """Escape a text for markup; characters that cannot be shown become their escapes."""
    return escape(printable(text), quote=True)


def _amount(value: object) -> int:
    """Return a number for a bar; functions of the image size have none."""
    return value if isinstance(value, int) else 0


def _title(box: Box) -> str:
    return f"<title>{chr(10).join(map(safe, describe(box)))}</title>"


def _text(x: float, y: float, size: float, text: str, classes: str = "", anchor: str = "middle") -> str:
    style = f' class="{classes}"' if classes else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{number(x)}" y="{number(y)}" font-size="{number(size)}"{place}{style}>{safe(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, classes: str, radius: float = 0) -> str:
    corner = f' rx="{number(radius)}"' if radius else ""
    return (
        f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"{corner} '
        f'class="{classes}"/>'
    )


def edge_path(edge: Edge, x: float, y: float, direction: str) -> str:
    """Return the path data of an edge: rounded corners, or a smooth curve."""
    points = [(a + x, b + y) for a, b in edge.points]
    if edge.arrow and len(points) > 1:
        points[-1] = _before(points[-2], points[-1], 4.0)
    parts = [f"M{number(points[0][0])} {number(points[0][1])}"]
    if edge.curved:
        for (x1, y1), (x2, y2) in pairwise(points):
            one, two = (x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2)
            if direction == "LR":
                one, two = ((x1 + x2) / 2, y1), ((x1 + x2) / 2, y2)
            parts.append("C" + " ".join(map(number, (*one, *two, x2, y2))))
        return "".join(parts)
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(6.0, _length(before, corner) / 2, _length(corner, after) / 2)
        one, two = _before(before, corner, radius), _before(after, corner, radius)
        parts.append(f"L{number(one[0])} {number(one[1])}")
        parts.append(f"Q{number(corner[0])} {number(corner[1])} {number(two[0])} {number(two[1])}")
    parts.append(f"L{number(points[-1][0])} {number(points[-1][1])}")
    return "".join(parts)


def _length(one: tuple[float, float], two: tuple[float, float]) -> float:
    return abs(one[0] - two[0]) + abs(one[1] - two[1])


def _before(start: tuple[float, float], end: tuple[float, float], distance: float) -> tuple[float, float]:
    """Return the point at a distance before the end of a vertical or horizontal line."""
    length = _length(start, end)
    if length == 0:
        return end
    share = min(distance / length, 1.0)
    return end[0] + (start[0] - end[0]) * share, end[1] + (start[1] - end[1]) * share


def _arrow(edge: Edge, x: float, y: float, direction: str) -> str:
    (x1, y1), (x2, y2) = edge.points[-2:]
    if direction == "TB" if edge.curved else abs(x1 - x2) < 0.01:
        back = 6 if y1 > y2 else -6
        sides = [(x2 - 3.2, y2 + back), (x2 + 3.2, y2 + back)]
    else:
        back = 6 if x1 > x2 else -6
        sides = [(x2 + back, y2 - 3.2), (x2 + back, y2 + 3.2)]
    corners = " ".join(f"{number(a + x)},{number(b + y)}" for a, b in [(x2, y2), *sides])
    return f'<polygon class="head" points="{corners}"/>'


def _shape(p: Placed, x: float, y: float) -> list[str]:
    """Return the shape of the output of a box, if it is shown."""
    return [_text(p.label[0] + x, p.label[1] + y, SMALL, p.box.edge, "faint halo", "start")] if p.label else []


def describe(box: Box) -> list[str]:
    """Return the lines of the description of a box for tooltips and screen readers."""
    first = " ".join(filter(None, (box.path or box.kind, f"×{box.repeat}" if box.repeat > 1 else "")))
    cells = " | ".join(cell.text for row in box.rows for cell in row)
    lines = [first, box.title or cells, f"output {size_text(box.shape)}"]
    if box.nodes:
        lines += [f"{box.parameters:,} parameters", f"{box.macs:,} multiply-adds"]
    return [line for line in (*lines, box.status) if line]


class Writer:
    """Write drawings as SVG elements.

    Attributes:
        paper: Whether to draw in the style of papers.
        anchors: The id of the figure of each block.
        faded: Whether to fade boxes without a status, in a comparison.
        network: The number of the network that is drawn.
    """

    def __init__(self, *, paper: bool, anchors: Anchors, faded: bool) -> None:
        self.paper, self.anchors, self.faded, self.network = paper, anchors, faded, 0

    def drawing(self, drawing: Drawing, x: float, y: float) -> list[str]:
        """Return the elements of a drawing at a place."""
        self.network = drawing.figure.network
        barred = [p.box for p in drawing.placed if has_bars(p.box)]
        most = max([_amount(box.parameters) for box in barred] or [0])
        work = max([_amount(box.macs) for box in barred] or [0])
        frames = [p for p in drawing.placed if p.box.inner is not None]
        lines = [line for p in frames for line in self._frame(p, x, y)]
        for edge in drawing.edges:
            mark = f" to-{edge.status}" if edge.status else ""
            lines.append(f'<path class="edge{mark}" d="{edge_path(edge, x, y, drawing.direction)}"/>')
        lines += [
            _arrow(edge, x, y, drawing.direction) for edge in drawing.edges if edge.arrow and len(edge.points) > 1
        ]
        for p in drawing.placed:
            if p.box.inner is None:
                lines += self._box(p, x, y, most, work)
        return lines

    def _frame(self, p: Placed, x: float, y: float) -> list[str]:
        left, top = p.x - p.left + x, p.y + y
        status = f" is-{p.box.status}" if p.box.status in ("added", "removed") else ""
        return [
            f'<g class="node" data-kind="frame" data-path="{safe(p.box.path)}"{self._line(p.box)}>',
            _title(p.box),
            _rect(left, top, p.left + p.right, p.height, f"frame{status}", 8),
            _text(left + 8, top + 12, NAME, frame_title(p.box), "faint", "start"),
            "</g>",
            *_shape(p, x, y),
        ]

    def _line(self, box: Box) -> str:
        return f' data-line="{self.network}-{box.line}"' if box.line else ""

    def _box(self, p: Placed, x: float, y: float, most: int, work: int) -> list[str]:
        box, left, top, width = p.box, p.x - p.left + x, p.y + y, p.left + p.right
        anchor = self.anchors.get((self.network, box.block)) if box.block is not None else None
        height = p.height
        if box.repeat > 1:
            width, height = width - STACK, height - STACK
        lines = [f'<a href="#{anchor}">'] if anchor else []
        same = " same" if self.faded and not box.status and box.nodes else ""
        lines.append(f'<g class="node{same}" data-kind="{box.kind}" data-path="{safe(box.path)}"{self._line(box)}>')
        lines.append(_title(box))
        status = f" is-{box.status}" if box.status else ""
        kinds = {cell.kind for row in box.rows for cell in row}
        if box.kind == "join" and len(box.rows) == 1 and not kinds & {"concat"}:
            sign = "+" if "add" in kinds else "×"
            circle = f'cx="{number(p.x + x)}" cy="{number(top + p.left)}" r="{number(p.left)}"'
            lines.append(f'<circle {circle} class="{kinds.pop()}"/><circle {circle} class="rim{status}"/>')
            lines.append(_text(p.x + x, top + p.left + 4.5, 14, sign))
        else:
            lines += self._rows(box, left, top, width, height, status)
            if not self.paper and has_bars(box):
                lines += _bars(box, left, top + height, width, most, work)
        lines.append("</g>")
        lines += ["</a>"] if anchor else []
        lines += _shape(p, x, y)
        return lines

    def _rows(self, box: Box, left: float, top: float, width: float, height: float, status: str) -> list[str]:
        lines: list[str] = []
        main = next((row[0].kind for row in box.rows if row[0].kind not in ("norm", "act")), box.rows[0][0].kind)
        radius = 10 if box.kind in ("input", "output", "join") else 4
        if box.repeat > 1:
            for shift in (STACK, STACK / 2):
                lines.append(_rect(left + shift, top + shift, width, height, main, radius))
                lines.append(_rect(left + shift, top + shift, width, height, "rim", radius))
        lines.append(_rect(left, top, width, height, main, radius))
        y, named = top, shown_name(box)
        if named:
            y += 12
            lines.append(_text(left + width / 2, y - 2, NAME, named, "faint"))
        for position, row in enumerate(box.rows):
            size, step = row_metrics(box, row)
            weights = [text_width(shortened(cell.text), size) + 14 for cell in row]
            x, total = left, fsum(weights)
            last = position == len(box.rows) - 1
            for cell, weight in zip(row, weights, strict=True):
                share = width * weight / total
                if cell.kind != main:
                    lines.append(_cell(x, y, share, step, cell.kind, (x == left) and last, (cell is row[-1]) and last))
                bold = "bold" if box.kind in ("block", "group") else ""
                badge = f"  ×{box.repeat}" if box.repeat > 1 and not named and position == 0 else ""
                text = shortened(cell.text) + badge
                lines.append(_text(x + share / 2, y + step / 2 + size * 0.35, size, text, bold))
                x += share
            y += step
        lines.append(_rect(left, top, width, height, f"rim{status}", radius))
        return lines


def _cell(x: float, y: float, width: float, height: float, kind: str, first: bool, last: bool) -> str:
    """Return the background of an operator within a box; the corners of the last row are round."""
    r1, r2 = (4 if first else 0), (4 if last else 0)
    n = number
    return (
        f'<path class="{kind}" d="M{n(x)} {n(y)}h{n(width)}v{n(height - r2)}q0 {r2} -{r2} {r2}'
        f'h-{n(width - r1 - r2)}q-{r1} 0 -{r1} -{r1}z"/>'
    )


def _bars(box: Box, left: float, bottom: float, width: float, most: int, work: int) -> list[str]:
    half = (width - 14) / 2
    lines: list[str] = []
    for kind, x, value, largest in (
        ("params", left + 5, _amount(box.parameters), most),
        ("macs", left + 9 + half, _amount(box.macs), work),
    ):
        lines.append(_rect(x, bottom - 5.5, half, 2.5, "track", 1.2))
        if value:
            lines.append(_rect(x, bottom - 5.5, max(half * value / largest, 1.0), 2.5, kind, 1.2))
    return lines


def arrange(main: Sequence[Drawing], blocks: Sequence[Drawing], notes: Sequence[str], *, heading: bool) -> list[Panel]:
    """Place the networks next to each other across their direction, and then the blocks in columns or rows."""
    turned = (*main, *blocks)[0].direction == "LR"

    def flip(one: float, two: float) -> tuple[float, float]:
        return (two, one) if turned else (one, two)

    panels: list[Panel] = []
    x, top = flip(_MARGIN, (_MARGIN + _TITLE_ROW if heading else 8.0) + (20.0 if len(main) > 1 else 0.0))
    for drawing in main:
        title = drawing.figure.title if len(main) > 1 else ""
        panels.append(Panel(drawing, *flip(x, top), drawing.width, drawing.height, title, ""))
        x += flip(drawing.width, drawing.height)[0] + 40
    limit = max([flip(drawing.width, drawing.height)[1] for drawing in main] or [0])
    sizes = [
        flip(
            max(d.width, text_width(d.figure.title, 12) + text_width(note, SMALL) + 24) + 2 * _PANEL_PAD,
            d.height + _PANEL_TITLE + 22,
        )
        for d, note in zip(blocks, notes, strict=True)
    ]
    area = fsum((w + 20) * (h + 20) for w, h in sizes)
    limit = max(limit, (area**0.5) * 0.8, *[h for _, h in sizes]) if sizes else limit
    y, column = top, 0.0
    for drawing, note, (width, height) in zip(blocks, notes, sizes, strict=True):
        if y > top and y + height > top + limit:
            x, y, column = x + column + 20, top, 0.0
        panels.append(Panel(drawing, *flip(x, y), *flip(width, height), drawing.figure.title, note))
        y += height + 20
        column = max(column, width)
    return panels


def arrange_paper(main: Sequence[Drawing], blocks: Sequence[Drawing]) -> list[Panel]:
    """Place the network, and the blocks beside and below it, in the narrowest page that is not too high.

    Networks from left to right are below each other, and their blocks in rows below them.
    """
    turned = (*main, *blocks)[0].direction == "LR"
    sizes = [(max(d.width, text_width(d.figure.title, 12)), d.height + _PANEL_TITLE) for d in blocks]
    base = fsum(d.width + _PAPER_PAD for d in main)
    tallest = max([d.height for d in main] or [0.0])
    if turned and main:
        base = max(d.width for d in main) + _PAPER_PAD
        tallest = fsum(d.height + _PAPER_PAD for d in main) - _PAPER_PAD
    widths = sorted({base, *[w for w, _ in sizes], *[base + w for w, _ in sizes], base + fsum(w for w, _ in sizes)})
    panels: list[Panel] = []
    for width in (w for w in widths if w >= max([base - _PAPER_PAD, *[w for w, _ in sizes]])):
        panels, x, y = [], 8.0, 8.0
        for drawing in main:
            panels.append(Panel(drawing, x, y, drawing.width, drawing.height, "", ""))
            if turned:
                y += drawing.height + _PAPER_PAD
            else:
                x += drawing.width + _PAPER_PAD
        x, y, rest = 8.0 + base, 8.0, list(range(len(blocks)))
        for i in [i for i, (w, _) in enumerate(sizes) if x + w <= 8.0 + width + 0.01]:
            if y + sizes[i][1] <= tallest + 40:
                panels.append(Panel(blocks[i], x, y, *sizes[i], blocks[i].figure.title, ""))
                y += sizes[i][1] + 12
                rest.remove(i)
        x, y, row = 8.0, max(tallest + 20, y), 0.0
        for i in rest:
            if x > 8.0 and x + sizes[i][0] > 8.0 + width + 0.01:
                x, y, row = 8.0, y + row + 12, 0.0
            panels.append(Panel(blocks[i], x, y, *sizes[i], blocks[i].figure.title, ""))
            x, row = x + sizes[i][0] + _PAPER_PAD, max(row, sizes[i][1])
        if max(p.y + p.height for p in panels) <= _PAPER_ASPECT * max(p.x + p.width for p in panels):
            break
    return panels


def write_svg(
    panels: Sequence[Panel],
    title: str,
    subtitle: str,
    description: str,
    *,
    theme: str = "light",
    paper: bool = False,
    prefix: str = "",
    embedded: bool = False,
) -> str:
    """Return a page with figures as SVG.

    Args:
        panels: The figures with their places.
        title: The name of the network.
        subtitle: Its figures in words.
        description: The description for screen readers.
        theme: `light`, `dark` or `auto`.
        paper: Draw in the style of papers, without colors of bars and without a heading.
        prefix: The start of every id.
        embedded: Leave out the style sheet, which the surrounding page has.
    """
    anchors: Anchors = {}
    for position, panel in enumerate(panels):
        figure = panel.drawing.figure
        if figure.key is not None:
            anchors[figure.network, figure.key] = f"{prefix}block-{position}"
    faded = any(p.box.status for panel in panels for p in panel.drawing.placed)
    writer = Writer(paper=paper, anchors=anchors, faded=faded)
    body: list[str] = []
    for panel in panels:
        key = panel.drawing.figure.key
        if key is None:
            if panel.title:
                body.append(_text(panel.x, panel.y - 8, 13, panel.title, "bold", "start"))
            body += writer.drawing(panel.drawing, panel.x, panel.y)
            continue
        body.append(f'<g id="{anchors[panel.drawing.figure.network, key]}" class="figure">')
        if paper:
            body.append(_text(panel.x + panel.width / 2, panel.y + 14, 12, panel.title, "bold"))
        else:
            body.append(_rect(panel.x, panel.y, panel.width, panel.height, "panel", 8))
            body.append(_text(panel.x + _PANEL_PAD, panel.y + 20, 12, panel.title, "bold", "start"))
            body.append(_text(panel.x + panel.width - _PANEL_PAD, panel.y + 20, SMALL, panel.note, "faint", "end"))
        inner = panel.x + (panel.width - panel.drawing.width) / 2
        top = panel.y + _PANEL_TITLE + (0 if paper else 10)
        body += [*_entry(panel.drawing, inner, top), *writer.drawing(panel.drawing, inner, top), "</g>"]
    width = max([p.x + p.width for p in panels]) + (8.0 if paper else _MARGIN)
    bottom = max([p.y + p.height for p in panels]) + 20
    if not paper:
        width = max(width, text_width(subtitle, MINOR + 1) + 2 * _MARGIN, 420.0)
    legend, height = ([], bottom - 8) if paper else _legend(panels, bottom, width)
    head = [] if paper or embedded else [
        _text(_MARGIN, 34, 18, title, "bold", "start"), _text(_MARGIN, 52, MINOR + 1, subtitle, "faint", "start")
    ]  # fmt: skip
    size = f'width="{number(width)}" height="{number(height)}"'
    if paper:
        column = _PAPER_WIDTHS[panels[0].drawing.direction]
        size = f'width="{number(column)}" height="{number(column * height / width)}"'
    sheet = [] if embedded else [f"<style>{style(theme, paper)}</style>"]
    role = f'role="img" aria-labelledby="{prefix}title {prefix}desc"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {number(width)} {number(height)}" {role}>',
        f'<title id="{prefix}title">{safe(title)}</title>',
        f'<desc id="{prefix}desc">{safe(description)}</desc>',
        *sheet,
        _rect(0, 0, width, height, "page"),
        *head,
        *body,
        *legend,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _entry(drawing: Drawing, x: float, y: float) -> list[str]:
    """Return the edge that enters a block, with the shape of its tensor."""
    if drawing.entry is None:
        return []
    end_x, end_y = drawing.entry[0] + x, drawing.entry[1] + y
    shape = shortened(size_text(drawing.figure.entry))
    if drawing.direction == "LR":
        start, line, place = (x, end_y), f"H{number(end_x)}", (x + 3, end_y - 4)
    else:
        start, line, place = (end_x, end_y - LEAD), f"V{number(end_y)}", (end_x + 5, end_y - 2)
    lines = [f'<path class="edge" d="M{number(start[0])} {number(start[1])}{line}"/>']
    return [*lines, _text(*place, SMALL, shape, "faint", "start")] if shape else lines


def _legend(panels: Sequence[Panel], y: float, width: float) -> tuple[list[str], float]:
    """Return the legend of the kinds that occur, and its bottom."""
    placed = [p for panel in panels for p in panel.drawing.placed]
    used = {cell.kind for p in placed for row in p.box.rows for cell in row}
    statuses = {p.box.status for p in placed}
    entries = [(kind, name) for kind, name in KINDS.items() if kind in used]
    entries += [("params", "parameters"), ("macs", "multiply-adds (relative to the largest box of a figure)")]
    entries += [(f"page is-{s}", s) for s in ("added", "removed", "changed") if s in statuses]
    x, lines = _MARGIN, list[str]()
    for kind, name in entries:
        bar = kind in ("params", "macs")
        space = 19 + text_width(name, MINOR)
        if x > _MARGIN and x + space > width - _MARGIN:
            x, y = _MARGIN, y + 20
        lines.append(_rect(x, y + (5 if bar else 1), 14, 3 if bar else 11, kind if bar else f"{kind}", 2))
        if not bar and "is-" not in kind:
            lines.append(_rect(x, y + 1, 14, 11, "rim", 2))
        lines.append(_text(x + 19, y + 10, MINOR, name, "faint", "start"))
        x += space + 16
    return lines, y + 34
