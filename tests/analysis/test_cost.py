"""Counts against torch: operations, saved activations, peaks of memory, and the largest batch that trains."""

# ruff: noqa: E402

from __future__ import annotations

import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cnnspec.analysis.cost import count, live_memory, training_memory
from cnnspec.api import build, load, loads
from cnnspec.backends.torch.module import split_images
from cnnspec.ir import Graph
from cnnspec.ops import OPS
from cnnspec.recipe import OPTIMIZERS
from cnnspec.semantics.loader import shipped_specs
from cnnspec.shapes import numel
from cnnspec.testing import specs
from cnnspec.training.loop.optimizers import OPTIMIZERS as TORCH_OPTIMIZERS

QUICK = settings(max_examples=40, deadline=None)
LONG = settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
KEPT = ("resnet20", "preact_resnet20", "googlenet_cifar", "densenet_cifar", "resnet50", "densenet121", "googlenet")


def outputs(given: Any) -> list[Tensor]:
    if isinstance(given, dict):
        return [*given.values()]
    return [given] if isinstance(given, Tensor) else [given[0], *given[1]]


def loss(given: Any) -> Tensor:
    return torch.stack([y.sum() for y in outputs(given)]).sum()


# --- operations ----------------------------------------------------------------------------------


class Parts(nn.Module):
    """A grouped convolution as ungrouped ones, one for each group, each with its own weights."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        kind, groups = type(conv), conv.groups
        sizes: dict[str, Any] = {name: getattr(conv, name) for name in ("stride", "padding", "dilation")}
        if isinstance(conv, nn.ConvTranspose2d):
            sizes["output_padding"] = conv.output_padding
        self.parts = nn.ModuleList(
            kind(conv.in_channels // groups, conv.out_channels // groups, conv.kernel_size, **sizes)
            for _ in range(groups)
        )

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.chunk(len(self.parts), 1)
        return torch.cat([part(piece) for part, piece in zip(self.parts, pieces, strict=True)], 1)


def expand(module: nn.Module) -> bool:
    """Replaces every grouped convolution by its parts; whether there was one."""
    found = False
    for scope in list(module.modules()):
        for name, layer in list(scope._modules.items()):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.groups > 1:
                scope._modules[name] = Parts(layer)
                found = True
    return found


def operations_that_torch_counts(graph: Graph, batch: int) -> tuple[int, int]:
    """Operations forward and backward of a training step, the image without gradient."""
    with torch.device("meta"):
        module = build(graph).train()
        expand(module)
    with FlopCounterMode(display=False) as forward:
        total = loss(module(*split_images(graph, torch.empty(batch, *graph.input_shape, device="meta"))))
    with FlopCounterMode(display=False) as backward:
        if total.requires_grad:
            total.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def hold_against_flop_counter(graph: Graph, batch: int = 2) -> None:
    counts = count(graph)
    assert operations_that_torch_counts(graph, batch) == (
        batch * sum(counts.flops),
        batch * sum(counts.backward_flops),
    )
    assert counts.inference_flops == 2 * graph.macs
    assert counts.training_flops == sum(counts.flops) + sum(counts.backward_flops)


@pytest.mark.parametrize("name", [*KEPT, "alexnet", "vgg16", "inception_v3", "resnext50_32x4d", "dpn68"])
def test_operations_of_published_networks(name: str) -> None:
    hold_against_flop_counter(load(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped_specs()))
def test_operations_of_all_that_ships(name: str) -> None:
    hold_against_flop_counter(load(name))


@given(specs(), st.integers(2, 3))
@QUICK
def test_operations(text: str, batch: int) -> None:
    hold_against_flop_counter(loads(text), batch)


@pytest.mark.slow
@given(specs(), st.integers(2, 3))
@LONG
def test_operations_of_very_many(text: str, batch: int) -> None:
    hold_against_flop_counter(loads(text), batch)


def test_torch_counts_the_gradient_of_grouped_weights_too_high() -> None:
    """The parts of a grouped convolution, run apart, are as many operations as we count, and do the same.

    torch counts the gradient of the weights of the whole as if every channel met every other one.
    """
    groups, n, c, out, side = 4, 2, 8, 12, 6
    graph = loads(f"input {c}x{side}x{side}\nclasses 2\nconv 3x3 {out} groups={groups}\n")
    counts = count(graph)
    grouped = nn.Conv2d(c, out, 3, padding=1, groups=groups, bias=False)
    parts = Parts(grouped)
    with torch.no_grad():
        for part, weight in zip(parts.parts, grouped.weight.chunk(groups), strict=True):
            part.weight.copy_(weight)
            part.bias.zero_()
    x = torch.randn(n, c, side, side)
    torch.testing.assert_close(parts(x), grouped(x))

    def backward(module: nn.Module) -> int:
        y = module(x)
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        return counter.get_total_flops()

    assert backward(parts) == n * counts.backward_flops[0]
    assert backward(grouped) == groups * n * counts.backward_flops[0]
    for part, gradient in zip(parts.parts, grouped.weight.grad.chunk(groups), strict=True):
        torch.testing.assert_close(part.weight.grad, gradient)
    # By hand: each number of the output takes a multiplication for each number of its window and its group.
    assert counts.flops[0] == 2 * (out * side * side) * (c // groups * 3 * 3)


def test_the_image_has_no_gradient() -> None:
    graph = loads("input 3x8x8\nclasses 4\npad 1\nconv 3x3 8 pad=0\nconv 3x3 8\nflatten | linear classes\n")
    counts = count(graph)
    assert counts.backward_flops == [f * g for f, g in zip(counts.flops, [1, 1, 2, 1, 2], strict=True)]


# --- saved activations ----------------------------------------------------------------------------


class Saved:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def separate(graph: Graph, images: Tensor) -> list[Tensor]:
    """The arguments of a module, each with a memory of its own."""
    return [part.clone() for part in split_images(graph, images)] if graph.images else [images]


def saved_by_torch(graph: Graph, batch: int) -> int:
    """Bytes of the storages that live from forward to backward, without weights and single numbers."""
    module = build(graph).train()
    weights = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    saved: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Saved:
        kept = Saved(tensor)
        saved.add(kept)
        return kept

    images = separate(graph, torch.randn(batch, *graph.input_shape))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = module(*images)
    storages = {
        storage._cdata: storage.nbytes()
        for kept in saved
        if kept.tensor.ndim and (storage := kept.tensor.untyped_storage())._cdata not in weights
    }
    assert outputs(result)
    return sum(storages.values())


@pytest.mark.parametrize("name", KEPT)
def test_saved_activations_of_published_networks(name: str) -> None:
    graph = load(name)
    batch = 2 if graph.aux else 1
    assert count(graph).saved_total.at(batch) == saved_by_torch(graph, batch)


def copied(graph: Graph) -> int:
    """The most bytes, of two images, that torch copies because a tensor does not lie in memory in its order.

    `ln` and `linear pointwise` leave the channels side by side, and `flatten` and `in_norm` copy that; `in_norm` copies
    what a `slice` cuts out, too. `linear pointwise` copies what does not lie side by side, and then adds its bias to a
    copy of its output. docs/reference/cli.md says that these are not counted.
    """
    pointwise = [node for node in graph.nodes if getattr(node.op, "pointwise", False)]
    operators = {node.op.name for node in graph.nodes}
    last = "ln" in operators or pointwise
    copying = {"flatten", "in_norm"} if last else {"in_norm"} if "slice" in operators else set[str]()
    sizes = [max(numel(graph.input_shapes(node)[0]), numel(node.shape)) for node in pointwise]
    sizes += [numel(graph.input_shapes(node)[0]) for node in graph.nodes if node.op.name in copying]
    return sum(8 * size for size in sizes)


def hold_against_saved_tensors(text: str) -> None:
    graph = loads(text)
    try:
        kept = saved_by_torch(graph, 2)
    except ValueError as error:  # one number for each channel has no variance
        assume("more than 1 value per channel" not in str(error))
        assume("more than 1 spatial element" not in str(error))
        raise
    own = count(graph).saved_total.at(2)
    # `in_norm` keeps its copy of what a `slice` cuts out, and then the whole need not stay.
    cut = sum(8 * numel(graph.input_shapes(node)[0]) for node in graph.nodes if node.op.name == "slice")
    least = own - cut if any(node.op.name == "in_norm" for node in graph.nodes) else own
    assert least <= kept <= own + copied(graph), f"{own}, torch saves {kept}\n{text}"


@given(specs())
@QUICK
def test_saved_activations(text: str) -> None:
    hold_against_saved_tensors(text)


@pytest.mark.slow
@given(specs())
@LONG
def test_saved_activations_of_very_many(text: str) -> None:
    hold_against_saved_tensors(text)


@pytest.mark.parametrize(
    "layers",
    [
        "mul { conv 3x3 8; conv 1x1 8; conv 1x1 1 }",
        "mul { in; conv 1x1 8; conv 1x1 1 | global_avgpool; in }",
        "mul { in; in; conv 1x1 8 }",
        "conv 3x3 8 | mul { in; slice 0..1 | relu; in }",
        "add { conv 1x1 8; in | conv 1x1 8; conv 3x3 8 } | relu",
        "conv 1x1 8 | dropout 1.0 | drop_path 1.0 | dropout2d 1.0 | conv 1x1 2",
        "in_norm affine | lrn 9 | prelu | scale | conv 1x1 2",
        "channel_shuffle 1 | pixel_shuffle 1 | pad 0 | upsample 1 | bn | relu6 | conv 1x1 2",
        "conv 1x1 8 | identity | relu | relu | adaptive_avgpool 1 | adaptive_maxpool 1 | flatten | linear 2",
        "conv 1x1 4 | relu | scale shape=scalar bare | shift shape=map | relu | conv 1x1 2",
        "conv 1x1 8 | softmax parts=4 | channel_conv 3 | conv 1x1 4 | global_avgpool | channel_conv 5 | softmax 2",
        "conv 1x1 8 standardize | conv 3x3 8 depthwise pad=tf_same standardize gain | relu | conv 2x2 2 pad=0",
        "conv 1x1 2 | pixel_unshuffle 3 | relu | pixel_unshuffle 1 | channel_shuffle 2 | pixel_shuffle 3 | conv 1x1 2",
        "conv 1x1 8 | glu | relu | conv 1x1 8 | drop_path 0.5 mode=batch | glu | glu | conv 1x1 4",
        "conv 1x1 8 | shake_shake | relu | conv 1x1 4 | shake_drop 0.5 | shake_drop 0.0 | relu | conv 1x1 2",
        "conv 1x1 8 | hardtanh | conv 1x1 4",
        "conv 1x1 8 | blurpool 3 | relu | conv 1x1 4 | blurpool 3 stride=1 mode=constant | conv 1x1 4",
        "conv 1x1 8 | blurpool 2 pad=0 | relu | conv 1x1 4 | blurpool 3 stride=1 mode=circular | conv 1x1 4",
        "slice 0..3 | conv 3x3 8 | slice 2..5 | relu | slice 0..1 | conv 1x1 4",
        "conv 3x3 8 | mul { in; concat { mean over=c; max over=c } | conv 3x3 1 | sigmoid }",
        "conv 3x3 8 | relu | max over=w | max over=h | mean over=c",
        "conv 3x3 8 stride=2 | upsample like=in mode=bilinear | conv 1x1 4",
    ],
)
def test_memory_of_some_operators(layers: str) -> None:
    graph = loads(f"input 8x6x6\n{layers}\n")
    assert count(graph).saved_total.at(2) == saved_by_torch(graph, 2)
    assert max(live_memory(graph)).at(2) == peak_in_inference(graph, 2)


# --- live memory ---------------------------------------------------------------------------------


class LiveStorages(TorchDispatchMode):
    """Follows which storages live after each of torch's operators; `peak` is the most bytes of all but weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        state = (*module.parameters(), *module.buffers())
        self.weights = {tensor.untyped_storage()._cdata for tensor in state}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def note(self, tensors: list[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.weights:
                    self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: kept for key, kept in self.live.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.note([*tree_leaves(args), *tree_leaves(result)])
        return result


def peak_in_inference(graph: Graph, batch: int) -> int:
    module, images = build(graph).eval(), separate(graph, torch.zeros(batch, *graph.input_shape))
    with torch.no_grad(), LiveStorages(module) as live:
        live.note(images)
        module(*images)
    return live.peak


def peak_in_training(graph: Graph, batch: int) -> int:
    """Without weights, with their gradients, which are made in the backward pass."""
    module, images = build(graph).train(), separate(graph, torch.zeros(batch, *graph.input_shape))
    with LiveStorages(module) as live:
        live.note(images)
        total = loss(module(*images))
        if total.requires_grad:
            total.backward()
    return live.peak


@pytest.mark.parametrize("name", KEPT)
def test_peak_in_inference_of_published_networks(name: str) -> None:
    graph = load(name)
    assert max(live_memory(graph)).at(2) == peak_in_inference(graph, 2)


def hold_against_live_storages(text: str) -> None:
    graph = loads(text)
    own, peak = max(memory.at(2) for memory in live_memory(graph)), peak_in_inference(graph, 2)
    assert own <= peak <= own + copied(graph), f"{own}, torch takes {peak}\n{text}"


def hold_against_torch(text: str) -> None:
    """Compare the floating-point operations, saved tensors and live memory of a network with torch."""
    hold_against_flop_counter(loads(text))
    hold_against_saved_tensors(text)
    hold_against_live_storages(text)


@pytest.mark.parametrize(
    "text",
    [
        "input 4x6x9\nslice 0..1 | in_norm\n",
        "input 4x16x16\nconv 1 8 | slice 0..4 | in_norm | relu\n",
        "input 4x16x16\nconv 1 8 | ln | in_norm | conv 1 4\n",
        "input 4x16x16\nconv 1 8 | linear 8 pointwise | relu | in_norm | linear 4 pointwise\n",
        "input 1x1x2\nconv 3x3 2 | linear 3 pointwise | conv 3x3 1\n",
        "input 4x16x16\nconv 1 8 | ln | relu | add { in_norm; conv 1 8 }\n",
    ],
)
def test_copies_that_are_not_counted(text: str) -> None:
    hold_against_live_storages(text)
    hold_against_saved_tensors(text)
    graph = loads(text)
    assert max(live_memory(graph)).at(2) < peak_in_inference(graph, 2)


@given(specs())
@QUICK
def test_peak_in_inference(text: str) -> None:
    hold_against_live_storages(text)


@pytest.mark.slow
@given(specs())
@LONG
def test_peak_in_inference_of_very_many(text: str) -> None:
    hold_against_live_storages(text)


@pytest.mark.parametrize("name", KEPT[:5])
def test_training_takes_what_is_said(name: str) -> None:
    graph = load(name)
    memory = training_memory(graph)
    assert 1 <= (memory.gradients + memory.activations(2)) / peak_in_training(graph, 2) < 1.4


def test_the_backward_pass_of_slopes_makes_two_tensors() -> None:
    inputs, y = [(8, 5, 5)], (8, 5, 5)
    assert OPS["prelu"]().backward_scratch(inputs, y) == 2 * 4 * numel(y)
    assert OPS["scale"]().backward_scratch(inputs, y) == 4 * numel(y)
    assert OPS["lrn"](size=5).backward_scratch(inputs, y) == 3 * 4 * numel(y)


def test_training_memory_by_part() -> None:
    head = "input 3x8x8\nclasses 4\nconv 3x3 8 | bn | relu\nglobal_avgpool | flatten | linear classes\n"
    numbers = 3 * 8 * 9 + 8 + 8 + 8 * 4 + 4
    plain = training_memory(loads(head + "train { optimizer sgd }\n"))
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 * numbers + 2 * 4 * 8 + 8, 4 * numbers, 0)
    averaged = training_memory(loads(head + "train { ema 0.99 }\n"))
    assert averaged.optimizer == 2 * 4 * numbers + averaged.weights


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_optimizers_remember(name: str, momentum: float) -> None:
    kind = OPTIMIZERS[name]
    own = kind(**({"momentum": momentum} if "momentum" in kind.parameters else {}))
    wide, narrow = nn.Parameter(torch.rand(7, 3)), nn.Parameter(torch.rand(5))
    optimizer = TORCH_OPTIMIZERS[name]([wide, narrow], **own.settings())
    for weight in (wide, narrow):
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    inner = optimizer.state_dict().get("inner") or [optimizer.state_dict()]
    state = [value for part in inner for entry in part["state"].values() for value in entry.values()]
    remembered = sum(value.numel() for value in state if isinstance(value, Tensor) and value.ndim)
    assert remembered == own.remembers(2) * wide.numel() + own.remembers(1) * narrow.numel()


def hold_batches(graph: Graph, budget: int) -> None:
    memory = training_memory(graph)
    batch = memory.largest_batch(budget)
    assert batch == 0 or memory.at(batch) <= budget
    assert memory.at(batch + 1) > budget
    assert memory.largest_batch(budget + 1_000_000) >= batch
    assert memory.at(batch) < memory.at(batch + 1) < memory.at(batch + 2)


@given(specs(), st.integers(0, 10**9))
@example("input 3x8x8\nclasses 2\nrelu\n", 1)
@QUICK
def test_the_largest_batch_fits_and_the_next_does_not(text: str, budget: int) -> None:
    hold_batches(loads(text), budget)


@pytest.mark.parametrize("name", KEPT)
def test_the_largest_batch_of_published_networks(name: str) -> None:
    hold_batches(load(name), 16 * 2**30)
