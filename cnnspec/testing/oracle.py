"""Torch on the meta device as the oracle of the check: shapes, counts, and which sizes of images a network takes.

Nothing here knows a shape rule: every shape comes from a torch module or function that was run.
"""

from __future__ import annotations

import random
import re
from collections.abc import Hashable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cnnspec import ir
from cnnspec.api import build, load, loads

Size = tuple[int, int]
Lengths = tuple[int, ...]


class Unsound(AssertionError):
    """The check and torch disagree; the message says about what."""


_ANSWERS: dict[Hashable, tuple[int, tuple[Any, ...]]] = {}
_MOST_ANSWERS = 2**17


class _Multiplications(TorchDispatchMode):
    """Counts what torch's own formulas count, two operations for a multiply-add.

    On the meta device a call gives the like for tensors of the like, so torch is asked once for each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = (func, _like(args), _like(tuple(kwargs.items())))
        known = _ANSWERS.get(key)
        if known is not None:
            operations, likes = known
            self.operations += operations
            made = tuple(
                torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in likes
            )
            return made[0] if len(made) == 1 else made
        out = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        operations = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        self.operations += operations
        given = out if type(out) is tuple and len(out) > 1 else (out,)
        if all(isinstance(tensor, Tensor) for tensor in given) and not func._schema.is_mutable:
            if len(_ANSWERS) >= _MOST_ANSWERS:
                _ANSWERS.clear()
            _ANSWERS[key] = operations, tuple(map(_like, given))
        return out


def _like(value: Any) -> Hashable:
    """What the shape of a result depends on: of a tensor its shape, strides and type."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_like, value))
    return type(value), value


def build_without_weights(graph: ir.Graph) -> nn.Module:
    """The module of a network in evaluation, on the meta device: shapes alone, no numbers."""
    with torch.device("meta"):
        return build(graph).eval()


def hold_against_torch(graph: ir.Graph, sizes: Iterable[Size]) -> int:
    """Runs a network at some sizes and compares every module's shape, the parameters and the multiply-adds.

    One that has auxiliary heads is run in training, too, as only then they are there.

    Args:
        graph: What was checked.
        sizes: Heights and widths at which it has to run.

    Returns:
        How many modules were compared.

    Raises:
        Unsound: Torch has another answer.
    """
    module = build_without_weights(graph)
    weights = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    own = {f"{node.path}.{key}": shape for node in graph for key, shape in node.weights.items()}
    _same("the weights", own, weights)
    _same("the number of parameters", graph.parameter_count, sum(w.numel() for w in module.parameters()))
    found: dict[str, Lengths] = {}

    def watch(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found[path] = tuple(output.shape)

        return hook

    handles = [part.register_forward_hook(watch(path)) for path, part in module.named_modules()]
    compared, batch = 0, 2
    for (height, width), training in product(sizes, (False, True) if graph.aux else (False,)):
        found.clear()
        at = graph.at(height, width)
        image = torch.empty(batch, graph.input_shape[0], height, width, device="meta")
        counter = _Multiplications()
        with torch.no_grad(), counter:
            output = module.train(training)(image)
        here = f"at {height}x{width}{' in training' if training else ''}"
        logits, heads = output if training else (output, ())
        _same(f"the output {here}", (batch, *at.output_shape), tuple(logits.shape))
        for head, given in zip(at.aux, heads, strict=training):
            _same(f"the output of `{head.name}` {here}", (batch, *at.nodes[head.output].shape), tuple(given.shape))
        for node in at:
            if node.op.owns_module and (training or node.aux is None):
                _same(f"the shape of `{node.path}` {here}", (batch, *node.shape), found.get(node.path))
                compared += 1
        if not training:
            _same(f"the multiply-adds {here}", 2 * batch * at.macs, counter.operations)
    for handle in handles:
        handle.remove()
    return compared


def _same(what: str, own: object, torchs: object) -> None:
    if own != torchs:
        raise Unsound(f"{what}: the check says {own}, torch says {torchs}")


class Acceptance:
    """Which sizes of images torch takes: every operator is run at every shape that reaches it, once.

    Joins follow the rule of the language, which is narrower than torch's: `add` and `concat` do not broadcast, `mul`
    does over maps of one place and over single channels alone. A tensor without numbers, which some operators of torch
    take and give, is none in the language, and counts as refused.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.module = build_without_weights(graph)
        parts = dict(self.module.named_modules())
        self._parts = [parts.get(node.path) if node.op.owns_module else None for node in graph]
        kinds: dict[object, int] = {}  # equal operators with equal weights do the same
        keys = [(node.op.name, repr(node.op.settings()), repr(node.weights)) for node in graph]
        self._kinds = [kinds.setdefault(key, len(kinds)) for key in keys]
        self._known: dict[tuple[object, ...], Lengths | None] = {}

    def accepts(self, height: int, width: int, *, heads: bool = True) -> bool:
        """Whether every operator runs, with those of auxiliary heads or without."""
        return self.shapes(height, width, heads=heads) is not None

    def shapes(self, height: int, width: int, *, heads: bool = True) -> list[Lengths] | None:
        """What every operator gives for one image, or nothing where one of them does not run."""
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
        return tuple(output.shape) if output.numel() else None


def _join(node: ir.Node, tensors: Sequence[Tensor]) -> Tensor:
    """An operator without a module.

    Raises:
        ValueError: Torch would broadcast where the language does not.
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


def hold_the_set_against_torch(graph: ir.Graph, sizes: Iterable[Size]) -> tuple[int, int]:
    """Compares which sizes a network takes with what torch does, at every one of them.

    Returns:
        How many sizes were taken, and how many were not.

    Raises:
        Unsound: Torch takes a size that the check refuses, or the other way round.
    """
    oracle = Acceptance(graph)
    alone = graph.sizes.in_evaluation
    taken = refused = 0
    for height, width in sizes:
        wanted = oracle.accepts(height, width)
        if graph.accepts(height, width) != wanted:
            raise Unsound(f"{height}x{width}: torch {'takes' if wanted else 'refuses'} it, the check does not")
        if alone.demands != graph.sizes.demands:
            wanted = oracle.accepts(height, width, heads=False)
            if alone.accepts(height, width) != wanted:
                raise Unsound(f"{height}x{width} in evaluation: torch {'takes' if wanted else 'refuses'} it")
        taken += wanted
        refused += not wanted
    return taken, refused


def draw_sizes(graph: ir.Graph, chance: random.Random, count: int, most: int = 80) -> list[Size]:
    """The declared size and others that the network takes, as many as asked for where there are any."""
    _, high, wide = graph.input_shape
    found: dict[Size, None] = {(high, wide): None}
    for _ in range(20 * count):
        if len(found) >= count:
            break
        height = chance.choice((high, high + chance.randint(-4, 8), chance.randint(1, most)))
        width = chance.choice((wide, wide + chance.randint(-4, 8), chance.randint(1, most)))
        if graph.accepts(height, width):
            found[height, width] = None
    return list(found)


def assert_sound(spec: ir.Graph | str | Path, *, sizes: int = 5, seed: int = 0, **params: Any) -> None:
    """Tests a spec against torch: shapes of every module, weights, multiply-adds, and refusal out of its set.

    Nothing is computed, so this is fast for large networks, too.

    Args:
        spec: A Graph, the text of a spec (what has a `;` or a line end in it), a file, or the name of a shipped one.
        sizes: At how many sizes of images it is run.
        seed: Which ones these are, beside the declared one.
        **params: Values for the spec's `param`s.

    Raises:
        CnnspecError: The spec does not check.
        Unsound: The check and torch disagree, which is a fault of this package.
    """
    if isinstance(spec, ir.Graph):
        graph = spec
    elif isinstance(spec, str) and re.search("[\n;]", spec):
        graph = loads(spec, **params)
    else:
        graph = load(spec, **params)
    chance = random.Random(seed)
    hold_against_torch(graph, draw_sizes(graph, chance, sizes))
    _, high, wide = graph.input_shape
    near = [(high + chance.randint(-8, 8), wide + chance.randint(-8, 8)) for _ in range(4 * sizes)]
    small = [(chance.randint(1, high), chance.randint(1, wide)) for _ in range(2 * sizes)]
    hold_the_set_against_torch(graph, [(h, w) for h, w in [*near, *small] if h > 0 and w > 0])
