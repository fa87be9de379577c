"""Write a `Graph` as Python source that imports only torch: a class per block, with loops for repeats."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cnnspec.analysis.liveness import overwriting
from cnnspec.backends.source.classes import make_classes
from cnnspec.backends.source.layout import Group, document, lay_out, quoted, structured
from cnnspec.backends.source.rows import class_sources
from cnnspec.backends.source.scopes import make_scopes
from cnnspec.backends.source.writer import write_class
from cnnspec.ir import Graph


def write_source(graph: Graph, classes: Sequence[str] = (), preprocessing: Mapping[str, Any] | None = None) -> str:
    """Return the Python source of a network.

    The module has the same keys in its `state_dict` as that of the torch backend, and computes the same logits to the
    bit. With auxiliary heads, it returns a pair in training: the logits, and a tuple of the logits of the heads.

    Args:
        graph: The network.
        classes: The names of the classes, stored as `CLASSES`.
        preprocessing: The preprocessing as plain data, stored as `PREPROCESSING`.
    """
    root = make_scopes(graph, overwriting(graph))
    made = make_classes(root, graph.name)
    nodes = {number: node for node, number in root.numbers.items()}
    lines: list[str] = []
    for one in made:
        lines += write_class(one, graph, nodes if one is made[-1] else {})
    text = "\n".join(lines)
    helpers = [code for name, code in class_sources().items() if re.search(rf"\b{name}\b", text)]
    text = "\n".join([line for code in helpers for line in ("", "", code)] + lines)
    constants = lay_out(Group("CLASSES = [", tuple(map(quoted, classes)), "]", literal=True), "") if classes else []
    if preprocessing is not None:
        constants += lay_out(structured(dict(preprocessing)), "", "PREPROCESSING = ")
    constants.append(f"SPEC = {document(graph.text)}")
    head = [f'"""The network `{made[-1].name}`, exported by cnnspec."""', ""]
    head += ["import torch"] if "torch." in text else []
    head += ["from torch import Tensor, nn"]
    head += ["from torch.nn import functional as F"] if re.search(r"\bF\.", text) else []
    return "\n".join([*head, text, "", "", *constants]) + "\n"
