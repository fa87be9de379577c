"""What a network costs: floating-point operations, memory of training and of inference, by node and in total.

Memory is that of tensors in float32 as torch makes them on a CPU; what a kernel takes for itself while it
runs is not counted. Figures are for one image and grow with the batch, but for the few that are `fixed`.
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
    """Bytes: those of each image, and those that every batch takes."""

    image: int
    fixed: int = 0

    def at(self, batch: int) -> int:
        """Bytes for so many images."""
        return self.image * batch + self.fixed


NONE = Memory(0)


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a network, in lists with an entry for each node of its `Graph`.

    Attributes:
        flops: Floating-point operations of convolutions and linear layers forward, two for a multiply-add.
        backward_flops: Those of the backward pass of a training step, in which the image has no gradient.
        aside: What a node's operator sets aside for the backward pass: masks, indices, statistics.
        stays: The nodes whose output stays between forward and backward pass, `IMAGE` for the image. A tensor
            that several operators keep, or several nodes share, counts once, at the node that made it.
        kept: What stays of a node: its output, if it does, and what it sets aside.
        inference_flops: `flops` of all nodes without auxiliary heads.
        training_flops: `flops` and `backward_flops` of all nodes with auxiliary heads: those of a training step.
        kept_total: `kept` of all nodes, and the image where an operator keeps it.
    """

    flops: list[int]
    backward_flops: list[int]
    aside: list[Memory]
    stays: frozenset[int]
    kept: list[Memory]
    inference_flops: int
    training_flops: int
    kept_total: Memory


def count(graph: Graph) -> Counts:
    """Operations and kept activations of a network: sums of products of sizes, for symbolic sizes, too."""
    nodes = graph.nodes
    gradient, owner = tracked(graph), owners(graph, training=True)
    flops, backward, aside = [0] * len(nodes), [0] * len(nodes), [NONE] * len(nodes)
    stays: set[int] = set()
    for index, node in enumerate(nodes):
        if node.macs:
            flops[index] = 2 * node.macs
        if not gradient[index]:
            continue
        inputs = graph.input_shapes(node)
        depends = [i != IMAGE and gradient[i] for i in node.inputs]
        if node.macs:
            # The gradient of the weights takes as many as the forward pass, and that of the input, where it has one.
            backward[index] = flops[index] * (1 + depends[0])
        kept = node.op.kept(inputs, node.shape, depends)
        for position in kept.inputs:
            source = node.inputs[position]
            stays.add(source if source == IMAGE else owner[source])
        if kept.output:
            stays.add(owner[index])
        if kept.extra or kept.fixed:
            aside[index] = Memory(kept.extra, kept.fixed)
    kept = list(aside)
    for index in stays - {IMAGE}:
        kept[index] = Memory(aside[index].image + _size(nodes[index].shape), aside[index].fixed)
    image = _size(graph.input_shape) if IMAGE in stays else 0
    return Counts(
        flops,
        backward,
        aside,
        frozenset(stays),
        kept,
        sum(flop for flop, node in zip(flops, nodes, strict=True) if node.aux is None),
        sum(flops) + sum(backward),
        Memory(sum(own.image for own in kept) + image, sum(own.fixed for own in kept)),
    )


def live_memory(graph: Graph, counts: Counts | None = None) -> list[Memory]:
    """For each node the bytes of all tensors that exist while it runs forward.

    These are its inputs and its output, what others need later, and the image, which the caller holds. With
    `counts` it is the forward pass of training, in which activations stay for the backward pass; without it
    is evaluation, where auxiliary heads do not run. The greatest is the peak.
    """
    training = counts is not None
    order, owner, last = schedule(graph), owners(graph, training), last_uses(graph, training)
    ends: dict[int, list[int]] = {}
    for index, position in last.items():
        ends.setdefault(position, []).append(index)
    found = [NONE] * len(graph.nodes)
    live, fixed = _size(graph.input_shape), 0
    made: dict[int, int] = {}
    for position, index in enumerate(order):
        node = graph.nodes[index]
        if training or node.aux is None:
            aside = counts.aside[index] if counts else NONE
            if owner[index] == index:
                made[index] = _size(node.shape)
                live += made[index]
            scratch = node.op.scratch(graph.input_shapes(node), node.shape)
            found[index] = Memory(live + max(scratch, aside.image), fixed + aside.fixed)
            live, fixed = live + aside.image, fixed + aside.fixed
        for done in ends.get(position, ()):
            if done in made and not (counts and done in counts.stays):
                live -= made.pop(done)
    return found


class TrainingMemory(NamedTuple):
    """Bytes of a training step in float32 by what they are for.

    Attributes:
        weights: Learned weights and the running statistics of normalisations.
        gradients: Those of the weights.
        optimizer: What the recipe's optimizer remembers, and the average of the weights where the recipe has one.
        steps: The activations while the node that takes most of them runs forward, and in the backward pass:
            the image, what is kept, and the gradients that its largest step reads and makes.
    """

    weights: int
    gradients: int
    optimizer: int
    steps: tuple[Memory, ...]

    def activations(self, batch: int) -> int:
        """Bytes that grow with the batch, for so many images."""
        return max(step.at(batch) for step in self.steps)

    def at(self, batch: int) -> int:
        """Bytes for a batch of so many images."""
        return self.weights + self.gradients + self.optimizer + self.activations(batch)

    def largest_batch(self, memory: int) -> int:
        """The most images whose training step takes no more than so many bytes; 0 where not even one does."""
        left = memory - self.weights - self.gradients - self.optimizer
        return max(0, min((left - step.fixed) // step.image for step in self.steps))


def training_memory(graph: Graph) -> TrainingMemory:
    """What a training step takes.

    The memory that kernels take for themselves is not counted, nor are the loss and images in preparation.
    """
    counts, gradient = count(graph), tracked(graph)
    weights = FLOAT * graph.parameter_count
    buffers = sum(node.op.buffers(graph.input_shapes(node)[0]) for node in graph.nodes)
    recipe = graph.recipe
    settings: dict[str, Any] = dict(recipe.optimizer.args)
    rule = OPTIMIZERS[recipe.optimizer.name](**settings)
    learned = (weight for node in graph.nodes for weight in node.weights.values())
    optimizer = sum(rule.remembers(len(weight)) * _size(weight) for weight in learned)
    average = 0 if recipe.ema is None else weights + buffers
    working = 0
    for index, node in enumerate(graph.nodes):
        if gradient[index]:
            inputs = (graph.nodes[i].shape for i in node.inputs if i != IMAGE and gradient[i])
            scratch = node.op.backward_scratch(graph.input_shapes(node), node.shape)
            working = max(working, _size(node.shape) + sum(_size(shape) for shape in inputs) + scratch)
    kept, image = counts.kept_total, 0 if IMAGE in counts.stays else _size(graph.input_shape)
    steps = (*set(live_memory(graph, counts)), Memory(kept.image + image + working, kept.fixed))
    return TrainingMemory(weights + buffers, weights, optimizer + average, steps)


def _size(shape: shapes.Shape) -> int:
    return FLOAT * shapes.numel(shape)
