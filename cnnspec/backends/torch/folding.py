"""Fold batch normalization into the convolution or linear layer before it."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

from torch import nn
from torch.nn.utils import fusion

from cnnspec.backends.torch.module import Network, to_module
from cnnspec.ops import OPS

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def fold(network: Network) -> Network:
    """Return a network in evaluation mode with every `bn` after a convolution or linear layer folded into it.

    The `bn` becomes an identity, so that all paths stay. Weights are folded in float64.
    """
    graph = network.graph
    readers = Counter([*(i for node in graph for i in node.inputs), *graph.training_results])
    paths = Counter(node.path for node in graph if node.op.owns_module)
    modules = dict(network.named_modules())
    nodes = list(graph.nodes)
    state = network.state_dict()
    for index, norm in enumerate(graph):
        layer = graph.nodes[norm.inputs[0]]
        alone = norm.inputs[0] >= 0 and readers[norm.inputs[0]] == paths[layer.path] == paths[norm.path] == 1
        if not alone or norm.op.name != "bn" or type(first := modules[layer.path]) not in _LAYERS:
            continue
        transposed = isinstance(first, nn.ConvTranspose2d)
        if isinstance(first, nn.ConvTranspose2d) and first.groups > 1:
            continue  # torch cannot fold it
        first, second = copy.deepcopy(first).double(), copy.deepcopy(modules[norm.path]).double()
        if isinstance(first, nn.Linear):
            merged = fusion.fuse_linear_bn_eval(first, second)  # pyright: ignore[reportArgumentType]
        else:
            merged = fusion.fuse_conv_bn_eval(first, second, transpose=transposed)  # pyright: ignore[reportArgumentType]
        state |= {f"{layer.path}.{key}": value.float() for key, value in merged.state_dict().items()}
        op = type(layer.op)(**{**layer.op.settings(), "bias": True})
        nodes[norm.inputs[0]] = replace(layer, op=op, weights=op.weights(graph.input_shapes(layer)[0]))
        nodes[index] = replace(norm, op=OPS["identity"](), weights={}, init=None)
    result = to_module(replace(graph, nodes=tuple(nodes))).eval()
    result.load_state_dict({key: state[key] for key in result.state_dict()})
    return result
