"""Text and JSON of the stages (tree, Model, Graph), and the list of shipped specs, blocks and operators."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from cnnspec import shapes
from cnnspec.cli.output import json_text
from cnnspec.compiler import Compilation
from cnnspec.diagnostics import CnnspecError, printable
from cnnspec.ir import IMAGE, Graph
from cnnspec.ir.evaluate import show as show_value
from cnnspec.ops import OPS, Op
from cnnspec.semantics.loader import shipped_specs, standard_block, standard_blocks
from cnnspec.syntax import ast

_QUALIFIERS = ("ese", "legacy", "preact", "wide")
"""First words of names that do not name the family."""
STAGES = ("tree", "model", "graph")


def show(done: Compilation, stage: str, *, as_json: bool = False) -> str:
    """Return a stage of a compilation as text.

    Args:
        done: The compilation.
        stage: One of `STAGES`.
        as_json: Whether to return JSON.

    Raises:
        CnnspecError: The compilation failed before this stage.
    """
    if stage == "tree" and done.tree is not None and not done.tree.broken:
        data = _tree_json(done.tree)
        return json_text(data) if as_json else "\n".join(_tree_lines(data, 0))
    if stage == "model" and done.model is not None:
        if done.reporter.failed:
            raise CnnspecError(done.diagnostics)
        return json_text(done.model.model_dump(mode="json"))
    if stage == "graph" or done.tree is None or done.reporter.failed:
        graph = done.require_graph()
        return json_text(graph.to_json()) if as_json else graph_text(graph)
    done.require_graph()
    raise AssertionError(stage)


def graph_text(graph: Graph) -> str:
    """Return one line per operator: number, path, operator with its settings, inputs, shape."""
    outputs = shapes.outputs_text(graph.output_shape, graph.output_shapes)
    lines = [f"{printable(graph.name)}: {graph.input_text} -> {outputs}"]
    names: dict[int, list[str]] = {index: [] for index in graph.results}
    for name, index in graph.taps.items():
        names[index].append(name)
    width = max(len(node.place) for node in graph.nodes)
    images = [*graph.images]
    for index, node in enumerate(graph.nodes):
        settings = " ".join(f"{name}={_setting(node.op, name)}" for name in node.op.changed())
        inputs = ", ".join("image" if i == IMAGE else f"%{i}" for i in node.inputs)
        mark = f" ({node.aux})" if node.aux else f" (image {images[index]})" if index < len(images) else ""
        if index in names:
            mark = f" (output {', '.join(names[index])})".replace(" )", ")")
        lines.append(
            f"%{index:<4} {node.place:<{width}}  {node.op.name} {settings}".rstrip()
            + f"  <- {inputs}  {shapes.text(node.shape)}{mark}"
        )
    return "\n".join(lines)


def _setting(op: Op, name: str) -> str:
    value = getattr(op, name)
    return show_value(list(value) if op.parameters[name].type.kind == "list" else value)


def _tree_json(node: Any) -> Any:
    if isinstance(node, (tuple, list)):
        return [_tree_json(item) for item in node]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(node, ast.Node):
        return node
    shown = {name: _tree_json(getattr(node, name)) for name in node.compared}
    return {"node": type(node).__name__, "line": node.span.line, "column": node.span.column, **shown}


def _tree_lines(data: Any, depth: int) -> list[str]:
    """Return a tree as indented text: one line per node, with its plain fields."""
    if isinstance(data, list):
        return [line for item in data for line in _tree_lines(item, depth)]  # pyright: ignore[reportUnknownVariableType]
    plain = [
        f"{name}={value!r}"
        for name, value in data.items()
        if not isinstance(value, (dict, list)) and name not in ("node", "line", "column")
    ]
    place = f"  [{data['line']}:{data['column']}]" if "line" in data else ""
    lines = ["  " * depth + " ".join([data["node"], *plain]) + place]
    for name, value in data.items():
        if isinstance(value, (dict, list)) and value:
            inner = _tree_lines(value, depth + 2)
            lines += ["  " * (depth + 1) + f"{name}:", *inner]
    return lines


def listing() -> dict[str, dict[str, str]]:
    """Return the shipped specs, and the standard blocks and operators with their parameters."""
    specs: dict[str, str] = {}
    for name, path in shipped_specs().items():
        first = path.read_text("utf-8").split("\n", 1)[0]
        specs[name] = first.lstrip("# ") if first.startswith("#") else ""
    blocks: dict[str, str] = {}
    for name in standard_blocks():
        found = standard_block(name)
        if found is not None:
            blocks[name] = " ".join(_parameter(parameter) for parameter in found[1].parameters)
    operators = {name: " ".join(kind.parameters) for name, kind in sorted(OPS.items())}
    return {"specs": specs, "blocks": blocks, "operators": operators}


def family_of(name: str) -> str:
    """Return the family of a shipped spec: its name without sizes, variants and versions.

    `wide_resnet50_2` and `resnet18_cifar` belong to the family `resnet`, `mobilenet_v3_small` to `mobilenet`.
    """
    parts = name.split("_")
    first = parts[1] if parts[0] in _QUALIFIERS else parts[0]
    return re.sub(r"v?[0-9]+[a-z]*$", "", first)


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of specs by their family, both in the order of their sizes."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (family_of(name), _numbered(name))):
        groups.setdefault(family_of(name), []).append(name)
    return groups


def _numbered(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `resnet18` before `resnet101`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"[0-9]+|[^0-9]+", name)]


def table(rows: Mapping[str, str], width: int = 80) -> list[str]:
    """Return names with their texts as two columns; long texts are wrapped."""
    column = max(map(len, rows), default=0)
    lines: list[str] = []
    for name, text in rows.items():
        wrapped = textwrap.wrap(text, width - column - 4, break_on_hyphens=False) or [""]
        lines += [f"  {name:<{column}}  {wrapped[0]}".rstrip(), *(f"  {'':<{column}}  {line}" for line in wrapped[1:])]
    return lines


def _parameter(parameter: ast.BlockParameter) -> str:
    if parameter.default is None:
        return parameter.name
    span = parameter.default.span
    return f"{parameter.name}={span.text.replace(' ', '')}"
