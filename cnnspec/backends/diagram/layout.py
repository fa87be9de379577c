"""Layout of figures: coordinates of boxes and routes of edges, without fonts, randomness or external programs.

A figure is decomposed into series and parallel parts, which are drawn around one vertical axis: branches next to each
other, and an edge without operators, such as a shortcut, on a lane to the right of what it bypasses. Such a picture has
no crossings. What cannot be decomposed is laid out in layers: if branches exchange their outputs, each resolution has a
lane, and otherwise boxes are ordered by the barycenter of their neighbors.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import fsum, prod  # `sum` of floats depends on the version of Python

from cnnspec.backends.diagram.outline import ENTRY, Box, Figure, shortened, size_text

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
LEAD = 8.0
"""The length of the edge that enters a block."""
DIRECTIONS = ("TB", "LR")
"""From top to bottom, and from left to right."""

_TRACK = 7.0
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
        label: Where the shape of the output starts, if it is written next to the edge.
    """

    box: Box
    x: float
    y: float
    left: float
    right: float
    height: float
    label: Point | None = None

    def extents(self, wide: bool) -> tuple[float, float]:
        """Return the extents to the left and right, with the label."""
        if self.label is None:
            return self.left, self.right
        if wide:
            return max(self.left, SMALL + 6), self.right
        return self.left, max(self.right, text_width(self.box.edge, SMALL) + 8)

    def moved(self, x: float, y: float) -> Placed:
        """Return the box at another place."""
        label = None if self.label is None else (self.label[0] + x, self.label[1] + y)
        return replace(self, x=self.x + x, y=self.y + y, label=label)

    def transposed(self) -> Placed:
        """Return the box with its axis from left to right."""
        half, label = self.height / 2, self.label and _swapped(self.label)
        return Placed(self.box, self.y + half, self.x - self.left, half, half, self.left + self.right, label)


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
        direction: The direction of the edges, one of `DIRECTIONS`.
    """

    figure: Figure
    placed: list[Placed]
    edges: list[Edge]
    width: float
    height: float
    entry: Point | None = None
    direction: str = "TB"


@dataclass
class _Region:
    """A part of a figure around the axis x=0, from y=0 to its height."""

    placed: list[tuple[int, Placed]] = field(default_factory=list[tuple[int, Placed]])
    routes: Routes = field(default_factory=dict[tuple[int, int], list[Point]])
    curved: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    left: float = 0.0
    right: float = 0.0
    height: float = 0.0

    def include(self, other: _Region, x: float, y: float) -> None:
        """Add another region at a place."""
        for index, placed in other.placed:
            self.placed.append((index, placed.moved(x, y)))
        for key, points in other.routes.items():
            self.routes[key] = [(a + x, b + y) for a, b in points]
        self.curved |= other.curved
        self.left, self.right = max(self.left, other.left - x), max(self.right, other.right + x)


class _Layout:
    """The layout of the boxes of one figure or frame, from top to bottom.

    A layout from left to right is the same with transposed coordinates: `wide` swaps the sizes of what is placed.
    """

    def __init__(self, boxes: Sequence[Box], exit: int, *, paper: bool, wide: bool, framed: bool = False) -> None:
        self.boxes, self.paper, self.wide, self.framed = boxes, paper, wide, framed
        self.gaps: dict[int, float] = {ENTRY: _GAP}
        self.frames: dict[int, tuple[_Region, _Layout, float]] = {}
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
            layout = _Layout(box.inner, len(box.inner) - 1, paper=self.paper, wide=self.wide, framed=True)
            region = layout.region()
            self.frames[index] = (region, layout, 8.0 if self.wide else _NAME_ROW)
            title = text_width(frame_title(box), NAME) + 8
            if self.wide:
                return region.left + _NAME_ROW + 6, region.right + _PAD, max(region.height, title) + 16
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
        across, along = (height, width) if self.wide else (width, height)
        return across / 2, across / 2 + more, along + more

    def _extents(self, i: int) -> tuple[float, float]:
        """Return the extents of a box and of the label of its edge, or of the bend of an edge."""
        return self._placed(i, 0.0, 0.0).extents(self.wide) if i >= 0 else (4.0, 4.0)

    # -- series and parallel parts

    def region(self) -> _Region:
        """Return the layout of all boxes."""
        alive = self._alive()
        dead = [i for i in range(len(self.boxes)) if i not in alive]
        ends = [i for i in dead if not self.readers[i]]
        parts = self._components(dead)
        roots = [{i for member in part for i in self.sources[member] if i not in part} for part in parts]
        if all(len(root) == 1 and ENTRY not in root for root in roots):
            hung = [(part, root.pop()) for part, root in zip(parts, roots, strict=True)]
            region = self._hung(hung)
            if not self._is_crossed(region, hung):
                return region
        for i in ends:
            self.readers[i] = [END]
        region = self._joined([])
        for i in ends:
            region.routes.pop((i, END), None)
        return region

    def _hung(self, parts: list[tuple[list[int], int]]) -> _Region:
        """Return the layout with parts that do not lead to the output next to what does; each has one source."""
        hidden = {i for part, _ in parts for i in part}
        readers = {root: self.readers[root] for _, root in parts}
        for root in readers:
            self.readers[root] = [i for i in readers[root] if i not in hidden]
        region = self._joined(hidden)
        for root in readers:
            self.readers[root] = [*self.readers[root], *(i for i in readers[root] if i in hidden)]
        self._hang(region, parts)
        return region

    def _joined(self, hidden: Collection[int]) -> _Region:
        """Return the layout of what leads to the output."""
        top = 0 if is_image(self.boxes[0]) else ENTRY
        region = _Region()
        members = [i for i in range(len(self.boxes)) if i not in hidden and i != top]
        self._chain(region, members, top, END, 0, flush=False)
        for edge in [edge for edge in region.routes if 0 <= edge[1] < END and self.boxes[edge[1]].kind == "input"]:
            del region.routes[edge]
        return region

    def _is_crossed(self, region: _Region, parts: list[tuple[list[int], int]]) -> bool:
        """Return whether an edge to a part that hangs next to the others runs through a box."""
        for part, root in parts:
            for target in part:
                route = region.routes.get((root, target), [])
                for (x, y), (end, level) in pairwise(route):
                    for index, box in region.placed:
                        inside = box.y < y < box.y + box.height and x < box.x + box.right and box.x - box.left < end
                        if y == level and inside and index not in (root, target):
                            return True
        return False

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
        region.placed.append((index, self._placed(index, 0.0, y)))
        left, right = self._extents(index)
        region.left, region.right = max(region.left, left), max(region.right, right)
        return y + self.sizes[index][2]

    def _placed(self, index: int, x: float, y: float) -> Placed:
        left, right, height = self.sizes[index]
        label = (x - 4, y + height + 4) if self.wide else (x + 5, y + height + 11)
        return Placed(self.boxes[index], x, y, left, right, height, label if self.labeled[index] else None)

    def _gap(self, index: int) -> float:
        """Return the length of the edges of a box to the next one."""
        return self.gaps.get(index) or (self._label_gap(index) if self.labeled[index] else _GAP)

    def _label_gap(self, index: int) -> float:
        return text_width(self.boxes[index].edge, SMALL) + 16 if self.wide else _LABEL

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

    def _hang(self, region: _Region, parts: list[tuple[list[int], int]]) -> None:
        """Place parts that do not lead to the output, such as auxiliary heads, to the right of all others."""
        places = dict(region.placed)
        occupied: list[tuple[float, float, float]] = []
        right = region.right
        for part, root in reversed(parts):
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
        edges = [(j, i) for i in members for j in self.sources[i]]
        edges += [(i, bottom) for i in members if bottom in self.readers[i]]
        lanes, ties = self._lanes(members)
        rank = self._ranks(members, ties)
        end = 1 + max(rank.values())
        if not lanes:
            for i in reversed(members):  # as late as possible: what is joined later is next to each other
                after = [rank[j] for j in self.readers[i] if j in inside]
                rank[i] = max([rank[i], min(after) - 1]) if after else rank[i]
        level = {top: 0, bottom: end, **rank}
        bent = sum(level[i] - level[j] for j, i in edges) <= _MAX_LAYERED
        layers: list[list[int]] = [[] for _ in range(end)]
        links: dict[int, list[int]] = {}  # neighbors in the layer above, of boxes and of bends of long edges
        for i in members:
            layers[rank[i]].append(i)
        paths: dict[tuple[int, int], list[int]] = {}
        bend = -2
        for j, i in edges:
            path = [j]
            for between in range(level[j] + 1, level[i]) if bent else ():
                layers[between].append(bend)
                links[bend] = path[-1:] if path[-1] != top else []
                lanes[bend] = lanes.get(i if j == top else j, 0)
                path.append(bend)
                bend -= 1
            if i != bottom and path[-1] != top:
                links.setdefault(i, []).append(path[-1])
            paths[j, i] = [*path, i]
        layers = [layer for layer in layers if layer]
        x = self._axes(layers, links, lanes) if ties and bent else self._columns(layers, links)
        self._place_layers(region, layers, x, paths, tracked=bool(ties) and bent)

    def _ranks(self, members: Sequence[int], ties: Sequence[Sequence[int]] = ()) -> dict[int, int]:
        """Return the layer of each box, from 1 and as early as possible, or nothing if tied boxes cannot be in one."""
        rank = dict.fromkeys(members, 1)
        for _ in range(len(ties) + 2):  # each round settles at least one more of the ties
            before = dict(rank)
            for i in members:
                rank[i] = max([rank[i], *(1 + rank[j] for j in self.sources[i] if j in rank)])
            for tied in ties:
                rank.update(dict.fromkeys(tied, max(rank[i] for i in tied)))
            if rank == before:
                return rank
        return {}

    def _lanes(self, members: Sequence[int]) -> tuple[dict[int, int], list[list[int]]]:
        """Return a lane for each box, and the boxes that belong side by side, for branches that exchange their outputs.

        Such branches have different resolutions and each has a lane. They exchange at joins that each read all of them,
        directly or through boxes that resample, as in HRNet. Otherwise, nothing is returned.
        """
        inside, feeds = set(members), dict[int, int]()
        units: dict[frozenset[int], list[int]] = {}
        for join in members:
            found: set[int] = set()
            for start in self.sources[join]:
                source, reader = start, join
                while self.readers[source] == [reader] and source in inside and len(self.sources[source]) == 1:
                    feeds[source] = join
                    source, reader = self.sources[source][0], source
                found.add(source)
            if len(found) > 1 and found <= inside:
                units.setdefault(frozenset(found), []).append(join)
        sizes = {i: self.boxes[i].shape[1:] for i in members}
        joined = [joins for joins in units.values() if len(joins) > 1 and len({sizes[i] for i in joins}) == len(joins)]
        ties = [tied for key, joins in units.items() if joins in joined for tied in (sorted(key), joins)]
        if not ties or not self._ranks(members, ties):
            return {}, []
        owners = {i: feeds.get(i, i) for i in members}
        known = sorted(dict.fromkeys(sizes[owners[i]] for i in members), key=_area, reverse=True)
        numbers = {size: k for k, size in enumerate(known)}
        return {i: numbers[sizes[owner]] for i, owner in owners.items()}, ties

    def _axes(self, layers: list[list[int]], links: dict[int, list[int]], lanes: dict[int, int]) -> dict[int, float]:
        """Return the axis of every box: that of its lane, or next to what continues the lane."""
        shifts: dict[int, float] = {}  # from the axis of the lane
        cells: dict[int, list[tuple[int, list[int]]]] = {}

        def above(i: int) -> tuple[float, float]:
            """Return the lane and the shift of what is above, on average."""
            near = links.get(i) or [i]
            lane, shift = (fsum(known.get(j, 0.0) for j in near) / len(near) for known in (lanes, shifts))
            return lane, shift

        for number, layer in enumerate(layers):
            layer.sort(key=above)
            for lane in {lanes[i]: None for i in layer}:
                items = [i for i in layer if lanes[i] == lane]
                cells.setdefault(lane, []).append((number, items))
                self._fill(items, {i: [shifts[j] for j in links.get(i, ()) if lanes[j] == lane] for i in items}, shifts)
        ends = [-1e9] * len(layers)  # the right end of each layer so far
        axis, x = 0.0, dict[int, float]()
        for lane in sorted(cells):
            for number, items in cells[lane]:
                axis = max(axis, ends[number] + 16 + self._extents(items[0])[0] - shifts[items[0]])
            for number, items in cells[lane]:
                ends[number] = axis + shifts[items[-1]] + self._extents(items[-1])[1]
                x.update((i, axis + shifts[i]) for i in items)
            axis += 40.0
        return x

    def _fill(self, items: list[int], near: dict[int, list[float]], shifts: dict[int, float]) -> None:
        """Place the boxes of a lane in one layer, each below the box above it, or else next to the others."""
        space = [self._extents(one)[1] + 16 + self._extents(two)[0] for one, two in pairwise(items)]
        main = min(range(len(items)), key=lambda k: min(map(abs, near[items[k]]), default=1e9))
        if not near[items[main]]:
            main, start = 0, -fsum(space) / 2
        else:
            start = min(near[items[main]], key=abs)
        shifts[items[main]] = start
        for k in range(main + 1, len(items)):
            shifts[items[k]] = max([shifts[items[k - 1]] + space[k - 1], *near[items[k]]])
        for k in reversed(range(main)):
            shifts[items[k]] = min([shifts[items[k + 1]] - space[k], *near[items[k]]])

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
        *,
        tracked: bool,
    ) -> None:
        """Place the layers below each other; edges turn between them, in curves or on tracks."""
        lowest = min(x[i] - self._extents(i)[0] for layer in layers for i in layer)
        highest = max(x[i] + self._extents(i)[1] for layer in layers for i in layer)
        middle = x[layers[0][0]] if tracked else (lowest + highest) / 2
        region.left, region.right = middle - lowest, highest - middle
        places = {i: place - middle for i, place in x.items()}
        number = {i: k for k, layer in enumerate(layers) for i in layer}
        tracks: list[dict[tuple[int, int], int]] = [{} for _ in range(len(layers) + 1)]
        if tracked:
            hops: list[list[tuple[int, int]]] = [[] for _ in tracks]
            for path in paths.values():
                for one, two in pairwise(path):
                    hops[number.get(one, -1) + 1].append((one, two))
            tracks = [_tracks([*dict.fromkeys(hop)], places) for hop in hops]
        starts: list[float] = []  # of the tracks in each gap
        ways: dict[int, list[Point]] = {}  # through a layer, so that edges turn between layers only
        y = 0.0
        for layer, below in zip([[], *layers], tracks, strict=True):
            height = max([self.sizes[i][2] for i in layer if i >= 0] or [0.0])
            for i in layer:
                ways[i] = [(places[i], y), (places[i], y + height)]
                if i >= 0:
                    own = self.sizes[i][2]
                    start = y + (height - own) / 2
                    region.placed.append((i, self._placed(i, places[i], start)))
                    ways[i][1:1] = [(places[i], start), (places[i], start + own)]
            y += height
            starts.append(y + max([14.0, *(self._label_gap(i) - 8 for i in layer if i >= 0 and self.labeled[i])]))
            y = max(y + 34.0, starts[-1] + _TRACK * max([0, *below.values()]) + 16.0)
        region.height = y
        for (source, target), path in paths.items():
            points = ways[source][2:] if source in ways else [(0.0, 0.0)]
            for one, two in pairwise(path):
                gap = number.get(one, -1) + 1
                if (one, two) in tracks[gap]:
                    turn = starts[gap] + _TRACK * tracks[gap][one, two]
                    points += [(places.get(one, 0.0), turn), (places.get(two, 0.0), turn)]
                points += ways[two][: 2 if two == target else None] if two in ways else [(0.0, y)]
            region.routes[source, target] = points
            if not tracked:
                region.curved.add((source, target))


def _swapped(point: Point) -> Point:
    return point[1], point[0]


def _area(sizes: Sequence[object]) -> int:
    """Return the number of elements; 0 for functions of the image size."""
    return prod(size if isinstance(size, int) else 0 for size in sizes)


def _tracks(hops: Sequence[tuple[int, int]], places: dict[int, float]) -> dict[tuple[int, int], int]:
    """Return the track of each edge that turns between two layers, counted from above.

    Edges with a common end share a track. Edges to the left are above, in the order of their starts; edges to the right
    are below, in the opposite order. So two edges cross at most once, and only if their ends are in different order.
    But what starts above the end of another edge is above it, so that the two do not run over each other.
    """
    fans = Counter(one for one, _ in hops)
    nets: dict[tuple[int, int, bool], list[tuple[int, int]]] = {}
    for one, two in hops:
        a, b = places.get(one, 0.0), places.get(two, 0.0)
        if abs(a - b) > 0.01:
            nets.setdefault((one, ENTRY, a < b) if fans[one] > 1 else (ENTRY, two, a < b), []).append((one, two))
    done: list[tuple[float, float, int, int]] = []
    tracks: dict[tuple[int, int], int] = {}

    def order(net: tuple[int, int, bool]) -> tuple[bool, float]:
        start = min(places.get(one, 0.0) for one, _ in nets[net])
        return net[2], -start if net[2] else start

    left = dict.fromkeys(sorted(nets, key=order))
    starts: dict[float, set[tuple[int, int, bool]]] = {}
    for net, edges in nets.items():
        for one, _ in edges:
            starts.setdefault(round(places.get(one, 0.0), 1), set()).add(net)
    first = {
        net: {*(other for _, two in edges for other in starts.get(round(places.get(two, 0.0), 1), ()))} - {net}
        for net, edges in nets.items()
    }
    while left:
        net = next((net for net in left if first[net].isdisjoint(left)), next(iter(left)))
        del left[net]
        ends = [places.get(i, 0.0) for hop in nets[net] for i in hop]
        low, high, target = min(ends), max(ends), net[1]
        above = [
            track
            for start, stop, other, track in done
            if low <= stop and start <= high and (other != target or target == ENTRY)
        ]
        track = max([-1, *above]) + 1
        done.append((low, high, target, track))
        tracks.update(dict.fromkeys(nets[net], track))
    return tracks


def has_bars(box: Box) -> bool:
    """Return whether a box shows its share of parameters and operations."""
    return box.inner is None and box.kind in ("op", "block", "group") and (box.parameters != 0 or box.macs != 0)


def shown_name(box: Box) -> str:
    """Return the name line of a box, with the number of repetitions."""
    return shortened(box.name) + (f"  ×{box.repeat}" if box.repeat > 1 else "") if box.name else ""


def is_image(box: Box) -> bool:
    """Return whether a box is the input of the network, not a tensor parameter of a block."""
    return box.kind == "input" and not box.inputs


def frame_title(box: Box) -> str:
    """Return the title of a frame, with the number of repetitions."""
    return " ".join(filter(None, (shortened(box.name), f"×{box.repeat}" if box.repeat > 1 else "")))


def row_metrics(box: Box, row: Sequence[object]) -> tuple[float, float]:
    """Return font size and height of a row of a box."""
    minor = getattr(row[0], "kind", "") in ("norm", "act") or getattr(row[0], "text", "") == "flatten"
    return (MINOR, _MINOR_ROW) if minor else (MAIN, _MAIN_ROW)


def lay_out(figure: Figure, *, paper: bool = False, direction: str = "TB") -> Drawing:
    """Return the layout of a figure."""
    layout = _Layout(figure.boxes, figure.exit, paper=paper, wide=direction == "LR")
    region = layout.region()
    placed: list[Placed] = []
    edges: list[Edge] = []
    lead = 0.0
    if layout.wide and not is_image(figure.boxes[0]):
        lead = text_width(shortened(size_text(figure.entry)), SMALL) + LEAD
    _flatten(layout, region, 0.0, lead, placed, edges, outer=True)
    ends = [x for edge in edges for x, _ in edge.points]
    left = min([p.x - p.extents(layout.wide)[0] for p in placed] + ends)
    right = max([p.x + p.extents(layout.wide)[1] for p in placed] + ends)
    placed = [p.moved(-left, 0.0) for p in placed]
    for edge in edges:
        edge.points = [(x - left, y) for x, y in edge.points]
    size, entry = (right - left, region.height + lead), (-left, lead)
    if layout.wide:
        placed, size, entry = [p.transposed() for p in placed], _swapped(size), _swapped(entry)
        for edge in edges:
            edge.points = [*map(_swapped, edge.points)]
    return Drawing(figure, placed, edges, *size, None if is_image(figure.boxes[0]) else entry, direction)


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
        moved = item.moved(x, y)
        placed.append(moved)
        if index in layout.frames:
            inner, inner_layout, start = layout.frames[index]
            for key, points in inner.routes.items():
                if key[0] == ENTRY:
                    points.insert(0, (0.0, -start))
                if key[1] == END:
                    points.append((0.0, moved.height - start))
            _flatten(inner_layout, inner, moved.x, moved.y + start, placed, edges)


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
