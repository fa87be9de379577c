"""Cost of a network: floating-point operations, and memory in training and inference, per node and in total.

Memory is the size of the float32 tensors that torch allocates on a CPU, without the workspace of kernels. Values are
per image and grow with the batch, except those named `fixed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from cnnspec import shapes
from cnnspec.analysis.liveness import last_uses, owners, schedule, tracked
from cnnspec.ir import IMAGE, Graph
from cnnspec.ops.base import FLOAT
from cnnspec.recipe import OPTIMIZERS


class Memory(NamedTuple):
    """Bytes per image, and bytes per batch of any size."""

    image: int
    fixed: int = 0

    def at(self, batch: int) -> int:
        """Return the bytes for a batch."""
        return self.image * batch + self.fixed


_NO_MEMORY = Memory(0)


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a network; lists have one entry per node of its Graph.

    Attributes:
        flops: Floating-point operations of convolutions and linear layers in the forward pass, two per multiply-add.
        backward_flops: Floating-point operations in the backward pass; the image has no gradient.
        extra: Memory for masks, indices and statistics that an operator saves for the backward pass.
        saved_outputs: Nodes whose output is saved for the backward pass, `IMAGE` for the image. A tensor that several
            operators save, or several nodes share, counts once, at the node that allocates it.
        saved: Memory saved for the backward pass at each node: its output, if it is saved, and `extra`.
        inference_flops: The sum of `flops` without auxiliary heads.
        training_flops: The sum of `flops` and `backward_flops` with auxiliary heads: one training step.
        saved_total: The sum of `saved`, and the image if it is saved.
    """

    flops: list[int]
    backward_flops: list[int]
    extra: list[Memory]
    saved_outputs: frozenset[int]
    saved: list[Memory]
    inference_flops: int
    training_flops: int
    saved_total: Memory


def count(graph: Graph) -> Counts:
    """Count the operations and the saved activations of a network, also for symbolic sizes."""
    nodes = graph.nodes
    gradient, owner = tracked(graph), owners(graph, training=True)
    flops, backward, extra = [0] * len(nodes), [0] * len(nodes), [_NO_MEMORY] * len(nodes)
    saved_outputs: set[int] = set()
    for index, node in enumerate(nodes):
        if node.macs:
            flops[index] = 2 * node.macs
        if not gradient[index]:
            continue
        inputs = graph.input_shapes(node)
        depends = [i != IMAGE and gradient[i] for i in node.sources]
        if node.macs:
            # The gradient of the weights costs as much as the forward pass, and so does the gradient of the input.
            backward[index] = flops[index] * (bool(node.weights) + depends[0])
        saved = node.op.saved(inputs, node.shape, depends)
        for position in saved.inputs:
            source = node.inputs[position]
            saved_outputs.add(source if source == IMAGE else owner[source])
        if saved.output:
            saved_outputs.add(owner[index])
        if saved.extra or saved.fixed:
            extra[index] = Memory(saved.extra, saved.fixed)
    saved = list(extra)
    for index in saved_outputs - {IMAGE}:
        saved[index] = Memory(extra[index].image + _size(nodes[index].shape), extra[index].fixed)
    image = _size(graph.input_shape) if IMAGE in saved_outputs else 0
    return Counts(
        flops,
        backward,
        extra,
        frozenset(saved_outputs),
        saved,
        sum(flop for flop, node in zip(flops, nodes, strict=True) if node.aux is None),
        sum(flops) + sum(backward),
        Memory(sum(own.image for own in saved) + image, sum(own.fixed for own in saved)),
    )


def live_memory(graph: Graph, counts: Counts | None = None) -> list[Memory]:
    """Return the bytes of all live tensors while each node runs forward; the maximum is the peak.

    Live tensors are the inputs and the output of the node, those that later nodes read, and the image.

    Args:
        graph: The network.
        counts: The counts of the network for a training step, in which activations are saved for the backward pass.
            Without them the network is in evaluation mode, and auxiliary heads do not run.
    """
    training = counts is not None
    order, owner, last = schedule(graph), owners(graph, training), last_uses(graph, training)
    ends: dict[int, list[int]] = {}
    for index, position in last.items():
        ends.setdefault(position, []).append(index)
    live_at = [_NO_MEMORY] * len(graph.nodes)
    live, fixed = 0 if graph.images else _size(graph.input_shape), 0
    allocated: dict[int, int] = {}
    for position, index in enumerate(order):
        node = graph.nodes[index]
        if training or node.aux is None:
            extra = counts.extra[index] if counts else _NO_MEMORY
            if owner[index] == index:
                allocated[index] = _size(node.shape)
                live += allocated[index]
            scratch = node.op.scratch(graph.input_shapes(node), node.shape)
            constant = max(node.op.fixed_scratch(graph.input_shapes(node)), extra.fixed)
            live_at[index] = Memory(live + max(scratch, extra.image), fixed + constant)
            live, fixed = live + extra.image, fixed + extra.fixed
        for freed in ends.get(position, ()):
            if freed in allocated and not (counts and freed in counts.saved_outputs):
                live -= allocated.pop(freed)
    return live_at


class TrainingMemory(NamedTuple):
    """Bytes of a training step in float32, by purpose.

    Attributes:
        weights: Learned weights, and the running statistics of normalization.
        gradients: Gradients of the weights.
        optimizer: The state of the recipe's optimizer, and the average of the weights if the recipe has one.
        steps: Activations while each node runs forward, and at the peak of the backward pass: the image, the saved
            tensors, and the gradients that the largest step reads and writes.
    """

    weights: int
    gradients: int
    optimizer: int
    steps: tuple[Memory, ...]

    def activations(self, batch: int) -> int:
        """Return the bytes of the activations for a batch."""
        return max(step.at(batch) for step in self.steps)

    def at(self, batch: int) -> int:
        """Return the bytes for a batch."""
        return self.weights + self.gradients + self.optimizer + self.activations(batch)

    def largest_batch(self, memory: int) -> int:
        """Return the largest batch that fits into `memory` bytes; 0 if one image does not fit."""
        left = memory - self.weights - self.gradients - self.optimizer
        return max(0, min((left - step.fixed) // step.image for step in self.steps))


def training_memory(graph: Graph) -> TrainingMemory:
    """Return the memory of a training step, without kernel workspaces, the loss and prefetched images."""
    counts, gradient = count(graph), tracked(graph)
    weights = FLOAT * graph.parameter_count
    owners = [node for node in graph.nodes if node.use is None]
    buffers = sum(node.op.buffers(graph.input_shapes(node)[0]) for node in owners)
    recipe = graph.recipe
    settings: dict[str, Any] = dict(recipe.optimizer.args)
    rule = OPTIMIZERS[recipe.optimizer.name](**settings)
    learned = (weight for node in owners for weight in node.weights.values())
    optimizer = sum(rule.remembers(len(weight)) * _size(weight) for weight in learned)
    average = 0 if recipe.ema is None else weights + buffers
    working = 0
    for index, node in enumerate(graph.nodes):
        if gradient[index]:
            inputs = (graph.nodes[i].shape for i in node.sources if i != IMAGE and gradient[i])
            scratch = node.op.backward_scratch(graph.input_shapes(node), node.shape)
            working = max(working, _size(node.shape) + sum(_size(shape) for shape in inputs) + scratch)
    saved, images = counts.saved_total, [*enumerate(graph.images.values())] or [(IMAGE, graph.input_shape)]
    image = sum(_size(shape) for index, shape in images if index not in counts.saved_outputs)
    steps = (*set(live_memory(graph, counts)), Memory(saved.image + image + working, saved.fixed))
    return TrainingMemory(weights + buffers, weights, optimizer + average, steps)


def _size(shape: shapes.Shape) -> int:
    return FLOAT * shapes.numel(shape)
