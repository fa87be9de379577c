"""Descriptions of what a spec can name: signatures, documentation, and figures of a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from inspect import getdoc
from typing import Any

from cnnspec import shapes
from cnnspec.ir import Graph
from cnnspec.ir.evaluate import show
from cnnspec.lsp.document import Analysis, Output
from cnnspec.ops import OPS
from cnnspec.ops.inits import INITS
from cnnspec.recipe import CHOICES, Recipe, Scalars
from cnnspec.schema import Parameter, Type
from cnnspec.semantics.blocks import signature as block_signature
from cnnspec.semantics.loader import standard_block, standard_blocks
from cnnspec.shapes import Shape
from cnnspec.syntax import ast

REPEAT = Parameter("repeat", Type("int"), 1)
NAME = Parameter("name", Type("str"), None)
"""The arguments that every call takes."""
_MAX_SHAPES = 3


def parameter_text(parameter: Parameter) -> str:
    """Render a parameter: `stride: size = 1x1`."""
    default = parameter.default
    if isinstance(default, ast.Node):
        default = f" = {default.span.text}"
    elif parameter.required:
        default = ""
    else:
        plain = "none" if default is None else default if default in parameter.type.words else show(default)
        default = f" = {plain}"
    words = [] if parameter.type.kind == "word" else [parameter.type.kind]
    return f"{parameter.name}: {' | '.join([*words, *parameter.type.words])}{default}"


def signature_text(name: str, parameters: Mapping[str, Parameter]) -> str:
    """Render a callee with its parameters: `dropout(p: float = 0.5)`."""
    return f"{name}({', '.join(map(parameter_text, parameters.values()))})"


def entry_documentation(word: str) -> str:
    """Return the documentation of an entry of the `train` section."""
    attributes = re.sub(r"\n\s{2,}", " ", (getdoc(Recipe) or "").partition("Attributes:")[2])
    found = re.search(rf"(?:^|\n| ){word}: ([^\n]*)", re.sub(r" (\w+): ", r"\n\1: ", attributes))
    return found.group(1).strip() if found else ""


def entry_text(word: str) -> str:
    """Render an entry of the `train` section with its type and default, or its choices."""
    if word in Scalars.parameters:
        return parameter_text(Scalars.parameters[word])
    return f"{word}: {' | '.join(CHOICES[word])}"


def code(text: str) -> str:
    """Render code in Markdown."""
    return f"```cnn\n{text}\n```"


def declared_text(kind: Any) -> str:
    """Render an operator, an initialization, or a choice of a recipe with its documentation."""
    return f"{code(signature_text(kind.name, kind.parameters))}\n\n{getdoc(kind) or ''}"


def block_text(block: ast.Block) -> str:
    """Render a block with its parameters, and the comment above it."""
    lines = block.span.source.text[: block.span.start].split("\n")[:-1]
    comment: list[str] = []
    while lines and lines[-1].startswith("#"):
        comment.insert(0, lines.pop().lstrip("# "))
    file = f"\n\nfrom `{block.span.source.name}`" if block.span.source.shipped else ""
    return "\n\n".join(filter(None, [code("block " + signature_text(block.name, block_signature(block))),
                                     " ".join(comment)])) + file  # fmt: skip


def shape_text(found: Iterable[Shape], limit: int = _MAX_SHAPES) -> str:
    """Render the different shapes of a tensor."""
    different = [shapes.text(shape) for shape in dict.fromkeys(found)]
    if len(different) > limit:
        different[limit - 1 : -1] = ["..."]
    return ", ".join(different)


def outputs_text(analysis: Analysis, outputs: list[Output]) -> str:
    """Render shapes, parameters, multiply-adds and receptive field of the outputs of a statement."""
    lines = [
        f"in {', '.join(shapes.text(shape) for shape in outputs[0].inputs)}"
        if len(outputs) == 1
        else f"in {shape_text(output.inputs[0] for output in outputs)}",
        f"out {shape_text(output.shape for output in outputs)}",
    ]
    parameters, macs = sum(o.parameter_count for o in outputs), sum(o.macs for o in outputs)
    lines.append(f"{parameters:,} parameters, {macs:,} MACs")
    paths = [*dict.fromkeys(output.path for output in outputs if output.path)]
    if len(outputs) > 1:
        lines[-1] += f" in {len(outputs)} {'uses' if len(paths) == 1 else 'modules'}"
    if analysis.fields:
        height, width = analysis.fields[outputs[-1].end]
        lines.append(
            "receptive field: " + ("whole image" if height is None or width is None else f"{height}x{width} pixels")
        )
    if paths:
        shown = [f"`{path}`" for path in paths]
        lines.append(f"module {shown[0]}" if len(shown) == 1 else f"modules {shown[0]} to {shown[-1]}")
    return "  \n".join(lines)


def short_count(count: int) -> str:
    """Render a count with three digits: `25.6M`."""
    for power, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= power:
            return f"{count / power:.3g}{letter}" if count < 999.5 * power else f"{count / power:,.0f}{letter}"
    return str(count)


def reference_text() -> str:
    """Render a reference of the operators, the standard blocks, and the entries of the `train` section."""
    blocks = [found[1] for name in standard_blocks() if (found := standard_block(name)) is not None]
    parts = ["# Reference", "## Operators", *map(declared_text, OPS.values()), "## Blocks", *map(block_text, blocks)]
    parts += ["## Initializations", *map(declared_text, INITS.values()), "## Entries of `train`"]
    parts += [f"{code(entry_text(word))}\n\n{entry_documentation(word)}" for word in Scalars.parameters]
    for word, kinds in CHOICES.items():
        parts += [f"### `{word}`", *map(declared_text, kinds.values())]
    return "\n\n".join(parts) + "\n"


def graph_text(graph: Graph) -> str:
    """Render the figures of a network."""
    return (
        f"in {graph.input_text}  \nout {shapes.outputs_text(graph.output_shape, graph.output_shapes)}  \n"
        f"{graph.parameter_count:,} parameters, {graph.macs:,} MACs, depth {graph.depth}"
    )


def callee_text(name: str, block: ast.Block | None) -> str | None:
    """Describe an operator or a block."""
    if block is not None:
        return block_text(block)
    return declared_text(OPS[name]) if name in OPS else None
