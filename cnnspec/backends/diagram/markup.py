"""Mermaid and DOT: figures as text for tools that do their own layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from cnnspec.backends.diagram.outline import ENTRY, Box, Figure
from cnnspec.diagnostics import printable

_SHAPES = {"input": ("([", "])"), "output": ("([", "])"), "join": ("((", "))"), "block": ("[[", "]]")}
_COLORS = {
    "conv": "#cfe2f8", "norm": "#e6eaee", "act": "#fbe3c4", "pool": "#e2d5f3", "linear": "#f8cfcf",
    "layout": "#eef0e0", "block": "#cdeee2", "added": "#bbf7d0", "removed": "#fecaca", "changed": "#fde68a",
}  # fmt: skip


def _lines(box: Box) -> list[str]:
    """Return the label of a box."""
    name = f"{box.name} ×{box.repeat}" if box.repeat > 1 else box.name
    return [line for line in (name.strip(), *(" | ".join(cell.text for cell in row) for row in box.rows)) if line]


def _kind(box: Box) -> str:
    return next((row[0].kind for row in box.rows if row[0].kind not in ("norm", "act")), box.rows[0][0].kind)


class _Names:
    """Ids of the boxes of a figure: the entry and exit of a frame are its first and last box."""

    def __init__(self, start: str, boxes: Sequence[Box]) -> None:
        self.boxes, self.start = boxes, start
        self.inner = {i: _Names(f"{start}_{i}", box.inner) for i, box in enumerate(boxes) if box.inner is not None}

    def exit(self, index: int) -> str:
        inner = self.inner.get(index)
        return inner.exit(len(inner.boxes) - 1) if inner else f"{self.start}_{index}"

    def edges(self, before: str | None) -> Iterator[tuple[str, str, str]]:
        """Return source, target and shape of the edges; `before` is the box that the entry stands for."""
        for index, box in enumerate(self.boxes):
            for i in box.inputs:
                source = before if i == ENTRY else self.exit(i)
                inner = self.inner.get(index)
                if inner is not None:
                    yield from inner.edges(source)
                elif source is not None:
                    yield source, f"{self.start}_{index}", "" if i == ENTRY else self.boxes[i].edge


def _walk(
    names: _Names, node: Callable[[str, Box], str], group: Callable[[str, str], str], end: str, indent: str
) -> Iterator[str]:
    for index, box in enumerate(names.boxes):
        key = f"{names.start}_{index}"
        if box.inner is None:
            yield f"{indent}{node(key, box)}"
        else:
            yield f"{indent}{group(key, ' '.join(_lines(box)) or f'×{box.repeat}')}"
            yield from _walk(names.inner[index], node, group, end, indent + "    ")
            yield f"{indent}{end}"


def write_mermaid(title: str, figures: Sequence[Figure]) -> str:
    """Return a Mermaid flowchart; a block is a subgraph, and dotted lines lead to it from its calls."""

    def node(key: str, box: Box) -> str:
        left, right = _SHAPES.get(box.kind, ("[", "]"))
        return f'{key}{left}"{"<br/>".join(map(_mermaid, _lines(box)))}"{right}:::{box.status or _kind(box)}'

    def group(key: str, text: str) -> str:
        return f'subgraph {key}["{_mermaid(text)}"]'

    lines = ["flowchart TD", f"    accTitle: {_mermaid(title)}"]
    names = [_Names(f"f{number}", figure.boxes) for number, figure in enumerate(figures)]
    for number, (figure, tree) in enumerate(zip(figures, names, strict=True)):
        if figure.key is None:
            lines += _walk(tree, node, group, "end", "    ")
        else:
            lines += [f"    {group(f'f{number}', figure.title)}", f'        f{number}_in(["in"])']
            lines += [*_walk(tree, node, group, "end", " " * 8), "    end"]
        for source, target, shape in tree.edges(None if figure.key is None else f"f{number}_in"):
            label = f'|"{shape}"|' if shape else ""
            lines.append(f"    {source} -->{label} {target}")
    for key, block in _calls(figures, names):
        lines.append(f"    {key} -.-> {block}")
    lines += [f"    classDef {kind} fill:{color},stroke:#7b8794,color:#1f2933" for kind, color in _COLORS.items()]
    return "\n".join(lines) + "\n"


def write_dot(title: str, figures: Sequence[Figure]) -> str:
    """Return a graph in DOT; a block is a cluster, and dotted lines lead to it from its calls."""

    def node(key: str, box: Box) -> str:
        shape = "ellipse" if box.kind in ("input", "output", "join") else "box"
        text = "\\n".join(map(_dot, _lines(box)))
        return f'{key} [label="{text}", shape={shape}, fillcolor="{_COLORS.get(box.status or _kind(box), "#ffffff")}"];'

    def group(key: str, text: str) -> str:
        return f'subgraph cluster_{key} {{ label="{_dot(text)}";'

    lines = [f'digraph "{_dot(title)}" {{', '    node [style="rounded,filled", fontname="Helvetica"];']
    names = [_Names(f"f{number}", figure.boxes) for number, figure in enumerate(figures)]
    for number, (figure, tree) in enumerate(zip(figures, names, strict=True)):
        if figure.key is None:
            lines += _walk(tree, node, group, "}", "    ")
        else:
            lines += [f"    {group(f'f{number}', figure.title)}", f'        f{number}_in [label="in", shape=ellipse];']
            lines += [*_walk(tree, node, group, "}", " " * 8), "    }"]
        for source, target, shape in tree.edges(None if figure.key is None else f"f{number}_in"):
            lines.append(f"    {source} -> {target}" + (f' [label="{shape}"];' if shape else ";"))
    for key, block in _calls(figures, names):
        lines.append(f"    {key} -> {block}_in [style=dotted, arrowhead=none, constraint=false];")
    return "\n".join([*lines, "}"]) + "\n"


def _calls(figures: Sequence[Figure], names: Sequence[_Names]) -> Iterator[tuple[str, str]]:
    """Return the boxes that call a block, with the figure of the block."""
    numbers = {(figure.network, figure.key): number for number, figure in enumerate(figures)}
    pending = [(figure.network, tree) for figure, tree in zip(figures, names, strict=True)]
    while pending:
        network, tree = pending.pop(0)
        pending += [(network, inner) for inner in tree.inner.values()]
        for index, box in enumerate(tree.boxes):
            number = numbers.get((network, box.block)) if box.block is not None else None
            if box.inner is None and number is not None:
                yield f"{tree.start}_{index}", f"f{number}"


def _mermaid(text: str) -> str:
    """Escape a text in quotes: entities of Mermaid, which start with `#`."""
    return re.sub(r"[^\w .,:=×–…|()+/-]", lambda match: f"#{ord(match.group())};", printable(text))


def _dot(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')
