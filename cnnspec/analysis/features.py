"""Feature extraction: the part of a Graph that computes the outputs of chosen modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cnnspec.diagnostics import did_you_mean, failure
from cnnspec.ir import IMAGE, Graph


def tap(graph: Graph, outputs: Sequence[str]) -> Graph:
    """Return the part of a network that computes the outputs of some modules.

    Args:
        graph: A network.
        outputs: Paths of modules in the order of the result, `"layer2"` or `"layer4.1.conv2"`; or names of its
            outputs, which come first.

    Returns:
        A Graph whose module returns a `dict` from these paths to tensors of shape `[N, C, H, W]`.

    Raises:
        CnnspecError: A module does not exist, or belongs to an auxiliary head.
    """
    if not outputs:
        raise failure(
            "E0219", "no output modules given", help="name at least one module; list them with `cnnspec summary`"
        )
    wanted: dict[str, int] = {}
    for path in outputs:
        index = graph.taps[path] if path in graph.taps else graph.find(path)
        if index is None:
            help = did_you_mean(path, [*graph.taps, *graph.paths]) or "list the modules with `cnnspec summary`"
            raise failure("E0219", f"`{graph.name}` has no module `{path}`", help=help)
        if graph.nodes[index].aux is not None:
            raise failure(
                "E0219",
                f"`{path}` belongs to an auxiliary head, which exists only in training",
                help="name a module outside the auxiliary heads",
            )
        wanted[path] = index
    first_uses: dict[str, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        if node.use is None:
            first_uses.setdefault(node.path, []).append(index)
    needed: set[int] = set()
    pending = [*range(len(graph.images)), *wanted.values()]
    while pending:
        index = pending.pop()
        if index != IMAGE and index not in needed:
            needed.add(index)
            pending += graph.nodes[index].inputs
            if graph.nodes[index].use is not None:  # the nodes of the first use have the weights
                pending += first_uses.pop(graph.nodes[index].path, ())
    order = {old: new for new, old in enumerate(sorted(needed))} | {IMAGE: IMAGE}
    nodes = tuple(
        replace(graph.nodes[i], inputs=tuple(order[j] for j in graph.nodes[i].inputs)) for i in sorted(needed)
    )
    ends = {path: order[i] for path, i in graph.ends.items() if i in needed}
    scopes = {path: block for path, block in graph.scopes.items() if path in ends}
    tensors = {
        path: {name: order[i] for name, i in named.items() if i in order} for path, named in graph.tensors.items()
    }
    taps = {path: order[i] for path, i in wanted.items()}
    output = max(taps.values())
    return replace(graph, nodes=nodes, output=output, scopes=scopes, ends=ends, aux=(), taps=taps, tensors=tensors)
