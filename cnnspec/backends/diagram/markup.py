"""Mermaid and DOT: figures as text for tools that do their own layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from cnnspec.backends.diagram.outline import ENTRY, Box, Figure
from cnnspec.backends.diagram.svg import LIGHT
from cnnspec.diagnostics import printable

_COLORS = {
    **{kind: LIGHT[kind] for kind in ("conv", "norm", "act", "pool", "linear", "layout", "block")},
    "added": "#bbf7d0", "removed": "#fecaca", "changed": "#fde68a",
}  # fmt: skip
_SHAPES = {"input": ("([", "])"), "output": ("([", "])"), "join": ("((", "))"), "block": ("[[", "]]")}


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
            for i in box.inputs if box.kind != "input" else ():
                source = before if i == ENTRY else self.exit(i)
                inner = self.inner.get(index)
                if inner is not None:
                    yield from inner.edges(source)
                elif source is not None:
                    yield source, f"{self.start}_{index}", "" if i == ENTRY else self.boxes[i].edge


def write(form: str, title: str, figures: Sequence[Figure], direction: str) -> str:
    """Return the figures in Mermaid or DOT; a block is a group, and dotted lines lead to it from its calls."""
    mermaid = form == ".mmd"
    text = _mermaid if mermaid else _dot
    head = [
        f'digraph "{text(title)}" {{',
        f"rankdir={direction};",
        'node [style="rounded,filled", fontname="Helvetica"];',
    ]
    lines = (
        [f"flowchart {'TD' if direction == 'TB' else direction}", f"    accTitle: {text(title)}"]
        if mermaid
        else ["\n    ".join(head)]
    )
    calls: list[str] = []
    numbers = {(figure.network, figure.key): f"f{number}" for number, figure in enumerate(figures)}

    def node(key: str, box: Box) -> str:
        label, kind = ("<br/>" if mermaid else "\\n").join(map(text, _lines(box))), box.status or _kind(box)
        if mermaid:
            left, right = _SHAPES.get(box.kind, ("[", "]"))
            return f'{key}{left}"{label}"{right}:::{kind}'
        shape = "ellipse" if box.kind in ("input", "output", "join") else "box"
        return f'{key} [label="{label}", shape={shape}, fillcolor="{_COLORS.get(kind, "#ffffff")}"];'

    def walk(names: _Names, network: int, indent: str) -> None:
        for index, box in enumerate(names.boxes):
            key = f"{names.start}_{index}"
            if box.inner is not None:
                group(key, " ".join(_lines(box)) or f"×{box.repeat}", names.inner[index], network, indent)
                continue
            lines.append(indent + node(key, box))
            block = numbers.get((network, box.block)) if box.block is not None else None
            style = "[style=dotted, arrowhead=none, constraint=false];"
            if block is not None:
                calls.append(f"    {key} -.-> {block}" if mermaid else f"    {key} -> {block}_in {style}")

    def group(key: str, title: str, names: _Names, network: int, indent: str, entry: str = "") -> None:
        label = text(title)
        lines.append(
            indent + (f'subgraph {key}["{label}"]' if mermaid else f'subgraph cluster_{key} {{ label="{label}";')
        )
        lines.extend([f"{indent}    {entry}"] if entry else [])
        walk(names, network, indent + "    ")
        lines.append(indent + ("end" if mermaid else "}"))

    for number, figure in enumerate(figures):
        names, entry = _Names(f"f{number}", figure.boxes), None if figure.key is None else f"f{number}_in"
        if entry is None:
            walk(names, figure.network, "    ")
        else:
            box = f'{entry}(["in"])' if mermaid else f'{entry} [label="in", shape=ellipse];'
            group(f"f{number}", figure.title, names, figure.network, "    ", box)
        for source, target, shape in names.edges(entry):
            label = f'|"{shape}"|' if mermaid and shape else f' [label="{shape}"]' if shape else ""
            lines.append(f"    {source} -->{label} {target}" if mermaid else f"    {source} -> {target}{label};")
    foot = [f"    classDef {kind} fill:{color},stroke:#7b8794,color:#1f2933" for kind, color in _COLORS.items()]
    return "\n".join([*lines, *calls, *(foot if mermaid else ["}"])]) + "\n"


def _mermaid(text: str) -> str:
    """Escape a text in quotes: entities of Mermaid, which start with `#`."""
    return re.sub(r"[^\w .,:=×–…|()+/-]", lambda match: f"#{ord(match.group())};", printable(text))


def _dot(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')
