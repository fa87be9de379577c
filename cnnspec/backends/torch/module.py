"""From a `Graph` to a torch module: `to_module`.

The tree of modules follows the paths of the nodes, so the keys of the `state_dict` are the names of the
spec. The forward pass is plain Python that is written from the graph, one line for each node; it can be
read as `network.code`, and a traceback shows its lines.
"""

import itertools
import keyword
import linecache
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnnspec import shapes
from cnnspec.analysis.liveness import overwriting, schedule
from cnnspec.backends.torch.inits import covers, start
from cnnspec.backends.torch.layers import EXPRESSIONS, ROWS, UNSTARTED
from cnnspec.ir import IMAGE, Graph, Node


class Outputs(NamedTuple):
    """What a network with auxiliary heads gives in training: all of `[N, classes]`."""

    logits: Tensor
    aux: tuple[Tensor, ...]


class Scope(nn.Module):
    """A level of the module tree; `scope[0]` and `scope["type"]` reach what an attribute cannot name."""

    def __getitem__(self, name: int | str) -> Any:
        return self._modules[str(name)]

    def __setattr__(self, name: str, value: Any) -> None:
        # torch sets `training` on every module; a child of that name would stand in the way.
        if name in self.__dict__ and not isinstance(value, nn.Module):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class Network(Scope):
    """The module of a graph; `to_module` makes it.

    Attributes:
        graph: What it was built from.
        code: The Python text of `forward`.
    """

    graph: Graph
    code: str

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        inplace = overwriting(graph)
        for index, node in enumerate(graph):
            if node.op.owns_module:
                layer = _layer(node, graph.input_shapes(node)[0])
                if index in inplace:
                    layer.inplace = True  # pyright: ignore[reportArgumentType]
                _place(self, node.path, layer)

    def forward(self, x: Tensor) -> Any:
        """The logits, `[N, C, H, W] -> [N, classes]`; in training with those of the auxiliary heads."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        # The class was made for this graph and cannot be imported: it is made again.
        return _restore, (self.graph,), self.__getstate__()


def to_module(graph: Graph) -> Network:
    """The torch module of a graph, with weights started anew from torch's random state.

    Its parameters have the keys `node.path + "." + key` for every key in `node.weights`, in the order of the
    nodes. It takes `[N, C, H, W]` for every N and gives the logits. In training a network with auxiliary
    heads gives `Outputs`, and a `bn` of maps of one place, or of flat features, needs an N of 2 or more. A graph with
    taps gives a `dict` of its features.

    Raises:
        KeyError: An operator or an initialisation has no row.
    """
    return _class(write_forward(graph))(graph)


# --- modules -------------------------------------------------------------------------------------


def _layer(node: Node, x: shapes.Shape) -> nn.Module:
    """The module of one node for an input of shape `x`, its weights started."""
    name = node.op.name
    if node.init is not None and name in UNSTARTED and covers(node.init, node.weights):
        row, kind = UNSTARTED[name]
        layer = row(node.op, x)
        layer.__class__ = kind
    else:
        layer = ROWS[name](node.op, x)
    if node.init is not None:
        start(layer, node.init)
    return layer


def _place(network: Network, path: str, layer: nn.Module) -> None:
    """Puts a module at its path, with the scopes on the way there.

    `add_module` refuses the names of attributes, such as `type`; the table of children takes every name.
    """
    *scopes, name = path.split(".")
    scope: nn.Module = network
    for part in scopes:
        if part not in scope._modules:
            scope._modules[part] = Scope()
        scope = scope._modules[part]  # pyright: ignore[reportAssignmentType]
    scope._modules[name] = layer


# --- the forward pass ----------------------------------------------------------------------------

_TAKEN = {*dir(Scope()), "graph", "code"}


@lru_cache(maxsize=64)
def _class(code: str) -> type[Network]:
    """The class of the modules with this forward pass; tracebacks find its lines."""
    name = f"<cnnspec {zlib.crc32(code.encode()):08x}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"__name__": __name__, "torch": torch, "Tensor": Tensor, "Outputs": Outputs}
    exec(compile(code, name, "exec"), scope)
    return type("Network", (Network,), {"__module__": __name__, "forward": scope["forward"], "code": code})


def _restore(graph: Graph) -> Network:
    """A network without its state, as `copy` and `pickle` want it."""
    kind = _class(write_forward(graph))
    return kind.__new__(kind)


def write_forward(graph: Graph) -> str:
    """The Python text of the forward pass; a value is let go as soon as its last reader has run.

    Raises:
        ValueError: A path has a part that is neither a label nor a number.
    """
    order = schedule(graph)
    last = {i: position for position, index in enumerate(order) for i in graph.nodes[index].inputs}
    heads = {head.output: f"aux{number}" for number, head in enumerate(graph.aux, 1)}
    last.update(dict.fromkeys((graph.output, *graph.taps.values(), *heads), len(order)))
    result = "Tensor | Outputs" if heads else "dict[str, Tensor]" if graph.taps else "Tensor"
    lines = [f"def forward(self, x: Tensor) -> {result}:  # {shapes.text(graph.input_shape)}"]
    names = {IMAGE: "x"}
    part, indent, kept = None, "    ", list[int]()
    for position, index in enumerate(order):
        node = graph.nodes[index]
        if node.aux is None and len(indent) > 4:
            indent = "    "
            lines += _forget(indent, [names.pop(i) for i in kept])
            kept = []
        if part != (part := _part(graph, node)):
            lines += ["", f"{indent}# {part}"] if part else [""]
        if node.aux is not None and len(indent) == 4:
            lines.append(f"{indent}if self.training:")
            indent = "        "
        inputs = [names[i] for i in node.inputs]
        if node.op.owns_module:
            expression = f"{_access(node.path)}({inputs[0]})"
        else:
            expression = EXPRESSIONS[node.op.name](node.op, inputs)
        done = sorted({i for i in node.inputs if last[i] == position})
        if node.aux is not None:
            # What the main path made is let go behind the `if`, so that evaluation lets go of it, too.
            kept += [i for i in done if i == IMAGE or graph.nodes[i].aux is None]
            done = [i for i in done if i not in kept]
        free = [names.pop(i) for i in done]
        name = heads.get(index) or next(name for name in _names() if name not in names.values())
        changed = node.shape != graph.input_shapes(node)[0]
        lines.append(f"{indent}{name} = {expression}" + (f"  # {shapes.text(node.shape)}" if changed else ""))
        lines += _forget(indent, [other for other in free if other != name])
        if index in last:
            names[index] = name
    if heads:
        aux = "".join(f"{names[head.output]}, " for head in graph.aux).rstrip()
        lines += ["", "    if self.training:", f"        return Outputs({names[graph.output]}, ({aux}))"]
    if graph.taps:
        features = ", ".join(f'"{path}": {names[index]}' for path, index in graph.taps.items())
        lines += ["", f"    return {{{features}}}"]
    else:
        lines.append(f"    return {names[graph.output]}")
    return "\n".join(lines) + "\n"


def _forget(indent: str, names: list[str]) -> list[str]:
    return [f"{indent}del {', '.join(names)}"] if names else []


def _names() -> Iterator[str]:
    """Names of values: `x`, then the other letters, then `x1`, `x2`, ..."""
    return itertools.chain("xabcdefghijklmnopqrstuvwyz", (f"x{number}" for number in itertools.count(1)))


def _part(graph: Graph, node: Node) -> str:
    """The part of the network that a node stands in: the outermost call of a block, or the first level."""
    parts = node.path.split(".") if node.path else []
    depth = len(parts) - node.op.owns_module
    for end in range(1, depth + 1):
        path = ".".join(parts[:end])
        if block := graph.scopes.get(path):
            return f"{path}: {block}"
    return parts[0] if depth > 0 else ""


def _access(path: str) -> str:
    """The expression for the module at a path: `self.stage1[0].net[1]`."""
    text = "self"
    for part in path.split("."):
        if re.fullmatch(r"[A-Za-z0-9_]+", part) is None:
            raise ValueError(f"not a name in a path: {part!r}")
        if part == "0" or (part.isdigit() and part[0] != "0"):
            text += f"[{part}]"
        elif part[0].isdigit() or part.startswith("__") or part in _TAKEN or keyword.iskeyword(part):
            text += f'["{part}"]'
        else:
            text += f".{part}"
    return text
