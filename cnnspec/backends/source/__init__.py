"""Write a `Graph` as Python source that imports only torch: a class per block, with loops for repeats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cnnspec.analysis.liveness import overwriting
from cnnspec.backends.source.classes import make_classes
from cnnspec.backends.source.layout import document, lay_out, structured
from cnnspec.backends.source.rows import class_sources
from cnnspec.backends.source.scopes import make_scopes
from cnnspec.backends.source.writer import write_class
from cnnspec.ir import Graph


def write_source(graph: Graph, constants: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the Python source of a network.

    The module has the same keys in its `state_dict` as that of the torch backend, and computes the same logits to the
    bit. With auxiliary heads, it returns a pair in training: the logits, and a tuple of the logits of the heads. Its
    weights are initialized as in torch.

    Args:
        graph: The network.
        constants: Plain data to store under names such as `CLASSES`, besides `SPEC`, the text of the spec.
    """
    root = make_scopes(graph, overwriting(graph))
    made = make_classes(root, graph.name)
    nodes = {number: node for node, number in root.numbers.items()}
    lines: list[str] = []
    for one in made:
        lines += write_class(one, graph, nodes if one is made[-1] else {})
    text = "\n".join(lines)
    sources = class_sources()
    needed = [name for name in sources if re.search(rf"\b{name}\b", text)]
    for name in needed:  # grows: a helper may use another one
        needed += [other for other in sources if other not in needed and re.search(rf"\b{other}\b", sources[name])]
    helpers = [code for name, code in sources.items() if name in needed]
    text = "\n".join([line for code in helpers for line in ("", "", code)] + lines)
    data = [line for name, value in constants.items() for line in lay_out(structured(value), "", f"{name} = ")]
    data.append(f"SPEC = {document(graph.text)}")
    head = [f'"""The network `{made[-1].name}`, exported by cnnspec."""', ""]
    head += ["from typing import Any", ""] if re.search(r"\bAny\b", text) else []
    head += ["import torch"] if "torch." in text else []
    head += ["from torch import Tensor, nn"]
    head += ["from torch.nn import functional as F"] if re.search(r"\bF\.", text) else []
    return "\n".join([*head, text, "", "", *data]) + "\n"
