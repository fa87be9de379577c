"""Receptive fields: the part of the image on which a position of a feature map depends.

There are two measures, both per axis and for the union over all paths:

- The theoretical *field* is the one of papers: the largest extent over all positions, for an unbounded image.
- The *masks* are exact for the input size of the network, with its borders and the gaps of dilated windows.

Both are for evaluation mode, in which `bn` mixes no positions; `gn` and `in_norm` read the whole map. All channels
of a map are taken together, including those that a `slice` removes, and so are flat features.

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
Mask = Sequence[int]
"""For each position along an axis, the rows or columns of the image that it depends on, as bits of an integer."""

Masks = list[tuple[Mask, ...]]
"""Pairs of masks along the height and the width."""

MAX_PATHS = 16
MAX_PLACES = 300_000
"""The limit on positions of masks, over all maps of a network."""
MAX_BOUNDS = 100_000
"""The limit on positions of spans along one axis, over all maps of a network."""


def fields(graph: Graph) -> list[tuple[int | None, int | None]]:
    """Return the theoretical field of each node, height and width; `None` for the whole image."""
    height, width = ([_extent(span) for span in _spans(graph, axis)] for axis in AXES)
    return list(zip(height, width, strict=True))


def _extent(span: Span | None) -> int | None:
    return None if span is None else max(high - low for low, high in zip(span.low, span.high, strict=True)) + 1


def _spans(graph: Graph, axis: Literal[0, 1]) -> list[Span | None]:
    """Return the span of the image that each node depends on along an axis."""
    found: list[Span | None] = []
    bounds = 0
    own_spans: dict[tuple[int, int, int], Span | None] = {}  # repeats share operators
    for node in graph.nodes:
        size, paths = _size(node.shape, axis), dict[int, Span | None]()
        for source, shape in zip(node.sources, graph.input_shapes(node), strict=False):
            before = ITSELF if source == IMAGE else found[source]
            key = id(node.op), _size(shape, axis), size
            if key not in own_spans and before is not None and bounds <= MAX_BOUNDS:
                own_spans[key] = node.op.span(axis, _size(shape, axis), size)
            own = None if bounds > MAX_BOUNDS else own_spans.get(key)
            path = None if before is None or own is None else _compose(before, own)
            bounds += len(path.low) if path and (path is not before or len(node.sources) > 1) else 0
            paths[id(path)] = path
        found.append(_union([*paths.values()]))
    return found


def _compose(before: Span, own: Span) -> Span | None:
    """Compose a window `own` with the span `before` of the map that it reads."""
    if own is ITSELF:
        return before
    period, step = before.period, before.step
    times = period // gcd(period, own.step)
    if times * own.period > MAX_PERIOD:
        return None
    low: list[int] = []
    high: list[int] = []
    for shift in (own.step * part for part in range(times)):  # the step is 0 if all positions read the same ones
        for first, last in zip(own.low, own.high, strict=True):
            rounds, place = divmod(first + shift, period)
            low.append(before.low[place] + rounds * step)
            rounds, place = divmod(last + shift, period)
            high.append(before.high[place] + rounds * step)
    return Span(times * own.period, times * own.step // period * step, tuple(low), tuple(high))


def _union(paths: list[Span | None]) -> Span | None:
    """Return the union over paths; `None` if they have different strides and so diverge."""
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
    """Return the bounds of a span, repeated to a longer period."""
    if span.period == period:
        return span.low, span.high
    shifts = [span.step * part for part in range(period // span.period)]
    low, high = ([bound + shift for shift in shifts for bound in bounds] for bounds in (span.low, span.high))
    return low, high


def masks(graph: Graph) -> list[Masks] | None:
    """Return the masks of each node; `None` if there are more positions than the limit.

    A position depends on the product of its rows and its columns. A node has several such products only if some
    positions depend on nothing along one path, as between the inputs of a `conv_transpose`.
    """
    found: list[Masks] = []
    places = 0
    read_places: dict[tuple[int, Shape, Shape], tuple[list[Sequence[Sequence[int]] | None], int]] = {}
    image: Masks = [tuple([1 << place for place in range(graph.input_shape[1 + axis])] for axis in AXES)]
    for node in graph.nodes:
        paths: Masks = []
        for source, shape in zip(node.sources, graph.input_shapes(node), strict=False):
            before = image if source == IMAGE else found[source]
            sides = [_size(node.shape, axis) for axis in AXES]
            if places + sum(sides) > MAX_PLACES:
                return None
            key = id(node.op), shape, node.shape
            if key not in read_places:  # repeats share operators
                new = [node.op.reads(axis, _size(shape, axis), side) for axis, side in zip(AXES, sides, strict=True)]
                read_places[key] = new, sum(1 + len(places_read) for read in new if read for places_read in read)
            reads, count = read_places[key]
            places += len(before) * count + (sum(sides) if len(node.sources) > 1 else 0)
            if places > MAX_PLACES:
                return None
            for mask in before:
                paths.append(
                    tuple(
                        side if read is None else [_read(side, places_read) for places_read in read]
                        for side, read in zip(mask, reads, strict=True)
                    )
                )
        found.append(paths if len(paths) == 1 else _merged(paths))
    return found


def _merged(paths: Masks) -> Masks:
    """Merge the paths along which every position depends on something; keep the others while they are few."""
    partial = [mask for mask in paths if not all(map(all, mask))]
    complete = paths if len(partial) > MAX_PATHS else [mask for mask in paths if all(map(all, mask))]
    if not complete:
        return partial
    union = tuple(
        [_union_of_bits(places) for places in zip(*sides, strict=True)] for sides in zip(*complete, strict=True)
    )
    return [union] if complete is paths else [union, *partial]


def _read(before: Mask, read: Sequence[int]) -> int:
    last = len(before) - 1
    bits = 0
    for place in read:
        if 0 <= place <= last:
            bits |= before[place]
    return bits


def _union_of_bits(bits: Sequence[int]) -> int:
    total = 0
    for one in bits:
        total |= one
    return total


def center_extent(masks: Masks) -> tuple[int, int]:
    """Return the height and width of the image region that the center of a map depends on."""
    rows = columns = 0
    for height, width in masks:
        row, column = height[len(height) // 2], width[len(width) // 2]
        if row and column:
            rows, columns = rows | row, columns | column
    return _extent_of_bits(rows), _extent_of_bits(columns)


def _extent_of_bits(bits: int) -> int:
    return bits.bit_length() - (bits & -bits).bit_length() + 1 if bits else 0


def _size(shape: Shape, axis: int) -> int:
    return shape[1 + axis] if len(shape) == 3 else 1
