"""Liveness of tensors: the order of execution, shared memory, and the last use of each tensor.

The torch backend writes `forward` in this order, and memory is counted in it.
"""

from __future__ import annotations

from collections import Counter

from cnnspec.ir import IMAGE, Graph


def schedule(graph: Graph) -> list[int]:
    """Return the order of execution; an auxiliary head runs as soon as its inputs exist, to free them early."""
    starts = {head.name: IMAGE for head in graph.aux}
    if not starts:
        return list(range(len(graph.nodes)))
    for node in graph.nodes:
        if node.aux is not None:
            reads = (i for i in node.inputs if i != IMAGE and graph.nodes[i].aux != node.aux)
            starts[node.aux] = max(starts[node.aux], *reads, IMAGE)
    heads = list(starts)

    def place(index: int) -> tuple[int, int, int]:
        aux = graph.nodes[index].aux
        return (index, 0, 0) if aux is None else (starts[aux], 1 + heads.index(aux), index)

    return sorted(range(len(graph.nodes)), key=place)


def overwriting(graph: Graph) -> set[int]:
    """Return the activations that can run in place, because no other node reads their input.

    A module that is used again runs in place if all of its uses can.
    """
    readers = Counter(i for node in graph.nodes for i in node.inputs)
    readers.update(graph.training_results)
    found = {
        index
        for index, node in enumerate(graph.nodes)
        if node.op.overwrites
        and (source := node.inputs[0]) != IMAGE
        and readers[source] == 1
        and graph.nodes[source].op.fresh
    }
    kept = {node.path for index, node in enumerate(graph.nodes) if node.op.overwrites and index not in found}
    return {index for index in found if graph.nodes[index].path not in kept}


def owners(graph: Graph, training: bool) -> list[int]:
    """Return, for each node, the node whose memory holds its output; `IMAGE` for a view of the image."""
    over = overwriting(graph)
    found: list[int] = []
    for index, node in enumerate(graph.nodes):
        if index in over or (node.op.shares(training) and index >= len(graph.images)):
            source = node.inputs[0]
            found.append(IMAGE if source == IMAGE else found[source])
        else:
            found.append(index)
    return found


def tracked(graph: Graph) -> list[bool]:
    """Return, for each node, True if its output depends on learned weights and so has a gradient."""
    found: list[bool] = []
    for node in graph.nodes:
        found.append(bool(node.weights) or any(i != IMAGE and found[i] for i in node.sources))
    return found


def last_uses(graph: Graph, training: bool) -> dict[int, int]:
    """Return the position in `schedule` of the last use of each owner of memory.

    Tensors whose last reader is an auxiliary head are freed after that head, also in evaluation. Results and several
    images live to the end.
    """
    order, owner = schedule(graph), owners(graph, training)
    found: dict[int, int] = {}
    after_heads, is_head_next = 0, False
    for position in range(len(order) - 1, -1, -1):
        node = graph.nodes[order[position]]
        if node.aux is None or not is_head_next:
            after_heads = position
        is_head_next = node.aux is not None
        for source in node.inputs:
            if source != IMAGE:
                found.setdefault(owner[source], after_heads if graph.nodes[source].aux is None else position)
        found.setdefault(owner[order[position]], position)
    kept = (*range(len(graph.images)), *graph.training_results)
    found.update((owner[index], len(order)) for index in kept if training or graph.nodes[index].aux is None)
    return found
