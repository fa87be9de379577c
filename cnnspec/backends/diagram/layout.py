"""Layout of figures: coordinates of boxes and routes of edges, without fonts, randomness or external programs.

A figure is decomposed into series and parallel parts, which are drawn around one vertical axis: branches next to each
other, and an edge without operators, such as a shortcut, on a lane to the right of what it bypasses. Such a picture has
no crossings. What cannot be decomposed is laid out in layers, ordered by the barycenter of their neighbors.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import fsum  # `sum` of floats depends on the version of Python

from cnnspec.backends.diagram.outline import ENTRY, Box, Figure, shortened

Point = tuple[float, float]
Routes = dict[tuple[int, int], list[Point]]

END = 1 << 30
"""The target of an edge that leaves a figure."""

MAIN, MINOR, NAME, SMALL = 12.0, 10.0, 9.5, 9.0
"""Font sizes: of operators, of norms and activations, of names, and of shapes."""

_MAIN_ROW, _MINOR_ROW, _NAME_ROW, _BAR_ROW = 21.0, 15.0, 12.0, 7.0
_GAP, _LABEL, _BEND, _LANE, _COLUMN, _PAD, _RADIUS = 16.0, 26.0, 11.0, 14.0, 22.0, 10.0, 9.0
STACK = 5.0
"""The space for the edges of a stack of repeated boxes."""

_MAX_NESTING, _MAX_LAYERED = 40, 3_000
_NARROW, _WIDE = frozenset("iljtfrI.,:;|!'()[]/ "), frozenset("mwMW@%")


def text_width(text: str, size: float) -> float:
    """Return the approximate width of a text in a wide sans-serif font."""
    units = 0.0
    for char in text:
        if char in _NARROW:
            units += 0.37
        elif char in _WIDE or unicodedata.east_asian_width(char) in "WF":
            units += 1.0
        else:
            units += 0.69 if char.isupper() else 0.62
    return units * size


@dataclass
class Placed:
    """A box with its place: the axis through its ports, its extents from there, and its top.

    Attributes:
        box: The box.
        x: The axis.
        y: The top.
        left: The extent to the left of the axis.
        right: The extent to the right of the axis.
        height: The height.
        labeled: Whether the shape of the output is written below it.
    """

    box: Box
    x: float
    y: float
    left: float
    right: float
    height: float
    labeled: bool = False


@dataclass
class Edge:
    """An edge with its route, and the shape of its tensor.

    Attributes:
        points: The corners of the route.
        arrow: Whether an arrowhead is at its end.
        curved: Whether the route is a curve through its points.
        source: The title of the box that it leaves.
        target: The title of the box that it enters.
    """

    points: list[Point]
    arrow: bool
    curved: bool
    source: str
    target: str
    status: str = ""


@dataclass
class Drawing:
    """A figure with coordinates; its upper left corner is the origin.

    Attributes:
        figure: The figure.
        placed: The boxes; a frame comes before its content.
        edges: The edges.
        width: The width.
        height: The height.
        entry: The place of the input of a block, if it has no box.
    """

    figure: Figure
    placed: list[Placed]
    edges: list[Edge]
    width: float
    height: float
    entry: Point | None = None


@dataclass
class _Region:
    """A part of a figure around the axis x=0, from y=0 to its height."""

    placed: list[tuple[int, Placed]] = field(default_factory=list[tuple[int, Placed]])
    routes: Routes = field(default_factory=dict[tuple[int, int], list[Point]])
    curved: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    left: float = 0.0
    right: float = 0.0
    height: float = 0.0
    inner: list[Drawing] = field(default_factory=list[Drawing])

    def include(self, other: _Region, x: float, y: float) -> None:
        """Add another region at a place."""
        for index, placed in other.placed:
            self.placed.append((index, replace(placed, x=placed.x + x, y=placed.y + y)))
        for key, points in other.routes.items():
            self.routes[key] = [(a + x, b + y) for a, b in points]
        self.curved |= other.curved
        self.left, self.right = max(self.left, other.left - x), max(self.right, other.right + x)


class _Layout:
    """The layout of the boxes of one figure or frame."""

    def __init__(self, boxes: Sequence[Box], exit: int, *, paper: bool, framed: bool = False) -> None:
        self.boxes, self.paper, self.framed = boxes, paper, framed
        self.gaps: dict[int, float] = {ENTRY: _GAP}
        self.frames: dict[int, tuple[_Region, _Layout]] = {}
        self.sources = [tuple(dict.fromkeys(box.inputs)) for box in boxes]
        self.readers: dict[int, list[int]] = {ENTRY: [], **{i: [] for i in range(len(boxes))}}
        for index, inputs in enumerate(self.sources):
            for i in inputs:
                self.readers[i].append(index)
        if boxes[exit].kind != "output":
            self.readers[exit].append(END)
        self.labeled = [self._is_labeled(i) for i in range(len(boxes))]
        self.sizes = [self._size(i) for i in range(len(boxes))]
        self.exit = exit

    def _is_labeled(self, index: int) -> bool:
        box = self.boxes[index]
        before = [self.boxes[i].shape for i in self.sources[index] if i != ENTRY]
        changed = not before or any(shape != box.shape for shape in before)
        return changed and bool(box.edge) and any(reader != END or not self.framed for reader in self.readers[index])

    def _size(self, index: int) -> tuple[float, float, float]:
        """Return the extents of a box to the left and right of its axis, and its height."""
        box = self.boxes[index]
        if box.inner is not None:
            layout = _Layout(box.inner, len(box.inner) - 1, paper=self.paper, framed=True)
            region = layout.region()
            self.frames[index] = (region, layout)
            title = text_width(frame_title(box), NAME) + 8
            return max(region.left, title) + _PAD, region.right + _PAD, region.height + _NAME_ROW + 8
        if box.kind == "join" and box.rows[0][0].kind != "concat" and len(box.rows) == 1:
            return _RADIUS, _RADIUS, 2 * _RADIUS
        width, height = (0.0, 0.0) if self.paper or not has_bars(box) else (64.0, _BAR_ROW)
        if shown_name(box):
            width, height = max(width, text_width(shown_name(box), NAME) + 14), height + _NAME_ROW
        for row in box.rows:
            size, step = row_metrics(box, row)
            width = max(width, fsum(text_width(shortened(cell.text), size) + 14 for cell in row))
            height += step
        badge = text_width(f"×{box.repeat}", NAME) + 8 if box.repeat > 1 else 0
        width = max(width, 54.0) + (badge if not shown_name(box) else 0)
        more = STACK if box.repeat > 1 else 0.0
        return width / 2, width / 2 + more, height + more

    # -- series and parallel parts

    def region(self) -> _Region:
        """Return the layout of all boxes."""
        alive = self._alive()
        dead = [i for i in range(len(self.boxes)) if i not in alive]
        parts = self._components(dead)
        roots = [{i for member in part for i in self.sources[member] if i not in part} for part in parts]
        ends: list[int] = []
        if any(len(root) != 1 or ENTRY in root for root in roots):
            ends = [i for i in dead if not self.readers[i]]
            for i in ends:
                self.readers[i].append(END)
            dead, parts = [], []
        hidden = set(dead)
        below = {i: [j for j in self.readers[i] if j in hidden] for root in roots for i in root}
        for i in below:
            self.readers[i] = [j for j in self.readers[i] if j not in hidden]
        top = 0 if self.boxes[0].kind == "input" else ENTRY
        members = [i for i in range(len(self.boxes)) if i not in hidden and i != top]
        region = _Region()
        self._chain(region, members, top, END, 0, flush=False)
        for i in ends:
            region.routes.pop((i, END), None)
        for i, readers in below.items():
            self.readers[i] += readers
        self._hang(region, list(zip(parts, roots, strict=True)) if parts else [])
        return region

    def _alive(self) -> set[int]:
        """Return the boxes that the output depends on."""
        found, pending = {self.exit}, [self.exit]
        while pending:
            for i in self.sources[pending.pop()]:
                if i != ENTRY and i not in found:
                    found.add(i)
                    pending.append(i)
        return found

    def _components(self, members: Sequence[int]) -> list[list[int]]:
        """Return the connected components of some boxes, each in order."""
        inside, root = set(members), {i: i for i in members}

        def find(i: int) -> int:
            while root[i] != i:
                root[i] = root[root[i]]
                i = root[i]
            return i

        for i in members:
            for j in self.sources[i]:
                if j in inside:
                    one, two = sorted((find(i), find(j)))
                    root[two] = one
        parts: dict[int, list[int]] = {}
        for i in members:
            parts.setdefault(find(i), []).append(i)
        return list(parts.values())

    def _cuts(self, members: Sequence[int], top: int, bottom: int) -> list[int]:
        """Return the boxes that every path from `top` to `bottom` passes."""
        position = {member: k for k, member in enumerate(members)}
        position[top] = -1
        reach, cuts = -1, list[int]()
        for target in (k for k in self.readers[top] if k in position):
            reach = max(reach, position[target])
        for k, member in enumerate(members):
            if reach <= k:
                cuts.append(member)
            for reader in self.readers[member]:
                reach = max(reach, position.get(reader, len(members)))
        return cuts

    def _box(self, region: _Region, index: int, y: float) -> float:
        left, right, height = self.sizes[index]
        region.placed.append((index, Placed(self.boxes[index], 0.0, y, left, right, height, self.labeled[index])))
        label = text_width(self.boxes[index].edge, SMALL) + 8 if self.labeled[index] else 0.0
        region.left, region.right = max(region.left, left), max(region.right, right, label)
        return y + height

    def _gap(self, index: int) -> float:
        return self.gaps.get(index) or (_LABEL if self.labeled[index] else _GAP)

    def _chain(
        self, region: _Region, members: Sequence[int], top: int, bottom: int, depth: int, *, flush: bool
    ) -> None:
        """Lay out what is between two boxes; an edge between the two themselves is left to the caller.

        Args:
            region: The empty region to fill.
            members: The boxes between them.
            top: The box above, which the caller places.
            bottom: The box below, which the caller places.
            depth: The nesting depth.
            flush: Whether `bottom` follows directly below the region, so that a shortcut may enter it from the side.
        """
        cuts = self._cuts(members, top, bottom)
        if not cuts and members and len(self._components(members)) == 1:
            self._layers(region, members, top, bottom)
            return
        y, above, rest = 0.0, top, list(members)
        if top != ENTRY and self.boxes[top].kind == "input" and depth == 0:
            y = self._box(region, top, 0.0)
        position = {member: k for k, member in enumerate(members)}
        start = 0
        for below in (*cuts, bottom):
            stop = position.get(below, len(rest))
            part = self._parallel(members[start:stop], above, below, depth, flush=flush or below != bottom)
            region.include(part, 0.0, y)
            y += part.height
            if below != bottom:
                y = self._box(region, below, y)
            above, start = below, stop + 1
        region.height = y

    def _parallel(self, members: Sequence[int], top: int, bottom: int, depth: int, *, flush: bool) -> _Region:
        """Lay out the branches between two boxes."""
        region = _Region()
        direct = bottom in self.readers[top]
        if not members:
            gap = self._gap(top) if direct else 0.0
            region.height = gap
            if direct:
                region.routes[top, bottom] = [(0.0, 0.0), (0.0, gap)]
            return region
        parts = self._components(members)
        lane = direct and bottom != END
        side = lane and flush and len(parts) == 1 and self.boxes[bottom].kind == "join"
        spread = len(parts) > 1 or lane
        fork = self._gap(top) - _BEND if spread else 0.0
        columns = self._branches(parts, top, bottom, depth, flush=flush and len(parts) == 1 and (side or not lane))
        offsets = [0.0]
        for one, two in pairwise(columns):
            offsets.append(offsets[-1] + one.right + _COLUMN + two.left)
        middle = (offsets[-1] + columns[-1].right - columns[0].left) / 2 if len(parts) > 1 else 0.0
        merge = fork + max(column.height for column in columns) + (4.0 if spread and not side else 0.0)
        for column, offset in zip(columns, offsets, strict=True):
            x = offset - middle
            region.include(column, x, fork)
            for key, points in column.routes.items():
                moved = region.routes[key]
                if key[0] == top and points[0] == (0.0, 0.0):
                    moved[:0] = [(0.0, 0.0), (0.0, fork)] if x else [(0.0, 0.0)]
                if key[1] == bottom and points[-1] == (0.0, column.height):
                    moved += [(x, merge), (0.0, merge)] if x else [(0.0, merge)]
        if lane:
            x = max(region.right + _LANE, 40.0)
            end = [(x, merge), (0.0, merge)]
            if side:
                _, right, height = self.sizes[bottom]
                end = [(x, merge + height / 2), (right, merge + height / 2)]
            region.routes[top, bottom] = [(0.0, 0.0), (0.0, fork), (x, fork), *end]
            region.right = x
        region.height = merge
        if spread and not side:
            region.height += 8.0 if bottom != END else 0.0
            for key, points in region.routes.items():
                if key[1] == bottom:
                    points.append((0.0, region.height))
        return region

    def _branches(
        self, parts: Sequence[Sequence[int]], top: int, bottom: int, depth: int, *, flush: bool
    ) -> list[_Region]:
        """Lay out each branch between two boxes."""
        former = self.gaps.get(top)
        self.gaps[top] = self._gap(top) if len(parts) == 1 and bottom not in self.readers[top] else _GAP
        columns: list[_Region] = []
        for part in parts:
            column = _Region()
            if depth > _MAX_NESTING:
                self._layers(column, part, top, bottom)
            else:
                self._chain(column, part, top, bottom, depth + 1, flush=flush)
            columns.append(column)
        if former is None:
            del self.gaps[top]
        return columns

    def _hang(self, region: _Region, parts: list[tuple[list[int], set[int]]]) -> None:
        """Place parts that do not lead to the output, such as auxiliary heads, to the right of all others."""
        places = dict(region.placed)
        occupied: list[tuple[float, float, float]] = []
        right = region.right
        for part, roots in reversed(parts):
            root = next(iter(roots))
            column = _Region()
            ends = [i for i in part if not self.readers[i]]
            for i in ends:
                self.readers[i].append(END)
            others = self.readers[root]
            self.readers[root] = [i for i in others if i in part]
            self._chain(column, part, root, END, 1, flush=False)
            self.readers[root] = others
            source = places[root]
            y = source.y + source.height + self._gap(root) - _BEND
            x = right + 30 + column.left
            for start, stop, edge in occupied:
                if start < y + column.height + 20 and y < stop + 20:
                    x = max(x, edge + 30 + column.left)
            region.include(column, x, y)
            for key, points in column.routes.items():
                if key[0] == root and points[0] == (0.0, 0.0):
                    base = (source.x, source.y + source.height)
                    region.routes[key][:0] = [base, (source.x, y)]
            occupied.append((y, y + column.height, x + column.right))
            region.height = max(region.height, y + column.height)
            for i in ends:
                region.routes.pop((i, END), None)

    # -- layers

    def _layers(self, region: _Region, members: Sequence[int], top: int, bottom: int) -> None:
        """Lay out boxes in layers, for parts that are not made of series and parallel parts."""
        inside = set(members)
        rank: dict[int, int] = {}
        for i in members:
            rank[i] = 1 + max([rank[j] for j in self.sources[i] if j in inside] or (0,))
        last = max(rank.values())
        for i in reversed(members):  # as late as possible: what is joined later is next to each other
            after = [rank[j] for j in self.readers[i] if j in inside]
            if after and (late := min(after) - 1) > rank[i]:
                rank[i] = late
        layers: list[list[int]] = [[] for _ in range(last + 1)]
        links: dict[int, list[int]] = {}  # neighbors in the layer above, of boxes and of bends of long edges
        for i in members:
            layers[rank[i]].append(i)
        paths: dict[tuple[int, int], list[int]] = {}
        bend = -2
        spans = sum(rank[i] - rank.get(j, 0) for i in members for j in self.sources[i])
        for i in members:
            for j in self.sources[i]:
                path = [j]
                if spans <= _MAX_LAYERED:
                    for level in range(rank.get(j, 0) + 1, rank[i]):
                        layers[level].append(bend)
                        links[bend] = path[-1:] if path[-1] in rank or path[-1] < ENTRY else []
                        path.append(bend)
                        bend -= 1
                if path[-1] in rank or path[-1] < ENTRY:
                    links.setdefault(i, []).append(path[-1])
                paths[j, i] = [*path, i]
        exits = [i for i in members if bottom in self.readers[i]]
        for i in exits:
            path = [i]
            if spans <= _MAX_LAYERED:
                for level in range(rank[i] + 1, last + 1):
                    layers[level].append(bend)
                    links[bend] = [path[-1]]
                    path.append(bend)
                    bend -= 1
            paths[i, bottom] = [*path, bottom]
        layers = [layer for layer in layers if layer]
        x = self._columns(layers, links)
        self._place_layers(region, layers, x, paths, top, bottom)

    def _columns(self, layers: list[list[int]], links: dict[int, list[int]]) -> dict[int, float]:
        """Order the layers to avoid crossings, and return the axis of every box."""
        below: dict[int, list[int]] = {}
        for i, above in links.items():
            for j in above:
                below.setdefault(j, []).append(i)
        x: dict[int, float] = {}
        for layer in layers:
            self._spread(layer, x, {})
        for sweep in range(16):
            down = sweep % 2 == 0
            for layer in layers if down else layers[::-1]:
                near = links if down else below
                wanted = {i: fsum(x[j] for j in near[i]) / len(near[i]) for i in layer if near.get(i)}
                if sweep < 12:
                    layer.sort(key=lambda i: (wanted.get(i, x[i]), x[i]))
                self._spread(layer, x, wanted)
        return x

    def _extents(self, i: int) -> tuple[float, float]:
        if i < 0:
            return 4.0, 4.0
        left, right, _ = self.sizes[i]
        label = text_width(self.boxes[i].edge, SMALL) + 8 if self.labeled[i] else 0.0
        return left, max(right, label)

    def _spread(self, layer: list[int], x: dict[int, float], wanted: dict[int, float]) -> None:
        """Place a layer near the wanted places, without overlaps: blocks of boxes move together."""
        groups: list[tuple[list[int], list[float], float]] = []  # boxes, their offsets, the place of the first
        for i in layer:
            members, offsets, place = [i], [0.0], wanted.get(i, x.get(i, 0.0))
            while groups:
                before, shifts, start = groups[-1]
                space = self._extents(before[-1])[1] + 16 + self._extents(members[0])[0]
                if start + shifts[-1] + space <= place:
                    break
                groups.pop()
                base = shifts[-1] + space
                count, more = len(before), len(members)
                place = (start * count + (place - base) * more) / (count + more)
                members, offsets = before + members, shifts + [base + offset for offset in offsets]
            groups.append((members, offsets, place))
        for members, offsets, place in groups:
            for i, offset in zip(members, offsets, strict=True):
                x[i] = place + offset

    def _place_layers(
        self,
        region: _Region,
        layers: list[list[int]],
        x: dict[int, float],
        paths: dict[tuple[int, int], list[int]],
        top: int,
        bottom: int,
    ) -> None:
        lowest = min(x[i] - self._extents(i)[0] for layer in layers for i in layer)
        highest = max(x[i] + self._extents(i)[1] for layer in layers for i in layer)
        middle = (lowest + highest) / 2
        region.left, region.right = middle - lowest, highest - middle
        y = 30.0
        ways: dict[int, list[Point]] = {}  # through a layer, so that edges turn between layers only
        for layer in layers:
            height = max([self.sizes[i][2] for i in layer if i >= 0] or [0.0])
            for i in layer:
                place = x[i] - middle
                ways[i] = [(place, y), (place, y + height)]
                if i >= 0:
                    left, right, own = self.sizes[i]
                    start = y + (height - own) / 2
                    region.placed.append((i, Placed(self.boxes[i], place, start, left, right, own, self.labeled[i])))
                    ways[i][1:1] = [(place, start), (place, start + own)]
            y += height + 34.0
        region.height = y
        for (source, target), path in paths.items():
            points = [(0.0, 0.0)] if source == top else ways[source][2:]
            for i in path[1:-1]:
                points += ways[i]
            points += [(0.0, region.height)] if target == bottom else ways[target][:2]
            region.routes[source, target] = points
            region.curved.add((source, target))


def has_bars(box: Box) -> bool:
    """Return whether a box shows its share of parameters and operations."""
    return box.inner is None and box.kind in ("op", "block", "group") and (box.parameters != 0 or box.macs != 0)


def shown_name(box: Box) -> str:
    """Return the name line of a box, with the number of repetitions."""
    return shortened(box.name) + (f"  ×{box.repeat}" if box.repeat > 1 else "") if box.name else ""


def frame_title(box: Box) -> str:
    """Return the title of a frame, with the number of repetitions."""
    return " ".join(filter(None, (shortened(box.name), f"×{box.repeat}" if box.repeat > 1 else "")))


def row_metrics(box: Box, row: Sequence[object]) -> tuple[float, float]:
    """Return font size and height of a row of a box."""
    minor = getattr(row[0], "kind", "") in ("norm", "act") or getattr(row[0], "text", "") == "flatten"
    return (MINOR, _MINOR_ROW) if minor else (MAIN, _MAIN_ROW)


def lay_out(figure: Figure, *, paper: bool = False) -> Drawing:
    """Return the layout of a figure."""
    layout = _Layout(figure.boxes, figure.exit, paper=paper)
    region = layout.region()
    placed: list[Placed] = []
    edges: list[Edge] = []
    _flatten(layout, region, 0.0, 0.0, placed, edges, outer=True)
    left = min([p.x - p.left for p in placed] + [x for edge in edges for x, _ in edge.points])
    right = max(
        [p.x + max(p.right, text_width(p.box.edge, SMALL) + 8 if p.labeled else 0.0) for p in placed]
        + [x for edge in edges for x, _ in edge.points]
    )
    for p in placed:
        p.x -= left
    for edge in edges:
        edge.points = [(x - left, y) for x, y in edge.points]
    entry = None if figure.boxes[0].kind == "input" else (-left, 0.0)
    return Drawing(figure, placed, edges, right - left, region.height, entry)


def _flatten(
    layout: _Layout,
    region: _Region,
    x: float,
    y: float,
    placed: list[Placed],
    edges: list[Edge],
    *,
    outer: bool = False,
) -> None:
    """Add the boxes and edges of a region, and of its frames, at a place."""
    for (source, target), points in region.routes.items():
        ends = [layout.boxes[i] if 0 <= i < END else None for i in (source, target)]
        arrow = ends[1].inner is None if ends[1] else outer
        names = [end.path or end.kind if end else "" for end in ends]
        statuses = {end.status for end in ends if end}
        route = _straightened([(a + x, b + y) for a, b in points])
        curved = (source, target) in region.curved
        status = next((s for s in ("added", "removed") if s in statuses), "")
        edges.append(Edge(route, arrow, curved, names[0], names[1], status))
    for index, item in region.placed:
        moved = replace(item, x=item.x + x, y=item.y + y)
        placed.append(moved)
        if index in layout.frames:
            inner, inner_layout = layout.frames[index]
            top = moved.y + _NAME_ROW
            for key, points in inner.routes.items():
                if key[0] == ENTRY:
                    points.insert(0, (0.0, -_NAME_ROW))
                if key[1] == END:
                    points.append((0.0, inner.height + 8))
            _flatten(inner_layout, inner, moved.x, top, placed, edges)


def _straightened(points: Iterable[Point]) -> list[Point]:
    """Return a route without repeated points and points on a straight line."""
    result: list[Point] = []
    for point in points:
        if result and abs(result[-1][0] - point[0]) < 0.01 and abs(result[-1][1] - point[1]) < 0.01:
            continue
        while len(result) > 1 and (
            result[-2][0] == result[-1][0] == point[0] or result[-2][1] == result[-1][1] == point[1]
        ):
            result.pop()
        result.append(point)
    return result
