"""Use torch on the meta device as an oracle for shapes, counts, and valid image sizes.

This module contains no shape rules. Every shape comes from running a torch module or function.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cnnspec import ir
from cnnspec.analysis.liveness import schedule
from cnnspec.api import build, load, loads
from cnnspec.backends.torch.module import split_images
from cnnspec.training.loop.nan_search import first_nonfinite_weight

Size = tuple[int, int]
Lengths = tuple[int, ...]


class Unsound(AssertionError):
    """The checker and torch disagree. The message names the quantity."""


_CACHE: dict[Hashable, tuple[int, tuple[Any, ...]]] = {}
_MAX_CACHED = 2**17


class _FlopCounter(TorchDispatchMode):
    """Count floating-point operations by torch's own formulas, two per multiply-add.

    On the meta device, a call returns tensors of the same kind for arguments of the same kind, so results are cached.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = (func, _layout(args), _layout(tuple(kwargs.items())))
        known = _CACHE.get(key)
        if known is not None:
            operations, layouts = known
            self.operations += operations
            outputs = tuple(
                torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in layouts
            )
            return outputs[0] if len(outputs) == 1 else outputs
        out = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        operations = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        self.operations += operations
        outputs = out if type(out) is tuple and len(out) > 1 else (out,)
        if all(isinstance(tensor, Tensor) for tensor in outputs) and not func._schema.is_mutable:
            if len(_CACHE) >= _MAX_CACHED:
                _CACHE.clear()
            _CACHE[key] = operations, tuple(map(_layout, outputs))
        return out


def _layout(value: Any) -> Hashable:
    """Return everything that the shape of a result depends on: for a tensor its shape, strides and dtype."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_layout, value))
    return type(value), value


def build_on_meta(graph: ir.Graph) -> nn.Module:
    """Build a network in evaluation mode on the meta device, without data."""
    with torch.device("meta"):
        return build(graph).eval()


def compare_with_torch(graph: ir.Graph, sizes: Iterable[Size]) -> int:
    """Run a network at some sizes and compare every module's shape, the parameters and the multiply-adds.

    A network with auxiliary heads is also run in training mode, the only mode that runs the heads.

    Args:
        graph: The checked network.
        sizes: Heights and widths at which it must run.

    Returns:
        The number of compared modules.

    Raises:
        Unsound: torch disagrees.
    """
    module = build_on_meta(graph)
    weights = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    own = {key: shape for node in graph for key, shape in node.parameters.items()}
    _same("the weights", own, weights)
    _same("the number of parameters", graph.parameter_count, sum(w.numel() for w in module.parameters()))
    found: dict[str, list[Lengths]] = defaultdict(list)  # one for each use

    def watch(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found[path].append(tuple(output.shape))

        return hook

    handles = [part.register_forward_hook(watch(path)) for path, part in module.named_modules()]
    compared, batch = 0, 2
    for (height, width), training in product(sizes, (False, True) if graph.aux else (False,)):
        found.clear()
        at = graph.at(height, width)
        image = torch.empty(batch, graph.input_shape[0], height, width, device="meta")
        counter = _FlopCounter()
        with torch.no_grad(), counter:
            output = module.train(training)(*split_images(graph, image))
        here = f"at {height}x{width}{' in training' if training else ''}"
        logits, heads = output if training else (output, ())
        _same(f"the output {here}", _batched(at, batch), _shapes_of(logits))
        for head, given in zip(at.aux, heads, strict=training):
            _same(f"the output of `{head.name}` {here}", (batch, *at.nodes[head.output].shape), tuple(given.shape))
        expected: dict[str, list[Lengths]] = defaultdict(list)
        for node in (at.nodes[index] for index in schedule(at)):
            if node.op.owns_module and (training or node.aux is None):
                expected[node.path].append((batch, *node.shape))
        for path, shapes in expected.items():
            _same(f"the shape of `{path}` {here}", shapes, found[path])
            compared += len(shapes)
        if not training:
            _same(f"the multiply-adds {here}", 2 * batch * at.macs, counter.operations)
    for handle in handles:
        handle.remove()
    return compared


def _same(what: str, own: object, expected: object) -> None:
    if own != expected:
        raise Unsound(f"{what}: the checker computes {own}, torch returns {expected}")


def _batched(graph: ir.Graph, batch: int) -> list[tuple[str, Lengths]]:
    """Return the shapes of what a network returns by name; the name of a single tensor is empty."""
    named = graph.output_shapes or {"": graph.output_shape}
    return [(name, (batch, *shape)) for name, shape in named.items()]


def _shapes_of(output: Tensor | dict[str, Tensor]) -> list[tuple[str, Lengths]]:
    named = {"": output} if isinstance(output, Tensor) else output
    return [(name, tuple(tensor.shape)) for name, tensor in named.items()]


def compare_training_step(graph: ir.Graph, seed: int = 0) -> int:
    """Train a network for one step on two random images on the CPU, and compare the shapes of its outputs.

    Every weight must get a gradient, and all of them must be finite after the step.

    Returns:
        The number of weights.

    Raises:
        Unsound: torch disagrees.
    """
    from cnnspec.training.loop.optimizers import optimizer_for

    torch.manual_seed(seed)
    network = build(graph).train()
    optimizer, schedule = optimizer_for(network, graph.recipe, 1)
    outputs = network(*split_images(graph, torch.randn(2, *graph.input_shape)))
    heads = [outputs.logits, *outputs.aux] if graph.aux else [*outputs.values()] if graph.taps else [outputs]
    expected = [(2, *graph.nodes[index].shape) for index in graph.training_results]
    _same("the outputs in training", expected, [tuple(head.shape) for head in heads])
    sum(head.tanh().square().mean() for head in heads).backward()  # type: ignore[union-attr]
    missing = [name for name, weight in network.named_parameters() if weight.grad is None]
    _same("the weights without a gradient", [], missing)
    optimizer.step()
    schedule.step()
    _same("the first weight that is not finite", None, first_nonfinite_weight(network))
    return len(list(network.parameters()))


class Acceptance:
    """Determine which image sizes torch accepts, by running every operator once at every shape that reaches it.

    Joins follow the language, which is stricter than torch: `add` and `concat` do not broadcast, and `mul` broadcasts
    only 1x1 maps and single channels. Empty tensors, which some torch operators accept and return, count as rejected.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.module = build_on_meta(graph)
        parts = dict(self.module.named_modules())
        self._parts = [parts.get(node.path) if node.op.owns_module else None for node in graph]
        kinds: dict[object, int] = {}  # equal operators with equal weights behave identically
        keys = [(node.op.name, repr(node.op.settings()), repr(node.weights)) for node in graph]
        self._kinds = [kinds.setdefault(key, len(kinds)) for key in keys]
        self._known: dict[tuple[object, ...], Lengths | None] = {}

    def accepts(self, height: int, width: int, *, heads: bool = True) -> bool:
        """Return whether every operator runs, with or without those of the auxiliary heads."""
        return self.shapes(height, width, heads=heads) is not None

    def shapes(self, height: int, width: int, *, heads: bool = True) -> list[Lengths] | None:
        """Return the output shape of every operator for one image, or None if one of them fails."""
        image: Lengths = (1, self.graph.input_shape[0], height, width)
        found: list[Lengths] = []
        for index, node in enumerate(self.graph):
            if node.aux is not None and not heads:
                found.append(())
                continue
            entering = tuple(image if i == ir.IMAGE else found[i] for i in node.inputs)
            key = (self._kinds[index], entering)
            if key not in self._known:
                self._known[key] = self._run(index, node, entering)
            given = self._known[key]
            if given is None:
                return None
            found.append(given)
        return found

    def _run(self, index: int, node: ir.Node, entering: Sequence[Lengths]) -> Lengths | None:
        tensors = [torch.empty(shape, device="meta") for shape in entering]
        part = self._parts[index]
        try:
            with torch.no_grad():
                output = part(*tensors) if part is not None else _join(node, tensors)
        except (RuntimeError, ValueError, IndexError):
            return None
        return tuple(output.shape) if output.numel() and not _skips_map(part, entering[0]) else None


def _skips_map(part: nn.Module | None, entering: Lengths) -> bool:
    """Return whether a window of a dilated pool contains only padding. torch accepts it, and corrupts memory."""
    if not isinstance(part, nn.MaxPool2d) or part.dilation in (1, (1, 1)):
        return False
    return bool(part(torch.zeros(1, 1, *entering[-2:])).isneginf().any())


def _join(node: ir.Node, tensors: Sequence[Tensor]) -> Tensor:
    """Run an operator without a module.

    Raises:
        ValueError: torch would broadcast, but the language does not.
    """
    first, *others = tensors
    match node.op.name:
        case "concat":
            return torch.cat(list(tensors), 1)
        case "slice":
            low, high = node.op.range  # type: ignore[attr-defined]
            return first.narrow(1, low, high - low)
        case "add":
            for other in others:
                if other.shape != first.shape:
                    raise ValueError
                first = first + other
            return first
        case _:
            for other in others:
                channels = {first.shape[1], other.shape[1]} - {1}
                maps = {tuple(first.shape[2:]), tuple(other.shape[2:])} - {(1, 1)}
                if first.ndim != other.ndim or len(channels) > 1 or len(maps) > 1:
                    raise ValueError
                first = first * other
            return first


def compare_sizes_with_torch(graph: ir.Graph, sizes: Iterable[Size]) -> tuple[int, int]:
    """Compare the set of valid image sizes with torch, at every given size.

    Returns:
        The numbers of accepted and rejected sizes.

    Raises:
        Unsound: torch accepts a size that the checker rejects, or the reverse.
    """
    oracle = Acceptance(graph)
    evaluation_sizes = graph.sizes.in_evaluation
    accepted = rejected = 0
    for height, width in sizes:
        expected = oracle.accepts(height, width)
        if graph.accepts(height, width) != expected:
            raise Unsound(_size_mismatch(f"{height}x{width}", expected))
        if evaluation_sizes.demands != graph.sizes.demands:
            expected = oracle.accepts(height, width, heads=False)
            if evaluation_sizes.accepts(height, width) != expected:
                raise Unsound(_size_mismatch(f"{height}x{width} in evaluation", expected))
        accepted += expected
        rejected += not expected
    return accepted, rejected


def _size_mismatch(size: str, by_torch: bool) -> str:
    accepting, rejecting = ("torch", "the checker") if by_torch else ("the checker", "torch")
    return f"{size}: accepted by {accepting}, rejected by {rejecting}"


def draw_sizes(graph: ir.Graph, rng: random.Random, count: int, most: int = 80) -> list[Size]:
    """Return the declared size and other valid sizes, up to `count` in total."""
    _, high, wide = graph.input_shape
    found: dict[Size, None] = {(high, wide): None}
    for _ in range(20 * count):
        if len(found) >= count:
            break
        height = rng.choice((high, high + rng.randint(-4, 8), rng.randint(1, most)))
        width = rng.choice((wide, wide + rng.randint(-4, 8), rng.randint(1, most)))
        if graph.accepts(height, width):
            found[height, width] = None
    return list(found)


def assert_sound(spec: ir.Graph | str | Path, *, sizes: int = 5, seed: int = 0, **params: Any) -> None:
    """Test a spec against torch: output shapes of all modules, weights, multiply-adds, and rejected image sizes.

    This runs on the meta device, so it is fast for large networks as well.

    Args:
        spec: A Graph, the text of a spec (any string that contains `;` or a newline), a file, or the name of a shipped
            spec.
        sizes: The number of image sizes to run.
        seed: Selects the sizes other than the declared one.
        **params: Values of the spec's `param`s.

    Raises:
        CnnspecError: The spec is invalid.
        Unsound: The checker and torch disagree, which is a bug in this package.
    """
    if isinstance(spec, ir.Graph):
        graph = spec
    elif isinstance(spec, str) and re.search("[\n;]", spec):
        graph = loads(spec, **params)
    else:
        graph = load(spec, **params)
    rng = random.Random(seed)
    compare_with_torch(graph, draw_sizes(graph, rng, sizes))
    _, high, wide = graph.input_shape
    near = [(high + rng.randint(-8, 8), wide + rng.randint(-8, 8)) for _ in range(4 * sizes)]
    small = [(rng.randint(1, high), rng.randint(1, wide)) for _ in range(2 * sizes)]
    compare_sizes_with_torch(graph, [(h, w) for h, w in [*near, *small] if h > 0 and w > 0])
