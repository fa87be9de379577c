"""Build a torch module from a `Graph`.

The module tree follows the paths of the nodes, so the keys of the `state_dict` are the names in the spec. The forward
pass is Python source generated from the graph, one line per node. You can read it as `network.code`, and tracebacks
show its lines.
"""

import linecache
import zlib
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnnspec import shapes
from cnnspec.analysis.liveness import overwriting
from cnnspec.backends.torch.forward import write_forward
from cnnspec.backends.torch.inits import initialize, sets_all
from cnnspec.backends.torch.layers import ROWS, UNINITIALIZED, Learned, Scope
from cnnspec.backends.torch.memory import check_weights_fit, is_out_of_memory, out_of_memory
from cnnspec.ir import Graph, Node


class Outputs(NamedTuple):
    """The outputs in training of a network with auxiliary heads, each `[N, classes]`."""

    logits: Tensor
    aux: tuple[Tensor, ...]


class Network(Scope):
    """The module of a graph, built by `to_module`.

    Attributes:
        graph: The graph that it was built from.
        code: The Python source of `forward`.
    """

    graph: Graph
    code: str

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        inplace = overwriting(graph)
        for index, node in enumerate(graph):
            if node.use is not None:
                continue  # its module is that of an earlier node
            if node.op.owns_module:
                layer = _make_layer(node, graph.input_shapes(node)[0])
                if index in inplace:
                    layer.inplace = True  # pyright: ignore[reportArgumentType]
                _insert(self, node.path, layer)
            elif node.weights:
                _insert_parameter(self, node)

    def forward(self, x: Tensor) -> Any:
        """Return the logits, `[N, C, H, W] -> [N, classes]`, in training together with those of auxiliary heads."""
        raise NotImplementedError

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows: that of the graph."""
        show = getattr(self.graph, "_repr_html_", None)  # which `api` sets
        return show() if show else None

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is created at run time and cannot be imported, so it is created again.
        return _restore, (self.graph,), self.__getstate__()


def split_images(graph: Graph, images: Tensor) -> tuple[Tensor, ...]:
    """Return the arguments of a module for a batch with the channels of all its images."""
    return images.split([shape[0] for shape in graph.images.values()], 1) if graph.images else (images,)


def to_module(graph: Graph) -> Network:
    """Build the torch module of a graph, with weights initialized from torch's random state.

    The parameters have the keys `node.path + "." + key` for every key in `node.weights`, in the order of the nodes;
    modules of one scope stay together.
    The module maps `[N, C, H, W]` to logits for every N, with these exceptions:

    - In training, a network with auxiliary heads returns `Outputs`.
    - In training, a `bn` of 1x1 maps or of flat features needs an N of at least 2.
    - A graph with taps returns a `dict` of its features.
    - A graph with several images takes one tensor for each, by position in the order of the spec or by name.

    Raises:
        CnnspecError: E0513 if the weights do not fit into the memory of this machine.
        KeyError: An operator or an initialization has no row in the tables of this backend.
    """
    check_weights_fit(graph)
    try:
        return _network_class(write_forward(graph))(graph)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(error) from None
        raise


def _make_layer(node: Node, x: shapes.Shape) -> nn.Module:
    """Build and initialize the module of one node for an input of shape `x`."""
    name = node.op.name
    if node.init is not None and name in UNINITIALIZED and sets_all(node.init, node.weights):
        layer = UNINITIALIZED[name](node.op, x)
    else:
        layer = ROWS[name](node.op, x)
    if node.init is not None:
        initialize(layer, node.init)
    return layer


def _scope(network: Network, path: str) -> tuple[nn.Module, str]:
    """Return the scope of a path and the last part of the path, and create the scopes on the way."""
    *scopes, name = path.split(".")
    scope: nn.Module = network
    for part in scopes:
        if part not in scope._modules:
            scope._modules[part] = Scope()
        scope = scope._modules[part]  # pyright: ignore[reportAssignmentType]
    return scope, name


def _insert(network: Network, path: str, layer: nn.Module) -> None:
    """Insert a module at its path.

    `add_module` rejects the names of attributes, such as `type`. The dict of children accepts every name.
    """
    scope, name = _scope(network, path)
    scope._modules[name] = layer


def _insert_parameter(network: Network, node: Node) -> None:
    """Insert the weight of an operator without a module, a parameter of the module around it."""
    scope, name = _scope(network, node.path)
    (shape,) = node.weights.values()
    scope._parameters[name] = Learned(shape, getattr(node.op, "init", 0.0))


@lru_cache(maxsize=64)
def _network_class(code: str) -> type[Network]:
    """Create the class of the networks with this forward pass, and register its source for tracebacks."""
    name = f"<cnnspec {zlib.crc32(code.encode()):08x}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"__name__": __name__, "torch": torch, "Tensor": Tensor, "Outputs": Outputs}
    exec(compile(code, name, "exec"), scope)
    return type("Network", (Network,), {"__module__": __name__, "forward": scope["forward"], "code": code})


def _restore(graph: Graph) -> Network:
    """Create a network without its state, for `copy` and `pickle`."""
    kind = _network_class(write_forward(graph))
    return kind.__new__(kind)
