"""Receptive fields: the part of the image on which a place of a map depends.

Two figures. The *field* is the one of papers: how far a place of the map can see, were the image without
end, the most over all places; nothing where it sees all of it, whatever its size. What a place *sees* is exact
for an image of the network's input size, borders and gaps of dilated windows included. Both are taken
along height and width, for the union over all paths, at evaluation: `bn` looks at no other place then,
`gn` and `in_norm` look at the whole map. The channels of a map are taken together, those that a `slice` leaves
away included, and so are flat features.

Source: Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks", Distill.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, lcm
from typing import Literal

from cnnspec.ir import IMAGE, Graph
from cnnspec.limits import MAX_PERIOD
from cnnspec.shapes import ITSELF, Shape, Span

AXES: tuple[Literal[0, 1], Literal[0, 1]] = (0, 1)
Sight = Sequence[int]
"""For each place along an axis the rows or columns of the image that it sees, as bits of an integer."""

Sights = list[tuple[Sight, ...]]
"""Pairs of a sight along the height and one along the width."""

MAX_PATHS = 16
MAX_PLACES = 500_000
"""Places that are looked at, over all maps of a network."""


def fields(graph: Graph) -> list[tuple[int | None, int | None]]:
    """For each node the height and width of its receptive field; none for the whole image."""
    height, width = ([_extent(span) for span in _spans(graph, axis)] for axis in AXES)
    return list(zip(height, width, strict=True))


def _extent(span: Span | None) -> int | None:
    return None if span is None else max(high - low for low, high in zip(span.low, span.high, strict=True)) + 1


def _spans(graph: Graph, axis: Literal[0, 1]) -> list[Span | None]:
    """What a place of each node's output sees of the image along an axis."""
    found: list[Span | None] = []
    places = 0
    for node in graph.nodes:
        size, paths = _size(node.shape, axis), list[Span | None]()
        for source, shape in zip(node.inputs, graph.input_shapes(node), strict=True):
            before = ITSELF if source == IMAGE else found[source]
            own = node.op.span(axis, _size(shape, axis), size)
            paths.append(None if before is None or own is None or places > MAX_PLACES else _behind(before, own))
            places += len(paths[-1].low) if paths[-1] is not before and paths[-1] else 0
        found.append(paths[0] if len(paths) == 1 else _union(paths))
    return found


def _behind(before: Span, own: Span) -> Span | None:
    """The span of a window `own` on a map whose places have the span `before`."""
    if own is ITSELF:
        return before
    period, step = before.period, before.step
    times = period // gcd(period, own.step)
    if times * own.period > MAX_PERIOD:
        return None
    low: list[int] = []
    high: list[int] = []
    for shift in range(0, times * own.step, own.step):
        for first, last in zip(own.low, own.high, strict=True):
            rounds, place = divmod(first + shift, period)
            low.append(before.low[place] + rounds * step)
            rounds, place = divmod(last + shift, period)
            high.append(before.high[place] + rounds * step)
    return Span(times * own.period, times * own.step // period * step, tuple(low), tuple(high))


def _union(paths: list[Span | None]) -> Span | None:
    """What some paths see together; branches that thin out differently part without end."""
    total = paths[0]
    for path in paths[1:]:
        if total is None or path is None or total.step * path.period != path.step * total.period:
            return None
        period = lcm(total.period, path.period)
        if period > MAX_PERIOD:
            return None
        (low, high), (first, last) = _over(total, period), _over(path, period)
        total = Span(
            period, total.step * (period // total.period), tuple(map(min, low, first)), tuple(map(max, high, last))
        )
    return total


def _over(span: Span, period: int) -> tuple[Sequence[int], Sequence[int]]:
    """The bounds of a span over a longer period."""
    if span.period == period:
        return span.low, span.high
    shifts = range(0, period // span.period * span.step, span.step)
    low, high = ([bound + shift for shift in shifts for bound in bounds] for bounds in (span.low, span.high))
    return low, high


def sights(graph: Graph) -> list[Sights] | None:
    """For each node what every place along its height and along its width sees of the image; none where that is long.

    A place sees what is in a row and in a column that it sees. There are several such products only where
    places see nothing through one path, as between the places of a `conv_transpose`.
    """
    found: list[Sights] = []
    places = 0
    image: Sights = [tuple([1 << place for place in range(graph.input_shape[1 + axis])] for axis in AXES)]
    for node in graph.nodes:
        paths: Sights = []
        for source, shape in zip(node.inputs, graph.input_shapes(node), strict=True):
            if places > MAX_PLACES:
                return None
            reads = [node.op.reads(axis, _size(shape, axis), _size(node.shape, axis)) for axis in AXES]
            places += sum(1 + len(places_read) for read in reads if read for places_read in read)
            for sight in image if source == IMAGE else found[source]:
                paths.append(
                    tuple(
                        before if read is None else [_seen(before, places) for places in read]
                        for before, read in zip(sight, reads, strict=True)
                    )
                )
        found.append(paths if len(paths) == 1 else _merged(paths))
    return found


def _merged(paths: Sights) -> Sights:
    """Paths through which every place sees something as one, the others as they are while they are few."""
    holed = [sight for sight in paths if not all(map(all, sight))]
    joined = paths if len(holed) > MAX_PATHS else [sight for sight in paths if all(map(all, sight))]
    if not joined:
        return holed
    union = tuple([_together(places) for places in zip(*sides, strict=True)] for sides in zip(*joined, strict=True))
    return [union] if joined is paths else [union, *holed]


def _seen(before: Sight, read: Sequence[int]) -> int:
    last = len(before) - 1
    seen = 0
    for place in read:
        if 0 <= place <= last:
            seen |= before[place]
    return seen


def _together(seen: Sequence[int]) -> int:
    total = 0
    for one in seen:
        total |= one
    return total


def centre(sights: Sights) -> tuple[int, int]:
    """The height and width of what the centre of a map sees, from its first row and column to its last."""
    rows = columns = 0
    for height, width in sights:
        row, column = height[len(height) // 2], width[len(width) // 2]
        if row and column:
            rows, columns = rows | row, columns | column
    return _reach(rows), _reach(columns)


def _reach(seen: int) -> int:
    return seen.bit_length() - (seen & -seen).bit_length() + 1 if seen else 0


def _size(shape: Shape, axis: int) -> int:
    return shape[1 + axis] if len(shape) == 3 else 1
